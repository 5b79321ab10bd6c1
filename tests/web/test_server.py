"""The server as a process: what sockets add to the application, and limits that hold before there is a
request.
"""

import hashlib
import json
import os
import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from modelkeep.client import Client
from modelkeep.core import errors
from modelkeep.core.catalog import DraftSpec
from tests.web.processes import Server, listen, serving
from tests.web.world import entry_of

pytestmark = [pytest.mark.req("U4"), pytest.mark.network]

HEAD = b"Host: localhost\r\n"
POST = b"POST /api/v1/models HTTP/1.1\r\n" + HEAD
FINE = b"GET /health HTTP/1.1\r\n" + HEAD + b"\r\n"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for the tests of this file that leave it as it was."""
    with serving(tmp_path_factory.mktemp("data")) as found:
        yield found


def client_of(server: Server, timeout_s: float = 60.0) -> Client:
    """The SDK's client."""
    return Client(server.url, None, timeout_s, agent="tests")


def asked(target: str, *lines: str, method: str = "GET") -> bytes:
    """A request's head."""
    return "\r\n".join([f"{method} {target} HTTP/1.1", "Host: localhost", *lines, "", ""]).encode()


def body_of(answer: bytes) -> bytes:
    """What follows the head of the only answer."""
    return answer.partition(b"\r\n\r\n")[2]


def table_number(server: Server) -> int:
    """The number of the present routing table."""
    return int(json.loads(body_of(server.say(asked("/api/v1/gateway/table"))))["number"])


def statuses(answer: bytes) -> list[int]:
    """The statuses of all answers in what a connection said."""
    return [int(part[:3]) for part in answer.split(b"HTTP/1.1 ")[1:]]


def requests_running(server: Server) -> int:
    """Requests under way, with the one that asks this."""
    text = server.say(asked("/metrics", "Connection: close")).decode()
    return int(text.partition("\nmodelkeep_http_requests_running ")[2].split("\n")[0])


def wait_for(so: Callable[[], bool], what: str) -> None:
    """Wait until something is so, for a minute at most."""
    end = time.monotonic() + 60
    while not so():
        assert time.monotonic() < end, what
        time.sleep(0.05)


def draft_of(server: Server, data: bytes, model: str = "churn") -> str:
    """Announce a version with one file; the draft's id."""
    with client_of(server) as client:
        return client.begin_draft(model, DraftSpec(files=(entry_of("model.bin", data),))).id


@pytest.mark.parametrize(
    "request_bytes",
    [
        POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        POST + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
        POST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
        POST + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
        POST + b"Content-Length: 5, 5\r\n\r\nhello",
        POST + b"Content-Length: +5\r\n\r\nhello",
        POST + b"Content-Length: -5\r\n\r\nhello",
        POST + b"Content-Length : 5\r\n\r\nhello",
        POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        POST + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        POST + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
        POST + b"Transfer-Encoding: chunked\r\n\r\n0x5\r\nhello\r\n0\r\n\r\n",
        POST + b"Transfer-Encoding: chunked\r\n\r\n5\nhello\r\n0\r\n\r\n",
        b"GET /health HTTP/1.1\r\n" + HEAD + b"X: a\r\n folded\r\n\r\n",
        b"GET /health HTTP/1.1\r\n" + HEAD + b"X: a\x00b\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\nX: bare\r\n\r\n",
        b"GET /hea lth HTTP/1.1\r\n" + HEAD + b"\r\n",
        b"GET /health HTTP/9.9\r\n" + HEAD + b"\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"NONSENSE\r\n\r\n",
    ],
)
@pytest.mark.hostile("split-requests")
def test_requests_that_two_could_read_differently(server: Server, request_bytes: bytes) -> None:
    """Length and chunks together, lengths that differ, and whatever is no HTTP: refused, and the connection
    ends before what follows could be taken for a request of its own."""
    answer = server.say(request_bytes + FINE)
    assert statuses(answer)[:1] in ([400], [405], [415])
    assert 200 not in statuses(answer), answer
    assert b'"code":' in answer


@pytest.mark.hostile("exhaustion")
def test_a_head_without_an_end(server: Server) -> None:
    """A request's head has a length: one that goes on and on is refused, whatever it consists of."""
    for more in (b"X: " + b"a" * 70_000, b"".join(b"X-%d: y\r\n" % i for i in range(9_000))):
        answer = server.say(b"GET /health HTTP/1.1\r\n" + HEAD + more)
        assert statuses(answer) == [431]
    assert statuses(server.say(b"GET /" + b"a" * 70_000)) == [431]


