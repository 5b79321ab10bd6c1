"""Requests get through, or fail with the right error: retries, keys, kept connections, and errors by their
code.
"""

import socket
import time
from pathlib import Path

import pytest

from modelkeep.client import Client, transport
from modelkeep.client.files import FileBody
from modelkeep.core import errors
from tests.client.fake_server import Asked, BreakOff, FakeServer, refusal
from tests.client.samples import model, version
from tests.servers import free_port

pytestmark = [pytest.mark.req("U2"), pytest.mark.network]
MODEL = "/api/v1/models/default/churn"


def test_one_connection_serves_many_requests(server: FakeServer, client: Client) -> None:
    """Reads in a row reuse the kept connection."""
    server.on("GET", MODEL, model())
    for _ in range(5):
        assert client.get_model("churn") == model()
    assert len({asked.connection for asked in server.asked}) == 1


def test_what_every_request_carries(server: FakeServer, client: Client) -> None:
    """The token goes along; a key goes with what changes something, and not with what reads."""
    server.on("GET", MODEL, model())
    server.on("PATCH", MODEL, model())
    server.on("DELETE", MODEL, {"done": True})
    client.get_model("churn")
    client.change_model("churn", description="new")
    client.delete_model("churn")
    read, change, delete = server.asked
    assert {asked.headers["authorization"] for asked in server.asked} == {"Bearer mk_u_test"}
    assert "idempotency-key" not in read.headers
    assert change.headers["idempotency-key"] != delete.headers["idempotency-key"]


@pytest.mark.parametrize("code", sorted(errors.BY_CODE))
def test_an_error_is_raised_again_as_its_class(server: FakeServer, client: Client, code: str) -> None:
    """Each class of the tree comes through the wire with its message and details."""
    raised = errors.BY_CODE[code]("It went wrong; mend it.", field="x")
    server.on("GET", MODEL, raised)
    with pytest.raises(errors.BY_CODE[code]) as caught:
        client.get_model("churn")
    assert type(caught.value) is type(raised)
    assert caught.value.message == "It went wrong; mend it."
    assert caught.value.details == {"field": "x", "request_id": "req_test"}


def test_a_passing_failure_is_tried_again_with_the_same_key(server: FakeServer, client: Client) -> None:
    """After two 503 the third attempt succeeds; the server sees one key, and so one write."""
    left = [2]

    def answer(_: Asked) -> object:
        left[0] -= 1
        status, data, headers = refusal(errors.Overloaded("Try again."))
        return (status, data, {**headers, "retry-after": "0"}) if left[0] >= 0 else model()

    server.on("PATCH", MODEL, answer)
    client.change_model("churn", description="new")
    assert len(server.asked) == 3
    assert len({asked.headers["idempotency-key"] for asked in server.asked}) == 1


def test_a_broken_connection_is_tried_again_when_that_is_safe(
    server: FakeServer, client: Client, tmp_path: Path
) -> None:
    """A read is repeated, and so is a write that the server knows again by its key; bytes are not."""

    def broken_once(asked: Asked) -> object:
        if sum(before.path == asked.path for before in server.asked) == 1:
            raise BreakOff
        return model() if asked.path == MODEL else version()

    server.on("GET", MODEL, broken_once)
    assert client.get_model("churn") == model()
    server.on("POST", "/api/v1/version/clear", broken_once)
    client.clear_version("churn:1.1.0", "mended")
    keys = [asked.headers["idempotency-key"] for asked in server.asked if asked.method == "POST"]
    assert len(keys) == 2
    assert len(set(keys)) == 1
    server.on("PUT", "/api/v1/drafts/dft_9/file", broken_once)
    (tmp_path / "model.bin").write_bytes(b"x")
    with open(tmp_path / "model.bin", "rb") as file, pytest.raises(errors.ServerUnavailable, match="broke"):
        client.upload_file("dft_9", "model.bin", 0, FileBody(file, 0, 1, lambda _: None))
    assert sum(asked.method == "PUT" for asked in server.asked) == 1


def test_retries_end_with_their_budget(server: FakeServer, client: Client) -> None:
    """A server that stays down is not asked for ever, over all requests together."""

    def broken(_: Asked) -> object:
        raise BreakOff

    server.on("GET", MODEL, broken)
    for _ in range(8):
        with pytest.raises(errors.ServerUnavailable):
            client.get_model("churn")
    assert len(server.asked) <= 8 + transport.RETRY_TOKENS_MAX


