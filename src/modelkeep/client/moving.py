"""Moving a whole MLflow registry in: what is read from a source, checked, and sent batch by batch.

It keeps no state of its own: the server knows what came, so after a break, wherever it was, the same again
completes it. Whatever cannot be carried is dropped singly and told in the report; a whole run stays out only
when nothing of it can be kept. What is there already is read and compared again, which is the verification.
How a source is read is the adapters' part, how something is kept the server's.
"""

import hashlib
import math
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import IO, NamedTuple, Protocol, TypeVar

from msgspec.structs import replace

from modelkeep.client.mlflow_source import (
    Counts,
    ForeignExperiment,
    ForeignLoggedModel,
    ForeignRun,
    MlflowSource,
    SourceFile,
)
from modelkeep.client.move_report import LEFT_OUT_MAX, Check, Mapped, Moved, MoveReport, Tally
from modelkeep.core import codec, errors, tracking, values
from modelkeep.core.imports import (
    FileItem,
    HistoryItem,
    ImportAnswer,
    ImportBatch,
    Imported,
    ImportedFile,
    ImportSummary,
    Item,
    Kind,
    Point,
    RunItem,
    State,
    metric_of,
)
from modelkeep.core.tracking import (
    DIGEST_POINTS_MAX,
    DatasetInput,
    Metric,
    ModelOutput,
    Run,
    RunInfo,
    Tag,
    rank,
)
from modelkeep.core.values import Digest

# Limits of what is under way; each with the reason for its size.
BATCH_BYTES = 1024 * 1024
"""Bytes of a batch, about: a quarter of what a request may have, so that one large item still fits."""
BATCH_POINTS = 10_000
"""Points of a batch: half of what the server takes."""
BATCH_ITEMS = 500
"""Items of one kind in a batch: half of what the server takes."""
RUNS_AT_ONCE = 50
"""Runs that are announced together, before what they logged."""
GROUP_FILES = 200
"""Files whose bytes are looked for together."""
GROUP_BYTES = 64 * 1024 * 1024
"""Bytes of files on this machine's disk at a time, unless one file alone has more."""
FILE_MAX_BYTES = 1024**4
"""Bytes of a file whose size nobody says: what a registry takes."""

T = TypeVar("T")

Progress = Callable[[str, int, int], None]
"""Told what is under way, how many are done, and of how many."""


class Target(Protocol):
    """The server that everything goes to, as the client speaks with it."""

    def import_batch(self, batch: ImportBatch, /) -> ImportAnswer: ...

    def import_summary(self, source: str, /) -> ImportSummary: ...

    def imported_files(self, owner: str, name: str, /) -> tuple[ImportedFile, ...]: ...

    def missing_files(self, digests: list[Digest], /) -> tuple[Digest, ...]: ...

    def send_file(self, digest: Digest, size_bytes: int, source: IO[bytes], /) -> None: ...


class _Batch:
    """What is about to be sent; it goes when it is full."""

    def __init__(self, send: Callable[[ImportBatch], None], source: str, project: str) -> None:
        self._send = send
        self._empty = ImportBatch(source=source, project=project)
        self._lists: dict[str, list[Item]] = {}
        self._bytes = self._points = 0

    def add(self, field: str, item: Item) -> None:
        """Send what is there when this one would be too much, and take it."""
        size = len(codec.encode(item))
        points = len(item.points) if isinstance(item, HistoryItem) else 0
        full = (
            self._bytes + size > BATCH_BYTES
            or self._points + points > BATCH_POINTS
            or len(self._lists.get(field, ())) >= BATCH_ITEMS
        )
        if full:
            self.flush()
        self._lists.setdefault(field, []).append(item)
        self._bytes += size
        self._points += points

    def flush(self) -> None:
        """Send what is there."""
        if self._lists:
            lists, self._lists, self._bytes, self._points = self._lists, {}, 0, 0
            self._send(replace(self._empty, **{name: tuple(items) for name, items in lists.items()}))


