"""The container engine, through its command-line client (`docker`, or `podman`).

Commands are argument lists, never a shell. Every call is bounded in time and output; every fault of the client or the
engine becomes DockerUnavailable, DockerFailed, DockerStalled or DiskFull, with what to do where that is known.

A load that ends early, whoever ends it, gives the engine a cut tar. The engines that were tried register nothing from
one as long as `manifest.json` stands behind the layers (see `docs/engines.md`): the stream has to be made that way.
An exit code of 0 is no proof of a load, so the caller compares IDs afterwards.
"""

import contextlib
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

from azaion_loader.docker_answers import (
    EngineInfo,
    ImageInfo,
    absent_references,
    fault,
    parse_images,
    parse_info,
)
from azaion_loader.docker_batches import batches
from azaion_loader.errors import DockerFailed, DockerStalled, DockerUnavailable, LoaderError
from azaion_loader.processes import (
    TERM_GRACE_S,
    Buffer,
    Outcome,
    OutputTooLarge,
    ProcessNotStarted,
    ProcessStalled,
    ProcessTimeout,
    feed,
    run,
)
from azaion_loader.settings import child_environment

__all__ = ["DockerCli", "EngineInfo", "ImageInfo"]

# After the last byte the engine unpacks what it has only stored so far, and says nothing. It gets the stall time-out
# and on top this rate over the whole stream: a fifteenth of what two cores with an SSD do, slower than any eMMC.
FLOOR_BYTES_PER_S = 4 << 20
ANSWER_LIMIT_BYTES = 16 << 20
# Docker's client of today waits for its standard input before it heeds SIGTERM, and has nothing of its own to put in
# order. podman does the engine's work itself, so it gets the time.
LOAD_TERM_GRACE_S = {"docker": 0.0}
SPOOL_PREFIX = "azaion-load-"

ADVICE = "restart it (systemctl restart docker), then try again"


def _never() -> None:
    """Nobody asked to stop."""


