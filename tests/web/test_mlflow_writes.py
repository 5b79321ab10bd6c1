"""What a write through the MLflow door costs and answers: how many statements each one takes, and that an
answer which is put together from what was written is the one that reading it gives.
"""

import json
from typing import Any

import pytest

from modelkeep.core.events import EventKind
from modelkeep.ports import SMALL_MAX_BYTES
from modelkeep.service.act import SYSTEM_CONTEXT
from modelkeep.service.house import House
from tests.web.inprocess import InProcess

API = "/api/2.0/mlflow"
MLMODEL = b"flavors:\n  python_function:\n    loader_module: mlflow.sklearn\nmlflow_version: 3.18.0\n"
NAMED = {"name": "churn", "version": "1"}

STATEMENTS = {
    "runs/create": 6,
    "runs/log-metric": 3,
    "runs/log-batch": 3,
    "runs/set-tag": 2,
    "registered-models/create": 6,
    "model-versions/create": 16,
    "model-versions/set-tag": 6,
    "registered-models/alias": 9,
    "model-versions/transition-stage": 17,
}
"""The most that each of them may take, with what it reads before its transaction."""


class Door:
    """A client of the door, with a run that has a model's files."""

    def __init__(self, client: InProcess) -> None:
        self._client = client
        self.run = self.post("runs/create", experiment_id="0", run_name="first")["run"]["info"]["run_id"]
        self.source = f"mlflow-artifacts:/0/{self.run}/artifacts/model"
        self.put("model/MLmodel", MLMODEL)

    def put(self, path: str, data: bytes) -> None:
        """Send a file of the run."""
        files = f"/api/2.0/mlflow-artifacts/artifacts/0/{self.run}/artifacts"
        assert self._client("PUT", f"{files}/{path}", raw=data).status == 200

    def post(self, path: str, **body: Any) -> dict[str, Any]:
        """The answer to a POST."""
        reply = self._client("POST", f"{API}/{path}", body)
        assert reply.status == 200, reply.body
        found: dict[str, Any] = reply.json()
        return found

    def get(self, path: str, **query: str) -> dict[str, Any]:
        """The answer to a GET."""
        reply = self._client("GET", f"{API}/{path}", query=query)
        assert reply.status == 200, reply.body
        found: dict[str, Any] = reply.json()
        return found

    def new_version(self) -> dict[str, Any]:
        """The answer to a registration of the run's model."""
        tags = [{"key": "team", "value": "risk"}]
        asked = {"name": "churn", "source": self.source, "run_id": self.run, "tags": tags}
        return self.post("model-versions/create", **asked, description="the first")


@pytest.fixture
def door(client: InProcess) -> Door:
    """A door with a run behind it."""
    return Door(client)


@pytest.mark.req("T2")
def test_the_answer_to_a_write_is_what_is_read_afterwards(door: Door) -> None:
    """A model, a version and a move are answered without reading them again, and word for word the same."""
    tags = [{"key": "b", "value": "2"}, {"key": "a", "value": "1"}]
    made = door.post("registered-models/create", name="churn", description="who leaves", tags=tags)
    assert made == door.get("registered-models/get", name="churn")

    version = door.new_version()
    assert version == door.get("model-versions/get", **NAMED)

    door.new_version()
    door.post("registered-models/alias", name="churn", alias="champion", version="1")
    for number in ("1", "2", "1"):
        asked = {"name": "churn", "version": number, "stage": "Production"}
        moved = door.post("model-versions/transition-stage", **asked)
        assert moved == door.get("model-versions/get", name="churn", version=number)


@pytest.mark.req("T2", "V3")
def test_large_files_are_hashed_too(door: Door, house: House) -> None:
    """A version with a file that is not read on the event loop is made, and moved with its files verified."""
    door.put("model/weights.bin", bytes(SMALL_MAX_BYTES + 1))
    door.post("registered-models/create", name="churn")
    door.new_version()

    door.post("model-versions/transition-stage", **NAMED, stage="Production")

    [moved] = house.desk.read(SYSTEM_CONTEXT, lambda act: act.tx.events.after(kind=EventKind.STAGE_MOVED))
    gates = {gate["gate"]: gate["outcome"] for gate in moved.event.body["gates"]}
    assert gates["files_verified"] == "passed"


@pytest.mark.req("T2")
def test_a_model_that_was_deleted_begins_anew(door: Door) -> None:
    """Nothing of the former one is in the answer, and its numbers are not given again."""
    door.post("registered-models/create", name="churn", tags=[{"key": "a", "value": "1"}])
    door.new_version()
    assert door._client("DELETE", f"{API}/registered-models/delete", {"name": "churn"}).status == 200

    made = door.post("registered-models/create", name="churn")

    assert made == door.get("registered-models/get", name="churn")
    assert door.new_version()["model_version"]["version"] == "2"


@pytest.mark.req("T1")
def test_a_write_takes_no_more_statements_than_it_needs(door: Door, house: House) -> None:
    """Whoever adds one sees it here: on Postgres each is a way to another process and back."""
    door.post("registered-models/create", name="churn")
    door.new_version()
    door.new_version()
    door.post("model-versions/transition-stage", **NAMED, stage="Production")
    moved = {"name": "churn", "version": "2", "stage": "Production", "archive_existing_versions": True}
    point = {"value": 0.5, "timestamp": 1, "step": 1}
    asked: dict[str, dict[str, Any]] = {
        "runs/create": {"experiment_id": "0", "tags": [{"key": "k", "value": "v"}]},
        "runs/log-metric": {"run_id": door.run, "key": "auc", **point},
        "runs/log-batch": {
            "run_id": door.run,
            "metrics": [{"key": f"m{index}", **point} for index in range(100)],
        },
        "runs/set-tag": {"run_id": door.run, "key": "note", "value": "new"},
        "registered-models/create": {"name": "spam"},
        "model-versions/create": {"name": "churn", "source": door.source, "run_id": door.run},
        "model-versions/set-tag": {**NAMED, "key": "note", "value": "new"},
        "registered-models/alias": {**NAMED, "alias": "champion"},
        "model-versions/transition-stage": moved,
    }
    took = {}
    for path, body in asked.items():
        with house.desk.database.statements() as seen:
            door.post(path, **body)
        took[path] = len(seen)

    more = {path: (count, STATEMENTS[path]) for path, count in took.items() if count > STATEMENTS[path]}
    assert not more, json.dumps(more)
