"""Taking back: to the last version that held, never back and forth, at once, and also under a rollout."""

import pytest

from modelkeep.core import errors
from modelkeep.core.answers import PromotionKind
from modelkeep.core.events import EventKind
from modelkeep.core.policy import ALONE
from modelkeep.core.promotion import MoveCause
from modelkeep.core.routing import Epoch
from modelkeep.core.values import parse_ref
from modelkeep.service.act import Act
from modelkeep.store import catalog as catalog_store
from modelkeep.store.database import Database
from tests.service.promotion_world import CHURN, World

STATEMENTS_MAX = 26
"""What a rollback may cost in statements: each is a tenth of a millisecond on SQLite."""


@pytest.fixture
def world(database: Database) -> World:
    """Three versions went to production, one after the other, in a world with nobody else to ask."""
    world = World(database, ALONE)
    world.versions("1.0.0", "1.1.0", "1.2.0")
    for semver in ("1.0.0", "1.1.0", "1.2.0"):
        world.later(hours=1)
        world.promote(semver)
    world.later(hours=1)
    return world


@pytest.mark.req("G7")
def test_a_rollback_goes_back_to_who_held_before(world: World) -> None:
    """In one act the former version returns, the bad one is tombstoned, and the log links the incident."""
    done = world.rollback(incident="INC-4711")
    assert (done.kind, done.version.semver, done.from_semver) == (PromotionKind.MOVED, "1.1.0", "1.2.0")
    assert (world.stage("1.1.0"), world.stage("1.2.0")) == ("production", "archived")
    assert world.get("1.2.0").tombstone == "rolled back by ann: errors"
    event = world.events(EventKind.STAGE_MOVED)[-1]
    assert (event.body["cause"], event.body["incident"], event.body["displaced"]["number"]) == (
        "rollback",
        "INC-4711",
        3,
    )
    (mark,) = world.events(EventKind.VERSION_TOMBSTONED)
    assert (mark.number, mark.body["stage"], mark.body["incident"]) == (3, "production", "INC-4711")
    assert done.interval.cause is MoveCause.ROLLBACK


@pytest.mark.req("G7")
def test_rollbacks_go_further_back_and_never_back_and_forth(world: World) -> None:
    """Each goes to an older one, and the end of the road is said."""
    assert world.rollback().version.semver == "1.1.0"
    assert world.rollback().version.semver == "1.0.0"
    with pytest.raises(errors.NoRollbackTarget, match="no former version to go back to"):
        world.rollback()
    assert world.in_production() == "1.0.0"


@pytest.mark.hostile("impossible-moves")
@pytest.mark.req("G7")
def test_what_was_taken_back_stays_away_until_it_is_cleared(world: World) -> None:
    """A tombstone stops promotion and request; clearing takes a reason and a permission, and is recorded."""
    world.rollback()
    with pytest.raises(errors.Tombstoned, match=r"when the cause is mended, run 'modelkeep clear"):
        world.promote("1.2.0")
    with pytest.raises(errors.Tombstoned):
        world.ask("1.2.0")
    ref = parse_ref("churn:1.2.0")
    report = world.read("ann", world.promotions.gate, ref, "production", files_verified=True)
    assert report.next == "modelkeep clear churn:1.2.0 -m WHY"
    world.promote("1.2.0", "staging")
    with pytest.raises(errors.NotAllowed):
        world.do("bob", world.promotions.clear, ref, "fixed")
    assert world.do("ann", world.promotions.clear, ref, "the disk was full").tombstone is None
    with pytest.raises(errors.Conflict, match="was not taken back"):
        world.do("ann", world.promotions.clear, ref, "again")
    assert world.promote("1.2.0").displaced == 2
    (event,) = world.events(EventKind.VERSION_CLEARED)
    assert (event.reason, event.body["was"]) == ("the disk was full", "rolled back by ann: errors")


@pytest.mark.req("G7")
def test_a_cleared_version_may_be_returned_to(world: World) -> None:
    """Once cleared, a version is a former occupant like any other."""
    world.rollback()
    world.do("ann", world.promotions.clear, parse_ref("churn:1.2.0"), "it was the network")
    assert world.rollback().version.semver == "1.2.0"


@pytest.mark.req("G7")
def test_with_nothing_to_go_back_to_a_promotion_is_named(sqlite_database: Database) -> None:
    """Where the stage had one version only, the message speaks of no other."""
    world = World(sqlite_database, ALONE)
    world.versions("1.0.0", "2.0.0")
    world.promote("1.0.0")
    with pytest.raises(errors.NoRollbackTarget) as caught:
        world.rollback(to=parse_ref("churn:2.0.0"))
    assert caught.value.message == (
        "churn:2.0.0 was never in production, so nothing says that it holds there; no other version was "
        "there either, so run 'modelkeep promote churn:2.0.0 --to production -m WHY'."
    )
    assert caught.value.details["choices"] == []


@pytest.mark.req("G7")
def test_a_named_version_must_have_been_there(world: World) -> None:
    """Without asking gates one returns to a former occupant only; the message says to which."""
    world.version("2.0.0")
    with pytest.raises(errors.NoRollbackTarget) as caught:
        world.rollback(to=parse_ref("churn:2.0.0"))
    assert caught.value.message == (
        "churn:2.0.0 was never in production, so nothing says that it holds there; go back to 1.1.0, 1.0.0, "
        "or run 'modelkeep promote churn:2.0.0 --to production -m WHY'."
    )
    assert caught.value.details["choices"] == ["1.1.0", "1.0.0"]
    assert world.rollback(to=parse_ref("churn:1.0.0")).version.semver == "1.0.0"
    with pytest.raises(errors.InvalidTransition, match="is in production already"):
        world.rollback(to=parse_ref("churn:1.0.0"))
    with pytest.raises(errors.Tombstoned, match="was itself taken back"):
        world.rollback(to=parse_ref("churn:1.2.0"))
    assert world.in_production() == "1.0.0"


