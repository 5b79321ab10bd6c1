"""Which waiting requests a worker answers next, and which of them together: batch when busy, never wait when
idle.

A worker that is free takes what there is at once, be it one request. What arrives while it computes waits in
the queue and is taken together: rows of equal shape become one call, as many as fit the limits of rows and
bytes and half of the tightest deadline. When such a call raises, it is cut in halves until the guilty request
stands alone. Nothing here knows a model, a socket or a clock: times are arguments, and what a request means
is told by whoever reads it.
"""

import math
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from enum import StrEnum
from typing import Any, Generic, TypeVar

import numpy as np
from msgspec import Struct

from modelkeep.core.observation import FieldMisses
from modelkeep.serving.messages import DELAY_BUCKETS_MS, ROWS_BUCKETS, Worked
from modelkeep.serving.validation import Array, Columns, Table

LOOK_MAX = 64
"""Requests of another shape that are passed over in the search for more of the first one's."""
DEADLINE_SHARE = 0.5
"""Of the time that the most hurried request has left, what a batch may take: half is for being wrong."""
MEMORY = 0.98
"""What an older call still counts against each newer one: about the last fifty decide."""

T = TypeVar("T")
R = TypeVar("R")


class Limits(Struct, frozen=True, kw_only=True):
    """What one call holds at most. A request that is larger than that goes alone."""

    rows: int = 256
    size_bytes: int = 8 * 1024 * 1024


class Reason(StrEnum):
    """Why a batch ended where it did."""

    ALL = "all"
    """Nothing else was waiting."""
    ROWS = "rows"
    BYTES = "bytes"
    DEADLINE = "deadline"
    SHAPE = "shape"
    """The others that wait have rows of another shape."""
    ALONE = "alone"
    """The version takes one request at a time, or this request must be on its own."""


class Ask(Generic[T]):
    """One waiting request. `ticket` says whom the answer goes to; `content` is what reading it gave."""

    __slots__ = ("alone", "arrived", "content", "deadline", "key", "payload", "rows", "ticket")

    def __init__(
        self, ticket: T, payload: bytes, *, deadline: float, arrived: float, alone: bool = False
    ) -> None:
        self.ticket = ticket
        self.payload = payload
        self.deadline = deadline
        self.arrived = arrived
        self.alone = alone
        """Asked for a second time after a worker died with it: it may be what killed it."""
        self.content: Any = None
        self.rows = 0
        """0 until it has been read."""
        self.key: Hashable = None
        """What requests must have in common to share a call; found out when there is one to share with."""


class Taken(Struct, Generic[T], frozen=True):
    """What to do next: tell the expired ones, then answer the batch (none when the queue held no other)."""

    batch: list[Ask[T]]
    expired: list[Ask[T]]
    reason: Reason


class Cost:
    """How long a call of so many rows takes, learnt from those that were made: `a + b * rows` seconds.

    Recursive least squares with exponential forgetting, kept as its five sums. Both coefficients are clamped
    to zero or more. Until calls of different sizes have been seen nothing is known about what a call costs by
    itself, and all of it is laid on the rows: that expects too much of a larger batch, never too little.
    """

    __slots__ = ("_calls", "_rows", "_rows_squared", "_seconds", "_seconds_rows")

    def __init__(self) -> None:
        self._calls = self._rows = self._rows_squared = self._seconds = self._seconds_rows = 0.0

    def learn(self, rows: int, seconds: float) -> None:
        """Take note of a call."""
        self._calls = self._calls * MEMORY + 1.0
        self._rows = self._rows * MEMORY + rows
        self._rows_squared = self._rows_squared * MEMORY + rows * rows
        self._seconds = self._seconds * MEMORY + seconds
        self._seconds_rows = self._seconds_rows * MEMORY + seconds * rows

    @property
    def coefficients(self) -> tuple[float, float]:
        """Seconds a call (a) and seconds a row (b)."""
        if not self._rows:
            return 0.0, 0.0
        spread = self._calls * self._rows_squared - self._rows * self._rows
        if spread <= 1e-9 * self._calls * self._rows_squared:
            return 0.0, self._seconds / self._rows
        b = (self._calls * self._seconds_rows - self._rows * self._seconds) / spread
        if b <= 0.0:
            return self._seconds / self._calls, 0.0
        a = (self._seconds - b * self._rows) / self._calls
        if a <= 0.0:
            return 0.0, self._seconds_rows / self._rows_squared
        return a, b

    def of(self, rows: int) -> float:
        """Seconds that a call of so many rows should take; 0 before the first one."""
        a, b = self.coefficients
        return a + b * rows


