"""When a process of a version has grown too large to go on: arithmetic over what it maps.

A process may map so much and no more (`--worker-memory`); past that, whatever it asks for is refused. A model
that keeps something of every request comes there in the end, and fails all of them from then on. So it is
replaced before, by a fresh process that is loaded beside it; and where it is there already, it ends. What it
maps when it has just been loaded says nothing against it: the room between that and the limit is what counts.
Nothing here reads a process or ends one.
"""

import math

from modelkeep.serving.pauses import Pauses

SHARE = 0.75
"""Of its room, what a process may use up: the rest is for what it answers until it is replaced."""
LOOKS = 2
"""In a row, at which it has used up that much: what a large batch maps is given back."""
FIRST_PAUSE_S = 5.0
"""Between a version's first replacement and its second; each pause is twice the one before."""
LONGEST_PAUSE_S = 600.0
"""Of these, and how long none is needed until they begin anew: a version that needs all its room in steady
use is not loaded again and again, and one that leaks quickly ends at its limit instead."""


class Pace:
    """How soon one replacement of a version may follow another. Times are of a steady clock, in seconds."""

    def __init__(self) -> None:
        self._last_s = -math.inf
        self._pause_s = 0.0
        self._pauses = Pauses(FIRST_PAUSE_S, LONGEST_PAUSE_S)

    def allows(self, now_s: float) -> bool:
        """Whether another may be made."""
        return now_s - self._last_s >= self._pause_s

    def replaced(self, now_s: float) -> None:
        """One was made."""
        if now_s - self._last_s >= self._pause_s + LONGEST_PAUSE_S:
            self._pauses.begin_anew()
        self._pause_s = self._pauses.next()
        self._last_s = now_s


class Growth:
    """How much of its room one process has used up. Sizes are in bytes; without a limit nothing grows."""

    def __init__(self, limit_bytes: int, loaded_bytes: int) -> None:
        """
        Args:
            loaded_bytes: what it mapped when it was loaded.
        """
        self._limit_bytes = limit_bytes
        self._most_bytes = loaded_bytes + SHARE * max(0, limit_bytes - loaded_bytes)
        self._past = 0

    def past(self, mapped_bytes: int) -> bool:
        """Whether it has used up its share."""
        return bool(self._limit_bytes) and mapped_bytes > self._most_bytes

    def outgrown(self, mapped_bytes: int) -> bool:
        """Take a look. Whether it is to be replaced."""
        self._past = self._past + 1 if self.past(mapped_bytes) else 0
        return self._past >= LOOKS
