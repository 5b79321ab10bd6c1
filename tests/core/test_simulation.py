"""A former rollout led through another plan, by the machine that moves traffic, tick by tick."""

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from modelkeep.core import errors
from modelkeep.core.evidence import evidence_of
from modelkeep.core.judgement import judge
from modelkeep.core.observation import SideCounts, Tick
from modelkeep.core.plan import CANARY, OnInconclusive, Plan, Step
from modelkeep.core.rollout import Change, Rollout, RolloutState
from modelkeep.core.routing import WHOLE_PPM, Epoch
from modelkeep.core.simulation import MOMENTS_MAX, simulate
from tests.core.test_verdicts import rollout

pytestmark = pytest.mark.req("S7")

T0 = datetime(2026, 1, 25, tzinfo=UTC)
PLAN = Plan(
    steps=tuple(Step(weight_ppm=w, min_s=20.0, max_s=100.0) for w in (100_000, 500_000, WHOLE_PPM)),
    alpha=0.05,
)
TICK_S = 10


def side(callers: int, failed: int) -> SideCounts:
    """Callers who came once each."""
    return SideCounts(
        requests=callers,
        errors=failed,
        callers_arrived=callers,
        new_callers=callers,
        new_callers_failed=failed,
        callers_first_error=failed,
    )


def tick(place: int, candidate: SideCounts, stable: SideCounts, ppm: int = 100_000, **more: Any) -> Tick:
    """Ten seconds of counts."""
    begun = T0 + timedelta(seconds=TICK_S * place)
    fields: dict[str, Any] = {
        "endpoint": "churn",
        "rollout": "rol_1",
        "epoch": Epoch(1, 1),
        "number": place,
        "started_at": begun,
        "ended_at": begun + timedelta(seconds=TICK_S),
        "candidate_ppm": ppm,
        "candidate": candidate,
        "stable": stable,
    }
    return Tick(**(fields | more))


def former(**more: Any) -> Rollout:
    """The rollout that was."""
    return rollout(state=RolloutState.SUCCEEDED, outcome="fine", finished_at=T0, weight_ppm=WHOLE_PPM, **more)


def test_a_bad_candidate_would_have_been_taken_back_early() -> None:
    """The plan that let it through is told as what was; the other would have ended it within a minute."""
    ticks = [tick(n, side(200, 20), side(1_800, 18)) for n in range(30)]
    told = simulate(former(), PLAN, ticks)
    assert told.ended is RolloutState.ROLLED_BACK
    assert told.after_s == TICK_S
    assert told.ticks == 1, "what came later is not looked at"
    assert (told.callers, told.callers_failed) == (200, 20)
    assert [one.change for one in told.moments] == [Change.STEPPED, Change.ROLLING_BACK]
    assert "more callers fail" in told.why
    assert told.p_value <= PLAN.alpha
    assert (told.was, told.was_outcome) == (RolloutState.SUCCEEDED, "fine")


def test_a_good_candidate_goes_through_the_steps() -> None:
    """Each step when its least time is over and the proof is there; shares that the plan would not have given
    are counted."""
    ticks = [tick(n, side(100, 1), side(900, 9)) for n in range(60)]
    told = simulate(former(), PLAN, ticks)
    assert told.ended is RolloutState.SUCCEEDED
    stepped = [one for one in told.moments if one.change is Change.STEPPED]
    assert [one.weight_ppm for one in stepped] == [100_000, 500_000, WHOLE_PPM]
    assert stepped[0].after_s == 0
    assert all(b.after_s - a.after_s >= 20 for a, b in pairwise(stepped))
    own = sum(one.weight_ppm == 100_000 for one in stepped)
    assert own == 1
    assert told.off_plan == told.ticks - round(stepped[1].after_s / TICK_S)


def test_counts_that_end_before_the_plan_leave_it_open() -> None:
    """It is still under way, with the reason why it would not have gone on."""
    told = simulate(former(), PLAN, [tick(0, side(3, 0), side(27, 0))])
    assert (told.ended, told.after_s, told.span_s) == (None, None, TICK_S)
    lone = simulate(
        former(),
        structs.replace(PLAN, automatic=False),
        [tick(n, side(100, 1), side(900, 9)) for n in range(60)],
    )
    assert lone.ended is None
    assert "rollout advance" in lone.why


def test_an_inconclusive_step_ends_as_the_plan_says() -> None:
    """With 'rollback', the longest time is the end."""
    strict = structs.replace(PLAN, on_inconclusive=OnInconclusive.ROLLBACK)
    told = simulate(former(), strict, [tick(n, side(1, 0), side(9, 0)) for n in range(60)])
    assert (told.ended, told.after_s) == (RolloutState.ROLLED_BACK, 100.0)
    assert told.why.startswith("inconclusive")


def test_guards_hold_in_a_simulation_too() -> None:
    """Three crashes are the end, whatever the statistics say."""
    crashed = structs.replace(side(10, 0), crashes=1)
    told = simulate(former(), PLAN, [tick(n, crashed, side(90, 0)) for n in range(9)])
    assert (told.ended, told.after_s) == (RolloutState.ROLLED_BACK, 3 * TICK_S)


@given(
    counts=st.lists(
        st.tuples(st.integers(0, 40), st.integers(0, 5), st.integers(0, 200), st.integers(0, 10)),
        min_size=1,
        max_size=40,
    ),
    ppm=st.sampled_from([100_000, 300_000, WHOLE_PPM]),
)
def test_it_is_judged_by_what_was_counted_up_to_there(
    counts: list[tuple[int, int, int, int]], ppm: int
) -> None:
    """Whatever was counted: the numbers told are those of the ticks gone through, by the plan's own tests;
    the same question has the same answer."""
    ticks = [tick(n, side(c, min(x, c)), side(s, min(y, s)), ppm) for n, (c, x, s, y) in enumerate(counts)]
    told = simulate(former(), PLAN, ticks)
    assert told == simulate(former(), PLAN, iter(ticks))
    used = ticks[: told.ticks]
    candidate = stable = SideCounts()
    for one in used:
        candidate, stable = candidate.plus(one.candidate), stable.plus(one.stable)
    found = judge(PLAN, evidence_of(PLAN, used), candidate, stable)
    assert told.p_value == found.p_value
    assert (told.callers, told.callers_failed) == (candidate.new_callers, candidate.callers_first_error)
    assert (told.ended is None) == (told.after_s is None)
    assert told.ended is not None or told.ticks == len(ticks)
    assert len(told.moments) <= MOMENTS_MAX


def test_nothing_counted_is_nothing_to_say() -> None:
    """Nor is a plan that cannot be carried out."""
    with pytest.raises(errors.Conflict, match="Nothing was counted"):
        simulate(former(), PLAN, [])
    with pytest.raises(errors.InvalidPlan):
        simulate(former(), structs.replace(CANARY, alpha=0.0), [])
