"""Bytes in and out: uploads that may break off and go on, downloads with ranges, exports, and the gateways'
long poll.

Streams are driven here, chunk by chunk and never whole in memory; hashing and disk work run in the pool, so
that the event loop stays free. What may be sent or read is asked of the services first.
"""

import asyncio
import queue
import re
from collections.abc import AsyncIterator, Iterator
from functools import partial
from urllib.parse import quote

from modelkeep.core import codec, errors
from modelkeep.core.values import check_digest, parse_ref
from modelkeep.web.operations import SAFE_HEADERS, Call, Dispatcher, respond

CHUNK_BYTES = 1024 * 1024
"""Bytes that travel between event loop and pool at a time: large enough that the hop costs nothing."""
CHUNKS_WAITING = 8
"""Chunks of an upload that may wait for the disk; more, and the sender is made to wait."""
RECEIVE_DEADLINE_S = 60.0
"""An upload that sends nothing for so long is cut off; what has arrived stays, and the sender goes on from
there.
"""

_RANGE = re.compile(r"bytes=(\d{1,18})-(\d{0,18})", re.ASCII)


async def upload(call: Call, dispatcher: Dispatcher) -> object:
    """Take in the bytes of one announced file, from the offset that the caller names.

    Raises:
        OffsetMismatch: the bytes do not begin where the stored ones end; the details say where that is.
        DigestMismatch: all bytes are there and are not those that were announced; they are thrown away.
    """
    house, path = call.house, call.query.path
    plan = await dispatcher.in_pool(
        partial(house.desk.do, call.context, house.catalog.prepare_upload, call.path["id"], path)
    )
    if plan.present:
        await _drain(call)
        return plan
    waiting: queue.Queue[bytes | None] = queue.Queue(CHUNKS_WAITING)
    storing = asyncio.ensure_future(
        dispatcher.in_pool(partial(house.catalog.store_bytes, plan, call.query.offset, _chunks(waiting)))
    )
    try:
        async for chunk in _incoming(call):
            while not storing.done():
                try:
                    waiting.put_nowait(chunk)
                    break
                except queue.Full:
                    await asyncio.sleep(0.001)
            if storing.done():
                break
    finally:
        # The storing side must see the end in every case, else its thread would wait for ever.
        while not storing.done():
            try:
                waiting.put_nowait(None)
                break
            except queue.Full:
                await asyncio.sleep(0.001)
    return await storing


def _chunks(waiting: "queue.Queue[bytes | None]") -> Iterator[bytes]:
    while (chunk := waiting.get()) is not None:
        yield chunk


async def _incoming(call: Call) -> AsyncIterator[bytes]:
    """The request's body in large pieces; ends quietly when the sender breaks off, because what came may
    stay.
    """
    parts: list[bytes] = []
    size = 0
    while True:
        try:
            async with asyncio.timeout(RECEIVE_DEADLINE_S):
                message = await call.receive()
        except TimeoutError:
            break
        if message["type"] == "http.disconnect":
            break
        part = message.get("body", b"")
        parts.append(part)
        size += len(part)
        if size >= CHUNK_BYTES:
            yield b"".join(parts)
            parts, size = [], 0
        if not message.get("more_body"):
            break
    if parts:
        yield b"".join(parts)


async def _drain(call: Call) -> None:
    """Read away a body that is not needed, so that the connection stays usable."""
    async for _ in _incoming(call):
        pass


async def download(call: Call, dispatcher: Dispatcher) -> None:
    """Send a file of a version, whole or from a range; the digest goes along, so that the receiver can check."""
    house = call.house
    entry = await dispatcher.in_pool(
        partial(
            house.desk.read, call.context, house.catalog.open_file, parse_ref(call.query.ref), call.query.path
        )
    )
    name = quote(entry.path.rpartition("/")[2])
    await _send_blob(
        call,
        dispatcher,
        entry.digest,
        entry.size_bytes,
        [
            (b"content-disposition", f"attachment; filename*=UTF-8''{name}".encode()),
            (b"x-modelkeep-digest", entry.digest.encode()),
        ],
    )


