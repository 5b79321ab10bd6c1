"""What was tried: experiments, runs, what they logged, logged models.

It does only this step; the tables of today stand in `store.tracking_tables`, and what is written here is
never changed after a release.
"""

import time

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def _words(name: str, *, null: bool = False) -> sa.Column[str]:
    return sa.Column(name, sa.Text(collation="C").with_variant(sa.Text(), "sqlite"), nullable=null)


def _whole(name: str, *, null: bool = False) -> sa.Column[int]:
    kind = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    return sa.Column(name, kind, nullable=null, autoincrement=False)


def _double(name: str, *, null: bool = False) -> sa.Column[float]:
    kind: sa.Double[float] = sa.Double().with_variant(sa.REAL(), "sqlite")
    return sa.Column(name, kind, nullable=null)


def upgrade() -> None:
    """Create the tables, parents before children."""
    _artifact_owners()
    _artifacts()
    _experiments()
    _metric_points()
    _datasets()
    _experiment_tags()
    _logged_models()
    _runs()
    _logged_model_metrics()
    _logged_model_params()
    _logged_model_tags()
    _logged_model_versions()
    _run_datasets()
    _run_metrics()
    _run_models()
    _run_params()
    _run_tags()


def _artifact_owners() -> None:
    op.create_table(
        "artifact_owners",
        _words("kind"),
        _whole("owner"),
        _whole("files"),
        _whole("size_bytes"),
        sa.CheckConstraint("kind in ('run', 'logged_model')", name="ck_artifact_owners_kind"),
        sa.PrimaryKeyConstraint("kind", "owner", name="pk_artifact_owners"),
        sqlite_strict=True,
        sqlite_with_rowid=False,
    )


def _artifacts() -> None:
    op.create_table(
        "artifacts",
        _words("kind"),
        _whole("owner"),
        _words("path"),
        _words("digest"),
        _whole("size_bytes"),
        _whole("created"),
        _words("upload", null=True),
        sa.PrimaryKeyConstraint("kind", "owner", "path", name="pk_artifacts"),
        sqlite_strict=True,
        sqlite_with_rowid=False,
    )
    op.create_index("ix_artifacts_digest", "artifacts", ["digest"])


def _experiments() -> None:
    op.create_table(
        "experiments",
        _whole("id"),
        _words("project"),
        _words("name"),
        _whole("deleted"),
        _whole("creation_time"),
        _whole("last_update_time"),
        sa.CheckConstraint("deleted in (0, 1)", name="ck_experiments_deleted"),
        sa.PrimaryKeyConstraint("id", name="pk_experiments"),
        sa.UniqueConstraint("project", "name", name="uq_experiments_project_name"),
        sqlite_strict=True,
    )
    op.create_index(
        "ix_experiments_project_deleted_creation_time_id",
        "experiments",
        ["project", "deleted", "creation_time", "id"],
    )
    moment = int(time.time() * 1000)
    op.execute(
        "insert into experiments (id, project, name, deleted, creation_time, last_update_time) "
        f"values (0, 'default', 'Default', 0, {moment}, {moment})"
    )


def _metric_points() -> None:
    op.create_table(
        "metric_points",
        _whole("run"),
        _words("key"),
        _whole("timestamp"),
        _whole("step"),
        _double("value"),
        _whole("is_nan"),
        sa.CheckConstraint("is_nan in (0, 1)", name="ck_metric_points_is_nan"),
        sa.PrimaryKeyConstraint(
            "run", "key", "timestamp", "step", "value", "is_nan", name="pk_metric_points"
        ),
        sqlite_strict=True,
        sqlite_with_rowid=False,
    )


def _datasets() -> None:
    op.create_table(
        "datasets",
        _whole("serial"),
        _whole("experiment_id"),
        _words("name"),
        _words("digest"),
        _words("source_type"),
        _words("source"),
        _words("schema", null=True),
        _words("profile", null=True),
        sa.ForeignKeyConstraint(["experiment_id"], ["experiments.id"], name="fk_datasets_experiment_id"),
        sa.PrimaryKeyConstraint("serial", name="pk_datasets"),
        sa.UniqueConstraint("experiment_id", "name", "digest", name="uq_datasets_experiment_id_name_digest"),
        sqlite_strict=True,
    )


def _experiment_tags() -> None:
    op.create_table(
        "experiment_tags",
        _whole("experiment_id"),
        _words("key"),
        _words("value"),
        _words("value_head"),
        _double("number", null=True),
        sa.ForeignKeyConstraint(
            ["experiment_id"], ["experiments.id"], name="fk_experiment_tags_experiment_id"
        ),
        sa.PrimaryKeyConstraint("experiment_id", "key", name="pk_experiment_tags"),
        sqlite_strict=True,
        sqlite_with_rowid=False,
    )
    op.create_index(
        "ix_experiment_tags_key_value_head_experiment_id",
        "experiment_tags",
        ["key", "value_head", "experiment_id"],
    )


