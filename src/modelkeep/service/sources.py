"""How a version comes from what was tried: from a run's files, from a logged model, from another version, or
from the text of a prompt.

No byte is copied: the version's manifest takes the digests under which the files are stored already, so
deleting the run, or its files, takes nothing from the version. `prepare` finds the files and reads the few
small ones that say what the model is, outside of any transaction; `register` looks again, and writes the
version, its number and its event in one act. What is read out of a run is said in core (`from_run`); which
addresses there are, in `core.source_address`; numbers are `numbering`'s part.

Whoever registers a run's files must be allowed to read that run and to pull its files; a version that is
copied is pulled as well.
"""

import secrets
from collections.abc import Container, Mapping, Sequence
from typing import NamedTuple, assert_never

from msgspec import Struct
from msgspec.structs import replace

from modelkeep.core import environment_lock, errors, from_run, mlmodel, registration, values
from modelkeep.core.access import Verb
from modelkeep.core.answers import Registration
from modelkeep.core.catalog import DraftSpec, FileEntry, Manifest, ModelVersion, manifest_digest
from modelkeep.core.from_run import Origins
from modelkeep.core.prompts import PROMPT_FILE, PROMPT_TEXT, is_prompt
from modelkeep.core.provenance import Provenance
from modelkeep.core.query import Comparison, Kind, Operator, Subject
from modelkeep.core.source_address import (
    LoggedModelPlace,
    RunPlace,
    SourcePlace,
    StoredPlace,
    VersionPlace,
    address,
    parse_source,
)
from modelkeep.core.tracking import LoggedModelStatus
from modelkeep.core.values import Digest, ModelName, Numbered, Ref
from modelkeep.ports import BlobStore
from modelkeep.service import artifacts as places
from modelkeep.service import at_hand, labels, numbering, policies, references, run_logging
from modelkeep.service.act import Act, Context, Desk, no_model
from modelkeep.service.artifacts import Artifacts
from modelkeep.service.at_hand import NotAtHand
from modelkeep.service.catalog import Catalog
from modelkeep.service.registration import write_version
from modelkeep.store import artifacts as artifact_store
from modelkeep.store import catalog as catalog_store
from modelkeep.store import damage, logged_models, models, runs, search
from modelkeep.store.artifacts import OwnerKind
from modelkeep.store.logged_models import LoggedModelRow
from modelkeep.store.models import ModelRow
from modelkeep.store.runs import RunRow
from modelkeep.store.visibility import visible_to

VERSIONS_SHOWN = values.PAGE_MAX
"""Versions of one run that are listed: a run that registers more is a mistake in a loop."""
DUPLICATE_OF = "modelkeep.duplicate_of"
"""The tag of a version whose bytes are those of an earlier one: it names that one."""


class VersionRequest(Struct, frozen=True, kw_only=True):
    """A version that is to be made from an address.

    `run_id` and `model_id` may say once more where it comes from, and must then agree. `host` is what the
    client calls this server. `create_model`: a model that is not there is made.
    """

    model: ModelName
    source: str
    run_id: str | None = None
    model_id: str | None = None
    description: str = ""
    tags: dict[str, str] = {}
    host: str | None = None
    create_model: bool = False


class Folder(NamedTuple):
    """Where files are kept: whose they are, and the path that they are at or under."""

    kind: OwnerKind
    serial: int
    path: str


class Located(NamedTuple):
    """What an address leads to: the files, the run and logged model that they are of, or the version."""

    place: SourcePlace
    files: tuple[FileEntry, ...]
    folder: Folder | None = None
    run: RunRow | None = None
    logged: LoggedModelRow | None = None
    version: ModelVersion | None = None

    @property
    def origins(self) -> Origins:
        """The run and the logged model that the files are of, by their ids."""
        if self.logged is not None:
            return Origins(self.logged.source_run_id, self.logged.model_id)
        if self.run is not None:
            return Origins(self.run.run_id, None)
        return from_run.origins(None, None, self.version)


