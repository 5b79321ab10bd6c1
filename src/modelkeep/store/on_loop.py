"""Reads that wait for Postgres on an event loop's own thread, and hold up neither the loop nor each other.

A read is plain code that waits where it asks. Here it runs in a greenlet: where its session would wait for
the network the greenlet is left, the loop goes on, and what the loop hears of that session's socket brings
the read back to where it was. That spares each read the way to a thread and back, which costs more than most
reads do, and the quarrel of threads for the interpreter.

    reads = LoopReads(dialect, asyncio.get_running_loop())
    value = await reads.run(lambda: database.read(job))       # every read inside takes its session from here

Habits for code that reads: it waits for nothing but the database, and holds no lock while it asks, because
the next read on the same thread would wait for that lock for ever (a test looks for locks). What reads from
other threads is not concerned: it waits as it always did. This file knows neither SQL nor what a read may do
again when its session was dead; `database` does.
"""

import asyncio
import contextlib
import contextvars
import logging
import os
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeVar, cast

from modelkeep.core import errors
from modelkeep.store.dialects import Connection, Dialect

try:
    from greenlet import greenlet
except ImportError:  # an installation from before it was asked for: reads go to threads
    greenlet = None

T = TypeVar("T")

# Limits of the reads on one loop; each with the reason for its size.
SESSIONS_MAX = 8
"""Sessions with Postgres: more at work at a time would fight for the processors of most servers."""
QUEUE_MAX = 4_096
"""Reads that wait for a session: one for each connection that a server takes."""
SESSION_WAIT_S = 10.0
"""How long a read waits for a session before it is told to come back."""
OPENING_THREADS = 2
"""Threads that open sessions, for opening one blocks: two, so that one that takes long holds up no other."""
LOOK_S = 0.5
"""How often it is looked whether something was waited for too long; on time to the half second is enough."""

_log = logging.getLogger("modelkeep.store")


class LoopSession(Connection, Protocol):
    """A session that can be waited for in more than one way.

    `waits` is called where it would wait for its socket (to be read; with True, or to be written), with how
    many seconds that may take, and answers whether something came. `absorb` takes in what came while nobody
    waited, and raises where the line is dead.
    """

    waits: Callable[[bool, float], bool] | None

    @property
    def descriptor(self) -> int: ...
    def absorb(self) -> None: ...


def available() -> bool:
    """Whether the library is there that this takes."""
    return greenlet is not None


class _Reading:
    """One read, from its beginning to its end. `since` is when it began to wait for a session."""

    __slots__ = ("_error", "_value", "_work", "over", "since", "strand", "told")

    def __init__(self, work: Callable[[], Any]) -> None:
        self._work = work
        self._value: Any = None
        self._error: BaseException | None = None
        self.over = False
        self.since = 0.0
        self.told: asyncio.Future[None] | None = None
        self.strand = greenlet(self._run)
        self.strand.gr_context = contextvars.copy_context()

    def _run(self, _begin: object) -> None:
        try:
            self._value = self._work()
        except BaseException as problem:  # noqa: BLE001  (whatever it raises is its caller's)
            self._error = problem
        self.over = True
        if self.told is not None and not self.told.done():  # else whoever asked has gone
            self.told.set_result(None)

    def answer(self) -> Any:
        """What the read returned. Raises what it raised."""
        if self._error is not None:
            try:
                raise self._error
            finally:
                self._error = None  # the error's traceback holds this frame
        return self._value


