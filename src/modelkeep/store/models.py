"""Rows of registered models: their labels, aliases and stage graphs. Versions are in `catalog`, lists in
`search`.

Plain functions over a transaction. Whether something may be done, and the event that belongs to a change, are
the service's part. A deleted model keeps its row, so that its name, taken up again, goes on with the next
number.
"""

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any, NamedTuple

from sqlalchemy import Table, and_, bindparam, delete, func, select, update

from modelkeep.core import codec, errors, query
from modelkeep.core.catalog import AliasSpec, RegisteredModel, StageGraph
from modelkeep.core.rollout import Endpoint, Rollout
from modelkeep.core.values import ModelName
from modelkeep.store.schema import (
    HEAD_CHARACTERS,
    aliases,
    endpoints,
    model_tags,
    models,
    occupancy,
    rollouts,
    version_tags,
    versions,
)
from modelkeep.store.statements import Row, insert, json_text, one_of
from modelkeep.store.transaction import Transaction

NO_TAGS: Mapping[str, str] = {}


class ModelRow(NamedTuple):
    """A model's own row, in the order of `MODEL`."""

    id: str
    project: str
    name: str
    description: str
    owner: str
    stages_text: str
    next_number: int
    version_count: int
    created_at: str
    created_by: str
    updated_at: str
    deleted_at: str | None

    @property
    def full_name(self) -> ModelName:
        """Project and name."""
        return ModelName(self.project, self.name)

    @property
    def stages(self) -> StageGraph:
        """The model's stage graph."""
        return stage_graph(self.stages_text)


@lru_cache(maxsize=256)
def stage_graph(text: str) -> StageGraph:
    """A stored stage graph; most models of an installation share a few."""
    return codec.decode(text, StageGraph)


MODEL = tuple(
    models.c[name] for name in ("id", "project", *ModelRow._fields[2:5], "stages", *ModelRow._fields[6:])
)

_NAMED = and_(models.c.project == bindparam("project"), models.c.name == bindparam("name"))
_FIND_ANY = select(*MODEL).where(_NAMED)
_FIND = _FIND_ANY.where(models.c.deleted_at.is_(None))
_TWIN = select(models.c.name).where(
    models.c.project == bindparam("project"),
    models.c.folded == bindparam("folded"),
    models.c.deleted_at.is_(None),
)
_INSERT = insert(models)
_REVIVE = (
    update(models)
    .where(models.c.id == bindparam("which"))
    .values(
        description=bindparam("description"),
        owner=bindparam("owner"),
        stages=bindparam("stages"),
        version_count=0,
        created_at=bindparam("now"),
        created_by=bindparam("by"),
        updated_at=bindparam("now"),
        deleted_at=None,
    )
)
_DELETE = (
    update(models)
    .where(models.c.id == bindparam("which"))
    .values(deleted_at=bindparam("now"), updated_at=bindparam("now"), version_count=0)
)
_LABEL = (
    update(models)
    .where(models.c.id == bindparam("which"))
    .values(description=bindparam("description"), owner=bindparam("owner"), updated_at=bindparam("now"))
)
_TOUCH = update(models).where(models.c.id == bindparam("which")).values(updated_at=bindparam("now"))
_SET_STAGES = (
    update(models)
    .where(models.c.id == bindparam("which"))
    .values(stages=bindparam("stages"), updated_at=bindparam("now"))
)
_TAKE_NUMBER = (
    update(models)
    .where(models.c.id == bindparam("which"))
    .values(
        next_number=models.c.next_number + 1,
        version_count=models.c.version_count + 1,
        updated_at=bindparam("now"),
    )
)
_ONE_LESS = (
    update(models)
    .where(models.c.id == bindparam("which"))
    .values(version_count=models.c.version_count - 1, updated_at=bindparam("now"))
)

