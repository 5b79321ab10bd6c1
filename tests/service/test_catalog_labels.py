"""What stands beside versions: labels, aliases with compare-and-set, and what may not be deleted."""

from typing import Any

import pytest
from msgspec import UNSET

from modelkeep.core import errors
from modelkeep.core.access import Role
from modelkeep.core.catalog import DEFAULT_STAGES, ModelChange, StageGraph, StageSpec
from modelkeep.core.events import Event, EventKind
from modelkeep.core.rollout import Endpoint
from modelkeep.core.values import ModelName, parse_ref
from modelkeep.service.act import Act
from modelkeep.store import models
from modelkeep.store import rollout as rollout_store
from tests.service.catalog_world import CHURN, OWNER, START, World, context

pytestmark = pytest.mark.req("V13")


def last_event(world: World) -> Event:
    """The last thing that happened."""
    return world.read(OWNER, lambda act: act.tx.events.before(limit=1))[0].event


def set_alias(world: World, alias: str, ref: str, who: Any = OWNER, **more: Any) -> Any:
    """Point an alias."""
    return world.do(who, world.catalog.set_alias, CHURN, alias, parse_ref(ref), **more)


# ----------------------------------------------------------------------------------------------------- models


def test_a_model_is_created_with_its_labels(world: World) -> None:
    """What was given is read, the creator owns it when nobody is named, and the event says all of it."""
    made = world.do(OWNER, world.catalog.create_model, CHURN, description="who leaves", tags={"team": "risk"})

    assert (made.owner, made.description, made.tags, made.versions) == (
        "ann",
        "who leaves",
        {"team": "risk"},
        0,
    )
    assert world.read(OWNER, world.catalog.get_model, CHURN) == made
    event = last_event(world)
    assert (event.kind, event.subject, event.body["tags"]) == (
        EventKind.MODEL_CREATED,
        "churn",
        {"team": "risk"},
    )
    with pytest.raises(errors.ModelExists):
        world.do(OWNER, world.catalog.create_model, CHURN)


@pytest.mark.parametrize(
    ("more", "error"),
    [
        ({"owner": ""}, errors.Invalid),
        ({"owner": "x" * 200}, errors.LimitExceeded),
        ({"tags": {f"k{index}": "" for index in range(201)}}, errors.LimitExceeded),
        ({"description": "\x1b[31m"}, errors.Invalid),
        ({"stages": StageGraph(stages=(), transitions=(), displaced_to="none")}, errors.Invalid),
        (
            {"stages": StageGraph(stages=(StageSpec(name="A"),), transitions=(), displaced_to="A")},
            errors.InvalidName,
        ),
        (
            {
                "stages": StageGraph(
                    stages=(StageSpec(name="a"),), transitions=(("a", "b"),), displaced_to="a"
                )
            },
            errors.Invalid,
        ),
        (
            {"stages": StageGraph(stages=DEFAULT_STAGES.stages, transitions=(), displaced_to="production")},
            errors.Invalid,
        ),
    ],
)
def test_a_model_that_cannot_be_kept_is_refused(world: World, more: Any, error: type[Exception]) -> None:
    """Owners, tags, texts and stage graphs have their limits."""
    with pytest.raises(error):
        world.do(OWNER, world.catalog.create_model, CHURN, **more)


def test_a_model_with_stages_of_its_own_begins_in_the_first(world: World) -> None:
    """A graph is data of the model."""
    graph = StageGraph(
        stages=(StageSpec(name="lab"), StageSpec(name="live", exclusive=True)),
        transitions=(("lab", "live"),),
        displaced_to="lab",
    )
    world.do(OWNER, world.catalog.create_model, CHURN, stages=graph)

    assert world.register().version.stage == "lab"
    found = world.read(OWNER, world.catalog.search_versions, filter_text='stage = "lab"')
    assert [version.number for version in found.items] == [1]
    assert world.get("churn#lab").number == 1


