"""Settings of the service, read from the environment once.

Names and defaults are those of the README's table. Nothing else in the package reads the environment.
"""

import ipaddress
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

GIB = 1 << 30

_HOST_NAME = re.compile(r"[a-z0-9_](?:[a-z0-9_.-]{0,252}[a-z0-9_])?", re.ASCII)
# The grammar of the distribution project's references.
_IMAGE_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}", re.ASCII)
# No user, query or fragment: paths are added at the end.
_URL = re.compile(r"https?://(?P<host>[^/?#@\s\x00-\x1f]+)(?:/[^?#\s\x00-\x1f]*)?", re.IGNORECASE)
_PORT = re.compile(r":[0-9]{0,5}", re.ASCII)

# Loader's own files: the name rule refuses a leading dot, so no resource can reach this directory.
STATE_DIRECTORY = ".azaion-loader"


def host_name(value: str) -> str | None:
    """Return the host of `host[:port]` in one spelling (lower case, no final dot, short IPv6), or None for nonsense."""
    value = value.strip().lower()
    bracketed, closing, rest = value[1:].partition("]") if value.startswith("[") else ("", "", "")
    if not closing and value.count(":") > 1:
        bracketed, rest = value, ""
    if bracketed:
        try:
            return str(ipaddress.IPv6Address(bracketed)) if _is_port(rest) else None
        except ValueError:
            return None
    name, colon, port = value.partition(":")
    name = name.removesuffix(".")
    return name if _HOST_NAME.fullmatch(name) and _is_port(colon + port) else None


def _is_port(text: str) -> bool:
    return not text or (_PORT.fullmatch(text) is not None and int(text[1:] or 0) <= 65535)


class InvalidSetting(ValueError):
    """A variable of the environment that can't be used; the message names it and says what it takes."""


def child_environment() -> dict[str, str]:
    """Return the environment for a program that the loader starts.

    It is the loader's own (DOCKER_HOST, PATH, proxies), with messages in the language that the loader reads.
    """
    return {**os.environ, "LC_ALL": "C"}


