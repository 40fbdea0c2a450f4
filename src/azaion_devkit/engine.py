"""A Docker engine for demo and tests: finds one that answers or, as root on Debian, starts a private one.

    python -m azaion_devkit.engine start [--directory DIR]     prints the DOCKER_HOST to use
    python -m azaion_devkit.engine stop [--directory DIR]      stops the one that `start` started, if it did

Both may be repeated. Where no engine can be had, the exit code is 2 and the message says what is missing.

A private engine keeps everything under its directory: `docker.sock`, `docker.pid`, `log`, `data`, `exec`. Without a
network it leaves the machine's bridge and packet filter alone, and can stand beside another engine.
"""

import argparse
import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, Self

from azaion_devkit.engine_install import EngineMissing, ensure_client, ensure_engine, require_root
from azaion_devkit.engine_pid import end_process, running, within
from azaion_devkit.engine_tree import prepare_tree

__all__ = ["Engine", "EngineMissing", "answers", "engine", "find", "find_or_start", "private_engine"]

DEFAULT_HOST = "unix:///var/run/docker.sock"
SOCKET_PATH_MAX = 107  # sun_path holds 108 bytes with the final NUL
START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 30.0
ANSWER_TIMEOUT_S = 15.0
LOG_TAIL_BYTES = 2000

Store = Literal["overlay2", "vfs", "containerd"]


