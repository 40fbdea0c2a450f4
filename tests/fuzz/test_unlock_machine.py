"""A state machine over the unlock job: random faults, kills and archives; what clients see stays true throughout."""

import io
import json
import shutil
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from azaion_devkit.device import KEY_FRAGMENT, encrypted
from azaion_devkit.image_sets import SyntheticImage, make_images, older_layout
from azaion_loader import image_switch
from azaion_loader.credentials import Credentials
from azaion_loader.docker_cli import EngineInfo, ImageInfo
from azaion_loader.errors import DiskFull, DockerFailed, DockerStalled, DockerUnavailable, UpstreamUnavailable
from azaion_loader.required_images import required_tags
from azaion_loader.settings import Settings
from azaion_loader.unlock import UnlockJob

pytestmark = pytest.mark.family("fuzz and properties")

TAGS = required_tags("machine")
VERSIONS: dict[str, list[SyntheticImage]] = {
    name: make_images(TAGS, shared_bytes=300, unique_bytes=100, seed=seed, versions=versions)
    for name, seed, versions in (("a", "a", {}), ("a with one change", "a", {TAGS[2]: 1}), ("b", "b", {}))
}
IDS = {name: {image.tag: image.config_digest for image in images} for name, images in VERSIONS.items()}
FAULTS = [DockerFailed, DockerUnavailable, DockerStalled, DiskFull]
ORDER = ["idle", "authenticating", "downloading_key", "decrypting", "loading_images", "ready"]
RUN_S = 20.0
USER = Credentials("a@example.com", "password")


class Killed(BaseException):
    """What the loader's process does no more after a SIGKILL: everything."""


class Engine:
    """An engine in memory with the classic store's rules; `plan` says what happens at the nth call from now."""

    def __init__(self) -> None:
        self.tags: dict[str, str] = {}
        self.known: dict[str, dict[str, Any]] = {}
        self.loads = 0
        self.plan: dict[int, Any] = {}
        self.lock = threading.RLock()

    def act(self, client: "Client", effect: Callable[[], Any]) -> Any:
        """Carry out a call, or what is planned in its place; a fault may come before its effect or after it."""
        with self.lock:
            if client.dead:
                raise Killed
            self.plan = {number - 1: what for number, what in self.plan.items()}
            kind, late = self.plan.pop(0, (None, False))
            answer = effect() if kind is None or late else None
            if kind is Killed:
                client.die()
            if kind is not None:
                raise kind("planned") if kind is not Killed else Killed
            return answer

    def images(self) -> list[ImageInfo]:
        named: dict[str, list[str]] = {identity: [] for identity in self.known}
        for tag, identity in self.tags.items():
            named[identity].append(tag)
        return [self._info(identity, tags) for identity, tags in named.items()]

    def _info(self, identity: str, tags: list[str]) -> ImageInfo:
        config = self.known[identity]
        layers = tuple(config["rootfs"]["diff_ids"])
        return ImageInfo(identity, tuple(tags), layers, "linux", "amd64", "", config["config"])

    def inspect(self, references: list[str]) -> dict[str, ImageInfo]:
        by_id = {info.id: info for info in self.images()}
        found = {name: self.tags.get(name, name) for name in references}
        return {name: by_id[identity] for name, identity in found.items() if identity in by_id}

    def tag(self, source: str, target: str) -> None:
        identity = self.tags.get(source, source)
        if identity not in self.known:
            raise DockerFailed(f"no such image: {source}")
        self.tags[target] = identity

    def remove(self, *references: str) -> None:
        for reference in references:
            identity = self.tags.pop(reference, reference)
            if identity not in self.tags.values():
                self.known.pop(identity, None)

    def load(self, data: bytes) -> None:
        self.loads += 1
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            content = {name: tar.extractfile(name) for name in tar.getnames()}
            files = {name: stream.read() for name, stream in content.items() if stream is not None}
        for entry in json.loads(files["manifest.json"]):
            identity = "sha256:" + entry["Config"].removesuffix(".json")
            self.known[identity] = json.loads(files[entry["Config"]])
            for tag in entry["RepoTags"]:
                self.tags[tag] = identity


