"""The one thread of a process that writes: it takes the jobs that wait, runs them in one transaction, commits
once.

Why: a durable commit costs a disk flush, and one flush can carry many jobs; with one writer no job ever waits
for a lock of another job of this process, and the chain of events needs one writer anyway.

    waiting jobs -> begin -> job -> savepoint -> job -> savepoint -> job -> ... -> commit -> answers
                                                  | an error: back to the savepoint, the others go on

A job may be run more than once (the group is repeated when the database asks for it), so it changes nothing
but the database; and it waits for nothing, for everybody waits for it. Nobody is answered before the commit.
This file does not know what jobs do.

What an answer means:
- a result, or an error wrapped in `Kept`: the changes are on disk;
- any other error: this job changed nothing. Two exceptions can be told by nobody. Where SQLite's flush fails
  and the process dies before the next commit, which would write over it, the change may be found afterwards.
  Where Postgres vanishes during the commit and cannot be asked in time what became of it, StoreUnavailable
  says so (`unknown`). Whoever repeats such a write sends an idempotency key.
"""

import contextlib
import logging
import queue
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from modelkeep.core import errors
from modelkeep.store.dialects import Connection, Cursor, Dialect, Lost
from modelkeep.store.transaction import Kept, Transaction

# Limits of the writer; each with the reason for its size.
QUEUE_MAX = 1_000
"""Jobs that may wait: a tenth of a second of work. Beyond it callers are better told to come back."""
GROUP_JOBS_MAX = 256
"""Jobs that share one commit: more would hardly make the flush cheaper for each."""
GROUP_S = 0.02
"""How long a group takes in further jobs: the first of it waits that much longer at most."""
TRIES_MAX = 6
"""How often a group is run again when Postgres asks for it, with pauses of 10 ms doubling to 160 ms,
jittered."""
PAUSE_S = 0.005
"""What the pauses between these tries are multiples of."""
FATE_S = 5.0
"""How long the fate of a commit without an answer is asked for."""

_log = logging.getLogger("modelkeep.store")


class Outcome(Protocol):
    """Who waits for a job. A `concurrent.futures.Future` is one; whoever waits on an event loop has a lighter
    one.

    The writer's thread asks once, before the job runs, whether somebody still waits, and tells once, after
    the commit. Neither may wait or fail.
    """

    def set_running_or_notify_cancel(self) -> bool: ...
    def set_result(self, result: Any, /) -> None: ...
    def set_exception(self, exception: BaseException | None, /) -> None: ...


@dataclass(slots=True)
class _Job:
    """A waiting job, and what came of it in the group that runs."""

    act: Callable[[Transaction], Any]
    outcome: Outcome
    value: Any = None
    error: BaseException | None = None

    def answer(self) -> None:
        if self.error is None:
            self.outcome.set_result(self.value)
        else:
            self.outcome.set_exception(self.error)