class TrackingMover:
    """One import, as far as tracking goes, and what every part of it needs."""

    def __init__(
        self,
        source: MlflowSource,
        target: Target,
        *,
        project: str = values.DEFAULT_PROJECT,
        rename: Mapping[str, str] | None = None,
        dry_run: bool = False,
        progress: Progress = lambda what, done, total: None,
    ) -> None:
        """
        Args:
            rename: what an experiment or registered model is to be called here, by its name there.
            dry_run: read and check everything, and send nothing.
        """
        self.source = source
        self.target = target
        self.project = project
        self.rename = dict(rename or {})
        self.dry_run = dry_run
        self.tally = Tally()
        self.roots: dict[str, tuple[Kind, str]] = {}
        self._holding: set[tuple[Kind, str]] = set()
        self.progress = progress
        self._states: dict[tuple[Kind, str], State] = {}
        self._batch = _Batch(self._sent, source.address, project)
        self.counts = Counts()

    def move_tracking(self) -> None:
        """Move experiments, runs and logged models.

        Raises:
            SourceUnreadable, ServerUnavailable, TimedOut: one of the two sides fails; the same again goes on.
            NotAllowed: the caller is no admin. Conflict: the source went to another project before.
        """
        self.counts = self.source.count()
        experiments = list(self.source.experiments())
        for experiment in experiments:
            self._announce(experiment)
        self._batch.flush()
        done = 0
        for experiment in experiments:
            if not self.carried(Kind.EXPERIMENT, experiment.made.id):
                continue
            for run in self._runs(experiment.made.id):
                self._move_run(run)
                done += 1
                self.progress("runs", done, self.counts.runs)
            for model in self.source.logged_models(experiment.made.id):
                self._move_logged_model(model)
            self.put("closed_experiments", experiment.closed)
        self._batch.flush()

    # ----------------------------------------------------------------------------------------------- sending

    def put(self, field: str, item: Item) -> None:
        """Have an item sent, soon."""
        if not self.dry_run:
            self._batch.add(field, item)

    def announce(self, kind: Kind, field: str, items: Iterable[Item]) -> None:
        """Send items, and know of each how it stands."""
        if not self.dry_run:
            self._batch.flush()
        for item in items:
            self.tally.count(kind, "found")
            if self.dry_run:
                self._states[kind, item.id] = State.NEW
            self.put(field, item)
        if not self.dry_run:
            self._batch.flush()

    def state(self, kind: Kind, foreign: str) -> State:
        """How something stands that was announced."""
        return self._states.get((kind, foreign), State.REFUSED)

    def carried(self, kind: Kind, foreign: str) -> bool:
        return self.state(kind, foreign) is not State.REFUSED

    def keeps(self, kind: Kind, foreign: str) -> bool:
        """Whether files of a run or logged model came."""
        return (kind, foreign) in self._holding

    def _sent(self, batch: ImportBatch) -> None:
        announced = {
            (kind, item.id): item
            for kind, items in (
                (Kind.EXPERIMENT, batch.experiments), (Kind.RUN, batch.runs),
                (Kind.LOGGED_MODEL, batch.logged_models), (Kind.MODEL, batch.models),
                (Kind.VERSION, batch.versions), (Kind.ALIAS, batch.aliases),
            )
            for item in items
        }  # fmt: skip
        for answer in self.target.import_batch(batch).items:
            if (answer.kind, answer.id) in announced:
                del announced[answer.kind, answer.id]
                self._announced(answer)
            elif answer.state is State.REFUSED and answer.kind in (Kind.POINTS, Kind.FILE):
                self.tally.change(answer.kind, answer.id, answer.message)
            elif answer.state is State.REFUSED:
                self.tally.differ(answer.kind, answer.id, answer.message)

    def _announced(self, answer: Imported) -> None:
        self._states[answer.kind, answer.id] = answer.state
        if answer.state is State.REFUSED:
            self.tally.leave(answer.kind, answer.id, answer.message)
            return
        self.tally.count(answer.kind, "there" if answer.state is State.DONE else "new")
        named = answer.kind in (Kind.EXPERIMENT, Kind.MODEL)
        if named and answer.ours != answer.id and len(self.tally.mapped) < LEFT_OUT_MAX:
            self.tally.mapped.append(Mapped(kind=answer.kind, id=answer.id, ours=answer.ours))

    # ---------------------------------------------------------------------------------------------- tracking

    def _announce(self, experiment: ForeignExperiment) -> None:
        made = experiment.made
        name = self.rename.get(made.name, made.name)
        tags = self._kept(made.tags, tracking.check_whole_tag, Kind.EXPERIMENT, made.id, "tag")
        self.announce(Kind.EXPERIMENT, "experiments", [replace(made, name=name, tags=tags)])

    def _runs(self, experiment_id: str) -> Iterator[ForeignRun]:
        """The runs of an experiment that can be carried, each announced before it is handed on."""
        waiting: list[ForeignRun] = []
        for run in self.source.runs(experiment_id):
            waiting.append(replace(run, made=self._checked_run(run.made)))
            if len(waiting) == RUNS_AT_ONCE:
                yield from self._announced_runs(waiting)
                waiting = []
        yield from self._announced_runs(waiting)

    def _announced_runs(self, waiting: list[ForeignRun]) -> Iterator[ForeignRun]:
        self.announce(Kind.RUN, "runs", [run.made for run in waiting])
        return (run for run in waiting if self.carried(Kind.RUN, run.made.id))

    def _checked_run(self, made: RunItem) -> RunItem:
        """A run without what of it cannot be kept."""
        of = (Kind.RUN, made.id)
        datasets = self._kept(made.datasets, tracking.check_dataset, *of, "dataset")
        named = {(given.dataset.name, given.dataset.digest): given for given in reversed(datasets)}
        return replace(
            made,
            name=self._shown(made.name, tracking.check_run_name, tracking.RUN_NAME_MAX, *of, "name"),
            user=self._shown(made.user, tracking.check_user, tracking.USER_MAX, *of, "user"),
            tags=_by_key(self._kept(made.tags, tracking.check_run_tag, *of, "tag")),
            params=_by_key(self._kept(made.params, tracking.check_param, *of, "param")),
            datasets=tuple(given for given in datasets if named[_name_of(given)] is given),
            inputs=_by_model(self._kept(made.inputs, _check_model, *of, "input")),
            outputs=_by_model(self._kept(made.outputs, _check_model, *of, "output")),
        )

    def _move_run(self, run: ForeignRun) -> None:
        made, log = run.made, _Log()
        there = self.state(Kind.RUN, made.id) is State.DONE
        for key, points in self.source.history(made.id):
            kept = self._kept_points(key, points, made.id)
            self.tally.points += len(kept)
            log.take(key, kept)
            if kept and not there:
                self.put("histories", HistoryItem(id=made.id, key=key, points=tuple(kept)))
        if run.root:
            self.roots[run.root.rstrip("/")] = (Kind.RUN, made.id)
        files = self._move_files(Kind.RUN, made.id, run.root, there=there)
        closed = replace(run.closed, digest=log.digest(made), files=files.count, size_bytes=files.size_bytes)
        self.put("closed_runs", closed)

    def _move_logged_model(self, model: ForeignLoggedModel) -> None:
        made, of = model.made, (Kind.LOGGED_MODEL, model.made.id)

        def check(tag: Tag) -> Tag:
            return tracking.check_whole_tag(tag, tracking.LOGGED_MODEL_VALUE_MAX)

        made = replace(
            made,
            tags=_by_key(self._kept(made.tags, check, *of, "tag")),
            params=_by_key(self._kept(made.params, check, *of, "param")),
        )
        self.announce(Kind.LOGGED_MODEL, "logged_models", [made])
        if not self.carried(*of):
            return
        there = self.state(*of) is State.DONE
        for points in model.points if not there else ():
            kept = self._kept_points(points.key, points.points, points.id)
            if kept and self.carried(Kind.RUN, points.id):
                self.put("histories", replace(points, points=tuple(kept)))
            elif kept:
                self.tally.change(*of, f"the run {points.id} that measured {points.key} is not there")
        if model.root:
            self.roots[model.root.rstrip("/")] = of
        if model.closed.deleted and there:
            return
        files = self._move_files(*of, model.root, there=there)
        self.put(
            "closed_logged_models",
            replace(model.closed, files=files.count, size_bytes=files.size_bytes),
        )

    # ----------------------------------------------------------------------------------------------- checking

    def _kept(
        self,
        items: Iterable[T],
        check: Callable[[T], T],
        kind: Kind,
        foreign: str,
        what: str,
    ) -> tuple[T, ...]:
        """What of these can be kept; the rest is noted."""
        kept: list[T] = []
        for item in items:
            try:
                checked = check(item)
            except errors.ModelkeepError as refused:
                self.tally.change(kind, foreign, f"A {what} is left out: {refused.message}")
                continue
            if checked != item:
                self.tally.change(kind, foreign, f"A {what} is too long and cut off: {_told(item)}")
            kept.append(checked)
        return tuple(kept)

    def _shown(
        self,
        text: str,
        check: Callable[[str], str],
        maximum: int,
        kind: Kind,
        foreign: str,
        what: str,
    ) -> str:
        """A name that can be kept: one that cannot is made so, and noted."""
        try:
            return check(text)
        except errors.ModelkeepError:
            self.tally.change(
                kind, foreign, f"The {what} is written as it can be shown: {values.quoted(text, 60)}"
            )
            return values.printable(text)[:maximum]

    def _kept_points(self, key: str, points: Iterable[Point], run_id: str) -> list[Point]:
        try:
            kept = []
            for point in points:
                tracking.check_metric(metric_of(key, point))
                kept.append(point)
            return kept
        except (errors.ModelkeepError, ValueError) as refused:
            self.tally.change(Kind.RUN, run_id, f"Points of a metric are left out: {refused}")
            return []

    # -------------------------------------------------------------------------------------------------- files

    def _move_files(self, kind: Kind, foreign: str, root: str, *, there: bool) -> "_Files":
        """Bring the files below a root; those that are here already are counted only."""
        moved = _Files()
        if not root:
            return moved
        try:
            listed = self.source.files(root, f"{kind}/{foreign}")
        except errors.FilesUnreachable as refused:
            self.tally.change(kind, foreign, refused.message)
            return moved
        known: dict[str, int] = {}
        if listed and not self.dry_run and self.state(kind, foreign) is not State.NEW:
            known = {file.path: file.size_bytes for file in self.target.imported_files(kind, foreign)}
        group = _Group()
        try:
            for file in listed:
                if file.path in known and (there or file.size_bytes in (None, known[file.path])):
                    moved.add(known[file.path])
                elif there or self.dry_run:
                    moved.add(file.size_bytes or 0)
                else:
                    fetched = self.fetch(kind, foreign, root, file)
                    if fetched is None:
                        continue
                    group.add(fetched)
                    moved.add(fetched.size_bytes)
                    if group.full:
                        self._send_group(kind, foreign, group)
            self._send_group(kind, foreign, group)
        finally:
            group.close()
        if moved.count:
            self._holding.add((kind, foreign))
        self.tally.files += moved.count
        self.tally.size_bytes += moved.size_bytes
        return moved

    def fetch(self, kind: Kind, foreign: str, root: str, file: SourceFile) -> "Fetched | None":
        """Bring a file to this machine's disk, hashed; None, and a note, where it is not what was told."""
        most = FILE_MAX_BYTES if file.size_bytes is None else file.size_bytes
        found, size, place = hashlib.sha256(), 0, tempfile.TemporaryFile()  # noqa: SIM115  (closed by the group)
        try:
            for chunk in self.source.open(root, file.path, f"{kind}/{foreign}"):
                size += len(chunk)
                if size > most:
                    break
                found.update(chunk)
                place.write(chunk)
        except errors.FilesUnreachable as refused:
            place.close()
            self.tally.change(kind, foreign, refused.message)
            return None
        except BaseException:
            place.close()
            raise
        if file.size_bytes is not None and size != file.size_bytes:
            place.close()
            self.tally.change(
                kind,
                foreign,
                f"The file {file.path} is said to have {file.size_bytes:,} bytes and has another number.",
            )
            return None
        place.flush()
        return Fetched(file.path, Digest(f"sha256:{found.hexdigest()}"), size, place)

    def send_bytes(self, files: list["Fetched"]) -> None:
        """Send the bytes that are not there yet, and let go of the files."""
        wanted = {file.digest: file for file in files}
        try:
            for digest in self.target.missing_files(list(wanted)) if wanted else ():
                file = wanted[digest]
                file.place.seek(0)
                self.target.send_file(file.digest, file.size_bytes, file.place)
        finally:
            for file in files:
                file.place.close()

    def _send_group(self, kind: Kind, foreign: str, group: "_Group") -> None:
        files, group.files = group.files, []
        self.send_bytes(files)
        for file in files:
            item = FileItem(
                id=foreign, owner=kind, path=file.path, digest=file.digest, size_bytes=file.size_bytes
            )
            self.put("files", item)

    # ----------------------------------------------------------------------------------------------- the end

    def report(self) -> MoveReport:
        """Send what is left, count on both sides, and tell."""
        self._batch.flush()
        tally = self.tally
        return MoveReport(
            source=self.source.address,
            project=self.project,
            dry_run=self.dry_run,
            kinds={kind: Moved(**counted) for kind, counted in tally.kinds.items()},
            points=tally.points,
            files=tally.files,
            size_bytes=tally.size_bytes,
            mapped=tuple(tally.mapped),
            changed=tuple(tally.changed),
            left_out=tuple(tally.left_out),
            differing=tuple(tally.differing),
            more=tally.more,
            checks=() if self.dry_run else self._checks(),
        )

    def _checks(self) -> tuple[Check, ...]:
        """Count on both sides what is to be here."""
        here = self.target.import_summary(self.source.address)
        counted = (
            ("experiments", Kind.EXPERIMENT, self.counts.experiments),
            ("runs", Kind.RUN, self.counts.runs),
            ("logged models", Kind.LOGGED_MODEL, self.counts.logged_models),
            ("registered models", Kind.MODEL, self.counts.models),
            ("versions", Kind.VERSION, self.counts.versions),
        )
        checks = [
            Check(what=what, there=there, here=here.kinds[kind].done if kind in here.kinds else 0)
            for what, kind, there in counted
        ]
        return (
            *checks,
            Check(what="points of metrics", there=self.tally.points, here=here.points),
            Check(what="files of runs and logged models", there=self.tally.files, here=here.files),
            Check(what="bytes of these files", there=self.tally.size_bytes, here=here.size_bytes),
        )


