"""Semantic versions 2.0.0 and ranges of them: read, write, order, bump, and a key a database can sort by.

It follows semver.org to the letter for versions; ranges, which the specification leaves open, follow what npm
and Cargo users know (`^2.1`, `~2.1`, `2.1.x`, `>=1.2 <2`, `*`). It does not know what a change of a model
means (that is `core/bump.py`) nor which versions exist.
"""

import re
from collections.abc import Iterable
from enum import StrEnum
from functools import lru_cache
from typing import assert_never

from msgspec import Struct
from msgspec.structs import replace

from modelkeep.core import errors

SEMVER_MAX = 128
"""Characters of a version: it must fit a column, a label and a terminal line."""
NUMBER_DIGITS_MAX = 32
"""Digits of one number in a version: more than any counter needs, and its length fits the sort key."""
RANGE_MAX = 256
"""Characters of a range."""
RANGE_TERMS_MAX = 8
"""Terms of a range; `>=1.2 <2` has two."""
KEPT = 1_024
"""Versions whose reading, or sort key, is remembered: few numbers are in use at a time."""

_IDENTIFIER = r"(?:0|[1-9][0-9]*|[0-9]*[A-Za-z-][0-9A-Za-z-]*)"
_NUMBER = r"(?:0|[1-9][0-9]*)"
_SEMVER = re.compile(
    rf"({_NUMBER})\.({_NUMBER})\.({_NUMBER})"
    rf"(?:-({_IDENTIFIER}(?:\.{_IDENTIFIER})*))?(?:\+([0-9A-Za-z-]+(?:\.[0-9A-Za-z-]+)*))?"
)
_IDENTIFIER_CHARACTERS = re.compile(r"[0-9A-Za-z-]+")
_OPERATOR = re.compile(r"(\^|~|>=|<=|>|<|=)?(.*)", re.DOTALL)
_GAP_AFTER_OPERATOR = re.compile(r"([<>=^~])[ \t]+")
_WILD = frozenset({"x", "X", "*"})
_PARTS = ("major", "minor", "patch")


class Bump(StrEnum):
    """How far a version number has to move."""

    NONE = "none"
    PATCH = "patch"
    MINOR = "minor"
    MAJOR = "major"

    @property
    def rank(self) -> int:
        """0 for none to 3 for major: bumps are compared by rank, never as text."""
        return _BUMP_RANKS[self]


_BUMP_RANKS = {bump: rank for rank, bump in enumerate(Bump)}


class SemVer(Struct, frozen=True):
    """One version. `<` is a total order: precedence, and among equals the build metadata as text."""

    major: int
    minor: int
    patch: int
    pre: tuple[str, ...] = ()
    build: tuple[str, ...] = ()

    def __str__(self) -> str:
        pre = f"-{'.'.join(self.pre)}" if self.pre else ""
        build = f"+{'.'.join(self.build)}" if self.build else ""
        return f"{self.major}.{self.minor}.{self.patch}{pre}{build}"

    # All four are written out: functools.total_ordering takes the ones that Struct has by default for ours.
    def __lt__(self, other: "SemVer") -> bool:
        return self._place < other._place

    def __le__(self, other: "SemVer") -> bool:
        return self._place <= other._place

    def __gt__(self, other: "SemVer") -> bool:
        return self._place > other._place

    def __ge__(self, other: "SemVer") -> bool:
        return self._place >= other._place

    @property
    def _place(self) -> tuple[str, tuple[str, ...]]:
        return sort_key(self), self.build

    @property
    def triple(self) -> tuple[int, int, int]:
        """Major, minor, patch."""
        return self.major, self.minor, self.patch

    @property
    def is_release(self) -> bool:
        """True when there is no pre-release part."""
        return not self.pre