class Queue(Generic[T]):
    """The requests that wait for one version, in the order they came."""

    def __init__(self, limits: Limits, *, together: bool = True) -> None:
        self.cost = Cost()
        self.together = together
        """False: one request a call, because the version takes no more."""
        self._limits = limits
        self._asks: deque[Ask[T]] = deque()

    def __len__(self) -> int:
        return len(self._asks)

    def put(self, ask: Ask[T]) -> None:
        """Have a request wait its turn."""
        self._asks.append(ask)

    def remove(self, wanted: Callable[[T], bool]) -> list[Ask[T]]:
        """Take out the requests with these tickets: nobody waits for their answers any more."""
        gone = [ask for ask in self._asks if wanted(ask.ticket)]
        if gone:
            self._asks = deque(ask for ask in self._asks if not wanted(ask.ticket))
        return gone

    def take(self, now: float, read: Callable[[Ask[T]], bool], key: Callable[[Ask[T]], Hashable]) -> Taken[T]:
        """The next call: the oldest request, and what may share the call with it.

        Args:
            read: sets a request's content and rows; False when it was refused, and is answered thereby. Each
                request is read once, and by itself, so that no other can suffer from what is wrong with it.
            key: what requests must have in common to share a call.
        """
        asks, limits = self._asks, self._limits
        batch: list[Ask[T]] = []
        expired: list[Ask[T]] = []
        passed: list[Ask[T]] = []
        reason = Reason.ALL
        rows = size = 0
        until = math.inf
        while asks:
            if batch and (not self.together or batch[0].alone):
                reason = Reason.ALONE
                break
            ask = asks[0]
            if now > ask.deadline:
                expired.append(asks.popleft())
                continue
            if not ask.rows and not read(ask):
                asks.popleft()
                continue
            if batch:
                first = batch[0]
                if first.key is None:
                    first.key = key(first)
                if ask.key is None:
                    ask.key = key(ask)
                if ask.alone or ask.key != first.key:
                    reason = Reason.SHAPE
                    passed.append(asks.popleft())
                    if len(passed) == LOOK_MAX:
                        break
                    continue
                over = self._over(rows + ask.rows, size + len(ask.payload), min(until, ask.deadline) - now)
                if over is not None:
                    reason = over
                    break
            batch.append(asks.popleft())
            rows += ask.rows
            size += len(ask.payload)
            until = min(until, ask.deadline)
            if rows >= limits.rows and asks:
                reason = Reason.ROWS
                break
        asks.extendleft(reversed(passed))
        return Taken(batch, expired, reason)

    def _over(self, rows: int, size: int, left_s: float) -> Reason | None:
        """The limit that so large a batch would pass."""
        if rows > self._limits.rows:
            return Reason.ROWS
        if size > self._limits.size_bytes:
            return Reason.BYTES
        if self.cost.of(rows) > left_s * DEADLINE_SHARE:
            return Reason.DEADLINE
        return None


def bisected(
    asks: Sequence[Ask[T]],
    attempt: Callable[[Sequence[Ask[T]]], Sequence[R]],
    late: Callable[[Ask[T]], bool],
) -> Iterator[tuple[Ask[T], R | BaseException | None]]:
    """Answer requests by one call, or by ever smaller ones where a call raises.

    One guilty request among n costs about 2 log2(n) further calls and hurts nobody else.

    Args:
        attempt: answers all that it is given, in their order, or raises.
        late: whether a request's time ran out meanwhile; it is then not tried again.

    Returns:
        Each request once: with its answer, with what it made the call raise, or with None when
        its time ran out.
    """
    parts = [list(asks)]
    first = True
    while parts:
        part = parts.pop()
        if not first:
            due = [ask for ask in part if not late(ask)]
            if len(due) < len(part):
                yield from ((ask, None) for ask in part if ask not in due)
                part = due
        first = False
        if not part:
            continue
        try:
            answers = attempt(part)
        except KeyboardInterrupt:
            raise
        except BaseException as problem:  # noqa: BLE001 - a model may even call sys.exit
            if len(part) == 1:
                yield part[0], problem
            else:
                half = len(part) // 2
                parts += [part[half:], part[:half]]
        else:
            yield from zip(part, answers, strict=True)


