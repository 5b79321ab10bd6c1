"""Searches of experiments, runs and logged models against an oracle in plain Python: the same things, in the
same order, on every page, on both dialects, whichever way through the tables is taken.
"""

import base64
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelkeep.core import errors
from modelkeep.core import mlflow_filter as mlflow
from modelkeep.core.mlflow_filter import Clause, DatasetFilter, Kind, Noun, Operator, Order, ValueType
from modelkeep.core.tracking import LifecycleStage, ViewType
from modelkeep.store import narrowing, tracking_search, tracking_statements
from modelkeep.store.database import Database
from tests.store import tracking_world as world
from tests.store.tracking_world import World

pytestmark = pytest.mark.req("T1")

PIECES = ["%", "_", "\\", "a", "b", "A", "x", "é", "*", "?", "[", "]", "1"]
WHOLE = [*world.TIMES, 1.5, -2.5, 1e300, float("inf"), -float("inf"), 2**63 - 1, float(2**63)]


def values(kind: Kind, key: str, noun: Noun, seen: World) -> st.SearchStrategy[Any]:
    """What a clause may be compared with, mostly what something has."""
    if kind is Kind.METRIC:
        return st.sampled_from([number for number in world.NUMBERS if number == number])
    if kind is Kind.DATASET:
        return st.sampled_from([*world.TEXTS[:6], "1", "train"])
    if kind is not Kind.ATTRIBUTE:
        return st.sampled_from(world.TEXTS)
    attribute = next(a for a in mlflow.VOCABULARIES[noun].attributes.values() if a.name == key)
    if attribute.type is ValueType.WHOLE:
        whole = [value for value in WHOLE if isinstance(value, int)]
        return st.sampled_from(whole if attribute.whole_only else WHOLE)
    named = {
        "run_id": [run.info.run_id for run in seen.runs],
        "source_run_id": [run.info.run_id for run in seen.runs],
        "model_id": [model.model_id for model in seen.models],
        "experiment_id": ["1", "2", "007"],
        "artifact_uri": [str(world.values_of(run, Kind.ATTRIBUTE, "artifact_uri")[0]) for run in seen.runs],
        "status": ["FINISHED", "RUNNING"] if noun is Noun.RUNS else ["READY", "PENDING", "UNSPECIFIED"],
        "lifecycle_stage": ["active", "deleted"],
        "status_message": ["out of disk", ""],
    }
    return st.sampled_from(named.get(key, world.TEXTS))


@st.composite
def clauses(draw: st.DrawFn, noun: Noun, seen: World) -> Clause:
    """A clause as `parse` would make it."""
    vocabulary = mlflow.VOCABULARIES[noun]
    kind = draw(st.sampled_from([Kind.ATTRIBUTE, *vocabulary.keyed, *vocabulary.keyed]))
    if kind is Kind.ATTRIBUTE:
        attribute = draw(st.sampled_from(list(vocabulary.attributes.values())))
        key, operators = attribute.name, attribute.operators
    else:
        key = draw(st.sampled_from(mlflow.DATASET_KEYS if kind is Kind.DATASET else world.KEYS))
        operators = vocabulary.keyed[kind]
    operator = draw(st.sampled_from(sorted(operators)))
    if operator in mlflow.NULLS:
        return Clause(kind, key, operator)
    if operator in mlflow.LIKES:
        return Clause(kind, key, operator, "".join(draw(st.lists(st.sampled_from(PIECES), max_size=4))))
    wanted = values(kind, key, noun, seen)
    if operator in mlflow.LISTS:
        return Clause(kind, key, operator, tuple(draw(st.lists(wanted, min_size=1, max_size=4))))
    return Clause(kind, key, operator, draw(wanted))


