"""Moving in: experiments, runs, logged models and their files from another registry, as they were there.

One verb, `apply`, which is an act and takes a batch; each item of it is kept whole or refused with a reason,
and one that is there already changes nothing. Only an admin may: ids, times and users are stated by the
batch. The event log says of each thing when it came, by whom it was brought and from where; what it says of
its own past stands in the event's body under `imported`. Registered models are `import_models`' part.
"""

from collections.abc import Iterable, Sequence

from msgspec import Struct
from msgspec.structs import replace

from modelkeep.core import errors, tracking, values
from modelkeep.core.events import EventKind
from modelkeep.core.imports import (
    POINTS_MAX,
    CloseExperiment,
    CloseLoggedModel,
    CloseRun,
    ExperimentItem,
    FileItem,
    HistoryItem,
    ImportAnswer,
    ImportBatch,
    ImportedFile,
    ImportedFiles,
    ImportSummary,
    Kind,
    KindSummary,
    LoggedModelItem,
    RunItem,
    metric_of,
)
from modelkeep.core.tracking import (
    DEFAULT_EXPERIMENT,
    LoggedModel,
    LoggedModelStatus,
    Metric,
    RunInfo,
    RunStatus,
    Tag,
)
from modelkeep.core.values import Digest
from modelkeep.ports import BlobInfo, BlobStore
from modelkeep.service import run_logging
from modelkeep.service.act import Act, Context, Desk
from modelkeep.service.artifacts import ARTIFACTS_MAX, ArtifactPlan, Artifacts, OwnedPlace, Owner
from modelkeep.service.catalog import Catalog
from modelkeep.service.import_batch import Made, Moving, begin, check_moment, may_import
from modelkeep.service.import_models import ModelImports, PreparedFiles
from modelkeep.store import artifacts as artifact_store
from modelkeep.store import experiments, logged_models, run_log, runs
from modelkeep.store import imports as store
from modelkeep.store.artifacts import OwnerKind
from modelkeep.store.experiments import ExperimentRow
from modelkeep.store.imports import Known


class BytesPlan(Struct, frozen=True, kw_only=True):
    """Where the bytes of a file go, and how many have come."""

    upload_id: str
    digest: Digest
    size_bytes: int
    offset: int = 0
    present: bool = False


class Prepared(Struct, frozen=True, kw_only=True):
    """What was found out for a batch before its act: which of its files have no bytes here, and which files
    its versions have."""

    missing: frozenset[Digest]
    versions: dict[str, PreparedFiles] = {}


