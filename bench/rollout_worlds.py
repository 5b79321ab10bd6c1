"""Simulated traffic of rollouts: who asks, on which version, and what is counted of it.

It draws counts and judges nothing by the product's own statistics, with one exception: where a plan advances
on proof, the weights depend on the product's proof, and so does the data.

Callers stick to an arm by their hash, their activity is log-normal, and each one's requests, errors and
labels are Poisson streams. So the first event of each caller is one exponential draw, and what comes after
the first ones is Poisson given when those came: nothing is drawn request by request, and the law is the same.
A label that comes late is a stream as well, moved in time (the displacement theorem).
"""

from dataclasses import dataclass, field

import numpy as np
from scipy.special import ndtr

from bench.sequential_twin import Array
from modelkeep.core import sequential
from modelkeep.core.mixing import log_threshold
from modelkeep.core.sequential import Unit
from modelkeep.core.sequential_many import Many, log_e_callers

TICK_S = 10
TICKS = 360
"""An hour."""
BETA = 0.05
"""How often an unfit candidate may be shown fit."""
ACTIVITY_SIGMA = 1.5
"""Of the logarithm of callers' activity: one in a hundred asks 33 times as often as the one in the middle."""
LABELLED = 0.2
"""The share of requests whose truth is ever told."""
WRONG_AFTER_S = 300.0
RIGHT_AFTER_S = 1_200.0
"""Half of the labels of wrong (right) predictions come within: complaints are quicker than confirmations."""
DELAY_SIGMA = 1.0
"""Of the logarithm of a label's delay: of the wrong ones one in 40 takes more than 35 minutes."""

RAMP = ((0, 100_000), (120, 500_000), (240, 1_000_000))


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """One kind of traffic. `effect` multiplies the candidate's errors (and slow answers, and wrong
    predictions) from `effect_from` on.
    """

    name: str
    steps: tuple[tuple[int, int], ...] = ((0, 100_000), (180, 500_000))
    """(tick, weight in ppm) from that tick on."""
    requests_per_s: float = 20.0
    error_rate: float = 0.005
    slow_rate: float = 0.05
    wrong_rate: float = 0.05
    diurnal: bool = False
    callers: int = 0
    """0: requests are routed one by one. Else this many callers stick to an arm."""
    bad_callers: int = 0
    """0: all callers fail alike. Else these cause all errors, so many others all slow answers, and again so
    many all wrong predictions, each with every request."""
    labels: bool = False
    """Whether the truth of some predictions is told, late."""
    proven: bool = False
    """Weights move on when the candidate is shown not to be twice as bad, instead of by the clock."""
    effect: float = 1.0
    effect_from: int = 0

    def plan(self) -> Array:
        """The weight of each step in ppm."""
        return np.array([ppm for _, ppm in self.steps])

    def step_at(self) -> Array:
        """The step of each tick, where the clock decides."""
        starts = np.array([start for start, _ in self.steps])
        step: Array = np.searchsorted(starts, np.arange(TICKS), side="right") - 1
        return step

    def weights(self) -> Array:
        """The candidate's weight in ppm at each tick, where the clock decides."""
        weights: Array = self.plan()[self.step_at()]
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
    Scenario(name="ramp 10-50-100", steps=RAMP),
    Scenario(name="2000 callers, heavy-tailed", callers=2_000, labels=True),
    Scenario(name="20 bad callers of 2000", callers=2_000, bad_callers=20, labels=True),
    Scenario(name="3 bad callers of 2000", callers=2_000, bad_callers=3, labels=True),
    Scenario(name="callers, day and night", callers=2_000, diurnal=True, labels=True),
    Scenario(name="callers, ramp 10-50-100", callers=2_000, steps=RAMP, labels=True),
    Scenario(name="callers, advance on proof", callers=2_000, error_rate=0.02, proven=True,
             steps=((0, 100_000), (30, 500_000), (60, 1_000_000))),
    Scenario(name="all of it: 20 bad, day and night, ramp", callers=2_000, bad_callers=20, diurnal=True,
             steps=RAMP, labels=True),
)  # fmt: skip
"""Healthy candidates. Where there are labels, they are late."""


