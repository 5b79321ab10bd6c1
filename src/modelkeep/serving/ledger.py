"""The supervisor's one account of what callers met: no caller counted twice, ticks closed, numbered and kept.

What fronts counted and the recorder joined comes together here. It belongs to the epoch and side that were
valid when the request was assigned, however late it is known; what is known after a swap is therefore told in
a later tick of the former epoch. Nothing here judges.
"""

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime

import msgspec

from modelkeep.core.observation import (
    CALLERS_TRACKED_MAX,
    TICKS_PER_REPORT_MAX,
    BandCounts,
    LabelCounts,
    Labelled,
    PairCounts,
    SideCounts,
    Tick,
)
from modelkeep.core.routing import CANDIDATE_PLACE, Epoch, Route
from modelkeep.core.shift import BANDS
from modelkeep.serving.counting import Callers, RouteCounts, SideDelta
from modelkeep.serving.memory import First, Memory, RolloutKey
from modelkeep.serving.options import ERRORS_SEEN_MAX, TICKS_KEPT_MAX


class _OpenTick:
    __slots__ = ("candidate", "errors_seen", "labels", "others", "outputs", "pairs", "stable", "started_at")

    def __init__(self, started_at: datetime, others: int) -> None:
        self.started_at = started_at
        self.stable = SideCounts()
        self.candidate = SideCounts()
        self.others = [SideCounts()] * others
        self.errors_seen: tuple[str, ...] = ()
        self.pairs: PairCounts | None = None
        self.labels: Labelled | None = None
        self.outputs: BandCounts | None = None


ToldLabels = tuple[LabelCounts, Iterable[tuple[int, bool]]]
"""The counts of rows of one side, and its callers with a label and whether it says wrong."""
_TickKey = tuple[str, str | None, Epoch, int, tuple[int, ...], int]
"""With the weights: a route may get them later than its epoch, when its versions are ready."""


