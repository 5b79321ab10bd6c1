"""Putting requests together: whatever comes in whatever order, each is answered once and by its own rows, no
limit is passed, and one request's fault is nobody else's."""

import math
from collections.abc import Hashable, Sequence
from functools import partial
from operator import eq
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelkeep.serving import batcher, validation
from modelkeep.serving.batcher import Ask, Cost, Limits, Queue, Reason
from modelkeep.serving.messages import DELAY_BUCKETS_MS, ROWS_BUCKETS
from modelkeep.serving.validation import Columns

pytestmark = pytest.mark.req("S2")
POISON = -1.0


def ask(
    number: int, rows: int = 1, *, shape: int = 0, size: int = 10, deadline: float = math.inf, **more: Any
) -> Ask[int]:
    """A request whose rows hold its own number."""
    made: Ask[int] = Ask(number, b"x" * size, deadline=deadline, arrived=0.0, **more)
    made.content = (rows, shape, float(number))
    return made


def read(made: Ask[int]) -> bool:
    """Read a request: as many rows as it says, of as many values as its shape says."""
    rows, shape, value = made.content
    made.rows = rows
    made.content = {"x": np.full((rows, *[1] * shape), value)}
    return True


def key(made: Ask[int]) -> Hashable:
    """What shares a call with it."""
    return batcher.shape_of(made.content)


def take(queue: Queue[int], now: float = 0.0) -> batcher.Taken[int]:
    """The next call."""
    return queue.take(now, read, key)


def answer(asks: Sequence[Ask[int]]) -> list[Columns]:
    """A model that doubles, and raises when it meets the poison."""
    table = batcher.merged([made.content for made in asks])
    if (table["x"] == POISON).any():
        raise ValueError("poison")
    own = batcher.parted({"y": table["x"] * 2}, [made.rows for made in asks])
    assert own is not None
    return own


EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), st.integers(1, 7), st.integers(0, 2), st.booleans(), st.booleans()),
        st.tuples(st.just("cancel"), st.integers(0, 40)),
        st.tuples(st.just("work")),
    ),
    max_size=60,
)


@given(events=EVENTS, rows_max=st.integers(1, 12), bytes_max=st.integers(5, 60), together=st.booleans())
def test_everybody_gets_their_own_rows_once(
    events: list[Any], rows_max: int, bytes_max: int, together: bool
) -> None:
    """In every interleaving of arrivals, cancellations and calls: one end for each request, its own rows in
    its own number, an error for the poisonous alone."""
    queue: Queue[int] = Queue(Limits(rows=rows_max, size_bytes=bytes_max), together=together)
    ends: dict[int, Any] = {}
    asked: dict[int, tuple[int, int, bool]] = {}

    def work() -> None:
        oldest = queue._asks[0].ticket if queue else None
        taken = take(queue)
        assert taken.batch[:1] == [] or taken.batch[0].ticket == oldest, "the oldest request goes first"
        rows = sum(made.rows for made in taken.batch)
        assert len(taken.batch) <= 1 or (together and rows <= rows_max)
        assert len(taken.batch) <= 1 or sum(len(made.payload) for made in taken.batch) <= bytes_max
        for made, outcome in batcher.bisected(taken.batch, answer, lambda _: False):
            assert made.ticket not in ends
            ends[made.ticket] = outcome

    for event in events:
        match event:
            case ("ask", rows, shape, poisonous, alone):
                number = len(asked)
                asked[number] = (rows, shape, poisonous)
                made = ask(number, rows, shape=shape, alone=alone)
                if poisonous:
                    made.content = (rows, shape, POISON)
                queue.put(made)
            case ("cancel", number):
                for made in queue.remove(partial(eq, number)):
                    assert made.ticket not in ends
                    ends[made.ticket] = "cancelled"
            case _:
                work()
    while queue:
        work()
    assert ends.keys() == asked.keys()
    for number, outcome in ends.items():
        rows, shape, poisonous = asked[number]
        if isinstance(outcome, ValueError):
            assert poisonous
        elif outcome != "cancelled":
            assert not poisonous
            assert outcome["y"].shape == (rows, *[1] * shape)
            assert (outcome["y"] == 2.0 * number).all()


def test_an_idle_worker_waits_for_nobody() -> None:
    """One request is a batch of one at once, and its tables are handed on as they are, bit for bit."""
    queue: Queue[int] = Queue(Limits())
    queue.put(ask(1, 3))
    taken = take(queue)
    assert ([made.ticket for made in taken.batch], taken.reason) == ([1], Reason.ALL)
    table = taken.batch[0].content
    assert batcher.merged([table]) is table
    assert batcher.parted(table, [3]) == [table]
    assert take(queue).batch == []


