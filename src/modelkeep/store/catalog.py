"""Rows of versions, read: one at a time by whatever names it, now or at a moment of the past, or many.

What never changes of a version is one document; what is said about it later (description, tags, aliases,
stage, tombstone, yank) stands beside it and is laid over it when it is read. Models are in `models`, lists
and searches in `search`. Whether something may be done, and the event that belongs to it, are the service's
part.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from msgspec.structs import replace
from sqlalchemy import and_, bindparam, func, or_, select, union_all
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.elements import ColumnElement
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import Text

from modelkeep.core import codec, errors, registration, semver
from modelkeep.core.catalog import ModelVersion
from modelkeep.core.events import Event, EventKind
from modelkeep.core.registration import Neighbourhood
from modelkeep.core.semver import Range, SemVer
from modelkeep.core.values import Digest, ModelName
from modelkeep.store import models as models_store
from modelkeep.store import renames
from modelkeep.store.models import MODEL, get_model
from modelkeep.store.schema import (
    aliases,
    events,
    models,
    occupancy,
    stage_intervals,
    version_tags,
    versions,
)
from modelkeep.store.statements import Row, Statement, one_of
from modelkeep.store.transaction import Transaction
from modelkeep.store.versions import add_version, remove_version, set_tombstone

__all__ = [
    "Found",
    "FoundVersion",
    "Moment",
    "add_version",
    "get_model",
    "get_version",
    "remove_version",
    "set_tombstone",
]
# Other columns know versions by this file alone: it passes on what they need of its neighbours.

RANGE_BATCH = 50
"""Versions looked at in one statement when only some count: pre-releases in a range, or a moment of the past
at which some were withdrawn."""
SAME_BYTES_MAX = 100
"""Versions with the same content among which the one is looked for that a draft announces again."""
EVERY_KEY = ("", "~")
"""The span of sort keys that every version lies in."""


class first_stage(ColumnElement[str]):  # noqa: N801  (it reads as a function of SQL)
    """The stage in which a model's versions begin, out of its stage graph."""

    type = Text()
    inherit_cache = True


@compiles(first_stage, "sqlite")
def _first_stage_sqlite(_: first_stage, compiler: SQLCompiler, **kw: Any) -> str:
    return f"json_extract({compiler.process(models.c.stages, **kw)}, '$.stages[0].name')"


@compiles(first_stage, "postgresql")
def _first_stage_postgresql(_: first_stage, compiler: SQLCompiler, **kw: Any) -> str:
    return f"({compiler.process(models.c.stages, **kw)}::json -> 'stages' -> 0 ->> 'name')"


class json_pairs(FunctionElement[str]):  # noqa: N801  (it reads as a function of SQL)
    """Of many rows a key and a value each as one JSON object; null, or an empty one, of none."""

    name = "json_pairs"
    type = Text()
    inherit_cache = True


@compiles(json_pairs, "sqlite")
def _json_pairs_sqlite(element: json_pairs, compiler: SQLCompiler, **kw: Any) -> str:
    return f"json_group_object({compiler.process(element.clauses, **kw)})"


@compiles(json_pairs, "postgresql")
def _json_pairs_postgresql(element: json_pairs, compiler: SQLCompiler, **kw: Any) -> str:
    return f"json_object_agg({compiler.process(element.clauses, **kw)})::text"


STAGE = func.coalesce(occupancy.c.stage, first_stage())
"""Where a version stands; it needs `JOINED`."""
JOINED = models.join(versions, versions.c.model_id == models.c.id).outerjoin(
    occupancy,
    and_(occupancy.c.model_id == versions.c.model_id, occupancy.c.number == versions.c.number),
)
READY = and_(versions.c.status == "ready", models.c.deleted_at.is_(None))
"""What everybody sees: finalized, and not deleted."""
OFFERED = and_(versions.c.tombstone.is_(None), versions.c.yanked.is_(None))
"""What is chosen among when nobody names a version: neither taken back nor yanked. It is today's state."""


