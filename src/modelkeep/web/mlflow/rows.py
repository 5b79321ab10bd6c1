"""The MLflow door's rows of the route table.

MLflow's client and its pages know most operations under two addresses, `/api/2.0/mlflow` and
`/ajax-api/2.0/mlflow`; both stand here, as rows of their own.
"""

from typing import Any

from modelkeep.web.mlflow import absent, logged_models, server, tracking
from modelkeep.web.mlflow import tracking_shapes as shapes
from modelkeep.web.mlflow.artifacts import ARTIFACT_ROWS
from modelkeep.web.mlflow.registry_rows import REGISTRY_ROWS
from modelkeep.web.mlflow.route import API, API3, both, row
from modelkeep.web.mlflow.webhooks import WEBHOOK_ROWS
from modelkeep.web.mlflow.wire import Nothing
from modelkeep.web.operations import Mode, Operation

READ, WRITE, SLOW = Mode.READ, Mode.WRITE, Mode.SLOW


def _post(path: str, mode: Mode, handler: Any, body: Any, answer: Any = Nothing) -> Operation:
    return row("POST", API + path, mode, handler, answer, body=body)


def _get(path: str, mode: Mode, handler: Any, query: Any, answer: Any) -> Operation:
    return row("GET", API + path, mode, handler, answer, query=query)


# fmt: off
TRACKING: tuple[Operation, ...] = (
    _post("experiments/create", WRITE, tracking.create_experiment, shapes.CreateExperiment,
          shapes.ExperimentIdOut),
    _get("experiments/get", READ, tracking.get_experiment, shapes.ExperimentId, shapes.OneExperiment),
    _get("experiments/get-by-name", READ, tracking.get_experiment_by_name, shapes.ExperimentName,
         shapes.OneExperiment),
    _post("experiments/update", WRITE, tracking.update_experiment, shapes.UpdateExperiment),
    _post("experiments/delete", WRITE, tracking.delete_experiment, shapes.ExperimentId),
    _post("experiments/restore", WRITE, tracking.restore_experiment, shapes.ExperimentId),
    _post("experiments/set-experiment-tag", WRITE, tracking.set_experiment_tag, shapes.ExperimentTag),
    _post("experiments/delete-experiment-tag", WRITE, tracking.delete_experiment_tag,
          shapes.ExperimentTagKey),
    _post("experiments/search", SLOW, tracking.search_experiments, shapes.SearchExperiments,
          shapes.ExperimentsOut),
    _get("experiments/search", SLOW, tracking.search_experiments, shapes.SearchExperiments,
         shapes.ExperimentsOut),
    _post("runs/create", WRITE, tracking.create_run, shapes.CreateRun, shapes.OneRun),
    _get("runs/get", READ, tracking.get_run, shapes.RunId, shapes.OneRun),
    _post("runs/update", WRITE, tracking.update_run, shapes.UpdateRun, shapes.OneRunInfo),
    _post("runs/delete", WRITE, tracking.delete_run, shapes.RunId),
    _post("runs/restore", WRITE, tracking.restore_run, shapes.RunId),
    _post("runs/log-metric", WRITE, tracking.log_metric, shapes.LogMetric),
    _post("runs/log-parameter", WRITE, tracking.log_param, shapes.LogParam),
    _post("runs/set-tag", WRITE, tracking.set_tag, shapes.LogParam),
    _post("runs/delete-tag", WRITE, tracking.delete_tag, shapes.RunTagKey),
    _post("runs/log-batch", WRITE, tracking.log_batch, shapes.LogBatch),
    _post("runs/log-inputs", WRITE, tracking.log_inputs, shapes.LogInputs),
    _post("runs/outputs", WRITE, tracking.log_outputs, shapes.LogOutputs),
    _post("runs/log-model", WRITE, tracking.log_model, shapes.LogModel),
    _post("runs/search", SLOW, tracking.search_runs, shapes.SearchRuns, shapes.RunsOut),
    _get("metrics/get-history", READ, tracking.metric_history, shapes.MetricHistory, shapes.MetricsOut),
    _get("metrics/get-history-bulk", SLOW, tracking.metric_history_bulk, shapes.BulkHistory,
         shapes.MetricsOut),
    _get("metrics/get-history-bulk-interval", SLOW, tracking.metric_history_interval,
         shapes.HistoryInterval, shapes.MetricsOut),
)

LOGGED_MODELS: tuple[Operation, ...] = (
    _post("logged-models", WRITE, logged_models.create, logged_models.CreateLoggedModel,
          logged_models.OneLoggedModel),
    _post("logged-models/search", SLOW, logged_models.search, logged_models.SearchLoggedModels,
          logged_models.LoggedModelsOut),
    _get("logged-models/{model_id}", READ, logged_models.get, logged_models.LookAt,
         logged_models.OneLoggedModel),
    row("PATCH", API + "logged-models/{model_id}", WRITE, logged_models.finalize,
        logged_models.OneLoggedModel, body=logged_models.FinalizeLoggedModel),
    row("DELETE", API + "logged-models/{model_id}", WRITE, logged_models.delete),
    row("PATCH", API + "logged-models/{model_id}/tags", WRITE, logged_models.set_tags,
        body=logged_models.SetLoggedModelTags),
    row("DELETE", API + "logged-models/{model_id}/tags/{tag_key}", WRITE, logged_models.delete_tag),
    _post("logged-models/{model_id}/params", WRITE, logged_models.log_params,
          logged_models.LogLoggedModelParams),
)
SERVER: tuple[Operation, ...] = (
    row("GET", "/", Mode.STREAM, server.first_page, bytes, open=True),
    row("GET", "/version", Mode.STREAM, server.version, bytes, open=True),
    row("GET", API3 + "server-info", Mode.PLAIN, server.server_info, server.ServerInfo, open=True),
    row("GET", API3 + "workspaces", READ, server.list_workspaces, server.WorkspacesOut),
    row("GET", API3 + "workspaces/{workspace}", READ, server.get_workspace, server.OneWorkspace),
)
# fmt: on

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
ABSENT: tuple[Operation, ...] = (
    *(row(method, API + "{path...}", Mode.PLAIN, absent.absent) for method in METHODS),
    *(row(method, API3 + "{path...}", Mode.PLAIN, absent.absent) for method in METHODS),
    *(
        row(method, API3 + "workspaces" + rest, Mode.PLAIN, absent.no_workspaces)
        for method, rest in (("POST", ""), ("PATCH", "/{workspace}"), ("DELETE", "/{workspace}"))
    ),
    row("POST", "/v1/traces", Mode.PLAIN, absent.no_spans),
    row("GET", "/graphql", Mode.PLAIN, absent.no_graphql),
    row("POST", "/graphql", Mode.PLAIN, absent.no_graphql),
)

ROWS: tuple[Operation, ...] = (
    *both(TRACKING + LOGGED_MODELS + REGISTRY_ROWS + WEBHOOK_ROWS + SERVER + ABSENT),
    *ARTIFACT_ROWS,
)
"""Every row of the door."""
