"""The statements of a search of experiments, runs or logged models, built without values and kept.

A statement depends on the shape of a question alone: what is searched, by which kinds of clause, in which
kind of order. Its keys and values are bound when it is run, so a few statements serve everybody. Which of
them a search runs, over which stretches, is `tracking_search`; what one clause or term means is
`tracking_filters`.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from sqlalchemy import Integer, and_, bindparam, exists, func, literal_column, not_, select
from sqlalchemy.dialects.sqlite import dialect as sqlite_dialect
from sqlalchemy.sql.elements import ColumnElement
from sqlalchemy.sql.selectable import FromClause, Join

from modelkeep.core.mlflow_filter import DatasetFilter, Kind, Noun, Operator
from modelkeep.store.narrowing import FEW, Among, Picking
from modelkeep.store.statements import Statement, one_of
from modelkeep.store.tracking_filters import (
    VIEWS,
    Condition,
    Form,
    Step,
    Term,
    after,
    default_of,
    field_terms,
    latest_of,
    measured_on,
    passes,
    picked,
    rank,
    value_terms,
    way,
)
from modelkeep.store.tracking_tables import logged_model_metrics, logged_models, runs

STATEMENTS_KEPT = 512
"""Statements that are kept compiled: they do not depend on keys and values, so a few serve everybody."""
ABSENT = 2
"""The rank of what has no value."""


class Asked(NamedTuple):
    """One search, without values: what its statements are built from and kept under.

    Attributes:
        many: the scope is a list instead of one.
        staged: whether rows are looked for by the place they are in (there, or in the bin).
        first: clauses about what the order begins with; each of them is its place in `forms`.
    """

    noun: Noun
    forms: tuple[Form, ...]
    steps: tuple[Step, ...]
    many: bool
    staged: bool
    first: tuple[int, ...]
    on: tuple[DatasetFilter, ...]


class Built(NamedTuple):
    """A statement, the names that it binds, and the terms whose values stand in its rows."""

    statement: Statement
    names: frozenset[str]
    terms: tuple[Term, ...]


def _scope(asked: Asked, column: ColumnElement[Any]) -> Condition:
    return one_of(column, "scopes") if asked.many else column == bindparam("scope")


def _within(asked: Asked) -> list[Condition]:
    """What is searched, as conditions on the thing itself."""
    view = VIEWS[asked.noun]
    parts = [_scope(asked, view.scope)]
    if asked.staged:
        parts.append(view.deleted == bindparam("deleted"))
    return parts


def _ways(asked: Asked) -> Iterator[tuple[int, Any]]:
    walks = asked.noun is Noun.RUNS  # along the index of what the order begins with, where it has a filter
    for index, form in enumerate(asked.forms):
        if walks and index in asked.first:
            continue
        found = way(asked.noun, form, index, lambda column: _scope(asked, column))
        if found is not None:
            yield index, found


@lru_cache(maxsize=STATEMENTS_KEPT)
def survey(asked: Asked) -> tuple[tuple[int, ...], Built] | None:
    """The places of the clauses that may lead to few rows, and the statement that counts them all."""
    ways = dict(_ways(asked))
    if not ways:
        return None
    counts = [
        select(func.count()).select_from(found.limit(FEW + 1).subquery(f"counted_{index}")).scalar_subquery()
        for index, found in ways.items()
    ]
    return tuple(ways), _built(select(*counts), ())


def _built(statement: Any, terms: Sequence[Term]) -> Built:
    # Elements of our own hide what they bind from SQLAlchemy's walkers; the compiler sees it all.
    compiled = statement.compile(dialect=_ANY)
    names = frozenset(name for bind, name in compiled.bind_names.items() if bind.required)
    return Built(statement, names, tuple(terms))


_ANY = sqlite_dialect()
"""Names and places are the same in every dialect."""


def _ties(asked: Asked) -> list[Term]:
    """What decides among equals, as on MLflow's server."""
    view = VIEWS[asked.noun]
    named = {step.field for step in asked.steps}
    match asked.noun:
        case Noun.RUNS:
            newest, last = "start_time", Term(runs.c.run_id, str, False)
        case Noun.LOGGED_MODELS:
            newest, last = "creation_timestamp_ms", Term(logged_models.c.model_id, str, False)
        case _:
            return [] if "experiment_id" in named else [Term(view.serial, int, True)]
    return [*([] if newest in named else [Term(view.fields[newest].column, int, True)]), last]


def _step_terms(asked: Asked, first: int) -> tuple[FromClause, list[Term]]:
    """The tables with those that the order needs, and its terms, from the step `first` on."""
    view = VIEWS[asked.noun]
    joined: FromClause = view.table
    terms: list[Term] = []
    for index, step in enumerate(asked.steps[first:], first):
        if step.field is not None:
            terms += field_terms(view.fields[step.field], descending=step.descending)
            continue
        table = _ordering(asked.noun, step.kind, index)
        joined = joined.outerjoin(table, _joining(asked, index, step, table))
        terms.append(Term(rank(table, step.kind), int, False))
        terms += value_terms(table, step, joined=True)
    return joined, [*terms, *_ties(asked)]


@lru_cache(maxsize=STATEMENTS_KEPT)
def _ordering(noun: Noun, kind: Kind, index: int) -> FromClause:
    """The rows that are joined to a thing for the step `index` of its order."""
    return VIEWS[noun].keyed[kind].table.alias(f"order_{index}")


