"""How answers look in a terminal: tables that fit, aligned facts, small amounts of colour, and bars for long
work.

Nothing is cut in a pipe, no control character of a server's text reaches the terminal, and colour is left out
where it cannot be seen or is not wanted. What the words mean is the commands' business.
"""

import sys
import unicodedata
from collections.abc import Iterable, Sequence
from datetime import datetime
from types import TracebackType
from typing import Any, Self, TextIO

from modelkeep.core import codec, values

GAP = "  "
COLUMN_MIN = 8
"""A column that is narrowed for a small terminal keeps at least so many cells."""
BAR_CELLS = 24
BAR_AFTER_BYTES = 4 * 1024 * 1024
"""Less than this is over before a bar could be read."""
_STYLES = {"good": "32", "bad": "31", "warn": "33", "dim": "2", "strong": "1"}


class Text(str):
    """A cell with a style: good, bad, warn, dim or strong."""

    __slots__ = ("style",)
    style: str

    def __new__(cls, text: object, style: str) -> "Text":
        made = super().__new__(cls, text)
        made.style = style
        return made


class Screen:
    """Where a command writes. `width` None is a pipe: nothing is cut."""

    def __init__(self, out: TextIO, *, colour: bool = False, width: int | None = None) -> None:
        self.out = out
        self.colour = colour
        self.width = width

    def line(self, *words: object) -> None:
        """One line, words joined by spaces."""
        self.out.write(" ".join(self._painted(word) for word in words) + "\n")

    def blank(self) -> None:
        """An empty line between two parts."""
        self.out.write("\n")

    def raw(self, text: str) -> None:
        """Text of our own making, as it is."""
        self.out.write(text if text.endswith("\n") else text + "\n")

    def json(self, value: object) -> None:
        """An answer as JSON: indented for a person, on one line for a program."""
        data = codec.encode(value)
        if self.width is not None:
            import msgspec

            data = msgspec.json.format(data, indent=2)
        self.out.write(data.decode() + "\n")

    def facts(self, pairs: Iterable[tuple[str, object]]) -> None:
        """Names and values below each other; a value that is None or empty is left out."""
        kept = [(name, value) for name, value in pairs if value not in (None, "")]
        longest = max((len(name) for name, _ in kept), default=0)
        for name, value in kept:
            for place, part in enumerate(_lines(value)):
                label = name if place == 0 else ""
                self.out.write(f"{self._style(label.ljust(longest), 'dim')}{GAP}{self._painted(part)}\n")

    def table(
        self, head: Sequence[str], rows: Iterable[Sequence[object]], *, right: Iterable[int] = ()
    ) -> None:
        """Columns that fit their content, and the terminal. Empty columns are left out."""
        cells = [[_cell(value) for value in row] for row in rows]
        used = [place for place in range(len(head)) if any(row[place] for row in cells)]
        if not used:
            return
        widths = {
            place: max(len(head[place]), *(_width(_shown(row[place])) for row in cells)) for place in used
        }
        self._narrow(widths, {place: len(head[place]) for place in used})
        numbers = frozenset(right)
        titles = [
            self._style(_pad(head[place].upper(), widths[place], place in numbers), "dim") for place in used
        ]
        self.out.write(GAP.join(titles).rstrip() + "\n")
        for row in cells:
            line = []
            for place in used:
                text = _fit(_shown(row[place]), widths[place])
                padded = (
                    text
                    if place == used[-1] and place not in numbers
                    else _pad(text, widths[place], place in numbers)
                )
                line.append(self._style(padded, getattr(row[place], "style", "")))
            self.out.write(GAP.join(line).rstrip() + "\n")

    def _narrow(self, widths: dict[int, int], heads: dict[int, int]) -> None:
        """Take from the widest columns until the line fits; a terminal too narrow for that wraps."""
        if self.width is None:
            return
        while sum(widths.values()) + len(GAP) * (len(widths) - 1) > self.width:
            widest = max(widths, key=lambda place: widths[place])
            if widths[widest] <= max(COLUMN_MIN, heads[widest]):
                return
            widths[widest] -= 1

    def _painted(self, value: object) -> str:
        return self._style(_shown(_cell(value)), getattr(value, "style", ""))

    def _style(self, text: str, style: str) -> str:
        code = _STYLES.get(style)
        return f"\x1b[{code}m{text}\x1b[0m" if code is not None and self.colour and text.strip() else text


