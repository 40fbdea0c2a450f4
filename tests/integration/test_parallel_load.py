"""Loads in several streams on each kind of engine: only what is missing, all or nothing, and nothing left behind."""

import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from azaion_devkit.device import EMAIL, PASSWORD, Device, docker, image_list
from azaion_devkit.engine import Engine
from azaion_devkit.engine_proxy import EngineProxy
from azaion_devkit.image_sets import SyntheticImage, gzipped, oci_layout, older_layout

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

MB = 1_000_000
READY = {"state": "ready", "error": None}
LOAD = "/images/load"
CLEARED_WITHIN_S = 20.0


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for what the engine does on its own after a client is gone."""
    give_up = time.monotonic() + CLEARED_WITHIN_S
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.05)


@pytest.fixture(
    scope="module",
    params=[
        "found",
        pytest.param("overlay2", marks=pytest.mark.slow),
        pytest.param("containerd", marks=pytest.mark.slow),
    ],
)
def host(request: pytest.FixtureRequest) -> Iterator[str]:
    """The engine at hand, and Docker 26.1 with both of its stores."""
    if request.param == "found":
        yield request.getfixturevalue("docker_host")
        return
    engine = Engine.trixie(request.param)
    running = engine.pid is not None
    engine.start()
    yield engine.host
    if not running:
        engine.stop()


@pytest.fixture
def proxy(host: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[EngineProxy]:
    monkeypatch.setenv("DOCKER_HOST", host)
    with EngineProxy(host, tmp_path / "p.sock") as proxy:
        yield proxy


@pytest.fixture
def device(tmp_path: Path, proxy: EngineProxy) -> Iterator[Device]:
    environment = {"DOCKER_HOST": proxy.host, "UNLOCK_PARALLEL": "3"}
    with Device(tmp_path / "device", environment) as device:
        yield device


def layers(device: Device) -> list[list[str]]:
    """Return the layers of the images that stand under the device's tags."""
    template = '{{join .RootFS.Layers " "}}'
    return [docker(["image", "inspect", "--format", template, tag]).split() for tag in device.tags]


def wanted(images: list[SyntheticImage]) -> list[list[str]]:
    return [list(image.diff_ids) for image in images]


def is_containerd() -> bool:
    return "io.containerd.snapshotter" in docker(["info", "--format", "{{.DriverStatus}}"])


def left_by_loads() -> list[Path]:
    """Return what a classic engine keeps of loads that are not over."""
    return list((Path(docker(["info", "--format", "{{.DockerRootDir}}"]).strip()) / "tmp").glob("docker-import-*"))


def damage_last_layer(device: Device) -> None:
    """Flip a bit in the last large layer: the proof finds it when most is already staged."""
    data = bytearray(device.archive.read_bytes())
    data[-3 * MB] ^= 1
    device.archive.write_bytes(data)


@pytest.mark.parametrize("layout", [older_layout, oci_layout], ids=["older", "oci"])
def test_shared_layers_come_once_and_only_what_is_missing(device: Device, proxy: EngineProxy, layout: Any) -> None:
    first = device.place(device.images(shared_bytes=20 * MB, unique_bytes=4 * MB), layout)
    loader = device.loader()
    assert device.unlock(loader) == READY
    assert layers(device) == wanted(first)
    assert proxy.count(LOAD) == 8
    progress = loader.get("/unlock/progress")
    assert progress["note"] is None or "whole" not in progress["note"]
    # Each byte once to be proved and once to be given: the shared layer does not count seven times.
    assert 2 * 48 * MB < progress["bytes_total"] < 2 * 50 * MB
    second = device.place(
        device.images(shared_bytes=20 * MB, unique_bytes=4 * MB, versions={device.tags[3]: 1}), layout
    )
    assert device.unlock(loader, refresh=True) == READY
    assert layers(device) == wanted(second)
    assert proxy.count(LOAD) == 9
    assert loader.get("/unlock/progress")["bytes_total"] < 2 * 5 * MB
    assert device.unlock(loader, refresh=True) == READY
    assert proxy.count(LOAD) == 9
    assert "azaion-loader/" not in image_list()


