"""`device.conf`: what is read, what is tolerated, what is refused."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from azaion_loader.device_conf import parse_device_conf, read_device_credentials
from azaion_loader.errors import NotAuthenticated

GOOD = b"AZAION_DEVICE_EMAIL=device@example.com\nAZAION_DEVICE_PASSWORD=secret-of-it\n"


def pair(data: bytes) -> tuple[str, str] | None:
    credentials = parse_device_conf(data, "device.conf")
    return (credentials.email, credentials.password) if credentials else None


@pytest.mark.parametrize(
    "data",
    [
        GOOD,
        b"# comment\n\n; another\n" + GOOD,
        GOOD.replace(b"\n", b"\r\n"),
        b"\xef\xbb\xbf" + GOOD,
        b"export AZAION_DEVICE_EMAIL = device@example.com \n\tAZAION_DEVICE_PASSWORD='secret-of-it' # set by hand",
        b'AZAION_DEVICE_EMAIL="device@example.com"\nAZAION_DEVICE_PASSWORD=old\nAZAION_DEVICE_PASSWORD=secret-of-it',
        b"OTHER=1\nnonsense\n" + GOOD,
    ],
)
def test_spellings_that_mean_the_same(data: bytes) -> None:
    assert pair(data) == ("device@example.com", "secret-of-it")


@pytest.mark.parametrize(
    ("written", "password"),
    [
        (b"a#b #c", "a#b #c"),
        (b"'a#b'", "a#b"),
        (b'"it\'s"', "it's"),
        (b"'open", "'open"),
        (b"a=b", "a=b"),
        (b"'  spaces  '", "  spaces  "),
        ("pässwört".encode(), "pässwört"),
    ],
)
def test_passwords_keep_their_characters(written: bytes, password: str) -> None:
    assert pair(b"AZAION_DEVICE_EMAIL=d@e.f\nAZAION_DEVICE_PASSWORD=" + written) == ("d@e.f", password)


@pytest.mark.parametrize("data", [b"", b"\n#\n", b"AZAION_DEVICE_EMAIL=\nAZAION_DEVICE_PASSWORD=''\n", b"X=1"])
def test_nothing_in_it(data: bytes) -> None:
    assert pair(data) is None


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (b"AZAION_DEVICE_EMAIL=d@e.f", "AZAION_DEVICE_PASSWORD"),
        (b"AZAION_DEVICE_PASSWORD=secret-of-it", "AZAION_DEVICE_EMAIL"),
        (GOOD + b"\xff", "UTF-8"),
        (GOOD + b"#" * 70_000, "longer"),
    ],
)
def test_a_file_that_can_not_be_used_says_why_without_the_secret(data: bytes, word: str) -> None:
    with pytest.raises(NotAuthenticated) as caught:
        pair(data)
    assert word in caught.value.message
    assert "secret-of-it" not in caught.value.message


@given(st.binary(max_size=300))
def test_any_bytes_give_credentials_nothing_or_a_refusal(data: bytes) -> None:
    try:
        found = pair(data)
    except NotAuthenticated:
        return
    assert found is None or all(found)


@pytest.mark.parametrize(
    ("mode", "accepted"),
    [(0o600, True), (0o400, True), (0o640, True), (0o440, True), (0o644, False), (0o604, False), (0o660, False),
     (0o601, False), (0o602, False)],
)  # fmt: skip
def test_mode_of_the_file(tmp_path: Path, mode: int, accepted: bool) -> None:
    path = tmp_path / "device.conf"
    path.write_bytes(GOOD)
    path.chmod(mode)
    if accepted:
        credentials = read_device_credentials(path)
        assert credentials is not None
        assert credentials.email == "device@example.com"
        return
    with pytest.raises(NotAuthenticated, match=f"{mode:04o}"):
        read_device_credentials(path)


def test_a_link_counts_by_its_target(tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(GOOD)
    (tmp_path / "target").chmod(0o644)
    (tmp_path / "link").symlink_to(tmp_path / "target")
    with pytest.raises(NotAuthenticated, match="0644"):
        read_device_credentials(tmp_path / "link")


def test_no_file(tmp_path: Path) -> None:
    assert read_device_credentials(tmp_path / "absent") is None
    (tmp_path / "file").touch()
    assert read_device_credentials(tmp_path / "file" / "below") is None


def test_neither_a_fifo_nor_a_directory_stops_the_service(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo", 0o600)
    for path in (tmp_path / "fifo", tmp_path):
        with pytest.raises(NotAuthenticated, match="regular file"):
            read_device_credentials(path)


def test_a_loop_of_links_is_named(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(NotAuthenticated, match="can't be read"):
        read_device_credentials(tmp_path / "loop")
