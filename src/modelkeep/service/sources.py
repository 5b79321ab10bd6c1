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
from collections.abc import Mapping
from typing import NamedTuple, assert_never

from msgspec import Struct
from msgspec.structs import replace

from modelkeep.core import environment_lock, errors, from_run, mlmodel, registration, values
from modelkeep.core.access import Verb
from modelkeep.core.answers import Registration
from modelkeep.core.catalog import DraftSpec, FileEntry, ModelVersion
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
from modelkeep.core.tracking import LoggedModel, LoggedModelStatus, Run
from modelkeep.core.values import Digest, ModelName, Numbered, Ref
from modelkeep.ports import BlobStore
from modelkeep.service import artifacts as places
from modelkeep.service import labels, numbering, references, run_logging
from modelkeep.service.act import Act, Context, Desk, no_model
from modelkeep.service.artifacts import Artifacts, Owner
from modelkeep.service.catalog import Catalog
from modelkeep.service.registration import write_version
from modelkeep.store import damage, logged_models, models, runs, search
from modelkeep.store.artifacts import OwnerKind
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


class Located(NamedTuple):
    """What an address leads to: the files, the run and logged model that they are of, or the version."""

    place: SourcePlace
    files: tuple[FileEntry, ...]
    run: Run | None = None
    logged: LoggedModel | None = None
    version: ModelVersion | None = None


