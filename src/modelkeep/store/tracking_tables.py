"""The tables of what was tried: experiments, runs, what they logged, and the models they left behind.

Times are MLflow's here: whole milliseconds since 1970 as the client claims them. A run is known outside by
its text id and in here by a small number (`runs.serial`), which alone stands in the rows beside it: they are
many. What a search of runs looks through repeats the experiment, so that one index finds the runs of an
experiment by what they logged.

SQLite makes null of NaN, so a value that is NaN is stored as 0 with `is_nan` beside it, which also is how
MLflow's server orders it; infinities are stored as they are. It holds no statement and no data.
"""

from sqlalchemy import CheckConstraint, ForeignKey, Index, UniqueConstraint

from modelkeep.store.columns import double, flag, key, table, whole, words

# ------------------------------------------------------------------------------------------------ experiments

experiments = table(
    "experiments",
    whole("id"),  # outside it is the text of this number; 0 is there from the beginning
    words("project"),
    words("name"),
    flag("deleted"),
    whole("creation_time"),
    whole("last_update_time"),
    key("id"),
    UniqueConstraint("project", "name"),  # a deleted one keeps its name, as MLflow has it
    Index(None, "project", "deleted", "creation_time", "id"),
)

experiment_tags = table(
    "experiment_tags",
    whole("experiment_id", ForeignKey("experiments.id")),
    words("key"),
    words("value"),
    words("value_head"),  # the first HEAD_CHARACTERS of the value: compare it and the value
    double("number", null=True),  # the value where it is a number: `query.as_number`
    key("experiment_id", "key"),
    Index(None, "key", "value_head", "experiment_id"),
    clustered=True,
)

# ------------------------------------------------------------------------------------------------------- runs

runs = table(
    "runs",
    whole("serial"),
    words("run_id"),
    whole("experiment_id", ForeignKey("experiments.id")),
    words("name"),
    words("user_id"),
    words("status"),
    whole("start_time"),
    whole("end_time", null=True),
    flag("deleted"),
    whole("deleted_time", null=True),
    key("serial"),
    UniqueConstraint("run_id"),
    CheckConstraint("status in ('RUNNING', 'SCHEDULED', 'FINISHED', 'FAILED', 'KILLED')", name="status"),
    CheckConstraint("(deleted = 1) = (deleted_time is not null)", name="deleted_time"),
    Index(None, "experiment_id", "deleted", "start_time", "run_id"),
)

run_metrics = table(
    "run_metrics",
    whole("run", ForeignKey("runs.serial")),
    words("key"),
    whole("experiment_id"),
    double("value"),
    flag("is_nan"),
    whole("timestamp"),
    whole("step"),
    key("run", "key"),
    Index(None, "experiment_id", "key", "is_nan", "value", "run"),
    clustered=True,
)
"""Of each metric of a run the latest point: the one with the highest (step, timestamp, value)."""

metric_points = table(
    "metric_points",
    whole("run"),  # `runs.serial`, which its writer has just read: no foreign key asks again at each point
    words("key"),
    whole("timestamp"),
    whole("step"),
    double("value"),
    flag("is_nan"),
    key("run", "key", "timestamp", "step", "value", "is_nan"),  # the same point twice is one point
    clustered=True,
)
"""Every point that was logged, in the order in which a history is read."""

run_params = table(
    "run_params",
    whole("run", ForeignKey("runs.serial")),
    words("key"),
    whole("experiment_id"),
    words("value"),
    words("value_head"),
    double("number", null=True),
    key("run", "key"),
    Index(None, "experiment_id", "key", "value_head", "run"),
    clustered=True,
)

run_tags = table(
    "run_tags",
    whole("run", ForeignKey("runs.serial")),
    words("key"),
    whole("experiment_id"),
    words("value"),
    words("value_head"),
    double("number", null=True),
    key("run", "key"),
    Index(None, "experiment_id", "key", "value_head", "run"),
    clustered=True,
)

datasets = table(
    "datasets",
    whole("serial"),
    whole("experiment_id", ForeignKey("experiments.id")),
    words("name"),
    words("digest"),
    words("source_type"),
    words("source"),
    words("schema", null=True),
    words("profile", null=True),
    key("serial"),
    UniqueConstraint("experiment_id", "name", "digest"),  # the first description of one stays, as in MLflow
)

