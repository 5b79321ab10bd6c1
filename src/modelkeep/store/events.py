"""The event log in the store: append within a write, read after a cursor, walk to verify.

`core.events` knows what an event is and how the chain is made; this file gives the next number and keeps the
rows. It delivers nothing: whoever follows the log is woken by `Database.on_commit` and reads after its own
cursor.

Only one transaction writes at a time (SQLite's lock; on Postgres an advisory lock taken when it begins), so
the number after the last one is nobody else's, and the order of numbers is the order of commits: a reader
that has seen number n will never find a smaller one appear later.
"""

from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any, NamedTuple, Protocol, TypeVar

from sqlalchemy import bindparam, select, update

from modelkeep.core import codec, errors, values
from modelkeep.core import events as core
from modelkeep.core.events import ChainedEvent, ChainReport, Event, EventKind, KnownHead
from modelkeep.core.values import Actor
from modelkeep.store import renames
from modelkeep.store.schema import chain_head, events
from modelkeep.store.statements import Asks, Row, Runs, insert

T = TypeVar("T")

WALK_BATCH = 1_000
"""Events read in one transaction when the whole log is walked: few enough that no reader holds the database
up."""

_COLUMNS = (events.c.sequence, events.c.document, events.c.leaf, events.c.link)
_INDEXED = (events.c.kind, events.c.at, events.c.subject, events.c.model, events.c.number)
_INSERT = insert(events)
_HEAD = select(chain_head.c.sequence, chain_head.c.link)
_SET_HEAD = update(chain_head).values(sequence=bindparam("sequence"), link=bindparam("link"))
_IN_ORDER = select(*_COLUMNS).order_by(events.c.sequence).limit(bindparam("limit"))
_LATEST_FIRST = select(*_COLUMNS).order_by(events.c.sequence.desc()).limit(bindparam("limit"))
_AFTER = _IN_ORDER.where(events.c.sequence > bindparam("after"))
_OF_MODEL = _IN_ORDER.where(
    events.c.model == bindparam("model"),
    events.c.sequence > bindparam("after"),
    events.c.sequence <= bindparam("until"),
)
_OF_SUBJECT = _IN_ORDER.where(
    events.c.subject == bindparam("subject"), events.c.sequence > bindparam("after")
)
_OF_KIND = _IN_ORDER.where(events.c.kind == bindparam("kind"), events.c.sequence > bindparam("after"))
_BEFORE = _LATEST_FIRST.where(events.c.sequence < bindparam("before"))
_OF_MODEL_BEFORE = _LATEST_FIRST.where(
    events.c.model == bindparam("model"),
    events.c.sequence > bindparam("after"),
    events.c.sequence < bindparam("before"),
)
_OF_SUBJECT_BEFORE = _LATEST_FIRST.where(
    events.c.subject == bindparam("subject"), events.c.sequence < bindparam("before")
)
_OF_KIND_BEFORE = _LATEST_FIRST.where(
    events.c.kind == bindparam("kind"), events.c.sequence < bindparam("before")
)
_WALK = (
    select(*_COLUMNS, *_INDEXED)
    .where(events.c.sequence > bindparam("after"))
    .order_by(events.c.sequence)
    .limit(bindparam("limit"))
)
_GET = select(*_COLUMNS).where(events.c.sequence == bindparam("sequence"))
_AS_OF = (
    select(events.c.sequence)
    .where(events.c.at <= bindparam("at"))
    .order_by(events.c.at.desc(), events.c.sequence.desc())
    .limit(1)
)

FAR = renames.FAR
"""A cursor after every event there will be."""


class Head(NamedTuple):
    """Where the chain ends: the last event's number and link; 0 and GENESIS before the first."""

    sequence: int
    link: bytes


