"""Exact checks of the e-processes: every small table and tick is enumerated in fractions, nothing is
simulated here.

The simulations are in bench/rollout_statistics.py; tests/properties/test_sequential_properties.py runs some
of them.
"""

import itertools
import json
import math
import time
from collections.abc import Callable
from fractions import Fraction

import msgspec
import pytest

from modelkeep.core import errors, forecast, mixing, sequential
from modelkeep.core.hypergeometric import Margins
from modelkeep.core.sequential import (
    BinaryEProcess,
    CallerTick,
    Combined,
    Direction,
    EProcess,
    EProcessSpec,
    MeanEProcess,
    RateSpec,
    RequestTick,
    Rule,
    TrialTick,
    Unit,
)

ONES = 1e-12
"""How near to an exact fraction a float must come."""


def binary(
    odds: float, margin: float, unit: Unit, direction: Direction = Direction.FAIL, start_mass: float = 1.0
) -> EProcessSpec:
    """A process that looks for one effect only."""
    return EProcessSpec(
        odds=(odds,), mass=(1.0,), margin=margin, unit=unit, direction=direction, start_mass=start_mass
    )


def hypergeometric(n1: int, n0: int, events: int, odds: Fraction) -> dict[int, Fraction]:
    """Fisher's noncentral law, term by term in exact fractions."""
    support = range(max(0, events - n0), min(events, n1) + 1)
    weights = {u: math.comb(n1, u) * math.comb(n0, events - u) * odds**u for u in support}
    total = sum(weights.values())
    return {u: weight / total for u, weight in weights.items()}


def binomial(n: int, p: Fraction) -> dict[int, Fraction]:
    """The chance of each number of hits."""
    return {k: math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n + 1)}


def expected_e(
    spec: EProcessSpec, law: dict[int, Fraction], ticks: dict[int, CallerTick | RequestTick]
) -> float:
    """The expectation of V after one tick under the law of its outcome."""
    return math.fsum(
        float(chance) * math.exp(sequential.update(BinaryEProcess(), spec, ticks[u]).log_v)
        for u, chance in law.items()
    )


TABLES = [(n1, n0, e) for n1, n0 in itertools.product(range(6), repeat=2) for e in range(1, n1 + n0 + 1)]
PAIRS = [
    (Fraction(2), Fraction(1)),
    (Fraction(100), Fraction(1)),
    (Fraction(3), Fraction(13, 10)),
    (Fraction(3, 10), Fraction(2)),
    (Fraction(12, 10), Fraction(2)),
]


def inside(direction: Direction, margin: Fraction) -> list[Fraction]:
    """Odds ratios within the hypothesis, away from its end."""
    return [margin / 3, margin * Fraction(9, 10)] if direction is Direction.FAIL else [margin * 2, margin * 9]


@pytest.mark.req("S7")
@pytest.mark.parametrize(("odds", "margin"), PAIRS)
def test_request_evidence_is_fair_on_every_small_table(odds: Fraction, margin: Fraction) -> None:
    """For all small tables the evidence is worth exactly 1 at the end of the hypothesis, and at most 1
    inside.
    """
    direction = Direction.FAIL if odds > margin else Direction.PASS
    spec = binary(float(odds), float(margin), Unit.REQUEST, direction)
    for n1, n0, events in TABLES:
        law = hypergeometric(n1, n0, events, margin)
        ticks = {u: RequestTick(x=u, y=events - u, n1=n1, n0=n0) for u in law}
        assert expected_e(spec, law, ticks) == pytest.approx(1, abs=ONES)
        for truth in inside(direction, margin):
            assert expected_e(spec, hypergeometric(n1, n0, events, truth), ticks) <= 1 + ONES


@pytest.mark.req("S7")
@pytest.mark.parametrize(("odds", "margin"), PAIRS)
@pytest.mark.parametrize("weight_ppm", [1, 100_000, 500_000, 999_999])
def test_caller_evidence_is_fair_for_every_small_number_of_callers(
    odds: Fraction, margin: Fraction, weight_ppm: int
) -> None:
    """By callers the evidence is worth exactly 1 at the end of the hypothesis, and at most 1 inside it."""
    direction = Direction.FAIL if odds > margin else Direction.PASS
    spec = binary(float(odds), float(margin), Unit.CALLER, direction)
    w = Fraction(weight_ppm, 1_000_000)
    for events in range(1, 9):
        ticks = {u: CallerTick(x=u, y=events - u, weight_ppm=weight_ppm) for u in range(events + 1)}
        at_end = binomial(events, w * margin / (1 - w + w * margin))
        assert expected_e(spec, at_end, ticks) == pytest.approx(1, abs=ONES)
        for truth in inside(direction, margin):
            law = binomial(events, w * truth / (1 - w + w * truth))
            assert expected_e(spec, law, ticks) <= 1 + ONES


