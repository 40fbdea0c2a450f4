"""The whole unlock on each engine: fresh, nothing to do, one image changed, a wrong key, a damaged archive."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from azaion_devkit.device import COMMAND_TIMEOUT_S, Device, docker
from azaion_devkit.engine import Engine, EngineMissing
from azaion_devkit.image_sets import oci_layout, older_layout

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.family("engines")]


@pytest.fixture(params=["20.10", "26.1", "26.1-containerd"])
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    if request.param == "20.10":
        found: Engine = request.getfixturevalue("own_engine")
    elif request.param == "26.1":
        try:
            found = Engine.trixie("overlay2")
        except EngineMissing as err:
            pytest.skip(str(err))
    else:
        found = request.getfixturevalue("containerd_engine")
    ran = found.pid is not None
    found.start()
    monkeypatch.setenv("DOCKER_HOST", found.host)
    yield found
    if not ran:
        found.stop()


def listed() -> list[str]:
    return sorted(docker(["image", "ls", "--no-trunc", "--format", "{{.Repository}}:{{.Tag}} {{.ID}}"]).splitlines())


@pytest.mark.parametrize("layout", [older_layout, oci_layout], ids=["older", "oci"])
def test_every_engine_takes_every_archive(engine: Engine, tmp_path: Path, layout: Any) -> None:
    with Device(tmp_path) as device:
        others = listed()
        device.place(device.images(), layout)
        loader = device.loader()
        assert device.unlock(loader) == {"state": "ready", "error": None}
        first = listed()
        assert len(first) == len(others) + 7
        assert device.unlock(loader, refresh=True)["state"] == "ready"
        assert listed() == first
        device.place(device.images(versions={device.tags[4]: 1}), layout)
        assert device.unlock(loader, refresh=True)["state"] == "ready"
        second = listed()
        assert len(set(second) - set(first)) == len(set(first) - set(second)) == 1
        device.place_tar(older_layout(device.images(seed="other")), key_fragment=b"another")
        assert str(device.unlock(loader, refresh=True)["error"]).startswith("wrong_key: ")
        device.place(device.images(seed="third"), layout)
        damage_in_the_middle(device)
        assert device.unlock(loader, refresh=True)["state"] == "error"
        assert listed() == second


@pytest.mark.skipif(shutil.which("podman") is None, reason="needs podman")
@pytest.mark.parametrize("layout", [older_layout, oci_layout], ids=["older", "oci"])
def test_podman(tmp_path: Path, layout: Any) -> None:
    """Podman has no engine to ask: the loader runs its command."""
    with Device(tmp_path) as device:
        others = podman_listed()
        loader = device.loader({"DOCKER_CLI": "podman"})
        device.place(device.images(), layout)
        try:
            assert device.unlock(loader) == {"state": "ready", "error": None}
            first = podman_listed()
            assert len(first) == len(others) + 7
            assert device.unlock(loader, refresh=True)["state"] == "ready"
            assert podman_listed() == first
            device.place(device.images(versions={device.tags[4]: 1}), layout)
            assert device.unlock(loader, refresh=True)["state"] == "ready"
            second = podman_listed()
            assert len(set(second) - set(first)) == len(set(first) - set(second)) == 1
            device.place_tar(older_layout(device.images(seed="other")), key_fragment=b"another")
            assert str(device.unlock(loader, refresh=True)["error"]).startswith("wrong_key: ")
            device.place(device.images(seed="third"), layout)
            damage_in_the_middle(device)
            assert device.unlock(loader, refresh=True)["state"] == "error"
            assert podman_listed() == second
        finally:
            podman(["rmi", "--force", *device.tags])


def damage_in_the_middle(device: Device) -> None:
    data = bytearray(device.archive.read_bytes())
    data[len(data) // 2] ^= 1
    device.archive.write_bytes(data)


def podman(arguments: list[str]) -> str:
    return subprocess.run(
        ["podman", *arguments], check=False, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S
    ).stdout


def podman_listed() -> list[str]:
    return sorted(podman(["images", "--no-trunc", "--format", "{{.Repository}}:{{.Tag}} {{.ID}}"]).splitlines())
