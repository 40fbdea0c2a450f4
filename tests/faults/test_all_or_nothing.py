"""With one version loaded, another one that fails at any point leaves tags, images and containers as they were."""

import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from azaion_devkit.device import Device, docker, image_ids, image_list
from azaion_devkit.engine import Engine
from azaion_devkit.engine_proxy import EngineProxy
from azaion_devkit.mutant import mutant

pytestmark = [pytest.mark.engine, pytest.mark.family("all or nothing")]

# An engine that lost its client after the last byte of a load registers the images this much later at most.
LATE_S = 2.5

Arrange = Callable[[EngineProxy], None]


def refuse_all(proxy: EngineProxy, message: str) -> None:
    """Refuse every load, also those by which the loader tries another way."""
    for number in range(1, 40):
        proxy.answer("/images/load", nth=number, status=500, message=message)


POINTS: dict[str, Arrange] = {
    "load cut at its head": lambda proxy: proxy.break_off("/images/load", after_bytes=0),
    "load cut in the middle": lambda proxy: proxy.break_off("/images/load", after_bytes=60_000),
    "answer of the load lost": lambda proxy: proxy.break_off("/images/load", after_bytes=None),
    "engine finishes a lost load late": lambda proxy: proxy.finish_late("/images/load", late_s=1.5),
    "every load refused": lambda proxy: refuse_all(proxy, "no such driver"),
    "engine's disk full": lambda proxy: refuse_all(proxy, "no space left on device"),
    "first rollback tag": lambda proxy: proxy.answer("/tag?", nth=1, status=500, message="broken"),
    "last rollback tag cut": lambda proxy: proxy.break_off("/tag?", nth=7),
    "first move": lambda proxy: proxy.answer("/tag?", nth=8, status=500, message="broken"),
    "third move": lambda proxy: proxy.answer("/tag?", nth=10, status=500, message="broken"),
    "third move, answer lost": lambda proxy: proxy.break_off("/tag?", nth=10, after_bytes=None),
    "last move": lambda proxy: proxy.break_off("/tag?", nth=14),
}
FAST = {"engine finishes a lost load late", "third move"}
CASES = [
    pytest.param(arrange, id=name, marks=[] if name in FAST else [pytest.mark.slow]) for name, arrange in POINTS.items()
]


def make_container(reference: str) -> str:
    return docker(["container", "create", reference]).strip()


def container_image(container: str) -> str:
    return docker(["container", "inspect", "--format", "{{.Image}}", container]).strip()


@pytest.fixture
def containers() -> Iterator[list[str]]:
    made: list[str] = []
    yield made
    if made:
        docker(["container", "rm", "--force", *made], check=False)


def check_unchanged(  # noqa: PLR0917
    device: Device,
    proxy_host: str,
    arrange: Callable[[], None],
    calm: Callable[[], None],
    containers: list[str],
    environment: dict[str, str] | None = None,
) -> None:
    """Load one version, use it, let another one fail, and compare; then let it succeed."""
    first = device.place(device.images(seed="first"))
    loader = device.loader({"DOCKER_HOST": proxy_host, **(environment or {})})
    assert device.unlock(loader)["state"] == "ready"
    containers.append(make_container(device.tags[3]))
    before, used = image_list(), container_image(containers[0])
    device.place(device.images(seed="second"))
    arrange()
    status = device.unlock(loader, refresh=True)
    assert status["state"] == "error"
    assert status["error"].split(":")[0] in {"docker_failed", "docker_unavailable", "disk_full"}
    assert image_list() == before
    time.sleep(LATE_S)  # what an engine does late shows late: there is nothing to wait for but time
    assert image_list() == before
    assert container_image(containers[0]) == used
    calm()
    assert device.unlock(loader, refresh=True) == {"state": "ready", "error": None}
    assert image_ids(device.tags) != [image.config_digest for image in first]
    assert container_image(containers[0]) == used
    assert "azaion-loader/" not in image_list()


@pytest.mark.parametrize("arrange", CASES)
def test_a_failure_leaves_everything_as_it_was(
    device: Device, proxy: EngineProxy, containers: list[str], arrange: Arrange
) -> None:
    check_unchanged(device, proxy.host, lambda: arrange(proxy), proxy.clear, containers)


