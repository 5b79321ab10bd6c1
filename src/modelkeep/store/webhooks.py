"""Rows of webhooks: subscriptions, their place in the event log, the lease of whoever delivers, deliveries,
attempts.

A webhook's place moves only under its lease and only from where the deliverer found it, so that of two
deliverers at most one moves it. Whether something is to be sent, and to whom, is the service's part.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from msgspec import Struct, structs
from sqlalchemy import bindparam, delete, func, literal_column, or_, select, tuple_, update

from modelkeep.core import codec
from modelkeep.core.values import ModelName
from modelkeep.core.webhooks import (
    WEBHOOKS_MAX,
    Attempt,
    Delivery,
    DeliveryState,
    Webhook,
    WebhookStatus,
)
from modelkeep.store.statements import Row, insert, json_text, one_of
from modelkeep.store.tracking_tables import experiments, logged_models, runs
from modelkeep.store.transaction import Transaction
from modelkeep.store.webhook_tables import webhook_attempts, webhook_deliveries, webhooks

ACTIVE_MAX = 2_000
"""Webhooks of an installation that are looked at: some tens of projects with all they may have."""

_STATE = (
    webhooks.c.document,
    webhooks.c.status,
    webhooks.c.cursor,
    webhooks.c.part,
    webhooks.c.failures,
    webhooks.c.set_aside,
    webhooks.c.due_at,
    webhooks.c.lease_owner,
    webhooks.c.lease_until,
    webhooks.c.row_version,
    webhooks.c.sealed,
)
_ADD = insert(webhooks)
_GET = select(*_STATE).where(webhooks.c.id == bindparam("id"))
_LIST = (
    select(*_STATE)
    .where(webhooks.c.id > bindparam("after"))
    .order_by(webhooks.c.id)
    .limit(bindparam("limit"))
)
_LIST_OF = _LIST.where(webhooks.c.project == bindparam("project"))
_LIST_BACK = (
    select(*_STATE)
    .where(webhooks.c.project == bindparam("project"), webhooks.c.id < bindparam("before"))
    .order_by(webhooks.c.id.desc())
    .limit(bindparam("limit"))
)
_COUNT = select(func.count()).where(webhooks.c.project == bindparam("project"))
_ACTIVE = (
    select(*_STATE)
    .where(webhooks.c.status == literal_column("'active'"))
    .order_by(webhooks.c.id)
    .limit(ACTIVE_MAX)
)
_SAVE = (
    update(webhooks)
    .where(webhooks.c.id == bindparam("which"))
    .values(
        document=bindparam("new_document"),
        status=bindparam("new_status"),
        sealed=bindparam("new_sealed"),
        row_version=webhooks.c.row_version + 1,
    )
)
_DROP = delete(webhooks).where(webhooks.c.id == bindparam("which"))
_CLAIM = (
    update(webhooks)
    .where(
        webhooks.c.id == bindparam("which"),
        webhooks.c.status == literal_column("'active'"),
        webhooks.c.row_version == bindparam("seen"),
        webhooks.c.cursor == bindparam("at_cursor"),
        webhooks.c.part == bindparam("at_part"),
        or_(
            webhooks.c.lease_owner.is_(None),
            webhooks.c.lease_owner == bindparam("owner"),
            webhooks.c.lease_until < bindparam("moment"),
        ),
    )
    .values(lease_owner=bindparam("owner"), lease_until=bindparam("until"))
)
_RELEASE = (
    update(webhooks)
    .where(webhooks.c.lease_owner == bindparam("owner"))
    .values(lease_owner=None, lease_until=None)
)
_RELEASE_ALL = (
    update(webhooks).where(webhooks.c.lease_owner.is_not(None)).values(lease_owner=None, lease_until=None)
)
_MOVE = (
    update(webhooks)
    .where(
        webhooks.c.id == bindparam("which"),
        webhooks.c.lease_owner == bindparam("owner"),
        webhooks.c.cursor == bindparam("at_cursor"),
        webhooks.c.part == bindparam("at_part"),
    )
    .values(
        cursor=bindparam("new_cursor"),
        part=bindparam("new_part"),
        failures=bindparam("new_failures"),
        set_aside=bindparam("new_set_aside"),
        due_at=bindparam("new_due"),
        lease_until=bindparam("until"),
    )
)
_SKIP = (
    update(webhooks)
    .where(
        webhooks.c.id == bindparam("which"),
        webhooks.c.cursor == bindparam("at_cursor"),
        webhooks.c.part == literal_column("0"),
        webhooks.c.failures == literal_column("0"),
        webhooks.c.row_version == bindparam("seen"),
    )
    .values(cursor=bindparam("new_cursor"))
)
_PLACE = (
    update(webhooks)
    .where(webhooks.c.id == bindparam("which"))
    .values(
        cursor=bindparam("new_cursor"),
        part=bindparam("new_part"),
        failures=literal_column("0"),
        set_aside=literal_column("0"),
        due_at=literal_column("null"),
        lease_owner=literal_column("null"),
        lease_until=literal_column("null"),
        row_version=webhooks.c.row_version + 1,
    )
)

_DELIVERY = (
    webhook_deliveries.c.id,
    webhook_deliveries.c.webhook_id,
    webhook_deliveries.c.sequence,
    webhook_deliveries.c.part,
    webhook_deliveries.c.event,
    webhook_deliveries.c.state,
    webhook_deliveries.c.requested,
    webhook_deliveries.c.tries,
    webhook_deliveries.c.next_at,
    webhook_deliveries.c.created_at,
    webhook_deliveries.c.finished_at,
)
_PUT = insert(webhook_deliveries)
_PUT = _PUT.on_conflict_do_update(
    index_elements=["webhook_id", "sequence", "part"],
    set_={
        name: _PUT.excluded[name]
        for name in ("id", "event", "state", "requested", "tries", "next_at", "finished_at")
    },
)
_ONE = select(*_DELIVERY).where(
    webhook_deliveries.c.webhook_id == bindparam("webhook"),
    webhook_deliveries.c.sequence == bindparam("sequence"),
    webhook_deliveries.c.part == bindparam("part"),
)
_NEWEST = (
    select(*_DELIVERY)
    .where(
        webhook_deliveries.c.webhook_id == bindparam("webhook"),
        tuple_(webhook_deliveries.c.sequence, webhook_deliveries.c.part)
        < tuple_(bindparam("sequence"), bindparam("part")),
    )
    .order_by(webhook_deliveries.c.sequence.desc(), webhook_deliveries.c.part.desc())
    .limit(bindparam("limit"))
)
_NEWEST_IN = _NEWEST.where(webhook_deliveries.c.state == bindparam("state"))
_REQUESTED = (
    select(*_DELIVERY)
    .where(
        webhook_deliveries.c.webhook_id == bindparam("webhook"),
        webhook_deliveries.c.requested == literal_column("1"),
        webhook_deliveries.c.state == literal_column("'waiting'"),
    )
    .order_by(webhook_deliveries.c.next_at, webhook_deliveries.c.sequence, webhook_deliveries.c.part)
    .limit(1)
)
_ATTEMPTS = (
    select(
        webhook_attempts.c.sequence,
        webhook_attempts.c.part,
        webhook_attempts.c.number,
        webhook_attempts.c.at,
        webhook_attempts.c.status,
        webhook_attempts.c.error,
        webhook_attempts.c.duration_ms,
        webhook_attempts.c.body_sha256,
        webhook_attempts.c.answer_sha256,
    )
    .where(
        webhook_attempts.c.webhook_id == bindparam("webhook"),
        one_of(webhook_attempts.c.sequence, "sequences"),
    )
    .order_by(webhook_attempts.c.sequence, webhook_attempts.c.part, webhook_attempts.c.number)
)
_LAST_NUMBER = select(func.coalesce(func.max(webhook_attempts.c.number), 0)).where(
    webhook_attempts.c.webhook_id == bindparam("webhook"),
    webhook_attempts.c.sequence == bindparam("sequence"),
    webhook_attempts.c.part == bindparam("part"),
)
_ADD_ATTEMPT = insert(webhook_attempts)
_DROP_ATTEMPTS = delete(webhook_attempts).where(webhook_attempts.c.webhook_id == bindparam("which"))
_DROP_DELIVERIES = delete(webhook_deliveries).where(webhook_deliveries.c.webhook_id == bindparam("which"))
_OLD = (
    select(
        webhook_deliveries.c.webhook_id,
        webhook_deliveries.c.sequence,
        webhook_deliveries.c.part,
    )
    .where(
        webhook_deliveries.c.created_at < bindparam("before"),
        webhook_deliveries.c.state != literal_column("'waiting'"),
    )
    .order_by(webhook_deliveries.c.created_at)
    .limit(bindparam("limit"))
)
_BEYOND = (
    select(
        webhook_deliveries.c.webhook_id,
        webhook_deliveries.c.sequence,
        webhook_deliveries.c.part,
    )
    .where(
        webhook_deliveries.c.webhook_id == bindparam("webhook"),
        webhook_deliveries.c.state == literal_column("'delivered'"),
    )
    .order_by(webhook_deliveries.c.sequence.desc(), webhook_deliveries.c.part.desc())
    .limit(bindparam("limit"))
    .offset(bindparam("keep"))
)
_FORGET = delete(webhook_deliveries).where(
    webhook_deliveries.c.webhook_id == bindparam("which"),
    webhook_deliveries.c.sequence == bindparam("event"),
    webhook_deliveries.c.part == bindparam("message"),
)
_FORGET_ATTEMPTS = delete(webhook_attempts).where(
    webhook_attempts.c.webhook_id == bindparam("which"),
    webhook_attempts.c.sequence == bindparam("event"),
    webhook_attempts.c.part == bindparam("message"),
)
_OF_EXPERIMENT = select(experiments.c.project).where(experiments.c.id == bindparam("id"))
_OF_RUN = (
    select(experiments.c.project)
    .join(runs, runs.c.experiment_id == experiments.c.id)
    .where(runs.c.run_id == bindparam("id"))
)
_OF_LOGGED_MODEL = (
    select(experiments.c.project)
    .join(logged_models, logged_models.c.experiment_id == experiments.c.id)
    .where(logged_models.c.model_id == bindparam("id"))
)


class Stored(Struct, frozen=True, kw_only=True):
    """A webhook with its place in the log, and who is delivering for it."""

    webhook: Webhook
    part: int
    set_aside: int
    lease_owner: str | None
    lease_until: datetime | None
    row_version: int
    sealed: str | None

    @property
    def cursor(self) -> int:
        """The last event that it is done with."""
        return self.webhook.cursor


class Place(Struct, frozen=True, kw_only=True):
    """Where a webhook stands after an attempt."""

    cursor: int
    part: int
    failures: int = 0
    set_aside: int = 0
    due_at: datetime | None = None


def _stored(row: Row) -> Stored:
    document, status, cursor, part, failures, set_aside, due_at, owner, until, version, sealed = row
    webhook = structs.replace(
        codec.decode(document, Webhook),
        status=WebhookStatus(status),
        cursor=cursor,
        failures=failures,
        next_at=_moment(due_at),
    )
    return Stored(
        webhook=webhook,
        part=part,
        set_aside=set_aside,
        lease_owner=owner,
        lease_until=_moment(until),
        row_version=version,
        sealed=sealed,
    )


def _moment(text: str | None) -> datetime | None:
    return codec.parse_time(text) if text is not None else None


def _text(moment: datetime | None) -> str | None:
    return codec.format_time(moment) if moment is not None else None


# --------------------------------------------------------------------------------------------- subscriptions


def add(tx: Transaction, webhook: Webhook, sealed: str | None) -> None:
    """Store a new webhook, at the place in the log that it has."""
    tx.put(
        _ADD,
        id=webhook.id,
        project=webhook.project,
        document=json_text(webhook),
        sealed=sealed,
        status=webhook.status.value,
        cursor=webhook.cursor,
        part=0,
        failures=0,
        set_aside=0,
        due_at=None,
        lease_owner=None,
        lease_until=None,
        row_version=1,
        created_at=codec.format_time(webhook.created_at),
    )


def get(tx: Transaction, webhook: str) -> Stored | None:
    """One webhook by its id."""
    row = tx.one(_GET, id=webhook)
    return _stored(row) if row else None


def page(tx: Transaction, project: str | None, after: str, limit: int) -> list[Stored]:
    """Webhooks by id, after an id: of a project, or all."""
    if project is None:
        return [_stored(row) for row in tx.all(_LIST, after=after, limit=limit)]
    return [_stored(row) for row in tx.all(_LIST_OF, after=after, limit=limit, project=project)]


def newest(tx: Transaction, project: str, before: str, limit: int) -> list[Stored]:
    """A project's webhooks, the newest first, before an id."""
    return [_stored(row) for row in tx.all(_LIST_BACK, before=before, limit=limit, project=project)]


