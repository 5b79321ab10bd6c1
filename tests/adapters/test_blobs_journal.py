"""The journal of small files: whatever a loss of power takes is put back, and nothing is believed that did
not reach the disk.

A loss of power is played by a copy of the store's folder from which is taken what was never synced.
"""

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelkeep.adapters import blobs_folder, blobs_journal
from modelkeep.adapters.blobs_folder import FolderBlobs
from modelkeep.adapters.blobs_journal import Journal
from modelkeep.core import errors
from modelkeep.core.values import Digest
from modelkeep.ports import SMALL_MAX_BYTES
from tests.contracts.blobs import content, noise
from tests.fakes import digest_of

FILES = [b"", b"one", noise(10_240), noise(SMALL_MAX_BYTES)]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Where the store of the test lies."""
    return tmp_path / "blobs"


@pytest.fixture
def store(root: Path) -> Iterator[FolderBlobs]:
    """A store on a working disk."""
    store = FolderBlobs(root)
    yield store
    store.close()


def put(store: FolderBlobs, files: Sequence[bytes]) -> list[Digest]:
    """Store small files that can be stored as such."""
    small = store.small
    assert small is not None
    return [blob.digest for blob in small.put(files)]


def lost(root: Path, keep_bytes: int | None = None) -> Path:
    """What is left of a store after a loss of power that took every unsynced file.

    Args:
        keep_bytes: of each file its name and so many bytes are left; None takes the names as well.
    """
    after = root.with_name("after")
    shutil.copytree(root, after)
    for path in (after / "sha256").glob("*/*"):
        if keep_bytes is None:
            path.unlink()
        else:
            os.truncate(path, min(keep_bytes, path.stat().st_size))
    return after


@pytest.mark.req("V3")
@pytest.mark.parametrize("keep_bytes", [None, 0, 100])
def test_what_was_acknowledged_survives_a_loss_of_power(
    store: FolderBlobs, root: Path, keep_bytes: int | None
) -> None:
    """Files whose names or bytes were lost are whole again as soon as the store is opened."""
    digests = [*put(store, FILES[:2]), *put(store, FILES[2:])]
    again = FolderBlobs(lost(root, keep_bytes))
    assert [content(again, digest) for digest in digests] == FILES
    assert [again.verify(digest).size_bytes for digest in digests] == list(map(len, FILES))
    again.close()


def test_a_store_that_was_closed_has_nothing_to_put_back(root: Path) -> None:
    """After a clean end the files are safe without the journal, which does not bring back what was
    deleted."""
    store = FolderBlobs(root)
    digest, other = put(store, [b"deleted later", b"kept"])
    store.close()
    store.close()
    again = FolderBlobs(root)
    assert again.delete(digest)
    again.close()
    last = FolderBlobs(root)
    assert last.stat(digest) is None
    assert content(last, other) == b"kept"
    last.close()


@pytest.mark.req("V3")
@settings(max_examples=25)
@given(at=st.integers(0, 5_000), byte=st.integers(1, 255))
def test_a_torn_journal_gives_what_is_whole(
    tmp_path_factory: pytest.TempPathFactory, at: int, byte: int
) -> None:
    """One spoiled byte anywhere: every record before it is put back, and no file ever has other bytes than
    its digest says."""
    root = tmp_path_factory.mktemp("torn") / "blobs"
    files = [noise(1_000, number) for number in range(5)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blobs_journal, "JOURNAL_BYTES", 10_000)
        store = FolderBlobs(root)
        put(store, files)
    after = lost(root)
    store.close()
    with (after / "journal").open("r+b") as journal:
        journal.seek(at)
        was = journal.read(1)[0]
        journal.seek(at)
        journal.write(bytes([was ^ byte]))
    again = FolderBlobs(after)
    whole = min(at // (len(files[0]) + 44), 5)
    assert {blob.digest for blob in again.iterate()} == {digest_of(data) for data in files[:whole]}
    assert all(again.verify(blob.digest) for blob in again.iterate())
    again.close()


class _Places:
    """A disk that says what a loss of power would leave."""

    def __init__(self) -> None:
        self.unsynced: set[Digest] = set()
        self.syncs = 0

    def place(self, digest: Digest, data: bytes, *, synced: bool) -> None:
        assert digest_of(data) == digest
        if not synced:
            self.unsynced.add(digest)

    def sync_placed(self, digests: Sequence[Digest]) -> None:
        assert set(digests) == self.unsynced
        self.unsynced.clear()
        self.syncs += 1


@pytest.mark.req("V3")
@settings(max_examples=40)
@given(groups=st.lists(st.lists(st.integers(0, 3_000), min_size=1, max_size=12), min_size=1, max_size=12))
def test_what_is_not_synced_is_in_the_journal(
    tmp_path_factory: pytest.TempPathFactory, groups: list[list[int]]
) -> None:
    """However files come, after each group the journal has all that lies unsynced: it is never overwritten
    too early."""
    folder, places, after = tmp_path_factory.mktemp("journal"), _Places(), _Places()
    folder_fd = os.open(folder, os.O_RDONLY)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blobs_journal, "JOURNAL_BYTES", 20_000)
        patch.setattr(blobs_journal, "GROUP_BYTES", 10_000)
        patch.setattr(blobs_journal, "GROUP_FILES", 7)
        journal = Journal(folder_fd, "journal", places)
        assert journal.take()
        for number, sizes in enumerate(groups):
            files = [noise(size, 100 * number + place) for place, size in enumerate(sizes)]
            assert [blob.digest for blob in journal.put(files)] == list(map(digest_of, files))
            shutil.copy(folder / "journal", folder / "copy")
            Journal(folder_fd, "copy", _Collecting(after.unsynced))
            assert places.unsynced <= after.unsynced
            assert (folder / "journal").stat().st_size == 20_000
            after.unsynced.clear()
        journal.close()
    os.close(folder_fd)
    assert places.unsynced == set()


class _Collecting(_Places):
    """Notes what is put back."""

    def __init__(self, found: set[Digest]) -> None:
        super().__init__()
        self._found = found

    def place(self, digest: Digest, data: bytes, *, synced: bool) -> None:
        assert synced
        assert digest_of(data) == digest
        self._found.add(digest)


@pytest.mark.parametrize("call", ["fdatasync", "pwritev"])
def test_a_journal_that_failed_is_not_believed(
    store: FolderBlobs, root: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """When the disk refuses, nothing of the group is stored, files go another way from then on, and what was
    acknowledged before is still put back."""

    def failing(*_: object) -> None:
        raise OSError(5, "Input/output error")

    (before,) = put(store, [b"before"])
    small = store.small
    assert small is not None
    with monkeypatch.context() as patch:
        patch.setattr(os, call, failing)
        with pytest.raises(errors.BlobsUnavailable):
            small.put([b"lost"])
    assert store.small is None
    assert store.stat(digest_of(b"lost")) is None
    with pytest.raises(errors.BlobsUnavailable):
        small.put([b"lost again"])
    store.close()
    again = FolderBlobs(lost(root))
    assert content(again, before) == b"before"
    again.close()


def test_files_that_cannot_be_synced_stay_in_the_journal(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sync of everything that fails at the end leaves the journal as it is."""

    def failing(*_: object) -> None:
        raise OSError(5, "Input/output error")

    store = FolderBlobs(root)
    (digest,) = put(store, [b"not synced"])
    monkeypatch.setattr(FolderBlobs, "sync_placed", failing)
    store.close()
    again = FolderBlobs(lost(root))
    assert content(again, digest) == b"not synced"