class FoundVersion(NamedTuple):
    """A version's own row, in the order of `VERSION`, or with its labels as JSON, in that of `_LABELLED`."""

    id: str
    model_id: str
    number: int
    document: str
    description: str
    tombstone: str | None
    yanked: str | None
    stage: str
    created_at: str
    project: str
    name: str
    tags: str | None = None
    aliases: str | None = None


VERSION = (
    versions.c.id,
    versions.c.model_id,
    versions.c.number,
    versions.c.document,
    versions.c.description,
    versions.c.tombstone,
    versions.c.yanked,
    STAGE,
    versions.c.created_at,
    models.c.project,
    models.c.name,
)

_pointers = aliases.alias("pointers")
_LABELLED = (
    *VERSION,
    select(json_pairs(version_tags.c.key, version_tags.c.value))
    .where(version_tags.c.version_id == versions.c.id)
    .correlate(versions)
    .scalar_subquery(),
    select(json_pairs(_pointers.c.alias, _pointers.c.number))
    .where(_pointers.c.model_id == versions.c.model_id, _pointers.c.number == versions.c.number)
    .correlate(versions)
    .scalar_subquery(),
)
"""One version in one statement; the labels of many are read apart."""

_NAMED = and_(models.c.project == bindparam("project"), models.c.name == bindparam("name"))
_EXISTED = and_(
    versions.c.from_sequence <= bindparam("sequence"),
    or_(versions.c.to_sequence.is_(None), versions.c.to_sequence > bindparam("sequence")),
)


class Found(NamedTuple):
    """One way to name a version, as two statements: now, and at a moment of the past."""

    now: Statement
    then: Statement


def _found(condition: ColumnElement[bool], *order: Any) -> Found:
    def build(seen: ColumnElement[bool]) -> Statement:
        found = select(*_LABELLED).select_from(JOINED).where(_NAMED, seen, condition)
        return found.order_by(*order).limit(1)

    return Found(build(READY), build(_EXISTED))


_highest = versions.c.semver_key.desc()
_last = versions.c.number.desc()
BY_NUMBER = _found(versions.c.number == bindparam("number"))
BY_SEMVER = _found(versions.c.semver_key == bindparam("key"))
BY_DIGEST = _found(versions.c.digest == bindparam("digest"), _highest)
HIGHEST = _found(versions.c.semver_key > "", _highest)
_HIGHEST_OFFERED = _found(OFFERED, _highest).now
_LATEST = _found(and_(versions.c.prerelease == 0, OFFERED), _highest).now
NEWEST = _found(versions.c.number > 0, _last)
_IN_STAGE = _found(occupancy.c.stage == bindparam("stage"), _last)
_IN_FIRST_STAGE = _found(and_(occupancy.c.number.is_(None), first_stage() == bindparam("stage")), _last)
_NUMBERED = (
    select(*_LABELLED, *MODEL)
    .select_from(JOINED)
    .where(_NAMED, READY, versions.c.number == bindparam("number"))
)
_ALIASED = (
    select(*_LABELLED)
    .select_from(
        JOINED.join(aliases, and_(aliases.c.model_id == models.c.id, aliases.c.number == versions.c.number))
    )
    .where(_NAMED, READY, aliases.c.alias == bindparam("alias"))
)
_SEMVERS = (
    select(versions.c.semver, versions.c.semver_key, versions.c.number)
    .select_from(models.join(versions, versions.c.model_id == models.c.id))
    .where(
        _NAMED,
        versions.c.semver_key >= bindparam("low"),
        versions.c.semver_key < bindparam("high"),
        or_(versions.c.prerelease == 0, bindparam("prereleases") == 1),
    )
    .order_by(_highest)
    .limit(bindparam("limit"))
)
_SEMVERS_NOW = _SEMVERS.where(READY)
_SEMVERS_OFFERED = _SEMVERS_NOW.where(OFFERED)
_SEMVERS_THEN = _SEMVERS.where(_EXISTED)


