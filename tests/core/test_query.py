"""The filter language by example: what is read, what is refused and how that reads, and what it means.

Invariants over all filters are in tests/properties/test_query_properties.py.
"""

import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from modelkeep.core import errors, query, semver, values
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

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "filter-language.md"


def read(text: str, target: Target = Target.VERSIONS) -> Expression:
    """Parse, as a search of versions unless told otherwise."""
    return query.parse(text, target)


def field(name: str) -> Subject:
    """A field as a subject."""
    return Subject(Kind.FIELD, name)


ACCURACY = Subject(Kind.METRIC, "accuracy")
TEAM = Subject(Kind.TAG, "team")


# ---------------------------------------------------------------------------------------------------- reading


@pytest.mark.req("V10")
def test_the_readme_example_becomes_a_typed_tree() -> None:
    """A filter over a metric and a tag resolves its subjects and types its values."""
    tree = read('metrics.accuracy > 0.9 and tags.team = "risk"')

    assert tree == And((Comparison(ACCURACY, Operator.ABOVE, 0.9), Comparison(TEAM, Operator.EQUAL, "risk")))


@pytest.mark.req("V10")
@pytest.mark.parametrize(
    ("text", "subject", "operator", "value"),
    [
        ("number = 7", field("number"), Operator.EQUAL, 7),
        ("number == +7", field("number"), Operator.EQUAL, 7),
        ("number <> -7", field("number"), Operator.NOT_EQUAL, -7),
        ("size_bytes < 1e9", field("size_bytes"), Operator.BELOW, 1_000_000_000),
        ("size_bytes < 1.5", field("size_bytes"), Operator.BELOW, 1.5),
        ("size_bytes < 1e30", field("size_bytes"), Operator.BELOW, 1e30),
        ("number = 9223372036854775807", field("number"), Operator.EQUAL, 2**63 - 1),
        ("number = -9223372036854775808", field("number"), Operator.EQUAL, -(2**63)),
        ("metrics.accuracy>=.5", ACCURACY, Operator.AT_LEAST, 0.5),
        ("metric.accuracy <= 5", ACCURACY, Operator.AT_MOST, 5.0),
        ("param.depth = 6", Subject(Kind.PARAM, "depth"), Operator.EQUAL, 6.0),
        ("params.shuffle != FALSE", Subject(Kind.PARAM, "shuffle"), Operator.NOT_EQUAL, False),
        ("tag.team IN ('a', \"b\")", TEAM, Operator.IN, ("a", "b")),
        ("tags.team Not In (1, 2)", TEAM, Operator.NOT_IN, (1.0, 2.0)),
        ("tags.team like 'a%'", TEAM, Operator.LIKE, "a%"),
        ("tags.team not ilike 'a_'", TEAM, Operator.NOT_ILIKE, "a_"),
        ("stage = 'Production'", field("stage"), Operator.EQUAL, "production"),
        ("name = 'churn'", field("model"), Operator.EQUAL, "churn"),
        ("version = '1.2.0-rc.1'", field("semver"), Operator.EQUAL, semver.parse("1.2.0-rc.1")),
        ("semver in range '^1.2'", field("semver"), Operator.IN_RANGE, semver.parse_range("^1.2")),
        ("semver not in range '1.x'", field("semver"), Operator.NOT_IN_RANGE, semver.parse_range("1.x")),
        ("created_at > '2026-01-25'", field("created_at"), Operator.ABOVE, datetime(2026, 1, 25, tzinfo=UTC)),
        (
            "created_at > '2026-01-25T15:03+01:00'",
            field("created_at"),
            Operator.ABOVE,
            datetime(2026, 1, 25, 14, 3, tzinfo=UTC),
        ),
    ],
)
def test_a_condition_carries_subject_operator_and_typed_value(
    text: str, subject: Subject, operator: Operator, value: object
) -> None:
    """Each spelling becomes the one comparison it stands for, its value of the exact type."""
    tree = read(text)

    assert tree == Comparison(subject, operator, value)  # type: ignore[arg-type]  # object: any of them
    assert isinstance(tree, Comparison)
    assert type(tree.value) is type(value)


