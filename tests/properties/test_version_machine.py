"""Random histories of drafts, uploads and versions that share their bytes, swept and collected in between.

The real services live through them, on the folder store and on the one in memory. Beside them stands what
each version was when it was made. Contents are few, so that most drafts and versions hold the same bytes;
sweeps are crueler than in life, for they ask for no grace.
"""

from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from msgspec import Struct, structs

from modelkeep.adapters.blobs_folder import FolderBlobs
from modelkeep.core import errors, registration
from modelkeep.core.answers import FsckReport, VerifyReport
from modelkeep.core.catalog import DEFAULT_STAGES, DraftStatus, ModelVersion
from modelkeep.core.values import PAGE_MAX, Digest, ModelName, parse_ref
from modelkeep.ports import BlobStore
from modelkeep.store import inventory
from tests.fakes import MemoryBlobs, digest_of
from tests.properties.registry_world import AT_ONCE, RegistryWorld, database_in_a_folder, numbered

CONTENTS = (b"", b"one", b"two and more", b"three" * 50)
MODELS = (ModelName("default", "churn"), ModelName("default", "fraud"))
AUTHORS = ("owner", "fay")
ANY_MODEL = st.sampled_from(MODELS)
FILES = st.lists(st.sampled_from(CONTENTS), min_size=1, max_size=3)
PLACE = st.integers(0, 5)
DRAFTS_KEPT = 4
GUARDED = {spec.name for spec in DEFAULT_STAGES.stages if spec.protected}
REFUSED = (errors.Conflict, errors.NotFound, errors.InvalidTransition, errors.Tombstoned, errors.GateFailed)


def record(version: ModelVersion) -> ModelVersion:
    """What of a version never changes: all but labels and positions."""
    return structs.replace(registration.record_of(version), stage="none")


class Open(Struct):
    """What is known of a draft that has not ended."""

    id: str
    model: ModelName
    by: str
    files: dict[str, bytes]


