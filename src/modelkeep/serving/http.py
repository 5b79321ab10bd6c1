"""HTTP/1.1 on one connection, strictly: bytes in, whole requests out, answers back in order.

It refuses whatever two readers could understand differently (a length and chunks together, two lengths, two
hosts, odd line ends), and whatever would make it wait or hold memory for nothing: long heads, large or slow
bodies, deep pipelines, callers who do not read. One request per connection is worked on at a time. It knows
no route and no model.
"""

import asyncio
import time
from collections import deque
from typing import Protocol, cast

import httptools

from modelkeep.serving.options import (
    HEAD_MAX_BYTES,
    HEADERS_MAX,
    PIPELINE_MAX,
    PIPELINE_PAUSE,
    URL_MAX_BYTES,
    GatewayOptions,
)

STATUS_LINES: dict[int, bytes] = {
    code: b"HTTP/1.1 %d %s\r\n" % (code, reason)
    for code, reason in {
        200: b"OK", 204: b"No Content", 400: b"Bad Request", 401: b"Unauthorized",
        403: b"Forbidden", 404: b"Not Found",
        405: b"Method Not Allowed", 408: b"Request Timeout", 409: b"Conflict",
        411: b"Length Required", 413: b"Content Too Large", 414: b"URI Too Long",
        415: b"Unsupported Media Type", 417: b"Expectation Failed", 422: b"Unprocessable Content",
        429: b"Too Many Requests", 431: b"Request Header Fields Too Large", 499: b"Client Closed Request",
        500: b"Internal Server Error", 501: b"Not Implemented",
        503: b"Service Unavailable", 504: b"Gateway Timeout", 505: b"HTTP Version Not Supported",
    }.items()
}  # fmt: skip
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_ONCE = frozenset(
    {b"host", b"content-length", b"transfer-encoding", b"content-type", b"content-encoding", b"expect"}
)
_LINGER_S = 2.0
"""After a refusal in the middle of a body, go on reading and discarding this long, so that the answer is not
lost to a reset."""


class Request:
    """One whole request. Header names are lower case; of a repeated header the first counts. `extra` are
    header lines that its answer has whatever it is."""

    __slots__ = ("body", "extra", "headers", "keep_alive", "method", "path", "received")

    def __init__(self) -> None:
        self.method = b""
        self.path = b""
        self.headers: dict[bytes, bytes] = {}
        self.body: bytes = b""
        self.extra: bytes = b""
        self.keep_alive = True
        self.received = 0.0


class Writes(Protocol):
    """Who words the answers that the connection itself has to give."""

    date: bytes

    def refusal(self, status: int, code: str, detail: str) -> bytes:
        """A whole answer (headers and body) to what was no valid request; the connection closes after it."""


class Application(Protocol):
    """What a connection asks of the one who answers."""

    options: GatewayOptions
    draining: bool

    @property
    def answers(self) -> Writes: ...

    def opened(self, connection: "HttpConnection") -> bool:
        """Whether there is room for one more connection."""

    def closed(self, connection: "HttpConnection") -> None: ...

    def leaving(self, connection: "HttpConnection") -> None:
        """A caller closed its half, or is gone, while a request of it is being answered."""

    def handle(self, connection: "HttpConnection", request: Request) -> None:
        """Answer, now or later, by exactly one call of `connection.answer`."""


class _Refused(Exception):
    def __init__(self, status: int, code: str, detail: str) -> None:
        super().__init__(detail)
        self.status, self.code, self.detail = status, code, detail


