"""Whole logs of many rollouts judged at once, within 1e-9 of `core.sequential`.

The recursion over arrays is `core.sequential_many`; here it runs over logs of any unit, because ten thousand
simulated hours are too many ticks for a plain loop. It decides nothing in the product;
tests/properties/test_sequential_properties.py holds it to the real code on random logs, and each simulation
replays a sample of its runs.
"""

from collections.abc import Callable, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt

from modelkeep.core import sequential, shift
from modelkeep.core.sequential import CallerTick, EProcessSpec, RateSpec, RequestTick, TrialTick, Unit
from modelkeep.core.sequential_many import Many, log_e_callers, log_e_trials

Array = npt.NDArray[Any]

HUGE = 1e150
"""Sums above this are scaled down on the way."""


def log_e_requests(spec: EProcessSpec, x: Array, y: Array, n1: Array, n0: Array) -> tuple[Array, Array]:
    """`sequential.log_e_values` of request ticks, over runs, summing the whole support upwards."""
    events = x + y
    low, high = np.maximum(0, events - n0), np.minimum(events, n1)
    nulls = sorted({spec.null_odds(d) for d in spec.odds})
    odds = np.array([*spec.odds, *nulls])
    term = np.ones((len(x), len(odds)))
    total = term.copy()
    log_scale = np.zeros(total.shape)
    for step in range(int((high - low).max(initial=0))):
        u = low + step
        live = u < high
        ratio = np.where(live, (n1 - u) * (events - u) / ((u + 1) * np.maximum(1, n0 - events + u + 1)), 0.0)
        term = term * ratio[:, None] * odds
        total = total + term
        if total.max() > HUGE:
            # The next ratio could leave the range of a double.
            shrink = np.where(total > HUGE, 1 / HUGE, 1.0)
            term, total, log_scale = term * shrink, total * shrink, log_scale - np.log(shrink)
    log_p = (x - low)[:, None] * np.log(odds) - np.log(total) - log_scale
    null = [len(spec.odds) + nulls.index(spec.null_odds(d)) for d in spec.odds]
    return log_p[:, : len(spec.odds)] - log_p[:, null], high > low


def judge(spec: EProcessSpec | RateSpec, columns: Sequence[Array]) -> tuple[Array, Array, Array]:
    """Run one process over columns of shape (ticks, runs), at most TICKS_MAX of them.

    Returns log V of each tick (ticks, runs), the final and the largest log V of each run.
    """
    if isinstance(spec, RateSpec):
        log_e: Callable[..., tuple[Array, Array]] = partial(log_e_trials, spec)
    elif spec.unit is Unit.CALLER:
        log_e = partial(log_e_callers, spec)
    else:
        log_e = partial(log_e_requests, spec)
    twin = Many(spec, columns[0].shape[1])
    path = np.empty(columns[0].shape)
    for t in range(len(path)):
        twin.update(*log_e(*(column[t] for column in columns)))
        path[t] = twin.log_v
    return path, twin.log_v, twin.max_log_v


def replayed(spec: EProcessSpec | RateSpec, columns: Sequence[Array], run: int) -> tuple[float, float]:
    """The same run through the real code: its final and its largest log V."""
    rows = [[int(value) for value in row] for row in np.stack([column[:, run] for column in columns], axis=1)]
    state: sequential.EProcess
    if isinstance(spec, RateSpec):
        state = sequential.replay_rate(spec, (TrialTick(n=n, k=k) for n, k in rows))
    elif spec.unit is Unit.CALLER:
        state = sequential.replay(spec, (CallerTick(x=x, y=y, weight_ppm=w) for x, y, w in rows))
    else:
        state = sequential.replay(spec, (RequestTick(x=x, y=y, n1=n1, n0=n0) for x, y, n1, n0 in rows))
    return state.log_v, state.max_log_v


def judge_bands(spec: EProcessSpec, x: Array, y: Array, weight_ppm: Array) -> tuple[Array, Array, Array]:
    """`shift.update_bands` for many runs: as `judge`, over callers by band, of shape (ticks, runs, bands)."""
    bands = x.shape[2]
    mixture = SimpleNamespace(mass=np.tile(spec.mass, bands) / bands, start_mass=spec.start_mass)
    twin = Many(mixture, x.shape[1])
    path = np.empty(x.shape[:2])
    for t in range(len(path)):
        each = [log_e_callers(spec, x[t, :, b], y[t, :, b], weight_ppm[t]) for b in range(bands)]
        told = np.logical_or.reduce([band for _, band in each])
        twin.update(np.concatenate([np.where(band[:, None], e, 0.0) for e, band in each], axis=1), told)
        path[t] = twin.log_v
    return path, twin.log_v, twin.max_log_v


def replayed_bands(
    spec: EProcessSpec, x: Array, y: Array, weight_ppm: Array, run: int
) -> tuple[float, float]:
    """The same run through the real code."""
    state = shift.ShiftProcess()
    for a, b, w in zip(x[:, run].tolist(), y[:, run].tolist(), weight_ppm[:, run], strict=True):
        tick = shift.BandsTick(x=tuple(a), y=tuple(b), weight_ppm=int(w))
        state = shift.update_bands(state, spec, tick)
    return state.log_v, state.max_log_v
