"""Artifacts: the files that runs and logged models keep, and those of registered versions as MLflow asks for
them.

A file is stored under the digest of its bytes and an artifact only names it, so registering a model from a
run copies nothing, and deleting the run takes nothing from the version. Bytes travel outside of any
transaction: `prepare` says whether they may come, `store_bytes` and `finish` keep them, and only `note` makes
them the artifact. An upload that breaks off is an upload that never was.

Reading asks for READ, the bytes for PULL, changing for TRACK on the project; what may not be read is answered
like what does not exist. The files of a registered version are listed and read under the same kind of
address, and never change: whoever writes there is told so.
"""

import hashlib
import re
import secrets
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import NamedTuple

from msgspec import Struct
from msgspec.structs import replace

from modelkeep.core import errors, tracking, values
from modelkeep.core.access import Caller, Verb
from modelkeep.core.catalog import FileEntry, ModelVersion
from modelkeep.core.media import media_type
from modelkeep.core.tracking import Artifact
from modelkeep.core.values import Digest, ModelName, Numbered, Ref
from modelkeep.ports import BLOB_MAX_BYTES, SMALL_MAX_BYTES, BlobInfo, BlobStore, wrong_digest
from modelkeep.service import references, run_logging
from modelkeep.service.act import Act
from modelkeep.service.small_files import SmallFiles
from modelkeep.store import artifacts, damage
from modelkeep.store.artifacts import Child, OwnerKind, OwnerRow, Spot

# Limits of what runs may keep; each with the reason for its size.
ARTIFACTS_MAX = 100_000
"""Files of one run or logged model: a picture for every step of a long training, and a list that still comes
in one answer, as MLflow's client wants it."""
DECLARED_BYTES = 1024 * 1024
"""From this size on the blob store is told how much will come, and looks for the room first; for small files
that would take longer than writing them."""
PARTS_MAX = 10_000
"""Parts of one multipart upload, as S3 has it; the client's own parts have 10 MiB."""

PRESUMED_S = 10.0
"""How long a caller who has put a file into a run need not be asked about before the next small one comes."""
PRESUMED_MAX = 1_024
"""Callers and runs of which that is remembered."""

_UPLOAD_ID = re.compile(r"mpu_[0-9a-z]{26}", re.ASCII)
_NUMBER = re.compile(r"[1-9][0-9]{0,17}", re.ASCII)


class Owner(NamedTuple):
    """What keeps artifacts: a run or a logged model, by its id."""

    kind: OwnerKind
    id: str


class OwnedPlace(Struct, frozen=True, kw_only=True):
    """A file or folder ('' for all) of a run or logged model; `experiment_id` as the address says, if it
    does."""

    owner: Owner
    path: str = ""
    experiment_id: int | None = None


class VersionPlace(Struct, frozen=True, kw_only=True):
    """A file or folder ('' for all) of a registered version."""

    model: ModelName
    number: int
    path: str = ""


Place = OwnedPlace | VersionPlace


class ArtifactPlan(Struct, frozen=True, kw_only=True):
    """Where the bytes of an artifact, or of a part of one, go: `offset` is how many have come, `blob` what
    they were found to be.

    Attributes:
        expected: the digest that the sender says, if it does.
        upload: the multipart upload, for a part and for what is put together from parts.
        noted: it is the artifact already.
    """

    place: OwnedPlace
    upload_id: str
    size_bytes: int | None = None
    expected: Digest | None = None
    upload: str | None = None
    offset: int = 0
    present: bool = False
    blob: BlobInfo | None = None
    noted: bool = False


class OpenArtifact(NamedTuple):
    """A file that the caller may have. `settled` ones are a version's: never a byte of them goes out
    unverified."""

    path: str
    digest: Digest
    size_bytes: int
    settled: bool


# ---------------------------------------------------------------------------------------------------- places


