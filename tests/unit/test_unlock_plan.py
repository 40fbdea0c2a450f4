"""Decisions of a run, from the archive's index and the engine's images alone."""

import json
from typing import Any

import pytest

from azaion_loader.archive_model import ArchiveImage, Layer
from azaion_loader.docker_answers import ImageInfo
from azaion_loader.errors import ArchiveIncomplete, ArchiveInvalid, WrongPlatform
from azaion_loader.required_images import API_SERVICES, required_tags, short_tag
from azaion_loader.unlock_plan import (
    ROLLBACK_REPOSITORY,
    STAGING_REPOSITORY,
    check_platform,
    check_required,
    is_same,
    left_over_tags,
    make_plan,
    staging_tag,
    superseded,
    tagged_images,
)


def digest(number: int) -> str:
    return f"sha256:{number:064x}"


def archive_image(
    number: int, *tags: str, architecture: str = "amd64", config: dict[str, Any] | None = None
) -> ArchiveImage:
    diff_ids = (digest(1000), digest(1000 + number))
    return ArchiveImage(
        tags=tags,
        config_digest=digest(number),
        config=json.dumps({"config": config}).encode(),
        diff_ids=diff_ids,
        layers=tuple(Layer(d, 512, 10, d, d) for d in diff_ids),
        os="linux",
        architecture=architecture,
        variant="",
        created="",
    )


def engine_image(
    number: int, *tags: str, image_id: str | None = None, config: dict[str, Any] | None = None
) -> ImageInfo:
    layers = (digest(1000), digest(1000 + number))
    return ImageInfo(image_id or digest(number), tags, layers, "linux", "amd64", "", config or {})


def test_there_are_seven_required_images() -> None:
    assert required_tags("v1") == (
        "azaion/annotations:v1",
        "azaion/flights:v1",
        "azaion/detections:v1",
        "azaion/gps-denied-onboard:v1",
        "azaion/gps-denied-desktop:v1",
        "azaion/autopilot:v1",
        "azaion/ai-training:v1",
    )
    assert len(API_SERVICES) == 7


@pytest.mark.parametrize(
    ("written", "short"),
    [
        ("azaion/flights:1", "azaion/flights:1"),
        ("docker.io/azaion/flights:1", "azaion/flights:1"),
        ("docker.io/library/debian:12", "debian:12"),
        ("localhost/azaion/flights:1", "azaion/flights:1"),
        ("registry.example:5000/azaion/flights:1", "registry.example:5000/azaion/flights:1"),
    ],
)
def test_an_implied_registry_is_left_out(written: str, short: str) -> None:
    assert short_tag(written) == short


def test_images_are_found_by_their_short_tags() -> None:
    one, two = archive_image(1, "docker.io/a/one:1", "a/same:1"), archive_image(2, "a/two:1")
    assert tagged_images([one, two, archive_image(3)]) == {"a/one:1": one, "a/same:1": one, "a/two:1": two}


def test_two_images_of_one_name_are_refused() -> None:
    with pytest.raises(ArchiveInvalid, match="two images under the name a/x:1"):
        tagged_images([archive_image(1, "a/x:1"), archive_image(2, "docker.io/a/x:1")])


def test_missing_required_images_are_named() -> None:
    tagged = tagged_images([archive_image(1, "a/one:1")])
    check_required(tagged, ["a/one:1"])
    with pytest.raises(ArchiveIncomplete, match="a/two:1, a/three:1"):
        check_required(tagged, ["a/one:1", "a/two:1", "a/three:1"])


def test_another_platform_is_refused() -> None:
    tagged = tagged_images([archive_image(1, "a/one:1", architecture="arm64")])
    check_platform(tagged, "linux", "arm64")
    with pytest.raises(WrongPlatform, match=r"a/one:1 is made for linux/arm64.*linux/amd64"):
        check_platform(tagged, "linux", "amd64")


@pytest.mark.parametrize("store", ["classic", "podman"])
def test_an_image_is_known_by_its_config_digest(store: str) -> None:
    assert is_same(archive_image(1), engine_image(1), store)
    assert not is_same(archive_image(1), engine_image(2), store)
    assert not is_same(archive_image(1), engine_image(1, image_id=digest(9)), store)


def test_a_containerd_store_is_compared_by_content() -> None:
    image = archive_image(1, config={"Env": ["A=1"], "Cmd": None})
    assert is_same(image, engine_image(1, image_id=digest(9), config={"Env": ["A=1"], "Labels": {}}), "containerd")
    assert not is_same(image, engine_image(2, image_id=digest(9), config={"Env": ["A=1"]}), "containerd")
    assert not is_same(image, engine_image(1, image_id=digest(9), config={"Env": ["A=2"]}), "containerd")
    other = archive_image(1, architecture="arm64", config={"Env": ["A=1"]})
    assert not is_same(other, engine_image(1, image_id=digest(9), config={"Env": ["A=1"]}), "containerd")


def test_the_plan_loads_what_is_missing_and_moves_what_stands_wrong() -> None:
    right, moved, fresh = archive_image(1, "a/right:1"), archive_image(2, "a/moved:1"), archive_image(3, "a/fresh:1")
    engine = [
        engine_image(1, "a/right:1"),
        engine_image(2, staging_tag(moved)),
        engine_image(8, "a/moved:1"),
    ]
    plan = make_plan(tagged_images([right, moved, fresh]), engine, "classic")
    assert [planned.image for planned in plan.to_load] == [fresh]
    assert [tag for tag, _ in plan.moves] == ["a/moved:1", "a/fresh:1"]
    assert plan.images[1].source == digest(2)
    assert plan.before == {"a/right:1": digest(1), "a/moved:1": digest(8)}


def test_one_image_under_two_tags_is_planned_once() -> None:
    image = archive_image(1, "a/x:1", "a/y:1")
    plan = make_plan(tagged_images([image]), [engine_image(1, "docker.io/a/y:1")], "classic")
    assert len(plan.images) == 1
    assert plan.images[0].standing == {"a/y:1"}
    assert [tag for tag, _ in plan.moves] == ["a/x:1"]
    assert plan.to_load == ()


def test_left_over_tags_are_ours_and_not_wanted() -> None:
    wanted, other = staging_tag(archive_image(1)), staging_tag(archive_image(2))
    engine = [engine_image(1, wanted), engine_image(2, other, "a/x:1"), engine_image(3, f"{ROLLBACK_REPOSITORY}:r-0")]
    assert left_over_tags(engine, STAGING_REPOSITORY, [wanted]) == [other]
    assert left_over_tags(engine, ROLLBACK_REPOSITORY, ()) == [f"{ROLLBACK_REPOSITORY}:r-0"]


def test_only_unused_untagged_images_are_superseded() -> None:
    old = [engine_image(1), engine_image(2, "a/x:1"), engine_image(3), engine_image(1)]
    assert superseded(old, [digest(3)]) == [digest(1)]