@pytest.mark.req("S7")
def test_share_evidence_is_fair_at_both_ends_of_its_tolerance() -> None:
    """The share of the arms is tested two ways: the evidence is worth at most 1 anywhere within the
    tolerance.
    """
    spec = sequential.mismatch_spec(tolerance=1.25)
    w = Fraction(1, 10)
    for events in range(1, 9):
        ticks = {u: CallerTick(x=u, y=events - u, weight_ppm=100_000) for u in range(events + 1)}
        for truth in (Fraction(4, 5), Fraction(9, 10), Fraction(1), Fraction(6, 5), Fraction(5, 4)):
            law = binomial(events, w * truth / (1 - w + w * truth))
            assert expected_e(spec, law, ticks) <= 1 + ONES
    exact = sequential.mismatch_spec(tolerance=1.0)
    ticks = {u: CallerTick(x=u, y=8 - u, weight_ppm=100_000) for u in range(9)}
    assert expected_e(exact, binomial(8, w), ticks) == pytest.approx(1, abs=ONES)


@pytest.mark.req("S7")
@pytest.mark.parametrize("make", [sequential.rate_fail_spec, sequential.rate_pass_spec])
def test_rate_evidence_is_fair_for_every_small_number_of_trials(make: Callable[..., RateSpec]) -> None:
    """Against an absolute bound the evidence is worth exactly 1 at the bound, and at most 1 within the
    hypothesis.
    """
    bound = Fraction(1, 50)
    spec = make(bound=float(bound))
    better = spec.direction is Direction.FAIL
    for n in range(1, 12):
        values = [
            math.exp(sequential.update_rate(MeanEProcess(), spec, TrialTick(n=n, k=k)).log_v)
            for k in range(n + 1)
        ]
        for truth in (bound, bound / 4 if better else bound * 4, bound / 2 if better else bound * 2):
            law = binomial(n, truth)
            worth = math.fsum(float(law[k]) * values[k] for k in range(n + 1))
            assert worth == pytest.approx(1, abs=ONES) if truth == bound else worth <= 1 + ONES


@pytest.mark.req("S7")
@pytest.mark.parametrize("unit", list(Unit))
def test_a_whole_small_rollout_is_worth_one(unit: Unit) -> None:
    """Over every path of four ticks, with the real grid, the changepoints and a moving weight, V is worth
    exactly 1.
    """
    spec = sequential.fail_spec(unit=unit, margin=1.3)
    r = Fraction(13, 10)
    plan = [(2, 100_000), (0, 100_000), (1, 500_000), (3, 500_000)]
    paths: list[tuple[Fraction, BinaryEProcess]] = [(Fraction(1), BinaryEProcess())]
    for events, weight_ppm in plan:
        w = Fraction(weight_ppm, 1_000_000)
        law = (
            binomial(events, w * r / (1 - w + w * r))
            if unit is Unit.CALLER
            else hypergeometric(3, 9, events, r)
        )
        ticks = {
            u: CallerTick(x=u, y=events - u, weight_ppm=weight_ppm)
            if unit is Unit.CALLER
            else RequestTick(x=u, y=events - u, n1=3, n0=9)
            for u in law
        }
        paths = [
            (chance * law[u], sequential.update(state, spec, ticks[u]))
            for chance, state in paths
            for u in law
        ]
        worth = math.fsum(float(chance) * math.exp(state.log_v) for chance, state in paths)
        assert worth == pytest.approx(1, abs=ONES)


@pytest.mark.req("S7")
def test_the_best_time_to_stop_gains_nothing_on_small_rollouts() -> None:
    """Backward induction: who knows every e-value in advance and stops at the best moment still expects at
    most 1.
    """
    spec = sequential.fail_spec(unit=Unit.CALLER)
    w = Fraction(1, 2)

    def best(state: BinaryEProcess, left: int) -> float:
        here = math.exp(state.log_v)
        if left == 0:
            return here
        onward = math.fsum(
            float(chance)
            * best(sequential.update(state, spec, CallerTick(x=u, y=1 - u, weight_ppm=500_000)), left - 1)
            for u, chance in binomial(1, w).items()
        )
        return max(here, onward)

    assert best(BinaryEProcess(), 10) == pytest.approx(1, abs=ONES)


