"""An import in one process: a source in memory, and a server that is the services themselves.

The source may fail whenever it is asked, as networks do. What it does not do: check anything that `Mover` and
the service are there to check.
"""

from collections.abc import Iterator
from typing import IO

from msgspec import Struct

from modelkeep.client.mlflow_source import (
    Counts,
    ForeignExperiment,
    ForeignLoggedModel,
    ForeignModel,
    ForeignRun,
    ForeignVersion,
    SourceFile,
)
from modelkeep.core import errors
from modelkeep.core.imports import (
    CloseExperiment,
    CloseLoggedModel,
    CloseRun,
    ExperimentItem,
    HistoryItem,
    ImportAnswer,
    ImportBatch,
    ImportedFile,
    ImportSummary,
    LoggedModelItem,
    Point,
    RunItem,
)
from modelkeep.core.tracking import LoggedModelStatus, RunStatus, Tag
from modelkeep.core.values import Digest
from modelkeep.service.act import Context
from modelkeep.service.house import House
from modelkeep.store.artifacts import OwnerKind

NOW = 1_700_000_000_000


class Broken(Exception):
    """What a process that is killed leaves behind."""


class Fuse:
    """Breaks the n-th thing that is done."""

    def __init__(self, after: int | None = None) -> None:
        self.left = after

    def burn(self) -> None:
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise Broken


class MemorySource:
    """A registry in memory."""

    address = "memory://registry"

    def __init__(self, fuse: Fuse | None = None) -> None:
        self.fuse = fuse or Fuse()
        self.all_experiments: list[ForeignExperiment] = []
        self.all_runs: dict[str, list[ForeignRun]] = {}
        self.points: dict[str, list[tuple[str, tuple[Point, ...]]]] = {}
        self.logged: dict[str, list[ForeignLoggedModel]] = {}
        self.all_models: list[ForeignModel] = []
        self.all_versions: dict[str, list[ForeignVersion]] = {}
        self.trees: dict[str, dict[str, bytes]] = {}
        self.sizes: dict[str, int] = {}

    def count(self) -> Counts:
        self.fuse.burn()
        return Counts(
            experiments=len(self.all_experiments),
            runs=sum(map(len, self.all_runs.values())),
            logged_models=sum(map(len, self.logged.values())),
            models=len(self.all_models),
            versions=sum(map(len, self.all_versions.values())),
        )

    def experiments(self) -> Iterator[ForeignExperiment]:
        yield from self.all_experiments

    def runs(self, experiment_id: str) -> Iterator[ForeignRun]:
        yield from self.all_runs.get(experiment_id, ())

    def history(self, run_id: str) -> Iterator[tuple[str, tuple[Point, ...]]]:
        self.fuse.burn()
        yield from self.points.get(run_id, ())

    def logged_models(self, experiment_id: str) -> Iterator[ForeignLoggedModel]:
        yield from self.logged.get(experiment_id, ())

    def models(self) -> Iterator[ForeignModel]:
        yield from self.all_models

    def versions(self, model: str) -> Iterator[ForeignVersion]:
        self.fuse.burn()
        yield from self.all_versions.get(model, ())

    def files(self, root: str, owner: str = "") -> list[SourceFile]:
        self.fuse.burn()
        if root.startswith("gone:"):
            raise errors.FilesUnreachable("It is gone.", root=root)
        tree = self.trees.get(root, {})
        return [SourceFile(path, self.sizes.get(path, len(tree[path]))) for path in sorted(tree)]

    def open(self, root: str, path: str, owner: str = "") -> Iterator[bytes]:
        self.fuse.burn()
        yield self.trees[root][path]

    def close(self) -> None:
        """Nothing is open."""


