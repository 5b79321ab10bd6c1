"""The first schema: events, catalog, promotion, rollout, access.

It does only this step; the tables of today stand in `store.schema`, and what is written here is
never changed after a release.
"""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

# What the first event is linked to.
GENESIS = "2cf9b0b7c2539f7576abed3ffa55887def045171f7f3f61835c04a606ff4997d"


def _words(name: str, *, null: bool = False) -> sa.Column[str]:
    return sa.Column(name, sa.Text(collation="C").with_variant(sa.Text(), "sqlite"), nullable=null)


def _whole(name: str, *, null: bool = False) -> sa.Column[int]:
    kind = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    return sa.Column(name, kind, nullable=null, autoincrement=False)


def _double(name: str, *, null: bool = False) -> sa.Column[float]:
    kind: sa.Double[float] = sa.Double().with_variant(sa.REAL(), "sqlite")
    return sa.Column(name, kind, nullable=null)


def _content(name: str) -> sa.Column[bytes]:
    return sa.Column(name, sa.LargeBinary(), nullable=False)


def _where(condition: str) -> dict[str, Any]:
    return {"sqlite_where": sa.text(condition), "postgresql_where": sa.text(condition)}


def upgrade() -> None:
    """Create every table, parents before children."""
    _chain_head()
    _damaged_blobs()
    _drafts()
    _events()
    _gateways()
    _idempotency()
    _model_renames()
    _models()
    _policies()
    _principals()
    _rollout_ticks()
    _settings()
    _small_contents()
    _draft_files()
    _endpoints()
    _grants()
    _model_tags()
    _rollouts()
    _stage_intervals()
    _tokens()
    _versions()
    _aliases()
    _occupancy()
    _requests()
    _version_files()
    _version_metrics()
    _version_params()
    _version_tags()
    _approvals()


def _chain_head() -> None:
    op.create_table(
        "chain_head",
        _whole("id"),
        _whole("sequence"),
        _words("link"),
        sa.CheckConstraint("id = 1", name="ck_chain_head_one_row"),
        sa.PrimaryKeyConstraint("id", name="pk_chain_head"),
        sqlite_strict=True,
    )
    op.execute(f"insert into chain_head (id, sequence, link) values (1, 0, '{GENESIS}')")


def _damaged_blobs() -> None:
    op.create_table(
        "damaged_blobs",
        _words("digest"),
        _words("found_at"),
        sa.PrimaryKeyConstraint("digest", name="pk_damaged_blobs"),
        sqlite_strict=True,
        sqlite_with_rowid=False,
    )


def _drafts() -> None:
    op.create_table(
        "drafts",
        _words("id"),
        _words("project"),
        _words("name"),
        _words("status"),
        _words("document"),
        _whole("number", null=True),
        _whole("made", null=True),
        _words("created_at"),
        _words("created_by"),
        _words("touched_at"),
        sa.CheckConstraint("status in ('open', 'ready', 'cancelled')", name="ck_drafts_status"),
        sa.PrimaryKeyConstraint("id", name="pk_drafts"),
        sqlite_strict=True,
    )
    op.create_index("ix_drafts_project_name_status", "drafts", ["project", "name", "status"])
    op.create_index("ix_drafts_status_touched_at", "drafts", ["status", "touched_at"])


def _events() -> None:
    op.create_table(
        "events",
        _whole("sequence"),
        _words("kind"),
        _words("at"),
        _words("subject"),
        _words("model", null=True),
        _whole("number", null=True),
        _words("document"),
        _words("leaf"),
        _words("link"),
        sa.CheckConstraint("sequence > 0", name="ck_events_sequence"),
        sa.PrimaryKeyConstraint("sequence", name="pk_events"),
        sqlite_strict=True,
    )
    op.create_index("ix_events_at_sequence", "events", ["at", "sequence"])
    op.create_index("ix_events_kind_sequence", "events", ["kind", "sequence"])
    op.create_index(
        "ix_events_model_sequence", "events", ["model", "sequence"], **_where("model is not null")
    )
    op.create_index("ix_events_subject_sequence", "events", ["subject", "sequence"])


def _gateways() -> None:
    op.create_table(
        "gateways",
        _words("name"),
        _words("document"),
        _whole("table_number"),
        _words("seen_at"),
        sa.PrimaryKeyConstraint("name", name="pk_gateways"),
        sqlite_strict=True,
    )


