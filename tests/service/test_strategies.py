"""The ways in which a candidate takes over, in the service: where a plan comes from, blue-green, rolling, and
a rollout that takes another's place."""

import pytest
from msgspec import structs

from modelkeep.core import errors
from modelkeep.core.access import Role
from modelkeep.core.events import EventKind
from modelkeep.core.plan import AT_ONCE, PRESETS, Plan, Step, Strategy
from modelkeep.core.rollout import RolloutState
from modelkeep.core.routing import WHOLE_PPM
from modelkeep.core.values import parse_ref
from modelkeep.service.forecasts import Asked
from modelkeep.store.database import Database
from tests.service.rollout_world import NAME, PLAN, STEP_S, FakeGateway, RolloutWorld

ONE_STEP = (Step(weight_ppm=WHOLE_PPM, min_s=STEP_S),)
BLUE_GREEN = Plan(strategy=Strategy.BLUE_GREEN, steps=ONE_STEP, preview_s=STEP_S)
AB_TEST = Plan(
    strategy=Strategy.AB_TEST, steps=(Step(weight_ppm=400_000, min_s=3 * STEP_S, max_s=3 * STEP_S),)
)
SHADOW = Plan(strategy=Strategy.SHADOW, steps=(), shadow_ppm=500_000, shadow_s=STEP_S)
ROLLING = structs.replace(PLAN, strategy=Strategy.ROLLING)
POLICY = """
name: strict
stages:
  production:
    gates: [{gate: files_verified}]
    rollout: {strategy: rolling}
"""


@pytest.fixture
def world(database: Database) -> RolloutWorld:
    """Three versions of churn, nothing served."""
    made = RolloutWorld(database)
    made.versions("1.0.0", "1.1.0", "1.2.0")
    return made


def gate_of(world: RolloutWorld, semver: str) -> tuple[Plan | None, str | None]:
    """How the traffic would move, as it is told beforehand, and by whose word."""
    ref = parse_ref(f"churn:{semver}")
    told = world.read("owner", world.promotions.gate, ref, "production", files_verified=True)
    return told.plan, told.plan_from


# ------------------------------------------------------------------------------------ where a plan comes from


@pytest.mark.req("S3", "G2")
def test_the_promotion_s_plan_goes_before_the_policy_s_before_the_endpoint_s(world: RolloutWorld) -> None:
    """What is shown beforehand is what then moves the traffic, and the record names who said so."""
    gateway = world.serving()
    assert gate_of(world, "1.0.0") == (None, None), "it serves already"
    assert gate_of(world, "1.1.0") == (PLAN, "endpoint")
    world.promote("1.1.0", by="owner")
    assert world.latest().plan == PLAN
    world.until(RolloutState.SUCCEEDED, gateway)

    world.do("owner", world.promotions.set_policy, "churn", POLICY.encode())
    assert gate_of(world, "1.2.0") == (PRESETS[Strategy.ROLLING], "policy")
    asked = Asked(traffic_per_s=50.0, runs=5)
    ref = parse_ref("churn:1.2.0")
    assert world.read("owner", world.rollouts.forecast, ref, "production", asked).plan.strategy == "rolling"
    world.promote("1.2.0", by="owner")
    assert world.latest().plan == PRESETS[Strategy.ROLLING]
    world.do("owner", world.rollouts.abort, NAME, "not yet")

    world.turn(gateway)
    world.promote("1.2.0", by="owner", plan=BLUE_GREEN)
    assert world.latest().plan == BLUE_GREEN
    started = [event.body["plan_from"] for event in world.events(EventKind.ROLLOUT_STARTED)]
    assert started == ["endpoint", "endpoint", "policy", "promotion"]


@pytest.mark.req("S3")
def test_a_plan_of_one_s_own_is_for_operators_and_has_to_move_something(world: RolloutWorld) -> None:
    """Whoever may only promote cannot choose a quicker way; a plan with no traffic to move is refused."""
    world.promote("1.0.0", by="owner")
    with pytest.raises(errors.InvalidPlan, match="endpoint create"):
        world.promote("1.1.0", by="owner", plan=BLUE_GREEN)
    assert world.in_production() == "1.0.0"
    world.made()
    gateway = FakeGateway(world)
    world.until(RolloutState.SUCCEEDED, gateway)
    with pytest.raises(errors.InvalidPlan):
        world.promote("1.1.0", by="owner", plan=structs.replace(BLUE_GREEN, alpha=0.9))
    world.person("vera", Role.VIEWER)
    with pytest.raises(errors.NotAllowed):
        world.promote("1.1.0", by="vera", plan=BLUE_GREEN)
    assert world.endpoint().rollout is None


