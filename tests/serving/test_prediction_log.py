"""The prediction log: typed rows, what privacy leaves of them, and files that stay readable whatever happens
to their writer or the disk."""

import errno
import itertools
import math
import os
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelkeep.core import codec, errors
from modelkeep.core.recording import KEEP_ALL, Privacy, Treatment
from modelkeep.core.routing import VersionKey, VersionSpec
from modelkeep.core.signature import DataType, Field, Signature
from modelkeep.serving import prediction_log, protocols
from modelkeep.serving.messages import JSON_LENGTH, Door
from modelkeep.serving.prediction_log import PARQUET, STREAM, PredictionLog, endpoint_folder, read
from modelkeep.serving.records import Logged, Reply
from modelkeep.serving.tables import Hasher, Rows
from tests.serving import models

AT = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
SPEC = models.spec({"model.onnx": b"x"}, "1.0.0")
HASHER = Hasher(b"k" * 32)
GB = 1 << 30


def logged(
    body: bytes,
    answer: bytes,
    *,
    door: Door = Door.PREDICT,
    status: int = 200,
    request_id: str = "r1",
    at: float = 0,
) -> Logged:
    """One answered request."""
    reply = Reply(SPEC.key, status, 1.5, answer)
    moment = at or AT.timestamp()
    return Logged("churn", "rol_1", request_id, "candidate", 100_000, moment, door, body, reply)


def table(rows: Rows) -> list[dict[str, Any]]:
    """All rows as plain values."""
    return rows.take().to_pylist()


@pytest.mark.req("S11")
def test_a_request_gives_a_typed_row_for_each_row_it_asks_about() -> None:
    """Facts, inputs and outputs stand in columns of the signature's types, with the weight at that moment."""
    rows = Rows(SPEC, KEEP_ALL, HASHER)
    rows.add(logged(b'{"inputs": [{"age": 40, "income": 2}, [41, 3]]}', b'{"outputs": [42.0, 44.0]}'))
    schema = rows.schema
    first, second = table(rows)
    assert first == {
        "at": AT, "request_id": "r1", "row": 0, "endpoint": "churn", "rollout": "rol_1",
        "version": "churn:1.0.0", "side": "candidate", "propensity": 0.1, "latency_ms": 1.5, "status": 200,
        "input.age": 40.0, "input.income": 2.0, "output.score": 42.0,
    }  # fmt: skip
    assert (second["row"], second["input.age"], second["output.score"]) == (1, 41.0, 44.0)
    assert schema.field("input.age").type == pa.float32()
    assert schema.field("at").type == pa.timestamp("us", tz="UTC")


@pytest.mark.req("S11")
@pytest.mark.parametrize("door", [Door.PREDICT, Door.INFER, Door.INFER_BINARY, Door.INVOCATIONS])
def test_every_door_gives_the_same_rows(door: Door) -> None:
    """Whichever protocol a caller speaks, the log says the same."""
    asked = protocols.Asked(columns={}, rows=1, as_columns=door is Door.PREDICT, binary=True)
    score = {"score": np.array([42.0], "float32")}
    if door is Door.INFER_BINARY:
        head, rest = protocols.encode_binary(asked, score, endpoint="churn", semver="1.0.0")
        answer = JSON_LENGTH.pack(len(head)) + head + rest
    else:
        answer = protocols.encode(door, asked, score, endpoint="churn", semver="1.0.0")
    tensor: dict[str, Any] = {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [40, 2]}
    bodies: dict[Door, Any] = {
        Door.PREDICT: {"inputs": {"age": [40], "income": [2]}},
        Door.INFER: {"inputs": [tensor]},
        Door.INFER_BINARY: {},
        Door.INVOCATIONS: {"dataframe_split": {"columns": ["income", "age"], "data": [[2, 40]]}},
    }
    rows = Rows(SPEC, KEEP_ALL, HASHER)
    body = codec.encode(bodies[door])
    if door is Door.INFER_BINARY:
        sized = {**tensor, "parameters": {"binary_data_size": 8}}
        del sized["data"]
        head, rest = codec.encode({"inputs": [sized]}), np.array([40, 2], "<f4").tobytes()
        body = JSON_LENGTH.pack(len(head)) + head + rest
    rows.add(logged(body, answer, door=door))
    (row,) = table(rows)
    assert (row["input.age"], row["input.income"], row["output.score"]) == (40.0, 2.0, 42.0)


