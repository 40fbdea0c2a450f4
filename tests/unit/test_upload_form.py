"""The form of an upload: every order and cut that clients send, and every body that is refused."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterable

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from azaion_loader import upload_form
from azaion_loader.errors import InvalidName, InvalidRequest, LoaderError, TooLarge
from azaion_loader.upload_form import drain, receive_upload

BOUNDARY = "a-boundary"
CONTENT_TYPE = f"multipart/form-data; boundary={BOUNDARY}"


class Sink:
    """Keeps what it is given; `blocked` holds a write back."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.folder: str | None = None
        self.closed = 0
        self.largest = 0
        self.opened_with: tuple[str | None, int] | None = None
        self.unblocked = threading.Event()
        self.unblocked.set()
        self.error: LoaderError | None = None

    def open(self, *, folder: str | None, expected_bytes: int) -> "Sink":
        self.opened_with = (folder, expected_bytes)
        return self

    def write(self, plain: bytes) -> None:
        assert self.unblocked.wait(10)
        if self.error is not None:
            raise self.error
        self.largest = max(self.largest, len(plain))
        self.data += plain

    def commit(self, folder: str) -> None:
        assert not self.closed
        self.folder = folder

    def close(self) -> None:
        self.closed += 1


def part(name: str, value: bytes, filename: str | None = None) -> bytes:
    extra = "" if filename is None else f'; filename="{filename}"'
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{extra}\r\n\r\n'
    return head.encode() + value + b"\r\n"


def form(*parts: bytes) -> bytes:
    return b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()


DATA = part("data", b"content", "m.bin")
FOLDER = part("folder", b"other")


async def in_pieces(body: bytes | Iterable[bytes], size: int = 7) -> AsyncIterator[bytes]:
    for piece in [body[i : i + size] for i in range(0, len(body), size)] if isinstance(body, bytes) else body:
        yield piece
        await asyncio.sleep(0)


def receive(
    body: bytes | Iterable[bytes],
    sink: Sink | None = None,
    *,
    content_type: str = CONTENT_TYPE,
    length: int | None = None,
    max_bytes: int = 1 << 30,
    size: int = 7,
) -> Sink:
    taker = sink or Sink()

    async def run() -> None:
        await receive_upload(
            in_pieces(body, size),
            content_type=content_type,
            content_length=length,
            filename="m.bin",
            max_bytes=max_bytes,
            open_sink=taker.open,
            limit=anyio.CapacityLimiter(2),
        )

    asyncio.run(run())
    return taker


@pytest.mark.parametrize("size", [1, 2, 7, 64, 10_000])
def test_folder_before_the_file_is_known_to_the_sink(size: int) -> None:
    sink = receive(form(FOLDER, DATA), length=500, size=size)
    assert (bytes(sink.data), sink.folder, sink.closed) == (b"content", "other", 1)
    assert sink.opened_with == ("other", 500)


@pytest.mark.parametrize("size", [1, 2, 7, 64, 10_000])
def test_folder_after_the_file(size: int) -> None:
    sink = receive(form(DATA, FOLDER), size=size)
    assert (bytes(sink.data), sink.folder) == (b"content", "other")


def test_without_folder_it_is_models() -> None:
    assert receive(form(DATA)).folder == "models"


def test_folder_after_a_big_file_is_unknown_when_the_sink_opens() -> None:
    big = bytes(range(256)) * 8192
    sink = receive(form(part("data", big, "m.bin"), FOLDER), size=65536)
    assert bytes(sink.data) == big
    assert sink.opened_with == (None, 0)
    assert sink.folder == "other"


def test_empty_file_is_a_file() -> None:
    sink = receive(form(part("data", b"", "m.bin")))
    assert sink.folder == "models"
    assert sink.data == b""


def test_memory_is_bounded_by_pieces() -> None:
    sink = receive((form(part("data", bytes(4 << 20), "m.bin")),), size=0)
    assert len(sink.data) == 4 << 20


def test_other_plain_fields_are_left_alone() -> None:
    sink = receive(form(part("note", b"x"), DATA, part("more", b"\xc3\xa9"), FOLDER))
    assert bytes(sink.data) == bytes(receive(form(DATA)).data)


def test_field_of_the_same_file_name_is_accepted() -> None:
    assert receive(form(part("filename", b"m.bin"), DATA)).folder == "models"


@settings(max_examples=60, deadline=None)
@given(
    content=st.binary(max_size=300) | st.sampled_from([b"\r\n--a-boundar", b"\r\n--", b"--a-boundary--", b"\r\n\r\n"]),
    size=st.integers(1, 50),
)
def test_any_content_arrives_as_sent(content: bytes, size: int) -> None:
    assert bytes(receive(form(part("data", content, "x")), size=size).data) == content


