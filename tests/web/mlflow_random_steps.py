"""Random conversations with an MLflow server: what people do to experiments, runs and logged models.

They stay within what both servers are to answer alike; where they differ on purpose is the matter of the
written steps (`mlflow_tracking_steps`).
"""

from random import Random
from typing import Any

from tests.web.mlflow_steps import API, Step, get, post

T = 1_700_000_000_000
KEYS = ("auc", "loss", "train/f1", "m 1")
TEXTS = ("a", "B", "risk", "0.1", "", "ü", "it's")
VALUES = (0.0, 0.5, -1.25, 1e300, 5e-324, "NaN", 3)
FILTERS = (
    "",
    "metrics.auc > 0",
    "metrics.loss <= 0.5",
    "params.`m 1` = 'a'",
    "params.auc != 'a'",
    "tags.loss LIKE '%r%'",
    "tags.auc ILIKE 'RISK'",
    "attributes.status = 'FINISHED'",
    "run_name LIKE 'r%'",
    "start_time > 1700000000003",
    "metrics.auc > 0 and params.loss = '0.1'",
    "params.auc IS NULL",
    "tags.`m 1` IS NOT NULL",
)


class Talker:
    """Draws one conversation."""

    def __init__(self, seed: int) -> None:
        self._random = Random(seed)
        self._made = {"e": 0, "r": 0, "m": 0}
        self._seed = seed
        self._named = 0
        self.steps: list[Step] = []

    def talk(self, length: int) -> list[Step]:
        """So many steps, each drawn."""
        self._experiment()
        self._run()
        kinds = [getattr(self, name) for name in dir(self) if name.startswith("_do_")]
        while len(self.steps) < length:
            self._random.choice(kinds)()
        return self.steps

    def _add(self, step: Step) -> None:
        self.steps.append(step)

    def _name(self, what: str) -> str:
        self._named += 1
        return f"{self._named} {what}"

    def _post(self, path: str, body: dict[str, Any], **more: Any) -> None:
        self._add(post(self._name(path), path, body, **more))

    def _some(self, kind: str) -> str:
        """The place of an id of a kind, mostly of one that there is."""
        count = self._made[kind]
        return f"{{{kind}{self._random.randrange(count)}}}" if count else "0"

    def _pair(self) -> dict[str, Any]:
        return {"key": self._random.choice(KEYS), "value": self._random.choice(TEXTS)}

    def _point(self) -> dict[str, Any]:
        return {
            "key": self._random.choice(KEYS),
            "value": self._random.choice(VALUES),
            "timestamp": T + self._random.randrange(4),
            "step": self._random.randrange(-1, 3),
        }

    def _experiment(self) -> None:
        number = self._made["e"]
        self._made["e"] += 1
        name = f"e{self._random.randrange(6)} of {self._seed}"
        self._post("experiments/create", {"name": name}, save={f"e{number}": "experiment_id"})

    def _run(self) -> None:
        number = self._made["r"]
        self._made["r"] += 1
        body = {
            "experiment_id": self._some("e"),
            "user_id": "ann",
            "run_name": f"r{number}",
            "start_time": T + number,
            "tags": [self._pair()],
        }
        self._post("runs/create", body, save={f"r{number}": "run.info.run_id"})

    def _do_experiment(self) -> None:
        self._experiment()

    def _do_run(self) -> None:
        self._run()

    def _do_experiment_life(self) -> None:
        path = self._random.choice(("delete", "restore", "restore"))
        self._post(f"experiments/{path}", {"experiment_id": self._some("e")})

    def _do_experiment_tag(self) -> None:
        self._post("experiments/set-experiment-tag", {"experiment_id": self._some("e"), **self._pair()})

    def _do_experiment_search(self) -> None:
        clause = self._random.choice((f"name LIKE '% of {self._seed}'", f"name ILIKE 'E% OF {self._seed}'"))
        order = [f"name {self._random.choice(('ASC', 'DESC'))}"]
        view = self._random.choice(("ALL", "ACTIVE_ONLY", "DELETED_ONLY"))
        body = {"max_results": 20, "filter": clause, "order_by": order, "view_type": view}
        self._post("experiments/search", body)

    def _do_experiment_look(self) -> None:
        self._add(get(self._name("experiments/get"), "experiments/get", f"experiment_id={self._some('e')}"))

    def _do_run_life(self) -> None:
        self._post(
            f"runs/{self._random.choice(('delete', 'restore', 'restore'))}", {"run_id": self._some("r")}
        )

    def _do_run_update(self) -> None:
        status = self._random.choice(("RUNNING", "FINISHED", "FAILED", "KILLED", "SCHEDULED"))
        body: dict[str, Any] = {"run_id": self._some("r"), "status": status}
        if self._random.random() < 0.5:
            body["end_time"] = T + self._random.randrange(100)
        self._post("runs/update", body)

    def _do_metric(self) -> None:
        self._post("runs/log-metric", {"run_id": self._some("r"), **self._point()})

    def _do_param(self) -> None:
        self._post("runs/log-parameter", {"run_id": self._some("r"), **self._pair()})

    def _do_tag(self) -> None:
        self._post("runs/set-tag", {"run_id": self._some("r"), **self._pair()})

    def _do_no_tag(self) -> None:
        self._post("runs/delete-tag", {"run_id": self._some("r"), "key": self._random.choice(KEYS)})

    def _do_batch(self) -> None:
        body: dict[str, Any] = {"run_id": self._some("r")}
        body["metrics"] = [self._point() for _ in range(self._random.randrange(6))]
        body["params"] = [self._pair() for _ in range(self._random.randrange(3))]
        body["tags"] = list({pair["key"]: pair for pair in (self._pair(), self._pair())}.values())
        self._post("runs/log-batch", body)

    def _do_run_look(self) -> None:
        self._add(get(self._name("runs/get"), "runs/get", f"run_id={self._some('r')}"))

    def _do_history(self) -> None:
        query = f"run_id={self._some('r')}&metric_key={self._random.choice(KEYS)}"
        self._add(get(self._name("metrics/get-history"), "metrics/get-history", query))

    def _do_search(self) -> None:
        body = {
            "experiment_ids": sorted({self._some("e"), self._some("e")}),
            "filter": self._random.choice(FILTERS),
            "order_by": self._random.choice(
                ([], ["metrics.auc DESC"], ["params.loss ASC"], ["run_name ASC"])
            ),
            "run_view_type": self._random.choice(("ALL", "ACTIVE_ONLY", "DELETED_ONLY")),
            "max_results": 50,
        }
        self._post("runs/search", body)

    def _do_model(self) -> None:
        number = self._made["m"]
        self._made["m"] += 1
        body = {
            "experiment_id": self._some("e"),
            "name": f"m{number}",
            "params": list({pair["key"]: pair for pair in (self._pair(), self._pair())}.values()),
            "tags": [self._pair()],
        }
        self._post("logged-models", body, save={f"m{number}": "model.info.model_id"})

    def _do_model_ready(self) -> None:
        if self._made["m"]:
            model = self._some("m")
            status = self._random.choice(("LOGGED_MODEL_READY", "LOGGED_MODEL_UPLOAD_FAILED"))
            path = f"{API}logged-models/{model}"
            self._add(Step(self._name("finalize"), "PATCH", path, {"model_id": model, "status": status}))

    def _do_model_look(self) -> None:
        if self._made["m"]:
            self._add(get(self._name("look at a model"), f"logged-models/{self._some('m')}"))
