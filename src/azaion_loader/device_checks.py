"""Checks of what is on the device: engine, disk, archive, hardware string, files that settings name."""

import os
import socket
import stat
from collections.abc import Callable, Sequence

from azaion_loader import files
from azaion_loader.archive_trust import signature_path
from azaion_loader.device_conf import read_device_credentials
from azaion_loader.diagnosis import Finding, failed, fine, skipped, warned
from azaion_loader.docker_answers import EngineInfo
from azaion_loader.docker_cli import DockerCli
from azaion_loader.errors import DiskFull, DockerError, DockerStalled, MisconfiguredDevice, NotAuthenticated
from azaion_loader.hardware_memory import PartMemory, remember_parts
from azaion_loader.hardware_service import UNKNOWN, HardwareService
from azaion_loader.required_images import required_tags, short_tag
from azaion_loader.settings import Settings, child_environment

# Less than this and a log line, a note or a small part may fail to be written.
_DATA_MIN_BYTES = 64 << 20
_ARCHIVE_MIN_BYTES = 32
_SPACE_FACTOR = 2
_CONNECT_S = 3.0
_DEFAULT_SOCKET = "/var/run/docker.sock"


def check_socket() -> Sequence[Finding]:
    """Say whether this user may speak to the engine's socket."""
    name = "engine_socket"
    address = child_environment().get("DOCKER_HOST") or f"unix://{_DEFAULT_SOCKET}"
    if not address.startswith("unix://"):
        return [skipped(name, "The engine is not reached through a local socket (DOCKER_HOST).")]
    path = address.removeprefix("unix://")
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(_CONNECT_S)
        try:
            probe.connect(path)
        except PermissionError:
            advice = f"Add the service's user to the group that owns {path} (usually docker), or run it as root."
            return [failed(name, "socket_permission", f"This user may not use {path}.", advice)]
        except FileNotFoundError:
            advice = "Start the engine (systemctl start docker), mount its socket, or set DOCKER_HOST."
            return [failed(name, "socket_missing", f"There is no socket {path}.", advice)]
        except (OSError, ValueError) as err:
            advice = "Start the engine (systemctl start docker)."
            return [failed(name, "engine_down", f"Nobody answers at {path} ({err}).", advice)]
    return [fine(name, f"{path} takes connections.")]


class EngineChecks:
    """What the container engine says of itself, and what it holds."""

    def __init__(self, settings: Settings, docker: Callable[[], DockerCli]) -> None:
        self._settings = settings
        self._docker = docker

    def __call__(self) -> Sequence[Finding]:
        """Ask the engine. Bounded by the time limit of its client's commands."""
        docker = self._docker()
        try:
            engine = docker.info()
            present = {short_tag(tag) for image in docker.images() for tag in image.tags}
        except DockerError as err:
            cause = "engine_stalled" if isinstance(err, DockerStalled) else err.code
            if "can't be run" in err.message:
                cause = "client_missing"
            return [failed("engine", cause, err.message, _ENGINE_ADVICE.get(cause, _ENGINE_ADVICE["docker_failed"]))]
        missing = [tag for tag in required_tags(self._settings.api_version) if tag not in present]
        found = fine("engine", f"{engine.version}, {engine.os}/{engine.architecture}, {engine.store} image store.")
        return [found, self._images(missing), self._space(engine, missing)]

    def _images(self, missing: Sequence[str]) -> Finding:
        if not missing:
            return fine("images", f"All required images are present under the tag {self._settings.api_version}.")
        said = f"{len(missing)} of the required images are missing: {', '.join(missing)}."
        return warned("images", "images_missing", said, "Unlock the device.")

    def _space(self, engine: EngineInfo, missing: Sequence[str]) -> Finding:
        name = "engine_space"
        if engine.root_dir is None:
            return skipped(name, "The engine's disk is not visible from here.")
        free = files.free_bytes(engine.root_dir)
        try:
            needed = self._settings.images_path.stat().st_size * _SPACE_FACTOR if missing else 0
        except OSError:
            needed = 0
        if free < needed:
            said = f"{engine.root_dir}: {free} bytes free, an unlock may need {needed}."
            return failed(name, "disk_full", said, "Free space on the engine's disk, for instance of old images.")
        return fine(name, f"{engine.root_dir}: {free} bytes free.")


_ENGINE_ADVICE = {
    "client_missing": "Install the engine's client (apt-get install docker.io), or name another in DOCKER_CLI.",
    "engine_stalled": "Restart the engine (systemctl restart docker).",
    "docker_unavailable": "Start the engine (systemctl start docker), and see that this user may use its socket.",
    "docker_failed": "See the engine's log (journalctl -u docker).",
}


