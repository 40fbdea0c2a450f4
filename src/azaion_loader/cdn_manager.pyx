"""The door to the object store: reads with the downloader keys, writes with the uploader keys.

Clients are made when first needed and live as long as the manager; a `cdn.yaml` read again means a new manager.
"""


cimport cython

import threading
import time

from azaion_loader.cdn_credentials import CDNCredentials
# Names that callers find here, too.
from azaion_loader.cdn_credentials import parse_cdn_yaml  # no-cython-lint
from azaion_loader.part_download import download_object
from azaion_loader.part_upload import PartUpload, UploadClients
from azaion_loader.store_answers import info_of, is_transient, translate
from azaion_loader.store_answers import KeysRefused, ObjectInfo, ObjectMissing  # no-cython-lint
from azaion_loader.store_client import make_client, new_session
from azaion_loader.transfer_terms import TransferLimits, backoff_s

__all__ = (
    "CDNCredentials",
    "CdnManager",
    "KeysRefused",
    "ObjectInfo",
    "ObjectMissing",
    "TransferLimits",
    "parse_cdn_yaml",
)

_READ, _WRITE, _WRITE_SLOWLY = "read", "write", "write slowly"


def _nothing(*_):
    """Take what `progress` and `cancelled` are called with."""


@cython.final
cdef class CdnManager:
    """One object store, as `credentials` name it.

    `connect_timeout_s` bounds a connection, `request_timeout_s` the wait for a short answer, `limits` a transfer.
    Safe to use from many threads.
    """

    def __init__(self, credentials, *, double connect_timeout_s=4.0, double request_timeout_s=60.0, limits=None):
        if not isinstance(credentials, CDNCredentials):
            raise TypeError("credentials must be CDNCredentials")
        self._credentials = credentials
        self._connect_timeout_s = connect_timeout_s
        self._request_timeout_s = request_timeout_s
        self._limits = TransferLimits() if limits is None else limits
        self._clients = {}
        self._session = None
        self._lock = threading.Lock()

    def __repr__(self):
        return f"CdnManager({self._credentials!r})"

    def head(self, str bucket not None, str key not None):
        """Return the ObjectInfo of an object.

        Raises ObjectMissing (key or bucket), KeysRefused, UpstreamError, UpstreamUnavailable, UpstreamTimeout.
        """
        give_up = time.monotonic() + self._connect_timeout_s
        for failures in range(1, self._limits.tries + 1):
            try:
                answer = self._client(_READ).head_object(Bucket=bucket, Key=key)
                return info_of(answer, answer.get("ContentLength", -1))
            except Exception as err:
                error = translate(err)
                # A refused connection is told at once, and a time-out has cost its time already.
                if failures == self._limits.tries or not is_transient(error) or time.monotonic() > give_up:
                    raise error from err
            time.sleep(backoff_s(failures))

    def download(
        self, str bucket not None, str key not None, target not None, *,
        info=None, sink=None, progress=None, cancelled=None, bint durable=True,
    ):
        """Bring the object whole to the path `target`, and return its ObjectInfo.

        The bytes grow in `<target>.part`, with their state in `<target>.part.json`; an outage, a kill or a power cut
        leaves both, and the next call goes on from there if the object is still the same. Several processes may call
        for one target: they take turns. `info` saves the HEAD. `sink` (PrefixSink) sees all bytes in order, and may
        refuse them at the end. `progress` is called with the bytes on disk, `cancelled` at least once a second.
        Without `durable` nothing is flushed: after a power cut the file must be proved anyway.

        Raises ObjectMissing, KeysRefused, UpstreamError, UpstreamUnavailable, UpstreamTimeout, DiskFull, and what
        `sink` and `cancelled` raise. Only a DiskFull and a refusal of the sink remove the part file.
        """
        cancelled = cancelled or _nothing
        part = target.with_name(target.name + ".part")
        file, info = download_object(
            self._client(_READ), bucket, key, part, info or self.head(bucket, key),
            limits=self._limits, head=lambda: self.head(bucket, key), sink=sink, progress=progress or _nothing,
            cancelled=cancelled, durable=durable,
        )
        with file:
            if sink is not None:
                try:
                    sink.prove(info)
                except BaseException:
                    file.remove()
                    raise
            file.finish(target)
        return info

    def upload(
        self, str bucket not None, str key not None, source not None, metadata not None, *,
        progress=None, cancelled=None,
    ):
        """Store the file at the path `source` with the user metadata (names without `x-amz-meta-`); return the ETag.

        Makes no read at the store. Raises KeysRefused, UpstreamError (also where the bucket is missing; it is never
        created), UpstreamUnavailable, UpstreamTimeout, LoaderError when the file changes meanwhile, and what
        `cancelled` raises. A failure leaves no parts behind as far as the store can still be reached.
        """
        clients = UploadClients(self._client(_WRITE), self._client(_WRITE_SLOWLY))
        return PartUpload(
            clients, bucket, key, source, metadata, part_bytes=min(self._limits.part_bytes, 8 << 20),
            connections=self._limits.connections, tries=self._limits.tries, progress=progress or _nothing,
            cancelled=cancelled or _nothing,
        ).run()

    def close(self):
        """Close the idle connections."""
        with self._lock:
            clients, self._clients = self._clients, {}
        for client in clients.values():
            client.close()

    def _client(self, str purpose not None):
        with self._lock:
            if purpose not in self._clients:
                self._clients[purpose] = self._make_client(purpose)
            return self._clients[purpose]

    def _make_client(self, str purpose not None):
        keys = self._credentials
        if purpose == _READ:
            pair = keys.downloader_access_key, keys.downloader_access_secret
        else:
            pair = keys.uploader_access_key, keys.uploader_access_secret
        # urllib3 sends a body under the connect time-out, so a slow uplink needs a long one.
        slow = purpose == _WRITE_SLOWLY
        try:
            if self._session is None:
                self._session = new_session()
            return make_client(
                self._session, keys.host, *pair,
                connect_timeout_s=self._limits.stall_timeout_s if slow else self._connect_timeout_s,
                read_timeout_s=self._request_timeout_s if purpose != _READ else self._limits.stall_timeout_s,
                connections=self._limits.connections,
            )
        except Exception as err:
            raise translate(err) from err