@pytest.mark.parametrize(
    ("text", "kind", "key"),
    [
        ("metrics.f1@validation exists", Kind.METRIC, "f1@validation"),
        ("tags.mlflow.runName exists", Kind.TAG, "mlflow.runName"),
        ("tags.quant:int8 exists", Kind.TAG, "quant:int8"),
        ("tags.and exists", Kind.TAG, "and"),
        ("TAGS.Team exists", Kind.TAG, "Team"),
        ("tags.größe exists", Kind.TAG, "größe"),
        ("tags.`cost centre` exists", Kind.TAG, "cost centre"),
        ('tags."a.`b` = 1" exists', Kind.TAG, "a.`b` = 1"),
        (r'params."say \"hi\" \\ \n" exists', Kind.PARAM, 'say "hi" \\ \n'),
    ],
)
def test_a_key_may_hold_anything_when_it_is_quoted(text: str, kind: Kind, key: str) -> None:
    """Usual keys need no quotes; backticks and double quotes take the rest."""
    assert read(text) == Exists(Subject(kind, key))


def test_not_binds_before_and_before_or() -> None:
    """The three words bind in the usual order, and parentheses change it."""
    a, b, c = (Exists(Subject(Kind.TAG, key)) for key in "abc")

    assert read("not tags.a exists and tags.b exists or tags.c exists") == Or((And((Not(a), b)), c))
    assert read("not (tags.a exists and (tags.b exists or tags.c exists))") == Not(And((a, Or((b, c)))))


def test_parentheses_that_change_nothing_leave_no_trace() -> None:
    """`(a and b) and c` is one And of three, so that equal filters are equal trees."""
    assert read("((tags.a exists and tags.b exists)) and (tags.c exists)") == read(
        "tags.a exists and tags.b exists and tags.c exists"
    )


def test_absence_has_one_form() -> None:
    """`is null` and `not exists` are the same tree, and so are `is not null` and `exists`."""
    assert read("tags.team is null") == read("tags.team NOT EXISTS") == Not(Exists(TEAM))
    assert read("tags.team is not null") == read("tags.team exists") == Exists(TEAM)


def test_a_percent_sign_can_be_meant() -> None:
    """In a pattern an escaped wildcard stays escaped; elsewhere the escape just vanishes."""
    assert read(r'tags.team like "5\%\\%\"_"') == Comparison(TEAM, Operator.LIKE, r"5\%\\%" + '"_')
    assert read(r'tags.team = "5\%\_"') == Comparison(TEAM, Operator.EQUAL, "5%_")


@pytest.mark.req("T4")
def test_models_have_other_fields_than_versions() -> None:
    """A search of models knows their fields and tags alone, and says where the others are."""
    assert read('model = "churn"', Target.MODELS) == Comparison(field("name"), Operator.EQUAL, "churn")
    for text in ("number = 1", "metrics.accuracy > 1", "params.depth = 1"):
        with pytest.raises(errors.InvalidFilter, match="search"):
            read(text, Target.MODELS)
    with pytest.raises(errors.InvalidFilter, match="field of models"):
        read('updated_at > "2026-01-01"')


def test_every_type_has_exactly_its_operators() -> None:
    """Each operator is read for the types that have it, and refused with a caret for those that do not."""
    examples = {
        ValueType.TEXT: ("owner", '"a"'),
        ValueType.SEMVER: ("semver", '"1.0.0"'),
        ValueType.INTEGER: ("number", "1"),
        ValueType.NUMBER: ("metrics.f1", "1"),
        ValueType.TIME: ("created_at", '"2026-01-01"'),
        ValueType.FREE: ("tags.team", '"a"'),
    }
    for kind, (subject, literal) in examples.items():
        for operator in Operator:
            in_list = operator in (Operator.IN, Operator.NOT_IN)
            text = f"{subject} {operator.value} {f'({literal})' if in_list else literal}"
            if operator in query.OPERATORS[kind]:
                assert isinstance(read(text), Comparison), text
            else:
                with pytest.raises(errors.InvalidFilter, match=f"compared with {operator.value}"):
                    read(text)


