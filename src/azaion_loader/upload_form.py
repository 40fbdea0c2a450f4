"""Reads the form of an upload as it streams in; its file part never touches the disk as plaintext.

A framework's own form parser would spool the file into a temporary one (unlinked, so that no directory shows it). The
form: one file part `data`, at most one field `folder`, in any order.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import Protocol, Self

import anyio
from anyio import to_thread
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from azaion_loader.errors import InvalidRequest, LoaderError, TooLarge
from azaion_loader.names import check_folder

DEFAULT_FOLDER = "models"
FILE_PART = "data"

# Big enough that a thread's hand-over and its half a dozen turns of the interpreter's lock cost little (512 KiB made
# uploads a tenth slower), small enough for many uploads at once.
PIECE_BYTES = 1 << 20
_FIELD_MAX_BYTES = 1024
_PARTS_MAX = 8
_HEADERS_MAX = 8
# What a form has besides its file: boundaries, headers, the folder.
_FORM_OVERHEAD_BYTES = 64 * 1024
# A client that sends while it is refused hears of it only once its bytes were taken.
_DRAIN_BYTES = 1 << 28
_DRAIN_S = 5.0


class UploadSink(Protocol):
    """What takes the file's bytes; the real one is `publication.Publication`."""

    def write(self, plain: bytearray) -> None:
        """Take the next piece, and with it the buffer. Called in a thread, one piece at a time."""

    def commit(self, folder: str) -> None:
        """Publish what came. Called in a thread."""

    def close(self) -> None:
        """End; what was not committed leaves nothing."""


class UploadFile(Protocol):
    """Opens the sink when the file part begins: `folder` where it is known by then, and about how many bytes come."""

    def __call__(self, *, folder: str | None, expected_bytes: int) -> UploadSink:
        """Return the sink. Called in a thread."""


