"""What is left in memory, on disk and in sight after a run: nothing that grows, and nothing secret."""

import base64
import ctypes
import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from azaion_devkit import reference_crypto
from azaion_devkit.device import EMAIL, KEY_FRAGMENT, PASSWORD, Device
from azaion_devkit.loader_process import LoaderProcess
from azaion_devkit.mutant import mutant
from azaion_loader.secret_key import SecretKey

pytestmark = [pytest.mark.engine, pytest.mark.family("leaks")]

GROWTH_BYTES = 6 << 20


def resident_bytes(loader: LoaderProcess) -> int:
    fields = Path(f"/proc/{loader.pid}/statm").read_text().split()
    return int(fields[1]) * os.sysconf("SC_PAGESIZE")


def descriptors(loader: LoaderProcess) -> int:
    return len(list(Path(f"/proc/{loader.pid}/fd").iterdir()))


def threads(loader: LoaderProcess) -> int:
    return len(list(Path(f"/proc/{loader.pid}/task").iterdir()))


def check_flat(device: Device, cycles: int, warm: int, environment: dict[str, str]) -> None:
    """Unlock again and again, each time comparing the archive with the engine."""
    device.place(device.images(shared_bytes=4000, unique_bytes=1000))
    loader = device.loader(environment)
    for _ in range(warm):
        assert device.unlock(loader, refresh=True)["state"] == "ready"
    memory, files, running = resident_bytes(loader), descriptors(loader), threads(loader)
    for _ in range(cycles):
        assert device.unlock(loader, refresh=True)["state"] == "ready"
    assert descriptors(loader) <= files + 2
    assert threads(loader) <= running + 2
    assert resident_bytes(loader) <= memory + GROWTH_BYTES


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_memory_and_descriptors_are_flat(device: Device, tally: Callable[[int], None]) -> None:
    check_flat(device, 500, 30, {})
    tally(500)


def secrets(device: Device) -> dict[str, bytes]:
    """Everything that no one may find, in the forms in which it would be found."""
    archive = hashlib.sha256(KEY_FRAGMENT).digest()
    return {
        "key fragment": KEY_FRAGMENT,
        "archive key": archive,
        "archive key as hex": archive.hex().encode(),
        "archive key as base64": base64.b64encode(archive),
        "resource key": reference_crypto.resource_key(),
        "password": PASSWORD.encode(),
    }


def search(data: bytes, wanted: dict[str, bytes]) -> list[str]:
    return [name for name, secret in wanted.items() if secret in data]


def with_children(pid: int) -> set[int]:
    """Return a process and all that came of it; others on the machine may well know the test's password."""
    parents: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue  # it has ended
    family, grown = {pid}, True
    while grown:
        more = {child for child, parent in parents.items() if parent in family} - family
        family |= more
        grown = bool(more)
    return family


def check_nothing_in_sight(device: Device, environment: dict[str, str]) -> None:
    """Look at the loader's processes, and at every file of the device, during and after a run, good and bad."""
    wanted = secrets(device)
    device.place(device.images(shared_bytes=20_000_000))
    loader = device.loader(environment)
    found: list[str] = []
    loader.unlock(EMAIL, PASSWORD).raise_for_status()
    looks = 0
    while loader.get("/unlock/status")["state"] not in {"ready", "error"}:
        for number in with_children(loader.pid):
            process = Path("/proc") / str(number)
            try:
                seen = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
            except OSError:
                continue  # it has ended
            found += [f"{name} in the process {process.name}" for name in search(seen, wanted)]
        looks += 1
    assert looks > 0
    device.api.fail_next("/login", status=409, body='{"ErrorCode": 30, "Message": "Passwords do not match."}')
    assert device.unlock(loader, refresh=True)["state"] == "error"
    loader.post("/login", {"email": EMAIL, "password": PASSWORD, "extra": [PASSWORD]})
    loader.post("/login", {"email": "", "password": PASSWORD})
    for path in device.data_dir.rglob("*"):
        if path.is_file():
            found += [f"{name} in {path.name}" for name in search(path.read_bytes(), wanted)]
    assert found == []


def test_no_secret_in_sight(device: Device) -> None:
    check_nothing_in_sight(device, {})


def core(loader: LoaderProcess, folder: Path) -> bytes:
    subprocess.run(["gcore", "-o", folder / "core", str(loader.pid)], check=True, capture_output=True, timeout=60)
    return (folder / f"core.{loader.pid}").read_bytes()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("gcore") is None, reason="needs gdb")
def test_a_core_file_holds_no_key(device: Device, tmp_path: Path) -> None:
    """After a run the keys are gone from memory.

    The password is there: every call for a model carries it. The key fragment may be, in memory that the HTTP library
    has freed and nothing has used again; docs/security.md says so.
    """
    device.place(device.images())
    loader = device.loader()
    assert device.unlock(loader)["state"] == "ready"
    wanted = secrets(device)
    found = search(core(loader, tmp_path), wanted)
    assert "password" in found, "the search itself finds what is known to be there"
    assert [name for name in found if name not in {"password", "key fragment"}] == []


def test_a_key_s_buffer_is_wiped_when_its_owner_goes() -> None:
    """The memory of the owned buffer is read before and after."""
    secret = os.urandom(64)
    key = SecretKey(secret)
    address = key._address
    assert ctypes.string_at(address, 64) == secret
    del key
    # The allocator writes its own links into the first bytes of what is free.
    assert ctypes.string_at(address + 16, 48) == bytes(48)


@pytest.mark.slow
@pytest.mark.proof
def test_the_family_sees_a_secret_in_the_log(device: Device, tmp_path: Path) -> None:
    environment = mutant(
        tmp_path, "unlock", 'logger.info("Unlock run {} started", record.run_id)',
        'logger.info("Unlock run {} started by {}", record.run_id, credentials.password)',
    )  # fmt: skip
    with pytest.raises(AssertionError):
        check_nothing_in_sight(device, environment)


@pytest.mark.slow
@pytest.mark.proof
def test_the_family_sees_a_descriptor_that_stays(device: Device, tmp_path: Path) -> None:
    environment = mutant(
        tmp_path, "unlock", 'logger.info("Unlock run {} started", record.run_id)', "os.open('/dev/null', 0)"
    )
    with pytest.raises(AssertionError):
        check_flat(device, 8, 3, environment)
