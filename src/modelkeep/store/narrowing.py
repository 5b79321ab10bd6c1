"""Which part of a search leads to few rows, so that a search costs what it finds and not what there is.

Each part of a filter that every found row must pass, and the caller's own projects and models, may be a way:
ids that are read from one index, among them every row that passes. Before a search is run its ways are
counted, each up to FEW and no further. The shortest one that ends is taken, and the rest of the filter picks
from it; when none ends, rows are common enough that a walk in the order of the list soon fills a page.
A way is only ever added to the whole filter, so it cannot change what is found.

What a filter means is `filters`' business. Nothing here estimates: a database without statistics, as a new
one is, takes the same way as any other.
"""

import functools
import itertools
import operator
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from sqlalchemy import and_, bindparam, case, func, literal, or_, select, true, union_all
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.elements import ColumnElement
from sqlalchemy.sql.selectable import CompoundSelect, FromClause, Select

from modelkeep.core import query
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
from modelkeep.core.semver import Range
from modelkeep.store import visibility
from modelkeep.store.filters import VIEWS, Condition, Place, bounds, passes, place_of
from modelkeep.store.schema import HEAD_CHARACTERS, aliases, models, versions
from modelkeep.store.statements import Statement
from modelkeep.store.visibility import Visible

# Limits of choosing; each with the reason for its size.
FEW = 2_000
"""Rows that are found through a way and then sorted: a few milliseconds. Of a million rows, what more than
this have in common is met once in five hundred on a walk, so a page is full after about as long."""
NEAR = 250
"""Rows through a way that are read sooner than it takes to count what stands in many models, which with so
few is not done any more."""
WAYS_MAX = 8
"""Ways that are counted for one search; further parts of its filter only pick."""
BRANCHES_MAX = 8
"""Parts of an `or` that make one way together."""

Ids = Select[Any] | CompoundSelect[Any]


class Way(NamedTuple):
    """Ids of the rows that pass a part of a search, and what else is counted because it is read for them.

    `exact`: there are no others. `answers`: the place among the conjuncts of the part that need not be looked
    at any more.
    """

    ids: Ids
    beside: tuple[Ids, ...] = ()
    exact: bool = False
    answers: int | None = None


class Survey(NamedTuple):
    """The ways of a search, and the statement that counts them all. `own`: the first one is through the
    models that the search names, which are bound."""

    ways: tuple[Way, ...]
    counts: Statement
    own: bool


class Among(ColumnElement[bool]):
    """Whether a column is among ids that are read first: a list in both dialects, never a join that the
    database might turn around."""

    inherit_cache = False

    def __init__(self, column: ColumnElement[Any], ids: Ids) -> None:
        self.column = column
        self.ids = ids.scalar_subquery()


@compiles(Among, "sqlite")
def _among_sqlite(element: Among, compiler: SQLCompiler, **kw: Any) -> str:
    return f"{compiler.process(element.column, **kw)} IN {compiler.process(element.ids, **kw)}"


@compiles(Among, "postgresql")
def _among_postgresql(element: Among, compiler: SQLCompiler, **kw: Any) -> str:
    return f"{compiler.process(element.column, **kw)} = ANY (ARRAY{compiler.process(element.ids, **kw)})"


class Picking(ColumnElement[bool]):
    """A condition that picks from rows which are found otherwise; `led`: by a way.

    SQLite, which keeps no statistics here, would take any index for a short way; a plus before the condition
    hides it from that choice. Postgres counts for itself, but not yet in a new database, and a way was
    counted: beside one the condition is hidden from it as well.
    """

    inherit_cache = False

    def __init__(self, condition: Condition, *, led: bool = False) -> None:
        self.condition = condition
        self.led = led


@compiles(Picking, "sqlite")
def _picking_sqlite(element: Picking, compiler: SQLCompiler, **kw: Any) -> str:
    return f"+({compiler.process(element.condition, **kw)})"


@compiles(Picking, "postgresql")
def _picking_postgresql(element: Picking, compiler: SQLCompiler, **kw: Any) -> str:
    condition = compiler.process(element.condition, **kw)
    return f"(({condition}) IS TRUE)" if element.led else f"({condition})"