BAD = {
    "empty body": b"",
    "no parts": form(),
    "no file": form(FOLDER),
    "file part without a file name": form(part("data", b"x")),
    "two files": form(DATA, DATA),
    "another file": form(DATA, part("more", b"x", "y")),
    "two folders": form(FOLDER, DATA, FOLDER),
    "folder as a file": form(part("folder", b"models", "f"), DATA),
    "long field": form(part("folder", b"a" * 5000), DATA),
    "folder is not UTF-8": form(part("folder", b"\xff\xfe"), DATA),
    "other file name": form(DATA, part("filename", b"n.bin")),
    "cut in the file": form(DATA)[:90],
    "cut before the end": form(DATA)[:-6],
    "not a form": b"just some bytes that hold no boundary at all",
    "json": b'{"filename": "m.bin"}',
    "no disposition": f"--{BOUNDARY}\r\nX: y\r\n\r\nvalue\r\n--{BOUNDARY}--\r\n".encode(),
    "huge header": f"--{BOUNDARY}\r\nX: {'y' * 9000}\r\n\r\nvalue\r\n--{BOUNDARY}--\r\n".encode(),
    "many headers": f"--{BOUNDARY}\r\n{'X: y' * 1}\r\n".encode() * 1 + b"X: y\r\n" * 50 + b"\r\nv\r\n",
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("size", [3, 5000])
def test_bad_forms_are_refused_and_leave_nothing(name: str, size: int) -> None:
    sink = Sink()
    with pytest.raises(InvalidRequest) as caught:
        receive(BAD[name], sink, size=size)
    assert type(caught.value) is InvalidRequest
    assert sink.folder is None
    assert sink.closed == (sink.opened_with is not None)


@pytest.mark.parametrize("folder", [b"", b"..", b"a/b", b"a\0b", b"get", b"Get-all", b"\xd0\xbcodels", b"a" * 129])
@pytest.mark.parametrize("last", [False, True])
def test_folder_outside_the_rule(folder: bytes, last: bool) -> None:
    field = part("folder", folder)
    with pytest.raises(InvalidName):
        receive(form(DATA, field) if last else form(field, DATA))


@pytest.mark.parametrize(
    "content_type",
    ["", "application/json", "multipart/form-data", "multipart/form-data; boundary=", "multipart/mixed; boundary=a",
     f"multipart/form-data; boundary={'b' * 300}"],
)  # fmt: skip
def test_content_types_without_a_usable_boundary(content_type: str) -> None:
    with pytest.raises(InvalidRequest):
        receive(form(DATA), content_type=content_type)


def test_announced_length_over_the_limit_is_refused_before_reading() -> None:
    read = []

    def pieces() -> Iterable[bytes]:
        read.append(1)
        yield form(DATA)

    with pytest.raises(TooLarge, match="1000 bytes"):
        receive(pieces(), length=1000 + (1 << 20), max_bytes=1000)
    assert not read


def test_fault_of_the_sink_ends_the_upload() -> None:
    sink = Sink()
    sink.error = TooLarge("An upload may have at most 5 bytes.")
    with pytest.raises(TooLarge):
        receive(form(part("data", bytes(3 << 20), "m.bin")), sink, size=65536)
    assert sink.closed == 1
    assert sink.folder is None


def test_slow_sink_slows_the_sender(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload_form, "PIECE_BYTES", 1000)
    sink = Sink()
    sink.unblocked.clear()
    taken = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal taken
        yield form(part("data", b"", "m.bin"))[: -len(f"\r\n--{BOUNDARY}--\r\n")]
        for _ in range(100):
            taken += 1
            yield bytes(500)
        yield f"\r\n--{BOUNDARY}--\r\n".encode()

    async def run() -> None:
        upload = asyncio.create_task(
            receive_upload(
                body(), content_type=CONTENT_TYPE, content_length=None, filename="m.bin", max_bytes=1 << 20,
                open_sink=sink.open, limit=anyio.CapacityLimiter(1),
            )
        )  # fmt: skip
        while taken < 4:
            await asyncio.sleep(0.001)
        for _ in range(50):
            await asyncio.sleep(0.001)
        # One piece in the sink, one gathered: nothing more is taken from the sender.
        assert taken == 4
        sink.unblocked.set()
        await upload

    asyncio.run(run())
    assert sink.data == bytes(50_000)


def test_cancelled_upload_closes_the_sink() -> None:
    sink = Sink()

    async def body() -> AsyncIterator[bytes]:
        yield form(part("data", bytes(2 << 20), "m.bin"))[:-40]
        await asyncio.Event().wait()

    async def run() -> None:
        upload = asyncio.create_task(
            receive_upload(
                body(), content_type=CONTENT_TYPE, content_length=None, filename="m.bin", max_bytes=1 << 30,
                open_sink=sink.open, limit=anyio.CapacityLimiter(1),
            )
        )  # fmt: skip
        while not sink.data:
            await asyncio.sleep(0.001)
        upload.cancel()
        with pytest.raises(asyncio.CancelledError):
            await upload

    asyncio.run(run())
    assert sink.closed == 1
    assert sink.folder is None


def test_drain_takes_the_rest_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload_form, "_DRAIN_BYTES", 1000)
    monkeypatch.setattr(upload_form, "_DRAIN_S", 0.05)
    taken = 0

    async def endless(pause_s: float) -> AsyncIterator[bytes]:
        nonlocal taken
        while True:
            await asyncio.sleep(pause_s)
            taken += 1
            yield bytes(100)

    asyncio.run(drain(endless(0)))
    assert taken == 11
    asyncio.run(drain(endless(60)))
    assert taken == 11