def _given(spans: int) -> Statement:
    """Of all versions that a model ever had, those with some sort keys, and the highest one of each span."""
    of_model = select(versions.c.semver).where(versions.c.model_id == bindparam("model_id"))
    highest = (
        select(func.max(versions.c.semver_key)).where(
            versions.c.model_id == bindparam("model_id"),
            versions.c.semver_key >= bindparam(f"low_{within}"),
            versions.c.semver_key < bindparam(f"high_{within}"),
        )
        for within in range(spans)
    )
    return union_all(
        of_model.where(one_of(versions.c.semver_key, "keys")),
        of_model.where(versions.c.semver_key.in_(union_all(*highest))),
    )


_GIVEN = {spans: _given(spans) for spans in (1, 3)}
_SAME_BYTES = (
    select(*VERSION)
    .select_from(JOINED)
    .where(versions.c.digest == bindparam("digest"), versions.c.model_id == bindparam("model_id"), READY)
    .order_by(_highest)
    .limit(bindparam("limit"))
)
_SAME_IDENTITY = (
    select(versions.c.semver)
    .select_from(JOINED)
    .where(versions.c.identity == bindparam("identity"), versions.c.model_id == bindparam("model_id"), READY)
    .order_by(_highest)
    .limit(bindparam("limit"))
)

_TAGS_OF = select(version_tags.c.version_id, version_tags.c.key, version_tags.c.value).where(
    one_of(version_tags.c.version_id, "ids")
)
_ALIASES_OF = (
    select(versions.c.id, aliases.c.alias)
    .join(aliases, and_(aliases.c.model_id == versions.c.model_id, aliases.c.number == versions.c.number))
    .where(one_of(versions.c.id, "ids"))
)

_ALIAS_EVENTS = (
    select(events.c.document)
    .where(
        events.c.model == bindparam("model"),
        events.c.sequence > bindparam("after"),
        events.c.sequence <= bindparam("sequence"),
        events.c.kind.in_([EventKind.ALIAS_SET.value, EventKind.ALIAS_DELETED.value]),
    )
    .order_by(events.c.sequence)
)
_WITHDRAWALS = {
    EventKind.VERSION_TOMBSTONED: True,
    EventKind.VERSION_CLEARED: False,
    EventKind.VERSION_YANKED: True,
    EventKind.VERSION_UNYANKED: False,
}
"""The kinds of event that set a mark by which a version is passed over, and those that lift it again."""
_WITHDRAWAL_EVENTS = (
    select(events.c.document)
    .where(
        events.c.model == bindparam("model"),
        events.c.sequence > bindparam("after"),
        events.c.sequence <= bindparam("sequence"),
        events.c.kind.in_([kind.value for kind in _WITHDRAWALS]),
    )
    .order_by(events.c.sequence)
)
_STAGE_THEN = (
    select(stage_intervals.c.stage)
    .where(
        stage_intervals.c.model_id == bindparam("model_id"),
        stage_intervals.c.number == bindparam("number"),
        stage_intervals.c.from_sequence <= bindparam("sequence"),
        or_(stage_intervals.c.to_sequence.is_(None), stage_intervals.c.to_sequence > bindparam("sequence")),
    )
    .order_by(stage_intervals.c.from_sequence.desc())
    .limit(1)
)
_OCCUPANT_THEN = (
    select(stage_intervals.c.number)
    .select_from(models.join(stage_intervals, stage_intervals.c.model_id == models.c.id))
    .where(
        _NAMED,
        stage_intervals.c.stage == bindparam("stage"),
        stage_intervals.c.from_sequence <= bindparam("sequence"),
        or_(stage_intervals.c.to_sequence.is_(None), stage_intervals.c.to_sequence > bindparam("sequence")),
    )
    .order_by(stage_intervals.c.number.desc())
    .limit(1)
)
_IN_FIRST_STAGE_THEN = (
    select(versions.c.number)
    .select_from(models.join(versions, versions.c.model_id == models.c.id))
    .where(
        _NAMED,
        _EXISTED,
        first_stage() == bindparam("stage"),
        ~select(stage_intervals.c.number)
        .where(
            stage_intervals.c.model_id == versions.c.model_id,
            stage_intervals.c.number == versions.c.number,
            stage_intervals.c.from_sequence <= bindparam("sequence"),
            or_(
                stage_intervals.c.to_sequence.is_(None),
                stage_intervals.c.to_sequence > bindparam("sequence"),
            ),
        )
        .exists(),
    )
    .order_by(_last)
    .limit(1)
)


