"""References to versions: every selector, now and at a moment of the past, and what is said when nothing is
found."""

from datetime import datetime, timedelta

import pytest

from modelkeep.core import codec, errors
from modelkeep.core.access import Effect, Role
from modelkeep.core.catalog import ModelVersion
from modelkeep.core.values import ModelName, parse_ref
from modelkeep.service.act import Context
from modelkeep.store.database import Database
from tests.service.catalog_world import CHURN, OWNER, SIGNATURE, World, caller, context, grant

pytestmark = pytest.mark.req("V1", "V13")


def numbers(world: World, *refs: str) -> list[int]:
    """The numbers of what references name."""
    return [world.get(ref).number for ref in refs]


def set_alias(world: World, alias: str, ref: str) -> None:
    """Point an alias."""
    world.do(OWNER, world.catalog.set_alias, CHURN, alias, parse_ref(ref))


@pytest.fixture
def three(world: World) -> list[ModelVersion]:
    """1.0.0, 1.1.0 and 2.0.0-rc.1 of churn."""
    made = world.versions(CHURN, 2)
    rc = world.register(data=b"rc", signature=SIGNATURE, semver="2.0.0-rc.1")
    return [*made, rc.version]


def test_every_selector_finds_its_version(world: World, three: list[ModelVersion]) -> None:
    """Semver, range, number, alias, digest, latest (released) and newest (last), also in MLflow's words."""
    set_alias(world, "champion", "churn:1.0.0")

    assert numbers(world, "churn:1.1.0", "churn:#3", "churn@champion", f"churn@{three[1].digest}") == [
        2,
        3,
        1,
        2,
    ]
    assert numbers(world, "churn@latest", "churn@newest", "churn:^1", "churn:~1.0", "churn:1.x") == [
        2,
        3,
        2,
        1,
        2,
    ]
    assert numbers(world, "churn:>=2.0.0-rc.1", "models:/churn/2", "models:/churn@champion") == [3, 2, 1]
    assert world.get("churn@champion").aliases == ("champion",)


def test_a_stage_finds_its_occupant(world: World, three: list[ModelVersion]) -> None:
    """An exclusive stage has one; versions begin in the first stage, where the last registered one is
    meant."""
    world.place(three[0], "production")
    world.place(three[1], "archived", exclusive=False)

    assert numbers(world, "churn#production", "churn#archived", "churn#none") == [1, 2, 3]
    assert world.get("churn:1.0.0").stage == "production"
    model = world.read(OWNER, world.catalog.get_model, CHURN)
    assert model.occupants == {"production": 1}


def test_semvers_are_ordered_as_versions_and_not_as_text(world: World) -> None:
    """1.10.0 is above 1.9.0, and build metadata is part of the name but not of the order."""
    world.register(data=b"1", signature=SIGNATURE, semver="1.9.0")
    world.register(data=b"2", signature=SIGNATURE, semver="1.10.0+cuda")

    assert numbers(world, "churn@latest", "churn:^1.9", "churn:1.10.0", "churn:1.10.0+cuda") == [2, 2, 2, 2]
    with pytest.raises(errors.VersionNotFound):
        world.get("churn:1.10.0+cpu")
    with pytest.raises(errors.VersionExists):
        world.begin(CHURN, {"m": b"3"}, signature=SIGNATURE, semver="1.10.0+rocm")


@pytest.mark.parametrize(
    ("ref", "error", "words"),
    [
        ("churn:1.1.1", errors.VersionNotFound, ["no version 1.1.1", "1.1.0", "Did you mean"]),
        ("churn:^3", errors.VersionNotFound, [r"in ^3", "it has 2.0.0-rc.1, 1.1.0, 1.0.0"]),
        ("churn:#9", errors.VersionNotFound, ["number 9"]),
        ("churn@chmpion", errors.AliasNotFound, ["chmpion", "Did you mean champion?", "latest"]),
        ("churn#staging", errors.StageEmpty, ["staging", "1.0.0 is in production"]),
        ("churn#prodution", errors.StageEmpty, ["has no stage", "Did you mean production?"]),
        ("churn@sha256:" + "0" * 64, errors.VersionNotFound, ["sha256:000"]),
        ("churn", errors.InvalidReference, ["names a model", "churn:1.0.0"]),
        ("chrun:1.0.0", errors.ModelNotFound, ["no model chrun"]),
    ],
)
def test_what_is_not_found_says_what_is_there(
    world: World, three: list[ModelVersion], ref: str, error: type[errors.ModelkeepError], words: list[str]
) -> None:
    """The error names what exists, and what was probably meant."""
    set_alias(world, "champion", "churn:1.0.0")
    world.place(three[0], "production")

    with pytest.raises(error) as refusal:
        world.get(ref)

    assert all(word in refusal.value.message for word in words), refusal.value.message


def test_a_model_without_versions_says_so(world: World) -> None:
    """It is not the reference that is wrong."""
    world.do(OWNER, world.catalog.create_model, CHURN)

    with pytest.raises(errors.VersionNotFound, match="register"):
        world.get("churn@latest")


# ------------------------------------------------------------------------------------------------- visibility


