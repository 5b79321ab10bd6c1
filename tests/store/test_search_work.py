"""How much work a search is: rows and steps are counted inside the database, so that a slow machine changes
nothing and a table that is read from end to end is seen, whatever its plan is called.

What is found is compared with the language's definition in `test_catalog_search`.
"""

import re
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import text

from modelkeep.core import query, semver
from modelkeep.core.catalog import DEFAULT_STAGES
from modelkeep.core.query import Target
from modelkeep.core.values import ModelName
from modelkeep.store import models, narrowing, search
from modelkeep.store.database import Database
from modelkeep.store.schema import version_metrics, version_params, version_tags, versions
from modelkeep.store.statements import Statement, insert
from modelkeep.store.transaction import Transaction
from modelkeep.store.visibility import Scopes, Visible
from tests.store import catalog_rows as rows

pytestmark = pytest.mark.req("V10")

ALL = Visible(allowed=Scopes(everything=True))
ONE = Visible(allowed=Scopes(models=frozenset({ModelName("lab", "m7")})))
LAB = Visible(allowed=Scopes(projects=frozenset({"lab"})))
SIZE = 4_000
SMALL = 4
"""Versions of each model besides the big one, which has half of them all."""
FEW = 100
"""Instead of the 2,000 of every day, so that four thousand versions are many."""
LIMIT = 10
ROWS_MAX = 3_500
"""Rows that a page of ten may touch in Postgres, in all tables together: fewer than there are versions."""
STEPS_MAX = 15_000
"""Steps of SQLite's machine for the same: a pass over all versions takes three times as many."""