def test_pipelined_requests_are_answered_in_order(server: Server) -> None:
    """Three requests sent at once are three answers."""
    answer = server.say(FINE + b"GET /nothing HTTP/1.1\r\n" + HEAD + b"\r\n" + FINE, answers=3)
    assert statuses(answer) == [200, 404, 200]


def test_a_large_body_is_refused_while_it_is_sent(server: Server) -> None:
    """A sender of 10 MB gets its 413 at once, can still read it when it has sent all, and may go on."""
    with server.connect() as connection:
        connection.sendall(POST + b"Content-Type: application/json\r\nContent-Length: 10000000\r\n\r\n")
        assert statuses(listen(connection)) == [413]
        connection.sendall(b" " * 10_000_000 + FINE)
        assert statuses(listen(connection)) == [200]


def test_a_huge_body_is_refused_and_the_connection_ends(server: Server) -> None:
    """Nobody reads a gigabyte to say no: the answer comes, then the connection is closed."""
    head = POST + b"Content-Type: application/json\r\nContent-Length: 1000000000\r\n\r\n"
    with server.connect() as connection:
        connection.sendall(head + b" " * 100_000)
        answer = listen(connection, quiet_s=5)
        assert statuses(answer) == [413]
        assert b"connection: close" in answer


def test_an_upgrade_is_not_taken(server: Server) -> None:
    """There is nothing here to upgrade to; the request is answered as it is."""
    for kind in ("websocket", "h2c"):
        answer = server.say(asked("/health", "Connection: Upgrade", f"Upgrade: {kind}"))
        assert 101 not in statuses(answer)


def test_bytes_up_and_down(server: Server, tmp_path: Path) -> None:
    """Files of every odd size come back as they were sent; a range is what it says."""
    folder = tmp_path / "model"
    folder.mkdir()
    sizes = (0, 1, 65_535, 65_536, 1_048_575, 1_048_576, 1_048_577, 9_000_001)
    for size in sizes:
        (folder / f"{size}.bin").write_bytes(os.urandom(size))
    with client_of(server) as client:
        made = client.register("sizes", folder)
        client.pull(made.version.reference, tmp_path / "back")
    for size in sizes:
        assert (tmp_path / "back" / f"{size}.bin").read_bytes() == (folder / f"{size}.bin").read_bytes()
    data = (folder / "9000001.bin").read_bytes()
    target = "/api/v1/version/file?ref=sizes:1.0.0&path=9000001.bin"
    for given, start, stop in (("0-0", 0, 1), ("9000000-", 9_000_000, None), ("5-14", 5, 15)):
        answer = server.say(asked(target, f"Range: bytes={given}"))
        assert statuses(answer) == [206]
        assert body_of(answer) == data[start:stop]
        assert f"sha256:{hashlib.sha256(data).hexdigest()}".encode() in answer
    assert statuses(server.say(asked(target, "Range: bytes=9000001-"))) == [400]


