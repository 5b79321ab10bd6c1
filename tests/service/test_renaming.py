"""A model under another name: everything it has goes with it, and the past is found whole."""

from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from modelkeep.core import errors
from modelkeep.core.access import Effect, PrincipalKind, Role
from modelkeep.core.catalog import ModelChange, RegisteredModel
from modelkeep.core.events import EventKind
from modelkeep.core.values import Aliased, ModelName, Numbered, Ref, Staged, parse_ref
from modelkeep.service import references, renaming
from modelkeep.service.access import Access
from modelkeep.service.act import SYSTEM_CONTEXT
from modelkeep.service.house import House
from modelkeep.store import events as event_store
from modelkeep.store import promotion as promotion_store
from modelkeep.store import renames
from modelkeep.store.database import Database
from tests.service.promotion_world import World
from tests.web.world import context_of, opened, register

pytestmark = pytest.mark.req("T4")

OLD, NEW = ModelName("default", "churn"), ModelName("default", "leavers")
ROOT = context_of("root")


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    """An empty house in local mode, open for the test."""
    with opened(tmp_path / "data") as found:
        yield found


def rename(house: House, name: ModelName, new_name: str) -> RegisteredModel:
    """Somebody who may do everything renames a model."""
    return house.desk.do(ROOT, renaming.rename, house.access, name, new_name)


def resolve(house: House, ref: Ref | str) -> tuple[str, int]:
    """The version a reference names: its reference and its number."""
    found = house.desk.read(ROOT, house.catalog.resolve, parse_ref(ref) if isinstance(ref, str) else ref)
    return found.reference, found.number


def altered(house: House) -> list[str]:
    """What fsck finds altered behind the events' back."""
    return [str(each) for each in house.catalog.fsck(house.desk, ROOT).altered]


@pytest.fixture
def churn(house: House) -> House:
    """A model with three versions, one in production, an alias and a request."""
    for data in (b"1", b"2", b"3"):
        register(house, OLD, data)
    for number in (1, 2):
        house.desk.do(
            ROOT, house.promotions.promote, parse_ref(f"churn:#{number}"), "production", "go",
            files_verified=True,
        )  # fmt: skip
    house.desk.do(ROOT, house.catalog.set_alias, OLD, "champion", parse_ref("churn:#2"))
    house.desk.do(ROOT, house.promotions.open_request, parse_ref("churn:#3"), "production", "please")
    return house


def moment(house: House) -> datetime:
    """When the last event happened."""
    last = house.desk.database.read(lambda tx: tx.events.before(limit=1))
    return last[0].event.at


def test_everything_goes_with_it(churn: House) -> None:
    """Versions, numbers, stages, aliases, requests and history; the record of each stays what its digest
    vouches for, and the chain holds."""
    before = churn.desk.read(ROOT, churn.catalog.get_model, OLD)
    renamed = rename(churn, OLD, "leavers")
    assert renamed == structs.replace(before, name=NEW, updated_at=renamed.updated_at)
    for selector in (Numbered(2), Aliased("champion"), Staged("production")):
        assert resolve(churn, Ref(model=NEW, selector=selector))[1] == 2
    assert resolve(churn, "leavers:#2")[0].startswith("leavers:1.")
    assert altered(churn) == []
    asked = churn.desk.read(
        ROOT, churn.promotions.list_requests, model=NEW, state=None, limit=9, page_token=None
    )
    assert [request.model for request in asked.items] == [NEW]
    history = churn.desk.read(ROOT, churn.promotions.history, NEW, stage=None, limit=50)
    assert [stay.number for stay in history.intervals] == [2, 1, 1]
    kinds = [stored.event.kind for stored in history.events]
    assert kinds[0] is EventKind.MODEL_RENAMED
    assert kinds[-1] is EventKind.MODEL_CREATED
    assert event_store.verify(churn.desk.database).events == len(kinds)
    made = register(churn, NEW, b"4")
    assert resolve(churn, made)[1] == 4
    churn.desk.do(
        ROOT, churn.promotions.promote, parse_ref("leavers:#4"), "production", "go", files_verified=True
    )
    assert resolve(churn, "leavers#production")[1] == 4
    assert altered(churn) == []


