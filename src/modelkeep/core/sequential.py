"""Evidence that may be looked at after every request: e-processes for rollouts, and their combination.

An e-process is a non-negative number V, 1 at the start, whose expectation under the hypothesis is at most 1
at every time at which one may choose to stop. Ville (1939): the chance that it EVER reaches 1/alpha under the
hypothesis is at most alpha. So a rollout may be watched all the time, its weights may change, and the bound
holds for the whole of it.

    what a large V says                    spec            tick                     hypothesis
    the candidate fails more often         fail_spec       CallerTick, RequestTick  odds ratio <= margin
    the candidate is not much worse        pass_spec       CallerTick, RequestTick  odds ratio >= bound
    the arms do not get their shares       mismatch_spec   CallerTick               odds ratio near 1
    the candidate fails more than allowed  rate_fail_spec  TrialTick                failure rate <= bound
    the candidate fails less than allowed  rate_pass_spec  TrialTick                failure rate >= bound

Specs, ticks and states are frozen values that survive JSON without losing a bit, so whoever has the log of
ticks can recompute each verdict (`replay`). This file does not count, does not read a clock, and does not
decide what happens to the traffic; `core.rollout` does. docs/explanation/rollout-statistics.md holds the
reasoning, simulations and limits.

Sources: Ville 1939 (the bound); Robbins 1970 (mixtures); Turner, Ly, Gruenwald 2024 (two-by-two tables, one
factor per block of data); Lindon and Malek 2022 (given an event, its arm is a draw with known odds); Fisher
1935 and Harkness 1965 (the noncentral hypergeometric law); Shin, Ramdas, Rinaldo 2023 (mixing over the time a
change begins); Waudby-Smith and Ramdas 2024 (bounded means); Choe and Ramdas 2024 (why a mean over different
filtrations needs care).
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from typing import assert_never

from msgspec import Struct

from modelkeep.core import errors
from modelkeep.core.hypergeometric import Margins
from modelkeep.core.mixing import EProcess, log_sum, log_threshold, mixed

WHOLE_PPM = 1_000_000
"""All of the traffic, as the routing table counts it."""
GRID_MAX = 64
"""Effect sizes of one mixture: each costs a few float operations a tick, and dilutes the others."""
METRICS_MAX = 32
"""Metrics of one rollout; each has its share of one alpha."""
COUNT_MAX = 1_000_000_000
"""Of anything in one tick; one that large takes a second. Whoever counts more counts in shorter ticks."""
ODDS_MAX = 1e6
"""Odds ratios, either way: beyond it an effect is as good as infinite and the sums lose their meaning."""
MASS_SLACK = 1e-9
"""How far the weights of a mixture may miss 1 by rounding."""


class Direction(StrEnum):
    """What the hypothesis claims, and so what a large V refutes."""

    FAIL = "fail"
    """Claim: the candidate is no worse than the limit. A large V says that it is worse."""
    PASS = "pass"
    """Claim: the candidate is at least as bad as the limit. A large V says that it is better than that."""
    DIFFERS = "differs"
    """Claim: the odds ratio lies within the limit either way. A large V says that it does not."""


class Unit(StrEnum):
    """The independent draw, which is the router's: callers where they stick to an arm, else requests."""

    CALLER = "caller"
    REQUEST = "request"


class CallerTick(Struct, frozen=True, kw_only=True, tag="caller"):
    """Callers, counted once each: at their first event in this rollout, on the arm that they were on.

    `x` on the candidate, `y` on stable; `weight_ppm` is the candidate's assigned share at that time. A weight
    that changes ends the tick. For the share of the arms, the event is the caller's first request.
    """

    x: int
    y: int
    weight_ppm: int

    def __post_init__(self) -> None:
        _counts(x=self.x, y=self.y)
        if not 0 <= self.weight_ppm <= WHOLE_PPM:
            raise errors.InvalidInput(
                f"A weight of {self.weight_ppm} ppm is impossible; give 0 to {WHOLE_PPM}."
            )