def _idempotency() -> None:
    op.create_table(
        "idempotency",
        _words("principal"),
        _words("key"),
        _words("request_hash"),
        _whole("status"),
        _words("response"),
        _words("created_at"),
        sa.PrimaryKeyConstraint("principal", "key", name="pk_idempotency"),
        sqlite_strict=True,
    )
    op.create_index("ix_idempotency_created_at", "idempotency", ["created_at"])


def _model_renames() -> None:
    op.create_table(
        "model_renames",
        _whole("sequence"),
        _words("from_name"),
        _words("to_name"),
        sa.PrimaryKeyConstraint("sequence", name="pk_model_renames"),
        sqlite_strict=True,
    )
    op.create_index("ix_model_renames_from_name_sequence", "model_renames", ["from_name", "sequence"])
    op.create_index("ix_model_renames_to_name_sequence", "model_renames", ["to_name", "sequence"])


def _models() -> None:
    op.create_table(
        "models",
        _words("id"),
        _words("project"),
        _words("name"),
        _words("folded"),
        _words("description"),
        _words("owner"),
        _words("stages"),
        _whole("next_number"),
        _whole("version_count"),
        _words("created_at"),
        _words("created_by"),
        _words("updated_at"),
        _words("deleted_at", null=True),
        sa.CheckConstraint("next_number > 0", name="ck_models_next_number"),
        sa.CheckConstraint("version_count >= 0", name="ck_models_version_count"),
        sa.PrimaryKeyConstraint("id", name="pk_models"),
        sa.UniqueConstraint("project", "name", name="uq_models_project_name"),
        sqlite_strict=True,
    )
    op.create_index("ix_models_name", "models", ["name"])
    op.create_index(
        "uq_models_project_folded",
        "models",
        ["project", "folded"],
        unique=True,
        **_where("deleted_at is null"),
    )


def _policies() -> None:
    op.create_table(
        "policies",
        _words("scope"),
        _whole("version"),
        _words("digest"),
        _words("document"),
        _words("created_at"),
        _words("created_by"),
        sa.CheckConstraint("version > 0", name="ck_policies_version"),
        sa.PrimaryKeyConstraint("scope", "version", name="pk_policies"),
        sqlite_strict=True,
    )


def _principals() -> None:
    op.create_table(
        "principals",
        _words("name"),
        _words("kind"),
        _whole("disabled"),
        _words("created_at"),
        _words("created_by"),
        sa.CheckConstraint("kind in ('user', 'service')", name="ck_principals_kind"),
        sa.CheckConstraint("disabled in (0, 1)", name="ck_principals_disabled"),
        sa.PrimaryKeyConstraint("name", name="pk_principals"),
        sqlite_strict=True,
    )


def _rollout_ticks() -> None:
    op.create_table(
        "rollout_ticks",
        _words("gateway"),
        _words("endpoint"),
        _words("rollout_id"),
        _whole("number"),
        _words("document"),
        _words("received_at"),
        sa.PrimaryKeyConstraint("gateway", "endpoint", "rollout_id", "number", name="pk_rollout_ticks"),
        sqlite_strict=True,
    )
    op.create_index("ix_rollout_ticks_received_at", "rollout_ticks", ["received_at"])
    op.create_index("ix_rollout_ticks_rollout_id_received_at", "rollout_ticks", ["rollout_id", "received_at"])


def _settings() -> None:
    op.create_table(
        "settings",
        _words("key"),
        _words("value"),
        _words("updated_at"),
        sa.PrimaryKeyConstraint("key", name="pk_settings"),
        sqlite_strict=True,
        sqlite_with_rowid=False,
    )


def _small_contents() -> None:
    op.create_table(
        "small_contents",
        _whole("id"),
        _words("digest"),
        _content("data"),
        sa.PrimaryKeyConstraint("id", name="pk_small_contents"),
        sqlite_strict=True,
    )


def _draft_files() -> None:
    op.create_table(
        "draft_files",
        _words("draft_id"),
        _words("path"),
        _whole("size_bytes"),
        _words("digest"),
        _words("media_type"),
        _whole("received_bytes"),
        _whole("present"),
        sa.CheckConstraint("present in (0, 1)", name="ck_draft_files_present"),
        sa.CheckConstraint("received_bytes between 0 and size_bytes", name="ck_draft_files_received_bytes"),
        sa.ForeignKeyConstraint(["draft_id"], ["drafts.id"], name="fk_draft_files_draft_id"),
        sa.PrimaryKeyConstraint("draft_id", "path", name="pk_draft_files"),
        sqlite_strict=True,
        sqlite_with_rowid=False,
    )
    op.create_index("ix_draft_files_digest", "draft_files", ["digest"])


