"""Blobs in a folder of the local disk: one file per blob, named by its digest, put there whole in one step.

Uploads are taken in by `blobs_spool`. What this file does not do: decide who may read what, or which blobs
are still needed; and it trusts nobody else to write in its folder (a link planted there is refused, not
followed).

Why a commit replaces what lies under the same name: both have the same digest, and the new bytes have just
been proved, so the old ones are either equal, or damaged and thereby healed. Readers of the old file keep it
to the end.
"""

import contextlib
import ctypes
import errno
import hashlib
import itertools
import operator
import os
import re
import stat
import sys
import threading
from collections import OrderedDict
from collections.abc import Generator, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

from modelkeep.adapters.blobs_disk import (
    Crew,
    Pieces,
    ahead,
    disk_errors,
    open_folder,
    read_cached,
    read_past,
    read_range,
)
from modelkeep.adapters.blobs_spool import UploadSpool, verified
from modelkeep.core import errors, values
from modelkeep.core.catalog import StoredBlob
from modelkeep.core.values import Digest
from modelkeep.ports import SMALL_MAX_BYTES, BlobInfo, check_range, check_small, no_such_blob

# Limits of the folder; each with the reason for its size.
PAST_CACHE_BYTES = 8 * 1024 * 1024
"""A read of so much goes past the system's cache the first time: filling the cache with what may never be
asked for again costs more than reading it, and pushes out what is."""
LATELY_MAX = 1_024
"""Blobs of which it is remembered that somebody has read them."""

_SHARD = re.compile(r"[0-9a-f]{2}", re.ASCII)
_REST = re.compile(r"[0-9a-f]{62}", re.ASCII)
_SYNC_FILESYSTEM = ctypes.CDLL(None, use_errno=True).syncfs if sys.platform == "linux" else None
"""Syncs all of the file system that a descriptor is on, and says whether anything was lost since it was
opened: for hundreds of new files far less work than a sync of each."""


# The folder, drawn:
#
#     <root>/sha256/ab/<62 hex>     a blob; `ab` and the 62 are the digest's 64 hexadecimal digits
#     <root>/uploads/...            what has not been committed, see `blobs_spool`
#
# 256 folders keep each of them small at a million blobs. Files are 0600, folders 0700.


def _place(digest: Digest) -> tuple[str, str]:
    """The folder below `sha256/`, and the name in it. The only function that makes a path out of a digest."""
    text = values.check_digest(digest).removeprefix("sha256:")
    return text[:2], text[2:]


