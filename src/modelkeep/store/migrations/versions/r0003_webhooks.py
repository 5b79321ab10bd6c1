"""Webhooks: subscriptions, deliveries, attempts.

It does only this step; the tables of today stand in `store.webhook_tables`, and what is written here is
never changed after a release.
"""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def _words(name: str, *, null: bool = False) -> sa.Column[str]:
    return sa.Column(name, sa.Text(collation="C").with_variant(sa.Text(), "sqlite"), nullable=null)


def _whole(name: str, *, null: bool = False) -> sa.Column[int]:
    kind = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    return sa.Column(name, kind, nullable=null, autoincrement=False)


def _double(name: str, *, null: bool = False) -> sa.Column[float]:
    kind: sa.Double[float] = sa.Double().with_variant(sa.REAL(), "sqlite")
    return sa.Column(name, kind, nullable=null)


def _where(condition: str) -> dict[str, Any]:
    return {"sqlite_where": sa.text(condition), "postgresql_where": sa.text(condition)}


def upgrade() -> None:
    """Create the tables, parents before children."""
    _webhooks()
    _webhook_attempts()
    _webhook_deliveries()


def _webhooks() -> None:
    op.create_table(
        "webhooks",
        _words("id"),
        _words("project"),
        _words("document"),
        _words("sealed", null=True),
        _words("status"),
        _whole("cursor"),
        _whole("part"),
        _whole("failures"),
        _whole("set_aside"),
        _words("due_at", null=True),
        _words("lease_owner", null=True),
        _words("lease_until", null=True),
        _whole("row_version"),
        _words("created_at"),
        sa.CheckConstraint("status in ('active', 'disabled')", name="ck_webhooks_status"),
        sa.CheckConstraint("cursor >= 0 and part >= 0 and failures >= 0", name="ck_webhooks_progress"),
        sa.PrimaryKeyConstraint("id", name="pk_webhooks"),
        sqlite_strict=True,
    )
    op.create_index("ix_webhooks_active", "webhooks", ["id"], **_where("status = 'active'"))
    op.create_index("ix_webhooks_project_id", "webhooks", ["project", "id"])


def _webhook_attempts() -> None:
    op.create_table(
        "webhook_attempts",
        _words("webhook_id"),
        _whole("sequence"),
        _whole("part"),
        _whole("number"),
        _words("at"),
        _whole("status", null=True),
        _words("error", null=True),
        _double("duration_ms"),
        _words("body_sha256"),
        _words("answer_sha256", null=True),
        sa.ForeignKeyConstraint(["webhook_id"], ["webhooks.id"], name="fk_webhook_attempts_webhook_id"),
        sa.PrimaryKeyConstraint("webhook_id", "sequence", "part", "number", name="pk_webhook_attempts"),
        sqlite_strict=True,
        sqlite_with_rowid=False,
    )


def _webhook_deliveries() -> None:
    op.create_table(
        "webhook_deliveries",
        _words("webhook_id"),
        _whole("sequence"),
        _whole("part"),
        _words("id"),
        _words("event"),
        _words("state"),
        _whole("requested"),
        _whole("tries"),
        _words("next_at", null=True),
        _words("created_at"),
        _words("finished_at", null=True),
        sa.CheckConstraint("state in ('waiting', 'delivered', 'failed')", name="ck_webhook_deliveries_state"),
        sa.CheckConstraint("requested in (0, 1)", name="ck_webhook_deliveries_requested"),
        sa.ForeignKeyConstraint(["webhook_id"], ["webhooks.id"], name="fk_webhook_deliveries_webhook_id"),
        sa.PrimaryKeyConstraint("webhook_id", "sequence", "part", name="pk_webhook_deliveries"),
        sqlite_strict=True,
    )
    op.create_index("ix_webhook_deliveries_created_at", "webhook_deliveries", ["created_at"])
    op.create_index(
        "ix_webhook_deliveries_requested",
        "webhook_deliveries",
        ["webhook_id", "sequence", "part"],
        **_where("requested = 1 and state = 'waiting'"),
    )
    op.create_index(
        "ix_webhook_deliveries_webhook_id_state_sequence_part",
        "webhook_deliveries",
        ["webhook_id", "state", "sequence", "part"],
    )
