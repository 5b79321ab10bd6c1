"""Rows of drafts: what was announced, how much of it has come, and what became of it.

The bytes themselves are in the blob store; here stands only what the author was told and has proven. Who may
see a draft is the service's part.
"""

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from sqlalchemy import and_, bindparam, delete, func, literal, select, update

from modelkeep.core import codec
from modelkeep.core.catalog import Draft, DraftFile, DraftSpec, DraftStatus
from modelkeep.core.values import Digest, ModelName
from modelkeep.store.schema import draft_files, drafts, models, version_files, versions
from modelkeep.store.statements import insert, json_text
from modelkeep.store.transaction import Transaction
from modelkeep.store.visibility import Visible, condition

_DRAFT = (
    drafts.c.id,
    drafts.c.project,
    drafts.c.name,
    drafts.c.status,
    drafts.c.document,
    drafts.c.created_at,
    drafts.c.created_by,
    drafts.c.touched_at,
    drafts.c.number,
    drafts.c.made,
)
_GET = select(*_DRAFT).where(drafts.c.id == bindparam("id"))
_SAME = (
    select(drafts.c.id)
    .where(
        drafts.c.project == bindparam("project"),
        drafts.c.name == bindparam("name"),
        drafts.c.status == "open",
        drafts.c.created_by == bindparam("by"),
        drafts.c.document == bindparam("document"),
    )
    .order_by(drafts.c.id.desc())
    .limit(1)
)
_COUNT = select(func.count()).where(
    drafts.c.project == bindparam("project"),
    drafts.c.name == bindparam("name"),
    drafts.c.status == "open",
    drafts.c.created_by == bindparam("by"),
)
_FILES = (
    select(
        draft_files.c.path,
        draft_files.c.size_bytes,
        draft_files.c.digest,
        draft_files.c.media_type,
        draft_files.c.received_bytes,
        draft_files.c.present,
    )
    .where(draft_files.c.draft_id == bindparam("draft_id"))
    .order_by(draft_files.c.path)
)
_INSERT = insert(drafts)
_INSERT_FILE = insert(draft_files)
_TOUCH = update(drafts).where(drafts.c.id == bindparam("which")).values(touched_at=bindparam("now"))
_CLOSE = (
    update(drafts)
    .where(drafts.c.id == bindparam("which"))
    .values(
        status=bindparam("new_status"),
        number=bindparam("new_number"),
        made=bindparam("new_made"),
        touched_at=bindparam("now"),
    )
)
_DROP_FILES = delete(draft_files).where(draft_files.c.draft_id == bindparam("which"))
_DROP = delete(drafts).where(drafts.c.id == bindparam("which"))
_RECEIVED = (
    update(draft_files)
    .where(draft_files.c.draft_id == bindparam("which"), draft_files.c.path == bindparam("file"))
    .values(received_bytes=bindparam("bytes"))
)
_PRESENT = (
    update(draft_files)
    .where(draft_files.c.draft_id == bindparam("which"), draft_files.c.digest == bindparam("content"))
    .values(present=1, received_bytes=draft_files.c.size_bytes)
)
_ABSENT = (
    update(draft_files)
    .where(draft_files.c.draft_id == bindparam("which"), draft_files.c.digest == bindparam("content"))
    .values(present=0, received_bytes=0)
)
_STALE = (
    select(drafts.c.id, drafts.c.status)
    .where(drafts.c.status == bindparam("status"), drafts.c.touched_at < bindparam("before"))
    .order_by(drafts.c.touched_at)
    .limit(bindparam("limit"))
)
_HELD = (
    select(literal(1))
    .select_from(
        version_files.join(
            versions, and_(versions.c.id == version_files.c.version_id, versions.c.status == "ready")
        ).join(models, and_(models.c.id == versions.c.model_id, models.c.deleted_at.is_(None)))
    )
    .where(version_files.c.digest == bindparam("digest"))
    .limit(1)
)


def get_draft(tx: Transaction, draft_id: str) -> tuple[Draft, bool] | None:
    """A draft with its files, and whether the version that it ended in was new."""
    row = tx.one(_GET, id=draft_id)
    if row is None:
        return None
    spec = codec.decode(row[4], DraftSpec)
    status = DraftStatus(row[3])
    files = (
        _announced(spec, status)
        if status is not DraftStatus.OPEN
        else tuple(
            DraftFile(
                path=path,
                size_bytes=size_bytes,
                digest=Digest(digest),
                media_type=media_type,
                offset=received,
                present=bool(present),
            )
            for path, size_bytes, digest, media_type, received, present in tx.all(_FILES, draft_id=draft_id)
        )
    )
    draft = Draft(
        id=row[0],
        model=ModelName(row[1], row[2]),
        status=status,
        spec=spec,
        files=files,
        created_at=codec.parse_time(row[5]),
        created_by=row[6],
        touched_at=codec.parse_time(row[7]),
        number=row[8],
    )
    return draft, bool(row[9])


