"""Rows of policies: every version of the policy of each scope.

Which of them holds for a model is the service's part; what a policy's gates answer is `core.policy`'s.
"""

from collections.abc import Callable
from datetime import datetime
from functools import lru_cache

from msgspec import Struct
from sqlalchemy import func, select

from modelkeep.core import codec
from modelkeep.core.policy import Policy
from modelkeep.core.values import Digest, ModelName
from modelkeep.store.schema import policies
from modelkeep.store.statements import insert, json_text, one_of
from modelkeep.store.transaction import Transaction


class StoredPolicy(Struct, frozen=True, kw_only=True):
    """One version of the policy of a scope; the scope is '' for all, a project, or `project/model`."""

    scope: str
    version: int
    digest: Digest
    policy: Policy
    created_at: datetime
    created_by: str


POLICIES_KEPT = 64
"""Policies that are kept as they were read."""

_newer = policies.alias("newer")
_POLICIES = select(
    policies.c.scope,
    policies.c.version,
    policies.c.digest,
    policies.c.document,
    policies.c.created_at,
    policies.c.created_by,
).where(
    one_of(policies.c.scope, "scopes"),
    policies.c.version
    == select(func.max(_newer.c.version)).where(_newer.c.scope == policies.c.scope).scalar_subquery(),
)
_ADD_POLICY = insert(policies)


def scope_key(scope: ModelName | str | None) -> str:
    """How a scope is written in the table."""
    match scope:
        case None:
            return ""
        case str():
            return scope
        case _:
            return f"{scope.project}/{scope.name}"


def latest_policies(tx: Transaction, scopes: list[str]) -> dict[str, StoredPolicy]:
    """The policy that holds for each of these scopes now, where one was set."""
    return ask_policies(tx, scopes)()


def ask_policies(tx: Transaction, scopes: list[str]) -> Callable[[], dict[str, StoredPolicy]]:
    """`latest_policies`, asked ahead."""
    asked = tx.ask(_POLICIES, scopes=scopes)
    return lambda: {
        row[0]: StoredPolicy(
            scope=row[0],
            version=row[1],
            digest=row[2],
            policy=_policy(row[3]),
            created_at=codec.parse_time(row[4]),
            created_by=row[5],
        )
        for row in asked.all()
    }


@lru_cache(maxsize=POLICIES_KEPT)
def _policy(document: str) -> Policy:
    """A stored policy; few are in force at a time, and nobody changes one."""
    return codec.decode(document, Policy)


def add_policy(tx: Transaction, stored: StoredPolicy) -> None:
    """Store a new version of the policy of a scope."""
    tx.put(
        _ADD_POLICY,
        scope=stored.scope,
        version=stored.version,
        digest=stored.digest,
        document=json_text(stored.policy),
        created_at=codec.format_time(stored.created_at),
        created_by=stored.created_by,
    )