class _Turn:
    """One transaction of the writer, in which jobs run one after the other, each undone alone when it fails.

    While nothing was kept yet a failing job is undone by beginning anew: a job that comes alone, as most do,
    needs no savepoint, and on Postgres no exchanges for one.
    """

    def __init__(
        self,
        dialect: Dialect,
        connection: Connection,
        seen: list[str] | None,
        *,
        waiting: bool,
        events: bool,
    ) -> None:
        self._dialect = dialect
        self._connection = connection
        self._waiting = waiting  # each statement is waited for, so that its error meets its job
        self._events = events  # there will be some, to judge by the last one: read the chain's end ahead
        self._begun = False
        self._kept = False  # changes of a former job are in the transaction
        self._saved = False  # there is a savepoint
        self._fresh = False  # and nothing has happened since
        self._ticket: Cursor | None = None
        self._tx = Transaction(dialect, connection, writing=True, seen=seen)

    def run(self, job: _Job) -> None:
        """Run a job and note what came of it.

        Raises:
            Lost: the transaction is gone, with everything that ran in it.
        """
        job.value = job.error = None
        if not self._begun:
            self._begin()
        if self._kept and not self._fresh:
            self._step(*(self._dialect.renew_savepoint if self._saved else ("savepoint job",)))
            self._saved = self._fresh = True
        mark = self._tx.events.mark()
        try:
            try:
                job.value = job.act(self._tx)
            except Kept as kept:
                job.error = kept.error
            self._tx.check_whole()
            self._kept, self._fresh = True, False
        except Lost:
            raise
        except BaseException as problem:  # noqa: BLE001  (whatever a job raises is its caller's)
            job.error = problem
            self._undo()
            self._tx.undone(mark)

    def _undo(self) -> None:
        if self._kept:
            self._step("rollback to savepoint job")
            return
        try:
            self._connection.rollback()
        except self._dialect.failures as problem:
            raise lost(self._dialect, problem) from problem
        self._begun = False

    @property
    def begun(self) -> bool:
        """Whether there is something to commit."""
        return self._begun

    def flush(self) -> int | None:
        """Finish before the commit: the number of the last event, if there are events."""
        return self._tx.events.flush()

    def ticket(self) -> str | None:
        """By what the transaction's fate can be asked for, to be taken before the commit is sent.

        Raises:
            Lost: the transaction is gone.
        """
        if self._ticket is None:
            return None
        try:
            return str(self._ticket.fetchall()[0][-1])
        except self._dialect.failures as problem:
            raise lost(self._dialect, problem) from problem

    def _begin(self) -> None:
        try:
            self._ticket = self._dialect.begin_write(self._connection, waiting=self._waiting)
            if self._events:
                self._tx.events.expect()
        except self._dialect.failures as problem:
            raise lost(self._dialect, problem) from problem
        self._begun = True

    def _step(self, *texts: str) -> None:
        try:
            for text in texts:
                self._connection.post(text)
        except self._dialect.failures as problem:
            raise lost(self._dialect, problem) from problem


def lost(dialect: Dialect, problem: Exception) -> Lost:
    """What a failure between jobs means: the whole transaction is gone."""
    translated = dialect.translate(problem)
    if isinstance(translated, Lost):
        return translated
    broken = errors.StoreUnavailable(
        f"The database did not go on ({problem}); nothing was changed. Try again."
    )
    return Lost(broken, again=False)