def _endpoints() -> None:
    op.create_table(
        "endpoints",
        _words("name"),
        _words("id"),
        _words("model_id"),
        _words("stage"),
        _words("document"),
        _words("rollout_id", null=True),
        _whole("row_version"),
        _words("created_at"),
        _words("created_by"),
        _words("updated_at"),
        sa.ForeignKeyConstraint(["model_id"], ["models.id"], name="fk_endpoints_model_id"),
        sa.PrimaryKeyConstraint("name", name="pk_endpoints"),
        sa.UniqueConstraint("id", name="uq_endpoints_id"),
        sqlite_strict=True,
    )
    op.create_index("ix_endpoints_model_id_stage", "endpoints", ["model_id", "stage"])


def _grants() -> None:
    op.create_table(
        "grants",
        _words("id"),
        _words("principal"),
        _words("role"),
        _words("project", null=True),
        _words("model", null=True),
        _words("effect"),
        _words("created_at"),
        _words("created_by"),
        sa.CheckConstraint("effect in ('allow', 'deny')", name="ck_grants_effect"),
        sa.CheckConstraint("model is null or project is not null", name="ck_grants_scope"),
        sa.ForeignKeyConstraint(["principal"], ["principals.name"], name="fk_grants_principal"),
        sa.PrimaryKeyConstraint("id", name="pk_grants"),
        sqlite_strict=True,
    )
    op.create_index("ix_grants_principal", "grants", ["principal"])


def _model_tags() -> None:
    op.create_table(
        "model_tags",
        _words("model_id"),
        _words("key"),
        _words("value"),
        _words("value_head"),
        _double("number", null=True),
        sa.ForeignKeyConstraint(["model_id"], ["models.id"], name="fk_model_tags_model_id"),
        sa.PrimaryKeyConstraint("model_id", "key", name="pk_model_tags"),
        sqlite_strict=True,
        sqlite_with_rowid=False,
    )
    op.create_index("ix_model_tags_key_value_head_model_id", "model_tags", ["key", "value_head", "model_id"])


def _rollouts() -> None:
    op.create_table(
        "rollouts",
        _words("id"),
        _words("endpoint"),
        _words("model_id"),
        _words("state"),
        _whole("active"),
        _words("document"),
        _whole("row_version"),
        _words("due_at", null=True),
        _words("lease_owner", null=True),
        _words("lease_until", null=True),
        _whole("lease_term"),
        _words("started_at"),
        _words("finished_at", null=True),
        sa.CheckConstraint("(lease_owner is null) = (lease_until is null)", name="ck_rollouts_lease"),
        sa.CheckConstraint("active in (0, 1)", name="ck_rollouts_active"),
        sa.ForeignKeyConstraint(["model_id"], ["models.id"], name="fk_rollouts_model_id"),
        sa.PrimaryKeyConstraint("id", name="pk_rollouts"),
        sqlite_strict=True,
    )
    op.create_index("ix_rollouts_due", "rollouts", ["due_at"], **_where("active = 1"))
    op.create_index("ix_rollouts_endpoint_started_at", "rollouts", ["endpoint", "started_at"])
    op.create_index("ix_rollouts_model_id_started_at", "rollouts", ["model_id", "started_at"])
    op.create_index("uq_rollouts_active", "rollouts", ["endpoint"], unique=True, **_where("active = 1"))


def _stage_intervals() -> None:
    op.create_table(
        "stage_intervals",
        _words("model_id"),
        _words("stage"),
        _whole("number"),
        _words("semver"),
        _words("from_at"),
        _whole("from_sequence"),
        _words("to_at", null=True),
        _whole("to_sequence", null=True),
        _words("cause"),
        _words("actor"),
        _words("reason"),
        _words("request_id", null=True),
        _words("rollout_id", null=True),
        _words("approved_by"),
        sa.CheckConstraint("(to_at is null) = (to_sequence is null)", name="ck_stage_intervals_closed"),
        sa.ForeignKeyConstraint(["model_id"], ["models.id"], name="fk_stage_intervals_model_id"),
        sa.PrimaryKeyConstraint("model_id", "number", "from_sequence", name="pk_stage_intervals"),
        sqlite_strict=True,
    )
    op.create_index(
        "ix_stage_intervals_model_id_stage_from_at", "stage_intervals", ["model_id", "stage", "from_at"]
    )
    op.create_index(
        "ix_stage_intervals_model_id_stage_from_sequence",
        "stage_intervals",
        ["model_id", "stage", "from_sequence"],
    )
    op.create_index(
        "uq_stage_intervals_open",
        "stage_intervals",
        ["model_id", "number"],
        unique=True,
        **_where("to_sequence is null"),
    )


