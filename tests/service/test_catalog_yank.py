"""Withdrawn versions: who names none is not given one that was yanked or taken back, now or at a moment."""

from collections.abc import Callable

import pytest

from modelkeep.core import errors
from modelkeep.core.access import Role
from modelkeep.core.catalog import Metric
from modelkeep.core.events import EventKind
from modelkeep.core.values import parse_ref
from modelkeep.service import stages
from modelkeep.service.act import Act, Context
from modelkeep.service.references import resolve
from tests.service.catalog_world import CHURN, OWNER, SIGNATURE, World, context

pytestmark = pytest.mark.req("V1", "V12")


def yank(world: World, ref: str, why: str = "trained on leaked labels", who: Context = OWNER) -> None:
    """Yank the version of a reference."""
    world.do(who, world.catalog.yank, parse_ref(ref), why)


def unyank(world: World, ref: str, who: Context = OWNER) -> None:
    """Undo it."""
    world.do(who, world.catalog.unyank, parse_ref(ref), "the labels were fine")


def take_back(world: World, ref: str) -> None:
    """Mark a version as a rollback does."""

    def mark(act: Act) -> None:
        stages.tombstone(act, resolve(act, parse_ref(ref)), "more callers fail")

    world.do(OWNER, mark)


def clear(world: World, ref: str) -> None:
    """Lift the mark."""

    def lift(act: Act) -> None:
        stages.clear(act, resolve(act, parse_ref(ref)), "the disk was full")

    world.do(OWNER, lift)


@pytest.mark.parametrize(("withdraw", "restore"), [(yank, unyank), (take_back, clear)])
def test_who_names_no_version_is_not_given_a_withdrawn_one(
    world: World, withdraw: Callable[..., None], restore: Callable[..., None]
) -> None:
    """Latest, ranges and the model's own line pass over it; semver, number, digest, alias, newest do not."""
    made = world.versions(CHURN, 3)
    world.do(OWNER, world.catalog.set_alias, CHURN, "champion", parse_ref("churn:1.2.0"))
    withdraw(world, "churn:1.2.0")

    for ref in ("churn@latest", "churn:^1", "churn:1.x", "churn:>=1.1", "models:/churn/latest"):
        assert world.get(ref).semver == "1.1.0", ref
    assert world.read(OWNER, world.catalog.get_model, CHURN).latest == "1.1.0"
    for ref in ("churn:1.2.0", "churn:#3", f"churn@{made[2].digest}", "churn@champion", "churn@newest"):
        assert world.get(ref).semver == "1.2.0", ref

    restore(world, "churn:1.2.0")
    assert world.get("churn@latest").semver == world.get("churn:^1").semver == "1.2.0"
    assert world.get("churn@latest").withdrawn is None


def test_a_version_that_was_both_returns_only_when_both_are_undone(world: World) -> None:
    """The two marks are two decisions, of two people perhaps."""
    world.versions(CHURN, 2)
    yank(world, "churn:1.1.0")
    take_back(world, "churn:1.1.0")
    marked = world.clock.now
    clear(world, "churn:1.1.0")

    assert world.get("churn@latest").semver == "1.0.0"
    unyank(world, "churn:1.1.0")
    assert world.get("churn@latest").semver == "1.1.0"
    assert world.get(f"churn@latest?at={marked.isoformat()}").semver == "1.0.0"


@pytest.mark.req("V13")
def test_the_past_keeps_what_could_be_chosen_then(world: World) -> None:
    """A yank of today takes nothing from yesterday, and an undone one of yesterday still counts there."""
    world.versions(CHURN, 3)
    before = world.clock.now.isoformat()
    yank(world, "churn:1.2.0")
    during = world.clock.now.isoformat()
    unyank(world, "churn:1.2.0")
    yank(world, "churn:1.1.0")

    for ref in ("churn@latest", "churn:^1"):
        assert world.get(f"{ref}?at={before}").semver == "1.2.0"
        assert world.get(f"{ref}?at={during}").semver == "1.1.0"
        assert world.get(ref).semver == "1.2.0"


def test_when_all_are_withdrawn_the_error_says_so(world: World) -> None:
    """It names what there is, so that somebody can choose one knowingly."""
    world.versions(CHURN, 2)
    yank(world, "churn:1.0.0")
    yank(world, "churn:1.1.0")

    for ref in ("churn@latest", "churn:^1"):
        with pytest.raises(errors.VersionNotFound, match=r"not withdrawn; it has 1\.1\.0, 1\.0\.0"):
            world.get(ref)


