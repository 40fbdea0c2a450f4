"""Looks at everything that a device needs, and says of each thing how it is and what to do about it.

A check answers findings and never raises for what it looks for. Each runs in a thread of its own with a time limit; one
that is still stuck from an earlier look is not started again, so no number of looks can use up threads.
"""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from azaion_loader.errors import LoaderError

State = Literal["ok", "warning", "failed", "skipped"]
LIMIT_S = 15.0


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    `cause` is a stable word for programs, `advice` says what to do; both are None where nothing is wrong.
    """

    name: str
    state: State
    summary: str
    cause: str | None = None
    advice: str | None = None
    seconds: float = 0.0

    def as_json(self) -> dict[str, Any]:
        """Return the finding as plain values."""
        return asdict(self)


def fine(name: str, summary: str) -> Finding:
    """Return a finding of something that is as it should be."""
    return Finding(name, "ok", summary)


def skipped(name: str, summary: str) -> Finding:
    """Return a finding of something that could not be looked at, for a reason that is no fault."""
    return Finding(name, "skipped", summary)


def failed(name: str, cause: str, summary: str, advice: str) -> Finding:
    """Return a finding that keeps the device from its work."""
    return Finding(name, "failed", summary, cause, advice)


def warned(name: str, cause: str, summary: str, advice: str) -> Finding:
    """Return a finding that a person should know of."""
    return Finding(name, "warning", summary, cause, advice)


Check = Callable[[], Sequence[Finding]]


@dataclass(slots=True)
class _Look:
    """One run of one check."""

    names: Sequence[str]
    started: float
    thread: threading.Thread | None = None
    findings: Sequence[Finding] | None = None
    seconds: float = 0.0


class Diagnosis:
    """Runs checks side by side; safe to use from several threads, which share a look that is under way.

    `checks` maps the names of the findings that a check answers, separated by spaces, to the check.
    """

    def __init__(self, checks: Mapping[str, Check], limit_s: float = LIMIT_S) -> None:
        self._checks = dict(checks)
        self._limit_s = limit_s
        self._one_at_a_time = threading.Lock()
        self._stuck: dict[str, _Look] = {}

    def run(self) -> list[Finding]:
        """Return the findings of all checks, in the order of the checks; takes at most the limit and a little."""
        with self._one_at_a_time:
            looks = [self._start(names, check) for names, check in self._checks.items()]
            give_up = time.monotonic() + self._limit_s
            for look in looks:
                if look.thread is not None:
                    look.thread.join(max(0.0, give_up - time.monotonic()))
            return [finding for look in looks for finding in self._end(look)]

    def _start(self, names: str, check: Check) -> _Look:
        earlier = self._stuck.get(names)
        if earlier is not None and earlier.findings is None:
            return earlier
        self._stuck.pop(names, None)
        look = _Look(names.split(), time.monotonic())
        look.thread = threading.Thread(target=self._look, args=(look, check), name=f"check-{names}", daemon=True)
        look.thread.start()
        return look

    def _look(self, look: _Look, check: Check) -> None:
        try:
            findings = list(check())
        except LoaderError as err:
            findings = [failed(name, err.code, err.message, "See the service's log.") for name in look.names[:1]]
        except Exception as err:  # noqa: BLE001 - the thread's last door: a check that breaks is a finding, too
            said = f"The check itself broke ({type(err).__name__})."
            findings = [failed(name, "internal_error", said, "Report it.") for name in look.names[:1]]
        look.seconds = time.monotonic() - look.started
        look.findings = findings

    def _end(self, look: _Look) -> list[Finding]:
        if look.findings is None:
            self._stuck[" ".join(look.names)] = look
            said = f"No answer within {self._limit_s:g} s."
            advice = "Something below it hangs: see the other findings, then restart it."
            return [failed(name, "no_answer", said, advice) for name in look.names]
        return [replace(finding, seconds=round(look.seconds, 3)) for finding in look.findings]


def is_healthy(findings: Sequence[Finding]) -> bool:
    """Say whether nothing keeps the device from its work."""
    return all(finding.state != "failed" for finding in findings)
