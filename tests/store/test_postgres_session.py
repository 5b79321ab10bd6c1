"""A session with Postgres: what is sent together, what is waited for, and whose an error is.

What a transaction promises on both dialects stands in test_database.py; this is about the exchanges
beneath it.
"""

import enum
import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from sqlalchemy import bindparam, select, text, update

from modelkeep.core import errors
from modelkeep.store import events, postgres_session, schema
from modelkeep.store.database import ConstraintFailed, Database, Transaction
from modelkeep.store.postgres import Postgres
from modelkeep.store.postgres_session import NotSingle, Postponed, Session, Singles
from modelkeep.store.statements import insert
from tests.servers import missing
from tests.store.test_database import add, announce, held_up, keys

pytestmark = pytest.mark.external

ADD = insert(schema.settings)
DIVIDE = "select 1 / $1::bigint"


@pytest.fixture
def session(postgres_url: str) -> Iterator[Session]:
    """A session that may write."""
    opened = Postgres(postgres_url).connect(writing=True)
    assert isinstance(opened, Session)
    yield opened
    opened.close()


class Kind(enum.StrEnum):
    """A text that is a member of something."""

    GOOD = "good"


class Level(enum.IntEnum):
    """A number that is a member of something."""

    HIGH = 3


@pytest.mark.parametrize(
    ("kind", "value", "found"),
    [
        ("text", "", ""),
        ("text", "a'b\\\"%s$1 \u00e9\U0001f600\n", "a'b\\\"%s$1 \u00e9\U0001f600\n"),
        ("text", Kind.GOOD, "good"),
        ("bigint", -(2**63), -(2**63)),
        ("bigint", Level.HIGH, 3),
        ("bigint", None, None),
        ("integer", 7, 7),
        ("float8", 0.1, 0.1),
        ("float8", 5e-324, 5e-324),
        ("float8", -math.inf, -math.inf),
        ("float8", 3, 3.0),
        ("boolean", True, True),
        ("boolean", False, False),
        ("bytea", b"", b""),
        ("bytea", bytes(range(256)), bytes(range(256))),
        ("text[]", ["", 'a"', r"\,{}", "null", " "], r"""{"","a\"","\\,{}","null"," "}"""),
        ("bigint[]", [-1, 2**62], "{-1,4611686018427387904}"),
    ],
)
def test_values_come_back_as_they_were(session: Session, kind: str, value: object, found: object) -> None:
    """Text, numbers, flags and nothing pass the line unchanged, the first time and when prepared."""
    shown = "::text" if kind.endswith("[]") else ""
    for _ in range(3):
        ((got,),) = session.execute(f"select $1::{kind}{shown}", (value,)).fetchall()
        assert got == found
        assert type(got) is type(found)
    ((number,),) = session.execute("select $1::float8", (math.nan,)).fetchall()
    assert math.isnan(number)


@pytest.mark.parametrize(
    ("value", "kind", "wrong"),
    [
        ("a\0b", "text", psycopg.DataError),
        (2**63, "bigint", psycopg.DataError),
        ("\ud800", "text", UnicodeEncodeError),
        (object(), "text", TypeError),
        (bytearray(b"bytes"), "text", TypeError),
    ],
)
def test_what_cannot_be_sent_is_an_error_at_once(
    session: Session, value: object, kind: str, wrong: type[Exception]
) -> None:
    """No value is cut or bent to fit, and the session goes on."""
    with pytest.raises(wrong):
        session.execute(f"select $1::{kind}", (value,))
    assert session.execute("select 1").fetchall() == [(1,)]


def test_what_is_posted_goes_first(session: Session) -> None:
    """Posted statements are done in order, before the one that is waited for; their answers can be had
    later."""
    session.execute("create table t (n bigint)")
    for number in (1, 2, 3):
        session.post("insert into t values ($1)", (number,))
    count = session.post("select count(*) from t")
    assert session.execute("update t set n = n + 1").rowcount == 3
    assert count.fetchall() == [(3,)]
    late = session.post("select sum(n)::bigint from t")
    assert late.fetchall() == [(9,)]


def test_an_error_says_whose_it_is(session: Session) -> None:
    """The one waited for raises its own error; of a posted one it is said that it was posted, and the
    rest is not done."""
    session.execute("create table t (n bigint)")
    with pytest.raises(psycopg.errors.DivisionByZero):
        session.execute(DIVIDE, (0,))
    session.post("begin")
    session.post(DIVIDE, (0,))
    with pytest.raises(Postponed) as raised:
        session.execute("insert into t values (1)")
    assert isinstance(raised.value.problem, psycopg.errors.DivisionByZero)
    assert session.in_transaction
    session.rollback()
    assert not session.in_transaction
    assert session.execute("select count(*) from t").fetchall() == [(0,)]


