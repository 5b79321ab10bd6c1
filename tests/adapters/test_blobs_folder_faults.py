"""What can go wrong on a disk, done to the folder store for real: killed writers, full and read-only disks,
spoiled bytes, planted links, and several processes at once.

What a working disk must do stands in tests/contracts/blobs.py.
"""

import os
import random
import select
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelkeep.adapters import blobs_disk, blobs_spool
from modelkeep.adapters.blobs_folder import FolderBlobs
from modelkeep.adapters.blobs_spool import UploadSpool
from modelkeep.core import errors
from modelkeep.core.values import Digest
from tests.contracts.blobs import BrokenLine, breaking, content, noise, put
from tests.fakes import digest_of
from tests.servers import missing

MIB = 1024 * 1024
FAR_FUTURE = datetime(9999, 1, 1, tzinfo=UTC)
CHILD_S = 60  # a child takes about a second; a machine under load gets this much


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


def place(root: Path, digest: Digest) -> Path:
    """Where a blob's file must be."""
    return root / "sha256" / digest[7:9] / digest[9:]


def child(code: str, *arguments: object, before: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    """Start a Python process of its own on some code; its words come line by line."""
    command = [*before, sys.executable, "-u", "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> str:
    """Wait for a child that must succeed, and return what it said."""
    out, err = process.communicate(timeout=CHILD_S)
    assert process.returncode == 0, f"{out}\n{err}"
    return out


# ---------------------------------------------------------------------------------------------- spoiled bytes


@pytest.mark.req("V3")
def test_one_flipped_bit_is_found(store: FolderBlobs, root: Path) -> None:
    """A single bit that a disk turned is seen by the verified read and by `verify`, and the plain read goes
    on."""
    data = noise(3 * MIB)
    digest = put(store, data)
    with place(root, digest).open("r+b") as file:
        file.seek(2 * MIB)
        file.write(bytes([data[2 * MIB] ^ 0x10]))
    with pytest.raises(errors.DigestMismatch):
        list(store.open_verified(digest))
    with pytest.raises(errors.DigestMismatch) as caught:
        store.verify(digest)
    assert caught.value.details["expected"] == digest
    assert len(content(store, digest)) == len(data)


def test_files_and_folders_are_closed_to_others(store: FolderBlobs, root: Path) -> None:
    """Whatever the process's mask says, files are 0600 and folders 0700."""
    digest = put(store, b"private")
    store.begin("up_1", 10)
    for path in [root, *root.rglob("*")]:
        wanted = 0o700 if path.is_dir() else 0o600
        assert stat.S_IMODE(path.stat().st_mode) == wanted, path
    assert store.local_path(digest) == place(root, digest)


# --------------------------------------------------------------------------------------------- killed writers

WRITE_FOR_EVER = """
import random, sys
from pathlib import Path
from modelkeep.adapters.blobs_folder import FolderBlobs
def chunks():
    source = random.Random(7)
    while True:
        yield source.randbytes(50_000)
        print("chunk")
store = FolderBlobs(Path(sys.argv[1]))
store.begin("up_1")
store.append("up_1", 0, chunks())
"""


@pytest.mark.req("V3")
@pytest.mark.parametrize("chunks", [1, 30, 250])
def test_an_upload_goes_on_after_its_writer_was_killed(root: Path, chunks: int) -> None:
    """After `kill -9` in the middle of an append the session has a true beginning, and is finished from
    there."""
    with child(WRITE_FOR_EVER, root) as writer:
        assert writer.stdout is not None
        for _ in range(chunks):
            assert writer.stdout.readline() == "chunk\n"
        writer.send_signal(signal.SIGKILL)
        writer.communicate(timeout=CHILD_S)
    source = random.Random(7)
    whole = b"".join(source.randbytes(50_000) for _ in range(600))

    store = FolderBlobs(root)
    offset = store.status("up_1")
    assert offset <= len(whole)
    # At most one gathered write is lost with the process.
    assert offset >= chunks * 50_000 - blobs_disk.PIECE_BYTES - 50_000
    assert store.append("up_1", offset, [whole[offset:]]) == len(whole)
    assert store.commit("up_1", digest_of(whole)).size_bytes == len(whole)
    assert store.verify(digest_of(whole)).size_bytes == len(whole)
    assert os.listdir(root / "uploads") == []
    store.close()


STORE_FOR_EVER = """
import hashlib, random, sys
from pathlib import Path
from modelkeep.adapters.blobs_folder import FolderBlobs
store = FolderBlobs(Path(sys.argv[1]))
source = random.Random(int(sys.argv[2]))
for number in range(1_000_000):
    data = source.randbytes(source.randrange(300_000))
    upload_id = f"up_{sys.argv[2]}_{number}"
    store.begin(upload_id, len(data))
    store.append(upload_id, 0, [data[:1000], data[1000:]])
    print(store.commit(upload_id, "sha256:" + hashlib.sha256(data).hexdigest()).digest)
"""


@pytest.mark.req("V3")
def test_no_acknowledged_blob_is_lost_to_kills(root: Path) -> None:
    """Through ten kills at random moments, each blob whose commit returned is there, and every blob there is
    whole."""
    moments = random.Random(11)
    acknowledged: set[str] = set()
    for life in range(10):
        with child(STORE_FOR_EVER, root, life) as writer:
            assert writer.stdout is not None
            assert select.select([writer.stdout], [], [], CHILD_S)[0]  # it has begun
            time.sleep(moments.uniform(0, 0.1))
            writer.send_signal(signal.SIGKILL)
            said = writer.communicate(timeout=CHILD_S)[0]
        acknowledged |= {line for line in said.splitlines(keepends=False) if len(line) == 71}
    store = FolderBlobs(root)
    there = {blob.digest: store.verify(blob.digest).size_bytes for blob in store.iterate()}
    assert len(acknowledged) >= 10
    assert acknowledged <= set(there)
    assert len(os.listdir(root / "uploads")) <= 20  # at most one session, of two files, for each life
    store.close()


HOLD_THE_SESSION = """
import sys, time
from pathlib import Path
from modelkeep.adapters.blobs_folder import FolderBlobs
def chunks():
    yield b"abc"
    print("writing")
    time.sleep(600)
store = FolderBlobs(Path(sys.argv[1]))
store.append("up_1", 0, chunks())
"""


def test_two_processes_do_not_write_one_session(
    store: FolderBlobs, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While one process writes, another one is told to wait; when the first is killed, the session is
    free."""
    monkeypatch.setattr(blobs_spool, "LOCK_WAIT_S", 0.1)
    store.begin("up_1")
    with child(HOLD_THE_SESSION, root) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "writing\n"
        for act in (lambda: store.append("up_1", 0, [b"xyz"]), lambda: store.commit("up_1", digest_of(b""))):
            with pytest.raises(errors.Overloaded):
                act()
        writer.send_signal(signal.SIGKILL)
        writer.communicate(timeout=CHILD_S)
    store.append("up_1", store.status("up_1"), [b"xyz"])
    assert store.commit("up_1", digest_of(b"xyz")).size_bytes == 3  # "abc" was still waiting to be written


# ----------------------------------------------------------------------------------- full and read-only disks

ON_A_FULL_DISK = """
import hashlib, os, sys
from pathlib import Path
from modelkeep.adapters.blobs_folder import FolderBlobs
from modelkeep.core import errors

MIB = 1024 * 1024
disk = Path(sys.argv[1])
ballast = disk / "ballast"
store = FolderBlobs(disk / "blobs")
def free():
    found = os.statvfs(disk)
    return found.f_bavail * found.f_frsize
def full(act):
    try:
        act()
    except errors.StorageFull as problem:
        assert str(disk) not in problem.message, problem.message
        return problem
    raise AssertionError("the disk was not full")

small = b"stored while there was room"
store.begin("up_0"); store.append("up_0", 0, [small])
kept = store.commit("up_0", "sha256:" + hashlib.sha256(small).hexdigest()).digest
at_first = free()

# A declared size that does not fit is refused before a byte is sent, and nothing is left.
problem = full(lambda: store.begin("up_big", 64 * MIB))
assert problem.details["free_bytes"] == at_first, problem.details
assert os.listdir(disk / "blobs" / "uploads") == []

# An upload that fills the disk keeps what fitted; cancelled, it gives all of it back.
data = os.urandom(16 * MIB)
store.begin("up_1")
full(lambda: store.append("up_1", 0, [data]))
offset = store.status("up_1")
assert 4 * MIB < offset <= at_first, offset
assert free() < 64 * 1024, free()
assert full(lambda: store.append("up_1", offset, [data[offset:]]))
store.cancel("up_1")
assert free() == at_first, (free(), at_first)

# With room made meanwhile, an upload that met the full disk goes on and is whole.
ballast.write_bytes(bytes(8 * MIB))
store.begin("up_2")
data = data[: 6 * MIB]
full(lambda: store.append("up_2", 0, [data]))
ballast.unlink()
offset = store.status("up_2")
store.append("up_2", offset, [data[offset:]])
digest = store.commit("up_2", "sha256:" + hashlib.sha256(data).hexdigest()).digest
assert store.verify(digest).size_bytes == len(data)
assert b"".join(store.open_verified(kept)) == small
assert os.listdir(disk / "blobs" / "uploads") == []
print("whole")
"""

ON_A_READ_ONLY_DISK = """
import sys
from pathlib import Path
from modelkeep.adapters.blobs_folder import FolderBlobs
from modelkeep.core import errors

disk, digest = Path(sys.argv[1]), sys.argv[2]
store = FolderBlobs(disk / "blobs")
def refused(act):
    try:
        act()
    except errors.BlobsUnavailable as problem:
        assert "ead-only" in problem.message, problem.message
        return
    raise AssertionError("the disk let it pass")

refused(lambda: store.begin("up_new", 3))
refused(lambda: store.append("up_1", 3, [b"def"]))
refused(lambda: store.commit("up_1", digest))
refused(lambda: store.cancel("up_1"))
refused(lambda: store.delete(digest))
refused(lambda: FolderBlobs(disk / "another"))
assert store.status("up_1") == 3
assert store.verify(digest).size_bytes == 8
assert b"".join(store.open(digest, 5)) == b" on"
print("whole")
"""


def own_mounts(*commands: str) -> tuple[str, ...]:
    """Words before a command that give it mounts of its own: nothing of them is seen outside, or stays."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount the small disk that this test fills")
    if subprocess.run(["unshare", "-m", "true"], check=False, timeout=CHILD_S).returncode != 0:
        missing("a namespace for mounts", "root without the right to unshare")
    steps = " && ".join((*commands, 'exec "$@"'))
    return ("unshare", "--mount", "--propagation", "private", "sh", "-c", steps, "sh")


def test_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    """On a real disk that is too small: refused early where possible, resumable after, and given back on
    cancel."""
    before = own_mounts(f"mount -t tmpfs -o size=12m tmpfs '{tmp_path}'")
    assert finish(child(ON_A_FULL_DISK, tmp_path, before=before)) == "whole\n"


def test_a_read_only_disk_still_reads(tmp_path: Path) -> None:
    """Where nothing can be written each write says so, the session stays, and what is stored can be read."""
    store = FolderBlobs(tmp_path / "blobs")
    digest = put(store, b"reads on")
    store.begin("up_1")
    store.append("up_1", 0, [b"abc"])
    store.close()
    before = own_mounts(f"mount --bind '{tmp_path}' '{tmp_path}'", f"mount -o remount,bind,ro '{tmp_path}'")
    assert finish(child(ON_A_READ_ONLY_DISK, tmp_path, digest, before=before)) == "whole\n"


UNDER_A_FILE_LIMIT = """
import resource, sys
from pathlib import Path
from modelkeep.adapters.blobs_folder import FolderBlobs
from modelkeep.core import errors

resource.setrlimit(resource.RLIMIT_FSIZE, (3_000_000, 3_000_000))
store = FolderBlobs(Path(sys.argv[1]))
store.begin("up_1")
try:
    store.append("up_1", 0, [bytes(1_000_000)] * 5)
except errors.StorageFull:
    print(store.status("up_1"))
"""


def test_a_file_that_may_not_grow_is_like_a_full_disk(root: Path) -> None:
    """Also without root: where the system refuses more bytes, what fitted is kept and counted to the byte."""
    assert finish(child(UNDER_A_FILE_LIMIT, root)) == "3000000\n"
    store = FolderBlobs(root)
    store.append("up_1", 3_000_000, [bytes(2_000_000)])
    assert store.commit("up_1", digest_of(bytes(5_000_000))).size_bytes == 5_000_000
    store.close()


def test_bytes_that_did_not_reach_the_disk_are_not_believed(
    store: FolderBlobs, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When fsync fails nothing is stored and the upload must begin again: a second fsync would claim
    success."""

    def failing(fd: int) -> None:
        raise OSError(5, "Input/output error")

    store.begin("up_1")
    store.append("up_1", 0, [b"abc"])
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing)
        with pytest.raises(errors.BlobsUnavailable, match="begin the upload again"):
            store.commit("up_1", digest_of(b"abc"))
    assert store.stat(digest_of(b"abc")) is None
    with pytest.raises(errors.BlobNotFound):
        store.commit("up_1", digest_of(b"abc"))
    assert os.listdir(root / "uploads") == []


def test_a_vanished_folder_is_named_as_such(tmp_path: Path) -> None:
    """A store that cannot be made where it should be says what to check, not a number."""
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(errors.BlobsUnavailable, match="Check that the folder"):
        FolderBlobs(tmp_path / "file" / "blobs")


# ---------------------------------------------------------------------------------------------- planted links


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A file outside the store that nobody may read or change through it."""
    path = tmp_path / "secret"
    path.write_bytes(b"the secret")
    return path


def test_a_link_in_a_blobs_place_is_no_blob(store: FolderBlobs, root: Path, secret: Path) -> None:
    """A link under a blob's name is not read, listed or measured, and storing the blob puts a true file
    there."""
    digest = digest_of(b"the secret")
    put(store, b"the secret")
    place(root, digest).unlink()
    place(root, digest).symlink_to(secret)
    assert store.stat(digest) is None
    assert list(store.iterate()) == []
    for ask in (store.open, store.verify, store.local_path):
        with pytest.raises(errors.BlobNotFound):
            ask(digest)
    put(store, b"the secret")
    assert not place(root, digest).is_symlink()
    assert secret.read_bytes() == b"the secret"


@pytest.mark.parametrize("what", ["part", "size"])
def test_a_link_in_a_sessions_place_is_refused(
    store: FolderBlobs, root: Path, secret: Path, what: str
) -> None:
    """A link planted where a session's files go is neither written through nor read."""
    (root / "uploads" / f"up_1.{what}").symlink_to(secret)
    with pytest.raises(errors.BlobsUnavailable):
        store.begin("up_1", 3)
    with pytest.raises(errors.ModelkeepError):
        store.append("up_1", 0, [b"xyz"])
    store.begin("up_2")
    own = root / "uploads" / f"up_2.{what}"
    own.unlink(missing_ok=True)
    own.symlink_to(secret)
    for act in (lambda: store.append("up_2", 0, [b"xyz"]), lambda: store.commit("up_2", digest_of(b""))):
        with pytest.raises(errors.BlobsUnavailable):
            act()
    assert secret.read_bytes() == b"the secret"


@pytest.mark.parametrize("which", ["shard", "sha256", "uploads"])
def test_a_link_in_a_folders_place_is_refused(
    store: FolderBlobs, root: Path, tmp_path: Path, which: str
) -> None:
    """A folder of the store that was replaced by a link to another folder is not entered."""
    digest = put(store, b"abc")
    elsewhere = tmp_path / "elsewhere"
    folder = place(root, digest).parent if which == "shard" else root / which
    folder.rename(elsewhere)
    folder.symlink_to(elsewhere)
    if which == "shard":
        for ask in (store.stat, store.open, store.delete, lambda _: put(store, b"abc", "up_2")):
            with pytest.raises(errors.BlobsUnavailable):
                ask(digest)
    else:
        with pytest.raises(errors.BlobsUnavailable):
            FolderBlobs(root)


def test_a_pipe_in_a_blobs_place_holds_nobody_up(store: FolderBlobs, root: Path) -> None:
    """Opening a named pipe would wait for ever; it is no blob, and says so at once."""
    digest = put(store, b"abc")
    place(root, digest).unlink()
    os.mkfifo(place(root, digest))
    for ask in (store.open, store.verify, store.local_path):
        with pytest.raises(errors.BlobNotFound):
            ask(digest)


def test_strange_files_are_left_alone(store: FolderBlobs, root: Path) -> None:
    """What the store did not make is neither listed nor swept away."""
    digest = put(store, b"abc")
    strangers = [
        root / "sha256" / "README",
        place(root, digest).with_name("x"),
        root / "uploads" / "notes.txt",
    ]
    for path in strangers:
        path.write_bytes(b"mine")
    assert [blob.digest for blob in store.iterate()] == [digest]
    assert store.sweep_uploads(FAR_FUTURE) == 0
    assert all(path.exists() for path in strangers)


# -------------------------------------------------------------------------------------------- order of events


def test_a_late_append_does_not_reach_a_committed_blob(tmp_path: Path) -> None:
    """Whoever waited for a session while it was committed must not write: the file is a blob by then."""
    spool, target = UploadSpool(tmp_path / "uploads"), tmp_path / "blob"
    spool.begin("up_1")
    spool.append("up_1", 0, [b"abc"])
    outcome: list[object] = []

    def late() -> None:
        try:
            outcome.append(spool.append("up_1", 3, [b"def"]))
        except errors.ModelkeepError as problem:
            outcome.append(type(problem))

    thread = threading.Thread(target=late)
    folder_fd = os.open(tmp_path, os.O_RDONLY)
    with spool.sealed("up_1", digest_of(b"abc")) as (fd, blob):
        thread.start()
        time.sleep(0.1)
        assert (blob.size_bytes, outcome) == (3, [])
        spool.move("up_1", fd, target.name, folder_fd)
    thread.join(timeout=CHILD_S)
    os.close(folder_fd)
    spool.close()
    assert outcome == [errors.BlobNotFound]
    assert target.read_bytes() == b"abc"


def test_an_upload_cancelled_during_its_commit_is_not_stored(tmp_path: Path) -> None:
    """A session that lost its name between the hash and the move has nothing to move."""
    spool = UploadSpool(tmp_path / "uploads")
    spool.begin("up_1")
    folder_fd = os.open(tmp_path, os.O_RDONLY)
    with spool.sealed("up_1", digest_of(b"")) as (fd, _):
        spool.cancel("up_1")
        with pytest.raises(errors.BlobNotFound):
            spool.move("up_1", fd, "blob", folder_fd)
    os.close(folder_fd)
    spool.close()


def test_more_sessions_than_hashes_are_kept(store: FolderBlobs, monkeypatch: pytest.MonkeyPatch) -> None:
    """A session whose running hash was dropped from memory is hashed from its file, and is as true."""
    monkeypatch.setattr(blobs_spool, "HASHES_KEPT", 2)
    names = [f"up_{number}" for number in range(6)]
    data = {name: noise(6 * MIB, number) for number, name in enumerate(names)}
    for name in names:
        store.begin(name)
    for half in (0, 3 * MIB):
        for name in names:
            store.append(name, half, [data[name][half : half + 3 * MIB]])
    for name in names:
        assert store.commit(name, digest_of(data[name])).size_bytes == 6 * MIB


def test_a_sweep_removes_half_a_session(store: FolderBlobs, root: Path) -> None:
    """What a crash left between the two files of a session goes with the next sweep."""
    (root / "uploads" / "up_1.size").write_text("10")
    assert store.sweep_uploads(FAR_FUTURE) == 0
    assert os.listdir(root / "uploads") == []


@pytest.mark.req("V3")
@given(
    cuts=st.lists(
        st.tuples(st.integers(0, 3_000_000), st.sampled_from(["ends", "breaks", "restarts"])), max_size=8
    ),
    chunk=st.sampled_from([7_777, 65_536, 2_500_000]),
)
def test_any_history_of_an_upload_gives_the_same_blob(
    tmp_path_factory: pytest.TempPathFactory, cuts: list[tuple[int, str]], chunk: int
) -> None:
    """However an upload is cut up, broken off and carried over restarts, the blob is the same."""
    root = tmp_path_factory.mktemp("history")
    data = noise(5_000_000)
    store = FolderBlobs(root)
    offset = store.begin("up_1", len(data))
    for length, ending in [*cuts, (len(data), "ends")]:
        piece = data[offset : offset + length]
        chunks = [piece[at : at + chunk] for at in range(0, len(piece), chunk)]
        if ending == "breaks":
            with pytest.raises(BrokenLine):
                store.append("up_1", offset, breaking(*chunks))
        else:
            store.append("up_1", offset, chunks)
        if ending == "restarts":
            store.close()
            store = FolderBlobs(root)
        offset += len(piece)
        assert store.status("up_1") == offset
    digest = store.commit("up_1", digest_of(data)).digest
    assert content(store, digest) == data
    assert os.listdir(root / "uploads") == []
    store.close()