def survey(
    target: Target,
    expression: Expression | None,
    visible: Visible,
    order: Sequence[Order],
    *,
    in_project: bool,
    of_model: bool,
) -> Survey | None:
    """The ways of a search; None when every way leads through all there is, or an index of its own walks
    just what it is about."""
    own = None
    if not _walked(target, visible, order, in_project=in_project, of_model=of_model):
        own = _own(target, visible, in_project=in_project, of_model=of_model)
    ways = [
        way._replace(answers=place if way.exact else None)
        for place, part in enumerate(conjuncts(expression))
        if (way := _way(part, target)) is not None
    ]
    lengths = [_length(way, FEW) for way in ways]
    if own is not None:
        length = _length(own, FEW)
        if ways and own.beside:
            near = or_(*(_length(way, NEAR) <= literal(NEAR) for way in ways[: WAYS_MAX - 1]))
            length = case((near, literal(FEW + 1)), else_=length)
        ways, lengths = [own, *ways], [length, *lengths]
    if not ways:
        return None
    return Survey(tuple(ways[:WAYS_MAX]), select(*lengths[:WAYS_MAX]), own is not None)


def _walked(
    target: Target, visible: Visible, order: Sequence[Order], *, in_project: bool, of_model: bool
) -> bool:
    """Whether an index of models, or of one model's versions, has all that the search is about in one stretch
    and, of versions, in the order asked for."""
    if target is Target.MODELS:
        return visible.everything
    plain = not order or order[0].subject.kind is Kind.FIELD
    return in_project and of_model and plain and walkable(target, order)


def shortest(counts: tuple[int, ...]) -> int | None:
    """The place of the shortest way, None when all are long."""
    least = min(counts)
    return counts.index(least) if least <= FEW else None


def _length(way: Way, most: int) -> ColumnElement[int]:
    """How many rows a way reads; of each of its parts no more are counted than make it longer than `most`."""
    parts = [
        select(func.count()).select_from(ids.limit(most + 1).subquery()).scalar_subquery()
        for ids in (way.ids, *way.beside)
    ]
    return functools.reduce(operator.add, parts)


def conjuncts(expression: Expression | None) -> tuple[Expression, ...]:
    """The parts that every found row must pass."""
    match expression:
        case None:
            return ()
        case And(parts):
            return tuple(inner for part in parts for inner in conjuncts(part))
        case _:
            return (expression,)


def walkable(target: Target, order: Sequence[Order]) -> bool:
    """Whether an index of versions has this order, so that a walk need not see them all."""
    if target is Target.MODELS or not order:
        return target is Target.VERSIONS
    first = order[0].subject
    return first.kind is Kind.METRIC or first in _WALKS


def leads(part: Expression, order: Sequence[Order]) -> bool:
    """Whether a part of the filter says where a walk in this order begins or ends.

    It is about what the walk's index is sorted by; or about one semver, whose index has the newest first.
    """
    if not isinstance(part, Comparison):
        return False
    if order:
        return part.subject == order[0].subject
    return part.subject == _NEWEST or (part.subject == _SEMVER and part.operator is Operator.EQUAL)


_SEMVER = Subject(Kind.FIELD, "semver")
_NEWEST = Subject(Kind.FIELD, "created_at")
_WALKS = (_SEMVER, _NEWEST)


# -------------------------------------------------------------------------------------------- the ways


def _own(target: Target, visible: Visible, *, in_project: bool, of_model: bool) -> Way | None:
    """What stands in the models that the search names and the caller may see."""
    table = models.alias("way_models")
    parts: list[Condition] = []
    if in_project:
        parts.append(table.c.project == bindparam("project"))
    if of_model:
        parts.append(table.c.name == bindparam("name"))
    seen = visibility.allowed(visible, table)[0]
    if seen is not None:
        parts.append(seen)
    return _of_models(target, table, and_(*parts)) if parts else None


def _of_models(target: Target, table: FromClause, condition: Condition) -> Way:
    ids = select(table.c.id).where(condition)
    if target is Target.MODELS:
        return Way(ids)
    # Cut, so that no count goes through models without end; where it is cut, the way counts as too long.
    owners = ids.limit(FEW + 1)
    mine = versions.alias("way_versions")
    return Way(select(mine.c.id).where(Among(mine.c.model_id, owners)), (owners,))


def _way(part: Expression, target: Target) -> Way | None:
    match part:
        case Not():
            return None
        case And():
            return next((way for inner in conjuncts(part) if (way := _way(inner, target)) is not None), None)
        case Or(parts):
            branches = [way for inner in parts if (way := _way(inner, target)) is not None]
            whole = len(branches) == len(parts) <= BRANCHES_MAX
            if not whole:
                return None
            beside = tuple(ids for branch in branches for ids in branch.beside)
            return Way(union_all(*(_plain(branch.ids) for branch in branches)), beside)
        case Exists(subject) | Comparison(subject):
            return _of_field(part, target) if subject.kind is Kind.FIELD else _of_keyed(part, target)


def _plain(way: Ids) -> Select[Any]:
    """A branch of a compound, for SQLite has no brackets there."""
    return way if isinstance(way, Select) else select(way.subquery())


