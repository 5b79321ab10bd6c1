"""The gateway's connection to its control plane: the table in, reports out, files on demand. Plain HTTP with
time limits.

    GET  {server}/api/v1/gateway/table?after=N&wait_s=20   200 RoutingTable, or 204 when nothing newer came
    POST {server}/api/v1/gateway/reports                   GatewayReport in, GatewayReply out
    GET  {server}/api/v1/gateway/blobs/{digest}            the bytes

All calls here block and belong in threads. Nothing in the data plane waits for them: when the control plane
is away, the gateway serves on. What a table means is not decided here.
"""

import contextlib
import http.client
import socket
import threading
from collections.abc import Iterator
from typing import TypeVar
from urllib.parse import urlsplit

from modelkeep import telemetry
from modelkeep.core import codec, errors
from modelkeep.core.observation import GatewayReply, GatewayReport
from modelkeep.core.routing import RoutingTable, check_table
from modelkeep.core.values import Digest
from modelkeep.serving.cache import CHUNK_BYTES
from modelkeep.serving.options import TABLE_MAX_BYTES, GatewayOptions

CALL_TIMEOUT_S = 10.0
"""A report or a chunk of a file that takes longer is given up and tried again."""
TOKEN_MAX_BYTES = 4096
"""Of a token file."""
TOKEN_FILE = "token"
"""In the data folder: where a server beside this gateway leaves its token, when no other file is named."""

T = TypeVar("T")
log = telemetry.Log("gateway.link")