def _tokens() -> None:
    op.create_table(
        "tokens",
        _words("id"),
        _words("secret_hash"),
        _words("principal"),
        _words("label"),
        _words("verbs", null=True),
        _words("project", null=True),
        _words("created_at"),
        _words("expires_at"),
        _words("revoked_at", null=True),
        _words("last_used_on", null=True),
        sa.ForeignKeyConstraint(["principal"], ["principals.name"], name="fk_tokens_principal"),
        sa.PrimaryKeyConstraint("id", name="pk_tokens"),
        sa.UniqueConstraint("secret_hash", name="uq_tokens_secret_hash"),
        sqlite_strict=True,
    )
    op.create_index("ix_tokens_principal_created_at", "tokens", ["principal", "created_at"])


def _versions() -> None:
    op.create_table(
        "versions",
        _words("id"),
        _words("model_id"),
        _whole("number"),
        _words("semver"),
        _words("semver_key"),
        _whole("prerelease"),
        _words("digest"),
        _whole("size_bytes"),
        _words("status"),
        _words("document"),
        _whole("parent", null=True),
        _words("framework", null=True),
        _words("run_id", null=True),
        _words("source", null=True),
        _words("code_commit", null=True),
        _words("identity", null=True),
        _whole("from_sequence"),
        _whole("to_sequence", null=True),
        _words("description"),
        _words("tombstone", null=True),
        _words("yanked", null=True),
        _words("created_at"),
        _words("created_by"),
        _words("updated_at"),
        sa.CheckConstraint("status in ('pending', 'ready', 'failed', 'deleted')", name="ck_versions_status"),
        sa.CheckConstraint("number > 0", name="ck_versions_number"),
        sa.CheckConstraint("prerelease in (0, 1)", name="ck_versions_prerelease"),
        sa.CheckConstraint("size_bytes >= 0", name="ck_versions_size_bytes"),
        sa.ForeignKeyConstraint(["model_id"], ["models.id"], name="fk_versions_model_id"),
        sa.PrimaryKeyConstraint("id", name="pk_versions"),
        sa.UniqueConstraint("model_id", "number", name="uq_versions_model_id_number"),
        sa.UniqueConstraint("model_id", "semver_key", name="uq_versions_model_id_semver_key"),
        sqlite_strict=True,
    )
    op.create_index(
        "ix_versions_code_commit", "versions", ["code_commit"], **_where("code_commit is not null")
    )
    op.create_index("ix_versions_created_at_id", "versions", ["created_at", "id"])
    op.create_index(
        "ix_versions_digest_model_id_semver_key", "versions", ["digest", "model_id", "semver_key"]
    )
    op.create_index(
        "ix_versions_identity",
        "versions",
        ["identity", "model_id", "semver_key"],
        **_where("identity is not null"),
    )
    op.create_index("ix_versions_model_id_created_at_id", "versions", ["model_id", "created_at", "id"])
    op.create_index(
        "ix_versions_run_id", "versions", ["run_id", "created_at", "id"], **_where("run_id is not null")
    )
    op.create_index("ix_versions_semver_key_created_at_id", "versions", ["semver_key", "created_at", "id"])


def _aliases() -> None:
    op.create_table(
        "aliases",
        _words("model_id"),
        _words("alias"),
        _whole("number"),
        _whole("protected"),
        _words("updated_at"),
        _words("updated_by"),
        sa.CheckConstraint("protected in (0, 1)", name="ck_aliases_protected"),
        sa.ForeignKeyConstraint(
            ["model_id", "number"],
            ["versions.model_id", "versions.number"],
            name="fk_aliases_model_id_number",
        ),
        sa.PrimaryKeyConstraint("model_id", "alias", name="pk_aliases"),
        sqlite_strict=True,
        sqlite_with_rowid=False,
    )
    op.create_index("ix_aliases_alias", "aliases", ["alias"])
    op.create_index("ix_aliases_model_id_number", "aliases", ["model_id", "number"])


def _occupancy() -> None:
    op.create_table(
        "occupancy",
        _words("model_id"),
        _whole("number"),
        _words("stage"),
        _whole("exclusive"),
        _words("since_at"),
        _whole("since_sequence"),
        sa.CheckConstraint("exclusive in (0, 1)", name="ck_occupancy_exclusive"),
        sa.ForeignKeyConstraint(
            ["model_id", "number"],
            ["versions.model_id", "versions.number"],
            name="fk_occupancy_model_id_number",
        ),
        sa.PrimaryKeyConstraint("model_id", "number", name="pk_occupancy"),
        sqlite_strict=True,
        sqlite_with_rowid=False,
    )
    op.create_index("ix_occupancy_model_id_stage_number", "occupancy", ["model_id", "stage", "number"])
    op.create_index(
        "uq_occupancy_exclusive", "occupancy", ["model_id", "stage"], unique=True, **_where("exclusive = 1")
    )


