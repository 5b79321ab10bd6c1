"""A small server of the standard library that speaks Modelkeep's wire, for tests of the client and the
command line.

It answers what a test has put in, records what it was asked, and can break off. Drafts and downloads behave
as the real ones do, so that resuming is tested against the protocol and not against a script of answers.
"""

import hashlib
import json
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from modelkeep.core import codec, errors
from modelkeep.web import problems

Answer = tuple[int, bytes, dict[str, str]]


class Asked:
    """One request as it arrived."""

    def __init__(
        self, method: str, target: str, headers: dict[str, str], body: bytes, connection: int
    ) -> None:
        parts = urlsplit(target)
        self.method, self.path = method, unquote(parts.path)
        self.query = dict(parse_qsl(parts.query))
        self.headers, self.body, self.connection = headers, body, connection

    def __repr__(self) -> str:
        return f"{self.method} {self.path} {self.query}"


def ok(value: object, status: int = 200) -> Answer:
    """An answer in JSON."""
    return status, codec.encode(value), {"Content-Type": "application/json"}


def refusal(error: errors.ModelkeepError) -> Answer:
    """An error as the real server sends it."""
    problem = {"status": 0, "detail": error.message, "code": error.code, "details": error.details}
    body = codec.encode({**problem, "request_id": "req_test"})
    return problems.status_of(error), body, {"Content-Type": problems.PROBLEM_TYPE}


class BreakOff(Exception):
    """Raised by an answer to close the connection without one."""


class FakeServer:
    """Answers by method and path. `answers` maps them to values, errors, or functions of the request."""

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        self.answers: dict[tuple[str, str], Any] = {}
        self.drafts = Drafts(self)
        self.files: dict[str, bytes] = {}
        self.cut_downloads_at: list[int] = []
        self.cut_uploads_at: list[int] = []
        self.url = ""

    def on(self, method: str, path: str, answer: Any) -> None:
        """Answer a request with a value, an error to raise, or what a function of the request returns."""
        self.answers[method, path] = answer

    def answer(self, asked: Asked) -> Answer:
        known = self.answers.get((asked.method, asked.path))
        if known is None:
            known = self.drafts.answer_to(asked)
        if asked.path == "/api/v1/version/file" and known is None:
            known = self._download(asked)
        if known is None:
            known = errors.RouteNotFound(f"There is no {asked.method} {asked.path}.")
        if callable(known):
            known = known(asked)
        if isinstance(known, errors.ModelkeepError):
            return refusal(known)
        return known if isinstance(known, tuple) else ok(known)

    def _download(self, asked: Asked) -> Answer:
        data = self.files[asked.query["path"]]
        start = 0
        if match := re.fullmatch(r"bytes=(\d+)-", asked.headers.get("range", "")):
            start = int(match[1])
        return (206 if start else 200), data[start:], {"Content-Type": "application/octet-stream"}


class Drafts:
    """Registrations as the real server keeps them: announced files, what has arrived, and the end."""

    def __init__(self, server: FakeServer) -> None:
        self.server = server
        self.draft: dict[str, Any] | None = None
        self.stored: dict[str, bytes] = {}
        self.finalize: Any = None
        self.cancelled = False

    def begin(self, asked: Asked) -> Answer:
        spec = json.loads(asked.body)
        self.draft = {
            "id": "dft_1",
            "model": {"project": "default", "name": "churn"},
            "status": "open",
            "spec": spec,
            "files": [{**entry} for entry in spec["files"]],
            "created_at": "2026-01-25T14:03:00Z",
            "created_by": "ada",
            "touched_at": "2026-01-25T14:03:00Z",
        }
        return ok(self.state(), 201)

    def state(self) -> dict[str, Any]:
        assert self.draft is not None
        for entry in self.draft["files"]:
            held = self.stored.get(entry["digest"], b"")
            entry["offset"], entry["present"] = len(held), len(held) == entry["size_bytes"]
        return self.draft

    def answer_to(self, asked: Asked) -> Any:
        if asked.method == "POST" and asked.path.endswith("/drafts"):
            return self.begin(asked)
        if not asked.path.startswith("/api/v1/drafts/dft_1"):
            return None
        match asked.method, asked.path.removeprefix("/api/v1/drafts/dft_1"):
            case "GET", "":
                return self.state()
            case "DELETE", "":
                self.cancelled = True
                return {"done": True}
            case "PUT", "/file":
                return self.upload(asked)
            case "POST", "/finalize":
                return self.finalize
            case _:
                return None

    def upload(self, asked: Asked) -> Any:
        entry = next(e for e in self.state()["files"] if e["path"] == asked.query["path"])
        held = self.stored.get(entry["digest"], b"")
        offset = int(asked.query.get("offset", 0))
        if offset != len(held):
            return errors.OffsetMismatch(
                "The bytes do not begin where the stored ones end.", offset=len(held)
            )
        held += asked.body
        self.stored[entry["digest"]] = held
        if len(asked.body) < int(asked.headers["content-length"]):
            raise BreakOff
        if "sha256:" + hashlib.sha256(held).hexdigest() != entry["digest"]:
            del self.stored[entry["digest"]]
            return errors.DigestMismatch("The bytes are not those that were announced.")
        plan = {"draft": "dft_1", "path": entry["path"], "upload_id": "u", "digest": entry["digest"]}
        return {**plan, "size_bytes": entry["size_bytes"], "offset": len(held), "present": True}


@contextmanager
def running() -> Iterator[FakeServer]:
    """A fake server on a free port of this machine, until the block ends."""
    fake = FakeServer()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def setup(self) -> None:
            super().setup()
            self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

        def _handle(self) -> None:
            headers = {key.lower(): value for key, value in self.headers.items()}
            length = int(headers.get("content-length", 0))
            cut = fake.cut_uploads_at.pop(0) if fake.cut_uploads_at and self.command == "PUT" else length
            body = self.rfile.read(min(cut, length))
            asked = Asked(self.command, self.path, headers, body, self.client_address[1])
            fake.asked.append(asked)
            try:
                status, data, more = fake.answer(asked)
            except BreakOff:
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            self.send_response(status)
            for name, value in {"Content-Length": str(len(data)), **more}.items():
                self.send_header(name, value)
            self.end_headers()
            if asked.path == "/api/v1/version/file" and fake.cut_downloads_at:
                self.wfile.write(data[: fake.cut_downloads_at.pop(0)])
                self.wfile.flush()
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            self.wfile.write(data)

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _handle  # noqa: N815  (the library's names)

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    fake.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield fake
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
