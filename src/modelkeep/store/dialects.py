"""What the store asks of a database: how to connect, how transactions begin and end, what errors mean.

`sqlite` and `postgres` answer it, each the only file that calls its driver; `addresses` chooses between
them. Nothing here decides what is stored; the rules for when to begin, to commit and to try again are
`database`'s and `writer`'s.

Errors leave a dialect as ours. `ConstraintFailed` says that a rule of the schema refused a row, and
column modules turn it into the error a person reads; `Lost` says that the whole transaction is gone and
whether trying again makes sense.
"""

from collections.abc import Sequence
from typing import Any, Protocol

from sqlalchemy import Dialect as Compiler

from modelkeep.core import errors
from modelkeep.store.statements import Row, Statements

BUSY_S = 10.0
"""How long a writer waits for other processes that write: a group takes milliseconds, a migration seconds."""


class Cursor(Protocol):
    """What came of a statement. Of one that was only posted it is waited for when it is looked at."""

    @property
    def rowcount(self) -> int: ...
    def fetchall(self) -> list[Row]: ...


class Connection(Protocol):
    """One session with a database, used by one thread at a time.

    `execute` answers when the statement is done. `post` may leave it to go with the next one that is
    executed, where exchanges are dear; what is posted keeps its place, and is never left lying when a
    transaction ends. `ask` is `post` for rows: those of now, whatever changes later. `rollback` does nothing
    where there is nothing to undo.
    """

    @property
    def in_transaction(self) -> bool: ...
    def execute(self, query: str, params: Sequence[Any] = ..., /) -> Cursor: ...
    def execute_many(self, query: str, rows: Sequence[Sequence[Any]], /) -> int: ...
    def post(self, query: str, params: Sequence[Any] = ..., /) -> Cursor: ...
    def post_many(self, query: str, rows: Sequence[Sequence[Any]], /) -> None: ...
    def ask(self, query: str, params: Sequence[Any] = ..., /) -> Cursor: ...
    def rollback(self) -> None: ...
    def close(self) -> None: ...


class ConstraintFailed(errors.Conflict):
    """A rule of the schema refused a row: somebody else was faster, or what it points to is not there (any
    more).

    `kind` is unique, foreign_key, check or not_null; `rule` names the columns (SQLite) or the constraint
    (Postgres).
    """

    def __init__(self, kind: str, rule: str) -> None:
        super().__init__(
            "Another change came first, and the two do not go together; read the current state and try again."
        )
        self.kind = kind
        self.rule = rule


class Lost(Exception):
    """The transaction is gone with all its changes.

    Attributes:
        error: what callers are told when it is not tried again.
        again: whether trying again makes sense.
        late: a statement failed that had only been posted. Whose it was shows when everything is run again
            and each statement waited for.
        partly: nothing is wrong, but there was no transaction around what was read so far: the read has to be
            run again as a whole one.
    """

    def __init__(
        self, error: errors.ModelkeepError, *, again: bool, late: bool = False, partly: bool = False
    ) -> None:
        super().__init__(error.message)
        self.error = error
        self.again = again
        self.late = late
        self.partly = partly


class Dialect(Protocol):
    """One of the two databases.

    `reads_block` says that a read waits for a network and does not belong on an event loop; `renew_savepoint`
    moves the savepoint `job` forward. `begin_write` gives the answer in whose last column the
    transaction's number stands, by which its `fate` can be asked for, or None where there is no such
    question; with `waiting`, nothing in this transaction is left to go with the next statement. `begin_read`
    may leave the transaction out where a single statement is likely to follow, unless it has to be `whole`;
    the second statement is then Lost `partly`.
    """

    name: str
    url: str
    reads_block: bool
    compiler: Compiler
    statements: Statements
    failures: tuple[type[Exception], ...]
    renew_savepoint: tuple[str, ...]

    def connect(self, *, writing: bool) -> Connection: ...
    def begin_read(self, connection: Connection, *, whole: bool = ...) -> None: ...
    def end_read(self, connection: Connection) -> None: ...
    def undo_read(self, connection: Connection) -> None: ...
    def begin_write(self, connection: Connection, *, waiting: bool = False) -> Cursor | None: ...
    def commit(self, connection: Connection) -> None: ...
    def fate(self, ticket: str) -> bool | None: ...
    def usable(self, connection: Connection) -> bool: ...
    def explain(self, query: str) -> str: ...
    def translate(self, problem: Exception) -> Exception: ...


def no_address() -> errors.InvalidSetting:
    """The error for what is no address of a database."""
    return errors.InvalidSetting(
        "The database address must be sqlite:///PATH or postgresql://USER@HOST:PORT/NAME.", setting="database"
    )
