"""Whole-or-nothing writes, free space, locks."""

import multiprocessing
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from azaion_loader.errors import DiskFull
from azaion_loader.files import FileLock, free_bytes, require_space, write_atomic


def test_a_write_replaces_the_whole_file_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "note.json"
    write_atomic(target, b"first, and longer")
    write_atomic(target, b"second")
    assert target.read_bytes() == b"second"
    assert [entry.name for entry in target.parent.iterdir()] == ["note.json"]
    assert target.stat().st_mode & 0o777 == 0o600
    assert target.parent.stat().st_mode & 0o777 == 0o700


def test_a_failed_write_keeps_the_old_file_and_leaves_nothing(tmp_path: Path) -> None:
    target = tmp_path / "note"
    target.mkdir()
    (target / "inside").touch()
    with pytest.raises(OSError, match="directory"):
        write_atomic(target, b"a directory that is not empty can't be replaced by a file")
    assert [entry.name for entry in tmp_path.iterdir()] == ["note"]


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root; CI runs as root")
def test_a_full_disk_is_named_with_its_numbers(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(small)], check=True)
    try:
        with pytest.raises(DiskFull, match=r"100000 bytes needed, \d+ bytes free"):
            write_atomic(small / "note", bytes(100_000))
        assert list(small.iterdir()) == []
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_space_is_asked_of_the_nearest_existing_parent(tmp_path: Path) -> None:
    assert free_bytes(tmp_path / "not" / "yet" / "there") == pytest.approx(free_bytes(tmp_path), rel=0.1)
    require_space(tmp_path / "not" / "there", 1, "a part")
    with pytest.raises(DiskFull, match=rf"a part: {1 << 62} bytes needed"):
        require_space(tmp_path / "not" / "there", 1 << 62, "a part")


def test_a_lock_excludes_other_objects_threads_and_processes(tmp_path: Path) -> None:
    path = tmp_path / "state" / "lock"
    first, second = FileLock(path), FileLock(path)
    assert not second.is_held_elsewhere()
    assert first.try_acquire()
    assert not first.try_acquire()
    assert not first.is_held_elsewhere()
    assert not second.try_acquire()
    assert second.is_held_elsewhere()
    assert not second.acquire(timeout_s=0.1)
    probe = "import fcntl, sys; fcntl.flock(open(sys.argv[1]), fcntl.LOCK_EX | fcntl.LOCK_NB)"
    other = subprocess.run([sys.executable, "-c", probe, str(path)], check=False, capture_output=True)
    assert b"BlockingIOError" in other.stderr
    first.release()
    with second:
        assert first.is_held_elsewhere()
    assert first.try_acquire()
    first.release()


def _hold_until_killed(path: Path, held: "multiprocessing.synchronize.Event") -> None:
    assert FileLock(path).try_acquire()
    held.set()
    threading.Event().wait()


def test_the_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    held = context.Event()
    holder = context.Process(target=_hold_until_killed, args=(tmp_path / "lock", held))
    holder.start()
    assert held.wait(timeout=30)
    lock = FileLock(tmp_path / "lock")
    assert not lock.try_acquire()
    holder.kill()
    holder.join()
    assert lock.acquire(timeout_s=5)
    lock.release()
