"""Every failure that the loader can name.

::

    LoaderError                     internal_error
     ├── InvalidRequest             invalid_request
     │    └── InvalidName           invalid_name
     ├── RefusedCaller
     │    ├── Unauthorized          unauthorized        bearer token of this service
     │    ├── CrossSite             cross_site
     │    └── HostNotAllowed        host_not_allowed
     ├── RouteNotFound              not_found
     ├── MethodNotAllowed           method_not_allowed
     ├── AccessDenied                                   the Resource API says no
     │    ├── InvalidCredentials    invalid_credentials
     │    ├── NotAuthenticated      not_authenticated
     │    │    └── TokenRefused     not_authenticated   a call's 401; sessions logs in again once
     │    ├── Forbidden             forbidden
     │    │    └── TokenForbidden   forbidden           a call's 403; the same
     │    ├── HardwareMismatch      hardware_mismatch
     │    ├── AccountLocked         account_locked      may carry retry_after_s
     │    └── RateLimited           rate_limited        may carry retry_after_s
     ├── ResourceNotFound           resource_not_found
     ├── TooLarge                   too_large
     ├── IntegrityError             integrity_error
     ├── UpstreamError              upstream_error      answered nonsense
     │    ├── UpstreamUnavailable   upstream_unavailable
     │    └── UpstreamTimeout       upstream_timeout
     ├── DiskFull                   disk_full
     ├── MisconfiguredDevice        internal_error      a file of the device can't be used
     └── UnlockError                                    ends an unlock run
          ├── ArchiveError
          │    ├── ArchiveNotFound    archive_not_found
          │    ├── ArchiveInvalid     archive_invalid
          │    ├── ArchiveIncomplete  archive_incomplete
          │    ├── ArchiveUntrusted   archive_untrusted
          │    ├── ArchiveTooOld      archive_too_old
          │    ├── WrongKey           wrong_key
          │    └── WrongPlatform      wrong_platform
          ├── DockerError
          │    ├── DockerUnavailable  docker_unavailable
          │    ├── DockerFailed       docker_failed
          │    └── DockerStalled      docker_stalled
          ├── ImagesMissing           images_missing
          └── Interrupted             interrupted

`code` is the stable word that clients see, `message` a sentence without a secret; `http_errors.py` has the statuses.
"""

from typing import ClassVar

# One sentence for a wrong key, wrong padding, a wrong length, a wrong MAC: which of them it was helps only a forger.
INTEGRITY_MESSAGE = "The data is damaged or incomplete, or was made with another key."


