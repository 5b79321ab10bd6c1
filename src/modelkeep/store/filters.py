"""What a filter and an order mean as conditions and columns of SQL, for versions and for models.

The definition is `core.query`; a test holds the two against each other on both dialects. Everything a caller
types is a bound value, never text of the statement. Pages, and who may see what, are `search`'s business.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, assert_never

from sqlalchemy import (
    Boolean,
    and_,
    bindparam,
    case,
    exists,
    false,
    func,
    literal,
    not_,
    or_,
    true,
    tuple_,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.elements import BindParameter, ColumnElement
from sqlalchemy.sql.selectable import FromClause

from modelkeep.core import codec, query, semver
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
)
from modelkeep.core.query import ValueType as Type
from modelkeep.core.semver import Range
from modelkeep.store.catalog import JOINED, READY, STAGE, VERSION
from modelkeep.store.models import MODEL
from modelkeep.store.paging import Key
from modelkeep.store.schema import (
    HEAD_CHARACTERS,
    aliases,
    model_tags,
    models,
    version_metrics,
    version_params,
    version_tags,
    versions,
)

INT64_MAX = 2**63 - 1
"""The largest whole number of a column."""

Condition = ColumnElement[bool]
Column = ColumnElement[Any]


# ----------------------------------------------------------------------------------------------- the subjects


class Keyed(NamedTuple):
    """Where tags, parameters or metrics of one target stand."""

    table: FromClause
    owner: str
    key: str


class View(NamedTuple):
    """One target as tables: what is read, what identifies a row, and where each subject's values are."""

    joined: FromClause
    columns: tuple[Any, ...]
    seen: Condition
    id: Column
    fields: dict[str, Column]
    keyed: dict[Kind, Keyed]
    ties: tuple["Term", ...]


class Term(NamedTuple):
    """One column of an order that has no null."""

    column: Column
    kind: type[str] | type[int] | type[float]
    descending: bool


VIEWS: dict[Target, View] = {
    Target.VERSIONS: View(
        joined=JOINED,
        columns=VERSION,
        seen=READY,
        id=versions.c.id,
        fields={
            "model": models.c.name,
            "project": models.c.project,
            "owner": models.c.owner,
            "description": versions.c.description,
            "created_at": versions.c.created_at,
            "created_by": versions.c.created_by,
            "number": versions.c.number,
            "semver": versions.c.semver_key,
            "stage": STAGE,
            "status": case(
                (versions.c.tombstone.is_not(None), literal("tombstoned")),
                (versions.c.yanked.is_not(None), literal("yanked")),
                else_=literal("ready"),
            ),
            "parent": versions.c.parent,
            "framework": versions.c.framework,
            "digest": versions.c.digest,
            "size_bytes": versions.c.size_bytes,
        },
        keyed={
            Kind.METRIC: Keyed(version_metrics, "version_id", "name"),
            Kind.PARAM: Keyed(version_params, "version_id", "key"),
            Kind.TAG: Keyed(version_tags, "version_id", "key"),
        },
        ties=(Term(versions.c.created_at, str, True), Term(versions.c.id, str, True)),
    ),
    Target.MODELS: View(
        joined=models,
        columns=MODEL,
        seen=models.c.deleted_at.is_(None),
        id=models.c.id,
        fields={
            "name": models.c.name,
            "project": models.c.project,
            "owner": models.c.owner,
            "description": models.c.description,
            "created_at": models.c.created_at,
            "created_by": models.c.created_by,
            "updated_at": models.c.updated_at,
        },
        keyed={Kind.TAG: Keyed(model_tags, "model_id", "key")},
        ties=(Term(models.c.project, str, False), Term(models.c.name, str, False)),
    ),
}
NULLABLE = frozenset({"parent", "framework"})
"""Fields without a value in some rows."""

_PLAIN: dict[Type, type[str] | type[int] | type[float]] = {
    Type.TEXT: str,
    Type.SEMVER: str,
    Type.INTEGER: int,
    Type.NUMBER: float,
    Type.TIME: str,
    Type.FREE: str,
}


# ------------------------------------------------------------------------------------------------- the filter


