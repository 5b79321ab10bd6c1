"""The process that answers: uvicorn with our limits, and an end that keeps nobody waiting.

The limits below are those that have to hold before there is a request at all: how many connections, how long
and how large the head of a request, how an end is made. What a request may be is decided behind it.
"""

import asyncio
import contextlib
import gc
import logging
import resource
import signal
import socket
import threading
from collections.abc import Callable, Iterator, MutableMapping
from typing import Any

import uvicorn
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from modelkeep.core import errors
from modelkeep.web import problems
from modelkeep.web.app import Application
from modelkeep.web.exchange import WHOLE

CONNECTIONS_MAX = 4_096
"""Connections at a time: each may hold a few 100 KiB of a stream."""
DESCRIPTORS_SPARE = 256
"""Descriptors of this process that connections leave for files and the database."""
HEAD_MAX_BYTES = 32 * 1024
"""Bytes of a request's line and headers together."""
HEAD_DEADLINE_S = 10.0
"""A request's line and headers have to arrive within this time."""
KEEP_ALIVE_S = 20
"""A connection that rests longer is closed; longer than our client keeps one, so that they do not collide."""
GRACE_S = 3
"""What is under way at the end has this long to finish; then it is cut off."""


class Server(uvicorn.Server):
    """uvicorn, ended by `stop` or a signal, with our protocol."""

    def __init__(self, app: Application, on_ready: Callable[[], None] | None = None) -> None:
        config = Config(
            app,
            http=_Protocol,
            loop="uvloop",
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=GRACE_S,
        )
        super().__init__(config)
        self._application = app
        self._on_ready = on_ready
        logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
        _raise_descriptors()

    def stop(self) -> None:
        """Have `run` return soon; safe from any thread."""
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        gc.collect()
        gc.freeze()  # what is loaded stays: the collector need not walk it again and again
        if self._on_ready is not None:
            self._on_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._application.dispatcher.begin_closing()
        await super().shutdown(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """End on signals, and leave it at that: whoever runs us has a house to close yet."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        signals = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, self.handle_exit) for number in signals}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _raise_descriptors() -> None:
    """Let this process have as many descriptors as the system grants, up to what connections need."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = CONNECTIONS_MAX + DESCRIPTORS_SPARE
    if soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(hard, wanted)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def connections_max() -> int:
    """Connections that this process takes at a time."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(16, min(CONNECTIONS_MAX, soft - DESCRIPTORS_SPARE))


class _Send:
    """What sends one answer: a whole one in one write, anything else as uvicorn does it.

    uvicorn looks at every header with two patterns and writes head and body apart; for a small answer that
    is a third of all the time it takes. Here the lines are put together first and looked at once.
    """

    __slots__ = ("_cycle", "_start")

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self._cycle = cycle
        self._start: MutableMapping[str, Any] | None = None

    async def __call__(self, message: MutableMapping[str, Any]) -> None:
        cycle, start = self._cycle, self._start
        if start is None:
            if message.get(WHOLE):
                self._start = message
            else:
                await cycle.send(message)  # type: ignore[arg-type]  # uvicorn's own shapes of the same messages
            return
        self._start = None
        if cycle.flow.write_paused and not cycle.disconnected:
            await cycle.flow.drain()
        if not cycle.disconnected:
            self._send_whole(start, message["body"])

    def _send_whole(self, start: MutableMapping[str, Any], body: bytes) -> None:
        """Write status, headers and body at once, and end the exchange as uvicorn would.

        Raises:
            RuntimeError: a header has a line break in it, so it would be read as two.
        """
        cycle = self._cycle
        lines = [*cycle.default_headers, *start["headers"]]
        if not cycle.keep_alive:
            lines.append((b"connection", b"close"))
        head = b"".join([b"%b: %b\r\n" % line for line in lines])
        if head.count(b"\n") != len(lines) or head.count(b"\r") != len(lines):
            raise RuntimeError("a header of an answer has a line break in it")
        if cycle.scope["method"] == "HEAD":
            body = b""
        cycle.transport.write(b"%b%b\r\n%b" % (STATUS_LINE[start["status"]], head, body))
        cycle.waiting_for_100_continue = False
        cycle.response_started = cycle.response_complete = True
        cycle.message_event.set()
        if not cycle.keep_alive:
            cycle.transport.close()
        cycle.on_response()


class _Arrived:
    """Bytes of a body that have come and nobody has taken. uvicorn gathers them in a `bytearray` and copies
    them out again; here a part goes through as it came."""

    __slots__ = ("_parts", "_size")

    def __init__(self, parts: list[bytes]) -> None:
        self._parts = parts
        self._size = sum(map(len, parts))

    def __iadd__(self, part: bytes) -> "_Arrived":
        self._parts.append(part)
        self._size += len(part)
        return self

    def __len__(self) -> int:
        return self._size

    def __bytes__(self) -> bytes:
        return self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)


class _Receive:
    """What gives one body to the application, as uvicorn does it."""

    __slots__ = ("_cycle",)

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self._cycle = cycle
        cycle.body = _Arrived([bytes(cycle.body)] if cycle.body else [])  # type: ignore[assignment]  # is one here

    async def __call__(self) -> MutableMapping[str, Any]:
        cycle = self._cycle
        if cycle.waiting_for_100_continue and not cycle.transport.is_closing():
            cycle.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            cycle.waiting_for_100_continue = False
        if not cycle.disconnected and not cycle.response_complete:
            cycle.flow.resume_reading()
            await cycle.message_event.wait()
            cycle.message_event.clear()
        if cycle.disconnected or cycle.response_complete:
            return {"type": "http.disconnect"}
        arrived = bytes(cycle.body)
        cycle.body = _Arrived([])  # type: ignore[assignment]  # as above
        return {"type": "http.request", "body": arrived, "more_body": cycle.more_body}


class _Protocol(HttpToolsProtocol):
    """One connection. uvicorn's own protocol waits for a head for ever and takes one of any length."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._in_head = False
        self._head_bytes = 0
        self._head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        if len(self.connections) > connections_max():
            self._refuse(errors.Overloaded("Too many connections are open; try again in a moment."))
            return
        self.timeout_keep_alive_task = self.loop.call_later(HEAD_DEADLINE_S, self.timeout_keep_alive_handler)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        self._unset_keepalive_if_required()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        super().data_received(data)
        if not self._in_head:
            return
        # The head is not complete: from now on it has a deadline, and a length.
        self._head_bytes += len(data)
        if self._head_bytes > HEAD_MAX_BYTES:
            self._refuse_head()
        elif self._head_timer is None:
            self._head_timer = self.loop.call_later(HEAD_DEADLINE_S, self._head_too_late)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head = True
        self._head_bytes = 0

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        receive, send = _Receive(cycle), _Send(cycle)
        super()._start_asgi_task(cycle, lambda scope, _receive, _send: app(scope, receive, send))

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._stop_timer()
        if len(self.url) + sum(len(name) + len(value) for name, value in self.headers) > HEAD_MAX_BYTES:
            self._refuse_head()
            return
        if self.transport.is_closing():
            return
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        self._refuse(
            errors.MalformedBody(
                "This is no HTTP request that can be read in one way only; the connection is closed."
            )
        )

    def _head_too_late(self) -> None:
        self._head_timer = None
        self._refuse(errors.RequestTooSlow(f"The request did not arrive within {HEAD_DEADLINE_S:.0f} s."))

    def _refuse_head(self) -> None:
        error = errors.LimitExceeded(f"The request's head has more than {HEAD_MAX_BYTES:,} bytes.")
        self._refuse(error, problems.HEADERS_TOO_LARGE)

    def _refuse(self, error: errors.ModelkeepError, status: int = 0) -> None:
        """Answer below the route table, and close."""
        if self.transport.is_closing():
            return
        status = status or problems.status_of(error)
        payload = problems.body_of(error, None, status)
        lines = [*problems.headers_of(error, status), (b"connection", b"close")]
        head = b"".join(name + b": " + value + b"\r\n" for name, value in lines)
        self.transport.write(
            b"HTTP/1.1 %d %s\r\n%scontent-length: %d\r\n\r\n%s"
            % (status, problems.phrase_of(status), head, len(payload), payload)
        )
        self.transport.close()

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