class Link:
    """The three calls. Each kind has a connection of its own, kept open, so that a long poll delays no
    report."""

    def __init__(self, options: GatewayOptions) -> None:
        assert options.server is not None
        parts = urlsplit(options.server if "//" in options.server else f"http://{options.server}")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise errors.InvalidSetting(
                f"{options.server!r} is not the address of a server; write http://HOST:PORT."
            )
        self._secure = parts.scheme == "https"
        self._host, self._port, self._prefix = parts.hostname, parts.port, parts.path.rstrip("/")
        self._token_file = options.token_file or options.data / TOKEN_FILE
        self._token_needed = options.token_file is not None
        self._wait_s = options.poll_wait_s
        self._open: set[http.client.HTTPConnection] = set()
        self._kept: dict[str, http.client.HTTPConnection] = {}
        self._lock = threading.Lock()
        self._closed = False

    def table(self, after: int) -> RoutingTable | None:
        """The newest table with a higher number than `after`, waiting for one; None when none came.

        Raises:
            ServerUnavailable, or what the server said.
        """
        path = f"/api/v1/gateway/table?after={after}&wait_s={self._wait_s:g}"
        status, data = self._call("table", "GET", path, None, self._wait_s + CALL_TIMEOUT_S)
        if status == 204:
            return None
        return check_table(codec.decode_untrusted(data, RoutingTable, max_bytes=TABLE_MAX_BYTES))

    def report(self, report: GatewayReport) -> GatewayReply:
        """Hand over a report.

        Raises:
            ServerUnavailable, or what the server said.
        """
        _, data = self._call(
            "report", "POST", "/api/v1/gateway/reports", codec.encode(report), CALL_TIMEOUT_S
        )
        return codec.decode_untrusted(data, GatewayReply)

    def blob(self, digest: Digest) -> Iterator[bytes]:
        """The bytes of a file.

        Raises:
            ServerUnavailable, or what the server said; also between two chunks.
        """
        connection = self._connect(CALL_TIMEOUT_S)
        path = f"{self._prefix}/api/v1/gateway/blobs/{digest}"
        try:
            with _unavailable():
                response = self._answered(connection, "GET", path, None)
                if response.status != 200:
                    raise _said(response.status, response.read(codec.JSON_MAX_BYTES))
                while chunk := response.read(CHUNK_BYTES):
                    yield chunk
        finally:
            self._drop(connection)

    def interrupt(self) -> None:
        """End all calls under way, from another thread; they fail and may be made again."""
        with self._lock:
            for connection in self._open:
                if connection.sock is not None:
                    with contextlib.suppress(OSError):
                        connection.sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End all calls under way, and make no more."""
        with self._lock:
            self._closed = True
            idle, self._kept = list(self._kept.values()), {}
        for connection in idle:
            self._drop(connection)
        self.interrupt()

    def _call(
        self, kind: str, method: str, path: str, body: bytes | None, timeout_s: float
    ) -> tuple[int, bytes]:
        connection = self._kept.pop(kind, None) or self._connect(timeout_s)
        try:
            with _unavailable():
                response = self._answered(connection, method, self._prefix + path, body)
                data = response.read(TABLE_MAX_BYTES + 1)
        except BaseException:
            self._drop(connection)
            raise
        with self._lock:
            keep = not (response.will_close or self._closed)
            if keep:
                self._kept[kind] = connection
        if not keep:
            self._drop(connection)
        if response.status not in (200, 202, 204):
            raise _said(response.status, data)
        return response.status, data

    def _answered(
        self, connection: http.client.HTTPConnection, method: str, path: str, body: bytes | None
    ) -> http.client.HTTPResponse:
        """Ask, and once more when the token was replaced in between: a server that starts takes the gateway's
        former token back, and a request that waited for it to start still carries that one."""
        token = self._token()
        response = self._asked(connection, method, path, body, token)
        if response.status == 401 and (newer := self._token()) != token:
            response.read(codec.JSON_MAX_BYTES)
            if response.will_close:
                connection.close()  # it opens again by itself
            response = self._asked(connection, method, path, body, newer)
        return response

    @staticmethod
    def _asked(
        connection: http.client.HTTPConnection, method: str, path: str, body: bytes | None, token: str | None
    ) -> http.client.HTTPResponse:
        headers = {"Accept": "application/json", "User-Agent": "modelkeep-gateway"}
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        if body is not None:
            headers["Content-Type"] = "application/json"
        connection.request(method, path, body, headers)
        return connection.getresponse()

    def _connect(self, timeout_s: float) -> http.client.HTTPConnection:
        make = http.client.HTTPSConnection if self._secure else http.client.HTTPConnection
        connection = make(self._host, self._port, timeout=timeout_s)
        with self._lock:
            if self._closed:
                raise errors.ServerUnavailable("The gateway is stopping.")
            self._open.add(connection)
        return connection

    def _drop(self, connection: http.client.HTTPConnection) -> None:
        with self._lock:
            self._open.discard(connection)
        connection.close()

    def _token(self) -> str | None:
        """The token as it is now, for it is renewed under our feet. None where there is none and none was
        named."""
        try:
            with open(self._token_file, "rb") as file:
                return file.read(TOKEN_MAX_BYTES).decode("ascii").strip()
        except FileNotFoundError as problem:
            if not self._token_needed:
                return None
            raise self._unreadable(problem) from problem
        except (OSError, UnicodeDecodeError) as problem:
            raise self._unreadable(problem) from problem

    def _unreadable(self, problem: Exception) -> errors.NotAuthenticated:
        return errors.NotAuthenticated(f"The token file {self._token_file} cannot be read: {problem}.")


@contextlib.contextmanager
def _unavailable() -> Iterator[None]:
    try:
        yield
    except (OSError, http.client.HTTPException) as problem:
        raise errors.ServerUnavailable(
            f"The control plane does not answer ({type(problem).__name__}); the gateway serves on."
        ) from problem


def _said(status: int, data: bytes) -> errors.ModelkeepError:
    """What the server answered, as an error of the core."""
    try:
        problem = codec.decode(data, dict)
        return errors.from_code(str(problem["code"]), str(problem["detail"]), {"status": status})
    except (errors.ModelkeepError, KeyError):
        return errors.ServerUnavailable(f"The control plane answered with status {status}.", status=status)
