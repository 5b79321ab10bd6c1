"""The conversation about experiments, runs and logged models: every operation, in happy paths and errors.

How steps are sent and compared is in `mlflow_steps`.
"""

import json

from tests.web.mlflow_steps import API, Step, get, post

RUN = {"run": "run.info.run_id"}
T = 1_700_000_000_000
UNKNOWN = "unknown-fields"
LOCATION = "artifact-location"
STRICT = "strict-values"
INT64 = "64-bits"
FINITE = "infinities"
USER = "who-asked"
NO_500 = "no-500"
TAKEN = "taken-names"
LENIENT = "default-limit"
DATASET = "dataset-digest"
NOT_THERE = "not-there"
SHOWN = "names-in-one-line"
MISSING = "0" * 32

EXPERIMENTS = [
    post(
        "create an experiment",
        "experiments/create",
        {"name": "churn", "tags": [{"key": "team", "value": "risk"}]},
        save={"experiment": "experiment_id"},
    ),
    post("create it again", "experiments/create", {"name": "churn"}),
    post("create without a name", "experiments/create", {}),
    post("create with an empty name", "experiments/create", {"name": ""}),
    post("create with a number for a name", "experiments/create", {"name": 7}),
    post("create with null for a name", "experiments/create", {"name": None}),
    post("create with a name of 501 characters", "experiments/create", {"name": "n" * 501}),
    post("create from no JSON", "experiments/create", raw=b"{"),
    post("create from a list", "experiments/create", raw=b"[]", differs=NO_500),
    get("get an experiment", "experiments/get", "experiment_id={experiment}"),
    get("get the default experiment", "experiments/get", "experiment_id=0"),
    get("get a missing experiment", "experiments/get", "experiment_id=99999"),
    get("get without an id", "experiments/get"),
    get("get by an id that is no number", "experiments/get", "experiment_id=abc"),
    get("get by name", "experiments/get-by-name", "experiment_name=churn"),
    get("get by a missing name", "experiments/get-by-name", "experiment_name=nothing"),
    get("get by no name", "experiments/get-by-name"),
    post("rename", "experiments/update", {"experiment_id": "{experiment}", "new_name": "churn 2"}),
    post(
        "rename to a name that is taken",
        "experiments/update",
        {"experiment_id": "{experiment}", "new_name": "Default"},
        differs=TAKEN,
    ),
    post("rename a missing one", "experiments/update", {"experiment_id": "99999", "new_name": "x"}),
    post(
        "set an experiment's tag",
        "experiments/set-experiment-tag",
        {"experiment_id": "{experiment}", "key": "k", "value": "v"},
    ),
    post(
        "set a tag without a key",
        "experiments/set-experiment-tag",
        {"experiment_id": "{experiment}", "value": "v"},
    ),
    post(
        "set a tag with a bad key",
        "experiments/set-experiment-tag",
        {"experiment_id": "{experiment}", "key": "a;b", "value": "v"},
    ),
    post(
        "set a tag that is too long",
        "experiments/set-experiment-tag",
        {"experiment_id": "{experiment}", "key": "k", "value": "v" * 20_001},
    ),
    post(
        "delete an experiment's tag",
        "experiments/delete-experiment-tag",
        {"experiment_id": "{experiment}", "key": "k"},
    ),
    post(
        "delete it again", "experiments/delete-experiment-tag", {"experiment_id": "{experiment}", "key": "k"}
    ),
    post("search experiments", "experiments/search", {"max_results": 10, "order_by": ["name ASC"]}),
    get("search experiments by GET", "experiments/search", "max_results=10&view_type=ALL"),
    post(
        "search experiments with a filter",
        "experiments/search",
        {"max_results": 10, "filter": "name LIKE 'churn%'", "order_by": ["name DESC"]},
    ),
    post(
        "search experiments by a tag",
        "experiments/search",
        {"max_results": 10, "filter": "tags.team = 'risk'"},
    ),
    post("search experiments without a limit", "experiments/search", {}, differs=LENIENT),
    post("search experiments with a limit of 0", "experiments/search", {"max_results": 0}),
    post("search too many experiments", "experiments/search", {"max_results": 50_001}),
    post(
        "search experiments with a bad filter",
        "experiments/search",
        {"max_results": 5, "filter": "name ~ 'x'"},
    ),
    post(
        "search experiments with a bad order",
        "experiments/search",
        {"max_results": 5, "order_by": ["nothing"]},
    ),
    post(
        "search experiments with a made-up token",
        "experiments/search",
        {"max_results": 5, "page_token": "abc"},
    ),
    post("delete an experiment", "experiments/delete", {"experiment_id": "{experiment}"}),
    get("get a deleted experiment", "experiments/get", "experiment_id={experiment}"),
    get("get a deleted one by name", "experiments/get-by-name", "experiment_name=churn 2"),
    post("delete a deleted one", "experiments/delete", {"experiment_id": "{experiment}"}),
    post("create one of a deleted name", "experiments/create", {"name": "churn 2"}),
    post("start a run in a deleted one", "runs/create", {"experiment_id": "{experiment}"}),
    post(
        "tag a deleted one",
        "experiments/set-experiment-tag",
        {"experiment_id": "{experiment}", "key": "k", "value": "v"},
    ),
    post(
        "rename a deleted one",
        "experiments/update",
        {"experiment_id": "{experiment}", "new_name": "z"},
        differs=NO_500,
    ),
    post("restore it", "experiments/restore", {"experiment_id": "{experiment}"}),
    post("restore it again", "experiments/restore", {"experiment_id": "{experiment}"}),
    post("delete a missing one", "experiments/delete", {"experiment_id": "99999"}),
]

