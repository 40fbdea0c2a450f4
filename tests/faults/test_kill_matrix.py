"""Every stage of a run × everything that can die: restart, poll, unlock again."""  # noqa: RUF002

import re
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from azaion_devkit.device import Device, docker, image_ids, image_list
from azaion_devkit.engine import Engine
from azaion_devkit.engine_proxy import EngineProxy
from azaion_devkit.image_sets import SyntheticImage
from azaion_devkit.loader_process import LoaderProcess
from azaion_devkit.mutant import mutant
from azaion_devkit.paused_run import COMMITTED, NEEDS_API, STAGES, pause

pytestmark = [pytest.mark.engine, pytest.mark.family("kill matrix")]

WHOLE_RUN = ["authenticating", "downloading_key", "decrypting", "loading_images", "ready"]
REPAIR_TIMEOUT_S = 20.0
# Longer than a loader takes to end a client, and less than it gives a switch to finish.
SLOW_TAG_S = 1.5
FAULTS = ["sigkill", "sigterm", "engine-restarted", "engine-killed", "api-gone"]
FAST = {("sigkill", "downloading_key"), ("sigkill", "loading_images"), ("sigkill", "fourth-move")} | {
    ("sigterm", "last-move")
}
CASES = [
    pytest.param(fault, stage, id=f"{fault}-{stage}", marks=[] if (fault, stage) in FAST else [pytest.mark.slow])
    for fault in FAULTS
    for stage in STAGES
]


def ids(images: list[SyntheticImage]) -> list[str]:
    return [image.config_digest for image in images]


def listed(images: list[SyntheticImage]) -> list[str]:
    return sorted(f"{image.tag} {image.config_digest}" for image in images)


def states_of_last_run(loader: LoaderProcess) -> list[str]:
    """The log has every state of a run, where polls may miss one."""
    found = re.findall(r"Unlock run ([0-9a-f]{16}): (\w+)", loader.log.read_text())
    return ["authenticating", *(state for run, state in found if run == found[-1][0])]


def wait_for_ids(device: Device, expected: list[str]) -> None:
    give_up = time.monotonic() + REPAIR_TIMEOUT_S
    while image_ids(device.tags) != expected:
        assert time.monotonic() < give_up, "the tags were not put back"
        time.sleep(0.05)


@pytest.mark.parametrize(("fault", "stage"), CASES)
def test_whatever_dies_the_device_comes_back(
    device: Device, own_engine: Engine, proxy: EngineProxy, fault: str, stage: str
) -> None:
    check_recovery(device, own_engine, proxy, fault, stage, {})


@pytest.mark.parametrize(
    "stage",
    [
        pytest.param("first-rollback-tag", marks=pytest.mark.slow),
        pytest.param("fourth-move"),
        pytest.param("last-move", marks=pytest.mark.slow),
    ],
)
def test_a_stop_lets_a_switch_that_has_begun_finish(device: Device, proxy: EngineProxy, stage: str) -> None:
    """A tag that the engine has taken may be carried out whatever becomes of its client, so none is interrupted."""
    others = image_list().splitlines()
    device.place(device.images(seed="first"))
    environment = {"DOCKER_HOST": proxy.host}
    loader = device.loader(environment)
    assert device.unlock(loader)["state"] == "ready"
    second = device.place(device.images(seed="second"))
    hold = pause(stage, device, proxy, loader)
    engine_is_slow = threading.Timer(SLOW_TAG_S, hold.release)
    engine_is_slow.start()
    assert loader.stop() == 0
    engine_is_slow.join()
    assert image_ids(device.tags) == ids(second)
    after = device.loader(environment)
    assert after.get("/unlock/status") == {"state": "idle", "error": None}
    assert device.unlock(after, refresh=True) == {"state": "ready", "error": None}
    assert image_list().splitlines() == sorted(others + listed(second))


MUTATIONS = {
    "the journal keeps no switch": ("unlock_journal", "for m in record.switch]", "for m in ()]", "fourth-move"),
    "a killed run seems to go on": ("unlock", "if record.state.in_progress:\n            record", "if False:\n            record", "loading_images"),  # noqa: E501
    "left-overs are not swept": ("unlock_run", "present = switch.sweep(present, left)", "pass", "after-the-commit"),  # noqa: E501, RUF100
}  # fmt: skip


