from typing import final

from azaion_loader.loaded_resource import LoadedResource
from azaion_loader.part_cache import PartCache
from azaion_loader.part_source import PartSources
from azaion_loader.publication import Publication

__all__ = ["Resources"]

@final
class Resources:
    upload_max_bytes: int
    def __init__(
        self,
        sources: PartSources,
        cache: PartCache,
        *,
        require_part_mac: bool,
        upload_max_bytes: int,
        reread_pause_s: float = 1.0,
    ) -> None: ...
    def load(self, folder: str, name: str) -> LoadedResource: ...
    def publish(self, name: str, *, folder: str | None = None, expected_bytes: int = 0) -> Publication: ...
