"""The unlock job: one background run at a time on a device, that clients poll.

A `flock` in the loader's dot-directory makes it one run per device, not per process: a process that does not hold it
answers from the journal and starts nothing. The lock dies with its holder, so a kill leaves no run that seems to go
on for ever.
"""

import os
import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace

from loguru import logger

from azaion_loader import metrics
from azaion_loader.credentials import Credentials
from azaion_loader.docker_cli import DockerCli
from azaion_loader.errors import ArchiveNotFound, Interrupted, LoaderError
from azaion_loader.files import FileLock
from azaion_loader.image_switch import ImageSwitch
from azaion_loader.progress import ProgressMeter, UnlockProgress
from azaion_loader.settings import Settings
from azaion_loader.unlock_journal import RunRecord, UnlockJournal
from azaion_loader.unlock_run import UnlockRun, images_present
from azaion_loader.unlock_state import UnlockState

# A stopping service has little time: container engines kill after 10 s.
_SHUTDOWN_WAIT_S = 7.0
_REPAIR_LOCK_WAIT_S = 1.0


@dataclass(frozen=True, slots=True)
class UnlockStatus:
    """Where the run stands; `error` is `<code>: <sentence>` in the state `error`, else None."""

    state: UnlockState
    error: str | None


class UnlockJob:
    """Starts, watches and ends runs.

    `log_in` opens the session with a client's credentials; `remember` does so in the background for a client that
    needs no run; `fetch_key_fragment` uses the session. `docker` is made when it is first needed.
    """

    def __init__(
        self,
        settings: Settings,
        docker: Callable[[], DockerCli],
        *,
        log_in: Callable[[Credentials], object],
        remember: Callable[[Credentials], None],
        fetch_key_fragment: Callable[[], bytes],
    ) -> None:
        self._settings = settings
        self._docker = docker
        self._log_in = log_in
        self._remember = remember
        self._fetch_key_fragment = fetch_key_fragment
        self._journal = UnlockJournal(settings.state_dir)
        self._lock = FileLock(settings.state_dir / "unlock.lock")
        # Held for memory only, so that a poll never waits for a disk; `_starting` lets one post at a time start a run.
        self._guard = threading.Lock()
        self._starting = threading.Lock()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._repair_thread: threading.Thread | None = None
        self._lock_wanted = False
        self._meter = ProgressMeter()
        self._record = RunRecord(run_id="", state=UnlockState.IDLE)
        # The run that the journal told of when this process started: not news of another process.
        self._known_run = ""

    def recover(self) -> None:
        """Read what an earlier process left, say it truthfully, and put a half-done switch of tags back.

        Quick: the repair runs in a thread of its own, and is tried again by the next run if the engine is not there
        yet. A run of another process that is still going is left alone.
        """
        record = self._journal.read_run()
        if record is None or self._lock.is_held_elsewhere():
            return
        self._known_run = record.run_id
        if record.state.in_progress:
            record = _interrupted(record)
            self._write_journal(record)
        if record.error is not None and record.error.startswith(f"{Interrupted.code}:"):
            self._record = record
        if record.switch and self._lock.try_acquire():
            self._repair_thread = threading.Thread(
                target=self._repair, args=(record,), name="unlock-repair", daemon=True
            )
            self._repair_thread.start()

    def start(self, credentials: Credentials, refresh: bool) -> UnlockState:
        """Start a run unless there is nothing to do or one is in progress, and return the state.

        Raises ArchiveNotFound if there is no archive and the required images are not present; DiskFull if the
        journal can't be written.
        """
        status = self.status()
        if status.state.in_progress:
            return status.state
        if status.state is UnlockState.READY and not refresh:
            self._remember(credentials)
            return status.state
        if not os.path.exists(self._settings.images_path):  # noqa: PTH110 - pathlib raises where it may not look
            return self._ready_without_archive(credentials)
        return self._start_run(credentials, refresh)

    def status(self) -> UnlockStatus:
        """Return the state of this process's run, or of another process's if that is the newer one."""
        with self._guard:
            own = self._record
        if not own.state.in_progress:
            own = self._other_process() or own
        return UnlockStatus(own.state, own.error)

    def progress(self) -> UnlockProgress:
        """Return the figures of the run, as `status` finds it."""
        with self._guard:
            own, figures = self._record, self._meter.snapshot()
        other = None if own.state.in_progress else self._other_process()
        if other is None:
            return replace(figures, state=own.state, stage=figures.stage if figures.run_id else own.state.value)
        known = {key: value for key, value in other.progress.items() if key in UnlockProgress.__dataclass_fields__}
        return replace(figures, **{**known, "state": other.state, "run_id": other.run_id})

    def shutdown(self) -> None:
        """End the run, if there is one: its child processes end and the journal says `interrupted`. Bounded."""
        self._stopping.set()
        for thread in (self._thread, self._repair_thread):
            if thread is not None:
                thread.join(_SHUTDOWN_WAIT_S)
                if thread.is_alive():
                    logger.error("{} did not end in {} s; the next start repairs it", thread.name, _SHUTDOWN_WAIT_S)

    def _other_process(self) -> RunRecord | None:
        """Return the journal's record if another process wrote it since this one started."""
        record = self._journal.read_run()
        if record is None or record.run_id in {self._known_run, self._record.run_id}:
            return None
        if record.state.in_progress and not self._lock.is_held_elsewhere():
            return _interrupted(record)
        return record

    def _ready_without_archive(self, credentials: Credentials) -> UnlockState:
        if not images_present(self._docker(), self._settings.api_version):
            raise ArchiveNotFound(f"Encrypted archive not found: {self._settings.images_path}")
        self._remember(credentials)
        with self._guard:
            if not self._record.state.in_progress:
                self._record = RunRecord(run_id=_new_run_id(), state=UnlockState.READY)
                self._meter = ProgressMeter(self._record.run_id)
                self._meter.finish()
            return self._record.state

    def _start_run(self, credentials: Credentials, refresh: bool) -> UnlockState:
        with self._starting:
            if self._record.state.in_progress:
                return self._record.state
            if not self._take_lock():
                elsewhere = self._journal.read_run()
                # Its holder has only just taken it if the journal does not show the run yet.
                in_progress = elsewhere is not None and elsewhere.state.in_progress
                return elsewhere.state if elsewhere and in_progress else UnlockState.AUTHENTICATING
            try:
                left = self._journal.read_run()
                record = RunRecord(_new_run_id(), UnlockState.AUTHENTICATING, switch=left.switch if left else ())
                self._journal.write_run(record)
                thread = threading.Thread(
                    target=self._run, args=(record, credentials, refresh), name="unlock-run", daemon=True
                )
                with self._guard:
                    self._meter = ProgressMeter(record.run_id)
                    self._meter.enter(record.state)
                    self._record = record
                self._thread = thread
                thread.start()
            except BaseException:
                self._lock.release()
                raise
            return record.state

    def _take_lock(self) -> bool:
        """Take the device's lock, or have a repair of this process leave it to the run that is starting."""
        with self._guard:
            repairing = self._repair_thread is not None and self._repair_thread.is_alive()
            self._lock_wanted = repairing
        if repairing:
            return True
        return self._lock.try_acquire()

    def _run(self, record: RunRecord, credentials: Credentials, refresh: bool) -> None:
        logger.info("Unlock run {} started", record.run_id)
        error = None
        try:
            if (repair := self._repair_thread) is not None:
                repair.join()
            run = UnlockRun(
                self._settings,
                self._docker().watched(self._check_stopping),
                self._journal,
                self._meter,
                log_in=self._log_in,
                fetch_key_fragment=self._fetch_key_fragment,
                enter=self._enter,
                cancelled=self._check_stopping,
            )
            left = self._journal.read_run()
            run.run(credentials, refresh, left if left and left.switch else None)
        except LoaderError as err:
            error = f"{err.code}: {err.message}"
            logger.error("Unlock run {} failed: {}", record.run_id, error)
        except Exception:  # noqa: BLE001 - the thread's last door: a run must never end without a state
            reference = secrets.token_hex(4)
            error = f"{LoaderError.code}: An unforeseen fault; the log has it under {reference}."
            logger.exception("Unlock run {} failed, reference {}", record.run_id, reference)
        self._end(error)
        if error is None:
            self._remember(credentials)

    def _enter(self, state: UnlockState) -> RunRecord:
        """Write the state down and only then show it to clients: what they have seen is what a restart tells."""
        record = replace(self._record, state=state, switch=())
        self._journal.write_run(replace(record, progress=self._meter.entering(state).as_json()))
        with self._guard:
            self._meter.enter(state)
            self._record = record
        logger.info("Unlock run {}: {}", record.run_id, state)
        return record

    def _end(self, error: str | None) -> None:
        """Write the end of the run, give the device's lock back, and only then show the end to clients."""
        state = UnlockState.READY if error is None else UnlockState.ERROR
        kept = self._journal.read_run()
        figures = self._meter.snapshot() if error else self._meter.finished()
        record = replace(self._record, state=state, error=error, switch=kept.switch if kept else ())
        self._write_journal(replace(record, progress=figures.as_json() | {"state": state.value}))
        self._lock.release()
        with self._guard:
            self._record = replace(record, switch=())
            if error is None:
                self._meter.finish()
            else:
                self._meter.enter(state)
        metrics.count("unlock_runs", result="ready" if error is None else error.partition(":")[0])
        logger.info("Unlock run {}: {}", record.run_id, state)

    def _write_journal(self, record: RunRecord) -> None:
        """Write what must not stop the service: a full disk is said in the log."""
        try:
            self._journal.write_run(record)
        except (LoaderError, OSError) as err:
            logger.error("The journal could not be written: {}", err)

    def _repair(self, record: RunRecord) -> None:
        """Put a half-done switch back; what fails here is tried again by the next run."""
        try:
            docker = self._docker()
            ImageSwitch(docker, docker.info().store, self._journal).restore(record)
        except (LoaderError, OSError) as err:
            logger.warning("The tags of run {} are not restored yet: {}", record.run_id, err)
        finally:
            with self._guard:
                self._repair_thread = None
                if not self._lock_wanted:
                    self._lock.release()

    def _check_stopping(self) -> None:
        if self._stopping.is_set():
            raise Interrupted("The loader is stopping; post /unlock again when it runs.")


def _interrupted(record: RunRecord) -> RunRecord:
    message = f"{Interrupted.code}: The loader was stopped during '{record.state}'; post /unlock again."
    return replace(record, state=UnlockState.ERROR, error=message)


def _new_run_id() -> str:
    return secrets.token_hex(8)