@pytest.mark.req("G2")
def test_a_policy_with_a_plan_that_cannot_be_is_refused(world: RolloutWorld) -> None:
    """The sentence names the stage and what is off."""
    wrong = POLICY.replace("strategy: rolling", "strategy: rolling, preview_s: 60")
    with pytest.raises(errors.InvalidPolicy, match=r"production.*preview"):
        world.do("owner", world.promotions.set_policy, "churn", wrong.encode())


# ---------------------------------------------------------------------------------------- blue-green, rolling


@pytest.mark.req("S3", "S4", "S8")
def test_blue_green_previews_switches_bakes_and_can_be_swapped_back(world: RolloutWorld) -> None:
    """No weight in the preview; then everything at once with the former version kept loaded; one command of
    the gateway's own brings it back, and the registry follows."""
    gateway = world.serving()
    world.promote("1.1.0", by="owner", plan=BLUE_GREEN)
    world.until(RolloutState.PREVIEWING, gateway)
    world.turn(gateway)
    route = gateway.route()
    assert (route.preview, route.candidate, route.candidate_ppm) == (True, world.key("1.1.0"), 0)
    assert gateway.serves() == world.key("1.0.0")
    world.until(RolloutState.STEPPING, gateway)
    world.turn(gateway)
    assert gateway.serves() == world.key("1.1.0")
    assert world.key("1.0.0") in gateway.ready
    gateway.roll_back()
    assert gateway.serves() == world.key("1.0.0")
    world.until(RolloutState.ROLLED_BACK, gateway)
    assert world.in_production() == "1.0.0"
    assert world.get("1.1.0").tombstone is not None
    with pytest.raises(errors.Tombstoned):
        world.promote("1.1.0", by="owner", plan=BLUE_GREEN)


@pytest.mark.req("S3")
def test_a_blue_green_that_holds_takes_the_stage(world: RolloutWorld) -> None:
    """After the bake the candidate is stable, and the former version stays loaded as the way back."""
    gateway = world.serving()
    world.promote("1.1.0", by="owner", plan=structs.replace(BLUE_GREEN, automatic=False))
    world.until(RolloutState.PREVIEWING, gateway)
    for _ in range(10):
        world.turn(gateway, seconds=STEP_S)
    assert world.state() is RolloutState.PREVIEWING
    world.do("owner", world.rollouts.step, NAME, "looks fine")
    world.until(RolloutState.SUCCEEDED, gateway)
    world.turn(gateway)
    assert world.in_production() == "1.1.0"
    assert (gateway.serves(), gateway.route().previous) == (world.key("1.1.0"), world.key("1.0.0"))


@pytest.mark.req("S3")
def test_a_preview_can_be_ended_without_a_trace_on_the_version(world: RolloutWorld) -> None:
    """It never answered anybody: cancelled, not taken back, and free to come again."""
    gateway = world.serving()
    world.promote("1.1.0", by="owner", plan=BLUE_GREEN)
    world.until(RolloutState.PREVIEWING, gateway)
    assert world.do("owner", world.rollouts.abort, NAME, "wrong data").state is RolloutState.CANCELLED
    assert world.get("1.1.0").tombstone is None
    world.turn(gateway)
    assert gateway.route().candidate is None
    world.promote("1.1.0", by="owner", plan=BLUE_GREEN)


@pytest.mark.req("S3")
def test_a_rolling_update_ends_in_success_without_statistics(world: RolloutWorld) -> None:
    """Readiness carries it on, with failing callers too; what it asks for no statistics shows none."""
    gateway = world.serving()
    gateway.failing[world.key("1.1.0")] = 40
    world.promote("1.1.0", by="owner", plan=ROLLING)
    done = world.until(RolloutState.SUCCEEDED, gateway)
    assert done.judgement is not None
    assert done.judgement.passed == "ready"
    told = world.read("owner", world.rollouts.explain, done.id)
    assert told.equal
    assert "no statistics" in told.judgement.why


# -------------------------------------------------------------------------------------------------- A/B tests


