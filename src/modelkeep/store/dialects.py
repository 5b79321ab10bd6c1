"""What the two dialects differ in: how to connect, how transactions begin and end, what the driver's errors
mean.

The only file that calls sqlite3 or psycopg. It decides nothing about what is stored; the rules for when to
begin, to commit and to try again are `database`'s and `writer`'s.

Errors leave here as ours. `ConstraintFailed` says that a rule of the schema refused a row, and column modules
turn it into the error a person reads; `Lost` says that the whole transaction is gone and whether trying again
makes sense.
"""

import hashlib
import os
import random
import shutil
import sqlite3
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, cast
from urllib.parse import urlsplit

from sqlalchemy import Dialect as Compiler
from sqlalchemy.dialects.postgresql.psycopg import dialect as postgres_compiler
from sqlalchemy.dialects.sqlite.pysqlite import dialect as sqlite_compiler

from modelkeep.core import errors
from modelkeep.store.statements import Row, Statements

# Limits of one database; each with the reason for its size.
BUSY_S = 10.0
"""How long a writer waits for other processes that write: a group takes milliseconds, a migration seconds."""
STATEMENT_S = 30.0
"""How long one statement may run on Postgres before the server gives it up."""
CONNECT_S = 5
"""How long a connection to Postgres may take to come about."""
SQLITE_MIN = (3, 37)
"""The first SQLite with strict tables."""
POSTGRES_MIN = 13
"""The first Postgres that can be asked what became of a transaction."""
CACHE_KIB = 8 * 1024
"""Pages of SQLite that one connection keeps; the operating system's cache stands behind it."""
WAL_KEPT_BYTES = 64 * 1024 * 1024
"""What is left of SQLite's write-ahead file after a burst."""
DISK_RESERVE_BYTES = 1024 * 1024
"""Below this much free space a failed write counts as a full disk, whatever the driver calls it."""

CHAIN_LOCK = int.from_bytes(hashlib.sha256(b"modelkeep.chain").digest()[:8], "big", signed=True)
"""The advisory lock that Postgres writers hold while they write: order of sequence is order of commit."""


class Cursor(Protocol):
    """The part of a driver's cursor that is used."""

    @property
    def rowcount(self) -> int: ...
    def fetchall(self) -> list[Row]: ...


class Connection(Protocol):
    """The part of a driver's connection that is used."""

    def execute(self, query: str, params: Sequence[Any] = ..., /) -> Cursor: ...
    def cursor(self) -> Any: ...
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
    """The transaction is gone with all its changes. `error` is what callers are told when it is not tried
    again."""

    def __init__(self, error: errors.ModelkeepError, *, again: bool) -> None:
        super().__init__(error.message)
        self.error = error
        self.again = again


class Dialect(Protocol):
    """One of the two databases.

    `reads_block` says that a read waits for a network and does not belong on an event loop; `renew_savepoint`
    moves the savepoint `job` forward, in as few exchanges as the driver allows.
    """

    name: str
    url: str
    reads_block: bool
    compiler: Compiler
    statements: Statements
    failures: tuple[type[Exception], ...]
    renew_savepoint: tuple[str, ...]

    def connect(self, *, writing: bool) -> Connection: ...
    def begin_read(self, connection: Connection) -> None: ...
    def begin_write(self, connection: Connection) -> str | None: ...
    def fate(self, ticket: str) -> bool | None: ...
    def in_transaction(self, connection: Connection) -> bool: ...
    def usable(self, connection: Connection) -> bool: ...
    def explain(self, query: str) -> str: ...
    def translate(self, problem: Exception) -> Exception: ...


def choose(url: str) -> Dialect:
    """The dialect of an address.

    Raises:
        InvalidSetting: the address is neither sqlite:///PATH nor postgresql://HOST/NAME.
        ExtraMissing: Postgres is asked for and its driver is not installed.
    """
    if url.startswith("sqlite:///") and len(url) > len("sqlite:///"):
        return Sqlite(url)
    scheme, separator, rest = url.partition("://")
    if separator and scheme in ("postgresql", "postgres", "postgresql+psycopg"):
        return Postgres(f"postgresql://{rest}")
    raise _no_address()


def _no_address() -> errors.InvalidSetting:
    return errors.InvalidSetting(
        "The database address must be sqlite:///PATH or postgresql://USER@HOST:PORT/NAME.", setting="database"
    )


