"""Rows of versions, written: once when they are registered, then only what stands beside them, then removed.

Reading them is `catalog`'s part. Whether something may be done, and the event that belongs to it, are the
service's part.
"""

from collections.abc import Iterable
from datetime import datetime

from sqlalchemy import bindparam, delete, select, update

from modelkeep.core import codec, registration, semver
from modelkeep.core.catalog import ModelVersion
from modelkeep.store.models import put_tags, texts
from modelkeep.store.schema import (
    occupancy,
    stage_intervals,
    version_files,
    version_metrics,
    version_params,
    version_tags,
    versions,
)
from modelkeep.store.statements import insert, json_text, one_of
from modelkeep.store.transaction import Transaction

_INSERT = insert(versions)
_INSERT_FILE = insert(version_files)
_INSERT_METRIC = insert(version_metrics)
_INSERT_PARAM = insert(version_params)
_DESCRIBE = (
    update(versions)
    .where(versions.c.id == bindparam("which"))
    .values(description=bindparam("description"), updated_at=bindparam("now"))
)
_TOUCH = (
    update(versions)
    .where(
        versions.c.model_id == bindparam("model_id"),
        one_of(versions.c.number, "which"),
    )
    .values(updated_at=bindparam("now"))
)
_SET_TOMBSTONE = (
    update(versions)
    .where(versions.c.model_id == bindparam("model_id"), versions.c.number == bindparam("which"))
    .values(tombstone=bindparam("tombstone"), updated_at=bindparam("now"))
)
_SET_YANKED = (
    update(versions)
    .where(versions.c.id == bindparam("which"))
    .values(yanked=bindparam("yanked"), updated_at=bindparam("now"))
)
_MARK_DELETED = (
    update(versions)
    .where(versions.c.id == bindparam("which"))
    .values(status="deleted", to_sequence=bindparam("sequence"), updated_at=bindparam("now"))
)
_FORGET = tuple(
    delete(table).where(table.c.version_id == bindparam("which"))
    for table in (version_files, version_metrics, version_params, version_tags)
)
_MARK_ALL_DELETED = (
    update(versions)
    .where(versions.c.model_id == bindparam("which"), versions.c.status == "ready")
    .values(status="deleted", to_sequence=bindparam("sequence"), updated_at=bindparam("now"))
)
_FORGET_ALL = tuple(
    delete(table).where(
        table.c.version_id.in_(select(versions.c.id).where(versions.c.model_id == bindparam("which")))
    )
    for table in (version_files, version_metrics, version_params, version_tags)
)
_LEAVE_ALL_STAGES = delete(occupancy).where(occupancy.c.model_id == bindparam("which"))
_END_ALL_STAYS = (
    update(stage_intervals)
    .where(stage_intervals.c.model_id == bindparam("which"), stage_intervals.c.to_sequence.is_(None))
    .values(to_at=bindparam("now"), to_sequence=bindparam("sequence"))
)
_LEAVE_STAGE = delete(occupancy).where(
    occupancy.c.model_id == bindparam("model_id"), occupancy.c.number == bindparam("which")
)
_END_STAY = (
    update(stage_intervals)
    .where(
        stage_intervals.c.model_id == bindparam("model_id"),
        stage_intervals.c.number == bindparam("which"),
        stage_intervals.c.to_sequence.is_(None),
    )
    .values(to_at=bindparam("now"), to_sequence=bindparam("sequence"))
)


def add_version(tx: Transaction, model_id: str, version: ModelVersion, sequence: int) -> None:
    """Write a version that is ready, under the number of its registration's event."""
    moment = codec.format_time(version.created_at)
    parsed = semver.parse(version.semver)
    tx.put(
        _INSERT,
        id=version.id,
        model_id=model_id,
        number=version.number,
        semver=version.semver,
        semver_key=semver.sort_key(parsed),
        prerelease=int(not parsed.is_release),
        digest=version.digest,
        size_bytes=version.size_bytes,
        status="ready",
        document=json_text(registration.record_of(version)),
        parent=version.parent,
        **searched_by(version),
        from_sequence=sequence,
        to_sequence=None,
        description=version.description,
        tombstone=version.tombstone,
        yanked=version.yanked,
        created_at=moment,
        created_by=version.created_by,
        updated_at=moment,
    )
    owner = {"version_id": version.id}
    tx.put_many(
        _INSERT_FILE,
        [
            {
                **owner,
                "path": f.path,
                "digest": f.digest,
                "size_bytes": f.size_bytes,
                "media_type": f.media_type,
            }
            for f in version.files
        ],
    )
    metrics = registration.searchable(version.metrics)
    tx.put_many(_INSERT_METRIC, [{**owner, "name": name, "value": value} for name, value in metrics.items()])
    tx.put_many(_INSERT_PARAM, [{**owner, **texts(key, value)} for key, value in version.params.items()])
    put_tags(tx, version_tags, version.id, version.tags)


def searched_by(version: ModelVersion) -> dict[str, str | None]:
    """The columns that say again what stands in the record, so that versions are found by it."""
    framework = (version.metadata.get("model") or {}).get("framework")
    stated = version.provenance
    return {
        "framework": framework if isinstance(framework, str) else None,
        "run_id": stated.run_id if stated is not None else None,
        "source": stated.source if stated is not None else None,
        "code_commit": stated.code.commit if stated is not None and stated.code is not None else None,
        "identity": version.identity.digest if version.identity is not None else None,
    }


def describe(tx: Transaction, version_id: str, description: str, now: datetime) -> None:
    """Write a version's description, and that its labels changed."""
    tx.put(_DESCRIBE, which=version_id, description=description, now=codec.format_time(now))


def touch(tx: Transaction, model_id: str, numbers: Iterable[int], now: datetime) -> None:
    """Note that the place of some versions changed."""
    tx.put(_TOUCH, model_id=model_id, which=list(numbers), now=codec.format_time(now))


def set_tombstone(tx: Transaction, model_id: str, number: int, reason: str | None, now: datetime) -> None:
    """Mark a version as taken back, with the reason; None clears it."""
    tx.put(_SET_TOMBSTONE, model_id=model_id, which=number, tombstone=reason, now=codec.format_time(now))


def set_yanked(tx: Transaction, version_id: str, reason: str | None, now: datetime) -> None:
    """Mark a version as yanked, with the reason; None lets it be chosen again."""
    tx.put(_SET_YANKED, which=version_id, yanked=reason, now=codec.format_time(now))


def remove_version(
    tx: Transaction, model_id: str, version: ModelVersion, sequence: int, now: datetime
) -> None:
    """Take a version away from every read of the present, and let go of its files.

    Its row stays: the past can still be asked, and neither number nor semver is given again. Its aliases are
    removed before, one event each.
    """
    moment = codec.format_time(now)
    tx.put(_MARK_DELETED, which=version.id, sequence=sequence, now=moment)
    for statement in _FORGET:
        tx.put(statement, which=version.id)
    tx.put(_LEAVE_STAGE, model_id=model_id, which=version.number)
    tx.put(_END_STAY, model_id=model_id, which=version.number, now=moment, sequence=sequence)


def remove_all_versions(tx: Transaction, model_id: str, sequence: int, now: datetime) -> None:
    """`remove_version` for every version of a model that is being deleted."""
    moment = codec.format_time(now)
    tx.put(_MARK_ALL_DELETED, which=model_id, sequence=sequence, now=moment)
    for statement in _FORGET_ALL:
        tx.put(statement, which=model_id)
    tx.put(_LEAVE_ALL_STAGES, which=model_id)
    tx.put(_END_ALL_STAYS, which=model_id, now=moment, sequence=sequence)
