"""A full disk at each place, on small file systems of their own: said with numbers, and the service lives on."""

import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import requests

from azaion_devkit.device import EMAIL, PASSWORD, Device, image_list
from azaion_devkit.engine import Engine
from azaion_devkit.loader_process import LoaderProcess
from azaion_devkit.mutant import mutant
from azaion_devkit.resource_rig import ResourceRig

pytestmark = [
    pytest.mark.engine,
    pytest.mark.family("disk full"),
    pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root"),
]

NUMBERS = re.compile(r"\d+ bytes needed, \d+ bytes free")


@pytest.fixture
def small_disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[int], Path]]:
    """Mount a file system of so many bytes, in memory."""
    mounted: list[Path] = []

    def mount(size: int) -> Path:
        place = tmp_path_factory.mktemp("disk")
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", place], check=True)
        mounted.append(place)
        return place

    yield mount
    for place in mounted:
        subprocess.run(["umount", "--lazy", place], check=True)


def fill(directory: Path) -> Path:
    """Take all the room there is; the file's removal gives it back."""
    filler = directory / "filler"
    with filler.open("wb", buffering=0) as stream:
        try:
            while True:
                stream.write(bytes(4096))
        except OSError:
            pass
    return filler


def alive(loader: LoaderProcess) -> bool:
    return bool(loader.get("/health") == {"status": "healthy"} and loader.get("/unlock/status")["state"])


def check_full_data_directory(device: Device, disk: Path, environment: dict[str, str]) -> None:
    device.data_dir = disk / "data"
    device.place(device.images())
    loader = device.loader({"LOG_DIR": str(device.folder / "logs"), **environment})
    filler = fill(disk)
    answer = loader.unlock(EMAIL, PASSWORD)
    assert (answer.status_code, answer.json()["code"]) == (507, "disk_full")
    assert NUMBERS.search(answer.json()["detail"])
    assert alive(loader)
    filler.unlink()
    assert device.unlock(loader) == {"state": "ready", "error": None}


def test_no_room_for_the_journal(device: Device, small_disk: Callable[[int], Path]) -> None:
    check_full_data_directory(device, small_disk(2_000_000), {})


@pytest.mark.slow
def test_the_data_directory_fills_while_a_run_goes_on(device: Device, small_disk: Callable[[int], Path]) -> None:
    """The run ends with the right word, although even that can't be written down."""
    disk = small_disk(2_000_000)
    device.data_dir = disk / "data"
    device.place(device.images())
    loader = device.loader({"LOG_DIR": str(device.folder / "logs")})
    hold = device.api.hold_next("/binary-split")
    before = image_list()
    loader.unlock(EMAIL, PASSWORD).raise_for_status()
    assert hold.reached.wait(30)
    filler = fill(disk)
    hold.release()
    status, _ = loader.wait_for_unlock()
    assert status["error"].startswith("disk_full: ")
    assert NUMBERS.search(status["error"])
    assert alive(loader)
    assert image_list() == before
    filler.unlink()
    assert device.unlock(loader)["state"] == "ready"


@pytest.mark.slow
def test_a_full_log_disk_stops_nothing(device: Device, small_disk: Callable[[int], Path]) -> None:
    disk = small_disk(1_000_000)
    fill(disk)
    device.place(device.images())
    loader = device.loader({"LOG_DIR": str(disk / "logs")})
    assert device.unlock(loader) == {"state": "ready", "error": None}
    for _ in range(200):
        assert loader.get("/no-such-path")["code"]
    assert alive(loader)


@pytest.mark.slow
def test_the_log_disk_fills_while_the_service_runs(device: Device, small_disk: Callable[[int], Path]) -> None:
    disk = small_disk(1_000_000)
    device.place(device.images())
    loader = device.loader({"LOG_DIR": str(disk / "logs")})
    filler = fill(disk)
    assert device.unlock(loader) == {"state": "ready", "error": None}
    filler.unlink()
    assert device.unlock(loader, refresh=True)["state"] == "ready"
    assert any("ready" in path.read_text() for path in (disk / "logs").iterdir())


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_no_room_at_the_engine(
    device: Device, small_disk: Callable[[int], Path], monkeypatch: pytest.MonkeyPatch, own_engine: Engine
) -> None:
    """Known before the start where the engine's disk can be seen; said by the engine itself where it can't."""
    engine = Engine(small_disk(60_000_000), network=False)
    monkeypatch.setenv("DOCKER_HOST", engine.host)
    try:
        engine.start()
        device.place(device.images(shared_bytes=50_000_000))
        before = image_list()
        loader = device.loader()
        status = device.unlock(loader)
        assert status["error"].startswith("disk_full: ")
        assert NUMBERS.search(status["error"])
        assert image_list() == before
        # A client that hides where the engine keeps its data: the load itself meets the full disk.
        blind = device.folder / "docker-client"
        blind.write_text('#!/bin/sh\n[ "$1" = context ] && exit 1\nexec docker "$@"\n')
        blind.chmod(0o755)
        loader.stop()
        loader = device.loader({"DOCKER_CLI": str(blind)})
        status = device.unlock(loader)
        assert status["error"].startswith("disk_full: "), status
        assert image_list() == before
        assert alive(loader)
        device.place(device.images(shared_bytes=2_000_000))
        assert device.unlock(loader) == {"state": "ready", "error": None}
    finally:
        engine.stop()
        monkeypatch.setenv("DOCKER_HOST", own_engine.host)


@pytest.mark.slow
@pytest.mark.store
def test_no_room_in_the_cache(tmp_path: Path, small_disk: Callable[[int], Path]) -> None:
    """A load that can't be cached and an upload that can't be encrypted aside: 507 with numbers, then it works."""
    disk = small_disk(4_000_000)
    rig = ResourceRig(tmp_path, environment={"LOADER_DATA_DIR": str(disk)}, separate=True)
    with rig:
        small, big = b"small" * 1000, b"\1" * 3_000_000
        form = {"data": ("m.bin", small)}
        assert requests.post(f"{rig.url}/upload/m.bin", files=form, timeout=30).ok
        filler = fill(disk)
        answer = requests.post(f"{rig.url}/upload/big.bin", files={"data": ("big.bin", big)}, timeout=30)
        assert (answer.status_code, answer.json()["code"]) == (507, "disk_full")
        assert NUMBERS.search(answer.json()["detail"])
        assert requests.get(f"{rig.url}/health", timeout=5).ok
        filler.unlink()
        assert requests.post(f"{rig.url}/upload/big.bin", files={"data": ("big.bin", big)}, timeout=30).ok
        for path in (disk / "models").iterdir():
            path.unlink()
        filler = fill(disk)
        body = {"filename": "big.bin", "folder": "models"}
        answer = requests.post(f"{rig.url}/load/big.bin", json=body, timeout=30)
        assert (answer.status_code, answer.json()["code"]) == (507, "disk_full")
        assert NUMBERS.search(answer.json()["detail"])
        filler.unlink()
        assert requests.post(f"{rig.url}/load/big.bin", json=body, timeout=30).content == big


@pytest.mark.slow
@pytest.mark.proof
def test_the_family_sees_a_full_disk_that_is_not_named(
    device: Device, small_disk: Callable[[int], Path], tmp_path: Path
) -> None:
    environment = mutant(tmp_path, "files", "if err.errno not in _NO_ROOM:", "if True:")
    with pytest.raises((AssertionError, requests.RequestException)):
        check_full_data_directory(device, small_disk(2_000_000), environment)
