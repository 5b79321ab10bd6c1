"""Webhooks in MLflow's words: its requests in, its answers out, over the verbs of `service.webhooks`.

A webhook that is made here gets MLflow's messages, signed under its header names, and lives in the project
that the request names. Its receiver's answers are not handed on: what a server says is for whoever runs it.
"""

import re
from enum import StrEnum
from typing import Any

from msgspec import Struct

from modelkeep.core import errors, values
from modelkeep.core.webhooks import NewWebhook, Style, Webhook, WebhookChange, WebhookStatus
from modelkeep.service.act import Act
from modelkeep.web.mlflow.route import API, row
from modelkeep.web.mlflow.wire import DONE, Int64, Nothing, Request, project_of
from modelkeep.web.operations import Call, Mode, Operation

PAGE_DEFAULT = 100
"""Webhooks of a page when nobody says, as MLflow has it."""
NAME_MAX = 63
"""Characters of a name, as MLflow has it."""

_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?", re.ASCII)


class Status(StrEnum):
    """Whether deliveries are made, in MLflow's spelling."""

    ACTIVE = "ACTIVE"
    DISABLED = "DISABLED"


class Event(Struct, frozen=True, kw_only=True):
    """What happened to what, each in MLflow's spelling, such as MODEL_VERSION and CREATED."""

    entity: str
    action: str

    @property
    def word(self) -> str:
        """As a subscription has it."""
        return f"{self.entity.lower()}.{self.action.lower()}"


class CreateWebhook(Request, frozen=True, kw_only=True):
    """A webhook to make."""

    name: str
    url: str
    events: tuple[Event, ...]
    description: str | None = None
    secret: str | None = None
    status: Status | None = None


class UpdateWebhook(Request, frozen=True, kw_only=True):
    """What is to be otherwise."""

    webhook_id: str | None = None
    name: str | None = None
    description: str | None = None
    url: str | None = None
    events: tuple[Event, ...] = ()
    secret: str | None = None
    status: Status | None = None


class ListWebhooks(Request, frozen=True, kw_only=True):
    """A page of webhooks."""

    max_results: Int64 | None = None
    page_token: str | None = None


class TryWebhook(Request, frozen=True, kw_only=True):
    """The event to send an example of."""

    webhook_id: str | None = None
    event: Event | None = None


class EventOut(Struct, frozen=True, kw_only=True):
    """An event as the client parses it."""

    entity: str
    action: str


