"""`core.sequential` for many rollouts at once: the same recursion over arrays, within 1e-9 of it.

Simulations need it: a forecast looks at thousands of rollouts, which are too many ticks for a plain loop. No
rollout is ever judged by it; tests/properties/test_sequential_properties.py holds it to the real code on
random logs.
"""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from modelkeep.core.sequential import WHOLE_PPM, EProcessSpec, RateSpec

Array = npt.NDArray[Any]

TICKS_MAX = 10_000
"""Of one run: the prior over the beginning of an effect is tabulated that far."""


class Many:
    """`sequential.update` and `update_rate`, over a row of runs."""

    def __init__(self, spec: EProcessSpec | RateSpec, runs: int) -> None:
        self.spec = spec
        self.log_r = np.full((len(spec.mass), runs), -np.inf)
        self.ticks = np.zeros(runs, dtype=np.int64)
        self.log_v = np.zeros(runs)
        self.max_log_v = np.zeros(runs)
        self.log_mass = np.log(np.array(spec.mass))[:, None]
        steps = np.arange(TICKS_MAX + 2, dtype=float)
        with np.errstate(divide="ignore", invalid="ignore"):
            rest = (1 - spec.start_mass) * math.log(2)
            begins = rest * np.log1p(1 / steps) / (np.log(steps) * np.log(steps + 1))
            begins[1] = spec.start_mass
            self.log_begins = np.log(begins)
            self.log_unused = np.log(rest / np.log(steps + 1))

    def update(self, log_e: Array, told: Array) -> None:
        """Take one tick: log e per run and effect, and which runs were told anything by it."""
        if not told.any():
            return
        which = slice(None) if told.all() else told
        self.ticks[which] += 1
        tick = self.ticks[which]
        before, begins = self.log_r[:, which], self.log_begins[tick]
        # Like np.logaddexp, in half of the time.
        grown = np.maximum(before, begins) + np.log1p(np.exp(-np.abs(before - begins)))
        self.log_r[:, which] = log_r = grown + log_e[which].T
        terms, unused = log_r + self.log_mass, self.log_unused[tick]
        top = np.maximum(terms.max(axis=0), unused)
        log_v = top + np.log(np.exp(terms - top).sum(axis=0) + np.exp(unused - top))
        self.log_v[which] = log_v
        self.max_log_v[which] = np.maximum(self.max_log_v[which], log_v)


def log_e_callers(spec: EProcessSpec, x: Array, y: Array, weight_ppm: Array) -> tuple[Array, Array]:
    """`sequential.log_e_values` of caller ticks, over runs: log e (runs, effects), and where it says
    anything.
    """
    odds = np.array(spec.odds)
    null = np.array([spec.null_odds(d) for d in spec.odds])
    same = (weight_ppm == weight_ppm[:1]).all()  # as where the clock decides; then one row stands for all
    w = (weight_ppm[:1] if same else weight_ppm)[:, None] / WHOLE_PPM
    per_event = np.log1p(w * (null - odds) / (1 - w + w * odds))
    log_e = x[:, None] * np.log(odds / null) + (x + y)[:, None] * per_event
    return log_e, (x + y > 0) & (weight_ppm > 0) & (weight_ppm < WHOLE_PPM)


def log_e_trials(spec: RateSpec, n: Array, k: Array) -> tuple[Array, Array]:
    """`sequential.log_e_rates`, over runs."""
    rates = np.array(spec.rates)
    good = np.log1p(-rates) - math.log1p(-spec.bound)
    return k[:, None] * np.log(rates / spec.bound) + (n - k)[:, None] * good, n > 0
