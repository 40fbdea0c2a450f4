"""What the object store answered, in the loader's words: botocore's errors stop here.

Signals that floor 3 may want to tell apart are subclasses of what clients are answered for them, so one that nobody
catches still ends in the right row::

    IntegrityError
     └── ObjectMissing       key or bucket missing on a read (the small part exists, or nobody would ask)
    UpstreamError
     └── KeysRefused         `cdn.yaml` may be stale: read it again, once
    UpstreamUnavailable / UpstreamTimeout    as they are
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from botocore import exceptions as boto

from azaion_loader.errors import IntegrityError, LoaderError, UpstreamError, UpstreamTimeout, UpstreamUnavailable

_RETRIED_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})
_UNREACHABLE: tuple[tuple[type[Exception], str], ...] = (
    (boto.ConnectTimeoutError, "The object store can't be reached: no connection in time."),
    (boto.SSLError, "The object store can't be reached: its certificate or TLS was not accepted."),
    (boto.ProxyConnectionError, "The object store can't be reached through the proxy."),
    (boto.EndpointConnectionError, "The object store can't be reached."),
)
_KEY_CODES = frozenset({"AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "AllAccessDisabled"})


class ObjectMissing(IntegrityError):
    """The object or its bucket does not exist."""


class KeysRefused(UpstreamError):
    """The store refused the access keys (401 or 403)."""


class ObjectChanged(UpstreamError):
    """The object is not the one that the transfer began with; an internal signal of a transfer."""


class BrokenAnswer(UpstreamError):
    """An answer that lies about itself (length, range) or was refused (416); an internal signal of a transfer."""


class RangeIgnored(UpstreamError):
    """The store sent the whole object where a range was asked for; an internal signal of a transfer."""


class ServerBusy(UpstreamError):
    """429 or 5xx: worth another try."""


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """An object as the store describes it.

    `etag` without its quotation marks; `metadata` is the user metadata, names in lower case (stores give them back
    as they like) and without the `x-amz-meta-` in front.
    """

    size: int
    etag: str
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def md5(self) -> str | None:
        """The MD5 of the content, where the ETag has the form of one (no multipart upload, no marker)."""
        plain = self.etag.lower()
        return plain if len(plain) == 32 and all(c in "0123456789abcdef" for c in plain) else None


def info_of(answer: Mapping[str, Any], size: int) -> ObjectInfo:
    """Return what the answer of a HEAD or GET says about the object. Raises UpstreamError without an ETag."""
    etag = plain_etag(answer.get("ETag"))
    if not etag or size < 0:
        raise UpstreamError("The object store describes the object without an ETag or a length.")
    return ObjectInfo(size, etag, {name.lower(): value for name, value in answer.get("Metadata", {}).items()})


def plain_etag(value: object) -> str:
    """Return an ETag without `W/` and quotation marks; empty where there is none."""
    return str(value or "").removeprefix("W/").strip('"')


def translate(error: BaseException, *, uploading: bool = False) -> LoaderError:
    """Return the loader's error for one of botocore or of a socket below it.

    `raise translate(err) from err`. With `uploading` a missing bucket is an UpstreamError (it is never created).
    """
    if isinstance(error, LoaderError):
        return error
    wrapped = error.__context__
    refused = error if isinstance(error, boto.ClientError) else wrapped
    if isinstance(refused, boto.ClientError):
        return _refusal(refused, uploading)
    for kinds, sentence in _UNREACHABLE:
        if isinstance(error, kinds):
            return UpstreamUnavailable(sentence)
    if isinstance(error, boto.ReadTimeoutError | TimeoutError) or "timed out" in str(error).lower():
        return UpstreamTimeout("The object store did not answer in time.")
    if isinstance(error, boto.HTTPClientError | OSError):
        return UpstreamUnavailable("The connection to the object store broke off.")
    return UpstreamError("The object store's answer can't be used.")


def is_transient(error: LoaderError) -> bool:
    """Tell whether another try may help."""
    return isinstance(error, ServerBusy | UpstreamUnavailable | UpstreamTimeout | BrokenAnswer)


def _refusal(error: boto.ClientError, uploading: bool) -> LoaderError:
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0) or 0)
    code = str(error.response.get("Error", {}).get("Code", ""))
    refused = f"The object store refused the request with status {status}."
    if code == "RequestTimeTooSkewed":
        refused = "The object store refused the request: this device's clock differs from the store's."
    elif status in {401, 403} or code in _KEY_CODES:
        return KeysRefused("The object store refused the access keys.")
    if status == 404 or code in {"NoSuchKey", "NoSuchBucket"}:
        return UpstreamError("The bucket does not exist in the object store.") if uploading else _missing()
    if status == 412 or code == "PreconditionFailed":
        return ObjectChanged("The object changed in the store during the transfer.")
    if status == 416 or code == "InvalidRange":
        return BrokenAnswer("The object store refused a range inside the object.")
    if status in _RETRIED_STATUS or status >= 500:
        return ServerBusy(f"The object store answered with status {status}.")
    return UpstreamError(refused)


def _missing() -> ObjectMissing:
    return ObjectMissing("The resource's parts don't fit together.")
