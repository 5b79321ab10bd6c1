"""Whether a candidate predicts other things than stable does: callers by the band of their prediction.

Each caller counts once, at its first answer in the rollout, in one of ten bands. Bands are learned from the
first callers, who are not counted: tenths of what was predicted for them, or the classes that were seen.
Given a caller's band, the side is a draw with the assigned weight where both versions predict alike; where
the share of a band on the candidate is r times stable's, the odds are r times as high. So each band is tested
by the caller's law of `core.sequential`, both ways, beyond a tolerance, and one mixture over bands and ratios
is one e-process: all bands draw from the same callers at the same time, so their mean is fair with respect to
one history.

A simulation needs `shift_spec`, `update_bands` and `BandsTick` alone, and `learned` with `Bands.place` to
make ticks of predictions; `evidence.evidence_of` does the same from a plan and ticks with `outputs`. Sources
as in `core.sequential`. What follows from the evidence is not decided here.
"""

from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from typing import Annotated

from msgspec import Struct

from modelkeep.core import errors, sequential
from modelkeep.core.fields import said
from modelkeep.core.mixing import EProcess, mixed
from modelkeep.core.quality import NAME_MAX, Kind, Value
from modelkeep.core.sequential import ODDS_MAX, CallerTick, Direction, EProcessSpec, Unit

BANDS = 10
"""Parts of what is predicted: more would each see fewer callers."""
LEARNED_FROM = 100
"""Callers whose predictions set the bands: ten to a band, and few enough to do without."""
CALLERS_MAX = 1_000_000
"""The most callers that a plan may ask to be compared."""
_RATIOS = (1.1, 1.5, 3.0, 10.0)


class Shift(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a plan tolerates of predictions that differ."""

    output: Annotated[
        str | None,
        said(
            "The output that is compared; the only one, or the first, when left out.",
            characters=(1, NAME_MAX),
        ),
    ] = None
    tolerance: Annotated[
        float,
        said(
            "The share of callers in a band of predictions may differ by this factor, either way.",
            unit="factor",
            least=1,
            most=100,
        ),
    ] = 2.0
    callers: Annotated[
        int,
        said(
            "An advance needs so many of the candidate's callers compared.",
            unit="callers",
            least=1,
            most=CALLERS_MAX,
        ),
    ] = 50


class ShiftProcess(EProcess, frozen=True, kw_only=True):
    """Evidence that predictions differ; `log_r` goes through the ratios of one band after the other. Moved by
    `update_bands`."""


class BandsTick(Struct, frozen=True, kw_only=True):
    """Callers by the band of their first prediction: `x` on the candidate, `y` on stable, a number a band."""

    x: tuple[int, ...]
    y: tuple[int, ...]
    weight_ppm: int


class Bands(Struct, frozen=True, kw_only=True):
    """Where one band ends and the next begins: numbers by `edges`, or each of `classes` for itself and one
    band for all else."""

    edges: tuple[float, ...] = ()
    classes: tuple[Value, ...] = ()

    def place(self, value: Value) -> int:
        """The band of a prediction, from 0."""
        if self.classes:
            return self.classes.index(value) if value in self.classes else BANDS - 1
        return bisect_right(self.edges, value.number) if value.kind is not Kind.TEXT else BANDS - 1


def learned(values: Sequence[Value]) -> Bands:
    """Bands from what was predicted for the first callers: the classes, most frequent first, where there are
    few or they are no numbers; else tenths.

    Raises:
        Nothing: whatever was predicted has bands.
    """
    counts = Counter(values)
    if len(counts) <= BANDS or any(value.kind is not Kind.NUMBER for value in counts):
        by_count = sorted(counts, key=lambda value: (-counts[value], value.kind, value.number))
        return Bands(classes=tuple(by_count[: BANDS - 1]))
    numbers = sorted(value.number for value in values)
    cuts = {numbers[len(numbers) * part // BANDS] for part in range(1, BANDS)}
    return Bands(edges=tuple(sorted(cuts)))


def shift_spec(tolerance: float) -> EProcessSpec:
    """What is looked for in each band. Hypothesis: its share on the candidate is that on stable, but for the
    factor `tolerance` either way.

    Raises:
        InvalidPlan: `tolerance` is below 1 or absurd.
    """
    if not 1 <= tolerance <= ODDS_MAX / 100:
        raise errors.InvalidPlan(f"The tolerance {tolerance} is no factor from 1 up; give one like 2.")
    above = tuple(tolerance * ratio for ratio in _RATIOS)
    odds = above + tuple(1 / ratio for ratio in above)
    mass = tuple(1 / len(odds) for _ in odds)
    return EProcessSpec(odds=odds, mass=mass, margin=tolerance, unit=Unit.CALLER, direction=Direction.DIFFERS)


def update_bands(state: ShiftProcess, spec: EProcessSpec, tick: BandsTick) -> ShiftProcess:
    """The state after one more tick. Each band adds, for each ratio d of the grid, the likelihood ratio of
    its callers' sides as `sequential.log_e_values` states it; a band without callers adds nothing.

    Raises:
        InvalidInput: the tick has more bands than there are, or the state belongs to another spec.
    """
    if len(tick.x) > BANDS or len(tick.y) > BANDS:
        raise errors.InvalidInput(f"Predictions are counted in at most {BANDS} bands.")
    x, y = (side + (0,) * (BANDS - len(side)) for side in (tick.x, tick.y))
    told = [
        sequential.log_e_values(spec, CallerTick(x=a, y=b, weight_ppm=tick.weight_ppm))
        for a, b in zip(x, y, strict=True)
    ]
    if not any(told):
        return mixed(state, (), spec.start_mass, None)
    nothing = (0.0,) * len(spec.odds)
    log_e = tuple(value for band in told for value in (band or nothing))
    mass = tuple(share / BANDS for share in spec.mass) * BANDS
    return mixed(state, mass, spec.start_mass, log_e)
