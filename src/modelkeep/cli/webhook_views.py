"""How answers about webhooks read: subscriptions, trials, deliveries."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from modelkeep.cli.catalog_views import View
from modelkeep.cli.show import Screen, Text, moment

if TYPE_CHECKING:
    from modelkeep.core.webhooks import Attempt, Delivery, MadeWebhook, Replayed, Trial, Webhook


def _scope(hook: "Webhook") -> str:
    return f"{hook.project}/{hook.model or ''}"


def _state(hook: "Webhook") -> Text | str:
    if hook.status.value == "disabled":
        return Text("disabled", "bad")
    return Text(f"failing ({hook.failures})", "bad") if hook.failures else Text("active", "good")


def webhooks(items: Sequence["Webhook"]) -> View:
    """Subscriptions, one a line."""

    def draw(screen: Screen) -> None:
        screen.table(
            ("id", "name", "of", "to", "events", "state", "at event"),
            (
                (
                    hook.id,
                    hook.name,
                    _scope(hook),
                    hook.url,
                    ", ".join(hook.events),
                    _state(hook),
                    hook.cursor,
                )
                for hook in items
            ),
            right=(6,),
        )

    return draw


def webhook(hook: "Webhook") -> View:
    """One subscription, whole."""

    def draw(screen: Screen) -> None:
        screen.facts(
            (
                ("webhook", Text(hook.name, "strong")),
                ("id", hook.id),
                ("of", _scope(hook)),
                ("to", hook.url),
                ("events", ", ".join(hook.events)),
                ("style", hook.style.value),
                ("description", hook.description or None),
                ("state", _state(hook)),
                ("because", hook.disabled_because),
                ("secret", hook.secret),
                ("answerable", hook.answerable),
                ("at event", str(hook.cursor)),
                ("next attempt", moment(hook.next_at) if hook.next_at is not None else None),
                ("made", f"{moment(hook.created_at)} by {hook.created_by}"),
            )
        )

    return draw


def made(found: "MadeWebhook") -> View:
    """A subscription that was made, and its secret where it was made, too."""

    def draw(screen: Screen) -> None:
        webhook(found.webhook)(screen)
        if found.secret is not None:
            screen.line("secret:", found.secret)
        screen.line(Text(f"  next: modelkeep webhook test {found.webhook.name}", "dim"))

    return draw


def trial(found: "Trial") -> View:
    """What came of an example."""

    def draw(screen: Screen) -> None:
        word = Text("delivered:", "good") if found.delivered else Text("not delivered:", "bad")
        said = found.error or f"the receiver answered {found.status}"
        screen.line(word, f"{said} ({found.duration_ms:.0f} ms)")

    return draw


def deliveries(items: Sequence["Delivery"]) -> View:
    """Deliveries, one a line, with what the receiver said last."""
    looks = {"delivered": "good", "failed": "bad", "waiting": "dim"}

    def draw(screen: Screen) -> None:
        screen.table(
            ("event", "message", "of", "state", "attempts", "last", "at", "next"),
            (
                (
                    one.sequence,
                    one.event,
                    one.id,
                    Text(one.state.value, looks[one.state.value]),
                    len(one.attempts),
                    _said(one.attempts[-1]) if one.attempts else "",
                    moment(one.attempts[-1].at) if one.attempts else "",
                    moment(one.next_at) if one.next_at is not None else "",
                )
                for one in items
            ),
            right=(0, 4),
        )

    return draw


def _said(attempt: "Attempt") -> str:
    return attempt.error or str(attempt.status)


def replayed(found: "Replayed") -> View:
    """What will be sent again."""

    def draw(screen: Screen) -> None:
        if found.messages is not None:
            screen.line(f"Messages that will be sent again at once: {found.messages}.")
        else:
            screen.line(f"Everything after event {found.cursor} will be sent again, in order.")

    return draw