@dataclass(frozen=True, kw_only=True)
class World:
    """What was counted, each of shape (TICKS, runs), the candidate before stable.

    `totals` are, by metric, events and what they are a part of (requests; for quality the labels of that
    tick). `first` are, by metric, callers first seen with the event. `labels` are the columns of the quality
    process: labels are judged by the weight under which they were predicted, so each tick has a row for each
    step. `exposed` are callers who meet the candidate for the first time.
    """

    weight_ppm: Array
    n1: Array
    n0: Array
    totals: dict[str, tuple[Array, Array, Array, Array]]
    first: dict[str, tuple[Array, Array]] = field(default_factory=dict)
    labels: list[Array] = field(default_factory=list)
    exposed: Array | None = None

    def columns(self, metric: str, unit: Unit) -> list[Array]:
        """The columns of `judge` for one metric."""
        if metric == "quality":
            return self.labels
        if unit is Unit.CALLER:
            return [*self.first[metric], self.weight_ppm]
        return list(self.totals[metric])


def world(scenario: Scenario, runs: int, rng: np.random.Generator, *, exposed: bool = False) -> World:
    """Draw what is counted in `runs` rollouts; whom the candidate meets as well where that is asked for."""
    if scenario.callers:
        return callers_world(scenario, runs, rng, exposed=exposed)
    return requests_world(scenario, runs, rng)


def requests_world(scenario: Scenario, runs: int, rng: np.random.Generator) -> World:
    """Requests routed one by one: everything is a Poisson draw per tick and arm."""
    weight_ppm = np.repeat(scenario.weights()[:, None], runs, axis=1)
    w = weight_ppm / sequential.WHOLE_PPM
    traffic = (scenario.requests_per_s * scenario.shape())[:, None]
    n1, n0 = rng.poisson(traffic * w), rng.poisson(traffic * (1 - w))
    strain, effects = scenario.strain()[:, None], scenario.effects()[:, None]
    error, slow = scenario.error_rate * strain, scenario.slow_rate * strain
    errors1 = rng.binomial(n1, np.minimum(1, error * effects))
    errors0 = rng.binomial(n0, error)
    slow1 = rng.binomial(n1, np.minimum(1, slow * effects))
    slow0 = rng.binomial(n0, slow)
    return World(
        weight_ppm=weight_ppm,
        n1=n1,
        n0=n0,
        totals={"errors": (errors1, errors0, n1, n0), "slow": (slow1, slow0, n1, n0)},
        first={"share": (n1, n0)},
        exposed=n1,
    )


# --------------------------------------------------------------------------- callers


@dataclass(frozen=True, kw_only=True)
class _Firsts:
    """The first event of each caller who has one, in parallel arrays; and, of shape (TICKS, runs, classes),
    how many there are and how many other events follow them."""

    tick: Array
    run: Array
    klass: Array
    counts: Array
    later: Array


class _Crowd:
    """The callers of a row of rollouts. A caller's class is the step with which it comes to the candidate."""

    def __init__(self, scenario: Scenario, runs: int, rng: np.random.Generator) -> None:
        self.rng, self.runs = rng, runs
        plan = scenario.plan()
        self.classes = len(plan) + 1
        shape = (runs, scenario.callers)
        activity = rng.lognormal(0.0, ACTIVITY_SIGMA, shape)
        rates = {
            "errors": scenario.error_rate,
            "slow": scenario.slow_rate,
            "quality": scenario.wrong_rate,
        }
        # However idle the few bad callers happen to be, together they make the share that is asked for.
        bad = {
            name: slice(i * scenario.bad_callers, (i + 1) * scenario.bad_callers)
            for i, name in enumerate(rates)
        }
        share_of_bad = sum(rates.values()) if scenario.bad_callers else 0.0
        rest = slice(len(rates) * scenario.bad_callers, None)
        activity[:, rest] *= (1 - share_of_bad) / activity[:, rest].sum(axis=1, keepdims=True)
        if scenario.bad_callers:
            for name, those in bad.items():
                activity[:, those] *= rates[name] / activity[:, those].sum(axis=1, keepdims=True)
        self.activity = activity * scenario.requests_per_s
        bucket = rng.integers(0, sequential.WHOLE_PPM, shape, dtype=np.int32)
        self.klass = sum((bucket >= ppm).astype(np.int8) for ppm in plan)
        self._rates, self._bad = rates, bad if scenario.bad_callers else None

    def rate(self, metric: str) -> Array:
        """Each caller's events of a metric a second, of shape (runs, callers)."""
        if self._bad is None:
            return self.activity * self._rates[metric]
        rate = np.zeros_like(self.activity)
        rate[:, self._bad[metric]] = self.activity[:, self._bad[metric]]
        return rate

    def by_class(self, rate: Array) -> Array:
        """Sums of shape (runs, classes)."""
        return np.stack([(rate * (self.klass == k)).sum(axis=1) for k in range(self.classes)], axis=1)

    def firsts(self, rate: Array, clocks: Array, *, later: bool = True) -> _Firsts:
        """First events, of callers with these rates."""
        return _first_events(rate, self.klass, clocks, self.rng, later=later)


