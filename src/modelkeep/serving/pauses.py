"""Pauses that double: between two starts of what crashes, two replacements of what grows, two tries of what
fails. What they are of, and when they begin anew, is for whoever pauses.
"""


class Pauses:
    """The first, then each twice the one before, up to the longest; seconds."""

    def __init__(self, first_s: float, longest_s: float) -> None:
        self._first_s = self._next_s = first_s
        self._longest_s = longest_s

    def next(self) -> float:
        """How long to pause now."""
        pause_s = self._next_s
        self._next_s = min(2 * pause_s, self._longest_s)
        return pause_s

    def begin_anew(self) -> None:
        """The next is the first again."""
        self._next_s = self._first_s
