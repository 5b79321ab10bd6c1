"""The reference is what the code says: pages are current, and nothing is missing from them."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import cast

import pytest

ROOT = Path(__file__).parents[2]


def _generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("reference", ROOT / "scripts" / "reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.req("U1")
@pytest.mark.parametrize(
    "name",
    [
        "cli.md",
        "settings.md",
        "errors.md",
        "events.md",
        "rollout-plan.md",
        "../../examples/plans/rollout-plan.schema.json",
    ],
)
def test_a_page_is_current(name: str) -> None:
    """Whoever changes a command, a setting, an error or an event runs `make docs`."""
    page = cast(Callable[[], str], _generator().PAGES[name])
    assert (ROOT / "docs" / "reference" / name).read_text() == page(), "run: make docs"


@pytest.mark.req("U1")
def test_every_setting_and_event_says_what_it_is() -> None:
    """No row of a table is empty where a person looks for a meaning."""
    from msgspec import structs

    from modelkeep.settings import Settings

    pages = _generator().PAGES
    settings = pages["settings.md"]()
    for field in structs.fields(Settings):
        line = next(line for line in settings.splitlines() if line.startswith(f"| `{field.name}` |"))
        assert line.split("|")[3].strip(), field.name
    assert "<!--" in pages["events.md"]()