def where(expression: Expression, target: Target) -> Condition:
    """A filter as a condition that is true or false for every row, never null."""
    view = VIEWS[target]
    match expression:
        case And(parts):
            return and_(*(where(part, target) for part in parts))
        case Or(parts):
            return or_(*(where(part, target) for part in parts))
        case Not(part):
            return not_(where(part, target))
        case Exists(subject):
            return _some(view, subject, lambda _: true())
        case Comparison(subject, operator, value):
            positive = query.NEGATIONS.get(operator)
            if positive is None:
                return _some(view, subject, lambda place: _passes(place, subject, operator, value))
            there = _some(view, subject, lambda _: true())
            return and_(there, not_(where(Comparison(subject, positive, value), target)))
        case _:
            assert_never(expression)


class Place(NamedTuple):
    """Where one value stands: its column, and for tags and parameters the value as a number and the indexed
    head."""

    value: Column
    number: Column | None = None
    head: Column | None = None


def _some(view: View, subject: Subject, passes: Callable[[Place], Condition]) -> Condition:
    """Whether some value of the subject passes."""
    if subject.kind is not Kind.FIELD:
        keyed = view.keyed[subject.kind]
        columns = keyed.table.c
        mine = and_(columns[keyed.owner] == view.id, columns[keyed.key] == literal(subject.name))
        return exists().where(mine, passes(_place(subject.kind, keyed.table))).correlate_except(keyed.table)
    if subject.name == "alias":
        mine = and_(aliases.c.model_id == versions.c.model_id, aliases.c.number == versions.c.number)
        return exists().where(mine, passes(Place(aliases.c.alias))).correlate_except(aliases)
    column = view.fields[subject.name]
    if subject.name in NULLABLE:
        return and_(column.is_not(None), passes(Place(column)))
    return passes(Place(column))


def _place(kind: Kind, table: FromClause) -> Place:
    if kind is Kind.METRIC:
        return Place(table.c.value)
    return Place(table.c.value, table.c.number, table.c.value_head)


def _passes(place: Place, subject: Subject, operator: Operator, value: Any) -> Condition:
    """Whether one value passes a positive operator."""
    match operator:
        case Operator.IN:
            return or_(*(_passes(place, subject, Operator.EQUAL, item) for item in value))
        case Operator.IN_RANGE:
            return _in_range(place.value, value)
        case Operator.LIKE:
            return Like(place.value, value)
        case Operator.ILIKE:
            return Like(func.lower(place.value), _lowered(value))
    match subject.type:
        case Type.INTEGER if isinstance(value, float):
            return _whole(place.value, operator, value)
        case Type.SEMVER:
            return _compare(place.value, operator, semver.sort_key(value))
        case Type.TIME:
            return _compare(place.value, operator, codec.format_time(value))
        case Type.FREE if isinstance(value, bool):
            return func.lower(place.value) == literal("true" if value else "false")
        case Type.FREE if isinstance(value, float):
            assert place.number is not None, "what is free text has its number beside it"
            return and_(place.number.is_not(None), _compare(place.number, operator, value))
        case Type.FREE if operator is Operator.EQUAL:
            assert place.head is not None, "what is free text has its head beside it"
            return and_(place.head == literal(value[:HEAD_CHARACTERS]), place.value == literal(value))
        case _:
            return _compare(place.value, operator, value)


def _compare(column: Column, operator: Operator, value: Key) -> Condition:
    wanted = literal(value)
    match operator:
        case Operator.EQUAL:
            return column == wanted
        case Operator.BELOW:
            return column < wanted
        case Operator.AT_MOST:
            return column <= wanted
        case Operator.ABOVE:
            return column > wanted
        case Operator.AT_LEAST:
            return column >= wanted
        case _:
            raise AssertionError(f"{operator} is compared through its positive")


def _whole(column: Column, operator: Operator, value: float) -> Condition:
    """A whole number against one with a fraction, or beyond 64 bits, without rounding either."""
    match operator:
        case Operator.EQUAL:
            return false()
        case Operator.BELOW | Operator.AT_MOST:
            bound = math.floor(value)
            if bound > INT64_MAX:
                return true()
            return column <= literal(bound) if bound >= -INT64_MAX - 1 else false()
        case _:
            bound = math.ceil(value)
            if bound < -INT64_MAX - 1:
                return true()
            return column >= literal(bound) if bound <= INT64_MAX else false()


