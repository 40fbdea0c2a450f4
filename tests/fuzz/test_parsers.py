"""Every reader of foreign bytes: whatever it is given, it returns, or raises an error of our own, in bounded time."""

import base64
import functools
import gzip
import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from azaion_devkit.image_sets import gzipped, make_images, oci_layout, older_layout
from azaion_devkit.readers import BytesReader
from azaion_loader.archive import open_archive, prove_layers
from azaion_loader.archive_signature import parse_signature
from azaion_loader.cdn_credentials import parse_cdn_yaml
from azaion_loader.device_conf import parse_device_conf
from azaion_loader.docker_answers import absent_references, fault, parse_images, parse_info
from azaion_loader.errors import LoaderError
from azaion_loader.security import archive_key, decrypt, encrypt
from azaion_loader.tar_index import parse_header
from azaion_loader.tokens import decode_token
from azaion_loader.upload_form import FormReader
from azaion_loader.user import user_from_claims

pytestmark = pytest.mark.family("fuzz and properties")

LIMIT = 1 << 22
CASE_S = 10.0
KEY = archive_key(b"key-fragment-0001")
BOUNDARY = b"a-boundary"
IMAGES = make_images(("azaion/one:test", "azaion/two:test"), shared_bytes=1500, unique_bytes=611)


def go_on() -> None:
    """Never cancels."""


def archive(data: bytes) -> None:
    reader = BytesReader(data)
    index = open_archive(reader, LIMIT, go_on)
    prove_layers(reader, index, [layer for i in index.images for layer in i.layers], lambda _: None, go_on, 1)


def token(data: bytes) -> None:
    user_from_claims(decode_token(data.decode("latin-1")))


def form(data: bytes, cut: int = 7) -> None:
    reader = FormReader(f"multipart/form-data; boundary={BOUNDARY.decode()}", "model.bin")
    for start in range(0, len(data), cut):
        reader.write(data[start : start + cut])
    reader.finish()


def docker_words(data: bytes) -> None:
    assert isinstance(fault("load", 1, data), LoaderError)
    absent_references(data, ["azaion/flights:latest"])


def jwt(claims: dict[str, Any]) -> bytes:
    parts = (json.dumps({"alg": "HS256"}), json.dumps(claims), "signature")
    return b".".join(base64.urlsafe_b64encode(part.encode()).rstrip(b"=") for part in parts)


SIGNATURE = {
    "format": 1,
    "created": "2026-01-02T03:04:05Z",
    "images": {"azaion/flights:latest": f"sha256:{'0' * 64}"},
    "signature": base64.b64encode(bytes(64)).decode(),
}
INSPECTED = {
    "Id": f"sha256:{'1' * 64}",
    "RepoTags": ["azaion/flights:latest"],
    "RootFS": {"Layers": [f"sha256:{'2' * 64}"]},
    "Os": "linux",
    "Architecture": "amd64",
    "Config": {"Cmd": ["x"]},
}
INFO = {"ServerVersion": "20.10.24", "OSType": "linux", "Architecture": "x86_64", "DockerRootDir": "/var/lib/docker"}
CLAIMS = {"nameid": "4d7e7a10-0000-4000-8000-000000000001", "unique_name": "user@example.com", "role": "Operator"}
PART = b'--%s\r\nContent-Disposition: form-data; name="%s"%s\r\n\r\n%s\r\n'
FORM = (
    PART % (BOUNDARY, b"data", b'; filename="a"', bytes(range(256)))
    + PART % (BOUNDARY, b"folder", b"", b"models")
    + b"--%s--\r\n" % BOUNDARY
)