def count(tx: Transaction, project: str) -> int:
    """How many webhooks a project has."""
    row = tx.one(_COUNT, project=project)
    return int(row[0]) if row else 0


def active(tx: Transaction) -> list[Stored]:
    """All webhooks that are delivered to."""
    return [_stored(row) for row in tx.all(_ACTIVE)]


def save(tx: Transaction, webhook: Webhook, sealed: str | None) -> None:
    """Store what a webhook is; its place in the log stays."""
    tx.put(
        _SAVE,
        which=webhook.id,
        new_document=json_text(webhook),
        new_status=webhook.status.value,
        new_sealed=sealed,
    )


def rename_model(tx: Transaction, name: ModelName, wanted: ModelName) -> None:
    """Have the webhooks of a model follow it to another name."""
    for stored in newest(tx, name.project, "~", WEBHOOKS_MAX):
        if stored.webhook.model == name.name:
            save(tx, structs.replace(stored.webhook, model=wanted.name), stored.sealed)


def place(tx: Transaction, webhook: str, cursor: int, part: int = 0) -> None:
    """Put a webhook at another place in the log, without failures; who delivers begins anew from there."""
    tx.put(_PLACE, which=webhook, new_cursor=cursor, new_part=part)


def drop(tx: Transaction, webhook: str) -> None:
    """Remove a webhook with its deliveries."""
    tx.put(_DROP_ATTEMPTS, which=webhook)
    tx.put(_DROP_DELIVERIES, which=webhook)
    tx.put(_DROP, which=webhook)


