"""The operations by which another registry moves in: batches, the bytes that they name, and how far it is.

Only admins are served, as `service.imports` says; no decision is made here.
"""

from typing import Annotated, Any

from msgspec import Meta, Struct

from modelkeep.core import errors
from modelkeep.core.imports import FOREIGN_ID_MAX, SOURCE_MAX, ImportBatch, MissingFiles
from modelkeep.core.values import PATH_MAX, Digest, check_digest
from modelkeep.ports import BLOB_MAX_BYTES
from modelkeep.service.act import Act
from modelkeep.store.artifacts import OwnerKind
from modelkeep.web import problems, uploads
from modelkeep.web.dispatch import Dispatcher
from modelkeep.web.operations import Call
from modelkeep.web.shapes import Shape

ASKED_MAX = 1_000
"""Digests that are looked for at a time."""


class SourceQuery(Shape, frozen=True, kw_only=True):
    """A registry that something came from."""

    source: Annotated[str, Meta(min_length=1, max_length=SOURCE_MAX)]


class OwnerQuery(Shape, frozen=True, kw_only=True):
    """A run or logged model, and the file after which a page begins."""

    owner: OwnerKind
    id: Annotated[str, Meta(min_length=1, max_length=FOREIGN_ID_MAX)]
    after: Annotated[str, Meta(max_length=PATH_MAX)] = ""


class BytesQuery(Shape, frozen=True, kw_only=True):
    """Bytes that are about to come."""

    digest: Digest
    size_bytes: Annotated[int, Meta(ge=0, le=BLOB_MAX_BYTES)]


class AskedFiles(Shape, frozen=True, kw_only=True):
    """Digests that are looked for."""

    digests: Annotated[tuple[Digest, ...], Meta(max_length=ASKED_MAX)]


class SentFile(Struct, frozen=True, kw_only=True):
    """Bytes that came."""

    digest: Digest
    size_bytes: int


def look_for_files(call: Call) -> Any:
    """Look for the bytes that a batch names, and read what says what its versions are, before the act."""
    batch: ImportBatch = call.body
    return call.house.imports.prepare(call.house.desk, call.context, batch)


def import_batch(act: Act, call: Call) -> Any:
    """Take in a batch."""
    return call.house.imports.apply(act, call.body, call.prepared)


def import_summary(act: Act, call: Call) -> Any:
    """How much came from a source."""
    return call.house.imports.summary(act, call.query.source)


def imported_files(act: Act, call: Call) -> Any:
    """The files that something keeps already."""
    return call.house.imports.files(act, call.query.owner, call.query.id, call.query.after)


def missing_files(call: Call) -> Any:
    """Which bytes are still to be sent."""
    digests = [check_digest(digest) for digest in call.body.digests]
    found = call.house.imports.missing(call.house.desk, call.context, digests)
    return MissingFiles(missing=found)


async def send_file(call: Call, dispatcher: Dispatcher) -> SentFile | None:
    """Take in the bytes of a file under the digest that is said of them."""
    imports = call.house.imports
    digest, size_bytes = check_digest(call.query.digest), call.query.size_bytes
    plan = await dispatcher.read(call.context, imports.prepare_bytes, digest, size_bytes)
    try:
        await uploads.take_in(
            dispatcher, call.incoming, plan, imports.store_bytes, finish=imports.finish_bytes
        )
    except errors.DigestMismatch as wrong:
        await call.answer.problem(wrong, call.incoming, status=problems.WRONG_BYTES)
        return None
    finally:
        await dispatcher.in_streams(lambda: imports.drop_bytes(plan))
    return SentFile(digest=digest, size_bytes=size_bytes)
