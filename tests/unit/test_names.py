"""The white list for names of resources and folders."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from azaion_loader.errors import InvalidName
from azaion_loader.names import check_filename, check_folder

GOOD = ["a", "9", "model.bin", "a-b_c.d", "A" * 128, "yolo.v8-n", "a.", "a-"]
BAD = [
    "",
    ".",
    "..",
    ".a",
    "-a",
    "_a",
    "a..b",
    "a/b",
    "a\\b",
    "a%2fb",
    "a b",
    "a\0",
    "a\n",
    "\na",
    "ä",
    "\uff41",
    "a\u0661",
    "a\u202eb",
    "a:b",
    "a*",
    "A" * 129,
    "a" * 300,
    "\ud800",
]
RESERVED = ["get", "list", "check", "clear", "publish", "GET", "Publish", "get-", "get-x", "GET-anything"]


@pytest.mark.parametrize("name", GOOD)
def test_good_names(name: str) -> None:
    check_filename(name)
    check_folder(name)


@pytest.mark.parametrize("name", BAD)
def test_bad_names(name: str) -> None:
    for check in (check_filename, check_folder):
        with pytest.raises(InvalidName) as refusal:
            check(name)
        assert len(refusal.value.message) < 300


@pytest.mark.parametrize("name", RESERVED)
def test_route_words_are_no_folders(name: str) -> None:
    check_filename(name)
    with pytest.raises(InvalidName, match="route word"):
        check_folder(name)


@pytest.mark.parametrize("name", ["getter", "lists", "checks", "models", "get_x", "get.x", "xget-"])
def test_words_beside_the_route_words_are_folders(name: str) -> None:
    check_folder(name)


@given(st.text())
def test_only_the_white_list_passes(name: str) -> None:
    allowed = re.fullmatch("[A-Za-z0-9][A-Za-z0-9._-]{0,127}", name) is not None and ".." not in name
    try:
        check_filename(name)
    except InvalidName:
        assert not allowed
    else:
        assert allowed
