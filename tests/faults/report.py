"""Runs every fault suite, prints the table of families with their counts, and writes it into docs/reliability.md.

``python -m tests.faults.report`` (what `make test-faults` does). The table has no times, so that it changes with the
tests alone.
"""

import argparse
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"
SESSION_TIMEOUT_S = 5400
# A complete run leaves nothing out.
SKIPPED_EXIT_CODE = 3

FAMILIES = {
    "kill matrix": "every stage of an unlock × SIGKILL, SIGTERM, engine restarted, engine killed, API gone",  # noqa: RUF001
    "all or nothing": "an update that fails at any point, on two image stores, with containers of the old version",
    "hang matrix": "APIs, engines and clients that go silent, drip, stall, half-close, never end, flood",
    "engines": "the whole unlock on each engine",
    "flips and cuts": "bits flipped in and pieces cut off the archive, both layouts, through the service",
    "disk full": "journal, run, log, engine and cache on small file systems",
    "trust": "forged, swapped, stripped and replayed signed archives",
    "attacks": "mixed parts, stripped metadata, TLS, redirects, tokens, hostile names, hosts, sites, bodies, slow clients",  # noqa: E501
    "fuzz and properties": "readers of foreign bytes, the unlock job as a state machine, the OpenAPI description",
    "leaks": "memory, descriptors, secrets in sight, keys in a core file, wiped buffers",
    "concurrency": "many posts, loads, uploads and processes at once, with the calls upstream counted",
}
# Suites that belong to a family and stand beside the parts that they test.
ELSEWHERE = {
    "tests/integration/test_api_faults.py": "attacks",
    "tests/integration/test_cdn_faults.py": "attacks",
    "tests/unit/test_middleware.py": "attacks",
    "tests/integration/test_resources.py": "attacks",
    "tests/integration/test_resources_together.py": "concurrency",
    "tests/integration/test_resources_plaintext.py": "leaks",
    "tests/integration/test_serve.py": "attacks",
    "tests/unit/test_single_flight.py": "concurrency",
    "tests/unit/test_sessions.py": "attacks",
}
ELSEWHERE_BY_NAME = {
    r"test_faults_on_the_wire|test_a_drip_over_tls|silent_in_the_handshake": "hang matrix",
    r"fifty|hundred|second_process|never_mix|take_turns|run_together": "concurrency",
    r"leave_nothing$|lets_everything_go": "leaks",
}
PATHS = ["tests/faults", "tests/fuzz", *ELSEWHERE, "tests/integration/test_unlock.py"]


@dataclass(slots=True)
class Count:
    """What one family tried."""

    tried: int = 0
    survived: int = 0
    proofs: int = 0
    skipped: int = 0
    failed: list[str] = field(default_factory=list)


class Recorder:
    """A pytest plugin that counts by family; `only` is the one to run, None means all."""

    def __init__(self, only: str | None = None) -> None:
        self._only = only
        self.counts = {name: Count() for name in FAMILIES}
        self._families: dict[str, tuple[str, bool]] = {}

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        """Note each test's family; leave out those that belong to none."""
        kept, others = [], []
        for item in items:
            family = _family(item)
            wanted = family is not None and self._only in {None, family}
            (kept if wanted else others).append(item)
            if family is not None and wanted:
                self._families[item.nodeid] = family, item.get_closest_marker("proof") is not None
        items[:] = kept
        config.hook.pytest_deselected(items=others)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count a test once: at its call, or at its set-up where that did not succeed."""
        if report.when != "call" and not (report.when == "setup" and not report.passed) and not report.failed:
            return
        family, is_proof = self._families[report.nodeid]
        count = self.counts[family]
        cases = sum(int(str(value)) for name, value in report.user_properties if name == "cases") or 1
        if report.skipped:
            count.skipped += 1
            return
        if report.failed:
            count.failed.append(report.nodeid)
        if is_proof:
            count.proofs += report.passed
        else:
            count.tried += cases
            count.survived += cases if report.passed else 0

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Print the table."""
        terminalreporter.section("faults")
        terminalreporter.write_line(table(self.counts))


def table(counts: dict[str, Count]) -> str:
    """Return the table as Markdown."""
    lines = [
        "| family | what is tried | cases | survived | proofs that it sees | again with |",
        "|---|---|---:|---:|---:|---|",
    ]
    for name, count in counts.items():
        again = f"`make test-faults FAMILY='{name}'`"
        lines.append(f"| {name} | {FAMILIES[name]} | {count.tried} | {count.survived} | {count.proofs} | {again} |")
    total = [sum(getattr(count, part) for count in counts.values()) for part in ("tried", "survived", "proofs")]
    return "\n".join([*lines, f"| **all** | | {total[0]} | {total[1]} | {total[2]} | `make test-faults` |"])


def _family(item: pytest.Item) -> str | None:
    marker = item.get_closest_marker("family")
    if marker is not None:
        return str(marker.args[0])
    for pattern, family in ELSEWHERE_BY_NAME.items():
        if re.search(pattern, item.nodeid.partition("::")[2].partition("[")[0]):
            return family
    return ELSEWHERE.get(item.nodeid.partition("::")[0])


def _write(text: str) -> None:
    document = DOCUMENT.read_text()
    head, _, rest = document.partition(BEGIN)
    _, _, tail = rest.partition(END)
    DOCUMENT.write_text(f"{head}{BEGIN}\n{text}\n{END}{tail}")


def main() -> int:
    """Run the suites; returns pytest's exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--family", choices=list(FAMILIES), help="only this one; the document is not written then")
    parser.add_argument("--fast", action="store_true", help="only what `make test` runs")
    parser.add_argument("--last-failed", action="store_true", help="only what failed the last time; writes no document")
    options = parser.parse_args()
    recorder = Recorder(options.family)
    arguments = [
        "-q",
        "-m",
        "not slow" if options.fast else "",
        f"--session-timeout={SESSION_TIMEOUT_S}",
        "--timeout=300",
    ]
    if options.last_failed:
        arguments += ["--last-failed", "--last-failed-no-failures=none"]
    code = int(pytest.main([*arguments, *PATHS], plugins=[recorder]))
    if code or options.family or options.fast or options.last_failed:
        return code
    skipped = sum(count.skipped for count in recorder.counts.values())
    if skipped:
        print(f"{skipped} tests were skipped (see above for what they lack), so docs/reliability.md stays as it is.")
        return SKIPPED_EXIT_CODE
    _write(table(recorder.counts))
    return 0


if __name__ == "__main__":
    sys.exit(main())
