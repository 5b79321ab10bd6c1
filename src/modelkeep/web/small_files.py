"""Small files on their way to the store, in groups: what comes while one group is written is the next group.

A group costs one way to a thread and one sync of the disk, however many files are in it, and nobody waits for
others to come. What may be sent, and what it becomes, is the services' business.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

from modelkeep.ports import BlobInfo, BlobStore

GROUP_BYTES = 2 * 1024 * 1024
"""Bytes after which a group is written, so that the first of many need not wait for all of them."""

_Stored = Sequence[BlobInfo] | None
_InThread = Callable[[Callable[[], _Stored]], Awaitable[_Stored]]


class SmallFiles:
    """What waits to be written. To be used on the event loop."""

    def __init__(self, blobs: BlobStore, in_thread: _InThread) -> None:
        """
        Args:
            in_thread: runs blocking work beside the event loop.
        """
        self._blobs = blobs
        self._in_thread = in_thread
        self._waiting: deque[tuple[bytes, asyncio.Future[BlobInfo | None]]] = deque()
        self._writing: asyncio.Task[None] | None = None

    async def keep(self, data: bytes) -> BlobInfo | None:
        """Store a file; it survives a loss of power then. None when the store has no way in for small files:
        upload it like others.

        Raises:
            as `modelkeep.ports.SmallFiles.put`.
        """
        done: asyncio.Future[BlobInfo | None] = asyncio.get_running_loop().create_future()
        self._waiting.append((data, done))
        if self._writing is None:
            self._writing = asyncio.ensure_future(self._write())
        return await done

    async def _write(self) -> None:
        try:
            while self._waiting:
                await self._write_group(self._next_group())
        finally:
            self._writing = None

    def _next_group(self) -> list[tuple[bytes, asyncio.Future[BlobInfo | None]]]:
        group, size = [], 0
        while self._waiting and size < GROUP_BYTES:
            group.append(self._waiting.popleft())
            size += len(group[-1][0])
        return group

    async def _write_group(self, group: list[tuple[bytes, asyncio.Future[BlobInfo | None]]]) -> None:
        waiting = [done for _, done in group]
        try:
            stored = await self._in_thread(partial(self._put, [data for data, _ in group]))
        except BaseException as error:
            for done in waiting:
                if not done.done():
                    done.set_exception(error) if isinstance(error, Exception) else done.cancel()
            if not isinstance(error, Exception):
                raise
            return
        for place, done in enumerate(waiting):
            if not done.done():
                done.set_result(stored[place] if stored is not None else None)

    def _put(self, files: list[bytes]) -> _Stored:
        small = self._blobs.small
        return small.put(files) if small is not None else None
