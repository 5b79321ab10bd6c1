"""The audit log as people and auditors read it: pages, a walk of the whole chain, and exports.

The log itself is the store's events; nothing here can change it.
"""

import csv
import io
from collections.abc import Iterator

from modelkeep.core import codec, errors
from modelkeep.core.access import Verb
from modelkeep.core.answers import EventPage, Verification
from modelkeep.core.events import EventKind, parse_head
from modelkeep.core.values import ModelName
from modelkeep.service.act import Act, Context, Desk
from modelkeep.store import events as store

EXPORT_LINES = 500
"""Lines of an export that are sent at a time."""


class Audit:
    """Reads the event log."""

    def log(
        self,
        act: Act,
        *,
        after: int,
        limit: int,
        model: ModelName | None,
        kind: str | None,
        subject: str | None,
        newest: bool,
    ) -> EventPage:
        """Events of a model, of a kind, of a subject, or all; oldest first after a sequence, or the newest
        first.

        Raises:
            NotAllowed: reading the log of this model, or of everything, is not granted.
            Invalid: more than one of model, kind and subject, or an unknown kind.
        """
        act.authorise(Verb.READ_AUDIT, model)
        if sum(given is not None for given in (model, kind, subject)) > 1:
            raise errors.Invalid("Ask for a model, a kind or a subject, one at a time.")
        which = _kind(kind)
        name = str(model) if model is not None else None
        if newest:
            items = act.tx.events.before(
                after or store.FAR, limit=limit, model=name, subject=subject, kind=which
            )
        else:
            items = act.tx.events.after(after, limit=limit, model=name, subject=subject, kind=which)
        more = items[-1].event.sequence if len(items) == limit else None
        return EventPage(items=tuple(items), next_after=more)

    def verify(self, desk: Desk, context: Context, head: str | None = None) -> Verification:
        """Walk the whole chain.

        Args:
            head: `SEQ:HASH` of an earlier walk; the chain must hold that event with that link. Without one, a
                log whose newest events were removed together with the stored head looks whole.

        Raises:
            BrokenChain: names the first event that does not fit.
            Invalid: the head has another form.
        """
        desk.read(context, _authorise)
        known = parse_head(head) if head is not None else None
        return Verification(intact=True, report=store.verify(desk.database, known))

    def export(self, desk: Desk, context: Context, *, form: str, after: int) -> Iterator[bytes]:
        """The log as JSON lines (with leaf and link, so that it can be verified elsewhere) or as CSV for
        people.
        """
        desk.read(context, _authorise)
        lines = _csv_lines(desk, after) if form == "csv" else _json_lines(desk, after)
        return _batched(lines)


def _authorise(act: Act) -> None:
    act.authorise(Verb.READ_AUDIT, None)


def _kind(text: str | None) -> EventKind | None:
    if text is None:
        return None
    try:
        return EventKind(text)
    except ValueError:
        known = ", ".join(EventKind)
        raise errors.Invalid(f"There is no event kind {text[:60]!r}; the kinds are {known}.") from None


def _json_lines(desk: Desk, after: int) -> Iterator[bytes]:
    for stored in store.walk(desk.database, after=after):
        yield codec.encode(stored) + b"\n"


_COLUMNS = ("sequence", "at", "kind", "actor", "subject", "model", "number", "reason", "request_id", "body")


def _csv_lines(desk: Desk, after: int) -> Iterator[bytes]:
    yield _row(_COLUMNS)
    for stored in store.walk(desk.database, after=after):
        event = stored.event
        yield _row(
            (
                str(event.sequence),
                codec.format_time(event.at),
                event.kind.value,
                event.actor.name,
                event.subject,
                event.model or "",
                "" if event.number is None else str(event.number),
                event.reason or "",
                event.request_id or "",
                codec.encode(event.body).decode(),
            )
        )


def _row(cells: tuple[str, ...]) -> bytes:
    """One CSV line; a cell that a spreadsheet would take for a formula is quoted with an apostrophe."""
    out = io.StringIO()
    csv.writer(out).writerow([f"'{cell}" if cell[:1] in "=+-@\t\r" and cell else cell for cell in cells])
    return out.getvalue().encode()


def _batched(lines: Iterator[bytes]) -> Iterator[bytes]:
    batch: list[bytes] = []
    for line in lines:
        batch.append(line)
        if len(batch) >= EXPORT_LINES:
            yield b"".join(batch)
            batch = []
    if batch:
        yield b"".join(batch)
