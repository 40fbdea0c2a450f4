"""Headers and extension records: canonical form or nothing."""

import io
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from azaion_devkit.readers import BytesReader
from azaion_loader.archive_model import Member, TarSource
from azaion_loader.errors import ArchiveInvalid
from azaion_loader.tar_index import PlainSource, parse_header, walk_tar
from azaion_loader.tar_pax import link_target, member_name, parse_long_name, parse_pax_records
from azaion_loader.tar_writer import END_OF_TAR, padding, tar_header

PAX = tarfile.PAX_FORMAT
GNU = tarfile.GNU_FORMAT


def go_on() -> None:
    """Never cancels."""


def skip(member: Member, source: TarSource) -> None:
    source.skip(member.size)


def walk(data: bytes) -> dict[str, Member]:
    source = PlainSource(BytesReader(data), go_on)
    members = walk_tar(source, skip, go_on)
    assert source.finish() == len(data)
    return members


def block(**fields: object) -> bytearray:
    info = tarfile.TarInfo("name")
    for field, value in fields.items():
        setattr(info, field, value)
    return bytearray(info.tobuf(tarfile.USTAR_FORMAT))


def fixed(header: bytearray) -> bytes:
    """Return the header with the checksum that fits it."""
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


def patched(offset: int, value: bytes, **fields: object) -> bytes:
    header = block(**fields)
    header[offset : offset + len(value)] = value
    return fixed(header)


@pytest.mark.parametrize(
    ("offset", "value"),
    [
        (0, b"na\nme"),
        (0, b"na\0me"),
        (0, "näme".encode()),
        (100, b"0000648\0"),
        (100, b"00006444"),
        (100, b"644     "),
        (100, b"7777777\0"),
        (108, b"\0" * 8),
        (116, b"\x80\0\0\0\0\0\0\1"),
        (124, b"\x80" + b"\0" * 10 + b"\5"),
        (124, b"\x80" + b"\1" * 11),
        (124, b"\x81" + b"\0" * 11),
        (124, b"\xff" * 12),
        (124, b"-0000000001\0"),
        (136, b"1\0" + b"\0" * 10),
        (257, b"ustar\0" + b"01"),
        (257, b"ustar \0 "),
        (257, b"\0" * 8),
        (265, b"ro\0t"),
        (297, b"\x7f"),
        (329, b"0000001\0"),
        (337, b"0000001\0"),
        (345, b"a\0b"),
        (500, b"\1"),
        (511, b"\1"),
    ],
)
def test_a_field_that_is_not_canonical_is_refused_although_the_checksum_fits(offset: int, value: bytes) -> None:
    with pytest.raises(ArchiveInvalid, match="at byte 77"):
        parse_header(patched(offset, value), 77)


def test_numbers_may_end_as_other_writers_end_them() -> None:
    for value in (b"0000644\0", b"0000644 ", b"000644 \0"):
        assert parse_header(patched(100, value), 0).name == "name"
    assert parse_header(patched(124, b"00000000017 "), 0).size == 15
    assert parse_header(patched(329, b"\0" * 16), 0).size == 0


def test_the_checksum_is_proved() -> None:
    header = block()
    header[0] ^= 1
    with pytest.raises(ArchiveInvalid, match="checksum"):
        parse_header(bytes(header), 0)
    with pytest.raises(ArchiveInvalid, match="missing"):
        parse_header(bytes(header[:100]), 0)


@pytest.mark.parametrize("size", [0, 1, (1 << 33) - 1, 1 << 33, (1 << 33) + 1, 1 << 40])
def test_our_own_headers_are_canonical_and_others_read_them(size: int) -> None:
    header = tar_header("a" * 64 + "/layer.tar", size)
    parsed = parse_header(header, 0)
    assert (parsed.name, parsed.size, parsed.typeflag, parsed.linkname) == ("a" * 64 + "/layer.tar", size, "0", "")
    other = tarfile.TarInfo.frombuf(header, "utf-8", "strict")
    assert (other.name, other.size, other.isreg()) == (parsed.name, size, True)
    assert len(padding(size)) == -size % 512


@pytest.mark.parametrize("name", ["", "a" * 101])
def test_our_own_headers_refuse_names_without_room(name: str) -> None:
    with pytest.raises(ValueError, match="ustar"):
        tar_header(name, 1)


@pytest.mark.parametrize("form", [GNU, PAX])
@pytest.mark.parametrize("length", [100, 101, 255, 300])
def test_long_names_and_links(form: int, length: int) -> None:
    target = io.BytesIO()
    name = "d" * 80 + "/" + "x" * (length - 81)
    with tarfile.open(fileobj=target, mode="w", format=form) as tar:
        info = tarfile.TarInfo(name)
        info.size = 3
        tar.addfile(info, io.BytesIO(b"abc"))
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.LNKTYPE, name
        tar.addfile(link)
    members = walk(target.getvalue())
    assert members[name].size == 3
    assert members["link"].target == name


@pytest.mark.parametrize("kind", [b"3", b"4", b"6", b"7", b"S", b"M", b"V", b"D", b"X", b"q"])
def test_other_kinds_of_members_are_refused(kind: bytes) -> None:
    with pytest.raises(ArchiveInvalid, match="type"):
        walk(patched(156, kind) + END_OF_TAR)


