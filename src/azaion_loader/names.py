"""The rule for names of resources and their folders.

Names become path segments of the Resource API, keys and buckets of the object store and files of the cache, so
the rule is one white list for all of them.
"""

import re

from azaion_loader.errors import InvalidName

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", re.ASCII)
# Route words of the Resource API: an upload to /resources/get would call another operation.
_RESERVED_FOLDERS = frozenset({"get", "list", "check", "clear", "publish"})


def check_filename(name: str) -> None:
    """Raise InvalidName unless `name` can name a resource."""
    if not _NAME.fullmatch(name) or ".." in name:
        raise InvalidName(
            "A file name is 1 to 128 letters, digits, dots, hyphens or underscores, starts with a letter or digit "
            "and holds no '..'."
        )


def check_folder(name: str) -> None:
    """Raise InvalidName unless `name` can name a folder of resources."""
    if not _NAME.fullmatch(name) or ".." in name:
        raise InvalidName(
            "A folder name is 1 to 128 letters, digits, dots, hyphens or underscores, starts with a letter or digit "
            "and holds no '..'."
        )
    if name.lower() in _RESERVED_FOLDERS or name.lower().startswith("get-"):
        raise InvalidName(f"The folder name '{name}' is a route word of the Resource API; choose another.")
