"""The verbs of webhooks: make, change, try, disable, look at what was delivered, and have it sent again.

A webhook belongs to a project, or to one model of it, and whoever may configure that may see and change it.
Whoever made or last changed it answers for it: it is told what that person may read. Its secret is shown
once, when it is made here, and is then only signed with. What is due, and what becomes of a delivery, is
`deliveries`' part.
"""

import secrets as chance
import time
from collections import deque
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, Protocol
from urllib.parse import urlsplit

from msgspec import Struct, structs

from modelkeep.core import codec, errors, values
from modelkeep.core import webhook_payloads as payloads
from modelkeep.core import webhooks as core
from modelkeep.core.access import AuthMode, Caller, Verb
from modelkeep.core.events import EventKind
from modelkeep.core.values import Actor, ActorKind, ModelName
from modelkeep.core.webhooks import (
    Delivery,
    DeliveryState,
    MadeWebhook,
    NewWebhook,
    Replayed,
    Sent,
    Style,
    Trial,
    Webhook,
    WebhookChange,
    WebhookStatus,
)
from modelkeep.service.access import Access
from modelkeep.service.act import Act, Context, Desk
from modelkeep.service.webhook_events import messages_for, scan
from modelkeep.store import access as access_store
from modelkeep.store import catalog as catalog_store
from modelkeep.store import paging
from modelkeep.store import webhooks as store
from modelkeep.store.events import FAR
from modelkeep.store.webhooks import Stored

TRIALS = 10
"""Trials of one webhook within `TRIALS_S`: a receiver is tried by hand, not flooded by us."""
TRIALS_S = 60.0
TRIED_MAX = 1_000
"""Webhooks whose trials are counted; past that all counts begin anew."""
_FIRST = "~"
"""Sorts after every id: where a list of the newest begins."""
_ANEW = "said anew"


class Sends(Protocol):
    """The way out: `adapters.outbound_http` says what it guards against."""

    def check(self, url: str) -> None: ...
    def post(self, url: str, headers: Mapping[str, str], body: bytes) -> Sent: ...


class Secrets(Protocol):
    """Where secrets are kept: `adapters.webhook_secrets` says how."""

    def seal(self, webhook: str, text: str) -> str: ...
    def open(self, webhook: str, sealed: str) -> str: ...
    def find(self, name: str) -> str: ...


class WebhookPage(Struct, frozen=True, kw_only=True):
    """A page of webhooks."""

    items: tuple[Webhook, ...]
    next_page_token: str | None = None


class DeliveryPage(Struct, frozen=True, kw_only=True):
    """A page of deliveries."""

    items: tuple[Delivery, ...]
    next_page_token: str | None = None


class _Kept(Struct, frozen=True):
    """A secret as it is sealed, and until when it signs beside its successor; None for the one that holds."""

    secret: str
    until: datetime | None = None


