"""An open loop of requests at a fixed rate, from a process of its own that sleeps between them.

Each latency counts from the moment the request was due, so stalls are not hidden. The sender waits in
`select`, whose limit is exact to some microseconds; an event loop that rounds to milliseconds would spin
instead, take a whole core from what is measured, and call its own hunger the server's. Beside what is to be
measured there is a bare HTTP server that answers at once: what it takes is the price of one more HTTP process
on this machine at this moment. Nothing is concluded here.
"""

import asyncio
import contextlib
import ctypes
import gc
import itertools
import multiprocessing
import select
import socket
import time
from collections import deque
from collections.abc import Iterator, Sequence
from enum import StrEnum
from multiprocessing.connection import Connection
from typing import Any, Protocol, cast

import httptools
from msgspec import Struct

from modelkeep.serving import frames
from modelkeep.serving.frames import FrameReader, Kind
from modelkeep.serving.processes import new_loop
from modelkeep.serving.upstream import PREFIX

BODY = b'{"inputs":[{"age":40,"income":2.5}]}'
USERS = 1000
"""Callers that the requests are spread over."""
LAST_ANSWER_S = 5.0
"""For the answers that are still out when the last request is sent."""
_PR_SET_TIMERSLACK = 29


class Speech(StrEnum):
    """What a target speaks: HTTP on a port of this machine, or frames on a worker's socket."""

    HTTP = "http"
    FRAMES = "frames"


class Target(Struct, frozen=True):
    """Where requests go. `place` is a port, or the path of a socket."""

    name: str
    speech: Speech
    place: int | str


class Seen(Struct, frozen=True):
    """What one round at one target gave. `latencies` in seconds, in the order of the answers."""

    target: str
    sent: int
    failed: int
    latencies: list[float]


def http_request(user: int) -> bytes:
    """A prediction as a client library sends it."""
    return (
        b"POST /endpoints/churn/predict HTTP/1.1\r\nHost: gateway.local:5001\r\nUser-Agent: bench/1.0\r\n"
        b"Accept: application/json\r\nContent-Type: application/json\r\nX-User: user-%d\r\n"
        b"Content-Length: %d\r\n\r\n%b" % (user, len(BODY), BODY)
    )


class HttpAnswers:
    """Cuts a stream into HTTP answers with a length."""

    def __init__(self) -> None:
        self._data = b""

    def feed(self, data: bytes) -> list[tuple[bytes, bytes]]:
        """Head and body of each answer that is whole now."""
        self._data += data
        found: list[tuple[bytes, bytes]] = []
        while (end := self._data.find(b"\r\n\r\n")) >= 0:
            head = self._data[:end]
            stop = end + 4 + int(head[head.index(b"Content-Length: ") + 16 :].split(b"\r\n", 1)[0])
            if len(self._data) < stop:
                break
            found.append((head, self._data[end + 4 : stop]))
            self._data = self._data[stop:]
        return found


class _Caller(Protocol):
    sock: socket.socket
    due: deque[float]

    def ask(self, user: int) -> None: ...

    def answers(self, data: bytes) -> list[bool]:
        """Of each answer that has come, whether it is good."""


class _Http:
    def __init__(self, port: int | str) -> None:
        self.sock = socket.create_connection(("127.0.0.1", int(port)))
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.due: deque[float] = deque()
        self._answers = HttpAnswers()

    def ask(self, user: int) -> None:
        self.sock.sendall(http_request(user))

    def answers(self, data: bytes) -> list[bool]:
        return [head.startswith(b"HTTP/1.1 200") for head, _ in self._answers.feed(data)]


class _Framed:
    def __init__(self, path: int | str) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.connect(str(path))
        self.due: deque[float] = deque()
        self._reader = FrameReader()

    def ask(self, user: int) -> None:
        payload = PREFIX.pack(time.monotonic() + 30, time.monotonic(), 0, 5) + b"churn" + BODY
        self.sock.sendall(frames.pack(user, Kind.REQUEST, payload))

    def answers(self, data: bytes) -> list[bool]:
        return [kind == Kind.ANSWER for _, kind, _ in self._reader.feed(data)]


