"""docker_cli.py against small programs that speak as the clients do; the messages are copied from real ones."""

import grp
import json
import os
import stat
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from azaion_devkit.leftovers import belongings, left_since
from azaion_loader.docker_answers import absent_references, fault, parse_images, parse_info
from azaion_loader.docker_batches import BATCH_REFERENCES
from azaion_loader.docker_cli import ANSWER_LIMIT_BYTES, DockerCli, EngineInfo, ImageInfo
from azaion_loader.errors import (
    DiskFull,
    DockerFailed,
    DockerStalled,
    DockerUnavailable,
    Interrupted,
    LoaderError,
)

ID_1 = "sha256:" + "1" * 64
ID_2 = "sha256:" + "2" * 64
DOCKER_INFO: dict[str, Any] = {
    "Driver": "overlay2",
    "DriverStatus": [["Backing Filesystem", "extfs"]],
    "OSType": "linux",
    "Architecture": "x86_64",
    "IndexServerAddress": "https://index.docker.io/v1/",
    "DockerRootDir": "/",
    "ServerVersion": "20.10.24+dfsg1",
}
PODMAN_INFO: dict[str, Any] = {
    "host": {"arch": "arm64", "os": "linux", "serviceIsRemote": False},
    "store": {"graphRoot": "/"},
    "version": {"Version": "4.3.1"},
}

# Each is what a client really printed, and what becomes of it.
COMPLAINTS: list[tuple[str, type[LoaderError], str]] = [
    (
        "Cannot connect to the Docker daemon at unix:///var/run/docker.sock. Is the docker daemon running?",
        DockerUnavailable,
        "systemctl status docker",
    ),
    (
        "WARNING: Error loading config file: open /root/.docker/config.json: permission denied\n"
        "permission denied while trying to connect to the Docker daemon socket at unix:///var/run/none.sock: "
        'Post "http://%2Fvar%2Frun%2Fnone.sock/v1.50/images/load?quiet=1": '
        "dial unix /var/run/none.sock: connect: permission denied",
        DockerUnavailable,
        "group docker",
    ),
    (
        "Got permission denied while trying to connect to the Docker daemon socket at unix:///var/run/none.sock: "
        'Get "http://x/v1.24/info": dial unix /var/run/none.sock: connect: permission denied',
        DockerUnavailable,
        "group docker",
    ),
    (
        "error during connect: Post https://10.0.0.1:2376/v1.24/images/load: dial tcp 10.0.0.1:2376: "
        "connect: connection refused",
        DockerUnavailable,
        "DOCKER_HOST",
    ),
    (
        "Error response from daemon: client version 1.50 is too new. Maximum supported API version is 1.41",
        DockerUnavailable,
        "version",
    ),
    (
        "Error processing tar file(exit status 1): write /f: no space left on device",
        DiskFull,
        "no space left on device",
    ),
    ("write /var/lib/docker/tmp/x: disk quota exceeded", DiskFull, "disk quota exceeded"),
    ("Error processing tar file(exit status 1): unexpected EOF", DockerFailed, "unexpected EOF"),
    ("", DockerFailed, "exit code 1"),
    ("\x1b[31mbad\x1b[0m \x07 thing\n", DockerFailed, "[31mbad [0m   thing"),
]


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    before = belongings()
    yield
    assert not left_since(before)


