"""One unlock run, from the log-in to the proof that the engine holds the archive's images.

The stages follow `unlock_state.UnlockState`. Nothing reaches the engine before the archive is proved, and no tag
that a device runs from moves before every image stands in the engine (`unlock_plan`, `image_switch`).
"""

import os
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from loguru import logger

from azaion_loader.archive_model import ArchiveImage
from azaion_loader.archive_trust import check_trust, newest
from azaion_loader.binary_split import EncryptedArchive
from azaion_loader.credentials import Credentials
from azaion_loader.docker_answers import EngineInfo, ImageInfo
from azaion_loader.docker_cli import DockerCli
from azaion_loader.errors import ArchiveInvalid, DockerError, Interrupted, LoaderError
from azaion_loader.files import require_space
from azaion_loader.image_loader import ImageLoader
from azaion_loader.image_switch import ImageSwitch, finishing
from azaion_loader.progress import ProgressMeter
from azaion_loader.required_images import required_tags, short_tag
from azaion_loader.settings import Settings
from azaion_loader.unlock_journal import Ledger, RunRecord, UnlockJournal
from azaion_loader.unlock_plan import (
    UnlockPlan,
    check_platform,
    check_required,
    make_plan,
    staged_for,
    superseded,
    tagged_images,
)
from azaion_loader.unlock_state import UnlockState

# The classic store unpacks a load's stream to its disk before it registers the layers: both exist for a moment.
_SPACE_FACTOR = 2
# More streams than this gain nothing, and each costs some megabytes here and a client of its own.
_MOST_PARALLEL = 8


