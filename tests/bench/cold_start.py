"""Cold start: from the start of the process to the first 200 of `/health`, beside an empty FastAPI app.

Both run as their own process under the same uvicorn, in turn, so that a busy moment of the machine hits both alike.
`python tests/bench/cold_start.py [--runs N] [--json]`; run it with the interpreter that has the project installed.
"""

import argparse
import http.client
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

EMPTY_APP = """
from fastapi import FastAPI
app = FastAPI()

@app.get("/health")
async def health():
    return {"status": "healthy"}
"""
BAR = 1.5
TIMEOUT_S = 30.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def answers(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def seconds_to_first_answer(command: Sequence[str], port: int, cwd: Path, environment: Mapping[str, str]) -> float:
    """Start `command` and return the seconds until `/health` answers 200; ends the process."""
    started = time.perf_counter()
    with subprocess.Popen(
        command, cwd=cwd, env=dict(environment), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            while not answers(port):
                if process.poll() is not None or time.perf_counter() - started > TIMEOUT_S:
                    raise RuntimeError(f"{' '.join(command)} gave no answer")
                time.sleep(0.002)
            return time.perf_counter() - started
        finally:
            process.kill()


def measure(runs: int) -> dict[str, object]:
    """Return medians in seconds and their ratio, from `runs` alternating starts after one of each to warm the cache."""
    times: dict[str, list[float]] = {"empty": [], "loader": []}
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        (directory / "empty_app.py").write_text(EMPTY_APP)
        environment = {**os.environ, "LOADER_DATA_DIR": str(directory / "data")}
        for run in range(runs + 1):
            for kind in times if run % 2 else reversed(times):
                port = free_port()
                command = (
                    [sys.executable, "-m", "uvicorn", "empty_app:app", "--port", str(port)]
                    if kind == "empty"
                    else [sys.executable, "-m", "azaion_loader.cli", "serve", "--port", str(port)]
                )
                seconds = seconds_to_first_answer(command, port, directory, environment)
                if run:
                    times[kind].append(seconds)
    medians = {kind: statistics.median(values) for kind, values in times.items()}
    return {
        "runs": runs,
        "empty_s": round(medians["empty"], 4),
        "loader_s": round(medians["loader"], 4),
        "ratio": round(medians["loader"] / medians["empty"], 3),
        "bar": BAR,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=11)
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    options = parser.parse_args()
    result = measure(options.runs)
    if options.json:
        print(json.dumps(result))
    else:
        print(f"{'cold start to the first 200 of /health':<42}{'median':>10}")
        print(f"{'empty FastAPI app':<42}{result['empty_s']:>8} s")
        print(f"{'azaion-loader serve':<42}{result['loader_s']:>8} s")
        print(f"{'ratio (bar: ' + str(BAR) + ')':<42}{result['ratio']:>10}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