def _first_events(
    rate: Array, klass_of: Array, clocks: Array, rng: np.random.Generator, *, later: bool = True
) -> _Firsts:
    """First events of callers (runs, callers); without the `later` ones where nobody asks for them.
    `clocks` (classes, TICKS) are seconds of stream in each tick."""
    runs, classes = len(rate), len(clocks)
    ends = np.cumsum(clocks, axis=1)
    with np.errstate(divide="ignore"):
        when = rng.standard_exponential(rate.shape) / rate
    run, caller = np.nonzero(when < ends[:, -1].max())
    when, rate, klass = when[run, caller], rate[run, caller], klass_of[run, caller]
    tick = np.empty(len(run), dtype=np.int64)
    for k, end in enumerate(ends):
        mine = klass == k
        tick[mine] = np.searchsorted(end, when[mine], side="right")
    kept = tick < TICKS
    tick, run, klass = tick[kept], run[kept], klass[kept]
    when, rate = when[kept], rate[kept]
    cell = (tick * runs + run) * classes + klass

    def summed(weights: Array | None = None) -> Array:
        sums: Array = np.bincount(cell, weights=weights, minlength=TICKS * runs * classes)
        return sums.reshape(TICKS, runs, classes)

    counts = summed()
    if not later:
        return _Firsts(tick=tick, run=run, klass=klass, counts=counts, later=np.zeros_like(counts))
    begun = summed(rate)
    before = np.cumsum(begun, axis=0) - begun
    meant = before * clocks.T[:, None, :] + summed(rate * (ends[klass, tick] - when))
    follow = rng.poisson(np.maximum(0, meant))
    return _Firsts(tick=tick, run=run, klass=klass, counts=counts, later=follow)


def _arms(counts: Array, step: Array) -> tuple[Array, Array]:
    """Counts per class as counts per arm: a class is on the candidate from its own step on."""
    upto = np.cumsum(counts, axis=2)
    one: Array = np.take_along_axis(upto, step[:, :, None], axis=2)[:, :, 0]
    return one, upto[:, :, -1] - one


def callers_world(scenario: Scenario, runs: int, rng: np.random.Generator, *, exposed: bool = False) -> World:
    """Callers stick to the arm that their hash gives them; few of them make most of the traffic."""
    crowd = _Crowd(scenario, runs, rng)
    shape, strained = scenario.shape(), scenario.shape() * scenario.strain()
    step_at = scenario.step_at()
    on = np.arange(crowd.classes)[:, None] <= step_at
    trouble = strained * np.where(on, scenario.effects(), 1.0)
    step = np.repeat(step_at[:, None], runs, axis=1)
    found = {"errors": crowd.firsts(crowd.rate("errors"), trouble)}
    if scenario.proven:
        step = _proven_steps(scenario, found["errors"].counts, runs)
    found["slow"] = crowd.firsts(crowd.rate("slow"), trouble)
    plain = np.repeat(shape[None], crowd.classes, axis=0)
    seen = crowd.firsts(crowd.activity, plain, later=False)
    met = crowd.firsts(crowd.activity, plain * on, later=False) if exposed else None
    n1, n0 = _arms(rng.poisson(crowd.by_class(crowd.activity) * shape[:, None, None]), step)
    totals = {}
    for name, firsts in found.items():
        one, zero = _arms(firsts.counts + firsts.later, step)
        totals[name] = (one, zero, np.maximum(n1, one), np.maximum(n0, zero))
    first = {name: _arms(firsts.counts, step) for name, firsts in found.items()}
    labels: list[Array] = []
    if scenario.labels:
        labels, totals["quality"] = _labels(scenario, crowd, on)
    return World(
        weight_ppm=scenario.plan()[step],
        n1=n1,
        n0=n0,
        totals=totals,
        first=first | {"share": _arms(seen.counts, step)},
        labels=labels,
        exposed=met.counts.sum(axis=2) if met is not None else None,
    )