class Engine:
    """A private engine under `directory`.

    `store` is the image store; `overlay2` falls back to `vfs` where the file system can't hold it. `network` gives it
    the default bridge where the machine allows one. `prefix` is put before the command, such as a chroot.
    """

    def __init__(
        self, directory: Path, *, store: Store = "overlay2", network: bool = False, prefix: Sequence[str] = ()
    ) -> None:
        self.directory = directory
        self.socket = directory / "docker.sock"
        self._store: Store = store
        self._network = network
        self._prefix = tuple(prefix)
        self._process: subprocess.Popen[bytes] | None = None
        if len(os.fsencode(self.socket)) > SOCKET_PATH_MAX:
            raise EngineMissing(f"{self.socket} is too long for a socket: choose a shorter directory")

    @classmethod
    def trixie(cls, store: Literal["overlay2", "containerd"] = "overlay2", *, base: Path | None = None) -> Self:
        """Return Debian 13's engine (26.1) in a tree of its own under `base`; the first call downloads the tree.

        Raises EngineMissing where that can't be done.
        """
        require_root("An engine of another Debian version")
        ensure_client()
        base = base or engines_dir()
        directory = base / ("trixie" if store == "overlay2" else "trixie-containerd")
        with _lock(base / "tree.lock"):
            try:
                prefix = prepare_tree(base / "tree-trixie", directory, base / "debootstrap.log")
            except (OSError, subprocess.SubprocessError) as error:
                raise EngineMissing(f"The tree of Debian 13 can't be made ({error}); see {base}") from error
        return cls(directory, store=store, prefix=prefix)

    @property
    def host(self) -> str:
        """The value for DOCKER_HOST."""
        return f"unix://{self.socket}"

    @property
    def pid(self) -> int | None:
        """The engine's process, if it runs."""
        return running(self.directory / "docker.pid", "dockerd")

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start the engine unless it answers already. Raises EngineMissing when it does not come up."""
        self.directory.mkdir(parents=True, exist_ok=True)
        with _lock(self.directory / "lock"):
            if answers(self.host):
                return
            for arguments in self._ways():
                if self._try_start(arguments):
                    return
            log = (self.directory / "log").read_bytes()[-LOG_TAIL_BYTES:].decode(errors="replace")
            raise EngineMissing(f"A private Docker engine did not start. The end of its log:\n{log}")

    def stop(self) -> None:
        """Stop the engine, if it runs, and wait until it is gone. What it holds stays in its directory."""
        pid = self.pid
        if pid is not None:
            end_process(pid, signal.SIGTERM, STOP_TIMEOUT_S)
        self._clear_after_exit()

    def kill(self) -> None:
        """End the engine as a power cut would, and its containerd with it."""
        pid = self.pid
        if pid is not None:
            end_process(pid, signal.SIGKILL, STOP_TIMEOUT_S)
        self._clear_after_exit()

    def _ways(self) -> Iterator[list[str]]:
        alone = ["--bridge=none", "--iptables=false"]
        stores = ["overlay2", "vfs"] if self._store == "overlay2" else [self._store]
        for store in stores:
            chosen = [] if store == "containerd" else ["--storage-driver", store]
            if self._network:
                yield chosen
            yield [*chosen, *alone]

    def _try_start(self, arguments: Sequence[str]) -> bool:
        config = self.directory / "daemon.json"
        config.write_text('{"features": {"containerd-snapshotter": true}}' if self._store == "containerd" else "{}")
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *self._prefix,
                    "dockerd",
                    *("--data-root", self.directory / "data"),
                    *("--exec-root", self.directory / "exec"),
                    *("--pidfile", self.directory / "docker.pid"),
                    *("--config-file", config),
                    *("-H", self.host),
                    *arguments,
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        came_up = within(START_TIMEOUT_S, lambda: answers(self.host) or self._has_exited())
        if came_up and not self._has_exited():
            return True
        self.kill()
        return False

    def _has_exited(self) -> bool:
        return self._process is not None and self._process.poll() is not None

    def _clear_after_exit(self) -> None:
        if self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_TIMEOUT_S)
            self._process = None
        # A killed engine leaves its containerd, which would hold the directory.
        pid_file = self.directory / "exec" / "containerd" / "containerd.pid"
        pid = running(pid_file, "containerd")
        if pid is not None:
            end_process(pid, signal.SIGKILL, STOP_TIMEOUT_S)
        for path in (pid_file, self.directory / "docker.pid", self.socket):
            path.unlink(missing_ok=True)

    def remove(self) -> None:
        """Stop the engine and delete its directory."""
        self.stop()
        mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        for mount in sorted((m for m in mounts if m.startswith(f"{self.directory}/")), reverse=True):
            subprocess.run(["umount", mount], check=False, timeout=STOP_TIMEOUT_S)
        shutil.rmtree(self.directory, ignore_errors=True)


def engines_dir() -> Path:
    """Return where private engines that outlive their starter live (AZAION_ENGINE_DIR, else below /tmp)."""
    return Path(os.environ.get("AZAION_ENGINE_DIR") or "/tmp/azaion-engine")  # noqa: S108 (a socket's path is short)


def answers(host: str) -> bool:
    """Whether an engine answers at `host`."""
    if host.startswith("unix://") and not Path(host.removeprefix("unix://")).exists():
        return False
    try:
        outcome = subprocess.run(
            ["docker", "info", "--format", "{{.ServerVersion}}"],
            env={**os.environ, "DOCKER_HOST": host},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=ANSWER_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    # The 20.10 client exits with 0 without an engine; then it has no version to print.
    return outcome.returncode == 0 and bool(outcome.stdout.strip())


def find() -> str | None:
    """Return the DOCKER_HOST of an engine that answers: the configured one, the default one, or a private one."""
    given = os.environ.get("DOCKER_HOST")
    private = f"unix://{engines_dir() / 'private' / 'docker.sock'}"
    return next((host for host in (given, DEFAULT_HOST, private) if host and answers(host)), None)


def find_or_start() -> str:
    """Return the DOCKER_HOST of an engine that answers; start a private one, which stays, where there is none.

    Raises EngineMissing.
    """
    ensure_client()
    host = find()
    if host is None:
        ensure_engine()
        private = Engine(engines_dir() / "private", network=True)
        private.start()
        host = private.host
    return host


@contextlib.contextmanager
def engine(*, network: bool = True) -> Iterator[str]:
    """Yield the DOCKER_HOST of an engine that answers; one that had to be started is stopped and deleted at the end.

    Raises EngineMissing.
    """
    ensure_client()
    host = find()
    if host is not None:
        yield host
        return
    with private_engine(network=network) as own:
        yield own.host


@contextlib.contextmanager
def private_engine(*, network: bool = False) -> Iterator[Engine]:
    """Yield an empty engine of its own, which is stopped and deleted at the end. Raises EngineMissing."""
    ensure_client()
    ensure_engine()
    own = Engine(Path(tempfile.mkdtemp(prefix="azaion-engine-", dir="/tmp")), network=network)
    try:
        own.start()
        yield own
    finally:
        own.remove()


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Let one process at a time start an engine; bounded by the start it waits for."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m azaion_devkit.engine", description=__doc__.splitlines()[0])
    parser.add_argument("verb", choices=("start", "stop"))
    parser.add_argument("--directory", type=Path, help="of the engine that is started where none answers")
    options = parser.parse_args(arguments)
    if options.directory is not None:
        os.environ["AZAION_ENGINE_DIR"] = str(options.directory.absolute())
    if options.verb == "stop":
        Engine(engines_dir() / "private").stop()
        return 0
    try:
        print(find_or_start())
    except EngineMissing as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
