"""Commands around webhooks: make, try, disable and delete them, and look at what was delivered."""

from typing import TYPE_CHECKING

import click

from modelkeep.cli import webhook_views as views
from modelkeep.cli.session import Session, limit, verb, yes

if TYPE_CHECKING:
    from modelkeep.core.webhooks import Webhook


@click.group()
def webhook() -> None:
    """Tell other programs what happens. WEBHOOK is an id, or a name that only one has."""


def _find(session: Session, said: str) -> str:
    """The id of the webhook that was named."""
    if said.startswith("hook_"):
        return said
    found: list[Webhook] = [hook for hook in session.client.list_webhooks() if hook.name == said]
    if len(found) > 1:
        ids = ", ".join(hook.id for hook in found[:5])
        raise click.BadParameter(f"{said!r} is the name of several: {ids}", param_hint="WEBHOOK")
    return found[0].id if found else said


@verb(webhook, "ls")
@click.option("--project", metavar="NAME", help="Only those of a project.")
@limit
def webhook_ls(session: Session, project: str | None, limit: int) -> None:
    """List the webhooks that you may configure."""
    found = session.client.list_webhooks(project=project, limit=limit).whole()
    session.answer(found, (hook.id for hook in found.items), views.webhooks(found.items))


@verb(webhook, "show")
@click.argument("webhook", metavar="WEBHOOK")
def webhook_show(session: Session, webhook: str) -> None:
    """Show a webhook and how it stands."""
    found = session.client.get_webhook(_find(session, webhook))
    session.answer(found, [found.id], views.webhook(found))


@verb(webhook, "create")
@click.argument("name")
@click.argument("address", metavar="URL")
@click.option(
    "--event",
    "-e",
    "events",
    multiple=True,
    metavar="KIND",
    help="What it is to hear: a kind of event such as stage.moved, a family such as 'rollout.*'; all when "
    "left out.",
)
@click.option("--project", default="default", show_default=True, metavar="NAME", help="Whose events.")
@click.option("--model", metavar="NAME", help="Only those of this model of the project.")
@click.option("--description", default="", metavar="TEXT", help="What it is for.")
@click.option(
    "--secret",
    metavar="env:NAME|file:NAME",
    help="Where the server finds the secret; one is made and printed when left out.",
)
def webhook_create(
    session: Session,
    name: str,
    address: str,
    events: tuple[str, ...],
    project: str,
    model: str | None,
    description: str,
    secret: str | None,
) -> None:
    """Have URL told what happens from now on. The secret of its signatures is printed once."""
    made = session.client.create_webhook(
        name,
        address,
        events or ("*",),
        project=project,
        model=model,
        description=description,
        secret=secret,
    )
    session.answer(made, [made.webhook.id], views.made(made))
    if made.secret is not None:
        session.say("This is the only time that the secret is shown.")


@verb(webhook, "test")
@click.argument("webhook", metavar="WEBHOOK")
@click.option("--event", metavar="NAME", help="Of MLflow's events: which; the first when left out.")
def webhook_test(session: Session, webhook: str, event: str | None) -> None:
    """Send an example now; exit code 1 when the receiver does not take it."""
    found = session.client.test_webhook(_find(session, webhook), event=event)
    session.answer(found, ["delivered" if found.delivered else "failed"], views.trial(found))
    if not found.delivered:
        raise click.exceptions.Exit(1)


@verb(webhook, "deliveries")
@click.argument("webhook", metavar="WEBHOOK")
@click.option(
    "--state", type=click.Choice(["waiting", "delivered", "failed"]), help="Only those in this state."
)
@limit
def webhook_deliveries(session: Session, webhook: str, state: str | None, limit: int) -> None:
    """Show what was sent, the newest event first, and what the receiver said."""
    found = session.client.list_deliveries(_find(session, webhook), state=state, limit=limit).whole()
    session.answer(found, (one.id for one in found.items), views.deliveries(found.items))


@verb(webhook, "replay")
@click.argument("webhook", metavar="WEBHOOK")
@click.option("--event", "sequence", type=click.IntRange(1), metavar="N", help="The messages of event N.")
@click.option("--after", type=click.IntRange(0), metavar="N", help="Everything after event N, in order.")
def webhook_replay(session: Session, webhook: str, sequence: int | None, after: int | None) -> None:
    """Send messages again, under the ids that they had."""
    if (sequence is None) == (after is None):
        raise click.UsageError("Say --event N for one event, or --after N for everything after it.")
    found = session.client.replay_webhook(_find(session, webhook), sequence=sequence, after=after)
    session.answer(found, [str(found.cursor)], views.replayed(found))


@verb(webhook, "enable")
@click.argument("webhook", metavar="WEBHOOK")
def webhook_enable(session: Session, webhook: str) -> None:
    """Have a webhook go on from where it stood; you answer for it from then on."""
    found = session.client.enable_webhook(_find(session, webhook))
    session.answer(found, [found.id], views.webhook(found))


@verb(webhook, "disable")
@click.argument("webhook", metavar="WEBHOOK")
@click.option("-m", "--message", "reason", metavar="WHY", help="Why; people read it later.")
def webhook_disable(session: Session, webhook: str, reason: str | None) -> None:
    """Have a webhook wait; what happens meanwhile is delivered when it is enabled."""
    found = session.client.disable_webhook(_find(session, webhook), reason=reason)
    session.answer(found, [found.id], views.webhook(found))


@verb(webhook, "rotate")
@click.argument("webhook", metavar="WEBHOOK")
def webhook_rotate(session: Session, webhook: str) -> None:
    """Make another secret, printed once; the former one signs along for a day."""
    made = session.client.rotate_webhook(_find(session, webhook))
    session.answer(made, [made.webhook.id], views.made(made))
    session.say("This is the only time that the secret is shown.")


@verb(webhook, "delete")
@click.argument("webhook", metavar="WEBHOOK")
@yes
def webhook_delete(session: Session, webhook: str, yes: bool) -> None:
    """Delete a webhook with the record of its deliveries."""
    which = _find(session, webhook)
    session.confirm(f"the webhook {webhook}", webhook, yes)
    done = session.client.delete_webhook(which)
    session.answer(done, [which], lambda screen: screen.line(f"Deleted {webhook}."))