@pytest.mark.req("S7")
def test_a_tick_without_events_changes_no_bit_of_the_evidence() -> None:
    """No events, no candidate, no stable, all requests failing, weight 0 or 1: nothing changes."""
    caller, request = sequential.fail_spec(), sequential.fail_spec(unit=Unit.REQUEST)
    state = sequential.update(BinaryEProcess(), caller, CallerTick(x=2, y=1, weight_ppm=100_000))
    silent: list[tuple[EProcessSpec, CallerTick | RequestTick]] = [
        (caller, CallerTick(x=0, y=0, weight_ppm=100_000)),
        (caller, CallerTick(x=0, y=3, weight_ppm=0)),
        (caller, CallerTick(x=3, y=0, weight_ppm=1_000_000)),
        (request, RequestTick(x=0, y=0, n1=20, n0=180)),
        (request, RequestTick(x=0, y=3, n1=0, n0=180)),
        (request, RequestTick(x=3, y=0, n1=20, n0=0)),
        (request, RequestTick(x=20, y=180, n1=20, n0=180)),
    ]
    for spec, tick in silent:
        after = sequential.update(state, spec, tick)
        assert after.ticks == state.ticks + 1
        assert msgspec.structs.replace(after, ticks=state.ticks) == state
    assert (
        sequential.update_rate(
            MeanEProcess(), sequential.rate_pass_spec(bound=0.1), TrialTick(n=0, k=0)
        ).log_v
        == 0
    )


@pytest.mark.req("S7")
def test_the_prior_over_the_beginning_of_an_effect_sums_to_one() -> None:
    """The masses given to each tick and the mass not yet given always make one, so no evidence comes from
    nowhere.
    """
    given = 0.0
    for tick in range(1, 5_000):
        given += mixing.start_prior(tick, 0.5)
        assert given + mixing.unused_prior(tick, 0.5) == pytest.approx(1, abs=1e-12)
    assert mixing.start_prior(2, 1.0) == 0


@pytest.mark.req("S7")
def test_the_law_of_large_tables_agrees_with_exact_integers() -> None:
    """Likelihoods of tables too large to enumerate quickly agree with exact integer arithmetic."""
    for n1, n0, events, x in [
        (300, 2_000, 400, 60),
        (5_000, 9_000, 7_000, 4_100),
        (40_000, 400, 20_000, 19_800),
    ]:
        for odds in (Fraction(1, 4), Fraction(1), Fraction(3, 2), Fraction(30)):
            support = range(max(0, events - n0), min(events, n1) + 1)
            term = math.comb(n1, support[0]) * math.comb(n0, events - support[0])
            total, at_x, power = Fraction(0), Fraction(0), odds.numerator ** support[0]
            scale = odds.denominator
            exact_total = 0
            for u in support:
                weight = term * power * scale ** (support[-1] - u)
                exact_total += weight
                if u == x:
                    at_x = Fraction(weight)
                term = (
                    term * (n1 - u) * (events - u) // ((u + 1) * (n0 - events + u + 1))
                    if u < support[-1]
                    else 0
                )
                power *= odds.numerator
            total = Fraction(exact_total)
            exact = _log_fraction(at_x / total)
            assert Margins(n1, n0, events).log_likelihood(x, float(odds)) == pytest.approx(
                exact, rel=1e-11, abs=1e-9
            )


def _log_fraction(value: Fraction) -> float:
    """log of a fraction that may be too small for a float."""
    shift = value.numerator.bit_length() - value.denominator.bit_length()
    scaled = value * Fraction(2) ** -shift
    return math.log(float(scaled)) + shift * math.log(2)