class Client:
    """The door to the engine, of one loader process; with its death everything of that process ends."""

    def __init__(self, engine: Engine, die: Callable[[], None]) -> None:
        self.engine = engine
        self.dead = False
        self._die = die

    def die(self) -> None:
        self.dead = True
        self._die()

    def watched(self, _: object) -> "Client":
        return self

    def info(self) -> EngineInfo:
        answer: EngineInfo = self.engine.act(self, lambda: EngineInfo("1", "linux", "amd64", "classic", None))
        return answer

    def load(
        self,
        chunks: Iterable[bytes],
        total_bytes: int,  # noqa: ARG002
        on_bytes: Callable[[int], None],
        cancelled: Callable[[], None],  # noqa: ARG002, RUF100
    ) -> None:
        data = bytearray()
        for chunk in chunks:
            cancelled()
            data += chunk
            on_bytes(len(chunk))
        self.engine.act(self, lambda: self.engine.load(bytes(data)))

    def __getattr__(self, name: str) -> Any:
        if name == "used_image_ids":
            return lambda: self.engine.act(self, set)
        return lambda *arguments: self.engine.act(self, lambda: getattr(self.engine, name)(*arguments))


class UnlockMachine(RuleBasedStateMachine):
    """Clients, faults, kills and new archives in any order."""

    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="azaion-machine-"))
        self.engine = Engine()
        self.archive = self.folder / "images.enc"
        self.snapshot = self.folder / "snapshot"
        self.api_fault = False
        self.key_fetches = 0
        self.version = "a"
        self.place("a")
        self.restart()

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            self.job.shutdown()
            shutil.rmtree(self.folder)

    def restart(self) -> None:
        """Begin a new process: nothing is left of the old one but its files."""
        state = self.folder / "data"
        self.client = Client(self.engine, lambda: self._keep(state))
        self.job = UnlockJob(
            Settings(images_path=self.archive, data_dir=state, api_version="machine", unlock_parallel=1),
            lambda: self.client,  # type: ignore[arg-type,return-value]
            log_in=self._call_api,
            remember=lambda _: None,
            fetch_key_fragment=self._fetch,
        )
        self.seen: tuple[str, float, str] = ("", 0.0, "idle")
        self.job.recover()

    def _keep(self, state: Path) -> None:
        """At the moment of a kill: what the disk holds then is what the next process finds."""
        shutil.rmtree(self.snapshot, ignore_errors=True)
        shutil.copytree(state, self.snapshot)

    def _call_api(self, _: object) -> None:
        if self.api_fault:
            self.api_fault = False
            raise UpstreamUnavailable("planned")

    def _fetch(self) -> bytes:
        self.key_fetches += 1
        self._call_api(None)
        return KEY_FRAGMENT

    @rule(version=st.sampled_from(sorted(VERSIONS)))
    def place(self, version: str) -> None:
        self.version = version
        self.archive.write_bytes(b"".join(encrypted(older_layout(VERSIONS[version]))))

    @rule(nth=st.integers(1, 40), fault=st.sampled_from([*FAULTS, Killed, Killed]), late=st.booleans())
    def plan_a_fault(self, nth: int, fault: Any, late: bool) -> None:
        self.engine.plan[nth] = (fault, late)

    @rule()
    def plan_an_api_fault(self) -> None:
        self.api_fault = True

    @rule()
    def calm(self) -> None:
        self.engine.plan.clear()
        self.api_fault = False

    @rule(refresh=st.booleans(), posts=st.integers(1, 3))
    def unlock(self, refresh: bool, posts: int) -> None:
        before, fetches = self.ours(), self.key_fetches
        answers: list[Any] = []
        clean = not self.pending()
        threads = [threading.Thread(target=lambda: answers.append(self.job.start(USER, refresh))) for _ in range(posts)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(answers) == posts
        self.watch()
        if self.client.dead:
            self._after_the_kill()
            return
        status = self.job.status()
        assert self.key_fetches - fetches <= (posts if not refresh else 2 * posts)
        if status.state == "ready":
            assert status.error is None
            if refresh:
                assert self.ours() == IDS[self.version]
            assert set(self.ours()) == set(TAGS)
        else:
            assert status.state == "error"
            assert status.error is not None
            if clean and not self.pending():
                assert self.ours() == before, "a failed run moved tags"

    @rule(
        version=st.sampled_from(sorted(VERSIONS)),
        nth=st.integers(1, 40),
        fault=st.sampled_from([*FAULTS, Killed]),
        late=st.booleans(),
    )
    def an_update_meets_a_fault(self, version: str, nth: int, fault: Any, late: bool) -> None:
        self.calm()
        self.place(version)
        self.plan_a_fault(nth, fault, late)
        self.unlock(refresh=True, posts=1)

    def watch(self) -> None:
        """Poll to the end: states in their order, a percentage that never falls, 100 with ready alone."""
        give_up = time.monotonic() + RUN_S
        thread = self.job._thread
        while thread is not None and thread.is_alive():
            self.progress_is_true()
            assert time.monotonic() < give_up, "a run without an end"
            thread.join(0.002)
        self.progress_is_true()

    def _after_the_kill(self) -> None:
        """Start the next process on the files of that moment, and let it repair without further faults."""
        self.job._lock.release()
        state = self.folder / "data"
        shutil.rmtree(state)
        shutil.copytree(self.snapshot, state)
        self.engine.plan.clear()
        self.restart()
        status = self.job.status()
        assert status.state in {"idle", "error"}, "a run of a dead process seems to go on"
        repair = self.job._repair_thread
        if repair is not None:
            repair.join(RUN_S)
        assert not self.pending()
        current = self.ours()
        assert not current or any(current == known for known in IDS.values()), "a mix of versions"

    def ours(self) -> dict[str, str]:
        return {tag: identity for tag, identity in self.engine.tags.items() if tag in TAGS}

    def pending(self) -> bool:
        record = self.job._journal.read_run()
        return record is not None and bool(record.switch)

    @precondition(lambda self: hasattr(self, "job"))
    @invariant()
    def progress_is_true(self) -> None:
        figures = self.job.progress()
        run, percent, state = self.seen
        if figures.run_id == run:
            assert figures.percent >= percent, "progress fell"
            if figures.state in ORDER and state in ORDER:
                assert ORDER.index(figures.state) >= ORDER.index(state), "a state came back"
        assert (figures.percent == 100.0) == (figures.state == "ready")
        self.seen = (figures.run_id or "", figures.percent, str(figures.state))

    @rule()
    def a_calm_run_heals_everything(self) -> None:
        self.calm()
        self.unlock(refresh=True, posts=1)
        assert self.job.status().state == "ready"
        assert self.ours() == IDS[self.version]
        assert not [tag for tag in self.engine.tags if tag.startswith("azaion-loader/")]


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """A killed thread ends without a word; an engine in memory needs no time to come back or to show late images."""
    monkeypatch.setattr(image_switch, "_SETTLE_S", 0.0)
    monkeypatch.setattr(image_switch, "_LOOK_S", 0.0)
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    yield SimpleNamespace()  # noqa: PT022


def run_machine(machine: type[RuleBasedStateMachine], examples: int) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=20,
            deadline=None,
            database=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
            report_multiple_bugs=False,
        ),
    )


@pytest.mark.timeout(900)
@pytest.mark.parametrize("examples", [pytest.param(12, id="few"), pytest.param(250, id="many", marks=pytest.mark.slow)])
def test_what_clients_see_stays_true(quiet: object, examples: int, tally: Callable[[int], None]) -> None:
    run_machine(UnlockMachine, examples)
    tally(examples)


@pytest.mark.slow
@pytest.mark.proof
@pytest.mark.timeout(600)
def test_the_family_sees_tags_that_are_not_put_back(quiet: object, monkeypatch: pytest.MonkeyPatch) -> None:
    def forget(switch: Any, record: Any) -> None:
        switch._journal.write_run(replace(record, switch=()))

    monkeypatch.setattr(image_switch.ImageSwitch, "restore", forget)
    with pytest.raises(AssertionError):
        run_machine(UnlockMachine, 100)
