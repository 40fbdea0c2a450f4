"""azaion-pack, and what the loader composes from its archive, on a real engine."""

import hashlib
import json
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from azaion_devkit import pack
from azaion_devkit.image_sets import SyntheticImage, load_into_engine, make_images, oci_layout, older_layout
from azaion_devkit.reference_crypto import decrypt
from azaion_loader.archive import ArchiveIndex, open_archive
from azaion_loader.archive_signature import parse_signature, verify_signature
from azaion_loader.load_plan import LoadStream, compose_docker_tar, compose_oci_tar
from azaion_loader.security import CbcReader, archive_key

pytestmark = pytest.mark.engine

CANARY = b"CANARY-of-the-pack-tests"


def go_on() -> None:
    """Never cancels."""


def docker(*arguments: str) -> str:
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def layers_of(reference: str) -> list[str]:
    return docker("image", "inspect", "--format", '{{join .RootFS.Layers " "}}', reference).split()


@pytest.fixture
def images(docker_host: str) -> Iterator[list[SyntheticImage]]:
    """Three images in the engine, with names of their own."""
    assert docker_host
    run = uuid.uuid4().hex[:12]
    tags = [f"azaion-pack-test/{name}:{run}" for name in ("one", "two", "three")]
    made = make_images(tags, shared_bytes=200_000, unique_bytes=50_000, seed=run, canary=CANARY)
    load_into_engine(older_layout(made))
    yield made
    with suppress(AssertionError):
        docker("image", "rm", *tags)


@pytest.fixture
def staged(images: list[SyntheticImage]) -> Iterator[list[str]]:
    """Names for what is loaded, cleaned up after the test."""
    tags = [f"{image.tag}-staged" for image in images]
    yield tags
    for tag in tags:
        with suppress(AssertionError):
            docker("image", "rm", tag)


def run_pack(images: list[SyntheticImage], folder: Path, *options: str) -> int:
    names = [image.tag for image in images]
    return pack.main(
        [*names, "--out", str(folder / "images.enc"), "--key-fragment", str(folder / "fragment"), *options]
    )


@contextmanager
def opened(folder: Path) -> Iterator[tuple[CbcReader, ArchiveIndex]]:
    with (folder / "images.enc").open("rb") as source:
        reader = CbcReader(source, archive_key((folder / "fragment").read_bytes()))
        yield reader, open_archive(reader, 1 << 30, go_on)


@pytest.mark.parametrize("options", [(), ("--gzip",)])
def test_a_packed_archive_holds_the_engine_s_images(
    images: list[SyntheticImage], tmp_path: Path, options: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_pack(images, tmp_path, *options) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fragment", "images.enc"]
    assert (tmp_path / "fragment").stat().st_mode & 0o777 == 0o600
    data = (tmp_path / "images.enc").read_bytes()
    assert CANARY not in data
    plain = decrypt(data, hashlib.sha256((tmp_path / "fragment").read_bytes()).digest())
    assert (plain[:2] == b"\x1f\x8b") == bool(options)
    with opened(tmp_path) as (_, index):
        pass
    assert {tag: image.diff_ids for image in index.images for tag in image.tags} == {
        image.tag: image.diff_ids for image in images
    }
    assert images[0].tag in capsys.readouterr().out


def test_a_second_archive_keeps_the_fragment_and_replaces_the_signature(
    images: list[SyntheticImage], tmp_path: Path
) -> None:
    key = Ed25519PrivateKey.generate()
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (tmp_path / "key.pem").write_bytes(pem)
    assert run_pack(images[:2], tmp_path, "--sign", str(tmp_path / "key.pem")) == 0
    fragment = (tmp_path / "fragment").read_bytes()
    signature = parse_signature((tmp_path / "images.enc.sig").read_bytes())
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    verify_signature(signature, key.public_key().public_bytes(serialization.Encoding.PEM, form))
    with opened(tmp_path) as (_, index):
        pass
    assert signature.images == {tag: image.config_digest for image in index.images for tag in image.tags}
    assert run_pack(images, tmp_path) == 0
    assert (tmp_path / "fragment").read_bytes() == fragment
    assert not (tmp_path / "images.enc.sig").exists()


def test_failures_leave_what_was_there(
    images: list[SyntheticImage], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "images.enc").write_bytes(b"older")
    missing = "azaion-pack-test/missing:none"
    assert pack.main([missing, "--out", str(tmp_path / "images.enc"), "--key-fragment", str(tmp_path / "f")]) == 1
    assert missing in capsys.readouterr().err
    by_id = docker("image", "inspect", "--format", "{{.Id}}", images[0].tag)
    assert pack.main([by_id, "--out", str(tmp_path / "images.enc"), "--key-fragment", str(tmp_path / "f")]) == 1
    assert "without a tag" in capsys.readouterr().err
    (tmp_path / "empty").touch()
    assert (
        pack.main([images[0].tag, "--out", str(tmp_path / "images.enc"), "--key-fragment", str(tmp_path / "empty")])
        == 1
    )
    assert "empty" in capsys.readouterr().err
    assert run_pack(images, tmp_path, "--sign", str(tmp_path / "no-key")) == 1
    monkeypatch.setenv("DOCKER_CLI", str(tmp_path / "no-docker"))
    assert run_pack(images, tmp_path) == 1
    assert "can't be run" in capsys.readouterr().err
    with pytest.raises(SystemExit) as caught:
        pack.main(["--", "-x", "--out", "x"])
    assert caught.value.code == 2
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"images.enc": b"older", "empty": b""}