class Sqlite:
    """SQLite in WAL mode: readers never wait, one writer at a time, and a commit is on disk when it
    returns."""

    name = "sqlite"
    reads_block = False
    failures: tuple[type[Exception], ...] = (sqlite3.Error,)
    renew_savepoint: tuple[str, ...] = ("release savepoint job", "savepoint job")

    def __init__(self, url: str) -> None:
        if sqlite3.sqlite_version_info < SQLITE_MIN:
            raise errors.StoreUnavailable(
                f"Python was built with SQLite {sqlite3.sqlite_version}; use one with SQLite 3.37 or newer."
            )
        self.url = url
        self.path = Path(url.removeprefix("sqlite:///"))
        self.compiler: Compiler = sqlite_compiler(paramstyle="qmark")
        self.statements = Statements(self.compiler)

    def connect(self, *, writing: bool) -> Connection:
        """Open the file; a new one can be read by its owner only, for it holds digests of tokens.

        Raises:
            StoreUnavailable, StorageFull, Corrupt: the file cannot be opened, or is not a database.
        """
        try:
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        except OSError as problem:
            raise errors.StoreUnavailable(
                f"The database {self.path} cannot be opened ({problem.strerror}); check the folder's rights.",
                path=str(self.path),
            ) from problem
        try:
            connection = sqlite3.connect(
                self.path,
                timeout=BUSY_S,
                isolation_level=None,
                check_same_thread=False,
                cached_statements=512,
            )
            try:
                self._set_up(connection, writing=writing)
            except BaseException:
                connection.close()
                raise
        except sqlite3.Error as problem:
            raise _plain(self.translate(problem)) from problem
        return cast(Connection, connection)

    def _set_up(self, connection: sqlite3.Connection, *, writing: bool) -> None:
        for pragma in (
            "synchronous = full",
            "foreign_keys = on",
            "trusted_schema = off",
            f"cache_size = -{CACHE_KIB}",
            "mmap_size = 0",  # a bad disk would end the process instead of a read, for a tenth of the time
            f"journal_size_limit = {WAL_KEPT_BYTES}",
        ):
            connection.execute(f"pragma {pragma}")
        if writing:
            self._use_wal(connection)
        else:
            connection.execute("pragma query_only = on")

    def _use_wal(self, connection: sqlite3.Connection) -> None:
        """Switch a new file to its write-ahead mode, which stays with it; the switch does not wait."""
        deadline = time.monotonic() + BUSY_S
        mode = ""
        while not mode:
            try:
                (mode,) = connection.execute("pragma journal_mode = wal").fetchone()
            except sqlite3.OperationalError as problem:
                if problem.sqlite_errorname != "SQLITE_BUSY" or time.monotonic() > deadline:
                    raise
                time.sleep(random.uniform(0.001, 0.02))
        if mode != "wal":
            raise errors.StoreUnavailable(
                f"The database {self.path} is not on a local disk, which SQLite needs; move it to one.",
                path=str(self.path),
            )

    def begin_read(self, connection: Connection) -> None:
        connection.execute("begin")

    def begin_write(self, connection: Connection) -> str | None:
        connection.execute("begin immediate")
        return None

    def fate(self, ticket: str) -> bool | None:
        return None

    def in_transaction(self, connection: Connection) -> bool:
        return cast(sqlite3.Connection, connection).in_transaction

    def usable(self, connection: Connection) -> bool:
        return True

    def explain(self, query: str) -> str:
        return f"explain query plan {query}"

    def translate(self, problem: Exception) -> Exception:
        """What an error of the driver means; a fault of our own (a wrong statement) stays what it is."""
        name = str(getattr(problem, "sqlite_errorname", None) or "")
        if isinstance(problem, sqlite3.IntegrityError):
            return ConstraintFailed(_SQLITE_RULES.get(name, "check"), str(problem).rpartition(": ")[2])
        base = "_".join(name.split("_")[:2])
        match base:
            case "SQLITE_FULL":
                return Lost(self._full(), again=False)
            case "SQLITE_BUSY" | "SQLITE_LOCKED" | "SQLITE_PROTOCOL":
                return Lost(
                    errors.StoreUnavailable(
                        f"Another process kept the database {self.path} locked for {BUSY_S:g} s; try again.",
                        path=str(self.path),
                    ),
                    again=False,
                )
            case "SQLITE_IOERR" | "SQLITE_CANTOPEN" | "SQLITE_READONLY":
                return Lost(self._full() if self._disk_is_full() else self._broken(problem), again=False)
            case "SQLITE_CORRUPT" | "SQLITE_NOTADB":
                return Lost(
                    errors.Corrupt(
                        f"The database {self.path} is damaged ({problem}); restore it from a backup.",
                        path=str(self.path),
                    ),
                    again=False,
                )
            case _:
                return problem

    def _full(self) -> errors.ModelkeepError:
        return errors.StorageFull(
            f"The disk with the database {self.path} is full; nothing was changed. Free space and try again.",
            path=str(self.path),
        )

    def _broken(self, problem: Exception) -> errors.ModelkeepError:
        return errors.StoreUnavailable(
            f"The database {self.path} cannot be read or written ({problem}); check the disk.",
            path=str(self.path),
        )

    def _disk_is_full(self) -> bool:
        try:
            return shutil.disk_usage(self.path.parent).free < DISK_RESERVE_BYTES
        except OSError:
            return False


