"""Large files on their way to the disk and from it, past the system's cache or through it: the same bytes,
whatever the file system can do.
"""

import errno
import fcntl
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from modelkeep.adapters import blobs_disk, blobs_folder, blobs_intake
from modelkeep.adapters.blobs_disk import PIECE_BYTES, Crew, Pieces, ahead, read_past
from modelkeep.adapters.blobs_folder import FolderBlobs
from modelkeep.core import errors
from tests.contracts.blobs import BrokenLine, breaking, content, noise
from tests.contracts.blobs import pieces as cut
from tests.fakes import digest_of

DEADLINE_S = 60.0


def _past_the_cache(fd: int) -> bool:
    return bool(fcntl.fcntl(fd, fcntl.F_GETFL) & getattr(os, "O_DIRECT", 0))


def _unless_past(real: Callable[..., int]) -> Callable[..., int]:
    """A call of a file system that takes the flag, and then does not want such reads and writes."""

    def call(fd: int, *arguments: Any) -> int:
        if _past_the_cache(fd):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return real(fd, *arguments)

    return call


@pytest.fixture(params=["as it is", "no such way", "refused when used"])
def disk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the file system does about reads and writes past its cache."""
    match request.param:
        case "no such way":
            monkeypatch.setattr(blobs_disk, "_DIRECT", 0)
        case "refused when used":
            monkeypatch.setattr(os, "pwrite", _unless_past(os.pwrite))
            monkeypatch.setattr(os, "preadv", _unless_past(os.preadv))


@pytest.fixture(params=[1, 64])
def store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[FolderBlobs]:
    """A store that takes files of a few pieces for large ones, on a machine with few processors or many."""
    monkeypatch.setattr(os, "cpu_count", lambda: request.param)
    monkeypatch.setattr(blobs_intake, "FOLLOW_BYTES", PIECE_BYTES)
    monkeypatch.setattr(blobs_folder, "PAST_CACHE_BYTES", 2 * PIECE_BYTES)
    store = FolderBlobs(tmp_path / "blobs")
    yield store
    store.close()


@pytest.mark.req("V3")
@pytest.mark.usefixtures("disk")
@pytest.mark.parametrize(
    "ends", [(), (1,), (PIECE_BYTES,), (3 * PIECE_BYTES + 4_095, 4 * PIECE_BYTES + 4_096)]
)
def test_a_large_upload_may_break_off_anywhere(store: FolderBlobs, ends: tuple[int, ...]) -> None:
    """However the stretches of an upload lie to the blocks of the disk, the file is whole, and reads back
    whole from any byte on, the first time and the second."""
    data = noise(6 * PIECE_BYTES + 77)
    offset = store.begin("up_1")
    for end in (*ends, len(data)):
        offset = store.append("up_1", offset, cut(data[offset:end], 300_001))
    digest = store.seal("up_1").digest
    assert digest == digest_of(data)
    for _ in range(2):
        assert b"".join(store.open_verified(digest)) == data
    for start in (1, 4_096, PIECE_BYTES + 5):
        assert content(store, digest, start) == data[start:]
        assert content(store, digest, start, 3 * PIECE_BYTES + 1) == data[start : start + 3 * PIECE_BYTES + 1]


@pytest.mark.req("V3")
@pytest.mark.usefixtures("disk")
def test_an_upload_goes_on_in_another_process(store: FolderBlobs, tmp_path: Path) -> None:
    """Who has not seen the beginning hashes it from the file, while the rest comes."""
    data = noise(7 * PIECE_BYTES + 5)
    store.begin("up_1")
    with pytest.raises(BrokenLine):
        store.append("up_1", 0, breaking(*cut(data[: 2 * PIECE_BYTES + 9], 100_000)))
    other = FolderBlobs(tmp_path / "blobs")
    at = other.status("up_1")
    assert at == 2 * PIECE_BYTES + 9
    assert other.append("up_1", at, cut(data[at:], 100_000)) == len(data)
    assert other.commit("up_1", digest_of(data)).size_bytes == len(data)
    other.close()


@pytest.mark.req("V3")
def test_what_the_disk_cut_short_is_hashed_as_it_lies_there(
    store: FolderBlobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A piece of which only a part was written does not get into the hash whole."""
    data, real, left = noise(4 * PIECE_BYTES), os.pwrite, [3 * PIECE_BYTES + 1_000]

    def until_full(fd: int, piece: memoryview, offset: int) -> int:
        if offset >= left[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if offset + len(piece) > left[0] and _past_the_cache(fd):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return real(fd, piece[: left[0] - offset], offset)

    store.begin("up_1")
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", until_full)
        with pytest.raises(errors.StorageFull):
            store.append("up_1", 0, cut(data, 200_000))
    at = store.status("up_1")
    assert at == left[0]
    store.append("up_1", at, [data[at:]])
    assert store.commit("up_1", digest_of(data)).size_bytes == len(data)


@pytest.mark.skipif(not hasattr(os, "O_DIRECT"), reason="this system has no way past its cache")
def test_what_is_in_the_cache_is_taken_from_there(
    store: FolderBlobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that nobody has read is read past the cache; the second time it is read into it."""
    data = noise(3 * PIECE_BYTES)
    store.begin("up_1")
    store.append("up_1", 0, [data])
    digest = store.seal("up_1").digest
    ways: list[bool] = []
    real = os.preadv

    def spying(fd: int, *arguments: Any) -> int:
        if len(arguments[0][0]) == PIECE_BYTES:
            ways.append(_past_the_cache(fd))
        return real(fd, *arguments)

    monkeypatch.setattr(os, "preadv", spying)
    assert content(store, digest) == data
    assert ways
    assert all(ways)
    ways.clear()
    assert content(store, digest) == data
    assert ways == []


def test_a_file_that_was_cut_off_ends_early(tmp_path: Path) -> None:
    """Bytes that are not there any more end the read; a verified one then says so."""
    (tmp_path / "file").write_bytes(noise(5_000))
    fd = os.open(tmp_path / "file", os.O_RDONLY)
    try:
        assert b"".join(read_past(fd, 0, 9_000, Pieces())) == noise(5_000)
    finally:
        os.close(fd)


# ------------------------------------------------------------------------------------------ one chunk ahead


@pytest.mark.parametrize("others", [0, 1_000])
def test_chunks_come_in_order_and_their_error_last(others: int) -> None:
    """What was made before an error is handed out before it, with a second thread and without."""
    crew = Crew()
    for _ in range(others):
        crew.__enter__()
    chunks, got = ahead(_failing(), crew), []
    with pytest.raises(ZeroDivisionError):
        while True:
            got.append(next(chunks))
    assert got == [b"a", b"b", b"c"]


def _failing() -> Iterator[bytes]:
    yield from (b"a", b"b", b"c")
    raise ZeroDivisionError


def test_who_stops_early_is_let_go_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that goes away does not wait for the disk, and what it held is let go of when the disk has
    answered."""
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    disk, closed = threading.Event(), threading.Event()

    def slow() -> Iterator[bytes]:
        try:
            yield b"first"
            assert disk.wait(DEADLINE_S)
            yield b"second"
        finally:
            closed.set()

    chunks = ahead(slow(), Crew())
    assert next(chunks) == b"first"
    chunks.close()
    assert not closed.is_set()
    disk.set()
    assert closed.wait(DEADLINE_S)
