"""What moves in from another registry: the shapes of a batch and of its answer, on both sides of the wire.

Times, users and numbers of others are stated here and nowhere else, so only an admin may send a batch. Each
item is known by the id that it has where it comes from; sent again it changes nothing. Reading the other
registry is the adapters' part, sending `client.moving`'s, writing `service.imports`'.
"""

import math
from collections.abc import Iterable
from enum import StrEnum
from typing import Annotated

from msgspec import Meta, Struct

from modelkeep.core import values
from modelkeep.core.tracking import (
    DatasetInput,
    LoggedModelStatus,
    Metric,
    ModelOutput,
    RunStatus,
    Tag,
)
from modelkeep.core.values import Digest

# Limits of one batch: it is one act, and every other write waits for it.
ITEMS_MAX = 1_000
"""Items of one kind."""
POINTS_MAX = 20_000
"""Points of metrics of one batch: some hundredths of a second in the writer."""
SOURCE_MAX = 500
"""Characters of the address of a registry."""
FOREIGN_ID_MAX = 500
"""Characters of an id in the other registry; the longest there are names."""

Number = float | str
"""A measured value; what JSON cannot say is the text `nan`, `inf` or `-inf`."""
Point = tuple[int, int, Number]
"""(timestamp in ms since 1970, step, value)."""

ForeignId = Annotated[str, Meta(min_length=1, max_length=FOREIGN_ID_MAX)]


class Kind(StrEnum):
    """What moves."""

    EXPERIMENT = "experiment"
    RUN = "run"
    LOGGED_MODEL = "logged_model"
    MODEL = "model"
    VERSION = "version"
    ALIAS = "alias"
    POINTS = "points"
    FILE = "file"


