"""The state of an e-process and the recursion that moves it: mixed over effects, and over when they begin.

What an effect is, and how likely a tick is under it, is said elsewhere: `core.sequential` for events on two
sides, `core.shift` for what is predicted. Nothing is counted or decided here.

Sources: Ville 1939 (the bound); Robbins 1970 (mixtures); Shin, Ramdas, Rinaldo 2023 (when a change begins).
"""

import math
from collections.abc import Sequence
from typing import TypeVar

from msgspec import Struct, structs

from modelkeep.core import errors


class EProcess(Struct, frozen=True, kw_only=True):
    """The state of one e-process: all that the past has to say.

    `informative_ticks` counts the ticks whose outcome could have differed; the others leave the evidence
    untouched, to the bit. `log_r` holds, for each effect of the grid, the evidence with the start of the
    effect mixed over the past (empty before the first informative tick, because JSON has no minus infinity);
    `log_v` is the evidence now and `max_log_v` the most there ever was, which Ville's bound covers.
    """

    ticks: int = 0
    informative_ticks: int = 0
    log_r: tuple[float, ...] = ()
    log_v: float = 0.0
    max_log_v: float = 0.0

    @property
    def p_value(self) -> float:
        """The anytime-valid p-value: min(1, 1 / max V)."""
        return math.exp(-max(0.0, self.max_log_v))

    def ever_reached(self, alpha: float) -> bool:
        """Whether V ever was 1/alpha or more. For alarms: once raised, they stay."""
        return self.max_log_v >= log_threshold(alpha)

    def holds(self, alpha: float) -> bool:
        """Whether V is 1/alpha or more now. For proofs on which an advance rests: later doubts count too."""
        return self.log_v >= log_threshold(alpha)


def log_threshold(alpha: float) -> float:
    """log(1/alpha), which `log_v` has to reach.

    Raises:
        InvalidPlan: `alpha` is not strictly between 0 and 1.
    """
    if not 0 < alpha < 1:
        raise errors.InvalidPlan(
            f"An error rate of {alpha} is impossible; give one above 0 and below 1, like 0.01."
        )
    return -math.log(alpha)


State = TypeVar("State", bound=EProcess)


def mixed(state: State, mass: Sequence[float], start_mass: float, log_e: tuple[float, ...] | None) -> State:
    """The state after one more tick, given log e(d) for each effect d of the grid (None: it can say nothing).

    The recursion that `sequential.update` states, in logarithms.

    Raises:
        InvalidInput: the state belongs to another specification.
    """
    if log_e is None:
        return structs.replace(state, ticks=state.ticks + 1)
    if state.log_r and len(state.log_r) != len(mass):
        raise errors.InvalidInput(
            "The evidence belongs to another specification; replay its ticks with this one."
        )
    tick = state.informative_ticks + 1
    begins = start_prior(tick, start_mass)
    if not state.log_r:
        log_r = tuple(math.log(begins) + le for le in log_e)
    elif begins == 0.0:
        log_r = tuple(r + le for r, le in zip(state.log_r, log_e, strict=True))
    else:
        log_r = tuple(log_sum((r, math.log(begins))) + le for r, le in zip(state.log_r, log_e, strict=True))
    terms = [math.log(m) + r for m, r in zip(mass, log_r, strict=True)]
    if start_mass < 1:
        terms.append(math.log(unused_prior(tick, start_mass)))
    log_v = log_sum(terms)
    return structs.replace(
        state,
        ticks=state.ticks + 1,
        informative_ticks=tick,
        log_r=log_r,
        log_v=log_v,
        max_log_v=max(state.max_log_v, log_v),
    )


def unused_prior(tick: int, start_mass: float) -> float:
    """Prior mass on effects that begin after `tick`: (1 - s) log 2 / log(tick + 1)."""
    return (1 - start_mass) * math.log(2) / math.log(tick + 1)


def start_prior(tick: int, start_mass: float) -> float:
    """Prior mass on an effect that begins at `tick`: s at first, then the fall of `unused_prior`."""
    if tick == 1:
        return start_mass
    return (1 - start_mass) * math.log(2) * math.log1p(1 / tick) / (math.log(tick) * math.log(tick + 1))


def log_sum(logs: Sequence[float]) -> float:
    """log of the sum of exponentials, the same in whatever order they come."""
    top = max(logs)
    return top + math.log(math.fsum(math.exp(value - top) for value in logs))