@pytest.mark.req("S11")
def test_what_was_refused_is_a_row_without_values() -> None:
    """A body that nobody can read, and an answer that is an error's, leave their columns empty."""
    rows = Rows(SPEC, KEEP_ALL, HASHER)
    for body in (b"{", b'{"inputs": [[999, 1]]}', b"\xff", b"[" * 100_000):
        rows.add(logged(body, b"", status=422))
    found = table(rows)
    assert [row["status"] for row in found] == [422] * 4
    assert {row["input.age"] for row in found} == {None}


ALL_TYPES = Signature(
    inputs=(
        Field(name="flag", type=DataType.BOOL, nullable=True),
        Field(name="count", type=DataType.INT64, nullable=True),
        Field(name="plan", type=DataType.STRING, nullable=True),
        Field(name="since", type=DataType.DATETIME, nullable=True),
        Field(name="blob", type=DataType.BYTES),
        Field(name="vector", type=DataType.FLOAT32, shape=(2,)),
    ),
    outputs=(Field(name="label", type=DataType.STRING), Field(name="when", type=DataType.DATETIME)),
)


@pytest.mark.req("S11")
def test_all_types_and_missing_values_are_kept() -> None:
    """What the signature can say the log can hold, missing values included."""
    spec = models.spec({"model.onnx": b"x"}, "2.0.0", signature=ALL_TYPES)
    rows = Rows(spec, KEEP_ALL, HASHER)
    since = "2026-01-02T03:04:05Z"
    full = {"flag": True, "count": 2**60, "plan": "pro", "since": since, "blob": "AQI=", "vector": [1, 2]}
    bare = {"flag": None, "count": None, "plan": None, "since": None, "blob": "", "vector": [0, 0]}
    for index, row in enumerate((full, bare)):
        answer = {"outputs": [{"label": "a", "when": since}]}
        rows.add(logged(codec.encode({"inputs": [row]}), codec.encode(answer), request_id=f"r{index}"))
    first, second = table(rows)
    moment = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    assert (first["input.flag"], first["input.count"], first["input.plan"]) == (True, 2**60, "pro")
    assert (first["input.since"], first["input.blob"], first["input.vector"]) == (moment, b"\x01\x02", [1, 2])
    assert (first["output.label"], first["output.when"]) == ("a", moment)
    assert [second[f"input.{name}"] for name in ("flag", "count", "plan", "since")] == [None] * 4


@pytest.mark.req("S11")
def test_a_version_without_a_signature_is_logged_in_json() -> None:
    """Nobody said what its columns are, so inputs and outputs are texts, through the same filter."""
    spec = models.spec({"model.onnx": b"x"}, "3.0.0", signature=None)
    privacy = Privacy(fields={"age": Treatment.DROP, "name": Treatment.HASH})
    rows = Rows(spec, privacy, HASHER)
    rows.add(logged(b'{"inputs": [{"age": 3, "name": "Ada", "size": 2}]}', b'{"outputs": [1.5]}'))
    (row,) = table(rows)
    inputs = codec.decode(row["inputs"], dict)
    assert inputs == {"name": HASHER("Ada"), "size": 2}
    assert row["outputs"] == '{"":1.5}'