def test_tables_that_are_matrices_become_one_matrix() -> None:
    """Nothing is taken apart to be put together; one that is no matrix shares no call with them."""
    one, two = (validation.Table(["a", "b"], np.full((rows, 2), float(rows))) for rows in (1, 3))
    both = batcher.merged([one, two])
    assert isinstance(both, validation.Table)
    assert both.matrix.tolist() == [[1, 1], [3, 3], [3, 3], [3, 3]]
    assert {name: array.tolist() for name, array in both.items()} == {name: [1, 3, 3, 3] for name in "ab"}
    assert batcher.shape_of(one) == batcher.shape_of(two)
    assert batcher.shape_of(one) != batcher.shape_of(dict(one))
    single = validation.Table(["a", "b"], np.zeros((1, 2), dtype="float32"))
    assert batcher.shape_of(one) != batcher.shape_of(single)


def test_a_batch_says_why_it_ended() -> None:
    """Rows, bytes, shape, the deadline, a request that must be alone: each ends a batch under its name."""

    def first(*asks: Ask[int], together: bool = True, cost_s: float = 0.0) -> tuple[list[int], Reason]:
        queue: Queue[int] = Queue(Limits(rows=4, size_bytes=100), together=together)
        if cost_s:
            queue.cost.learn(1, cost_s)
        for made in asks:
            queue.put(made)
        taken = take(queue, now=100.0)
        return [made.ticket for made in taken.batch], taken.reason

    assert first(ask(1), ask(2)) == ([1, 2], Reason.ALL)
    assert first(ask(1, 3), ask(2, 2)) == ([1], Reason.ROWS)
    assert first(ask(1, 2), ask(2, 2), ask(3)) == ([1, 2], Reason.ROWS)
    assert first(ask(1, 9), ask(2)) == ([1], Reason.ROWS)
    assert first(ask(1, size=60), ask(2, size=60)) == ([1], Reason.BYTES)
    assert first(ask(1), ask(2, shape=1), ask(3)) == ([1, 3], Reason.SHAPE)
    assert first(ask(1), ask(2), together=False) == ([1], Reason.ALONE)
    assert first(ask(1, alone=True), ask(2)) == ([1], Reason.ALONE)
    assert first(ask(1), ask(2, alone=True), ask(3)) == ([1, 3], Reason.SHAPE)
    assert first(ask(1), ask(2, deadline=103.0), cost_s=1.0) == ([1], Reason.DEADLINE)
    assert first(ask(1), ask(2, deadline=105.0), cost_s=1.0) == ([1, 2], Reason.ALL)
    assert first(ask(1, deadline=103.0), ask(2), cost_s=1.0) == ([1], Reason.DEADLINE)


def test_what_has_expired_is_not_computed() -> None:
    """Requests whose time is over come back apart, unread; the others are taken."""
    queue: Queue[int] = Queue(Limits())
    for made in (ask(1, deadline=5.0), ask(2, deadline=50.0), ask(3, deadline=9.0)):
        queue.put(made)
    taken = take(queue, now=10.0)
    assert [made.ticket for made in taken.batch] == [2]
    assert [(made.ticket, made.rows) for made in taken.expired] == [(1, 0), (3, 0)]


def test_a_refused_request_is_in_no_batch() -> None:
    """What cannot be read is dealt with by its reader, once, and hurts nobody."""
    seen: list[int] = []

    def picky(made: Ask[int]) -> bool:
        seen.append(made.ticket)
        return made.ticket != 2 and read(made)

    queue: Queue[int] = Queue(Limits())
    for number in (1, 2, 3):
        queue.put(ask(number))
    assert [made.ticket for made in queue.take(0.0, picky, key).batch] == [1, 3]
    assert seen == [1, 2, 3]
    assert not queue


def test_the_search_for_the_same_shape_is_bounded() -> None:
    """Past so many others the batch goes; they keep their order and their turn."""
    queue: Queue[int] = Queue(Limits())
    queue.put(ask(0))
    for number in range(1, 100):
        queue.put(ask(number, shape=1))
    queue.put(ask(100))
    assert [made.ticket for made in take(queue).batch] == [0]
    assert [made.ticket for made in take(queue).batch] == list(range(1, 100))
    assert [made.ticket for made in take(queue).batch] == [100]


@given(st.integers(1, 64), st.data())
def test_one_guilty_request_costs_a_few_calls(count: int, data: st.DataObject) -> None:
    """It alone gets the error, after about two calls for each halving."""
    guilty = data.draw(st.integers(0, count - 1))
    asks = [ask(number) for number in range(count)]
    calls = 0

    def attempt(part: Sequence[Ask[int]]) -> list[int]:
        nonlocal calls
        calls += 1
        if any(made.ticket == guilty for made in part):
            raise SystemExit
        return [made.ticket for made in part]

    outcomes = {made.ticket: out for made, out in batcher.bisected(asks, attempt, lambda _: False)}
    assert isinstance(outcomes.pop(guilty), SystemExit)
    assert outcomes == {number: number for number in range(count) if number != guilty}
    assert calls <= 2 * math.ceil(math.log2(count)) + 1