class PreparedVersion(Struct, frozen=True, kw_only=True):
    """What was read for a request outside of its act: `documents` by path, and which contents are stored.

    `model_id` and `located` say what was found then, by which the act asks for all of it at once; it goes by
    what it finds.
    """

    request: VersionRequest
    files: tuple[FileEntry, ...]
    model_id: str | None = None
    located: Located | None = None
    documents: dict[str, bytes]
    stored: frozenset[Digest]


class Sources:
    """The verbs that make versions out of what is stored. `prepare` is no act; the others are."""

    def __init__(self, blobs: BlobStore, catalog: Catalog, artifacts: Artifacts) -> None:
        self._blobs = blobs
        self._catalog = catalog
        self._artifacts = artifacts

    def prepare(self, desk: Desk, context: Context, request: VersionRequest) -> PreparedVersion:
        """Find the files behind a request and read what says what they are; no act.

        Raises:
            InvalidParameter: the address, or what is said beside it; a prompt without its text.
            RunNotFound, LoggedModelNotFound, ModelNotFound, VersionNotFound and their like: not there, or not
            to be seen. NotAllowed: not to be pulled, or not to be registered. ArtifactNotFound: there are no
            files. BlobsUnavailable: the blob store cannot say now.
        """
        model_id: str | None = None
        located: Located | None = None
        documents: dict[str, bytes] = {}
        if is_prompt(request.tags):
            entry = desk.read(context, lambda act: self._prompt(act, request, _admitted(act, request)))
            self._store_text(entry, request.tags[PROMPT_TEXT].encode())
            files: tuple[FileEntry, ...] = (entry,)
        else:
            row, located = desk.read(context, self._found, request)
            model_id = row.id if row is not None else None
            files = located.files
            documents = {
                file.path: b"".join(self._blobs.open_verified(file.digest)) for file in _documents(located)
            }
        return PreparedVersion(
            request=request,
            files=files,
            model_id=model_id,
            located=located,
            documents=documents,
            stored=self._catalog.really_there(files),
        )

    def register(self, act: Act, prepared: PreparedVersion) -> Registration:
        """Make the version. It is always a new one; one with the bytes of an earlier one says so in a tag.

        Raises:
            as `prepare`; Conflict: the files have changed since, or are no longer stored.
            Invalid (its leaves), LimitExceeded: something cannot be kept.
        """
        request = prepared.request
        damaged = damage.ask_damaged(act.tx, {file.digest for file in prepared.files})
        _expect(act, prepared)
        row = _admitted(act, request)
        files: tuple[FileEntry, ...]
        notes: tuple[str, ...] = ()
        if is_prompt(request.tags):
            files = (self._prompt(act, request, row),)
            spec = _prompt_spec(request, files)
        else:
            located = self._sought(act, request)
            files = located.files
            spec, notes = _spec_of(act, request, located, prepared.documents)
        if files != prepared.files:
            raise errors.Conflict(
                "The files have changed while they were registered; register them again.", field="source"
            )
        _refuse_lost(files, prepared.stored, damaged())
        return _registered(act, request, row, spec, notes)

    def register_at_hand(self, act: Act, request: VersionRequest) -> Registration:
        """`register` of what need not be prepared, since its files are at hand. Raises as these; NotAtHand:
        it has to be."""
        if is_prompt(request.tags):
            raise NotAtHand  # its text is stored before
        act.tx.expect(policies.nearest, request.model)
        row, located = self._found(act, request)
        damaged = damage.ask_damaged(act.tx, {file.digest for file in located.files})
        _expect_facts(act, row.id if row is not None else None, located)
        found = at_hand.contents(self._blobs, located.files)
        documents = {file.path: found[file.digest] for file in _documents(located)}
        spec, notes = _spec_of(act, request, located, documents)
        _refuse_lost(located.files, found, damaged())
        return _registered(act, request, row, spec, notes)

    def versions_of_run(self, act: Act, run_id: str) -> tuple[ModelVersion, ...]:
        """The versions that came from a run and that the caller may see, the last registered first.

        Raises:
            RunNotFound: it is not there, or not to be seen.
        """
        self._run(act, run_id)
        of_run = Comparison(Subject(Kind.FIELD, "run_id"), Operator.EQUAL, run_id)
        found, _ = search.search_versions(
            act.tx, visible_to(act.caller), expression=of_run, limit=VERSIONS_SHOWN
        )
        return tuple(found)

    # --------------------------------------------------------------------------------------------- admission

    def _found(self, act: Act, request: VersionRequest) -> tuple[ModelRow | None, Located]:
        """The model, and the files behind a request of somebody who may register them. Raises as `prepare`,
        and as `_admitted`."""
        if request.run_id and request.run_id.isalnum():  # what cannot be an id is refused in better words
            act.tx.expect(runs.find, request.run_id)
        return _admitted(act, request), self._sought(act, request)

    def _sought(self, act: Act, request: VersionRequest) -> Located:
        place = parse_source(request.source, project=request.model.project, host=request.host)
        located = self._locate(act, place)
        _refuse_contradiction(request, located)
        return located

    def _prompt(self, act: Act, request: VersionRequest, row: ModelRow | None) -> FileEntry:
        """The file of a prompt of somebody who may register it. Its source is a word and leads nowhere.

        Raises:
            InvalidParameter: the model is no prompt, or there is no text, or the source is an address.
        """
        known = models.assemble(act.tx, [row])[0].tags if row is not None else request.tags
        if not is_prompt(known):
            raise errors.InvalidParameter(
                f"{request.model} is no prompt; register prompts under a name of their own.", field="name"
            )
        text = request.tags.get(PROMPT_TEXT)
        if not text:
            raise errors.InvalidParameter(
                f"A version of a prompt has its text in the tag {PROMPT_TEXT}; send it.", field="tags"
            )
        if ":" in request.source or "/" in request.source or not request.source.isprintable():
            raise errors.InvalidParameter(
                f"Invalid prompt source: {values.quoted(request.source)} is an address, and a prompt has "
                "none; write prompt-template.",
                field="source",
            )
        return from_run.text_entry(PROMPT_FILE, text)

    # ------------------------------------------------------------------------------------------ what is there

    def _locate(self, act: Act, place: SourcePlace) -> Located:
        match place:
            case RunPlace(run_id=run_id, path=path):
                return self._of_run(act, place, run_id, path)
            case LoggedModelPlace(model_id=model_id, path=path):
                return self._of_logged_model(act, place, model_id, path)
            case VersionPlace(ref=ref):
                version = self._version(act, ref)
                pinned = VersionPlace(ref=Ref(model=version.model, selector=Numbered(version.number)))
                return Located(pinned, version.files, version=version)
            case StoredPlace(path=path):
                return self._stored(act, place, path)
            case _:
                assert_never(place)

    def _stored(self, act: Act, place: StoredPlace, path: str) -> Located:
        match places.parse_place(path):
            case places.VersionPlace(model=model, number=number, path=inside):
                if inside:
                    raise errors.InvalidParameter(
                        "A version is copied whole; leave out what follows its number.", field="source"
                    )
                version = self._version(act, Ref(model=model, selector=Numbered(number)))
                return Located(place, version.files, version=version)
            case places.OwnedPlace(owner=owner, path=inside) as owned:
                if owner.kind is OwnerKind.RUN:
                    return self._of_run(act, place, owner.id, inside, owned.experiment_id)
                return self._of_logged_model(act, place, owner.id, inside, owned.experiment_id)

    def _of_run(
        self, act: Act, place: SourcePlace, run_id: str, path: str, experiment_id: int | None = None
    ) -> Located:
        run = self._run(act, run_id)
        _refuse_other_experiment(experiment_id, run)
        path = places.check_artifact_path(path) if path else ""
        try:
            files = self._artifacts.manifest_in(act, OwnerKind.RUN, run.serial, run.project, path)
        except errors.ArtifactNotFound:
            logged = self._logged_as(act, run, path)
            if logged is None:
                raise _no_files(address(place)) from None
            return self._of_logged_model(act, LoggedModelPlace(model_id=logged), logged, "")
        return Located(place, files, Folder(OwnerKind.RUN, run.serial, path), run=run)

    def _logged_as(self, act: Act, run: RunRow, name: str) -> str | None:
        """The id of the logged model that a run made under a name: where it made several, the one of the last
        step."""
        steps = {output.model_id: output.step for output in runs.load(act.tx, [run])[0].model_outputs}
        rows = [row for row in logged_models.find_many(act.tx, steps).values() if not row.deleted]
        named = [row for row in rows if row.name == name and row.source_run_id == run.run_id]
        return max(named, key=lambda row: (steps[row.model_id], row.serial)).model_id if named else None

    def _of_logged_model(
        self, act: Act, place: SourcePlace, model_id: str, path: str, experiment_id: int | None = None
    ) -> Located:
        row = logged_models.find(act.tx, model_id)
        if row is None or row.deleted or not act.may(Verb.READ, row.project):
            raise run_logging.no_logged_model(model_id)
        _refuse_other_experiment(experiment_id, row)
        if row.status == LoggedModelStatus.FAILED:
            raise errors.InvalidParameter(
                f"The upload of the logged model {model_id} failed; log the model again.", field="source"
            )
        run = runs.find(act.tx, row.source_run_id) if row.source_run_id is not None else None
        path = places.check_artifact_path(path) if path else ""
        try:
            files = self._artifacts.manifest_in(act, OwnerKind.LOGGED_MODEL, row.serial, row.project, path)
        except errors.ArtifactNotFound:
            raise _no_files(address(place)) from None
        made_by = run if run is not None and run.project == row.project else None
        return Located(
            place, files, Folder(OwnerKind.LOGGED_MODEL, row.serial, path), run=made_by, logged=row
        )

    def _version(self, act: Act, ref: Ref) -> ModelVersion:
        version = references.resolve(act, references.present(ref))
        act.authorise(Verb.PULL, version.model)
        if is_prompt(version.tags):
            raise errors.InvalidParameter(
                f"{version.reference} is a prompt, which is not copied; register its text.", field="source"
            )
        return version

    def _run(self, act: Act, run_id: str) -> RunRow:
        row = runs.find(act.tx, run_id)
        if row is None or not act.may(Verb.READ, row.project):
            raise run_logging.no_run(run_id)
        return row

    # ------------------------------------------------------------------------------------------------- bytes

    def _store_text(self, entry: FileEntry, data: bytes) -> None:
        if self._blobs.stat(entry.digest) is not None:
            return
        upload_id = f"prompt_{secrets.token_hex(16)}"
        self._blobs.begin(upload_id, entry.size_bytes)
        self._blobs.append(upload_id, 0, [data])
        self._blobs.commit(upload_id, entry.digest)


