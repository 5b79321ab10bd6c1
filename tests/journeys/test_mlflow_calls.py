"""Calls of MLflow's client that people write beside the usual ones, each against a real server.

Tables, images and figures, logging in the background, pages, evaluation of a registered model, copies, and
what the client makes of refusals. Runs, the registry, artifacts and autologging of single models have
journeys of their own.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mlflow_client import MlflowClient
from tests.web.processes import Server, serving

pytestmark = pytest.mark.journey


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server in local mode."""
    with serving(tmp_path_factory.mktemp("local")) as found:
        yield found


CALLS = """
import json, time, warnings
warnings.filterwarnings("ignore")
import matplotlib
matplotlib.use("Agg")
import matplotlib.pyplot as plt
import mlflow, numpy as np, pandas as pd
from sklearn.linear_model import LogisticRegression

client = mlflow.MlflowClient()
X = pd.DataFrame(np.random.default_rng(0).random((60, 3)), columns=list("abc"))
Y = np.arange(60) % 2
fitted = LogisticRegression().fit(X, Y)
signature = mlflow.models.infer_signature(X, fitted.predict(X))
found = {}

def log_model(name):  # with its packages named, or the client looks for them for seconds
    return mlflow.sklearn.log_model(fitted, name=name, signature=signature, pip_requirements=["scikit-learn"])

mlflow.set_experiment("calls")
with mlflow.start_run() as run:
    model = log_model("model")
    log_model("other")
    for rows in (["a"], ["b"]):
        mlflow.log_table({"q": rows}, "table.json")
    figure, axes = plt.subplots()
    axes.plot([1, 2])
    mlflow.log_figure(figure, "figures/one.png")
    mlflow.log_image(np.zeros((8, 8, 3), dtype="uint8"), "images/black.png")
    mlflow.log_text("hello", "notes/hello.txt")
    for step in range(400):
        mlflow.log_metric("later", step, step=step, synchronous=False)
    mlflow.log_params({"late": 1}, synchronous=False)
    mlflow.set_tag("late", "yes", synchronous=False)
    mlflow.flush_async_logging()
    mlflow.log_metric("accuracy", 0.9, model_id=model.model_id)
    mlflow.set_logged_model_tags(model.model_id, {"kind": "linear"})
run_id = run.info.run_id

read = mlflow.get_run(run_id)
found["table"] = mlflow.load_table("table.json", run_ids=[run_id])["q"].tolist()
found["image"] = mlflow.artifacts.load_image(f"runs:/{run_id}/images/black.png").size
found["text"] = mlflow.artifacts.load_text(f"runs:/{run_id}/notes/hello.txt")
found["listed"] = [each.path for each in mlflow.artifacts.list_artifacts(run_id=run_id)]
found["in the background"] = [
    len(client.get_metric_history(run_id, "later")), read.data.params["late"], read.data.tags["late"]]

by_run = mlflow.register_model(f"runs:/{run_id}/model", "churn")
by_model = mlflow.register_model(model.model_uri, "churn", tags={"approval_status": "pending"})
copied = client.copy_model_version("models:/churn/1", "churn-staging")
found["registered"] = [by_run.version, by_model.version, copied.version]
client.set_registered_model_alias("churn", "champion", "1")
found["approved"] = []
client.set_model_version_tag("churn", "2", "approval_status", "approved")
for status in ("pending", "approved"):
    versions = client.search_model_versions(f"name = 'churn' and tags.approval_status = '{status}'")
    found["approved"].append([each.version for each in versions])
found["loads"] = [
    len(mlflow.pyfunc.load_model(uri).predict(X))
    for uri in (f"runs:/{run_id}/model", model.model_uri, "models:/churn-staging/1", "models:/churn/1.x")]
table = X.assign(target=Y)
found["evaluated"] = [
    "accuracy_score" in evaluate(
        uri, table, targets="target", model_type="classifier", evaluator_config={"log_explainer": False}
    ).metrics
    for evaluate, uri in (
        (mlflow.models.evaluate, "models:/churn/1"), (mlflow.evaluate, "models:/churn@champion"))]

def pages(search, **what):
    sizes, token = [], None
    while True:
        page = search(max_results=2, page_token=token, **what)
        sizes.append(len(page))
        token = page.token
        if not token:
            return sizes

experiment_id = run.info.experiment_id
found["pages"] = {
    "versions": pages(client.search_model_versions, filter_string="name = 'churn'"),
    "models": pages(client.search_registered_models),
    "runs": pages(client.search_runs, experiment_ids=[experiment_id]),
    "logged": pages(client.search_logged_models, experiment_ids=[experiment_id]),
}

def refused(work):
    began = time.monotonic()
    try:
        work()
    except mlflow.exceptions.MlflowException:
        return time.monotonic() - began < 30
    return "not refused"

gone = "0" * 32
found["refused"] = {what: refused(work) for what, work in {
    "number": lambda: mlflow.pyfunc.load_model("models:/churn/99"),
    "alias": lambda: mlflow.pyfunc.load_model("models:/churn@nobody"),
    "stage": lambda: mlflow.pyfunc.load_model("models:/churn/Staging"),
    "semver": lambda: mlflow.pyfunc.load_model("models:/churn/9.9.9"),
    "model": lambda: mlflow.pyfunc.load_model("models:/nobody/1"),
    "logged model": lambda: mlflow.pyfunc.load_model(f"models:/m-{gone}"),
    "run": lambda: mlflow.pyfunc.load_model(f"runs:/{gone}/model"),
    "folder": lambda: mlflow.pyfunc.load_model(f"runs:/{run_id}/nothing"),
    "file": lambda: mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path="nothing.txt"),
    "copy": lambda: client.copy_model_version("models:/churn@nobody", "x"),
    "source": lambda: client.create_model_version("churn", "file:///etc"),
    "place": lambda: client.create_experiment("elsewhere", artifact_location="file:///tmp/x"),
    "protected": lambda: (client.transition_model_version_stage("churn", "1", "Production"),
                          client.delete_model_version("churn", "1")),
    "genai": lambda: mlflow.genai.evaluate(data=[{"inputs": {"x": 1}, "outputs": "a"}], scorers=[]),
}.items()}
print(json.dumps(found))
"""


