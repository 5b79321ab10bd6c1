"""Counting what callers met, per endpoint, epoch and side, the way `core/observation.py` means it.

The fronts count and remember which callers they saw, and hand that to the ledger (`ledger.py`), so that a
caller who reaches two fronts is new only once. A request belongs to the epoch and side it was assigned under,
however late it is answered. Nothing here judges.
"""

import hashlib
from bisect import bisect_left

from msgspec import Struct

from modelkeep.core.observation import CALLERS_TRACKED_MAX, SideCounts
from modelkeep.core.routing import CANDIDATE_PLACE, Epoch
from modelkeep.serving.memory import First
from modelkeep.serving.options import ERROR_TEXT_MAX, ERRORS_SEEN_MAX

BUCKETS_MS = (0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1000.0, 2500.0, 5000.0, 10000.0)
"""Upper bounds of the latency histogram; the last bucket, above all of them, has none."""


def caller_hash(key: bytes) -> int:
    """64 bits that stand for a caller: the same in every front, so that the ledger can tell callers apart."""
    return int.from_bytes(hashlib.blake2b(key, digest_size=8, person=b"caller").digest(), "big")


class SideTally:
    """What one front saw on one side of one route since it was last asked. Plain integers: this is the hot
    path."""

    __slots__ = (
        "arrived", "buckets", "crashes", "duration_ms_max", "duration_ms_sum", "errors", "first_error",
        "first_slow", "new", "new_failed", "refused", "requests", "schema_violations", "slow",
    )  # fmt: skip

    def __init__(self) -> None:
        self.requests = self.errors = self.slow = self.refused = self.schema_violations = self.crashes = 0
        self.duration_ms_sum = 0.0
        self.duration_ms_max = 0.0
        self.buckets = [0] * (len(BUCKETS_MS) + 1)
        self.arrived: list[int] = []
        self.new: list[int] = []
        self.new_failed: list[int] = []
        self.first_error: list[int] = []
        self.first_slow: list[int] = []

    def delta(self) -> "SideDelta":
        """What was counted so far, as a message."""
        return SideDelta(
            counts=SideCounts(
                requests=self.requests,
                errors=self.errors,
                slow=self.slow,
                refused=self.refused,
                schema_violations=self.schema_violations,
                crashes=self.crashes,
                duration_ms_sum=self.duration_ms_sum,
                duration_ms_max=self.duration_ms_max,
            ),
            buckets=self.buckets,
            arrived=self.arrived,
            new=self.new,
            new_failed=self.new_failed,
            first_error=self.first_error,
            first_slow=self.first_slow,
        )


class Callers:
    """Whom one rollout has seen, on either side: bounded sets of 64-bit hashes.

    One book for both sides: a caller whom a higher weight moves to the candidate is not new, and the tests of
    shares and rates would take a whole population that moves for one that arrives.
    """

    __slots__ = ("arrived", "failed", "labelled", "maximum", "mistaken", "predicted", "seen", "slow")

    def __init__(self, maximum: int = CALLERS_TRACKED_MAX) -> None:
        self.arrived: set[int] = set()
        self.seen: set[int] = set()
        self.failed: set[int] = set()
        self.slow: set[int] = set()
        self.labelled: set[int] = set()
        self.mistaken: set[int] = set()
        self.predicted: set[int] = set()
        self.maximum = maximum

    @property
    def sets(self) -> dict[First, set[int]]:
        """Who did what for the first time."""
        return {
            First.ARRIVED: self.arrived,
            First.ANSWERED: self.seen,
            First.FAILED: self.failed,
            First.SLOW: self.slow,
            First.LABELLED: self.labelled,
            First.MISTAKEN: self.mistaken,
            First.PREDICTED: self.predicted,
        }

    def arrives(self, caller: int) -> bool:
        """Whether the caller comes for the first time, answered or not; past the bound nobody does."""
        return self._enters(caller, self.arrived)

    def is_new(self, caller: int) -> bool:
        """Whether the caller is answered for the first time; past the bound nobody is."""
        return self._enters(caller, self.seen)

    def is_labelled(self, caller: int) -> bool:
        """Whether the caller has a label for the first time; past the bound nobody has."""
        return self._enters(caller, self.labelled)

    def is_mistaken(self, caller: int) -> bool:
        """Whether the caller has a wrong prediction for the first time; past the bound nobody has."""
        return self._enters(caller, self.mistaken)

    def is_predicted(self, caller: int) -> bool:
        """Whether the caller's predictions are compared for the first time; past the bound nobody's are."""
        return self._enters(caller, self.predicted)

    def _enters(self, caller: int, among: set[int]) -> bool:
        if caller in among or len(among) >= self.maximum:
            return False
        among.add(caller)
        return True

    def is_first(self, caller: int, among: set[int]) -> bool:
        """Whether a caller that is followed does this for the first time."""
        if caller in among or caller not in self.seen:
            return False
        among.add(caller)
        return True