class Moment(NamedTuple):
    """A moment of the past as the log has it: the state after its event with this number."""

    sequence: int


# ---------------------------------------------------------------------------------------------------- reading


def get_version(tx: Transaction, model: ModelName, number: int) -> ModelVersion:
    """A version by its number.

    Raises:
        VersionNotFound: it is not there, or no more.
    """
    version = find(tx, BY_NUMBER, model, number=number)
    if version is None:
        raise errors.VersionNotFound(f"{model} has no version number {number}.", model=str(model))
    return version


def find(tx: Transaction, by: Found, model: ModelName, **which: Any) -> ModelVersion | None:
    """The version that a condition names now."""
    return _first(tx, by.now, model, **which)


def find_in_model(
    tx: Transaction, model: ModelName, number: int
) -> tuple[models_store.ModelRow, ModelVersion] | None:
    """The version with a number, with the row of its model."""
    row = tx.one(_NUMBERED, project=model.project, name=model.name, number=number)
    if row is None:
        return None
    own = len(_LABELLED)
    return models_store.ModelRow(*row[own:]), _labelled(FoundVersion(*row[:own]))


def _first(tx: Transaction, statement: Statement, model: ModelName, **which: Any) -> ModelVersion | None:
    row = tx.one(statement, project=model.project, name=model.name, **which)
    return _labelled(FoundVersion(*row)) if row else None


def find_then(
    tx: Transaction, by: Found, model: ModelName, moment: Moment, **which: Any
) -> ModelVersion | None:
    """The version that a condition named at a moment, in the stage in which it was; deleted ones included.

    Its aliases are left out, since today's are not those of then: see `aliases_then`.
    """
    row = tx.one(by.then, project=model.project, name=model.name, sequence=moment.sequence, **which)
    if row is None:
        return None
    found = FoundVersion(*row)
    stage = tx.one(
        _STAGE_THEN, model_id=found.model_id, number=found.number, sequence=moment.sequence
    ) or tx.one(_FIRST_STAGE, which=found.model_id)
    assert stage is not None, "the version's model is there"
    return replace(_labelled(found), stage=stage[0], aliases=())


_FIRST_STAGE = select(first_stage()).select_from(models).where(models.c.id == bindparam("which"))


def find_aliased(tx: Transaction, model: ModelName, alias: str) -> ModelVersion | None:
    """The version an alias points to."""
    row = tx.one(_ALIASED, project=model.project, name=model.name, alias=alias)
    return _labelled(FoundVersion(*row)) if row else None


def find_staged(
    tx: Transaction, model: ModelName, stage: str, moment: Moment | None = None
) -> ModelVersion | None:
    """The occupant of a stage; of several in one that is not exclusive, the one registered last.

    In the first stage of a model, versions stand without having moved there.
    """
    if moment is None:
        found = find(tx, _IN_STAGE, model, stage=stage)
        return found or find(tx, _IN_FIRST_STAGE, model, stage=stage)
    named = {"project": model.project, "name": model.name, "sequence": moment.sequence, "stage": stage}
    number = tx.one(_OCCUPANT_THEN, **named) or tx.one(_IN_FIRST_STAGE_THEN, **named)
    return find_then(tx, BY_NUMBER, model, moment, number=number[0]) if number else None


