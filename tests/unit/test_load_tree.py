"""The steps of a load, from chains of layers alone."""

import dataclasses
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from azaion_loader import load_tree
from azaion_loader.archive_model import ArchiveImage, ArchiveIndex, Layer
from azaion_loader.load_plan import held_layers
from azaion_loader.load_tree import MIN_SHARED_BYTES, LoadStep, branching_steps, whole_step

BIG, SMALL = MIN_SHARED_BYTES, 100
Chains = Sequence[Sequence[str]]


def digest(name: str) -> str:
    return f"sha256:{name * 64}"[:71]


def layer(name: str) -> Layer:
    """Capital letters are large layers."""
    size = BIG if name.isupper() else SMALL
    return Layer(name, 512 + ord(name) * (BIG + 4096), size, digest(name), digest(name))


def image(number: int, chain: Sequence[str]) -> ArchiveImage:
    layers = tuple(layer(name) for name in chain)
    config = f'{{"n": {number}}}'.encode()
    diff_ids = tuple(part.diff_id for part in layers)
    return ArchiveImage(
        (f"i{number}:1",), f"sha256:{number:064x}", config, diff_ids, layers, "linux", "arm64", "v8", ""
    )


def tag_of(base: ArchiveImage) -> str:
    return f"base:{base.config_digest}"


def steps(chains: Chains, held: Chains = (), shape: load_tree.Shape = "docker") -> tuple[LoadStep, ...]:
    images = [(image(number, chain), f"staged:{number}") for number, chain in enumerate(chains)]
    index = ArchiveIndex(tuple(i for i, _ in images), 1 << 40, "docker", False, 1 << 41)
    return branching_steps(index, images, [[digest(n) for n in chain] for chain in held], shape, tag_of)


def given_names(step: LoadStep) -> str:
    return "".join(part.name for part in step.stream.layers)


LETTERS = "ABCDabcd"
CHAIN = st.lists(st.sampled_from(LETTERS), max_size=5, unique=True)


@given(st.lists(CHAIN, max_size=6), st.lists(CHAIN, max_size=3), st.sampled_from(["docker", "oci"]))
def test_every_step_is_given_what_it_needs_and_nothing_that_stands(
    chains: Chains, held: Chains, shape: load_tree.Shape
) -> None:
    planned = steps(chains, held, shape)
    brought = [tag for step in planned for _, tag in step.images if not step.is_base]
    assert sorted(brought) == [f"staged:{number}" for number in range(len(chains))]
    engine = [[digest(n) for n in chain] for chain in held]
    for number, step in enumerate(planned):
        ((own, tag),) = step.images
        assert step.stream.tags == (tag,)
        before = list(engine)
        after = step.after
        while after is not None:
            assert after < number
            before.append(list(planned[after].images[0][0].diff_ids))
            after = planned[after].after
        standing = held_layers(own.diff_ids, before)
        sent = {part.diff_id for part in step.stream.layers}
        assert sent == set(own.diff_ids[standing:])


@given(st.lists(CHAIN, min_size=1, max_size=6), st.lists(CHAIN, max_size=3))
def test_a_large_shared_layer_is_given_once(chains: Chains, held: Chains) -> None:
    planned = steps(chains, held)
    places = [
        (tuple(own.diff_ids[: own.diff_ids.index(part.diff_id) + 1]))
        for step in planned
        for own, _ in step.images
        for part in step.stream.layers
        if part.size == BIG
    ]
    shared = [place for place in set(places) if places.count(place) > 1]
    assert not shared


@given(st.lists(CHAIN, max_size=5))
def test_the_same_layers_make_the_same_base(chains: Chains) -> None:
    first, second = steps(chains), steps(list(reversed(chains)))
    assert {tag for s in first if s.is_base for _, tag in s.images} == {
        tag for s in second if s.is_base for _, tag in s.images
    }


def test_seven_images_over_one_base() -> None:
    planned = steps([["A", name, "z"] for name in "BCDEFGH"])
    assert given_names(planned[0]) == "A"
    assert planned[0].is_base
    assert planned[0].after is None
    assert {step.after for step in planned[1:]} == {0}
    assert sorted(given_names(step) for step in planned[1:]) == [f"{name}z" for name in "BCDEFGH"]
    # What the engine holds already is not given again, and needs no step.
    assert [given_names(step) for step in steps([["A", "b"], ["A", "c"]], [["A", "x"]])] == ["b", "c"]
    assert [given_names(step) for step in steps([["A", "b"], ["A", "c"]], [["A", "b"]])] == ["c", ""]


def test_bases_stand_on_bases() -> None:
    planned = steps([["A", "B", "c"], ["A", "B", "d"], ["A", "E"]])
    assert [(given_names(step), step.is_base, step.after) for step in planned] == [
        ("A", True, None),
        ("B", True, 0),
        ("c", False, 1),
        ("d", False, 1),
        ("E", False, 0),
    ]


def test_little_that_is_shared_goes_with_each() -> None:
    assert [(given_names(step), step.after) for step in steps([["a", "b"], ["a", "c"]])] == [("ab", None), ("ac", None)]


def test_without_images_there_is_nothing_to_do() -> None:
    assert whole_step(ArchiveIndex((), 0, "docker", False, 1), []) == ()
    assert steps([["A"]])[0].after is None


@pytest.mark.parametrize(("held", "names"), [((), "ABC"), ((["A", "B"],), "C"), ((["B"],), "ABC")])
def test_a_whole_step_leaves_out_what_is_held(held: Chains, names: str) -> None:
    images = [(image(0, "ABC"), "staged:0"), (image(1, "AB"), "staged:1")]
    index = ArchiveIndex(tuple(i for i, _ in images), 1 << 40, "docker", False, 1 << 41)
    (step,) = whole_step(index, images, [[digest(n) for n in chain] for chain in held])
    assert given_names(step) == names
    assert dataclasses.replace(step, after=None) == step