class WebhookOut(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A webhook as the client parses it; never its secret."""

    webhook_id: str
    name: str
    description: str = ""
    url: str
    events: tuple[EventOut, ...]
    status: Status | None = None
    creation_timestamp: int
    last_updated_timestamp: int


class OneWebhook(Struct, frozen=True):
    """One webhook."""

    webhook: WebhookOut


class WebhooksOut(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A page of webhooks."""

    webhooks: tuple[WebhookOut, ...] = ()
    next_page_token: str | None = None


class TrialOut(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What came of an example: the receiver's status, or why there is none."""

    success: bool | None = None
    response_status: int | None = None
    error_message: str | None = None


class OneTrial(Struct, frozen=True):
    """The answer of a trial."""

    result: TrialOut


def _out(webhook: Webhook) -> OneWebhook:
    return OneWebhook(_shown(webhook))


def _shown(webhook: Webhook) -> WebhookOut:
    return WebhookOut(
        webhook_id=webhook.id,
        name=webhook.name,
        description=webhook.description,
        url=webhook.url,
        events=tuple(_event(word) for word in webhook.events),
        status=Status.ACTIVE if webhook.status is WebhookStatus.ACTIVE else Status.DISABLED,
        creation_timestamp=int(webhook.created_at.timestamp() * 1_000),
        last_updated_timestamp=int(webhook.updated_at.timestamp() * 1_000),
    )


def _event(word: str) -> EventOut:
    entity, _, action = word.upper().partition(".")
    return EventOut(entity=entity, action=action)


def _checked_name(name: str) -> str:
    """A name as MLflow takes it. Raises InvalidWebhook."""
    if len(name) > NAME_MAX or not _NAME.fullmatch(name):
        raise errors.InvalidWebhook(
            f"{values.quoted(name)} cannot be a webhook's name: use 1 to {NAME_MAX} letters, digits, '.', "
            "'_' or '-', beginning and ending with a letter or a digit.",
            field="name",
        )
    return name


def _new(call: Call) -> NewWebhook:
    b: CreateWebhook = call.body
    return NewWebhook(
        name=_checked_name(b.name),
        url=b.url,
        events=tuple(event.word for event in b.events),
        project=project_of(call),
        description=b.description or "",
        style=Style.MLFLOW,
        secret=b.secret or None,
        status=WebhookStatus.DISABLED if b.status is Status.DISABLED else WebhookStatus.ACTIVE,
    )


def look_at_new(call: Call) -> Any:
    """See where a new webhook's address leads, before any transaction."""
    call.house.webhooks.look_at_new(call.house.desk, call.context, _new(call))


def create_webhook(act: Act, call: Call) -> OneWebhook:
    """Make a webhook."""
    return _out(call.house.webhooks.create_webhook(act, _new(call)).webhook)


def list_webhooks(act: Act, call: Call) -> WebhooksOut:
    """A project's webhooks, the newest first."""
    q: ListWebhooks = call.query
    asked = PAGE_DEFAULT if not q.max_results else q.max_results
    if not 1 <= asked <= values.PAGE_MAX:
        raise errors.InvalidParameter(
            f"'max_results' is 1 to {values.PAGE_MAX:,}, not {asked}.", field="max_results"
        )
    page = call.house.webhooks.newest_webhooks(
        act, project_of(call), Style.MLFLOW, limit=asked, page_token=q.page_token or None
    )
    return WebhooksOut(
        webhooks=tuple(_shown(webhook) for webhook in page.items), next_page_token=page.next_page_token
    )


def get_webhook(act: Act, call: Call) -> OneWebhook:
    """One webhook by its id."""
    return _out(_own(act, call))


def _own(act: Act, call: Call) -> Webhook:
    """The webhook that the path names, when it is one of the request's project and speaks MLflow's words.
    Raises WebhookNotFound."""
    found = call.house.webhooks.get_webhook(act, call.path["webhook_id"])
    if found.project != project_of(call) or found.style is not Style.MLFLOW:
        raise errors.WebhookNotFound(
            f"There is no webhook {values.quoted(found.id, 60)} in this workspace.", webhook=found.id
        )
    return found


def _change(call: Call) -> WebhookChange:
    b: UpdateWebhook = call.body
    return WebhookChange(
        name=_checked_name(b.name) if b.name else None,
        url=b.url or None,
        events=tuple(event.word for event in b.events) or None,
        description=b.description,
        secret=b.secret or None,
    )


def look_at_change(call: Call) -> Any:
    """See where a webhook's new address leads, before any transaction."""
    house = call.house
    house.webhooks.look_at_change(house.desk, call.context, call.path["webhook_id"], _change(call))


def update_webhook(act: Act, call: Call) -> OneWebhook:
    """Change a webhook; what is left out stays."""
    found = _own(act, call)
    changed = call.house.webhooks.change_webhook(act, found.id, _change(call))
    b: UpdateWebhook = call.body
    if b.status is not None:
        status = WebhookStatus.ACTIVE if b.status is Status.ACTIVE else WebhookStatus.DISABLED
        changed = call.house.webhooks.set_status(act, found.id, status, None)
    return _out(changed)


def delete_webhook(act: Act, call: Call) -> Nothing:
    """Delete a webhook."""
    call.house.webhooks.delete_webhook(act, _own(act, call).id)
    return DONE


def test_webhook(call: Call) -> OneTrial:
    """Send an example to a webhook's receiver."""
    house = call.house
    found = house.desk.read(call.context, _own, call)
    b: TryWebhook = call.body
    word = b.event.word if b.event is not None else None
    sent = house.webhooks.try_receiver(house.desk, call.context, found.id, word)
    return OneTrial(TrialOut(success=sent.delivered, response_status=sent.status, error_message=sent.error))


_ONE = API + "webhooks/{webhook_id}"

# fmt: off
WEBHOOK_ROWS: tuple[Operation, ...] = (
    row("POST", API + "webhooks", Mode.WRITE, create_webhook, OneWebhook, body=CreateWebhook,
        before=look_at_new),
    row("GET", API + "webhooks", Mode.READ, list_webhooks, WebhooksOut, query=ListWebhooks),
    row("GET", _ONE, Mode.READ, get_webhook, OneWebhook),
    row("PATCH", _ONE, Mode.WRITE, update_webhook, OneWebhook, body=UpdateWebhook, before=look_at_change),
    row("DELETE", _ONE, Mode.WRITE, delete_webhook),
    row("POST", _ONE + "/test", Mode.TASK, test_webhook, OneTrial, body=TryWebhook),
)
# fmt: on
