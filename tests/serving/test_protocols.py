"""What the doors take and give that needs a closer look: MLflow's less usual input forms, and tensors as
bytes."""

import json
import struct
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelkeep.core import errors
from modelkeep.core.signature import DataType, Field, Signature
from modelkeep.serving import binary, protocols
from modelkeep.serving.messages import JSON_LENGTH, Door
from modelkeep.serving.protocols import Asked, Decoder
from modelkeep.serving.validation import Columns, Table

pytestmark = pytest.mark.req("S1")

AGE, NAME = Field(name="age", type=DataType.FLOAT64), Field(name="name", type=DataType.STRING)
PERSON = Decoder(Signature(inputs=(AGE, NAME)))
ONE = Decoder(Signature(inputs=(AGE,)))
BARE = Decoder(None)


def invoked(decoder: Decoder, body: Any) -> dict[str, list[Any]]:
    """The columns of a call in MLflow's protocol, as lists."""
    asked = decoder.decode(Door.INVOCATIONS, json.dumps(body).encode())
    return {name: array.tolist() for name, array in asked.columns.items()}


@pytest.mark.parametrize(
    "body",
    [
        {"dataframe_split": {"columns": ["age", "name"], "data": [[1.0, "a"], [2.0, "b"]]}},
        {"dataframe_split": {"columns": ["name", "age"], "data": [["a", 1.0], ["b", 2.0]], "index": [7, 8]}},
        {"dataframe_split": {"columns": [0, 1], "data": [[1.0, "a"], [2.0, "b"]]}},
        {"dataframe_split": {"data": [[1.0, "a"], [2.0, "b"]]}},
        {"dataframe_records": [{"age": 1, "name": "a"}, {"age": 2, "name": "b"}]},
        {"instances": [{"age": 1, "name": "a"}, {"age": 2, "name": "b"}]},
        {"instances": {"age": [1, 2], "name": ["a", "b"]}},
        {"inputs": {"age": [1, 2], "name": ["a", "b"]}},
        {"inputs": {"age": [1, 2], "name": ["a", "b"]}, "params": {"temperature": 0.5}},
        {"inputs": [{"age": 1, "name": "a"}, {"age": 2, "name": "b"}], "params": None},
        {"inputs": [[1, "a"], [2, "b"]]},
    ],
)
def test_every_form_of_mlflow_is_the_same_table(body: Any) -> None:
    """Frames, records, instances and inputs, with and without names, index and params."""
    assert invoked(PERSON, body) == {"age": [1.0, 2.0], "name": ["a", "b"]}


NUMBERS = (
    Field(name="a", type=DataType.FLOAT64, minimum=0, maximum=100),
    Field(name="b", type=DataType.FLOAT64, nullable=True),
    Field(name="c", type=DataType.FLOAT64, nullable=True, required=False),
)
TABLE = Decoder(Signature(inputs=NUMBERS))


@given(
    st.permutations(["a", "b", "c"]),
    st.lists(
        st.lists(st.one_of(st.none(), st.floats(-10, 200), st.integers(0, 3), st.just("x"), st.booleans())),
        min_size=1,
        max_size=3,
    ),
)
def test_a_frame_of_numbers_is_read_at_once_and_no_otherwise(names: list[str], rows: list[list[Any]]) -> None:
    """Whatever its columns' order: the same table as from records, and refused where they are."""
    rows = [[*row, 1.0, 2.0, 3.0][:3] for row in rows]
    frame = {"dataframe_split": {"columns": names, "data": rows}}
    records = {"dataframe_records": [dict(zip(names, row, strict=True)) for row in rows]}
    found: list[Any] = []
    for body in (frame, records):
        try:
            asked = TABLE.decode(Door.INVOCATIONS, json.dumps(body).encode())
        except errors.InvalidInput as refusal:
            found.append(refusal.details)
        else:
            assert isinstance(asked.columns, Table)
            assert list(asked.columns) == ["a", "b", "c"]
            assert all(array.dtype == "float64" for array in asked.columns.values())
            found.append([(asked.rows, repr(array.tolist())) for array in asked.columns.values()])
    assert type(found[0]) is type(found[1])
    if isinstance(found[0], list):
        assert found[0] == found[1]