_READ = {mlmodel.MLMODEL: mlmodel.MLMODEL_MAX_BYTES} | dict.fromkeys(
    environment_lock.LOCK_FILES, environment_lock.LOCK_MAX_BYTES
)


def _documents(located: Located) -> list[FileEntry]:
    """The files that say what the model is, those of a size that is read; none where a version says it."""
    if located.version is not None:
        return []
    return [file for file in located.files if file.size_bytes <= _READ.get(file.path, -1)]


def _expect(act: Act, prepared: PreparedVersion) -> None:
    """Have everything asked at once that was found when the version was prepared."""
    tx, located = act.tx, prepared.located
    tx.expect(models.find_model, prepared.request.model)
    tx.expect(policies.nearest, prepared.request.model)
    if located is None or located.folder is None:
        return
    tx.expect(artifact_store.at_or_under, *located.folder, values.FILES_MAX + 1)
    if located.run is not None:
        tx.expect(runs.find, located.run.run_id)
    if located.logged is not None:
        tx.expect(logged_models.find, located.logged.model_id)
    _expect_facts(act, prepared.model_id, located)


def _expect_facts(act: Act, model_id: str | None, located: Located) -> None:
    """Have asked at once what is known of some files, and whether the model has them already."""
    manifest = Manifest(files=located.files)
    if model_id is not None:
        act.tx.expect(lambda tx: catalog_store.find_twin(tx, model_id, manifest_digest(manifest)))
    if located.run is not None:
        act.tx.expect(runs.load, [located.run])
    if located.logged is not None:
        act.tx.expect(logged_models.load, [located.logged])


