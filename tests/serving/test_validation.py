"""The signature as gatekeeper, and the three protocols: what is let in, what is refused and how it is named,
what goes out. Every refusal here is the caller's fault (4xx) and names row and field; none is a stack
trace."""

import contextlib
import json
from datetime import datetime
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelkeep.core import errors
from modelkeep.core.signature import DataType, Field, Signature
from modelkeep.serving import validation
from modelkeep.serving.messages import Door
from modelkeep.serving.options import ROWS_MAX
from modelkeep.serving.protocols import Asked, Decoder, encode

FIELDS = (
    Field(name="age", type=DataType.INT32, minimum=0, maximum=150),
    Field(name="income", type=DataType.FLOAT64, nullable=True),
    Field(name="plan", type=DataType.STRING, categories=("basic", "pro")),
    Field(name="active", type=DataType.BOOL),
    Field(name="note.of[day]", type=DataType.STRING, required=False, nullable=True),
)
SIGNATURE = Signature(inputs=FIELDS)
ROW = {"age": 40, "income": 1.5, "plan": "pro", "active": True, "note.of[day]": "x"}
LISTED = [40, 1.5, "pro", True, "x"]
DECODER = Decoder(SIGNATURE)
FREE = Decoder(None)


def ask(inputs: Any, door: Door = Door.PREDICT, decoder: Decoder = DECODER) -> Asked:
    """Decode `{"inputs": inputs}`."""
    return decoder.decode(door, json.dumps({"inputs": inputs}).encode())


def values(asked: Asked) -> dict[str, list[Any]]:
    """Columns as lists."""
    return {name: array.tolist() for name, array in asked.columns.items()}


TENSOR = Decoder(Signature(inputs=(Field(name="input", type=DataType.FLOAT32, shape=(2,)),)))


@pytest.mark.req("S1", "T3")
@pytest.mark.parametrize("name", ["inputs", "instances"])
def test_mlflow_sends_the_only_tensor_as_it_is(name: str) -> None:
    """A signature made of an array has one field; MLflow's callers send the array itself, ours its field."""
    for rows in ([[1, 2], [3, 4]], [[[1, 2]], [[3, 4]]], [{"input": [1, 2]}, {"input": [3, 4]}]):
        asked = TENSOR.decode(Door.INVOCATIONS, json.dumps({name: rows}).encode())
        assert (values(asked), asked.rows) == ({"input": [[1, 2], [3, 4]]}, 2)
    for body in (
        {name: [[1, 2, 3]]},
        {name: [1, 2]},
        {name: [["a", 1]]},
        {"inputs": [[1, 2]], "instances": []},
    ):
        with pytest.raises(errors.Invalid):
            TENSOR.decode(Door.INVOCATIONS, json.dumps(body).encode())


@pytest.mark.req("S1")
def test_rows_lists_and_columns_are_the_same_table() -> None:
    """The three forms of one table decode alike, in the signature's types and order."""
    by_name, by_place = ask([ROW, ROW]), ask([LISTED, LISTED])
    columns = ask({name: [value, value] for name, value in reversed(ROW.items())})
    assert values(by_name) == values(by_place) == values(columns) == {n: [v, v] for n, v in ROW.items()}
    assert list(columns.columns) == [field.name for field in FIELDS]
    assert [array.dtype.name for array in by_name.columns.values()] == [
        "int32",
        "float64",
        "object",
        "bool",
        "object",
    ]
    assert (by_name.as_columns, columns.as_columns, by_name.rows) == (False, True, 2)
    assert values(ask([ROW, LISTED])) == values(by_name)


BAD_ROWS = [
    ({**ROW, "age": "40"}, "age", "expected int, got str"),
    ({**ROW, "age": 40.5}, "age", "expected int, got float"),
    ({**ROW, "age": True}, "age", "expected int, got bool"),
    ({**ROW, "age": None}, "age", "expected int, got null"),
    ({**ROW, "age": -1}, "age", ">= 0"),
    ({**ROW, "age": 151}, "age", "<= 150"),
    ({**ROW, "plan": "gold"}, "plan", "known are 'basic', 'pro'"),
    ({**ROW, "active": 1}, "active", "expected bool, got int"),
    ({**ROW, "colour": "red"}, "colour", "does not know this field"),
    ({name: value for name, value in ROW.items() if name != "plan"}, "plan", "this field is missing"),
    ({**ROW, "note.of[day]": 5}, "note.of[day]", "expected str | null, got int"),
    ([40, 1.5, "gold", True, "x"], "plan", "known are 'basic', 'pro'"),
    ([40, 1.5, "pro", True], None, "length 5"),
    (17, None, "got int"),
]