def test_changes_say_from_and_to_and_nothing_is_no_change(world: World) -> None:
    """Labels of models and of versions; the same again writes no event."""
    version = world.register(tags={"a": "1", "b": "2"}).version
    change = ModelChange(description="new", set_tags={"a": "3", "c": "4"}, delete_tags=("b", "nowhere"))

    changed = world.do(OWNER, world.catalog.change_version, parse_ref("churn:1.0.0"), change)
    assert (changed.description, changed.tags) == ("new", {"a": "3", "c": "4"})
    assert world.get("churn:1.0.0") == changed
    assert changed.bump_reasons == version.bump_reasons
    event = last_event(world)
    assert event.kind is EventKind.VERSION_CHANGED
    assert event.body == {
        "description": {"from": "", "to": "new"},
        "tags": {
            "a": {"from": "1", "to": "3"},
            "b": {"from": "2", "to": None},
            "c": {"from": None, "to": "4"},
        },
    }
    assert world.do(OWNER, world.catalog.change_version, parse_ref("churn:1.0.0"), change) == changed
    assert last_event(world) == event

    model = world.do(OWNER, world.catalog.change_model, CHURN, ModelChange(owner="team", set_tags={"x": "y"}))
    assert (model.owner, model.tags) == ("team", {"x": "y"})
    assert last_event(world).body["owner"] == {"from": "ann", "to": "team"}
    with pytest.raises(errors.Invalid, match="owner"):
        world.do(OWNER, world.catalog.change_version, parse_ref("churn:1.0.0"), ModelChange(owner="bob"))


def test_only_who_may_edit_changes(world: World) -> None:
    """A viewer is told what is missing."""
    world.register()

    for verb, what in (
        (world.catalog.change_model, CHURN),
        (world.catalog.change_version, parse_ref("churn:#1")),
    ):
        with pytest.raises(errors.NotAllowed, match="edit"):
            world.do(context("vic", Role.VIEWER), verb, what, ModelChange(description="x"))  # type: ignore[arg-type]


# ---------------------------------------------------------------------------------------------------- aliases


def test_an_alias_moves_only_from_where_it_was_expected(world: World) -> None:
    """Compare-and-set: of two who saw the same state one wins, and the other is told where it points."""
    world.versions(CHURN, 2)

    set_alias(world, "champion", "churn:1.0.0", expect=None)
    with pytest.raises(errors.AliasMoved) as moved:
        set_alias(world, "champion", "churn:1.1.0", expect=None)
    assert moved.value.details["current"] == 1
    model = set_alias(world, "champion", "churn:1.1.0", expect=1)
    assert [(alias.alias, alias.number, alias.updated_by) for alias in model.aliases] == [
        ("champion", 2, "ann")
    ]
    with pytest.raises(errors.AliasMoved):
        set_alias(world, "other", "churn:1.1.0", expect=2)

    event = last_event(world)
    assert (event.kind, event.subject, event.number) == (EventKind.ALIAS_SET, "churn@champion", 2)
    assert (event.body["from"], event.body["to"], event.body["alias"]) == (1, 2, "champion")
    set_alias(world, "champion", "churn:1.1.0", expect=UNSET)
    assert last_event(world) == event


@pytest.mark.parametrize("alias", ["latest", "NEWEST", "a b", "", "-x", "v1/2", "é", "x" * 129])
def test_a_name_that_can_be_no_alias_is_refused(world: World, alias: str) -> None:
    """Those that always exist, and those that are no names."""
    world.versions(CHURN, 1)

    with pytest.raises(errors.InvalidName):
        set_alias(world, alias, "churn:1.0.0")


def test_an_alias_stays_within_its_model(world: World) -> None:
    """It cannot point at a version of another one."""
    world.versions(CHURN, 1)
    world.versions("other", 1)

    with pytest.raises(errors.InvalidReference):
        set_alias(world, "champion", "other:1.0.0")


def test_a_protected_alias_is_moved_by_maintainers_alone(world: World) -> None:
    """Neither moved nor deleted nor made by a contributor, who may do all of it with a plain one."""
    world.versions(CHURN, 2)
    bob, mia = context("bob", Role.CONTRIBUTOR), context("mia", Role.MAINTAINER)
    set_alias(world, "plain", "churn:1.0.0", bob)
    with pytest.raises(errors.NotAllowed, match="protect"):
        set_alias(world, "plain", "churn:1.0.0", bob, protected=True)

    set_alias(world, "champion", "churn:1.0.0", mia, protected=True)

    for verb in (
        lambda: set_alias(world, "champion", "churn:1.1.0", bob),
        lambda: set_alias(world, "champion", "churn:1.0.0", bob, protected=False),
        lambda: world.do(bob, world.catalog.delete_alias, CHURN, "champion"),
    ):
        with pytest.raises(errors.NotAllowed, match="protect"):
            verb()
    model = set_alias(world, "champion", "churn:1.1.0", mia)
    assert [(alias.alias, alias.number, alias.protected) for alias in model.aliases] == [
        ("champion", 2, True),
        ("plain", 1, False),
    ]
    world.do(bob, world.catalog.delete_alias, CHURN, "plain")
    assert last_event(world).kind is EventKind.ALIAS_DELETED
    with pytest.raises(errors.AliasNotFound):
        world.do(bob, world.catalog.delete_alias, CHURN, "plain")


