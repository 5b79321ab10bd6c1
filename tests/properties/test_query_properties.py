"""The filter language over everything: round trips, no crash on any text, linear work, its laws.

Examples of single filters are in tests/core/test_query.py.
"""

import re
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from modelkeep.core import errors, query, semver
from modelkeep.core.query import (
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
    Target,
    ValueType,
)

PACKAGE = str(Path(query.__file__).parent)
REFUSALS = (errors.InvalidFilter, errors.LimitExceeded)

# ---------------------------------------------------------------------------------------------------- filters

TEXTS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12)
KEYS = st.one_of(st.sampled_from(["a", "b", "val/f1", "cost centre"]), TEXTS.filter(bool))
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
INTEGERS = st.integers(-(2**63), 2**63 - 1)
TIMES = st.integers(-62_000_000_000_000_000, 250_000_000_000_000_000).map(
    lambda us: datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=us)
)
NUMBERS = st.integers(0, 12)
VERSIONS = st.builds(
    semver.SemVer,
    NUMBERS,
    NUMBERS,
    NUMBERS,
    st.sampled_from([(), ("rc", "1"), ("alpha",)]),
    st.sampled_from([(), ("b5",)]),
)
RANGES = st.sampled_from(["*", "^1.2", "~0.3", "1.x", ">=1.2 <2", "=1.0.0-rc.1"]).map(semver.parse_range)
PATTERNS = st.lists(st.one_of(st.sampled_from(["%", "_", r"\%", r"\_", r"\\"]), st.sampled_from('ab"`\n')))


def subjects(target: Target) -> st.SearchStrategy[Subject]:
    """Every subject that a target has."""
    fields = [name for name, entry in query.FIELDS.items() if target in entry.targets]
    return st.one_of(
        st.sampled_from([Subject(Kind.FIELD, name) for name in fields]),
        st.builds(Subject, st.sampled_from(query.KINDS[target]), KEYS),
    )


def literals(subject: Subject) -> list[st.SearchStrategy[Any]]:
    """The kinds of value that a subject may stand beside; an `in` list is of one kind."""
    entry = query.FIELDS.get(subject.name) if subject.kind is Kind.FIELD else None
    texts = TEXTS.map(str.lower) if entry and entry.lower else TEXTS
    if entry and entry.choices:
        texts = st.sampled_from(entry.choices)
    fractions = FLOATS.filter(
        lambda number: number != int(number) or int(number) not in range(-(2**63), 2**63)
    )
    return {
        ValueType.TEXT: [texts],
        ValueType.SEMVER: [VERSIONS],
        ValueType.INTEGER: [st.one_of(INTEGERS, fractions)],
        ValueType.NUMBER: [FLOATS],
        ValueType.TIME: [TIMES],
        ValueType.FREE: [TEXTS, FLOATS, st.booleans()],
    }[subject.type]


@st.composite
def comparisons(draw: st.DrawFn, target: Target) -> Comparison:
    """A comparison as `parse` would make it."""
    subject = draw(subjects(target))
    operator = draw(st.sampled_from(sorted(query.OPERATORS[subject.type])))
    values = draw(st.sampled_from(literals(subject)))
    if operator in (Operator.IN_RANGE, Operator.NOT_IN_RANGE):
        return Comparison(subject, operator, draw(RANGES))
    if "like" in operator.value:
        return Comparison(subject, operator, "".join(draw(PATTERNS)))
    if operator in (Operator.IN, Operator.NOT_IN):
        return Comparison(subject, operator, tuple(draw(st.lists(values, min_size=1, max_size=4))))
    value = draw(values)
    assume(not isinstance(value, bool) or operator in (Operator.EQUAL, Operator.NOT_EQUAL))
    return Comparison(subject, operator, value)


def joined(kind: type[And] | type[Or], parts: list[Expression]) -> Expression:
    """And or Or in the form `parse` gives it: flat, and of two parts at least."""
    flat = [inner for part in parts for inner in (part.parts if isinstance(part, kind) else (part,))]
    return kind(tuple(flat))


def expressions(target: Target = Target.VERSIONS) -> st.SearchStrategy[Expression]:
    """Trees as `parse` would make them."""

    def grown(children: st.SearchStrategy[Expression]) -> st.SearchStrategy[Expression]:
        several = st.lists(children, min_size=2, max_size=4)
        return st.one_of(
            st.builds(Not, children),
            several.map(lambda parts: joined(And, parts)),
            several.map(lambda parts: joined(Or, parts)),
        )

    leaves = st.one_of(comparisons(target), st.builds(Exists, subjects(target)))
    return st.recursive(leaves, grown, max_leaves=8)


