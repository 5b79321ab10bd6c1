"""The number before it is given, and by whose rules: previews that write nothing, and a model's own rules."""

from typing import Any

import pytest
from msgspec.structs import replace

from modelkeep.core import errors
from modelkeep.core.access import Role, Verb
from modelkeep.core.answers import Preview
from modelkeep.core.catalog import DEFAULT_STAGES, Bump, DraftSpec, StageGraph, StageSpec
from modelkeep.core.events import EventKind
from modelkeep.core.policy import TEAM
from modelkeep.core.values import ModelName, parse_ref
from modelkeep.service.act import Act, Context
from modelkeep.service.policies import Policies
from modelkeep.store import drafts as draft_store
from modelkeep.store import models
from tests.service.catalog_world import (
    CHURN,
    NARROWER,
    OWNER,
    SIGNATURE,
    WIDER,
    World,
    caller,
    context,
    entry_of,
)

pytestmark = pytest.mark.req("V2")

OTHER = ModelName("default", "other")
PRUDENT = b"""
name: prudent
versioning:
  rules:
    - name: same-shape
      any_of: [weights.changed, content.changed]
      all_of: [signature.same]
      bump: patch
      reason: "{what} Our callers do not mind."
"""


def preview(world: World, data: bytes, who: Context = OWNER, **spec: Any) -> Preview:
    """What registering one file would come to."""
    files = (entry_of("model.onnx", data), entry_of("card.md", b"a card"))
    return world.read(who, world.catalog.preview, CHURN, DraftSpec(files=files, **spec))


def register(world: World, data: bytes, **spec: Any) -> Any:
    """Register the same two files."""
    return world.register(files={"model.onnx": data, "card.md": b"a card"}, **spec)


def set_rules(world: World, scope: str | None, document: bytes = PRUDENT) -> None:
    """Set a policy, as its owner."""
    world.do(OWNER, Policies(TEAM).set, scope, document)


# --------------------------------------------------------------------------------------------------- previews


def test_a_preview_tells_what_registering_then_does(world: World) -> None:
    """Number, bump, reasons and parent are those of the registration that follows; nothing was written."""
    first = preview(world, b"one", signature=SIGNATURE)
    assert (first.version, first.created, first.new_model, first.parent) == ("churn:1.0.0", True, True, None)
    assert (first.to_send, first.to_send_bytes, first.files) == (("card.md", "model.onnx"), 9, 2)
    with pytest.raises(errors.ModelNotFound):
        world.read(OWNER, world.catalog.get_model, CHURN)

    register(world, b"one", signature=SIGNATURE)
    for data, changed in ((b"two", WIDER), (b"three", NARROWER)):
        foreseen = preview(world, data, signature=changed)
        made = register(world, data, signature=changed)
        assert foreseen.version == made.version.reference
        assert foreseen.reasons == made.reasons
        assert (foreseen.bump, foreseen.parent) == (made.version.bump, made.version.parent)
        assert foreseen.to_send == ("model.onnx",), "the card is stored already"


def test_a_preview_writes_nothing(world: World) -> None:
    """No draft, no event, and no number used up."""
    register(world, b"one", signature=SIGNATURE)

    def count(act: Act) -> tuple[int, int, int]:
        row = models.get_row(act.tx, CHURN)
        open_drafts = draft_store.count_open(act.tx, CHURN, act.by)
        return len(act.tx.events.after(0, limit=100)), open_drafts, row.next_number

    before = world.read(OWNER, count)
    preview(world, b"two", signature=SIGNATURE)
    assert world.read(OWNER, count) == before


def test_a_preview_of_what_is_there_says_so(world: World) -> None:
    """A duplicate is no new version, and nothing has to be sent."""
    register(world, b"one", signature=SIGNATURE)

    found = preview(world, b"one", signature=SIGNATURE)

    assert (found.version, found.created, found.bump, found.to_send) == ("churn:1.0.0", False, "none", ())
    assert "nothing new was stated" in found.reasons[0]


def test_a_preview_is_refused_as_registering_would_be(world: World) -> None:
    """Too low a number, one that is taken, a metric that is none, and rights that are missing."""
    register(world, b"one", signature=SIGNATURE)
    refused: list[tuple[type[errors.ModelkeepError], dict[str, Any]]] = [
        (errors.SemverTooLow, {"signature": NARROWER, "bump": Bump.PATCH}),
        (errors.VersionExists, {"signature": SIGNATURE, "semver": "1.0.0"}),
        (errors.VersionNotFound, {"parent": "7.0.0"}),
        (errors.InvalidSemver, {"semver": "one"}),
    ]
    for error, spec in refused:
        with pytest.raises(error):
            preview(world, b"two", **spec)
    with pytest.raises(errors.NotAllowed):
        preview(world, b"two", context("vic", Role.VIEWER))
    with pytest.raises(errors.ModelNotFound):
        preview(world, b"two", context("sid"))


@pytest.mark.req("G10")
def test_a_preview_does_not_tell_what_others_store(world: World) -> None:
    """Bytes of a project that the caller may not pull are bytes to be sent."""
    world.register(ModelName("secret", "plan"), files={"model.onnx": b"theirs"})

    found = preview(world, b"theirs", context("cid", Role.CONTRIBUTOR, project="default"))

    assert "model.onnx" in found.to_send


