"""Drills in the registry: when an endpoint is fit for one, what is kept, and who may."""

from datetime import timedelta

import pytest
from msgspec import structs

from modelkeep.core import codec, errors
from modelkeep.core.access import Role
from modelkeep.core.drill import Drill, DrillPlan, Measured, Obstacle
from modelkeep.core.events import EventKind
from modelkeep.core.rollout import RolloutState
from modelkeep.service import delivery, drills
from modelkeep.store.database import Database
from tests.service.rollout_world import NAME, FakeGateway, RolloutWorld

pytestmark = pytest.mark.req("S8")

MEASURED = Measured(gateway="g1", took_ms=0.4, confirmed_ms=0.9, back_ms=0.8, hold_s=0.5, live=True, fronts=2)


@pytest.fixture
def world(database: Database) -> RolloutWorld:
    """Three versions of churn, nothing served."""
    made = RolloutWorld(database)
    made.versions("1.0.0", "1.1.0", "1.2.0")
    return made


def second(world: RolloutWorld) -> FakeGateway:
    """1.1.0 serves after 1.0.0, which is kept, and callers come."""
    gateway = world.serving()
    world.promote("1.1.0", by="owner")
    world.until(RolloutState.SUCCEEDED, gateway)
    gateway.steady = True
    world.turn(gateway)
    world.turn(gateway)
    return gateway


def prepare(world: RolloutWorld, who: str = "owner") -> DrillPlan:
    """Ask whether the endpoint is fit."""
    return world.read(who, drills.prepare, world.rollouts, NAME)


def begin(world: RolloutWorld, who: str = "owner", **how: str) -> DrillPlan:
    """Begin a drill."""
    return world.do(who, drills.begin, world.rollouts, NAME, "monthly", **how)


def against(world: RolloutWorld) -> list[Obstacle]:
    """What speaks against a drill now."""
    return [one.obstacle for one in prepare(world).against]


def record(
    world: RolloutWorld, measured: Measured = MEASURED, who: str = "owner", reason: str = "monthly"
) -> Drill:
    """Keep a drill."""
    return world.do(who, drills.record, world.rollouts, NAME, measured, reason)


def test_a_drill_is_kept_and_moves_nothing(world: RolloutWorld) -> None:
    """It is an event with all that was measured, the report shows the last one, and the routes stay."""
    second(world)
    plan = prepare(world)
    assert (plan.stands, plan.former, plan.gateways) == ("1.1.0", "1.0.0", ("g1",))
    assert plan.against == ()
    number, endpoint = world.table_number(), world.endpoint()
    assert begin(world) == plan
    done = record(world)
    begin(world)
    record(world, structs.replace(MEASURED, took_ms=0.2))
    assert (world.table_number(), world.endpoint()) == (number, endpoint)
    (event, _) = world.events(EventKind.ENDPOINT_DRILLED)
    assert (event.sequence, event.reason, event.body["took_ms"]) == (done.sequence, "monthly", 0.4)
    assert event.body["measured"]["fronts"] == 2
    begun = world.events(EventKind.ENDPOINT_DRILL_BEGUN)
    assert [one.body["stands"] for one in begun] == ["1.1.0", "1.1.0"]
    with pytest.raises(errors.Conflict, match="No drill of churn has begun"):
        record(world)
    told = world.read("owner", delivery.report)
    assert told.drills == 2
    assert told.last_drill is not None
    assert (told.last_drill.took_ms, told.last_drill.gateway, told.last_drill.live) == (0.2, "g1", True)
    assert told.last_drill.endpoint == NAME


def test_what_nobody_can_drill_past_is_told_and_kept(world: RolloutWorld) -> None:
    """Nothing served, no former version, a rollout under way, a drill that is on, no gateway: each with its
    reason and an event, whatever is said."""
    with pytest.raises(errors.EndpointNotFound):
        prepare(world)
    gateway = world.serving()
    with pytest.raises(errors.NoRollbackTarget, match="second version"):
        begin(world, anyway="I insist")
    world.promote("1.1.0", by="owner")
    with pytest.raises(errors.RolloutActive, match="under way"):
        begin(world, anyway="I insist")
    world.until(RolloutState.SUCCEEDED, gateway)
    gateway.steady = True
    world.turn(gateway)
    gateway.broken[world.key("1.0.0")] = "the disk is gone"
    world.turn(gateway)
    with pytest.raises(errors.NoRollbackTarget, match=r"1\.0\.0 is loaded on no gateway"):
        begin(world)
    del gateway.broken[world.key("1.0.0")]
    world.turn(gateway)
    begin(world)
    with pytest.raises(errors.DrillRefused, match="another drill of churn has begun") as caught:
        begin(world, anyway="I insist")
    assert "--anyway" not in caught.value.message
    world.later(seconds=61)
    world.turn(gateway)
    assert against(world) == []
    world.later(hours=1)
    with pytest.raises(errors.GatewayUnavailable):
        begin(world)
    refused = world.events(EventKind.ENDPOINT_DRILL_REFUSED)
    assert [one.body["against"][0]["obstacle"] for one in refused] == [
        "not_loaded", "rollout", "not_loaded", "drill", "no_gateway",
    ]  # fmt: skip
    with pytest.raises(errors.Conflict):
        record(world)


