"""One transaction, as the column modules see it: run statements, append events, nothing else.

Beginning, committing and trying again belong to `database` (reads) and `writer` (writes); a job never sees
them.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Concatenate, ParamSpec

from modelkeep.store.dialects import Connection, Cursor, Dialect, Lost
from modelkeep.store.events import Events, Head
from modelkeep.store.statements import Prepared, Row, Statement

P = ParamSpec("P")

_CHANGING = ("INSERT", "UPDATE", "DELETE")
"""How statements begin that change something, also where they give rows."""


class _Foreseen(Exception):
    """Ends a function that was called for its first statement alone."""


class Kept(Exception):
    """Raised by a job that changed something and yet ends in an error: the changes stay, the caller gets
    `error`.

    A refused promotion is such a case: the refusal is an event of its own. `passing` says that the same
    request may well succeed later, so that nobody remembers the error as its answer.
    """

    def __init__(self, error: Exception, *, passing: bool = False) -> None:
        super().__init__(str(error))
        self.error = error
        self.passing = passing


class Asked:
    """The rows of a statement that was asked ahead."""

    __slots__ = ("_cursor", "_transaction")

    def __init__(self, transaction: "Transaction", cursor: Cursor) -> None:
        self._transaction = transaction
        self._cursor = cursor

    def all(self) -> list[Row]:
        """The rows, waited for now. Raises as `Transaction.all` does."""
        return self._transaction.answered(self._cursor)


class Transaction:
    """What a job is handed. It is valid until the job returns, on the thread that runs the job.

    Attributes:
        events: the event log: `append` in writes, the reading methods in both.
    """

    __slots__ = ("_connection", "_dialect", "_expected", "_expecting", "_refused", "_seen", "events")

    def __init__(
        self, dialect: Dialect, connection: Connection, *, writing: bool, seen: list[str] | None = None
    ) -> None:
        self._dialect = dialect
        self._connection = connection
        self._seen = seen
        self._refused: Exception | None = None
        self._expecting = False
        self._expected: dict[str, tuple[Sequence[Any], Cursor]] = {}
        self.events = Events(self, writing=writing)

    def all(self, statement: Statement, /, **params: Any) -> list[Row]:
        """Run a statement and give all its rows; bound its number of rows in the statement.

        Raises:
            ConstraintFailed: a rule of the schema refused a row. Nothing more can be run in this job then
                (Postgres sees to that, and so SQLite is not let either): let it end the job, or ask with
                `on conflict do nothing`.
            TypeError: a bind is missing or unknown.
        """
        text, places = self._bound(statement, params)
        try:
            return (self._foreseen(text, places) or self._connection.execute(text, places)).fetchall()
        except self._dialect.failures as problem:
            raise self._meaning(problem) from problem

    def one(self, statement: Statement, /, **params: Any) -> Row | None:
        """Run a statement that gives at most one row. Raises as `all` does."""
        rows = self.all(statement, **params)
        return rows[0] if rows else None

    def run(self, statement: Statement, /, **params: Any) -> int:
        """Run a statement and give the number of rows that it changed. Raises as `all` does."""
        text, places = self._bound(statement, params)
        self._expected.clear()
        try:
            return self._connection.execute(text, places).rowcount
        except self._dialect.failures as problem:
            raise self._meaning(problem) from problem

    def put(self, statement: Statement, /, **params: Any) -> None:
        """Run a statement of which nobody needs the number of rows: on Postgres it goes with the next one
        that somebody waits for.

        Raises as `run` does. A refusal that shows only with a later statement has the whole group run
        again, each statement waited for, so that it is raised here then.
        """
        text, places = self._bound(statement, params)
        self._expected.clear()
        try:
            self._connection.post(text, places)
        except self._dialect.failures as problem:
            raise self._meaning(problem) from problem

    def ask(self, statement: Statement, /, **params: Any) -> Asked:
        """Run a statement whose rows are needed later: on Postgres it goes with the next one that
        somebody waits for. Raises as `put` does."""
        text, places = self._bound(statement, params)
        try:
            return Asked(self, self._foreseen(text, places) or self._connection.ask(text, places))
        except self._dialect.failures as problem:
            raise self._meaning(problem) from problem

    def expect(
        self, read: Callable[Concatenate["Transaction", P], Any], /, *args: P.args, **kwargs: P.kwargs
    ) -> None:
        """Have the first statement that a function will ask go with the next one that somebody waits for:
        whoever calls the function later, with the same arguments, finds it answered.

        It is for functions of the store that begin with a statement, and only a hint: what is changed
        before the function is called has it ask anew, and where an exchange costs nothing it is not done.
        """
        if not self._dialect.reads_block:
            return
        self._expecting = True
        seen, self._seen = self._seen, None  # it is seen when it is called for
        try:
            read(self, *args, **kwargs)
        except _Foreseen:
            return
        finally:
            self._expecting, self._seen = False, seen

    def _foreseen(self, text: str, places: Sequence[Any]) -> Cursor | None:
        """The answer to a statement that was expected.

        Raises:
            _Foreseen: it is to be expected now.
        """
        if self._expecting:
            self._expected[text] = places, self._connection.ask(text, places)
            raise _Foreseen
        if not self._expected:
            return None
        if text.startswith(_CHANGING):
            self._expected.clear()
            return None
        known, answer = self._expected.pop(text, (None, None))
        return answer if known == places else None

    def answered(self, cursor: Cursor) -> list[Row]:
        """The rows of a statement that was asked ahead. Raises as `all` does."""
        try:
            return cursor.fetchall()
        except self._dialect.failures as problem:
            raise self._meaning(problem) from problem

    def many(self, statement: Statement, rows: Sequence[Mapping[str, Any]], /) -> int:
        """Run a statement once for each row of values and give the number of rows changed in all. Raises as
        `all` does.

        One text for all: no list may be bound.
        """
        if len(rows) <= 1:
            return self.run(statement, **rows[0]) if rows else 0
        prepared, places = self._bound_all(statement, rows)
        execute = self._connection.execute
        try:
            if prepared.several is not None:
                text = prepared.several.text
                return sum(execute(text, lists).rowcount for lists in prepared.several.carry(places))
            return self._connection.execute_many(prepared.text, places)
        except self._dialect.failures as problem:
            raise self._meaning(problem) from problem

    def put_many(self, statement: Statement, rows: Sequence[Mapping[str, Any]], /) -> None:
        """`many` where nobody needs the number of rows, as `put` is to `run`. Raises as `put` does."""
        if len(rows) <= 1:
            if rows:
                self.put(statement, **rows[0])
            return
        prepared, places = self._bound_all(statement, rows)
        try:
            if prepared.several is not None:
                for lists in prepared.several.carry(places):
                    self._connection.post(prepared.several.text, lists)
            else:
                self._connection.post_many(prepared.text, places)
        except self._dialect.failures as problem:
            raise self._meaning(problem) from problem

    def put_columns(self, statement: Statement, /, **columns: Sequence[Any]) -> None:
        """`put_many` of a plain insert, with a list for each bind instead of a mapping for each row: a
        hundred rows need no hundred mappings. All lists have one length. Raises as `put` does."""
        self.check_whole()
        self._expected.clear()
        prepared = self._dialect.statements.prepare(statement)
        places = prepared.bind_columns(columns)
        count = len(places[0])
        if not count:
            return
        if self._seen is not None:
            self._seen.append(prepared.text)
        try:
            if count == 1:
                self._connection.post(prepared.text, [column[0] for column in places])
            elif prepared.several is not None:
                for lists in prepared.several.carry_columns(places):
                    self._connection.post(prepared.several.text, lists)
            else:
                self._connection.post_many(prepared.text, list(zip(*places, strict=True)))
        except self._dialect.failures as problem:
            raise self._meaning(problem) from problem

    def explain(self, statement: Statement, /, **params: Any) -> str:
        """How the database would run a statement, for tests that a hot query uses its index."""
        text, places = self._dialect.statements.prepare(statement).bind(params)
        rows = self._connection.execute(self._dialect.explain(text), places).fetchall()
        return "\n".join(str(row[-1]) for row in rows)

    def _bound(self, statement: Statement, params: Mapping[str, Any]) -> tuple[str, Sequence[Any]]:
        if self._refused is not None:
            self.check_whole()
        text, places = self._dialect.statements.prepare(statement).bind(params)
        if self._seen is not None:
            self._seen.append(text)
        return text, places

    def _bound_all(
        self, statement: Statement, rows: Sequence[Mapping[str, Any]]
    ) -> tuple[Prepared, list[Sequence[Any]]]:
        self.check_whole()
        self._expected.clear()
        prepared = self._dialect.statements.prepare(statement)
        places = prepared.bind_all(rows)
        if self._seen is not None:
            self._seen.append(prepared.text)
        return prepared, places

    def _meaning(self, problem: Exception) -> Exception:
        self._refused = meaning = self._dialect.translate(problem)
        return meaning

    # ----------------------------------------------------------------------------------------- for the writer

    def undone(self, mark: Head | None) -> None:
        """The job was rolled back to where the chain ended at `mark`; the next one begins without its
        fault."""
        self._refused = None
        self._expected.clear()
        self.events.back_to(mark)

    def check_whole(self) -> None:
        """Raises RuntimeError after a statement of this job failed: what it did so far cannot be kept;
        Lost after the whole transaction was."""
        if isinstance(self._refused, Lost):
            raise self._refused
        if self._refused is not None:
            raise RuntimeError("a statement of this job failed; the job has to end with that error")
