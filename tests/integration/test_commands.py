"""The command line against a running loader: what it prints, what it writes, and its exit codes."""

import contextlib
import io
import json
import os
import pty
import secrets
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import pytest

from azaion_devkit.device import EMAIL, KEY_FRAGMENT, PASSWORD, Device
from azaion_devkit.image_sets import older_layout
from azaion_devkit.loader_process import LoaderProcess
from azaion_devkit.object_store import ObjectStore
from azaion_loader import cli

pytestmark = [pytest.mark.engine, pytest.mark.store]


@dataclass(frozen=True)
class Outcome:
    """How a command ended, and what it said."""

    returncode: int
    stdout: str
    stderr: str


class Command:
    """Runs `azaion-loader` as a person would, beside a loader."""

    def __init__(self, device: Device, loader: LoaderProcess) -> None:
        self.device = device
        self.environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": ":".join(sys.path),
            "AZAION_LOADER_URL": loader.url,
            "AZAION_EMAIL": EMAIL,
            "AZAION_PASSWORD": PASSWORD,
            "IMAGES_PATH": str(device.archive),
            "LOADER_DATA_DIR": str(device.data_dir),
        }

    def __call__(self, *arguments: str, environment: Mapping[str, str] | None = None) -> Outcome:
        out, err = io.StringIO(), io.StringIO()
        with (
            mock.patch.dict(os.environ, self.environment | dict(environment or {})),
            mock.patch.object(sys, "stdin", io.StringIO()),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            try:
                code = cli.main(list(arguments))
            except SystemExit as end:
                code = int(end.code or 0)
        return Outcome(code, out.getvalue(), err.getvalue())

    def json(self, *arguments: str, code: int = 0, environment: Mapping[str, str] | None = None) -> dict[str, object]:
        outcome = self(*arguments, "--json", environment=environment)
        assert outcome.returncode == code, outcome
        assert outcome.stderr == ""
        assert outcome.stdout.count("\n") == 1
        found: dict[str, object] = json.loads(outcome.stdout)
        return found


@pytest.fixture(scope="module")
def device(docker_host: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Device]:
    with (
        Device(tmp_path_factory.mktemp("device")) as made,
        ObjectStore(tmp_path_factory.mktemp("store")) as store,
    ):
        store.make_bucket("models")
        (made.folder / "api" / "cdn.yaml").write_bytes(store.cdn_yaml())
        yield made


@pytest.fixture(scope="module")
def loader(device: Device) -> LoaderProcess:
    return device.loader()


@pytest.fixture
def command(device: Device, loader: LoaderProcess) -> Command:
    return Command(device, loader)


def test_a_wrong_password_from_a_file(command: Command, tmp_path: Path) -> None:
    password = tmp_path / "password"
    password.write_text("not-the-password\n")
    said = command.json("login", "--password-file", str(password), code=4)
    assert said["code"] == "invalid_credentials"
    outcome = command("login", "--password-file", str(password))
    assert outcome.returncode == 4
    assert "not-the-password" not in outcome.stdout + outcome.stderr


def test_log_in_and_models(command: Command, tmp_path: Path) -> None:
    assert command.json("login") == {"status": "ok"}
    model = tmp_path / "demo.onnx"
    model.write_bytes(secrets.token_bytes(900_001))
    assert command.json("upload", str(model))["bytes"] == 900_001
    out = tmp_path / "out"
    out.mkdir()
    assert command.json("load", "demo.onnx", "--out", str(out))["bytes"] == 900_001
    assert (out / "demo.onnx").read_bytes() == model.read_bytes()
    assert command.json("load", "absent.onnx", "--out", str(out), code=5)["code"] == "resource_not_found"
    assert command.json("load", "a..b", "--out", str(out), code=2)["code"] == "invalid_name"
    assert command.json("load", "demo.onnx", "--out", str(out / "no" / "x"), code=1)["code"] == "failed"
    assert [path.name for path in out.iterdir()] == ["demo.onnx"]


def test_unlock_and_wait(command: Command, device: Device) -> None:
    device.place_tar(b"".join(older_layout(device.images()[:3])) for _ in range(1))
    assert command.json("unlock", "--wait", code=7)["code"] == "archive_incomplete"
    device.place(device.images())
    outcome = command("unlock", "--wait")
    assert (outcome.returncode, outcome.stderr) == (0, "")
    assert outcome.stdout.startswith("Ready: 7 images, ")
    found = command.json("unlock", "--wait", "--refresh")
    assert (found["state"], found["percent"]) == ("ready", 100.0)
    assert command.json("unlock") == {"state": "ready"}
    status = command.json("status")
    assert status["unlock"] == {"state": "ready", "error": None}
    assert command("status").stdout.count("\n") == 4


def test_not_in_time(command: Command, device: Device) -> None:
    device.place(device.images())
    device.api.fail_next("/binary-split/key-fragment", delay_s=3.0)
    assert command.json("unlock", "--refresh", "--wait", "--timeout", "0.3", code=8)["code"] == "not_in_time"
    assert command.json("unlock", "--wait")["state"] == "ready"


def test_nobody_there(command: Command) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        url = f"http://127.0.0.1:{probe.getsockname()[1]}"
    assert command.json("status", "--url", url, code=3)["code"] == "service_unreachable"
    assert "Is it running?" in command("status", "--url", url).stderr


def test_wrong_usage(command: Command) -> None:
    assert command.json("status", "--url", "ftp://x", code=2)["code"] == "usage"
    assert command("status", "--url").returncode == 2
    assert command("upload", "/absent").returncode == 2
    assert command("login", "--password", "hunter2").returncode == 2
    assert command("login", "--password-file", "/absent").returncode == 2
    nobody = {"AZAION_EMAIL": "", "AZAION_PASSWORD": ""}
    assert command("login", environment=nobody).returncode != 0


def test_a_prompt_hides_the_password(command: Command) -> None:
    main, child = pty.openpty()
    environment = {name: value for name, value in command.environment.items() if name != "AZAION_PASSWORD"}
    with subprocess.Popen(
        [sys.executable, "-m", "azaion_loader.cli", "login"], env=environment, stdin=child, stdout=child, stderr=child,
        start_new_session=True,
    ) as process:  # fmt: skip
        os.close(child)
        said = b""
        # The blank comes when the terminal has stopped to echo, and has thrown away what was typed before.
        while b"Password: " not in said:
            said += os.read(main, 1000)
        os.write(main, PASSWORD.encode() + b"\n")
        while b"Logged in" not in said:
            said += os.read(main, 1000)
        assert process.wait(30) == 0
    os.close(main)
    assert PASSWORD.encode() not in said


def test_doctor(command: Command) -> None:
    command.json("login")
    found = command.json("doctor")
    assert found["healthy"] is True
    outcome = command("doctor")
    assert outcome.returncode == 0
    assert "engine_socket" in outcome.stdout
    local = command.json("doctor", "--local", code=1, environment={"DOCKER_CLI": "no-such-client"})
    causes = {check["name"]: check["cause"] for check in local["checks"]}  # type: ignore[attr-defined]
    assert causes["engine"] == "client_missing"
    wrong = command.json("doctor", "--local", code=1, environment={"RESOURCE_API_URL": "nonsense"})
    assert wrong["checks"][0]["cause"] == "invalid_setting"  # type: ignore[index]
    away = command.json("doctor", "--url", "http://127.0.0.1:9", code=1)
    assert away["checks"][0]["cause"] == "service_unreachable"  # type: ignore[index]


def test_decrypt(command: Command, device: Device, tmp_path: Path) -> None:
    device.place(device.images())
    fragment, out = tmp_path / "fragment.key", tmp_path / "images.tar"
    fragment.write_bytes(KEY_FRAGMENT)
    found = command.json("decrypt", "--key-fragment", str(fragment), "--out", str(out))
    assert out.stat().st_size == found["bytes"]
    assert out.stat().st_mode & 0o777 == 0o600
    assert command.json("decrypt", "--key-fragment", str(fragment), "--out", str(out), code=2)["code"] == "usage"
    out.unlink()
    fragment.write_bytes(b"another")
    assert command.json("decrypt", "--key-fragment", str(fragment), "--out", str(out), code=7)["code"] == "wrong_key"
    assert not out.exists()


def test_fingerprint_and_version(command: Command, tmp_path: Path) -> None:
    hardware = tmp_path / "hardware"
    hardware.write_text("CPU: TestCpu. GPU: TestGpu. Memory: 8000000. DriveSerial: S123")
    found = command.json("fingerprint", environment={"HARDWARE_STRING_FILE": str(hardware)})
    assert found["hardware_hash"] == "gEHz0qo2NeVBnQQ06juOrMy+QdfE+wSIGDlMI4sjNVKE8C40QS0kJUncyypMaTUx"
    assert set(found["parts"]) == {"cpu", "gpu", "memory", "drive_serial"}  # type: ignore[call-overload]
    assert command.json("version")["version"]


def test_help_names_every_command(command: Command) -> None:
    said = command("--help").stdout
    for name in ("serve", "unlock", "login", "load", "upload", "status", "doctor", "decrypt", "fingerprint", "version"):
        assert f"\n  {name} " in said


def test_a_unix_socket_with_a_token(device: Device, tmp_path: Path) -> None:
    token, path = tmp_path / "token", tmp_path / "l.sock"
    token.write_text("a-long-token\n")
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": ":".join(sys.path),
        "LOADER_DATA_DIR": str(tmp_path / "data"),
        "LOADER_API_TOKEN_FILE": str(token),
        "ALLOWED_HOSTS": "127.0.0.1",
    }
    serve = [sys.executable, "-m", "azaion_loader.cli", "serve", "--uds", str(path)]
    with subprocess.Popen(serve, env=environment, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "Listening" in line:
                break
        ask = [sys.executable, "-m", "azaion_loader.cli", "status", "--json", "--uds", str(path)]
        good = subprocess.run(ask, env=environment, capture_output=True, text=True, timeout=60, check=False)
        bare = {name: value for name, value in environment.items() if name != "LOADER_API_TOKEN_FILE"}
        bad = subprocess.run(ask, env=bare, capture_output=True, text=True, timeout=60, check=False)
        process.terminate()
        process.stderr.read()
    assert json.loads(good.stdout)["authenticated"] is False
    assert (bad.returncode, json.loads(bad.stdout)["code"]) == (4, "unauthorized")
