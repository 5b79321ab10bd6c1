"""What every test of the services gets: the fresh databases of the store's tests, on SQLite and on Postgres.

Worlds of a single column (models, people, clocks) stand beside its tests. `world` is a registry that is empty
yet, with `desk` and `catalog` on it.
"""

import pytest

from modelkeep.service.act import Desk
from modelkeep.service.catalog import Catalog
from modelkeep.store.database import Database
from tests.service.catalog_world import World
from tests.store.conftest import database, database_url, dialect, sqlite_database

__all__ = ["database", "database_url", "dialect", "sqlite_database"]


@pytest.fixture
def world(database: Database) -> World:
    """An empty registry on each dialect, with blobs in memory and a clock that only tests move."""
    return World(database)


@pytest.fixture
def desk(world: World) -> Desk:
    """The desk of that registry."""
    return world.desk


@pytest.fixture
def catalog(world: World) -> Catalog:
    """The catalog of that registry."""
    return world.catalog
