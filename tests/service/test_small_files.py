"""Small files of runs: a name has its bytes whenever the power goes, and rows go when nobody needs them.

A loss of power is played by a copy of the store's folder, from which is taken what was never synced; the
database has lost nothing that was committed.
"""

import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelkeep.adapters.blobs_folder import FolderBlobs
from modelkeep.core import errors
from modelkeep.core.values import Digest
from modelkeep.ports import SMALL_MAX_BYTES
from modelkeep.service import small_files
from modelkeep.service.act import Act
from modelkeep.service.artifacts import ArtifactPlan, Artifacts, OwnedPlace, Owner
from modelkeep.service.small_files import SmallFiles
from modelkeep.store import damage, small_contents
from modelkeep.store.artifacts import OwnerKind
from modelkeep.store.database import Database
from modelkeep.store.small_contents import SmallContent
from tests.contracts.blobs import content, noise
from tests.fakes import MemoryBlobs, digest_of
from tests.service.failing_store import BROKEN, failing
from tests.service.tracking_world import TrackingWorld

pytestmark = pytest.mark.req("T1", "V3")

FILES = [b"", b"one", noise(10_240), noise(SMALL_MAX_BYTES)]


class SmallWorld(TrackingWorld):
    """A tracking world whose runs keep small files in a folder."""

    def __init__(self, database: Database, root: Path) -> None:
        super().__init__(database)
        self.root = root
        self.blobs = FolderBlobs(root)
        self.artifacts = Artifacts(self.blobs)
        self.small = self.artifacts.small
        self.where = self.run()

    def plan(self, path: str, data: bytes) -> ArtifactPlan:
        """A file that has come."""
        place = OwnedPlace(owner=Owner(OwnerKind.RUN, self.where), path=path)
        return self.artifacts.check(self.read(self.artifacts.prepare, place, len(data)), data)

    def put(self, path: str, data: bytes) -> Digest:
        """Send a file."""
        kept = self.do(self.artifacts.keep, self.plan(path, data), data)
        assert kept.noted
        assert kept.blob is not None
        return kept.blob.digest

    def named(self) -> dict[str, Digest]:
        """What the run keeps."""
        place = OwnedPlace(owner=Owner(OwnerKind.RUN, self.where), path="")
        files = self.read(self.artifacts.list_folder, place)
        return {
            child.name: self.read(
                self.artifacts.open_file, OwnedPlace(owner=place.owner, path=child.name)
            ).digest
            for child in files
        }

    def rows(self) -> list[SmallContent]:
        """What stands in rows."""
        return self.read(lambda act: small_contents.list_after(act.tx, -1, 10_000))

    def after_a_loss(self, keep_bytes: int | None = None, spared: Sequence[Digest] = ()) -> FolderBlobs:
        """The store opened again after a loss of power that took every unsynced file.

        Args:
            keep_bytes: of each file its name and so many bytes are left; None takes the names as well.
            spared: these were synced.
        """
        after = self.root.with_name("after")
        shutil.rmtree(after, ignore_errors=True)
        shutil.copytree(self.root, after)
        for path in (after / "sha256").glob("*/*"):
            if f"sha256:{path.parent.name}{path.name}" in spared:
                continue
            if keep_bytes is None:
                path.unlink()
            else:
                os.truncate(path, min(keep_bytes, path.stat().st_size))
        again = FolderBlobs(after)
        SmallFiles(again).put_back(self.desk)
        return again


@pytest.fixture
def world(database: Database, tmp_path: Path) -> Iterator[SmallWorld]:
    """A run on each database, and a folder."""
    world = SmallWorld(database, tmp_path / "blobs")
    yield world
    world.blobs.close()


@pytest.mark.parametrize("keep_bytes", [None, 0, 100])
def test_what_was_acknowledged_survives_a_loss_of_power(world: SmallWorld, keep_bytes: int | None) -> None:
    """Files whose names or bytes were lost are whole again as soon as the store is opened, and need no rows
    any more."""
    digests = [world.put(f"f{number}", data) for number, data in enumerate(FILES)]
    assert [content(world.blobs, digest) for digest in digests] == FILES
    assert [row.data for row in world.rows()] == FILES
    again = world.after_a_loss(keep_bytes)
    assert [content(again, digest) for digest in digests] == FILES
    assert [again.verify(digest).size_bytes for digest in digests] == list(map(len, FILES))
    assert world.rows() == []
    again.close()


def test_its_bytes_are_one_statement_more(world: SmallWorld) -> None:
    """One read, two writes, and the row."""
    world.put("z", b"0")
    plan = world.plan("a", b"1")
    with world.database.statements() as seen:
        world.do(world.artifacts.keep, plan, b"1")
    assert len(seen) == 4


