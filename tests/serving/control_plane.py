"""A control plane small enough to read in a minute, for tests and benchmarks of the gateway: it hands out one
table, takes reports as the real one does (each tick and rollback once), and serves files by digest. It
decides nothing."""

import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from modelkeep.core import codec
from modelkeep.core.observation import GatewayReply, GatewayReport, LocalRollback, Tick
from modelkeep.core.routing import EMPTY_TABLE, RoutingTable


class FakeControlPlane:
    """Use as a context manager; `stop` and `start` again on the same port to make it go away for a while."""

    def __init__(self, token: str | None = None) -> None:
        self.table = EMPTY_TABLE
        self.blobs: dict[str, bytes] = {}
        self.reports: list[GatewayReport] = []
        self.ticks: dict[tuple[str, str | None], list[Tick]] = {}
        self.rollbacks: list[LocalRollback] = []
        self.fail_next_replies = 0
        self.refused = 0
        self.token = token
        self.polls = 0
        self._changed = threading.Condition()
        self._server: ThreadingHTTPServer | None = None
        self._thread: threading.Thread | None = None
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> "FakeControlPlane":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        plane = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def log_message(self, *_: Any) -> None:
                pass

            def do_GET(self) -> None:
                plane._get(self)

            def do_POST(self) -> None:
                plane._post(self)

        ThreadingHTTPServer.allow_reuse_address = True
        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        if self._server is None or self._thread is None:
            return
        server, self._server = self._server, None
        with self._changed:
            self._changed.notify_all()
        server.shutdown()
        server.server_close()
        self._thread.join()

    def publish(self, table: RoutingTable) -> None:
        """Have this table from now on."""
        with self._changed:
            self.table = table
            self._changed.notify_all()

    def _authorised(self, handler: BaseHTTPRequestHandler) -> bool:
        if self._server is None:  # stopped: a kept connection must not go on being served
            handler.close_connection = True
            handler.connection.close()
            return False
        if self.token is None or handler.headers.get("Authorization") == f"Bearer {self.token}":
            return True
        self.refused += 1
        self._send(handler, 401, json.dumps({"code": "NOT_AUTHENTICATED", "detail": "Who are you?"}).encode())
        return False

    def _get(self, handler: BaseHTTPRequestHandler) -> None:
        if not self._authorised(handler):
            return
        parts = urlsplit(handler.path)
        if parts.path == "/api/v1/gateway/table":
            query = parse_qs(parts.query)
            after, until = int(query["after"][0]), time.monotonic() + float(query["wait_s"][0])
            self.polls += 1
            with self._changed:
                while self.table.number <= after and self._server is not None and time.monotonic() < until:
                    self._changed.wait(min(0.2, until - time.monotonic()))
                table = self.table
            if self._server is None:
                handler.close_connection = True
            elif table.number > after:
                self._send(handler, 200, codec.encode(table))
            else:
                self._send(handler, 204, b"")
        elif parts.path.startswith("/api/v1/gateway/blobs/"):
            data = self.blobs.get(parts.path.rpartition("/")[2])
            if data is None:
                self._send(
                    handler, 404, json.dumps({"code": "BLOB_NOT_FOUND", "detail": "No such file."}).encode()
                )
            else:
                self._send(handler, 200, data)
        else:
            self._send(handler, 404, b"{}")

    def _post(self, handler: BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers["Content-Length"]))
        if not self._authorised(handler):
            return
        report = codec.decode(body, GatewayReport)
        self.reports.append(report)
        marks: dict[tuple[str, str | None], int] = {}
        for tick in report.ticks:
            key = (tick.endpoint, tick.rollout)
            kept = self.ticks.setdefault(key, [])
            if not kept or tick.number > kept[-1].number:
                kept.append(tick)
            marks[key] = kept[-1].number
        for rollback in report.rollbacks:
            if rollback not in self.rollbacks:
                self.rollbacks.append(rollback)
        if self.fail_next_replies:
            self.fail_next_replies -= 1
            self._send(handler, 500, b"{}")
            return
        taken = tuple((endpoint, rollout, number) for (endpoint, rollout), number in marks.items())
        self._send(
            handler, 200, codec.encode(GatewayReply(taken=taken, rollbacks_taken=len(report.rollbacks)))
        )

    @staticmethod
    def _send(handler: BaseHTTPRequestHandler, status: int, body: bytes) -> None:
        handler.send_response(status)
        if status != 204:
            handler.send_header("Content-Type", "application/json")
            handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        if status != 204:
            handler.wfile.write(body)


def until(condition: Callable[[], bool], what: str, *, timeout_s: float = 60.0) -> None:
    """Wait until something is so, and say what it was when it is not in time, which no machine is too slow
    for."""
    end = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"not within {timeout_s:g} s: {what}")
        time.sleep(0.01)
