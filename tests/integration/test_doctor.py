"""The doctor on broken devices: each is healthy but for one thing, and that thing's cause must be named.

What follows from the cause may be reported beside it (an engine that is down answers nothing either), nothing else.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from azaion_devkit.certificates import CertificateAuthority
from azaion_devkit.device import EMAIL, PASSWORD, encrypted
from azaion_devkit.object_store import ObjectStore
from azaion_devkit.resource_api import DevResourceApi
from azaion_loader.credentials import Credentials
from azaion_loader.dependencies import Services
from azaion_loader.operations import Report
from azaion_loader.settings import Settings

pytestmark = [pytest.mark.engine, pytest.mark.store]


@dataclass
class Bench:
    """A device that nothing is wrong with, for a test to break."""

    folder: Path
    api: DevResourceApi
    settings: Settings
    logs_in: bool = True
    services: Services | None = None
    stack: list[Callable[[], object]] = field(default_factory=list)

    def look(self) -> Report:
        self.services = Services(self.settings)
        if self.logs_in:
            self.services.sessions.log_in(Credentials(EMAIL, PASSWORD))
        try:
            return self.services.operations.look()
        finally:
            self.services.close()

    def faults(self) -> dict[str, str | None]:
        """Return the cause of each finding that is a fault; each of them says what to do."""
        findings = self.look().findings
        assert all(finding.advice for finding in findings if finding.state == "failed")
        return {finding.name: finding.cause for finding in findings if finding.state == "failed"}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    with ObjectStore(tmp_path_factory.mktemp("store")) as made:
        made.make_bucket("models")
        yield made


@pytest.fixture
def bench(docker_host: str, store: ObjectStore, tmp_path: Path) -> Iterator[Bench]:
    api = DevResourceApi(tmp_path / "api")
    api.add_user(EMAIL, PASSWORD, "CompanionPC")
    (tmp_path / "api" / "cdn.yaml").write_bytes(store.cdn_yaml())
    archive = tmp_path / "images.enc"
    archive.write_bytes(b"".join(encrypted([bytes(10240)])))
    with api:
        settings = Settings(
            resource_api_url=api.url,
            images_path=archive,
            data_dir=tmp_path / "data",
            log_dir=tmp_path / "Logs",
            device_conf=tmp_path / "device.conf",
            docker_timeout_s=20.0,
            connect_timeout_s=1.0,
        )
        made = Bench(tmp_path, api, settings)
        yield made
        for end in reversed(made.stack):
            end()


def test_a_healthy_device(bench: Bench) -> None:
    report = bench.look()
    assert [finding for finding in report.findings if finding.state == "failed"] == []
    assert {finding.name for finding in report.findings} == {
        "engine_socket", "engine", "images", "engine_space", "data_dir", "free_space", "archive", "hardware",
        "device_credentials", "resource_api", "certificate", "clock", "object_store",
    }  # fmt: skip
    assert [part.name for part in report.parts] == ["cpu", "gpu", "memory", "drive_serial"]
    assert not any(part.changed for part in report.parts)


def test_no_engine(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{bench.folder}/none.sock")
    assert bench.faults() == {"engine_socket": "socket_missing", "engine": "docker_unavailable"}


def test_a_dead_engine_s_socket(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(bench.folder / "dead.sock"))
    monkeypatch.setenv("DOCKER_HOST", f"unix://{bench.folder}/dead.sock")
    assert bench.faults() == {"engine_socket": "engine_down", "engine": "docker_unavailable"}


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")
def test_a_socket_that_the_user_may_not_use(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    locked = bench.folder / "locked.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(locked))
        listener.listen()
        locked.chmod(0o600)
        for place in (bench.folder, *list(bench.folder.parents)[:3]):
            place.chmod(0o755)
        code = (
            "from azaion_loader.device_checks import check_socket\n"
            "print(check_socket()[0].cause, check_socket()[0].advice)"
        )
        monkeypatch.setenv("DOCKER_HOST", f"unix://{locked}")
        program = f"import os, sys; from azaion_loader import device_checks; os.setuid(65534); exec({code!r})"
        environment = {"PYTHONPATH": ":".join(sys.path), "DOCKER_HOST": f"unix://{locked}"}
        said = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60, check=True
        ).stdout
    assert said.startswith("socket_permission Add the service's user to the group")


def test_no_client(bench: Bench) -> None:
    bench.settings = replace(bench.settings, docker_cli="docker-that-is-not-there")
    assert bench.faults() == {"engine": "client_missing"}


def test_a_silent_engine(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    silent = socket.socket(socket.AF_UNIX)
    bench.stack.append(silent.close)
    silent.bind(str(bench.folder / "silent.sock"))
    silent.listen()
    monkeypatch.setenv("DOCKER_HOST", f"unix://{bench.folder}/silent.sock")
    bench.settings = replace(bench.settings, docker_timeout_s=1.0)
    assert bench.faults() == {"engine": "engine_stalled"}


def test_a_full_disk(bench: Bench) -> None:
    if os.getuid() != 0 or subprocess.run(["unshare", "--mount", "true"], check=False).returncode:
        pytest.skip("needs to mount a small disk")
    small = bench.folder / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(small)], check=False)
    if mounted.returncode:
        pytest.skip("needs to mount a small disk")
    bench.stack.append(lambda: subprocess.run(["umount", str(small)], check=True))
    bench.settings = replace(bench.settings, data_dir=small)
    assert bench.faults() == {"free_space": "disk_full"}


def test_no_room_for_the_images(bench: Bench) -> None:
    free = shutil.disk_usage(bench.folder).free
    with bench.settings.images_path.open("r+b") as archive:
        archive.truncate((free * 2) // 16 * 16)  # sparse: it takes no room itself
    report = bench.look()
    seen = next(finding for finding in report.findings if finding.name == "engine_space")
    if seen.state == "skipped":
        pytest.skip("the engine's disk is not visible from here")
    assert seen.cause == "disk_full"
    assert str(free * 2 // 16 * 16 * 2) in seen.summary


def test_a_data_directory_that_is_none(bench: Bench) -> None:
    (bench.folder / "file").write_text("")
    bench.settings = replace(bench.settings, data_dir=bench.folder / "file")
    assert bench.faults() == {"data_dir": "not_writable"}


def test_no_archive(bench: Bench) -> None:
    bench.settings.images_path.unlink()
    findings = bench.look().findings
    archive = next(finding for finding in findings if finding.name == "archive")
    assert (archive.state, archive.cause) == ("warning", "archive_not_found")


def test_a_cut_archive(bench: Bench) -> None:
    bench.settings.images_path.write_bytes(bytes(1001))
    assert bench.faults() == {"archive": "archive_cut"}


def test_a_directory_in_the_archive_s_place(bench: Bench) -> None:
    bench.settings.images_path.unlink()
    bench.settings.images_path.mkdir()
    assert bench.faults() == {"archive": "archive_unreadable"}


def test_no_signature(bench: Bench) -> None:
    bench.settings = replace(bench.settings, archive_public_key_file=bench.folder / "key.pem")
    assert bench.faults() == {"archive": "archive_untrusted"}


def test_an_api_that_is_not_there(bench: Bench) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    bench.logs_in = False
    bench.settings = replace(bench.settings, resource_api_url=f"http://127.0.0.1:{port}")
    assert bench.faults() == {"resource_api": "upstream_unavailable"}


def test_a_silent_api(bench: Bench) -> None:
    bench.settings = replace(bench.settings, request_timeout_s=1.0)
    bench.api.fail_next("/", method="GET", hang=True)
    assert bench.faults()["resource_api"] == "upstream_timeout"


def test_an_api_in_trouble(bench: Bench) -> None:
    bench.api.fail_next("/", 503, method="GET")
    assert bench.faults() == {"resource_api": "upstream_error"}


@pytest.mark.parametrize(
    ("days", "trusted", "cause"),
    [
        ((-10, -1), True, "certificate_expired"),
        ((1, 10), True, "certificate_not_yet_valid"),
        ((-1, 10), False, "certificate_untrusted"),
    ],
)
def test_a_certificate(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, days: tuple[int, int], trusted: bool, cause: str
) -> None:
    authority = CertificateAuthority(bench.folder / "ca")
    api = DevResourceApi(bench.folder / "tls-api", ssl_context=authority.server_context(days=days))
    api.start()
    bench.stack.append(api.stop)
    if trusted:
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(authority.ca_file))
    bench.logs_in = False
    bench.settings = replace(bench.settings, resource_api_url=api.url)
    assert bench.faults() == {"resource_api": "upstream_unavailable", "certificate": cause}


def test_a_clock_that_is_wrong(bench: Bench) -> None:
    bench.api.fail_next("/", 200, method="GET", headers={"Date": "Mon, 02 Jan 2023 10:00:00 GMT"})
    assert bench.faults() == {"clock": "clock_wrong"}


def test_a_store_that_is_not_there(bench: Bench) -> None:
    cdn = bench.folder / "api" / "cdn.yaml"
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    lines = [
        f"host: http://127.0.0.1:{port}" if line.startswith("host") else line for line in cdn.read_text().splitlines()
    ]
    cdn.write_text("\n".join(lines))
    assert bench.faults() == {"object_store": "upstream_unavailable"}


def test_keys_that_the_store_refuses(bench: Bench) -> None:
    cdn = bench.folder / "api" / "cdn.yaml"
    lines = [
        "downloader_access_secret: wrong-secret" if line.startswith("downloader_access_secret") else line
        for line in cdn.read_text().splitlines()
    ]
    cdn.write_text("\n".join(lines))
    assert bench.faults() == {"object_store": "store_keys"}


def test_no_configuration_of_the_store(bench: Bench) -> None:
    (bench.folder / "api" / "cdn.yaml").unlink()
    assert bench.faults() == {"object_store": "cdn_yaml"}


@pytest.mark.parametrize("part", ["cpu", "gpu", "memory", "drive_serial"])
def test_a_part_that_was_exchanged(bench: Bench, part: str) -> None:
    bench.look()
    memory = bench.settings.state_dir / "hardware.json"
    known = json.loads(memory.read_text())
    assert set(known) == {"salt", "cpu", "gpu", "memory", "drive_serial"}
    memory.write_text(json.dumps(known | {part: "0" * 16}))
    assert bench.faults() == {"hardware": f"hardware_changed_{part}"}
    report = bench.look()
    assert [seen.name for seen in report.parts if seen.changed] == [part]
    said = next(finding for finding in report.findings if finding.name == "hardware").summary
    assert part in said
    assert "0" * 16 in said


def test_a_hardware_string_file_that_is_empty(bench: Bench) -> None:
    (bench.folder / "hardware").write_text("\n")
    bench.logs_in = False
    bench.settings = replace(bench.settings, hardware_string_file=bench.folder / "hardware")
    assert bench.faults() == {"hardware": "hardware_file"}


def test_credentials_that_others_can_read(bench: Bench) -> None:
    bench.settings.device_conf.write_text("AZAION_DEVICE_EMAIL=a@example.com\nAZAION_DEVICE_PASSWORD=hunter2\n")
    bench.settings.device_conf.chmod(0o644)
    report = bench.look()
    said = next(finding for finding in report.findings if finding.name == "device_credentials")
    assert (said.state, said.cause) == ("failed", "device_conf")
    assert "chmod" in (said.advice or "")
    assert "hunter2" not in str(report)


def test_a_check_that_hangs_ends_in_time_and_is_not_started_twice() -> None:
    from azaion_loader.diagnosis import Diagnosis, fine  # noqa: PLC0415 - of this test only

    proceed, started = threading.Event(), []

    def hang() -> list[object]:
        started.append(1)
        proceed.wait(30)
        return [fine("slow", "at last")]

    diagnosis = Diagnosis({"slow": hang, "quick": lambda: [fine("quick", "at once")]}, limit_s=0.2)
    assert [(f.name, f.cause) for f in diagnosis.run()] == [("slow", "no_answer"), ("quick", None)]
    assert [(f.name, f.cause) for f in diagnosis.run()] == [("slow", "no_answer"), ("quick", None)]
    assert len(started) == 1
    proceed.set()
    for thread in threading.enumerate():
        if thread.name == "check-slow":
            thread.join(10)
    assert [f.state for f in diagnosis.run()] == ["ok", "ok"]


def test_a_check_that_breaks_is_a_finding() -> None:
    from azaion_loader.diagnosis import Diagnosis  # noqa: PLC0415 - of this test only

    assert [(f.name, f.cause) for f in Diagnosis({"odd": lambda: [1 / 0]}).run()] == [("odd", "internal_error")]
