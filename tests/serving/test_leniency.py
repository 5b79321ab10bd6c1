"""Requests that miss the signature: refused by the field's name on a strict endpoint, made to fit on a
lenient one where that is plain; and how both are counted."""

import json
import math
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelkeep.core import errors
from modelkeep.core.observation import FIELDS_COUNTED_MAX, FieldMisses
from modelkeep.core.signature import DataType, Field, Signature
from modelkeep.serving import leniency, plain
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


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"dataframe_split": {"columns": list(ROW), "data": [[40, 1.5, "pro", "true", 99]]}}, None),
        ({"dataframe_split": {"columns": list(ROW), "data": [["40", 1.5, "pro"]]}}, None),
        ({"dataframe_split": {"columns": [*ROW, "age"], "data": [[40, 1.5, "pro", "true", 41]]}}, None),
        ({"inputs": [{**ROW, "age": "40"}, {n: v for n, v in ROW.items() if n != "income"}]}, "income"),
        ({"inputs": [{n: v for n, v in ROW.items() if n != "income"} | {"age": "40"}]}, "income"),
    ],
)
def test_no_row_is_cut_or_filled_to_fit(body: Any, field: str | None) -> None:
    """A row that is too long, too short, has a column twice or leaves out a field is refused on either
    endpoint, alone or beside others."""
    for lenience in (False, True):
        with pytest.raises(errors.InvalidInput) as refusal:
            DECODER.decode(Door.INVOCATIONS, json.dumps(body).encode(), lenient=lenience)
    assert refusal.value.details.get("field") == field or field is None


EASY = Signature(
    inputs=(
        Field(name="n", type=DataType.INT64),
        Field(name="x", type=DataType.FLOAT64, required=False),
        Field(name="on", type=DataType.BOOL, nullable=True),
        Field(name="at", type=DataType.DATETIME, required=False),
    )
)
EASY_DECODER = Decoder(EASY)


def test_what_a_strict_endpoint_takes_is_taken_beside_what_it_does_not() -> None:
    """Nulls where they may be, and fields that may be left out: by some rows, or by all."""
    rows = [{"n": "1", "on": None}, {"n": 2, "on": True, "x": 3}]
    asked = lenient({"inputs": rows}, decoder=EASY_DECODER)
    assert (asked.columns["n"].tolist(), asked.missed) == ([1, 2], {"n"})
    assert asked.columns["on"].tolist() == [None, True]
    assert (str(asked.columns["x"].tolist()), str(asked.columns["at"][0])) == ("[nan, 3.0]", "NaT")
    strict = EASY_DECODER.decode(Door.PREDICT, json.dumps({"inputs": [rows[1]]}).encode())
    assert {name: str(array[0]) for name, array in strict.columns.items()} == {
        name: str(array[1]) for name, array in asked.columns.items()
    }
    with pytest.raises(errors.InvalidInput, match="null cannot be made float64"):
        lenient({"inputs": [{"n": "1", "on": None, "x": None}]}, decoder=EASY_DECODER)