def test_a_commit_behind_a_failure_is_not_done(session: Session) -> None:
    """A commit that travels with a statement that fails keeps nothing."""
    session.execute("create table t (n bigint primary key)")
    session.post("begin")
    session.execute("insert into t values (1)")
    session.post("insert into t values (1)")
    with pytest.raises(Postponed):
        session.execute("commit")
    session.rollback()
    assert session.execute("select count(*) from t").fetchall() == [(0,)]


def test_a_commit_that_is_no_commit_is_not_believed(postgres_url: str, session: Session) -> None:
    """The server ends a failed transaction with success, and undoes it."""
    session.execute("create table t (n bigint)")
    session.execute("begin")
    session.execute("insert into t values (1)")
    with pytest.raises(psycopg.errors.DivisionByZero):
        session.execute(DIVIDE, (0,))
    with pytest.raises(psycopg.errors.InFailedSqlTransaction, match="ROLLBACK"):
        Postgres(postgres_url).commit(session)
    assert session.execute("select count(*) from t").fetchall() == [(0,)]


def test_a_server_that_says_nothing_is_not_waited_for_without_end(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The session ends, for nobody knows which answers are still to come."""
    monkeypatch.setattr(postgres_session, "ANSWER_S", 0.05)
    with pytest.raises(psycopg.OperationalError, match=r"no answer for 0\.05 s"):
        session.execute("select pg_sleep(20)")
    assert not session.usable


def test_a_transaction_is_left_without_waiting(session: Session) -> None:
    """A transaction that was left has ended; one of which nothing was sent yet leaves no trace."""
    for number in range(3):
        session.post("begin isolation level repeatable read read only")
        assert session.execute("select $1::bigint", (number,)).fetchall() == [(number,)]
        assert session.in_transaction
        session.leave("commit")
        assert not session.in_transaction
    session.post("begin")
    session.leave("rollback")
    session.execute("create table t (n bigint)")
    assert not session.in_transaction


def test_prepared_statements_are_bounded(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server keeps the texts used last; what came once, or fell out, is prepared when it comes again."""
    monkeypatch.setattr(postgres_session, "PREPARED_MAX", 3)
    monkeypatch.setattr(postgres_session, "ONCE_MAX", 2)
    for number in [0, 0, 1, 1, 2, 2, 0, 3, 3, 4, 1, 1, 5, 6, 7, 5, 0]:
        assert session.execute(f"select {number}").fetchall() == [(number,)]
    kept = session.execute("select statement from pg_prepared_statements order by statement").fetchall()
    assert kept == [("select 0",), ("select 1",), ("select 3",)]


def test_a_statement_that_cannot_be_prepared_is_tried_anew(session: Session) -> None:
    """What the server refused to prepare, or skipped, is not taken for prepared."""
    for _ in range(3):
        with pytest.raises(psycopg.errors.UndefinedTable):
            session.execute("select n from t")
    for _ in range(2):
        session.post(DIVIDE, (0,))
        with pytest.raises(Postponed):
            session.execute("select 2")
    session.execute("create table t (n bigint)")
    assert session.execute("select n from t").fetchall() == []
    assert session.execute("select 2").fetchall() == [(2,)]


def test_many_rows_go_in_few_exchanges(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """More than the line takes at once is sent while answers are read, and counted; a refused row says so."""
    monkeypatch.setattr(postgres_session, "EXCHANGE_ROWS_MAX", 300)
    session.execute("create table t (n bigint primary key, value text)")
    rows = [(number, "x" * 5_000) for number in range(1_000)]
    returning = "insert into t values ($1, $2) returning value"
    assert session.execute_many(returning, rows) == 1_000
    assert session.execute("select count(*) from t").fetchall() == [(1_000,)]
    with pytest.raises(psycopg.errors.UniqueViolation):
        session.execute_many("insert into t values ($1, $2)", [(2_000, ""), (2_000, "")])


def test_whoever_is_torn_out_of_a_wait_leaves_no_answers_behind(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After an interruption in the middle of an exchange the session is not used again."""

    class Interrupted:
        def poll(self, limit_ms: float) -> None:
            raise KeyboardInterrupt

    monkeypatch.setattr(session, "_answers", Interrupted())
    with pytest.raises(KeyboardInterrupt):
        session.execute("select pg_sleep(0.01)")
    assert not session.usable
    with pytest.raises(psycopg.OperationalError):
        session.execute("select 1")


# ------------------------------------------------------------------------- statements that nobody waits for


@pytest.fixture
def database(postgres_url: str) -> Iterator[Database]:
    """An open database."""
    with Database.open(postgres_url) as opened:
        yield opened


def put(key: str) -> Callable[[Transaction], str]:
    """A job that adds a row without waiting, and an event."""

    def job(tx: Transaction) -> str:
        announce(key)(tx)
        tx.put(ADD, key=key, value="", updated_at="")
        return key

    return job


def test_a_late_refusal_meets_its_own_job(database: Database) -> None:
    """Of jobs that share a commit, the one whose change is refused is told and undone, and no other."""
    with held_up(database):
        futures = [database.write(put(key)) for key in ("a", "b", "a", "c", "b", "d")]
    assert [futures[place].result(60) for place in (0, 1, 3, 5)] == ["a", "b", "c", "d"]
    for place in (2, 4):
        with pytest.raises(ConstraintFailed) as refused:
            futures[place].result(60)
        assert (refused.value.kind, refused.value.rule) == ("unique", "pk_settings")
    assert keys(database) == ["a", "b", "c", "d"]
    assert [stored.event.subject for stored in events.walk(database)] == ["a", "b", "c", "d"]
    assert events.verify(database).events == 4


def test_a_late_refusal_can_be_caught_where_it_was_caused(database: Database) -> None:
    """Whoever turns a refusal into words does so with a change that is not waited for, too."""

    def job(tx: Transaction) -> None:
        try:
            put("a")(tx)
        except ConstraintFailed as refused:
            raise errors.StageMoved("there is one") from refused

    database.write(job).result(60)
    with pytest.raises(errors.StageMoved):
        database.write(job).result(60)
    assert database.write(put("b")).result(60) == "b"
    assert events.verify(database).events == 2


@pytest.mark.parametrize("swallow", [True, False])
def test_a_late_refusal_is_not_swallowed(database: Database, swallow: bool) -> None:
    """A job that goes on after an error of another statement keeps nothing that it should not."""

    def greedy(tx: Transaction) -> str:
        try:
            tx.put(ADD, key="a", value="", updated_at="")
            tx.all(select(schema.settings.c.key))
        except Exception:
            if not swallow:
                raise
        return "went on"

    database.write(add("a")).result(60)
    with pytest.raises(RuntimeError if swallow else ConstraintFailed):
        database.write(greedy).result(60)
    assert keys(database) == ["a"]


def test_what_is_put_is_seen_by_what_follows(database: Database) -> None:
    """A change that was not waited for is there for the job's next statement, and undone with the job."""
    change = (
        update(schema.settings)
        .where(schema.settings.c.key == bindparam("old"))
        .values(value=bindparam("new"))
    )
    value = select(schema.settings.c.value)

    def job(tx: Transaction) -> Any:
        tx.put(ADD, key="a", value="1", updated_at="")
        tx.put(change, old="a", new="2")
        return tx.all(value)

    def fails(tx: Transaction) -> None:
        tx.put(change, old="a", new="3")
        raise ZeroDivisionError

    with held_up(database):
        good, bad = database.write(job), database.write(fails)
    assert good.result(60) == [("2",)]
    with pytest.raises(ZeroDivisionError):
        bad.result(60)
    assert database.read(lambda tx: tx.all(value)) == [("2",)]


def test_a_writer_that_has_nothing_to_do_holds_nobody_up(postgres_url: str) -> None:
    """After a job that failed, or did nothing, another process's writer gets the lock at once."""

    def fails(tx: Transaction) -> None:
        put("lost")(tx)
        tx.all(select(schema.settings.c.key))
        raise ZeroDivisionError

    with Database.open(postgres_url) as one, Database.open(postgres_url) as other:
        for job in (fails, lambda tx: 1 // 0, lambda tx: None):
            one.write(job).exception(60)
            assert other.write(put(str(job))).result(60) == str(job)
        assert events.verify(one).events == 3


def test_a_read_takes_as_many_exchanges_as_statements(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The begin goes with the first statement, and nobody waits for the end; a write waits once more."""
    waits: list[Session] = []
    exchange = Session.exchange

    def counted(session: Session) -> None:
        waits.append(session)
        exchange(session)

    monkeypatch.setattr(Session, "exchange", counted)
    assert database.read(lambda tx: (keys_of(tx), keys_of(tx))) == ([], [])
    assert len(waits) == 2
    waits.clear()
    database.write(put("a")).result(60)  # the chain's head is read; all else goes with the commit
    assert len(waits) == 2


def keys_of(tx: Transaction) -> list[Any]:
    """The keys, in one statement."""
    return tx.all(text("select key from settings"))


def test_the_wrapper_without_c_does_as_well(postgres_url: str) -> None:
    """Where psycopg's compiled part is missing, its other wrapper of libpq serves."""
    code = (
        "import sys, psycopg.pq\n"
        "from tests.store.writes import main\n"
        "assert psycopg.pq.__impl__ == 'python', psycopg.pq.__impl__\n"
        f"main({postgres_url!r}, 'p', 2, 5)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={
            "PSYCOPG_IMPL": "python",
            "PATH": "/usr/bin:/bin:/sbin:/usr/sbin",
            "PYTHONPATH": ":".join(sys.path),
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if "libpq library not found" in done.stderr:
        missing("a libpq of the system's own", "apt-get install libpq5")
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 10
    with Database.open(postgres_url) as database:
        assert events.verify(database).events == 10


# ------------------------------------------------------------------------------------ reads of one statement


def transactions(session: Session) -> bool:
    """Whether a read of one statement is sent in a transaction of its own."""
    session.enter("begin", whole=False)
    session.execute("select 1")
    found = session.in_transaction
    session.leave("commit")
    return found


def test_a_read_that_is_always_one_statement_goes_without_a_transaction(session: Session) -> None:
    """What came alone is sent alone from the third time on, and the others in a transaction."""
    assert [transactions(session) for _ in range(4)] == [True, True, False, False]
    session.enter("begin", whole=True)
    session.execute("select 1")
    assert session.in_transaction
    session.leave("commit")


def test_a_read_with_a_second_statement_begins_anew(session: Session) -> None:
    """Nothing is read outside the moment that the read sees: the second statement is not sent."""
    assert [transactions(session) for _ in range(3)][-1] is False
    session.enter("begin", whole=False)
    session.execute("select 1")
    with pytest.raises(NotSingle):
        session.execute("select 2")
    session.leave("rollback")
    assert session.usable
    session.enter("begin", whole=True)
    session.execute("select 1")
    assert session.execute("select 2").fetchall() == [(2,)]
    session.leave("commit")
    assert transactions(session), "it was not alone lately"


def test_what_is_known_of_reads_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts without end are forgotten, and learned anew."""
    monkeypatch.setattr(postgres_session, "SINGLES_MAX", 3)
    singles = Singles()
    for number in range(10):
        for _ in range(2):
            singles.note(str(number), alone=True)
    assert len(singles._counts) <= 3
    assert singles.likely("9")
    assert not singles.likely("0")


def test_a_read_that_grows_sees_one_moment(database: Database) -> None:
    """A job that used to ask once and now asks twice is run again, in one snapshot, and nobody notices."""
    value = select(schema.settings.c.key).order_by(schema.settings.c.key)
    for _ in range(3):
        assert database.read(lambda tx: tx.all(value)) == []
    runs: list[list[Any]] = []

    def job(tx: Transaction) -> tuple[int, int]:
        runs.append(tx.all(value))
        if len(runs) <= 2:
            database.write(add(f"late {len(runs)}")).result(10)
        return len(runs[-1]), len(tx.all(value))

    assert database.read(job) == (1, 1)
    assert len(runs) == 2
    assert keys(database) == ["late 1", "late 2"]


def test_a_read_of_one_statement_cannot_write(database: Database) -> None:
    """What is sent without a transaction around it may change nothing, either."""
    insert_one = text("insert into settings (key, value, updated_at) values ('a', '', '') returning key")
    harmless = database._dialect._singles
    for prepared in (insert_one, insert_one, insert_one):
        compiled = database._dialect.statements.prepare(prepared)
        bound, _places = compiled.bind({})
        harmless.note(bound, alone=True)
    with pytest.raises(errors.StoreUnavailable, match="takes no writes"):
        database.read(lambda tx: tx.all(insert_one))
    assert keys(database) == []


def test_a_session_that_dies_in_a_read_of_one_statement_is_replaced(database: Database) -> None:
    """The second try is on another session, whether or not the first was in a transaction."""
    for _ in range(3):
        keys(database)
    with psycopg.connect(database._dialect.url, autocommit=True) as killer:
        killer.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity"
            " where datname = current_database() and pid <> pg_backend_pid()"
        )
    assert keys(database) == []
