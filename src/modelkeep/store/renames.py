"""Which names a model had, and when: what the events of renaming say, kept so that a history is found whole.

An event is filed under the name that its model had then, and is never filed anew. So a model's past is read
name by name: `spans` says under which names, and between which events. A name that was given up may be
another model's since; its events are then told apart by their numbers. The table is a projection of the
MODEL_RENAMED events; nothing else writes it.
"""

from typing import NamedTuple

from sqlalchemy import bindparam, or_, select

from modelkeep.store.schema import model_renames
from modelkeep.store.statements import Runs, insert

FAR = 2**62
"""A number after every event there will be."""
NAMES_MAX = 100
"""Names of one model: each is one more read for every look at its past."""


class Span(NamedTuple):
    """A stretch of the log in which a model had a name: after one event, up to and with another."""

    name: str
    after: int
    until: int


_ADD = insert(model_renames)
_LAST = (
    select(model_renames.c.sequence, model_renames.c.from_name, model_renames.c.to_name)
    .where(
        or_(model_renames.c.to_name == bindparam("name"), model_renames.c.from_name == bindparam("name")),
        model_renames.c.sequence < bindparam("before"),
    )
    .order_by(model_renames.c.sequence.desc())
    .limit(1)
)
_NEXT = (
    select(model_renames.c.sequence, model_renames.c.to_name)
    .where(model_renames.c.from_name == bindparam("name"), model_renames.c.sequence > bindparam("after"))
    .order_by(model_renames.c.sequence)
    .limit(1)
)


def add(runs: Runs, sequence: int, before: str, after: str) -> None:
    """Note that a model has another full name from an event on."""
    runs.put(_ADD, sequence=sequence, from_name=before, to_name=after)


def spans(runs: Runs, name: str) -> list[Span]:
    """The names of the model that has this one now, the latest first."""
    found: list[Span] = []
    until = FAR - 1
    while len(found) < NAMES_MAX:
        row = runs.one(_LAST, name=name, before=until + 1)
        if row is None or row[2] != name:  # never renamed, or another one's name until then
            found.append(Span(name, row[0] if row else 0, until))
            break
        found.append(Span(name, row[0] - 1, until))
        name, until = row[1], row[0] - 1
    return found


def name_at(runs: Runs, name: str, sequence: int) -> str:
    """What the model of this name was called when an event happened."""
    return next((span.name for span in spans(runs, name) if span.after < sequence), name)


def name_now(runs: Runs, name: str, since: int = 0) -> str:
    """What the model that had this name after an event is called now; the name itself if it was never
    renamed."""
    for _ in range(NAMES_MAX):
        row = runs.one(_NEXT, name=name, after=since)
        if row is None:
            return name
        since, name = row[0], row[1]
    return name


def last_given_up(runs: Runs, name: str) -> str | None:
    """What the model that had this name last is called now; None when nobody gave the name up."""
    row = runs.one(_LAST, name=name, before=FAR)
    return name_now(runs, row[2], row[0]) if row is not None and row[1] == name else None