class Ledger:
    """The supervisor's one account: dedupes callers over fronts, closes ticks, keeps them until they are
    taken.

    Tick numbers begin at `first_number` (the start's time in microseconds), so that they also rise over
    restarts. Whom a rollout has seen is in `memory`. Of a rollout that was under way before this start
    (`resumed`) and whose memory is lost nobody is counted as new or first any more: a caller who was counted
    before would be counted twice, which no verdict could be trusted after.
    """

    def __init__(
        self,
        now: datetime,
        first_number: int,
        *,
        memory: Memory | None = None,
        resumed: Iterable[RolloutKey] = (),
        callers_max: int = CALLERS_TRACKED_MAX,
    ) -> None:
        self._first = first_number
        self._numbers: dict[RolloutKey, int] = {}
        self._memory = memory
        self._books: dict[RolloutKey, Callers | None] = {}
        """None: the memory is lost."""
        self._noted: dict[RolloutKey, list[tuple[First, int]]] = {}
        self._open: dict[_TickKey, _OpenTick] = {}
        self._callers_max = callers_max
        self._since = now
        self._waiting: list[Tick] = []
        self._sent = 0
        """How many of the first of `_waiting` went out at least once; those may no longer be merged."""
        for key in resumed:
            self._books[key] = self._filled(memory.recall(key) if memory is not None else None)

    def _filled(self, known: list[tuple[First, int]] | None) -> Callers | None:
        if known is None:
            return None
        book = Callers(self._callers_max)
        sets = book.sets
        for first, caller in known:
            sets[first].add(caller)
        return book

    def begin(self, endpoint: str, rollout: str) -> None:
        """Have a book for a rollout, before its first request is split."""
        key = (endpoint, rollout)
        if key not in self._books:
            new = self._memory is None or self._memory.begin(key)
            self._books[key] = self._filled([] if new or self._memory is None else self._memory.recall(key))

    @property
    def lost(self) -> list[str]:
        """Endpoints in whose rollout nobody counts as new any more."""
        return [endpoint for (endpoint, _), book in self._books.items() if book is None]

    def add(self, counts: RouteCounts) -> None:
        """Take in what one front counted."""
        tick = self._tick(
            counts.endpoint,
            counts.rollout,
            counts.epoch,
            counts.candidate_ppm,
            counts.others_ppm,
            counts.aside_ppm,
        )
        book, noted = None, []
        if counts.rollout is not None:
            self.begin(counts.endpoint, counts.rollout)
            book = self._books[counts.endpoint, counts.rollout]
            noted = self._noted.setdefault((counts.endpoint, counts.rollout), [])
        tick.stable = tick.stable.plus(_resolve(counts.stable, book, noted))
        tick.candidate = tick.candidate.plus(_resolve(counts.candidate, book, noted))
        for place, side in enumerate(counts.others):
            tick.others[place] = tick.others[place].plus(_resolve(side, book, noted))
        for text in counts.errors_seen:
            if len(tick.errors_seen) < ERRORS_SEEN_MAX and text not in tick.errors_seen:
                tick.errors_seen = (*tick.errors_seen, text)

    def paired(self, endpoint: str, rollout: str | None, epoch: Epoch, ppm: int, pairs: PairCounts) -> None:
        """Take in what the recorder compared."""
        tick = self._tick(endpoint, rollout, epoch, ppm)
        tick.pairs = pairs if tick.pairs is None else tick.pairs.plus(pairs)

    def labelled(
        self,
        key: tuple[str, str],
        epoch: Epoch,
        ppm: int,
        candidate: ToldLabels,
        stable: ToldLabels,
        others: Sequence[ToldLabels] = (),
        others_ppm: tuple[int, ...] = (),
        aside_ppm: int = 0,
    ) -> None:
        """Take in labels of a rollout under way, by the epoch and weights under which was predicted.

        Args:
            candidate, stable, others: the counts of rows, and the callers with a label, in the order in which
                those came, with whether it says wrong.
        """
        if key not in self._books:
            return  # it is over, and nothing is evidence of it any more
        tick = self._tick(*key, epoch, ppm, others_ppm, aside_ppm)
        book, noted = self._books[key], self._noted.setdefault(key, [])
        told = Labelled(
            candidate=_told(*candidate, book, noted),
            stable=_told(*stable, book, noted),
            others=tuple(_told(*other, book, noted) for other in others),
        )
        tick.labels = told if tick.labels is None else tick.labels.plus(told)

    def predicted(
        self,
        key: tuple[str, str],
        epoch: Epoch,
        ppm: int,
        candidate: Iterable[tuple[int, int]],
        stable: Iterable[tuple[int, int]],
    ) -> None:
        """Take in what was predicted for callers of a rollout under way.

        Args:
            candidate, stable: callers, and the band of what was predicted for each.
        """
        book = self._books.get(key)
        if book is None:
            return  # over, or nobody counts any more
        tick, noted = self._tick(*key, epoch, ppm), self._noted.setdefault(key, [])
        sides = (_in_bands(candidate, book, noted), _in_bands(stable, book, noted))
        told = BandCounts(candidate=sides[0], stable=sides[1])
        tick.outputs = told if tick.outputs is None else tick.outputs.plus(told)

    def crashed(self, route: Route, place: int) -> None:
        """Count the death of a worker on the side it served, by its place in the route."""
        tick = self._tick_of(route)
        crash = SideCounts(crashes=1)
        if place > CANDIDATE_PLACE:
            other = place - CANDIDATE_PLACE - 1
            tick.others[other] = tick.others[other].plus(crash)
        elif place == CANDIDATE_PLACE:
            tick.candidate = tick.candidate.plus(crash)
        else:
            tick.stable = tick.stable.plus(crash)

    def touch(self, route: Route) -> None:
        """Have a tick for a rollout in which nothing happened: "no traffic" is a fact too."""
        self._tick_of(route)

    def _tick_of(self, route: Route) -> _OpenTick:
        return self._tick(
            route.endpoint,
            route.rollout,
            route.epoch,
            route.candidate_ppm,
            route.others_ppm,
            route.aside_ppm,
        )

    def _tick(
        self,
        endpoint: str,
        rollout: str | None,
        epoch: Epoch,
        candidate_ppm: int,
        others_ppm: tuple[int, ...] = (),
        aside_ppm: int = 0,
    ) -> _OpenTick:
        key = (endpoint, rollout, epoch, candidate_ppm, others_ppm, aside_ppm)
        tick = self._open.get(key)
        if tick is None:
            tick = self._open[key] = _OpenTick(self._since, len(others_ppm))
        return tick

    def close(self, now: datetime) -> None:
        """Close all open ticks, oldest epoch first, and number them. What they count as new is remembered
        first."""
        if self._memory is not None:
            for key, done in self._noted.items():
                if done:
                    self._memory.note(key, done)
        self._noted.clear()
        by_age = sorted(self._open.items(), key=lambda item: item[0][2:])
        for (endpoint, rollout, epoch, ppm, others_ppm, aside_ppm), tick in by_age:
            number = self._numbers.get((endpoint, rollout), self._first - 1) + 1
            self._numbers[endpoint, rollout] = number
            self._waiting.append(
                Tick(
                    endpoint=endpoint,
                    rollout=rollout,
                    epoch=epoch,
                    number=number,
                    started_at=tick.started_at,
                    ended_at=now,
                    candidate_ppm=ppm,
                    stable=tick.stable,
                    candidate=tick.candidate,
                    errors_seen=tick.errors_seen,
                    pairs=tick.pairs,
                    labels=tick.labels,
                    outputs=tick.outputs,
                    others=tuple(tick.others),
                    others_ppm=others_ppm,
                    aside_ppm=aside_ppm,
                )
            )
        self._open.clear()
        self._since = now
        if len(self._waiting) - self._sent > TICKS_KEPT_MAX:
            self._merge()

    def _merge(self) -> None:
        """Join unsent ticks of the same endpoint, rollout, epoch and weight; the joined one carries the last
        number."""
        kept = self._waiting[: self._sent]
        joined: dict[_TickKey, Tick] = {}
        for tick in self._waiting[self._sent :]:
            weights = (tick.candidate_ppm, tick.others_ppm, tick.aside_ppm)
            key = (tick.endpoint, tick.rollout, tick.epoch, *weights)
            joined[key] = merge(joined[key], tick) if key in joined else tick
        self._waiting = [*kept, *sorted(joined.values(), key=lambda tick: (tick.ended_at, tick.number))]

    def to_send(self) -> tuple[Tick, ...]:
        """The oldest ticks that fit one report. From now on they stay as they are, so that a repeat is a
        repeat."""
        batch = tuple(self._waiting[:TICKS_PER_REPORT_MAX])
        self._sent = max(self._sent, len(batch))
        return batch

    def taken(self, marks: Iterable[tuple[str, str | None, int]]) -> None:
        """Drop what the control plane has."""
        highest = {(endpoint, rollout): number for endpoint, rollout, number in marks}
        sent = self._waiting[: self._sent]
        left = [tick for tick in sent if tick.number > highest.get((tick.endpoint, tick.rollout), -1)]
        self._waiting = [*left, *self._waiting[self._sent :]]
        self._sent = len(left)

    def forget(self, live: Iterable[RolloutKey]) -> None:
        """Drop the callers of rollouts that no route names any more."""
        keep = set(live)
        for key in [key for key in self._books if key not in keep]:
            del self._books[key]
            if self._memory is not None:
                self._memory.forget(key)

    @property
    def waiting(self) -> int:
        """Ticks that the control plane has not taken yet."""
        return len(self._waiting)


