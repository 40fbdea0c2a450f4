"""The key profile: another one gives other keys, and its secrets can't be found in the compiled modules."""

import base64
import hashlib
import os
import secrets
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NAMES = ("hardware_salt", "api_salt", "resource_secret")
# The least that the build takes: without the other modules it lasts seconds.
NEEDED = ("secret_key", "cbc", "security")

pytestmark = pytest.mark.skipif(not (ROOT / "setup.py").exists(), reason="needs the source tree and a compiler")


def build(tree: Path, profile: Path | None) -> subprocess.CompletedProcess[str]:
    environment = {key: os.environ[key] for key in ("PATH", "HOME") if key in os.environ}
    environment["AZAION_DEVKIT"] = "0"
    if profile is not None:
        environment["KEY_PROFILE"] = str(profile)
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    return subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, timeout=110, check=False)


def keys_of(tree: Path) -> list[str]:
    code = (
        "from azaion_loader import security as s;"
        "print(s.is_development_profile(), s.hardware_hash('h'), s.download_key_string('e', 'p', 'h'),"
        " s.resource_key_string())"
    )
    command = [sys.executable, "-c", code]
    environment = {"PYTHONPATH": str(tree / "src")}
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, timeout=30, check=True)
    return done.stdout.split()


def independent_h(text: str) -> str:
    return base64.b64encode(hashlib.sha384(text.encode()).digest()).decode()


def write_profile(path: Path, values: dict[str, str]) -> Path:
    path.write_text("".join(f'{name} = "{value}"\n' for name, value in values.items()))
    return path


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy what the build of `security` needs."""
    copy = tmp_path_factory.mktemp("source")
    for name in ("setup.py", "pyproject.toml", "requirements.txt", "key_profiles/development.toml"):
        (copy / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, copy / name)
    package = copy / "src" / "azaion_loader"
    package.mkdir(parents=True)
    source = ROOT / "src" / "azaion_loader"
    files = [source / "__init__.py", source / "errors.py"]
    files += [source / f"{name}.{suffix}" for name in NEEDED for suffix in ("pyx", "pxd")]
    for file in files:
        shutil.copy(file, package)
    return copy


@pytest.fixture(scope="module")
def profile(tree: Path) -> dict[str, str]:
    """Build with random secrets of 32 bytes, and give them."""
    values = {name: secrets.token_urlsafe(24) for name in NAMES}
    assert all(len(value) == 32 for value in values.values())
    done = build(tree, write_profile(tree / "release.toml", values))
    assert done.returncode == 0, done.stderr
    return values


def test_another_profile_gives_its_own_keys(tree: Path, profile: dict[str, str]) -> None:
    hardware_hash = independent_h(f"Azaion_h_{profile['hardware_salt']}")
    download = independent_h(f"e-p-{hardware_hash}-{profile['api_salt']}")
    assert keys_of(tree) == ["False", hardware_hash, download, independent_h(profile["resource_secret"])]


def test_no_secret_is_found_in_the_binaries(tree: Path, profile: dict[str, str]) -> None:
    binaries = list((tree / "src").rglob("*.so"))
    assert len(binaries) == len(NEEDED)
    for binary in binaries:
        content = binary.read_bytes()
        assert f"PyInit_{binary.name.split('.')[0]}".encode() in content  # the search does find what is there
        for name, value in profile.items():
            plain = value.encode()
            forms = {plain, plain[::-1], base64.b64encode(plain), base64.urlsafe_b64encode(plain), plain.hex().encode()}
            # 8 bytes are as good as the whole, should a compiler have cut it into registers.
            forms |= {plain[start : start + 8] for start in range(0, 32, 8)}
            forms |= {form.upper() for form in forms} | {form[::-1] for form in forms}
            assert not [form for form in forms if form.rstrip(b"=") in content], f"{name} shows in {binary.name}"


def test_the_generated_source_is_private_and_steady(tree: Path, profile: dict[str, str]) -> None:
    generated = tree / "build" / "generated" / "key_profile.pxi"
    before = generated.read_bytes()
    assert generated.stat().st_mode & 0o077 == 0
    assert not [name for name in NAMES if profile[name].encode() in before]
    assert build(tree, tree / "release.toml").returncode == 0
    assert generated.read_bytes() == before


@pytest.mark.parametrize(
    "content",
    [
        'hardware_salt = "visible-secret"\n',
        'hardware_salt = "visible-secret"\napi_salt = ""\nresource_secret = "x"\n',
        'hardware_salt = "visible-secret"\napi_salt = 7\nresource_secret = "x"\n',
        'hardware_salt = "visible-secret"\napi_salt = "a"\nresource_secret = "x"\nmore = "y"\n',
        'hardware_salt = "visible-secret\n',
    ],
)
def test_an_unusable_profile_ends_the_build_without_showing_it(tree: Path, tmp_path: Path, content: str) -> None:
    bad = tmp_path / "bad.toml"
    bad.write_text(content)
    done = build(tree, bad)
    assert done.returncode != 0
    assert "bad.toml" in done.stderr
    assert "visible-secret" not in done.stdout + done.stderr


def test_one_known_secret_makes_a_development_profile(tree: Path, profile: dict[str, str], tmp_path: Path) -> None:
    other = shutil.copytree(tree, tmp_path / "source")
    mixed = write_profile(tmp_path / "mixed.toml", {**profile, "api_salt": "dev-api-salt"})
    assert build(other, mixed).returncode == 0
    assert keys_of(other)[0] == "True"
