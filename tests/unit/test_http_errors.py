"""The one table: every error class has a status, every answer the same shape."""

import asyncio
import json

import httpx
import pytest
from fastapi import FastAPI
from loguru import logger
from pydantic import BaseModel
from starlette.responses import StreamingResponse

from azaion_loader import errors
from azaion_loader.http_errors import STATUS, documented, error_response, handle_errors, status_of

# What clients rely on: the table of failures in docs/operations.md, with its status codes.
STATUSES = {
    "invalid_request": 422,
    "invalid_name": 422,
    "invalid_credentials": 401,
    "not_authenticated": 401,
    "unauthorized": 401,
    "cross_site": 403,
    "host_not_allowed": 403,
    "hardware_mismatch": 403,
    "forbidden": 403,
    "resource_not_found": 404,
    "archive_not_found": 404,
    "too_large": 413,
    "account_locked": 423,
    "rate_limited": 429,
    "integrity_error": 502,
    "upstream_error": 502,
    "upstream_unavailable": 503,
    "upstream_timeout": 504,
    "disk_full": 507,
    "internal_error": 500,
    "not_found": 404,
    "method_not_allowed": 405,
}


def tree(cls: type[errors.LoaderError]) -> list[type[errors.LoaderError]]:
    return [cls, *(below for child in cls.__subclasses__() for below in tree(child))]


def classes_of_errors_py() -> list[type[errors.LoaderError]]:
    return [cls for cls in tree(errors.LoaderError) if cls.__module__ == "azaion_loader.errors"]


@pytest.mark.parametrize("cls", classes_of_errors_py(), ids=lambda cls: cls.__name__)
def test_every_class_of_the_tree_has_a_status(cls: type[errors.LoaderError]) -> None:
    status = status_of(cls("A sentence."))
    assert status == STATUSES.get(cls.code, status)
    assert status in set(STATUSES.values())


def test_the_walk_sees_a_class_that_the_table_lacks() -> None:
    class Unheard(errors.IntegrityError):
        code = "unheard"

    assert Unheard in tree(errors.LoaderError)
    assert Unheard not in STATUS
    assert status_of(Unheard("A sentence.")) == 502  # a refinement in another module has its parent's status


def test_every_code_of_the_contract_exists_once() -> None:
    codes = {cls.code for cls in classes_of_errors_py()}
    assert set(STATUSES) <= codes


def test_the_drawing_in_the_docstring_is_the_tree() -> None:
    for cls in classes_of_errors_py():
        assert cls.__name__ in (errors.__doc__ or ""), cls
    for cls in classes_of_errors_py():
        if cls.__subclasses__() and "raised by name only" in (cls.__doc__ or ""):
            continue
        assert cls.code in (errors.__doc__ or ""), cls


@pytest.mark.parametrize("cls", classes_of_errors_py(), ids=lambda cls: cls.__name__)
def test_the_body_is_exact(cls: type[errors.LoaderError]) -> None:
    response = error_response(cls("A sentence."))
    assert json.loads(response.body) == {"detail": "A sentence.", "code": cls.code}
    assert response.headers["content-type"] == "application/json"


def test_retry_after_is_passed_on() -> None:
    response = error_response(errors.RateLimited("Wait.", retry_after_s=17))
    assert (response.status_code, response.headers["retry-after"]) == (429, "17")
    assert "retry-after" not in error_response(errors.RateLimited("Wait.")).headers


def test_only_the_services_own_token_is_asked_for_as_a_bearer() -> None:
    assert error_response(errors.Unauthorized("No.")).headers["www-authenticate"] == "Bearer"
    assert "www-authenticate" not in error_response(errors.InvalidCredentials("No.")).headers


def test_a_lone_surrogate_in_a_sentence_is_no_fault() -> None:
    assert json.loads(error_response(errors.InvalidRequest("a\ud800b")).body)["detail"] == "a\ud800b"


class Body(BaseModel):
    password: str
    number: int = 0


def failing_app() -> FastAPI:
    app = FastAPI()

    @app.post("/body")
    def body(request: Body) -> None: ...

    @app.get("/unforeseen")
    def unforeseen() -> None:
        secret = "hunter2"  # noqa: F841 - a variable that no log may show
        raise RuntimeError("deep inside")

    @app.get("/named")
    def named() -> None:
        raise errors.DiskFull("Needs 5, has 4 bytes.")

    @app.get("/root")
    def root() -> None:
        raise errors.LoaderError("Something inner.")

    @app.get("/broken-off")
    def broken_off() -> StreamingResponse:
        def chunks() -> object:
            yield b"first"
            raise errors.IntegrityError("No.")

        return StreamingResponse(chunks())  # type: ignore[arg-type]

    handle_errors(app)
    return app


def ask(method: str, path: str, **options: object) -> httpx.Response:
    async def go() -> httpx.Response:
        transport = httpx.ASGITransport(failing_app())
        async with httpx.AsyncClient(transport=transport, base_url="http://loader.test") as client:
            return await client.request(method, path, **options)  # type: ignore[arg-type]

    return asyncio.run(go())


def test_a_named_failure() -> None:
    response = ask("GET", "/named")
    assert (response.status_code, response.json()) == (507, {"detail": "Needs 5, has 4 bytes.", "code": "disk_full"})


@pytest.mark.parametrize("path", ["/unforeseen", "/root"])
def test_the_unforeseen_has_a_reference_that_is_in_the_log_once(path: str) -> None:
    records: list[str] = []
    sink = logger.add(lambda message: records.append(str(message)), diagnose=False, backtrace=False)
    try:
        response = ask("GET", path)
    finally:
        logger.remove(sink)
    assert response.status_code == 500
    assert response.json()["code"] == "internal_error"
    reference = response.json()["detail"].split()[-1].rstrip(".")
    mentions = [record for record in records if reference in record]
    assert len(mentions) == 1
    assert "inner" not in response.text
    assert "deep inside" not in response.text
    assert "Traceback" in mentions[0]
    assert "hunter2" not in mentions[0].replace('secret = "hunter2"', "")


def test_a_failure_after_the_first_byte_breaks_the_answer_off() -> None:
    with pytest.raises(RuntimeError, match="already started"):
        ask("GET", "/broken-off")


@pytest.mark.parametrize(
    "body",
    [
        {"password": "hunter2", "number": "hunter2"},
        {"password": ["hunter2"]},
        ["hunter2"],
        "hunter2",
        {"passwort": "hunter2"},
        None,
    ],
)
def test_an_invalid_body_is_never_repeated(body: object) -> None:
    response = ask("POST", "/body", json=body)
    assert response.status_code == 422
    assert response.json()["code"] == "invalid_request"
    assert "hunter2" not in response.text
    for finding in response.json()["detail"]:
        assert set(finding) == {"type", "loc", "msg"}


def test_framework_refusals_have_codes() -> None:
    missing, wrong = ask("GET", "/nope"), ask("DELETE", "/named")
    assert (missing.status_code, missing.json()["code"]) == (404, "not_found")
    assert (wrong.status_code, wrong.json()["code"]) == (405, "method_not_allowed")
    assert wrong.headers["allow"] == "GET"


def test_documented_lists_codes_by_status() -> None:
    responses = documented(errors.CrossSite, errors.UpstreamError)
    assert set(responses) == {401, 403, 500, 502}
    assert responses[403]["description"] == "`cross_site` or `host_not_allowed`"
