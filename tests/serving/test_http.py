"""HTTP at the front door, over raw sockets: what two readers could understand differently is refused, what
would hold memory or wait for nothing is ended, and what is good is answered in order."""

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from modelkeep.serving.answers import Answers
from modelkeep.serving.http import HttpConnection, Request
from modelkeep.serving.options import HEAD_MAX_BYTES, PIPELINE_MAX, GatewayOptions
from modelkeep.serving.processes import new_loop
from tests.serving.control_plane import until

pytestmark = pytest.mark.network

OPTIONS = GatewayOptions(
    data="/unused",  # type: ignore[arg-type]  # no file is touched here
    body_max_bytes=1000,
    connections_max=20,
)
HASTY = msgspec.structs.replace(OPTIONS, receive_deadline_s=0.6, idle_timeout_s=0.6, write_timeout_s=0.6)
"""For tests of these very limits; whoever asks otherwise may be slow."""


class Echo:
    """An application that answers with what it got; `/slow` answers later and `/big` with much."""

    def __init__(self, options: GatewayOptions) -> None:
        self.options = options
        self.answers = Answers()
        self.answers.date = b"Thu, 01 Jan 1970 00:00:00 GMT"
        self.draining = False
        self.connections: set[HttpConnection] = set()
        self.handled = 0
        self.left = 0

    def opened(self, connection: HttpConnection) -> bool:
        if len(self.connections) >= self.options.connections_max:
            return False
        self.connections.add(connection)
        return True

    def closed(self, connection: HttpConnection) -> None:
        self.connections.discard(connection)

    def leaving(self, connection: HttpConnection) -> None:
        self.left += 1

    def handle(self, connection: HttpConnection, request: Request) -> None:
        self.handled += 1
        body = request.method + b" " + request.path + b" " + request.body
        if request.path == b"/big":
            body = b"x" * 4_000_000
        head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n" % len(body)
        if request.path == b"/slow":
            asyncio.get_running_loop().call_later(0.2, connection.answer, head, body)
        elif request.path == b"/slower":
            asyncio.get_running_loop().call_later(5.0, connection.answer, head, body)
        else:
            connection.answer(head, body)


class Server:
    """An echo server in a thread."""

    def __init__(self, options: GatewayOptions) -> None:
        self.app = Echo(options)
        self.port = 0
        self._started = threading.Event()
        self._stop: asyncio.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        with new_loop() as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        loop = self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        server = await loop.create_server(lambda: HttpConnection(self.app), "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._started.set()
        while not self._stop.is_set():
            for connection in list(self.app.connections):
                connection.sweep(time.monotonic())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.05):
                    await self._stop.wait()
        server.close()
        for connection in list(self.app.connections):
            assert connection._transport is not None
            connection._transport.abort()
        await asyncio.sleep(0.01)

    def __enter__(self) -> "Server":
        self._thread.start()
        assert self._started.wait(60)
        return self

    def __exit__(self, *_: Any) -> None:
        assert self._loop is not None
        assert self._stop is not None
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    @contextlib.contextmanager
    def connect(self) -> Iterator[socket.socket]:
        with socket.create_connection(("127.0.0.1", self.port), timeout=60) as connection:
            yield connection

    def exchange(self, data: bytes) -> bytes:
        """Send, and read until the server closes or is silent for a moment."""
        with self.connect() as connection:
            connection.sendall(data)
            return read(connection)


def read(connection: socket.socket, quiet_s: float = 0.25) -> bytes:
    """Everything until the end, or until nothing comes for a moment after something did."""
    connection.settimeout(30)
    got = bytearray()
    with contextlib.suppress(TimeoutError, ConnectionResetError):
        while chunk := connection.recv(65536):
            got += chunk
            connection.settimeout(quiet_s)
    return bytes(got)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """One server for all tests that leave it as it was."""
    with Server(OPTIONS) as running:
        yield running


@pytest.fixture(scope="module")
def hasty() -> Iterator[Server]:
    """One that waits for nobody."""
    with Server(HASTY) as running:
        yield running


