"""What all suites share: a clean environment, and a real engine for those that need one."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from azaion_devkit.engine import engine
from azaion_loader.settings import Settings

# A developer's own settings must not reach the tests.
_SETTINGS = (
    "RESOURCE_API_URL",
    "IMAGES_PATH",
    "API_VERSION",
    "LOADER_DATA_DIR",
    "LOG_DIR",
    "DOCKER_CLI",
    "DEVICE_CONF",
    "HARDWARE_STRING_FILE",
    "JWT_PUBLIC_KEY_FILE",
    "ARCHIVE_PUBLIC_KEY_FILE",
    "LOADER_API_TOKEN_FILE",
    "REQUIRE_PART_MAC",
    "ALLOW_DOWNGRADE",
    "ALLOWED_HOSTS",
)


@pytest.fixture(scope="session", autouse=True)
def _clean_environment() -> None:
    for name in _SETTINGS:
        os.environ.pop(name, None)


@pytest.fixture
def lonely(tmp_path: Path) -> Settings:
    """Settings of a device that has nothing: no archive, no credentials, no engine's client, no Resource API."""
    return Settings(
        data_dir=tmp_path / "data",
        images_path=tmp_path / "images.enc",
        device_conf=tmp_path / "device.conf",
        docker_cli="docker-that-is-not-there",
        resource_api_url="http://127.0.0.1:9",
    )


@pytest.fixture(scope="session")
def docker_host() -> Iterator[str]:
    """A real engine: the configured one, the machine's, or a private one; DOCKER_HOST names it meanwhile."""
    with engine() as host:
        before = os.environ.get("DOCKER_HOST")
        os.environ["DOCKER_HOST"] = host
        yield host
        if before is None:
            del os.environ["DOCKER_HOST"]
        else:
            os.environ["DOCKER_HOST"] = before
