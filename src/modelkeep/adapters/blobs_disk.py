"""The disk, as the stores of bytes use it: folders and files opened without following links, refusals put
into words, large reads, and writes and reads past the system's cache.

What goes past the cache takes a tenth of the processor time and leaves to others what they have in there; it
needs memory that begins at a page, and offsets and lengths in whole blocks. A file system that cannot do it
is used like any other. What this file does not do: know what lies in a file.
"""

import contextlib
import errno
import fcntl
import mmap
import os
import queue
import threading
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path
from types import TracebackType

from modelkeep.core import errors

# Limits of the disk; each with the reason for its size.
PIECE_BYTES = 1024 * 1024
"""Bytes of one read or write: large enough that the calls cost nothing, small enough to stay in a processor's
cache between two uses."""
BLOCK_BYTES = 4_096
"""What offsets and lengths past the cache are multiples of: the largest block that disks have today."""
CHUNKS_AHEAD = 1
"""Chunks that may wait for whoever uses them, beside the one that is being made."""
PIECES_KEPT = 16
"""Pieces of memory that are kept for the next one who needs some: those of a few uploads and downloads."""

PLAIN = os.O_NOFOLLOW | os.O_CLOEXEC
"""How every file is opened: a symbolic link that somebody planted is an error and never followed."""
CREATE = os.O_WRONLY | os.O_CREAT | PLAIN

_DIRECT = getattr(os, "O_DIRECT", 0)  # macOS has no such flag, and does without
_NO_WAIT = getattr(os, "RWF_NOWAIT", 0)
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class Pieces:
    """Memory for pieces, which is not asked for anew each time. Safe for threads."""

    def __init__(self) -> None:
        self._free: list[memoryview] = []

    def take(self) -> memoryview:
        """Memory for one piece, which begins at a page."""
        try:
            return self._free.pop()
        except IndexError:
            return memoryview(mmap.mmap(-1, PIECE_BYTES))

    def give(self, piece: memoryview) -> None:
        """Nobody uses it any more."""
        if len(self._free) < PIECES_KEPT:
            self._free.append(piece)


class Crew:
    """Who moves large files at the moment, each with the thread that called and, if there are processors for
    it, a second one. To be entered as a context. Safe for threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._at_work = 0
        self._places = os.cpu_count() or 1

    def __enter__(self) -> "Crew":
        with self._lock:
            self._at_work += 1
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._at_work -= 1

    @property
    def crowded(self) -> bool:
        """Whether second threads would only take the processors from first ones."""
        return 2 * self._at_work > self._places


def pass_cache(fd: int, wanted: bool) -> bool:
    """Have an open file read and written past the system's cache from now on, or not; whether it is so."""
    if not _DIRECT:
        return False
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    try:
        fcntl.fcntl(fd, fcntl.F_SETFL, flags | _DIRECT if wanted else flags & ~_DIRECT)
    except OSError:
        return False
    return wanted


def open_folder(path: Path | str, parent_fd: int | None = None) -> int:
    """Open a folder to work in by its descriptor, making it (0700) where it is missing; never through a link.

    Raises:
        BlobsUnavailable: it cannot be made or opened, or is something else than a folder.
    """
    with disk_errors(f"open the folder {path}"):
        try:
            if parent_fd is None:
                Path(path).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.mkdir(path, 0o700, dir_fd=parent_fd)
        except FileExistsError:
            pass
        else:
            if parent_fd is not None:
                os.fsync(parent_fd)
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | PLAIN, dir_fd=parent_fd)


@contextlib.contextmanager
def disk_errors(doing: str) -> Iterator[None]:
    """Turn what the disk says into words a person can act on.

    Raises:
        StorageFull: no room, over quota, or over the process's file size limit.
        BlobsUnavailable: any other refusal: read-only, not allowed, gone, damaged, or a link where none
            belongs.
    """
    try:
        yield
    except OSError as problem:
        reason = os.strerror(problem.errno) if problem.errno else str(problem)
        if problem.errno in _FULL:
            raise errors.StorageFull(
                f"Could not {doing}: {reason}. Make room or cancel uploads, then try again."
            ) from problem
        raise errors.BlobsUnavailable(
            f"Could not {doing}: {reason}. Check that the folder is mounted, writable and this user's own."
        ) from problem


def read_range(fd: int, start: int, end: int) -> Generator[bytes, None, None]:
    """Read an open file from `start` to `end` in chunks; `fd` stays the caller's."""
    while start < end:
        chunk = os.pread(fd, min(PIECE_BYTES, end - start), start)
        if not chunk:
            return  # cut off since its size was taken; a verified read tells
        yield chunk
        start += len(chunk)


def read_past(fd: int, start: int, end: int, pieces: Pieces) -> Generator[bytes, None, None]:
    """`read_range` past the system's cache, unless the file is in there, or cannot be read so."""
    if read_cached(fd, bytearray(1), start) or not pass_cache(fd, True):
        yield from read_range(fd, start, end)
        return
    piece = pieces.take()
    try:
        while start < end:
            skipped = start % BLOCK_BYTES
            try:
                count = os.preadv(fd, [piece], start - skipped)
            except OSError as problem:
                if problem.errno != errno.EINVAL:
                    raise
                pass_cache(fd, False)  # this file system wants it otherwise
                yield from read_range(fd, start, end)
                return
            if count <= skipped:
                return  # as above
            chunk = bytes(piece[skipped : min(count, skipped + end - start)])
            yield chunk
            start += len(chunk)
    finally:
        pieces.give(piece)


def read_cached(fd: int, room: bytearray | memoryview, offset: int) -> int:
    """Read what is in the system's cache; how many bytes, none where the disk would have to be waited for."""
    if not _NO_WAIT:
        return 0
    try:
        return os.preadv(fd, [room], offset, _NO_WAIT)
    except OSError:
        return 0


def ahead(chunks: Iterable[bytes], crew: Crew) -> Generator[bytes, None, None]:
    """Hand chunks through, and have a thread make the next one meanwhile, unless too many are at work; what
    `chunks` raises, too.

    It is begun by the first `next`, and ended by the last or by `close`, which does not wait: the thread lets
    go of `chunks` when the chunk that it makes is there.
    """
    with crew:
        yield from chunks if crew.crowded else _ahead(chunks)


def _ahead(chunks: Iterable[bytes]) -> Generator[bytes, None, None]:
    made: queue.SimpleQueue[bytes | BaseException | None] = queue.SimpleQueue()
    room = threading.Semaphore(CHUNKS_AHEAD)
    ended = threading.Event()

    def make() -> None:
        try:
            for chunk in chunks:
                made.put(chunk)
                room.acquire()
                if ended.is_set():
                    break
            made.put(None)
        except BaseException as problem:  # noqa: BLE001  (it is raised where the chunks are used)
            made.put(problem)
        finally:
            if isinstance(chunks, Generator):
                chunks.close()

    threading.Thread(target=make, name="modelkeep-ahead", daemon=True).start()
    try:
        while (chunk := made.get()) is not None:
            if isinstance(chunk, BaseException):
                raise chunk
            room.release()
            yield chunk
    finally:
        ended.set()
        room.release()


def try_lock(fd: int) -> bool:
    """Lock an open file, unless somebody has it; the kernel unlocks it with the last close. Whether it is
    locked."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
