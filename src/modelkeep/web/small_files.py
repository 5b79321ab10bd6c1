"""Small files on their way to the store, in groups: what comes while one group is written is the next group.

A group costs one sync of the disk, however many files are in it, and nobody waits for others to come. The
thread that writes it hands each file on by itself, to the store's writer as a rule, so that the event loop is
woken once for an upload, when it is done. What may be sent, and what it becomes, is the services' business.
"""

import threading
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from modelkeep.core import errors
from modelkeep.ports import BlobInfo, BlobStore
from modelkeep.store.database import Outcome

GROUP_BYTES = 2 * 1024 * 1024
"""Bytes after which a group is written, so that the first of many need not wait for all of them."""


class _File(NamedTuple):
    data: bytes
    outcome: Outcome
    stored: Callable[[BlobInfo], None]


class SmallFiles:
    """What waits to be written, and the thread that does it; it begins with the first file. Safe for
    threads."""

    def __init__(self, blobs: BlobStore) -> None:
        self._blobs = blobs
        self._waiting: deque[_File] = deque()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closed = False

    def keep(self, data: bytes, outcome: Outcome, stored: Callable[[BlobInfo], None]) -> None:
        """Store a file, and go on with it.

        Args:
            outcome: hears of an error: as `modelkeep.ports.SmallFiles.put`, or what `stored` raises. Its
                result is None when the store has no way in for small files: upload it like others.
            stored: called in the thread, with what the file became, once it survives a loss of power; what
                comes of it is told to `outcome` by whoever it hands the file to.
        """
        with self._changed:
            if self._closed:
                outcome.set_exception(errors.Overloaded("The server is ending; send the file again."))
                return
            if self._thread is None:
                thread = threading.Thread(target=self._work, name="modelkeep-small", daemon=True)
                thread.start()  # where that fails nothing has begun, and the next file tries again
                self._thread = thread
            self._waiting.append(_File(data, outcome, stored))
            self._changed.notify()

    def close(self) -> None:
        """Write what waits, and end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
            thread = self._thread
        if thread is not None:
            thread.join()

    def _work(self) -> None:
        while group := self._next_group():
            self._write(group)

    def _next_group(self) -> list[_File]:
        """What is written next; nothing at the end."""
        group: list[_File] = []
        size = 0
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            while self._waiting and size < GROUP_BYTES:
                group.append(self._waiting.popleft())
                size += len(group[-1].data)
        return group

    def _write(self, group: list[_File]) -> None:
        try:
            small = self._blobs.small
            found = small.put([file.data for file in group]) if small is not None else None
        except BaseException as error:  # noqa: BLE001  (the senders are told; this thread must outlive it)
            for file in group:
                file.outcome.set_exception(error)
            return
        for place, file in enumerate(group):
            if found is None:
                file.outcome.set_result(None)
                continue
            try:
                file.stored(found[place])
            except BaseException as error:  # noqa: BLE001  (as above)
                file.outcome.set_exception(error)