class DockerCli:
    """The engine behind the client `command` (a name on PATH or a path).

    `timeout_s` bounds each short command. `stall_timeout_s` bounds how long a load may take no bytes.
    """

    def __init__(
        self, command: str, timeout_s: float, stall_timeout_s: float, *, cancelled: Callable[[], None] = _never
    ) -> None:
        self._command = command
        self._timeout_s = timeout_s
        self._stall_timeout_s = stall_timeout_s
        self._cancelled = cancelled
        self._engine: EngineInfo | None = None
        # Threads that ask other questions meanwhile wait for the answer to `info` and don't ask for it once more.
        self._asking = threading.RLock()

    def watched(self, cancelled: Callable[[], None]) -> "DockerCli":
        """Return the same engine, whose short commands end with what `cancelled` raises."""
        other = DockerCli(self._command, self._timeout_s, self._stall_timeout_s, cancelled=cancelled)
        other._engine = self._engine
        return other

    def info(self) -> EngineInfo:
        """Ask the engine for its version, platform and store.

        `root_dir` is set only where that directory is this machine's and can be seen from here.
        Raises DockerUnavailable, DockerFailed, DockerStalled.
        """
        with self._asking:
            outcome = self._run(["info", "--format", "{{json .}}"])
            # A client without an engine may exit with 1 and yet print its own half of the answer.
            if outcome.exit_code != 0:
                raise fault("answer", outcome.exit_code, outcome.stderr)
            info = parse_info(outcome.stdout)
            self._engine = info if info.root_dir is not None and self._sees(info) else replace(info, root_dir=None)
            return self._engine

    def inspect(self, references: Sequence[str]) -> dict[str, ImageInfo]:
        """Describe images by name, tag or ID; those that the engine does not hold are left out.

        Raises DockerUnavailable, DockerFailed, DockerStalled.
        """
        found: dict[str, ImageInfo] = {}
        for batch in batches(dict.fromkeys(references)):
            found.update(self._inspect_batch(batch))
        return found

    def images(self) -> list[ImageInfo]:
        """Describe all images, those without a tag too. Raises DockerUnavailable, DockerFailed, DockerStalled."""
        listed = self._words("list its images", ["image", "ls", "--all", "--quiet", "--no-trunc"])
        return list(self.inspect(listed).values())

    def used_image_ids(self) -> set[str]:
        """Return the IDs of the images of all containers, running or not.

        Raises DockerUnavailable, DockerFailed, DockerStalled.
        """
        listed = self._words("list its containers", ["container", "ls", "--all", "--quiet", "--no-trunc"])
        used: set[str] = set()
        for batch in batches(dict.fromkeys(listed)):
            outcome = self._run(["container", "inspect", "--format", "{{.Image}}", "--", *batch])
            # A container may be gone since it was listed: then it uses nothing.
            if outcome.exit_code != 0 and absent_references(outcome.stderr, batch) is None:
                raise fault("describe its containers", outcome.exit_code, outcome.stderr)
            used.update(_with_algorithm(word) for word in outcome.stdout.decode(errors="replace").split())
        return used

    def tag(self, source: str, target: str) -> None:
        """Let `target` name the image `source`; an image that it named before stays, perhaps without a tag.

        Raises DockerUnavailable, DockerFailed (also when there is no `source`), DockerStalled.
        """
        outcome = self._run(["tag", "--", source, target])
        if outcome.exit_code != 0:
            raise fault(f"tag {source} as {target}", outcome.exit_code, outcome.stderr)

    def remove(self, *references: str) -> None:
        """Take away tags, and each image with its last one; an absent image is fine. Never forced, and no parents.

        The others go although one can't. Raises DockerFailed when a container uses an image, DockerUnavailable,
        DockerStalled.
        """
        first: LoaderError | None = None
        for batch in batches(references):
            outcome = self._run(["image", "rm", "--no-prune", "--", *batch])
            if outcome.exit_code != 0 and absent_references(outcome.stderr, batch) is None:
                first = first or fault(f"remove {', '.join(batch)}", outcome.exit_code, outcome.stderr)
        if first is not None:
            raise first

    def load(
        self,
        chunks: Iterable[Buffer],
        total_bytes: int,
        on_bytes: Callable[[int], None],
        cancelled: Callable[[], None],
    ) -> None:
        """Give the engine a saved image set of `total_bytes`; `on_bytes` is told each number of bytes it took.

        Raises DiskFull, DockerUnavailable, DockerFailed, DockerStalled (no byte taken for the stall time-out, or
        silence after the last one), and what `chunks`, `on_bytes` or `cancelled` raises. The engine's client is gone
        in each case. A return is no proof: see the module's text.
        """
        finish_timeout_s = self._stall_timeout_s + total_bytes / FLOOR_BYTES_PER_S
        try:
            with self._load_environment() as environment:
                outcome = feed(
                    [self._command, "load", "--quiet"],
                    environment,
                    chunks,
                    stall_timeout_s=self._stall_timeout_s,
                    finish_timeout_s=finish_timeout_s,
                    on_bytes=on_bytes,
                    cancelled=cancelled,
                    term_grace_s=LOAD_TERM_GRACE_S.get(self._known_engine().client, TERM_GRACE_S),
                )
        except ProcessNotStarted as error:
            raise self._not_started(error) from error
        except ProcessStalled as error:
            raise DockerStalled(
                f"The container engine took nothing for {self._stall_timeout_s:g} s in the middle of a load: {ADVICE}"
            ) from error
        except ProcessTimeout as error:
            raise DockerStalled(
                f"The container engine has not finished a load within {finish_timeout_s:.0f} s after its last byte: "
                f"{ADVICE}"
            ) from error
        if outcome.exit_code != 0:
            raise fault("load the images", outcome.exit_code, outcome.stderr)

    def _inspect_batch(self, batch: Sequence[str]) -> dict[str, ImageInfo]:
        outcome = self._run(["image", "inspect", "--format", "{{json .}}", "--", *batch])
        absent: set[str] = set()
        if outcome.exit_code != 0:
            named = absent_references(outcome.stderr, batch)
            if named is None:
                raise fault("describe its images", outcome.exit_code, outcome.stderr)
            absent = named
        present = [reference for reference in batch if reference not in absent]
        if not outcome.stdout.strip() and (not present or len(batch) == 1):
            return {}
        images = parse_images(outcome.stdout, short_names=self._known_engine().store == "podman")
        if len(images) == len(present):
            return dict(zip(present, images, strict=True))
        if len(batch) == 1:
            raise DockerFailed(f"The container engine gave {len(images)} answers for the image {batch[0]}")
        # The client wrote a name otherwise than we did, so nothing says which one is missing: ask for each alone.
        found: dict[str, ImageInfo] = {}
        for reference in batch:
            found.update(self._inspect_batch([reference]))
        return found

    def _known_engine(self) -> EngineInfo:
        with self._asking:
            return self._engine if self._engine is not None else self.info()

    @contextlib.contextmanager
    def _load_environment(self) -> Iterator[dict[str, str]]:
        """Yield the environment for a load; podman's copy of the stream is gone at the end.

        podman first copies its input, plain, into a temporary directory, by default /var/tmp, and leaves it there when
        it is ended by a signal. It gets a directory inside its own store instead (the place that its setting
        `image_copy_tmp_dir = "storage"` stands for), which is deleted once the client is gone.
        """
        engine = self._known_engine()
        environment = child_environment()
        if engine.client != "podman" or engine.root_dir is None:
            yield environment
            return
        try:
            parent = engine.root_dir / "tmp"
            parent.mkdir(mode=0o700, exist_ok=True)
            for left in parent.glob(f"{SPOOL_PREFIX}*"):  # by a loader that was killed
                shutil.rmtree(left, ignore_errors=True)
            spool = tempfile.TemporaryDirectory(prefix=SPOOL_PREFIX, dir=parent, ignore_cleanup_errors=True)
        except OSError as error:
            raise DockerFailed(f"The container engine's directory can't be written to: {error.strerror}") from error
        with spool as directory:
            yield {**environment, "TMPDIR": directory}

    def _sees(self, info: EngineInfo) -> bool:
        """Whether the engine's directory is one of this machine's, and visible (a container has it only if mounted)."""
        if info.client == "docker" and not self._endpoint(info.context).startswith("unix://"):
            return False
        try:
            return info.root_dir is not None and info.root_dir.is_dir()
        except OSError:
            return False

    def _endpoint(self, context: str) -> str:
        """Return where the engine of a context of Docker's client is; the default one is not worth a call."""
        if context == "default":
            return child_environment().get("DOCKER_HOST") or "unix://"
        outcome = self._run(["context", "inspect", "--format", "{{.Endpoints.docker.Host}}"])
        return outcome.stdout.decode(errors="replace") if outcome.exit_code == 0 else ""

    def _words(self, action: str, arguments: Sequence[str]) -> list[str]:
        outcome = self._run(arguments)
        if outcome.exit_code != 0:
            raise fault(action, outcome.exit_code, outcome.stderr)
        return outcome.stdout.decode(errors="replace").split()

    def _run(self, arguments: Sequence[str]) -> Outcome:
        try:
            return run(
                [self._command, *arguments],
                child_environment(),
                timeout_s=self._timeout_s,
                stdout_limit_bytes=ANSWER_LIMIT_BYTES,
                cancelled=self._cancelled,
            )
        except ProcessNotStarted as error:
            raise self._not_started(error) from error
        except ProcessTimeout as error:
            raise DockerStalled(
                f"The container engine has not answered “{arguments[0]}” within {self._timeout_s:g} s: {ADVICE}"
            ) from error
        except OutputTooLarge as error:
            raise DockerFailed(
                f"The container engine's client printed more than {ANSWER_LIMIT_BYTES} bytes: is DOCKER_CLI right?"
            ) from error

    def _not_started(self, error: ProcessNotStarted) -> DockerUnavailable:
        return DockerUnavailable(
            f"The container engine's client “{self._command}” can't be run ({error}): install it, or name another in "
            "DOCKER_CLI"
        )


def _with_algorithm(identity: str) -> str:
    return identity if identity.startswith("sha256:") else f"sha256:{identity}"
