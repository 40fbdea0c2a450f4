"""Builds azaion_loader: every `.pyx` below `src` becomes one extension module.

Settings come from the environment, because PEP 517 front ends pass nothing else through:

- ``AZAION_BUILD``: ``release`` (the default: optimised, stripped, without docstrings) or ``traced``
  (line tracing on, so that coverage counts the lines of `.pyx` files).
- ``KEY_PROFILE``: a TOML file with ``hardware_salt``, ``api_salt`` and ``resource_secret``; the development
  profile of this repository where it is unset. The values are compiled in masked.
- ``AZAION_DEVKIT``: ``0`` leaves azaion_devkit and its commands out, as in the shipped image.
"""

import os
import secrets
import tomllib
from pathlib import Path

from Cython.Build import cythonize
from Cython.Compiler import Options
from setuptools import Extension, setup

ROOT = Path(__file__).parent
SOURCE = ROOT / "src"
GENERATED = ROOT / "build" / "generated"
DEVELOPMENT_PROFILE = ROOT / "key_profiles" / "development.toml"
PROFILE_KEYS = ("hardware_salt", "api_salt", "resource_secret")


def read_requirements() -> list[str]:
    """Return the pinned requirements, without comments."""
    lines = (line.split("#")[0].strip() for line in (ROOT / "requirements.txt").read_text().splitlines())
    return [line for line in lines if line]


def key_profile_source(path: Path) -> str:
    """Return Cython source with the three secrets of the profile, each under a random mask of its own length."""
    profile = tomllib.loads(path.read_text(encoding="utf-8"))
    if sorted(profile) != sorted(PROFILE_KEYS) or not all(isinstance(v, str) and v for v in profile.values()):
        raise SystemExit(f"{path}: a key profile holds exactly these texts: {', '.join(PROFILE_KEYS)}")
    lines = [f"cdef bint PROFILE_IS_DEVELOPMENT = {path.resolve() == DEVELOPMENT_PROFILE.resolve()}"]
    for key in PROFILE_KEYS:
        plain = profile[key].encode()
        mask = secrets.token_bytes(len(plain))
        masked = bytes(a ^ b for a, b in zip(plain, mask, strict=True))
        for name, value in (("MASK", mask), ("MASKED", masked)):
            literal = "".join(f"\\x{byte:02x}" for byte in value)
            lines.append(f'cdef bytes {key.upper()}_{name} = b"{literal}"')
    return "\n".join(lines) + "\n"


def write_key_profile() -> Path:
    """Write the profile's Cython source where `security.pyx` includes it from, and only when the profile changed.

    The masks are random, so an unconditional write would recompile the module in each build.
    """
    profile = Path(os.environ.get("KEY_PROFILE") or DEVELOPMENT_PROFILE)
    target = GENERATED / "key_profile.pxi"
    newest = max(profile.stat().st_mtime, Path(__file__).stat().st_mtime)
    # A comment names neither path nor content: the file is part of the build of a release, too.
    stamp = f"# profile {profile.stat().st_ino}-{profile.stat().st_size}\n"
    if target.exists() and target.stat().st_mtime > newest and target.read_text().startswith(stamp):
        return target
    GENERATED.mkdir(parents=True, exist_ok=True)
    target.touch(mode=0o600)
    target.write_text(stamp + key_profile_source(profile))
    return target


def extensions(traced: bool) -> list[Extension]:
    """Return one extension for each `.pyx`, with the flags of the build."""
    macros = [("CYTHON_TRACE_NOGIL", "1")] if traced else [("CYTHON_CLINE_IN_TRACEBACK", "0")]
    return [
        Extension(
            ".".join(path.relative_to(SOURCE).with_suffix("").parts),
            [str(path.relative_to(ROOT))],
            define_macros=macros,
            extra_compile_args=["-O0"] if traced else ["-O2", "-g0"],
            extra_link_args=[] if traced else ["-s"],
            depends=[str(GENERATED / "key_profile.pxi")] if path.stem == "security" else [],
        )
        for path in sorted((SOURCE / "azaion_loader").glob("*.pyx"))
    ]


def compiled(traced: bool) -> list[Extension]:
    """Cythonize the modules; generated C goes beside the sources only where coverage needs to find it."""
    write_key_profile()
    Options.docstrings = traced
    return cythonize(
        extensions(traced),
        include_path=[str(GENERATED), str(SOURCE)],
        build_dir=None if traced else "build/cython",
        emit_linenums=False,
        compiler_directives={
            "language_level": 3,
            "binding": True,
            "nonecheck": True,
            "auto_pickle": False,
            "embedsignature": False,
            "linetrace": traced,
        },
    )


devkit = os.environ.get("AZAION_DEVKIT", "1") != "0"
packages = ["azaion_loader", "azaion_devkit"] if devkit else ["azaion_loader"]
scripts = ["azaion-loader = azaion_loader.cli:main"]
if devkit:
    scripts.append("azaion-pack = azaion_devkit.pack:main")

setup(
    package_dir={"": "src"},
    packages=packages,
    package_data={"azaion_loader": ["py.typed", "*.pyi"] if devkit else []},
    exclude_package_data={"": ["*.pyx", "*.pxd", "*.c"]},
    include_package_data=False,
    install_requires=read_requirements(),
    entry_points={"console_scripts": scripts},
    ext_modules=compiled(os.environ.get("AZAION_BUILD", "release") == "traced"),
)