# --------------------------------------------------------------------------------------------------- refusing

WRONG = [
    "",
    "   ",
    'ownr = "ada"',
    'stage = "production" and ownr = "ada"',
    "accuracy > 0.9",
    "metrik.accuracy > 0.9",
    'owner.name = "ada"',
    "metrics > 0.9",
    "metrics. > 0.9",
    "tags.`` exists",
    "metrics.accuracy",
    "metrics.accuracy >",
    "metrics.accuracy => 0.9",
    'metrics.accuracy > "high"',
    "metrics.accuracy > 1e999",
    "metrics.accuracy > 0.9.1",
    "metrics.accuracy ~ 0.9",
    "number = 9223372036854775808",
    'number = "7"',
    "owner = ada",
    "owner = 5",
    "owner = null",
    'owner = "ada',
    r'owner = "a\d"',
    "owner = “ada”",
    "owner is ada",
    'owner not = "ada"',
    "owner in ada",
    'owner in ("ada" "bob")',
    "owner in ()",
    'tags.level in (1, "two")',
    "tags.level < true",
    "tags.level like 5",
    'status = "redy"',
    'semver = "1.2"',
    'semver > "^1.2"',
    'semver like "1.%"',
    'semver in range "1.2.3.4"',
    "created_at > 2026-01-25",
    'created_at > "yesterday"',
    'created_at > "2026-01-25T14:03"',
    'created_at > "0001-01-01T00:00+05:00"',
    "(number = 1",
    "number = 1)",
    "number = 1 number = 2",
    "number = 1 && number = 2",
    "number = 1 and",
    "and number = 1",
    "!(number = 1)",
    'owner = "ada"\n  and nmber = 1',
    'owner = "漢字" and nmber = 1',
    "number = 1\x1b[31m \x07",
]


def refusal(text: str, target: Target = Target.VERSIONS) -> errors.ModelkeepError:
    """The error that a filter is refused with."""
    with pytest.raises((errors.InvalidFilter, errors.LimitExceeded)) as caught:
        read(text, target)
    return caught.value


@pytest.mark.req("V10")
def test_every_refusal_says_what_to_do_and_where(golden: Callable[[str, str], None]) -> None:
    """The golden file holds each message with its two lines, as a person sees them."""
    pages = []
    for text in WRONG:
        error = refusal(text)
        assert isinstance(error, errors.InvalidFilter)
        caret = error.details["caret"].replace("\n", "\n    ")
        pages.append(f"{error.message}\n    {caret}\n")

    golden("filter_refusals.txt", "\n".join(line.rstrip(" ") for line in "\n".join(pages).split("\n")))


@pytest.mark.parametrize("text", WRONG)
def test_a_refusal_is_one_printable_sentence_with_its_place(text: str) -> None:
    """Each message is one sentence that steers no terminal, and its details find the place again."""
    error = refusal(text)

    assert error.message.isprintable()
    assert error.message[-1] in ".?"
    assert "\n" not in error.message
    assert error.details["filter"] == text
    assert 0 <= error.details["position"] <= len(text)
    line, caret = error.details["caret"].split("\n")
    assert line.isprintable()
    assert caret.strip() == "^"


@pytest.mark.parametrize(
    ("text", "under"),
    [
        ('stage = "production" and ownr = 1', "ownr"),
        ('owner = "x"\n and nmber = 1', "nmber"),
        ("number = x", "x"),
    ],
)
def test_the_caret_stands_under_the_word_that_is_wrong(text: str, under: str) -> None:
    """Position and caret point at the first character of what is wrong, on its own line of the filter."""
    error = refusal(text)
    line, caret = error.details["caret"].split("\n")

    assert text[error.details["position"] :].startswith(under)
    assert line[caret.index("^") :].startswith(under)


