"""What a container engine's client prints, read strictly; pure, without any process.

Sources: `docker image inspect` and `docker info` of the 20.10, 26.1 and 28.2 clients (the JSON of the Engine API's
ImageInspect and SystemInfo), `podman image inspect` and `podman info` of 4.3. The messages are those that these
programs print; `docs/engines.md` says which was seen where.
"""

import grp
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from azaion_loader.errors import DiskFull, DockerFailed, DockerUnavailable, LoaderError

Store = Literal["classic", "containerd", "podman"]

CONTAINERD_DRIVER_TYPE = "io.containerd.snapshotter.v1"
# uname's words, which Docker's info shows, for those of images.
ARCHITECTURES = {
    "x86_64": "amd64",
    "aarch64": "arm64",
    "armv8l": "arm64",
    "armv7l": "arm",
    "armv6l": "arm",
    "armhf": "arm",
    "i386": "386",
    "i686": "386",
    "loongarch64": "loong64",
}
DETAIL_CHARACTERS = 300

_ABSENT = re.compile(
    r"no such (image|object|container)\b|\b(image|object) not known\b|no container with name or id", re.I
)
_NOISE = re.compile(r'\s*$|warning\b|time="[^"]*" level=(warning|info|debug)', re.I)
_NO_SPACE = re.compile(r"no space left on device|disk quota exceeded|not enough space", re.I)
_PERMISSION = re.compile(r"permission denied while trying to connect|dial unix \S+ (connect: )?permission denied", re.I)
_UNREACHABLE = re.compile(
    r"cannot connect to|is the docker daemon running|error during connect|unable to connect|connection refused"
    r"|failed to connect to the docker api|dial (unix|tcp)|docker endpoint|context \S+ (not found|does not exist)",
    re.I,
)
_API_VERSION = re.compile(
    r"client version \S+ is too (old|new)|maximum supported api version|minimum supported api", re.I
)
_SOCKET = re.compile(r"(?:unix://|dial unix )(/[^\s:\"]+)")


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """An image that the engine holds.

    `id` is `sha256:<hex>`: the config's digest, or the manifest's on a containerd store. `tags` are written as in
    `docker save` (`azaion/flights:latest`), `layers` are the diff IDs of `RootFS.Layers`, bottom first; `config` is
    the `Config` object as the engine shows it.
    """

    id: str
    tags: tuple[str, ...]
    layers: tuple[str, ...]
    os: str
    architecture: str
    variant: str
    config: Mapping[str, object] = field(hash=False)


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """The engine, and which client speaks to it; `architecture` is GOARCH's word, `root_dir` the engine's directory.

    `context` names that of Docker's client (see `docker context`); "" where the client does not say it.
    """

    version: str
    os: str
    architecture: str
    store: Store
    root_dir: Path | None
    client: Literal["docker", "podman"] = "docker"
    context: str = ""


def parse_images(output: bytes, *, short_names: bool) -> list[ImageInfo]:
    """Read the JSON of `image inspect`: objects or arrays of them, one after the other, in the order printed.

    `short_names` takes off the `localhost/` or `docker.io/` that podman puts before a name without a registry.
    Raises DockerFailed where the output is something else.
    """
    return [_image(value, short_names) for value in _objects(output)]


def parse_info(output: bytes) -> EngineInfo:
    """Read the JSON of `info`, Docker's or podman's.

    Raises DockerFailed where it is something else, and what `fault` says where the client reports that it did not
    reach the engine (the 20.10 client prints that as a part of the answer and exits with 0).
    """
    values = list(_objects(output))
    if len(values) != 1:
        raise _unreadable()
    value = values[0]
    if "host" in value and "store" in value:
        host, store, version = _object(value, "host"), _object(value, "store"), _object(value, "version")
        root = _text(store, "graphRoot")
        return EngineInfo(
            version=_text(version, "Version"),
            os=_text(host, "os"),
            architecture=_architecture(_text(host, "arch")),
            store="podman",
            root_dir=Path(root) if root and host.get("serviceIsRemote") is not True else None,
            client="podman",
        )
    server_errors = value.get("ServerErrors")
    if server_errors:
        lines = server_errors if isinstance(server_errors, list) else [server_errors]
        raise fault("answer", 1, "\n".join(str(line) for line in lines).encode())
    root = _text(value, "DockerRootDir")
    client = value.get("ClientInfo")
    return EngineInfo(
        version=_text(value, "ServerVersion"),
        os=_text(value, "OSType"),
        architecture=_architecture(_text(value, "Architecture")),
        store=_store(value),
        root_dir=Path(root) if root else None,
        context=_text(client, "Context") if isinstance(client, dict) else "",
    )


def absent_references(stderr: bytes, references: Sequence[str]) -> set[str] | None:
    """Return which of `references` the client called unknown; None where it complains about anything else, too."""
    absent: set[str] = set()
    seen = False
    for line in stderr.decode(errors="replace").splitlines():
        if _NOISE.match(line):
            continue
        if not _ABSENT.search(line):
            return None
        seen = True
        words = {word.rstrip(":,") for word in line.split()}
        absent.update(reference for reference in references if reference in words)
    return absent if seen else None