@lru_cache(maxsize=KEPT)
def parse(text: str) -> SemVer:
    """Read a version exactly as semver 2.0.0 writes it.

    Raises:
        InvalidSemver: anything else; the sentence says what is wrong with which part.
    """
    match = _SEMVER.fullmatch(text) if len(text) <= SEMVER_MAX else None
    if match is None:
        raise _invalid(text, _what_is_wrong(text))
    major, minor, patch, pre, build = match.groups()
    identifiers = tuple(pre.split(".")) if pre else ()
    for number in (major, minor, patch, *filter(_is_numeric, identifiers)):
        if len(number) > NUMBER_DIGITS_MAX:
            raise _invalid(text, f"has a number of {len(number)} digits; at most {NUMBER_DIGITS_MAX} fit")
    return SemVer(int(major), int(minor), int(patch), identifiers, tuple(build.split(".")) if build else ())


def _invalid(text: str, why: str) -> errors.InvalidSemver:
    shown = text if len(text) <= 40 else f"{text[:40]}..."
    return errors.InvalidSemver(f"{shown!r} {why}.", field="semver")


def _is_numeric(identifier: str) -> bool:
    return identifier.isascii() and identifier.isdigit()


def _what_is_wrong(text: str) -> str:
    """The one sentence about a text that is no version; checked from the outside in."""
    if not text:
        return "is empty; write a version like 1.0.0"
    if len(text) > SEMVER_MAX:
        return f"has {len(text):,} characters; a version has at most {SEMVER_MAX}"
    if text != text.strip():
        return "has white space around it; remove it"
    if text[0] in "vV" and text[1:2].isdigit():
        return f"begins with a letter; write {text[1:][:40]} without the {text[0]!r}"
    rest, plus, build = text.partition("+")
    core, dash, pre = rest.partition("-")
    return (
        _wrong_core(core)
        or (_wrong_identifiers(pre, "pre-release", numeric=True) if dash else "")
        or (_wrong_identifiers(build, "build", numeric=False) if plus else "")
        or "is not a version; write it like 1.0.0"
    )


def _wrong_core(core: str) -> str:
    parts = core.split(".")
    for part, name in zip(parts, _PARTS, strict=False):
        if not part:
            return f"has an empty {name} part; write three numbers like 1.0.0"
        if not _is_numeric(part):
            return f"has {part[:20]!r} as its {name} part, where only the digits 0 to 9 may stand"
        if part[0] == "0" and part != "0":
            return f"has a leading zero in its {name} part; write {part.lstrip('0')[:40] or '0'}"
    if len(parts) == 3:
        return ""
    count = {1: "one number", 2: "two numbers"}.get(len(parts), f"{len(parts)} numbers")
    if len(parts) > 3:
        return f"has {count}; a version has three"
    full = ".".join([*parts, "0", "0"][:3])
    return f"has only {count}; write {full}, or {core}.x for the highest that begins so"


def _wrong_identifiers(text: str, what: str, *, numeric: bool) -> str:
    for identifier in text.split("."):
        if not identifier:
            return f"has an empty identifier in its {what} part; write at least one character there"
        if not _IDENTIFIER_CHARACTERS.fullmatch(identifier):
            return f"has {identifier[:20]!r} in its {what} part; use ASCII letters, digits and '-' there"
        if numeric and _is_numeric(identifier) and identifier[0] == "0" and identifier != "0":
            return f"has a leading zero in the number {identifier[:40]!r} of its {what} part; remove it"
    return ""


# The order of versions, as text. Only the digits 0-9 and a-f appear, because these sort the same byte by byte
# and under every language's rules: a database column needs no particular collation.
_END = "0"
_NUMERIC = "1"
_ALPHANUMERIC = "2"
_RELEASE = "3"


@lru_cache(maxsize=KEPT)
def sort_key(version: SemVer) -> str:
    """A text whose plain order is the precedence of versions (semver 2.0.0, section 11).

    Each number stands after its two-digit length. A release ends in 3; a pre-release lists its identifiers,
    numbers (1) below words (2, in hexadecimal, closed by 0), and ends in 0, so that the shorter list comes
    first. Equal keys mean equal precedence; build metadata has none and is left out.

    Returns:
        Hexadecimal digits: 10 for a small release, below 400 for the longest version that `parse` accepts.
    """
    numbers = "".join(_number_key(str(number)) for number in version.triple)
    if not version.pre:
        return numbers + _RELEASE
    return numbers + "".join(map(_identifier_key, version.pre)) + _END


