from pathlib import Path
from typing import NamedTuple, final

UNKNOWN: str

class HardwareParts(NamedTuple):
    """The four parts of the hardware string; a missing one is `unknown`."""

    cpu: str
    gpu: str
    memory: str
    drive_serial: str

@final
class HardwareService:
    """The machine's identity, read once; safe to share between threads."""

    def __init__(self, root: Path = ..., override_file: Path | None = None) -> None:
        """`root` stands for `/` (tests give a sample tree); `override_file` holds the string to use instead."""
    def hardware_string(self) -> str:
        """Return `CPU: … GPU: … Memory: … DriveSerial: …`, or the line in the override file.

        Raises MisconfiguredDevice where the override file can't be read or doesn't hold exactly one line.
        """
    def parts(self) -> HardwareParts:
        """Return what the machine itself says, whatever the override file holds."""
