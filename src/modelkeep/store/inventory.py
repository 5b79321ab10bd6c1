"""What the registry believes to be stored: the contents that versions, drafts and artifacts name, to be held
against the bytes.

Read in short batches, so that a check of everything holds no snapshot. It changes nothing and looks at no
byte.
"""

from typing import NamedTuple

from sqlalchemy import and_, bindparam, func, literal, select

from modelkeep.core import codec
from modelkeep.core.catalog import ModelVersion
from modelkeep.core.values import Digest, ModelName
from modelkeep.store.schema import draft_files, drafts, models, version_files, versions
from modelkeep.store.statements import one_of
from modelkeep.store.tracking_tables import artifacts, logged_models, runs
from modelkeep.store.transaction import Transaction

_READY = and_(versions.c.id == version_files.c.version_id, versions.c.status == "ready")
_NAMED = (
    select(version_files.c.digest, func.max(version_files.c.size_bytes))
    .where(version_files.c.digest > bindparam("after"))
    .group_by(version_files.c.digest)
    .order_by(version_files.c.digest)
    .limit(bindparam("limit"))
)
_KEPT = (
    select(artifacts.c.digest, func.max(artifacts.c.size_bytes))
    .where(artifacts.c.digest > bindparam("after"))
    .group_by(artifacts.c.digest)
    .order_by(artifacts.c.digest)
    .limit(bindparam("limit"))
)
_KEEPERS = (
    select(artifacts.c.kind, runs.c.run_id, logged_models.c.model_id, artifacts.c.path)
    .select_from(
        artifacts.outerjoin(
            runs, and_(artifacts.c.kind == literal("run"), runs.c.serial == artifacts.c.owner)
        ).outerjoin(
            logged_models,
            and_(artifacts.c.kind == literal("logged_model"), logged_models.c.serial == artifacts.c.owner),
        )
    )
    .where(artifacts.c.digest == bindparam("digest"))
    .order_by(artifacts.c.kind, artifacts.c.owner, artifacts.c.path)
    .limit(bindparam("limit"))
)
_VERSIONS = (
    select(versions.c.id, versions.c.digest, versions.c.document)
    .where(versions.c.status == "ready", versions.c.id > bindparam("after"))
    .order_by(versions.c.id)
    .limit(bindparam("limit"))
)
_HOLDERS = (
    select(models.c.project, models.c.name, versions.c.number, versions.c.semver, version_files.c.path)
    .select_from(version_files.join(versions, _READY).join(models, models.c.id == versions.c.model_id))
    .where(version_files.c.digest == bindparam("digest"))
    .order_by(versions.c.id)
    .limit(bindparam("limit"))
)
_IN_VERSIONS = select(version_files.c.digest).where(one_of(version_files.c.digest, "digests")).distinct()
_IN_ARTIFACTS = select(artifacts.c.digest).where(one_of(artifacts.c.digest, "digests")).distinct()
_IN_DRAFTS = (
    select(draft_files.c.digest)
    .join(drafts, and_(drafts.c.id == draft_files.c.draft_id, drafts.c.status == literal("open")))
    .where(one_of(draft_files.c.digest, "digests"))
    .distinct()
)


class StoredVersion(NamedTuple):
    """A version as it was written, without its labels, and the digest in its row."""

    id: str
    digest: Digest
    version: ModelVersion


class Holder(NamedTuple):
    """A version that names a content, and the path under which it does."""

    model: ModelName
    number: int
    semver: str
    path: str


def list_named(tx: Transaction, after: str, limit: int) -> list[tuple[Digest, int]]:
    """The contents that versions or artifacts name, each once with its size in bytes, in the order of
    digests."""
    rows = tx.all(_NAMED, after=after, limit=limit) + tx.all(_KEPT, after=after, limit=limit)
    sizes: dict[str, int] = {}
    for digest, size in rows:
        sizes[digest] = max(size, sizes.get(digest, 0))
    return [(Digest(digest), sizes[digest]) for digest in sorted(sizes)[:limit]]


def list_stored(tx: Transaction, after: str, limit: int) -> list[StoredVersion]:
    """Every version of the installation, in the order of ids."""
    return [
        StoredVersion(id, Digest(digest), codec.decode(document, ModelVersion))
        for id, digest, document in tx.all(_VERSIONS, after=after, limit=limit)  # noqa: A001
    ]


def list_holders(tx: Transaction, digest: Digest, limit: int) -> list[Holder]:
    """The versions that name a content."""
    return [
        Holder(ModelName(project, name), number, semver, path)
        for project, name, number, semver, path in tx.all(_HOLDERS, digest=digest, limit=limit)
    ]


def list_keepers(tx: Transaction, digest: Digest, limit: int) -> list[tuple[str, str]]:
    """The artifacts that are a content: the address of what keeps it, and the path there."""
    return [
        (f"runs:/{run_id}" if kind == "run" else f"models:/{model_id}", path)
        for kind, run_id, model_id, path in tx.all(_KEEPERS, digest=digest, limit=limit)
    ]


def still_needed(tx: Transaction, digests: list[Digest]) -> set[Digest]:
    """Which of these contents a version, an open draft or an artifact names."""
    rows = [row for one in (_IN_VERSIONS, _IN_DRAFTS, _IN_ARTIFACTS) for row in tx.all(one, digests=digests)]
    return {Digest(row[0]) for row in rows}
