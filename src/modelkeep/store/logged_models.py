"""Rows of logged models: the models that runs leave behind, with their tags, params, metrics and versions.

Whether something may be done, and the event that belongs to it, are the service's part; searches are
`tracking_search`'s, files are `artifacts`'.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Table, bindparam, delete, func, literal_column, select, update

from modelkeep.core.tracking import LoggedModel, LoggedModelStatus, Metric, Tag
from modelkeep.store.models import texts
from modelkeep.store.run_log import LogRow, measured
from modelkeep.store.runs import NAN
from modelkeep.store.statements import insert, one_of
from modelkeep.store.tracking_tables import (
    experiments,
    logged_model_metrics,
    logged_model_params,
    logged_model_tags,
    logged_model_versions,
    logged_models,
    runs,
)
from modelkeep.store.transaction import Transaction

METRICS_MAX = 2_000
"""Points shown of one logged model, on average where several are shown: a model is evaluated, not trained."""


class LoggedModelRow(NamedTuple):
    """A row of `LOGGED_MODEL`; `project` is the experiment's."""

    serial: int
    model_id: str
    experiment_id: int
    name: str
    status: str
    status_message: str
    model_type: str
    source_run_id: str | None
    deleted: int
    creation_timestamp_ms: int
    last_updated_timestamp_ms: int
    project: str


LOGGED_MODEL: tuple[ColumnElement[Any], ...] = (
    *(logged_models.c[name] for name in LoggedModelRow._fields[:-1]),
    experiments.c.project,
)
JOINED = logged_models.join(experiments, experiments.c.id == logged_models.c.experiment_id)

_FIND = select(*LOGGED_MODEL).select_from(JOINED).where(logged_models.c.model_id == bindparam("model_id"))
_FIND_MANY = select(*LOGGED_MODEL).select_from(JOINED).where(one_of(logged_models.c.model_id, "ids"))
_ADD = (
    insert(logged_models)
    .values(
        serial=literal_column("(select coalesce(max(serial), 0) + 1 from logged_models)"),
        deleted=literal_column("0"),
        **{
            name: bindparam(name)
            for name in LoggedModelRow._fields
            if name not in ("serial", "deleted", "project")
        },
    )
    .returning(logged_models.c.serial)
)
_SET_STATUS = (
    update(logged_models)
    .where(logged_models.c.serial == bindparam("which"))
    .values(
        status=bindparam("new"),
        status_message=bindparam("message"),
        last_updated_timestamp_ms=bindparam("now"),
    )
)
_DELETE = (
    update(logged_models)
    .where(logged_models.c.serial == bindparam("which"))
    .values(deleted=literal_column("1"), last_updated_timestamp_ms=bindparam("now"))
)
_PUT_TAG = insert(logged_model_tags).on_conflict_do_update(
    index_elements=[logged_model_tags.c.model, logged_model_tags.c.key],
    set_={name: insert(logged_model_tags).excluded[name] for name in ("value", "value_head", "number")},
)
_DROP_TAG = delete(logged_model_tags).where(
    logged_model_tags.c.model == bindparam("which"), logged_model_tags.c.key == bindparam("name")
)
_PARAMS = select(logged_model_params.c.key, logged_model_params.c.value).where(
    logged_model_params.c.model == bindparam("model"), one_of(logged_model_params.c.key, "keys")
)
_COUNT = {
    what: select(func.count()).select_from(table).where(table.c.model == bindparam("model"))
    for what, table in (("params", logged_model_params), ("tags", logged_model_tags))
}
_ADD_PARAM = insert(logged_model_params)
_ADD_METRIC = insert(logged_model_metrics).on_conflict_do_nothing()
_ADD_VERSION = insert(logged_model_versions).on_conflict_do_nothing()


def _texts_of(table: Table) -> Any:
    return (
        select(table.c.model, table.c.key, table.c.value)
        .where(one_of(table.c.model, "models"))
        .order_by(table.c.model, table.c.key)
    )


_TAGS_OF = _texts_of(logged_model_tags)
_PARAMS_OF = _texts_of(logged_model_params)
_M = logged_model_metrics.c
_METRICS_OF = (
    select(
        *(_M.model, _M.key, _M.timestamp, _M.step, _M.value, _M.is_nan),
        *(_M.dataset_name, _M.dataset_digest, logged_models.c.model_id, runs.c.run_id),
    )
    .select_from(
        logged_model_metrics.join(runs, runs.c.serial == _M.run).join(
            logged_models, logged_models.c.serial == _M.model
        )
    )
    .where(one_of(_M.model, "models"))
    .order_by(_M.model, _M.key, _M.timestamp, _M.step, _M.run)
    .limit(bindparam("limit"))
)
_V = logged_model_versions.c
_VERSIONS_OF = (
    select(_V.model, _V.name, _V.number)
    .where(one_of(_V.model, "models"))
    .order_by(_V.model, _V.name, _V.number)
)


def find(tx: Transaction, model_id: str) -> LoggedModelRow | None:
    """A logged model by its id, deleted or not."""
    row = tx.one(_FIND, model_id=model_id)
    return LoggedModelRow(*row) if row else None


def find_many(tx: Transaction, model_ids: Iterable[str]) -> dict[str, LoggedModelRow]:
    """Logged models by their ids, deleted or not; those that are not there are left out."""
    rows = (LoggedModelRow(*row) for row in tx.all(_FIND_MANY, ids=list(model_ids)))
    return {row.model_id: row for row in rows}


