"""Fetches one range of an object into its place in a file, and believes no answer.

Runs in a worker thread of `part_download`; the supervisor looks at `position` and may `abort` from its own thread.
"""

import os
import threading
from typing import Any

from azaion_loader.errors import DiskFull, LoaderError, UpstreamTimeout, UpstreamUnavailable
from azaion_loader.store_answers import BrokenAnswer, ObjectChanged, ObjectInfo, RangeIgnored, plain_etag, translate

READ_BYTES = 256 * 1024
_NO_ROOM = frozenset({28, 122})  # ENOSPC, EDQUOT


class RangeFetch:
    """One GET of [start, end): `position` is the next byte that is not in the file yet.

    With `whole` the GET has no Range (for a store that ignores it) and start must be 0.
    """

    def __init__(self, start: int, end: int, *, whole: bool = False) -> None:
        self.start = start
        self.end = end
        self.position = start
        self.whole = whole
        self.window_start_s = 0.0
        self.window_position = start
        self.streaming = False
        self._aborted: LoaderError | None = None
        self._raw: Any = None
        self._lock = threading.Lock()

    def abort(self, reason: LoaderError) -> None:
        """Make the fetch end with `reason`, even while it waits for bytes."""
        with self._lock:
            self._aborted = self._aborted or reason
            raw = self._raw
            if raw is not None:
                try:
                    raw.shutdown()
                except (ValueError, RuntimeError, OSError):
                    # The answer ended in this moment: there is nothing to wake.
                    return

    def run(self, client: Any, bucket: str, key: str, info: ObjectInfo, descriptor: int) -> None:
        """Fetch up to `end`, writing at the same offsets of the file.

        Raises DiskFull, ObjectChanged, RangeIgnored, BrokenAnswer, and what `translate` makes of botocore's errors;
        the bytes before `position` are good whatever was raised.
        """
        asked = {} if self.whole else {"Range": f"bytes={self.position}-{self.end - 1}"}
        try:
            answer = client.get_object(Bucket=bucket, Key=key, IfMatch=f'"{info.etag}"', **asked)
        except Exception as err:
            raise self._aborted or translate(err) from err
        with answer["Body"] as raw:
            self._prove_head(answer, info)
            with self._lock:
                self._raw = raw
            try:
                self._copy(raw, descriptor)
            finally:
                self.streaming = False
                with self._lock:
                    self._raw = None

    def _prove_head(self, answer: dict[str, Any], info: ObjectInfo) -> None:
        """Raise unless the answer is of this object and of exactly the range that was asked for."""
        if plain_etag(answer.get("ETag")) != info.etag:
            raise ObjectChanged("The object changed in the store during the transfer.")
        said = answer.get("ContentRange")
        # Not the status: some stores send a proper range with 200.
        if said is None and not self.whole:
            raise RangeIgnored("The object store ignored the range.")
        if said is not None and said != f"bytes {self.position}-{self.end - 1}/{info.size}":
            raise BrokenAnswer("The object store sent another range than it was asked for.")
        length = answer.get("ContentLength")
        if length is not None and length != self.end - self.position:
            raise BrokenAnswer("The object store sent another length than it was asked for.")

    def _copy(self, raw: Any, descriptor: int) -> None:
        self.streaming = True
        while self.position < self.end:
            try:
                data = raw.read1(min(READ_BYTES, self.end - self.position))
            except Exception as err:
                raise self._aborted or _broken_off(err) from err
            # After an abort a TLS socket may hand out raw bytes: nothing read from then on counts.
            if self._aborted is not None:
                raise self._aborted
            if not data:
                raise UpstreamUnavailable("The connection to the object store broke off.")
            _write(descriptor, data, self.position)
            self.position += len(data)
        # Also lets the connection go back to the pool.
        if raw.read1(1):
            raise BrokenAnswer("The object store sent more than it was asked for.")


def _broken_off(error: Exception) -> LoaderError:
    if "timed out" in str(error).lower():
        return UpstreamTimeout("The object store went silent.")
    return UpstreamUnavailable("The connection to the object store broke off.")


def _write(descriptor: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        try:
            count = os.pwrite(descriptor, view, offset)
        except OSError as err:
            if err.errno in _NO_ROOM:
                raise DiskFull(f"The disk is full: {len(view)} bytes needed for the next piece.") from err
            raise LoaderError(f"The local disk refused a write: {err.strerror}.") from err
        view = view[count:]
        offset += count
