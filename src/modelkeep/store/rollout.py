"""Rows of endpoints, rollouts, the gateways' ticks and last reports, and the number of the routing table.

Endpoints and rollouts are stored as whole documents beside the columns that are searched by. Who may do what
with them, and what they do next, is not known here.
"""

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from itertools import groupby

from msgspec import Struct
from sqlalchemy import bindparam, case, delete, func, or_, select, update

from modelkeep.core import codec
from modelkeep.core.observation import GatewayReport, Tick
from modelkeep.core.rollout import WITHOUT_SUCCESS, Endpoint, Rollout
from modelkeep.core.values import ModelName
from modelkeep.store.schema import (
    endpoints,
    gateways,
    models,
    rollout_ticks,
    rollouts,
    settings,
)
from modelkeep.store.statements import insert, json_text
from modelkeep.store.transaction import Transaction
from modelkeep.store.visibility import Visible, condition

APART = timedelta(microseconds=1)
"""The least distance between two arrivals, so that the order of arrival is a total one."""
TICKS_A_LOOK_MAX = 2_000
"""Ticks that one look takes in; the rest waits for the next, so that no look holds the writer up."""
TICKS_A_READ = 5_000
"""Ticks that are in memory at once when a rollout's evidence is recomputed."""
GATEWAYS_MAX = 1_000
"""Gateways that are looked at: each answers for itself, and nobody runs a thousand."""
FIRST = "~"
"""Sorts after every id: where a list of the newest begins."""

