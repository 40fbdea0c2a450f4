from collections.abc import Mapping
from enum import IntEnum
from typing import final

class RoleEnum(IntEnum):
    """Roles of the Resource API; shown, never enforced here."""

    NONE = 0
    OPERATOR = 10
    VALIDATOR = 20
    COMPANION_PC = 30
    ADMIN = 40
    RESOURCE_UPLOADER = 50
    API_ADMIN = 1000

@final
class User:
    """Who is logged in, as the token says."""

    def __init__(self, user_id: str, email: str, role: RoleEnum) -> None: ...
    @property
    def user_id(self) -> str: ...
    @property
    def email(self) -> str: ...
    @property
    def role(self) -> RoleEnum: ...

def role_from_name(name: object) -> RoleEnum:
    """Return the role that the API spells `name`; anything else is NONE."""

def user_from_claims(claims: Mapping[str, object]) -> User:
    """Return the user whom a token's claims describe.

    Raises UpstreamError where `nameid` or `unique_name` is missing or is no usable text.
    """
