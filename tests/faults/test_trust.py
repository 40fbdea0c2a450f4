"""The signed archive: what a public key on the device refuses, and what the device remembers of it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from azaion_devkit.device import Device, image_ids, image_list
from azaion_devkit.engine_proxy import EngineProxy
from azaion_devkit.image_sets import SyntheticImage
from azaion_devkit.mutant import mutant
from azaion_devkit.paused_run import pause
from azaion_loader.archive_signature import sign_images

pytestmark = [pytest.mark.engine, pytest.mark.family("trust")]

OLD, NEW, NEWEST = "2026-01-01T00:00:00Z", "2026-02-01T00:00:00Z", "2026-02-01T00:00:00.5Z"


class Signer:
    """A key pair whose public half lies on the device."""

    def __init__(self, folder: Path) -> None:
        self.private = Ed25519PrivateKey.generate()
        self.public_file = folder / "archive.pub.pem"
        self.public_file.write_bytes(
            self.private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        )

    def signature(self, images: list[SyntheticImage], created: str = NEW) -> bytes:
        pem = self.private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return sign_images({image.tag: image.config_digest for image in images}, created, pem)


@pytest.fixture
def signer(device: Device) -> Signer:
    return Signer(device.folder)


def place(device: Device, images: list[SyntheticImage], signature: bytes) -> None:
    device.place(images)
    Path(f"{device.archive}.sig").write_bytes(signature)


def edited(content: bytes, /, **fields: object) -> bytes:
    return json.dumps(json.loads(content) | fields).encode()


def swapped(images: list[SyntheticImage]) -> list[SyntheticImage]:
    """The same images, the first two under each other's name."""
    first, second, *others = images
    return [
        SyntheticImage(second.tag, first.layers, first.diff_ids, first.config),
        SyntheticImage(first.tag, second.layers, second.diff_ids, second.config),
        *others,
    ]


def check_refusals(device: Device, signer: Signer, environment: dict[str, str]) -> int:
    """Let every forged archive meet a device that runs a good one; return how many there were."""
    good, other = device.images(seed="good"), device.images(seed="other")
    stranger = Signer.__new__(Signer)
    stranger.private = Ed25519PrivateKey.generate()
    own, foreign = signer.signature(good, OLD), signer.signature(other)
    swap = {good[0].tag: good[1].config_digest, good[1].tag: good[0].config_digest}
    names = json.loads(own)["images"]
    loader = device.loader({"ARCHIVE_PUBLIC_KEY_FILE": str(signer.public_file), **environment})
    place(device, good, own)
    assert device.unlock(loader) == {"state": "ready", "error": None}
    before = image_list()
    forged: dict[str, tuple[list[SyntheticImage], bytes]] = {
        "signed by a stranger": (other, stranger.signature(other)),
        "signature of another archive": (other, own),
        "the other way round": (good, foreign),
        "names swapped in the archive": (swapped(good), own),
        "names swapped in the signature": (good, edited(own, images=names | swap)),
        "time edited": (good, edited(own, created=NEW)),
        "one image left out of the signature": (other, signer.signature(other[:6])),
        "signature cut": (other, foreign[:-40]),
        "signature empty": (other, b""),
        "signature of zeros": (other, edited(foreign, signature="A" * 86 + "==")),
        "another format": (other, edited(foreign, format=2)),
    }
    for name, (images, signature) in forged.items():
        place(device, images, signature)
        status = device.unlock(loader, refresh=True)
        assert str(status["error"]).startswith("archive_untrusted: "), (name, status)
        assert image_list() == before, name
    Path(f"{device.archive}.sig").unlink()
    device.place(other)
    assert str(device.unlock(loader, refresh=True)["error"]).startswith("archive_untrusted: ")
    assert image_list() == before
    place(device, other, foreign)
    assert device.unlock(loader, refresh=True) == {"state": "ready", "error": None}
    return len(forged) + 2


def test_only_what_the_key_vouches_for_is_loaded(device: Device, signer: Signer, tally: Callable[[int], None]) -> None:
    tally(check_refusals(device, signer, {}))