READERS: dict[str, tuple[Callable[[bytes], object], list[bytes]]] = {
    "tar index": (
        archive,
        [
            b"".join(older_layout(IMAGES)),
            b"".join(oci_layout(IMAGES)),
            b"".join(gzipped(older_layout(IMAGES))),
            gzip.compress(bytes(10_000)),
        ],
    ),
    "tar header": (lambda data: parse_header(data[:512].ljust(512, b"\0"), 0), [b"".join(older_layout(IMAGES))[:512]]),
    "encrypted bytes": (lambda data: decrypt(data, KEY), [encrypt(b"hello loader" * 40, KEY), encrypt(b"", KEY)]),
    "cdn.yaml": (
        parse_cdn_yaml,
        [
            b"host: https://cdn.example\ndownloader_access_key: a\ndownloader_access_secret: b\n"
            b"uploader_access_key: c\nuploader_access_secret: d\n",
            b"a: &a [x, x]\nb: &b [*a, *a]\nhost: *b\n",
        ],
    ),
    "token": (token, [jwt(CLAIMS), b"a.b.c"]),
    "multipart form": (form, [FORM]),
    "multipart form in one piece": (functools.partial(form, cut=1 << 20), [FORM]),
    "docker inspect": (
        lambda data: parse_images(data, short_names=True),
        [json.dumps(INSPECTED).encode() * 2, json.dumps([INSPECTED]).encode()],
    ),
    "docker info": (parse_info, [json.dumps(INFO).encode()]),
    "docker's complaints": (docker_words, [b"Error: No such image: azaion/flights:latest\n", b"write: no space left"]),
    "device.conf": (
        lambda data: parse_device_conf(data, "device.conf"),
        [b"AZAION_DEVICE_EMAIL=a@b.c\nAZAION_DEVICE_PASSWORD='x y'\n"],
    ),
    "signature file": (parse_signature, [json.dumps(SIGNATURE).encode()]),
}

EDITS = st.lists(
    st.tuples(st.sampled_from(["flip", "cut", "drop", "insert", "repeat", "swap"]), st.floats(0, 1), st.binary(max_size=24)),  # noqa: E501
    min_size=1,
    max_size=6,
)  # fmt: skip


def damaged(seed: bytes, edits: list[tuple[str, float, bytes]]) -> bytes:
    """Change a good input a little, so that the deep ends of a reader are met too."""
    data = bytearray(seed)
    for kind, where, piece in edits:
        at = int(where * len(data))
        length = len(piece) + 1
        if kind == "flip" and at < len(data):
            data[at] ^= (piece[0] if piece else 1) or 1
        elif kind == "cut":
            del data[at:]
        elif kind == "drop":
            del data[at : at + length]
        elif kind == "insert":
            data[at:at] = piece
        elif kind == "repeat":
            data[at:at] = data[at : at + 512]
        else:
            data[at : at + length] = reversed(data[at : at + length])
    return bytes(data)


def check(read: Callable[[bytes], object], seeds: list[bytes], examples: int) -> None:
    """Give a reader damaged and random inputs; anything but a return or an error of our own gets through to the test."""  # noqa: E501

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        derandomize=True,
        report_multiple_bugs=False,
    )
    @given(data=st.binary(max_size=600) | st.builds(damaged, st.sampled_from(seeds), EDITS))
    def try_one(data: bytes) -> None:
        started = time.monotonic()
        try:
            read(data)
        except LoaderError as err:
            assert err.code  # noqa: PT017
            assert err.message  # noqa: PT017
        assert time.monotonic() - started < CASE_S

    try_one()


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "examples", [pytest.param(60, id="few"), pytest.param(3000, id="many", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("name", READERS)
def test_only_our_own_errors_leave(name: str, examples: int, tally: Callable[[int], None]) -> None:
    read, seeds = READERS[name]
    for seed in seeds[:1]:
        read(seed)  # what is damaged below is good, or the deep ends would never be met
    check(read, seeds, examples)
    tally(examples)


@pytest.mark.proof
def test_the_family_sees_a_reader_that_trusts() -> None:
    """A reader that takes a field for granted, as most do, is found out within the few examples."""

    def trusting(data: bytes) -> object:
        return json.loads(data)["images"]

    with pytest.raises((KeyError, ValueError, TypeError)):
        check(trusting, [json.dumps(SIGNATURE).encode()], 60)