def _of_keyed(part: Exists | Comparison, target: Target) -> Way:
    subject = part.subject
    keyed = VIEWS[target].keyed[subject.kind]
    table = keyed.table.alias("way_values")
    named = table.c[keyed.key] == literal(subject.name)
    reach = _reach(place_of(subject.kind, table), part)
    return Way(select(table.c[keyed.owner]).where(named, reach), exact=_whole(part))


def _whole(part: Exists | Comparison) -> bool:
    """Whether `_reach` says all that the part does."""
    if isinstance(part, Exists):
        return True
    text = part.subject.kind is not Kind.METRIC and isinstance(part.value, str)
    return part.operator is Operator.EQUAL and text and len(str(part.value)) < HEAD_CHARACTERS


def _reach(place: Place, part: Exists | Comparison) -> Condition:
    """What an index answers about one value of a metric, parameter or tag: as much of the comparison as is
    needed to be near, and nothing that has to be looked at row by row."""
    if isinstance(part, Exists):
        return true()
    sample = part.value[0] if isinstance(part.value, tuple) else part.value
    match part.operator:
        case Operator.EQUAL | Operator.IN if place.head is not None and isinstance(sample, bool):
            wanted = part.value if isinstance(part.value, tuple) else (part.value,)
            spellings = {text for value in wanted for text in _spellings("true" if value else "false")}
            return or_(*(place.head == literal(text) for text in sorted(spellings)))
        case Operator.EQUAL | Operator.IN if place.head is not None and isinstance(sample, str):
            return passes(place, part.subject, part.operator, part.value)
        case asked if asked in _ORDERED and isinstance(sample, float):
            return passes(place, part.subject, asked, part.value)
        case _:
            return true()


_ORDERED = frozenset(
    {Operator.EQUAL, Operator.IN, Operator.BELOW, Operator.AT_MOST, Operator.ABOVE, Operator.AT_LEAST}
)
"""Operators whose values stand side by side in an index."""


def _spellings(word: str) -> Iterator[str]:
    """A word in upper and lower case, each letter for itself."""
    return ("".join(letters) for letters in itertools.product(*((c, c.upper()) for c in word)))


def _of_field(part: Exists | Comparison, target: Target) -> Way | None:
    """Through the index of a field, where it has one."""
    if isinstance(part, Exists):
        return None
    subject, asked = part.subject, part.operator
    equal = asked in (Operator.EQUAL, Operator.IN)
    if subject.name in _MODEL_FIELDS[target]:
        named = models.alias("way_models")
        column = named.c[_MODEL_FIELDS[target][subject.name]]
        if not equal:
            return None
        return _of_models(target, named, passes(Place(column), subject, asked, part.value))
    if target is Target.MODELS:
        return None
    table = versions.alias("way_versions")
    ids = select(table.c.id)
    match subject.name:
        case "semver" if isinstance(part.value, Range):
            return Way(ids.where(and_(true(), *bounds(table.c.semver_key, part.value))))
        case "semver" if asked in _ORDERED:
            return Way(ids.where(passes(Place(table.c.semver_key), subject, asked, part.value)))
        case "digest" if equal:
            return Way(ids.where(passes(Place(table.c.digest), subject, asked, part.value)))
        case "run_id" | "identity" | "code_commit" as name if equal:
            return Way(ids.where(passes(Place(table.c[name]), subject, asked, part.value)))
        case "created_at" if asked in _ORDERED:
            return Way(ids.where(passes(Place(table.c.created_at), subject, asked, part.value)))
        case "alias" if equal:
            return _of_aliases(table, passes(Place(_ALIASES.c.alias), subject, asked, part.value))
        case _:
            return None


_MODEL_FIELDS = {
    Target.VERSIONS: {"model": "name", "project": "project"},
    Target.MODELS: {"name": "name", "project": "project"},
}
"""Fields with an index on the table of models."""


_ALIASES = aliases.alias("way_aliases")


def _of_aliases(table: FromClause, passing: Condition) -> Way:
    mine = and_(table.c.model_id == _ALIASES.c.model_id, table.c.number == _ALIASES.c.number)
    return Way(select(table.c.id).select_from(_ALIASES.join(table, mine)).where(passing))


def needs(expression: Expression | None, subject: Subject) -> bool:
    """Whether every row that the filter selects has a value of the subject."""
    return any(
        isinstance(part, Exists | Comparison) and part.subject == subject for part in conjuncts(expression)
    )


def about(expression: Expression | None, subject: Subject) -> list[Comparison]:
    """The comparisons of the subject that every found row must pass, without those that say `not`."""
    return [
        part
        for part in conjuncts(expression)
        if isinstance(part, Comparison) and part.subject == subject and part.operator not in query.NEGATIONS
    ]
