"""Canonical ustar headers for the tars that the loader composes.

Format: POSIX.1-2001 "ustar Interchange Format"; a size of 8 GiB or more in GNU's base-256, which every engine reads.
"""

BLOCK_BYTES = 512
END_OF_TAR = bytes(2 * BLOCK_BYTES)

_OCTAL_LIMIT = 1 << 33


def tar_header(name: str, size: int) -> bytes:
    """Return the header of a regular file of `size` bytes; `name` is ASCII, at most 100 characters.

    Owner, times and mode are fixed, so that the same images give the same bytes.
    """
    encoded = name.encode("ascii")
    if not 0 < len(encoded) <= 100:
        raise ValueError(f"a name of {len(encoded)} bytes does not fit into a ustar header")
    length = b"%011o\0" % size if size < _OCTAL_LIMIT else b"\x80" + size.to_bytes(11, "big")
    header = bytearray(BLOCK_BYTES)
    header[0 : len(encoded)] = encoded
    header[100:124] = b"0000644\x000000000\x000000000\x00"
    header[124:136] = length
    header[136:148] = b"00000000000\0"
    header[148:156] = b" " * 8
    header[156:157] = b"0"
    header[257:265] = b"ustar\x0000"
    header[329:345] = b"0000000\x000000000\x00"
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


def padding(size: int) -> bytes:
    """Return the zeros that follow `size` bytes of data."""
    return bytes(-size % BLOCK_BYTES)
