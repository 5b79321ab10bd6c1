"""Rows of endpoints, rollouts, the gateways' ticks and last reports, and the number of the routing table.

Endpoints and rollouts are stored as whole documents beside the columns that are searched by. Who may do what
with them is not known here.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta

from msgspec import Struct
from sqlalchemy import and_, bindparam, delete, func, or_, select, update

from modelkeep.core import codec
from modelkeep.core.observation import GatewayReport, Tick
from modelkeep.core.rollout import Endpoint, Rollout
from modelkeep.core.values import ModelName
from modelkeep.store.schema import endpoints, gateways, models, rollout_ticks, rollouts, settings
from modelkeep.store.statements import insert, json_text
from modelkeep.store.transaction import Transaction

TICK = timedelta(microseconds=1)
"""The least distance between two arrivals, so that the order of arrival is a total one."""
TICKS_MAX = 100_000
"""Ticks that one rollout is explained from: a second each, that is more than a day of full detail."""

_MODEL_ID = select(models.c.id).where(
    models.c.project == bindparam("project"),
    models.c.name == bindparam("name"),
    models.c.deleted_at.is_(None),
)
_GET = select(endpoints.c.document).where(endpoints.c.name == bindparam("name"))
_LIST = (
    select(endpoints.c.document)
    .where(endpoints.c.name > bindparam("after"))
    .order_by(endpoints.c.name)
    .limit(bindparam("limit"))
)
_OF_STAGE = select(endpoints.c.document).where(
    endpoints.c.model_id == bindparam("model_id"), endpoints.c.stage == bindparam("stage")
)
_OF_MODEL = select(endpoints.c.document).where(endpoints.c.model_id == bindparam("model_id"))
_ADD = insert(endpoints)
_SAVE = (
    update(endpoints)
    .where(endpoints.c.name == bindparam("which"))
    .values(
        stage=bindparam("new_stage"),
        document=bindparam("new_document"),
        rollout_id=bindparam("new_rollout"),
        row_version=endpoints.c.row_version + 1,
        updated_at=bindparam("new_updated"),
    )
)
_DROP = delete(endpoints).where(endpoints.c.name == bindparam("which"))
_ROLLOUT = select(rollouts.c.document).where(rollouts.c.id == bindparam("id"))
_ADD_ROLLOUT = insert(rollouts)
_SAVE_ROLLOUT = (
    update(rollouts)
    .where(rollouts.c.id == bindparam("which"))
    .values(
        state=bindparam("new_state"),
        active=bindparam("new_active"),
        document=bindparam("new_document"),
        row_version=rollouts.c.row_version + 1,
        finished_at=bindparam("new_finished"),
    )
)
_ACTIVE = (
    select(rollouts.c.id)
    .where(rollouts.c.active == 1, rollouts.c.id > bindparam("after"))
    .order_by(rollouts.c.id)
    .limit(bindparam("limit"))
)
_CLAIM = (
    update(rollouts)
    .where(
        rollouts.c.id == bindparam("which"),
        rollouts.c.active == 1,
        or_(
            rollouts.c.lease_owner.is_(None),
            rollouts.c.lease_owner == bindparam("owner"),
            rollouts.c.lease_until < bindparam("moment"),
        ),
    )
    .values(lease_owner=bindparam("owner"), lease_until=bindparam("until"))
)
_PAGE = (
    select(rollouts.c.document)
    .where(rollouts.c.id < bindparam("before"))
    .order_by(rollouts.c.id.desc())
    .limit(bindparam("limit"))
)
_PAGE_OF_ENDPOINT = _PAGE.where(rollouts.c.endpoint == bindparam("endpoint"))
_PAGE_OF_MODEL = _PAGE.where(rollouts.c.model_id == bindparam("model_id"))
_ADD_TICK = insert(rollout_ticks).on_conflict_do_nothing()
_LAST_ARRIVAL = select(func.max(rollout_ticks.c.received_at)).where(
    rollout_ticks.c.rollout_id == bindparam("rollout")
)
_IN_ORDER = (rollout_ticks.c.received_at, rollout_ticks.c.gateway, rollout_ticks.c.number)
_TICKS = (
    select(rollout_ticks.c.document)
    .where(rollout_ticks.c.rollout_id == bindparam("rollout"))
    .order_by(*_IN_ORDER)
    .limit(TICKS_MAX)
)
_NEW_TICKS = (
    select(rollout_ticks.c.gateway, rollout_ticks.c.number, rollout_ticks.c.document)
    .where(
        rollout_ticks.c.rollout_id == bindparam("rollout"), rollout_ticks.c.received_at > bindparam("since")
    )
    .order_by(*_IN_ORDER)
    .limit(TICKS_MAX)
)
_FORGET_TICKS = delete(rollout_ticks).where(
    and_(rollout_ticks.c.rollout_id == "", rollout_ticks.c.received_at < bindparam("before"))
)
_PUT_GATEWAY = insert(gateways)
_PUT_GATEWAY = _PUT_GATEWAY.on_conflict_do_update(
    index_elements=["name"],
    set_={
        "document": _PUT_GATEWAY.excluded.document,
        "table_number": _PUT_GATEWAY.excluded.table_number,
        "seen_at": _PUT_GATEWAY.excluded.seen_at,
    },
)
_GATEWAYS = select(gateways.c.document, gateways.c.seen_at).order_by(gateways.c.name).limit(1_000)
_TABLE = select(settings.c.value).where(settings.c.key == "routing_table")
_SET_TABLE = insert(settings)
_SET_TABLE = _SET_TABLE.on_conflict_do_update(
    index_elements=["key"],
    set_={"value": _SET_TABLE.excluded.value, "updated_at": _SET_TABLE.excluded.updated_at},
)


def model_id(tx: Transaction, model: ModelName) -> str | None:
    """The id of a registered model, under which endpoints and rollouts are filed."""
    row = tx.one(_MODEL_ID, project=model.project, name=model.name)
    return str(row[0]) if row else None


# ------------------------------------------------------------------------------------------------------------
# endpoints


def get_endpoint(tx: Transaction, name: str) -> Endpoint | None:
    """One endpoint by name."""
    row = tx.one(_GET, name=name)
    return codec.decode(row[0], Endpoint) if row else None


def list_endpoints(tx: Transaction, after: str, limit: int) -> list[Endpoint]:
    """Endpoints by name, after a name."""
    return [codec.decode(row[0], Endpoint) for row in tx.all(_LIST, after=after, limit=limit)]


def endpoints_of(tx: Transaction, model: str, stage: str | None = None) -> list[Endpoint]:
    """The endpoints that follow a model, or one stage of it.

    Args:
        model: the model's id.
    """
    rows = (
        tx.all(_OF_MODEL, model_id=model) if stage is None else tx.all(_OF_STAGE, model_id=model, stage=stage)
    )
    return [codec.decode(row[0], Endpoint) for row in rows]


def add_endpoint(tx: Transaction, endpoint: Endpoint, model: str) -> None:
    """Store a new endpoint."""
    moment = codec.format_time(endpoint.created_at)
    tx.run(
        _ADD,
        name=endpoint.name,
        id=endpoint.id,
        model_id=model,
        stage=endpoint.stage,
        document=json_text(endpoint),
        rollout_id=endpoint.rollout,
        row_version=1,
        created_at=moment,
        created_by=endpoint.created_by,
        updated_at=moment,
    )


def save_endpoint(tx: Transaction, endpoint: Endpoint, now: datetime) -> None:
    """Store an endpoint's new state."""
    tx.run(
        _SAVE,
        which=endpoint.name,
        new_stage=endpoint.stage,
        new_document=json_text(endpoint),
        new_rollout=endpoint.rollout,
        new_updated=codec.format_time(now),
    )


