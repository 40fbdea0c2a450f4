"""Many loads and uploads at once: one transfer for each resource, never a mix, and nobody waits for ever."""

import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests

from azaion_devkit.fault_proxy import FaultProxy, Rule
from azaion_devkit.resource_rig import ResourceRig, pattern
from azaion_loader.files import FileLock
from azaion_loader.transfer_terms import TransferLimits

pytestmark = pytest.mark.store

COMMIT = "/resources/models"


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[ResourceRig]:
    with ResourceRig(tmp_path / "first") as running:
        yield running


def version(size: int, seed: int) -> bytes:
    return b"".join(pattern(size, seed))


def publish(rig: ResourceRig, name: str, plain: bytes) -> None:
    answer = rig.upload(name, plain)
    assert (answer.status_code, answer.json()) == (200, {"status": "ok"})


def loaded(rig: ResourceRig, name: str) -> bytes:
    answer = rig.load(name)
    assert answer.status_code == 200, answer.text
    return answer.content


def loaded_sha256(rig: ResourceRig, name: str) -> str:
    """Load without keeping the bytes: fifty copies would be many."""
    digest = hashlib.sha256()
    body = {"filename": name, "folder": "models"}
    with requests.post(f"{rig.url}/load/{name}", json=body, stream=True, timeout=100) as answer:
        assert answer.status_code == 200, answer.text
        for chunk in answer.iter_content(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def refused(answer: requests.Response, status: int, code: str) -> None:
    assert (answer.status_code, answer.json().get("code")) == (status, code), answer.text


def another_device(rig: ResourceRig, root: Path) -> ResourceRig:
    """Return a second device at the same Resource API and object store."""
    return ResourceRig(root, environment={"RESOURCE_API_URL": rig.api.url})


def through(rig: ResourceRig, proxy: FaultProxy) -> None:
    """Let the loader, started anew, reach the store through the proxy only."""
    rig.point_store_at(proxy.url)
    rig.stop_loader()
    rig.start_loader()


def wait_for(condition: Callable[[], bool]) -> None:
    give_up = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.01)


def test_fifty_loads_of_one_and_eight_of_others_are_one_transfer_each(rig: ResourceRig) -> None:
    contents = {"m.bin": version(20_000_000, 99), **{f"m{n}.bin": version(400_000, n) for n in range(8)}}
    sha256 = {name: hashlib.sha256(plain).hexdigest() for name, plain in contents.items()}
    for name, plain in contents.items():
        publish(rig, name, plain)
        rig.cached_path(name).unlink()
    with FaultProxy(rig.store.url) as proxy:
        through(rig, proxy)
        calls = rig.api.count("/resources/get/models")
        names = ["m.bin"] * 50 + [f"m{n}.bin" for n in range(8)]
        with ThreadPoolExecutor(58) as clients:
            got = list(clients.map(lambda name: loaded_sha256(rig, name), names))
        assert got == [sha256[name] for name in names]
        for name in contents:
            assert proxy.count("HEAD", f"/{name}.big") == 1, name
        # The bytes of all answers: each object once, in whatever ranges.
        assert proxy.body_bytes == sum(rig.big_path(name).stat().st_size for name in contents)
        # Those that came while a transfer ran share the next run, and with it one question for the small part.
        assert rig.api.count("/resources/get/models") - calls <= 8 + 10


def test_loads_of_different_resources_run_side_by_side(rig: ResourceRig) -> None:
    names = [f"m{n}.bin" for n in range(8)]
    for number, name in enumerate(names):
        publish(rig, name, version(400_000, number))
        rig.cached_path(name).unlink()
    with FaultProxy(rig.store.url) as proxy:
        through(rig, proxy)
        proxy.add(Rule("GET", times=8, stall_after_bytes=1000))
        with ThreadPoolExecutor(8) as clients:
            loads = [clients.submit(loaded, rig, name) for name in names]
            # All eight transfers have begun and none has ended.
            assert all(proxy.wait_for_stall(20) for _ in names)
            assert not any(load.done() for load in loads)
            proxy.release()
            assert [load.result(60) for load in loads] == [version(400_000, number) for number in range(8)]