def give(stream: LoadStream, reader: CbcReader) -> None:
    load_into_engine(bytes(chunk) for chunk in stream.chunks(reader, 1 << 16))


@pytest.mark.parametrize("options", [(), ("--gzip",)])
def test_the_composed_tar_and_its_delta_load_with_the_config_digest_as_id(
    images: list[SyntheticImage], staged: list[str], tmp_path: Path, options: tuple[str, ...]
) -> None:
    assert run_pack(images, tmp_path, *options) == 0
    docker("image", "rm", *(image.tag for image in images))
    with opened(tmp_path) as (reader, index):
        containerd = "io.containerd.snapshotter" in docker("info", "--format", "{{.DriverStatus}}")
        compose = compose_oci_tar if containerd else compose_docker_tar
        pairs = list(zip(index.images, staged, strict=True))
        give(compose(index, pairs[:1]), reader)
        own = {layer for image in index.images[1:] for layer in image.diff_ids[1:]}
        delta = compose(index, pairs[1:], own)
        assert delta.total_bytes < sum(layer.size for image in index.images[1:] for layer in image.layers[1:]) + 16_384
        give(delta, reader)
        for image, tag in pairs:
            assert layers_of(tag) == list(image.diff_ids)
            if not containerd:
                assert docker("image", "inspect", "--format", "{{.Id}}", tag) == image.config_digest


@pytest.mark.parametrize("layout", ["older", "oci", "packed"])
def test_synthetic_images_load_in_every_layout(docker_host: str, layout: str) -> None:
    run = uuid.uuid4().hex[:12]
    (image,) = made = make_images([f"azaion-pack-test/set:{run}"], shared_bytes=1000, unique_bytes=1000, seed=run)
    version = docker("version", "--format", "{{.Server.Version}}")
    if layout != "packed" or int(version.split(".")[0]) >= 25:
        stream = older_layout(made) if layout == "older" else oci_layout(made, packed=layout == "packed")
        load_into_engine(stream)
        try:
            assert layers_of(image.tag) == list(image.diff_ids)
        finally:
            docker("image", "rm", image.tag)
    with pytest.raises(RuntimeError, match="docker load failed"):
        load_into_engine([b"x" * 1024])


def verified(folder: Path, capsys: pytest.CaptureFixture[str], *options: str, code: int = 0) -> dict[str, Any]:
    capsys.readouterr()
    arguments = ["verify", str(folder / "images.enc"), "--key-fragment", str(folder / "fragment"), "--json", *options]
    assert pack.main(arguments) == code
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


@pytest.mark.parametrize("options", [(), ("--gzip",)])
def test_verify_lists_what_an_archive_holds(
    images: list[SyntheticImage], tmp_path: Path, options: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_pack(images, tmp_path, *options) == 0
    found = verified(tmp_path, capsys)
    assert {tag for image in found["images"] for tag in image["tags"]} == {image.tag for image in images}
    assert [layer["diff_id"] for layer in found["images"][0]["layers"]]
    assert found["gzipped"] == bool(options)
    assert found["layer_bytes"] < sum(image["bytes"] for image in found["images"])
    arguments = ["verify", str(tmp_path / "images.enc"), "--key-fragment", str(tmp_path / "fragment")]
    assert pack.main(arguments) == 0
    said = capsys.readouterr().out
    assert said.endswith(" layout, proved\n" if not options else " layout, gzipped, proved\n")
    assert images[0].tag in said


def test_verify_refuses_a_flipped_byte_and_another_key(
    images: list[SyntheticImage], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_pack(images[:1], tmp_path) == 0
    archive = tmp_path / "images.enc"
    data = bytearray(archive.read_bytes())
    data[len(data) // 2] ^= 1
    archive.write_bytes(data)
    assert verified(tmp_path, capsys, code=1)["detail"]
    data[len(data) // 2] ^= 1
    archive.write_bytes(data)
    verified(tmp_path, capsys)
    (tmp_path / "fragment").write_bytes(b"another")
    assert verified(tmp_path, capsys, code=1)["detail"]


def test_verify_proves_the_signature(
    images: list[SyntheticImage], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key, other = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (tmp_path / "key.pem").write_bytes(pem)
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    for name, pair in (("good.pem", key), ("other.pem", other)):
        (tmp_path / name).write_bytes(pair.public_key().public_bytes(serialization.Encoding.PEM, form))
    assert run_pack(images[:2], tmp_path, "--sign", str(tmp_path / "key.pem")) == 0
    assert verified(tmp_path, capsys, "--public-key", str(tmp_path / "good.pem"))["signed"].endswith("Z")
    assert verified(tmp_path, capsys, "--public-key", str(tmp_path / "other.pem"), code=1)["detail"]


def test_another_platform_is_refused(
    images: list[SyntheticImage], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_pack(images[:1], tmp_path, "--platform", "linux/s390x") == 1
    assert "not for linux/s390x" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_mixed_platforms_are_refused(
    images: list[SyntheticImage], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tag = f"{images[0].tag}-foreign"
    load_into_engine(older_layout(make_images([tag], shared_bytes=1000, unique_bytes=1000, architecture="s390x")))
    try:
        names = [images[0].tag, tag]
        arguments = [*names, "--out", str(tmp_path / "images.enc"), "--key-fragment", str(tmp_path / "fragment")]
        assert pack.main(arguments) == 1
        assert "different platforms" in capsys.readouterr().err
        assert list(tmp_path.iterdir()) == []
    finally:
        docker("image", "rm", tag)