@pytest.mark.req("S7")
@pytest.mark.parametrize(
    "tick",
    [
        RequestTick(x=500_000, y=500_000, n1=1_000_000, n0=1_000_000),
        RequestTick(x=1_000_000, y=0, n1=1_000_000, n0=1_000_000),
        RequestTick(x=0, y=1_000_000, n1=1_000_000, n0=1_000_000),
        RequestTick(x=1, y=999_999, n1=1, n0=1_000_000),
        RequestTick(x=250_000_000, y=250_000_000, n1=1_000_000_000, n0=1_000_000_000),
        CallerTick(x=1_000_000, y=0, weight_ppm=1),
        CallerTick(x=0, y=1_000_000, weight_ppm=999_999),
        CallerTick(x=1_000_000_000, y=1_000_000_000, weight_ppm=500_000),
    ],
)
def test_extreme_counts_stay_finite_and_fast(tick: CallerTick | RequestTick) -> None:
    """A million or a thousand million events in one tick give finite evidence in a second or two."""
    unit = Unit.CALLER if isinstance(tick, CallerTick) else Unit.REQUEST
    started = time.perf_counter()
    state = sequential.update(BinaryEProcess(), sequential.fail_spec(unit=unit), tick)
    assert time.perf_counter() - started < 60  # bounded work, not a speed: the machine may be busy
    assert math.isfinite(state.log_v)
    assert all(math.isfinite(value) for value in state.log_r)


@pytest.mark.req("S7")
def test_a_bad_candidate_is_seen_and_a_good_one_is_shown() -> None:
    """Known logs lead to the verdicts they must: rollback for a bad candidate, proof for a good one, never
    both.
    """
    bad = [CallerTick(x=3, y=2, weight_ppm=100_000)] * 10
    good = [CallerTick(x=1, y=9, weight_ppm=100_000)] * 60
    guard, proof = sequential.fail_spec(), sequential.pass_spec(bound=2.0)
    assert sequential.replay(guard, bad).ever_reached(0.01)
    assert not sequential.replay(proof, bad).holds(0.05)
    assert not sequential.replay(guard, good).ever_reached(0.01)
    assert sequential.replay(proof, good).holds(0.05)


@pytest.mark.req("S7")
def test_an_alarm_stays_and_a_proof_can_be_lost() -> None:
    """After a fault that healed the alarm still stands; after a fault that came late the proof no longer
    holds.
    """
    guard = sequential.fail_spec()
    healed = sequential.replay(
        guard,
        [CallerTick(x=9, y=1, weight_ppm=100_000)] * 3 + [CallerTick(x=0, y=50, weight_ppm=100_000)] * 9,
    )
    assert healed.ever_reached(0.01)
    assert not healed.holds(0.01)
    proof = sequential.rate_pass_spec(bound=0.02)
    shown = sequential.update_rate(MeanEProcess(), proof, TrialTick(n=400, k=0))
    lost = sequential.update_rate(shown, proof, TrialTick(n=100, k=20))
    assert shown.holds(0.05)
    assert not lost.holds(0.05)


@pytest.mark.req("S7")
def test_a_late_fault_is_seen_soon_after_it_begins() -> None:
    """A fault after five hundred good ticks needs hardly more events than one at the start: its start is
    mixed over.
    """
    guard = sequential.fail_spec()
    quiet = [CallerTick(x=i % 10 == 0, y=i % 10 != 0, weight_ppm=100_000) for i in range(500)]

    def ticks_until_seen(state: BinaryEProcess) -> int:
        for tick in itertools.count(1):
            state = sequential.update(state, guard, CallerTick(x=1, y=1, weight_ppm=100_000))
            if state.ever_reached(0.01):
                return tick
        raise AssertionError

    early, late = ticks_until_seen(BinaryEProcess()), ticks_until_seen(sequential.replay(guard, quiet))
    assert early <= late <= 2 * early + 5


@pytest.mark.req("S7")
def test_the_union_blames_the_metric_that_crossed_and_keeps_to_its_share() -> None:
    """One alpha for all metrics: each crosses at its own share of it, and the verdict names it."""
    omega = {"errors": 0.4, "latency": 0.3, "quality": 0.2, "share": 0.1}
    just_below = math.log(100 / 0.3) - 1e-9
    calm = EProcess(log_v=1.0, max_log_v=1.0)
    states = {"errors": calm, "latency": EProcess(log_v=-2.0, max_log_v=just_below), "share": calm}
    verdict = sequential.combine(states, omega, alpha=0.01)
    assert not verdict.rollback
    states["latency"] = EProcess(log_v=-2.0, max_log_v=just_below + 2e-9)
    verdict = sequential.combine(states, omega, alpha=0.01)
    assert verdict.rollback
    assert verdict.blamed == "latency"
    assert verdict.p_value == pytest.approx(0.01)
    assert verdict.contributions["quality"] == pytest.approx(math.log(0.2))
    assert verdict.log_v == pytest.approx(math.log(0.4) + 1.0)


