"""A device for tests and benchmarks: a folder with an archive, a development Resource API, and the real loader."""

import secrets
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from azaion_devkit import reference_crypto
from azaion_devkit.image_sets import SyntheticImage, make_images, older_layout
from azaion_devkit.loader_process import LoaderProcess
from azaion_devkit.resource_api import DevResourceApi
from azaion_loader.required_images import required_tags

EMAIL = "companion@example.com"
PASSWORD = "a-long-password"  # noqa: S105 - of a user that exists in tests only
KEY_FRAGMENT = b"key-fragment-0001"
COMMAND_TIMEOUT_S = 120.0


def encrypted(chunks: Iterable[bytes], key_fragment: bytes = KEY_FRAGMENT) -> Iterator[bytes]:
    """Yield an archive's bytes as a second implementation makes them: IV and ciphertext of the tar."""
    iv = secrets.token_bytes(16)
    encryptor = Cipher(algorithms.AES(reference_crypto.archive_key(key_fragment)), modes.CBC(iv)).encryptor()
    yield iv
    length = 0
    for chunk in chunks:
        length += len(chunk)
        yield encryptor.update(chunk)
    padding = 16 - length % 16
    yield encryptor.update(bytes([padding]) * padding) + encryptor.finalize()


class Device:
    """Everything that one device needs; a context manager that removes its images at the end.

    `version` is a tag of its own, so that devices on one engine do not meet. `environment` is added to the loader's.
    """

    def __init__(self, folder: Path, environment: Mapping[str, str] | None = None, version: str | None = None) -> None:
        self.folder = folder
        self.version = version or f"test-{secrets.token_hex(4)}"
        self.tags = required_tags(self.version)
        self.archive = folder / "images.enc"
        self.data_dir = folder / "data"
        self.api = DevResourceApi(folder / "api", key_fragment=KEY_FRAGMENT)
        self._environment = dict(environment or {})
        self._loaders: list[LoaderProcess] = []

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.api.start()
        self.api.add_user(EMAIL, PASSWORD, "CompanionPC")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for loader in self._loaders:
            loader.kill() if error is not None else loader.stop()
        self.api.stop()
        self.remove_images()

    def images(self, *, shared_bytes: int = 40_000, unique_bytes: int = 20_000, **others: Any) -> list[SyntheticImage]:
        """Return the seven required images in this device's version; small unless told otherwise."""
        others.setdefault("seed", self.version)
        return make_images(self.tags, shared_bytes=shared_bytes, unique_bytes=unique_bytes, **others)

    def place(self, images: Sequence[SyntheticImage], layout: Any = older_layout) -> list[SyntheticImage]:
        """Write the archive of these images, and return them."""
        self.place_tar(layout(images))
        return list(images)

    def place_tar(self, chunks: Iterable[bytes], key_fragment: bytes = KEY_FRAGMENT) -> None:
        """Write an archive of whatever bytes."""
        with self.archive.open("wb") as stream:
            for chunk in encrypted(chunks, key_fragment):
                stream.write(chunk)

    def loader(self, environment: Mapping[str, str] | None = None) -> LoaderProcess:
        """Start a loader on this device; another one after it uses the same data directory."""
        settings = {
            "RESOURCE_API_URL": self.api.url,
            "IMAGES_PATH": str(self.archive),
            "API_VERSION": self.version,
            "DEVICE_CONF": str(self.folder / "no-device.conf"),
        }
        loader = LoaderProcess(self.data_dir, settings | self._environment | dict(environment or {}))
        self._loaders.append(loader)
        return loader.start()

    def unlock(self, loader: LoaderProcess, *, refresh: bool = False) -> dict[str, Any]:
        """Post `/unlock`, wait for the end of the run and return the last status."""
        loader.unlock(EMAIL, PASSWORD, refresh=refresh).raise_for_status()
        return loader.wait_for_unlock()[0]

    def remove_images(self) -> None:
        """Take this device's images out of the engine."""
        docker(["image", "rm", *self.tags], check=False)


def docker(arguments: Sequence[str], *, check: bool = True) -> str:
    """Run the engine's client and return what it printed."""
    return subprocess.run(
        ["docker", *arguments], capture_output=True, check=check, text=True, timeout=COMMAND_TIMEOUT_S
    ).stdout


def image_list() -> str:
    """Return all images with their tags and IDs, sorted, as text to compare; creation times are left out."""
    listed = docker(["image", "ls", "--all", "--no-trunc", "--format", "{{.Repository}}:{{.Tag}} {{.ID}}"])
    return "\n".join(sorted(listed.splitlines()))


def image_ids(tags: Sequence[str]) -> list[str]:
    """Return the image IDs of tags, "" for one that does not exist."""
    found = []
    for tag in tags:
        found.append(docker(["image", "inspect", "--format", "{{.Id}}", tag], check=False).strip())
    return found
