"""An endpoint cannot be had to follow what asks for less than the policy, unless an admin says so."""

import pytest
from msgspec import structs

from modelkeep.core import errors
from modelkeep.core.access import Verb
from modelkeep.core.policy import ALONE, Approvals, Policy, StageRules
from modelkeep.core.rollout import RolloutState
from modelkeep.core.values import parse_ref
from modelkeep.service.act import Act, Context
from modelkeep.store.database import Database
from tests.service.promotion_world import CHURN
from tests.service.rollout_world import PLAN, FakeGateway, RolloutWorld

SECOND_PERSON = StageRules(approvals=Approvals(count=1))


@pytest.fixture
def world(sqlite_database: Database) -> RolloutWorld:
    """Two versions of churn, and 1.0.0 in production; ann is its maintainer, dan an admin."""
    made = RolloutWorld(sqlite_database)
    made.versions("1.0.0", "1.1.0")
    made.promote("1.0.0", by="owner")
    return made


def put(world: RolloutWorld, by: str, name: str = "churn", **what: object) -> None:
    """Make an endpoint of churn's."""
    world.do(by, world.rollouts.put_endpoint, name, CHURN, **({"plan": PLAN} | what))


def guard(world: RolloutWorld, **stages: StageRules) -> None:
    """Have the policy of churn ask for this and no more."""
    world.do("owner", world.promotions.set_policy, "churn", Policy(name="churn", stages=stages))


@pytest.mark.hostile("impossible-moves")
@pytest.mark.req("G1", "G10", "S9")
def test_an_alias_is_no_way_round_the_gates_of_a_stage(world: RolloutWorld) -> None:
    """The endpoint on production is deleted, the alias names another, nobody else is asked: no."""
    put(world, "ann")
    world.until(RolloutState.SUCCEEDED, FakeGateway(world))
    world.do("ann", world.rollouts.delete_endpoint, "churn")
    world.do("ann", world.house.catalog.set_alias, CHURN, "x", parse_ref("churn:1.1.0"))
    for name in ("churn", "other"):
        with pytest.raises(errors.NotAllowed, match="gets round the policy") as caught:
            put(world, "ann", name, alias="x")
        assert "production drops the gate files_verified" in caught.value.details["weaker"]
    with pytest.raises(errors.EndpointNotFound):
        world.endpoint()
    put(world, "dan", alias="x")
    assert world.latest().candidate_semver == "1.1.0"


@pytest.mark.req("G1", "S9")
def test_where_nothing_is_asked_for_an_alias_is_as_good(world: RolloutWorld) -> None:
    """A policy without gates is not got round."""
    guard(world)
    world.do("ann", world.house.catalog.set_alias, CHURN, "x", parse_ref("churn:1.1.0"))
    put(world, "ann", alias="x")
    assert world.latest().candidate_semver == "1.1.0"


@pytest.mark.req("G1", "S9")
def test_a_name_does_not_move_to_a_stage_that_asks_for_less(world: RolloutWorld) -> None:
    """Its callers were served with a second person's word; under another name staging may be served."""
    guard(world, production=SECOND_PERSON)
    put(world, "ann")
    world.until(RolloutState.SUCCEEDED, FakeGateway(world))
    world.do("ann", world.rollouts.delete_endpoint, "churn")
    with pytest.raises(errors.NotAllowed, match="churn followed churn#production before"):
        put(world, "ann", stage="staging")
    put(world, "ann", "try-out", stage="staging")
    put(world, "ann")
    assert world.endpoint().stage == "production"


@pytest.mark.req("G10", "S9")
def test_beginning_to_serve_takes_the_right_to_promote(world: RolloutWorld) -> None:
    """Whoever may only operate makes an endpoint that has nothing to serve yet, and changes settings."""
    operator = world.context("ann")
    narrow = structs.replace(operator.caller, verbs=frozenset({Verb.READ, Verb.OPERATE}))

    def do(name: str, stage: str, slow_ms: float = 250.0) -> None:
        def job(act: Act) -> object:
            return world.rollouts.put_endpoint(act, name, CHURN, stage=stage, plan=PLAN, slow_ms=slow_ms)

        world.desk.do(Context(caller=narrow), job)

    do("try-out", "staging")
    with pytest.raises(errors.NotAllowed, match="'promote'"):
        do("churn", "production")
    put(world, "ann")
    world.until(RolloutState.SUCCEEDED, FakeGateway(world))
    do("churn", "production", slow_ms=100.0)
    assert world.endpoint().slow_ms == 100.0
    assert ALONE.rules("staging").gates, "the policy asks for something"
