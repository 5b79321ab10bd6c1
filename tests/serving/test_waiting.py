"""Requests for a version that sleeps: who waits, for how long, and who is told that it is of no use."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelkeep.core.routing import Epoch, Loading, Role, Route, VersionKey
from modelkeep.core.values import Digest
from modelkeep.serving import frames
from modelkeep.serving.answers import Answers
from modelkeep.serving.dispatch import WANT_AGAIN_S, Call, Dispatch
from modelkeep.serving.http import Request
from modelkeep.serving.messages import Door, VersionName
from modelkeep.serving.options import GatewayOptions
from modelkeep.serving.router import Target
from modelkeep.serving.tap import Tap
from modelkeep.serving.upstream import Parked, ServedVersion, Upstream
from tests.serving.test_upstream import Asked, Party, answer

pytestmark = pytest.mark.req("S2")

KEY = VersionKey("version:1")
FAR = 1e12
"""Long after the end of every test, on any clock."""


class Connection:
    """A caller's connection that keeps what it is answered."""

    def __init__(self) -> None:
        self.status = 0
        self.head = b""

    def answer(self, head: bytes, body: bytes) -> None:
        self.status, self.head = int(head.split()[1]), head


class Sleeping:
    """A version that sleeps, and the front's dispatch before it."""

    def __init__(self, tmp_path: Any) -> None:
        name = VersionName(key=KEY, digest=Digest("sha256:0"), label="m:1.0.0", semver="1.0.0")
        self.version = ServedVersion(name)
        self.version.sleeps = True
        route = Route(endpoint="e", epoch=Epoch(1, 0), stable=KEY, load=Loading.ON_DEMAND)
        self.target = Target(route, {KEY: self.version}, None)
        self.wanted: list[ServedVersion] = []
        answers = Answers()
        options = GatewayOptions(data=tmp_path, queue_max=3, queue_max_bytes=100)
        self.dispatch = Dispatch(options, answers, Tap(answers), self.wanted.append)

    def ask(
        self, *, role: Role | None = Role.STABLE, body: bytes = b"{}", expires: float = FAR
    ) -> Connection:
        """Send a request, and return where its answer will be."""
        request, connection = Request(), Connection()
        request.body = body
        call = Call(connection, request, Door.PREDICT, self.target)  # type: ignore[arg-type]  # all that is used
        call.request_id, call.role, call.expires = b"r", role, expires
        self.target.tally.open += 1
        self.dispatch.send(call, 0.0)
        return connection


@pytest.fixture
def sleeping(tmp_path: Any) -> Sleeping:
    """A version that sleeps, of which nobody has asked anything."""
    return Sleeping(tmp_path)


def test_the_first_who_ask_wait_and_the_version_is_wanted_once(sleeping: Sleeping) -> None:
    """Who asks for the version by its number waits too; beyond the queue's bound one has to come again."""
    waiting = [sleeping.ask(), sleeping.ask(role=None), sleeping.ask()]
    assert [connection.status for connection in waiting] == [0, 0, 0]
    assert sleeping.wanted == [sleeping.version]
    refused = sleeping.ask()
    assert refused.status == 503
    assert b"Retry-After: 1\r\n" in refused.head


def test_the_queue_is_bounded_in_bytes_too(sleeping: Sleeping) -> None:
    """Large bodies fill it before their number does."""
    assert sleeping.ask(body=b"x" * 90).status == 0
    assert sleeping.ask(body=b"x" * 20).status == 503
    assert sleeping.ask(body=b"x" * 10).status == 0


def test_who_has_less_time_is_answered_first_however_long_others_wait(sleeping: Sleeping) -> None:
    """Each waits within its own deadline: then it is told to come again, and the others wait on."""
    patient, hurried = sleeping.ask(), sleeping.ask(expires=5.0)
    sleeping.dispatch.sweep(sleeping.version, 6.0)
    assert (patient.status, hurried.status) == (0, 503)
    assert len(sleeping.version.parked) == 1


def test_nobody_waits_for_what_has_just_failed(sleeping: Sleeping) -> None:
    """For a moment it is refused at once; the first who asks after that has it tried again."""
    version = sleeping.version
    sleeping.ask()
    version.parked.remove(lambda _: True)
    version.failed = True
    assert sleeping.ask().status == 503
    assert len(sleeping.wanted) == 1
    version.wanted_at -= WANT_AGAIN_S
    assert sleeping.ask().status == 0
    assert len(sleeping.wanted) == 2


def test_a_connection_that_is_left_ends_with_its_last_answer() -> None:
    """Its worker knows by that end that nothing more can come."""
    party = Party(2)
    call, upstream = party.send()
    closed: list[Upstream] = []
    for wire, each in zip(party.wires, party.version.upstreams, strict=True):
        wire.abort = lambda each=each: closed.append(each)  # type: ignore[attr-defined]
    for each in party.version.upstreams:
        each.leave()
    assert closed == [each for each in party.version.upstreams if each is not upstream]
    upstream.data_received(answer(call, frames.Kind.ANSWER, b"yes"))
    assert closed[-1] is upstream


@given(bodies=st.lists(st.binary(max_size=8), max_size=12), gone=st.sets(st.integers(0, 11)))
def test_what_waits_is_counted_in_bytes(bodies: list[bytes], gone: set[int]) -> None:
    """Whoever comes and goes in whatever order: the size is that of those that wait, in their order."""
    parked, calls = Parked(), []
    for body in bodies:
        call = Asked()
        call.body = body
        calls.append(call)
        parked.put(call)
    leaving = [call for number, call in enumerate(calls) if number in gone]
    assert parked.remove(lambda call: call in leaving) == leaving
    left = [call for call in calls if call not in leaving]
    assert list(parked) == left
    assert parked.size_bytes == sum(len(call.body) for call in left)
    while parked:
        assert parked.take() is left.pop(0)
    assert parked.size_bytes == 0
