"""Stored rows held against the event log: what stands in the tables, and what the events say should.

Every answer about the past or the present is read from tables that anybody with the database's password can
write to, while only the events are chained. Here both are read in one snapshot, model by model or in batches
of versions, and laid side by side as plain columns. Nothing is written or mended, and what a difference means
is said elsewhere.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

from sqlalchemy import Table, bindparam, select

from modelkeep.core import codec, errors, promotion, registration
from modelkeep.core.catalog import ModelVersion, StageGraph
from modelkeep.core.events import Event, EventKind
from modelkeep.core.promotion import Interval
from modelkeep.core.values import PAGE_MAX, ModelName, parse_ref
from modelkeep.store import renames
from modelkeep.store.models import find_model, texts
from modelkeep.store.promotion import place_row, stay_row
from modelkeep.store.schema import (
    aliases,
    models,
    occupancy,
    stage_intervals,
    version_files,
    version_metrics,
    version_params,
    versions,
)
from modelkeep.store.statements import one_of
from modelkeep.store.transaction import Transaction
from modelkeep.store.versions import searched_by

Cells = dict[str, Any]
"""Columns of a row by name."""
Key = tuple[Any, ...]
"""What a row of a table is known by."""


class Difference(NamedTuple):
    """A cell, or a whole row, that is not what it was; `column` is None for a row that is there on one side
    only."""

    number: int | None
    table: str
    key: str
    column: str | None
    recorded: Any
    found: Any


class ModelHead(NamedTuple):
    """A model that has been, deleted or not."""

    id: str
    name: ModelName
    stages: str


_MODELS = (
    select(models.c.id, models.c.project, models.c.name, models.c.stages)
    .where(models.c.id > bindparam("after"))
    .order_by(models.c.id)
    .limit(bindparam("limit"))
)
_EXISTENCE = ("semver", "status", "from_sequence", "to_sequence", "tombstone", "yanked")
_EXIST = select(versions.c.number, *(versions.c[name] for name in _EXISTENCE)).where(
    versions.c.model_id == bindparam("model_id")
)
_POINTERS = select(aliases.c.alias, aliases.c.number, aliases.c.protected).where(
    aliases.c.model_id == bindparam("model_id")
)
_PLACES = select(occupancy).where(occupancy.c.model_id == bindparam("model_id"))
_STAYS = select(stage_intervals).where(stage_intervals.c.model_id == bindparam("model_id"))

_STATED = (
    *("number", "semver", "digest", "size_bytes", "parent", "created_by", "created_at"),
    *("framework", "run_id", "source", "code_commit", "identity"),
)
_RECORDS = (
    select(
        versions.c.id,
        models.c.project,
        models.c.name,
        versions.c.status,
        versions.c.from_sequence,
        versions.c.document,
        *(versions.c[name] for name in _STATED),
    )
    .join(models, models.c.id == versions.c.model_id)
    .where(versions.c.id > bindparam("after"))
    .order_by(versions.c.id)
    .limit(bindparam("limit"))
)
_SIDES: tuple[tuple[Table, str, tuple[str, ...]], ...] = (
    (version_metrics, "name", ("value",)),
    (version_params, "key", ("value", "value_head", "number")),
    (version_files, "path", ("digest", "size_bytes", "media_type")),
)
"""The tables that versions are searched and pulled by; each says again what the record says."""
_SIDE = {
    table.name: select(table.c.version_id, table.c[key], *(table.c[name] for name in columns)).where(
        one_of(table.c.version_id, "ids")
    )
    for table, key, columns in _SIDES
}


def list_models(tx: Transaction, after: str, limit: int) -> list[ModelHead]:
    """Every model that has been, in the order of ids."""
    return [
        ModelHead(id, ModelName(project, name), stages)
        for id, project, name, stages in tx.all(_MODELS, after=after, limit=limit)  # noqa: A001
    ]


def list_told(tx: Transaction, after: int, limit: int) -> list[tuple[int, ModelName, bool]]:
    """The models that events say were created, in order: the event's number, the name, and whether there is a
    row. A row is kept when its model is deleted, so one that is missing was taken away."""
    created = [stored.event for stored in tx.events.after(after, kind=EventKind.MODEL_CREATED, limit=limit)]
    names = [
        parse_ref(renames.name_now(tx, event.model or event.subject, event.sequence)).model
        for event in created
    ]
    return [
        (event.sequence, name, find_model(tx, name, deleted=True) is not None)
        for event, name in zip(created, names, strict=True)
    ]


# ------------------------------------------------------------------------------------------------- of a model


def compare_model(tx: Transaction, model: ModelHead) -> list[Difference]:
    """Which versions exist, were taken back or yanked, where they stand and stood, and where aliases point:
    as stored, against a fold of the model's own events.

    Raises:
        BrokenChain, MalformedBody: an event cannot be read.
    """
    told = _Told()
    stays = promotion.fold_stays(told.noting(_events_of(tx, model.name))).get(str(model.name), [])
    graph = codec.decode(model.stages, StageGraph)
    existing = {(row[0],): dict(zip(_EXISTENCE, row[1:], strict=True)) for row in _all(tx, _EXIST, model)}
    pointers = {
        (alias,): {"number": number, "protected": protected}
        for alias, number, protected in _all(tx, _POINTERS, model)
    }
    places = {(row["number"],): row for row in _cells(tx, occupancy, _PLACES, model)}
    stood = {(row["number"], row["from_sequence"]): row for row in _cells(tx, stage_intervals, _STAYS, model)}
    return [
        *_differences("versions", told.versions, existing),
        *_differences("aliases", told.pointers(), pointers),
        *_differences("occupancy", _places(model.id, graph, stays), places),
        *_differences(
            "stage_intervals", {(s.number, s.from_sequence): stay_row(model.id, s) for s in stays}, stood
        ),
    ]


class _Told:
    """What a model's events say of its versions and aliases, beside the stays."""

    def __init__(self) -> None:
        self.versions: dict[Key, Cells] = {}
        self._aliases: dict[str, Cells] = {}

    def noting(self, events: Iterator[Event]) -> Iterator[Event]:
        """The same events, each noted as it goes by."""
        for event in events:
            self._note(event)
            yield event

    def pointers(self) -> dict[Key, Cells]:
        """Where the aliases point."""
        return {(alias,): cells for alias, cells in self._aliases.items()}

    def _note(self, event: Event) -> None:
        match event.kind:
            case EventKind.VERSION_REGISTERED:
                self.versions[(event.number,)] = {
                    "semver": event.subject.rpartition(":")[2],
                    "status": "ready",
                    "from_sequence": event.sequence,
                    "to_sequence": None,
                    "tombstone": None,
                    "yanked": None,
                }
            case EventKind.VERSION_TOMBSTONED | EventKind.VERSION_CLEARED:
                taken_back = event.kind is EventKind.VERSION_TOMBSTONED
                self._of(event)["tombstone"] = event.reason if taken_back else None
            case EventKind.VERSION_YANKED | EventKind.VERSION_UNYANKED:
                yanked = event.kind is EventKind.VERSION_YANKED
                self._of(event)["yanked"] = event.reason if yanked else None
            case EventKind.VERSION_DELETED:
                self._of(event).update(status="deleted", to_sequence=event.sequence)
            case EventKind.MODEL_DELETED:
                for cells in self.versions.values():
                    if cells["status"] == "ready":
                        cells.update(status="deleted", to_sequence=event.sequence)
            case EventKind.ALIAS_SET:
                protected = int(bool(event.body.get("protected")))
                self._aliases[_alias_of(event)] = {"number": event.number, "protected": protected}
            case EventKind.ALIAS_DELETED:
                self._aliases.pop(_alias_of(event), None)
            case _:
                pass

    def _of(self, event: Event) -> Cells:
        return self.versions.setdefault((event.number,), {})