@pytest.mark.hostile("wrong-kinds", "numbers")
@pytest.mark.req("S1", "S6")
@pytest.mark.parametrize(("row", "field", "text"), BAD_ROWS)
def test_a_bad_row_is_refused_by_row_and_field(row: Any, field: str | None, text: str) -> None:
    """Wrong type, null, range, category, unknown and missing fields: each names its place."""
    with pytest.raises(errors.InvalidInput) as caught:
        ask([ROW, ROW, row])
    assert caught.value.details.get("row") == 2
    assert caught.value.details.get("field") == field
    assert text in caught.value.message
    assert "`" not in caught.value.message


def test_a_bad_column_is_refused_by_row_and_field() -> None:
    """Columns name the same places as rows; lengths must agree."""
    columns: dict[str, list[Any]] = {name: [value] * 3 for name, value in ROW.items()}
    with pytest.raises(errors.InvalidInput) as caught:
        ask({**columns, "age": [1, 2, 151]})
    assert (caught.value.details["row"], caught.value.details["field"]) == (2, "age")
    with pytest.raises(errors.InvalidInput, match="different lengths"):
        ask({**columns, "age": [1, 2]})
    with pytest.raises(errors.InvalidInput, match="missing") as caught:
        ask({name: column for name, column in columns.items() if name != "age"})
    assert caught.value.details["field"] == "age"


def test_missing_values_arrive_as_the_model_knows_them() -> None:
    """A null number is NaN, an absent optional field is None; neither is allowed where the signature says
    no."""
    asked = ask(
        [{**ROW, "income": None}, {name: value for name, value in ROW.items() if name != "note.of[day]"}]
    )
    assert np.isnan(asked.columns["income"][0])
    assert asked.columns["note.of[day]"].tolist() == ["x", None]


def test_other_types_arrive_as_they_are() -> None:
    """Datetimes become UTC, bytes are base64, tensors keep their shape; a wrong shape is refused."""
    fields = (
        Field(name="at", type=DataType.DATETIME),
        Field(name="raw", type=DataType.BYTES),
        Field(name="grid", type=DataType.FLOAT32, shape=(2, -1)),
    )
    decoder = Decoder(Signature(inputs=fields))
    row = {"at": "2026-01-25T15:03:00+01:00", "raw": "aGk=", "grid": [[1, 2, 3], [4, 5, 6]]}
    asked = ask([row], decoder=decoder)
    assert asked.columns["at"].tolist() == [datetime(2026, 1, 25, 14, 3)]  # noqa: DTZ001 - numpy's times have no zone
    assert asked.columns["raw"].tolist() == [b"hi"]
    assert asked.columns["grid"].shape == (1, 2, 3)
    for grid in ([[1, 2, 3]], [1, 2], [[1, "x"], [2, 3]]):
        with pytest.raises(errors.InvalidInput) as caught:
            ask([{**row, "grid": grid}], decoder=decoder)
        assert caught.value.details["field"] == "grid"
    with pytest.raises(errors.InvalidInput, match="different shapes"):
        ask([row, {**row, "grid": [[1], [2]]}], decoder=decoder)


BODIES = [
    b"",
    b"{",
    b"[]",
    b"17",
    b"null",
    b'{"input": []}',
    b'{"inputs": 17}',
    b'{"inputs": "x"}',
    b'{"inputs": null}',
    b'{"inputs": [NaN]}',
    b'{"inputs": [1e999]}',
    b'{"inputs": []}',
    b'{"inputs": {}}',
    b'{"inputs": [[]]}',
    b'{"inputs": [{}]}',
    b'{"inputs": [[1], [2, 3]]}',
    b'{"inputs": [{"a": 1}, {"b": 2}]}',
    b'{"inputs": [1, "a"]}',
    b'{"inputs": [{"a": {"b": 1}}]}',
    b'{"inputs": {"a": [1], "b": [1, 2]}}',
    b'{"inputs": {"a": 1}}',
    b'{"inputs": [[1, "a"]]}',
    b"\xff\xfe",
    b'{"inputs": ["\xff"]}',
    b"[" * 100_000,
    b'{"inputs": ' + b"[" * 100_000,
    b'{"inputs": [1], "extra": 1}',
    b'{"inputs": [[1e309]]}',
    b'{"inputs": [' + b"9" * 5000 + b"]}",
]


