"""An endpoint that follows an alias: the alias names what callers are served, and moves when a rollout has
succeeded.
"""

import pytest

from modelkeep.core import errors
from modelkeep.core.access import Role
from modelkeep.core.answers import AliasMove, PromotionKind, Rollback
from modelkeep.core.events import EventKind
from modelkeep.core.plan import Strategy, chosen
from modelkeep.core.rollout import RolloutState
from modelkeep.core.values import parse_ref
from modelkeep.service import references
from modelkeep.service.forecasts import Asked
from modelkeep.service.rollbacks import Rollbacks
from modelkeep.store import events
from modelkeep.store.database import Database
from tests.service.promotion_world import CHURN
from tests.service.rollout_world import PLAN, FakeGateway, RolloutWorld

CHAMPION = "champion"


@pytest.fixture
def world(sqlite_database: Database) -> RolloutWorld:
    """Three versions of churn; the champion is 1.0.0 and an endpoint serves it."""
    made = RolloutWorld(sqlite_database)
    made.versions("1.0.0", "1.1.0", "1.2.0")
    return made


@pytest.fixture
def gateway(world: RolloutWorld) -> FakeGateway:
    """A gateway that serves the champion 1.0.0."""
    point(world, "1.0.0")
    world.made(alias=CHAMPION)
    found = FakeGateway(world)
    world.until(RolloutState.SUCCEEDED, found)
    world.turn(found)
    return found


def point(world: RolloutWorld, semver: str, by: str = "owner", **how: object) -> AliasMove:
    """Point the champion at a version."""
    return world.do(by, world.house.catalog.set_alias, CHURN, CHAMPION, parse_ref(f"churn:{semver}"), **how)


def champion(world: RolloutWorld) -> str:
    """Whom the alias names."""
    return world.read("owner", references.resolve, parse_ref(f"churn@{CHAMPION}")).semver


@pytest.mark.req("S9")
def test_an_alias_moves_when_its_rollout_has_succeeded(world: RolloutWorld, gateway: FakeGateway) -> None:
    """Until then it names whom the callers meet; then the move, its event and the success are one act."""
    told = point(world, "1.1.0", reason="better AUC")
    assert told.kind is PromotionKind.ROLLOUT
    assert (told.rollout, told.endpoint) == (world.latest().id, "churn")
    assert {one.alias: one.number for one in told.aliases} == {CHAMPION: 1}
    world.until(RolloutState.STEPPING, gateway)
    assert champion(world) == "1.0.0"
    world.until(RolloutState.SUCCEEDED, gateway)
    world.turn(gateway)
    assert champion(world) == "1.1.0"
    assert gateway.serves() == world.key("1.1.0")
    success, moved = world.events(EventKind.ROLLOUT_SUCCEEDED)[-1], world.events(EventKind.ALIAS_SET)[-1]
    assert (moved.at, moved.reason, moved.body["rollout"]) == (success.at, "better AUC", told.rollout)
    assert world.get("1.1.0").stage == "none", "an alias is no stage"
    events.verify(world.database)


@pytest.mark.req("S8", "S9")
def test_a_rollout_that_is_taken_back_leaves_the_alias_where_it_was(
    world: RolloutWorld, gateway: FakeGateway
) -> None:
    """There is no moment at which the alias names a version that is not proven."""
    gateway.failing[world.key("1.1.0")] = 25
    point(world, "1.1.0")
    world.until(RolloutState.ROLLED_BACK, gateway)
    assert champion(world) == "1.0.0"
    assert [event.body["to"] for event in world.events(EventKind.ALIAS_SET)] == [1]
    with pytest.raises(errors.Tombstoned, match="was taken back"):
        point(world, "1.1.0")


@pytest.mark.req("S9")
def test_what_nobody_serves_yet_is_named_when_it_is_loaded(world: RolloutWorld) -> None:
    """An endpoint that was there before its alias: the first version begins it, protected as was asked."""
    world.made(alias=CHAMPION)
    told = point(world, "1.2.0", protected=True)
    assert (told.kind, told.aliases) == (PromotionKind.ROLLOUT, ())
    world.until(RolloutState.SUCCEEDED, FakeGateway(world))
    world.person("cleo", Role.CONTRIBUTOR)
    with pytest.raises(errors.NotAllowed, match="protect"):
        point(world, "1.1.0", by="cleo")
    assert world.read("owner", world.house.catalog.get_model, CHURN).aliases[0].protected
    assert champion(world) == "1.2.0"


@pytest.mark.req("S9")
def test_asked_twice_is_asked_once(world: RolloutWorld, gateway: FakeGateway) -> None:
    """The same version again names the rollout under way; what is served already moves nothing."""
    first = point(world, "1.1.0")
    again = point(world, "1.1.0")
    assert (again.rollout, again.kind) == (first.rollout, PromotionKind.ROLLOUT)
    with pytest.raises(errors.RolloutActive, match="under way"):
        point(world, "1.2.0")
    with pytest.raises(errors.RolloutActive, match="under way"):
        point(world, "1.0.0")
    stays = point(world, "1.0.0", supersede=True)
    assert (stays.kind, stays.endpoint) == (PromotionKind.MOVED, "churn")
    assert world.state() is RolloutState.CANCELLED
    assert point(world, "1.0.0").rollout is None