@pytest.mark.req("G7")
def test_deleted_versions_are_no_targets(world: World) -> None:
    """What is gone cannot be returned to, and the one before it can."""
    world.delete("1.1.0")
    assert world.rollback().version.semver == "1.0.0"


@pytest.mark.req("G7")
def test_an_emptied_stage_gets_its_last_version_back(world: World) -> None:
    """Where somebody archived production by mistake, a rollback undoes it and blames nobody."""
    world.promote("1.2.0", "archived")
    done = world.rollback()
    assert (done.version.semver, done.from_number, done.tombstoned) == ("1.2.0", None, False)


@pytest.mark.req("G7", "G10")
def test_rolling_back_takes_the_permission(world: World) -> None:
    """And asks no gate and no other person."""
    for who in ("eve", "fay", "bob"):
        with pytest.raises(errors.NotAllowed, match="'rollback'"):
            world.rollback(who)
    with pytest.raises(errors.ModelNotFound):
        world.rollback("zoe")
    assert world.rollback("cat").version.semver == "1.1.0"


def test_stages_that_hold_many_have_no_rollback(world: World) -> None:
    """There is no one version to take back from them."""
    with pytest.raises(errors.InvalidTransition, match="holds many versions"):
        world.rollback(stage="archived")
    with pytest.raises(errors.InvalidTransition, match="There is no stage 'prod'"):
        world.rollback(stage="prod")
    with pytest.raises(errors.NoRollbackTarget):
        world.rollback(stage="staging")


@pytest.mark.req("G7")
def test_a_rollback_is_a_few_statements(world: World) -> None:
    """However long the history, since it is what people wait for when something burns."""
    for n in range(3, 40):
        world.version(f"1.{n}.0")
        world.promote(f"1.{n}.0")
    with world.database.statements() as seen:
        world.rollback()
    assert len(seen) <= STATEMENTS_MAX, "\n".join(seen)


# ------------------------------------------------------------------------------------------- with traffic


@pytest.fixture
def serving(sqlite_database: Database) -> World:
    """Version 1.0.0 serves and 1.1.0 took over from it."""
    world = World(sqlite_database, ALONE, serving=True)
    world.versions("1.0.0", "1.1.0", "1.2.0")
    world.endpoint()
    for semver in ("1.0.0", "1.1.0"):
        world.succeed(world.promote(semver).rollout)
    return world


@pytest.mark.req("G7")
def test_the_endpoint_goes_back_with_the_stage(serving: World) -> None:
    """With no rollout under way, stage and endpoint return in the same act, under a higher term."""
    before = serving.traffic.endpoints[CHURN, "production"].epoch
    done = serving.rollback()
    endpoint = serving.traffic.endpoints[CHURN, "production"]
    assert (done.endpoint, endpoint.stable, endpoint.epoch) == ("churn", 1, Epoch(before.term + 1, 0))


@pytest.mark.req("G7")
def test_a_rollout_under_way_is_what_is_taken_back(serving: World) -> None:
    """Its candidate never was in the stage, so the stage does not move; the candidate is tombstoned."""
    begun = serving.promote("1.2.0")
    done = serving.rollback(incident="INC-1")
    assert (done.kind, done.rollout, done.from_semver) == (PromotionKind.ROLLOUT, begun.rollout, "1.2.0")
    assert (done.version.semver, done.tombstoned) == ("1.1.0", True)
    assert serving.get("1.2.0").tombstone == "rolled back by ann: errors (INC-1)"
    assert serving.in_production() == "1.1.0"
    assert serving.rollback().version.semver == "1.0.0"


@pytest.mark.req("G7")
def test_a_version_named_under_a_rollout(serving: World) -> None:
    """The one in the stage means taking the rollout back; another one comes after that."""
    serving.promote("1.2.0")
    with pytest.raises(errors.RolloutActive, match=r"end it first with 'modelkeep rollback churn -m WHY'"):
        serving.rollback(to=parse_ref("churn:1.0.0"))
    assert serving.rollback(to=parse_ref("churn:1.1.0")).kind is PromotionKind.ROLLOUT
    assert serving.rollback(to=parse_ref("churn:1.0.0")).version.semver == "1.0.0"


@pytest.mark.req("G7")
def test_a_gateways_own_rollback_becomes_the_registrys(serving: World) -> None:
    """The rollout column tombstones the one that left and moves the stage; the next goes further back."""

    def take_over(act: Act) -> None:
        serving.promotions.tombstone(act, catalog_store.get_version(act.tx, CHURN, 2), "crashed")
        serving.promotions.enter_stage(
            act,
            catalog_store.get_version(act.tx, CHURN, 1),
            "production",
            cause=MoveCause.ROLLBACK,
            reason="crashed",
            request=None,
            rollout=None,
        )

    serving.do("owner", take_over)
    assert (serving.in_production(), serving.get("1.1.0").tombstone) == ("1.0.0", "crashed")
    with pytest.raises(errors.NoRollbackTarget):
        serving.rollback()
