"""Small files of the folder store, made safe by the dozen: they are written to the disk once, one behind the
other in a journal, however many come together.

A file that is to survive a loss of power on its own takes two syncs, one for its bytes and one for its name;
here one sync holds for all that came together. The files get their places at once, unsynced: what a loss of
power takes of them is put back from the journal when the store is next opened. When the journal is full, all
that is in it is synced in one go, and it begins anew. What this file does not do: know where a blob lies, or
who waits for it.

Why whatever is found in a journal may be put back: a record says its digest and has its bytes, so it can only
become the blob that they are. An old record that was not overwritten yet is at worst a blob that nobody needs
any more, which the next collection finds.
"""

import contextlib
import errno
import hashlib
import os
import struct
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

from modelkeep.adapters.blobs_disk import disk_errors, try_lock
from modelkeep.core.values import Digest
from modelkeep.ports import BlobInfo, check_small

# Limits of the journal; each with the reason for its size.
JOURNAL_BYTES = 8 * 1024 * 1024
"""Length of the journal's file: hundreds of small files between two syncs of everything, and read in a moment
when a store is opened."""
GROUP_FILES = 500
"""Files written together; each is two pieces of one gathered write, of which the kernel takes 1,024."""
GROUP_BYTES = JOURNAL_BYTES // 2
"""Bytes written together, so that a group fits in an empty journal with its records' heads."""

_HEAD = struct.Struct("<8sI32s")
"""Of a record: its mark, the number of its bytes, and their SHA-256; the bytes follow."""
_MARK = b"mk-small"
_NONE = bytes(_HEAD.size)
_PLAIN = os.O_NOFOLLOW | os.O_CLOEXEC


class Places(Protocol):
    """Where the blobs lie, as the journal needs to know."""

    def place(self, digest: Digest, data: bytes, *, synced: bool) -> None:
        """Put a blob in its place; `synced`: it survives a loss of power there. Raises OSError."""

    def sync_placed(self, digests: Sequence[Digest]) -> None:
        """Have blobs that were placed survive a loss of power. Raises OSError."""


