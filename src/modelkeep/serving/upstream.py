"""A front's side of a version: a connection to each of its workers, the requests on them, and those that wait
for one.

Frames go out as they come, many requests at once; answers find their request by id. When the connection ends,
every request on it is handed back to its owner, who decides what happens to it. No HTTP and no routing here.
"""

import asyncio
import struct
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Protocol, cast

from modelkeep.core.errors import ModelkeepError
from modelkeep.core.routing import VersionKey
from modelkeep.serving import frames
from modelkeep.serving.messages import Door, VersionName

PREFIX = struct.Struct("!ddBB")
"""Before a request's body: deadline and time of sending (both monotonic seconds), door, length of the
endpoint's name; then the name."""
ALONE = 0x80
"""Set in the door of a request that a worker died with: it is computed by itself, so as to take no other
along."""
LENIENT = 0x40
"""Set in the door of a request to a lenient endpoint: what misses the signature is made to fit."""
_JOIN_MAX_BYTES = 64 * 1024
"""Bodies up to this size are joined to their head: one buffer is cheaper than two writes."""

_TRYING = int(frames.Kind.TRYING)


class Waiting(Protocol):
    """A request as the upstream sees it."""

    deadline: float
    door: Door
    endpoint: bytes
    body: bytes
    identity: int
    sent: float
    lenient: bool


class Parked:
    """Requests that wait for a version to be reached, in the order in which they came."""

    __slots__ = ("_calls", "size_bytes")

    def __init__(self) -> None:
        self._calls: deque[Any] = deque()
        self.size_bytes = 0
        """Of their bodies."""

    def __len__(self) -> int:
        return len(self._calls)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._calls)

    def put(self, call: Waiting) -> None:
        """Have one wait behind the others."""
        self._calls.append(call)
        self.size_bytes += len(call.body)

    def take(self) -> Any:
        """The one that came first; it waits no more."""
        call = self._calls.popleft()
        self.size_bytes -= len(call.body)
        return call

    def remove(self, chosen: Callable[[Any], bool]) -> list[Any]:
        """Those that are chosen; they wait no more."""
        gone = [call for call in self._calls if chosen(call)]
        if gone:
            self._calls = deque(call for call in self._calls if not chosen(call))
            self.size_bytes -= sum(len(call.body) for call in gone)
        return gone


class ServedVersion:
    """One version as a front sees it."""

    __slots__ = (
        "bytes_in_flight", "connecting", "failed", "in_flight", "key", "label", "last_sent", "name",
        "ok_head", "parked", "paths", "semver", "sleeps", "told", "upstreams", "version_header", "wanted_at",
        "warm_left",
    )  # fmt: skip

    def __init__(self, name: VersionName) -> None:
        self.name = name
        self.key: VersionKey = name.key
        self.label = label = name.label
        self.semver = name.semver
        self.version_header = b"X-Modelkeep-Version: %b\r\n" % label.encode()
        self.ok_head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n" + self.version_header
        self.upstreams: list[Upstream] = []
        """The connections that new requests may go to."""
        self.paths: dict[str, str] = {}
        """Where there are workers, connected or not, and what each computes on."""
        self.connecting: set[str] = set()
        self.failed = False
        self.sleeps = False
        """Whether it is loaded when somebody asks for it: its requests wait for that."""
        self.wanted_at = 0.0
        """When (monotonic seconds) the supervisor was last told that requests wait for it to be loaded."""
        self.told = 0.0
        """What was last told of `last_sent`."""
        self.parked = Parked()
        self.in_flight = 0
        self.bytes_in_flight = 0
        self.last_sent = 0.0
        self.warm_left = 0

    @property
    def devices(self) -> list[str]:
        """What its workers compute on."""
        return sorted(set(self.paths.values()))

    @property
    def upstream(self) -> "Upstream | None":
        """The connection for the next request: to the worker with the fewest under way; None when there is
        none."""
        upstreams = self.upstreams
        if len(upstreams) == 1:
            return upstreams[0]
        return min(upstreams, key=_under_way, default=None)


class Upstream(asyncio.Protocol):
    """One connection to one worker, at the socket `path`."""

    __slots__ = (
        "_answered", "_leaving", "_lost", "_next", "_reader", "_transport", "path", "pending", "version",
    )  # fmt: skip

    def __init__(
        self,
        version: ServedVersion,
        path: str,
        answered: Callable[[Any, int, bytes], None],
        lost: Callable[["Upstream", list[Any]], None],
    ) -> None:
        self.version = version
        self.path = path
        self.pending: dict[int, Any] = {}
        self._answered = answered
        self._lost = lost
        self._next = 0
        self._leaving = False
        self._reader = frames.FrameReader()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are no subclass of it

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        waiting, self.pending = list(self.pending.values()), {}
        for call in waiting:
            self.version.in_flight -= 1
            self.version.bytes_in_flight -= len(call.body)
        self._lost(self, waiting)

    def send(self, call: Waiting, now: float, *, alone: bool = False) -> None:
        """Send a request to the worker; its answer, or the loss of it, comes back by a call.

        Args:
            alone: have it computed by itself.
        """
        identity = self._next = (self._next + 1) & 0xFFFFFFFF
        call.identity = identity
        call.sent = now
        self.pending[identity] = call
        body, name = call.body, call.endpoint
        length = PREFIX.size + len(name) + len(body)
        door = call.door | ALONE if alone else call.door
        if call.lenient:
            door |= LENIENT
        head = (
            frames.HEADER.pack(length, identity, 1) + PREFIX.pack(call.deadline, now, door, len(name)) + name
        )
        version = self.version
        version.in_flight += 1
        version.bytes_in_flight += len(body)
        version.last_sent = now
        assert self._transport is not None
        if len(body) <= _JOIN_MAX_BYTES:
            self._transport.write(head + body)
        else:
            self._transport.writelines((head, body))

    def cancel(self, call: Waiting) -> None:
        """Say that nobody waits for a request any more. The worker answers it nevertheless: that it was not
        computed, or what came of it."""
        if self._transport is not None:
            self._transport.write(frames.head(call.identity, frames.Kind.CANCEL, 0))

    def drop(self, call: Waiting) -> None:
        """Stop waiting for a request; a late answer to it is ignored."""
        if self.pending.pop(call.identity, None) is not None:
            self.version.in_flight -= 1
            self.version.bytes_in_flight -= len(call.body)

    def data_received(self, data: bytes) -> None:
        try:
            answers = self._reader.feed(data)
        except ModelkeepError:  # a worker that sends garbage is as good as dead
            self.close()
            return
        pending, version = self.pending, self.version
        for identity, kind, payload in answers:
            if kind == _TRYING:
                if identity in pending:
                    pending[identity].tried = True
                continue
            call = pending.pop(identity, None)
            if call is not None:
                version.in_flight -= 1
                version.bytes_in_flight -= len(call.body)
                self._answered(call, kind, payload)
        if self._leaving and not pending:
            self.close()

    def leave(self) -> None:
        """End the connection when what is under way on it is answered: nothing new is sent. Its end is the
        worker's proof of that."""
        self._leaving = True
        if not self.pending:
            self.close()

    def close(self) -> None:
        """End the connection at once."""
        if self._transport is not None:
            self._transport.abort()


def _under_way(upstream: Upstream) -> int:
    return len(upstream.pending)
