"""Flipped bits and cuts of the archive, through the service, with a real engine: nothing of the engine's changes."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from azaion_devkit.device import Device, image_ids, image_list
from azaion_devkit.image_sets import oci_layout, older_layout
from azaion_devkit.mutant import mutant

pytestmark = [pytest.mark.engine, pytest.mark.family("flips and cuts")]

SEED = 20_260_102
CODES = {"archive_invalid", "archive_incomplete", "wrong_key", "wrong_platform"}


def check_series(device: Device, layout: Any, flips: int, cuts: int, environment: dict[str, str]) -> None:
    """Damage the archive of a second version again and again while the first one is the device's."""
    device.place(device.images(seed="first", shared_bytes=3000, unique_bytes=1000), layout)
    loader = device.loader(environment)
    assert device.unlock(loader)["state"] == "ready"
    second = device.place(device.images(seed="second", shared_bytes=3000, unique_bytes=1000), layout)
    good, before, chance = device.archive.read_bytes(), image_list(), random.Random(SEED)
    damaged: list[tuple[str, bytes]] = []
    for number in range(flips):
        # Spread over the file, so that each kind of member is met, and at random within its stretch.
        place = min(len(good) * number // flips + chance.randrange(len(good) // flips + 1), len(good) - 1)
        data = bytearray(good)
        data[place] ^= 1 << chance.randrange(8)
        damaged.append((f"bit flipped in byte {place}", bytes(data)))
    for number in range(cuts):
        length = chance.randrange(len(good)) if number % 2 else chance.randrange(len(good) // 16) * 16
        damaged.append((f"cut to {length} bytes", good[:length]))
    for name, data in damaged:
        device.archive.write_bytes(data)
        status = device.unlock(loader, refresh=True)
        assert status["state"] == "error", name
        assert status["error"].split(":")[0] in CODES, (name, status)
        assert image_list() == before, name
    device.archive.write_bytes(good)
    assert device.unlock(loader, refresh=True) == {"state": "ready", "error": None}
    assert image_ids(device.tags) == [image.config_digest for image in second]


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("flips", "cuts"),
    [pytest.param(12, 4, id="sample"), pytest.param(200, 20, id="whole-series", marks=pytest.mark.slow)],
)
@pytest.mark.parametrize("layout", [older_layout, oci_layout], ids=["older", "oci"])
def test_no_damage_reaches_the_engine(
    device: Device, layout: Any, flips: int, cuts: int, tally: Callable[[int], None]
) -> None:
    check_series(device, layout, flips, cuts, {})
    tally(flips + cuts)


@pytest.mark.slow
@pytest.mark.proof
def test_the_family_sees_layers_that_are_not_hashed(device: Device, tmp_path: Path) -> None:
    environment = mutant(tmp_path, "unlock_run", "loader.prove()", "pass")
    with pytest.raises(AssertionError):
        check_series(device, older_layout, 20, 0, environment)
