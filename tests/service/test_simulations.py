"""Former rollouts led through other plans, from the counts that are stored."""

import pytest
from msgspec import structs

from modelkeep.core import errors
from modelkeep.core.access import Role
from modelkeep.core.rollout import RolloutState
from modelkeep.core.simulation import Simulation
from modelkeep.service import simulations
from modelkeep.store.database import Database
from tests.service.rollout_world import NAME, PLAN, RolloutWorld

pytestmark = pytest.mark.req("S7")


@pytest.fixture
def world(database: Database) -> RolloutWorld:
    """A rollout of 1.1.0 that was taken back because it failed."""
    made = RolloutWorld(database)
    made.versions("1.0.0", "1.1.0")
    gateway = made.serving()
    gateway.failing[made.key("1.1.0")] = 50
    made.promote("1.1.0", by="owner")
    made.until(RolloutState.ROLLED_BACK, gateway)
    return made


def told(world: RolloutWorld, who: str = "owner", name: str = NAME, **more: object) -> Simulation:
    """What somebody is told."""
    return world.read(who, simulations.simulated, world.rollouts, name, **more)


def test_by_its_own_plan_it_ends_as_it_did(world: RolloutWorld) -> None:
    """Taken back, for the same reason, by the endpoint's name and by its id; nothing is changed."""
    before = world.latest()
    found = told(world)
    assert found.ended is found.was is RolloutState.ROLLED_BACK
    assert found.why == before.outcome == found.was_outcome
    assert found.ticks == before.ticks
    assert told(world, name=before.id) == found
    assert world.latest() == before


def test_another_plan_might_have_let_it_through(world: RolloutWorld) -> None:
    """One that risks next to nothing would not have been sure yet, nor have found a proof."""
    lax = structs.replace(PLAN, alpha=1e-300)
    assert told(world, plan=lax).ended is None
    with pytest.raises(errors.InvalidPlan):
        told(world, plan=structs.replace(PLAN, alpha=0.0))


def test_only_readers_of_the_model_simulate(world: RolloutWorld) -> None:
    """To others the rollout is not there."""
    world.person("stranger", Role.VIEWER, project="other")
    with pytest.raises(errors.RolloutNotFound):
        told(world, "stranger")