class LoaderError(Exception):
    """Root of the tree.

    `message` is one sentence for a person; `retry_after_s` are whole seconds to wait, where the other side named them.
    """

    code: ClassVar[str] = "internal_error"

    def __init__(self, message: str, *, retry_after_s: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after_s = retry_after_s


class InvalidRequest(LoaderError):
    """The request's path or body can't be used."""

    code = "invalid_request"


class InvalidName(InvalidRequest):
    """A file or folder name is outside the rule of `names.py`."""

    code = "invalid_name"


class RefusedCaller(LoaderError):
    """The caller may not use this service; raised by name only through its subclasses."""

    code = "unauthorized"


class Unauthorized(RefusedCaller):
    """The bearer token of this service is missing or wrong."""


class CrossSite(RefusedCaller):
    """A page of another origin tried to change state."""

    code = "cross_site"


class HostNotAllowed(RefusedCaller):
    """The request's Host is not one that this service answers to."""

    code = "host_not_allowed"


class RouteNotFound(LoaderError):
    """No such path."""

    code = "not_found"


class MethodNotAllowed(LoaderError):
    """The path exists, but not for this method."""

    code = "method_not_allowed"


class AccessDenied(LoaderError):
    """The Resource API refused; raised by name only through its subclasses."""

    code = "forbidden"


class InvalidCredentials(AccessDenied):
    """Wrong e-mail or password, account disabled, or a second factor demanded."""

    code = "invalid_credentials"


class NotAuthenticated(AccessDenied):
    """No session, or a token that stays refused after one new log-in or fails the signature check."""

    code = "not_authenticated"


class Forbidden(AccessDenied):
    """The Resource API answered 403 even after one new log-in."""

    code = "forbidden"


class TokenRefused(NotAuthenticated):
    """The Resource API answered 401 to this token; a new one may do better."""


class TokenForbidden(Forbidden):
    """The Resource API answered 403 to this token; a new one may do better."""


class HardwareMismatch(AccessDenied):
    """The account is bound to another machine (API codes 40 and 45)."""

    code = "hardware_mismatch"


class AccountLocked(AccessDenied):
    """The account is locked upstream for a while."""

    code = "account_locked"


class RateLimited(AccessDenied):
    """Too many tries upstream."""

    code = "rate_limited"


class ResourceNotFound(LoaderError):
    """The resource does not exist: a normal answer, not a fault."""

    code = "resource_not_found"


class TooLarge(LoaderError):
    """An upload over the limit."""

    code = "too_large"


class IntegrityError(LoaderError):
    """Parts that don't fit, a wrong key or damaged bytes: one message for every cause."""

    code = "integrity_error"

    def __init__(self, message: str = INTEGRITY_MESSAGE, *, retry_after_s: int | None = None) -> None:
        super().__init__(message, retry_after_s=retry_after_s)


class UpstreamError(LoaderError):
    """The Resource API or the object store answered something that can't be used."""

    code = "upstream_error"


class UpstreamUnavailable(UpstreamError):
    """The Resource API or the object store can't be reached."""

    code = "upstream_unavailable"


class UpstreamTimeout(UpstreamError):
    """The Resource API or the object store did not answer in time."""

    code = "upstream_timeout"


class DiskFull(LoaderError):
    """Not enough room; the message holds the needed and the free bytes."""

    code = "disk_full"


class MisconfiguredDevice(LoaderError):
    """A file that the device's owner configured can't be used; the message names it and says what it must hold."""

    code = "internal_error"


class UnlockError(LoaderError):
    """Ends an unlock run; raised by name only through its subclasses."""


class ArchiveError(UnlockError):
    """The image archive can't be used."""

    code = "archive_invalid"


class ArchiveNotFound(ArchiveError):
    """No archive on the device, and the required images are not loaded."""

    code = "archive_not_found"


class ArchiveInvalid(ArchiveError):
    """The archive is damaged, cut, or holds something that `docker save` does not write."""


class ArchiveIncomplete(ArchiveError):
    """The archive is whole, but a required image or one of its layers is not in it."""

    code = "archive_incomplete"


class ArchiveUntrusted(ArchiveError):
    """The archive's signature is missing, wrong, or of another archive."""

    code = "archive_untrusted"


class ArchiveTooOld(ArchiveError):
    """A trusted archive, but older than one that this device has loaded."""

    code = "archive_too_old"


class WrongKey(ArchiveError):
    """The key fragment does not open the archive."""

    code = "wrong_key"


class WrongPlatform(ArchiveError):
    """The images are made for another operating system or processor than the engine's."""

    code = "wrong_platform"


class DockerError(UnlockError):
    """The container engine did not do what was asked."""

    code = "docker_failed"


class DockerUnavailable(DockerError):
    """No client, no engine behind it, or no permission to speak to it."""

    code = "docker_unavailable"


class DockerFailed(DockerError):
    """The engine refused or broke off."""


class DockerStalled(DockerError):
    """The engine went silent for longer than allowed."""

    code = "docker_stalled"


class ImagesMissing(UnlockError):
    """The engine reported success, but the required images are not those of the archive."""

    code = "images_missing"


class Interrupted(UnlockError):
    """The loader was stopped in the middle of a run."""

    code = "interrupted"