@st.composite
def orders(draw: st.DrawFn, noun: Noun) -> tuple[Order, ...]:
    """An order as `parse_order` would make it."""
    vocabulary = mlflow.VOCABULARIES[noun]
    names = sorted(set(vocabulary.ordered.values()))
    kinds = [Kind.ATTRIBUTE, *sorted(vocabulary.order_kinds), *sorted(vocabulary.order_kinds)]
    terms: list[Order] = []
    for _ in range(draw(st.integers(0, 3))):
        kind = draw(st.sampled_from(kinds))
        key = draw(st.sampled_from(names if kind is Kind.ATTRIBUTE else world.KEYS))
        name = digest = None
        if noun is Noun.LOGGED_MODELS and kind is Kind.METRIC:
            name = draw(st.sampled_from([None, "d", "e"]))
            digest = draw(st.sampled_from([None, "1"])) if name else None
        if all((term.kind, term.key) != (kind, key) for term in terms):
            terms.append(Order(kind, key, draw(st.booleans()), name, digest))
    return tuple(terms)


def pages(ask: Callable[[str | None], tuple[list[Any], str | None]]) -> Iterator[list[Any]]:
    """All pages of a search, one after the other."""
    token: str | None = None
    while True:
        found, token = ask(token)
        yield found
        if token is None:
            return


ASKING = settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(params=[1, 2])
def seen(request: pytest.FixtureRequest, database: Database) -> World:
    """A world, kept in the database."""
    made = World(request.param)
    database.write(made.keep).result(30)
    return made


