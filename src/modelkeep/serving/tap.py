"""A front's end of the channel to the recorder: a record goes out where there is room, else it is counted.

Nothing here ever waits: neither a slow disk behind the recorder nor a recorder that is gone may cost a caller
anything. Feedback alone is answered; a sender whose feedback the recorder could not confirm is told to send
it again, which does no harm. What is done with records is not known here.
"""

import asyncio
import time
from collections.abc import Callable
from typing import cast

import msgspec

from modelkeep.core import codec
from modelkeep.core.errors import ModelkeepError, Unavailable
from modelkeep.core.routing import WHOLE_PPM, bucket
from modelkeep.serving import frames, records
from modelkeep.serving.answers import Answered, Answers

BUFFER_MAX_BYTES = 8 * 1024 * 1024
"""Records that wait for the recorder, in memory of each front: seconds of full load."""
GATHER_S = 0.02
"""Records leave together after this time: one write for many costs a request next to nothing."""
GATHER_MAX_BYTES = 256 * 1024
"""Or when they have come to this much."""
FEEDBACK_MAX = 256
"""Senders of feedback that wait for an answer at a time."""
FEEDBACK_S = 5.0
"""For the recorder to have feedback on the disk."""


def sampled(purpose: str, request_id: bytes, ppm: int) -> bool:
    """Whether a request belongs to a share: the same for the same id, on every front and machine."""
    return ppm >= WHOLE_PPM or (ppm > 0 and bucket(purpose, request_id) < ppm)


class Tap:
    """One front's channel. `lost` counts records that found no room, by endpoint, since it was last taken."""

    def __init__(self, answers: Answers) -> None:
        self.lost: dict[str, int] = {}
        self._answers = answers
        self._transport: asyncio.Transport | None = None
        self._path: str | None = None
        self._connecting = False
        self._gathered: list[bytes] = []
        self._gathered_bytes = 0
        self.there = False
        """Whether there is a recorder, be it one that is just being started again."""
        self._waiting: dict[int, tuple[Answered, bytes, float]] = {}
        self._number = 0

    def point(self, path: str | None) -> None:
        """The recorder is to be reached at this socket from now on; None: there is none."""
        self._path = path
        self.there |= path is not None
        if path is not None and not self._connecting and self._transport is None:
            self._connecting = True
            asyncio.get_running_loop().create_task(self._connect())

    async def _connect(self) -> None:
        try:
            while self._path is not None and self._transport is None:
                try:
                    await asyncio.get_running_loop().create_unix_connection(
                        lambda: _Channel(self._connected, self._kept, self._lost), self._path
                    )
                except OSError:
                    await asyncio.sleep(0.1)
        finally:
            self._connecting = False

    def _connected(self, transport: asyncio.Transport) -> None:
        transport.set_write_buffer_limits(high=2 * BUFFER_MAX_BYTES)
        self._transport = transport

    def _lost(self) -> None:
        self._transport = None
        self._gathered.clear()
        self._gathered_bytes = 0
        waiting, self._waiting = self._waiting, {}
        for connection, request_id, _ in waiting.values():
            self._unconfirmed(connection, request_id)
        self.point(self._path)

    @property
    def empty(self) -> bool:
        """Whether everything has left for the recorder."""
        transport = self._transport
        return transport is None or not (self._gathered_bytes or transport.get_write_buffer_size())

    def put(self, endpoint: str, record: records.ToRecorder) -> bool:
        """Send a record if there is room. Returns whether there was."""
        transport = self._transport
        if transport is not None and transport.get_write_buffer_size() < BUFFER_MAX_BYTES:
            try:
                frame = records.pack(record)
            except ModelkeepError:  # a body and an answer that do not fit one frame together
                pass
            else:
                if not self._gathered:
                    asyncio.get_running_loop().call_later(GATHER_S, self._flush)
                self._gathered.append(frame)
                self._gathered_bytes += len(frame)
                if self._gathered_bytes >= GATHER_MAX_BYTES:
                    self._flush()
                return True
        self.lost[endpoint] = self.lost.get(endpoint, 0) + 1
        return False

    def _flush(self) -> None:
        """Send what was gathered."""
        if self._transport is not None and self._gathered:
            self._transport.write(b"".join(self._gathered))
        self._gathered.clear()
        self._gathered_bytes = 0

    def feedback(self, connection: Answered, endpoint: str, body: bytes, request_id: bytes) -> None:
        """Hand feedback to the recorder, and answer its sender when it is kept."""
        self._number += 1
        record = records.Feedback(self._number, endpoint, body)
        if len(self._waiting) >= FEEDBACK_MAX or not self.put(endpoint, record):
            self._unconfirmed(connection, request_id)
            return
        self._waiting[self._number] = (connection, request_id, time.monotonic() + FEEDBACK_S)

    def _unconfirmed(self, connection: Answered, request_id: bytes) -> None:
        detail = "The feedback could not be kept just now; send it again, twice does no harm."
        self._answers.problem(connection, 503, Unavailable.code, detail, request_id)

    def _kept(self, said: records.Kept) -> None:
        waiting = self._waiting.pop(said.number, None)
        if waiting is None:
            return
        connection, request_id, _ = waiting
        document = codec.decode(said.body, dict)
        if said.status == 200:
            self._answers.json(connection, 200, document, request_id)
        else:
            details = {key: document[key] for key in document if key not in ("code", "detail")}
            code, detail = str(document["code"]), str(document["detail"])
            self._answers.problem(connection, said.status, code, detail, request_id, b"", details)

    def sweep(self, now: float) -> None:
        """Give up on confirmations that do not come."""
        for number, (connection, request_id, until) in list(self._waiting.items()):
            if now > until:
                del self._waiting[number]
                self._unconfirmed(connection, request_id)


class _Channel(asyncio.Protocol):
    """The connection itself."""

    def __init__(
        self,
        connected: Callable[[asyncio.Transport], None],
        kept: Callable[[records.Kept], None],
        lost: Callable[[], None],
    ) -> None:
        self._on_connected, self._on_kept, self._on_lost = connected, kept, lost
        self._reader = frames.FrameReader()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are no subclass of it
        self._on_connected(self._transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._on_lost()

    def data_received(self, data: bytes) -> None:
        try:
            for _, _, payload in self._reader.feed(data):
                self._on_kept(records.kept(payload))
        except (ModelkeepError, msgspec.MsgspecError):  # a recorder that speaks nonsense is as good as gone
            if self._transport is not None:
                self._transport.abort()
