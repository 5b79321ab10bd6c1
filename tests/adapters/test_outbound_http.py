"""The way out against receivers that mean it badly: real sockets on this machine, and resolvers that lie.

Each class of attacks on servers that call addresses has a test here: odd spellings, several addresses, a name
that changes between check and connection, redirects, slow, endless and compressed answers.
"""

import socket
import ssl
import threading
import time
from pathlib import Path

import pytest

from modelkeep.adapters import outbound_http
from modelkeep.adapters.outbound_http import OutboundHttp
from modelkeep.core import addresses, errors
from tests.receivers import OK, Taken, answering, certificate, read_request, receiving

pytestmark = [pytest.mark.network, pytest.mark.req("G16")]

LOOPBACK = addresses.networks(["127.0.0.0/8"])
BODY = b'{"a": 1}'


def plain(**more: object) -> OutboundHttp:
    """A way out that may speak with this machine, unencrypted."""
    return OutboundHttp(**({"allowed": LOOPBACK, "http": True} | more))  # type: ignore[arg-type]  # named above


def test_a_message_arrives_as_it_was_given() -> None:
    """Headers, body, the receiver's name; and nothing of an environment's proxies."""
    taken: list[Taken] = []
    with receiving(answering(OK, taken)) as receiver:
        sent = plain().post(f"http://127.0.0.1:{receiver.port}/a?b=c", {"webhook-id": "msg_1"}, BODY)
    assert (sent.status, sent.error) == (204, None)
    (message,) = taken
    assert message.url == "POST /a?b=c HTTP/1.1"
    assert message.body == BODY
    assert message.headers["host"] == f"127.0.0.1:{receiver.port}"
    assert message.headers["webhook-id"] == "msg_1"
    assert message.headers["accept-encoding"] == "identity"


@pytest.mark.hostile("forged-requests")
def test_proxies_of_the_environment_are_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy would connect where it likes, whatever was judged here."""
    with receiving(answering(b"HTTP/1.1 500 No\r\n\r\n")) as proxy, receiving(answering(OK)) as receiver:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        assert plain().post(f"http://127.0.0.1:{receiver.port}/", {}, BODY).status == 204
        assert proxy.connections == 0


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "127.1", "2130706433", "0x7f.1", "0177.0.0.1", "0", "0x7f000001",
             "[::1]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[::]", "[::127.0.0.1]", "[64:ff9b::7f00:1]"],
)  # fmt: skip
@pytest.mark.hostile("forged-requests")
def test_every_spelling_of_this_machine_is_refused(host: str) -> None:
    """What counts is what the resolver makes of it; nothing is connected to, and the answer does not say
    which address it was."""
    with receiving(answering(OK)) as receiver:
        strict = OutboundHttp(http=True, ports=(receiver.port,))
        sent = strict.post(f"http://{host}:{receiver.port}/", {}, BODY)
        with pytest.raises(errors.InvalidWebhook):
            strict.check(f"http://{host}:{receiver.port}/")
        assert receiver.connections == 0
    assert sent.status is None
    assert sent.error is not None
    assert sent.error.startswith(("Nothing was sent", f"'http://{host}"))


@pytest.mark.hostile("forged-requests")
def test_one_bad_address_of_several_refuses_them_all() -> None:
    """A name with a good and a bad address is a trick, in whichever order they come."""
    for found in (["8.8.8.8", "127.0.0.1"], ["127.0.0.1", "8.8.8.8"], ["8.8.8.8", "::ffff:10.0.0.1"]):
        sent = OutboundHttp(resolve=lambda host, port, found=found: found).post(
            "https://two.example/", {}, BODY
        )
        assert sent.status is None
        assert "private" in (sent.error or "")


@pytest.mark.parametrize("found", [[], ["8.8.8.8"] * 17])
def test_a_name_with_no_or_too_many_addresses_is_refused(found: list[str]) -> None:
    """Neither is a receiver that somebody runs."""
    sent = OutboundHttp(resolve=lambda host, port: found).post("https://many.example/", {}, BODY)
    assert "addresses" in (sent.error or "")


def test_a_name_is_resolved_once() -> None:
    """Between check and connection it cannot become another address: the second answer is never asked for."""
    asked: list[str] = []

    def rebinding(host: str, port: int) -> list[str]:
        asked.append(host)
        return ["127.0.0.1"] if len(asked) == 1 else ["10.0.0.1"]

    taken: list[Taken] = []
    with receiving(answering(OK, taken)) as receiver:
        sent = plain(resolve=rebinding).post(f"http://turns.example:{receiver.port}/", {}, BODY)
    assert sent.status == 204
    assert asked == ["turns.example"]
    assert taken[0].headers["host"] == f"turns.example:{receiver.port}"


@pytest.mark.hostile("forged-requests")
def test_a_name_that_turns_bad_later_is_refused_at_that_delivery() -> None:
    """It is judged each time, not only when the webhook was made."""
    answers = [["127.0.0.1"], ["10.0.0.1"]]
    with receiving(answering(OK)) as receiver:
        out = plain(resolve=lambda host, port: answers.pop(0))
        out.check(f"http://turns.example:{receiver.port}/")
        sent = out.post(f"http://turns.example:{receiver.port}/", {}, BODY)
        assert receiver.connections == 0
    assert "Nothing was sent" in (sent.error or "")


@pytest.mark.hostile("forged-requests")
def test_a_connection_that_went_elsewhere_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other end of the connection is looked at before a byte is sent."""
    taken: list[Taken] = []
    with receiving(answering(OK, taken)) as receiver:
        real = socket.create_connection

        def astray(address: tuple[str, int], timeout: float) -> socket.socket:
            return real(("127.0.0.1", address[1]), timeout)

        monkeypatch.setattr(outbound_http.socket, "create_connection", astray)
        sent = plain(resolve=lambda host, port: ["127.0.0.2"]).post(
            f"http://name.example:{receiver.port}/", {}, BODY
        )
    assert "went to" in (sent.error or "")
    assert not taken