@pytest.mark.req("S3", "S7")
def test_an_a_b_test_ends_on_its_day_and_reports_a_winner(world: RolloutWorld) -> None:
    """Both versions keep their callers while it lasts; then stable has everybody again, the report is
    in the record, and the candidate, which nobody holds anything against, can be promoted."""
    gateway = world.serving()
    gateway.failing[world.key("1.0.0")] = 20
    world.promote("1.1.0", by="owner", plan=AB_TEST)
    started = world.latest().plan
    assert started.ends_at is not None, "its length has become a day"
    world.until(RolloutState.STEPPING, gateway)
    world.turn(gateway)
    assert gateway.route().candidate_ppm == 400_000
    done = world.until(RolloutState.CONCLUDED, gateway)
    assert world.now >= started.ends_at
    assert done.report is not None
    assert (done.report.winner, done.report.goal) == ("candidate", "errors")
    (event,) = world.events(EventKind.ROLLOUT_CONCLUDED)
    assert event.body["report"]["winner"] == "candidate"
    world.turn(gateway)
    assert (gateway.serves(), gateway.route().candidate) == (world.key("1.0.0"), None)
    assert world.get("1.1.0").tombstone is None
    assert world.read("owner", world.rollouts.explain, done.id).equal
    world.promote("1.1.0", by="owner")


@pytest.mark.req("S3")
def test_a_winner_takes_over_only_where_the_plan_says_so(world: RolloutWorld) -> None:
    """And only a winner: where nobody is shown to be better, stable goes on."""
    gateway = world.serving()
    plan = structs.replace(AB_TEST, promote_winner=True)
    world.promote("1.1.0", by="owner", plan=plan)
    done = world.until(RolloutState.CONCLUDED, gateway)
    assert done.report is not None
    assert done.report.winner == "nobody"
    gateway.failing[world.key("1.0.0")] = 20
    world.turn(gateway)
    world.promote("1.1.0", by="owner", plan=plan)
    world.until(RolloutState.SUCCEEDED, gateway)
    assert world.in_production() == "1.1.0"


@pytest.mark.req("S3")
def test_a_worse_candidate_of_an_a_b_test_is_taken_back(world: RolloutWorld) -> None:
    """The test stays under the alpha of a rollout: callers are not spent on a version that is shown worse."""
    gateway = world.serving()
    gateway.failing[world.key("1.1.0")] = 40
    world.promote("1.1.0", by="owner", plan=AB_TEST)
    world.until(RolloutState.ROLLED_BACK, gateway)
    assert world.get("1.1.0").tombstone is not None


# --------------------------------------------------------------------------------------------------- shadows


@pytest.mark.req("S5")
def test_a_shadow_gets_copies_and_ends_with_what_they_showed(world: RolloutWorld) -> None:
    """No caller meets it; its pairs are counted, stored and recomputed; then it is gone without a mark."""
    gateway = world.serving()
    world.promote("1.1.0", by="owner", plan=SHADOW)
    world.until(RolloutState.SHADOWING, gateway)
    world.turn(gateway)
    route = gateway.route()
    assert (route.shadow, route.shadow_ppm, route.candidate_ppm) == (world.key("1.1.0"), 500_000, 0)
    done = world.until(RolloutState.CONCLUDED, gateway)
    assert done.pairs is not None
    assert done.pairs.pairs >= 2_000
    assert world.read("owner", world.rollouts.explain, done.id).equal
    world.turn(gateway)
    assert (gateway.route().shadow, gateway.serves()) == (None, world.key("1.0.0"))
    assert world.get("1.1.0").tombstone is None
    assert world.in_production() == "1.0.0"


@pytest.mark.req("S5", "S7")
def test_a_shadow_that_fails_where_stable_does_not_has_failed(world: RolloutWorld) -> None:
    """Shown by pairs, before a single caller was answered by it."""
    gateway = world.serving()
    gateway.failing[world.key("1.1.0")] = 10
    world.promote("1.1.0", by="owner", plan=SHADOW)
    done = world.until(RolloutState.FAILED, gateway)
    assert "fails where stable does not" in (done.outcome or "")
    assert done.judgement is not None
    assert done.judgement.blamed == "errors"


