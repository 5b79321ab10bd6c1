"""Signatures: what is read and refused, what a change means for callers, and MLflow's form.

Which version number a change leads to is tested in test_bump.py.
"""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from modelkeep.core import codec, errors
from modelkeep.core import signature as sig
from modelkeep.core.signature import BREAKS_CALLERS, ChangeKind, DataType, Field, Side, Signature

pytestmark = pytest.mark.req("V2")


def field(name: str = "x", type: str = "float64", **rest: Any) -> Field:  # noqa: A002 - the field's own word
    """A field with as little said as possible."""
    return Field(name=name, type=DataType(type), **rest)


def inputs(*fields: Field, **rest: Any) -> Signature:
    """A signature of inputs alone."""
    return Signature(inputs=fields, **rest)


# ------------------------------------------------------------ reading and checking


def test_the_short_form_is_the_long_form() -> None:
    """A mapping of names says the same as a list of fields, in the same order."""
    short = {
        "inputs": {"age": "int64", "plan": {"type": "string", "categories": ["a", "b"]}},
        "outputs": {"p": "float64"},
    }
    long = {
        "inputs": [
            {"name": "age", "type": "int64"},
            {"name": "plan", "type": "string", "categories": ["a", "b"]},
        ],
        "outputs": [{"name": "p", "type": "float64"}],
    }
    assert sig.check_signature(short) == sig.check_signature(long)
    assert [f.name for f in sig.check_signature(short).inputs] == ["age", "plan"]


def test_a_side_may_be_left_out() -> None:
    """Inputs or outputs alone are a signature; null means the same as left out."""
    assert sig.check_signature({"inputs": {"a": "bool"}, "outputs": None}) == inputs(field("a", "bool"))


BAD: list[tuple[object, str]] = [
    (3, "is a mapping"),
    ({}, "has no fields"),
    ({"inputs": []}, "has no fields"),
    ({"input": {"a": "int64"}}, "unknown field `input`"),
    ({"inputs": {"a": "number"}}, "Invalid enum value 'number'"),
    ({"inputs": {"a": 1}}, "'a' needs a type after it"),
    ({"inputs": {"a": {"name": "b", "type": "int64"}}}, "'a' needs a type after it"),
    ({"inputs": {1: "int64"}}, "Expected `str`, got `int`"),
    ({"inputs": [{"name": "a", "type": "int64", "typo": 1}]}, "unknown field `typo`"),
    ({"inputs": [{"name": "a"}]}, "missing required field `type`"),
    (inputs(field("a"), field("a")), "The input field 'a' stands twice"),
    (inputs(field("")), "needs a name"),
    (inputs(field(" a")), "needs a name"),
    (inputs(field("a\x1b[2J")), "control or invisible"),
    (inputs(field("a\u200b")), "control or invisible"),
    (inputs(field("a\u202eb")), "control or invisible"),
    (inputs(field("n" * 257)), "a name of 257 characters"),
    (inputs(field(minimum=2, maximum=1)), "the minimum 2 above the maximum 1"),
    (inputs(field(minimum=float("nan"))), "a minimum that is not finite"),
    (inputs(field(maximum=float("inf"))), "a maximum that is not finite"),
    (inputs(field(maximum=2**63)), "which no float64 can reach"),
    (inputs(field(type="int64", minimum=0.5)), "is not a whole number"),
    (inputs(field(type="int32", maximum=2**31)), "which no int32 can reach"),
    (inputs(field(type="string", minimum=0)), "can have no minimum or maximum"),
    (inputs(field(type="bool", maximum=1)), "can have no minimum or maximum"),
    (inputs(field(type="string", categories=())), "an empty list of categories"),
    (inputs(field(type="string", categories=("a", "a"))), "the category 'a' twice"),
    (inputs(field(type="string", categories=("a", 1))), "its category 1 is not"),
    (inputs(field(type="int64", categories=("a",))), "its category 'a' is text"),
    (inputs(field(type="int64", categories=(True,))), "its category True is not"),
    (inputs(field(type="int32", categories=(2**40,))), "is not"),
    (inputs(field(type="float64", categories=(1,))), "only strings and integers can"),
    (inputs(field(type="string", categories=("c" * 257,))), "a category of 257 characters"),
    (inputs(field(type="int64", categories=tuple(range(10_001)))), "10,001 categories"),
    (inputs(field(shape=(0,))), "an axis of length 0"),
    (inputs(field(shape=(-2,))), "an axis of length -2"),
    (inputs(field(shape=(2**31,))), "an axis of length 2147483648"),
    (inputs(field(shape=(1,) * 9)), "has 9 axes"),
    (inputs(field(meaning="m" * 1_001)), "a meaning of 1,001 characters"),
    (inputs(field(meaning="a\x00b")), "a meaning with control"),
    (inputs(*(field(f"f{n}") for n in range(5_001))), "5,001 input fields"),
    (Signature(outputs=(field("p", shape=(0,)),)), "The output field 'p'"),
]


