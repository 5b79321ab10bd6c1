"""Requests that miss the signature: refused by the field's name on a strict endpoint, made to fit on a
lenient one where that is plain; and how both are counted."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelkeep.core import errors
from modelkeep.core.observation import FIELDS_COUNTED_MAX, FieldMisses
from modelkeep.core.signature import DataType, Field, Signature
from modelkeep.serving import leniency
from modelkeep.serving.messages import Door
from modelkeep.serving.protocols import Asked, Decoder

pytestmark = pytest.mark.req("S1")

FIELDS = (
    Field(name="age", type=DataType.INT32, minimum=0, maximum=150),
    Field(name="income", type=DataType.FLOAT64, nullable=True),
    Field(name="plan", type=DataType.STRING, categories=("basic", "pro")),
    Field(name="active", type=DataType.BOOL),
)
DECODER = Decoder(Signature(inputs=FIELDS))
ROW: dict[str, Any] = {"age": 40, "income": 1.5, "plan": "pro", "active": True}


def lenient(body: Any, door: Door = Door.PREDICT, decoder: Decoder = DECODER) -> Asked:
    """Decode as a lenient endpoint does."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return decoder.decode(door, data, lenient=True)


def first(asked: Asked) -> dict[str, Any]:
    """The first row."""
    return {name: array.tolist()[0] for name, array in asked.columns.items()}


@pytest.mark.parametrize(
    ("sent", "taken", "missed"),
    [
        ({"age": "40"}, {"age": 40}, {"age"}),
        ({"age": " 40.0"}, {"age": 40}, {"age"}),
        ({"age": True}, {"age": 1}, {"age"}),
        ({"age": 151}, {"age": 151}, {"age"}),
        ({"income": "2.5"}, {"income": 2.5}, {"income"}),
        ({"plan": "gold"}, {"plan": "gold"}, {"plan"}),
        ({"plan": 7}, {"plan": "7"}, {"plan"}),
        ({"active": 0}, {"active": False}, {"active"}),
        ({"active": "TRUE"}, {"active": True}, {"active"}),
        ({"colour": "red"}, {}, {leniency.UNKNOWN}),
        ({"age": "7", "plan": "x", "colour": 1}, {"age": 7, "plan": "x"}, {"age", "plan", leniency.UNKNOWN}),
        ({}, {}, set()),
    ],
)
def test_what_is_plainly_meant_is_made_to_fit(
    sent: dict[str, Any], taken: dict[str, Any], missed: set[str]
) -> None:
    """Types are converted, unknown columns left out, categories and ranges passed on, in every form; a strict
    endpoint refuses each of them."""
    row, wanted = ROW | sent, ROW | taken
    columns = {name: [value] for name, value in row.items()}
    bodies = [
        (Door.PREDICT, {"inputs": [row]}),
        (Door.PREDICT, {"inputs": columns}),
        (Door.INVOCATIONS, {"dataframe_records": [row]}),
        (Door.INVOCATIONS, {"instances": [row]}),
        (Door.INVOCATIONS, {"dataframe_split": {"columns": list(row), "data": [list(row.values())]}}),
    ]
    for door, body in bodies:
        asked = lenient(body, door)
        assert (first(asked), asked.rows, asked.missed) == (wanted, 1, missed)
        if missed:
            with pytest.raises(errors.InvalidInput):
                DECODER.decode(door, json.dumps(body).encode())


def test_csv_and_tensors_are_made_to_fit_as_well() -> None:
    """A further column of a CSV file, and a tensor of another type."""
    csv = lenient(b"age,income,plan,active,colour\n40.0,,gold,true,red\n", Door.INVOCATIONS_CSV)
    assert csv.missed == {leniency.UNKNOWN, "plan"}
    assert first(csv)["plan"] == "gold"
    two = Decoder(Signature(inputs=(Field(name="x", type=DataType.INT64, shape=(2,), maximum=9),)))
    tensor = {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [3.0, 40.0]}
    asked = lenient({"inputs": [tensor], "id": "a"}, Door.INFER, two)
    assert (first(asked), asked.missed, asked.identity) == ({"x": [3, 40]}, {"x"}, "a")


