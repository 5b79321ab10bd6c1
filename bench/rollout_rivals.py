"""The rules that others judge a rollout by, applied to the same simulated counts as the product's.

Fixed limits are those of a usual canary controller: a minute is bad or not, and the fourth bad one takes the
candidate back. The tests are at 1 % one-sided and looked at each minute, which is more often than they allow.
Nothing of the product is used here.
"""

import math

import numpy as np
from scipy.special import ndtri

from bench.rollout_worlds import TICKS, Pairs, Scenario, World
from bench.sequential_twin import Array

Z = 2.326
"""The normal quantile of 1 %, one-sided."""
BAD_MINUTES = 4
EVENTS_MIN = 5
"""Below so many events, or minutes with a figure on both arms, no test is made."""
LIMITS = {"errors": 0.01, "quality": 0.06, "pairs": 0.005}
"""What is called bad in a minute: more errors, wrong labels, or pairs in which the shadow alone failed."""
P95_LIMIT = 1.2
"""And a p95 of so many times stable's."""
LATENCY_SIGMA = 0.5
"""Of the logarithm of a request's latency; only the limit above depends on it."""
SHARE_LIMIT = 0.02
"""And a share of the requests that misses the weight by so much."""

FIXED = {
    "errors": "above 1 % in 4 minutes",
    "slow": "p95 above 1.2 x stable's in 4 minutes",
    "quality": "above 6 % wrong in 4 minutes",
    "share": "share off by 2 points in 4 minutes",
    "shadow errors": "above 0.5 % in 4 minutes",
    "shadow latency": "p95 above 1.2 x stable's in 4 minutes",
}
"""How the limits are called."""


def first_step(fires: Array) -> Array:
    """The first step (or -1) at which each run fired, from an array of shape (steps, runs)."""
    return np.where(fires.any(axis=0), fires.argmax(axis=0), -1)


def minutes(column: Array) -> Array:
    """Sums over the six ticks of each minute."""
    sums: Array = column.reshape(TICKS // 6, 6, -1).sum(axis=1)
    return sums


def _fourth(bad: Array) -> Array:
    return first_step(np.cumsum(bad, axis=0) >= BAD_MINUTES)


def limit_fires(world: World, metric: str) -> Array:
    """The minute (or -1) at which the candidate was above a fixed limit for the fourth time."""
    one, _, n1, _ = world.totals[metric]
    return _fourth(minutes(one) > LIMITS[metric] * minutes(n1))


def z_fires(world: World, metric: str) -> Array:
    """The first minute (or -1) at which a two-proportion z-test of all data so far is below 1 %."""
    x, y, n1, n0 = (np.cumsum(minutes(c), axis=0) for c in world.totals[metric])
    with np.errstate(divide="ignore", invalid="ignore"):
        pooled = (x + y) / (n1 + n0)
        z = (x / n1 - y / n0) / np.sqrt(pooled * (1 - pooled) * (1 / n1 + 1 / n0))
    return first_step((z > Z) & (x + y >= EVENTS_MIN))


def share_limit_fires(world: World) -> Array:
    """The minute (or -1) at which the candidate's share of a minute's requests was off a fourth time."""
    n1, n0 = minutes(world.n1), minutes(world.n0)
    meant = minutes(world.weight_ppm) / 6e6
    with np.errstate(divide="ignore", invalid="ignore"):
        off = np.abs(n1 / (n1 + n0) - meant)
    return _fourth(off > SHARE_LIMIT)


def share_z_fires(world: World) -> Array:
    """The first minute (or -1) at which the arms' requests so far differ from the weights, two-sided."""
    w = world.weight_ppm / 1e6
    n = world.n1 + world.n0
    got, meant, spread = (np.cumsum(minutes(column), axis=0) for column in (world.n1, n * w, n * w * (1 - w)))
    with np.errstate(divide="ignore", invalid="ignore"):
        z = np.abs(got - meant) / np.sqrt(spread)
    return first_step(z > 2.576)


def mcnemar_fires(pairs: Pairs) -> Array:
    """The first minute (or -1) at which McNemar's test of all pairs so far is below 1 %."""
    b, c = (np.cumsum(minutes(column), axis=0) for column in (pairs.shadow, pairs.stable))
    with np.errstate(divide="ignore", invalid="ignore"):
        z = (b - c) / np.sqrt(b + c)
    return first_step((z > Z) & (b + c >= EVENTS_MIN))


def pair_limit_fires(pairs: Pairs) -> Array:
    """The minute (or -1) at which the shadow alone failed in too many pairs for the fourth time."""
    return _fourth(minutes(pairs.shadow) > LIMITS["pairs"] * minutes(pairs.n))


# --------------------------------------------------------------------------- quantiles of latency


def p95_fires(world: World, scenario: Scenario, rng: np.random.Generator) -> tuple[Array, Array]:
    """The minutes (or -1) at which Mann and Whitney's test on the p95 of each minute is below 1 %, and at
    which the p95 was above the fixed limit for the fourth time.

    The p95s are drawn from their exact law given the slow answers that were counted, as ranks of a uniform
    sample: the test looks at ranks only, so any distribution of latencies gives the same answers.
    """
    slow1, slow0, n1, n0 = (minutes(column) for column in world.totals["slow"])
    return _judged_p95(
        _p95(n1, slow1, scenario.slow_rate, rng),
        _p95(n0, slow0, scenario.slow_rate, rng),
        (n1 > 0) & (n0 > 0),
    )


def pair_p95_fires(pairs: Pairs, slow_rate: float, rng: np.random.Generator) -> tuple[Array, Array]:
    """The same of the two answers of each pair."""
    n, both = minutes(pairs.n), minutes(pairs.both)
    one, zero = (minutes(column) + both for column in (pairs.shadow, pairs.stable))
    return _judged_p95(_p95(n, one, slow_rate, rng), _p95(n, zero, slow_rate, rng), n > 0)


def _judged_p95(one: Array, zero: Array, valid: Array) -> tuple[Array, Array]:
    fires = np.zeros(one.shape, dtype=bool)
    wins = np.zeros(one.shape[1])
    size = np.cumsum(valid, axis=0)
    for m in range(len(one)):
        earlier, now = valid[: m + 1] & valid[m], valid[:m] & valid[m]
        wins += ((one[m] > zero[: m + 1]) & earlier).sum(axis=0) + ((one[:m] > zero[m]) & now).sum(axis=0)
        n = np.maximum(1, size[m])
        z = (wins - n * n / 2) / np.sqrt(n * n * (2 * n + 1) / 12)
        fires[m] = (z > Z) & (n >= EVENTS_MIN)
    slower = LATENCY_SIGMA * (ndtri(one) - ndtri(zero)) > math.log(P95_LIMIT)
    return first_step(fires), _fourth(slower & valid)


def _p95(n: Array, slow: Array, slow_rate: float, rng: np.random.Generator) -> Array:
    """The order statistic of rank 0.95 n of n uniform draws of which `slow` lie above 1 - slow_rate."""
    rank = np.maximum(1, np.ceil(0.95 * n)).astype(np.int64)
    fast = np.maximum(0, n - slow)
    below = rng.beta(np.maximum(1, rank), np.maximum(1, fast - rank + 1)) * (1 - slow_rate)
    above = 1 - slow_rate + rng.beta(np.maximum(1, rank - fast), np.maximum(1, n - rank + 1)) * slow_rate
    return np.where(rank <= fast, below, above)
