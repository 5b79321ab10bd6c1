"""What fronts and the recorder say to each other over their channel. Shapes only.

What is taken down goes one way and is never waited for; feedback is answered, because its sender wants to
know that it is kept.
"""

from msgspec import Struct, msgpack

from modelkeep.core.routing import VersionKey
from modelkeep.serving import frames


class Reply(Struct, frozen=True, array_like=True):
    """What one version answered to one request. `latency_ms` counts from the request's arrival, or for a
    shadow from when the copy was sent; `body` is empty where the status is an error's."""

    version: VersionKey
    status: int
    latency_ms: float
    body: bytes


class Logged(Struct, frozen=True, array_like=True, tag=1):
    """One answered request for the prediction log. `at` is in Unix seconds; `weight_ppm` the share that the
    side had when it was chosen (None where nobody chose)."""

    endpoint: str
    rollout: str | None
    request_id: str
    side: str
    weight_ppm: int | None
    at: float
    door: int
    body: bytes
    reply: Reply


class Pair(Struct, frozen=True, array_like=True, tag=2):
    """One request that the stable version answered and of which the shadow version got a copy; `slow_ms` as
    in the route. Both sides' times are those of the version alone. `request_id` is what a label names it
    by."""

    endpoint: str
    rollout: str | None
    term: int
    seq: int
    candidate_ppm: int
    slow_ms: float
    door: int
    stable: Reply
    shadow: Reply
    request_id: str = ""


class Feedback(Struct, frozen=True, array_like=True, tag=3):
    """The body of a feedback request, to be answered under the same number."""

    number: int
    endpoint: str
    body: bytes


class Kept(Struct, frozen=True, array_like=True, tag=4):
    """The answer to feedback: a status, and a document or a problem's `code` and `detail`."""

    number: int
    status: int
    body: bytes


class Predicted(Struct, frozen=True, array_like=True, tag=5):
    """An answer of a rollout that is judged by what it predicted: at which place of which route, for which
    caller (the 64 bits that stand for one)."""

    endpoint: str
    rollout: str
    request_id: str
    version: VersionKey
    term: int
    seq: int
    candidate_ppm: int
    place: int
    caller: int
    at: float
    door: int
    body: bytes
    others_ppm: tuple[int, ...] = ()
    aside_ppm: int = 0


ToRecorder = Logged | Pair | Feedback | Predicted

_encoder = msgpack.Encoder()
_to_recorder: msgpack.Decoder[ToRecorder] = msgpack.Decoder(ToRecorder)
_kept = msgpack.Decoder(Kept)


def pack(record: ToRecorder | Kept) -> bytes:
    """A record as a frame.

    Raises:
        LimitExceeded: larger than any reader would accept.
    """
    return frames.pack(0, frames.Kind.MESSAGE, _encoder.encode(record))


def to_recorder(payload: bytes) -> ToRecorder:
    """What a front said. Raises msgspec.MsgspecError."""
    return _to_recorder.decode(payload)


def kept(payload: bytes) -> Kept:
    """What the recorder answered. Raises msgspec.MsgspecError."""
    return _kept.decode(payload)
