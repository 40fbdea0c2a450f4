"""What the development Resource API knows: users, tokens, the calls it saw and the faults it shall show."""

import itertools
import threading
import time
import tomllib
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import jwt
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from azaion_devkit.hold import Hold

USERS_FILE = ".users.toml"
KEY_FRAGMENT_FILE = ".key-fragment"
_SHARED_SECRET = "development-secret-of-the-development-resource-api"  # noqa: S105 - signs development tokens only


@dataclass(slots=True)
class DevUser:
    """An account; `hardware` is bound by the first call that names one."""

    email: str
    password: str
    role: str = "Operator"
    disabled: bool = False
    user_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    hardware: str | None = None


class Call(NamedTuple):
    """One call as the server saw it; `status` is 0 where it sent no whole answer, `email` is of the bearer token."""

    method: str
    path: str
    status: int
    email: str | None


@dataclass(frozen=True, slots=True)
class Fault:
    """What shall happen to the next calls of a path; see DevResourceApi.fail_next."""

    path_prefix: str
    method: str | None = None
    status: int | None = None
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    delay_s: float = 0.0
    drip_s: float = 0.0
    drip_bytes: int = 1
    hang: bool = False
    close: bool = False
    reset: bool = False
    cut_bytes: int | None = None
    raw: bytes | None = None
    hold: Hold | None = None

    def concerns(self, method: str, path: str) -> bool:
        """Whether this fault is meant for that call."""
        return path.startswith(self.path_prefix) and self.method in {None, method}


class Script:
    """Faults in the order in which they were asked for, and the calls seen so far. Thread-safe."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self._pending: list[tuple[Fault, int]] = []
        self._lock = threading.Lock()

    def add(self, fault: Fault, times: int) -> None:
        """Show `fault` to the next `times` calls that it concerns."""
        with self._lock:
            self._pending.append((fault, times))

    def take(self, method: str, path: str) -> Fault | None:
        """Return the fault for this call, if one is due, and count it."""
        with self._lock:
            for index, (fault, times) in enumerate(self._pending):
                if fault.concerns(method, path):
                    self._pending[index : index + 1] = [(fault, times - 1)] if times > 1 else []
                    return fault
        return None

    def clear(self) -> None:
        """Forget the faults that are still due."""
        with self._lock:
            self._pending.clear()

    def note(self, call: Call) -> None:
        """Remember a call."""
        with self._lock:
            self.calls.append(call)


class Tokens:
    """Makes and checks JSON Web Tokens: HS256, or ES256/RS256 with a private key in PEM."""

    def __init__(self, signing_key: bytes | None, lifetime_s: float) -> None:
        self.lifetime_s = lifetime_s
        self.extra_claims: dict[str, object] = {}
        self._serial = itertools.count(1)
        self._oldest = 0
        if signing_key is None:
            self.algorithm = "HS256"
            self._sign = self._verify = _SHARED_SECRET
            return
        private = load_pem_private_key(signing_key, password=None)
        self.algorithm = "ES256" if isinstance(private, ec.EllipticCurvePrivateKey) else "RS256"
        self._sign, self._verify = private, private.public_key()  # type: ignore[assignment]

    def issue(self, user: DevUser) -> str:
        """Return a token for this user; `extra_claims` are added, and a claim that is None there is left out."""
        claims: dict[str, object] = {
            "nameid": user.user_id,
            "unique_name": user.email,
            "role": user.role,
            "iss": "AzaionApi",
            "aud": "AnnotationsAndControl",
            "iat": int(time.time()),
            "exp": int(time.time() + self.lifetime_s),
            "jti": str(next(self._serial)),
        }
        claims.update(self.extra_claims)
        kept = {name: value for name, value in claims.items() if value is not None}
        return jwt.encode(kept, self._sign, algorithm=self.algorithm)

    def email_of(self, token: str) -> str | None:
        """Return the e-mail of a token that holds good now, else None."""
        options: dict[str, object] = {"verify_aud": False}
        try:
            claims = jwt.decode(token, self._verify, algorithms=[self.algorithm], options=options)  # type: ignore[arg-type]
        except jwt.PyJWTError:
            return None
        return str(claims["unique_name"]) if int(claims.get("jti", "0")) >= self._oldest else None

    def expire_all(self) -> None:
        """Refuse every token made so far."""
        self._oldest = next(self._serial) + 1


class Users:
    """Accounts by e-mail, without regard to case; the token carries the spelling given here."""

    def __init__(self, users: Iterable[DevUser]) -> None:
        self._users = {user.email.casefold(): user for user in users}
        self._lock = threading.Lock()

    def add(self, user: DevUser) -> DevUser:
        """Add or replace an account."""
        self._users[user.email.casefold()] = user
        return user

    def find(self, email: str) -> DevUser | None:
        """Return the account of this e-mail."""
        return self._users.get(email.casefold())

    def __getitem__(self, email: str) -> DevUser:
        return self._users[email.casefold()]

    def bind(self, user: DevUser, hardware: str) -> bool:
        """Bind the account to this machine when it is free; return whether it is bound to this one."""
        with self._lock:
            if user.hardware is None:
                user.hardware = hardware
            return user.hardware == hardware


def read_users(root: Path) -> list[DevUser]:
    """Return the accounts of `.users.toml` in the folder: a list `users` of tables with the fields of DevUser."""
    path = root / USERS_FILE
    if not path.exists():
        return []
    return [DevUser(**entry) for entry in tomllib.loads(path.read_text(encoding="utf-8")).get("users", [])]