# ------------------------------------------------------------------------------------------------ delivering


def claim(tx: Transaction, seen: Stored, owner: str, now: datetime, until: datetime) -> bool:
    """Take or renew the lease of a webhook that is as it was seen; False when it is not, or is held."""
    changed = tx.run(
        _CLAIM,
        which=seen.webhook.id,
        seen=seen.row_version,
        at_cursor=seen.cursor,
        at_part=seen.part,
        owner=owner,
        moment=codec.format_time(now),
        until=codec.format_time(until),
    )
    return changed == 1


def release(tx: Transaction, owner: str | None) -> None:
    """Let go of all leases of a deliverer, or, of nobody in particular, of all that there are."""
    if owner is None:
        tx.put(_RELEASE_ALL)
    else:
        tx.put(_RELEASE, owner=owner)


def move(tx: Transaction, seen: Stored, owner: str, to: Place, until: datetime) -> bool:
    """Move a webhook on from where it was seen, under its lease; False when somebody else moved it."""
    changed = tx.run(
        _MOVE,
        which=seen.webhook.id,
        owner=owner,
        at_cursor=seen.cursor,
        at_part=seen.part,
        new_cursor=to.cursor,
        new_part=to.part,
        new_failures=to.failures,
        new_set_aside=to.set_aside,
        new_due=_text(to.due_at),
        until=codec.format_time(until),
    )
    return changed == 1


