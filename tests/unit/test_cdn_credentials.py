"""`cdn.yaml`: what is read, what is refused, and that nothing of it is ever shown."""

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from azaion_loader.cdn_credentials import CDN_YAML_LIMIT_BYTES, CDNCredentials, endpoint_of, parse_cdn_yaml
from azaion_loader.errors import UpstreamError

GOOD = """
host: cdn.example.com:9000
downloader_access_key: dk
downloader_access_secret: dsecret
uploader_access_key: uk
uploader_access_secret: usecret
comment: [further, keys, are, left, alone]
"""


def test_reads_the_five_keys() -> None:
    credentials = parse_cdn_yaml(GOOD.encode())
    assert credentials == CDNCredentials("https://cdn.example.com:9000", "dk", "dsecret", "uk", "usecret")
    assert credentials != CDNCredentials("https://cdn.example.com:9000", "dk", "dsecret", "uk", "other")


def test_shows_and_pickles_no_secret() -> None:
    credentials = parse_cdn_yaml(GOOD.encode())
    for secret in ("dsecret", "usecret", "dk", "uk"):
        assert f"{secret}'" not in repr(credentials)
    with pytest.raises(TypeError):
        pickle.dumps(credentials)
    with pytest.raises(TypeError):
        hash(credentials)


@pytest.mark.parametrize(
    ("host", "endpoint"),
    [
        ("cdn.example.com", "https://cdn.example.com"),
        ("http://127.0.0.1:9000/", "http://127.0.0.1:9000"),
        ("https://[::1]:9000", "https://[::1]:9000"),
        ("minio_1:9000", "https://minio_1:9000"),
    ],
)
def test_host_becomes_an_endpoint(host: str, endpoint: str) -> None:
    assert endpoint_of(host) == endpoint


@pytest.mark.parametrize(
    "host",
    [
        "", " ", "ftp://cdn", "https://", "https://cdn/path", "https://user:pw@cdn", "https://cdn?x=1", "https://cdn#x",
        "https://cdn:0", "https://cdn:99999", "https://cdn:port", "c d n", "cdn\n.example", "https://cdn:", "-cdn.x",
        "https://a..b", "https://[::1", "http://cdn\\@evil", "x" * 300, "cdn/..", "javascript:alert(1)", "https://\u217ddn",
    ],
)  # fmt: skip
def test_host_with_anything_else_is_refused(host: str) -> None:
    with pytest.raises(UpstreamError):
        endpoint_of(host)


@pytest.mark.parametrize("key", ["host", "downloader_access_key", "uploader_access_secret"])
@pytest.mark.parametrize("value", [None, "''", "17", "[a]", "{a: b}", "null", "true", "' '", '"a\\nb"', "x" * 600])
def test_missing_and_wrongly_typed_keys_are_refused(key: str, value: str | None) -> None:
    lines = [line for line in GOOD.strip().splitlines() if not line.startswith(f"{key}:")]
    if value is not None:
        lines.append(f"{key}: {value}")
    with pytest.raises(UpstreamError) as caught:
        parse_cdn_yaml("\n".join(lines).encode())
    assert key in caught.value.message


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{c}: &{c} [{', '.join(['*' + p] * 9)}]\n" for p, c in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    "data",
    [
        b"", b"\xff\xfe\x00", b"- a\n- b", b"just text", b"host: [", b"a: b: c", b"\x00",
        b"!!python/object/apply:os.getcwd []",
        BOMB.encode(), (GOOD + BOMB).encode(), b"x: &x [*x]\n", b"x: " + b"[" * 5000, b"{" * 60000,
        GOOD.encode() + b"#" * CDN_YAML_LIMIT_BYTES, GOOD.encode() + b"k: 9999-99-99\n", b"? [a]\n: b\n",
    ],
    ids=range(16),
)  # fmt: skip
def test_hostile_and_broken_files_are_refused_cheaply(data: bytes) -> None:
    with pytest.raises(UpstreamError):
        parse_cdn_yaml(data)


def test_a_refusal_quotes_nothing() -> None:
    broken = GOOD.replace("usecret", "usecret: [")
    with pytest.raises(UpstreamError) as caught:
        parse_cdn_yaml(broken.encode())
    assert caught.value.__cause__ is not None
    assert "usecret" not in caught.value.message + str(caught.value.__cause__)


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_any_bytes_end_in_credentials_or_a_refusal(data: bytes) -> None:
    try:
        parse_cdn_yaml(data)
    except UpstreamError:
        return
