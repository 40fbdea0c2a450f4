"""A strict walk over the members of a tar: every byte outside member data is checked.

CBC has no tag: one flipped bit of the ciphertext garbles one block of 16 bytes and flips one bit of the next. The
header checksum alone misses about one such garbled header in 700, so each field has to be in the form that tar writers
give it (POSIX.1-2001 ustar and pax, GNU tar's `info tar`, node "Basic Tar Format"), unused bytes have to be zero,
and nothing may follow the end mark.
"""

import cython

from azaion_loader.archive_model import Member
from azaion_loader.errors import ArchiveInvalid
from azaion_loader.tar_pax import MAX_EXTENSION_BYTES, member_name, parse_long_name, parse_pax_records, link_target

__all__ = ["MAX_MEMBERS", "Header", "PlainSource", "parse_header", "walk_tar"]

MAX_MEMBERS = 65_536

cdef enum:
    BLOCK = 512

cdef bytes ZERO_BLOCK = bytes(BLOCK)
cdef bytes ZEROS = bytes(1 << 16)


@cython.final
cdef class Header:
    """The fields of one header that matter here; `size` is in bytes, `typeflag` one character ('\\0' reads as '0')."""


@cython.final
cdef class _Extension:
    """What pax and GNU headers say about the member that follows them."""

    def __cinit__(self):
        self.records = {}


class PlainSource:
    """Reads a plain tar front to back over a seekable reader; data that is skipped is never read."""

    def __init__(self, reader, cancelled):
        self._reader = reader
        self._cancelled = cancelled
        self._size = reader.size
        self.position = 0

    def take(self, length: int) -> bytes:
        """Return exactly `length` bytes; raises ArchiveInvalid when the archive ends before that."""
        data = self._reader.read_at(self.position, length) if length else b""
        if len(data) != length:
            raise ArchiveInvalid(f"The archive is cut off: it ends at byte {self._size}, in the middle of a member.")
        self.position += length
        return data

    def skip(self, length: int) -> None:
        """Step over `length` bytes; raises ArchiveInvalid when the archive ends before that."""
        if length > self._size - self.position:
            raise ArchiveInvalid(f"The archive is cut off: it ends at byte {self._size}, in the middle of a member.")
        self.position += length

    def finish(self) -> int:
        """Prove that only zeros follow; return the length of the tar in bytes."""
        while self.position < self._size:
            self._cancelled()
            data = self._reader.read_at(self.position, len(ZEROS))
            if not data or data != ZEROS[:len(data)]:
                raise ArchiveInvalid("The archive is damaged: something follows the end mark of the tar.")
            self.position += len(data)
        if self._size % BLOCK:
            raise ArchiveInvalid("The archive is damaged: the tar's length is not a multiple of 512 bytes.")
        return self._size


cdef object _bad(object offset, str why):
    return ArchiveInvalid(f"The archive is damaged: {why} in the tar header at byte {offset}.")


cdef bint _is_zero(const unsigned char[:] block, Py_ssize_t start, Py_ssize_t stop):
    cdef Py_ssize_t i
    for i in range(start, stop):
        if block[i] != 0:
            return False
    return True


cdef object _octal(const unsigned char[:] block, Py_ssize_t start, Py_ssize_t width, object offset, bint may_be_empty):
    """Read a numeric field: octal digits, leading zeros written out, then one or two of NUL and space."""
    cdef Py_ssize_t i = start
    cdef Py_ssize_t stop = start + width
    cdef unsigned long long value = 0
    if may_be_empty and _is_zero(block, start, stop):
        return 0
    while i < stop and 48 <= block[i] <= 55:
        value = value * 8 + (block[i] - 48)
        i += 1
    if i == stop or stop - i > 2:
        raise _bad(offset, "a number is not in octal form")
    while i < stop:
        if block[i] != 0 and block[i] != 32:
            raise _bad(offset, "a number is not in octal form")
        i += 1
    return value


cdef object _size(const unsigned char[:] block, object offset):
    """Read the size field: octal below 8 GiB, GNU's base-256 only where octal has no room."""
    cdef Py_ssize_t i
    cdef unsigned long long value = 0
    if block[124] != 0x80:
        return _octal(block, 124, 12, offset, False)
    if not _is_zero(block, 125, 128) or block[128] >= 0x80:
        raise _bad(offset, "the size is out of bounds")
    for i in range(128, 136):
        value = value * 256 + block[i]
    if value < (<unsigned long long>1 << 33):
        raise _bad(offset, "the size is not in octal form")
    return value


cdef str _text(bytes raw, Py_ssize_t start, Py_ssize_t width, object offset):
    """Read a text field: printable ASCII, then only zeros."""
    cdef bytes field = raw[start:start + width]
    cdef bytes text = field.rstrip(b"\0")
    cdef unsigned char c
    for c in text:
        if c < 32 or c > 126:
            raise _bad(offset, "a text field holds an unprintable byte")
    return text.decode("ascii")


