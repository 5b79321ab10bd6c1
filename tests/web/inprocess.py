"""The application in this process: requests go in as ASGI messages, and answers come back whole.

No socket and no server: what uvicorn adds is tested with a real one. The application's event loop runs in a
thread of its own, so that tests are plain functions.
"""

import asyncio
import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from modelkeep.web.app import Application


class Cut(Exception):
    """The application ended an answer before it was whole."""


@dataclass
class Reply:
    """An answer."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str | None:
        """The problem's code; None for an answer that is none."""
        if self.headers.get("content-type") != "application/problem+json":
            return None
        return str(self.json()["code"])


class InProcess:
    """A client of one application. `token` is sent with every request that says no other."""

    def __init__(self, app: Application, token: str | None = None) -> None:
        self.app = app
        self.token = token
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def start(self) -> None:
        self._thread.start()
        self._inbox: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._told: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._life = asyncio.run_coroutine_threadsafe(
            self.app({"type": "lifespan"}, self._inbox.get, self._told.put), self._loop
        )
        self._say("lifespan.startup")

    def stop(self) -> None:
        self._say("lifespan.shutdown")
        self._life.result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def _say(self, kind: str) -> None:
        async def exchange() -> None:
            await self._inbox.put({"type": kind})
            assert (await self._told.get())["type"] == f"{kind}.complete"

        asyncio.run_coroutine_threadsafe(exchange(), self._loop).result(10)

    def __call__(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        query: dict[str, Any] | str | None = None,
        raw: bytes | None = None,
        parts: Sequence[bytes] | None = None,
        headers: dict[str, str] | Sequence[tuple[str, str]] | None = None,
        token: str | None = None,
        stops: bool = False,
        deaf: bool = False,
    ) -> Reply:
        """Send one request.

        Args:
            body: sent as JSON. raw: sent as it is. parts: sent piece by piece, without a length.
            stops: the last piece never comes, and the connection stays open.
            deaf: nothing is taken after the head of the answer.
        """
        lines = list(headers.items()) if isinstance(headers, dict) else list(headers or ())
        given = {name.lower() for name, _ in lines}
        pieces: Sequence[bytes] = parts if parts is not None else (raw if raw is not None else b"",)
        if body is not None:
            pieces = (json.dumps(body).encode(),)
            if "content-type" not in given:
                lines.append(("content-type", "application/json"))
        if parts is not None:
            lines.append(("transfer-encoding", "chunked"))
        elif pieces != (b"",) and "content-length" not in given:
            lines.append(("content-length", str(len(pieces[0]))))
        if "host" not in given:
            lines.append(("host", "localhost"))
        secret = token or self.token
        if secret and "authorization" not in given:
            lines.append(("authorization", f"Bearer {secret}"))
        text = query if isinstance(query, str) else urlencode(query or {})
        scope = {
            "type": "http",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "query_string": text.encode(),
            "headers": [(k.lower().encode("latin-1"), v.encode("latin-1")) for k, v in lines],
        }
        return asyncio.run_coroutine_threadsafe(
            self._exchange(scope, list(pieces), stops, deaf), self._loop
        ).result(60)

    async def _exchange(self, scope: dict[str, Any], pieces: list[bytes], stops: bool, deaf: bool) -> Reply:
        sent: list[dict[str, Any]] = []
        forever = asyncio.Event()

        async def receive() -> dict[str, Any]:
            if not pieces:
                await forever.wait()
            part = pieces.pop(0)
            return {"type": "http.request", "body": part, "more_body": bool(pieces) or stops}

        async def send(message: Any) -> None:
            if deaf and sent:
                await forever.wait()
            sent.append(dict(message))

        await self.app(scope, receive, send)
        if not sent or sent[-1]["type"] != "http.response.body" or sent[-1].get("more_body"):
            raise Cut(f"{scope['method']} {scope['path']}")
        headers = {k.decode("latin-1"): v.decode("latin-1") for k, v in sent[0]["headers"]}
        assert len(headers) == len(sent[0]["headers"]), "no header stands twice"
        return Reply(sent[0]["status"], headers, b"".join(message["body"] for message in sent[1:]))


@contextmanager
def in_process(app: Application, token: str | None = None) -> Iterator[InProcess]:
    """A client of an application that lives as long as the block."""
    client = InProcess(app, token)
    client.start()
    try:
        yield client
    finally:
        client.stop()