class RequestTick(Struct, frozen=True, kw_only=True, tag="request"):
    """Requests routed one by one: `x` of the candidate's `n1` and `y` of stable's `n0` had the event."""

    x: int
    y: int
    n1: int
    n0: int

    def __post_init__(self) -> None:
        _counts(x=self.x, y=self.y, n1=self.n1, n0=self.n0)
        if self.x > self.n1 or self.y > self.n0:
            raise errors.InvalidInput(
                "A tick has more events than requests; count both over the same requests."
            )


class TrialTick(Struct, frozen=True, kw_only=True, tag="trial"):
    """`k` failures in `n` independent trials of the candidate: the first requests of `n` distinct callers."""

    n: int
    k: int

    def __post_init__(self) -> None:
        _counts(n=self.n, k=self.k)
        if self.k > self.n:
            raise errors.InvalidInput(
                "A tick has more failures than trials; count both over the same requests."
            )


class EProcessSpec(Struct, frozen=True, kw_only=True):
    """What a `BinaryEProcess` looks for; stored with the rollout, for without it a state means nothing.

    `odds` are the odds ratios it is powerful against and `mass` their prior weights; `margin` limits the
    hypothesis (for DIFFERS: `1/margin` to `margin`). `start_mass` is the prior belief that an effect is there
    from the first event on; the rest is spread over later ticks. 1 means: only effects that last from the
    start count.
    """

    odds: tuple[float, ...]
    mass: tuple[float, ...]
    margin: float
    unit: Unit
    direction: Direction
    start_mass: float = 0.5

    def __post_init__(self) -> None:
        _grid(self.odds, self.mass, self.start_mass, low=1 / ODDS_MAX, high=ODDS_MAX)
        if not 1 / ODDS_MAX <= self.margin <= ODDS_MAX:
            raise errors.InvalidPlan(f"The margin {self.margin} is no odds ratio; give one like 1.25.")
        match self.direction:
            case Direction.FAIL:
                sound = all(d > self.margin for d in self.odds)
            case Direction.PASS:
                sound = all(d < self.margin for d in self.odds)
            case Direction.DIFFERS:
                sound = self.margin >= 1 and all(d > self.margin or d * self.margin < 1 for d in self.odds)
            case _:
                assert_never(self.direction)
        if not sound:
            raise errors.InvalidPlan(
                "An odds ratio of the grid lies within the hypothesis; keep the grid beyond it."
            )

    def null_odds(self, odds: float) -> float:
        """The end of the hypothesis next to `odds`: what that member of the grid is compared with."""
        return 1 / self.margin if self.direction is Direction.DIFFERS and odds < 1 else self.margin


class RateSpec(Struct, frozen=True, kw_only=True):
    """What a `MeanEProcess` looks for: failure rates beyond `bound`; the rest is as in `EProcessSpec`."""

    rates: tuple[float, ...]
    mass: tuple[float, ...]
    bound: float
    direction: Direction
    start_mass: float = 1.0

    def __post_init__(self) -> None:
        tiny = 1 / ODDS_MAX**2
        _grid(self.rates, self.mass, self.start_mass, low=tiny, high=1 - tiny)
        if not tiny <= self.bound <= 1 - tiny:
            raise errors.InvalidPlan(
                f"The bound {self.bound} is no failure rate; give one above 0 and below 1."
            )
        match self.direction:
            case Direction.FAIL:
                sound = all(p > self.bound for p in self.rates)
            case Direction.PASS:
                sound = all(p < self.bound for p in self.rates)
            case Direction.DIFFERS:
                raise errors.InvalidPlan(
                    "A failure rate is tested one way at a time; make a fail or a pass spec."
                )
            case _:
                assert_never(self.direction)
        if not sound:
            raise errors.InvalidPlan(
                "A rate of the grid lies within the hypothesis; keep the grid beyond the bound."
            )


def fail_spec(
    *,
    margin: float = 1.0,
    unit: Unit = Unit.CALLER,
    relative: Sequence[float] = (1.25, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0, 100.0),
    start_mass: float = 0.5,
) -> EProcessSpec:
    """The guard against a regression. Hypothesis: the candidate's odds of an event are at most `margin` x
    stable's.

    Raises:
        InvalidPlan: a number is out of range, or `relative` is not all above 1.
    """
    odds = tuple(margin * d for d in relative)
    return EProcessSpec(odds=odds, mass=_even(odds), margin=margin, unit=unit, direction=Direction.FAIL,
                        start_mass=start_mass)  # fmt: skip


