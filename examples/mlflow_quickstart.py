"""Plain MLflow code, as anybody would write it: it knows nothing of the server in MLFLOW_TRACKING_URI.

It shows experiments, runs, nested runs, metrics with their history, params, tags, datasets, searches, and
what happens to what is deleted, and checks each. What it does not do: train anything.
"""

import math
import time

import mlflow
import numpy as np
from mlflow.entities import Metric, Param, RunTag, ViewType
from mlflow.exceptions import MlflowException

NAME = f"churn {time.time_ns()}"


def log_runs() -> list[str]:
    """Three runs with params, metrics and tags; the first has a child of its own."""
    made = []
    for depth in (2, 4, 6):
        with mlflow.start_run(run_name=f"depth {depth}", description="a try") as run:
            mlflow.log_params({"depth": depth, "learning rate": 0.1})
            for step in range(5):
                mlflow.log_metric("loss", 1 / (step + depth), step=step)
            mlflow.log_metrics({"auc": 0.7 + depth / 100, "train/f1": 0.5})
            mlflow.set_tags({"team": "risk", "approval_status": "pending"})
            made.append(run.info.run_id)
            if depth == 2:
                with mlflow.start_run(run_name="fold 1", nested=True):
                    mlflow.log_metric("auc", 0.5)
    return made


def check_run(run_id: str) -> None:
    """What was logged is what is read."""
    run = mlflow.get_run(run_id)
    assert run.info.status == "FINISHED", run.info
    assert run.data.params == {"depth": "2", "learning rate": "0.1"}, run.data.params
    assert run.data.metrics["loss"] == 1 / 6, run.data.metrics
    assert run.data.tags["team"] == "risk", run.data.tags
    history = mlflow.MlflowClient().get_metric_history(run_id, "loss")
    assert [point.step for point in history] == [0, 1, 2, 3, 4], history
    assert [point.value for point in history] == [1 / (step + 2) for step in range(5)], history


def check_batches(run_id: str) -> None:
    """A batch, a value that is no number, and a param that cannot change."""
    client = mlflow.MlflowClient()
    now = int(time.time() * 1000)
    client.log_batch(
        run_id,
        metrics=[Metric("batch", step / 2, now + step, step) for step in range(500)],
        params=[Param(f"p{number}", str(number)) for number in range(90)],
        tags=[RunTag("batched", "yes")],
    )
    assert len(client.get_metric_history(run_id, "batch")) == 500
    client.log_metric(run_id, "nothing", math.nan)
    assert math.isnan(client.get_run(run_id).data.metrics["nothing"])
    try:
        client.log_param(run_id, "depth", 3)
        code = "nothing"
    except MlflowException as refused:
        code = refused.error_code
    assert code == "INVALID_PARAMETER_VALUE", code
    client.delete_tag(run_id, "batched")
    assert "batched" not in client.get_run(run_id).data.tags


def check_datasets(run_id: str) -> None:
    """The data that a run has read."""
    data = mlflow.data.from_numpy(np.arange(12.0).reshape(4, 3), targets=np.arange(4), name="flights")
    with mlflow.start_run(run_id=run_id):
        mlflow.log_input(data, context="training", tags={"split": "one"})
    (given,) = mlflow.get_run(run_id).inputs.dataset_inputs
    assert (given.dataset.name, given.dataset.digest) == ("flights", data.digest), given
    assert {tag.key: tag.value for tag in given.tags} == {"mlflow.data.context": "training", "split": "one"}


def check_searches(experiment_id: str, made: list[str]) -> None:
    """Filters, orders, pages and views."""
    client = mlflow.MlflowClient()
    best = mlflow.search_runs(
        [experiment_id], "metrics.auc > 0.72 AND tags.team = 'risk'", order_by=["metrics.auc DESC"]
    )
    assert list(best["run_id"]) == [made[2], made[1]], best
    found = client.search_runs([experiment_id], "params.`learning rate` = '0.1'", max_results=2)
    assert len(found) == 2, found
    assert (
        len(client.search_runs([experiment_id], "params.`learning rate` = '0.1'", page_token=found.token))
        == 1
    )
    children = client.search_runs([experiment_id], f"tags.mlflow.parentRunId = '{made[0]}'")
    assert [child.info.run_name for child in children] == ["fold 1"], children
    by_name = mlflow.search_experiments(filter_string=f"name = '{NAME}'")
    assert [each.experiment_id for each in by_name] == [experiment_id], by_name


def check_deleting(experiment_id: str, run_id: str) -> None:
    """What is deleted can be seen where one asks for it, and restored."""
    client = mlflow.MlflowClient()
    client.delete_run(run_id)
    assert client.get_run(run_id).info.lifecycle_stage == "deleted"
    (gone,) = client.search_runs([experiment_id], run_view_type=ViewType.DELETED_ONLY)
    assert gone.info.run_id == run_id
    client.restore_run(run_id)
    client.set_experiment_tag(experiment_id, "owner", "ann")
    client.rename_experiment(experiment_id, f"{NAME} again")
    client.delete_experiment(experiment_id)
    assert client.get_experiment(experiment_id).lifecycle_stage == "deleted"
    client.restore_experiment(experiment_id)
    back = mlflow.get_experiment_by_name(f"{NAME} again")
    assert back is not None
    assert (back.experiment_id, back.tags["owner"]) == (experiment_id, "ann")
    assert mlflow.get_experiment_by_name("nothing of the kind") is None


def main() -> None:
    """Log, look, search, delete, restore."""
    experiment = mlflow.set_experiment(NAME)
    made = log_runs()
    check_run(made[0])
    check_batches(made[1])
    check_datasets(made[2])
    check_searches(experiment.experiment_id, made)
    check_deleting(experiment.experiment_id, made[1])
    print(f"{len(made)} runs in experiment {experiment.experiment_id}: everything is as it was logged")


if __name__ == "__main__":
    main()