_TAGS_OF = (
    select(model_tags.c.model_id, model_tags.c.key, model_tags.c.value)
    .where(one_of(model_tags.c.model_id, "ids"))
    .order_by(model_tags.c.key)
)
_ALIAS = (
    aliases.c.model_id,
    aliases.c.alias,
    aliases.c.number,
    aliases.c.protected,
    aliases.c.updated_at,
    aliases.c.updated_by,
)
_ALIASES_OF = select(*_ALIAS).where(one_of(aliases.c.model_id, "ids")).order_by(aliases.c.alias)
_GET_ALIAS = select(*_ALIAS).where(
    aliases.c.model_id == bindparam("model_id"), aliases.c.alias == bindparam("alias")
)
_SET_ALIAS = insert(aliases).on_conflict_do_update(
    index_elements=[aliases.c.model_id, aliases.c.alias],
    set_={
        name: insert(aliases).excluded[name] for name in ("number", "protected", "updated_at", "updated_by")
    },
)
_DROP_ALIAS = delete(aliases).where(
    aliases.c.model_id == bindparam("which"), aliases.c.alias == bindparam("name")
)
_OCCUPANTS_OF = select(occupancy.c.model_id, occupancy.c.stage, occupancy.c.number).where(
    one_of(occupancy.c.model_id, "ids"), occupancy.c.exclusive == 1
)
_OCCUPIED = (
    select(occupancy.c.stage, versions.c.semver)
    .join(
        versions,
        and_(versions.c.model_id == occupancy.c.model_id, versions.c.number == occupancy.c.number),
    )
    .where(occupancy.c.model_id == bindparam("model_id"), occupancy.c.exclusive == 1)
    .order_by(occupancy.c.stage)
)
_STANDING = (
    select(occupancy.c.stage, func.min(occupancy.c.number))
    .where(occupancy.c.model_id == bindparam("model_id"))
    .group_by(occupancy.c.stage)
)
_LATEST_OF = select(
    models.c.id,
    select(versions.c.semver)
    .where(
        versions.c.model_id == models.c.id,
        versions.c.prerelease == 0,
        versions.c.status == "ready",
        versions.c.tombstone.is_(None),
        versions.c.yanked.is_(None),
    )
    .order_by(versions.c.semver_key.desc())
    .limit(1)
    .correlate(models)
    .scalar_subquery(),
).where(one_of(models.c.id, "ids"))

_ENDPOINTS_OF = select(endpoints.c.document).where(endpoints.c.model_id == bindparam("model_id"))
_ROLLOUTS_OF = select(rollouts.c.document).where(
    rollouts.c.model_id == bindparam("model_id"), rollouts.c.active == 1
)


# ----------------------------------------------------------------------------------------------------- models


def folded(name: str) -> str:
    """A name as a careless reader sees it."""
    return unicodedata.normalize("NFKC", name).casefold()


def find_model(tx: Transaction, name: ModelName, *, deleted: bool = False) -> ModelRow | None:
    """The row of a model; with `deleted` also of one that is no more."""
    row = tx.one(_FIND_ANY if deleted else _FIND, project=name.project, name=name.name)
    return ModelRow(*row) if row else None


def find_twin(tx: Transaction, name: ModelName) -> str | None:
    """The name of a model in the project that a reader could take for this one."""
    row = tx.one(_TWIN, project=name.project, folded=folded(name.name))
    return str(row[0]) if row else None


def get_row(tx: Transaction, name: ModelName) -> ModelRow:
    """The row of a model.

    Raises:
        ModelNotFound: with the one sentence for a model that is not there or not to be seen.
    """
    row = find_model(tx, name)
    if row is None:
        raise errors.ModelNotFound(
            f"There is no model {name}; 'modelkeep ls' lists those you can see.", model=str(name)
        )
    return row


def get_model(tx: Transaction, name: ModelName) -> RegisteredModel:
    """A model as people see it.

    Raises:
        ModelNotFound: it is not there.
    """
    return assemble(tx, [get_row(tx, name)])[0]