class FakeClient:
    """A client whose answers are Python; its calls, one JSON list of arguments a line, are in `calls`."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.path = directory / "docker"

    def does(self, body: str, *, engine: str = "") -> DockerCli:
        """Let the client run `body`, which has `args`, `fail(text, code)` and `show(value)`.

        `engine` comes first: by default nothing, so that `body` answers what the engine is, too.
        """
        self.path.write_text(
            f"#!{sys.executable} -IS\n"
            "import json, os, sys, time\n"
            "args = sys.argv[1:]\n"
            f"with open({str(self._directory / 'calls')!r}, 'a') as log:\n"
            "    log.write(json.dumps(args) + '\\n')\n"
            "def fail(text, code=1):\n"
            "    sys.stderr.write(text + '\\n'); sys.exit(code)\n"
            "def show(value):\n"
            "    print(json.dumps(value))\n" + engine + body
        )
        self.path.chmod(self.path.stat().st_mode | stat.S_IXUSR)
        return DockerCli(str(self.path), 5.0, 1.0)

    @property
    def has_calls(self) -> bool:
        return (self._directory / "calls").exists()

    @property
    def calls(self) -> list[list[str]]:
        return [json.loads(line) for line in (self._directory / "calls").read_text().splitlines()]


@pytest.fixture
def client(tmp_path: Path) -> FakeClient:
    return FakeClient(tmp_path)


def go_on() -> None:
    """Nobody asked to stop."""


def load(cli: DockerCli, *chunks: bytes, cancelled: Callable[[], None] = go_on) -> int:
    taken: list[int] = []
    cli.load(iter(chunks), sum(map(len, chunks)), taken.append, cancelled)
    return sum(taken)


ANSWERS_LIKE_DOCKER = f"""
HELD = {{"a/b:1": "{ID_1}", "c/d:2": "{ID_2}", "{ID_1}": "{ID_1}"}}
if args[:2] == ["image", "inspect"]:
    wanted = args[args.index("--") + 1:]
    code = 0
    for name in wanted:
        if name in HELD:
            tags = [n for n in HELD if HELD[n] == HELD[name] and ":" in n[:6]]
            show({{"Id": HELD[name], "RepoTags": tags, "RootFS": {{"Layers": ["sha256:l"]}}, "Os": "linux",
                   "Architecture": "amd64", "Config": {{"Env": []}}}})
        else:
            code = 1
            sys.stderr.write(SAYS % name)
    if code and not any(name in HELD for name in wanted):
        print()
    sys.exit(code)
if args[0] == "info":
    show({DOCKER_INFO!r})
if args[0] == "context":
    print("unix:///var/run/docker.sock")
"""
IS_DOCKER = f"""
if args[0] in ("info", "context"):
    print({json.dumps(DOCKER_INFO)!r} if args[0] == "info" else "unix:///x")
    sys.exit()
