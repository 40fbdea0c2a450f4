"""A copy of the loader with one deliberate fault, to show that a suite notices it."""

import os
import shutil
from pathlib import Path

import azaion_loader


def mutant(folder: Path, module: str, text: str, replacement: str) -> dict[str, str]:
    """Copy the package into `folder` with `text` of `module` replaced, and return the environment that selects it.

    Raises ValueError unless the text stands in the module exactly once: a mutation that changes nothing proves nothing.
    """
    package = Path(str(azaion_loader.__file__)).parent
    copy = folder / "mutant" / "azaion_loader"
    shutil.copytree(package, copy, ignore=shutil.ignore_patterns("*.c", "*.pyx", "__pycache__"))
    path = copy / f"{module}.py"
    source = path.read_text()
    if source.count(text) != 1:
        raise ValueError(f"{module}.py holds {text!r} {source.count(text)} times")
    path.write_text(source.replace(text, replacement))
    return {"PYTHONPATH": os.pathsep.join([str(copy.parent), os.environ.get("PYTHONPATH", "")])}
