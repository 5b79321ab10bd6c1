"""Reading and writing: what a transaction promises, what a group commit keeps and undoes, its limits.

Faults from outside (killed processes, a full disk, a server that goes away) stand in test_faults.py.
"""

import logging
import os
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import BigInteger, bindparam, cast, delete, func, select, text, update

from modelkeep.core import errors
from modelkeep.core.events import EventKind
from modelkeep.core.values import SYSTEM
from modelkeep.store import events, schema, statements, writer
from modelkeep.store.addresses import choose
from modelkeep.store.database import ConstraintFailed, Database, Kept, Transaction
from modelkeep.store.statements import insert, one_of

NOW = datetime(2026, 1, 25, 14, 3, tzinfo=UTC)

ADD = insert(schema.settings)
GET = select(schema.settings.c.value).where(schema.settings.c.key == bindparam("key"))
KEYS = select(schema.settings.c.key).order_by(schema.settings.c.key)


def add(key: str, value: str = "") -> Callable[[Transaction], str]:
    """A job that adds one row and returns its key."""

    def job(tx: Transaction) -> str:
        tx.run(ADD, key=key, value=value, updated_at="")
        return key

    return job


def announce(subject: str) -> Callable[[Transaction], int]:
    """A job that appends one event and returns its number."""
    return lambda tx: (
        tx.events.append(EventKind.MODEL_CREATED, at=NOW, actor=SYSTEM, subject=subject).sequence
    )


def keys(database: Database) -> list[str]:
    """The keys that are there, in the database's order."""
    return [row[0] for row in database.read(lambda tx: tx.all(KEYS))]


@contextmanager
def held_up(database: Database) -> Iterator[None]:
    """Keep the writer busy while the block lasts, so that what is written meanwhile shares a commit."""
    busy, go_on = threading.Event(), threading.Event()

    def wait(tx: Transaction) -> None:
        busy.set()
        assert go_on.wait(60)

    waiting = database.write(wait)
    assert busy.wait(60)
    try:
        yield
    finally:
        go_on.set()
        waiting.result(60)


def add_version(tx: Transaction, number: int) -> None:
    """A version of the model `m`, which comes with the first of them."""
    if number == 1:
        row = dict.fromkeys(schema.models.c.keys(), "m") | {
            "next_number": 1,
            "version_count": 0,
            "deleted_at": None,
        }
        tx.run(insert(schema.models), **row)
    row = dict.fromkeys(schema.versions.c.keys(), f"v{number}")
    row |= {"model_id": "m", "number": number, "size_bytes": 0, "prerelease": 0, "status": "ready"}
    row |= {"parent": None, "from_sequence": number, "to_sequence": None}
    tx.run(insert(schema.versions), **row)


# ------------------------------------------------------------------------------------------------ statements


def test_what_was_written_is_read(database: Database) -> None:
    """A row whose write has returned is there for the next read, as plain values."""
    assert database.write(add("a", "1")).result(60) == "a"
    assert database.read(lambda tx: tx.one(GET, key="a")) == ("1",)
    assert database.read(lambda tx: tx.one(GET, key="b")) is None


def test_rows_changed_are_counted(database: Database) -> None:
    """`run` and `many` give the number of rows that they changed."""
    change = (
        update(schema.settings)
        .where(schema.settings.c.key == bindparam("old"))
        .values(value=bindparam("value"))
    )

    def job(tx: Transaction) -> tuple[int, ...]:
        rows = [{"key": key, "value": "", "updated_at": ""} for key in "abc"]
        added = tx.many(ADD, rows)
        nothing = tx.many(ADD, [])
        return added, nothing, tx.run(change, old="a", value="x"), tx.run(delete(schema.settings))

    assert database.write(job).result(60) == (3, 0, 1, 3)


