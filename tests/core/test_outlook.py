"""What a plan is said to do with given traffic, against what real rollouts of it do."""

import random
from datetime import UTC, datetime, timedelta

import pytest
from msgspec import structs

from modelkeep.core import errors
from modelkeep.core.forecast import REGRESSIONS, Flow
from modelkeep.core.observation import SideCounts, Tick
from modelkeep.core.outlook import End, at_most, outlook, simulate
from modelkeep.core.plan import CANARY, OnInconclusive, Plan, Step, Strategy
from modelkeep.core.rollout import Observed, Rollout, RolloutState, advance
from modelkeep.core.routing import WHOLE_PPM, Epoch
from modelkeep.core.sequential import scaled_rate
from modelkeep.core.values import Actor, Digest, ModelName

T0 = datetime(2026, 1, 25, tzinfo=UTC)
PLAN = Plan(
    steps=(
        Step(weight_ppm=300_000, min_s=20, max_s=40),
        Step(weight_ppm=600_000, min_s=10, max_s=30),
        Step(weight_ppm=WHOLE_PPM, min_s=5, max_s=20),
    ),
    alpha=0.05,
    beta=0.2,
    on_inconclusive=OnInconclusive.ROLLBACK,
)
FLOW = Flow(callers_per_s=20, failing=0.05, failing_first=0.04, slow=0.1)
REAL = 150
"""Real rollouts of a kind: their share is known to 1.96 sqrt(p (1 - p) / 150)."""


def fresh(plan: Plan) -> Rollout:
    """A rollout whose candidate has just been given its first share."""
    return Rollout(
        id="rol_1",
        endpoint="churn",
        model=ModelName("default", "churn"),
        stage="production",
        stable=1,
        stable_digest=None,
        stable_semver="1.0.0",
        candidate=2,
        candidate_digest=Digest("sha256:" + "0" * 64),
        candidate_semver="1.1.0",
        plan=plan,
        salt="salt",
        state=RolloutState.STEPPING,
        weight_ppm=plan.steps[0].weight_ppm,
        epoch=Epoch(1, 1),
        started_at=T0,
        started_by=Actor(name="ann"),
        reason="better",
        step_since=T0,
    )


def side(rng: random.Random, callers: int, failing: float, flow: Flow) -> SideCounts:
    """Callers who come for the first time, each of whom fails or is slow or not."""
    failed = sum(rng.random() < failing for _ in range(callers))
    first = sum(rng.random() < flow.failing_first / flow.failing for _ in range(failed))
    slow = sum(rng.random() < flow.slow for _ in range(callers))
    return SideCounts(
        requests=callers,
        callers_arrived=callers,
        new_callers=callers,
        errors=failed,
        new_callers_failed=first,
        callers_first_error=failed,
        callers_first_slow=slow,
    )


def live(plan: Plan, flow: Flow, odds: float, rng: random.Random) -> tuple[RolloutState, float, int]:
    """A rollout moved by the state machine itself, a tick a second, each caller drawn alone: where it got to,
    when, and how many callers its candidate answered."""
    rollout, second = fresh(plan), 0
    horizon_s = sum(step.max_s for step in plan.steps)
    while rollout.state is RolloutState.STEPPING and second < horizon_s:
        second += 1
        now = T0 + timedelta(seconds=second)
        coming = sum(rng.random() < flow.callers_per_s / 1_000 for _ in range(1_000))
        chosen = sum(rng.random() < rollout.weight_ppm / WHOLE_PPM for _ in range(coming))
        tick = Tick(
            endpoint="churn",
            rollout="rol_1",
            epoch=rollout.epoch,
            number=second,
            started_at=now - timedelta(seconds=1),
            ended_at=now,
            candidate_ppm=rollout.weight_ppm,
            stable=side(rng, coming - chosen, flow.failing, flow),
            candidate=side(rng, chosen, scaled_rate(flow.failing, odds), flow),
        )
        rollout = advance(rollout, Observed(applied=rollout.epoch, ticks=(tick,)), now).rollout
        if rollout.state is RolloutState.STEPPING and rollout.step_since is None:
            rollout = structs.replace(rollout, step_since=now)  # the gateways obey at once
    return rollout.state, float(second), rollout.candidate_counts.callers_arrived


