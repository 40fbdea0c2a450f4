"""azaion-pack: makes an encrypted image archive from images of the local engine.

    azaion-pack IMAGE... --out images.enc --key-fragment FILE [--sign KEY] [--gzip] [--platform OS/ARCHITECTURE]
    azaion-pack verify ARCHIVE --key-fragment FILE

`docker save` is encrypted as it is written: no plaintext reaches the disk. The new archive is proved as a device would
prove it before it takes its name. Exit codes: 0 done, 1 failed (nothing was replaced), 2 wrong usage.

DOCKER_CLI names the client to run (`podman` works too); DOCKER_HOST is honoured by the client.
"""

import argparse
import contextlib
import os
import secrets
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from azaion_devkit.pack_progress import PackProgress
from azaion_loader.archive import open_archive, prove_layers
from azaion_loader.archive_model import ArchiveIndex, distinct_layers
from azaion_loader.archive_signature import sign_images
from azaion_loader.errors import LoaderError
from azaion_loader.files import sync_directory, write_atomic
from azaion_loader.required_images import short_tag
from azaion_loader.secret_key import SecretKey
from azaion_loader.security import CbcEncryptor, CbcReader, archive_key

CHUNK_BYTES = 1 << 20
MAX_FRAGMENT_BYTES = 64 * 1024
ERROR_TAIL_BYTES = 2000
MAX_ARCHIVE_BYTES = 1 << 50
EXIT_TIMEOUT_S = 60


class PackError(Exception):
    """The archive can't be made; the message is a sentence for a person."""


@dataclass(frozen=True, slots=True)
class PackRequest:
    """What to pack, and where to."""

    images: tuple[str, ...]
    out: Path
    key_fragment: Path
    sign: Path | None = None
    gzip: bool = False
    platform: str | None = None
    docker: str = "docker"


def pack(request: PackRequest) -> ArchiveIndex:
    """Make the archive, and its signature where asked for; return its index.

    Raises PackError or LoaderError; what stood under the names before is then untouched.
    """
    signing_key = read_small(request.sign, "signing key") if request.sign is not None else None
    key_fragment, made = _key_fragment(request.key_fragment)
    key = archive_key(key_fragment)
    _check_present(request.docker, request.images)
    request.out.parent.mkdir(parents=True, exist_ok=True)
    handle, aside_name = tempfile.mkstemp(prefix=f".{request.out.name}.", dir=request.out.parent)
    aside = Path(aside_name)
    try:
        with os.fdopen(handle, "r+b") as target, PackProgress() as progress:
            progress.step("saving and encrypting", None)
            chunks = _counted(_saved(request.docker, request.images), progress)
            _encrypt(_gzipped(chunks) if request.gzip else chunks, key, target)
            os.fsync(target.fileno())
            index = prove_archive(target, key, progress)
            _check_tags(index, request.images)
            check_platform(index, request.platform)
            os.fchmod(target.fileno(), 0o644)
        signature = _signature(index, request.images, signing_key) if signing_key is not None else None
        if made:
            _write_new(request.key_fragment, key_fragment)
        aside.replace(request.out)
    finally:
        aside.unlink(missing_ok=True)
    sync_directory(request.out.parent)
    _place_signature(request.out, signature)
    return index


def prove_archive(source: BinaryIO, key: SecretKey, progress: PackProgress | None = None) -> ArchiveIndex:
    """Prove every byte of the encrypted archive in the open file `source`, as a device does. Raises LoaderError."""
    reader = CbcReader(source, key)
    index = open_archive(reader, MAX_ARCHIVE_BYTES, _go_on)
    layers = [layer for image in index.images for layer in image.layers]
    if progress is not None:
        progress.step("proving", sum(layer.size for layer in distinct_layers(layers)))
    prove_layers(reader, index, layers, progress.add if progress else lambda _: None, _go_on, os.cpu_count() or 1)
    return index


def check_platform(index: ArchiveIndex, wanted: str | None) -> str:
    """Return the one platform of all images. Raises PackError where they differ from each other or from `wanted`."""
    platforms = {f"{image.os}/{image.architecture}": image for image in index.images}
    if len(platforms) > 1:
        named = "; ".join(f"{', '.join(image.tags)} is for {name}" for name, image in platforms.items())
        raise PackError(f"The images are for different platforms, and no device has two: {named}.")
    found = next(iter(platforms), "")
    if wanted is not None and found != wanted:
        raise PackError(f"The images are for {found}, not for {wanted}.")
    return found


def _counted(chunks: Iterable[bytes], progress: PackProgress) -> Iterator[bytes]:
    for chunk in chunks:
        progress.add(len(chunk))
        yield chunk


def _go_on() -> None:
    """Nothing cancels this command but Ctrl-C."""


def _check_present(docker: str, images: Sequence[str]) -> None:
    """Raise PackError naming the image that the engine can't show: `docker save` does not say which it was."""
    for name in images:
        command = [docker, "image", "inspect", "--format", "{{.Id}}", "--", name]
        try:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, timeout=EXIT_TIMEOUT_S, check=False
            )
        except OSError as err:
            raise PackError(f"The Docker client '{docker}' can't be run: {err.strerror}.") from err
        except subprocess.TimeoutExpired as err:
            raise PackError(f"The engine did not answer within {EXIT_TIMEOUT_S} s.") from err
        if done.returncode:
            words = done.stderr[-ERROR_TAIL_BYTES:].decode(errors="replace").strip()
            raise PackError(f"The engine can't show the image '{name}': {words}")


