"""A forecast in the service: whose traffic it reckons with, what it says of where figures come from, and when
it is refused."""

from datetime import timedelta

import pytest
from msgspec import structs

from modelkeep.core import errors
from modelkeep.core.answers import RolloutForecast
from modelkeep.core.plan import JUDGED_LATER, Plan, Step, Strategy, Variant
from modelkeep.core.quality import Quality
from modelkeep.core.rollout import RolloutState
from modelkeep.core.routing import WHOLE_PPM
from modelkeep.core.values import parse_ref
from modelkeep.service.forecasts import Asked
from modelkeep.store.database import Database
from tests.service.rollout_world import PLAN, RolloutWorld

pytestmark = pytest.mark.req("S7")
GIVEN = Asked(traffic_per_s=50.0, error_rate=0.01, runs=20)


@pytest.fixture
def world(sqlite_database: Database) -> RolloutWorld:
    """Three versions of churn, nothing served."""
    made = RolloutWorld(sqlite_database)
    made.versions("1.0.0", "1.1.0", "1.2.0")
    return made


def foretold(world: RolloutWorld, semver: str, asked: Asked, to: str = "production") -> RolloutForecast:
    """What the owner is told."""
    found = world.read("owner", world.rollouts.forecast, parse_ref(f"churn:{semver}"), to, asked)
    assert isinstance(found, RolloutForecast)
    return found


def test_what_former_rollouts_counted_is_reckoned_with(world: RolloutWorld) -> None:
    """Callers a second over both sides, and what stable's own callers met with; nothing is assumed, and
    nothing is written."""
    gateway = world.serving()
    gateway.failing[world.key("1.0.0")] = 1
    world.promote("1.1.0", by="owner")
    done = world.until(RolloutState.SUCCEEDED, gateway)
    before = len(world.events())
    told = foretold(world, "1.2.0", Asked(runs=20))
    assert len(world.events()) == before
    m = told.measured
    assert m is not None
    assert m.rollouts == (done.id,)
    assert m.callers == done.candidate_counts.new_callers + done.stable_counts.new_callers
    assert (m.stable_callers, m.stable_failed) == (
        done.stable_counts.new_callers,
        done.stable_counts.callers_first_error,
    )
    assert told.flow.callers_per_s == pytest.approx(m.callers / m.span_s)
    assert told.flow.failing == pytest.approx(0.01, rel=0.05)
    assert (told.given, told.assumed) == ((), ())
    assert (told.version, told.stable, told.stage, told.plan) == ("churn:1.2.0", "1.1.0", "production", PLAN)
    assert foretold(world, "1.2.0", Asked(runs=20)) == told, "the same seed, the same answer"
    assert foretold(world, "1.2.0", Asked(runs=20, seed=2)).outlook != told.outlook
    gone = world.do("owner", world.promotions.rollback, world.get("1.0.0").model, "errors")
    assert gone.version.semver == "1.0.0"


def test_what_was_never_counted_is_said_or_assumed(world: RolloutWorld) -> None:
    """Before the first rollout somebody has to say how much traffic there is; what nobody knows is named."""
    world.serving()
    with pytest.raises(errors.Invalid, match="say how much there is with '--traffic 50/s'"):
        foretold(world, "1.1.0", Asked())
    told = foretold(world, "1.1.0", GIVEN)
    assert told.measured is None
    assert (told.given, told.assumed) == (
        ("traffic", "failing callers"),
        ("requests of one caller", "slow callers"),
    )
    assert (told.flow.callers_per_s, told.flow.failing) == (50.0, 0.01)
    each = foretold(world, "1.1.0", structs.replace(GIVEN, requests_per_caller=10.0))
    assert each.flow.callers_per_s == 5.0
    assert each.outlook.regressions[3].requests == 10 * each.outlook.regressions[3].callers


