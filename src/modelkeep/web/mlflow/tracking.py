"""Experiments and runs in MLflow's words: one handler for each operation.

What requests and answers look like is `tracking_shapes`; the verbs themselves are `service.tracking`.
"""

from msgspec.structs import replace

from modelkeep.core import errors
from modelkeep.core.tracking import Dataset, DatasetInput, Metric, ModelOutput, Tag, ViewType
from modelkeep.service.act import Act
from modelkeep.web.mlflow import tracking_shapes as shapes
from modelkeep.web.mlflow.tracking_shapes import (
    ExperimentIdOut,
    ExperimentsOut,
    MetricsOut,
    OneExperiment,
    OneRun,
    OneRunInfo,
    RunsOut,
    experiment_out,
    info_out,
    metric_out,
    run_out,
    tags_in,
)
from modelkeep.web.mlflow.wire import DONE, Nothing, project_of
from modelkeep.web.operations import Call

SEARCH_RUNS_MAX = 50_000
"""Runs that a client may ask for at once; MLflow's limit. A page holds fewer when they would not fit."""
SEARCH_DEFAULT = 1_000
"""Runs, or experiments, of a page when nobody says."""
HISTORY_MAX = 25_000
"""Points of a metric's history in one answer."""


# ----------------------------------------------------------------------------------------------- experiments


def create_experiment(act: Act, call: Call) -> ExperimentIdOut:
    """`experiments/create`."""
    asked: shapes.CreateExperiment = call.body
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
    asked: shapes.ExperimentTag = call.body
    call.house.tracking.set_experiment_tag(act, asked.experiment_id, asked.key, asked.value)
    return DONE


def delete_experiment_tag(act: Act, call: Call) -> Nothing:
    """`experiments/delete-experiment-tag`."""
    call.house.tracking.delete_experiment_tag(act, call.body.experiment_id, call.body.key)
    return DONE


def search_experiments(act: Act, call: Call) -> ExperimentsOut:
    """`experiments/search`, which is asked by GET and by POST."""
    asked: shapes.SearchExperiments = call.body if call.body is not None else call.query
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


def create_run(act: Act, call: Call) -> OneRun:
    """`runs/create`."""
    asked: shapes.CreateRun = call.body
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
    asked: shapes.UpdateRun = call.body
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
    asked: shapes.LogMetric = call.body
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
    asked: shapes.LogBatch = call.body
    call.house.tracking.log_batch(
        act,
        asked.run,
        tuple(metric.point() for metric in asked.metrics or ()),
        tags_in(asked.params),
        tags_in(asked.tags),
    )
    return DONE


def log_inputs(act: Act, call: Call) -> Nothing:
    """`runs/log-inputs`."""
    asked: shapes.LogInputs = call.body
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
    asked: shapes.LogOutputs = call.body
    models = tuple(ModelOutput(model_id=model.model_id, step=model.step) for model in asked.models or ())
    call.house.tracking.log_outputs(act, asked.run, models)
    return DONE


def log_model(act: Act, call: Call) -> Nothing:
    """`runs/log-model`, by which clients before MLflow 3 note in a run's tags which models it logged."""
    call.house.tracking.log_model(act, call.body.run, call.body.model_json)
    return DONE


def search_runs(act: Act, call: Call) -> RunsOut:
    """`runs/search`."""
    asked: shapes.SearchRuns = call.body
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
    asked: shapes.MetricHistory = call.query
    page = call.house.tracking.metric_history(
        act, asked.run, asked.metric_key, max_results=asked.max_results, page_token=asked.page_token or None
    )
    return MetricsOut(tuple(map(metric_out, page.items)), page.next_page_token)


def metric_history_bulk(act: Act, call: Call) -> MetricsOut:
    """`metrics/get-history-bulk`."""
    asked: shapes.BulkHistory = call.query
    most = HISTORY_MAX if asked.max_results is None else asked.max_results
    points = call.house.tracking.metric_history_bulk(
        act, asked.run_id, asked.metric_key, max_results=min(most, HISTORY_MAX)
    )
    return MetricsOut(tuple(map(metric_out, points)))


def metric_history_interval(act: Act, call: Call) -> MetricsOut:
    """`metrics/get-history-bulk-interval`."""
    asked: shapes.HistoryInterval = call.query
    points = call.house.tracking.metric_history_interval(
        act,
        asked.run_ids,
        asked.metric_key,
        start_step=asked.start_step,
        end_step=asked.end_step,
        max_results=HISTORY_MAX if asked.max_results is None else min(asked.max_results, HISTORY_MAX),
    )
    return MetricsOut(tuple(map(metric_out, points)))