class Imports:
    """The verbs of moving in. Acts but `missing`, `prepare` and those of bytes."""

    def __init__(self, blobs: BlobStore, catalog: Catalog, artifacts: Artifacts) -> None:
        self._blobs = blobs
        self._artifacts = artifacts
        self._registry = ModelImports(blobs, catalog, artifacts)

    # ---------------------------------------------------------------------------------------------- reading

    def missing(self, desk: Desk, context: Context, digests: Iterable[Digest]) -> tuple[Digest, ...]:
        """Which blobs are not there. No act: blobs are looked for outside of any transaction.

        Raises:
            NotAllowed: the caller is no admin.
        """
        desk.read(context, may_import)
        return tuple(digest for digest in dict.fromkeys(digests) if self._blobs.stat(digest) is None)

    def files(self, act: Act, kind: OwnerKind, id: str, after: str = "") -> ImportedFiles:  # noqa: A002
        """The files that a run or logged model keeps, so that an import need not bring them again.

        Raises:
            NotAllowed: the caller is no admin. RunNotFound, LoggedModelNotFound: it is not there.
        """
        may_import(act)
        owner = artifact_store.find_owner(act.tx, kind, id)
        if owner is None:
            raise run_logging.no_run(id) if kind is OwnerKind.RUN else run_logging.no_logged_model(id)
        found = artifact_store.under(act.tx, owner, "", ARTIFACTS_MAX + 1)
        rest = [file for file in found if file.path > after]
        page = rest[: values.PAGE_MAX]
        return ImportedFiles(
            files=tuple(ImportedFile(path=f.path, size_bytes=f.size_bytes, digest=f.digest) for f in page),
            more=len(rest) > len(page),
        )

    def summary(self, act: Act, address: str) -> ImportSummary:
        """How much came from a source so far; nothing where it is not known.

        Raises:
            NotAllowed: the caller is no admin.
        """
        may_import(act)
        row = store.find_source(act.tx, address)
        if row is None:
            return ImportSummary(source=address, project="", kinds={})
        counted = store.count(act.tx, row.serial)
        files, size_bytes = store.sum_files(act.tx, row.serial)
        return ImportSummary(
            source=row.address,
            project=row.project,
            kinds={Kind(kind): KindSummary(done=done, open=open_) for kind, (done, open_) in counted.items()},
            points=store.count_points(act.tx, row.serial),
            files=files,
            size_bytes=size_bytes,
        )

    # ------------------------------------------------------------------------------------------------ bytes

    def prepare_bytes(self, act: Act, digest: Digest, size_bytes: int) -> BytesPlan:
        """Say where the bytes of a file go. Only reads. Raises NotAllowed: the caller is no admin."""
        may_import(act)
        return BytesPlan(upload_id=act.new_id("imp"), digest=digest, size_bytes=size_bytes)

    def store_bytes(self, plan: BytesPlan, offset: int, chunks: Iterable[bytes]) -> BytesPlan:
        """Take in bytes, outside of any transaction. Raises as `BlobStore.append`."""
        if offset == 0:
            self._blobs.begin(plan.upload_id, plan.size_bytes)
        return replace(plan, offset=self._blobs.append(plan.upload_id, offset, chunks))

    def finish_bytes(self, plan: BytesPlan) -> BytesPlan:
        """Keep the bytes that came. Raises DigestMismatch, and as `BlobStore.commit`."""
        self._blobs.begin(plan.upload_id, plan.size_bytes)  # an empty file has brought nothing
        self._blobs.commit(plan.upload_id, plan.digest)
        return plan

    def drop_bytes(self, plan: BytesPlan) -> None:
        """Forget what came of bytes that were not finished."""
        self._blobs.cancel(plan.upload_id)

    # ---------------------------------------------------------------------------------------------- writing

    def prepare(self, desk: Desk, context: Context, batch: ImportBatch) -> Prepared:
        """Look for the bytes that a batch names, and read what says what its versions are. No act.

        Raises:
            NotAllowed: the caller is no admin.
        """
        named = [file.digest for file in batch.files]
        named += [file.digest for version in batch.versions for file in version.files]
        missing = frozenset(self.missing(desk, context, named))
        versions = {item.id: self._registry.prepare(desk, context, item, missing) for item in batch.versions}
        return Prepared(missing=missing, versions=versions)

    def apply(self, act: Act, batch: ImportBatch, prepared: Prepared) -> ImportAnswer:
        """Take a batch in, one act.

        Raises:
            NotAllowed: the caller is no admin. LimitExceeded: too many points.
            InvalidParameter, InvalidName, Conflict: the source, or the project.
        """
        moving = begin(act, batch.source, batch.project)
        if sum(len(item.points) for item in batch.histories) > POINTS_MAX:
            raise errors.LimitExceeded(
                f"A batch has at most {POINTS_MAX:,} points; send several.", field="histories"
            )
        moving.take(Kind.EXPERIMENT, batch.experiments, _make_experiment)
        moving.take(Kind.RUN, batch.runs, _make_run)
        moving.take(Kind.LOGGED_MODEL, batch.logged_models, _make_logged_model)
        for history in batch.histories:
            moving.each(Kind.POINTS, history, _add_points)
        for file in batch.files:
            if file.digest in prepared.missing:
                moving.refuse(Kind.FILE, file.id, _not_sent(file.digest))
            else:
                moving.each(Kind.FILE, file, self._add_file)
        moving.close(Kind.RUN, batch.closed_runs, _close_run)
        moving.close(Kind.LOGGED_MODEL, batch.closed_logged_models, _close_logged_model)
        moving.close(Kind.EXPERIMENT, batch.closed_experiments, _close_experiment)
        registry = self._registry
        moving.take(Kind.MODEL, batch.models, registry.make_model)
        moving.take(
            Kind.VERSION, batch.versions, lambda m, item: registry.make_version(m, item, prepared.versions)
        )
        moving.take(Kind.ALIAS, batch.aliases, registry.make_alias)
        moving.close(Kind.MODEL, batch.closed_models, registry.close_model)
        return ImportAnswer(items=tuple(moving.answers))

    def _add_file(self, moving: Moving, item: FileItem) -> str:
        kind = OwnerKind.RUN if item.owner is Kind.RUN else OwnerKind.LOGGED_MODEL
        ours = moving.ours(Kind.RUN if kind is OwnerKind.RUN else Kind.LOGGED_MODEL, item.id)
        place = self._artifacts.locate(moving.act, Owner(kind, ours), item.path)
        assert isinstance(place, OwnedPlace)
        blob = BlobInfo(digest=item.digest, size_bytes=item.size_bytes)
        self._artifacts.note(moving.act, ArtifactPlan(place=place, upload_id="", blob=blob))
        return item.path


