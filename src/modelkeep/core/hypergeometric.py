"""Fisher's noncentral hypergeometric law: how likely the first cell of a two-by-two table is, given its
margins.

It is what `core.sequential` compares arms by. It knows nothing of rollouts, and draws no samples.

Sources: Fisher 1935; Harkness 1965; Liao and Rosen 2001 (the mode, and sums by ratios outwards from it).
"""

import math

_WALK_MAX = 4_096
"""Steps multiplied exactly between two values; beyond it their distance comes from the log-gamma function."""
_TERM_MIN = 2.0**-70
"""Terms this small against their sum are not added: the tail behind them is below a double's rounding."""


class Margins:
    """The margins of a two-by-two table, and the law that they leave to its first cell.

    The sums run outwards from the mode by ratios of neighbouring terms, so nothing overflows, no factorial is
    taken, and the cost grows with the spread of the law (at most about the square root of the events), not
    with its range.
    """

    def __init__(self, n1: int, n0: int, events: int) -> None:
        self.n1, self.n0, self.events = n1, n0, events
        self.low, self.high = max(0, events - n0), min(events, n1)

    def log_likelihood(self, x: int, odds: float) -> float:
        """log P(x) at the odds ratio."""
        mode = self._mode(odds)
        return self._log_coefficient(x, mode) + (x - mode) * math.log(odds) - math.log(self._sum(mode, odds))

    def _step(self, u: int) -> float:
        """C(n1, u+1) C(n0, E-u-1) / (C(n1, u) C(n0, E-u)): falls as u grows."""
        return (self.n1 - u) * (self.events - u) / ((u + 1) * (self.n0 - self.events + u + 1))

    def _mode(self, odds: float) -> int:
        """The most likely value, by bisection on the falling ratios."""
        low, high = self.low, self.high
        while low < high:
            middle = (low + high) // 2
            if self._step(middle) * odds > 1:
                low = middle + 1
            else:
                high = middle
        return low

    def _sum(self, mode: int, odds: float) -> float:
        """All terms, with that of the mode as 1."""
        total = 1.0
        term = 1.0
        for u in range(mode, self.high):
            term *= self._step(u) * odds
            total += term
            if term < total * _TERM_MIN:
                break
        term = 1.0
        for u in range(mode - 1, self.low - 1, -1):
            term /= self._step(u) * odds
            total += term
            if term < total * _TERM_MIN:
                break
        return total

    def _log_coefficient(self, u: int, v: int) -> float:
        """log of C(n1, u) C(n0, E-u) / (C(n1, v) C(n0, E-v)).

        Near each other the ratios are multiplied, which is exact to rounding. Far from each other log-gamma
        serves, whose rounding grows with the counts: near 1e-9 for a million requests in a tick, near 1e-6
        for a thousand million, always far below what could move a verdict.
        """
        if u < v:
            return -self._log_coefficient(v, u)
        if u - v > _WALK_MAX:
            return self._log_weight(u) - self._log_weight(v)
        total, product = 0.0, 1.0
        for step in range(v, u):
            product *= self._step(step)
            if not 1e-200 < product < 1e200:
                total += math.log(product)
                product = 1.0
        return total + math.log(product)

    def _log_weight(self, u: int) -> float:
        cells = (u, self.n1 - u, self.events - u, self.n0 - self.events + u)
        return -math.fsum(math.lgamma(cell + 1) for cell in cells)
