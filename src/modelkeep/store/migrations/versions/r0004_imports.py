"""What moved in: from which registries, and what everything there is called here.

It does only this step; the tables of today stand in `store.import_tables`, and what is written here is
never changed after a release.
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def _words(name: str, *, null: bool = False) -> sa.Column[str]:
    return sa.Column(name, sa.Text(collation="C").with_variant(sa.Text(), "sqlite"), nullable=null)


def _whole(name: str, *, null: bool = False) -> sa.Column[int]:
    kind = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    return sa.Column(name, kind, nullable=null, autoincrement=False)


def upgrade() -> None:
    """Create the tables, parents before children."""
    _import_sources()
    _imported()


def _import_sources() -> None:
    op.create_table(
        "import_sources",
        _whole("serial"),
        _words("address"),
        _words("project"),
        _words("created_at"),
        _words("created_by"),
        sa.PrimaryKeyConstraint("serial", name="pk_import_sources"),
        sa.UniqueConstraint("address", name="uq_import_sources_address"),
        sqlite_strict=True,
    )


def _imported() -> None:
    op.create_table(
        "imported",
        _whole("source"),
        _words("kind"),
        _words("foreign_id"),
        _words("ours"),
        _whole("done"),
        sa.CheckConstraint("done in (0, 1)", name="ck_imported_done"),
        sa.ForeignKeyConstraint(["source"], ["import_sources.serial"], name="fk_imported_source"),
        sa.PrimaryKeyConstraint("source", "kind", "foreign_id", name="pk_imported"),
        sqlite_strict=True,
        sqlite_with_rowid=False,
    )
    op.create_index("ix_imported_source_kind_done", "imported", ["source", "kind", "done"])
