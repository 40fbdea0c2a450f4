"""The claims of the Resource API's tokens (JSON Web Tokens, RFC 7519).

Without a public key the claims are display data: nothing is checked, because an `aud` that this service doesn't know
or a slow device clock must not refuse a good token. With one, the signature and the expiry count.
"""

from typing import TYPE_CHECKING

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from azaion_loader.errors import NotAuthenticated, UpstreamError
from azaion_loader.settings import InvalidSetting

if TYPE_CHECKING:
    from jwt.types import Options

ISSUER = "AzaionApi"
TOKEN_MAX_CHARACTERS = 16 * 1024
_LEEWAY_S = 120
_RSA_MIN_BITS = 2048
# `nbf` and `iat` of a fresh token lie in the future of a slow clock; `sub` and `jti` are nobody's business here.
_OPTIONS: "Options" = {
    "require": ["exp", "iss"],
    "verify_aud": False,
    "verify_nbf": False,
    "verify_iat": False,
    "verify_sub": False,
    "verify_jti": False,
}


def decode_token(token: str) -> dict[str, object]:
    """Return the claims of a token without any check. Raises UpstreamError when it is not a JSON Web Token."""
    if len(token) > TOKEN_MAX_CHARACTERS:
        raise UpstreamError("The Resource API's token is longer than any that it makes.")
    try:
        return dict(jwt.decode(token, options={"verify_signature": False}))
    except (jwt.PyJWTError, ValueError, RecursionError) as err:
        raise UpstreamError("The Resource API's token can't be read.") from err


class TokenVerifier:
    """Checks tokens against one public key: signature (ES256 or RS256, by the key's kind), issuer and expiry.

    Clocks may differ by 120 s; `aud` is not checked.
    """

    def __init__(self, public_key_pem: bytes) -> None:
        """Raises InvalidSetting unless the PEM holds a P-256 key or an RSA key of 2048 bits or more."""
        try:
            key = load_pem_public_key(public_key_pem)
        except (ValueError, UnsupportedAlgorithm) as err:
            raise InvalidSetting("JWT_PUBLIC_KEY_FILE takes a file with a public key in PEM") from err
        if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1):
            self._algorithm = "ES256"
        elif isinstance(key, rsa.RSAPublicKey) and key.key_size >= _RSA_MIN_BITS:
            self._algorithm = "RS256"
        else:
            raise InvalidSetting("JWT_PUBLIC_KEY_FILE takes a P-256 key, or an RSA key of 2048 bits or more")
        self._key = key

    def verify(self, token: str) -> dict[str, object]:
        """Return the claims. Raises NotAuthenticated when the token doesn't pass, UpstreamError when it is none."""
        decode_token(token)
        try:
            return dict(
                jwt.decode(
                    token, self._key, algorithms=[self._algorithm], issuer=ISSUER, leeway=_LEEWAY_S, options=_OPTIONS
                )
            )
        except jwt.ExpiredSignatureError as err:
            raise NotAuthenticated("The Resource API's token has expired; the device's clock may be wrong.") from err
        except (jwt.PyJWTError, ValueError, OverflowError) as err:
            raise NotAuthenticated("The Resource API's token fails the signature check.") from err