def test_the_past_is_asked_by_the_new_name(churn: House) -> None:
    """Where an alias pointed, what was in a stage and what was withdrawn, from before and after."""
    then = moment(churn)
    rename(churn, OLD, "leavers")
    churn.desk.do(ROOT, churn.catalog.set_alias, NEW, "champion", parse_ref("leavers:#3"))
    churn.desk.do(ROOT, churn.catalog.yank, parse_ref("leavers:#3"), "wrong data")
    for mark, number in (("@champion", 2), ("#production", 2), ("@latest", 3), (":#1", 1)):
        found = structs.replace(parse_ref(f"leavers{mark}"), at=then)
        assert resolve(churn, found)[1] == number, mark
    assert resolve(churn, "leavers@champion")[1] == 3
    assert resolve(churn, "leavers@latest")[1] == 2


@pytest.mark.differs("renamed")
def test_the_old_name_says_the_new_one_until_somebody_takes_it(churn: House) -> None:
    """And then it is another model's, with a past of its own."""
    rename(churn, OLD, "gone")
    rename(churn, ModelName("default", "gone"), "leavers")
    for old in (OLD, ModelName("default", "gone")):
        with pytest.raises(errors.ModelNotFound, match="is called leavers now") as missing:
            churn.desk.read(ROOT, churn.catalog.get_model, old)
        assert missing.value.details["renamed"] == "leavers"
        with pytest.raises(errors.ModelNotFound, match="is called leavers now"):
            resolve(churn, Ref(model=old, selector=Numbered(1)))
    verbs: list[tuple[Callable[..., Any], dict[str, Any]]] = [
        (churn.promotions.history, {"stage": None, "limit": 50}),
        (churn.promotions.rollback, {"reason": "callers complain"}),
        (churn.catalog.change_model, {"change": ModelChange(description="who leaves")}),
    ]
    for verb, said in verbs:
        with pytest.raises(errors.ModelNotFound, match="is called leavers now"):
            churn.desk.do(ROOT, verb, OLD, **said)
    taken = register(churn, OLD, b"another")
    assert resolve(churn, taken)[1] == 1
    history = churn.desk.read(ROOT, churn.promotions.history, OLD, stage=None, limit=50)
    assert history.intervals == ()
    assert {stored.event.kind for stored in history.events} == {
        EventKind.MODEL_CREATED, EventKind.VERSION_REGISTERED,
    }  # fmt: skip
    whole = churn.desk.read(ROOT, churn.promotions.history, NEW, stage=None, limit=50)
    assert [stay.number for stay in whole.intervals] == [2, 1, 1]
    assert altered(churn) == []


def test_stays_are_made_anew_across_names(churn: House) -> None:
    """The projections can be folded from the events alone, under whatever names they are filed."""
    rename(churn, OLD, "leavers")
    before = churn.desk.read(ROOT, churn.promotions.history, NEW, stage=None, limit=50).intervals
    churn.desk.database.write(promotion_store.rebuild).result(30)
    assert churn.desk.read(ROOT, churn.promotions.history, NEW, stage=None, limit=50).intervals == before
    assert altered(churn) == []


def test_a_page_of_a_history_goes_on_over_a_name(churn: House) -> None:
    """Pages of a model's events, both ways, are the whole without a gap or a double."""
    rename(churn, OLD, "leavers")
    register(churn, NEW, b"4")

    def pages(tx: object) -> tuple[list[int], list[int]]:
        events = tx.events  # type: ignore[attr-defined]
        forward: list[int] = []
        while batch := events.after(forward[-1] if forward else 0, model="leavers", limit=2):
            forward += [each.event.sequence for each in batch]
        backward: list[int] = []
        cursor = event_store.FAR
        while batch := events.before(cursor, model="leavers", limit=2):
            backward += [each.event.sequence for each in batch]
            cursor = backward[-1]
        return forward, backward

    forward, backward = churn.desk.database.read(pages)
    assert forward == sorted(set(forward)) == backward[::-1]
    whole = churn.desk.database.read(lambda tx: tx.events.after(0, limit=100))
    assert forward == [each.event.sequence for each in whole]


