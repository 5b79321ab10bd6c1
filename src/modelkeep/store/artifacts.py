"""Rows of artifacts: the files that runs and logged models keep, each a path and a content.

A folder is no row: it is there as long as a path leads through it. Paths are compared by bytes, so that a
folder is one stretch of the primary key, and its children are found by skipping from one to the next. Who may
do what, and where the bytes are, is the service's part.
"""

from collections.abc import Iterator
from enum import StrEnum
from typing import Any, NamedTuple

from sqlalchemy import (
    ColumnElement,
    FromClause,
    Select,
    bindparam,
    delete,
    func,
    literal,
    literal_column,
    select,
)

from modelkeep.core.tracking import Artifact
from modelkeep.core.values import Digest
from modelkeep.store.schema import damaged_blobs
from modelkeep.store.statements import Row, insert, one_of
from modelkeep.store.tracking_tables import artifact_owners, artifacts, experiments, logged_models, runs
from modelkeep.store.transaction import Transaction

BATCH = 500
"""Rows of one read of a folder: more than most folders have, little enough to throw away when the rest of
them lie in a folder inside, which is then skipped."""
_OWNER_COLUMNS = 6
LAST = "\U0010ffff" * 64
"""Sorts behind every path: a name is shorter."""


class OwnerKind(StrEnum):
    """What keeps artifacts."""

    RUN = "run"
    LOGGED_MODEL = "logged_model"


class OwnerRow(NamedTuple):
    """What keeps artifacts: its serial and id, where it is, and how many files it has."""

    kind: OwnerKind
    serial: int
    id: str
    experiment_id: int
    deleted: int
    project: str
    files: int


class ArtifactRow(NamedTuple):
    """One file, and the multipart upload that it came by, if it did."""

    path: str
    digest: Digest
    size_bytes: int
    upload: str | None


class Spot(NamedTuple):
    """A place for a file: what keeps it, the file that stands there, and a file that stands where this path
    needs a folder, or below it, which makes a folder of it; and whether the content that is to be put there
    is marked as damaged."""

    owner: OwnerRow
    file: ArtifactRow | None
    in_the_way: str | None
    marked: bool = False


class Child(NamedTuple):
    """What lies directly in a folder: a file with its size in bytes, or a folder (None)."""

    name: str
    size_bytes: int | None


def _files_of(kind: OwnerKind, serial: object) -> Any:
    counted = select(artifact_owners.c.files).where(
        artifact_owners.c.kind == literal_column(f"'{kind}'"), artifact_owners.c.owner == serial
    )
    return func.coalesce(counted.scalar_subquery(), literal_column("0"))


_OF = (artifacts.c.kind == bindparam("kind"), artifacts.c.owner == bindparam("owner"))
_ROW = (artifacts.c.path, artifacts.c.digest, artifacts.c.size_bytes, artifacts.c.upload)
_GET = select(*_ROW).where(*_OF, artifacts.c.path == bindparam("path"))
_BETWEEN = (artifacts.c.path >= bindparam("first"), artifacts.c.path < bindparam("before"))
_FROM = select(*_ROW).where(*_OF, *_BETWEEN).order_by(artifacts.c.path).limit(bindparam("limit"))
_below = select(*_ROW).where(*_OF, *_BETWEEN).order_by(artifacts.c.path).limit(bindparam("limit")).subquery()
_AT_OR_UNDER = _GET.union_all(select(*(_below.c[column.name] for column in _ROW)))


def _whose(kind: OwnerKind) -> tuple[FromClause, tuple[Any, ...], Any]:
    """Where what keeps artifacts stands with its experiment, its columns, and its id."""
    of = runs if kind is OwnerKind.RUN else logged_models
    id = of.c.run_id if kind is OwnerKind.RUN else of.c.model_id  # noqa: A001
    columns = (of.c.serial, id, of.c.experiment_id, of.c.deleted, experiments.c.project)
    return of.join(experiments, experiments.c.id == of.c.experiment_id), columns, id