@pytest.mark.req("S7")
@pytest.mark.parametrize("odds", [1.0, 3.0])
def test_the_forecast_is_what_real_rollouts_do(odds: float) -> None:
    """The shares of rollouts taken back and done, when half were taken back, and how many callers met the
    candidate, agree with rollouts of the real state machine within the error of both samples."""
    rng = random.Random(20_261_121)
    real = [live(PLAN, FLOW, odds, rng) for _ in range(REAL)]
    told = simulate(PLAN, FLOW, odds=odds, seed=3, runs=1_000)
    error = 2.6 * 0.5 * (1 / REAL + 1 / 1_000) ** 0.5  # 99 of 100 samples of either lie within
    for state, ends in (
        (RolloutState.SUCCEEDED, [End.DONE]),
        (RolloutState.ROLLING_BACK, [End.TAKEN_BACK, End.INCONCLUSIVE]),
    ):
        share = sum(one[0] is state for one in real) / REAL
        expected = float(sum((told.ends == end).mean() for end in ends))
        assert share == pytest.approx(expected, abs=error), (state, share, expected)
    ended = sorted(one[1] for one in real)[REAL // 2]
    assert ended == pytest.approx(sorted(told.ended_s)[500], rel=0.15, abs=2)
    met = sorted(one[2] for one in real)[REAL // 2]
    assert met == pytest.approx(sorted(told.callers)[500], rel=0.15)


@pytest.mark.req("S7")
def test_a_forecast_repeats_and_another_seed_agrees_within_the_stated_error() -> None:
    """The same seed gives the same bits; another one differs, by less than twice what the forecast says."""
    first = outlook(PLAN, FLOW, seed=1, runs=200)
    assert outlook(PLAN, FLOW, seed=1, runs=200) == first
    other = outlook(PLAN, FLOW, seed=2, runs=200)
    assert other != first
    assert first.error == pytest.approx(0.0693, abs=1e-4)
    for one, two in zip(first.regressions, other.regressions, strict=True):
        assert abs(one.seen - two.seen) <= 2 * first.error


@pytest.mark.req("S7")
def test_worse_candidates_are_seen_sooner_and_meet_fewer_callers() -> None:
    """From 1.5 to 10 times the odds: seen more surely and earlier, and by the formula in the same order; a
    healthy one gets through, and is taken back about as rarely as promised."""
    found = outlook(CANARY, Flow(callers_per_s=20, failing=0.005, failing_first=0.005, slow=0.01), seed=1)
    assert tuple(one.odds for one in found.regressions) == REGRESSIONS
    seen = [one.seen for one in found.regressions]
    assert seen == sorted(seen)
    assert seen[-1] == 1.0
    formula = [one.formula_s or 0 for one in found.regressions]
    assert formula == sorted(formula, reverse=True)
    four, ten = found.regressions[2:]
    assert (ten.tenth_s or 0) <= (ten.half_s or 0) <= (ten.nine_tenths_s or 0) < (four.half_s or 0)
    assert ten.callers < four.callers
    assert ten.half_s == pytest.approx(ten.formula_s, rel=0.5)
    healthy = found.healthy
    assert healthy.taken_back_at_most >= healthy.taken_back
    assert healthy.taken_back <= healthy.alpha + 0.01
    assert CANARY.steps[0].min_s + CANARY.steps[1].min_s <= (healthy.full_half_s or 0)
    assert (healthy.full_half_s or 0) < (healthy.done_half_s or 0)


@pytest.mark.req("S7")
def test_little_traffic_and_plans_without_steps_are_told_as_they_are() -> None:
    """With a caller a minute nothing is shown and nothing seen; an immediate plan compares with nobody, and
    has all of the traffic at once."""
    flow = structs.replace(FLOW, callers_per_s=1 / 60)
    quiet = outlook(structs.replace(CANARY, steps=CANARY.steps), flow, seed=1, runs=20)
    assert quiet.healthy.waiting == 1.0
    assert (quiet.healthy.full_half_s, quiet.healthy.done_half_s) == (None, None)
    assert [one.half_s for one in quiet.regressions] == [None] * 4
    once = structs.replace(
        CANARY, strategy=Strategy.IMMEDIATE, steps=(Step(weight_ppm=WHOLE_PPM, min_s=30, max_s=60),)
    )
    at_once = outlook(once, FLOW, seed=1, runs=20)
    assert at_once.healthy.full_half_s == 0.0
    assert at_once.healthy.done_half_s == pytest.approx(30, abs=1)
    assert [one.formula_s for one in at_once.regressions] == [None] * 4


@pytest.mark.parametrize(
    ("change", "more"),
    [
        ({"callers_per_s": 0.0}, {}),
        ({"callers_per_s": float("nan")}, {}),
        ({"failing": 0.0, "failing_first": 0.0}, {}),
        ({"failing": 0.01, "failing_first": 0.02}, {}),
        ({"slow": 1.0}, {}),
        ({"requests_per_caller": 0.5}, {}),
        ({}, {"runs": 0}),
        ({}, {"runs": 1_000_000}),
        ({}, {"seed": -1}),
        ({}, {"odds": 0.0}),
    ],
)
def test_figures_that_cannot_be_are_refused(change: dict[str, float], more: dict[str, int]) -> None:
    """Each with a sentence, before anything is simulated."""
    given = {"odds": 1.0, "seed": 1, "runs": 10} | more
    with pytest.raises(errors.InvalidPlan):
        simulate(PLAN, structs.replace(FLOW, **change), **given)


@pytest.mark.parametrize(
    ("k", "n", "bound"), [(0, 400, 0.00746), (1, 400, 0.0118), (10, 100, 0.1637), (5, 5, 1.0)]
)
def test_the_upper_bound_of_a_share(k: int, n: int, bound: float) -> None:
    """Clopper and Pearson's, as the tables have it."""
    assert at_most(k, n) == pytest.approx(bound, rel=0.01)