def load(tx: Transaction, rows: Sequence[LoggedModelRow]) -> list[LoggedModel]:
    """Logged models out of rows of `LOGGED_MODEL`, in the same order: four statements for all of them."""
    if not rows:
        return []
    models = [row.serial for row in rows]
    tags: dict[int, list[Tag]] = {serial: [] for serial in models}
    params: dict[int, list[Tag]] = {serial: [] for serial in models}
    versions: dict[int, list[tuple[str, int]]] = {serial: [] for serial in models}
    metrics: dict[int, list[Metric]] = {serial: [] for serial in models}
    for owner, key, value in tx.all(_TAGS_OF, models=models):
        tags[owner].append(Tag(key, value))
    for owner, key, value in tx.all(_PARAMS_OF, models=models):
        params[owner].append(Tag(key, value))
    for owner, name, number in tx.all(_VERSIONS_OF, models=models):
        versions[owner].append((name, number))
    for owner, *point in tx.all(_METRICS_OF, models=models, limit=METRICS_MAX * len(models)):
        metrics[owner].append(_point(point))
    return [
        LoggedModel(
            model_id=row.model_id,
            experiment_id=str(row.experiment_id),
            name=row.name,
            status=LoggedModelStatus(row.status),
            status_message=row.status_message,
            model_type=row.model_type,
            source_run_id=row.source_run_id,
            creation_timestamp_ms=row.creation_timestamp_ms,
            last_updated_timestamp_ms=row.last_updated_timestamp_ms,
            tags=tuple(tags[row.serial]),
            params=tuple(params[row.serial]),
            metrics=tuple(metrics[row.serial]),
            registrations=tuple(versions[row.serial]),
        )
        for row in rows
    ]


def _point(row: Sequence[Any]) -> Metric:
    key, timestamp, step, value, is_nan, dataset_name, dataset_digest, model_id, run_id = row
    return Metric(
        key=key,
        value=NAN if is_nan else value,
        timestamp=timestamp,
        step=step,
        dataset_name=dataset_name,
        dataset_digest=dataset_digest,
        model_id=model_id,
        run_id=run_id,
    )


def add(tx: Transaction, experiment_id: int, model: LoggedModel) -> int:
    """Add a logged model without its tags and params, and give its serial."""
    row = tx.one(
        _ADD,
        model_id=model.model_id,
        experiment_id=experiment_id,
        name=model.name,
        status=model.status.value,
        status_message=model.status_message,
        model_type=model.model_type,
        source_run_id=model.source_run_id,
        creation_timestamp_ms=model.creation_timestamp_ms,
        last_updated_timestamp_ms=model.last_updated_timestamp_ms,
    )
    assert row is not None, "an insert returns its row"
    return int(row[0])


def set_status(tx: Transaction, serial: int, status: LoggedModelStatus, message: str, now_ms: int) -> None:
    """Write whether the files are all there."""
    tx.put(_SET_STATUS, which=serial, new=status.value, message=message, now=now_ms)


def delete_model(tx: Transaction, serial: int, now_ms: int) -> None:
    """Put a logged model into the bin."""
    tx.put(_DELETE, which=serial, now=now_ms)


def count_texts(tx: Transaction, what: str, serial: int) -> int:
    """How many `tags` or `params` it has."""
    row = tx.one(_COUNT[what], model=serial)
    return int(row[0]) if row else 0


def put_tags(tx: Transaction, serial: int, experiment_id: int, tags: Iterable[Tag]) -> None:
    """Set tags; of two with the same key the last counts."""
    of = {"model": serial, "experiment_id": experiment_id}
    tx.put_many(_PUT_TAG, [{**of, **texts(tag.key, tag.value)} for tag in tags])


def drop_tag(tx: Transaction, serial: int, key: str) -> bool:
    """Remove a tag; whether it was there."""
    return tx.run(_DROP_TAG, which=serial, name=key) > 0


def get_params(tx: Transaction, serial: int, keys: Iterable[str]) -> dict[str, str]:
    """What these params have for values, where they are there."""
    return dict(tx.all(_PARAMS, model=serial, keys=list(keys)))


def add_params(tx: Transaction, serial: int, experiment_id: int, params: Iterable[Tag]) -> None:
    """Write params that are not there yet."""
    of = {"model": serial, "experiment_id": experiment_id}
    tx.put_many(_ADD_PARAM, [{**of, **texts(param.key, param.value)} for param in params])


def add_metrics(
    tx: Transaction, run: LogRow, points: Iterable[Metric], serials: dict[str, LoggedModelRow]
) -> None:
    """Write points that a run measured of logged models; of two at the same step and time the first stays."""
    of = {"run": run.serial, "experiment_id": run.experiment_id}
    tx.put_many(
        _ADD_METRIC,
        [
            {
                **of,
                "model": serials[point.model_id].serial,
                "key": point.key,
                "dataset_name": point.dataset_name,
                "dataset_digest": point.dataset_digest,
                **measured(point),
            }
            for point in points
            if point.model_id is not None
        ],
    )


def add_version(tx: Transaction, serial: int, name: str, number: int) -> None:
    """Note that a logged model became this version of a registered model (by its full name)."""
    tx.put(_ADD_VERSION, model=serial, name=name, number=number)