@pytest.mark.hostile("wrong-kinds")
@pytest.mark.req("S1", "S6")
@pytest.mark.parametrize("body", BODIES, ids=range(len(BODIES)))
@pytest.mark.parametrize("door", list(Door))
@pytest.mark.parametrize("decoder", [DECODER, FREE], ids=["signature", "free"])
def test_whatever_comes_is_a_table_or_a_refusal(body: bytes, door: Door, decoder: Decoder) -> None:
    """No body raises anything but the caller's own errors, with a signature or without."""
    with contextlib.suppress(errors.InvalidInput, errors.MalformedBody):
        asked = decoder.decode(door, body)
        assert {len(array) for array in asked.columns.values()} == {asked.rows}
        assert asked.rows >= 1


@given(
    body=st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(st.sampled_from([*ROW, "inputs", "shape", "data"]), inner)
        ),
        max_leaves=12,
    ),
    door=st.sampled_from([Door.PREDICT, Door.INFER, Door.INVOCATIONS]),
    wrapped=st.booleans(),
)
def test_no_json_gets_past_the_gate_as_a_crash(body: Any, door: Door, wrapped: bool) -> None:
    """Any JSON document is answered by a table or by the caller's own error."""
    data = json.dumps({"inputs": body} if wrapped else body).encode()
    for decoder in (DECODER, FREE):
        try:
            asked = decoder.decode(door, data)
        except errors.Invalid:
            continue
        assert {len(array) for array in asked.columns.values()} == {asked.rows}


@pytest.mark.hostile("exhaustion")
def test_too_many_rows_are_refused() -> None:
    """The bound is said; the body's own limit stands at the door."""
    with pytest.raises(errors.LimitExceeded, match="100,000"):
        ask({"x": [0] * (ROWS_MAX + 1)}, decoder=FREE)


def test_without_a_signature_tables_are_guessed() -> None:
    """Numbers, text and booleans by column; rows of lists are a matrix in the model's order."""
    asked = ask([{"a": 1, "b": "x"}, {"a": 2, "b": "y"}], decoder=FREE)
    assert values(asked) == {"a": [1, 2], "b": ["x", "y"]}
    assert asked.columns["a"].dtype.kind == "i"
    matrix = ask([[1, 2.5], [3, 4]], decoder=FREE).columns[""]
    assert (matrix.shape, matrix.dtype.kind) == ((2, 2), "f")
    assert np.isnan(ask([{"a": 1.0}, {"a": None}], decoder=FREE).columns["a"][1])


# ---------------------------------------------------------------------------------- MLflow's scoring protocol


@pytest.mark.req("S1")
def test_every_form_of_mlflows_protocol_is_understood() -> None:
    """Split, records, instances and inputs give the same table, in rows; null index and params are fine."""
    split = {"columns": list(reversed(ROW)), "data": [list(reversed(list(ROW.values())))], "index": [7]}
    bodies: list[dict[str, Any]] = [
        {"dataframe_split": split},
        {"dataframe_records": [ROW]},
        {"instances": [ROW]},
        {"inputs": {name: [value] for name, value in ROW.items()}},
        {"instances": [LISTED], "params": {"temperature": 1}},
    ]
    for body in bodies:
        asked = DECODER.decode(Door.INVOCATIONS, json.dumps(body).encode())
        assert values(asked) == {name: [value] for name, value in ROW.items()}
        assert not asked.as_columns
    csv = 'plan,age,"note.of[day]",active,income\npro,40,,true,\n'
    asked = DECODER.decode(Door.INVOCATIONS_CSV, csv.encode())
    assert asked.columns["age"].tolist() == [40]
    assert np.isnan(asked.columns["income"][0])
    assert asked.columns["active"].tolist() == [True]


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({}, "exactly one"),
        ({"instances": [ROW], "inputs": [ROW]}, "exactly one"),
        ({"dataframe_split": {"columns": ["age"], "data": [[1, 2]]}}, "2 values for 1 columns"),
        ({"dataframe_split": {"columns": ["age", "age"], "data": [[1, 2]]}}, "twice"),
        ({"dataframe_split": {"columns": ["age"], "data": [[1]]}}, "'income'"),
        ({"dataframe_records": [{**ROW, "age": 999}]}, "row 0, field 'age'"),
        (
            {"dataframe_split": {"columns": list(ROW), "data": [LISTED, ["x", *LISTED[1:]]]}},
            "row 1, field 'age'",
        ),
    ],
)
def test_a_bad_scoring_request_says_what_is_wrong(body: dict[str, Any], text: str) -> None:
    """MLflow's forms are refused with the same places as ours."""
    with pytest.raises(errors.Invalid, match=text):
        DECODER.decode(Door.INVOCATIONS, json.dumps(body).encode())


# ------------------------------------------------------------------------------------ Open Inference protocol

