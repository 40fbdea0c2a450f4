"""What an engine is asked to do at once: by its store, its version, and the cores."""

import pytest

from azaion_loader.docker_answers import EngineInfo, Store
from azaion_loader.load_pace import pace


def engine(version: str, store: Store = "classic") -> EngineInfo:
    return EngineInfo(version, "linux", "arm64", store, None)


@pytest.mark.parametrize("version", ["20.10.24+dfsg1", "26.1.5", "29.0", "dev", ""])
@pytest.mark.parametrize("store", ["classic", "containerd", "podman"])
def test_one_core_does_one_thing_after_the_other(version: str, store: Store) -> None:
    assert pace(engine(version, store), 1) == (1, 1)


@pytest.mark.parametrize("parallel", [2, 4, 8])
def test_each_store_has_its_own_pace(parallel: int) -> None:
    assert pace(engine("26.1.5"), parallel) == (parallel - 1, parallel)
    assert pace(engine("26.1.5", "containerd"), parallel) == (parallel + 1, parallel // 2)


@pytest.mark.parametrize(
    ("version", "many"), [("20.10.24+dfsg1", True), ("22.06", True), ("23.0.1", False), ("x", False)]
)
def test_old_engines_register_as_many_as_wait(version: str, many: bool) -> None:
    giving, ending = pace(engine(version), 2)
    assert giving == 1
    assert (ending > 7) is many
