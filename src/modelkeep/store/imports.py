"""Rows of what moved in: the registries it came from, what everything is called here, and how much there is.

Also the few writes that only an import does, because they state an id, a number or a time that is somebody
else's. Whether something may be done, and the event that belongs to it, are the service's part.
"""

from collections.abc import Iterable
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import bindparam, func, literal, literal_column, select, update

from modelkeep.core import codec
from modelkeep.store.import_tables import import_sources, imported
from modelkeep.store.schema import models, versions
from modelkeep.store.statements import insert, one_of
from modelkeep.store.tracking_tables import artifact_owners, experiments, logged_models, metric_points, runs
from modelkeep.store.transaction import Transaction


class SourceRow(NamedTuple):
    """A registry that something came from, and the project that it goes to."""

    serial: int
    address: str
    project: str


class Known(NamedTuple):
    """What something of another registry is called here, and whether it is all there."""

    ours: str
    done: bool


_SOURCE = tuple(import_sources.c[name] for name in SourceRow._fields)
_FIND_SOURCE = select(*_SOURCE).where(import_sources.c.address == bindparam("address"))
_ADD_SOURCE = (
    insert(import_sources)
    .values(
        serial=literal_column("(select coalesce(max(serial), 0) + 1 from import_sources)"),
        **{name: bindparam(name) for name in ("address", "project", "created_at", "created_by")},
    )
    .returning(*_SOURCE)
)
_KNOWN = select(imported.c.foreign_id, imported.c.ours, imported.c.done).where(
    imported.c.source == bindparam("source"),
    imported.c.kind == bindparam("kind"),
    one_of(imported.c.foreign_id, "ids"),
)
_NOTE = insert(imported).on_conflict_do_update(
    index_elements=[imported.c.source, imported.c.kind, imported.c.foreign_id],
    set_={name: insert(imported).excluded[name] for name in ("ours", "done")},
)
_COUNT = (
    select(imported.c.kind, imported.c.done, func.count())
    .where(imported.c.source == bindparam("source"))
    .group_by(imported.c.kind, imported.c.done)
)
_OURS_RUNS = (
    select(runs.c.serial)
    .join(imported, imported.c.ours == runs.c.run_id)
    .where(imported.c.source == bindparam("source"), imported.c.kind == literal_column("'run'"))
)
_OURS_MODELS = (
    select(logged_models.c.serial)
    .join(imported, imported.c.ours == logged_models.c.model_id)
    .where(imported.c.source == bindparam("source"), imported.c.kind == literal_column("'logged_model'"))
)
_COUNT_POINTS = select(func.count()).select_from(metric_points).where(metric_points.c.run.in_(_OURS_RUNS))
_SUM_FILES = select(
    func.coalesce(func.sum(artifact_owners.c.files), literal(0)),
    func.coalesce(func.sum(artifact_owners.c.size_bytes), literal(0)),
).where(
    ((artifact_owners.c.kind == literal_column("'run'")) & artifact_owners.c.owner.in_(_OURS_RUNS))
    | (
        (artifact_owners.c.kind == literal_column("'logged_model'"))
        & artifact_owners.c.owner.in_(_OURS_MODELS)
    )
)
_FILES_OF = select(artifact_owners.c.files, artifact_owners.c.size_bytes).where(
    artifact_owners.c.kind == bindparam("kind"), artifact_owners.c.owner == bindparam("owner")
)
_ADD_EXPERIMENT = (
    insert(experiments)
    .values(
        id=bindparam("id"),
        project=bindparam("project"),
        name=bindparam("name"),
        deleted=literal_column("0"),
        creation_time=bindparam("created"),
        last_update_time=bindparam("created"),
    )
    .on_conflict_do_nothing()
)
_SET_EXPERIMENT_TIME = (
    update(experiments)
    .where(experiments.c.id == bindparam("which"))
    .values(last_update_time=bindparam("time"))
)
_SET_CREATION_TIME = (
    update(experiments).where(experiments.c.id == bindparam("which")).values(creation_time=bindparam("time"))
)
_SET_MODEL_TIME = (
    update(models).where(models.c.id == bindparam("which")).values(updated_at=bindparam("updated"))
)
_SET_NEXT_NUMBER = (
    update(models).where(models.c.id == bindparam("which")).values(next_number=bindparam("number"))
)
_SET_VERSION_TIME = (
    update(versions).where(versions.c.id == bindparam("which")).values(updated_at=bindparam("updated"))
)


