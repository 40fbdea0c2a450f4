"""Measures the unlock beside `docker load`, and models beside `aws` and `openssl`, in turn; writes docs/performance.md.

    make bench                                    all of it
    make bench ONLY=resources                     one half; the other one's figures stay (also: unlock, document)
    python -m tests.bench --engines found --rounds 3 --shared 40000000 --unique 9000000

Engines: `found` (the one that answers, or a private one), `trixie` and `trixie-containerd` (Docker 26.1 in a tree of
Debian 13; need root). Results gather in `build/bench/results.json`, one entry for each engine, so a bench that runs
them one by one writes the same document. `--add` takes the figures of another results file in, for halves that were
measured in two checkouts.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.bench import cold_start, proof, report, resources_bench
from tests.bench.rig import Bench, HealthWatch, ImageSet, Run

from azaion_devkit.device import docker
from azaion_devkit.engine import Engine, find_or_start

ROOT = Path(__file__).parents[2]
UNLOCK = "unlock"
PLAIN = "`docker load -i`, plain tar"


@contextlib.contextmanager
def engine_at(name: str, hosts: dict[str, str]) -> Iterator[str]:
    """Yield the DOCKER_HOST of an engine; one that was started for this is stopped again."""
    if name in hosts:
        yield hosts[name]
        return
    if name == "found":
        yield find_or_start()
        return
    engine = Engine.trixie("containerd" if name.endswith("containerd") else "overlay2")
    running = engine.pid is not None
    engine.start()
    try:
        yield engine.host
    finally:
        if not running:
            engine.stop()


def in_turn(rounds: int, contenders: dict[str, Callable[[], Run]], prepare: Callable[[], None]) -> dict[str, list[Run]]:
    """Run everything once to warm up and `rounds` times after that, in an order that alternates.

    A foreign way that does not run on this machine is left out, aloud; the unlock itself must run.
    """
    runs: dict[str, list[Run]] = {name: [] for name in contenders}
    for number in range(rounds + 1):
        for name in list(runs) if number % 2 else list(reversed(runs)):
            prepare()
            try:
                run = contenders[name]()
            except RuntimeError as err:
                if number or name == UNLOCK:
                    raise
                say(f"  left out: {name}: {err}")
                del runs[name]
                continue
            say(f"  {number or 'warm-up'} {name}: {run.seconds:.2f} s")
            if number:
                runs[name].append(run)
    return runs


def measure(bench: Bench, rounds: int, other_rounds: int) -> dict[str, Any]:
    """Return all figures of one engine."""
    info = json.loads(docker(["info", "--format", "{{json .}}"]))
    found: dict[str, Any] = {
        "engine": info["ServerVersion"].partition("+")[0],
        "store": "containerd" if "io.containerd.snapshotter" in str(info["DriverStatus"]) else info["Driver"],
        "client": docker(["version", "--format", "{{.Client.Version}}"]).strip().partition("+")[0],
        "layout": bench.images.layout,
        "bytes": bench.images.bytes,
        "shared_bytes": bench.images.shared_bytes,
        "unique_bytes": bench.images.unique_bytes,
        "load_average": [],
    }
    scripts = bench.scripts()

    def plain(name: str) -> Callable[[], Run]:
        return lambda: bench.command(f"docker load -q -i {bench.images.path(name)}")

    def section(name: str, runs: dict[str, list[Run]]) -> None:
        found[name] = {contender: [asdict(run) for run in listed] for contender, listed in runs.items()}
        found["load_average"].append(os.getloadavg()[0])

    say(" fresh")
    bench.archive("first")
    section("fresh", in_turn(rounds, {UNLOCK: bench.unlock, PLAIN: plain("first.tar")}, bench.clear))
    say(" resumed")
    half = statistics.median(run["seconds"] for run in found["fresh"][UNLOCK]) / 2
    section("resumed", in_turn(rounds, {UNLOCK: lambda: bench.unlock_after_kill(half)}, bench.clear))
    say(" one of seven changed")
    bench.load_first()
    bench.archive("second")
    section("changed", in_turn(rounds, {UNLOCK: bench.unlock, PLAIN: plain("second.tar")}, bench.back_to_first))
    say(" nothing changed")
    bench.archive("first")
    section("unchanged", in_turn(rounds, {UNLOCK: bench.unlock, PLAIN: plain("first.tar")}, bench.back_to_first))
    if other_rounds:
        say(" other ways")
        others = {name: (lambda script=script: bench.command(script)) for name, script in scripts.items()}
        section("others", in_turn(other_rounds, {UNLOCK: bench.unlock, **others}, bench.clear))
    say(" answers while it runs")
    found["watched"] = watched(bench)
    return found


def watched(bench: Bench) -> dict[str, Any]:
    """Run one fresh unlock with `/health` asked all along."""
    bench.clear()
    service = bench.start_service()
    with HealthWatch(service.port) as health:
        run = bench.unlock()
    return {
        "bytes": bench.images.bytes,
        "idle_bytes": bench.idle_bytes,
        "peak_bytes": run.own_bytes,
        "client_bytes": run.client_bytes,
        "disk_bytes": run.disk_bytes,
        "seconds": run.seconds,
        "health_slowest_s": health.slowest_s,
        "health_median_s": health.median_s,
    }


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def machine() -> dict[str, Any]:
    """Describe the machine: nothing that names it."""
    cpu = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        os.uname().machine,
    )
    total = int(Path("/proc/meminfo").read_text().split()[1]) * 1024
    openssl = subprocess.run(["openssl", "version"], capture_output=True, text=True, check=False).stdout.strip()
    return {
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": total,
        "kernel": os.uname().release.partition("-")[0],
        "python": sys.version.split()[0],
        "openssl": openssl,
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=("unlock", "resources", "document"), help="measure a half, or nothing")
    parser.add_argument("--add", type=Path, metavar="RESULTS", help="take in the figures of another results file")
    parser.add_argument("--engines", nargs="*", default=["found", "trixie", "trixie-containerd"])
    parser.add_argument("--host", nargs="*", default=[], metavar="ENGINE=DOCKER_HOST", help="where engines answer")
    parser.add_argument("--work", type=Path, default=Path("/tmp/azaion-bench"), help="for the image sets (8 GB)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--other-rounds", type=int, default=2, help="of the ways without a bar; 0 leaves them out")
    parser.add_argument("--shared", type=int, default=470_000_000, help="bytes of the layer that all images share")
    parser.add_argument("--unique", type=int, default=90_000_000, help="bytes of each image's own layer")
    parser.add_argument("--large", action="store_true", help="one more unlock, of 8 GB, for its memory")
    parser.add_argument("--no-cold-start", action="store_true")
    parser.add_argument("--model-mb", type=int, default=500, help="size of the model")
    parser.add_argument("--model-memory-mib", type=int, default=4096, help="of the one for the memory; 0: not measured")
    parser.add_argument("--results", type=Path, default=ROOT / "build" / "bench" / "results.json")
    parser.add_argument("--write", type=Path, default=ROOT / "docs" / "performance.md")
    options = parser.parse_args()
    options.results.parent.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = json.loads(options.results.read_text()) if options.results.exists() else {}
    if options.add is not None:
        results |= json.loads(options.add.read_text())
    if options.only != "document" or "machine" not in results:
        results["machine"] = machine()

    def keep() -> None:
        options.results.write_text(json.dumps(results, indent=1))
        options.write.write_text(report.document(results))

    if options.only in {None, "unlock"}:
        measure_unlock(options, results, keep)
    if options.only in {None, "resources"}:
        say("models")
        results["resources"] = resources_bench.measure(
            options.work,
            size=options.model_mb * 1_000_000,
            memory_size=options.model_memory_mib << 20,
            rounds=options.rounds,
            say=say,
        )
    keep()
    return 0


def measure_unlock(options: argparse.Namespace, results: dict[str, Any], keep: Callable[[], None]) -> None:
    """Measure the unlock on every engine, and the start of the service; keep what is there after each."""
    hosts = dict(entry.split("=", 1) for entry in options.host)
    for name in options.engines:
        layout = "older" if name == "found" else "oci"
        images = ImageSet(options.work, shared_bytes=options.shared, unique_bytes=options.unique, layout=layout)
        say(f"building the set ({layout})")
        images.build()
        with engine_at(name, hosts) as host:
            say(name)
            with Bench(host, images, options.work / "run") as bench:
                results.setdefault("engines", {})[name] = measure(bench, options.rounds, options.other_rounds)
                results["proof"] = proof.measure(images.path("first.enc"), images.path("first.tar"), options.rounds)
            keep()
    if options.large:
        sizes = {"shared_bytes": 3_400_000_000, "unique_bytes": 660_000_000}
        images = ImageSet(options.work, **sizes, layout="older", first_only=True)
        say("building the large set")
        images.build()
        with engine_at("found", hosts) as host, Bench(host, images, options.work / "run") as bench:
            results["large"] = watched(bench)
        keep()
    if not options.no_cold_start:
        results["cold_start"] = cold_start.measure(11)
    keep()


if __name__ == "__main__":
    sys.exit(main())