# ------------------------------------------------------------------------------------------- reading, writing


@pytest.mark.req("V10")
@pytest.mark.parametrize("target", Target)
def test_what_is_written_reads_back_as_the_same_tree(target: Target) -> None:
    """`parse(unparse(tree)) == tree`, down to the types of the values, and the text is a fixed point."""

    @given(expressions(target))
    def check(tree: Expression) -> None:
        text = query.unparse(tree)
        try:
            again = query.parse(text, target)
        except errors.LimitExceeded:
            assume(False)
        assert again == tree
        assert query.unparse(again) == text

    check()


@given(st.lists(st.builds(Order, subjects(Target.VERSIONS), st.booleans()), min_size=1, max_size=8))
def test_an_order_reads_back_as_it_was_written(order: list[Order]) -> None:
    """`parse_order(unparse_order(order)) == order` for every order that can be."""
    assume(
        len({term.subject for term in order}) == len(order) and not any(term.subject.many for term in order)
    )

    assert query.parse_order(query.unparse_order(order), Target.VERSIONS) == tuple(order)


# Pieces that get further into the grammar than letters thrown at random.
PIECES = st.sampled_from(
    "and or not in range like ilike is null exists true ( ) , = == != <> < <= >= => && ! ` \" ' \\ . "
    'number semver stage alias created_at status metrics.a params.`b c` tags."d" tags. "1.2.0" "^1" "%x_" '
    "\"2026-01-25\" 'ready' 7 -0.5 1e9 1e999 99999999999999999999 \0 \n \ud800 “ é 漢 \x1b ~ # -- ; $1".split(
        " "
    )
)
HOSTILE = st.one_of(
    st.text(st.characters(), max_size=60),
    st.lists(PIECES, max_size=30).map(" ".join),
    st.lists(PIECES, max_size=30).map("".join),
)


def check_refusal(error: errors.ModelkeepError, text: str) -> None:
    """What every refusal carries."""
    assert error.message.isprintable()
    if "caret" not in error.details:
        return
    line, caret = error.details["caret"].split("\n")
    assert line.isprintable()
    assert caret.lstrip(" ") == "^"
    assert 0 <= error.details["position"] <= len(text)
    assert len(error.details["filter"]) == len(text)
    error.details["filter"].encode("utf-8")


@pytest.mark.req("V10")
@settings(max_examples=400)
@given(HOSTILE, st.sampled_from(Target))
def test_any_text_is_read_or_refused_and_nothing_else(text: str, target: Target) -> None:
    """Whatever is typed, the outcome is a tree that writes and evaluates, or a refusal that says where."""
    try:
        tree = query.parse(text, target)
    except REFUSALS as error:
        check_refusal(error, text)
    else:
        assert query.parse(query.unparse(tree), target) == tree
        assert query.matches(tree, {}) in (True, False)


@settings(max_examples=200)
@given(HOSTILE, st.sampled_from(Target))
def test_any_order_is_read_or_refused_and_nothing_else(text: str, target: Target) -> None:
    """The same for orders."""
    try:
        order = query.parse_order(text, target)
    except REFUSALS as error:
        check_refusal(error, text)
    else:
        assert query.parse_order(query.unparse_order(order), target) == order


@given(expressions(), st.data())
def test_a_damaged_filter_is_read_or_refused_and_nothing_else(tree: Expression, data: st.DataObject) -> None:
    """Real filters with a character lost, doubled or replaced: the mistakes that people make."""
    text = query.unparse(tree)
    place = data.draw(st.integers(0, len(text) - 1))
    piece = data.draw(st.one_of(st.just(""), st.just(text[place] * 2), st.characters()))
    damaged = text[:place] + piece + text[place + 1 :]

    try:
        query.parse(damaged, Target.VERSIONS)
    except REFUSALS as error:
        check_refusal(error, damaged)


# ----------------------------------------------------------------------------------------------------- effort


def steps(work: Callable[[], object]) -> int:
    """How many lines of the language's own code run: the same count on every machine, unlike a clock."""
    count = 0

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal count
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    except REFUSALS:
        pass
    finally:
        sys.settrace(before)
    return count


