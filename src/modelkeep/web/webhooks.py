"""The operations of webhooks: each takes a decoded call, calls one service method, and returns its shape.

Addresses and named secrets are looked at before the act, for that may take seconds; nobody waits for it. No
decision is made here.
"""

from typing import Annotated, Any

from msgspec import Meta

from modelkeep.core import values
from modelkeep.core.webhooks import DESCRIPTION_MAX, DeliveryState, WebhookStatus
from modelkeep.service.act import Act
from modelkeep.web.api import DONE
from modelkeep.web.operations import Call
from modelkeep.web.shapes import ListQuery, NameText, Shape


class WebhooksQuery(ListQuery, frozen=True, kw_only=True):
    """Which webhooks: those of a project, or all that one may configure."""

    project: NameText | None = None


class DeliveriesQuery(ListQuery, frozen=True, kw_only=True):
    """Which deliveries."""

    state: DeliveryState | None = None


class Why(Shape, frozen=True, kw_only=True):
    """Why; people read it later."""

    reason: Annotated[str, Meta(max_length=DESCRIPTION_MAX)] | None = None


class Trying(Shape, frozen=True, kw_only=True):
    """The event to send an example of; the subscription's first when left out."""

    event: Annotated[str, Meta(max_length=100)] | None = None


class Replaying(Shape, frozen=True, kw_only=True):
    """The one event to send again, or the event after which everything is."""

    sequence: Annotated[int, Meta(ge=1, le=2**62)] | None = None
    after: Annotated[int, Meta(ge=0, le=2**62)] | None = None


def list_webhooks(act: Act, call: Call) -> Any:
    """Webhooks of a project, or all."""
    q = call.query
    project = values.check_name(q.project, "project") if q.project is not None else None
    return call.house.webhooks.list_webhooks(act, project=project, limit=q.limit, page_token=q.page_token)


def look_at_new(call: Call) -> Any:
    """See where a new webhook's address leads, before any transaction."""
    call.house.webhooks.look_at_new(call.house.desk, call.context, call.body)


def create_webhook(act: Act, call: Call) -> Any:
    """Make a webhook."""
    return call.house.webhooks.create_webhook(act, call.body)


def get_webhook(act: Act, call: Call) -> Any:
    """One webhook."""
    return call.house.webhooks.get_webhook(act, call.path["id"])


def look_at_change(call: Call) -> Any:
    """See where a webhook's new address leads, before any transaction."""
    call.house.webhooks.look_at_change(call.house.desk, call.context, call.path["id"], call.body)


def change_webhook(act: Act, call: Call) -> Any:
    """Change a webhook."""
    return call.house.webhooks.change_webhook(act, call.path["id"], call.body)


def delete_webhook(act: Act, call: Call) -> Any:
    """Delete a webhook."""
    call.house.webhooks.delete_webhook(act, call.path["id"])
    return DONE


def enable_webhook(act: Act, call: Call) -> Any:
    """Have a webhook go on."""
    return call.house.webhooks.set_status(act, call.path["id"], WebhookStatus.ACTIVE, call.body.reason)


def disable_webhook(act: Act, call: Call) -> Any:
    """Have a webhook wait."""
    return call.house.webhooks.set_status(act, call.path["id"], WebhookStatus.DISABLED, call.body.reason)


def rotate_webhook(act: Act, call: Call) -> Any:
    """Give a webhook another secret."""
    return call.house.webhooks.rotate_secret(act, call.path["id"])


def test_webhook(call: Call) -> Any:
    """Send an example."""
    house = call.house
    return house.webhooks.try_receiver(house.desk, call.context, call.path["id"], call.body.event)


def list_deliveries(act: Act, call: Call) -> Any:
    """What was sent."""
    q = call.query
    return call.house.webhooks.list_deliveries(
        act, call.path["id"], state=q.state, limit=q.limit, page_token=q.page_token
    )


def replay_webhook(act: Act, call: Call) -> Any:
    """Send messages again."""
    b = call.body
    return call.house.webhooks.replay(act, call.path["id"], sequence=b.sequence, after=b.after)
