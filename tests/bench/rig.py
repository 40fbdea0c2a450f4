"""One engine, one image set in all its forms, and everything that brings the set into the engine, timed."""

import http.client
import json
import os
import shutil
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.bench.measure import Sampler, bytes_read, cpu_seconds, engine_pid

from azaion_devkit import reference_crypto
from azaion_devkit.device import EMAIL, KEY_FRAGMENT, PASSWORD, Device, docker, encrypted
from azaion_devkit.image_sets import SyntheticImage, make_images, oci_layout, older_layout
from azaion_devkit.loader_process import LoaderProcess
from azaion_loader.required_images import required_tags

# A question costs the service half a millisecond: an orchestrator asks less often the longer a run takes.
POLL_S, POLL_SHARE = 0.01, 0.01
RUN_TIMEOUT_S = 1800.0
# A restart of a device's service takes longer than this; the engine clears an aborted load meanwhile.
RESTART_S = 2.0
VERSION = "bench"


@dataclass(frozen=True, slots=True)
class Run:
    """One timed run: wall clock, CPU of engine and of what feeds it, highest memory, disk outside the engine."""

    seconds: float
    engine_cpu_s: float
    own_cpu_s: float
    own_bytes: int
    client_bytes: int
    disk_bytes: int
    read_bytes: int = 0


class ImageSet:
    """Seven images over one base, and the same with one of them changed: plain, encrypted, and encrypted by age.

    With `first_only` there is no changed one and nothing for age: what a measurement of memory needs.
    """

    def __init__(
        self, folder: Path, *, shared_bytes: int, unique_bytes: int, layout: str, first_only: bool = False
    ) -> None:
        self.folder = folder / f"{layout}-{shared_bytes}-{unique_bytes}"
        self.shared_bytes, self.unique_bytes, self.layout = shared_bytes, unique_bytes, layout
        self.tags = required_tags(VERSION)
        self.changed_tag = self.tags[2]
        self.first_only = first_only

    @property
    def bytes(self) -> int:
        """Length of the plain tar."""
        return self.path("first.tar").stat().st_size

    def path(self, name: str) -> Path:
        return self.folder / name

    def build(self) -> None:
        """Make what is not there yet."""
        if self.path("complete").exists():
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        sets: dict[str, dict[str, int]] = {"first": {}}
        if not self.first_only:
            sets["second"] = {self.changed_tag: 1}
        for name, versions in sets.items():
            images = make_images(
                self.tags,
                shared_bytes=self.shared_bytes,
                unique_bytes=self.unique_bytes,
                seed="bench",
                versions=versions,
            )
            self._write(f"{name}.tar", images)
        for name in sets:
            with self.path(f"{name}.tar").open("rb") as source, self.path(f"{name}.enc").open("wb") as target:
                target.writelines(encrypted(iter(lambda: source.read(1 << 20), b"")))
        if shutil.which("age") and not self.first_only:
            key = subprocess.run(["age-keygen"], capture_output=True, check=True, text=True).stdout
            self.path("age.key").write_text(key)
            public = next(line.split()[-1] for line in key.splitlines() if "public key" in line)
            command = ["age", "-r", public, "-o", str(self.path("first.age")), str(self.path("first.tar"))]
            subprocess.run(command, check=True, timeout=RUN_TIMEOUT_S)
        self.path("complete").touch()

    def _write(self, name: str, images: Sequence[SyntheticImage]) -> None:
        make: Callable[[Any], Any] = oci_layout if self.layout == "oci" else older_layout
        with self.path(name).open("wb") as target:
            target.writelines(make(images))


