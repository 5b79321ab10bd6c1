"""Moving in: registered models, their versions under the numbers that they had, and aliases.

A version is made like any other, with an inferred number of its own, what is known of its files, and an
event; only its number, its time and its maker are those that it had. Its files are those of the run or logged
model that it was made of, which came before, or such as were sent for it alone. Stages are taken over as they
were: no policy is asked, because nothing is decided here.
"""

from collections.abc import Mapping
from datetime import UTC, datetime

from msgspec import Struct
from msgspec.structs import replace

from modelkeep.core import catalog, environment_lock, errors, from_run, mlmodel, registration, values
from modelkeep.core.catalog import DEFAULT_STAGES, DraftSpec, FileEntry, StageGraph
from modelkeep.core.events import EventKind
from modelkeep.core.imports import AliasItem, CloseModel, Kind, ModelItem, VersionItem
from modelkeep.core.media import media_type
from modelkeep.core.promotion import MoveCause
from modelkeep.core.tracking import LoggedModel, Run
from modelkeep.core.values import Digest, ModelName, Numbered, Ref
from modelkeep.ports import BlobStore
from modelkeep.service import labels, mlflow_registry, numbering, stages
from modelkeep.service.act import Act, Context, Desk
from modelkeep.service.artifacts import Artifacts, Owner
from modelkeep.service.catalog import Catalog
from modelkeep.service.import_batch import Made, Moving, check_moment
from modelkeep.service.registration import Past, write_version
from modelkeep.service.stages import Because
from modelkeep.store import imports as store
from modelkeep.store import logged_models, models, runs
from modelkeep.store.artifacts import OwnerKind
from modelkeep.store.imports import Known

NUMBER_MAX = 2**31
"""Numbers of versions: far beyond any model's."""


class PreparedFiles(Struct, frozen=True, kw_only=True):
    """What was found out about the files of a version before its act: which they are, what those say that
    say what the model is, and why it cannot be made, if it cannot."""

    files: tuple[FileEntry, ...] = ()
    documents: dict[str, bytes] = {}
    refused: errors.ModelkeepError | None = None


