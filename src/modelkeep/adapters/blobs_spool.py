"""Upload sessions on a local disk: bytes come in pieces, are hashed meanwhile, and outlive the process.

The folder store and the S3 store both take uploads in through this spool; they differ in where a finished
upload goes. What this file does not do: keep blobs, or know what a blob's final place looks like.

Why a session needs no record of its own: the length of its file is its offset. A process that dies, or a
write that fails half way, leaves a file whose length is true, and that is where the sender goes on.

How bytes get into the file, and are hashed meanwhile, is `blobs_intake`'s; `sealed` hashes whatever is left.
"""

import contextlib
import errno
import hashlib
import os
import re
import secrets
import stat
import threading
import time
from collections import OrderedDict
from collections.abc import Generator, Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from modelkeep.adapters.blobs_disk import (
    CREATE,
    PIECE_BYTES,
    PLAIN,
    Crew,
    Pieces,
    disk_errors,
    open_folder,
    read_range,
    try_lock,
)
from modelkeep.adapters.blobs_intake import Intake, RunningHash
from modelkeep.core import errors
from modelkeep.core.values import Digest
from modelkeep.ports import (
    BLOB_MAX_BYTES,
    BlobInfo,
    check_size,
    check_upload_id,
    no_such_upload,
    wrong_digest,
    wrong_offset,
)

# Limits of the spool; each with the reason for its size.
HASHES_KEPT = 1_024
"""Sessions whose hash is kept in memory; an older one is hashed from its file again, slower and as true."""
LOCK_WAIT_S = 5.0
"""How long a request waits for another one on the same session, whose connection may have broken."""
LOCK_POLL_S = 0.02
"""How often it looks."""

_PART = re.compile(r"([a-z0-9_]{1,64})\.part", re.ASCII)
_SIZE = re.compile(r"([a-z0-9_]{1,64})\.size", re.ASCII)