@pytest.mark.parametrize("count", [2, 3, 64, 200])
def test_many_rows_are_as_many_statements_one_after_the_other(database: Database, count: int) -> None:
    """Of rows with the same key the last one counts, or the first where nothing is replaced, wherever they
    stand."""
    upsert = ADD.on_conflict_do_update(index_elements=["key"], set_={"value": ADD.excluded.value})
    ignore = ADD.on_conflict_do_nothing()
    keys_given = [f"k{number * number % (count - 1)}" for number in range(count)]
    rows = [{"key": key, "value": str(n), "updated_at": "'a\"$1"} for n, key in enumerate(keys_given)]
    more = [{**row, "value": "more"} for row in rows] + [{"key": "new", "value": "new", "updated_at": ""}]

    def job(tx: Transaction) -> tuple[int, int]:
        tx.put_many(upsert, rows)
        return tx.many(ignore, more), tx.many(upsert, rows[:2])

    added, changed = database.write(job).result(60)
    assert (added, changed) == (1, 2)
    last = {row["key"]: row["value"] for row in [*rows, *rows[:2]]} | {"new": "new"}
    found = database.read(lambda tx: tx.all(select(schema.settings.c.key, schema.settings.c.value)))
    assert dict(found) == last
    assert len(found) == len(last)


@pytest.mark.parametrize("count", [0, 1, 2, 64, 1_200])
def test_columns_are_written_as_their_rows_would_be(database: Database, count: int) -> None:
    """Rows that come as columns are written in their order, however many, with equal keys or without."""
    upsert = ADD.on_conflict_do_update(index_elements=["key"], set_={"value": ADD.excluded.value})
    ignore = ADD.on_conflict_do_nothing()
    given = [f"k{number * number % (count + 1)}" for number in range(count)]
    written = [str(number) for number in range(count)]

    def job(tx: Transaction) -> None:
        tx.put_columns(upsert, key=given, value=written, updated_at=["'a\"$1"] * count)
        apart = [*sorted(set(given)), "new"]
        tx.put_columns(ignore, key=apart, value=[""] * len(apart), updated_at=[""] * len(apart))

    database.write(job).result(30)
    found = database.read(lambda tx: tx.all(select(schema.settings.c.key, schema.settings.c.value)))
    assert dict(found) == dict(zip(given, written, strict=True)) | {"new": ""}


def test_a_wrong_bind_among_columns_is_an_error(database: Database) -> None:
    """A column that is missing or too many is named, and one that is shorter than others is refused."""
    for wrong, named in (({}, "updated_at"), ({"updated_at": [""], "more": [""]}, "more")):
        columns = {"key": ["a"], "value": [""]} | wrong
        with pytest.raises(TypeError, match=named):
            database.write(lambda tx, columns=columns: tx.put_columns(ADD, **columns)).result(10)
    with pytest.raises(ValueError, match="different lengths"):
        database.write(
            lambda tx: tx.put_columns(ADD, key=["a", "b"], value=["", ""], updated_at=[""])
        ).result(10)
    assert keys(database) == []


def test_rows_that_are_refused_among_many_are_refused_alone(database: Database) -> None:
    """A job with one bad row among many is undone whole, and the jobs beside it are not."""
    rows = [{"key": key, "value": "", "updated_at": ""} for key in "abcda"]
    with held_up(database):
        good, bad = (
            database.write(add("x")),
            database.write(lambda tx: (announce("lost")(tx), tx.put_many(ADD, rows))),
        )
    assert good.result(60) == "x"
    with pytest.raises(ConstraintFailed) as refused:
        bad.result(60)
    assert refused.value.kind == "unique"
    assert keys(database) == ["x"]
    assert events.verify(database).events == 0


