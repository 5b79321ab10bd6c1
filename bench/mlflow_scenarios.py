"""What is asked of MLflow's server and of ours by the same bytes: the scenarios, and what must be there
before.

Every request is one of MLflow's REST interface, as its client sends it. Runs are those of `tracked`; models,
versions, aliases and artifacts are made by `prepare`, through the server itself. How fast the answers come is
measured elsewhere (`mlflow_side_by_side`).
"""

import json
from collections.abc import Iterable, Sequence

from msgspec import Struct

from bench import tracked
from bench.load import MARK, Call, drive_each
from bench.tracked import EXPERIMENT_ID

API = "/api/2.0/mlflow"
FILES = f"/api/2.0/mlflow-artifacts/artifacts/{EXPERIMENT_ID}"
RUNS = 10_000
"""Runs that both servers hold before anything is asked."""
ASKED = 100
"""Different runs, and different models, that the requests of one scenario go round."""
BATCH = 100
"""Metrics of a batch, and runs or versions of a page."""
SMALL_BYTES = 10 * 1024
"""Bytes of a small artifact."""
RATIO_MIN = 15.0
FILES_RATIO_MIN = 3.0

_MLMODEL = "flavors:\n  python_function:\n    loader_module: mlflow.sklearn\nmlflow_version: 3.18.0\n"


class Scenario(Struct, frozen=True, kw_only=True):
    """One thing to ask of both. `ratio_min` is promised of the speed; `averaged`: whether it counts in the
    mean of all."""

    name: str
    calls: tuple[Call, ...]
    ratio_min: float = RATIO_MIN
    averaged: bool = True


def post(path: str, **body: object) -> Call:
    """A POST; where the text `@N@` is all of a value, a number stands there, and not its text."""
    return Call("POST", f"{API}/{path}", json.dumps(body).replace(f'"{MARK}"', MARK))


def get(path: str) -> Call:
    """A GET."""
    return Call("GET", f"{API}/{path}")


def file_of(run: str, path: str) -> str:
    """The address of an artifact of a run."""
    return f"{FILES}/{run}/artifacts/{path}"


def put_file(run: str, path: str, text: str) -> Call:
    """Send an artifact."""
    return Call("PUT", file_of(run, path), text, "application/octet-stream")


