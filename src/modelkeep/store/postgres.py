"""Postgres as the store's database: the only files that call psycopg are this one and `postgres_session`.

It connects, says how transactions begin and end, and what the server's errors mean (`dialects` has the
questions). It decides nothing about what is stored. Other processes' writers stand in line behind one
lock, so that the order of events is the order of commits.
"""

import hashlib
from collections.abc import Mapping
from typing import Any, cast
from urllib.parse import urlsplit

import psycopg
from psycopg import errors as kinds
from sqlalchemy import Dialect as Compiler
from sqlalchemy import Float
from sqlalchemy.dialects.postgresql.psycopg import dialect as postgres_compiler

from modelkeep.core import errors
from modelkeep.store.dialects import BUSY_S, Connection, ConstraintFailed, Cursor, Lost, no_address
from modelkeep.store.postgres_session import NotSingle, Postponed, Session, Singles
from modelkeep.store.statements import Statements

# Limits of one session; each with the reason for its size.
STATEMENT_S = 30.0
"""How long one statement may run before the server gives it up."""
CONNECT_S = 5
"""How long a connection may take to come about."""
UNHEARD_MS = 30_000
"""How long the server's machine may acknowledge nothing."""
POSTGRES_MIN = 13
"""The first Postgres that can be asked what became of a transaction."""

CHAIN_LOCK = int.from_bytes(hashlib.sha256(b"modelkeep.chain").digest()[:8], "big", signed=True)
"""The advisory lock that writers hold while they write: order of sequence is order of commit."""

_BEGIN_READ = "begin isolation level repeatable read read only"
_BEGIN_WRITE = "begin isolation level read committed"  # whatever the role has as its default
_WAIT_FOR_WRITERS = f"select pg_advisory_xact_lock({CHAIN_LOCK}), pg_current_xact_id()::text"


