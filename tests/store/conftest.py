"""What every test of the store gets: a fresh database on SQLite and, a second time, on a real Postgres.

`database` is open and has the schema; `database_url` is its address before anybody opened it; `empty_url` has
no schema yet. It holds no rows: a test writes what it reads.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from modelkeep.store import migrate
from modelkeep.store.database import Database

DIALECTS = ["sqlite", pytest.param("postgresql", marks=pytest.mark.external)]


def fill(url: str) -> None:
    """Give an empty database the schema, so that every Postgres test starts with a copy instead of a
    creation."""
    migrate.migrate(url)


@pytest.fixture(params=DIALECTS)
def dialect(request: pytest.FixtureRequest) -> str:
    """The name of the dialect under test; a test that uses it, or a fixture below, runs on both."""
    return str(request.param)


def _url(dialect: str, request: pytest.FixtureRequest, tmp_path: Path, *, filled: bool) -> Iterator[str]:
    if dialect == "sqlite":
        yield f"sqlite:///{tmp_path / 'store.db'}"
        return
    server = request.getfixturevalue("postgres_server")
    if filled:
        with server.lend(fill) as url:
            yield url
        return
    url = server.new_database()
    yield url
    server.drop_database(url)


@pytest.fixture
def database_url(dialect: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The address of a database for one test, on each dialect."""
    yield from _url(dialect, request, tmp_path, filled=True)


@pytest.fixture
def empty_url(dialect: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The address of a database without any table, on each dialect."""
    yield from _url(dialect, request, tmp_path, filled=False)


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """An open database for one test, on each dialect."""
    with Database.open(database_url) as opened:
        yield opened


@pytest.fixture
def sqlite_database(tmp_path: Path) -> Iterator[Database]:
    """An open SQLite database, for what is SQLite's own."""
    with Database.open(f"sqlite:///{tmp_path / 'store.db'}") as opened:
        yield opened
