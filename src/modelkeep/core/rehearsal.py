"""A prediction log led through a plan: what would become of a rollout under the traffic that there was.

The log's callers come when they came, as often as they did, and fail and wait where stable failed and was
slow. What is drawn at random, many times over, is who meets the candidate, as the gateway's hash would draw
it, and which requests a worse candidate fails besides. So heavy users, hours of the day and bad clients are
in it as they are, which no flow of equal callers has (`outlook`). It judges by the plan's own tests and
limits. Not rehearsed: guards, labels that come later, callers who would behave differently after an error.
"""

from datetime import datetime

import numpy as np
from msgspec import Struct

from modelkeep.core import errors
from modelkeep.core.forecast import REGRESSIONS, RUNS_MAX, SEED_MAX, Outlook, Regression
from modelkeep.core.outlook import (
    Counts,
    End,
    World,
    before_steps_s,
    error_of,
    healthy_of,
    horizon_s,
    lead,
    reached,
    share_of,
)
from modelkeep.core.plan import Plan, check_plan
from modelkeep.core.sequential import WHOLE_PPM, scaled_rate
from modelkeep.core.sequential_many import Array

REQUESTS_MAX = 5_000_000
"""Requests of one log: a day of 58 a second; whoever has more chooses a shorter time."""
CELLS_MAX = 20_000_000
"""Callers times rollouts that are held in memory: six bytes each, 120 MB."""
BLOCK_CELLS = 500_000
"""Callers of one tick times rollouts that are counted together, or one rollout where more callers come: some
forty bytes each for as long as that takes."""
RUNS = 200
"""Rollouts of each kind, unless more are asked for."""
RUNS_MIN = 20
"""Fewer say nothing: a log has at most CELLS_MAX over this many callers."""


class Traffic:
    """The requests that stable answered, in the order of time.

    Args:
        at_s: when each came, in seconds from any moment.
        caller: whose it was, as whole numbers from 0 without a gap.
        failed, slow: whether stable failed, and whether it was slow.

    Raises:
        Invalid: there are no requests, or all came at one moment.
        LimitExceeded: there are too many requests, or too many callers.
    """

    def __init__(self, at_s: Array, caller: Array, failed: Array, slow: Array) -> None:
        if len(at_s) > REQUESTS_MAX:
            raise errors.LimitExceeded(
                f"A rehearsal takes at most {REQUESTS_MAX:,} requests; choose a shorter time of the log."
            )
        if len(at_s) == 0 or at_s.max() <= at_s.min():
            raise errors.Invalid("The log has too few requests for a rehearsal; choose a longer time of it.")
        order = np.argsort(at_s, kind="stable")
        self.at_s = at_s[order] - at_s[order[0]]
        self.caller, self.failed, self.slow = caller[order], failed[order], slow[order]
        self.callers = int(self.caller.max()) + 1
        if self.callers > CELLS_MAX // RUNS_MIN:
            raise errors.LimitExceeded(
                f"A rehearsal takes at most {CELLS_MAX // RUNS_MIN:,} callers; choose a shorter time of the "
                "log, or another key of callers."
            )

    @property
    def span_s(self) -> float:
        """From the first request to the last."""
        return float(self.at_s[-1])

    @property
    def failing(self) -> float:
        """The share of requests that failed; of a log without any, as if half a request had."""
        return max(0.5, float(self.failed.sum())) / len(self.failed)


class Rehearsal(Struct, frozen=True, kw_only=True):
    """What would become of a plan under a log's traffic.

    `key` is the log's column that tells callers apart (None: each request is a caller of its own). `callers`,
    `failing_callers` and `slow_callers` are the log's; `failing` is its share of failed requests, whose odds
    a worse candidate multiplies. In the `outlook` rollouts were rehearsed and not simulated: nothing is
    computed, and callers and requests are those of the log that the candidate answered until the end.
    """

    endpoint: str
    plan: Plan
    key: str | None
    from_at: datetime
    span_s: float
    requests: int
    failing: float
    callers: int
    failing_callers: int
    slow_callers: int
    outlook: Outlook


