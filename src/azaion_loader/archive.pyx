"""Reads and proves an image archive: what `docker save` writes, plain or gzipped as a whole.

`open_archive` proves everything but the layers, by random access to a plain tar; `prove_layers` proves the layers that
a caller is about to use. Together they leave no byte unproved, so that nothing unproved reaches an engine. A gzipped
archive has no random access: `open_archive` proves all of it in one pass.
"""

import hashlib
import threading
from concurrent.futures import ThreadPoolExecutor

from azaion_loader.archive_gzip import GzipSource, Unpacker
from azaion_loader.archive_json import MAX_DOCUMENT_BYTES
from azaion_loader.archive_members import is_document, may_be_layer, read_images
from azaion_loader.archive_model import (
    CHUNK_BYTES,
    ArchiveImage,
    ArchiveIndex,
    Layer,
    Member,
    Reader,
    distinct_layers,
)
from azaion_loader.errors import ArchiveInvalid
from azaion_loader.tar_index import PlainSource, walk_tar

__all__ = [
    "ArchiveImage",
    "ArchiveIndex",
    "Layer",
    "Member",
    "Reader",
    "looks_like_archive",
    "open_archive",
    "prove_layers",
]

# All descriptions of an archive together; some are held in memory until the images are read.
MAX_DOCUMENTS_BYTES = 16 << 20

cdef bytes GZIP_MAGIC = b"\x1f\x8b\x08"


def looks_like_archive(first_bytes: bytes) -> bool:
    """Whether these first bytes (512 are enough) can begin a tar or a gzip stream: a quick test of a key."""
    return first_bytes[257:262] == b"ustar" or first_bytes[:3] == GZIP_MAGIC


class _PlainContents:
    """Bytes of members by random access."""

    def __init__(self, reader, cancelled):
        self._reader = reader
        self._cancelled = cancelled
        self._left = MAX_DOCUMENTS_BYTES

    def visit(self, member, source):
        """Skip a file while the tar is walked."""
        source.skip(member.size)

    def document(self, member):
        """Return the bytes of a description."""
        _check_document(member, self._left)
        self._left -= member.size
        return _read_exactly(self._reader, member)

    def sha256(self, member):
        """Return the hex SHA-256 of a member's bytes."""
        digest = hashlib.sha256()
        for chunk in _chunks(self._reader, member, self._cancelled):
            digest.update(chunk)
        return digest.hexdigest()


class _PassingContents:
    """Digests of members, and the bytes of descriptions, taken while a gzipped archive passes by."""

    def __init__(self, max_bytes):
        self._max_bytes = max_bytes
        self._left = MAX_DOCUMENTS_BYTES
        self._documents = {}
        self._digests = {}
        self._unpacked = {}

    def visit(self, member, source):
        """Hash a file while the tar is walked, packed and unpacked, and keep it if it may be a description."""
        digest, unpacked, unpacker = hashlib.sha256(), None, None
        kept = [] if self._may_keep(member) else None
        left = member.size
        while left:
            some = source.take_some(left)
            if not len(some):
                raise ArchiveInvalid(f"The archive is cut off: its tar ends at byte {source.position}.")
            if left == member.size:
                if some[:2] == GZIP_MAGIC[:2] and may_be_layer(member.name):
                    unpacked, unpacker = hashlib.sha256(), Unpacker(self._max_bytes, f"The layer '{member.name}'")
                if kept is not None and not is_document(member.name) and some[0] != ord("{"):
                    kept = None
            digest.update(some)
            if unpacker is not None:
                for piece in unpacker.unpack(some):
                    unpacked.update(piece)
            if kept is not None:
                kept.append(bytes(some))
            left -= len(some)
        if unpacker is not None:
            unpacker.finish()
            self._unpacked[member.name] = unpacked.hexdigest()
        self._digests[member.name] = digest.hexdigest()
        if kept is not None:
            self._left -= member.size
            self._documents[member.name] = b"".join(kept)

    def _may_keep(self, member):
        return member.size <= min(MAX_DOCUMENT_BYTES, self._left) and not member.name.endswith(".tar")

    def document(self, member):
        """Return the bytes of a description."""
        _check_document(member, MAX_DOCUMENT_BYTES)
        try:
            return self._documents[member.name]
        except KeyError as err:
            raise ArchiveInvalid(f"The archive's member '{member.name}' is not a description.") from err

    def sha256(self, member):
        """Return the hex SHA-256 of a member's bytes."""
        return self._digests[member.name]

    def check_layer(self, layer):
        """Prove a layer by the digests taken."""
        blob = f"sha256:{self._digests[layer.name]}"
        diff_id = f"sha256:{self._unpacked.get(layer.name)}" if layer.gzipped else blob
        _check_digests(layer, blob, diff_id)


cdef _check_document(member, left):
    if member.size > min(MAX_DOCUMENT_BYTES, left):
        raise ArchiveInvalid(f"The archive's member '{member.name}' is too large for a description.")