def _identifier_key(word: str) -> str:
    if _is_numeric(word):
        return _NUMERIC + _number_key(word)
    return _ALPHANUMERIC + word.encode("ascii").hex() + _END


def _number_key(digits: str) -> str:
    return f"{len(digits):02d}{digits}"


def bump(version: SemVer, by: Bump) -> SemVer:
    """The next version; `none` gives the version itself.

    A pre-release is released rather than passed over: 2.0.0-rc.1 becomes 2.0.0 under every bump, 2.1.0-rc.1
    becomes 2.1.0 under minor and patch. Build metadata is dropped: it described the old build.

    Raises:
        InvalidSemver: a number would outgrow its limit.
    """
    major, minor, patch = version.triple
    match by:
        case Bump.NONE:
            return version
        case Bump.MAJOR:
            announced = bool(version.pre) and minor == 0 and patch == 0
            following = SemVer(major if announced else major + 1, 0, 0)
        case Bump.MINOR:
            announced = bool(version.pre) and patch == 0
            following = SemVer(major, minor if announced else minor + 1, 0)
        case Bump.PATCH:
            following = SemVer(major, minor, patch if version.pre else patch + 1)
        case _:
            assert_never(by)
    if any(len(str(number)) > NUMBER_DIGITS_MAX for number in following.triple):
        raise _invalid(str(version), f"cannot be raised: a number has at most {NUMBER_DIGITS_MAX} digits")
    return following


def between(older: SemVer, newer: SemVer) -> Bump:
    """How far `newer` lies above `older`; none when it does not.

    From a pre-release to its release is the smallest step, patch.
    """
    if sort_key(newer) <= sort_key(older):
        return Bump.NONE
    if newer.major != older.major:
        return Bump.MAJOR
    if newer.minor != older.minor:
        return Bump.MINOR
    return Bump.PATCH


class Operator(StrEnum):
    """How a bound compares."""

    AT_LEAST = ">="
    ABOVE = ">"
    AT_MOST = "<="
    BELOW = "<"
    EQUAL = "="


class Bound(Struct, frozen=True):
    """One comparison that every version of a range passes."""

    operator: Operator
    version: SemVer

    def holds(self, key: str) -> bool:
        """Whether the version with this sort key passes."""
        mine = sort_key(self.version)
        match self.operator:
            case Operator.AT_LEAST:
                return key >= mine
            case Operator.ABOVE:
                return key > mine
            case Operator.AT_MOST:
                return key <= mine
            case Operator.BELOW:
                return key < mine
            case Operator.EQUAL:
                return key == mine
            case _:
                assert_never(self.operator)


class Range(Struct, frozen=True):
    """A set of versions: all bounds hold. `text` is the range as people write it, in one normal form."""

    text: str
    bounds: tuple[Bound, ...]

    def __str__(self) -> str:
        return self.text

    def contains(self, version: SemVer) -> bool:
        """Whether the version is in the range.

        A pre-release is in it only where the range names a pre-release of the same major.minor.patch: whoever
        asks for `^2.1` did not ask to try 2.2.0-rc.1.
        """
        key = sort_key(version)
        if not all(bound.holds(key) for bound in self.bounds):
            return False
        return version.is_release or any(
            bound.version.pre and bound.version.triple == version.triple for bound in self.bounds
        )


def is_range(text: str) -> bool:
    """Whether the text is meant as a range (an operator, a wildcard, several terms); it may still be
    wrong."""
    body = text.strip()
    if body[:1] in ("^", "~", "<", ">", "=") or any(c in ", \t" for c in body):
        return True
    core = body.partition("+")[0].partition("-")[0]
    return any(part in _WILD for part in core.split("."))


