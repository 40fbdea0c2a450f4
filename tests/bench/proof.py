"""The speed of the proof pass beside `hashlib.sha256` over the same bytes on one core."""

import hashlib
import os
import statistics
import time
from pathlib import Path
from typing import Any

from azaion_devkit.device import KEY_FRAGMENT
from azaion_loader.archive import prove_layers
from azaion_loader.archive_model import distinct_layers
from azaion_loader.binary_split import EncryptedArchive

CHUNK_BYTES = 1 << 20


def measure(archive: Path, tar: Path, rounds: int) -> dict[str, Any]:
    """Return medians of bytes per second; the files are read once before, so that they come from memory."""
    found: dict[str, list[float]] = {"hashlib": [], "one": [], "all": []}
    cores = len(os.sched_getaffinity(0))
    for number in range(rounds + 1):
        for name in found if number % 2 else reversed(found):
            rate = _hash(tar) if name == "hashlib" else _prove(archive, 1 if name == "one" else cores)
            if number:
                found[name].append(rate)
    return {f"{name}_bytes_per_s": statistics.median(rates) for name, rates in found.items()} | {"cores": cores}


def _hash(tar: Path) -> float:
    digest = hashlib.sha256()
    started = time.perf_counter()
    with tar.open("rb", buffering=0) as source:
        while chunk := source.read(CHUNK_BYTES):
            digest.update(chunk)
    return tar.stat().st_size / (time.perf_counter() - started)


def _prove(archive: Path, threads: int) -> float:
    with EncryptedArchive(archive, KEY_FRAGMENT) as opened:
        index = opened.index(1 << 40, lambda: None)
        layers = distinct_layers(layer for image in index.images for layer in image.layers)
        started = time.perf_counter()
        prove_layers(opened.reader, index, layers, lambda _: None, lambda: None, threads)
        return sum(layer.size for layer in layers) / (time.perf_counter() - started)
