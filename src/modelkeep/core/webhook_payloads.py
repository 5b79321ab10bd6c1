"""What a webhook's messages say: Modelkeep's own document, and those that MLflow's server would send.

A message is made of its event alone (and a few facts that MLflow wants beside it), in one canonical encoding,
so that every attempt sends the same bytes as long as those facts stand. How it is signed and when it is sent
is `webhooks`' part.
"""

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any, NamedTuple

from msgspec import Struct

from modelkeep.core import codec
from modelkeep.core.events import Event, EventKind
from modelkeep.core.values import DEFAULT_PROJECT, Actor, parse_model_name
from modelkeep.core.webhooks import Style, Webhook

PAYLOAD_MAX_BYTES = 256 * 1024
"""A message. What an event holds beyond that is left out, and the message says so: receivers refuse more."""

IS_PROMPT_TAG = "mlflow.prompt.is_prompt"
_PROMPT_TYPE_TAG = "mlflow.prompt.prompt_type"
_PROMPT_TEXT_TAG = "mlflow.prompt.text"
_EXAMPLE = "example"


class Message(NamedTuple):
    """One message: its place among all of its event, what it is called in a subscription, and its bytes."""

    part: int
    event: str
    body: bytes


class Notice(Struct, frozen=True, kw_only=True):
    """Modelkeep's own message, as documented in docs/how-to/webhooks.md.

    Attributes:
        type: the kind of event. timestamp: when it happened. sequence: its number in the audit log.
        data: the event's body; empty with `truncated` where it would be too large.
    """

    type: str
    timestamp: datetime
    sequence: int
    project: str
    subject: str
    model: str | None
    number: int | None
    actor: Actor
    reason: str | None
    data: dict[str, Any]
    truncated: bool = False


class Facts(NamedTuple):
    """What MLflow's messages say beside the event: of the model, whether it is a prompt; of the version,
    where it came from."""

    prompt: bool = False
    source: str = ""
    run_id: str | None = None


def messages(webhook: Webhook, event: Event, facts: Facts) -> list[Message]:
    """The messages that an event makes for a webhook, in order; none where it makes none."""
    match webhook.style:
        case Style.MODELKEEP:
            return [_notice(webhook.project, event)]
        case Style.MLFLOW:
            made = _mlflow(event, facts)
            return [
                Message(part, word, _document(webhook.project, event.at, word, data))
                for part, (word, data) in enumerate(made)
                if word in webhook.events
            ]


def example(webhook: Webhook, word: str, now: datetime) -> Message:
    """A message to try a receiver with: of the right shape, about nothing that is there."""
    if webhook.style is Style.MLFLOW:
        return Message(0, word, _document(webhook.project, now, word, _examples(word)))
    notice = Notice(
        type="webhook.test",
        timestamp=now,
        sequence=0,
        project=webhook.project,
        subject=f"webhook/{webhook.id}",
        model=None,
        number=None,
        actor=Actor(name=_EXAMPLE),
        reason=None,
        data={"webhook": webhook.id, "events": list(webhook.events)},
    )
    return Message(0, "webhook.test", codec.canonical(notice))


def _notice(project: str, event: Event) -> Message:
    def made(data: dict[str, Any], *, truncated: bool = False) -> bytes:
        notice = Notice(
            type=event.kind.value,
            timestamp=event.at,
            sequence=event.sequence,
            project=project,
            subject=event.subject,
            model=event.model,
            number=event.number,
            actor=event.actor,
            reason=event.reason,
            data=data,
            truncated=truncated,
        )
        return codec.canonical(notice)

    body = made(event.body)
    if len(body) > PAYLOAD_MAX_BYTES:
        body = made({}, truncated=True)
    return Message(0, event.kind.value, body)


# --------------------------------------------------------------------------------------------- MLflow's words


def _document(project: str, at: datetime, word: str, data: dict[str, Any]) -> bytes:
    entity, _, action = word.partition(".")
    document = {"entity": entity, "action": action, "timestamp": at.isoformat(), "data": data}
    if project != DEFAULT_PROJECT:
        document["workspace"] = project
    return codec.canonical(document)


