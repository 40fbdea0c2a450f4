"""The page of figures says what the figures say, and each half of the bench leaves the other one's alone."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
MACHINE = {
    "cpu": "a CPU", "cores": 2, "memory_bytes": 4 << 30, "kernel": "6.1", "python": "3.11.7", "openssl": "OpenSSL 3",
    "date": "2026-01-02",
}  # fmt: skip
MODELS = {
    "bytes": 500_000_000,
    "store": "rclone",
    "load_average": [0.5, 1.5],
    "tools": {"aws": "aws-cli/1", "openssl": "OpenSSL 3"},
    "cached": {"ours": [1.0, 1.7, 9.0], "theirs": [1.0, 1.0, 1.0]},
    "upload": {"ours": [1.0, 1.1, 1.2], "theirs": [1.0, 1.0, 1.0]},
    "memory": {
        "bytes": 4 << 30,
        "idle_bytes": 40_000_000,
        "warm_bytes": 80_000_000,
        "peak_bytes": 140_000_000,
        "seconds": 60.0,
    },
}  # fmt: skip


def document(folder: Path, *options: str) -> str:
    command = [sys.executable, "-m", "tests.bench", "--only", "document", "--results", str(folder / "results.json")]
    subprocess.run([*command, "--write", str(folder / "page.md"), *options], cwd=ROOT, check=True, timeout=60)
    return (folder / "page.md").read_text()


def test_bars_are_met_missed_or_not_measured(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(json.dumps({"machine": MACHINE, "resources": MODELS}))
    page = document(tmp_path)
    assert "Machine: a CPU, 2 cores" in page
    assert "| loader | 3 | 1.70 | 1.00 to 9.00 | 1.70 | ≤ 1.6 **missed** |" in page
    assert "| loader | 3 | 1.10 | 1.00 to 1.20 | 1.10 | ≤ 1.2 met |" in page
    assert "left out: a tool is missing | | | | | ≤ 1 **not measured** |" in page
    assert "| 40 | 80 | 140 | 100 | ≤ 96 **missed** |" in page


def test_the_other_half_stays(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(json.dumps({"machine": MACHINE, "cold_start": {"kept": 1}}))
    (tmp_path / "other.json").write_text(json.dumps({"resources": MODELS}))
    assert "## Models" in document(tmp_path, "--add", str(tmp_path / "other.json"))
    kept = json.loads((tmp_path / "results.json").read_text())
    assert kept == {"machine": MACHINE, "cold_start": {"kept": 1}, "resources": MODELS}