def _joining(asked: Asked, index: int, step: Step, table: FromClause) -> Condition:
    view = VIEWS[asked.noun]
    if asked.noun is Noun.LOGGED_MODELS:
        own = DatasetFilter("", "" if step.on_digest else None)

        def measured(points: FromClause) -> Condition:
            extra = measured_on(points, (own,) if step.on_name else (), f"by_{index}")
            return and_(measured_on(points, asked.on), extra)

        return latest_of(table, f"by_{index}", measured)
    keyed = view.keyed[step.kind]
    return and_(table.c[keyed.owner] == view.serial, table.c.key == bindparam(f"by_{index}"))


def _others(
    asked: Asked, done: Sequence[int], *, led: bool = False, ordered: bool = False
) -> list[Condition]:
    """The clauses that are not answered otherwise, as conditions that lead nowhere; `led`: beside a way;
    `ordered`: what the order needs is joined."""
    picks: list[Condition] = [
        Picking(_picked(asked, form, index, ordered=ordered), led=led)
        for index, form in enumerate(asked.forms)
        if index not in done
    ]
    if asked.on and all(form.kind is not Kind.METRIC for form in asked.forms):
        points = logged_model_metrics.alias("measured")
        mine = and_(points.c.model == logged_models.c.serial, measured_on(points, asked.on))
        picks.append(Picking(exists().where(mine).correlate_except(points)))
    return picks


def _picked(asked: Asked, form: Form, index: int, *, ordered: bool) -> Condition:
    """Whether a thing passes a clause; where a run's order begins with the same metric, param or tag, what
    is joined for that is looked at, for there is one row at most."""
    leads = ordered and asked.noun is Noun.RUNS and index in asked.first
    if not leads or form.operator is Operator.IS_NULL:
        return picked(asked.noun, form, index, asked.on)
    table = _ordering(asked.noun, form.kind, 0)
    return and_(table.c.key.is_not(None), passes(table, form, index))


@lru_cache(maxsize=STATEMENTS_KEPT)
def gathered(asked: Asked, way_index: int | None, paged: bool) -> Built:
    """The first rows of a stretch: out of those that a way leads to, or out of all."""
    view = VIEWS[asked.noun]
    joined, terms = _step_terms(asked, 0)
    parts = _within(asked)
    if way_index is not None:
        ids = dict(_ways(asked))[way_index]
        parts = [Among(view.serial, ids), *(Picking(part, led=True) for part in parts)]
    parts += _others(
        asked, () if way_index is None else (way_index,), led=way_index is not None, ordered=True
    )
    if paged:
        parts.append(after(terms))
    statement = select(view.serial, *(term.column for term in terms)).select_from(joined).where(and_(*parts))
    return _built(_cut(statement, terms), terms)


@lru_cache(maxsize=STATEMENTS_KEPT)
def walked(asked: Asked, at_rank: int, paged: bool) -> Built:
    """The first runs of a stretch that have this rank in what the order begins with: along its index, or,
    where they have no value, newest first."""
    step = asked.steps[0]
    keyed = VIEWS[asked.noun].keyed[step.kind]
    table = keyed.table.alias("order_0")
    joined, rest = _step_terms(asked, 1)
    values = value_terms(table, step, joined=False)
    parts = [table.c.key == bindparam("by_0")]
    done: tuple[int, ...] = ()
    if at_rank == ABSENT:
        there = exists().where(table.c[keyed.owner] == runs.c.serial, *parts).correlate_except(table)
        parts = [*_within(asked), Picking(not_(there))]
    else:
        joined = _led_by(table, table.c[keyed.owner] == runs.c.serial, joined)
        parts.append(_scope(asked, table.c.experiment_id))
        if step.kind is Kind.METRIC:
            parts.append(table.c.is_nan == literal_column(str(at_rank)))
        if asked.staged:
            parts.append(Picking(runs.c.deleted == bindparam("deleted")))
        done = asked.first
        parts += [_directly(table, asked.forms[index], index) for index in done]
    fixed = [Term(literal_column(str(at_rank), Integer), int, False)]
    if at_rank != 0:
        fixed += [Term(default_of(value.kind), value.kind, value.descending) for value in values]
    moving = [*(values if at_rank == 0 else []), *rest]
    parts += _others(asked, done)
    if paged:
        parts.append(after(moving, len(fixed)))
    columns = (runs.c.serial, *(term.column for term in (*fixed, *moving)))
    statement = select(*columns).select_from(joined).where(and_(*parts))
    return _built(_cut(statement, moving), (*fixed, *moving))


def _led_by(table: FromClause, mine: Condition, joined: FromClause) -> FromClause:
    """The runs, and what is joined to them, behind the table whose index is walked."""
    if isinstance(joined, Join):
        return _led_by(table, mine, joined.left).outerjoin(joined.right, joined.onclause)
    return table.join(joined, mine)


def _directly(table: FromClause, form: Form, index: int) -> Condition:
    """A clause about what the order begins with, on the index that is walked."""
    if form.operator is Operator.EQUAL and form.kind is not Kind.METRIC:
        return and_(table.c.value_head == bindparam(f"head_{index}"), passes(table, form, index))
    return passes(table, form, index)


def _cut(statement: Any, terms: Sequence[Term]) -> Any:
    order = [term.column.desc() if term.descending else term.column.asc() for term in terms]
    return statement.order_by(*order).limit(bindparam("limit"))
