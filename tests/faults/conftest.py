"""What the fault suites share: an engine of their own, devices on it, and a tally of what was tried."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from azaion_devkit.device import Device
from azaion_devkit.engine import Engine, EngineMissing, private_engine
from azaion_devkit.engine_proxy import EngineProxy


@pytest.fixture
def tally(request: pytest.FixtureRequest) -> Callable[[int], None]:
    """Count the cases of a test that tries more than one; without it a test is one case."""

    def count(cases: int) -> None:
        request.node.user_properties.append(("cases", cases))

    return count


@pytest.fixture(scope="session")
def own_engine() -> Iterator[Engine]:
    """An empty engine that these suites may kill; DOCKER_HOST names it meanwhile."""
    with private_engine() as engine:
        before = os.environ.get("DOCKER_HOST")
        os.environ["DOCKER_HOST"] = engine.host
        yield engine
        os.environ.pop("DOCKER_HOST")
        if before is not None:
            os.environ["DOCKER_HOST"] = before


@pytest.fixture(scope="session")
def containerd_engine() -> Iterator[Engine]:
    """Debian 13's engine with the containerd image store; stopped at the end if it did not run before."""
    try:
        engine = Engine.trixie("containerd")
    except EngineMissing as err:
        pytest.skip(str(err))
    ran = engine.pid is not None
    engine.start()
    yield engine
    if not ran:
        engine.stop()


@pytest.fixture(scope="session")
def docker_host(own_engine: Engine) -> str:
    return own_engine.host


@pytest.fixture
def device(tmp_path: Path, own_engine: Engine) -> Iterator[Device]:
    own_engine.start()
    with Device(tmp_path) as device:
        yield device
        own_engine.start()


@pytest.fixture
def proxy(own_engine: Engine) -> Iterator[EngineProxy]:
    """A fault proxy in front of the engine; a socket's path has to be short."""
    folder = Path(tempfile.mkdtemp(prefix="azaion-proxy-", dir="/tmp"))
    with EngineProxy(own_engine.host, folder / "s") as proxy:
        yield proxy
    shutil.rmtree(folder)