def parse_range(text: str) -> Range:
    """Read a range: terms separated by spaces or commas, all of which must hold.

    A term is `*`, `2.x`, `2.1.x`, a whole version, or one of `^ ~ >= > <= < =` before a version whose last
    parts may be missing. `^` keeps the left-most number that is not zero, `~` keeps major and minor.

    Raises:
        InvalidSemver: empty, too long, too many terms, or a term that is none of these.
    """
    if len(text) > RANGE_MAX:
        raise _invalid(text, f"has {len(text):,} characters; a range has at most {RANGE_MAX}")
    terms = _GAP_AFTER_OPERATOR.sub(r"\1", text.replace(",", " ")).split()
    if not terms:
        raise _invalid(text, "names no range; write for example ^2.1, 2.1.x or >=1.2 <2")
    if len(terms) > RANGE_TERMS_MAX:
        raise _invalid(text, f"has {len(terms)} terms; a range has at most {RANGE_TERMS_MAX}")
    parsed = [_parse_term(term, text) for term in terms]
    bounds = tuple(bound for _, of_term in parsed for bound in of_term)
    return Range(" ".join(normal for normal, _ in parsed), bounds)


def _parse_term(term: str, whole: str) -> tuple[str, tuple[Bound, ...]]:
    """One term in normal form, and what it means."""
    match = _OPERATOR.fullmatch(term)
    assert match is not None, "the pattern matches every text"
    operator, body = match.group(1) or "", match.group(2)
    if not body:
        raise _invalid(whole, f"has no version after {operator!r}; write for example {operator}2.1")
    given, low = _parse_partial(body, whole)
    if given == 0:
        if operator:
            raise _invalid(whole, f"has {operator!r} before a wildcard; write * for every version")
        return "*", (Bound(Operator.AT_LEAST, SemVer(0, 0, 0)),)
    if not operator and given < 3:
        if not any(part in _WILD for part in body.split(".")):
            raise _invalid(whole, f"has the incomplete version {body}; write {body}.x for all that begin so")
        return f"{'.'.join(map(str, low.triple[:given]))}.x", _span(low, given - 1)
    partial = str(low) if given == 3 else ".".join(map(str, low.triple[:given]))
    return f"{operator or '='}{partial}", _bounds(operator or "=", low, given)


def _parse_partial(body: str, whole: str) -> tuple[int, SemVer]:
    """How many of the three numbers are given, and the version with zeros for the others."""
    core = body.partition("+")[0].partition("-")[0]
    parts = core.split(".")
    given = next((place for place, part in enumerate(parts) if part in _WILD), len(parts))
    partial = given < len(parts) or len(parts) < 3
    if len(parts) > 3 or any(part not in _WILD for part in parts[given:]) or (partial and core != body):
        raise _invalid(
            whole, f"has the term {body[:40]!r}, not a version; write for example ^2.1, 2.1.x or >=1.2 <2"
        )
    try:
        version = parse(".".join([*parts[:given], "0", "0", "0"][:3]) if partial else body)
    except errors.InvalidSemver as problem:
        raise _invalid(whole, f"has a term that is not a version: {problem.message.rstrip('.')}") from problem
    if version.build:
        raise _invalid(whole, "names build metadata, which has no order; remove the part from '+' on")
    return given, version


def _bounds(operator: str, low: SemVer, given: int) -> tuple[Bound, ...]:
    last = given - 1
    match operator:
        case "^":
            significant = next((place for place, number in enumerate(low.triple[:given]) if number), last)
            return _span(low, significant)
        case "~":
            return _span(low, min(last, 1))
        case "=" if given < 3:
            return _span(low, last)
        case ">" if given < 3:
            return (Bound(Operator.AT_LEAST, _raised(low, last)),)
        case "<=" if given < 3:
            return (Bound(Operator.BELOW, _raised(low, last)),)
        case _:
            return (Bound(Operator(operator), low),)


def _span(low: SemVer, place: int) -> tuple[Bound, ...]:
    """From `low` up to, not including, the next value of the number at `place`."""
    return Bound(Operator.AT_LEAST, low), Bound(Operator.BELOW, _raised(low, place))


def _raised(version: SemVer, place: int) -> SemVer:
    by = (Bump.MAJOR, Bump.MINOR, Bump.PATCH)[place]
    return bump(replace(version, pre=()), by)


def highest(versions: Iterable[SemVer], within: Range | None = None) -> SemVer | None:
    """The highest version of the range; without a range, the highest release. None when there is none."""
    fitting = (v for v in versions if (within.contains(v) if within is not None else v.is_release))
    return max(fitting, default=None)