class FolderBlobs:
    """The `BlobStore` of one machine. It works through open descriptors, never through a path it was told."""

    def __init__(self, root: Path) -> None:
        """Open the folder, making it where it is missing.

        Raises:
            BlobsUnavailable: it cannot be made or opened.
        """
        self._root = Path(root)
        # The operator may have linked the root itself elsewhere.
        self._root_fd = open_folder(self._root.resolve())
        self._fd = open_folder("sha256", self._root_fd)
        self._named: set[str] = set()
        """Folders in it whose names were synced since this process began."""
        self._pieces = Pieces()
        self._crew = Crew()
        self._lately: OrderedDict[Digest, None] = OrderedDict()
        self._lately_lock = threading.Lock()
        self._spool = UploadSpool(self._root / "uploads", self._crew, direct=True)
        self._may_have_lost = False

    def close(self) -> None:
        """See `BlobStore.close`."""
        if self._fd < 0:
            return
        self._spool.close()
        os.close(self._fd)
        os.close(self._root_fd)
        self._fd = self._root_fd = -1

    def begin(self, upload_id: str, size_bytes: int | None = None) -> int:
        """See `BlobStore.begin`."""
        return self._spool.begin(upload_id, size_bytes)

    def append(self, upload_id: str, offset: int, chunks: Iterable[bytes]) -> int:
        """See `BlobStore.append`."""
        return self._spool.append(upload_id, offset, chunks)

    def status(self, upload_id: str) -> int:
        """See `BlobStore.status`."""
        return self._spool.status(upload_id)

    def cancel(self, upload_id: str) -> None:
        """See `BlobStore.cancel`."""
        self._spool.cancel(upload_id)

    def sweep_uploads(self, older_than: datetime) -> int:
        """See `BlobStore.sweep_uploads`."""
        return self._spool.sweep(older_than)

    def commit(self, upload_id: str, expected: Digest) -> BlobInfo:
        """See `BlobStore.commit`."""
        values.check_digest(expected)
        try:
            return self._store(upload_id, expected)
        except errors.BlobNotFound:  # committed before, and the answer was lost?
            found = self.stat(expected)
            if found is None:
                raise
            return found

    def seal(self, upload_id: str) -> BlobInfo:
        """See `BlobStore.seal`."""
        return self._store(upload_id, None)

    def open_upload(self, upload_id: str) -> Generator[bytes, None, None]:
        """See `BlobStore.open_upload`."""
        return self._spool.read(upload_id)

    def _store(self, upload_id: str, expected: Digest | None) -> BlobInfo:
        with self._spool.sealed(upload_id, expected) as (fd, blob):
            self._make_durable(upload_id, fd)
            shard, name = _place(blob.digest)
            with (
                disk_errors(f"store {blob.digest}"),
                _opened(self._shard_to_fill(shard, synced=True)) as shard_fd,
            ):
                self._spool.move(upload_id, fd, name, shard_fd)
                os.fsync(shard_fd)
            return blob

    def _make_durable(self, upload_id: str, fd: int) -> None:
        try:
            with disk_errors("store the file safely (begin the upload again)"):
                os.fsync(fd)
        except errors.Unavailable:
            # The kernel forgets what it failed to write, so a second fsync would claim success: the bytes are
            # lost.
            self._spool.cancel(upload_id)
            raise

    @property
    def near(self) -> bool:
        """See `BlobStore.near`."""
        return True

    @property
    def small(self) -> "FolderBlobs | None":
        """See `BlobStore.small`."""
        return None if self._may_have_lost else self

    def place(self, digest: Digest, data: bytes) -> None:
        """See `SmallFiles.place`."""
        self._place(digest, data, anew=False)

    def put_back(self, files: Sequence[tuple[Digest, bytes]]) -> None:
        """See `SmallFiles.put_back`."""
        for digest, data in files:
            self._place(digest, data, anew=True)
        self.sync([digest for digest, _ in files])

    def sync(self, digests: Sequence[Digest]) -> None:
        """See `SmallFiles.sync`."""
        with disk_errors("store small files safely (start the server again)"):
            try:
                self._sync_placed(digests)
            except OSError:
                self._may_have_lost = True
                raise

    def _place(self, digest: Digest, data: bytes, *, anew: bool) -> None:
        check_small(data)
        shard, name = _place(digest)
        with (
            disk_errors(f"store {digest}"),
            _opened(self._shard_to_fill(shard, synced=False)) as shard_fd,
        ):
            if anew or not _renewed(name, shard_fd, data):
                self._spool.place(data, name, shard_fd)

    def _sync_placed(self, digests: Sequence[Digest]) -> None:
        if _SYNC_FILESYSTEM is not None:
            if _SYNC_FILESYSTEM(self._fd) != 0:
                number = ctypes.get_errno()
                raise OSError(number, os.strerror(number))
            return
        names = sorted(set(map(_place, digests)))
        for shard, of_shard in itertools.groupby(names, key=operator.itemgetter(0)):
            with _opened(self._shard(shard)) as shard_fd:
                for _, name in of_shard:
                    with contextlib.suppress(FileNotFoundError), _opened(_file(name, shard_fd)) as fd:
                        os.fsync(fd)
                os.fsync(shard_fd)
        os.fsync(self._fd)

    def stat(self, digest: Digest) -> BlobInfo | None:
        """See `BlobStore.stat`."""
        shard, name = _place(digest)
        with disk_errors(f"look for {digest}"):
            try:
                with _opened(self._shard(shard)) as shard_fd:
                    found = os.stat(name, dir_fd=shard_fd, follow_symlinks=False)
            except FileNotFoundError:
                return None
        return BlobInfo(digest=digest, size_bytes=found.st_size) if stat.S_ISREG(found.st_mode) else None

    def open(
        self, digest: Digest, offset: int = 0, length: int | None = None
    ) -> Generator[bytes, None, None]:
        """See `BlobStore.open`."""
        chunks = self._read(digest, offset, length)
        next(chunks)  # opens the file now: errors come from this call, and the file is closed in any case
        return chunks

    def open_verified(self, digest: Digest) -> Generator[bytes, None, None]:
        """See `BlobStore.open_verified`."""
        found = self.stat(digest)
        chunks = self.open(digest)
        large = found is not None and found.size_bytes >= PAST_CACHE_BYTES
        return verified(
            ahead(chunks, self._crew) if large else chunks,
            digest,
            "the stored file is damaged; run 'modelkeep fsck', then restore it or register it again",
        )

    def at_hand(self, digest: Digest) -> bytes | None:
        """See `BlobStore.at_hand`. A name is looked up on the disk if need be, which is a block or two."""
        shard, name = _place(digest)
        try:
            with _opened(self._shard(shard)) as shard_fd, _opened(_file(name, shard_fd)) as fd:
                size = os.fstat(fd).st_size
                if size > SMALL_MAX_BYTES:
                    return None
                room = bytearray(size)
                data = bytes(room) if read_cached(fd, room, 0) == size else None
        except OSError:
            return None
        is_right = data is not None and hashlib.sha256(data).hexdigest() == digest.removeprefix("sha256:")
        return data if is_right else None

    def verify(self, digest: Digest) -> BlobInfo:
        """See `BlobStore.verify`."""
        return BlobInfo(digest=digest, size_bytes=sum(map(len, self.open_verified(digest))))

    def iterate(self) -> Iterator[StoredBlob]:
        """See `BlobStore.iterate`. Holds the names of one shard at a time."""
        with disk_errors("list the stored files"):
            shards = sorted(filter(_SHARD.fullmatch, os.listdir(self._fd)))
        for shard in shards:
            with disk_errors("list the stored files"), _opened(self._shard(shard)) as shard_fd:
                found = [self._stored(shard, name, shard_fd) for name in sorted(os.listdir(shard_fd))]
            yield from filter(None, found)

    @staticmethod
    def _stored(shard: str, name: str, shard_fd: int) -> StoredBlob | None:
        """The blob behind a name; None for what is no blob, or is gone by now."""
        if not _REST.fullmatch(name):
            return None
        try:
            found = os.stat(name, dir_fd=shard_fd, follow_symlinks=False)
        except FileNotFoundError:
            return None
        if not stat.S_ISREG(found.st_mode):
            return None
        modified_at = datetime.fromtimestamp(found.st_mtime, UTC)
        return StoredBlob(
            digest=Digest(f"sha256:{shard}{name}"), size_bytes=found.st_size, modified_at=modified_at
        )

    def delete(self, digest: Digest) -> bool:
        """See `BlobStore.delete`."""
        shard, name = _place(digest)
        with disk_errors(f"delete {digest}"):
            try:
                with _opened(self._shard(shard)) as shard_fd:
                    os.unlink(name, dir_fd=shard_fd)
            except FileNotFoundError:
                return False
        return True

    def local_path(self, digest: Digest) -> Path:
        """See `BlobStore.local_path`."""
        if self.stat(digest) is None:
            raise no_such_blob(digest)
        return self._root.joinpath("sha256", *_place(digest))

    def _shard(self, shard: str) -> int:
        return os.open(shard, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._fd)

    def _shard_to_fill(self, shard: str, *, synced: bool) -> int:
        """Open a folder that a blob is put into, making it where it is missing.

        Args:
            synced: its name survives a loss of power; else it does when `sync` has run. Whoever made
                it may not have synced it yet, so each process sees to that once.
        """
        try:
            opened = self._shard(shard)
        except FileNotFoundError:
            with contextlib.suppress(FileExistsError):
                os.mkdir(shard, 0o700, dir_fd=self._fd)
            opened = self._shard(shard)
        if synced and shard not in self._named:
            try:
                os.fsync(self._fd)
            except OSError:
                os.close(opened)
                raise
            self._named.add(shard)
        return opened

    def _read(self, digest: Digest, offset: int, length: int | None) -> Generator[bytes, None, None]:
        """Yield one empty chunk when the file is open, then its bytes."""
        shard, name = _place(digest)
        with disk_errors(f"read {digest}"):
            try:
                with _opened(self._shard(shard)) as shard_fd:
                    file_fd = _file(name, shard_fd)
            except FileNotFoundError:
                raise no_such_blob(digest) from None
            except OSError as problem:
                if problem.errno == errno.ELOOP:
                    raise no_such_blob(digest) from problem
                raise
            with _opened(file_fd) as fd:
                found = os.fstat(fd)
                if not stat.S_ISREG(found.st_mode):
                    raise no_such_blob(digest)
                end = check_range(found.st_size, offset, length)
                past = end - offset >= PAST_CACHE_BYTES and self._is_first_read(digest)
                yield b""
                yield from read_past(fd, offset, end, self._pieces) if past else read_range(fd, offset, end)

    def _is_first_read(self, digest: Digest) -> bool:
        """Whether nobody has read a blob lately. What is read again is worth its place in the cache."""
        with self._lately_lock:
            first = digest not in self._lately
            self._lately[digest] = None
            self._lately.move_to_end(digest)
            if len(self._lately) > LATELY_MAX:
                self._lately.popitem(last=False)
        return first


def _file(name: str, shard_fd: int) -> int:
    # Without O_NONBLOCK a pipe planted under the name would hold the reader for ever.
    return os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=shard_fd)


def _renewed(name: str, shard_fd: int, data: bytes) -> bool:
    """Whether a file lies there that has these bytes; it is as good as new then."""
    try:
        with _opened(_file(name, shard_fd)) as fd:
            if not stat.S_ISREG(os.fstat(fd).st_mode) or os.pread(fd, len(data) + 1, 0) != data:
                return False
            os.utime(fd)
            return True
    except OSError:
        return False  # none, or one that is to be replaced: a link, or a file that cannot be read


@contextlib.contextmanager
def _opened(fd: int) -> Iterator[int]:
    """Close a descriptor at the end of the block."""
    try:
        yield fd
    finally:
        os.close(fd)