_SQLITE_RULES: Mapping[str, str] = {
    "SQLITE_CONSTRAINT_UNIQUE": "unique",
    "SQLITE_CONSTRAINT_PRIMARYKEY": "unique",
    "SQLITE_CONSTRAINT_ROWID": "unique",
    "SQLITE_CONSTRAINT_FOREIGNKEY": "foreign_key",
    "SQLITE_CONSTRAINT_CHECK": "check",
    "SQLITE_CONSTRAINT_NOTNULL": "not_null",
}


class Postgres:
    """Postgres through psycopg: the same transactions, with other processes' writers in line behind one
    lock."""

    name = "postgresql"
    reads_block = True
    renew_savepoint: tuple[str, ...] = ("release savepoint job; savepoint job",)

    def __init__(self, url: str) -> None:
        try:
            import psycopg
        except ImportError as problem:
            raise errors.ExtraMissing(
                "The driver for Postgres is not installed; run: pip install 'modelkeep[postgres]'.",
                extra="postgres",
            ) from problem
        self._psycopg = psycopg
        self.failures: tuple[type[Exception], ...] = (psycopg.Error,)
        self.url = url
        try:
            parts = urlsplit(url)
            self._place = f"{parts.hostname or 'localhost'}:{parts.port or 5432}{parts.path}"
        except ValueError as problem:
            raise _no_address() from problem
        # SQLAlchemy left this constructor untyped.
        self.compiler: Compiler = postgres_compiler(paramstyle="format")  # type: ignore[no-untyped-call]
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
        try:
            connection = self._psycopg.connect(
                self.url,
                autocommit=True,  # transactions are begun and ended here, by name
                connect_timeout=CONNECT_S,
                application_name="modelkeep",
                keepalives_idle=10,
                keepalives_interval=5,
                keepalives_count=3,
                options=" ".join(f"-c {name}={value}" for name, value in options.items()),
            )
        except self._psycopg.ProgrammingError as problem:
            raise _no_address() from problem
        except self._psycopg.OperationalError as problem:
            raise self._unreachable(problem) from problem
        if connection.info.server_version < POSTGRES_MIN * 10_000:
            connection.close()
            raise errors.StoreUnavailable(
                f"The database {self._place} is older than Postgres {POSTGRES_MIN}; upgrade the server."
            )
        return cast(Connection, connection)

    def begin_read(self, connection: Connection) -> None:
        connection.execute("begin isolation level repeatable read read only")

    def begin_write(self, connection: Connection) -> str | None:
        """Begin, wait for the other writers, and give the transaction's number, by which its fate can be
        asked for."""
        cursor: Any = connection.execute(
            f"begin; select pg_advisory_xact_lock({CHAIN_LOCK}); select pg_current_xact_id()::text"
        )
        ticket = None
        while cursor.nextset():
            ticket = cursor.fetchone()[0]
        return cast("str | None", ticket)

    def fate(self, ticket: str) -> bool | None:
        """Whether a transaction was committed, asked on a new connection; None when that cannot be known."""
        try:
            connection = self.connect(writing=False)
            try:
                row = connection.execute("select pg_xact_status(%s::text::xid8)", (ticket,)).fetchall()[0]
            finally:
                connection.close()
        except (errors.StoreUnavailable, self._psycopg.Error):
            return None
        return {"committed": True, "aborted": False}.get(row[0])

    def in_transaction(self, connection: Connection) -> bool:
        status = cast(Any, connection).info.transaction_status
        return status in (
            self._psycopg.pq.TransactionStatus.INTRANS,
            self._psycopg.pq.TransactionStatus.INERROR,
        )

    def usable(self, connection: Connection) -> bool:
        return not cast(Any, connection).broken

    def explain(self, query: str) -> str:
        return f"explain {query}"

    def translate(self, problem: Exception) -> Exception:
        """What an error of the driver means; a fault of our own (a wrong statement) stays what it is."""
        kinds = self._psycopg.errors
        match problem:
            case kinds.IntegrityError():
                rule = problem.diag.constraint_name or problem.diag.column_name or ""
                return ConstraintFailed(_POSTGRES_RULES.get(problem.sqlstate or "", "check"), rule)
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

    def _unreachable(self, problem: Exception) -> errors.StoreUnavailable:
        why = (str(problem).strip().splitlines() or ["no reason given"])[-1].strip().rstrip(".")
        return errors.StoreUnavailable(
            f"The database {self._place} does not answer ({why}); start it or check its address.",
            database=self._place,
        )


_POSTGRES_RULES: Mapping[str, str] = {
    "23505": "unique",
    "23503": "foreign_key",
    "23514": "check",
    "23502": "not_null",
}


def _plain(problem: Exception) -> Exception:
    """The error itself where no transaction was under way that could be lost."""
    return problem.error if isinstance(problem, Lost) else problem
