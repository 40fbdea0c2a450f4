"""What callers of a transfer set and see: its bounds, the sink of its bytes, the pauses between its tries."""

import random
from dataclasses import dataclass
from typing import Protocol

from azaion_loader.store_answers import ObjectInfo

BACKOFF_S = 0.2


class PrefixSink(Protocol):
    """Sees the bytes of the object in order, from byte 0, all in the calling thread.

    `reset` may come at any time: the object changed, and the bytes begin again. `prove` comes once, after the last
    byte; if it raises, the part file is removed and nothing lands at the target.
    """

    def reset(self) -> None:
        """Forget everything."""

    def update(self, chunk: memoryview) -> None:
        """Take the next bytes; the buffer is used again after the return."""

    def prove(self, info: ObjectInfo) -> None:
        """Accept the whole, or raise a LoaderError."""


@dataclass(frozen=True, slots=True)
class TransferLimits:
    """The bounds of a transfer; `stall_min_bytes` is what each connection must bring in each `stall_timeout_s`."""

    stall_timeout_s: float = 30.0
    stall_min_bytes: int = 16 * 1024
    part_bytes: int = 16 << 20
    connections: int = 4
    tries: int = 4


def backoff_s(failures: int) -> float:
    """Return the pause before another try: doubling, with jitter so that many devices don't come back at once."""
    return BACKOFF_S * (1 << min(failures - 1, 4)) * random.uniform(0.5, 1.0)  # noqa: S311 - no secret