def test_what_was_damaged_is_not_when_it_comes_again(world: SmallWorld) -> None:
    """The mark of a damaged content goes with the commit that stores it anew; others stay."""
    marked = [digest_of(b"a"), digest_of(b"b")]
    for digest in marked:
        world.do(lambda act, digest=digest: damage.mark(act.tx, digest, act.now))
    world.put("a", b"a")
    assert world.read(lambda act: damage.damaged_among(act.tx, marked)) == {digest_of(b"b")}


def test_equal_files_are_two_names_of_one(world: SmallWorld) -> None:
    """Each upload has its own row, so that none is dropped for the sync of another."""
    first, second = world.put("a", b"same"), world.put("b", b"same")
    assert first == second
    assert len({row.id for row in world.rows()}) == 2
    again = world.after_a_loss()
    assert {content(again, digest) for digest in world.named().values()} == {b"same"}
    again.close()


def test_rows_go_when_their_files_are_synced(world: SmallWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that came while the disk was at it stay: their files may have come too late."""
    world.put("a", b"before")
    real = FolderBlobs.sync

    def sync(blobs: FolderBlobs, digests: Sequence[Digest]) -> None:
        assert digests == [digest_of(b"before")]
        real(blobs, digests)
        world.put("b", b"meanwhile")

    with monkeypatch.context() as patch:
        patch.setattr(FolderBlobs, "sync", sync)
        world.small.settle(world.desk)
    assert [row.data for row in world.rows()] == [b"meanwhile"]
    world.small.settle(world.desk)
    world.small.settle(world.desk)
    assert world.rows() == []


def test_it_is_time_once(world: SmallWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """One caller is told to settle, again only when it is done; and where too much waits, files go another
    way until it is."""
    monkeypatch.setattr(small_files, "SETTLE_FILES", 2)
    world.put("a", b"1")
    assert not world.small.claim()
    world.put("b", b"2")
    assert world.small.claim()
    assert not world.small.claim()
    for number in range(6):
        assert world.small.is_open()
        world.put(f"c{number}", b"3")
    assert not world.small.is_open()
    world.small.settle(world.desk)
    assert world.small.is_open()
    assert not world.small.claim()
    monkeypatch.setattr(small_files, "SETTLE_BYTES", 10)
    world.put("d", bytes(10))
    assert world.small.claim()


def test_an_act_that_is_undone_leaves_no_name_and_no_row(world: SmallWorld) -> None:
    """Only a file that nothing names, and no row is missed when the others are settled."""

    with pytest.raises(errors.Conflict):
        world.do(_undone, world)
    assert world.rows() == []
    assert world.named() == {}
    assert content(world.blobs, digest_of(b"1")) == b"1"
    world.put("a", b"kept")
    world.small.settle(world.desk)
    assert world.rows() == []


def test_a_full_disk_keeps_nothing(world: SmallWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sender is told, nothing is named, and what was there before stays."""
    before = world.put("a", b"before")
    plan = world.plan("a", b"after")

    def full(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(errors.StorageFull):
            world.do(world.artifacts.keep, plan, b"after")
    assert world.named() == {"a": before}
    assert [row.data for row in world.rows()] == [b"before"]


def test_a_failed_sync_leaves_the_rows(world: SmallWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody knows what was lost, so everything is put back when the store is opened next; meanwhile there
    is no way in for small files."""

    def fail(*_: Any) -> None:
        raise OSError(5, "Input/output error")

    digest = world.put("a", b"perhaps lost")
    with monkeypatch.context() as patch:
        patch.setattr(FolderBlobs, "_sync_placed", fail)
        world.small.settle(world.desk)
    assert not world.small.is_open()
    world.small.settle(world.desk)
    with pytest.raises(errors.BlobsUnavailable):
        world.put("b", b"too late")
    assert [row.data for row in world.rows()] == [b"perhaps lost"]
    again = world.after_a_loss()
    assert content(again, digest) == b"perhaps lost"
    again.close()


def test_a_disk_that_is_full_at_the_start_keeps_the_rows(
    world: SmallWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server does not begin with names that have no bytes; it begins when there is room."""
    digest = world.put("a", b"wanted")

    def full(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(errors.StorageFull):
            world.after_a_loss()
    again = world.after_a_loss()
    assert content(again, digest) == b"wanted"
    again.close()


def test_a_damaged_row_is_not_put_back(world: SmallWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """No file ever has other bytes than its digest says, and the rest is put back, in batches."""
    monkeypatch.setattr(small_files, "BATCH", 2)
    digests = [world.put(f"f{number}", b"%d" % number) for number in range(5)]
    world.do(lambda act: small_contents.add(act.tx, SmallContent(7, digest_of(b"right"), b"wrong")))
    again = world.after_a_loss()
    assert {blob.digest for blob in again.iterate()} == set(digests)
    assert all(again.verify(digest) for digest in digests)
    assert world.rows() == []
    again.close()


def test_a_row_whose_file_was_collected_brings_back_what_nobody_names(world: SmallWorld) -> None:
    """That is no harm: the next collection finds it again."""
    digest = world.put("a", b"deleted")
    world.do(world.artifacts.delete, OwnedPlace(owner=Owner(OwnerKind.RUN, world.where), path="a"))
    world.blobs.delete(digest)
    world.small.settle(world.desk)
    assert world.blobs.stat(digest) is None
    world.put("a", b"deleted")
    world.do(world.artifacts.delete, OwnedPlace(owner=Owner(OwnerKind.RUN, world.where), path="a"))
    again = world.after_a_loss()
    assert content(again, digest) == b"deleted"
    assert world.named() == {}
    again.close()


def test_two_servers_on_one_folder(world: SmallWorld) -> None:
    """Each drops the rows of its own files; one that is opened puts back the other's, which is the same
    file."""
    other = Artifacts(FolderBlobs(world.root))
    digest = world.put("a", b"first")
    plan = world.plan("b", b"second")
    world.do(other.keep, plan, b"second")
    other.small.settle(world.desk)
    assert [row.data for row in world.rows()] == [b"first"]
    third = FolderBlobs(world.root)
    SmallFiles(third).put_back(world.desk)
    assert world.rows() == []
    world.small.settle(world.desk)
    assert content(world.blobs, digest) == b"first"
    third.close()


def test_a_store_without_a_way_in_leaves_rows_alone(world: SmallWorld) -> None:
    """A bucket never had one: what stands in rows waits for the folder to be opened again."""
    world.put("a", b"waits")
    bucket = SmallFiles(MemoryBlobs())
    assert not bucket.is_open()
    bucket.put_back(world.desk)
    bucket.settle(world.desk)
    assert len(world.rows()) == 1


def test_a_database_that_dies_before_the_commit_names_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is in its place and the commit fails: the sender is told, and sends it again."""
    with failing(f"sqlite:///{tmp_path / 'modelkeep.db'}") as (store, database):
        world = SmallWorld(database, tmp_path / "blobs")
        plan = world.plan("a", b"again")
        placed = world.blobs.place

        def place(digest: Digest, data: bytes) -> None:
            placed(digest, data)
            store.left, store.lasting = 0, 100

        with monkeypatch.context() as patch:
            patch.setattr(world.blobs, "place", place)
            with pytest.raises(BROKEN):
                world.do(world.artifacts.keep, plan, b"again")
        store.mend()
        assert content(world.blobs, digest_of(b"again")) == b"again"
        assert world.named() == {}
        assert world.rows() == []
        digest = world.put("a", b"again")
        world.small.settle(world.desk)
        assert content(world.blobs, digest) == b"again"
        assert world.rows() == []
        world.blobs.close()


@pytest.mark.req("V3")
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    steps=st.lists(
        st.tuples(st.sampled_from("abc"), st.integers(0, 5)) | st.sampled_from(["settle", "undone"]),
        max_size=12,
    ),
    lost=st.integers(0, 2**12 - 1),
)
def test_whatever_happens_a_name_has_its_bytes(
    tmp_path_factory: pytest.TempPathFactory, steps: list[Any], lost: int
) -> None:
    """However files come, are settled and undone, and whichever of the unsynced ones the power takes: all
    that is named is whole afterwards."""
    folder = tmp_path_factory.mktemp("small")
    with Database.open(f"sqlite:///{folder / 'modelkeep.db'}") as database:
        world = SmallWorld(database, folder / "blobs")
        synced: set[Digest] = set()
        sent: dict[str, bytes] = {}
        for step in steps:
            if step == "settle":
                world.small.settle(world.desk)
                synced = {blob.digest for blob in world.blobs.iterate()}
            elif step == "undone":
                with pytest.raises(errors.Conflict):
                    world.do(_undone, world)
            else:
                name, number = step
                sent[name] = b"%d" % number
                world.put(name, sent[name])
        unsynced = sorted({blob.digest for blob in world.blobs.iterate()} - synced)
        spared = [digest for place, digest in enumerate(unsynced) if not lost >> place & 1]
        again = world.after_a_loss(spared=[*synced, *spared])
        found = {name: content(again, digest) for name, digest in world.named().items()}
        assert found == sent
        again.close()
        world.blobs.close()


def _undone(act: Act, world: SmallWorld) -> None:
    place = OwnedPlace(owner=Owner(OwnerKind.RUN, world.where), path="d")
    plan = world.artifacts.prepare(act, place, 1)
    world.artifacts.keep(act, world.artifacts.check(plan, b"1"), b"1")
    raise errors.Conflict("Something else.")
