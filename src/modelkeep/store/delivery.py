"""The events that deployment figures are made of, found by kind, by model or by subject, each by an index.

What they mean is `core.deployments`' part; who may see them is the service's.
"""

from collections.abc import Iterable, Sequence

from sqlalchemy import bindparam, select

from modelkeep.core import codec
from modelkeep.core.events import Event, EventKind
from modelkeep.store.schema import events
from modelkeep.store.statements import one_of
from modelkeep.store.transaction import Transaction

EVENTS_MAX = 100_000
"""Events that one report is made of: more is a span that nobody reads as one figure."""

_WITHIN = (
    select(events.c.sequence, events.c.document)
    .where(
        one_of(events.c.kind, "kinds"),
        events.c.sequence > bindparam("after"),
        events.c.sequence <= bindparam("until"),
    )
    .limit(bindparam("limit"))
)
_OF_MODELS = _WITHIN.where(one_of(events.c.model, "names"))
_OF_SUBJECTS = (
    select(events.c.sequence, events.c.document)
    .where(
        one_of(events.c.subject, "subjects"),
        one_of(events.c.kind, "kinds"),
        events.c.sequence <= bindparam("until"),
    )
    .limit(bindparam("limit"))
)


def within(
    tx: Transaction, kinds: Iterable[EventKind], after: int, until: int, names: Sequence[str] | None = None
) -> list[Event]:
    """Events of some kinds after one number and up to another, in order; of models under some names, or all.
    At most one more than `EVENTS_MAX`."""
    asked = {"kinds": [kind.value for kind in kinds], "after": after, "until": until, "limit": EVENTS_MAX + 1}
    if names is None:
        return _events(tx.all(_WITHIN, **asked))
    return _events(tx.all(_OF_MODELS, names=list(names), **asked))


def of_subjects(
    tx: Transaction, subjects: Sequence[str], kinds: Iterable[EventKind], until: int
) -> list[Event]:
    """Events of some kinds of some subjects up to a number, in order. At most one more than `EVENTS_MAX`."""
    if not subjects:
        return []
    asked = {"kinds": [kind.value for kind in kinds], "until": until, "limit": EVENTS_MAX + 1}
    return _events(tx.all(_OF_SUBJECTS, subjects=list(subjects), **asked))


def _events(rows: Sequence[Sequence[object]]) -> list[Event]:
    ordered = sorted((int(str(row[0])), str(row[1])) for row in rows)
    return [codec.decode(document, Event) for _, document in ordered]
