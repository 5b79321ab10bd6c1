"""What a rollout may expect before it starts: when a regression would be seen, and when a bound would be
shown.

Means, computed from the e-processes' own specifications, and the shapes in which a whole outlook is told,
which `outlook` simulates; what is promised stands in `core.sequential`, and what was measured in
docs/explanation/rollout-statistics.md. Nothing here touches a running rollout.

Sources: Wald 1947 (expected sample number: threshold over expected growth); Lindon and Malek 2022.
"""

import math
from collections.abc import Sequence

from msgspec import Struct

from modelkeep.core import errors
from modelkeep.core.mixing import log_threshold
from modelkeep.core.plan_shapes import Goal
from modelkeep.core.sequential import (
    COUNT_MAX,
    ODDS_MAX,
    WHOLE_PPM,
    EProcessSpec,
    MeanEProcess,
    RateSpec,
    TrialTick,
    scaled_rate,
    update_rate,
)

STEPS_MAX = 100
"""Steps of one plan."""
RUNS = 400
"""Simulated rollouts of each kind, unless more are asked for."""
RUNS_MAX = 1_000
"""More take minutes, and say the same a little more exactly."""
CALLERS_MAX = 1e6
"""New callers a second: above, everything is seen at once."""
SEED_MAX = 2**32 - 1
"""Seeds of a generator."""
REGRESSIONS = (1.5, 2.0, 4.0, 10.0)
"""Odds ratios of failing that are looked at."""
LOSSES = (2.0, 4.0)
"""And those of a version of an A/B test that is worse."""
GAINS = (1 / 1.5, 1 / 2, 1 / 4)
"""Odds ratios of trouble, over stable's, of one that is better."""
CONFIDENCE = 0.95
"""Of the bounds that are told with simulated shares."""


class Step(Struct, frozen=True, kw_only=True):
    """A weight of the candidate and how long it lasts; the last step of a plan lasts as long as need be."""

    weight_ppm: int
    lasts_s: float


class Forecast(Struct, frozen=True, kw_only=True):
    """What a rollout may expect; None where it cannot be reached with this traffic or these weights.

    `events` and `detect_s`: failing draws on both arms, and seconds, until the regression is seen. `trials`
    and `pass_s`: draws on the candidate, and seconds, until the absolute bound is shown by a version that
    never fails.
    """

    events: float | None = None
    detect_s: float | None = None
    trials: int | None = None
    pass_s: float | None = None


class Flow(Struct, frozen=True, kw_only=True):
    """Traffic as rollouts are judged by it: callers who are new in a rollout.

    `failing` is the share of stable's callers who have an error at all, `failing_first` of those who have one
    with their first request, `slow` of those who are answered slowly.
    """

    callers_per_s: float
    requests_per_caller: float = 1.0
    failing: float
    failing_first: float
    slow: float


class Regression(Struct, frozen=True, kw_only=True):
    """What would become of a candidate whose callers fail at `odds` times stable's odds.

    `formula_s` is computed, and a mean: how long the evidence of errors takes at the weights of the plan.
    All else is simulated: `seen`, the share of rollouts that the evidence took back; the seconds until a
    tenth, half and nine tenths of ALL rollouts were taken back (None: fewer ever were); `passed`, the share
    that went all the way; and in the middle (half of the rollouts, and nine tenths, had at most so many) the
    callers and requests that the candidate answered, and the callers who failed there.
    """

    odds: float
    formula_s: float | None
    seen: float
    tenth_s: float | None
    half_s: float | None
    nine_tenths_s: float | None
    passed: float
    callers: float
    callers_nine_tenths: float
    requests: float
    failed_callers: float