def _finding(kind: OwnerKind) -> tuple[Select[Any], Select[Any], Select[Any]]:
    """What finds an owner by its id; with the file at a path; and with what stands in the way of one."""
    whose, columns, id = _whose(kind)  # noqa: A001
    columns = (*columns, _files_of(kind, columns[0]))
    found = select(*columns).select_from(whose).where(id == bindparam("id"))
    own: ColumnElement[str] = literal_column(f"'{kind}'")
    at = artifacts.alias("at")
    there = (at.c.kind == own) & (at.c.owner == columns[0]) & (at.c.path == bindparam("path"))
    file = select(*columns, *(at.c[column.name] for column in _ROW)).select_from(whose.outerjoin(at, there))
    file = file.where(id == bindparam("id"))
    below, above = artifacts.alias("below"), artifacts.alias("above")
    parent = select(above.c.path).where(
        above.c.kind == own, above.c.owner == columns[0], one_of(above.c.path, "parents")
    )
    child = select(below.c.path).where(
        below.c.kind == own, below.c.owner == columns[0],
        below.c.path >= bindparam("first"), below.c.path < bindparam("before"),
    ).order_by(below.c.path)  # fmt: skip
    marked = select(damaged_blobs.c.digest).where(damaged_blobs.c.digest == bindparam("digest"))
    spot = file.add_columns(
        parent.limit(1).scalar_subquery(), child.limit(1).scalar_subquery(), marked.scalar_subquery()
    )
    return found, file, spot


_FIND = {kind: _finding(kind) for kind in OwnerKind}
_PUT = insert(artifacts).on_conflict_do_update(
    index_elements=[artifacts.c.kind, artifacts.c.owner, artifacts.c.path],
    set_={name: insert(artifacts).excluded[name] for name in ("digest", "size_bytes", "created", "upload")},
)
_COUNT = insert(artifact_owners).on_conflict_do_update(
    index_elements=[artifact_owners.c.kind, artifact_owners.c.owner],
    set_={
        name: artifact_owners.c[name] + insert(artifact_owners).excluded[name]
        for name in ("files", "size_bytes")
    },
)
_SUM = select(func.count(), func.coalesce(func.sum(artifacts.c.size_bytes), literal(0))).where(
    *_OF, *_BETWEEN
)
_DROP = delete(artifacts).where(*_OF, artifacts.c.path == bindparam("which"))
_DROP_BETWEEN = delete(artifacts).where(*_OF, *_BETWEEN)


def find_owner(tx: Transaction, kind: OwnerKind, id: str) -> OwnerRow | None:  # noqa: A002
    """A run or logged model by its id, deleted or not."""
    row = tx.one(_FIND[kind][0], id=id)
    return OwnerRow(kind, *row) if row else None


def find_file(tx: Transaction, kind: OwnerKind, id: str, path: str) -> Spot | None:  # noqa: A002
    """A run or logged model, and the file that it has at a path; `in_the_way` is not looked for."""
    row = tx.one(_FIND[kind][1], id=id, path=path)
    return _spot(kind, row, None) if row else None


def find_spot(
    tx: Transaction,
    kind: OwnerKind,
    id: str,  # noqa: A002
    path: str,
    digest: Digest | None = None,
) -> Spot | None:
    """A run or logged model, and what stands where a file is to be put; of which digest, if that is known."""
    first, last = _bounds(path)
    parents = [path[:at] for at, character in enumerate(path) if character == "/"]
    at = {"id": id, "path": path, "parents": parents, "first": first, "before": last}
    row = tx.one(_FIND[kind][2], **at, digest=digest or "")
    if row is None:
        return None
    *found, parent, child, marked = row
    return _spot(kind, tuple(found), parent or child)._replace(marked=marked is not None)


def _spot(kind: OwnerKind, row: Row, in_the_way: str | None) -> Spot:
    owner, file = row[:_OWNER_COLUMNS], row[_OWNER_COLUMNS:]
    return Spot(OwnerRow(kind, *owner), ArtifactRow(*file) if file[0] is not None else None, in_the_way)