def command_password() -> str | None:
    """Return the password that AZAION_PASSWORD gives to the commands; the service itself takes none from here."""
    return os.environ.get("AZAION_PASSWORD") or None


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings; `_s` are seconds, `_bytes` bytes."""

    resource_api_url: str = "https://api.azaion.com"
    images_path: Path = Path("/opt/azaion/images.enc")
    api_version: str = "latest"
    data_dir: Path | None = None
    log_dir: Path = Path("Logs")
    docker_cli: str = "docker"
    device_conf: Path = Path("/etc/azaion/device.conf")
    hardware_string_file: Path | None = None
    jwt_public_key_file: Path | None = None
    archive_public_key_file: Path | None = None
    loader_api_token_file: Path | None = None
    require_part_mac: bool = False
    allow_downgrade: bool = False
    remove_superseded_images: bool = True
    allowed_hosts: tuple[str, ...] = ()
    cache_max_bytes: int = 20 * GIB
    upload_max_bytes: int = 8 * GIB
    archive_max_bytes: int = 64 * GIB
    connect_timeout_s: float = 4.0
    login_timeout_s: float = 12.0
    request_timeout_s: float = 60.0
    stall_timeout_s: float = 30.0
    transfer_wait_s: float = 600.0
    docker_timeout_s: float = 60.0
    docker_stall_timeout_s: float = 300.0
    unlock_parallel: int = 0

    @property
    def storage_dir(self) -> Path:
        """The directory of cached parts: LOADER_DATA_DIR, or the working directory."""
        return self.data_dir if self.data_dir is not None else Path()

    @property
    def state_dir(self) -> Path:
        """The dot-directory for notes, journal and locks."""
        return self.storage_dir / STATE_DIRECTORY

    @property
    def model_cache_dir(self) -> str:
        """What `/status` shows: `models` under LOADER_DATA_DIR, plain `models` when that is unset."""
        return str(self.data_dir / "models") if self.data_dir is not None else "models"

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> "Settings":
        """Read the settings.

        An empty variable counts as unset. Raises InvalidSetting, naming the variable and what it takes.
        """
        read = _Reader(os.environ if environment is None else environment)
        default = cls()
        data_dir = read.path("LOADER_DATA_DIR")
        return cls(
            resource_api_url=read.url("RESOURCE_API_URL", default.resource_api_url),
            images_path=read.path("IMAGES_PATH") or default.images_path,
            api_version=read.image_tag("API_VERSION", default.api_version),
            data_dir=data_dir,
            log_dir=read.path("LOG_DIR") or (data_dir or Path()) / "Logs",
            docker_cli=read.text("DOCKER_CLI", default.docker_cli),
            device_conf=read.path("DEVICE_CONF") or default.device_conf,
            hardware_string_file=read.path("HARDWARE_STRING_FILE"),
            jwt_public_key_file=read.path("JWT_PUBLIC_KEY_FILE"),
            archive_public_key_file=read.path("ARCHIVE_PUBLIC_KEY_FILE"),
            loader_api_token_file=read.path("LOADER_API_TOKEN_FILE"),
            require_part_mac=read.flag("REQUIRE_PART_MAC", default.require_part_mac),
            allow_downgrade=read.flag("ALLOW_DOWNGRADE", default.allow_downgrade),
            remove_superseded_images=read.flag("REMOVE_SUPERSEDED_IMAGES", default.remove_superseded_images),
            allowed_hosts=read.hosts("ALLOWED_HOSTS"),
            cache_max_bytes=read.whole("CACHE_MAX_BYTES", default.cache_max_bytes),
            upload_max_bytes=read.whole("UPLOAD_MAX_BYTES", default.upload_max_bytes),
            archive_max_bytes=read.whole("ARCHIVE_MAX_BYTES", default.archive_max_bytes),
            connect_timeout_s=read.seconds("CONNECT_TIMEOUT_S", default.connect_timeout_s),
            login_timeout_s=read.seconds("LOGIN_TIMEOUT_S", default.login_timeout_s),
            request_timeout_s=read.seconds("REQUEST_TIMEOUT_S", default.request_timeout_s),
            stall_timeout_s=read.seconds("STALL_TIMEOUT_S", default.stall_timeout_s),
            transfer_wait_s=read.seconds("TRANSFER_WAIT_S", default.transfer_wait_s),
            docker_timeout_s=read.seconds("DOCKER_TIMEOUT_S", default.docker_timeout_s),
            docker_stall_timeout_s=read.seconds("DOCKER_STALL_TIMEOUT_S", default.docker_stall_timeout_s),
            unlock_parallel=read.whole("UNLOCK_PARALLEL", default.unlock_parallel),
        )


class _Reader:
    """Typed look-ups in an environment."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment

    def text(self, name: str, default: str) -> str:
        return self._environment.get(name, "").strip() or default

    def image_tag(self, name: str, default: str) -> str:
        value = self.text(name, default)
        if not _IMAGE_TAG.fullmatch(value):
            raise InvalidSetting(f"{name} takes an image tag: up to 128 letters, digits, dots, hyphens or underscores")
        return value

    def path(self, name: str) -> Path | None:
        value = self.text(name, "")
        return Path(value) if value else None

    def url(self, name: str, default: str) -> str:
        value = self.text(name, default).rstrip("/")
        match = _URL.fullmatch(value)
        if not match or host_name(match["host"]) is None:
            raise InvalidSetting(f"{name} takes an address like https://host[:port][/path]; http:// is allowed, too")
        return value

    def flag(self, name: str, default: bool) -> bool:
        value = self.text(name, "1" if default else "0").lower()
        if value in {"1", "true", "yes", "on"}:
            return True
        if value in {"0", "false", "no", "off"}:
            return False
        raise InvalidSetting(f"{name} takes 0 or 1")

    def hosts(self, name: str) -> tuple[str, ...]:
        words = self.text(name, "").replace(",", " ").split()
        if "*" in words:
            return ()
        hosts = tuple(dict.fromkeys(host for word in words if (host := host_name(word)) is not None))
        if any(host_name(word) is None for word in words):
            raise InvalidSetting(f"{name} takes host names, separated by commas or spaces, or * for any")
        return hosts

    def whole(self, name: str, default: int) -> int:
        value = self.text(name, str(default))
        if not value.isascii() or not value.isdigit() or len(value) > 18:
            raise InvalidSetting(f"{name} takes a whole number of 0 or more, up to 18 digits")
        return int(value)

    def seconds(self, name: str, default: float) -> float:
        value = self.text(name, str(default))
        try:
            number = float(value)
        except ValueError:
            number = -1.0
        if not 0.0 < number < 1e6:
            raise InvalidSetting(f"{name} takes a number of seconds above 0")
        return number
