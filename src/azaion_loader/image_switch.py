"""Moves tags from the old images to the new ones, all or none, also across a kill.

The order makes every moment repairable: the journal names each tag with its old image; rollback tags keep the old
images alive (a containerd store drops an image when its last tag is replaced); then the tags move; the journal's
entry is emptied, which is the commit; then the rollback tags go.
"""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from loguru import logger

from azaion_loader.docker_answers import ImageInfo
from azaion_loader.docker_cli import DockerCli
from azaion_loader.errors import DockerFailed, DockerStalled, DockerUnavailable, ImagesMissing, LoaderError
from azaion_loader.required_images import short_tag
from azaion_loader.unlock_journal import RunRecord, TagMove, UnlockJournal
from azaion_loader.unlock_plan import ROLLBACK_REPOSITORY, STAGING_REPOSITORY, UnlockPlan, is_same, left_over_tags

# An engine goes on with a load whose client is gone once it has the last byte (docs/engines.md): this long after it.
# The rate is that of a slow disk; the bound keeps a failed run from seeming to go on for ever.
_SETTLE_S = 3.0
_SETTLE_BYTES_PER_S = 64 << 20
_SETTLE_MAX_S = 60.0
_LOOK_S = 0.5
_TAGS_AT_ONCE = 4
_RESTORE_TRIES = 4
# A switch takes a second at most. A stop waits so long for its end, since an engine may still carry out a tag whose
# client was ended, and then after the tags have been put back. A stopping service has time for both.
_FINISH_S = 3.0


def _never() -> None:
    """A restoration that has begun is not to be stopped."""


def finishing(cancelled: Callable[[], None], grace_s: float = _FINISH_S) -> Callable[[], None]:
    """Return a `cancelled` that raises what the given one raises, but only `grace_s` after it has first done so."""
    give_up: float | None = None

    def later() -> None:
        nonlocal give_up
        try:
            cancelled()
        except LoaderError:
            give_up = give_up or time.monotonic() + grace_s
            if time.monotonic() >= give_up:
                raise

    return later


