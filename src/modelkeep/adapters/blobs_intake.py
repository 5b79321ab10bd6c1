"""One stretch of an upload on its way into its file: written piece by piece, and hashed behind the writing.

What this file does not do: know sessions, or what a whole upload becomes.

Why a piece is hashed after it was written, and from the same memory: writing and hashing each have a core
then, nothing is read back, and the hash never knows more than the file has, whatever the disk refuses. Only
where the hash lags behind (a process was started anew in the middle of an upload, and the state of a hash
cannot be written down) does it follow in the file, from the first byte again, while new bytes arrive.
"""

import errno
import hashlib
import os
import threading
from collections import deque
from types import TracebackType

from modelkeep.adapters.blobs_disk import BLOCK_BYTES, PIECE_BYTES, Crew, Pieces, disk_errors, pass_cache
from modelkeep.core import errors
from modelkeep.core.values import Digest
from modelkeep.ports import no_such_upload

# Limits of one stretch; each with the reason for its size.
FOLLOW_BYTES = 4 * 1024 * 1024
"""Bytes after which a second thread is worth its start; what is less is hashed where it is written, as is
everything when many write at once."""
PIECES_BEHIND = 2
"""Pieces that may wait to be hashed, with the one that is: the writer waits then, and so does the sender."""
SETTLE_BYTES = 8 * 1024 * 1024
"""Bytes in the system's cache after which the kernel is told to begin writing them to the disk."""
CACHED_BYTES = 128 * 1024 * 1024
"""Bytes of one upload that stay in that cache where it is used: most models whole."""

_CAN_ADVISE = hasattr(os, "posix_fadvise")  # macOS has no such call, and does without


class RunningHash:
    """The hash of the first `offset` bytes of a file."""

    def __init__(self) -> None:
        self.offset = 0
        self._sha256 = hashlib.sha256()

    def digest(self) -> Digest:
        """Of these bytes."""
        return Digest(f"sha256:{self._sha256.hexdigest()}")

    def add(self, piece: memoryview) -> None:
        """Hash on, with the bytes that follow in the file."""
        self._sha256.update(piece)
        self.offset += len(piece)

    def advance(self, fd: int, until: int, room: memoryview) -> None:
        """Read and hash on from where it is to `until`, or to the end of the file.

        Args:
            room: memory to read into.

        Raises:
            OSError: the file cannot be read; the hash is true for the bytes up to `offset`.
        """
        while self.offset < until:
            count = os.preadv(fd, [room[: until - self.offset]], self.offset)
            if count == 0:
                return
            self.add(room[:count])


