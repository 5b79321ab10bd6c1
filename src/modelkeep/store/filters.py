"""What a filter and an order mean as conditions and columns of SQL, for versions and for models.

The definition is `core.query`; a test holds the two against each other on both dialects. Everything a caller
types is a bound value, never text of the statement. Pages, and who may see what, are `search`'s business.
"""

import math
from collections.abc import Callable, Sequence
from enum import Enum
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
    """One column of an order that has no null; a fixed one is the same in every row, and sorts nothing."""

    column: Column
    kind: type[str] | type[int] | type[float]
    descending: bool
    fixed: bool = False


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
            "run_id": versions.c.run_id,
            "source": versions.c.source,
            "code_commit": versions.c.code_commit,
            "identity": versions.c.identity,
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
NULLABLE = frozenset({"parent", "framework", "run_id", "source", "code_commit", "identity"})
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
                return _some(view, subject, lambda place: passes(place, subject, operator, value))
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


def _some(view: View, subject: Subject, holds: Callable[[Place], Condition]) -> Condition:
    """Whether some value of the subject passes."""
    if subject.kind is not Kind.FIELD:
        keyed = view.keyed[subject.kind]
        columns = keyed.table.c
        mine = and_(columns[keyed.owner] == view.id, columns[keyed.key] == literal(subject.name))
        return exists().where(mine, holds(place_of(subject.kind, keyed.table))).correlate_except(keyed.table)
    if subject.name == "alias":
        mine = and_(aliases.c.model_id == versions.c.model_id, aliases.c.number == versions.c.number)
        return exists().where(mine, holds(Place(aliases.c.alias))).correlate_except(aliases)
    column = view.fields[subject.name]
    if subject.name in NULLABLE:
        return and_(column.is_not(None), holds(Place(column)))
    return holds(Place(column))


def place_of(kind: Kind, table: FromClause) -> Place:
    """Where a table of metrics, parameters or tags has its values."""
    if kind is Kind.METRIC:
        return Place(table.c.value)
    return Place(table.c.value, table.c.number, table.c.value_head)


def passes(place: Place, subject: Subject, operator: Operator, value: Any) -> Condition:
    """Whether one value passes a positive operator."""
    match operator:
        case Operator.IN:
            return or_(*(passes(place, subject, Operator.EQUAL, item) for item in value))
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
            head = place.head == literal(value[:HEAD_CHARACTERS])
            # A head that is shorter than heads may be is the whole value, which the index then answers alone.
            return head if len(value) < HEAD_CHARACTERS else and_(head, place.value == literal(value))
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


def bounds(key: Column, within: Range) -> list[Condition]:
    """Between which sort keys a range of versions lies."""
    return [
        _compare(key, Operator(bound.operator.value), semver.sort_key(bound.version))
        for bound in within.bounds
    ]


def _in_range(key: Column, within: Range) -> Condition:
    """A range of versions over their sort keys, with its rule for pre-releases."""
    lines = {semver.sort_key(semver.SemVer(*b.version.triple))[:-1] for b in within.bounds if b.version.pre}
    named = [and_(key >= literal(line), key < literal(f"{line}3")) for line in sorted(lines)]
    return and_(true(), *bounds(key, within), or_(versions.c.prerelease == literal(0), *named))


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


class Half(Enum):
    """Which rows of an order by a metric are read: those that have it stand in its index, the others come
    behind them."""

    WITH = 0
    WITHOUT = 1


class Ordered(NamedTuple):
    """An order: the tables that it needs, a condition that belongs to it, and its terms."""

    joined: FromClause
    condition: Condition
    terms: tuple[Term, ...]


def ordered(view: View, order: Sequence[Order], half: Half | None = None) -> Ordered:
    """An order whose terms have no null: what has no value comes last in each.

    With a half, of an order that begins with a metric, the rows with it or without it alone. The terms are as
    many and of the same kinds, so that a key of one order is a key of the others.
    """
    joined = view.joined
    condition: Condition = true()
    terms: list[Term] = []
    for index, wanted in enumerate(order):
        subject, down = wanted.subject, wanted.descending
        if subject.kind is Kind.FIELD:
            terms += _field_terms(view, subject, down)
            continue
        keyed = view.keyed[subject.kind]
        table = keyed.table.alias(f"order_{index}")
        mine = and_(table.c[keyed.owner] == view.id, table.c[keyed.key] == literal(subject.name))
        if index or half is None:
            joined = joined.outerjoin(table, mine)
            terms.append(Term(case((table.c.value.is_(None), literal(1)), else_=literal(0)), int, False))
            terms += _keyed_terms(place_of(subject.kind, table), down)
        elif half is Half.WITH:
            joined = joined.join(table, mine)
            terms += [Term(literal(half.value), int, False, fixed=True), Term(table.c.value, float, down)]
        else:
            condition = not_(exists().where(mine).correlate_except(table))
            terms.append(Term(literal(half.value), int, False, fixed=True))
            terms.append(Term(literal(0.0), float, down, fixed=True))
    named = {id(term.column) for term in terms}
    return Ordered(joined, condition, (*terms, *(tie for tie in view.ties if id(tie.column) not in named)))


def _field_terms(view: View, subject: Subject, down: bool) -> list[Term]:
    column = view.fields[subject.name]
    kind = _PLAIN[subject.type]
    if subject.name not in NULLABLE:
        return [Term(column, kind, down)]
    missing = Term(case((column.is_(None), literal(1)), else_=literal(0)), int, False)
    return [missing, Term(func.coalesce(column, literal(kind())), kind, down)]


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
    answers. Otherwise what begins it is said once more by itself, so that an index leads there."""
    moving: list[tuple[Term, Column]] = [
        (term, bindparam(f"key_{index}")) for index, term in enumerate(terms) if not term.fixed
    ]
    first, key = moving[0]
    reached = first.column <= key if first.descending else first.column >= key
    if len({term.descending for term, _ in moving}) == 1:
        row, keys = tuple_(*(term.column for term, _ in moving)), tuple_(*(key for _, key in moving))
        behind = row < keys if first.descending else row > keys
        tables = {getattr(term.column, "table", None) for term, _ in moving}
        return behind if len(tables) == 1 else and_(reached, behind)
    ways: list[Condition] = []
    for index, (term, key) in enumerate(moving):
        equal = [earlier.column == bind for earlier, bind in moving[:index]]
        beyond = term.column < key if term.descending else term.column > key
        ways.append(and_(*equal, beyond))
    return and_(reached, or_(*ways))
