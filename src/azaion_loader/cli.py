"""The command `azaion-loader`: `serve` here, with nothing that only the others need; all others in `commands`."""

import argparse
import contextlib
import os
import signal
import socket
import stat
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from azaion_loader.settings import InvalidSetting, Settings

# Exit codes: 2 is also argparse's for a wrong argument.
EXIT_FAILED = 1
EXIT_UNUSABLE = 2

# A stopping service: answers under way get this long before the unlock run is ended, which takes some seconds more;
# container engines kill after 10 s.
_GRACE_S = 2
_KEEP_ALIVE_S = 15
_BACKLOG = 512


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["serve"]:
        return _serve(given)
    from azaion_loader.commands import run  # noqa: PLC0415 - the service starts without it

    return run(given, _serve)


def _serve(arguments: Sequence[str]) -> int:
    options = _parser().parse_args(arguments)
    try:
        settings = Settings.from_environment()
        return serve(settings, host=options.host, port=options.port, uds=options.uds)
    except InvalidSetting as err:
        return _fail(str(err), EXIT_UNUSABLE)


def serve(settings: Settings, *, host: str, port: int, uds: Path | None) -> int:
    """Serve HTTP on `host` and `port`, or on the Unix socket `uds`, until SIGTERM or SIGINT; return the exit code.

    Raises InvalidSetting if a setting can't be used.
    """
    import uvicorn  # noqa: PLC0415 - `--help` needs none of it

    from azaion_loader.http_server import HEADERS_MAX_BYTES, BoundedHttpProtocol, HttpServer  # noqa: PLC0415
    from azaion_loader.main import create_app  # noqa: PLC0415

    app = create_app(settings)
    config = uvicorn.Config(
        app,
        http=BoundedHttpProtocol,
        ws="none",
        lifespan="on",
        log_config=None,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=_GRACE_S,
        h11_max_incomplete_event_size=HEADERS_MAX_BYTES,
        backlog=_BACKLOG,
    )
    server = HttpServer(config, app.state.services.operations.watch.close)
    where = str(uds) if uds is not None else f"{host}:{port}"
    try:
        listener = _listen_unix(uds) if uds is not None else _listen(host, port)
    except OSError as err:
        return _fail(f"Can't listen on {where}: {err.strerror or err}", EXIT_FAILED)
    with listener, _quiet_end():
        server.run(sockets=[listener])
    if uds is not None:
        uds.unlink(missing_ok=True)
    return 0 if server.started else EXIT_FAILED


def _listen(host: str, port: int) -> socket.socket:
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    return socket.create_server(address[:2], family=family, backlog=_BACKLOG)


def _listen_unix(path: Path) -> socket.socket:
    """Listen on a socket that the owner and the group of this process may use; a dead one in its place is replaced."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if path.exists() and stat.S_ISSOCK(path.stat().st_mode) and not _answers(path):
            path.unlink()
        mask = os.umask(0o117)
        try:
            listener.bind(str(path))
        finally:
            os.umask(mask)
        listener.listen(_BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        return probe.connect_ex(str(path)) == 0


@contextlib.contextmanager
def _quiet_end() -> Iterator[None]:
    """Let us clean up after the signal that ended the server: uvicorn raises it once more at its end."""
    previous = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _fail(sentence: str, code: int) -> int:
    sys.stderr.write(f"azaion-loader: {sentence}\n")
    return code


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and int(text) <= 65535):
        raise argparse.ArgumentTypeError("a port is a whole number from 0 to 65535")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="azaion-loader", description="Brings models and images onto this device.")
    commands = parser.add_subparsers(dest="command", required=True)
    serving = commands.add_parser("serve", help="run the HTTP service")
    serving.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    serving.add_argument("--port", type=_port, default=8080, help="port to listen on (default: %(default)s)")
    serving.add_argument("--uds", type=Path, metavar="PATH", help="Unix socket to listen on, in place of host and port")
    return parser


if __name__ == "__main__":
    sys.exit(main())
