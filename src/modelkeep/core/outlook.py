"""What a plan would do with given traffic: many simulated rollouts of it, and what became of them.

The rollouts run by the plan's own tests and limits, over counts drawn at random: new callers arrive as a
Poisson stream, each is failing or slow independently of the others, and a worse candidate's callers fail at
higher odds. Not simulated: guards, callers whose trouble begins later than their arrival, traffic that
changes, gateways that lag. Where a person has to step on, one is there at once. The formula that needs no
simulation is in `forecast`; real rollouts are judged in `judgement`.

Sources: the law of small counts (a Poisson stream split by independent marks is two Poisson streams); the
bound of a share that was never seen, 1 - error^(1/runs) (Clopper and Pearson 1934).
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from enum import IntEnum

import numpy as np
from msgspec import Struct, structs

from modelkeep.core import errors
from modelkeep.core.evidence import BETTER, Specs
from modelkeep.core.forecast import (
    CALLERS_MAX,
    CONFIDENCE,
    REGRESSIONS,
    RUNS,
    RUNS_MAX,
    SEED_MAX,
    Flow,
    Healthy,
    Outlook,
    Regression,
    Step,
    forecast,
)
from modelkeep.core.judgement import omega
from modelkeep.core.mixing import log_threshold
from modelkeep.core.plan import Goal, OnInconclusive, Plan, Strategy, apart
from modelkeep.core.sequential import ODDS_MAX, WHOLE_PPM, scaled_rate
from modelkeep.core.sequential_many import Array, Many, log_e_callers, log_e_trials

FINENESS = 60
"""A simulated tick lasts a second, or this part of the time that has passed: fine where it matters, and few
for plans of weeks."""


class End(IntEnum):
    """How a simulated rollout ended."""

    OPEN = 0
    DONE = 1
    TAKEN_BACK = 2
    INCONCLUSIVE = 3


class Runs(Struct, frozen=True):
    """What became of simulated rollouts, an entry each: how it ended and when, when it had all of the traffic
    (infinite: never), and the callers whom the candidate answered, and failed. `better` is the most that an
    A/B test's evidence for the candidate came to, as log V; nothing elsewhere."""

    ends: Array
    ended_s: Array
    full_s: Array
    callers: Array
    failed: Array
    better: Array