@pytest.mark.req("G10")
def test_what_may_not_be_read_does_not_exist(world: World) -> None:
    """Hidden and missing are told in the same words, by every verb."""
    world.versions(CHURN, 1)
    hidden, nobody = parse_ref("churn:1.0.0"), context("sid")
    verbs = [
        lambda who: world.read(who, world.catalog.get_version, hidden),
        lambda who: world.read(who, world.catalog.get_model, CHURN),
        lambda who: world.read(who, world.catalog.list_versions, CHURN),
        lambda who: world.read(who, world.catalog.manifest, hidden),
        lambda who: world.read(who, world.catalog.open_file, hidden, "model.onnx"),
        lambda who: world.read(who, world.catalog.diff, hidden, hidden),
        lambda who: world.read(who, world.catalog.compare, CHURN),
        lambda who: world.read(who, world.catalog.best, CHURN, "auc"),
        lambda who: world.do(who, world.catalog.delete_version, hidden),
        lambda who: world.do(who, world.catalog.delete_model, CHURN),
        lambda who: world.do(who, world.catalog.set_alias, CHURN, "a", hidden),
        lambda who: world.do(who, world.catalog.delete_alias, CHURN, "a"),
        lambda who: world.catalog.verify(world.desk, who, hidden),
    ]
    missing = parse_ref("churn:9.9.9")
    for verb in verbs:
        with pytest.raises(errors.ModelNotFound) as refusal:
            verb(nobody)
        assert refusal.value.message == "There is no model churn; 'modelkeep ls' lists those you can see."
    with pytest.raises(errors.ModelNotFound):
        world.read(nobody, world.catalog.get_version, missing)
    assert world.read(nobody, world.catalog.search_versions).items == ()


@pytest.mark.req("G10")
def test_a_denied_model_is_missing_from_lists(world: World) -> None:
    """Deny wins over allow, before pages are cut."""
    for name in ("a", "b", "c"):
        world.versions(name, 1)
    bob = caller("bob", Role.VIEWER)
    denied = grant("bob", Role.VIEWER, "default", "b", Effect.DENY)
    who = Context(caller=type(bob)(actor=bob.actor, grants=(*bob.grants, denied)))

    page = world.read(who, world.catalog.list_models, limit=2)

    assert ([model.name.name for model in page.items], page.next_page_token) == (["a", "c"], None)
    found = world.read(who, world.catalog.search_versions, filter_text='model in ("a", "b")')
    assert [version.model.name for version in found.items] == ["a"]


# -------------------------------------------------------------------------------------------------- the past


def at(ref: str, moment: datetime) -> str:
    """The reference with a time."""
    return f"{ref}?at={codec.format_time(moment)}"


def test_the_past_can_be_asked(world: World) -> None:
    """Aliases, stages, latest and newest are what they were, the labels of the version too, and deleted ones
    are still there."""
    first, second = world.versions(CHURN, 2)
    set_alias(world, "champion", "churn:1.0.0")
    world.place(first, "production")
    then = world.clock.now
    set_alias(world, "champion", "churn:1.1.0")
    world.register(data=b"third", signature=SIGNATURE)
    world.do(OWNER, world.catalog.delete_alias, CHURN, "champion")
    world.place(second, "staging")
    later = world.clock.now
    world.do(OWNER, world.catalog.delete_version, parse_ref("churn:1.1.0"))

    was = world.get(at("churn@champion", then))
    assert (was.number, was.aliases, was.stage) == (1, ("champion",), "production")
    assert numbers(world, at("churn@latest", then), at("churn@newest", then)) == [2, 2]
    assert numbers(world, at("churn#production", then), at("churn#none", then), at("churn:^1", then)) == [
        1,
        2,
        2,
    ]
    assert (world.get(at("churn:1.1.0", later)).stage, world.get(at("churn#staging", later)).number) == (
        "staging",
        2,
    )
    assert world.get(at("churn@latest", later)).number == 3
    for ref in (
        "churn:1.1.0",
        at("churn@champion", later),
        at("churn:1.2.0", then),
        at("churn#staging", then),
    ):
        with pytest.raises(errors.NotFound):
            world.get(ref)
    with pytest.raises(errors.VersionNotFound, match="no version at"):
        world.get(at("churn@latest", then - timedelta(days=1)))


def test_a_deleted_models_past_can_be_asked_still(world: World) -> None:
    """Whoever was served it yesterday finds out today what it was."""
    world.versions(CHURN, 1)
    set_alias(world, "champion", "churn:1.0.0")
    then = world.clock.now
    world.do(OWNER, world.catalog.delete_model, CHURN)

    assert numbers(world, at("churn:1.0.0", then), at("churn@champion", then)) == [1, 1]
    with pytest.raises(errors.ModelNotFound):
        world.get("churn:1.0.0")
    with pytest.raises(errors.NotFound):
        world.get(at("churn:1.0.0", world.clock.now))


def test_the_past_cannot_be_changed(world: World) -> None:
    """A reference with a time names nothing to write on."""
    world.versions(CHURN, 1)
    past = parse_ref(at("churn:1.0.0", world.clock.now))

    with pytest.raises(errors.InvalidReference, match="past"):
        world.do(OWNER, world.catalog.delete_version, past)
    with pytest.raises(errors.InvalidReference, match="past"):
        world.do(OWNER, world.catalog.set_alias, CHURN, "a", past)


def test_a_version_is_read_with_few_statements(world: World, database: Database) -> None:
    """The read that everything asks for: one statement for the version, one for its labels."""
    world.versions(CHURN, 2)
    set_alias(world, "champion", "churn:1.0.0")

    for ref in ("churn:1.0.0", "churn:#2", "churn@champion", "churn@latest", "churn#none"):
        with database.statements() as seen:
            world.get(ref)
        assert len(seen) <= 3, seen


def test_projects_are_worlds_of_their_own(world: World) -> None:
    """The same name in two projects is two models."""
    world.versions("lab/churn", 2)
    world.versions("churn", 1)

    assert world.get("lab/churn@latest").model == ModelName("lab", "churn")
    assert [world.get("lab/churn@latest").number, world.get("churn@latest").number] == [2, 1]