@pytest.mark.req("S2", "S9")
def test_the_plan_is_the_endpoints_unless_another_is_said(world: RolloutWorld, gateway: FakeGateway) -> None:
    """As with a promotion; and another rollout may take the place of the one under way."""
    assert point(world, "1.1.0").plan == PLAN
    other = point(world, "1.2.0", plan=chosen(None, Strategy.IMMEDIATE), supersede=True)
    assert other.plan is not None
    assert other.plan.strategy is Strategy.IMMEDIATE
    assert world.events(EventKind.ROLLOUT_STARTED)[-1].body["plan_from"] == "alias"
    with pytest.raises(errors.InvalidPlan, match="No endpoint follows churn@other"):
        world.do("owner", world.house.catalog.set_alias, CHURN, "other", parse_ref("churn:1.0.0"), plan=PLAN)


@pytest.mark.req("G3", "S9")
def test_the_policy_chooses_the_plan_of_an_alias(world: RolloutWorld, gateway: FakeGateway) -> None:
    """Its plan for the alias goes before the one for everything, both before the endpoint's, and what
    somebody says before all; the record says whose it was, and a forecast reckons with it."""
    named = b"name: p\naliases: {champion: {rollout: {strategy: immediate}}}\nrollout: {strategy: blue_green}"
    for document, strategy, follower in (
        (named, Strategy.IMMEDIATE, "1.1.0"),
        (named.replace(b"champion", b"other"), Strategy.BLUE_GREEN, "1.2.0"),
    ):
        world.do("owner", world.promotions.set_policy, "churn", document)
        foretold = world.read(
            "owner", world.rollouts.forecast_any, "churn", Asked(traffic_per_s=5.0, runs=20)
        )
        assert foretold.plan.strategy is strategy
        told = point(world, follower, supersede=True)
        assert told.plan is not None
        assert told.plan.strategy is strategy
        assert world.events(EventKind.ROLLOUT_STARTED)[-1].body["plan_from"] == "policy"
    said = point(world, "1.1.0", plan=PLAN, supersede=True)
    assert said.plan == PLAN
    assert world.events(EventKind.ROLLOUT_STARTED)[-1].body["plan_from"] == "alias"


@pytest.mark.req("G10", "S9")
def test_who_may_set_aliases_may_not_therefore_move_traffic(
    world: RolloutWorld, gateway: FakeGateway
) -> None:
    """It takes the right to promote as well; an alias that nobody follows stays free."""
    world.person("cleo", Role.CONTRIBUTOR)
    with pytest.raises(errors.NotAllowed, match="'promote'"):
        point(world, "1.1.0", by="cleo")
    world.do("cleo", world.house.catalog.set_alias, CHURN, "mine", parse_ref("churn:1.1.0"))


@pytest.mark.req("S9")
def test_an_alias_that_is_followed_is_not_deleted(world: RolloutWorld, gateway: FakeGateway) -> None:
    """Callers would be served what nothing names; with the endpoint gone it goes."""
    with pytest.raises(errors.Protected, match="the endpoint churn follows it"):
        world.do("owner", world.house.catalog.delete_alias, CHURN, CHAMPION)
    world.do("owner", world.rollouts.delete_endpoint, "churn")
    world.do("owner", world.house.catalog.delete_alias, CHURN, CHAMPION)


@pytest.mark.req("S8", "S9")
@pytest.mark.parametrize("where", ["gateway", "registry"])
def test_a_rollback_after_success_takes_the_alias_along(
    world: RolloutWorld, gateway: FakeGateway, where: str
) -> None:
    """Whether a gateway did it by itself or a person asked for it: one act, and the tombstone."""
    point(world, "1.1.0")
    world.until(RolloutState.SUCCEEDED, gateway)
    world.turn(gateway)
    if where == "gateway":
        gateway.roll_back()
        gateway.report()
    else:
        done = world.do("owner", world.promotions.rollback, CHURN, "errors", alias=CHAMPION)
        assert (done.alias, done.version.semver, done.from_semver) == (CHAMPION, "1.0.0", "1.1.0")
    world.turn(gateway)
    assert champion(world) == "1.0.0"
    assert gateway.serves() == world.key("1.0.0")
    assert world.get("1.1.0").tombstone is not None
    assert world.events(EventKind.ALIAS_SET)[-1].body["cause"] == "rollback"