def test_nobody_listening_says_what_to_do() -> None:
    """The address and the command that starts a server are in the sentence."""
    port = free_port()
    with (
        Client(f"http://127.0.0.1:{port}") as client,
        pytest.raises(errors.ServerUnavailable, match=f"{port}.*modelkeep up"),
    ):
        client.whoami()


def test_silence_is_a_time_out() -> None:
    """A server that accepts and says nothing is given up after the limit."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with Client(f"http://127.0.0.1:{port}", timeout_s=0.1) as client:
            client.http._budget = 0
            began = time.monotonic()
            with pytest.raises(errors.TimedOut, match=r"0\.1 s"):
                client.whoami()
            assert time.monotonic() - began < 30


def test_a_stranger_is_recognised(server: FakeServer, client: Client) -> None:
    """An error page that is not ours becomes a sentence about the address, not a parse error."""
    server.on("GET", MODEL, (404, b"<html>Not here</html>", {"Content-Type": "text/html"}))
    with pytest.raises(errors.ServerUnavailable, match="not in Modelkeep's words"):
        client.get_model("churn")


def test_an_answer_of_another_release_is_told(server: FakeServer, client: Client) -> None:
    """JSON that does not fit says that the releases may differ."""
    server.on("GET", MODEL, {"hello": 1})
    with pytest.raises(errors.MalformedBody, match="same release"):
        client.get_model("churn")


def test_an_answer_is_bounded(server: FakeServer, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer that never ends does not fill the memory."""
    monkeypatch.setattr(transport, "ANSWER_MAX_BYTES", 100)
    server.on("GET", MODEL, model())
    with pytest.raises(errors.LimitExceeded):
        client.get_model("churn")


@pytest.mark.parametrize(
    "url",
    ["ftp://127.0.0.1", "http://", "http://127.0.0.1:x", "http://a:b@127.0.0.1", "http://127.0.0.1:99999"],
)
def test_a_wrong_address_is_refused_at_once(url: str) -> None:
    """What cannot be an address never becomes a request; a password in it is not taken."""
    with pytest.raises(errors.InvalidSetting, match="address"):
        Client(url)


def test_a_token_cannot_carry_another_header() -> None:
    """Line ends in a token are refused before they could become headers."""
    with pytest.raises(errors.InvalidSetting):
        Client("http://127.0.0.1:1", token="x\r\nX-Other: 1")


def test_a_list_is_fetched_page_by_page(server: FakeServer, client: Client) -> None:
    """Walking a list asks for the next page when it is needed, and stops at the limit."""

    def page(asked: Asked) -> object:
        first = int(asked.query.get("page_token", 1))
        count = min(int(asked.query.get("limit", 2)), 2)
        items = [version(number, f"1.{number}.0") for number in range(first, first + count)]
        return {"items": items, "next_page_token": str(first + count)}

    server.on("GET", f"{MODEL}/versions", page)
    assert [v.number for v in client.list_versions("churn", limit=5)] == [1, 2, 3, 4, 5]
    assert [asked.query.get("limit") for asked in server.asked] == ["5", "3", "1"]
    whole = client.list_versions("churn", limit=3).whole()
    assert len(whole.items) == 3
    assert whole.next_page_token == "4"


def test_names_cannot_leave_their_segment(server: FakeServer, client: Client) -> None:
    """A name with a slash or a question mark stays one segment of the path, or is refused."""
    with pytest.raises(errors.InvalidName):
        client.get_model("../../health")
    with pytest.raises(errors.RouteNotFound):
        client.get_draft("a/../b?x=1")
    assert server.asked[0].path == "/api/v1/drafts/a/../b?x=1"
    assert server.asked[0].query == {}


def test_a_transport_is_shared_by_threads(server: FakeServer, client: Client) -> None:
    """Eight threads at once get their own answers."""
    from concurrent.futures import ThreadPoolExecutor

    def answer(asked: Asked) -> object:
        return version(description=asked.query["ref"])

    server.on("GET", "/api/v1/version", answer)
    refs = [f"churn:#{number}" for number in range(1, 81)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda ref: client.get_version(ref).description, refs))
    assert found == refs


def test_a_refused_upload_tells_why(server: FakeServer, client: Client, tmp_path: Path) -> None:
    """A server that answers before it has read everything and hangs up is heard all the same."""
    source = tmp_path / "model.bin"
    source.write_bytes(b"x" * 200_000)
    server.on("PUT", "/api/v1/drafts/dft_9/file", errors.DraftNotFound("There is no such draft."))
    with open(source, "rb") as file, pytest.raises(errors.DraftNotFound):
        client.upload_file("dft_9", "model.bin", 0, FileBody(file, 0, 200_000, lambda _: None))
