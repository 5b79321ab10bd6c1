"""The client's verbs around webhooks: make, change, try and delete them, and look at what was delivered.

A secret that the server makes passes through once, in the answer that makes it, and is kept nowhere.
"""

from collections.abc import Sequence

from modelkeep.client.answers import Listing, Page
from modelkeep.client.transport import V1, Wire, given, segment
from modelkeep.core import values
from modelkeep.core.answers import Done
from modelkeep.core.webhooks import Delivery, DeliveryState, MadeWebhook, Replayed, Trial, Webhook


class WebhookVerbs(Wire):
    """Who is told what happens."""

    def list_webhooks(self, *, project: str | None = None, limit: int | None = None) -> Listing[Webhook]:
        """The webhooks that you may configure: of a project, or all."""
        return self.listing(Page[Webhook], f"{V1}/webhooks", limit, project=project)

    def create_webhook(
        self,
        name: str,
        url: str,
        events: Sequence[str],
        *,
        project: str = values.DEFAULT_PROJECT,
        model: str | None = None,
        description: str = "",
        secret: str | None = None,
    ) -> MadeWebhook:
        """Make a webhook; it hears what happens from now on.

        Args:
            events: kinds of event, or patterns like `rollout.*` or `*`.
            model: only what happens to this model of the project.
            secret: `env:NAME` or `file:NAME` for one that the server finds, or one of your own; left out, one
                is made, and this answer is the only place where it is shown.

        Raises:
            InvalidWebhook: the address leads nowhere or where nothing may be sent, or an event is unknown.
            LimitExceeded: the project has as many as it may.
        """
        body = given(
            name=name,
            url=url,
            events=tuple(events),
            project=project,
            model=model,
            description=description,
            secret=secret,
        )
        return self.send(MadeWebhook, "POST", f"{V1}/webhooks", body)

    def get_webhook(self, webhook: str) -> Webhook:
        """One webhook by its id. Raises WebhookNotFound."""
        return self.get(Webhook, _path(webhook))

    def change_webhook(
        self,
        webhook: str,
        *,
        name: str | None = None,
        url: str | None = None,
        events: Sequence[str] | None = None,
        description: str | None = None,
        secret: str | None = None,
    ) -> Webhook:
        """Change what is said; you answer for it from then on. Raises WebhookNotFound, InvalidWebhook."""
        words = None if events is None else tuple(events)
        body = given(name=name, url=url, events=words, description=description, secret=secret)
        return self.send(Webhook, "PATCH", _path(webhook), body)

    def delete_webhook(self, webhook: str) -> Done:
        """Remove a webhook with the record of its deliveries. Raises WebhookNotFound."""
        return self.send(Done, "DELETE", _path(webhook))

    def enable_webhook(self, webhook: str, *, reason: str | None = None) -> Webhook:
        """Have a webhook go on from where it stood. Raises WebhookNotFound."""
        return self.send(Webhook, "POST", _path(webhook, "enable"), given(reason=reason))

    def disable_webhook(self, webhook: str, *, reason: str | None = None) -> Webhook:
        """Have a webhook wait; what happens meanwhile is delivered later. Raises WebhookNotFound."""
        return self.send(Webhook, "POST", _path(webhook, "disable"), given(reason=reason))

    def rotate_webhook(self, webhook: str) -> MadeWebhook:
        """Have another secret made; the former one signs along for a day. Raises WebhookNotFound."""
        return self.send(MadeWebhook, "POST", _path(webhook, "secret"))

    def test_webhook(self, webhook: str, *, event: str | None = None) -> Trial:
        """Send an example to the receiver now.

        Raises:
            WebhookNotFound. Overloaded: it was tried too often within a minute.
        """
        return self.send(Trial, "POST", _path(webhook, "test"), given(event=event))

    def list_deliveries(
        self, webhook: str, *, state: DeliveryState | str | None = None, limit: int | None = None
    ) -> Listing[Delivery]:
        """What was sent, with every attempt, the newest event first. Raises WebhookNotFound."""
        which = None if state is None else DeliveryState(state)
        return self.listing(Page[Delivery], _path(webhook, "deliveries"), limit, state=which)

    def replay_webhook(
        self, webhook: str, *, sequence: int | None = None, after: int | None = None
    ) -> Replayed:
        """Have messages sent again under their former ids: those of one event, or all after one, in order.

        Raises:
            WebhookNotFound, DeliveryNotFound: there is none. InvalidWebhook: it is not that far.
        """
        return self.send(Replayed, "POST", _path(webhook, "replay"), given(sequence=sequence, after=after))


def _path(webhook: str, *more: str) -> str:
    return "/".join((f"{V1}/webhooks", segment(webhook), *more))