# ----------------------------------------------------------------------------------------------- experiments


def _make_experiment(moving: Moving, item: ExperimentItem) -> Made:
    act, project = moving.act, moving.source.project
    tracking.check_experiment_name(item.name)
    tags = _by_key([tracking.check_whole_tag(tag) for tag in item.tags])
    if len(tags) > values.TAGS_MAX:
        raise errors.LimitExceeded(f"An experiment has at most {values.TAGS_MAX} tags.", field="tags")
    created = check_moment(item.creation_time, "creation_time")
    known = experiments.find_named(act.tx, project, item.name)
    if known is not None and item.name == DEFAULT_EXPERIMENT:
        return _join_default(moving, known, item, tags)
    if known is not None:
        raise errors.ExperimentExists(
            f"The project {project} has an experiment {values.quoted(item.name, 60)} already; give this one "
            "another name with --rename.",
            name=item.name,
        )
    number = _number_of(item.id)
    if number is None or not store.add_experiment(act.tx, number, project, item.name, created):
        number = experiments.add(act.tx, project, item.name, created)
    assert number is not None, "the name is free"
    experiments.put_tags(act.tx, number, tags)
    act.record(
        EventKind.EXPERIMENT_CREATED,
        f"experiment/{number}",
        name=item.name,
        project=project,
        tags={tag.key: tag.value for tag in tags},
        imported=moving.past(item.id, created=item.creation_time),
    )
    return Made(str(number))


def _join_default(moving: Moving, known: ExperimentRow, item: ExperimentItem, tags: Sequence[Tag]) -> Made:
    """What others logged without naming an experiment goes to our experiment for that."""
    before = {tag.key: tag.value for tag in experiments.load(moving.act.tx, [known])[0].tags}
    moved = {t.key: {"from": before.get(t.key), "to": t.value} for t in tags if before.get(t.key) != t.value}
    if len(before.keys() | moved.keys()) > values.TAGS_MAX:
        raise errors.LimitExceeded(f"An experiment has at most {values.TAGS_MAX} tags.", field="tags")
    experiments.put_tags(moving.act.tx, known.id, tags)
    moving.act.record(
        EventKind.EXPERIMENT_CHANGED,
        f"experiment/{known.id}",
        tags=moved,
        imported=moving.past(item.id, created=item.creation_time),
    )
    return Made(str(known.id))


def _close_experiment(moving: Moving, item: CloseExperiment, known: Known) -> None:
    act = moving.act
    row = experiments.find(act.tx, int(known.ours))
    if row is None:
        raise run_logging.no_experiment(known.ours)
    if known.done:
        return
    updated = check_moment(item.last_update_time, "last_update_time")
    if row.name == DEFAULT_EXPERIMENT:
        return
    if item.deleted and not row.deleted:
        went = experiments.set_deleted(act.tx, row.id, True, updated)
        past = moving.past(item.id, deleted=updated)
        subject = f"experiment/{row.id}"
        act.record(EventKind.EXPERIMENT_DELETED, subject, name=row.name, runs=went, imported=past)
    store.set_experiment_times(act.tx, row.id, updated_ms=updated)


# ------------------------------------------------------------------------------------------------------- runs