def test_what_is_asked_ahead_is_answered_when_it_is_needed(database: Database) -> None:
    """Rows asked for ahead are those of that moment, whatever is changed before they are looked at."""

    def job(tx: Transaction) -> tuple[Any, Any]:
        tx.put(ADD, key="a", value="", updated_at="")
        asked = tx.ask(KEYS)
        tx.put(ADD, key="b", value="", updated_at="")
        later = tx.ask(KEYS)
        return asked.all(), later.all()

    assert database.write(job).result(60) == ([("a",)], [("a",), ("b",)])
    assert database.read(lambda tx: tx.ask(KEYS).all()) == [("a",), ("b",)]


@pytest.mark.parametrize(
    ("binds", "named"), [({}, "key"), ({"kye": "a"}, "kye"), ({"key": "a", "more": 1}, "more")]
)
def test_a_wrong_bind_is_an_error(database: Database, binds: dict[str, Any], named: str) -> None:
    """A bind that is missing, misspelt or too many is named instead of being read as empty."""
    with pytest.raises(TypeError, match=named):
        database.read(lambda tx: tx.one(GET, **binds))


@pytest.mark.parametrize("wrong", [{"value": None}, {"more": 1}])
def test_a_wrong_bind_among_many_rows_is_an_error(database: Database, wrong: dict[str, Any]) -> None:
    """Of many rows each one is looked at: one with a bind too few (None here) or too many is named."""
    good = {"key": "a", "value": "", "updated_at": ""}
    bad = {name: value for name, value in (good | {"key": "b"} | wrong).items() if value is not None}
    with pytest.raises(TypeError, match=next(iter(wrong))):
        database.write(lambda tx: tx.many(ADD, [good, bad])).result(60)
    assert database.read(lambda tx: tx.one(GET, key="a")) is None


def test_an_upsert_works_on_both_dialects(database: Database) -> None:
    """`statements.insert` replaces, or does nothing, where the row is there."""
    upsert = ADD.on_conflict_do_update(index_elements=["key"], set_={"value": ADD.excluded.value})
    ignore = ADD.on_conflict_do_nothing()

    def job(tx: Transaction) -> list[int]:
        acts = ((upsert, "1"), (upsert, "2"), (ignore, "3"))
        return [tx.run(statement, key="a", value=value, updated_at="") for statement, value in acts]

    assert database.write(job).result(60) == [1, 1, 0]
    assert database.read(lambda tx: tx.one(GET, key="a")) == ("2",)


def test_lists_of_any_length_share_one_statement(database: Database) -> None:
    """`one_of` matches the members of a list, none for an empty one, with text and with numbers."""
    by_key = KEYS.where(one_of(schema.settings.c.key, "keys"))
    numbers = select(schema.events.c.sequence).where(one_of(schema.events.c.sequence, "numbers"))
    for key in "abc":
        database.write(add(key))
        database.write(announce(key)).result(60)
    with database.statements() as seen:
        strange = ["a", "c", 'x"', "{,\\}", "", "null"]
        assert database.read(lambda tx: tx.all(by_key, keys=strange)) == [("a",), ("c",)]
        assert database.read(lambda tx: tx.all(by_key, keys=[])) == []
        assert database.read(lambda tx: tx.all(numbers, numbers=[2, 3, 9])) == [(2,), (3,)]
    assert seen[0] == seen[1]


def test_a_statement_built_for_one_call_may_hold_values(database: Database) -> None:
    """Literal values and plain lists work, beside binds, and percent signs mean themselves."""
    for key in ("a", "b", "100%"):
        database.write(add(key)).result(60)
    column = schema.settings.c.key
    built = KEYS.where(column.in_(["a", "100%"]), column != bindparam("not")).limit(5)
    assert database.read(lambda tx: tx.all(built, **{"not": "a"})) == [("100%",)]
    assert database.read(lambda tx: tx.all(KEYS.where(column.like("1%")))) == [("100%",)]
    assert database.read(lambda tx: tx.all(KEYS.where(column.in_([])))) == []
    modulo = select(cast(func.count(), BigInteger) % 2).select_from(schema.settings)
    assert database.read(lambda tx: tx.one(modulo)) == (1,)