def _delays(median_s: float) -> Array:
    """The chance that a label is late by each number of ticks."""
    ends = np.arange(1, TICKS + 1) * TICK_S / median_s
    reached = ndtr(np.log(ends) / DELAY_SIGMA)
    return np.diff(reached, prepend=0.0)


def _arrivals(clocks: Array, delays: Array, step_at: Array, steps: int) -> Array:
    """Seconds of stream whose labels come in each tick, by the step of the prediction: of shape (classes,
    steps, TICKS)."""
    predicted = clocks[:, None, :] * (step_at == np.arange(steps)[:, None])
    late = np.zeros((TICKS, TICKS))
    for at in range(TICKS):
        late[at, at:] = delays[: TICKS - at]
    come: Array = predicted @ late
    return come


def _labels(
    scenario: Scenario, crowd: _Crowd, on: Array
) -> tuple[list[Array], tuple[Array, Array, Array, Array]]:
    """The columns of the quality process, and wrong labels and all labels by the tick in which they come.

    A caller counts once: with the first wrong label that comes, on the arm and with the weight under which
    that was predicted.
    """
    rng, steps, step_at = crowd.rng, len(scenario.steps), scenario.step_at()
    clocks = LABELLED * scenario.shape() * scenario.strain() * np.where(on, scenario.effects(), 1.0)
    come = _arrivals(clocks, _delays(WRONG_AFTER_S), step_at, steps)
    wrong = crowd.firsts(crowd.rate("quality"), come.sum(axis=1))
    with np.errstate(invalid="ignore"):
        chance = np.nan_to_num(come / come.sum(axis=1, keepdims=True))
    upto = np.cumsum(chance, axis=1)[wrong.klass, :, wrong.tick]
    step = np.minimum((rng.random(len(wrong.tick))[:, None] > upto).sum(axis=1), steps - 1)
    mine = wrong.klass <= step
    cell = (wrong.tick * steps + step) * crowd.runs + wrong.run
    size = TICKS * steps * crowd.runs
    x, y = (
        np.bincount(cell[those], minlength=size).reshape(TICKS * steps, crowd.runs) for those in (mine, ~mine)
    )
    weight_ppm = np.repeat(np.tile(scenario.plan(), TICKS)[:, None], crowd.runs, axis=1)

    def split(counts: Array, chance: Array) -> tuple[Array, Array]:
        """By arm, given the chance of each step for each class and tick of arrival."""
        beyond = np.stack([chance[k, k:].sum(axis=0) for k in range(crowd.classes)], axis=1)
        one = rng.binomial(counts, np.minimum(1, beyond[:, None, :])).sum(axis=2)
        return one, counts.sum(axis=2) - one

    later1, later0 = split(wrong.later, chance)
    wrong1 = later1 + x.reshape(TICKS, steps, -1).sum(axis=1)
    wrong0 = later0 + y.reshape(TICKS, steps, -1).sum(axis=1)
    plain = np.repeat(LABELLED * scenario.shape()[None], crowd.classes, axis=0)
    settled = _arrivals(plain, _delays(RIGHT_AFTER_S), step_at, steps)
    right_rate = crowd.by_class(crowd.activity) * (1 - scenario.wrong_rate)
    right = rng.poisson(right_rate * settled.sum(axis=1).T[:, None, :])
    with np.errstate(invalid="ignore"):
        right1, right0 = split(right, np.nan_to_num(settled / settled.sum(axis=1, keepdims=True)))
    return [x, y, weight_ppm], (wrong1, wrong0, wrong1 + right1, wrong0 + right0)


