"""How one HTTP operation runs: decode, authenticate, open an act, encode. The rows are in `app`, the verbs in
`api`.

An operation is data: method, path, the shapes of its query, body and answer, how it runs, and one function
that calls the service. The OpenAPI document, the authorisation matrix of the tests and the dispatcher all
read the same rows, so a route cannot exist without being described and checked.

    read    in a snapshot, on the event loop where the store never waits for a network, else in the bounded pool
    write   one durable act in the store's writer
    slow    a read that may be long, always in the pool
    task    several acts and outside work (hashing files), in the pool; the function gets the desk instead of an act
    stream  bytes in or out; the function drives the connection itself
"""

import asyncio
import hashlib
import logging
import re
import secrets
import time
from collections.abc import Awaitable, Callable, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from enum import StrEnum
from functools import partial
from typing import Any, NoReturn
from urllib.parse import parse_qsl

import msgspec
from msgspec import Struct

from modelkeep.core import codec, errors
from modelkeep.core.access import Caller
from modelkeep.core.values import ModelName, check_name
from modelkeep.service.act import Act, Context
from modelkeep.service.house import House
from modelkeep.web import problems
from modelkeep.web.figures import Figures
from modelkeep.web.wakeup import Wakeup

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

POOL_THREADS = 8
"""Long reads, hashing and file bytes at a time; more would only fight for two cores."""
BODY_DEADLINE_S = 30.0
"""A JSON body has to arrive within this time."""
QUERY_MAX = 16_000
"""Bytes of a query string."""
REQUEST_ID_MAX = 128
"""Characters of a caller's own request id."""

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}", re.ASCII)
_log = logging.getLogger("modelkeep.web")


class Mode(StrEnum):
    """How an operation runs."""

    READ = "read"
    WRITE = "write"
    SLOW = "slow"
    TASK = "task"
    STREAM = "stream"


class NoQuery(Struct, frozen=True, forbid_unknown_fields=True):
    """For operations that take no query parameters."""


class Call(Struct, frozen=True):
    """One request, decoded: path parameters, query and body in their shapes, who asks, and the raw connection
    for streams."""

    house: House
    context: Context
    path: dict[str, str]
    query: Any
    body: Any
    scope: Scope
    receive: Receive
    send: Send

    @property
    def model(self) -> ModelName:
        """The model that the path names."""
        return ModelName(check_name(self.path["project"], "project"), check_name(self.path["model"], "model"))


Handler = Callable[..., Any]


class Operation(Struct, frozen=True, kw_only=True):
    """One row of the route table. `name` is the operation's id in OpenAPI and the SDK's method; `body` and
    `answer` are shapes; `open` marks the few routes that need no credential."""

    name: str
    method: str
    path: str
    mode: Mode
    handler: Handler
    summary: str
    query: type[Any] = NoQuery
    body: Any = None
    answer: Any = None
    status: int = 200
    open: bool = False
    raw: bool = False


class Dispatcher:
    """Runs operations for one house; made once by the application."""

    def __init__(self, house: House) -> None:
        self.house = house
        self.figures = Figures()
        self.openapi = b""
        self.committed = Wakeup()
        house.desk.database.on_commit(lambda _sequence: self.committed.ring())
        self.pool = ThreadPoolExecutor(POOL_THREADS, thread_name_prefix="modelkeep-pool")

    def close(self) -> None:
        """Wait for running work and let the threads go."""
        self.pool.shutdown(wait=True, cancel_futures=True)

    def bind(self, operation: Operation) -> "Bound":
        """The ASGI application of one operation."""
        return Bound(self, operation)

    async def in_pool(self, work: Callable[[], Any]) -> Any:
        """Run blocking work beside the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self.pool, work)

    async def run(self, operation: Operation, call: Call, key: str | None) -> Any:
        """Carry out an operation; what it returns is the answer's shape, or ready bytes."""
        desk, handler = self.house.desk, operation.handler
        match operation.mode:
            case Mode.READ if not desk.database.reads_block:
                return desk.read(call.context, handler, call)
            case Mode.READ | Mode.SLOW:
                return await self.in_pool(partial(desk.read, call.context, handler, call))
            case Mode.WRITE if key is not None:
                return await self._once(operation, call, key)
            case Mode.WRITE:
                return await asyncio.wrap_future(desk.write(call.context, handler, call))
            case Mode.TASK:
                return await self.in_pool(partial(handler, call))
            case Mode.STREAM:
                return await handler(call, self)

    async def _once(self, operation: Operation, call: Call, key: str) -> bytes:
        """A write under an idempotency key: the answer of the first time is the answer of every time."""
        document = codec.encode([operation.name, call.path, call.query, call.body])
        fingerprint = hashlib.sha256(document).hexdigest()

        def act_once(act: Act) -> bytes:
            known = self.house.access.recall(act, key, fingerprint)
            if known is not None:
                return known
            answer = codec.encode(operation.handler(act, call))
            self.house.access.remember(act, key, fingerprint, answer)
            return answer

        return await asyncio.wrap_future(self.house.desk.write(call.context, act_once))