@pytest.mark.req("S11")
def test_privacy_drops_and_hashes_before_anything_is_written() -> None:
    """A dropped field has no column; a hashed one is equal where its values are, and says no more."""
    privacy = Privacy(fields={"age": Treatment.HASH, "score": Treatment.KEEP}, others=Treatment.DROP)
    rows = Rows(SPEC, privacy, HASHER)
    for age in (40, 41, 40):
        rows.add(logged(codec.encode({"inputs": [[age, 2]]}), b'{"outputs": [7.0]}'))
    assert "input.income" not in rows.schema.names
    ages = [row["input.age"] for row in table(rows)]
    assert ages[0] == ages[2] != ages[1]
    assert len(str(ages[0])) == 24
    other = Rows(SPEC, privacy, Hasher(b"o" * 32))
    other.add(logged(b'{"inputs": [[40, 2]]}', b'{"outputs": [7.0]}'))
    assert table(other)[0]["input.age"] != ages[0]


@pytest.mark.req("S11")
@given(
    secret=st.text(min_size=8, max_size=40),
    treatment=st.sampled_from([Treatment.HASH, Treatment.DROP]),
    by_name=st.booleans(),
    door=st.sampled_from([Door.PREDICT, Door.INVOCATIONS]),
)
def test_nothing_of_a_protected_field_reaches_the_batch(
    secret: str, treatment: Treatment, by_name: bool, door: Door
) -> None:
    """Whatever a caller sends and however the filter names it, the bytes to be written do not hold it."""
    signature = Signature(
        inputs=(Field(name="name", type=DataType.STRING),),
        outputs=(Field(name="echo", type=DataType.STRING),),
    )
    spec = models.spec({"model.onnx": b"x"}, "1.0.0", signature=signature)
    privacy = Privacy(fields={"name": treatment, "echo": treatment}) if by_name else Privacy(others=treatment)
    word = "inputs" if door is Door.PREDICT else "instances"
    answer = {"outputs" if door is Door.PREDICT else "predictions": [secret]}
    rows = Rows(spec, privacy, HASHER)
    rows.add(logged(codec.encode({word: [{"name": secret}]}), codec.encode(answer), door=door))
    assert secret.encode() not in rows.take().serialize().to_pybytes()


# -------------------------------------------------------------------------------------------------------
# files


def batch(number: int, *, count: int = 1, spec: VersionSpec = SPEC, at: float = 0) -> pa.RecordBatch:
    """Rows with ids of their own."""
    rows = Rows(spec, KEEP_ALL, HASHER)
    for index in range(count):
        rows.add(logged(b'{"inputs": [[1, 2]]}', b'{"outputs": [3]}', request_id=f"r{number}-{index}", at=at))
    return rows.take()


def ids(data: Path, **bounds: Any) -> list[str]:
    """The request ids that a reader finds, in the order of the log."""
    return [id_ for part in read(data, "churn", **bounds) for id_ in part["request_id"].to_pylist()]


def names(data: Path, suffix: str) -> list[str]:
    """Files of this kind."""
    return sorted(path.name for path in endpoint_folder(data, "churn").glob(f"*{suffix}"))


def dies(log: PredictionLog) -> None:
    """The end of its process: files are closed as they are."""
    for stream in log._streams.values():
        stream.close()


@pytest.mark.req("S11")
def test_rows_are_read_while_they_are_written_and_end_in_parquet(tmp_path: Path) -> None:
    """A reader sees every batch at once; closed, the log is Parquet files that any tool reads."""
    log = PredictionLog(tmp_path, max_bytes=GB)
    log.open()
    for number in range(3):
        log.append("churn", SPEC.key, batch(number))
        assert len(ids(tmp_path)) == number + 1
    assert (log.state.rows, log.state.lost) == (3, 0)
    log.close()
    assert names(tmp_path, STREAM) == []
    (file,) = names(tmp_path, PARQUET)
    whole = pq.read_table(endpoint_folder(tmp_path, "churn") / file)
    assert whole["request_id"].to_pylist() == ids(tmp_path) == ["r0-0", "r1-0", "r2-0"]
    mode = (endpoint_folder(tmp_path, "churn") / file).stat().st_mode
    assert mode & 0o077 == 0