class ImageSwitch:
    """Acts on one engine; `store` is its kind (`docker_cli.EngineInfo.store`)."""

    def __init__(self, docker: DockerCli, store: str, journal: UnlockJournal) -> None:
        self._docker = docker
        self._store = store
        self._journal = journal

    def watched(self, cancelled: Callable[[], None]) -> "ImageSwitch":
        """Return the same switch, whose calls of the engine end with what `cancelled` raises."""
        return ImageSwitch(self._docker.watched(cancelled), self._store, self._journal)

    def switch(self, plan: UnlockPlan, record: RunRecord) -> list[str]:
        """Give every tag of the plan its image, or leave all as they were; return the tags to `discard` afterwards.

        Every image must stand in the engine, under its `source` or its staging tag. Raises ImagesMissing if a tag
        does not name its image afterwards, DockerError or DiskFull; the tags are restored before it raises.
        """
        if not plan.moves:
            return []
        moves = tuple(
            TagMove(tag, plan.before.get(tag), f"{ROLLBACK_REPOSITORY}:{record.run_id}-{number}")
            for number, (tag, _) in enumerate(plan.moves)
        )
        self._journal.write_run(replace(record, switch=moves))
        try:
            # Side by side, since the moment in which a kill leaves a mix should be short.
            with ThreadPoolExecutor(_TAGS_AT_ONCE, thread_name_prefix="tag") as pool:
                list(pool.map(lambda old: self._docker.tag(*old), [(m.before, m.rollback) for m in moves if m.before]))
                list(pool.map(lambda move: self._docker.tag(move[1].source or move[1].staged, move[0]), plan.moves))
            self.prove(plan)
        except BaseException:
            self._restore_after_failure(replace(record, switch=moves))
            raise
        self._journal.write_run(replace(record, switch=()))
        return self._release([(move.rollback, move.tag) for move in moves if move.before is not None])

    def prove(self, plan: UnlockPlan) -> None:
        """Raise ImagesMissing unless each tag of the plan names the archive's image."""
        tags = [tag for planned in plan.images for tag in planned.tags]
        found = {short_tag(tag): info for tag, info in self._docker.inspect(tags).items()}
        wrong = [
            tag
            for planned in plan.images
            for tag in planned.tags
            if tag not in found or not is_same(planned.image, found[tag], self._store)
        ]
        if wrong:
            raise ImagesMissing(f"The engine does not hold the archive's images under: {', '.join(wrong)}.")

    def restore(self, record: RunRecord) -> None:
        """Put the tags of a half-done switch back; without effect if there is none.

        Raises DockerError if the engine can't be asked: then the journal keeps the entry for the next try.
        """
        if not record.switch:
            return
        logger.warning("Restoring {} image tags of run {}", len(record.switch), record.run_id)
        present = self._docker.inspect([m.rollback for m in record.switch if m.before is not None])
        kept = {short_tag(tag) for tag in present}
        for move in record.switch:
            if move.before is None:
                self._docker.remove(move.tag)
            elif move.rollback in kept:
                # Without its rollback tag the move had not begun: rollback tags come first, all of them.
                self._docker.tag(move.rollback, move.tag)
                self._docker.remove(move.rollback)
        self._journal.write_run(replace(record, switch=()))

    def discard(self, tags: Sequence[str]) -> None:
        """Remove staging and released rollback tags, and with them the images that nothing else names.

        Faults are logged, not raised: this runs after a failure whose own report matters more, and the next run
        sweeps again.
        """
        if not tags:
            return
        try:
            self._docker.remove(*dict.fromkeys(tags))
        except LoaderError as err:
            logger.warning("{} tags of the loader's own stay until the next run: {}", len(tags), err.message)

    def discard_late(self, tags: Sequence[str], given_bytes: int, cancelled: Callable[[], None]) -> None:
        """Like `discard`, and look again for a bounded time: a load whose client is gone may still come true.

        `given_bytes` is what the engine was to be given. `cancelled` raises Interrupted to end the wait.
        """
        give_up = time.monotonic() + min(_SETTLE_S + given_bytes / _SETTLE_BYTES_PER_S, _SETTLE_MAX_S)
        # By name, seen or not: after a failed load a containerd store may hold a name that it does not list.
        present = tags
        while True:
            self.discard(present)
            if time.monotonic() >= give_up:
                return
            try:
                cancelled()
                time.sleep(_LOOK_S)
                present = sorted(self._docker.inspect(tags))
            except DockerUnavailable:
                # It may be on its way back: a restart is one of the ways in which a load gets lost.
                present = tags
            except LoaderError as err:
                logger.warning("Staged images may stay until the next run: {}", err.message)
                return

    def sweep(self, engine: Sequence[ImageInfo], keep_staged: Sequence[str]) -> list[ImageInfo]:
        """Remove what killed runs left: staging tags of other archives, rollback tags without a switch.

        Return the images that are sure to stand afterwards.
        """
        ours = (f"{STAGING_REPOSITORY}:", f"{ROLLBACK_REPOSITORY}:")
        names = (short_tag(tag) for info in engine for tag in info.tags)
        standing = next((name for name in names if not name.startswith(ours)), None)
        rollback = left_over_tags(engine, ROLLBACK_REPOSITORY, ())
        if standing is not None:
            rollback = self._release([(tag, standing) for tag in rollback])
        gone = {*left_over_tags(engine, STAGING_REPOSITORY, keep_staged), *rollback}
        self.discard(sorted(gone))
        return [info for info in engine if not info.tags or not gone.issuperset(map(short_tag, info.tags))]

    def _restore_after_failure(self, record: RunRecord) -> None:
        # A stop of the loader is one of the failures: its own watch would end each call that restores.
        unwatched = self.watched(_never)
        for left in reversed(range(_RESTORE_TRIES)):
            try:
                unwatched.restore(record)
            except LoaderError as err:
                # An engine that has just been restarted refuses single calls.
                if left and isinstance(err, DockerUnavailable | DockerFailed):
                    time.sleep(_LOOK_S)
                    continue
                logger.error("The tags could not be restored yet, the next run will: {}", err.message)
            return

    def _release(self, rollback: Sequence[tuple[str, str]]) -> list[str]:
        """Let rollback tags go without the old images; each comes with a tag that stands. Return those to remove.

        `docker rmi` of an image's last tag deletes the image, and fails if a container runs from it. A tag that has
        first been moved to an image with other names can always go, and the old image stays, untagged, for the
        clean-up that knows which images are the loader's own. A fault is logged: the next run sweeps.
        """
        engine_gone = threading.Event()

        def release(tags: tuple[str, str]) -> str | None:
            rollback, standing = tags
            if engine_gone.is_set():
                return None
            try:
                self._docker.tag(standing, rollback)
            except LoaderError as err:
                logger.warning("The rollback tag {} stays until the next run: {}", rollback, err.message)
                if isinstance(err, DockerStalled | DockerUnavailable):
                    engine_gone.set()
                return None
            return rollback

        with ThreadPoolExecutor(_TAGS_AT_ONCE, thread_name_prefix="tag") as pool:
            return [tag for tag in pool.map(release, rollback) if tag is not None]
