"""Bytes going out: files with ranges, exports, and the gateways' long poll.

Streams are driven here, chunk by chunk and never whole in memory; hashing and disk work run in the pool, so
that the event loop stays free. What may be read is asked of the services first; bytes coming in are in
`uploads`.
"""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Generator, Iterator
from functools import partial
from urllib.parse import quote

from modelkeep.core import codec, errors
from modelkeep.core.values import Digest, check_digest, parse_ref
from modelkeep.ports import SMALL_MAX_BYTES
from modelkeep.web.dispatch import Dispatcher
from modelkeep.web.operations import Call

LOOK_S = 1.0
"""How often a waiting gateway's table is looked at although nothing rang: another process may have
committed."""
SMALL_BYTES = 256 * 1024
"""A file up to this size is read, hashed and sent in one go: the ways between threads would cost more."""
CONTENT_TYPE = b"application/octet-stream"
"""Of all stored bytes, whatever they are: nothing that was uploaded is shown or run by a browser."""
SETTLE_S = 0.004
"""The pause between a commit and the look at the table, so that a busy writer does not have each gateway
look many times over."""

_RANGE = re.compile(r"bytes=(\d{1,18})-(\d{0,18})", re.ASCII)


async def download(call: Call, dispatcher: Dispatcher) -> None:
    """Send a file of a version, whole or from a range; its digest goes along for the receiver to check."""
    catalog = call.house.catalog
    entry = await dispatcher.read(call.context, catalog.open_file, parse_ref(call.query.ref), call.query.path)
    await send_blob(call, dispatcher, entry.digest, entry.size_bytes, [attachment(entry.path)])


def attachment(path: str) -> tuple[bytes, bytes]:
    """The header that has a browser save a file, and never show it."""
    name = quote(path.rpartition("/")[2], safe="")
    return b"content-disposition", f"attachment; filename*=UTF-8''{name}".encode()


async def gateway_blob(call: Call, dispatcher: Dispatcher) -> None:
    """Send bytes by digest to a gateway."""
    house = call.house
    await dispatcher.read(call.context, house.rollouts.authorise_gateway)
    digest = check_digest(call.path["digest"])
    info = await dispatcher.in_streams(partial(house.blobs.stat, digest))
    if info is None:
        raise errors.BlobNotFound(f"There are no stored bytes with the digest {digest}.", digest=digest)
    await send_blob(call, dispatcher, digest, info.size_bytes, [])


async def send_blob(
    call: Call,
    dispatcher: Dispatcher,
    digest: Digest,
    size: int,
    more: list[tuple[bytes, bytes]],
    *,
    ranges: bool = True,
) -> None:
    """Send stored bytes. A whole file is hashed on its way, and its last piece is held back until the digest
    has been seen to be right: a damaged file is an error, or an answer that breaks off, and never one that
    looks whole.

    Args:
        ranges: a part of the file may be asked for, whose bytes nobody can check; else the whole is sent.
    """
    start, stop, status = _range(call, size) if ranges else (0, size, 200)
    lines = [
        (b"accept-ranges", b"bytes" if ranges else b"none"),
        (b"x-modelkeep-digest", digest.encode()),
        *more,
    ]
    if status == 206:
        lines.append((b"content-range", b"bytes %d-%d/%d" % (start, stop - 1, size)))
    blobs = call.house.blobs
    opening = (
        partial(blobs.open, digest, offset=start, length=stop - start)
        if status == 206
        else partial(blobs.open_verified, digest)
    )
    if stop - start <= SMALL_BYTES:
        data = blobs.at_hand(digest) if status == 200 and size <= SMALL_MAX_BYTES else None
        if data is None:
            data = await dispatcher.in_streams(lambda: b"".join(opening()))
        if len(data) != stop - start:  # a range, which no digest proves
            raise errors.DigestMismatch("The stored file is shorter than it was; run 'modelkeep fsck'.")
        await call.answer.whole(status, data, content_type=CONTENT_TYPE, more=lines)
        return
    lines += [(b"content-type", CONTENT_TYPE), (b"content-length", b"%d" % (stop - start))]
    source = await dispatcher.in_streams(opening)
    async with _watched(call) as gone:
        await _send_pieces(call, dispatcher, source, status, lines, gone)


