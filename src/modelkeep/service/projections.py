"""Whether what people decide on is what the events say: metrics, parameters, stages, history, aliases.

The chain proves the events; this file proves the tables by them. It reads in short snapshots, one for each
model and one for each batch of versions, changes nothing, and cannot find a log that was rewritten as a whole
together with the tables: for that, somebody has to have kept a head (`audit verify --head`).
"""

from collections.abc import Callable, Iterator
from typing import Any

from modelkeep.core import codec, values
from modelkeep.core.answers import Altered
from modelkeep.core.events import EventKind
from modelkeep.core.values import ModelName
from modelkeep.service.act import Act, Context, Desk
from modelkeep.store import projections as store
from modelkeep.store import tracking_projections as tracked
from modelkeep.store.projections import Difference, ModelHead, RecordCheck
from modelkeep.store.tracking_projections import Tracked, TrackedDifference
from modelkeep.store.transaction import Transaction

# Limits of what is read and told; each with the reason for its size.
RECORDS_BATCH = 100
"""Versions of one short read: each may list thousands of files."""
MODELS_BATCH = 500
"""Models whose names are read at a time."""
TRACKED_BATCH = 200
"""Experiments, runs or logged models of one short read, with their events."""
SHOWN_MAX = 200
"""Characters that are shown of what was recorded, and of what was found."""


def find_altered(desk: Desk, context: Context) -> Iterator[Altered]:
    """Everything that was altered behind the events' back, model by model, then record by record.

    The caller's right to look is checked by whoever calls this.

    Raises:
        BrokenChain, MalformedBody: an event cannot be read; `audit verify` names it.
    """
    cursor = 0
    while told := desk.read(context, _told_after, cursor):
        for sequence, name, there in told:
            if not there:
                yield Altered(where=str(name), what="models", recorded=f"event {sequence}", found=None)
        cursor = told[-1][0]
    after = ""
    while batch := desk.read(context, _models_after, after):
        for model in batch:
            for difference in desk.read(context, _compare_model, model):
                yield _altered(model.name, difference)
        after = batch[-1].id
    after = ""
    while checks := desk.read(context, _compare_records, after):
        for check in checks:
            for difference in check.differences:
                yield _altered(check.model, difference)
        after = checks[-1].id
    yield from _find_tracked(desk, context)


def _find_tracked(desk: Desk, context: Context) -> Iterator[Altered]:
    """The same of experiments, runs and logged models."""
    for kind in tracked.MAKERS:
        cursor, gone = desk.read(context, _missing, kind, 0)
        while True:
            yield from map(_altered_tracked, gone)
            following, gone = desk.read(context, _missing, kind, cursor)
            if following == cursor:
                break
            cursor = following
    for compare in (tracked.compare_experiments, tracked.compare_runs, tracked.compare_logged_models):
        after = -1
        while batch := desk.read(context, _compare_tracked, compare, after):
            yield from map(_altered_tracked, batch.differences)
            after = batch.last


def _told_after(act: Act, after: int) -> list[tuple[int, ModelName, bool]]:
    return store.list_told(act.tx, after, MODELS_BATCH)


def _models_after(act: Act, after: str) -> list[ModelHead]:
    return store.list_models(act.tx, after, MODELS_BATCH)


def _compare_model(act: Act, model: ModelHead) -> list[Difference]:
    return store.compare_model(act.tx, model)


def _compare_records(act: Act, after: str) -> list[RecordCheck]:
    return store.compare_records(act.tx, after, RECORDS_BATCH)


def _missing(act: Act, kind: EventKind, after: int) -> tuple[int, list[TrackedDifference]]:
    return tracked.list_missing(act.tx, kind, after, TRACKED_BATCH)


def _compare_tracked(
    act: Act, compare: Callable[[Transaction, int, int], Tracked | None], after: int
) -> Tracked | None:
    return compare(act.tx, after, TRACKED_BATCH)


def _altered_tracked(difference: TrackedDifference) -> Altered:
    column = f".{difference.column}" if difference.column is not None else ""
    return Altered(
        where=difference.subject,
        what=f"{difference.table}{column}",
        recorded=_shown(difference.recorded),
        found=_shown(difference.found),
    )


def _altered(model: ModelName, difference: Difference) -> Altered:
    column = f".{difference.column}" if difference.column is not None else ""
    return Altered(
        where=f"{model}:#{difference.number}" if difference.number is not None else str(model),
        what=f"{difference.table}[{difference.key}]{column}",
        recorded=_shown(difference.recorded),
        found=_shown(difference.found),
    )


def _shown(value: Any) -> str | None:
    if value is None:
        return None
    text = value if isinstance(value, str) else codec.encode(value).decode()
    return values.printable(text)[:SHOWN_MAX]