def test_the_caret_counts_the_columns_of_a_terminal() -> None:
    """Wide characters take two columns, combining ones none, control ones the four they are shown as."""
    assert query.caret("漢 x", 2) == "漢 x\n   ^"
    assert query.caret("e\u0301 x", 3) == "e\u0301 x\n  ^"
    assert query.caret("\x1b x", 2) == "\\x1b x\n     ^"


def test_the_caret_of_a_long_filter_shows_its_surroundings() -> None:
    """A long line is cut on both sides of the place, so that the caret never wraps."""
    text = 'owner = "a" and ' * 40 + "ownr = 1 or " + 'owner = "b" and ' * 40
    line, caret = refusal(text).details["caret"].split("\n")

    assert line.startswith("...")
    assert line.endswith("...")
    assert len(line) < 130
    assert line[caret.index("^") :].startswith("ownr")


@pytest.mark.parametrize(
    ("text", "suggestion"),
    [
        ("ownr = 'ada'", "owner"),
        ("SEMVR = '1.0.0'", "semver"),
        ("metrik.accuracy > 1", "metrics.accuracy"),
        ("tgs.`a b` exists", "tags.`a b`"),
        ("status = 'redy'", "ready"),
        ("zzzzzz = 1", None),
    ],
)
def test_a_near_miss_is_suggested(text: str, suggestion: str | None) -> None:
    """What was probably meant stands in the details, and nothing stands there when nothing is near."""
    error = refusal(text)

    assert error.details.get("suggestion") == suggestion


def test_an_undecodable_byte_is_refused_in_a_way_that_can_be_sent() -> None:
    """A lone surrogate from a command line is refused, and the details can still be written as UTF-8."""
    error = refusal('owner = "\udcff"')

    assert error.details["position"] == 9
    assert error.details["filter"] == 'owner = "?"'
    for part in (error.message, error.details["filter"], error.details["caret"]):
        part.encode("utf-8")


def nested(opening: str, closing: str, depth: int) -> str:
    """One condition inside that many openings."""
    return opening * depth + "number = 1" + closing * depth


@pytest.mark.req("V10")
@pytest.mark.parametrize(
    ("fits", "exceeds", "limit"),
    [
        ("number = 1".ljust(4096), "number = 1".ljust(4097), query.FILTER_MAX_BYTES),
        (f'owner = "{"é" * 2043}"', f'owner = "{"é" * 2044}"', query.FILTER_MAX_BYTES),
        (" or ".join(["number = 1"] * 100), " or ".join(["number = 1"] * 101), query.CLAUSES_MAX),
        (nested("(", ")", 10), nested("(", ")", 11), query.DEPTH_MAX),
        (nested("not ", "", 10), nested("not ", "", 11), query.DEPTH_MAX),
        (nested("not (", ")", 5), nested("not (", ")", 6), query.DEPTH_MAX),
        (f"number in ({'1,' * 199}1)", f"number in ({'1,' * 200}1)", query.LIST_MAX),
        (f'owner like "{"a" * 256}"', f'owner like "{"a" * 257}"', query.PATTERN_MAX),
    ],
)
def test_a_limit_is_reached_and_not_passed(fits: str, exceeds: str, limit: int) -> None:
    """The largest filter of each kind is read, and the next one is refused by name."""
    read(fits)

    error = refusal(exceeds)
    assert isinstance(error, errors.LimitExceeded)
    assert error.details["limit"] == limit
    assert f"{limit:,}" in error.message


def test_a_key_is_as_long_as_a_tag_key_may_be() -> None:
    """250 characters are read, and one more is refused."""
    assert read(f"tags.{'k' * values.TAG_KEY_MAX} exists")
    with pytest.raises(errors.InvalidFilter, match="at most 250"):
        read(f"tags.{'k' * (values.TAG_KEY_MAX + 1)} exists")


