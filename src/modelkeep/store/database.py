"""The door to the store: open a database, read from it, write to it. What is in it is known to the column
modules.

    database = Database.open("sqlite:///modelkeep.db")       # or postgresql://user@host/name
    rows = database.read(lambda tx: tx.all(STATEMENT, model_id=id))      # here and now, on this thread
    future = database.write(lambda tx: tx.run(UPDATE, model_id=id))      # a concurrent.futures.Future
    future.result()                                                      # committed, and on disk

    tx.all(statement, **binds) -> list[tuple]
    tx.one(statement, **binds) -> tuple | None
    tx.run(statement, **binds) -> number of rows changed
    tx.put(statement, **binds)                      the same, where nobody needs the number: fewer exchanges
    tx.many(statement, [binds, ...]) -> number of rows changed; `put_many` as `put`
    tx.ask(statement, **binds).all() -> list[tuple]    asked at once, waited for when the rows are needed
    tx.events.append(EventKind.MODEL_CREATED, at=now, actor=who, subject="churn", body={...}) -> Event
    tx.events.after(cursor, limit=100, model="churn") -> list[ChainedEvent]       (see `events`)

Statements are SQLAlchemy Core, built once at module level, with `bindparam("name")` for whatever varies, and
rows come back as plain tuples (`statements` says why). Habits that work on both dialects:

- `insert(table)` alone has a bind for each column; `statements.insert` has `on_conflict_do_update` for both
  dialects;
- in an update give binds names that say old and new:
  `update(t).where(t.c.number == bindparam("old")).values(number=bindparam("new"))`;
- `statements.one_of(column, "ids")` takes a list of any length; `column.in_([...])` is fine where a statement
  is built for one call (a search), and such statements may hold literal values instead of binds;
- `cast(func.sum(column), BigInteger)`: a bare sum of Postgres is a Decimal;
- JSON columns take `statements.json_text(value)` and are read with `codec.decode(text, Shape)`; times take
  `codec.format_time`; flags are 0 and 1.

A job of `write` may be run again and shares its transaction with others: it changes nothing but the database,
waits for nothing, and is short. It ends by returning (kept), by raising (undone, alone), or by raising
`Kept(error)`: kept, and the caller gets the error. `ConstraintFailed` ends a job; turn it into what a person
should read.

What this file does not do: hold SQL, or decide how writes are grouped (`writer`).
"""

import asyncio
import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from types import TracebackType
from typing import Any, Protocol, TypeVar

from modelkeep.core import errors
from modelkeep.store import migrate, on_loop
from modelkeep.store.addresses import choose
from modelkeep.store.dialects import Connection, ConstraintFailed, Dialect, Lost
from modelkeep.store.on_loop import LoopReads
from modelkeep.store.transaction import Kept, Transaction
from modelkeep.store.writer import Outcome, Writer

__all__ = ["ConstraintFailed", "Database", "Kept", "Outcome", "Transaction"]

T = TypeVar("T")

# Limits of the readers; each with the reason for its size.
READERS_SQLITE = 64
"""Connections that read one SQLite file: more than there are threads, for the event loop must never wait for
one."""
READERS_POSTGRES = 12
"""Sessions that threads read from Postgres with, for each of our processes, beside those of `on_loop`: a
server takes about a hundred in all."""
READER_WAIT_S = 10.0
"""How long a read waits for a session before it is told to come back."""

_log = logging.getLogger("modelkeep.store")


