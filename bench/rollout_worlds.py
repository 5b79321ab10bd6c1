"""Simulated rollouts: the traffic, the callers, and what is counted of them; and the tests that others judge
it by.

It draws counts and judges nothing by the product's own statistics, with one exception: where a plan advances
on proof, the weights depend on the product's proof, and so does the data.
"""

import math
from dataclasses import dataclass, field

import numpy as np

from bench.sequential_twin import Array
from modelkeep.core import sequential
from modelkeep.core.sequential import Unit
from modelkeep.core.sequential_many import Many, log_e_callers

TICK_S = 10
TICKS = 360
"""An hour."""
BETA = 0.05
"""How often an unfit candidate may be shown fit."""


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """One kind of traffic. `effect` multiplies the candidate's errors (and slow answers) from `effect_from`
    on.
    """

    name: str
    steps: tuple[tuple[int, int], ...] = ((0, 100_000), (180, 500_000))
    """(tick, weight in ppm) from that tick on."""
    requests_per_s: float = 20.0
    error_rate: float = 0.005
    slow_rate: float = 0.05
    diurnal: bool = False
    callers: int = 0
    """0: requests are routed one by one. Else this many callers stick to an arm."""
    bad_callers: int = 0
    """0: all callers fail alike. Else these cause all errors."""
    proven: bool = False
    """Weights move on when the candidate is shown not to be twice as bad, instead of by the clock."""
    effect: float = 1.0
    effect_from: int = 0

    def weights(self) -> Array:
        """The candidate's weight in ppm at each tick, where the clock decides."""
        starts, ppm = (np.array(column) for column in zip(*self.steps, strict=True))
        weights: Array = ppm[np.searchsorted(starts, np.arange(TICKS), side="right") - 1]
        return weights

    def shape(self) -> Array:
        """Seconds of average traffic in each tick: sums to the hour."""
        day: Array = (
            1 + 0.8 * np.sin(np.arange(TICKS) / TICKS * 2 * np.pi) if self.diurnal else np.ones(TICKS)
        )
        share: Array = day / day.sum()
        return TICK_S * TICKS * share

    def strain(self) -> Array:
        """By how much errors are more frequent at each tick: with the traffic's own rhythm, four to one."""
        return 1 + 0.6 * np.cos(np.arange(TICKS) / TICKS * 4 * np.pi) if self.diurnal else np.ones(TICKS)

    def effects(self) -> Array:
        """By how much the candidate is worse at each tick."""
        return np.where(np.arange(TICKS) >= self.effect_from, self.effect, 1.0)


