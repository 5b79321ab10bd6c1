"""What a rollout may expect before it starts: when a regression would be seen, and when a bound would be
shown.

Means, computed from the e-processes' own specifications; what is promised stands in `core.sequential`, and
what was measured in docs/explanation/rollout-statistics.md. Nothing here touches a running rollout.

Sources: Wald 1947 (expected sample number: threshold over expected growth); Lindon and Malek 2022.
"""

import math

from msgspec import Struct

from modelkeep.core import errors
from modelkeep.core.sequential import (
    COUNT_MAX,
    ODDS_MAX,
    WHOLE_PPM,
    EProcessSpec,
    MeanEProcess,
    RateSpec,
    TrialTick,
    log_threshold,
    scaled_rate,
    update_rate,
)


class Forecast(Struct, frozen=True, kw_only=True):
    """What a rollout may expect; None where it cannot be reached with this traffic or this weight.

    `events` and `detect_s`: failing draws on both arms, and seconds, until the regression is seen. `trials`
    and `pass_s`: draws on the candidate, and seconds, until the absolute bound is shown by a version that
    never fails.
    """

    events: float | None = None
    detect_s: float | None = None
    trials: int | None = None
    pass_s: float | None = None


def forecast(
    spec: EProcessSpec,
    *,
    odds_ratio: float,
    base_rate: float,
    traffic_per_s: float,
    weight_ppm: int,
    alpha: float,
    omega: float = 1.0,
    absolute: RateSpec | None = None,
    beta: float = 0.05,
) -> Forecast:
    """How long until `spec` sees a candidate whose odds of failing are `odds_ratio` times stable's, at this
    weight.

    The expected growth of log V per event, for the best d of the grid, is the relative entropy of its draw:

        events = log(1 / (alpha omega g_1 mass(d))) / G(d),   G(d) = q log(d/r) + log((1 - w + w r) / (1 - w +
        w d)), q = w odds_ratio / (1 - w + w odds_ratio)

    Half of all rollouts need less, half more: a mean without overshoot, not a promise. `traffic_per_s` counts
    the spec's own draws on both arms (new callers or requests), `base_rate` is the share of them that fails
    on stable, `alpha` the error of the whole rollout (or beta, for a pass spec) and `omega` the metric's
    share of it.

    Raises:
        InvalidPlan: a number is out of range.
    """
    if not (0 < base_rate < 1 and traffic_per_s >= 0 and 0 <= weight_ppm <= WHOLE_PPM and 0 < omega <= 1):
        raise errors.InvalidPlan(
            "A forecast needs a failure rate and a share in (0, 1), a weight, and some traffic."
        )
    if not 1 / ODDS_MAX <= odds_ratio <= ODDS_MAX:
        raise errors.InvalidPlan(f"The odds ratio {odds_ratio} is out of range; give one like 2.")
    w = weight_ppm / WHOLE_PPM
    needed = log_threshold(alpha) - math.log(omega)
    events = _events_until(spec, odds_ratio, w, needed) if 0 < w < 1 else None
    events_per_s = traffic_per_s * ((1 - w) * base_rate + w * scaled_rate(base_rate, odds_ratio))
    trials = None if absolute is None else trials_to_pass(absolute, beta)
    return Forecast(
        events=events,
        detect_s=None if events is None or events_per_s == 0 else events / events_per_s,
        trials=trials,
        pass_s=None if trials is None or w * traffic_per_s == 0 else trials / (w * traffic_per_s),
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


def _events_until(spec: EProcessSpec, odds_ratio: float, w: float, needed: float) -> float | None:
    """Expected events until `needed` for the quickest member of the grid; None where none ever grows."""
    q = w * odds_ratio / (1 - w + w * odds_ratio)
    best: float | None = None
    for mass, d in zip(spec.mass, spec.odds, strict=True):
        r = spec.null_odds(d)
        growth = q * math.log(d / r) + math.log1p(w * (r - d) / (1 - w + w * d))
        if growth > 0:
            events = (needed - math.log(mass * spec.start_mass)) / growth
            best = events if best is None else min(best, events)
    return best
