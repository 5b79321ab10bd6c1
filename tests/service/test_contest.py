"""A/B tests of several versions, in the service: who may be tested, who is taken out, and what is told."""

import pytest
from msgspec import structs

from modelkeep.core import errors
from modelkeep.core.events import EventKind
from modelkeep.core.plan import Plan, Step, Strategy, Variant
from modelkeep.core.promotion import RequestState
from modelkeep.core.rollout import RolloutState
from modelkeep.core.routing import WHOLE_PPM
from modelkeep.core.values import parse_ref
from modelkeep.store.database import Database
from tests.service.rollout_world import NAME, STEP_S, RolloutWorld

PLAN = Plan(
    strategy=Strategy.AB_TEST,
    steps=(Step(weight_ppm=250_000, min_s=6 * STEP_S, max_s=6 * STEP_S),),
    versions=(Variant(version="1.2.0", weight_ppm=250_000), Variant(version="#4", weight_ppm=200_000)),
)
POLICY = b"""
name: strict
stages:
  production:
    gates: [{gate: files_verified}]
    rollout: {strategy: rolling}
"""
AGREED = b"name: people\nstages: {production: {approvals: {count: 1}}}"


@pytest.fixture
def world(database: Database) -> RolloutWorld:
    """Four versions of churn, nothing served."""
    made = RolloutWorld(database)
    made.versions("1.0.0", "1.1.0", "1.2.0", "1.3.0")
    return made


@pytest.mark.req("S3", "S7", "S8")
def test_of_several_versions_one_is_taken_out_alone_and_another_wins(world: RolloutWorld) -> None:
    """A version that is shown worse loses its callers to stable, and bears the mark; the others keep theirs
    to the end; the report names the winner, which can be promoted; every number comes out again."""
    gateway = world.serving()
    for semver, percent in (("1.0.0", 20), ("1.1.0", 20), ("1.3.0", 60)):
        gateway.failing[world.key(semver)] = percent
    world.promote("1.1.0", by="owner", plan=PLAN)
    world.until(RolloutState.STEPPING, gateway)
    world.turn(gateway)
    route = gateway.route()
    assert (route.candidate_ppm, route.others_ppm) == (250_000, (250_000, 200_000))
    assert route.keys >= {world.key(semver) for semver in ("1.0.0", "1.1.0", "1.2.0", "1.3.0")}
    with pytest.raises(errors.Protected):
        world.do("owner", world.house.catalog.delete_version, parse_ref("churn:1.3.0"))
    for _ in range(4):
        world.turn(gateway, seconds=1.0)
    assert world.state() is RolloutState.STEPPING
    after = gateway.route()
    assert (after.candidate_ppm, after.others_ppm) == (250_000, (250_000, 0))
    assert after.others[0] == route.others[0], "nobody else moves"
    assert (route.aside_ppm, after.aside_ppm) == (0, 200_000)
    assert world.key("1.3.0") not in after.keys
    assert after.epoch.term > route.epoch.term
    assert world.get("1.3.0").tombstone is not None
    (event,) = world.events(EventKind.ROLLOUT_TAKEN_OUT)
    assert "1.3.0" in (event.reason or "")
    assert all(one.in_step for one in world.status().gateways)
    done = world.until(RolloutState.CONCLUDED, gateway)
    assert done.report is not None
    assert (done.report.winner, done.report.semver, done.report.comparisons) == ("other", "1.2.0", 12)
    assert [(arm.semver, arm.better) for arm in done.report.arms] == [
        ("1.1.0", None),
        ("1.2.0", True),
        ("1.3.0", False),
    ]
    assert [world.get(semver).tombstone for semver in ("1.1.0", "1.2.0")] == [None, None]
    told = world.read("owner", world.rollouts.explain, done.id)
    assert (told.equal, told.report) == (True, done.report)
    world.turn(gateway)
    assert (gateway.serves(), gateway.route().others) == (world.key("1.0.0"), ())
    world.promote("1.2.0", by="owner")


@pytest.mark.req("S3", "S8")
def test_with_the_last_version_the_test_is_taken_back(world: RolloutWorld) -> None:
    """The candidate is taken out like any other; when nobody is left, the rollout is rolled back."""
    gateway = world.serving()
    gateway.failing[world.key("1.1.0")] = 60
    world.promote("1.1.0", by="owner", plan=structs.replace(PLAN, versions=PLAN.versions[:1]))
    world.until(RolloutState.STEPPING, gateway)
    for _ in range(4):
        world.turn(gateway, seconds=1.0)
    route = gateway.route()
    assert (route.candidate, route.candidate_ppm, route.others_ppm) == (None, 0, (250_000,))
    assert world.state() is RolloutState.STEPPING
    gateway.failing[world.key("1.2.0")] = 60
    world.until(RolloutState.ROLLED_BACK, gateway)
    assert gateway.route().tried_ppm == 0
    assert world.get("1.2.0").tombstone is not None
    assert world.read("owner", world.rollouts.explain, NAME).equal


