"""What an event has to say to a webhook: whether it belongs to its project, may be told to the person who
answers for it, and which messages it makes.

Reads only; when and how messages are sent is `deliveries`' part.
"""

from typing import NamedTuple

from modelkeep.core import errors
from modelkeep.core import webhook_payloads as payloads
from modelkeep.core import webhooks as core
from modelkeep.core.access import Caller, Verb, allowed
from modelkeep.core.events import Event, EventKind
from modelkeep.core.values import ModelName, parse_model_name
from modelkeep.core.webhook_payloads import Facts, Message
from modelkeep.core.webhooks import Style, Webhook
from modelkeep.service.act import Act
from modelkeep.store import catalog as catalog_store
from modelkeep.store import renames
from modelkeep.store import webhooks as store
from modelkeep.store.webhooks import Stored

PAGE = 200
"""Events that are read at a time."""
SCAN_MAX = 2_000
"""Events that one look for the next message goes through; the rest waits for the next look."""


class Scan(NamedTuple):
    """What a look through the log has found: the next event with its messages, or nothing up to `looked`;
    `more` says that it ended before the log did."""

    looked: int
    event: Event | None = None
    messages: tuple[Message, ...] = ()
    more: bool = False


def scan(act: Act, stored: Stored, caller: Caller) -> Scan:
    """Look for the next event that has something to say to a webhook and has not said it all."""
    looked, end = stored.cursor, stored.cursor + SCAN_MAX
    while looked < end:
        page = act.tx.events.after(looked, limit=PAGE)
        for chained in page:
            event = chained.event
            begun = stored.part if event.sequence == stored.cursor + 1 else 0
            rest = [one for one in messages_for(act, stored.webhook, event, caller) if one.part >= begun]
            if rest:
                return Scan(looked, event, tuple(rest))
            looked = event.sequence
        if len(page) < PAGE:
            return Scan(looked)
    return Scan(looked, more=True)


def messages_for(act: Act, webhook: Webhook, event: Event, caller: Caller) -> list[Message]:
    """The messages that an event makes for a webhook, in order; none where it is not for it."""
    if not core.wants(webhook, event.kind):
        return []
    about = _about(act, webhook, event)
    if about is None or not allowed(caller, Verb.READ, about):
        return []
    return payloads.messages(webhook, event, _facts(act, webhook, event))


def _about(act: Act, webhook: Webhook, event: Event) -> ModelName | str | None:
    """The model or project that an event is about, where that is the webhook's own."""
    if event.model is not None:
        model = _model_now(act, event.model, event.sequence)
        own = model.project == webhook.project and webhook.model in (None, model.name)
        return model if own else None
    if webhook.model is not None:
        return None
    said = event.body.get("project")
    project = said if isinstance(said, str) else _project_of(act, event)
    return project if project == webhook.project else None


def _model_now(act: Act, name: str, sequence: int) -> ModelName:
    """What a model is called now that an event knows under another name, perhaps."""
    return parse_model_name(renames.name_now(act.tx, name, sequence))


def _project_of(act: Act, event: Event) -> str | None:
    if event.kind is EventKind.POLICY_CHANGED:
        place = event.subject.removeprefix("policy/")
        return place.removesuffix("/") if place.endswith("/") else None
    return store.project_of(act.tx, event.subject)


def _facts(act: Act, webhook: Webhook, event: Event) -> Facts:
    """What MLflow's messages say beside the event, as it stands now."""
    if webhook.style is not Style.MLFLOW or event.model is None:
        return Facts()
    model = _model_now(act, event.model, event.sequence)
    try:
        tags = catalog_store.get_model(act.tx, model).tags
    except errors.ModelNotFound:
        tags = {}
    prompt = tags.get(payloads.IS_PROMPT_TAG, "").lower() == "true"
    if event.kind is not EventKind.VERSION_REGISTERED or event.number is None:
        return Facts(prompt=prompt)
    version = catalog_store.find(act.tx, catalog_store.BY_NUMBER, model, number=event.number)
    stated = version.provenance if version is not None else None
    source = stated.source if stated is not None else None
    return Facts(
        prompt=prompt,
        source=source or f"models:/{model.name}/{event.number}",
        run_id=stated.run_id if stated is not None else None,
    )