@pytest.mark.parametrize(("value", "why"), BAD)
def test_bad_signatures(value: object, why: str) -> None:
    """Each contradiction and each passed limit is refused by a sentence that names the field."""
    with pytest.raises(errors.InvalidSignature) as caught:
        sig.check_signature(value)
    assert why in caught.value.message
    assert caught.value.message.isprintable()


def test_limits_are_inclusive() -> None:
    """What is exactly as large as allowed passes."""
    whole = inputs(
        *(field(f"f{n}") for n in range(4_997)),
        field("n" * 256, "int32", minimum=-(2**31), maximum=2**31 - 1, shape=(-1,) * 8),
        field("c", "int64", categories=tuple(range(10_000))),
        field("m", meaning="m" * 1_000),
    )
    assert sig.check_signature(whole) is whole


names = st.sampled_from("abcdef")
numbers = st.one_of(st.none(), st.integers(-5, 5))


@st.composite
def fields(draw: st.DrawFn, name: str) -> Field:
    """Any field of that name that `check_signature` accepts."""
    kind = draw(st.sampled_from(DataType))
    low = high = categories = None
    if kind in (DataType.INT32, DataType.INT64, DataType.FLOAT32, DataType.FLOAT64):
        low, high = draw(numbers), draw(numbers)
        if low is not None and high is not None and low > high:
            low, high = high, low
    if kind is DataType.STRING and draw(st.booleans()):
        categories = tuple(draw(st.lists(st.sampled_from("uvwxyz"), min_size=1, unique=True)))
    return Field(
        name=name,
        type=kind,
        required=draw(st.booleans()),
        nullable=draw(st.booleans()),
        minimum=low,
        maximum=high,
        categories=categories,
        shape=draw(st.one_of(st.none(), st.lists(st.sampled_from([-1, 1, 3]), max_size=2).map(tuple))),
        meaning=draw(st.one_of(st.none(), st.sampled_from(["euros", "cents"]))),
    )


@st.composite
def signatures(draw: st.DrawFn) -> Signature:
    """Any signature with up to four fields a side."""
    sides = [
        tuple(draw(fields(name)) for name in draw(st.lists(names, unique=True, min_size=1, max_size=4)))
        for _ in range(2)
    ]
    return Signature(inputs=sides[0], outputs=sides[1], positional=draw(st.booleans()))


@given(signatures())
def test_round_trip_through_yaml_and_json(value: Signature) -> None:
    """A signature read back from its YAML or JSON is the same."""
    assert sig.check_signature(codec.parse_yaml(codec.render_yaml(value))) == value
    assert codec.decode(codec.encode(value), Signature) == value


# ------------------------------------------------------------ comparison

K = ChangeKind
I, O = Side.INPUT, Side.OUTPUT  # noqa: E741 - two letters keep the table legible
BASE = field()

