"""What is due to be delivered, and what becomes of it: at least once, in order, by one deliverer at a time.

A webhook is a cursor into the event log. Whoever delivers looks for the next message after it (a read), takes
the webhook's lease (a write), sends with no transaction open, and writes down what came of it, with which the
cursor moves on. Killed anywhere in between, nothing has moved: after the lease the same message is sent again
under the same id. Nothing is sent before its transaction was committed, because nothing is in the log before.

A message that fails is tried again by `webhooks.retry_at` and holds up those behind it; after its last
attempt it is set aside as failed. Threads, and the clock that wakes them, are the controller's part.
"""

import hashlib
from datetime import datetime, timedelta
from typing import NamedTuple

from msgspec import Struct, structs

from modelkeep.core import webhooks as core
from modelkeep.core.events import Event
from modelkeep.core.webhook_payloads import Message
from modelkeep.core.webhooks import Attempt, Delivery, DeliveryState, Sent, WebhookStatus
from modelkeep.service.act import Act
from modelkeep.service.webhook_events import scan
from modelkeep.service.webhooks import Webhooks
from modelkeep.store import webhooks as store
from modelkeep.store.webhooks import Place, Stored

LEASE_S = 45.0
"""How long a webhook is one deliverer's own: longer than the longest exchange with a receiver."""
RENEW_S = 25.0
"""A lease that ends sooner than this is renewed before the next message is sent."""
NEWS_MAX = 1_000
"""Events that one look at what has happened goes through."""
BEHIND_MAX = 5_000
"""Events that may be looked through for nothing before a cursor is moved over them."""
KEEP_S = 30 * 86_400.0
"""How long the record of a delivery is kept."""
KEEP_MAX = 10_000
"""Successful deliveries of one webhook that are kept."""
SWEEP_MAX = 500
"""Records of deliveries that one sweep drops, so that no writer waits for it."""


class Counts:
    """What this process has delivered, for the metrics. Deliverers add to it, each in one step."""

    def __init__(self) -> None:
        self.delivered = 0
        self.failed = 0
        self.set_aside = 0
        self.late: dict[str, datetime] = {}
        """Webhooks whose message was not taken yet, each with when that happened which it tells."""

    def count(self, letter: "Letter", *, delivered: bool) -> None:
        """Take in one attempt."""
        if delivered:
            self.delivered += 1
            self.late.pop(letter.delivery.webhook, None)
        else:
            self.failed += 1
            self.late.setdefault(letter.delivery.webhook, letter.at)

    def lag_s(self, now: datetime) -> float:
        """Seconds since the oldest of what was not taken yet; 0 when nothing waits."""
        return max(((now - at).total_seconds() for at in list(self.late.values())), default=0.0)


class Letter(Struct, frozen=True, kw_only=True):
    """A message that is due, with the webhook as it was seen.

    Attributes:
        after: where the webhook stands when the message was taken. None for one that was asked for by hand,
            which moves nothing.
    """

    stored: Stored
    delivery: Delivery
    body: bytes
    at: datetime
    after: Place | None


class Quiet(Struct, frozen=True, kw_only=True):
    """Nothing is due. `looked` is the event up to which nothing is for the webhook, `skipped` how many were
    passed over for it, `again_at` when it is to be looked at again without anything new; `more` says that the
    look ended before the log did."""

    looked: int
    skipped: int = 0
    again_at: datetime | None = None
    more: bool = False


class Orphan(Struct, frozen=True, kw_only=True):
    """Whoever answers for the webhook was shut out."""

    reason: str


class Unsendable(Struct, frozen=True, kw_only=True):
    """A message that was asked for by hand and is no message of the webhook any more."""

    delivery: Delivery


Found = Letter | Quiet | Orphan | Unsendable | None
"""What a look finds; None for a webhook that is gone or disabled."""


class News(NamedTuple):
    """Webhooks that may have something new to hear, those there are with their row versions, and up to which
    event the log was looked through."""

    ready: set[str]
    known: dict[str, int]
    scanned: int


