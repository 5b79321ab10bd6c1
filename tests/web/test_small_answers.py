"""Small answers leave at once: in one write, on a socket that does not wait for the other side's
acknowledgement."""

import asyncio
import http.client
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from modelkeep.service.house import House
from modelkeep.web.app import create_app
from modelkeep.web.server import Server

pytestmark = [pytest.mark.req("U4"), pytest.mark.network]


@dataclass
class Seen:
    """A server that runs in a thread, and what it does with its sockets."""

    server: Server
    port: int
    writes: list[bytes]

    def ask(self, method: str, path: str, body: Any = None) -> tuple[http.client.HTTPResponse, bytes]:
        """One request on a connection that stays open while the answer is looked at."""
        self.writes.clear()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        with closing(connection):
            headers = {"Content-Type": "application/json"} if body is not None else {}
            connection.request(method, path, json.dumps(body) if body is not None else None, headers)
            answer = connection.getresponse()
            return answer, answer.read()


@pytest.fixture
def seen(house: House, monkeypatch: pytest.MonkeyPatch) -> Iterator[Seen]:
    """A server whose writes are noted on their way to the socket."""
    writes: list[bytes] = []
    made = HttpToolsProtocol.connection_made

    class Noting:
        """A transport that notes what is written to it."""

        def __init__(self, transport: asyncio.Transport) -> None:
            self._transport = transport

        def write(self, data: bytes) -> None:
            writes.append(data)
            self._transport.write(data)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._transport, name)

    def noted(self: HttpToolsProtocol, transport: asyncio.Transport) -> None:
        made(self, Noting(transport))  # type: ignore[arg-type]  # it has all that a transport has

    monkeypatch.setattr(HttpToolsProtocol, "connection_made", noted)
    with running(house) as (server, port):
        yield Seen(server, port, writes)


@contextmanager
def running(house: House) -> Iterator[tuple[Server, int]]:
    """The server in a thread, listening at a free port."""
    ready = threading.Event()
    server = Server(create_app(house), ready.set)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        assert ready.wait(20)
        yield server, int(listening.getsockname()[1])
        server.stop()
        thread.join(20)
        assert not thread.is_alive()


def test_no_connection_waits_for_an_acknowledgement(house: House) -> None:
    """Every accepted connection has TCP_NODELAY: its small packets are never held back."""
    with running(house) as (server, port), closing(http.client.HTTPConnection("127.0.0.1", port)) as caller:
        caller.request("GET", "/health")
        caller.getresponse().read()
        (connection,) = server.server_state.connections
        transport: asyncio.Transport = connection.transport
        accepted: socket.socket = transport.get_extra_info("socket")
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/health", None, 200),
        ("GET", "/api/v1/models", None, 200),
        ("POST", "/api/v1/models", {"name": "churn"}, 201),
        ("GET", "/api/v1/models/default/nothing", None, 404),
        ("GET", "/nowhere", None, 404),
        ("POST", "/api/v1/models", {"name": 1}, 400),
    ],
)
def test_a_small_answer_is_one_write(seen: Seen, method: str, path: str, body: Any, status: int) -> None:
    """Status, headers and body of reads, writes and errors go to the socket together."""
    answer, payload = seen.ask(method, path, body)
    assert answer.status == status
    (written,) = seen.writes
    assert written.startswith(b"HTTP/1.1 %d " % status)
    assert written.endswith(b"\r\n\r\n" + payload)
    assert answer.headers["content-length"] == str(len(payload))
    assert answer.headers["date"]
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_a_head_is_answered_without_its_body(seen: Seen) -> None:
    """HEAD gets the length that GET would have, and nothing behind the headers."""
    answer, payload = seen.ask("HEAD", "/health")
    (written,) = seen.writes
    assert (answer.status, payload) == (200, b"")
    assert written.endswith(b"\r\n\r\n")
    assert int(answer.headers["content-length"]) > 0


def test_who_wants_no_kept_connection_gets_none(seen: Seen) -> None:
    """With `Connection: close`, and to HTTP/1.0, the answer says that the connection ends, and it does."""
    for request in (b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
                    b"GET /health HTTP/1.0\r\nHost: localhost\r\n\r\n"):  # fmt: skip
        with socket.create_connection(("127.0.0.1", seen.port), timeout=20) as connection:
            connection.sendall(request)
            said = b"".join(iter(lambda: connection.recv(65_536), b""))
        assert said.startswith(b"HTTP/1.1 200 ")
        assert b"\r\nconnection: close\r\n" in said


def test_pipelined_requests_are_answered_in_order(seen: Seen) -> None:
    """Requests sent together get one answer each, in the order in which they were asked."""
    head = b"HTTP/1.1\r\nHost: localhost\r\n"
    asked = b"GET /health %b\r\nGET /nowhere %b\r\nGET /health %bConnection: close\r\n\r\n" % (
        head,
        head,
        head,
    )
    with socket.create_connection(("127.0.0.1", seen.port), timeout=20) as connection:
        connection.sendall(asked)
        said = b"".join(iter(lambda: connection.recv(65_536), b""))
    assert [int(part[:3]) for part in said.split(b"HTTP/1.1 ")[1:]] == [200, 404, 200]
