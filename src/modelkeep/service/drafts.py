"""Drafts: a version is announced, and its bytes are sent.

A draft is its author's alone and is swept when nothing has come for the grace period. Bytes travel outside of
any transaction; what is noted of them is how many came, and that the author has sent all of a file. A file
that is stored already need not be sent again, but only to those who may pull a version that holds it:
otherwise anybody could find out, and get hold of, what other projects keep.

Rows only say what ought to be stored. So the blob store is asked as well, by `announced_blobs` and
`draft_blobs` before the act, since a bucket may be slow to answer: what is gone, too short, or was found
damaged is sent again, which heals every version that names it. How a draft becomes a version is
`registration`'s part.
"""

import time
from collections.abc import Container, Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import NamedTuple

from msgspec.structs import replace

from modelkeep.core import errors, provenance, registration, values
from modelkeep.core.access import Verb
from modelkeep.core.answers import Preview, UploadPlan
from modelkeep.core.catalog import (
    Draft,
    DraftFile,
    DraftSpec,
    DraftStatus,
    FileEntry,
    ModelVersion,
    refuse_own_tags,
)
from modelkeep.core.semver import Bump
from modelkeep.core.values import Digest, ModelName
from modelkeep.ports import BlobInfo, BlobStore
from modelkeep.service import numbering, run_logging
from modelkeep.service.act import SYSTEM_CONTEXT, Act, Context, Desk
from modelkeep.service.labels import check_new_name
from modelkeep.service.numbering import Numbered
from modelkeep.store import damage, logged_models, models, runs
from modelkeep.store import drafts as draft_store
from modelkeep.store.models import ModelRow
from modelkeep.store.visibility import visible_to

DRAFTS_MAX = 100
"""Open drafts that one author may have of one model: sweeps of a whole night, and not a store of their
own."""
SWEPT_MAX = 200
"""Drafts swept in one transaction, so that other writers do not wait long; what remains is for the next
round."""
MISSING_SHOWN = 5
"""Missing files that an error lists."""
QUICK_LOOK_S = 0.002
"""Blobs are looked for one after the other as long as each look takes no longer: a thread costs more."""
LOOKS_AT_ONCE = 8
"""Blobs looked for at a time: a bucket takes some 20 ms for each, and a draft may name thousands."""


class _Admitted(NamedTuple):
    """An announcement that is not refused; `again` is the open draft that it repeats."""

    row: ModelRow | None
    spec: DraftSpec
    decided: Numbered | ModelVersion
    again: str | None


