"""A large artifact there and back through MLflow's server and ours, beside what the loopback gives.

The yardstick is a plain socket: one process sends the same bytes, another takes them and hashes them with
SHA-256, as whoever keeps bytes by their content must; nothing is written. Beside it stands what the socket
gives without the hash, which nobody is measured by. The sender and taker of artifacts
are bare sockets as well, so that no client library is in the figures. Each file has bytes of its own at its
beginning, or the second one would be known already. A part of `mlflow_side_by_side`.
"""

import hashlib
import itertools
import multiprocessing
import os
import socket
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import BinaryIO, NamedTuple, TypeVar

from bench import report, tracked
from bench.mlflow_scenarios import file_of
from bench.report import Row
from bench.servers import Running

CONNECTIONS = (1, 8)
"""Files under way at a time; more would only ask the disk."""
ROUNDS = 3
SHARE_MIN = 0.8
PIECE_BYTES = 1024 * 1024
"""What is read from a socket at a time."""

T = TypeVar("T")
_numbers = itertools.count()


class Speeds(NamedTuple):
    """MiB a second of one round: the socket alone, the yardstick, ours, and MLflow's where it is measured."""

    bare: float
    loopback: float
    ours: float
    peer: float | None


def rows(ours: Running, peer: Running | None, size_mib: int) -> list[Row]:
    """The lines: there and back, at each number of connections."""
    content = os.urandom(PIECE_BYTES) * size_mib
    found = []
    for connections in CONNECTIONS:
        sent: dict[int, list[str]] = {}

        def send(server: Running, paths: dict[int, list[str]] = sent, count: int = connections) -> None:
            names = [f"large/{next(_numbers)}" for _ in range(count)]
            paths[server.port] = names
            at_once([lambda name=name: send_file(server.port, name, content) for name in names])

        def take(server: Running, paths: dict[int, list[str]] = sent) -> None:
            for size in at_once(
                [lambda name=name: take_file(server.port, name) for name in paths[server.port]]
            ):
                if size != len(content):
                    raise RuntimeError(f"an artifact of {len(content):,} bytes came back as {size:,}")

        for what, verb in (("send", send), ("take", take)):
            report.tell(f"{what} {connections} files of {size_mib} MiB")
            amount = size_mib * connections
            rounds = [one_round(verb, ours, peer, content, connections, amount) for _ in range(ROUNDS)]
            files = "a file" if connections == 1 else f"{connections} files at a time, each"
            found.append(_row(f"{what} {files} of {size_mib:,} MiB", rounds))
    return found


def one_round(
    verb: Callable[[Running], None],
    ours: Running,
    peer: Running | None,
    content: bytes,
    connections: int,
    amount_mib: int,
) -> Speeds:
    """The yardstick and both servers, one after the other."""
    bare = amount_mib / loopback_s(content, connections, hashed=False)
    loopback = amount_mib / loopback_s(content, connections)
    speeds = [amount_mib / _timed(partial(verb, server)) for server in (ours, *([peer] if peer else []))]
    return Speeds(bare, loopback, speeds[0], speeds[1] if peer is not None else None)


def _timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _row(what: str, rounds: list[Speeds]) -> Row:
    share = statistics.median(each.ours / each.loopback for each in rounds)
    middle = Speeds(
        statistics.median(each.bare for each in rounds),
        statistics.median(each.loopback for each in rounds),
        statistics.median(each.ours for each in rounds),
        statistics.median(each.peer for each in rounds if each.peer is not None)
        if rounds[0].peer is not None
        else None,
    )
    beside = f"loopback, hashed: {middle.loopback:,.0f} MiB/s (bare {middle.bare:,.0f})"
    values = {"mib_per_second": middle.ours, "share_of_loopback": share, "bare_mib_per_second": middle.bare}
    if middle.peer is not None:
        beside += f"; MLflow {middle.peer:,.0f} MiB/s"
        values["peer_mib_per_second"] = middle.peer
    return Row(
        what=what,
        figure=f"{middle.ours:,.0f} MiB/s",
        beside=beside,
        ratio=share,
        goal=f"at least {SHARE_MIN:.2f}x of the loopback",
        kept=share >= SHARE_MIN,
        values=values,
    )


# ----------------------------------------------------------------------------------------------- moving bytes


def at_once(works: list[Callable[[], T]]) -> list[T]:
    """Do things at the same time, each on a thread: sockets and hashes let each other go on."""
    with ThreadPoolExecutor(len(works)) as pool:
        return [future.result() for future in [pool.submit(work) for work in works]]


def send_file(port: int, path: str, content: bytes) -> None:
    """PUT a file of a run whose first bytes are its own.

    Raises:
        RuntimeError: the server did not take it.
    """
    own = path.encode().ljust(64)
    head = f"PUT {file_of(tracked.run_id(0), path)} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n"
    head += f"Content-Type: application/octet-stream\r\nContent-Length: {len(content)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(head.encode() + own)
        connection.sendall(memoryview(content)[len(own) :])
        answer = connection.recv(4_096)
    if not answer.startswith(b"HTTP/1.1 200"):
        raise RuntimeError(f"a large artifact was not taken: {answer[:500]!r}")


def take_file(port: int, path: str) -> int:
    """GET a file of a run and give its number of bytes.

    Raises:
        RuntimeError: the server did not give it.
    """
    head = f"GET {file_of(tracked.run_id(0), path)} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
    room = bytearray(PIECE_BYTES)
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(head.encode())
        with connection.makefile("rb", buffering=PIECE_BYTES) as answer:
            if not answer.readline().startswith(b"HTTP/1.1 200"):
                raise RuntimeError(f"a large artifact was not given: {answer.read(500)!r}")
            chunked = False
            while (line := answer.readline()) not in (b"\r\n", b""):
                chunked |= line.lower().startswith(b"transfer-encoding: chunked")
            if chunked:
                return _take_chunks(answer)
            taken = 0
            while count := answer.readinto(room):
                taken += count
            return taken


def _take_chunks(answer: BinaryIO) -> int:
    taken = 0
    while size := int(answer.readline().split(b";")[0], 16):
        taken += len(answer.read(size))
        answer.readline()
    return taken


def loopback_s(content: bytes, connections: int, *, hashed: bool = True) -> float:
    """How long it takes to send content over so many sockets at a time to a process that takes, and hashes,
    it."""
    context = multiprocessing.get_context("fork")
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        taker = context.Process(target=_take_all, args=(listening, connections, hashed), daemon=True)
        taker.start()
        try:
            return _timed(lambda: at_once([lambda: _send(port, content)] * connections))
        finally:
            taker.join()


def _send(port: int, content: bytes) -> None:
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(content)
        connection.shutdown(socket.SHUT_WR)
        connection.recv(64)


def _take_all(listening: socket.socket, connections: int, hashed: bool) -> None:
    def take(connection: socket.socket) -> None:
        digest, room = hashlib.sha256(), bytearray(PIECE_BYTES)
        with connection:
            while count := connection.recv_into(room):
                if hashed:
                    digest.update(memoryview(room)[:count])
            connection.sendall(digest.digest())

    accepted = [listening.accept()[0] for _ in range(connections)]
    at_once([lambda connection=connection: take(connection) for connection in accepted])
