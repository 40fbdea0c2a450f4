"""Whether a small and a big part belong together: the decisions, and the hash passes that they rest on.

The resource key never changes, so a new small part joined to an old big part decrypts with valid padding into a file
that is neither version (docs/formats.md). Hence nothing here is proved by decrypting.
"""

import hashlib
import hmac
import os
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from azaion_loader.errors import IntegrityError
from azaion_loader.part_notes import NameMemory, PartNote
from azaion_loader.security import PartMac
from azaion_loader.store_answers import ObjectInfo

BLOCK_BYTES = 16
# IV and one block of padding: the encryption of nothing.
MIN_CIPHERTEXT_BYTES = 2 * BLOCK_BYTES
PASS_BYTES = 1 << 20
# What cut_at says for every file from here on; below it a share of the file goes to the small part.
LARGEST_HEAD_BYTES = 3072
ONE_MESSAGE = "The parts of this resource don't fit together or are damaged."

_FORMAT, _HEAD, _MAC = "azaion-format", "azaion-head-sha256", "azaion-mac"
_HEX_DIGEST = re.compile(r"[0-9a-f]{64}", re.ASCII)
_MD5_ETAG = re.compile(r"[0-9a-f]{32}", re.ASCII)
_PROOFS_KEPT = 1024
# File times move in ticks: a change within this time after another may leave them equal.
_SETTLED_AFTER_NS = 1_000_000_000


class PartsDontFit(IntegrityError):
    """The parts as just read don't fit; reading both again may do better. One message for every cause."""

    def __init__(self, cause: str) -> None:
        super().__init__(ONE_MESSAGE)
        # For the log only: a client learns nothing about which check failed.
        self.cause = cause


@dataclass(frozen=True, slots=True)
class PartClaims:
    """What an object's metadata says about its resource; digests in lower-case hex."""

    head_sha256: str
    mac: str

    def metadata(self) -> dict[str, str]:
        """Return the metadata that an object of format 1 carries."""
        return {_FORMAT: "1", _HEAD: self.head_sha256, _MAC: self.mac}


