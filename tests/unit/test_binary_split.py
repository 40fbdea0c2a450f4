"""The encrypted archive on the disk: which key opens it, and the operator's functions."""

import os
import random
from pathlib import Path

import pytest

from azaion_devkit import reference_crypto
from azaion_devkit.device import encrypted
from azaion_devkit.image_sets import gzipped, make_images, older_layout
from azaion_devkit.resource_api import DevResourceApi
from azaion_loader.binary_split import (
    API_SERVICES,
    EncryptedArchive,
    check_images_loaded,
    decrypt_archive,
    docker_load,
    download_key_fragment,
    open_images,
)
from azaion_loader.errors import (
    ArchiveInvalid,
    ArchiveNotFound,
    DiskFull,
    DockerUnavailable,
    NotAuthenticated,
    WrongKey,
)
from azaion_loader.required_images import required_tags

FRAGMENT = b"key-fragment-0001"
TAR = b"".join(older_layout(make_images(["a/x:1"], shared_bytes=3000, unique_bytes=500)))


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / "images.enc"
    path.write_bytes(b"".join(encrypted([TAR], FRAGMENT)))
    return path


def test_the_archive_opens_with_its_key_and_is_read_anywhere(archive: Path) -> None:
    with EncryptedArchive(archive, FRAGMENT) as opened:
        assert opened.reader.size == len(TAR)
        assert opened.reader.read_at(1000, 77) == TAR[1000:1077]
        assert [image.tags for image in opened.index(1 << 30, lambda: None).images] == [("a/x:1",)]
        assert not opened.changed()
        os.utime(archive, ns=(1, 1))
        assert opened.changed()


def test_a_packed_archive_opens_too(archive: Path) -> None:
    archive.write_bytes(b"".join(encrypted(gzipped([TAR]), FRAGMENT)))
    with EncryptedArchive(archive, FRAGMENT) as opened:
        assert opened.index(1 << 30, lambda: None).gzipped


def test_another_key_is_a_wrong_key(archive: Path) -> None:
    """Many keys: about one in 256 shows valid padding, and is still told from the right one."""
    for number in range(600):
        with pytest.raises(WrongKey):
            EncryptedArchive(archive, f"another fragment {number}".encode())


@pytest.mark.parametrize("size", [0, 15, 16, 31, 32, 256])
def test_what_is_too_short_is_no_archive(archive: Path, size: int) -> None:
    archive.write_bytes(archive.read_bytes()[:size])
    with pytest.raises(ArchiveInvalid):
        EncryptedArchive(archive, FRAGMENT)


def test_a_damaged_end_is_told_from_a_wrong_key(archive: Path) -> None:
    data = archive.read_bytes()
    for damaged in (data[:-16], data[:-1], data[: len(data) // 2 // 16 * 16], data + bytes(16)):
        archive.write_bytes(damaged)
        with pytest.raises(ArchiveInvalid):
            EncryptedArchive(archive, FRAGMENT)


def test_other_content_under_the_right_key_is_no_archive(archive: Path) -> None:
    archive.write_bytes(
        reference_crypto.encrypt(random.Random(3).randbytes(4096), reference_crypto.archive_key(FRAGMENT))
    )
    with pytest.raises(ArchiveInvalid, match="opens with the key"):
        EncryptedArchive(archive, FRAGMENT)


def test_what_is_not_there_or_no_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(ArchiveNotFound, match="Encrypted archive not found"):
        open_images(tmp_path / "none")
    with pytest.raises(ArchiveInvalid):
        open_images(tmp_path)
    with pytest.raises(ArchiveInvalid, match="not a file"):
        open_images("/dev/null")


def test_decrypt_archive_writes_the_tar_for_its_owner_alone(archive: Path, tmp_path: Path) -> None:
    output = tmp_path / "images.tar"
    decrypt_archive(archive, FRAGMENT, output)
    assert output.read_bytes() == TAR
    assert output.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("damage", ["wrong key", "cut", "missing"])
def test_decrypt_archive_leaves_nothing_after_a_failure(archive: Path, tmp_path: Path, damage: str) -> None:
    output = tmp_path / "images.tar"
    fragment = FRAGMENT
    if damage == "wrong key":
        fragment = b"another"
    elif damage == "cut":
        archive.write_bytes(archive.read_bytes()[:-16])
    else:
        archive.unlink()
    with pytest.raises(ArchiveNotFound if damage == "missing" else WrongKey):
        decrypt_archive(archive, fragment, output)
    assert {path.name for path in tmp_path.iterdir()} <= {"images.enc"}


def test_decrypt_archive_asks_for_room_first(archive: Path, tmp_path: Path) -> None:
    with archive.open("ab") as stream:
        stream.truncate(1 << 43)
    with pytest.raises(DiskFull, match="bytes needed"):
        decrypt_archive(archive, FRAGMENT, tmp_path / "images.tar")


def test_the_key_fragment_comes_with_a_token(tmp_path: Path) -> None:
    with DevResourceApi(tmp_path, key_fragment=FRAGMENT) as api:
        user = api.add_user("a@example.com", "password1")
        assert download_key_fragment(api.url, api.tokens.issue(user)) == FRAGMENT
        with pytest.raises(NotAuthenticated):
            download_key_fragment(api.url, "no token")


def test_without_a_client_nothing_is_loaded(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_CLI", "/nowhere/docker")
    assert not check_images_loaded("latest")
    with pytest.raises(DockerUnavailable):
        docker_load(archive)


@pytest.mark.engine
def test_an_operator_can_load_the_decrypted_tar(tmp_path: Path, docker_host: str) -> None:
    from azaion_devkit.device import docker  # noqa: PLC0415 - only where there is an engine

    version = f"operator-{os.getpid()}"
    images = make_images(required_tags(version), shared_bytes=100, unique_bytes=100, seed=version)
    tar = tmp_path / "images.tar"
    tar.write_bytes(b"".join(older_layout(images)))
    assert len(API_SERVICES) == len(images)
    assert not check_images_loaded(version)
    try:
        docker_load(tar)
        assert check_images_loaded(version)
    finally:
        docker(["image", "rm", *required_tags(version)], check=False)