class HttpConnection(asyncio.Protocol):
    """One connection. The parser calls the `on_...` methods; the loop calls the rest."""

    __slots__ = (
        "_app", "_began", "_body", "_body_bytes", "_body_max", "_closing", "_current", "_head_bytes",
        "_headers_done", "_linger", "_parser", "_paused_reading", "_queue", "_raw_head_bytes", "_refusal",
        "_request", "_since", "_transport", "_write_paused", "peer", "peer_key",
    )  # fmt: skip

    def __init__(self, app: Application) -> None:
        self._app = app
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._queue: deque[Request] = deque()
        self._current: Request | None = None
        self._request: Request | None = None
        self._headers_done = False
        self._head_bytes = 0
        self._raw_head_bytes = 0
        self._refusal: _Refused | None = None
        self._body: list[bytes] = []
        self._body_bytes = 0
        self._body_max = app.options.body_max_bytes
        self._since = self._began = time.monotonic()
        self._closing = False
        self._linger = 0.0
        self._paused_reading = False
        self._write_paused = 0.0
        self.peer = ""
        self.peer_key = b""

    # ------------------------------------------------------------------------------------- called by the loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are no subclass of it
        peer = transport.get_extra_info("peername")
        self.peer = peer[0] if isinstance(peer, tuple) else ""
        self.peer_key = self.peer.encode()
        if not self._app.opened(self):
            self._refuse(
                503, "OVERLOADED", "This gateway has no room for another connection; try again soon."
            )

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._closing = True
        self._queue.clear()
        if self._current is not None:
            self._app.leaving(self)
        self._app.closed(self)

    def pause_writing(self) -> None:
        self._write_paused = time.monotonic()
        self._pause_reading()

    def resume_writing(self) -> None:
        self._write_paused = 0.0
        self._next()
        self._maybe_resume_reading()

    def eof_received(self) -> bool:
        """A caller who closed its half still gets the answers to what it sent, as far as they are under way:
        one who is gone for good looks just the same."""
        if self._current is None and not self._queue:
            return False
        self._closing = True
        self._app.leaving(self)
        return True

    def data_received(self, data: bytes) -> None:
        if self._closing:
            return  # lingering: discard
        head_open = self._request is not None and not self._headers_done
        try:
            self._parser.feed_data(data)
            if head_open and self._request is not None and not self._headers_done:
                self._raw_head_bytes += len(
                    data
                )  # all of it is head; the parser keeps an unfinished line to itself
                if self._raw_head_bytes > HEAD_MAX_BYTES:
                    raise self._head_too_large()
        except (httptools.HttpParserError, httptools.HttpParserUpgrade, _Refused) as problem:
            refusal = self._refusal or _Refused(
                400, "MALFORMED_REQUEST", f"This is not valid HTTP/1.1: {str(problem)[:100]}."
            )
            self._refuse(refusal.status, refusal.code, refusal.detail)

    # ----------------------------------------------------------------------------------- called by the parser

    def on_message_begin(self) -> None:
        self._request = Request()
        self._headers_done = False
        self._head_bytes = 0
        self._raw_head_bytes = 0
        self._began = time.monotonic()

    def on_url(self, url: bytes) -> None:
        request = self._request
        assert request is not None
        request.path += url
        self._head_bytes += len(url)
        if len(request.path) > URL_MAX_BYTES:
            raise self._no(414, "LIMIT_EXCEEDED", f"The path is longer than {URL_MAX_BYTES} bytes.")

    def on_header(self, name: bytes, value: bytes) -> None:
        request = self._request
        if request is None or self._headers_done:
            return  # trailers of a chunked body carry nothing we read
        name = name.lower()
        self._head_bytes += len(name) + len(value) + 4
        headers = request.headers
        if name in headers:
            if name in _ONCE:
                raise self._malformed(f"The header {name.decode('latin-1')} stands twice.")
        else:
            headers[name] = value
        if self._head_bytes > HEAD_MAX_BYTES or len(headers) > HEADERS_MAX:
            raise self._head_too_large()

    def on_headers_complete(self) -> None:
        request = self._request
        assert request is not None
        self._headers_done = True
        parser = self._parser
        request.method = parser.get_method()
        version = parser.get_http_version()
        headers = request.headers
        if b"upgrade" in headers or request.method == b"CONNECT":
            raise self._malformed("This gateway does not switch protocols.")
        if version not in ("1.1", "1.0"):
            raise self._no(505, "MALFORMED_REQUEST", "This gateway speaks HTTP/1.1 and HTTP/1.0.")
        request.keep_alive = parser.should_keep_alive()
        length = headers.get(b"content-length")
        chunked = headers.get(b"transfer-encoding")
        if chunked is not None:
            if length is not None:
                raise self._malformed("Content-Length and Transfer-Encoding stand together.")
            if version == "1.0" or chunked.lower() != b"chunked":
                raise self._no(
                    501, "MALFORMED_REQUEST", "Of transfer encodings only 'chunked' is understood."
                )
        if version == "1.1" and b"host" not in headers:
            raise self._malformed("The header Host is missing.")
        if b"content-encoding" in headers and headers[b"content-encoding"].lower() != b"identity":
            raise self._no(415, "MALFORMED_BODY", "Send the body without Content-Encoding.")
        if length is not None:
            if not length.isdigit() or len(length) > 18:
                raise self._malformed("Content-Length is not a number.")
            if int(length) > self._body_max:
                raise self._too_large()
        expect = headers.get(b"expect")
        if expect is not None:
            if expect.lower() != b"100-continue":
                raise self._no(417, "MALFORMED_REQUEST", "Of expectations only '100-continue' is understood.")
            if version == "1.1" and self._transport is not None and self._current is None:
                self._transport.write(_CONTINUE)

    def on_body(self, data: bytes) -> None:
        self._body_bytes += len(data)
        if self._body_bytes > self._body_max:
            raise self._too_large()
        self._body.append(data)

    def on_message_complete(self) -> None:
        request = self._request
        if request is None or self._closing:
            return
        if self._body:
            request.body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
            self._body = []
            self._body_bytes = 0
        now = time.monotonic()
        request.received = now
        self._request = None
        if self._current is None and not self._queue and not self._write_paused:
            self._current = request
            self._app.handle(self, request)
            return
        if len(self._queue) >= PIPELINE_MAX:
            raise self._no(429, "OVERLOADED", f"More than {PIPELINE_MAX} requests wait on this connection.")
        self._queue.append(request)
        if len(self._queue) >= PIPELINE_PAUSE:
            self._pause_reading()

    # ------------------------------------------------------------------------------ called by the application

    def answer(self, head: bytes, body: bytes) -> None:
        """Send the answer to the request at hand. `head` is status line and headers without the empty
        line."""
        request = self._current
        self._current = None
        transport = self._transport
        if transport is None or request is None or transport.is_closing():
            return
        self._since = time.monotonic()
        if request.method == b"HEAD":
            body = b""
        if request.extra:
            head += request.extra
        if request.keep_alive and not self._app.draining and not (self._closing and not self._queue):
            transport.write(b"%bDate: %b\r\n\r\n%b" % (head, self._app.answers.date, body))
            if self._queue or self._paused_reading:
                self._next()
                self._maybe_resume_reading()
            return
        transport.write(b"%bDate: %b\r\nConnection: close\r\n\r\n%b" % (head, self._app.answers.date, body))
        self._queue.clear()
        self._closing = True
        transport.close()

    def sweep(self, now: float) -> None:
        """Enforce the time limits; called for every connection about twice a second."""
        transport, options = self._transport, self._app.options
        if transport is None:
            return
        if self._linger:
            if now > self._linger:
                transport.abort()
        elif self._write_paused and now - self._write_paused > options.write_timeout_s:
            transport.abort()
        elif self._request is not None and not self._paused_reading:
            if now - self._began > options.receive_deadline_s:
                limit = f"{options.receive_deadline_s:g}"
                self._refuse(408, "TIMED_OUT", f"The request did not arrive whole within {limit} s.")
        elif self._current is None and not self._queue and now - self._since > options.idle_timeout_s:
            transport.close()

    def close_if_idle(self) -> None:
        """When draining: close at once what waits for nothing; the rest closes with its answer."""
        if (
            self._transport is not None
            and self._current is None
            and not self._queue
            and self._request is None
        ):
            self._transport.close()

    # ------------------------------------------------------------------------------------------------- inside

    def _next(self) -> None:
        while (
            self._queue and self._current is None and not self._write_paused and self._transport is not None
        ):
            request = self._current = self._queue.popleft()
            self._app.handle(self, request)

    def _pause_reading(self) -> None:
        if not self._paused_reading and self._transport is not None and not self._transport.is_closing():
            self._paused_reading = True
            self._transport.pause_reading()

    def _maybe_resume_reading(self) -> None:
        if self._paused_reading and not self._write_paused and len(self._queue) < PIPELINE_PAUSE // 2:
            self._paused_reading = False
            self._began = time.monotonic()  # the pause was ours
            if self._transport is not None and not self._transport.is_closing():
                self._transport.resume_reading()

    def _refuse(self, status: int, code: str, detail: str) -> None:
        """Answer what is no request, after the answers that are owed before it, and close."""
        transport = self._transport
        if transport is None or self._closing:
            return
        self._closing = True
        self._request = None
        self._body = []
        if self._current is None and not self._queue:
            transport.write(self._app.answers.refusal(status, code, detail))
        self._queue.clear()
        if self._current is None:
            self._linger = time.monotonic() + _LINGER_S
            if transport.can_write_eof():
                transport.write_eof()
            else:
                transport.close()

    def _no(self, status: int, code: str, detail: str) -> _Refused:
        """Keep the reason: the parser puts an error of its own around what a callback raises."""
        self._refusal = _Refused(status, code, detail)
        return self._refusal

    def _malformed(self, detail: str) -> _Refused:
        return self._no(400, "MALFORMED_REQUEST", detail)

    def _too_large(self) -> _Refused:
        return self._no(
            413, "LIMIT_EXCEEDED", f"The body is larger than {self._body_max:,} bytes; send fewer rows."
        )

    def _head_too_large(self) -> _Refused:
        return self._no(
            431,
            "LIMIT_EXCEEDED",
            f"The head is larger than {HEAD_MAX_BYTES:,} bytes or has over {HEADERS_MAX} headers.",
        )