def pass_spec(
    *,
    bound: float = 2.0,
    unit: Unit = Unit.CALLER,
    relative: Sequence[float] = (0.15, 0.3, 0.45, 0.6),
    start_mass: float = 1.0,
) -> EProcessSpec:
    """The proof of not being much worse. Hypothesis: the candidate's odds of an event are at least `bound` x
    stable's.

    The whole rollout counts (`start_mass` 1): a version that failed at first is not passed for its good last
    minutes.

    Raises:
        InvalidPlan: a number is out of range, or `relative` is not all below 1.
    """
    odds = tuple(bound * d for d in relative)
    return EProcessSpec(odds=odds, mass=_even(odds), margin=bound, unit=unit, direction=Direction.PASS,
                        start_mass=start_mass)  # fmt: skip


def mismatch_spec(*, tolerance: float = 1.05) -> EProcessSpec:
    """The check that each arm receives its assigned share (sample-ratio mismatch), by the odds of the shares.

    Its ticks are `CallerTick`s: `x` and `y` are the callers that reached each arm with their first request of
    this rollout. Where requests are routed one by one they count as callers, for their share is just as well
    known.

    Raises:
        InvalidPlan: `tolerance` is below 1 or absurd.
    """
    if not 1 <= tolerance <= ODDS_MAX / 100:
        raise errors.InvalidPlan(f"The tolerance {tolerance} is no odds ratio from 1 up; give one like 1.05.")
    above = tuple(tolerance * d for d in (1.05, 1.15, 1.5, 3.0, 30.0))
    odds = above + tuple(1 / d for d in above)
    return EProcessSpec(
        odds=odds, mass=_even(odds), margin=tolerance, unit=Unit.CALLER, direction=Direction.DIFFERS
    )


def rate_fail_spec(*, bound: float, start_mass: float = 0.5) -> RateSpec:
    """The guard of an absolute limit. Hypothesis: the candidate fails at most at the rate `bound`.

    Raises:
        InvalidPlan: `bound` is no rate strictly between 0 and 1.
    """
    rates = tuple(scaled_rate(bound, d) for d in (1.25, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0))
    return RateSpec(
        rates=rates, mass=_even(rates), bound=bound, direction=Direction.FAIL, start_mass=start_mass
    )


def rate_pass_spec(*, bound: float) -> RateSpec:
    """The proof of an absolute limit. Hypothesis: the candidate fails at least at the rate `bound`.

    Unlike every comparison with stable, it also learns where nothing fails at all.

    Raises:
        InvalidPlan: `bound` is no rate strictly between 0 and 1.
    """
    rates = tuple(scaled_rate(bound, d) for d in (0.02, 0.1, 0.25, 0.5, 0.75))
    return RateSpec(rates=rates, mass=_even(rates), bound=bound, direction=Direction.PASS)


class BinaryEProcess(EProcess, frozen=True, kw_only=True):
    """Evidence about the odds ratio of an event between candidate and stable; moved by `update`."""


class MeanEProcess(EProcess, frozen=True, kw_only=True):
    """Evidence about the candidate's own failure rate; moved by `update_rate`."""


def update(state: BinaryEProcess, spec: EProcessSpec, tick: CallerTick | RequestTick) -> BinaryEProcess:
    """The state after one more tick. A tick without events leaves all but `ticks` as it was, to the bit.

    With e(d) the likelihood ratio of the tick at odds ratio d against the end of the hypothesis, and g_t the
    prior mass on an effect that begins at informative tick t:

        R_t(d) = e_t(d) * (R_(t-1)(d) + g_t)
        V_t    = sum over d of mass(d) R_t(d)  +  (1 - g_1 - ... - g_t)

    Raises:
        InvalidInput: the tick is of another unit than the spec, or the state belongs to another spec.
    """
    return mixed(state, spec.mass, spec.start_mass, log_e_values(spec, tick))