class UnlockRun:
    """The work of one run; made for it and thrown away after it.

    `log_in` opens the session, `fetch_key_fragment` uses it. `enter` is told of each state. `cancelled` raises
    Interrupted when the loader is stopping.
    """

    def __init__(
        self,
        settings: Settings,
        docker: DockerCli,
        journal: UnlockJournal,
        meter: ProgressMeter,
        *,
        log_in: Callable[[Credentials], object],
        fetch_key_fragment: Callable[[], bytes],
        enter: Callable[[UnlockState], RunRecord],
        cancelled: Callable[[], None],
    ) -> None:
        self._settings = settings
        self._docker = docker
        self._journal = journal
        self._meter = meter
        self._log_in = log_in
        self._fetch_key_fragment = fetch_key_fragment
        self._enter = enter
        self._cancelled = cancelled

    def run(self, credentials: Credentials, refresh: bool, pending: RunRecord | None) -> None:
        """Do the whole run; `pending` is the record of an earlier one whose switch of tags is still half done.

        Raises a LoaderError that says why the run ended; the engine's tags are then as they were before.
        """
        if pending is not None:
            engine = self._docker.info()
            ImageSwitch(self._docker, engine.store, self._journal).restore(pending)
        remove_legacy_tar(self._settings.images_path)
        if not refresh and images_present(self._docker, self._settings.api_version):
            logger.info("All required images are present under the tag {}", self._settings.api_version)
            self._sweep_left_overs()
            return
        # The engine takes its time to answer, so it is asked while the key is fetched and the archive's index is read.
        pool = ThreadPoolExecutor(2, thread_name_prefix="unlock-engine")
        try:
            engine_answer = pool.submit(self._docker.info), pool.submit(self._docker.images)
            self._log_in(credentials)
            self._cancelled()
            self._enter(UnlockState.DOWNLOADING_KEY)
            key_fragment = self._fetch_key_fragment()
            self._cancelled()
            self._enter(UnlockState.DECRYPTING)
            with EncryptedArchive(self._settings.images_path, key_fragment) as archive:
                del key_fragment
                self._unlock(archive, engine_answer)
        finally:
            # An engine that hangs must not hold back the report of another fault.
            pool.shutdown(wait=False)

    def _unlock(
        self, archive: EncryptedArchive, engine_answer: "tuple[Future[EngineInfo], Future[list[ImageInfo]]]"
    ) -> None:
        self._meter.stage("reading the archive's index")
        index = archive.index(self._settings.archive_max_bytes, self._cancelled)
        tagged = tagged_images(index.images)
        check_required(tagged, required_tags(self._settings.api_version))
        ledger = self._journal.read_ledger()
        created = self._check_trust(tagged, ledger)
        self._meter.stage("asking the engine what it holds")
        engine, present = engine_answer[0].result(), engine_answer[1].result()
        check_platform(tagged, engine.os, engine.architecture)
        plan = make_plan(tagged, present, engine.store)
        switch = ImageSwitch(self._docker, engine.store, self._journal)
        left = staged_for(plan, present)
        present = switch.sweep(present, left)
        total = len(plan.images)
        self._meter.images(total - len(plan.to_load), total)
        loader = ImageLoader(
            self._docker,
            engine,
            index,
            archive.reader,
            self._meter,
            cancelled=self._cancelled,
            parallel=self._settings.unlock_parallel or min(len(os.sched_getaffinity(0)), _MOST_PARALLEL),
        )
        with loader:
            loader.prepare(plan, [info.layers for info in present])
            self._check_space(engine, loader.given_bytes)
            self._meter.stage("proving the layers")
            loader.prove()
            if archive.changed():
                raise ArchiveInvalid("The archive was written to while it was being read.")
            record = self._enter(UnlockState.LOADING_IMAGES)
            # Before the engine gets them, so that a kill can't orphan an image that the loader brought.
            ledger = self._write_ledger(ledger, loaded=ledger.loaded | {p.image.config_digest for p in plan.to_load})
            # Those that a killed run has left, too: a failure leaves nothing of the new images.
            staged = [*(planned.staged for planned in plan.to_load), *loader.base_tags, *left]
            given_bytes = loader.given_bytes
            try:
                new_ids = loader.load()
                given_bytes = 0
                # Before the tags move: a kill after that must not make the device forget what it has trusted.
                newest_trusted = newest(ledger.newest_trusted, created) if created else ledger.newest_trusted
                ledger = self._write_ledger(ledger, loaded=ledger.loaded | new_ids, newest_trusted=newest_trusted)
                self._meter.stage("switching the tags")
                self._cancelled()
                # From here on the run finishes what it has begun, unless the engine takes too long.
                released = switch.watched(finishing(self._cancelled)).switch(plan, record)
            except Interrupted:
                # What is staged is proved by the next run and need not be sent again.
                raise
            except BaseException:
                self._meter.stage("removing what was loaded")
                if given_bytes:
                    switch.discard_late(staged, given_bytes, self._cancelled)
                else:
                    switch.discard(staged)
                raise
        switch.discard([*released, *staged])
        self._remove_superseded(plan, ledger, new_ids)

    def _write_ledger(self, ledger: Ledger, **changes: Any) -> Ledger:
        """Return the ledger with these changes, written down if there are any."""
        changed = replace(ledger, **changes)
        if changed != ledger:
            self._journal.write_ledger(changed)
        return changed

    def _sweep_left_overs(self) -> None:
        """Remove what a kill after the commit left; a fault here does not undo a success."""
        try:
            switch = ImageSwitch(self._docker, self._docker.info().store, self._journal)
            switch.sweep(self._docker.images(), [])
        except LoaderError as err:
            logger.warning("What an earlier run left stays until the next run: {}", err.message)

    def _check_trust(self, tagged: Mapping[str, ArchiveImage], ledger: Ledger) -> str | None:
        """Check the signature where a public key is set, and return the archive's creation time."""
        key_file = self._settings.archive_public_key_file
        if key_file is None:
            return None
        return check_trust(
            self._settings.images_path, key_file, tagged, ledger.newest_trusted, self._settings.allow_downgrade
        )

    def _check_space(self, engine: EngineInfo, given_bytes: int) -> None:
        if engine.root_dir is None:
            self._meter.note("The engine's disk is not visible from here, so its free space was not checked.")
        elif given_bytes:
            require_space(engine.root_dir, given_bytes * _SPACE_FACTOR, "the engine's images")

    def _remove_superseded(self, plan: UnlockPlan, ledger: Ledger, new_ids: frozenset[str]) -> None:
        """Remove images of earlier runs that nothing uses any more; a fault here does not undo a success."""
        current = {planned.image.config_digest for planned in plan.images} | new_ids
        current |= {plan.before[tag] for planned in plan.images for tag in planned.standing}
        if not self._settings.remove_superseded_images or ledger.loaded <= current:
            return
        try:
            old = list(self._docker.inspect(sorted(ledger.loaded - current)).values())
            gone = superseded(old, self._docker.used_image_ids())
            for image_id in gone:
                logger.info("Removing the superseded image {}", image_id)
            self._docker.remove(*gone)
            present = {info.id for info in old}.difference(gone)
            self._write_ledger(ledger, loaded=ledger.loaded & (present | current))
        except (LoaderError, OSError) as err:
            logger.warning("Superseded images stay until the next run: {}", err)


def images_present(docker: DockerCli, version: str) -> bool:
    """Say whether all required images stand in the engine by name; an engine that can't be asked holds none."""
    try:
        present = {short_tag(tag) for image in docker.images() for tag in image.tags}
    except DockerError as err:
        logger.info("The engine can't be asked for its images yet: {}", err.message)
        return False
    return present.issuperset(required_tags(version))


def remove_legacy_tar(images_path: Path) -> None:
    """Remove the plaintext tar that older versions left beside the archive; warn where that is not possible."""
    if images_path.suffix != ".enc":
        return
    tar = images_path.with_suffix(".tar")
    try:
        tar.unlink()
    except FileNotFoundError:
        return
    except OSError as err:
        logger.warning("The plaintext archive {} of an older version can't be removed: {}", tar, err.strerror)
    else:
        logger.info("Removed the plaintext archive {} of an older version", tar)