def cut_at(ciphertext_bytes: int) -> int:
    """Return how many bytes of a ciphertext go into its small part."""
    return min(LARGEST_HEAD_BYTES, ciphertext_bytes * 30 // 100)


def head_digest(small: bytes) -> str:
    """Return the hex SHA-256 of a small part."""
    return hashlib.sha256(small).hexdigest()


def read_claims(metadata: Mapping[str, str]) -> PartClaims | None:
    """Return what the metadata of an object claims; None for an object of an older client, which has none.

    Stores give the names back in any case. Raises PartsDontFit for metadata that is there but not whole.
    """
    known = {name.lower(): value.strip().lower() for name, value in metadata.items()}
    if not known.keys() & {_FORMAT, _HEAD, _MAC}:
        return None
    head, mac = known.get(_HEAD, ""), known.get(_MAC, "")
    if known.get(_FORMAT) != "1" or not _HEX_DIGEST.fullmatch(head) or not _HEX_DIGEST.fullmatch(mac):
        raise PartsDontFit("metadata of the object is not of format 1")
    return PartClaims(head, mac)


def check_fit(small: bytes, found: ObjectInfo, memory: NameMemory, require_mac: bool) -> PartClaims | None:
    """Return what the object claims, if it and the small part may belong together as far as the bytes needn't be read.

    Raises PartsDontFit.
    """
    claims = read_claims(found.metadata)
    head = head_digest(small)
    total = len(small) + found.size
    if not small:
        raise PartsDontFit("the small part is empty")
    if total % BLOCK_BYTES or total < MIN_CIPHERTEXT_BYTES:
        raise PartsDontFit(f"the parts have {len(small)} and {found.size} bytes, which no ciphertext has")
    if claims is not None:
        if claims.head_sha256 != head:
            raise PartsDontFit("the object belongs to another small part")
        return claims
    if require_mac:
        raise PartsDontFit("the object has no MAC, and one is required")
    if memory.seen_in_format_1:
        raise PartsDontFit("the object has lost its metadata: this device has seen the name in format 1")
    if memory.part is not None and memory.part.etag == found.etag and memory.part.head_sha256 != head:
        raise PartsDontFit("the small part is new, but the object is the one that fitted the earlier one")
    return None


def note_fits(note: PartNote | None, memory: NameMemory, small: bytes, big_bytes: int, require_mac: bool) -> bool:
    """Say whether a cached part's note describes a part of this size that belongs to this small part."""
    return (
        note is not None
        and note.size == big_bytes
        and note.head_sha256 == head_digest(small)
        and (note.mac is not None or not (require_mac or memory.seen_in_format_1))
    )


@dataclass(frozen=True, slots=True)
class PartDigests:
    """Lower-case hex: SHA-256 and MD5 (where asked for) of the big part, MAC of the whole resource."""

    sha256: str
    mac: str
    md5: str = ""


class _Digester:
    """Digests of a big part as it streams by. Hash and MAC run side by side, each on a core of its own."""

    def __init__(self, folder: str, name: str, small: bytes, *, with_md5: bool = False) -> None:
        self._sha256 = hashlib.sha256()
        self._md5 = hashlib.md5(usedforsecurity=False) if with_md5 else None
        self._mac = PartMac(folder, name)
        self._mac.update(small)
        self._beside = ThreadPoolExecutor(1, "digest")

    def update(self, chunk: memoryview) -> None:
        other = self._beside.submit(self._sha256.update, chunk)
        self._mac.update(chunk)
        if self._md5 is not None:
            self._md5.update(chunk)
        other.result()

    def digests(self) -> PartDigests:
        return PartDigests(self._sha256.hexdigest(), self._mac.hexdigest(), self._md5.hexdigest() if self._md5 else "")

    def close(self) -> None:
        self._beside.shutdown()


def digest_part(descriptor: int, folder: str, name: str, small: bytes, *, with_md5: bool = False) -> PartDigests:
    """Read the big part once and return its digests."""
    digester = _Digester(folder, name, small, with_md5=with_md5)
    try:
        for piece in _pieces(descriptor):
            digester.update(piece)
        return digester.digests()
    finally:
        digester.close()


class TransferProof:
    """Proves a big part while it is fetched: what `CdnManager.download` calls with its bytes, in order.

    `claims` are those of the object that came, known once it is proved. Close it at the end.
    """

    def __init__(self, folder: str, name: str, small: bytes, memory: NameMemory, require_mac: bool) -> None:
        self.claims: PartClaims | None = None
        self._of = (folder, name, small)
        self._memory = memory
        self._require_mac = require_mac
        self._digester = _Digester(folder, name, small)

    def reset(self) -> None:
        """Begin again: the bytes so far were another object's."""
        self._digester.close()
        self._digester = _Digester(*self._of)

    def update(self, chunk: memoryview) -> None:
        """Take the next bytes."""
        self._digester.update(chunk)

    def prove(self, info: ObjectInfo) -> None:
        """Raise PartsDontFit unless what came belongs to the small part, as the object's metadata say."""
        claims = check_fit(self._of[2], info, self._memory, self._require_mac)
        if claims is not None and not hmac.compare_digest(self.digests().mac, claims.mac):
            raise PartsDontFit("the MAC is wrong")
        self.claims = claims

    def digests(self) -> PartDigests:
        """Return the digests of what came."""
        return self._digester.digests()

    def close(self) -> None:
        """End the thread that hashes."""
        self._digester.close()


def is_md5(etag: str) -> bool:
    """Say whether an ETag can be the MD5 of its object; that of a multipart upload has a dash in it."""
    return _MD5_ETAG.fullmatch(etag.strip('"').lower()) is not None


class CachedProofs:
    """Which files this process has already hashed. Thread-safe.

    A file is hashed again when its inode, size or times have changed; a byte that changed while no process looked is
    found since each new process starts with no proof.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._proved: OrderedDict[tuple[int, ...], str] = OrderedDict()

    def fits(self, descriptor: int, sha256: str) -> bool:
        """Say whether the file's bytes have this SHA-256 (hex)."""
        key = _identity(descriptor)
        with self._lock:
            known = self._proved.get(key)
            if known is not None:
                self._proved.move_to_end(key)
        if known is not None:
            return known == sha256
        started_ns = time.time_ns()
        found = _sha256(descriptor)
        settled = max(key[-2:]) + _SETTLED_AFTER_NS < started_ns
        if settled and _identity(descriptor) == key:
            with self._lock:
                self._proved[key] = found
                while len(self._proved) > _PROOFS_KEPT:
                    self._proved.popitem(last=False)
        return found == sha256


def _identity(descriptor: int) -> tuple[int, ...]:
    found = os.fstat(descriptor)
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def _sha256(descriptor: int) -> str:
    digest = hashlib.sha256()
    for piece in _pieces(descriptor):
        digest.update(piece)
    return digest.hexdigest()


def _pieces(descriptor: int) -> Iterator[memoryview]:
    """Yield the bytes of a file from its start, each time in the same buffer."""
    buffer = bytearray(PASS_BYTES)
    view = memoryview(buffer)
    offset = 0
    while count := os.preadv(descriptor, [buffer], offset):
        yield view[:count]
        offset += count
