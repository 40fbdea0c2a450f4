"""The states of an unlock run, as clients see them."""

from enum import StrEnum


class UnlockState(StrEnum):
    """One word for where the run stands; the order of the members is the order of a successful run."""

    IDLE = "idle"
    AUTHENTICATING = "authenticating"
    DOWNLOADING_KEY = "downloading_key"
    DECRYPTING = "decrypting"
    LOADING_IMAGES = "loading_images"
    READY = "ready"
    ERROR = "error"

    @property
    def in_progress(self) -> bool:
        """Whether a run is under way in this state."""
        return self not in _AT_REST


_AT_REST = frozenset({UnlockState.IDLE, UnlockState.READY, UnlockState.ERROR})
