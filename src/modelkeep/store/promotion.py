"""Rows of stages and stays: where versions stand, and where they stood.

`occupancy` (where each version stands) and `stage_intervals` (who stood where, from when to when) are
projections of the event log: `project` writes them from an event in the transaction that appends it, and
`rebuild` makes them anew from all events. Besides, only `catalog` writes them, when it removes a version.

What may move is decided by `core.promotion`; this file decides nothing. Requests to move something are in
`requests`, and policies in `policies`.
"""

import heapq
from collections.abc import Iterator
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import BigInteger, bindparam, case, cast, delete, func, select, update

from modelkeep.core import codec, promotion
from modelkeep.core.catalog import StageGraph
from modelkeep.core.events import Event, EventKind
from modelkeep.core.promotion import Interval, MoveCause
from modelkeep.core.values import PAGE_MAX, ModelName
from modelkeep.store.schema import (
    models,
    occupancy,
    stage_intervals,
    versions,
)
from modelkeep.store.statements import Row, insert, json_text, one_of
from modelkeep.store.transaction import Transaction

_OCCUPANT = (
    select(occupancy.c.number, versions.c.semver)
    .join(
        versions,
        (versions.c.model_id == occupancy.c.model_id) & (versions.c.number == occupancy.c.number),
    )
    .where(occupancy.c.model_id == bindparam("model_id"), occupancy.c.stage == bindparam("stage"))
    .order_by(occupancy.c.number.desc())
    .limit(1)
)
_HELD = (
    select(occupancy.c.stage, cast(func.count(), BigInteger))
    .where(occupancy.c.model_id == bindparam("model_id"))
    .group_by(occupancy.c.stage)
    .order_by(occupancy.c.stage)
)
_LEAVE = delete(occupancy).where(
    occupancy.c.model_id == bindparam("model_id"), one_of(occupancy.c.number, "numbers")
)
_ENTER = insert(occupancy)
_SET_EXCLUSIVE = (
    update(occupancy)
    .where(occupancy.c.model_id == bindparam("which"), occupancy.c.stage == bindparam("name"))
    .values(exclusive=bindparam("flag"))
)

_INTERVAL = (
    stage_intervals.c.stage,
    stage_intervals.c.number,
    stage_intervals.c.semver,
    stage_intervals.c.from_at,
    stage_intervals.c.from_sequence,
    stage_intervals.c.to_at,
    stage_intervals.c.to_sequence,
    stage_intervals.c.cause,
    stage_intervals.c.actor,
    stage_intervals.c.reason,
    stage_intervals.c.request_id,
    stage_intervals.c.rollout_id,
    stage_intervals.c.approved_by,
)
_OPEN_STAY = insert(stage_intervals)
_END_STAY = (
    update(stage_intervals)
    .where(
        stage_intervals.c.model_id == bindparam("which"),
        one_of(stage_intervals.c.number, "numbers"),
        stage_intervals.c.to_sequence.is_(None),
    )
    .values(to_at=bindparam("at"), to_sequence=bindparam("sequence"))
)
_RUNNING = select(*_INTERVAL).where(
    stage_intervals.c.model_id == bindparam("model_id"),
    stage_intervals.c.number == bindparam("number"),
    stage_intervals.c.to_sequence.is_(None),
)
_STAYS = (
    select(*_INTERVAL)
    .where(
        stage_intervals.c.model_id == bindparam("model_id"),
        stage_intervals.c.from_sequence < bindparam("before"),
    )
    # One event begins two stays where a version displaces another: the newcomer is told first.
    .order_by(
        stage_intervals.c.from_sequence.desc(),
        case((stage_intervals.c.cause == MoveCause.DISPLACED.value, 1), else_=0),
    )
    .limit(bindparam("limit"))
)
_STAYS_IN = _STAYS.where(stage_intervals.c.stage == bindparam("stage"))
_IN_STAGE_AT = (
    select(*_INTERVAL)
    .where(
        stage_intervals.c.model_id == bindparam("model_id"),
        stage_intervals.c.stage == bindparam("stage"),
        stage_intervals.c.from_sequence <= bindparam("sequence"),
        stage_intervals.c.to_sequence.is_(None) | (stage_intervals.c.to_sequence > bindparam("sequence")),
    )
    .order_by(stage_intervals.c.from_sequence.desc())
    .limit(bindparam("limit"))
)
_last = (
    select(
        stage_intervals.c.number,
        cast(func.max(stage_intervals.c.from_sequence), BigInteger).label("last"),
    )
    .where(
        stage_intervals.c.model_id == bindparam("model_id"),
        stage_intervals.c.stage == bindparam("stage"),
    )
    .group_by(stage_intervals.c.number)
    .subquery()
)
_FORMER = (
    select(*_INTERVAL)
    .join(
        _last,
        (stage_intervals.c.number == _last.c.number) & (stage_intervals.c.from_sequence == _last.c.last),
    )
    .join(
        versions,
        (versions.c.model_id == stage_intervals.c.model_id) & (versions.c.number == stage_intervals.c.number),
    )
    .where(
        stage_intervals.c.model_id == bindparam("model_id"),
        stage_intervals.c.stage == bindparam("stage"),
        versions.c.status == "ready",
        versions.c.tombstone.is_(None),
    )
    .order_by(stage_intervals.c.from_sequence.desc())
    .limit(bindparam("limit"))
)
_WAS_IN = (
    select(stage_intervals.c.from_sequence)
    .where(
        stage_intervals.c.model_id == bindparam("model_id"),
        stage_intervals.c.stage == bindparam("stage"),
        stage_intervals.c.number == bindparam("number"),
    )
    .limit(1)
)
_FORGET_STAYS = delete(stage_intervals)
_FORGET_PLACES = delete(occupancy)
_MODELS = (
    select(models.c.id, models.c.project, models.c.name, models.c.stages)
    .where(models.c.id > bindparam("after"))
    .order_by(models.c.id)
    .limit(bindparam("limit"))
)