class Healthy(Struct, frozen=True, kw_only=True):
    """What would become of a candidate that is as good as stable.

    `alpha` is promised: the evidence takes back at most this share of such candidates, whatever the traffic.
    All else is simulated: `taken_back` and its upper bound, `inconclusive` (taken back by the plan because
    time was over), `waiting` (neither done nor taken back within the time that was simulated), and the
    seconds until half and nine tenths of the rollouts had all of the traffic, and until half were done.
    """

    alpha: float
    taken_back: float
    taken_back_at_most: float
    inconclusive: float
    waiting: float
    full_half_s: float | None
    full_nine_tenths_s: float | None
    done_half_s: float | None


class Share(Struct, frozen=True, kw_only=True):
    """Of simulated tests, what share came to something, of a version at these odds; and seconds until half of
    all tests had (None: fewer ever did, or it is only known at the end)."""

    odds: float
    share: float
    half_s: float | None = None


class ArmOutlook(Struct, frozen=True, kw_only=True):
    """What would become of one version of an A/B test.

    Attributes:
        version: by its semver or number; None for whichever is promoted.
        callers_per_s: new callers who meet it.
        taken_out: though it is as good as stable; credibly at most `taken_out_at_most`.
        named: though its callers fare as stable's do.
        losses: taken out, when its callers fail at higher odds.
        gains: named by the report at the end, when its callers have trouble at lower odds.
    """

    version: str | None
    weight_ppm: int
    callers_per_s: float
    taken_out: float
    taken_out_at_most: float
    named: float
    losses: tuple[Share, ...]
    gains: tuple[Share, ...]


class ContestOutlook(Struct, frozen=True, kw_only=True):
    """What an A/B test may be expected to come to, version by version (`arms`, the candidate first).

    `alpha` is promised twice, whatever the traffic: a version no worse than stable is taken out of at most
    this share of tests, over all versions; and between equal versions somebody is named in at most this
    share, over all `comparisons`. All else is simulated, in `runs` tests of each kind and version; shares are
    within `error` (95 of 100 times).
    """

    goal: Goal
    alpha: float
    comparisons: int
    runs: int
    error: float
    arms: tuple[ArmOutlook, ...]


class Outlook(Struct, frozen=True, kw_only=True):
    """What a plan may be expected to do.

    `runs` rollouts of each kind were simulated for `horizon_s` each. The same `seed` gives the same numbers;
    another gives shares that differ by less than `error` (95 of 100 times).
    """

    runs: int
    seed: int
    horizon_s: float
    error: float
    healthy: Healthy
    regressions: tuple[Regression, ...]


def forecast(
    spec: EProcessSpec,
    *,
    odds_ratio: float,
    base_rate: float,
    traffic_per_s: float,
    steps: Sequence[Step],
    alpha: float,
    omega: float = 1.0,
    absolute: RateSpec | None = None,
    beta: float = 0.05,
) -> Forecast:
    """How long until `spec` sees a candidate whose odds of failing are `odds_ratio` times stable's.

    Log V grows, per failing draw and for the member d of the grid, by

        G(d) = q log(d/r) + log((1 - w + w r) / (1 - w + w d)),   q = w odds_ratio / (1 - w + w odds_ratio)

    on average, and has to grow by log(1 / (alpha omega g_1 mass(d))); the quickest d counts. This is a mean
    without overshoot, not a promise. `traffic_per_s` counts the spec's own draws on both arms (new callers or
    requests), `base_rate` is the share of them that fails on stable, `alpha` the error of the whole rollout
    (or beta, for a pass spec) and `omega` the metric's share of it.

    Raises:
        InvalidPlan: a number is out of range.
    """
    _check(odds_ratio, base_rate, traffic_per_s, steps, omega)
    needed = log_threshold(alpha) - math.log(omega)
    detect_s = _seconds(
        min(
            _time_to_grow(
                needed - math.log(mass * spec.start_mass),
                [_growth(spec, d, odds_ratio, base_rate, step) * traffic_per_s for step in steps],
                steps,
            )
            for mass, d in zip(spec.mass, spec.odds, strict=True)
        )
    )
    trials = None if absolute is None else trials_to_pass(absolute, beta)
    on_candidate = [step.weight_ppm / WHOLE_PPM * traffic_per_s for step in steps]
    return Forecast(
        events=None if detect_s is None else _failing(detect_s, odds_ratio, base_rate, traffic_per_s, steps),
        detect_s=detect_s,
        trials=trials,
        pass_s=None if trials is None else _seconds(_time_to_grow(trials, on_candidate, steps)),
    )


