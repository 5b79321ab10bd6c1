"""Versions and models as lists show them, read straight from their columns, and what MLflow shows beside a
version: when it last changed, and by which rollout its traffic is on the way.

A list is read in two steps. The first finds marks: of each row its id, and the link of the last event of its
model, which stands for all that ever happened to that model, since no state changes without an event. Whoever
keeps what was made of a row may keep it under its mark, and needs the second step, the lines, for the others
alone. A line has no document in it; whole versions are `catalog`'s part, and what the words of MLflow mean is
the service's. All of it is read, for one or for a page of them in the same few statements.
"""

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any, NamedTuple

from msgspec import Struct
from sqlalchemy import and_, bindparam, case, exists, literal_column, or_, select, union_all
from sqlalchemy.sql.elements import ColumnElement

from modelkeep.core import codec
from modelkeep.core.catalog import ModelVersion, StageGraph, withdrawal
from modelkeep.core.rollout import Rollout
from modelkeep.core.values import DEFAULT_PROJECT, ModelName
from modelkeep.store.catalog import JOINED, READY
from modelkeep.store.models import stage_graph
from modelkeep.store.schema import (
    aliases,
    endpoints,
    events,
    model_tags,
    models,
    occupancy,
    rollouts,
    version_tags,
    versions,
)
from modelkeep.store.statements import Row, Statement, one_of
from modelkeep.store.transaction import Transaction

STAGES_AT_ONCE = 8
"""Stages whose latest versions are found by one statement; models with more take another."""


class Mark(NamedTuple):
    """A version or a model by its id, and by the link of the last event of its model; None where the log has
    no event of it. What is read under the same mark is the same."""

    id: str
    past: str | None = None


class Beside(NamedTuple):
    """What stands beside a version: when its labels or its place last changed, and the id of the unfinished
    rollout that brings it traffic."""

    updated_at: datetime
    rollout: str | None = None


class VersionLine(Struct, frozen=True, gc=False):
    """A version without its files, metrics and the rest of its document. Times are texts of `format_time`;
    `rollout` is the id of the unfinished rollout that brings it traffic."""

    id: str
    project: str
    name: str
    number: int
    semver: str
    digest: str
    description: str
    tombstone: str | None
    yanked: str | None
    source: str | None
    run_id: str | None
    created_at: str
    created_by: str
    updated_at: str
    stage: str
    tags: dict[str, str]
    aliases: tuple[str, ...] = ()
    rollout: str | None = None

    @property
    def withdrawn(self) -> str | None:
        """Why nobody is to get it without naming it, or None."""
        return withdrawal(self.tombstone, self.yanked)


class ModelLine(Struct, frozen=True, gc=False):
    """A model with the latest version of each stage, lowest number first; its aliases with their numbers.
    Times are texts of `format_time`."""

    id: str
    project: str
    name: str
    description: str
    created_at: str
    created_by: str
    updated_at: str
    stages: StageGraph
    tags: dict[str, str]
    aliases: tuple[tuple[str, int], ...]
    latest: tuple[VersionLine, ...]


def line_of(version: ModelVersion, beside: Beside) -> VersionLine:
    """The line of a version that was read whole."""
    told = version.provenance
    return VersionLine(
        id=version.id,
        project=version.model.project,
        name=version.model.name,
        number=version.number,
        semver=version.semver,
        digest=version.digest,
        description=version.description,
        tombstone=version.tombstone,
        yanked=version.yanked,
        source=told.source if told is not None else None,
        run_id=told.run_id if told is not None else None,
        created_at=codec.format_time(version.created_at),
        created_by=version.created_by,
        updated_at=codec.format_time(beside.updated_at),
        stage=version.stage,
        tags=version.tags,
        aliases=version.aliases,
        rollout=beside.rollout,
    )


# ------------------------------------------------------------------------------------------------------ marks

_full_name = case(
    (models.c.project == literal_column(f"'{DEFAULT_PROJECT}'"), models.c.name),
    else_=models.c.project + literal_column("'/'") + models.c.name,
)
PAST = (
    select(events.c.link)
    .where(events.c.model == _full_name)
    .order_by(events.c.sequence.desc())
    .limit(literal_column("1"))
    .correlate(models)
    .scalar_subquery()
    .label("past")
)
"""The link of the last event of a row's model: of a query that has `models`."""