async def _send_pieces(
    call: Call,
    dispatcher: Dispatcher,
    source: Iterator[bytes],
    status: int,
    lines: list[tuple[bytes, bytes]],
    gone: "asyncio.Task[None]",
) -> None:
    """Send what an iterator gives, reading ahead by two pieces."""
    following = partial(next, source, None)
    ahead: asyncio.Future[bytes | None] | None = None
    try:
        first = await dispatcher.in_streams(following)
        second = await dispatcher.in_streams(following) if first is not None else None
        await call.answer.begin(status, lines)
        while second is not None and not gone.done():
            ahead = asyncio.ensure_future(dispatcher.in_streams(following))
            assert first is not None
            await call.answer.piece(first)
            first, second, ahead = second, await ahead, None
        if gone.done():
            raise ConnectionResetError("the reader went away")
        if first is not None:
            await call.answer.piece(first)
        await call.answer.end()
    finally:
        if ahead is not None:
            with contextlib.suppress(Exception):  # the reason to stop is raised already
                await asyncio.shield(ahead)
        if isinstance(source, Generator):
            source.close()


@contextlib.asynccontextmanager
async def _watched(call: Call) -> "AsyncIterator[asyncio.Task[None]]":
    """A task that is done when the caller has closed the connection."""
    gone = asyncio.ensure_future(call.incoming.wait_gone())
    try:
        yield gone
    finally:
        gone.cancel()


def _range(call: Call, size: int) -> tuple[int, int, int]:
    """Start, stop and status of what is to be sent: one range from a start, as who resumes asks for it."""
    given = call.headers.get(b"range")
    match = _RANGE.fullmatch(given.decode("latin-1")) if given is not None else None
    if match is None:
        return 0, size, 200
    start = int(match[1])
    stop = min(int(match[2]) + 1, size) if match[2] else size
    if start >= size or stop <= start:
        raise errors.Invalid(f"The range lies outside the file, which has {size:,} bytes.", size_bytes=size)
    return start, stop, 206


async def gateway_table(call: Call, dispatcher: Dispatcher) -> None:
    """The routing table, at once when it is another than what the gateway has, else when it changes or time
    is up.
    """
    loop = asyncio.get_running_loop()
    table_if_newer, after = call.house.rollouts.table_if_newer, call.query.after
    deadline = loop.time() + call.query.wait_s
    async with _watched(call) as gone:
        while True:
            rung = dispatcher.committed.ticket()
            try:
                table = await dispatcher.read(call.context, table_if_newer, after)
                left = deadline - loop.time()
                if table is not None:
                    await call.answer.whole(200, codec.encode(table))
                    return
                if left <= 0 or dispatcher.closing:
                    await call.answer.nothing(204)
                    return
                await asyncio.wait(
                    {rung, gone}, timeout=min(left, LOOK_S), return_when=asyncio.FIRST_COMPLETED
                )
            finally:
                rung.cancel()
            if gone.done():
                raise ConnectionResetError("the gateway went away")
            if rung.done() and not dispatcher.closing:
                await asyncio.sleep(min(SETTLE_S, max(0.0, deadline - loop.time())))


async def export_audit(call: Call, dispatcher: Dispatcher) -> None:
    """The audit log as a stream of lines."""
    house, q = call.house, call.query
    source = await dispatcher.in_pool(
        partial(house.audit.export, house.desk, call.context, form=q.format, after=q.after)
    )
    kind = b"text/csv; charset=utf-8" if q.format == "csv" else b"application/jsonl"
    lines = [(b"content-type", kind), (b"content-disposition", b"attachment")]
    async with _watched(call) as gone:
        await _send_pieces(call, dispatcher, source, 200, lines, gone)
