"""Experiments and runs as the MLflow client sends and parses them.

What a request may hold, and how an experiment and a run look on the wire. Nothing here asks the services.
What makes up a page of runs is there by the thousand, and cannot refer to itself: it is no work for the
garbage collector (`gc=False`).
"""

import math

from msgspec import Struct

from modelkeep.core import errors
from modelkeep.core.tracking import (
    DatasetInput,
    Experiment,
    LifecycleStage,
    Metric,
    ModelOutput,
    Run,
    RunInfo,
    RunStatus,
    Tag,
    ViewType,
)
from modelkeep.web.mlflow.wire import Int64, Request, number

# ---------------------------------------------------------------------------------------------------- answers


class ExperimentOut(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An experiment as the client parses it."""

    experiment_id: str
    name: str
    artifact_location: str
    lifecycle_stage: LifecycleStage
    last_update_time: int
    creation_time: int
    tags: tuple[Tag, ...] = ()
    workspace: str


class RunInfoOut(Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """A run's head as the client parses it; `run_uuid` is what `run_id` was once called."""

    run_uuid: str
    experiment_id: str
    run_name: str
    user_id: str
    status: RunStatus
    start_time: int | None = None
    end_time: int | None = None
    artifact_uri: str
    lifecycle_stage: LifecycleStage
    run_id: str


class MetricOut(Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """A point as the client parses it; a value that is no JSON number is a word."""

    key: str
    value: float | str
    timestamp: int
    step: int
    dataset_name: str | None = None
    dataset_digest: str | None = None
    model_id: str | None = None
    run_id: str | None = None


class RunDataOut(Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """What a run logged."""

    metrics: tuple[MetricOut, ...] = ()
    params: tuple[Tag, ...] = ()
    tags: tuple[Tag, ...] = ()


class ModelInput(Struct, frozen=True, kw_only=True, gc=False):
    """A logged model that a run has read."""

    model_id: str


class RunInputsOut(Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """What a run has read."""

    dataset_inputs: tuple[DatasetInput, ...] = ()
    model_inputs: tuple[ModelInput, ...] = ()


class RunOutputsOut(Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """What a run made."""

    model_outputs: tuple[ModelOutput, ...] = ()


class RunOut(Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """A run as the client parses it."""

    info: RunInfoOut
    data: RunDataOut
    inputs: RunInputsOut
    outputs: RunOutputsOut | None = None


class OneExperiment(Struct, frozen=True):
    experiment: ExperimentOut


class ExperimentIdOut(Struct, frozen=True):
    experiment_id: str


class ExperimentsOut(Struct, frozen=True, omit_defaults=True):
    experiments: tuple[ExperimentOut, ...] = ()
    next_page_token: str | None = None


class OneRun(Struct, frozen=True):
    run: RunOut


class OneRunInfo(Struct, frozen=True):
    run_info: RunInfoOut


class RunsOut(Struct, frozen=True, omit_defaults=True):
    runs: tuple[RunOut, ...] = ()
    next_page_token: str | None = None


class MetricsOut(Struct, frozen=True, omit_defaults=True):
    metrics: tuple[MetricOut, ...] = ()
    next_page_token: str | None = None


def experiment_out(experiment: Experiment) -> ExperimentOut:
    """An experiment on the wire."""
    return ExperimentOut(
        experiment_id=experiment.experiment_id,
        name=experiment.name,
        artifact_location=f"mlflow-artifacts:/{experiment.experiment_id}",
        lifecycle_stage=experiment.lifecycle_stage,
        last_update_time=experiment.last_update_time,
        creation_time=experiment.creation_time,
        tags=experiment.tags,
        workspace=experiment.project,
    )


def info_out(info: RunInfo) -> RunInfoOut:
    """A run's head on the wire."""
    return RunInfoOut(
        run_uuid=info.run_id,
        experiment_id=info.experiment_id,
        run_name=info.run_name,
        user_id=info.user_id,
        status=info.status,
        start_time=info.start_time,
        end_time=info.end_time,
        artifact_uri=f"mlflow-artifacts:/{info.experiment_id}/{info.run_id}/artifacts",
        lifecycle_stage=info.lifecycle_stage,
        run_id=info.run_id,
    )


def metric_out(metric: Metric) -> MetricOut:
    """A point on the wire."""
    return MetricOut(
        key=metric.key,
        value=metric.value if math.isfinite(metric.value) else number(metric.value),
        timestamp=metric.timestamp,
        step=metric.step,
        dataset_name=metric.dataset_name,
        dataset_digest=metric.dataset_digest,
        model_id=metric.model_id,
        run_id=metric.run_id,
    )


def run_out(run: Run) -> RunOut:
    """A run on the wire."""
    return RunOut(
        info=info_out(run.info),
        data=RunDataOut(metrics=tuple(map(metric_out, run.metrics)), params=run.params, tags=run.tags),
        inputs=RunInputsOut(
            dataset_inputs=run.datasets,
            model_inputs=tuple(ModelInput(model_id=model.model_id) for model in run.model_inputs),
        ),
        outputs=RunOutputsOut(model_outputs=run.model_outputs),
    )


# --------------------------------------------------------------------------------- requests about experiments


class CreateExperiment(Request, frozen=True, kw_only=True):
    name: str
    artifact_location: str | None = None
    tags: tuple[Tag, ...] | None = None


class ExperimentId(Request, frozen=True, kw_only=True):
    experiment_id: str


class ExperimentName(Request, frozen=True, kw_only=True):
    experiment_name: str


class UpdateExperiment(Request, frozen=True, kw_only=True):
    experiment_id: str
    new_name: str | None = None


class ExperimentTag(Request, frozen=True, kw_only=True):
    experiment_id: str
    key: str
    value: str = ""


class ExperimentTagKey(Request, frozen=True, kw_only=True):
    experiment_id: str
    key: str


class SearchExperiments(Request, frozen=True, kw_only=True):
    max_results: Int64 | None = None
    page_token: str | None = None
    filter: str | None = None
    order_by: tuple[str, ...] | None = None
    view_type: ViewType | None = None


# ---------------------------------------------------------------------------------------- requests about runs


class RunId(Request, frozen=True, kw_only=True):
    """A run, by the name of its id or by the one that it had long ago."""

    run_id: str | None = None
    run_uuid: str | None = None

    @property
    def run(self) -> str:
        """Raises Invalid when neither is there."""
        found = self.run_id or self.run_uuid
        if not found:
            raise errors.Invalid("Missing value for required parameter 'run_id'.", field="run_id")
        return found


class CreateRun(Request, frozen=True, kw_only=True):
    experiment_id: str | None = None
    user_id: str | None = None
    run_name: str | None = None
    start_time: Int64 | None = None
    tags: tuple[Tag, ...] | None = None


class UpdateRun(RunId, frozen=True, kw_only=True):
    status: RunStatus | None = None
    end_time: Int64 | None = None
    run_name: str | None = None


class LogMetric(RunId, frozen=True, kw_only=True):
    key: str
    value: float
    timestamp: Int64
    step: Int64 | None = None
    model_id: str | None = None
    dataset_name: str | None = None
    dataset_digest: str | None = None


class LogParam(RunId, frozen=True, kw_only=True):
    key: str
    value: str = ""


class RunTagKey(RunId, frozen=True, kw_only=True):
    key: str


class MetricIn(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A point as the client sends it in a batch."""

    key: str
    value: float
    timestamp: Int64
    step: Int64 | None = None
    dataset_name: str | None = None
    dataset_digest: str | None = None
    model_id: str | None = None
    run_id: str | None = None

    def point(self) -> Metric:
        """The point."""
        return Metric(
            key=self.key,
            value=self.value,
            timestamp=self.timestamp,
            step=self.step or 0,
            dataset_name=self.dataset_name,
            dataset_digest=self.dataset_digest,
            model_id=self.model_id,
        )


class TagIn(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A tag or a param as the client sends it in a batch; one without a value is empty."""

    key: str
    value: str = ""


class LogBatch(RunId, frozen=True, kw_only=True):
    metrics: tuple[MetricIn, ...] | None = None
    params: tuple[TagIn, ...] | None = None
    tags: tuple[TagIn, ...] | None = None


class DatasetIn(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A dataset as the client sends it."""

    name: str
    digest: str
    source_type: str
    source: str
    schema: str | None = None
    profile: str | None = None


class DatasetInputIn(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A dataset and what it was for, as the client sends it."""

    dataset: DatasetIn
    tags: tuple[TagIn, ...] | None = None


class LogInputs(RunId, frozen=True, kw_only=True):
    datasets: tuple[DatasetInputIn, ...] | None = None
    models: tuple[ModelInput, ...] | None = None


class ModelOutputIn(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A logged model that a run made, as the client sends it."""

    model_id: str
    step: Int64 = 0


class LogOutputs(RunId, frozen=True, kw_only=True):
    models: tuple[ModelOutputIn, ...] | None = None


class LogModel(RunId, frozen=True, kw_only=True):
    model_json: str


class SearchRuns(Request, frozen=True, kw_only=True):
    experiment_ids: tuple[str, ...] | None = None
    filter: str | None = None
    run_view_type: ViewType | None = None
    max_results: Int64 | None = None
    order_by: tuple[str, ...] | None = None
    page_token: str | None = None


class MetricHistory(RunId, frozen=True, kw_only=True):
    metric_key: str
    page_token: str | None = None
    max_results: Int64 | None = None


class BulkHistory(Request, frozen=True, kw_only=True):
    run_id: tuple[str, ...]
    metric_key: str
    max_results: Int64 | None = None


class HistoryInterval(Request, frozen=True, kw_only=True):
    run_ids: tuple[str, ...]
    metric_key: str
    start_step: Int64 | None = None
    end_step: Int64 | None = None
    max_results: Int64 | None = None


def tags_in(given: tuple[TagIn, ...] | None) -> tuple[Tag, ...]:
    """Tags or params as the services take them."""
    return tuple(Tag(tag.key, tag.value) for tag in given or ())
