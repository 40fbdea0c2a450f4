"""The user behind a token: claims `nameid`, `unique_name` and `role` of the Resource API."""

import cython
from collections.abc import Mapping
from enum import IntEnum

from azaion_loader.errors import UpstreamError

cdef int CLAIM_MAX_CHARACTERS = 320  # the longest e-mail address of RFC 3696; a UUID is far below


class RoleEnum(IntEnum):
    """Roles of the Resource API; shown, never enforced here."""

    NONE = 0
    OPERATOR = 10
    VALIDATOR = 20
    COMPANION_PC = 30
    ADMIN = 40
    RESOURCE_UPLOADER = 50
    API_ADMIN = 1000


cdef dict ROLES_BY_NAME = {
    "None": RoleEnum.NONE,
    "Operator": RoleEnum.OPERATOR,
    "Validator": RoleEnum.VALIDATOR,
    "CompanionPC": RoleEnum.COMPANION_PC,
    "Admin": RoleEnum.ADMIN,
    "ResourceUploader": RoleEnum.RESOURCE_UPLOADER,
    "ApiAdmin": RoleEnum.API_ADMIN,
}


@cython.final
cdef class User:
    """Who is logged in, as the token says."""

    def __init__(self, str user_id not None, str email not None, role: RoleEnum) -> None:
        self.user_id = user_id
        self.email = email
        self.role = RoleEnum(role)

    def __repr__(self) -> str:
        return f"User(user_id={self.user_id!r}, email='***', role={self.role.name})"


def role_from_name(name: object) -> RoleEnum:
    """Return the role that the API spells `name`; anything else is NONE."""
    return ROLES_BY_NAME.get(name, RoleEnum.NONE) if isinstance(name, str) else RoleEnum.NONE


def user_from_claims(claims: Mapping) -> User:
    """Return the user whom a token's claims describe.

    The e-mail is taken as given, since the download key depends on its exact spelling.
    Raises UpstreamError where `nameid` or `unique_name` is missing or is no usable text.
    """
    return User(claim_text(claims, "nameid"), claim_text(claims, "unique_name"), role_from_name(claims.get("role")))


cdef str claim_text(object claims, str name):
    value = claims.get(name)
    if (
        not isinstance(value, str)
        or not value.strip()
        or len(value) > CLAIM_MAX_CHARACTERS
        or not value.isprintable()
    ):
        raise UpstreamError(f"The Resource API's token holds no usable '{name}'.")
    return value