def _logged_models() -> None:
    op.create_table(
        "logged_models",
        _whole("serial"),
        _words("model_id"),
        _whole("experiment_id"),
        _words("name"),
        _words("status"),
        _words("status_message"),
        _words("model_type"),
        _words("source_run_id", null=True),
        _whole("deleted"),
        _whole("creation_timestamp_ms"),
        _whole("last_updated_timestamp_ms"),
        sa.CheckConstraint(
            "status in ('LOGGED_MODEL_PENDING', 'LOGGED_MODEL_READY', 'LOGGED_MODEL_UPLOAD_FAILED')",
            name="ck_logged_models_status",
        ),
        sa.CheckConstraint("deleted in (0, 1)", name="ck_logged_models_deleted"),
        sa.ForeignKeyConstraint(["experiment_id"], ["experiments.id"], name="fk_logged_models_experiment_id"),
        sa.PrimaryKeyConstraint("serial", name="pk_logged_models"),
        sa.UniqueConstraint("model_id", name="uq_logged_models_model_id"),
        sqlite_strict=True,
    )
    op.create_index(
        "ix_logged_models_newest",
        "logged_models",
        ["experiment_id", "deleted", "creation_timestamp_ms", "serial"],
    )
    op.create_index("ix_logged_models_source_run_id", "logged_models", ["source_run_id"])


def _runs() -> None:
    op.create_table(
        "runs",
        _whole("serial"),
        _words("run_id"),
        _whole("experiment_id"),
        _words("name"),
        _words("user_id"),
        _words("status"),
        _whole("start_time"),
        _whole("end_time", null=True),
        _whole("deleted"),
        _whole("deleted_time", null=True),
        sa.CheckConstraint(
            "status in ('RUNNING', 'SCHEDULED', 'FINISHED', 'FAILED', 'KILLED')", name="ck_runs_status"
        ),
        sa.CheckConstraint("(deleted = 1) = (deleted_time is not null)", name="ck_runs_deleted_time"),
        sa.CheckConstraint("deleted in (0, 1)", name="ck_runs_deleted"),
        sa.ForeignKeyConstraint(["experiment_id"], ["experiments.id"], name="fk_runs_experiment_id"),
        sa.PrimaryKeyConstraint("serial", name="pk_runs"),
        sa.UniqueConstraint("run_id", name="uq_runs_run_id"),
        sqlite_strict=True,
    )
    op.create_index(
        "ix_runs_experiment_id_deleted_start_time_run_id",
        "runs",
        ["experiment_id", "deleted", "start_time", "run_id"],
    )


def _logged_model_metrics() -> None:
    op.create_table(
        "logged_model_metrics",
        _whole("model"),
        _words("key"),
        _whole("timestamp"),
        _whole("step"),
        _whole("run"),
        _whole("experiment_id"),
        _double("value"),
        _whole("is_nan"),
        _words("dataset_name", null=True),
        _words("dataset_digest", null=True),
        sa.CheckConstraint("is_nan in (0, 1)", name="ck_logged_model_metrics_is_nan"),
        sa.ForeignKeyConstraint(["model"], ["logged_models.serial"], name="fk_logged_model_metrics_model"),
        sa.ForeignKeyConstraint(["run"], ["runs.serial"], name="fk_logged_model_metrics_run"),
        sa.PrimaryKeyConstraint("model", "key", "timestamp", "step", "run", name="pk_logged_model_metrics"),
        sqlite_strict=True,
        sqlite_with_rowid=False,
    )
    op.create_index(
        "ix_logged_model_metrics_experiment_id_key_is_nan_value_model",
        "logged_model_metrics",
        ["experiment_id", "key", "is_nan", "value", "model"],
    )


def _logged_model_params() -> None:
    op.create_table(
        "logged_model_params",
        _whole("model"),
        _words("key"),
        _whole("experiment_id"),
        _words("value"),
        _words("value_head"),
        _double("number", null=True),
        sa.ForeignKeyConstraint(["model"], ["logged_models.serial"], name="fk_logged_model_params_model"),
        sa.PrimaryKeyConstraint("model", "key", name="pk_logged_model_params"),
        sqlite_strict=True,
        sqlite_with_rowid=False,
    )
    op.create_index(
        "ix_logged_model_params_experiment_id_key_value_head_model",
        "logged_model_params",
        ["experiment_id", "key", "value_head", "model"],
    )


