"""Bytes coming in: uploads that may break off and go on, as many at once as there are connections.

A thread is held only while bytes are written. A sender who trickles has its bytes gathered on the event loop
and written a batch at a time; one who sends fast is written to as it sends, in one go, because the store then
hashes beside the writing. What may be sent, and where it goes, is the services' business.
"""

import asyncio
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator
from functools import partial
from typing import Generic, Protocol, TypeVar

from modelkeep.core import errors
from modelkeep.core.answers import UploadPlan
from modelkeep.web import exchange, problems
from modelkeep.web.dispatch import Dispatcher
from modelkeep.web.exchange import Body
from modelkeep.web.operations import Call

BATCH_BYTES = 1024 * 1024
"""Bytes that are gathered before they are written: large enough that the way to a thread costs nothing."""
FAST_S = 0.05
"""A sender who fills a batch within this time (20 MiB a second) gets a thread for a while."""
BURST_BYTES = 512 * 1024 * 1024
"""Bytes after which a fast sender lets others have the thread for a moment."""
QUEUE_BYTES = 4 * 1024 * 1024
"""Bytes of a fast sender that may wait for the disk, which takes a piece of a megabyte at a time; with more,
it is made to wait."""
WAKE_BYTES = 256 * 1024
"""Bytes of a fast sender for which the thread is woken: with each read of a socket the two would spend their
time on waking each other."""
IDLE_S = 0.02
"""How long a thread waits for a fast sender's next bytes before it leaves."""


class Plan(Protocol):
    """Where bytes go, as the service that keeps them says."""

    @property
    def offset(self) -> int:
        """How many have come."""

    @property
    def present(self) -> bool:
        """No more are needed: what comes is read away."""


P = TypeVar("P", bound=Plan)
Store = Callable[[P, int, Iterable[bytes]], P]
"""Writes bytes from an offset on, in a thread, and says where the upload stands then."""
Keep = Callable[[P, list[bytes]], Awaitable[P | None]]
"""Keeps a whole file that has come in one batch; None: it is to be stored like others."""


async def take_in(
    dispatcher: Dispatcher,
    body: Body,
    plan: P,
    store: Store[P],
    *,
    offset: int = 0,
    finish: Callable[[P], P] | None = None,
    keep: Keep[P] | None = None,
) -> P:
    """Take in a body.

    Args:
        offset: where the sender believes the end of what is stored to be.
        finish: what is done in a thread when everything has come; with the last bytes, where that saves the
            way.
        keep: tried first with a body that is one batch, in place of `store` and `finish`.

    Raises:
        RequestTooSlow: nothing, or next to nothing, came for a minute; what came is kept.
        ConnectionResetError: the sender broke off; what came is kept.
        whatever `store`, `finish` and `keep` raise.
    """
    return await _Intake(dispatcher, store, body, plan, offset, finish).run(keep)


async def upload(call: Call, dispatcher: Dispatcher) -> UploadPlan | None:
    """Take in the bytes of one announced file, from the offset that the caller names.

    Raises:
        OffsetMismatch: the bytes do not begin where the stored ones end; the details say where that is.
        RequestTooSlow: nothing, or next to nothing, came for a minute; what came is kept.
        ConnectionResetError: the sender broke off; what came is kept.
        whatever `Registrations.prepare_upload` and `store_bytes` raise.
    """
    catalog, body = call.house.catalog, call.incoming
    plan = await dispatcher.write(call.context, catalog.prepare_upload, call.path["id"], call.query.path)
    try:
        return await take_in(dispatcher, body, plan, catalog.store_bytes, offset=call.query.offset)
    except errors.DigestMismatch as wrong:
        await call.answer.problem(wrong, body, status=problems.WRONG_BYTES)
        return None