# ------------------------------------------------------------------------------------------ rows put together


def shape_of(columns: Columns) -> Hashable:
    """What tables must have in common to become one: names, types and the shape of a row. Those of a matrix
    are of one signature, which has told their names."""
    if isinstance(columns, Table):
        return Table, columns.matrix.dtype.str, columns.matrix.shape[1]
    return tuple((name, array.dtype.str, array.shape[1:]) for name, array in columns.items())


def merged(tables: Sequence[Columns]) -> Columns:
    """Tables of one shape as one, below each other. A table by itself is handed on untouched."""
    if len(tables) == 1:
        return tables[0]
    if isinstance(tables[0], Table):
        names = list(tables[0])
        return Table(names, np.concatenate([table.matrix for table in tables if isinstance(table, Table)]))
    return {name: np.concatenate([table[name] for table in tables]) for name in tables[0]}


def parted(outputs: Columns, rows: Sequence[int]) -> list[Columns] | None:
    """Each table's own rows of the outputs; None when the outputs do not have one row for each row asked."""
    if len(rows) == 1:
        return [outputs]
    total = sum(rows)
    if any(array.ndim == 0 or len(array) != total for array in outputs.values()):
        return None
    tables: list[Columns] = []
    start = 0
    for count in rows:
        tables.append({name: array[start : start + count] for name, array in outputs.items()})
        start += count
    return tables


def alike(one: Columns, two: Columns) -> bool:
    """Whether the answer for a row twice is twice the answer for the row: then rows do not know each other.

    Numbers may differ in their last digits, for a library may add in another order when there is more to add.
    """
    if list(one) != list(two):
        return False
    for name, array in one.items():
        pair = two[name]
        if array.ndim == 0 or len(array) != 1 or len(pair) != 2 or array.shape[1:] != pair.shape[1:]:
            return False
        for row in pair:
            if not _same(array[0], row):
                return False
    return True


def _same(one: Array, two: Array) -> bool:
    if np.asarray(one).dtype.kind == "f":
        return bool(np.allclose(one, two, rtol=1e-3, atol=1e-6, equal_nan=True))
    return bool(np.array_equal(np.asarray(one), np.asarray(two)))


# --------------------------------------------------------------------------------------------------- counting


NOTHING_MISSED = FieldMisses()


class Tally:
    """What a worker counted since it last said so."""

    __slots__ = ("_counts", "_delay_buckets", "_delay_s", "_rows", "_rows_buckets", "cancelled", "expired")

    def __init__(self) -> None:
        self._clear()

    def _clear(self) -> None:
        self._counts: dict[str, int] = {}
        self._rows_buckets = [0] * (len(ROWS_BUCKETS) + 1)
        self._delay_buckets = [0] * (len(DELAY_BUCKETS_MS) + 1)
        self._rows = 0
        self._delay_s = 0.0
        self.expired = 0
        self.cancelled = 0

    def batch(self, taken: Taken[Any], now: float) -> None:
        """Take note of a call that begins."""
        rows = 0
        for ask in taken.batch:
            rows += ask.rows
            delay_s = now - ask.arrived
            self._delay_s += delay_s
            self._delay_buckets[bisect_left(DELAY_BUCKETS_MS, delay_s * 1000.0)] += 1
        self._rows += rows
        self._rows_buckets[bisect_left(ROWS_BUCKETS, rows)] += 1
        self._counts[taken.reason] = self._counts.get(taken.reason, 0) + 1

    def hand_over(self, misses: FieldMisses = NOTHING_MISSED) -> Worked | None:
        """The counts, once, with what requests missed of the signature; None when nothing happened."""
        if not (self._counts or self.expired or self.cancelled or misses.refused or misses.fitted):
            return None
        worked = Worked(
            batches={str(reason): number for reason, number in self._counts.items()},
            rows=self._rows,
            rows_buckets=self._rows_buckets,
            delay_s=self._delay_s,
            delay_buckets=self._delay_buckets,
            expired=self.expired,
            cancelled=self.cancelled,
            misses=misses,
        )
        self._clear()
        return worked
