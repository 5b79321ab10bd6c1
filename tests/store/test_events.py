"""The event log: every change has its event, the chain holds whatever happens, tampering is found."""

import contextlib
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import bindparam, delete, update

from modelkeep.core import codec, errors
from modelkeep.core.events import Event, EventKind, chain
from modelkeep.core.values import PAGE_MAX, SYSTEM, Actor
from modelkeep.store import events, schema
from modelkeep.store.database import Database, Kept, Transaction

NOW = datetime(2026, 1, 25, 14, 3, tzinfo=UTC)
ROOT = Path(__file__).parents[2]


def append(database: Database, subject: str = "churn", **more: Any) -> Event:
    """Append one event and wait for it."""
    event: dict[str, Any] = {
        "kind": EventKind.MODEL_CREATED,
        "at": NOW,
        "actor": SYSTEM,
        "subject": subject,
    } | more
    return database.write(lambda tx: tx.events.append(event.pop("kind"), **event)).result(10)


def subjects(database: Database, **how: Any) -> list[str]:
    """What the events after a cursor happened to."""
    return [stored.event.subject for stored in database.read(lambda tx: tx.events.after(**how))]


# ---------------------------------------------------------------------------------------------------- append


@pytest.mark.req("G8")
def test_an_event_comes_back_as_it_was_appended(database: Database) -> None:
    """Every field survives, with its number, and the chain begins at the beginning."""
    event = append(
        database,
        "churn:2.1.0",
        kind=EventKind.STAGE_MOVED,
        actor=Actor(name="ada", asserted=True),
        model="churn",
        number=7,
        reason='AUC +0.4 \u2192 \u00fcber "0.9" 100%',
        request_id="req_1",
        body={
            "from": "staging",
            "to": "production",
            "scores": [0.1, 1e-300, 3],
            "deep": {"é": None, "a": True},
        },
    )
    assert event.sequence == 1
    stored = database.read(lambda tx: tx.events.get(1))
    assert stored.event == event
    assert events.verify(database).head == stored.link
    with pytest.raises(errors.EventNotFound):
        database.read(lambda tx: tx.events.get(2))


def test_a_number_without_a_canonical_form_is_refused(database: Database) -> None:
    """NaN would make two readers compute two hashes: the job fails and nothing is kept."""
    with pytest.raises(errors.Invalid):
        append(database, body={"value": float("nan")})
    assert append(database).sequence == 1


Act = tuple[str, int]
ACTS = st.lists(
    st.tuples(st.sampled_from(["keep", "fail", "kept error", "fail late"]), st.integers(0, 3)), max_size=12
)


@pytest.mark.req("G8")
@given(acts=ACTS, batches=st.integers(1, 4))
def test_the_log_holds_what_was_kept_and_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, acts: list[Act], batches: int
) -> None:
    """Whatever jobs share commits, the log has the events of those that were kept, in order, chained."""
    expected: list[str] = []
    with Database.open(f"sqlite:///{tmp_path_factory.mktemp('log') / 'store.db'}") as database:
        futures = []
        for index, (what, count) in enumerate(acts):
            names = [f"{index}.{number}" for number in range(count)]
            if what in ("keep", "kept error"):
                expected += names
            futures.append(database.write(_job(what, names)))
            if index % batches == 0:
                _ended(futures[-1])
        for future in futures:
            _ended(future)
        assert subjects(database) == expected
        assert events.verify(database).events == len(expected)


def _ended(future: Any) -> None:
    with contextlib.suppress(errors.Conflict):
        future.result(10)


def _job(what: str, names: list[str]) -> Callable[[Transaction], None]:
    def job(tx: Transaction) -> None:
        if what == "fail":
            raise errors.Conflict("before")
        for name in names:
            tx.events.append(EventKind.MODEL_CREATED, at=NOW, actor=SYSTEM, subject=name)
        if what == "fail late":
            raise errors.Conflict("after")
        if what == "kept error":
            raise Kept(errors.Conflict("kept"))

    return job