def test_the_next_address_is_tried_when_one_does_not_answer() -> None:
    """A name with several good addresses needs only one that listens."""
    with receiving(answering(OK)) as receiver:
        out = plain(resolve=lambda host, port: ["127.0.0.9", "127.0.0.1"])
        assert out.post(f"http://two.example:{receiver.port}/", {}, BODY).status == 204


@pytest.mark.hostile("forged-requests")
def test_a_redirect_is_not_followed() -> None:
    """Its status is the answer, wherever it points."""
    with receiving(answering(OK)) as inner:
        to = f"HTTP/1.1 307 Go\r\nLocation: http://127.0.0.1:{inner.port}/\r\nContent-Length: 0\r\n\r\n"
        with receiving(answering(to.encode())) as receiver:
            assert plain().post(f"http://127.0.0.1:{receiver.port}/", {}, BODY).status == 307
        assert inner.connections == 0


def test_a_public_address_is_reached_at_its_ports_alone() -> None:
    """Only those that are listed; a listed private network may be reached at any."""
    out = OutboundHttp(resolve=lambda host, port: ["8.8.8.8"])
    assert "port 6379" in (out.post("https://cache.example:6379/", {}, BODY).error or "")
    assert "port 22" in (out.post("https://8.8.8.8:22/", {}, BODY).error or "")


def test_unencrypted_is_refused_unless_it_is_allowed() -> None:
    """The setting decides at each delivery, too."""
    assert "encrypted" in (OutboundHttp(allowed=LOOPBACK).post("http://127.0.0.1:1/", {}, BODY).error or "")


# ----------------------------------------------------------------------------------------------- bad answers


def test_a_slow_answer_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte now and then renews no limit: all of it together has one."""
    monkeypatch.setattr(outbound_http, "TOTAL_S", 0.4)
    stop = threading.Event()

    def drip(connection: socket.socket) -> None:
        read_request(connection)
        for byte in b"HTTP/1.1 200 OK\r\n" * 100:
            connection.sendall(bytes([byte]))
            if stop.wait(0.05):
                return

    with receiving(drip) as receiver:
        began = time.monotonic()
        sent = plain().post(f"http://127.0.0.1:{receiver.port}/", {}, BODY)
        took = time.monotonic() - began
        stop.set()
    assert sent.status is None
    assert "seconds" in (sent.error or "")
    assert took < 30


def test_a_receiver_that_takes_nothing_in_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that accepts and then does nothing, with a message larger than any buffer."""
    monkeypatch.setattr(outbound_http, "TOTAL_S", 0.4)
    stop = threading.Event()
    with receiving(lambda connection: (stop.wait(60), None)[1]) as receiver:
        began = time.monotonic()
        sent = plain().post(f"http://127.0.0.1:{receiver.port}/", {}, b"x" * 30_000_000)
        stop.set()
    assert sent.status is None
    assert time.monotonic() - began < 30


