"""Servers that go silent and clients that never end: the run says so soon after its time-out, and nothing is left."""

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from azaion_devkit.device import Device, image_list
from azaion_devkit.engine_proxy import EngineProxy
from azaion_devkit.loader_process import LoaderProcess
from azaion_devkit.mutant import mutant

pytestmark = [pytest.mark.engine, pytest.mark.family("hang matrix")]

SHORT = {
    "CONNECT_TIMEOUT_S": "3",
    "LOGIN_TIMEOUT_S": "4",
    "REQUEST_TIMEOUT_S": "4",
    "STALL_TIMEOUT_S": "2",
    "DOCKER_TIMEOUT_S": "6",
    "DOCKER_STALL_TIMEOUT_S": "6",
}
# Time-out, the end of a child, and a second call that finds the same engine silent.
SOON_S = 25.0
LEFT_TIMEOUT_S = 10.0

API_FAULTS: dict[str, tuple[dict[str, Any], set[str]]] = {
    "silent": ({"hang": True}, {"upstream_timeout"}),
    "drips a byte a second": ({"drip_s": 1.0}, {"upstream_timeout"}),
    "stalls at 50 %": ({"drip_s": 60.0, "drip_bytes": 90}, {"upstream_timeout"}),
    "half-closes": ({"cut_bytes": 60}, {"upstream_error", "upstream_unavailable"}),
}
CLIENT_FAULTS: dict[str, tuple[str, set[str]]] = {
    "stops reading a load": ('[ "$1" = load ] && exec sleep 60', {"docker_stalled"}),
    "reads a load and never exits": ('[ "$1" = load ] && { cat >/dev/null; exec sleep 60; }', {"docker_stalled"}),
    "never ends a question": ('[ "$1" = info ] && exec sleep 60', {"docker_stalled"}),
    "ignores SIGTERM": ('[ "$1" = load ] && { trap "" TERM; sleep 60; }', {"docker_stalled"}),
    "leaves a child that holds the pipe": ('[ "$1" = info ] && { sleep 60 & sleep 60; }', {"docker_stalled"}),
    "prints gigabytes": ('[ "$1" = info ] && exec cat /dev/zero', {"docker_failed"}),
    "complains in gigabytes": ('[ "$1" = info ] && exec cat /dev/zero >&2', {"docker_stalled"}),
}
PROXY_FAULTS: dict[str, Callable[[EngineProxy], None]] = {
    "engine silent on a question": lambda proxy: proxy.hang("/info"),
    "engine takes half of a load": lambda proxy: proxy.hang("/images/load", after_bytes=2_000_000),
    "engine takes a load and says nothing": lambda proxy: proxy.hang("/images/load", after_bytes=None),
    "engine silent at a tag": lambda proxy: proxy.hang("/tag?", nth=3),
}


def resources(loader: LoaderProcess) -> dict[str, Any]:
    """Count what a process can leave behind: threads, descriptors, children."""
    process = Path(f"/proc/{loader.pid}")
    kinds = [_unless_gone(os.readlink, path).split(":")[0] for path in (process / "fd").iterdir()]
    tasks = list((process / "task").iterdir())
    children = [child for task in tasks for child in _unless_gone(Path.read_text, task / "children").split()]
    threads = [name for task in tasks if (name := _unless_gone(Path.read_text, task / "comm").strip())]
    return {"sockets": kinds.count("socket"), "pipes": kinds.count("pipe"), "children": children, "n": len(threads)}


def _unless_gone(read: Callable[[Path], str], path: Path) -> str:
    """Read something of a process's; "" when it has ended since it was listed."""
    try:
        return read(path)
    except (FileNotFoundError, ProcessLookupError):
        return ""


def check_hang(
    device: Device, loader: LoaderProcess, arrange: Callable[[], None], calm: Callable[[], None], codes: set[str]
) -> None:
    """Let a run meet the fault, and compare what the process holds with what it held after a good run."""
    device.place(device.images(seed="first"))
    assert device.unlock(loader)["state"] == "ready"
    # A second run warms what the first one has no need of (pools, imports).
    assert device.unlock(loader, refresh=True)["state"] == "ready"
    before, images = resources(loader), image_list()
    device.place(device.images(seed="second", shared_bytes=8_000_000))
    arrange()
    started = time.monotonic()
    status = device.unlock(loader, refresh=True)
    assert time.monotonic() - started < SOON_S
    assert status["state"] == "error"
    assert status["error"].split(":")[0] in codes, status
    calm()
    give_up = time.monotonic() + LEFT_TIMEOUT_S
    # The pool of threads and kept connections may be smaller than before, never larger.
    while (
        any(after > before[name] for name, after in resources(loader).items() if name != "children")
        or resources(loader)["children"]
    ):
        assert time.monotonic() < give_up, (before, resources(loader))
        time.sleep(0.1)
    assert [line for line in image_list().splitlines() if "azaion-loader/" not in line] == images.splitlines()
    assert device.unlock(loader, refresh=True) == {"state": "ready", "error": None}
    assert "azaion-loader/" not in image_list()


def parameters(faults: dict[str, Any], fast: set[str]) -> list[Any]:
    return [pytest.param(name, marks=[] if name in fast else [pytest.mark.slow]) for name in faults]


@pytest.mark.parametrize("path", ["/login", "/binary-split"])
@pytest.mark.parametrize("name", parameters(API_FAULTS, set()))
def test_an_api_that_hangs(device: Device, path: str, name: str) -> None:
    fault, codes = API_FAULTS[name]
    loader = device.loader(SHORT)
    # A connection that was kept and is cut is tried again once: both tries meet the fault.
    check_hang(device, loader, lambda: device.api.fail_next(path, times=2, **fault), device.api.script.clear, codes)


def client(folder: Path, fault: str) -> Path:
    """Return a docker client that misbehaves while the file `fault` stands beside it."""
    path = folder / "docker-client"
    path.write_text(f'#!/bin/sh\nif [ -e {folder}/fault ]; then\n{fault}\nfi\nexec {shutil.which("docker")} "$@"\n')
    path.chmod(0o755)
    return path


@pytest.mark.parametrize("name", parameters(CLIENT_FAULTS, {"stops reading a load"}))
def test_a_client_that_hangs(device: Device, tmp_path: Path, name: str) -> None:
    fault, codes = CLIENT_FAULTS[name]
    loader = device.loader({**SHORT, "DOCKER_CLI": str(client(tmp_path, fault))})
    switch = tmp_path / "fault"
    check_hang(device, loader, switch.touch, switch.unlink, codes)


@pytest.mark.parametrize("name", parameters(PROXY_FAULTS, set()))
def test_an_engine_that_hangs(device: Device, proxy: EngineProxy, name: str) -> None:
    loader = device.loader({**SHORT, "DOCKER_HOST": proxy.host})
    check_hang(device, loader, lambda: PROXY_FAULTS[name](proxy), proxy.clear, {"docker_stalled"})


@pytest.mark.slow
@pytest.mark.proof
def test_the_family_sees_a_child_that_is_left(device: Device, tmp_path: Path) -> None:
    environment = mutant(
        tmp_path, "processes", "            self._end()\n        finally:", "            pass\n        finally:"
    )
    path = client(tmp_path, CLIENT_FAULTS["stops reading a load"][0])
    loader = device.loader({**SHORT, **environment, "DOCKER_CLI": str(path)})
    switch = tmp_path / "fault"
    with pytest.raises(AssertionError):
        check_hang(device, loader, switch.touch, switch.unlink, {"docker_stalled"})