class Deliveries:
    """The acts of delivering."""

    def __init__(self, webhooks: Webhooks) -> None:
        self._webhooks = webhooks
        self.counts = Counts()

    # ----------------------------------------------------------------------------------------------- looking

    def news(self, act: Act, scanned: int | None, known: dict[str, int]) -> News:
        """Which webhooks may have something to hear since the log was looked through up to `scanned`.

        Args:
            scanned: None at the beginning: then all may.
            known: the row versions that were seen; a webhook that is new or was changed may, too.
        """
        rows = store.active(act.tx)
        versions = {row.webhook.id: row.row_version for row in rows}
        ready = {one for one, version in versions.items() if known.get(one) != version}
        head = act.tx.events.head().sequence
        for gone in self.counts.late.keys() - versions.keys():
            self.counts.late.pop(gone, None)
        if scanned is None or not rows:
            return News(ready, versions, head)
        heard = [row for row in rows if row.webhook.id not in ready]
        if heard and scanned < head:
            page = act.tx.events.after(scanned, limit=NEWS_MAX)
            for kind in {stored.event.kind for stored in page}:
                ready |= {row.webhook.id for row in heard if core.wants(row.webhook, kind)}
            scanned = page[-1].event.sequence
        idle = [row for row in heard if row.webhook.next_at is None]
        ready |= {row.webhook.id for row in idle if scanned - row.cursor > BEHIND_MAX}
        return News(ready, versions, scanned if heard else head)

    def next(self, act: Act, webhook: str, owner: str) -> Found:
        """The next message of a webhook that is due, if this deliverer may send it."""
        stored = store.get(act.tx, webhook)
        if stored is None or stored.webhook.status is not WebhookStatus.ACTIVE:
            return None
        held = stored.lease_owner not in (None, owner)
        if held and stored.lease_until is not None and act.now < stored.lease_until:
            return Quiet(looked=stored.cursor, again_at=stored.lease_until)
        caller = self._webhooks.answerable(act, stored.webhook)
        if caller is None:
            return Orphan(reason=f"{stored.webhook.answerable}, who answers for it, was shut out")
        asked = store.requested(act.tx, webhook)
        asked_at = asked.next_at if asked is not None else None
        if asked is not None and (asked_at is None or asked_at <= act.now):
            return self._asked_for(act, stored, asked)
        due_at = stored.webhook.next_at
        if due_at is not None and act.now < due_at:
            return Quiet(looked=stored.cursor, again_at=min(due_at, asked_at or due_at))
        found = scan(act, stored, caller)
        if found.event is not None:
            return self._letter(stored, found.event, found.messages)
        skipped = found.looked - stored.cursor
        return Quiet(looked=found.looked, skipped=skipped, again_at=asked_at, more=found.more)

    def _letter(self, stored: Stored, event: Event, rest: tuple[Message, ...]) -> Letter:
        first = rest[0]
        begun = Place(cursor=event.sequence - 1, part=rest[1].part) if len(rest) > 1 else None
        return Letter(
            stored=stored,
            delivery=Delivery(
                id=core.delivery_id(stored.webhook.id, event.sequence, first.part),
                webhook=stored.webhook.id,
                sequence=event.sequence,
                part=first.part,
                event=first.event,
                state=DeliveryState.WAITING,
                tries=stored.webhook.failures,
                created_at=event.at,
            ),
            body=first.body,
            at=event.at,
            after=begun or Place(cursor=event.sequence, part=0),
        )

    def _asked_for(self, act: Act, stored: Stored, asked: Delivery) -> Letter | Unsendable:
        for message in self._webhooks.messages_of(act, stored.webhook, asked.sequence):
            if message.part == asked.part:
                return Letter(stored=stored, delivery=asked, body=message.body, at=act.now, after=None)
        return Unsendable(delivery=asked)

    # ------------------------------------------------------------------------------------------------ sending

    def claim(self, act: Act, letter: Letter, owner: str) -> bool:
        """Take the webhook's lease, or renew it; False when the webhook is not as it was seen any more."""
        until = act.now + timedelta(seconds=LEASE_S)
        return store.claim(act.tx, letter.stored, owner, act.now, until)

    def holds(self, letter: Letter, owner: str, now: datetime) -> bool:
        """Whether the lease is this deliverer's for long enough to send a message."""
        until = letter.stored.lease_until
        mine = letter.stored.lease_owner == owner
        return mine and until is not None and until - now >= timedelta(seconds=RENEW_S)

    def send(self, letter: Letter, now: datetime) -> Sent:
        """Send a message; no transaction may be open. It raises nothing."""
        return self._webhooks.send(letter.stored, letter.delivery.id, letter.body, now)

    def settle(self, act: Act, letter: Letter, sent: Sent, began_at: datetime, owner: str) -> None:
        """Write down what came of an attempt, and move the webhook on where it is still this deliverer's."""
        delivered = core.succeeded(sent.status)
        tries = letter.delivery.tries + (0 if delivered else 1)
        gone = sent.status == core.GONE
        again_at = None
        if not delivered and not gone:
            again_at = core.retry_at(letter.delivery.id, tries, act.now, sent.retry_after_s)
        set_aside = not delivered and not gone and again_at is None
        state = DeliveryState.WAITING
        if delivered or set_aside:
            state = DeliveryState.DELIVERED if delivered else DeliveryState.FAILED
        asked = letter.after is None
        finished = state is not DeliveryState.WAITING or (gone and asked)
        delivery = structs.replace(
            letter.delivery,
            state=DeliveryState.FAILED if gone and asked else state,
            tries=tries,
            next_at=again_at,
            finished_at=act.now if finished else None,
        )
        if store.get(act.tx, delivery.webhook) is None:
            return  # deleted while the message was under way
        self._keep(act, delivery, sent, letter.body, began_at)
        self.counts.count(letter, delivered=delivered)
        if letter.after is not None:
            self._move(act, letter, letter.after, owner, state=state, tries=tries, again_at=again_at)
        if gone:
            self._webhooks.stop(act, delivery.webhook, "the receiver answered 410: it wants no more")

    def _keep(self, act: Act, delivery: Delivery, sent: Sent, body: bytes, began_at: datetime) -> None:
        known = store.get_delivery(act.tx, delivery.webhook, delivery.sequence, delivery.part)
        done = known is not None and known.state is DeliveryState.DELIVERED
        if not (done and delivery.state is not DeliveryState.DELIVERED):
            store.put_delivery(act.tx, delivery)
        attempt = Attempt(
            number=0,
            at=began_at,
            status=sent.status,
            error=sent.error,
            duration_ms=sent.duration_ms,
            body_sha256=hashlib.sha256(body).hexdigest(),
            answer_sha256=sent.answer_sha256,
        )
        store.add_attempt(act.tx, delivery, attempt)

    def _move(
        self,
        act: Act,
        letter: Letter,
        after: Place,
        owner: str,
        *,
        state: DeliveryState,
        tries: int,
        again_at: datetime | None,
    ) -> None:
        until = act.now + timedelta(seconds=LEASE_S)
        stored, delivery = letter.stored, letter.delivery
        match state:
            case DeliveryState.DELIVERED:
                store.move(act.tx, stored, owner, after, until)
            case DeliveryState.FAILED:
                row = stored.set_aside + 1
                moved = store.move(act.tx, stored, owner, structs.replace(after, set_aside=row), until)
                self.counts.set_aside += 1
                self.counts.late.pop(delivery.webhook, None)
                if moved and row >= core.FAILED_MAX:
                    self._webhooks.stop(
                        act, delivery.webhook, f"{row} messages in a row were not taken by the receiver"
                    )
            case DeliveryState.WAITING:
                here = Place(
                    cursor=delivery.sequence - 1,
                    part=delivery.part,
                    failures=tries,
                    set_aside=stored.set_aside,
                    due_at=again_at,
                )
                store.move(act.tx, stored, owner, here, until)

    # ------------------------------------------------------------------------------------------------- caring

    def stop(self, act: Act, webhook: str, reason: str) -> None:
        """Disable a webhook that nobody answers for."""
        self._webhooks.stop(act, webhook, reason)

    def give_up(self, act: Act, delivery: Delivery) -> None:
        """Set aside a message that was asked for and that the webhook may not be told any more."""
        failed = structs.replace(
            delivery, state=DeliveryState.FAILED, requested=False, next_at=None, finished_at=act.now
        )
        store.put_delivery(act.tx, failed)

    def skip(self, act: Act, webhook: str, looked: int) -> None:
        """Write down that nothing up to an event was for a webhook."""
        stored = store.get(act.tx, webhook)
        if stored is not None and stored.cursor < looked:
            store.skip(act.tx, stored, looked)

    def release(self, act: Act, owner: str | None) -> None:
        """Let go of all leases of a deliverer that ends; of all (None) by one that has begun and knows itself
        to be the only one, so that nobody waits for a lease of the dead."""
        store.release(act.tx, owner)

    def sweep(self, act: Act) -> int:
        """Drop old records of deliveries; how many it were."""
        dropped = store.forget(act.tx, act.now - timedelta(seconds=KEEP_S), SWEEP_MAX)
        for row in store.active(act.tx):
            if dropped >= SWEEP_MAX:
                break
            dropped += store.forget_beyond(act.tx, row.webhook.id, KEEP_MAX, SWEEP_MAX - dropped)
        return dropped