_MODEL_ID = select(models.c.id).where(
    models.c.project == bindparam("project"),
    models.c.name == bindparam("name"),
    models.c.deleted_at.is_(None),
)
_GET = select(endpoints.c.document).where(endpoints.c.name == bindparam("name"))
_ALL = (
    select(endpoints.c.document)
    .where(endpoints.c.name > bindparam("after"))
    .order_by(endpoints.c.name)
    .limit(bindparam("limit"))
)
_OF_STAGE = select(endpoints.c.document).where(
    endpoints.c.model_id == bindparam("model_id"), endpoints.c.stage == bindparam("stage")
)
_FOLLOWING = (
    select(endpoints.c.document)
    .join(models, models.c.id == endpoints.c.model_id)
    .where(
        models.c.project == bindparam("project"),
        models.c.name == bindparam("name"),
        models.c.deleted_at.is_(None),
        endpoints.c.stage == bindparam("stage"),
    )
    .limit(1)
)
_ADD = insert(endpoints)
_SAVE = (
    update(endpoints)
    .where(endpoints.c.name == bindparam("which"))
    .values(
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
            rollouts.c.lease_until > bindparam("farthest"),
        ),
    )
    .values(
        lease_owner=bindparam("owner"),
        lease_until=bindparam("until"),
        lease_term=rollouts.c.lease_term + case((rollouts.c.lease_owner == bindparam("owner"), 0), else_=1),
    )
)
_RELEASE = (
    update(rollouts)
    .where(rollouts.c.lease_owner == bindparam("owner"))
    .values(lease_owner=None, lease_until=None)
)
_TAKES = select(rollouts.c.id).where(
    rollouts.c.id == bindparam("id"), rollouts.c.endpoint == bindparam("endpoint"), rollouts.c.active == 1
)
_ADD_TICK = insert(rollout_ticks).on_conflict_do_nothing()
_LAST_ARRIVAL = select(func.max(rollout_ticks.c.received_at)).where(
    rollout_ticks.c.rollout_id == bindparam("rollout")
)
_TICKS = (
    select(rollout_ticks.c.received_at, rollout_ticks.c.document)
    .where(
        rollout_ticks.c.rollout_id == bindparam("rollout"), rollout_ticks.c.received_at > bindparam("since")
    )
    .order_by(rollout_ticks.c.received_at, rollout_ticks.c.gateway, rollout_ticks.c.number)
    .limit(bindparam("limit"))
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
_GATEWAYS = (
    select(gateways.c.document, gateways.c.seen_at)
    .where(gateways.c.seen_at > bindparam("since"), gateways.c.seen_at < bindparam("until"))
    .order_by(gateways.c.name)
    .limit(GATEWAYS_MAX)
)
_GATEWAY = select(gateways.c.document, gateways.c.seen_at).where(gateways.c.name == bindparam("name"))
_FORGET_GATEWAYS = delete(gateways).where(gateways.c.seen_at < bindparam("before"))
_TABLE = select(settings.c.value).where(settings.c.key == "routing_table")
_TABLE_SINCE = select(settings.c.updated_at).where(settings.c.key == "routing_table")
_SET_TABLE = insert(settings)
_SET_TABLE = _SET_TABLE.on_conflict_do_update(
    index_elements=["key"],
    set_={"value": _SET_TABLE.excluded.value, "updated_at": _SET_TABLE.excluded.updated_at},
)


_ATTEMPTS = (
    select(rollouts.c.document)
    .where(
        rollouts.c.model_id == bindparam("model_id"),
        rollouts.c.state.in_([state.value for state in sorted(WITHOUT_SUCCESS)]),
    )
    .order_by(rollouts.c.started_at.desc(), rollouts.c.id.desc())
    .limit(bindparam("limit"))
)


def model_id(tx: Transaction, model: ModelName) -> str | None:
    """The id of a registered model, under which endpoints and rollouts are filed."""
    row = tx.one(_MODEL_ID, project=model.project, name=model.name)
    return str(row[0]) if row else None


# -------------------------------------------------------------------------------------------------- endpoints


def get_endpoint(tx: Transaction, name: str) -> Endpoint | None:
    """One endpoint by name."""
    row = tx.one(_GET, name=name)
    return codec.decode(row[0], Endpoint) if row else None


def all_endpoints(tx: Transaction, after: str, limit: int) -> list[Endpoint]:
    """Endpoints by name, after a name, whoever asks: what gateways are told."""
    return [codec.decode(row[0], Endpoint) for row in tx.all(_ALL, after=after, limit=limit)]


def list_endpoints(tx: Transaction, visible: Visible, after: str, limit: int) -> list[Endpoint]:
    """The endpoints of the models that may be seen, by name, after a name."""
    allowed, binds = condition(visible)
    statement = (
        select(endpoints.c.document)
        .join(models, models.c.id == endpoints.c.model_id)
        .where(allowed, endpoints.c.name > bindparam("after"))
        .order_by(endpoints.c.name)
        .limit(bindparam("limit"))
    )
    return [codec.decode(row[0], Endpoint) for row in tx.all(statement, after=after, limit=limit, **binds)]


def endpoints_of(tx: Transaction, model: str, stage: str | None, alias: str | None = None) -> list[Endpoint]:
    """The endpoints that follow a stage of a model (given by its id), or an alias."""
    followed = _followed(stage, alias)
    return [codec.decode(row[0], Endpoint) for row in tx.all(_OF_STAGE, model_id=model, stage=followed)]


def endpoint_following(
    tx: Transaction, model: ModelName, stage: str | None, alias: str | None = None
) -> Endpoint | None:
    """The endpoint that follows a stage of a model (given by its name), or an alias."""
    named = {"project": model.project, "name": model.name}
    row = tx.one(_FOLLOWING, **named, stage=_followed(stage, alias))
    return codec.decode(row[0], Endpoint) if row is not None else None


def _followed(stage: str | None, alias: str | None) -> str:
    """What stands in the column: a stage's name, or an alias behind its mark, which no stage's name has."""
    return f"@{alias}" if alias is not None else str(stage)


def add_endpoint(tx: Transaction, endpoint: Endpoint, model: str) -> None:
    """Store a new endpoint."""
    moment = codec.format_time(endpoint.created_at)
    tx.put(
        _ADD,
        name=endpoint.name,
        id=endpoint.id,
        model_id=model,
        stage=_followed(endpoint.stage, endpoint.alias),
        document=json_text(endpoint),
        rollout_id=endpoint.rollout,
        row_version=1,
        created_at=moment,
        created_by=endpoint.created_by,
        updated_at=moment,
    )


def save_endpoint(tx: Transaction, endpoint: Endpoint, now: datetime) -> None:
    """Store an endpoint's new state; what it is called and follows never changes."""
    tx.put(
        _SAVE,
        which=endpoint.name,
        new_document=json_text(endpoint),
        new_rollout=endpoint.rollout,
        new_updated=codec.format_time(now),
    )


def drop_endpoint(tx: Transaction, name: str) -> None:
    """Remove an endpoint. Its rollouts stay, under its name."""
    tx.put(_DROP, which=name)


# --------------------------------------------------------------------------------------------------- rollouts


def get_rollout(tx: Transaction, rollout_id: str) -> Rollout | None:
    """One rollout by id."""
    row = tx.one(_ROLLOUT, id=rollout_id)
    return codec.decode(row[0], Rollout) if row else None


def add_rollout(tx: Transaction, rollout: Rollout, model: str) -> None:
    """Store a new rollout; a second unfinished one of an endpoint raises ConstraintFailed."""
    tx.put(
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
    tx.put(
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


def list_rollouts(
    tx: Transaction,
    visible: Visible,
    before: str,
    limit: int,
    endpoint: str | None = None,
    model: str | None = None,
) -> list[Rollout]:
    """Rollouts of models that may be seen, newest first, before an id; of an endpoint, of a model (given by
    its id), or all.
    """
    allowed, binds = condition(visible)
    statement = (
        select(rollouts.c.document)
        .join(models, models.c.id == rollouts.c.model_id)
        .where(allowed, rollouts.c.id < bindparam("before"))
        .order_by(rollouts.c.id.desc())
        .limit(bindparam("limit"))
    )
    if endpoint is not None:
        statement = statement.where(rollouts.c.endpoint == bindparam("endpoint"))
        binds["endpoint"] = endpoint
    if model is not None:
        statement = statement.where(rollouts.c.model_id == bindparam("model_id"))
        binds["model_id"] = model
    rows = tx.all(statement, before=before, limit=limit, **binds)
    return [codec.decode(row[0], Rollout) for row in rows]


def attempts(tx: Transaction, model: str, limit: int) -> list[Rollout]:
    """A model's rollouts (given by its id) that ended without success, newest first."""
    rows = tx.all(_ATTEMPTS, model_id=model, limit=limit)
    return [codec.decode(row[0], Rollout) for row in rows]


def claim(tx: Transaction, rollout_id: str, owner: str, now: datetime, until: datetime) -> bool:
    """Take or renew the lease of an unfinished rollout; False while another controller holds it. A lease
    that ends later than any given now could was given before the clock was set back, and holds nobody up."""
    changed = tx.run(
        _CLAIM,
        which=rollout_id,
        owner=owner,
        moment=codec.format_time(now),
        until=codec.format_time(until),
        farthest=codec.format_time(until + (until - now)),
    )
    return changed == 1


def release(tx: Transaction, owner: str) -> None:
    """Let go of all leases of a controller."""
    tx.put(_RELEASE, owner=owner)


# --------------------------------------------------------------------------------------------------- gateways


class Arrived(Struct, frozen=True):
    """A tick and when it arrived, which no other tick of its rollout did."""

    at: datetime
    tick: Tick


def add_ticks(tx: Transaction, gateway: str, ticks: Sequence[Tick], now: datetime) -> int:
    """Store the ticks that are evidence of an unfinished rollout, each once however often it is sent, in a
    total order of arrival for each rollout. Returns how many were new.

    Only one transaction writes at a time, so an arrival that is read is never followed by an earlier one.
    """
    telling = [tick for tick in ticks if tick.rollout is not None and (tick.tried or tick.pairs is not None)]
    stored = 0
    for (rollout, endpoint), own in groupby(telling, key=lambda tick: (tick.rollout, tick.endpoint)):
        if tx.one(_TAKES, id=rollout, endpoint=endpoint) is None:
            continue
        last = (tx.one(_LAST_ARRIVAL, rollout=rollout) or (None,))[0]
        arrival = max(now, codec.parse_time(last) + APART) if last is not None else now
        rows = [
            {
                "gateway": gateway,
                "endpoint": endpoint,
                "rollout_id": rollout,
                "number": tick.number,
                "document": json_text(tick),
                "received_at": codec.format_time(arrival + place * APART),
            }
            for place, tick in enumerate(own)
        ]
        stored += tx.many(_ADD_TICK, rows)
    return stored


def new_ticks(tx: Transaction, rollout: Rollout) -> list[Arrived]:
    """The next ticks that a rollout has not taken in, in the order of their arrival."""
    return _ticks_after(tx, rollout.id, rollout.ticks_until, TICKS_A_LOOK_MAX)


def ticks_of(tx: Transaction, rollout_id: str) -> Iterator[Tick]:
    """All ticks of a rollout in the order of their arrival."""
    after: datetime | None = None
    while batch := _ticks_after(tx, rollout_id, after, TICKS_A_READ):
        yield from (arrived.tick for arrived in batch)
        after = batch[-1].at


def _ticks_after(tx: Transaction, rollout_id: str, after: datetime | None, limit: int) -> list[Arrived]:
    since = codec.format_time(after) if after is not None else ""
    rows = tx.all(_TICKS, rollout=rollout_id, since=since, limit=limit)
    return [Arrived(codec.parse_time(at), codec.decode(document, Tick)) for at, document in rows]


class Gateway(Struct, frozen=True):
    """A gateway's last report and when it came."""

    report: GatewayReport
    seen_at: datetime


def put_gateway(tx: Transaction, report: GatewayReport, now: datetime) -> None:
    """Keep a gateway's last report."""
    tx.put(
        _PUT_GATEWAY,
        name=report.gateway,
        document=json_text(report),
        table_number=report.table,
        seen_at=codec.format_time(now),
    )


def get_gateway(tx: Transaction, name: str) -> Gateway | None:
    """One gateway's last report, and when it came."""
    row = tx.one(_GATEWAY, name=name)
    return Gateway(codec.decode(row[0], GatewayReport), codec.parse_time(row[1])) if row else None


def list_gateways(
    tx: Transaction, since: datetime | None = None, until: datetime | None = None
) -> list[Gateway]:
    """The gateways that reported between two moments, or ever."""
    after = codec.format_time(since) if since is not None else ""
    rows = tx.all(_GATEWAYS, since=after, until=codec.format_time(until) if until is not None else FIRST)
    return [Gateway(codec.decode(document, GatewayReport), codec.parse_time(at)) for document, at in rows]


def forget_gateways(tx: Transaction, before: datetime) -> int:
    """Drop gateways that have been silent since; how many it were."""
    return tx.run(_FORGET_GATEWAYS, before=codec.format_time(before))


def table_number(tx: Transaction) -> int:
    """The number of the routing table: that of the last event that changed a route; 0 before the first."""
    row = tx.one(_TABLE)
    return int(row[0]) if row else 0


def table_since(tx: Transaction) -> datetime | None:
    """When the routes changed last; None before the first."""
    row = tx.one(_TABLE_SINCE)
    return codec.parse_time(row[0]) if row else None


def set_table_number(tx: Transaction, number: int, now: datetime) -> None:
    """Say that the routes have changed."""
    tx.put(_SET_TABLE, key="routing_table", value=str(number), updated_at=codec.format_time(now))
