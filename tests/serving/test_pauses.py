"""Pauses that double: the one way in which the gateway slows down what keeps happening."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelkeep.serving.pauses import Pauses


@pytest.mark.req("S1")
@given(
    first=st.integers(1, 50),
    factor=st.integers(1, 1_000),
    anew=st.lists(st.booleans(), min_size=1, max_size=30),
)
def test_each_pause_is_twice_the_one_before_up_to_the_longest(
    first: int, factor: int, anew: list[bool]
) -> None:
    """From the first, and from there again whenever they begin anew."""
    longest = first * factor
    pauses, made = Pauses(first, longest), 0
    for again in anew:
        if again:
            pauses.begin_anew()
            made = 0
        assert pauses.next() == min(first * 2**made, longest)
        made += 1