class HouseTarget:
    """A house as `Mover` speaks with it."""

    def __init__(self, house: House, context: Context, fuse: Fuse | None = None) -> None:
        self.house = house
        self.context = context
        self.fuse = fuse or Fuse()

    def import_batch(self, batch: ImportBatch) -> ImportAnswer:
        self.fuse.burn()
        imports = self.house.imports
        prepared = imports.prepare(self.house.desk, self.context, batch)
        answer = self.house.desk.do(self.context, imports.apply, batch, prepared)
        self.fuse.burn()  # done, and the answer is lost
        return answer

    def import_summary(self, source: str) -> ImportSummary:
        return self.house.desk.read(self.context, self.house.imports.summary, source)

    def imported_files(self, owner: str, id: str) -> tuple[ImportedFile, ...]:  # noqa: A002
        found = self.house.desk.read(self.context, self.house.imports.files, OwnerKind(owner), id)
        assert not found.more, "a small world"
        return found.files

    def missing_files(self, digests: list[Digest]) -> tuple[Digest, ...]:
        self.fuse.burn()
        return self.house.imports.missing(self.house.desk, self.context, digests)

    def send_file(self, digest: Digest, size_bytes: int, source: IO[bytes]) -> None:
        self.fuse.burn()
        imports = self.house.imports
        plan = self.house.desk.read(self.context, imports.prepare_bytes, digest, size_bytes)
        try:
            plan = imports.store_bytes(plan, 0, [source.read()])
            imports.finish_bytes(plan)
        finally:
            imports.drop_bytes(plan)


class Shape(Struct, frozen=True, kw_only=True):
    """How large a filled source is."""

    runs: int = 4
    versions: int = 3


def filled(shape: Shape = Shape(), fuse: Fuse | None = None) -> MemorySource:  # noqa: B008  (frozen)
    """A registry with one of everything, and some runs and versions."""
    source = MemorySource(fuse)
    for id, name, deleted in (("0", "Default", False), ("7", "churn", False), ("8", "old", True)):  # noqa: A001
        source.all_experiments.append(
            ForeignExperiment(
                made=ExperimentItem(id=id, name=name, creation_time=NOW, tags=(Tag("team", name),)),
                closed=CloseExperiment(id=id, deleted=deleted, last_update_time=NOW + 5),
            )
        )
    source.all_runs["7"] = [_run(source, number) for number in range(shape.runs)]
    source.points.get(_id(0), []).append(("acc", ((NOW, 0, 0.5),)))
    model_id = f"m-{1:032x}"
    source.trees["root:/logged"] = {"MLmodel": b"flavors: {}\n", "tree.bin": b"tree"}
    source.logged["7"] = [
        ForeignLoggedModel(
            made=LoggedModelItem(
                id=model_id,
                experiment="7",
                name="tree",
                run=_id(0),
                creation_time=NOW,
                params=(Tag("d", "3"),),
            ),
            closed=CloseLoggedModel(id=model_id, status=LoggedModelStatus.READY, last_update_time=NOW + 9),
            root="root:/logged",
            points=(HistoryItem(id=_id(0), key="acc", points=((NOW, 0, 0.5),), model=model_id),),
        )
    ]
    aliases = {"champion": 1} if shape.versions else {}
    source.all_models.append(
        ForeignModel(
            name="My Model",
            description="Who leaves.",
            tags={"a": "b"},
            creation_time=NOW,
            last_update_time=NOW + 50,
            aliases=aliases,
        )
    )
    source.all_versions["My Model"] = [_version(number) for number in range(1, shape.versions + 1)]
    return source


def _id(number: int) -> str:
    return f"{number + 1:032x}"


def _run(source: MemorySource, number: int) -> ForeignRun:
    id, root = _id(number), f"root:/{number}"  # noqa: A001
    losses = tuple((NOW + step, step, 1 / (step + 1)) for step in range(number * 7))
    source.points[id] = [("loss", losses)] if losses else []
    source.points[id].append(("odd", ((1, 0, "nan"), (2, 1, "inf"), (3, -7, -1.5))))
    source.trees[root] = {"model/w.bin": b"weights %d" % (number // 2), "empty.txt": b""}
    return ForeignRun(
        made=RunItem(
            id=id,
            experiment="7",
            name=f"run {number}",
            user="ann",
            start_time=NOW + number,
            tags=(Tag("k", "v"),),
            params=(Tag("lr", str(number)),),
        ),
        closed=CloseRun(
            id=id,
            status=RunStatus.FAILED if number % 3 == 1 else RunStatus.FINISHED,
            end_time=NOW + 100,
            deleted_time=NOW + 200 if number % 4 == 3 else None,
        ),
        root=root,
    )


def _version(number: int) -> ForeignVersion:
    run = (number - 1) % 2
    return ForeignVersion(
        model="My Model",
        number=number if number < 3 else number + 1,  # 3 was deleted
        description=f"number {number}",
        user="bob",
        creation_time=NOW + number,
        last_update_time=NOW + 10 + number,
        stage={1: "Production", 2: "Staging"}.get(number, "None"),
        source=f"root:/{run}/model",
        run=_id(run),
        tags={"n": str(number)},
    )