@pytest.mark.req("S9")
def test_a_rollback_of_an_alias_chooses_among_what_was_served(
    world: RolloutWorld, gateway: FakeGateway
) -> None:
    """Never a version that callers never had, nor one that was taken back; under way it ends the rollout."""
    with pytest.raises(errors.NoRollbackTarget, match="served no other version"):
        world.do("owner", world.promotions.rollback, CHURN, "errors", alias=CHAMPION)
    with pytest.raises(errors.EndpointNotFound, match="alias set"):
        world.do("owner", world.promotions.rollback, CHURN, "errors", alias="other")
    point(world, "1.1.0")
    world.until(RolloutState.STEPPING, gateway)
    done = world.do("owner", world.promotions.rollback, CHURN, "errors", alias=CHAMPION)
    assert (done.kind, done.tombstoned, done.version.semver) == (PromotionKind.ROLLOUT, True, "1.0.0")
    with pytest.raises(errors.Invalid, match="leave one out"):
        world.do("owner", world.promotions.rollback, CHURN, "errors", alias=CHAMPION, stage="production")


@pytest.mark.req("S9")
def test_a_stage_and_an_alias_of_one_model_move_apart(world: RolloutWorld, gateway: FakeGateway) -> None:
    """Two endpoints, one for each; a second one on the same alias is refused."""
    world.promote("1.0.0", by="owner")
    world.made("prod")
    world.until(RolloutState.SUCCEEDED, gateway)
    world.turn(gateway)
    point(world, "1.1.0")
    world.until(RolloutState.SUCCEEDED, gateway)
    assert (world.in_production(), champion(world)) == ("1.0.0", "1.1.0")
    with pytest.raises(errors.EndpointExists, match="churn@champion has the endpoint churn already"):
        world.made("second", alias=CHAMPION)
    with pytest.raises(errors.EndpointExists, match="another model, stage or alias"):
        world.made("churn")
    with pytest.raises(errors.Invalid, match="a stage or an alias"):
        world.made("third", alias="a", stage="staging")


@pytest.mark.hostile("impossible-moves")
@pytest.mark.req("G7", "S9")
def test_a_rollback_goes_only_to_what_callers_were_served(world: RolloutWorld) -> None:
    """A version that the alias named before anything followed it was never proven, and is not gone back to,
    by itself or by name; one that its endpoint served is, however long ago."""
    for semver in ("1.2.0", "1.0.0"):
        point(world, semver)
    world.made(alias=CHAMPION)
    gateway = FakeGateway(world)
    world.until(RolloutState.SUCCEEDED, gateway)
    back = world.promotions.rollback
    for to in (None, parse_ref("churn:1.2.0")):
        with pytest.raises(errors.NoRollbackTarget, match="served no other version"):
            world.do("owner", back, CHURN, "errors", alias=CHAMPION, to=to)
    for semver in ("1.1.0", "1.2.0"):
        point(world, semver)
        world.until(RolloutState.SUCCEEDED, gateway)
        world.turn(gateway)
    done = world.do("owner", back, CHURN, "errors", alias=CHAMPION, to=parse_ref("churn:1.0.0"))
    assert done.version is not None
    assert (done.version.semver, champion(world)) == ("1.0.0", "1.0.0")


@pytest.mark.req("G7", "S9")
def test_what_a_rollback_would_do_is_what_it_does(world: RolloutWorld, gateway: FakeGateway) -> None:
    """Behind an alias, with a rollout under way or without, in a stage: one code tells and does."""
    rollbacks = Rollbacks(world.house.catalog, world.rollouts)

    def told(**where: str) -> Rollback:
        return world.read("owner", rollbacks.preview, CHURN, **where)

    def same(**where: str) -> None:
        before = told(**where)
        assert told(**where) == before, "nothing was changed"
        done = world.do("owner", world.promotions.rollback, CHURN, "errors", **where)
        for name in ("kind", "stage", "alias", "from_number", "tombstoned", "rollout", "endpoint"):
            assert getattr(done, name) == getattr(before, name), name
        assert (done.version and done.version.number) == (before.version and before.version.number)

    with pytest.raises(errors.NoRollbackTarget):
        told(alias=CHAMPION)
    point(world, "1.1.0")
    world.until(RolloutState.SUCCEEDED, gateway)
    world.turn(gateway)
    point(world, "1.2.0")
    same(alias=CHAMPION)
    world.turn(gateway)
    same(alias=CHAMPION)
    world.promote("1.0.0", by="owner")
    world.promote("1.2.0", by="owner")
    same(stage="production")


@pytest.mark.req("S2", "S9")
def test_a_plan_that_would_say_nothing_is_refused(world: RolloutWorld, gateway: FakeGateway) -> None:
    """As a promotion refuses it: the version is served already, or is on its way by another plan."""
    at_once = chosen(None, Strategy.IMMEDIATE)
    with pytest.raises(errors.Conflict, match=r"already serves churn:1\.0\.0"):
        point(world, "1.0.0", plan=at_once)
    running = point(world, "1.1.0")
    with pytest.raises(errors.RolloutActive, match="under way"):
        point(world, "1.1.0", plan=at_once)
    with pytest.raises(errors.Conflict, match="under way already"):
        point(world, "1.1.0", plan=at_once, supersede=True)
    with pytest.raises(errors.Conflict, match=r"already serves churn:1\.0\.0"):
        point(world, "1.0.0", plan=at_once, supersede=True)
    assert (world.latest().id, world.latest().plan) == (running.rollout, PLAN)