class Drafts:
    """The verbs around drafts. All are acts but `store_bytes`, `announced_blobs` and `draft_blobs`."""

    def __init__(self, blobs: BlobStore, desk: Desk) -> None:
        self._blobs = blobs
        self._desk = desk

    # -------------------------------------------------------------------------------------------- announcing

    def announced_blobs(
        self, desk: Desk, context: Context, model: ModelName, spec: DraftSpec
    ) -> frozenset[Digest]:
        """What the blob store really has of an announcement's files, for `begin_draft`; no act.

        Only what need not be sent according to the rows is looked for.

        Raises:
            ModelNotFound, NotAllowed, Invalid (and its leaves), LimitExceeded: as `begin_draft`.
            BlobsUnavailable: the blob store cannot say now.
        """
        return self.really_there(desk.read(context, _believed, model, spec))

    def draft_blobs(self, desk: Desk, context: Context, draft_id: str) -> frozenset[Digest]:
        """What the blob store really has of a draft's files, for `finalize`; no act.

        Raises:
            DraftNotFound: there is none, or it is somebody else's.
            BlobsUnavailable: the blob store cannot say now.
        """
        draft, _ = desk.read(context, own, draft_id)
        return self.blobs_of(draft)

    def blobs_of(self, draft: Draft) -> frozenset[Digest]:
        """What the blob store really has of what a draft believes to have sent."""
        return self.really_there(entry for entry in draft.files if entry.present)

    def really_there(self, files: Iterable[FileEntry | DraftFile]) -> frozenset[Digest]:
        """The contents that the blob store has, in the size that was announced."""
        sizes = {entry.digest: entry.size_bytes for entry in files}
        found: list[BlobInfo | None] = []
        rest = list(sizes)
        while rest:
            began = time.perf_counter()
            found.append(self._blobs.stat(rest.pop()))
            if time.perf_counter() - began > QUICK_LOOK_S:
                break
        if rest:
            with ThreadPoolExecutor(min(LOOKS_AT_ONCE, len(rest)), "modelkeep-look") as pool:
                found += pool.map(self._blobs.stat, rest)
        return frozenset(
            info.digest for info in found if info is not None and info.size_bytes == sizes[info.digest]
        )

    def begin_draft(
        self, act: Act, model: ModelName, spec: DraftSpec, stored: Container[Digest] | None = None
    ) -> Draft:
        """Announce a version: its files by digest, and everything that is to be known of them.

        What can be refused is refused here, before any byte is sent: a number that is taken or too low as
        well. The same announcement again, while the first is open, is the same draft, so that whoever lost
        the connection just says it again and sends what is missing.

        Args:
            stored: what `announced_blobs` found. Left out, it is looked for within the act, for blob stores
                that are quick.

        Raises:
            ModelNotFound, NotAllowed: the caller may not see the model, not register in it, or not create it.
            Invalid (and its leaves), LimitExceeded: what is stated cannot be kept; names the field.
            VersionExists, SemverTooLow: the number that was asked for.
        """
        admitted = self._admitted(act, model, spec)
        if stored is None:
            stored = self.really_there(_believed(act, model, spec))
        if admitted.again is not None:
            draft_store.touch(act.tx, admitted.again, act.now)
            take_back(act, own(act, admitted.again)[0], stored)
            return self.get_draft(act, admitted.again)
        draft = self._announced(act, model, admitted.spec, stored)
        draft_store.add_draft(act.tx, draft)
        return draft

    def preview(self, act: Act, model: ModelName, spec: DraftSpec) -> Preview:
        """What an announcement would come to as things stand now; nothing is written.

        Raises:
            as `begin_draft`: what it would refuse is refused here.
        """
        admitted = self._admitted(act, model, spec)
        there = {entry.path for entry in _believed(act, model, spec)}
        absent = [entry for entry in admitted.spec.files if entry.path not in there]
        decided = admitted.decided
        if isinstance(decided, ModelVersion):
            number, parent, inferred = decided.semver, decided.parent, Bump.NONE
            reasons: tuple[str, ...] = (again_sentence(decided),)
        else:
            number, inferred, reasons = str(decided.given), decided.inferred, decided.reasons
            parent = decided.parent.number if decided.parent is not None else None
        return Preview(
            version=f"{model}:{number}",
            created=not isinstance(decided, ModelVersion),
            new_model=admitted.row is None,
            bump=inferred,
            reasons=reasons,
            parent=parent,
            files=len(admitted.spec.files),
            size_bytes=sum(entry.size_bytes for entry in admitted.spec.files),
            to_send=tuple(entry.path for entry in absent[: values.PAGE_MAX]),
            same_identity=numbering.made_of_the_same(
                act,
                admitted.row,
                provenance.identity(admitted.spec.provenance, admitted.spec.params),
                but=decided.semver if isinstance(decided, ModelVersion) else None,
            ),
            to_send_bytes=sum({entry.digest: entry.size_bytes for entry in absent}.values()),
        )

    def _admitted(self, act: Act, model: ModelName, spec: DraftSpec) -> _Admitted:
        """Refuse what can be refused of an announcement before any byte is sent. Raises as `begin_draft`."""
        act.readable(model)
        act.authorise(Verb.REGISTER, model)
        row = models.find_model(act.tx, model)
        if row is None:
            act.authorise(Verb.CREATE_MODEL, model)
            check_new_name(act, model)
        checked = registration.check_spec(spec)
        refuse_own_tags(checked.tags)
        _check_lineage(act, checked)
        decided = numbering.decide(act, model, row, checked)
        again = draft_store.find_same(act.tx, model, act.by, checked)
        if again is None and draft_store.count_open(act.tx, model, act.by) >= DRAFTS_MAX:
            raise errors.LimitExceeded(
                f"You have {DRAFTS_MAX} open drafts of {model}; finalize or cancel some.", limit=DRAFTS_MAX
            )
        return _Admitted(row, checked, decided, again)

    def _announced(self, act: Act, model: ModelName, spec: DraftSpec, stored: Container[Digest]) -> Draft:
        held = {digest for digest in _held(act, spec) if digest in stored}
        held -= damage.damaged_among(act.tx, held)
        files = tuple(
            DraftFile(
                path=entry.path,
                size_bytes=entry.size_bytes,
                digest=entry.digest,
                media_type=entry.media_type,
                offset=entry.size_bytes if entry.digest in held else 0,
                present=entry.digest in held,
            )
            for entry in spec.files
        )
        return Draft(
            id=act.new_id("draft"),
            model=model,
            status=DraftStatus.OPEN,
            spec=spec,
            files=files,
            created_at=act.now,
            created_by=act.by,
            touched_at=act.now,
        )

    def get_draft(self, act: Act, draft_id: str) -> Draft:
        """How far a registration is.

        Where an open file stands is asked of the blob store, which alone knows after a crash, and for an
        upload that began at another server.

        Raises:
            DraftNotFound: there is none, or it is somebody else's.
        """
        draft, _ = own(act, draft_id)
        if draft.status is not DraftStatus.OPEN:
            return draft
        files = tuple(
            entry
            if entry.present
            else replace(entry, offset=self._came(_upload_id(draft, index), entry.offset))
            for index, entry in enumerate(draft.files)
        )
        return replace(draft, files=files)

    def cancel_draft(self, act: Act, draft_id: str) -> None:
        """Give a registration up. What was sent is collected later; cancelling twice is no error.

        Raises:
            DraftNotFound: there is none, or it is somebody else's.
            DraftClosed: it has become a version already.
        """
        draft, _ = own(act, draft_id)
        if draft.status is DraftStatus.READY:
            raise closed(draft)
        if draft.status is DraftStatus.OPEN:
            draft_store.close(act.tx, draft.id, DraftStatus.CANCELLED, act.now)

    def sweep_drafts(self, act: Act, older_than: datetime) -> int:
        """Give up the open drafts that nobody has touched since, and forget closed ones.

        Returns:
            how many open ones were given up; there may be more, for the next call.
        """
        stale = draft_store.list_stale(act.tx, DraftStatus.OPEN, older_than, SWEPT_MAX)
        for draft_id in stale:
            draft_store.close(act.tx, draft_id, DraftStatus.CANCELLED, act.now)
        for status in (DraftStatus.CANCELLED, DraftStatus.READY):
            for draft_id in draft_store.list_stale(act.tx, status, older_than, SWEPT_MAX):
                draft_store.forget(act.tx, draft_id)
        return len(stale)

    # ------------------------------------------------------------------------------------------------- bytes

    def prepare_upload(self, act: Act, draft_id: str, path: str) -> UploadPlan:
        """Say where the bytes of an announced file go and from which offset on; it keeps the draft from the
        sweep.

        Raises:
            DraftNotFound: there is none, or it is somebody else's. DraftClosed: it takes nothing any more.
            FileNotInVersion: the draft announces no such file.
            NotAllowed: the right to register was taken away meanwhile.
        """
        draft, _ = own(act, draft_id)
        if draft.status is not DraftStatus.OPEN:
            raise closed(draft)
        act.authorise(Verb.REGISTER, draft.model)
        for index, entry in enumerate(draft.files):
            if entry.path == path:
                draft_store.touch(act.tx, draft.id, act.now)
                return UploadPlan(
                    draft=draft.id,
                    path=path,
                    upload_id=_upload_id(draft, index),
                    digest=entry.digest,
                    size_bytes=entry.size_bytes,
                    offset=entry.offset,
                    present=entry.present,
                )
        raise errors.FileNotInVersion(
            f"This draft announces no file {values.quoted(path)}; its files are in 'files'.",
            path=path,
        )

    def store_bytes(self, plan: UploadPlan, offset: int, chunks: Iterable[bytes]) -> UploadPlan:
        """Take in bytes of a file, outside of any transaction, and keep it when it is whole and right.

        When the bytes end early, what came is kept; so it is when `chunks` itself raises.

        Args:
            offset: where the sender believes the end to be.

        Returns:
            the plan with the new offset.

        Raises:
            OffsetMismatch: the end is elsewhere; the details say where.
            DigestMismatch: all bytes came and are not those that were announced; they are thrown away.
            LimitExceeded: more came than was announced. StorageFull, BlobsUnavailable, Overloaded: not now.
        """
        if plan.present:
            return plan
        try:
            self._blobs.begin(plan.upload_id, plan.size_bytes)
            end = self._blobs.append(plan.upload_id, offset, chunks)
            if end == plan.size_bytes:
                self._blobs.commit(plan.upload_id, plan.digest)
        except BaseException:
            self._note(plan, self._came(plan.upload_id, plan.offset))
            raise
        self._note(plan, end, whole=end == plan.size_bytes)
        return replace(plan, offset=end, present=end == plan.size_bytes)

    def _came(self, upload_id: str, known: int) -> int:
        """How many bytes of an upload the blob store has; what was known before, when it cannot say."""
        try:
            return self._blobs.status(upload_id)
        except errors.NotFound:
            return 0
        except errors.Unavailable:
            return known

    def _note(self, plan: UploadPlan, received_bytes: int, *, whole: bool = False) -> None:
        self._desk.do(SYSTEM_CONTEXT, _note_received, plan, received_bytes, whole)


