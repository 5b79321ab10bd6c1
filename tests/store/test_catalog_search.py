"""Searches of the store against the filter language's own definition: the same rows, in the same order, on
every page.

Examples of single filters are in the core's tests; here random ones meet random registries on both dialects.
"""

import base64
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelkeep.core import errors, query, semver
from modelkeep.core.access import Caller, Effect, Grant, Role, Verb, allowed
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
from modelkeep.core.values import Actor, ModelName
from modelkeep.store import catalog, narrowing, search
from modelkeep.store.database import Database
from modelkeep.store.paging import read_token, write_token
from modelkeep.store.visibility import Scopes, Visible, visible_to
from tests.store import catalog_rows as rows

pytestmark = pytest.mark.req("V10")

ALL = Visible(allowed=Scopes(everything=True))
CHURN = Scopes(models=frozenset({ModelName("default", "churn"), ModelName("lab", "churn")}))
LAB = Scopes(projects=frozenset({"lab"}))
VISIBLE = [
    ALL,
    Visible(allowed=CHURN),
    Visible(allowed=Scopes(everything=True), denied=LAB),
    Visible(allowed=Scopes(projects=frozenset({"default"}), models=CHURN.models), denied=LAB),
    Visible(allowed=CHURN, project="lab"),
    Visible(),
]
PIECES = ["%", "_", r"\%", r"\_", r"\\", "a", "b", "R", "risk", "*", "?", "[", "]", "é", "漢", "z", " "]
TIMES = [rows.START + timedelta(minutes=minutes) for minutes in (-1, 0, 1, 2)]
TIMES += [rows.START.replace(year=5), rows.START.replace(year=9999)]
WHOLE = [-(2**63), -1, 0, 1, 2, 3, 2**53, 2**53 + 1, 2**63 - 1, 0.5, 2.5, 1e300, -1e300, float(2**63)]
RANGES = ["*", "^1", "~1.2", "1.x", ">=1.0.0-alpha <2", "=1.0.0-rc.1", ">1.2", "<=1.10", ">1.0.0-rc.1"]


def subjects(target: Target) -> st.SearchStrategy[Subject]:
    """Everything that a target has, mostly under keys that some row has."""
    fields = [name for name, entry in query.FIELDS.items() if target in entry.targets]
    keys = st.sampled_from([*rows.KEYS, "test/a", "nowhere"])
    kinds = st.builds(Subject, st.sampled_from(query.KINDS[target]), keys)
    return st.one_of(st.sampled_from([Subject(Kind.FIELD, name) for name in fields]), kinds)


def literals(subject: Subject) -> st.SearchStrategy[Any]:
    """Values that a subject may stand beside, mostly such as some row has; an `in` list is of one kind."""
    named: dict[str, list[Any]] = {
        "stage": [*rows.STAGES, "none", "nowhere"],
        "alias": [*rows.ALIASES, "nobody"],
        "status": ["ready", "tombstoned"],
        "digest": [rows.digest_of("churn 1"), rows.digest_of("x")],
        "framework": ["onnx", "Sklearn", "sklearn"],
        "run_id": rows.RUNS,
        "source": rows.SOURCES,
        "code_commit": rows.COMMITS,
        "identity": rows.IDENTITIES,
        "owner": rows.OWNERS,
        "created_by": rows.OWNERS,
        "model": ["churn", "Fraud", "fraud"],
        "name": ["churn", "Fraud", "fraud"],
        "project": ["default", "lab", "x"],
    }
    match subject.type:
        case ValueType.TEXT:
            return st.sampled_from(named.get(subject.name, rows.TEXTS))
        case ValueType.SEMVER:
            return st.sampled_from([semver.parse(text) for text in rows.SEMVERS])
        case ValueType.INTEGER:
            return st.sampled_from(WHOLE)
        case ValueType.NUMBER:
            return st.sampled_from(rows.NUMBERS)
        case ValueType.TIME:
            return st.sampled_from(TIMES)
        case _:
            return st.sampled_from(rows.FREE)


@st.composite
def comparisons(draw: st.DrawFn, target: Target) -> Comparison:
    """A comparison as `parse` would make it."""
    subject = draw(subjects(target))
    operator = draw(st.sampled_from(sorted(query.OPERATORS[subject.type])))
    if "range" in operator.value:
        return Comparison(subject, operator, semver.parse_range(draw(st.sampled_from(RANGES))))
    if "like" in operator.value:
        lower = subject.kind is Kind.FIELD and query.FIELDS[subject.name].lower
        pattern = "".join(draw(st.lists(st.sampled_from(PIECES), max_size=4)))
        return Comparison(subject, operator, pattern.lower() if lower else pattern)
    values = literals(subject)
    if subject.type is ValueType.FREE:
        kinds = [values, st.sampled_from(rows.NUMBERS)]
        if operator in (Operator.EQUAL, Operator.NOT_EQUAL, Operator.IN, Operator.NOT_IN):
            kinds.append(st.booleans())
        values = draw(st.sampled_from(kinds))
    if operator in (Operator.IN, Operator.NOT_IN):
        return Comparison(subject, operator, tuple(draw(st.lists(values, min_size=1, max_size=4))))
    return Comparison(subject, operator, draw(values))