class Occupant(NamedTuple):
    """Who stands in an exclusive stage."""

    number: int
    semver: str


def occupant(tx: Transaction, model_id: str, stage: str) -> Occupant | None:
    """The version that stands in an exclusive stage now."""
    row = tx.one(_OCCUPANT, model_id=model_id, stage=stage)
    return Occupant(*row) if row else None


def held(tx: Transaction, model_id: str) -> dict[str, int]:
    """How many versions stand in each stage but the first, by stage."""
    return {stage: int(count) for stage, count in tx.all(_HELD, model_id=model_id)}


def set_exclusive(tx: Transaction, model_id: str, graph: StageGraph) -> None:
    """Make the places in each stage exclusive or not, as a new stage graph says.

    Raises:
        ConstraintFailed: two versions stand in a stage that is to be exclusive.
    """
    for spec in graph.stages:
        tx.put(_SET_EXCLUSIVE, which=model_id, name=spec.name, flag=int(spec.exclusive))


def project(tx: Transaction, model_id: str, graph: StageGraph, event: Event) -> Interval:
    """Bring the projections up to a STAGE_MOVED event; the new stay of the version that moved.

    Raises:
        ConstraintFailed: somebody else stands in an exclusive stage.
    """
    begun = promotion.stays_of(event)
    moved = [stay.number for stay, _ in begun]
    kept = [stay for stay, is_kept in begun if is_kept]
    # Both leave before one enters: the slot has to be free.
    tx.put(_END_STAY, which=model_id, numbers=moved, at=_at(event.at), sequence=event.sequence)
    tx.put(_LEAVE, model_id=model_id, numbers=moved)
    tx.put_many(_OPEN_STAY, [stay_row(model_id, stay) for stay in kept])
    tx.put_many(_ENTER, [place_row(model_id, graph, stay) for stay in kept])
    return begun[0].interval


def running_stay(tx: Transaction, model_id: str, number: int) -> Interval | None:
    """Where a version stands now, and since when; None when it has never left the first stage."""
    row = tx.one(_RUNNING, model_id=model_id, number=number)
    return _interval(row) if row else None


def stays(tx: Transaction, model_id: str, stage: str | None, before: int, limit: int) -> list[Interval]:
    """The stays in a stage, or in all, that began before an event, the latest first."""
    if stage is None:
        rows = tx.all(_STAYS, model_id=model_id, before=before, limit=limit)
    else:
        rows = tx.all(_STAYS_IN, model_id=model_id, before=before, limit=limit, stage=stage)
    return [_interval(row) for row in rows]