class _Line:
    """One session's socket, watched by the loop for as long as the session lives.

    It is watched under a number of its own: libpq closes the socket by itself when the other end has gone,
    and its number may be another file's before the loop is told.
    """

    __slots__ = ("_descriptor", "_limit_s", "_loop", "_reads", "_since", "reading", "session")

    def __init__(self, reads: "LoopReads", loop: asyncio.AbstractEventLoop, session: LoopSession) -> None:
        self._reads = reads
        self._loop = loop
        self.session = session
        self.reading: _Reading | None = None
        self._since = self._limit_s = 0.0
        self._descriptor = os.dup(session.descriptor)
        loop.add_reader(self._descriptor, self._heard)
        session.waits = self._wait

    def _wait(self, sending: bool, limit_s: float) -> bool:
        """Leave the running read until something is heard. False when nothing was for too long."""
        self._since, self._limit_s = self._loop.time(), limit_s
        self.reading = self._reads.running
        if sending:
            self._loop.add_writer(self._descriptor, self._heard)
        try:
            return bool(self._reads.pause())
        finally:
            self.reading = None
            if sending and self._descriptor >= 0:
                self._loop.remove_writer(self._descriptor)

    def _heard(self) -> None:
        if self.reading is not None:
            self._reads.resume(self.reading, True)
            return
        try:
            self.session.absorb()
        except Exception as gone:  # noqa: BLE001  (every kind of failure says the same)
            _log.info("store.session_ended", extra={"error": str(gone)})
            self._reads.lost(self)

    def look(self, now: float) -> None:
        """Have the read go on that waited for too long."""
        if self.reading is not None and now - self._since > self._limit_s:
            self._reads.resume(self.reading, False)

    def end(self) -> None:
        """Watch the socket no longer. May be called again."""
        descriptor, self._descriptor = self._descriptor, -1
        self.session.waits = None
        if descriptor >= 0:
            with contextlib.suppress(RuntimeError):  # the loop is closed, and watches nothing
                self._loop.remove_reader(descriptor)
                self._loop.remove_writer(descriptor)
            os.close(descriptor)


