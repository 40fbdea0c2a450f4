"""The calls of the development Resource API: from a request to an answer, without sockets."""

import json
import re
import urllib.parse
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from azaion_devkit import reference_crypto
from azaion_devkit.resource_api_state import KEY_FRAGMENT_FILE, DevUser, Tokens, Users

UPLOAD_LIMIT_BYTES = 200 * 1024 * 1024
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*", re.ASCII)
_MESSAGES = {
    10: "No such email found.",
    30: "Passwords do not match.",
    32: "Password should be at least 8 characters.",
    35: "Email is empty or invalid.",
    37: "Wrong email.",
    38: "User is disabled.",
    40: "Hardware mismatch! You are not authorized to access this resource from this hardware.",
    45: "Hardware should be not empty.",
    50: "Wrong resource file name.",
    60: "No file provided.",
}

Missing = Literal["404", "409", "500"]


@dataclass(slots=True)
class Answer:
    """An HTTP answer."""

    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)

    @classmethod
    def json(cls, value: object, status: int = 200) -> "Answer":
        """Return an answer with a JSON body."""
        return cls(status, json.dumps(value).encode(), {"Content-Type": "application/json; charset=utf-8"})

    @classmethod
    def binary(cls, data: bytes) -> "Answer":
        """Return an answer with bytes."""
        return cls(200, data, {"Content-Type": "application/octet-stream"})


class BusinessError(Exception):
    """A refusal that the API reports as 409 with a code."""

    def __init__(self, code: int) -> None:
        super().__init__(_MESSAGES[code])
        self.code = code


@dataclass(slots=True)
class Resources:
    """Files under one folder; the root folder has the name ''."""

    root: Path

    def path(self, folder: str, name: str) -> Path:
        """Return where a resource lies. Raises BusinessError 50 for a name that can't be one."""
        if not _NAME.fullmatch(name) or (folder and not _NAME.fullmatch(folder)):
            raise BusinessError(50)
        return self.root / folder / name

    def names(self, folder: str) -> list[str]:
        """Return the names of a folder's resources, sorted; a missing folder is empty."""
        directory = self.root / folder
        if not directory.is_dir():
            return []
        return sorted(path.name for path in directory.iterdir() if path.is_file() and _NAME.fullmatch(path.name))

    def write(self, path: Path, data: bytes) -> None:
        """Replace a file in one step, so that a reader sees the older or the newer one."""
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f".{path.name}.new")
        aside.write_bytes(data)
        aside.replace(path)