_NAMED = and_(models.c.project == bindparam("project"), models.c.name == bindparam("name"))
_MARK_OF_MODEL = select(models.c.id, PAST).where(_NAMED, models.c.deleted_at.is_(None))
_MARKED = select(versions.c.id, PAST).select_from(models.join(versions, versions.c.model_id == models.c.id))
_MARK_BY_NUMBER = _MARKED.where(_NAMED, READY, versions.c.number == bindparam("number"))
_MARK_BY_KEY = _MARKED.where(_NAMED, READY, versions.c.semver_key == bindparam("key"))
_MARK_BY_ALIAS = (
    select(versions.c.id, PAST)
    .select_from(
        models.join(aliases, aliases.c.model_id == models.c.id).join(
            versions,
            and_(versions.c.model_id == aliases.c.model_id, versions.c.number == aliases.c.number),
        )
    )
    .where(_NAMED, READY, aliases.c.alias == bindparam("alias"))
)


def mark_of_model(tx: Transaction, model: ModelName) -> Mark | None:
    """A model by its name."""
    return _mark(tx, _MARK_OF_MODEL, model)


def mark_by_number(tx: Transaction, model: ModelName, number: int) -> Mark | None:
    """A version by its number."""
    return _mark(tx, _MARK_BY_NUMBER, model, number=number)


def mark_by_key(tx: Transaction, model: ModelName, key: str) -> Mark | None:
    """A version by its semver's sort key."""
    return _mark(tx, _MARK_BY_KEY, model, key=key)


def mark_by_alias(tx: Transaction, model: ModelName, alias: str) -> Mark | None:
    """The version that an alias points to."""
    return _mark(tx, _MARK_BY_ALIAS, model, alias=alias)


def _mark(tx: Transaction, statement: Statement, model: ModelName, **which: Any) -> Mark | None:
    row = tx.one(statement, project=model.project, name=model.name, **which)
    return Mark(*row) if row else None


# ------------------------------------------------------------------------------------------------------ lines

_LINE = (
    versions.c.model_id,
    versions.c.id,
    models.c.project,
    models.c.name,
    versions.c.number,
    versions.c.semver,
    versions.c.digest,
    versions.c.description,
    versions.c.tombstone,
    versions.c.yanked,
    versions.c.source,
    versions.c.run_id,
    versions.c.created_at,
    versions.c.created_by,
    versions.c.updated_at,
    occupancy.c.stage,
    case((occupancy.c.stage.is_(None), models.c.stages)),  # which says the stage where versions begin
)
_OWN = slice(1, 15)
_STAGE, _GRAPH = 15, 16
_LINES = select(*_LINE).select_from(JOINED).where(one_of(versions.c.id, "ids"))
_MODELS = select(
    models.c.id,
    models.c.project,
    models.c.name,
    models.c.description,
    models.c.created_at,
    models.c.created_by,
    models.c.updated_at,
    models.c.stages,
).where(one_of(models.c.id, "ids"))

_none: ColumnElement[str] = literal_column("''")
_zero: ColumnElement[int] = literal_column("0")
_vt, _mt, _a, _r = version_tags.c, model_tags.c, aliases.c, rollouts.c
_LABELS = union_all(
    select(literal_column("'version'"), _vt.version_id, _vt.key, _vt.value, _zero).where(
        one_of(_vt.version_id, "ids")
    ),
    select(literal_column("'model'"), _mt.model_id, _mt.key, _mt.value, _zero).where(
        one_of(_mt.model_id, "tagged")
    ),
    select(literal_column("'alias'"), _a.model_id, _a.alias, _none, _a.number).where(
        one_of(_a.model_id, "owners")
    ),
    select(literal_column("'rollout'"), endpoints.c.model_id, _r.id, _r.document, _zero)
    .select_from(endpoints.join(rollouts, _r.id == endpoints.c.rollout_id))
    .where(one_of(endpoints.c.model_id, "owners")),
)


