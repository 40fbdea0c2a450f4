"""The signature file: only what the format says, only Ed25519."""

import base64
import json
from collections.abc import Callable

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from azaion_loader.archive_signature import parse_signature, sign_images, verify_signature
from azaion_loader.errors import ArchiveUntrusted

PRIVATE = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
IMAGES = {"azaion/b:1": "sha256:" + "1" * 64, "azaion/ä:1": "sha256:" + "2" * 64}
CREATED = "2026-01-02T03:04:05Z"


def private_pem(key: Ed25519PrivateKey | ec.EllipticCurvePrivateKey) -> bytes:
    form, no_password = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, form, no_password)


def public_pem(key: Ed25519PrivateKey | ec.EllipticCurvePrivateKey) -> bytes:
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_key().public_bytes(serialization.Encoding.PEM, form)


SIGNED = sign_images(IMAGES, CREATED, private_pem(PRIVATE))


def test_a_signature_is_read_and_verified() -> None:
    found = parse_signature(SIGNED)
    assert (found.created, found.images, len(found.signature)) == (CREATED, IMAGES, 64)
    verify_signature(found, public_pem(PRIVATE))


def test_the_signed_bytes_are_those_of_the_format() -> None:
    message = (
        b'azaion-archive-v1\0{"created":"2026-01-02T03:04:05Z","format":1,"images":{"azaion/b:1":"sha256:'
        + b"1" * 64
        + '","azaion/ä:1":"sha256:'.encode()
        + b"2" * 64
        + b'"}}'
    )
    PRIVATE.public_key().verify(base64.b64decode(json.loads(SIGNED)["signature"]), message)


def test_another_key_or_another_kind_of_key_is_refused() -> None:
    found = parse_signature(SIGNED)
    curve = ec.generate_private_key(ec.SECP256R1())
    for key in (public_pem(Ed25519PrivateKey.generate()), public_pem(curve), b"no key", private_pem(PRIVATE), b""):
        with pytest.raises(ArchiveUntrusted):
            verify_signature(found, key)
    for key in (private_pem(curve), public_pem(PRIVATE), b"no key"):
        with pytest.raises(ArchiveUntrusted):
            sign_images(IMAGES, CREATED, key)


CHANGES: list[Callable[[dict[str, object]], object]] = [
    lambda document: document.update(format=2),
    lambda document: document.update(format=True),
    lambda document: document.update(format="1"),
    lambda document: document.update(created=5),
    lambda document: document.update(created="2026-01-02"),
    lambda document: document.update(created="2026-13-02T03:04:05Z"),
    lambda document: document.update(created="2026-01-02T03:04:05+0200"),
    lambda document: document.update(created="2026-01-02T03:04:05"),
    lambda document: document.update(created="20260102T030405Z"),
    lambda document: document.update(images={}),
    lambda document: document.update(images=[]),
    lambda document: document.update(images={"a:b": 1}),
    lambda document: document.update(images={"a:b": "sha256:1"}),
    lambda document: document.update(images={"": "sha256:" + "1" * 64}),
    lambda document: document.update(images={"a\nb": "sha256:" + "1" * 64}),
    lambda document: document.update(signature="!"),
    lambda document: document.update(signature=5),
    lambda document: document.update(signature="AAAA"),
    lambda document: document.update(signature="ä"),
    lambda document: document.update(extra=1),
    lambda document: document.pop("created"),
]


@pytest.mark.parametrize("change", CHANGES)
def test_other_forms_are_refused(change: Callable[[dict[str, object]], object]) -> None:
    document = json.loads(SIGNED)
    change(document)
    with pytest.raises(ArchiveUntrusted):
        parse_signature(json.dumps(document).encode())


@pytest.mark.parametrize(
    "data",
    [b"", b"[]", b"\xff", b"{" * 5000, b" " * (2 << 20), SIGNED.replace(b'"format": 1', b'"format": 1, "format": 1')],
)
def test_other_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(ArchiveUntrusted):
        parse_signature(data)


def test_every_changed_value_breaks_the_signature() -> None:
    for old, new in (
        (b"05Z", b"06Z"),
        (b"azaion/b", b"azaion/c"),
        (b"1111", b"1112"),
        (b'"azaion/b:1"', b'"azaion/b:2"'),
    ):
        changed = parse_signature(SIGNED.replace(old, new, 1))
        with pytest.raises(ArchiveUntrusted):
            verify_signature(changed, public_pem(PRIVATE))


@given(st.integers(0, len(SIGNED) - 1), st.integers(0, 7))
def test_no_flipped_bit_changes_what_is_trusted(offset: int, bit: int) -> None:
    damaged = bytearray(SIGNED)
    damaged[offset] ^= 1 << bit
    try:
        found = parse_signature(bytes(damaged))
        verify_signature(found, public_pem(PRIVATE))
    except ArchiveUntrusted:
        return
    assert (found.created, found.images) == (CREATED, IMAGES)


@given(st.binary(max_size=300))
def test_random_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(ArchiveUntrusted):
        parse_signature(data)


def test_only_the_format_is_signed() -> None:
    for images, created in (({}, CREATED), (IMAGES, "today"), ({"a:b": "1"}, CREATED)):
        with pytest.raises(ArchiveUntrusted):
            sign_images(images, created, private_pem(PRIVATE))


@pytest.mark.parametrize(
    "created", ["2026-01-02T03:04:05Z", "2026-01-02t03:04:05.123456789z", "2026-01-02T05:04:05+02:00"]
)
def test_any_time_of_rfc_3339_is_read(created: str) -> None:
    document = json.loads(SIGNED)
    document["created"] = created
    assert parse_signature(json.dumps(document).encode()).created == created