# --------------------------------------------------------------------------------------------------- deleting


def serve(act: Act, number: int) -> None:
    """An endpoint whose traffic goes to a version."""
    row = models.get_row(act.tx, CHURN)
    endpoint = Endpoint(
        id="ep_1",
        name="live",
        model=CHURN,
        stage="production",
        stable=number,
        created_at=START,
        created_by="ann",
    )
    rollout_store.add_endpoint(act.tx, endpoint, row.id)


@pytest.mark.parametrize("why", ["stage", "alias", "endpoint"])
def test_what_others_rest_on_is_not_deleted(world: World, why: str) -> None:
    """A protected stage, a protected alias and live traffic keep a version, and its model, from deletion."""
    first = world.versions(CHURN, 2)[0]
    match why:
        case "stage":
            world.place(first, "production")
        case "alias":
            set_alias(world, "champion", "churn:1.0.0", protected=True)
        case _:
            world.do(OWNER, serve, 1)

    with pytest.raises(errors.Protected, match=r"churn:1\.0\.0 cannot be deleted"):
        world.do(OWNER, world.catalog.delete_version, parse_ref("churn:1.0.0"))
    with pytest.raises(errors.Protected, match="churn cannot be deleted"):
        world.do(OWNER, world.catalog.delete_model, CHURN)
    assert world.get("churn:1.0.0").number == 1
    world.do(OWNER, world.catalog.delete_version, parse_ref("churn:1.1.0"))


def test_a_deleted_version_is_gone_with_its_aliases(world: World) -> None:
    """Nothing names it any more; each alias that went with it has its event, and its files are not kept."""
    world.versions(CHURN, 2)
    set_alias(world, "old", "churn:1.0.0")
    world.place(world.get("churn:1.0.0"), "staging")

    world.do(OWNER, world.catalog.delete_version, parse_ref("churn@old"))

    for ref in ("churn:1.0.0", "churn:#1", "churn@old", "churn#staging"):
        with pytest.raises(errors.NotFound):
            world.get(ref)
    model = world.read(OWNER, world.catalog.get_model, CHURN)
    assert (model.versions, model.aliases, model.occupants) == (1, (), {})
    kinds = [
        e.event.kind for e in world.read(OWNER, lambda act: act.tx.events.before(limit=2, model="churn"))
    ]
    assert kinds == [EventKind.VERSION_DELETED, EventKind.ALIAS_DELETED]
    assert world.catalog.fsck(world.desk, OWNER).dangling == 1


def test_only_maintainers_delete(world: World) -> None:
    """A contributor is told what is missing."""
    world.versions(CHURN, 1)
    bob = context("bob", Role.CONTRIBUTOR)

    with pytest.raises(errors.NotAllowed, match="delete"):
        world.do(bob, world.catalog.delete_version, parse_ref("churn:1.0.0"))
    with pytest.raises(errors.NotAllowed, match="delete"):
        world.do(bob, world.catalog.delete_model, CHURN)


def test_a_deleted_model_is_gone(world: World) -> None:
    """From lists, from searches, by name; and the name can be taken up again."""
    world.versions(CHURN, 2)
    set_alias(world, "old", "churn:1.0.0")

    world.do(OWNER, world.catalog.delete_model, CHURN)

    assert world.read(OWNER, world.catalog.list_models).items == ()
    assert world.read(OWNER, world.catalog.search_versions).items == ()
    with pytest.raises(errors.ModelNotFound):
        world.read(OWNER, world.catalog.get_model, CHURN)
    again = world.do(OWNER, world.catalog.create_model, ModelName("default", "churn"))
    assert (again.versions, again.aliases, again.tags) == (0, (), {})
