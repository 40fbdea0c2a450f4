"""Users from the claims of a token."""

import pytest

from azaion_loader.errors import UpstreamError
from azaion_loader.user import RoleEnum, User, role_from_name, user_from_claims

ID = "0b7c8f6e-6a52-4b7f-9a3e-0d2f1c5b9e77"


@pytest.mark.parametrize(
    ("name", "role", "number"),
    [
        ("None", RoleEnum.NONE, 0),
        ("Operator", RoleEnum.OPERATOR, 10),
        ("Validator", RoleEnum.VALIDATOR, 20),
        ("CompanionPC", RoleEnum.COMPANION_PC, 30),
        ("Admin", RoleEnum.ADMIN, 40),
        ("ResourceUploader", RoleEnum.RESOURCE_UPLOADER, 50),
        ("ApiAdmin", RoleEnum.API_ADMIN, 1000),
    ],
)
def test_roles_as_the_api_spells_them(name: str, role: RoleEnum, number: int) -> None:
    user = user_from_claims({"nameid": ID, "unique_name": "User@Example.com", "role": name, "iss": "AzaionApi"})
    assert (user.user_id, user.email, user.role) == (ID, "User@Example.com", role)
    assert int(user.role) == number


@pytest.mark.parametrize("name", ["", "admin", "SuperAdmin", "COMPANION_PC", 40, None, ["Admin"], {}])
def test_an_unknown_role_is_none(name: object) -> None:
    assert role_from_name(name) is RoleEnum.NONE


def test_a_missing_role_is_none() -> None:
    assert user_from_claims({"nameid": ID, "unique_name": "a@b"}).role is RoleEnum.NONE


@pytest.mark.parametrize("claim", ["nameid", "unique_name"])
@pytest.mark.parametrize("value", [None, "", "  ", 7, ["a@b"], "a\nb", "x" * 321])
def test_an_unusable_claim_is_named(claim: str, value: object) -> None:
    claims: dict[str, object] = {"nameid": ID, "unique_name": "a@b", "role": "Admin", claim: value}
    with pytest.raises(UpstreamError, match=f"'{claim}'"):
        user_from_claims(claims)


def test_a_missing_claim_is_named() -> None:
    with pytest.raises(UpstreamError, match="'nameid'"):
        user_from_claims({})


def test_the_email_is_not_shown() -> None:
    assert "someone" not in repr(User(ID, "someone@example.com", RoleEnum.ADMIN))
