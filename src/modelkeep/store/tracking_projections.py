"""Rows of experiments, runs and logged models held against the event log: what stands there, and what the
events say should. What runs logged is in no event, and is not looked at; nothing is written or mended.

Rows are read in batches by their numbers, and with each batch the events of just those subjects. What is
missing is found the other way round, from the events that say that something was made.
"""

from typing import Any, NamedTuple

from sqlalchemy import bindparam, select

from modelkeep.core import codec
from modelkeep.core.events import Event, EventKind
from modelkeep.core.tracking import RunStatus
from modelkeep.store.schema import events
from modelkeep.store.statements import one_of
from modelkeep.store.tracking_tables import experiment_tags, experiments, logged_models, runs
from modelkeep.store.transaction import Transaction

MAKERS = {
    EventKind.EXPERIMENT_CREATED: ("experiment", experiments, experiments.c.id),
    EventKind.RUN_STARTED: ("run", runs, runs.c.run_id),
    EventKind.LOGGED_MODEL_CREATED: ("logged_model", logged_models, logged_models.c.model_id),
}
"""The events that make a row: the subject's kind, the row's table, and the column that the subject names."""


class TrackedDifference(NamedTuple):
    """A cell, or a whole row (`column` None), that is not what the events say."""

    subject: str
    table: str
    column: str | None
    recorded: Any
    found: Any


class Tracked(NamedTuple):
    """A batch of rows: where the next one begins, and what differs in this one."""

    last: int
    differences: list[TrackedDifference]


_EXPERIMENTS = (
    select(experiments.c.id, experiments.c.project, experiments.c.name, experiments.c.deleted)
    .where(experiments.c.id > bindparam("after"))
    .order_by(experiments.c.id)
    .limit(bindparam("limit"))
)
_TAGS = select(experiment_tags.c.experiment_id, experiment_tags.c.key, experiment_tags.c.value).where(
    one_of(experiment_tags.c.experiment_id, "ids")
)
_RUNS = (
    select(runs.c.serial, runs.c.run_id, runs.c.experiment_id, runs.c.status, runs.c.deleted)
    .where(runs.c.serial > bindparam("after"))
    .order_by(runs.c.serial)
    .limit(bindparam("limit"))
)
_MODELS = (
    select(
        *(logged_models.c[name] for name in ("serial", "model_id", "experiment_id", "name", "source_run_id")),
        *(logged_models.c[name] for name in ("status", "deleted")),
    )
    .where(logged_models.c.serial > bindparam("after"))
    .order_by(logged_models.c.serial)
    .limit(bindparam("limit"))
)
_EVENTS_OF = (
    select(events.c.subject, events.c.document)
    .where(one_of(events.c.subject, "subjects"))
    .order_by(events.c.sequence)
)
_THERE = {kind: select(column).where(one_of(column, "names")) for kind, (_, _, column) in MAKERS.items()}


def list_missing(
    tx: Transaction, kind: EventKind, after: int, limit: int
) -> tuple[int, list[TrackedDifference]]:
    """Of the events of a kind of `MAKERS` after a cursor, those whose row is gone, and the next cursor; it is
    the same again when there are no more."""
    made = [stored.event for stored in tx.events.after(after, kind=kind, limit=limit)]
    word, table, column = MAKERS[kind]
    names: dict[str, Event] = {event.subject.partition("/")[2]: event for event in made}
    wanted = [int(name) for name in names] if column is experiments.c.id else list(names)
    there = {str(row[0]) for row in tx.all(_THERE[kind], names=wanted)} if made else set()
    gone = [
        TrackedDifference(f"{word}/{name}", table.name, None, f"event {event.sequence}", None)
        for name, event in names.items()
        if name not in there
    ]
    return (made[-1].sequence if made else after), gone


def compare_experiments(tx: Transaction, after: int, limit: int) -> Tracked | None:
    """Project, name, tags and bin of experiments after one; None when there are no more. The default one is
    made with the schema, before any event."""
    rows = tx.all(_EXPERIMENTS, after=after, limit=limit)
    if not rows:
        return None
    told = _told(tx, [f"experiment/{row[0]}" for row in rows])
    tags: dict[int, dict[str, str]] = {}
    for owner, key, value in tx.all(_TAGS, ids=[row[0] for row in rows]):
        tags.setdefault(owner, {})[key] = value
    differences = []
    for id, project, name, deleted in rows:  # noqa: A001
        subject = f"experiment/{id}"
        cells = _experiment_told(told.get(subject, []))
        if id == 0:
            cells = {"project": "default", "name": "Default", "deleted": 0, "tags": {}} | cells
        found = {"project": project, "name": name, "deleted": deleted, "tags": tags.get(id, {})}
        differences += _differences(subject, "experiments", cells, found)
    return Tracked(rows[-1][0], differences)


