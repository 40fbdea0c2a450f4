"""Gives the engine the images that it lacks, and of these only the layers that it lacks: proved, then registered.

The engine gets tars that are composed on the way (`load_plan`), in steps (`load_tree`) that run side by side
(`load_streams`), each image under its staging tag, without a file between the encrypted archive and the engine's
standard input.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Sequence

from loguru import logger

from azaion_loader.archive import prove_layers
from azaion_loader.archive_model import ArchiveImage, ArchiveIndex, Layer, Reader, distinct_layers
from azaion_loader.docker_answers import EngineInfo
from azaion_loader.docker_cli import DockerCli
from azaion_loader.errors import DockerFailed, ImagesMissing
from azaion_loader.load_pace import pace
from azaion_loader.load_streams import LoadStreams, StepRun
from azaion_loader.load_tree import LoadStep, Shape, branching_steps, whole_step
from azaion_loader.progress import ProgressMeter
from azaion_loader.required_images import short_tag
from azaion_loader.unlock_plan import PlannedImage, UnlockPlan, is_same, staging_tag

# How an engine takes an image without the layers that it holds; podman does not. See docs/engines.md.
_SHAPES: dict[str, Shape] = {"classic": "docker", "containerd": "oci"}
# Where an aborted load leaves nothing, so that bytes may be given while they are being proved.
_STORES_WITH_CLEAN_ABORT = frozenset({"classic"})
# Images that are done are proved together, at most this often: a question costs as much as some megabytes of a load.
_PROOF_INTERVAL_S = 3.0


class ImageLoader:
    """Loads the images of one archive into one engine; a context manager that ends what still runs.

    `parallel` is the number of streams and of workers that hash. `cancelled` raises Interrupted when the loader is
    stopping. Used in this order: `prepare`, `prove`, `load`.
    """

    def __init__(
        self,
        docker: DockerCli,
        engine: EngineInfo,
        index: ArchiveIndex,
        reader: Reader,
        meter: ProgressMeter,
        *,
        cancelled: Callable[[], None],
        parallel: int,
    ) -> None:
        self._docker = docker
        self._engine = engine
        self._index = index
        self._reader = reader
        self._meter = meter
        self._cancelled = cancelled
        self._parallel = parallel
        self._planned: dict[str, PlannedImage] = {}
        self._standing = self._total = 0
        self._steps: tuple[LoadStep, ...] = ()
        self._base_tags: list[str] = []
        self._streams: LoadStreams | None = None
        self._proved: set[int] = set()
        self._ids: dict[str, str] = {}
        self._whole = False
        # What follows is the workers' common ground.
        self._guard = threading.Lock()
        self._unproved: tuple[tuple[ArchiveImage, str], ...] = ()
        self._proved_at = 0.0
        self._stack = contextlib.ExitStack()

    @property
    def given_bytes(self) -> int:
        """The length of what the engine will be given; known after `prepare`."""
        return sum(step.stream.total_bytes for step in self._steps)

    @property
    def base_tags(self) -> list[str]:
        """The tags of synthetic images that this load needs until it is over; known after `prepare`."""
        return self._base_tags

    def prepare(self, plan: UnlockPlan, engine_chains: Sequence[Sequence[str]]) -> None:
        """Decide what to give; `engine_chains` are the layers of the engine's images, base first."""
        self._planned = {planned.staged: planned for planned in plan.to_load}
        self._total = len(plan.images)
        self._standing = self._total - len(self._planned)
        images = self._missing()
        shape = _SHAPES.get(self._engine.store)
        if shape is None:
            self._whole = True
            self._steps = whole_step(self._index, images)
        elif self._index.gzipped:
            self._steps = whole_step(self._index, images, engine_chains, shape)
        elif images:
            self._steps = branching_steps(self._index, images, engine_chains, shape, staging_tag)
        self._base_tags = [tag for step in self._steps if step.is_base for _, tag in step.images]
        self._meter.expect_bytes(sum(layer.size for layer in self._to_prove()) + self.given_bytes)
        logger.info("{} images to load in {} steps, {} bytes", len(images), len(self._steps), self.given_bytes)

    def prove(self) -> None:
        """Hash every layer that will be given, each once. Raises ArchiveInvalid.

        Where an abort leaves nothing, the engine is given bytes meanwhile, but no stream's end.
        """
        self._begin(self._steps)
        if self._streams is not None and self._engine.store in _STORES_WITH_CLEAN_ABORT:
            self._streams.start()
        self._prove()
        if self._streams is not None and self._engine.store not in _STORES_WITH_CLEAN_ABORT:
            self._streams.start()

    def load(self) -> frozenset[str]:
        """Let the engine register the images, prove them there, and return their image IDs in it.

        Raises DockerError, DiskFull, or ImagesMissing if the engine holds something else afterwards.
        """
        if self._streams is None:
            return frozenset()
        self._meter.stage(self._stage())
        self._proved_at = time.monotonic()
        try:
            self._finish(self._streams)
        except (DockerFailed, ImagesMissing) as err:
            if self._whole:
                raise
            self._load_whole(err)
        return frozenset(self._ids.values())

    def __enter__(self) -> "ImageLoader":
        return self

    def __exit__(self, *failure: object) -> None:
        self._stack.__exit__(*failure)  # type: ignore[arg-type]

    def _begin(self, steps: Sequence[LoadStep]) -> None:
        if steps:
            giving, ending = pace(self._engine, self._parallel)
            streams = LoadStreams(steps, self._give, giving=giving, ending=ending, cancelled=self._cancelled)
            self._streams = self._stack.enter_context(streams)

    def _prove(self) -> None:
        layers = self._to_prove()
        prove_layers(self._reader, self._index, layers, self._meter.add_bytes, self._cancelled, self._parallel)
        self._proved.update(layer.offset for layer in layers)

    def _give(self, step: LoadStep, run: StepRun) -> None:
        """Do one step. A byte counts half when the client takes it and whole when the engine is done with it."""
        given = 0

        def count(taken: int) -> None:
            nonlocal given
            before, given = given // 2, given + taken
            self._meter.add_bytes(given // 2 - before)

        stream = step.stream
        chunks = stream.chunks(self._reader, cancelled=run.cancelled, before_end=run.before_end)
        self._docker.load(chunks, stream.total_bytes, count, run.cancelled)
        self._meter.add_bytes(stream.total_bytes - given // 2)
        with self._guard:
            if not step.is_base:
                self._unproved += step.images
            if time.monotonic() - self._proved_at < _PROOF_INTERVAL_S:
                return
            self._prove_images()

    def _prove_images(self) -> None:
        """Prove the images that were given since the last time: by their identity in the engine."""
        found = {short_tag(tag): info for tag, info in self._docker.inspect([tag for _, tag in self._unproved]).items()}
        for image, tag in self._unproved:
            info = found.get(tag)
            if info is None or not is_same(image, info, self._engine.store):
                names = ", ".join(self._planned[tag].tags)
                raise ImagesMissing(f"The engine took the archive, but does not hold the image of {names}.")
            self._ids[tag] = info.id
        self._unproved = ()
        self._proved_at = time.monotonic()
        self._meter.images(self._standing + len(self._ids), self._total)

    def _finish(self, streams: LoadStreams) -> None:
        streams.open_gate()
        streams.finish()
        self._prove_images()

    def _load_whole(self, refusal: Exception) -> None:
        """Give what is still missing once more, this time with all its layers, in one stream."""
        self._whole, self._unproved = True, ()
        logger.warning("The engine refused images without the layers that it holds: {}", refusal)
        self._meter.note("The engine refused to take only what it lacks, so it is given whole images: this is slower.")
        self._steps = whole_step(self._index, self._missing())
        self._meter.expect_bytes(sum(layer.size for layer in self._to_prove()) + self.given_bytes)
        self._meter.stage("proving the other layers")
        self._prove()
        self._begin(self._steps)
        if self._streams is not None:
            self._meter.stage(self._stage())
            self._streams.start()
            self._finish(self._streams)

    def _stage(self) -> str:
        count = len(self._planned) - len(self._ids)
        streams = f"in {len(self._steps)} streams" if len(self._steps) > 1 else "in one stream"
        return f"giving the engine {count} images {streams}"

    def _missing(self) -> list[tuple[ArchiveImage, str]]:
        return [(planned.image, tag) for tag, planned in self._planned.items() if tag not in self._ids]

    def _to_prove(self) -> list[Layer]:
        layers = distinct_layers(layer for step in self._steps for layer in step.stream.layers)
        return [layer for layer in layers if layer.offset not in self._proved]