def fill(tx: Transaction) -> None:
    """Versions with a metric all different, one with ties, one that is rare; with tags common and rare."""
    big = SIZE // 2
    wanted = [("default", "big", big)] + [("lab", f"m{i}", SMALL) for i in range(big // SMALL)]
    facts: dict[Any, list[dict[str, Any]]] = {
        table: [] for table in (versions, version_metrics, version_params, version_tags)
    }
    count = 0
    for project, name, length in wanted:
        model = models.add_model(
            tx, f"model_{project}_{name}", ModelName(project, name), description="", owner="ann",
            stages=DEFAULT_STAGES, tags={}, now=rows.START, by="ann",
        )  # fmt: skip
        for number in range(1, length + 1):
            count += 1
            _add(facts, model.id, count, number)
    for table, records in facts.items():
        tx.many(insert(table), records)


def _add(facts: dict[Any, list[dict[str, Any]]], model_id: str, count: int, number: int) -> None:
    key = f"version_{count:06d}"
    moment = f"2026-01-25T14:{count // 60 % 60:02d}:{count % 60:02d}.{count:06d}Z"
    version = semver.parse(f"1.{number}.0")
    facts[versions].append(
        {
            "id": key, "model_id": model_id, "number": number, "semver": str(version),
            "semver_key": semver.sort_key(version), "prerelease": 0, "digest": f"sha256:{count:064d}",
            "size_bytes": 1, "status": "ready", "document": "{}", "parent": None, "framework": None,
            "run_id": None, "source": None, "code_commit": None, "identity": None,
            "from_sequence": count, "to_sequence": None, "description": "", "tombstone": None, "yanked": None,
            "created_at": moment, "created_by": "ann", "updated_at": moment,
        }
    )  # fmt: skip
    mixed = count * 7_919 % 100_003
    metrics = {"auc": mixed / 100_003} | ({"rare": float(count)} if count % 500 == 0 else {})
    facts[version_metrics] += [{"version_id": key, "name": n, "value": v} for n, v in metrics.items()]
    depth = str(count % 1_000)
    facts[version_params].append(_label(key, "depth", depth))
    facts[version_tags].append(_label(key, "team", "risk"))
    if count % 500 == 0:
        facts[version_tags].append(_label(key, "reviewed", "true"))


def _label(key: str, name: str, value: str) -> dict[str, Any]:
    number = query.as_number(value)
    return {"version_id": key, "key": name, "value": value, "value_head": value, "number": number}


class Counting:
    """A transaction that counts what its searches cost."""

    def __init__(self, tx: Transaction, dialect: str) -> None:
        self._tx = tx
        self._dialect = dialect
        self.work = 0

    def all(self, statement: Statement, /, **params: Any) -> list[Any]:
        connection: Any = self._tx._connection
        if self._dialect == "sqlite":
            connection.set_progress_handler(self._step, 10)
            try:
                return self._tx.all(statement, **params)
            finally:
                connection.set_progress_handler(None, 0)
        prepared, places = self._tx._dialect.statements.prepare(statement).bind(params)
        for (line,) in connection.execute(f"explain analyze {prepared}", places).fetchall():
            node = re.search(r"Scan.*actual time=\S+ rows=(\d+) loops=(\d+)", line)
            removed = re.search(r"Rows Removed by (?:Filter|Join Filter): (\d+)", line)
            if node:
                self.work += int(node[1]) * int(node[2])
            if removed:
                self.work += int(removed[1])
        return self._tx.all(statement, **params)

    def one(self, statement: Statement, /, **params: Any) -> Any:
        found = self.all(statement, **params)
        return found[0] if found else None

    def _step(self) -> int:
        self.work += 10
        return 0


@pytest.fixture
def filled(database: Database, monkeypatch: pytest.MonkeyPatch) -> Iterator[Database]:
    """A registry that is large beside the bound of a way."""
    monkeypatch.setattr(narrowing, "FEW", FEW)
    search.surveyed.cache_clear()
    search.build.cache_clear()
    database.write(fill).result(60)
    if database.dialect == "postgresql":
        database.write(lambda tx: tx.run(text("analyze"))).result(60)
    yield database
    search.surveyed.cache_clear()
    search.build.cache_clear()


CASES = [
    ("", ""),
    ("", "created_at"),
    ("metrics.auc > 0.5", "metrics.auc desc"),
    ("metrics.auc > 0.5", "metrics.auc"),
    ("metrics.auc > 0.999", ""),
    ("metrics.auc > 0.5", ""),
    ("", "metrics.auc desc"),
    ("", "metrics.rare desc"),
    ("metrics.nowhere > 1", ""),
    ('tags.team = "risk"', ""),
    ('tags.team = "risk"', "metrics.auc desc"),
    ('tags.reviewed = "true"', ""),
    ("tags.reviewed = true", "metrics.auc desc"),
    ('tags.reviewed != "false"', ""),
    ('tags.team = "nowhere"', ""),
    ('tags.team in ("nowhere", "no")', ""),
    ("params.depth = 7", ""),
    ('params.depth = "7"', ""),
    ("params.depth < 5", "metrics.auc desc"),
    ("params.depth = 7 or metrics.rare > 3000", ""),
    ('model = "m7"', ""),
    ('model = "big"', ""),
    ('model = "big"', "metrics.auc desc"),
    ('model = "big"', "semver desc"),
    ('model = "big" and semver >= "1.30.0"', ""),
    ('model = "big" and tags.reviewed exists', ""),
    ('semver = "1.1.0"', ""),
    ('semver >= "1.1999.0"', ""),
    ('semver >= "1.1900.0"', "semver desc"),
    ('semver in range "~1.1999"', ""),
    ("", "semver desc"),
    ('alias = "champion"', ""),
    (f'digest = "sha256:{7:064d}"', ""),
]


SORTED_BY_POSTGRES = {text for text, _ in CASES if text.startswith('model = "big"')}
"""Postgres takes every model to be of the usual length, and sorts the versions of one that is not."""


@pytest.mark.parametrize("dialect", ["sqlite", pytest.param("postgresql", marks=pytest.mark.external)])
def test_a_page_costs_what_is_on_it(filled: Database) -> None:
    """Whatever an index can answer is not looked for among all versions: by metric, tag, parameter, model,
    semver, alias or digest, on the first page and on the next."""
    for filter_text, order_text in CASES:
        for visible in (ALL,):
            check(filled, filter_text, order_text, visible)


@pytest.mark.parametrize("dialect", ["sqlite", pytest.param("postgresql", marks=pytest.mark.external)])
@pytest.mark.req("G10")
def test_who_sees_little_is_not_led_through_the_rest(filled: Database) -> None:
    """A caller's own model is found by its name, and a project's versions are met soon enough."""
    for visible in (ONE, LAB):
        for filter_text, order_text in [("", ""), ("metrics.auc > 0.5", "metrics.auc desc")]:
            check(filled, filter_text, order_text, visible)


def check(database: Database, filter_text: str, order_text: str, visible: Visible) -> None:
    """Ask for two pages and look what each cost."""
    token: str | None = None
    for page in (1, 2):

        def ask(tx: Transaction, token: str | None = token) -> tuple[int, str | None, int]:
            counting: Any = Counting(tx, database.dialect)
            expression = query.parse(filter_text, Target.VERSIONS) if filter_text else None
            order = query.parse_order(order_text, Target.VERSIONS) if order_text else ()
            asked = search.wanted(Target.VERSIONS, expression, order)
            found, following = search._page(
                counting, asked, visible, project=None, limit=LIMIT, page_token=token
            )
            return len(found), following, counting.work

        _, token, work = database.read(ask)
        most = STEPS_MAX if database.dialect == "sqlite" else ROWS_MAX
        if database.dialect == "postgresql" and filter_text in SORTED_BY_POSTGRES:
            most = 3 * SIZE
        assert work <= most, (filter_text, order_text, page, work)
        if token is None:
            return
