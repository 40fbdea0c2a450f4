"""The command line for people: `azaion-loader` but for `serve`, which `cli` starts without any of this.

Passwords come from a file, from AZAION_PASSWORD or from a prompt: arguments of a command are seen by every user of a
machine. Exit codes stand in `command_output`.
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer

from azaion_loader import command_rescue, command_service
from azaion_loader.command_client import Client, CommandError
from azaion_loader.command_output import Output
from azaion_loader.settings import InvalidSetting, Settings, command_password

_SECRET_MAX_BYTES = 16 << 10
_WAIT_MAX_S = 7 * 24 * 3600.0

app = typer.Typer(
    name="azaion-loader",
    help="Brings models and images onto this device.",
    epilog="Exit codes: 0 done, 1 failed, 2 usage, 3 no loader answers, 4 refused, 5 not found, 6 upstream, 7 device, "
    "8 not done in time.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Url = Annotated[str, typer.Option(envvar="AZAION_LOADER_URL", help="Address of the running loader")]
Uds = Annotated[Path | None, typer.Option(envvar="AZAION_LOADER_UDS", help="Unix socket of the loader, in place of it")]
TokenFile = Annotated[
    Path | None, typer.Option(envvar="LOADER_API_TOKEN_FILE", help="File with the loader's bearer token")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object")]
Email = Annotated[str | None, typer.Option(envvar="AZAION_EMAIL", help="Account of the Resource API; else asked for")]
PasswordFile = Annotated[
    Path | None, typer.Option(help="File with the password; else AZAION_PASSWORD, else it is asked for")
]
Folder = Annotated[str, typer.Option(help="Folder of the model")]
URL = "http://127.0.0.1:8080"


def run(arguments: Sequence[str], serve: Callable[[Sequence[str]], int]) -> int:
    """Run a command and return its exit code; `serve` is what runs the service."""
    if not arguments:
        sys.stderr.write("azaion-loader: name a command; --help lists them\n")
        raise SystemExit(2)
    return int(app(list(arguments), prog_name="azaion-loader", obj=serve, standalone_mode=True) or 0)


@app.command("serve", add_help_option=False, context_settings={"ignore_unknown_options": True})
def _serve(context: typer.Context, arguments: Annotated[list[str] | None, typer.Argument(hidden=True)] = None) -> None:
    """Run the HTTP service (--host, --port, --uds)."""
    raise typer.Exit(context.obj(["serve", *(arguments or [])]))


@app.command()
def unlock(
    url: Url = URL,
    uds: Uds = None,
    token_file: TokenFile = None,
    email: Email = None,
    password_file: PasswordFile = None,
    refresh: Annotated[bool, typer.Option(help="Compare contents with the archive, not only names")] = False,
    wait: Annotated[bool, typer.Option(help="Wait for the end of the run")] = False,
    timeout: Annotated[float, typer.Option(min=0, max=_WAIT_MAX_S, help="Seconds to wait at most")] = 3600.0,
    as_json: Json = False,
) -> None:
    """Load the device's images from its encrypted archive."""

    def act(output: Output) -> None:
        client, account = _client(url, uds, token_file), _account(email, password_file)
        command_service.unlock(client, output, account, refresh=refresh, wait=wait, timeout_s=timeout)

    _do(as_json, act)


@app.command()
def login(
    url: Url = URL,
    uds: Uds = None,
    token_file: TokenFile = None,
    email: Email = None,
    password_file: PasswordFile = None,
    as_json: Json = False,
) -> None:
    """Log in at the Resource API."""

    def act(output: Output) -> None:
        command_service.log_in(_client(url, uds, token_file), output, _account(email, password_file))

    _do(as_json, act)


@app.command()
def load(
    name: Annotated[str, typer.Argument(help="Name of the model")],
    out: Annotated[Path, typer.Option(help="File or directory to write to")],
    folder: Folder = "models",
    url: Url = URL,
    uds: Uds = None,
    token_file: TokenFile = None,
    as_json: Json = False,
) -> None:
    """Write a model to a file, decrypted."""
    _do(
        as_json,
        lambda output: command_service.load(_client(url, uds, token_file), output, name, folder=folder, out=out),
    )


@app.command()
def upload(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="File to publish")],
    name: Annotated[str | None, typer.Option(help="Name of the model; the file's own where left out")] = None,
    folder: Folder = "models",
    url: Url = URL,
    uds: Uds = None,
    token_file: TokenFile = None,
    as_json: Json = False,
) -> None:
    """Publish a file as a model."""

    def act(output: Output) -> None:
        client = _client(url, uds, token_file)
        command_service.upload(client, output, file, folder=folder, name=name or file.name)

    _do(as_json, act)


@app.command()
def status(url: Url = URL, uds: Uds = None, token_file: TokenFile = None, as_json: Json = False) -> None:
    """Show the running loader's version, session and unlock run."""
    _do(as_json, lambda output: command_service.status(_client(url, uds, token_file), output))


@app.command()
def doctor(
    url: Url = URL,
    uds: Uds = None,
    token_file: TokenFile = None,
    local: Annotated[bool, typer.Option("--local", help="Look from here, not through the running loader")] = False,
    as_json: Json = False,
) -> None:
    """Look at everything that the device needs, and say what to do; exit code 1 where something is wrong."""
    _do(as_json, lambda output: command_rescue.doctor(None if local else _client(url, uds, token_file), output))


@app.command()
def decrypt(
    key_fragment: Annotated[Path, typer.Option(exists=True, dir_okay=False, help="File with the key fragment")],
    out: Annotated[Path, typer.Option(help="The tar to write; readable by its owner only")],
    archive: Annotated[Path | None, typer.Argument(help="The archive; IMAGES_PATH where left out")] = None,
    as_json: Json = False,
) -> None:
    """Rescue: write the archive's tar in plaintext."""

    def act(output: Output) -> None:
        command_rescue.decrypt(output, archive or Settings.from_environment().images_path, key_fragment, out)

    _do(as_json, act)


@app.command()
def fingerprint(as_json: Json = False) -> None:
    """Show the hardware string that accounts are bound to, its parts and its hash."""
    _do(as_json, command_rescue.fingerprint)


@app.command()
def version(as_json: Json = False) -> None:
    """Show the version of this program."""
    _do(as_json, command_rescue.version)


def _do(as_json: bool, act: Callable[[Output], int | None]) -> None:
    """Do the command's work and end with its exit code."""
    output = Output(as_json)
    try:
        code = act(output) or 0
    except CommandError as err:
        code = output.failure(err)
    except InvalidSetting as err:
        code = output.failure(CommandError("usage", str(err)))
    except OSError as err:
        code = output.failure(CommandError("failed", f"{err.filename or 'input or output'}: {err.strerror}."))
    raise typer.Exit(code)


def _client(url: str, uds: Path | None, token_file: Path | None) -> Client:
    return Client(url, uds, _secret(token_file, "token") if token_file is not None else None)


def _account(email: str | None, password_file: Path | None) -> dict[str, str]:
    email = email or typer.prompt("E-mail", err=True)
    if password_file is not None:
        return {"email": email, "password": _secret(password_file, "password")}
    return {"email": email, "password": command_password() or typer.prompt("Password", hide_input=True, err=True)}


def _secret(path: Path, what: str) -> str:
    try:
        with path.open("rb") as file:
            return file.read(_SECRET_MAX_BYTES).decode().rstrip("\r\n")
    except UnicodeDecodeError as err:
        raise CommandError("usage", f"The {what} file {path} is no text.") from err
    except OSError as err:
        raise CommandError("usage", f"The {what} file {path} can't be read: {err.strerror}.") from err