"""
DOCKER_28 = "SAYS = 'Error response from daemon: no such image: %s: No such image: x\\n'\n"
DOCKER_20 = "SAYS = 'Error: No such image: %s\\n'\n"


# -- info ------------------------------------------------------------------------------------------------------------


def test_info_of_docker(client: FakeClient) -> None:
    info = client.does(ANSWERS_LIKE_DOCKER).info()
    assert info == EngineInfo("20.10.24+dfsg1", "linux", "amd64", "classic", Path("/"), "docker")


def test_the_engine_of_another_machine_has_no_directory_here(client: FakeClient) -> None:
    body = ANSWERS_LIKE_DOCKER.replace("unix:///var/run/docker.sock", "tcp://10.0.0.1:2376")
    assert client.does(body).info().root_dir is None


@pytest.mark.parametrize(
    ("host", "expected"), [(None, Path("/")), ("unix:///run/other.sock", Path("/")), ("tcp://10.0.0.1:2376", None)]
)
def test_the_default_context_needs_no_question(
    client: FakeClient, monkeypatch: pytest.MonkeyPatch, host: str | None, expected: Path | None
) -> None:
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    if host is not None:
        monkeypatch.setenv("DOCKER_HOST", host)
    cli = client.does(f"show({ {**DOCKER_INFO, 'ClientInfo': {'Context': 'default'}}!r})")
    assert cli.info().root_dir == expected
    assert len(client.calls) == 1


def test_another_context_is_asked_for_its_engine(client: FakeClient) -> None:
    body = ANSWERS_LIKE_DOCKER.replace("'DockerRootDir'", "'ClientInfo': {'Context': 'far'}, 'DockerRootDir'")
    assert client.does(body.replace("unix:///var/run/docker.sock", "ssh://far")).info().root_dir is None
    assert len(client.calls) == 2


def test_the_engine_is_asked_once_by_threads_that_need_to_know_it(client: FakeClient) -> None:
    cli = client.does(f"{DOCKER_28}if args[0] == 'info': time.sleep(1)\n{ANSWERS_LIKE_DOCKER}")
    with ThreadPoolExecutor(2) as pool:
        info = pool.submit(cli.info)
        while not client.has_calls and not info.done():
            time.sleep(0.01)
        found = pool.submit(cli.inspect, ["a/b:1"])
        assert found.result(30)
        assert info.result(30).version
    assert sum(call[0] == "info" for call in client.calls) == 1


def test_a_directory_that_can_not_be_seen_is_left_out(client: FakeClient) -> None:
    body = ANSWERS_LIKE_DOCKER.replace("'DockerRootDir': '/'", "'DockerRootDir': '/nonexistent/docker'")
    assert client.does(body).info().root_dir is None


def test_info_of_podman(client: FakeClient) -> None:
    info = client.does(f"show({PODMAN_INFO!r})").info()
    assert info == EngineInfo("4.3.1", "linux", "arm64", "podman", Path("/"), "podman")
    assert len(client.calls) == 1


def test_info_of_podman_s_docker_socket_and_of_containerd() -> None:
    def store(**changes: object) -> str:
        return parse_info(json.dumps({**DOCKER_INFO, **changes}).encode()).store

    assert store(IndexServerAddress="") == "podman"
    assert store(DriverStatus=[["driver-type", "io.containerd.snapshotter.v1"]]) == "containerd"
    assert store(DriverStatus=None) == "classic"


@pytest.mark.parametrize(
    ("word", "expected"),
    [("x86_64", "amd64"), ("aarch64", "arm64"), ("armv7l", "arm"), ("amd64", "amd64"), ("riscv64", "riscv64")],
)
def test_architectures(word: str, expected: str) -> None:
    assert parse_info(json.dumps({**DOCKER_INFO, "Architecture": word}).encode()).architecture == expected


def test_an_old_client_reports_a_missing_engine_with_exit_code_0(client: FakeClient) -> None:
    cli = client.does(f"show({{'ServerErrors': [{COMPLAINTS[0][0]!r}], 'ClientInfo': {{}}}})")
    with pytest.raises(DockerUnavailable, match="systemctl"):
        cli.info()


def test_a_new_client_prints_its_half_of_the_answer_and_exits_with_1(client: FakeClient) -> None:
    with pytest.raises(DockerUnavailable):
        client.does(f"show({{'ID': '', 'ServerVersion': ''}}); fail({COMPLAINTS[0][0]!r})").info()


# -- inspect ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("says", [DOCKER_28, DOCKER_20])
def test_absent_images_are_left_out(client: FakeClient, says: str) -> None:
    cli = client.does(says + ANSWERS_LIKE_DOCKER)
    found = cli.inspect(["x/y:1", "a/b:1", "x/y:2", "c/d:2", ID_1, "a/b:1"])
    assert {name: info.id for name, info in found.items()} == {"a/b:1": ID_1, "c/d:2": ID_2, ID_1: ID_1}
    assert found["a/b:1"] == ImageInfo(ID_1, ("a/b:1",), ("sha256:l",), "linux", "amd64", "", {"Env": []})


def test_a_single_absent_image(client: FakeClient) -> None:
    cli = client.does(DOCKER_28 + ANSWERS_LIKE_DOCKER)
    assert cli.inspect(["x/y:1"]) == {}
    assert cli.inspect(["x/y:1", "x/y:2"]) == {}
    assert cli.inspect([]) == {}


def test_names_that_the_client_writes_otherwise_are_asked_for_one_by_one(client: FakeClient) -> None:
    says = "SAYS = 'Error response from daemon: No such image: docker.io/%s@sha256:0\\n'\n"
    found = client.does(says + ANSWERS_LIKE_DOCKER).inspect(["x/y:1", "a/b:1", "c/d:2"])
    assert {name: info.id for name, info in found.items()} == {"a/b:1": ID_1, "c/d:2": ID_2}


def test_many_references_are_asked_for_in_batches(client: FakeClient) -> None:
    cli = client.does(DOCKER_20 + ANSWERS_LIKE_DOCKER)
    names = [f"x/y:{n}" for n in range(2 * BATCH_REFERENCES)] + ["a/b:1"]
    assert list(cli.inspect(names)) == ["a/b:1"]
    assert len([call for call in client.calls if call[0] == "image"]) == 3
    assert list(cli.inspect(["l" * 8000, "m" * 8000, "a/b:1"])) == ["a/b:1"]
    assert len([call for call in client.calls if call[0] == "image"]) == 5


def test_a_fault_of_the_engine_is_not_an_absent_image(client: FakeClient) -> None:
    cli = client.does(
        "sys.stderr.write('Error: No such image: a\\n'); fail('Cannot connect to the Docker daemon at x')"
    )
    with pytest.raises(DockerUnavailable):
        cli.inspect(["a", "b"])


def test_a_silent_failure_is_not_an_absent_image(client: FakeClient) -> None:
    with pytest.raises(DockerFailed):
        client.does("print(); sys.exit(1)").inspect(["a"])


def test_podman_s_answers(client: FakeClient) -> None:
    image = {"Id": "1" * 64, "RepoTags": ["localhost/a/b:1", "docker.io/a/b:1", "docker.io/library/c:1", "quay.io/d:1"]}
    cli = client.does(f"""
