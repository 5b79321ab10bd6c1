"""How an operation runs: authenticate, decode, open an act, encode; and how every error becomes an answer.

Nothing here knows a single operation: the rows are in `app`, the verbs in `api`.
"""

import asyncio
import contextlib
import hashlib
import logging
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Concatenate, ParamSpec, TypeVar, assert_never, cast

from msgspec import Struct, structs

from modelkeep.core import codec, errors
from modelkeep.core.access import Caller
from modelkeep.service.act import Act, Context
from modelkeep.service.at_hand import NotAtHand
from modelkeep.service.house import House
from modelkeep.store.database import Kept
from modelkeep.web import problems, requests
from modelkeep.web.commits import Commits
from modelkeep.web.exchange import Answer, Body
from modelkeep.web.figures import Figures
from modelkeep.web.operations import Call, Mode, Operation, Receive, Scope, Send
from modelkeep.web.problems import Problem
from modelkeep.web.wakeup import Wakeup

POOL_THREADS = 8
"""Long reads and hashing at a time; more would only fight for the processors."""
LOOKS_LEAST = 2
"""Long reads of a store in this process at a time, or as many as there are processors: each holds the
interpreter most of its time, and eight of them took half as long again, each, as two."""
STREAM_THREADS = 4
"""Threads that move file bytes; each is held only while bytes move, so few serve any number of callers."""
UPLOAD_ROOM_BYTES = 32 * 1024 * 1024
"""Bytes that all uploads together may gather before they are written."""
LOOP_BODY_BYTES = 64 * 1024
"""A larger JSON body is decoded in the pool: 4 MiB of brackets would hold everybody up for a second."""

Headers = dict[bytes, bytes]
T = TypeVar("T")
P = ParamSpec("P")
_log = logging.getLogger("modelkeep.web")


