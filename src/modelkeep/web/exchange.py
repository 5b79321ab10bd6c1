"""The two directions of one HTTP exchange: a body as it arrives, an answer as it leaves.

Every limit on how fast and how much somebody may send or must take stands here. What the bytes mean is
decided elsewhere.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

from modelkeep.core import codec, errors
from modelkeep.web import problems
from modelkeep.web.problems import Problem

BODY_DEADLINE_S = 30.0
"""A JSON body has to arrive within this time."""
STALL_S = 60.0
"""A stream that brings or takes nothing for so long is cut off; what has arrived stays."""
STREAM_LEAST_BYTES = 64 * 1024
"""What an upload has to bring within `STALL_S`: about 1 KiB a second, so that none is kept open by drops."""
DRAIN_BYTES = 16 * 1024 * 1024
"""An unread body up to this size is read away after an error, so that the connection stays usable."""
LINGER_S = 2.0
"""How long a larger unread body is read away before the connection is closed: a sender who is hung up on at
once would never see the answer."""

WHOLE = "modelkeep.whole"
"""Marks the start of an answer whose body is one message that follows at once: our server sends the two in
one write. Other servers pass over it."""

_Message = MutableMapping[str, Any]
_Lines = list[tuple[bytes, bytes]]

SAFE_HEADERS: _Lines = [
    (b"x-content-type-options", b"nosniff"),
    (b"cache-control", b"no-store"),
    (b"referrer-policy", b"no-referrer"),
    (b"content-security-policy", b"sandbox; default-src 'none'; frame-ancestors 'none'"),
    (b"cross-origin-resource-policy", b"same-origin"),
]
"""With every answer: nothing that this server sends is to be run, framed, cached or read by another site."""


class Body:
    """A request's body as it arrives.

    Attributes:
        announced: its length in bytes, None when it comes in chunks of unknown number.
        ended: all of it has been read.
        gone: the sender has closed the connection.
    """

    __slots__ = ("_receive", "announced", "ended", "gone")

    def __init__(self, headers: dict[bytes, bytes], receive: Callable[[], Awaitable[_Message]]) -> None:
        self._receive = receive
        length = headers.get(b"content-length")
        if length is not None:
            self.announced: int | None = int(length) if length.isdigit() else None
        else:
            self.announced = None if b"transfer-encoding" in headers else 0
        self.ended = self.announced == 0
        self.gone = False

    async def part(self) -> bytes | None:
        """What has arrived next, maybe nothing; None when there is no more, or nobody sends any more."""
        if self.ended or self.gone:
            return None
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self.gone = True
            return None
        self.ended = not message.get("more_body", False)
        part: bytes = message.get("body", b"")
        return part

    async def whole(self) -> bytes:
        """The whole body of a small request.

        Raises:
            BodyTooLarge: larger than a document may be; the rest is not kept.
            RequestTooSlow: it did not arrive in time.
            ConnectionResetError: the sender went away.
        """
        if self.announced is not None and self.announced > codec.JSON_MAX_BYTES:
            raise _too_large()
        parts: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(BODY_DEADLINE_S):
                while (part := await self.part()) is not None:
                    size += len(part)
                    if size > codec.JSON_MAX_BYTES:
                        raise _too_large()
                    parts.append(part)
        except TimeoutError as error:
            raise errors.RequestTooSlow(
                f"The body did not arrive within {BODY_DEADLINE_S:.0f} s; send it again."
            ) from error
        if self.gone:
            raise ConnectionResetError("the sender went away")
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def wait_gone(self) -> None:
        """Return when the caller has closed the connection. The body must have been read."""
        while not self.gone:
            message = await self._receive()
            self.gone = message["type"] == "http.disconnect"

    @property
    def heavy(self) -> bool:
        """Whether so much is unread, or may be, that reading it away is no option."""
        return not self.ended and (self.announced is None or self.announced > DRAIN_BYTES)

    async def drain(self) -> None:
        """Read away what still comes, for a moment."""
        try:
            async with asyncio.timeout(LINGER_S):
                while await self.part() is not None:
                    pass
        except TimeoutError:
            pass


def _too_large() -> errors.BodyTooLarge:
    return errors.BodyTooLarge(
        f"The body has more than {codec.JSON_MAX_BYTES:,} bytes; send less at a time.",
        limit=codec.JSON_MAX_BYTES,
    )


class Answer:
    """An answer as it leaves. `status` is 0 until it has begun."""

    __slots__ = ("_render", "_send", "request_id", "status")

    def __init__(
        self,
        send: Callable[[_Message], Awaitable[None]],
        request_id: str,
        render: Callable[[errors.ModelkeepError, str | None, int], Problem] = problems.render,
    ) -> None:
        """
        Args:
            render: how the caller's language says an error.
        """
        self._send = send
        self._render = render
        self.request_id = request_id
        self.status = 0

    async def whole(
        self,
        status: int,
        payload: bytes,
        *,
        content_type: bytes = b"application/json",
        more: Iterable[tuple[bytes, bytes]] = (),
    ) -> None:
        """One whole answer; `more` are headers of its own."""
        self.status = status
        lines = [
            (b"content-type", content_type),
            (b"content-length", b"%d" % len(payload)),
            (b"x-request-id", self.request_id.encode("latin-1")),
            *more,
            *SAFE_HEADERS,
        ]
        await self._send({"type": "http.response.start", "status": status, "headers": lines, WHOLE: True})
        await self._send({"type": "http.response.body", "body": payload})

    async def nothing(self, status: int) -> None:
        """An answer without a body."""
        self.status = status
        lines = [(b"x-request-id", self.request_id.encode("latin-1")), *SAFE_HEADERS]
        await self._send({"type": "http.response.start", "status": status, "headers": lines})
        await self._send({"type": "http.response.body", "body": b""})

    async def problem(
        self, error: errors.ModelkeepError, body: Body | None = None, *, status: int = 0
    ) -> None:
        """An error in the caller's language. What is still unread of a large body is read for a moment, then
        the connection is closed.

        Args:
            status: in place of the one that the error's family has.
        """
        self.status, headers, payload = self._render(error, self.request_id, status)
        heavy = body is not None and body.heavy
        lines = [
            *headers,
            (b"content-length", b"%d" % len(payload)),
            (b"x-request-id", self.request_id.encode("latin-1")),
            *SAFE_HEADERS,
        ]
        if heavy:
            lines.append((b"connection", b"close"))
        start = {"type": "http.response.start", "status": self.status, "headers": lines, WHOLE: not heavy}
        await self._send(start)
        if heavy:
            assert body is not None
            await self._send({"type": "http.response.body", "body": payload, "more_body": True})
            await body.drain()
            payload = b""
        await self._send({"type": "http.response.body", "body": payload})

    async def begin(self, status: int, lines: _Lines) -> None:
        """Begin an answer whose body follows in pieces."""
        self.status = status
        lines = [*lines, (b"x-request-id", self.request_id.encode("latin-1")), *SAFE_HEADERS]
        await self._send({"type": "http.response.start", "status": status, "headers": lines})

    async def piece(self, data: bytes) -> None:
        """Send a piece of the body.

        Raises:
            ConnectionResetError: the reader takes nothing any more.
        """
        try:
            async with asyncio.timeout(STALL_S):
                await self._send({"type": "http.response.body", "body": data, "more_body": True})
        except TimeoutError as error:
            raise ConnectionResetError("the reader takes nothing any more") from error

    async def end(self) -> None:
        """End an answer that was begun. One that is not ended is cut off, and the reader sees that."""
        await self._send({"type": "http.response.body", "body": b""})
