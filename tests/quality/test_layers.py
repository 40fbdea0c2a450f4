"""The house rules that a program can check, over every source of azaion_loader. See docs/architecture.md.

Each check is a pure function over sources and is first shown to see a fault that was made for it.
"""

import ast
import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "azaion_loader"

# A new module gets its floor here: 0 words, 1 pure, 2 doors to the outside, 3 use cases, 4 HTTP and shell.
FLOORS: Mapping[int, str] = {
    0: "__init__ errors settings logs names unlock_state required_images metrics",
    1: """
        credentials user secret_key cbc security
        archive archive_gzip archive_json archive_members archive_model archive_oci archive_signature
        tar_index tar_pax tar_writer load_plan
        api_answers cdn_credentials docker_answers tokens
        docker_batches load_pace load_tree progress unlock_plan upload_form
    """,
    2: """
        api_client http_transport http_sockets device_conf
        cdn_manager part_cache part_download part_file part_notes part_state part_upload range_fetch transfer_terms
        store_answers store_client
        binary_split archive_trust docker_cli processes hardware_service hardware_memory files
    """,
    3: """
        sessions background_log_in
        resources loaded_resource part_proof part_source publication single_flight
        unlock unlock_run unlock_journal image_loader image_switch load_streams
        progress_watch diagnosis device_checks upstream_checks resource_listing
    """,
    4: """
        main schemas http_errors http_server middleware uploads resource_stream dependencies cli health_check
        unlock_device
        operations operator_routes operator_schemas metrics_page pages
        commands command_service command_client command_output command_rescue
    """,
}
FLOOR_OF = {name: floor for floor, names in FLOORS.items() for name in names.split()}

MODULE_MAX_LINES = 299
MAIN_MAX_LINES = 119
HEAVY = ("boto3", "botocore", "requests", "urllib3", "cryptography", "jwt", "yaml", "httpx")
# What the commands for people are made with; the service itself starts without them.
SHELL = ("rich", "typer", "click")
SHELL_MODULES = frozenset({"commands", "command_service", "command_client", "command_output", "command_rescue"})


@dataclass(frozen=True)
class Source:
    """One file: the module's name, the suffix (`.py`, `.pyx`, `.pxd`, `.pyi`) and the text."""

    name: str
    suffix: str
    text: str

    @property
    def compiled(self) -> bool:
        return self.suffix in {".pyx", ".pxd"}

    @property
    def tree(self) -> ast.Module:
        """Of Python sources only: Cython's have no parser here, so patterns over their lines must do."""
        return ast.parse(self.text)

    @property
    def code(self) -> str:
        """The text without comments, and for Python without strings."""
        if self.compiled:
            return re.sub(r"#[^\n]*", "", self.text)
        skipped = {tokenize.COMMENT, tokenize.STRING}
        tokens = tokenize.generate_tokens(io.StringIO(self.text).readline)
        return " ".join(token.string for token in tokens if token.type not in skipped)


Sources = list[Source]

_CYTHON_FROM = re.compile(
    r"^[ \t]*from[ \t]+(?P<module>[\w.]+)[ \t]+c?import[ \t]+(?P<names>\([^)]*\)|[^\n#]*)", re.MULTILINE
)
_CYTHON_IMPORT = re.compile(r"^[ \t]*c?import[ \t]+(?P<modules>[\w., \t]+)", re.MULTILINE)


def imported(source: Source) -> set[str]:
    """Return every dotted name that the source imports or cimports, wherever in it."""
    found = set()
    if source.compiled:
        for match in _CYTHON_FROM.finditer(source.text):
            found |= _joined(match["module"], re.findall(r"(\w+)(?:[ \t]+as[ \t]+\w+)?", match["names"]))
        for match in _CYTHON_IMPORT.finditer(source.text):
            found |= {name.split()[0] for name in match["modules"].split(",") if name.strip()}
        return found
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            found |= _joined("." * node.level + module, [alias.name for alias in node.names])
    return found


def _joined(module: str, names: list[str]) -> set[str]:
    if module.startswith("."):
        module = f"azaion_loader.{module.lstrip('.')}".rstrip(".")
    return {f"{module}.{name}" for name in names} | {module}


def house_imports(source: Source) -> set[str]:
    """Return the names of the modules of the house that the source imports."""
    parts = (name.split(".") for name in imported(source))
    inside = {part[1] for part in parts if part[0] == "azaion_loader" and len(part) > 1}
    return {name for name in inside if name in FLOOR_OF} - {source.name}


# -- the checks: each yields a sentence for each fault -----------------------------------------------------------------


def check_every_module_has_a_floor(sources: Sources) -> Iterator[str]:
    for source in sources:
        if source.name not in FLOOR_OF:
            yield f"{source.name} stands in no floor of the table"


def check_imports_point_down(sources: Sources) -> Iterator[str]:
    for source in sources:
        for name in house_imports(source):
            if FLOOR_OF[name] > FLOOR_OF.get(source.name, 99):
                yield f"{source.name} imports {name} from a floor above"


