"""Stable and shadow, answer by answer: what counts as equal, who did worse, and that no answer stops the
comparison."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelkeep.core import codec
from modelkeep.core.observation import PairCounts
from modelkeep.core.routing import VersionKey
from modelkeep.core.signature import DataType, Field, Signature
from modelkeep.serving.messages import Door
from modelkeep.serving.pairing import compared
from modelkeep.serving.records import Pair, Reply

STABLE, SHADOW = VersionKey("version:1"), VersionKey("version:2")


def pair(
    ours: bytes,
    theirs: bytes,
    *,
    statuses: tuple[int, int] = (200, 200),
    times: tuple[float, float] = (1, 2),
    door: Door = Door.PREDICT,
) -> Pair:
    """One request's two answers."""
    stable = Reply(STABLE, statuses[0], times[0], ours)
    shadow = Reply(SHADOW, statuses[1], times[1], theirs)
    return Pair("churn", None, 1, 1, 0, 10.0, door, stable, shadow)


def said(*values: object) -> bytes:
    """An answer of these rows."""
    return codec.encode({"outputs": list(values)})


def signature(kind: DataType) -> Signature:
    """One output of this type."""
    return Signature(outputs=(Field(name="y", type=kind),))


@pytest.mark.req("S5")
@pytest.mark.parametrize(
    ("kind", "ours", "theirs", "equal"),
    [
        (DataType.FLOAT32, 0.123456, 0.1234561, True),
        (DataType.FLOAT32, 0.1234, 0.1236, False),
        (DataType.FLOAT64, 0.123456, 0.1234561, False),
        (DataType.FLOAT64, 1.0, 1.0 + 1e-12, True),
        (DataType.INT64, 2**60, 2**60 + 1, False),
        (DataType.INT64, 3, 3, True),
        (DataType.STRING, "a", "a", True),
        (DataType.STRING, "a", "b", False),
        (DataType.BOOL, True, True, True),
        (DataType.BOOL, True, False, False),
        (DataType.FLOAT32, None, None, True),
        (DataType.FLOAT32, None, 0.0, False),
    ],
)
def test_equal_is_a_matter_of_the_type(kind: DataType, ours: object, theirs: object, equal: bool) -> None:
    """Numbers within the precision of their type; everything else exactly."""
    counts = compared(pair(said(ours), said(theirs)), signature(kind))
    assert (counts.compared, counts.disagreements) == (1, int(not equal))


@pytest.mark.req("S5")
@pytest.mark.parametrize(
    ("statuses", "counts"),
    [
        ((200, 500), {"only_shadow_failed": 1}),
        ((500, 200), {"only_stable_failed": 1}),
        ((500, 503), {"both_failed": 1}),
        ((200, 422), {"only_shadow_failed": 1}),
    ],
)
def test_failures_are_counted_on_the_side_that_failed(
    statuses: tuple[int, int], counts: dict[str, int]
) -> None:
    """The discordant pairs are what a paired test needs; nothing is compared where somebody failed."""
    found = compared(pair(b"", b"", statuses=statuses), None)
    wanted = PairCounts(version=SHADOW, pairs=1, stable_ms_sum=1, shadow_ms_sum=2, **counts)
    assert found == wanted


@pytest.mark.req("S5")
def test_slow_is_counted_on_the_side_that_is_slow() -> None:
    """Above the route's own bound, by the time of the version alone."""
    counts = [compared(pair(said(1), said(1), times=times), None) for times in ((1, 11), (11, 1), (11, 12))]
    assert [(c.only_stable_slow, c.only_shadow_slow) for c in counts] == [(0, 1), (1, 0), (0, 0)]


@pytest.mark.req("S5")
def test_differences_are_summed_over_all_numbers() -> None:
    """Rows, columns, tensors: the same two answers give the same sums in every form."""
    forms = [
        (Door.PREDICT, {"outputs": [[1.0, 2.0], [3.0, 4.0]]}, {"outputs": [[1.5, 2.0], [3.0, 3.0]]}),
        (Door.PREDICT, {"outputs": {"y": [1.0, 2.0, 3.0, 4.0]}}, {"outputs": {"y": [1.5, 2.0, 3.0, 3.0]}}),
        (Door.INVOCATIONS, {"predictions": [1.0, 2.0, 3.0, 4.0]}, {"predictions": [1.5, 2.0, 3.0, 3.0]}),
        (
            Door.INFER,
            {"outputs": [{"name": "y", "shape": [4], "datatype": "FP32", "data": [1.0, 2.0, 3.0, 4.0]}]},
            {"outputs": [{"name": "y", "shape": [4], "datatype": "FP32", "data": [1.5, 2.0, 3.0, 3.0]}]},
        ),
    ]
    for door, ours, theirs in forms:
        found = compared(pair(codec.encode(ours), codec.encode(theirs), door=door), None)
        assert (found.values, found.difference_sum, found.difference_max) == (4, 1.5, 1.0)
        assert (found.compared, found.disagreements) == (1, 1)


@pytest.mark.req("S5")
@given(ours=st.binary(max_size=30), theirs=st.binary(max_size=30), door=st.sampled_from(list(Door)))
def test_no_answer_stops_the_comparison(ours: bytes, theirs: bytes, door: Door) -> None:
    """Whatever a model managed to say is a pair, compared or not."""
    found = compared(pair(ours, theirs, door=door), None)
    assert found.pairs == 1
    assert found.compared in (0, 1)


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False)
    | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.req("S5")
@given(values=st.lists(VALUES, max_size=4))
def test_an_answer_equals_itself_and_sums_stay_finite(values: list[object]) -> None:
    """Nothing differs from itself; against its reverse the figures can still be added up."""
    body = codec.encode({"outputs": values})
    assert compared(pair(body, body), None).disagreements == 0
    apart = compared(pair(body, codec.encode({"outputs": values[::-1]})), None)
    assert math.isfinite(apart.difference_sum)
    assert math.isfinite(apart.difference_max)


@pytest.mark.req("S5")
def test_counts_of_two_spans_add_up() -> None:
    """Every figure once, the largest difference as the larger of the two."""
    names = [name for name in PairCounts.__struct_fields__ if name != "version"]
    one = PairCounts(version=SHADOW, **{name: number for number, name in enumerate(names, 1)})
    both = one.plus(one)
    for number, name in enumerate(names, 1):
        assert getattr(both, name) == (number if name == "difference_max" else 2 * number)
