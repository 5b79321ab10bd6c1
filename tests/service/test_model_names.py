"""Models that are called as they are elsewhere, through the catalog's verbs."""

import pytest

from modelkeep.core import errors
from modelkeep.core.values import ModelName, parse_ref
from tests.service.catalog_world import OWNER, World

NAME = "My Model (v2), final"


@pytest.mark.req("T4")
def test_a_model_with_spaces_is_a_model(world: World) -> None:
    """It is registered, found by every kind of reference, searched, listed and deleted like any other."""
    made = world.register(NAME, b"w", tags={"team": "risk"}).version
    assert made.reference == f"{NAME}:1.0.0"
    world.do(OWNER, world.catalog.set_alias, made.model, "champion", parse_ref(made.reference))
    for ref in (
        ":1.0.0",
        ":^1",
        ":#1",
        "@champion",
        "@latest",
        f"@{made.digest}",
        "#none",
        "@champion?at=2027-01-01",
    ):
        assert world.get(NAME + ref).number == 1
    for ref in ("/1", "/1.0.0", "@champion", "/None", "/latest"):
        assert world.get(f"models:/{NAME}{ref}").number == 1
    found = world.read(OWNER, world.catalog.search_versions, filter_text=f'model = "{NAME}"')
    assert [version.number for version in found.items] == [1]
    refs = (parse_ref(f"{NAME}:1.0.0"),)
    assert world.read(OWNER, world.catalog.compare, made.model, refs=refs).model == NAME
    world.do(OWNER, world.catalog.delete_model, made.model)
    with pytest.raises(errors.ModelNotFound, match=r"My Model \(v2\), final"):
        world.get(f"{NAME}:1.0.0")


@pytest.mark.req("T4")
@pytest.mark.parametrize("twin", ["my model", "MY MODEL", "My model"])
@pytest.mark.hostile("look-alikes")
def test_names_that_look_the_same_are_one(world: World, twin: str) -> None:
    """Two models of a project whose names differ in their case alone cannot both be; of two projects they
    can.
    """
    world.register("My Model", b"w")
    with pytest.raises(errors.ModelExists, match="looks like the model My Model"):
        world.register(twin, b"w")
    assert world.register(f"risk/{twin}", b"w").version.model == ModelName("risk", twin)


@pytest.mark.parametrize("name", ["\u0441hurn", "a/b/c", "a:b", " a", "a\x00", "..", "a" * 129])
def test_a_name_that_is_none_is_refused(world: World, name: str) -> None:
    """Look-alikes, separators, control characters and over-long names make no model."""
    with pytest.raises(errors.Invalid):
        world.do(OWNER, world.catalog.create_model, ModelName("default", name))
