"""What runs log: metric points and which of them is the latest, params, tags, datasets and logged models.

Everything is written in batches on the primary keys, with the run's serial and never its id. A point that is
there already is not written again. Reading a run whole is `runs`' part; here only histories are read.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from enum import StrEnum
from functools import cache
from typing import Any, NamedTuple

from sqlalchemy import (
    BigInteger,
    Table,
    bindparam,
    delete,
    func,
    literal_column,
    null,
    select,
    tuple_,
    type_coerce,
)

from modelkeep.core.tracking import CONTEXT_TAG, DatasetInput, Metric, ModelOutput, Tag, latest
from modelkeep.store.models import texts
from modelkeep.store.runs import NAN
from modelkeep.store.statements import Row, Statement, insert, json_text, one_of
from modelkeep.store.tracking_tables import (
    datasets,
    experiments,
    metric_points,
    run_datasets,
    run_metrics,
    run_models,
    run_params,
    run_tags,
    runs,
)
from modelkeep.store.transaction import Transaction


class Logs(StrEnum):
    """What a run has keys of."""

    METRICS = "metrics"
    PARAMS = "params"
    TAGS = "tags"


class LogRow(NamedTuple):
    """The run that something is logged to: where it is, and how many keys it has of the kinds that were asked
    for."""

    serial: int
    experiment_id: int
    name: str
    deleted: int
    project: str
    metrics: int | None = None
    params: int | None = None
    tags: int | None = None

    def keys_of(self, kind: Logs) -> int:
        """How many keys of a kind it has, which were counted."""
        counts = {Logs.METRICS: self.metrics, Logs.PARAMS: self.params, Logs.TAGS: self.tags}
        count = counts[kind]
        assert count is not None, "nobody asked for them"
        return count


def _keys_of(table: Table) -> Any:
    counted = select(func.count()).select_from(table).where(table.c.run == runs.c.serial)
    return counted.correlate(runs).scalar_subquery()


_TABLES = {Logs.METRICS: run_metrics, Logs.PARAMS: run_params, Logs.TAGS: run_tags}


@cache
def _open(kinds: frozenset[Logs]) -> Statement:
    """Statement: a run by its id, with its numbers of keys of these kinds."""
    counts = (_keys_of(table) if kind in kinds else null() for kind, table in _TABLES.items())
    return (
        select(
            runs.c.serial,
            runs.c.experiment_id,
            runs.c.name,
            runs.c.deleted,
            experiments.c.project,
            *counts,
        )
        .join(experiments, experiments.c.id == runs.c.experiment_id)
        .where(runs.c.run_id == bindparam("run_id"))
    )


_ADD_POINT = insert(metric_points).on_conflict_do_nothing()
_NEW = insert(run_metrics).excluded
_NEWEST = insert(run_metrics).on_conflict_do_update(
    index_elements=[run_metrics.c.run, run_metrics.c.key],
    set_={name: _NEW[name] for name in ("value", "is_nan", "timestamp", "step")},
    where=tuple_(_NEW.step, _NEW.timestamp, _NEW.value)
    > tuple_(run_metrics.c.step, run_metrics.c.timestamp, run_metrics.c.value),
)
_KNOWN = {
    kind: select(table.c.key).where(table.c.run == bindparam("run"), one_of(table.c.key, "keys"))
    for kind, table in _TABLES.items()
}
_PARAMS = select(run_params.c.key, run_params.c.value).where(
    run_params.c.run == bindparam("run"), one_of(run_params.c.key, "keys")
)
_ADD_PARAM = insert(run_params)
_PUT_TAG = insert(run_tags).on_conflict_do_update(
    index_elements=[run_tags.c.run, run_tags.c.key],
    set_={name: insert(run_tags).excluded[name] for name in ("value", "value_head", "number")},
)
_DROP_TAG = delete(run_tags).where(run_tags.c.run == bindparam("which"), run_tags.c.key == bindparam("name"))

_POINT = tuple(metric_points.c[name] for name in ("key", "timestamp", "step", "value", "is_nan"))
_OF_KEY = (metric_points.c.run == bindparam("run"), metric_points.c.key == bindparam("key"))
_IN_TIME = (metric_points.c.timestamp, metric_points.c.step, metric_points.c.value, metric_points.c.is_nan)
_HISTORY = select(*_POINT).where(*_OF_KEY).order_by(*_IN_TIME).limit(bindparam("limit"))
_HISTORY_AFTER = _HISTORY.where(
    tuple_(*_IN_TIME)
    > tuple_(bindparam("timestamp"), bindparam("step"), bindparam("value"), bindparam("is_nan"))
)
_ALL_POINTS = select(*_POINT).where(metric_points.c.run == bindparam("run")).limit(bindparam("limit"))
_IN_STEPS = (
    *_OF_KEY,
    metric_points.c.step >= bindparam("first"),
    metric_points.c.step <= bindparam("last"),
)
_COUNT_STEPS = select(func.count()).select_from(metric_points).where(*_IN_STEPS)
_BY_STEP = (metric_points.c.step, metric_points.c.timestamp, metric_points.c.value, metric_points.c.is_nan)
_NUMBERED = (
    select(*_POINT, type_coerce(func.row_number().over(order_by=_BY_STEP), BigInteger).label("place"))
    .where(*_IN_STEPS)
    .subquery()
)
_SAMPLE = (
    select(*(_NUMBERED.c[column.name] for column in _POINT))
    .where(one_of(_NUMBERED.c.place, "places"))
    .order_by(_NUMBERED.c.place)
)
_EVERY_STEP = select(*_POINT).where(*_IN_STEPS).order_by(*_BY_STEP)

_DATASET_KEY = ("experiment_id", "name", "digest")
_ADD_DATASET = (
    insert(datasets)
    .values(
        serial=literal_column("(select coalesce(max(serial), 0) + 1 from datasets)"),
        **{column.name: bindparam(column.name) for column in datasets.columns if column.name != "serial"},
    )
    .on_conflict_do_nothing()
)
_GET_DATASET = select(datasets.c.serial).where(
    *(datasets.c[name] == bindparam(name) for name in _DATASET_KEY)
)
_ADD_RUN_DATASET = insert(run_datasets).on_conflict_do_nothing()
_ADD_MODEL = insert(run_models).on_conflict_do_update(
    index_elements=[run_models.c.run, run_models.c.role, run_models.c.model_id],
    set_={"step": insert(run_models).excluded.step},
)


def open_log(tx: Transaction, run_id: str, kinds: Iterable[Logs] = ()) -> LogRow | None:
    """The run that something is logged to, deleted or not, with how many keys of these kinds it has: to
    count costs as much as there are, so ask for what is needed."""
    row = tx.one(_open(frozenset(kinds)), run_id=run_id)
    return LogRow(*row) if row else None


def known_keys(tx: Transaction, kind: Logs, serial: int, keys: Iterable[str]) -> set[str]:
    """Which of these keys of one kind the run has already."""
    return {row[0] for row in tx.all(_KNOWN[kind], run=serial, keys=list(keys))}


# ---------------------------------------------------------------------------------------------------- metrics


def add_metrics(tx: Transaction, run: LogRow, points: Sequence[Metric]) -> None:
    """Write points, and of each key the latest one where it is later than what was there."""
    columns = _columns(run, points)
    tx.put_columns(_ADD_POINT, **columns)
    newest = latest(points)
    if len(newest) < len(points):
        columns = _columns(run, list(newest.values()))
    tx.put_columns(_NEWEST, experiment_id=[run.experiment_id] * len(newest), **columns)


def _columns(run: LogRow, points: Sequence[Metric]) -> dict[str, list[Any]]:
    """Points as the columns of a table that has them."""
    values = [float(point.value) for point in points]
    columns: dict[str, list[Any]] = {
        "run": [run.serial] * len(points),
        "key": [point.key for point in points],
        "value": values,
        "is_nan": [0] * len(points),
        "timestamp": [point.timestamp for point in points],
        "step": [point.step for point in points],
    }
    if any(map(math.isnan, values)):
        columns["is_nan"] = [int(math.isnan(value)) for value in values]
        columns["value"] = [0.0 if math.isnan(value) else value for value in values]
    return columns


def measured(point: Metric) -> dict[str, Any]:
    """The columns of a point but its key."""
    is_nan = math.isnan(point.value)
    value = 0.0 if is_nan else float(point.value)
    return {"value": value, "is_nan": int(is_nan), "timestamp": point.timestamp, "step": point.step}


def point_of(row: Row) -> Metric:
    """A point out of a row of (key, timestamp, step, value, is_nan)."""
    key, timestamp, step, value, is_nan = row
    return Metric(key=key, value=NAN if is_nan else value, timestamp=timestamp, step=step)


def history(
    tx: Transaction, serial: int, key: str, *, limit: int, after: Metric | None = None
) -> list[Metric]:
    """Points of one metric in the order of (timestamp, step, value), those after one of them."""
    if after is None:
        rows = tx.all(_HISTORY, run=serial, key=key, limit=limit)
    else:
        rows = tx.all(_HISTORY_AFTER, run=serial, key=key, limit=limit, **measured(after))
    return [point_of(row) for row in rows]


def sample(tx: Transaction, serial: int, key: str, *, count: int, first: int, last: int) -> list[Metric]:
    """At most `count` points of one metric within steps (both included), evenly taken from all of them in the
    order of (step, timestamp, value); the first and the last are among them, of one point the last."""
    within = {"run": serial, "key": key, "first": first, "last": last}
    found = tx.one(_COUNT_STEPS, **within)
    total = found[0] if found else 0
    if total <= count:
        return [point_of(row) for row in tx.all(_EVERY_STEP, **within)]
    places = list(_evenly(total, count))
    return [point_of(row) for row in tx.all(_SAMPLE, **within, places=places)]


def _evenly(total: int, count: int) -> Iterator[int]:
    """The places, from 1, of the first row of each of `count` parts that are as even as can be, the longer
    ones first; the last place is that of the last row."""
    short, longer = divmod(total, count)
    for part in range(count - 1):
        yield part * short + min(part, longer) + 1
    yield total


def all_points(tx: Transaction, serial: int, limit: int) -> list[Metric]:
    """Points of all metrics of a run, in no order."""
    return [point_of(row) for row in tx.all(_ALL_POINTS, run=serial, limit=limit)]


# --------------------------------------------------------------------------------------- params, tags, inputs


def get_params(tx: Transaction, serial: int, keys: Iterable[str]) -> dict[str, str]:
    """What these params have for values, where they are there."""
    return dict(tx.all(_PARAMS, run=serial, keys=list(keys)))


def add_params(tx: Transaction, run: LogRow, params: Iterable[Tag]) -> None:
    """Write params that are not there yet."""
    of = {"run": run.serial, "experiment_id": run.experiment_id}
    tx.put_many(_ADD_PARAM, [{**of, **texts(param.key, param.value)} for param in params])


def put_tags(tx: Transaction, serial: int, experiment_id: int, tags: Iterable[Tag]) -> None:
    """Set tags; of two with the same key the last counts."""
    of = {"run": serial, "experiment_id": experiment_id}
    tx.put_many(_PUT_TAG, [{**of, **texts(tag.key, tag.value)} for tag in tags])


def drop_tag(tx: Transaction, serial: int, key: str) -> bool:
    """Remove a tag; whether it was there."""
    return tx.run(_DROP_TAG, which=serial, name=key) > 0


def add_datasets(tx: Transaction, run: LogRow, given: Iterable[DatasetInput]) -> None:
    """Note which data a run has read. A dataset, and that the run read it, is written once: the first
    description and the first tags stay."""
    for one in given:
        dataset = one.dataset
        named = {"experiment_id": run.experiment_id, "name": dataset.name, "digest": dataset.digest}
        found = tx.one(_GET_DATASET, **named)
        if found is None:
            described = {"source_type": dataset.source_type, "source": dataset.source}
            tx.put(_ADD_DATASET, **named, **described, schema=dataset.schema, profile=dataset.profile)
            found = tx.one(_GET_DATASET, **named)
        assert found is not None, "it was just written"
        tags = {tag.key: tag for tag in one.tags}
        tx.put(
            _ADD_RUN_DATASET,
            run=run.serial,
            dataset=found[0],
            tags=json_text([tags[key] for key in sorted(tags)]),
            context=tags[CONTEXT_TAG].value if CONTEXT_TAG in tags else "",
        )


def add_models(tx: Transaction, serial: int, role: str, models: Iterable[ModelOutput]) -> None:
    """Note which logged models a run has read (`input`) or made (`output`)."""
    of = {"run": serial, "role": role}
    tx.put_many(_ADD_MODEL, [{**of, "model_id": model.model_id, "step": model.step} for model in models])