# ---------------------------------------------------------------------------------------------------- writing


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("tag.a=1", "tags.a = 1.0"),
        ("NOT(number=1 OR number=2)and stage='X'", 'not (number = 1 or number = 2) and stage = "x"'),
        ("number=1 or (number=2 and number=3)", "number = 1 or number = 2 and number = 3"),
        ("not tags.a is null", "not tags.a is null"),
        ('tags.a = "x\ty\nz"', r'tags.a = "x\ty\nz"'),
        ("created_at<'2026-01-25T00:00Z'", 'created_at < "2026-01-25"'),
        ("created_at<'2026-01-25T14:03+01:00'", 'created_at < "2026-01-25T13:03:00Z"'),
        ('tags.`a b`in("x",\'y"z\')', 'tags.`a b` in ("x", "y\\"z")'),
        ("semver not in range '>=1.2  <2'", 'semver not in range ">=1.2 <2"'),
    ],
)
def test_the_normal_form_reads_well(text: str, normal: str) -> None:
    """Unparsing puts canonical names, double quotes and only the parentheses that are needed."""
    tree = read(text)

    assert query.unparse(tree) == normal
    assert read(normal) == tree


# ---------------------------------------------------------------------------------------------------- meaning

FACTS: dict[str, Any] = {
    "model": "churn",
    "project": "risk",
    "owner": "ada",
    "number": 7,
    "semver": "1.10.0+build.5",
    "stage": "production",
    "alias": ["champion", "blue"],
    "description": None,
    "size_bytes": 2**53 + 1,
    "created_at": datetime(2026, 1, 25, 14, 3, tzinfo=UTC),
    "metrics": {"accuracy": 0.94, "loss": 0.0},
    "params": {"depth": "10", "kernel": "rbf", "shuffle": "True", "odd": "1_0"},
    "tags": {"team": "Risk_50%", "empty": ""},
}


@pytest.mark.req("V10")
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("metrics.accuracy > 0.9", True),
        ("metrics.accuracy > 0.94", False),
        ("metrics.accuracy >= 0.94", True),
        ("metrics.loss = 0", True),
        ("size_bytes = 9007199254740993", True),
        ("size_bytes = 9007199254740992", False),
        ('semver > "1.9.0"', True),
        ('semver = "1.10.0"', True),
        ('semver in ("1.10.0+other", "2.0.0")', True),
        ('semver in range "^1.2"', True),
        ('semver not in range "^1.2"', False),
        ('created_at = "2026-01-25T15:03+01:00"', True),
        ('created_at < "2026-01-25"', False),
        ('stage = "PRODUCTION"', True),
        ('owner = "ADA"', False),
        ('owner < "b"', True),
        ("params.depth > 9", True),
        ('params.depth > "9"', False),
        ("params.depth in (9, 10)", True),
        ("params.kernel > 0", False),
        ("params.kernel != 0", True),
        ("params.odd = 10", False),
        ("params.shuffle = true", True),
        ("params.shuffle != false", True),
        ('params.shuffle = "true"', False),
        ('tags.team like "Risk%"', True),
        ('tags.team like "risk%"', False),
        ('tags.team ilike "risk%"', True),
        (r'tags.team like "%\_50\%"', True),
        (r'tags.team like "Risk\%"', False),
        ('tags.team like "R__k_50_"', True),
        ('tags.team not like "%x%"', True),
        ('tags.empty = ""', True),
        ("tags.empty exists", True),
        ('tags.empty like "%"', True),
        ('tags.empty like "_"', False),
        # Nothing there: every comparison is false, its negation by `not` is true.
        ("metrics.f1 > 0", False),
        ("metrics.f1 <= 0", False),
        ("metrics.f1 != 0", False),
        ("metrics.f1 not in (0)", False),
        ('tags.nobody not like "%"', False),
        ("not metrics.f1 > 0", True),
        ("metrics.f1 exists", False),
        ("metrics.f1 is null", True),
        ("description is null", True),
        ('description != "x"', False),
        ("framework not exists", True),
        # Many there: one is enough, and a negative operator means none.
        ('alias = "blue"', True),
        ('alias like "cham%"', True),
        ('alias in ("x", "champion")', True),
        ('alias != "blue"', False),
        ('alias != "green"', True),
        ('alias not in ("green", "blue")', False),
        ('alias = "blue" and alias = "champion"', True),
    ],
)
def test_a_condition_means_what_the_page_says(text: str, expected: bool) -> None:
    """One version's facts against each rule of the language."""
    assert query.matches(read(text), FACTS) is expected