class Item(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What moves, under the id that it has where it comes from."""

    id: ForeignId


class ExperimentItem(Item, frozen=True, kw_only=True):
    """An experiment. Times in ms since 1970."""

    name: str
    creation_time: int
    tags: tuple[Tag, ...] = ()


class RunItem(Item, frozen=True, kw_only=True):
    """A run without its histories and files; until it is closed it runs. Times in ms since 1970."""

    experiment: ForeignId
    name: str = ""
    user: str = ""
    start_time: int
    tags: tuple[Tag, ...] = ()
    params: tuple[Tag, ...] = ()
    datasets: tuple[DatasetInput, ...] = ()
    inputs: tuple[ModelOutput, ...] = ()
    outputs: tuple[ModelOutput, ...] = ()


class LoggedModelItem(Item, frozen=True, kw_only=True):
    """A logged model whose files are still to come. Times in ms since 1970."""

    experiment: ForeignId
    name: str
    model_type: str = ""
    run: str | None = None
    creation_time: int
    tags: tuple[Tag, ...] = ()
    params: tuple[Tag, ...] = ()


class HistoryItem(Item, frozen=True, kw_only=True):
    """Points of one metric of a run (`id`); of a logged model too, where it names one."""

    key: str
    points: tuple[Point, ...]
    model: str | None = None
    dataset_name: str | None = None
    dataset_digest: str | None = None


class FileItem(Item, frozen=True, kw_only=True):
    """A file that a run or logged model (`id`) keeps; its bytes were sent before."""

    owner: Kind
    path: str
    digest: Digest
    size_bytes: int


class CloseExperiment(Item, frozen=True, kw_only=True):
    """All runs of an experiment have come. `last_update_time` in ms since 1970."""

    deleted: bool = False
    last_update_time: int


class CloseRun(Item, frozen=True, kw_only=True):
    """Everything of a run has come: how it went, and whether it lies in the bin. Times in ms since 1970.

    Attributes:
        digest: what `tracking.log_digest` says of the run where it comes from.
        files, size_bytes: how many files it is to have, and how many bytes; None where nobody counted.
    """

    status: RunStatus
    end_time: int | None = None
    deleted_time: int | None = None
    digest: Digest | None = None
    files: int | None = None
    size_bytes: int | None = None


class CloseLoggedModel(Item, frozen=True, kw_only=True):
    """Everything of a logged model has come; as `CloseRun`."""

    status: LoggedModelStatus
    status_message: str = ""
    last_update_time: int
    deleted: bool = False
    files: int | None = None
    size_bytes: int | None = None


class ModelItem(Item, frozen=True, kw_only=True):
    """A registered model. `id` is its name there, `name` the one it is to have here; times in ms since 1970.

    Attributes:
        shared: stages in which several of its versions stand together.
    """

    name: str
    description: str = ""
    tags: dict[str, str] = {}
    creation_time: int
    last_update_time: int
    shared: tuple[str, ...] = ()


class CloseModel(Item, frozen=True, kw_only=True):
    """All versions of a registered model have come; it is named by its id.

    Attributes:
        last_update_time: in ms since 1970.
        last_number: the highest number that was ever given there.
    """

    last_update_time: int
    last_number: int = 0


class VersionFile(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A file of a version; its bytes were sent before."""

    path: str
    digest: Digest
    size_bytes: int


class VersionItem(Item, frozen=True, kw_only=True):
    """A version, under its number; `id` is `NAME/NUMBER`. Versions of a model come in the order of numbers.
    Times in ms since 1970.

    Attributes:
        folder: where its files lie below the run or logged model that it was made of, when they are not
            listed.
        source: what the other registry says it was made of.
        stage: the word that MLflow has for it, or one of the model's own.
    """

    model: ForeignId
    number: int
    description: str = ""
    user: str = ""
    creation_time: int
    last_update_time: int
    stage: str = "None"
    source: str = ""
    run: str | None = None
    logged_model: str | None = None
    folder: str | None = None
    files: tuple[VersionFile, ...] = ()
    tags: dict[str, str] = {}


class AliasItem(Item, frozen=True, kw_only=True):
    """An alias; `id` is `NAME@ALIAS`."""

    model: ForeignId
    alias: str
    number: int


class ImportBatch(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What moves in together, kind by kind in the order of the fields; one act.

    Attributes:
        source: the address of the registry that it comes from, without any secret.
        project: where it goes.
    """

    source: Annotated[str, Meta(min_length=1, max_length=SOURCE_MAX)]
    project: str = values.DEFAULT_PROJECT
    experiments: Annotated[tuple[ExperimentItem, ...], Meta(max_length=ITEMS_MAX)] = ()
    runs: Annotated[tuple[RunItem, ...], Meta(max_length=ITEMS_MAX)] = ()
    logged_models: Annotated[tuple[LoggedModelItem, ...], Meta(max_length=ITEMS_MAX)] = ()
    histories: Annotated[tuple[HistoryItem, ...], Meta(max_length=ITEMS_MAX)] = ()
    files: Annotated[tuple[FileItem, ...], Meta(max_length=ITEMS_MAX)] = ()
    closed_runs: Annotated[tuple[CloseRun, ...], Meta(max_length=ITEMS_MAX)] = ()
    closed_logged_models: Annotated[tuple[CloseLoggedModel, ...], Meta(max_length=ITEMS_MAX)] = ()
    closed_experiments: Annotated[tuple[CloseExperiment, ...], Meta(max_length=ITEMS_MAX)] = ()
    models: Annotated[tuple[ModelItem, ...], Meta(max_length=ITEMS_MAX)] = ()
    versions: Annotated[tuple[VersionItem, ...], Meta(max_length=ITEMS_MAX)] = ()
    aliases: Annotated[tuple[AliasItem, ...], Meta(max_length=ITEMS_MAX)] = ()
    closed_models: Annotated[tuple[CloseModel, ...], Meta(max_length=ITEMS_MAX)] = ()


class State(StrEnum):
    """How an item stands after its batch."""

    NEW = "new"  # made by this batch; still open where it has to be closed
    OPEN = "open"  # an earlier batch made it, and it was not closed
    DONE = "done"  # it is all there
    REFUSED = "refused"  # it cannot be kept as it is


class Imported(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What became of one item: what it is called here, or why it is not."""

    kind: Kind
    id: str
    ours: str = ""
    state: State
    code: str = ""
    message: str = ""


class ImportAnswer(Struct, frozen=True, kw_only=True):
    """What became of each item of a batch, in the order in which they came."""

    items: tuple[Imported, ...]


class ImportedFile(Struct, frozen=True, kw_only=True):
    """A file that a run or logged model keeps already."""

    path: str
    size_bytes: int
    digest: Digest


class ImportedFiles(Struct, frozen=True, kw_only=True):
    """The files below a run or logged model, in the order of their paths; `more` says that there are more."""

    files: tuple[ImportedFile, ...]
    more: bool = False


class MissingFiles(Struct, frozen=True, kw_only=True):
    """Which files the registry does not have the bytes of."""

    missing: tuple[Digest, ...]


class KindSummary(Struct, frozen=True, kw_only=True):
    """How many of a kind came from a source: those that are all there, and those that wait for the rest."""

    done: int = 0
    open: int = 0


class ImportSummary(Struct, frozen=True, kw_only=True):
    """What came from a source so far.

    Attributes:
        points, files, size_bytes: of the runs and logged models that came.
    """

    source: str
    project: str
    kinds: dict[Kind, KindSummary]
    points: int = 0
    files: int = 0
    size_bytes: int = 0


def write_number(value: float) -> Number:
    """A measured value as it travels."""
    return value if math.isfinite(value) else repr(value)


def read_number(value: Number) -> float:
    """A measured value out of what travelled.

    Raises:
        ValueError: a text that is no number.
    """
    return float(value)


def metric_of(key: str, point: Point) -> Metric:
    """A point of a metric. Raises ValueError as `read_number`."""
    timestamp, step, value = point
    return Metric(key=key, value=read_number(value), timestamp=timestamp, step=step)


def points_of(metrics: Iterable[Metric]) -> tuple[Point, ...]:
    """Points as they travel."""
    return tuple((m.timestamp, m.step, write_number(m.value)) for m in metrics)
