"""Where the parts of a resource come from and go to: the Resource API and the object store, for one request.

A request reads `cdn.yaml` again at most once, when the store refuses the keys.
"""

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol, TypeVar

from azaion_loader import security
from azaion_loader.cdn_credentials import CDNCredentials, parse_cdn_yaml
from azaion_loader.cdn_manager import CdnManager
from azaion_loader.credentials import Credentials
from azaion_loader.errors import IntegrityError, ResourceNotFound, UpstreamError
from azaion_loader.part_proof import ONE_MESSAGE, TransferProof
from azaion_loader.store_answers import KeysRefused, ObjectInfo, ObjectMissing

T = TypeVar("T")

CDN_CONFIGURATION = "cdn.yaml"
_SMALL_SUFFIX, _BIG_SUFFIX = ".small", ".big"


class ResourceApi(Protocol):
    """What resources need of the Resource API's client."""

    def get_resource(self, token: str, folder: str, name: str, credentials: Credentials, hardware: str, /) -> bytes:
        """Return a file, encrypted under the download key."""

    def put_resource(self, token: str, folder: str, name: str, data: bytes) -> None:
        """Store a file."""


class Session(Protocol):
    """What resources need of the session."""

    def call(self, action: Callable[[str, Credentials], T]) -> T:
        """Return `action(token, credentials)`, with one new log-in where the token is refused."""


class PartSources:
    """The other side, as long as the process lives. Thread-safe.

    `api` and `hardware` are asked when first needed; `store` makes the client for a configuration.
    """

    def __init__(
        self,
        session: Session,
        api: Callable[[], ResourceApi],
        hardware: Callable[[], str],
        store: Callable[[CDNCredentials], CdnManager],
    ) -> None:
        self._session = session
        self._api = api
        self._hardware = hardware
        self._make_store = store
        self._lock = threading.Lock()
        self._store: CdnManager | None = None

    def request(self, folder: str, name: str) -> "PartRequest":
        """Return the parts of one resource, for one request."""
        return PartRequest(self, folder, name)

    def read(self, folder: str, name: str) -> bytes:
        """Return a file of the Resource API ('' is its root folder), its encryption taken off.

        Raises what Sessions.call and ApiClient.get_resource do, and IntegrityError where it does not decrypt.
        """

        def fetch(token: str, credentials: Credentials) -> bytes:
            hardware = self._hardware()
            sealed = self._api().get_resource(token, folder, name, credentials, hardware)
            return security.decrypt(sealed, security.download_key(credentials.email, credentials.password, hardware))

        return self._session.call(fetch)

    def write(self, folder: str, name: str, data: bytes) -> None:
        """Store a file in the Resource API."""
        self._session.call(lambda token, _: self._api().put_resource(token, folder, name, data))

    def store(self, refused: CdnManager | None = None) -> CdnManager:
        """Return the store's client, of a newly read `cdn.yaml` where it would be the `refused` one.

        Raises UpstreamError for a `cdn.yaml` that is missing or can't be used.
        """
        with self._lock:
            if self._store is None or self._store is refused:
                self._store = self._make_store(self._read_configuration())
            return self._store

    def close(self) -> None:
        """Close the idle connections to the store. What is under way goes on; a later request opens new ones."""
        # Without the lock, which the reading of a `cdn.yaml` may hold for as long as the API takes.
        store = self._store
        if store is not None:
            store.close()

    def _read_configuration(self) -> CDNCredentials:
        try:
            return parse_cdn_yaml(self.read("", CDN_CONFIGURATION))
        except ResourceNotFound as err:
            raise UpstreamError("The Resource API has no cdn.yaml, which says where the object store is.") from err


class PartRequest:
    """The two parts of one resource, while one request is answered. Of one thread at a time."""

    def __init__(self, sources: PartSources, folder: str, name: str) -> None:
        self.folder = folder
        self.name = name
        self._sources = sources
        self._reread = False

    def read_small(self) -> bytes:
        """Return the small part. Raises ResourceNotFound; IntegrityError; what the session and the API raise."""
        try:
            return self._sources.read(self.folder, self.name + _SMALL_SUFFIX)
        except ResourceNotFound as err:
            raise ResourceNotFound(f"There is no resource '{self.name}' in '{self.folder}'.") from err
        except IntegrityError as err:
            raise IntegrityError(ONE_MESSAGE) from err

    def write_small(self, data: bytes) -> None:
        """Store the small part, which commits an upload."""
        self._sources.write(self.folder, self.name + _SMALL_SUFFIX, data)

    def find_big(self) -> ObjectInfo | None:
        """Return what the store knows of the big part; None where it, or its bucket, is missing."""
        try:
            return self._at_store(lambda store: store.head(self.folder, self.name + _BIG_SUFFIX))
        except ObjectMissing:
            return None

    def download_big(self, target: Path, found: ObjectInfo, proof: TransferProof) -> ObjectInfo:
        """Bring the big part to `target` if `proof` holds, going on with an earlier try; return what came.

        Raises PartsDontFit, ObjectMissing, ObjectChanged, DiskFull and what the store raises.
        """
        key = self.name + _BIG_SUFFIX
        # Not flushed to the disk: each new process hashes a cached part before it uses it.
        return self._at_store(
            lambda store: store.download(self.folder, key, target, info=found, sink=proof, durable=False)
        )

    def upload_big(self, source: Path, metadata: Mapping[str, str]) -> str:
        """Store the big part and return its ETag."""
        return self._at_store(lambda store: store.upload(self.folder, self.name + _BIG_SUFFIX, source, metadata))

    def _at_store(self, action: Callable[[CdnManager], T]) -> T:
        store = self._sources.store()
        try:
            return action(store)
        except KeysRefused as err:
            if self._reread:
                raise UpstreamError("The object store refuses the keys of cdn.yaml.") from err
            self._reread = True
        try:
            return action(self._sources.store(refused=store))
        except KeysRefused as err:
            raise UpstreamError("The object store refuses the keys of cdn.yaml, also after it was read again.") from err
