"""Whether an archive's signature file vouches for its images; the format stands in docs/formats.md."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from azaion_loader.archive_model import ArchiveImage
from azaion_loader.archive_signature import moment_of, parse_signature, verify_signature
from azaion_loader.errors import ArchiveTooOld, ArchiveUntrusted
from azaion_loader.required_images import short_tag

_MAX_SIGNATURE_BYTES = 1 << 20
_MAX_KEY_BYTES = 1 << 16


def signature_path(archive: Path) -> Path:
    """Return where the signature of an archive stands: beside it."""
    return archive.with_name(archive.name + ".sig")


def check_trust(
    archive: Path,
    public_key_file: Path,
    tagged: Mapping[str, ArchiveImage],
    newest_trusted: str | None,
    allow_downgrade: bool,
) -> str:
    """Return the creation time (RFC 3339) of a trusted archive.

    The signature must be there, be made with the key, and name every image of `tagged` with its config digest.
    `newest_trusted` is the creation time of the newest trusted archive that this device has loaded. Raises
    ArchiveUntrusted or ArchiveTooOld.
    """
    signature = parse_signature(_read(signature_path(archive), _MAX_SIGNATURE_BYTES, "signature"))
    verify_signature(signature, _read(public_key_file, _MAX_KEY_BYTES, "public key"))
    signed = {short_tag(tag): digest for tag, digest in signature.images.items()}
    wrong = [tag for tag, image in tagged.items() if signed.get(tag) != image.config_digest]
    if wrong:
        raise ArchiveUntrusted(f"The archive's signature does not vouch for: {_listed(wrong)}.")
    if not allow_downgrade and newest(newest_trusted, signature.created) != signature.created:
        raise ArchiveTooOld(
            f"The archive was made at {signature.created}; this device has loaded one of {newest_trusted}. "
            "ALLOW_DOWNGRADE=1 lets it go back."
        )
    return signature.created


def newest(first: str | None, second: str) -> str:
    """Return the later of two creation times, `second` if they are the same moment."""
    if first is None or moment_of(first) <= moment_of(second):
        return second
    return first


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))


def _read(path: Path, max_bytes: int, what: str) -> bytes:
    try:
        with path.open("rb") as stream:
            data = stream.read(max_bytes + 1)
    except OSError as err:
        raise ArchiveUntrusted(f"The archive's {what} {path} can't be read: {err.strerror}.") from err
    if len(data) > max_bytes:
        raise ArchiveUntrusted(f"The archive's {what} {path} is larger than {max_bytes} bytes.")
    return data
