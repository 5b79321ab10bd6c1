"""Windows of the week in which something may be done, as people write them: `Mon-Fri 10:00-16:00
Europe/Berlin`.

Times are those of the clocks on the walls of the zone, summer time included: a time that the clocks leave out
has come when they have passed it, and one that they show twice comes twice. Whether something has to happen
in a window is a policy's part; here it is said whether a moment lies in one, and when the next one opens.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo

from msgspec import Struct

from modelkeep.core import errors, values

WINDOWS_MAX = 20
"""Of one policy: more is a calendar, which nobody reads in one look."""
TEXT_MAX = 100
"""Characters of one window."""
DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_WINDOW = re.compile(
    r"(?:(?P<days>[A-Za-z,-]+) +)?(?P<from>[0-2]?[0-9]:[0-5][0-9]) *- *(?P<to>[0-2]?[0-9]:[0-5][0-9])"
    r"(?: +(?P<zone>[A-Za-z0-9_+/-]+))?"
)
_LOOK_DAYS = 16
"""Days that are looked at for the next opening: two weeks, as the clocks may leave out all of one week's
window, and what zones shift."""
_INSTANT = timedelta(microseconds=1)


class Window(Struct, frozen=True):
    """Times of the day on days of the week (0 is Monday), in a zone. One that ends before it begins lasts
    until the next day; one that ends when it begins lasts a whole day."""

    days: frozenset[int]
    opens: time
    closes: time
    zone: str

    def holds(self, at: datetime) -> bool:
        """Whether a moment lies within; the end does not."""
        here = at.astimezone(_zone(self.zone))
        today, now = here.weekday(), here.time().replace(tzinfo=None)
        if self.opens < self.closes:
            return today in self.days and self.opens <= now < self.closes
        yesterday = (today - 1) % 7
        return (today in self.days and now >= self.opens) or (yesterday in self.days and now < self.closes)

    def opens_after(self, at: datetime) -> datetime:
        """When it opens next after a moment, in UTC."""
        zone = _zone(self.zone)
        today = at.astimezone(zone).date()
        for ahead in range(-1, _LOOK_DAYS):
            openings = self._openings(today + timedelta(days=ahead), zone)
            if after := [opening for opening in openings if opening > at]:
                return min(after)
        raise AssertionError("a window opens every other week")

    def _openings(self, day: date, zone: ZoneInfo) -> Iterator[datetime]:
        """When it opens on a day, in UTC: at its time, as often as the clocks show that, and when they are
        changed into the window."""
        if day.weekday() in self.days:
            for fold in (0, 1):
                opening = datetime.combine(day, self.opens, zone).replace(fold=fold).astimezone(UTC)
                if opening.astimezone(zone).time() == self.opens:
                    yield opening
        changed = _changed(day, zone)
        if changed is not None and self.holds(changed) and not self.holds(changed - _INSTANT):
            yield changed


def read_window(text: str) -> Window:
    """Read a window: days (`Mon-Fri`, `Sat,Sun`; every day when left out), times, and a zone (UTC when left
    out).

    Raises:
        InvalidPolicy: it has another form, or there is no such zone here.
    """
    match = _WINDOW.fullmatch(text.strip()) if len(text) <= TEXT_MAX else None
    try:
        if match is None:
            raise ValueError
        opens, closes = (time.fromisoformat(match[side].zfill(5)) for side in ("from", "to"))
        days = _days(match["days"]) if match["days"] else frozenset(range(7))
    except ValueError:
        raise errors.InvalidPolicy(
            f"{values.quoted(text, 60)} is no window; write 'Mon-Fri 10:00-16:00 Europe/Berlin'."
        ) from None
    zone = match["zone"] or "UTC"
    _zone(zone)
    return Window(days, opens, closes, zone)


def _days(text: str) -> frozenset[int]:
    """`Mon-Fri`, `Sat,Sun`, `Fri-Mon`. Raises ValueError."""
    found: set[int] = set()
    for part in text.lower().split(","):
        first, _, last = part.partition("-")
        begin, end = DAYS.index(first), DAYS.index(last or first)
        found.update((begin + step) % 7 for step in range((end - begin) % 7 + 1))
    return frozenset(found)


def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (OSError, ValueError, LookupError):
        raise errors.InvalidPolicy(
            f"There is no time zone {values.quoted(name, 60)} here; write one like Europe/Berlin or UTC."
        ) from None


def _changed(day: date, zone: ZoneInfo) -> datetime | None:
    """When the clocks are changed on a day or at its end, in UTC; None when they are not."""
    before, after = (
        datetime.combine(that, time(), zone).astimezone(UTC) for that in (day, day + timedelta(days=1))
    )
    former = before.astimezone(zone).utcoffset()
    if after.astimezone(zone).utcoffset() == former:
        return None
    while after - before > timedelta(seconds=1):  # clocks are changed at whole seconds
        middle = before + timedelta(seconds=(after - before) // timedelta(seconds=2))
        if middle.astimezone(zone).utcoffset() == former:
            before = middle
        else:
            after = middle
    return after


def within(windows: Sequence[Window], at: datetime) -> bool:
    """Whether a moment lies in one of them; always where there is none."""
    return not windows or any(window.holds(at) for window in windows)


def next_opening(windows: Iterable[Window], at: datetime) -> datetime | None:
    """When the first of them opens after a moment; None where there is none."""
    return min((window.opens_after(at) for window in windows), default=None)
