"""Small files in a folder: what is safe stays safe, what was lost is written anew, and a disk that failed to
write is not believed again.

When rows are kept for them, and for how long, is tested with the service.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from modelkeep.adapters import blobs_folder
from modelkeep.adapters.blobs_folder import FolderBlobs
from modelkeep.core import errors
from modelkeep.core.values import Digest
from modelkeep.ports import SMALL_MAX_BYTES
from tests.contracts.blobs import content, noise
from tests.fakes import digest_of


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


def put(store: FolderBlobs, *files: bytes) -> list[Digest]:
    """Place small files."""
    digests = [digest_of(data) for data in files]
    for digest, data in zip(digests, files, strict=True):
        store.place(digest, data)
    return digests


@pytest.mark.req("V3")
def test_what_lies_there_and_is_right_stays(store: FolderBlobs) -> None:
    """The same file again is the same file, which may survive a loss of power already; it looks newer."""
    (digest,) = put(store, b"the same")
    path = store.local_path(digest)
    os.utime(path, (1, 1))
    was = path.stat().st_ino
    put(store, b"the same")
    assert path.stat().st_ino == was
    assert path.stat().st_mtime > 1


@pytest.mark.req("V3")
@pytest.mark.parametrize("wrong", [b"", b"the sam", b"the same!", b"another!"])
def test_what_lies_there_and_is_wrong_is_replaced(store: FolderBlobs, wrong: bytes) -> None:
    """A file with other bytes than its name says is healed, not believed."""
    (digest,) = put(store, b"the same")
    store.local_path(digest).write_bytes(wrong)
    put(store, b"the same")
    assert content(store, digest) == b"the same"


def test_a_planted_link_is_replaced(store: FolderBlobs, tmp_path: Path) -> None:
    """Neither read nor written through, even where it leads to the right bytes."""
    (digest,) = put(store, b"mine")
    path = store.local_path(digest)
    (tmp_path / "elsewhere").write_bytes(b"mine")
    path.unlink()
    path.symlink_to(tmp_path / "elsewhere")
    put(store, b"mine")
    assert not path.is_symlink()
    assert content(store, digest) == b"mine"
    assert (tmp_path / "elsewhere").read_bytes() == b"mine"


@pytest.mark.req("V3")
@pytest.mark.parametrize("there", [None, b"", b"put bac", b"put back"])
def test_what_is_put_back_is_written_anew(root: Path, store: FolderBlobs, there: bytes | None) -> None:
    """Whatever lies in its place: what is read there need not be what is on the disk."""
    (digest,) = put(store, b"put back")
    path = store.local_path(digest)
    was = path.stat().st_ino
    if there is None:
        shutil.rmtree(root / "sha256" / path.parent.name)
    else:
        path.write_bytes(there)
    keep = path.open("rb") if there is not None else None  # so that the number is not given again
    store.put_back([(digest, b"put back")])
    assert content(store, digest) == b"put back"
    assert there is None or path.stat().st_ino != was
    if keep is not None:
        keep.close()


def test_a_full_disk_is_said_and_leaves_nothing(
    root: Path, store: FolderBlobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write that is cut short places nothing, and the way in stays for when there is room."""
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda fd, data: len(data) - 1)
        with pytest.raises(errors.StorageFull):
            put(store, b"too much")
    assert store.stat(digest_of(b"too much")) is None
    assert os.listdir(root / "uploads") == []
    assert store.small is not None
    put(store, b"too much")


@pytest.mark.parametrize("how", ["sync", "put_back"])
def test_a_disk_that_failed_to_sync_is_not_asked_again(
    store: FolderBlobs, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """The kernel forgets what it failed to write, so the way in is closed; larger files have their own
    sync."""
    (digest,) = put(store, b"lost?")
    monkeypatch.setattr(blobs_folder, "_SYNC_FILESYSTEM", lambda fd: -1)
    with pytest.raises(errors.BlobsUnavailable):
        store.sync([digest]) if how == "sync" else store.put_back([(digest, b"lost?")])
    assert store.small is None
    store.begin("up_1")
    store.append("up_1", 0, [b"another way"])
    assert content(store, store.seal("up_1").digest) == b"another way"


def test_without_a_sync_of_the_whole_each_file_is_synced(
    store: FolderBlobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the system has no such call, each file and each folder is synced, and one that is gone is passed
    over."""
    synced: list[int] = []

    def noted(fd: int, fsync: Callable[[int], None] = os.fsync) -> None:
        synced.append(os.fstat(fd).st_ino)
        fsync(fd)

    digests = put(store, b"a", b"b", b"c")
    store.delete(digests[0])
    monkeypatch.setattr(blobs_folder, "_SYNC_FILESYSTEM", None)
    monkeypatch.setattr(os, "fsync", noted)
    store.sync(digests)
    for digest in digests[1:]:
        path = store.local_path(digest)
        assert path.stat().st_ino in synced
        assert path.parent.stat().st_ino in synced


def test_a_large_file_is_refused(store: FolderBlobs) -> None:
    """The way in is for small ones."""
    with pytest.raises(errors.LimitExceeded):
        put(store, bytes(SMALL_MAX_BYTES + 1))
    assert list(store.iterate()) == []


def test_many_threads_at_once(store: FolderBlobs, root: Path) -> None:
    """Equal files are one blob, whoever places them, and nothing is left lying about."""
    files = [[noise(500, number % 40), b"shared"] for number in range(100)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda group: put(store, *group), files))
    found = list(store.iterate())
    assert {blob.digest for blob in found} == {digest_of(data) for group in files for data in group}
    assert len(found) == 41
    assert all(store.verify(blob.digest) for blob in found)
    assert os.listdir(root / "uploads") == []