class LoopReads:
    """The reads of one event loop. Everything but `close` and `is_here` is called on the loop's thread; it
    gives sessions to reads as `database` expects of whoever does.
    """

    def __init__(self, dialect: Dialect, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.running: _Reading | None = None
        self._dialect = dialect
        self._thread = threading.get_ident()
        self._lines: dict[Connection, _Line] = {}
        self._idle: list[Connection] = []  # the last one used first, while it is warm
        self._queue: deque[_Reading] = deque()
        self._open = 0  # with those that are being opened
        self._opening = 0
        self._closed = False
        self._looking = False
        self._threads = ThreadPoolExecutor(OPENING_THREADS, thread_name_prefix="modelkeep-sessions")

    async def run(self, work: Callable[[], T]) -> T:
        """Run something that reads. When the caller is cancelled the read goes on to its end, and nobody
        hears of it.

        Raises:
            Overloaded: too many reads wait, or this one waited for a session too long.
            StoreUnavailable: the database was closed.
            whatever `work` does.
        """
        reading = _Reading(work)
        self.resume(reading, None)
        if not reading.over:
            reading.told = self.loop.create_future()
            await reading.told
        return cast(T, reading.answer())

    def is_here(self) -> bool:
        """Whether the caller is inside a read of this loop."""
        return self.running is not None and self._thread == threading.get_ident()

    # ------------------------------------------------------------------------------------- to and from a read

    def resume(self, reading: _Reading, message: object) -> None:
        """Have a read go on, until it waits again or is over. `message` is what its `pause` gives."""
        self.running = reading
        try:
            reading.strand.switch(message)
        finally:
            self.running = None

    def pause(self) -> Any:
        """Leave the running read; what it is resumed with."""
        assert self.running is not None, "only a read that runs can be left"
        if not self._looking:
            self._looking = True
            self.loop.call_later(LOOK_S, self._look)
        return self.running.strand.parent.switch()

    def _look(self) -> None:
        """See who waited for too long, for as long as anybody waits."""
        now = self.loop.time()
        while self._queue and now - self._queue[0].since > SESSION_WAIT_S:
            self._refuse(errors.Overloaded("Too many reads are under way; try again in a moment."))
        for line in list(self._lines.values()):
            line.look(now)
        self._looking = bool(self._queue) or any(line.reading for line in self._lines.values())
        if self._looking:
            self.loop.call_later(LOOK_S, self._look)

    # ----------------------------------------------------------------------------------------------- sessions

    def take(self) -> Connection:
        """A session for the running read, which waits in line for it. Raises as `run` does."""
        if self._idle:
            return self._idle.pop()
        reading = self.running
        assert reading is not None, "sessions are for reads that run"
        if self._closed:
            raise _closed()
        if len(self._queue) >= QUEUE_MAX:
            raise errors.Overloaded("Too many reads wait; try again in a moment.", limit=QUEUE_MAX)
        reading.since = self.loop.time()
        self._queue.append(reading)
        self._open_more()
        got = self.pause()
        if isinstance(got, BaseException):
            raise got
        return cast(Connection, got)

    def give(self, connection: Connection) -> None:
        """Take back a session that can be used again."""
        if self._closed:
            self.drop(connection)
        elif self._queue:
            self.loop.call_soon(self.resume, self._queue.popleft(), connection)
        else:
            self._idle.append(connection)

    def drop(self, connection: Connection) -> None:
        """Close a session."""
        line = self._lines.pop(connection, None)
        if line is None:
            return  # it ended by itself meanwhile
        line.end()
        with contextlib.suppress(*self._dialect.failures):
            connection.close()
        self._open -= 1
        self._open_more()

    def drop_idle(self) -> None:
        """Close the sessions that nobody uses."""
        while self._idle:
            self.drop(self._idle.pop())

    def lost(self, line: _Line) -> None:
        """A session that nobody uses ended by itself."""
        with contextlib.suppress(ValueError):
            self._idle.remove(line.session)
            self.drop(line.session)

    def _open_more(self) -> None:
        """Open a session for each who waits for one, up to the bound."""
        while not self._closed and self._open < SESSIONS_MAX and self._opening < len(self._queue):
            self._open += 1
            self._opening += 1
            opened = self.loop.run_in_executor(self._threads, self._connect)
            opened.add_done_callback(self._opened)

    def _connect(self) -> Connection:
        connection = self._dialect.connect(writing=False)
        if self._closed:
            connection.close()
            raise _closed()
        return connection

    def _opened(self, opened: "asyncio.Future[Connection]") -> None:
        self._opening -= 1
        problem = _closed() if opened.cancelled() else opened.exception()
        if problem is not None:
            self._open -= 1
            self._refuse(problem)
            self._open_more()
            return
        session = cast(LoopSession, opened.result())
        try:
            self._lines[session] = _Line(self, self.loop, session)
        except OSError as full:
            session.close()
            self._open -= 1
            why = f"No session with the database can be watched ({full.strerror})"
            self._refuse(errors.StoreUnavailable(f"{why}; raise the server's limit of open files."))
            self._open_more()
            return
        self.give(session)

    def _refuse(self, problem: BaseException) -> None:
        """Tell whoever waits longest for a session that there is none."""
        if self._queue:
            self.resume(self._queue.popleft(), problem)

    # ---------------------------------------------------------------------------------------------------- end

    def close(self) -> None:
        """Close every session; reads under way end in StoreUnavailable. From any thread; may be called
        again."""
        self._closed = True
        self._threads.shutdown(wait=False, cancel_futures=True)
        if self.loop.is_running() and self._thread != threading.get_ident():
            with contextlib.suppress(RuntimeError):  # it was closed just now
                self.loop.call_soon_threadsafe(self._end)
        else:
            self._end()

    def _end(self) -> None:
        self.drop_idle()
        here = self._thread == threading.get_ident()  # from another no read can go on, nor be told
        while self._queue and here:
            self._refuse(_closed())
        for line in list(self._lines.values()):
            if line.reading is not None and here:
                self.resume(line.reading, False)  # which has its session dropped
            self.drop(line.session)


def _closed() -> errors.StoreUnavailable:
    return errors.StoreUnavailable("The store is closed; start the server again.")