class Database:
    """One open database. Safe to be used from many threads; `close` it, or use it as a context manager.

    Attributes:
        reads_block: whether `read` waits for a network, so that an event loop has to call it by `on_loop`,
            or in a thread. False on SQLite, where a short read is cheaper than the way to a thread and back;
            long ones belong in a thread there too.
        dialect: `sqlite` or `postgresql`.
    """

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        self._readers = _Readers(dialect)
        self._on_loop: LoopReads | None = None
        self._closed = False
        self._listeners: list[Callable[[int], None]] = []
        self._seen: list[str] | None = None
        self._writer = Writer(dialect, self._tell, lambda: self._seen)
        self.reads_block = dialect.reads_block
        self.dialect = dialect.name

    @classmethod
    def open(cls, url: str) -> "Database":
        """Open a database; an empty one is filled with the schema, an older SQLite file is migrated.

        Raises:
            InvalidSetting: the address is not one, or the database belongs to another program.
            StoreUnavailable: it does not answer, or is a Postgres of an older release that has to be migrated
            first. SchemaTooNew: it was written by a newer release. ExtraMissing: the driver for Postgres is
            not installed.
        """
        dialect = choose(url)
        connection = dialect.connect(writing=True)
        try:
            migrate.prepare(dialect, connection)
            database = cls(dialect)
            database._writer.start(connection)
        except BaseException:
            connection.close()
            raise
        return database

    def write(self, job: Callable[[Transaction], T]) -> "Future[T]":
        """Run a job in a transaction of its own as far as it can see, and answer when its changes are on
        disk.

        Raises:
            Overloaded: too many jobs wait; here and now, not through the future.
            StoreUnavailable: the database was closed.

        Through the future comes what the job returns or raises, or StoreUnavailable or StorageFull when the
        commit failed, in which case the job changed nothing (`writer` knows the two exceptions).
        """
        future: Future[T] = Future()
        self.post(job, future)
        return future

    def post(self, job: Callable[[Transaction], Any], outcome: Outcome) -> None:
        """`write` for many who wait on one event loop: what comes of the job is told to `outcome`, on the
        writer's thread. Raises as `write` does.
        """
        self._writer.submit(job, outcome)

    def read(self, job: Callable[[Transaction], T]) -> T:
        """Run a job here and now on one consistent snapshot. It may be run again: when a session turns out to
        be dead, and when there is more to it than was foreseen.

        Raises:
            StoreUnavailable: the database does not answer, or is closed.
            Overloaded: all sessions were busy for too long.
        """
        readers = self._here()
        dead, whole = 0, False
        while True:
            connection = readers.take()
            try:
                value = self._read_on(connection, job, whole=whole)
            except Lost as lost:
                if lost.partly and not whole:
                    self._undo(readers, connection)
                    whole = True
                    continue
                readers.drop(connection)
                dead += 1
                if dead == 2 or not lost.again:
                    raise lost.error from lost
                readers.drop_idle()  # the server was started anew: the others are dead too
            except BaseException:
                self._undo(readers, connection)
                raise
            else:
                readers.give(connection)
                return value

    def _undo(self, readers: "Readers", connection: Connection) -> None:
        """Give back a session on which a job failed, if it can be used again."""
        try:
            self._dialect.undo_read(connection)
            usable = self._dialect.usable(connection)
        except self._dialect.failures:
            usable = False
        if usable:
            readers.give(connection)
        else:
            readers.drop(connection)

    def on_loop(self) -> LoopReads | None:
        """What runs reads on the running event loop without holding it up; None where a read does not wait
        for a network, where the library for it is missing, and while another loop has it.

        Raises:
            StoreUnavailable: the database was closed.
        """
        if not (self.reads_block and on_loop.available()):
            return None
        loop = asyncio.get_running_loop()
        reads = self._on_loop
        if reads is None or reads.loop is not loop:
            if self._closed:
                raise errors.StoreUnavailable("The store is closed; start the server again.")
            if reads is not None:
                if not reads.loop.is_closed():
                    return None  # one loop at a time has them
                reads.close()
            self._on_loop = reads = LoopReads(self._dialect, loop)
        return reads

    def _here(self) -> "Readers":
        """Who has sessions for the calling read."""
        reads = self._on_loop
        return reads if reads is not None and reads.is_here() else self._readers

    def _read_on(self, connection: Connection, job: Callable[[Transaction], T], *, whole: bool) -> T:
        try:
            self._dialect.begin_read(connection, whole=whole)
        except self._dialect.failures as problem:
            raise self._dialect.translate(problem) from problem
        value = job(Transaction(self._dialect, connection, writing=False, seen=self._seen))
        try:
            self._dialect.end_read(connection)
        except self._dialect.failures as problem:
            raise self._dialect.translate(problem) from problem
        return value

    def on_commit(self, callback: Callable[[int], None]) -> Callable[[], None]:
        """Have `callback` called with the last event's number after each commit of this process that appended
        events.

        It is called on the writer's thread, so it only wakes somebody. What other processes append wakes
        nobody here: whoever follows the log also looks by itself from time to time.

        Returns:
            a function that ends this.
        """
        self._listeners = [*self._listeners, callback]

        def end() -> None:
            self._listeners = [kept for kept in self._listeners if kept is not callback]

        return end

    def _tell(self, sequence: int) -> None:
        for callback in self._listeners:
            try:
                callback(sequence)
            except Exception:  # noqa: BLE001  (a listener's fault must not stop the writer)
                _log.exception("store.listener_failed")

    @contextlib.contextmanager
    def statements(self) -> Iterator[list[str]]:
        """Give the list that the text of each statement is added to while the block lasts: to count them in
        tests."""
        seen: list[str] = []
        self._seen = seen
        try:
            yield seen
        finally:
            self._seen = None

    def close(self) -> None:
        """Finish the waiting writes and close every connection. May be called again."""
        self._closed = True
        self._writer.stop()
        if self._on_loop is not None:
            self._on_loop.close()
        self._readers.close()

    def __enter__(self) -> "Database":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Readers(Protocol):
    """Who has connections that read.

    `take` waits for one; it comes back by `give`, or by `drop` when it cannot be used again. `drop_idle`
    closes those that nobody uses.
    """

    def take(self) -> Connection: ...
    def give(self, connection: Connection) -> None: ...
    def drop(self, connection: Connection) -> None: ...
    def drop_idle(self) -> None: ...