class Fetched(NamedTuple):
    """A file on this machine's disk."""

    path: str
    digest: Digest
    size_bytes: int
    place: IO[bytes]


class _Group:
    """Files on this machine's disk, until they are sent."""

    def __init__(self) -> None:
        self.files: list[Fetched] = []

    def add(self, file: Fetched) -> None:
        self.files.append(file)

    def close(self) -> None:
        """Let go of what was not sent."""
        for file in self.files:
            file.place.close()

    @property
    def full(self) -> bool:
        return len(self.files) >= GROUP_FILES or sum(f.size_bytes for f in self.files) >= GROUP_BYTES


class _Files:
    """How many files are here, and their bytes."""

    def __init__(self) -> None:
        self.count = self.size_bytes = 0

    def add(self, size_bytes: int) -> None:
        self.count += 1
        self.size_bytes += size_bytes


class _Log:
    """The points of one run, as far as its digest needs them."""

    def __init__(self) -> None:
        self._latest: dict[str, Metric] = {}
        self._points: set[tuple[str, int, int, float, bool]] | None = set()

    def take(self, key: str, points: Iterable[Point]) -> None:
        for point in points:
            metric = metric_of(key, point)
            known = self._latest.get(key)
            if known is None or rank(metric) > rank(known):
                self._latest[key] = metric
            if self._points is not None:
                nan = math.isnan(metric.value)
                value = 0.0 if nan else metric.value
                self._points.add((key, metric.timestamp, metric.step, value, nan))
                if len(self._points) > DIGEST_POINTS_MAX:
                    self._points = None

    def digest(self, made: RunItem) -> Digest:
        """What the server has to find when all has come."""
        whole = None
        if self._points is not None:
            whole = [
                Metric(key=key, timestamp=timestamp, step=step, value=math.nan if nan else value)
                for key, timestamp, step, value, nan in self._points
            ]
        run = Run(
            info=_NO_INFO,
            metrics=tuple(self._latest.values()),
            params=made.params,
            tags=made.tags,
            datasets=made.datasets,
            model_inputs=made.inputs,
            model_outputs=made.outputs,
        )
        return tracking.log_digest(run, whole)


_NO_INFO = RunInfo(run_id="", experiment_id="", run_name="", user_id="", status=tracking.RunStatus.RUNNING)
"""What a digest does not look at."""


def _by_key(tags: Iterable[Tag]) -> tuple[Tag, ...]:
    """The last of each key, in the order of keys."""
    kept = {tag.key: tag for tag in tags}
    return tuple(kept[key] for key in sorted(kept))


def _by_model(models: Iterable[ModelOutput]) -> tuple[ModelOutput, ...]:
    return tuple({model.model_id: model for model in models}.values())


def _name_of(given: DatasetInput) -> tuple[str, str]:
    return given.dataset.name, given.dataset.digest


def _check_model(model: ModelOutput) -> ModelOutput:
    if not tracking.LOGGED_MODEL_ID.fullmatch(model.model_id):
        raise errors.InvalidParameter(f"{values.quoted(model.model_id, 60)} is no foreign of a logged model.")
    return model


def _told(item: object) -> str:
    return values.quoted(item.key, 60) if isinstance(item, Tag) else type(item).__name__