CHANGES: list[tuple[Field, Field, ChangeKind, bool, bool, str]] = [
    # before, after, kind, breaks as input, breaks as output, part of the sentence
    (field(type="int32"), field(type="int64"), K.WIDENED, False, True, "widened from int32 to int64"),
    (field(type="int32"), field(type="float64"), K.WIDENED, False, True, "widened from int32 to float64"),
    (field(type="float32"), field(type="float64"), K.WIDENED, False, True, "widened"),
    (field(type="int64"), field(type="int32"), K.NARROWED, True, True, "narrowed from int64 to int32"),
    (field(type="float64"), field(type="float32"), K.NARROWED, True, True, "narrowed"),
    (field(type="int64"), field(type="float64"), K.RETYPED, True, True, "from int64 to float64"),
    (field(type="int32"), field(type="float32"), K.RETYPED, True, True, "from int32 to float32"),
    (field(type="string"), field(type="bytes"), K.RETYPED, True, True, "from string to bytes"),
    (field(), field(required=False), K.MADE_OPTIONAL, False, True, "is now optional"),
    (field(required=False), field(), K.MADE_REQUIRED, True, False, "is now required"),
    (field(), field(nullable=True), K.NULLABLE_ADDED, False, True, "may now be null"),
    (field(nullable=True), field(), K.NULLABLE_REMOVED, True, False, "may no longer be null"),
    (field(), field(minimum=0), K.RANGE_NARROWED, True, True, "from any value to 0 and above"),
    (field(), field(maximum=9), K.RANGE_NARROWED, True, True, "from any value to 9 and below"),
    (field(minimum=0), field(), K.RANGE_WIDENED, False, True, "from 0 and above to any value"),
    (field(maximum=9), field(maximum=10), K.RANGE_WIDENED, False, True, "from 9 and below to 10 and below"),
    (field(minimum=0, maximum=9), field(minimum=0, maximum=8), K.RANGE_NARROWED, True, True, "0..9 to 0..8"),
    (
        field(type="string", categories=("a", "b")),
        field(type="string", categories=("a",)),
        K.CATEGORIES_REMOVED,
        True,
        True,
        "lost the category 'b'",
    ),
    (
        field(type="string", categories=("a",)),
        field(type="string", categories=("b", "a", "c")),
        K.CATEGORIES_ADDED,
        False,
        True,
        "gained the categories 'b', 'c'",
    ),
    (
        field(type="string"),
        field(type="string", categories=("a",)),
        K.CATEGORIES_REMOVED,
        True,
        True,
        "one of 'a'",
    ),
    (
        field(type="string", categories=("a",)),
        field(type="string"),
        K.CATEGORIES_ADDED,
        False,
        True,
        "any value",
    ),
    (field(shape=(3,)), field(shape=(-1,)), K.SHAPE_WIDENED, False, True, "from 3 to any"),
    (field(shape=(-1,)), field(shape=(3,)), K.SHAPE_NARROWED, True, True, "from any to 3"),
    (field(shape=(3,)), field(shape=(4,)), K.SHAPE_CHANGED, True, True, "from 3 to 4"),
    (field(shape=(3, -1)), field(shape=(-1, 3)), K.SHAPE_CHANGED, True, True, "from 3 x any to any x 3"),
    (field(), field(shape=(3,)), K.SHAPE_CHANGED, True, True, "from one value to 3"),
    (
        field(meaning="euros"),
        field(meaning="cents"),
        K.MEANING_CHANGED,
        True,
        True,
        "from 'euros' to 'cents'",
    ),
    (field(meaning="mW"), field(meaning="MW"), K.MEANING_CHANGED, True, True, "from 'mW' to 'MW'"),
    (field(), field(meaning="euros"), K.MEANING_STATED, False, False, "now states its meaning: 'euros'"),
    (field(meaning="euros"), field(), K.MEANING_DROPPED, False, False, "no longer states its meaning"),
]


@pytest.mark.parametrize(("before", "after", "kind", "as_input", "as_output", "text"), CHANGES)
def test_changes_of_a_field(
    before: Field, after: Field, kind: ChangeKind, as_input: bool, as_output: bool, text: str
) -> None:
    """One change of a field is found as one change, breaks the right side, and reads well."""
    (on_input,) = sig.compare(Signature(inputs=(before,)), Signature(inputs=(after,)))
    (on_output,) = sig.compare(Signature(outputs=(before,)), Signature(outputs=(after,)))
    assert (on_input.side, on_input.field, on_input.kind, on_input.breaks) == (I, "x", kind, as_input)
    assert (on_output.side, on_output.field, on_output.kind, on_output.breaks) == (O, "x", kind, as_output)
    assert text in on_input.sentence
    assert on_input.sentence.startswith("Input 'x' ")
    assert on_output.sentence.startswith("Output 'x' ")
    assert on_input.sentence.endswith(".")


@pytest.mark.parametrize(
    ("before", "after", "kinds"),
    [
        ((field("a"), field("b")), (field("a"),), [K.REMOVED]),
        ((field("a"),), (field("a"), field("b")), [K.ADDED_REQUIRED]),
        ((field("a"),), (field("a"), field("b", required=False)), [K.ADDED_OPTIONAL]),
        ((field("a"), field("b")), (field("b"), field("a")), [K.REORDERED]),
        ((field("a"),), (field("b", required=False), field("a")), [K.ADDED_OPTIONAL, K.REORDERED]),
        ((field("a"), field("b")), (field("b"),), [K.REMOVED]),
        ((field("a"),), (field("c"),), [K.REMOVED, K.ADDED_REQUIRED]),
        (
            (field("a", minimum=0, maximum=5),),
            (field("a", minimum=2, maximum=9),),
            [K.RANGE_NARROWED, K.RANGE_WIDENED],
        ),
        (
            (field("a", "string", categories=("x", "y")),),
            (field("a", "string", categories=("y", "z")),),
            [K.CATEGORIES_REMOVED, K.CATEGORIES_ADDED],
        ),
    ],
)
def test_changes_of_a_side(
    before: tuple[Field, ...], after: tuple[Field, ...], kinds: list[ChangeKind]
) -> None:
    """Fields that come, go or change places are found, and nothing else is."""
    changes = sig.compare(Signature(inputs=before), Signature(inputs=after))
    assert [change.kind for change in changes] == kinds


