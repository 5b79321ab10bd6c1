"""The age of a schema: new, current, older, newer, somebody else's; and that all ways to it lead to one.

What the tables are for is tested by the columns that use them.
"""

import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.script import ScriptDirectory
from sqlalchemy import Column, Table, Text, inspect, select, text
from sqlalchemy.schema import MetaData

from modelkeep.core import errors
from modelkeep.core.events import GENESIS
from modelkeep.store import migrate, schema
from modelkeep.store.addresses import choose
from modelkeep.store.database import Database

BEFORE = migrate.HEAD
NEXT = '''"""A step of the next release. It adds one table."""

import sqlalchemy as sa
from alembic import op

revision = "9000"
down_revision = "{head}"


def upgrade() -> None:
    """Add a table."""
    op.create_table("novelties", sa.Column("id", sa.Text(), primary_key=True))
    op.execute("insert into novelties (id) values ('kept')")
    {more}
'''


@pytest.fixture
def next_release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Be the release after this one for one test: it has one revision more, in the file given."""
    folder = tmp_path / "migrations"
    shutil.copytree(migrate.FOLDER, folder, ignore=shutil.ignore_patterns("__pycache__"))
    path = folder / "versions" / "r9000_novelties.py"
    path.write_text(NEXT.format(more="pass", head=BEFORE))
    monkeypatch.setattr(migrate, "FOLDER", folder)
    monkeypatch.setattr(migrate, "REVISIONS", (*migrate.REVISIONS, "9000"))
    monkeypatch.setattr(migrate, "HEAD", "9000")
    return path


def run_revisions(url: str) -> None:
    """Build the schema the long way: every revision, one after the other."""
    with migrate._engine(url) as engine, engine.begin() as connection:
        command.upgrade(migrate._config(connection), "head")


def described(url: str) -> dict[str, Any]:
    """Everything a database says of its schema, in one form that can be compared."""
    with migrate._engine(url) as engine, engine.connect() as connection:
        if engine.dialect.name == "sqlite":
            rows = connection.execute(text("select name, sql from sqlite_master where sql is not null")).all()
            # In which order the constraints of a table stand means nothing, nor does white space.
            return {name: sorted(re.split(r", | \) ", " ".join(sql.split()))) for name, sql in rows}
        return {
            kind: sorted(str(row) for row in connection.execute(text(query)).all())
            for kind, query in POSTGRES_CATALOG.items()
        }


POSTGRES_CATALOG = {
    "columns": "select table_name, column_name, data_type, is_nullable, column_default, collation_name "
    "from information_schema.columns where table_schema = 'public'",
    "indexes": "select indexdef from pg_indexes where schemaname = 'public'",
    "rules": "select conrelid::regclass, conname, pg_get_constraintdef(oid) from pg_constraint "
    "where conrelid <> 0",
}


def tables(database: Database) -> set[str]:
    """The tables that are there, read through the store itself."""
    with migrate._engine(database._dialect.url) as engine, engine.connect() as connection:
        return set(inspect(connection).get_table_names())


def test_a_new_schema_is_the_migrated_schema(
    empty_url: str, request: pytest.FixtureRequest, tmp_path: Path, dialect: str
) -> None:
    """What a new database gets at once is what all revisions together make, to the last constraint."""
    with Database.open(empty_url) as database:
        assert database.dialect == dialect
    other = f"sqlite:///{tmp_path / 'other.db'}"
    if dialect == "postgresql":
        other = request.getfixturevalue("postgres_server").new_database()
    run_revisions(other)
    assert described(other) == described(empty_url)
    with Database.open(other) as database:
        assert database.read(lambda tx: tx.events.head()) == (0, GENESIS)


def test_every_revision_is_known(tmp_path: Path) -> None:
    """The revisions that a start knows without Alembic are those that Alembic finds, in one line."""
    script = ScriptDirectory(str(migrate.FOLDER))
    walked = [revision.revision for revision in script.walk_revisions()]
    assert tuple(reversed(walked)) == migrate.REVISIONS
    assert script.get_heads() == [migrate.HEAD]


def test_the_schema_obeys_its_own_rules() -> None:
    """Every table has a primary key and is strict, no column fills itself, every name fits Postgres."""
    for table in schema.metadata.sorted_tables:
        assert table.primary_key.columns, table.name
        assert table.dialect_options["sqlite"]["strict"], table.name
        for column in table.columns:
            assert column.default is None, column
            assert column.server_default is None, column
        for rule in (*table.constraints, *table.indexes):
            assert len(str(rule.name)) <= 63, f"{rule.name} is cut by Postgres"


def test_a_current_database_opens_without_alembic(tmp_path: Path) -> None:
    """Alembic takes longer to import than a server may take to start, so it is imported only to migrate."""
    url = f"sqlite:///{tmp_path / 'store.db'}"
    program = (
        "import sys; from modelkeep.store.database import Database\n"
        f"for _ in range(2): Database.open({url!r}).close()\n"
        "print(*(m for m in ('alembic', 'sqlalchemy.orm', 'psycopg') if m in sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.split() == []


def test_many_open_an_empty_database_at_once(empty_url: str) -> None:
    """Of servers that start together on an empty database one fills it, and all find it filled."""
    with ThreadPoolExecutor(6) as pool:
        opened = list(pool.map(lambda _: Database.open(empty_url), range(6)))
    for database in opened:
        assert database.read(lambda tx: tx.events.head().sequence) == 0
        database.close()


def test_a_newer_schema_is_refused(database_url: str) -> None:
    """A database from a newer release is left alone, and the error says what to do."""
    with Database.open(database_url):
        pass
    dialect = choose(database_url)
    connection = dialect.connect(writing=True)
    connection.execute(f"update {migrate.VERSION_TABLE} set version_num = '9999'")
    connection.close()
    before = described(database_url)
    for act in (Database.open, migrate.migrate):
        with pytest.raises(errors.SchemaTooNew, match="newer release"):
            act(database_url)
    assert described(database_url) == before


def test_a_database_of_another_program_is_refused(empty_url: str) -> None:
    """Where tables with our names were made by somebody else, nothing is added to them."""
    foreign = MetaData()
    Table("endpoints", foreign, Column("id", Text, primary_key=True))
    with migrate._engine(empty_url) as engine, engine.begin() as connection:
        foreign.create_all(connection)
    before = described(empty_url)
    for act in (Database.open, migrate.migrate):
        with pytest.raises(errors.InvalidSetting, match="endpoints"):
            act(empty_url)
    assert described(empty_url) == before


def test_migrating_says_what_it_did(empty_url: str) -> None:
    """An explicit migration fills an empty database, and does nothing the second time."""
    assert migrate.migrate(empty_url) == (None, migrate.HEAD)
    assert migrate.migrate(empty_url) == (migrate.HEAD, migrate.HEAD)


def test_an_older_database_is_migrated(
    database_url: str, dialect: str, request: pytest.FixtureRequest
) -> None:
    """SQLite is migrated by the start, Postgres on request only; both keep what was in them."""
    with Database.open(database_url) as database:
        row = {"key": "installation", "value": "42", "updated_at": ""}
        database.write(lambda tx: tx.run(schema.settings.insert(), **row)).result(10)
    request.getfixturevalue("next_release")
    if dialect == "postgresql":
        with pytest.raises(errors.StoreUnavailable, match="modelkeep server migrate"):
            Database.open(database_url)
        assert migrate.migrate(database_url) == (BEFORE, "9000")
    with Database.open(database_url) as database:
        assert "novelties" in tables(database)
        assert database.read(lambda tx: tx.one(select(schema.settings.c.value))) == ("42",)
    assert migrate.migrate(database_url) == ("9000", "9000")


def test_a_migration_that_fails_changes_nothing(database_url: str, request: pytest.FixtureRequest) -> None:
    """A revision is whole or not at all, on both dialects, so that the older release goes on working."""
    with Database.open(database_url):
        pass
    before = described(database_url)
    revision = request.getfixturevalue("next_release")
    revision.write_text(NEXT.format(more='op.execute("insert into nowhere values (1)")', head=BEFORE))
    with pytest.raises(Exception, match="nowhere"):
        migrate.migrate(database_url)
    assert described(database_url) == before