def _alias_of(event: Event) -> str:
    """The alias that an event is about: it stands in the subject, `model@alias`, behind the name of then."""
    return event.subject.rpartition("@")[2]


def _places(model_id: str, graph: StageGraph, stays: list[Interval]) -> dict[Key, Cells]:
    """Where each version has to stand; a stage that the model's graph does not know is not exclusive."""
    found: dict[Key, Cells] = {}
    known = {spec.name for spec in graph.stages}
    for stay in stays:
        if stay.to_sequence is None and stay.stage in known:
            found[(stay.number,)] = place_row(model_id, graph, stay)
    return found


def _events_of(tx: Transaction, model: ModelName) -> Iterator[Event]:
    cursor = 0
    while batch := tx.events.after(cursor, model=str(model), limit=PAGE_MAX):
        yield from (stored.event for stored in batch)
        cursor = batch[-1].event.sequence


def _all(tx: Transaction, statement: Any, model: ModelHead) -> list[tuple[Any, ...]]:
    return tx.all(statement, model_id=model.id)


def _cells(tx: Transaction, table: Table, statement: Any, model: ModelHead) -> list[Cells]:
    names = [column.name for column in table.columns]
    return [dict(zip(names, row, strict=True)) for row in _all(tx, statement, model)]


# --------------------------------------------------------------------------------------------------- records