class VersionMachine(RuleBasedStateMachine):
    """Two authors, two models, one store of bytes."""

    def blob_store(self, folder: Path) -> BlobStore:
        """The store that this machine is about."""
        return MemoryBlobs()

    def __init__(self) -> None:
        super().__init__()
        self.stack = ExitStack()
        database, folder = self.stack.enter_context(database_in_a_folder())
        blobs = self.blob_store(folder)
        self.stack.callback(blobs.close)
        self.world = RegistryWorld(database, blobs)
        self.drafts: list[Open] = []
        self.made: dict[tuple[ModelName, int], ModelVersion] = {}
        self.deleted: set[tuple[ModelName, int]] = set()
        self.serial = 0
        for model in MODELS:
            self.world.do("owner", self.world.catalog.create_model, model)
        for model in MODELS:
            for place in (1, 2):
                self.world.register(model, CONTENTS[place])
                self.note(model)

    def teardown(self) -> None:
        try:
            self.check_everything()
        finally:
            self.stack.close()

    # ---------------------------------------------------------------------------------------------- drafting

    @rule(model=ANY_MODEL, by=st.sampled_from(AUTHORS), contents=FILES, new=st.booleans())
    def begin(self, model: ModelName, by: str, contents: list[bytes], new: bool) -> None:
        """Announce files; `new` states something that makes another version of equal bytes."""
        self.serial += new
        files = {f"part{place}": data for place, data in enumerate(contents)}
        draft = self.world.begin(model, files, by, params={"n": str(self.serial)})
        if all(one.id != draft.id for one in self.drafts):
            known = Open(id=draft.id, model=model, by=by, files=files)
            self.drafts = [*self.drafts, known][-DRAFTS_KEPT:]

    @rule(which=PLACE, place=st.integers(0, 2), bytes_max=st.sampled_from([2, 1_000, 1_000]))
    def send(self, which: int, place: int, bytes_max: int) -> None:
        """Send a file of a draft, or its beginning."""
        draft = self.draft(which)
        if draft is None:
            return
        path = f"part{place % len(draft.files)}"
        self.attempt("send", lambda: self.world.send(draft.id, path, draft.files[path][:bytes_max], draft.by))

    @rule(which=PLACE)
    def send_others(self, which: int) -> None:
        """Send bytes that were not announced, in the right number."""
        draft = self.draft(which)
        if draft is None or not draft.files["part0"]:
            return
        wrong = bytes(byte ^ 1 for byte in draft.files["part0"])
        try:
            stands = self.world.read(draft.by, self.world.catalog.get_draft, draft.id)
        except errors.DraftNotFound:
            return  # swept, and forgotten
        if stands.status is not DraftStatus.OPEN or stands.files[0].present or stands.files[0].offset:
            return
        with pytest.raises(errors.DigestMismatch):
            self.world.send(draft.id, "part0", wrong, draft.by)

    @rule(which=PLACE)
    def send_all(self, which: int) -> None:
        """Send whatever is missing, and finalize: the usual way, which chance alone seldom walks."""
        draft = self.draft(which)
        if draft is not None:
            for path, data in draft.files.items():
                self.attempt("send", lambda: self.world.send(draft.id, path, data, draft.by))  # noqa: B023
            self.finalize(which)

    @rule(which=PLACE)
    def finalize(self, which: int) -> None:
        """Make a version, if everything is there: then exactly of the bytes that were announced."""
        draft = self.draft(which)
        if draft is None:
            return
        try:
            ended = self.world.finalize(draft.id, draft.by)
        except REFUSED as refusal:
            event(f"finalize: {refusal.code}")
            if not isinstance(refusal, errors.Conflict) or isinstance(refusal, errors.DraftClosed):
                self.drafts.remove(draft)
            return
        event(f"finalize: {'made' if ended.created else 'was there'}")
        version = ended.version
        assert {f.path: f.digest for f in version.files} == {
            path: digest_of(data) for path, data in draft.files.items()
        }
        if (draft.model, version.number) not in self.made:
            assert ended.created
            self.note(draft.model)

    @rule(which=PLACE)
    def cancel(self, which: int) -> None:
        draft = self.draft(which)
        if draft is not None:
            cancel = self.world.catalog.cancel_draft
            self.attempt("cancel", lambda: self.world.do(draft.by, cancel, draft.id))

    # ----------------------------------------------------------------------------------- sweeping, collecting

    @rule(older_s=st.sampled_from([60, 60, 1, 0]), later_s=st.sampled_from([1, 30]), uploads=st.booleans())
    def sweep(self, older_s: int, later_s: int, uploads: bool) -> None:
        """What the controller does each hour: drafts that nobody touched since, and broken-off uploads."""
        self.world.later(seconds=later_s)
        older = self.world.now - timedelta(seconds=older_s)
        event(f"swept {bool(self.world.do('owner', self.world.catalog.sweep_drafts, older))}")
        if uploads:
            self.world.blobs.sweep_uploads(datetime.now(UTC) + timedelta(minutes=1))

    @rule()
    def collect(self) -> None:
        """Take away each blob of which a check of everything says that nothing names it."""
        for blob in self.world.fsck().dangling_blobs:
            event("collected")
            assert self.world.blobs.delete(blob.digest)

    # --------------------------------------------------------------------------------------- around versions

    @rule(place=PLACE, protected=st.booleans())
    def point(self, place: int, protected: bool) -> None:
        """Point an alias at a version."""
        model, number = self.version(place)
        move, ref = self.world.catalog.set_alias, numbered(model, number)
        self.attempt("alias", lambda: self.world.do("owner", move, model, "best", ref, protected=protected))

    @rule(place=PLACE, to=st.sampled_from(["staging", "production", "production", "archived"]))
    def promote(self, place: int, to: str) -> None:
        """Move a version, or begin to move traffic to it."""
        model, number = self.version(place)
        promote, ref = self.world.promotions.promote, numbered(model, number)
        self.attempt(
            "promote", lambda: self.world.do("owner", promote, ref, to, "better", files_verified=True)
        )

    @rule(model=ANY_MODEL)
    def serve(self, model: ModelName) -> None:
        """Have an endpoint follow production."""
        put = self.world.rollouts.put_endpoint
        self.attempt("serve", lambda: self.world.do("owner", put, model.name, model, plan=AT_ONCE))

    @rule()
    def settle(self) -> None:
        """Let rollouts end."""
        self.world.settle()

    @rule(place=PLACE)
    def delete(self, place: int) -> None:
        """Invariant 6: a version that serves, or holds a protected alias or stage, cannot be deleted; any
        other can."""
        model, number = self.version(place)
        held = self.what_holds(model, number)
        event(f"delete: {held}")
        remove, ref = self.world.catalog.delete_version, numbered(model, number)
        if held is not None:
            with pytest.raises(errors.Protected):
                self.world.do("owner", remove, ref)
            assert self.world.read("owner", self.world.catalog.get_version, ref).number == number
        else:
            self.world.do("owner", remove, ref)
            self.deleted.add((model, number))

    # -------------------------------------------------------------------------------------- what holds always

    @invariant()
    def versions_stay_as_they_were_made(self) -> None:
        """Invariant 3: a finalized version never changes, and a whole read proves its bytes."""
        for (model, number), made in self.living().items():
            now = self.world.read("owner", self.world.catalog.get_version, numbered(model, number))
            assert record(now) == record(made)

    @invariant()
    def only_what_is_finalized_is_visible(self) -> None:
        """Invariant 4: nobody sees a version before it is finalized, and no number is given twice."""
        for model in MODELS:
            page = self.world.read("owner", self.world.catalog.list_versions, model, PAGE_MAX)
            assert {version.number for version in page.items} == {n for m, n in self.living() if m == model}
            given = sorted(number for m, number in self.made if m == model)
            assert given == list(range(1, len(given) + 1))
        for draft in self.drafts:
            other = next(name for name in AUTHORS if name != draft.by)
            with pytest.raises(errors.DraftNotFound):
                self.world.read(other, self.world.catalog.get_draft, draft.id)

    @invariant()
    def what_a_manifest_names_is_stored(self) -> None:
        """Invariant 5: a blob named by a manifest is never collected."""
        named = {entry.digest for version in self.living().values() for entry in version.files}
        contents = {digest_of(data): data for data in CONTENTS}
        for digest in named:
            assert b"".join(self.world.blobs.open_verified(digest)) == contents[digest]
        needed = self.world.database.read(lambda tx: inventory.still_needed(tx, sorted(contents)))
        assert named <= needed

    def check_everything(self) -> None:
        """A check of everything finds no fault, and calls nothing dangling that is named."""
        report = self.world.fsck()
        assert report.ok, report
        named = {entry.digest for version in self.living().values() for entry in version.files}
        assert not named & {blob.digest for blob in report.dangling_blobs}

    # ------------------------------------------------------------------------------------------ what is known

    def draft(self, which: int) -> Open | None:
        return self.drafts[which % len(self.drafts)] if self.drafts else None

    def version(self, place: int) -> tuple[ModelName, int]:
        """One of the versions that are; there is always one more."""
        there = sorted(self.living())
        if not there:
            self.world.register(MODELS[0], CONTENTS[3], params={"n": f"again {len(self.made)}"})
            self.note(MODELS[0])
            return self.version(place)
        return there[place % len(there)]

    def living(self) -> dict[tuple[ModelName, int], ModelVersion]:
        return {key: version for key, version in self.made.items() if key not in self.deleted}

    def note(self, model: ModelName) -> None:
        """Remember the version that was just made; its number is the next one of its model."""
        number = 1 + sum(m == model for m, _ in self.made)
        self.made[model, number] = self.world.read(
            "owner", self.world.catalog.get_version, numbered(model, number)
        )

    def what_holds(self, model: ModelName, number: int) -> str | None:
        """Why a version may not be deleted, from what anybody may read."""
        version = self.world.read("owner", self.world.catalog.get_version, numbered(model, number))
        if version.stage in GUARDED:
            return "stage"
        aliases = self.world.read("owner", self.world.catalog.get_model, model).aliases
        if any(alias.protected and alias.number == number for alias in aliases):
            return "alias"
        page = self.world.read("owner", self.world.rollouts.list_endpoints, limit=PAGE_MAX, page_token=None)
        for endpoint in (one for one in page.items if one.model == model):
            status = self.world.status(endpoint.name)
            moving = (
                {status.rollout.candidate, status.rollout.stable}
                if status.active and status.rollout is not None
                else set()
            )
            if number in {endpoint.stable, endpoint.previous} | moving:
                return "traffic"
        return None

    def attempt(self, what: str, act: Callable[[], object]) -> None:
        try:
            act()
            event(what)
        except REFUSED as refusal:
            event(f"{what}: {refusal.code}")