@pytest.mark.req("S11")
@given(cut=st.integers(0, 4000), batches=st.integers(1, 4))
def test_a_log_that_was_cut_anywhere_is_readable_up_to_there(cut: int, batches: int) -> None:
    """A recorder killed in the middle of a write leaves all its earlier batches, for readers and for the next
    recorder; what is left of the torn one is in nobody's way."""
    with tempfile.TemporaryDirectory() as name:
        data = Path(name)
        log = PredictionLog(data, max_bytes=GB)
        log.open()
        ends = [0]
        for number in range(batches):
            log.append("churn", SPEC.key, batch(number))
            stream = next(endpoint_folder(data, "churn").glob(f"*{STREAM}"))
            ends.append(stream.stat().st_size)
        with open(stream, "r+b") as file:
            file.truncate(min(cut, ends[-1]))
        dies(log)
        whole = [f"r{n}-0" for n in range(batches) if ends[n + 1] <= cut]
        assert ids(data) == whole
        again = PredictionLog(data, max_bytes=GB)
        again.open()
        assert ids(data) == whole
        again.append("churn", SPEC.key, batch(9))
        assert ids(data) == [*whole, "r9-0"]
        again.close()
        assert names(data, STREAM) == []


@pytest.mark.req("S11")
def test_versions_and_filters_have_files_of_their_own(tmp_path: Path) -> None:
    """Rows of different forms never share a file."""
    other = models.spec({"model.onnx": b"y"}, "2.0.0")
    log = PredictionLog(tmp_path, max_bytes=GB)
    log.open()
    log.append("churn", SPEC.key, batch(0))
    log.append("churn", other.key, batch(1, spec=other))
    rows = Rows(SPEC, Privacy(others=Treatment.DROP), HASHER)
    rows.add(logged(b'{"inputs": [[1, 2]]}', b'{"outputs": [3]}', request_id="r2-0"))
    log.append("churn", SPEC.key, rows.take())
    log.close()
    assert len(names(tmp_path, PARQUET)) == 3
    assert sorted(ids(tmp_path)) == ["r0-0", "r1-0", "r2-0"]