@pytest.mark.parametrize("a", [True, False, None])
@pytest.mark.parametrize("b", [True, False, None])
def test_and_or_not_have_two_truth_values(a: bool | None, b: bool | None) -> None:
    """The whole truth table, with a value that is not there (None) counting as false in each comparison."""
    tags = {key: str(value) for key, value in (("a", a), ("b", b)) if value is not None}

    def holds(text: str) -> bool:
        return query.matches(read(text), {"tags": tags})

    assert holds("tags.a = true and tags.b = true") is (a is True and b is True)
    assert holds("tags.a = true or tags.b = true") is (a is True or b is True)
    assert holds("not tags.a = true") is (a is not True)
    assert holds("tags.a != true") is (a is False)
    assert holds("not (tags.a = true and tags.b = true)") is not (a is True and b is True)
    assert holds("tags.a is null") is (a is None)


def test_facts_may_lack_whole_sections() -> None:
    """No metrics at all is the same as not this metric."""
    assert not query.matches(read("metrics.accuracy exists or tags.team exists"), {})
    assert not query.matches(read('alias != "x"'), {"alias": []})


@pytest.mark.parametrize(
    ("text", "number"),
    [("10", 10.0), ("-.5e-3", -0.0005), ("+1.", 1.0), ("007", 7.0)]
    + [
        (text, None)
        for text in ("", " 1", "1 ", "nan", "inf", "1_0", "0x10", "1e", "1e999", "٣", "1.2.3", "-", ".")
    ],
)
def test_only_what_is_a_number_in_a_filter_is_one_in_a_tag(text: str, number: float | None) -> None:
    """Parameters and tags are numbers by the filter's own rule, not by what some library would swallow."""
    assert query.as_number(text) == number


# ------------------------------------------------------------------------------------------------------ order


@pytest.mark.req("V9")
def test_an_order_is_read_and_written() -> None:
    """Terms keep their place, `asc` is the default and goes without saying."""
    order = query.parse_order("metrics.accuracy DESC, semver asc, tags.`a b`", Target.VERSIONS)

    assert order == (Order(ACCURACY, True), Order(field("semver")), Order(Subject(Kind.TAG, "a b")))
    assert query.unparse_order(order) == "metrics.accuracy desc, semver, tags.`a b`"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "Expected a field"),
        ("semver,", "Expected a field"),
        ("semver number", "Expected asc"),
        ("semver desc asc", "Expected asc"),
        ("alias", "several values"),
        ("semver, name, version desc", "twice"),
        ("accuracy desc", "metrics.accuracy"),
    ],
)
def test_an_order_that_cannot_be_is_refused_with_its_place(text: str, message: str) -> None:
    """The refusals of an order read like those of a filter."""
    with pytest.raises(errors.InvalidFilter, match=message) as caught:
        query.parse_order(text, Target.VERSIONS)

    assert caught.value.details["caret"].endswith("^")


def test_an_order_has_a_limit() -> None:
    """Eight terms are read, nine are not."""
    terms = [f"tags.t{i}" for i in range(9)]

    assert len(query.parse_order(",".join(terms[:8]), Target.VERSIONS)) == query.ORDER_MAX
    with pytest.raises(errors.LimitExceeded):
        query.parse_order(",".join(terms), Target.VERSIONS)


@pytest.mark.req("V9")
def test_versions_sort_by_precedence_and_the_missing_come_last() -> None:
    """1.10 is above 1.9, and what has no value is last whichever the direction."""
    items = [{"semver": text} for text in ("1.10.0", "1.9.0", "1.10.0-rc.1")] + [{"semver": None}]

    def ordered(text: str) -> list[object]:
        return [item["semver"] for item in query.sort(items, query.parse_order(text, Target.VERSIONS))]

    assert ordered("semver") == ["1.9.0", "1.10.0-rc.1", "1.10.0", None]
    assert ordered("semver desc") == ["1.10.0", "1.10.0-rc.1", "1.9.0", None]


