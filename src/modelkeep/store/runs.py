"""Rows of runs: made, found, changed, and put together with all that they have logged.

What is logged is written by `run_log`. Whether something may be done, and the event that belongs to it, are
the service's part; searches are `tracking_search`'s.
"""

from collections.abc import Sequence
from operator import itemgetter
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, bindparam, literal_column, select, union_all, update

from modelkeep.core import codec
from modelkeep.core.tracking import (
    Dataset,
    DatasetInput,
    LifecycleStage,
    Metric,
    ModelOutput,
    Run,
    RunInfo,
    RunStatus,
    Tag,
)
from modelkeep.store.statements import Row, insert, one_of
from modelkeep.store.tracking_tables import (
    datasets,
    experiments,
    run_datasets,
    run_metrics,
    run_models,
    run_params,
    run_tags,
    runs,
)
from modelkeep.store.transaction import Transaction

NAN = float("nan")


class RunRow(NamedTuple):
    """A row of `RUN`. `project` is the experiment's; `with_data` says whether datasets were logged."""

    serial: int
    run_id: str
    experiment_id: int
    name: str
    user_id: str
    status: str
    start_time: int
    end_time: int | None
    deleted: int
    project: str
    with_data: int


RUN: tuple[ColumnElement[Any], ...] = (
    *(runs.c[name] for name in RunRow._fields[:-2]),
    experiments.c.project,
    # A number on both dialects: Postgres has a type of its own for yes and no.
    select(literal_column("1"))
    .where(run_datasets.c.run == runs.c.serial)
    .limit(literal_column("1"))
    .correlate(runs)
    .scalar_subquery()
    .label("with_data"),
)
JOINED = runs.join(experiments, experiments.c.id == runs.c.experiment_id)

_FIND = select(*RUN).select_from(JOINED).where(runs.c.run_id == bindparam("run_id"))
_ADD = (
    insert(runs)
    .values(
        serial=literal_column("(select coalesce(max(serial), 0) + 1 from runs)"),
        end_time=literal_column("null"),
        deleted=literal_column("0"),
        deleted_time=literal_column("null"),
        **{name: bindparam(name) for name in RunRow._fields[1:7]},
    )
    .returning(runs.c.serial)
)
_UPDATE = (
    update(runs)
    .where(runs.c.serial == bindparam("which"))
    .values({name: bindparam(f"new_{name}") for name in ("status", "end_time", "name")})
)
_SET_DELETED = (
    update(runs)
    .where(runs.c.serial == bindparam("which"))
    .values(deleted=bindparam("new"), deleted_time=bindparam("since"))
)


def _logged(run: Any) -> Any:
    """Statement: everything that a run has logged but datasets, in rows of one shape."""
    nothing: ColumnElement[str] = literal_column("''")
    zero: ColumnElement[int] = literal_column("0")
    m, p, t, o = run_metrics.c, run_params.c, run_tags.c, run_models.c
    return union_all(
        select(literal_column("'metric'"), m.key, nothing, m.value, m.is_nan, m.timestamp, m.step).where(
            m.run == run
        ),
        select(literal_column("'param'"), p.key, p.value, zero, zero, zero, zero).where(p.run == run),
        select(literal_column("'tag'"), t.key, t.value, zero, zero, zero, zero).where(t.run == run),
        select(o.role, o.model_id, nothing, zero, zero, zero, o.step).where(o.run == run),
    )


def _of_many(table: Any, *names: str) -> Any:
    """Statement: what many runs have logged of one kind; rows come in the order of runs and keys."""
    columns = (table.c.run, *(table.c[name] for name in names))
    return select(*columns).where(one_of(table.c.run, "runs")).order_by(table.c.run, columns[1])


def _data(of: Any) -> Any:
    d, r = datasets.c, run_datasets.c
    columns = (r.run, r.tags, d.name, d.digest, d.source_type, d.source, d.schema, d.profile)
    joined = run_datasets.join(datasets, d.serial == r.dataset)
    return select(*columns).select_from(joined).where(of(r.run)).order_by(r.run, d.name, d.digest)


_LOGGED = _logged(bindparam("run"))
_METRICS = _of_many(run_metrics, "key", "value", "is_nan", "timestamp", "step")
_PARAMS = _of_many(run_params, "key", "value")
_TAGS = _of_many(run_tags, "key", "value")
_MODELS = _of_many(run_models, "model_id", "role", "step")
_DATA_OF_ONE = _data(lambda column: column == bindparam("run"))
_DATA_OF_MANY = _data(lambda column: one_of(column, "runs"))


def find(tx: Transaction, run_id: str) -> RunRow | None:
    """A run by its id, deleted or not."""
    row = tx.one(_FIND, run_id=run_id)
    return RunRow(*row) if row else None


