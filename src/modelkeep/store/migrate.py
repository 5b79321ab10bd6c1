"""The schema's age: fill an empty database, bring an older one up to date, refuse a newer one.

A database that is up to date is recognised by one cheap look, for Alembic takes longer to import than a
server may take to start; it is imported only when there is something to migrate. An empty database gets the
tables of `TABLES` directly and is stamped with the newest revision; tests compare the result with all
revisions run one after the other.

SQLite is migrated when it is opened: one machine, one release. Postgres only on an explicit `migrate(url)`,
for there other replicas of the older release may still run. What this file does not do: define tables, or
move a schema backwards.
"""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sqlalchemy.schema import CreateIndex, CreateTable

from modelkeep.core import errors
from modelkeep.core.events import GENESIS
from modelkeep.core.values import DEFAULT_PROJECT
from modelkeep.store import import_tables, schema, tracking_tables, webhook_tables
from modelkeep.store.addresses import choose
from modelkeep.store.columns import metadata
from modelkeep.store.dialects import Connection, Dialect, Lost

REVISIONS: tuple[str, ...] = ("0001", "0002", "0003", "0004")
"""Every revision there is, oldest first; a test compares them with the files of `migrations/versions`."""

HEAD = REVISIONS[-1]

VERSION_TABLE = "modelkeep_schema"
"""Where the revision stands. Not Alembic's usual name, which any other program's database has too."""

FOLDER = Path(__file__).parent / "migrations"

TABLES = (schema, tracking_tables, webhook_tables, import_tables)
"""The modules that define tables: importing them fills `columns.metadata`."""

_OWN_TABLES = frozenset(metadata.tables)


def prepare(dialect: Dialect, connection: Connection) -> None:
    """Make sure that the schema is this release's, creating or migrating it where that may be done by itself.

    Raises:
        SchemaTooNew: the database was written by a newer release.
        InvalidSetting: the database holds tables of another program with the names of ours.
        StoreUnavailable: Postgres with an older schema.
    """
    with _translated(dialect):
        revision = _revision(dialect, connection)
        if revision == HEAD:
            return
        if revision is None:
            _create(dialect, connection)
            return
        _refuse_newer(revision)
        if dialect.reads_block:
            raise errors.StoreUnavailable(
                f"The database has the schema {revision} of an older release; this one needs {HEAD}. "
                "Run 'modelkeep server migrate' once, then start again.",
                found=revision,
                needed=HEAD,
            )
    _upgrade(dialect.url)


def migrate(url: str) -> tuple[str | None, str]:
    """Bring a database to this release's schema, on request.

    Returns:
        the revision before (None for an empty database) and after.

    Raises:
        SchemaTooNew, InvalidSetting, StoreUnavailable: as `prepare`.
    """
    dialect = choose(url)
    connection = dialect.connect(writing=True)
    try:
        with _translated(dialect):
            before = _revision(dialect, connection)
            if before is None:
                _create(dialect, connection)
                return None, HEAD
            _refuse_newer(before)
    finally:
        connection.close()
    if before != HEAD:
        _upgrade(url)
    return before, HEAD


def statements(dialect: Dialect) -> list[str]:
    """The statements that fill an empty database, in order."""
    texts = []
    for table in metadata.sorted_tables:
        texts.append(str(CreateTable(table).compile(dialect=dialect.compiler)))
        indexes = sorted(table.indexes, key=lambda index: str(index.name))
        texts += [str(CreateIndex(index).compile(dialect=dialect.compiler)) for index in indexes]
    texts.append(f"insert into chain_head (id, sequence, link) values (1, 0, '{GENESIS.hex()}')")
    texts.append(
        "insert into experiments (id, project, name, deleted, creation_time, last_update_time) "
        f"values (0, '{DEFAULT_PROJECT}', 'Default', 0, {int(time.time() * 1000)}, {int(time.time() * 1000)})"
    )
    return texts


def _create(dialect: Dialect, connection: Connection) -> None:
    dialect.begin_write(
        connection, waiting=True
    )  # of two processes that open an empty database, the second finds it filled
    try:
        if _revision(dialect, connection) is None:
            taken = sorted(_OWN_TABLES & _tables(dialect, connection))
            if taken:
                raise errors.InvalidSetting(
                    f"The database belongs to another program: its table {taken[0]!r} is not ours. "
                    "Give Modelkeep a database of its own.",
                    setting="database",
                )
            for text in statements(dialect):
                connection.execute(text)
            connection.execute(
                f"CREATE TABLE {VERSION_TABLE} ( version_num VARCHAR(32) NOT NULL, "
                f"CONSTRAINT {VERSION_TABLE}_pkc PRIMARY KEY (version_num) )"  # as Alembic makes it
            )
            connection.execute(f"insert into {VERSION_TABLE} (version_num) values ('{HEAD}')")
        connection.execute("commit")
    except BaseException:
        connection.rollback()
        raise


def _tables(dialect: Dialect, connection: Connection) -> set[str]:
    query = (
        "select tablename from pg_catalog.pg_tables where schemaname = current_schema()"
        if dialect.name == "postgresql"
        else "select name from sqlite_master where type = 'table'"
    )
    return {row[0] for row in connection.execute(query).fetchall()}


def _revision(dialect: Dialect, connection: Connection) -> str | None:
    """The revision that the database is stamped with; None when it is not ours (yet)."""
    if VERSION_TABLE not in _tables(dialect, connection):
        return None
    rows = connection.execute(f"select version_num from {VERSION_TABLE}").fetchall()
    return str(rows[0][0]) if rows else None


def _refuse_newer(revision: str) -> None:
    if revision not in REVISIONS:
        raise errors.SchemaTooNew(
            f"The database has the schema {revision!r}, which this release (schema {HEAD}) does not know: a "
            "newer release wrote it. Install that release, or restore a backup from before.",
            found=revision,
            known=HEAD,
        )


def _upgrade(url: str) -> None:
    """Run the missing revisions, in one transaction."""
    from alembic import command

    with _engine(url) as engine, engine.begin() as connection:
        command.upgrade(_config(connection), "head")


def _config(connection: Any) -> Any:
    from alembic.config import Config

    config = Config(attributes={"connection": connection, "version_table": VERSION_TABLE})
    config.set_main_option("script_location", str(FOLDER))
    config.set_main_option("path_separator", "os")
    return config


@contextlib.contextmanager
def _engine(url: str) -> Iterator[Any]:
    """An engine of SQLAlchemy, which nothing but a migration needs; transactions of SQLite include its
    DDL."""
    from sqlalchemy import create_engine, event, pool

    engine = create_engine(url.replace("postgresql://", "postgresql+psycopg://", 1), poolclass=pool.NullPool)
    if engine.dialect.name == "sqlite":

        @event.listens_for(engine, "connect")
        def _no_implicit_begin(connection: Any, _: Any) -> None:
            connection.isolation_level = None

        @event.listens_for(engine, "begin")
        def _begin(connection: Any) -> None:
            connection.exec_driver_sql("begin immediate")

    try:
        yield engine
    finally:
        engine.dispose()


@contextlib.contextmanager
def _translated(dialect: Dialect) -> Iterator[None]:
    try:
        yield
    except dialect.failures as problem:
        translated = dialect.translate(problem)
        raise (translated.error if isinstance(translated, Lost) else translated) from problem