def test_a_gzipped_archive_goes_in_one_stream(device: Device, proxy: EngineProxy) -> None:
    images = device.place(
        device.images(shared_bytes=9 * MB, unique_bytes=MB), lambda images: gzipped(older_layout(images))
    )
    loader = device.loader()
    assert device.unlock(loader) == READY
    assert layers(device) == wanted(images)
    assert proxy.count(LOAD) == 1


def test_a_refusal_is_followed_by_one_whole_stream_and_said(device: Device, proxy: EngineProxy) -> None:
    images = device.place(device.images(shared_bytes=20 * MB, unique_bytes=2 * MB))
    proxy.answer(LOAD, nth=3, status=500, message='layer "sha256:0" not found')
    loader = device.loader()
    assert device.unlock(loader) == READY
    assert layers(device) == wanted(images)
    assert "given whole images" in loader.get("/unlock/progress")["note"]
    assert "azaion-loader/" not in image_list()


def test_a_second_refusal_is_the_error(device: Device, proxy: EngineProxy) -> None:
    device.place(device.images(shared_bytes=20 * MB, unique_bytes=2 * MB))
    before = image_list()
    for number in range(1, 20):
        proxy.answer(LOAD, nth=number, status=500, message="no such thing")
    loader = device.loader()
    status = device.unlock(loader)
    assert (status["state"], status["error"].split(":")[0]) == ("error", "docker_failed")
    assert image_list() == before
    # Each of the eight streams at most once, and the whole one: no further try.
    assert proxy.count(LOAD) <= 9


def test_a_failing_third_stream_ends_all_and_leaves_nothing(device: Device, proxy: EngineProxy) -> None:
    images = device.place(device.images(shared_bytes=20 * MB, unique_bytes=2 * MB))
    before = image_list()
    proxy.answer(LOAD, nth=3, status=500, message="write /x: no space left on device")
    loader = device.loader()
    status = device.unlock(loader)
    assert (status["state"], status["error"].split(":")[0]) == ("error", "disk_full")
    wait_until(lambda: image_list() == before)
    assert loader.get("/unlock/progress")["percent"] < 100
    assert device.unlock(loader) == READY
    assert layers(device) == wanted(images)


def test_damage_found_while_bytes_are_staged_leaves_nothing(device: Device, proxy: EngineProxy) -> None:
    device.place(device.images(shared_bytes=60 * MB, unique_bytes=4 * MB))
    damage_last_layer(device)
    before = image_list()
    status = device.unlock(device.loader())
    assert status["error"].startswith("archive_invalid: ")
    assert image_list() == before
    if is_containerd():
        # Its blobs would stay after an abort: it is given nothing before the proof.
        assert proxy.count(LOAD) == 0
    else:
        assert proxy.count(LOAD) >= 1
        wait_until(lambda: not left_by_loads())
        assert image_list() == before


@pytest.mark.parametrize("seed", range(3))
def test_a_kill_at_any_moment_leaves_tags_alone_and_the_next_run_goes_on(
    device: Device, proxy: EngineProxy, seed: int
) -> None:
    older = device.place(device.images(shared_bytes=10 * MB, unique_bytes=MB))
    loader = device.loader()
    assert device.unlock(loader) == READY
    newer = device.place(device.images(shared_bytes=40 * MB, unique_bytes=4 * MB, seed="newer"))
    loads = proxy.count(LOAD)
    loader.unlock(EMAIL, PASSWORD, refresh=True).raise_for_status()
    wait_until(lambda: proxy.count(LOAD) > loads + seed * 2)
    time.sleep(random.Random(seed).random() * 0.2)
    loader.kill()
    assert layers(device) in (wanted(older), wanted(newer))
    loader = device.loader()
    assert device.unlock(loader, refresh=True) == READY
    assert layers(device) == wanted(newer)
    assert "azaion-loader/" not in image_list()


def test_a_stop_ends_within_a_second_or_so(device: Device, proxy: EngineProxy) -> None:
    device.place(device.images(shared_bytes=80 * MB, unique_bytes=8 * MB))
    loader = device.loader()
    loader.unlock(EMAIL, PASSWORD).raise_for_status()
    wait_until(lambda: proxy.count(LOAD) >= 2)
    started = time.monotonic()
    assert loader.stop() == 0
    assert time.monotonic() - started < 4
    assert device.unlock(device.loader()) == READY
