"""Credentials show nothing, compare by content and never leave the process."""

import copy
import pickle

import pytest

from azaion_loader.credentials import Credentials
from azaion_loader.errors import InvalidRequest


def test_fields_are_kept_as_given() -> None:
    credentials = Credentials("User@Example.com", " pässword ")
    assert (credentials.email, credentials.password) == ("User@Example.com", " pässword ")


def test_neither_text_is_shown() -> None:
    shown = repr(Credentials("user@example.com", "password1")) + f"{Credentials('user@example.com', 'password1')}"
    assert "user" not in shown
    assert "password1" not in shown


def test_equality_is_by_both_texts() -> None:
    credentials = Credentials("a@b", "password1")
    assert credentials == Credentials("a@b", "password1")
    assert credentials != Credentials("a@b", "password2")
    assert credentials != Credentials("a@c", "password1")
    assert credentials != ("a@b", "password1")


def test_they_have_no_hash() -> None:
    with pytest.raises(TypeError, match="unhashable"):
        hash(Credentials("a@b", "password1"))


@pytest.mark.parametrize("duplicate", [pickle.dumps, copy.copy, copy.deepcopy])
def test_they_are_never_pickled_or_copied(duplicate: object) -> None:
    with pytest.raises(TypeError, match="never pickled"):
        duplicate(Credentials("a@b", "password1"))  # type: ignore[operator]


def test_fields_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        Credentials("a@b", "password1").password = "other"  # type: ignore[misc]


@pytest.mark.parametrize(("email", "password"), [("a\ud800", "password1"), ("a@b", "pass\udfffword")])
def test_half_a_surrogate_is_refused_without_showing_it(email: str, password: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        Credentials(email, password)
    assert caught.value.__context__ is None
    assert "word1" not in str(caught.value)


@pytest.mark.parametrize("arguments", [(None, "p"), ("e", None), (b"e", "p")])
def test_only_texts_are_taken(arguments: tuple[str, str]) -> None:
    with pytest.raises(TypeError):
        Credentials(*arguments)