def compare_runs(tx: Transaction, after: int, limit: int) -> Tracked | None:
    """Experiment, end and bin of runs after one; None when there are no more. Which of the states that are no
    end a run is in, no event says."""
    rows = tx.all(_RUNS, after=after, limit=limit)
    if not rows:
        return None
    binned = _told(tx, sorted({f"experiment/{row[2]}" for row in rows}))
    told = _told(tx, [f"run/{row[1]}" for row in rows])
    differences = []
    for _, run_id, experiment, status, deleted in rows:
        subject = f"run/{run_id}"
        own = told.get(subject, [])
        cells = _run_told(own, binned.get(f"experiment/{experiment}", []))
        ended = status if RunStatus(status).ended else None
        found = {"experiment": str(experiment), "ended": ended, "deleted": deleted}
        differences += _differences(subject, "runs", cells, found)
    return Tracked(rows[-1][0], differences)


def compare_logged_models(tx: Transaction, after: int, limit: int) -> Tracked | None:
    """Experiment, name, run, status and bin of logged models after one; None when there are no more."""
    rows = tx.all(_MODELS, after=after, limit=limit)
    if not rows:
        return None
    told = _told(tx, [f"logged_model/{row[1]}" for row in rows])
    differences = []
    for _, model_id, experiment, name, run, status, deleted in rows:
        subject = f"logged_model/{model_id}"
        cells: dict[str, Any] = {}
        for event in told.get(subject, []):
            match event.kind:
                case EventKind.LOGGED_MODEL_CREATED:
                    cells = {**event.body, "status": "LOGGED_MODEL_PENDING", "deleted": 0}
                case EventKind.LOGGED_MODEL_FINALIZED:
                    cells["status"] = event.body["status"]
                case EventKind.LOGGED_MODEL_DELETED:
                    cells["deleted"] = 1
        found = {"experiment": str(experiment), "name": name, "run": run, "status": status}
        differences += _differences(subject, "logged_models", cells, found | {"deleted": deleted})
    return Tracked(rows[-1][0], differences)


def _told(tx: Transaction, subjects: list[str]) -> dict[str, list[Event]]:
    found: dict[str, list[Event]] = {}
    for subject, document in tx.all(_EVENTS_OF, subjects=subjects):
        found.setdefault(subject, []).append(codec.decode(document, Event))
    return found


def _experiment_told(told: list[Event]) -> dict[str, Any]:
    cells: dict[str, Any] = {}
    for event in told:
        match event.kind:
            case EventKind.EXPERIMENT_CREATED:
                cells = {**event.body, "tags": dict(event.body["tags"]), "deleted": 0}
            case EventKind.EXPERIMENT_CHANGED:
                if "name" in event.body:
                    cells["name"] = event.body["name"]["to"]
                tags = cells.setdefault("tags", {})
                for key, moved in event.body.get("tags", {}).items():
                    tags[key] = moved["to"]
                cells["tags"] = {key: value for key, value in tags.items() if value is not None}
            case EventKind.EXPERIMENT_DELETED | EventKind.EXPERIMENT_RESTORED:
                cells["deleted"] = int(event.kind is EventKind.EXPERIMENT_DELETED)
    return cells


def _run_told(own: list[Event], of_experiment: list[Event]) -> dict[str, Any]:
    cells: dict[str, Any] = {}
    for event in sorted([*own, *of_experiment], key=lambda event: event.sequence):
        match event.kind:
            case EventKind.RUN_STARTED if not event.body.get("again"):
                cells = {"experiment": event.body["experiment"], "ended": None, "deleted": 0}
            case EventKind.RUN_STARTED:
                cells["ended"] = None
            case EventKind.RUN_ENDED:
                cells["ended"] = event.body["status"]
            case EventKind.RUN_DELETED | EventKind.EXPERIMENT_DELETED if cells:
                cells["deleted"] = 1
            case EventKind.RUN_RESTORED | EventKind.EXPERIMENT_RESTORED if cells:
                cells["deleted"] = 0
    return cells


def _differences(
    subject: str, table: str, recorded: dict[str, Any], found: dict[str, Any]
) -> list[TrackedDifference]:
    if not recorded:
        return [TrackedDifference(subject, table, None, None, "a row")]
    return [
        TrackedDifference(subject, table, column, recorded.get(column), value)
        for column, value in found.items()
        if recorded.get(column) != value
    ]