class _Readers:
    """Connections that read, the last one used first; opened when asked for, up to a bound."""

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        self._idle: deque[Connection] = deque()
        self._maximum = READERS_POSTGRES if dialect.reads_block else READERS_SQLITE
        self._open = 0
        self._closed = False
        self._changed = threading.Condition()

    def take(self) -> Connection:
        try:
            return self._idle.pop()  # the usual way needs no lock: a deque's pop is one step
        except IndexError:
            return self._wait_or_open()

    def _wait_or_open(self) -> Connection:
        deadline = time.monotonic() + READER_WAIT_S
        with self._changed:
            while True:
                if self._closed:
                    raise errors.StoreUnavailable("The store is closed; start the server again.")
                if self._idle:
                    with contextlib.suppress(IndexError):
                        return self._idle.pop()
                if self._open < self._maximum:
                    self._open += 1
                    break
                remaining = deadline - time.monotonic()
                if remaining <= 0:
                    raise errors.Overloaded("Too many reads are under way; try again in a moment.")
                # Who gives a connection back does not take the lock to say so: look again by itself.
                self._changed.wait(min(remaining, 0.01))
        try:
            return self._dialect.connect(writing=False)
        except BaseException:
            with self._changed:
                self._open -= 1
            raise

    def give(self, connection: Connection) -> None:
        self._idle.append(connection)
        if self._closed:
            self.drop_idle()

    def drop(self, connection: Connection) -> None:
        with contextlib.suppress(*self._dialect.failures):
            connection.close()
        with self._changed:
            self._open -= 1

    def drop_idle(self) -> None:
        with contextlib.suppress(IndexError):
            while True:
                self.drop(self._idle.pop())

    def close(self) -> None:
        self._closed = True
        self.drop_idle()