def post(body: bytes = b"hi", *headers: bytes, path: bytes = b"/x", length: bool = True) -> bytes:
    """A request with a body."""
    lines = [b"POST " + path + b" HTTP/1.1", b"Host: x", *headers]
    if length:
        lines.append(b"Content-Length: %d" % len(body))
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


GOOD = [
    (post(), b"POST /x hi"),
    (b"GET /x?y=1 HTTP/1.1\r\nhost: x\r\n\r\n", b"GET /x?y=1 "),
    (b"GET /x HTTP/1.0\r\n\r\n", b"GET /x "),
    (
        post(
            b"3\r\nabc\r\n2;ext=1\r\nde\r\n0\r\nTrailer: x\r\n\r\n",
            b"Transfer-Encoding: chunked",
            length=False,
        ),
        b"POST /x abcde",
    ),
    (post(b"hi", b"Accept: a", b"Accept: b"), b"POST /x hi"),
    (post(b"", b"Connection: keep-alive"), b"POST /x "),
    (post(b"x" * 1000), b"x" * 1000),
]


@pytest.mark.req("S1")
@pytest.mark.parametrize(("data", "body"), GOOD)
def test_good_requests_are_answered_however_they_are_cut(server: Server, data: bytes, body: bytes) -> None:
    """Whole, in halves and byte by byte: the same answer."""
    assert server.exchange(data).endswith(body)
    with server.connect() as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for at in range(0, len(data), max(1, len(data) // 40)):
            connection.sendall(data[at : at + max(1, len(data) // 40)])
        assert read(connection).endswith(body)


CHUNKED = b"Transfer-Encoding: chunked"
BAD = {
    "length and chunks": (post(b"0\r\n\r\n", CHUNKED, b"Content-Length: 5", length=False), 400),
    "chunks and length": (post(b"0\r\n\r\n", b"Content-Length: 5", CHUNKED, length=False), 400),
    "two lengths": (post(b"hi", b"Content-Length: 3"), 400),
    "two equal lengths": (post(b"hi", b"Content-Length: 2"), 400),
    "length list": (post(b"hi", b"Content-Length: 2, 2", length=False), 400),
    "signed length": (post(b"hi", b"Content-Length: +2", length=False), 400),
    "negative length": (post(b"hi", b"Content-Length: -2", length=False), 400),
    "hex length": (post(b"hi", b"Content-Length: 0x2", length=False), 400),
    "huge length": (post(b"hi", b"Content-Length: " + b"9" * 30, length=False), 400),
    "two chunkeds": (post(b"0\r\n\r\n", CHUNKED, CHUNKED, length=False), 400),
    "odd coding": (post(b"0\r\n\r\n", b"Transfer-Encoding: xchunked", length=False), (400, 501)),
    "coding list": (post(b"0\r\n\r\n", b"Transfer-Encoding: gzip, chunked", length=False), 501),
    "coding with a tab": (post(b"0\r\n\r\n", b"Transfer-Encoding:\x0bchunked", length=False), 400),
    "space before colon": (post(b"hi", b"X : y"), 400),
    "chunked under 1.0": (
        b"POST / HTTP/1.0\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        (400, 501),
    ),
    "bad chunk size": (post(b"zz\r\nab\r\n0\r\n\r\n", CHUNKED, length=False), 400),
    "signed chunk size": (post(b"+2\r\nab\r\n0\r\n\r\n", CHUNKED, length=False), 400),
    "chunk overflow": (post(b"f" * 20 + b"\r\nab\r\n0\r\n\r\n", CHUNKED, length=False), (400, 413)),
    "bare LF chunk": (post(b"2\nab\r\n0\r\n\r\n", CHUNKED, length=False), 400),
    "chunk too short": (post(b"1\r\nab\r\n0\r\n\r\n", CHUNKED, length=False), 400),
    "bare LF": (b"GET / HTTP/1.1\nHost: x\n\n", 400),
    "bare CR": (b"GET / HTTP/1.1\rHost: x\r\r", 400),
    "folded header": (b"GET / HTTP/1.1\r\nHost: x\r\nA: b\r\n c\r\n\r\n", 400),
    "NUL in header": (post(b"hi", b"A: b\x00c"), 400),
    "CR in header": (post(b"hi", b"A: b\rc"), 400),
    "no colon": (post(b"hi", b"nonsense"), 400),
    "empty name": (post(b"hi", b": x"), 400),
    "no host": (b"GET / HTTP/1.1\r\n\r\n", 400),
    "two hosts": (b"GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", 400),
    "http 2": (b"GET / HTTP/2.0\r\nHost: x\r\n\r\n", (400, 505)),
    "http 2 preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", (400, 505)),
    "http 0.9": (b"GET /\r\n\r\n", (400, 505)),
    "http 3.7": (b"GET / HTTP/3.7\r\nHost: x\r\n\r\n", (400, 505)),
    "upgrade": (b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n", 400),
    "connect": (b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "tls": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 50, 400),
    "compressed": (post(b"hi", b"Content-Encoding: gzip"), 415),
    "odd expectation": (post(b"hi", b"Expect: a-miracle"), 417),
    "long url": (b"GET /" + b"a" * 3000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 414),
    "many headers": (post(b"hi", *(b"H%d: x" % n for n in range(120))), 431),
    "long header": (post(b"hi", b"A: " + b"b" * (HEAD_MAX_BYTES + 1)), 431),
    "body too long": (post(b"x" * 1001), 413),
    "chunks too long": (
        post(b"3e8\r\n" + b"x" * 1000 + b"\r\n1\r\nx\r\n0\r\n\r\n", CHUNKED, length=False),
        413,
    ),
    "two types": (post(b"hi", b"Content-Type: a/b", b"Content-Type: c/d"), 400),
}


@pytest.mark.hostile("split-requests")
@pytest.mark.req("S1")
@pytest.mark.parametrize("name", BAD)
def test_what_could_be_read_two_ways_is_refused(server: Server, name: str) -> None:
    """One error as problem+json, the connection closed, and whatever follows it never taken for a request."""
    data, status = BAD[name]
    handled = server.app.handled
    got = server.exchange(data + b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n")
    statuses = status if isinstance(status, tuple) else (status,)
    head, _, body = got.partition(b"\r\n\r\n")
    assert int(head[9:12]) in statuses, got[:200]
    assert b"Connection: close" in head
    problem = msgspec.json.decode(body)
    assert problem["status"] in statuses
    assert problem["code"]
    assert problem["detail"]
    assert server.app.handled == handled
    assert b"smuggled" not in got


@pytest.mark.hostile("exhaustion")
def test_a_long_head_in_small_pieces_is_ended(server: Server) -> None:
    """A line that never ends is not collected for ever."""
    with server.connect() as connection, contextlib.suppress(BrokenPipeError, ConnectionResetError):
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nA: ")
        for _ in range(40):
            connection.sendall(b"b" * 1000)
            time.sleep(0.001)
        assert read(connection).startswith(b"HTTP/1.1 431")


@pytest.mark.hostile("exhaustion")
@pytest.mark.req("S1")
def test_a_slow_sender_meets_a_deadline(hasty: Server) -> None:
    """A byte now and then does not keep a request open: the deadline counts from its first byte."""
    for start in (b"GET /", b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n"):
        with hasty.connect() as connection:
            began = time.monotonic()
            connection.sendall(start)
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                while time.monotonic() - began < 0.5:
                    time.sleep(0.1)
                    connection.sendall(b"a")
            assert read(connection, 1.0).startswith(b"HTTP/1.1 408")
            assert time.monotonic() - began < 25


def test_an_idle_connection_is_closed_without_a_word(hasty: Server) -> None:
    """Before its first byte and after an answer alike."""
    for data in (b"", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"):
        with hasty.connect() as connection:
            connection.sendall(data)
            got = read(connection, 30.0)
            assert connection.recv(1) == b"", "it is closed"
            assert got.count(b"HTTP/1.1") == bool(data)


def test_pipelined_requests_are_answered_in_order(server: Server) -> None:
    """Also when an early one takes longer than the others."""
    paths = [b"/slow", *(b"/%d" % number for number in range(30))]
    with server.connect() as connection:
        connection.sendall(b"".join(b"GET " + path + b" HTTP/1.1\r\nHost: x\r\n\r\n" for path in paths))
        got = read(connection, 1.5)
    assert [part.split()[0] for part in got.split(b"GET ")[1:]] == paths


@pytest.mark.hostile("exhaustion")
def test_a_pipeline_without_end_is_refused(server: Server) -> None:
    """More requests than the bound in one go: what came first is answered, the rest is not held."""
    data = b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n" * (PIPELINE_MAX + 50)
    handled = server.app.handled
    got = server.exchange(data)
    assert server.app.handled - handled <= PIPELINE_MAX + 1
    assert got.count(b"HTTP/1.1 200") <= PIPELINE_MAX + 1


@pytest.mark.hostile("exhaustion")
def test_a_caller_who_does_not_read_is_ended(hasty: Server) -> None:
    """Answers are not piled up in memory, and the connection does not stay for ever."""
    with hasty.connect() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        handled = hasty.app.handled
        connection.sendall(b"GET /big HTTP/1.1\r\nHost: x\r\n\r\n" * 10)
        until(lambda: hasty.app.handled > handled, "the first is handled")
        until(lambda: not hasty.app.connections, "it is ended")
        assert hasty.app.handled - handled <= 3


def test_a_half_closed_caller_gets_its_answer(server: Server) -> None:
    """Closing the sending half is no goodbye."""
    with server.connect() as connection:
        connection.sendall(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
        connection.shutdown(socket.SHUT_WR)
        assert read(connection).endswith(b"GET /slow ")
    assert server.app.left > 0


def test_a_caller_who_hangs_up_is_told_of(server: Server) -> None:
    """The application hears of it while it still has something to answer, and only then."""
    left = server.app.left
    with server.connect() as connection:
        connection.sendall(b"GET /x HTTP/1.1\r\nHost: x\r\n\r\n")
        read(connection)
    assert server.app.left == left
    with server.connect() as connection:
        connection.sendall(b"GET /slower HTTP/1.1\r\nHost: x\r\n\r\n")
    until(lambda: server.app.left > left, "the application knows")


def test_a_caller_who_asks_first_is_told_to_go_on(server: Server) -> None:
    """Expect: 100-continue gets its go-ahead for a body that fits, and the refusal for one that does not."""
    with server.connect() as connection:
        connection.sendall(post(b"", b"Expect: 100-continue", b"Content-Length: 2", length=False))
        assert connection.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(b"hi")
        assert read(connection).endswith(b"POST /x hi")
    refused = server.exchange(post(b"", b"Expect: 100-continue", b"Content-Length: 2000", length=False))
    assert refused.startswith(b"HTTP/1.1 413")


@pytest.mark.hostile("exhaustion")
def test_connections_have_a_cap() -> None:
    """One too many is answered 503 with Retry-After and closed; when another goes there is room again."""
    with Server(msgspec.structs.replace(OPTIONS, connections_max=2)) as server:
        with server.connect(), server.connect() as second:
            second.sendall(post())
            assert read(second).endswith(b"hi")
            with server.connect() as third:
                got = read(third)
                assert got.startswith(b"HTTP/1.1 503")
                assert b"Retry-After: 1" in got
        until(lambda: server.exchange(post()).endswith(b"hi"), "there is room again")


def test_a_head_request_has_no_body_and_a_draining_server_closes(server: Server) -> None:
    """HEAD says the length and sends nothing; while draining every answer is the last of its connection."""
    got = server.exchange(b"HEAD /x HTTP/1.1\r\nHost: x\r\n\r\n")
    assert b"Content-Length: 8" in got
    assert got.endswith(b"\r\n\r\n")
    server.app.draining = True
    try:
        assert b"Connection: close" in server.exchange(post())
    finally:
        server.app.draining = False


def test_random_bytes_never_break_the_server(hasty: Server) -> None:
    """A thousand mutations of good requests: an answer, a refusal or a close, and the server goes on."""
    import random

    chance = random.Random(11)
    for _ in range(300):
        data = bytearray(chance.choice(GOOD)[0])
        for _ in range(chance.randint(1, 4)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        with hasty.connect() as connection:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            got = read(connection)
        assert not got or got.startswith(b"HTTP/1.1 ")
    assert hasty.exchange(post()).endswith(b"hi")
