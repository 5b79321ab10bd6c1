"""What came of an import: how much of each kind, what is called otherwise, what stayed out and why, and what
was counted on both sides.

It only keeps count; what is counted is `moving`'s part.
"""

from msgspec import Struct

from modelkeep.core import values
from modelkeep.core.imports import Kind

LEFT_OUT_MAX = 10_000
"""Things told one by one in a report; more are counted."""


class Moved(Struct, frozen=True, kw_only=True):
    """How many of a kind there are at the source, came now, were here already, and stayed out."""

    found: int = 0
    new: int = 0
    there: int = 0
    left_out: int = 0


class Mapped(Struct, frozen=True, kw_only=True):
    """Something that is called otherwise here."""

    kind: Kind
    id: str
    ours: str


class LeftOut(Struct, frozen=True, kw_only=True):
    """Something that was not carried, or not as it is: why."""

    kind: Kind
    id: str
    why: str


class Check(Struct, frozen=True, kw_only=True):
    """A number at the source, and here."""

    what: str
    there: int
    here: int

    @property
    def ok(self) -> bool:
        return self.there == self.here


class MoveReport(Struct, frozen=True, kw_only=True):
    """What came of an import.

    Attributes:
        changed: what was carried, but not as it is there; a part of something stayed out.
        left_out: what was not carried at all.
        differing: what is here and is not the same as there.
        more: how many more of these there are than are told.
        checks: what was counted on both sides at the end; empty in a dry run.
    """

    source: str
    project: str
    dry_run: bool
    kinds: dict[Kind, Moved]
    points: int
    files: int
    size_bytes: int
    mapped: tuple[Mapped, ...]
    changed: tuple[LeftOut, ...]
    left_out: tuple[LeftOut, ...]
    differing: tuple[LeftOut, ...]
    more: int
    checks: tuple[Check, ...]

    @property
    def whole(self) -> bool:
        """Whether everything was carried and is here."""
        return not (self.left_out or self.differing or self.more) and all(check.ok for check in self.checks)


class Tally:
    """What is counted and noted on the way."""

    def __init__(self) -> None:
        self.kinds: dict[Kind, dict[str, int]] = {}
        self.points = self.files = self.size_bytes = self.more = 0
        self.mapped: list[Mapped] = []
        self.changed: list[LeftOut] = []
        self.left_out: list[LeftOut] = []
        self.differing: list[LeftOut] = []

    def count(self, kind: Kind, what: str, by: int = 1) -> None:
        """Count one more of a kind: `found`, `new`, `there` or `left_out`."""
        of = self.kinds.setdefault(kind, {"found": 0, "new": 0, "there": 0, "left_out": 0})
        of[what] += by

    def change(self, kind: Kind, foreign: str, why: str) -> None:
        """Note what is carried, but not as it is."""
        self._add(self.changed, kind, foreign, why)

    def differ(self, kind: Kind, foreign: str, why: str) -> None:
        """Note what is here and is not the same."""
        self._add(self.differing, kind, foreign, why)

    def leave(self, kind: Kind, foreign: str, why: str) -> None:
        """Note what is not carried."""
        self.count(kind, "left_out")
        self._add(self.left_out, kind, foreign, why)

    def _add(self, told: list[LeftOut], kind: Kind, foreign: str, why: str) -> None:
        if len(told) < LEFT_OUT_MAX:
            told.append(LeftOut(kind=kind, id=values.printable(foreign)[:200], why=why))
        else:
            self.more += 1
