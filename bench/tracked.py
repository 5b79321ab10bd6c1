"""Runs by the thousand, the same ones in our store and in MLflow's, written past both servers.

A run has two metrics of one point each, two params and three tags, and an id that follows from its number, so
that one list of requests fits both servers. Ours go through the store, in the tables that its verbs write;
what the verbs add beside them, the event of a run's start, is left out: nothing that is measured reads it.
MLflow's go through its own tables, by its own Python. Here nothing is measured.
"""

import json
import tempfile
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from bench import peers
from modelkeep.store import experiments, tracking_tables
from modelkeep.store.database import Database, Transaction
from modelkeep.store.models import texts
from modelkeep.store.statements import insert

EXPERIMENT = "bench"
EXPERIMENT_ID = "1"
"""What both call the first experiment that is made."""
BATCH = 5_000
"""Runs written in one job."""
WAITING = 4
"""Jobs that may wait for the writer: enough that it never waits for us."""
BEGAN = 1_700_000_000_000
"""When the first run was, in milliseconds; each next one a second later."""
DEPTHS = 10
"""Different values of the param `depth`, where nobody says otherwise."""

_RUN = insert(tracking_tables.runs)
_METRIC = insert(tracking_tables.run_metrics)
_POINT = insert(tracking_tables.metric_points)
_PARAM = insert(tracking_tables.run_params)
_TAG = insert(tracking_tables.run_tags)


class Tracked(NamedTuple):
    """A run that is to be there; `metrics` are numbers from 0 to 1, evenly strewn."""

    run_id: str
    name: str
    start_time: int
    metrics: dict[str, float]
    params: dict[str, str]
    tags: dict[str, str]


def run_id(index: int) -> str:
    """The id of a run."""
    return f"{index * 0x9E3779B97F4A7C15 % 2**128:032x}"


def tracked(index: int, depths: int = DEPTHS) -> Tracked:
    """A run, by its number."""
    auc = index * 7_919 % 100_003 / 100_003
    return Tracked(
        run_id=run_id(index),
        name=f"run-{index}",
        start_time=BEGAN + index * 1_000,
        metrics={"auc": auc, "loss": 1.0 - auc},
        params={"depth": str(index % depths), "eta": f"0.{index % 97 + 1}"},
        tags={"mlflow.runName": f"run-{index}", "mlflow.user": "ada", "mlflow.source.name": "train.py"},
    )


# ------------------------------------------------------------------------------------------------ our tables


def fill(database_url: str, count: int, depths: int = DEPTHS) -> None:
    """Make the experiment and its runs, with so many different depths, in a database that no server uses."""
    with closing(Database.open(database_url)) as database:
        made = database.write(partial(experiments.add, project="default", name=EXPERIMENT, now_ms=BEGAN))
        if str(made.result()) != EXPERIMENT_ID:
            raise RuntimeError(f"the experiment got the id {made.result()}: the database was not empty")
        waiting: deque[Future[None]] = deque()
        for first in range(0, count, BATCH):
            if len(waiting) == WAITING:
                waiting.popleft().result()
            numbers = range(first, min(first + BATCH, count))
            waiting.append(database.write(partial(_write, numbers=numbers, depths=depths)))
        for future in waiting:
            future.result()


def _write(tx: Transaction, numbers: Sequence[int], depths: int) -> None:
    made = [(index + 1, tracked(index, depths)) for index in numbers]
    tx.many(_RUN, [_run(serial, run) for serial, run in made])
    points = [
        {"run": serial, "key": key, "value": value, "is_nan": 0, "timestamp": run.start_time, "step": 0}
        for serial, run in made
        for key, value in run.metrics.items()
    ]
    tx.many(_POINT, points)
    of = {"experiment_id": int(EXPERIMENT_ID)}
    tx.many(_METRIC, [point | of for point in points])
    for table, kind in ((_PARAM, "params"), (_TAG, "tags")):
        rows = [
            {"run": serial, **of, **texts(key, value)}
            for serial, run in made
            for key, value in getattr(run, kind).items()
        ]
        tx.many(table, rows)


def _run(serial: int, run: Tracked) -> dict[str, Any]:
    return {
        "serial": serial,
        "run_id": run.run_id,
        "experiment_id": int(EXPERIMENT_ID),
        "name": run.name,
        "user_id": "ada",
        "status": "FINISHED",
        "start_time": run.start_time,
        "end_time": run.start_time + 500,
        "deleted": 0,
        "deleted_time": None,
    }


# -------------------------------------------------------------------------------------------- MLflow's tables

_FILL_PEER = """\
import json, sys
from mlflow.store.tracking.dbmodels.models import SqlLatestMetric, SqlMetric, SqlParam, SqlRun, SqlTag
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

address, name, path = sys.argv[1:]
store = SqlAlchemyStore(address, "mlflow-artifacts:/")
made = store.create_experiment(name)
with open(path) as lines:
    runs = [json.loads(line) for line in lines]
root = f"mlflow-artifacts:/{made}"
with store.ManagedSessionMaker() as session:
    session.bulk_insert_mappings(SqlRun, [
        dict(run_uuid=id, name=name, experiment_id=int(made), user_id="ada", status="FINISHED", start_time=at,
             end_time=at + 500, lifecycle_stage="active", source_type="UNKNOWN", source_name="",
             entry_point_name="", source_version="", artifact_uri=f"{root}/{id}/artifacts")
        for id, name, at, *_ in runs])
    points = [
        dict(run_uuid=id, key=key, value=value, timestamp=at, step=0, is_nan=False)
        for id, _, at, metrics, *_ in runs for key, value in metrics.items()]
    session.bulk_insert_mappings(SqlMetric, points)
    session.bulk_insert_mappings(SqlLatestMetric, points)
    for table, place in ((SqlParam, 4), (SqlTag, 5)):
        session.bulk_insert_mappings(table, [
            dict(run_uuid=run[0], key=key, value=value) for run in runs for key, value in run[place].items()])
print(made)
"""


def fill_peer(database_url: str, count: int) -> None:
    """The same in a database of MLflow's, which is made where there is none."""
    with tempfile.TemporaryDirectory(prefix="modelkeep-runs-") as name:
        path = Path(name) / "runs"
        path.write_text("".join(f"{line}\n" for line in _lines(count)), encoding="utf-8")
        made = peers.run_script(_FILL_PEER, database_url, EXPERIMENT, str(path)).split()[-1]
    if made != EXPERIMENT_ID:
        raise RuntimeError(f"MLflow's experiment got the id {made}: its database was not empty")


def _lines(count: int) -> Iterator[str]:
    return (json.dumps(tracked(index)) for index in range(count))
