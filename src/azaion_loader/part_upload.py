"""Uploads one file to the object store: in one piece when small, else as a multipart upload over several connections.

Nothing is read at the store. A failed multipart upload is aborted, so that the store keeps no orphaned parts.
"""

import os
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from azaion_loader.errors import InvalidRequest, LoaderError, UpstreamError
from azaion_loader.store_answers import is_transient, plain_etag, translate
from azaion_loader.transfer_terms import backoff_s

# Sent with the quick client, whose time-out is for a connection: so little gets through in time anywhere.
SMALL_BYTES = 1 << 20
MAX_PARTS = 10_000
MAX_SIZE_BYTES = 5 << 40
TICK_S = 0.2


@dataclass(frozen=True, slots=True)
class UploadClients:
    """`quick` notices within seconds that the store can't be reached; `patient` has time for slow uplinks."""

    quick: Any
    patient: Any


class SourceChanged(LoaderError):
    """The file to upload became shorter or was written to during the upload."""


class FileSection:
    """Bytes [start, start + length) of a file as a seekable stream, read with pread: many can share a descriptor."""

    def __init__(self, descriptor: int, start: int, length: int, stopped: threading.Event) -> None:
        self._descriptor = descriptor
        self._start = start
        self._length = length
        self._position = 0
        self._stopped = stopped

    def read(self, count: int = -1) -> bytes:
        """Return up to `count` bytes. Raises SourceChanged when the file ends early, UpstreamError when stopped."""
        if self._stopped.is_set():
            raise UpstreamError("The upload was ended.")
        rest = self._length - self._position
        wanted = rest if count is None or count < 0 else min(count, rest)
        data = os.pread(self._descriptor, wanted, self._start + self._position)
        if len(data) < wanted:
            raise SourceChanged("The file changed while it was being uploaded.")
        self._position += len(data)
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move as in io.IOBase."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._length}[whence]
        self._position = max(0, base + offset)
        return self._position

    def tell(self) -> int:
        """Return the position."""
        return self._position