STEPS_A_CHARACTER = 60
"""Measured: the dearest filters below take about 32 lines for each character."""

BOMBS = [
    "(",
    ")",
    "not ",
    "-",
    "+",
    ".",
    "1",
    "1.",
    "1e",
    "1e+",
    "a",
    "a.",
    "metrics.",
    "tags.a ",
    "tags.`",
    '"',
    '"a" ',
    "\\",
    '"\\\\',
    '"\\%',
    "`",
    " ",
    "\n",
    "=",
    "<>",
    "&",
    "number = 1 or ",
    "number = 1 and (",
    "tags.a exists and not (",
    "tags.a in (1,",
    "number in (" + "1," * 100,
    'owner like "%' + "%a" * 40 + '" or ',
    "漢",
    "\u0301",
    "\ud800",
]


@pytest.mark.req("V10")
@pytest.mark.parametrize("bomb", BOMBS)
@pytest.mark.parametrize(
    "start", ["", "number = 1 or ", "tags.a in (", "owner = ", 'owner = "', "semver in range "]
)
@pytest.mark.hostile("filter-bombs")
def test_the_work_grows_with_the_length_and_no_faster(bomb: str, start: str) -> None:
    """A filter of the largest size, whatever it repeats, costs a bounded number of steps a character."""
    text = start + bomb * (query.FILTER_MAX_BYTES // len(bomb.encode("utf-8", "surrogatepass")))
    while len(text.encode("utf-8", "surrogatepass")) > query.FILTER_MAX_BYTES:
        text = text[:-1]

    for size in (len(text) // 8, len(text)):
        part = text[:size]
        assert steps(partial(query.parse, part, Target.VERSIONS)) <= STEPS_A_CHARACTER * (size + 20)


def test_what_is_too_long_is_not_even_looked_at() -> None:
    """A filter of a megabyte costs as little as one that is a byte too long."""
    assert steps(lambda: query.parse("(" * 1_000_000, Target.VERSIONS)) < 20


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        ("%a" * 100 + "b", "a" * 2_000),
        ("%" * 256, "a" * 2_000),
        ("%_" * 120 + "b", "a" * 2_000),
        ("a%" * 120, "a" * 2_000),
        ("%" + "a" * 200 + "b", "a" * 2_000),
    ],
)
@pytest.mark.hostile("filter-bombs")
def test_a_pattern_cannot_make_matching_explode(pattern: str, text: str) -> None:
    """The classic bombs of wildcard matching stay within the product of the two lengths."""
    assert steps(lambda: query.like(pattern, text)) <= 8 * (len(pattern) + 1) * (len(text) + 1)


# ---------------------------------------------------------------------------------------------------- meaning

FACTS = st.fixed_dictionaries(
    {
        "metrics": st.dictionaries(st.sampled_from("ab"), st.sampled_from([-1.0, 0.0, 0.5, 1.0])),
        "params": st.dictionaries(st.sampled_from("ab"), st.sampled_from(["0", "1", "1.0", "x", "True"])),
        "tags": st.dictionaries(st.sampled_from("ab"), st.sampled_from(["", "1", "x", "X%", "true"])),
        "alias": st.lists(st.sampled_from(["x", "y", "z"]), unique=True),
        "number": st.one_of(st.none(), st.integers(0, 3)),
        "semver": st.one_of(st.none(), VERSIONS.map(str)),
        "owner": st.one_of(st.none(), st.sampled_from(["x", "ada"])),
        "created_at": st.one_of(st.none(), TIMES),
    }
)
CLAUSES = [
    "metrics.a > 0",
    "metrics.b in (0, 1)",
    "params.a = 1",
    'params.b >= "1"',
    "tags.a = true",
    'tags.b ilike "x%"',
    'alias = "x"',
    'alias in ("y", "z")',
    "number <= 2",
    'semver < "1.2.0"',
    'semver in range "^1"',
    'owner = "x"',
    'created_at >= "2000-01-01"',
]
CONDITIONS = st.sampled_from(CLAUSES)


def holds(text: str, facts: query.Facts) -> bool:
    """Whether the facts pass the filter."""
    return query.matches(query.parse(text, Target.VERSIONS), facts)


