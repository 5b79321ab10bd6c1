"""Whether the stored bytes are still what was registered: of one version, and of everything.

Hashing takes as long as reading, so it is done outside of any transaction, with short reads before and one
short write after, which records what was found broken. No byte is repaired or deleted here: a check may have
misread. What was found damaged is remembered instead, so that a registration of the same content asks for its
bytes and replaces them; a later check that finds them right takes that back.
"""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice

from msgspec.structs import replace

from modelkeep.core import catalog, errors, values
from modelkeep.core.access import Verb
from modelkeep.core.answers import Altered, FileProblem, FsckReport, VerifyReport
from modelkeep.core.catalog import FileEntry, Manifest, ModelVersion, StoredBlob
from modelkeep.core.events import EventKind
from modelkeep.core.values import Digest, ModelName, Ref
from modelkeep.ports import BlobStore
from modelkeep.service import at_hand, references
from modelkeep.service.act import Act, Context, Desk
from modelkeep.service.at_hand import NotAtHand
from modelkeep.service.projections import find_altered
from modelkeep.store import damage, inventory
from modelkeep.store.inventory import Holder, StoredVersion

# Limits of what a check reports; each with the reason for its size.
PROBLEMS_MAX = 1_000
"""Problems, and dangling blobs, that a report lists; the rest are counted. A person looks at the first
few."""
HOLDERS_MAX = 100
"""Versions that one damaged file is reported and recorded for; a shared file may be in very many."""
BATCH = 500
"""Rows, or blobs, of one short read."""


_Found = tuple[str, Digest | None] | None
"""What is wrong with a stored file, in a word, and the digest of what lies there; None when it is right."""


class _Tally:
    """What a check of everything has found so far."""

    def __init__(self) -> None:
        self.versions = self.blobs = self.size_bytes = self.missing = self.damaged = 0
        self.problems: list[FileProblem] = []
        self.holders: list[tuple[Holder, FileProblem]] = []
        self.dangling = self.dangling_bytes = 0
        self.dangling_blobs: list[StoredBlob] = []
        self.altered: list[Altered] = []

    def add(self, problem: FileProblem, holders: list[Holder]) -> None:
        if len(self.problems) < PROBLEMS_MAX:
            self.problems.append(problem)
            self.holders += [(holder, problem) for holder in holders]

    def report(self) -> FsckReport:
        return FsckReport(
            ok=not self.problems and not self.altered,
            versions=self.versions,
            blobs=self.blobs,
            size_bytes=self.size_bytes,
            missing=self.missing,
            damaged=self.damaged,
            problems=tuple(self.problems),
            dangling=self.dangling,
            dangling_bytes=self.dangling_bytes,
            dangling_blobs=tuple(self.dangling_blobs),
            altered=tuple(self.altered),
        )