def test_two_processes_share_one_transfer(tmp_path: Path) -> None:
    plain = version(3_000_000, 5)
    with ResourceRig(tmp_path / "first", separate=True) as rig:
        publish(rig, "m.bin", plain)
        rig.cached_path("m.bin").unlink()
        with FaultProxy(rig.store.url) as proxy:
            through(rig, proxy)
            shared = {"RESOURCE_API_URL": rig.api.url, "LOADER_DATA_DIR": str(rig.data_dir)}
            with ResourceRig(tmp_path / "second", environment=shared, separate=True) as second:
                with ThreadPoolExecutor(16) as clients:
                    got = list(clients.map(lambda one: loaded(one, "m.bin") == plain, [rig, second] * 8))
                assert all(got)
            assert proxy.body_bytes == rig.big_path("m.bin").stat().st_size


def test_uploads_during_loads_never_mix(rig: ResourceRig, tmp_path: Path) -> None:
    versions = [version(400_000, n) for n in range(6)]
    publish(rig, "m.bin", versions[0])
    done = threading.Event()

    def read(_: int) -> int:
        count = 0
        while not done.is_set():
            assert loaded(rig, "m.bin") in versions
            count += 1
        return count

    def read_elsewhere(device: ResourceRig) -> int:
        """Without a cache, so that each load sees what the store and the API have just then."""
        count = 0
        while not done.is_set():
            answer = device.load("m.bin")
            if answer.status_code == 200:
                assert answer.content in versions
                count += 1
            else:
                refused(answer, 502, "integrity_error")
            device.cached_path("m.bin").unlink(missing_ok=True)
        return count

    with another_device(rig, tmp_path / "second") as second, ThreadPoolExecutor(5) as clients:
        readers = [clients.submit(read, n) for n in range(4)]
        elsewhere = clients.submit(read_elsewhere, second)
        try:
            for plain in versions[1:]:
                publish(rig, "m.bin", plain)
                assert loaded(rig, "m.bin") == plain
        finally:
            done.set()
        assert sum(reader.result() for reader in readers) >= 4
        assert elsewhere.result() >= 1
        assert loaded(second, "m.bin") == versions[-1]


def test_between_the_two_halves_of_an_upload(rig: ResourceRig, tmp_path: Path) -> None:
    old, new = version(300_000, 1), version(300_000, 2)
    publish(rig, "m.bin", old)
    with another_device(rig, tmp_path / "second") as cached, another_device(rig, tmp_path / "third") as bare:
        assert loaded(cached, "m.bin") == old
        hold = rig.api.hold_next(COMMIT)
        with ThreadPoolExecutor(1) as clients:
            upload = clients.submit(rig.upload, "m.bin", new)
            assert hold.reached.wait(20)
            assert loaded(rig, "m.bin") == old
            assert loaded(cached, "m.bin") == old
            refused(bare.load("m.bin"), 502, "integrity_error")
            assert bare.own_files() == []
            hold.release()
            assert upload.result().status_code == 200
        assert [loaded(device, "m.bin") for device in (rig, cached, bare)] == [new] * 3


def test_waiting_for_another_transfer_has_an_end(tmp_path: Path) -> None:
    with ResourceRig(tmp_path, environment={"TRANSFER_WAIT_S": "0.3"}) as rig:
        first, second = version(200_000, 1), version(200_000, 2)
        hold = rig.api.hold_next(COMMIT)
        with ThreadPoolExecutor(1) as clients:
            upload = clients.submit(rig.upload, "m.bin", first)
            assert hold.reached.wait(20)
            before = rig.big_path("m.bin").read_bytes()
            answer = rig.upload("m.bin", second)
            refused(answer, 504, "upstream_timeout")
            assert answer.json()["detail"] == (
                "Another transfer of 'm.bin' is still under way after 0.3 s; try again later."
            )
            assert rig.big_path("m.bin").read_bytes() == before
            hold.release()
            assert upload.result().status_code == 200
        assert rig.own_files() == ["models/m.bin.big"]
        # A load that needs the store waits as long; one from the cache waits for nobody.
        lock = FileLock(rig.data_dir / ".azaion-loader/locks/resources/models/m.bin.lock")
        assert lock.try_acquire()
        assert loaded(rig, "m.bin") == first
        rig.cached_path("m.bin").unlink()
        refused(rig.load("m.bin"), 504, "upstream_timeout")
        lock.release()
        assert loaded(rig, "m.bin") == first