class Journal:
    """The journal of one folder. Of several processes, the first one that asks has it while it runs; the
    others do without. Safe for threads."""

    def __init__(self, folder_fd: int, name: str, places: Places) -> None:
        """Put back what the last process to write here may have lost; unless one writes here now.

        Raises:
            StorageFull, BlobsUnavailable: the disk refused.
        """
        self._folder_fd = folder_fd
        self._name = name
        self._places = places
        self._lock = threading.Lock()
        self._fd = -1
        self._end = 0
        self._placed: list[Digest] = []
        self._given_up = False
        with disk_errors("read the journal of small files"), contextlib.suppress(FileNotFoundError):
            fd = os.open(name, os.O_RDONLY | _PLAIN, dir_fd=folder_fd)
            try:
                if try_lock(fd) and self._restore(fd):
                    self._clear()
            finally:
                os.close(fd)

    def take(self) -> bool:
        """Have the journal from now on, if it is free; whether files can be put there.

        Raises:
            StorageFull, BlobsUnavailable: what is in it cannot be put back.
        """
        with self._lock:
            if self._fd < 0 and not self._given_up:
                self._open()
            return self._fd >= 0 and not self._given_up

    def close(self) -> None:
        """Sync what was placed, and leave the journal empty and free. What cannot be synced stays in it."""
        with self._lock:
            fd, self._fd = self._fd, -1
            if fd >= 0 and not self._given_up:
                with contextlib.suppress(OSError):  # whoever opens the store next puts it right
                    self._settle()
                    self._clear()
            self._given_up = True
            if fd >= 0:
                os.close(fd)

    def put(self, files: Sequence[bytes]) -> tuple[BlobInfo, ...]:
        """See `SmallFiles.put`."""
        check_small(files)
        blobs = tuple(BlobInfo(digest=_digest(data), size_bytes=len(data)) for data in files)
        fresh = {blob.digest: data for blob, data in zip(blobs, files, strict=True)}
        with self._lock, disk_errors("store small files"):
            for group in _groups(fresh):
                self._write(group)
                for digest, data in group:
                    self._places.place(digest, data, synced=False)
                    self._placed.append(digest)
        return blobs

    def _open(self) -> None:
        """Take the journal, if nobody has it and it can be made.

        Raises:
            StorageFull, BlobsUnavailable: what is in it cannot be put back.
        """
        try:
            fd = os.open(self._name, os.O_RDWR | os.O_CREAT | _PLAIN, 0o600, dir_fd=self._folder_fd)
        except OSError:
            return
        try:
            if not try_lock(fd):
                os.close(fd)
                return
            with disk_errors("read the journal of small files"):
                self._restore(fd)
                if os.fstat(fd).st_size != JOURNAL_BYTES:
                    _fill(fd)
                    os.fsync(self._folder_fd)
        except BaseException:
            os.close(fd)
            raise
        self._fd, self._end = fd, 0

    def _write(self, group: Sequence[tuple[Digest, bytes]]) -> None:
        """Add records, and sync them in one go.

        Raises:
            OSError: the disk refused. Nothing is believed of this journal any more: what it has on disk stays
                there for whoever opens it next, and this process does without.
        """
        if self._fd < 0 or self._given_up:
            raise OSError(errno.EBADF, "the journal is closed")
        pieces = []
        for digest, data in group:
            pieces += [_HEAD.pack(_MARK, len(data), bytes.fromhex(digest.removeprefix("sha256:"))), data]
        size = sum(map(len, pieces))
        try:
            if self._end + size > JOURNAL_BYTES:
                self._settle()
            _write_all(self._fd, pieces, self._end)
            os.fdatasync(self._fd)
        except OSError:
            self._given_up = True
            raise
        self._end += size

    def _settle(self) -> None:
        """Sync what was placed since the journal began, and begin it anew."""
        self._places.sync_placed(self._placed)
        self._placed, self._end = [], 0

    def _restore(self, fd: int) -> bool:
        """Put back what a journal has, synced; whether there was anything."""
        found = False
        for digest, data in _records(fd):
            self._places.place(digest, data, synced=True)
            found = True
        return found

    def _clear(self) -> None:
        """Say on the disk that the journal is empty."""
        fd = os.open(self._name, os.O_WRONLY | _PLAIN, dir_fd=self._folder_fd)
        try:
            os.pwrite(fd, _NONE, 0)
            os.fdatasync(fd)
        finally:
            os.close(fd)


def _digest(data: bytes) -> Digest:
    return Digest(f"sha256:{hashlib.sha256(data).hexdigest()}")


def _groups(files: Mapping[Digest, bytes]) -> Iterator[list[tuple[Digest, bytes]]]:
    """Files as they are written together: as many as one call takes, and half a journal at most."""
    group: list[tuple[Digest, bytes]] = []
    size = 0
    for digest, data in files.items():
        if len(group) >= GROUP_FILES or (group and size + len(data) > GROUP_BYTES):
            yield group
            group, size = [], 0
        group.append((digest, data))
        size += len(data)
    if group:
        yield group


def _write_all(fd: int, pieces: list[bytes], offset: int) -> None:
    size = sum(map(len, pieces))
    written = os.pwritev(fd, pieces, offset)
    if written < size:  # a file of fixed length on a disk that has room: hardly ever
        rest = memoryview(b"".join(pieces))[written:]
        while rest:
            written = os.pwrite(fd, rest, offset + size - len(rest))
            rest = rest[written:]


def _fill(fd: int) -> None:
    """Give a journal its whole length in written blocks, so that a sync of it never has to find room."""
    os.ftruncate(fd, 0)
    _write_all(fd, [bytes(JOURNAL_BYTES)], 0)
    os.fsync(fd)


def _records(fd: int) -> Iterator[tuple[Digest, bytes]]:
    """The records of a journal, up to the first that is not whole."""
    with open(fd, "rb", closefd=False) as file:
        file.seek(0)
        whole = memoryview(file.read(JOURNAL_BYTES))
    at = 0
    while at + _HEAD.size <= len(whole):
        mark, size, expected = _HEAD.unpack_from(whole, at)
        data = bytes(whole[at + _HEAD.size : at + _HEAD.size + size])
        if mark != _MARK or len(data) != size or hashlib.sha256(data).digest() != expected:
            return
        yield Digest(f"sha256:{expected.hex()}"), data
        at += _HEAD.size + size