def expressions(target: Target) -> st.SearchStrategy[Expression]:
    """Trees of these."""

    def grown(children: st.SearchStrategy[Expression]) -> st.SearchStrategy[Expression]:
        several = st.lists(children, min_size=2, max_size=3).map(tuple)
        return st.one_of(st.builds(Not, children), several.map(And), several.map(Or))

    leaves = st.one_of(comparisons(target), st.builds(Exists, subjects(target)))
    return st.recursive(leaves, grown, max_leaves=5)


def orders(target: Target) -> st.SearchStrategy[tuple[Order, ...]]:
    """Orders by anything that has one value."""
    single = subjects(target).filter(lambda subject: not subject.many)
    return st.lists(single, max_size=3, unique=True).flatmap(
        lambda chosen: st.tuples(*(st.builds(Order, st.just(subject), st.booleans()) for subject in chosen))
    )


def pages(
    database: Database,
    target: Target,
    expression: Expression | None,
    order: tuple[Order, ...],
    limit: int,
    visible: Visible = ALL,
) -> list[Any]:
    """All items, page by page."""
    find: Any = search.search_models if target is Target.MODELS else search.search_versions
    found: list[Any] = []
    token: str | None = None
    while True:
        job = partial(
            find, visible=visible, expression=expression, order=order, limit=limit, page_token=token
        )
        page, token = database.read(job)
        assert len(page) <= limit
        found += page
        if token is None:
            return found
        assert len(page) == limit


def everything(database: Database, target: Target) -> list[dict[str, Any]]:
    """The facts of all rows in the order that stands behind every other one."""
    models = pages(database, Target.MODELS, None, (), 100)
    if target is Target.MODELS:
        facts = [rows.facts_of_model(model) for model in models]
        return sorted(facts, key=lambda fact: (fact["project"], fact["name"]))
    by_name = {model.name: model for model in models}
    versions = pages(database, Target.VERSIONS, None, (), 100)
    facts = [rows.facts_of_version(version, by_name[version.model]) for version in versions]
    return sorted(facts, key=lambda fact: (fact["created_at"], fact["id"]), reverse=True)