def check_downgrade(device: Device, signer: Signer, environment: dict[str, str]) -> None:
    settings = {"ARCHIVE_PUBLIC_KEY_FILE": str(signer.public_file), **environment}
    old, new = device.images(seed="old"), device.images(seed="new")
    loader = device.loader(settings)
    for images, created in ((old, OLD), (new, NEW)):
        place(device, images, signer.signature(images, created))
        assert device.unlock(loader, refresh=True) == {"state": "ready", "error": None}
    before = image_list()
    place(device, old, signer.signature(old, OLD))
    for _ in range(2):
        assert str(device.unlock(loader, refresh=True)["error"]).startswith("archive_too_old: ")
        assert image_list() == before
        loader.kill()
        loader = device.loader(settings)
    loader.kill()
    # What an operator allows does not lower the mark: the next loader without the permission refuses again.
    loader = device.loader({**settings, "ALLOW_DOWNGRADE": "1"})
    assert device.unlock(loader, refresh=True)["state"] == "ready"
    loader.kill()
    loader = device.loader(settings)
    assert str(device.unlock(loader, refresh=True)["error"]).startswith("archive_too_old: ")
    place(device, new, signer.signature(new, NEWEST))
    assert device.unlock(loader, refresh=True)["state"] == "ready"


@pytest.mark.slow
def test_an_old_archive_is_not_played_again(device: Device, signer: Signer, tally: Callable[[int], None]) -> None:
    check_downgrade(device, signer, {})
    tally(6)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["first-move", "after-the-commit"])
def test_a_kill_does_not_make_the_device_forget(device: Device, signer: Signer, proxy: EngineProxy, stage: str) -> None:
    settings = {"ARCHIVE_PUBLIC_KEY_FILE": str(signer.public_file), "DOCKER_HOST": proxy.host}
    old, new = device.images(seed="old"), device.images(seed="new")
    loader = device.loader(settings)
    place(device, old, signer.signature(old, OLD))
    assert device.unlock(loader)["state"] == "ready"
    place(device, new, signer.signature(new, NEW))
    hold = pause(stage, device, proxy, loader)
    loader.kill()
    hold.drop()
    loader = device.loader(settings)
    # By name everything is there, so this run asks nobody: the mark has to stand already.
    assert device.unlock(loader)["state"] == "ready"
    place(device, old, signer.signature(old, OLD))
    assert str(device.unlock(loader, refresh=True)["error"]).startswith("archive_too_old: ")


@pytest.mark.slow
def test_without_a_key_nothing_is_asked(device: Device) -> None:
    images = device.images()
    place(device, images, b"no signature at all")
    assert device.unlock(device.loader())["state"] == "ready"
    assert image_ids(device.tags) == [image.config_digest for image in images]


@pytest.mark.slow
@pytest.mark.parametrize("key", ["missing", "not a key"])
def test_a_key_that_can_not_be_used_lets_nothing_through(device: Device, key: str) -> None:
    """A setting that asks for trust never falls back to none."""
    device.place(device.images())
    file = device.folder / "archive.pub.pem"
    if key == "not a key":
        file.write_text("nothing")
    status = device.unlock(device.loader({"ARCHIVE_PUBLIC_KEY_FILE": str(file)}))
    assert status["error"].startswith("archive_untrusted: ")


MUTATIONS = {
    "the signature is not verified": ("archive_signature", "key.verify(signature.signature", "bool(signature.signature", check_refusals),  # noqa: E501
    "names are not compared": ("archive_trust", "if wrong:", "if False:", check_refusals),
    "no memory": ("unlock_run", "newest(ledger.newest_trusted, created) if created else ledger.newest_trusted", "None", check_downgrade),  # noqa: E501
}  # fmt: skip


@pytest.mark.proof
@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow) for name in MUTATIONS])
def test_the_family_sees(device: Device, signer: Signer, tmp_path: Path, name: str) -> None:
    module, text, replacement, check = MUTATIONS[name]
    with pytest.raises(AssertionError):
        check(device, signer, mutant(tmp_path, module, text, replacement))
