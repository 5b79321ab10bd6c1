"""Which dialect an address names. The driver of the other one is not loaded."""

import importlib

from modelkeep.core import errors
from modelkeep.store.dialects import Dialect, no_address

DRIVER = "psycopg"
"""What Postgres is reached by; an extra."""


def choose(url: str) -> Dialect:
    """The dialect of an address.

    Raises:
        InvalidSetting: the address is neither sqlite:///PATH nor postgresql://HOST/NAME.
        ExtraMissing: Postgres is asked for and its driver is not installed.
    """
    if url.startswith("sqlite:///") and len(url) > len("sqlite:///"):
        from modelkeep.store.sqlite import Sqlite

        return Sqlite(url)
    scheme, separator, rest = url.partition("://")
    if not separator or scheme not in ("postgresql", "postgres", "postgresql+psycopg"):
        raise no_address()
    try:
        importlib.import_module(DRIVER)
    except ImportError as problem:
        raise errors.ExtraMissing(
            "The driver for Postgres is not installed; run: pip install 'modelkeep[postgres]'.",
            extra="postgres",
        ) from problem
    from modelkeep.store.postgres import Postgres

    return Postgres(f"postgresql://{rest}")