@pytest.mark.hostile("numbers")
@pytest.mark.parametrize(
    ("field", "sent", "taken"),
    [
        ("n", "9007199254740993.0", 9007199254740993),
        ("n", "9223372036854775807", 2**63 - 1),
        ("n", "1.2e1", 12),
        ("n", "9007199254740993.5", None),
        ("n", "9223372036854775808", None),
        ("n", "1e-999999999", None),
        ("n", "4503599627370497.5", None),
        ("n", "1e999999999", None),
        ("n", "1e99999999999999999999", None),
        ("n", "10_20", None),
        ("n", "\u0664\u0660", None),
        ("n", "0x10", None),
        ("n", "", None),
        ("x", "10_20", None),
        ("x", "1e999", None),
        ("x", "nan", None),
        ("x", "-inf", None),
        ("x", "1" * 401, None),
        ("x", "-.5e1 ", -5.0),
        ("at", "2024-01-15T10:00:00Z", "2024-01-15T10:00:00.000000"),
        ("at", "20240115", None),
        ("at", "1705312800.5", None),
        ("at", 20240115, None),
        ("at", True, None),
        ("at", "yesterday", None),
    ],
)
def test_text_means_what_it_spells_and_nothing_else(field: str, sent: Any, taken: Any) -> None:
    """Numbers digit for digit, as JSON and CSV write them; times as RFC 3339 does. In CSV, where all is
    text, that holds on a strict endpoint too."""
    row = {"n": 1, "on": "true", field: sent}
    csv = f"{','.join(row)}\n{','.join(map(str, row.values()))}\n".encode()
    for body, door in ((json.dumps({"inputs": [row]}).encode(), Door.PREDICT), (csv, Door.INVOCATIONS_CSV)):
        if taken is None:
            with pytest.raises(errors.InvalidInput) as refusal:
                lenient(body, door, EASY_DECODER)
            assert refusal.value.details["field"] == field
        else:
            found = lenient(body, door, EASY_DECODER).columns[field]
            assert (str(found[0]) if field == "at" else found.tolist()[0]) == taken
    if taken is None:
        with pytest.raises(errors.InvalidInput, match=f"row 0, field '{field}'"):
            EASY_DECODER.decode(Door.INVOCATIONS_CSV, csv)
    if field == "at" and taken is None:
        tensors = [{"name": "at", "shape": [1], "datatype": "BYTES", "data": [str(sent)]}]
        tensors.append({"name": "n", "shape": [1], "datatype": "INT64", "data": [1]})
        tensors.append({"name": "on", "shape": [1], "datatype": "BOOL", "data": [True]})
        with pytest.raises(errors.InvalidInput, match="row 0, field 'at'"):
            EASY_DECODER.decode(Door.INFER, json.dumps({"inputs": tensors}).encode())


def test_a_tensor_has_a_type_even_where_its_values_would_do() -> None:
    """Whole numbers in a tensor of doubles are amiss, and one value a row may stand in a list of its own."""
    tensors = [
        {"name": "n", "shape": [2, 1], "datatype": "FP64", "data": [3.0, 4.0]},
        {"name": "on", "shape": [2, 1], "datatype": "BOOL", "data": [True, False]},
    ]
    asked = lenient({"inputs": tensors}, Door.INFER, EASY_DECODER)
    assert (asked.columns["n"].tolist(), asked.missed) == ([3, 4], {"n"})
    assert asked.columns["on"].tolist() == [True, False]


@pytest.mark.hostile("document-bombs")
@pytest.mark.parametrize("depth", [1, 3, 600, 950, 100_000])
@pytest.mark.parametrize("field", [*ROW, "colour"])
def test_what_is_nested_without_end_is_the_callers_fault(depth: int, field: str) -> None:
    """A value is looked into no further than its field has axes."""
    row = json.dumps(ROW | {"plan": "gold", field: "@"}).replace('"@"', "[" * depth + "]" * depth)
    for body in (f'{{"inputs": [{row}]}}', f'{{"dataframe_split": {{"data": [[{row}]]}}}}'):
        for door in (Door.PREDICT, Door.INVOCATIONS):
            try:
                asked = lenient(body.encode(), door)
            except errors.Invalid:
                continue
            assert field == "colour"
            assert asked.missed == {"plan", leniency.UNKNOWN}


def test_columns_are_made_of_what_the_signature_knows_alone() -> None:
    """Every row may name another field that nobody knows: none of them costs a column."""
    rows = [ROW | {f"made up {index}": index} for index in range(50)]
    table = plain.sent(Door.PREDICT, json.dumps({"inputs": rows}).encode(), Signature(inputs=FIELDS))
    assert table is not None
    assert table.more
    assert table.columns.keys() == ROW.keys()


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