def test_a_statement_is_compiled_once_and_forgotten_with_its_last_user() -> None:
    """A module's statement keeps its text; one that was built for a call leaves nothing behind."""
    compiled = statements.Statements(choose("sqlite:///x").compiler)
    assert compiled.prepare(GET) is compiled.prepare(GET)
    for number in range(100):
        compiled.prepare(KEYS.limit(number))
    assert len(compiled._known) == 1


@settings(max_examples=20)
@given(
    st.lists(
        st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")), unique=True, max_size=8
    )
)
def test_text_sorts_by_its_bytes(tmp_path_factory: pytest.TempPathFactory, names: list[str]) -> None:
    """Pages are cut by key, so the order of text is the same for every locale: that of its UTF-8 bytes."""
    url = f"sqlite:///{tmp_path_factory.mktemp('sorts') / 'store.db'}"
    with Database.open(url) as database:
        assert _sorted_by(database, names) == sorted(names, key=str.encode)


def test_text_sorts_by_its_bytes_on_both_dialects(database: Database) -> None:
    """The two dialects agree on upper and lower case, accents, and signs outside the basic plane."""
    names = ["b", "B", "a", "_", "é", "z", "\U0001f600", "\uffee", "", "a b", "ab", "10", "9"]
    assert _sorted_by(database, names) == sorted(names, key=str.encode)


def _sorted_by(database: Database, names: list[str]) -> list[str]:
    rows = [{"key": name, "value": "", "updated_at": ""} for name in names]
    database.write(lambda tx: tx.many(ADD, rows)).result(60)
    return keys(database)


def test_statements_are_counted(database: Database) -> None:
    """What runs within the block is listed, and nothing after it."""
    with database.statements() as seen:
        database.write(announce("a")).result(60)
        database.read(lambda tx: tx.all(KEYS))
    assert [line.split()[0].lower() for line in seen] == ["select", "insert", "update", "select"]
    keys(database)
    assert len(seen) == 4


# ------------------------------------------------------------------------------------------------- snapshots


def test_a_read_sees_one_moment(database: Database) -> None:
    """What is committed while a read runs is not seen by it, and is by the next."""

    def job(tx: Transaction) -> tuple[int, int]:
        before = len(tx.all(KEYS))
        database.write(add("late")).result(60)
        return before, len(tx.all(KEYS))

    assert database.read(job) == (0, 0)
    assert keys(database) == ["late"]


def test_a_read_cannot_write(database: Database) -> None:
    """The connections that read refuse to change anything, and so does the event log."""
    with pytest.raises(Exception, match=r"read-?only|readonly|cannot be read or written|takes no writes"):
        database.read(add("a"))
    with pytest.raises(RuntimeError, match=r"Database\.write"):
        database.read(announce("a"))
    assert keys(database) == []