cdef bytes _read_exactly(reader, member):
    data = reader.read_at(member.offset, member.size) if member.size else b""
    if len(data) != member.size:
        raise ArchiveInvalid(f"The archive is cut off in its member '{member.name}'.")
    return data


def _chunks(reader, member, cancelled):
    """Yield a member's bytes; each chunk is valid until the next one."""
    cdef object offset = member.offset
    cdef object end = member.offset + member.size
    if not member.size:
        return
    buffer = memoryview(bytearray(min(CHUNK_BYTES, member.size)))
    while offset < end:
        cancelled()
        window = buffer[:min(len(buffer), end - offset)]
        if reader.readinto_at(offset, window) != len(window):
            raise ArchiveInvalid(f"The archive is cut off in its member '{member.name}'.")
        yield window
        offset += len(window)


cdef _check_digests(layer, blob_digest, diff_id):
    if blob_digest != layer.blob_digest or diff_id != layer.diff_id:
        raise ArchiveInvalid(f"The archive's layer '{layer.name}' is damaged: its bytes don't fit its digest.")


def open_archive(reader: object, max_bytes: int, cancelled: object) -> ArchiveIndex:
    """Read and prove the structure of an archive, and of a gzipped one every byte.

    `max_bytes` bounds the (unpacked) tar. Of a plain tar only headers, fillers and descriptions are read. Raises
    ArchiveInvalid, ArchiveIncomplete, or what `cancelled` raises.
    """
    gzipped = reader.read_at(0, 3) == GZIP_MAGIC
    if reader.size > max_bytes:
        raise ArchiveInvalid(f"The archive is larger than the {max_bytes} bytes that are allowed.")
    source = GzipSource(reader, max_bytes, cancelled) if gzipped else PlainSource(reader, cancelled)
    contents = _PassingContents(max_bytes) if gzipped else _PlainContents(reader, cancelled)
    members = walk_tar(source, contents.visit, cancelled)
    tar_bytes = source.finish()
    images, layout = read_images(members, contents)
    proved = set()
    if gzipped:
        for layer in distinct_layers(layer for image in images for layer in image.layers):
            contents.check_layer(layer)
            proved.add(layer.blob_digest)
    return ArchiveIndex(images, tar_bytes, layout, gzipped, max_bytes, frozenset(proved))


cdef _prove_layer(reader, layer, max_bytes, passed, cancelled):
    """Prove one layer of a plain tar; `passed(n)` is told the bytes as they are read."""
    blob = hashlib.sha256()
    unpacked = hashlib.sha256()
    unpacker = Unpacker(max_bytes, f"The layer '{layer.name}'") if layer.gzipped else None
    for chunk in _chunks(reader, layer, cancelled):
        blob.update(chunk)
        if unpacker is not None:
            for piece in unpacker.unpack(chunk):
                cancelled()
                unpacked.update(piece)
        passed(len(chunk))
    if unpacker is not None:
        unpacker.finish()
    diff = unpacked if layer.gzipped else blob
    _check_digests(layer, f"sha256:{blob.hexdigest()}", f"sha256:{diff.hexdigest()}")


class _Stopped(Exception):
    """Ends the other workers after a failure; never leaves this module."""


def prove_layers(
    reader: object,
    index: ArchiveIndex,
    layers: object,
    progress: object,
    cancelled: object,
    threads: int = 1,
) -> None:
    """Hash each of these layers once, with `threads` workers of about 1 MiB each.

    `progress(n)` is told each `n` bytes of the tar that were newly proved, by one thread at a time; `cancelled` is
    called by all of them. A packed layer is proved packed and unpacked. Layers proved by `open_archive` are counted,
    but not read again. Raises ArchiveInvalid for the first layer (in the order of the archive) that was found
    damaged, or what `cancelled` raises.
    """
    todo = []
    for layer in distinct_layers(layers):
        if layer.blob_digest in index.proved:
            progress(layer.size)
        else:
            todo.append(layer)
    if threads <= 1 or len(todo) <= 1:
        for layer in todo:
            _prove_layer(reader, layer, index.max_bytes, progress, cancelled)
        return
    _prove_in_parallel(reader, index, todo, progress, cancelled, min(threads, len(todo)))


def _prove_in_parallel(reader, index, todo, progress, cancelled, threads):
    lock = threading.Lock()
    stop = threading.Event()

    def passed(count):
        with lock:
            progress(count)

    def check():
        if stop.is_set():
            raise _Stopped
        cancelled()

    def prove(layer):
        try:
            check()
            _prove_layer(reader, layer, index.max_bytes, passed, check)
        except BaseException:
            stop.set()
            raise

    # The largest first, so that no worker is left alone with it at the end.
    by_size = sorted(todo, key=lambda layer: -layer.size)
    with ThreadPoolExecutor(threads, thread_name_prefix="prove") as pool:
        futures = {layer.offset: pool.submit(prove, layer) for layer in by_size}
    errors = [error for _, future in sorted(futures.items()) if (error := future.exception()) is not None]
    for error in errors:
        if not isinstance(error, _Stopped):
            raise error
