"""A tree of another Debian version, to run that version's engine in.

An engine moves the root of its helpers (pivot_root), so the tree has to be a mount point. The mounts stay when the
engine stops: taking away recursive binds of /proc, /sys and /dev may take the machine's own with them.
"""

import shutil
import subprocess
from pathlib import Path

from azaion_devkit.engine_install import install

PACKAGES = ("docker.io", "docker-cli", "iptables", "ca-certificates")
BOOTSTRAP_TIMEOUT_S = 1800.0
MOUNT_TIMEOUT_S = 30.0


def prepare_tree(tree: Path, engine_directory: Path, log: Path, suite: str = "trixie") -> tuple[str, ...]:
    """Make the tree if it is not complete, mount what an engine needs, return the words to put before its command.

    Raises EngineMissing, OSError or subprocess.SubprocessError.
    """
    complete = tree / ".complete"
    if not complete.exists():
        _bootstrap(tree, log, suite)
        complete.touch()
    _mount("--bind", tree, tree)
    for name in ("proc", "sys", "dev"):
        _mount("--rbind", Path("/") / name, tree / name)
    engine_directory.mkdir(parents=True, exist_ok=True)
    inside = tree / engine_directory.relative_to("/")
    inside.mkdir(parents=True, exist_ok=True)
    _mount("--bind", engine_directory, inside)
    return ("chroot", str(tree))


def _bootstrap(tree: Path, log: Path, suite: str) -> None:
    if shutil.which("debootstrap") is None:
        install(("debootstrap",), "An engine of another Debian version needs debootstrap")
    shutil.rmtree(tree, ignore_errors=True)
    tree.mkdir(parents=True)
    with log.open("wb") as file:
        subprocess.run(
            ["debootstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}", suite, tree],
            stdout=file,
            stderr=file,
            timeout=BOOTSTRAP_TIMEOUT_S,
            check=True,
        )


def _mount(kind: str, source: Path, target: Path) -> None:
    if not target.is_mount() and str(target) not in _mount_points():
        subprocess.run(["mount", kind, source, target], timeout=MOUNT_TIMEOUT_S, check=True)


def _mount_points() -> set[str]:
    # A bind of a directory on the same file system does not show in its device number, so is_mount misses it.
    return {line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()}