@dataclass(slots=True)
class Service:
    """The operations over users, tokens and resources; the switches are those of DevResourceApi."""

    users: Users
    tokens: Tokens
    resources: Resources
    missing: Missing = "404"
    token_field: str = "token"  # noqa: S105 - the name of a JSON property
    extra_fields: dict[str, object] = field(default_factory=dict)

    def answer(self, method: str, target: str, headers: Mapping[str, str], body: bytes) -> tuple[Answer, str | None]:
        """Return the answer to a request, and the e-mail of its bearer token."""
        parts = urllib.parse.urlsplit(target)
        words = [urllib.parse.unquote(word) for word in parts.path.strip("/").split("/")]
        user = self._bearer(headers)
        try:
            if (method, words) == ("POST", ["login"]):
                return self._login(body), None
            operation = self._route(method, words, urllib.parse.parse_qs(parts.query), headers)
            if operation is None:
                return Answer(404), user.email if user else None
            if user is None:
                return Answer(401, headers={"WWW-Authenticate": "Bearer"}), None
            return operation(user, body), user.email
        except BusinessError as err:
            value = {"ErrorCode": err.code, "Message": str(err)}
            return Answer.json(value, 409), user.email if user else None
        except (ValueError, KeyError, TypeError):
            return Answer.json({"title": "One or more validation errors occurred."}, 400), user.email if user else None

    def _route(
        self, method: str, words: list[str], query: dict[str, list[str]], headers: Mapping[str, str]
    ) -> Callable[[DevUser, bytes], Answer] | None:
        match method, words:
            case "GET", ["binary-split", "key-fragment"]:
                return self._key_fragment
            case "POST", ["resources", "check"]:
                return self._check
            case "POST", ["resources", "get", *rest] if len(rest) < 2:
                return lambda user, body: self._get(user, "".join(rest), body)
            case "GET", ["resources", "list", *rest] if len(rest) < 2:
                return lambda _user, _body: self._list("".join(rest), query.get("search", [""])[0])
            case "POST", ["resources", *rest] if len(rest) < 2:
                return lambda _user, body: self._put("".join(rest), headers.get("Content-Type", ""), body)
        return None

    def _bearer(self, headers: Mapping[str, str]) -> DevUser | None:
        scheme, _, token = headers.get("Authorization", "").partition(" ")
        email = self.tokens.email_of(token) if scheme.lower() == "bearer" else None
        return self.users.find(email) if email else None

    def _login(self, body: bytes) -> Answer:
        request = _properties(body)
        email, password = str(request["email"]), str(request["password"])
        if "@" not in email:
            raise BusinessError(35)
        if len(password) < 8:
            raise BusinessError(32)
        user = self.users.find(email)
        if user is None:
            raise BusinessError(10)
        if user.password != password:
            raise BusinessError(30)
        if user.disabled:
            raise BusinessError(38)
        return Answer.json({self.token_field: self.tokens.issue(user), **self.extra_fields})

    def _key_fragment(self, _user: DevUser, _body: bytes) -> Answer:
        path = self.resources.root / KEY_FRAGMENT_FILE
        return Answer.binary(path.read_bytes()) if path.exists() else Answer(404)

    def _check(self, user: DevUser, body: bytes) -> Answer:
        self._bind(user, str(_properties(body)["hardware"]))
        return Answer.json(True)

    def _bind(self, user: DevUser, hardware: str) -> None:
        if not hardware:
            raise BusinessError(45)
        if not self.users.bind(user, hardware):
            raise BusinessError(40)

    def _get(self, user: DevUser, folder: str, body: bytes) -> Answer:
        request = _properties(body)
        password, hardware, name = (str(request[key]) for key in ("password", "hardware", "filename"))
        if password != user.password:
            raise BusinessError(30)
        self._bind(user, hardware)
        path = self.resources.path(folder, name)
        if not path.is_file():
            if self.missing == "409":
                raise BusinessError(50)
            return Answer(int(self.missing))
        key = reference_crypto.download_key(user.email, password, hardware)
        return Answer.binary(reference_crypto.encrypt(path.read_bytes(), key))

    def _list(self, folder: str, search: str) -> Answer:
        return Answer.json([name for name in self.resources.names(folder) if search in name])

    def _put(self, folder: str, content_type: str, body: bytes) -> Answer:
        if len(body) > UPLOAD_LIMIT_BYTES:
            return Answer(413)
        name, data = _file_part(content_type, body)
        self.resources.write(self.resources.path(folder, name), data)
        return Answer(200)


def _properties(body: bytes) -> dict[str, object]:
    """Return the JSON object with its names in lower case."""
    value = json.loads(body)
    if not isinstance(value, dict):
        raise TypeError("not an object")
    return {str(key).lower(): item for key, item in value.items()}


def _file_part(content_type: str, body: bytes) -> tuple[str, bytes]:
    """Return file name and bytes of the multipart part `data`. Raises BusinessError 60 where there is none."""
    boundary = re.search(r'boundary="?([^";]+)"?', content_type)
    for part in body.split(b"--" + boundary[1].encode()) if boundary else []:
        head, found, data = part.partition(b"\r\n\r\n")
        name = re.search(rb'[; ]name="data"', head)
        filename = re.search(rb'filename="([^"]*)"', head)
        if found and name and filename:
            return filename[1].decode(), data.removesuffix(b"\r\n")
    raise BusinessError(60)