if args[0] == "info":
    show({PODMAN_INFO!r})
else:
    print(json.dumps([{image!r}], indent=5))
    if len(args) > 6:
        fail("Error: inspecting object: x:1: image not known", 125)
""")
    found = cli.inspect(["a/b:1", "x:1"])
    assert found["a/b:1"].id == ID_1
    assert found["a/b:1"].tags == ("a/b:1", "c:1", "quay.io/d:1")


def test_all_images_and_those_in_use(client: FakeClient) -> None:
    cli = client.does(
        ANSWERS_LIKE_DOCKER
        + f"""
if args[1] == "ls":
    print("{ID_1}" if args[0] == "image" else "c1\\nc2\\nc3")
if args[:2] == ["container", "inspect"]:
    print("{ID_1}\\n{"2" * 64}")
    fail("Error: No such container: c3")
"""
    )
    assert [image.tags for image in cli.images()] == [("a/b:1",)]
    assert cli.used_image_ids() == {ID_1, ID_2}


def test_no_containers(client: FakeClient) -> None:
    assert client.does("").used_image_ids() == set()
    assert len(client.calls) == 1


# -- tag and remove --------------------------------------------------------------------------------------------------


def test_tag(client: FakeClient) -> None:
    client.does("").tag("a:1", "b:2")
    assert client.calls == [["tag", "--", "a:1", "b:2"]]
    with pytest.raises(DockerFailed, match="No such image: a:1"):
        client.does("fail('Error response from daemon: No such image: a:1')").tag("a:1", "b:2")


def test_remove_is_never_forced_and_an_absent_image_is_fine(client: FakeClient) -> None:
    client.does("").remove("a:1")
    assert client.calls == [["image", "rm", "--no-prune", "--", "a:1"]]
    client.does("fail('Error: No such image: a:1')").remove("a:1")
    client.does("fail('Error: a:1: image not known')").remove("a:1")


def test_an_image_in_use_stays(client: FakeClient) -> None:
    text = 'Error response from daemon: conflict: unable to remove repository reference "a" (must force) - in use'
    with pytest.raises(DockerFailed, match="conflict"):
        client.does(f"fail({text!r})").remove("a:1")


# -- faults ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "error", "words"), COMPLAINTS)
def test_complaints_of_every_command(client: FakeClient, text: str, error: type[LoaderError], words: str) -> None:
    cli = client.does(f"sys.stdin.buffer.read(); fail({text!r})")
    for act in (
        cli.info,
        cli.images,
        cli.used_image_ids,
        lambda: cli.inspect(["a"]),
        lambda: cli.tag("a", "b"),
        lambda: cli.remove("a"),
        lambda: load(cli, b"x" * 100),
    ):
        with pytest.raises(error) as raised:
            act()
        assert words in raised.value.message
        assert raised.value.message.isprintable()


def test_the_group_of_the_socket_is_named(tmp_path: Path) -> None:
    path = tmp_path / "docker.sock"
    path.touch()
    os.chown(path, -1, os.getgid())
    text = f"permission denied while trying to connect: dial unix {path}: connect: permission denied"
    assert f"group {grp.getgrgid(os.getgid()).gr_name}," in fault("x", 1, text.encode()).message


@pytest.mark.parametrize("command", ["/nonexistent/docker", "no-such-docker-here", "/etc/hostname", "a\0b"])
def test_a_missing_client(command: str) -> None:
    cli = DockerCli(command, 5.0, 5.0)
    for act in (cli.info, lambda: load(cli, b"x")):
        with pytest.raises(DockerUnavailable, match="DOCKER_CLI"):
            act()


def test_a_client_that_has_gone_missing(client: FakeClient) -> None:
    cli = client.does("")
    cli.tag("a", "b")
    client.path.unlink()
    with pytest.raises(DockerUnavailable):
        cli.tag("a", "b")


def test_a_client_that_never_exits(client: FakeClient) -> None:
    client.does("time.sleep(60)")
    with pytest.raises(DockerStalled, match="systemctl restart docker"):
        DockerCli(str(client.path), 0.5, 0.5).info()


def test_a_client_that_prints_gigabytes(client: FakeClient) -> None:
    with pytest.raises(DockerFailed, match=str(ANSWER_LIMIT_BYTES)):
        client.does("while True: sys.stdout.write('x' * 65536)").info()


@pytest.mark.parametrize(
    "output",
    ["nonsense", "[1]", "{}{", '{"Id": 1}', '{"Id": ""}', '{"Id": "x", "RepoTags": "a"}', "[" * 100000, "\\xff"],
)
def test_answers_that_can_not_be_read(output: str) -> None:
    with pytest.raises(DockerFailed):
        parse_images(output.encode("latin-1").replace(b"\\xff", b"\xff"), short_names=False)


def test_a_wrong_number_of_answers(client: FakeClient) -> None:
    cli = client.does(ANSWERS_LIKE_DOCKER.replace('show({"Id"', 'print("{}"); show({"Id"'))
    with pytest.raises(DockerFailed):
        cli.inspect(["a/b:1"])


@given(st.binary())
def test_any_output_is_read_or_refused(data: bytes) -> None:
    for parse in (lambda: parse_images(data, short_names=True), lambda: parse_info(data)):
        try:
            parse()
        except (DockerFailed, DockerUnavailable, DiskFull):
            continue
    absent_references(data, ["a"])
    assert fault("act", 1, data).message.isprintable()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
)


@given(st.sampled_from([DOCKER_INFO, PODMAN_INFO, {"ServerErrors": ["x"]}]), st.data())
def test_any_json_is_read_or_refused(info: dict[str, Any], data: st.DataObject) -> None:
    key = data.draw(st.sampled_from([*info, "Id", "RepoTags", "RootFS", "Config", "Os"]))
    text = json.dumps({"Id": "sha256:1", **info, key: data.draw(json_values)}).encode()
    for parse in (lambda: parse_images(text, short_names=True), lambda: parse_info(text)):
        try:
            parse()
        except (DockerFailed, DockerUnavailable, DiskFull):
            continue


# -- load ------------------------------------------------------------------------------------------------------------


def test_load_feeds_everything(client: FakeClient, tmp_path: Path) -> None:
    cli = client.does(
        f"open({str(tmp_path / 'out')!r}, 'wb').write(sys.stdin.buffer.read()); print('Loaded image: a')",
        engine=IS_DOCKER,
    )
    data = os.urandom(3_000_001)
    assert load(cli, data[:1_000_000], data[1_000_000:]) == len(data)
    assert (tmp_path / "out").read_bytes() == data
    assert client.calls[-1] == ["load", "--quiet"]


def test_load_with_messages_in_english(client: FakeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    monkeypatch.setenv("DOCKER_HOST", "unix:///x.sock")
    cli = client.does("fail(os.environ['LC_ALL'] + os.environ['DOCKER_HOST'])", engine=IS_DOCKER)
    with pytest.raises(DockerFailed, match=r"Cunix:///x\.sock"):
        load(cli, b"x")


def test_an_engine_that_never_reads(client: FakeClient) -> None:
    with pytest.raises(DockerStalled, match="took nothing for 1 s"):
        load(client.does("time.sleep(60)", engine=IS_DOCKER), *[bytes(1 << 20)] * 8)


def test_an_engine_that_is_silent_after_the_last_byte(client: FakeClient) -> None:
    with pytest.raises(DockerStalled, match="after its last byte"):
        load(client.does("sys.stdin.buffer.read(); time.sleep(60)", engine=IS_DOCKER), b"x")


def test_the_time_after_the_last_byte_grows_with_the_stream(client: FakeClient) -> None:
    cli = client.does("sys.stdin.buffer.read(); time.sleep(2)", engine=IS_DOCKER)
    cli.load([b"x"], 40 << 20, [].append, go_on)


def test_the_client_ends_in_the_middle(client: FakeClient) -> None:
    cli = client.does("sys.stdin.buffer.read(100); fail('write /f: no space left on device')", engine=IS_DOCKER)
    with pytest.raises(DiskFull):
        load(cli, *[bytes(1 << 20)] * 100)


def test_the_client_is_killed_in_the_middle(client: FakeClient) -> None:
    cli = client.does("sys.stdin.buffer.read(100); os.kill(os.getpid(), 9)", engine=IS_DOCKER)
    with pytest.raises(DockerFailed, match=r"signal 9 \(out of memory"):
        load(cli, *[bytes(1 << 20)] * 100)


def test_success_before_the_last_byte_is_left_to_the_proof(client: FakeClient) -> None:
    assert load(client.does("sys.stdin.buffer.read(100)", engine=IS_DOCKER), *[bytes(1 << 20)] * 100) < 100 << 20


def test_the_run_is_stopped(client: FakeClient) -> None:
    def cancelled() -> None:
        raise Interrupted("The loader was stopped")

    cli = client.does("sys.stdin.buffer.read()", engine=IS_DOCKER)
    with pytest.raises(Interrupted):
        load(cli, b"x", cancelled=cancelled)
    with pytest.raises(Interrupted):
        cli.watched(cancelled).info()


def test_a_fault_of_the_archive_is_not_one_of_the_client(client: FakeClient) -> None:
    def chunks() -> Iterator[bytes]:
        yield b"x"
        raise FileNotFoundError("images.enc")

    with pytest.raises(FileNotFoundError):
        client.does("sys.stdin.buffer.read()", engine=IS_DOCKER).load(chunks(), 2, [].append, go_on)


def test_podman_s_plain_copy_is_deleted(client: FakeClient, tmp_path: Path) -> None:
    """Also the one that a killed loader has left."""
    (tmp_path / "tmp" / "azaion-load-left").mkdir(parents=True)
    (tmp_path / "tmp" / "azaion-load-left" / "docker-tar1").write_bytes(b"plain")
    info = {**PODMAN_INFO, "store": {"graphRoot": str(tmp_path)}}
    engine = f"if args[0] == 'info':\n    show({info!r}); sys.exit()\n"
    spool = "import tempfile; f = open(tempfile.mkstemp()[1], 'wb'); f.write(sys.stdin.buffer.read(100)); f.flush()\n"
    seen: list[Path] = []

    def cancelled() -> None:
        seen.extend(file for file in tmp_path.glob("tmp/*/*") if file.stat().st_size)
        assert not (tmp_path / "tmp" / "azaion-load-left").exists()
        if seen:
            raise Interrupted("The loader was stopped")

    cli = client.does(spool + "time.sleep(60)", engine=engine)
    with pytest.raises(Interrupted):
        load(cli, *[bytes(1 << 20)] * 100, cancelled=cancelled)
    assert seen
    assert list((tmp_path / "tmp").iterdir()) == []