NUMBERS = Signature(
    inputs=(
        Field(name="a", type=DataType.FLOAT32, maximum=10),
        Field(name="b", type=DataType.INT64),
        Field(name="c", type=DataType.STRING, categories=("x", "y"), required=False, nullable=True),
    )
)


def infer(*tensors: dict[str, Any], signature: Signature | None = NUMBERS, **more: Any) -> Asked:
    """Decode an inference request."""
    return Decoder(signature).decode(Door.INFER, json.dumps({"inputs": tensors, **more}).encode())


def tensor(name: str, datatype: str, shape: list[int], data: list[Any]) -> dict[str, Any]:
    """One input tensor."""
    return {"name": name, "datatype": datatype, "shape": shape, "data": data}


@pytest.mark.req("S1")
def test_tensors_are_columns() -> None:
    """Flat and nested data, [n] and [n, 1], integers for floats, and one matrix for all scalar fields."""
    asked = infer(
        tensor("a", "FP64", [2, 1], [[1.5], [2]]),
        tensor("b", "INT32", [2], [3, 4]),
        tensor("c", "BYTES", [2], ["x", "y"]),
        id="42",
    )
    assert values(asked) == {"a": [1.5, 2.0], "b": [3, 4], "c": ["x", "y"]}
    assert (asked.identity, asked.columns["b"].dtype.name) == ("42", "int64")
    two = Signature(inputs=(Field(name="a", type=DataType.FLOAT32), Field(name="b", type=DataType.FLOAT64)))
    matrix = infer(tensor("whatever", "FP32", [2, 2], [1, 2, 3, 4]), signature=two)
    assert values(matrix) == {"a": [1, 3], "b": [2, 4]}


BAD_TENSORS = [
    ([tensor("a", "FP32", [1], [1])], "'b'.*missing"),
    ([tensor("a", "FP32", [1], [1]), tensor("b", "INT64", [1], [1.5])], "not INT64"),
    ([tensor("a", "FP32", [1], ["1"]), tensor("b", "INT64", [1], [1])], "not FP32"),
    ([tensor("a", "FP32", [1], [11]), tensor("b", "INT64", [1], [1])], "row 0, field 'a'.*above 10"),
    ([tensor("a", "FP32", [1], [1]), tensor("b", "INT8", [1], [300])], "does not fit INT8"),
    ([tensor("a", "FP32", [2], [1]), tensor("b", "INT64", [2], [1, 2])], "asks for 2 values, not 1"),
    ([tensor("a", "FP32", [2], [1, 2]), tensor("b", "INT64", [1], [1])], "different numbers of rows"),
    ([tensor("a", "FP99", [1], [1])], "'FP99' is not known"),
    ([tensor("a", "FP32", [], [1])], "shape"),
    ([tensor("a", "FP32", [-1], [1])], "shape"),
    ([tensor("a", "FP32", [0], [])], "fields|rows|missing"),
    ([tensor("a", "FP32", [1], [1]), tensor("a", "FP32", [1], [1])], "twice"),
    (
        [tensor("a", "FP32", [1], [1]), tensor("z", "FP32", [1], [1]), tensor("b", "INT64", [1], [1])],
        "'z'.*not know",
    ),
    (
        [tensor("a", "FP32", [1], [1]), tensor("b", "INT64", [1], [1]), tensor("c", "BYTES", [1], ["z"])],
        "'z' is none",
    ),
    ([tensor("a", "FP32", [1, 2], [1, 2]), tensor("b", "INT64", [1], [1])], "field 'a'.*shape must be"),
    ([tensor("a", "FP32", [1], [[1, 2], [3]])], "ragged"),
    ([tensor("a", "FP32", [10**12], [1])], "asks for"),
    ([], "1 to"),
]


@pytest.mark.hostile("wrong-kinds")
@pytest.mark.parametrize(("tensors", "text"), BAD_TENSORS)
def test_a_bad_tensor_says_what_is_wrong(tensors: list[dict[str, Any]], text: str) -> None:
    """Types, shapes, ranges and names of tensors are enforced as those of rows are."""
    with pytest.raises(errors.Invalid, match=text):
        infer(*tensors)


# ---------------------------------------------------------------------------------------------------- answers