RUNS = [
    post(
        "start a run",
        "runs/create",
        {
            "experiment_id": "{experiment}",
            "user_id": "ann",
            "start_time": T,
            "run_name": "first",
            "tags": [{"key": "mlflow.user", "value": "ann"}, {"key": "model", "value": "gbm"}],
        },
        save=RUN,
    ),
    post(
        "start a run by its tag's name",
        "runs/create",
        {
            "experiment_id": "{experiment}",
            "user_id": "bob",
            "start_time": T + 1,
            "tags": [{"key": "mlflow.runName", "value": "second"}],
        },
        save={"second": "run.info.run_id"},
    ),
    post(
        "start a run with two names",
        "runs/create",
        {
            "experiment_id": "{experiment}",
            "run_name": "a",
            "tags": [{"key": "mlflow.runName", "value": "b"}],
        },
    ),
    post("start a run in a missing experiment", "runs/create", {"experiment_id": "99999"}),
    post("start a run in no experiment that is a number", "runs/create", {"experiment_id": "abc"}),
    post(
        "start a run at a time that is text",
        "runs/create",
        {"experiment_id": "{experiment}", "user_id": "bob", "start_time": str(T + 2), "run_name": "third"},
        save={"third": "run.info.run_id"},
    ),
    post("start a run at no time", "runs/create", {"experiment_id": "{experiment}", "start_time": "soon"}),
    post(
        "start a run with true for a name", "runs/create", {"experiment_id": "{experiment}", "run_name": True}
    ),
    get("get a run", "runs/get", "run_id={run}"),
    get("get a run by both names", "runs/get", "run_uuid={run}&run_id={run}"),
    get("get a missing run", "runs/get", f"run_id={MISSING}"),
    get("get a run without an id", "runs/get"),
    get("get a run by a path", "runs/get", "run_id=../../etc"),
    post(
        "log a metric",
        "runs/log-metric",
        {"run_id": "{run}", "key": "auc", "value": 0.5, "timestamp": T, "step": 1},
    ),
    post(
        "log a later point",
        "runs/log-metric",
        {"run_id": "{run}", "key": "auc", "value": 0.75, "timestamp": T + 10, "step": 2},
    ),
    post(
        "log a point as text",
        "runs/log-metric",
        {"run_id": "{run}", "key": "auc", "value": "0.9", "timestamp": str(T + 20), "step": "3"},
    ),
    post("log NaN", "runs/log-metric", {"run_id": "{run}", "key": "nan", "value": "NaN", "timestamp": T}),
    post("log a metric of no value", "runs/log-metric", {"run_id": "{run}", "key": "m", "timestamp": T}),
    post("log a metric of no key", "runs/log-metric", {"run_id": "{run}", "value": 1, "timestamp": T}),
    post("log a metric of no time", "runs/log-metric", {"run_id": "{run}", "key": "m", "value": 1}),
    post(
        "log a metric that is a word",
        "runs/log-metric",
        {"run_id": "{run}", "key": "m", "value": "high", "timestamp": T},
    ),
    post(
        "log a metric with a bad key",
        "runs/log-metric",
        {"run_id": "{run}", "key": "a/../b", "value": 1, "timestamp": T},
    ),
    post(
        "log a metric with a long key",
        "runs/log-metric",
        {"run_id": "{run}", "key": "k" * 251, "value": 1, "timestamp": T},
    ),
    post(
        "log a metric before 1970",
        "runs/log-metric",
        {"run_id": "{run}", "key": "m", "value": 1, "timestamp": -1},
    ),
    post(
        "log a metric to a missing run",
        "runs/log-metric",
        {"run_id": MISSING, "key": "m", "value": 1, "timestamp": T},
    ),
    post("log a metric to no run", "runs/log-metric", {"key": "m", "value": 1, "timestamp": T}),
    post("log a param", "runs/log-parameter", {"run_id": "{run}", "key": "lr", "value": "0.1"}),
    post("log it again", "runs/log-parameter", {"run_id": "{run}", "key": "lr", "value": "0.1"}),
    post("log another value of it", "runs/log-parameter", {"run_id": "{run}", "key": "lr", "value": "0.2"}),
    post("log a param of no value", "runs/log-parameter", {"run_id": "{run}", "key": "empty"}),
    post("log a param that is a number", "runs/log-parameter", {"run_id": "{run}", "key": "n", "value": 5}),
    post("log a param that is true", "runs/log-parameter", {"run_id": "{run}", "key": "b", "value": True}),
    post(
        "log a param of 6001 characters",
        "runs/log-parameter",
        {"run_id": "{run}", "key": "long", "value": "p" * 6_001},
    ),
    post("set a tag", "runs/set-tag", {"run_id": "{run}", "key": "stage", "value": "one"}),
    post("set it anew", "runs/set-tag", {"run_id": "{run}", "key": "stage", "value": "two"}),
    post("set a run's tag without a key", "runs/set-tag", {"run_id": "{run}", "value": "x"}),
    post(
        "set a tag of 8001 characters", "runs/set-tag", {"run_id": "{run}", "key": "t", "value": "t" * 8_001}
    ),
    post("delete a run's tag", "runs/delete-tag", {"run_id": "{run}", "key": "stage"}),
    post("delete a tag that is not there", "runs/delete-tag", {"run_id": "{run}", "key": "stage"}),
    post(
        "rename a run by its tag",
        "runs/set-tag",
        {"run_id": "{run}", "key": "mlflow.runName", "value": "renamed"},
    ),
    get("see the new name", "runs/get", "run_id={run}"),
    post(
        "log a batch",
        "runs/log-batch",
        {
            "run_id": "{run}",
            "metrics": [
                {"key": "loss", "value": 1.0 / step, "timestamp": T + step, "step": step}
                for step in (1, 2, 3)
            ],
            "params": [{"key": "depth", "value": "3"}, {"key": "eta", "value": "0.3"}],
            "tags": [{"key": "batch", "value": "yes"}],
        },
    ),
    post("log an empty batch", "runs/log-batch", {"run_id": "{run}"}),
    post(
        "log a batch with a param twice",
        "runs/log-batch",
        {"run_id": "{run}", "params": [{"key": "p", "value": "1"}, {"key": "p", "value": "2"}]},
    ),
    post(
        "log a batch with a changed param",
        "runs/log-batch",
        {
            "run_id": "{run}",
            "params": [{"key": "depth", "value": "4"}],
            "tags": [{"key": "half", "value": "done"}],
        },
    ),
    get("see that nothing half was done", "runs/get", "run_id={run}"),
    post(
        "log 101 params",
        "runs/log-batch",
        {"run_id": "{run}", "params": [{"key": f"p{i}", "value": "1"} for i in range(101)]},
    ),
    post(
        "log 1001 metrics",
        "runs/log-batch",
        {
            "run_id": "{run}",
            "metrics": [{"key": "m", "value": 1, "timestamp": T, "step": i} for i in range(1001)],
        },
    ),
    post("log a batch that is no list", "runs/log-batch", {"run_id": "{run}", "metrics": 5}),
    post(
        "log a batch with a metric of no value",
        "runs/log-batch",
        {"run_id": "{run}", "metrics": [{"key": "m", "timestamp": T}]},
    ),
    post(
        "log a dataset",
        "runs/log-inputs",
        {
            "run_id": "{run}",
            "datasets": [
                {
                    "dataset": {
                        "name": "train",
                        "digest": "abc",
                        "source_type": "local",
                        "source": "{}",
                        "schema": "s",
                        "profile": "p",
                    },
                    "tags": [{"key": "mlflow.data.context", "value": "training"}],
                }
            ],
        },
    ),
    post("log no dataset", "runs/log-inputs", {"run_id": "{run}"}),
    get("see the dataset", "runs/get", "run_id={run}"),
    get("history of a metric", "metrics/get-history", "run_id={run}&metric_key=auc"),
    get("history in pages", "metrics/get-history", "run_id={run}&metric_key=auc&max_results=2"),
    get("history of no points", "metrics/get-history", "run_id={run}&metric_key=auc&max_results=0"),
    get("history of a metric that is not there", "metrics/get-history", "run_id={run}&metric_key=nothing"),
    get("history without a key", "metrics/get-history", "run_id={run}"),
    get(
        "history of a missing run",
        "metrics/get-history",
        f"run_id={MISSING}&metric_key=auc",
        differs=NOT_THERE,
    ),
    get(
        "history of some steps",
        "metrics/get-history-bulk-interval",
        "run_ids={run}&metric_key=loss&start_step=1&end_step=2&max_results=10",
    ),
    Step(
        "history of several runs",
        "GET",
        "/ajax-api/2.0/mlflow/metrics/get-history-bulk",
        query="run_id={run}&run_id={second}&metric_key=loss",
    ),
    post("end a run", "runs/update", {"run_id": "{run}", "status": "FINISHED", "end_time": T + 1_000}),
    post("end a missing run", "runs/update", {"run_id": MISSING, "status": "FINISHED"}),
    post("rename a run", "runs/update", {"run_id": "{second}", "run_name": "deux"}),
    post(
        "search runs",
        "runs/search",
        {"experiment_ids": ["{experiment}"], "max_results": 10, "order_by": ["attributes.start_time ASC"]},
    ),
    post(
        "search runs with a filter",
        "runs/search",
        {
            "experiment_ids": ["{experiment}"],
            "filter": "metrics.auc > 0.8 and params.lr = '0.1'",
            "max_results": 10,
        },
    ),
    post(
        "search runs for none",
        "runs/search",
        {"experiment_ids": ["{experiment}"], "filter": "tags.model = 'none'"},
    ),
    post("search runs of no experiment", "runs/search", {"filter": "metrics.auc > 0.8"}),
    post(
        "search runs with a bad filter",
        "runs/search",
        {"experiment_ids": ["{experiment}"], "filter": "metrics.auc >"},
    ),
    post(
        "search runs with OR",
        "runs/search",
        {"experiment_ids": ["{experiment}"], "filter": "metrics.auc > 1 OR metrics.auc < 2"},
    ),
    post(
        "search runs with a bad order",
        "runs/search",
        {"experiment_ids": ["{experiment}"], "order_by": ["x.y"]},
    ),
    post("search too many runs", "runs/search", {"experiment_ids": ["{experiment}"], "max_results": 50_001}),
    post(
        "search runs in a view that is none",
        "runs/search",
        {"experiment_ids": ["{experiment}"], "run_view_type": "SOME"},
        differs=STRICT,
    ),
    post(
        "search runs with a made-up token",
        "runs/search",
        {"experiment_ids": ["{experiment}"], "page_token": "abc"},
    ),
    post("search runs for text", "runs/search", {"experiment_ids": "{experiment}"}),
    post(
        "note a model as old clients do",
        "runs/log-model",
        {
            "run_id": "{second}",
            "model_json": json.dumps(
                {
                    "artifact_path": "model",
                    "flavors": {"sklearn": {}},
                    "run_id": "{second}",
                    "utc_time_created": "2026-01-01 00:00:00",
                    "model_uuid": "u",
                }
            ),
        },
    ),
    post("note a model that is no JSON", "runs/log-model", {"run_id": "{second}", "model_json": "{"}),
    post("delete a run", "runs/delete", {"run_id": "{third}"}),
    get("get a deleted run", "runs/get", "run_id={third}"),
    post("delete a deleted run", "runs/delete", {"run_id": "{third}"}),
    post("log to a deleted run", "runs/log-parameter", {"run_id": "{third}", "key": "a", "value": "b"}),
    post("end a deleted run", "runs/update", {"run_id": "{third}", "status": "FINISHED"}),
    post(
        "search deleted runs",
        "runs/search",
        {"experiment_ids": ["{experiment}"], "run_view_type": "DELETED_ONLY"},
    ),
    post("restore a run", "runs/restore", {"run_id": "{third}"}),
    post("restore it once more", "runs/restore", {"run_id": "{third}"}),
    post("delete a missing run", "runs/delete", {"run_id": MISSING}),
    post("restore a missing run", "runs/restore", {"run_id": MISSING}),
]