def skip(tx: Transaction, seen: Stored, cursor: int) -> None:
    """Remember that nothing up to an event was for a webhook, when it is as it was seen."""
    tx.put(_SKIP, which=seen.webhook.id, seen=seen.row_version, at_cursor=seen.cursor, new_cursor=cursor)


def project_of(tx: Transaction, subject: str) -> str | None:
    """The project of an experiment, run or logged model that an event is about; None for other subjects."""
    kind, _, name = subject.partition("/")
    match kind:
        case "experiment" if name.isascii() and name.isdigit() and len(name) < 19:
            row = tx.one(_OF_EXPERIMENT, id=int(name))
        case "run":
            row = tx.one(_OF_RUN, id=name)
        case "logged_model":
            row = tx.one(_OF_LOGGED_MODEL, id=name)
        case _:
            return None
    return str(row[0]) if row else None


# ------------------------------------------------------------------------------------------------ deliveries


def put_delivery(tx: Transaction, delivery: Delivery) -> None:
    """Store a delivery's state; its attempts are stored one by one."""
    tx.put(
        _PUT,
        webhook_id=delivery.webhook,
        sequence=delivery.sequence,
        part=delivery.part,
        id=delivery.id,
        event=delivery.event,
        state=delivery.state.value,
        requested=int(delivery.requested),
        tries=delivery.tries,
        next_at=_text(delivery.next_at),
        created_at=codec.format_time(delivery.created_at),
        finished_at=_text(delivery.finished_at),
    )