def update_rate(state: MeanEProcess, spec: RateSpec, tick: TrialTick) -> MeanEProcess:
    """The state after one more tick of trials, by the same recursion as `update`.

    Raises:
        InvalidInput: the state belongs to another spec.
    """
    return mixed(state, spec.mass, spec.start_mass, log_e_rates(spec, tick))


def replay(spec: EProcessSpec, ticks: Iterable[CallerTick | RequestTick]) -> BinaryEProcess:
    """Recompute a state from the log of its ticks: bit for bit what `update` made of them on the way.

    Raises:
        InvalidInput: a tick is of another unit than the spec.
    """
    state = BinaryEProcess()
    for tick in ticks:
        state = update(state, spec, tick)
    return state


def replay_rate(spec: RateSpec, ticks: Iterable[TrialTick]) -> MeanEProcess:
    """Recompute a state from the log of its trials.

    Raises:
        Nothing of its own: ticks are checked where they are made.
    """
    state = MeanEProcess()
    for tick in ticks:
        state = update_rate(state, spec, tick)
    return state


# --------------------------------------------------------------------------- one tick's likelihood ratios


def log_e_values(spec: EProcessSpec, tick: CallerTick | RequestTick) -> tuple[float, ...] | None:
    """log e(d) of one tick for each d of the grid; None where the tick can say nothing.

    Per caller, given the E = x + y first events and the weight w, each lies on the candidate with odds d w :
    (1 - w):

        e(d; r) = (d/r)^x * ((1 - w + w r) / (1 - w + w d))^E

    Per request, given E, n1 and n0, x follows Fisher's noncentral hypergeometric law with normaliser A:

        e(d; r) = (d^x / A(d)) / (r^x / A(r)),   A(d) = sum over u of C(n1, u) C(n0, E - u) d^u

    Both are monotone likelihood ratios, so their expectation is 1 at the end r of the hypothesis and below
    inside it.

    Raises:
        InvalidInput: the tick is of another unit than the spec.
    """
    match tick, spec.unit:
        case CallerTick(), Unit.CALLER:
            if tick.x + tick.y == 0 or tick.weight_ppm in (0, WHOLE_PPM):
                return None
            return tuple(_log_e_caller(tick, d, spec.null_odds(d)) for d in spec.odds)
        case RequestTick(), Unit.REQUEST:
            table = Margins(tick.n1, tick.n0, tick.x + tick.y)
            if table.low == table.high:
                return None
            null = {r: table.log_likelihood(tick.x, r) for r in {spec.null_odds(d) for d in spec.odds}}
            return tuple(table.log_likelihood(tick.x, d) - null[spec.null_odds(d)] for d in spec.odds)
        case _:
            raise errors.InvalidInput(
                f"The tick does not count by {spec.unit}; count by what the route draws."
            )


def log_e_rates(spec: RateSpec, tick: TrialTick) -> tuple[float, ...] | None:
    """log e(p) = k log(p/p0) + (n - k) log((1-p)/(1-p0)) for each p of the grid; None without trials.

    Raises:
        Nothing: specs and ticks are checked where they are made.
    """
    if tick.n == 0:
        return None
    bound = spec.bound
    return tuple(
        tick.k * math.log(p / bound) + (tick.n - tick.k) * (math.log1p(-p) - math.log1p(-bound))
        for p in spec.rates
    )


def _log_e_caller(tick: CallerTick, odds: float, null: float) -> float:
    w = tick.weight_ppm / WHOLE_PPM
    return tick.x * math.log(odds / null) + (tick.x + tick.y) * math.log1p(
        w * (null - odds) / (1 - w + w * odds)
    )


def _even(grid: Sequence[float]) -> tuple[float, ...]:
    return tuple(1 / len(grid) for _ in grid)


def scaled_rate(rate: float, odds: float) -> float:
    """The rate whose odds are `odds` times those of `rate`; stays below 1.

    Raises:
        Nothing: both are checked where they come from.
    """
    return rate * odds / (1 - rate + rate * odds)


# --------------------------------------------------------------------------- one verdict for all metrics


