"""The HTTP surface over in-test use cases: exact bodies, hostile input, what must answer when all else is busy."""

import asyncio
import json
import logging
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from fastapi import FastAPI
from loguru import logger

from azaion_loader.dependencies import Services
from azaion_loader.errors import ArchiveNotFound, InvalidCredentials, LoaderError, RateLimited
from azaion_loader.http_errors import STATUS
from azaion_loader.main import create_app
from azaion_loader.progress import UnlockProgress
from azaion_loader.settings import InvalidSetting, Settings
from azaion_loader.unlock_state import UnlockState

ACCOUNT = {"email": "user@example.com", "password": "password1"}
PROGRESS = {
    "run_id": "abc",
    "state": UnlockState.LOADING_IMAGES,
    "stage": "loading images",
    "bytes_done": 5,
    "bytes_total": 10,
    "images_done": 1,
    "images_total": 7,
    "percent": 49.5,
    "rate_bytes_per_s": 2.5,
    "seconds_left": 2.0,
    "seconds_since_change": 0.25,
    "note": None,
}


@dataclass
class Sessions:
    failure: LoaderError | None = None
    log_ins: list[tuple[str, str]] = field(default_factory=list)
    proceed: threading.Event | None = None
    authenticated: bool = False

    def log_in(self, credentials: object) -> None:
        if self.proceed is not None:
            self.proceed.wait(30)
        if self.failure is not None:
            raise self.failure
        self.log_ins.append((credentials.email, credentials.password))
        self.authenticated = True


@dataclass
class Job:
    state: UnlockState = UnlockState.IDLE
    error: str | None = None
    failure: LoaderError | None = None
    starts: list[tuple[str, bool]] = field(default_factory=list)
    ended: bool = False

    def start(self, credentials: object, refresh: bool) -> UnlockState:
        if self.failure is not None:
            raise self.failure
        self.starts.append((credentials.email, refresh))
        return UnlockState.AUTHENTICATING

    def status(self) -> SimpleNamespace:
        return SimpleNamespace(state=self.state, error=self.error)

    def progress(self) -> UnlockProgress:
        return UnlockProgress(**PROGRESS)

    def shutdown(self) -> None:
        self.ended = True


class InTestServices(Services):
    def __init__(self, settings: Settings, sessions: Sessions, job: Job) -> None:
        super().__init__(settings)
        self._sessions = sessions  # type: ignore[assignment]
        self._unlock_job = job  # type: ignore[assignment]


@pytest.fixture
def sessions() -> Sessions:
    return Sessions()


@pytest.fixture
def job() -> Job:
    return Job()


@pytest.fixture
def app(sessions: Sessions, job: Job, tmp_path: Path) -> FastAPI:
    settings = Settings(data_dir=tmp_path, log_dir=tmp_path / "Logs")
    return create_app(services=InTestServices(settings, sessions, job))


def ask(app: FastAPI, method: str, path: str, **options: object) -> httpx.Response:
    async def go() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://loader.test") as client:
            return await client.request(method, path, **options)  # type: ignore[arg-type]

    return asyncio.run(go())


def test_health(app: FastAPI) -> None:
    response = ask(app, "GET", "/health")
    assert (response.status_code, response.json()) == (200, {"status": "healthy"})


def test_status(app: FastAPI, tmp_path: Path, sessions: Sessions) -> None:
    cache = str(tmp_path / "models")
    assert ask(app, "GET", "/status").json() == {"status": "healthy", "authenticated": False, "modelCacheDir": cache}
    sessions.authenticated = True
    assert ask(app, "GET", "/status").json() == {"status": "healthy", "authenticated": True, "modelCacheDir": cache}


def test_status_without_a_data_directory(sessions: Sessions, job: Job) -> None:
    app = create_app(services=InTestServices(Settings(), sessions, job))
    assert ask(app, "GET", "/status").json()["modelCacheDir"] == "models"


def test_login(app: FastAPI, sessions: Sessions) -> None:
    response = ask(app, "POST", "/login", json=ACCOUNT)
    assert (response.status_code, response.json()) == (200, {"status": "ok"})
    assert sessions.log_ins == [("user@example.com", "password1")]