@pytest.mark.hostile("wrong-kinds")
@pytest.mark.parametrize(
    ("sent", "field"),
    [
        ({"age": "forty"}, "age"),
        ({"age": 1.5}, "age"),
        ({"age": None}, "age"),
        ({"age": 2**31}, "age"),
        ({"age": "9" * 5000}, "age"),
        ({"age": [1]}, "age"),
        ({"income": "nan"}, "income"),
        ({"income": "inf"}, "income"),
        ({"income": {"x": 1}}, "income"),
        ({"active": "maybe"}, "active"),
        ({"plan": None}, "plan"),
    ],
)
def test_what_has_no_plain_meaning_is_refused_by_its_field(sent: dict[str, Any], field: str) -> None:
    """Lenient is not believing anything: no guess, no overflow, no number that is none."""
    with pytest.raises(errors.InvalidInput) as refusal:
        lenient({"inputs": [ROW, ROW | sent]})
    assert (refusal.value.details["field"], refusal.value.details.get("row", 1)) == (field, 1)


@pytest.mark.hostile("wrong-kinds")
@pytest.mark.parametrize(
    "body",
    [
        {},
        {"inputs": []},
        {"inputs": 3},
        {"inputs": [[1]]},
        {"inputs": [ROW, 1]},
        {"inputs": {"age": [1]}},
        b"{",
    ],
)
def test_what_is_no_table_is_refused(body: Any) -> None:
    """Shapes are not guessed, and what is missing is not made up."""
    with pytest.raises(errors.Invalid):
        lenient(body)


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("ab"), inner, max_size=2),
    max_leaves=6,
)


@given(
    rows=st.lists(st.dictionaries(st.sampled_from([*ROW, "b"]), PLAIN, max_size=5) | PLAIN, max_size=3),
    door=st.sampled_from([Door.PREDICT, Door.INVOCATIONS]),
)
def test_whatever_comes_fits_or_is_refused(rows: Any, door: Door) -> None:
    """There is no third way: what is let through is of the signature's types, and every refusal is the
    caller's; what a strict endpoint takes, a lenient one takes as it is."""
    body = json.dumps({"inputs": rows}).encode()
    try:
        asked = lenient(body, door)
    except errors.Invalid:
        return
    assert {name: array.dtype.kind for name, array in asked.columns.items()} == {
        "age": "i",
        "income": "f",
        "plan": "O",
        "active": "b",
    }
    if not asked.missed:
        strict = DECODER.decode(door, body)
        assert {n: str(a) for n, a in strict.columns.items()} == {n: str(a) for n, a in asked.columns.items()}


def test_misses_are_counted_by_field_and_never_by_what_a_caller_sends() -> None:
    """Names of unknown columns are no labels, and a signature of thousands of fields has few."""
    many = tuple(Field(name=f"f{index}", type=DataType.INT64) for index in range(FIELDS_COUNTED_MAX + 5))
    misses = leniency.Misses(Signature(inputs=many))
    for field in ("f0", f"f{FIELDS_COUNTED_MAX}", f"f{FIELDS_COUNTED_MAX + 1}", "made up", None):
        misses.refuse(field)
    misses.fit({"f0", "made up", f"f{FIELDS_COUNTED_MAX}", f"f{FIELDS_COUNTED_MAX + 1}"})

    told = misses.hand_over()
    assert told.refused == {"f0": 1, leniency.OTHERS: 2, leniency.UNKNOWN: 1, leniency.WHOLE: 1}
    assert told.fitted == {"f0": 1, leniency.UNKNOWN: 1, leniency.OTHERS: 1}
    assert misses.hand_over() == FieldMisses()
    assert told.plus(told).refused["f0"] == 2
