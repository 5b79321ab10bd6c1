"""HTTP for the client: one server, kept connections, time limits, retries with a budget, and errors by their
code.

It knows what a request and an answer are, and nothing of models. The HTTP library is the standard one and is
loaded with the first request, so that importing the SDK costs nothing.
"""

import contextlib
import random
import secrets
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Protocol, TypeVar
from urllib.parse import quote, urlencode, urlsplit

from msgspec import Struct

from modelkeep.client.answers import Listing, Page
from modelkeep.core import codec, errors, values

if TYPE_CHECKING:
    import socket
    from http.client import HTTPConnection, HTTPResponse

ATTEMPTS_MAX = 4
"""Times that one request is sent at most; the waits between them add up to about two seconds."""
RETRY_FIRST_S = 0.15
"""The wait before the second attempt; doubled for each further one, each with jitter."""
RETRY_TOKENS_MAX = 10.0
"""Retries that a client may make in a row, over all requests: a server that is down is not helped by more."""
RETRY_TOKENS_BACK = 0.2
"""What each request that succeeds gives back to that budget."""
PATIENCE_S = 900.0
"""How long the answer to a request that hashes stored bytes is waited for, when the usual limit is shorter.
"""
WAIT_MAX_S = 10.0
"""The longest that a server's Retry-After is obeyed."""
ANSWER_MAX_BYTES = 64 * 1024 * 1024
"""An answer that is decoded whole; files are streamed and have no such limit."""
IDLE_MAX_S = 3.0
"""A kept connection that rested longer is not used again: the server may be closing it at this moment."""
CONNECTIONS_KEPT = 8
"""Idle connections kept; threads beyond that open their own."""
CHUNK_BYTES = 1024 * 1024
"""Bytes of a file that are in memory at a time."""

V1 = "/api/v1"
"""Where the operations of this release begin."""

T = TypeVar("T")
_PASSING = frozenset({429, 502, 503, 504})


class Body(Protocol):
    """Bytes that are written to the connection piece by piece, such as the rest of a file."""

    @property
    def size_bytes(self) -> int: ...

    def send_to(self, connection: "socket.socket") -> None: ...


class Request(Struct, frozen=True, kw_only=True):
    """One request. `repeatable` says that sending it twice does what sending it once does, because it only
    reads or because the server keeps the answer under its idempotency key. `patient` that the server may have
    much to hash before it can answer."""

    method: str
    path: str
    query: Mapping[str, Any] = {}
    payload: bytes = b""
    stream: Body | None = None
    headers: Mapping[str, str] = {}
    repeatable: bool = True
    patient: bool = False

    def target(self, root: str) -> str:
        given = {name: _word(value) for name, value in self.query.items() if value is not None}
        return root + self.path + (f"?{urlencode(given)}" if given else "")


