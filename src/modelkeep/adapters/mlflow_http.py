"""How an MLflow server is asked over HTTP when it may be anybody's: by the standard library, with limits on
everything, and without following where it may point.

It knows what a request, a page and a refusal are, and nothing of experiments.
"""

import base64
import time
from collections.abc import Iterator, Mapping
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import Any, TypeVar
from urllib.parse import quote, urlencode, urlsplit

from msgspec import Struct

from modelkeep.core import codec, errors, values

# Limits of the talk with a server that may be anybody's; each with the reason for its size.
ANSWER_MAX_BYTES = 64 * 1024 * 1024
"""Bytes of one answer that is no file: a page of runs has some MiB at most."""
TIMEOUT_S = 60.0
"""How long any part of an answer is waited for."""
ANSWER_S = 300.0
"""How long a whole answer is waited for that is no file."""
LEAST_BYTES_S = 1024
"""Bytes a second that a file has to bring, after the first minute."""
ATTEMPTS = 3
"""Times that one request is sent; all of them only read."""
PAGES_MAX = 1_000_000
"""Pages of one list: a server that goes round in circles is noticed by its tokens long before."""
CHUNK_BYTES = 1024 * 1024
"""Bytes of a file that are in memory at a time."""

T = TypeVar("T")


class _Problem(Struct, frozen=True):
    error_code: str = ""
    message: str = ""


class NoSuchThing(errors.SourceUnreadable):
    """There is no such address, or nothing of that name."""

    code = "SOURCE_UNREADABLE"


