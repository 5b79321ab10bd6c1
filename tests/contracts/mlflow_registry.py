"""A small MLflow registry with one of everything, made by MLflow's own client through MLflow's own server.

It is read by the contract suite of `MlflowSource` through both of its adapters. What it does not do: say what
the adapters should make of it.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from modelkeep.adapters.mlflow_sources import open_source
from modelkeep.client.mlflow_source import MlflowSource
from tests.mlflow_client import MlflowClient, run_mlflow_server

FILL = """
import mlflow
from mlflow.entities import Metric, Param, RunTag
from mlflow.tracking import MlflowClient

client = MlflowClient()
churn = client.create_experiment("churn", tags={"team": "growth"})
client.delete_experiment(client.create_experiment("gone"))
ids = []
for number in range(3):
    began = 1_700_000_000_000 + number
    run = client.create_run(churn, start_time=began, run_name=f"run {number}", tags={"k": "v"})
    ids.append(run.info.run_id)
    points = [Metric("loss", 1 / (step + 1), 1_700_000_000_000 + step, step) for step in range(number * 30)]
    odd = [Metric("odd", float("nan"), 1, 0), Metric("odd", float("inf"), 2, 1), Metric("odd", -1.5, 3, -7)]
    client.log_batch(ids[-1], points + odd, [Param("lr", str(number))], [RunTag("note", "a b")])
    client.log_text(ids[-1], f"weights {number}", "model/weights.txt")
    client.log_text(ids[-1], "", "empty.txt")
    client.set_terminated(ids[-1], "FAILED" if number == 1 else "FINISHED", end_time=1_700_000_001_000)
client.delete_run(ids[1])

import pandas

with mlflow.start_run(experiment_id=churn, run_name="whole") as whole:
    visits = pandas.DataFrame({"a": [1, 2]})
    mlflow.log_input(mlflow.data.from_pandas(visits, name="visits"), context="training")
    logged = mlflow.initialize_logged_model(name="tree", params={"depth": "3"}, tags={"kind": "small"})
    mlflow.log_metric("acc", 0.5, model_id=logged.model_id)
    mlflow.log_outputs(models=[mlflow.entities.LoggedModelOutput(model_id=logged.model_id, step=2)])
mlflow.finalize_logged_model(logged.model_id, "READY")

client.create_registered_model("My Model", tags={"a": "b"}, description="Who leaves.")
for number in range(4):
    uri = client.get_run(ids[2]).info.artifact_uri + "/model"
    said = {"tags": {"n": str(number)}, "description": f"number {number}"}
    client.create_model_version("My Model", uri, ids[2], **said)
client.transition_model_version_stage("My Model", "1", "Production")
client.transition_model_version_stage("My Model", "2", "Staging")
client.delete_model_version("My Model", "3")
client.set_registered_model_alias("My Model", "champion", "2")
mlflow.genai.register_prompt(name="greet", template="Hello {{name}}")
"""


@dataclass(frozen=True)
class FilledRegistry:
    """Where it can be read."""

    url: str
    database: str
    artifacts: Path

    def source(self, kind: str) -> MlflowSource:
        """A source of this kind: `server` or `database`."""
        if kind == "server":
            return open_source(self.url)
        return open_source(self.database, artifacts=self.artifacts)


@contextmanager
def filled_registry(
    client: MlflowClient, folder: Path, database: str | None = None
) -> Iterator[FilledRegistry]:
    """The registry, for as long as the block lasts, in a SQLite file or in the Postgres database named."""
    driven = database and database.replace("postgresql:", "postgresql+psycopg2:", 1)
    with run_mlflow_server(folder, driven) as url:
        client.run(FILL, url, folder=folder)
        yield FilledRegistry(url, database or f"sqlite:///{folder / 'mlflow.db'}", folder / "artifacts")


Sources = Callable[[str], MlflowSource]
