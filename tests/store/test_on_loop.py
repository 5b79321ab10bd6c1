"""Reads on an event loop's own thread: the loop goes on, each error meets its own read, and all is bounded.

The contract of a read is that of test_database.py, whose tests are run once more on a loop. Where a test
needs a read that waits in the database, it has it wait for a lock.
"""

import ast
import asyncio
import contextlib
import contextvars
import errno
import os
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import pytest
import uvloop
from sqlalchemy import bindparam, select, text

import modelkeep
from modelkeep.core import errors
from modelkeep.store import on_loop, postgres_session
from modelkeep.store.database import Database, Transaction
from modelkeep.store.on_loop import LoopReads
from modelkeep.store.postgres import Postgres
from tests.servers import missing
from tests.store import test_database as contract
from tests.store.test_database import KEYS, add, keys

pytestmark = [pytest.mark.external, pytest.mark.req("U4")]

LOCK = 7
WAIT = text(f"select pg_advisory_xact_lock_shared({LOCK})")
HANG_UP = text("select pg_terminate_backend(pg_backend_pid())")
ECHO = select(bindparam("value"))
LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


@pytest.fixture
def library() -> None:
    """What the reads of a loop run in."""
    if not on_loop.available():
        missing("greenlet", "make setup")


@pytest.fixture(params=LOOPS)
def runner(library: None, request: pytest.FixtureRequest) -> Iterator[asyncio.Runner]:
    """Runs coroutines on each kind of loop."""
    with asyncio.Runner(loop_factory=LOOPS[request.param]) as runs:
        yield runs


@pytest.fixture
def database(postgres_url: str) -> Iterator[Database]:
    """An open database with one row."""
    with Database.open(postgres_url) as opened:
        opened.write(add("a")).result(10)
        yield opened


def loop_reads(database: Database) -> LoopReads:
    """What runs reads on the running loop."""
    reads = database.on_loop()
    assert reads is not None
    return reads


async def read(database: Database, job: Callable[[Transaction], Any]) -> Any:
    """Read on the running loop."""
    return await loop_reads(database).run(lambda: database.read(job))


def wait(tx: Transaction) -> list[Any]:
    """A read that waits for the lock."""
    tx.all(WAIT)
    return tx.all(KEYS)


@contextlib.contextmanager
def locked(database: Database) -> Iterator[psycopg.Connection[Any]]:
    """Keep the lock while the block lasts; the connection may be used."""
    with psycopg.connect(database._dialect.url, autocommit=True) as connection:
        connection.execute(f"select pg_advisory_lock({LOCK})")
        yield connection


def in_the_database(connection: psycopg.Connection[Any]) -> int:
    """How many sessions wait for the lock."""
    asked = "select count(*) from pg_locks where locktype = 'advisory' and objid = %s and not granted"
    row = connection.execute(asked, (LOCK,)).fetchone()
    assert row is not None
    return int(row[0])


async def until(there: Callable[[], bool]) -> None:
    """Let the loop go on until something is so."""
    async with asyncio.timeout(30):
        while not there():  # noqa: ASYNC110  (the database has no way to tell)
            await asyncio.sleep(0.001)


# ---------------------------------------------------------------------------------------------- the contract


class Looped(Database):
    """A database whose reads all go to an event loop, from whatever thread they come."""

    loop: asyncio.AbstractEventLoop

    def read(self, job: Callable[[Transaction], Any]) -> Any:
        here = self._on_loop is not None and self._on_loop.is_here()
        if here:
            return super().read(job)
        return asyncio.run_coroutine_threadsafe(read(self, job), self.loop).result(30)


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize(
    "holds",
    [
        contract.test_what_was_written_is_read,
        contract.test_an_upsert_works_on_both_dialects,
        contract.test_lists_of_any_length_share_one_statement,
        contract.test_a_statement_built_for_one_call_may_hold_values,
        contract.test_what_is_asked_ahead_is_answered_when_it_is_needed,
        contract.test_text_sorts_by_its_bytes_on_both_dialects,
        contract.test_statements_are_counted,
        contract.test_a_read_sees_one_moment,
        contract.test_a_read_cannot_write,
        contract.test_a_read_that_fails_leaves_no_trace,
        contract.test_reads_of_many_threads_go_on_together,
        contract.test_a_wrong_statement_stays_our_own_fault,
    ],
)
def test_a_read_on_a_loop_keeps_the_contract(postgres_url: str, holds: Callable[[Database], None]) -> None:
    """What holds for reads holds for those on a loop."""
    loop = uvloop.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        with Looped.open(postgres_url) as opened:
            assert isinstance(opened, Looped)
            opened.loop = loop
            holds(opened)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