@pytest.mark.req("S3", "S8")
def test_a_former_version_that_is_taken_out_of_a_test_is_no_way_back(world: RolloutWorld) -> None:
    """While it is tried no gateway keeps it as the former one; once it was taken out, no rollback leads to
    it, in the registry or at a gateway."""
    gateway = world.serving()
    world.promote("1.1.0", by="owner")
    world.until(RolloutState.SUCCEEDED, gateway)
    world.turn(gateway)
    assert world.endpoint().previous == 1
    world.version("1.0.1")
    gateway.failing[world.key("1.0.0")] = 60
    plan = structs.replace(PLAN, versions=(Variant(version="1.0.0", weight_ppm=200_000),))
    world.promote("1.2.0", by="owner", plan=plan)
    world.until(RolloutState.STEPPING, gateway)
    world.turn(gateway)
    assert gateway.route().previous is None
    for _ in range(3):
        world.turn(gateway, seconds=1.0)
    assert (world.state(), world.endpoint().previous) == (RolloutState.STEPPING, None)
    world.until(RolloutState.CONCLUDED, gateway)
    world.turn(gateway)
    with pytest.raises(errors.NoRollbackTarget):
        gateway.roll_back()


@pytest.mark.req("S3", "S8")
def test_a_gateway_that_takes_a_test_back_takes_all_of_it(world: RolloutWorld) -> None:
    """It asks nobody; the registry follows, and every version of the test bears the mark."""
    gateway = world.serving()
    world.promote("1.1.0", by="owner", plan=PLAN)
    world.until(RolloutState.STEPPING, gateway)
    world.turn(gateway)
    gateway.roll_back()
    assert gateway.route().arms[0].weight_ppm == WHOLE_PPM
    world.until(RolloutState.ROLLED_BACK, gateway)
    assert all(world.get(semver).tombstone for semver in ("1.1.0", "1.2.0", "1.3.0"))


@pytest.mark.req("S3", "G2")
def test_a_version_that_may_not_be_promoted_may_not_be_tested(world: RolloutWorld) -> None:
    """Its gates are asked as the candidate's are; one that is served, the candidate, taken back, or the same
    bytes again, is refused with a sentence; and no plan to come names versions."""
    gateway = world.serving()
    wrong = {
        "1.1.0": errors.InvalidPlan,
        "1.0.0": errors.Conflict,
        "9.9.9": errors.NotFound,
    }
    for version, error in wrong.items():
        plan = structs.replace(PLAN, versions=(Variant(version=version, weight_ppm=1),))
        with pytest.raises((error, errors.InvalidTransition)):
            world.promote("1.1.0", by="owner", plan=plan)
    world.version("1.2.1", content=world.get("1.2.0").digest)
    twins = tuple(Variant(version=semver, weight_ppm=1) for semver in ("1.2.0", "1.2.1"))
    with pytest.raises(errors.InvalidPlan, match="has its bytes"):
        world.promote("1.1.0", by="owner", plan=structs.replace(PLAN, versions=twins))
    with pytest.raises(errors.InvalidPlan, match="belong to one test"):
        world.made(plan=PLAN)
    world.do("owner", world.promotions.set_policy, "churn", POLICY)

    def promote(verified: tuple[bool | None, ...]) -> None:
        ref = parse_ref("churn:1.1.0")
        world.do(
            "owner",
            world.promotions.promote,
            ref,
            "production",
            "which is best?",
            plan=PLAN,
            files_verified=True,
            others_verified=verified,
        )

    for verified in ((), (True, None), (True, False)):
        with pytest.raises(errors.PolicyDenied, match=r"churn:1.[23].0, which the plan tests too"):
            promote(verified)
    assert world.endpoint().rollout is None
    promote((True, True))
    world.until(RolloutState.STEPPING, gateway)


@pytest.mark.req("G2", "G8")
def test_of_every_version_of_a_test_it_is_known_by_which_decision_it_has_its_share(
    world: RolloutWorld,
) -> None:
    """Each has a grant of its own, with the bytes, gates and approvals that were weighed, and each request is
    used up by it; the stage's move bears the candidate's."""
    gateway = world.serving()
    world.do("owner", world.promotions.set_policy, "churn", AGREED)
    agreed = {semver: world.review(world.ask(semver).id) for semver in ("1.1.0", "1.2.0", "1.3.0")}
    world.promote("1.1.0", by="owner", plan=structs.replace(PLAN, promote_winner=True))
    rollout = world.latest().id
    granted = [
        event for event in world.events(EventKind.PROMOTION_GRANTED) if event.body["rollout"] == rollout
    ]
    for event, (semver, request) in zip(granted, agreed.items(), strict=True):
        version = world.get(semver)
        assert (event.number, event.body["digest"], event.body["semver"]) == (
            version.number,
            version.digest,
            semver,
        )
        assert (event.body["request"], event.body["approved_by"]) == (request.id, ["bob"])
        assert event.body["policy"] == granted[0].body["policy"]
        assert event.subject == f"rollout/{rollout}"
        closed = world.read("ann", world.promotions.get_request, request.id)
        assert (closed.state, closed.closed_why) == (
            RequestState.PROMOTED,
            f"the rollout {rollout} was started",
        )
    for semver in ("1.0.0", "1.2.0", "1.3.0"):
        gateway.failing[world.key(semver)] = 30
    world.until(RolloutState.SUCCEEDED, gateway)
    (moved,) = [event for event in world.events(EventKind.STAGE_MOVED) if event.body["rollout"] == rollout]
    assert (moved.number, moved.body["request"]) == (world.get("1.1.0").number, agreed["1.1.0"].id)
    assert moved.body["approved_by"] == ["bob"]