def parse_header(block: bytes, offset: int) -> Header:
    """Return the header in these 512 bytes; `offset` names its place in messages.

    Raises ArchiveInvalid unless the checksum fits and every field is in canonical form.
    """
    cdef const unsigned char[:] view = block
    cdef Header header = Header.__new__(Header)
    cdef Py_ssize_t i
    cdef unsigned long total = 8 * 32
    cdef bint gnu
    if len(block) != BLOCK:
        raise _bad(offset, "bytes are missing")
    for i in range(BLOCK):
        if i < 148 or i >= 156:
            total += view[i]
    if _octal(view, 148, 8, offset, False) != total:
        raise _bad(offset, "the checksum does not fit")
    gnu = block[257:265] == b"ustar  \0"
    if not gnu and block[257:265] != b"ustar\x0000":
        raise _bad(offset, "the format mark is missing")
    if _octal(view, 100, 8, offset, False) > 0o177777:
        raise _bad(offset, "the mode is out of bounds")
    _octal(view, 108, 8, offset, False)
    _octal(view, 116, 8, offset, False)
    header.size = _size(view, offset)
    _octal(view, 136, 12, offset, False)
    header.typeflag = "0" if view[156] == 0 else chr(view[156])
    header.linkname = _text(block, 157, 100, offset)
    _text(block, 265, 32, offset)
    _text(block, 297, 32, offset)
    if _octal(view, 329, 8, offset, True) or _octal(view, 337, 8, offset, True):
        raise _bad(offset, "a device number is set")
    header.name = _text(block, 0, 100, offset)
    if gnu:
        # GNU's access and change time may be set; the fields of sparse and multi-volume members may not.
        _octal(view, 345, 12, offset, True)
        _octal(view, 357, 12, offset, True)
        if not _is_zero(view, 369, 512):
            raise _bad(offset, "unused bytes are not zero")
    else:
        prefix = _text(block, 345, 155, offset)
        if not _is_zero(view, 500, 512):
            raise _bad(offset, "unused bytes are not zero")
        if prefix:
            header.name = f"{prefix}/{header.name}"
    return header


cdef _take_padding(source, size):
    padding = -size % BLOCK
    if padding and source.take(padding) != ZERO_BLOCK[:padding]:
        raise ArchiveInvalid(f"The archive is damaged: the filler before byte {source.position} is not zero.")


cdef _read_extension(Header header, source, _Extension extension, offset):
    """Read one pax or GNU header's data into `extension`."""
    if header.size == 0 or header.size > MAX_EXTENSION_BYTES or header.linkname:
        raise _bad(offset, "the extension is out of bounds")
    data = source.take(header.size)
    _take_padding(source, header.size)
    if header.typeflag == "L" and extension.long_name is None:
        extension.long_name = parse_long_name(data, offset)
    elif header.typeflag == "K" and extension.long_link is None:
        extension.long_link = parse_long_name(data, offset)
    elif header.typeflag == "x" and not extension.records:
        extension.records = parse_pax_records(data, offset)
    elif header.typeflag == "g":
        if not {"path", "linkpath", "size"}.isdisjoint(parse_pax_records(data, offset)):
            raise _bad(offset, "a global record names one member")
    else:
        raise _bad(offset, "an extension is repeated")


cdef object _member(Header header, _Extension extension, offset, data_offset):
    """Return the Member that a header and its extensions describe."""
    kind = {"0": "file", "1": "link", "2": "link", "5": "directory"}.get(header.typeflag)
    if kind is None:
        raise _bad(offset, "the type of the member is not one of an image archive")
    records = extension.records
    name = records.get("path", header.name if extension.long_name is None else extension.long_name)
    link = records.get("linkpath", header.linkname if extension.long_link is None else extension.long_link)
    size = header.size
    if "size" in records:
        size = int(records["size"])
        # Writers leave the field at 0 where the size has no room in octal.
        if header.size != size and not (header.size == 0 and size >= 1 << 33):
            raise _bad(offset, "two sizes contradict each other")
    if (kind == "link") != bool(link) or (kind != "file" and size):
        raise _bad(offset, "type, link and size contradict each other")
    if kind != "directory" and name.endswith("/"):
        raise _bad(offset, "type and name contradict each other")
    name = member_name(name[:-1] if name.endswith("/") else name)
    target = link_target(name, link, header.typeflag == "2") if link else None
    return Member(name, kind, data_offset, size, target)


def walk_tar(source: object, visit: object, cancelled: object) -> dict:
    """Walk the whole tar and return its members by name, in the order of the archive.

    `visit(member, source)` is called for each file and takes or skips exactly its bytes. Symbolic links may point to
    a file anywhere in the archive (`docker save` sorts its members), hard links to an earlier one. Raises
    ArchiveInvalid for anything that tar writers don't write, and for names that leave the archive or stand in it twice.
    """
    cdef Header header
    cdef _Extension extension = _Extension()
    cdef bint pending = False
    members = {}
    headers = 0
    while True:
        cancelled()
        offset = source.position
        block = source.take(BLOCK)
        if block == ZERO_BLOCK:
            break
        headers += 1
        if headers > MAX_MEMBERS:
            raise ArchiveInvalid(f"The archive has more than {MAX_MEMBERS} members.")
        header = parse_header(block, offset)
        if header.typeflag in ("x", "g", "L", "K"):
            _read_extension(header, source, extension, offset)
            pending = pending or header.typeflag != "g"
            continue
        member = _member(header, extension, offset, source.position)
        extension, pending = _Extension(), False
        if member.name in members:
            raise ArchiveInvalid(f"The archive holds '{member.name}' twice.")
        if header.typeflag == "1" and member.target not in members:
            raise ArchiveInvalid(f"The archive's member '{member.name}' is a link to a member that is not there.")
        members[member.name] = member
        if member.kind == "file":
            visit(member, source)
            if source.position != member.offset + member.size:
                raise ArchiveInvalid(f"The archive's member '{member.name}' was not read to its end.")
            _take_padding(source, member.size)
    if pending:
        raise _bad(source.position, "an extension has no member")
    if source.take(BLOCK) != ZERO_BLOCK:
        raise ArchiveInvalid("The archive is damaged: the end mark of the tar is incomplete.")
    for member in members.values():
        if member.target is not None and (member.target not in members or members[member.target].kind != "file"):
            raise ArchiveInvalid(f"The archive's member '{member.name}' is a link to a file that is not there.")
    return members
