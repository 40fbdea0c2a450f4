"""The command line: what it refuses, with which exit code, and where it listens."""

import socket
import stat
from pathlib import Path

import pytest

from azaion_loader import cli


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["unknown"],
        ["serve", "--port", "http"],
        ["serve", "--port", "-1"],
        ["serve", "--port", "65536"],
        ["serve", "--port", "\u0661"],
        ["serve", "--port", "9" * 5000],
        ["serve", "extra"],
    ],
)
def test_wrong_arguments(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(arguments)
    assert end.value.code == 2
    assert capsys.readouterr().err


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["serve", "--help"])
    assert end.value.code == 0
    assert "--uds" in capsys.readouterr().out


def test_defaults() -> None:
    options = cli._parser().parse_args(["serve"])
    assert (options.host, options.port, options.uds) == ("127.0.0.1", 8080, None)


@pytest.mark.parametrize(
    ("variable", "value"),
    [("RESOURCE_API_URL", "nowhere"), ("STALL_TIMEOUT_S", "soon"), ("LOADER_API_TOKEN_FILE", "/nonexistent/token")],
)
def test_an_unusable_setting(
    variable: str, value: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(variable, value)
    assert cli.main(["serve", "--port", "0"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"azaion-loader: {variable}")
    assert error.count("\n") == 1


def test_an_address_in_use(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert cli.main(["serve", "--port", str(port)]) == 1
    assert f"Can't listen on 127.0.0.1:{port}: Address already in use" in capsys.readouterr().err


def test_a_host_that_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["serve", "--host", "256.256.256.256"]) == 1
    assert capsys.readouterr().err.startswith("azaion-loader: Can't listen on 256.256.256.256:8080: ")


def test_a_unix_socket_is_for_owner_and_group(tmp_path: Path) -> None:
    with cli._listen_unix(tmp_path / "loader.sock"):
        assert stat.S_IMODE((tmp_path / "loader.sock").stat().st_mode) == 0o660


def test_a_dead_unix_socket_is_replaced_and_a_living_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "loader.sock"
    cli._listen_unix(path).close()
    with cli._listen_unix(path), pytest.raises(OSError, match="in use"):
        cli._listen_unix(path)


def test_a_file_in_place_of_the_socket_stays(tmp_path: Path) -> None:
    path = tmp_path / "loader.sock"
    path.write_text("precious")
    with pytest.raises(OSError, match="in use"):
        cli._listen_unix(path)
    assert path.read_text() == "precious"


def test_a_path_too_long_for_a_socket(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["serve", "--uds", str(tmp_path / ("x" * 120))]) == 1
    assert "too long" in capsys.readouterr().err
