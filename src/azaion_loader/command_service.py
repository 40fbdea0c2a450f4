"""Commands that speak to the running service: unlock, login, load, upload, status."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from azaion_loader.command_client import Client, CommandError
from azaion_loader.command_output import Output

_LONG_POLL_S = 25.0
_POLL_ANSWER_S = 40.0
# A restarting service is waited for; a run survives neither, but the journal tells how it ended.
_RECONNECT_S = 30.0
_RETRY_S = 1.0
_ENDED = frozenset({"ready", "error"})


def log_in(client: Client, output: Output, account: Mapping[str, str]) -> None:
    """Open a session."""
    client.post("/login", account)
    output.result({"status": "ok"}, f"Logged in as {account['email']}.")


def status(client: Client, output: Output) -> None:
    """Show the session, the unlock run and the version."""
    found = {**client.get("/version"), **client.get("/status"), "unlock": client.get("/unlock/status")}
    lines = [
        f"version        {found['version']} ({found['machine']}, {found['key_profile']} keys)",
        f"session        {'logged in' if found['authenticated'] else 'nobody is logged in'}",
        f"unlock         {found['unlock']['state']}",
        f"models         {found['modelCacheDir']}",
    ]
    if found["unlock"]["error"]:
        lines.append(f"last failure   {found['unlock']['error']}")
    output.result(found, "\n".join(lines))


def unlock(
    client: Client, output: Output, account: Mapping[str, str], *, refresh: bool, wait: bool, timeout_s: float
) -> None:
    """Start the unlock run and, if asked to, wait for its end. Raises CommandError with the code of its failure."""
    started = client.post("/unlock?refresh=true" if refresh else "/unlock", account)
    if not wait:
        output.result(started, f"State: {started['state']}.")
        return
    with output.run() as show:
        figures = _follow(client, show, time.monotonic() + timeout_s)
    if figures["state"] == "error":
        code, _, sentence = str(client.get("/unlock/status")["error"]).partition(": ")
        raise CommandError(code, sentence or "The unlock run failed.")
    said = f"Ready: {figures['images_total']} images, {figures['bytes_done']} bytes."
    output.result(figures, said if figures["images_total"] else "Ready: all images are present.")


def _follow(client: Client, show: Any, give_up: float) -> dict[str, Any]:
    since, answered = "", time.monotonic()
    while True:
        if time.monotonic() >= give_up:
            raise CommandError("not_in_time", "The run goes on, but the time given to wait for it is over.")
        wait_s = max(0.0, min(_LONG_POLL_S, give_up - time.monotonic()))
        try:
            figures = client.get(f"/unlock/progress?wait={wait_s:.1f}&since={since}", timeout_s=_POLL_ANSWER_S)
        except CommandError as err:
            if err.status is not None or time.monotonic() - answered > _RECONNECT_S:
                raise
            time.sleep(_RETRY_S)
            continue
        since, answered = figures["token"], time.monotonic()
        show(figures)
        if figures["state"] in _ENDED:
            return figures


def load(client: Client, output: Output, name: str, *, folder: str, out: Path) -> None:
    """Write a model to a file."""
    if out.is_dir():
        out = out / name
    with output.transfer(name) as show:
        size = client.load(folder, name, out, show)
    output.result({"name": name, "folder": folder, "out": str(out), "bytes": size}, f"{out}: {size} bytes.")


def upload(client: Client, output: Output, file: Path, *, folder: str, name: str) -> None:
    """Publish a file as a model."""
    with output.transfer(name) as show:
        client.upload(folder, name, file, show)
    size = file.stat().st_size
    output.result({"name": name, "folder": folder, "bytes": size}, f"Published {folder}/{name}: {size} bytes.")
