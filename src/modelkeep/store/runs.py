"""Rows of runs: made, found, changed, and put together with all that they have logged.

What is logged is written by `run_log`. Whether something may be done, and the event that belongs to it, are
the service's part; searches are `tracking_search`'s.
"""

from collections.abc import Sequence
from operator import itemgetter
from typing import Any, NamedTuple

from sqlalchemy import (
    ColumnElement,
    Integer,
    Text,
    bindparam,
    case,
    cast,
    literal_column,
    select,
    union_all,
    update,
)

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
LOGGED_ALL = 1_000_000_000
"""More than the runs of one page have logged: limits elsewhere see to that."""


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


def _data(of: Any) -> Any:
    d, r = datasets.c, run_datasets.c
    columns = (r.run, r.tags, d.name, d.digest, d.source_type, d.source, d.schema, d.profile)
    joined = run_datasets.join(datasets, d.serial == r.dataset)
    return select(*columns).select_from(joined).where(of(r.run)).order_by(r.run, d.name, d.digest)


_LOGGED = _logged(bindparam("run"))
_m, _p, _t, _o = run_metrics.c, run_params.c, run_tags.c, run_models.c
_METRICS = (
    select(_m.run, _m.key, _m.value, _m.is_nan, _m.timestamp, _m.step)
    .where(one_of(_m.run, "runs"))
    .limit(bindparam("limit"))
)
# What a row of text is: its place in `Logged`.
_PARAM, _TAG, _INPUT, _OUTPUT = (literal_column(str(place), Integer) for place in (1, 2, 3, 4))
_MODELS_FROM = 3
_role = case((_o.role == literal_column("'input'"), _INPUT), else_=_OUTPUT)
_TEXTS = union_all(
    select(_p.run, _PARAM, _p.key, _p.value).where(one_of(_p.run, "runs")),
    select(_t.run, _TAG, _t.key, _t.value).where(one_of(_t.run, "runs")),
    select(_o.run, _role, _o.model_id, cast(_o.step, Text)).where(one_of(_o.run, "runs")),
).limit(bindparam("limit"))
_DATA_OF_ONE = _data(lambda column: column == bindparam("run"))
_DATA_OF_MANY = _data(lambda column: one_of(column, "runs"))


def find(tx: Transaction, run_id: str) -> RunRow | None:
    """A run by its id, deleted or not."""
    row = tx.one(_FIND, run_id=run_id)
    return RunRow(*row) if row else None


class Logged(NamedTuple):
    """What one run has logged; each kind in the order of its keys. Statements name the places of kinds."""

    metrics: list[Metric]
    params: list[Tag]
    tags: list[Tag]
    inputs: list[ModelOutput]
    outputs: list[ModelOutput]
    datasets: list[DatasetInput]


class LoggedRows(NamedTuple):
    """What several runs have logged, as rows: metrics, and all that is text."""

    metrics: list[Row]
    texts: list[Row]

    @property
    def size(self) -> int:
        """How much it is."""
        return len(self.metrics) + len(self.texts)


def logged_by(tx: Transaction, serials: Sequence[int], most: int = LOGGED_ALL) -> LoggedRows | None:
    """All that these runs have logged but datasets: two statements; None when that is more."""
    metrics = tx.all(_METRICS, runs=serials, limit=most + 1)
    left = most - len(metrics)
    if left < 0:
        return None
    texts = tx.all(_TEXTS, runs=serials, limit=left + 1)
    return LoggedRows(metrics, texts) if len(texts) <= left else None


def load(tx: Transaction, rows: Sequence[RunRow], logged: LoggedRows | None = None) -> list[Run]:
    """Runs out of rows of `RUN`, in the same order, each with all that it has logged: one statement for one,
    two for many, unless that was read before; and one more where any has datasets."""
    if not rows:
        return []
    parts = {row.serial: Logged([], [], [], [], [], []) for row in rows}
    serials = list(parts)
    with_data = any(row.with_data for row in rows)
    if len(rows) == 1 and logged is None:
        _fill_one(parts[serials[0]], tx.all(_LOGGED, run=serials[0]))
    else:
        _fill_many(parts, logged or logged_by(tx, serials) or LoggedRows([], []))
    if with_data:
        one = len(rows) == 1
        data = tx.all(_DATA_OF_ONE, run=serials[0]) if one else tx.all(_DATA_OF_MANY, runs=serials)
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


def _fill_many(parts: dict[int, Logged], rows: LoggedRows) -> None:
    """Each row to its run, in the order of keys."""
    for run, *point in sorted(rows.metrics, key=itemgetter(1)):
        parts[run].metrics.append(_metric(*point))
    for run, place, key, text in sorted(rows.texts, key=itemgetter(2)):
        kind: list[Any] = parts[run][place]
        if place < _MODELS_FROM:
            kind.append(Tag(key, text))
        else:
            kind.append(ModelOutput(model_id=key, step=int(text)))


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


_STATUSES = {status.value: status for status in RunStatus}


def info(row: RunRow) -> RunInfo:
    """What a run is called and how it goes."""
    return RunInfo(
        run_id=row.run_id,
        experiment_id=str(row.experiment_id),
        run_name=row.name,
        user_id=row.user_id,
        status=_STATUSES[row.status],
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