def _lines(value: object) -> Sequence[object]:
    if isinstance(value, list | tuple):
        return value
    if isinstance(value, str) and not isinstance(value, Text) and "\n" in value:
        return value.strip("\n").split("\n")
    return (value,)


def _cell(value: object) -> str:
    match value:
        case None:
            return ""
        case str():
            return value
        case bool():
            return "yes" if value else "no"
        case float():
            return number(value)
        case datetime():
            return moment(value)
        case list() | tuple() | frozenset():
            return ", ".join(str(part) for part in value)
        case _:
            return str(value)


def _shown(text: str) -> str:
    return text if text.isprintable() else values.printable(text.replace("\n", " "))


def _width(text: str) -> int:
    """Cells of a terminal that a text takes: wide characters take two, combining ones none."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text
    )


def _fit(text: str, width: int) -> str:
    if _width(text) <= width:
        return text
    kept = ""
    for c in text:
        if _width(kept + c) > width - 1:
            break
        kept += c
    return kept + "…"


def _pad(text: str, width: int, right: bool) -> str:
    space = " " * (width - _width(text))
    return space + text if right else text + space


# ---------------------------------------------------------------------------------------------------------
# values


def number(value: float) -> str:
    """A measured number: six digits, and no more than it has."""
    return f"{value:.6g}"


def moment(value: datetime) -> str:
    """A time as people write it; in UTC, to the second."""
    return value.strftime("%Y-%m-%d %H:%M:%SZ")


def size(count: int) -> str:
    """Bytes in the unit that reads best."""
    amount = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024 or unit == "GiB":
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    raise AssertionError("the loop ends at GiB")


def share(ppm: int) -> str:
    """A weight as percent."""
    return f"{ppm / 10_000:g} %"


def duration(seconds: float) -> str:
    """A span as people say it."""
    whole = round(seconds)
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if whole >= 2 * length:
            return f"{whole / length:.3g} {unit}"
    return f"{seconds:.3g} s"


def short(digest: str) -> str:
    """A digest in a table; the whole one is in `show` and in --json."""
    return digest[:19]


def mapping(pairs: dict[str, Any]) -> list[str]:
    """Tags and parameters, one a line."""
    return [f"{key} = {value}" for key, value in pairs.items()]


# -------------------------------------------------------------------------------------------------------
# progress


class Bars:
    """Progress of long transfers on a terminal's stderr; silent elsewhere."""

    def __init__(self, out: TextIO | None = None, *, shown: bool | None = None) -> None:
        self.out = out or sys.stderr
        self.shown = self.out.isatty() if shown is None else shown
        self._last = ("", -1)

    def __call__(self, phase: str, done_bytes: int, total_bytes: int) -> None:
        """Draw how far a phase is, at most once per percent."""
        if not self.shown or total_bytes < BAR_AFTER_BYTES:
            return
        percent = 100 * done_bytes // total_bytes
        if (phase, percent) == self._last:
            return
        self._last = (phase, percent)
        full = BAR_CELLS * done_bytes // total_bytes
        bar = "█" * full + "░" * (BAR_CELLS - full)
        self.out.write(f"\r{phase:<9}{bar} {percent:3d} % of {size(total_bytes)}\x1b[K")
        self.out.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._last[0]:
            self.out.write("\r\x1b[K")
            self.out.flush()


class Counts:
    """How many of something are done, on a terminal's stderr; silent elsewhere."""

    def __init__(self, out: TextIO | None = None, *, shown: bool | None = None) -> None:
        self.out = out or sys.stderr
        self.shown = self.out.isatty() if shown is None else shown
        self._drawn = ""

    def __call__(self, phase: str, done: int, total: int) -> None:
        """Draw how far a phase is, at most once per percent."""
        percent = 100 * done // total if total else 100
        full = min(BAR_CELLS, BAR_CELLS * percent // 100)
        mark = f"{phase}{percent}"
        if not self.shown or mark == self._drawn:
            return
        self._drawn = mark
        bar = "█" * full + "░" * (BAR_CELLS - full)
        self.out.write(f"\r{phase:<9}{bar} {done:,} of {total:,}\x1b[K")
        self.out.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._drawn:
            self.out.write("\r\x1b[K")
            self.out.flush()