def test_a_yank_is_told_with_its_reason_and_recorded(world: World) -> None:
    """By the version, by the log, and once: the same yank again is none."""
    world.versions(CHURN, 1)
    yank(world, "churn:1.0.0")
    yank(world, "churn:1.0.0")
    assert world.get("churn:1.0.0").withdrawn == "it was yanked: trained on leaked labels"
    yank(world, "churn:1.0.0", "worse than thought")
    unyank(world, "churn:1.0.0")

    log = world.read(OWNER, lambda act: act.tx.events.after(0, model=str(CHURN), limit=20))
    told = [(e.event.kind, e.event.reason, e.event.body["was"]) for e in log if "yank" in e.event.kind]
    assert told == [
        (EventKind.VERSION_YANKED, "trained on leaked labels", None),
        (EventKind.VERSION_YANKED, "worse than thought", "trained on leaked labels"),
        (EventKind.VERSION_UNYANKED, "the labels were fine", "worse than thought"),
    ]
    assert world.get("churn:1.0.0").yanked is None


def test_a_yank_needs_the_right_and_a_reason(world: World) -> None:
    """Contributors register; taking away from others is a maintainer's. The past cannot be yanked."""
    world.versions(CHURN, 1)
    cid, mia = context("cid", Role.CONTRIBUTOR), context("mia", Role.MAINTAINER)

    with pytest.raises(errors.NotAllowed):
        yank(world, "churn:1.0.0", who=cid)
    with pytest.raises(errors.ModelNotFound):
        yank(world, "churn:1.0.0", who=context("sid"))
    with pytest.raises(errors.Invalid, match="reason"):
        yank(world, "churn:1.0.0", "", who=mia)
    with pytest.raises(errors.Conflict, match="not yanked"):
        unyank(world, "churn:1.0.0", who=mia)
    with pytest.raises(errors.InvalidReference, match="past"):
        yank(world, f"churn:1.0.0?at={world.clock.now.isoformat()}", who=mia)
    yank(world, "churn:1.0.0", who=mia)
    with pytest.raises(errors.NotAllowed):
        unyank(world, "churn:1.0.0", who=cid)


@pytest.mark.req("V2")
def test_a_withdrawn_version_is_nobodys_parent_unless_named(world: World) -> None:
    """A number counts from what callers are given; that of the withdrawn one stays taken all the same."""
    world.versions(CHURN, 2)
    yank(world, "churn:1.1.0")

    made = world.register(data=b"better", signature=SIGNATURE).version
    named = world.register(data=b"best", signature=SIGNATURE, parent="1.1.0").version

    assert (made.semver, made.parent) == ("1.2.0", 1)
    assert (named.semver, named.parent) == ("1.3.0", 2)


@pytest.mark.req("V2")
def test_where_all_are_withdrawn_the_highest_is_the_parent(world: World) -> None:
    """The next version is no first one: the model has a history."""
    world.versions(CHURN, 1)
    yank(world, "churn:1.0.0")

    assert world.register(data=b"better", signature=SIGNATURE).version.parent == 1


@pytest.mark.req("V9")
def test_the_best_is_not_a_yanked_one(world: World) -> None:
    """It is skipped, and the reason is given."""
    for auc in (0.8, 0.9):
        world.register(data=str(auc).encode(), signature=SIGNATURE, metrics=(Metric(name="auc", value=auc),))
    yank(world, "churn:1.1.0")

    best = world.read(OWNER, world.catalog.best, CHURN, "auc")

    assert best.best.semver == "1.0.0"
    assert [(s.reference, s.reason) for s in best.skipped] == [
        ("churn:1.1.0", "it was yanked: trained on leaked labels")
    ]


@pytest.mark.req("V10")
def test_search_tells_yanked_from_ready(world: World) -> None:
    """`status` is ready, tombstoned or yanked."""
    world.versions(CHURN, 3)
    yank(world, "churn:1.1.0")
    take_back(world, "churn:1.2.0")

    found = {
        status: [
            v.semver
            for v in world.read(
                OWNER, world.catalog.search_versions, filter_text=f"status = '{status}'"
            ).items
        ]
        for status in ("ready", "yanked", "tombstoned")
    }
    assert found == {"ready": ["1.0.0"], "yanked": ["1.1.0"], "tombstoned": ["1.2.0"]}