_SPEECHES = {Speech.HTTP: _Http, Speech.FRAMES: _Framed}


def one_round(target: Target, callers: Sequence[_Caller], seconds: float, rate: float) -> Seen:
    """Ask at this rate for this long, over these connections in turns."""
    by_socket = {caller.sock: caller for caller in callers}
    sockets, turn, users = list(by_socket), itertools.cycle(callers), itertools.count()
    latencies: list[float] = []
    sent, failed, total = 0, 0, int(seconds * rate)
    started = time.perf_counter()
    while len(latencies) < total:
        now = time.perf_counter()
        while sent < total and started + sent / rate <= now:
            caller = next(turn)
            caller.due.append(started + sent / rate)
            caller.ask(next(users) % USERS)
            sent += 1
        due = started + (sent / rate if sent < total else seconds + LAST_ANSWER_S)
        readable, _, _ = select.select(sockets, [], [], max(0.0, due - time.perf_counter()))
        if not readable and sent == total:
            break
        for sock in readable:
            caller = by_socket[sock]
            data = sock.recv(65536)
            if not data:
                raise ConnectionError(f"{target.name} has closed a connection")
            for good in caller.answers(data):
                latencies.append(time.perf_counter() - caller.due.popleft())
                failed += not good
    return Seen(target.name, sent, failed, latencies)


def rounds_at(
    targets: Sequence[Target], rounds: int, seconds: float, rate: float, connections: int
) -> list[list[Seen]]:
    """Rounds, in each of which every target has its turn, each time with another one first: what else the
    machine does meets all of them alike.
    """
    gc.disable()
    with contextlib.suppress(OSError):
        ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, 1000, 0, 0, 0)
    found: list[list[Seen]] = []
    for number in range(rounds):
        order = [*targets[number % len(targets) :], *targets[: number % len(targets)]]
        seen: dict[str, Seen] = {}
        for target in order:
            callers = cast(
                list[_Caller], [_SPEECHES[target.speech](target.place) for _ in range(connections)]
            )
            try:
                seen[target.name] = one_round(target, callers, seconds, rate)
            finally:
                for caller in callers:
                    caller.sock.close()
        found.append([seen[target.name] for target in targets])
    return found


def _in_process(pipe: Connection, arguments: tuple[Any, ...]) -> None:
    pipe.send(rounds_at(*arguments))


class OpenLoop:
    """`rounds_at` in a process of its own, begun at once."""

    def __init__(
        self, targets: Sequence[Target], rounds: int, seconds: float, rate: float, connections: int = 16
    ) -> None:
        self._ours, theirs = multiprocessing.Pipe()
        self._process = multiprocessing.get_context("spawn").Process(
            target=_in_process, args=(theirs, (targets, rounds, seconds, rate, connections)), daemon=True
        )
        self._process.start()
        theirs.close()

    def result(self) -> list[list[Seen]]:
        """What it saw, when it has finished: by round, then by target."""
        found: list[list[Seen]] = self._ours.recv()
        self._process.join()
        return found


# ------------------------------------------------------------------------------------------- a bare yardstick


class _Bare(asyncio.Protocol):
    """Parses requests as any server must, and answers each with the same bytes."""

    def __init__(self) -> None:
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_complete(self) -> None:
        assert self._transport is not None
        self._transport.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 18\r\n\r\n"
            b'{"outputs":[42.5]}'
        )


def _serve_bare(pipe: Connection) -> None:
    async def serve() -> None:
        server = await asyncio.get_running_loop().create_server(_Bare, "127.0.0.1", 0)
        pipe.send(server.sockets[0].getsockname()[1])
        await asyncio.get_running_loop().run_in_executor(None, pipe.poll, None)

    with new_loop() as runner:
        runner.run(serve())


@contextlib.contextmanager
def bare_server() -> Iterator[int]:
    """A bare HTTP server in a process of its own; its port."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_serve_bare, args=(theirs,), daemon=True)
    process.start()
    theirs.close()
    try:
        yield int(ours.recv())
    finally:
        ours.close()
        process.join()
