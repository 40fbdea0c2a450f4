"""docker_cli.py and the devkit's fault proxy on a real Docker engine."""

import hashlib
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from azaion_devkit.engine import Engine, engine, private_engine
from azaion_devkit.engine_proxy import EngineProxy
from azaion_devkit.leftovers import belongings, left_since
from azaion_loader.docker_cli import DockerCli
from azaion_loader.errors import DockerFailed, DockerStalled, DockerUnavailable, Interrupted

pytestmark = pytest.mark.engine

MIB = 1 << 20


def tar_of(files: list[tuple[str, bytes]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


@dataclass
class Image:
    """A hand-made image in the layout of `docker save`: one file in each layer."""

    tag: str
    payloads: list[bytes]
    layers: list[bytes] = field(init=False)
    diff_ids: list[str] = field(init=False)
    config: bytes = field(init=False)

    def __post_init__(self) -> None:
        self.layers = [tar_of([(f"file{n}", data)]) for n, data in enumerate(self.payloads)]
        self.diff_ids = [f"sha256:{hashlib.sha256(layer).hexdigest()}" for layer in self.layers]
        config = {"architecture": "amd64", "os": "linux", "config": {"Env": ["A=1"], "Cmd": ["/x"]}}
        self.config = json.dumps({**config, "rootfs": {"type": "layers", "diff_ids": self.diff_ids}}).encode()

    @property
    def id(self) -> str:
        return f"sha256:{hashlib.sha256(self.config).hexdigest()}"


def archive(*images: Image, leave_out: tuple[str, ...] = ()) -> bytes:
    """Return images as one tar, `manifest.json` last; layers whose diff IDs are in `leave_out` are missing."""
    files: dict[str, bytes] = {}
    manifest = []
    for image in images:
        names = [f"{diff_id[7:]}/layer.tar" for diff_id in image.diff_ids]
        layers = zip(names, image.diff_ids, image.layers, strict=True)
        files.update({name: layer for name, diff_id, layer in layers if diff_id not in leave_out})
        files[f"{image.id[7:]}.json"] = image.config
        manifest.append({"Config": f"{image.id[7:]}.json", "RepoTags": [image.tag], "Layers": names})
    return tar_of([*files.items(), ("manifest.json", json.dumps(manifest).encode())])


def go_on() -> None:
    """Nobody asked to stop."""


def load(cli: DockerCli, data: bytes, cancelled: Callable[[], None] = go_on) -> int:
    taken: list[int] = []
    cli.load((data[i : i + MIB] for i in range(0, len(data), MIB)), len(data), taken.append, cancelled)
    return sum(taken)


@pytest.fixture(scope="module")
def host() -> Iterator[str]:
    with engine() as found:
        yield found


@pytest.fixture
def cli(host: str, monkeypatch: pytest.MonkeyPatch) -> DockerCli:
    monkeypatch.setenv("DOCKER_HOST", host)
    return DockerCli("docker", 30.0, 30.0)


@pytest.fixture
def new_image(host: str) -> Iterator[Callable[..., Image]]:
    """Make images that nobody else has; what a test leaves of them is removed."""
    made: list[Image] = []

    def make(*payloads: bytes, name: str = "") -> Image:
        made.append(Image(name or f"azaion-test/{uuid.uuid4().hex}:1", list(payloads) or [os.urandom(1000)]))
        return made[-1]

    yield make
    names = {name for image in made for name in (image.tag, image.id)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DOCKER_HOST", host)
        cleaner = DockerCli("docker", 30.0, 30.0)
        for name in cleaner.inspect(sorted(names, reverse=True)):
            cleaner.remove(name)


@pytest.fixture
def own_engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    if os.geteuid() != 0:
        pytest.skip("a private engine needs root")
    with private_engine() as own:
        monkeypatch.setenv("DOCKER_HOST", own.host)
        yield own


@pytest.fixture
def nothing_left() -> Iterator[None]:
    before = belongings()
    yield
    assert not left_since(before)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def same_image(cli: DockerCli, name: str, image: Image) -> bool:
    """Whether `name` is `image`: by ID, or by layers where IDs are manifest digests."""
    info = cli.inspect([name]).get(name)
    if info is None or info.layers != tuple(image.diff_ids):
        return False
    return info.id == image.id or cli.info().store == "containerd"


@pytest.mark.usefixtures("nothing_left")
def test_info(cli: DockerCli) -> None:
    info = cli.info()
    assert info.version
    assert (info.os, info.client) == ("linux", "docker")
    machine = os.uname().machine
    assert info.architecture == {"x86_64": "amd64", "aarch64": "arm64"}.get(machine, machine)


@pytest.mark.usefixtures("nothing_left")
def test_load_inspect_tag_remove(cli: DockerCli, new_image: Callable[..., Image]) -> None:
    image = new_image(b"base" * 100, os.urandom(3 * MIB))
    data = archive(image)
    assert load(cli, data) <= len(data)
    found = cli.inspect([image.tag, "azaion-test/absent:1"])
    assert list(found) == [image.tag]
    info = found[image.tag]
    assert (info.os, info.architecture, info.config["Env"]) == ("linux", "amd64", ["A=1"])
    assert same_image(cli, image.tag, image)

    other = new_image(b"unused", name=f"azaion-test/{uuid.uuid4().hex}:2").tag
    cli.tag(image.tag, other)
    assert set(cli.inspect([other])[other].tags) == {image.tag, other}
    cli.remove(image.tag)
    assert list(cli.inspect([image.tag, other])) == [other]
    assert [listed.tags for listed in cli.images() if listed.id == info.id] == [(other,)]
    cli.remove(other)
    cli.remove(other)
    assert cli.inspect([image.tag, other, info.id]) == {}


def test_a_tag_moves_to_the_new_image(cli: DockerCli, new_image: Callable[..., Image]) -> None:
    old = new_image()
    new = new_image(os.urandom(100), name=old.tag)
    keep = new_image(b"unused").tag
    load(cli, archive(old))
    cli.tag(old.tag, keep)
    load(cli, archive(new))
    assert same_image(cli, old.tag, new)
    assert same_image(cli, keep, old)


@pytest.mark.usefixtures("nothing_left")
def test_an_image_in_use_stays(cli: DockerCli, new_image: Callable[..., Image]) -> None:
    image = new_image()
    load(cli, archive(image))
    identity = cli.inspect([image.tag])[image.tag].id
    assert identity not in cli.used_image_ids()
    created = subprocess.run(["docker", "create", image.tag], capture_output=True, check=True, text=True)
    try:
        assert identity in cli.used_image_ids()
        with pytest.raises(DockerFailed, match="container"):
            cli.remove(image.tag)
        assert image.tag in cli.inspect([image.tag])
    finally:
        subprocess.run(["docker", "rm", created.stdout.strip()], check=True, stdout=subprocess.DEVNULL)


def test_a_load_without_the_layers_that_are_held(cli: DockerCli, new_image: Callable[..., Image]) -> None:
    base = os.urandom(1000)
    first, second = new_image(base, b"one"), new_image(base, os.urandom(10))
    load(cli, archive(first))
    delta = archive(second, leave_out=(first.diff_ids[0],))
    if cli.info().store == "classic":
        load(cli, delta)
        assert same_image(cli, second.tag, second)
    else:
        with pytest.raises(DockerFailed, match=r"not found|missing"):
            load(cli, delta)


@pytest.mark.usefixtures("nothing_left")
def test_a_cut_stream_registers_nothing(cli: DockerCli, new_image: Callable[..., Image]) -> None:
    first, second = new_image(os.urandom(5000)), new_image(os.urandom(2 * MIB))
    data = archive(first, second)
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        heads = [member.offset for member in tar]
    for cut in (0, 100, 512, *heads[1:], heads[-1] + 512, heads[-1] + 600, len(data) // 2):
        with pytest.raises(DockerFailed):
            load(cli, data[:cut])
        assert cli.inspect([first.tag, second.tag, first.id, second.id]) == {}, cut
    load(cli, data)
    assert same_image(cli, second.tag, second)


@pytest.mark.usefixtures("nothing_left")
def test_a_stopped_run_registers_nothing(cli: DockerCli, new_image: Callable[..., Image]) -> None:
    image = new_image(os.urandom(20 * MIB))
    calls = 0

    def cancelled() -> None:
        nonlocal calls
        calls += 1
        if calls == 10:
            raise Interrupted("The loader was stopped")

    with pytest.raises(Interrupted):
        load(cli, archive(image), cancelled)
    assert cli.inspect([image.tag, image.id]) == {}


def test_a_load_that_is_given_up_ends_at_once(cli: DockerCli, new_image: Callable[..., Image]) -> None:
    """Docker's client does not heed SIGTERM while it waits for its input."""
    data = archive(new_image(os.urandom(3 * MIB)))
    given_up_at = 0.0

    def chunks() -> Iterator[bytes]:
        nonlocal given_up_at
        yield data[: 2 * MIB]
        given_up_at = time.monotonic()
        raise Interrupted("given up")

    with pytest.raises(Interrupted):
        cli.load(chunks(), len(data), lambda _: None, go_on)
    assert time.monotonic() - given_up_at < 1.0


def test_a_killed_loader_registers_nothing(cli: DockerCli, new_image: Callable[..., Image], tmp_path: Path) -> None:
    """SIGKILL of the feeding process itself: the client sees the end of its input and the engine a cut tar."""
    image = new_image(os.urandom(8 * MIB))
    (tmp_path / "tar").write_bytes(archive(image))
    script = f"""
import os, signal
from azaion_loader.docker_cli import DockerCli
data = open({str(tmp_path / "tar")!r}, "rb").read()
def chunks():
    yield data[:6_000_000]
    os.kill(os.getpid(), signal.SIGKILL)
DockerCli("docker", 30, 30).load(chunks(), len(data), lambda n: None, lambda: None)
"""
    outcome = subprocess.run([sys.executable, "-c", script], check=False, timeout=60)
    assert outcome.returncode == -signal.SIGKILL
    # The client, now an orphan, ends by itself.
    wait_for(lambda: not clients_of(str(os.environ["DOCKER_HOST"])))
    assert cli.inspect([image.tag, image.id]) == {}


def clients_of(host: str) -> list[Path]:
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
            if words[:2] == [b"docker", b"load"] and f"DOCKER_HOST={host}".encode() in (entry / "environ").read_bytes():
                found.append(entry)
        except OSError:
            continue
    return found


# -- no engine, or one that goes away --------------------------------------------------------------------------------


@pytest.mark.usefixtures("nothing_left")
def test_no_socket(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, host: str) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    cli = DockerCli("docker", 30.0, 30.0)
    for act in (cli.info, cli.images, lambda: cli.inspect(["a"]), lambda: load(cli, bytes(10 * MIB))):
        with pytest.raises(DockerUnavailable, match="can't be reached"):
            act()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give it up")
def test_no_permission(cli: DockerCli, tmp_path: Path) -> None:
    wrapper = tmp_path / "docker"
    wrapper.write_text('#!/bin/sh\nexec setpriv --reuid=65534 --regid=65534 --clear-groups docker "$@"\n')
    wrapper.chmod(0o755)
    refused = DockerCli(str(wrapper), 30.0, 30.0)
    for act in (refused.info, lambda: refused.inspect(["a"]), lambda: load(refused, bytes(10 * MIB))):
        with pytest.raises(DockerUnavailable, match="add its user to the group"):
            act()


@pytest.mark.usefixtures("nothing_left")
def test_the_engine_is_killed_in_a_load(own_engine: Engine) -> None:
    cli = DockerCli("docker", 30.0, 30.0)
    image = Image("azaion-test/killed:1", [os.urandom(8 * MIB)])
    data = archive(image)

    def chunks() -> Iterator[bytes]:
        yield data[: 4 * MIB]
        own_engine.kill()
        yield data[4 * MIB :]

    with pytest.raises((DockerFailed, DockerUnavailable)):
        cli.load(chunks(), len(data), [].append, go_on)
    own_engine.start()
    assert cli.images() == []
    load(cli, data)
    assert same_image(cli, image.tag, image)
    own_engine.stop()


@pytest.mark.usefixtures("nothing_left")
def test_a_frozen_engine(own_engine: Engine) -> None:
    data = archive(Image("azaion-test/frozen:1", [os.urandom(16 * MIB)]))
    cli = DockerCli("docker", 1.0, 1.0)
    pid = own_engine.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        for act in (cli.info, lambda: cli.inspect(["a"]), lambda: load(cli, data)):
            with pytest.raises(DockerStalled, match="systemctl restart docker"):
                act()
    finally:
        os.kill(pid, signal.SIGCONT)
    load(DockerCli("docker", 30.0, 30.0), data)
    own_engine.stop()


# -- the fault proxy -------------------------------------------------------------------------------------------------


@pytest.fixture
def proxy(
    host: str, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[EngineProxy]:
    path = Path(f"/tmp/azaion-proxy-{uuid.uuid4().hex[:12]}.sock")
    with EngineProxy(host, path) as running:
        monkeypatch.setenv("DOCKER_HOST", running.host)
        yield running
    assert not path.exists()


def test_the_proxy_passes_everything_through(proxy: EngineProxy, new_image: Callable[..., Image]) -> None:
    cli = DockerCli("docker", 30.0, 30.0)
    image = new_image(os.urandom(3 * MIB))
    load(cli, archive(image))
    assert same_image(cli, image.tag, image)
    assert proxy.count("/images/load") == 1
    assert not any(request.faulted for request in proxy.requests)


def test_an_engine_that_dies_before_it_has_accepted_lets_the_client_know() -> None:
    """Its listener closes with a request in the queue: the client sees the end of the connection."""
    folder = Path(tempfile.mkdtemp(prefix="azaion-proxy-", dir="/tmp"))
    with socket.socket(socket.AF_UNIX) as engine, socket.socket(socket.AF_UNIX) as client:
        engine.bind(str(folder / "e"))
        engine.listen(8)
        with EngineProxy(f"unix://{folder}/e", folder / "p") as proxy:
            client.settimeout(5.0)
            client.connect(str(folder / "p"))
            client.sendall(b"GET /info HTTP/1.1\r\nHost: docker\r\n\r\n")
            wait_for(lambda: proxy.count("/info") == 1)
            engine.close()
            assert client.recv(1) == b""
    shutil.rmtree(folder)


def test_the_second_load_breaks_off(proxy: EngineProxy, new_image: Callable[..., Image]) -> None:
    cli = DockerCli("docker", 30.0, 30.0)
    first, second = new_image(os.urandom(2 * MIB)), new_image(os.urandom(2 * MIB))
    proxy.break_off("/images/load", nth=2, after_bytes=MIB)
    load(cli, archive(first))
    with pytest.raises((DockerFailed, DockerUnavailable)):
        load(cli, archive(second))
    assert same_image(cli, first.tag, first)
    assert cli.inspect([second.tag, second.id]) == {}
    load(cli, archive(second))
    assert same_image(cli, second.tag, second)
    assert [request.faulted for request in proxy.requests if "/images/load" in request.path] == [False, True, False]


@pytest.mark.parametrize("after_bytes", [0, MIB, None])
def test_a_load_hangs(proxy: EngineProxy, new_image: Callable[..., Image], after_bytes: int | None) -> None:
    proxy.hang("/images/load", after_bytes=after_bytes)
    started = time.monotonic()
    with pytest.raises(DockerStalled):
        load(DockerCli("docker", 10.0, 1.0), archive(new_image(os.urandom(8 * MIB))))
    assert time.monotonic() - started < 15


def test_a_lost_answer_does_not_undo_the_load(proxy: EngineProxy, new_image: Callable[..., Image]) -> None:
    cli = DockerCli("docker", 10.0, 10.0)
    image = new_image()
    proxy.break_off("/images/load", after_bytes=None)
    with pytest.raises((DockerFailed, DockerUnavailable)):
        load(cli, archive(image))
    wait_for(lambda: same_image(cli, image.tag, image))


def test_an_answer_of_the_engine_s_own(proxy: EngineProxy, new_image: Callable[..., Image]) -> None:
    cli = DockerCli("docker", 10.0, 10.0)
    image = new_image()
    load(cli, archive(image))
    proxy.answer("/tag", status=500, message='the disk said "no"')
    with pytest.raises(DockerFailed, match='the disk said "no"'):
        cli.tag(image.tag, "azaion-test/never:1")
    assert cli.inspect(["azaion-test/never:1"]) == {}