@pytest.mark.req("S3", "S5")
def test_a_canary_may_begin_with_copies_and_goes_on_with_the_same_processes(world: RolloutWorld) -> None:
    """What was compared stays loaded from the first copy to the last step, and takes the stage."""
    gateway = world.serving()
    world.promote("1.1.0", by="owner", plan=structs.replace(PLAN, shadow_ppm=500_000, shadow_s=STEP_S))
    world.until(RolloutState.SHADOWING, gateway)
    seen: list[tuple[int, int]] = []
    while not world.latest().state.finished:
        world.turn(gateway, seconds=STEP_S / 4)
        assert world.key("1.1.0") in gateway.ready
        split = (gateway.route().shadow_ppm, gateway.route().candidate_ppm)
        seen += [split] if split not in seen else []
    assert seen[:4] == [(500_000, 0), (0, 100_000), (0, 500_000), (0, WHOLE_PPM)]
    assert world.in_production() == "1.1.0"
    assert world.read("owner", world.rollouts.explain, NAME).equal


# ------------------------------------------------------------------------------------------------ equal bytes


@pytest.mark.hostile("impossible-moves")
@pytest.mark.req("S3")
def test_a_version_with_stable_s_bytes_takes_over_at_once_and_says_why(world: RolloutWorld) -> None:
    """There is nothing to prove between a model and itself: it moves as soon as it is loaded, whatever the
    plan, and to test it against stable, or shadow it, is refused."""
    gateway = world.serving()
    same = world.version("1.0.1", content=world.get("1.0.0").digest)
    for plan in (AB_TEST, SHADOW):
        with pytest.raises(errors.Conflict, match=r"churn:1.0.1 has the very bytes of churn:1.0.0"):
            world.promote("1.0.1", by="owner", plan=plan)
    promoted = world.promote("1.0.1", by="owner")
    note = "churn:1.0.1 has the very bytes of churn:1.0.0"
    assert (promoted.plan, promoted.note) == (AT_ONCE, note)
    for _ in range(3):
        world.turn(gateway, seconds=0.5)
    assert (world.state(), world.in_production()) == (RolloutState.SUCCEEDED, "1.0.1")
    assert world.latest().note == note
    assert world.status().stable == same.semver
    (*_, event) = world.events(EventKind.ROLLOUT_STARTED)
    assert (event.body["plan_from"], event.body["note"]) == ("equal bytes", note)


# ------------------------------------------------------------------------------------------------ superseding


@pytest.mark.req("S3", "S8")
def test_a_rollout_takes_another_s_place_only_when_it_is_said(world: RolloutWorld) -> None:
    """Two rollouts on one endpoint are refused; told so, the newer ends the older, whose candidate loses its
    traffic at once, also on a gateway that has not loaded the newer one yet, and bears no tombstone."""
    gateway = world.serving()
    world.promote("1.1.0", by="owner")
    older = world.until(RolloutState.STEPPING, gateway)
    world.turn(gateway)
    assert gateway.route().candidate_ppm == 100_000
    with pytest.raises(errors.RolloutActive, match="--supersede"):
        world.promote("1.2.0", by="owner")
    with pytest.raises(errors.Conflict):
        world.promote("1.1.0", by="owner", supersede=True)

    newer = world.promote("1.2.0", by="owner", supersede=True)
    ended = world.read("owner", world.rollouts.get_rollout, older.id)
    assert (ended.state, ended.weight_ppm) == (RolloutState.SUPERSEDED, 0)
    assert newer.rollout in {event.body.get("rollout") for event in world.events(EventKind.ROLLOUT_STARTED)}
    (event,) = world.events(EventKind.ROLLOUT_SUPERSEDED)
    assert "1.2.0" in event.reason
    assert world.get("1.1.0").tombstone is None
    assert world.latest().stable == ended.stable

    gateway.poll()
    gateway.ready.discard(world.key("1.2.0"))
    gateway.broken[world.key("1.2.0")] = "still loading"
    gateway.obey()
    assert gateway.route().candidate_ppm == 0
    assert gateway.serves() == world.key("1.0.0")
    gateway.broken.clear()
    world.until(RolloutState.SUCCEEDED, gateway)
    assert world.in_production() == "1.2.0"


@pytest.mark.req("S8")
def test_a_rollout_on_its_way_back_is_not_superseded(world: RolloutWorld) -> None:
    """What was found against a candidate has to be confirmed first."""
    gateway = world.serving()
    world.promote("1.1.0", by="owner")
    world.until(RolloutState.STEPPING, gateway)
    world.turn(gateway)
    world.do("owner", world.rollouts.abort, NAME, "errors")
    assert world.state() is RolloutState.ROLLING_BACK
    with pytest.raises(errors.RolloutActive):
        world.promote("1.2.0", by="owner", supersede=True)