class UploadSpool:
    """The open sessions of one folder. Safe for threads, and for several processes on one local disk."""

    def __init__(self, folder: Path, crew: Crew | None = None, *, direct: bool = False) -> None:
        """Open the folder, making it where it is missing.

        Args:
            crew: who else moves large files here.
            direct: have large uploads pass by the system's cache, where nobody reads them again at once.

        Raises:
            BlobsUnavailable: it cannot be made or opened, or is a symbolic link.
        """
        self._fd = open_folder(folder)
        self._direct = direct
        self._pieces = Pieces()
        self._crew = crew or Crew()
        self._hashes: OrderedDict[str, RunningHash] = OrderedDict()
        self._hashes_lock = threading.Lock()

    def close(self) -> None:
        """Let go of the folder; the sessions stay in it."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    # The folder, drawn:
    #
    #     <folder>/<upload id>.part     the bytes that have come; is there as long as the session is open
    #     <folder>/<upload id>.size     the declared size in decimal, if there is one; written before the part
    #
    # Ids are made by the server and checked by `check_upload_id`, so they hold nothing that means something
    # in a path.

    @staticmethod
    def _part(upload_id: str) -> str:
        return f"{upload_id}.part"

    @staticmethod
    def _size(upload_id: str) -> str:
        return f"{upload_id}.size"

    def begin(self, upload_id: str, size_bytes: int | None = None) -> int:
        """Open a session, or find it open. See `BlobStore.begin`."""
        check_upload_id(upload_id)
        check_size(size_bytes)
        with disk_errors(f"open upload {upload_id}"):
            found = self._length(upload_id)
            if found is None:
                self._check_room(size_bytes or 0)
                self._forget(upload_id)
                try:
                    self._create(upload_id, size_bytes)
                    return 0
                except FileExistsError:  # the same request, sent twice at once
                    found = self._length(upload_id) or 0
                except OSError:
                    self.cancel(upload_id)
                    raise
            if self._declared(upload_id) != size_bytes:
                raise errors.IdempotencyMismatch(
                    f"Upload {upload_id} is open with another size; begin another upload.",
                    upload_id=upload_id,
                )
            return found

    def append(self, upload_id: str, offset: int, chunks: Iterable[bytes]) -> int:
        """Add bytes at the end of a session. See `BlobStore.append`."""
        check_upload_id(upload_id)
        with self._held(upload_id) as fd:
            end = os.fstat(fd).st_size
            if offset != end:
                raise wrong_offset(upload_id, end)
            limit = self._declared(upload_id)
            most = BLOB_MAX_BYTES if limit is None else limit
            with Intake(
                upload_id, fd, end, most, self._hash(upload_id), self._pieces, self._crew, direct=self._direct
            ) as intake:
                try:
                    for chunk in chunks:
                        intake.add(chunk)
                finally:  # what came before the connection broke is kept
                    intake.flush()
            return intake.offset

    def status(self, upload_id: str) -> int:
        """Say how many bytes a session has. See `BlobStore.status`."""
        check_upload_id(upload_id)
        with disk_errors(f"read upload {upload_id}"):
            length = self._length(upload_id)
        if length is None:
            raise no_such_upload(upload_id)
        return length

    @contextlib.contextmanager
    def sealed(self, upload_id: str, expected: Digest | None = None) -> Iterator[tuple[int, BlobInfo]]:
        """Hold a session whose bytes are all there and have the digest they should have, where one is said.

        Returns:
            Its open file, and what blob it is. Whoever holds it decides what becomes of it: `move` or
            `cancel`; if they do neither, the session stays open.

        Raises:
            BlobNotFound, Overloaded: not open; written by another request.
            OffsetMismatch: bytes are missing; the session stays.
            DigestMismatch: other bytes than promised; the session is cancelled.
        """
        check_upload_id(upload_id)
        with self._held(upload_id) as fd:
            size = os.fstat(fd).st_size
            declared = self._declared(upload_id)
            if declared is not None and size != declared:
                raise wrong_offset(upload_id, size)
            running = self._hash(upload_id)
            if running.offset < size:
                with disk_errors(f"read upload {upload_id}"):
                    running.advance(fd, size, memoryview(bytearray(PIECE_BYTES)))
            actual = running.digest()
            if running.offset != size or (expected is not None and actual != expected):
                self.cancel(upload_id)
                raise wrong_digest(
                    expected or actual, actual, "the upload was discarded, send the file again"
                )
            yield fd, BlobInfo(digest=actual, size_bytes=size)

    def read(self, upload_id: str) -> Generator[bytes, None, None]:
        """Read what a session has. See `BlobStore.open_upload`."""
        check_upload_id(upload_id)
        chunks = self._read(upload_id)
        next(chunks)  # opens and locks the session now, so that errors come from this call
        return chunks

    def _read(self, upload_id: str) -> Generator[bytes, None, None]:
        """Yield one empty chunk when the session is held, then its bytes."""
        with self._held(upload_id) as fd:
            yield b""
            with disk_errors(f"read upload {upload_id}"):
                yield from read_range(fd, 0, os.fstat(fd).st_size)

    def move(self, upload_id: str, fd: int, name: str, folder_fd: int) -> None:
        """Give a sealed session's file its final name, in one step, in place of what may have it.

        Raises:
            BlobNotFound: the session was cancelled meanwhile.
            OSError: the disk refused.
        """
        if not self._is_still(upload_id, fd):
            raise no_such_upload(upload_id)
        os.rename(self._part(upload_id), name, src_dir_fd=self._fd, dst_dir_fd=folder_fd)
        self.cancel(upload_id)

    def place(self, data: bytes, name: str, folder_fd: int) -> None:
        """Put a small file into a folder, whole, in one step, in place of what may be there; nothing is
        synced. A crash leaves at most a session that nobody goes on with, for `sweep`.

        Raises:
            OSError: the disk refused.
        """
        part = self._part(f"put_{secrets.token_hex(16)}")
        fd = os.open(part, CREATE | os.O_EXCL, 0o600, dir_fd=self._fd)
        try:
            try:
                if os.write(fd, data) != len(data):
                    raise OSError(errno.ENOSPC, "a write was cut short")
            finally:
                os.close(fd)
            os.rename(part, name, src_dir_fd=self._fd, dst_dir_fd=folder_fd)
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(part, dir_fd=self._fd)
            raise

    def cancel(self, upload_id: str) -> None:
        """Close a session and give its room back. See `BlobStore.cancel`."""
        check_upload_id(upload_id)
        self._forget(upload_id)
        with disk_errors(f"cancel upload {upload_id}"):
            for name in (self._part(upload_id), self._size(upload_id)):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=self._fd)

    def sweep(self, older_than: datetime) -> int:
        """Cancel sessions that nobody has written to since. See `BlobStore.sweep_uploads`."""
        swept = 0
        with disk_errors("sweep the uploads"):
            for name in os.listdir(self._fd):
                part, size = _PART.fullmatch(name), _SIZE.fullmatch(name)
                if part and self._is_older(name, older_than):
                    with (
                        contextlib.suppress(errors.Overloaded, errors.BlobNotFound),
                        self._held(part[1], wait=False),
                    ):
                        self.cancel(part[1])
                        swept += 1
                elif size and self._is_older(name, older_than) and self._length(size[1]) is None:
                    os.unlink(name, dir_fd=self._fd)  # left by a crash between the two files of a session
        return swept

    def _is_older(self, name: str, when: datetime) -> bool:
        try:
            found = os.stat(name, dir_fd=self._fd, follow_symlinks=False)
        except FileNotFoundError:
            return False
        # What is no plain file is none of ours, and stays for somebody to look at.
        return stat.S_ISREG(found.st_mode) and datetime.fromtimestamp(found.st_mtime, UTC) < when

    def _length(self, upload_id: str) -> int | None:
        try:
            found = os.stat(self._part(upload_id), dir_fd=self._fd, follow_symlinks=False)
        except FileNotFoundError:
            return None
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.ELOOP, "not a plain file", self._part(upload_id))
        return found.st_size

    def _create(self, upload_id: str, size_bytes: int | None) -> None:
        if size_bytes is not None:
            fd = os.open(self._size(upload_id), CREATE | os.O_TRUNC, 0o600, dir_fd=self._fd)
            with open(fd, "w", encoding="ascii") as file:
                file.write(str(size_bytes))
        os.close(os.open(self._part(upload_id), CREATE | os.O_EXCL, 0o600, dir_fd=self._fd))

    def _declared(self, upload_id: str) -> int | None:
        with disk_errors(f"read upload {upload_id}"):
            try:
                fd = os.open(self._size(upload_id), os.O_RDONLY | PLAIN, dir_fd=self._fd)
            except FileNotFoundError:
                return None
            with open(fd, "rb") as file:
                text = file.read(32)
        return int(text) if text.isdigit() else None

    def _check_room(self, size_bytes: int) -> None:
        found = os.fstatvfs(self._fd)
        free = found.f_bavail * found.f_frsize
        if size_bytes > free:
            raise errors.StorageFull(
                f"The upload needs {size_bytes:,} bytes and the disk has {free:,} left; make room and retry.",
                needed_bytes=size_bytes,
                free_bytes=free,
            )

    @contextlib.contextmanager
    def _held(self, upload_id: str, *, wait: bool = True) -> Iterator[int]:
        """Open a session's file and lock out other writers; the kernel unlocks it if the process dies."""
        deadline = time.monotonic() + (LOCK_WAIT_S if wait else 0)
        with disk_errors(f"open upload {upload_id}"):
            try:
                fd = os.open(self._part(upload_id), os.O_RDWR | PLAIN, dir_fd=self._fd)
            except FileNotFoundError:
                raise no_such_upload(upload_id) from None
        try:
            while not try_lock(fd):
                if time.monotonic() >= deadline:
                    raise errors.Overloaded(
                        f"Another request is still writing upload {upload_id}; try again in a moment.",
                        upload_id=upload_id,
                    )
                time.sleep(LOCK_POLL_S)
            # Whoever held the lock may have committed: then this file is a blob by now, and must not be
            # touched.
            if not self._is_still(upload_id, fd):
                raise no_such_upload(upload_id)
            yield fd
        finally:
            os.close(fd)

    def _is_still(self, upload_id: str, fd: int) -> bool:
        try:
            named = os.stat(self._part(upload_id), dir_fd=self._fd, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return os.path.samestat(named, os.fstat(fd))

    def _hash(self, upload_id: str) -> "RunningHash":
        with self._hashes_lock:
            running = self._hashes.setdefault(upload_id, RunningHash())
            self._hashes.move_to_end(upload_id)
            if len(self._hashes) > HASHES_KEPT:
                self._hashes.popitem(last=False)
            return running

    def _forget(self, upload_id: str) -> None:
        with self._hashes_lock:
            self._hashes.pop(upload_id, None)


def verified(chunks: Iterable[bytes], expected: Digest, advice: str) -> Generator[bytes, None, None]:
    """Hand chunks through and hash them.

    Raises:
        DigestMismatch: after the last chunk, if they were not the bytes that `expected` names.
    """
    sha256 = hashlib.sha256()
    for chunk in chunks:
        sha256.update(chunk)
        yield chunk
    actual = Digest(f"sha256:{sha256.hexdigest()}")
    if actual != expected:
        raise wrong_digest(expected, actual, advice)