def test_login_refused(app: FastAPI, sessions: Sessions) -> None:
    sessions.failure = InvalidCredentials("The Resource API refuses this e-mail or password.")
    response = ask(app, "POST", "/login", json=ACCOUNT)
    expected = {"detail": "The Resource API refuses this e-mail or password.", "code": "invalid_credentials"}
    assert (response.status_code, response.json()) == (401, expected)
    sessions.failure = RateLimited("Wait.", retry_after_s=9)
    assert ask(app, "POST", "/login", json=ACCOUNT).headers["retry-after"] == "9"


@pytest.mark.parametrize(
    ("query", "refresh"), [("", False), ("?refresh=true", True), ("?refresh=1", True), ("?refresh=false", False)]
)
def test_unlock(app: FastAPI, job: Job, query: str, refresh: bool) -> None:
    response = ask(app, "POST", f"/unlock{query}", json=ACCOUNT)
    assert (response.status_code, response.json()) == (200, {"state": "authenticating"})
    assert job.starts == [("user@example.com", refresh)]


def test_unlock_without_an_archive(app: FastAPI, job: Job) -> None:
    job.failure = ArchiveNotFound("Encrypted archive not found: /opt/azaion/images.enc")
    response = ask(app, "POST", "/unlock", json=ACCOUNT)
    assert response.status_code == 404
    assert response.json()["code"] == "archive_not_found"
    assert "Encrypted archive not found" in response.json()["detail"]


@pytest.mark.parametrize("state", list(UnlockState))
def test_unlock_status(app: FastAPI, job: Job, state: UnlockState) -> None:
    job.state, job.error = state, "wrong_key: No." if state is UnlockState.ERROR else None
    response = ask(app, "GET", "/unlock/status")
    assert (response.status_code, response.json()) == (200, {"state": state.value, "error": job.error})


def test_unlock_progress(app: FastAPI) -> None:
    body = ask(app, "GET", "/unlock/progress").json()
    assert re.fullmatch("[0-9a-f]{16}", body.pop("token"))
    assert body == PROGRESS


JSON = {"content-type": "application/json"}


@pytest.mark.parametrize("path", ["/login", "/unlock"])
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"hunter2",
        b"{",
        b"[]",
        b"null",
        b'"hunter2"',
        b"{}",
        b'{"email":"","password":"hunter2"}',
        b'{"email":"   ","password":"hunter2"}',
        b'{"email":"user@example.com","password":""}',
        b'{"email":"user@example.com"}',
        b'{"email":1,"password":"hunter2"}',
        b'{"email":null,"password":"hunter2"}',
        b'{"email":["a"],"password":{"hunter2":1}}',
        b'{"email":"a\\u0000b","password":"hunter2"}',
        b'{"email":"a\\nb","password":"hunter2"}',
        b'{"email":"a@b\\n","password":"hunter2"}',
        b'{"email":"\\ud800","password":"hunter2"}',
        b'{"email":"a","password":"hunter2\\udfff"}',
        b'{"email":"' + b"a" * 321 + b'","password":"hunter2"}',
        b'{"email":"a","password":"' + b"hunter2" * 200 + b'"}',
        b"\xff\xfe\x00",
        b'{"email":"\xff","password":"hunter2"}',
        b"[" * 60_000,
        b'{"a":' * 10_000,
        b"9" * 60_000,
        b'{"email":"a@b","password":"hunter2"} hunter2',
        b'{"password":' + b"1" * 5000 + b"}",
    ],
)
def test_hostile_bodies(app: FastAPI, sessions: Sessions, job: Job, path: str, body: bytes) -> None:
    response = ask(app, "POST", path, content=body, headers=JSON)
    assert (response.status_code, response.json()["code"]) == (422, "invalid_request")
    assert "hunter2" not in response.text
    assert (sessions.log_ins, job.starts) == ([], [])


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
def test_json_under_another_name_is_no_json(app: FastAPI, sessions: Sessions, content_type: str) -> None:
    headers = {"content-type": content_type}
    response = ask(app, "POST", "/login", content=json.dumps(ACCOUNT), headers=headers)
    assert (response.status_code, response.json()["code"]) == (422, "invalid_request")
    assert "password1" not in response.text
    assert sessions.log_ins == []