class Events:
    """The event log within one transaction; `tx.events` is one."""

    __slots__ = ("_asked", "_head", "_runs", "_stored", "_writing")

    def __init__(self, runs: Runs, *, writing: bool) -> None:
        self._runs = runs
        self._writing = writing
        self._head: Head | None = None
        self._stored: Head | None = None
        self._asked: Asks | None = None

    def append(
        self,
        kind: EventKind,
        *,
        at: datetime,
        actor: Actor,
        subject: str,
        model: str | None = None,
        number: int | None = None,
        reason: str | None = None,
        request_id: str | None = None,
        body: dict[str, Any] | None = None,
    ) -> Event:
        """Append an event to the log, linked to the one before it; it is kept or lost with the job's other
        changes.

        Raises:
            Invalid: the body holds a number that has no canonical form.
        """
        if not self._writing:
            raise RuntimeError("events are appended in Database.write, not in a read")
        head = self._head or self._read_head()
        event = Event(
            sequence=head.sequence + 1,
            kind=kind,
            at=at,
            actor=actor,
            subject=subject,
            model=model,
            number=number,
            reason=reason,
            request_id=request_id,
            body=body or {},
        )
        linked = core.link(head.link, event)
        self._runs.put(
            _INSERT,
            sequence=event.sequence,
            kind=kind.value,
            at=codec.format_time(at),
            subject=subject,
            model=model,
            number=number,
            document=linked.document.decode(),
            leaf=linked.leaf.hex(),
            link=linked.link.hex(),
        )
        self._head = Head(event.sequence, linked.link)
        return event

    # ----------------------------------------------------------------------------------------- for the writer

    def expect(self) -> None:
        """Have the chain's end read along with the first statement of the transaction."""
        self._asked = self._runs.ask(_HEAD)

    def mark(self) -> Head | None:
        """Where the chain ends now, to be given to `back_to` when a job is undone."""
        return self._head

    def back_to(self, mark: Head | None) -> None:
        """Forget what was appended since."""
        self._head = mark

    def flush(self) -> int | None:
        """Write down where the chain ends, once for all events of the transaction; the last number, if there
        are any."""
        if self._head is None or self._head == self._stored:
            return None
        self._runs.put(_SET_HEAD, sequence=self._head.sequence, link=self._head.link.hex())
        return self._head.sequence

    def _read_head(self) -> Head:
        asked, self._asked = self._asked, None
        self._stored = self._head = self.head() if asked is None else _head_of(asked.all())
        return self._stored

    # ------------------------------------------------------------------------------------------------ reading

    def head(self) -> Head:
        """Where the chain ends."""
        return _head_of(self._runs.all(_HEAD))

    def get(self, sequence: int) -> ChainedEvent:
        """One event.

        Raises:
            EventNotFound: there is none with this number.
        """
        row = self._runs.one(_GET, sequence=sequence)
        if row is None:
            raise errors.EventNotFound(
                f"There is no event {sequence}; see 'modelkeep audit log'.", sequence=sequence
            )
        return _chained(row)

    def after(
        self,
        cursor: int = 0,
        *,
        limit: int = values.PAGE_DEFAULT,
        model: str | None = None,
        subject: str | None = None,
        kind: EventKind | None = None,
    ) -> list[ChainedEvent]:
        """The events after a cursor, oldest first; of one model under every name it had, one subject or one
        kind (name at most one of them)."""
        if model is not None:
            self._only_model(subject, kind)
            return self._of_model(model, cursor, limit)
        statement, narrowed = _narrow(_AFTER, _OF_SUBJECT, _OF_KIND, subject, kind)
        return [
            _chained(row) for row in self._runs.all(statement, after=cursor, limit=_page(limit), **narrowed)
        ]

    def before(
        self,
        cursor: int = FAR,
        *,
        limit: int = values.PAGE_DEFAULT,
        model: str | None = None,
        subject: str | None = None,
        kind: EventKind | None = None,
    ) -> list[ChainedEvent]:
        """The events before a cursor, latest first: how people read a log."""
        if model is not None:
            self._only_model(subject, kind)
            return self._of_model_before(model, cursor, limit)
        statement, narrowed = _narrow(_BEFORE, _OF_SUBJECT_BEFORE, _OF_KIND_BEFORE, subject, kind)
        return [
            _chained(row) for row in self._runs.all(statement, before=cursor, limit=_page(limit), **narrowed)
        ]

    @staticmethod
    def _only_model(subject: str | None, kind: str | None) -> None:
        if subject is not None or kind is not None:
            raise TypeError("name at most one of model, subject and kind")

    def _of_model(self, model: str, cursor: int, limit: int) -> list[ChainedEvent]:
        rows: list[Row] = []
        for span in reversed(renames.spans(self._runs, model)):
            room = _page(limit) - len(rows)
            if room and span.until > cursor:
                after = max(cursor, span.after)
                rows += self._runs.all(_OF_MODEL, model=span.name, after=after, until=span.until, limit=room)
        return [_chained(row) for row in rows]

    def _of_model_before(self, model: str, cursor: int, limit: int) -> list[ChainedEvent]:
        rows: list[Row] = []
        for span in renames.spans(self._runs, model):
            room = _page(limit) - len(rows)
            if room and span.after < cursor:
                before = min(cursor, span.until + 1)
                rows += self._runs.all(
                    _OF_MODEL_BEFORE, model=span.name, after=span.after, before=before, limit=room
                )
        return [_chained(row) for row in rows]

    def as_of(self, at: datetime) -> int:
        """The number of the latest event at a time; 0 before the first. The state then is the fold of 1 to
        it."""
        row = self._runs.one(_AS_OF, at=codec.format_time(at))
        return row[0] if row else 0


