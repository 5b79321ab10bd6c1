"""One session with Postgres, on libpq itself: statements are sent together and answered in order.

psycopg opens the connection and knows what the server's errors are; statements do not pass its cursors,
which cost several times what the statement does. A session is always in libpq's pipeline mode, so that

- `post` leaves a statement to go with the next one that is executed (a begin, a savepoint, a change whose
  count nobody needs), and an exchange over the network carries them all;
- `leave` ends a transaction without waiting: the answer is taken before the next one that is waited for;
- a read that has always been one statement (`enter`) is sent without a transaction around it, which would
  cost the server as much again: one statement sees one moment by itself. Where there is a second one after
  all, `NotSingle` says so before it is sent, and the read has to be run again.

Where a statement fails the server skips the rest of the exchange, so nothing that was sent after it is
done, a commit least of all. `Postponed` says that the one that failed is not the one that was executed.

A statement is prepared when it comes the second time, and known by its text. Behind a pooler that hands
out another session for each transaction this needs one that keeps prepared statements (PgBouncer 1.21,
max_prepared_statements).

Values travel as text without types: the statement's own casts and columns say what they are. This file
does not know what a transaction is for; `postgres` does, and translates the errors.
"""

import select
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import psycopg
from psycopg import pq
from psycopg.adapt import Transformer
from psycopg.pq.abc import PGresult

from modelkeep.store.statements import Row

# Limits of one session; each with the reason for its size.
PREPARED_MAX = 256
"""Statements that the server keeps ready: more than a deployment uses again and again, at some 10 KiB
each."""
ONCE_MAX = 256
"""Texts that came once and are prepared when they come again."""
ANSWER_S = 60.0
"""How long nothing may come or go while an answer is due: twice what the server gives one statement."""
SINGLES_MAX = 512
"""Texts of which it is known whether they come alone; past that all are forgotten and learned anew."""
SINGLE_MAX, SINGLE_LEAST, NOT_SINGLE = 4, 2, 3
"""A text counts one up to the first each time it came alone, and the third down each time it did not. From
the second on it is taken to come alone: being wrong costs a run, so it must be right three times in four."""
EXCHANGE_ROWS_MAX = 1_000
"""Rows of `execute_many` that are sent before their answers are taken: both ends hold them in memory."""

_DONE = (pq.ExecStatus.TUPLES_OK, pq.ExecStatus.COMMAND_OK, pq.ExecStatus.EMPTY_QUERY)
_FATAL_ERROR = pq.ExecStatus.FATAL_ERROR
_PIPELINE_SYNC = pq.ExecStatus.PIPELINE_SYNC
_CONNECTED = pq.ConnStatus.OK
_UNDER_WAY = (pq.TransactionStatus.INTRANS, pq.TransactionStatus.INERROR)


class Postponed(Exception):
    """A statement failed that had only been posted; `problem` is what the server said."""

    def __init__(self, problem: psycopg.Error) -> None:
        super().__init__(str(problem))
        self.problem = problem


class NotSingle(Exception):
    """A read that was sent as one statement has another: it saw no transaction, and has to begin anew."""