@pytest.mark.parametrize(
    "header",
    [
        patched(157, b"link"),
        patched(156, b"2"),
        patched(156, b"5", size=512),
        patched(156, b"2", size=512, linkname="a"),
        block(name="name/"),
        patched(156, b"x"),
        patched(156, b"x", size=70_000),
        patched(156, b"L", size=512, linkname="a"),
    ],
)
def test_contradictions_in_a_header_are_refused(header: bytes) -> None:
    with pytest.raises(ArchiveInvalid):
        walk(bytes(header) + b"x" * 512 + END_OF_TAR)


def extension(kind: str, data: bytes) -> bytes:
    return patched(156, kind.encode(), size=len(data)) + data + padding(len(data))


@pytest.mark.parametrize(
    "data",
    [
        extension("x", b"9 size=5\n") + bytes(block(size=3)),
        extension("x", b"12 path=ab\n"),
        extension("x", b"9 path=x\n") + extension("x", b"9 path=y\n") + bytes(block()),
        extension("L", b"long\0") + extension("L", b"long\0") + bytes(block()),
        extension("K", b"long"),
        extension("L", b"x\0"),
        extension("g", b"9 path=x\n") + bytes(block()),
        extension("g", b"9 size=5\n") + bytes(block()),
    ],
)
def test_extensions_must_fit_their_member(data: bytes) -> None:
    with pytest.raises(ArchiveInvalid):
        walk(data + END_OF_TAR)


def test_global_comments_and_sizes_are_read() -> None:
    data = (
        extension("g", b"13 comment=x\n") + extension("x", b"10 size=3\n") + bytes(block(size=3)) + b"abc" + bytes(509)
    )
    assert walk(data + END_OF_TAR)["name"].size == 3


@pytest.mark.parametrize(
    "data",
    [
        b"x",
        b"0 path=x\n",
        b"08 path=x\n",
        b"8 path=x\n",
        b"11 path=x\n",
        b"9 path=x\n9 path=x\n",
        b"7 path\n",
        b"5 =x\n",
        b"11 path=\xff\xfe\n",
        b"11 path=a\nb\n",
        b"21 GNU.sparse.size=1\n",
        b"9 what=x\n",
        b"9 size=x\n",
        b"11 size=007\n",
        b"10 mtime=\n",
        b"13 mtime=1e99\n",
        b"9 path=x",
        b"3 \n",
    ],
)
def test_bad_records_are_refused(data: bytes) -> None:
    with pytest.raises(ArchiveInvalid):
        parse_pax_records(data, 0)


def test_good_records_are_read() -> None:
    data = b"20 mtime=1700000.25\n" + "12 path=ü\n".encode().replace(b"12", b"11") + b"25 SCHILY.xattr.user.a=b\n"
    assert parse_pax_records(data, 0) == {"mtime": "1700000.25", "path": "ü", "SCHILY.xattr.user.a": "b"}


def test_long_names_end_with_one_nul() -> None:
    assert parse_long_name(b"abc\0", 0) == "abc"
    for data in (b"", b"\0", b"abc", b"a\0c\0", b"\xff\0"):
        with pytest.raises(ArchiveInvalid):
            parse_long_name(data, 0)


@pytest.mark.parametrize("name", ["", ".", "..", "a/..", "/a", "a//b", "a/./b", "x" * 5000])
def test_names_stay_inside(name: str) -> None:
    with pytest.raises(ArchiveInvalid):
        member_name(name)


@given(st.text("a./", max_size=12), st.text("a./", min_size=1, max_size=12))
def test_links_stay_inside(name: str, target: str) -> None:
    try:
        found = link_target(name, target, symbolic=True)
    except ArchiveInvalid:
        return
    assert ".." not in found.split("/")
    assert not found.startswith("/")


def test_links_are_relative_to_their_directory() -> None:
    assert link_target("a/layer.tar", "../b/layer.tar", symbolic=True) == "b/layer.tar"
    assert link_target("a/layer.tar", "../b.tar", symbolic=True) == "b.tar"
    assert link_target("a/layer.tar", "b/layer.tar", symbolic=False) == "b/layer.tar"


def test_the_end_mark_is_two_blocks_and_then_zeros() -> None:
    member = bytes(block())
    walk(member + END_OF_TAR)
    walk(member + END_OF_TAR + bytes(200_000 // 512 * 512))
    for data in (member, member + END_OF_TAR[:512], member + END_OF_TAR[:512] + member, END_OF_TAR[:1000]):
        with pytest.raises(ArchiveInvalid):
            walk(data)
    for tail in (b"\0", b"\1" * 512, bytes(100_000) + b"\1" + bytes(511 - 160)):
        with pytest.raises(ArchiveInvalid):
            walk(member + END_OF_TAR + tail)


def test_duplicates_and_unread_members_and_endless_tars_are_refused() -> None:
    with pytest.raises(ArchiveInvalid, match="twice"):
        walk(bytes(block()) * 2 + END_OF_TAR)
    with pytest.raises(ArchiveInvalid, match="not read"):
        walk_tar(PlainSource(BytesReader(bytes(block(size=1)) + END_OF_TAR), go_on), lambda *_: None, go_on)
    many = b"".join(tar_header(f"n{number}", 0) for number in range(65_537))
    with pytest.raises(ArchiveInvalid, match="65536"):
        walk(many + END_OF_TAR)
