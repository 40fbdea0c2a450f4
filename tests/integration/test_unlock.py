"""The unlock run over real parts: the service as a process, the development API, a real engine."""

import functools
import gzip
import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from azaion_devkit.device import EMAIL, PASSWORD, Device, docker, image_ids, image_list
from azaion_devkit.image_sets import SyntheticImage, gzipped, make_images, oci_layout, older_layout

pytestmark = [pytest.mark.engine, pytest.mark.usefixtures("docker_host")]

LAYOUTS: dict[str, Callable[..., Iterator[bytes]]] = {
    "older": older_layout,
    "oci": oci_layout,
    "oci-packed": functools.partial(oci_layout, packed=True),
    "older-gzip": lambda images: gzipped(older_layout(images)),
    "oci-gzip": lambda images: gzipped(oci_layout(images)),
}


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Device]:
    with Device(tmp_path) as device:
        yield device


def ids(images: list[SyntheticImage]) -> list[str]:
    return [image.config_digest for image in images]


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_seven_images_reach_the_engine_under_their_own_ids(device: Device, layout: Any) -> None:
    images = device.place(device.images(), layout)
    loader = device.loader()
    assert loader.get("/unlock/status") == {"state": "idle", "error": None}
    assert loader.unlock(EMAIL, PASSWORD).json() == {"state": "authenticating"}
    status, states = loader.wait_for_unlock()
    assert status == {"state": "ready", "error": None}
    order = ["authenticating", "downloading_key", "decrypting", "loading_images", "ready"]
    assert [state for state in order if state in states] == states
    assert image_ids(device.tags) == ids(images)
    assert "azaion-loader/" not in image_list()
    progress = loader.get("/unlock/progress")
    assert (progress["percent"], progress["images_done"], progress["images_total"]) == (100.0, 7, 7)
    assert progress["bytes_done"] == progress["bytes_total"] > 7 * 20_000


def test_ready_is_answered_at_once_and_refresh_compares(device: Device) -> None:
    device.place(device.images())
    loader = device.loader()
    assert device.unlock(loader)["state"] == "ready"
    calls = len(device.api.calls)
    assert loader.unlock(EMAIL, PASSWORD).json() == {"state": "ready"}
    assert len(device.api.calls) == calls
    newer = device.place(device.images(versions={device.tags[2]: 1}))
    assert device.unlock(loader)["state"] == "ready"
    assert image_ids(device.tags) != ids(newer)
    assert device.unlock(loader, refresh=True) == {"state": "ready", "error": None}
    assert image_ids(device.tags) == ids(newer)


def test_images_that_are_present_by_name_need_no_network(device: Device) -> None:
    images = device.place(device.images())
    assert device.unlock(device.loader())["state"] == "ready"
    device.api.stop()
    loader = device.loader()
    assert device.unlock(loader)["state"] == "ready"
    device.archive.unlink()
    loader = device.loader()
    assert loader.unlock(EMAIL, PASSWORD).json() == {"state": "ready"}
    assert image_ids(device.tags) == ids(images)


def test_without_archive_and_images_the_answer_is_404(device: Device) -> None:
    answer = device.loader().unlock(EMAIL, PASSWORD)
    assert answer.status_code == 404
    assert answer.json()["code"] == "archive_not_found"
    assert "Encrypted archive not found" in answer.json()["detail"]


def test_superseded_images_of_earlier_runs_are_removed_and_those_of_others_stay(device: Device) -> None:
    first = device.place(device.images())
    loader = device.loader()
    assert device.unlock(loader)["state"] == "ready"
    foreign = make_images(["someone/else:1"], shared_bytes=100, unique_bytes=100, seed=device.version)[0]
    device.place(device.images(seed="another"))
    assert device.unlock(loader, refresh=True)["state"] == "ready"
    present = docker(["image", "ls", "--all", "--quiet", "--no-trunc"])
    assert not any(image.config_digest in present for image in first)
    assert foreign.config_digest not in present


