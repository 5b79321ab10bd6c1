"""Golden requests: reading the file, and comparing answers within a tolerance."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelkeep.core import errors
from modelkeep.core.golden import GOLDEN_MAX_BYTES, REQUESTS_MAX, Tolerance, read_golden, worst_difference

EXACT = Tolerance(relative=0, absolute=0)
LOOSE = Tolerance(relative=0.01, absolute=0.001)

answers = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-100, 100)
    | st.floats(allow_infinity=False)
    | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.req("S2")
@given(answers)
def test_an_answer_never_differs_from_itself(answer: Any) -> None:
    """Whatever a version answers, also nothing and NaN, agrees with itself under the strictest tolerance."""
    assert worst_difference(answer, answer, EXACT) is None


@pytest.mark.req("S2")
@given(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6))
def test_numbers_agree_within_the_tolerance_alone(wanted: float, got: float) -> None:
    """A difference is told exactly where the distance is above the tolerance."""
    told = worst_difference([wanted], [got], LOOSE) is not None
    assert told == (abs(wanted - got) / (0.001 + 0.01 * abs(wanted)) > 1)


DIFFERENCES: list[tuple[Any, Any, str]] = [
    ([1.0, 2.0], [1.0, 2.5], "row 1 is 2.5 instead of 2.0"),
    ([1.0, 2.0, 9.0], [1.5, 2.0, 90.0], "row 2 is 90.0 instead of 9.0"),
    ([{"a": 1, "b": "x"}], [{"a": 1, "b": "y"}], 'row 0, field \'b\' is "y" instead of "x"'),
    ({"a": [1, 2]}, {"a": [1, 3]}, "row 1, field 'a' is 3 instead of 2"),
    ([{"a": 1}], [{}], "row 0, field 'a' is null instead of 1"),
    ([True], [1], "row 0 is 1 instead of true"),
    ([1.0], [None], "row 0 is null instead of 1.0"),
    ([1.0], [math.inf], "row 0 is inf instead of 1.0"),
    ([1], [1, 2], "the answer is [1,2] instead of [1]"),
    ([[1, 2]], [[1, 5]], "row 0 is 5 instead of 2"),
    (["x" * 100], ["y"], 'row 0 is "y" instead of "' + "x" * 56 + "..."),
]


@pytest.mark.req("S2")
@pytest.mark.parametrize(("wanted", "got", "text"), DIFFERENCES)
def test_the_worst_difference_names_its_place(wanted: Any, got: Any, text: str) -> None:
    """Row, field and both values stand in one phrase."""
    assert str(worst_difference(wanted, got, LOOSE)) == text


FILES: list[tuple[bytes, str]] = [
    (b"{", "cannot be read"),
    (b'{"requests": [{"inputs": [1]}]}', "outputs"),
    (b'{"requests": [], "tolerance": 1}', "tolerance"),
    (b'{"requests": [], "relative": -1}', "from 0"),
    (
        b'{"requests": [' + b",".join([b'{"inputs": [1], "outputs": [1]}'] * (REQUESTS_MAX + 1)) + b"]}",
        "at most",
    ),
    (b" " * (GOLDEN_MAX_BYTES + 1), "at most"),
]


@pytest.mark.req("S2")
@pytest.mark.parametrize(("data", "text"), FILES)
def test_a_file_that_is_none_says_why(data: bytes, text: str) -> None:
    """Not JSON, another shape, a tolerance below nothing, too many and too much."""
    with pytest.raises(errors.Invalid, match=text):
        read_golden(data)


def test_a_file_is_read_with_its_tolerances() -> None:
    """What it leaves out has a default."""
    golden = read_golden(b'{"requests": [{"inputs": [[1]], "outputs": [2]}], "absolute": 0.5}')
    assert (golden.absolute, golden.relative, golden.requests[0].outputs) == (0.5, 1e-4, [2])