def drop_endpoint(tx: Transaction, name: str) -> None:
    """Remove an endpoint that has no rollout rows; raises ConstraintFailed otherwise."""
    tx.run(_DROP, which=name)


# ------------------------------------------------------------------------------------------------------------
# - rollouts


def get_rollout(tx: Transaction, rollout_id: str) -> Rollout | None:
    """One rollout by id."""
    row = tx.one(_ROLLOUT, id=rollout_id)
    return codec.decode(row[0], Rollout) if row else None


def add_rollout(tx: Transaction, rollout: Rollout, model: str) -> None:
    """Store a new rollout; a second unfinished one of an endpoint raises ConstraintFailed."""
    tx.run(
        _ADD_ROLLOUT,
        id=rollout.id,
        endpoint=rollout.endpoint,
        model_id=model,
        state=rollout.state.value,
        active=int(not rollout.state.finished),
        document=json_text(rollout),
        row_version=1,
        due_at=None,
        lease_owner=None,
        lease_until=None,
        lease_term=0,
        started_at=codec.format_time(rollout.started_at),
        finished_at=None,
    )


def save_rollout(tx: Transaction, rollout: Rollout) -> None:
    """Store a rollout's new state."""
    finished = rollout.finished_at
    tx.run(
        _SAVE_ROLLOUT,
        which=rollout.id,
        new_state=rollout.state.value,
        new_active=int(not rollout.state.finished),
        new_document=json_text(rollout),
        new_finished=codec.format_time(finished) if finished is not None else None,
    )