def _requests() -> None:
    op.create_table(
        "requests",
        _words("id"),
        _words("model_id"),
        _whole("number"),
        _words("stage"),
        _words("state"),
        _words("document"),
        _words("created_by"),
        _words("created_at"),
        _words("expires_at"),
        _words("closed_at", null=True),
        sa.ForeignKeyConstraint(
            ["model_id", "number"],
            ["versions.model_id", "versions.number"],
            name="fk_requests_model_id_number",
        ),
        sa.ForeignKeyConstraint(["model_id"], ["models.id"], name="fk_requests_model_id"),
        sa.PrimaryKeyConstraint("id", name="pk_requests"),
        sqlite_strict=True,
    )
    op.create_index("ix_requests_model_id_state_created_at", "requests", ["model_id", "state", "created_at"])
    op.create_index("ix_requests_open_expires_at", "requests", ["expires_at"], **_where("state = 'open'"))
    op.create_index("ix_requests_state_created_at", "requests", ["state", "created_at"])


def _version_files() -> None:
    op.create_table(
        "version_files",
        _words("version_id"),
        _words("path"),
        _words("digest"),
        _whole("size_bytes"),
        _words("media_type"),
        sa.ForeignKeyConstraint(["version_id"], ["versions.id"], name="fk_version_files_version_id"),
        sa.PrimaryKeyConstraint("version_id", "path", name="pk_version_files"),
        sqlite_strict=True,
        sqlite_with_rowid=False,
    )
    op.create_index("ix_version_files_digest", "version_files", ["digest"])


def _version_metrics() -> None:
    op.create_table(
        "version_metrics",
        _words("version_id"),
        _words("name"),
        _double("value"),
        sa.ForeignKeyConstraint(["version_id"], ["versions.id"], name="fk_version_metrics_version_id"),
        sa.PrimaryKeyConstraint("version_id", "name", name="pk_version_metrics"),
        sqlite_strict=True,
        sqlite_with_rowid=False,
    )
    op.create_index("ix_version_metrics_name_value", "version_metrics", ["name", "value"])


def _version_params() -> None:
    op.create_table(
        "version_params",
        _words("version_id"),
        _words("key"),
        _words("value"),
        _words("value_head"),
        _double("number", null=True),
        sa.ForeignKeyConstraint(["version_id"], ["versions.id"], name="fk_version_params_version_id"),
        sa.PrimaryKeyConstraint("version_id", "key", name="pk_version_params"),
        sqlite_strict=True,
        sqlite_with_rowid=False,
    )
    op.create_index(
        "ix_version_params_key_number", "version_params", ["key", "number"], **_where("number is not null")
    )
    op.create_index(
        "ix_version_params_key_value_head_version_id", "version_params", ["key", "value_head", "version_id"]
    )


def _version_tags() -> None:
    op.create_table(
        "version_tags",
        _words("version_id"),
        _words("key"),
        _words("value"),
        _words("value_head"),
        _double("number", null=True),
        sa.ForeignKeyConstraint(["version_id"], ["versions.id"], name="fk_version_tags_version_id"),
        sa.PrimaryKeyConstraint("version_id", "key", name="pk_version_tags"),
        sqlite_strict=True,
        sqlite_with_rowid=False,
    )
    op.create_index(
        "ix_version_tags_key_number", "version_tags", ["key", "number"], **_where("number is not null")
    )
    op.create_index(
        "ix_version_tags_key_value_head_version_id", "version_tags", ["key", "value_head", "version_id"]
    )


def _approvals() -> None:
    op.create_table(
        "approvals",
        _words("request_id"),
        _whole("position"),
        _words("principal"),
        _words("vote"),
        _words("at"),
        _words("dismissed", null=True),
        _words("document"),
        sa.ForeignKeyConstraint(["request_id"], ["requests.id"], name="fk_approvals_request_id"),
        sa.PrimaryKeyConstraint("request_id", "position", name="pk_approvals"),
        sqlite_strict=True,
    )
    op.create_index("ix_approvals_principal_at", "approvals", ["principal", "at"])
    op.create_index(
        "uq_approvals_counting",
        "approvals",
        ["request_id", "principal"],
        unique=True,
        **_where("dismissed is null and vote <> 'comment'"),
    )
