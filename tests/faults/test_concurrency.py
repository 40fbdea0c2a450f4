"""Many clients and two loader processes on one device: one run, one log-in, one key, and the same end for all."""

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from azaion_devkit.device import EMAIL, PASSWORD, Device, image_ids
from azaion_devkit.mutant import mutant

pytestmark = [pytest.mark.engine, pytest.mark.family("concurrency")]

POSTS = 100


def check_two_processes(device: Device, environment: dict[str, str]) -> None:
    """Post from many clients to two loaders on one data directory at once."""
    images = device.place(device.images(shared_bytes=20_000_000))
    loaders = [device.loader(environment) for _ in range(2)]
    # The run can't be over before the last post.
    hold = device.api.hold_next("/login")

    def post(number: int) -> tuple[int, str]:
        answer = loaders[number % 2].unlock(EMAIL, PASSWORD)
        return answer.status_code, answer.json()["state"]

    with ThreadPoolExecutor(POSTS) as clients:
        answers = Counter(clients.map(post, range(POSTS)))
    hold.release()
    assert answers == {(200, "authenticating"): POSTS}
    for loader in loaders:
        assert loader.wait_for_unlock()[0] == {"state": "ready", "error": None}
    assert device.api.count("/binary-split") == 1
    assert device.api.count("/login") == 1
    assert image_ids(device.tags) == [image.config_digest for image in images]


def test_two_processes_are_one_device(device: Device, tally: Callable[[int], None]) -> None:
    check_two_processes(device, {})
    tally(POSTS)


@pytest.mark.slow
def test_a_killed_process_leaves_the_device_to_the_other_one(device: Device) -> None:
    """The second loader tells of the first one's run, sees its end, and takes over."""
    device.place(device.images())
    first, second = device.loader(), device.loader()
    hold = device.api.hold_next("/binary-split")
    first.unlock(EMAIL, PASSWORD).raise_for_status()
    assert hold.reached.wait(30)
    assert second.get("/unlock/status") == {"state": "downloading_key", "error": None}
    first.kill()
    hold.drop()
    status = second.get("/unlock/status")
    assert status["state"] == "error"
    assert status["error"].startswith("interrupted: ")
    assert device.unlock(second) == {"state": "ready", "error": None}
    first.start()
    assert first.get("/unlock/status")["state"] in {"idle", "ready"}


@pytest.mark.slow
@pytest.mark.proof
def test_the_family_sees_two_runs(device: Device, tmp_path: Path) -> None:
    environment = mutant(tmp_path, "unlock", "        return self._lock.try_acquire()\n", "        return True\n")
    with pytest.raises(AssertionError):
        check_two_processes(device, environment)
