"""When a process has grown too large: its room counts, and a moment does not."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelkeep.serving.growth import FIRST_PAUSE_S, LONGEST_PAUSE_S, LOOKS, SHARE, Growth, Pace

pytestmark = pytest.mark.req("S2")
SIZES = st.integers(0, 1 << 40)


@given(loaded=SIZES, room=st.integers(1, 1 << 40), mapped=SIZES)
def test_what_it_mapped_at_first_says_nothing_against_it(loaded: int, room: int, mapped: int) -> None:
    """However large it was when it was loaded, it has the same share of the rest."""
    growth = Growth(loaded + room, loaded)
    assert not growth.past(loaded)
    assert growth.past(loaded + room)
    assert growth.past(mapped) == (mapped > loaded + SHARE * room)


@given(loaded=SIZES, mapped=st.lists(SIZES))
def test_without_a_limit_nothing_is_outgrown(loaded: int, mapped: list[int]) -> None:
    """Whatever it maps."""
    growth = Growth(0, loaded)
    assert not any(growth.outgrown(one) for one in mapped)


@given(looks=st.lists(st.booleans()))
def test_what_is_given_back_counts_no_more(looks: list[bool]) -> None:
    """Only so many looks in a row have it replaced."""
    growth = Growth(100, 0)
    for number, much in enumerate(looks, start=1):
        found = growth.outgrown(90 if much else 10)
        assert found == (number >= LOOKS and all(looks[number - LOOKS : number]))


@given(gaps=st.lists(st.integers(0, 5_000), max_size=20))
def test_replacements_come_ever_more_slowly_until_it_is_calm(gaps: list[int]) -> None:
    """The first is made at once; each pause is twice the one before, up to the longest; after a calm time
    they begin anew."""
    pace, now, pause = Pace(), 0.0, 0.0
    assert pace.allows(now)
    pace.replaced(now)
    for gap in gaps:
        pause = min(2 * pause, LONGEST_PAUSE_S) or FIRST_PAUSE_S
        assert not pace.allows(now + pause / 2)
        assert pace.allows(now + pause)
        now += pause + gap
        pace.replaced(now)
        if gap >= LONGEST_PAUSE_S:
            pause = 0.0