class Singles:
    """Whether reads that begin with a text tend to be that one statement. Shared by sessions and threads: a
    count that is lost does no harm."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}

    def likely(self, query: str) -> bool:
        """Whether it is going to come alone."""
        return self._counts.get(query, 0) >= SINGLE_LEAST

    def note(self, query: str, *, alone: bool) -> None:
        """It came alone, or did not."""
        count = self._counts.get(query, 0)
        if len(self._counts) >= SINGLES_MAX and query not in self._counts:
            self._counts.clear()
        self._counts[query] = min(count + 1, SINGLE_MAX) if alone else max(count - NOT_SINGLE, -SINGLE_MAX)


class _Read:
    """A read under way: what begins its transaction, and how it went. `first` is the text it began with."""

    __slots__ = ("alone", "bare", "begin", "first", "whole")

    def __init__(self, begin: str, *, whole: bool) -> None:
        self.begin = begin
        self.whole = whole
        self.first: str | None = None
        self.alone = self.bare = False


class Answer:
    """What comes of one statement; of a posted one it is waited for when it is looked at."""

    __slots__ = ("_session", "awaited", "result")

    def __init__(self, session: "Session", *, awaited: bool) -> None:
        self._session = session
        self.awaited = awaited
        self.result: PGresult | None = None

    @property
    def rowcount(self) -> int:
        """The number of rows that the statement gave or changed."""
        return self._there().command_tuples or 0

    @property
    def done(self) -> bytes:
        """What the server says that it has done, such as COMMIT."""
        return self._there().command_status or b""

    def fetchall(self) -> list[Row]:
        """All rows of the statement."""
        return self._session.rows(self._there())

    def _there(self) -> PGresult:
        if self.result is None:
            self._session.exchange()
            if self.result is None:
                raise psycopg.InternalError("the statement was undone before it was sent")
        return self.result


class _Prepares:
    """Stands in line for the answer to a preparation."""

    __slots__ = ("awaited", "query")

    def __init__(self, query: str, *, awaited: bool) -> None:
        self.query = query
        self.awaited = awaited


_Due = Answer | _Prepares | None
"""What an answer is expected for; None is the end of an exchange."""


class Session:
    """A connection that psycopg opened, in pipeline mode from here on. For one thread at a time.

    Attributes:
        waiting: whether `post` waits, too, so that each error meets the statement it is about.
        waits: how the network is waited for where not by holding up the thread (`on_loop`).
    """

    def __init__(self, connection: psycopg.Connection[Any], singles: Singles | None = None) -> None:
        self._singles = singles if singles is not None else Singles()
        self._read: _Read | None = None
        self.waiting = False
        self.waits: Callable[[bool, float], bool] | None = None
        self._connection = connection  # ends the session when it is forgotten, so it is kept
        self._line = connection.pgconn
        self._line.enter_pipeline_mode()
        self._answers = select.poll()
        self._answers.register(self._line.socket, select.POLLIN)
        self._both_ways = select.poll()
        self._both_ways.register(self._line.socket, select.POLLIN | select.POLLOUT)
        self._rows = Transformer()
        self._posted: list[tuple[Answer, str, list[bytes | None]]] = []
        self._due: deque[_Due] = deque()
        self._prepared: OrderedDict[str, bytes] = OrderedDict()
        self._once: OrderedDict[str, None] = OrderedDict()
        self._named = 0

    @property
    def usable(self) -> bool:
        """Whether the line to the server still stands, as far as is known."""
        return self._line.status == _CONNECTED

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction was begun, and neither ended nor left."""
        return not self._due and self._line.transaction_status in _UNDER_WAY

    @property
    def descriptor(self) -> int:
        """The number of the socket to the server."""
        return self._line.socket

    def absorb(self) -> None:
        """Take in what came while nobody waited: the answer to a transaction that was left, or the end.

        Raises:
            psycopg.OperationalError: the line is dead.
        """
        self._line.consume_input()

    # -------------------------------------------------------------------------------------------- statements

    def execute(self, query: str, params: Sequence[Any] = (), /) -> Answer:
        """Run a statement behind what was posted, and wait for it.

        Raises:
            psycopg.Error: this statement failed, or the line is dead.
            Postponed: one that was posted before it failed.
        """
        answer = Answer(self, awaited=True)
        self._posted.append((answer, query, _texts(params)))
        self.exchange()
        return answer

    def execute_many(self, query: str, rows: Sequence[Sequence[Any]], /) -> int:
        """Run a statement once for each row of values, and give the number of rows changed in all. Raises as
        `execute` does."""
        changed = 0
        if query not in self._prepared:
            self._once[query] = None  # worth being prepared
        for start in range(0, len(rows), EXCHANGE_ROWS_MAX):
            answers = []
            for row in rows[start : start + EXCHANGE_ROWS_MAX]:
                answer = Answer(self, awaited=True)
                self._posted.append((answer, query, _texts(row)))
                answers.append(answer)
            self.exchange()
            changed += sum(answer.rowcount for answer in answers)
        return changed

    def post(self, query: str, params: Sequence[Any] = (), /) -> Answer:
        """Have a statement go with the next one that is executed. A value that cannot be sent is an error at
        once."""
        if self.waiting:
            return self.execute(query, params)
        answer = Answer(self, awaited=False)
        self._posted.append((answer, query, _texts(params)))
        return answer

    def post_many(self, query: str, rows: Sequence[Sequence[Any]], /) -> None:
        """`post` for each row of values; where there are very many, they are waited for."""
        if self.waiting or len(rows) > EXCHANGE_ROWS_MAX:
            self.execute_many(query, rows)
            return
        if query not in self._prepared:
            self._once[query] = None  # worth being prepared
        self._posted += [(Answer(self, awaited=False), query, _texts(row)) for row in rows]

    ask = post

    def enter(self, begin: str, *, whole: bool) -> None:
        """Have the next statement begin a read, which ends with `leave`. Unless it has to be a `whole`
        transaction, it may be sent alone."""
        self._read = _Read(begin, whole=whole)

    def leave(self, query: str) -> None:
        """End the transaction with this statement, and do not wait for the answer; if nothing of it was
        sent yet, forget it."""
        self._posted.clear()
        read, self._read = self._read, None
        if read is not None and read.first is not None:
            self._singles.note(read.first, alone=read.alone)
        if self.in_transaction:
            self._posted.append((Answer(self, awaited=False), query, []))
            self._send_all()

    def rollback(self) -> None:
        """Undo the transaction, if there is one, and forget what was posted."""
        self._posted.clear()
        self._read = None
        if self.in_transaction:
            self.execute("rollback")

    def close(self) -> None:
        """End the session; the server undoes what was not committed."""
        self._connection.close()

    def rows(self, result: PGresult) -> list[Row]:
        """The rows of an answer."""
        count = result.ntuples
        if not count:
            return []
        self._rows.set_pgresult(result)
        return self._rows.load_rows(0, count, tuple)

    # --------------------------------------------------------------------------------------------- exchanges

    def exchange(self) -> None:
        """Send what was posted, and take every answer that is due. Raises as `execute` does."""
        if self._read is not None and self._posted:
            self._begin(self._read)
        try:
            self._send_all()
            failed = self._take_all()
        except BaseException:
            self.close()  # nobody knows which answers are still to come
            raise
        if failed is None:
            return
        awaited, problem = failed
        if awaited or not self.usable:
            raise problem
        raise Postponed(problem) from problem

    def _begin(self, read: _Read) -> None:
        """See to it that what is sent is in the transaction that it needs.

        Raises:
            NotSingle: it needs one, and there is none.
        """
        if read.first is not None:
            read.alone = False
            if read.bare:
                raise NotSingle
            return
        read.first = self._posted[0][1]
        read.alone = len(self._posted) == 1
        read.bare = read.alone and not read.whole and self._singles.likely(read.first)
        if not read.bare:
            self._posted.insert(0, (Answer(self, awaited=False), read.begin, []))

    def _send_all(self) -> None:
        for answer, query, values in self._posted:
            self._send(answer, query, values)
        self._posted.clear()
        line = self._line
        line.pipeline_sync()
        self._due.append(None)
        while line.flush():
            # The server may have to be listened to before it takes more.
            self._wait(self._both_ways, sending=True)
            line.consume_input()

    def _wait(self, ready: "select.poll", *, sending: bool = False) -> None:
        """Wait for the network; others run meanwhile, for nothing else here waits.

        Raises:
            psycopg.OperationalError: nothing came for too long.
        """
        waits = self.waits
        if not (ready.poll(ANSWER_S * 1_000) if waits is None else waits(sending, ANSWER_S)):
            raise psycopg.OperationalError(f"no answer for {ANSWER_S:g} s")

    def _send(self, answer: Answer, query: str, values: list[bytes | None]) -> None:
        name = self._prepared.get(query)
        if name is not None:
            self._prepared.move_to_end(query)
            self._line.send_query_prepared(name, values)
        elif query in self._once:
            name = self._prepare(query, awaited=answer.awaited)
            self._line.send_query_prepared(name, values)
        else:
            self._once[query] = None
            if len(self._once) > ONCE_MAX:
                self._once.popitem(last=False)
            self._line.send_query_params(query.encode(), values)
        self._due.append(answer)

    def _prepare(self, query: str, *, awaited: bool) -> bytes:
        del self._once[query]
        self._named += 1
        name = b"s%d" % self._named
        self._line.send_prepare(name, query.encode())
        self._due.append(_Prepares(query, awaited=awaited))
        self._prepared[query] = name
        if len(self._prepared) > PREPARED_MAX:
            _, old = self._prepared.popitem(last=False)
            self._line.send_query_params(b"deallocate " + old, None)
            self._due.append(Answer(self, awaited=False))
        return name

    def _take_all(self) -> tuple[bool, psycopg.Error] | None:
        """Take all answers that are due. The first that is an error is given, and whether it was awaited."""
        line, due = self._line, self._due
        failed = None
        while due:
            while line.is_busy():
                self._wait(self._answers)
                line.consume_input()
            result = line.get_result()
            if result is None:
                raise psycopg.OperationalError(line.get_error_message())
            expected, status = due.popleft(), result.status
            if expected is None:
                if status != _PIPELINE_SYNC:
                    raise psycopg.OperationalError(f"an unexpected answer of the server ({status})")
                continue
            if status in _DONE:
                if type(expected) is Answer:
                    expected.result = result
            else:
                if type(expected) is _Prepares:
                    self._prepared.pop(expected.query, None)
                if failed is None:
                    failed = expected.awaited, _error(result, status)
                    if line.status != _CONNECTED:
                        raise psycopg.OperationalError(str(failed[1])) from failed[1]
            if line.get_result() is not None:  # each answer is followed by nothing, before the next
                raise psycopg.OperationalError("an unexpected second answer of the server")
        return failed