class Integrity:
    """The verbs that read bytes again. None is an act; each opens its own short ones at the desk it is
    given."""

    def __init__(self, blobs: BlobStore) -> None:
        self._blobs = blobs

    def verify(self, desk: Desk, context: Context, ref: Ref) -> VerifyReport:
        """Hash every file of a version again, and its list of files; what is broken becomes an event.

        Raises:
            NotFound (its leaves): no such version, or not for this caller.
            BlobsUnavailable: the bytes cannot be read now, which says nothing about them.
        """
        return self._verify(desk, context, desk.read(context, _readable, ref, Verb.READ))

    def files_verified(self, desk: Desk, context: Context, ref: Ref, verb: Verb) -> bool | None:
        """Whether a version's bytes are still what was registered, for the gates: None when they cannot be
        read now.

        Args:
            verb: the right that the caller needs on the model.

        Raises:
            NotFound (its leaves), NotAllowed: no such version, or not for this caller.
        """
        return self.still_holds(desk, context, partial(_readable, ref=ref, verb=verb))

    def still_holds(
        self,
        desk: Desk,
        context: Context,
        find: Callable[[Act], ModelVersion | None],
    ) -> bool | None:
        """`files_verified` of the version that `find` reads, which also looks at who asks; None where it
        finds nothing that is to be hashed. Raises what `find` raises."""
        version, marked = desk.read(context, _with_marks, find)
        if version is None:
            return None
        try:
            return self._verify(desk, context, version, marked).ok
        except errors.Unavailable:
            return None

    def look_at_hand(self, act: Act, version: ModelVersion) -> Callable[[], bool]:
        """Within an act: `files_verified` of a version whose files are at hand, to be called for when
        something else was asked of the store.

        Raises:
            NotAtHand: from what it returns, where something has to be waited for, or is wrong.
        """
        marked = damage.ask_damaged(act.tx, [entry.digest for entry in version.files])

        def holds() -> bool:
            if marked() or not _list_holds(version, version.digest):
                raise NotAtHand
            at_hand.contents(self._blobs, version.files)
            return True

        return holds

    def _verify(
        self, desk: Desk, context: Context, version: ModelVersion, marked: set[Digest] | None = None
    ) -> VerifyReport:
        problems = [_of_list(version, version.digest)] if not _list_holds(version, version.digest) else []
        seen: dict[Digest, _Found] = {}
        for entry in version.files:
            if entry.digest not in seen:
                seen[entry.digest] = self._look(entry)
            found = seen[entry.digest]
            if found is not None:
                problems.append(_of_file(entry, (version.reference,), found))
        holder = Holder(version.model, version.number, version.semver, "")
        if problems:
            desk.do(context, _record_broken, [(holder, problem) for problem in problems[:PROBLEMS_MAX]])
        _remember(desk, context, seen, marked)
        return VerifyReport(
            version=version.reference,
            digest=version.digest,
            ok=not problems,
            files=len(version.files),
            size_bytes=version.size_bytes,
            problems=tuple(problems[:PROBLEMS_MAX]),
        )

    def _look(self, entry: FileEntry) -> _Found:
        """What is wrong with a stored file, in a word, and the digest of what lies there; None when it is
        right."""
        try:
            info = self._blobs.verify(entry.digest)
        except errors.BlobNotFound:
            return "missing", None
        except errors.DigestMismatch as problem:
            actual = problem.details.get("actual")
            return "damaged", Digest(str(actual)) if actual else None
        return None if info.size_bytes == entry.size_bytes else ("damaged", entry.digest)

    # -------------------------------------------------------------------------------------------- everything

    def fsck(self, desk: Desk, context: Context) -> FsckReport:
        """Hash every stored file that a version names, once each, list the blobs that nothing names, and hold
        what people decide on (metrics, stages, history) against the events.

        Raises:
            NotAllowed: the caller may not look at the whole installation.
            BlobsUnavailable: the bytes cannot be read now.
            BrokenChain, MalformedBody: an event cannot be read.
        """
        desk.read(context, _may_check_all)
        tally = _Tally()
        self._check_lists(desk, context, tally)
        self._check_contents(desk, context, tally)
        self._find_dangling(desk, context, tally)
        tally.altered += islice(find_altered(desk, context), PROBLEMS_MAX)
        if tally.holders:
            desk.do(context, _record_broken, tally.holders[:PROBLEMS_MAX])
        return tally.report()

    def _check_lists(self, desk: Desk, context: Context, tally: _Tally) -> None:
        after = ""
        while True:
            batch = desk.read(context, _stored_after, after)
            for stored in batch:
                tally.versions += 1
                if not _list_holds(stored.version, stored.digest):
                    tally.damaged += 1
                    version = stored.version
                    holder = Holder(version.model, version.number, version.semver, "")
                    tally.add(_of_list(version, stored.digest), [holder])
            if len(batch) < BATCH:
                return
            after = batch[-1].id

    def _check_contents(self, desk: Desk, context: Context, tally: _Tally) -> None:
        after = ""
        while True:
            batch = desk.read(context, _named_after, after)
            seen: dict[Digest, _Found] = {}
            for digest, size_bytes in batch:
                tally.blobs += 1
                tally.size_bytes += size_bytes
                found = seen[digest] = self._look(FileEntry(path="", size_bytes=size_bytes, digest=digest))
                if found is not None:
                    self._add_broken(desk, context, tally, digest, found)
            _remember(desk, context, seen)
            if len(batch) < BATCH:
                return
            after = batch[-1][0]

    def _add_broken(
        self, desk: Desk, context: Context, tally: _Tally, digest: Digest, found: tuple[str, Digest | None]
    ) -> None:
        holders = desk.read(context, _holders_of, digest)
        keepers = desk.read(context, _keepers_of, digest)
        if not holders and not keepers:
            return  # what named it last was deleted meanwhile
        if found[0] == "missing":
            tally.missing += 1
        else:
            tally.damaged += 1
        entry = FileEntry(path=holders[0].path if holders else keepers[0][1], size_bytes=0, digest=digest)
        names = tuple(_reference(holder) for holder in holders)
        addresses = tuple(f"{keeper}/{path}" for keeper, path in keepers)
        tally.add(replace(_of_file(entry, names, found), artifacts=addresses), holders)

    def _find_dangling(self, desk: Desk, context: Context, tally: _Tally) -> None:
        for batch in _batches(self._blobs.iterate()):
            digests = [blob.digest for blob in batch]
            needed = desk.read(context, _needed_among, digests)
            for blob in batch:
                if blob.digest in needed:
                    continue
                tally.dangling += 1
                tally.dangling_bytes += blob.size_bytes
                if len(tally.dangling_blobs) < PROBLEMS_MAX:
                    tally.dangling_blobs.append(blob)