def _announced(spec: DraftSpec, status: DraftStatus) -> tuple[DraftFile, ...]:
    """The files of a closed draft, whose rows are gone: all are there if it became a version."""
    ready = status is DraftStatus.READY
    return tuple(
        DraftFile(
            path=entry.path,
            size_bytes=entry.size_bytes,
            digest=entry.digest,
            media_type=entry.media_type,
            offset=entry.size_bytes if ready else 0,
            present=ready,
        )
        for entry in spec.files
    )


def find_same(tx: Transaction, model: ModelName, by: str, spec: DraftSpec) -> str | None:
    """The id of an open draft of the same author that announces the same."""
    row = tx.one(_SAME, project=model.project, name=model.name, by=by, document=json_text(spec))
    return str(row[0]) if row else None


def count_open(tx: Transaction, model: ModelName, by: str) -> int:
    """How many drafts of a model the author has open."""
    row = tx.one(_COUNT, project=model.project, name=model.name, by=by)
    return int(row[0]) if row else 0


def add_draft(tx: Transaction, draft: Draft) -> None:
    """Write a new draft with its files."""
    tx.put(
        _INSERT,
        id=draft.id,
        project=draft.model.project,
        name=draft.model.name,
        status=draft.status.value,
        document=json_text(draft.spec),
        number=None,
        made=None,
        created_at=codec.format_time(draft.created_at),
        created_by=draft.created_by,
        touched_at=codec.format_time(draft.touched_at),
    )
    rows: list[dict[str, Any]] = [
        {
            "draft_id": draft.id,
            "path": entry.path,
            "size_bytes": entry.size_bytes,
            "digest": entry.digest,
            "media_type": entry.media_type,
            "received_bytes": entry.offset,
            "present": int(entry.present),
        }
        for entry in draft.files
    ]
    tx.put_many(_INSERT_FILE, rows)


def touch(tx: Transaction, draft_id: str, now: datetime) -> None:
    """Put the sweep of a draft off."""
    tx.put(_TOUCH, which=draft_id, now=codec.format_time(now))


def set_received(tx: Transaction, draft_id: str, path: str, received_bytes: int) -> None:
    """Note how much of a file has come."""
    tx.put(_RECEIVED, which=draft_id, file=path, bytes=received_bytes)


def set_present(tx: Transaction, draft_id: str, digest: Digest) -> None:
    """Note that the author has sent this content, under whatever paths it was announced."""
    tx.put(_PRESENT, which=draft_id, content=digest)


def set_absent(tx: Transaction, draft_id: str, digest: Digest) -> None:
    """Note that this content is to be sent, although it was there before."""
    tx.put(_ABSENT, which=draft_id, content=digest)


def close(
    tx: Transaction,
    draft_id: str,
    status: DraftStatus,
    now: datetime,
    *,
    number: int | None = None,
    made: bool | None = None,
) -> None:
    """End a draft; its files no longer keep bytes from being collected."""
    tx.put(
        _CLOSE,
        which=draft_id,
        new_status=status.value,
        new_number=number,
        new_made=None if made is None else int(made),
        now=codec.format_time(now),
    )
    tx.put(_DROP_FILES, which=draft_id)


def list_stale(tx: Transaction, status: DraftStatus, before: datetime, limit: int) -> list[str]:
    """Drafts in a status that nobody has touched since, the oldest first."""
    rows = tx.all(_STALE, status=status.value, before=codec.format_time(before), limit=limit)
    return [row[0] for row in rows]


def forget(tx: Transaction, draft_id: str) -> None:
    """Remove a closed draft altogether."""
    tx.put(_DROP, which=draft_id)


def held(tx: Transaction, digests: Iterable[Digest], visible: Visible) -> set[Digest]:
    """Which of these contents some version holds that is visible so: bytes that need not be sent again."""
    if visible.everything:
        return {digest for digest in digests if tx.one(_HELD, digest=digest)}
    seen, binds = condition(visible)
    statement = _HELD.where(seen)
    return {digest for digest in digests if tx.one(statement, digest=digest, **binds)}
