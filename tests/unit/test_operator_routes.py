"""The endpoints for operators over real objects without a network, and the pages' headers."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from prometheus_client.parser import text_string_to_metric_families

from azaion_loader import pages
from azaion_loader.errors import InvalidName, ResourceNotFound, UpstreamUnavailable
from azaion_loader.hardware_memory import remember_parts
from azaion_loader.main import create_app
from azaion_loader.resource_listing import list_folder
from azaion_loader.settings import Settings


@pytest.fixture
def app(lonely: Settings, tmp_path: Path) -> FastAPI:
    token = tmp_path / "token"
    token.write_text("the-token")
    return create_app(replace(lonely, loader_api_token_file=token))


def ask(app: FastAPI, path: str, token: str | None = "the-token") -> httpx.Response:  # noqa: S107 - of this test only
    headers = {"Authorization": f"Bearer {token}"} if token else {}

    async def send() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1") as client:
            return await client.get(path, headers=headers)

    import asyncio  # noqa: PLC0415 - of this helper only

    return asyncio.run(send())


@pytest.mark.parametrize("path", ["/", "/static/app.js", "/static/app.css", "/static/icon.svg"])
def test_the_page_is_open_so_that_it_can_ask_for_the_token(app: FastAPI, path: str) -> None:
    response = ask(app, path, token=None)
    assert response.status_code == 200
    assert "unsafe" not in response.headers["Content-Security-Policy"]
    assert response.headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize(
    "path",
    ["/docs", "/openapi.json", "/version", "/diagnostics", "/metrics", "/resources/models", "/unlock/progress"],
)
def test_everything_else_needs_the_token(app: FastAPI, path: str) -> None:
    refused = ask(app, path, token=None)
    assert (refused.status_code, refused.json()["code"]) == (401, "unauthorized")
    assert ask(app, path).status_code == 200


@pytest.mark.parametrize("name", ["index.html", "docs.html", "..%2fmain.py", "redoc.standalone.js", ".", "%00"])
def test_other_files_are_not_served(app: FastAPI, name: str) -> None:
    assert ask(app, f"/static/{name}").status_code == 404


def test_the_page_holds_nothing_inline_and_nothing_foreign() -> None:
    folder = Path(pages.__file__).parent / "static"
    for page in ("index.html", "docs.html"):
        text = (folder / page).read_text()
        assert re.findall(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\bsrc=)", text) == []
        assert [link for link in re.findall(r'(?:src|href)="([^"]*)"', text) if not link.startswith(("/", "#"))] == []
    own = [folder / name for name in ("index.html", "app.css", "app.js", "icon.svg")]
    assert sum(path.stat().st_size for path in own) < 60_000


def test_no_installed_swagger(app: FastAPI, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "_SWAGGER_PACKAGE", "a_package_that_is_not_there")
    assert ask(app, "/static/swagger-ui.css").json()["code"] == "not_found"


def test_version(app: FastAPI) -> None:
    found = ask(app, "/version").json()
    assert set(found) == {"version", "python", "machine", "key_profile"}
    assert found["key_profile"] == "development"


def test_diagnostics(app: FastAPI) -> None:
    found = ask(app, "/diagnostics").json()
    assert found["healthy"] is False
    causes = {check["name"]: check["cause"] for check in found["checks"]}
    assert causes["engine"] == "client_missing"
    assert causes["resource_api"] == "upstream_unavailable"
    assert {part["name"] for part in found["hardware"]} == {"cpu", "gpu", "memory", "drive_serial"}
    assert all(re.fullmatch("[0-9a-f]{16}", part["hash"]) and not part["changed"] for part in found["hardware"])


def test_metrics_page(app: FastAPI) -> None:
    ask(app, "/nowhere")
    response = ask(app, "/metrics")
    assert response.headers["Content-Type"].startswith("text/plain")
    assert "azaion_loader_failures" in {family.name for family in text_string_to_metric_families(response.text)}


@pytest.mark.parametrize("query", ["wait=-1", "wait=61", "wait=nan", "wait=x", f"since={'x' * 65}"])
def test_waits_that_are_refused(app: FastAPI, query: str) -> None:
    response = ask(app, f"/unlock/progress?{query}")
    assert (response.status_code, response.json()["code"]) == (422, "invalid_request")


def test_listing(app: FastAPI, tmp_path: Path) -> None:
    folder = tmp_path / "data" / "models"
    folder.mkdir(parents=True)
    (folder / "a.onnx.big").write_bytes(bytes(7))
    (folder / "notes.txt").write_text("not a part")
    found = ask(app, "/resources/models").json()
    assert found["resources"] == [{"name": "a.onnx", "cached_bytes": 7, "published": None}]
    assert "Nobody is logged in" in found["note"]
    assert ask(app, "/resources/get").json()["code"] == "invalid_name"


def listed(tmp_path: Path, ask_api: Any) -> dict[str, tuple[int | None, bool | None]]:
    found = list_folder(tmp_path, "models", ask_api)
    return {one.name: (one.cached_bytes, one.published) for one in found.resources}


def test_a_listing_joins_cache_and_api(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "both.onnx.big").write_bytes(bytes(3))
    (tmp_path / "models" / "here.onnx.big").write_bytes(bytes(4))
    names = ["both.onnx.small", "there.onnx.small", "cdn.yaml", "../x.small", ".small"]
    assert listed(tmp_path, lambda: names) == {
        "both.onnx": (3, True),
        "here.onnx": (4, False),
        "there.onnx": (None, True),
    }

    def missing() -> list[str]:
        raise ResourceNotFound("no folder")

    assert listed(tmp_path, missing)["here.onnx"] == (4, False)

    def down() -> list[str]:
        raise UpstreamUnavailable("down")

    found = list_folder(tmp_path, "models", down)
    assert found.note == "upstream_unavailable: down"
    assert {one.published for one in found.resources} == {None}
    with pytest.raises(InvalidName):
        list_folder(tmp_path, "../models", None)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"salt": 5}', '{"cpu": null}'])
def test_a_broken_memory_of_the_hardware_begins_anew(tmp_path: Path, content: str) -> None:
    path = tmp_path / "hardware.json"
    path.write_text(content)
    parts = remember_parts(path, {"cpu": "one", "gpu": "two"})
    assert not any(part.changed for part in parts)
    assert [part.changed for part in remember_parts(path, {"cpu": "one", "gpu": "other"})] == [False, True]
    kept = path.read_text()
    assert "one" not in json.loads(kept).values()
    assert path.stat().st_mode & 0o777 == 0o600