# ------------------------------------------------------------------------------------------------- own rules


@pytest.mark.parametrize("scope", ["churn", "default/", None], ids=["model", "project", "installation"])
def test_a_models_own_rules_infer_its_numbers(world: World, scope: str | None) -> None:
    """The rules of the nearest policy judge, their reason is kept, and the event names that policy."""
    world.versions(CHURN, 1)
    set_rules(world, scope)
    if scope == "churn":
        world.versions(OTHER, 1)
        assert world.register(OTHER, b"new", signature=SIGNATURE).version.semver == "1.1.0"

    made = world.register(data=b"new weights", signature=SIGNATURE).version

    assert (made.semver, made.bump) == ("1.0.1", "patch")
    assert any("Our callers do not mind." in reason for reason in made.bump_reasons)
    log = world.read(OWNER, lambda act: act.tx.events.before(limit=1, kind=EventKind.VERSION_REGISTERED))
    record = world.read(OWNER, Policies(TEAM).get, scope)
    assert log[0].event.body["policy"] == record.digest
    assert record.policy.versioning.rules[0].name == "same-shape"


def test_own_rules_stand_before_the_default_ones(world: World) -> None:
    """What they do not name is judged as ever: a break stays a break."""
    world.versions(CHURN, 1)
    set_rules(world, "churn")

    assert world.register(data=b"broken", signature=NARROWER).version.semver == "2.0.0"


def test_diff_and_preview_go_by_the_same_rules(world: World) -> None:
    """Whoever asks beforehand is told what will be."""
    world.versions(CHURN, 2)
    set_rules(world, "churn")

    diff = world.read(OWNER, world.catalog.diff, parse_ref("churn:1.0.0"), parse_ref("churn:1.1.0"))

    assert diff.bump == "patch"
    assert preview(world, b"new", signature=SIGNATURE, parent="1.1.0").bump == "patch"


def test_without_own_rules_the_event_names_no_policy(world: World) -> None:
    """A policy that only asks for gates judges no number."""
    world.versions(CHURN, 1)
    set_rules(world, "churn", b"name: gates-only")
    world.register(data=b"new", signature=SIGNATURE)

    log = world.read(OWNER, lambda act: act.tx.events.before(limit=1, kind=EventKind.VERSION_REGISTERED))
    assert log[0].event.body["policy"] is None


# ---------------------------------------------------------------------------------------- names and stages


@pytest.mark.req("G10")
def test_creating_says_nothing_of_other_projects(world: World) -> None:
    """A name that is taken elsewhere, and a twin of one, is answered like one that is free."""
    secret = ModelName("secret", "plan")
    world.do(OWNER, world.catalog.create_model, secret)
    cid = context("cid", Role.CONTRIBUTOR, project="default")

    for taken, free in (
        (secret, ModelName("secret", "x")),
        (ModelName("secret", "PLAN"), ModelName("no", "x")),
    ):
        told = []
        for name in (taken, free):
            with pytest.raises(errors.NotAllowed) as refusal:
                world.do(cid, world.catalog.create_model, name)
            told.append(refusal.value.message.replace(str(name), "NAME"))
        assert told[0] == told[1]
    assert world.do(cid, world.catalog.create_model, ModelName("default", "plan")).name.name == "plan"


@pytest.mark.req("G10")
def test_inside_a_project_a_hidden_name_is_taken(world: World) -> None:
    """Two models of one project cannot share a name, so who may create there learns that one is taken."""
    world.do(OWNER, world.catalog.create_model, CHURN)
    narrowed = frozenset({Verb.CREATE_MODEL})  # by a token that may create, and see nothing
    blind = Context(caller=replace(caller("cid", Role.CONTRIBUTOR, project="default"), verbs=narrowed))
    with pytest.raises(errors.ModelNotFound):
        world.read(blind, world.catalog.get_model, CHURN)
    with pytest.raises(errors.ModelExists):
        world.do(blind, world.catalog.create_model, CHURN)


@pytest.mark.req("G1", "G10")
def test_stages_of_ones_own_take_who_may_configure(world: World) -> None:
    """A contributor could otherwise make a model whose stages get round what the project's policy guards."""
    loose = StageGraph(
        stages=(StageSpec(name="none"), StageSpec(name="live", exclusive=True), StageSpec(name="archived")),
        transitions=(("none", "live"), ("live", "archived")),
        displaced_to="archived",
    )
    cid, mia = context("cid", Role.CONTRIBUTOR), context("mia", Role.MAINTAINER)

    with pytest.raises(errors.NotAllowed, match=r"'configure'.*cid lacks.*default stages.*maintainer"):
        world.do(cid, world.catalog.create_model, CHURN, stages=loose)
    made = world.do(cid, world.catalog.create_model, CHURN, stages=DEFAULT_STAGES)
    assert made.stages == DEFAULT_STAGES
    assert world.do(mia, world.catalog.create_model, OTHER, stages=loose).stages == loose