class RouteTally:
    """What one front counts for one endpoint under one epoch. `open` requests are assigned and not answered
    yet."""

    __slots__ = (
        "aside_ppm",
        "candidate",
        "candidate_ppm",
        "endpoint",
        "epoch",
        "errors_seen",
        "open",
        "others",
        "others_ppm",
        "rollout",
        "stable",
    )

    def __init__(
        self,
        endpoint: str,
        rollout: str | None,
        epoch: Epoch,
        candidate_ppm: int,
        others_ppm: tuple[int, ...] = (),
        aside_ppm: int = 0,
    ) -> None:
        self.aside_ppm = aside_ppm
        self.endpoint = endpoint
        self.rollout = rollout
        self.epoch = epoch
        self.candidate_ppm = candidate_ppm
        self.others_ppm = others_ppm
        self.stable = SideTally()
        self.candidate = SideTally()
        self.others = [SideTally() for _ in others_ppm]
        self.errors_seen: list[str] = []
        self.open = 0

    def side(self, place: int) -> SideTally:
        """Whoever stands at a place of the route: stable, the candidate, or one of the others."""
        if place > CANDIDATE_PLACE:
            return self.others[place - CANDIDATE_PLACE - 1]
        return self.candidate if place == CANDIDATE_PLACE else self.stable

    def note_error(self, text: str) -> None:
        """Keep the first few different error texts of the candidate."""
        text = text[:ERROR_TEXT_MAX]
        if len(self.errors_seen) < ERRORS_SEEN_MAX and text not in self.errors_seen:
            self.errors_seen.append(text)

    def collect(self) -> "RouteCounts | None":
        """Hand over what was counted since the last call; None when there was nothing."""
        sides = (self.stable, self.candidate, *self.others)
        if not any(side.requests or side.arrived for side in sides):
            return None
        counts = RouteCounts(
            endpoint=self.endpoint,
            rollout=self.rollout,
            epoch=self.epoch,
            candidate_ppm=self.candidate_ppm,
            stable=self.stable.delta(),
            candidate=self.candidate.delta(),
            errors_seen=tuple(self.errors_seen),
            others=tuple(side.delta() for side in self.others),
            others_ppm=self.others_ppm,
            aside_ppm=self.aside_ppm,
        )
        self.others = [SideTally() for _ in self.others]
        self.stable, self.candidate, self.errors_seen = SideTally(), SideTally(), []
        return counts


def arrive(side: SideTally, callers: Callers, caller: int) -> None:
    """Count a caller on the side it was given, at once: the shares of the sides must not depend on how fast
    either answers."""
    if callers.arrives(caller):
        side.arrived.append(caller)


def count(
    side: SideTally,
    callers: Callers | None,
    caller: int,
    milliseconds: float,
    *,
    failed: bool,
    refused: bool,
    violation: bool,
    slow: bool,
) -> None:
    """Count one answered request on its side."""
    side.requests += 1
    side.duration_ms_sum += milliseconds
    if milliseconds > side.duration_ms_max:
        side.duration_ms_max = milliseconds
    side.buckets[bisect_left(BUCKETS_MS, milliseconds)] += 1
    if failed:
        side.errors += 1
        side.schema_violations += violation
    elif refused:
        side.refused += 1
    if slow:
        side.slow += 1
    if callers is None:
        return
    if callers.is_new(caller):
        (side.new_failed if failed else side.new).append(caller)
    if failed and callers.is_first(caller, callers.failed):
        side.first_error.append(caller)
    if slow and callers.is_first(caller, callers.slow):
        side.first_slow.append(caller)


class SideDelta(Struct, frozen=True, kw_only=True):
    """One side's counts on their way to the ledger; callers go as hashes and are counted there."""

    counts: SideCounts
    buckets: list[int]
    arrived: list[int] = []
    new: list[int] = []
    new_failed: list[int] = []
    first_error: list[int] = []
    first_slow: list[int] = []


class RouteCounts(Struct, frozen=True, kw_only=True):
    """What one front counted for one endpoint under one epoch."""

    endpoint: str
    rollout: str | None
    epoch: Epoch
    candidate_ppm: int
    stable: SideDelta
    candidate: SideDelta
    errors_seen: tuple[str, ...] = ()
    others: tuple[SideDelta, ...] = ()
    others_ppm: tuple[int, ...] = ()
    aside_ppm: int = 0
