"""Installs the Debian packages of a Docker engine, and says what it does; elsewhere says what is missing."""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

INSTALL_TIMEOUT_S = 900.0

ENGINE_PACKAGES = ("docker.io", "containerd", "runc", "iptables")
# From Debian 13 on the client is a package of its own.
CLIENT_PACKAGES = {"12": ("docker.io",)}
CLIENT_PACKAGES_LATER = ("docker-cli",)


class EngineMissing(Exception):
    """No engine can be had here; the message says what is missing and how to get it."""


def ensure_client() -> None:
    """Install the client `docker` where it is missing. Raises EngineMissing where that can't be done."""
    if shutil.which("docker") is None:
        packages = CLIENT_PACKAGES.get(_debian_version() or "", CLIENT_PACKAGES_LATER)
        install(packages, "The Docker client `docker` is not on PATH")


def ensure_engine() -> None:
    """Install `dockerd` where it is missing. Raises EngineMissing where that can't be done or there is no root."""
    require_root("No Docker engine answers, and a private one")
    if shutil.which("dockerd") is None:
        install(ENGINE_PACKAGES, "No Docker engine answers, and `dockerd` is not installed")


def require_root(what: str) -> None:
    """Raise EngineMissing, with what to do, where this is not root."""
    if os.geteuid() != 0:
        raise EngineMissing(
            f"{what} needs root: start Docker (systemctl start docker), set DOCKER_HOST to one that this user may use "
            "(its group is usually `docker`), or run this as root on Debian"
        )


def install(packages: Sequence[str], reason: str) -> None:
    """Install Debian packages. Raises EngineMissing, with `reason` and what to do, where that can't be done."""
    names = " ".join(packages)
    if _debian_version() is None or shutil.which("apt-get") is None:
        raise EngineMissing(f"{reason}, and this system is not Debian: install Docker Engine, then try again")
    if os.geteuid() != 0:
        raise EngineMissing(f"{reason}: run `apt-get install {names}` as root, then try again")
    print(f"{reason}: installing {names}", file=sys.stderr)
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends", *packages]):
        try:
            subprocess.run(
                ["apt-get", *command],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                timeout=INSTALL_TIMEOUT_S,
                check=True,
            )
        except (OSError, subprocess.SubprocessError) as error:
            raise EngineMissing(f"{reason}, and `apt-get {' '.join(command)}` failed: {error}") from error


def _debian_version() -> str | None:
    try:
        lines = Path("/etc/os-release").read_text().splitlines()
    except OSError:
        return None
    values = dict(line.split("=", 1) for line in lines if "=" in line)
    return values.get("VERSION_ID", "").strip('"') if values.get("ID", "").strip('"') == "debian" else None
