"""The configuration of the object store: `cdn.yaml`, read strictly and within bounds."""

import hmac
import re
from typing import NoReturn, final
from urllib.parse import urlsplit

from azaion_loader.errors import UpstreamError

# A real one has about 300 bytes; the bounds only have to keep a hostile one cheap.
CDN_YAML_LIMIT_BYTES = 64 * 1024
_EVENT_LIMIT = 200
_TEXT_LIMIT = 512

KEYS = (
    "host",
    "downloader_access_key",
    "downloader_access_secret",
    "uploader_access_key",
    "uploader_access_secret",
)
_HOST_NAME = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)(\.(?!-)[A-Za-z0-9_-]{1,63}(?<!-))*\.?", re.ASCII)
_IPV6 = re.compile(r"[0-9A-Fa-f:.]{2,45}", re.ASCII)
_PRINTABLE = re.compile(r"[\x21-\x7e]+", re.ASCII)


@final
class CDNCredentials:
    """Where the object store is, and the two key pairs; never shown, never pickled, compared in constant time.

    `host` is an endpoint with its scheme, without a slash at the end.
    """

    __slots__ = KEYS
    __hash__ = None  # type: ignore[assignment]

    host: str
    downloader_access_key: str
    downloader_access_secret: str
    uploader_access_key: str
    uploader_access_secret: str

    def __init__(
        self,
        host: str,
        downloader_access_key: str,
        downloader_access_secret: str,
        uploader_access_key: str,
        uploader_access_secret: str,
    ) -> None:
        self.host = host
        self.downloader_access_key = downloader_access_key
        self.downloader_access_secret = downloader_access_secret
        self.uploader_access_key = uploader_access_key
        self.uploader_access_secret = uploader_access_secret

    def __repr__(self) -> str:
        return f"CDNCredentials(host={self.host!r}, keys=***)"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, CDNCredentials):
            return NotImplemented
        pairs = [(str(getattr(self, key)).encode(), str(getattr(other, key)).encode()) for key in KEYS]
        return all([hmac.compare_digest(mine, theirs) for mine, theirs in pairs])  # noqa: C419 - no early end

    def __reduce__(self) -> NoReturn:
        raise TypeError("CDNCredentials are never pickled")


def parse_cdn_yaml(data: bytes) -> CDNCredentials:
    """Return the credentials in a decrypted `cdn.yaml`.

    A mapping that holds the five keys as texts; further keys are left alone. Anchors, aliases and tags are refused,
    so nothing can unfold. Raises UpstreamError, which never quotes the content.
    """
    loaded = _load_mapping(data)
    texts = {key: _text(loaded, key) for key in KEYS}
    for key in KEYS[1:]:
        if _PRINTABLE.fullmatch(texts[key]) is None:
            raise UpstreamError(f"cdn.yaml is unusable: {key} holds characters that no key has.")
    return CDNCredentials(**{**texts, "host": endpoint_of(texts["host"])})


def endpoint_of(host: str) -> str:
    """Return `host` as an endpoint: https where it has no scheme, no slash at the end.

    Raises UpstreamError for anything but a scheme, a host and a port.
    """
    address = host if "://" in host else f"https://{host}"
    try:
        parts = urlsplit(address)
        name, port = parts.hostname or "", parts.port
    except ValueError as err:
        raise UpstreamError("cdn.yaml is unusable: host is not an address.") from err
    scheme = address.split("://", 1)[0].lower()
    literal = parts.netloc.startswith("[")
    known = (_IPV6 if literal else _HOST_NAME).fullmatch(name) is not None
    if scheme not in {"http", "https"} or not known or len(name) > 253 or port == 0:
        raise UpstreamError("cdn.yaml is unusable: host is not an address.")
    shown = f"[{name}]" if literal else name
    rebuilt = f"{scheme}://{shown}" + (f":{port}" if port is not None else "")
    # What urlsplit dropped or changed (control characters, user, path, query, "host:") must not have been there.
    if rebuilt.lower() != address.removesuffix("/").lower():
        raise UpstreamError("cdn.yaml is unusable: host holds more than a scheme, a name and a port.")
    return rebuilt


def _text(loaded: dict[object, object], key: str) -> str:
    value = loaded.get(key)
    if not isinstance(value, str) or not value.strip():
        raise UpstreamError(f"cdn.yaml is unusable: {key} is missing or not a text.")
    if len(value) > _TEXT_LIMIT:
        raise UpstreamError(f"cdn.yaml is unusable: {key} is too long.")
    return value.strip()


def _load_mapping(data: bytes) -> dict[object, object]:
    # Cold start: the parser is only needed when the store is.
    import yaml  # noqa: PLC0415

    if len(data) > CDN_YAML_LIMIT_BYTES:
        raise UpstreamError("cdn.yaml is unusable: it is too large.")
    try:
        text = data.decode("utf-8-sig")
        for count, event in enumerate(yaml.parse(text, Loader=yaml.SafeLoader)):
            if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) or count > _EVENT_LIMIT:
                raise UpstreamError("cdn.yaml is unusable: it is no plain list of keys and values.")
        loaded = yaml.safe_load(text)
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError, OverflowError) as err:
        # The parser's own sentence quotes the line, and with it a secret: neither it nor its chain may be shown.
        raise UpstreamError("cdn.yaml is unusable: it is not YAML.") from _unquoted(err)
    if not isinstance(loaded, dict):
        raise UpstreamError("cdn.yaml is unusable: it holds no keys.")
    return loaded


def _unquoted(error: Exception) -> Exception:
    """Return an error of the same kind of fault without the text that it quotes."""
    return ValueError(type(error).__name__)