@pytest.mark.parametrize("body", ["endless", "slow", "chunked", "bomb"])
def test_a_bad_body_changes_nothing(body: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The status has decided; of the body little is read, for a short while, and nothing is unpacked."""
    monkeypatch.setattr(outbound_http, "BODY_S", 0.3)
    stop = threading.Event()
    written = [0]

    def answer(connection: socket.socket) -> None:
        read_request(connection)
        match body:
            case "endless":
                connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
                part = b"x" * 65_536
            case "slow":
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
                part = b"x"
            case "chunked":
                connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nZZZ\r\n")
                part = b"5\r\nxxxxx\r\n"
            case _:
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n")
                part = b"\x1f\x8b" + b"\0" * 65_534
        while not stop.is_set():
            connection.sendall(part)
            written[0] += len(part)
            if body == "slow":
                stop.wait(0.05)

    with receiving(answer) as receiver:
        began = time.monotonic()
        sent = plain().post(f"http://127.0.0.1:{receiver.port}/", {}, BODY)
        took = time.monotonic() - began
        stop.set()
    assert (sent.status, sent.error, sent.answer_sha256) == (200, None, None)
    assert took < 30
    assert written[0] < 64 * 1024 * 1024


@pytest.mark.parametrize(
    "reply",
    [
        b"", b"\x16\x03\x01\x02", b"SSH-2.0-OpenSSH_9.6\r\n", b"HTTP/1.1 abc\r\n\r\n",
        b"HTTP/1.1 99999 x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 200_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 5_000 + b"\r\n", b"HTTP/1.1 100 Continue\r\n\r\n" * 5_000,
    ],
)  # fmt: skip
def test_what_is_no_answer_is_told_as_such(reply: bytes) -> None:
    """Nothing of what came is repeated, and no head is read without end."""
    with receiving(answering(reply)) as receiver:
        sent = plain().post(f"http://127.0.0.1:{receiver.port}/", {}, BODY)
    assert sent.status is None
    assert (sent.error or "").startswith("The receiver could not be reached")
    assert "SSH" not in (sent.error or "")


def test_nobody_listening_is_told() -> None:
    """And raises nothing."""
    with receiving(answering(OK)) as receiver:
        port = receiver.port
    sent = plain().post(f"http://127.0.0.1:{port}/", {}, BODY)
    assert sent.error == "The receiver could not be reached: nobody listens there."


@pytest.mark.parametrize(
    ("said", "expected"),
    [("30", 30.0), ("junk", None), ("-5", None), ("Sun, 06 Nov 1994 08:49:37 GMT", 0.0), ("9" * 12, None)],
)
def test_a_receiver_may_ask_to_be_left_alone(said: str, expected: float | None) -> None:
    """In seconds, or until a moment; what is neither is passed over."""
    reply = f"HTTP/1.1 429 Slow\r\nRetry-After: {said}\r\nContent-Length: 0\r\n\r\n".encode()
    with receiving(answering(reply)) as receiver:
        sent = plain().post(f"http://127.0.0.1:{receiver.port}/", {}, BODY)
    assert (sent.status, sent.retry_after_s) == (429, expected)


def test_a_name_that_is_not_resolved_in_time_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """The system's resolver has no time limit; the way out has."""
    monkeypatch.setattr(outbound_http, "CONNECT_S", 0.1)
    stop = threading.Event()

    def deaf(host: str, port: int) -> list[str]:
        stop.wait(60)
        return ["8.8.8.8"]

    out = OutboundHttp(resolve=deaf)
    sent = out.post("https://never.example/", {}, BODY)
    stop.set()
    out.close()
    assert "not resolved" in (sent.error or "")


# ------------------------------------------------------------------------------------------------ encryption


def test_the_certificate_is_that_of_the_name(tmp_path: Path) -> None:
    """The connection goes to the judged address; the name is asked for, and the certificate must bear it."""
    context, believed = certificate(tmp_path, "hooks.example")
    asked: list[str | None] = []

    def note(_: ssl.SSLObject | ssl.SSLSocket, name: str | None, __: ssl.SSLContext) -> None:
        asked.append(name)

    context.sni_callback = note
    taken: list[Taken] = []
    with receiving(answering(OK, taken), context) as receiver:
        out = OutboundHttp(
            allowed=LOOPBACK, certificates=str(believed), resolve=lambda host, port: ["127.0.0.1"]
        )
        assert out.post(f"https://hooks.example:{receiver.port}/", {}, BODY).status == 204
        assert asked == ["hooks.example"]
        other = out.post(f"https://other.example:{receiver.port}/", {}, BODY)
        assert "certificate" in (other.error or "")
        stranger = OutboundHttp(allowed=LOOPBACK, resolve=lambda host, port: ["127.0.0.1"])
        unknown = stranger.post(f"https://hooks.example:{receiver.port}/", {}, BODY)
        assert "certificate" in (unknown.error or "")
    assert len(taken) == 1


def test_certificates_that_cannot_be_read_are_told_at_the_start(tmp_path: Path) -> None:
    """Not at the first delivery."""
    with pytest.raises(errors.InvalidSetting):
        OutboundHttp(certificates=str(tmp_path / "nothing.pem"))
