"""How the hot statements of the catalog run: through an index, whatever the size of the registry.

What they find is tested elsewhere; the measured times are the benchmarks' business.
"""

from typing import Any

import pytest

from modelkeep.core import query
from modelkeep.core.query import Order, Target
from modelkeep.core.values import ModelName
from modelkeep.store import catalog, drafts, inventory, models, search
from modelkeep.store.database import Database
from modelkeep.store.filters import Half
from modelkeep.store.statements import Statement
from modelkeep.store.visibility import Scopes, Visible

pytestmark = pytest.mark.req("V10")

NAMED = {"project": "default", "name": "churn"}
ALL = Visible(allowed=Scopes(everything=True))
LOW_HIGH = {"low": "", "high": "~", "prereleases": 1, "limit": 10}


def built(
    target: Target,
    text: str | None = None,
    order: str | None = None,
    *,
    way: int | None = None,
    half: Half | None = None,
    paged: bool = False,
) -> Statement:
    """The statement of a search, through one of its ways or on a walk."""
    return search.build(asked(target, text, order), way=way, half=half, paged=paged).statement


def asked(target: Target, text: str | None = None, order: str | None = None) -> search.Search:
    """A search by somebody who may see everything."""
    expression = query.parse(text, target) if text else None
    wanted: tuple[Order, ...] = query.parse_order(order, target) if order else ()
    return search.Search(
        target=target,
        text=text or "",
        order_text=order or "",
        in_project=False,
        of_model=False,
        shape=ALL.shape,
        marks=False,
        expression=expression,
        order=wanted,
        visible=ALL,
    )


BEST = built(Target.VERSIONS, "metrics.auc > 0.9", "metrics.auc desc", half=Half.WITH)
NEXT_BEST = built(Target.VERSIONS, "metrics.auc > 0.9", "metrics.auc desc", half=Half.WITH, paged=True)
SPANS = {f"{end}_{span}": key for span in range(3) for end, key in (("low", ""), ("high", "~"))}

HOT: dict[str, tuple[Statement, dict[str, Any]]] = {
    "by number": (catalog.BY_NUMBER.now, {**NAMED, "number": 1}),
    "by semver": (catalog.BY_SEMVER.now, {**NAMED, "key": "x"}),
    "by digest": (catalog.BY_DIGEST.now, {**NAMED, "digest": "x"}),
    "latest": (catalog._LATEST, NAMED),
    "highest": (catalog.HIGHEST.now, NAMED),
    "highest to choose from": (catalog._HIGHEST_OFFERED, NAMED),
    "newest": (catalog.NEWEST.now, NAMED),
    "then": (catalog.HIGHEST.then, {**NAMED, "sequence": 1}),
    "aliased": (catalog._ALIASED, {**NAMED, "alias": "a"}),
    "in stage": (catalog._IN_STAGE.now, {**NAMED, "stage": "production"}),
    "occupant then": (catalog._OCCUPANT_THEN, {**NAMED, "stage": "production", "sequence": 1}),
    "semvers": (catalog._SEMVERS_NOW, {**NAMED, **LOW_HIGH}),
    "semvers to choose from": (catalog._SEMVERS_OFFERED, {**NAMED, **LOW_HIGH}),
    "withdrawals": (catalog._WITHDRAWAL_EVENTS, {"model": "churn", "after": 0, "sequence": 1}),
    "numbers given": (catalog._GIVEN[3], {"model_id": "x", "keys": ["x"], **SPANS}),
    "by number, with the model": (catalog._NUMBERED, {**NAMED, "number": 1}),
    "labels of many": (catalog._TAGS_OF, {"ids": ["x"]}),
    "aliases of many": (catalog._ALIASES_OF, {"ids": ["x"]}),
    "alias events": (catalog._ALIAS_EVENTS, {"model": "churn", "after": 0, "sequence": 1}),
    "same bytes": (catalog._SAME_BYTES, {"model_id": "x", "digest": "x", "limit": 1}),
    "same identity": (catalog._SAME_IDENTITY, {"model_id": "x", "identity": "x", "limit": 6}),
    "a model": (models._FIND, NAMED),
    "latest of many": (models._LATEST_OF, {"ids": ["x"]}),
    "versions of a model": (search._OF_MODEL, {"model_id": "x", "before": 9, "limit": 9}),
    "all models": (built(Target.MODELS), {"limit": 9}),
    "next models": (built(Target.MODELS, paged=True), {"limit": 9, "key_0": "a", "key_1": "b"}),
    "all versions": (built(Target.VERSIONS), {"limit": 9}),
    "next versions": (built(Target.VERSIONS, paged=True), {"limit": 9, "key_0": "a", "key_1": "b"}),
    "by metric": (built(Target.VERSIONS, "metrics.auc > 0.9"), {"limit": 9}),
    "best by metric": (BEST, {"limit": 9}),
    "next best by metric": (NEXT_BEST, {"limit": 9, "key_1": 0.5, "key_2": "a", "key_3": "b"}),
    "without a metric": (built(Target.VERSIONS, None, "metrics.auc desc", half=Half.WITHOUT), {"limit": 9}),
    "newest of a semver": (built(Target.VERSIONS, 'semver = "1.0.0"'), {"limit": 9}),
    "highest semver": (built(Target.VERSIONS, None, "semver desc"), {"limit": 9}),
    "oldest": (built(Target.VERSIONS, None, "created_at"), {"limit": 9}),
    "by tag": (built(Target.VERSIONS, 'tags.team = "risk"'), {"limit": 9}),
    "same draft": (drafts._SAME, {**NAMED, "by": "ann", "document": "{}"}),
    "held": (drafts._HELD, {"digest": "x"}),
    "stale drafts": (drafts._STALE, {"status": "open", "before": "x", "limit": 9}),
    "named contents": (inventory._NAMED, {"after": "x", "limit": 9}),
    "holders": (inventory._HOLDERS, {"digest": "x", "limit": 9}),
}


SORTED_FEW = frozenset({"in stage", "occupant then", "holders", "same draft"})
"""Those that sort a handful of rows: what is in one stage, what holds one file, what one author has open."""


@pytest.mark.parametrize("name", HOT)
def test_a_hot_statement_goes_through_an_index(sqlite_database: Database, name: str) -> None:
    """Nothing is read from end to end, and nothing that grows with the registry is sorted."""
    statement, binds = HOT[name]

    plan = sqlite_database.read(lambda tx: tx.explain(statement, **binds))

    lines = [line for line in plan.splitlines() if "json_each" not in line and "VIRTUAL TABLE" not in line]
    scans = [line for line in lines if line.startswith("SCAN") and "USING" not in line]
    assert not scans, plan
    if name not in SORTED_FEW:
        assert "USE TEMP B-TREE FOR ORDER BY" not in plan, plan


def test_a_missing_model_is_missed_with_one_statement(database: Database) -> None:
    """What is not there costs no more than what is."""
    with database.statements() as seen:
        found = database.read(lambda tx: models.find_model(tx, ModelName("no", "where")))
    assert found is None
    assert len(seen) == 1
