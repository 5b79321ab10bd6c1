"""What was tried: experiments, runs, what they logged, and the models they left behind.

These are MLflow's nouns and they keep MLflow's field names, so that one struct is the domain object, the JSON
on the wire and what the client parses. Times are MLflow's too: whole milliseconds since 1970 as the client
claims them, which may lie where no calendar reaches; when the server noticed something is in the events.
Nothing here stores, searches or speaks HTTP, and nothing decides what becomes a version.

What a run logs is measurement, not state: metric points, params, tags and inputs are kept as they come, and
the event log holds the run's beginning, its end with a digest of everything that it had logged by then, its
deletion and its return (see the decision record on tracking and events).
"""

import hashlib
import math
import posixpath
import re
from collections.abc import Iterable, Sequence
from enum import StrEnum
from functools import lru_cache

from msgspec import Struct

from modelkeep.core import codec, errors, values
from modelkeep.core.values import Digest

# Limits of what a training script may log. They are MLflow's, because the client knows them; where MLflow has
# none, the reason stands beside ours.
EXPERIMENT_NAME_MAX = 500
"""Characters of an experiment's name."""
EXPERIMENT_TAG_VALUE_MAX = 20_000
"""Characters of an experiment tag: notes are kept there."""
KEYS_KEPT = 4_096
"""Keys that are remembered to be plain: the same few are logged over and over."""
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
SOURCE_TYPE_MAX = 36
"""Characters of the kind of a dataset's source."""
INPUT_TAG_KEY_MAX = 255
"""Characters of the key of a dataset's tag."""
INPUT_TAG_VALUE_MAX = 500
"""Characters of the value of a dataset's tag."""
INPUT_TAGS_MAX = 100
"""Tags of one dataset of a run: as many as a batch may have."""
MODELS_MAX = 1_000
"""Logged models that one call names as inputs or outputs."""
USER_MAX = 256
"""Characters of a run's user."""
LOGGED_MODEL_NAME_MAX = 500
"""Characters of a logged model's name."""
MODEL_TYPE_MAX = 500
"""Characters of a logged model's type."""
LOGGED_MODEL_VALUE_MAX = 20_000
"""Characters of the value of a logged model's tag or param: MLflow has none, so the longest it has for a
tag."""
HISTORY_PAGE_MAX = 25_000
"""Points of one page of a metric's history: what the client asks for at a time."""
HISTORY_RUNS_MAX = 100
"""Runs whose histories of one metric are asked for together."""
DIGEST_POINTS_MAX = 20_000
"""Points up to which the digest at a run's end covers the whole history: hashing them keeps every other write
waiting for some hundredths of a second."""
RUN_KEYS_MAX = 20_000
"""Distinct metrics, params or tags that one run may hold: what a page of runs can still carry."""
INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1
"""The range of every whole number on this door."""

RUN_ID = re.compile(r"[a-zA-Z0-9][\w\-]{0,255}", re.ASCII)
"""What a run id may look like; ours are 32 hexadecimal digits, an imported one keeps its own."""
LOGGED_MODEL_ID = re.compile(r"m-[0-9a-f]{32}", re.ASCII)
"""What a logged model's id looks like."""

DEFAULT_EXPERIMENT = "Default"
"""The experiment of a project that takes the runs which name none; in the project default its id is 0."""
RUN_NAME_TAG = "mlflow.runName"
"""The tag that says a run's name once more."""
USER_TAG = "mlflow.user"
"""The tag that says whose run it is."""
CONTEXT_TAG = "mlflow.data.context"
"""The tag of a dataset that says what it was for."""

_KEY = re.compile(r"[/\w.\- :]+")
_PLAIN_KEY = re.compile(r"[A-Za-z0-9_\-]{1,250}")
_DIGITS = re.compile(r"[0-9]{1,19}")
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
_NOT_IN_MODEL_NAMES = "/:.%\"'"


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


class Tag(Struct, frozen=True, gc=False):
    """A key and what stands under it: a tag, a param, a logged model's parameter."""

    key: str
    value: str


