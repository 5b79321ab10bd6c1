"""A packaged project from `mlflow run` to two kinds of serving: by MLflow's own server and by a gateway.

Everything that MLflow does is done by its own commands, with nothing set but where the server is.
"""

import json
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.journeys.apart import until
from tests.journeys.houses import House, running_house
from tests.mlflow_client import VENV, MlflowClient, run_mlflow_model_server

pytestmark = pytest.mark.journey

PROJECT = Path(__file__).parents[2] / "examples" / "mlflow_project"
MLFLOW = VENV / "bin" / "mlflow"
MODEL = "tumours (v2)"
COLUMNS = [
    "mean radius", "mean texture", "mean perimeter", "mean area", "mean smoothness",
    "mean compactness", "mean concavity", "mean concave points", "mean symmetry", "mean fractal dimension",
]  # fmt: skip
LARGE = [25.0, 25.0, 165.0, 1900.0, 0.12, 0.25, 0.35, 0.18, 0.2, 0.06]
"""A malignant tumour: class 0."""
SMALL = [9.0, 15.0, 58.0, 250.0, 0.09, 0.06, 0.03, 0.02, 0.17, 0.06]
"""A benign one: class 1."""

REGISTER = """
import sys, mlflow
(name,) = sys.argv[1:]
(run,) = mlflow.search_runs(experiment_names=["project"], output_format="list")
version = mlflow.register_model(f"runs:/{run.info.run_id}/model", name)
client = mlflow.MlflowClient()
client.set_registered_model_alias(name, "champion", version.version)
client.transition_model_version_stage(name, version.version, "Production")
print(run.info.run_id)
"""


class Trained(NamedTuple):
    """What a run of the project has left: the installation, the run's id, the commit of the project."""

    house: House
    run_id: str
    commit: str


@pytest.fixture(scope="module")
def trained(mlflow_client: MlflowClient, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trained]:
    """The project, under version control, run once and registered as the production version of a model."""
    folder = tmp_path_factory.mktemp("project") / "checkout"
    shutil.copytree(PROJECT, folder)
    commit = committed(folder)
    with running_house() as house:
        words = ("run", ".", "-P", "epochs=10", "--env-manager", "local", "--experiment-name", "project")
        mlflow_client.run(MLFLOW, house.url, *words, folder=folder)
        run_id = mlflow_client.run(REGISTER, house.url, MODEL, folder=folder).splitlines()[-1]
        yield Trained(house, run_id, commit)


def committed(folder: Path) -> str:
    """Put a folder under version control; the commit."""
    identity = ("-c", "user.name=Ann", "-c", "user.email=ann@example.org", "-c", "commit.gpgsign=false")
    for words in (("init", "--quiet"), ("add", "."), (*identity, "commit", "--quiet", "--message", "Begin")):
        subprocess.run(["git", *words], cwd=folder, check=True)
    return subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=folder, check=True, capture_output=True, text=True
    ).stdout.strip()


@pytest.mark.long
@pytest.mark.req("T1", "V4", "G11")
def test_a_version_knows_the_project_that_made_it(trained: Trained) -> None:
    """The commit, the entry point, the params, the data and the packages of `mlflow run` are the version's,
    and its identity is whole."""
    shown = trained.house.run("show", f"{MODEL}:1.0.0", "--json")
    assert shown.returncode == 0, shown.stderr
    version = json.loads(shown.stdout)
    made = version["provenance"]
    assert made["code"]["commit"] == trained.commit
    assert "dirty" not in made["code"], made["code"]
    assert made["run_id"] == trained.run_id
    assert (made["project"]["entry_point"], made["project"]["backend"]) == ("main", "local")
    assert [data["name"] for data in made["datasets"]] == ["breast-cancer"]
    assert made["environment"]["kind"] == "requirements"
    assert not version["identity"].get("missing")
    assert version["params"] == {"epochs": "10", "learning_rate": "0.1"}
    assert trained.commit in trained.house.run("show", f"{MODEL}:1.0.0").stdout


@pytest.mark.req("T3", "S1")
def test_a_gateway_serves_what_mlflow_logged(trained: Trained) -> None:
    """An endpoint of ours loads the file of MLflow's scikit-learn flavor, and answers by its protocol."""
    made = trained.house.run("endpoint", "create", "tumours", "--model", MODEL)
    assert made.returncode == 0, made.stderr
    url = f"{trained.house.gateway}/endpoints/tumours/invocations"
    assert until(lambda: scored(url), "the endpoint answers") == [0, 1]


@pytest.mark.long
@pytest.mark.req("T3")
def test_mlflow_serves_a_registered_version(trained: Trained, tmp_path: Path) -> None:
    """`mlflow models serve` takes an alias of ours for a model's address, and answers from its files."""
    with run_mlflow_model_server(trained.house.url, f"models:/{MODEL}@champion", tmp_path) as url:
        assert scored(url) == [0, 1]


def scored(url: str) -> list[int] | None:
    """What a scoring server says of a large tumour and a small one; None while there is no answer."""
    body = json.dumps({"dataframe_split": {"columns": COLUMNS, "data": [LARGE, SMALL]}}).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=60) as answer:
            predictions: list[int] = json.load(answer)["predictions"]
            return predictions
    except OSError:
        return None