@pytest.mark.parametrize("present", [False, True], ids=["nothing-loaded", "older-loaded"])
def test_a_wrong_key_changes_nothing(device: Device, present: bool) -> None:
    if present:
        device.place(device.images())
        assert device.unlock(device.loader())["state"] == "ready"
    device.place_tar(older_layout(device.images(seed="new")), key_fragment=b"another fragment")
    before = image_list()
    status = device.unlock(device.loader(), refresh=True)
    assert status["state"] == "error"
    assert status["error"].startswith("wrong_key: ")
    assert image_list() == before


BAD_ARCHIVES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda data: data[:0], "archive_invalid"),
    "16 bytes": (lambda data: data[:16], "archive_invalid"),
    "not a multiple of 16": (lambda data: data[:-1], "archive_invalid"),
    "cut by a block": (lambda data: data[:-16], "archive_invalid"),
    "cut in the middle": (lambda data: data[: len(data) // 32 * 16], "archive_invalid"),
    "trailing block": (lambda data: data + bytes(16), "archive_invalid"),
}


@pytest.mark.parametrize(("damage", "code"), BAD_ARCHIVES.values(), ids=BAD_ARCHIVES.keys())
def test_a_damaged_file_changes_nothing(device: Device, damage: Callable[[bytes], bytes], code: str) -> None:
    device.place(device.images())
    device.archive.write_bytes(damage(device.archive.read_bytes()))
    before = image_list()
    status = device.unlock(device.loader())
    assert (status["state"], status["error"].split(":")[0]) == ("error", code)
    assert image_list() == before


def test_random_bytes_under_the_right_key_are_no_archive(device: Device) -> None:
    device.place_tar([random.Random(1).randbytes(4096)])
    assert device.unlock(device.loader())["error"].startswith("archive_invalid: ")


def test_a_missing_required_image_is_named(device: Device) -> None:
    device.place(device.images()[:6])
    status = device.unlock(device.loader())
    assert status["error"].startswith("archive_incomplete: ")
    assert device.tags[6] in status["error"]


def test_another_architecture_is_refused_before_the_load(device: Device) -> None:
    device.place(device.images(architecture="s390x"))
    before = image_list()
    assert device.unlock(device.loader())["error"].startswith("wrong_platform: ")
    assert image_list() == before


def test_flips_and_cuts_never_reach_the_engine(device: Device) -> None:
    """A sample; the fault suite runs the whole series over both layouts."""
    device.place(device.images(shared_bytes=3000, unique_bytes=1000))
    good = device.archive.read_bytes()
    loader, before, chance = device.loader(), image_list(), random.Random(7)
    for _ in range(20):
        damaged = bytearray(good)
        damaged[chance.randrange(len(good))] ^= 1 << chance.randrange(8)
        device.archive.write_bytes(damaged)
        assert device.unlock(loader)["state"] == "error"
    for _ in range(5):
        device.archive.write_bytes(good[: chance.randrange(len(good))])
        assert device.unlock(loader)["state"] == "error"
    assert image_list() == before
    device.archive.write_bytes(good)
    assert device.unlock(loader)["state"] == "ready"


def test_a_bomb_is_bounded(device: Device) -> None:
    device.place_tar([gzip.compress(bytes(50_000_000))])
    status = device.unlock(device.loader({"ARCHIVE_MAX_BYTES": "1000000"}))
    assert status["error"].startswith("archive_invalid: ")


FAILURES = [
    ("wrong password", {"status": 409, "body": '{"ErrorCode": 30, "Message": "x"}'}, "/login", "invalid_credentials"),
    ("locked", {"status": 423, "headers": {"Retry-After": "60"}}, "/login", "account_locked"),
    ("too many tries", {"status": 429}, "/login", "rate_limited"),
    ("nonsense", {"status": 200, "body": "<html>"}, "/login", "upstream_error"),
    ("server error", {"status": 500}, "/login", "upstream_error"),
    ("key refused", {"status": 403, "times": 2}, "/binary-split", "forbidden"),
    ("token refused", {"status": 401, "times": 2}, "/binary-split", "not_authenticated"),
    ("no key", {"status": 500}, "/binary-split", "upstream_error"),
    ("empty key", {"status": 200, "body": b""}, "/binary-split", "upstream_error"),
]


@pytest.mark.parametrize(("name", "fault", "path", "code"), FAILURES, ids=[failure[0] for failure in FAILURES])
def test_a_failing_api_ends_the_run_and_the_next_one_works(
    device: Device, name: str, fault: dict[str, Any], path: str, code: str
) -> None:
    device.place(device.images())
    loader = device.loader()
    device.api.fail_next(path, **fault)
    status = device.unlock(loader)
    assert (status["state"], status["error"].split(":")[0]) == ("error", code)
    assert device.unlock(loader) == {"state": "ready", "error": None}


def test_an_api_that_is_gone_is_unavailable(device: Device) -> None:
    device.place(device.images())
    loader = device.loader()
    device.api.stop()
    assert device.unlock(loader)["error"].startswith("upstream_unavailable: ")


def test_without_an_engine_the_run_says_so_and_later_works(device: Device, docker_host: str) -> None:
    device.place(device.images())
    loader = device.loader({"DOCKER_HOST": "unix:///nowhere/docker.sock"})
    assert device.unlock(loader)["error"].startswith("docker_unavailable: ")
    loader.stop()
    loader = device.loader({"DOCKER_CLI": "/nowhere/docker"})
    assert device.unlock(loader)["error"].startswith("docker_unavailable: ")
    loader.stop()
    assert device.unlock(device.loader())["state"] == "ready"


def test_a_hundred_posts_start_one_run(device: Device) -> None:
    device.place(device.images())
    loader = device.loader()
    answers: list[requests.Response] = []
    threads = [threading.Thread(target=lambda: answers.append(loader.unlock(EMAIL, PASSWORD))) for _ in range(100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {answer.status_code for answer in answers} == {200}
    assert loader.wait_for_unlock()[0]["state"] == "ready"
    assert device.api.count("/login") == 1
    assert device.api.count("/binary-split") == 1


def test_a_second_process_answers_from_the_journal_and_starts_nothing(device: Device) -> None:
    device.place(device.images(shared_bytes=30_000_000))
    first, second = device.loader(), device.loader()
    first.unlock(EMAIL, PASSWORD).raise_for_status()
    assert second.unlock(EMAIL, PASSWORD).json()["state"] != "idle"
    assert second.get("/unlock/status")["state"] != "idle"
    assert first.wait_for_unlock()[0]["state"] == "ready"
    assert second.wait_for_unlock()[0]["state"] == "ready"
    assert device.api.count("/binary-split") == 1
    assert second.get("/unlock/progress")["percent"] == 100.0


def test_the_plaintext_tar_of_an_older_version_is_removed(device: Device) -> None:
    device.place(device.images())
    legacy, other = device.archive.with_suffix(".tar"), device.folder / "other.tar"
    legacy.write_bytes(b"plaintext")
    other.write_bytes(b"not ours")
    assert device.unlock(device.loader())["state"] == "ready"
    assert not legacy.exists()
    assert other.exists()


def test_no_layer_byte_is_written_outside_the_engine(device: Device) -> None:
    canary = b"CANARY-OF-A-LAYER"
    device.place(device.images(canary=canary))
    loader = device.loader()
    assert device.unlock(loader)["state"] == "ready"
    device.place(device.images(canary=canary, seed="x")[:6])
    assert device.unlock(loader, refresh=True)["state"] == "error"
    for path in device.folder.rglob("*"):
        if path.is_file():
            assert canary not in path.read_bytes(), path


def test_sigterm_in_a_run_ends_it_and_the_next_one_goes_on(device: Device) -> None:
    images = device.place(device.images(shared_bytes=60_000_000, unique_bytes=10_000_000))
    before = image_list()
    loader = device.loader()
    loader.unlock(EMAIL, PASSWORD).raise_for_status()
    while loader.get("/unlock/status")["state"] != "loading_images":
        pass
    assert loader.stop() == 0
    loader = device.loader()
    status = loader.get("/unlock/status")
    assert status["state"] == "error"
    assert status["error"].startswith("interrupted: ")
    assert [line for line in image_list().splitlines() if "azaion-loader/" not in line] == before.splitlines()
    assert device.unlock(loader)["state"] == "ready"
    assert image_ids(device.tags) == ids(images)
    assert "azaion-loader/" not in image_list()