def _make_run(moving: Moving, item: RunItem) -> Made:
    act = moving.act
    if not tracking.RUN_ID.fullmatch(item.id):
        raise errors.InvalidParameter(f"{values.quoted(item.id, 60)} is no id of a run.", field="run_id")
    if runs.find(act.tx, item.id) is not None:
        raise errors.Conflict(f"There is a run {item.id} already, which did not come from here.")
    experiment = int(moving.ours(Kind.EXPERIMENT, item.experiment))
    tags = _by_key([tracking.check_run_tag(tag) for tag in item.tags])
    params = _by_key([tracking.check_param(param) for param in item.params])
    datasets = [tracking.check_dataset(given) for given in item.datasets]
    models = (*item.inputs, *item.outputs)
    if max(len(tags), len(params), len(datasets), len(models)) > tracking.RUN_KEYS_MAX:
        raise errors.LimitExceeded(
            f"A run has at most {tracking.RUN_KEYS_MAX:,} tags, params, datasets or models.", field="tags"
        )
    for model in models:
        if not tracking.LOGGED_MODEL_ID.fullmatch(model.model_id):
            raise errors.InvalidParameter(
                f"{values.quoted(model.model_id, 60)} is no id of a logged model.", field="models"
            )
    info = RunInfo(
        run_id=item.id,
        experiment_id=str(experiment),
        run_name=tracking.check_run_name(item.name),
        user_id=tracking.check_user(item.user),
        status=RunStatus.RUNNING,
        start_time=check_moment(item.start_time, "start_time"),
    )
    serial = runs.add(act.tx, experiment, info)
    run = run_log.LogRow(serial, experiment, info.run_name, 0, moving.source.project)
    run_log.put_tags(act.tx, serial, experiment, tags)
    run_log.add_params(act.tx, run, params)
    run_log.add_datasets(act.tx, run, datasets)
    run_log.add_models(act.tx, serial, "input", item.inputs)
    run_log.add_models(act.tx, serial, "output", item.outputs)
    act.record(
        EventKind.RUN_STARTED,
        f"run/{item.id}",
        experiment=info.experiment_id,
        name=info.run_name,
        user=info.user_id,
        imported=moving.past(item.id, started=item.start_time, by=info.user_id),
    )
    return Made(item.id)


def _add_points(moving: Moving, item: HistoryItem) -> str:
    act = moving.act
    ours = moving.ours(Kind.RUN, item.id)
    row = run_log.open_log(act.tx, ours, (run_log.Logs.METRICS,))
    if row is None:
        raise run_logging.no_run(ours)
    points = [tracking.check_metric(_of_model(item, point)) for point in _read_points(item)]
    if len(item.dataset_name or "") > tracking.DATASET_NAME_MAX or (
        len(item.dataset_digest or "") > tracking.DATASET_DIGEST_MAX
    ):
        raise errors.InvalidParameter("The name or digest of the dataset is too long.", field="dataset_name")
    if item.model is not None and logged_models.find(act.tx, item.model) is None:
        raise run_logging.no_logged_model(item.model)
    run_logging.log_metrics(act, row, points)
    return item.key


def _read_points(item: HistoryItem) -> list[Metric]:
    try:
        return [metric_of(item.key, point) for point in item.points]
    except ValueError as problem:
        raise errors.InvalidParameter(
            f"A value of the metric {values.quoted(item.key, 60)} is no number.", field="points"
        ) from problem


def _of_model(item: HistoryItem, point: Metric) -> Metric:
    if item.model is None:
        return point
    return Metric(
        key=point.key,
        value=point.value,
        timestamp=point.timestamp,
        step=point.step,
        model_id=item.model,
        dataset_name=item.dataset_name,
        dataset_digest=item.dataset_digest,
    )


def _close_run(moving: Moving, item: CloseRun, known: Known) -> None:
    act, ours = moving.act, known.ours
    row = runs.find(act.tx, ours)
    if row is None:
        raise run_logging.no_run(ours)
    _check_files(moving, "run", row.serial, item.files, item.size_bytes)
    after = row._replace(
        status=item.status.value,
        end_time=None if item.end_time is None else check_moment(item.end_time, "end_time"),
    )
    deleted_time = None if item.deleted_time is None else check_moment(item.deleted_time, "deleted_time")
    logged = run_logging.end_digest(act, row.serial, runs.load(act.tx, [row])[0])
    if item.digest is not None and item.digest != logged["digest"]:
        raise errors.DigestMismatch(
            f"What came of the run {ours} is not what it is there; it changed meanwhile, or something of it "
            "did not come. Import again.",
            expected=item.digest,
            actual=logged["digest"],
        )
    if known.done:
        if (row.status, row.end_time) != (after.status, after.end_time):
            raise errors.Conflict(f"The run {ours} ended otherwise there; it changed since it came.")
        return
    runs.change(act.tx, after)
    subject = f"run/{ours}"
    if item.status.ended:
        past = moving.past(item.id, ended=item.end_time)
        act.record(EventKind.RUN_ENDED, subject, status=item.status, **logged, imported=past)
    if deleted_time is not None and not row.deleted:
        runs.set_deleted(act.tx, row.serial, deleted_time)
        act.record(EventKind.RUN_DELETED, subject, imported=moving.past(item.id, deleted=deleted_time))


