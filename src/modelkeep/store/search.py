"""Lists and searches of models and versions, cut into pages by key.

What the caller may not see is left out in the query itself, before pages are cut, so that no count and no
page length tells of it. What a filter means in SQL is `filters`' business; which index leads, `narrowing`'s.

A page costs what is on it, not what there is, except for these:
- an order by a field without an index (owner, size_bytes and their like), a parameter or a tag sorts all that
  is selected; so does, within equal first values, an order by semver or metric with ties;
- a common filter that no index has in the order asked for walks past what does not pass: far, where all that
  passes lies at the end; so does a rare one by stage, owner, framework, pattern, or `not`;
- the last page of an order by a metric looks for versions without it.
Postgres gives such a statement up after `dialects.STATEMENT_S`; SQLite has no such limit.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, NamedTuple

from sqlalchemy import bindparam, select
from sqlalchemy.sql.elements import False_
from sqlalchemy.sql.selectable import Select

from modelkeep.core import query
from modelkeep.core.catalog import ModelVersion, RegisteredModel
from modelkeep.core.query import And, Expression, Kind, Operator, Order, Subject, Target
from modelkeep.core.values import ModelName
from modelkeep.store.catalog import JOINED, READY, VERSION, load
from modelkeep.store.filters import (
    INT64_MAX,
    VIEWS,
    Condition,
    Half,
    Place,
    Term,
    after,
    ordered,
    passes,
    where,
)
from modelkeep.store.models import ModelRow, assemble
from modelkeep.store.narrowing import (
    Among,
    Picking,
    Survey,
    Way,
    about,
    conjuncts,
    leads,
    needs,
    shortest,
    survey,
    walkable,
)
from modelkeep.store.paging import Key, check_limit, read_token, write_token
from modelkeep.store.schema import models, versions
from modelkeep.store.standing import PAST, Mark
from modelkeep.store.statements import Statement
from modelkeep.store.transaction import Transaction
from modelkeep.store.visibility import NOTHING, Visible, allowed, condition

STATEMENTS_KEPT = 256
"""Statements of searches that are kept compiled: dashboards and scripts ask the same again and again."""


@dataclass(frozen=True)
class Search:
    """One search without its values of paging and visibility: what its statements are built from and kept
    under. `marks`: whether it reads no more than the marks of rows.

    Two filters are the same when their normal texts are; the trees themselves are not compared, for in Python
    1.0 and True are equal.
    """

    target: Target
    text: str
    order_text: str
    in_project: bool
    of_model: bool
    shape: tuple[bool, ...]
    marks: bool
    expression: Expression | None = field(compare=False)
    order: tuple[Order, ...] = field(compare=False)
    visible: Visible = field(compare=False)


class Built(NamedTuple):
    """A statement, and the terms whose values stand behind the columns of each row."""

    statement: Statement
    terms: tuple[Term, ...]


@lru_cache(maxsize=STATEMENTS_KEPT)
def surveyed(search: Search) -> Survey | None:
    """The ways of a search."""
    return survey(
        search.target,
        search.expression,
        search.visible,
        search.order,
        in_project=search.in_project,
        of_model=search.of_model,
    )


@lru_cache(maxsize=STATEMENTS_KEPT)
def build(search: Search, *, way: int | None = None, half: Half | None = None, paged: bool = False) -> Built:
    """The statement of a search: through one of its ways, or on a walk through one half of its order."""
    view = VIEWS[search.target]
    joined, half_condition, terms = ordered(view, search.order, half)
    columns = _columns(search)
    statement: Select[Any] = select(*columns, *(term.column for term in terms)).select_from(joined)
    statement = statement.where(view.seen if way is None else Picking(view.seen, led=True), half_condition)
    guided = way is not None or walkable(search.target, search.order)
    chosen = _chosen(search, way)
    for place, part in enumerate(conjuncts(search.expression)):
        if chosen is not None and chosen.answers == place:
            continue
        meant = where(part, search.target)
        if isinstance(meant, False_):
            meant = NOTHING
        free = guided and (way is not None or not leads(part, search.order))
        statement = statement.where(Picking(meant, led=way is not None) if free else meant)
    # One model has its own indexes by time and by semver; by a metric all are walked together.
    of_one = search.in_project and search.of_model and way is None and half is None
    for within in _places(search):
        statement = statement.where(Picking(within, led=way is not None) if guided else within)
    if of_one and search.target is Target.VERSIONS:
        statement = statement.where(versions.c.model_id == _MODEL_ID)
    if chosen is not None:
        statement = statement.where(Among(view.id, chosen.ids))
    if half is Half.WITH:
        # The same once more, about the very row that the walk goes along: so it begins where rows pass.
        walked = Place(terms[1].column)
        for part in about(search.expression, search.order[0].subject):
            statement = statement.where(passes(walked, part.subject, part.operator, part.value))
    if paged:
        statement = statement.where(after(terms))
    sorting = [term for term in terms if not term.fixed]
    order = [term.column.desc() if term.descending else term.column.asc() for term in sorting]
    return Built(statement.order_by(*order).limit(bindparam("limit")), terms)


def _chosen(search: Search, way: int | None) -> Way | None:
    if way is None:
        return None
    found = surveyed(search)
    assert found is not None, "a way was chosen among those that there are"
    return found.ways[way]


def _columns(search: Search) -> tuple[Any, ...]:
    view = VIEWS[search.target]
    return (view.id, PAST) if search.marks else view.columns


_NAMED = models.alias("named")
_MODEL_ID = (
    select(_NAMED.c.id)
    .where(_NAMED.c.project == bindparam("project"), _NAMED.c.name == bindparam("name"))
    .scalar_subquery()
)


def _places(search: Search) -> Iterator[Condition]:
    """Where the rows of a search may stand."""
    if search.in_project:
        yield models.c.project == bindparam("project")
    if search.of_model:
        yield models.c.name == bindparam("name")
    if not search.visible.everything:
        yield condition(search.visible)[0]


class Wanted(NamedTuple):
    """What is searched for, with all that follows from it alone.

    `model`: the name that every found version's model has, if the filter says one; `rest` is the filter
    without that.
    """

    target: Target
    expression: Expression | None
    order: tuple[Order, ...]
    text: str
    order_text: str
    model: str | None = None
    rest: Expression | None = None
    rest_text: str = ""


def wanted(target: Target, expression: Expression | None, order: tuple[Order, ...]) -> Wanted:
    """Understand a filter and an order. Who asks the same again may keep what comes of it."""
    plain = Wanted(target, expression, order, _text(expression), query.unparse_order(order))
    if target is Target.MODELS:
        return plain
    subject = Subject(Kind.FIELD, "model")
    named_by = next((p for p in about(expression, subject) if p.operator is Operator.EQUAL), None)
    if named_by is None:
        return plain
    parts = tuple(part for part in conjuncts(expression) if part is not named_by)
    rest = And(parts) if len(parts) > 1 else parts[0] if parts else None
    return plain._replace(model=str(named_by.value), rest=rest, rest_text=_text(rest))


def _text(expression: Expression | None) -> str:
    return query.unparse(expression) if expression is not None else ""


def _page(
    tx: Transaction,
    wanted: Wanted,
    visible: Visible,
    *,
    project: str | None,
    name: str | None = None,
    limit: int,
    page_token: str | None,
    marks: bool = False,
) -> tuple[list[Any], str | None]:
    """The rows of a page, without the terms behind them, and the token of the next one."""
    check_limit(limit)
    asked = "\n".join((wanted.target, wanted.text, wanted.order_text, project or "", name or ""))
    search = Search(
        target=wanted.target,
        text=wanted.text,
        order_text=wanted.order_text,
        in_project=project is not None,
        of_model=name is not None,
        shape=visible.shape,
        marks=marks,
        expression=wanted.expression,
        order=wanted.order,
        visible=visible,
    )
    named = {key: value for key, value in (("project", project), ("name", name)) if value is not None}
    if name is None and wanted.model is not None:
        search, named = _within_one_model(tx, search, wanted, named)
    key: list[Key] | None = None
    if page_token is not None:
        key = read_token(page_token, asked, [term.kind for term in build(search).terms])
    rows = _rows(tx, search, named, key, limit + 1)
    width = len(_columns(search))
    more = write_token(asked, rows[limit - 1][width:]) if len(rows) > limit else None
    return [row[:width] for row in rows[:limit]], more


_PROJECTS_OF = select(models.c.project).where(models.c.name == bindparam("name")).limit(2)


def _within_one_model(
    tx: Transaction, search: Search, wanted: Wanted, named: dict[str, str]
) -> tuple[Search, dict[str, str]]:
    """The same search, said to be of one model where its filter names a model that only one project has."""
    name, project = str(wanted.model), named.get("project")
    if project is None:
        projects = tx.all(_PROJECTS_OF, name=name)
        if len(projects) != 1:
            return search, named
        project = projects[0][0]
    # What names the model is said by the search itself now: so one statement serves all models.
    search = replace(search, in_project=True, of_model=True, expression=wanted.rest, text=wanted.rest_text)
    return search, {"project": project, "name": name}


def _rows(
    tx: Transaction, search: Search, named: Mapping[str, Any], key: list[Key] | None, limit: int
) -> list[Any]:
    """Up to so many rows after the key, each with its terms."""
    seeing = {} if search.visible.everything else condition(search.visible)[1]
    way = _way(tx, search, named)
    by_metric = bool(search.order) and search.order[0].subject.kind is Kind.METRIC
    halves: tuple[Half | None, ...] = (None,)
    if way is None and by_metric:
        halves = (Half.WITH,) if needs(search.expression, search.order[0].subject) else tuple(Half)
    if key is not None and halves != (None,):
        halves = tuple(half for half in halves if half is not None and half.value >= int(key[0]))
    rows: list[Any] = []
    for half in halves:
        paged = key is not None and (half is None or half.value == key[0])
        built = build(search, way=way, half=half, paged=paged)
        binds: dict[str, Any] = {**named, **seeing, "limit": limit - len(rows)}
        if paged:
            binds |= {f"key_{i}": part for i, part in enumerate(key or ()) if not built.terms[i].fixed}
        rows += tx.all(built.statement, **binds)
        if len(rows) == limit:
            break
    return rows


def _way(tx: Transaction, search: Search, named: Mapping[str, Any]) -> int | None:
    """The way that leads to few rows, if any does."""
    found = surveyed(search)
    if found is None:
        return None
    given = {**named, **allowed(search.visible, models)[1]} if found.own else {}
    counts = tx.one(found.counts, **given)
    assert counts is not None, "counts are one row"
    return shortest(counts)


def search_versions(
    tx: Transaction,
    visible: Visible,
    *,
    expression: Expression | None = None,
    order: tuple[Order, ...] = (),
    project: str | None = None,
    model: ModelName | None = None,
    limit: int,
    page_token: str | None = None,
) -> tuple[list[ModelVersion], str | None]:
    """A page of the versions that a filter selects, the newest first among equals.

    Raises:
        Invalid: the token is of another list. LimitExceeded: the limit is out of bounds.
    """
    rows, token = _page(
        tx,
        wanted(Target.VERSIONS, expression, order),
        visible,
        project=model.project if model is not None else project,
        name=model.name if model is not None else None,
        limit=limit,
        page_token=page_token,
    )
    return load(tx, rows), token


def search_models(
    tx: Transaction,
    visible: Visible,
    *,
    expression: Expression | None = None,
    order: tuple[Order, ...] = (),
    project: str | None = None,
    limit: int,
    page_token: str | None = None,
) -> tuple[list[RegisteredModel], str | None]:
    """A page of the models that a filter selects, by project and name among equals.

    Raises:
        Invalid: the token is of another list. LimitExceeded: the limit is out of bounds.
    """
    rows, token = _page(
        tx,
        wanted(Target.MODELS, expression, order),
        visible,
        project=project,
        limit=limit,
        page_token=page_token,
    )
    return assemble(tx, [ModelRow(*row) for row in rows]), token


def find(
    tx: Transaction,
    wanted: Wanted,
    visible: Visible,
    *,
    project: str,
    limit: int,
    page_token: str | None = None,
) -> tuple[list[Mark], str | None]:
    """The marks of a page of a project's models or versions, in the order of the other searches.

    Raises:
        Invalid: the token is of another list. LimitExceeded: the limit is out of bounds.
    """
    rows, token = _page(tx, wanted, visible, project=project, limit=limit, page_token=page_token, marks=True)
    return [Mark(*row) for row in rows], token


_OF_MODEL = (
    select(*VERSION)
    .select_from(JOINED)
    .where(READY, versions.c.model_id == bindparam("model_id"), versions.c.number < bindparam("before"))
    .order_by(versions.c.number.desc())
    .limit(bindparam("limit"))
)


def list_versions(
    tx: Transaction, model_id: str, *, limit: int, page_token: str | None = None
) -> tuple[list[ModelVersion], str | None]:
    """A page of a model's versions, the last registered first.

    Raises:
        Invalid: the token is of another list. LimitExceeded: the limit is out of bounds.
    """
    check_limit(limit)
    asked = f"versions of {model_id}"
    before = read_token(page_token, asked, [int])[0] if page_token is not None else INT64_MAX
    rows = tx.all(_OF_MODEL, model_id=model_id, before=before, limit=limit + 1)
    more = write_token(asked, [rows[limit - 1][2]]) if len(rows) > limit else None
    return load(tx, rows[:limit]), more