@pytest.mark.parametrize("few", [2_000, 3])
def test_runs_are_those_of_the_oracle(
    seen: World, database: Database, few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Filters, orders, views and page sizes by chance give the runs of the oracle in its order, whether rows
    are gathered through an index or walked along one."""
    monkeypatch.setattr(tracking_statements, "FEW", few)
    monkeypatch.setattr(narrowing, "FEW", few)
    tracking_statements.survey.cache_clear()

    @ASKING
    @given(
        st.lists(clauses(Noun.RUNS, seen), max_size=3).map(tuple),
        orders(Noun.RUNS),
        st.sampled_from(list(ViewType)),
        st.lists(st.integers(1, 5), max_size=5),
        st.integers(1, 25),
    )
    def check(
        clauses: tuple[Clause, ...], order: tuple[Order, ...], view: ViewType, where: list[int], size: int
    ) -> None:
        asked = {"clauses": clauses, "order": order, "view": view, "limit": size}
        found = [
            run
            for page in pages(
                lambda token: database.read(
                    lambda tx: tracking_search.search_runs(tx, where, page_token=token, **asked)  # type: ignore[arg-type]
                )
            )
            for run in page
        ]
        stages = {
            ViewType.ACTIVE_ONLY: [LifecycleStage.ACTIVE],
            ViewType.DELETED_ONLY: [LifecycleStage.DELETED],
            ViewType.ALL: list(LifecycleStage),
        }[view]
        expected = [
            run
            for run in seen.runs
            if int(run.info.experiment_id) in where
            and run.info.lifecycle_stage in stages
            and all(world.holds(run, clause) for clause in clauses)
        ]
        wanted = world.in_order(Noun.RUNS, expected, order)
        assert [run.info.run_id for run in found] == [run.info.run_id for run in wanted]  # type: ignore[union-attr]
        assert repr(found) == repr(wanted), "a run has all that it logged; NaN is unequal to itself"

    check()
    tracking_statements.survey.cache_clear()


def test_experiments_are_those_of_the_oracle(database: Database) -> None:
    """Filters, orders, views and page sizes by chance give the experiments of the oracle in its order."""
    seen = World(3, experiments=40, runs=0, models=0)
    database.write(seen.keep).result(30)

    @ASKING
    @given(
        st.lists(clauses(Noun.EXPERIMENTS, seen), max_size=3).map(tuple),
        orders(Noun.EXPERIMENTS),
        st.sampled_from(list(ViewType)),
        st.lists(st.sampled_from(["mine", "lab", "x"]), max_size=3),
        st.integers(1, 25),
    )
    def check(
        clauses: tuple[Clause, ...], order: tuple[Order, ...], view: ViewType, where: list[str], size: int
    ) -> None:
        found = [
            experiment
            for page in pages(
                lambda token: database.read(
                    lambda tx: tracking_search.search_experiments(
                        tx, where, clauses=clauses, order=order, view=view, limit=size, page_token=token
                    )
                )
            )
            for experiment in page
        ]
        wanted_stage = {
            ViewType.ACTIVE_ONLY: [LifecycleStage.ACTIVE],
            ViewType.DELETED_ONLY: [LifecycleStage.DELETED],
            ViewType.ALL: list(LifecycleStage),
        }[view]
        expected = [
            experiment
            for experiment in seen.experiments
            if experiment.project in where
            and experiment.lifecycle_stage in wanted_stage
            and all(world.holds(experiment, clause) for clause in clauses)
        ]
        assert found == world.in_order(Noun.EXPERIMENTS, expected, order)

    check()


def test_logged_models_are_those_of_the_oracle(seen: World, database: Database) -> None:
    """Filters, datasets, orders and page sizes by chance give the logged models of the oracle in its order;
    of each metric the latest point on the data counts."""

    @ASKING
    @given(
        st.lists(clauses(Noun.LOGGED_MODELS, seen), max_size=3).map(tuple),
        st.lists(
            st.builds(DatasetFilter, st.sampled_from(["d", "e", "f"]), st.sampled_from([None, "1"])),
            max_size=2,
        ).map(tuple),
        orders(Noun.LOGGED_MODELS),
        st.lists(st.integers(1, 5), max_size=5),
        st.integers(1, 25),
    )
    def check(
        clauses: tuple[Clause, ...],
        on: tuple[DatasetFilter, ...],
        order: tuple[Order, ...],
        where: list[int],
        size: int,
    ) -> None:
        found = [
            model
            for page in pages(
                lambda token: database.read(
                    lambda tx: tracking_search.search_logged_models(
                        tx, where, clauses=clauses, datasets=on, order=order, limit=size, page_token=token
                    )
                )
            )
            for model in page
        ]
        needs_data = on and all(clause.kind is not Kind.METRIC for clause in clauses)
        expected = [
            model
            for model in seen.models
            if int(model.experiment_id) in where
            and all(world.holds(model, clause, on) for clause in clauses)
            and (not needs_data or any(world.on_data(point, on) for point in model.metrics))
        ]
        wanted = world.in_order(Noun.LOGGED_MODELS, expected, order, on)
        assert repr(found) == repr(wanted)

    check()


def test_many_experiments_are_sorted_at_once(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """More experiments than are read one by one give the same runs in the same order."""
    seen = World(5, experiments=12)
    database.write(seen.keep).result(30)
    order = (Order(Kind.METRIC, "a", True),)
    where = list(range(1, 13))

    def ask() -> list[str]:
        found, _ = database.read(
            lambda tx: tracking_search.search_runs(tx, where, order=order, view=ViewType.ALL, limit=100)
        )
        return [run.info.run_id for run in found]

    merged = ask()
    monkeypatch.setattr(tracking_search, "STRETCHES_MAX", 1)
    assert ask() == merged
    assert len(merged) == len(seen.runs)


def test_a_page_ends_early_when_its_runs_logged_much(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page carries no more than an answer can; its token goes on with the next run, and every run comes."""
    seen = World(4)
    database.write(seen.keep).result(30)
    monkeypatch.setattr(tracking_search, "LOGGED_MAX", 7)
    where = list(range(1, 6))
    ask = lambda token: database.read(  # noqa: E731
        lambda tx: tracking_search.search_runs(tx, where, view=ViewType.ALL, limit=50, page_token=token)
    )
    parts = list(pages(ask))
    assert len(parts) > 10
    found = [run.info.run_id for page in parts for run in page]
    assert sorted(found) == sorted(run.info.run_id for run in seen.runs)


def test_tokens_fit_their_own_search_only(database: Database) -> None:
    """A token that was made up, cut, or given by another search is refused as invalid."""
    seen = World(6)
    database.write(seen.keep).result(30)
    order = (Order(Kind.METRIC, "a"), Order(Kind.TAG, "a"))
    where = list(range(1, 6))

    def ask(token: str | None, **other: Any) -> tuple[list[Any], str | None]:
        asked: dict[str, Any] = {"order": order, "limit": 3, **other}
        experiments = asked.pop("where", where)
        return database.read(
            lambda tx: tracking_search.search_runs(tx, experiments, page_token=token, **asked)
        )

    token = ask(None)[1]
    assert token is not None
    assert ask(token)[0]
    parts = json.loads(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
    forged = [parts[:2], [*parts, "x"], [*parts[:3], "x", *parts[4:]], [*parts[:2], "0", *parts[3:]], 1, None]
    bad = [base64.urlsafe_b64encode(json.dumps(plain).encode()).decode() for plain in forged]
    for wrong in [*bad, token[:-2], "x" * 9_000, "\u00e9", "{}", token + token]:
        with pytest.raises(errors.Invalid):
            ask(wrong)
    clause = Clause(Kind.TAG, "a", Operator.IS_NULL)
    others: list[dict[str, Any]] = [
        {"order": order[:1]},
        {"clauses": (clause,)},
        {"view": ViewType.ALL},
        {"where": [1]},
    ]
    for other in others:
        with pytest.raises(errors.Invalid):
            ask(token, **other)


@pytest.mark.parametrize("limit", [0, -1, 50_001])
def test_a_page_has_bounds(database: Database, limit: int) -> None:
    """A page of no runs, or of more than MLflow's server gives, is refused."""
    with pytest.raises(errors.LimitExceeded):
        database.read(lambda tx: tracking_search.search_runs(tx, [1], limit=limit))


HOT = {
    "newest": ("", []),
    "newest that pass": ("metrics.a > 0.5 AND params.b LIKE 'x%' AND tags.c IS NULL", []),
    "by start": ("", ["start_time"]),
    "best": ("", ["metrics.a DESC"]),
    "best that pass": ("metrics.a > 0.5 AND metrics.b < 1 AND status = 'FINISHED'", ["metrics.a DESC"]),
    "by a param": ("params.a = 'x'", ["params.a"]),
    "by two": ("", ["metrics.a", "tags.b DESC"]),
}


@pytest.mark.parametrize("name", HOT)
@pytest.mark.parametrize("paged", [False, True])
def test_hot_searches_walk_an_index(sqlite_database: Database, name: str, paged: bool) -> None:
    """Pages that people look at all day are read along an index, and no table from end to end: neither where
    rows are gathered through a way nor where they are walked, nor sorted as a whole."""
    text, order = HOT[name]
    clauses = mlflow.parse(text, Noun.RUNS)
    terms = mlflow.parse_order(order, Noun.RUNS)
    question = tracking_search._question(Noun.RUNS, clauses, terms)
    asked = question.asked(tracking_search.Stretch((1,), deleted=False))
    counted = tracking_statements.survey(asked)
    built = [tracking_statements.gathered(asked, way, paged) for way in (counted[0] if counted else ())]
    if asked.steps and asked.steps[0].field is None:
        walks = [tracking_statements.walked(asked, rank, paged) for rank in tracking_search._ranks(asked)]
    else:
        walks = [tracking_statements.gathered(asked, None, paged)]
    built += walks + ([counted[1]] if counted else [])
    for statement in built:
        binds = dict.fromkeys(statement.names, 1)
        plan = sqlite_database.read(lambda tx, s=statement, b=binds: tx.explain(s.statement, **b))  # type: ignore[misc]
        lines = [line.strip() for line in plan.splitlines()]
        scans = [line for line in lines if line.startswith("SCAN") and line != "SCAN CONSTANT ROW"]
        assert all(line.startswith("SCAN counted_") for line in scans), plan
    for statement in walks[:1]:  # those with a value come first; NaNs, and those without one, are sorted
        binds = dict.fromkeys(statement.names, 1)
        plan = sqlite_database.read(lambda tx, s=statement, b=binds: tx.explain(s.statement, **b))  # type: ignore[misc]
        assert "USE TEMP B-TREE FOR ORDER BY" not in plan, plan
