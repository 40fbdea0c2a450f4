"""What the built image gives away, and what it doesn't: `make test-image`.

LOADER_IMAGE names an image that was built with the key profile in KEY_PROFILE. All files are read from the project's
own layers, those after the base image's, as somebody who pulls the image could.
"""

import ast
import base64
import json
import os
import re
import subprocess
import tarfile
import tempfile
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = "site-packages/azaion_loader/"
TIMEOUT_S = 300
SOURCES = (".pyx", ".pxd", ".pxi", ".pyi", ".c", ".h", ".cpp", ".a", ".o")
HARDWARE = "CPU: TestCpu. GPU: TestGpu. Memory: 8000000. DriveSerial: S123"
ENTRY_POINTS = ("PyInit_", "__pyx_module_is_main_", "_init", "_fini")
IMAGE = os.environ.get("LOADER_IMAGE", "")

pytestmark = pytest.mark.skipif(not IMAGE, reason="LOADER_IMAGE names the image to test: make test-image")


def docker(*arguments: str) -> str:
    return subprocess.run(["docker", *arguments], capture_output=True, check=True, text=True, timeout=TIMEOUT_S).stdout


def inside(*command: str) -> str:
    """Run a command in the image as it ships: its user, no network, nothing writable."""
    return docker("run", "--rm", "--network=none", "--read-only", f"--entrypoint={command[0]}", IMAGE, *command[1:])


@dataclass(frozen=True)
class Unpacked:
    """The image's configuration, and its own layers unpacked one beside the other."""

    config: dict[str, object]
    history: str
    layers: tuple[Path, ...]

    def files(self) -> Iterator[Path]:
        for layer in self.layers:
            yield from (path for path in sorted(layer.rglob("*")) if path.is_file() and not path.is_symlink())

    def modules(self) -> list[Path]:
        """The compiled modules of the project."""
        return [path for path in self.files() if PACKAGE in str(path) and path.suffix == ".so"]


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> Unpacked:
    folder = tmp_path_factory.mktemp("image")
    with tempfile.TemporaryFile() as saved:
        subprocess.run(["docker", "save", IMAGE], stdout=saved, check=True, timeout=TIMEOUT_S)
        saved.seek(0)
        with tarfile.open(fileobj=saved) as tar:
            manifest = json.loads(tar.extractfile("manifest.json").read())[0]  # type: ignore[union-attr]
            config = json.loads(tar.extractfile(manifest["Config"]).read())  # type: ignore[union-attr]
            base_layers = _base_layers(config)
            layers = []
            for number, name in enumerate(manifest["Layers"][base_layers:]):
                target = folder / str(number)
                member = tar.getmember(name)
                with tarfile.open(fileobj=tar.extractfile(member)) as layer:
                    # Early releases of Python 3.11 have no filters; no name of our own layers leaves the folder.
                    layer.extraction_filter = getattr(tarfile, "tar_filter", None)
                    layer.extractall(target, [one for one in layer if one.isdir() or one.isreg()])  # noqa: S202
                layers.append(target)
    return Unpacked(config, docker("history", "--no-trunc", "--format", "{{json .}}", IMAGE), tuple(layers))


def _base_layers(config: dict[str, object]) -> int:
    """How many layers are the base's: those before the first label of ours."""
    history = config["history"]
    assert isinstance(history, list)
    first = next(n for n, step in enumerate(history) if "org.opencontainers.image.title" in step.get("created_by", ""))
    return sum(not step.get("empty_layer", False) for step in history[:first])


def test_there_is_something_to_test(image: Unpacked) -> None:
    sources = {path.stem for path in (ROOT / "src" / "azaion_loader").glob("*.pyx")}
    assert {path.name.split(".")[0] for path in image.modules()} == sources


def test_no_source_of_a_compiled_module(image: Unpacked) -> None:
    compiled = {path.name.split(".")[0] for path in image.modules()}
    for path in image.files():
        if PACKAGE in str(path):
            assert path.suffix in {".py", ".pyc", ".so"}, path
            assert path.suffix == ".so" or path.name.split(".")[0] not in compiled, path
    texts = [path.read_text().splitlines() for path in (ROOT / "src" / "azaion_loader").glob("*.pyx")]
    lines = {
        line.strip().encode() for text in texts for line in text if re.match(r"\s*(cdef|cpdef|cimport) .{24,}", line)
    }
    assert lines
    for path in image.files():
        data = path.read_bytes()
        assert not [line for line in lines if line in data], path