def _admitted(act: Act, request: VersionRequest) -> ModelRow | None:
    """The row of the model that a version is to be made of; None where the model is to be made, too.

    Raises:
        ModelNotFound, NotAllowed: it is not there, not to be seen, or not to be registered in, or made.
        InvalidName, ModelExists: the new model cannot be called so.
    """
    act.readable(request.model)
    act.authorise(Verb.REGISTER, request.model)
    row = models.find_model(act.tx, request.model)
    if row is None:
        if not request.create_model:
            raise no_model(request.model)
        act.authorise(Verb.CREATE_MODEL, request.model)
        labels.check_new_name(act, request.model)
    return row


def _refuse_lost(files: Sequence[FileEntry], stored: Container[Digest], damaged: set[Digest]) -> None:
    """Raises Conflict when a file is gone, or what lies in its place is another."""
    lost = [file.path for file in files if file.digest not in stored or file.digest in damaged]
    if lost:
        raise errors.Conflict(
            f"{values.quoted(lost[0])} is no longer stored as it was logged; log the model again.",
            missing=lost[: values.PAGE_MAX],
        )


def _registered(
    act: Act, request: VersionRequest, row: ModelRow | None, spec: DraftSpec, notes: tuple[str, ...]
) -> Registration:
    """Make a version of what is stated. It is always a new one. Raises as `Sources.register`."""
    checked = registration.check_spec(spec)
    decided, twin = numbering.decide_anew(act, request.model, row, checked)
    if row is None:
        row = labels.create(act, request.model)
    tags = {key: value for key, value in checked.tags.items() if key != DUPLICATE_OF}
    if twin is not None:
        tags[DUPLICATE_OF] = twin.reference
    decided = replace(decided, reasons=(*decided.reasons, *notes))
    return write_version(act, row, replace(checked, tags=tags), decided)


