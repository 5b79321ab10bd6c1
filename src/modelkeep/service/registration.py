"""How a draft becomes a version: at once or not at all, under the number that it deserves.

What was announced and sent is `drafts`' part, and the number `numbering`'s. No version is made without its
bytes.
"""

from collections.abc import Container
from datetime import datetime
from typing import Any

from msgspec import Struct

from modelkeep.core import catalog, errors, provenance, registration
from modelkeep.core.access import Verb
from modelkeep.core.answers import Registration
from modelkeep.core.catalog import Draft, DraftSpec, DraftStatus, Manifest, ModelVersion
from modelkeep.core.events import EventKind
from modelkeep.core.values import Digest
from modelkeep.service import drafts, numbering
from modelkeep.service.act import Act
from modelkeep.service.drafts import Drafts
from modelkeep.service.labels import create
from modelkeep.service.numbering import Numbered
from modelkeep.store import catalog as store
from modelkeep.store import drafts as draft_store
from modelkeep.store import logged_models, models
from modelkeep.store.models import ModelRow


class Registrations(Drafts):
    """The verbs of drafts, and the one that makes a version of one."""

    def finalize(self, act: Act, draft_id: str, stored: Container[Digest] | None = None) -> Registration:
        """Make the version: it gets its number, and everybody who may sees it from now on. Twice is once.

        Args:
            stored: what `draft_blobs` found. Left out, it is looked for within the act.

        Raises:
            DraftNotFound: there is none, or it is somebody else's. DraftClosed: it was given up, or its
            version was deleted. Conflict: files are missing, or were lost since they were sent; the details
            name them, and the draft takes them again. VersionExists,
            SemverTooLow: the number that was asked for, as things stand now. ModelNotFound, NotAllowed: a
            right was taken away meanwhile.
        """
        draft, made = drafts.own(act, draft_id)
        act.readable(draft.model)
        act.authorise(Verb.REGISTER, draft.model)
        if draft.status is DraftStatus.READY and draft.number is not None:
            version = store.find(act.tx, store.BY_NUMBER, draft.model, number=draft.number)
            if version is None:
                raise errors.DraftClosed(
                    f"The version that the draft {draft.id} became was deleted; register it again.",
                    draft=draft.id,
                )
            return Registration(
                version=version,
                created=made,
                reasons=version.bump_reasons,
                same_identity=_same_as(act, models.find_model(act.tx, version.model), version),
            )
        if draft.status is not DraftStatus.OPEN:
            raise drafts.closed(draft)
        drafts.refuse_missing(draft)
        lost = drafts.take_back(act, draft, self.blobs_of(draft) if stored is None else stored)
        if lost:
            # Kept, so that the draft takes those files again; passing, since it may be finalized when it has.
            raise act.keep(drafts.missing_error(lost), passing=True)
        row = models.find_model(act.tx, draft.model)
        decided = numbering.decide(act, draft.model, row, draft.spec)
        if isinstance(decided, ModelVersion):
            _finish(act, draft, decided, made=False)
            return Registration(version=decided, created=False, reasons=(drafts.again_sentence(decided),))
        if row is None:
            act.authorise(Verb.CREATE_MODEL, draft.model)
            row = create(act, draft.model)
        made_now = write_version(act, row, draft.spec, decided)
        _finish(act, draft, made_now.version, made=True)
        return made_now


def _finish(act: Act, draft: Draft, version: ModelVersion, *, made: bool) -> None:
    draft_store.close(act.tx, draft.id, DraftStatus.READY, act.now, number=version.number, made=made)


def _same_as(act: Act, row: ModelRow | None, version: ModelVersion) -> tuple[str, ...]:
    return numbering.made_of_the_same(act, row, version.identity, but=version.semver)


class Past(Struct, frozen=True, kw_only=True):
    """What is stated of a version that comes from elsewhere: its number there, when and by whom it was made,
    and what its event says of that."""

    number: int
    created_at: datetime
    created_by: str
    told: dict[str, Any]


def write_version(
    act: Act, row: ModelRow, spec: DraftSpec, decided: Numbered, past: Past | None = None
) -> Registration:
    """Write a version of a checked spec, its number and its event. Rights and bytes were looked at before,
    and that the number of one with a past is free."""
    name = row.full_name
    manifest = Manifest(files=spec.files)
    version = ModelVersion(
        id=act.new_id("version"),
        model=name,
        number=past.number if past is not None else row.next_number,
        semver=str(decided.given),
        digest=catalog.manifest_digest(manifest),
        size_bytes=manifest.size_bytes,
        files=spec.files,
        signature=spec.signature,
        metrics=spec.metrics,
        params=spec.params,
        metadata=spec.metadata,
        provenance=spec.provenance,
        identity=provenance.identity(spec.provenance, spec.params),
        description=spec.description,
        tags=spec.tags,
        stage=row.stages.initial,
        parent=decided.parent.number if decided.parent is not None else None,
        bump=decided.inferred.value,
        bump_reasons=decided.reasons,
        created_at=past.created_at if past is not None else act.now,
        created_by=past.created_by if past is not None else act.by,
    )
    same = _same_as(act, row, version)
    event = act.record(
        EventKind.VERSION_REGISTERED,
        version.reference,
        model=name,
        number=version.number,
        reason=spec.override_semver,
        semver=version.semver,
        digest=version.digest,
        record=registration.record_digest(version),
        parent=version.parent,
        bump=version.bump,
        reasons=list(decided.reasons),
        policy=decided.policy,
        size_bytes=version.size_bytes,
        files=len(version.files),
        run=version.provenance.run_id if version.provenance is not None else None,
        identity=version.identity.digest if version.identity is not None else None,
        tags=version.tags,
        description=version.description,
        **({"imported": past.told} if past is not None else {}),
    )
    models.take_number(act.tx, row.id, act.now)
    store.add_version(act.tx, row.id, version, event.sequence)
    _note_logged_model(act, version)
    return Registration(version=version, created=True, reasons=decided.reasons, same_identity=same)


def _note_logged_model(act: Act, version: ModelVersion) -> None:
    """Have the logged model know what it became."""
    model_id = version.provenance.logged_model_id if version.provenance is not None else None
    logged = logged_models.find(act.tx, model_id) if model_id is not None else None
    if logged is not None:
        logged_models.add_version(act.tx, logged.serial, str(version.model), version.number)
