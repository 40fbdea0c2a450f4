"""What clients send and get, as the OpenAPI page shows it."""

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from azaion_loader.errors import InvalidRequest
from azaion_loader.names import check_filename, check_folder
from azaion_loader.unlock_state import UnlockState

if TYPE_CHECKING:
    from azaion_loader.credentials import Credentials

# At least one visible character and no control character; 320 is the longest address that RFC 5321 allows.
_EMAIL_PATTERN = r"^[^\x00-\x1F\x7F]*[^\x00-\x20\x7F][^\x00-\x1F\x7F]*$"


class CredentialsRequest(BaseModel):
    """An account of the Resource API."""

    email: Annotated[str, StringConstraints(min_length=1, max_length=320, pattern=_EMAIL_PATTERN)] = Field(
        examples=["user@example.com"]
    )
    password: Annotated[str, StringConstraints(min_length=1, max_length=1024)] = Field(
        json_schema_extra={"format": "password"}
    )

    def credentials(self) -> "Credentials":
        """Return the account in the form that never shows its password."""
        from azaion_loader.credentials import Credentials  # noqa: PLC0415 - compiled code loads on first use

        return Credentials(self.email, self.password)


class LoadRequest(BaseModel):
    """The resource wanted; `filename` says the same as the path."""

    filename: str = Field(examples=["detection.onnx"])
    folder: str = Field(examples=["models"])

    def check(self, path_filename: str) -> None:
        """Raise InvalidName, or InvalidRequest where the path names another file."""
        check_filename(path_filename)
        check_folder(self.folder)
        if self.filename != path_filename:
            raise InvalidRequest("The file names of the path and the body differ.")


class HealthAnswer(BaseModel):
    """The service runs."""

    status: str = "healthy"


class StatusAnswer(BaseModel):
    """The service and its session."""

    status: str = "healthy"
    authenticated: bool = Field(description="Whether a token of the Resource API is held")
    modelCacheDir: str = Field(description="Where cached parts of models lie")  # noqa: N815 - the name on the wire


class OkAnswer(BaseModel):
    """Done."""

    status: str = "ok"


class UnlockStateAnswer(BaseModel):
    """Where the unlock run stands."""

    state: UnlockState


class UnlockStatusAnswer(BaseModel):
    """Where the unlock run stands, and why it failed."""

    model_config = ConfigDict(from_attributes=True)

    state: UnlockState
    error: str | None = Field(description="`<code>: <sentence>` in the state `error`, else null")


class UnlockProgressAnswer(BaseModel):
    """The unlock run in figures; they never go back within a run, and 100 % comes only with `ready`."""

    model_config = ConfigDict(from_attributes=True)

    run_id: str | None
    state: UnlockState
    stage: str = Field(description="What is being done now, in a few words")
    bytes_done: int
    bytes_total: int
    images_done: int
    images_total: int
    percent: float = Field(ge=0, le=100)
    rate_bytes_per_s: float | None
    seconds_left: float | None
    seconds_since_change: float | None
    note: str | None = Field(description="What a person should know about this run")
    token: str = Field(description="Give it as `since` to wait for the next change", examples=["c0ffee0123456789"])


class Problem(BaseModel):
    """The body of every failure."""

    detail: str | list[dict[str, Any]] = Field(description="A sentence for a person; a list for an invalid body")
    code: str = Field(description="A stable word for programs")