def test_another_plan_may_be_tried(world: RolloutWorld) -> None:
    """A larger first step sees the same regression sooner; a plan that cannot be is refused."""
    world.serving()
    half = structs.replace(
        PLAN,
        steps=(
            Step(weight_ppm=500_000, min_s=300, max_s=600),
            Step(weight_ppm=WHOLE_PPM, min_s=10, max_s=600),
        ),
    )
    tenth = structs.replace(half, steps=(Step(weight_ppm=100_000, min_s=300, max_s=600), *half.steps[1:]))
    quick = foretold(world, "1.1.0", structs.replace(GIVEN, plan=half)).outlook.regressions[3]
    slow = foretold(world, "1.1.0", structs.replace(GIVEN, plan=tenth)).outlook.regressions[3]
    assert (quick.formula_s or 0) < (slow.formula_s or 0)
    assert (quick.half_s or 0) < (slow.half_s or 0)
    judged = structs.replace(half, quality=Quality(), metrics=JUDGED_LATER)
    labels = foretold(world, "1.1.0", structs.replace(GIVEN, plan=judged)).labels
    assert labels is not None
    assert not labels.counted
    broken = structs.replace(PLAN, steps=())
    with pytest.raises(errors.InvalidPlan):
        foretold(world, "1.1.0", structs.replace(GIVEN, plan=broken))


def test_a_plan_is_foretold_before_there_is_a_version(world: RolloutWorld) -> None:
    """The endpoint's own traffic by its own plan or another: the same figures as for any version."""
    world.made()
    with pytest.raises(errors.Conflict, match="serves nothing yet to compare with a candidate"):
        world.read("owner", world.rollouts.forecast_any, "churn", GIVEN)
    world.do("owner", world.rollouts.delete_endpoint, "churn")
    gateway = world.serving()
    world.promote("1.1.0", by="owner")
    world.until(RolloutState.SUCCEEDED, gateway)
    told = world.read("owner", world.rollouts.forecast_any, "churn", Asked(runs=20))
    same = foretold(world, "1.2.0", Asked(runs=20))
    assert (told.version, told.plan) == (None, PLAN)
    assert (told.measured, told.outlook) == (same.measured, same.outlook)
    with pytest.raises(errors.EndpointNotFound):
        world.read("owner", world.rollouts.forecast_any, "nowhere", GIVEN)


def test_of_a_test_every_version_is_foretold(world: RolloutWorld) -> None:
    """Under the names that the plan has, until the day on which it ends; the outlook is the candidate's
    beside stable."""
    world.serving()
    plan = Plan(
        strategy=Strategy.AB_TEST,
        steps=(Step(weight_ppm=300_000),),
        versions=(Variant(version="1.2.0", weight_ppm=200_000),),
        ends_at=world.now + timedelta(hours=2),
    )
    told = foretold(world, "1.1.0", structs.replace(GIVEN, plan=plan))
    assert told.contest is not None
    assert [arm.version for arm in told.contest.arms] == ["1.1.0", "1.2.0"]
    assert (told.contest.comparisons, told.plan) == (6, plan)
    assert told.outlook.horizon_s == pytest.approx(7_200, abs=1)
    assert told.outlook.healthy.alpha == plan.alpha / 2
    any_version = world.read("owner", world.rollouts.forecast_any, "churn", structs.replace(GIVEN, plan=plan))
    assert any_version.contest is not None
    assert any_version.contest.arms[0].version is None
    assert foretold(world, "1.1.0", GIVEN).contest is None


def test_a_forecast_of_nothing_is_refused(world: RolloutWorld) -> None:
    """No endpoint, an endpoint that serves nothing, a version that is served already, another's figures."""
    with pytest.raises(errors.EndpointNotFound, match="a promotion moves no traffic"):
        foretold(world, "1.1.0", GIVEN)
    world.made()
    with pytest.raises(errors.Conflict, match="serves nothing yet"):
        foretold(world, "1.1.0", GIVEN)
    world.do("owner", world.rollouts.delete_endpoint, "churn")
    world.serving()
    with pytest.raises(errors.Conflict, match=r"already serves churn:1\.0\.0"):
        foretold(world, "1.0.0", GIVEN)
    with pytest.raises(errors.InvalidTransition):
        foretold(world, "1.1.0", GIVEN, to="nowhere")
    with pytest.raises(errors.NotFound):
        foretold(world, "9.9.9", GIVEN)
    with pytest.raises(errors.Invalid, match="'traffic_per_s' is a number above 0"):
        foretold(world, "1.1.0", Asked(traffic_per_s=0.0))