@pytest.mark.req("S7")
def test_the_mean_is_the_sum_of_shares_and_remembers_its_peak() -> None:
    """Where all metrics draw from one history the mean comes at least as early as the union and stays."""
    omega = {"errors": 0.5, "latency": 0.5}
    high = {"errors": EProcess(log_v=4.6, max_log_v=4.6), "latency": EProcess(log_v=4.7, max_log_v=4.7)}
    low = {"errors": EProcess(log_v=0.0, max_log_v=4.6), "latency": EProcess(log_v=-3.0, max_log_v=4.7)}
    at_peak = sequential.combine(high, omega, alpha=0.01, rule=Rule.MEAN)
    after = sequential.combine(low, omega, alpha=0.01, rule=Rule.MEAN, before=at_peak)
    assert at_peak.max_log_v == pytest.approx(math.log(0.5 * math.exp(4.6) + 0.5 * math.exp(4.7)))
    assert at_peak.rollback
    assert not sequential.combine(high, omega, alpha=0.01).rollback
    assert after.max_log_v == at_peak.max_log_v
    assert after.blamed == "latency"
    assert after.log_v < 0


@pytest.mark.req("S7")
def test_everything_survives_json() -> None:
    """Specs, ticks, states and verdicts come back from JSON equal, floats to the bit."""
    guard = sequential.fail_spec(margin=1.3)
    ticks: list[CallerTick | RequestTick] = [CallerTick(x=1, y=7, weight_ppm=123_457)] * 7
    state = sequential.replay(guard, ticks)
    rates = sequential.replay_rate(sequential.rate_pass_spec(bound=0.01), [TrialTick(n=37, k=1)] * 3)
    verdict = sequential.combine({"errors": state}, {"errors": 1.0}, alpha=0.01)
    assert _round_trip(guard, EProcessSpec) == guard
    assert _round_trip(sequential.rate_pass_spec(bound=0.01), RateSpec) == sequential.rate_pass_spec(
        bound=0.01
    )
    assert _round_trip(ticks, list[CallerTick | RequestTick]) == ticks
    assert _round_trip(state, BinaryEProcess) == state
    assert _round_trip(BinaryEProcess(), BinaryEProcess) == BinaryEProcess()
    assert _round_trip(rates, MeanEProcess) == rates
    assert _round_trip(verdict, Combined) == verdict
    assert "null" not in json.dumps(msgspec.to_builtins(state))


def _round_trip(value: object, kind: object) -> object:
    return msgspec.json.decode(msgspec.json.encode(value), type=kind)


def expect(*steps: tuple[int, float], odds_ratio: float = 4, traffic_per_s: float = 20) -> forecast.Forecast:
    """The forecast of a plan of (weight in ppm, seconds) for 0.5 % errors, with two effects in the grid."""
    return forecast.forecast(
        sequential.fail_spec(relative=(2.0, 4.0)),
        odds_ratio=odds_ratio,
        base_rate=0.005,
        traffic_per_s=traffic_per_s,
        steps=[forecast.Step(weight_ppm=ppm, lasts_s=lasts_s) for ppm, lasts_s in steps],
        alpha=0.01,
        absolute=sequential.rate_pass_spec(bound=0.02),
    )


@pytest.mark.req("S7")
def test_the_forecast_is_the_formula_and_the_zero_error_time_is_exact() -> None:
    """A worked example by hand, and the zero-error count is the first at which the real process holds."""
    seen = expect((100_000, 60.0))
    q = 0.4 / 1.3
    per_event = q * math.log(q / 0.1) + (1 - q) * math.log((1 - q) / 0.9)
    assert seen.events == pytest.approx(math.log(100 * 2 * 2) / per_event)
    rate = 20 * (0.9 * 0.005 + 0.1 * (0.02 / 1.015))
    assert seen.detect_s == pytest.approx(math.log(400) / per_event / rate)
    assert seen.trials is not None
    assert seen.pass_s == pytest.approx(seen.trials / 2)
    for n, held in ((seen.trials - 1, False), (seen.trials, True)):
        trial = TrialTick(n=n, k=0)
        proof = sequential.rate_pass_spec(bound=0.02)
        assert sequential.update_rate(MeanEProcess(), proof, trial).holds(0.05) is held