def test_neither_tests_nor_devkit_nor_compiler(image: Unpacked) -> None:
    for path in image.files():
        assert "azaion_devkit" not in str(path), path
        assert not re.search(
            r"/azaion_loader/.*test|/bin/(gcc|cc|cython|cythonize|pip|azaion-pack)[^/]*$", str(path)
        ), path
    found = inside("sh", "-c", "command -v gcc cc c++ ld as make cython azaion-pack || true")
    assert found == ""


def test_compiled_modules_hold_no_docstrings(image: Unpacked) -> None:
    docstrings = _docstrings()
    assert len(docstrings) > 50
    for path in image.modules():
        data = path.read_bytes()
        assert not [text for text in docstrings if text in data], path
    program = (
        "import importlib, pkgutil, azaion_loader, inspect\n"
        "for info in pkgutil.iter_modules(azaion_loader.__path__):\n"
        "    module = importlib.import_module('azaion_loader.' + info.name)\n"
        "    if not module.__file__.endswith('.so'): continue\n"
        "    own = [v for v in vars(module).values() if getattr(v, '__module__', '') == module.__name__]\n"
        "    methods = [m for t in own if inspect.isclass(t) for m in vars(t).values() if callable(m)]\n"
        "    for thing in [module, *own, *methods]:\n"
        "        name = getattr(thing, '__name__', thing)\n"
        "        ours = 'cyfunction' in type(thing).__name__ or thing is module\n"
        "        if ours and getattr(thing, '__doc__', None): print(module.__name__, name)\n"
    )
    assert inside("python", "-c", program) == ""


def _docstrings() -> set[bytes]:
    """Return the first lines of docstrings of the compiled modules, long enough to be no accident."""
    found = set()
    for path in (ROOT / "src" / "azaion_loader").glob("*.py[xi]"):
        for match in re.finditer(r'^\s*"""(.{30,}?)(?:"""|$)', path.read_text(), re.MULTILINE):
            found.add(match[1].encode())
    return found


def test_compiled_modules_have_no_symbol_table(image: Unpacked) -> None:
    for path in image.modules():
        sections = subprocess.run(
            ["readelf", "--section-headers", "--wide", path], capture_output=True, check=True, text=True, timeout=60
        ).stdout
        assert ".symtab" not in sections, path
        assert ".debug" not in sections, path
        exported = subprocess.run(
            ["readelf", "--dyn-syms", "--wide", path], capture_output=True, check=True, text=True, timeout=60
        ).stdout
        defined = [row.split() for row in exported.splitlines() if re.match(r"\s*\d+:", row)]
        names = {row[7] for row in defined if len(row) > 7 and row[6] != "UND" and row[4] != "LOCAL"}
        assert {name for name in names if not name.startswith(ENTRY_POINTS)} == set(), path


def test_no_secret_of_the_key_profile(image: Unpacked) -> None:
    profile = os.environ.get("KEY_PROFILE")
    assert profile, "KEY_PROFILE names the profile that the image was built with"
    secrets = tomllib.loads(Path(profile).read_text())
    assert len(secrets) == 3
    needles = {form for secret in secrets.values() for form in _forms(secret.encode())}
    shell = docker("image", "inspect", IMAGE) + image.history + json.dumps(image.config)
    places = [(path, path.read_bytes()) for path in image.files()]
    for where, data in [(Path("the configuration"), shell.encode()), *places]:
        assert not any(needle in data for needle in needles), where


def test_the_image_was_built_with_the_profile(image: Unpacked) -> None:
    """Else the search above would prove nothing."""
    secrets = tomllib.loads(Path(os.environ["KEY_PROFILE"]).read_text())
    program = (
        "from azaion_loader.security import hardware_hash, is_development_profile\n"
        f"print(is_development_profile(), hardware_hash({HARDWARE!r}))"
    )
    text = f"Azaion_{HARDWARE}_{secrets['hardware_salt']}"
    digest = subprocess.run(
        ["openssl", "dgst", "-sha384", "-binary"], input=text.encode(), capture_output=True, check=True, timeout=60
    ).stdout
    development = Path(os.environ["KEY_PROFILE"]).resolve() == (ROOT / "key_profiles" / "development.toml").resolve()
    assert inside("python", "-c", program).split() == [str(development), base64.b64encode(digest).decode()]