def parse_place(text: str) -> Place:
    """Read the path of an `mlflow-artifacts:` address.

    `<experiment>/<run>/artifacts/...`, `<experiment>/models/<logged model>/artifacts/...` or
    `registered-models/<project>/<model>/<number>/...`; nothing else is anywhere.

    Raises:
        ArtifactNotFound: it is none of them.
        InvalidParameter: what follows is no path of a file.
    """
    match text.split("/"):
        case ["registered-models", project, name, number, *rest] if _NUMBER.fullmatch(number):
            model = ModelName(project, name)
            return VersionPlace(model=model, number=int(number), path=_joined(rest))
        case [experiment, "models", model_id, "artifacts", *rest] if (
            _NUMBER.fullmatch(experiment) or experiment == "0"
        ) and tracking.LOGGED_MODEL_ID.fullmatch(model_id):
            owner = Owner(OwnerKind.LOGGED_MODEL, model_id)
            return OwnedPlace(owner=owner, path=_joined(rest), experiment_id=int(experiment))
        case [experiment, run_id, "artifacts", *rest] if (
            _NUMBER.fullmatch(experiment) or experiment == "0"
        ) and tracking.RUN_ID.fullmatch(run_id):
            owner = Owner(OwnerKind.RUN, run_id)
            return OwnedPlace(owner=owner, path=_joined(rest), experiment_id=int(experiment))
    raise errors.ArtifactNotFound(
        f"Nothing is kept at {values.quoted(text, 200)}; use the artifact address of a run, a logged model "
        "or a registered version.",
        path=values.printable(text)[:200],
    )


def _joined(parts: list[str]) -> str:
    path = "/".join(parts)
    return check_artifact_path(path) if parts else path


def check_artifact_path(path: str) -> str:
    """Return a path that an artifact can have: refused rather than repaired.

    Raises:
        InvalidParameter: absolute, empty or dotted parts, backslash, colon, control characters, or too long.
    """
    try:
        return values.check_path(path)
    except errors.InvalidManifest as refused:
        raise errors.InvalidParameter(
            f"{values.quoted(path)} cannot be the path of an artifact: use plain names joined by '/', "
            "without '.', '..', backslash, colon or control characters.",
            field="path",
        ) from refused


def address_of(place: Place) -> str:
    """The path of a place in an `mlflow-artifacts:` address; `parse_place` reads it. An owned place needs its
    experiment."""
    if isinstance(place, VersionPlace):
        root = f"registered-models/{place.model.project}/{place.model.name}/{place.number}"
    else:
        between = "models/" if place.owner.kind is OwnerKind.LOGGED_MODEL else ""
        root = f"{place.experiment_id}/{between}{place.owner.id}/artifacts"
    return f"{root}/{place.path}" if place.path else root