class PreparedVersion(Struct, frozen=True, kw_only=True):
    """What was read for a request outside of its act: `documents` by path, and which contents are stored."""

    request: VersionRequest
    files: tuple[FileEntry, ...]
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
        if is_prompt(request.tags):
            entry = desk.read(context, self._prompt, request)
            self._store_text(entry, request.tags[PROMPT_TEXT].encode())
            files: tuple[FileEntry, ...] = (entry,)
            documents: dict[str, bytes] = {}
        else:
            located = desk.read(context, self._admitted, request)
            files = located.files
            documents = self._documents(files) if located.version is None else {}
        stored = self._catalog.really_there(files)
        return PreparedVersion(request=request, files=files, documents=documents, stored=stored)

    def register(self, act: Act, prepared: PreparedVersion) -> Registration:
        """Make the version. It is always a new one; one with the bytes of an earlier one says so in a tag.

        Raises:
            as `prepare`; Conflict: the files have changed since, or are no longer stored.
            Invalid (its leaves), LimitExceeded: something cannot be kept.
        """
        request = prepared.request
        files: tuple[FileEntry, ...]
        notes: tuple[str, ...] = ()
        if is_prompt(request.tags):
            files = (self._prompt(act, request),)
            spec = _prompt_spec(request, files)
        else:
            located = self._admitted(act, request)
            files = located.files
            spec, notes = _spec_of(request, located, prepared.documents)
        if files != prepared.files:
            raise errors.Conflict(
                "The files have changed while they were registered; register them again.", field="source"
            )
        self._refuse_lost(act, prepared)
        checked = registration.check_spec(spec)
        row = models.find_model(act.tx, request.model)
        decided, twin = numbering.decide_anew(act, request.model, row, checked)
        if row is None:
            row = labels.create(act, request.model)
        tags = {key: value for key, value in checked.tags.items() if key != DUPLICATE_OF}
        if twin is not None:
            tags[DUPLICATE_OF] = twin.reference
        decided = replace(decided, reasons=(*decided.reasons, *notes))
        return write_version(act, row, replace(checked, tags=tags), decided)

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

    def _admitted(self, act: Act, request: VersionRequest) -> Located:
        """The files behind a request of somebody who may register them. Raises as `prepare`."""
        _authorise(act, request)
        place = parse_source(request.source, project=request.model.project, host=request.host)
        located = self._locate(act, place)
        _refuse_contradiction(request, located)
        return located

    def _prompt(self, act: Act, request: VersionRequest) -> FileEntry:
        """The file of a prompt. Its source is a word and leads nowhere.

        Raises:
            InvalidParameter: the model is no prompt, or there is no text, or the source is an address.
        """
        _authorise(act, request)
        row = models.find_model(act.tx, request.model)
        known = models.get_model(act.tx, request.model).tags if row is not None else request.tags
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
                found = self._artifacts.locate(act, owner, inside)
                if found.experiment_id != owned.experiment_id:
                    raise errors.InvalidParameter(
                        "The address names another experiment than that of its files.", field="source"
                    )
                if owner.kind is OwnerKind.RUN:
                    return self._of_run(act, place, owner.id, inside)
                return self._of_logged_model(act, place, owner.id, inside)

    def _of_run(self, act: Act, place: SourcePlace, run_id: str, path: str) -> Located:
        run = self._run(act, run_id)
        owner = Owner(OwnerKind.RUN, run_id)
        try:
            files = self._artifacts.manifest_of(act, owner, path)
        except errors.ArtifactNotFound:
            logged = self._logged_as(act, run, path)
            if logged is None:
                raise _no_files(address(place)) from None
            return self._of_logged_model(act, LoggedModelPlace(model_id=logged.model_id), logged.model_id, "")
        return Located(place, files, run=run)

    def _logged_as(self, act: Act, run: Run, name: str) -> LoggedModel | None:
        """The logged model that a run made under a name: where it made several, the one of the last step."""
        steps = {output.model_id: output.step for output in run.model_outputs}
        rows = [row for row in logged_models.find_many(act.tx, steps).values() if not row.deleted]
        named = [row for row in rows if row.name == name and row.source_run_id == run.info.run_id]
        if not named:
            return None
        last = max(named, key=lambda row: (steps[row.model_id], row.serial))
        return logged_models.load(act.tx, [last])[0]

    def _of_logged_model(self, act: Act, place: SourcePlace, model_id: str, path: str) -> Located:
        row = logged_models.find(act.tx, model_id)
        if row is None or row.deleted or not act.may(Verb.READ, row.project):
            raise run_logging.no_logged_model(model_id)
        logged = logged_models.load(act.tx, [row])[0]
        if logged.status is LoggedModelStatus.FAILED:
            raise errors.InvalidParameter(
                f"The upload of the logged model {model_id} failed; log the model again.", field="source"
            )
        run = runs.find(act.tx, logged.source_run_id) if logged.source_run_id is not None else None
        made_by = runs.load(act.tx, [run])[0] if run is not None and run.project == row.project else None
        try:
            files = self._artifacts.manifest_of(act, Owner(OwnerKind.LOGGED_MODEL, model_id), path)
        except errors.ArtifactNotFound:
            raise _no_files(address(place)) from None
        return Located(place, files, run=made_by, logged=logged)

    def _version(self, act: Act, ref: Ref) -> ModelVersion:
        version = references.resolve(act, references.present(ref))
        act.authorise(Verb.PULL, version.model)
        if is_prompt(version.tags):
            raise errors.InvalidParameter(
                f"{version.reference} is a prompt, which is not copied; register its text.", field="source"
            )
        return version

    def _run(self, act: Act, run_id: str) -> Run:
        row = runs.find(act.tx, run_id)
        if row is None or not act.may(Verb.READ, row.project):
            raise run_logging.no_run(run_id)
        return runs.load(act.tx, [row])[0]

    # ------------------------------------------------------------------------------------------------- bytes

    def _documents(self, files: tuple[FileEntry, ...]) -> dict[str, bytes]:
        """The files that say what the model is, those of a size that is read."""
        most = {mlmodel.MLMODEL: mlmodel.MLMODEL_MAX_BYTES} | dict.fromkeys(
            environment_lock.LOCK_FILES, environment_lock.LOCK_MAX_BYTES
        )
        chosen = [file for file in files if file.size_bytes <= most.get(file.path, -1)]
        return {file.path: b"".join(self._blobs.open_verified(file.digest)) for file in chosen}

    def _store_text(self, entry: FileEntry, data: bytes) -> None:
        if self._blobs.stat(entry.digest) is not None:
            return
        upload_id = f"prompt_{secrets.token_hex(16)}"
        self._blobs.begin(upload_id, entry.size_bytes)
        self._blobs.append(upload_id, 0, [data])
        self._blobs.commit(upload_id, entry.digest)

    def _refuse_lost(self, act: Act, prepared: PreparedVersion) -> None:
        damaged = damage.damaged_among(act.tx, {file.digest for file in prepared.files})
        lost = [f.path for f in prepared.files if f.digest not in prepared.stored or f.digest in damaged]
        if lost:
            raise errors.Conflict(
                f"{values.quoted(lost[0])} is no longer stored as it was logged; log the model again.",
                missing=lost[: values.PAGE_MAX],
            )


def _authorise(act: Act, request: VersionRequest) -> None:
    act.readable(request.model)
    act.authorise(Verb.REGISTER, request.model)
    if models.find_model(act.tx, request.model) is None:
        if not request.create_model:
            raise no_model(request.model)
        act.authorise(Verb.CREATE_MODEL, request.model)
        labels.check_new_name(act, request.model)


def _refuse_contradiction(request: VersionRequest, located: Located) -> None:
    """Raises InvalidParameter when what is said beside an address names something else than the address."""
    stated = from_run.origins(located.run, located.logged, located.version)
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


def _spec_of(
    request: VersionRequest, located: Located, documents: Mapping[str, bytes]
) -> tuple[DraftSpec, tuple[str, ...]]:
    """What is known of the files, and sentences about what was left out."""
    if located.version is not None:
        return _copy_of(request, located, located.version), ()
    known = from_run.read_known(located.run, located.logged, documents)
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