def test_two_servers_on_one_database_share_one_chain(database: Database, database_url: str) -> None:
    """Each writer takes up the chain where the other left it."""
    with Database.open(database_url) as other:
        for number in range(20):
            append((database, other)[number % 2], str(number))
        assert subjects(other) == [str(number) for number in range(20)]
        assert events.verify(other).events == 20


@pytest.mark.journey
@pytest.mark.req("G8")
def test_two_processes_write_one_chain(database: Database, database_url: str) -> None:
    """Two processes with four threads each write 400 events: none is lost, and the chain verifies."""
    command = [sys.executable, "-m", "tests.store.writes", database_url]
    running = [
        subprocess.Popen([*command, name, "4", "50"], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        for name in "ab"
    ]
    lines = [line.split() for process in running for line in process.communicate(timeout=60)[0].splitlines()]
    assert len(lines) == 400
    said = {int(sequence): f"{name}.{thread}.{index}" for name, thread, index, sequence in lines}
    assert dict(enumerate(subjects(database, limit=PAGE_MAX), 1)) == said
    assert events.verify(database).events == 400


# --------------------------------------------------------------------------------------------------- reading


def test_a_log_is_read_by_pages_in_both_directions(database: Database) -> None:
    """A cursor and a limit walk the log without a gap, oldest first or latest first."""
    for number in range(1, 8):
        append(database, str(number))
    assert subjects(database, limit=3) == ["1", "2", "3"]
    assert subjects(database, cursor=3, limit=3) == ["4", "5", "6"]
    assert subjects(database, cursor=7) == []
    latest = database.read(lambda tx: tx.events.before(limit=2))
    assert [stored.event.sequence for stored in latest] == [7, 6]
    assert [stored.event.sequence for stored in database.read(lambda tx: tx.events.before(3))] == [2, 1]


def test_a_log_is_read_by_model_subject_and_kind(database: Database) -> None:
    """A history has the events of one model, one subject or one kind, also page by page."""
    for number in range(1, 7):
        model = ("churn", "fraud")[number % 2]
        kind = (EventKind.ALIAS_SET, EventKind.VERSION_REGISTERED)[number % 2]
        append(database, f"{model}:{number}", model=model, kind=kind)
    append(database, "endpoint/churn", kind=EventKind.ENDPOINT_CREATED)
    assert subjects(database, model="churn") == ["churn:2", "churn:4", "churn:6"]
    assert subjects(database, model="churn", cursor=2, limit=1) == ["churn:4"]
    assert subjects(database, subject="fraud:3") == ["fraud:3"]
    assert subjects(database, kind=EventKind.VERSION_REGISTERED) == ["fraud:1", "fraud:3", "fraud:5"]
    latest = database.read(lambda tx: tx.events.before(6, model="churn"))
    assert [stored.event.subject for stored in latest] == ["churn:4", "churn:2"]
    with pytest.raises(TypeError, match="at most one"):
        subjects(database, model="churn", subject="x")


@pytest.mark.parametrize("limit", [0, -1, PAGE_MAX + 1])
def test_a_page_has_a_bound(database: Database, limit: int) -> None:
    """Nobody reads the whole log in one page."""
    with pytest.raises(errors.LimitExceeded):
        subjects(database, limit=limit)


def test_the_log_at_a_time_ends_with_the_latest_event_then(database: Database) -> None:
    """`as_of` is how far time travel reads: the event at that very moment is in, later ones are not."""
    for minutes in (0, 1, 1, 5):
        append(database, at=NOW + timedelta(minutes=minutes))
    found = [
        database.read(lambda tx, at=NOW + timedelta(minutes=minutes): tx.events.as_of(at))
        for minutes in range(-1, 7)
    ]
    assert found == [0, 1, 3, 3, 3, 3, 4, 4]


QUERIES = [
    (events._OF_MODEL, {"model": "m", "after": 0, "until": 9, "limit": 1}, "ix_events_model_sequence"),
    (
        events._OF_MODEL_BEFORE,
        {"model": "m", "after": 0, "before": 9, "limit": 1},
        "ix_events_model_sequence",
    ),
    (events._OF_SUBJECT, {"subject": "m", "after": 0, "limit": 1}, "ix_events_subject_sequence"),
    (events._OF_KIND, {"kind": "m", "after": 0, "limit": 1}, "ix_events_kind_sequence"),
    (events._AS_OF, {"at": "2026"}, "ix_events_at_sequence"),
]


@pytest.mark.parametrize(("statement", "binds", "index"), QUERIES, ids=[index for _, _, index in QUERIES])
def test_each_way_to_read_uses_its_index(
    sqlite_database: Database, statement: Any, binds: Any, index: str
) -> None:
    """A history is as fast in a log of a million events as in one of ten: no scan, no sort."""
    plan = sqlite_database.read(lambda tx: tx.explain(statement, **binds))
    assert "SEARCH events USING" in plan
    assert index in plan
    assert "TEMP B-TREE" not in plan


def test_a_long_log_is_walked_in_batches(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Verifying reads a bounded batch to a transaction, and every event once."""
    monkeypatch.setattr(events, "WALK_BATCH", 4)
    for number in range(10):
        append(database, str(number))
    with database.statements() as seen:
        walked = [stored.event.subject for stored in events.walk(database)]
    assert walked == [str(number) for number in range(10)]
    assert len(seen) == 3
    assert [stored.event.sequence for stored in events.walk(database, after=2, until=5)] == [3, 4, 5]


# ----------------------------------------------------------------------------------------------------- tamper

_EVENTS = schema.events
_AT = _EVENTS.c.sequence == bindparam("at_sequence")


def _set(column: str, number: int, value: Any) -> Callable[[Transaction], Any]:
    """Change one column of one event behind everybody's back."""
    change = update(_EVENTS).where(_AT).values({column: bindparam("new_value")})
    return lambda tx: tx.run(change, at_sequence=number, new_value=value)


def _remove(number: int) -> Callable[[Transaction], Any]:
    return lambda tx: tx.run(delete(_EVENTS).where(_AT), at_sequence=number)


def _forge(number: int) -> Callable[[Transaction], Any]:
    """Change an event and make its own hashes fit, as somebody with the database in hand would."""

    def act(tx: Transaction) -> None:
        document = codec.decode(codec.encode(tx.events.get(number).event), dict)
        linked = chain(
            bytes.fromhex(tx.events.get(number - 1).link),
            codec.convert(document | {"subject": "forged"}, Event),
        )
        _set("document", number, codec.canonical(linked.event).decode())(tx)
        for column, value in (("subject", "forged"), ("leaf", linked.leaf), ("link", linked.link)):
            _set(column, number, value)(tx)

    return act


def _swap(number: int) -> Callable[[Transaction], Any]:
    def act(tx: Transaction) -> None:
        for old, new in ((number, 1000), (number + 1, number), (1000, number + 1)):
            _set("sequence", old, new)(tx)

    return act


TAMPERINGS = {
    "text": (_set("document", 4, ""), "Event 4 "),
    "forged": (_forge(4), "Event 5 "),
    "removed": (_remove(4), "event 4 "),
    "cut off": (_remove(10), "ends at event 9,"),
    "swapped": (_swap(4), "Event 4 "),
    "filed elsewhere": (_set("model", 4, "other"), "Event 4 "),
    "leaf": (_set("leaf", 4, "00"), "Event 4 "),
    "link": (_set("link", 10, "00"), "Event 10 "),
}


@pytest.mark.req("G8")
@pytest.mark.parametrize("what", TAMPERINGS)
def test_what_was_tampered_with_is_found(database: Database, what: str) -> None:
    """An event that was changed, forged, moved, removed or cut off is named, whoever did it."""
    act, named = TAMPERINGS[what]
    for number in range(10):
        append(database, str(number))
    assert events.verify(database).events == 10
    database.write(act).result(10)
    with pytest.raises(errors.BrokenChain, match=named):
        events.verify(database)
