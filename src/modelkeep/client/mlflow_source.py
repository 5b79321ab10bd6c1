"""An MLflow registry as an import reads it: one Protocol, which its server and its database both keep, and
what they say.

Ids and times are MLflow's. A source only reads; whatever it is told by the other side is checked before it
is handed on, so that nothing endless, nothing with a path that leads elsewhere and nothing misshapen comes
out of it. What is done with it is `moving`'s part.
"""

from collections.abc import Iterator
from typing import NamedTuple, Protocol

from msgspec import Struct

from modelkeep.core.imports import (
    CloseExperiment,
    CloseLoggedModel,
    CloseRun,
    ExperimentItem,
    HistoryItem,
    LoggedModelItem,
    Point,
    RunItem,
)

POINTS_AT_ONCE = 5_000
"""Points of one metric that are handed on together."""
FILES_MAX = 100_000
"""Files of one run, logged model or version: as many as a run may keep."""
DEPTH_MAX = 64
"""Folders inside each other: more is a loop."""


class SourceFile(NamedTuple):
    """A file below an artifact root; `size_bytes` is None where nobody says it before it is read."""

    path: str
    size_bytes: int | None


class Counts(Struct, frozen=True, kw_only=True):
    """How much there is."""

    experiments: int = 0
    runs: int = 0
    logged_models: int = 0
    models: int = 0
    versions: int = 0


class ForeignExperiment(Struct, frozen=True, kw_only=True):
    """An experiment: how it is made, and how it is closed."""

    made: ExperimentItem
    closed: CloseExperiment


class ForeignRun(Struct, frozen=True, kw_only=True):
    """A run: how it is made and closed, and where its files are (an address, '' for nowhere)."""

    made: RunItem
    closed: CloseRun
    root: str = ""


class ForeignLoggedModel(Struct, frozen=True, kw_only=True):
    """A logged model: how it is made and closed, where its files are, and what runs measured of it."""

    made: LoggedModelItem
    closed: CloseLoggedModel
    root: str = ""
    points: tuple[HistoryItem, ...] = ()


class ForeignModel(Struct, frozen=True, kw_only=True):
    """A registered model. Times in ms since 1970."""

    name: str
    description: str = ""
    tags: dict[str, str] = {}
    creation_time: int
    last_update_time: int
    aliases: dict[str, int] = {}


class ForeignVersion(Struct, frozen=True, kw_only=True):
    """A version of a registered model. Times in ms since 1970.

    Attributes:
        source: what its maker said that it was made of.
        stored: the address where its files are, when that is known and another one.
    """

    model: str
    number: int
    description: str = ""
    user: str = ""
    creation_time: int
    last_update_time: int
    stage: str = "None"
    source: str = ""
    stored: str = ""
    run: str = ""
    logged_model: str = ""
    tags: dict[str, str] = {}


class MlflowSource(Protocol):
    """One MLflow registry, read only.

    Every method may raise SourceUnreadable: what answers is no MLflow registry, or says what cannot be; and
    ServerUnavailable or TimedOut: it does not answer.
    """

    @property
    def address(self) -> str:
        """What it is known by: its address without any secret."""
        ...

    def count(self) -> Counts:
        """How much there is, those in the bin included as far as they can be seen."""
        ...

    def experiments(self) -> Iterator[ForeignExperiment]:
        """All experiments, deleted ones included, in the order of their ids."""
        ...

    def runs(self, experiment_id: str) -> Iterator[ForeignRun]:
        """All runs of an experiment, deleted ones included."""
        ...

    def history(self, run_id: str) -> Iterator[tuple[str, tuple[Point, ...]]]:
        """Every point of every metric of a run: each key with at most `POINTS_AT_ONCE` points at a time."""
        ...

    def logged_models(self, experiment_id: str) -> Iterator[ForeignLoggedModel]:
        """All logged models of an experiment, as far as they can be seen."""
        ...

    def models(self) -> Iterator[ForeignModel]:
        """All registered models, in the order of names."""
        ...

    def versions(self, model: str) -> Iterator[ForeignVersion]:
        """All versions of a model, in the order of numbers."""
        ...

    def files(self, root: str, owner: str = "") -> list[SourceFile]:
        """The files below an artifact root, in the order of paths; none for a root that is not there.

        Args:
            root: an address, as a run, logged model or version says it.
            owner: `run/ID` or `logged_model/ID`, whose root it is.

        Raises:
            FilesUnreachable: nothing here can read such an address, or a path leads elsewhere.
        """
        ...

    def open(self, root: str, path: str, owner: str = "") -> Iterator[bytes]:
        """The bytes of a file that `files` has named, in pieces.

        Raises:
            FilesUnreachable: it cannot be read.
        """
        ...

    def close(self) -> None:
        """Let go of files and connections."""
        ...