class ModelImports:
    """The parts of a batch that are of the registry."""

    def __init__(self, blobs: BlobStore, catalog: Catalog, artifacts: Artifacts) -> None:
        self._blobs = blobs
        self._catalog = catalog
        self._artifacts = artifacts

    # ----------------------------------------------------------------------------------------------- models

    def make_model(self, moving: Moving, item: ModelItem) -> Made:
        """Make a registered model. Refuses as `Moving.take` wants it."""
        act = moving.act
        name = ModelName(moving.source.project, values.check_model_name(item.name))
        labels.check_new_name(act, name)
        description = values.check_text(item.description, "description")
        tags = catalog.check_tags(item.tags)
        created = _when(item.creation_time, "creation_time")
        row = models.add_model(
            act.tx,
            act.new_id("model"),
            name,
            description=description,
            owner=act.by,
            stages=_graph(item.shared),
            tags=tags,
            now=created,
            by=act.by,
        )
        act.record(
            EventKind.MODEL_CREATED,
            str(name),
            model=name,
            description=description,
            owner=row.owner,
            tags=tags,
            stages=row.stages,
            imported=moving.past(item.id, created=item.creation_time),
        )
        return Made(name.name)

    def close_model(self, moving: Moving, item: CloseModel, known: Known) -> None:
        """Give a model the times that it had, and let no number be given again."""
        if known.done:
            return
        row = models.get_row(moving.act.tx, ModelName(moving.source.project, known.ours))
        updated = _when(item.last_update_time, "last_update_time")
        if not 0 <= item.last_number < NUMBER_MAX:
            raise errors.InvalidParameter("The last number is none of a version.", field="last_number")
        if item.last_number >= row.next_number:
            store.set_next_number(moving.act.tx, row.id, item.last_number + 1)
        moving.act.record(
            EventKind.MODEL_CHANGED,
            str(row.full_name),
            model=row.full_name,
            imported=moving.past(item.id, updated=item.last_update_time, last_number=item.last_number),
        )
        store.set_model_time(moving.act.tx, row.id, updated)

    # --------------------------------------------------------------------------------------------- versions

    def prepare(
        self, desk: Desk, context: Context, item: VersionItem, missing: frozenset[Digest]
    ) -> PreparedFiles:
        """Find the files of a version and read what says what they are; no act."""
        try:
            files = desk.read(context, self._files, item)
            lost = [file.path for file in files if file.digest in missing]
            if lost:
                raise errors.BlobNotFound(
                    f"The bytes of {values.quoted(lost[0])} are not here; send them first."
                )
            return PreparedFiles(files=files, documents=self._documents(files))
        except errors.ModelkeepError as refused:
            return PreparedFiles(refused=refused)

    def _files(self, act: Act, item: VersionItem) -> tuple[FileEntry, ...]:
        if item.folder is None:
            return tuple(
                FileEntry(
                    path=file.path,
                    size_bytes=file.size_bytes,
                    digest=file.digest,
                    media_type=media_type(file.path),
                )
                for file in item.files
            )
        if item.logged_model is not None:
            return self._artifacts.manifest_of(
                act, Owner(OwnerKind.LOGGED_MODEL, item.logged_model), item.folder
            )
        return self._artifacts.manifest_of(act, Owner(OwnerKind.RUN, item.run or ""), item.folder)

    def _documents(self, files: tuple[FileEntry, ...]) -> dict[str, bytes]:
        most = {mlmodel.MLMODEL: mlmodel.MLMODEL_MAX_BYTES} | dict.fromkeys(
            environment_lock.LOCK_FILES, environment_lock.LOCK_MAX_BYTES
        )
        chosen = [file for file in files if file.size_bytes <= most.get(file.path, -1)]
        return {file.path: b"".join(self._blobs.open_verified(file.digest)) for file in chosen}

    def make_version(self, moving: Moving, item: VersionItem, prepared: Mapping[str, PreparedFiles]) -> Made:
        """Make a version under its number. Refuses as `Moving.take` wants it."""
        act, found = moving.act, prepared[item.id]
        if found.refused is not None:
            raise found.refused
        if item.folder is not None and self._files(act, item) != found.files:
            raise errors.Conflict("The files have changed while they were registered; import again.")
        row = models.get_row(act.tx, self._model(moving, item.model))
        if not row.next_number <= item.number < NUMBER_MAX:
            raise errors.Conflict(
                f"{row.full_name} gives the number {row.next_number} next, and not {item.number:,} any more; "
                "give the model another name with --rename.",
                number=item.number,
            )
        stage = mlflow_registry.stage_named(row.stages, item.stage)
        created = _when(item.creation_time, "creation_time")
        updated = _when(item.last_update_time, "last_update_time")
        user = values.check_text(item.user, "user", maximum=values.NAME_MAX) or act.by
        spec = registration.check_spec(self._spec(act, item, found))
        decided, _ = numbering.decide_anew(act, row.full_name, row, spec)
        store.set_next_number(act.tx, row.id, item.number)
        told = moving.past(
            item.id, created=item.creation_time, by=item.user, stage=item.stage, made_of=item.source
        )
        past = Past(number=item.number, created_at=created, created_by=user, told=told)
        version = write_version(act, row, spec, decided, past).version
        if stage != row.stages.initial:
            stands = f"It was in {item.stage} when it came from {moving.source.address}."
            stages.move(act, row, version, stage, Because(cause=MoveCause.PROMOTION, reason=stands))
        store.set_version_time(act.tx, version.id, updated)
        return Made(version.semver, done=True)

    def _spec(self, act: Act, item: VersionItem, found: PreparedFiles) -> DraftSpec:
        """What is known of a version's files, as if it had been registered here."""
        run, logged = _run(act, item.run), _logged(act, item.logged_model)
        if run is None and logged is not None:
            run = _run(act, logged.source_run_id)
        known = from_run.read_known(run, logged, found.documents)
        provenance = replace(
            known.provenance,
            run_id=known.provenance.run_id or item.run,
            logged_model_id=known.provenance.logged_model_id or item.logged_model,
            source=_source(item),
        )
        return DraftSpec(
            files=found.files,
            signature=known.signature,
            metrics=known.metrics,
            params=known.params,
            metadata=known.metadata,
            provenance=provenance,
            description=item.description,
            tags=item.tags,
        )

    # ---------------------------------------------------------------------------------------------- aliases

    def make_alias(self, moving: Moving, item: AliasItem) -> Made:
        """Point an alias. Refuses as `Moving.take` wants it."""
        model = self._model(moving, item.model)
        ref = Ref(model=model, selector=Numbered(item.number))
        self._catalog.set_alias(moving.act, model, item.alias, ref)
        return Made(item.alias, done=True)

    def _model(self, moving: Moving, foreign: str) -> ModelName:
        return ModelName(moving.source.project, moving.ours(Kind.MODEL, foreign))


def _graph(shared: tuple[str, ...]) -> StageGraph:
    """The usual stages, some of which hold several versions at a time."""
    if not shared:
        return DEFAULT_STAGES
    kept = {mlflow_registry.stage_named(DEFAULT_STAGES, word) for word in shared}
    specs = tuple(
        replace(spec, exclusive=spec.exclusive and spec.name not in kept) for spec in DEFAULT_STAGES.stages
    )
    return registration.check_stages(replace(DEFAULT_STAGES, stages=specs))


def _source(item: VersionItem) -> str | None:
    """The address of what a version was made of, where that is here."""
    if item.folder is None:
        return None
    if item.logged_model is not None:
        return f"models:/{item.logged_model}" + (f"/{item.folder}" if item.folder else "")
    return f"runs:/{item.run}" + (f"/{item.folder}" if item.folder else "")


def _run(act: Act, run_id: str | None) -> Run | None:
    row = runs.find(act.tx, run_id) if run_id else None
    return runs.load(act.tx, [row])[0] if row is not None else None


def _logged(act: Act, model_id: str | None) -> LoggedModel | None:
    row = logged_models.find(act.tx, model_id) if model_id else None
    return logged_models.load(act.tx, [row])[0] if row is not None else None


def _when(time_ms: int, what: str) -> datetime:
    """A moment in a calendar. Raises InvalidParameter."""
    try:
        return datetime.fromtimestamp(check_moment(time_ms, what) / 1000, UTC)
    except (ValueError, OverflowError, OSError) as problem:
        raise errors.InvalidParameter(f"The {what} lies where no calendar reaches.", field=what) from problem