async def gateway_blob(call: Call, dispatcher: Dispatcher) -> None:
    """Send bytes by digest to a gateway."""
    house = call.house
    digest = check_digest(call.path["digest"])

    def known() -> int:
        house.desk.read(call.context, house.rollouts.authorise_gateway)
        info = house.blobs.stat(digest)
        if info is None:
            raise errors.BlobNotFound(f"There are no stored bytes with the digest {digest}.", digest=digest)
        return info.size_bytes

    size = await dispatcher.in_pool(known)
    await _send_blob(call, dispatcher, digest, size, [(b"x-modelkeep-digest", digest.encode())])


async def _send_blob(
    call: Call, dispatcher: Dispatcher, digest: str, size: int, headers: list[tuple[bytes, bytes]]
) -> None:
    start, stop, status = _range(call, size)
    lines = [
        (b"content-type", b"application/octet-stream"),
        (b"content-length", str(stop - start).encode()),
        (b"accept-ranges", b"bytes"),
        (b"cross-origin-resource-policy", b"same-origin"),
        *SAFE_HEADERS,
        *headers,
    ]
    if status == 206:
        lines.append((b"content-range", f"bytes {start}-{stop - 1}/{size}".encode()))
    source = iter(())
    if stop > start:
        source = await dispatcher.in_pool(
            partial(call.house.blobs.open, check_digest(digest), offset=start, length=stop - start)
        )
    await call.send({"type": "http.response.start", "status": status, "headers": lines})
    while True:
        chunk = await dispatcher.in_pool(partial(next, source, None))
        if chunk is None:
            break
        await call.send({"type": "http.response.body", "body": bytes(chunk), "more_body": True})
    await call.send({"type": "http.response.body", "body": b""})


def _range(call: Call, size: int) -> tuple[int, int, int]:
    """Start, stop and status of what is to be sent: one range from a start, as resuming clients ask for it."""
    given = dict(call.scope["headers"]).get(b"range")
    if given is None:
        return 0, size, 200
    match = _RANGE.fullmatch(given.decode("latin-1"))
    if match is None:
        return 0, size, 200
    start = int(match[1])
    stop = min(int(match[2]) + 1, size) if match[2] else size
    if start >= size or stop <= start:
        raise errors.Invalid(f"The range lies outside the file, which has {size:,} bytes.", size_bytes=size)
    return start, stop, 206


async def gateway_table(call: Call, dispatcher: Dispatcher) -> None:
    """The routing table, at once when it is newer than what the gateway has, else when it changes or time is
    up.
    """
    house, q = call.house, call.query
    deadline = asyncio.get_running_loop().time() + q.wait_s
    read = partial(house.desk.read, call.context, house.rollouts.table_if_newer, q.after)
    while True:
        committed = dispatcher.committed.ticket()
        table = await dispatcher.in_pool(read)
        left = deadline - asyncio.get_running_loop().time()
        if table is not None:
            committed.cancel()
            await respond(call.send, 200, codec.encode(table))
            return
        if left <= 0:
            committed.cancel()
            await respond(call.send, 204, b"")
            return
        await asyncio.wait([committed], timeout=left)
        committed.cancel()


async def export_audit(call: Call, dispatcher: Dispatcher) -> None:
    """The audit log as a stream of lines."""
    house, q = call.house, call.query
    source = await dispatcher.in_pool(
        partial(house.audit.export, house.desk, call.context, form=q.format, after=q.after)
    )
    kind = b"text/csv; charset=utf-8" if q.format == "csv" else b"application/jsonl"
    lines = [(b"content-type", kind), (b"content-disposition", b"attachment"), *SAFE_HEADERS]
    first = await dispatcher.in_pool(partial(next, source, None))
    await call.send({"type": "http.response.start", "status": 200, "headers": lines})
    chunk = first
    while chunk is not None:
        await call.send({"type": "http.response.body", "body": chunk, "more_body": True})
        chunk = await dispatcher.in_pool(partial(next, source, None))
    await call.send({"type": "http.response.body", "body": b""})