def _in_range(key: Column, within: Range) -> Condition:
    """A range of versions over their sort keys, with its rule for pre-releases."""
    bounds = [
        _compare(key, Operator(bound.operator.value), semver.sort_key(bound.version))
        for bound in within.bounds
    ]
    lines = {semver.sort_key(semver.SemVer(*b.version.triple))[:-1] for b in within.bounds if b.version.pre}
    named = [and_(key >= literal(line), key < literal(f"{line}3")) for line in sorted(lines)]
    return and_(*bounds, or_(versions.c.prerelease == literal(0), *named))


_LOWER = {code: code + 32 for code in range(ord("A"), ord("Z") + 1)}


def _lowered(text: str) -> str:
    """A to Z alone, as `lower` does in SQLite, and in Postgres under the collation of our columns."""
    return text.translate(_LOWER)


class Like(ColumnElement[bool]):
    """A pattern with `%` and `_`, with case: GLOB in SQLite, whose LIKE has none, and LIKE in Postgres."""

    inherit_cache = False
    type = Boolean()

    def __init__(self, column: Column, pattern: str) -> None:
        self.column = column
        self.for_glob: BindParameter[str] = literal(_glob(pattern))
        self.for_like: BindParameter[str] = literal(pattern)


@compiles(Like, "sqlite")
def _like_sqlite(element: Like, compiler: SQLCompiler, **kw: Any) -> str:
    return f"({compiler.process(element.column, **kw)} GLOB {compiler.process(element.for_glob, **kw)})"


@compiles(Like, "postgresql")
def _like_postgresql(element: Like, compiler: SQLCompiler, **kw: Any) -> str:
    column, pattern = compiler.process(element.column, **kw), compiler.process(element.for_like, **kw)
    return f"({column} LIKE {pattern} ESCAPE '\\')"


def _glob(pattern: str) -> str:
    """The same pattern with `*` and `?`; what is special there stands in brackets."""
    parts: list[str] = []
    literally = False
    for char in pattern:
        if char == "\\" and not literally:
            literally = True
            continue
        if not literally and char in "%_":
            parts.append("*" if char == "%" else "?")
        else:
            parts.append(f"[{char}]" if char in "*?[" else char)
        literally = False
    return "".join(parts)


# -------------------------------------------------------------------------------------------------- the order


def ordered(view: View, order: Sequence[Order]) -> tuple[FromClause, tuple[Term, ...]]:
    """The tables with those that the order needs, and its terms: what has no value comes last in each."""
    joined = view.joined
    terms: list[Term] = []
    for index, wanted in enumerate(order):
        subject, down = wanted.subject, wanted.descending
        if subject.kind is Kind.FIELD:
            column = view.fields[subject.name]
            kind = _PLAIN[subject.type]
            if subject.name in NULLABLE:
                terms.append(Term(case((column.is_(None), literal(1)), else_=literal(0)), int, False))
                column = func.coalesce(column, literal(kind()))
            terms.append(Term(column, kind, down))
            continue
        keyed = view.keyed[subject.kind]
        table = keyed.table.alias(f"order_{index}")
        mine = and_(table.c[keyed.owner] == view.id, table.c[keyed.key] == literal(subject.name))
        joined = joined.outerjoin(table, mine)
        terms.append(Term(case((table.c.value.is_(None), literal(1)), else_=literal(0)), int, False))
        terms += _keyed_terms(_place(subject.kind, table), down)
    return joined, (*terms, *view.ties)


def _keyed_terms(place: Place, down: bool) -> list[Term]:
    if place.number is None:
        return [Term(func.coalesce(place.value, literal(0.0)), float, down)]
    is_text = place.number.is_(None)
    return [
        Term(case((is_text, literal(1)), else_=literal(0)), int, down),
        Term(func.coalesce(place.number, literal(0.0)), float, down),
        Term(case((is_text, func.coalesce(place.value, literal(""))), else_=literal("")), str, down),
    ]


def after(terms: Sequence[Term]) -> Condition:
    """Behind a key in this order; where all terms go one way, as a comparison of rows, which an index
    answers."""
    binds: list[Column] = [bindparam(f"key_{index}") for index in range(len(terms))]
    if len({term.descending for term in terms}) == 1:
        row, key = tuple_(*(term.column for term in terms)), tuple_(*binds)
        return row < key if terms[0].descending else row > key
    ways: list[Condition] = []
    for index, term in enumerate(terms):
        equal = [earlier.column == binds[place] for place, earlier in enumerate(terms[:index])]
        beyond = term.column < binds[index] if term.descending else term.column > binds[index]
        ways.append(and_(*equal, beyond))
    return or_(*ways)
