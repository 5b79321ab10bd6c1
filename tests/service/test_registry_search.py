"""Registered models and model versions, searched in MLflow's filter language through the catalog."""

from collections.abc import Sequence

import pytest

from modelkeep.core import errors, mlflow_filter, query
from modelkeep.core.access import Role
from modelkeep.core.catalog import ModelChange
from modelkeep.core.mlflow_filter import PROMPT_TAG, Noun
from modelkeep.core.values import parse_model_name, parse_ref
from modelkeep.service import mlflow_reading, registry_search
from modelkeep.store.standing import Mark
from tests.service.catalog_world import OWNER, World, context

pytestmark = pytest.mark.req("T2")


@pytest.fixture
def filled(world: World) -> World:
    """Three models with two versions each; one of them is a prompt."""
    for name, team in (("churn", "Risk"), ("fraud", "risk"), ("greeting", "chat")):
        world.versions(f"default/{name}", 2)
        tags = {"team": team} | ({PROMPT_TAG: "true"} if name == "greeting" else {})
        world.do(OWNER, world.catalog.change_model, parse_model_name(name), ModelChange(set_tags=tags))
        for number in (1, 2):
            label = ModelChange(set_tags={**tags, "n": str(number)})
            world.do(OWNER, world.catalog.change_version, parse_ref(f"{name}:#{number}"), label)
    return world


def models(world: World, filter: str = "", *order: str, project: str = "default") -> list[str]:  # noqa: A002
    """The names that a search of models finds."""
    page = world.read(
        OWNER,
        registry_search.search_registered_models,
        project,
        filter=filter,
        order_by=order,
        max_results=100,
    )
    return names_of(world, page.items)


def names_of(world: World, marks: Sequence[Mark]) -> list[str]:
    """The names of models that were found."""
    lines = world.read(OWNER, mlflow_reading.model_lines, [mark.id for mark in marks])
    return [lines[mark.id].name for mark in marks]


def versions(world: World, filter: str = "", *order: str, project: str = "default") -> list[str]:  # noqa: A002
    """The versions that a search finds, as model and number."""
    page = world.read(
        OWNER, registry_search.search_model_versions, project, filter=filter, order_by=order, max_results=100
    )
    lines = world.read(OWNER, mlflow_reading.version_lines, [mark.id for mark in page.items])
    return [f"{lines[mark.id].name}{lines[mark.id].number}" for mark in page.items]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("", ["churn", "fraud"]),
        ("name = 'churn'", ["churn"]),
        ("name != 'churn'", ["fraud"]),
        ("name LIKE '%r%'", ["churn", "fraud"]),
        ("name ILIKE 'CH%'", ["churn"]),
        ("name IN ('churn', 'greeting')", ["churn"]),
        ("name NOT IN ('churn')", ["fraud"]),
        ("tags.team = 'risk'", ["fraud"]),
        ("tags.team ILIKE 'RISK'", ["churn", "fraud"]),
        ("tags.team LIKE 'Ris_' AND name = 'churn'", ["churn"]),
        ("tags.nothing != 'x'", []),
        (f"tags.`{PROMPT_TAG}` = 'true'", ["greeting"]),
        (f"tags.`{PROMPT_TAG}` != 'false'", ["greeting"]),
        (f"tags.`{PROMPT_TAG}` = 'TRUE'", []),
        (f"tags.`{PROMPT_TAG}` != 'true'", ["churn", "fraud"]),
        (f"tags.`{PROMPT_TAG}` LIKE 'true' AND name = 'fraud'", ["fraud"]),
    ],
)
def test_finds_models(filled: World, text: str, names: list[str]) -> None:
    """Models by name and tags, as MLflow's server finds them; prompts only where they are asked for."""
    assert models(filled, text) == names


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("name = 'churn'", ["churn2", "churn1"]),
        ("version_number = 1", ["fraud1", "churn1"]),
        ("version_number > '1' AND tags.team = 'Risk'", ["churn2"]),
        ("tags.n = '2' AND name LIKE 'f%'", ["fraud2"]),
        ("run_id = 'x'", []),
        ("run_id != 'x' AND name = 'fraud'", ["fraud2", "fraud1"]),
        ("run_id = '' AND version_number = 2", ["fraud2", "churn2"]),
        ("run_id IN ('x', 'y')", []),
        ("source_path LIKE 's3%'", []),
        (f"tags.`{PROMPT_TAG}` = 'true' AND version_number = 1", ["greeting1"]),
    ],
)
def test_finds_versions(filled: World, text: str, found: list[str]) -> None:
    """Versions by model, number, run and tags; one that no run made has the empty text for its run."""
    assert versions(filled, text, "name DESC") == sorted(found, key=lambda one: one[0], reverse=True)


def test_orders(filled: World) -> None:
    """Orders of the registry have MLflow's ties: names, and of one model the last version first."""
    assert models(filled, "", "name DESC") == ["fraud", "churn"]
    assert sorted(models(filled, "", "timestamp DESC")) == ["churn", "fraud"]
    assert versions(filled, "", "name") == ["churn2", "churn1", "fraud2", "fraud1"]
    assert versions(filled, "", "version_number", "name DESC") == ["fraud1", "churn1", "fraud2", "churn2"]
    assert versions(filled, "name = 'churn'") == ["churn2", "churn1"]
    assert models(filled, "", project="lab") == versions(filled, "", project="lab") == []


def test_pages_join(filled: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page larger than the catalog's own is put together, and its token goes on where it ends."""
    monkeypatch.setattr("modelkeep.core.values.PAGE_MAX", 1)
    first = filled.read(OWNER, registry_search.search_model_versions, "default", max_results=3)
    assert len(first.items) == 3
    rest = filled.read(
        OWNER,
        registry_search.search_model_versions,
        "default",
        max_results=3,
        page_token=first.next_page_token,
    )
    assert (len(rest.items), rest.next_page_token) == (1, None)
    assert len({mark.id for mark in (*first.items, *rest.items)}) == 4


def test_hides_what_is_not_to_be_seen(filled: World) -> None:
    """Who may read one model finds that one alone."""
    somebody = context("bob", Role.VIEWER, project="default", model="churn")
    page = filled.read(somebody, registry_search.search_registered_models, "default", max_results=10)
    assert names_of(filled, page.items) == ["churn"]


@pytest.mark.parametrize("most", [0, -1])
def test_a_page_has_a_row(world: World, most: int) -> None:
    """A page of nothing is refused."""
    with pytest.raises(errors.LimitExceeded):
        world.read(OWNER, registry_search.search_registered_models, "default", max_results=most)


def test_patterns_keep_their_backslash() -> None:
    """A backslash is nothing special in MLflow's patterns, and so is doubled in ours."""
    clauses = mlflow_filter.parse("name LIKE 'a\\_b'", Noun.MODELS)
    expression = mlflow_filter.expression_of(clauses, Noun.MODELS)
    assert query.matches(expression, {"name": "a\\xb"})
    assert not query.matches(expression, {"name": "a_b"})


@pytest.mark.parametrize(
    ("text", "one"),
    [
        ("name = 'churn'", True),
        ("name='a \"b\" c'", True),
        ("", False),
        ("name LIKE 'churn%'", False),
        ("name = 'churn' AND tags.team = 'risk'", False),
        ("tags.name = 'churn'", False),
        ("run_id = 'churn'", False),
        ("name = 'churn", False),
        (f"name = '{'n' * 4_000}'", False),
    ],
)
def test_knows_a_filter_that_names_one_model(text: str, one: bool) -> None:
    """A filter that says the model and no more is told from all others, and from what is no filter."""
    assert registry_search.names_one_model(text) is one