def test_one_row_and_one_field_need_no_wrapping() -> None:
    """An object of plain values is a row; a list of plain values is the only column."""
    assert invoked(PERSON, {"inputs": {"age": 1, "name": "a"}}) == {"age": [1.0], "name": ["a"]}
    assert invoked(ONE, {"inputs": [1, 2]}) == {"age": [1.0, 2.0]}
    assert invoked(ONE, {"instances": [1.5]}) == {"age": [1.5]}
    assert invoked(BARE, {"dataframe_split": {"data": [[1, 2], [3, 4]]}}) == {"": [[1, 2], [3, 4]]}
    assert invoked(BARE, {"dataframe_split": {"columns": ["a"], "data": [[1]]}}) == {"a": [1]}


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"dataframe_split": {"columns": ["age"], "data": [[1, 2]]}}, "2 values for 1 columns"),
        ({"dataframe_split": {"columns": ["age", "age"], "data": [[1, 2]]}}, "twice"),
        ({"dataframe_split": {"data": [[1.0]]}}, "names of the 2 columns"),
        ({"dataframe_split": {"data": []}}, "no rows"),
        ({"dataframe_split": {"data": [[1.0, "a"]], "more": 1}}, "more"),
        ({"inputs": [[1, "a"]], "instances": [[1, "a"]]}, "exactly one"),
        ({"params": {}}, "exactly one"),
        ({"inputs": {"age": "old", "name": "a"}}, "age"),
        ({"inputs": [1, 2]}, "row 0"),
    ],
)
def test_what_is_no_table_is_refused_by_name(body: Any, words: str) -> None:
    """The refusal says what is missing, and where."""
    with pytest.raises(errors.Invalid, match=words):
        invoked(PERSON, body)


# ------------------------------------------------------------------------------------------- tensors as bytes


def framed(head: Any, blobs: bytes = b"") -> bytes:
    """A body as a front hands it on."""
    document = json.dumps(head).encode()
    return JSON_LENGTH.pack(len(document)) + document + blobs


def tensor(name: str, datatype: str, shape: list[int], blob: bytes) -> dict[str, Any]:
    """A tensor whose data stands behind the JSON."""
    size = {"binary_data_size": len(blob)}
    return {"name": name, "datatype": datatype, "shape": shape, "parameters": size}


def texts(*values: str) -> bytes:
    """Texts after their lengths."""
    return b"".join(struct.pack("<I", len(value.encode())) + value.encode() for value in values)


def inferred(decoder: Decoder, body: bytes) -> Asked:
    """A request with tensors as bytes."""
    return decoder.decode(Door.INFER_BINARY, body)


def test_bytes_and_json_mean_the_same() -> None:
    """A tensor as bytes, one as text, in one request; the columns are those of the JSON form."""
    ages, names = struct.pack("<2d", 1.5, -2.0), texts("a", "żółw")
    mixed = {"name": "name", "datatype": "BYTES", "shape": [2, 1], "data": ["a", "żółw"]}
    for head, blobs in (
        ({"inputs": [tensor("age", "FP64", [2], ages), tensor("name", "BYTES", [2], names)]}, ages + names),
        ({"inputs": [tensor("age", "FP64", [2, 1], ages), mixed]}, ages),
    ):
        asked = inferred(PERSON, framed(head, blobs))
        assert {name: array.tolist() for name, array in asked.columns.items()} == {
            "age": [1.5, -2.0],
            "name": ["a", "żółw"],
        }


def test_a_field_of_bytes_gets_bytes() -> None:
    """What the signature calls bytes is not made text."""
    decoder = Decoder(Signature(inputs=(Field(name="image", type=DataType.BYTES),)))
    blob = struct.pack("<I", 2) + b"\xff\x00"
    asked = inferred(decoder, framed({"inputs": [tensor("image", "BYTES", [1], blob)]}, blob))
    assert asked.columns["image"].tolist() == [b"\xff\x00"]


AGES = struct.pack("<2d", 1.0, 2.0)