def get(tx: Transaction, owner: OwnerRow, path: str) -> ArtifactRow | None:
    """One file."""
    row = tx.one(_GET, kind=owner.kind.value, owner=owner.serial, path=path)
    return ArtifactRow(*row) if row else None


def under(tx: Transaction, owner: OwnerRow, folder: str, limit: int) -> list[Artifact]:
    """The files below a folder (all of them for ''), however deep, with their whole paths and in the order of
    them."""
    first, last = _bounds(folder)
    rows = tx.all(_FROM, kind=owner.kind.value, owner=owner.serial, first=first, before=last, limit=limit)
    return [Artifact(path=path, size_bytes=size, digest=Digest(digest)) for path, digest, size, _ in rows]


def at_or_under(
    tx: Transaction, kind: OwnerKind, serial: int, path: str, limit: int
) -> tuple[Artifact | None, list[Artifact]]:
    """The file at a path, and the files below it as a folder, as `get` and `under` find them."""
    first, last = _bounds(path)
    of = {"kind": kind.value, "owner": serial, "path": path}
    rows = tx.all(_AT_OR_UNDER, **of, first=first, before=last, limit=limit)
    found = [Artifact(path=row[0], size_bytes=row[2], digest=Digest(row[1])) for row in rows]
    one = next((file for file in found if file.path == path), None)
    return one, sorted((file for file in found if file is not one), key=lambda file: file.path)


def children(tx: Transaction, owner: OwnerRow, folder: str) -> Iterator[Child]:
    """What lies directly in a folder, each once. A folder inside is skipped as soon as it is seen, so this
    takes about one read for each `BATCH` files and one for each folder that has many."""
    first, last = _bounds(folder)
    start = len(folder) + 1 if folder else 0
    while True:
        rows = tx.all(_FROM, kind=owner.kind.value, owner=owner.serial, first=first, before=last, limit=BATCH)
        inside = ""
        for path, _, size, _ in rows:
            if inside and path.startswith(inside):
                continue
            name, slash, _ = path[start:].partition("/")
            inside = path[: start + len(name)] + "/" if slash else ""
            yield Child(name, None if slash else size)
        if len(rows) < BATCH:
            return
        first = _behind(inside) if inside else rows[-1][0] + "\x01"  # no path has control characters


def put(
    tx: Transaction,
    owner: OwnerRow,
    file: Artifact,
    before: ArtifactRow | None,
    now_ms: int,
    upload: str | None,
) -> None:
    """Write a file in the place of `before`, which stands at its path, or as a new one."""
    of = {"kind": owner.kind.value, "owner": owner.serial}
    tx.put(
        _PUT,
        **of,
        path=file.path,
        digest=file.digest,
        size_bytes=file.size_bytes,
        created=now_ms,
        upload=upload,
    )
    more = file.size_bytes - (before.size_bytes if before else 0)
    tx.put(_COUNT, **of, files=0 if before else 1, size_bytes=more)


def drop(tx: Transaction, owner: OwnerRow, path: str) -> int:
    """Remove a file, or a folder with all that is in it ('' for everything); how many files went."""
    of = {"kind": owner.kind.value, "owner": owner.serial}
    file = get(tx, owner, path) if path else None
    first, last = _bounds(path)
    row = tx.one(_SUM, **of, first=first, before=last)
    files, size = (int(row[0]), int(row[1])) if row else (0, 0)
    if file is not None:
        tx.put(_DROP, **of, which=path)
        files, size = files + 1, size + file.size_bytes
    if not files:
        return 0
    tx.put(_DROP_BETWEEN, **of, first=first, before=last)
    tx.put(_COUNT, **of, files=-files, size_bytes=-size)
    return files


def _bounds(folder: str) -> tuple[str, str]:
    """What all paths below a folder lie between: at or behind the first, and before the second."""
    return (f"{folder}/", _behind(f"{folder}/")) if folder else ("", LAST)


def _behind(folder: str) -> str:
    """The first text behind everything below a folder, which is given with its slash."""
    return folder[:-1] + chr(ord("/") + 1)