@pytest.mark.req("S11")
def test_the_bound_is_kept_and_the_oldest_go_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However much is logged, all files together stay within the bound, and what is left is the newest."""
    monkeypatch.setattr(prediction_log, "STREAM_MAX_BYTES", 4_000)
    bound = 20_000
    log = PredictionLog(tmp_path, max_bytes=bound)
    log.open()
    for number in range(60):
        log.append("churn", SPEC.key, batch(number, count=5))
        log.turn(time.monotonic())
        sizes = [path.stat().st_size for path in endpoint_folder(tmp_path, "churn").iterdir()]
        assert sum(sizes) <= bound + 8_000  # the stream that is being written is never taken away
    found = ids(tmp_path)
    assert log.state.rows == 300
    assert 0 < len(found) < 300
    assert found == [f"r{n}-{i}" for n in range(60) for i in range(5)][-len(found) :]


@pytest.mark.req("S11")
def test_old_streams_become_parquet_by_themselves(tmp_path: Path) -> None:
    """A log with little traffic is visible to other tools too, a quarter of an hour later."""
    log = PredictionLog(tmp_path, max_bytes=GB)
    log.open()
    log.append("churn", SPEC.key, batch(0))
    log.turn(time.monotonic())
    assert len(names(tmp_path, STREAM)) == 1
    log.turn(time.monotonic() + prediction_log.STREAM_MAX_S)
    assert (names(tmp_path, STREAM), len(names(tmp_path, PARQUET))) == ([], 1)


class _FullDisk:
    """A file on a disk that has room for so many more bytes."""

    def __init__(self, file: Any, room: list[int]) -> None:
        self._file, self._room = file, room

    def write(self, data: Any) -> int:
        fits = min(len(data), self._room[0])
        self._room[0] -= fits
        if fits == 0 and len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return int(self._file.write(data[:fits]))

    def __enter__(self) -> "_FullDisk":
        return self

    def __exit__(self, *_: Any) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


@pytest.mark.req("S11")
@given(room=st.lists(st.integers(0, 6_000), min_size=1, max_size=6))
def test_a_full_disk_loses_rows_and_says_so_and_nothing_else(room: list[int]) -> None:
    """A batch is written whole or not at all; what is lost is counted, and when there is room again it goes
    on."""
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        data = Path(name)
        left = [0]

        def opened(*words: Any, **more: Any) -> _FullDisk:
            return _FullDisk(open(*words, **more), left)

        patch.setattr(prediction_log, "open", opened, raising=False)
        log = PredictionLog(data, max_bytes=GB)
        log.open()
        kept: list[str] = []
        for number, more in enumerate(room):
            left[0] = more
            before = log.state
            log.append("churn", SPEC.key, batch(number))
            if log.state.rows > before.rows:
                kept.append(f"r{number}-0")
                assert log.state.problem is None
            else:
                assert log.state.lost == before.lost + 1
                assert "No space left" in str(log.state.problem)
            assert (ids(data) if kept else []) == kept
        left[0] = GB
        log.append("churn", SPEC.key, batch(99))
        log.close()
        assert ids(data) == [*kept, "r99-0"]


@pytest.mark.req("S11")
def test_rows_are_read_by_their_time(tmp_path: Path) -> None:
    """`since` is within, `until` is not."""
    log = PredictionLog(tmp_path, max_bytes=GB)
    log.open()
    for number in range(5):
        log.append("churn", SPEC.key, batch(number, at=(AT + timedelta(hours=number)).timestamp()))
    bounds = {"since": AT + timedelta(hours=1), "until": AT + timedelta(hours=3)}
    log.close()
    assert ids(tmp_path, **bounds) == ["r1-0", "r2-0"]
    with pytest.raises(errors.RouteNotFound, match="No predictions"):
        list(read(tmp_path, "nothing"))


@pytest.mark.req("S11")
@pytest.mark.parametrize("name", ["..", ".", "a/b", "../../x", "ünï", ""])
def test_no_name_of_an_endpoint_leads_out_of_the_folder(tmp_path: Path, name: str) -> None:
    """Whatever a table calls it, its folder lies below the log's."""
    folder = endpoint_folder(tmp_path, name).resolve()
    assert folder.is_relative_to((tmp_path / "predictions").resolve())
    assert len(folder.parts) - len((tmp_path / "predictions").resolve().parts) <= 1


@pytest.mark.req("S11")
def test_many_streams_are_few_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An endpoint and version more than there may be streams closes the oldest; no row is lost by it."""
    monkeypatch.setattr(prediction_log, "STREAMS_MAX", 3)
    log = PredictionLog(tmp_path, max_bytes=GB)
    log.open()
    for number in range(6):
        log.append("churn", VersionKey(f"version:{number:064x}"), batch(number))
        assert len(names(tmp_path, STREAM)) <= 3
    log.close()
    assert sorted(ids(tmp_path)) == [f"r{n}-0" for n in range(6)]


@pytest.mark.req("S11")
def test_numbers_that_are_none_are_missing() -> None:
    """NaN among inputs is a missing value in the table: readers know only one kind."""
    wide = Signature(inputs=(Field(name="x", type=DataType.FLOAT64, nullable=True),), outputs=models.SCORE)
    rows = Rows(models.spec({"m": b"x"}, "1.0.0", signature=wide), KEEP_ALL, HASHER)
    for value, answer in itertools.product((None, 1.5), (b'{"outputs": [null]}', b'{"outputs": [2]}')):
        rows.add(logged(codec.encode({"inputs": [[value]]}), answer))
    found = table(rows)
    assert [row["input.x"] for row in found] == [None, None, 1.5, 1.5]
    assert [row["output.score"] for row in found] == [None, 2.0, None, 2.0]
    assert not any(isinstance(v, float) and math.isnan(v) for row in found for v in row.values())