class UploadRoom:
    """Bytes of all uploads that are gathered and not yet written, against the memory they may take."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._held = 0

    def take(self, size: int) -> None:
        """Bytes have come."""
        self._held += size

    def give_back(self, size: int) -> None:
        """They are written, or dropped."""
        self._held -= size

    @property
    def crowded(self) -> bool:
        """Whether nobody should gather more."""
        return self._held >= self._limit


class Dispatcher:
    """What all operations of one application share; made once."""

    def __init__(self, house: House) -> None:
        self.house = house
        self.figures = Figures(house.deliveries.counts)
        self.openapi = b""
        self.committed = Wakeup()
        self._commits = Commits()
        self.forget = house.desk.database.on_commit(lambda _sequence: self.committed.ring())
        self.upload_room = UploadRoom(UPLOAD_ROOM_BYTES)
        self.closing = False
        self._pool = ThreadPoolExecutor(POOL_THREADS, thread_name_prefix="modelkeep-pool")
        blocks = house.desk.database.reads_block
        looks = POOL_THREADS if blocks else min(max(LOOKS_LEAST, os.cpu_count() or 1), POOL_THREADS)
        self._looks = ThreadPoolExecutor(looks, thread_name_prefix="modelkeep-looks")
        self._streams = ThreadPoolExecutor(STREAM_THREADS, thread_name_prefix="modelkeep-bytes")

    def begin_closing(self) -> None:
        """Have those who only wait answered now; what is under way goes on. To be called on the loop."""
        self.closing = True
        self.committed.ring()

    def close(self) -> None:
        """Wait for running work and let the threads go."""
        self.forget()
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._looks.shutdown(wait=True, cancel_futures=True)
        self._streams.shutdown(wait=True, cancel_futures=True)

    async def in_pool(self, work: Callable[[], T]) -> T:
        """Run blocking work beside the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)

    async def look(self, work: Callable[[], T]) -> T:
        """Run a long read beside the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._looks, work)

    async def in_streams(self, work: Callable[[], T]) -> T:
        """Move bytes between disk and memory beside the event loop, in nobody else's way."""
        return await asyncio.get_running_loop().run_in_executor(self._streams, work)

    def in_background(self, work: Callable[[], None]) -> None:
        """Run work on the disk that nobody waits for, and that tells its own errors."""
        with contextlib.suppress(RuntimeError):  # the server is ending; whoever starts next does it
            self._streams.submit(work)

    async def read(
        self, context: Context, method: Callable[Concatenate[Act, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """A short read: here and now where the store never waits for a network."""
        desk = self.house.desk
        if desk.database.reads_block:
            return await self.unhindered(partial(desk.read, context, method, *args, **kwargs))
        return desk.read(context, method, *args, **kwargs)

    async def unhindered(self, work: Callable[[], T]) -> T:
        """Run what waits for nothing but reads of the store, while the event loop goes on: on its own thread
        where that can be, else in the pool."""
        reads = self.house.desk.database.on_loop()
        return await (self.in_pool(work) if reads is None else reads.run(work))

    async def write(
        self, context: Context, method: Callable[Concatenate[Act, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """One durable act; returns after the commit."""
        pending = self._commits.expect()
        self.house.desk.post(context, pending, method, *args, **kwargs)
        return cast(T, await pending.answer())


class Once:
    """A write under an idempotency key: what was answered the first time is the answer of every time.

    What is kept is the answer's JSON, or, behind a mark that no JSON begins with, the error of a write that
    changed something and yet ended in one (a refused promotion is recorded). Other errors changed nothing or
    will pass (bytes were lost, and can be sent again), and are found anew.
    """

    ERROR = b"!"
    SECRET = b"*"

    def __init__(self, operation: Operation, call: Call, key: str) -> None:
        self._operation = operation
        self._key = key
        caller = call.context.caller
        document = codec.encode([operation.name, call.path, call.query, call.body, caller.token])
        self._fingerprint = hashlib.sha256(document).hexdigest()

    def known(self, act: Act, call: Call) -> bytes | None:
        """The answer of the first time, or None when this is it.

        Raises:
            IdempotencyMismatch: the key was used for another request.
            Conflict: the answer had a secret, which is not shown twice.
            whatever the first time ended in.
        """
        found = call.house.access.recall(act, self._key, self._fingerprint)
        if found is None:
            return None
        if found == self.SECRET:
            raise errors.Conflict(
                "This was done already, and its secret was shown once; undo it and ask again "
                "under another Idempotency-Key."
            )
        if found.startswith(self.ERROR):
            kept = codec.decode(found[1:], _KeptError)
            raise errors.from_code(kept.code, kept.message, kept.details)
        return found

    def run(self, act: Act, call: Call) -> bytes:
        """Answer from memory, or carry out and remember, in one transaction. Raises as `known` and the
        operation do."""
        found = self.known(act, call)
        if found is not None:
            return found
        remember = call.house.access.remember
        try:
            answer = codec.encode(self._operation.handler(act, call))
        except Kept as kept:
            if isinstance(kept.error, errors.ModelkeepError) and not kept.passing:
                error = kept.error
                told = _KeptError(error.code, error.message, error.details)
                remember(act, self._key, self._fingerprint, self.ERROR + codec.encode(told))
            raise
        remember(act, self._key, self._fingerprint, self.SECRET if self._operation.secret else answer)
        return answer


class _KeptError(Struct, frozen=True):
    code: str
    message: str
    details: dict[str, Any]


class Language(Struct, frozen=True):
    """One language.

    Attributes:
        query: the query string in the operation's shape; None where it takes none.
        body: the body in the operation's shape.
        render: an error, with the request's id and a status in place of the usual one, or 0.
    """

    query: Callable[[bytes, Operation, Headers], Any]
    body: Callable[[bytes, Operation, Headers], Any]
    render: Callable[[errors.ModelkeepError, str | None, int], Problem]


class Bound:
    """One operation, ready to be called with a connection."""

    def __init__(self, dispatcher: Dispatcher, operation: Operation, language: Language) -> None:
        self.dispatcher = dispatcher
        self.operation = operation
        self.language = language

    async def __call__(
        self, scope: Scope, receive: Receive, send: Send, headers: dict[bytes, bytes], path: dict[str, str]
    ) -> None:
        began = time.perf_counter()
        answer = Answer(send, requests.request_id(headers), self.language.render)
        body = Body(headers, receive)
        context: Context | None = None
        figures = self.dispatcher.figures
        figures.began()
        try:
            caller = await self._caller(headers)
            context = Context(caller=caller, request_id=answer.request_id)
            await self._respond(context, scope, headers, path, body, answer)
        except errors.ModelkeepError as error:
            await self._fail(answer, body, error)
            if isinstance(error, errors.NotAllowed) and context is not None:
                self._note_refusal(context, error)
        except ConnectionError:
            answer.status = problems.CALLER_GONE
        except asyncio.CancelledError:
            answer.status = problems.CALLER_GONE
            raise
        except Exception:  # noqa: BLE001  (the one net under all operations: logged whole, told in one line)
            _log.exception(
                "request.failed", extra={"operation": self.operation.name, "request_id": answer.request_id}
            )
            await self._fail(answer, body, problems.UNEXPECTED)
        finally:
            figures.count(self.operation.name, answer.status, time.perf_counter() - began)

    async def _fail(self, answer: Answer, body: Body, error: errors.ModelkeepError) -> None:
        """Tell an error; an answer that has begun is cut off instead, for it must not look whole."""
        if not answer.status:
            await answer.problem(error, body)
            return
        _log.warning(
            "request.cut",
            extra={"operation": self.operation.name, "request_id": answer.request_id, "error": str(error)},
        )

    async def _respond(
        self,
        context: Context,
        scope: Scope,
        headers: dict[bytes, bytes],
        path: dict[str, str],
        incoming: Body,
        answer: Answer,
    ) -> None:
        operation = self.operation
        query = self.language.query(scope["query_string"], operation, headers)
        if not incoming.ended:
            requests.check_media(headers, operation)
        document = None
        if operation.body is not None:
            requests.check_media(headers, operation)
            document = await self._document(await incoming.whole(), headers)
        call = Call(
            house=self.dispatcher.house,
            context=context,
            path=path,
            query=query,
            body=document,
            headers=headers,
            incoming=incoming,
            answer=answer,
        )
        result = await self._run(call)
        if not answer.status:
            payload = result if isinstance(result, bytes) else codec.encode(result)
            await answer.whole(operation.status, payload)

    async def _document(self, data: bytes, headers: dict[bytes, bytes]) -> Any:
        read = partial(self.language.body, data, self.operation, headers)
        return await self.dispatcher.in_pool(read) if len(data) > LOOP_BODY_BYTES else read()

    async def _run(self, call: Call) -> Any:
        """Carry out the operation; what it returns is the answer's shape, or its bytes."""
        dispatcher, operation = self.dispatcher, self.operation
        match operation.mode:
            case Mode.PLAIN:
                return operation.handler(call)
            case Mode.READ:
                return await dispatcher.read(call.context, operation.handler, await self._prepared(call))
            case Mode.SLOW:
                if operation.short is not None and operation.short(call):
                    return await dispatcher.read(call.context, operation.handler, await self._prepared(call))
                desk, prepared = dispatcher.house.desk, await self._prepared(call)
                return await dispatcher.look(partial(desk.read, call.context, operation.handler, prepared))
            case Mode.WRITE:
                return await self._write(call)
            case Mode.TASK:
                return await dispatcher.in_pool(partial(operation.handler, call))
            case Mode.STREAM:
                return await operation.handler(call, dispatcher)
            case _:
                assert_never(operation.mode)

    async def _write(self, call: Call) -> Any:
        dispatcher, operation = self.dispatcher, self.operation
        key = requests.idempotency_key(call.headers)
        once = Once(operation, call, key) if key is not None else None
        run = once.run if once is not None else operation.handler
        if operation.at_hand and dispatcher.house.blobs.near:
            with contextlib.suppress(NotAtHand):
                return await dispatcher.write(call.context, run, call)
        elif once is not None and operation.before is not None:
            # What is to be prepared may be gone since the first time, whose answer holds all the same.
            known = await dispatcher.read(call.context, once.known, call)
            if known is not None:
                return known
        return await dispatcher.write(call.context, run, await self._prepared(call))

    async def _prepared(self, call: Call) -> Call:
        before = self.operation.before
        if before is None:
            return call
        return structs.replace(call, prepared=await self.dispatcher.in_pool(partial(before, call)))

    async def _caller(self, headers: dict[bytes, bytes]) -> Caller:
        access = self.dispatcher.house.access
        if self.operation.open:
            return access.anonymous
        credential = headers.get(b"authorization")
        text = credential.decode("latin-1") if credential is not None else None
        known = access.remembered(text)
        if known is not None:
            return known
        if self.dispatcher.house.desk.database.reads_block:
            return await self.dispatcher.unhindered(partial(access.authenticate, text))
        return access.authenticate(text)

    def _note_refusal(self, context: Context, error: errors.NotAllowed) -> None:
        """Put a refused attempt into the audit log, unless the caller has made too many already."""
        house = self.dispatcher.house
        if not house.access.worth_noting(context.caller):
            return
        try:
            house.desk.write(context, house.access.note_refusal, self.operation.name, error)
        except errors.Unavailable as full:
            _log.warning("refusal.not_noted", extra={"error": str(full), "request_id": context.request_id})