def find_in_range(
    tx: Transaction, model: ModelName, within: Range, moment: Moment | None = None
) -> ModelVersion | None:
    """The highest version of a range that is neither taken back nor yanked."""
    prereleases = any(bound.version.pre for bound in within.bounds)
    return _choose(tx, model, registration.span_of(within), within.contains, moment, prereleases)


def find_latest(tx: Transaction, model: ModelName, moment: Moment | None = None) -> ModelVersion | None:
    """The highest released version that is neither taken back nor yanked."""
    if moment is None:
        return _first(tx, _LATEST, model)
    return _choose(tx, model, EVERY_KEY, lambda _: True, moment, prereleases=False)


def find_parent(tx: Transaction, model: ModelName) -> ModelVersion | None:
    """The version that a new one follows: the highest released one, else the highest with pre-releases
    included; a withdrawn one only where there is no other."""
    return _first(tx, _LATEST, model) or _first(tx, _HIGHEST_OFFERED, model) or find(tx, HIGHEST, model)


def _choose(
    tx: Transaction,
    model: ModelName,
    span: tuple[str, str],
    fits: Callable[[SemVer], bool],
    moment: Moment | None,
    prereleases: bool,
) -> ModelVersion | None:
    """The highest version of a span of sort keys that fits and may be chosen, now or at a moment."""
    low, high = span
    passed_over = _withdrawn_then(tx, model, moment) if moment is not None else frozenset()
    batch = RANGE_BATCH if prereleases or passed_over else 1
    while True:
        rows = _semvers(tx, model, low, high, batch, moment, prereleases, offered=True)
        for text, key, number in rows:
            if number not in passed_over and fits(semver.parse(text)):
                if moment is None:
                    return find(tx, BY_SEMVER, model, key=key)
                return find_then(tx, BY_SEMVER, model, moment, key=key)
        if len(rows) < RANGE_BATCH:
            return None
        high = rows[-1][1]


def _withdrawn_then(tx: Transaction, model: ModelName, moment: Moment) -> frozenset[int]:
    """The numbers that were taken back or yanked at a moment: a fold of those events."""
    marks: set[tuple[int | None, str]] = set()
    for (document,) in _told_until(tx, _WITHDRAWAL_EVENTS, model, moment):
        event = codec.decode(document, Event)
        yank = event.kind in (EventKind.VERSION_YANKED, EventKind.VERSION_UNYANKED)
        mark = (event.number, "yank" if yank else "tombstone")
        if _WITHDRAWALS[event.kind]:
            marks.add(mark)
        else:
            marks.discard(mark)
    return frozenset(number for number, _ in marks if number is not None)


def aliases_then(tx: Transaction, model: ModelName, moment: Moment) -> dict[str, int]:
    """Where the aliases of a model pointed at a moment: a fold of their events."""
    pointed: dict[str, int] = {}
    for (document,) in _told_until(tx, _ALIAS_EVENTS, model, moment):
        event = codec.decode(document, Event)
        if event.kind is EventKind.ALIAS_SET:
            pointed[event.body["alias"]] = int(event.body["to"])
        else:
            pointed.pop(event.body["alias"], None)
    return pointed


def _told_until(tx: Transaction, statement: Statement, model: ModelName, moment: Moment) -> list[Row]:
    """Events of a model up to a moment, oldest first, under all names that it had."""
    rows: list[Row] = []
    for span in reversed(renames.spans(tx, str(model))):
        until = min(span.until, moment.sequence)
        if until > span.after:
            rows += tx.all(statement, model=span.name, after=span.after, sequence=until)
    return rows


