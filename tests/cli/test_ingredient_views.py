"""How provenance and identity read: in one version, in a diff, in a comparison, and when something is
registered that was made of the same as another."""

import io

import pytest
from msgspec.structs import replace

from modelkeep.cli import catalog_views
from modelkeep.cli.show import Screen
from modelkeep.core import compare
from modelkeep.core.answers import Registration
from modelkeep.core.catalog import ModelVersion
from modelkeep.core.provenance import Code, DatasetSnapshot, EnvironmentLock, Provenance, identity
from tests.client.samples import digest, version

pytestmark = [pytest.mark.req("V4"), pytest.mark.req("V9"), pytest.mark.req("U1")]

STATED = Provenance(
    run_id="0123456789abcdef0123456789abcdef",
    code=Code(commit="4117c4b0d3f0a1b2c3d4e5f60718293a4b5c6d7e", branch="main"),
    datasets=(DatasetSnapshot(name="customers", digest="a1b2c3d4", role="training"),),
    environment=EnvironmentLock(kind="requirements", digest=digest("5")),
)


def drawn(view: catalog_views.View) -> str:
    """A view as it is drawn into a pipe."""
    out = io.StringIO()
    view(Screen(out, width=None, colour=False))
    return out.getvalue()


def made_of(number: int, stated: Provenance) -> ModelVersion:
    """A version with this provenance."""
    known = version(number, f"1.{number}.0")
    params = {"depth": "6"}
    return replace(known, provenance=stated, params=params, identity=identity(stated, params))


FIRST = made_of(1, STATED)
SAME = made_of(2, replace(STATED, run_id="f" * 32))
OTHER = made_of(3, replace(STATED, code=Code(commit="f" * 40, dirty=True), origin="churn:1.0.0"))


def test_a_version_says_what_it_was_made_of() -> None:
    """All ingredients stand there, with the identity; a partial one says what is not known."""
    text = drawn(catalog_views.version(FIRST))
    for part in ("4117c4b0d3f0a1b2c3d4e5f60718293a4b5c6d7e", "training customers", "a1b2c3d4", digest("5")):
        assert part in text
    assert FIRST.identity is not None
    assert FIRST.identity.digest in text
    partial = drawn(catalog_views.version(OTHER))
    assert "partial (not known: code)" in partial
    assert "with changes" in partial
    assert "churn:1.0.0" in partial


def test_a_diff_has_what_differs() -> None:
    """Only the ingredients that differ are in a diff, and equal identities are said."""
    same = drawn(catalog_views.difference(compare.diff(FIRST, SAME)))
    assert "They were made of the same code, data, parameters and environment." in same
    assert "a1b2c3d4" not in same
    other = drawn(catalog_views.difference(compare.diff(FIRST, OTHER)))
    assert "made of the same" not in other
    assert "f" * 40 in other


def test_a_comparison_has_the_ingredients_that_differ() -> None:
    """In a table, the code that differs has a column; data and environment, which do not, have none."""
    found = compare.compare([FIRST, SAME, OTHER])
    assert [row.name for row in found.ingredients] == ["code"]
    text = drawn(catalog_views.comparison(found))
    assert "4117c4b0d3f0a1b2c3d4e5f60718..." in text
    assert "requirements" not in text


def test_a_registration_points_out_the_same() -> None:
    """Whoever registers what was made of the same as another version is told which."""
    made = Registration(version=SAME, created=True, reasons=(), same_identity=("churn:1.0.0",))
    told = drawn(catalog_views.registration(made))
    assert "made of the same code, data, parameters and environment as churn:1.0.0" in told