def _word(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def segment(text: str) -> str:
    """One segment of a path, whatever it contains."""
    return quote(text, safe="")


class Transport:
    """Sends requests to one server. Safe to use from several threads."""

    def __init__(self, url: str, token: str | None, timeout_s: float, *, agent: str) -> None:
        """
        Raises:
            InvalidSetting: the address is not one of an HTTP server, or the token cannot be sent.
        """
        parts = urlsplit(url if "//" in url else f"http://{url}")
        try:
            port = parts.port
        except ValueError:
            port = -1
        if parts.scheme not in ("http", "https") or not parts.hostname or port == -1 or parts.username:
            raise errors.InvalidSetting(
                f"{values.quoted(url, 200)} is not the address of a server; write http://HOST:PORT.",
                field="url",
            )
        if token is not None and not (token.isascii() and token.isprintable() and " " not in token):
            raise errors.InvalidSetting("The token contains characters that no token has.", field="token")
        self.url = f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"
        self.timeout_s = timeout_s
        self._secure, self._host, self._port = parts.scheme == "https", parts.hostname, port
        self._root = parts.path.rstrip("/")
        self._headers = {"Accept": "application/json", "User-Agent": agent}
        if token is not None:
            self._headers["Authorization"] = f"Bearer {token}"
        self._idle: list[tuple[float, HTTPConnection]] = []
        self._lock = threading.Lock()
        self._budget = RETRY_TOKENS_MAX

    def close(self) -> None:
        """Close the kept connections; the next request opens new ones."""
        with self._lock:
            idle, self._idle = self._idle, []
        for _, connection in idle:
            connection.close()

    def send(self, request: Request) -> bytes:
        """The whole body of the answer.

        Raises:
            ServerUnavailable: nobody listens, or the connection broke.
            TimedOut: no answer within the time limit.
            ModelkeepError: what the server said, as the class with its code.
        """
        with self.open(request) as answer:
            data = answer.read(ANSWER_MAX_BYTES + 1)
            if len(data) > ANSWER_MAX_BYTES:
                raise errors.LimitExceeded(
                    f"The answer has more than {ANSWER_MAX_BYTES:,} bytes; ask for fewer rows at a time."
                )
            return data

    @contextlib.contextmanager
    def open(self, request: Request) -> "Iterator[HTTPResponse]":
        """The answer while it is being read, after retries; raises as `send`."""
        from http.client import HTTPException

        connection, answer = self._begin(request)
        done = False
        try:
            yield answer
            done = True
        except TimeoutError as problem:
            raise self._too_slow() from problem
        except (OSError, HTTPException) as problem:
            raise _broken(self.url, problem) from problem
        finally:
            if done and answer.isclosed() and not answer.will_close:
                self._keep(connection)
            else:
                answer.close()
                connection.close()

    def _begin(self, request: Request) -> "tuple[HTTPConnection, HTTPResponse]":
        """Send until there is an answer that is not a passing failure, within attempts and budget."""
        headers = {**self._headers, **request.headers}
        if request.method != "GET":
            headers.setdefault("Idempotency-Key", secrets.token_hex(16))
        for attempt in range(1, ATTEMPTS_MAX + 1):
            failed: errors.ModelkeepError
            wait: float | None = None
            try:
                connection, answer = self._attempt(request, headers)
            except _Failed as failure:
                failed, again = failure.error, failure.unsent or request.repeatable
            else:
                if answer.status < 400:
                    self._budget = min(RETRY_TOKENS_MAX, self._budget + RETRY_TOKENS_BACK)
                    return connection, answer
                failed = self._said(connection, answer)
                again = answer.status in _PASSING and request.repeatable
                wait = _seconds(answer.headers.get("Retry-After"))
            if not again or attempt == ATTEMPTS_MAX or self._budget < 1:
                raise failed
            self._budget -= 1
            pause = RETRY_FIRST_S * 2 ** (attempt - 1) if wait is None else wait
            time.sleep(min(pause, WAIT_MAX_S) * random.uniform(0.75, 1.25))
        raise AssertionError("the last attempt returns or raises")

    def _attempt(self, request: Request, headers: Mapping[str, str]) -> "tuple[HTTPConnection, HTTPResponse]":
        from http.client import HTTPException

        connection, connected = self._take(), False
        limit_s = max(self.timeout_s, PATIENCE_S) if request.patient else self.timeout_s
        try:
            if connection.sock is None:
                connection.connect()
            connected = True
            connection.sock.settimeout(limit_s)
            if request.stream is None:
                body = request.payload or (b"" if request.method in ("POST", "PUT", "PATCH") else None)
                connection.request(request.method, request.target(self._root), body, dict(headers))
            else:
                self._stream(connection, request, request.stream, headers)
            return connection, connection.getresponse()
        except TimeoutError as problem:
            connection.close()
            raise _Failed(self._too_slow(), unsent=not connected) from problem
        except (OSError, HTTPException) as problem:
            connection.close()
            if isinstance(problem, ConnectionRefusedError) or not connected:
                raise _Failed(self._nobody(problem), unsent=True) from problem
            raise _Failed(_broken(self.url, problem), unsent=False) from problem
        except BaseException:
            connection.close()
            raise

    def _stream(
        self, connection: "HTTPConnection", request: Request, body: Body, headers: Mapping[str, str]
    ) -> None:
        connection.putrequest(request.method, request.target(self._root))
        for name, value in headers.items():
            connection.putheader(name, value)
        connection.putheader("Content-Length", str(body.size_bytes))
        connection.endheaders()
        # A server that refuses answers before it has read everything, and hangs up; its answer says why.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            body.send_to(connection.sock)

    def _said(self, connection: "HTTPConnection", answer: "HTTPResponse") -> errors.ModelkeepError:
        """The error in an answer, as the class that the server raised."""
        from http.client import HTTPException

        try:
            data = answer.read(ANSWER_MAX_BYTES)
        except (OSError, HTTPException):
            data = b""
        if answer.isclosed() and not answer.will_close:
            self._keep(connection)
        else:
            connection.close()
        try:
            problem = codec.decode(data, _Problem)
        except errors.MalformedBody:
            return errors.ServerUnavailable(
                f"{self.url} answered {answer.status} and not in Modelkeep's words; is it the address of a "
                "Modelkeep server, and does a proxy stand in front of it?",
                url=self.url,
            )
        details = dict(problem.details)
        if problem.request_id is not None:
            details.setdefault("request_id", problem.request_id)
        return errors.from_code(problem.code, problem.detail, details)

    # -----------------------------------------------------------------------------------------------
    # connections

    def _take(self) -> "HTTPConnection":
        now = time.monotonic()
        with self._lock:
            while self._idle:
                since, connection = self._idle.pop()
                if now - since < IDLE_MAX_S:
                    return connection
                connection.close()
        return self._connection()

    def _connection(self) -> "HTTPConnection":
        from http.client import HTTPConnection, HTTPSConnection

        kind = HTTPSConnection if self._secure else HTTPConnection
        return kind(self._host, self._port, timeout=self.timeout_s, blocksize=CHUNK_BYTES)

    def _keep(self, connection: "HTTPConnection") -> None:
        with self._lock:
            if len(self._idle) < CONNECTIONS_KEPT:
                self._idle.append((time.monotonic(), connection))
                return
        connection.close()

    def _nobody(self, problem: Exception) -> errors.ServerUnavailable:
        why = f" ({problem.strerror})" if isinstance(problem, OSError) and problem.strerror else ""
        return errors.ServerUnavailable(
            f"No Modelkeep server answers at {self.url}{why}; start one with 'modelkeep up', or name another "
            "with --url or MODELKEEP_URL.",
            url=self.url,
        )

    def _too_slow(self) -> errors.TimedOut:
        return errors.TimedOut(
            f"{self.url} did not answer within {self.timeout_s:g} s; try again, or raise "
            "MODELKEEP_TIMEOUT_S.",
            url=self.url,
        )


class _Problem(Struct, frozen=True):
    """What of problem+json becomes an error."""

    code: str
    detail: str
    details: dict[str, Any] = {}
    request_id: str | None = None


class _Failed(Exception):
    """An attempt without an answer; `unsent` when the server cannot have seen it."""

    def __init__(self, error: errors.ModelkeepError, *, unsent: bool) -> None:
        super().__init__(error)
        self.error = error
        self.unsent = unsent


def _broken(url: str, problem: Exception) -> errors.ServerUnavailable:
    return errors.ServerUnavailable(
        f"The connection to {url} broke ({type(problem).__name__}); run the same again.", url=url
    )


def _seconds(text: str | None) -> float | None:
    return float(text) if text is not None and text.isascii() and text.isdigit() else None


class Wire:
    """What every verb of the client goes through: a transport, and shapes out of its answers."""

    def __init__(self, http: Transport) -> None:
        self.http = http

    @property
    def url(self) -> str:
        """The server's address."""
        return self.http.url

    def send(
        self,
        kind: type[T],
        method: str,
        path: str,
        body: object = None,
        *,
        query: Mapping[str, Any] | None = None,
        patient: bool = False,
    ) -> T:
        """Carry out one operation and return its answer in its shape."""
        payload = b"" if body is None else body if isinstance(body, bytes) else codec.encode(body)
        headers = {"Content-Type": "application/json"} if payload else {}
        request = Request(
            method=method,
            path=path,
            query=query or {},
            payload=payload,
            headers=headers,
            patient=patient,
        )
        return self.read(self.http.send(request), kind)

    def read(self, data: bytes, kind: type[T]) -> T:
        """An answer's bytes in their shape. Raises MalformedBody when the server speaks of something else."""
        try:
            return codec.decode(data, kind)
        except errors.MalformedBody as problem:
            raise errors.MalformedBody(
                f"The answer of {self.url} is not what this release expects; use the same release on both "
                f"sides ('modelkeep doctor' compares them). {problem.message}"
            ) from problem

    def get(self, kind: type[T], path: str, /, **query: Any) -> T:
        """Read one thing."""
        return self.send(kind, "GET", path, query=query)

    def listing(self, page: type[Page[T]], path: str, limit: int | None, /, **query: Any) -> Listing[T]:
        """A list that is read page by page, up to `limit` rows."""

        def fetch(rows: int | None, token: str | None) -> Page[T]:
            return self.get(page, path, limit=rows, page_token=token, **query)

        return Listing(fetch, limit)


def model_path(model: str) -> str:
    """The path of a model named `model` or `project/model`. Raises InvalidName."""
    name = values.parse_model_name(model)
    return f"{V1}/models/{name.project}/{segment(name.name)}"


def given(**options: Any) -> dict[str, Any]:
    """The options that were said."""
    return {name: value for name, value in options.items() if value is not None}


def joined(words: Sequence[str] | None) -> str | None:
    """Words as one query parameter."""
    return None if words is None else ",".join(words)


def time_text(moment: datetime | str | None) -> str | None:
    """A moment as the wire has it. Raises InvalidTime, also for a moment without a time zone."""
    if moment is None:
        return None
    if isinstance(moment, str):
        return codec.format_time(codec.parse_time(moment))
    if moment.tzinfo is None:
        raise errors.InvalidTime("This time has no zone; use an aware datetime, such as datetime.now(UTC).")
    return codec.format_time(moment)