def small_text(first: str) -> str:
    """Text of a small artifact, which begins with something of its own."""
    return first + "0123456789abcdef" * ((SMALL_BYTES - len(first)) // 16)


def prepare(port: int) -> None:
    """Make models `m0`, `m1` ... with two versions each out of a run, an alias on each, and small artifacts.

    Raises:
        Refused: the server answered with an error.
    """
    files = [
        put_file(tracked.run_id(0), "model/MLmodel", _MLMODEL),
        *(put_file(tracked.run_id(0), f"small/{index}", small_text(f"{index} ")) for index in range(ASKED)),
    ]
    names = [f"m{index}" for index in range(ASKED)]
    tags = [{"key": "team", "value": "risk"}, {"key": "region", "value": "emea"}]
    rounds: list[Iterable[Call]] = [
        files,
        [post("registered-models/create", name=name, tags=tags) for name in names],
        *([new_version(name, tags) for name in names] for _ in range(2)),
        [set_alias(name, 1) for name in names],
    ]
    for calls in rounds:
        drive_each(port, calls, connections=1)


def new_version(name: str, tags: Sequence[dict[str, str]] = ()) -> Call:
    """Register a model's files as a version."""
    run = tracked.run_id(0)
    source = f"mlflow-artifacts:/{EXPERIMENT_ID}/{run}/artifacts/model"
    return post("model-versions/create", name=name, source=source, run_id=run, tags=tags)


def set_alias(name: str, number: int) -> Call:
    """Point an alias to a version."""
    return post("registered-models/alias", name=name, alias="champion", version=str(number))


def to_production(name: str, number: int) -> Call:
    """Move a version to production; what was there is archived."""
    return post(
        "model-versions/transition-stage", name=name, version=str(number), stage="Production",
        archive_existing_versions=True,
    )  # fmt: skip


def scenarios() -> list[Scenario]:
    """All of them, in the order of the table."""
    return [*_tracking(), *_registry(), *_artifacts()]


def _asked_runs() -> list[str]:
    return [tracked.run_id(1 + index * (RUNS // ASKED)) for index in range(ASKED)]


def _tracking() -> list[Scenario]:
    runs = _asked_runs()
    tags = [
        {"key": "mlflow.user", "value": "ada"},
        {"key": "mlflow.source.name", "value": "train.py"},
        {"key": "mlflow.source.type", "value": "LOCAL"},
    ]
    started = post(
        "runs/create", experiment_id=EXPERIMENT_ID, user_id="ada", run_name=f"new-{MARK}",
        start_time=tracked.BEGAN, tags=tags,
    )  # fmt: skip
    return [
        Scenario(name="create a run", calls=(started,)),
        Scenario(name="get a run", calls=tuple(get(f"runs/get?run_id={run}") for run in runs)),
        Scenario(
            name="log a metric",
            calls=tuple(
                post(
                    "runs/log-metric",
                    run_id=run,
                    key="accuracy",
                    value=0.875,
                    timestamp=tracked.BEGAN,
                    step=MARK,
                )
                for run in runs
            ),
        ),
        Scenario(
            name=f"log a batch of {BATCH} metrics",
            calls=tuple(post("runs/log-batch", **batch_of(run)) for run in runs),
        ),
        Scenario(
            name="set a run's tag",
            calls=tuple(post("runs/set-tag", run_id=run, key="note", value=f"v{MARK}") for run in runs),
        ),
        Scenario(
            name=f"search {RUNS:,} runs, a page of {BATCH}", calls=tuple(map(search_runs, range(ASKED)))
        ),
    ]


def batch_of(run: str) -> dict[str, object]:
    """The body of a batch of metrics, each of a key of its own."""
    return {
        "run_id": run,
        "metrics": [
            {"key": f"metric_{index}", "value": 0.5 + index / 1_000, "timestamp": tracked.BEGAN, "step": MARK}
            for index in range(BATCH)
        ],
    }


def search_runs(index: int) -> Call:
    """Look for the best runs by a filter over a metric and a param."""
    return post(
        "runs/search", experiment_ids=[EXPERIMENT_ID], max_results=BATCH, order_by=["metrics.auc DESC"],
        filter=f"metrics.auc > 0.{index % 50:02} and params.depth = '{index % tracked.DEPTHS}'",
    )  # fmt: skip


def _registry() -> list[Scenario]:
    names = [f"m{index}" for index in range(ASKED)]
    by_name = "model-versions/search?filter=name%3D%27{}%27&max_results=100"
    by_tag = "model-versions/search?filter=tags.team%3D%27risk%27&max_results=100"
    models = "registered-models/search?filter=name%20LIKE%20%27m%25%27&max_results=100"
    return [
        Scenario(name="create a model", calls=(post("registered-models/create", name=f"new-{MARK}"),)),
        Scenario(name="create a version", calls=tuple(map(new_version, names))),
        Scenario(
            name="get a version",
            calls=tuple(get(f"model-versions/get?name={name}&version=2") for name in names),
        ),
        Scenario(
            name="set a version's tag",
            calls=tuple(
                post("model-versions/set-tag", name=name, version="2", key="note", value=f"v{MARK}")
                for name in names
            ),
        ),
        Scenario(
            name="set an alias", calls=tuple(set_alias(name, number) for number in (2, 1) for name in names)
        ),
        Scenario(
            name="get by alias",
            calls=tuple(get(f"registered-models/alias?name={name}&alias=champion") for name in names),
        ),
        Scenario(
            name="transition a stage",
            calls=tuple(to_production(name, number) for number in (1, 2) for name in names),
        ),
        Scenario(name="search a model's versions", calls=tuple(get(by_name.format(name)) for name in names)),
        Scenario(name=f"search versions by tag, a page of {BATCH}", calls=(get(by_tag),)),
        Scenario(name=f"search models, a page of {BATCH}", calls=(get(models),)),
    ]


def _artifacts() -> list[Scenario]:
    run = tracked.run_id(0)
    sizes = f"{SMALL_BYTES // 1024} KiB"
    return [
        Scenario(
            name=f"send an artifact of {sizes}",
            calls=(put_file(run, f"sent/{MARK}", small_text(f"{MARK} ")),),
            ratio_min=FILES_RATIO_MIN,
            averaged=False,
        ),
        Scenario(
            name=f"take an artifact of {sizes}",
            calls=tuple(Call("GET", file_of(run, f"small/{index}")) for index in range(ASKED)),
            ratio_min=FILES_RATIO_MIN,
            averaged=False,
        ),
    ]