def _head_of(rows: list[Row]) -> Head:
    if not rows:
        raise errors.BrokenChain("The audit log has no head; restore the database from a backup.")
    return Head(rows[0][0], bytes.fromhex(rows[0][1]))


def _narrow(
    whole: Any,
    of_subject: Any,
    of_kind: Any,
    subject: str | None,
    kind: str | None,
) -> tuple[Any, dict[str, str]]:
    match (subject, kind):
        case (None, None):
            return whole, {}
        case (str(), None):
            return of_subject, {"subject": subject}
        case (None, str()):
            return of_kind, {"kind": str(kind)}
        case _:
            raise TypeError("name at most one of model, subject and kind")


def _page(limit: int) -> int:
    if not 1 <= limit <= values.PAGE_MAX:
        raise errors.LimitExceeded(f"A page has 1 to {values.PAGE_MAX:,} rows, not {limit}.", field="limit")
    return limit


def _chained(row: Row) -> ChainedEvent:
    try:
        return ChainedEvent(event=codec.decode(row[1], Event), leaf=row[2], link=row[3])
    except errors.MalformedBody as problem:
        raise errors.BrokenChain(
            f"Event {row[0]} of the audit log cannot be read ({problem}). Compare with a backup.",
            sequence=row[0],
        ) from problem


def _checked(row: Row) -> ChainedEvent:
    """An event whose columns, which histories are found by, say the same as its document, which is hashed.

    The document must be the canonical one to the last bit: a reader forgives a key it does not know, or
    another way to write a time; a proof must not.
    """
    stored = _chained(row)
    event = stored.event
    if codec.canonical(event).decode() != row[1]:
        raise errors.BrokenChain(
            f"Event {row[0]} of the audit log is not written as it was: its text was changed after it was "
            "written. Compare with a backup.",
            sequence=row[0],
        )
    said = (event.kind.value, codec.format_time(event.at), event.subject, event.model, event.number)
    if (event.sequence, *said) != (row[0], *row[4:]):
        raise errors.BrokenChain(
            f"Event {row[0]} is filed as something else than it says it is: its row was changed after it was "
            "written. Compare with a backup.",
            sequence=row[0],
        )
    return stored


class Log(Protocol):
    """What can be read from in many short transactions: a Database."""

    def read(self, job: "Callable[[Any], T]", /) -> T: ...


def walk(log: Log, *, after: int = 0, until: int = FAR) -> Iterator[ChainedEvent]:
    """All events after a cursor up to `until`, a batch to a transaction: no snapshot is held for long.

    Raises:
        BrokenChain: a row cannot be read, or is filed as something else than it says.
    """
    while after < until:
        batch: list[ChainedEvent] = log.read(_batch_after(after))
        for stored in batch:
            if stored.event.sequence > until:
                return
            yield stored
        if len(batch) < WALK_BATCH:
            return
        after = batch[-1].event.sequence


def _batch_after(cursor: int) -> Callable[[Any], list[ChainedEvent]]:
    return lambda tx: [_checked(row) for row in tx.all(_WALK, after=cursor, limit=WALK_BATCH)]


def verify(log: Log, known: KnownHead | None = None) -> ChainReport:
    """Recompute every leaf and link of the stored log, and that it ends where the head says it does.

    Args:
        known: a head from an earlier walk, which must be part of the log.

    Raises:
        BrokenChain: names the first event that does not fit, or says that the end is missing.
    """
    head: Head = log.read(lambda tx: tx.events.head())
    report = core.verify(walk(log, until=head.sequence), known=known)
    if report.events != head.sequence or report.head != head.link.hex():
        raise errors.BrokenChain(
            f"The audit log ends at event {report.events}, but event {head.sequence} was written: events "
            "were cut off at its end. Compare with a backup.",
            sequence=report.events + 1,
        )
    return report