def test_order_counts_only_where_rows_may_be_lists() -> None:
    """Fields found by name may change places; taking lists away breaks callers, allowing them does not."""
    a, b = field("a"), field("b")
    named = {"positional": False}
    (moved,) = sig.compare(inputs(a, b, **named), inputs(b, a, **named))
    assert (moved.kind, moved.breaks) == (K.REARRANGED, False)
    (dropped,) = sig.compare(inputs(a), inputs(a, **named))
    assert (dropped.kind, dropped.breaks) == (K.POSITIONS_DROPPED, True)
    (allowed,) = sig.compare(inputs(a, **named), inputs(a))
    assert (allowed.kind, allowed.breaks) == (K.POSITIONS_ADDED, False)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (field(meaning="per  year"), field(meaning="per year")),
        (field(shape=()), field(shape=None)),
        (field(minimum=0), field(minimum=0.0)),
        (field(type="string", categories=("a", "b")), field(type="string", categories=("b", "a"))),
    ],
)
def test_spelling_is_no_change(before: Field, after: Field) -> None:
    """Two ways of stating the same promise are the same promise."""
    assert sig.compare(inputs(before), inputs(after)) == ()


def test_long_lists_are_counted() -> None:
    """A sentence about many categories names a few and counts the rest."""
    before = field(type="string", categories=tuple(f"c{n}" for n in range(1_000)))
    after = field(type="string", categories=("c0",))
    (change,) = sig.compare(inputs(before), inputs(after))
    assert change.sentence.endswith("'c4', 'c5' and 994 more.")


def test_the_table_is_whole() -> None:
    """Every kind of change says whether it breaks callers."""
    assert set(BREAKS_CALLERS) == set(ChangeKind)


@given(signatures())
def test_equal_signatures_have_no_changes(value: Signature) -> None:
    """A signature is compatible with itself."""
    assert sig.compare(value, value) == ()
    assert sig.compatible(value, value)


@given(signatures(), signatures())
def test_changes_agree_with_compatibility(old: Signature, new: Signature) -> None:
    """Compatible means that no change breaks callers, and each change names a field that exists."""
    changes = sig.compare(old, new)
    assert sig.compatible(old, new) == (not any(change.breaks for change in changes))
    known = {f.name for f in (*old.inputs, *old.outputs, *new.inputs, *new.outputs)} | {""}
    assert {change.field for change in changes} <= known
    assert all(change.sentence.isprintable() for change in changes)


@given(signatures(), fields("zz"))
def test_adding_and_removing_are_opposites(old: Signature, extra: Field) -> None:
    """A new optional input at the end breaks nobody; taking it away again does; a new output never breaks."""
    wider = replace(old, inputs=(*old.inputs, replace(extra, required=False)))
    assert sig.compatible(old, wider)
    assert not sig.compatible(wider, old)
    more = replace(old, outputs=(*old.outputs, extra))
    assert sig.compatible(old, more)
    assert not sig.compatible(more, old)


def accepts(f: Field, value: float | None) -> bool:
    """Whether a caller may send the value: the plain reading of a numeric field."""
    if value is None:
        return f.nullable
    return (f.minimum is None or value >= f.minimum) and (f.maximum is None or value <= f.maximum)


@given(numbers, numbers, numbers, numbers, st.booleans(), st.booleans())
def test_compatible_inputs_accept_all_that_was_accepted(
    low: int | None, high: int | None, new_low: int | None, new_high: int | None, null: bool, new_null: bool
) -> None:
    """An input is compatible exactly when each value that the old one accepted is accepted by the new one."""
    before = field(minimum=low, maximum=high, nullable=null)
    after = field(minimum=new_low, maximum=new_high, nullable=new_null)
    if any(a is not None and b is not None and a > b for a, b in ((low, high), (new_low, new_high))):
        return
    probes = [None, *range(-7, 8)]
    subset = all(accepts(after, value) for value in probes if accepts(before, value))
    assert sig.compatible(inputs(before), inputs(after)) == subset