class Writer:
    """Runs jobs in groups on a thread of its own, from `start` to `stop`."""

    def __init__(
        self,
        dialect: Dialect,
        committed: Callable[[int], None],
        seen: Callable[[], list[str] | None],
    ) -> None:
        self._dialect = dialect
        self._committed = committed
        self._seen = seen
        self._waiting: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="modelkeep-writer", daemon=True)
        self._connection: Connection | None = None
        self._gate = threading.Lock()
        self._open = True
        self._ended = False
        self._eventful = False  # the last group appended events, as the next one is likely to

    def start(self, connection: Connection) -> None:
        """Begin to work, with the connection that the database was opened with."""
        self._connection = connection
        self._thread.start()

    def submit(self, act: Callable[[Transaction], Any], outcome: Outcome) -> None:
        """Put a job into the line; what comes of it is told to `outcome`.

        Raises:
            Overloaded: too many jobs wait already.
            StoreUnavailable: the writer was stopped.
        """
        if self._waiting.qsize() >= QUEUE_MAX:
            raise errors.Overloaded(
                "Too many changes wait to be written; try again in a moment.", limit=QUEUE_MAX
            )
        job = _Job(act, outcome)
        with self._gate:  # so that nothing enters the line behind the mark of its end
            if not self._open:
                raise errors.StoreUnavailable("The store is closed; start the server again.")
            self._waiting.put(job)

    def stop(self) -> None:
        """Finish what waits, then end the thread and close the connection. May be called again."""
        with self._gate:
            first, self._open = self._open, False
        if first and self._thread.is_alive():
            self._waiting.put(None)
            self._thread.join()
        self._drop_connection()

    # --------------------------------------------------------------------------------------------- the thread

    def _work(self) -> None:
        while not self._ended:
            job = self._take(wait=True)
            if job is not None:
                self._write([job])

    def _take(self, *, wait: bool) -> _Job | None:
        """The next job that somebody still waits for; None when there is none, or the end of the line was
        met."""
        while not self._ended:
            try:
                job = self._waiting.get(wait)
            except queue.Empty:
                return None
            if job is None:
                self._ended = True
            elif job.outcome.set_running_or_notify_cancel():
                return job
        return None

    def _write(self, group: list[_Job]) -> None:
        """Write a group, which grows while it is written, and answer everybody in it."""
        last = None
        try:
            last = self._written(group)
        except Lost as lost:
            self._fail(group, lost.error)
        except BaseException as problem:  # noqa: BLE001  (this thread must outlive whatever a job does)
            _log.exception("store.group_failed")
            self._fail(group, problem)
        for job in group:
            job.answer()
        if last is not None:
            self._committed(last)

    def _fail(self, group: list[_Job], error: BaseException) -> None:
        self._rewind()
        for job in group:
            job.error = error

    def _written(self, group: list[_Job]) -> int | None:
        waiting = False
        for attempt in range(1, TRIES_MAX + 1):
            try:
                return self._try(group, waiting=waiting)
            except Lost as lost:
                self._rewind()
                if not lost.again or attempt == TRIES_MAX:
                    raise
                if lost.late and not waiting:
                    waiting = True  # nobody else is in the way: at once
                    continue
                time.sleep(PAUSE_S * 2**attempt * random.uniform(0.5, 1.0))
        raise AssertionError("the last attempt returns or raises")

    def _try(self, group: list[_Job], *, waiting: bool) -> int | None:
        """Run the group in one transaction; the number of its last event, if there are events."""
        ahead = self._eventful and self._dialect.reads_block  # else asking ahead gains nothing
        turn = _Turn(self._dialect, self._connected(), self._seen(), waiting=waiting, events=ahead)
        for job in group:
            turn.run(job)
        deadline = time.monotonic() + GROUP_S
        while len(group) < GROUP_JOBS_MAX and time.monotonic() < deadline:
            following = self._take(wait=False)
            if following is None:
                break
            group.append(following)
            turn.run(following)
        if not turn.begun:
            return None  # every job failed
        last = turn.flush()
        self._eventful = last is not None
        ticket = turn.ticket()
        try:
            self._dialect.commit(self._connected())
        except self._dialect.failures as problem:
            self._settle(ticket, lost(self._dialect, problem))
        return last

    def _settle(self, ticket: str | None, said: Lost) -> None:
        """A commit failed: return if it was carried out all the same, raise Lost if not or if nobody
        knows."""
        if ticket is None or self._dialect.usable(self._connected()):
            raise said  # the database itself said that nothing was kept
        # The answer was lost on the way, not necessarily the commit: ask what became of it.
        self._drop_connection()
        fate = self._fate(ticket)
        if fate is False:
            raise said
        if fate is None:
            unknown = f"{said.error.message} Whether the change was kept is unknown: look first."
            raise Lost(errors.StoreUnavailable(unknown, unknown=True), again=False)

    def _fate(self, ticket: str) -> bool | None:
        deadline = time.monotonic() + FATE_S
        while True:
            fate = self._dialect.fate(ticket)
            if fate is not None or time.monotonic() > deadline:
                return fate
            time.sleep(random.uniform(0.05, 0.2))

    def _connected(self) -> Connection:
        if self._connection is None:
            try:
                self._connection = self._dialect.connect(writing=True)
            except errors.ModelkeepError as problem:
                raise Lost(problem, again=False) from problem
        return self._connection

    def _rewind(self) -> None:
        """Undo what was not committed, on the connection as long as it lives.

        On SQLite it must not be closed for that: after a failed flush the next one to open the file could
        take what lies in the write-ahead file for committed; a connection that goes on writes over it.
        """
        connection = self._connection
        if connection is None:
            return
        try:
            connection.rollback()
        except self._dialect.failures:
            self._drop_connection()
        else:
            if not self._dialect.usable(connection):
                self._drop_connection()

    def _drop_connection(self) -> None:
        """Close the connection; the next group opens a new one."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(*self._dialect.failures):
                connection.close()
