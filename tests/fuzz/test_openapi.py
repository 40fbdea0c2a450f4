"""Schemathesis on the service's own description: whatever fits it, or nearly, gets an answer of the contract."""

from collections.abc import Callable, Iterator
from http import HTTPStatus
from typing import Any

import pytest
import requests
import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode

from azaion_devkit.resource_rig import ResourceRig

pytestmark = pytest.mark.family("fuzz and properties")

# The contract's table, with what any HTTP server says to an unknown path or method, or to a body of another type.
ALLOWED = {200, 401, 403, 404, 405, 413, 422, 423, 429, 431, 502, 503, 504, 507}
OPERATIONS = [
    ("GET", "/health"), ("GET", "/status"), ("POST", "/login"), ("POST", "/load/{filename}"),
    ("POST", "/upload/{filename}"), ("POST", "/unlock"), ("GET", "/unlock/status"), ("GET", "/unlock/progress"),
    ("GET", "/version"), ("GET", "/diagnostics"), ("GET", "/resources/{folder}"), ("GET", "/metrics"),
]  # fmt: skip


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ResourceRig]:
    """The service with a real API and store behind it, over a real socket."""
    with ResourceRig(tmp_path_factory.mktemp("openapi")) as rig:
        yield rig


def check(schema: Any, method: str, path: str, examples: int) -> int:
    """Call an operation with generated requests, good and bad; return how many calls were made."""
    operation = schema[path][method]
    calls = 0
    for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
        if mode is GenerationMode.NEGATIVE and method == "GET":
            continue

        @settings(
            max_examples=examples,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
            derandomize=True,
            report_multiple_bugs=False,
        )
        @given(case=operation.as_strategy(generation_mode=mode))
        def try_one(case: Any) -> None:
            nonlocal calls
            calls += 1
            answer = case.call()
            assert answer.status_code in ALLOWED, (answer.status_code, answer.text)
            if answer.status_code != HTTPStatus.OK:
                body = answer.json()
                assert set(body) == {"detail", "code"}
                assert body["code"] != "internal_error"

        try_one()
    return calls


@pytest.mark.timeout(600)
@pytest.mark.parametrize("examples", [pytest.param(15, id="few"), pytest.param(400, id="many", marks=pytest.mark.slow)])
@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_every_answer_is_of_the_contract(
    rig: ResourceRig, method: str, path: str, examples: int, tally: Callable[[int], None]
) -> None:
    tally(check(schemathesis.openapi.from_url(f"{rig.url}/openapi.json"), method, path, examples))


def test_every_operation_is_tried(rig: ResourceRig) -> None:
    described = requests.get(f"{rig.url}/openapi.json", timeout=10).json()["paths"]
    assert {(method.upper(), path) for path, item in described.items() for method in item} == set(OPERATIONS)


@pytest.mark.proof
def test_the_family_sees_a_route_that_fails() -> None:
    broken = FastAPI()

    @broken.post("/broken/{number}")
    def divide(number: int) -> float:
        return 1 / (number % 3)

    with pytest.raises((AssertionError, ZeroDivisionError)):
        check(schemathesis.openapi.from_asgi("/openapi.json", broken), "POST", "/broken/{number}", 30)
