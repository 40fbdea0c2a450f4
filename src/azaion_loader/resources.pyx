"""Load and publish resources (docs/formats.md): join, prove, cache.

Nothing of a resource is given out before its parts are proved to belong together. A part in the cache is proved by its
note, one that was just fetched by the object's MAC.
"""

import os
import time

cimport cython

from loguru import logger

from azaion_loader import metrics, names, security
from azaion_loader.errors import DiskFull, IntegrityError
from azaion_loader.files import disk_full_named
from azaion_loader.loaded_resource import LoadedResource
from azaion_loader.part_cache import open_in_use
from azaion_loader.part_notes import PartNote
from azaion_loader.part_proof import (
    ONE_MESSAGE,
    CachedProofs,
    PartsDontFit,
    TransferProof,
    check_fit,
    digest_part,
    head_digest,
    is_md5,
    note_fits,
)
from azaion_loader.publication import Publication
from azaion_loader.store_answers import ObjectChanged, ObjectMissing

__all__ = ["Resources"]


@cython.final
cdef class Resources:
    """The models of this device. Thread-safe; load() blocks, so it belongs into a thread."""

    def __init__(
        self,
        sources: object,
        cache: object,
        *,
        require_part_mac: bool,
        upload_max_bytes: int,
        reread_pause_s: float = 1.0,
    ) -> None:
        self._sources = sources
        self._cache = cache
        self._proofs = CachedProofs()
        self._require_part_mac = require_part_mac
        self.upload_max_bytes = upload_max_bytes
        self._reread_pause_s = reread_pause_s

    def load(self, folder: str, name: str) -> LoadedResource:
        """Return the resource, proved; the caller closes it.

        A cached part is used when it fits the small part that the API has now; else the store's is fetched. Parts that
        don't fit are both read again once, since an upload elsewhere may be between its two halves.
        Raises InvalidName, ResourceNotFound, IntegrityError (one message for every cause), DiskFull, UpstreamError
        and its subclasses, and what a log-in raises.
        """
        names.check_folder(folder)
        names.check_filename(name)
        request = self._sources.request(folder, name)
        small = request.read_small()
        loaded = self._load_cached(request, small)
        metrics.count("cache_lookups", result="miss" if loaded is None else "hit")
        if loaded is not None:
            return loaded
        with self._cache.locked(folder, name) as waited:
            try:
                return self._bring(request, request.read_small() if waited else small)
            except PartsDontFit as err:
                logger.info("{}/{}: {}; reading both parts again", folder, name, err.cause)
            time.sleep(self._reread_pause_s)
            try:
                return self._bring(request, request.read_small())
            except PartsDontFit as err:
                logger.error("{}/{} can't be loaded: {}", folder, name, err.cause)
                raise IntegrityError(ONE_MESSAGE) from err

    def publish(self, name: str, *, folder: str | None = None, expected_bytes: int = 0) -> Publication:
        """Begin the upload of a resource; it is published when its `commit` returns.

        `folder` may be known only at the end. Raises InvalidName, TooLarge, DiskFull.
        """
        names.check_filename(name)
        if folder is not None:
            names.check_folder(folder)
        return Publication(
            self._sources,
            self._cache,
            name,
            folder=folder,
            expected_bytes=expected_bytes,
            max_bytes=self.upload_max_bytes,
        )

    cdef object _load_cached(self, object request, bytes small):
        """Return the resource from the cache; None where the cached part is missing, another's or damaged."""
        descriptor = self._cache.open_part(request.folder, request.name)
        if descriptor is None:
            return None
        try:
            memory = self._cache.notes.read(request.folder, request.name)
            size = os.fstat(descriptor).st_size
            if not note_fits(memory.part, memory, small, size, self._require_part_mac):
                return None
            if not self._proofs.fits(descriptor, memory.part.sha256):
                logger.warning("The cached part of {}/{} is damaged", request.folder, request.name)
                return None
            self._cache.notes.touch(request.folder, request.name)
            kept, descriptor = descriptor, None
            return LoadedResource(kept, small, security.resource_key())
        finally:
            if descriptor is not None:
                os.close(descriptor)

    cdef object _bring(self, object request, bytes small):
        """Return the resource by way of the store, or of a cache that has changed meanwhile. Raises PartsDontFit."""
        loaded = self._load_cached(request, small)
        if loaded is not None:
            return loaded
        found = request.find_big()
        if found is None:
            raise PartsDontFit("the big part or its bucket is missing in the store")
        memory = self._cache.notes.read(request.folder, request.name)
        claims = check_fit(small, found, memory, self._require_part_mac)
        if memory.part is None:
            loaded = self._adopt(request, small, found, claims)
        return self._transfer(request, small, found, memory) if loaded is None else loaded

    cdef object _adopt(self, object request, bytes small, object found, object claims):
        """Return the resource if a part without a note (placed at the factory) is the object; None where it isn't."""
        if claims is None and not is_md5(found.etag):
            return None
        descriptor = self._cache.open_part(request.folder, request.name)
        if descriptor is None:
            return None
        try:
            if os.fstat(descriptor).st_size != found.size:
                return None
            digests = digest_part(descriptor, request.folder, request.name, small, with_md5=claims is None)
            if (digests.md5 != found.etag.lower()) if claims is None else (digests.mac != claims.mac):
                return None
            kept, descriptor = descriptor, None
            loaded = LoadedResource(kept, small, security.resource_key())
        finally:
            if descriptor is not None:
                os.close(descriptor)
        self._remember(request, small, found, claims, digests)
        return loaded

    cdef object _transfer(self, object request, bytes small, object found, object memory):
        """Fetch the big part, prove it on the way, and only then put it into the cache."""
        target = self._cache.transfer_path(request.folder, request.name)
        proof = TransferProof(request.folder, request.name, small, memory, self._require_part_mac)
        self._cache.make_room(found.size, f"'{request.name}'")
        try:
            # Nothing lands at the target unless the proof holds.
            found = request.download_big(target, found, proof)
        except (ObjectMissing, ObjectChanged) as err:
            raise PartsDontFit("the object changed while it was fetched") from err
        finally:
            proof.close()
        try:
            descriptor = open_in_use(target)
            if descriptor is None:
                raise PartsDontFit("the transfer left no file")
            loaded = LoadedResource(descriptor, small, security.resource_key())
            with disk_full_named(target, 0):
                self._cache.keep(target, request.folder, request.name)
        finally:
            # Moved away by now, unless something failed.
            target.unlink(missing_ok=True)
        self._remember(request, small, found, proof.claims, proof.digests())
        return loaded

    cdef object _remember(self, object request, bytes small, object found, object claims, object digests):
        if claims is None:
            logger.warning("{}/{} has no MAC: made by an older client", request.folder, request.name)
        mac = None if claims is None else claims.mac
        note = PartNote(head_digest(small), found.size, found.etag, digests.sha256, mac)
        try:
            self._cache.notes.remember_part(request.folder, request.name, note)
        except (OSError, DiskFull) as err:
            # The bytes are proved; without a note the next load only proves or fetches them again.
            logger.warning("The note of {}/{} could not be written: {}", request.folder, request.name, err)