def _forms(secret: bytes) -> Iterator[bytes]:
    """Yield the secret and each half: plain, hex, base64 at each offset, UTF-16; all also reversed."""
    try:
        raw = bytes.fromhex(secret.decode())
    except ValueError:
        raw = b""
    for whole in filter(None, (secret, raw)):
        half = len(whole) // 2
        for part in (whole, whole[:half], whole[half:]):
            encoded = [
                part,
                part.hex().encode(),
                part.hex().upper().encode(),
                part.decode("latin-1").encode("utf-16-le"),
            ]
            for offset in range(3):
                text = base64.b64encode(bytes(offset) + part)
                # The characters at the edges hold bits of the neighbours.
                encoded.append(text[4 if offset else 0 : -4])
            for form in encoded:
                assert len(form) >= 8
                yield form
                yield form[::-1]


def test_the_installed_set_is_the_pinned_one() -> None:
    program = (
        "from importlib.metadata import distributions\n"
        "for one in distributions(path=[p for p in __import__('sys').path if '/opt/loader' in p]):\n"
        "    print(one.metadata['Name'] + '==' + one.version)"
    )
    installed = {_normal(line) for line in inside("python", "-c", program).splitlines()}
    lines = [line.split("#")[0].strip() for line in (ROOT / "requirements.txt").read_text().splitlines()]
    pinned = {_normal(line) for line in lines if line}
    assert installed - pinned == {_normal(f"azaion-loader=={_version()}")}
    assert pinned - installed == set()


def _normal(requirement: str) -> str:
    name, _, version = requirement.partition("==")
    return f"{re.sub(r'[-_.]+', '-', name).lower()}=={version}"


def _version() -> str:
    return str(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"])


def test_it_runs_as_nobody_special_from_read_only_files() -> None:
    assert inside("id", "-u").strip() == "10001"
    script = (
        "find / -xdev \\( -user 10001 -o -writable \\) ! -type l ! -path '/proc/*' ! -path '/dev/*' ! -path '/sys/*'"
    )
    writable = inside("sh", "-c", f"{script} 2>/dev/null || true").split()
    assert {path for path in writable if not path.startswith("/var/lib/azaion")} <= {"/tmp", "/var/tmp", "/run/lock"}
    assert inside("docker", "--version").startswith("Docker version ")


def test_its_configuration(image: Unpacked) -> None:
    config = image.config["config"]
    assert isinstance(config, dict)
    assert config["User"] == "10001:10001"
    assert config["Entrypoint"] == ["azaion-loader"]
    assert config["Cmd"] == ["serve", "--host", "0.0.0.0"]  # noqa: S104
    assert list(config["ExposedPorts"]) == ["8080/tcp"]
    assert list(config["Volumes"]) == ["/var/lib/azaion"]
    assert config["StopSignal"] == "SIGTERM"
    assert config["Healthcheck"]["Test"][0] == "CMD"
    labels = config["Labels"]
    assert labels["org.opencontainers.image.title"] == "azaion-loader"
    assert labels["org.opencontainers.image.version"] == _version()
    environment = dict(line.split("=", 1) for line in config["Env"])
    assert environment["LOADER_DATA_DIR"] == "/var/lib/azaion"
    assert not [name for name in environment if "SECRET" in name or "SALT" in name or "PASSWORD" in name]


def test_byte_code_is_there_for_every_module(image: Unpacked) -> None:
    """The running user can't write it, and a start that compiles is slow."""
    for path in image.files():
        if PACKAGE in str(path) and path.suffix == ".py":
            ast.parse(path.read_text())
            assert list((path.parent / "__pycache__").glob(f"{path.stem}.cpython-*.pyc")), path


def test_sigterm_ends_it_at_once_and_cleanly() -> None:
    container = docker("run", "--detach", "--network=none", "--read-only", "--tmpfs=/tmp", IMAGE).strip()
    try:
        _wait_healthy(container)
        docker("stop", "--time", "10", container)
        assert docker("inspect", "--format", "{{.State.ExitCode}}", container).strip() == "0"
    finally:
        docker("rm", "--force", "--volumes", container)


def _wait_healthy(container: str) -> None:
    check: Sequence[str] = ("exec", container, "python", "-I", "-m", "azaion_loader.health_check")
    for _ in range(120):
        if subprocess.run(["docker", *check], capture_output=True, check=False, timeout=60).returncode == 0:
            return
    pytest.fail(docker("logs", container))