@pytest.mark.parametrize(
    ("inputs", "blobs", "words"),
    [
        ([tensor("age", "FP64", [3], AGES)], AGES, "24 bytes, not 16"),
        ([tensor("age", "FP64", [2], AGES)], AGES[:-1], "1 bytes too early"),
        ([tensor("age", "FP64", [2], AGES)], AGES + b"x", "1 bytes after the JSON"),
        ([{**tensor("age", "FP64", [2], AGES), "data": [1, 2]}], AGES, "twice"),
        ([{"name": "age", "datatype": "FP64", "shape": [2]}], b"", "no data"),
        ([tensor("age", "BF16", [2], AGES)], AGES, "not known"),
        ([tensor("age", "FP64", [-2], AGES)], AGES, "negative"),
        ([tensor("age", "FP64", [2], struct.pack("<2d", 1.0, float("nan")))], b"", "too early"),
        ([tensor("age", "BYTES", [1], b"\x05\0\0\0ab")], b"\x05\0\0\0ab", "do not add up"),
        ([tensor("age", "BYTES", [1], b"\x05\0")], b"\x05\0", "do not add up"),
        ([tensor("age", "BYTES", [2], texts("a"))], texts("a"), "2 texts, not 1"),
        ([tensor("age", "BYTES", [1], b"\x01\0\0\0\xff")], b"\x01\0\0\0\xff", "UTF-8"),
        (
            [{"name": "age", "datatype": "FP64", "shape": [1], "parameters": {"binary_data_size": -1}}],
            b"",
            ">= 0",
        ),
    ],
)
def test_bytes_that_do_not_fit_are_refused(inputs: Any, blobs: bytes, words: str) -> None:
    """Too few, too many, of an unknown type, or of lengths that do not add up: a sentence says which."""
    with pytest.raises(errors.Invalid, match=words):
        inferred(ONE, framed({"inputs": inputs}, blobs))


OUTPUTS: Columns = {
    "score": np.array([0.5, 0.25], dtype="float32"),
    "label": np.array(["a", "żółw"], dtype=object),
    "ok": np.array([True, False]),
}


def asking(**more: Any) -> Asked:
    """A request for outputs in a form."""
    age = {"name": "age", "datatype": "FP64", "shape": [2], "data": [1, 2]}
    return ONE.decode(Door.INFER, json.dumps({"inputs": [age], **more}).encode())


def test_the_caller_chooses_the_outputs_and_their_form() -> None:
    """All, some in another order, as JSON or as bytes, each by itself; one that is not there is refused."""
    some = asking(outputs=[{"name": "ok"}, {"name": "score"}])
    assert not some.binary
    answer = json.loads(protocols.encode(Door.INFER, some, OUTPUTS, endpoint="e", semver="1.0.0"))
    assert [out["name"] for out in answer["outputs"]] == ["ok", "score"]
    wanted = [{"name": "label", "parameters": {"binary_data": True}}, {"name": "score"}]
    head, blobs = protocols.encode_binary(asking(outputs=wanted), OUTPUTS, endpoint="e", semver="1.0.0")
    label, score = json.loads(head)["outputs"]
    assert (score["data"], blobs) == ([0.5, 0.25], texts("a", "żółw"))
    assert label == tensor("label", "BYTES", [2], blobs)
    every = asking(parameters={"binary_data_output": True}, id="7")
    head, blobs = protocols.encode_binary(every, OUTPUTS, endpoint="e", semver="1.0.0")
    assert json.loads(head)["id"] == "7"
    assert blobs == struct.pack("<2f", 0.5, 0.25) + texts("a", "żółw") + b"\x01\x00"
    but = [{"name": "score", "parameters": {"binary_data": False}}, {"name": "ok"}]
    mixed = asking(parameters={"binary_data_output": True}, outputs=but)
    assert mixed.binary == frozenset({"ok"})
    with pytest.raises(errors.InvalidInput, match="no such output"):
        protocols.encode(Door.INFER, asking(outputs=[{"name": "x"}]), OUTPUTS, endpoint="e", semver="1")


@given(
    st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=20),
    st.lists(st.text(max_size=20), min_size=1, max_size=20),
)
def test_what_is_packed_is_read_back(numbers: list[float], words: list[str]) -> None:
    """Both ways give back the same values."""
    array = np.array(numbers)
    assert binary.numbers(binary.packed(array), "float64", [len(numbers)], "x").tolist() == numbers
    listed = np.empty(len(words), dtype=object)
    listed[:] = words
    assert binary.strings(binary.packed(listed), [len(words)], "x", as_text=True).tolist() == words


@given(st.binary(max_size=60), st.integers(0, 100))
def test_no_bytes_are_a_surprise(data: bytes, length: int) -> None:
    """Whatever comes after whatever length is a refusal or a request, never another error."""
    try:
        inferred(ONE, JSON_LENGTH.pack(length) + data)
    except errors.ModelkeepError:
        pass
    except msgspec.MsgspecError as problem:  # pragma: no cover - a hole in the decoder
        raise AssertionError from problem
