"""Small files: in their places at once, and safe with the commit that names them.

A file that is to survive a loss of power on its own costs two waits for the disk, one for its bytes and one
for its name. Here it costs none: it is put in its place unsynced, and its bytes ride as a row in the commit
that is waited for anyway. When many have come so, all of them are synced in one go and their rows dropped.
Whoever opens the store puts back what still stands in rows: whatever a loss of power took is then there.

Nobody else reads a row: a name is never there without its file. What this file does not do: say what a file
is called, or who may send it.
"""

import hashlib
import itertools
import logging
import secrets
import threading

from modelkeep.core import errors
from modelkeep.core.values import Digest
from modelkeep.ports import BlobStore
from modelkeep.service.act import SYSTEM_CONTEXT, Act, Desk
from modelkeep.store import small_contents
from modelkeep.store.small_contents import SmallContent

# Limits of what stands in rows; each with the reason for its size.
SETTLE_FILES = 500
"""Files that are synced together: so many that each costs next to nothing, so few that they are put back in
a moment."""
SETTLE_BYTES = 8 * 1024 * 1024
"""Bytes that are synced together, for the same reasons."""
CROWDED = 4
"""Times as many may wait while the disk does not keep up. What comes then goes the way of larger files, which
waits for the disk."""
BATCH = 100
"""Rows that are read at once when files are put back: some megabytes."""
NUMBER_BITS = 62
"""Of the number that a process begins to count at: two never meet."""

_log = logging.getLogger("modelkeep.small_files")


class SmallFiles:
    """The small files that came through this process, until they need no rows. Safe for threads."""

    def __init__(self, blobs: BlobStore) -> None:
        self._blobs = blobs
        self._lock = threading.Lock()
        self._waiting: dict[int, tuple[Digest, int]] = {}
        self._bytes = 0
        self._numbers = itertools.count(secrets.randbits(NUMBER_BITS))
        self._settling = False

    def is_open(self) -> bool:
        """Whether a file can come this way now; else send it like others."""
        return self._blobs.small is not None and not self._more_than(CROWDED)

    def keep(self, act: Act, digest: Digest, data: bytes) -> None:
        """Put a file in its place, to be safe with the commit of this act. An act that is undone leaves a
        file that nothing names, for the next collection.

        Raises:
            LimitExceeded: it is not small.
            StorageFull, BlobsUnavailable: the disk refused, or there is no way in for small files any more.
        """
        door = self._blobs.small
        if door is None:
            raise errors.BlobsUnavailable(
                "The disk failed to write files; check it, and start the server again."
            )
        door.place(digest, data)
        with self._lock:
            content = SmallContent(next(self._numbers), digest, data)
            self._waiting[content.id] = digest, len(data)  # also of an act that is undone, which is no harm
            self._bytes += len(data)
        small_contents.add(act.tx, content)

    def claim(self) -> bool:
        """Whether it is time to `settle`; asked again meanwhile, no. Who is told so does it."""
        with self._lock:
            due = self._more_than(1) and not self._settling
            self._settling = self._settling or due
            return due

    def settle(self, desk: Desk) -> None:
        """Sync what has come, and drop its rows: those of files that were in their places before the sync.

        What fails is logged; the rows stay then, for whoever opens the store next.
        """
        try:
            with self._lock:
                settled = dict(self._waiting)
            door = self._blobs.small
            if door is not None and settled:
                door.sync([digest for digest, _ in settled.values()])
                desk.do(SYSTEM_CONTEXT, _drop, list(settled))
                with self._lock:
                    for number in settled:
                        _, size = self._waiting.pop(number, (None, 0))  # whoever settled it too counted it
                        self._bytes -= size
        except errors.Unavailable as problem:
            _log.warning("small_files.not_settled", extra={"error": str(problem)})
        finally:
            self._settling = False

    def put_back(self, desk: Desk) -> None:
        """Put what stands in rows in its place, synced, and drop the rows. To be called before anybody is
        answered.

        A row may be of a file that nothing names by now, or that another server has just put there: it is
        the same file, and at worst the next collection finds it.

        Raises:
            StorageFull, BlobsUnavailable: the disk refused; the rows stay.
        """
        door = self._blobs.small
        if door is None:
            return
        after = -1
        while batch := desk.read(SYSTEM_CONTEXT, _list_after, after):
            door.put_back([(row.digest, row.data) for row in batch if _is_whole(row)])
            desk.do(SYSTEM_CONTEXT, _drop, [row.id for row in batch])
            after = batch[-1].id

    def _more_than(self, times: int) -> bool:
        return len(self._waiting) >= times * SETTLE_FILES or self._bytes >= times * SETTLE_BYTES


def _drop(act: Act, ids: list[int]) -> None:
    small_contents.drop(act.tx, ids)


def _list_after(act: Act, after: int) -> list[SmallContent]:
    return small_contents.list_after(act.tx, after, BATCH)


def _is_whole(row: SmallContent) -> bool:
    """Whether a row has the bytes that its digest says; the database was damaged where it has not."""
    whole = row.digest == f"sha256:{hashlib.sha256(row.data).hexdigest()}"
    if not whole:
        _log.error("small_files.damaged_row", extra={"digest": row.digest})
    return whole