def list_semvers(tx: Transaction, model: ModelName, *, limit: int, moment: Moment | None = None) -> list[str]:
    """The highest versions of a model, the highest first."""
    return [row[0] for row in _semvers(tx, model, *EVERY_KEY, limit, moment, prereleases=True)]


def _semvers(
    tx: Transaction,
    model: ModelName,
    low: str,
    high: str,
    limit: int,
    moment: Moment | None,
    prereleases: bool,
    *,
    offered: bool = False,
) -> list[Row]:
    """Semver, sort key and number of a model's versions in a span, the highest first; with `offered` none
    that are withdrawn today, which a moment of the past knows nothing of."""
    named: dict[str, Any] = {"project": model.project, "name": model.name, "low": low, "high": high}
    named |= {"limit": limit, "prereleases": int(prereleases)}
    if moment is None:
        return tx.all(_SEMVERS_OFFERED if offered else _SEMVERS_NOW, **named)
    return tx.all(_SEMVERS_THEN, sequence=moment.sequence, **named)


def given_semvers(tx: Transaction, model_id: str, near: Neighbourhood) -> list[SemVer]:
    """The versions of a neighbourhood that the model ever had, deleted ones included."""
    ends = {f"low_{at}": low for at, (low, _) in enumerate(near.spans)}
    ends |= {f"high_{at}": high for at, (_, high) in enumerate(near.spans)}
    rows = tx.all(_GIVEN[len(near.spans)], model_id=model_id, keys=near.keys, **ends)
    return [semver.parse(row[0]) for row in rows]


def find_same_bytes(tx: Transaction, model_id: str, digest: Digest) -> list[ModelVersion]:
    """The versions of a model with this content, the highest first."""
    return load(tx, tx.all(_SAME_BYTES, model_id=model_id, digest=digest, limit=SAME_BYTES_MAX))


def find_twin(tx: Transaction, model_id: str, digest: Digest) -> ModelVersion | None:
    """The highest version of a model with this content, without its tags and aliases."""
    row = tx.one(_SAME_BYTES, model_id=model_id, digest=digest, limit=1)
    return _laid_over(FoundVersion(*row), {}, []) if row else None


def find_same_identity(tx: Transaction, model_id: str, identity: Digest, limit: int) -> list[str]:
    """The semvers of a model's versions with this identity, the highest first."""
    return [row[0] for row in tx.all(_SAME_IDENTITY, model_id=model_id, identity=identity, limit=limit)]


def load(tx: Transaction, rows: Sequence[Row]) -> list[ModelVersion]:
    """Versions out of rows of `VERSION`: two statements for the labels of all of them."""
    if not rows:
        return []
    ids = [row[0] for row in rows]
    tags: dict[str, dict[str, str]] = {}
    for version_id, key, value in tx.all(_TAGS_OF, ids=ids):
        tags.setdefault(version_id, {})[key] = value
    pointers: dict[str, list[str]] = {}
    for version_id, alias in tx.all(_ALIASES_OF, ids=ids):
        pointers.setdefault(version_id, []).append(alias)
    return [
        _laid_over(found, tags.get(found.id, {}), pointers.get(found.id, []))
        for found in (FoundVersion(*row) for row in rows)
    ]


def _labelled(found: FoundVersion) -> ModelVersion:
    tags = codec.decode(found.tags, dict[str, str]) if found.tags is not None else {}
    pointers = codec.decode(found.aliases, dict[str, int]) if found.aliases is not None else {}
    return _laid_over(found, tags, pointers)


def _laid_over(found: FoundVersion, tags: dict[str, str], pointers: Iterable[str]) -> ModelVersion:
    return replace(
        codec.decode(found.document, ModelVersion),
        model=ModelName(found.project, found.name),  # the document has the name that it was registered under
        description=found.description,
        tombstone=found.tombstone,
        yanked=found.yanked,
        stage=found.stage,
        tags=dict(sorted(tags.items())) if len(tags) > 1 else tags,
        aliases=tuple(sorted(pointers)),
    )