# ---------------------------------------------------------------------------------------------------- drafts


def own(act: Act, draft_id: str) -> tuple[Draft, bool]:
    """A draft of the caller's own, and whether it made a version.

    Raises:
        DraftNotFound: in the same words for one that is not there and for somebody else's.
    """
    found = draft_store.get_draft(act.tx, draft_id)
    if found is None or found[0].created_by != act.by:
        shown = values.printable(draft_id)[:60]
        raise errors.DraftNotFound(
            f"You have no draft {shown}; 'modelkeep register' begins one.", draft=shown
        )
    return found


def _check_lineage(act: Act, spec: DraftSpec) -> None:
    """Let nobody claim a run or logged model that is not there for them, nor what the registry itself notes.

    Raises:
        RunNotFound, LoggedModelNotFound: it is not there, or not to be seen. Invalid: it is not theirs to
        state.
    """
    stated = spec.provenance
    if stated is None:
        return
    if stated.source is not None or stated.origin is not None:
        raise errors.Invalid(
            "Where a version was registered from is noted by the registry; leave out 'source' and 'origin'.",
            field="provenance",
        )
    if stated.run_id is not None:
        run = runs.find(act.tx, stated.run_id)
        if run is None or not act.may(Verb.READ, run.project):
            raise run_logging.no_run(stated.run_id)
    if stated.logged_model_id is not None:
        logged = logged_models.find(act.tx, stated.logged_model_id)
        if logged is None or not act.may(Verb.READ, logged.project):
            raise run_logging.no_logged_model(stated.logged_model_id)
        if stated.run_id is not None and logged.source_run_id not in (None, stated.run_id):
            raise errors.Invalid(
                "The logged model is of another run; leave one of them out.", field="provenance.run_id"
            )