def first_number(now: datetime) -> int:
    """Where the numbers of a start's ticks begin. In microseconds, of which ticks use up one a second: so not
    even a clock that is set back has two starts use the same ones."""
    return int(now.timestamp() * 1_000_000)


def _resolve(delta: SideDelta, callers: Callers | None, noted: list[tuple[First, int]]) -> SideCounts:
    """A side's counts with its callers counted against the book of the whole rollout; `noted` gets those who
    did something for the first time."""
    if callers is None:
        return delta.counts

    def counted(first: First, hashes: Iterable[int], is_so: Callable[[int], bool]) -> int:
        those = [(first, caller) for caller in hashes if is_so(caller)]
        noted.extend(those)
        return len(those)

    arrived = counted(First.ARRIVED, delta.arrived, callers.arrives)
    new = counted(First.ANSWERED, delta.new, callers.is_new)
    failed = counted(First.ANSWERED, delta.new_failed, callers.is_new)
    return msgspec.structs.replace(
        delta.counts,
        callers_arrived=arrived,
        new_callers=new + failed,
        new_callers_failed=failed,
        callers_first_error=counted(
            First.FAILED, delta.first_error, lambda caller: callers.is_first(caller, callers.failed)
        ),
        callers_first_slow=counted(
            First.SLOW, delta.first_slow, lambda caller: callers.is_first(caller, callers.slow)
        ),
    )


def _in_bands(
    placed: Iterable[tuple[int, int]], callers: Callers, noted: list[tuple[First, int]]
) -> tuple[int, ...]:
    """A side's callers by band, of those who are compared for the first time."""
    counts = [0] * BANDS
    for caller, band in placed:
        if callers.is_predicted(caller):
            counts[band] += 1
            noted.append((First.PREDICTED, caller))
    return tuple(counts)


def _told(
    counts: LabelCounts,
    labelled: Iterable[tuple[int, bool]],
    callers: Callers | None,
    noted: list[tuple[First, int]],
) -> LabelCounts:
    """A side's labels with its callers counted against the book of the whole rollout."""
    if callers is None:
        return counts
    known = at_once = mistaken = 0
    for caller, wrong in labelled:
        if callers.is_labelled(caller):
            known, at_once = known + 1, at_once + wrong
            noted.append((First.LABELLED, caller))
        if wrong and callers.is_mistaken(caller):
            mistaken += 1
            noted.append((First.MISTAKEN, caller))
    return msgspec.structs.replace(
        counts, callers_labelled=known, callers_wrong_at_once=at_once, callers_first_wrong=mistaken
    )


def merge(first: Tick, second: Tick) -> Tick:
    """Two spans of one endpoint, rollout, epoch and weights as one."""
    pairs = first.pairs.plus(second.pairs) if first.pairs and second.pairs else first.pairs or second.pairs
    labels = (
        first.labels.plus(second.labels) if first.labels and second.labels else first.labels or second.labels
    )
    outputs = (
        first.outputs.plus(second.outputs)
        if first.outputs and second.outputs
        else first.outputs or second.outputs
    )
    texts = (*first.errors_seen, *(text for text in second.errors_seen if text not in first.errors_seen))
    return msgspec.structs.replace(
        second,
        started_at=min(first.started_at, second.started_at),
        ended_at=max(first.ended_at, second.ended_at),
        stable=first.stable.plus(second.stable),
        candidate=first.candidate.plus(second.candidate),
        others=tuple(one.plus(other) for one, other in zip(first.others, second.others, strict=True)),
        errors_seen=texts[:ERRORS_SEEN_MAX],
        pairs=pairs,
        labels=labels,
        outputs=outputs,
    )
