"""Builds what operators and orchestrators ask for, out of the service's own objects; the other half of `dependencies`.

Everything is imported when it is first asked for, as there.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, TypeVar

from azaion_loader import files
from azaion_loader.progress_watch import ProgressWatch
from azaion_loader.settings import Settings

if TYPE_CHECKING:
    from azaion_loader.diagnosis import Diagnosis, Finding
    from azaion_loader.docker_cli import DockerCli
    from azaion_loader.hardware_memory import PartMemory
    from azaion_loader.hardware_service import HardwareService
    from azaion_loader.http_transport import HttpTransport
    from azaion_loader.progress import UnlockProgress
    from azaion_loader.resource_listing import Listing

T = TypeVar("T")

# A look must not take as long as the work that it looks at.
_DOCKER_S = 10.0
_API_S = 10.0


class Service(Protocol):
    """What is needed of the service."""

    settings: Settings

    @property
    def authenticated(self) -> bool:
        """Whether a token is held."""

    @property
    def hardware(self) -> "HardwareService":
        """The machine's identity."""

    def progress(self) -> "Awaitable[UnlockProgress]":
        """Return the figures of the unlock run."""

    def list_published(self, folder: str) -> list[str]:
        """Return the names that the Resource API lists."""

    def head_object(self, bucket: str, key: str) -> object:
        """Ask the object store for one object."""


@dataclass(frozen=True, slots=True)
class Report:
    """What a look at the device found."""

    findings: "list[Finding]"
    parts: "list[PartMemory]"


class Operations:
    """What people and orchestrators ask of a service."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._settings = service.settings
        self.watch = ProgressWatch(service.progress)
        # One: who asks while a look is under way waits for it without a thread of the pool that requests share.
        self._looking = ThreadPoolExecutor(1, thread_name_prefix="look")
        self._asking = ThreadPoolExecutor(2, thread_name_prefix="ask")
        self._look_under_way: asyncio.Future[Report] | None = None
        self._diagnosis: Diagnosis | None = None

    async def diagnose(self) -> Report:
        """Return a look at the device; all who ask while one is under way share it."""
        if self._look_under_way is None or self._look_under_way.done():
            self._look_under_way = asyncio.get_running_loop().run_in_executor(self._looking, self.look)
        return await asyncio.shield(self._look_under_way)

    def look(self) -> Report:
        """Look at engine, disk, archive, network, clock and hardware. Bounded in time."""
        from azaion_loader.device_checks import seen_parts  # noqa: PLC0415 - on first use

        if self._diagnosis is None:
            self._diagnosis = self._build_diagnosis()
        findings = self._diagnosis.run()
        return Report(findings, seen_parts(self._settings, self._service.hardware))

    async def list_folder(self, folder: str) -> "Listing":
        """Return what is cached in a folder and, for a session, what the Resource API lists. Raises InvalidName."""
        from azaion_loader.resource_listing import list_folder  # noqa: PLC0415 - on first use

        ask = (lambda: self._service.list_published(folder)) if self._service.authenticated else None
        return await self._in_thread(lambda: list_folder(self._settings.storage_dir, folder, ask))

    async def metrics_page(self) -> bytes:
        """Return the page of `/metrics`."""
        from azaion_loader.metrics_page import render  # noqa: PLC0415 - on first use

        progress = await self._service.progress()
        free = files.free_bytes(self._settings.storage_dir)
        return render(progress, authenticated=self._service.authenticated, free_bytes=free)

    async def key_profile(self) -> Literal["development", "production"]:
        """Return the kind of this build's key profile."""
        return await self._in_thread(_key_profile)

    def remember_hardware(self) -> None:
        """Keep hashes of the machine's parts as they are first seen, for the day when one has changed."""
        from azaion_loader.device_checks import seen_parts  # noqa: PLC0415 - on first use

        seen_parts(self._settings, self._service.hardware)

    def close(self) -> None:
        """Let nobody wait any more."""
        self.watch.close()
        self._looking.shutdown(wait=False, cancel_futures=True)
        self._asking.shutdown(wait=False, cancel_futures=True)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._asking, work)

    def _build_diagnosis(self) -> "Diagnosis":
        from azaion_loader import device_checks, upstream_checks  # noqa: PLC0415 - on first use
        from azaion_loader.diagnosis import Check, Diagnosis  # noqa: PLC0415

        settings, service = self._settings, self._service
        checks: Mapping[str, Check] = {
            "engine_socket": device_checks.check_socket,
            "engine images engine_space": device_checks.EngineChecks(settings, self._docker),
            "data_dir free_space archive": device_checks.DiskChecks(settings),
            "hardware device_credentials": device_checks.IdentityChecks(settings, lambda: service.hardware),
            "resource_api certificate clock": upstream_checks.ApiChecks(
                settings.resource_api_url, self._transport, min(_API_S, settings.request_timeout_s)
            ),
            "object_store": upstream_checks.StoreChecks(lambda: service.authenticated, service.head_object),
        }
        return Diagnosis(checks)

    def _docker(self) -> "DockerCli":
        from azaion_loader.docker_cli import DockerCli  # noqa: PLC0415 - on first use

        timeout_s = min(_DOCKER_S, self._settings.docker_timeout_s)
        return DockerCli(self._settings.docker_cli, timeout_s, self._settings.docker_stall_timeout_s)

    def _transport(self) -> "HttpTransport":
        from azaion_loader.http_transport import HttpTransport  # noqa: PLC0415 - on first use

        return HttpTransport("Resource API", connect_timeout_s=self._settings.connect_timeout_s, stall_timeout_s=_API_S)


def _key_profile() -> Literal["development", "production"]:
    from azaion_loader.security import is_development_profile  # noqa: PLC0415 - loads the cipher library

    return "development" if is_development_profile() else "production"