def _upload_id(draft: Draft, index: int) -> str:
    return f"{draft.id}_{index}"


def closed(draft: Draft) -> errors.DraftClosed:
    """The one sentence for a draft that takes nothing any more."""
    became = "has become a version" if draft.status is DraftStatus.READY else "was given up"
    return errors.DraftClosed(f"The draft {draft.id} {became}; begin another one.", draft=draft.id)


def _note_received(act: Act, plan: UploadPlan, received_bytes: int, whole: bool) -> None:
    if whole:
        draft_store.set_present(act.tx, plan.draft, plan.digest)
        damage.clear(act.tx, plan.digest)
    else:
        draft_store.set_received(act.tx, plan.draft, plan.path, received_bytes)
    draft_store.touch(act.tx, plan.draft, act.now)


def refuse_missing(draft: Draft) -> None:
    """Raises Conflict, which names them, when files of a draft have not come."""
    missing = [entry.path for entry in draft.files if not entry.present]
    if missing:
        raise missing_error(missing)


def missing_error(paths: list[str]) -> errors.Conflict:
    """The one sentence for files that have to be sent, or sent again."""
    listed = ", ".join(values.printable(path)[:80] for path in paths[:MISSING_SHOWN])
    more = f" and {len(paths) - MISSING_SHOWN:,} more" if len(paths) > MISSING_SHOWN else ""
    return errors.Conflict(
        f"Not all bytes are here: send {listed}{more} first.", missing=paths[: values.PAGE_MAX]
    )


def _held(act: Act, spec: DraftSpec) -> set[Digest]:
    """What need not be sent, as far as the rows know: a version that the caller may pull names it."""
    digests = dict.fromkeys(entry.digest for entry in spec.files)
    return draft_store.held(act.tx, digests, visible_to(act.caller, Verb.PULL))


def _believed(act: Act, model: ModelName, spec: DraftSpec) -> list[FileEntry]:
    """The files of an announcement that are stored as far as the rows know: held by a version, or sent to the
    same draft before. Raises as `begin_draft` does."""
    act.readable(model)
    act.authorise(Verb.REGISTER, model)
    checked = registration.check_spec(spec)
    known = _held(act, checked)
    again = draft_store.find_same(act.tx, model, act.by, checked)
    if again is not None:
        known |= {entry.digest for entry in own(act, again)[0].files if entry.present}
    return [entry for entry in checked.files if entry.digest in known]


def take_back(act: Act, draft: Draft, stored: Container[Digest]) -> list[str]:
    """Have those files of an open draft sent again whose bytes were there and are no more, or are damaged;
    their paths."""
    present = [entry for entry in draft.files if entry.present]
    damaged = damage.damaged_among(act.tx, {entry.digest for entry in present})
    lost = [entry for entry in present if entry.digest not in stored or entry.digest in damaged]
    for digest in {entry.digest for entry in lost}:
        draft_store.set_absent(act.tx, draft.id, digest)
    return [entry.path for entry in lost]


def again_sentence(version: ModelVersion) -> str:
    """Why nothing is registered when a draft is a version that is there."""
    return f"These are the bytes of {version.reference}, and nothing new was stated of them."
