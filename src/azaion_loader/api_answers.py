"""What an answer of the Resource API means: pure decisions, used by `api_client`.

Property names are compared without regard to case: servers spell `token` and `ErrorCode` as they like.
Sentences are the loader's own; what the server wrote is never repeated, since it could repeat a secret.
"""

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from azaion_loader.errors import (
    AccountLocked,
    HardwareMismatch,
    InvalidCredentials,
    LoaderError,
    RateLimited,
    ResourceNotFound,
    TokenForbidden,
    TokenRefused,
    UpstreamError,
)
from azaion_loader.tokens import TOKEN_MAX_CHARACTERS

_WRONG_RESOURCE_NAME = 50
_RETRY_AFTER_MAX_S = 7 * 24 * 3600
_TOKEN = re.compile(r"[A-Za-z0-9._~+/=-]+", re.ASCII)
_SECOND_FACTOR = re.compile(r"mfa|2fa|otp|twofactor|secondfactor|multifactor")
_DEMANDED = re.compile(r"requir|need|demand|pending|challenge")
_WRONG = (InvalidCredentials, "The e-mail or the password is wrong.")
_OTHER_MACHINE = (HardwareMismatch, "The account is bound to another machine.")
_BUSINESS_ERRORS: Mapping[int, tuple[type[LoaderError], str]] = {
    10: _WRONG,
    30: _WRONG,
    32: _WRONG,  # too short to be a password there
    35: _WRONG,  # no e-mail at all
    37: _WRONG,
    38: (InvalidCredentials, "The account is disabled."),
    40: _OTHER_MACHINE,
    45: _OTHER_MACHINE,
}
_STATUS_ERRORS: Mapping[int, tuple[type[LoaderError], str]] = {
    401: (TokenRefused, "The Resource API refused the token."),
    403: (TokenForbidden, "The Resource API does not allow this to the account."),
    404: (ResourceNotFound, "The Resource API has nothing of that name."),
    423: (AccountLocked, "The account is locked for a while."),
    429: (RateLimited, "The Resource API was asked too often."),
}


def read_json(body: bytes) -> object:
    """Return the value of a JSON body. Raises UpstreamError when it is none, as with HTML or a cut answer."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as err:
        raise UpstreamError("The Resource API answered something that is not JSON.") from err


def properties(value: object) -> dict[str, object]:
    """Return an object's properties by their names in lower case; empty where it is no object."""
    return {str(name).lower(): item for name, item in value.items()} if isinstance(value, dict) else {}


def token_of(body: bytes) -> str:
    """Return the token of a log-in's answer.

    Raises InvalidCredentials when a second factor is demanded instead, UpstreamError when there is no usable token.
    """
    answer = properties(read_json(body))
    token = answer.get("token")
    if _demands_second_factor(answer, has_token=bool(token)):
        raise InvalidCredentials("The account demands a second factor, which this service can't give.")
    if not isinstance(token, str) or len(token) > TOKEN_MAX_CHARACTERS or not _TOKEN.fullmatch(token):
        raise UpstreamError("The Resource API answered a log-in without a usable token.")
    return token


def _demands_second_factor(answer: Mapping[str, object], *, has_token: bool) -> bool:
    """Tell whether a property speaks of a second factor; beside a token only one that says it is still wanted."""
    for name, value in answer.items():
        if name == "token" or value in (None, False, "", 0):
            continue
        word = _letters(name)
        said = _letters(value[:200]) if isinstance(value, str) else ""
        if has_token:
            if value is True and _SECOND_FACTOR.search(word) and _DEMANDED.search(word):
                return True
        elif _SECOND_FACTOR.search(word) or _SECOND_FACTOR.search(said):
            return True
    return False


def _letters(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.lower())


def business_code(status: int, body: bytes) -> int | None:
    """Return the code of a 409; None for another status. Raises UpstreamError for a 409 without a code."""
    if status != 409:
        return None
    code = properties(read_json(body)).get("errorcode")
    if isinstance(code, str) and re.fullmatch(r"[0-9]{1,6}", code, re.ASCII):
        return int(code)
    if isinstance(code, int) and not isinstance(code, bool):
        return code
    raise UpstreamError("The Resource API refused without saying why (409 without a code).")


def names_no_resource(status: int, body: bytes) -> bool:
    """Tell whether an answer says that the resource doesn't exist. Raises UpstreamError for a 409 without a code."""
    return status == 404 or business_code(status, body) == _WRONG_RESOURCE_NAME


def error_of(status: int, headers: Mapping[str, str], body: bytes, *, at_login: bool) -> LoaderError:
    """Return the error for an answer that is no success. Raises UpstreamError for a 409 without a code."""
    code = business_code(status, body)
    if code is not None:
        kind, sentence = _BUSINESS_ERRORS.get(
            code, (UpstreamError, f"The Resource API refused the call (409 with code {code}).")
        )
        return kind(sentence)
    if at_login and status in {401, 403}:
        return InvalidCredentials("The Resource API refused the log-in: wrong e-mail or password, or more is demanded.")
    unknown = (UpstreamError, f"The Resource API answered with status {status}.")
    kind, sentence = _STATUS_ERRORS.get(status, unknown)
    return kind(sentence, retry_after_s=retry_after_s(headers) if status in {423, 429} else None)


def retry_after_s(headers: Mapping[str, str]) -> int | None:
    """Return the seconds of `Retry-After` (RFC 9110 §10.2.3: seconds or a date); None where there is no usable one.

    A date counts from the answer's own `Date`, so that a wrong device clock doesn't matter.
    """
    text = headers.get("Retry-After", "").strip()
    if re.fullmatch(r"[0-9]{1,12}", text, re.ASCII):
        return min(int(text), _RETRY_AFTER_MAX_S)
    until = _date(text)
    if until is None:
        return None
    now = _date(headers.get("Date", "")) or datetime.now(UTC)
    return min(max(0, round((until - now).total_seconds())), _RETRY_AFTER_MAX_S)


def _date(text: str) -> datetime | None:
    try:
        parsed = parsedate_to_datetime(text)
    except (ValueError, TypeError, OverflowError):
        return None
    return parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)