class Bound:
    """An operation as an ASGI application."""

    def __init__(self, dispatcher: Dispatcher, operation: Operation) -> None:
        self.dispatcher = dispatcher
        self.operation = operation

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        began = time.perf_counter()
        headers: dict[bytes, bytes] = dict(scope["headers"])
        request_id = _request_id(headers)
        status = self.operation.status
        context: Context | None = None
        try:
            context = Context(caller=await self._caller(headers), request_id=request_id)
            await self._answer(context, headers, scope, receive, send)
        except errors.ModelkeepError as error:
            status = problems.status_of(error)
            await problem(send, error, request_id)
            if isinstance(error, errors.NotAllowed) and context is not None:
                self._note_refusal(context, error)
        except (ConnectionError, asyncio.CancelledError):
            status = 499
            raise
        except Exception:  # noqa: BLE001  (the one net under all operations: logged whole, told in one line)
            status = problems.status_of(problems.UNEXPECTED)
            _log.exception(
                "request.failed", extra={"operation": self.operation.name, "request_id": request_id}
            )
            await problem(send, problems.UNEXPECTED, request_id)
        finally:
            self.dispatcher.figures.count(self.operation.name, status, time.perf_counter() - began)

    async def _answer(
        self, context: Context, headers: dict[bytes, bytes], scope: Scope, receive: Receive, send: Send
    ) -> None:
        operation = self.operation
        query = _query(scope, operation.query)
        body = None
        if operation.body is not None:
            body = _body(await read_body(headers, receive), headers, operation)
        call = Call(
            self.dispatcher.house, context, dict(scope["path_params"]), query, body, scope, receive, send
        )
        answer = await self.dispatcher.run(operation, call, _key(headers))
        if operation.mode is Mode.STREAM and answer is None:
            return
        payload = answer if isinstance(answer, bytes) else codec.encode(answer)
        await respond(send, operation.status, payload, request_id=context.request_id)

    def _note_refusal(self, context: Context, error: errors.NotAllowed) -> None:
        """Put a refused attempt into the audit log, unless the caller has made too many already."""
        house = self.dispatcher.house
        if house.access.worth_noting(context.caller):
            house.desk.write(context, house.access.note_refusal, self.operation.name, error)

    async def _caller(self, headers: dict[bytes, bytes]) -> Caller:
        access = self.dispatcher.house.access
        if self.operation.open:
            return access.anonymous
        credential = headers.get(b"authorization")
        text = credential.decode("latin-1") if credential is not None else None
        known = access.remembered(text)
        if known is not None:
            return known
        found: Caller = await self.dispatcher.in_pool(partial(access.authenticate, text))
        return found


def _request_id(headers: dict[bytes, bytes]) -> str:
    given = headers.get(b"x-request-id")
    if given is not None:
        text = given.decode("latin-1")
        if _REQUEST_ID.fullmatch(text):
            return text
    return f"req-{secrets.token_hex(8)}"


def _key(headers: dict[bytes, bytes]) -> str | None:
    given = headers.get(b"idempotency-key")
    if given is None:
        return None
    text = given.decode("latin-1")
    if not _REQUEST_ID.fullmatch(text):
        raise errors.Invalid("An Idempotency-Key has 1 to 128 letters, digits, '.', '_', ':' or '-'.")
    return text