def test_a_huge_body(app: FastAPI) -> None:
    response = ask(app, "POST", "/login", content=b"x" * (1 << 20), headers=JSON)
    assert (response.status_code, response.json()["code"]) == (413, "too_large")


@pytest.mark.parametrize("refresh", ["banana", "", "2", "true&refresh=banana"])
def test_a_refresh_that_is_no_boolean(app: FastAPI, job: Job, refresh: str) -> None:
    assert ask(app, "POST", f"/unlock?refresh={refresh}", json=ACCOUNT).status_code == 422
    assert job.starts == []


@pytest.mark.parametrize(
    "path", ["/nope", "/health/", "/Health", "/unlock/", "/%00", "/..%2f", "/login%20", "/static/x.js"]
)
def test_unknown_paths(app: FastAPI, path: str) -> None:
    response = ask(app, "GET", path)
    assert (response.status_code, response.json()["code"]) == (404, "not_found")


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("GET", "/login", "POST"),
        ("POST", "/health", "GET"),
        ("DELETE", "/unlock", "POST"),
        ("PUT", "/unlock/status", "GET"),
        ("OPTIONS", "/login", "POST"),
        ("TRACE", "/status", "GET"),
    ],
)
def test_wrong_methods(app: FastAPI, method: str, path: str, allow: str) -> None:
    response = ask(app, method, path)
    assert (response.status_code, response.json()["code"]) == (405, "method_not_allowed")
    assert response.headers["allow"] == allow
    assert "access-control-allow-origin" not in response.headers


def test_head_is_a_method_like_others(app: FastAPI) -> None:
    assert ask(app, "HEAD", "/health").status_code == 405


def test_polls_answer_while_every_request_thread_is_busy(app: FastAPI, sessions: Sessions) -> None:
    sessions.proceed = threading.Event()

    async def go() -> list[int]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://loader.test") as client:
            # AnyIO's pool has 40 threads; ten more wait for one.
            log_ins = [asyncio.create_task(client.post("/login", json=ACCOUNT)) for _ in range(50)]
            polls = []
            for path in ("/health", "/status", "/unlock/status", "/unlock/progress"):
                polls.append((await asyncio.wait_for(client.get(path), 5)).status_code)
            assert not any(task.done() for task in log_ins)
            sessions.proceed.set()
            return polls + [response.status_code for response in await asyncio.gather(*log_ins)]

    assert asyncio.run(go()) == [200] * 54


@pytest.fixture
def own_loggers() -> Iterator[None]:
    """Leave loguru and the standard library's root logger as they were found."""
    handlers, level = logging.root.handlers, logging.root.level
    yield
    logger.remove()
    logger.configure(patcher=lambda _record: None)
    logging.root.handlers, logging.root.level = handlers, level


@pytest.mark.usefixtures("own_loggers")
def test_the_lifespan_ends_the_job(app: FastAPI, job: Job) -> None:
    async def go() -> None:
        async with app.router.lifespan_context(app):
            assert not job.ended

    asyncio.run(go())
    assert job.ended


