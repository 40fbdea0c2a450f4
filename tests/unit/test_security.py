"""Keys against the contract's vectors and an independent maker; secrets that leave nothing behind."""

import base64
import copy
import ctypes
import hashlib
import hmac
import json
import pickle
import secrets
import shutil
import subprocess
from pathlib import Path

import pytest

from azaion_loader import security
from azaion_loader.errors import IntegrityError, InvalidRequest, WrongKey
from azaion_loader.security import PartMac, SecretKey

VECTORS: dict[str, str] = json.loads((Path(__file__).parents[1] / "vectors" / "keys.json").read_text())
PROFILE: dict[str, str] = VECTORS["profile"]  # type: ignore[assignment]
IV = bytes.fromhex(VECTORS["iv"])
ACCOUNT = (VECTORS["email"], VECTORS["password"], VECTORS["hardware"])


def independent_h(text: str) -> str:
    return base64.b64encode(hashlib.sha384(text.encode()).digest()).decode()


def test_the_tests_run_with_the_development_profile() -> None:
    assert security.is_development_profile() is True


def test_hardware_hash() -> None:
    assert security.hardware_hash(VECTORS["hardware"]) == VECTORS["hardware_hash"]


def test_download_key() -> None:
    assert security.download_key_string(*ACCOUNT) == VECTORS["download_key_string"]
    assert security.download_key(*ACCOUNT).reveal().hex() == VECTORS["download_key"]


def test_resource_key() -> None:
    assert security.resource_key_string() == VECTORS["resource_key_string"]
    assert security.resource_key().reveal().hex() == VECTORS["resource_key"]


def test_resource_mac_key() -> None:
    assert security.resource_mac_key().reveal().hex() == VECTORS["resource_mac_key"]


def test_archive_key() -> None:
    assert security.archive_key(VECTORS["key_fragment"].encode()).reveal().hex() == VECTORS["archive_key"]


def test_an_empty_fragment_is_no_key() -> None:
    with pytest.raises(WrongKey):
        security.archive_key(b"")


def test_ciphertexts() -> None:
    archive_key = security.archive_key(VECTORS["key_fragment"].encode())
    ciphertext = security.encrypt(VECTORS["plaintext"].encode(), security.resource_key(), IV)
    assert ciphertext.hex() == VECTORS["ciphertext"]
    assert hashlib.sha256(ciphertext[: int(VECTORS["small_part_bytes"])]).hexdigest() == VECTORS["head_sha256"]
    assert security.encrypt(b"", archive_key, IV).hex() == VECTORS["empty_ciphertext"]
    assert security.decrypt(bytes.fromhex(VECTORS["empty_ciphertext"]), archive_key) == b""


@pytest.mark.parametrize("piece", [1, 7, 32])
def test_part_mac(piece: int) -> None:
    data = bytes.fromhex(VECTORS["ciphertext"])
    mac = PartMac(VECTORS["folder"], VECTORS["name"])
    for start in range(0, len(data), piece):
        mac.update(data[start : start + piece])
    assert mac.hexdigest() == VECTORS["part_mac"]
    mac.verify(VECTORS["part_mac"])
    mac.verify(VECTORS["part_mac"].upper())


@pytest.mark.parametrize(
    "wrong", ["", "0" * 64, VECTORS["part_mac"][:-1], VECTORS["part_mac"] + "0", "é" * 64, "\ud800"]
)
def test_part_mac_refuses_any_other_text(wrong: str) -> None:
    mac = PartMac(VECTORS["folder"], VECTORS["name"])
    mac.update(bytes.fromhex(VECTORS["ciphertext"]))
    with pytest.raises(IntegrityError):
        mac.verify(wrong)


def test_part_mac_is_bound_to_folder_and_name() -> None:
    macs = {PartMac(folder, name).hexdigest() for folder, name in (("a", "b"), ("b", "a"), ("ab", ""), ("", "ab"))}
    assert len(macs) == 4


def test_keys_by_an_independent_maker() -> None:
    email, password, hardware = "Jürgen@example.com", "pass-wörd-ß", "CPU: X. GPU: ü. Memory: 1. DriveSerial: 2"
    hardware_hash = independent_h(f"Azaion_{hardware}_{PROFILE['hardware_salt']}")
    key_string = independent_h(f"{email}-{password}-{hardware_hash}-{PROFILE['api_salt']}")
    resource_key = hashlib.sha256(independent_h(PROFILE["resource_secret"]).encode()).digest()
    assert security.hardware_hash(hardware) == hardware_hash
    assert security.download_key_string(email, password, hardware) == key_string
    assert security.download_key(email, password, hardware).reveal() == hashlib.sha256(key_string.encode()).digest()
    assert security.resource_key().reveal() == resource_key
    mac_key = hmac.digest(resource_key, b"azaion-resource-mac-v1", "sha256")
    data = secrets.token_bytes(100)
    mac = PartMac("models", "x.bin")
    mac.update(data)
    expected = hmac.new(mac_key, b"azaion-resource-v1\0models\0x.bin\0" + data, "sha256")
    assert mac.hexdigest() == expected.hexdigest()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the openssl command")