class FormReader:
    """The grammar of the form over python-multipart's callbacks. Feed it with write().

    Bytes of the file gather in `file`. `folder` is None until its field has ended. Every method raises
    InvalidRequest or InvalidName.
    """

    def __init__(self, content_type: str, filename: str) -> None:
        kind, options = parse_options_header(content_type)
        if kind != b"multipart/form-data" or not options.get(b"boundary"):
            raise InvalidRequest("An upload is a multipart/form-data body with a boundary and a file part 'data'.")
        self.file = bytearray()
        self.file_seen = False
        self.folder: str | None = None
        self._filename = filename
        self._parts = 0
        self._ended = False
        self._field = ""
        self._value = bytearray()
        self._seen: set[str] = set()
        self._header_name = b""
        self._header_value = b""
        self._disposition = b""
        callbacks = {
            "on_part_begin": self._begin_part,
            "on_header_field": self._take_header_name,
            "on_header_value": self._take_header_value,
            "on_header_end": self._end_header,
            "on_headers_finished": self._open_part,
            "on_part_data": self._take_data,
            "on_part_end": self._end_part,
            "on_end": self._end,
        }
        try:
            self._parser = MultipartParser(options[b"boundary"], callbacks, max_header_count=_HEADERS_MAX)  # type: ignore[arg-type]
        except FormParserError as err:
            raise InvalidRequest("The boundary of the multipart body is too long.") from err

    def write(self, chunk: bytes) -> None:
        """Take the next bytes of the body."""
        try:
            self._parser.write(chunk)
        except FormParserError as err:
            raise InvalidRequest("The multipart body can't be read.") from err

    def finish(self) -> None:
        """Take note that the body has ended."""
        if not self._ended:
            raise InvalidRequest("The multipart body ends in the middle, or holds nothing.")
        if not self.file_seen:
            raise InvalidRequest("The form has no file part 'data'.")

    def _begin_part(self) -> None:
        self._parts += 1
        if self._parts > _PARTS_MAX:
            raise InvalidRequest("The form has too many parts.")
        self._disposition = b""
        self._value.clear()

    def _take_header_name(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def _take_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def _end_header(self) -> None:
        if self._header_name.lower() == b"content-disposition":
            self._disposition = self._header_value
        self._header_name = self._header_value = b""

    def _open_part(self) -> None:
        kind, options = parse_options_header(self._disposition)
        self._field = options.get(b"name", b"").decode("latin-1")
        is_file = b"filename" in options
        if kind != b"form-data" or self._field in self._seen:
            raise InvalidRequest("A part of the form has no name, or one that is there already.")
        if is_file != (self._field == FILE_PART):
            raise InvalidRequest("The form takes one file part, 'data'; 'folder' is a plain field.")
        self._seen.add(self._field)
        self.file_seen = self.file_seen or is_file

    def _take_data(self, data: bytes, start: int, end: int) -> None:
        if self._field == FILE_PART:
            self.file += memoryview(data)[start:end]
            return
        self._value += data[start:end]
        if len(self._value) > _FIELD_MAX_BYTES:
            raise InvalidRequest(f"The field '{self._field}' is too long.")

    def _end_part(self) -> None:
        if self._field == FILE_PART:
            return
        try:
            value = self._value.decode()
        except UnicodeDecodeError as err:
            raise InvalidRequest(f"The field '{self._field}' is not UTF-8.") from err
        if self._field == "folder":
            check_folder(value)
            self.folder = value
        elif self._field == "filename" and value != self._filename:
            raise InvalidRequest("The file names of the path and the body differ.")

    def _end(self) -> None:
        self._ended = True


class _Piecewise:
    """Hands pieces to the sink in a thread, one at a time, while the next one is gathered: two pieces in memory."""

    def __init__(self, limit: anyio.CapacityLimiter) -> None:
        self._limit = limit
        self._writing: asyncio.Task[None] | None = None
        self.sink: UploadSink | None = None

    async def open(self, opener: Callable[[], UploadSink]) -> None:
        self.sink = await to_thread.run_sync(opener, limiter=self._limit)

    async def write(self, piece: bytearray) -> None:
        await self._written()
        if self.sink is not None and piece:
            self._writing = asyncio.create_task(to_thread.run_sync(self.sink.write, piece, limiter=self._limit))

    async def commit(self, folder: str) -> None:
        await self._written()
        if self.sink is not None:
            await to_thread.run_sync(self.sink.commit, folder, limiter=self._limit)

    async def _written(self) -> None:
        if self._writing is not None:
            await self._writing
            self._writing = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with anyio.CancelScope(shield=True):
            if self._writing is not None:
                # Its outcome is that of the upload, which has one already.
                await asyncio.wait({self._writing})
                self._writing.cancelled() or self._writing.exception()
            if self.sink is not None:
                await to_thread.run_sync(self.sink.close, limiter=self._limit)


async def receive_upload(
    body: AsyncIterator[bytes],
    *,
    content_type: str,
    content_length: int | None,
    filename: str,
    max_bytes: int,
    open_sink: UploadFile,
    limit: anyio.CapacityLimiter,
) -> None:
    """Read one upload from `body` into a sink of `open_sink`, and commit it.

    At most `max_bytes` of file; the sink refuses more. Memory is bounded, and a slow sink slows the client. Raises
    InvalidRequest, InvalidName, TooLarge and what the sink raises; by then the sink is closed and has left nothing.
    """
    if content_length is not None and content_length > max_bytes + _FORM_OVERHEAD_BYTES:
        raise TooLarge(f"An upload may have at most {max_bytes} bytes.")
    form = FormReader(content_type, filename)
    async with _Piecewise(limit) as pieces:

        async def hand_over() -> None:
            if pieces.sink is None:
                folder = form.folder
                await pieces.open(lambda: open_sink(folder=folder, expected_bytes=content_length or 0))
            # Handed over, not copied.
            piece, form.file = form.file, bytearray()
            await pieces.write(piece)

        async for chunk in body:
            form.write(chunk)
            if len(form.file) >= PIECE_BYTES:
                await hand_over()
        form.finish()
        await hand_over()
        await pieces.commit(form.folder or DEFAULT_FOLDER)


async def drain(body: AsyncIterator[bytes]) -> None:
    """Take the rest of a refused body and forget it, within bounds, so that its sender lives to read the answer."""
    give_up = time.monotonic() + _DRAIN_S
    left = _DRAIN_BYTES
    try:
        with anyio.move_on_after(_DRAIN_S):
            async for chunk in body:
                left -= len(chunk)
                if left < 0 or time.monotonic() > give_up:
                    return
    except LoaderError:
        return
