"""Experiments, runs and logged models by chance, and what MLflow's filters and orders mean over them in plain
Python: the oracle that searches in SQL are compared with.
"""

import functools
import math
import random
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from modelkeep.core import query
from modelkeep.core.mlflow_filter import Clause, DatasetFilter, Kind, Noun, Operator, Order
from modelkeep.core.tracking import (
    Dataset,
    DatasetInput,
    Experiment,
    LifecycleStage,
    LoggedModel,
    LoggedModelStatus,
    Metric,
    Run,
    RunInfo,
    RunStatus,
    Tag,
)
from modelkeep.store import tracking_tables as tables
from modelkeep.store.models import texts
from modelkeep.store.run_log import measured
from modelkeep.store.statements import insert, json_text
from modelkeep.store.transaction import Transaction

KEYS = ["a", "b c", "mlflow.x", "é", "A"]
TEXTS = [
    "",
    "a",
    "A",
    "ab",
    "aB%",
    "a_b",
    "0.1",
    "é",
    "É",
    "漢\\",
    "x" * 99,
    "x" * 100,
    "x" * 120,
    "x" * 120 + "y",
]
NUMBERS = [0.0, 1.0, -1.5, 0.5, 1e300, math.inf, -math.inf, math.nan]
TIMES = [0, 1, 2, 5, 1_700_000_000_000, -3]
CONTEXTS = ["", "train", "Test"]
CONTEXT = "mlflow.data.context"
STATUSES = {
    LoggedModelStatus.PENDING: "PENDING",
    LoggedModelStatus.READY: "READY",
    LoggedModelStatus.FAILED: "FAILED",
}


class World:
    """What there is: experiments with numbers from 1 on, runs and logged models with serials from 1 on."""

    def __init__(self, seed: int, *, experiments: int = 4, runs: int = 60, models: int = 40) -> None:
        self._chance = random.Random(seed)
        self.experiments = [self._experiment(number) for number in range(1, experiments + 1)]
        self.runs = [self._run(serial) for serial in range(1, runs + 1)]
        self.models = [self._model(serial) for serial in range(1, models + 1)]

    def _some(self, values: Sequence[Any]) -> Any:
        return self._chance.choice(values)

    def _tags(self) -> tuple[Tag, ...]:
        keys = sorted(self._chance.sample(KEYS, self._chance.randrange(len(KEYS))))
        return tuple(Tag(key, self._some(TEXTS)) for key in keys)

    def _stage(self) -> LifecycleStage:
        return LifecycleStage.DELETED if self._chance.random() < 0.25 else LifecycleStage.ACTIVE

    def _experiment(self, number: int) -> Experiment:
        return Experiment(
            experiment_id=str(number),
            project=self._some(["mine", "lab"]),
            name=f"{self._some(TEXTS[:9])}{number}",
            lifecycle_stage=self._stage(),
            creation_time=self._some(TIMES),
            last_update_time=self._some(TIMES),
            tags=self._tags(),
        )

    def _run(self, serial: int) -> Run:
        keys = sorted(self._chance.sample(KEYS, self._chance.randrange(len(KEYS))))
        metrics = [Metric(key=key, value=self._some(NUMBERS), timestamp=self._some(TIMES)) for key in keys]
        return Run(
            info=RunInfo(
                run_id=f"{self._chance.randrange(16**6):06x}{serial:02x}",
                experiment_id=self._some(self.experiments).experiment_id,
                run_name=self._some(TEXTS),
                user_id=self._some(TEXTS[:6]),
                status=self._some(list(RunStatus)),
                start_time=self._some(TIMES),
                end_time=self._some([None, *TIMES]),
                lifecycle_stage=self._stage(),
            ),
            metrics=tuple(metrics),
            params=self._tags(),
            tags=self._tags(),
            datasets=tuple(self._data(name) for name in sorted(self._chance.sample(TEXTS[:6], 2))),
        )

    def _data(self, name: str) -> DatasetInput:
        context = self._some(CONTEXTS)
        tags = (Tag(CONTEXT, context),) if context else ()
        dataset = Dataset(name=name, digest=self._some(["1", "2"]), source_type="s", source="{}")
        return DatasetInput(dataset=dataset, tags=tags)

    def _model(self, serial: int) -> LoggedModel:
        run = self._some(self.runs)
        points = [
            Metric(
                key=self._some(KEYS[:3]),
                value=self._some(NUMBERS),
                timestamp=self._some(TIMES),
                step=step,
                dataset_name=self._some([None, "d", "e"]),
                dataset_digest=self._some(["1", "2"]),
                run_id=run.info.run_id,
                model_id=f"m-{serial:032x}",
            )
            for step in range(self._chance.randrange(5))
        ]
        return LoggedModel(
            model_id=f"m-{serial:032x}",
            experiment_id=run.info.experiment_id,
            name=self._some(TEXTS),
            status=self._some(list(LoggedModelStatus)),
            status_message=self._some(["", "out of disk"]),
            model_type=self._some(TEXTS[:3]),
            source_run_id=self._some([None, run.info.run_id]),
            creation_timestamp_ms=self._some(TIMES),
            last_updated_timestamp_ms=self._some(TIMES),
            tags=self._tags(),
            params=self._tags(),
            metrics=tuple(sorted(points, key=lambda point: (point.key, point.timestamp, point.step))),
        )

    def keep(self, tx: Transaction) -> None:
        """Write it all."""
        rows: dict[Any, list[dict[str, Any]]] = {}

        def add(table: Any, **values: Any) -> None:
            rows.setdefault(table, []).append(values)

        for experiment in self.experiments:
            _keep_experiment(add, experiment)
        serials = {run.info.run_id: serial for serial, run in enumerate(self.runs, 1)}
        data: dict[tuple[str, str, str], int] = {}
        for run in self.runs:
            _keep_run(add, serials[run.info.run_id], run, data)
        for serial, model in enumerate(self.models, 1):
            _keep_model(add, serial, model, serials)
        for table, values in rows.items():
            tx.many(insert(table), values)


