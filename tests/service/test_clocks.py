"""Wall clocks that are set: a registry whose clock goes back by days goes on with what it was doing, waits
for nobody who is gone, and keeps its order. What clocks do to whole histories is in `test_rollout_machine`.
"""

from datetime import timedelta

import pytest

from modelkeep.core.rollout import RolloutState
from modelkeep.service.gateways import SILENT_S
from modelkeep.store.database import Database
from tests.service.rollout_world import FakeGateway, RolloutWorld

BACK = timedelta(days=-2)
pytestmark = pytest.mark.req("S7", "S8")


@pytest.fixture
def world(sqlite_database: Database) -> RolloutWorld:
    """Three versions of churn."""
    made = RolloutWorld(sqlite_database)
    made.versions("1.0.0", "1.1.0", "1.2.0")
    return made


def stepping(world: RolloutWorld) -> FakeGateway:
    """A gateway in the first step of a rollout, which a controller looks after."""
    gateway = world.serving()
    world.promote("1.1.0", by="owner")
    world.until(RolloutState.STEPPING, gateway)
    world.turn(gateway)
    return gateway


def test_a_rollout_goes_on_when_the_clock_is_set_back(world: RolloutWorld) -> None:
    """What it waits for begins anew, and does not last until the clock has caught up."""
    gateway = stepping(world)
    assert world.latest().step_since is not None
    world.now += BACK
    world.until(RolloutState.SUCCEEDED, gateway)


def test_errors_are_heeded_when_the_clock_is_set_back(world: RolloutWorld) -> None:
    """Counts that arrive at an earlier time than the last ones are taken in after them."""
    gateway = stepping(world)
    world.now += BACK
    gateway.failing[world.key("1.1.0")] = 60
    world.until(RolloutState.ROLLED_BACK, gateway)


def test_a_controller_that_died_before_the_clock_was_set_back_holds_nobody_up(world: RolloutWorld) -> None:
    """Its lease ends when no lease could last longer."""
    gateway = stepping(world)
    world.turn(gateway, seconds=20.0)
    world.now += BACK
    gateway.turn()
    world.later(seconds=20.0)
    gateway.turn()
    before = world.latest()
    world.look("another")
    assert world.latest() != before


def test_who_was_silent_since_the_clock_was_set_back_is_not_waited_for(world: RolloutWorld) -> None:
    """A report from what is the future now says nothing of who answers now, so a rollback ends without it."""
    gateway, gone = stepping(world), FakeGateway(world, "g2")
    world.turn(gateway, gone)
    world.now += BACK
    gateway.failing[world.key("1.1.0")] = 60
    world.until(RolloutState.ROLLED_BACK, gateway)
    told = {one.gateway: one.answering for one in world.status().gateways}
    assert told == {"g1": True, "g2": False}
    world.later(seconds=SILENT_S)


def test_the_latest_rollout_is_the_one_that_began_last(world: RolloutWorld) -> None:
    """By what happened, whatever its clock said."""
    gateway = stepping(world)
    world.until(RolloutState.SUCCEEDED, gateway)
    world.now += BACK
    world.promote("1.2.0", by="owner")
    world.until(RolloutState.SUCCEEDED, gateway)
    assert world.latest().candidate_semver == "1.2.0"