def test_two_devices_uploading_at_once_never_mix(rig: ResourceRig, tmp_path: Path) -> None:
    with another_device(rig, tmp_path / "second") as second:
        for turn in range(6):
            versions = [version(200_000, 10 * turn + n) for n in range(2)]
            together = threading.Barrier(2)

            def upload(device: ResourceRig, plain: bytes, together: threading.Barrier = together) -> int:
                together.wait(10)
                return device.upload("m.bin", plain).status_code

            with ThreadPoolExecutor(2) as clients:
                assert list(clients.map(upload, (rig, second), versions)) == [200, 200]
            for device in (rig, second):
                answer = device.load("m.bin")
                if answer.status_code == 200:
                    assert answer.content in versions
                else:
                    refused(answer, 502, "integrity_error")
            publish(rig, "m.bin", versions[0])
            assert [loaded(device, "m.bin") for device in (rig, second)] == [versions[0]] * 2


def test_two_devices_whose_halves_cross(rig: ResourceRig, tmp_path: Path) -> None:
    """The store keeps the second device's big part, the API the first one's small part."""
    mine, other = version(200_000, 1), version(200_000, 2)
    with another_device(rig, tmp_path / "second") as second, another_device(rig, tmp_path / "third") as third:
        with ThreadPoolExecutor(2) as clients:
            first_hold = rig.api.hold_next(COMMIT)
            first_upload = clients.submit(rig.upload, "m.bin", mine)
            assert first_hold.reached.wait(20)
            second_hold = rig.api.hold_next(COMMIT)
            second_upload = clients.submit(second.upload, "m.bin", other)
            assert second_hold.reached.wait(20)
            second_hold.release()
            assert second_upload.result().status_code == 200
            first_hold.release()
            assert first_upload.result().status_code == 200
        # Only the first device has the tail that belongs to this head.
        assert loaded(rig, "m.bin") == mine
        refused(second.load("m.bin"), 502, "integrity_error")
        refused(third.load("m.bin"), 502, "integrity_error")
        publish(second, "m.bin", other)
        assert [loaded(device, "m.bin") for device in (rig, second, third)] == [other] * 3


def test_load_of_a_killed_loader_goes_on(tmp_path: Path) -> None:
    part_bytes = TransferLimits().part_bytes
    plain = version(6 * part_bytes, 3)
    with ResourceRig(tmp_path, separate=True) as rig:
        publish(rig, "m.bin", plain)
        rig.cached_path("m.bin").unlink()
        with FaultProxy(rig.store.url) as proxy:
            through(rig, proxy)
            # One range stays open; the others come to their ends.
            proxy.add(Rule("GET", skip=2, stall_after_bytes=1000))
            with ThreadPoolExecutor(1) as clients:
                load = clients.submit(rig.load, "m.bin")
                assert proxy.wait_for_stall(20)
                wait_for(lambda: proxy.body_bytes > 4.9 * part_bytes)
                rig.stop_loader(kill=True)
                with pytest.raises(requests.ConnectionError):
                    load.result(20)
            assert not rig.cached_path("m.bin").exists()
            rig.start_loader()
            assert loaded(rig, "m.bin") == plain
            # Again come only the range that was open, and one whose end the loader may not have noted any more.
            assert proxy.body_bytes <= rig.big_path("m.bin").stat().st_size + 2 * part_bytes