def _error(result: PGresult, status: int) -> psycopg.Error:
    if status == _FATAL_ERROR:
        return psycopg.errors.error_from_result(result)
    return psycopg.OperationalError(f"an unexpected answer of the server ({status})")


# ----------------------------------------------------------------------------------------------------- values


def _text(value: str) -> bytes:
    data = value.encode()
    if b"\0" in data:  # libpq would end the value there
        raise psycopg.DataError("text for Postgres cannot contain NUL characters")
    return data


def _whole(value: int) -> bytes:
    return b"%d" % value


def _double(value: float) -> bytes:
    return float.__repr__(value).encode()


def _flag(value: bool) -> bytes:
    return b"t" if value else b"f"


def _array(values: Sequence[str | int | float | None]) -> bytes:
    kinds = set(map(type, values))
    if kinds == {int} or kinds == {float}:
        return ("{" + ",".join(map(repr, values)) + "}").encode()
    return _text("{" + ",".join(map(_member, values)) + "}")


def _member(value: str | float | None) -> str:
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    data = _any_text(value)
    return "null" if data is None else data.decode()


def _binary(value: bytes) -> bytes:
    return b"\\x" + value.hex().encode()


_AS_TEXT: dict[type, Callable[[Any], bytes]] = {
    str: _text,
    int: _whole,
    float: _double,
    bool: _flag,
    bytes: _binary,
    list: _array,
    tuple: _array,
}


def _texts(params: Sequence[Any]) -> list[bytes | None]:
    """Values as the server reads them.

    Raises:
        psycopg.DataError: a text holds a NUL character.
        TypeError: a value is neither text, nor a number.
    """
    try:
        return [None if value is None else _AS_TEXT[type(value)](value) for value in params]
    except KeyError:
        return [_any_text(value) for value in params]


def _any_text(value: Any) -> bytes | None:
    if value is None:
        return None
    for kind in (bool, str, int, float):  # members of enumerations, for the most part
        if isinstance(value, kind):
            return _AS_TEXT[kind](kind(value) if kind is not str else str.__str__(value))
    if isinstance(value, Iterable) and not isinstance(value, bytes | bytearray | memoryview):  # a set, keys
        return _array(list(value))
    raise TypeError(f"a value of the type {type(value).__name__} cannot be sent to Postgres")
