"""The only place that builds objects.

Each is built when it is first used, and its module imported only then: a service that has just started answers
`/health` without the HTTP client, the object store's client or the compiled code in memory.
"""

import asyncio
import re
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar, cast

import anyio
from fastapi import Depends, Request
from loguru import logger

from azaion_loader.operations import Operations
from azaion_loader.settings import InvalidSetting, Settings
from azaion_loader.single_flight import LoadFlights
from azaion_loader.uploads import Uploads

if TYPE_CHECKING:
    from azaion_loader.api_client import ApiClient
    from azaion_loader.cdn_credentials import CDNCredentials
    from azaion_loader.cdn_manager import CdnManager
    from azaion_loader.credentials import Credentials
    from azaion_loader.hardware_service import HardwareService
    from azaion_loader.loaded_resource import LoadedResource
    from azaion_loader.part_source import PartSources
    from azaion_loader.progress import UnlockProgress
    from azaion_loader.resources import Resources
    from azaion_loader.sessions import ClaimsOf, Sessions
    from azaion_loader.unlock import UnlockJob

T = TypeVar("T")

_FILE_MAX_BYTES = 16 << 10
_TOKEN = re.compile(rb"[\x21-\x7E]+")
_PUBLIC_KEY = re.compile(rb"-----BEGIN [A-Z ]*PUBLIC KEY-----.*", re.DOTALL)
_CONTENTS = {_TOKEN: "one word of visible ASCII characters", _PUBLIC_KEY: "a public key in PEM"}
# Polls have threads of their own: they answer also while every thread for requests waits for something slow.
_POLL_THREADS = 2
# Those that wait for the API, the store or a lock; those that encrypt and publish; those that decrypt what is sent.
_LOAD_THREADS = 16
_UPLOAD_THREADS = 8
_SEND_THREADS = 8
# The job's modules are most of the program: loading them must not compete with the first answer.
_RECOVER_AFTER_S = 1.0