class Intake:
    """Where the chunks of one stretch go. To be left as a context: what was not flushed by then is dropped.

    Attributes:
        offset: what the file really has, in bytes.
    """

    def __init__(
        self,
        upload_id: str,
        fd: int,
        offset: int,
        limit: int,
        running: RunningHash,
        pieces: Pieces,
        crew: Crew,
        *,
        direct: bool,
    ) -> None:
        """
        Args:
            limit: bytes that the file may have.
            running: the hash of the upload, which is taken along.
            crew: says whether there is a processor for the hash alone.
            direct: write past the system's cache where that can be done.
        """
        self.offset = offset
        self._upload_id = upload_id
        self._fd = fd
        self._limit = limit
        self._pieces = pieces
        self._crew = crew
        self._follower = _Follower(fd, running, pieces, crew, offset)
        # Who follows in the file reads it through the cache.
        self._may_pass = direct and self._follower.in_step
        self._passing = False
        self._settled = self._dropped = offset
        self._piece = pieces.take()
        self._filled = 0
        self._room = PIECE_BYTES - offset % PIECE_BYTES

    def __enter__(self) -> "Intake":
        self._crew.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._follower.stop()
        self._crew.__exit__(kind, error, trace)
        self._pieces.give(self._piece)
        if self._passing:
            self._passing = pass_cache(self._fd, False)

    def add(self, chunk: bytes) -> None:
        """Take a chunk; write when a piece is full.

        Raises:
            LimitExceeded: with this chunk the upload would be longer than it may be; the chunk is not taken.
            StorageFull, BlobsUnavailable: the disk refused; `offset` says how far it came.
            BlobNotFound: the session was cancelled meanwhile.
        """
        if self.offset + self._filled + len(chunk) > self._limit:
            raise errors.LimitExceeded(
                f"Upload {self._upload_id} was to have {self._limit:,} bytes at most, and more came; "
                "cancel it and begin again with the right size.",
                upload_id=self._upload_id,
                limit=self._limit,
            )
        rest = memoryview(chunk)
        while rest:
            count = min(len(rest), self._room - self._filled)
            self._piece[self._filled : self._filled + count] = rest[:count]
            self._filled += count
            rest = rest[count:]
            if self._filled == self._room:
                self.flush()

    def flush(self) -> None:
        """Write what has come together. Raises as `add` does."""
        size, self._filled = self._filled, 0
        if not size:
            return
        if os.fstat(self._fd).st_nlink == 0:  # no name any more: stop filling the disk for nobody
            raise no_such_upload(self._upload_id)
        with disk_errors(f"write upload {self._upload_id}"):
            self._write(self._piece[:size])
        self._piece = self._follower.wrote(self._piece, size, self.offset)
        self._room = PIECE_BYTES - self.offset % PIECE_BYTES
        if _CAN_ADVISE and not self._passing and self.offset - self._settled >= SETTLE_BYTES:
            self._settle()

    def _write(self, rest: memoryview) -> None:
        """Write at the end of the file, whole pieces past the cache. Raises OSError."""
        while rest:
            # What the disk has cut short goes on wherever it was cut, so through the cache.
            self._pass(self._may_pass and len(rest) == PIECE_BYTES and self.offset % BLOCK_BYTES == 0)
            try:
                count = os.pwrite(self._fd, rest, self.offset)
            except OSError as problem:
                if not self._passing or problem.errno != errno.EINVAL:
                    raise
                self._may_pass = False  # this file system wants it otherwise
                continue
            self.offset += count
            rest = rest[count:]

    def _pass(self, wanted: bool) -> None:
        if wanted != self._passing:
            self._passing = pass_cache(self._fd, wanted)
            self._may_pass &= self._passing or not wanted

    def _settle(self) -> None:
        """Send what is written on its way to the disk, and let go of what is hashed and far behind.

        The same advice does both: it starts the writing of pages that are not on the disk yet, and drops
        those that are. Without it the fsync at the end would wait for everything, and one large upload would
        push everything else out of the system's memory.
        """
        os.posix_fadvise(self._fd, self._settled, self.offset - self._settled, os.POSIX_FADV_DONTNEED)
        self._settled = self.offset
        behind = min(self.offset - CACHED_BYTES, self._follower.hashed)
        if behind > self._dropped:
            os.posix_fadvise(self._fd, self._dropped, behind - self._dropped, os.POSIX_FADV_DONTNEED)
            self._dropped = behind


class _Follower:
    """Hashes what was written: in step with the writer, from memory; or, where the hash is elsewhere, from
    the file, as far as it gets."""

    def __init__(self, fd: int, running: RunningHash, pieces: Pieces, crew: Crew, offset: int) -> None:
        self.in_step = running.offset == offset
        self._fd = fd
        self._running = running
        self._pieces = pieces
        self._crew = crew
        self._began = self._written = offset
        self._waiting: deque[tuple[memoryview, int]] = deque()
        self._stopped = False
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    @property
    def hashed(self) -> int:
        """How far the file is hashed."""
        return self._running.offset

    def wrote(self, piece: memoryview, size: int, offset: int) -> memoryview:
        """Take over the first bytes of a piece, which are written now, up to an offset of the file.

        Returns:
            memory for the next piece.
        """
        early = self._thread is None and offset - self._began < FOLLOW_BYTES
        if self.in_step and (early or self._crew.crowded):
            with self._changed:
                self._changed.wait_for(lambda: not self._waiting)
            self._running.add(piece[:size])
            return piece
        if early:
            return piece
        with self._changed:
            self._written = offset
            if self.in_step:
                self._changed.wait_for(lambda: len(self._waiting) < PIECES_BEHIND)
                self._waiting.append((piece, size))
            self._changed.notify_all()
        if self._thread is None:
            work = self._hash_pieces if self.in_step else self._hash_file
            thread = threading.Thread(target=work, name="modelkeep-hash", daemon=True)
            thread.start()
            self._thread = thread
        return self._pieces.take() if self.in_step else piece

    def stop(self) -> None:
        """Hash what waits in memory; what is in the file has time."""
        if self._thread is not None:
            with self._changed:
                self._stopped = True
                self._changed.notify_all()
            self._thread.join()

    def _hash_pieces(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._stopped or self._waiting)
                if not self._waiting:
                    return
                piece, size = self._waiting[0]
            self._running.add(piece[:size])
            self._pieces.give(piece)
            with self._changed:
                self._waiting.popleft()
                self._changed.notify_all()

    def _hash_file(self) -> None:
        room = self._pieces.take()
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._stopped or self._written > self._running.offset)
                if self._stopped:
                    break
                until = min(self._written, self._running.offset + PIECE_BYTES)
            try:
                self._running.advance(self._fd, until, room)
            except OSError:
                break  # `sealed` reads on from the same place, and reports what it meets there
        self._pieces.give(room)
