"""Prediction shift: bands that are learned, evidence that is fair, and a rollout that goes back by it."""

import functools
import itertools
import math
import random
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from modelkeep.core import codec, errors
from modelkeep.core.judgement import Missing
from modelkeep.core.observation import BandCounts, SideCounts, Tick, check_report
from modelkeep.core.plan import COMPARED, JUDGED_AND_COMPARED, check_plan, read_plan
from modelkeep.core.quality import Kind, Quality, Value
from modelkeep.core.rollout import RolloutState, Strategy, advance, replay
from modelkeep.core.routing import WHOLE_PPM
from modelkeep.core.sequential import EProcessSpec
from modelkeep.core.shift import (
    BANDS,
    Bands,
    BandsTick,
    Shift,
    ShiftProcess,
    learned,
    shift_spec,
    update_bands,
)
from tests.core.test_rollout import MIN_S, NOW, PLAN, good, report, seen, stepping, tick

JUDGED = structs.replace(PLAN, prediction_shift=Shift(), metrics=COMPARED)
NUMBERS = st.floats(-1e9, 1e9).map(lambda number: Value(Kind.NUMBER, number))


def fed(spec: EProcessSpec, *ticks: BandsTick) -> ShiftProcess:
    """The state after these ticks."""
    return functools.reduce(lambda state, one: update_bands(state, spec, one), ticks, ShiftProcess())


def compared(weight: int, candidate: tuple[int, ...], stable: tuple[int, ...]) -> Tick:
    """Predictions alone."""
    counts = BandCounts(candidate=candidate, stable=stable)
    return structs.replace(tick(weight, SideCounts(), SideCounts()), outputs=counts)


@pytest.mark.req("S7")
@given(values=st.lists(NUMBERS, min_size=1, max_size=120), other=NUMBERS)
def test_every_prediction_has_a_band(values: list[Value], other: Value) -> None:
    """Whatever was seen first and comes later; of many numbers larger ones are never in an earlier band."""
    bands = learned(values)
    places = [bands.place(value) for value in (*values, other, Value(Kind.TEXT, 1.0), Value(Kind.TRUTH, 1.0))]
    assert all(0 <= place < BANDS for place in places)
    if bands.edges:
        by_size = sorted(values, key=lambda value: value.number)
        assert [bands.place(v) for v in by_size] == sorted(bands.place(v) for v in by_size)


