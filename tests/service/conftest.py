"""What every test of the services gets: the fresh databases of the store's tests, on SQLite and on Postgres.

Worlds of a single column (models, people, clocks) stand beside its tests.
"""

from tests.store.conftest import database, database_url, dialect, sqlite_database

__all__ = ["database", "database_url", "dialect", "sqlite_database"]
