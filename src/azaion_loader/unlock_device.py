"""Has the running service unlock this device with its own credentials, for devices without an orchestrator.

``python -m azaion_loader.unlock_device [--refresh] [--port PORT]`` posts the credentials of device.conf to `/unlock` of
the service on this machine and polls until the run is over. It prints each state, and exits 0 with `ready`, else 1.
With `--refresh` an archive with new content under the same tags is loaded, too; where no archive is on the device, the
images that it holds are enough.
"""

import argparse
import http.client
import json
import sys
import time
from collections.abc import Sequence
from typing import Any

from azaion_loader.credentials import Credentials
from azaion_loader.device_conf import read_device_credentials
from azaion_loader.errors import NotAuthenticated
from azaion_loader.health_check import DEFAULT_PORT
from azaion_loader.settings import InvalidSetting, Settings

CALL_TIMEOUT_S = 60.0
POLL_S = 1.0
ANSWER_MAX_BYTES = 1 << 16
FINAL = ("ready", "error", "idle")


class Refused(Exception):
    """The service did not do what was asked; the message is a sentence for a person."""


class LocalService:
    """The service on a loopback port. No proxy: nothing of this may leave the machine."""

    def __init__(self, port: int, settings: Settings) -> None:
        self._port = port
        self._headers = {"Host": settings.allowed_hosts[0] if settings.allowed_hosts else "localhost"}
        if settings.loader_api_token_file is not None:
            token = settings.loader_api_token_file.read_text(encoding="ascii").strip()
            self._headers["Authorization"] = f"Bearer {token}"

    def call(self, method: str, path: str, body: object = None) -> tuple[int, dict[str, Any]]:
        """Return the status and the JSON of an answer. Raises OSError, HTTPException, ValueError."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=CALL_TIMEOUT_S)
        try:
            sent = None if body is None else json.dumps(body)
            connection.request(method, path, sent, self._headers | {"Content-Type": "application/json"})
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read(ANSWER_MAX_BYTES))
        finally:
            connection.close()


def device_credentials(settings: Settings) -> Credentials:
    """Return the device's own credentials. Raises Refused or NotAuthenticated where there are none to use."""
    credentials = read_device_credentials(settings.device_conf)
    if credentials is None:
        raise Refused(f"{settings.device_conf} has no credentials")
    return credentials


def unlock(service: LocalService, credentials: Credentials, refresh: bool) -> None:
    """Start the run and wait for its end. Raises Refused unless that is `ready`."""
    body = {"email": credentials.email, "password": credentials.password}
    status, answer = service.call("POST", "/unlock?refresh=true" if refresh else "/unlock", body)
    if refresh and answer.get("code") == "archive_not_found":
        status, answer = service.call("POST", "/unlock", body)
    if status != http.client.OK:
        raise Refused(f"{answer.get('code', status)}: {answer.get('detail', 'no reason given')}")
    shown = None
    while True:
        _, answer = service.call("GET", "/unlock/status")
        state = answer.get("state")
        if state != shown:
            print(state, flush=True)
            shown = state
        if state in FINAL:
            break
        time.sleep(POLL_S)
    if state != "ready":
        raise Refused(str(answer.get("error") or "the run did not end with ready"))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    parser = argparse.ArgumentParser(description="Unlock this device with the credentials of its device.conf.")
    parser.add_argument("--refresh", action="store_true", help="load new content under the same tags, too")
    parser.add_argument("--port", type=int, default=DEFAULT_PORT)
    options = parser.parse_args(arguments)
    try:
        settings = Settings.from_environment()
        credentials = device_credentials(settings)
        unlock(LocalService(options.port, settings), credentials, options.refresh)
    except (Refused, NotAuthenticated, InvalidSetting) as err:
        return _fail(str(err))
    except (OSError, http.client.HTTPException, ValueError) as err:
        return _fail(f"the service on port {options.port} does not answer: {err}")
    return 0


def _fail(sentence: str) -> int:
    sys.stderr.write(f"unlock: {sentence}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