def test_a_read_that_fails_leaves_no_trace(database: Database) -> None:
    """After an error within a read the same connection reads again."""
    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            database.read(lambda tx: tx.all(KEYS) or 1 // 0)
    assert keys(database) == []


def test_reads_of_many_threads_go_on_together(database: Database) -> None:
    """More threads than connections all get their turn."""
    database.write(add("a")).result(60)
    with ThreadPoolExecutor(40) as pool:
        assert list(pool.map(lambda _: keys(database), range(200))) == [["a"]] * 200


def test_a_read_that_finds_no_free_connection_is_told_so(
    sqlite_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The number of readers is bounded, and waiting for one has an end."""
    monkeypatch.setattr("modelkeep.store.database.READER_WAIT_S", 0.05)
    monkeypatch.setattr(sqlite_database._readers, "_maximum", 2)

    def nested(tx: Transaction) -> None:
        sqlite_database.read(nested)

    with pytest.raises(errors.Overloaded):
        sqlite_database.read(nested)
    assert keys(sqlite_database) == []


# ---------------------------------------------------------------------------------------------- group commit


def test_a_failing_job_takes_no_other_with_it(database: Database) -> None:
    """Of jobs that share a commit, one that raises is undone alone, its events too; the others stay whole."""
    commits: list[int] = []
    database.on_commit(commits.append)

    def fails(tx: Transaction) -> None:
        add("lost")(tx)
        announce("lost")(tx)
        raise errors.StageMoved("taken")

    def good(name: str) -> Callable[[Transaction], int]:
        return lambda tx: (add(name)(tx), announce(name)(tx))[1]

    with held_up(database):
        futures: list[Future[Any]] = [
            database.write(job) for job in (good("a"), fails, good("b"), fails, good("c"))
        ]
    assert [futures[i].result(60) for i in (0, 2, 4)] == [1, 2, 3]
    for i in (1, 3):
        with pytest.raises(errors.StageMoved):
            futures[i].result(60)
    assert keys(database) == ["a", "b", "c"]
    assert events.verify(database).events == 3
    assert commits[-1] == 3  # one group, or more where a slow machine ends one early


def test_a_kept_error_keeps_what_the_job_did(database: Database) -> None:
    """A denial is an error for the caller and an event in the log."""

    def denied(tx: Transaction) -> None:
        announce("denied")(tx)
        raise Kept(errors.PolicyDenied("no"))

    with pytest.raises(errors.PolicyDenied):
        database.write(denied).result(60)
    assert [stored.event.subject for stored in database.read(lambda tx: tx.events.after())] == ["denied"]


def test_a_full_queue_says_so_at_once(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the bound a job is refused instead of waiting without end; those in line are all done."""
    monkeypatch.setattr(writer, "QUEUE_MAX", 3)
    with held_up(database):
        futures = [database.write(add(key)) for key in "abc"]
        with pytest.raises(errors.Overloaded):
            database.write(add("d"))
    assert [future.result(60) for future in futures] == ["a", "b", "c"]
    assert keys(database) == ["a", "b", "c"]


def test_a_group_is_bounded(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """A long line is cut into commits, so that the first in it does not wait for the last."""
    monkeypatch.setattr(writer, "GROUP_JOBS_MAX", 4)
    commits: list[int] = []
    database.on_commit(commits.append)
    with held_up(database):
        futures = [database.write(announce(str(number))) for number in range(10)]
    assert [future.result(60) for future in futures] == list(range(1, 11))
    database.write(lambda tx: None).result(60)
    assert commits == [3, 7, 10]


def test_a_cancelled_job_is_not_run(database: Database) -> None:
    """Who gave up waiting before the job began finds nothing changed."""
    with held_up(database):
        future = database.write(add("a"))
        assert future.cancel()
    assert keys(database) == []


@pytest.mark.parametrize("raised", [SystemExit(3), KeyboardInterrupt(), ZeroDivisionError()])
def test_nothing_a_job_raises_ends_the_writer(database: Database, raised: BaseException) -> None:
    """Whatever comes out of a job goes to its caller, and the next job is run."""

    def fails(tx: Transaction) -> None:
        add("a")(tx)
        raise raised

    with pytest.raises(type(raised)):
        database.write(fails).result(60)
    assert database.write(add("b")).result(60) == "b"
    assert keys(database) == ["b"]


@pytest.mark.req("G1")
def test_of_sixteen_who_race_for_a_slot_one_gets_it(database: Database) -> None:
    """The exclusive slot of a stage holds one version, whoever asks, and one event says so."""
    occupy = insert(schema.occupancy)

    def set_up(tx: Transaction) -> None:
        for number in range(1, 17):
            add_version(tx, number)

    def take(number: int) -> str:
        def job(tx: Transaction) -> None:
            row = {"model_id": "m", "number": number, "stage": "production", "exclusive": 1, "since_at": ""}
            announce(f"m:#{number}")(tx)
            tx.run(occupy, **row, since_sequence=1)

        start.wait(60)
        try:
            database.write(job).result(60)
        except ConstraintFailed as refused:
            return refused.kind
        return "taken"

    database.write(set_up).result(60)
    start = threading.Barrier(16)
    with ThreadPoolExecutor(16) as pool:
        assert sorted(pool.map(take, range(1, 17))) == ["taken"] + ["unique"] * 15
    assert len(database.read(lambda tx: tx.all(select(schema.occupancy.c.number)))) == 1
    assert events.verify(database).events == 1


# ----------------------------------------------------------------------------------------------- constraints

VERSION_FILE = {"version_id": "x", "path": "", "digest": "", "size_bytes": 0, "media_type": ""}
WRONG_ROWS = [
    ("unique", insert(schema.settings), {"key": "a", "value": "", "updated_at": ""}),
    ("not_null", insert(schema.settings), {"key": "b", "value": None, "updated_at": ""}),
    (
        "foreign_key",
        insert(schema.version_metrics),
        {"version_id": "x", "name": "", "value": 0.0},
    ),
    ("check", insert(schema.chain_head), {"id": 2, "sequence": 0, "link": ""}),
]


@pytest.mark.parametrize(("kind", "statement", "row"), WRONG_ROWS, ids=[kind for kind, _, _ in WRONG_ROWS])
def test_the_schema_refuses_by_kind(
    database: Database, kind: str, statement: Any, row: dict[str, Any]
) -> None:
    """A refused row says which kind of rule it broke, on both dialects; to people it is a conflict."""
    database.write(add("a")).result(60)
    with pytest.raises(ConstraintFailed) as refused:
        database.write(lambda tx: tx.run(statement, **row)).result(60)
    assert refused.value.kind == kind
    assert isinstance(refused.value, errors.Conflict)
    assert keys(database) == ["a"]


def test_a_job_cannot_go_on_after_a_refused_row(database: Database) -> None:
    """A job that swallows the error is undone on both dialects, not only where the database insists."""

    def stubborn(tx: Transaction) -> None:
        add("b")(tx)
        with pytest.raises(ConstraintFailed):
            add("b")(tx)

    def more_stubborn(tx: Transaction) -> None:
        stubborn(tx)
        add("c")(tx)

    for job in (stubborn, more_stubborn):
        with pytest.raises(RuntimeError, match="has to end"):
            database.write(job).result(60)
    assert database.write(add("d")).result(60) == "d"
    assert keys(database) == ["d"]


def test_a_wrong_statement_stays_our_own_fault(database: Database) -> None:
    """An error in the SQL itself is not dressed up as a fault of the database, and hurts no other job."""
    with pytest.raises(Exception, match="nonsense") as wrong:
        database.write(lambda tx: tx.run(text("select nonsense"))).result(60)
    assert not isinstance(wrong.value, errors.ModelkeepError)
    assert database.write(add("a")).result(60) == "a"


# ------------------------------------------------------------------------------------------ waking and ending


def test_listeners_are_woken_after_commits_with_events(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """A listener hears of the last event once it can be read; its faults are its own."""
    heard: list[tuple[int, int]] = []

    def broken(sequence: int) -> None:
        raise ValueError(sequence)

    database.on_commit(broken)
    end = database.on_commit(
        lambda last: heard.append((last, database.read(lambda tx: tx.events.head().sequence)))
    )
    with caplog.at_level(logging.CRITICAL, logger="modelkeep.store"):
        database.write(add("quiet")).result(60)
        database.write(announce("a")).result(60)
        database.write(announce("b")).result(60)
        database.write(lambda tx: None).result(60)
    assert heard == [(1, 1), (2, 2)]
    end()
    database.write(announce("c")).result(60)
    database.write(lambda tx: None).result(60)
    assert len(heard) == 2


def test_closing_finishes_what_waits(database: Database) -> None:
    """Jobs in line are done before the store closes; afterwards everything says that it is closed."""
    with held_up(database):
        futures = [database.write(add(key)) for key in "abc"]
        closing = threading.Thread(target=database.close)
        closing.start()
    closing.join(30)
    assert [future.result(0) for future in futures] == ["a", "b", "c"]
    with pytest.raises(errors.StoreUnavailable):
        database.write(add("d"))
    with pytest.raises(errors.StoreUnavailable):
        keys(database)
    database.close()


# ------------------------------------------------------------------------------------------- addresses, files


NO_ADDRESSES = ["", "sqlite:", "sqlite://", "sqlite:///", "mysql://x/y", "store.db", "postgresql:x"]
NO_ADDRESSES += ["postgresql://h:port/x", "postgresql://h/x?colour=blue"]


@pytest.mark.parametrize("url", NO_ADDRESSES)
def test_an_address_that_is_none_is_refused(url: str) -> None:
    """The error says what an address looks like."""
    with pytest.raises(errors.InvalidSetting, match="sqlite:///PATH"):
        Database.open(url)


def test_postgres_without_its_driver_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """An optional part that is missing is one sentence, not a stack of imports."""
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(errors.ExtraMissing, match=r"modelkeep\[postgres\]"):
        Database.open("postgresql://127.0.0.1/x")


def test_a_sqlite_that_is_too_old_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where Python brings a SQLite without strict tables the error says which one is needed."""
    monkeypatch.setattr("sqlite3.sqlite_version_info", (3, 36, 0))
    with pytest.raises(errors.StoreUnavailable, match=r"3\.37"):
        Database.open(f"sqlite:///{tmp_path / 'store.db'}")


@pytest.mark.external
def test_a_postgres_that_is_too_old_is_named(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that cannot say what became of a commit is refused at the start, not at the first fault."""
    monkeypatch.setattr("modelkeep.store.postgres.POSTGRES_MIN", 99)
    with pytest.raises(errors.StoreUnavailable, match="older than Postgres 99"):
        Database.open(postgres_url)


def test_a_postgres_that_is_not_there_is_named() -> None:
    """The error names the place, not the password."""
    with pytest.raises(errors.StoreUnavailable, match=r"127\.0\.0\.1:9/") as raised:
        Database.open("postgresql://somebody:secret@127.0.0.1:9/x")
    assert "secret" not in str(raised.value)


def test_the_file_is_its_owners(sqlite_database: Database, tmp_path: Path) -> None:
    """A database holds digests of tokens: nobody else may read it, or the files beside it."""
    sqlite_database.write(add("a")).result(60)
    for name in ("store.db", "store.db-wal", "store.db-shm"):
        assert stat.S_IMODE(os.stat(tmp_path / name).st_mode) == 0o600


def test_sqlite_flushes_each_commit(sqlite_database: Database) -> None:
    """The settings that durability and integrity hang on are on, for the writer and for readers."""
    wanted = {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}

    def look(tx: Transaction) -> dict[str, Any]:
        return {name: tx.all(text(f"pragma {name}"))[0][0] for name in wanted}

    assert sqlite_database.write(look).result(60) == wanted
    assert sqlite_database.read(look) == wanted


def test_a_file_that_is_no_database_is_left_alone(tmp_path: Path) -> None:
    """What is not ours is named and not touched."""
    path = tmp_path / "store.db"
    path.write_bytes(b"a letter to a friend, long enough to be read as a header of something else" * 20)
    before = path.read_bytes()
    with pytest.raises(errors.Corrupt, match="backup"):
        Database.open(f"sqlite:///{path}")
    assert path.read_bytes() == before


def test_a_folder_that_is_missing_is_named(tmp_path: Path) -> None:
    """The error names the path and says what to check."""
    with pytest.raises(errors.StoreUnavailable, match="nowhere"):
        Database.open(f"sqlite:///{tmp_path}/nowhere/store.db")