# -------------------------------------------------------------------------------------------------- the loop


def test_a_read_that_waits_leaves_the_loop_free(runner: asyncio.Runner, database: Database) -> None:
    """While reads wait in the database the loop runs, and other reads are answered."""

    async def whole() -> None:
        waiting = [asyncio.ensure_future(read(database, wait)) for _ in range(3)]
        await until(lambda: in_the_database(holder) == 3)
        for _ in range(5):
            assert await read(database, lambda tx: tx.all(KEYS)) == [("a",)]
        assert not any(each.done() for each in waiting)
        assert len(keys(database)) == 1, "and so are those of threads"
        holder.execute(f"select pg_advisory_unlock({LOCK})")
        assert await asyncio.gather(*waiting) == [[("a",)]] * 3

    with locked(database) as holder:
        runner.run(whole())


def test_reads_share_few_sessions_in_the_order_they_came(
    runner: asyncio.Runner, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More reads than sessions are answered one after the other, first come first served."""
    monkeypatch.setattr(on_loop, "SESSIONS_MAX", 2)
    order: list[int] = []

    async def one(number: int) -> None:
        await read(database, lambda tx: (tx.all(KEYS), order.append(number)))

    async def whole() -> None:
        waiting = [asyncio.ensure_future(read(database, wait)) for _ in range(1)]
        await until(lambda: in_the_database(holder) == 1)
        await asyncio.gather(*map(one, range(50)))
        assert order == list(range(50))
        assert len(loop_reads(database)._lines) == 2
        holder.execute(f"select pg_advisory_unlock({LOCK})")
        await asyncio.gather(*waiting)

    with locked(database) as holder:
        runner.run(whole())


def test_who_waits_for_a_session_does_so_within_bounds(
    runner: asyncio.Runner, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full line is told at once, a long wait when it is too long; who has a session is not concerned."""
    for name, value in {"SESSIONS_MAX": 1, "QUEUE_MAX": 2, "LOOK_S": 0.01}.items():
        monkeypatch.setattr(on_loop, name, value)

    async def whole() -> None:
        held = asyncio.ensure_future(read(database, wait))
        await until(lambda: in_the_database(holder) == 1)
        late = [asyncio.ensure_future(read(database, wait)) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(errors.Overloaded, match="wait"):
            await read(database, wait)
        monkeypatch.setattr(on_loop, "SESSION_WAIT_S", 0.01)
        for each in late:
            with pytest.raises(errors.Overloaded, match="under way"):
                await each
        assert not held.done()
        holder.execute(f"select pg_advisory_unlock({LOCK})")
        assert await held == [("a",)]

    with locked(database) as holder:
        runner.run(whole())


def test_a_read_whose_caller_went_away_goes_on_to_its_end(runner: asyncio.Runner, database: Database) -> None:
    """A cancelled request leaves no session behind that is still at work."""
    ended: list[int] = []

    async def whole() -> None:
        asked = asyncio.ensure_future(read(database, lambda tx: ended.append(len(wait(tx)))))
        await until(lambda: in_the_database(holder) == 1)
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        holder.execute(f"select pg_advisory_unlock({LOCK})")
        await until(lambda: bool(ended))
        assert ended == [1]
        assert await read(database, lambda tx: tx.all(KEYS)) == [("a",)]
        assert len(loop_reads(database)._lines) == 1

    with locked(database) as holder:
        runner.run(whole())


def test_more_than_the_line_takes_at_once_is_sent_and_taken(
    runner: asyncio.Runner, database: Database
) -> None:
    """A value of megabytes waits for the line in both directions."""
    long = "x" * 8_000_000

    async def whole() -> None:
        rows = await asyncio.gather(
            *(read(database, lambda tx: tx.one(ECHO, value=long)) for _ in range(2)),
            read(database, lambda tx: tx.all(KEYS)),
        )
        assert rows == [(long,), (long,), [("a",)]]

    runner.run(whole())


def test_what_is_known_of_the_request_is_known_to_the_read(
    runner: asyncio.Runner, database: Database
) -> None:
    """A read sees the context of who asked, before and after it waited, and changes none of it."""
    whose: contextvars.ContextVar[str] = contextvars.ContextVar("whose")

    def job(tx: Transaction) -> tuple[str, str]:
        before = whose.get()
        tx.all(KEYS)
        after = whose.get()
        whose.set("changed")
        return before, after

    async def one(name: str) -> None:
        whose.set(name)
        assert await read(database, job) == (name, name)
        assert whose.get() == name

    async def whole() -> None:
        await asyncio.gather(*(asyncio.create_task(one(f"r{number}")) for number in range(20)))

    runner.run(whole())


# ---------------------------------------------------------------------------------------------------- faults


def test_a_session_that_died_at_rest_is_noticed_by_nobody(runner: asyncio.Runner, database: Database) -> None:
    """The loop hears of its end and lets it go; the next read has another."""

    async def whole() -> None:
        await asyncio.gather(*(read(database, lambda tx: tx.all(KEYS)) for _ in range(4)))
        reads = loop_reads(database)
        await until(lambda: reads._opening == 0)
        assert 1 <= len(reads._lines) <= 4
        with psycopg.connect(database._dialect.url, autocommit=True) as killer:
            killer.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity"
                " where datname = current_database() and pid <> pg_backend_pid()"
            )
        await until(lambda: not reads._lines)
        assert reads._open == 0
        assert await read(database, lambda tx: tx.all(KEYS)) == [("a",)]

    runner.run(whole())


def test_a_session_that_dies_at_work_fails_its_own_read_alone(
    runner: asyncio.Runner, database: Database
) -> None:
    """A read whose session dies is run once more; when that dies, too, it says so, and others go on."""
    tries: list[int] = []

    def dies(times: int, tx: Transaction) -> list[Any]:
        tries.append(times)
        if len(tries) <= times:
            tx.all(HANG_UP)
        return tx.all(KEYS)

    async def whole() -> None:
        waiting = asyncio.ensure_future(read(database, wait))
        await until(lambda: in_the_database(holder) == 1)
        assert await read(database, partial(dies, 1)) == [("a",)]
        assert tries == [1, 1]
        tries.clear()
        with pytest.raises(errors.StoreUnavailable, match="does not answer"):
            await read(database, partial(dies, 2))
        assert tries == [2, 2]
        assert not waiting.done()
        holder.execute(f"select pg_advisory_unlock({LOCK})")
        assert await waiting == [("a",)]

    with locked(database) as holder:
        runner.run(whole())


def test_a_server_that_says_nothing_is_not_waited_for_without_end(
    runner: asyncio.Runner, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A read that gets no answer ends, and its session with it."""

    async def whole() -> None:
        await read(database, lambda tx: tx.all(KEYS))
        monkeypatch.setattr(on_loop, "LOOK_S", 0.01)
        monkeypatch.setattr(postgres_session, "ANSWER_S", 0.05)
        with pytest.raises(errors.StoreUnavailable, match=r"no answer for 0\.05 s"):
            await read(database, wait)
        monkeypatch.undo()
        assert await read(database, lambda tx: tx.all(KEYS)) == [("a",)]

    with locked(database):
        runner.run(whole())


def test_a_server_that_cannot_be_reached_is_said_to_each(
    runner: asyncio.Runner, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who waits for a session that cannot be opened is told; when it can be again, reads go on."""

    def refuse(self: Postgres, *, writing: bool) -> Any:
        raise errors.StoreUnavailable("nobody there")

    async def whole() -> None:
        monkeypatch.setattr(Postgres, "connect", refuse)
        told = await asyncio.gather(
            *(read(database, lambda tx: tx.all(KEYS)) for _ in range(20)), return_exceptions=True
        )
        assert [str(each) for each in told] == ["nobody there"] * 20
        monkeypatch.undo()
        assert await read(database, lambda tx: tx.all(KEYS)) == [("a",)]

    runner.run(whole())


def test_sessions_that_cannot_be_watched_are_closed_and_count_no_more(
    runner: asyncio.Runner, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process without a number left for another file says so to each read, and goes on when it has."""

    def full(descriptor: int) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    async def whole() -> None:
        monkeypatch.setattr(os, "dup", full)
        for _ in range(on_loop.SESSIONS_MAX + 1):
            with pytest.raises(errors.StoreUnavailable, match="limit of open files"):
                await read(database, lambda tx: tx.all(KEYS))
        monkeypatch.undo()
        assert await read(database, lambda tx: tx.all(KEYS)) == [("a",)]

    runner.run(whole())


def test_closing_ends_what_waits(
    runner: asyncio.Runner, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reads that wait, in the database or for a session, are told that the store is closed."""
    monkeypatch.setattr(on_loop, "SESSIONS_MAX", 1)

    async def whole() -> None:
        waiting = [asyncio.ensure_future(read(database, wait))]
        await until(lambda: in_the_database(holder) == 1)
        waiting.append(asyncio.ensure_future(read(database, wait)))
        await asyncio.sleep(0)
        database.close()
        for each in waiting:
            with pytest.raises(errors.StoreUnavailable, match="closed"):
                await each
        with pytest.raises(errors.StoreUnavailable, match="closed"):
            await read(database, wait)

    with locked(database) as holder:
        runner.run(whole())


@pytest.mark.usefixtures("library")
def test_a_loop_after_another_has_sessions_of_its_own(database: Database) -> None:
    """A database outlives the loop that it was read on."""
    for make in (*LOOPS.values(), *LOOPS.values()):
        with asyncio.Runner(loop_factory=make) as runs:
            assert runs.run(read(database, lambda tx: tx.all(KEYS))) == [("a",)]


@pytest.mark.usefixtures("library")
def test_one_loop_at_a_time_has_sessions(database: Database) -> None:
    """A second loop reads in threads, and takes nothing from the first."""

    async def asked() -> LoopReads | None:
        return database.on_loop()

    with asyncio.Runner() as first:
        had = first.run(asked())
        assert had is not None
        with asyncio.Runner() as second:
            assert second.run(asked()) is None
        assert first.run(asked()) is had


def test_without_the_library_reads_go_to_threads(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installation that lacks it works as before."""

    async def asked() -> object:
        return database.on_loop()

    monkeypatch.setattr(on_loop, "greenlet", None)
    assert asyncio.run(asked()) is None


# ----------------------------------------------------------------------------------------------------- locks

LOCKS_OUTSIDE_READS = {
    "store/database.py",  # threads that wait for a session, before they read
    "store/on_loop.py",  # the number of a loop's thread
    "store/writer.py",  # the line of jobs, before they run
    "service/small_files.py",  # the list of what is not synced yet
}
"""Modules with locks, of which somebody has seen that none is held while a statement runs."""


def test_what_a_read_passes_through_holds_no_lock() -> None:
    """A lock that a waiting read held would stop the next read on the same thread, and the loop, for ever."""
    source = Path(modelkeep.__file__).parent
    found = set()
    for floor in ("core", "service", "store", "web/mlflow"):
        for path in (source / floor).rglob("*.py"):
            tree = ast.parse(path.read_text())
            imported = {
                name
                for node in ast.walk(tree)
                if isinstance(node, ast.Import | ast.ImportFrom)
                for name in (
                    [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module]
                )
            }
            if imported & {"threading", "multiprocessing", "_thread"}:
                found.add(str(path.relative_to(source)))
    new = found - LOCKS_OUTSIDE_READS
    assert not new, f"see that no lock of {sorted(new)} is held while a statement runs, and list them"
