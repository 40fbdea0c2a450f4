"""Whether a signature vouches for an archive, and what a device remembers of the newest one."""

from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from azaion_loader.archive_model import ArchiveImage
from azaion_loader.archive_signature import sign_images
from azaion_loader.archive_trust import check_trust, newest, signature_path
from azaion_loader.errors import ArchiveTooOld, ArchiveUntrusted

OLD, NEW = "2026-01-01T00:00:00Z", "2026-02-01T00:00:00+01:00"
KEY = Ed25519PrivateKey.generate()
PRIVATE = KEY.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
PUBLIC = KEY.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
DIGESTS = {"a/one:1": f"sha256:{1:064x}", "a/two:1": f"sha256:{2:064x}"}


def image(tag: str, digest: str) -> ArchiveImage:
    return ArchiveImage((tag,), digest, b"{}", (), (), "linux", "amd64", "", "")


TAGGED = {tag: image(tag, digest) for tag, digest in DIGESTS.items()}


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    (tmp_path / "key.pem").write_bytes(PUBLIC)
    archive = tmp_path / "images.enc"
    signature_path(archive).write_bytes(sign_images(DIGESTS, NEW, PRIVATE))
    return archive


def check(archive: Path, newest_trusted: str | None = None, allow_downgrade: bool = False) -> str:
    return check_trust(archive, archive.with_name("key.pem"), TAGGED, newest_trusted, allow_downgrade)


def test_a_signed_archive_is_trusted(archive: Path) -> None:
    assert signature_path(archive).name == "images.enc.sig"
    assert check(archive) == NEW
    assert check(archive, newest_trusted=OLD) == NEW
    assert check(archive, newest_trusted=NEW) == NEW


def test_an_older_one_needs_leave(archive: Path) -> None:
    later = "2026-03-01T00:00:00Z"
    with pytest.raises(ArchiveTooOld, match="ALLOW_DOWNGRADE"):
        check(archive, newest_trusted=later)
    assert check(archive, newest_trusted=later, allow_downgrade=True) == NEW


def test_every_image_must_be_vouched_for(archive: Path) -> None:
    other = dict(DIGESTS, **{"a/two:1": f"sha256:{3:064x}"})
    signature_path(archive).write_bytes(sign_images(other, NEW, PRIVATE))
    with pytest.raises(ArchiveUntrusted, match="a/two:1"):
        check(archive)


@pytest.mark.parametrize("name", ["images.enc.sig", "key.pem"])
@pytest.mark.parametrize("fault", ["missing", "directory", "too large", "nonsense"])
def test_what_can_not_be_read_is_not_trusted(archive: Path, name: str, fault: str) -> None:
    path = archive.with_name(name)
    path.unlink()
    if fault == "directory":
        path.mkdir()
    elif fault == "too large":
        path.write_bytes(b" " * ((1 << 20) + 1))
    elif fault == "nonsense":
        path.write_bytes(b"nonsense")
    with pytest.raises(ArchiveUntrusted):
        check(archive)


def test_the_newest_time_is_found_across_zones() -> None:
    assert newest(None, OLD) == OLD
    assert newest(OLD, NEW) == NEW
    assert newest(NEW, OLD) == NEW
    assert newest("2026-01-01T00:00:00Z", "2026-01-01T01:00:00+01:00") == "2026-01-01T01:00:00+01:00"
