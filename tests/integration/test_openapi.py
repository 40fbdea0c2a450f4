"""What the OpenAPI document promises, tried by schemathesis on the endpoints for operators."""

from dataclasses import replace

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings

from azaion_loader.main import create_app
from azaion_loader.settings import Settings

PATHS = ["/version", "/metrics", "/resources/{folder}", "/unlock/progress", "/health", "/status", "/unlock/status"]


@pytest.mark.parametrize("path", PATHS)
def test_the_service_keeps_its_description(path: str, lonely: Settings) -> None:
    app = create_app(replace(lonely, connect_timeout_s=1.0))
    document = schemathesis.openapi.from_asgi("/openapi.json", app)
    operation = document[path]["GET"]
    tried = []

    @given(case=operation.as_strategy())
    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    def run(case: schemathesis.Case) -> None:
        tried.append(case)
        case.call_and_validate()

    run()
    assert tried