class FolderMachine(VersionMachine):
    """The same with bytes on a disk."""

    def blob_store(self, folder: Path) -> BlobStore:
        return FolderBlobs(folder / "blobs")


for _machine in (VersionMachine, FolderMachine):
    _machine.TestCase.settings = settings(
        max_examples=settings().max_examples // 2,
        stateful_step_count=50,
        suppress_health_check=list(HealthCheck),
    )
TestVersionsInMemory = pytest.mark.req("V3", "V4")(VersionMachine.TestCase)
TestVersionsInAFolder = pytest.mark.req("V3", "V4")(FolderMachine.TestCase)


@pytest.mark.req("V3")
@settings(max_examples=settings().max_examples // 2, suppress_health_check=list(HealthCheck))
@given(data=st.binary(min_size=1, max_size=300), place=st.integers(0), bit=st.integers(0, 7))
def test_a_flipped_bit_is_found(data: bytes, place: int, bit: int) -> None:
    """Invariant 3: bytes are verified on write, on read for serving, and by fsck, whichever bit flipped."""
    flipped = bytearray(data)
    flipped[place % len(data)] ^= 1 << bit
    with database_in_a_folder() as (database, folder):
        blobs = FolderBlobs(folder / "blobs")
        try:
            world = RegistryWorld(database, blobs)
            draft = world.begin(MODELS[0], {"m": data})
            with pytest.raises(errors.DigestMismatch):
                world.send(draft.id, "m", bytes(flipped))
            version = world.register(MODELS[0], data)
            stored = blobs.local_path(version.files[0].digest)
            assert stored is not None
            stored.chmod(0o600)
            stored.write_bytes(flipped)
            with pytest.raises(errors.DigestMismatch):
                list(blobs.open_verified(version.files[0].digest))
            ref = parse_ref(version.reference)
            verified: VerifyReport = world.catalog.verify(world.desk, world.context("owner"), ref)
            assert [problem.problem for problem in verified.problems] == ["damaged"]
            report: FsckReport = world.fsck()
            assert (report.ok, report.damaged) == (False, 1)
            assert report.problems[0].actual == Digest(digest_of(bytes(flipped)))
        finally:
            blobs.close()