def test_names_that_cannot_be_had(churn: House) -> None:
    """Taken, looking like another, a deleted model's, or no name."""
    register(churn, ModelName("default", "Taken"), b"x")
    register(churn, ModelName("default", "deleted"), b"x")
    churn.desk.do(ROOT, churn.catalog.delete_model, ModelName("default", "deleted"))
    for name, kind in (
        ("Taken", errors.ModelExists),
        ("taken", errors.ModelExists),
        ("deleted", errors.ModelExists),
        ("a/b", errors.InvalidName),
        ("", errors.InvalidName),
    ):
        with pytest.raises(kind):
            rename(churn, OLD, name)
    assert rename(churn, OLD, "churn").name == OLD, "the name it has"
    assert rename(churn, OLD, "Churn").name.name == "Churn", "its own name, written otherwise"
    assert altered(churn) == []


def test_grants_and_policy_follow(churn: House) -> None:
    """Who was let in, or kept out, of the model still is; the caller's rights are looked up anew."""
    access: Access = churn.access
    churn.desk.do(SYSTEM_CONTEXT, access.create_principal, "vera", PrincipalKind.USER)
    churn.desk.do(
        SYSTEM_CONTEXT, access.add_grant, principal="vera", role=Role.VIEWER, project="default", model="churn"
    )
    churn.desk.do(ROOT, churn.promotions.set_policy, "churn", b"name: own\nstages: {}\n")
    rename(churn, OLD, "leavers")
    grants = churn.desk.read(SYSTEM_CONTEXT, access.list_grants, 99, None).items
    assert [grant.model for grant in grants if grant.principal == "vera"] == ["leavers"]
    record = churn.desk.read(ROOT, churn.promotions.get_policy, "leavers")
    assert record.policy.name == "own"


def test_an_endpoint_goes_along_and_a_rollout_forbids_it(churn: House) -> None:
    """While traffic is being moved nobody renames what it is moved to."""
    churn.desk.do(ROOT, churn.rollouts.put_endpoint, "live", OLD)
    with pytest.raises(errors.RolloutActive, match="has ended"):
        rename(churn, OLD, "leavers")
    churn.desk.do(ROOT, churn.rollouts.abort, "live", "not now")


def test_a_model_has_so_many_names(churn: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each name is one more read for every look at the past, so there is an end to them."""
    monkeypatch.setattr(renames, "NAMES_MAX", 3)
    rename(churn, OLD, "two")
    rename(churn, ModelName("default", "two"), "three")
    with pytest.raises(errors.LimitExceeded, match="3 names"):
        rename(churn, ModelName("default", "three"), "four")


# ------------------------------------------------------------------------------------------ on both databases


class NoCallers:
    """Remembers that callers were forgotten, which is all that renaming asks of access."""

    forgotten = 0

    def forget_callers(self) -> None:
        self.forgotten += 1


def test_documents_get_the_new_name_on_both_databases(database: Database) -> None:
    """Requests are found and closed under the new name; what else they hold is untouched, to the last digit
    of a number."""
    world = World(database)
    world.versions("1.0.0", "1.1.0")
    before = world.ask("1.1.0")
    access = NoCallers()
    world.do("dan", renaming.rename, access, OLD, "leavers")
    assert access.forgotten == 1
    after = world.read("dan", world.promotions.get_request, before.id)
    assert after == structs.replace(before, model=NEW)
    world.review(before.id)
    done = world.do("ann", world.promotions.promote, parse_ref("leavers:1.1.0"), "production", "go",
                    files_verified=True)  # fmt: skip
    assert (done.version.reference, done.request) == ("leavers:1.1.0", before.id)
    assert event_store.verify(database).events == len(world.events())


def test_whoever_may_not_configure_may_not_rename(sqlite_database: Database) -> None:
    """A viewer, a contributor and an approver are refused; a stranger does not learn that it is there, and
    nobody learns a new name that they may not see."""
    world = World(sqlite_database)
    world.versions("1.0.0")
    for somebody in ("eve", "fay", "bob"):
        with pytest.raises(errors.NotAllowed):
            world.do(somebody, renaming.rename, NoCallers(), OLD, "leavers")
    with pytest.raises(errors.ModelNotFound, match="There is no model churn;"):
        world.do("nobody", renaming.rename, NoCallers(), OLD, "leavers")
    world.do("dan", renaming.rename, NoCallers(), OLD, "leavers")
    world.person("gus", Role.VIEWER)
    world.person("gus", Role.VIEWER, "default", "leavers", Effect.DENY)
    for somebody, told in (("eve", "is called leavers now"), ("gus", "There is no model churn;")):
        with pytest.raises(errors.ModelNotFound, match=told):
            world.read(somebody, references.resolve, parse_ref("churn:1.0.0"))
