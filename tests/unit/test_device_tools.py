"""The health check and the unlock by the device's own credentials, against a service that answers as told."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from azaion_loader import health_check, unlock_device

Answer = tuple[int, dict[str, object]]


class Service:
    """A loopback service; `answers` are given in order for each method and path, the last one for ever."""

    def __init__(self) -> None:
        self.answers: dict[str, list[Answer]] = {"GET /health": [(200, {"status": "healthy"})]}
        self.seen: list[tuple[str, dict[str, str], bytes]] = []
        service = self

        class Handler(BaseHTTPRequestHandler):
            def _answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                what = f"{self.command} {self.path}"
                service.seen.append((what, dict(self.headers), body))
                given = service.answers.get(what, [(404, {"code": "not_found"})])
                status, answer = given.pop(0) if len(given) > 1 else given[0]
                data = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = _answer  # noqa: N815 - the base class looks for these names

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]

    def calls(self) -> list[str]:
        return [what for what, _, _ in self.seen]


@pytest.fixture
def service() -> Iterator[Service]:
    one = Service()
    thread = threading.Thread(target=one.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield one
    one.server.shutdown()
    thread.join()
    one.server.server_close()


@pytest.fixture
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    conf = tmp_path / "device.conf"
    conf.write_text("AZAION_DEVICE_EMAIL=d@example.com\nAZAION_DEVICE_PASSWORD=device-password\n")
    conf.chmod(0o600)
    monkeypatch.setenv("DEVICE_CONF", str(conf))
    monkeypatch.setattr(unlock_device, "POLL_S", 0.001)
    return conf


def test_a_healthy_service(service: Service) -> None:
    assert health_check.main([str(service.port)]) == 0


def test_an_unhealthy_service(service: Service) -> None:
    service.answers["GET /health"] = [(503, {})]
    assert health_check.main([str(service.port)]) == 1


def test_no_service(service: Service) -> None:
    service.server.socket.close()
    assert health_check.main([str(service.port)]) == 1


def test_the_check_uses_a_name_that_the_service_answers_to(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALLOWED_HOSTS", "device.local other.local")
    assert health_check.main([str(service.port)]) == 0
    assert service.seen[0][1]["Host"] == "device.local"


def test_the_check_leaves_proxies_aside(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    assert health_check.main([str(service.port)]) == 0


def test_unusable_settings_are_unhealthy(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CACHE_MAX_BYTES", "many")
    assert health_check.main([str(service.port)]) == 1


@pytest.mark.usefixtures("device")
def test_unlock_to_ready(service: Service, capsys: pytest.CaptureFixture[str]) -> None:
    service.answers["POST /unlock"] = [(200, {"state": "authenticating"})]
    service.answers["GET /unlock/status"] = [
        (200, {"state": "decrypting", "error": None}),
        (200, {"state": "decrypting", "error": None}),
        (200, {"state": "ready", "error": None}),
    ]
    assert unlock_device.main(["--port", str(service.port)]) == 0
    assert capsys.readouterr().out == "decrypting\nready\n"
    assert json.loads(service.seen[0][2]) == {"email": "d@example.com", "password": "device-password"}


@pytest.mark.usefixtures("device")
def test_refresh_without_an_archive_is_content_with_what_is_there(service: Service) -> None:
    service.answers["POST /unlock?refresh=true"] = [(404, {"code": "archive_not_found", "detail": "none"})]
    service.answers["POST /unlock"] = [(200, {"state": "ready"})]
    service.answers["GET /unlock/status"] = [(200, {"state": "ready", "error": None})]
    assert unlock_device.main(["--refresh", "--port", str(service.port)]) == 0
    assert service.calls() == ["POST /unlock?refresh=true", "POST /unlock", "GET /unlock/status"]


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("final", [{"state": "error", "error": "wrong_key: no"}, {"state": "idle", "error": None}])
def test_a_run_that_fails(service: Service, final: dict[str, object], capsys: pytest.CaptureFixture[str]) -> None:
    service.answers["POST /unlock"] = [(200, {"state": "authenticating"})]
    service.answers["GET /unlock/status"] = [(200, final)]
    assert unlock_device.main(["--port", str(service.port)]) == 1
    assert str(final["error"] or "did not end with ready") in capsys.readouterr().err


@pytest.mark.usefixtures("device")
def test_a_refused_call(service: Service, capsys: pytest.CaptureFixture[str]) -> None:
    service.answers["POST /unlock"] = [(507, {"code": "disk_full", "detail": "no room"})]
    assert unlock_device.main(["--port", str(service.port)]) == 1
    assert capsys.readouterr().err == "unlock: disk_full: no room\n"


@pytest.mark.usefixtures("device")
def test_a_service_that_does_not_answer(service: Service, capsys: pytest.CaptureFixture[str]) -> None:
    service.server.socket.close()
    assert unlock_device.main(["--port", str(service.port)]) == 1
    assert "does not answer" in capsys.readouterr().err


def test_a_device_without_credentials(device: Path, capsys: pytest.CaptureFixture[str]) -> None:
    device.write_text("# none\n")
    assert unlock_device.main([]) == 1
    assert "has no credentials" in capsys.readouterr().err


def test_the_services_own_token_is_sent(service: Service, device: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    token = device.with_name("token")
    token.write_text("a-token\n")
    monkeypatch.setenv("LOADER_API_TOKEN_FILE", str(token))
    service.answers["POST /unlock"] = [(200, {"state": "ready"})]
    service.answers["GET /unlock/status"] = [(200, {"state": "ready", "error": None})]
    assert unlock_device.main(["--port", str(service.port)]) == 0
    assert {headers["Authorization"] for _, headers, _ in service.seen} == {"Bearer a-token"}