@pytest.mark.req("S7")
def test_the_forecast_follows_the_steps_of_the_plan() -> None:
    """A step at which nothing can be seen only delays, and a larger weight shortens what is left."""
    alone = expect((500_000, 0.0)).detect_s
    assert alone is not None
    assert expect((0, 100.0), (500_000, 0.0)).detect_s == pytest.approx(100 + alone)
    slow, mixed = expect((100_000, 0.0)).detect_s, expect((100_000, 60.0), (500_000, 0.0)).detect_s
    assert slow is not None
    assert mixed is not None
    assert mixed == pytest.approx(60 + alone * (1 - 60 / slow), rel=0.05)
    assert expect((500_000, alone / 2), (1_000_000, 0.0)).detect_s is None
    assert expect((500_000, alone * 2), (1_000_000, 0.0)).detect_s == pytest.approx(alone)


@pytest.mark.req("S7")
def test_the_forecast_says_when_nothing_will_ever_be_seen() -> None:
    """Without traffic, without two arms, or for an effect inside the hypothesis, the forecast is None."""
    assert expect((100_000, 0.0)).detect_s is not None
    assert expect((100_000, 0.0), traffic_per_s=0).detect_s is None
    assert expect((100_000, 0.0), traffic_per_s=0).pass_s is None
    assert expect((1_000_000, 0.0)).detect_s is None
    assert expect((1_000_000, 0.0)).events is None
    assert expect((0, 0.0)).detect_s is None
    assert expect((100_000, 0.0), odds_ratio=1.0).detect_s is None
    assert forecast.trials_to_pass(sequential.rate_fail_spec(bound=0.1), 0.05) is None


@pytest.mark.req("S7")
def test_what_makes_no_sense_is_refused_with_a_reason() -> None:
    """Impossible counts, grids inside the hypothesis, wrong units and shares beyond one are refused."""
    with pytest.raises(errors.InvalidInput, match="more events than requests"):
        RequestTick(x=3, y=0, n1=2, n0=10)
    with pytest.raises(errors.InvalidInput, match="x=-1"):
        CallerTick(x=-1, y=0, weight_ppm=5)
    with pytest.raises(errors.InvalidInput, match="shorter ticks"):
        TrialTick(n=sequential.COUNT_MAX + 1, k=0)
    with pytest.raises(errors.InvalidInput, match="more failures than trials"):
        TrialTick(n=1, k=2)
    with pytest.raises(errors.InvalidInput, match="1000001 ppm"):
        CallerTick(x=0, y=0, weight_ppm=1_000_001)
    with pytest.raises(errors.InvalidInput, match="count by what the route draws"):
        sequential.update(BinaryEProcess(), sequential.fail_spec(), RequestTick(x=1, y=1, n1=2, n0=2))
    with pytest.raises(errors.InvalidInput, match="another specification"):
        state = sequential.replay(sequential.pass_spec(), [CallerTick(x=1, y=1, weight_ppm=500_000)])
        sequential.update(state, sequential.fail_spec(), CallerTick(x=1, y=1, weight_ppm=500_000))
    for bad in (
        lambda: sequential.fail_spec(relative=(0.9,)),
        lambda: sequential.pass_spec(relative=(1.0,)),
        lambda: sequential.fail_spec(margin=0.0),
        lambda: sequential.fail_spec(start_mass=0.0),
        lambda: sequential.fail_spec(relative=()),
        lambda: sequential.mismatch_spec(tolerance=0.5),
        lambda: sequential.rate_pass_spec(bound=0.0),
        lambda: sequential.rate_fail_spec(bound=1.0),
        lambda: sequential.log_threshold(1.0),
        expect,
        lambda: expect((1_000_001, 0.0)),
        lambda: expect((1, math.inf)),
        lambda: expect((1, 0.0), odds_ratio=0.0),
        lambda: expect((1, 0.0), traffic_per_s=-1.0),
        lambda: sequential.combine({}, {}, alpha=0.01),
        lambda: sequential.combine({"a": EProcess()}, {"b": 1.0}, alpha=0.01),
        lambda: sequential.combine({}, {"a": 0.6, "b": 0.6}, alpha=0.01),
        lambda: RateSpec(rates=(0.1,), mass=(1.0,), bound=0.2, direction=Direction.DIFFERS),
        lambda: EProcessSpec(odds=(2.0,), mass=(0.5,), margin=1, unit=Unit.CALLER, direction=Direction.FAIL),
    ):
        with pytest.raises(errors.InvalidPlan):
            bad()