def test_halves_are_not_tried_for_those_whose_time_is_over() -> None:
    """After a call that raised, only who still waits is computed again."""

    def attempt(part: Sequence[Ask[int]]) -> list[int]:
        if len(part) > 1:
            raise ValueError
        return [made.ticket for made in part]

    outcomes = {
        made.ticket: out
        for made, out in batcher.bisected([ask(1), ask(2), ask(3)], attempt, lambda made: made.ticket == 2)
    }
    assert outcomes == {1: 1, 2: None, 3: 3}


@given(
    a=st.floats(0, 0.1),
    b=st.floats(1e-6, 0.01),
    sizes=st.lists(st.integers(1, 256), min_size=2, max_size=80),
)
def test_the_cost_of_a_call_is_learnt(a: float, b: float, sizes: list[int]) -> None:
    """From calls of different sizes both coefficients are found; from calls of one size the sum is."""
    cost = Cost()
    for rows in sizes:
        cost.learn(rows, a + b * rows)
    if max(sizes) > 1.1 * min(sizes):
        assert cost.of(100) == pytest.approx(a + b * 100, rel=1e-3)
    assert cost.of(sizes[0]) >= 0.5 * (a + b * sizes[0])
    assert min(cost.coefficients) >= 0.0


def test_the_cost_is_never_negative_and_never_hoped_for() -> None:
    """Nothing known: nothing feared. One size known: every row costs as much. A fall with size is noise."""
    cost = Cost()
    assert cost.of(50) == 0.0
    cost.learn(2, 0.4)
    assert cost.of(50) == pytest.approx(10.0)
    cost.learn(100, 0.1)
    assert cost.coefficients[1] == 0.0
    assert cost.of(1) > 0.1
    steep = Cost()
    steep.learn(1, 0.0)
    steep.learn(2, 1.0)
    assert steep.coefficients[0] == 0.0
    assert steep.of(2) > 0.5


def test_outputs_without_a_row_for_each_are_not_parted() -> None:
    """Whoever sums over all rows cannot be asked for two requests at once."""
    two = [1, 1]
    assert batcher.parted({"y": np.zeros(1)}, two) is None
    assert batcher.parted({"y": np.array(3.0)}, two) is None
    assert batcher.parted({"y": np.zeros(2), "z": np.zeros((2, 4))}, two) is not None


def test_rows_that_know_each_other_are_found_out() -> None:
    """The same row twice must give the same answer twice, but for last digits."""
    one = {"y": np.array([0.5], dtype="float32"), "name": np.array(["a"], dtype=object)}
    twice = {"y": np.array([0.5, 0.5000001], dtype="float32"), "name": np.array(["a", "a"], dtype=object)}
    assert batcher.alike(one, twice)
    assert batcher.alike({"y": np.array([math.nan])}, {"y": np.array([math.nan, math.nan])})
    assert not batcher.alike(one, {**twice, "y": np.array([0.25, 0.25])})
    assert not batcher.alike(one, {**twice, "name": np.array(["a", "b"], dtype=object)})
    assert not batcher.alike(one, one)
    assert not batcher.alike(one, {"y": twice["y"]})
    assert not batcher.alike({"y": np.array(1.0)}, {"y": np.array(1.0)})


def test_the_tally_adds_up_and_is_handed_over_once() -> None:
    """Each bucket counts what lies at or below its bound; what nobody did is not told."""
    tally = batcher.Tally()
    assert tally.hand_over() is None
    queue: Queue[int] = Queue(Limits(rows=4))
    for number in range(5):
        queue.put(ask(number))
    while queue:
        tally.batch(take(queue), 0.0015)
    tally.expired += 1
    worked = tally.hand_over()
    assert worked is not None
    assert worked.batches == {"rows": 1, "all": 1}
    assert (worked.rows, worked.expired, worked.cancelled) == (5, 1, 0)
    assert dict(zip(ROWS_BUCKETS, worked.rows_buckets, strict=False))[4] == 1
    assert dict(zip(ROWS_BUCKETS, worked.rows_buckets, strict=False))[1] == 1
    assert dict(zip(DELAY_BUCKETS_MS, worked.delay_buckets, strict=False))[2.0] == 5
    assert worked.delay_s == pytest.approx(0.0075)
    assert tally.hand_over() is None
