"""Asks the service on this machine whether it is healthy: the container's health check.

``python -m azaion_loader.health_check [PORT]`` exits 0 when `/health` says so, else 1. Standard library only, and no
proxy: the check must cost little on a small board and must never leave the machine.
"""

import http.client
import sys
from collections.abc import Sequence

from azaion_loader.settings import InvalidSetting, Settings

DEFAULT_PORT = 8080
TIMEOUT_S = 4.0


def is_healthy(port: int, host_header: str) -> bool:
    """Whether the service on this loopback port answers `/health` with 200 in time."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
    try:
        connection.request("GET", "/health", headers={"Host": host_header})
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the check; return the exit code."""
    given = sys.argv[1:] if arguments is None else arguments
    port = int(given[0]) if given else DEFAULT_PORT
    try:
        # The service answers to the names of ALLOWED_HOSTS only, where there are any.
        names = Settings.from_environment().allowed_hosts
    except InvalidSetting:
        return 1
    return 0 if is_healthy(port, names[0] if names else "localhost") else 1


if __name__ == "__main__":
    sys.exit(main())