class Rule(StrEnum):
    """How the evidence of several metrics becomes one.

    UNION takes the largest of omega_k V_k. Its error is at most the sum of the parts, whatever the metrics
    share. MEAN takes the sum of omega_k V_k. It never comes later, but its bound needs all metrics to be
    supermartingales over ONE history (Choe and Ramdas 2024): true where all their ticks draw afresh from the
    same requests, NOT true for callers, whose arm one metric reveals before another one counts it.
    """

    UNION = "union"
    MEAN = "mean"


class Combined(Struct, frozen=True, kw_only=True):
    """The evidence of the whole rollout against its candidate, in logarithms.

    `contributions` are log(omega_k V_k) now; `blamed` is the metric with the largest, at the moment V was
    largest.
    """

    alpha: float
    log_v: float
    max_log_v: float
    blamed: str
    contributions: dict[str, float]

    @property
    def rollback(self) -> bool:
        """Whether V ever was 1/alpha or more: once true for a rollout, true for ever."""
        return self.max_log_v >= log_threshold(self.alpha)

    @property
    def p_value(self) -> float:
        """The anytime-valid p-value of the whole rollout: min(1, 1 / max V)."""
        return math.exp(-max(0.0, self.max_log_v))


def combine(
    states: Mapping[str, EProcess],
    omega: Mapping[str, float],
    *,
    alpha: float,
    rule: Rule = Rule.UNION,
    before: Combined | None = None,
) -> Combined:
    """One verdict over all metrics and steps: it takes back at most the share `alpha` of healthy rollouts.

    `omega` are the metrics' shares of alpha and sum to 1 (or less). A metric with a share and no state yet
    counts as one without evidence. MEAN needs the verdict of the tick `before`, for the largest V so far;
    UNION has it from the states.

    Raises:
        InvalidPlan: shares are missing, not positive, or sum to more than 1; or `alpha` is out of range.
    """
    log_threshold(alpha)
    if not 1 <= len(omega) <= METRICS_MAX or not set(states) <= set(omega):
        raise errors.InvalidPlan(
            f"Each metric needs a share of alpha, and at most {METRICS_MAX} can have one."
        )
    if not all(share > 0 for share in omega.values()) or math.fsum(omega.values()) > 1 + MASS_SLACK:
        raise errors.InvalidPlan("The metrics' shares of alpha must be positive and sum to at most 1.")
    idle = EProcess()
    now = {name: math.log(share) + states.get(name, idle).log_v for name, share in omega.items()}
    match rule:
        case Rule.UNION:
            peaks = {
                name: math.log(share) + states.get(name, idle).max_log_v for name, share in omega.items()
            }
            blamed = max(peaks, key=lambda name: peaks[name])
            log_v, max_log_v = max(now.values()), peaks[blamed]
        case Rule.MEAN:
            blamed = max(now, key=lambda name: now[name])
            log_v = max_log_v = log_sum(list(now.values()))
            if before is not None and before.max_log_v >= log_v:
                blamed, max_log_v = before.blamed, before.max_log_v
        case _:
            assert_never(rule)
    return Combined(alpha=alpha, log_v=log_v, max_log_v=max_log_v, blamed=blamed, contributions=now)


# --------------------------------------------------------------------------- checks of what comes in


def _counts(**counts: int) -> None:
    for name, count in counts.items():
        if not 0 <= count <= COUNT_MAX:
            raise errors.InvalidInput(
                f"A tick cannot hold {name}={count}; count 0 to {COUNT_MAX}, in shorter ticks."
            )


def _grid(
    grid: Sequence[float], mass: Sequence[float], start_mass: float, *, low: float, high: float
) -> None:
    if not 1 <= len(grid) <= GRID_MAX or len(mass) != len(grid):
        raise errors.InvalidPlan(f"A grid needs 1 to {GRID_MAX} effects, each with one weight.")
    if not all(low <= value <= high for value in grid):
        raise errors.InvalidPlan(f"Each effect of a grid must lie between {low:g} and {high:g}.")
    if not all(share > 0 for share in mass) or abs(math.fsum(mass) - 1) > MASS_SLACK:
        raise errors.InvalidPlan("The weights of a grid must be positive and sum to 1.")
    if not 0 < start_mass <= 1:
        raise errors.InvalidPlan(
            f"The weight {start_mass} of an effect from the start must be above 0, at most 1."
        )