def rehearse(
    plan: Plan,
    traffic: Traffic,
    *,
    endpoint: str,
    key: str | None,
    from_at: datetime,
    seed: int = 1,
    runs: int = RUNS,
) -> Rehearsal:
    """Lead a log through a plan. The same arguments give the same answer.

    Raises:
        InvalidPlan: the plan cannot be carried out or moves no traffic, or the seed or the number of runs is
            out of range.
    """
    check_plan(plan)
    if not plan.steps:
        raise errors.InvalidPlan("A shadow moves no traffic, so there is nothing to rehearse of it.")
    if plan.versions:
        raise errors.InvalidPlan(
            "A log is led through the test of one version; leave 'versions' out, or ask 'modelkeep rollout "
            "forecast', which tells of each."
        )
    if not 1 <= runs <= RUNS_MAX or not 0 <= seed <= SEED_MAX:
        raise errors.InvalidPlan(
            f"A rehearsal has 1 to {RUNS_MAX:,} rollouts, from a seed of 0 to {SEED_MAX}."
        )
    runs = min(runs, CELLS_MAX // traffic.callers)
    # The steps begin with the log, and end with it.
    until_s = min(horizon_s(plan), before_steps_s(plan) + traffic.span_s)

    def led(odds: float) -> _Rehearsed:
        rng = np.random.default_rng([seed, *str(odds).encode()])
        world = _Rehearsed(plan, traffic, odds, runs, rng)
        lead(world, until_s)
        return world

    return Rehearsal(
        endpoint=endpoint,
        plan=plan,
        key=key,
        from_at=from_at,
        span_s=traffic.span_s,
        requests=len(traffic.at_s),
        failing=traffic.failing,
        callers=traffic.callers,
        failing_callers=len(np.unique(traffic.caller[traffic.failed])),
        slow_callers=len(np.unique(traffic.caller[traffic.slow])),
        outlook=Outlook(
            runs=runs,
            seed=seed,
            horizon_s=until_s,
            error=error_of(runs),
            healthy=healthy_of(plan, led(1.0).outcome),
            regressions=tuple(_regression(odds, led(odds)) for odds in REGRESSIONS),
        ),
    )


class _Rehearsed(World):
    """Rollouts to which the callers of a log come."""

    def __init__(
        self, plan: Plan, traffic: Traffic, odds: float, runs: int, rng: np.random.Generator
    ) -> None:
        super().__init__(plan, runs)
        self._traffic, self._rng = traffic, rng
        shape = (runs, traffic.callers)
        self._bucket = rng.integers(0, WHOLE_PPM, shape, dtype=np.int32)
        failing = traffic.failing
        self._fails_besides = (scaled_rate(failing, odds) - failing) / (1 - failing)
        self._came = np.zeros(traffic.callers, dtype=bool)
        self._was_slow = np.zeros(traffic.callers, dtype=bool)
        self._has_failed = np.zeros(shape, dtype=bool)
        self.met = np.zeros(shape, dtype=bool)
        """Whom the candidate answered."""
        self.requests = np.zeros(runs, dtype=np.int64)

    def come(self, now: float, lasts: float) -> Counts:
        """Who came in this time of the log. A caller's requests of one tick meet one side."""
        traffic, since = self._traffic, before_steps_s(self.plan)
        first, end = np.searchsorted(traffic.at_s, [now - lasts - since, now - since])
        order = first + np.argsort(traffic.caller[first:end], kind="stable")
        sums = np.zeros((4, 2, len(self.step)), dtype=np.int64)
        if len(order):
            whose = traffic.caller[order]
            starts = np.flatnonzero(np.diff(whose, prepend=-1))
            who = whose[starts]
            slow = np.logical_or.reduceat(traffic.slow[order], starts) & ~self._was_slow[who]
            visit = _Visit(
                who=who,
                asked=np.diff(starts, append=len(whose)),
                failed=np.add.reduceat(traffic.failed[order].astype(np.int64), starts),
                failed_first=traffic.failed[order[starts]],
                slow=slow,
                new=~self._came[who],
            )
            self._came[who] = True
            self._was_slow[who] |= slow
            rows = max(1, BLOCK_CELLS // len(who))
            for begin in range(0, len(self.step), rows):
                block = slice(begin, begin + rows)
                sums[:, :, block] = self._meet(visit, block)
        callers, failing, slowed, at_once = ((pair[0], pair[1]) for pair in sums)
        return Counts(callers, failing, slowed, at_once)

    def _meet(self, visit: "_Visit", block: slice) -> Array:
        """What becomes of those who came, in some of the rollouts: the four `Counts` on both sides, as a
        4 x 2 x rollouts array. The chances are drawn row by row, so that blocks of any size draw the same."""
        who = visit.who
        under_way = self.open[block, None]
        on = (self._bucket[block, who] < self.weights[self.step[block]][:, None]) & under_way
        off = ~on & under_way
        chance = self._rng.random(on.shape)
        fails_any = 1 - (1 - self._fails_besides) ** (visit.asked - visit.failed)
        fails = (visit.failed > 0) | (on & (chance < fails_any))
        fails_first = visit.failed_first | (on & (chance < self._fails_besides))
        first_error = fails & ~self._has_failed[block, who]
        self._has_failed[block, who] |= fails
        self.met[block, who] |= on
        self.requests[block] += (on * visit.asked).sum(axis=1)
        those = (visit.new, first_error, visit.slow, visit.new & fails_first)
        return np.array([[(side & which).sum(axis=1) for side in (on, off)] for which in those])


class _Visit(Struct, frozen=True):
    """Who came in one tick, an entry each for each caller: how often they asked and failed on stable, whether
    the first of it failed, and whether they were slow, or came, for the first time."""

    who: Array
    asked: Array
    failed: Array
    failed_first: Array
    slow: Array
    new: Array


def _regression(odds: float, world: _Rehearsed) -> Regression:
    """What became of candidates whose requests fail at `odds` times stable's odds."""
    found = world.outcome
    seen_s = np.where(found.ends == End.TAKEN_BACK, found.ended_s, np.inf)
    met = world.met.sum(axis=1)
    return Regression(
        odds=odds,
        formula_s=None,
        seen=share_of(found, End.TAKEN_BACK),
        tenth_s=reached(seen_s, 0.1),
        half_s=reached(seen_s, 0.5),
        nine_tenths_s=reached(seen_s, 0.9),
        passed=share_of(found, End.DONE),
        callers=float(np.quantile(met, 0.5)),
        callers_nine_tenths=float(np.quantile(met, 0.9)),
        requests=float(np.quantile(world.requests, 0.5)),
        failed_callers=float(np.quantile(found.failed, 0.5)),
    )