def test_answers_take_the_form_of_the_request() -> None:
    """Rows for rows, columns for columns, tensors for tensors; one output is a plain list."""
    one = {"score": np.array([0.5, 0.25], dtype="float32")}
    two = {**one, "label": np.array([1, 0])}
    rows, columns = Asked(columns={}, rows=2), Asked(columns={}, rows=2, as_columns=True, identity="7")

    def said(door: Door, asked: Asked, outputs: dict[str, Any]) -> Any:
        return json.loads(encode(door, asked, outputs, endpoint="churn", semver="1.0.0"))

    assert said(Door.PREDICT, rows, one) == {"outputs": [0.5, 0.25]}
    assert said(Door.PREDICT, rows, two) == {
        "outputs": [{"score": 0.5, "label": 1}, {"score": 0.25, "label": 0}]
    }
    assert said(Door.PREDICT, columns, two) == {"outputs": {"score": [0.5, 0.25], "label": [1, 0]}}
    assert said(Door.INVOCATIONS, rows, one) == {"predictions": [0.5, 0.25]}
    assert said(Door.INVOCATIONS_CSV, rows, two)["predictions"][0] == {"score": 0.5, "label": 1}
    assert said(Door.INFER, columns, two) == {
        "model_name": "churn",
        "model_version": "1.0.0",
        "id": "7",
        "outputs": [
            {"name": "score", "shape": [2], "datatype": "FP32", "data": [0.5, 0.25]},
            {"name": "label", "shape": [2], "datatype": "INT64", "data": [1, 0]},
        ],
    }


def test_numbers_that_are_not_finite_leave_as_null() -> None:
    """JSON has no NaN and no infinity; they become null in every protocol."""
    outputs = {"score": np.array([np.nan, np.inf, 1.0])}
    for door in (Door.PREDICT, Door.INFER, Door.INVOCATIONS):
        body = encode(door, Asked(columns={}, rows=3), outputs, endpoint="e", semver="1.0.0")
        assert b"[null,null,1.0]" in body


OUTPUTS = (
    Field(name="label", type=DataType.INT64, categories=(0, 1)),
    Field(name="score", type=DataType.FLOAT32, minimum=0, maximum=1),
)


@pytest.mark.hostile("foreign-models")
@pytest.mark.req("S6")
def test_an_output_that_breaks_the_signature_is_found() -> None:
    """Missing, of another type, shape, range, category or number of rows, or not finite: one sentence
    each."""
    good = {"label": np.array([0, 1]), "score": np.array([0.5, 1.0])}
    assert validation.output_problem(OUTPUTS, good, 2) is None
    bad: list[tuple[dict[str, Any], str]] = [
        ({"label": good["label"]}, "'score' is missing"),
        ({**good, "score": np.array([0.5])}, "1 rows for 2"),
        ({**good, "score": np.array([0.5, 1.5])}, "row 1: the value is above 1"),
        ({**good, "score": np.array([np.nan, 0.5])}, "row 0: the value is not a finite"),
        ({**good, "score": np.array(["a", "b"])}, "must be float32"),
        ({**good, "label": np.array([0.0, 1.0])}, "must be int64"),
        ({**good, "label": np.array([0, 2])}, "row 1: '2' is none of"),
        ({**good, "score": np.array([[0.1, 0.9], [0.2, 0.8]])}, "shape must be"),
    ]
    for outputs, text in bad:
        problem = validation.output_problem(OUTPUTS, outputs, 2)
        assert problem is not None
        assert text in problem, problem
    nullable = (Field(name="score", type=DataType.FLOAT32, nullable=True),)
    assert validation.output_problem(nullable, {"score": np.array([np.nan, 1.0])}, 2) is None


def test_types_of_tensors_out_are_named() -> None:
    """Every array kind a runtime may give has a name in the protocol."""
    for dtype, name in (("bool", "BOOL"), ("int32", "INT32"), ("float64", "FP64"), ("object", "BYTES")):
        body = encode(
            Door.INFER, Asked(columns={}, rows=1), {"x": np.zeros(1, dtype)}, endpoint="e", semver="1.0.0"
        )
        assert json.loads(body)["outputs"][0]["datatype"] == name


def test_a_table_is_its_columns_made_for_who_asks() -> None:
    """Names, order and values are those of the matrix, of which each column is a part and no copy."""
    matrix = np.arange(6.0).reshape(2, 3)
    table = validation.Table(["a", "b", "c"], matrix)
    assert (list(table), len(table), "b" in table, "d" in table) == (["a", "b", "c"], 3, True, False)
    assert table["c"].tolist() == [2.0, 5.0]
    assert [(name, array.tolist()) for name, array in table.items()] == [
        ("a", [0.0, 3.0]), ("b", [1.0, 4.0]), ("c", [2.0, 5.0]),
    ]  # fmt: skip
    assert all(np.shares_memory(array, matrix) for array in table.values())
    assert list(dict(table)) == list(table.keys())