@pytest.mark.parametrize("k", [pytest.param(k, marks=pytest.mark.slow) for k in (1, 3, 7)])
def test_an_engine_that_registers_only_some_images_is_seen_through(
    device: Device, proxy: EngineProxy, tmp_path: Path, k: int
) -> None:
    """The client says that all is well, and yet some images are missing."""
    device.place(device.images(seed="first"))
    lying = tmp_path / "docker"
    real = shutil.which("docker")
    lying.write_text(
        "#!/bin/sh\n"
        f'if [ "$1" != load ] || [ ! -e {tmp_path}/lie ]; then exec {real} "$@"; fi\n'
        f'{real} "$@" || exit $?\n'
        f"{real} image ls --format '{{{{.Repository}}}}:{{{{.Tag}}}}' azaion-loader/staged | head -n {k} "
        f"| xargs {real} image rm >/dev/null\n"
    )
    lying.chmod(0o755)
    loader = device.loader({"DOCKER_CLI": str(lying)})
    assert device.unlock(loader)["state"] == "ready"
    before = image_list()
    device.place(device.images(seed="second"))
    (tmp_path / "lie").touch()
    assert device.unlock(loader, refresh=True)["error"].startswith("images_missing: ")
    assert image_list() == before
    (tmp_path / "lie").unlink()
    assert device.unlock(loader, refresh=True)["state"] == "ready"


@pytest.mark.slow
def test_a_running_container_goes_on(device: Device, own_engine: Engine, proxy: EngineProxy) -> None:
    """A real process in a container made from the old version, before, during and after a failure and a success."""
    busybox = shutil.which("busybox")
    # ldd fails for a program that needs no libraries; the images have none.
    if busybox is None or subprocess.run(["ldd", busybox], capture_output=True, check=False).returncode == 0:
        pytest.skip("needs busybox-static")
    first = device.place(device.images(seed="first"))
    loader = device.loader({"DOCKER_HOST": proxy.host})
    assert device.unlock(loader)["state"] == "ready"
    arguments = ["run", "--detach", "--network", "none", "--volume", f"{busybox}:/busybox:ro", "--entrypoint"]
    container = docker([*arguments, "/busybox", device.tags[0], "sleep", "600"]).strip()
    try:
        device.place(device.images(seed="second"))
        proxy.break_off("/images/load", after_bytes=60_000)
        assert device.unlock(loader, refresh=True)["state"] == "error"
        assert device.unlock(loader, refresh=True)["state"] == "ready"
        state = docker(["container", "inspect", "--format", "{{.State.Running}} {{.Image}}", container]).split()
        assert state == ["true", first[0].config_digest]
    finally:
        docker(["container", "rm", "--force", container], check=False)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", ["load cut in the middle", "answer of the load lost", "third move", "last move"])
def test_the_containerd_store_keeps_the_old_version_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, containerd_engine: Engine, containers: list[str], name: str
) -> None:
    monkeypatch.setenv("DOCKER_HOST", containerd_engine.host)
    folder = Path(tempfile.mkdtemp(prefix="azaion-proxy-", dir="/tmp"))
    with EngineProxy(containerd_engine.host, folder / "s") as proxy, Device(tmp_path) as device:
        check_unchanged(device, proxy.host, lambda: POINTS[name](proxy), proxy.clear, containers)
        docker(["container", "rm", "--force", *containers])
        containers.clear()
    shutil.rmtree(folder)


MUTATIONS = {
    "images that appear late stay": (
        "unlock_run",
        "switch.discard_late(staged, given_bytes, self._cancelled)",
        "switch.discard(staged)",
        "engine finishes a lost load late",
    ),
    "tags are not put back": (
        "image_switch",
        "            self._restore_after_failure(replace(record, switch=moves))\n",
        "",
        "third move",
    ),
}


@pytest.mark.proof
@pytest.mark.parametrize(
    ("module", "text", "replacement", "point"),
    [pytest.param(*mutation, id=name, marks=pytest.mark.slow) for name, mutation in MUTATIONS.items()],
)
def test_the_family_sees(  # noqa: PLR0917
    device: Device,
    proxy: EngineProxy,
    containers: list[str],
    tmp_path: Path,
    module: str,
    text: str,
    replacement: str,
    point: str,
) -> None:
    environment = mutant(tmp_path, module, text, replacement)
    with pytest.raises(AssertionError):
        check_unchanged(device, proxy.host, lambda: POINTS[point](proxy), proxy.clear, containers, environment)
    for tag in docker(["image", "ls", "--format", "{{.Repository}}:{{.Tag}}", "azaion-loader/*"]).split():
        docker(["image", "rm", tag], check=False)