class _Labels(NamedTuple):
    """What is said about versions, by their ids, and about models: tags; aliases; unfinished rollouts."""

    version_tags: dict[str, dict[str, str]]
    model_tags: dict[str, dict[str, str]]
    aliases: dict[str, list[tuple[str, int]]]
    rollouts: dict[str, list[Rollout]]


def _labels(
    tx: Transaction, ids: Sequence[str], owners: Iterable[str], tagged: Sequence[str] = ()
) -> _Labels:
    found = _Labels({}, {}, {}, {})
    for kind, owner, name, text, number in tx.all(_LABELS, ids=ids, tagged=tagged, owners=list(owners)):
        match kind:
            case "version":
                found.version_tags.setdefault(owner, {})[name] = text
            case "model":
                found.model_tags.setdefault(owner, {})[name] = text
            case "alias":
                found.aliases.setdefault(owner, []).append((name, number))
            case _:
                found.rollouts.setdefault(owner, []).append(codec.decode(text, Rollout))
    for pointers in found.aliases.values():
        pointers.sort()
    return found


def version_lines(tx: Transaction, ids: Sequence[str]) -> dict[str, VersionLine]:
    """The lines of versions by their ids: two statements for any number of them."""
    if not ids:
        return {}
    rows = tx.all(_LINES, ids=ids)
    labels = _labels(tx, ids, {row[0] for row in rows})
    return {row[1]: _line(row, labels) for row in rows}


def _line(row: Row, labels: _Labels) -> VersionLine:
    owner, version_id, number = row[0], row[1], row[4]
    stage = row[_STAGE] if row[_STAGE] is not None else stage_graph(row[_GRAPH]).initial
    pointers = labels.aliases.get(owner)
    moving = labels.rollouts.get(owner)
    beside = (
        stage,
        labels.version_tags.get(version_id, {}),
        tuple([alias for alias, at in pointers if at == number]) if pointers else (),
        _moving(number, moving) if moving else None,
    )
    return VersionLine(*(*row[_OWN], *beside))


def _moving(number: int, unfinished: Iterable[Rollout]) -> str | None:
    """The rollout that brings a version traffic."""
    return next((rollout.id for rollout in unfinished if number in rollout.numbers), None)


def model_lines(tx: Transaction, ids: Sequence[str]) -> dict[str, ModelLine]:
    """The lines of models by their ids: three statements for any number of them, while they share few stages.

    Of the versions in a stage the one with the highest number is the latest. One that was taken back or
    yanked is passed over, unless its stage holds one version only.
    """
    if not ids:
        return {}
    rows = tx.all(_MODELS, ids=ids)
    graphs = [stage_graph(row[7]) for row in rows]
    found = _latest_rows(tx, ids, graphs)
    labels = _labels(tx, [row[1] for row in found], ids, ids)
    latest: dict[str, list[VersionLine]] = {}
    for row in sorted(found, key=lambda row: int(row[4])):
        latest.setdefault(row[0], []).append(_line(row, labels))
    lines: dict[str, ModelLine] = {}
    for row, graph in zip(rows, graphs, strict=True):
        named, pointers = labels.model_tags.get(row[0], {}), labels.aliases.get(row[0], ())
        lines[row[0]] = ModelLine(*(*row[:7], graph, named, tuple(pointers), tuple(latest.get(row[0], ()))))
    return lines


def _latest_rows(tx: Transaction, ids: Sequence[str], graphs: Iterable[StageGraph]) -> list[Row]:
    """Rows of `_LINE`: of each model the latest version in each stage. In the first stage of a graph nothing
    is recorded."""
    distinct = {id(graph): graph for graph in graphs}.values()
    stages = sorted({spec.name for graph in distinct for spec in graph.stages[1:]})
    rows: list[Row] = []
    for first in range(0, max(len(stages), 1), STAGES_AT_ONCE):
        some = stages[first : first + STAGES_AT_ONCE]
        named = {f"stage_{place}": stage for place, stage in enumerate(some)}
        rows += tx.all(latest_in(len(some), unplaced=first == 0), ids=ids, **named)
    return rows