def _mlflow(event: Event, facts: Facts) -> Iterator[tuple[str, dict[str, Any]]]:
    """The words and data of an event, whatever the webhook wants of them."""
    if event.model is None:
        return
    name, body = parse_model_name(event.model).name, event.body
    tags: dict[str, str] = dict(body.get("tags") or {})
    match event.kind:
        case EventKind.MODEL_CREATED:
            shown = {"name": name, "tags": tags, "description": body.get("description") or ""}
            if _is_prompt(tags):
                yield "prompt.created", {**shown, "tags": _without(tags)}
            else:
                yield "registered_model.created", shown
        case EventKind.VERSION_REGISTERED:
            yield _version(name, event, tags, facts)
        case EventKind.ALIAS_SET:
            entity = "prompt_alias" if facts.prompt else "model_version_alias"
            number = str(body.get("to", event.number))
            yield f"{entity}.created", {"name": name, "alias": body.get("alias"), "version": number}
        case EventKind.ALIAS_DELETED:
            entity = "prompt_alias" if facts.prompt else "model_version_alias"
            yield f"{entity}.deleted", {"name": name, "alias": body.get("alias")}
        case EventKind.VERSION_CHANGED:
            entity = "prompt_version_tag" if facts.prompt else "model_version_tag"
            yield from _tags(entity, {"name": name, "version": str(event.number)}, tags)
        case EventKind.MODEL_CHANGED if facts.prompt:
            yield from _tags("prompt_tag", {"name": name}, tags)
        case _:
            return


def _version(name: str, event: Event, tags: dict[str, str], facts: Facts) -> tuple[str, dict[str, Any]]:
    shown = {"name": name, "version": str(event.number), "description": event.body.get("description") or None}
    if _is_prompt(tags) or facts.prompt:
        template = tags.get(_PROMPT_TEXT_TAG)
        return "prompt_version.created", {**shown, "template": template, "tags": _without(tags, text=True)}
    return "model_version.created", {
        **shown,
        "source": facts.source,
        "run_id": facts.run_id,
        "tags": tags,
    }


def _tags(
    entity: str, about: dict[str, str], moved: Mapping[str, Any]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """One message for each tag that was set or removed."""
    for key, move in moved.items():
        if move["to"] is None:
            yield f"{entity}.deleted", {**about, "key": key}
        else:
            yield f"{entity}.set", {**about, "key": key, "value": move["to"]}


def _is_prompt(tags: Mapping[str, str]) -> bool:
    return tags.get(IS_PROMPT_TAG, "").lower() == "true"


def _without(tags: Mapping[str, str], *, text: bool = False) -> dict[str, str]:
    """A prompt's tags without those that only mark it as one."""
    own = {IS_PROMPT_TAG, _PROMPT_TYPE_TAG} | ({_PROMPT_TEXT_TAG} if text else set())
    return {key: value for key, value in tags.items() if key not in own}


def _examples(word: str) -> dict[str, Any]:
    """Data of the right shape for one of MLflow's words."""
    tags = {f"{_EXAMPLE}_key": f"{_EXAMPLE}_value"}
    entity, _, action = word.partition(".")
    named: dict[str, Any] = {"name": f"{_EXAMPLE}_{'prompt' if entity.startswith('prompt') else 'model'}"}
    match entity:
        case "registered_model" | "prompt":
            return {**named, "tags": tags, "description": f"an {_EXAMPLE}"}
        case "model_version":
            more = {"source": "models:/m-0", "run_id": "0" * 32, "tags": tags, "description": None}
            return {**named, "version": "1", **more}
        case "prompt_version":
            return {**named, "version": "1", "template": "Hello {{name}}!", "tags": tags, "description": None}
        case "model_version_alias" | "prompt_alias":
            alias = {**named, "alias": f"{_EXAMPLE}_alias"}
            return {**alias, "version": "1"} if action == "created" else alias
        case "budget_policy":
            return {"budget_policy_id": _EXAMPLE, "budget_unit": "USD", "budget_amount": 1.0,
                    "current_spend": 2.0, "duration_unit": "DAYS", "duration_value": 1,
                    "target_scope": "GLOBAL", "workspace": DEFAULT_PROJECT, "target_value": None,
                    "window_start": 0}  # fmt: skip
        case _:
            about = named if entity == "prompt_tag" else {**named, "version": "1"}
            key = {**about, "key": f"{_EXAMPLE}_key"}
            return {**key, "value": f"{_EXAMPLE}_value"} if action == "set" else key
