"""The unmodified MLflow client against a real server: nothing is set but where it is, and who one is.

What single requests answer is in tests/web/test_mlflow_wire.py. The course that teams follow has a file of
its own.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mlflow_client import MlflowClient
from tests.web.processes import Server, serving

pytestmark = pytest.mark.journey

QUICKSTART = Path(__file__).parents[2] / "examples" / "mlflow_quickstart.py"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server in local mode."""
    with serving(tmp_path_factory.mktemp("local")) as found:
        yield found


@pytest.mark.req("T1")
def test_the_quickstart_runs(mlflow_client: MlflowClient, server: Server, tmp_path: Path) -> None:
    """Experiments, runs, metrics, datasets, searches and deletions of plain MLflow code are as MLflow has
    them."""
    said = mlflow_client.run(QUICKSTART, server.url, folder=tmp_path)
    assert "everything is as it was logged" in said


@pytest.mark.long
@pytest.mark.req("T1")
def test_the_quickstart_is_plain_mlflow(
    mlflow_client: MlflowClient, mlflow_server: str, tmp_path: Path
) -> None:
    """The same script passes against MLflow's own server: what it checks is no invention of ours."""
    assert "everything is as it was logged" in mlflow_client.run(QUICKSTART, mlflow_server, folder=tmp_path)


CREDENTIALS = """
import json, os, sys, time
import mlflow, requests

good, wrong = sys.argv[1:]

def attempt(**settings):
    for name in ("TOKEN", "USERNAME", "PASSWORD"):
        os.environ.pop("MLFLOW_TRACKING_" + name, None)
    os.environ.update({"MLFLOW_TRACKING_" + name: value for name, value in settings.items()})
    began = time.monotonic()
    try:
        mlflow.MlflowClient().search_experiments()
    except mlflow.exceptions.MlflowException as refused:
        return [refused.error_code, time.monotonic() - began]
    return ["ok", time.monotonic() - began]

print(json.dumps({
    "token": attempt(TOKEN=good),
    "password": attempt(USERNAME="ann", PASSWORD=good),
    "wrong token": attempt(TOKEN=wrong),
    "wrong password": attempt(USERNAME="ann", PASSWORD=wrong),
    "nothing": attempt(),
}))
"""


@pytest.mark.req("G10")
def test_mlflows_own_credentials_are_ours(mlflow_client: MlflowClient, tmp_path: Path) -> None:
    """A token goes where MLflow has a place for it; a wrong one is refused at once, not retried."""
    with serving(tmp_path / "data", auth="token") as server:
        wrong = server.admin[:-1] + ("0" if server.admin[-1] != "0" else "1")
        said = mlflow_client.run(CREDENTIALS, server.url, server.admin, wrong, folder=tmp_path)
    found = json.loads(said.splitlines()[-1])
    assert {name: code for name, (code, _) in found.items()} == {
        "token": "ok",
        "password": "ok",
        "wrong token": "UNAUTHENTICATED",
        "wrong password": "UNAUTHENTICATED",
        "nothing": "UNAUTHENTICATED",
    }
    assert all(took < 30 for _, took in found.values())


ABSENT = """
import json, time
import mlflow
from mlflow.genai import datasets
from mlflow.genai.scorers import list_scorers

mlflow.set_experiment("absent")
found = {}

def attempt(name, work):
    began = time.monotonic()
    try:
        answer = work()
    except mlflow.exceptions.MlflowException as refused:
        answer = refused.error_code
    assert time.monotonic() - began < 30, name
    found[name] = answer

@mlflow.trace
def traced(x):
    return x + 1

def in_workspace():
    mlflow.set_workspace("risk")
    mlflow.set_experiment("in risk")
    with mlflow.start_run() as run:
        mlflow.log_metric("auc", 0.5)
    names = [each.name for each in mlflow.list_workspaces()]
    mlflow.set_workspace("default")
    return [names, mlflow.get_experiment_by_name("in risk") is None]

attempt("traced code", lambda: traced(1))
attempt("flush", mlflow.flush_trace_async_logging)
attempt("search_traces", mlflow.search_traces)
attempt("log_feedback", lambda: mlflow.log_feedback(trace_id="tr-1", name="good", value=True))
attempt("datasets", lambda: datasets.create_dataset(name="d"))
attempt("scorers", list_scorers)
attempt("create_workspace", lambda: mlflow.create_workspace("fresh"))
attempt("workspaces", in_workspace)
print(json.dumps(found))
"""


@pytest.mark.req("T1")
def test_what_is_absent_stops_nobody(mlflow_client: MlflowClient, server: Server, tmp_path: Path) -> None:
    """Traced code goes on where no traces are kept, other parts say so at once, and a workspace is a
    project."""
    said = mlflow_client.run(ABSENT, server.url, folder=tmp_path)
    assert json.loads(said.splitlines()[-1]) == {
        "traced code": 2,
        "flush": None,
        "search_traces": "NOT_IMPLEMENTED",
        "log_feedback": "NOT_IMPLEMENTED",
        "datasets": "NOT_IMPLEMENTED",
        "scorers": "NOT_IMPLEMENTED",
        "create_workspace": "NOT_IMPLEMENTED",
        "workspaces": [["default", "risk"], True],
    }


AUTOLOG = """
import json
import lightgbm, mlflow, numpy as np, pandas as pd, xgboost
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression

mlflow.set_experiment("autolog")
mlflow.autolog()
rows, labels = np.random.default_rng(1).random((80, 3)), np.arange(80) % 2
found = {}

def fit(name, work):
    with mlflow.start_run(run_name=name) as run:
        work()
    run = mlflow.get_run(run.info.run_id)
    models = [each.model_id for each in run.outputs.model_outputs]
    (model,) = [mlflow.get_logged_model(each) for each in models]
    predicted = mlflow.pyfunc.load_model(f"models:/{model.model_id}").predict(pd.DataFrame(rows))
    found[name] = [len(run.data.params) > 3, len(run.data.metrics) > 0, str(model.status), len(predicted),
                   len(run.inputs.dataset_inputs)]

fit("sklearn", lambda: LogisticRegression().fit(rows, labels))
fit("forest", lambda: RandomForestClassifier(5).fit(rows, labels))
data = xgboost.DMatrix(rows, label=labels)
fit("xgboost", lambda: xgboost.train({"objective": "binary:logistic"}, data, 5, evals=[(data, "train")]))
data = lightgbm.Dataset(rows, label=labels)
fit("lightgbm", lambda: lightgbm.train({"objective": "binary", "verbose": -1}, data, 5, valid_sets=[data]))

frame = pd.DataFrame({"p": [0, 1, 1, 0], "y": [0, 1, 0, 0]})
with mlflow.start_run(run_name="evaluate") as run:
    result = mlflow.models.evaluate(data=frame, predictions="p", targets="y", model_type="classifier")
found["evaluate"] = mlflow.get_run(run.info.run_id).data.metrics["accuracy_score"]
print(json.dumps(found))
"""


@pytest.mark.long
@pytest.mark.req("T1")
def test_autologging_and_evaluate(mlflow_client: MlflowClient, server: Server, tmp_path: Path) -> None:
    """What scikit-learn, XGBoost and LightGBM log by themselves arrives whole, and their models load."""
    found = json.loads(mlflow_client.run(AUTOLOG, server.url, folder=tmp_path).splitlines()[-1])
    assert found.pop("evaluate") == 0.75
    assert found == {
        name: [True, True, "READY", 80, 1 if name in ("sklearn", "forest") else found[name][4]]
        for name in ("sklearn", "forest", "xgboost", "lightgbm")
    }
