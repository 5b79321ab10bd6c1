"""What MLflow's server answers, as far as an import reads it, and what of it an import speaks of.

The shapes take what any MLflow 2 or 3 says: fields that a release does not have are empty, whole numbers may
be text, and what nobody reads is passed over. It asks nothing; that is `mlflow_http`'s part.
"""

from msgspec import Struct

from modelkeep.client.mlflow_source import ForeignLoggedModel, ForeignRun
from modelkeep.core import errors, values
from modelkeep.core.imports import (
    CloseLoggedModel,
    CloseRun,
    HistoryItem,
    LoggedModelItem,
    Number,
    Point,
    RunItem,
    write_number,
)
from modelkeep.core.tracking import Dataset, DatasetInput, LoggedModelStatus, ModelOutput, RunStatus, Tag

Int = int | str
"""Whole numbers, which some releases write as text."""


class TagOut(Struct, frozen=True):
    """As MLflow says it."""

    key: str = ""
    value: str = ""


class ExperimentOut(Struct, frozen=True):
    """As MLflow says it."""

    experiment_id: str
    name: str
    lifecycle_stage: str = "active"
    creation_time: Int = 0
    last_update_time: Int = 0
    tags: list[TagOut] = []


class Experiments(Struct, frozen=True):
    """As MLflow says it."""

    experiments: list[ExperimentOut] = []
    next_page_token: str = ""


class MetricOut(Struct, frozen=True):
    """As MLflow says it."""

    key: str
    value: float | str = 0.0
    timestamp: Int = 0
    step: Int = 0
    run_id: str = ""
    dataset_name: str = ""
    dataset_digest: str = ""


class Metrics(Struct, frozen=True):
    """As MLflow says it."""

    metrics: list[MetricOut] = []
    next_page_token: str = ""


class InfoOut(Struct, frozen=True):
    """As MLflow says it."""

    run_id: str
    experiment_id: str = ""
    run_name: str = ""
    user_id: str = ""
    status: str = "FINISHED"
    start_time: Int = 0
    end_time: Int | None = None
    lifecycle_stage: str = "active"
    artifact_uri: str = ""


class DataOut(Struct, frozen=True):
    """As MLflow says it."""

    metrics: list[MetricOut] = []
    params: list[TagOut] = []
    tags: list[TagOut] = []


class DatasetOut(Struct, frozen=True):
    """As MLflow says it."""

    name: str
    digest: str
    source_type: str = ""
    source: str = ""
    schema: str | None = None
    profile: str | None = None


class InputOut(Struct, frozen=True):
    """As MLflow says it."""

    dataset: DatasetOut
    tags: list[TagOut] = []


class ModelOut(Struct, frozen=True):
    """As MLflow says it."""

    model_id: str = ""
    step: Int = 0


class InputsOut(Struct, frozen=True):
    """As MLflow says it."""

    dataset_inputs: list[InputOut] = []
    model_inputs: list[ModelOut] = []


class OutputsOut(Struct, frozen=True):
    """As MLflow says it."""

    model_outputs: list[ModelOut] = []


class RunOut(Struct, frozen=True):
    """As MLflow says it."""

    info: InfoOut
    data: DataOut = DataOut()
    inputs: InputsOut = InputsOut()
    outputs: OutputsOut = OutputsOut()


class Runs(Struct, frozen=True):
    """As MLflow says it."""

    runs: list[RunOut] = []
    next_page_token: str = ""


class OneRun(Struct, frozen=True):
    """As MLflow says it."""

    run: RunOut


class LoggedInfo(Struct, frozen=True):
    """As MLflow says it."""

    model_id: str
    experiment_id: str = ""
    name: str = ""
    creation_timestamp_ms: Int = 0
    last_updated_timestamp_ms: Int = 0
    artifact_uri: str = ""
    status: Int = "LOGGED_MODEL_READY"
    status_message: str = ""
    model_type: str = ""
    source_run_id: str = ""
    tags: list[TagOut] = []


class LoggedData(Struct, frozen=True):
    """As MLflow says it."""

    params: list[TagOut] = []
    metrics: list[MetricOut] = []


class LoggedOut(Struct, frozen=True):
    """As MLflow says it."""

    info: LoggedInfo
    data: LoggedData = LoggedData()


class LoggedModels(Struct, frozen=True):
    """As MLflow says it."""

    models: list[LoggedOut] = []
    next_page_token: str = ""


class AliasOut(Struct, frozen=True):
    """As MLflow says it."""

    alias: str
    version: Int


class RegisteredOut(Struct, frozen=True):
    """As MLflow says it."""

    name: str
    creation_timestamp: Int = 0
    last_updated_timestamp: Int = 0
    description: str = ""
    tags: list[TagOut] = []
    aliases: list[AliasOut] = []


class RegisteredModels(Struct, frozen=True):
    """As MLflow says it."""

    registered_models: list[RegisteredOut] = []
    next_page_token: str = ""


