"""The documents say what is: settings, endpoints, vectors, and commands, each of which is run here or named below."""

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest

from azaion_devkit import pack
from azaion_devkit.device import EMAIL, KEY_FRAGMENT, PASSWORD, Device
from azaion_devkit.image_sets import load_into_engine, older_layout
from azaion_loader import cli
from azaion_loader.main import create_app
from azaion_loader.settings import Settings

ROOT = Path(__file__).parents[2]
DOCUMENTS = [path for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))) if path.exists()]
README = (ROOT / "README.md").read_text()

# Commands that change a whole machine, or are CI themselves; the words say what runs them in their place.
ELSEWHERE = {
    "install ": "provisioning of a device",
    "cp deploy/systemd/": "provisioning of a device; the units are checked by make lint-ship",
    "systemctl ": "provisioning of a device",
    "docker exec azaion-loader azaion-loader ": "the same command is run here without the container",
    ".ci/run": "CI itself",
}


def commands() -> Iterator[tuple[Path, str]]:
    """Yield each command line of the documents' shell blocks, without comments; here-documents are one command."""
    for path in DOCUMENTS:
        for block in re.findall(r"^ *```sh\n(.*?)^ *```", path.read_text(), re.DOTALL | re.MULTILINE):
            end = None
            for line in (text.strip() for text in block.splitlines()):
                if end is not None:
                    end = None if line == end else end
                    continue
                words = re.sub(r"\s+# .*", "", line)
                here = re.search(r"<<'?(\w+)'?$", words)
                end = here[1] if here else None
                if words and not words.startswith("#"):
                    yield path, words


COMMANDS = sorted({words for _, words in commands()})


def test_there_are_commands() -> None:
    assert len(COMMANDS) > 15


def kind_of(words: str) -> str | None:
    """Return what checks a command; None for one that nothing does."""
    if any(words.startswith(start) for start in ELSEWHERE):
        return "elsewhere"
    if words.startswith("make "):
        return "make"
    if re.match(r"(RESOURCE_API_URL=\S+ )?\.venv/bin/azaion-(loader|pack) |curl ", words):
        return "run"
    return None


@pytest.mark.parametrize("words", COMMANDS)
def test_every_command_is_checked(words: str) -> None:
    assert kind_of(words) is not None