MODELS = [
    post(
        "log a model",
        "logged-models",
        {
            "experiment_id": "{experiment}",
            "name": "gbm",
            "model_type": "classifier",
            "source_run_id": "{run}",
            "params": [{"key": "lr", "value": "0.1"}],
            "tags": [{"key": "team", "value": "risk"}],
        },
        save={"model": "model.info.model_id"},
    ),
    post("log a model with a bad name", "logged-models", {"experiment_id": "{experiment}", "name": "a/b"}),
    post("log a model to a missing experiment", "logged-models", {"experiment_id": "99999", "name": "x"}),
    post("log a model of no experiment", "logged-models", {"name": "x"}),
    get("get a logged model", "logged-models/{model}"),
    get("get a missing logged model", "logged-models/m-" + MISSING),
    Step(
        "finalize it as pending",
        "PATCH",
        API + "logged-models/{model}",
        {"model_id": "{model}", "status": "LOGGED_MODEL_PENDING"},
        differs=STRICT,
    ),
    Step(
        "finalize it as a word",
        "PATCH",
        API + "logged-models/{model}",
        {"model_id": "{model}", "status": "DONE"},
        differs=STRICT,
    ),
    Step(
        "finalize it",
        "PATCH",
        API + "logged-models/{model}",
        {"model_id": "{model}", "status": "LOGGED_MODEL_READY"},
    ),
    Step(
        "finalize a missing one",
        "PATCH",
        API + "logged-models/m-" + MISSING,
        {"model_id": "m-" + MISSING, "status": "LOGGED_MODEL_READY"},
    ),
    Step(
        "tag it",
        "PATCH",
        API + "logged-models/{model}/tags",
        {"model_id": "{model}", "tags": [{"key": "a", "value": "b"}]},
    ),
    Step("take the tag away", "DELETE", API + "logged-models/{model}/tags/a"),
    Step("take it away again", "DELETE", API + "logged-models/{model}/tags/a"),
    post(
        "log its params",
        "logged-models/{model}/params",
        {"model_id": "{model}", "params": [{"key": "depth", "value": "3"}]},
    ),
    post(
        "log a metric of it",
        "runs/log-metric",
        {
            "run_id": "{run}",
            "key": "f1",
            "value": 0.5,
            "timestamp": T,
            "step": 0,
            "model_id": "{model}",
            "dataset_name": "train",
            "dataset_digest": "abc",
        },
    ),
    get("see all of it", "logged-models/{model}"),
    post(
        "note it as an output",
        "runs/outputs",
        {"run_id": "{run}", "models": [{"model_id": "{model}", "step": 3}]},
    ),
    post(
        "note it as an input", "runs/log-inputs", {"run_id": "{second}", "models": [{"model_id": "{model}"}]}
    ),
    get("see the output", "runs/get", "run_id={run}"),
    get("see the input", "runs/get", "run_id={second}"),
    post("search logged models", "logged-models/search", {"experiment_ids": ["{experiment}"]}),
    post(
        "search them with a filter",
        "logged-models/search",
        {
            "experiment_ids": ["{experiment}"],
            "filter": "metrics.f1 > 0.4",
            "order_by": [{"field_name": "metrics.f1"}],
        },
    ),
    post(
        "search them with a bad filter",
        "logged-models/search",
        {"experiment_ids": ["{experiment}"], "filter": "metrics.f1 >"},
    ),
    post("search them in no experiment", "logged-models/search", {}),
    Step("delete a logged model", "DELETE", API + "logged-models/{model}", {"model_id": "{model}"}),
    get("get a deleted logged model", "logged-models/{model}"),
    get("get it all the same", "logged-models/{model}", "allow_deleted=true"),
]

