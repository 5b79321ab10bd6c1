"""What an A/B test is said to come to: each version beside stable alone, under its part of alpha."""

import pytest
from msgspec import structs

from modelkeep.core import contest
from modelkeep.core.contest_outlook import contest_outlook
from modelkeep.core.forecast import GAINS, LOSSES, ContestOutlook, Flow
from modelkeep.core.observation import LabelCounts, SideCounts
from modelkeep.core.outlook import between
from modelkeep.core.plan import CANARY, Goal, Plan, Step, Strategy, Variant
from modelkeep.core.routing import WHOLE_PPM
from tests.core.test_rollout import tick

pytestmark = pytest.mark.req("S7")

LASTS_S = 600.0
TWO = Plan(
    strategy=Strategy.AB_TEST, steps=(Step(weight_ppm=250_000, min_s=LASTS_S, max_s=LASTS_S),), alpha=0.05
)
SEVERAL = structs.replace(
    TWO,
    versions=(Variant(version="2.1.0", weight_ppm=50_000), Variant(version="#7", weight_ppm=250_000)),
)
FLOW = Flow(callers_per_s=30, failing=0.02, failing_first=0.02, slow=0.05)


def foretold(plan: Plan, flow: Flow = FLOW) -> ContestOutlook:
    """The outlook of a test of churn:2.0.0."""
    told = contest_outlook(plan, flow, candidate="2.0.0", seed=1, runs=60)
    assert told is not None
    return told


def test_each_version_is_led_beside_stable_alone() -> None:
    """With the callers and the share of those two, as the test counts them, and its part of alpha; a test of
    two, and any other plan, is what it was."""
    for place, share_ppm in enumerate((250_000, 50_000, 250_000)):
        plan, flow = between(SEVERAL, FLOW, place)
        (step,) = plan.steps
        whole = tick(
            250_000, SideCounts(), SideCounts(), others=(SideCounts(),) * 2, others_ppm=(50_000, 250_000)
        )
        rest_ppm = WHOLE_PPM - 550_000
        assert (
            step.weight_ppm
            == contest._between(whole, (SideCounts(), LabelCounts()), share_ppm, rest_ppm).candidate_ppm
        )
        assert flow.callers_per_s * step.weight_ppm == pytest.approx(FLOW.callers_per_s * share_ppm, rel=1e-5)
        assert (plan.alpha, plan.versions) == (pytest.approx(0.05 / 3), ())
    assert between(TWO, FLOW, 0) == (TWO, FLOW)
    assert contest_outlook(CANARY, FLOW, candidate=None, seed=1, runs=1) is None


def test_of_every_version_it_is_said_how_soon_it_is_out_and_how_surely_it_is_named() -> None:
    """Versions of equal shares have equal figures, a smaller share is slower; better ones are named, equal
    ones hardly ever."""
    told = foretold(SEVERAL)
    assert [arm.version for arm in told.arms] == ["2.0.0", "2.1.0", "#7"]
    assert (told.comparisons, told.runs, told.goal) == (12, 50, Goal.ERRORS)
    first, small, last = told.arms
    assert structs.replace(last, version="2.0.0") == first
    assert [one.odds for one in first.losses] == list(LOSSES)
    assert [one.odds for one in first.gains] == list(GAINS)
    for arm in told.arms:
        assert arm.taken_out <= 0.05
        assert arm.named <= 0.05
        assert arm.callers_per_s == pytest.approx(FLOW.callers_per_s * arm.weight_ppm / WHOLE_PPM, rel=1e-5)
        shares = [one.share for one in arm.gains]
        assert shares == sorted(shares)
    assert first.gains[-1].share == 1.0
    assert small.gains[1].share < first.gains[1].share
    (twice, four), (_, small_four) = first.losses, small.losses
    assert twice.half_s is not None
    assert four.half_s is not None
    assert small_four.half_s is not None
    assert four.half_s < twice.half_s
    assert four.half_s < small_four.half_s


def test_a_test_is_judged_by_what_it_is_about() -> None:
    """A test of latency names who is answered slowly less often, and takes out who fails more often; with
    fewer comparisons the same version is named sooner."""
    slow = foretold(structs.replace(TWO, goal=Goal.LATENCY))
    (arm,) = slow.arms
    assert (slow.comparisons, slow.goal, arm.version) == (2, Goal.LATENCY, "2.0.0")
    assert arm.gains[-1].share > 0.9
    assert arm.losses[-1].share == 1.0
    few = structs.replace(FLOW, callers_per_s=7.5)
    alone, beside = foretold(TWO, few).arms[0], foretold(SEVERAL, few).arms[0]
    assert sum(one.share for one in alone.gains) > sum(one.share for one in beside.gains)
    assert foretold(TWO, few).arms[0] == alone, "the same seed tells the same"