class Postgres:
    """Postgres on libpq: the same transactions, in as few exchanges as there are answers that somebody
    needs."""

    name = "postgresql"
    reads_block = True
    renew_savepoint: tuple[str, ...] = ("release savepoint job", "savepoint job")
    failures: tuple[type[Exception], ...] = (psycopg.Error, Postponed, NotSingle)

    def __init__(self, url: str) -> None:
        self.url = url
        try:
            parts = urlsplit(url)
            self._place = f"{parts.hostname or 'localhost'}:{parts.port or 5432}{parts.path}"
        except ValueError as problem:
            raise no_address() from problem
        self._singles = Singles()
        self.compiler = _compiler()
        self.statements = Statements(self.compiler)

    def connect(self, *, writing: bool) -> Connection:
        """Open a session. A host that vanishes is noticed within seconds, on both ends.

        Raises:
            StoreUnavailable: the server does not answer, or refuses.
        """
        milliseconds = int(STATEMENT_S * 1000)
        options = {
            "statement_timeout": milliseconds,
            "idle_in_transaction_session_timeout": milliseconds,
            "lock_timeout": int(BUSY_S * 1000),
            "jit": "off",  # compiling a query takes longer than any of ours
        }
        if writing:
            options["synchronous_commit"] = "on"
            options["plan_cache_mode"] = "force_generic_plan"  # they go by keys: planning costs more
        else:
            options["default_transaction_read_only"] = "on"  # for what is sent without a transaction, too
        try:
            connection = psycopg.connect(
                self.url,
                autocommit=True,  # transactions are begun and ended here, by name
                connect_timeout=CONNECT_S,
                application_name="modelkeep",
                client_encoding="utf8",
                keepalives_idle=10,
                keepalives_interval=5,
                keepalives_count=3,
                tcp_user_timeout=UNHEARD_MS,  # and what was sent has to be acknowledged, which no probe asks
                options=" ".join(f"-c {name}={value}" for name, value in options.items()),
            )
        except psycopg.ProgrammingError as problem:
            raise no_address() from problem
        except psycopg.OperationalError as problem:
            raise self._unreachable(problem) from problem
        if connection.info.server_version < POSTGRES_MIN * 10_000:
            connection.close()
            raise errors.StoreUnavailable(
                f"The database {self._place} is older than Postgres {POSTGRES_MIN}; upgrade the server."
            )
        return Session(connection, self._singles)

    def begin_read(self, connection: Connection, *, whole: bool = False) -> None:
        """Have the first statement begin a transaction in which everything sees one moment; not where it is
        likely to be the only one, unless that has to be `whole`."""
        cast(Session, connection).enter(_BEGIN_READ, whole=whole)

    def end_read(self, connection: Connection) -> None:
        cast(Session, connection).leave("commit")

    def undo_read(self, connection: Connection) -> None:
        cast(Session, connection).leave("rollback")

    def begin_write(self, connection: Connection, *, waiting: bool = False) -> Cursor | None:
        """Have the first statement begin, and wait for the other writers; the answer has the
        transaction's number, by which its fate can be asked for."""
        cast(Session, connection).waiting = waiting
        connection.post(_BEGIN_WRITE)
        return connection.post(_WAIT_FOR_WRITERS)

    def commit(self, connection: Connection) -> None:
        """Commit, and believe only an answer that says so: the server ends a transaction that has failed with
        success, too, and calls it a rollback."""
        done = cast(Session, connection).execute("commit").done
        if done != b"COMMIT":
            raise kinds.InFailedSqlTransaction(f"the server ended a commit with {done!r}")

    def fate(self, ticket: str) -> bool | None:
        """Whether a transaction was committed, asked on a new connection; None when that cannot be known."""
        try:
            connection = self.connect(writing=False)
            try:
                row = connection.execute("select pg_xact_status($1::text::xid8)", (ticket,)).fetchall()[0]
            finally:
                connection.close()
        except (errors.StoreUnavailable, psycopg.Error):
            return None
        return {"committed": True, "aborted": False}.get(row[0])

    def usable(self, connection: Connection) -> bool:
        return cast(Session, connection).usable

    def explain(self, query: str) -> str:
        return f"explain {query}"

    def translate(self, problem: Exception) -> Exception:
        """What an error of the driver means; a fault of our own (a wrong statement) stays what it is."""
        match problem:
            case Postponed():
                return self._postponed(self.translate(problem.problem))
            case NotSingle():
                unclear = f"The database {self._place} was asked for more than was foreseen; try again."
                return Lost(errors.StoreUnavailable(unclear), again=True, partly=True)
            case kinds.IntegrityError():
                rule = problem.diag.constraint_name or problem.diag.column_name or ""
                return ConstraintFailed(_RULES.get(problem.sqlstate or "", "check"), rule)
            case kinds.SerializationFailure() | kinds.DeadlockDetected():
                busy = errors.StoreUnavailable(
                    f"Too many changes met in the database {self._place}; try again."
                )
                return Lost(busy, again=True)
            case kinds.DiskFull():
                full = (
                    f"The disk of the database {self._place} is full; nothing was changed. Free space first."
                )
                return Lost(errors.StorageFull(full), again=False)
            case kinds.QueryCanceled() | kinds.LockNotAvailable():
                slow = f"The database {self._place} took too long; nothing was changed. Try again."
                return Lost(errors.StoreUnavailable(slow), again=False)
            case kinds.ReadOnlySqlTransaction():
                standby = f"The database {self._place} takes no writes; give the address of the primary."
                return Lost(errors.StoreUnavailable(standby), again=False)
            case kinds.DataError():
                return errors.Invalid(
                    "The database cannot hold this value; remove NUL characters and huge numbers."
                )
            case kinds.OperationalError() | kinds.InterfaceError():
                return Lost(self._unreachable(problem), again=True)
            case _:
                return problem

    def _postponed(self, meaning: Exception) -> Lost:
        """What the failure of a statement means that nobody waited for: whose it was shows when all is
        repeated."""
        if isinstance(meaning, Lost):
            return meaning
        unclear = f"The database {self._place} refused a change ({meaning}); nothing was changed. Try again."
        return Lost(errors.StoreUnavailable(unclear), again=True, late=True)

    def _unreachable(self, problem: Exception) -> errors.StoreUnavailable:
        why = (str(problem).strip().splitlines() or ["no reason given"])[-1].strip().rstrip(".")
        return errors.StoreUnavailable(
            f"The database {self._place} does not answer ({why}); start it or check its address.",
            database=self._place,
        )


class _Double(Float[Any]):
    """A double that says so in the statement, as text and whole numbers do: values travel without a type."""

    render_bind_cast = True


def _compiler() -> Compiler:
    """What makes text of statements: with $1 and $2 for places, and a cast at each."""
    # SQLAlchemy left this constructor untyped.
    made: Compiler = postgres_compiler(paramstyle="numeric_dollar")  # type: ignore[no-untyped-call]
    made.colspecs = {**made.colspecs, Float: _Double}
    return made


_RULES: Mapping[str, str] = {
    "23505": "unique",
    "23503": "foreign_key",
    "23514": "check",
    "23502": "not_null",
}