class Artifacts:
    """The verbs of artifacts. All are acts but `presume`, `store_bytes`, `finish`, `assemble` and `drop`."""

    def __init__(self, blobs: BlobStore) -> None:
        self.small = SmallFiles(blobs)
        self._blobs = blobs
        self._lately: dict[tuple[Caller, Owner, int | None], datetime] = {}

    # ---------------------------------------------------------------------------------------------- reading

    def locate(self, act: Act, owner: Owner, path: str = "") -> OwnedPlace:
        """A place of a run or logged model, with its experiment.

        Raises:
            RunNotFound, LoggedModelNotFound: it is not there or not to be seen. InvalidParameter: the path.
        """
        place = OwnedPlace(owner=owner, path=check_artifact_path(path) if path else "")
        return replace(place, experiment_id=self._owner(act, place).experiment_id)

    def open_file(self, act: Act, place: Place) -> OpenArtifact:
        """One file, for a caller who is about to be sent its bytes.

        Raises:
            NotFound (its leaves), NotAllowed: the owner, the file, or the right to pull it.
            InvalidParameter: it is a folder.
        """
        if isinstance(place, VersionPlace):
            return self._open_of_version(act, place)
        spot = artifacts.find_file(act.tx, *place.owner, place.path)
        owner = self._seen(act, place, spot and spot.owner)
        act.authorise(Verb.PULL, owner.project)
        found = spot and spot.file
        if found is None:
            if not place.path or artifacts.under(act.tx, owner, place.path, 1):
                raise _is_folder(place.path)
            raise _no_artifact(place.path)
        return OpenArtifact(found.path, found.digest, found.size_bytes, settled=False)

    def list_folder(self, act: Act, place: Place) -> tuple[Child, ...]:
        """What lies directly in a folder, in the order of names; nothing for a file, and for what is not
        there.

        Raises:
            NotFound (its leaves): the owner is not there or not to be seen.
        """
        if isinstance(place, VersionPlace):
            found: Iterable[Child] = _children_of(self._version(act, place), place.path)
        else:
            found = artifacts.children(act.tx, self._owner(act, place), place.path)
        return tuple(sorted(found, key=lambda child: child.name))

    def manifest_of(self, act: Act, owner: Owner, prefix: str = "") -> tuple[FileEntry, ...]:
        """The files below a folder of a run or logged model, as a version has them: their paths begin in that
        folder. A file itself is a list of one.

        Raises:
            RunNotFound, LoggedModelNotFound, NotAllowed: not there, not to be seen, not to be pulled.
            ArtifactNotFound: nothing is there. LimitExceeded: more files than a version has.
        """
        row = self._owner(act, OwnedPlace(owner=owner, path=check_artifact_path(prefix) if prefix else ""))
        return self.manifest_in(act, row.kind, row.serial, row.project, prefix)

    def manifest_in(
        self, act: Act, kind: OwnerKind, serial: int, project: str, prefix: str = ""
    ) -> tuple[FileEntry, ...]:
        """`manifest_of` for who has looked at the run or logged model, and at the path, already.

        Raises:
            NotAllowed: its files are not to be pulled. ArtifactNotFound, LimitExceeded: as `manifest_of`.
        """
        act.authorise(Verb.PULL, project)
        one, found = artifacts.at_or_under(act.tx, kind, serial, prefix, values.FILES_MAX + 1)
        if one is not None:
            return (_entry(one.path.rpartition("/")[2], one.size_bytes, one.digest),)
        if not found:
            raise _no_artifact(prefix)
        if len(found) > values.FILES_MAX:
            raise errors.LimitExceeded(
                f"A version has at most {values.FILES_MAX:,} files; pack small ones together.", field="files"
            )
        start = len(prefix) + 1 if prefix else 0
        return tuple(_entry(file.path[start:], file.size_bytes, file.digest) for file in found)

    # ---------------------------------------------------------------------------------------------- writing

    def prepare(
        self,
        act: Act,
        place: Place,
        size_bytes: int | None = None,
        expected: Digest | None = None,
        *,
        most_bytes: int = BLOB_MAX_BYTES,
    ) -> ArtifactPlan:
        """Say where the bytes of a new artifact go, and refuse here what `note` would refuse. Only reads.

        Args:
            size_bytes: how many will come, where that is known.

        Raises:
            NotFound (its leaves), NotAllowed, InvalidState, Protected: as `note`.
            InvalidParameter, LimitExceeded: the path, the number of files, or the size.
        """
        owned = self._owned(act, place)
        self._admitted(act, owned)
        if size_bytes is not None and size_bytes > most_bytes:
            raise errors.LimitExceeded(
                f"An artifact sent this way has at most {most_bytes:,} bytes.", field="size_bytes"
            )
        return ArtifactPlan(
            place=owned, upload_id=act.new_id("art"), size_bytes=size_bytes, expected=expected
        )

    def presume(
        self, caller: Caller, now: datetime, place: Place, size_bytes: int | None, expected: Digest | None
    ) -> ArtifactPlan | None:
        """What `prepare` would say of one more small file of a caller who has just put one there, without
        looking; None: ask it.

        `note` decides in any case. Who has lost the right since, or sends to a run that is gone, is refused
        there; what is left then is a few bytes that nothing names.
        """
        if not isinstance(place, OwnedPlace) or size_bytes is None or size_bytes > SMALL_MAX_BYTES:
            return None
        noted_at = self._lately.get((caller, place.owner, place.experiment_id))
        if noted_at is None or not 0 <= (now - noted_at).total_seconds() < PRESUMED_S:
            return None
        upload_id = values.new_id("art", now, secrets.token_bytes(10))
        return ArtifactPlan(place=place, upload_id=upload_id, size_bytes=size_bytes, expected=expected)

    def store_bytes(self, plan: ArtifactPlan, offset: int, chunks: Iterable[bytes]) -> ArtifactPlan:
        """Take in bytes, outside of any transaction. Raises as `BlobStore.append`."""
        if offset == 0:
            large = plan.size_bytes is not None and plan.size_bytes > DECLARED_BYTES
            self._blobs.begin(plan.upload_id, plan.size_bytes if large else None)
        return replace(plan, offset=self._blobs.append(plan.upload_id, offset, chunks))

    def finish(self, plan: ArtifactPlan) -> ArtifactPlan:
        """Keep the bytes that came, under their digest.

        Raises:
            DigestMismatch: they are not those that the sender said.
            as `BlobStore.seal`.
        """
        if plan.expected is not None:
            return replace(plan, blob=self._blobs.commit(plan.upload_id, plan.expected))
        return replace(plan, blob=self._blobs.seal(plan.upload_id))

    def check(self, plan: ArtifactPlan, data: bytes) -> ArtifactPlan:
        """Look at a small file that has come whole. Raises DigestMismatch: it is not what its sender said."""
        actual = Digest(f"sha256:{hashlib.sha256(data).hexdigest()}")
        if plan.expected is not None and actual != plan.expected:
            raise wrong_digest(plan.expected, actual, "nothing of it was kept, send the file again")
        return replace(plan, offset=len(data), blob=BlobInfo(digest=actual, size_bytes=len(data)))

    def drop(self, plan: ArtifactPlan) -> None:
        """Forget what came of an upload."""
        self._blobs.cancel(plan.upload_id)

    def note(self, act: Act, plan: ArtifactPlan) -> Artifact:
        """Make what came the artifact at its path, in place of what may be there.

        Raises:
            RunNotFound, LoggedModelNotFound, NotAllowed: not there, not to be seen, not to be changed.
            InvalidState: the run or its experiment is deleted.
            InvalidParameter: a file stands where a folder is needed, or the other way round.
            LimitExceeded: too many files.
        """
        assert plan.blob is not None, "what is noted has come"
        spot = self._admitted(act, plan.place, plan.blob.digest)
        file = Artifact(path=plan.place.path, size_bytes=plan.blob.size_bytes, digest=plan.blob.digest)
        artifacts.put(act.tx, spot.owner, file, spot.file, run_logging.now_ms(act), plan.upload)
        if spot.marked:
            damage.clear(act.tx, file.digest)
        if len(self._lately) >= PRESUMED_MAX:
            self._lately.clear()
        self._lately[act.caller, plan.place.owner, plan.place.experiment_id] = act.now
        return file

    def keep(self, act: Act, plan: ArtifactPlan, data: bytes) -> ArtifactPlan:
        """Keep a small file that was checked, and make it the artifact at its path; `note` for one whose
        bytes are nowhere yet.

        Raises:
            as `note` and `SmallFiles.keep`.
        """
        self.note(act, plan)
        assert plan.blob is not None, "what is noted has come"
        self.small.keep(act, plan.blob.digest, data)
        return replace(plan, noted=True)

    def delete(self, act: Act, place: Place) -> int:
        """Remove a file, or a folder with everything in it; what is not there is no error. Versions that were
        made of it keep their files.

        Returns:
            how many files went.

        Raises:
            NotFound (its leaves), NotAllowed, InvalidState, Protected: as `note`.
        """
        place = self._owned(act, place)
        return artifacts.drop(act.tx, self._owner(act, place, change=True), place.path)

    # ---------------------------------------------------------------------------------- uploads in many parts

    def begin_parts(self, act: Act, place: Place, parts: int) -> str:
        """The id of a new multipart upload. Nothing is kept of it until a part comes.

        Raises:
            as `prepare`; LimitExceeded: too many parts.
        """
        if not 1 <= parts <= PARTS_MAX:
            raise errors.LimitExceeded(f"A multipart upload has 1 to {PARTS_MAX:,} parts.", field="num_parts")
        self.prepare(act, place)
        return act.new_id("mpu")

    def prepare_part(
        self, act: Act, place: Place, upload: str, number: int, size_bytes: int | None = None
    ) -> ArtifactPlan:
        """Say where the bytes of a part go: a place that only this caller's upload for this path has.

        Raises:
            as `prepare`; ArtifactNotFound: that is no upload; LimitExceeded: no such part.
        """
        if not 1 <= number <= PARTS_MAX:
            raise errors.LimitExceeded(
                f"The parts of an upload have the numbers 1 to {PARTS_MAX:,}.", field="part_number"
            )
        plan = self._of_upload(act, place, upload)
        if size_bytes is not None and size_bytes > BLOB_MAX_BYTES:
            raise errors.LimitExceeded(f"A part has at most {BLOB_MAX_BYTES:,} bytes.", field="size_bytes")
        return replace(plan, upload_id=f"{plan.upload_id}_{number}")

    def prepare_whole(self, act: Act, place: Place, upload: str) -> tuple[ArtifactPlan, bool]:
        """What the parts of an upload are put together to; and whether that has been done already.

        Raises:
            as `prepare`; ArtifactNotFound: that is no upload.
        """
        plan = self._of_upload(act, place, upload)
        there = artifacts.get(act.tx, self._owner(act, plan.place), plan.place.path)
        return plan, there is not None and there.upload == upload

    def part_tag(self, plan: ArtifactPlan, number: int) -> str:
        """What a sender gets for a part and shows again at the end: its number and its size in bytes.

        Raises:
            BlobNotFound: the part has not come.
        """
        return f"{number}-{self._blobs.status(f'{plan.upload_id}_{number}')}"

    def assemble(self, plan: ArtifactPlan, tags: tuple[str | None, ...]) -> ArtifactPlan:
        """Put the parts of an upload together, in the order of their numbers.

        Args:
            tags: of each part what `part_tag` said, as far as the sender remembers it.

        Raises:
            Conflict: a part has not come, or is not the one that the sender speaks of.
            as `BlobStore.append` and `seal`.
        """
        for number, tag in enumerate(tags, 1):
            try:
                known = self.part_tag(plan, number)
            except errors.BlobNotFound:
                known = "missing"
            if known == "missing" or (tag and tag.strip('"') != known):
                raise errors.Conflict(
                    f"Part {number} has not come as it is described; send it again.", part_number=number
                )
        parts = [f"{plan.upload_id}_{number}" for number in range(1, len(tags) + 1)]
        whole = replace(plan, upload_id=f"{plan.upload_id}_all")
        self._blobs.cancel(whole.upload_id)  # what an attempt that broke off has left
        self._blobs.begin(whole.upload_id)
        try:
            self._blobs.append(whole.upload_id, 0, self._joined(parts))
            whole = self.finish(whole)
        except BaseException:
            self._blobs.cancel(whole.upload_id)
            raise
        for part in parts:
            self._blobs.cancel(part)
        return whole

    def abandon(self, plan: ArtifactPlan, parts: Iterable[int] = range(1, PARTS_MAX + 1)) -> None:
        """Forget the parts of an upload: the numbers may have gaps."""
        for number in parts:
            self._blobs.cancel(f"{plan.upload_id}_{number}")

    def _joined(self, parts: list[str]) -> Iterator[bytes]:
        for part in parts:
            yield from self._blobs.open_upload(part)

    def _of_upload(self, act: Act, place: Place, upload: str) -> ArtifactPlan:
        if not _UPLOAD_ID.fullmatch(upload):
            raise errors.ArtifactNotFound(
                f"There is no multipart upload {values.quoted(upload, 60)}; create one.",
                upload_id=upload[:60],
            )
        plan = self.prepare(act, place)
        bound = f"{plan.place.owner.kind}/{plan.place.owner.id}/{plan.place.path}\0{act.by}"
        mark = hashlib.sha256(bound.encode()).hexdigest()[:16]
        return replace(plan, upload=upload, upload_id=f"{upload}_{mark}")

    # ----------------------------------------------------------------------------------------------- rights

    def _owner(self, act: Act, place: OwnedPlace, *, change: bool = False) -> OwnerRow:
        """What keeps the artifacts of a place.

        Raises:
            RunNotFound, LoggedModelNotFound: not there, in another experiment, or not to be seen.
            NotAllowed, InvalidState: it is to be changed, and may not be.
        """
        row = self._seen(act, place, artifacts.find_owner(act.tx, *place.owner))
        return self._changeable(act, row) if change else row

    def _seen(self, act: Act, place: OwnedPlace, row: OwnerRow | None) -> OwnerRow:
        """What was found to keep the artifacts of a place. Raises RunNotFound, LoggedModelNotFound as
        `_owner`."""
        kind, id = place.owner  # noqa: A001
        if (
            row is None
            or (place.experiment_id is not None and place.experiment_id != row.experiment_id)
            or (kind is OwnerKind.LOGGED_MODEL and row.deleted)
            or not act.may(Verb.READ, row.project)
        ):
            raise run_logging.no_run(id) if kind is OwnerKind.RUN else run_logging.no_logged_model(id)
        return row

    def _changeable(self, act: Act, row: OwnerRow) -> OwnerRow:
        """What keeps artifacts, for a caller who may change them. Raises NotAllowed, InvalidState."""
        act.authorise(Verb.TRACK, row.project)
        if row.deleted:
            raise run_logging.deleted(f"run {row.id}")
        return row

    def _owned(self, act: Act, place: Place) -> OwnedPlace:
        """A place that is no version's. Raises Protected, and NotFound (its leaves) where it cannot be
        seen."""
        if isinstance(place, VersionPlace):
            version = self._version(act, place)
            raise errors.Protected(
                f"The files of {version.reference} never change; register another version instead.",
                version=version.reference,
            )
        return place

    def _admitted(self, act: Act, place: OwnedPlace, digest: Digest | None = None) -> Spot:
        """Where a file, of this digest if it has come, may be put by this caller, and what stands there;
        found in one step.

        Raises:
            RunNotFound, LoggedModelNotFound, NotAllowed, InvalidState: as `_owner`.
            LimitExceeded: there is no room for another file.
            InvalidParameter: a file stands where a folder is needed, or the other way round; or the place is
                a whole folder.
        """
        spot = artifacts.find_spot(act.tx, *place.owner, place.path, digest)
        owner = self._changeable(act, self._seen(act, place, spot and spot.owner))
        assert spot is not None, "what was seen was found"
        if not place.path:
            raise errors.InvalidParameter("Name the file behind the artifact address.", field="path")
        if spot.file is not None:
            return spot
        if owner.files >= ARTIFACTS_MAX:
            raise errors.LimitExceeded(
                f"A run or logged model keeps at most {ARTIFACTS_MAX:,} files; pack small ones together.",
                field="files",
            )
        if spot.in_the_way is not None:
            raise errors.InvalidParameter(
                f"{values.quoted(place.path)} cannot be a file beside {values.quoted(spot.in_the_way)}: one "
                "of the two would have to be a folder.",
                field="path",
            )
        return spot

    # --------------------------------------------------------------------------------------------- versions

    def _version(self, act: Act, place: VersionPlace) -> ModelVersion:
        return references.resolve(act, Ref(model=place.model, selector=Numbered(place.number)))

    def _open_of_version(self, act: Act, place: VersionPlace) -> OpenArtifact:
        version = self._version(act, place)
        act.authorise(Verb.PULL, version.model)
        for entry in version.files:
            if entry.path == place.path:
                return OpenArtifact(entry.path, entry.digest, entry.size_bytes, settled=True)
        if any(_children_of(version, place.path)):
            raise _is_folder(place.path)
        raise _no_artifact(place.path)


def _children_of(version: ModelVersion, folder: str) -> set[Child]:
    start = f"{folder}/" if folder else ""
    found = set()
    for entry in version.files:
        if entry.path.startswith(start):
            name, slash, _ = entry.path[len(start) :].partition("/")
            found.add(Child(name, None if slash else entry.size_bytes))
    return found


def _entry(path: str, size_bytes: int, digest: Digest) -> FileEntry:
    return FileEntry(path=path, size_bytes=size_bytes, digest=digest, media_type=media_type(path))


def _no_artifact(path: str) -> errors.ArtifactNotFound:
    return errors.ArtifactNotFound(
        f"There is no artifact {values.quoted(path)}; list the folder it should be in.",
        path=values.printable(path)[:200],
    )


def _is_folder(path: str) -> errors.InvalidParameter:
    shown = values.quoted(path) if path else "the artifact address itself"
    return errors.InvalidParameter(f"{shown} is a folder, not a file; list it.", field="path")