def in_stage_at(tx: Transaction, model_id: str, stage: str, sequence: int, limit: int) -> list[Interval]:
    """Who stood in a stage when an event had just happened, the last to come first."""
    rows = tx.all(_IN_STAGE_AT, model_id=model_id, stage=stage, sequence=sequence, limit=limit)
    return [_interval(row) for row in rows]


def former(tx: Transaction, model_id: str, stage: str, limit: int) -> list[Interval]:
    """The last stay in a stage of each version that still exists and was not taken back, oldest first; of the
    `limit` latest.
    """
    rows = tx.all(_FORMER, model_id=model_id, stage=stage, limit=limit)
    return [_interval(row) for row in reversed(rows)]


def was_in(tx: Transaction, model_id: str, stage: str, number: int) -> bool:
    """Whether a version is or was in a stage."""
    return tx.one(_WAS_IN, model_id=model_id, stage=stage, number=number) is not None


def rebuild(tx: Transaction) -> None:
    """Make stays and places anew from the events alone, and the models' stage graphs.

    It reads the whole log in one transaction, and so belongs into repairs and tests, not into a request.
    """
    folded = promotion.fold_stays(_moves(tx))
    tx.put(_FORGET_STAYS)
    tx.put(_FORGET_PLACES)
    after = ""
    while rows := tx.all(_MODELS, after=after, limit=PAGE_MAX):
        for model_id, model_project, name, graph_text in rows:
            graph = codec.decode(graph_text, StageGraph)
            found = folded.get(str(ModelName(model_project, name)), [])
            tx.put_many(_OPEN_STAY, [stay_row(model_id, stay) for stay in found])
            now = [stay for stay in found if stay.to_sequence is None]
            tx.put_many(_ENTER, [place_row(model_id, graph, stay) for stay in now])
        after = rows[-1][0]


_MOVING = (
    EventKind.STAGE_MOVED,
    EventKind.VERSION_DELETED,
    EventKind.MODEL_DELETED,
    EventKind.MODEL_RENAMED,
)


def _moves(tx: Transaction) -> Iterator[Event]:
    """Every event that moves a version, in order."""
    return heapq.merge(*(_of_kind(tx, kind) for kind in _MOVING), key=lambda event: event.sequence)


def _of_kind(tx: Transaction, kind: EventKind) -> Iterator[Event]:
    cursor = 0
    while batch := tx.events.after(cursor, kind=kind, limit=PAGE_MAX):
        yield from (stored.event for stored in batch)
        cursor = batch[-1].event.sequence


def _at(moment: datetime) -> str:
    return codec.format_time(moment)


def stay_row(model_id: str, stay: Interval) -> dict[str, Any]:
    """A stay as the columns of `stage_intervals`."""
    return {
        "model_id": model_id,
        "stage": stay.stage,
        "number": stay.number,
        "semver": stay.semver,
        "from_at": _at(stay.from_at),
        "from_sequence": stay.from_sequence,
        "to_at": _at(stay.to_at) if stay.to_at is not None else None,
        "to_sequence": stay.to_sequence,
        "cause": stay.cause.value,
        "actor": stay.actor,
        "reason": stay.reason,
        "request_id": stay.request,
        "rollout_id": stay.rollout,
        "approved_by": json_text(stay.approved_by),
    }


def place_row(model_id: str, graph: StageGraph, stay: Interval) -> dict[str, Any]:
    """The place that a running stay takes, as the columns of `occupancy`.

    Raises:
        InvalidTransition: the graph does not have that stage.
    """
    return {
        "model_id": model_id,
        "number": stay.number,
        "stage": stay.stage,
        "exclusive": int(graph.stage(stay.stage).exclusive),
        "since_at": _at(stay.from_at),
        "since_sequence": stay.from_sequence,
    }


def _interval(row: Row) -> Interval:
    return Interval(
        stage=row[0],
        number=row[1],
        semver=row[2],
        from_at=codec.parse_time(row[3]),
        from_sequence=row[4],
        to_at=codec.parse_time(row[5]) if row[5] is not None else None,
        to_sequence=row[6],
        cause=MoveCause(row[7]),
        actor=row[8],
        reason=row[9],
        request=row[10],
        rollout=row[11],
        approved_by=codec.decode(row[12], tuple[str, ...]),
    )