def _logged_model_tags() -> None:
    op.create_table(
        "logged_model_tags",
        _whole("model"),
        _words("key"),
        _whole("experiment_id"),
        _words("value"),
        _words("value_head"),
        _double("number", null=True),
        sa.ForeignKeyConstraint(["model"], ["logged_models.serial"], name="fk_logged_model_tags_model"),
        sa.PrimaryKeyConstraint("model", "key", name="pk_logged_model_tags"),
        sqlite_strict=True,
        sqlite_with_rowid=False,
    )
    op.create_index(
        "ix_logged_model_tags_experiment_id_key_value_head_model",
        "logged_model_tags",
        ["experiment_id", "key", "value_head", "model"],
    )


def _logged_model_versions() -> None:
    op.create_table(
        "logged_model_versions",
        _whole("model"),
        _words("name"),
        _whole("number"),
        sa.ForeignKeyConstraint(["model"], ["logged_models.serial"], name="fk_logged_model_versions_model"),
        sa.PrimaryKeyConstraint("model", "name", "number", name="pk_logged_model_versions"),
        sqlite_strict=True,
        sqlite_with_rowid=False,
    )


def _run_datasets() -> None:
    op.create_table(
        "run_datasets",
        _whole("run"),
        _whole("dataset"),
        _words("tags"),
        _words("context"),
        sa.ForeignKeyConstraint(["dataset"], ["datasets.serial"], name="fk_run_datasets_dataset"),
        sa.ForeignKeyConstraint(["run"], ["runs.serial"], name="fk_run_datasets_run"),
        sa.PrimaryKeyConstraint("run", "dataset", name="pk_run_datasets"),
        sqlite_strict=True,
        sqlite_with_rowid=False,
    )
    op.create_index("ix_run_datasets_dataset_run", "run_datasets", ["dataset", "run"])


def _run_metrics() -> None:
    op.create_table(
        "run_metrics",
        _whole("run"),
        _words("key"),
        _whole("experiment_id"),
        _double("value"),
        _whole("is_nan"),
        _whole("timestamp"),
        _whole("step"),
        sa.CheckConstraint("is_nan in (0, 1)", name="ck_run_metrics_is_nan"),
        sa.ForeignKeyConstraint(["run"], ["runs.serial"], name="fk_run_metrics_run"),
        sa.PrimaryKeyConstraint("run", "key", name="pk_run_metrics"),
        sqlite_strict=True,
        sqlite_with_rowid=False,
    )
    op.create_index(
        "ix_run_metrics_experiment_id_key_is_nan_value_run",
        "run_metrics",
        ["experiment_id", "key", "is_nan", "value", "run"],
    )


def _run_models() -> None:
    op.create_table(
        "run_models",
        _whole("run"),
        _words("role"),
        _words("model_id"),
        _whole("step"),
        sa.CheckConstraint("role in ('input', 'output')", name="ck_run_models_role"),
        sa.ForeignKeyConstraint(["run"], ["runs.serial"], name="fk_run_models_run"),
        sa.PrimaryKeyConstraint("run", "role", "model_id", name="pk_run_models"),
        sqlite_strict=True,
        sqlite_with_rowid=False,
    )
    op.create_index("ix_run_models_model_id_run", "run_models", ["model_id", "run"])


def _run_params() -> None:
    op.create_table(
        "run_params",
        _whole("run"),
        _words("key"),
        _whole("experiment_id"),
        _words("value"),
        _words("value_head"),
        _double("number", null=True),
        sa.ForeignKeyConstraint(["run"], ["runs.serial"], name="fk_run_params_run"),
        sa.PrimaryKeyConstraint("run", "key", name="pk_run_params"),
        sqlite_strict=True,
        sqlite_with_rowid=False,
    )
    op.create_index(
        "ix_run_params_experiment_id_key_value_head_run",
        "run_params",
        ["experiment_id", "key", "value_head", "run"],
    )


def _run_tags() -> None:
    op.create_table(
        "run_tags",
        _whole("run"),
        _words("key"),
        _whole("experiment_id"),
        _words("value"),
        _words("value_head"),
        _double("number", null=True),
        sa.ForeignKeyConstraint(["run"], ["runs.serial"], name="fk_run_tags_run"),
        sa.PrimaryKeyConstraint("run", "key", name="pk_run_tags"),
        sqlite_strict=True,
        sqlite_with_rowid=False,
    )
    op.create_index(
        "ix_run_tags_experiment_id_key_value_head_run",
        "run_tags",
        ["experiment_id", "key", "value_head", "run"],
    )