class VersionOut(Struct, frozen=True):
    """As MLflow says it."""

    name: str
    version: Int
    creation_timestamp: Int = 0
    last_updated_timestamp: Int = 0
    user_id: str = ""
    current_stage: str = "None"
    description: str = ""
    source: str = ""
    run_id: str = ""
    model_id: str = ""
    tags: list[TagOut] = []


class Versions(Struct, frozen=True):
    """As MLflow says it."""

    model_versions: list[VersionOut] = []
    next_page_token: str = ""


class Place(Struct, frozen=True):
    """As MLflow says it."""

    artifact_uri: str = ""


class FileOut(Struct, frozen=True):
    """As MLflow says it."""

    path: str
    is_dir: bool = False
    file_size: Int | None = None


class Files(Struct, frozen=True):
    """As MLflow says it."""

    files: list[FileOut] = []
    next_page_token: str = ""


def run_of(run: RunOut) -> ForeignRun:
    """A run as an import speaks of it. Raises SourceUnreadable: a number is none."""
    info = run.info
    deleted = info.lifecycle_stage == "deleted"
    end = None if info.end_time in (None, 0, "0") else whole(info.end_time)
    status = RunStatus(info.status) if info.status in set(RunStatus) else RunStatus.FINISHED
    return ForeignRun(
        made=RunItem(
            id=info.run_id,
            experiment=info.experiment_id,
            name=info.run_name,
            user=info.user_id,
            start_time=whole(info.start_time),
            tags=tags_of(run.data.tags),
            params=tags_of(run.data.params),
            datasets=tuple(_dataset(given) for given in run.inputs.dataset_inputs),
            inputs=_models(run.inputs.model_inputs),
            outputs=_models(run.outputs.model_outputs),
        ),
        closed=CloseRun(
            id=info.run_id, status=status, end_time=end, deleted_time=(end or 0) if deleted else None
        ),
        root=info.artifact_uri,
    )


def logged_model_of(model: LoggedOut) -> ForeignLoggedModel:
    """A logged model as an import speaks of it. Raises SourceUnreadable: a number is none."""
    info = model.info
    status = {1: "PENDING", 2: "READY", 3: "UPLOAD_FAILED"}.get(
        info.status if isinstance(info.status, int) else 0
    )
    word = f"LOGGED_MODEL_{status}" if status else str(info.status)
    return ForeignLoggedModel(
        made=LoggedModelItem(
            id=info.model_id,
            experiment=info.experiment_id,
            name=info.name,
            model_type=info.model_type,
            run=info.source_run_id or None,
            creation_time=whole(info.creation_timestamp_ms),
            tags=tags_of(info.tags),
            params=tags_of(model.data.params),
        ),
        closed=CloseLoggedModel(
            id=info.model_id,
            status=LoggedModelStatus(word) if word in set(LoggedModelStatus) else LoggedModelStatus.READY,
            status_message=info.status_message,
            last_update_time=whole(info.last_updated_timestamp_ms),
        ),
        root=info.artifact_uri,
        points=tuple(
            HistoryItem(
                id=point.run_id,
                key=point.key,
                points=(point_of(point),),
                model=info.model_id,
                dataset_name=point.dataset_name or None,
                dataset_digest=point.dataset_digest or None,
            )
            for point in model.data.metrics
            if point.run_id
        ),
    )


def _dataset(given: InputOut) -> DatasetInput:
    one = given.dataset
    return DatasetInput(
        dataset=Dataset(
            name=one.name,
            digest=one.digest,
            source_type=one.source_type,
            source=one.source,
            schema=one.schema,
            profile=one.profile,
        ),
        tags=tags_of(given.tags),
    )


def _models(models: list[ModelOut]) -> tuple[ModelOutput, ...]:
    return tuple(ModelOutput(model_id=one.model_id, step=whole(one.step)) for one in models)


def tags_of(tags: list[TagOut]) -> tuple[Tag, ...]:
    """Tags and params."""
    return tuple(Tag(tag.key, tag.value) for tag in tags)


def point_of(metric: MetricOut) -> Point:
    """A point as it travels. Raises SourceUnreadable: it is no number."""
    value: Number
    try:
        value = write_number(float(metric.value) + 0.0)
    except ValueError as problem:
        raise errors.SourceUnreadable(
            f"The metric {values.quoted(metric.key, 60)} has a value that is no number."
        ) from problem
    return whole(metric.timestamp), whole(metric.step), value


def whole(number: Int | None) -> int:
    """A whole number of 64 bits.

    Raises:
        SourceUnreadable: it is none.
    """
    try:
        found = int(number or 0)
    except ValueError as problem:
        raise errors.SourceUnreadable(f"{values.quoted(str(number), 40)} is no whole number.") from problem
    if not -(2**63) <= found < 2**63:
        raise errors.SourceUnreadable(f"{values.quoted(str(number), 40)} has more than 64 bits.")
    return found
