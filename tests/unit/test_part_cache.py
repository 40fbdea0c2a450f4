"""The cache: what stays, what goes, and what is never touched."""

import fcntl
import os
import time
from pathlib import Path

import pytest

from azaion_loader import files
from azaion_loader.errors import DiskFull, UpstreamTimeout
from azaion_loader.part_cache import PartCache
from azaion_loader.part_notes import PartNote


def make_cache(root: Path, max_bytes: int = 1000) -> PartCache:
    return PartCache(root, root / ".azaion-loader", max_bytes, 0.2)


def add(cache: PartCache, name: str, size: int, age_s: float, folder: str = "models") -> Path:
    """Put a part with its note into the cache, last used so long ago."""
    path = cache.path(folder, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(size))
    cache.notes.remember_part(folder, name, PartNote("a" * 64, size, "e", "b" * 64, "c" * 64))
    used = time.time() - age_s
    os.utime(cache.notes.path(folder, name), (used, used))
    return path


def test_least_recently_used_goes_first(tmp_path: Path) -> None:
    cache = make_cache(tmp_path)
    old, middle, new = (add(cache, name, 400, age) for name, age in (("old", 30), ("middle", 20), ("new", 10)))
    cache.trim()
    assert [path.exists() for path in (old, middle, new)] == [False, True, True]
    memory = cache.notes.read("models", "old")
    assert memory.part is None
    assert memory.seen_in_format_1


def test_touch_saves_a_part(tmp_path: Path) -> None:
    cache = make_cache(tmp_path)
    old, middle = add(cache, "old", 600, 30), add(cache, "middle", 600, 20, "other")
    cache.notes.touch("models", "old")
    cache.trim()
    assert old.exists()
    assert not middle.exists()


def test_room_is_made_for_what_comes(tmp_path: Path) -> None:
    cache = make_cache(tmp_path)
    old, new = add(cache, "old", 400, 30), add(cache, "new", 400, 20)
    cache.make_room(500, "a part")
    assert not old.exists()
    assert new.exists()


def test_part_over_the_bound_goes_first_and_pushes_no_other_out(tmp_path: Path) -> None:
    cache = make_cache(tmp_path)
    small, huge = add(cache, "small", 400, 30), add(cache, "huge", 5000, 1)
    cache.make_room(2000, "a part over the bound")
    assert small.exists()
    assert not huge.exists()


def test_part_in_use_stays(tmp_path: Path) -> None:
    cache = make_cache(tmp_path, max_bytes=0)
    path = add(cache, "used", 400, 30)
    descriptor = cache.open_part("models", "used")
    assert descriptor is not None
    cache.trim()
    assert path.exists()
    os.close(descriptor)
    cache.trim()
    assert not path.exists()


def test_part_being_replaced_stays(tmp_path: Path) -> None:
    cache = make_cache(tmp_path, max_bytes=0)
    path = add(cache, "m", 400, 30)
    with cache.locked("models", "m") as waited:
        assert not waited
        cache.trim()
        assert path.exists()


def test_only_parts_of_resources_are_evicted(tmp_path: Path) -> None:
    cache = make_cache(tmp_path, max_bytes=0)
    strangers = [tmp_path / "models" / "notes.txt", tmp_path / "Logs" / "log.txt", tmp_path / ".hidden" / "x.big",
                 tmp_path / "models" / ".x.big", tmp_path / "get" / "x.big", tmp_path / "top.big"]  # fmt: skip
    for stranger in strangers:
        stranger.parent.mkdir(parents=True, exist_ok=True)
        stranger.write_bytes(b"stay")
    (tmp_path / "models" / "link.big").symlink_to(strangers[0])
    (tmp_path / "models" / "directory.big").mkdir()
    cache.trim()
    assert all(stranger.exists() for stranger in strangers)
    assert (tmp_path / "models" / "link.big").is_symlink()


def test_full_disk_evicts_before_it_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = make_cache(tmp_path, max_bytes=1 << 40)
    path = add(cache, "old", 400, 30)
    monkeypatch.setattr(files, "free_bytes", lambda _path: 100 if path.exists() else 500)
    cache.make_room(450, "a part")
    assert not path.exists()
    with pytest.raises(DiskFull, match=r"600 bytes needed, 500 bytes free"):
        cache.make_room(600, "a part")


@pytest.mark.parametrize("kind", ["missing", "directory", "fifo", "link"])
def test_what_is_no_file_is_no_part(tmp_path: Path, kind: str) -> None:
    cache = make_cache(tmp_path)
    path = cache.path("models", "m")
    path.parent.mkdir()
    (tmp_path / "target").write_bytes(b"x")
    if kind == "directory":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "link":
        path.symlink_to(tmp_path / "target")
    assert cache.open_part("models", "m") is None


def test_lock_is_given_up_on(tmp_path: Path) -> None:
    cache = make_cache(tmp_path)
    with cache.locked("models", "m"), pytest.raises(UpstreamTimeout), cache.locked("models", "m"):
        pass
    with cache.locked("models", "m"):
        pass


def test_sweep_removes_what_the_dead_left(tmp_path: Path) -> None:
    cache = make_cache(tmp_path)
    cache.sweep()
    cache.upload_dir.mkdir(parents=True)
    dead, alive = cache.upload_dir / "dead", cache.upload_dir / "alive"
    dead.touch()
    fresh, stale = cache.transfer_path("models", "fresh"), cache.transfer_path("models", "stale")
    fresh.parent.mkdir(parents=True)
    fresh.touch()
    stale.touch()
    long_ago = time.time() - 30 * 24 * 3600
    os.utime(stale, (long_ago, long_ago))
    with alive.open("wb") as writer:
        fcntl.flock(writer, fcntl.LOCK_EX)
        cache.sweep()
        assert [path.exists() for path in (dead, alive, fresh, stale)] == [False, True, True, False]