run_datasets = table(
    "run_datasets",
    whole("run", ForeignKey("runs.serial")),
    whole("dataset", ForeignKey("datasets.serial")),
    words("tags"),  # JSON of the input's tags, in the order of keys
    words("context"),  # the tag `mlflow.data.context`, '' where there is none
    key("run", "dataset"),
    Index(None, "dataset", "run"),
    clustered=True,
)

run_models = table(
    "run_models",
    whole("run", ForeignKey("runs.serial")),
    words("role"),
    words("model_id"),  # of a logged model, which MLflow does not ask to be there
    whole("step"),
    key("run", "role", "model_id"),
    CheckConstraint("role in ('input', 'output')", name="role"),
    Index(None, "model_id", "run"),
    clustered=True,
)

# ---------------------------------------------------------------------------------------------- logged models

logged_models = table(
    "logged_models",
    whole("serial"),
    words("model_id"),
    whole("experiment_id", ForeignKey("experiments.id")),
    words("name"),
    words("status"),
    words("status_message"),
    words("model_type"),
    words("source_run_id", null=True),
    flag("deleted"),
    whole("creation_timestamp_ms"),
    whole("last_updated_timestamp_ms"),
    key("serial"),
    UniqueConstraint("model_id"),
    CheckConstraint(
        "status in ('LOGGED_MODEL_PENDING', 'LOGGED_MODEL_READY', 'LOGGED_MODEL_UPLOAD_FAILED')",
        name="status",
    ),
    Index("ix_logged_models_newest", "experiment_id", "deleted", "creation_timestamp_ms", "serial"),
    Index(None, "source_run_id"),
)

logged_model_tags = table(
    "logged_model_tags",
    whole("model", ForeignKey("logged_models.serial")),
    words("key"),
    whole("experiment_id"),
    words("value"),
    words("value_head"),
    double("number", null=True),
    key("model", "key"),
    Index(None, "experiment_id", "key", "value_head", "model"),
    clustered=True,
)

logged_model_params = table(
    "logged_model_params",
    whole("model", ForeignKey("logged_models.serial")),
    words("key"),
    whole("experiment_id"),
    words("value"),
    words("value_head"),
    double("number", null=True),
    key("model", "key"),
    Index(None, "experiment_id", "key", "value_head", "model"),
    clustered=True,
)

logged_model_metrics = table(
    "logged_model_metrics",
    whole("model", ForeignKey("logged_models.serial")),
    words("key"),
    whole("timestamp"),
    whole("step"),
    whole("run", ForeignKey("runs.serial")),
    whole("experiment_id"),
    double("value"),
    flag("is_nan"),
    words("dataset_name", null=True),
    words("dataset_digest", null=True),
    key("model", "key", "timestamp", "step", "run"),
    Index(None, "experiment_id", "key", "is_nan", "value", "model"),
    clustered=True,
)
"""Every point that a run logged of a model, with the data that it was measured on."""

logged_model_versions = table(
    "logged_model_versions",
    whole("model", ForeignKey("logged_models.serial")),
    words("name"),  # the full name of the registered model: history outlives it
    whole("number"),
    key("model", "name", "number"),
    clustered=True,
)
"""Which versions a logged model became."""

# -------------------------------------------------------------------------------------------------- artifacts

artifact_owners = table(
    "artifact_owners",
    words("kind"),
    whole("owner"),  # `runs.serial` or `logged_models.serial`
    whole("files"),
    whole("size_bytes"),
    key("kind", "owner"),
    CheckConstraint("kind in ('run', 'logged_model')", name="kind"),
    clustered=True,
)
"""How many files a run or logged model keeps, and their size, so that a limit need not count them."""

artifacts = table(
    "artifacts",
    words("kind"),
    whole("owner"),
    words("path"),
    words("digest"),
    whole("size_bytes"),
    whole("created"),
    words("upload", null=True),  # the multipart upload that it came by: asked again, it is found finished
    key("kind", "owner", "path"),
    Index(None, "digest"),  # a blob that stands here is never collected
    clustered=True,
)
"""The files that runs and logged models keep, by their content; in the order in which a folder is read."""