def test_a_drill_from_a_time_to_come_holds_nobody_up(world: RolloutWorld) -> None:
    """One that was never told of, before the clock was set back."""
    gateway = second(world)
    begin(world)
    assert against(world) == [Obstacle.DRILL]
    world.now += timedelta(hours=-1)
    world.turn(gateway)
    assert Obstacle.DRILL not in against(world)


def test_a_drill_waits_for_its_window(world: RolloutWorld) -> None:
    """Outside of them it is refused with the time of the next one; an admin may drill all the same, says
    why, and both are kept with what was measured."""
    gateway = second(world)
    world.person("ann", Role.MAINTAINER)
    opens = (world.now + timedelta(hours=3)).replace(minute=0, second=0, microsecond=0)
    policy = f"name: p\ndrills: {{windows: ['{opens:%H}:00-{opens:%H}:30', 'Sun 03:00-04:00 Europe/Berlin']}}"
    world.do("owner", world.promotions.set_policy, "churn", policy.encode())
    assert against(world) == [Obstacle.WINDOW]
    assert prepare(world).next_at == opens
    with pytest.raises(errors.DrillRefused) as caught:
        begin(world, "ann")
    assert f"The next window opens at {opens:%Y-%m-%d %H}:00 UTC" in caught.value.message
    assert caught.value.details["next_at"] == codec.format_time(opens)
    with pytest.raises(errors.NotAllowed, match="administer"):
        begin(world, "ann", anyway="the board asks")
    begin(world, anyway="the board asks")
    done = record(world)
    assert (done.anyway, [one.obstacle for one in done.against]) == ("the board asks", [Obstacle.WINDOW])
    assert world.events(EventKind.ENDPOINT_DRILLED)[-1].body["anyway"] == "the board asks"
    (refused,) = world.events(EventKind.ENDPOINT_DRILL_REFUSED)
    assert (refused.actor.name, refused.reason) == ("ann", "monthly")
    world.later(seconds=(opens - world.now).total_seconds())
    world.turn(gateway)
    assert begin(world, "ann").against == ()
    assert record(world, who="ann").anyway is None


def test_an_endpoint_that_is_not_well_or_that_nobody_asks_is_left_alone(world: RolloutWorld) -> None:
    """What it answered lately failed, its version is not ready, it serves another version than it follows, or
    nobody came for minutes: each by itself."""
    gateway = second(world)
    gateway.failing[world.key("1.1.0")] = 6
    world.turn(gateway)
    assert against(world) == []
    for _ in range(20):
        world.turn(gateway, seconds=10.0)
    assert against(world) == [Obstacle.UNHEALTHY]
    with pytest.raises(errors.DrillRefused, match=r"6% of what 1\.1\.0 answered lately failed"):
        begin(world)
    gateway.failing.clear()
    gateway.steady = False
    world.later(minutes=12)
    world.turn(gateway)
    assert against(world) == [Obstacle.NO_TRAFFIC]
    with pytest.raises(errors.DrillRefused, match=r"would measure nothing.*--anyway"):
        begin(world)
    gateway.steady = True
    world.turn(gateway)
    assert against(world) == []
    gateway.broken[world.key("1.1.0")] = "out of memory"
    world.turn(gateway)
    assert [one.why for one in prepare(world).against] == ["1.1.0 is failed on g1"]


def test_only_who_may_roll_back_may_drill(world: RolloutWorld) -> None:
    """A viewer may not; a stranger does not learn that the endpoint is there."""
    second(world)
    world.person("guest", Role.VIEWER, project="default")
    world.person("stranger", Role.VIEWER, project="other")
    for said in (prepare, begin, lambda world, who: record(world, who=who)):
        with pytest.raises(errors.NotAllowed):
            said(world, "guest")
        with pytest.raises(errors.EndpointNotFound):
            said(world, "stranger")
    assert not world.events(EventKind.ENDPOINT_DRILLED)


@pytest.mark.parametrize(
    "more",
    [
        {"took_ms": -1.0},
        {"took_ms": float("nan")},
        {"took_ms": 5.0, "confirmed_ms": 1.0},
        {"confirmed_ms": float("inf")},
        {"back_ms": 1e9},
        {"gateway": "elsewhere"},
        {"gateway": "no name"},
    ],
)
def test_what_cannot_have_been_measured_is_not_kept(world: RolloutWorld, more: dict[str, object]) -> None:
    """A time below nothing or without end, or of a gateway that does not answer."""
    second(world)
    begin(world)
    with pytest.raises(errors.Invalid):
        record(world, structs.replace(MEASURED, **more))
    with pytest.raises(errors.Invalid, match="reason"):
        record(world, reason="")