@pytest.mark.parametrize("words", [words for words in COMMANDS if kind_of(words) == "make"])
def test_make_knows_the_target(words: str) -> None:
    """The recipes themselves are run by CI; here the targets have to exist and to need nothing that is not there."""
    outcome = subprocess.run(
        ["make", "--dry-run", *words.split()[1:]], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert outcome.returncode == 0, outcome.stderr


@pytest.fixture(scope="module")
def device(docker_host: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Device]:
    with Device(tmp_path_factory.mktemp("documents")) as made:
        images = made.images()
        load_into_engine(older_layout(images))
        made.place(images)
        yield made


@pytest.mark.engine
def test_the_commands_work(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them in their order, on one device; what the documents leave out (…) is filled in."""
    loader = device.loader()
    monkeypatch.chdir(device.folder)
    monkeypatch.setenv("AZAION_LOADER_URL", loader.url)
    monkeypatch.setenv("AZAION_PASSWORD", PASSWORD)
    monkeypatch.setenv("RESOURCE_API_URL", device.api.url)
    (device.folder / "fragment.key").write_bytes(KEY_FRAGMENT)
    ran = 0
    for _, words in commands():
        if kind_of(words) != "run" or " serve " in words:
            continue
        filled = (
            words.replace("operator@example.com", EMAIL)
            .replace("localhost:8080", f"127.0.0.1:{loader.port}")
            .replace('"email": "…", "password": "…"', f'"email": "{EMAIL}", "password": "{PASSWORD}"')
            .replace("azaion/annotations:1.4 azaion/flights:1.4 …", " ".join(device.tags))
        )
        assert "…" not in filled, words
        # Doctor finds that this device has no object store; that is its answer, not a failure of the command.
        expected = {0, 1} if " doctor" in words else {0}
        assert run(filled) in expected, words
        if "/unlock" in words or " unlock" in words:
            loader.wait_for_unlock()
        ran += 1
    assert ran >= 8


def run(words: str) -> int:
    if words.startswith("curl "):
        return subprocess.run(
            ["bash", "-c", f"{words} --fail"], capture_output=True, timeout=60, check=False
        ).returncode
    program, *arguments = words.split()
    main = {"azaion-loader": cli.main, "azaion-pack": pack.main}[program.rpartition("/")[2]]
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            return int(main(arguments))
        except SystemExit as end:
            return int(end.code or 0)


def test_serve_as_documented() -> None:
    line = next(words for words in COMMANDS if " serve " in words)
    arguments = line.partition("azaion-loader ")[2].split()
    options = cli._parser().parse_args(arguments)
    assert (options.host, options.port) == ("127.0.0.1", 8080)


@pytest.mark.engine
@pytest.mark.store
def test_what_make_try_leaves_standing(docker_host: str) -> None:
    """`make try` but for its build: the page answers, the printed command unlocks, and an interrupt cleans up."""
    command = [sys.executable, "-m", "azaion_devkit.demo", "--stay"]
    environment = os.environ | {"PYTHONPATH": ":".join(sys.path)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            said = ""
            while "doctor" not in said:
                line = process.stdout.readline()
                assert line, said
                said += line
            unlock = re.search(r"azaion-loader (unlock .*)", said)
            assert unlock is not None
            outcome = subprocess.run(
                [sys.executable, "-m", "azaion_loader.cli", *unlock[1].split()],
                env=environment, capture_output=True, text=True, timeout=100, check=False,
            )  # fmt: skip
            assert outcome.stdout.startswith("Ready: 7 images"), outcome
        finally:
            process.send_signal(signal.SIGINT)
        assert process.stdout.read().startswith("Done in ") or process.wait(60) == 0
    folder = Path(re.search(r"--password-file (\S+)", said)[1]).parent  # type: ignore[index]
    assert not folder.exists()


def test_the_readme_s_settings_are_those_of_the_code() -> None:
    table = README.partition("\n## Settings")[2].partition("\n## ")[0]
    documented = set(re.findall(r"^\|(.*?)\|", table, re.MULTILINE))
    names = {name for cell in documented for name in re.findall(r"`([A-Z_]+)`", cell)}
    read = set(re.findall(r'read\.\w+\("([A-Z_]+)"', (ROOT / "src/azaion_loader/settings.py").read_text()))
    assert names == read
    assert len(names) == len(fields(Settings))


@pytest.mark.parametrize(
    ("name", "default"),
    [
        (match[1], match[2])
        for match in re.finditer(
            r"^\| `([A-Z_]+_S|RESOURCE_API_URL|IMAGES_PATH|API_VERSION|DOCKER_CLI)` \| `(.*?)` \|", README, re.M
        )
    ],
)
def test_the_readme_s_defaults_are_those_of_the_code(name: str, default: str) -> None:
    value = getattr(Settings.from_environment({}), name.lower())
    assert str(value) == default or float(value) == float(default)


def test_the_readme_lists_every_endpoint() -> None:
    described = create_app(Settings()).openapi()["paths"]
    table = README.partition("\n## Endpoints")[2].partition("\n## ")[0]
    listed = {match[2].partition("?")[0] for match in re.finditer(r"(GET|POST) `(/[^`]*)`", table)}
    assert set(described) <= listed


def test_the_readme_lists_every_command_and_exit_code() -> None:
    from azaion_loader.command_output import _EXIT_CODES  # noqa: PLC0415 - rich loads with it
    from azaion_loader.commands import app  # noqa: PLC0415

    table = README.partition("\n## Commands")[2].partition("\n## ")[0]
    known = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    assert {word for row in re.findall(r"^\| `(\w+)[` ]", table, re.MULTILINE) for word in [row]} == known
    assert {int(code) for code in re.findall(r"^\| (\d) \|", table, re.MULTILINE)} == {0, 1} | set(_EXIT_CODES)


def test_the_operations_page_has_every_code() -> None:
    from azaion_loader import errors  # noqa: PLC0415 - of this test only

    page = (ROOT / "docs" / "operations.md").read_text()
    codes = {cls.code for cls in vars(errors).values() if isinstance(cls, type) and issubclass(cls, errors.LoaderError)}
    assert {code for code in codes if f"`{code}`" not in page} == set()


def test_the_formats_page_has_the_vectors() -> None:
    page = (ROOT / "docs" / "formats.md").read_text()
    vectors = json.loads((ROOT / "tests" / "vectors" / "keys.json").read_text())

    def texts(value: object) -> Iterator[str]:
        if isinstance(value, dict):
            for inner in value.values():
                yield from texts(inner)
        elif isinstance(value, str) and re.fullmatch(r"[0-9a-f]{64,}|[A-Za-z0-9+/]{64}", value):
            yield value

    found = set(texts(vectors))
    assert found
    assert {value for value in found if value not in page} == set()


def test_links_lead_somewhere() -> None:
    for path in DOCUMENTS:
        for target in re.findall(r"\]\(([^)#\s]+)", path.read_text()):
            if "://" not in target:
                assert (path.parent / target).exists(), f"{path.name}: {target}"