def assemble(tx: Transaction, rows: Sequence[ModelRow]) -> list[RegisteredModel]:
    """Models with their labels: four statements for any number of them."""
    if not rows:
        return []
    ids = [row.id for row in rows]
    tags = _by_owner(tx.all(_TAGS_OF, ids=ids))
    pointers = _by_owner(tx.all(_ALIASES_OF, ids=ids))
    occupants = _by_owner(tx.all(_OCCUPANTS_OF, ids=ids))
    latest = {row[0]: row[1] for row in tx.all(_LATEST_OF, ids=ids)}
    return [
        RegisteredModel(
            id=row.id,
            name=row.full_name,
            description=row.description,
            owner=row.owner,
            tags={key: value for _, key, value in tags.get(row.id, ())},
            stages=row.stages,
            aliases=tuple(_alias(alias) for alias in pointers.get(row.id, ())),
            occupants={stage: number for _, stage, number in occupants.get(row.id, ())},
            versions=row.version_count,
            latest=latest.get(row.id),
            created_at=codec.parse_time(row.created_at),
            created_by=row.created_by,
            updated_at=codec.parse_time(row.updated_at),
        )
        for row in rows
    ]


def _by_owner(rows: Iterable[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row[0], []).append(row)
    return found


def add_model(
    tx: Transaction,
    id: str,  # noqa: A002  (the column's name)
    name: ModelName,
    *,
    description: str,
    owner: str,
    stages: StageGraph,
    tags: Mapping[str, str] = NO_TAGS,
    now: datetime,
    by: str,
) -> ModelRow:
    """Add a model; a deleted one of that name is taken up again and goes on counting where it stopped."""
    moment, graph = codec.format_time(now), json_text(stages)
    former = find_model(tx, name, deleted=True)
    row = ModelRow(
        id=former.id if former is not None else id,
        project=name.project,
        name=name.name,
        description=description,
        owner=owner,
        stages_text=graph,
        next_number=former.next_number if former is not None else 1,
        version_count=0,
        created_at=moment,
        created_by=by,
        updated_at=moment,
        deleted_at=None,
    )
    if former is not None:
        tx.put(_REVIVE, which=row.id, description=description, owner=owner, stages=graph, now=moment, by=by)
    else:
        columns = row._asdict()
        tx.put(_INSERT, stages=columns.pop("stages_text"), folded=folded(name.name), **columns)
    put_tags(tx, model_tags, row.id, tags)
    return row


def remove_model(tx: Transaction, id: str, now: datetime) -> None:  # noqa: A002
    """Take a model away from every read of the present. Its versions are removed one by one, before."""
    tx.put(_DELETE, which=id, now=codec.format_time(now))
    tx.put(_DROP_MODEL_TAGS, which=id)


def label_model(tx: Transaction, id: str, description: str, owner: str, now: datetime) -> None:  # noqa: A002
    """Write description and owner."""
    tx.put(_LABEL, which=id, description=description, owner=owner, now=codec.format_time(now))


def touch_model(tx: Transaction, id: str, now: datetime) -> None:  # noqa: A002
    """Note that a label of the model changed."""
    tx.put(_TOUCH, which=id, now=codec.format_time(now))


def set_stages(tx: Transaction, id: str, graph: StageGraph, now: datetime) -> None:  # noqa: A002
    """Write a model's stage graph."""
    tx.put(_SET_STAGES, which=id, stages=json_text(graph), now=codec.format_time(now))


def take_number(tx: Transaction, id: str, now: datetime) -> None:  # noqa: A002
    """Use up a model's next number for a version that is about to be added."""
    tx.put(_TAKE_NUMBER, which=id, now=codec.format_time(now))


def one_version_less(tx: Transaction, id: str, now: datetime) -> None:  # noqa: A002
    """Note that a version of the model was removed."""
    tx.put(_ONE_LESS, which=id, now=codec.format_time(now))


# ------------------------------------------------------------------------------------------------------- tags

_DROP_MODEL_TAGS = delete(model_tags).where(model_tags.c.model_id == bindparam("which"))


def _tag_statements(table: Table, owner: str) -> tuple[Any, Any]:
    put = insert(table).on_conflict_do_update(
        index_elements=[table.c[owner], table.c.key],
        set_={name: insert(table).excluded[name] for name in ("value", "value_head", "number")},
    )
    drop = delete(table).where(table.c[owner] == bindparam("which"), table.c.key == bindparam("name"))
    return put, drop


_TAG_TABLES = {
    model_tags.name: ("model_id", *_tag_statements(model_tags, "model_id")),
    version_tags.name: ("version_id", *_tag_statements(version_tags, "version_id")),
}


def put_tags(tx: Transaction, table: Table, owner_id: str, tags: Mapping[str, str]) -> None:
    """Set tags of a model (`schema.model_tags`) or of a version (`schema.version_tags`)."""
    owner, put, _ = _TAG_TABLES[table.name]
    tx.put_many(put, [{owner: owner_id, **texts(key, value)} for key, value in tags.items()])


def drop_tags(tx: Transaction, table: Table, owner_id: str, keys: Iterable[str]) -> None:
    """Remove tags; one that is not there is no error."""
    _, _, drop = _TAG_TABLES[table.name]
    tx.put_many(drop, [{"which": owner_id, "name": key} for key in keys])


def texts(key: str, value: str) -> dict[str, Any]:
    """The columns of a tag or parameter: its value whole, short for the index, and as a number if it is
    one."""
    return {
        "key": key,
        "value": value,
        "value_head": value[:HEAD_CHARACTERS],
        "number": query.as_number(value),
    }


# ---------------------------------------------------------------------------------------------------- aliases


def _alias(row: Row) -> AliasSpec:
    _, name, number, protected, updated_at, updated_by = row
    return AliasSpec(
        alias=name,
        number=number,
        protected=bool(protected),
        updated_at=codec.parse_time(updated_at),
        updated_by=updated_by,
    )


def get_alias(tx: Transaction, model_id: str, alias: str) -> AliasSpec | None:
    """One alias."""
    row = tx.one(_GET_ALIAS, model_id=model_id, alias=alias)
    return _alias(row) if row else None


def list_aliases(tx: Transaction, model_id: str) -> list[AliasSpec]:
    """All aliases of a model by name; the service bounds how many there can be."""
    return [_alias(row) for row in tx.all(_ALIASES_OF, ids=[model_id])]


def put_alias(tx: Transaction, model_id: str, spec: AliasSpec) -> None:
    """Point an alias at a version of the model."""
    tx.put(
        _SET_ALIAS,
        model_id=model_id,
        alias=spec.alias,
        number=spec.number,
        protected=int(spec.protected),
        updated_at=codec.format_time(spec.updated_at),
        updated_by=spec.updated_by,
    )


def drop_alias(tx: Transaction, model_id: str, alias: str) -> None:
    """Remove an alias."""
    tx.put(_DROP_ALIAS, which=model_id, name=alias)


def occupants(tx: Transaction, model_id: str) -> list[tuple[str, str]]:
    """The exclusive stages that are taken, each with the semver of the version in it."""
    return [(stage, text) for stage, text in tx.all(_OCCUPIED, model_id=model_id)]


def standing_in(tx: Transaction, model_id: str) -> dict[str, int]:
    """The stages that versions have moved to, each with the lowest number among them."""
    return {row[0]: row[1] for row in tx.all(_STANDING, model_id=model_id)}


# ---------------------------------------------------------------------------------------------------- serving


def endpoints_of(tx: Transaction, model_id: str) -> list[Endpoint]:
    """The endpoints that serve versions of the model."""
    return [codec.decode(row[0], Endpoint) for row in tx.all(_ENDPOINTS_OF, model_id=model_id)]


def moving(tx: Transaction, model_id: str) -> list[Rollout]:
    """The rollouts of the model's versions that have not ended."""
    return [codec.decode(row[0], Rollout) for row in tx.all(_ROLLOUTS_OF, model_id=model_id)]


def tried_in(tx: Transaction, model_id: str, number: int) -> Rollout | None:
    """The rollout that moves traffic to a version, and has not taken it back."""
    return next((r for r in moving(tx, model_id) if number in r.numbers and number not in r.lost), None)


def serving(tx: Transaction, model_id: str) -> dict[int, str]:
    """The numbers of versions that traffic goes to or may return to at any moment, each with the endpoint's
    name."""
    found: dict[int, str] = {}
    for endpoint in endpoints_of(tx, model_id):
        for number in (endpoint.previous, endpoint.stable):
            if number is not None:
                found[number] = endpoint.name
    for rollout in moving(tx, model_id):
        found.update((number, rollout.endpoint) for number in rollout.numbers)
        if rollout.stable is not None:
            found[rollout.stable] = rollout.endpoint
    return found
