"""Fills an MLflow database with many runs and versions, through MLflow's own store: run by MLflow's Python.

    python mlflow_bulk.py DATABASE ARTIFACTS RUNS VERSIONS

What it makes is the same every time. It checks nothing, and knows nothing of Modelkeep.
"""

import random
import sys
from pathlib import Path

from mlflow.entities import ExperimentTag, Metric, Param, RunTag, ViewType
from mlflow.entities.model_registry import ModelVersionTag, RegisteredModelTag
from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore as RegistryStore
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore as TrackingStore

NOW = 1_700_000_000_000


def main(database: str, artifacts: str, runs: int, versions: int) -> None:
    """Fill it."""
    dice = random.Random(7)
    url = f"sqlite:///{database}"
    tracking, registry = TrackingStore(url, artifacts), RegistryStore(url)
    experiments = [
        tracking.create_experiment(f"experiment {number}", tags=[ExperimentTag("n", str(number))])
        for number in range(10)
    ]
    made = []
    for number in range(runs):
        tags = [RunTag("n", str(number)), RunTag("mlflow.user", "ann")]
        run = tracking.create_run(dice.choice(experiments), "ann", NOW + number, tags, f"run {number}").info
        points = [
            Metric(key, _value(dice), NOW + step, step)
            for key in ("loss", "acc")[: dice.randint(1, 2)]
            for step in range(dice.randint(0, 40))
        ]
        params = [Param(f"p{place}", str(dice.random())) for place in range(dice.randint(0, 5))]
        tracking.log_batch(run.run_id, points, params, [])
        folder = Path(run.artifact_uri.removeprefix("file://")) / "model"
        folder.mkdir(parents=True)
        (folder / "weights.bin").write_bytes(dice.randbytes(dice.randint(0, 200)))
        status = dice.choice([3, 3, 3, 4, 5])
        tracking.update_run_info(run.run_id, status, NOW + number + 1_000, f"run {number}")
        made.append(run)
    for number in range(20):
        registry.create_registered_model(f"model {number}", [RegisteredModelTag("n", str(number))], "It is.")
    for number in range(versions):
        run, name = dice.choice(made), f"model {number % 20}"
        tags = [ModelVersionTag("n", str(number))]
        version = registry.create_model_version(
            name, f"{run.artifact_uri}/model", run.run_id, tags, description=f"number {number}"
        ).version
        stage = dice.choice(["None", "Staging", "Production", "Archived"])
        if stage != "None":
            registry.transition_model_version_stage(name, version, stage, False)
        registry.set_registered_model_alias(name, f"a{number % 3}", version)
    for run in dice.sample(made, runs // 20):
        tracking.delete_run(run.run_id)
    tracking.delete_experiment(experiments[-1])
    assert len(tracking.search_experiments(ViewType.ALL)) == 11


def _value(dice: random.Random) -> float:
    kind = dice.random()
    return float("nan") if kind < 0.02 else float("inf") if kind < 0.04 else dice.uniform(-1e6, 1e6)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
