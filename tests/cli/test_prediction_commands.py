"""Predictions and feedback on the command line: what is read of a log, and what is sent to a gateway."""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from modelkeep.core.feedback import Label, Taken
from modelkeep.core.recording import KEEP_ALL
from modelkeep.core.routing import VersionSpec
from modelkeep.core.signature import DataType, Field, Signature
from modelkeep.serving.labels import Labels
from modelkeep.serving.messages import Door
from modelkeep.serving.prediction_log import PredictionLog
from modelkeep.serving.records import Logged, Reply
from modelkeep.serving.tables import Hasher, Rows
from tests.client.fake_server import Asked, FakeServer
from tests.serving import models

pytestmark = [pytest.mark.network, pytest.mark.req("S11")]

Run = Callable[..., Any]
NOW = datetime.now(UTC)
WIDER = Signature(
    inputs=(*models.AGE_INCOME, Field(name="plan", type=DataType.STRING, required=False, nullable=True)),
    outputs=models.SCORE,
)


def note(log: PredictionLog, spec: VersionSpec, request_id: str, age: float, at: datetime) -> None:
    """One answered request."""
    rows = Rows(spec, KEEP_ALL, Hasher(b"k" * 32))
    reply = Reply(spec.key, 200, 1.25, b'{"outputs": [7.5]}')
    body = json.dumps({"inputs": [{"age": age, "income": 2}]}).encode()
    rows.add(
        Logged("churn", None, request_id, "stable", 1_000_000, at.timestamp(), Door.PREDICT, body, reply)
    )
    log.append("churn", spec.key, rows.take())


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A gateway's folder with three rows of two versions, one of them labelled."""
    log = PredictionLog(tmp_path, max_bytes=1 << 30)
    log.open()
    one = models.spec({"m": b"1"}, "1.0.0")
    two = models.spec({"m": b"2"}, "1.1.0", signature=WIDER)
    note(log, one, "r1", 40, NOW - timedelta(days=3))
    note(log, one, "r2", 41, NOW - timedelta(hours=2))
    note(log, two, "r3", 42, NOW - timedelta(minutes=1))
    log.close()
    Labels(tmp_path, "churn").take([Label(request_id="r2", label=True)], NOW)
    monkeypatch.setenv("MODELKEEP_GATEWAY_DATA", str(tmp_path))
    return tmp_path


def test_the_log_reads_as_lines_of_json_with_labels(data: Path, modelkeep: Run) -> None:
    """One object a row, the label beside it; --since cuts, --limit takes the newest, -q names requests."""
    ran = modelkeep("predictions", "churn", "--with-labels", "--json")
    assert ran.code == 0, ran.err
    rows = [json.loads(line) for line in ran.out.splitlines()]
    assert [(row["request_id"], row["version"], row["label"]) for row in rows] == [
        ("r1", "churn:1.0.0", None),
        ("r2", "churn:1.0.0", True),
        ("r3", "churn:1.1.0", None),
    ]
    assert (rows[0]["input.age"], rows[0]["output.score"]) == (40.0, 7.5)
    assert modelkeep("predictions", "churn", "--since", "1d", "-q").out.split() == ["r2", "r3"]
    assert modelkeep("predictions", "churn", "--limit", "1", "-q").out.split() == ["r3"]
    moment = (NOW - timedelta(days=1)).isoformat()
    assert modelkeep("predictions", "churn", "--until", moment, "-q").out.split() == ["r1"]


def test_the_log_reads_as_a_table(data: Path, modelkeep: Run) -> None:
    """A person sees who answered what."""
    out = modelkeep("predictions", "churn", "--with-labels").out
    assert "age=40 income=2" in out
    assert "score=7.5" in out
    assert "true" in out


def test_the_log_becomes_one_parquet_file(data: Path, modelkeep: Run, tmp_path: Path) -> None:
    """Versions with other columns share it; what one does not have is empty."""
    out = tmp_path / "all.parquet"
    ran = modelkeep("predictions", "churn", "--with-labels", "--parquet", str(out))
    assert ran.code == 0, ran.err
    table = pq.read_table(out)
    assert table["request_id"].to_pylist() == ["r1", "r2", "r3"]
    assert table["label"].to_pylist() == [None, "true", None]
    assert table["input.plan"].to_pylist() == [None] * 3
    assert modelkeep("predictions", "churn", "--until", "90d", "--parquet", str(out)).code != 0


