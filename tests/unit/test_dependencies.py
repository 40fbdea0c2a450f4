"""Where objects are built: once, on first use, and with what the settings name."""

import threading
from pathlib import Path

import pytest

from azaion_loader.dependencies import Services
from azaion_loader.settings import InvalidSetting, Settings

PEM = "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"


@pytest.mark.parametrize("content", ["geheim-1", "geheim-1\n", "  geheim-1  \n\n"])
def test_api_token(tmp_path: Path, content: str) -> None:
    (tmp_path / "token").write_text(content)
    assert Services(Settings(loader_api_token_file=tmp_path / "token")).api_token == b"geheim-1"


def test_no_api_token() -> None:
    assert Services(Settings()).api_token is None


@pytest.mark.parametrize("content", [b"", b" \n", b"two words", b"a\nb", b"\xff\xfe", b"a\0", b"x" * 20_000])
@pytest.mark.parametrize("variable", ["loader_api_token_file", "jwt_public_key_file"])
def test_files_that_hold_nothing_usable(tmp_path: Path, content: bytes, variable: str) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(InvalidSetting, match=variable.upper()):
        Services(Settings(**{variable: tmp_path / "file"}))


@pytest.mark.parametrize("variable", ["loader_api_token_file", "jwt_public_key_file"])
def test_files_that_are_none(tmp_path: Path, variable: str) -> None:
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(InvalidSetting, match=f"{variable.upper()}: .* can't be read"):
            Services(Settings(**{variable: path}))


def test_a_public_key_is_looked_at_on_first_use(tmp_path: Path) -> None:
    (tmp_path / "key.pem").write_text(PEM)
    services = Services(Settings(jwt_public_key_file=tmp_path / "key.pem"))
    with pytest.raises(InvalidSetting, match="JWT_PUBLIC_KEY_FILE"):
        services._claims_of()


def test_sessions_are_built_once(tmp_path: Path) -> None:
    services = Services(Settings(data_dir=tmp_path, device_conf=tmp_path / "absent"))
    assert services.authenticated is False
    found = []
    threads = [threading.Thread(target=lambda: found.append(services.sessions)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(found) == 8
    assert len(set(map(id, found))) == 1
    assert services.authenticated is False
    services.close()


class Store:
    """Stands for the object store's client."""

    def __init__(self) -> None:
        self.closed = 0

    def close(self) -> None:
        self.closed += 1


def test_close_closes_the_store_s_client(tmp_path: Path) -> None:
    services = Services(Settings(data_dir=tmp_path, device_conf=tmp_path / "absent"))
    services.close()
    services = Services(Settings(data_dir=tmp_path, device_conf=tmp_path / "absent"))
    # Built, but never used: there is nothing to close.
    assert services.sources is not None
    services.close()
    store = Store()
    services.sources._store = store  # type: ignore[assignment]
    services.close()
    assert store.closed == 1


def test_close_does_not_wait_for_a_cdn_yaml(tmp_path: Path) -> None:
    services = Services(Settings(data_dir=tmp_path, device_conf=tmp_path / "absent"))
    sources = services.sources
    with sources._lock:
        closing = threading.Thread(target=services.close)
        closing.start()
        closing.join(10)
        assert not closing.is_alive()