def test_settings_reach_the_guard(sessions: Sessions, job: Job, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("geheim-1\n")
    settings = Settings(allowed_hosts=("loader.test",), loader_api_token_file=tmp_path / "token")
    app = create_app(services=InTestServices(settings, sessions, job))
    assert ask(app, "GET", "/health").status_code == 200
    assert ask(app, "GET", "/health", headers={"host": "evil"}).json()["code"] == "host_not_allowed"
    assert ask(app, "GET", "/status").json()["code"] == "unauthorized"
    assert ask(app, "GET", "/status", headers={"authorization": "Bearer geheim-1"}).status_code == 200
    headers = {"authorization": "Bearer geheim-1", "origin": "http://evil"}
    assert ask(app, "POST", "/login", json=ACCOUNT, headers=headers).json()["code"] == "cross_site"


def test_an_unusable_token_file_keeps_the_service_from_starting(tmp_path: Path) -> None:
    with pytest.raises(InvalidSetting, match="LOADER_API_TOKEN_FILE"):
        create_app(Settings(loader_api_token_file=tmp_path / "absent"))


def test_openapi_documents_every_answer(app: FastAPI) -> None:
    document = ask(app, "GET", "/openapi.json").json()
    assert document["info"]["title"] == "Azaion.Loader"
    expected = {
        ("/health", "get"): {"200", "401", "403", "500"},
        ("/status", "get"): {"200", "401", "403", "500"},
        ("/login", "post"): {"200", "401", "403", "413", "422", "423", "429", "500", "502", "503", "504"},
        ("/load/{filename}", "post"): {"200", "401", "403", "404", "422", "500", "502", "503", "504", "507"},
        ("/upload/{filename}", "post"): {"200", "401", "403", "413", "422", "500", "502", "503", "504", "507"},
        ("/unlock", "post"): {"200", "401", "403", "404", "413", "422", "500", "507"},
        ("/unlock/status", "get"): {"200", "401", "403", "500"},
        ("/unlock/progress", "get"): {"200", "401", "403", "422", "500"},
    }
    found = {
        (path, method): set(entry["responses"])
        for path, ways in document["paths"].items()
        for method, entry in ways.items()
    }
    assert {key: wanted - found[key] for key, wanted in expected.items()} == {key: set() for key in expected}
    assert set().union(*found.values()) <= {"200", *map(str, STATUS.values())}
    assert set(document["paths"]["/load/{filename}"]["post"]["responses"]["200"]["content"]) == {
        "application/octet-stream"
    }
    for ways in document["paths"].values():
        for entry in ways.values():
            for status, response in entry["responses"].items():
                if status != "200":
                    schema = response["content"]["application/json"]["schema"]
                    assert schema == {"$ref": "#/components/schemas/Problem"}
    assert "HTTPValidationError" not in document["components"]["schemas"]


def test_docs_page(app: FastAPI) -> None:
    assert ask(app, "GET", "/docs").status_code == 200


def in_a_new_process(code: str, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    environment = {"PYTHONPATH": ":".join(sys.path), "LOADER_DATA_DIR": str(tmp_path)}
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60, check=False
    )


def test_the_app_is_built_when_a_server_asks_for_it(tmp_path: Path) -> None:
    code = "import azaion_loader.main as m; assert 'app' not in vars(m); assert m.app is m.app; print(m.app.title)"
    outcome = in_a_new_process(code, tmp_path)
    assert (outcome.returncode, outcome.stdout) == (0, "Azaion.Loader\n"), outcome.stderr


def test_the_module_has_no_other_lazy_names() -> None:
    with pytest.raises(ImportError):
        from azaion_loader.main import nothing  # type: ignore[attr-defined]  # noqa: F401, PLC0415


# Not python_multipart: starlette itself imports it with its form parser, in an empty application too.
HEAVY = "boto3 botocore requests urllib3 cryptography jwt yaml rich typer httpx"


def test_health_and_status_load_nothing_heavy(tmp_path: Path) -> None:
    code = f"""
import asyncio, sys
from azaion_loader.main import app
async def ask(path):
    sent = []
    scope = {{"type": "http", "method": "GET", "path": path, "headers": [], "query_string": b"", "http_version": "1.1"}}
    async def receive(): return {{"type": "http.request", "body": b"", "more_body": False}}
    async def send(message): sent.append(message)
    await app(scope, receive, send)
    assert sent[0]["status"] == 200, sent
for path in ("/health", "/status", "/openapi.json"):
    asyncio.run(ask(path))
print(sorted(set({HEAVY.split()!r}) & set(sys.modules)))
"""
    outcome = in_a_new_process(code, tmp_path)
    assert (outcome.returncode, outcome.stdout) == (0, "[]\n"), outcome.stderr
