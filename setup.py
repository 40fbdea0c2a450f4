"""Builds azaion_loader: every `.pyx` below `src` becomes one extension module.

Settings come from the environment, because PEP 517 front ends pass nothing else through:

- ``AZAION_BUILD``: ``release`` (the default: optimised, stripped, without docstrings) or ``traced``
  (line tracing on, so that coverage counts the lines of `.pyx` files).
- ``KEY_PROFILE``: a TOML file with ``hardware_salt``, ``api_salt`` and ``resource_secret``; the development
  profile of this repository where it is unset. The values are compiled in masked.
- ``AZAION_DEVKIT``: ``0`` leaves azaion_devkit and its commands out, as in the shipped image.
"""

import hashlib
import json
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


def read_key_profile(path: Path) -> dict[str, str]:
    """Return the three secrets of a profile; end the build where the file holds anything else."""
    try:
        profile = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as err:
        # A parser's message may quote the file, and build logs are kept.
        raise SystemExit(f"{path}: this key profile can't be read ({type(err).__name__})") from None
    if sorted(profile) != sorted(PROFILE_KEYS) or not all(isinstance(v, str) and v for v in profile.values()):
        raise SystemExit(f"{path}: a key profile holds exactly these texts: {', '.join(PROFILE_KEYS)}")
    return profile


def key_profile_source(profile: dict[str, str], development: bool) -> str:
    """Return Cython source with the three secrets, each under a random mask of its own length.

    They are C arrays, so that no Python object holds them, and volatile: otherwise the compiler, which sees both
    halves, may join them and put the plain secret into the code.
    """
    c_lines = ["typedef volatile unsigned char volatile_byte;"]
    declarations = ["    ctypedef unsigned char volatile_byte"]
    for key in PROFILE_KEYS:
        plain = profile[key].encode()
        mask = secrets.token_bytes(len(plain))
        masked = bytes(a ^ b for a, b in zip(plain, mask, strict=True))
        name = key.upper()
        for suffix, value in (("MASK", mask), ("MASKED", masked)):
            c_lines.append(f"static const volatile_byte {name}_{suffix}[] = {{{', '.join(map(str, value))}}};")
            declarations.append(f"    const volatile_byte *{name}_{suffix}")
        c_lines.append(f"#define {name}_BYTES {len(plain)}")
        declarations.append(f"    Py_ssize_t {name}_BYTES")
    verbatim = "\n".join(f"    {line}" for line in c_lines)
    return "\n".join(
        [
            f"cdef bint PROFILE_IS_DEVELOPMENT = {development}",
            "cdef extern from *:",
            f'    """\n{verbatim}\n    """',
            *declarations,
            "",
        ]
    )


def write_key_profile() -> None:
    """Write the profile's Cython source where `security.pyx` includes it from, and only when the profile changed.

    The masks are random, so an unconditional write would recompile the module in each build. The stamp is a salted
    hash of what the file was made from: unlike times and inodes it can't be right by chance.
    """
    profile = read_key_profile(Path(os.environ.get("KEY_PROFILE") or DEVELOPMENT_PROFILE))
    known = read_key_profile(DEVELOPMENT_PROFILE)
    # One known secret is enough to call it a development build; a copy of the file elsewhere is one, too.
    development = any(profile[key] == known[key] for key in PROFILE_KEYS)
    content = json.dumps([profile, development, Path(__file__).read_text(encoding="utf-8")], sort_keys=True).encode()
    target = GENERATED / "key_profile.pxi"
    if target.exists():
        _, _, salt, stamp = (target.read_text(encoding="ascii").partition("\n")[0].split() + [""] * 4)[:4]
        if salt and stamp == hashlib.sha256(salt.encode() + content).hexdigest():
            return
        target.unlink()
    GENERATED.mkdir(parents=True, exist_ok=True)
    target.touch(mode=0o600)
    salt = secrets.token_hex(16)
    stamp = hashlib.sha256(salt.encode() + content).hexdigest()
    target.write_text(f"# profile {salt} {stamp}\n" + key_profile_source(profile, development), encoding="ascii")


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
    # Type stubs come along by themselves unless they are excluded; they hold the compiled modules' docstrings.
    exclude_package_data={"": ["*.pyx", "*.pxd", "*.c"] + ([] if devkit else ["*.pyi", "py.typed"])},
    include_package_data=False,
    install_requires=read_requirements(),
    entry_points={"console_scripts": scripts},
    ext_modules=compiled(os.environ.get("AZAION_BUILD", "release") == "traced"),
)
