"""Rows of experiments and their tags.

Whether something may be done, and the event that belongs to it, are the service's part; searches are
`tracking_search`'s.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from sqlalchemy import bindparam, delete, literal_column, select, update

from modelkeep.core.tracking import Experiment, LifecycleStage, Tag
from modelkeep.store.models import texts
from modelkeep.store.statements import insert, one_of
from modelkeep.store.tracking_tables import experiment_tags, experiments, runs
from modelkeep.store.transaction import Transaction


class ExperimentRow(NamedTuple):
    """A row of `EXPERIMENT`."""

    id: int
    project: str
    name: str
    deleted: int
    creation_time: int
    last_update_time: int


EXPERIMENT = tuple(experiments.c[name] for name in ExperimentRow._fields)

_FIND = select(*EXPERIMENT).where(experiments.c.id == bindparam("id"))
_FIND_NAMED = select(*EXPERIMENT).where(
    experiments.c.project == bindparam("project"), experiments.c.name == bindparam("name")
)
_TAGS = (
    select(experiment_tags.c.experiment_id, experiment_tags.c.key, experiment_tags.c.value)
    .where(one_of(experiment_tags.c.experiment_id, "ids"))
    .order_by(experiment_tags.c.experiment_id, experiment_tags.c.key)
)
_ADD = (
    insert(experiments)
    .values(
        id=literal_column("(select coalesce(max(id), 0) + 1 from experiments)"),
        project=bindparam("project"),
        name=bindparam("name"),
        deleted=literal_column("0"),
        creation_time=bindparam("now"),
        last_update_time=bindparam("now"),
    )
    .on_conflict_do_nothing()
    .returning(experiments.c.id)
)
_RENAME = (
    update(experiments)
    .where(experiments.c.id == bindparam("which"))
    .values(name=bindparam("new"), last_update_time=bindparam("now"))
)
_SET_DELETED = (
    update(experiments)
    .where(experiments.c.id == bindparam("which"))
    .values(deleted=bindparam("new"), last_update_time=bindparam("now"))
)
_DELETE_RUNS = (
    update(runs)
    .where(runs.c.experiment_id == bindparam("which"), runs.c.deleted == literal_column("0"))
    .values(deleted=literal_column("1"), deleted_time=bindparam("now"))
)
_RESTORE_RUNS = (
    update(runs)
    .where(runs.c.experiment_id == bindparam("which"), runs.c.deleted == literal_column("1"))
    .values(deleted=literal_column("0"), deleted_time=literal_column("null"))
)
_PUT_TAG = insert(experiment_tags).on_conflict_do_update(
    index_elements=[experiment_tags.c.experiment_id, experiment_tags.c.key],
    set_={name: insert(experiment_tags).excluded[name] for name in ("value", "value_head", "number")},
)
_GET_TAG = select(experiment_tags.c.value).where(
    experiment_tags.c.experiment_id == bindparam("which"), experiment_tags.c.key == bindparam("key")
)
_DROP_TAG = delete(experiment_tags).where(
    experiment_tags.c.experiment_id == bindparam("which"), experiment_tags.c.key == bindparam("name")
)


def find(tx: Transaction, id: int) -> ExperimentRow | None:  # noqa: A002  (the column's name)
    """An experiment by its number, deleted or not."""
    row = tx.one(_FIND, id=id)
    return ExperimentRow(*row) if row else None


def find_named(tx: Transaction, project: str, name: str) -> ExperimentRow | None:
    """An experiment by its name, deleted or not."""
    row = tx.one(_FIND_NAMED, project=project, name=name)
    return ExperimentRow(*row) if row else None


def load(tx: Transaction, rows: Sequence[ExperimentRow]) -> list[Experiment]:
    """Experiments out of rows of `EXPERIMENT`, in the same order: one statement for the tags of all."""
    tags: dict[int, list[Tag]] = {}
    for owner, key, value in tx.all(_TAGS, ids=[row.id for row in rows]) if rows else ():
        tags.setdefault(owner, []).append(Tag(key, value))
    return [
        Experiment(
            experiment_id=str(row.id),
            project=row.project,
            name=row.name,
            lifecycle_stage=LifecycleStage.DELETED if row.deleted else LifecycleStage.ACTIVE,
            creation_time=row.creation_time,
            last_update_time=row.last_update_time,
            tags=tuple(tags.get(row.id, ())),
        )
        for row in rows
    ]


def add(tx: Transaction, project: str, name: str, now_ms: int) -> int | None:
    """Add an experiment and give its number; None when the project has one of that name, deleted ones
    included."""
    row = tx.one(_ADD, project=project, name=name, now=now_ms)
    return row[0] if row else None


def rename(tx: Transaction, id: int, name: str, now_ms: int) -> None:  # noqa: A002
    """Write another name, which no other experiment of the project has."""
    tx.put(_RENAME, which=id, new=name, now=now_ms)


def set_deleted(tx: Transaction, id: int, deleted: bool, now_ms: int) -> int:  # noqa: A002
    """Put an experiment into the bin with all its runs, or take both out again; the number of runs that went
    along."""
    tx.put(_SET_DELETED, which=id, new=int(deleted), now=now_ms)
    return tx.run(_DELETE_RUNS, which=id, now=now_ms) if deleted else tx.run(_RESTORE_RUNS, which=id)


def put_tags(tx: Transaction, id: int, tags: Iterable[Tag]) -> None:  # noqa: A002
    """Set tags; of two with the same key the last counts."""
    rows: list[dict[str, Any]] = [{"experiment_id": id, **texts(tag.key, tag.value)} for tag in tags]
    tx.put_many(_PUT_TAG, rows)


def get_tag(tx: Transaction, id: int, key: str) -> str | None:  # noqa: A002
    """What stands under a key."""
    row = tx.one(_GET_TAG, which=id, key=key)
    return row[0] if row else None


def drop_tag(tx: Transaction, id: int, key: str) -> None:  # noqa: A002
    """Remove a tag; one that is not there is no error."""
    tx.put(_DROP_TAG, which=id, name=key)
