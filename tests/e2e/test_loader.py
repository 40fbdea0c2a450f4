"""The shipped image from the outside: HTTP only, from another container of the same network.

`drive.py` starts the containers, places files and ends the loader where a test asks for it through `/control`.
"""

import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests

LOADER = "http://loader:8080"
DEVICE = "http://loader-device:8080"
EMAIL, PASSWORD = "e2e@example.com", "e2e-password"
DEVICE_DIR, CONTROL = Path("/device"), Path("/control")
RUNNING = {"authenticating", "downloading_key", "decrypting", "loading_images"}
CALL_TIMEOUT_S = 60.0


def until(what: str, condition: Callable[[], object], timeout_s: float = 60.0) -> None:
    give_up = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < give_up, f"not within {timeout_s} s: {what}"
        time.sleep(0.01)


def post(url: str, **body: object) -> requests.Response:
    return requests.post(url, json=body, timeout=CALL_TIMEOUT_S)


def get(path: str) -> Any:
    answer = requests.get(f"{LOADER}{path}", timeout=CALL_TIMEOUT_S)
    assert answer.status_code == 200, answer.text
    return answer.json()


def unlock() -> str:
    answer = post(f"{LOADER}/unlock", email=EMAIL, password=PASSWORD)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["state"])


def end_loader(how: str) -> None:
    """Have the loader's container ended with this signal and started again; return when it answers."""
    asked = CONTROL / how
    asked.touch()
    until(f"the loader was ended with {how}", (CONTROL / f"{how}.done").exists)

    def healthy() -> bool:
        try:
            return requests.get(f"{LOADER}/health", timeout=5).ok
        except requests.RequestException:
            return False

    until("the loader answers again", healthy)


def upload(content: bytes, name: str) -> requests.Response:
    return requests.post(
        f"{LOADER}/upload/{name}", data={"folder": "models"}, files={"data": (name, content)}, timeout=CALL_TIMEOUT_S
    )


@pytest.fixture
def session() -> None:
    answer = post(f"{LOADER}/login", email=EMAIL, password=PASSWORD)
    assert (answer.status_code, answer.json()) == (200, {"status": "ok"})


def test_health() -> None:
    assert get("/health") == {"status": "healthy"}


def test_nobody_has_logged_in() -> None:
    assert get("/status") == {
        "status": "healthy",
        "authenticated": False,
        "modelCacheDir": "/var/lib/azaion/models",
    }
    answer = post(f"{LOADER}/load/model.onnx", filename="model.onnx", folder="models")
    assert (answer.status_code, answer.json()["code"]) == (401, "not_authenticated")


def test_a_wrong_password_is_refused_and_not_repeated() -> None:
    answer = post(f"{LOADER}/login", email=EMAIL, password="a-wrong-password")
    assert (answer.status_code, answer.json()["code"]) == (401, "invalid_credentials")
    assert "a-wrong-password" not in answer.text
    assert get("/status")["authenticated"] is False


@pytest.mark.usefixtures("session")
def test_a_log_in_opens_a_session() -> None:
    assert get("/status")["authenticated"] is True


@pytest.mark.usefixtures("session")
@pytest.mark.parametrize("size", [0, 1, 16, 9973, 5 * 1024 * 1024 + 7])
def test_a_published_model_is_loaded_as_it_was(size: int) -> None:
    content = random.Random(size).randbytes(size)
    name = f"model-{size}.onnx"
    answer = upload(content, name)
    assert (answer.status_code, answer.json()) == (200, {"status": "ok"})
    loaded = post(f"{LOADER}/load/{name}", filename=name, folder="models")
    assert loaded.status_code == 200, loaded.text
    assert loaded.headers["Content-Type"] == "application/octet-stream"
    assert loaded.headers["Content-Length"] == str(size)
    assert loaded.content == content


@pytest.mark.usefixtures("session")
def test_a_device_gets_the_new_version_of_a_model_with_its_own_credentials() -> None:
    for version in (b"the first" * 5000, b"the second" * 7000):
        assert upload(version, "changing.onnx").status_code == 200
        loaded = post(f"{DEVICE}/load/changing.onnx", filename="changing.onnx", folder="models")
        assert (loaded.status_code, loaded.content) == (200, version)


@pytest.mark.usefixtures("session")
def test_a_model_that_nobody_published() -> None:
    answer = post(f"{LOADER}/load/absent.onnx", filename="absent.onnx", folder="models")
    assert (answer.status_code, answer.json()["code"]) == (404, "resource_not_found")


@pytest.mark.usefixtures("session")
def test_a_name_outside_the_rule() -> None:
    answer = post(f"{LOADER}/load/..hidden", filename="..hidden", folder="models")
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_name")


def test_an_unlock_with_a_wrong_password_ends_in_error() -> None:
    archive = DEVICE_DIR / "images.enc"
    (DEVICE_DIR / "images.placed-later").rename(archive)
    try:
        assert post(f"{LOADER}/unlock", email=EMAIL, password="a-wrong-password").json()["state"] in RUNNING
        until("the run is over", lambda: get("/unlock/status")["state"] not in RUNNING)
        status = get("/unlock/status")
        assert status["state"] == "error"
        assert status["error"].startswith("invalid_credentials: ")
    finally:
        archive.rename(DEVICE_DIR / "images.placed-later")


def test_unlock_over_two_restarts() -> None:
    answer = post(f"{LOADER}/unlock", email=EMAIL, password=PASSWORD)
    assert (answer.status_code, answer.json()["code"]) == (404, "archive_not_found")
    assert "Encrypted archive not found" in answer.json()["detail"]

    (DEVICE_DIR / "images.placed-later").rename(DEVICE_DIR / "images.enc")
    for how in ("TERM", "KILL"):
        assert unlock() in RUNNING
        until("images are being loaded", lambda: get("/unlock/status")["state"] not in RUNNING - {"loading_images"})
        assert get("/unlock/status")["state"] == "loading_images"
        end_loader(how)
        assert get("/unlock/status")["state"] in {"idle", "error"}

    assert unlock() in RUNNING
    until("the run is over", lambda: get("/unlock/status")["state"] not in RUNNING, timeout_s=120)
    assert get("/unlock/status") == {"state": "ready", "error": None}
    progress = get("/unlock/progress")
    assert progress["images_done"] == progress["images_total"] == 7
    assert unlock() == "ready"