def _proven_steps(scenario: Scenario, first_errors: Array, runs: int) -> Array:
    """Steps that depend on the data: one ends when its time is up and the candidate is shown fit."""
    spec = sequential.pass_spec(bound=2.0)
    twin = Many(spec, runs)
    plan, dwell = scenario.plan(), scenario.steps[1][0]
    upto = np.cumsum(first_errors, axis=2)
    now, since = np.zeros(runs, dtype=np.int64), np.zeros(runs, dtype=np.int64)
    step = np.empty((TICKS, runs), dtype=np.int64)
    for t in range(TICKS):
        step[t] = now
        x = np.take_along_axis(upto[t], now[:, None], axis=1)[:, 0]
        twin.update(*log_e_callers(spec, x, upto[t, :, -1] - x, plan[now]))
        since += 1
        ready = (since >= dwell) & (twin.log_v >= log_threshold(BETA)) & (now < len(plan) - 1)
        now, since = now + ready, np.where(ready, 0, since)
    return step


# --------------------------------------------------------------------------- pairs of a shadow


@dataclass(frozen=True, kw_only=True)
class PairScenario:
    """A shadow that gets a copy of each request. An odd pair is one in which only one of the two did badly;
    `effect` multiplies those in which it was the shadow."""

    name: str
    odd_rate: float = 0.0025
    """Of odd pairs on either side, where the versions are alike."""
    both_rate: float = 0.0025
    """Of pairs in which both did badly."""
    diurnal: bool = False
    odd_callers: int = 0
    """0: all callers have odd pairs alike. Else these have them all, with all of their requests that are
    not answered alike."""
    repeats: bool = False
    """Whether a caller's odd pairs all lie on one side, which a coin has chosen for it."""
    effect: float = 1.0

    def clock(self) -> Array:
        """Seconds of average traffic in each tick."""
        return Scenario(name=self.name, diurnal=self.diurnal).shape()


PAIR_NULLS = (
    PairScenario(name="all callers alike"),
    PairScenario(name="day and night", diurnal=True),
    PairScenario(name="all of it: 20 odd callers, day and night", diurnal=True, odd_callers=20),
)
PAIR_REPEATS = PairScenario(name="20 odd callers, each always odd on one side", odd_callers=20, repeats=True)
"""Not promised: on this very traffic one version does fail more requests."""
PAIRS_PER_S = 20.0
PAIR_CALLERS = 2_000


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Per tick and run: pairs, those odd on the shadow's and on stable's side, those in which both did badly,
    and callers by the side of their first odd pair."""

    n: Array
    shadow: Array
    stable: Array
    both: Array
    first: tuple[Array, Array]


def pairs_world(scenario: PairScenario, runs: int, rng: np.random.Generator) -> Pairs:
    """Pairs of answers to the same requests of callers with log-normal activity."""
    count = scenario.odd_callers or PAIR_CALLERS
    activity = rng.lognormal(0.0, ACTIVITY_SIGMA, (runs, count))
    activity *= 2 * scenario.odd_rate * PAIRS_PER_S / activity.sum(axis=1, keepdims=True)
    clock = scenario.clock()
    side = (rng.random(activity.shape) < 0.5).astype(np.int8) if scenario.repeats else np.int8(0)
    classes = 2 if scenario.repeats else 1
    found = _first_events(
        activity * (1 + scenario.effect) / 2,
        np.broadcast_to(side, activity.shape),
        np.repeat(clock[None], classes, axis=0),
        rng,
    )

    def split(counts: Array) -> tuple[Array, Array]:
        """On the shadow's side and on stable's."""
        if scenario.repeats:
            return counts[:, :, 1], counts[:, :, 0]
        shadows = rng.binomial(counts[:, :, 0], scenario.effect / (1 + scenario.effect))
        return shadows, counts[:, :, 0] - shadows

    first, later = split(found.counts), split(found.later)
    return Pairs(
        n=rng.poisson(PAIRS_PER_S * clock[:, None], (TICKS, runs)),
        shadow=first[0] + later[0],
        stable=first[1] + later[1],
        both=rng.poisson(PAIRS_PER_S * scenario.both_rate * clock[:, None], (TICKS, runs)),
        first=first,
    )
