"""Windows of the week: as people write them, by the clocks on the walls, summer time included."""

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo, available_timezones

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelkeep.core import errors
from modelkeep.core.windows import DAYS, next_opening, read_window, within

pytestmark = pytest.mark.req("S8")

BERLIN = ZoneInfo("Europe/Berlin")
MOMENTS = st.datetimes(datetime(2026, 1, 1), datetime(2027, 12, 31), timezones=st.just(UTC))  # noqa: DTZ001


def test_a_window_is_read_and_holds_by_the_clock_on_the_wall() -> None:
    """Ten in Berlin is nine in UTC in winter and eight in summer; the end is outside, and so is Saturday."""
    window = read_window("Mon-Fri 10:00-16:00 Europe/Berlin")
    for at, inside in (
        (datetime(2026, 1, 26, 9, 0, tzinfo=UTC), True),
        (datetime(2026, 1, 26, 8, 59, tzinfo=UTC), False),
        (datetime(2026, 7, 27, 8, 0, tzinfo=UTC), True),
        (datetime(2026, 7, 27, 14, 0, tzinfo=UTC), False),
        (datetime(2026, 1, 24, 11, 0, tzinfo=UTC), False),
    ):
        assert window.holds(at) is inside, at
        assert within([window], at) is inside
    assert within([], datetime(2026, 1, 24, tzinfo=UTC)), "without windows it is always open"
    assert next_opening([], datetime(2026, 1, 24, tzinfo=UTC)) is None


def test_days_and_zones_may_be_left_out_and_nights_go_on() -> None:
    """Every day in UTC then; a window over midnight is that of the day on which it opens."""
    assert read_window("10:00-11:00").days == frozenset(range(7))
    assert read_window("10:00-11:00").zone == "UTC"
    assert read_window("Fri-Mon 9:30 - 10:00").days == {4, 5, 6, 0}
    assert read_window("sat,SUN 0:00-0:00 UTC").days == {5, 6}
    night = read_window("Fri 22:00-04:00")
    friday = datetime(2026, 1, 30, tzinfo=UTC)
    hours = [h for h in range(48) if night.holds(friday + timedelta(hours=h))]
    assert hours == [22, 23, 24, 25, 26, 27]
    whole = read_window("Sat 08:00-08:00")
    assert sum(whole.holds(friday + timedelta(hours=h)) for h in range(72)) == 24


def test_the_next_window_opens_when_the_clock_says_so() -> None:
    """On the day the clocks go forward too, and before a weekend; of several the first counts."""
    window = read_window("Mon-Fri 10:00-16:00 Europe/Berlin")
    friday = datetime(2026, 3, 27, 15, 30, tzinfo=UTC)
    assert next_opening([window], friday) == datetime(2026, 3, 30, 8, 0, tzinfo=UTC)
    sunday = read_window("Sun 10:00-11:00 Europe/Berlin")
    assert next_opening([window, sunday], friday) == datetime(2026, 3, 29, 8, 0, tzinfo=UTC)


def test_a_time_that_the_clocks_leave_out_has_come_when_they_have_passed_it() -> None:
    """In Berlin the clocks go from two to three: what opens at half past two opens then, and what would be
    over before three does not open at all that week."""
    before, gone = datetime(2026, 3, 28, 12, tzinfo=UTC), datetime(2026, 3, 29, 1, tzinfo=UTC)
    for text, opens in (
        ("Sun 02:30-04:00 Europe/Berlin", gone),
        ("Sun 02:10-02:50 Europe/Berlin", datetime(2026, 4, 5, 0, 10, tzinfo=UTC)),
        ("Sun 03:00-04:00 Europe/Berlin", gone),
        ("Sun 01:00-04:00 Europe/Berlin", datetime(2026, 3, 29, 0, tzinfo=UTC)),
    ):
        assert read_window(text).opens_after(before) == opens, text


