"""The archive workflow: the key fragment, the encrypted archive on the device, and the engine that takes its images.

Four functions stand for themselves and serve as an operator's tools: `download_key_fragment`, `decrypt_archive`,
`docker_load` and `check_images_loaded`. The unlock run uses `EncryptedArchive` instead, which never writes a
plaintext byte to the disk.

The format is `IV || AES-256-CBC(PKCS#7(tar))` under SHA-256(key fragment); see docs/formats.md.
"""

import os
import stat
from pathlib import Path

from azaion_loader.api_client import ApiClient
from azaion_loader.archive import looks_like_archive, open_archive
from azaion_loader.docker_cli import DockerCli
from azaion_loader.errors import ArchiveInvalid, ArchiveNotFound, DockerError, IntegrityError, WrongKey
from azaion_loader.files import disk_full_named, require_space, sync_directory
from azaion_loader.required_images import API_SERVICES, required_tags
from azaion_loader.security import CbcDecryptor, CbcReader, archive_key
from azaion_loader.settings import Settings

__all__ = [
    "API_SERVICES",
    "EncryptedArchive",
    "check_images_loaded",
    "decrypt_archive",
    "docker_load",
    "download_key_fragment",
    "open_images",
]

cdef Py_ssize_t CHUNK_BYTES = 1 << 20
cdef Py_ssize_t BLOCK_BYTES = 16
# IV, two blocks of header and one of padding: no archive of any layout is shorter, gzipped or not.
cdef Py_ssize_t SMALLEST_BYTES = 16 + 512 // 2


def download_key_fragment(resource_api_url: str, token: str) -> bytes:
    """Fetch the key fragment of the images' archive with a session's bearer token.

    Raises NotAuthenticated, Forbidden or an UpstreamError.
    """
    settings = Settings.from_environment()
    client = ApiClient(
        resource_api_url,
        connect_timeout_s=settings.connect_timeout_s,
        login_timeout_s=settings.login_timeout_s,
        request_timeout_s=settings.request_timeout_s,
        stall_timeout_s=settings.stall_timeout_s,
    )
    try:
        return client.key_fragment(token)
    finally:
        client.close()


def decrypt_archive(encrypted_path: str | Path, key_fragment: bytes, output_path: str | Path) -> None:
    """Decrypt an archive into the file `output_path` (mode 0600), which appears whole or not at all.

    Raises ArchiveNotFound, ArchiveInvalid (not a whole number of blocks), WrongKey (the padding does not open, by
    the key or by damage) or DiskFull.
    """
    output = Path(output_path)
    aside = output.with_name(f".{output.name}.{os.getpid()}.part")
    with open_images(encrypted_path) as source:
        size = os.fstat(source.fileno()).st_size
        require_space(output, size, "the decrypted archive")
        decryptor = CbcDecryptor(archive_key(key_fragment))
        try:
            with disk_full_named(output, size), open(aside, "xb", opener=_private) as target:
                while chunk := source.read(CHUNK_BYTES):
                    target.write(decryptor.update(chunk))
                target.write(decryptor.finalize())
                target.flush()
                os.fsync(target.fileno())
            aside.replace(output)
            sync_directory(output.parent)
        except IntegrityError as err:
            raise WrongKey("The key fragment does not open the archive, or the archive is damaged.") from err
        finally:
            aside.unlink(missing_ok=True)


def docker_load(tar_path: str | Path) -> None:
    """Give a plaintext archive to the engine as it is. Raises ArchiveNotFound, DockerError or DiskFull."""
    settings = Settings.from_environment()
    with open_images(tar_path) as source:
        size = os.fstat(source.fileno()).st_size
        chunks = iter(lambda: source.read(CHUNK_BYTES), b"")
        _docker(settings).load(chunks, size, lambda count: None, lambda: None)


def check_images_loaded(version: str) -> bool:
    """Say whether all required images stand in the engine under the tag `version`, by name.

    An engine that can't be reached, or does not answer, counts as "no".
    """
    try:
        present = {tag for image in _docker(Settings.from_environment()).images() for tag in image.tags}
    except DockerError:
        return False
    return present.issuperset(required_tags(version))


def open_images(path: str | Path):
    """Open an archive's file for reading.

    Raises ArchiveNotFound, or ArchiveInvalid for what is there but is no file or may not be read.
    """
    try:
        source = open(path, "rb", buffering=0)
    except FileNotFoundError as err:
        raise ArchiveNotFound(f"Encrypted archive not found: {path}") from err
    except OSError as err:
        raise ArchiveInvalid(f"The archive {path} can't be opened: {err.strerror}.") from err
    if not stat.S_ISREG(os.fstat(source.fileno()).st_mode):
        source.close()
        raise ArchiveInvalid(f"The archive {path} is not a file.")
    return source


def _private(path, flags):
    return os.open(path, flags, 0o600)


def _docker(settings):
    return DockerCli(settings.docker_cli, settings.docker_timeout_s, settings.docker_stall_timeout_s)


class EncryptedArchive:
    """An archive opened with its key fragment, decrypted at the places that are read. A context manager.

    `reader` gives plaintext at any offset. `changed()` says whether the file was written to since it was opened.
    Raises ArchiveNotFound, ArchiveInvalid or WrongKey.
    """

    def __init__(self, path: str | Path, key_fragment: bytes) -> None:
        self._path = Path(path)
        self._source = open_images(path)
        try:
            self._mark = self._state()
            self.reader = self._prove_key(archive_key(key_fragment))
        except BaseException:
            self._source.close()
            raise

    def index(self, max_bytes: int, cancelled):
        """Prove everything but the layers' bytes, and return the index of images; see `archive.open_archive`."""
        return open_archive(self.reader, max_bytes, cancelled)

    def changed(self) -> bool:
        """Say whether the file was written to since it was opened."""
        return self._state() != self._mark

    def close(self) -> None:
        """Close the file, and let go of the key even where somebody still holds the reader."""
        self.reader.close()
        self._source.close()

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        self.close()

    def _state(self):
        facts = os.fstat(self._source.fileno())
        return facts.st_size, facts.st_mtime_ns

    def _prove_key(self, key):
        """Return the reader once it is sure that the key is right, or say which of key and archive is wrong.

        A tar is a multiple of 512 bytes, so the right key always shows 16 bytes of padding; a wrong one shows some
        valid padding once in 256 tries, and practically always a single byte of it.
        """
        cdef Py_ssize_t size = os.fstat(self._source.fileno()).st_size
        if size < SMALLEST_BYTES or size % BLOCK_BYTES:
            raise ArchiveInvalid(f"The archive {self._path} is cut or no archive: {size} bytes.")
        try:
            reader = CbcReader(self._source, key)
        except IntegrityError as err:
            if looks_like_archive(self._head(key)):
                raise ArchiveInvalid(f"The end of the archive {self._path} is damaged or cut off.") from err
            raise WrongKey(f"The key fragment does not open the archive {self._path}.") from err
        if looks_like_archive(reader.read_at(0, 512)):
            return reader
        if size - BLOCK_BYTES - reader.size > 1:
            raise ArchiveInvalid(f"The archive {self._path} opens with the key, but holds no image archive.")
        raise WrongKey(f"The key fragment does not open the archive {self._path}.")

    def _head(self, key) -> bytes:
        return CbcDecryptor(key).update(os.pread(self._source.fileno(), BLOCK_BYTES + 512, 0))
