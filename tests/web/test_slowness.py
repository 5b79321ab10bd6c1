"""Callers who are slow, on purpose or not: each gets a time, and what they have sent of a file is kept."""

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

from modelkeep.cli.processes import listen as listener
from modelkeep.core.values import ModelName
from modelkeep.service.house import House
from modelkeep.web import exchange, server, uploads
from modelkeep.web.app import create_app
from tests.web.inprocess import Cut, InProcess
from tests.web.processes import listen
from tests.web.test_bad_input import draft
from tests.web.world import entry_of, register

pytestmark = pytest.mark.req("U4")

V1 = "/api/v1"
JSON = {"content-type": "application/json"}


@pytest.fixture(autouse=True)
def _short_deadlines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody has a minute here."""
    monkeypatch.setattr(exchange, "BODY_DEADLINE_S", 0.2)
    monkeypatch.setattr(exchange, "STALL_S", 0.3)
    monkeypatch.setattr(exchange, "LINGER_S", 0.1)
    monkeypatch.setattr(server, "HEAD_DEADLINE_S", 0.3)


def announced(client: InProcess, data: bytes) -> str:
    """A draft of one file."""
    entry = entry_of("model.bin", data)
    file = {"path": entry.path, "size_bytes": entry.size_bytes, "digest": entry.digest}
    return str(draft(client, files=[file]).json()["id"])


@pytest.mark.hostile("exhaustion")
def test_a_body_that_stops(client: InProcess) -> None:
    """A JSON body that does not arrive in time is 408."""
    reply = client("POST", f"{V1}/models", parts=[b'{"name":'], headers=JSON, stops=True)
    assert (reply.status, reply.code) == (408, "REQUEST_TOO_SLOW")


@pytest.mark.parametrize("came", [1_000, uploads.BATCH_BYTES + 5_000, 3 * uploads.BATCH_BYTES])
@pytest.mark.hostile("exhaustion")
def test_an_upload_that_stops(client: InProcess, came: int) -> None:
    """An upload that brings nothing more is 408; what came is kept, whether it came slowly or fast."""
    data = os.urandom(4 * uploads.BATCH_BYTES)
    found = announced(client, data)
    parts = [data[start : min(start + 65_536, came)] for start in range(0, came, 65_536)]
    query = {"path": "model.bin", "offset": 0}
    reply = client("PUT", f"{V1}/drafts/{found}/file", query=query, parts=parts, stops=True)
    assert (reply.status, reply.code) == (408, "REQUEST_TOO_SLOW")
    assert client("GET", f"{V1}/drafts/{found}").json()["files"][0]["offset"] == came
    rest = client("PUT", f"{V1}/drafts/{found}/file", query={**query, "offset": came}, raw=data[came:])
    assert rest.json()["present"] is True


@pytest.mark.hostile("exhaustion")
def test_a_reader_who_takes_nothing(house: House, client: InProcess) -> None:
    """A download that nobody takes is given up, and its file is closed."""
    register(house, ModelName("default", "churn"), os.urandom(3_000_000))
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(Cut):
        client("GET", f"{V1}/version/file", query={"ref": "churn:1.0.0", "path": "model.bin"}, deaf=True)
    assert len(os.listdir("/proc/self/fd")) <= before


def test_crowded_uploads_write_early(client: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    """When all uploads together hold enough, each writes what it has, however little; nothing is lost."""
    monkeypatch.setattr(client.app.dispatcher.upload_room, "_limit", 1)
    data = os.urandom(500_000)
    found = announced(client, data)
    parts = [data[start : start + 10_000] for start in range(0, len(data), 10_000)]
    reply = client("PUT", f"{V1}/drafts/{found}/file", query={"path": "model.bin"}, parts=parts)
    assert reply.json()["present"] is True
    assert client.app.dispatcher.upload_room._held == 0


@contextmanager
def serving_here(house: House) -> Iterator[tuple[str, int]]:
    """A real server in a thread of this process, so that its limits can be set."""
    with listener("127.0.0.1", 0) as listening:
        ready = threading.Event()
        running = server.Server(create_app(house), ready.set)
        thread = threading.Thread(target=running.run, kwargs={"sockets": [listening]})
        thread.start()
        assert ready.wait(60)
        try:
            yield listening.getsockname()
        finally:
            running.stop()
            thread.join(60)


@pytest.mark.network
@pytest.mark.parametrize(
    ("sent", "status"), [(b"", b""), (b"GET /health HTTP/1.1\r\nHost: loc", b"408"), (b"GET /hea", b"408")]
)
@pytest.mark.hostile("exhaustion")
def test_a_head_that_does_not_come(
    house: House, monkeypatch: pytest.MonkeyPatch, sent: bytes, status: bytes
) -> None:
    """A connection that says nothing, or half a head, is closed in time; one that drips is no exception."""
    monkeypatch.setattr(server, "HEAD_DEADLINE_S", 1.0)
    with serving_here(house) as address:
        began = time.monotonic()
        with socket.create_connection(address, timeout=60) as connection:
            connection.sendall(sent)
            with suppress(BrokenPipeError, ConnectionResetError):  # it may be closed by then
                for letter in b"alhost" if sent else b"":
                    time.sleep(0.03)
                    connection.sendall(bytes([letter]))
            answer = listen(connection)
        assert answer.partition(b" ")[2][:3] == status
        assert 0.9 < time.monotonic() - began < 30


@pytest.mark.network
@pytest.mark.hostile("exhaustion")
def test_too_many_connections(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the limit a connection is told to come back, and those there are go on."""
    monkeypatch.setattr(server, "connections_max", lambda: 2)
    monkeypatch.setattr(server, "HEAD_DEADLINE_S", 60.0)
    with serving_here(house) as address:
        kept = [socket.create_connection(address, timeout=60) for _ in range(2)]
        time.sleep(0.1)
        with socket.create_connection(address, timeout=60) as third:
            assert listen(third).startswith(b"HTTP/1.1 429")
        kept[0].sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert listen(kept[0]).startswith(b"HTTP/1.1 200")
        for connection in kept:
            connection.close()
