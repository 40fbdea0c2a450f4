"""The device's own credentials: `/etc/azaion/device.conf`.

The file is that of a systemd `EnvironmentFile`: lines `NAME=value`, of which two matter, `AZAION_DEVICE_EMAIL` and
`AZAION_DEVICE_PASSWORD`. A value may stand in single or double quotes, `export` in front of a name is tolerated, blank
lines and lines that start with `#` or `;` are skipped. A `#` inside an unquoted value belongs to it: passwords hold
such characters.

The file holds a password, so one that others can read is refused. Its group may read it: that is how a service that is
not root gets at it (`root:<service's group>`, mode 0640). Nobody but its owner may write it.
"""

import os
import re
import stat
from pathlib import Path

from azaion_loader.credentials import Credentials
from azaion_loader.errors import NotAuthenticated

_MAX_BYTES = 64 * 1024
_LINE = re.compile(r"(?:export\s+)?(AZAION_DEVICE_EMAIL|AZAION_DEVICE_PASSWORD)\s*=(.*)")
_QUOTED = re.compile(r"""(["'])(.*)\1\s*(?:#.*)?""")
_FORBIDDEN_MODE = stat.S_IRWXO | stat.S_IWGRP


def read_device_credentials(path: Path) -> Credentials | None:
    """Return the credentials of the file; None where there is no file, or neither line in it.

    Raises NotAuthenticated, with a sentence that says what to do, when the file can't be used.
    """
    try:
        # Non-blocking: a FIFO under this name must not stop the service.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as err:
        raise NotAuthenticated(f"Nobody has logged in, and {path} can't be read: {err.strerror}.") from err
    try:
        data = _read_private(descriptor, path)
    except OSError as err:
        raise NotAuthenticated(f"Nobody has logged in, and {path} can't be read: {err.strerror}.") from err
    finally:
        os.close(descriptor)
    return parse_device_conf(data, str(path))


def _read_private(descriptor: int, path: Path) -> bytes:
    """Return what the open file holds, at most one byte more than is allowed. Raises NotAuthenticated, OSError."""
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        raise NotAuthenticated(f"Nobody has logged in, and {path} is not a regular file.")
    if status.st_mode & _FORBIDDEN_MODE:
        raise NotAuthenticated(
            f"Nobody has logged in, and {path} is refused: its mode is {stat.S_IMODE(status.st_mode):04o}, so that "
            "others may read or change it; set 0600, or 0640 with the service's group."
        )
    return os.read(descriptor, _MAX_BYTES + 1)


def parse_device_conf(data: bytes, name: str) -> Credentials | None:
    """Return the credentials in the file's bytes; None where it has neither line. The last line of a name counts.

    Raises NotAuthenticated when it is too long, not UTF-8, or has but one of the two.
    """
    if len(data) > _MAX_BYTES:
        raise NotAuthenticated(f"Nobody has logged in, and {name} is longer than {_MAX_BYTES} bytes.")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as err:
        raise NotAuthenticated(f"Nobody has logged in, and {name} is not UTF-8 text.") from err
    values: dict[str, str] = {}
    for line in re.split(r"\r\n|\n", text):
        if found := _LINE.fullmatch(line.strip()):
            values[found[1]] = _value(found[2])
    email = values.get("AZAION_DEVICE_EMAIL", "")
    password = values.get("AZAION_DEVICE_PASSWORD", "")
    if not email and not password:
        return None
    if not email or not password:
        missing = "AZAION_DEVICE_PASSWORD" if email else "AZAION_DEVICE_EMAIL"
        raise NotAuthenticated(f"Nobody has logged in, and {name} has no {missing}.")
    return Credentials(email, password)


def _value(text: str) -> str:
    text = text.strip()
    quoted = _QUOTED.fullmatch(text)
    return quoted[2] if quoted else text