def check_no_cycles(sources: Sources) -> Iterator[str]:
    graph: dict[str, set[str]] = {}
    for source in sources:
        graph.setdefault(source.name, set()).update(house_imports(source))
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as err:
        yield f"a cycle: {' -> '.join(err.args[1])}"


def check_sizes(sources: Sources) -> Iterator[str]:
    for source in sources:
        lines = len(source.text.splitlines())
        bound = MAIN_MAX_LINES if source.name == "main" else MODULE_MAX_LINES
        if lines > bound:
            yield f"{source.name}{source.suffix} has {lines} lines, more than {bound}"


def check_routes_do_not_try(sources: Sources) -> Iterator[str]:
    for source in sources:
        if source.name == "main" and any(isinstance(node, ast.Try | ast.TryStar) for node in ast.walk(source.tree)):
            yield "main has a try"


def check_environment(sources: Sources) -> Iterator[str]:
    for source in sources:
        if source.name != "settings" and re.search(r"\b(environb?|getenvb?|putenv|unsetenv)\b", source.code):
            yield f"{source.name} reads the environment"


def check_no_shell(sources: Sources) -> Iterator[str]:
    pattern = re.compile(
        r"\bshell\s*=(?!\s*False\b)|\bos\s*\.\s*(system|popen)\b|\bgetoutput\b|create_subprocess_shell"
    )
    for source in sources:
        if pattern.search(source.code):
            yield f"{source.name} uses a shell"


def check_nothing_left_for_later(sources: Sources) -> Iterator[str]:
    for source in sources:
        if re.search(r"\b(TODO|FIXME|XXX|HACK)\b", source.text):
            yield f"{source.name}{source.suffix} leaves something for later"


def check_devkit_stays_out(sources: Sources) -> Iterator[str]:
    for source in sources:
        if any(name.split(".")[0] in {"azaion_devkit", "tests", "pytest"} for name in imported(source)):
            yield f"{source.name} imports what is not shipped"


def check_heavy_imports_stay_at_their_doors(sources: Sources) -> Iterator[str]:
    for source in sources:
        heavy = {name.split(".")[0] for name in imported(source)} & set(HEAVY)
        if heavy and FLOOR_OF.get(source.name) not in {1, 2}:
            yield f"{source.name} imports {', '.join(sorted(heavy))}"
        shell = {name.split(".")[0] for name in imported(source)} & set(SHELL)
        if shell and source.name not in SHELL_MODULES:
            yield f"{source.name} imports {', '.join(sorted(shell))}"


def check_one_error_tree(sources: Sources) -> Iterator[str]:
    """A module may refine an error for its own use, but the words that clients see all stand in errors.py."""
    errors = {
        node.name
        for source in sources
        if source.name == "errors" and source.suffix == ".py"
        for node in ast.walk(source.tree)
        if isinstance(node, ast.ClassDef)
    }
    for source in sources:
        if source.name != "errors" and source.suffix == ".py":
            classes = [node for node in ast.walk(source.tree) if isinstance(node, ast.ClassDef)]
            children = [node for node in classes if errors & {ast.unparse(base).split(".")[-1] for base in node.bases}]
            for node in children:
                if re.search(r"^\s+code\b", ast.unparse(node), re.MULTILINE):
                    yield f"{source.name}.{node.name} brings a code of its own"


def check_trios(sources: Sources) -> Iterator[str]:
    suffixes: dict[str, set[str]] = {}
    for source in sources:
        suffixes.setdefault(source.name, set()).add(source.suffix)
    for name, found in suffixes.items():
        if ".pyx" in found and found != {".pyx", ".pxd", ".pyi"}:
            yield f"{name} is no trio: {', '.join(sorted(found))}"


Check = Callable[[Sources], Iterator[str]]
LONG = "x = 1\n" * 300

