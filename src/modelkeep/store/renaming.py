"""Giving a model another name: every row that has the name in it, in one go.

Most rows are filed under the model's id and need nothing. What has the name as text or in its document is
written here: grants, policies, drafts, requests, endpoints, rollouts, and what logged models became.
Records of versions stay as they were registered, for their digests stand in the log; events do, too.
"""

from datetime import datetime
from typing import Any

from sqlalchemy import bindparam, update
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.elements import ColumnElement
from sqlalchemy.types import Text

from modelkeep.core import codec
from modelkeep.core.values import ModelName
from modelkeep.store import renames
from modelkeep.store.models import folded
from modelkeep.store.policies import scope_key
from modelkeep.store.schema import drafts, endpoints, grants, models, policies, requests, rollouts
from modelkeep.store.statements import json_text
from modelkeep.store.tracking_tables import logged_model_versions
from modelkeep.store.transaction import Transaction


class with_model(ColumnElement[str]):  # noqa: N801  (it reads as a function of SQL)
    """A document with another model in it, bound as `document`."""

    type = Text()
    inherit_cache = False

    def __init__(self, column: ColumnElement[Any]) -> None:
        self.column = column
        self.bind = bindparam("document", type_=Text())


@compiles(with_model, "sqlite")
def _with_model_sqlite(element: with_model, compiler: SQLCompiler, **kw: Any) -> str:
    column, bind = compiler.process(element.column, **kw), compiler.process(element.bind, **kw)
    return f"json_set({column}, '$.model', json({bind}))"


@compiles(with_model, "postgresql")
def _with_model_postgresql(element: with_model, compiler: SQLCompiler, **kw: Any) -> str:
    column, bind = compiler.process(element.column, **kw), compiler.process(element.bind, **kw)
    return f"jsonb_set(({column})::jsonb, '{{model}}', ({bind})::jsonb)::text"


_MODEL = (
    update(models)
    .where(models.c.id == bindparam("which"))
    .values(name=bindparam("new_name"), folded=bindparam("new_folded"), updated_at=bindparam("now"))
)
_GRANTS = (
    update(grants)
    .where(grants.c.project == bindparam("of_project"), grants.c.model == bindparam("old_name"))
    .values(model=bindparam("new_name"))
)
_POLICIES = (
    update(policies).where(policies.c.scope == bindparam("old_scope")).values(scope=bindparam("new_scope"))
)
_DRAFTS = (
    update(drafts)
    .where(drafts.c.project == bindparam("of_project"), drafts.c.name == bindparam("old_name"))
    .values(name=bindparam("new_name"))
)
_REQUESTS = (
    update(requests)
    .where(requests.c.model_id == bindparam("which"))
    .values(document=with_model(requests.c.document))
)
_ENDPOINTS = (
    update(endpoints)
    .where(endpoints.c.model_id == bindparam("which"))
    .values(document=with_model(endpoints.c.document), row_version=endpoints.c.row_version + 1)
)
_ROLLOUTS = (
    update(rollouts)
    .where(rollouts.c.model_id == bindparam("which"))
    .values(document=with_model(rollouts.c.document), row_version=rollouts.c.row_version + 1)
)
_MADE_OF = (
    update(logged_model_versions)
    .where(logged_model_versions.c.name == bindparam("old_name"))
    .values(name=bindparam("new_name"))
)


def rename(
    tx: Transaction, model_id: str, before: ModelName, after: ModelName, sequence: int, now: datetime
) -> None:
    """Give a model another name within its project; `sequence` is the event that says so.

    Raises:
        ConstraintFailed: the name is taken.
    """
    project, old, new = before.project, before.name, after.name
    tx.put(_MODEL, which=model_id, new_name=new, new_folded=folded(new), now=codec.format_time(now))
    for statement in (_GRANTS, _DRAFTS):
        tx.put(statement, of_project=project, old_name=old, new_name=new)
    tx.put(_POLICIES, old_scope=scope_key(before), new_scope=scope_key(after))
    for statement in (_REQUESTS, _ENDPOINTS, _ROLLOUTS):
        tx.put(statement, which=model_id, document=json_text(after))
    tx.put(_MADE_OF, old_name=str(before), new_name=str(after))
    renames.add(tx, sequence, str(before), str(after))