def find_source(tx: Transaction, address: str) -> SourceRow | None:
    """A registry that something came from, by its address."""
    row = tx.one(_FIND_SOURCE, address=address)
    return SourceRow(*row) if row else None


def add_source(tx: Transaction, address: str, project: str, now: datetime, by: str) -> SourceRow:
    """Write a registry that nothing came from yet."""
    row = tx.one(
        _ADD_SOURCE, address=address, project=project, created_at=codec.format_time(now), created_by=by
    )
    assert row is not None, "an insert returns its row"
    return SourceRow(*row)


def known(tx: Transaction, source: int, kind: str, ids: Iterable[str]) -> dict[str, Known]:
    """What these are called here; those that never came are left out."""
    rows = tx.all(_KNOWN, source=source, kind=kind, ids=list(ids))
    return {foreign: Known(ours, bool(done)) for foreign, ours, done in rows}


def note(tx: Transaction, source: int, kind: str, foreign_id: str, ours: str, *, done: bool) -> None:
    """Note what something is called here, and whether it is all there."""
    tx.put(_NOTE, source=source, kind=kind, foreign_id=foreign_id, ours=ours, done=int(done))


def count(tx: Transaction, source: int) -> dict[str, tuple[int, int]]:
    """Of each kind: how many are all there, and how many wait for the rest."""
    found: dict[str, tuple[int, int]] = {}
    for kind, done, number in tx.all(_COUNT, source=source):
        complete, waiting = found.get(kind, (0, 0))
        found[kind] = (complete + number, waiting) if done else (complete, waiting + number)
    return found


def count_points(tx: Transaction, source: int) -> int:
    """Points of metrics of the runs that came from a source."""
    row = tx.one(_COUNT_POINTS, source=source)
    return int(row[0]) if row else 0


def sum_files(tx: Transaction, source: int) -> tuple[int, int]:
    """How many files the runs and logged models of a source keep, and their bytes."""
    row = tx.one(_SUM_FILES, source=source)
    return (int(row[0]), int(row[1])) if row else (0, 0)


def files_of(tx: Transaction, kind: str, serial: int) -> tuple[int, int]:
    """How many files a run or logged model keeps, and their bytes."""
    row = tx.one(_FILES_OF, kind=kind, owner=serial)
    return (int(row[0]), int(row[1])) if row else (0, 0)


def add_experiment(tx: Transaction, id: int, project: str, name: str, created_ms: int) -> bool:  # noqa: A002
    """Write an experiment under the number that it had; False when number or name is taken."""
    return tx.run(_ADD_EXPERIMENT, id=id, project=project, name=name, created=created_ms) > 0


def set_experiment_times(
    tx: Transaction,
    id: int,  # noqa: A002
    *,
    created_ms: int | None = None,
    updated_ms: int | None = None,
) -> None:
    """Write when an experiment was made or changed, as it was."""
    if created_ms is not None:
        tx.put(_SET_CREATION_TIME, which=id, time=created_ms)
    if updated_ms is not None:
        tx.put(_SET_EXPERIMENT_TIME, which=id, time=updated_ms)


def set_model_time(tx: Transaction, id: str, updated: datetime) -> None:  # noqa: A002
    """Write when a registered model was changed, as it was."""
    tx.put(_SET_MODEL_TIME, which=id, updated=codec.format_time(updated))


def set_next_number(tx: Transaction, id: str, number: int) -> None:  # noqa: A002
    """Write the number that the next version of a model gets; it only grows."""
    tx.put(_SET_NEXT_NUMBER, which=id, number=number)


def set_version_time(tx: Transaction, id: str, updated: datetime) -> None:  # noqa: A002
    """Write when a version was changed, as it was."""
    tx.put(_SET_VERSION_TIME, which=id, updated=codec.format_time(updated))