def _batches(blobs: Iterator[StoredBlob]) -> Iterator[list[StoredBlob]]:
    while batch := list(islice(blobs, BATCH)):
        yield batch


def _readable(act: Act, ref: Ref, verb: Verb) -> ModelVersion:
    version = references.resolve(act, ref)
    act.authorise(verb, version.model)
    return version


def _may_check_all(act: Act) -> None:
    act.authorise(Verb.ADMINISTER, None)


def _stored_after(act: Act, after: str) -> list[StoredVersion]:
    return inventory.list_stored(act.tx, after, BATCH)


def _named_after(act: Act, after: str) -> list[tuple[Digest, int]]:
    return inventory.list_named(act.tx, after, BATCH)


def _holders_of(act: Act, digest: Digest) -> list[Holder]:
    return inventory.list_holders(act.tx, digest, HOLDERS_MAX)


def _keepers_of(act: Act, digest: Digest) -> list[tuple[str, str]]:
    return inventory.list_keepers(act.tx, digest, HOLDERS_MAX)


def _needed_among(act: Act, digests: list[Digest]) -> set[Digest]:
    return inventory.still_needed(act.tx, digests)


def _list_holds(version: ModelVersion, digest: Digest) -> bool:
    """Whether the list of files is the one that was digested."""
    return catalog.manifest_digest(Manifest(files=version.files)) == digest == version.digest


def _of_list(version: ModelVersion, digest: Digest) -> FileProblem:
    actual = catalog.manifest_digest(Manifest(files=version.files))
    return FileProblem(
        digest=digest, path=None, versions=(version.reference,), problem="damaged", actual=actual
    )


def _of_file(entry: FileEntry, versions: tuple[str, ...], found: tuple[str, Digest | None]) -> FileProblem:
    problem, actual = found
    return FileProblem(
        digest=entry.digest, path=entry.path, versions=versions, problem=problem, actual=actual
    )


def _reference(holder: Holder) -> str:
    return f"{holder.model}:{holder.semver}"


def _remember(
    desk: Desk, context: Context, seen: dict[Digest, _Found], marked: set[Digest] | None = None
) -> None:
    """Keep the marks of damaged contents as what was just read; it is a write only where a mark changes.

    Args:
        marked: those that were marked before anything was read. A mark that came meanwhile stays.
    """
    worse = {digest for digest, found in seen.items() if found is not None and found[0] == "damaged"}
    if marked is None:
        marked = desk.read(context, _marked_among, list(seen))
    better = {digest for digest in marked if seen[digest] is None}
    if worse - marked or better:
        desk.do(context, _mark, worse - marked, better)


def _with_marks(
    act: Act, find: Callable[[Act], ModelVersion | None]
) -> tuple[ModelVersion | None, set[Digest]]:
    """A version, and which of its contents are marked."""
    version = find(act)
    if version is None:
        return None, set()
    return version, _marked_among(act, [entry.digest for entry in version.files])


def _marked_among(act: Act, digests: list[Digest]) -> set[Digest]:
    return damage.damaged_among(act.tx, digests)


def _mark(act: Act, worse: set[Digest], better: set[Digest]) -> None:
    for digest in worse:
        damage.mark(act.tx, digest, act.now)
    for digest in better:
        damage.clear(act.tx, digest)


def _record_broken(act: Act, broken: list[tuple[Holder, FileProblem]]) -> None:
    """One event for each version, with what is broken of it."""
    by_version: dict[tuple[ModelName, int], list[tuple[Holder, FileProblem]]] = {}
    for holder, problem in broken:
        by_version.setdefault((holder.model, holder.number), []).append((holder, problem))
    for found in by_version.values():
        holder = found[0][0]
        act.record(
            EventKind.INTEGRITY_FAILED,
            _reference(holder),
            model=holder.model,
            number=holder.number,
            files=[
                {
                    "path": h.path or problem.path,
                    "digest": problem.digest,
                    "problem": problem.problem,
                    "actual": problem.actual,
                }
                for h, problem in found[: values.PAGE_DEFAULT]
            ],
        )