NULLS = (
    Scenario(name="requests alike"),
    Scenario(name="errors rare (0.05 %)", error_rate=0.0005),
    Scenario(name="1 request a second", requests_per_s=1.0),
    Scenario(name="day and night", diurnal=True),
    Scenario(name="ramp 10-50-100", steps=((0, 100_000), (120, 500_000), (240, 1_000_000))),
    Scenario(name="2000 callers, heavy-tailed", callers=2_000),
    Scenario(name="20 bad callers of 2000", callers=2_000, bad_callers=20),
    Scenario(name="3 bad callers of 2000", callers=2_000, bad_callers=3),
    Scenario(name="callers, day and night", callers=2_000, diurnal=True),
    Scenario(name="callers, ramp 10-50-100", callers=2_000,
             steps=((0, 100_000), (120, 500_000), (240, 1_000_000))),
    Scenario(name="callers, advance on proof", callers=2_000, error_rate=0.02, proven=True,
             steps=((0, 100_000), (30, 500_000), (60, 1_000_000))),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class World:
    """What was counted, each of shape (TICKS, runs): requests and errors per arm; first events of callers per
    arm.
    """

    weight_ppm: Array
    n1: Array
    n0: Array
    errors1: Array
    errors0: Array
    slow1: Array
    slow0: Array
    first: dict[str, tuple[Array, Array]] = field(default_factory=dict)
    """By metric, where callers stick: callers first seen with the event, on the candidate and on stable."""

    def columns(self, metric: str, unit: Unit) -> list[Array]:
        """The columns of `judge` for one metric."""
        if unit is Unit.CALLER:
            return [*self.first[metric], self.weight_ppm]
        one, zero = (self.errors1, self.errors0) if metric == "errors" else (self.slow1, self.slow0)
        return [one, zero, self.n1, self.n0]


def requests_world(scenario: Scenario, runs: int, rng: np.random.Generator) -> World:
    """Requests routed one by one: everything is a Poisson draw per tick and arm."""
    weight_ppm = np.repeat(scenario.weights()[:, None], runs, axis=1)
    w = weight_ppm / sequential.WHOLE_PPM
    traffic = (scenario.requests_per_s * scenario.shape())[:, None]
    n1, n0 = rng.poisson(traffic * w), rng.poisson(traffic * (1 - w))
    strain, effects = scenario.strain()[:, None], scenario.effects()[:, None]
    error, slow = scenario.error_rate * strain, scenario.slow_rate * strain
    return World(
        weight_ppm=weight_ppm,
        n1=n1,
        n0=n0,
        errors1=rng.binomial(n1, np.minimum(1, error * effects)),
        errors0=rng.binomial(n0, error),
        slow1=rng.binomial(n1, np.minimum(1, slow * effects)),
        slow0=rng.binomial(n0, slow),
        first={"share": (n1, n0)},
    )


def callers_world(scenario: Scenario, runs: int, rng: np.random.Generator) -> World:
    """Callers stick to the arm that their hash gives them; their activity is log-normal, so few of them make
    most of it.

    Each caller's events of one kind form a Poisson stream. Under an effect the stream runs at the higher rate
    and stable's surplus is struck out.
    """
    count = scenario.callers
    activity = rng.lognormal(0.0, 1.5, (runs, count))
    activity *= scenario.requests_per_s / activity.sum(axis=1, keepdims=True)
    bucket = rng.integers(0, sequential.WHOLE_PPM, (runs, count))
    fails = np.full((runs, count), scenario.error_rate)
    if scenario.bad_callers:
        fails[:] = 0.0
        fails[:, : scenario.bad_callers] = 1.0
        # The total stays what it is elsewhere, however idle the few bad callers happen to be.
        total = (activity * fails).sum(axis=1, keepdims=True)
        fails *= scenario.error_rate * scenario.requests_per_s / total
    errors = _events(scenario, activity * fails, bucket, rng, strained=True)
    slow = _events(scenario, activity * scenario.slow_rate, bucket, rng, strained=True, first_only=True)
    seen = _events(scenario, activity, bucket, rng, strained=False, first_only=True)
    first_errors = _first(errors, count)
    weight_ppm = np.repeat(scenario.weights()[:, None], runs, axis=1)
    if scenario.proven:
        weight_ppm = _proven_weights(scenario, first_errors, bucket, runs)
    errors1, errors0 = _by_arm(errors, bucket, weight_ppm)
    n1, n0 = _requests(scenario, activity, bucket, weight_ppm, rng)
    slow1, slow0 = _by_arm(slow, bucket, weight_ppm)
    return World(
        weight_ppm=weight_ppm,
        n1=np.maximum(n1, errors1),
        n0=np.maximum(n0, errors0),
        errors1=errors1,
        errors0=errors0,
        slow1=slow1,
        slow0=slow0,
        first={
            "errors": _by_arm(first_errors, bucket, weight_ppm),
            "slow": (slow1, slow0),
            "share": _by_arm(seen, bucket, weight_ppm),
        },
    )


Events = tuple[Array, Array, Array]
"""Parallel arrays: tick, run, caller."""


def _events(
    scenario: Scenario,
    rate: Array,
    bucket: Array,
    rng: np.random.Generator,
    *,
    strained: bool,
    first_only: bool = False,
) -> Events:
    """Events of all callers (or the first of each), given each caller's rate (runs, callers) per second."""
    clock = scenario.shape() * (scenario.strain() if strained else 1.0)
    effect = scenario.effect if strained else 1.0
    ends = np.cumsum(clock)
    if first_only and effect == 1.0:
        when = rng.exponential(1.0, rate.shape) / rate
        run, caller = np.nonzero(when < ends[-1])
        return np.searchsorted(ends, when[run, caller], side="right"), run, caller
    totals = rng.poisson(rate.sum(axis=1) * ends[-1] * effect)
    run = np.repeat(np.arange(len(rate)), totals)
    share = np.cumsum(rate / rate.sum(axis=1, keepdims=True), axis=1) + np.arange(len(rate))[:, None]
    caller = np.searchsorted(share.ravel(), run + rng.random(len(run)), side="right") - run * rate.shape[1]
    caller = np.clip(caller, 0, rate.shape[1] - 1)
    tick = np.minimum(np.searchsorted(ends, rng.random(len(run)) * ends[-1], side="right"), TICKS - 1)
    if effect != 1.0:
        struck = bucket[run, caller] >= scenario.weights()[tick]
        struck |= tick < scenario.effect_from
        keep = ~struck | (rng.random(len(run)) < 1 / effect)
        tick, run, caller = tick[keep], run[keep], caller[keep]
    events = (tick, run, caller)
    return _first(events, rate.shape[1]) if first_only else events


def _first(events: Events, callers: int) -> Events:
    """The first event of each caller of each run."""
    tick, run, caller = events
    order = np.lexsort((tick, run * callers + caller))
    ids = (run * callers + caller)[order]
    earliest = order[np.concatenate([[True], ids[1:] != ids[:-1]])] if len(ids) else order
    return tick[earliest], run[earliest], caller[earliest]


def _by_arm(events: Events, bucket: Array, weight_ppm: Array) -> tuple[Array, Array]:
    """Counts per tick and run on the candidate and on stable; the routing rule is the gateway's: bucket <
    weight.
    """
    tick, run, caller = events
    on_candidate = bucket[run, caller] < weight_ppm[tick, run]
    cell = tick * weight_ppm.shape[1] + run
    one = np.bincount(cell[on_candidate], minlength=weight_ppm.size).reshape(weight_ppm.shape)
    zero = np.bincount(cell[~on_candidate], minlength=weight_ppm.size).reshape(weight_ppm.shape)
    return one, zero


def _requests(
    scenario: Scenario, activity: Array, bucket: Array, weight_ppm: Array, rng: np.random.Generator
) -> tuple[Array, Array]:
    """Requests per tick and arm: each arm's callers bring their own traffic."""
    rate1 = np.zeros(weight_ppm.shape)
    for ppm in np.unique(weight_ppm):
        at_weight = (activity * (bucket < ppm)).sum(axis=1)
        rate1 = np.where(weight_ppm == ppm, at_weight, rate1)
    clock = scenario.shape()[:, None]
    rest = np.maximum(0.0, activity.sum(axis=1) - rate1)
    return rng.poisson(rate1 * clock), rng.poisson(rest * clock)


def _proven_weights(scenario: Scenario, first_errors: Events, bucket: Array, runs: int) -> Array:
    """Weights that depend on the data: a step ends when its time is up and the candidate is shown fit."""
    spec = sequential.pass_spec(bound=2.0)
    twin = Many(spec, runs)
    tick, run, caller = first_errors
    by_tick = np.argsort(tick, kind="stable")
    bounds = np.searchsorted(tick[by_tick], np.arange(TICKS + 1))
    plan = np.array([ppm for _, ppm in scenario.steps])
    dwell = scenario.steps[1][0]
    step, since = np.zeros(runs, dtype=np.int64), np.zeros(runs, dtype=np.int64)
    weight_ppm = np.empty((TICKS, runs), dtype=np.int64)
    for t in range(TICKS):
        weight_ppm[t] = plan[step]
        here = by_tick[bounds[t] : bounds[t + 1]]
        on_candidate = bucket[run[here], caller[here]] < weight_ppm[t, run[here]]
        x = np.bincount(run[here][on_candidate], minlength=runs)
        y = np.bincount(run[here][~on_candidate], minlength=runs)
        twin.update(*log_e_callers(spec, x, y, weight_ppm[t]))
        since += 1
        ready = (since >= dwell) & (twin.log_v >= sequential.log_threshold(BETA)) & (step < len(plan) - 1)
        step, since = step + ready, np.where(ready, 0, since)
    return weight_ppm


# --------------------------------------------------------------------------- the tests that others use


def _minutes(column: Array) -> Array:
    """Sums over the six ticks of each minute."""
    minutes: Array = column.reshape(TICKS // 6, 6, -1).sum(axis=1)
    return minutes


def threshold_fires(world: World) -> Array:
    """The first minute (or -1) at which the candidate's error rate was above 1 % in a fourth minute."""
    bad = _minutes(world.errors1) > 0.01 * _minutes(world.n1)
    return first_step(np.cumsum(bad, axis=0) > 3)


def z_test_fires(world: World) -> Array:
    """The first minute (or -1) at which a one-sided two-proportion z-test of all data so far is below 1 %."""
    x, y, n1, n0 = (
        np.cumsum(_minutes(c), axis=0) for c in (world.errors1, world.errors0, world.n1, world.n0)
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        pooled = (x + y) / (n1 + n0)
        z = (x / n1 - y / n0) / np.sqrt(pooled * (1 - pooled) * (1 / n1 + 1 / n0))
    return first_step((z > 2.326) & (x + y >= 5))


def mann_whitney_fires(world: World, scenario: Scenario, rng: np.random.Generator) -> Array:
    """The first minute (or -1) at which Mann and Whitney's test on the p95 of each minute is below 1 %,
    one-sided.

    The p95s are drawn from their exact law given the slow answers that were counted, as ranks of a uniform
    sample: the test looks at ranks only, so any distribution of latencies gives the same answers.
    """
    one = _p95(_minutes(world.n1), _minutes(world.slow1), scenario.slow_rate, rng)
    zero = _p95(_minutes(world.n0), _minutes(world.slow0), scenario.slow_rate, rng)
    fires = np.zeros(one.shape, dtype=bool)
    wins = np.zeros(one.shape[1])
    for m in range(len(one)):
        wins += (one[m] > zero[: m + 1]).sum(axis=0) + (one[:m] > zero[m]).sum(axis=0)
        size = m + 1
        if size >= 5:
            z = (wins - size * size / 2) / math.sqrt(size * size * (2 * size + 1) / 12)
            fires[m] = z > 2.326
    return first_step(fires)


def _p95(n: Array, slow: Array, slow_rate: float, rng: np.random.Generator) -> Array:
    """The order statistic of rank 0.95 n of n uniform draws of which `slow` lie above 1 - slow_rate."""
    rank = np.maximum(1, np.ceil(0.95 * n)).astype(np.int64)
    fast = n - slow
    below = rng.beta(np.maximum(1, rank), np.maximum(1, fast - rank + 1)) * (1 - slow_rate)
    above = 1 - slow_rate + rng.beta(np.maximum(1, rank - fast), np.maximum(1, n - rank + 1)) * slow_rate
    return np.where(rank <= fast, below, above)


def first_step(fires: Array) -> Array:
    """The first step (or -1) at which each run fired, from an array of shape (steps, runs)."""
    return np.where(fires.any(axis=0), fires.argmax(axis=0), -1)