def _query(scope: Scope, shape: type[Any]) -> Any:
    raw: bytes = scope["query_string"]
    if not raw and shape is NoQuery:
        return None
    if len(raw) > QUERY_MAX:
        raise errors.LimitExceeded(f"The query string has more than {QUERY_MAX:,} bytes.")
    try:
        pairs = parse_qsl(
            raw.decode("ascii"), keep_blank_values=True, strict_parsing=bool(raw), errors="strict"
        )
    except (ValueError, UnicodeDecodeError) as error:
        raise errors.Invalid("The query string is not valid; percent-encode it as UTF-8.") from error
    found: dict[str, str] = {}
    for name, value in pairs:
        if name in found:
            raise errors.Invalid(f"The query parameter {name[:60]!r} stands twice; keep one.")
        if "\x00" in value:
            raise errors.Invalid(f"The query parameter {name[:60]!r} contains a NUL character; remove it.")
        found[name] = value
    try:
        return msgspec.convert(found, shape, strict=False)
    except msgspec.ValidationError as error:
        known = ", ".join(field.encode_name for field in msgspec.structs.fields(shape)) or "none"
        raise errors.Invalid(
            f"The query parameters do not fit: {error}. This address takes: {known}."
        ) from error


def _body(data: bytes, headers: dict[bytes, bytes], operation: Operation) -> Any:
    if operation.raw:
        return data
    kind = headers.get(b"content-type", b"").split(b";")[0].strip().lower()
    if kind != b"application/json":
        raise errors.MalformedBody("Send the body as JSON with the header 'Content-Type: application/json'.")
    return codec.decode_untrusted(data, operation.body)


async def read_body(headers: dict[bytes, bytes], receive: Receive) -> bytes:
    """The whole body of a small request.

    Raises:
        LimitExceeded: larger than a document may be; the rest is not read.
        TimedOut: it did not arrive in time.
        MalformedBody: compressed bodies are not accepted.
    """
    if headers.get(b"content-encoding", b"identity") != b"identity":
        raise errors.MalformedBody("Send the body uncompressed.")
    announced = headers.get(b"content-length", b"0")
    if announced.isdigit() and int(announced) > codec.JSON_MAX_BYTES:
        _too_large()
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(BODY_DEADLINE_S):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ConnectionResetError("the caller went away")
                part = message.get("body", b"")
                size += len(part)
                if size > codec.JSON_MAX_BYTES:
                    _too_large()
                parts.append(part)
                if not message.get("more_body"):
                    return b"".join(parts)
    except TimeoutError as error:
        raise errors.TimedOut(
            f"The body did not arrive within {BODY_DEADLINE_S:.0f} s; send it again."
        ) from error


def _too_large() -> NoReturn:
    raise errors.BodyTooLarge(
        f"The body has more than {codec.JSON_MAX_BYTES:,} bytes; send less at a time.",
        limit=codec.JSON_MAX_BYTES,
    )


SAFE_HEADERS: list[tuple[bytes, bytes]] = [
    (b"x-content-type-options", b"nosniff"),
    (b"cache-control", b"no-store"),
    (b"referrer-policy", b"no-referrer"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
]


async def respond(
    send: Send,
    status: int,
    payload: bytes,
    *,
    request_id: str | None = None,
    content_type: bytes = b"application/json",
    headers: list[tuple[bytes, bytes]] | None = None,
) -> None:
    """One whole answer."""
    lines = [(b"content-type", content_type), (b"content-length", str(len(payload)).encode()), *SAFE_HEADERS]
    if request_id is not None:
        lines.append((b"x-request-id", request_id.encode("latin-1")))
    await send({"type": "http.response.start", "status": status, "headers": lines + (headers or [])})
    await send({"type": "http.response.body", "body": payload})


async def problem(send: Send, error: errors.ModelkeepError, request_id: str | None) -> None:
    """An error as problem+json."""
    payload = problems.body_of(error, request_id)
    lines = [*problems.headers_of(error), (b"content-length", str(len(payload)).encode()), *SAFE_HEADERS]
    if request_id is not None:
        lines.append((b"x-request-id", request_id.encode("latin-1")))
    await send({"type": "http.response.start", "status": problems.status_of(error), "headers": lines})
    await send({"type": "http.response.body", "body": payload})