class Bench:
    """Runs contenders on the engine at `host`; a context manager that leaves no image of its own there."""

    def __init__(self, host: str, images: ImageSet, folder: Path) -> None:
        self.host, self.images = host, images
        os.environ["DOCKER_HOST"] = host
        self.engine_pid = engine_pid(host)
        self.scratch = folder / "scratch"
        self.device = Device(folder / "device", version=VERSION)
        self.service: LoaderProcess | None = None
        self.idle_bytes = 0

    def __enter__(self) -> Self:
        self.scratch.mkdir(parents=True, exist_ok=True)
        self.device.__enter__()
        self.archive("first")
        self.start_service()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.device.__exit__(kind, error, trace)
        self.clear()
        shutil.rmtree(self.device.folder, ignore_errors=True)
        shutil.rmtree(self.scratch, ignore_errors=True)

    def archive(self, name: str) -> None:
        """Let the device's archive be the first or the second set."""
        self.device.archive.unlink(missing_ok=True)
        os.link(self.images.path(f"{name}.enc"), self.device.archive)

    def start_service(self) -> LoaderProcess:
        """Start the service anew and log in once: from there its memory counts."""
        if self.service is not None and self.service.process is not None:
            self.service.stop()
        self.service = self.device.loader()
        self.service.post("/login", {"email": EMAIL, "password": PASSWORD}).raise_for_status()
        with Sampler(self.service.pid) as sampler:
            time.sleep(0.2)
        self.idle_bytes = sampler.own_bytes
        return self.service

    def clear(self) -> None:
        """Take the set out of the engine, whatever names it."""
        listed = docker(["image", "ls", "--format", "{{.Repository}}:{{.Tag}}"]).split()
        ours = {*self.images.tags}
        names = [n for n in listed if n in ours or n.startswith(("azaion-bench/", "azaion-loader/"))]
        if names:
            docker(["image", "rm", *names], check=False)
        os.sync()

    def load_first(self) -> None:
        """Bring the engine into the state in which it holds the first set, and keep the image that changes."""
        self.clear()
        docker(["load", "--quiet", "-i", str(self.images.path("first.tar"))])
        docker(["tag", self.images.changed_tag, "azaion-bench/kept:1"])

    def back_to_first(self) -> None:
        """Undo a change of the one image."""
        changed = docker(["image", "inspect", "--format", "{{.Id}}", self.images.changed_tag]).strip()
        kept = docker(["image", "inspect", "--format", "{{.Id}}", "azaion-bench/kept:1"]).strip()
        if changed != kept:
            docker(["tag", self.images.changed_tag, "azaion-bench/old:1"])
            docker(["tag", "azaion-bench/kept:1", self.images.changed_tag])
            docker(["image", "rm", "azaion-bench/old:1"])
        os.sync()

    # -- contenders --------------------------------------------------------------------------------------------------

    def unlock(self) -> Run:
        """Our unlock through the service, from the post to `ready`, log-in and proof included."""
        service = self.service or self.start_service()
        engine, own, read = cpu_seconds(self.engine_pid), cpu_seconds(service.pid), bytes_read(service.pid)
        with Sampler(service.pid, self.device.folder) as sampler:
            seconds = self._unlock_seconds(service)
        return Run(
            seconds,
            cpu_seconds(self.engine_pid) - engine,
            cpu_seconds(service.pid) - own,
            sampler.own_bytes,
            sampler.client_bytes,
            sampler.disk_bytes,
            bytes_read(service.pid) - read,
        )

    def unlock_after_kill(self, after_s: float) -> Run:
        """Kill the service so many seconds into a run, start it again, and time the run that goes on."""
        service = self.service or self.start_service()
        service.unlock(EMAIL, PASSWORD, refresh=True).raise_for_status()
        time.sleep(after_s)
        service.kill()
        time.sleep(RESTART_S)
        self.start_service()
        return self.unlock()

    def command(self, script: str) -> Run:
        """Run a shell pipeline."""
        environment = os.environ | {"TMPDIR": str(self.scratch)}
        engine = cpu_seconds(self.engine_pid)
        started = time.perf_counter()
        process = subprocess.Popen(
            ["bash", "-euo", "pipefail", "-c", script], env=environment, stdout=subprocess.DEVNULL, cwd=self.scratch
        )
        with Sampler(process.pid, self.scratch) as sampler:
            _, status, usage = os.wait4(process.pid, 0)
            seconds = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise RuntimeError(f"failed with {process.returncode}: {script}")
        return Run(
            seconds,
            cpu_seconds(self.engine_pid) - engine,
            usage.ru_utime + usage.ru_stime,
            sampler.own_bytes,
            sampler.client_bytes,
            sampler.disk_bytes,
        )

    def scripts(self) -> dict[str, str]:
        """Return the other ways to bring the first set in, by name."""
        tar, archive = self.images.path("first.tar"), self.images.path("first.enc")
        with archive.open("rb") as source:
            iv = source.read(16).hex()
        key = reference_crypto.archive_key(KEY_FRAGMENT).hex()
        decrypt = f"tail -c +17 {archive} | openssl enc -d -aes-256-cbc -K {key} -iv {iv}"
        found = {
            "`docker load -i`, plain tar": f"docker load -q -i {tar}",
            "`openssl enc -d` piped into `docker load`": f"{decrypt} | docker load -q",
            "`openssl enc -d` to a file, then `docker load`": (
                f"{decrypt} -out plain.tar; docker load -q -i plain.tar; rm plain.tar"
            ),
        }
        if shutil.which("age"):
            key_file, encrypted_file = self.images.path("age.key"), self.images.path("first.age")
            found["`age -d` piped into `docker load`"] = f"age -d -i {key_file} {encrypted_file} | docker load -q"
        if shutil.which("skopeo"):
            copy = "skopeo --insecure-policy --tmpdir . copy -q"
            lines = [
                f"{copy} --dest-daemon-host {self.host} docker-archive:{tar}:{tag} docker-daemon:{tag}"
                for tag in self.images.tags
            ]
            found["`skopeo copy`, image by image, plain tar"] = "\n".join(lines)
        return found

    def _unlock_seconds(self, service: LoaderProcess) -> float:
        connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=60)
        started = time.perf_counter()
        body = json.dumps({"email": EMAIL, "password": PASSWORD})
        connection.request("POST", "/unlock?refresh=true", body, {"Content-Type": "application/json"})
        connection.getresponse().read()
        while time.perf_counter() - started < RUN_TIMEOUT_S:
            connection.request("GET", "/unlock/status")
            status = json.loads(connection.getresponse().read())
            if status["state"] in {"ready", "error"}:
                seconds = time.perf_counter() - started
                connection.close()
                if status["state"] == "error":
                    raise RuntimeError(status["error"])
                return seconds
            time.sleep(max(POLL_S, POLL_SHARE * (time.perf_counter() - started)))
        raise RuntimeError("the unlock run did not end")


class HealthWatch:
    """Asks `/health` over and over while the `with` block runs; keeps how long each answer took."""

    def __init__(self, port: int) -> None:
        self._port, self._stop = port, threading.Event()
        self.seconds: list[float] = []

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._ask, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _ask(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        while not self._stop.wait(0.02):
            started = time.perf_counter()
            connection.request("GET", "/health")
            connection.getresponse().read()
            self.seconds.append(time.perf_counter() - started)
        connection.close()

    @property
    def slowest_s(self) -> float:
        return max(self.seconds)

    @property
    def median_s(self) -> float:
        return statistics.median(self.seconds)