class Metric(Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
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


class RunInfo(Struct, frozen=True, kw_only=True, gc=False):
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


class ModelOutput(Struct, frozen=True, kw_only=True, gc=False):
    """A logged model that a run made, and at which step; as an input the step is 0."""

    model_id: str
    step: int = 0


class Run(Struct, frozen=True, kw_only=True, gc=False):
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


class MetricPage(Struct, frozen=True, kw_only=True):
    """A page of a metric's history, in the order of (timestamp, step, value)."""

    items: tuple[Metric, ...]
    next_page_token: str | None = None


class ExperimentPage(Struct, frozen=True, kw_only=True):
    """A page of experiments."""

    items: tuple[Experiment, ...]
    next_page_token: str | None = None


class RunPage(Struct, frozen=True, kw_only=True):
    """A page of runs."""

    items: tuple[Run, ...]
    next_page_token: str | None = None


class LoggedModelPage(Struct, frozen=True, kw_only=True):
    """A page of logged models."""

    items: tuple[LoggedModel, ...]
    next_page_token: str | None = None


class Artifact(Struct, frozen=True, kw_only=True):
    """One file that a run or a logged model keeps, by its content."""

    path: str
    size_bytes: int
    digest: Digest


# ----------------------------------------------------------------------------------------------------- checks


def check_experiment_name(name: str) -> str:
    """What an experiment can be called: MLflow's rule, without characters that hide what a reader sees.

    Raises:
        InvalidParameter: blank, too long, or with control characters.
    """
    if not name.strip():
        raise errors.InvalidParameter("An experiment needs a name that is not blank.", field="name")
    return _check_shown(name, "name", EXPERIMENT_NAME_MAX)


def check_run_name(name: str) -> str:
    """What a run can be called.

    Raises:
        InvalidParameter: too long, or with control characters.
    """
    return _check_shown(name, "run_name", RUN_NAME_MAX)


def check_user(user: str) -> str:
    """Whose run it is, as the client claims; who really asked is in the event.

    Raises:
        InvalidParameter: too long, or with control characters.
    """
    return _check_shown(user, "user_id", USER_MAX)


def check_logged_model_name(name: str) -> str:
    """What a logged model can be called: it becomes part of a path.

    Raises:
        InvalidParameter: empty, too long, or with a character that has a meaning in a path or a reference.
    """
    if not name or any(character in name for character in _NOT_IN_MODEL_NAMES):
        raise errors.InvalidParameter(
            f"{values.quoted(name, 60)} cannot name a logged model: it must not be empty, nor contain "
            "any of / : . % \" '.",
            field="name",
        )
    return _check_shown(name, "name", LOGGED_MODEL_NAME_MAX)


def parse_experiment_id(text: str) -> int:
    """The number behind an experiment's id.

    Raises:
        InvalidParameter: it is no whole number of 64 bits.
    """
    if not _DIGITS.fullmatch(text) or int(text) > INT64_MAX:
        raise errors.InvalidParameter(
            f"{values.quoted(text, 60)} is no experiment id; ids are whole numbers, such as 0.",
            field="experiment_id",
        )
    return int(text)


def check_key(key: str, what: str = "key") -> str:
    """A key of a metric, param or tag: MLflow's rule. A client may make a file of that name.

    Raises:
        InvalidParameter: with a character that is not allowed, too long, or a path that leads elsewhere.
    """
    if _is_plain_key(key):
        return key
    if not _KEY.fullmatch(key):
        raise errors.InvalidParameter(
            f"The {what} {values.quoted(key, 60)} is empty or has a character that keys cannot have; "
            "use letters, digits, spaces and _ - . : /.",
            field=what,
        )
    if len(key) > KEY_MAX:
        raise _too_long(what, len(key), KEY_MAX)
    if ("/" in key or "." in key) and (posixpath.normpath(key) != key or key[0] == "/" or key[:2] == ".."):
        raise errors.InvalidParameter(
            f"The {what} {values.quoted(key, 60)} is a path that leads elsewhere; leave out leading, "
            "double and last slashes, '.' and '..'.",
            field=what,
        )
    if key == ".":
        raise errors.InvalidParameter(f"The {what} must not be '.'.", field=what)
    return key


def _is_plain_key(key: str) -> bool:
    """Whether nothing in a key has to be looked at: most are one word."""
    return len(key) <= KEY_MAX and _is_word(key)


@lru_cache(maxsize=KEYS_KEPT)
def _is_word(key: str) -> bool:
    return _PLAIN_KEY.fullmatch(key) is not None


def check_metric(metric: Metric, what: str = "key") -> Metric:
    """A point that can be kept.

    Raises:
        InvalidParameter: its key, time or step cannot be.
    """
    check_key(metric.key, what)
    if not 0 <= metric.timestamp <= INT64_MAX:
        raise errors.InvalidParameter(
            f"The timestamp of metric {metric.key!r} is {metric.timestamp}; it has to be milliseconds since "
            "1970, from 0 to 2^63 - 1.",
            field="timestamp",
        )
    if not INT64_MIN <= metric.step <= INT64_MAX:
        raise errors.InvalidParameter(
            f"The step of metric {metric.key!r} is {metric.step}; it has to be a whole number of 64 bits.",
            field="step",
        )
    return metric


def check_param(param: Tag, what: str = "key") -> Tag:
    """A param that can be kept; a value that is too long is cut off.

    Raises:
        InvalidParameter: the key cannot be, or the value is no text that can be stored.
    """
    check_key(param.key, what)
    return _cut(param, PARAM_VALUE_MAX)


def check_run_tag(tag: Tag, what: str = "key") -> Tag:
    """A run's tag that can be kept; a value that is too long is cut off. A name of a run is never cut.

    Raises:
        InvalidParameter: the key cannot be, or the value is no text that can be stored, or no name of a run.
    """
    check_key(tag.key, what)
    if tag.key == RUN_NAME_TAG:
        check_run_name(tag.value)
    return _cut(tag, TAG_VALUE_MAX)


def check_whole_tag(tag: Tag, maximum: int = EXPERIMENT_TAG_VALUE_MAX) -> Tag:
    """A tag of an experiment or logged model that can be kept; one that is too long is refused, not cut.

    Raises:
        InvalidParameter: the key cannot be, or the value is too long or no text that can be stored.
    """
    check_key(tag.key)
    if len(tag.value) > maximum:
        raise _too_long("value", len(tag.value), maximum)
    return _cut(tag, maximum)


def check_batch(
    metrics: Sequence[Metric], params: Sequence[Tag], tags: Sequence[Tag]
) -> tuple[list[Metric], list[Tag], list[Tag]]:
    """What one call logs together, each checked and cut; the field of an error names the place.

    Raises:
        InvalidParameter: too many of a kind or in all, a param twice, or something that cannot be kept.
    """
    for what, given, most in (
        ("metrics", len(metrics), BATCH_METRICS_MAX),
        ("params", len(params), BATCH_PARAMS_TAGS_MAX),
        ("tags", len(tags), BATCH_PARAMS_TAGS_MAX),
        ("metrics, params and tags", len(metrics) + len(params) + len(tags), BATCH_MAX),
    ):
        if given > most:
            raise errors.InvalidParameter(
                f"A batch has at most {most:,} {what}, not {given:,}; send several batches.", field=what
            )
    checked = (
        [
            metric
            if _is_plain_key(metric.key)
            and 0 <= metric.timestamp <= INT64_MAX
            and INT64_MIN <= metric.step <= INT64_MAX
            else check_metric(metric, f"metrics[{at}].key")
            for at, metric in enumerate(metrics)
        ],
        [check_param(param, f"params[{at}].key") for at, param in enumerate(params)],
        [check_run_tag(tag, f"tags[{at}].key") for at, tag in enumerate(tags)],
    )
    if len({param.key for param in params}) < len(params):
        keys = [param.key for param in params]
        twice = next(key for at, key in enumerate(keys) if key in keys[:at])
        raise errors.InvalidParameter(
            f"The param {twice!r} stands twice in the batch; send each param once.", field="params"
        )
    return checked


def check_dataset(given: DatasetInput) -> DatasetInput:
    """A dataset and its tags that can be kept.

    Raises:
        InvalidParameter: a part is too long, or no text that can be stored.
    """
    dataset = given.dataset
    for what, text, most in (
        ("name", dataset.name, DATASET_NAME_MAX),
        ("digest", dataset.digest, DATASET_DIGEST_MAX),
        ("source_type", dataset.source_type, SOURCE_TYPE_MAX),
        ("source", dataset.source, DATASET_SOURCE_MAX),
        ("schema", dataset.schema or "", DATASET_SCHEMA_MAX),
        ("profile", dataset.profile or "", DATASET_PROFILE_MAX),
        *(("tags.key", tag.key, INPUT_TAG_KEY_MAX) for tag in given.tags),
        *(("tags.value", tag.value, INPUT_TAG_VALUE_MAX) for tag in given.tags),
    ):
        if len(text) > most:
            raise _too_long(f"dataset.{what}", len(text), most)
        check_storable(text, f"dataset.{what}")
    if len(given.tags) > INPUT_TAGS_MAX:
        raise _too_long("dataset.tags", len(given.tags), INPUT_TAGS_MAX)
    return given


def check_storable(text: str, what: str) -> str:
    """A text that both databases can hold: values may look like anything else.

    Raises:
        InvalidParameter: with NUL, or half a surrogate pair.
    """
    if _UNSTORABLE.search(text):
        raise errors.InvalidParameter(
            f"The {what} has a NUL character or half a surrogate pair; remove it.", field=what
        )
    return text


def _cut(tag: Tag, maximum: int) -> Tag:
    check_storable(tag.value, "value")
    return tag if len(tag.value) <= maximum else Tag(tag.key, tag.value[:maximum])


def _check_shown(text: str, what: str, maximum: int) -> str:
    """A name that stands in one line of a list, a log, a terminal."""
    try:
        values.check_text(text, what, maximum=maximum)
    except errors.Invalid as problem:
        raise errors.InvalidParameter(problem.message, field=what) from problem
    if any(mark in text for mark in "\n\r\t"):
        raise errors.InvalidParameter(f"The {what} has a tab or a line break; use spaces.", field=what)
    return text


def _too_long(what: str, length: int, maximum: int) -> errors.InvalidParameter:
    return errors.InvalidParameter(
        f"The {what} has {length:,} characters; at most {maximum:,} fit.", field=what
    )


# ------------------------------------------------------------------------------------------ what was measured


def rank(metric: Metric) -> tuple[int, int, float]:
    """What makes one point of a metric later than another: step, then timestamp, then value. NaN counts as 0
    there, as it does on MLflow's server."""
    return metric.step, metric.timestamp, 0.0 if math.isnan(metric.value) else metric.value


def latest(points: Iterable[Metric]) -> dict[str, Metric]:
    """Of each key the latest point; of two that are equally late the first."""
    found: dict[str, Metric] = {}
    for point in points:
        known = found.get(point.key)
        if known is None or rank(point) > rank(known):
            found[point.key] = point
    return found


def log_digest(run: Run, points: Sequence[Metric] | None) -> Digest:
    """One digest of everything that a run has logged: what it says of the run as it is now can be compared
    with what its last `run.ended` event said.

    It is SHA-256 over the JSON array [form, metrics, params, tags, datasets, models, points], each a list
    sorted by its items, a number as the shortest text that reads back as the same double.

    Args:
        points: the whole history in any order, or None where it is too long to be part of it.
    """

    def plain(metrics: Iterable[Metric]) -> list[list[str | int]]:
        return sorted([m.key, m.timestamp, m.step, repr(float(m.value))] for m in metrics)

    models = [["input", m.model_id, m.step] for m in run.model_inputs]
    models += [["output", m.model_id, m.step] for m in run.model_outputs]
    document = [
        "modelkeep.run.v1",
        plain(run.metrics),
        sorted([param.key, param.value] for param in run.params),
        sorted([tag.key, tag.value] for tag in run.tags),
        sorted([given.dataset.name, given.dataset.digest] for given in run.datasets),
        sorted(models, key=repr),
        None if points is None else plain(points),
    ]
    return Digest(f"sha256:{hashlib.sha256(codec.encode(document)).hexdigest()}")