@given(CONDITIONS, CONDITIONS, FACTS)
def test_the_laws_of_logic_hold(a: str, b: str, facts: query.Facts) -> None:
    """De Morgan, double negation, the excluded middle: `not` is plain negation, also of what is missing."""
    assert holds(f"not ({a} and {b})", facts) == holds(f"not {a} or not {b}", facts)
    assert holds(f"not ({a} or {b})", facts) == holds(f"not {a} and not {b}", facts)
    assert holds(f"not not {a}", facts) == holds(a, facts)
    assert holds(f"{a} or not {a}", facts)


@given(comparisons(Target.VERSIONS), FACTS)
def test_a_negative_operator_means_there_is_a_value_and_not_that_one(
    comparison: Comparison, facts: query.Facts
) -> None:
    """For every negative operator: it is "exists and not the positive", so positive ones suffice."""
    assume(comparison.operator in query.NEGATIONS)
    positive = Comparison(comparison.subject, query.NEGATIONS[comparison.operator], comparison.value)

    assert query.matches(comparison, facts) == query.matches(
        And((Exists(comparison.subject), Not(positive))), facts
    )


@given(comparisons(Target.VERSIONS), FACTS)
def test_a_comparison_that_holds_has_a_value(comparison: Comparison, facts: query.Facts) -> None:
    """Nothing that is missing ever passes."""
    if query.matches(comparison, facts):
        assert query.matches(Exists(comparison.subject), facts)


@given(FACTS, st.sampled_from(["metrics.a", "number", "params.a"]), st.integers(0, 2))
def test_below_equal_and_above_part_what_is_there(facts: query.Facts, subject: str, pivot: int) -> None:
    """Of <, = and > exactly one holds for a number, none without one; <= and >= are their unions."""
    below, equal, above = (holds(f"{subject} {sign} {pivot}", facts) for sign in "<=>")
    readable = holds(f"{subject} <= {pivot} or {subject} > {pivot}", facts)

    assert below + equal + above == readable
    assert holds(f"{subject} <= {pivot}", facts) == (below or equal)
    assert holds(f"{subject} >= {pivot}", facts) == (above or equal)


@given(
    st.lists(st.sampled_from(["%", "_", "a", "B", "b", r"\%", r"\\"]), max_size=8),
    st.text("abB%\\\n", max_size=8),
)
def test_patterns_match_as_regular_expressions_would(parts: list[str], text: str) -> None:
    """The hand-written matcher agrees with the standard library's on every small pattern."""
    wild = {"%": ".*", "_": "."}
    oracle = "".join(wild.get(part, re.escape(part[-1])) for part in parts)

    assert query.like("".join(parts), text) == bool(re.fullmatch(oracle, text, re.DOTALL))
    assert query.like("".join(parts), text, ignore_case=True) == bool(
        re.fullmatch(oracle, text, re.DOTALL | re.IGNORECASE | re.ASCII)
    )


@given(FLOATS)
def test_every_number_that_can_be_written_is_a_number_in_a_tag(number: float) -> None:
    """A parameter logged as a float is found again by the same float."""
    assert query.as_number(repr(number)) == number
    assert query.matches(
        Comparison(Subject(Kind.PARAM, "p"), Operator.EQUAL, number), {"params": {"p": repr(number)}}
    )


@given(
    st.lists(FACTS, max_size=8),
    st.lists(
        st.sampled_from(["metrics.a", "params.b", "tags.a", "number", "semver", "owner", "created_at"]),
        min_size=1,
        max_size=3,
        unique=True,
    ),
    st.booleans(),
)
def test_sorting_agrees_with_the_comparisons(
    items: list[query.Facts], names: list[str], descending: bool
) -> None:
    """Nothing is lost, what is missing is last, and neighbours stand as a comparison of the two says."""
    direction = "desc" if descending else "asc"
    order = query.parse_order(", ".join(f"{name} {direction}" for name in names), Target.VERSIONS)
    result = query.sort(items, order)

    assert sorted(map(id, result)) == sorted(map(id, items))
    first = order[0].subject
    present = [query.matches(Exists(first), item) for item in result]
    assert present == sorted(present, reverse=True)
    if first.type in (ValueType.NUMBER, ValueType.INTEGER, ValueType.TEXT, ValueType.TIME):
        place = Operator.AT_MOST if descending else Operator.AT_LEAST
        for former, latter in pairwise(result):
            holder = former if first.kind is Kind.FIELD else former[first.kind.value]
            if query.matches(Exists(first), latter):
                assert query.matches(Comparison(first, place, holder[first.name]), latter)