class MlflowHttp:
    """One server. Not for several threads."""

    def __init__(
        self, url: str, *, token: str | None, user: str | None, password: str | None, workspace: str | None
    ) -> None:
        """Raises InvalidSetting: it is no address of an HTTP server."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise errors.InvalidSetting(
                f"{values.quoted(url, 200)} is not the address of a server; write http://HOST:PORT.",
                field="source",
            )
        port = f":{parts.port}" if parts.port else ""
        self.address = f"{parts.scheme}://{parts.hostname}{port}{parts.path.rstrip('/')}"
        if workspace:
            self.address += f"?workspace={quote(workspace)}"
        self._secure, self._host, self._port = parts.scheme == "https", parts.hostname, parts.port
        self._base = parts.path.rstrip("/")
        self._headers = {"Accept": "application/json", "User-Agent": "modelkeep-import"}
        user, password = user or parts.username, password or parts.password
        if token:
            self._headers["Authorization"] = f"Bearer {token}"
        elif user:
            pair = base64.b64encode(f"{user}:{password or ''}".encode()).decode()
            self._headers["Authorization"] = f"Basic {pair}"
        if workspace:
            self._headers["X-MLFLOW-WORKSPACE"] = workspace
        self._connection: HTTPConnection | None = None

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def pages(self, method: str, path: str, asked: Mapping[str, Any], kind: type[T]) -> Iterator[T]:
        """The pages of a list, until there is no further token; one that comes twice is refused."""
        seen: set[str] = set()
        more: dict[str, Any] = {}
        while True:
            page = self.ask(method, path, {**asked, **more}, kind)
            yield page
            token: str = getattr(page, "next_page_token", "")
            if not token:
                return
            if token in seen or len(seen) >= PAGES_MAX:
                raise self._wrong("its pages go round in circles")
            seen.add(token)
            more = {"page_token": token}

    def upload(self, path: str, chunks: Iterator[bytes], size_bytes: int) -> None:
        """Send the bytes of a file, which replace what is there. Raises as `ask`."""
        self.close()
        try:
            self._connect()
            assert self._connection is not None
            headers = {**self._headers, "Content-Length": str(size_bytes)}
            headers["Content-Type"] = "application/octet-stream"
            self._connection.request("PUT", self._base + path, chunks, headers)
            answer = self._connection.getresponse()
            if answer.status not in (200, 204):
                self._refuse(answer)
            answer.read(CHUNK_BYTES)
        except TimeoutError as problem:
            raise self._too_slow() from problem
        except (OSError, HTTPException) as problem:
            raise self._broken(problem) from problem
        finally:
            self.close()

    def tell(self, path: str, said: Mapping[str, Any], kind: type[T], method: str = "POST") -> T:
        """Have something done: sent once, for nobody knows whether it was done when no answer comes. Raises
        as `ask`."""
        data = self._whole(method, path, codec.encode(said), attempts=1)
        try:
            return codec.decode(data or b"{}", kind)
        except errors.MalformedBody as problem:
            raise self._wrong(problem.message) from problem

    def ask(self, method: str, path: str, asked: Mapping[str, Any], kind: type[T]) -> T:
        """One answer in its shape.

        Raises:
            NoSuchThing: there is no such address, or nothing of that name.
            SourceUnreadable: it is no answer of MLflow's, or refused. ServerUnavailable, TimedOut.
        """
        target, body = path, b""
        if method == "GET" and asked:
            target = f"{path}?{urlencode(asked)}"
        elif method == "POST":
            body = codec.encode(asked)
        data = self._whole(method, target, body)
        try:
            return codec.decode(data, kind)
        except errors.MalformedBody as problem:
            raise self._wrong(problem.message) from problem

    def _whole(self, method: str, target: str, body: bytes, attempts: int = ATTEMPTS) -> bytes:
        answer = self._begin(method, target, body, attempts)
        parts: list[bytes] = []
        size, until = 0, time.monotonic() + ANSWER_S
        try:
            while chunk := answer.read1(CHUNK_BYTES):
                size += len(chunk)
                if size > ANSWER_MAX_BYTES:
                    raise self._wrong(f"an answer has more than {ANSWER_MAX_BYTES:,} bytes")
                if time.monotonic() > until:
                    raise self._too_slow()
                parts.append(chunk)
        except TimeoutError as problem:
            raise self._too_slow() from problem
        except (OSError, HTTPException) as problem:
            raise self._broken(problem) from problem
        finally:
            if not answer.isclosed():
                self.close()
        return b"".join(parts)

    def stream(self, target: str) -> Iterator[bytes]:
        """The bytes of a file, in pieces. Raises as `ask`."""
        answer = self._begin("GET", target, b"")
        began, size = time.monotonic(), 0
        try:
            while chunk := answer.read1(CHUNK_BYTES):
                size += len(chunk)
                if time.monotonic() - began > TIMEOUT_S + size / LEAST_BYTES_S:
                    raise self._too_slow()
                yield chunk
            if answer.length:
                raise self._broken(ConnectionResetError("it ended early"))
        except TimeoutError as problem:
            raise self._too_slow() from problem
        except (OSError, HTTPException) as problem:
            raise self._broken(problem) from problem
        finally:
            if not answer.isclosed():
                self.close()

    def _begin(self, method: str, target: str, body: bytes, attempts: int = ATTEMPTS) -> HTTPResponse:
        """An answer that says yes; what is refused is told."""
        for attempt in range(1, attempts + 1):
            try:
                answer = self._attempt(method, target, body)
            except TimeoutError as problem:
                self.close()
                raise self._too_slow() from problem
            except (OSError, HTTPException) as problem:
                self.close()
                if attempt == attempts:
                    raise self._broken(problem) from problem
                continue
            if answer.status == 200:
                return answer
            self._refuse(answer)
        raise AssertionError("the last attempt returns or raises")

    def _attempt(self, method: str, target: str, body: bytes) -> HTTPResponse:
        self._connect()
        assert self._connection is not None
        headers = {**self._headers, **({"Content-Type": "application/json"} if body else {})}
        self._connection.request(method, self._base + target, body or None, headers)
        return self._connection.getresponse()

    def _connect(self) -> None:
        if self._connection is None:
            kind = HTTPSConnection if self._secure else HTTPConnection
            self._connection = kind(self._host, self._port, timeout=TIMEOUT_S)

    def _refuse(self, answer: HTTPResponse) -> None:
        """Raises what an answer other than 200 says."""
        status = answer.status
        try:
            said = codec.decode(answer.read(CHUNK_BYTES), _Problem)
        except (errors.MalformedBody, OSError, HTTPException):
            said = _Problem()
        self.close()
        told = values.printable(said.message)[:300] or f"it answered {status}"
        if 300 <= status < 400:
            raise self._wrong("it sends elsewhere; name the address where it really is")
        if status in (401, 403):
            raise errors.NotAuthenticated(
                f"{self.address} wants to know who asks: {told}. Set MLFLOW_TRACKING_TOKEN, or "
                "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD."
            )
        if status == 404:
            raise NoSuchThing(f"{self.address}: {told}")
        if status in (429, 502, 503, 504):
            raise errors.ServerUnavailable(f"{self.address} does not answer now: {told}.", url=self.address)
        raise self._wrong(told)

    def _wrong(self, what: str) -> errors.SourceUnreadable:
        return errors.SourceUnreadable(
            f"{self.address} does not answer as MLflow does: {what.rstrip('.')}.", source=self.address
        )

    def _too_slow(self) -> errors.TimedOut:
        return errors.TimedOut(f"{self.address} takes too long to answer; run the same again.")

    def _broken(self, problem: Exception) -> errors.ServerUnavailable:
        return errors.ServerUnavailable(
            f"{self.address} cannot be reached ({type(problem).__name__}); run the same again.",
            url=self.address,
        )
