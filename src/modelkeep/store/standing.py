"""What MLflow shows beside a version or a model: the latest version of each stage, and when a version last
changed and by which rollout its traffic is on the way.

All of it is read, for one or for a page of them in the same few statements. Versions themselves are
`catalog`'s part, and what the words of MLflow mean is the service's.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import and_, bindparam, or_, select

from modelkeep.core import codec
from modelkeep.core.catalog import ModelVersion, RegisteredModel
from modelkeep.core.rollout import Rollout
from modelkeep.store.catalog import JOINED, OFFERED, VERSION, load
from modelkeep.store.schema import endpoints, models, occupancy, rollouts, versions
from modelkeep.store.statements import one_of
from modelkeep.store.transaction import Transaction


class Beside(NamedTuple):
    """What stands beside a version: when its labels or its place last changed, and the id of the unfinished
    rollout that brings it traffic."""

    updated_at: datetime
    rollout: str | None = None


_of_model = and_(versions.c.model_id == models.c.id, versions.c.status == "ready")
_LATEST_IN_STAGE = select(
    models.c.id,
    select(versions.c.id)
    .select_from(
        occupancy.join(
            versions,
            and_(versions.c.model_id == occupancy.c.model_id, versions.c.number == occupancy.c.number),
        )
    )
    .where(
        occupancy.c.model_id == models.c.id,
        occupancy.c.stage == bindparam("stage"),
        versions.c.status == "ready",
        or_(bindparam("exclusive") == 1, OFFERED),
    )
    .order_by(occupancy.c.number.desc())
    .limit(1)
    .correlate(models)
    .scalar_subquery(),
).where(one_of(models.c.id, "ids"))
_LATEST_UNPLACED = select(
    models.c.id,
    select(versions.c.id)
    .select_from(
        versions.outerjoin(
            occupancy,
            and_(occupancy.c.model_id == versions.c.model_id, occupancy.c.number == versions.c.number),
        )
    )
    .where(_of_model, occupancy.c.number.is_(None), OFFERED)
    .order_by(versions.c.number.desc())
    .limit(1)
    .correlate(models)
    .scalar_subquery(),
).where(one_of(models.c.id, "ids"))
_BY_ID = select(*VERSION).select_from(JOINED).where(one_of(versions.c.id, "ids"))
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


def latest(tx: Transaction, models: Sequence[RegisteredModel]) -> dict[str, tuple[ModelVersion, ...]]:
    """Of each model, by its id, the version with the highest number in each stage, lowest number first.

    A version that was taken back or yanked is passed over, unless its stage holds one version only. It takes
    a statement for each stage that one of the models has, not for each model.
    """
    rows = tx.all(_LATEST_UNPLACED, ids=[model.id for model in models])
    for (stage, exclusive), ids in _by_stage(models).items():
        rows += tx.all(_LATEST_IN_STAGE, ids=ids, stage=stage, exclusive=int(exclusive))
    found = {version_id: model_id for model_id, version_id in rows if version_id is not None}
    of_model: dict[str, list[ModelVersion]] = {}
    chosen = tx.all(_BY_ID, ids=list(found)) if found else []
    for version in sorted(load(tx, chosen), key=lambda version: version.number):
        of_model.setdefault(found[version.id], []).append(version)
    return {model_id: tuple(each) for model_id, each in of_model.items()}


def _by_stage(models: Sequence[RegisteredModel]) -> dict[tuple[str, bool], list[str]]:
    """The ids of the models that have a stage, but for the first one, where nothing is recorded."""
    found: dict[tuple[str, bool], list[str]] = {}
    for model in models:
        for spec in model.stages.stages[1:]:
            found.setdefault((spec.name, spec.exclusive), []).append(model.id)
    return found


def beside(tx: Transaction, ids: Sequence[str]) -> dict[str, Beside]:
    """What stands beside these versions, by their ids: one statement."""
    found: dict[str, Beside] = {}
    rows: list[tuple[Any, ...]] = tx.all(_BESIDE, ids=ids) if ids else []
    for version_id, number, updated_at, document in rows:
        rollout = codec.decode(document, Rollout) if document is not None else None
        moving = rollout.id if rollout is not None and number in rollout.numbers else None
        if moving is not None or version_id not in found:
            found[version_id] = Beside(codec.parse_time(updated_at), moving)
    return found


def numbers_in(tx: Transaction, model_id: str, stage: str, limit: int) -> list[int]:
    """The numbers of the versions that have moved to a stage, lowest first."""
    return [row[0] for row in tx.all(_NUMBERS_IN, model_id=model_id, stage=stage, limit=limit)]
