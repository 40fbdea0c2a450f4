"""How much an engine is asked to do at once. Measured, not derived: docs/performance-notes.md has the figures."""

from azaion_loader.docker_answers import EngineInfo

# Up to here the classic store unpacks each layer in a process of its own, so several are no burden on one another.
_LAST_UNPACKING_APART = 22
_ALL = 64


def pace(engine: EngineInfo, parallel: int) -> tuple[int, int]:
    """Return how many streams are given bytes, and how many images are registered, at a time.

    `parallel` is the number of cores to use, or what the operator wants in its place; 1 means one after the other.
    """
    if parallel == 1:
        return 1, 1
    if engine.store == "containerd":
        # It mostly waits for its own service when it takes bytes, and its data base when it unpacks.
        return parallel + 1, parallel // 2
    return parallel - 1, _ALL if _unpacks_apart(engine.version) else parallel


def _unpacks_apart(version: str) -> bool:
    major = version.partition(".")[0]
    return major.isdecimal() and int(major) <= _LAST_UNPACKING_APART
