"""Claims for display, and the check with a public key."""

import base64
import json
import time
from typing import NamedTuple

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from azaion_loader.errors import NotAuthenticated, UpstreamError
from azaion_loader.settings import InvalidSetting
from azaion_loader.tokens import TokenVerifier, decode_token

EC_KEY = ec.generate_private_key(ec.SECP256R1())
RSA_KEY = rsa.generate_private_key(65537, 2048)
CLAIMS = {"nameid": "7d1f", "unique_name": "User@example.com", "role": "Operator", "iss": "AzaionApi", "aud": "x"}


class In(NamedTuple):
    """A time some seconds from when the token is made."""

    in_s: int


def public_pem(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def es256(**changes: object) -> str:
    # `in_s` counts from now: a case must not age while other tests run.
    relative = {
        name: int(time.time()) + value.in_s if isinstance(value, In) else value for name, value in changes.items()
    }
    claims = {**CLAIMS, "exp": int(time.time()) + 900, **relative}
    payload = json.dumps({name: value for name, value in claims.items() if value is not None})
    return jwt.PyJWS().encode(payload.encode(), EC_KEY, algorithm="ES256")


def unsigned(payload: bytes, header: bytes = b'{"alg":"HS256","typ":"JWT"}') -> str:
    words = (base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in (header, payload, b"signature"))
    return ".".join(words)


def test_display_data_is_not_checked() -> None:
    token = jwt.encode({**CLAIMS, "exp": 1, "nbf": 2**40}, "k" * 32, algorithm="HS256")
    assert decode_token(token)["unique_name"] == "User@example.com"
    assert decode_token(unsigned(json.dumps(CLAIMS).encode(), b'{"alg":"none"}'))["role"] == "Operator"


@pytest.mark.parametrize(
    "token",
    [
        "",
        "x",
        "a.b.c",
        "..",
        unsigned(b"[]"),
        unsigned(b"null"),
        unsigned(b"\xff"),
        unsigned(b"{" * 5),
        unsigned(b"[" * 9000),
        unsigned(b'{"a":' + b"9" * 5000 + b"}"),
        unsigned(b"{}") + "A" * 20_000,
        "é.é.é",
    ],
)
def test_what_is_no_token(token: str) -> None:
    with pytest.raises(UpstreamError):
        decode_token(token)


@given(st.text(max_size=200))
def test_any_text_is_claims_or_refused(text: str) -> None:
    with pytest.raises(UpstreamError):
        decode_token(text)


def test_es256_and_rs256_pass() -> None:
    assert TokenVerifier(public_pem(EC_KEY)).verify(es256())["nameid"] == "7d1f"
    token = jwt.encode({**CLAIMS, "exp": int(time.time()) + 900}, RSA_KEY, algorithm="RS256")
    assert TokenVerifier(public_pem(RSA_KEY)).verify(token)["nameid"] == "7d1f"


@pytest.mark.parametrize(
    "changes",
    [
        {"aud": ["other"]},
        {"aud": None},
        {"exp": In(-60)},
        {"nbf": In(3600), "iat": In(3600)},
        {"sub": 5, "jti": 6},
    ],
)
def test_what_the_check_leaves_alone(changes: dict[str, object]) -> None:
    assert TokenVerifier(public_pem(EC_KEY)).verify(es256(**changes))["role"] == "Operator"


@pytest.mark.parametrize(
    "changes",
    [
        {"exp": In(-200)},
        {"exp": None},
        {"exp": "soon"},
        {"exp": float("-inf")},
        {"exp": float("inf")},
        {"iss": None},
        {"iss": "Another"},
        {"iss": 5},
    ],
)
def test_what_the_check_refuses(changes: dict[str, object]) -> None:
    with pytest.raises(NotAuthenticated):
        TokenVerifier(public_pem(EC_KEY)).verify(es256(**changes))


def test_foreign_signatures_and_algorithms_are_refused() -> None:
    verifier = TokenVerifier(public_pem(EC_KEY))
    claims = {**CLAIMS, "exp": int(time.time()) + 900}
    good = es256()
    head, _, signature = good.split(".")
    other = jwt.encode(claims, ec.generate_private_key(ec.SECP256R1()), algorithm="ES256")
    forged = [
        other,
        # The classic: the public key used as an HMAC secret.
        jwt.encode(claims, base64.b64encode(public_pem(EC_KEY)), algorithm="HS256"),
        jwt.encode(claims, RSA_KEY, algorithm="RS256"),
        unsigned(json.dumps(claims).encode(), b'{"alg":"none"}'),
        f"{head}.{base64.urlsafe_b64encode(json.dumps({**claims, 'role': 'ApiAdmin'}).encode()).decode()}.{signature}",
        good[:-4] + "AAAA",
        good.rpartition(".")[0] + ".",
    ]
    for token in forged:
        with pytest.raises((NotAuthenticated, UpstreamError)):
            verifier.verify(token)


@pytest.mark.parametrize(
    "pem",
    [
        b"",
        b"not a key",
        public_pem(ec.generate_private_key(ec.SECP384R1())),
        public_pem(ed25519.Ed25519PrivateKey.generate()),
        public_pem(rsa.generate_private_key(65537, 1024)),  # noqa: S505 - the point of the case
        EC_KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
    ],
    ids=["empty", "text", "p384", "ed25519", "rsa1024", "private"],
)
def test_a_key_file_that_can_not_be_used(pem: bytes) -> None:
    with pytest.raises(InvalidSetting, match="JWT_PUBLIC_KEY_FILE"):
        TokenVerifier(pem)
