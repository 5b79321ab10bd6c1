"""What a filter and an order mean, evaluated over plain facts in memory.

This is the definition that the relational store, which compiles the same tree to SQL, is tested against. It
does not fetch, page or cut anything, and nothing searches a whole registry with it.

- A comparison is true when SOME value of its subject passes. Most subjects have one value or none; `alias`
  has many.
- A subject without a value passes no comparison at all, `!=`, `not in` and `not like` included: these say
  "there is a value, and none of its values is that one". `exists` and `is null` ask for the value itself.
- `and`, `or` and `not` have two truth values. `not tags.team = "risk"` is therefore true where there is no
  such tag, and `tags.team != "risk"` is not.
"""

from collections.abc import Iterable, Mapping
from typing import Any, assert_never

from modelkeep.core import semver
from modelkeep.core.query.tokens import as_number
from modelkeep.core.query.tree import (
    NEGATIONS,
    And,
    Comparison,
    Exists,
    Expression,
    Kind,
    Not,
    Operator,
    Or,
    Order,
    Subject,
    ValueType,
)

Facts = Mapping[str, Any]
"""What is known of one model or version: fields by name, and mappings under `metrics`, `params` and `tags`.

    {"model": "churn", "alias": ["champion"], "metrics": {"auc": 0.94}, "tags": {"team": "risk"}}

Absent and None are "no value"; a list, tuple or set is several values. Times are aware datetimes, versions
and what stands under `params` and `tags` are text.
"""


def matches(expression: Expression, facts: Facts) -> bool:
    """Whether the facts pass the filter, by the rules at the top of this file.

    Raises:
        InvalidSemver: the facts' own `semver` is no version.
    """
    match expression:
        case And(parts):
            return all(matches(part, facts) for part in parts)
        case Or(parts):
            return any(matches(part, facts) for part in parts)
        case Not(part):
            return not matches(part, facts)
        case Exists(subject):
            return bool(_found(subject, facts))
        case Comparison(subject, operator, value):
            found = _found(subject, facts)
            positive = NEGATIONS.get(operator)
            if positive is not None:
                return bool(found) and not any(
                    _passes(subject.type, positive, actual, value) for actual in found
                )
            return any(_passes(subject.type, operator, actual, value) for actual in found)
        case _:
            assert_never(expression)


def sort(items: Iterable[Facts], order: Iterable[Order]) -> list[Facts]:
    """The items in that order; ties stay as they stood, and items without a value come last.

    Parameters and tags that are numbers come before those that are not, the former by value, the latter as
    text; `desc` turns this whole order around.

    Raises:
        InvalidSemver: a `semver` among the facts is no version, and the order asks for it.
    """
    result = list(items)
    for term in reversed(list(order)):
        keyed = [(_found(term.subject, item), item) for item in result]
        present = [(_sort_key(term.subject.type, found[0]), item) for found, item in keyed if found]
        present.sort(key=lambda pair: pair[0], reverse=term.descending)
        result = [item for _, item in present] + [item for found, item in keyed if not found]
    return result


def like(pattern: str, text: str, *, ignore_case: bool = False) -> bool:
    """Whether the whole text has the form of the pattern: `%` any text, `_` any character, and a backslash
    takes the next character as it is.

    `ignore_case` is about the letters A to Z alone, so that every store can do the same. On a mismatch only
    the last `%` takes one character more, so the steps are at most the product of the two lengths.
    """
    if ignore_case:
        pattern, text = _ascii_lower(pattern), _ascii_lower(text)
    wanted = _pattern_parts(pattern)
    place = at = 0
    star = -1
    resume = 0
    while place < len(text):
        part = wanted[at] if at < len(wanted) else ""
        if part == _ANY_TEXT:
            star, resume = at, place
            at += 1
        elif part == _ANY_CHARACTER or part == text[place]:
            at += 1
            place += 1
        elif star >= 0:
            resume += 1
            at, place = star + 1, resume
        else:
            return False
    return all(part == _ANY_TEXT for part in wanted[at:])


_ANY_TEXT = "any text"
_ANY_CHARACTER = "any character"
_WILDCARDS = {"%": _ANY_TEXT, "_": _ANY_CHARACTER}
_LOWERED = {code: code + 32 for code in range(ord("A"), ord("Z") + 1)}


def _ascii_lower(text: str) -> str:
    return text.translate(_LOWERED)


def _pattern_parts(pattern: str) -> list[str]:
    """One entry a step: a single character that must stand there, or the name of a wildcard."""
    parts: list[str] = []
    literal = False
    for char in pattern:
        if char == "\\" and not literal:
            literal = True
            continue
        parts.append(char if literal else _WILDCARDS.get(char, char))
        literal = False
    return parts


def _found(subject: Subject, facts: Facts) -> tuple[Any, ...]:
    place = facts if subject.kind is Kind.FIELD else facts.get(subject.kind.value) or {}
    value = place.get(subject.name)
    if value is None:
        return ()
    return tuple(value) if isinstance(value, (list, tuple, set, frozenset)) else (value,)


def _passes(kind: ValueType, operator: Operator, actual: Any, wanted: Any) -> bool:
    """Whether one actual value passes a positive operator."""
    match operator:
        case Operator.IN:
            return any(_passes(kind, Operator.EQUAL, actual, item) for item in wanted)
        case Operator.IN_RANGE:
            return bool(wanted.contains(semver.parse(actual)))
        case Operator.LIKE | Operator.ILIKE:
            return like(wanted, actual, ignore_case=operator is Operator.ILIKE)
    left, right = _comparable(kind, actual, wanted)
    if left is None:
        return False
    match operator:
        case Operator.EQUAL:
            return bool(left == right)
        case Operator.BELOW:
            return bool(left < right)
        case Operator.AT_MOST:
            return bool(left <= right)
        case Operator.ABOVE:
            return bool(left > right)
        case Operator.AT_LEAST:
            return bool(left >= right)
        case _:
            raise AssertionError(f"{operator} is compared through its positive")


def _comparable(kind: ValueType, actual: Any, wanted: Any) -> tuple[Any, Any]:
    """Both sides as Python compares them rightly; None on the left when the actual value is no such."""
    match kind:
        case ValueType.SEMVER:
            return semver.sort_key(semver.parse(actual)), semver.sort_key(wanted)
        case ValueType.FREE if isinstance(wanted, bool):
            return _ascii_lower(actual), "true" if wanted else "false"
        case ValueType.FREE if isinstance(wanted, float):
            return as_number(actual), wanted
        case _:
            return actual, wanted


def _sort_key(kind: ValueType, actual: Any) -> Any:
    match kind:
        case ValueType.SEMVER:
            return semver.sort_key(semver.parse(actual))
        case ValueType.FREE:
            number = as_number(actual)
            return (1, 0.0, actual) if number is None else (0, number, "")
        case _:
            return actual
