"""Failures as HTTP answers: one table from error class to status, one body, one handler.

The body is `{"detail": <sentence>, "code": <stable word>}`. It never holds a stack trace, and of an invalid request
only what was wrong and where: the input itself could be a password.
"""

import json
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from loguru import logger
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from azaion_loader import errors, metrics
from azaion_loader.schemas import Problem

STATUS: Mapping[type[errors.LoaderError], int] = {
    errors.LoaderError: 500,
    errors.InvalidRequest: 422,
    errors.InvalidName: 422,
    errors.RefusedCaller: 401,
    errors.Unauthorized: 401,
    errors.CrossSite: 403,
    errors.HostNotAllowed: 403,
    errors.RouteNotFound: 404,
    errors.MethodNotAllowed: 405,
    errors.AccessDenied: 403,
    errors.InvalidCredentials: 401,
    errors.NotAuthenticated: 401,
    errors.Forbidden: 403,
    errors.HardwareMismatch: 403,
    errors.AccountLocked: 423,
    errors.RateLimited: 429,
    errors.ResourceNotFound: 404,
    errors.TooLarge: 413,
    errors.IntegrityError: 502,
    errors.UpstreamError: 502,
    errors.UpstreamUnavailable: 503,
    errors.UpstreamTimeout: 504,
    errors.DiskFull: 507,
    # A run ends with these as its state, not as an answer. Only archive_not_found is one; the rest is for the day
    # when a route lets one through.
    errors.UnlockError: 500,
    errors.ArchiveError: 500,
    errors.ArchiveNotFound: 404,
    errors.ArchiveInvalid: 500,
    errors.ArchiveIncomplete: 500,
    errors.ArchiveUntrusted: 500,
    errors.ArchiveTooOld: 500,
    errors.WrongKey: 500,
    errors.WrongPlatform: 500,
    errors.DockerError: 502,
    errors.DockerUnavailable: 503,
    errors.DockerFailed: 502,
    errors.DockerStalled: 504,
    errors.ImagesMissing: 500,
    errors.Interrupted: 503,
}

# What the framework itself refuses. Its other client errors are all about a body that can't be read.
_FRAMEWORK: Mapping[int, errors.LoaderError] = {
    404: errors.RouteNotFound("There is no such path; /docs lists all of them."),
    405: errors.MethodNotAllowed("This path does not take that method; the header Allow says which it takes."),
    413: errors.TooLarge("The request's body is too large."),
}

# What routes can raise, for their documentation.
_BODY_ERRORS = (errors.InvalidRequest, errors.CrossSite, errors.TooLarge)
UNLOCK_ERRORS = (*_BODY_ERRORS, errors.ArchiveNotFound, errors.DiskFull)
LOGIN_ERRORS = (
    *_BODY_ERRORS,
    errors.InvalidCredentials,
    errors.Forbidden,
    errors.AccountLocked,
    errors.RateLimited,
    errors.UpstreamError,
    errors.UpstreamUnavailable,
    errors.UpstreamTimeout,
)
_RESOURCE_ERRORS = (
    *LOGIN_ERRORS,
    errors.InvalidName,
    errors.NotAuthenticated,
    errors.HardwareMismatch,
    errors.DiskFull,
)
LOAD_ERRORS = (*_RESOURCE_ERRORS, errors.ResourceNotFound, errors.IntegrityError)
UPLOAD_ERRORS = _RESOURCE_ERRORS
# Any caller can meet these at any path.
_EVERYWHERE = (errors.HostNotAllowed, errors.Unauthorized, errors.LoaderError)


def status_of(error: errors.LoaderError) -> int:
    """Return the HTTP status of an error: that of its class, or of the nearest class above that the table has."""
    return next(STATUS[cls] for cls in type(error).__mro__ if cls in STATUS)


def error_response(error: errors.LoaderError, headers: Mapping[str, str] | None = None) -> Response:
    """Return the answer that tells a client of `error`."""
    metrics.count("failures", code=error.code)
    extra = dict(headers or {})
    if error.retry_after_s is not None:
        extra["Retry-After"] = str(max(0, error.retry_after_s))
    if isinstance(error, errors.Unauthorized):
        extra["WWW-Authenticate"] = "Bearer"
    return _answer(status_of(error), error.message, error.code, extra)


async def handle_error(_request: Request, error: Exception) -> Response:
    """Turn whatever a route raised into an answer; the unforeseen is logged under the reference that clients see."""
    if isinstance(error, RequestValidationError):
        return _answer(422, _findings(error.errors()), errors.InvalidRequest.code, {})
    if isinstance(error, ClientDisconnect):
        return error_response(errors.InvalidRequest("The client went away before its request was complete."))
    if isinstance(error, HTTPException) and error.status_code < 500:
        known = _FRAMEWORK.get(error.status_code)
        return error_response(known or errors.InvalidRequest("The request's body can't be read."), error.headers)
    if isinstance(error, errors.LoaderError) and error.code != errors.LoaderError.code:
        return error_response(error)
    reference = secrets.token_hex(4)
    logger.opt(exception=error).error("Unforeseen fault, reference {}", reference)
    return error_response(errors.LoaderError(f"An unforeseen fault; the log of the service has it under {reference}."))


def handle_errors(app: FastAPI) -> None:
    """Make `handle_error` the one handler of `app`; call it after every other middleware was added."""
    for cls in (errors.LoaderError, RequestValidationError, HTTPException, ClientDisconnect):
        app.add_exception_handler(cls, handle_error)
    app.add_middleware(_LastResort)


class _LastResort:
    """Answers what nobody foresaw. The framework's own last resort raises it again, to be logged a second time."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def watched(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except Exception as err:
            if started or scope["type"] != "http":
                raise  # an answer is under way: all that is left is to break it off, which the server does
            response = await handle_error(Request(scope), err)
            await response(scope, receive, send)


def documented(*classes: type[errors.LoaderError], answers_json: bool = True) -> dict[int | str, dict[str, Any]]:
    """Return OpenAPI's `responses` for a route that raises `classes`; those of every route are added.

    `answers_json` is false for a route that succeeds with something else: the framework would give its failures that
    media type, too, so they name their own (the schema is there through the other routes).
    """
    codes: dict[int, list[str]] = {}
    raised: tuple[type[errors.LoaderError], ...] = (*classes, *_EVERYWHERE)
    for cls in raised:
        codes.setdefault(STATUS[cls], []).append(cls.code)
    named = {"content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{Problem.__name__}"}}}}
    body: dict[str, Any] = {"model": Problem} if answers_json else named
    return {
        status: {**body, "description": " or ".join(f"`{code}`" for code in sorted(set(words)))}
        for status, words in sorted(codes.items())
    }


def _answer(status: int, detail: object, code: str, headers: Mapping[str, str]) -> Response:
    # Pure ASCII, so that no lone surrogate of foreign input can make the answer fail.
    content = json.dumps({"detail": detail, "code": code})
    return Response(content, status, headers=dict(headers), media_type="application/json")


def _findings(found: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return what was wrong and where, without the input."""
    return [{"type": one["type"], "loc": list(one["loc"]), "msg": one["msg"]} for one in found]