def fault(action: str, exit_code: int, stderr: bytes) -> LoaderError:
    """Return the error for a client that failed: `action` completes "The container engine did not …".

    DiskFull, DockerUnavailable or DockerFailed, each with what to do where that is known.
    """
    text = stderr.decode(errors="replace")
    detail = _detail(text)
    if _NO_SPACE.search(text):
        return DiskFull(
            "The container engine's disk is full; remove images or other data that nobody needs, then try again "
            f"({detail})"
        )
    if _PERMISSION.search(text):
        return DockerUnavailable(
            "The loader may not use the container engine's socket: add its user to the group "
            f"{_socket_group(text)}, or run it as root ({detail})"
        )
    if _API_VERSION.search(text):
        return DockerUnavailable(f"Docker's client and engine are too far apart in version: update one ({detail})")
    if _UNREACHABLE.search(text):
        return DockerUnavailable(
            "The container engine can't be reached: see that it runs (systemctl status docker) and that its socket "
            f"is where DOCKER_HOST says ({detail})"
        )
    if exit_code < 0:
        return DockerFailed(
            f"The container engine did not {action}: its client was ended by signal {-exit_code}"
            + (" (out of memory?)" if exit_code == -9 else "")
            + (f" ({detail})" if detail else "")
        )
    return DockerFailed(
        f"The container engine did not {action}: {detail or f'its client ended with exit code {exit_code}'}"
    )


def _detail(text: str) -> str:
    """Return one short line of what the client said last, without control characters."""
    lines = [line.strip() for line in text.splitlines() if not _NOISE.match(line)]
    # podman tries every format that it knows and lists what it makes of each; ours is this one.
    lines = [line for line in lines if line.startswith("* docker-archive:")] or lines
    # What follows a line that begins with Error belongs to it.
    first = next((i for i in range(len(lines) - 1, -1, -1) if lines[i].lower().startswith("error")), len(lines) - 1)
    joined = " ".join(lines[max(first, 0) :])
    printable = "".join(character if character.isprintable() else " " for character in joined)
    return printable if len(printable) <= DETAIL_CHARACTERS else printable[: DETAIL_CHARACTERS - 1] + "…"


def _socket_group(text: str) -> str:
    """Return the name of the group that owns the socket named in a message; `docker`, Docker's own, if unknown."""
    match = _SOCKET.search(text)
    if match is None:
        return "docker"
    try:
        number = os.stat(match.group(1)).st_gid  # noqa: PTH116 (a path from a message, not one of ours)
    except (OSError, ValueError):
        return "docker"
    try:
        return grp.getgrgid(number).gr_name
    except KeyError:
        return str(number)


def _store(info: Mapping[str, object]) -> Store:
    # podman's imitation of the Docker API names no index server; the real engine always does.
    if info.get("IndexServerAddress") == "":
        return "podman"
    status = info.get("DriverStatus")
    if isinstance(status, list) and ["driver-type", CONTAINERD_DRIVER_TYPE] in status:
        return "containerd"
    return "classic"


def _image(value: Mapping[str, object], short_names: bool) -> ImageInfo:
    identity = _text(value, "Id")
    if not identity:
        raise _unreadable()
    root_fs = value.get("RootFS")
    config = value.get("Config")
    tags = _texts(value.get("RepoTags"))
    if short_names:
        tags = tuple(dict.fromkeys(_short_name(tag) for tag in tags))
    return ImageInfo(
        id=identity if identity.startswith("sha256:") else f"sha256:{identity}",
        tags=tags,
        layers=_texts(root_fs.get("Layers")) if isinstance(root_fs, dict) else (),
        os=_text(value, "Os"),
        architecture=_text(value, "Architecture"),
        variant=_text(value, "Variant"),
        config=config if isinstance(config, dict) else {},
    )


def _short_name(tag: str) -> str:
    for prefix in ("localhost/", "docker.io/library/", "docker.io/"):
        if tag.startswith(prefix):
            return tag.removeprefix(prefix)
    return tag


def _objects(output: bytes) -> Iterator[dict[str, object]]:
    try:
        text = output.decode()
        decoder = json.JSONDecoder()
        position = 0
        values: list[object] = []
        while position < len(text):
            if text[position].isspace():
                position += 1
                continue
            value, position = decoder.raw_decode(text, position)
            values.extend(value if isinstance(value, list) else [value])
    except (ValueError, RecursionError) as error:
        raise _unreadable() from error
    for value in values:
        if not isinstance(value, dict):
            raise _unreadable()
        yield value


def _object(value: Mapping[str, object], key: str) -> Mapping[str, object]:
    found = value.get(key)
    if not isinstance(found, dict):
        raise _unreadable()
    return found


def _text(value: Mapping[str, object], key: str) -> str:
    found = value.get(key, "")
    if not isinstance(found, str):
        raise _unreadable()
    return found


def _texts(value: object) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise _unreadable()
    return tuple(value)


def _architecture(name: str) -> str:
    return ARCHITECTURES.get(name.lower(), name.lower())


def _unreadable() -> DockerFailed:
    return DockerFailed("The container engine's client gave an answer that can't be read; see that DOCKER_CLI is right")
