"""Checks of what is beyond the device: the Resource API, its certificate, the clock against it, the object store."""

import time
from collections.abc import Callable, Sequence
from email.utils import parsedate_to_datetime

from azaion_loader.diagnosis import Finding, failed, fine, skipped, warned
from azaion_loader.errors import AccessDenied, IntegrityError, LoaderError, UpstreamError, UpstreamTimeout
from azaion_loader.http_transport import HttpAnswer, HttpTransport

# TLS and signed requests to object stores bear some minutes.
_CLOCK_MAX_S = 300.0
# Any earlier and the clock was never set: this is older than the first release.
_CLOCK_MIN = 1_700_000_000
_BODY_MAX_BYTES = 1 << 20
_BUCKET, _KEY = "models", "azaion-loader-doctor.big"
_CERTIFICATE_ADVICE = (
    (
        "expired",
        "certificate_expired",
        "See that this device's clock is right; else the API's certificate is to renew.",
    ),
    ("not yet valid", "certificate_not_yet_valid", "Set this device's clock: it is behind."),
    ("mismatch", "certificate_name", "Correct the host in RESOURCE_API_URL: the certificate is another host's."),
    ("not valid for", "certificate_name", "Correct the host in RESOURCE_API_URL: the certificate is another host's."),
    ("doesn't match", "certificate_name", "Correct the host in RESOURCE_API_URL: the certificate is another host's."),
)


class ApiChecks:
    """The Resource API as it answers somebody who is not logged in: one call tells of all three things."""

    def __init__(self, url: str, transport: Callable[[], HttpTransport], timeout_s: float) -> None:
        self._url = url
        self._transport = transport
        self._timeout_s = timeout_s

    def __call__(self) -> Sequence[Finding]:
        """Call the API's address once."""
        transport = self._transport()
        try:
            answer = transport.request(
                "GET", self._url + "/", timeout_s=self._timeout_s, max_bytes=_BODY_MAX_BYTES, repeatable=True
            )
        except UpstreamError as err:
            refused = "certificate was refused" in err.message
            return [_unreachable(err), self._refused(err) if refused else _no_certificate(), _clock(None)]
        finally:
            transport.close()
        return [self._reached(answer), self._certificate(), _clock(answer.headers.get("Date"))]

    def _reached(self, answer: HttpAnswer) -> Finding:
        if answer.status >= 500:
            said = f"{self._url} answers with status {answer.status}."
            return failed("resource_api", "upstream_error", said, "Wait, then ask who runs the Resource API.")
        if answer.media_type == "text/html" and answer.status == 200:
            said = f"{self._url} answers with a web page."
            return warned("resource_api", "web_page", said, "See that no portal of the network is in between.")
        return fine("resource_api", f"{self._url} answers.")

    def _certificate(self) -> Finding:
        if not self._url.lower().startswith("https:"):
            return skipped("certificate", "RESOURCE_API_URL is plain http, without a certificate.")
        return fine("certificate", "The Resource API's certificate is trusted.")

    def _refused(self, error: LoaderError) -> Finding:
        advice = "Name the CA that signed it in REQUESTS_CA_BUNDLE, if it is a private one."
        cause = "certificate_untrusted"
        for phrase, word, sentence in _CERTIFICATE_ADVICE:
            if phrase in error.message:
                cause, advice = word, sentence
        return failed(
            "certificate", cause, error.message, f"{advice} Here it is {time.strftime('%F %T', time.gmtime())} UTC."
        )


def _unreachable(error: UpstreamError) -> Finding:
    cause = error.code
    advice = "See that the network, a proxy (HTTPS_PROXY) and RESOURCE_API_URL are right."
    if isinstance(error, UpstreamTimeout):
        advice = "The other side is silent: see the network and firewalls, then ask who runs the Resource API."
    return failed("resource_api", cause, error.message, advice)


def _no_certificate() -> Finding:
    return skipped("certificate", "The Resource API did not answer, so its certificate was not seen.")


def _clock(date: str | None) -> Finding:
    now = time.time()
    if now < _CLOCK_MIN:
        said = f"The clock says {time.strftime('%F', time.gmtime(now))}: it was never set."
        return failed("clock", "clock_wrong", said, "Set it (timedatectl set-ntp true, or date -s).")
    try:
        there = parsedate_to_datetime(date).timestamp() if date else None
    except ValueError:
        there = None
    if there is None:
        return skipped("clock", "Nobody told the time to compare with.")
    ahead = now - there
    if abs(ahead) > _CLOCK_MAX_S:
        said = f"The clock is {abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} the Resource API's."
        return failed("clock", "clock_wrong", said, "Set it (timedatectl set-ntp true, or date -s).")
    return fine("clock", f"Within {abs(ahead):.0f} s of the Resource API's.")


class StoreChecks:
    """The object store with the keys of `cdn.yaml`, for which somebody has to be logged in."""

    def __init__(self, may_ask: Callable[[], bool], head: Callable[[str, str], object]) -> None:
        self._may_ask = may_ask
        self._head = head

    def __call__(self) -> Sequence[Finding]:
        """Ask the store for an object that does not exist: an answer is all that is wanted."""
        name = "object_store"
        if not self._may_ask():
            return [skipped(name, "Log in first: only a session learns where the object store is.")]
        try:
            self._head(_BUCKET, _KEY)
        except IntegrityError as err:
            if type(err) is IntegrityError:
                said = "cdn.yaml can't be decrypted."
                advice = "Log in again; the account's password or this device's hardware may have changed."
                return [failed(name, err.code, said, advice)]
        except AccessDenied as err:
            return [failed(name, err.code, err.message, "Log in again.")]
        except UpstreamError as err:
            keys = "refuse" in err.message and "keys" in err.message
            cause = "store_keys" if keys else "cdn_yaml" if "cdn.yaml" in err.message else err.code
            return [failed(name, cause, err.message, _STORE_ADVICE.get(cause, _STORE_ADVICE["upstream_unavailable"]))]
        return [fine(name, "The object store answers and takes the keys.")]


_STORE_ADVICE = {
    "store_keys": "Have the keys in cdn.yaml renewed at the Resource API.",
    "cdn_yaml": "Have cdn.yaml in the Resource API's root folder put right.",
    "upstream_unavailable": "See the network and firewalls, and the host in cdn.yaml.",
}