def active_rollouts(tx: Transaction, after: str = "", limit: int = 1_000) -> list[str]:
    """The ids of unfinished rollouts, after an id."""
    return [str(row[0]) for row in tx.all(_ACTIVE, after=after, limit=limit)]


def claim(tx: Transaction, rollout_id: str, owner: str, now: datetime, until: datetime) -> bool:
    """Take or renew the lease of an unfinished rollout; False while another controller holds it."""
    return (
        tx.run(
            _CLAIM,
            which=rollout_id,
            owner=owner,
            moment=codec.format_time(now),
            until=codec.format_time(until),
        )
        == 1
    )


def list_rollouts(
    tx: Transaction, before: str, limit: int, endpoint: str | None = None, model: str | None = None
) -> list[Rollout]:
    """Rollouts, newest first, before an id; of an endpoint, of a model (by id), or all."""
    if endpoint is not None:
        rows = tx.all(_PAGE_OF_ENDPOINT, before=before, limit=limit, endpoint=endpoint)
    elif model is not None:
        rows = tx.all(_PAGE_OF_MODEL, before=before, limit=limit, model_id=model)
    else:
        rows = tx.all(_PAGE, before=before, limit=limit)
    return [codec.decode(row[0], Rollout) for row in rows]


# ------------------------------------------------------------------------------------------------------------
# - gateways


class Arrived(Struct, frozen=True):
    """A tick with the gateway it came from."""

    gateway: str
    number: int
    tick: Tick


def add_ticks(tx: Transaction, gateway: str, ticks: Sequence[Tick], now: datetime) -> None:
    """Store ticks, each once however often it is sent, in a total order of arrival for each rollout."""
    arrivals: dict[str, datetime] = {}
    for tick in ticks:
        rollout = tick.rollout or ""
        if rollout not in arrivals:
            last = (tx.one(_LAST_ARRIVAL, rollout=rollout) or (None,))[0]
            arrivals[rollout] = max(now, codec.parse_time(last) + TICK) if last is not None else now
        else:
            arrivals[rollout] += TICK
        tx.run(
            _ADD_TICK,
            gateway=gateway,
            endpoint=tick.endpoint,
            rollout_id=rollout,
            number=tick.number,
            document=json_text(tick),
            received_at=codec.format_time(arrivals[rollout]),
        )


def ticks_of(tx: Transaction, rollout_id: str) -> list[Tick]:
    """All ticks of a rollout in the order of their arrival."""
    return [codec.decode(row[0], Tick) for row in tx.all(_TICKS, rollout=rollout_id)]


def new_ticks(tx: Transaction, rollout: Rollout, since: datetime) -> list[Arrived]:
    """The ticks of a rollout that it has not taken in, in the order of their arrival.

    Args:
        since: none of them arrived before; it only spares reading old ones.
    """
    rows = tx.all(_NEW_TICKS, rollout=rollout.id, since=codec.format_time(since))
    return [
        Arrived(gateway, number, codec.decode(document, Tick))
        for gateway, number, document in rows
        if number > rollout.taken.get(gateway, -1)
    ]


def forget_ticks(tx: Transaction, before: datetime) -> None:
    """Drop the counts of times without a rollout; those of rollouts are evidence and stay."""
    tx.run(_FORGET_TICKS, before=codec.format_time(before))


class Gateway(Struct, frozen=True):
    """A gateway's last report and when it came."""

    report: GatewayReport
    seen_at: datetime


def put_gateway(tx: Transaction, report: GatewayReport, now: datetime) -> None:
    """Keep a gateway's last report."""
    tx.run(
        _PUT_GATEWAY,
        name=report.gateway,
        document=json_text(report),
        table_number=report.table,
        seen_at=codec.format_time(now),
    )


def list_gateways(tx: Transaction) -> list[Gateway]:
    """All gateways that ever reported."""
    return [
        Gateway(codec.decode(row[0], GatewayReport), codec.parse_time(row[1])) for row in tx.all(_GATEWAYS)
    ]


def table_number(tx: Transaction) -> int:
    """The number of the routing table: that of the last event that changed a route; 0 before the first."""
    row = tx.one(_TABLE)
    return int(row[0]) if row else 0


def set_table_number(tx: Transaction, number: int, now: datetime) -> None:
    """Say that the routes have changed."""
    tx.run(_SET_TABLE, key="routing_table", value=str(number), updated_at=codec.format_time(now))