def get_delivery(tx: Transaction, webhook: str, sequence: int, part: int) -> Delivery | None:
    """One delivery, without its attempts."""
    row = tx.one(_ONE, webhook=webhook, sequence=sequence, part=part)
    return _delivery(row, ()) if row else None


def requested(tx: Transaction, webhook: str) -> Delivery | None:
    """The delivery that somebody asked for and that is due first."""
    row = tx.one(_REQUESTED, webhook=webhook)
    return _delivery(row, ()) if row else None


def deliveries(
    tx: Transaction, webhook: str, state: DeliveryState | None, before: tuple[int, int], limit: int
) -> list[Delivery]:
    """A webhook's deliveries with their attempts, the newest event first, before an event's part."""
    binds: dict[str, Any] = {"webhook": webhook, "sequence": before[0], "part": before[1], "limit": limit}
    if state is None:
        rows = tx.all(_NEWEST, **binds)
    else:
        rows = tx.all(_NEWEST_IN, **binds, state=state.value)
    tried: dict[tuple[int, int], list[Attempt]] = {}
    for sequence, part, *fields in (
        tx.all(_ATTEMPTS, webhook=webhook, sequences=sorted({row[2] for row in rows})) if rows else ()
    ):
        tried.setdefault((sequence, part), []).append(_attempt(fields))
    return [_delivery(row, tuple(tried.get((row[2], row[3]), ()))) for row in rows]


def add_attempt(tx: Transaction, delivery: Delivery, attempt: Attempt) -> None:
    """Store an attempt under the number after the last one, whatever number it says."""
    row = tx.one(_LAST_NUMBER, webhook=delivery.webhook, sequence=delivery.sequence, part=delivery.part)
    tx.put(
        _ADD_ATTEMPT,
        webhook_id=delivery.webhook,
        sequence=delivery.sequence,
        part=delivery.part,
        number=(row[0] if row else 0) + 1,
        at=codec.format_time(attempt.at),
        status=attempt.status,
        error=attempt.error,
        duration_ms=attempt.duration_ms,
        body_sha256=attempt.body_sha256,
        answer_sha256=attempt.answer_sha256,
    )


def forget(tx: Transaction, before: datetime, limit: int) -> int:
    """Drop finished deliveries that are older; how many it were."""
    return _forget(tx, tx.all(_OLD, before=codec.format_time(before), limit=limit))


def forget_beyond(tx: Transaction, webhook: str, keep: int, limit: int) -> int:
    """Drop the oldest of a webhook's deliveries that succeeded, but for so many; how many it were."""
    return _forget(tx, tx.all(_BEYOND, webhook=webhook, keep=keep, limit=limit))


def _forget(tx: Transaction, rows: Sequence[Row]) -> int:
    binds = [{"which": row[0], "event": row[1], "message": row[2]} for row in rows]
    tx.put_many(_FORGET_ATTEMPTS, binds)
    tx.put_many(_FORGET, binds)
    return len(binds)


def _delivery(row: Row, attempts: tuple[Attempt, ...]) -> Delivery:
    return Delivery(
        id=row[0],
        webhook=row[1],
        sequence=row[2],
        part=row[3],
        event=row[4],
        state=DeliveryState(row[5]),
        requested=bool(row[6]),
        tries=row[7],
        next_at=_moment(row[8]),
        created_at=codec.parse_time(row[9]),
        finished_at=_moment(row[10]),
        attempts=attempts,
    )


def _attempt(fields: Sequence[Any]) -> Attempt:
    number, at, status, error, duration_ms, body, answer = fields
    return Attempt(
        number=number,
        at=codec.parse_time(at),
        status=status,
        error=error,
        duration_ms=duration_ms,
        body_sha256=body,
        answer_sha256=answer,
    )
