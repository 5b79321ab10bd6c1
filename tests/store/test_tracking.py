"""Tracking in the store: how many statements a call takes, through which indexes, and what a batch writes.

What the verbs mean is tested with the services; searches have tests of their own.
"""

from typing import Any

import pytest
from sqlalchemy import CompoundSelect, Select
from sqlalchemy.dialects.sqlite import dialect

from modelkeep.core.tracking import Dataset, DatasetInput, Metric, Run, Tag
from modelkeep.service.act import SYSTEM_CONTEXT, Desk
from modelkeep.service.tracking import Tracking
from modelkeep.store import experiments, logged_models, run_log, runs
from modelkeep.store.columns import metadata
from modelkeep.store.database import Database
from modelkeep.store.statements import Statement

pytestmark = pytest.mark.req("T1")

BINDS: dict[str, Any] = {
    **dict.fromkeys(("id", "run", "model", "which", "limit", "experiment_id", "timestamp", "step"), 1),
    **dict.fromkeys(("first", "last", "is_nan"), 1),
    **dict.fromkeys(("project", "name", "digest", "run_id", "model_id", "key"), "x"),
    **dict.fromkeys(("ids", "runs", "models", "places"), "[1,2]"),
    "keys": '["a"]',
    "value": 0.5,
}
READS: dict[str, tuple[Statement, dict[str, Any]]] = {
    f"{module.__name__.rpartition('.')[2]}.{name.strip('_').lower()}": (
        statement,
        {bind: BINDS[bind] for bind in BINDS.keys() & statement.compile(dialect=dialect()).params.keys()},
    )
    for module in (experiments, runs, run_log, logged_models)
    for name, statement in vars(module).items()
    if isinstance(statement, Select | CompoundSelect)
}
"""Everything that these modules read, with something for each bind."""


@pytest.fixture
def tracking(database: Database) -> "Calls":
    """The verbs on an empty installation, each call with the statements that it took."""
    return Calls(database)


class Calls:
    """Verbs, and how many statements the last of them took."""

    def __init__(self, database: Database) -> None:
        self.verbs = Tracking()
        self.statements: list[str] = []
        self._database = database
        self._desk = Desk(database)

    def do(self, method: Any, *args: Any, **more: Any) -> Any:
        with self._database.statements() as seen:
            answer = self._desk.do(SYSTEM_CONTEXT, method, *args, **more)
        self.statements = [text for text in seen if "chain_head" not in text]
        return answer

    def run(self) -> str:
        made: Run = self.do(self.verbs.create_run, "0")
        return made.info.run_id


@pytest.mark.parametrize("name", READS)
def test_reads_use_an_index(sqlite_database: Database, name: str) -> None:
    """No call looks through a whole table, and no history is sorted to be read in its order."""
    statement, params = READS[name]
    plan = sqlite_database.read(lambda tx: tx.explain(statement, **params))
    scanned = {line.split()[1] for line in plan.splitlines() if line.strip().startswith("SCAN")}
    assert not scanned & set(metadata.tables), plan
    if ".history" in name:
        assert "TEMP B-TREE" not in plan


def test_calls_take_few_statements(tracking: Calls) -> None:
    """What a training script calls hundreds of times a second takes the same few statements at any size."""
    run = tracking.run()
    taken = {"create": len(tracking.statements)}
    points = [Metric(key=f"m{at}", value=at, timestamp=at) for at in range(100)]
    pairs = [Tag(f"k{at}", "1") for at in range(100)]
    for name, method, args in (
        ("metric", tracking.verbs.log_metric, (points[0],)),
        ("param", tracking.verbs.log_param, (pairs[0],)),
        ("tag", tracking.verbs.set_tag, (pairs[0],)),
        ("batch", tracking.verbs.log_batch, (points, pairs, pairs)),
        ("get", tracking.verbs.get_run, ()),
    ):
        tracking.do(method, run, *args)
        taken[name] = len(tracking.statements)
    data = DatasetInput(dataset=Dataset(name="d", digest="1", source_type="s", source="x"))
    tracking.do(tracking.verbs.log_inputs, run, [data])
    tracking.do(tracking.verbs.get_run, run)
    taken["get with data"] = len(tracking.statements)
    assert taken == {
        "create": 4,
        "metric": 3,
        "param": 3,
        "tag": 2,
        "batch": 6,
        "get": 2,
        "get with data": 3,
    }


def test_runs_are_loaded_together(database: Database, tracking: Calls) -> None:
    """A page of runs takes a few statements however long it is, keeps its order, and mixes up nothing."""
    ids = [tracking.run() for _ in range(3)]
    for at, run in enumerate(ids):
        tracking.do(tracking.verbs.log_metric, run, Metric(key="m", value=at, timestamp=1))
        tracking.do(tracking.verbs.log_param, run, Tag("p", str(at)))
    data = DatasetInput(dataset=Dataset(name="d", digest="1", source_type="s", source="x"))
    tracking.do(tracking.verbs.log_inputs, ids[1], [data])
    rows = database.read(lambda tx: [runs.find(tx, run) for run in reversed(ids)])
    with database.statements() as seen:
        found = database.read(lambda tx: runs.load(tx, [row for row in rows if row]))
    assert len(seen) <= 5
    assert found == [tracking.do(tracking.verbs.get_run, run) for run in reversed(ids)]
    assert [run.params[0].value for run in found] == ["2", "1", "0"]
    assert [len(run.datasets) for run in found] == [0, 1, 0]
    assert database.read(lambda tx: runs.load(tx, [])) == []


def test_serials_are_never_given_twice(tracking: Calls, database: Database) -> None:
    """Runs, experiments and logged models are numbered one after the other, whoever makes them."""
    ids = [tracking.run() for _ in range(20)]
    found = database.read(lambda tx: [runs.find(tx, run) for run in ids])
    assert [row.serial for row in found if row] == list(range(1, 21))
