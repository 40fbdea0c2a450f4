"""One upload: encrypt as bytes arrive, cut, store the big part, then commit with the small one.

Only ciphertext touches the disk, and only below the dot-directory until the upload is committed (docs/formats.md).
"""

import fcntl
import hashlib
import os
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

cimport cython

from loguru import logger

from azaion_loader import files, metrics, security
from azaion_loader.errors import DiskFull, TooLarge
from azaion_loader.part_notes import PartNote
from azaion_loader.part_proof import LARGEST_HEAD_BYTES, PASS_BYTES, PartClaims, cut_at, head_digest

__all__ = ["Publication"]

# From this length on a ciphertext's small part has its largest size: what is longer needs no waiting for the end.
_CUT_KNOWN_BYTES = (LARGEST_HEAD_BYTES * 100 + 29) // 30


@cython.final
cdef class Publication:
    """An upload of the resource `name`, not yet published.

    `expected_bytes` is about how many will come (0: unknown), for the check of the disk; `max_bytes` how many may.
    With the `folder` known beforehand the MAC is made on the way, else in a second pass over the ciphertext.
    write() and close() may be called from different threads. Raises DiskFull, TooLarge.
    """

    def __cinit__(self):
        self._descriptor = -1

    def __init__(
        self,
        sources: object,
        cache: object,
        name: str,
        *,
        folder: str | None,
        expected_bytes: int,
        max_bytes: int,
    ) -> None:
        self._sources = sources
        self._cache = cache
        self._name = name
        self._folder = folder
        self._max_bytes = max_bytes
        self._guard = threading.Lock()
        self._head = bytearray()
        self._small = b""
        self._encryptor = security.CbcEncryptor(security.resource_key())
        self._mac = security.PartMac(folder, name) if folder is not None else None
        self._sha256 = hashlib.sha256()
        # MAC and hash run side by side, each on a core of its own. The thread comes with the first piece.
        self._beside = ThreadPoolExecutor(1, "digest")
        cache.make_room(expected_bytes, f"the upload of '{name}'")
        with files.disk_full_named(cache.upload_dir, expected_bytes):
            cache.upload_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._descriptor, aside = tempfile.mkstemp(dir=cache.upload_dir)
        self._aside = Path(aside)
        # Whoever finds the file without this lock knows that its writer is dead.
        fcntl.flock(self._descriptor, fcntl.LOCK_EX)

    def write(self, plain: bytes | bytearray) -> None:
        """Encrypt and keep the next piece of the file. Raises TooLarge, DiskFull, OSError."""
        with self._guard:
            if self._ended:
                return
            self._plain_bytes += len(plain)
            if self._plain_bytes > self._max_bytes:
                raise TooLarge(f"An upload may have at most {self._max_bytes} bytes.")
            metrics.count("resource_bytes", len(plain), direction="received")
            self._take(self._encryptor.update(plain))

    def commit(self, folder: str) -> None:
        """Publish what was written: big part to the store, then small part to the API, then both known to the cache.

        Raises UpstreamError and its subclasses, what a log-in raises, UpstreamTimeout while another upload of this
        resource does not end. After an error the resource may be unreadable elsewhere until an upload succeeds.
        """
        with self._guard:
            self._take(self._encryptor.finalize())
            if not self._cut:
                self._cut_off_head(cut_at(len(self._head)))
            mac = self._mac_for(folder)
        claims = PartClaims(head_digest(self._small), mac)
        request = self._sources.request(folder, self._name)
        with self._cache.locked(folder, self._name):
            etag = request.upload_big(self._aside, claims.metadata())
            request.write_small(self._small)
            self._keep(folder, PartNote(claims.head_sha256, self._big_bytes, etag, self._sha256.hexdigest(), mac))

    def close(self) -> None:
        """End the upload; nothing stays of one that was not committed. Without effect the second time."""
        with self._guard:
            self._ended = True
            descriptor, self._descriptor = self._descriptor, -1
            if descriptor >= 0:
                self._aside.unlink(missing_ok=True)
                os.close(descriptor)
            self._beside.shutdown()

    def __enter__(self) -> Publication:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self.close()

    cdef object _take(self, bytes ciphertext):
        """Send the next piece of C where it belongs: held back while the cut is unknown, then to the aside file."""
        mac = self._beside.submit(self._mac.update, ciphertext) if self._mac is not None else None
        try:
            if self._cut:
                self._write_out(ciphertext)
                return
            self._head += ciphertext
            if len(self._head) >= _CUT_KNOWN_BYTES:
                self._cut_off_head(LARGEST_HEAD_BYTES)
        finally:
            if mac is not None:
                mac.result()

    cdef object _cut_off_head(self, long long count):
        self._small = bytes(self._head[:count])
        rest = bytes(self._head[count:])
        self._head = bytearray()
        self._cut = True
        self._write_out(rest)

    cdef object _write_out(self, bytes ciphertext):
        self._sha256.update(ciphertext)
        left = memoryview(ciphertext)
        with files.disk_full_named(self._aside, len(ciphertext)):
            while left:
                left = left[os.write(self._descriptor, left):]
        self._big_bytes += len(ciphertext)

    cdef str _mac_for(self, str folder):
        """Return the MAC of C in this folder, by a pass over the ciphertext if the folder wasn't known at first."""
        if self._mac is not None and self._folder == folder:
            return self._mac.hexdigest()
        mac = security.PartMac(folder, self._name)
        mac.update(self._small)
        cdef long long offset = 0
        while piece := os.pread(self._descriptor, PASS_BYTES, offset):
            mac.update(piece)
            offset += len(piece)
        return mac.hexdigest()

    cdef object _keep(self, str folder, object note):
        """Put the published part into the cache. The upload is committed: a fault only costs the next load time."""
        try:
            # In the cache the file is one in use, not one being written.
            fcntl.flock(self._descriptor, fcntl.LOCK_SH)
            self._cache.keep(self._aside, folder, self._name)
            self._cache.notes.remember_part(folder, self._name, note)
            self._cache.trim()
        except (OSError, DiskFull) as err:
            logger.warning("The published part of {}/{} could not be kept in the cache: {}", folder, self._name, err)