def test_numbers_among_tags_sort_by_value_before_words() -> None:
    """9 is below 10, both are before words, and `desc` turns this whole order around."""
    items = [{"tags": {"n": text}} for text in ("b", "10", "9", "a")] + [{"tags": {}}]

    def ordered(text: str) -> list[str | None]:
        return [item["tags"].get("n") for item in query.sort(items, query.parse_order(text, Target.VERSIONS))]

    assert ordered("tags.n") == ["9", "10", "a", "b", None]
    assert ordered("tags.n desc") == ["b", "a", "10", "9", None]


def test_later_terms_decide_between_equals_and_ties_stay() -> None:
    """The first term counts most, and items that are equal in all terms keep their order."""
    items = [
        {"number": number, "metrics": {"f1": f1}} for number, f1 in ((1, 0.5), (2, 0.9), (3, 0.5), (4, 0.9))
    ]

    def numbers(text: str) -> list[object]:
        return [item["number"] for item in query.sort(items, query.parse_order(text, Target.VERSIONS))]

    assert numbers("metrics.f1 desc, number desc") == [4, 2, 3, 1]
    assert numbers("metrics.f1") == [1, 3, 2, 4]


# ---------------------------------------------------------------------------------------------- the reference


def test_the_page_lists_every_field_with_its_meaning() -> None:
    """The table of fields in the reference is the table in the code, in the same order."""
    rows = re.findall(
        r"^\| `(\w+)` \| ([\w ]+) \| ([\w, ]+) \| (.+) \|$", PAGE.read_text("utf-8"), re.MULTILINE
    )

    assert rows == [
        (
            name,
            " and ".join(sorted(entry.targets)),
            entry.type.value + (", many" if entry.many else ""),
            entry.meaning,
        )
        for name, entry in query.FIELDS.items()
    ]


def test_the_page_names_every_operator_type_and_limit() -> None:
    """Nothing of the language is missing from the reference."""
    page = PAGE.read_text("utf-8")

    for operator in Operator:
        assert re.search(rf"`{re.escape(operator.value)}( \(\.\.\.\))?`", page), operator
    for kind in ValueType:
        assert f"\n| {kind.value} |" in page, kind
    limits = (
        query.FILTER_MAX_BYTES,
        query.CLAUSES_MAX,
        query.DEPTH_MAX,
        query.LIST_MAX,
        query.PATTERN_MAX,
        values.TAG_KEY_MAX,
        query.ORDER_MAX,
    )
    assert re.findall(r"\| ([\d,]+) \|$", page, re.MULTILINE) == [f"{limit:,}" for limit in limits]


def test_the_examples_of_the_page_are_read() -> None:
    """Each line of each example block is a filter, and the one mistake reads as it is shown."""
    page = PAGE.read_text("utf-8")
    examples = [
        line for block in re.findall(r"```filter\n(.*?)```", page, re.DOTALL) for line in block.splitlines()
    ]

    assert len(examples) > 5
    for example in examples:
        assert query.parse(query.unparse(read(example)), Target.VERSIONS) == read(example)
    shown = re.search(r"```text\n(.*?)\n    (.*)\n    (.*)\n```", page)
    assert shown is not None
    error = refusal(shown[2])
    assert (error.message, error.details["caret"]) == (shown[1], f"{shown[2]}\n{shown[3]}")


def test_no_field_is_a_keyword_or_a_prefix() -> None:
    """A field named like a word of the grammar could never be reached."""
    words = {"and", "or", "not", "in", "range", "like", "ilike", "is", "null", "exists", "true", "false"}
    prefixes = {"metrics", "metric", "params", "param", "tags", "tag"}

    assert not (words | prefixes) & set(query.FIELDS)