def between(plan: Plan, flow: Flow, place: int) -> tuple[Plan, Flow]:
    """The test of one version of several (0 is the candidate) and stable alone, with the callers of those
    two: given that a caller comes to one of the two, the version's share of both is the chance that it is
    that one, whatever becomes of the others. It is judged under its part of alpha, as `plan.apart` has it.
    A plan of one version is left as it is.
    """
    if not plan.versions:
        return plan, flow
    shares = (plan.steps[0].weight_ppm, *(variant.weight_ppm for variant in plan.versions))
    both = shares[place] + WHOLE_PPM - sum(shares)
    step = structs.replace(plan.steps[0], weight_ppm=max(1, shares[place] * WHOLE_PPM // both))
    alone = structs.replace(apart(plan), versions=(), steps=(step,))
    return alone, structs.replace(flow, callers_per_s=flow.callers_per_s * both / WHOLE_PPM)


def outlook(plan: Plan, flow: Flow, *, seed: int, runs: int = RUNS) -> Outlook:
    """What to expect of a plan with such traffic; of a test of several versions, of its candidate beside
    stable. The same arguments give the same answer.

    Raises:
        InvalidPlan: a rate, the seed or the number of runs is out of range.
    """
    _check(flow, seed, runs)
    if not plan.steps:
        raise errors.InvalidPlan("A shadow moves no traffic, so there is nothing to forecast of it.")
    plan, flow = between(plan, flow, 0)
    healthy = simulate(plan, flow, odds=1.0, seed=seed, runs=runs)
    return Outlook(
        runs=runs,
        seed=seed,
        horizon_s=horizon_s(plan),
        error=error_of(runs),
        healthy=healthy_of(plan, healthy),
        regressions=tuple(
            regression_of(plan, flow, odds, simulate(plan, flow, odds=odds, seed=seed, runs=runs))
            for odds in REGRESSIONS
        ),
    )


def error_of(runs: int) -> float:
    """By how much a share of so many runs may be off, 95 of 100 times: the normal law at a share of a half,
    where it is the most."""
    return 1.96 * 0.5 / math.sqrt(runs)


def simulate(plan: Plan, flow: Flow, *, odds: float, seed: int, runs: int, slow_odds: float = 1.0) -> Runs:
    """Rollouts of a plan whose candidate's callers fail at `odds` times stable's odds, up to the sum of the
    plan's longest times.

    Args:
        slow_odds: the same of callers who are answered slowly.

    Raises:
        InvalidPlan: a rate, the seed or the number of runs is out of range.
    """
    _check(flow, seed, runs)
    if not all(1 / ODDS_MAX <= each <= ODDS_MAX for each in (odds, slow_odds)):
        raise errors.InvalidPlan(f"The odds ratio {odds} is out of range; give one like 2.")
    chance = np.random.default_rng([seed, *str(odds).encode()])
    return lead(_Drawn(plan, flow, (odds, slow_odds), runs, chance), horizon_s(plan))


def lead(world: "World", until_s: float) -> Runs:
    """Let rollouts run to their ends, or until there is nothing more to see."""
    now = before = before_steps_s(world.plan)
    while now < until_s and world.open.any():
        lasts = max(1.0, (now - before) / FINENESS)
        now += lasts
        world.turn(now, lasts)
    return world.outcome


def before_steps_s(plan: Plan) -> float:
    """How long the candidate has no share: under its preview address, or while copies are compared (which are
    taken to be enough by then)."""
    return plan.preview_s + (plan.shadow_s if plan.steps else 0.0)


def horizon_s(plan: Plan) -> float:
    """How long is simulated: the preview, then the sum of the longest times."""
    return before_steps_s(plan) + math.fsum(step.max_s for step in plan.steps)


class Counts(Struct, frozen=True):
    """Who came in one tick, an entry each for each rollout, on the candidate and on stable: new callers,
    callers with their first error, with their first slow answer, and new callers whose first request
    failed."""

    callers: tuple[Array, Array]
    failing: tuple[Array, Array]
    slow: tuple[Array, Array]
    failed_at_once: tuple[Array, Array]


class World(ABC):
    """A row of rollouts of one plan, and the evidence of each. Who comes is for others to say."""

    def __init__(self, plan: Plan, runs: int) -> None:
        self.plan = plan
        self.weights = np.array([step.weight_ppm for step in plan.steps])
        self.least_s = np.array([step.min_s for step in plan.steps])
        self.most_s = np.array([step.max_s for step in plan.steps])
        self.step = np.zeros(runs, dtype=np.int64)
        self.since_s = np.full(runs, before_steps_s(plan))
        self.ends = np.full(runs, End.OPEN, dtype=np.int64)
        self.ended_s = np.full(runs, np.inf)
        self.full_s = np.where(self.weights[self.step] == WHOLE_PPM, before_steps_s(plan), np.inf)
        self.callers = np.zeros(runs, dtype=np.int64)
        self.callers_before = np.zeros(runs, dtype=np.int64)
        self.failed = np.zeros(runs, dtype=np.int64)
        self.specs = specs = Specs.of(plan)
        self.errors, self.slow, self.shares = (
            Many(spec, runs) for spec in (specs.errors, specs.slow, specs.shares)
        )
        self.no_worse, self.low, self.high = (
            Many(spec, runs) for spec in (specs.no_worse, specs.low_rate, specs.high_rate)
        )
        self.better = Many(BETTER, runs)

    @property
    def open(self) -> Array:
        """Which rollouts are under way."""
        return np.equal(self.ends, End.OPEN)

    @property
    def outcome(self) -> Runs:
        """What has become of them."""
        best = self.better.max_log_v
        return Runs(self.ends, self.ended_s, self.full_s, self.callers, self.failed, best)

    def turn(self, now: float, lasts: float) -> None:
        """One tick: callers come, the evidence grows, and each rollout does what its plan says."""
        self._take(self.come(now, lasts))
        plan = self.plan
        alarm = log_threshold(apart(plan).alpha)
        proof = log_threshold(plan.beta / 2)
        states = {"errors": self.errors, "latency": self.slow, "traffic shares": self.shares}
        against = np.max(
            [
                math.log(share) + states[name].max_log_v
                for name, share in omega(plan).items()
                if name in states
            ],
            axis=0,
        )
        if plan.strategy is not Strategy.ROLLING:
            worse = (against >= alarm) | (self.high.max_log_v >= alarm)
            self._end(self.open & worse, End.TAKEN_BACK, now)
        lasted = now - self.since_s
        shown = (self.callers > 0) & ((self.low.log_v >= proof) | (self.no_worse.log_v >= proof))
        if not plan.strategy.proven:
            shown = np.ones_like(shown)
        if plan.on_inconclusive is OnInconclusive.ADVANCE:
            shown |= (self.callers > self.callers_before) & (lasted >= self.most_s[self.step])
        on = self.open & shown & (lasted >= self.least_s[self.step])
        last = self.step == len(plan.steps) - 1
        self._end(on & last, End.DONE, now)
        onward = on & ~last
        if plan.on_inconclusive is OnInconclusive.ROLLBACK:
            self._end(self.open & ~onward & (lasted >= self.most_s[self.step]), End.INCONCLUSIVE, now)
        self.step[onward] += 1
        self.since_s[onward] = now
        self.callers_before[onward] = self.callers[onward]
        whole = onward & (self.weights[self.step] == WHOLE_PPM)
        self.full_s[whole] = now

    @abstractmethod
    def come(self, now: float, lasts: float) -> Counts:
        """Who comes to the rollouts that are under way, until `now` from `lasts` seconds before."""

    def _take(self, counts: Counts) -> None:
        """Take one tick in."""
        weight, specs = self.weights[self.step], self.specs
        self.callers += counts.callers[0]
        self.failed += counts.failing[0]
        for state, spec, (on_candidate, on_stable) in (
            (self.errors, specs.errors, counts.failing),
            (self.no_worse, specs.no_worse, counts.failed_at_once),
            (self.slow, specs.slow, counts.slow),
            (self.shares, specs.shares, counts.callers),
        ):
            state.update(*log_e_callers(spec, on_candidate, on_stable, weight))
        if specs.tested is not None:
            goal = counts.failing if specs.tested is Goal.ERRORS else counts.slow
            self.better.update(*log_e_callers(BETTER, *goal, weight))
        alone = weight == WHOLE_PPM
        come, first = counts.callers[0], counts.failed_at_once[0]
        self.low.update(*log_e_trials(specs.low_rate, come, first))
        self.high.update(*log_e_trials(specs.high_rate, come * alone, first * alone))

    def _end(self, which: Array, how: End, now: float) -> None:
        self.ends[which] = how
        self.ended_s[which] = now


class _Drawn(World):
    """Callers are drawn at random from a flow; each has its trouble at its first request or never."""

    def __init__(
        self, plan: Plan, flow: Flow, odds: tuple[float, float], runs: int, rng: np.random.Generator
    ) -> None:
        super().__init__(plan, runs)
        self._flow, self._rng = flow, rng
        self._failing = (scaled_rate(flow.failing, odds[0]), flow.failing)
        self._slow = (scaled_rate(flow.slow, odds[1]), flow.slow)

    def come(self, now: float, lasts: float) -> Counts:
        """Draw who comes."""
        flow, rng = self._flow, self._rng
        share = self.weights[self.step] / WHOLE_PPM
        expected = self.open * flow.callers_per_s * lasts
        c, s = rng.poisson(expected * share), rng.poisson(expected * (1 - share))
        x, y = rng.binomial(c, self._failing[0]), rng.binomial(s, self._failing[1])
        at_once = flow.failing_first / flow.failing
        first = rng.binomial(x, at_once), rng.binomial(y, at_once)
        slow = rng.binomial(c, self._slow[0]), rng.binomial(s, self._slow[1])
        return Counts((c, s), (x, y), slow, first)


# -------------------------------------------------------------------------------------------- what came of it


def healthy_of(plan: Plan, found: Runs) -> Healthy:
    """What became of candidates that are as good as stable."""
    taken = share_of(found, End.TAKEN_BACK)
    return Healthy(
        alpha=plan.alpha,
        taken_back=taken,
        taken_back_at_most=at_most(round(taken * len(found.ends)), len(found.ends)),
        inconclusive=share_of(found, End.INCONCLUSIVE),
        waiting=share_of(found, End.OPEN),
        full_half_s=reached(found.full_s, 0.5),
        full_nine_tenths_s=reached(found.full_s, 0.9),
        done_half_s=reached(np.where(found.ends == End.DONE, found.ended_s, np.inf), 0.5),
    )


def regression_of(plan: Plan, flow: Flow, odds: float, found: Runs) -> Regression:
    """What became of candidates whose callers fail at `odds` times stable's odds."""
    seen_s = np.where(found.ends == End.TAKEN_BACK, found.ended_s, np.inf)
    told = forecast(
        Specs.of(plan).errors,
        odds_ratio=odds,
        base_rate=flow.failing,
        traffic_per_s=flow.callers_per_s,
        steps=_steps(plan, found),
        alpha=apart(plan).alpha,
        omega=plan.metrics.errors,
    )
    return Regression(
        odds=odds,
        formula_s=told.detect_s,
        seen=share_of(found, End.TAKEN_BACK),
        tenth_s=reached(seen_s, 0.1),
        half_s=reached(seen_s, 0.5),
        nine_tenths_s=reached(seen_s, 0.9),
        passed=share_of(found, End.DONE),
        callers=float(np.quantile(found.callers, 0.5)),
        callers_nine_tenths=float(np.quantile(found.callers, 0.9)),
        requests=float(np.quantile(found.callers, 0.5)) * flow.requests_per_caller,
        failed_callers=float(np.quantile(found.failed, 0.5)),
    )


def _steps(plan: Plan, found: Runs) -> Sequence[Step]:
    """The steps of the formula: each its least time, the last that compares anything for ever."""
    compared = [step for step in plan.steps if step.weight_ppm < WHOLE_PPM] or list(plan.steps)
    return [Step(weight_ppm=step.weight_ppm, lasts_s=step.min_s) for step in compared]


def share_of(found: Runs, how: End) -> float:
    """The share of the rollouts that ended so."""
    return float(np.mean(found.ends == how))


def reached(times_s: Array, share: float) -> float | None:
    """When this share of all runs had got there; None when fewer ever did."""
    place = math.ceil(share * len(times_s)) - 1
    value = float(np.sort(times_s)[place])
    return value if math.isfinite(value) else None


def at_most(k: int, n: int) -> float:
    """The largest share that `k` of `n` still leaves credible: Clopper and Pearson's upper bound, by
    bisection of the binomial's lower tail.

    Raises:
        Nothing: `0 <= k <= n` is the caller's to see to.
    """
    if k == n:
        return 1.0
    low, high = k / n, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        tail = math.fsum(
            math.exp(
                math.lgamma(n + 1)
                - math.lgamma(i + 1)
                - math.lgamma(n - i + 1)
                + i * math.log(middle)
                + (n - i) * math.log1p(-middle)
            )
            for i in range(k + 1)
        )
        low, high = (middle, high) if tail > 1 - CONFIDENCE else (low, middle)
    return high


def _check(flow: Flow, seed: int, runs: int) -> None:
    if not 0 < flow.callers_per_s <= CALLERS_MAX or not flow.requests_per_caller >= 1:
        raise errors.InvalidPlan(
            f"A forecast needs some traffic, up to {CALLERS_MAX:,.0f} new callers a second, and at least one "
            "request of each."
        )
    if not 0 < flow.failing_first <= flow.failing < 1 or not 0 <= flow.slow < 1:
        raise errors.InvalidPlan("A forecast needs rates of failing and slow callers above 0 and below 1.")
    if not 1 <= runs <= RUNS_MAX or not 0 <= seed <= SEED_MAX:
        raise errors.InvalidPlan(
            f"A forecast simulates 1 to {RUNS_MAX:,} rollouts, from a seed of 0 to {SEED_MAX}."
        )
