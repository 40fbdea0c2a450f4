"""Compares the `.pyi` of every compiled module with the module itself (mypy's stubtest).

What Cython adds to a module is allowed for by name; everything else that differs is an error.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

SOURCE = Path(__file__).parent.parent / "src" / "azaion_loader"
ADDED_BY_CYTHON = (
    r".*\.__test__",
    r".*\.__reduce_cython__",
    r".*\.__setstate_cython__",
    r".*\.__pyx_capi__",
    # Part of the type from Python 3.12 on.
    r".*\.__buffer__",
)


def main() -> int:
    """Run stubtest over all compiled modules and return its exit code."""
    modules = sorted(f"azaion_loader.{path.stem}" for path in SOURCE.glob("*.pyx"))
    without_stub = [name for name in modules if not (SOURCE / f"{name.split('.')[1]}.pyi").exists()]
    if without_stub:
        print(f"compiled modules without a .pyi: {', '.join(without_stub)}", file=sys.stderr)
        return 1
    with tempfile.NamedTemporaryFile("w", suffix=".allow") as allowed:
        allowed.write("\n".join(ADDED_BY_CYTHON))
        allowed.flush()
        command = ["-m", "mypy.stubtest", "--ignore-unused-allowlist", "--allowlist", allowed.name, *modules]
        return subprocess.run([sys.executable, *command], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