# What MLflow takes and we do not, or answers otherwise, has an experiment and a run of its own, so that it
# changes nothing that other steps see.
ODD = [
    post(
        "create an experiment for odd things",
        "experiments/create",
        {"name": "odd"},
        save={"odd": "experiment_id"},
    ),
    post(
        "start a run for odd things",
        "runs/create",
        {"experiment_id": "{odd}", "user_id": "ann", "run_name": "odd", "start_time": T},
        save={"strange": "run.info.run_id"},
    ),
    post(
        "create with an unknown field",
        "experiments/create",
        {"name": "red", "colour": "red"},
        differs=UNKNOWN,
    ),
    post("create with a line break", "experiments/create", {"name": "a\nb"}, differs=SHOWN),
    post(
        "create with a location",
        "experiments/create",
        {"name": "far", "artifact_location": "s3://far"},
        differs=LOCATION,
    ),
    post(
        "start a run of nobody",
        "runs/create",
        {"experiment_id": "{odd}", "run_name": "nobody's", "start_time": T},
        save={"nobody": "run.info.run_id"},
        differs=USER,
    ),
    post(
        "end a run beyond 64 bits", "runs/update", {"run_id": "{strange}", "end_time": 2**63}, differs=INT64
    ),
    post(
        "log a metric at a huge step",
        "runs/log-metric",
        {"run_id": "{strange}", "key": "m", "value": 1, "timestamp": T, "step": 2**63},
        differs=INT64,
    ),
    post(
        "log a metric that is true",
        "runs/log-metric",
        {"run_id": "{strange}", "key": "m", "value": True, "timestamp": T},
        differs=STRICT,
    ),
    post(
        "log a batch with a number for a param",
        "runs/log-batch",
        {"run_id": "{strange}", "params": [{"key": "num", "value": 5}]},
        differs=STRICT,
    ),
    post(
        "log a batch with a number for a tag",
        "runs/log-batch",
        {"run_id": "{strange}", "tags": [{"key": "num", "value": 5}]},
        differs=STRICT,
    ),
    post(
        "end a run in a word that is none",
        "runs/update",
        {"run_id": "{strange}", "status": "HAPPY"},
        differs=STRICT,
    ),
    post(
        "log a batch of an unknown kind",
        "runs/log-batch",
        {"run_id": "{strange}", "losses": []},
        differs=UNKNOWN,
    ),
    post(
        "log a dataset without a digest",
        "runs/log-inputs",
        {
            "run_id": "{strange}",
            "datasets": [{"dataset": {"name": "t", "source_type": "local", "source": "{}"}}],
        },
        differs=DATASET,
    ),
    post(
        "start a run for infinities",
        "runs/create",
        {"experiment_id": "{odd}", "user_id": "ann", "run_name": "infinite", "start_time": T},
        save={"infinite": "run.info.run_id"},
    ),
    post(
        "log infinity",
        "runs/log-metric",
        {"run_id": "{infinite}", "key": "inf", "value": "Infinity", "timestamp": T},
    ),
    post(
        "log minus infinity",
        "runs/log-metric",
        {"run_id": "{infinite}", "key": "low", "value": "-Infinity", "timestamp": T},
    ),
    get("see infinity", "runs/get", "run_id={infinite}", differs=FINITE),
]

STEPS = EXPERIMENTS + RUNS + MODELS + ODD
