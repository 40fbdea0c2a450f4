"""Gives the engine the images that it lacks: proved first, then streamed, then proved again by their identity.

The engine gets tars that are composed on the way (`load_plan`), each image under its staging tag, without a file
between the encrypted archive and the engine's standard input.
"""

from collections.abc import Callable

from azaion_loader.archive import prove_layers
from azaion_loader.archive_model import ArchiveIndex, Layer, Reader, distinct_layers
from azaion_loader.docker_answers import EngineInfo
from azaion_loader.docker_cli import DockerCli
from azaion_loader.errors import ImagesMissing
from azaion_loader.load_plan import LoadStream, compose_docker_tar, held_layers
from azaion_loader.progress import ProgressMeter
from azaion_loader.required_images import short_tag
from azaion_loader.unlock_plan import PlannedImage, UnlockPlan, is_same

# Only the classic store skips the files of layers that it holds; see docs/engines.md.
_STORES_WITH_DELTAS = frozenset({"classic"})


class ImageLoader:
    """Loads the images of one archive into one engine.

    `threads` workers hash layers. `cancelled` raises Interrupted when the loader is stopping.
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
        threads: int,
    ) -> None:
        self._docker = docker
        self._engine = engine
        self._index = index
        self._reader = reader
        self._meter = meter
        self._cancelled = cancelled
        self._threads = threads
        self._plan: UnlockPlan | None = None
        self._missing: tuple[PlannedImage, ...] = ()
        self._stream: LoadStream | None = None
        self._layers: frozenset[str] = frozenset()

    @property
    def given_bytes(self) -> int:
        """The length of what the engine will be given; known after `prepare`."""
        return self._stream.total_bytes if self._stream is not None else 0

    def prepare(self, plan: UnlockPlan, engine_chains: list[tuple[str, ...]]) -> None:
        """Decide what to give; `engine_chains` are the layers of the engine's images, base first."""
        self._missing = plan.to_load
        if not self._missing:
            return
        self._layers = self._layers_to_give(engine_chains)
        self._stream = compose_docker_tar(
            self._index, [(planned.image, planned.staged) for planned in self._missing], self._layers
        )
        self._meter.expect_bytes(sum(layer.size for layer in self._to_prove()) + self._stream.total_bytes)

    def prove(self) -> None:
        """Hash every layer that will be given. Raises ArchiveInvalid."""
        prove_layers(self._reader, self._index, self._to_prove(), self._meter.add_bytes, self._cancelled, self._threads)

    def load(self) -> frozenset[str]:
        """Give the images to the engine, prove them there, and return their image IDs in it.

        Raises DockerError, DiskFull, or ImagesMissing if the engine holds something else afterwards.
        """
        if self._stream is None:
            return frozenset()
        self._meter.stage(f"giving the engine {len(self._missing)} images")
        self._docker.load(
            self._stream.chunks(self._reader, cancelled=self._cancelled),
            self._stream.total_bytes,
            self._meter.add_bytes,
            self._cancelled,
        )
        self._meter.stage("proving the images in the engine")
        found = {short_tag(tag): info for tag, info in self._docker.inspect([p.staged for p in self._missing]).items()}
        for planned in self._missing:
            info = found.get(planned.staged)
            if info is None or not is_same(planned.image, info, self._engine.store):
                raise ImagesMissing(
                    f"The engine took the archive, but does not hold the image of {', '.join(planned.tags)}."
                )
        return frozenset(info.id for info in found.values())

    def _layers_to_give(self, engine_chains: list[tuple[str, ...]]) -> frozenset[str]:
        layers: set[str] = set()
        for planned in self._missing:
            diff_ids = planned.image.diff_ids
            deltas = self._engine.store in _STORES_WITH_DELTAS
            layers.update(diff_ids[held_layers(diff_ids, engine_chains) if deltas else 0 :])
        return frozenset(layers)

    def _to_prove(self) -> list[Layer]:
        return [
            layer
            for layer in distinct_layers(layer for planned in self._missing for layer in planned.image.layers)
            if layer.diff_id in self._layers
        ]
