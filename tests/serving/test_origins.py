"""Which pages may ask a gateway from a browser: its own, and those of named origins."""

from typing import Any, cast

import pytest

from modelkeep.core import errors
from modelkeep.serving.http import HttpConnection, Request
from modelkeep.serving.origins import ORIGINS_MAX, Origins, check_origins

pytestmark = [pytest.mark.req("S1"), pytest.mark.hostile("other-origins")]

APP = b"https://app.example.com"
ORIGINS = Origins((APP.decode(),), host="gw.internal", url="https://Models.example.com:443/")


class Connection:
    """Takes answers."""

    def __init__(self) -> None:
        self.heads: list[bytes] = []

    def answer(self, head: bytes, body: bytes) -> None:
        """Keep it."""
        assert body == b""
        self.heads.append(head)


def request(method: bytes = b"POST", **headers: bytes) -> Request:
    """A request with these headers."""
    made = Request()
    made.method = method
    made.headers = {name.replace("_", "-").encode(): value for name, value in headers.items()}
    return made


@pytest.mark.parametrize(
    ("origin", "host", "refused"),
    [
        (APP, b"127.0.0.1:5001", False),
        (b"http://127.0.0.1:5001", b"127.0.0.1:5001", False),
        (b"http://127.0.0.1:5002", b"127.0.0.1:5001", True),
        (b"http://app.example.com", b"127.0.0.1:5001", True),
        (b"https://app.example.com.evil.org", b"127.0.0.1:5001", True),
        (b"https://APP.example.com", b"127.0.0.1:5001", True),
        (b"null", b"127.0.0.1:5001", True),
        (b"", b"", True),
        (b"https://[", b"127.0.0.1:5001", True),
        (b"http://localhost:5001", b"localhost:5001", False),
        (b"http://[::1]:5001", b"[::1]:5001", False),
        (b"http://192.168.0.7:5001", b"192.168.0.7:5001", False),
        (b"http://gw.internal:5001", b"gw.internal:5001", False),
        (b"https://models.example.com", b"models.example.com", False),
        (b"https://models.example.com", b"127.0.0.1:5001", False),
        (b"http://models.example.com", b"127.0.0.1:5001", True),
        (b"http://evil.example:5001", b"evil.example:5001", True),
        (b"http://127.0.0.1.evil.example:5001", b"127.0.0.1.evil.example:5001", True),
        (b"http://localhost.evil.example:5001", b"localhost.evil.example:5001", True),
        (b"http://:5001", b":5001", True),
    ],
)
def test_only_named_pages_and_our_own_may_ask(origin: bytes, host: bytes, refused: bool) -> None:
    """The text has to be the same, letter by letter; near is another origin. That a page has the name by
    which it asks is not enough: its owner may have had that resolve to this machine."""
    asked = request(host=host)
    assert ORIGINS.refuses(asked, origin) is refused
    assert (b"Allow-Origin: " + origin + b"\r\n" in asked.extra) is (origin == APP)


def test_a_browser_is_told_beforehand_what_it_may_ask() -> None:
    """The methods, the headers that it named, and for how long; and nothing where it named what is none."""
    asked = request(
        b"OPTIONS",
        access_control_request_method=b"POST",
        access_control_request_headers=b"content-type, x-user-id",
    )
    assert not ORIGINS.refuses(asked, APP)
    connection: Any = Connection()
    assert ORIGINS.preflight(cast(HttpConnection, connection), asked)
    (head,) = connection.heads
    assert head.startswith(b"HTTP/1.1 204 ")
    assert b"Access-Control-Allow-Headers: content-type, x-user-id\r\n" in head
    asked.headers[b"access-control-request-headers"] = b"a\x0bb"
    assert ORIGINS.preflight(cast(HttpConnection, connection), asked)
    assert b"Allow-Headers" not in connection.heads[1]


@pytest.mark.parametrize(
    "asked", [request(b"OPTIONS"), request(b"POST", access_control_request_method=b"POST")]
)
def test_other_questions_are_no_preflight(asked: Request) -> None:
    """They go their way, with the header that lets the page read the answer."""
    assert not ORIGINS.refuses(asked, APP)
    assert not ORIGINS.preflight(cast(HttpConnection, Connection()), asked)


@pytest.mark.parametrize(
    "text",
    ["*", "null", "app.example.com", "https://app.example.com/", "https://App.example.com", "ftp://a", ""],
)
def test_what_is_no_origin_cannot_be_allowed(text: str) -> None:
    """No stars: who may ask is said by name."""
    with pytest.raises(errors.InvalidSetting, match="no origin"):
        check_origins((text,))


def test_origins_are_named_one_by_one() -> None:
    """Names, numbers and ports; and not without end."""
    check_origins(("https://app.example.com", "http://localhost:3000", "http://[::1]:3000"))
    with pytest.raises(errors.InvalidSetting):
        check_origins(("https://a.example",) * (ORIGINS_MAX + 1))


@pytest.mark.parametrize("url", [None, "", "gw:5001", "https://[", "https://"])
def test_an_address_that_is_none_lets_nobody_in(url: str | None) -> None:
    """Nothing is no name: pages without one are as foreign as before."""
    origins = Origins((), url=url)
    for origin in (b"", b"null", b"gw://", b"https://", b"http://evil.example"):
        assert origins.refuses(request(host=b"evil.example"), origin)
        assert origins.refuses(request(host=b""), origin)
    assert not origins.refuses(request(host=b"localhost:5001"), b"http://localhost:5001")
