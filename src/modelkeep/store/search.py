"""Lists and searches of models and versions, cut into pages by key.

What the caller may not see is left out in the query itself, before pages are cut, so that no count and no
page length tells of it. What a filter means in SQL is `filters`' business.
"""

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

from sqlalchemy import bindparam, select
from sqlalchemy.sql.selectable import Select

from modelkeep.core import query
from modelkeep.core.catalog import ModelVersion, RegisteredModel
from modelkeep.core.query import Expression, Order, Target
from modelkeep.core.values import ModelName
from modelkeep.store.catalog import JOINED, READY, VERSION, load
from modelkeep.store.filters import INT64_MAX, VIEWS, Term, after, ordered, where
from modelkeep.store.models import ModelRow, assemble
from modelkeep.store.paging import check_limit, read_token, write_token
from modelkeep.store.schema import models, versions
from modelkeep.store.statements import Statement
from modelkeep.store.transaction import Transaction
from modelkeep.store.visibility import Visible, condition

STATEMENTS_KEPT = 256
"""Statements of searches that are kept compiled: dashboards and scripts ask the same again and again."""


@dataclass(frozen=True)
class Search:
    """One search without its values of paging and visibility: what its statement is built from and kept
    under.

    Two filters are the same when their normal texts are; the trees themselves are not compared, for in Python
    1.0 and True are equal.
    """

    target: Target
    text: str
    order_text: str
    in_project: bool
    of_model: bool
    paged: bool
    shape: tuple[bool, ...]
    expression: Expression | None = field(compare=False)
    order: tuple[Order, ...] = field(compare=False)
    visible: Visible = field(compare=False)


class Built(NamedTuple):
    """A statement, and the terms whose values stand behind the columns of each row."""

    statement: Statement
    terms: tuple[Term, ...]


@lru_cache(maxsize=STATEMENTS_KEPT)
def build(search: Search) -> Built:
    """The statement of a search."""
    view = VIEWS[search.target]
    joined, terms = ordered(view, search.order)
    statement: Select[Any] = select(*view.columns, *(term.column for term in terms)).select_from(joined)
    statement = statement.where(view.seen)
    if search.in_project:
        statement = statement.where(models.c.project == bindparam("project"))
    if search.of_model:
        statement = statement.where(models.c.name == bindparam("name"))
    if not search.visible.everything:
        statement = statement.where(condition(search.visible)[0])
    if search.expression is not None:
        statement = statement.where(where(search.expression, search.target))
    if search.paged:
        statement = statement.where(after(terms))
    order = [term.column.desc() if term.descending else term.column.asc() for term in terms]
    return Built(statement.order_by(*order).limit(bindparam("limit")), terms)


def _page(
    tx: Transaction,
    target: Target,
    visible: Visible,
    *,
    expression: Expression | None,
    order: tuple[Order, ...],
    project: str | None,
    name: str | None = None,
    limit: int,
    page_token: str | None,
) -> tuple[list[Any], str | None]:
    """The rows of a page, without the terms behind them, and the token of the next one."""
    check_limit(limit)
    text = query.unparse(expression) if expression is not None else ""
    order_text = query.unparse_order(order)
    asked = "\n".join((target, text, order_text, project or "", name or ""))
    built = build(
        Search(
            target=target,
            text=text,
            order_text=order_text,
            in_project=project is not None,
            of_model=name is not None,
            paged=page_token is not None,
            shape=visible.shape,
            expression=expression,
            order=order,
            visible=visible,
        )
    )
    binds: dict[str, Any] = {"limit": limit + 1}
    if project is not None:
        binds["project"] = project
    if name is not None:
        binds["name"] = name
    if not visible.everything:
        binds |= condition(visible)[1]
    if page_token is not None:
        key = read_token(page_token, asked, [term.kind for term in built.terms])
        binds |= {f"key_{index}": part for index, part in enumerate(key)}
    rows = tx.all(built.statement, **binds)
    width = len(VIEWS[target].columns)
    more = write_token(asked, rows[limit - 1][width:]) if len(rows) > limit else None
    return [row[:width] for row in rows[:limit]], more


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
        Target.VERSIONS,
        visible,
        expression=expression,
        order=order,
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
        Target.MODELS,
        visible,
        expression=expression,
        order=order,
        project=project,
        limit=limit,
        page_token=page_token,
    )
    return assemble(tx, [ModelRow(*row) for row in rows]), token


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