@pytest.mark.parametrize("target", Target)
@pytest.mark.parametrize(("seed", "few"), [(1, 3), (2, 2_000), (2, 0)])
def test_the_store_means_what_the_language_says(
    database: Database, target: Target, seed: int, few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every filter selects the same rows as its definition, every order sorts them alike, on pages of any
    size, for callers who see all or little; through ways that are short, and on walks where none is."""
    monkeypatch.setattr(narrowing, "FEW", few)
    search.surveyed.cache_clear()
    search.build.cache_clear()
    database.write(lambda tx: rows.fill(tx, seed)).result(10)
    facts = everything(database, target)
    assert len(facts) >= 4

    @settings(max_examples=100)
    @given(expressions(target), orders(target), st.integers(1, 7), st.sampled_from(VISIBLE))
    def check(expression: Expression, order: tuple[Order, ...], limit: int, visible: Visible) -> None:
        seen = [fact for fact in facts if name_of(fact) in visible]
        wanted = query.sort([fact for fact in seen if query.matches(expression, fact)], order)
        found = pages(database, target, expression, order, limit, visible)
        assert [item.id for item in found] == [fact["id"] for fact in wanted]

    check()
    search.surveyed.cache_clear()
    search.build.cache_clear()


def name_of(fact: dict[str, Any]) -> ModelName:
    """The model that facts are about."""
    return ModelName(fact["project"], fact["name"] if "name" in fact else fact["model"])


def test_a_text_that_was_parsed_is_found_the_same_way(database: Database) -> None:
    """True and 1.0 are equal in Python and not in a filter: neither is answered with the other's
    statement."""
    database.write(lambda tx: rows.fill(tx, 2)).result(10)
    facts = everything(database, Target.VERSIONS)

    for text in ("tags.a = true", "tags.a = 1", "tags.a = true", 'tags.a = "1"', "params.b in (1, 0)"):
        expression = query.parse(text, Target.VERSIONS)
        wanted = [fact["id"] for fact in facts if query.matches(expression, fact)]
        assert [v.id for v in pages(database, Target.VERSIONS, expression, (), 50)] == wanted


# ------------------------------------------------------------------------------------------------- visibility

SCOPES = [(None, None), ("default", None), ("lab", None), ("default", "churn"), ("lab", "churn"), ("x", "y")]
GRANTS = st.lists(
    st.builds(
        lambda scope, role, effect: Grant(
            id="g",
            principal="bob",
            role=role,
            project=scope[0],
            model=scope[1],
            effect=effect,
            created_at=rows.START,
            created_by="ann",
        ),
        st.sampled_from(SCOPES),
        st.sampled_from([Role.VIEWER, Role.AUDITOR, Role.GATEWAY]),
        st.sampled_from(Effect),
    ),
    max_size=4,
)
CALLERS = st.builds(
    Caller,
    actor=st.just(Actor(name="bob")),
    grants=GRANTS.map(tuple),
    verbs=st.sampled_from([None, frozenset({Verb.READ}), frozenset({Verb.PULL})]),
    project=st.sampled_from([None, "default", "lab"]),
    owner=st.booleans(),
)


@pytest.mark.req("G10")
def test_a_list_has_what_the_caller_may_read_and_nothing_else(database: Database) -> None:
    """The condition of the query and the decision about one model agree, for every set of grants and both
    targets."""
    database.write(lambda tx: rows.fill(tx, 1)).result(10)
    every = {target: pages(database, target, None, (), 100) for target in Target}

    def name_of(item: Any) -> ModelName:
        return item.name if isinstance(item.name, ModelName) else item.model

    @settings(max_examples=60)
    @given(CALLERS, st.sampled_from([Verb.READ, Verb.PULL]), st.integers(1, 5))
    def check(caller: Caller, verb: Verb, limit: int) -> None:
        visible = visible_to(caller, verb)
        for name in rows.NAMES:
            assert (name in visible) == allowed(caller, verb, name)
        models = pages(database, Target.MODELS, None, (), limit, visible)
        versions = pages(database, Target.VERSIONS, None, (), limit, visible)
        seen = [model for model in every[Target.MODELS] if allowed(caller, verb, model.name)]
        assert models == seen
        of_seen = [v for v in every[Target.VERSIONS] if allowed(caller, verb, v.model)]
        assert versions == of_seen

    check()


# ----------------------------------------------------------------------------------------------------- tokens


@pytest.mark.parametrize(
    "token",
    [
        "",
        "nonsense",
        "é",
        "A" * 10_000,
        base64.urlsafe_b64encode(b"[1]").decode(),
        base64.urlsafe_b64encode(b'[1,"x","a","b"]').decode(),
        base64.urlsafe_b64encode(b'{"a":1}').decode(),
        write_token("other", ["a", "b"]),
    ],
)
def test_a_token_that_is_none_is_refused(sqlite_database: Database, token: str) -> None:
    """Whatever is sent instead of a token is told apart from one."""
    with pytest.raises(errors.Invalid, match="page token"):
        sqlite_database.read(lambda tx: search.search_models(tx, ALL, limit=1, page_token=token))


@given(
    st.lists(
        st.one_of(
            st.text(max_size=5),
            st.integers(-(2**63), 2**63 - 1),
            st.floats(allow_nan=False, allow_infinity=False),
        ),
        max_size=5,
    )
)
def test_a_token_gives_back_its_key(key: list[Any]) -> None:
    """What was the last row of a page is where the next begins; another list refuses it."""
    kinds = [type(part) for part in key]
    token = write_token("this list", key)
    if any(isinstance(part, str) and "\0" in part for part in key):
        with pytest.raises(errors.Invalid):
            read_token(token, "this list", kinds)
        return

    assert read_token(token, "this list", kinds) == key
    with pytest.raises(errors.Invalid):
        read_token(token, "another list", kinds)
    with pytest.raises(errors.Invalid):
        read_token(token, "this list", [*kinds, str])


def test_a_page_does_not_end_at_what_was_added_meanwhile(database: Database) -> None:
    """Rows that come while somebody turns pages are neither shown twice nor hide another."""
    database.write(lambda tx: rows.fill(tx, 3)).result(10)
    before = pages(database, Target.VERSIONS, None, (), 100)
    first, token = database.read(lambda tx: search.search_versions(tx, ALL, limit=2))
    late = rows.version_of(rows.NAMES[0], 99, "99.0.0", created_at=rows.START + timedelta(days=1))
    database.write(lambda tx: catalog.add_version(tx, "model_default_churn", late, 99)).result(10)
    rest, _ = database.read(lambda tx: search.search_versions(tx, ALL, limit=100, page_token=token))

    assert [v.id for v in first + rest] == [v.id for v in before]


@pytest.mark.parametrize("limit", [0, -1, 1_001])
def test_a_page_has_a_limit(sqlite_database: Database, limit: int) -> None:
    """Nobody reads everything at once."""
    with pytest.raises(errors.LimitExceeded):
        sqlite_database.read(lambda tx: search.search_versions(tx, ALL, limit=limit))
