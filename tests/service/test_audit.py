"""The audit log as people read it: pages, the walk of the chain, exports, and who may."""

import csv
import io
from typing import Any

import pytest
from sqlalchemy import bindparam, update

from modelkeep.core import codec, errors
from modelkeep.core import events as core
from modelkeep.core.access import Role
from modelkeep.core.events import ChainedEvent, EventKind
from modelkeep.core.policy import ALONE
from modelkeep.service import audit as module
from modelkeep.service.audit import Audit
from modelkeep.store.database import Database
from modelkeep.store.schema import events
from tests.service.promotion_world import CHURN, World

AUDIT = Audit()


@pytest.fixture
def world(database: Database) -> World:
    """Some history: two versions promoted, one taken back for a reason that a spreadsheet would run."""
    world = World(database, ALONE)
    world.person("aud", Role.AUDITOR)
    world.person("app", Role.APPROVER, "default", "churn")
    world.versions("1.0.0", "1.1.0")
    for semver in ("1.0.0", "1.1.0"):
        world.promote(semver)
    world.rollback(reason="=HYPERLINK(1)")
    return world


def log(world: World, who: str = "aud", **more: Any) -> Any:
    """A page of the log."""
    fields: dict[str, Any] = {
        "after": 0,
        "limit": 100,
        "model": None,
        "kind": None,
        "subject": None,
        "newest": False,
    }
    return world.read(who, AUDIT.log, **(fields | more))


@pytest.mark.req("G8")
def test_the_log_is_read_in_pages_both_ways(world: World) -> None:
    """Oldest first after a number, or the newest first before one; the cursor says where to go on."""
    whole = [stored.event.sequence for stored in log(world).items]
    assert whole == list(range(1, len(whole) + 1))
    for newest in (False, True):
        seen: list[int] = []
        cursor: int | None = 0
        while cursor is not None:
            page = log(world, after=cursor, limit=2, newest=newest)
            seen += [stored.event.sequence for stored in page.items]
            cursor = page.next_after
        assert seen == (whole[::-1] if newest else whole)


@pytest.mark.req("G8")
def test_the_log_is_narrowed_one_way_at_a_time(world: World) -> None:
    """By model, by kind or by subject; a kind that is none is told with those there are."""
    moves = log(world, kind="stage.moved").items
    assert {stored.event.kind for stored in moves} == {EventKind.STAGE_MOVED}
    assert {stored.event.model for stored in log(world, model=CHURN).items} == {"churn"}
    assert {stored.event.number for stored in log(world, subject="churn:1.1.0").items} == {2}
    with pytest.raises(errors.Invalid, match="There is no event kind 'stage'; the kinds are model"):
        log(world, kind="stage")
    with pytest.raises(errors.Invalid, match="one at a time"):
        log(world, kind="stage.moved", subject="churn")


@pytest.mark.req("G8", "G10")
def test_who_may_read_the_log(world: World) -> None:
    """Auditors everything; whoever has a role on a model that model's; viewers nothing."""
    assert log(world, "app", model=CHURN).items
    for who, model in (("app", None), ("eve", CHURN), ("zoe", CHURN)):
        with pytest.raises(errors.NotAllowed, match="'read_audit'"):
            log(world, who, model=model)
    for who in ("app", "eve"):
        with pytest.raises(errors.NotAllowed):
            AUDIT.verify(world.desk, world.context(who))
        with pytest.raises(errors.NotAllowed):
            AUDIT.export(world.desk, world.context(who), form="csv", after=0)


@pytest.mark.req("G8")
def test_the_chain_is_walked(world: World) -> None:
    """The answer says how many events hold, and the last link."""
    found = AUDIT.verify(world.desk, world.context("aud"))
    last = log(world, newest=True, limit=1).items[0]
    assert (found.intact, found.report.events, found.report.head) == (True, last.event.sequence, last.link)


def exported(world: World, form: str, after: int = 0) -> bytes:
    """An export in one piece."""
    return b"".join(AUDIT.export(world.desk, world.context("aud"), form=form, after=after))


@pytest.mark.req("G8")
def test_an_export_proves_itself_elsewhere(world: World) -> None:
    """JSON lines bear leaf and link: whoever has them can walk the chain without us."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "EXPORT_LINES", 3)
        lines = exported(world, "jsonl").splitlines()
    chain = [codec.decode(line, ChainedEvent) for line in lines]
    assert core.verify(chain).head == AUDIT.verify(world.desk, world.context("aud")).report.head
    assert len(exported(world, "jsonl", after=3).splitlines()) == len(lines) - 3


@pytest.mark.req("G8")
def test_a_spreadsheet_runs_nothing(world: World) -> None:
    """Cells that look like formulas are text; every event is a row under the same columns."""
    rows = list(csv.DictReader(io.StringIO(exported(world, "csv").decode())))
    assert [int(row["sequence"]) for row in rows] == list(range(1, len(rows) + 1))
    assert rows[-1]["kind"] == "version.tombstoned"
    moved = [row for row in rows if row["kind"] == "stage.moved"][-1]
    assert (moved["reason"], moved["actor"], moved["request_id"]) == ("'=HYPERLINK(1)", "ann", "http-ann")
    assert not [cell for row in rows for cell in row.values() if cell[:1] in set("=+-@\t\r")]


@pytest.mark.req("G8")
def test_any_bit_of_a_stored_event_counts(sqlite_database: Database) -> None:
    """Flip a bit in each letter of a row's text: the walk names that event every time."""
    world = World(sqlite_database, ALONE)
    world.versions("1.0.0")
    world.promote("1.0.0", "staging")
    world.promote("1.0.0", "archived")
    victim = world.events(EventKind.STAGE_MOVED)[0].sequence
    write = update(events).where(events.c.sequence == bindparam("which")).values(document=bindparam("text"))
    text = codec.canonical(world.events(EventKind.STAGE_MOVED)[0]).decode()
    context = world.context("dan")

    def put(changed: str) -> None:
        world.database.write(lambda tx: tx.run(write, which=victim, text=changed)).result()

    for place, letter in enumerate(text):
        changed = text[:place] + chr(ord(letter) ^ 1 << place % 7) + text[place + 1 :]
        if "\0" in changed:
            continue  # no text of a database holds one
        put(changed)
        with pytest.raises(errors.BrokenChain) as caught:
            AUDIT.verify(world.desk, context)
        assert caught.value.details["sequence"] == victim, changed
    put(text)
    assert AUDIT.verify(world.desk, context).intact