class Webhooks:
    """The verbs of webhooks."""

    def __init__(self, access: Access, secrets: Secrets, outbound: Sends) -> None:
        self._access = access
        self._secrets = secrets
        self.outbound = outbound
        self._trials: dict[str, deque[float]] = {}

    # ---------------------------------------------------------------------------------------------- reading

    def list_webhooks(
        self, act: Act, *, project: str | None, limit: int, page_token: str | None
    ) -> WebhookPage:
        """The webhooks that the caller may configure, by id: of a project, or all.

        Raises:
            LimitExceeded, Invalid: a foreign page token.
        """
        paging.check_limit(limit)
        asked = f"webhooks {project or ''}"
        after = str(paging.read_token(page_token, asked, [str])[0]) if page_token else ""
        found: list[Webhook] = []
        while len(found) <= limit:
            rows = store.page(act.tx, project, after, limit + 1)
            found += [row.webhook for row in rows if act.may(Verb.CONFIGURE, row.webhook.scope)]
            if len(rows) <= limit:
                break
            after = rows[-1].webhook.id
        more = paging.write_token(asked, [found[limit - 1].id]) if len(found) > limit else None
        return WebhookPage(items=tuple(found[:limit]), next_page_token=more)

    def newest_webhooks(
        self, act: Act, project: str, style: Style, *, limit: int, page_token: str | None
    ) -> WebhookPage:
        """A project's webhooks of a style that the caller may configure, the newest first.

        Raises:
            LimitExceeded, Invalid: a foreign page token.
        """
        paging.check_limit(limit)
        asked = f"newest webhooks {project} {style}"
        before = str(paging.read_token(page_token, asked, [str])[0]) if page_token else _FIRST
        rows = (row.webhook for row in store.newest(act.tx, project, before, core.WEBHOOKS_MAX))
        found = [row for row in rows if row.style is style and act.may(Verb.CONFIGURE, row.scope)]
        more = paging.write_token(asked, [found[limit - 1].id]) if len(found) > limit else None
        return WebhookPage(items=tuple(found[:limit]), next_page_token=more)

    def get_webhook(self, act: Act, webhook: str) -> Webhook:
        """One webhook. Raises WebhookNotFound, also for one that the caller may not configure."""
        return self._stored(act, webhook).webhook

    def list_deliveries(
        self, act: Act, webhook: str, *, state: DeliveryState | None, limit: int, page_token: str | None
    ) -> DeliveryPage:
        """What was sent, with every attempt, the newest event first.

        Raises:
            WebhookNotFound: there is none, or it is not the caller's to see.
            LimitExceeded, Invalid: a foreign page token.
        """
        self._stored(act, webhook)
        limit = min(paging.check_limit(limit), core.PAGE_MAX)
        asked = f"deliveries {webhook} {state or ''}"
        before = (FAR, 0)
        if page_token:
            sequence, part = paging.read_token(page_token, asked, [int, int])
            before = (int(sequence), int(part))
        found = store.deliveries(act.tx, webhook, state, before, limit + 1)
        more = None
        if len(found) > limit:
            more = paging.write_token(asked, [found[limit - 1].sequence, found[limit - 1].part])
        return DeliveryPage(items=tuple(found[:limit]), next_page_token=more)

    # --------------------------------------------------------------------------------------------- changing

    def look_at_new(self, desk: Desk, context: Context, new: NewWebhook) -> None:
        """See, before any transaction, that the address may be delivered to and that a named secret is there.

        Raises:
            NotAllowed: nothing is looked up for somebody who may not make the webhook.
            InvalidWebhook: the address leads nowhere, or where nothing may be sent; the secret is not there.
        """
        desk.read(context, self._may_make, new)
        self._look(new.url, new.secret)

    def look_at_change(self, desk: Desk, context: Context, webhook: str, change: WebhookChange) -> None:
        """The same for a change. Raises as `look_at_new`, and WebhookNotFound."""
        desk.read(context, self.get_webhook, webhook)
        self._look(change.url, change.secret)

    def _look(self, url: str | None, secret: str | None) -> None:
        if url is not None:
            self.outbound.check(url)
        if secret is not None and _is_name(secret):
            self._secrets.find(secret)

    def _may_make(self, act: Act, new: NewWebhook) -> ModelName | str:
        project = values.check_name(new.project, "project")
        if new.model is None:
            act.authorise(Verb.READ, project)
            act.authorise(Verb.CONFIGURE, project)
            return project
        model = ModelName(project, new.model)
        act.readable(model)
        act.authorise(Verb.CONFIGURE, model)
        catalog_store.get_model(act.tx, model)
        return model

    def create_webhook(self, act: Act, new: NewWebhook) -> MadeWebhook:
        """Make a webhook; it hears what happens from now on. Its address was looked at before.

        Raises:
            NotAllowed, ModelNotFound: the caller may not configure the project or the model.
            InvalidWebhook, InvalidName, Invalid: something does not fit. LimitExceeded: there are too many.
        """
        scope = self._may_make(act, new)
        values.check_name(new.name, "webhook")
        values.check_text(new.description, "description", maximum=core.DESCRIPTION_MAX)
        core.check_url(new.url, http=True)  # whether plain HTTP may be was seen in look_at_new
        events = core.check_events(new.style, new.events)
        if store.count(act.tx, new.project) >= core.WEBHOOKS_MAX:
            raise errors.LimitExceeded(
                f"A project has at most {core.WEBHOOKS_MAX} webhooks; delete some.", limit=core.WEBHOOKS_MAX
            )
        webhook_id = act.new_id("hook")
        where, sealed, shown = self._secret(webhook_id, new.secret, new.style, ())
        recorded = act.record(
            EventKind.WEBHOOK_CREATED,
            _subject(webhook_id),
            model=scope if isinstance(scope, ModelName) else None,
            name=new.name,
            project=new.project,
            host=_host(new.url),
            events=list(events),
            style=new.style,
            status=new.status,
        )
        webhook = Webhook(
            id=webhook_id,
            name=new.name,
            project=new.project,
            model=new.model,
            url=new.url,
            events=events,
            style=new.style,
            description=new.description,
            status=new.status,
            secret=where,
            answerable=act.by,
            created_at=act.now,
            created_by=act.by,
            updated_at=act.now,
            cursor=recorded.sequence,
        )
        store.add(act.tx, webhook, sealed)
        return MadeWebhook(webhook=webhook, secret=shown)

    def change_webhook(self, act: Act, webhook: str, change: WebhookChange) -> Webhook:
        """Change what is said; whoever changes it answers for it from then on. A new address was looked at
        before.

        Raises:
            WebhookNotFound, InvalidWebhook, InvalidName, Invalid, LimitExceeded: as elsewhere.
        """
        stored = self._stored(act, webhook)
        before = stored.webhook
        after = before
        if change.name is not None:
            after = structs.replace(after, name=values.check_name(change.name, "webhook"))
        if change.description is not None:
            text = values.check_text(change.description, "description", maximum=core.DESCRIPTION_MAX)
            after = structs.replace(after, description=text)
        if change.url is not None:
            core.check_url(change.url, http=True)
            after = structs.replace(after, url=change.url)
        if change.events is not None:
            after = structs.replace(after, events=core.check_events(before.style, change.events))
        sealed = stored.sealed
        if change.secret is not None:
            where, sealed, _ = self._secret(before.id, change.secret, before.style, ())
            after = structs.replace(after, secret=where)
        if after == before and change.secret is None:
            return before
        after = structs.replace(after, updated_at=act.now, answerable=act.by)
        self._catch_up(act, stored)
        store.save(act.tx, after, sealed)
        moved = _differences(before, after)
        if change.secret is not None:
            moved["secret"] = _ANEW
        self._record_change(act, after, **moved)
        return after

    def _catch_up(self, act: Act, stored: Stored) -> None:
        """Move a webhook over what is not for it as it is: what it is to hear from now on does not begin with
        the past."""
        caller = self.answerable(act, stored.webhook)
        if caller is None or stored.part or stored.webhook.failures:
            return
        found = scan(act, stored, caller)
        if found.looked > stored.cursor:
            store.place(act.tx, stored.webhook.id, found.looked)

    def rotate_secret(self, act: Act, webhook: str) -> MadeWebhook:
        """Give a webhook another secret. The former one signs beside it for a day, so that a receiver can
        change over.

        Raises:
            WebhookNotFound: there is none, or it is not the caller's to see.
            InvalidWebhook: its secret is only named here; change it where it is.
        """
        stored = self._stored(act, webhook)
        before = stored.webhook
        if _is_name(before.secret):
            raise errors.InvalidWebhook(
                f"The secret of {before.name} is {before.secret}; change it there.", field="secret"
            )
        until = act.now + timedelta(seconds=core.ROTATION_S)
        former = tuple(_Kept(kept.secret, until) for kept in self._kept(stored)[:1])
        where, sealed, shown = self._secret(before.id, None, Style.MODELKEEP, former)
        after = structs.replace(before, secret=where, updated_at=act.now, answerable=act.by)
        store.save(act.tx, after, sealed)
        self._record_change(act, after, secret=_ANEW)
        return MadeWebhook(webhook=after, secret=shown)

    def set_status(self, act: Act, webhook: str, status: WebhookStatus, reason: str | None) -> Webhook:
        """Disable a webhook, or have it go on from where it stood; nothing is lost in between.

        Raises:
            WebhookNotFound: there is none, or it is not the caller's to see.
            Invalid, LimitExceeded: the reason cannot be kept.
        """
        stored = self._stored(act, webhook)
        if reason is not None:
            values.check_text(reason, "reason", maximum=core.DESCRIPTION_MAX)
        return self._set_status(act, stored, status, reason)

    def _set_status(self, act: Act, stored: Stored, status: WebhookStatus, reason: str | None) -> Webhook:
        before = stored.webhook
        if before.status is status:
            return before
        disabled = status is WebhookStatus.DISABLED
        after = structs.replace(
            before,
            status=status,
            disabled_because=reason if disabled else None,
            answerable=before.answerable if disabled else act.by,
            updated_at=act.now,
        )
        store.save(act.tx, after, stored.sealed)
        if not disabled:
            store.place(act.tx, before.id, before.cursor, stored.part)
            after = structs.replace(after, failures=0, next_at=None)
        self._record_change(
            act, after, reason=reason, status={"from": before.status.value, "to": status.value}
        )
        return after

    def stop(self, act: Act, webhook: str, reason: str) -> None:
        """Disable a webhook whose receiver is gone, or whose person is; the system's own verb."""
        stored = store.get(act.tx, webhook)
        if stored is not None:
            self._set_status(act, stored, WebhookStatus.DISABLED, reason)

    def delete_webhook(self, act: Act, webhook: str) -> None:
        """Remove a webhook with the record of its deliveries.

        Raises:
            WebhookNotFound: there is none, or it is not the caller's to see.
        """
        found = self._stored(act, webhook).webhook
        store.drop(act.tx, webhook)
        act.record(
            EventKind.WEBHOOK_DELETED,
            _subject(webhook),
            model=found.scope if isinstance(found.scope, ModelName) else None,
            name=found.name,
            project=found.project,
        )

    # ---------------------------------------------------------------------------------- sending by hand

    def replay(
        self, act: Act, webhook: str, *, sequence: int | None = None, after: int | None = None
    ) -> Replayed:
        """Have messages sent again under their former ids: those of one event at once, beside the order, or
        everything after an event, in order.

        Raises:
            WebhookNotFound: there is none, or it is not the caller's to see.
            InvalidWebhook: neither or both were asked for, or the webhook is not that far.
            DeliveryNotFound: the event makes no message for this webhook.
        """
        stored = self._stored(act, webhook)
        if sequence is not None and after is None:
            count = self._again(act, stored, sequence)
            self._record_change(act, stored.webhook, replayed={"sequence": sequence, "messages": count})
            return Replayed(messages=count, cursor=stored.cursor)
        if after is None or sequence is not None or after < 0:
            raise errors.InvalidWebhook("Name one event to send again, or the one to go on after.")
        if after > stored.cursor:
            raise _not_so_far(stored.webhook, after, "after")
        store.place(act.tx, webhook, after)
        self._record_change(act, stored.webhook, replayed={"after": after})
        return Replayed(cursor=after)

    def _again(self, act: Act, stored: Stored, sequence: int) -> int:
        if sequence > stored.cursor:
            raise _not_so_far(stored.webhook, sequence, "sequence")
        found = self.messages_of(act, stored.webhook, sequence)
        for message in found:
            known = store.get_delivery(act.tx, stored.webhook.id, sequence, message.part)
            store.put_delivery(
                act.tx,
                Delivery(
                    id=core.delivery_id(stored.webhook.id, sequence, message.part),
                    webhook=stored.webhook.id,
                    sequence=sequence,
                    part=message.part,
                    event=message.event,
                    state=DeliveryState.WAITING,
                    requested=True,
                    next_at=act.now,
                    created_at=known.created_at if known is not None else act.now,
                ),
            )
        if not found:
            raise errors.DeliveryNotFound(
                f"Event {sequence} makes no message for {stored.webhook.name}.", sequence=sequence
            )
        return len(found)

    def messages_of(self, act: Act, webhook: Webhook, sequence: int) -> list[payloads.Message]:
        """The messages of one event for a webhook; none where it is not for it, or not there."""
        caller = self.answerable(act, webhook)
        try:
            event = act.tx.events.get(sequence).event
        except errors.EventNotFound:
            return []
        return messages_for(act, webhook, event, caller) if caller is not None else []

    def try_receiver(self, desk: Desk, context: Context, webhook: str, event: str | None = None) -> Trial:
        """Send an example to the receiver, here and now, signed as every delivery; it leaves no delivery.

        Args:
            event: of MLflow's style, which of its words; the subscription's first when left out.

        Raises:
            WebhookNotFound: there is none, or it is not the caller's to see.
            InvalidWebhook: no event is called so.
            Overloaded: it was tried too often within a minute.
        """
        stored = desk.read(context, self._stored, webhook)
        found = stored.webhook
        word = event or found.events[0]
        core.check_events(found.style, (word,))
        self._count_trial(webhook)
        message = payloads.example(found, word, desk.clock())
        delivery = f"msg_test_{chance.token_hex(10)}"
        sent = self.send(stored, delivery, message.body, desk.clock())
        return Trial(
            delivered=core.succeeded(sent.status),
            status=sent.status,
            error=sent.error,
            duration_ms=sent.duration_ms,
        )

    def send(self, stored: Stored, delivery: str, body: bytes, now: datetime) -> Sent:
        """Sign a message and send it; no transaction may be open. It raises nothing."""
        webhook = stored.webhook
        try:
            signing = self._signing(stored, now)
        except errors.ModelkeepError as problem:
            return Sent(status=None, error=str(problem), duration_ms=0.0)
        headers = core.headers(webhook.style, delivery, int(now.timestamp()), body, signing)
        return self.outbound.post(webhook.url, headers, body)

    def _count_trial(self, webhook: str) -> None:
        if len(self._trials) >= TRIED_MAX:
            self._trials.clear()
        now = time.monotonic()
        former = self._trials.setdefault(webhook, deque(maxlen=TRIALS))
        if len(former) == TRIALS and now - former[0] < TRIALS_S:
            raise errors.Overloaded(
                f"This webhook was tried {TRIALS} times within a minute; wait a little.",
                retry_after_s=TRIALS_S - (now - former[0]),
            )
        former.append(now)

    # ---------------------------------------------------------------------------------------------- within

    def answerable(self, act: Act, webhook: Webhook) -> Caller | None:
        """Whoever answers for a webhook, with what they hold now; None when they were shut out."""
        if self._access.mode is AuthMode.LOCAL:
            return self._access.authenticate(None)
        principal = access_store.get_principal(act.tx, webhook.answerable)
        if principal is None or principal.disabled:
            return None
        return Caller(
            actor=Actor(name=principal.name, kind=ActorKind(principal.kind.value)),
            grants=access_store.grants_of(act.tx, principal.name),
        )

    def _stored(self, act: Act, webhook: str) -> Stored:
        stored = store.get(act.tx, webhook)
        if stored is None or not act.may(Verb.CONFIGURE, stored.webhook.scope):
            raise errors.WebhookNotFound(
                f"There is no webhook {values.quoted(webhook, 60)}; 'modelkeep webhook ls' lists them.",
                webhook=webhook[:100],
            )
        return stored

    def _secret(
        self, webhook: str, said: str | None, style: Style, former: tuple[_Kept, ...]
    ) -> tuple[str, str | None, str | None]:
        """Where a secret is, what the database keeps of it, and what is shown this once."""
        if said is not None and _is_name(said):
            return said, None, None
        if said is None and style is Style.MLFLOW:
            return "none", None, None  # MLflow does not sign for a webhook that was given no secret
        made = core.new_secret(chance.token_bytes(core.SECRET_BYTES))
        secret = core.check_secret(said) if said is not None else made
        sealed = self._secrets.seal(webhook, codec.encode((_Kept(secret), *former)).decode())
        return ("given", sealed, None) if said is not None else ("generated", sealed, secret)

    def _kept(self, stored: Stored) -> tuple[_Kept, ...]:
        if stored.sealed is None:
            return ()
        return codec.decode(self._secrets.open(stored.webhook.id, stored.sealed), tuple[_Kept, ...])

    def _signing(self, stored: Stored, now: datetime) -> list[str]:
        """The secrets that a message is signed with now."""
        if _is_name(stored.webhook.secret):
            return [core.check_secret(self._secrets.find(stored.webhook.secret))]
        return [kept.secret for kept in self._kept(stored) if kept.until is None or now < kept.until]

    def _record_change(self, act: Act, webhook: Webhook, *, reason: str | None = None, **change: Any) -> None:
        act.record(
            EventKind.WEBHOOK_CHANGED,
            _subject(webhook.id),
            model=webhook.scope if isinstance(webhook.scope, ModelName) else None,
            reason=reason,
            name=webhook.name,
            project=webhook.project,
            **change,
        )


def _not_so_far(webhook: Webhook, sequence: int, field: str) -> errors.InvalidWebhook:
    return errors.InvalidWebhook(
        f"{webhook.name} is at event {webhook.cursor} and comes to event {sequence} by itself.", field=field
    )


def _subject(webhook: str) -> str:
    return f"webhook/{webhook}"


def _host(url: str) -> str:
    """What the audit log says of an address: the rest of it may be a secret."""
    return urlsplit(url).netloc


def _is_name(secret: str) -> bool:
    return secret.startswith(("env:", "file:"))


def _differences(before: Webhook, after: Webhook) -> dict[str, Any]:
    """Each field that differs, from -> to; of an address only the host."""
    moved: dict[str, Any] = {}
    if before.url != after.url:
        moved["host"] = {"from": _host(before.url), "to": _host(after.url)}
    if before.events != after.events:
        moved["events"] = {"from": list(before.events), "to": list(after.events)}
    if before.name != after.name:
        moved["called"] = {"from": before.name, "to": after.name}
    if before.description != after.description:
        moved["description"] = {"from": before.description, "to": after.description}
    return moved
