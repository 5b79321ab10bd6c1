"""Experiments and runs in MLflow's words: one handler for each operation, requests in, answers out.

What a request may hold stands as a struct beside its handler; the verbs themselves are `service.tracking`.
"""

import math

from msgspec import Struct
from msgspec.structs import replace

from modelkeep.core import errors
from modelkeep.core.tracking import (
    Dataset,
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
from modelkeep.service.act import Act
from modelkeep.web.mlflow.wire import Int64, Nothing, Request, number, project_of
from modelkeep.web.operations import Call

SEARCH_RUNS_MAX = 50_000
"""Runs that a client may ask for at once; MLflow's limit. A page holds fewer when they would not fit."""
SEARCH_DEFAULT = 1_000
"""Runs, or experiments, of a page when nobody says."""
HISTORY_MAX = 25_000
"""Points of a metric's history in one answer."""

DONE = Nothing()


# ----------------------------------------------------------------------------------------------- on the wire


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


class RunInfoOut(Struct, frozen=True, kw_only=True, omit_defaults=True):
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


class MetricOut(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A point as the client parses it; a value that is no JSON number is a word."""

    key: str
    value: float | str
    timestamp: int
    step: int
    dataset_name: str | None = None
    dataset_digest: str | None = None
    model_id: str | None = None
    run_id: str | None = None


class RunDataOut(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a run logged."""

    metrics: tuple[MetricOut, ...] = ()
    params: tuple[Tag, ...] = ()
    tags: tuple[Tag, ...] = ()


class ModelInput(Struct, frozen=True, kw_only=True):
    """A logged model that a run has read."""

    model_id: str


class RunInputsOut(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a run has read."""

    dataset_inputs: tuple[DatasetInput, ...] = ()
    model_inputs: tuple[ModelInput, ...] = ()


class RunOutputsOut(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a run made."""

    model_outputs: tuple[ModelOutput, ...] = ()


class RunOut(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A run as the client parses it."""

    info: RunInfoOut
    data: RunDataOut
    inputs: RunInputsOut
    outputs: RunOutputsOut | None = None


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


# ----------------------------------------------------------------------------------------------- experiments


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


class OneExperiment(Struct, frozen=True):
    experiment: ExperimentOut


class ExperimentIdOut(Struct, frozen=True):
    experiment_id: str


class ExperimentsOut(Struct, frozen=True, omit_defaults=True):
    experiments: tuple[ExperimentOut, ...] = ()
    next_page_token: str | None = None


def create_experiment(act: Act, call: Call) -> ExperimentIdOut:
    """`experiments/create`."""
    asked: CreateExperiment = call.body
    if asked.artifact_location:
        raise errors.Invalid(
            "Artifacts of every experiment are kept by this server; leave 'artifact_location' out.",
            field="artifact_location",
        )
    made = call.house.tracking.create_experiment(act, project_of(call), asked.name, asked.tags or ())
    return ExperimentIdOut(made.experiment_id)


def get_experiment(act: Act, call: Call) -> OneExperiment:
    """`experiments/get`."""
    return OneExperiment(experiment_out(call.house.tracking.get_experiment(act, call.query.experiment_id)))


def get_experiment_by_name(act: Act, call: Call) -> OneExperiment:
    """`experiments/get-by-name`."""
    found = call.house.tracking.get_experiment_by_name(act, project_of(call), call.query.experiment_name)
    return OneExperiment(experiment_out(found))


def update_experiment(act: Act, call: Call) -> Nothing:
    """`experiments/update`."""
    if call.body.new_name is not None:
        call.house.tracking.rename_experiment(act, call.body.experiment_id, call.body.new_name)
    return DONE


def delete_experiment(act: Act, call: Call) -> Nothing:
    """`experiments/delete`."""
    call.house.tracking.delete_experiment(act, call.body.experiment_id)
    return DONE


def restore_experiment(act: Act, call: Call) -> Nothing:
    """`experiments/restore`."""
    call.house.tracking.restore_experiment(act, call.body.experiment_id)
    return DONE


def set_experiment_tag(act: Act, call: Call) -> Nothing:
    """`experiments/set-experiment-tag`."""
    asked: ExperimentTag = call.body
    call.house.tracking.set_experiment_tag(act, asked.experiment_id, asked.key, asked.value)
    return DONE


def delete_experiment_tag(act: Act, call: Call) -> Nothing:
    """`experiments/delete-experiment-tag`."""
    call.house.tracking.delete_experiment_tag(act, call.body.experiment_id, call.body.key)
    return DONE


def search_experiments(act: Act, call: Call) -> ExperimentsOut:
    """`experiments/search`, which is asked by GET and by POST."""
    asked: SearchExperiments = call.body if call.body is not None else call.query
    page = call.house.tracking.search_experiments(
        act,
        project_of(call),
        filter=asked.filter or "",
        order_by=asked.order_by or (),
        view=asked.view_type or ViewType.ACTIVE_ONLY,
        max_results=SEARCH_DEFAULT if asked.max_results is None else asked.max_results,
        page_token=asked.page_token or None,
    )
    return ExperimentsOut(tuple(map(experiment_out, page.items)), page.next_page_token)


# ------------------------------------------------------------------------------------------------------ runs


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


def create_run(act: Act, call: Call) -> OneRun:
    """`runs/create`."""
    asked: CreateRun = call.body
    made = call.house.tracking.create_run(
        act,
        asked.experiment_id or "",
        project=project_of(call),
        user_id=asked.user_id or "",
        start_time=asked.start_time,
        tags=asked.tags or (),
        run_name=asked.run_name or "",
    )
    return OneRun(replace(run_out(made), outputs=None))  # as MLflow: a new run has none, not even empty ones


def get_run(act: Act, call: Call) -> OneRun:
    """`runs/get`."""
    return OneRun(run_out(call.house.tracking.get_run(act, call.query.run)))


def update_run(act: Act, call: Call) -> OneRunInfo:
    """`runs/update`."""
    asked: UpdateRun = call.body
    info = call.house.tracking.update_run(
        act, asked.run, status=asked.status, end_time=asked.end_time, run_name=asked.run_name
    )
    return OneRunInfo(info_out(info))


def delete_run(act: Act, call: Call) -> Nothing:
    """`runs/delete`."""
    call.house.tracking.delete_run(act, call.body.run)
    return DONE


def restore_run(act: Act, call: Call) -> Nothing:
    """`runs/restore`."""
    call.house.tracking.restore_run(act, call.body.run)
    return DONE


def log_metric(act: Act, call: Call) -> Nothing:
    """`runs/log-metric`."""
    asked: LogMetric = call.body
    point = Metric(
        key=asked.key,
        value=asked.value,
        timestamp=asked.timestamp,
        step=asked.step or 0,
        dataset_name=asked.dataset_name,
        dataset_digest=asked.dataset_digest,
        model_id=asked.model_id,
    )
    call.house.tracking.log_metric(act, asked.run, point)
    return DONE


def log_param(act: Act, call: Call) -> Nothing:
    """`runs/log-parameter`."""
    call.house.tracking.log_param(act, call.body.run, Tag(call.body.key, call.body.value))
    return DONE


def set_tag(act: Act, call: Call) -> Nothing:
    """`runs/set-tag`."""
    call.house.tracking.set_tag(act, call.body.run, Tag(call.body.key, call.body.value))
    return DONE


def delete_tag(act: Act, call: Call) -> Nothing:
    """`runs/delete-tag`."""
    call.house.tracking.delete_tag(act, call.body.run, call.body.key)
    return DONE


def log_batch(act: Act, call: Call) -> Nothing:
    """`runs/log-batch`."""
    asked: LogBatch = call.body
    call.house.tracking.log_batch(
        act,
        asked.run,
        tuple(metric.point() for metric in asked.metrics or ()),
        tags_in(asked.params),
        tags_in(asked.tags),
    )
    return DONE


def tags_in(given: tuple[TagIn, ...] | None) -> tuple[Tag, ...]:
    """Tags or params as the services take them."""
    return tuple(Tag(tag.key, tag.value) for tag in given or ())


def log_inputs(act: Act, call: Call) -> Nothing:
    """`runs/log-inputs`."""
    asked: LogInputs = call.body
    datasets = tuple(
        DatasetInput(
            dataset=Dataset(
                name=given.dataset.name,
                digest=given.dataset.digest,
                source_type=given.dataset.source_type,
                source=given.dataset.source,
                schema=given.dataset.schema,
                profile=given.dataset.profile,
            ),
            tags=tags_in(given.tags),
        )
        for given in asked.datasets or ()
    )
    models = tuple(ModelOutput(model_id=model.model_id) for model in asked.models or ())
    call.house.tracking.log_inputs(act, asked.run, datasets, models)
    return DONE


def log_outputs(act: Act, call: Call) -> Nothing:
    """`runs/outputs`."""
    asked: LogOutputs = call.body
    models = tuple(ModelOutput(model_id=model.model_id, step=model.step) for model in asked.models or ())
    call.house.tracking.log_outputs(act, asked.run, models)
    return DONE


def log_model(act: Act, call: Call) -> Nothing:
    """`runs/log-model`, by which clients before MLflow 3 note in a run's tags which models it logged."""
    call.house.tracking.log_model(act, call.body.run, call.body.model_json)
    return DONE


def search_runs(act: Act, call: Call) -> RunsOut:
    """`runs/search`."""
    asked: SearchRuns = call.body
    most = SEARCH_DEFAULT if asked.max_results is None else asked.max_results
    if not 0 < most <= SEARCH_RUNS_MAX:
        raise errors.Invalid(
            f"Invalid value {most} for parameter 'max_results': ask for 1 to {SEARCH_RUNS_MAX:,} runs.",
            field="max_results",
        )
    page = call.house.tracking.search_runs(
        act,
        asked.experiment_ids or (),
        filter=asked.filter or "",
        order_by=asked.order_by or (),
        view=asked.run_view_type or ViewType.ACTIVE_ONLY,
        max_results=most,
        page_token=asked.page_token or None,
    )
    return RunsOut(tuple(map(run_out, page.items)), page.next_page_token)


def metric_history(act: Act, call: Call) -> MetricsOut:
    """`metrics/get-history`."""
    asked: MetricHistory = call.query
    page = call.house.tracking.metric_history(
        act, asked.run, asked.metric_key, max_results=asked.max_results, page_token=asked.page_token or None
    )
    return MetricsOut(tuple(map(metric_out, page.items)), page.next_page_token)


def metric_history_bulk(act: Act, call: Call) -> MetricsOut:
    """`metrics/get-history-bulk`."""
    asked: BulkHistory = call.query
    most = HISTORY_MAX if asked.max_results is None else asked.max_results
    points = call.house.tracking.metric_history_bulk(
        act, asked.run_id, asked.metric_key, max_results=min(most, HISTORY_MAX)
    )
    return MetricsOut(tuple(map(metric_out, points)))


def metric_history_interval(act: Act, call: Call) -> MetricsOut:
    """`metrics/get-history-bulk-interval`."""
    asked: HistoryInterval = call.query
    points = call.house.tracking.metric_history_interval(
        act,
        asked.run_ids,
        asked.metric_key,
        start_step=asked.start_step,
        end_step=asked.end_step,
        max_results=HISTORY_MAX if asked.max_results is None else min(asked.max_results, HISTORY_MAX),
    )
    return MetricsOut(tuple(map(metric_out, points)))
