"""What the OpenAPI document promises, tried by schemathesis on the endpoints for operators."""

from pathlib import Path

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings

from azaion_loader.main import create_app
from azaion_loader.settings import Settings

PATHS = ["/version", "/metrics", "/resources/{folder}", "/unlock/progress", "/health", "/status", "/unlock/status"]


@pytest.mark.parametrize("path", PATHS)
def test_the_service_keeps_its_description(path: str, tmp_path: Path) -> None:
    app = create_app(
        Settings(
            data_dir=tmp_path / "data",
            images_path=tmp_path / "images.enc",
            device_conf=tmp_path / "device.conf",
            docker_cli="docker-that-is-not-there",
            resource_api_url="http://127.0.0.1:9",
            connect_timeout_s=1.0,
        )
    )
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