def test_a_time_that_the_clocks_show_twice_comes_twice() -> None:
    """In Berlin they go back from three to two: half past two comes again, and so does the quarter before a
    window ended."""
    first, second = datetime(2026, 10, 25, 0, 30, tzinfo=UTC), datetime(2026, 10, 25, 1, 30, tzinfo=UTC)
    half = read_window("02:30-04:00 Europe/Berlin")
    assert half.opens_after(first - timedelta(hours=2)) == first
    assert half.opens_after(first) == second
    over = read_window("01:30-02:30 Europe/Berlin")
    assert over.opens_after(datetime(2026, 10, 25, 0, tzinfo=UTC)) == datetime(2026, 10, 25, 1, tzinfo=UTC)


def changes(zone: str) -> list[datetime]:
    """The hours of 2026 in which the clocks of a zone are changed."""
    found, here = [], ZoneInfo(zone)
    day = datetime(2026, 1, 1, tzinfo=UTC)
    for _ in range(365):
        if day.astimezone(here).utcoffset() != (day + timedelta(days=1)).astimezone(here).utcoffset():
            hours = [day + timedelta(hours=hour) for hour in range(25)]
            found += [
                b
                for a, b in pairwise(hours)
                if a.astimezone(here).utcoffset() != b.astimezone(here).utcoffset()
            ]
        day += timedelta(days=1)
    return found


SAMPLE = [
    *sorted(available_timezones())[::29],
    "Australia/Lord_Howe",
    "America/Havana",
    "Asia/Beirut",
    "Africa/Cairo",
]
CHANGES = [(zone, at) for zone in SAMPLE for at in changes(zone)]
QUARTER = timedelta(minutes=15)


@given(
    change=st.sampled_from(CHANGES),
    before=st.integers(-8, 8 * 4),
    opens=st.integers(0, 95),
    closes=st.integers(0, 95),
    days=st.sets(st.sampled_from(DAYS), min_size=5),
)
def test_around_a_change_of_clocks_it_opens_when_it_begins_to_hold(
    change: tuple[str, datetime], before: int, opens: int, closes: int, days: set[str]
) -> None:
    """In every zone of a sample, on both days: the next opening is the first quarter of an hour in which the
    window holds and did not, or at which the clocks show its time."""
    zone, changed = change
    times = [f"{quarter // 4}:{quarter % 4 * 15:02}" for quarter in (opens, closes)]
    window = read_window(f"{','.join(sorted(days))} {times[0]}-{times[1]} {zone}")
    at = changed - before * QUARTER
    moment = at + QUARTER
    while True:
        here = moment.astimezone(ZoneInfo(zone))
        its_time = here.weekday() in window.days and here.time() == window.opens
        if window.holds(moment) and (its_time or not window.holds(moment - QUARTER)):
            break
        moment += QUARTER
    assert window.opens_after(at) == moment


@given(
    at=MOMENTS,
    days=st.sets(st.sampled_from(DAYS), min_size=1),
    hours=st.tuples(st.integers(0, 23), st.integers(0, 23)),
    zone=st.sampled_from(["UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata", "Pacific/Auckland"]),
)
def test_no_window_opens_before_the_next_one(
    at: datetime, days: set[str], hours: tuple[int, int], zone: str
) -> None:
    """It opens at its own time of the day, on one of its days, within eight days; and no opening lies
    between."""
    window = read_window(f"{','.join(sorted(days))} {hours[0]}:00-{hours[1]}:00 {zone}")
    opens = window.opens_after(at)
    assert at < opens <= at + timedelta(days=8)
    assert window.holds(opens)
    here = opens.astimezone(ZoneInfo(zone))
    assert (here.weekday() in window.days) or here.time() != window.opens
    minute = timedelta(minutes=1)
    if not window.holds(at):
        assert not window.holds(opens - minute) or hours[0] == hours[1] or opens - minute <= at


@pytest.mark.parametrize(
    "text",
    [
        "",
        "always",
        "Mon-Fri",
        "Mon 25:00-26:00",
        "Foo 10:00-11:00",
        "10:00-11:00 Mars/Base",
        "10:00",
        "x" * 200,
        "Mon 10:00-11:00 ../etc",
        "Mon-Tue-Wed 10:00-11:00",
    ],
)
def test_what_is_no_window_is_refused(text: str) -> None:
    """With a sentence that shows one."""
    with pytest.raises(errors.InvalidPolicy, match=r"Europe/Berlin"):
        read_window(text)