def trials_to_pass(spec: RateSpec, beta: float) -> int | None:
    """The least number of trials without one failure after which the bound is shown at error `beta`; None if
    never.

    Exact: the same evidence as `update_rate` gives for one tick of that many trials.

    Raises:
        InvalidPlan: `beta` is out of range.
    """
    needed = log_threshold(beta)

    def shown(n: int) -> bool:
        return update_rate(MeanEProcess(), spec, TrialTick(n=n, k=0)).log_v >= needed

    if not shown(COUNT_MAX):
        return None
    low, high = 0, COUNT_MAX
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if shown(middle) else (middle, high)
    return high


def _growth(spec: EProcessSpec, d: float, odds_ratio: float, base_rate: float, step: Step) -> float:
    """Expected growth of log R(d) per draw on either arm, failing or not."""
    w = step.weight_ppm / WHOLE_PPM
    if not 0 < w < 1:
        return 0.0
    r = spec.null_odds(d)
    q = w * odds_ratio / (1 - w + w * odds_ratio)
    per_event = q * math.log(d / r) + math.log1p(w * (r - d) / (1 - w + w * d))
    return per_event * _failing_share(odds_ratio, base_rate, step)


def _failing_share(odds_ratio: float, base_rate: float, step: Step) -> float:
    """The share of draws on both arms that fails."""
    w = step.weight_ppm / WHOLE_PPM
    return (1 - w) * base_rate + w * scaled_rate(base_rate, odds_ratio)


def _time_to_grow(needed: float, per_s: Sequence[float], steps: Sequence[Step]) -> float:
    """Seconds until the sum has grown to `needed` at the rates of the steps; infinite where it never does."""
    grown = elapsed_s = 0.0
    for place, (rate, step) in enumerate(zip(per_s, steps, strict=True), start=1):
        if rate > 0 and (place == len(steps) or grown + rate * step.lasts_s >= needed):
            return elapsed_s + max(0.0, needed - grown) / rate
        grown += rate * step.lasts_s
        elapsed_s += step.lasts_s
    return math.inf


def _failing(
    until_s: float, odds_ratio: float, base_rate: float, traffic_per_s: float, steps: Sequence[Step]
) -> float:
    """Failing draws on both arms until then."""
    total = begins_s = 0.0
    for place, step in enumerate(steps, start=1):
        ends_s = until_s if place == len(steps) else min(until_s, begins_s + step.lasts_s)
        total += max(0.0, ends_s - begins_s) * traffic_per_s * _failing_share(odds_ratio, base_rate, step)
        begins_s += step.lasts_s
    return total


def _seconds(value: float) -> float | None:
    """JSON has no infinity; what never happens is None."""
    return value if math.isfinite(value) else None


def _check(
    odds_ratio: float, base_rate: float, traffic_per_s: float, steps: Sequence[Step], omega: float
) -> None:
    if not (0 < base_rate < 1 and 0 <= traffic_per_s < math.inf and 0 < omega <= 1):
        raise errors.InvalidPlan("A forecast needs a failure rate and a share in (0, 1), and some traffic.")
    if not 1 / ODDS_MAX <= odds_ratio <= ODDS_MAX:
        raise errors.InvalidPlan(f"The odds ratio {odds_ratio} is out of range; give one like 2.")
    if not 1 <= len(steps) <= STEPS_MAX:
        raise errors.InvalidPlan(f"A forecast needs 1 to {STEPS_MAX} steps.")
    if not all(0 <= step.weight_ppm <= WHOLE_PPM and 0 <= step.lasts_s < math.inf for step in steps):
        raise errors.InvalidPlan("A step needs a weight of 0 to 1000000 ppm, and a length in seconds.")