class Logged(NamedTuple):
    """What one run has logged; each kind in the order of its keys."""

    metrics: list[Metric]
    params: list[Tag]
    tags: list[Tag]
    inputs: list[ModelOutput]
    outputs: list[ModelOutput]
    datasets: list[DatasetInput]


def load(tx: Transaction, rows: Sequence[RunRow]) -> list[Run]:
    """Runs out of rows of `RUN`, in the same order, each with all that it has logged: one statement for one,
    four for many, and one more where any has datasets."""
    if not rows:
        return []
    parts = {row.serial: Logged([], [], [], [], [], []) for row in rows}
    serials = list(parts)
    with_data = any(row.with_data for row in rows)
    if len(rows) == 1:
        _fill_one(parts[serials[0]], tx.all(_LOGGED, run=serials[0]))
        data = tx.all(_DATA_OF_ONE, run=serials[0]) if with_data else []
    else:
        _fill_many(tx, parts, serials)
        data = tx.all(_DATA_OF_MANY, runs=serials) if with_data else []
    for row in data:
        parts[row[0]].datasets.append(_dataset(row))
    return [_run(row, parts[row.serial]) for row in rows]


def _fill_one(logged: Logged, rows: Sequence[Row]) -> None:
    for kind, key, text, value, is_nan, timestamp, step in sorted(rows, key=itemgetter(1)):
        match kind:
            case "metric":
                logged.metrics.append(_metric(key, value, is_nan, timestamp, step))
            case "param":
                logged.params.append(Tag(key, text))
            case "tag":
                logged.tags.append(Tag(key, text))
            case "input":
                logged.inputs.append(ModelOutput(model_id=key, step=step))
            case _:
                logged.outputs.append(ModelOutput(model_id=key, step=step))


def _fill_many(tx: Transaction, parts: dict[int, Logged], serials: list[int]) -> None:
    for run, *point in tx.all(_METRICS, runs=serials):
        parts[run].metrics.append(_metric(*point))
    for run, key, value in tx.all(_PARAMS, runs=serials):
        parts[run].params.append(Tag(key, value))
    for run, key, value in tx.all(_TAGS, runs=serials):
        parts[run].tags.append(Tag(key, value))
    for run, model_id, role, step in tx.all(_MODELS, runs=serials):
        models = parts[run].inputs if role == "input" else parts[run].outputs
        models.append(ModelOutput(model_id=model_id, step=step))


def _metric(key: str, value: float, is_nan: int, timestamp: int, step: int) -> Metric:
    return Metric(key=key, value=NAN if is_nan else value, timestamp=timestamp, step=step)


def _run(row: RunRow, logged: Logged) -> Run:
    return Run(
        info=info(row),
        metrics=tuple(logged.metrics),
        params=tuple(logged.params),
        tags=tuple(logged.tags),
        datasets=tuple(logged.datasets),
        model_inputs=tuple(logged.inputs),
        model_outputs=tuple(logged.outputs),
    )


def _dataset(row: Row) -> DatasetInput:
    _, tags, name, digest, source_type, source, schema, profile = row
    return DatasetInput(
        dataset=Dataset(
            name=name, digest=digest, source_type=source_type, source=source, schema=schema, profile=profile
        ),
        tags=tuple(codec.decode(tags, list[Tag])),
    )


def info(row: RunRow) -> RunInfo:
    """What a run is called and how it goes."""
    return RunInfo(
        run_id=row.run_id,
        experiment_id=str(row.experiment_id),
        run_name=row.name,
        user_id=row.user_id,
        status=RunStatus(row.status),
        start_time=row.start_time,
        end_time=row.end_time,
        lifecycle_stage=LifecycleStage.DELETED if row.deleted else LifecycleStage.ACTIVE,
    )


def add(tx: Transaction, experiment_id: int, given: RunInfo) -> int:
    """Add a run that runs, and give its serial."""
    row = tx.one(
        _ADD,
        run_id=given.run_id,
        experiment_id=experiment_id,
        name=given.run_name,
        user_id=given.user_id,
        status=given.status.value,
        start_time=given.start_time or 0,
    )
    assert row is not None, "an insert returns its row"
    return int(row[0])


def change(tx: Transaction, row: RunRow) -> None:
    """Write a run's name, status and end as they are in this row."""
    tx.put(_UPDATE, which=row.serial, new_status=row.status, new_end_time=row.end_time, new_name=row.name)


def set_deleted(tx: Transaction, serial: int, since_ms: int | None) -> None:
    """Put a run into the bin, or take it out again (None)."""
    tx.put(_SET_DELETED, which=serial, new=int(since_ms is not None), since=since_ms)