def _keep_experiment(add: Callable[..., None], experiment: Experiment) -> None:
    number = int(experiment.experiment_id)
    add(
        tables.experiments,
        id=number,
        project=experiment.project,
        name=experiment.name,
        deleted=int(experiment.lifecycle_stage is LifecycleStage.DELETED),
        creation_time=experiment.creation_time,
        last_update_time=experiment.last_update_time,
    )
    for tag in experiment.tags:
        add(tables.experiment_tags, experiment_id=number, **texts(tag.key, tag.value))


def _keep_run(add: Callable[..., None], serial: int, run: Run, data: dict[tuple[str, str, str], int]) -> None:
    info, number = run.info, int(run.info.experiment_id)
    deleted = info.lifecycle_stage is LifecycleStage.DELETED
    add(
        tables.runs,
        serial=serial,
        run_id=info.run_id,
        experiment_id=number,
        name=info.run_name,
        user_id=info.user_id,
        status=info.status.value,
        start_time=info.start_time,
        end_time=info.end_time,
        deleted=int(deleted),
        deleted_time=9 if deleted else None,
    )
    for metric in run.metrics:
        add(tables.run_metrics, run=serial, experiment_id=number, key=metric.key, **measured(metric))
    for table, tags in ((tables.run_params, run.params), (tables.run_tags, run.tags)):
        for tag in tags:
            add(table, run=serial, experiment_id=number, **texts(tag.key, tag.value))
    for given in run.datasets:
        known = (info.experiment_id, given.dataset.name, given.dataset.digest)
        if known not in data:
            data[known] = len(data) + 1
            add(
                tables.datasets,
                serial=data[known],
                experiment_id=number,
                name=given.dataset.name,
                digest=given.dataset.digest,
                source_type=given.dataset.source_type,
                source=given.dataset.source,
                schema=None,
                profile=None,
            )
        context = next((tag.value for tag in given.tags if tag.key == CONTEXT), "")
        tags_text = json_text(given.tags)
        add(tables.run_datasets, run=serial, dataset=data[known], tags=tags_text, context=context)


def _keep_model(add: Callable[..., None], serial: int, model: LoggedModel, serials: dict[str, int]) -> None:
    number = int(model.experiment_id)
    add(
        tables.logged_models,
        serial=serial,
        model_id=model.model_id,
        experiment_id=number,
        name=model.name,
        status=model.status.value,
        status_message=model.status_message,
        model_type=model.model_type,
        source_run_id=model.source_run_id,
        deleted=0,
        creation_timestamp_ms=model.creation_timestamp_ms,
        last_updated_timestamp_ms=model.last_updated_timestamp_ms,
    )
    for table, tags in ((tables.logged_model_params, model.params), (tables.logged_model_tags, model.tags)):
        for tag in tags:
            add(table, model=serial, experiment_id=number, **texts(tag.key, tag.value))
    for point in model.metrics:
        add(
            tables.logged_model_metrics,
            model=serial,
            key=point.key,
            run=serials[point.run_id or ""],
            experiment_id=number,
            dataset_name=point.dataset_name,
            dataset_digest=point.dataset_digest,
            **measured(point),
        )


# ------------------------------------------------------------------------------------------------- the oracle

Thing = Experiment | Run | LoggedModel


def on_data(point: Metric, on: Iterable[DatasetFilter]) -> bool:
    """Whether a point was measured on one of these, if any are named."""
    wanted = list(on)
    return not wanted or any(
        point.dataset_name == data.dataset_name and data.dataset_digest in (None, point.dataset_digest)
        for data in wanted
    )


