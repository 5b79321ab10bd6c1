"""What was tried: experiments, runs, what they logged, and the models they left behind.

These are MLflow's nouns and they keep MLflow's field names, so that one struct is the domain object, the JSON
on the wire and what the client parses. Times are MLflow's too: whole milliseconds since 1970 as the client
claims them, which may lie where no calendar reaches; when the server noticed something is in the events.
Nothing here stores, searches or speaks HTTP, and nothing decides what becomes a version.

What a run logs is measurement, not state: metric points, params, tags and inputs are kept as they come, and
the event log holds the run's beginning, its end with a digest of everything that it had logged by then, its
deletion and its return (see the decision record on tracking and events).
"""

import re
from enum import StrEnum

from msgspec import Struct

from modelkeep.core.values import Digest

# Limits of what a training script may log. They are MLflow's, because the client knows them; where MLflow has
# none, the reason stands beside ours.
EXPERIMENT_NAME_MAX = 500
"""Characters of an experiment's name."""
EXPERIMENT_TAG_VALUE_MAX = 20_000
"""Characters of an experiment tag: notes are kept there."""
KEY_MAX = 250
"""Characters of the key of a metric, param or tag."""
PARAM_VALUE_MAX = 6_000
"""Characters of a param's value; longer ones are cut off at this length, as MLflow's server does."""
TAG_VALUE_MAX = 8_000
"""Characters of a run tag's value; longer ones are cut off at this length, as MLflow's server does."""
RUN_NAME_MAX = 250
"""Characters of a run's name."""
BATCH_METRICS_MAX = 1_000
"""Metrics of one batch."""
BATCH_PARAMS_TAGS_MAX = 100
"""Params, and tags, of one batch."""
BATCH_MAX = 1_000
"""Metrics, params and tags of one batch together."""
DATASETS_MAX = 1_000
"""Datasets of one call."""
DATASET_NAME_MAX = 500
"""Characters of a dataset's name."""
DATASET_DIGEST_MAX = 36
"""Characters of a dataset's digest."""
DATASET_SCHEMA_MAX = 1_048_575
"""Characters of a dataset's schema."""
DATASET_SOURCE_MAX = 65_535
"""Characters of a dataset's source."""
DATASET_PROFILE_MAX = 16_777_215
"""Characters of a dataset's profile."""
INPUT_TAG_VALUE_MAX = 500
"""Characters of the value of a dataset's tag; its key has at most 255."""
RUN_KEYS_MAX = 20_000
"""Distinct metrics, params or tags that one run may hold: what a page of runs can still carry."""
INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1
"""The range of every whole number on this door."""

RUN_ID = re.compile(r"[a-zA-Z0-9][\w\-]{0,255}", re.ASCII)
"""What a run id may look like; ours are 32 hexadecimal digits, an imported one keeps its own."""
LOGGED_MODEL_ID = re.compile(r"m-[0-9a-f]{32}", re.ASCII)
"""What a logged model's id looks like."""


class LifecycleStage(StrEnum):
    """Whether an experiment or a run is there, or in the bin."""

    ACTIVE = "active"
    DELETED = "deleted"


class ViewType(StrEnum):
    """Which of them a search looks at."""

    ACTIVE_ONLY = "ACTIVE_ONLY"
    DELETED_ONLY = "DELETED_ONLY"
    ALL = "ALL"


class RunStatus(StrEnum):
    """How a run goes; the last three are its end."""

    RUNNING = "RUNNING"
    SCHEDULED = "SCHEDULED"
    FINISHED = "FINISHED"
    FAILED = "FAILED"
    KILLED = "KILLED"

    @property
    def ended(self) -> bool:
        return self in (RunStatus.FINISHED, RunStatus.FAILED, RunStatus.KILLED)


class LoggedModelStatus(StrEnum):
    """Whether a logged model's files are all there."""

    PENDING = "LOGGED_MODEL_PENDING"
    READY = "LOGGED_MODEL_READY"
    FAILED = "LOGGED_MODEL_UPLOAD_FAILED"


class Tag(Struct, frozen=True):
    """A key and what stands under it: a tag, a param, a logged model's parameter."""

    key: str
    value: str


class Metric(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One measured point. `timestamp` in ms since 1970; `value` may be NaN or infinite."""

    key: str
    value: float
    timestamp: int
    step: int = 0
    dataset_name: str | None = None
    dataset_digest: str | None = None
    model_id: str | None = None
    run_id: str | None = None


class Experiment(Struct, frozen=True, kw_only=True):
    """A named set of runs, in a project. Times in ms since 1970."""

    experiment_id: str
    project: str
    name: str
    lifecycle_stage: LifecycleStage = LifecycleStage.ACTIVE
    creation_time: int
    last_update_time: int
    tags: tuple[Tag, ...] = ()


class RunInfo(Struct, frozen=True, kw_only=True):
    """What a run is called and how it goes. Times in ms since 1970, as the client says."""

    run_id: str
    experiment_id: str
    run_name: str
    user_id: str
    status: RunStatus
    start_time: int | None = None
    end_time: int | None = None
    lifecycle_stage: LifecycleStage = LifecycleStage.ACTIVE


class Dataset(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Data that a run has read, as MLflow describes it."""

    name: str
    digest: str
    source_type: str
    source: str
    schema: str | None = None
    profile: str | None = None


class DatasetInput(Struct, frozen=True, kw_only=True):
    """A dataset and what it was for (`mlflow.data.context`)."""

    dataset: Dataset
    tags: tuple[Tag, ...] = ()


class ModelOutput(Struct, frozen=True, kw_only=True):
    """A logged model that a run made, and at which step; as an input the step is 0."""

    model_id: str
    step: int = 0


class Run(Struct, frozen=True, kw_only=True):
    """A run with everything that people look at: of each metric its latest point, the one with the highest
    (step, timestamp, value)."""

    info: RunInfo
    metrics: tuple[Metric, ...] = ()
    params: tuple[Tag, ...] = ()
    tags: tuple[Tag, ...] = ()
    datasets: tuple[DatasetInput, ...] = ()
    model_inputs: tuple[ModelOutput, ...] = ()
    model_outputs: tuple[ModelOutput, ...] = ()


class LoggedModel(Struct, frozen=True, kw_only=True):
    """A model that a run logged (MLflow 3): it has files of its own, and may become a version."""

    model_id: str
    experiment_id: str
    name: str
    status: LoggedModelStatus
    status_message: str = ""
    model_type: str = ""
    source_run_id: str | None = None
    creation_timestamp_ms: int
    last_updated_timestamp_ms: int
    tags: tuple[Tag, ...] = ()
    params: tuple[Tag, ...] = ()
    metrics: tuple[Metric, ...] = ()
    registrations: tuple[tuple[str, int], ...] = ()


class Artifact(Struct, frozen=True, kw_only=True):
    """One file that a run or a logged model keeps, by its content."""

    path: str
    size_bytes: int
    digest: Digest