@pytest.mark.parametrize(
    "words",
    [
        ("predictions", "nothing"),
        ("predictions", "churn", "--since", "yesterday"),
        ("predictions", "churn", "--limit", "0"),
        ("predictions", "churn", "--limit", "1", "--parquet", "x"),
        ("feedback", "churn"),
        ("feedback", "churn", "r1"),
        ("feedback", "churn", "r1", "1", "--input", "x"),
        ("endpoint", "create", "e", "--model", "churn", "--log", "much"),
        ("endpoint", "create", "e", "--model", "churn", "--log-field", "age=burn"),
    ],
)
def test_what_makes_no_sense_is_refused(words: tuple[str, ...], data: Path, modelkeep: Run) -> None:
    """With what would."""
    ran = modelkeep(*words)
    assert ran.code != 0
    assert "Traceback" not in ran.err
    assert ran.err.strip()


def test_feedback_goes_to_the_gateway(server: FakeServer, modelkeep: Run, tmp_path: Path) -> None:
    """One label from the command line, many from a file, in JSON or as a word; what became of it is said."""
    sent: list[Any] = []

    def take(asked: Asked) -> Taken:
        sent.extend(json.loads(asked.body)["labels"])
        return Taken(received=1, new=1)

    server.on("POST", "/endpoints/churn/feedback", take)
    where = ("--gateway", server.url)
    ran = modelkeep("feedback", "churn", "r1", "true", "--at", "2026-01-02T03:04Z", *where)
    assert ran.code == 0, ran.err
    assert "1 new" in ran.out
    assert modelkeep("feedback", "churn", "r2", "left", "--row", "3", *where, "-q").out == "1\n"
    file = tmp_path / "labels.jsonl"
    file.write_text("".join(json.dumps({"request_id": f"m{n}", "label": n}) + "\n" for n in range(1500)))
    told = json.loads(modelkeep("feedback", "churn", "--input", str(file), *where, "--json").out)
    assert told["new"] == 2  # two requests, each of which the fake counts as one
    assert sent[0] == {"request_id": "r1", "label": True, "row": 0, "at": "2026-01-02T03:04:00Z"}
    assert (sent[1]["label"], sent[1]["row"]) == ("left", 3)
    assert [label["label"] for label in sent[2:]] == list(range(1500))
    gone = modelkeep("feedback", "churn", "r1", "1", "--gateway", "http://127.0.0.1:9")
    assert gone.code != 0
    assert "No gateway answers" in gone.err


def test_an_endpoint_is_told_what_to_log(server: FakeServer, modelkeep: Run) -> None:
    """Share and filter go as they were said; nothing is said of them where nothing was."""
    bodies: list[Any] = []

    def put(asked: Asked) -> Any:
        bodies.append(json.loads(asked.body))
        return {
            "id": "end_1", "name": "churn", "model": {"project": "default", "name": "churn"},
            "stage": "production", "log_ppm": 100_000,
            "privacy": {"fields": {"age": "hash"}, "others": "drop"},
            "created_at": "2026-01-02T03:04:05Z", "created_by": "ana",
        }  # fmt: skip

    server.on("PUT", "/api/v1/endpoints/churn", put)
    ran = modelkeep(
        "endpoint", "create", "churn", "--model", "churn", "--log", "10%", "--log-field", "age=hash",
        "--log-others", "drop",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    assert (bodies[0]["log_ppm"], bodies[0]["privacy"]) == (
        100_000,
        {"fields": {"age": "hash"}, "others": "drop"},
    )
    assert "10 %, age hash, others drop" in ran.out
    modelkeep("endpoint", "create", "churn", "--model", "churn")
    assert not {"log_ppm", "privacy"} & set(bodies[1])


def test_no_tables_are_needed_to_say_that_there_are_none(tmp_path: Path, modelkeep: Run) -> None:
    """A gateway without a log says how to have one."""
    ran = modelkeep("predictions", "churn", "--data", str(tmp_path))
    assert ran.code != 0
    assert "--log" in ran.err
    assert KEEP_ALL.of("anything") == "keep"


def test_a_line_that_is_no_label_is_named_and_nothing_is_sent(
    server: FakeServer, modelkeep: Run, tmp_path: Path
) -> None:
    """By its number in the file, empty lines counted as an editor counts them."""
    file = tmp_path / "labels.jsonl"
    file.write_text('{"request_id": "r1", "label": 1}\n\n{"request_id": "r2"}\n')
    ran = modelkeep("feedback", "churn", "--input", str(file), "--gateway", server.url)
    assert ran.code == 1
    assert "In line 3: " in ran.err
    assert "No label was sent." in ran.err


def test_a_folder_without_predictions_is_named(modelkeep: Run, tmp_path: Path) -> None:
    """Most often they are logged in another one."""
    ran = modelkeep("predictions", "churn", "--data", str(tmp_path))
    assert ran.code == 5
    assert str(tmp_path) in ran.err
    assert "--data" in ran.err