# Each check beside sources that it must find fault with, and sources close to them that it must let pass.
PROOFS: list[tuple[Check, Sources, Sources]] = [
    (check_every_module_has_a_floor, [Source("novel", ".py", "")], [Source("errors", ".py", "")]),
    (
        check_imports_point_down,
        [Source("files", ".py", "def f():\n    from azaion_loader.unlock import UnlockJob\n")],
        [Source("unlock", ".py", "from azaion_loader.files import FileLock\n")],
    ),
    (
        check_imports_point_down,
        [Source("errors", ".py", "from azaion_loader import errors, main\n")],
        [Source("errors", ".py", "from azaion_loader import __version__\n")],
    ),
    (
        check_imports_point_down,
        [Source("errors", ".py", "from .sessions import Sessions\n")],
        [Source("sessions", ".py", "from .errors import LoaderError\n")],
    ),
    (
        check_imports_point_down,
        [Source("security", ".pyx", "x = 1\nfrom azaion_loader.api_client cimport ApiClient\n")],
        [Source("api_client", ".pyx", "from azaion_loader.security cimport SecretKey\n")],
    ),
    (
        check_imports_point_down,
        [Source("security", ".pxd", "cimport azaion_loader.binary_split\n")],
        [Source("security", ".pxd", "cimport azaion_loader.cbc\n")],
    ),
    (
        check_imports_point_down,
        [Source("security", ".pyx", "from azaion_loader import (\n    errors,\n    unlock,\n)\n")],
        [Source("security", ".pyx", "from azaion_loader import (\n    errors,\n)\n")],
    ),
    (
        check_no_cycles,
        [
            Source("archive", ".pyx", "from azaion_loader.tar_index cimport TarIndex\n"),
            Source("tar_index", ".pyx", "from azaion_loader.archive import open_archive\n"),
        ],
        [Source("archive", ".pyx", "from azaion_loader.tar_index cimport TarIndex\n"), Source("tar_index", ".pyx", "")],
    ),
    (check_sizes, [Source("errors", ".py", LONG)], [Source("errors", ".py", LONG[:-6])]),
    (check_sizes, [Source("main", ".py", LONG[: 120 * 6])], [Source("main", ".py", LONG[: 119 * 6])]),
    (
        check_routes_do_not_try,
        [Source("main", ".py", "def f():\n    try:\n        pass\n    finally:\n        pass\n")],
        [Source("main", ".py", '"""No try."""\n'), Source("cli", ".py", "try:\n    pass\nfinally:\n    pass\n")],
    ),
    (
        check_environment,
        [Source("cli", ".py", "from os import environ as e\n")],
        [
            Source("settings", ".py", "import os\nx = os.environ\n"),
            Source("cli", ".py", "# os.environ\n'os.environ'\n"),
        ],
    ),
    (
        check_environment,
        [Source("security", ".pyx", "x = os.getenv('A')\n")],
        [Source("security", ".pyx", "# getenv\n")],
    ),
    (
        check_no_shell,
        [Source("processes", ".py", "import subprocess\nsubprocess.run('x', shell=True)\n")],
        [Source("processes", ".py", "subprocess.run(['x'], shell=False)  # not shell=True\n")],
    ),
    (check_no_shell, [Source("processes", ".py", "os.system(x)\n")], [Source("processes", ".py", "os.systemd\n")]),
    (
        check_nothing_left_for_later,
        [Source("files", ".pyi", "# TO" + "DO: later\n")],
        [Source("files", ".py", "to_do = METHODOLOGY = 1\n")],
    ),
    (
        check_devkit_stays_out,
        [Source("files", ".py", "import azaion_devkit.engine\n")],
        [Source("files", ".py", "import azaion_loader.errors\n")],
    ),
    (
        check_heavy_imports_stay_at_their_doors,
        [Source("sessions", ".py", "def f():\n    import requests.adapters\n")],
        [Source("http_transport", ".py", "import requests\n")],
    ),
    (
        check_one_error_tree,
        [
            Source("errors", ".py", "class LoaderError(Exception): ...\n"),
            Source("x", ".py", "class A(LoaderError):\n    code = 'a'\n"),
        ],
        [
            Source("errors", ".py", "class LoaderError(Exception): ...\n"),
            Source("x", ".py", "class A(LoaderError): ...\n"),
        ],
    ),
    (
        check_trios,
        [Source("user", ".pyx", ""), Source("user", ".pyi", "")],
        [Source("user", ".pyx", ""), Source("user", ".pyi", ""), Source("user", ".pxd", ""), Source("main", ".py", "")],
    ),
]
CHECKS = list(dict.fromkeys(check for check, _, _ in PROOFS))


def sources_of(package: Path) -> Sources:
    paths = sorted(path for path in package.iterdir() if path.suffix in {".py", ".pyx", ".pxd", ".pyi"})
    return [Source(path.stem, path.suffix, path.read_text(encoding="utf-8")) for path in paths]


@pytest.mark.parametrize(("check", "bad", "good"), PROOFS, ids=[check.__name__ for check, _, _ in PROOFS])
def test_the_check_sees(check: Check, bad: Sources, good: Sources) -> None:
    assert list(check(bad)) != []
    assert list(check(good)) == []


def test_every_check_is_proved() -> None:
    assert {value for name, value in globals().items() if name.startswith("check_")} == set(CHECKS)


@pytest.mark.parametrize("check", CHECKS, ids=[check.__name__ for check in CHECKS])
def test_the_house(check: Check) -> None:
    sources = sources_of(PACKAGE)
    assert len(sources) > 20
    assert list(check(sources)) == []


def test_the_shell_and_leftover_checks_hold_for_the_devkit_too() -> None:
    sources = sources_of(ROOT / "src" / "azaion_devkit")
    assert [*check_no_shell(sources), *check_nothing_left_for_later(sources)] == []


def modules_after(statement: str) -> set[str]:
    """Return the top-level modules in memory of a new interpreter after `statement`."""
    code = f"{statement}\nimport sys\nprint(*(name.partition('.')[0] for name in sys.modules))"
    environment = {"PYTHONPATH": ":".join(sys.path)}
    outcome = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    return set(outcome.stdout.split())


def test_importing_the_service_imports_nothing_heavy() -> None:
    assert (
        modules_after("import azaion_loader.main, azaion_loader.cli") & {*HEAVY, *SHELL, "prometheus_client"} == set()
    )


def test_that_check_sees_too() -> None:
    assert modules_after("import azaion_loader.main, requests") & set(HEAVY) >= {"requests", "urllib3"}