@lru_cache(maxsize=2 * (STAGES_AT_ONCE + 1))
def latest_in(stages: int, *, unplaced: bool) -> Statement:
    """The latest versions of some models in so many stages, and in that where they begin."""
    branches = [_latest(_placed(f"stage_{place}")) for place in range(stages)]
    if unplaced:
        branches.append(_latest(_UNPLACED))
    return union_all(*branches)


def _latest(number: Any) -> Any:
    return select(*_LINE).select_from(JOINED).where(one_of(models.c.id, "ids"), versions.c.number == number)


_there = versions.alias("there")
_place = occupancy.alias("place")
_standing = and_(_place.c.model_id == _there.c.model_id, _place.c.number == _there.c.number)
_offered = and_(_there.c.tombstone.is_(None), _there.c.yanked.is_(None))
_UNPLACED = (
    select(_there.c.number)
    .select_from(_there.outerjoin(_place, _standing))
    .where(_there.c.model_id == models.c.id, _there.c.status == "ready", _place.c.number.is_(None), _offered)
    .order_by(_there.c.number.desc())
    .limit(literal_column("1"))
    .correlate(models)
    .scalar_subquery()
)


# Asked of the row apart, and last: what the walk itself reads stands in the index that is sorted for it.
_row = occupancy.alias("row")
_alone = exists().where(
    _row.c.model_id == _place.c.model_id,
    _row.c.number == _place.c.number,
    _row.c.exclusive == literal_column("1"),
)


def _placed(stage: str) -> Any:
    """The number of the latest version in the stage that is bound to this name."""
    return (
        select(_place.c.number)
        .select_from(_place.join(_there, _standing))
        .where(
            _place.c.model_id == models.c.id,
            _place.c.stage == bindparam(stage),
            _there.c.status == "ready",
            or_(_offered, _alone),
        )
        .order_by(_place.c.number.desc())
        .limit(literal_column("1"))
        .correlate(models)
        .scalar_subquery()
    )


# -------------------------------------------------------------------------------------------- beside versions

_BESIDE = (
    select(versions.c.id, versions.c.number, versions.c.updated_at, rollouts.c.document)
    .select_from(
        versions.outerjoin(
            endpoints,
            and_(endpoints.c.model_id == versions.c.model_id, endpoints.c.rollout_id.is_not(None)),
        ).outerjoin(rollouts, rollouts.c.id == endpoints.c.rollout_id)
    )
    .where(one_of(versions.c.id, "ids"))
)
_NUMBERS_IN = (
    select(occupancy.c.number)
    .where(occupancy.c.model_id == bindparam("model_id"), occupancy.c.stage == bindparam("stage"))
    .order_by(occupancy.c.number)
    .limit(bindparam("limit"))
)


def beside(tx: Transaction, ids: Sequence[str]) -> dict[str, Beside]:
    """What stands beside these versions, by their ids: one statement."""
    return _beside(tx.all(_BESIDE, ids=ids)) if ids else {}


def _beside(rows: Iterable[Row]) -> dict[str, Beside]:
    found: dict[str, Beside] = {}
    for version_id, number, updated_at, document in rows:
        rollout = codec.decode(document, Rollout) if document is not None else None
        moving = rollout.id if rollout is not None and number in rollout.numbers else None
        if moving is not None or version_id not in found:
            found[version_id] = Beside(codec.parse_time(updated_at), moving)
    return found


def ask_rollout(tx: Transaction, version_id: str) -> Callable[[], str | None]:
    """Asked ahead: the id of the unfinished rollout that brings a version traffic."""
    asked = tx.ask(_BESIDE, ids=[version_id])
    return lambda: next((found.rollout for found in _beside(asked.all()).values()), None)


def numbers_in(tx: Transaction, model_id: str, stage: str, limit: int) -> list[int]:
    """The numbers of the versions that have moved to a stage, lowest first."""
    return [row[0] for row in tx.all(_NUMBERS_IN, model_id=model_id, stage=stage, limit=limit)]
