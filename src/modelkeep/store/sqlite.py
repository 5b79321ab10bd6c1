"""SQLite as the store's database: the only file that calls sqlite3.

It connects, says how transactions begin and end, and what the driver's errors mean (`dialects` has the
questions). It decides nothing about what is stored.
"""

import os
import random
import shutil
import sqlite3
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import Dialect as Compiler
from sqlalchemy.dialects.sqlite.pysqlite import dialect as sqlite_compiler

from modelkeep.core import errors
from modelkeep.store.dialects import BUSY_S, Connection, ConstraintFailed, Cursor, Lost
from modelkeep.store.statements import Row, Statements

# Limits of one database file; each with the reason for its size.
SQLITE_MIN = (3, 37)
"""The first SQLite with strict tables."""
CACHE_KIB = 8 * 1024
"""Pages that one connection keeps; the operating system's cache stands behind it."""
WAL_KEPT_BYTES = 64 * 1024 * 1024
"""What is left of the write-ahead file after a burst."""
DISK_RESERVE_BYTES = 1024 * 1024
"""Below this much free space a failed write counts as a full disk, whatever the driver calls it."""


class _Rows:
    """Rows that were taken already, for a cursor of SQLite reads them only when they are asked for."""

    __slots__ = ("_rows",)

    def __init__(self, rows: list[Row]) -> None:
        self._rows = rows

    @property
    def rowcount(self) -> int:
        return len(self._rows)

    def fetchall(self) -> list[Row]:
        return self._rows


class File(sqlite3.Connection):
    """A connection to one file. An exchange costs nothing here, so what is posted is done at once."""

    def post(self, query: str, params: Sequence[Any] = (), /) -> Cursor:
        """Run a statement."""
        return self.execute(query, params)

    def post_many(self, query: str, rows: Sequence[Sequence[Any]], /) -> None:
        """Run a statement once for each row of values."""
        self.executemany(query, rows)

    def ask(self, query: str, params: Sequence[Any] = (), /) -> Cursor:
        """Run a statement and take its rows."""
        return _Rows(self.execute(query, params).fetchall())

    def execute_many(self, query: str, rows: Sequence[Sequence[Any]], /) -> int:
        """Run a statement once for each row of values, and give the number of rows changed in all."""
        return self.executemany(query, rows).rowcount


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
                factory=File,
            )
            try:
                self._set_up(connection, writing=writing)
            except BaseException:
                connection.close()
                raise
        except sqlite3.Error as problem:
            translated = self.translate(problem)
            raise (translated.error if isinstance(translated, Lost) else translated) from problem
        return connection

    def _set_up(self, connection: sqlite3.Connection, *, writing: bool) -> None:
        for pragma in (
            "synchronous = full",
            "foreign_keys = on",
            "trusted_schema = off",
            "secure_delete = fast",  # a page that is not needed any more is not written for that
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

    def begin_read(self, connection: Connection, *, whole: bool = False) -> None:
        connection.execute("begin")

    def end_read(self, connection: Connection) -> None:
        connection.execute("commit")

    def undo_read(self, connection: Connection) -> None:
        connection.rollback()

    def begin_write(self, connection: Connection, *, waiting: bool = False) -> Cursor | None:
        connection.execute("begin immediate")
        return None

    def commit(self, connection: Connection) -> None:
        connection.execute("commit")

    def fate(self, ticket: str) -> bool | None:
        return None

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
