"""Commands that need no running service: doctor, decrypt, fingerprint, version."""

import platform
from pathlib import Path
from typing import Any

from azaion_loader import __version__
from azaion_loader.command_client import Client, CommandError
from azaion_loader.command_output import FAILED, Output
from azaion_loader.errors import LoaderError
from azaion_loader.settings import InvalidSetting, Settings

_FRAGMENT_MAX_BYTES = 64 << 10
_STYLES = {"ok": "green", "warning": "yellow", "failed": "bold red", "skipped": "dim"}
_WORDS = {"ok": "fine", "warning": "look", "failed": "FAULT", "skipped": "-"}


def doctor(client: Client | None, output: Output) -> int:
    """Show how the device is, as the service sees it; without one (None), or a silent one, as this command sees it."""
    report = _look(client)
    if output.as_json:
        output.result(report, "")
    else:
        for check in report["checks"]:
            said = f"{_WORDS[check['state']]:6} {check['name']:19} {check['summary']}"
            output.styled(said, _STYLES[check["state"]])
            if check["advice"]:
                output.styled(f"{'':26} → {check['advice']}", _STYLES[check["state"]])
        bad = sum(check["state"] == "failed" for check in report["checks"])
        output.result({}, f"{bad} faults." if bad else "Nothing keeps the device from its work.")
    return 0 if report["healthy"] else FAILED


def _look(client: Client | None) -> dict[str, Any]:
    if client is not None:
        try:
            return client.get("/diagnostics")
        except CommandError as err:
            if err.code not in {"service_unreachable", "broken_off", "not_a_loader", "unauthorized", "not_found"}:
                raise
            advice = "Start it (azaion-loader serve), or see its log; --url, --uds and --token-file say where it is."
            silent = [_finding("service", err.code, err.message, advice)]
    else:
        silent = []
    return _look_from_here(silent)


def _look_from_here(silent: list[dict[str, Any]]) -> dict[str, Any]:
    from azaion_loader.dependencies import Services  # noqa: PLC0415 - most of the program
    from azaion_loader.diagnosis import is_healthy  # noqa: PLC0415

    try:
        services = Services(Settings.from_environment())
    except InvalidSetting as err:
        fault = _finding("settings", "invalid_setting", str(err), "Correct the variable; the README lists them.")
        return {"healthy": False, "checks": [*silent, fault], "hardware": []}
    report = services.operations.look()
    parts = [
        {"name": p.name, "hash": p.hash, "first_seen_hash": p.first_seen_hash, "changed": p.changed}
        for p in report.parts
    ]
    checks = [*silent, *(finding.as_json() for finding in report.findings)]
    return {"healthy": not silent and is_healthy(report.findings), "checks": checks, "hardware": parts}


def _finding(name: str, cause: str, summary: str, advice: str) -> dict[str, Any]:
    return {"name": name, "state": "failed", "cause": cause, "summary": summary, "advice": advice, "seconds": 0.0}


def decrypt(output: Output, archive: Path, key_fragment: Path, out: Path) -> None:
    """Write an archive's tar, in plaintext. Raises CommandError."""
    from azaion_loader.binary_split import decrypt_archive  # noqa: PLC0415 - compiled code loads on first use

    if out.exists():
        raise CommandError("usage", f"{out} exists; remove it or name another file.")
    try:
        with key_fragment.open("rb") as file:
            fragment = file.read(_FRAGMENT_MAX_BYTES)
        decrypt_archive(archive, fragment, out)
    except LoaderError as err:
        raise CommandError(err.code, err.message) from err
    except OSError as err:
        raise CommandError("failed", f"{err.filename or out}: {err.strerror}.") from err
    size = out.stat().st_size
    said = f"{out}: {size} bytes of plaintext; remove it when you are done (docker load -i {out})."
    output.result({"out": str(out), "bytes": size}, said)


def fingerprint(output: Output) -> None:
    """Show what this machine is bound by. Raises CommandError."""
    from azaion_loader.hardware_service import HardwareService  # noqa: PLC0415 - compiled code loads on first use
    from azaion_loader.security import hardware_hash  # noqa: PLC0415

    service = HardwareService(override_file=Settings.from_environment().hardware_string_file)
    try:
        text = service.hardware_string()
    except LoaderError as err:
        raise CommandError(err.code, err.message) from err
    parts = service.parts()._asdict()
    found = {"hardware_string": text, "hardware_hash": hardware_hash(text), "parts": parts}
    lines = [*(f"{name:14} {value}" for name, value in parts.items()), f"{'string':14} {text}"]
    output.result(found, "\n".join([*lines, f"{'hash':14} {found['hardware_hash']}"]))


def version(output: Output) -> None:
    """Show the version of this program."""
    found = {"version": __version__, "python": platform.python_version(), "machine": platform.machine()}
    output.result(found, f"azaion-loader {__version__}, Python {found['python']}, {found['machine']}")
