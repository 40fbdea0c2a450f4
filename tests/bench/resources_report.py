"""The part of docs/performance.md about models."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

MB = 1_000_000
GIB = 1 << 30

# What is compared, with what, and the highest ratio.
SECTIONS = {
    "cached": ("Load, big part in the cache", "`FileResponse` of the plaintext, same HTTP server", 1.6),
    "uncached": ("Load, nothing in the cache", "`aws s3 cp`, then `openssl enc -d`", 1.0),
    "upload": ("Upload", "`openssl enc`, then `aws s3 cp`", 1.2),
}
MEMORY_BAR_MB = 96


def lines(found: Mapping[str, Any]) -> Iterator[str]:
    """Yield the section's lines."""
    tools = ", ".join(said for said in found["tools"].values() if said)
    yield ""
    yield "## Models"
    yield ""
    yield (
        f"A model of {found['bytes'] / MB:.0f} MB, by the loader in a process of its own, a real S3 server "
        f"({found['store']}) and the development Resource API, all on this machine. The ways take turns, after one "
        f"round to warm up, and the disk is at rest before each. Other tools: {tools}. Load average of the machine "
        f"meanwhile: {min(found['load_average']):.1f} to {max(found['load_average']):.1f}."
    )
    yield ""
    yield "| what | way | runs | median s | range | ratio | bar |"
    yield "|---|---|---|---|---|---|---|"
    for section, (title, other, bar) in SECTIONS.items():
        if section not in found:
            yield f"| {title} | left out: a tool is missing | | | | | ≤ {bar:g} **not measured** |"
            continue
        ours, theirs = found[section]["ours"], found[section]["theirs"]
        ratio = statistics.median(ours) / statistics.median(theirs)
        yield f"| {title} | loader | {_times(ours)} | {ratio:.2f} | ≤ {bar:g} {_verdict(ratio <= bar)} |"
        yield f"| {title} | {other} | {_times(theirs)} | 1.00 | |"
    yield ""
    if "memory" not in found:
        yield f"Memory during a large load and a large upload at once: **not measured** (bar: {MEMORY_BAR_MB} MB)."
        return
    run = found["memory"]
    idle, warm, peak = (run[f"{name}_bytes"] / MB for name in ("idle", "warm", "peak"))
    yield (
        f"Memory (proportional set size of the service and all below it) during a load and an upload of "
        f"{run['bytes'] / GIB:.3g} GiB each at once, nothing in the cache, {run['seconds']:.0f} s:"
    )
    yield ""
    yield "| idle after the start MB | idle after the first requests MB | highest MB | above the first idle MB | bar |"
    yield "|---|---|---|---|---|"
    verdict = _verdict(peak - idle <= MEMORY_BAR_MB)
    yield f"| {idle:.0f} | {warm:.0f} | {peak:.0f} | {peak - idle:.0f} | ≤ {MEMORY_BAR_MB} {verdict} |"


def _times(seconds: Sequence[float]) -> str:
    return f"{len(seconds)} | {statistics.median(seconds):.2f} | {min(seconds):.2f} to {max(seconds):.2f}"


def _verdict(met: bool) -> str:
    return "met" if met else "**missed**"