@pytest.mark.proof
@pytest.mark.parametrize(
    ("module", "text", "replacement", "stage"),
    [pytest.param(*mutation, id=name, marks=pytest.mark.slow) for name, mutation in MUTATIONS.items()],
)
def test_the_family_sees(  # noqa: PLR0917
    device: Device,
    own_engine: Engine,
    proxy: EngineProxy,
    tmp_path: Path,
    module: str,
    text: str,
    replacement: str,
    stage: str,
) -> None:
    with pytest.raises(AssertionError):
        check_recovery(device, own_engine, proxy, "sigkill", stage, mutant(tmp_path, module, text, replacement))
    for tag in docker(["image", "ls", "--format", "{{.Repository}}:{{.Tag}}", "azaion-loader/*"]).split():
        docker(["image", "rm", tag], check=False)


def check_recovery(  # noqa: PLR0917
    device: Device, own_engine: Engine, proxy: EngineProxy, fault: str, stage: str, environment: dict[str, str]
) -> None:
    others = image_list().splitlines()
    first = device.place(device.images(seed="first"))
    environment = {"DOCKER_HOST": proxy.host, **environment}
    loader = device.loader(environment)
    assert device.unlock(loader)["state"] == "ready"
    second = device.place(device.images(seed="second"))
    hold = pause(stage, device, proxy, loader)
    assert loader.get("/unlock/status") == {"state": STAGES[stage], "error": None}
    if fault in {"sigkill", "sigterm"}:
        loader = _loader_ends(device, environment, loader, fault, stage, hold, first, second)
    elif fault == "api-gone":
        device.api.stop()
        hold.release()
        status, _ = loader.wait_for_unlock()
        if stage in NEEDS_API:
            assert status["error"].startswith("upstream_unavailable: ")
            assert image_ids(device.tags) == ids(first)
        else:
            assert status == {"state": "ready", "error": None}
        device.api.start()
    else:
        _engine_ends(own_engine, loader, fault, stage, hold, device, first)
    assert device.unlock(loader, refresh=True) == {"state": "ready", "error": None}
    assert states_of_last_run(loader) == WHOLE_RUN
    assert image_list().splitlines() == sorted(others + listed(second))


def _loader_ends(  # noqa: PLR0917
    device: Device,
    environment: dict[str, str],
    loader: LoaderProcess,
    fault: str,
    stage: str,
    hold: Any,
    first: list[SyntheticImage],
    second: list[SyntheticImage],
) -> LoaderProcess:
    if fault == "sigkill":
        loader.kill()
    else:
        assert loader.stop() == 0
    # A request that was on its way reaches the engine, except in every other stage, where it is lost.
    if list(STAGES).index(stage) % 2:
        hold.drop()
    else:
        hold.release()
    after = device.loader(environment)
    status = after.get("/unlock/status")
    if fault == "sigterm" and stage in COMMITTED:
        # The run had done its work; what it could not clean up is left to the next one.
        assert status == {"state": "idle", "error": None}
    else:
        assert status["state"] == "error"
        assert re.match(rf"interrupted: .*('{STAGES[stage]}'|stopping)", status["error"])
    wait_for_ids(device, ids(second if stage in COMMITTED else first))
    return after


def _engine_ends(  # noqa: PLR0917
    engine: Engine,
    loader: LoaderProcess,
    fault: str,
    stage: str,
    hold: Any,
    device: Device,
    first: list[SyntheticImage],
) -> None:
    if fault == "engine-killed":
        engine.kill()
        hold.release()
        status, _ = loader.wait_for_unlock()
        # After the commit nothing of the engine's can undo the success.
        if stage not in COMMITTED:
            assert status["error"].startswith("docker_unavailable: "), status
        engine.start()
    else:
        engine.stop()
        engine.start()
        hold.release()
        status, _ = loader.wait_for_unlock()
        assert status["state"] == "ready" or status["error"].startswith("docker_unavailable: "), status
        if status["state"] == "error":
            assert image_ids(device.tags) == ids(first)
            assert "azaion-loader/" not in image_list()
    assert loader.get("/health") == {"status": "healthy"}