Cells = dict[str, list[tuple[Any, Any, bool]]]
TYPED: Cells = {
    "age": [(40, 40, False), (0, 0, False), ("41", 41, True), (151, 151, True), (True, 1, True)],
    "income": [(1.5, 1.5, False), (None, math.nan, False), (2, 2.0, False), ("2.5", 2.5, True)],
    "plan": [("pro", "pro", False), ("gold", "gold", True), (7, "7", True)],
    "active": [(True, True, False), (False, False, False), ("true", True, True), (0, False, True)],
}
TEXT: Cells = {
    "age": [("40", 40, False), ("41.0", 41, False), ("151", 151, True)],
    "income": [("1.5", 1.5, False), ("", math.nan, False)],
    "plan": [("pro", "pro", False), ("gold", "gold", True)],
    "active": [("true", True, False), ("0", False, False)],
}
"""By field: what is sent, what comes of it, and whether that is a miss. In CSV text is not amiss."""
MADE_TO_FIT = ("", "another column", "another member")
HARMS = {
    "records": (*MADE_TO_FIT, "dropped", "dropped by a row"),
    "columns": (*MADE_TO_FIT, "dropped", "shorter"),
    "lists": ("", "another member", "longer", "shorter"),
    "split": (*MADE_TO_FIT, "dropped", "longer", "shorter", "twice"),
    "csv": ("", "another column", "dropped", "longer", "shorter", "twice"),
}
"""By form: what may be done to a table as a whole. What is not made to fit has to be refused."""


class Made(NamedTuple):
    """A request, and what has to come of it: a refusal where `table` is None."""

    door: Door
    body: bytes
    table: dict[str, str] | None
    missed: set[str]


@st.composite
def nearly_fitting(draw: st.DrawFn) -> Made:
    """Requests of any form, with values that miss here and there, and at most one harm to their tables."""
    form, harm = draw(st.sampled_from([(form, harm) for form in HARMS for harm in HARMS[form]]))
    count = draw(st.integers(1, 3))
    header: list[str] = list(ROW) if form == "lists" else list(draw(st.permutations(list(ROW))))
    kinds = TEXT if form == "csv" else TYPED
    cells = {name: [draw(st.sampled_from(kinds[name])) for _ in range(count)] for name in header}
    missed = {name for name in header if any(miss for _, _, miss in cells[name])}
    fitted = {name: repr([taken for _, taken, _ in cells[name]]) for name in ROW}
    rows: list[list[Any]] = [[cells[name][index][0] for name in header] for index in range(count)]
    victim, place = draw(st.integers(0, count - 1)), draw(st.integers(0, len(ROW) - 1))
    match harm:
        case "another column":
            header, rows = [*header, "colour"], [[*row, "red"] for row in rows]
        case "dropped":
            header = header[:place] + header[place + 1 :]
            rows = [row[:place] + row[place + 1 :] for row in rows]
        case "longer":
            rows[victim].append("99")
        case "shorter":
            rows[victim].pop()
        case "twice":
            header, rows = [*header, header[place]], [[*row, row[place]] for row in rows]
    records = [dict(zip(header, row, strict=False)) for row in rows]
    if harm == "dropped by a row":
        del records[victim][header[place]]
    tables: dict[str, Any] = {
        "records": {"inputs": records},
        "columns": {"inputs": {name: [row[name] for row in records if name in row] for name in header}},
        "lists": {"inputs": rows},
        "split": {"dataframe_split": {"columns": header, "data": rows}},
    }
    if form == "csv":
        door, body = Door.INVOCATIONS_CSV, "\n".join(",".join(line) for line in (header, *rows)).encode()
    else:
        doors = [Door.INVOCATIONS] if form == "split" else [Door.PREDICT, Door.INVOCATIONS]
        door = draw(st.sampled_from(doors))
        more = {"colour": "red"} if harm == "another member" else {}
        body = json.dumps(tables[form] | more).encode()
    unknown = {leniency.UNKNOWN} if harm.startswith("another") else set()
    return Made(door, body, fitted if harm in MADE_TO_FIT else None, missed | unknown)


@settings(max_examples=200)
@given(nearly_fitting())
def test_nothing_is_dropped_or_made_up_unseen(made: Made) -> None:
    """A table without its harms comes out as it was meant, and all that was amiss is told, as is what a
    strict endpoint refuses; what is ragged, stands twice or is left out is refused whoever is asked."""
    if made.table is None:
        for lenience in (True, False):
            with pytest.raises(errors.Invalid):
                DECODER.decode(made.door, made.body, lenient=lenience)
        return
    asked = lenient(made.body, made.door)
    assert {name: repr(array.tolist()) for name, array in asked.columns.items()} == made.table
    assert asked.missed == made.missed
    if made.missed:
        with pytest.raises(errors.Invalid):
            DECODER.decode(made.door, made.body)


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