def _refuse_contradiction(request: VersionRequest, located: Located) -> None:
    """Raises InvalidParameter when what is said beside an address names something else than the address."""
    stated = located.origins
    for field, said, true in (
        ("run_id", request.run_id, stated.run_id),
        ("model_id", request.model_id, stated.logged_model_id),
    ):
        if said and said != true:
            raise errors.InvalidParameter(
                f"Invalid model version source: {values.quoted(request.source)} is not of the {field} "
                f"{values.quoted(said, 60)}; leave it out, or name the one that holds the source.",
                field=field,
            )


def _refuse_other_experiment(named: int | None, found: RunRow | LoggedModelRow) -> None:
    """Raises InvalidParameter when an address names another experiment than that of what it leads to."""
    if named is not None and named != found.experiment_id:
        raise errors.InvalidParameter(
            "The address names another experiment than that of its files.", field="source"
        )


def _spec_of(
    act: Act, request: VersionRequest, located: Located, documents: Mapping[str, bytes]
) -> tuple[DraftSpec, tuple[str, ...]]:
    """What is known of the files, and sentences about what was left out."""
    if located.version is not None:
        return _copy_of(request, located, located.version), ()
    run = runs.load(act.tx, [located.run])[0] if located.run is not None else None
    logged = logged_models.load(act.tx, [located.logged])[0] if located.logged is not None else None
    known = from_run.read_known(run, logged, documents)
    return (
        DraftSpec(
            files=located.files,
            signature=known.signature,
            metrics=known.metrics,
            params=known.params,
            metadata=known.metadata,
            provenance=replace(known.provenance, source=address(located.place)),
            description=request.description,
            tags=request.tags,
        ),
        known.notes,
    )


def _copy_of(request: VersionRequest, located: Located, version: ModelVersion) -> DraftSpec:
    provenance = version.provenance or Provenance()
    return DraftSpec(
        files=version.files,
        signature=version.signature,
        metrics=version.metrics,
        params=version.params,
        metadata=version.metadata,
        provenance=replace(provenance, source=address(located.place), origin=version.reference),
        description=request.description,
        tags=request.tags,
    )


def _prompt_spec(request: VersionRequest, files: tuple[FileEntry, ...]) -> DraftSpec:
    return DraftSpec(
        files=files,
        provenance=Provenance(source=request.source or None),
        description=request.description,
        tags=request.tags,
    )


def _no_files(source: str) -> errors.InvalidParameter:
    return errors.InvalidParameter(
        f"There are no files at {values.quoted(source, 200)}; log the model first.", field="source"
    )
