"""The Resource API: log-in, key fragment, resources.

The bearer token goes to the configured address and nowhere else: addresses are built from it, and redirects are not
followed. What answers mean stands in `api_answers`, how calls end in time in `http_transport`.
"""

from urllib.parse import quote, urlencode

cimport cython

from azaion_loader.api_answers import error_of, names_no_resource, read_json, token_of
from azaion_loader.errors import HardwareMismatch, ResourceNotFound, UpstreamError
from azaion_loader.http_transport import HttpTransport

KEY_FRAGMENT_MAX_BYTES = 64 * 1024
RESOURCE_MAX_BYTES = 64 * 1024 * 1024
_JSON_MAX_BYTES = 1024 * 1024
_LIST_MAX_BYTES = 16 * 1024 * 1024


@cython.final
cdef class ApiClient:
    """A client of one Resource API; thread-safe.

    Every method raises UpstreamUnavailable, UpstreamTimeout or UpstreamError when the API can't be reached, is slow
    or answers nonsense; AccountLocked and RateLimited with the wait that it asks for; and, but for login(),
    TokenRefused (401) and TokenForbidden (403), after which a new token may do better.
    """

    def __init__(
        self,
        base_url: str,
        *,
        connect_timeout_s: float,
        login_timeout_s: float,
        request_timeout_s: float,
        stall_timeout_s: float,
    ) -> None:
        """Connect nowhere yet; `base_url` starts with https:// or http:// and may have a path."""
        self._base_url = base_url.rstrip("/")
        self._login_timeout_s = login_timeout_s
        self._request_timeout_s = request_timeout_s
        self._transport = HttpTransport(
            "Resource API", connect_timeout_s=connect_timeout_s, stall_timeout_s=stall_timeout_s
        )

    def login(self, credentials: object) -> str:
        """Log in and return the token.

        Raises InvalidCredentials (wrong e-mail or password, account disabled, second factor demanded),
        HardwareMismatch, AccountLocked, RateLimited, UpstreamError.
        """
        answer = self._transport.request(
            "POST",
            self._base_url + "/login",
            timeout_s=self._login_timeout_s,
            max_bytes=_JSON_MAX_BYTES,
            json={"email": credentials.email, "password": credentials.password},
            repeatable=False,
        )
        if answer.status == 200:
            return token_of(answer.body)
        error = error_of(answer.status, answer.headers, answer.body, at_login=True)
        if isinstance(error, ResourceNotFound):
            raise UpstreamError("There is no log-in at the Resource API's address; check RESOURCE_API_URL.")
        raise error

    def key_fragment(self, token: str) -> bytes:
        """Return the key fragment of the image archive, 1 to 65536 bytes.

        Raises ResourceNotFound when the API has none, UpstreamError when it is empty or too long.
        """
        answer = self._call("GET", "/binary-split/key-fragment", token, KEY_FRAGMENT_MAX_BYTES, None, None, (404,))
        if answer.status == 404:
            raise ResourceNotFound("The Resource API has no key fragment for this account.")
        return _bytes_of(answer)

    def get_resource(
        self,
        token: str,
        folder: str,
        name: str,
        credentials: object,
        hardware: str,
        max_bytes: int = RESOURCE_MAX_BYTES,
    ) -> bytes:
        """Return a resource as the API sends it: encrypted under the download key of these credentials and hardware.

        An empty `folder` is the API's root. Raises ResourceNotFound, HardwareMismatch, InvalidCredentials (the
        password is no longer the account's), UpstreamError when it is longer than `max_bytes`.
        """
        body = {"password": credentials.password, "hardware": hardware, "fileName": name}
        path = _path("/resources/get", folder)
        answer = self._call("POST", path, token, max_bytes, body, None, (404, 409, 500))
        missing = names_no_resource(answer.status, answer.body)
        if answer.status == 500:
            # Some servers answer so for a missing file; only their list tells it from a true fault.
            missing = not self._is_listed(token, folder, name)
        if missing:
            place = f" in '{folder}'" if folder else ""
            raise ResourceNotFound(f"The Resource API has no resource '{name}'{place}.")
        return _bytes_of(answer)

    def list_resources(self, token: str, folder: str, search: str) -> list:
        """Return the names in a folder ('' is the root) that the API finds for `search`; it may find more than equals.

        Raises ResourceNotFound where the API knows no such folder.
        """
        query = "?" + urlencode({"search": search}) if search else ""
        answer = self._call("GET", _path("/resources/list", folder) + query, token, _LIST_MAX_BYTES, None, None, ())
        names = read_json(answer.body)
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise UpstreamError("The Resource API answered a list that is none.")
        return names

    def put_resource(self, token: str, folder: str, name: str, data: bytes) -> None:
        """Store a resource, replacing an older one. `folder` has passed `names.check_folder`, or is '' for the root."""
        files = {"data": (name, data, "application/octet-stream")}
        answer = self._call("POST", _path("/resources", folder), token, _JSON_MAX_BYTES, None, files, (404,))
        if answer.status == 404:
            raise UpstreamError("The Resource API takes no upload there.")

    def check_hardware(self, token: str, hardware: str) -> None:
        """Bind the account to this hardware, or compare. Raises HardwareMismatch."""
        body = {"hardware": hardware}
        answer = self._call("POST", "/resources/check", token, _JSON_MAX_BYTES, body, None, (404,))
        if answer.status == 404:
            raise UpstreamError("The Resource API takes no hardware check.")
        accepted = read_json(answer.body)
        if accepted is False:
            raise HardwareMismatch("The account is bound to another machine.")
        if accepted is not True:
            raise UpstreamError("The Resource API answered a hardware check with neither true nor false.")

    def close(self) -> None:
        """Close the kept connections; the client may be used again."""
        self._transport.close()

    cdef object _call(
        self,
        str method,
        str path,
        str token,
        Py_ssize_t max_bytes,
        object json,
        object files,
        tuple accept,
    ):
        """Return the answer to a call when its status is a success or in `accept`; raise what any other one means."""
        answer = self._transport.request(
            method,
            self._base_url + path,
            timeout_s=self._request_timeout_s,
            max_bytes=max(max_bytes, _JSON_MAX_BYTES),
            headers={"Authorization": "Bearer " + token},
            json=json,
            files=files,
            repeatable=True,
        )
        if len(answer.body) > max_bytes and 200 <= answer.status < 300:
            raise UpstreamError(f"The Resource API answered with more than {max_bytes} bytes.")
        if 200 <= answer.status < 300 or answer.status in accept:
            return answer
        raise error_of(answer.status, answer.headers, answer.body, at_login=False)

    cdef object _is_listed(self, str token, str folder, str name):
        """Tell whether the API lists a resource, in one call."""
        try:
            return name in self.list_resources(token, folder, name)
        except ResourceNotFound:
            return False


cdef str _path(str route, str folder):
    return route + "/" + quote(folder, safe="") if folder else route


cdef bytes _bytes_of(object answer):
    """Return the bytes of a success; raise when there are none, or a portal's page with status 200 in their place."""
    if answer.status != 200:
        raise error_of(answer.status, answer.headers, answer.body, at_login=False)
    if answer.media_type in ("text/html", "application/xhtml+xml"):
        raise UpstreamError("The Resource API answered with a web page in place of bytes.")
    if not answer.body:
        # Neither a key fragment nor an encrypted file, which has an IV at least, is ever empty.
        raise UpstreamError("The Resource API answered with no bytes.")
    return answer.body