class _Intake(Generic[P]):
    """One upload under way."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        store: Store[P],
        body: Body,
        plan: P,
        offset: int,
        finish: Callable[[P], P] | None,
    ) -> None:
        self._dispatcher = dispatcher
        self._store = store
        self._body = body
        self._plan = plan
        self._offset = offset
        self._finish = finish
        self._loop = asyncio.get_running_loop()
        self._least_by = self._loop.time() + exchange.STALL_S
        self._came = 0

    async def run(self, keep: Keep[P] | None = None) -> P:
        """Take in everything; what the service knows of the upload afterwards."""
        room = self._dispatcher.upload_room
        while True:
            began = self._loop.time()
            batch = await self._batch()
            size = sum(map(len, batch))
            try:
                if keep is not None and self._body.ended and (kept := await keep(self._plan, batch)):
                    return kept
                keep = None
                if not self._plan.present:
                    fast = size >= BATCH_BYTES and self._loop.time() - began < FAST_S
                    await (self._burst(batch) if fast else self._write(batch))
            finally:
                room.give_back(size)
            if self._body.gone:
                raise ConnectionResetError("the sender broke off")
            if self._body.ended:
                if self._finish is not None:
                    self._moved(await self._dispatcher.in_streams(partial(self._finish, self._plan)))
                return self._plan

    async def _batch(self) -> list[bytes]:
        """What comes until it is enough, or until all senders together hold enough."""
        room = self._dispatcher.upload_room
        parts: list[bytes] = []
        size = 0
        try:
            while size < BATCH_BYTES and not (parts and room.crowded):
                part = await self._part()
                if part is None:
                    break
                if part:
                    parts.append(part)
                    size += len(part)
                    room.take(len(part))
        except errors.RequestTooSlow:
            try:
                if not self._plan.present:
                    await self._write(parts)
            finally:
                room.give_back(size)
            raise
        except BaseException:
            room.give_back(size)
            raise
        return parts

    async def _part(self) -> bytes | None:
        """The next part. Raises RequestTooSlow when too little came for too long."""
        try:
            async with asyncio.timeout_at(self._least_by):
                part = await self._body.part()
        except TimeoutError as error:
            raise errors.RequestTooSlow(
                f"Less than {exchange.STREAM_LEAST_BYTES:,} bytes came within {exchange.STALL_S:.0f} s; "
                "go on from where the upload stands.",
                offset=self._offset,
            ) from error
        self._came += len(part or b"")
        if self._came >= exchange.STREAM_LEAST_BYTES:
            self._came = 0
            self._least_by = self._loop.time() + exchange.STALL_S
        return part

    async def _write(self, batch: list[bytes]) -> None:
        finish = self._finish if self._body.ended else None
        if finish is not None:
            self._finish = None
        plan, offset = self._plan, self._offset

        def write() -> P:
            stored = self._store(plan, offset, batch)
            return stored if finish is None else finish(stored)

        self._moved(await self._dispatcher.in_streams(write))

    async def _burst(self, first: list[bytes]) -> None:
        """Have a thread write what comes while it comes fast."""
        pipe = _Pipe(self._loop, first)
        storing = asyncio.ensure_future(
            self._dispatcher.in_streams(partial(self._store, self._plan, self._offset, pipe))
        )
        storing.add_done_callback(lambda _: pipe.close())
        left: list[bytes] = []
        taken = 0
        try:
            while taken < BURST_BYTES and not pipe.closed:
                part = await self._part()
                if part is None:
                    break
                if part and not await pipe.put(part):
                    left = [part]
                    break
                taken += len(part)
        finally:
            pipe.end()
            self._moved(await asyncio.shield(storing))
        if left:
            await self._write(left)

    def _moved(self, plan: P) -> None:
        self._plan = plan
        self._offset = plan.offset


class _Pipe:
    """Bytes on their way from the event loop to the thread that writes them; bounded, and left by the thread
    when nothing comes for a moment.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, first: list[bytes]) -> None:
        self._loop = loop
        self._waiting = deque(first)
        self._size = sum(map(len, first))
        self._ended = False
        self._changed = threading.Condition()
        self._room = asyncio.Event()
        self.closed = False

    async def put(self, part: bytes) -> bool:
        """Hand a part over, when there is room; False when the thread has left and did not take it."""
        with self._changed:
            if self.closed:
                return False
            self._waiting.append(part)
            self._size += len(part)
            full = self._size >= QUEUE_BYTES
            if full:
                self._room.clear()
            if self._size >= WAKE_BYTES:
                self._changed.notify()
        if full:
            await self._room.wait()
        return True

    def end(self) -> None:
        """No more comes."""
        with self._changed:
            self._ended = True
            self._changed.notify()

    def close(self) -> None:
        """The thread takes nothing any more; called on the event loop."""
        self.closed = True
        self._room.set()

    def __iter__(self) -> Iterator[bytes]:
        """What the thread takes."""
        while True:
            with self._changed:
                if self._size < WAKE_BYTES and not self._ended:
                    self._changed.wait(IDLE_S)
                if not self._waiting:
                    self.closed = True
                    return
                full = self._size >= QUEUE_BYTES
                parts, self._waiting, self._size = self._waiting, deque(), 0
            if full:
                self._loop.call_soon_threadsafe(self._room.set)
            yield from parts