@pytest.mark.parametrize("length", [0, 1, 15, 16, 17, 70_000])
def test_ciphers_agree_with_openssl(length: int) -> None:
    key = security.resource_key()
    plain = secrets.token_bytes(length)
    command = ["openssl", "enc", "-aes-256-cbc", "-K", VECTORS["resource_key"], "-iv", IV.hex()]
    made = subprocess.run(command, input=plain, capture_output=True, check=True, timeout=30).stdout
    assert security.encrypt(plain, key, IV) == IV + made
    assert security.decrypt(IV + made, key) == plain
    ours = security.encrypt(plain, key)
    command[-1] = ours[:16].hex()
    opened = subprocess.run([*command, "-d"], input=ours[16:], capture_output=True, check=True, timeout=30).stdout
    assert opened == plain


def test_repeated_derivation_gives_the_same_keys() -> None:
    # Intermediate bytes are wiped in place; a shared object among them would show in the second result.
    for _ in range(3):
        assert security.download_key(*ACCOUNT).reveal().hex() == VECTORS["download_key"]
        assert security.download_key("e", "p", "h") == security.download_key("e", "p", "h")
        assert security.download_key("", "", "").reveal()
    assert bytes([112]).decode() == "p"


@pytest.mark.parametrize("place", range(3))
def test_half_a_surrogate_is_refused_without_its_text(place: int) -> None:
    texts = ["user@example.com", "password1", "hardware"]
    texts[place] += "\ud800"
    with pytest.raises(InvalidRequest) as caught:
        security.download_key(*texts)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__
    assert "password1" not in str(caught.value)


class Window:
    """Looks at memory by its address; its own buffer is there before, so that looking allocates nothing."""

    def __init__(self, address: int, length: int) -> None:
        self._address = address
        self._copy = (ctypes.c_char * length)()

    def look(self) -> bytes:
        ctypes.memmove(self._copy, self._address, len(self._copy))
        return self._copy.raw


def pieces(secret: bytes) -> list[bytes]:
    return [secret[start : start + 4] for start in range(len(secret) - 3)]


@pytest.mark.parametrize("length", [32, 64, 200])
def test_a_key_is_wiped_when_its_owner_goes(length: int) -> None:
    data = secrets.token_bytes(length)
    key = SecretKey(data)
    window = Window(key._address, length)
    assert window.look() == data
    del key
    # The allocator may write its own pointers there, so nothing is said about what stands there now.
    after = window.look()
    assert not [piece for piece in pieces(data) if piece in after]


def test_a_derived_key_is_wiped_when_its_owner_goes() -> None:
    key = security.download_key(*ACCOUNT)
    window = Window(key._address, 32)
    before = window.look()
    assert before.hex() == VECTORS["download_key"]
    del key
    after = window.look()
    assert not [piece for piece in pieces(before) if piece in after]


def test_a_key_outlives_its_views() -> None:
    view = memoryview(SecretKey(b"k" * 32))
    assert bytes(view) == b"k" * 32
    assert view.readonly


def test_a_key_keeps_its_own_copy() -> None:
    data = bytearray(b"k" * 32)
    key = SecretKey(data)
    data[:] = bytes(32)
    assert key.reveal() == b"k" * 32
    assert len(key) == 32


def test_a_key_is_not_shown() -> None:
    shown = f"{SecretKey(b'visible-secret')!r} {SecretKey(b'visible-secret')}"
    assert "visible" not in shown
    assert "14" not in shown


def test_keys_compare_by_content() -> None:
    assert SecretKey(b"a" * 32) == SecretKey(b"a" * 32)
    assert SecretKey(b"a" * 32) != SecretKey(b"b" * 32)
    assert SecretKey(b"a" * 32) != SecretKey(b"a" * 31)
    assert SecretKey(b"a" * 32) != b"a" * 32
    with pytest.raises(TypeError, match="unhashable"):
        hash(SecretKey(b"a"))


@pytest.mark.parametrize("duplicate", [pickle.dumps, copy.copy, copy.deepcopy])
@pytest.mark.parametrize("secret", [SecretKey(b"visible-secret"), PartMac("a", "b")], ids=["key", "mac"])
def test_secrets_are_never_pickled_or_copied(duplicate: object, secret: object) -> None:
    with pytest.raises(TypeError, match="never pickled") as caught:
        duplicate(secret)  # type: ignore[operator]
    assert "visible" not in str(caught.value)


def test_a_key_is_set_once_and_never_empty() -> None:
    key = SecretKey(b"a" * 32)
    with pytest.raises(TypeError):
        key.__init__(b"b" * 32)
    assert key.reveal() == b"a" * 32
    with pytest.raises(ValueError, match="at least one"):
        SecretKey(b"")
    with pytest.raises(TypeError):
        SecretKey("text")  # type: ignore[arg-type]


@pytest.mark.parametrize("call", [security.hardware_hash, SecretKey, security.archive_key])
def test_none_is_refused(call: object) -> None:
    with pytest.raises(TypeError):
        call(None)  # type: ignore[operator]


@pytest.mark.parametrize("call", [security.encrypt, security.decrypt])
def test_none_is_no_key(call: object) -> None:
    with pytest.raises(TypeError):
        call(bytes(32), None)  # type: ignore[operator]
