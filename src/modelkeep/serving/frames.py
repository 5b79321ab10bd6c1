"""Frames between the gateway's processes: `[u32 length][u32 id][u8 kind][payload]` over a stream socket.

One connection carries many requests at once; the id pairs an answer with its request. A frame that claims
more than the cap ends the connection, because nothing after it can be trusted. What a payload means is not
known here.
"""

import struct
from enum import IntEnum

from modelkeep.core import errors
from modelkeep.serving.options import FRAME_MAX_BYTES

HEADER = struct.Struct("!IIB")
HEADER_BYTES = HEADER.size


class Kind(IntEnum):
    """What a frame is. All but the first two and CANCEL are the ways a worker answers a request."""

    MESSAGE = 0
    REQUEST = 1
    ANSWER = 2
    REFUSED = 3
    """The caller's own fault: 4xx."""
    FAILED = 4
    """The version's fault: it raised."""
    VIOLATION = 5
    """The version's fault: its output breaks its own signature."""
    EXPIRED = 6
    """Nobody's: the deadline passed while the request was waiting its turn."""
    CANCEL = 7
    """To a worker: nobody waits for the answer to the request with this id any more."""
    CANCELLED = 8
    """It was not computed, because nobody waited for it any more."""
    ANSWER_BINARY = 9
    """An answer with bytes after its JSON; before it stands the JSON's length."""
    TRYING = 10
    """No answer: this request, which a worker died with, is being computed by itself now."""


_KINDS = frozenset(int(kind) for kind in Kind)


def head(identity: int, kind: int, length: int) -> bytes:
    """The nine bytes before a payload of `length` bytes."""
    return HEADER.pack(length, identity, kind)


def pack(identity: int, kind: int, payload: bytes) -> bytes:
    """A whole frame.

    Raises:
        LimitExceeded: the payload is larger than any reader would accept.
    """
    if len(payload) > FRAME_MAX_BYTES:
        raise errors.LimitExceeded(f"A frame carries at most {FRAME_MAX_BYTES:,} bytes; send less at a time.")
    return HEADER.pack(len(payload), identity, kind) + payload


class FrameReader:
    """Turns the bytes of a stream into frames, however they were cut on their way."""

    __slots__ = ("_buffer", "_maximum")

    def __init__(self, maximum: int = FRAME_MAX_BYTES) -> None:
        self._buffer = bytearray()
        self._maximum = maximum

    def feed(self, data: bytes) -> list[tuple[int, int, bytes]]:
        """The frames that are complete now, as (id, kind, payload).

        Raises:
            LimitExceeded: a frame claims more than the cap.
            Invalid: a kind that does not exist; the stream is out of step.
        """
        if self._buffer:
            self._buffer += data
            if len(self._buffer) < HEADER_BYTES:
                return []
            length = HEADER.unpack_from(self._buffer)[0]
            if length <= self._maximum and len(self._buffer) < HEADER_BYTES + length:
                return []
            data = bytes(self._buffer)
            self._buffer.clear()
        frames: list[tuple[int, int, bytes]] = []
        at, end = 0, len(data)
        while end - at >= HEADER_BYTES:
            length, identity, kind = HEADER.unpack_from(data, at)
            if length > self._maximum:
                raise errors.LimitExceeded(
                    f"A frame claims {length:,} bytes; at most {self._maximum:,} are accepted."
                )
            if kind not in _KINDS:
                raise errors.Invalid(f"A frame has the unknown kind {kind}; the stream is out of step.")
            stop = at + HEADER_BYTES + length
            if stop > end:
                break
            frames.append((identity, kind, data[at + HEADER_BYTES : stop]))
            at = stop
        if at < end:
            self._buffer += data[at:]
        return frames