class DiskChecks:
    """Directories that the loader writes to, and the archive that it reads."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def __call__(self) -> Sequence[Finding]:
        """Look at the directories and the archive; the archive's content is not read."""
        return [self._directory(), self._space(), self._archive()]

    def _directory(self) -> Finding:
        place = self._settings.storage_dir.absolute()
        aside = self._settings.state_dir / ".doctor"
        try:
            files.write_atomic(aside, b"")
            aside.unlink()
        except (OSError, DiskFull) as err:
            said = f"{place} can't be written to: {getattr(err, 'strerror', None) or err}."
            return failed("data_dir", "not_writable", said, "Let the service's user own LOADER_DATA_DIR.")
        return fine("data_dir", f"{place} can be written to.")

    def _space(self) -> Finding:
        place = self._settings.storage_dir.absolute()
        free = files.free_bytes(place)
        if free < _DATA_MIN_BYTES:
            said = f"{place}: {free} bytes free, {_DATA_MIN_BYTES} are the least that work needs."
            return failed("free_space", "disk_full", said, "Free space there, or lower CACHE_MAX_BYTES.")
        return fine("free_space", f"{place}: {free} bytes free.")

    def _archive(self) -> Finding:
        name, path = "archive", self._settings.images_path
        try:
            with path.open("rb") as file:
                about = os.fstat(file.fileno())
                file.read(16)
        except FileNotFoundError:
            said = f"There is no archive at {path}."
            return warned(name, "archive_not_found", said, "Place images.enc there, or set IMAGES_PATH.")
        except OSError as err:
            said = f"{path} can't be read: {err.strerror}."
            return failed(name, "archive_unreadable", said, "Let the service's user read the file and its directory.")
        if not stat.S_ISREG(about.st_mode) or about.st_size < _ARCHIVE_MIN_BYTES or about.st_size % 16:
            said = f"{path} has {about.st_size} bytes, which no whole archive has: its copy was cut off."
            return failed(name, "archive_cut", said, "Copy the archive again.")
        key_file = self._settings.archive_public_key_file
        signature = signature_path(path)
        if key_file is not None and not signature.exists():
            said = f"{signature} is missing, and ARCHIVE_PUBLIC_KEY_FILE demands it."
            return failed(name, "archive_untrusted", said, "Copy the signature beside the archive.")
        return fine(name, f"{path}, {about.st_size} bytes.")


class IdentityChecks:
    """The hardware string's parts against those first seen, and the device's own credentials."""

    def __init__(self, settings: Settings, hardware: Callable[[], HardwareService]) -> None:
        self._settings = settings
        self._hardware = hardware

    def __call__(self) -> Sequence[Finding]:
        """Look at the machine's parts and at `device.conf`."""
        return [self._parts(), self._device_conf()]

    def _parts(self) -> Finding:
        name, service = "hardware", self._hardware()
        try:
            service.hardware_string()
        except MisconfiguredDevice as err:
            return failed(name, "hardware_file", err.message, "Correct the file, or unset HARDWARE_STRING_FILE.")
        memory = seen_parts(self._settings, service)
        shown = ", ".join(f"{part.name} {part.hash}" for part in memory)
        changed = [part.name for part in memory if part.changed]
        override = self._settings.hardware_string_file
        if override is not None:
            return fine(name, f"{override} is used in place of the machine's own string ({shown}).")
        if changed:
            first = ", ".join(f"{part.name} {part.first_seen_hash}" for part in memory if part.changed)
            said = f"Changed since this device was first seen: {', '.join(changed)} (now {shown}; at first {first})."
            advice = (
                "The Resource API refuses the account if it was bound before: put the part back, have the account "
                "unbound, or give the old string in HARDWARE_STRING_FILE."
            )
            return failed(name, f"hardware_changed_{changed[0]}", said, advice)
        unknown = [part for part, value in service.parts()._asdict().items() if value == UNKNOWN]
        if unknown:
            said = f"This machine does not tell: {', '.join(unknown)} ({shown})."
            return warned(name, "hardware_unknown", said, "Mount /sys and /proc into the container as they are.")
        return fine(name, f"As first seen ({shown}).")

    def _device_conf(self) -> Finding:
        name, path = "device_credentials", self._settings.device_conf
        try:
            credentials = read_device_credentials(path)
        except NotAuthenticated as err:
            said = err.message.removeprefix("Nobody has logged in, and ")
            return failed(name, "device_conf", said, f"chmod 0600 {path}, and see that it has both lines.")
        if credentials is None:
            return skipped(name, f"No credentials of the device in {path}; somebody has to log in.")
        return fine(name, f"{path} names {credentials.email}.")


def seen_parts(settings: Settings, hardware: HardwareService) -> list[PartMemory]:
    """Return the machine's parts beside those first seen; a memory that can't be written is a finding of `data_dir`."""
    parts = hardware.parts()._asdict()
    try:
        return remember_parts(settings.state_dir / "hardware.json", parts)
    except (OSError, DiskFull):
        return []