def values_of(thing: Thing, kind: Kind, key: str, on: Sequence[Sequence[DatasetFilter]] = ()) -> list[Any]:
    """What a thing has under a name: none, one, or, for datasets, several values."""
    match kind, thing:
        case Kind.ATTRIBUTE, _:
            value = _attribute(thing, key)
            return [] if value is None else [value]
        case Kind.METRIC, Run():
            return [metric.value for metric in thing.metrics if metric.key == key]
        case Kind.METRIC, LoggedModel():
            points = [point for point in thing.metrics if point.key == key]
            points = [point for point in points if all(on_data(point, data) for data in on)]
            return [max(points, key=lambda point: point.step).value] if points else []
        case Kind.TAG, _:
            return [tag.value for tag in thing.tags if tag.key == key]
        case Kind.PARAM, Run() | LoggedModel():
            return [tag.value for tag in thing.params if tag.key == key]
        case Kind.DATASET, Run() if key == "context":
            return [tag.value for data in thing.datasets for tag in data.tags if tag.key == CONTEXT]
        case Kind.DATASET, Run():
            return [getattr(data.dataset, key) for data in thing.datasets]
    raise AssertionError((kind, key))


def _attribute(thing: Thing, key: str) -> Any:
    match thing:
        case Run(info=info) if key == "artifact_uri":
            return f"mlflow-artifacts:/{info.experiment_id}/{info.run_id}/artifacts"
        case Run(info=info):
            return getattr(info, key)
        case Experiment() if key == "experiment_id":
            return int(thing.experiment_id)
        case LoggedModel() if key == "status":
            return STATUSES[thing.status]
        case LoggedModel() if key == "artifact_location":
            return f"mlflow-artifacts:/{thing.experiment_id}/models/{thing.model_id}/artifacts"
        case LoggedModel() if key == "lifecycle_stage":
            return "active"
        case LoggedModel() if key == "status_message":
            return thing.status_message or None
    return getattr(thing, key)


def holds(thing: Thing, clause: Clause, on: Sequence[DatasetFilter] = ()) -> bool:
    """Whether a thing passes a clause."""
    found = values_of(thing, clause.kind, clause.key, [on])
    if clause.operator is Operator.IS_NULL:
        return not found
    return any(_passes(value, clause) for value in found)


def _passes(actual: Any, clause: Clause) -> bool:
    wanted: Any = clause.value
    if isinstance(actual, int) and isinstance(wanted, str | tuple):
        wanted = int(wanted) if isinstance(wanted, str) else tuple(map(int, wanted))
    match clause.operator:
        case Operator.EQUAL:
            return bool(actual == wanted)
        case Operator.NOT_EQUAL:
            return bool(actual != wanted)
        case Operator.BELOW:
            return bool(actual < wanted)
        case Operator.AT_MOST:
            return bool(actual <= wanted)
        case Operator.ABOVE:
            return bool(actual > wanted)
        case Operator.AT_LEAST:
            return bool(actual >= wanted)
        case Operator.LIKE | Operator.ILIKE:
            pattern = wanted.replace("\\", "\\\\")
            return query.like(pattern, actual, ignore_case=clause.operator is Operator.ILIKE)
        case Operator.IN:
            return actual in wanted
        case Operator.NOT_IN:
            return actual not in wanted
        case _:
            return True


def in_order(
    noun: Noun, things: Iterable[Thing], order: Sequence[Order], on: Sequence[DatasetFilter] = ()
) -> list[Thing]:
    """The things in that order: numbers or texts, then NaN, then what has no value, and MLflow's ties."""

    def compare(left: Thing, right: Thing) -> int:
        for term in order:
            data = [on]
            if term.dataset_name is not None:
                data.append([DatasetFilter(term.dataset_name, term.dataset_digest)])
            keys = []
            for thing in (left, right):
                found = values_of(thing, term.kind, term.key, data)
                is_nan = bool(found) and isinstance(found[0], float) and math.isnan(found[0])
                keys.append((1 if is_nan else 0 if found else 2, [] if is_nan else found[:1]))
            if keys[0] == keys[1]:
                continue
            if keys[0][0] == keys[1][0] and term.descending:
                keys.reverse()
            return -1 if keys[0] < keys[1] else 1
        return 0

    result = list(things)
    named = {term.key for term in order if term.kind is Kind.ATTRIBUTE}
    match noun:
        case Noun.RUNS:
            result.sort(key=lambda run: run.info.run_id)  # type: ignore[union-attr]  # all of one noun
            result.sort(key=lambda run: -(run.info.start_time or 0))  # type: ignore[union-attr]
        case Noun.LOGGED_MODELS:
            result.sort(key=lambda model: model.model_id)  # type: ignore[union-attr]
            result.sort(key=lambda model: -model.creation_timestamp_ms)  # type: ignore[union-attr]
        case _:
            sign = 1 if not order else -1
            result.sort(key=lambda one: sign * int(one.experiment_id))  # type: ignore[union-attr]
            result.sort(key=lambda one: 0 if order else -one.creation_time)  # type: ignore[union-attr]
    if "start_time" in named:
        result.sort(key=lambda run: run.info.run_id)  # type: ignore[union-attr]
    if "creation_timestamp_ms" in named:
        result.sort(key=lambda model: model.model_id)  # type: ignore[union-attr]
    return sorted(result, key=functools.cmp_to_key(compare))