def test_without_a_sync_of_the_whole_each_file_is_synced(
    store: FolderBlobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the system has no such call, each file and each folder is synced, and one that is gone is passed
    over."""
    synced: list[int] = []

    def noted(fd: int, fsync: Callable[[int], None] = os.fsync) -> None:
        synced.append(os.fstat(fd).st_ino)
        fsync(fd)

    digests = put(store, [b"a", b"b", b"c"])
    store.delete(digests[0])
    monkeypatch.setattr(blobs_folder, "_SYNC_FILESYSTEM", None)
    monkeypatch.setattr(os, "fsync", noted)
    store.sync_placed(digests)
    for digest in digests[1:]:
        path = store.local_path(digest)
        assert path.stat().st_ino in synced
        assert path.parent.stat().st_ino in synced


def test_a_sync_of_the_whole_says_when_it_fails(store: FolderBlobs, monkeypatch: pytest.MonkeyPatch) -> None:
    """The number that the system gives becomes an error."""
    monkeypatch.setattr(blobs_folder, "_SYNC_FILESYSTEM", lambda fd: -1)
    with pytest.raises(OSError):
        store.sync_placed([])


def test_the_journal_is_one_processs(store: FolderBlobs, root: Path) -> None:
    """While one has it, another does without and puts nothing back; afterwards it can have it."""
    put(store, [b"first"])
    other = FolderBlobs(root)
    assert other.small is None
    store.close()
    (digest,) = put(other, [b"second"])
    assert content(other, digest) == b"second"
    other.close()


def test_a_link_in_the_journals_place_is_not_followed(root: Path, tmp_path: Path) -> None:
    """A planted link is an error when it is there at the start, and no journal when it comes later."""
    (tmp_path / "secret").write_bytes(b"mine")
    store = FolderBlobs(root)
    (root / "journal").symlink_to(tmp_path / "secret")
    assert store.small is None
    store.close()
    with pytest.raises(errors.BlobsUnavailable):
        FolderBlobs(root)
    assert (tmp_path / "secret").read_bytes() == b"mine"


def test_large_files_are_refused(store: FolderBlobs) -> None:
    """Nothing of a group is stored that has a file which is not small."""
    small = store.small
    assert small is not None
    with pytest.raises(errors.LimitExceeded):
        small.put([b"small", bytes(SMALL_MAX_BYTES + 1)])
    assert list(store.iterate()) == []


def test_many_threads_at_once(store: FolderBlobs, root: Path) -> None:
    """Groups from many threads do not mix, equal files are one blob, and nothing is left lying about."""
    files = [[noise(500, number % 40), b"shared"] for number in range(100)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda group: put(store, group), files))
    assert found == [list(map(digest_of, group)) for group in files]
    assert len(list(store.iterate())) == 41
    assert os.listdir(root / "uploads") == []
