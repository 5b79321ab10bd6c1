"""A real SQLite that fails where it is told to: from some statement on, until it is mended, or because its
disk is full.

A failed statement raises what the driver raises for a bad disk, so that everything above meets the errors it
would meet in life; a full disk is SQLite's own refusal to grow the file. Nothing is decided here.
"""

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

from modelkeep.core import errors
from modelkeep.store import database as database_module
from modelkeep.store.database import Database
from modelkeep.store.dialects import Connection, Cursor
from modelkeep.store.sqlite import Sqlite

BROKEN = (errors.StoreUnavailable, errors.StorageFull)
"""What everybody is told while it lasts."""
PAGES_MAX = 2**30


class FailingSqlite(Sqlite):
    """`left` statements still go well (None: it is whole), and the `lasting` ones behind them do not."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.left: int | None = None
        self.lasting = 0
        self._writers: list[Connection] = []

    def meet(self) -> None:
        """A statement is about to run."""
        if self.left is None:
            return
        if self.left > 0:
            self.left -= 1
            return
        self.lasting -= 1
        if self.lasting <= 0:
            self.left = None
        problem = sqlite3.OperationalError("disk I/O error")
        problem.sqlite_errorname = "SQLITE_IOERR_WRITE"
        raise problem

    def connect(self, *, writing: bool) -> Connection:
        if self.left == 0:
            raise errors.StoreUnavailable("The disk with the database is gone.")
        real = super().connect(writing=writing)
        if writing:
            self._writers.append(real)
        return _Failing(real, self)

    def fill(self) -> None:
        """The disk is full: the file cannot grow."""
        for real in self._writers:
            pages = real.execute("pragma page_count").fetchall()[0][0]
            real.execute(f"pragma max_page_count = {pages}")

    def mend(self) -> None:
        """All is well again."""
        self.left = None
        for real in self._writers:
            real.execute(f"pragma max_page_count = {PAGES_MAX}")

    @contextmanager
    def looked_at(self) -> Iterator[None]:
        """For whoever looks from outside, it is whole."""
        left, self.left = self.left, None
        try:
            yield
        finally:
            self.left = left


class _Failing:
    """A connection to it."""

    def __init__(self, real: Connection, store: FailingSqlite) -> None:
        self._real = real
        self._store = store

    @property
    def in_transaction(self) -> bool:
        return self._real.in_transaction

    def execute(self, query: str, params: Sequence[Any] = (), /) -> Cursor:
        self._store.meet()
        return self._real.execute(query, params)

    def execute_many(self, query: str, rows: Sequence[Sequence[Any]], /) -> int:
        self._store.meet()
        return self._real.execute_many(query, rows)

    def post(self, query: str, params: Sequence[Any] = (), /) -> Cursor:
        self._store.meet()
        return self._real.post(query, params)

    def ask(self, query: str, params: Sequence[Any] = (), /) -> Cursor:
        self._store.meet()
        return self._real.ask(query, params)

    def post_many(self, query: str, rows: Sequence[Sequence[Any]], /) -> None:
        self._store.meet()
        self._real.post_many(query, rows)

    def rollback(self) -> None:
        self._real.rollback()

    def close(self) -> None:
        self._real.close()


@contextmanager
def failing(url: str) -> Iterator[tuple[FailingSqlite, Database]]:
    """A database on it, and what breaks it."""
    store = FailingSqlite(url)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(database_module, "choose", lambda _url: store)
        database = Database.open(url)
    with database:
        yield store, database
