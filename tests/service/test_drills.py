"""Drills in the registry: when an endpoint is fit for one, what is kept, and who may."""

import pytest
from msgspec import structs

from modelkeep.core import errors
from modelkeep.core.access import Role
from modelkeep.core.drill import Drill, Measured
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
    """1.1.0 serves after 1.0.0, which is kept."""
    gateway = world.serving()
    world.promote("1.1.0", by="owner")
    world.until(RolloutState.SUCCEEDED, gateway)
    world.turn(gateway)
    return gateway


def prepare(world: RolloutWorld, who: str = "owner") -> object:
    """Ask whether the endpoint is fit."""
    return world.read(who, drills.prepare, world.rollouts, NAME)


def record(
    world: RolloutWorld, measured: Measured = MEASURED, who: str = "owner", reason: str = "monthly"
) -> Drill:
    """Keep a drill."""
    return world.do(who, drills.record, world.rollouts, NAME, measured, reason)


def test_a_drill_is_kept_and_moves_nothing(world: RolloutWorld) -> None:
    """It is an event with all that was measured, the report shows the last one, and the routes stay."""
    second(world)
    plan = world.read("owner", drills.prepare, world.rollouts, NAME)
    assert (plan.stands, plan.former, plan.gateways) == ("1.1.0", "1.0.0", ("g1",))
    number, endpoint = world.table_number(), world.endpoint()
    done = record(world)
    record(world, structs.replace(MEASURED, took_ms=0.2))
    assert (world.table_number(), world.endpoint()) == (number, endpoint)
    (event, _) = world.events(EventKind.ENDPOINT_DRILLED)
    assert (event.sequence, event.reason, event.body["took_ms"]) == (done.sequence, "monthly", 0.4)
    assert event.body["measured"]["fronts"] == 2
    told = world.read("owner", delivery.report)
    assert told.drills == 2
    assert told.last_drill is not None
    assert (told.last_drill.took_ms, told.last_drill.gateway, told.last_drill.live) == (0.2, "g1", True)
    assert told.last_drill.endpoint == NAME


def test_an_endpoint_that_is_not_fit_is_refused(world: RolloutWorld) -> None:
    """Nothing served, no former version, a rollout under way, no gateway: each with its reason."""
    with pytest.raises(errors.EndpointNotFound):
        prepare(world)
    gateway = world.serving()
    with pytest.raises(errors.NoRollbackTarget, match="second version"):
        prepare(world)
    world.promote("1.1.0", by="owner")
    for said in (prepare, record):
        with pytest.raises(errors.RolloutActive):
            said(world)
    world.until(RolloutState.SUCCEEDED, gateway)
    world.later(hours=1)
    with pytest.raises(errors.GatewayUnavailable):
        prepare(world)


def test_only_who_may_roll_back_may_drill(world: RolloutWorld) -> None:
    """A viewer may not; a stranger does not learn that the endpoint is there."""
    second(world)
    world.person("guest", Role.VIEWER, project="default")
    world.person("stranger", Role.VIEWER, project="other")
    for said in (prepare, lambda world, who: record(world, who=who)):
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
    with pytest.raises(errors.Invalid):
        record(world, structs.replace(MEASURED, **more))
    with pytest.raises(errors.Invalid, match="reason"):
        record(world, reason="")
