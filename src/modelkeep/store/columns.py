"""What every table is made of: the metadata that all of them share, and makers of columns that mean the same
on both dialects.

Column types are plain, because statements run on the driver directly (see `statements`): text, whole numbers,
doubles, bytes. The tables stand in `schema` and in the modules beside it that are named in `migrate.TABLES`;
nothing here knows one.
"""

from typing import Any

from sqlalchemy import (
    REAL,
    BigInteger,
    CheckConstraint,
    Column,
    Double,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    Text,
    text,
)

HEAD_CHARACTERS = 100
"""How much of a long value an index holds (`value_head`): a B-tree entry of Postgres has at most 2,704
bytes."""

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

_WORDS = Text(collation="C").with_variant(Text(), "sqlite")
_WHOLE = BigInteger().with_variant(Integer(), "sqlite")
_BYTES = LargeBinary()
_DOUBLE: Double[float] = Double().with_variant(REAL(), "sqlite")


def words(name: str, *more: Any, null: bool = False) -> Column[str]:
    """A text, compared by bytes on both dialects."""
    return Column(name, _WORDS, *more, nullable=null)


def whole(name: str, *more: Any, null: bool = False) -> Column[int]:
    """A whole number of 64 bits; it never fills itself."""
    return Column(name, _WHOLE, *more, nullable=null, autoincrement=False)


def double(name: str, *, null: bool = False) -> Column[float]:
    """A double. SQLite makes null of NaN, so a column that may be NaN has a flag beside it."""
    return Column(name, _DOUBLE, nullable=null)


def content(name: str) -> Column[bytes]:
    """Bytes, such as those of a small file."""
    return Column(name, _BYTES, nullable=False)


def flag(name: str) -> Column[int]:
    """A yes or no, as 1 or 0."""
    return Column(name, _WHOLE, nullable=False, autoincrement=False, info={"flag": True})


def key(*columns: str) -> PrimaryKeyConstraint:
    """The primary key."""
    return PrimaryKeyConstraint(*columns)


def where(name: str, *columns: Any, condition: str, unique: bool = False) -> Index:
    """A partial index; its condition is the same on both dialects."""
    return Index(
        name, *columns, unique=unique, sqlite_where=text(condition), postgresql_where=text(condition)
    )


def table(name: str, *parts: Any, clustered: bool = False) -> Table:
    """A strict table; `clustered` ones are small rows that live in their primary key and nowhere else."""
    flags = [part.name for part in parts if isinstance(part, Column) and part.info.get("flag")]
    checks = [CheckConstraint(f"{flag} in (0, 1)", name=flag) for flag in flags]
    return Table(name, metadata, *parts, *checks, sqlite_strict=True, sqlite_with_rowid=not clustered)
