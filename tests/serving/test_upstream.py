"""A front's connections to a version's workers: which gets the next request, and what becomes of those under
way."""

from typing import Any

import pytest

from modelkeep.core.routing import VersionKey
from modelkeep.core.values import Digest
from modelkeep.serving import frames
from modelkeep.serving.messages import Door, VersionName
from modelkeep.serving.upstream import ALONE, PREFIX, ServedVersion, Upstream

pytestmark = pytest.mark.req("S2")


class Wire:
    """A transport that keeps what is written."""

    def __init__(self) -> None:
        self.written = b""
        self.aborted = False

    def abort(self) -> None:
        self.aborted = True

    def write(self, data: bytes) -> None:
        self.written += data


class Asked:
    """A request."""

    def __init__(self) -> None:
        self.deadline = 7.0
        self.door = Door.PREDICT
        self.endpoint = b"churn"
        self.body = b"{}"
        self.identity = 0
        self.sent = 0.0
        self.lenient = False
        self.tried = False


class Party:
    """A version with connections, and what came back by them."""

    def __init__(self, workers: int) -> None:
        name = VersionName(
            key=VersionKey("version:1"), digest=Digest("sha256:0"), label="churn:1.0.0", semver="1.0.0"
        )
        self.version = ServedVersion(name)
        self.answers: list[tuple[Any, int, bytes]] = []
        self.lost: list[Any] = []
        self.wires: list[Wire] = []
        for number in range(workers):
            upstream = Upstream(self.version, f"w-{number}", self._answered, self._lost)
            self.wires.append(Wire())
            upstream.connection_made(self.wires[-1])  # type: ignore[arg-type]  # all of a transport that is used
            self.version.upstreams.append(upstream)

    def _answered(self, call: Any, kind: int, payload: bytes) -> None:
        self.answers.append((call, kind, payload))

    def _lost(self, upstream: Upstream, calls: list[Any]) -> None:
        self.lost += calls

    def send(self, *, alone: bool = False) -> tuple[Asked, Upstream]:
        """Send a request where the version says."""
        call, upstream = Asked(), self.version.upstream
        assert upstream is not None
        upstream.send(call, 1.0, alone=alone)
        return call, upstream


def answer(call: Asked, kind: frames.Kind, body: bytes = b"") -> bytes:
    """What a worker says to a request."""
    return frames.pack(call.identity, kind, body)


def test_the_worker_with_the_fewest_under_way_is_next() -> None:
    """Requests spread evenly while none is answered, and go where room was made."""
    party = Party(3)
    sent = [party.send() for _ in range(6)]
    assert [len(upstream.pending) for upstream in party.version.upstreams] == [2, 2, 2]
    assert party.version.in_flight == 6
    call, upstream = sent[4]
    upstream.data_received(answer(call, frames.Kind.ANSWER, b"yes"))
    assert party.answers == [(call, frames.Kind.ANSWER, b"yes")]
    assert party.send()[1] is upstream
    party.version.upstreams.clear()
    assert party.version.upstream is None


def test_what_is_tried_alone_is_known_when_the_worker_dies() -> None:
    """The announcement answers nothing; after it the request is marked, and the others are not."""
    party = Party(1)
    (suspect, upstream), (other, _) = party.send(alone=True), party.send()
    frame = party.wires[0].written[frames.HEADER_BYTES :]
    assert PREFIX.unpack_from(frame) == (7.0, 1.0, Door.PREDICT | ALONE, len(b"churn"))
    upstream.data_received(answer(suspect, frames.Kind.TRYING))
    upstream.data_received(frames.pack(99, frames.Kind.TRYING, b""))
    assert party.answers == []
    upstream.connection_lost(None)
    assert party.lost == [suspect, other]
    assert (suspect.tried, other.tried) == (True, False)
    assert party.version.in_flight == 0


def test_a_cancelled_request_is_under_way_until_the_worker_says_so() -> None:
    """The word goes out under the request's id; whatever comes back is its answer."""
    party = Party(1)
    call, upstream = party.send()
    party.wires[0].written = b""
    upstream.cancel(call)
    assert party.wires[0].written == frames.head(call.identity, frames.Kind.CANCEL, 0)
    assert party.version.in_flight == 1
    upstream.data_received(answer(call, frames.Kind.CANCELLED))
    assert party.answers == [(call, frames.Kind.CANCELLED, b"")]
    assert party.version.in_flight == 0


@pytest.mark.hostile("foreign-models")
@pytest.mark.parametrize(
    "said", [b"\xff" * 64, frames.HEADER.pack(2**32 - 1, 1, 2), b"Traceback (most recent"]
)
def test_a_worker_that_says_garbage_is_as_good_as_dead(said: bytes) -> None:
    """The connection ends at once, and what was under way goes back to be sent to another one."""
    party = Party(1)
    call, upstream = party.send()
    upstream.data_received(said)
    assert party.wires[0].aborted
    upstream.connection_lost(None)
    assert (party.lost, party.answers, party.version.in_flight) == ([call], [], 0)