class PartUpload:
    """One upload of the file at `source`; `progress` is called with the bytes that the store has taken."""

    def __init__(
        self,
        clients: UploadClients,
        bucket: str,
        key: str,
        source: Path,
        metadata: Mapping[str, str],
        *,
        part_bytes: int,
        connections: int,
        tries: int,
        progress: Callable[[int], None],
        cancelled: Callable[[], None],
    ) -> None:
        self._clients = clients
        self._target = {"Bucket": bucket, "Key": key}
        self._source = source
        self._metadata = dict(metadata)
        self._part_bytes = part_bytes
        self._connections = connections
        self._tries = tries
        self._progress = progress
        self._cancelled = cancelled
        self._stopped = threading.Event()
        self._descriptor = -1

    def run(self) -> str:
        """Upload, and return the ETag that the store answered (empty where it named none).

        Raises KeysRefused, UpstreamError (bucket missing, too), UpstreamUnavailable, UpstreamTimeout, LoaderError
        when the file changed, and what `cancelled` raises.
        """
        with self._source.open("rb") as file:
            self._descriptor = file.fileno()
            before = os.fstat(self._descriptor)
            if before.st_size > MAX_SIZE_BYTES:
                raise InvalidRequest("The file is larger than an object store takes.")
            if before.st_size <= SMALL_BYTES:
                etag = self._put(before.st_size)
                self._prove_unchanged(before)
                return etag
            return self._multipart(before)

    def _put(self, size: int) -> str:
        def call() -> Any:
            body = os.pread(self._descriptor, size + 1, 0)
            if len(body) != size:
                raise SourceChanged("The file changed while it was being uploaded.")
            return self._clients.quick.put_object(**self._target, Body=body, Metadata=self._metadata)

        answer = self._tried(call)
        self._progress(size)
        return plain_etag(answer.get("ETag"))

    def _prove_unchanged(self, before: os.stat_result) -> None:
        after = os.fstat(self._descriptor)
        if (after.st_size, after.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
            raise SourceChanged("The file changed while it was being uploaded.")

    def _multipart(self, before: os.stat_result) -> str:
        size = before.st_size
        step = max(self._part_bytes, -(-size // MAX_PARTS))
        sections = [(number, at, min(step, size - at)) for number, at in enumerate(range(0, size, step), start=1)]
        begun = self._tried(
            lambda: self._clients.quick.create_multipart_upload(**self._target, Metadata=self._metadata)
        )
        upload_id = str(begun.get("UploadId") or "")
        if not upload_id:
            raise UpstreamError("The object store began an upload without naming it.")
        try:
            etags = self._send(upload_id, sections)
            self._prove_unchanged(before)
            parts = [{"PartNumber": number, "ETag": etags[number]} for number, _, _ in sections]
            # Not repeated blindly: after a lost answer a second one finds no such upload, which is a failed upload.
            answer = self._tried(
                lambda: self._clients.patient.complete_multipart_upload(
                    **self._target, UploadId=upload_id, MultipartUpload={"Parts": parts}
                )
            )
        except BaseException:
            self._stopped.set()
            self._abort(upload_id)
            raise
        return plain_etag(answer.get("ETag"))

    def _send(self, upload_id: str, sections: list[tuple[int, int, int]]) -> dict[int, str]:
        """Send the sections in order, a few at a time, and return their ETags by number."""
        waiting = sections[::-1]
        running: dict[Future[str], tuple[int, int]] = {}
        etags: dict[int, str] = {}
        sent = 0
        with self._stopping():
            while waiting or running:
                while waiting and len(running) < self._connections:
                    number, start, length = waiting.pop()
                    running[self._in_thread(upload_id, number, start, length)] = (number, length)
                self._cancelled()
                for future in wait(running, timeout=TICK_S, return_when=FIRST_COMPLETED).done:
                    number, length = running.pop(future)
                    etags[number] = future.result()
                    sent += length
                    self._progress(sent)
        return etags

    def _in_thread(self, upload_id: str, number: int, start: int, length: int) -> Future[str]:
        """Send one section in a daemon thread: one that hangs can't keep the process alive."""
        future: Future[str] = Future()
        # A descriptor of its own: the thread may outlive the upload by one time-out.
        descriptor = os.dup(self._descriptor)

        def send() -> None:
            try:
                future.set_result(self._send_section(descriptor, upload_id, number, start, length))
            except BaseException as err:  # noqa: BLE001 - handed to the calling thread, which raises it
                future.set_exception(err)
            finally:
                os.close(descriptor)

        threading.Thread(target=send, name="part-upload", daemon=True).start()
        return future

    def _send_section(self, descriptor: int, upload_id: str, number: int, start: int, length: int) -> str:
        answer = self._tried(
            lambda: self._clients.patient.upload_part(
                **self._target,
                UploadId=upload_id,
                PartNumber=number,
                Body=FileSection(descriptor, start, length, self._stopped),
                ContentLength=length,
            ),
        )
        etag = answer.get("ETag")
        if not etag:
            raise UpstreamError("The object store took a part without naming its ETag.")
        return str(etag)

    def _tried(self, call: Callable[[], Any]) -> Any:
        """Call up to `tries` times with back-off, and return the answer."""
        for failures in range(1, self._tries + 1):
            try:
                return call()
            except Exception as err:
                error = source_fault(err) or translate(err, uploading=True)
                if failures == self._tries or not is_transient(error) or self._stopped.is_set():
                    raise error from err
            self._stopped.wait(backoff_s(failures))
        raise UpstreamError("The object store was not asked.")

    @contextmanager
    def _stopping(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self._stopped.set()
            raise

    def _abort(self, upload_id: str) -> None:
        """Ask the store to forget the parts; if that fails too, there is nothing more to do about it here."""
        try:
            self._clients.quick.abort_multipart_upload(**self._target, UploadId=upload_id)
        except Exception:  # noqa: BLE001 - the upload's own failure is what the caller must see
            return


def source_fault(error: BaseException) -> SourceChanged | None:
    """Return the fault of the file that botocore has wrapped, if it was one."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, SourceChanged):
            return seen
        seen = seen.__cause__ or seen.__context__
    return None