class Services:
    """The service's objects, for as long as it runs; safe to use from several threads."""

    def __init__(self, settings: Settings) -> None:
        """Raises InvalidSetting if a file that a setting names can't be used: better no start than an open one."""
        self.settings = settings
        self.api_token = _read_setting(settings.loader_api_token_file, "LOADER_API_TOKEN_FILE", _TOKEN)
        self._token_key = _read_setting(settings.jwt_public_key_file, "JWT_PUBLIC_KEY_FILE", _PUBLIC_KEY)
        self._building = threading.RLock()
        self._polls = ThreadPoolExecutor(_POLL_THREADS, thread_name_prefix="poll")
        self._recovery = threading.Timer(_RECOVER_AFTER_S, self._recover)
        self._recovery.daemon = True
        self._api: ApiClient | None = None
        self._claims: ClaimsOf | None = None
        self._sessions: Sessions | None = None
        self._unlock_job: UnlockJob | None = None
        self._resources: Resources | None = None
        self._sources: PartSources | None = None
        self._hardware: HardwareService | None = None
        # Each kind has threads of its own, so that no kind starves another, nor the log-in.
        self.loads = LoadFlights(self._load, _LOAD_THREADS)
        self.uploads = Uploads(lambda: self.resources, settings.upload_max_bytes, _UPLOAD_THREADS)
        self.sending = anyio.CapacityLimiter(_SEND_THREADS)
        self.operations = Operations(self)

    @property
    def sessions(self) -> "Sessions":
        """Log-ins and what needs one."""
        with self._building:
            if self._sessions is None:
                from azaion_loader.sessions import Sessions  # noqa: PLC0415 - on first use

                self._sessions = Sessions(self._api_client, self._claims_of, self.settings.device_conf)
            return self._sessions

    @property
    def unlock_job(self) -> "UnlockJob":
        """The unlock job, which has read what an earlier process left."""
        with self._building:
            if self._unlock_job is None:
                self._unlock_job = self._build_unlock_job()
            return self._unlock_job

    @property
    def resources(self) -> "Resources":
        """The models of this device. Slow the first time: call it from a thread."""
        with self._building:
            if self._resources is None:
                self._resources = self._build_resources()
            return self._resources

    @property
    def sources(self) -> "PartSources":
        """Where the parts of models come from and go to."""
        with self._building:
            if self._sources is None:
                from azaion_loader.part_source import PartSources  # noqa: PLC0415 - on first use

                self._sources = PartSources(
                    self.sessions,
                    self._api_client,
                    lambda: self.hardware.hardware_string(),  # noqa: PLW0108 - asked when needed
                    self._object_store,
                )
            return self._sources

    @property
    def hardware(self) -> "HardwareService":
        """The machine's identity."""
        with self._building:
            if self._hardware is None:
                from azaion_loader.hardware_service import HardwareService  # noqa: PLC0415 - on first use

                self._hardware = HardwareService(override_file=self.settings.hardware_string_file)
            return self._hardware

    @property
    def authenticated(self) -> bool:
        """Whether a token is held; builds nothing and waits for nothing."""
        return self._sessions is not None and self._sessions.authenticated

    async def poll(self, question: "Callable[[UnlockJob], T]") -> T:
        """Ask the unlock job something quick, without a thread of the pool that requests share."""
        return await asyncio.get_running_loop().run_in_executor(self._polls, lambda: question(self.unlock_job))

    async def progress(self) -> "UnlockProgress":
        """Return the figures of the unlock run."""
        return await self.poll(lambda job: job.progress())

    def list_published(self, folder: str) -> list[str]:
        """Return the names that the Resource API lists in a folder. Raises what a call of the session does."""
        return self.sessions.call(lambda token, _: self._api_client().list_resources(token, folder, ""))

    def head_object(self, bucket: str, key: str) -> object:
        """Ask the object store for one object, with the keys of `cdn.yaml`."""
        return self.sources.store().head(bucket, key)

    def start(self) -> None:
        """Look for what an earlier run left, soon and in the background; who asks for the job earlier, starts that."""
        self._recovery.start()

    def close(self) -> None:
        """End what runs, within the bounds of its parts."""
        self._recovery.cancel()
        with self._building:
            job = self._unlock_job
        self.operations.close()
        if job is not None:
            job.shutdown()
        self._polls.shutdown(wait=False, cancel_futures=True)
        if self._sources is not None:
            self._sources.close()
        if self._api is not None:
            self._api.close()

    def _api_client(self) -> "ApiClient":
        with self._building:
            if self._api is None:
                from azaion_loader.api_client import ApiClient  # noqa: PLC0415 - on first use

                settings = self.settings
                self._api = ApiClient(
                    settings.resource_api_url,
                    connect_timeout_s=settings.connect_timeout_s,
                    login_timeout_s=settings.login_timeout_s,
                    request_timeout_s=settings.request_timeout_s,
                    stall_timeout_s=settings.stall_timeout_s,
                )
            return self._api

    def _claims_of(self) -> "ClaimsOf":
        with self._building:
            if self._claims is None:
                from azaion_loader.tokens import TokenVerifier, decode_token  # noqa: PLC0415 - on first use

                pem = self._token_key
                self._claims = decode_token if pem is None else TokenVerifier(pem).verify
            return self._claims

    def _load(self, folder: str, name: str) -> "LoadedResource":
        return self.resources.load(folder, name)

    def _build_resources(self) -> "Resources":
        from azaion_loader.part_cache import PartCache  # noqa: PLC0415 - on first use
        from azaion_loader.resources import Resources  # noqa: PLC0415

        settings = self.settings
        cache = PartCache(settings.storage_dir, settings.state_dir, settings.cache_max_bytes, settings.transfer_wait_s)
        cache.sweep()
        return Resources(
            self.sources,
            cache,
            require_part_mac=settings.require_part_mac,
            upload_max_bytes=settings.upload_max_bytes,
        )

    def _object_store(self, credentials: "CDNCredentials") -> "CdnManager":
        from azaion_loader.cdn_manager import CdnManager, TransferLimits  # noqa: PLC0415 - on first use

        settings = self.settings
        return CdnManager(
            credentials,
            connect_timeout_s=settings.connect_timeout_s,
            request_timeout_s=settings.request_timeout_s,
            limits=TransferLimits(stall_timeout_s=settings.stall_timeout_s),
        )

    def _build_unlock_job(self) -> "UnlockJob":
        from azaion_loader.background_log_in import BackgroundLogIn  # noqa: PLC0415 - on first use
        from azaion_loader.docker_cli import DockerCli  # noqa: PLC0415
        from azaion_loader.unlock import UnlockJob  # noqa: PLC0415

        settings = self.settings
        background = BackgroundLogIn(self._log_in, lambda credentials: self.sessions.is_of(credentials))  # noqa: PLW0108
        job = UnlockJob(
            settings,
            lambda: DockerCli(settings.docker_cli, settings.docker_timeout_s, settings.docker_stall_timeout_s),
            log_in=self._log_in,
            remember=background.remember,
            fetch_key_fragment=lambda: self.sessions.call(lambda token, _: self._api_client().key_fragment(token)),
        )
        job.recover()
        return job

    def _log_in(self, credentials: "Credentials") -> object:
        # Not the method of the sessions itself: the job is built at the start, they with the first log-in.
        return self.sessions.log_in(credentials)

    def _recover(self) -> None:
        try:
            _ = self.unlock_job
            _say_key_profile()
            self.operations.remember_hardware()
        except Exception:  # noqa: BLE001 - the thread's last door; the next caller meets the same fault and hears of it
            logger.exception("What an earlier unlock run left could not be read")


def _say_key_profile() -> None:
    from azaion_loader.security import is_development_profile  # noqa: PLC0415 - loads the cipher library

    if is_development_profile():
        logger.warning("This build holds the development key profile, which everybody knows: it protects nothing")


async def get_services(request: Request) -> Services:
    """Return the application's objects. Async: a plain function would need a thread of the pool, which may be full."""
    return cast("Services", request.app.state.services)


ServicesDep = Annotated[Services, Depends(get_services)]


def _read_setting(path: Path | None, name: str, pattern: re.Pattern[bytes]) -> bytes | None:
    """Return the stripped content of the file that the variable `name` names, if it names one."""
    if path is None:
        return None
    try:
        with path.open("rb") as file:
            content = file.read(_FILE_MAX_BYTES + 1).strip()
    except OSError as err:
        raise InvalidSetting(f"{name}: {path} can't be read ({err.strerror})") from err
    if len(content) > _FILE_MAX_BYTES or not pattern.fullmatch(content):
        raise InvalidSetting(f"{name}: {path} must hold {_CONTENTS[pattern]}")
    return content
