"""The whole job on this machine, with real parts: `make demo`; `make try` leaves it standing for a person to try.

It starts a development Resource API, a real S3 server and, where none is reachable, a private Docker engine; packs
seven small images into an encrypted archive; starts the loader; logs in, publishes and loads a model, unlocks, polls
to `ready`; and removes everything that it made.
"""

import argparse
import contextlib
import hashlib
import os
import platform
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import requests

from azaion_devkit import pack
from azaion_devkit.engine import engine
from azaion_devkit.engine_install import EngineMissing
from azaion_devkit.image_sets import load_into_engine, make_images, older_layout
from azaion_devkit.loader_process import LoaderError, LoaderProcess
from azaion_devkit.object_store import ObjectStore
from azaion_devkit.resource_api import DevResourceApi
from azaion_loader.docker_answers import ARCHITECTURES
from azaion_loader.required_images import required_tags

EMAIL = "operator@example.com"
MODEL_BYTES = 5 * 1024 * 1024 + 7
MIB = 1 << 20


def say(text: str) -> None:
    """Tell what has happened, at once."""
    print(f"  {text}", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo and return the exit code."""
    parser = argparse.ArgumentParser(prog="demo", description="The whole job on this machine, with real parts.")
    parser.add_argument("--stay", action="store_true", help="unlock nothing: leave all of it running, until Ctrl-C")
    parser.add_argument("--port", type=int, default=0, help="port of the loader; a free one where left out")
    given = parser.parse_args(arguments)
    started = time.monotonic()
    # Both by name: a shell that starts this in the background has SIGINT ignored.
    for ending in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ending, signal.default_int_handler)
    try:
        with tempfile.TemporaryDirectory(prefix="azaion-demo-") as folder:
            _run(Path(folder), stay=given.stay, port=given.port)
    except (EngineMissing, LoaderError, requests.RequestException, subprocess.SubprocessError) as err:
        print(f"The demo failed: {err}", file=sys.stderr)
        return 1
    print(f"Done in {time.monotonic() - started:.0f} s; everything that the demo made is removed.")
    return 0


def _run(folder: Path, *, stay: bool, port: int) -> None:
    # A version of its own, so that the demo never touches images that this machine runs from.
    version = f"demo-{secrets.token_hex(4)}"
    password = secrets.token_urlsafe(12)
    with contextlib.ExitStack() as stack:
        print("Starting what the loader talks to")
        os.environ["DOCKER_HOST"] = stack.enter_context(engine())
        say(f"Docker engine at {os.environ['DOCKER_HOST']}")
        store = stack.enter_context(ObjectStore(folder / "store"))
        store.make_bucket("models")
        say(f"S3 server ({store.kind}) at {store.url}")
        api = DevResourceApi(folder / "api")
        stack.callback(api.stop)
        api.start()
        api.add_user(EMAIL, password, "CompanionPC")
        (folder / "api" / "cdn.yaml").write_bytes(store.cdn_yaml())
        say(f"Resource API at {api.url}")

        print("Packing seven images into an encrypted archive")
        archive, fragment = folder / "images.enc", folder / "api" / ".key-fragment"
        stack.enter_context(_removed_at_end(version))
        _pack_images(version, archive, fragment)
        say(f"{archive.name}: {archive.stat().st_size / MIB:.1f} MiB; the engine holds none of the images now")

        print("Starting the loader")
        environment = {
            "RESOURCE_API_URL": api.url,
            "IMAGES_PATH": str(archive),
            "API_VERSION": version,
            "DEVICE_CONF": str(folder / "no-device.conf"),
        }
        loader = stack.enter_context(LoaderProcess(folder / "device", environment, port=port))
        say(f"{loader.url}/health: {loader.get('/health')}")
        if stay:
            _wait(loader, folder, password)
            return
        _log_in(loader, password)
        _models(loader)
        _unlock(loader, version, password)


def _wait(loader: LoaderProcess, folder: Path, password: str) -> None:
    """Say how to try it, and stay until Ctrl-C or SIGTERM."""
    secret = folder / "password"
    secret.touch(mode=0o600)
    secret.write_text(password)
    account = f"--url {loader.url} --email {EMAIL} --password-file {secret}"
    print("Ready to try, until Ctrl-C")
    say(f"page:     {loader.url}/   e-mail {EMAIL}   password {password}")
    say(f"command:  .venv/bin/azaion-loader unlock --wait {account}")
    say(f"          .venv/bin/azaion-loader doctor --url {loader.url}")
    with contextlib.suppress(KeyboardInterrupt):
        signal.pause()


def _pack_images(version: str, archive: Path, fragment: Path) -> None:
    tags = required_tags(version)
    machine = ARCHITECTURES.get(platform.machine(), platform.machine())
    images = make_images(tags, shared_bytes=4 * MIB, unique_bytes=2 * MIB, seed=version, architecture=machine)
    load_into_engine(older_layout(images))
    code = pack.main([*tags, "--out", str(archive), "--key-fragment", str(fragment)])
    if code:
        raise LoaderError(f"azaion-pack ended with {code}")
    _remove_images(version)


def _log_in(loader: LoaderProcess, password: str) -> None:
    answer = loader.post("/login", {"email": EMAIL, "password": password})
    _expect(answer, 200)
    say(f"POST /login: {answer.json()}; /status: {loader.get('/status')}")


def _models(loader: LoaderProcess) -> None:
    print("Publishing and loading a model")
    model = secrets.token_bytes(MODEL_BYTES)
    answer = requests.post(
        f"{loader.url}/upload/demo.onnx", files={"data": model}, data={"folder": "models"}, timeout=120
    )
    _expect(answer, 200)
    say(f"POST /upload/demo.onnx, {len(model)} bytes: {answer.json()}")
    loaded = loader.post("/load/demo.onnx", {"filename": "demo.onnx", "folder": "models"})
    _expect(loaded, 200)
    if loaded.content != model:
        raise LoaderError("The loaded model differs from the published one")
    say(
        f"POST /load/demo.onnx: {len(loaded.content)} bytes, SHA-256 {hashlib.sha256(loaded.content).hexdigest()[:16]}…"
    )


def _unlock(loader: LoaderProcess, version: str, password: str) -> None:
    print("Unlocking the images")
    started = time.monotonic()
    answer = loader.unlock(EMAIL, password)
    _expect(answer, 200)
    say(f"POST /unlock: {answer.json()}")
    status, states = loader.wait_for_unlock()
    say(f"GET /unlock/status: {' → '.join(states)}")
    if status["state"] != "ready":
        raise LoaderError(str(status["error"]))
    progress = loader.get("/unlock/progress")
    say(f"{progress['images_done']} images, {progress['bytes_done']} bytes, {time.monotonic() - started:.1f} s")
    listed = subprocess.run(
        [
            "docker",
            "image",
            "ls",
            "--format",
            "{{.Repository}}:{{.Tag}}  {{.ID}}",
            "--filter",
            f"reference=*/*:{version}",
        ],
        capture_output=True,
        check=True,
        text=True,
        timeout=60,
    ).stdout.split("\n")
    for line in sorted(filter(None, listed)):
        say(line)


@contextlib.contextmanager
def _removed_at_end(version: str) -> Iterator[None]:
    try:
        yield
    finally:
        _remove_images(version)


def _remove_images(version: str) -> None:
    command = ["docker", "image", "rm", *required_tags(version)]
    subprocess.run(command, capture_output=True, check=False, timeout=120)


def _expect(answer: requests.Response, status: int) -> None:
    if answer.status_code != status:
        raise LoaderError(f"{answer.request.method} {answer.url}: {answer.status_code} {answer.text[:500]}")


if __name__ == "__main__":
    sys.exit(main())
