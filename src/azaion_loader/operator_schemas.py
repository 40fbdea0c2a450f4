"""What the endpoints for operators and orchestrators answer, as the OpenAPI page shows it."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class VersionAnswer(BaseModel):
    """What runs here."""

    version: str = Field(examples=["0.1.0"])
    python: str = Field(examples=["3.11.2"])
    machine: str = Field(examples=["aarch64"])
    key_profile: Literal["development", "production"] = Field(
        description="Which secrets the keys are derived from; `development` protects nothing"
    )


class FindingAnswer(BaseModel):
    """One thing that was looked at, and what to do about it."""

    model_config = ConfigDict(from_attributes=True)

    name: str = Field(examples=["engine_socket"])
    state: Literal["ok", "warning", "failed", "skipped"]
    cause: str | None = Field(description="A stable word for programs", examples=["socket_permission"])
    summary: str = Field(examples=["This user may not use /var/run/docker.sock."])
    advice: str | None = Field(examples=["Add the service's user to the group docker, or run it as root."])
    seconds: float


class HardwarePartAnswer(BaseModel):
    """A part of the machine as a salted hash; it changed when the two differ."""

    model_config = ConfigDict(from_attributes=True)

    name: str = Field(examples=["drive_serial"])
    hash: str = Field(examples=["9f86d081884c7d65"])
    first_seen_hash: str = Field(examples=["9f86d081884c7d65"])
    changed: bool


class DiagnosticsAnswer(BaseModel):
    """How the device is; what `azaion-loader doctor` shows."""

    healthy: bool = Field(description="Whether no check failed")
    checks: list[FindingAnswer]
    hardware: list[HardwarePartAnswer]


class ListedResourceAnswer(BaseModel):
    """One model."""

    model_config = ConfigDict(from_attributes=True)

    name: str = Field(examples=["detection.onnx"])
    cached_bytes: int | None = Field(description="Size of the part cached on this device; null where there is none")
    published: bool | None = Field(description="Whether the Resource API lists it; null where it could not be asked")


class ListingAnswer(BaseModel):
    """A folder of models."""

    model_config = ConfigDict(from_attributes=True)

    folder: str = Field(examples=["models"])
    resources: list[ListedResourceAnswer]
    note: str | None = Field(description="Why the Resource API's names are missing, where they are")
