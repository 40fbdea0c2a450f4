"""What all suites share: a clean environment, and a real engine for those that need one."""

import os
from collections.abc import Iterator

import pytest

from azaion_devkit.engine import engine

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