def _saved(docker: str, images: Sequence[str]) -> Iterator[bytes]:
    """Yield what `docker save` writes. Raises PackError with the client's words when it fails."""
    several = ["--multi-image-archive"] if Path(docker).name.startswith("podman") else []
    with tempfile.TemporaryFile() as errors:
        try:
            process = subprocess.Popen(
                [docker, "save", *several, "--", *images],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
            )
        except OSError as err:
            raise PackError(f"The Docker client '{docker}' can't be run: {err.strerror}.") from err
        try:
            if process.stdout is not None:
                while chunk := process.stdout.read(CHUNK_BYTES):
                    yield chunk
            code = process.wait(EXIT_TIMEOUT_S)
        finally:
            with contextlib.suppress(OSError):
                process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()
        if code:
            errors.seek(max(0, errors.seek(0, os.SEEK_END) - ERROR_TAIL_BYTES))
            words = errors.read().decode(errors="replace").strip() or f"exit code {code}"
            raise PackError(f"'{docker} save' failed: {words}")


def _gzipped(chunks: Iterable[bytes]) -> Iterator[bytes]:
    packer = zlib.compressobj(6, zlib.DEFLATED, 31)
    for chunk in chunks:
        yield packer.compress(chunk)
    yield packer.flush()


def _encrypt(chunks: Iterable[bytes], key: SecretKey, target: BinaryIO) -> None:
    encryptor = CbcEncryptor(key)
    for chunk in chunks:
        target.write(encryptor.update(chunk))
    target.write(encryptor.finalize())
    target.flush()


def _check_tags(index: ArchiveIndex, images: Sequence[str]) -> None:
    """Refuse what a device could not find by name: an image named by its ID is saved without a tag."""
    saved = {short_tag(tag) for image in index.images for tag in image.tags}
    if missing := [name for name in images if _tagged(name) not in saved]:
        raise PackError(f"Saved without a tag, name it by one instead: {', '.join(missing)}.")


def _tagged(name: str) -> str:
    return short_tag(name if ":" in name.rpartition("/")[2] else f"{name}:latest")


def _signature(index: ArchiveIndex, images: Sequence[str], signing_key: bytes) -> bytes:
    wanted = {_tagged(name) for name in images}
    digests = {
        short_tag(tag): image.config_digest for image in index.images for tag in image.tags if short_tag(tag) in wanted
    }
    return sign_images(digests, datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"), signing_key)


def _place_signature(out: Path, signature: bytes | None) -> None:
    """Write the signature beside the archive, or remove one that belongs to the archive that stood there before."""
    beside = out.with_name(f"{out.name}.sig")
    if signature is not None:
        write_atomic(beside, signature, mode=0o644)
    else:
        beside.unlink(missing_ok=True)


def _key_fragment(path: Path) -> tuple[bytes, bool]:
    """Return the fragment, and whether it is new: then 32 random bytes as hex digits."""
    if not path.exists():
        return secrets.token_hex(32).encode(), True
    fragment = read_small(path, "key fragment")
    if not fragment:
        raise PackError(f"The key fragment {path} is empty.")
    return fragment, False


def read_small(path: Path, what: str) -> bytes:
    """Return the content of a key's file. Raises PackError."""
    try:
        with path.open("rb") as source:
            data = source.read(MAX_FRAGMENT_BYTES + 1)
    except OSError as err:
        raise PackError(f"The {what} {path} can't be read: {err.strerror}.") from err
    if len(data) > MAX_FRAGMENT_BYTES:
        raise PackError(f"The {what} {path} is larger than {MAX_FRAGMENT_BYTES} bytes.")
    return data


def _write_new(path: Path, data: bytes) -> None:
    if path.exists():
        raise PackError(f"The key fragment {path} was made by somebody else meanwhile; try again.")
    write_atomic(path, data, mode=0o600)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    # An image may be called so, too: then `--out` is there.
    if words[:1] == ["verify"] and "--out" not in words:
        from azaion_devkit.pack_verify import main as verify  # noqa: PLC0415 - it builds on this module

        return verify(words[1:])
    parser = argparse.ArgumentParser(
        prog="azaion-pack",
        description="Make an encrypted image archive.",
        epilog="azaion-pack verify ARCHIVE --key-fragment FILE proves one and lists what it holds.",
    )
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="name and tag of an image in the local engine")
    parser.add_argument("--out", required=True, type=Path, help="the archive to write, such as images.enc")
    parser.add_argument(
        "--key-fragment", required=True, type=Path, metavar="FILE", help="the key fragment; made if it is missing"
    )
    parser.add_argument("--sign", type=Path, metavar="KEY", help="Ed25519 private key (PEM) to sign the archive with")
    parser.add_argument("--gzip", action="store_true", help="smaller, but devices have to read all of it in sequence")
    parser.add_argument("--platform", metavar="OS/ARCH", help="refuse images for another one, such as linux/arm64")
    given = parser.parse_args(words)
    if wrong := [name for name in given.images if name.startswith("-") or not name.isprintable()]:
        parser.error(f"not an image: {wrong[0]!r}")
    docker = os.environ.get("DOCKER_CLI") or "docker"
    request = PackRequest(
        tuple(given.images), given.out, given.key_fragment, given.sign, given.gzip, given.platform, docker
    )
    try:
        index = pack(request)
    except (PackError, LoaderError) as err:
        sys.stderr.write(f"azaion-pack: {err}\n")
        return 1
    except OSError as err:
        sys.stderr.write(f"azaion-pack: {err.filename or given.out}: {err.strerror}\n")
        return 1
    for image in index.images:
        sys.stdout.write(f"{', '.join(image.tags)}  {image.config_digest}  {image.os}/{image.architecture}\n")
    sys.stdout.write(f"{given.out}: {given.out.stat().st_size} bytes, {len(index.images)} images, proved\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