@pytest.mark.hostile("changed-underneath")
def test_a_damaged_file_never_looks_whole(tmp_path: Path) -> None:
    """A large damaged file breaks off, a small one is an error; neither ends as a complete answer."""
    with serving(tmp_path / "data") as server, client_of(server) as client:
        for name, size in (("small", 1_000), ("large", 6_000_000)):
            source = tmp_path / name
            source.write_bytes(os.urandom(size))
            client.register(name, source)
            digest = hashlib.sha256(source.read_bytes()).hexdigest()
            blob = tmp_path / "data" / "blobs" / "sha256" / digest[:2] / digest[2:]
            damaged = bytearray(blob.read_bytes())
            damaged[size // 2] ^= 1
            blob.write_bytes(damaged)
            answer = server.say(asked(f"/api/v1/version/file?ref={name}:1.0.0&path={name}"))
            body = body_of(answer)
            if name == "small":
                assert statuses(answer) == [500]
                assert json.loads(body)["code"] == "DIGEST_MISMATCH"
            else:
                assert statuses(answer) == [200]
                assert len(body) < size


@pytest.mark.hostile("exhaustion")
def test_many_slow_uploads_hold_nobody_up(tmp_path: Path) -> None:
    """Five hundred uploads that trickle: others are served as before, a fast upload among them too, and
    memory stays where it was."""
    with serving(tmp_path / "data") as server, client_of(server) as client:
        data = os.urandom(300_000)
        drafts = [draft_of(server, data, f"slow-{i}") for i in range(5)]
        process = psutil.Process(server.process.pid)
        before = process.memory_info().rss
        slow: list[socket.socket] = []
        for number in range(500):
            connection = server.connect()
            target = f"/api/v1/drafts/{drafts[number % 5]}/file?path=model.bin"
            connection.sendall(asked(target, "Content-Length: 300000", method="PUT") + data[:1_000])
            slow.append(connection)
        for connection in slow[:50]:
            connection.sendall(data[1_000:2_000])
        began = time.monotonic()
        source = tmp_path / "fast.bin"
        source.write_bytes(os.urandom(20_000_000))
        client.register("fast", source)
        for _ in range(20):
            client.whoami()
        took = time.monotonic() - began
        grown = process.memory_info().rss - before
        for connection in slow:
            connection.close()
    assert took < 45, "those that trickle are cut off after 60 s"
    assert grown < 100_000_000


def test_an_upload_that_breaks_off_keeps_what_came(server: Server) -> None:
    """A connection that is cut leaves what had arrived, and the upload goes on from there."""
    data = os.urandom(5_000_000)
    draft = draft_of(server, data, "broken")
    target = f"/api/v1/drafts/{draft}/file?path=model.bin&offset="
    with server.connect() as connection:
        connection.sendall(asked(f"{target}0", "Content-Length: 5000000", method="PUT") + data[:3_000_000])
    with client_of(server) as client:
        offset = 0
        deadline = time.monotonic() + 60
        while offset < 3_000_000 and time.monotonic() < deadline:
            offset = client.get_draft(draft).files[0].offset
            time.sleep(0.02)
        assert offset == 3_000_000
    answer = server.say(asked(f"{target}{offset}", "Content-Length: 2000000", method="PUT") + data[offset:])
    assert json.loads(body_of(answer))["present"] is True


def test_a_waiting_gateway_hears_of_a_commit_at_once(server: Server, tmp_path: Path) -> None:
    """The commit that changes the table wakes the long poll, which at the end of its time answers with
    nothing."""
    source = tmp_path / "model.bin"
    source.write_bytes(b"polled")
    with client_of(server) as client, server.connect() as connection:
        client.register("polled", source)
        client.promote("polled:1.0.0", "production", "for the test")
        target = f"/api/v1/gateway/table?after={table_number(server)}&wait_s="
        assert statuses(server.say(asked(f"{target}0.3"))) == [204]
        heard: list[float] = []

        def wait() -> None:
            assert connection.recv(65_536)
            heard.append(time.monotonic())

        connection.sendall(asked(f"{target}60"))
        waiting = threading.Thread(target=wait)
        waiting.start()
        time.sleep(0.3)
        assert not heard
        client.put_endpoint("polled", "polled")
        done = time.monotonic()
        waiting.join(60)
    assert heard[0] - done < 20, "it was woken: by itself it would have waited for 60 s"


def test_who_has_gone_is_not_waited_for(server: Server) -> None:
    """Long polls whose callers have closed the connection end, and leave no task behind."""

    def under_way() -> int:
        return requests_running(server)

    number = table_number(server)
    polls = [server.connect() for _ in range(50)]
    for connection in polls:
        connection.sendall(asked(f"/api/v1/gateway/table?after={number}&wait_s=60"))
    wait_for(lambda: under_way() == 51, "all wait, beside the request for the figures itself")
    for connection in polls:
        connection.close()
    wait_for(lambda: under_way() == 1, "nobody waits any more")


def test_a_quick_end_with_waiting_gateways(tmp_path: Path) -> None:
    """The server ends long before those gateways would go that wait for a table; they are answered."""
    server = Server(tmp_path).ready()
    try:
        polls = []
        for _ in range(20):
            connection = server.connect()
            connection.sendall(asked("/api/v1/gateway/table?after=0&wait_s=60"))
            polls.append(connection)
        wait_for(lambda: requests_running(server) == 21, "all wait")
    finally:
        took = server.stop()
    assert took < 20
    assert server.process.returncode == 0
    assert {tuple(statuses(listen(connection))) for connection in polls} == {(204,)}
    for connection in polls:
        connection.close()


def test_it_refuses_what_it_cannot_start_with(tmp_path: Path) -> None:
    """A port that is taken, a folder that is served, a folder of a newer release: each is told in a word."""
    with serving(tmp_path / "one") as server:
        taken = Server(tmp_path / "two", port=server.address[1])
        assert taken.told().startswith(errors.PortInUse.code)
        served = Server(tmp_path / "one")
        assert served.told().startswith(errors.FolderInUse.code)
        for one in (taken, served):
            one.stop()
    with sqlite3.connect(tmp_path / "one" / "modelkeep.db") as connection:
        connection.execute("update modelkeep_schema set version_num = 'r9999'")
    newer = Server(tmp_path / "one")
    assert newer.told().startswith(errors.SchemaTooNew.code)
    newer.stop()
    assert newer.process.returncode == 1