@pytest.mark.long
@pytest.mark.req("T1", "T3", "T4")
def test_what_people_call_besides(mlflow_client: MlflowClient, server: Server, tmp_path: Path) -> None:
    """What is logged in unusual ways is read back, a registered model is evaluated, and no refusal makes the
    client try for long."""
    found = json.loads(mlflow_client.run(CALLS, server.url, folder=tmp_path).splitlines()[-1])
    assert set(found.pop("refused").values()) == {True}
    assert found == {
        "table": ["a", "b"],
        "image": [8, 8],
        "text": "hello",
        "listed": ["figures", "images", "notes", "table.json"],
        "in the background": [400, "1", "yes"],
        "registered": ["1", "2", "1"],
        "approved": [[], ["2"]],
        "loads": [60, 60, 60, 60],
        "evaluated": [True, True],
        "pages": {"versions": [2], "models": [2], "runs": [2, 1], "logged": [2]},
    }


DAMAGED = """
import sys, time
import mlflow
(place,) = sys.argv[1:]
with mlflow.start_run() as run:
    mlflow.log_text("the true text", "a.txt")
import pathlib
for path in pathlib.Path(place).rglob("*"):
    if path.is_file() and path.read_bytes() == b"the true text":
        path.chmod(0o600)
        path.write_bytes(b"the lying txt")
        break
else:
    raise AssertionError("the bytes lie nowhere")
began = time.monotonic()
try:
    mlflow.artifacts.download_artifacts(run_id=run.info.run_id, artifact_path="a.txt")
    raise AssertionError("bytes that are not what was logged")
except mlflow.exceptions.MlflowException:
    print(time.monotonic() - began)
"""


@pytest.mark.req("T1", "V3")
def test_damaged_bytes_are_refused_once(mlflow_client: MlflowClient, server: Server, tmp_path: Path) -> None:
    """A file that was changed on disk is not handed out, and the client does not ask for it for minutes."""
    said = mlflow_client.run(DAMAGED, server.url, str(server.folder), folder=tmp_path)
    assert float(said.splitlines()[-1]) < 60


GRID = """
import json
import mlflow, numpy as np, pandas as pd
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import GridSearchCV

mlflow.set_experiment("grid")
mlflow.sklearn.autolog()
X, Y = pd.DataFrame(np.random.default_rng(1).random((80, 3)), columns=list("abc")), np.arange(80) % 2
with mlflow.start_run() as run:
    GridSearchCV(RandomForestClassifier(4, random_state=1), {"max_depth": [1, 2, 3]}, cv=2).fit(X, Y)
whole = mlflow.get_run(run.info.run_id)
below = f"tags.mlflow.parentRunId = '{run.info.run_id}'"
children = mlflow.search_runs(experiment_names=["grid"], filter_string=below, output_format="list")
listed = [each.path for each in mlflow.artifacts.list_artifacts(run_id=run.info.run_id)]
print(json.dumps({
    "depths": sorted(child.data.params["max_depth"] for child in children),
    "scored": all("mean_test_score" in child.data.metrics for child in children),
    "ended": {child.info.status for child in children} == {"FINISHED"},
    "best": "best_cv_score" in whole.data.metrics and "best_max_depth" in whole.data.params,
    "data": [each.tags[0].value for each in whole.inputs.dataset_inputs],
    "files": "cv_results.csv" in listed,
    "models": [len(mlflow.pyfunc.load_model(f"models:/{each.model_id}").predict(X))
               for each in whole.outputs.model_outputs],
}))
"""


@pytest.mark.long
@pytest.mark.req("T1")
def test_a_grid_search_logs_its_children(mlflow_client: MlflowClient, server: Server, tmp_path: Path) -> None:
    """Autologging of a search makes a run for each try below the search's own, and both its models load."""
    found = json.loads(mlflow_client.run(GRID, server.url, folder=tmp_path).splitlines()[-1])
    assert found == {
        "depths": ["1", "2", "3"],
        "scored": True,
        "ended": True,
        "best": True,
        "data": ["train"],
        "files": True,
        "models": [80, 80],
    }
