"""Writes docs/performance.md from measured results; nothing in it is typed in but its words."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tests.bench import resources_report

MB = 1_000_000
MIB = 1 << 20

SECTIONS = (
    ("fresh", "Nothing of the set in the engine"),
    ("changed", "One of seven images changed"),
    ("unchanged", "Nothing changed"),
    ("resumed", "Killed at half of a fresh run, then run again"),
)
# Against a plain `docker load` of the same tar in the same state; resumed: against a fresh unlock.
BARS = {
    ("found", "fresh"): 0.95,
    ("trixie", "fresh"): 0.85,
    ("trixie-containerd", "fresh"): 0.95,
    "changed": 0.5,
    "unchanged": 0.1,
    "resumed": 0.7,
}
UNLOCK = "unlock"
PLAIN = "`docker load -i`, plain tar"

Runs = Sequence[Mapping[str, float]]


def document(results: Mapping[str, Any]) -> str:
    """Return the whole page."""
    return "\n".join(_lines(results)) + "\n"


def median(runs: Runs, name: str = "seconds") -> float:
    return statistics.median(run[name] for run in runs)


def _lines(results: Mapping[str, Any]) -> Iterator[str]:
    machine = results["machine"]
    yield "# Performance"
    yield ""
    yield "Written by `make bench` (`tests/bench`), not by hand; what the figures mean: [notes](performance-notes.md)."
    yield ""
    yield (
        f"Machine: {machine['cpu']}, {machine['cores']} cores, {machine['memory_bytes'] / 2**30:.0f} GiB of memory, "
        f"Linux {machine['kernel']}, Python {machine['python']}, {machine['openssl']}; {machine['date']}."
    )
    yield ""
    yield (
        "All ways run in turn on one engine, after one round to warm up, in an order that alternates. Times are "
        "medians in seconds, with the fastest and the slowest run. *unlock* is the whole job through the service, from "
        "the post to `ready`: log-in, key, proof, load, proof of the result and switch of the tags. CPU is that of the "
        "engine, and that of what feeds it (the service or the commands, with the client). Memory is the highest "
        "proportional set size, without and of Docker's own client. Ratios count; absolute figures don't travel."
    )
    for name, found in results.get("engines", {}).items():
        yield from _engine(name, found)
    if "engines" in results:
        yield from _service(results)
    if "resources" in results:
        yield from resources_report.lines(results["resources"])


def _engine(name: str, found: Mapping[str, Any]) -> Iterator[str]:
    yield ""
    yield f"## Docker {found['engine']}, {found['store']} store"
    yield ""
    yield (
        f"Set: {found['bytes'] / MB:.0f} MB of plain tar ({found['layout']} layout), seven images: a shared layer of "
        f"{found['shared_bytes'] / MB:.0f} MB and an own one of {found['unique_bytes'] / MB:.0f} MB each. "
        f"Client {found['client']}. Load average of the machine meanwhile: "
        f"{min(found['load_average']):.1f} to {max(found['load_average']):.1f}."
    )
    yield ""
    yield "| state of the engine | way | runs | median s | range | ratio | bar | engine CPU | own CPU |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for section, title in SECTIONS:
        runs = found[section]
        against = found["fresh"][UNLOCK] if section == "resumed" else runs[PLAIN]
        bar = BARS.get((name, section), BARS.get(section))
        for way, listed in runs.items():
            yield _row(title, way, listed, against, bar if way == UNLOCK else None)
    if "others" in found:
        for way, listed in found["others"].items():
            yield _row("Nothing of the set, all ways", way, listed, found["others"][PLAIN], None)
    yield ""
    read = max(run["read_bytes"] for run in found["unchanged"][UNLOCK])
    yield (
        f"With nothing changed the service read at most {read / 1000:.0f} kB in all, archive and everything else "
        "(bar: 1 MB)."
    )
    yield ""
    yield "| way, nothing of the set in the engine | memory MiB | client MiB | disk outside the engine MB |"
    yield "|---|---|---|---|"
    memory = {UNLOCK: found["fresh"][UNLOCK], PLAIN: found["fresh"][PLAIN]}
    for way, listed in (memory | found.get("others", {}) | memory).items():
        own, client = median(listed, "own_bytes") / MIB, median(listed, "client_bytes") / MIB
        yield f"| {way} | {own:.0f} | {client:.0f} | {median(listed, 'disk_bytes') / MB:.0f} |"


def _row(title: str, way: str, runs: Runs, against: Runs, bar: float | None) -> str:
    seconds = [run["seconds"] for run in runs]
    ratio = median(runs) / median(against)
    shown = "" if bar is None else f"≤ {bar:g} {'met' if ratio <= bar else '**missed**'}"
    spread = f"{min(seconds):.2f} to {max(seconds):.2f}"
    return (
        f"| {title} | {way} | {len(runs)} | {median(runs):.2f} | {spread} | {ratio:.2f} "
        f"| {shown} | {median(runs, 'engine_cpu_s'):.1f} | {median(runs, 'own_cpu_s'):.1f} |"
    )


def _service(results: Mapping[str, Any]) -> Iterator[str]:
    yield ""
    yield "## The service meanwhile"
    yield ""
    yield "| run | idle MiB | highest MiB | above idle | bar | clients MiB | slowest `/health` ms | its median ms |"
    yield "|---|---|---|---|---|---|---|---|"
    watched = {f"{found['engine']} {found['store']}": found["watched"] for found in results.get("engines", {}).values()}
    if "large" in results:
        watched["the first engine"] = results["large"]
    for name, run in watched.items():
        above = (run["peak_bytes"] - run["idle_bytes"]) / MIB
        yield (
            f"| {run['bytes'] / MB:.0f} MB on {name} | {run['idle_bytes'] / MIB:.0f} | {run['peak_bytes'] / MIB:.0f} "
            f"| {above:.0f} | ≤ 64 {'met' if above <= 64 else '**missed**'} | {run['client_bytes'] / MIB:.0f} "
            f"| {run['health_slowest_s'] * 1000:.0f} | {run['health_median_s'] * 1000:.1f} |"
        )
    if proof := results.get("proof"):
        one, every = (proof[f"{kind}_bytes_per_s"] / proof["hashlib_bytes_per_s"] for kind in ("one", "all"))
        yield ""
        yield (
            f"Proof pass (decrypting and hashing all layers), against `hashlib.sha256` over the plain tar on one core "
            f"({proof['hashlib_bytes_per_s'] / 1e9:.2f} GB/s): {one:.2f} with one thread, {every:.2f} with "
            f"{proof['cores']} (bar: 0.7)."
        )
    if cold := results.get("cold_start"):
        yield ""
        yield (
            f"Cold start to the first 200 of `/health`: {cold['loader_s'] * 1000:.0f} ms, an empty FastAPI app "
            f"{cold['empty_s'] * 1000:.0f} ms: ratio {cold['ratio']:.2f} (bar: {cold['bar']}), {cold['runs']} runs."
        )