class RecordCheck(NamedTuple):
    """A version and what of its record is not what its event vouched for."""

    id: str
    model: ModelName
    number: int
    differences: list[Difference]


def compare_records(tx: Transaction, after: str, limit: int) -> list[RecordCheck]:
    """Versions, deleted ones too, in the order of ids: the stored record against the digest in its event, and
    columns and side tables against the record.

    Raises:
        BrokenChain: an event cannot be read.
    """
    rows = tx.all(_RECORDS, after=after, limit=limit)
    sides = _sides(tx, [row[0] for row in rows])
    found = []
    for id, project, name, status, sequence, document, *columns in rows:  # noqa: A001
        model = ModelName(project, name)
        number = columns[0]
        stored = dict(zip(_STATED, columns, strict=True))
        differences = _of_record(tx, model, number, sequence, document)
        try:
            version = codec.decode(document, ModelVersion)
        except errors.MalformedBody:
            version = None  # said already: it has no digest any more
        if version is not None:
            differences += _differences("versions", {(number,): _stated(version)}, {(number,): stored})
            expected = _expected_sides(version) if status == "ready" else {}
            for table, _, _ in _SIDES:
                side = sides.get((table.name, id), {})
                told = {(number, *key): cells for key, cells in expected.get(table.name, {}).items()}
                there = {(number, *key): cells for key, cells in side.items()}
                differences += _differences(table.name, told, there)
        found.append(RecordCheck(id, model, number, differences))
    return found


def _of_record(
    tx: Transaction, model: ModelName, number: int, sequence: int, document: str
) -> list[Difference]:
    """The digest of a stored record against the one in the event of its registration. Events of before there
    were such digests vouch for none."""
    try:
        event = tx.events.get(sequence).event
    except errors.EventNotFound:
        return []  # the fold of the model's events says that the version is filed under no event of its own
    name = renames.name_at(tx, str(model), sequence)
    if (event.kind, event.model, event.number) != (EventKind.VERSION_REGISTERED, name, number):
        return []
    recorded = event.body.get("record")
    try:
        found = str(registration.record_digest(codec.decode(document, ModelVersion)))
    except errors.ModelkeepError:
        found = "no record that can be read"
    if recorded is None and found.startswith("sha256:"):
        return []
    if recorded == found:
        return []
    return [Difference(number, "versions", str(number), "document", recorded, found)]


def _stated(version: ModelVersion) -> Cells:
    return {
        "number": version.number,
        "semver": version.semver,
        "digest": version.digest,
        "size_bytes": version.size_bytes,
        "parent": version.parent,
        "created_by": version.created_by,
        "created_at": codec.format_time(version.created_at),
        **searched_by(version),
    }


def _sides(tx: Transaction, ids: list[str]) -> dict[tuple[str, str], dict[Key, Cells]]:
    """The rows beside these versions, by table and version."""
    found: dict[tuple[str, str], dict[Key, Cells]] = {}
    for table, _, columns in _SIDES:
        for version_id, key, *cells in tx.all(_SIDE[table.name], ids=ids):
            rows = found.setdefault((table.name, version_id), {})
            rows[(key,)] = dict(zip(columns, cells, strict=True))
    return found


def _expected_sides(version: ModelVersion) -> dict[str, dict[Key, Cells]]:
    params: dict[Key, Cells] = {}
    for key, value in version.params.items():
        cells = texts(key, value)
        params[(cells.pop("key"),)] = cells
    metrics = registration.searchable(version.metrics)
    return {
        version_metrics.name: {(name,): {"value": value} for name, value in metrics.items()},
        version_params.name: params,
        version_files.name: {
            (f.path,): {"digest": f.digest, "size_bytes": f.size_bytes, "media_type": f.media_type}
            for f in version.files
        },
    }


# -------------------------------------------------------------------------------------------------- laid side


def _differences(table: str, recorded: dict[Key, Cells], found: dict[Key, Cells]) -> list[Difference]:
    """What differs, in the order of the keys. Of a row that stands on both sides, only the columns that the
    recorded side names are compared."""
    differences = []
    for key in sorted(recorded.keys() | found.keys(), key=repr):
        told, there = recorded.get(key), found.get(key)
        number = key[0] if isinstance(key[0], int) else None
        label = str(key[-1])
        if told is None or there is None:
            differences.append(Difference(number, table, label, None, told, there))
            continue
        differences += [
            Difference(number, table, label, column, value, there.get(column))
            for column, value in told.items()
            if there.get(column) != value
        ]
    return differences