def _check_files(moving: Moving, kind: str, serial: int, files: int | None, size_bytes: int | None) -> None:
    """Refuse to close what does not keep as many files, and bytes, as it is to."""
    there = store.files_of(moving.act.tx, kind, serial)
    for wanted, found, what in ((files, there[0], "files"), (size_bytes, there[1], "bytes of files")):
        if wanted is not None and wanted != found:
            raise errors.Conflict(f"It is to have {wanted:,} {what} and has {found:,}; import again.")


# --------------------------------------------------------------------------------------------- logged models


def _make_logged_model(moving: Moving, item: LoggedModelItem) -> Made:
    act = moving.act
    if not tracking.LOGGED_MODEL_ID.fullmatch(item.id):
        raise errors.InvalidParameter(
            f"{values.quoted(item.id, 60)} is no id of a logged model.", field="model_id"
        )
    if logged_models.find(act.tx, item.id) is not None:
        raise errors.Conflict(f"There is a logged model {item.id} already, which did not come from here.")
    experiment = int(moving.ours(Kind.EXPERIMENT, item.experiment))
    most = tracking.LOGGED_MODEL_VALUE_MAX
    tags = _by_key([tracking.check_whole_tag(tag, most) for tag in item.tags])
    params = _by_key([tracking.check_whole_tag(param, most) for param in item.params])
    if max(len(tags), len(params)) > values.PARAMS_MAX or len(item.model_type) > tracking.MODEL_TYPE_MAX:
        raise errors.LimitExceeded("It has more tags, more params or a longer type than fits.", field="tags")
    tracking.check_storable(item.model_type, "model_type")
    created = check_moment(item.creation_time, "creation_time")
    model = LoggedModel(
        model_id=item.id,
        experiment_id=str(experiment),
        name=tracking.check_logged_model_name(item.name),
        status=LoggedModelStatus.PENDING,
        model_type=item.model_type,
        source_run_id=item.run or None,
        creation_timestamp_ms=created,
        last_updated_timestamp_ms=created,
        tags=tuple(tags),
        params=tuple(params),
    )
    serial = logged_models.add(act.tx, experiment, model)
    logged_models.put_tags(act.tx, serial, experiment, tags)
    logged_models.add_params(act.tx, serial, experiment, params)
    act.record(
        EventKind.LOGGED_MODEL_CREATED,
        f"logged_model/{item.id}",
        experiment=model.experiment_id,
        name=model.name,
        run=model.source_run_id,
        imported=moving.past(item.id, created=created),
    )
    return Made(item.id)


def _close_logged_model(moving: Moving, item: CloseLoggedModel, known: Known) -> None:
    act, ours = moving.act, known.ours
    row = logged_models.find(act.tx, ours)
    if row is None:
        raise run_logging.no_logged_model(ours)
    _check_files(moving, "logged_model", row.serial, item.files, item.size_bytes)
    if known.done:
        return
    message = values.check_text(item.status_message, "status_message")
    updated = check_moment(item.last_update_time, "last_update_time")
    logged_models.set_status(act.tx, row.serial, item.status, message, updated)
    subject, past = f"logged_model/{ours}", moving.past(item.id, updated=updated)
    if item.status is not LoggedModelStatus.PENDING:
        status = item.status.value
        act.record(EventKind.LOGGED_MODEL_FINALIZED, subject, status=status, imported=past)
    if item.deleted:
        logged_models.delete_model(act.tx, row.serial, updated)
        act.record(EventKind.LOGGED_MODEL_DELETED, subject, name=row.name, imported=past)


# ---------------------------------------------------------------------------------------------- small things


def _by_key(tags: Iterable[Tag]) -> list[Tag]:
    """The last of each key, in the order of keys."""
    kept = {tag.key: tag for tag in tags}
    return [kept[key] for key in sorted(kept)]


def _number_of(foreign: str) -> int | None:
    """The number that an experiment's id is, where ours can be that."""
    try:
        number = tracking.parse_experiment_id(foreign)
    except errors.InvalidParameter:
        return None
    return number if number > 0 else None


def _not_sent(digest: Digest) -> errors.BlobNotFound:
    return errors.BlobNotFound(f"The bytes of {digest} are not here; send them first.", digest=digest)