@pytest.mark.req("S7")
def test_bands_are_tenths_of_numbers_and_classes_of_all_else() -> None:
    """A hundred different numbers make ten bands of ten; few values, or texts, are classes with the rare ones
    together."""
    bands = learned([Value(Kind.NUMBER, float(number)) for number in range(100)])
    assert [bands.place(Value(Kind.NUMBER, float(n))) for n in range(100)] == [n // 10 for n in range(100)]
    few = learned([Value(Kind.NUMBER, float(number % 3)) for number in range(100)])
    assert few.classes == tuple(Value(Kind.NUMBER, number) for number in (0.0, 1.0, 2.0))
    texts = learned([Value(Kind.TEXT, float(number % 40)) for number in range(100)])
    assert len(texts.classes) == BANDS - 1
    assert texts.place(Value(Kind.TEXT, 39.0)) == BANDS - 1
    assert learned([]) == Bands()


@pytest.mark.req("S7")
@pytest.mark.parametrize(("tolerance", "ratio"), [(1.0, 1.0), (2.0, 2.0), (2.0, 1.3), (2.0, 0.5)])
def test_the_evidence_is_fair_within_the_tolerance(tolerance: float, ratio: float) -> None:
    """Over every way in which five callers of two bands can be split in two ticks, the expectation of V is at
    most 1, and 1 where the two sides are the same."""
    spec, weight = shift_spec(tolerance), 300_000
    odds = ratio * weight / (WHOLE_PPM - weight)
    p = (odds / (1 + odds), weight / WHOLE_PPM)  # the second band is alike
    expected = 0.0
    for sides in itertools.product((0, 1), repeat=5):
        chance, state = 1.0, ShiftProcess()
        for band, side in zip((0, 0, 1, 0, 1), sides, strict=True):
            chance *= p[band] if side else 1 - p[band]
        for callers in (range(3), range(3, 5)):
            x, y = [0] * BANDS, [0] * BANDS
            for caller in callers:
                (x if sides[caller] else y)[(0, 0, 1, 0, 1)[caller]] += 1
            state = update_bands(state, spec, BandsTick(x=tuple(x), y=tuple(y), weight_ppm=weight))
        expected += chance * math.exp(state.log_v)
    assert expected <= 1 + 1e-12
    if tolerance == 1.0:
        assert expected == pytest.approx(1.0, abs=1e-12)


@pytest.mark.req("S7")
def test_a_shift_is_seen_and_sampling_is_not() -> None:
    """Of equal versions hardly any is found in 100 rollouts at an alpha of a tenth; a candidate that says one
    thing for everybody is found with a hundred callers."""
    spec, rng, found = shift_spec(1.0), random.Random(3), 0
    for _ in range(100):
        ticks = []
        for _ in range(20):
            x, y = [0] * BANDS, [0] * BANDS
            for _ in range(10):
                (x if rng.random() < 0.3 else y)[min(BANDS - 1, int(rng.expovariate(0.5)))] += 1
            ticks.append(BandsTick(x=tuple(x), y=tuple(y), weight_ppm=300_000))
        found += fed(spec, *ticks).ever_reached(0.1)
    assert found <= 10
    constant = BandsTick(x=(50,), y=(5,) * BANDS, weight_ppm=500_000)
    assert fed(shift_spec(2.0), constant, constant).ever_reached(0.001)


@pytest.mark.req("S7")
def test_ticks_that_say_nothing_leave_the_evidence_alone() -> None:
    """No callers, or a weight that leaves no choice: not a bit changes; too many bands are refused."""
    spec = shift_spec(2.0)
    state = fed(spec, BandsTick(x=(9,), y=(1, 20), weight_ppm=500_000))
    for told in (BandsTick(x=(), y=(), weight_ppm=5), BandsTick(x=(3,), y=(3,), weight_ppm=WHOLE_PPM)):
        same = update_bands(state, spec, told)
        assert structs.replace(same, ticks=state.ticks) == state
    with pytest.raises(errors.InvalidInput):
        update_bands(state, spec, BandsTick(x=(1,) * (BANDS + 1), y=(), weight_ppm=5))


@pytest.mark.req("S7")
@pytest.mark.parametrize(
    "changes",
    [
        {"metrics": PLAN.metrics},
        {"prediction_shift": None},
        {"strategy": Strategy.ROLLING},
        {"prediction_shift": Shift(tolerance=0.9)},
        {"prediction_shift": Shift(tolerance=float("inf"))},
        {"prediction_shift": Shift(callers=0)},
        {"prediction_shift": Shift(output="")},
    ],
)
def test_a_plan_that_compares_nothing_is_refused(changes: dict[str, Any]) -> None:
    """A shift without a share of alpha, a share without a shift, and tolerances that say nothing."""
    assert check_plan(JUDGED) is JUDGED
    with pytest.raises(errors.InvalidPlan):
        check_plan(structs.replace(JUDGED, **changes))


@pytest.mark.req("S7")
def test_a_plan_shares_alpha_with_what_it_has_judged() -> None:
    """Alone, and beside labels."""
    assert read_plan("prediction_shift: {}").metrics == COMPARED
    both = read_plan("prediction_shift: {tolerance: 3}\nquality: {}")
    assert (both.metrics, both.quality) == (JUDGED_AND_COMPARED, Quality())


@pytest.mark.req("S7")
def test_predictions_hold_a_candidate_up_or_take_it_back() -> None:
    """None compared: hold, and say so. Few: hold. Enough and alike: on. Others: back with the blame, and the
    evidence is recomputed to the bit, through JSON too."""
    waits = stepping(plan=JUDGED)
    alike = compared(500_000, (8,) * BANDS, (8,) * BANDS)
    other = compared(500_000, (0, 90), (9,) * BANDS)
    told = {
        name: advance(
            waits, structs.replace(seen(waits), ticks=(good(500_000), *ticks)), NOW + timedelta(seconds=MIN_S)
        ).rollout
        for name, ticks in (
            ("none", ()),
            ("few", (compared(500_000, (5,), (5,)),)),
            ("alike", (alike,)),
            ("other", (other, other)),
        )
    }
    assert told["none"].held == "no predictions compared yet: holding"
    assert told["few"].held is not None
    assert told["few"].held.startswith("not enough predictions compared yet, 50 are wanted")
    assert told["few"].judgement is not None
    assert told["few"].judgement.missing is Missing.PREDICTIONS
    assert told["alike"].step == 1
    back = told["other"]
    assert back.state is RolloutState.ROLLING_BACK
    assert back.judgement is not None
    assert back.judgement.blamed == "prediction shift"
    assert "100.0% of the candidate's 180 callers and 10.0% of stable's 180" in back.judgement.why
    stored = codec.decode(codec.encode((good(500_000), other, other)), tuple[Tick, ...])
    assert replay(back, stored) == back.evidence


@pytest.mark.req("S7")
@pytest.mark.parametrize("counts", [(-1,), (1,) * (BANDS + 1)])
def test_a_report_of_bands_that_cannot_be_is_refused(counts: tuple[int, ...]) -> None:
    """Negative counts and further bands are no evidence."""
    odd = compared(500_000, counts, ())
    with pytest.raises(errors.Invalid):
        check_report(structs.replace(report(), ticks=(odd,)))
