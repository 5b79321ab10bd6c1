"""Looking back: who stood where and when, what was in production at a moment, and why."""

from datetime import timedelta

import pytest

from modelkeep.core import errors
from modelkeep.core.events import EventKind
from modelkeep.core.policy import ALONE
from modelkeep.core.promotion import MoveCause, RequestState, Vote
from modelkeep.core.values import ModelName, parse_ref
from modelkeep.store.database import Database
from tests.service.promotion_world import CHURN, START, World

PRODUCTION = parse_ref("churn#production")


@pytest.fixture
def world(database: Database) -> World:
    """A team's server; 1.0.0 went to production at 15:03 and 1.1.0 at 17:03, each approved by bob."""
    world = World(database)
    world.versions("1.0.0", "1.1.0")
    for semver in ("1.0.0", "1.1.0"):
        world.later(hours=1)
        request = world.ask(semver, ticket=f"RISK-{semver}")
        world.review(request.id, "bob", comment="fine")
        world.promote(semver)
        world.later(hours=1)
    return world


def whatwas(world: World, hours: float, ref: str = "churn#production", who: str = "eve") -> object:
    """What was in a stage so many hours after the start."""
    return world.read(who, world.promotions.whatwas, parse_ref(ref), START + timedelta(hours=hours))


@pytest.mark.req("G9")
def test_what_was_in_production_is_answered_with_everything(world: World) -> None:
    """Version and digest, since when, who and why, the request with its approvals, each gate's answer, and
    the number of the event."""
    was = whatwas(world, 2)
    assert (was.version.semver, was.version.stage) == ("1.0.0", "production")
    assert was.version.digest == world.get("1.0.0").digest
    assert (was.interval.from_at, was.interval.to_at) == (
        START + timedelta(hours=1),
        START + timedelta(hours=3),
    )
    assert (was.interval.actor, was.interval.reason, was.interval.cause) == (
        "ann",
        "better",
        MoveCause.PROMOTION,
    )
    assert [result.gate for result in was.gates] == ["files_verified", "signature", "metadata"]
    assert was.request.ticket == "RISK-1.0.0"
    assert [(review.by.name, review.comment) for review in was.request.reviews] == [("bob", "fine")]
    assert (was.request.state, was.approved_by) == (RequestState.PROMOTED, ("bob",))
    assert (was.event.kind, was.event.sequence) == (EventKind.STAGE_MOVED, was.interval.from_sequence)
    assert was.sequence >= was.event.sequence
    assert whatwas(world, 3).version.semver == "1.1.0"
    assert whatwas(world, 2, "churn").version.semver == "1.0.0"


@pytest.mark.req("G9")
def test_an_empty_stage_is_said_to_have_been_empty(world: World) -> None:
    """Before the first promotion, and in a stage that nothing ever entered."""
    with pytest.raises(errors.StageEmpty, match=r"Nothing was in churn#production at 2026-01-25T14:33"):
        whatwas(world, 0.5)
    with pytest.raises(errors.StageEmpty):
        whatwas(world, 9, "churn#staging")
    with pytest.raises(errors.StageEmpty):
        whatwas(world, -1)
    with pytest.raises(errors.InvalidTransition, match="There is no stage 'prod'"):
        whatwas(world, 2, "churn#prod")


@pytest.mark.req("G9")
def test_a_question_without_one_answer_is_refused(world: World) -> None:
    """Whatever is not an exclusive stage has no 'what was in it'."""
    with pytest.raises(errors.InvalidReference, match="Ask what was in a stage"):
        whatwas(world, 2, "churn:1.0.0")
    with pytest.raises(errors.Invalid, match="Every version begins in none"):
        whatwas(world, 2, "churn#none")
    assert whatwas(world, 4, "churn#archived").version.semver == "1.0.0"
    world.promote("1.1.0", "archived")
    with pytest.raises(errors.Invalid, match="Several versions were in churn#archived"):
        whatwas(world, 5, "churn#archived")


@pytest.mark.req("G9")
def test_a_version_that_is_gone_still_was_there(world: World) -> None:
    """Deleting changes the present only."""
    world.delete("1.0.0")
    assert whatwas(world, 2).version.semver == "1.0.0"
    with pytest.raises(errors.StageEmpty):
        world.read("eve", world.promotions.whatwas, parse_ref("churn#archived"), world.now)
    history = world.read("eve", world.promotions.history, CHURN, stage="archived", limit=10)
    assert history.intervals[0].to_at == world.now


@pytest.mark.req("G7")
def test_history_tells_every_stay(world: World) -> None:
    """The latest first: who, from when to when, by whom, why, by which request, and what displaced it."""
    world.do("ann", world.promotions.rollback, CHURN, "errors")
    history = world.read("ann", world.promotions.history, CHURN, stage=None, limit=10)
    told = [(i.semver, i.stage, i.cause, i.to_sequence is None) for i in history.intervals]
    assert told == [
        ("1.0.0", "production", MoveCause.ROLLBACK, True),
        ("1.1.0", "archived", MoveCause.DISPLACED, True),
        ("1.1.0", "production", MoveCause.PROMOTION, False),
        ("1.0.0", "archived", MoveCause.DISPLACED, False),
        ("1.0.0", "production", MoveCause.PROMOTION, False),
    ]
    assert [i.reason for i in history.intervals[:2]] == ["errors", "errors"]
    production = world.read("ann", world.promotions.history, CHURN, stage="production", limit=2)
    assert [i.semver for i in production.intervals] == ["1.0.0", "1.1.0"]
    assert production.intervals[1].request is not None
    with pytest.raises(errors.InvalidTransition):
        world.read("ann", world.promotions.history, CHURN, stage="prod", limit=2)


@pytest.mark.req("G8", "G10")
def test_events_are_shown_to_those_who_may_read_the_log(world: World) -> None:
    """A viewer sees the stays, a maintainer the model's latest events as well."""
    assert world.read("eve", world.promotions.history, CHURN, stage=None, limit=5).events == ()
    told = world.read("ann", world.promotions.history, CHURN, stage=None, limit=5).events
    assert [stored.event.kind for stored in told][:2] == [EventKind.REQUEST_CLOSED, EventKind.STAGE_MOVED]
    with pytest.raises(errors.ModelNotFound):
        world.read("zoe", world.promotions.history, CHURN, stage=None, limit=5)
    with pytest.raises(errors.ModelNotFound):
        world.read("ann", world.promotions.history, ModelName("default", "nothing"), stage=None, limit=5)


@pytest.mark.req("G8")
def test_every_change_has_its_event(sqlite_database: Database) -> None:
    """Each verb that changes something appends at least one event under the caller's name and request."""
    world = World(sqlite_database, ALONE)
    world.versions("1.0.0", "1.1.0")
    ref = parse_ref("churn:1.0.0")
    verbs = (
        lambda: world.do("dan", world.promotions.set_policy, "churn", b"name: p"),
        lambda: world.ask("1.0.0"),
        lambda: world.promote("1.0.0"),
        lambda: world.promote("1.1.0"),
        world.rollback,
        lambda: world.do("ann", world.promotions.clear, parse_ref("churn:1.1.0"), "fixed"),
        lambda: world.do("ann", world.promotions.withdraw, world.ask("1.1.0").id, "no"),
        lambda: world.review(world.ask("1.1.0").id, "cat", Vote.REJECT),
        lambda: world.do("ann", world.promotions.promote, ref, "archived", "x", files_verified=True),
    )
    for verb in verbs:
        before = len(world.events())
        verb()
        new = world.events()[before:]
        assert new
        assert all(event.model == "churn" and event.request_id for event in new)
