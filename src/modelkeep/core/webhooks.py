"""Webhooks: what a subscription is, which events it wants, how a delivery is signed, and when it is retried.

The outbox is the event log: a webhook is a cursor into it. A delivery is one message that one event makes for
one webhook; its id is made of the two and so is the same on every attempt, also after a restart, so that a
receiver can drop what it has had. What a message says is `webhook_payloads`' part; nothing here stores or
sends.

Signatures are those of Standard Webhooks (HMAC-SHA256 over `id.timestamp.body`); a webhook that was made in
MLflow's words is signed under MLflow's header names as well.
"""

import base64
import binascii
import hashlib
import hmac
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from enum import StrEnum
from fnmatch import fnmatchcase
from urllib.parse import urlsplit

from msgspec import Struct

from modelkeep.core import errors, values
from modelkeep.core.events import EventKind
from modelkeep.core.values import ModelName

# Limits of webhooks; each with the reason for its size.
WEBHOOKS_MAX = 100
"""Webhooks of a project: each is a receiver that somebody looks after."""
EVENTS_MAX = 50
"""Words of one subscription: there are not many more kinds of event."""
URL_MAX = 2_000
"""Characters of an address, as browsers and proxies have it."""
DESCRIPTION_MAX = 1_000
"""Characters of a description: one line says what a webhook is for."""
SECRET_MAX = 1_000
"""Characters of a secret that somebody brings along."""
SECRET_BYTES = 32
"""Random bytes of a secret that is made here; Standard Webhooks asks for 24 to 64."""
PAGE_MAX = 200
"""Deliveries of a page: each comes with its attempts."""
RETRIES_S = (5, 30, 120, 600, 1_800, 3_600, 7_200, 14_400, 28_800, 28_800)
"""How long after each failed attempt the next one follows: about a day in all. Then the delivery is set aside
as failed, and the next one gets its turn."""
JITTER = 0.2
"""By how much of itself a wait is stretched or shortened, so that many do not come back at one moment."""
RETRY_AFTER_MAX_S = 3_600.0
"""How long a receiver may have us wait by its own word."""
FAILED_MAX = 5
"""Deliveries in a row that are set aside before the webhook is disabled: its receiver is gone."""
ROTATION_S = 24 * 3_600.0
"""How long a secret that was replaced still signs beside the new one."""

PREFIX = "whsec_"


class Style(StrEnum):
    """Whose messages a webhook gets: Modelkeep's own, or those that MLflow's server would send."""

    MODELKEEP = "modelkeep"
    MLFLOW = "mlflow"


class WebhookStatus(StrEnum):
    """Whether deliveries are made."""

    ACTIVE = "active"
    DISABLED = "disabled"


class Webhook(Struct, frozen=True, kw_only=True):
    """A subscription to the events of a project, or of one of its models.

    Attributes:
        events: of Modelkeep's style, kinds of event or patterns of them (`stage.moved`, `rollout.*`, `*`); of
            MLflow's, words like `model_version.created`.
        secret: where the key of its signatures is: `generated` or `given` (kept here, encrypted),
            `env:NAME`, `file:NAME`, or `none`.
        answerable: whose rights it has: it is told what this person may read at the moment of delivery.
        disabled_because: why it is disabled.
        cursor: the last event it is done with. failures: failed attempts of the delivery that it is at.
    """

    id: str
    name: str
    project: str
    model: str | None = None
    url: str
    events: tuple[str, ...]
    style: Style = Style.MODELKEEP
    description: str = ""
    status: WebhookStatus = WebhookStatus.ACTIVE
    disabled_because: str | None = None
    secret: str = "generated"
    answerable: str
    created_at: datetime
    created_by: str
    updated_at: datetime
    cursor: int = 0
    failures: int = 0
    next_at: datetime | None = None

    @property
    def scope(self) -> ModelName | str:
        """What it belongs to: a model, or a whole project."""
        return ModelName(self.project, self.model) if self.model is not None else self.project


class DeliveryState(StrEnum):
    """What became of a delivery."""

    WAITING = "waiting"  # it will be tried again
    DELIVERED = "delivered"
    FAILED = "failed"  # set aside after its last attempt; it can be sent again by hand


class Attempt(Struct, frozen=True, kw_only=True):
    """One try. `status` is the receiver's; without an answer `error` says what went wrong. Of what was sent
    and answered only hashes are kept."""

    number: int
    at: datetime
    status: int | None = None
    error: str | None = None
    duration_ms: float
    body_sha256: str
    answer_sha256: str | None = None


class Delivery(Struct, frozen=True, kw_only=True):
    """One message to one webhook, with its attempts.

    `part` counts the messages that one event makes (MLflow has one for each tag); `requested` says that
    somebody asked for it to be sent again; `tries` are the failed attempts since it was first due, or last
    asked for.
    """

    id: str
    webhook: str
    sequence: int
    part: int
    event: str
    state: DeliveryState
    requested: bool = False
    tries: int = 0
    next_at: datetime | None = None
    created_at: datetime
    finished_at: datetime | None = None
    attempts: tuple[Attempt, ...] = ()


class NewWebhook(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A webhook to make.

    `secret` is `env:NAME` or `file:NAME` for one that the server is to find, any other text for one that is
    brought along; left out, one is made.
    """

    name: str
    url: str
    events: tuple[str, ...]
    project: str = values.DEFAULT_PROJECT
    model: str | None = None
    description: str = ""
    style: Style = Style.MODELKEEP
    secret: str | None = None
    status: WebhookStatus = WebhookStatus.ACTIVE


class WebhookChange(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is to be otherwise; what is left out stays."""

    name: str | None = None
    url: str | None = None
    events: tuple[str, ...] | None = None
    description: str | None = None
    secret: str | None = None


class MadeWebhook(Struct, frozen=True, kw_only=True):
    """A webhook that was made or given another secret. A secret that was made here is in this answer and
    nowhere else."""

    webhook: Webhook
    secret: str | None = None

    def __repr__(self) -> str:
        return f"MadeWebhook(webhook={self.webhook!r}, secret='***')"


class Trial(Struct, frozen=True, kw_only=True):
    """What came of trying a receiver. Nothing of what it answered is told but its status."""

    delivered: bool
    status: int | None = None
    error: str | None = None
    duration_ms: float


class Replayed(Struct, frozen=True, kw_only=True):
    """What will be sent again: so many messages of one event, or everything after the cursor."""

    messages: int | None = None
    cursor: int


class Target(Struct, frozen=True, kw_only=True):
    """An address taken apart: where to connect, and what to ask for."""

    scheme: str
    host: str
    port: int
    path: str

    @property
    def host_header(self) -> str:
        """The name of the receiver as the request says it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        usual = {"https": 443, "http": 80}[self.scheme]
        return host if self.port == usual else f"{host}:{self.port}"


class Sent(Struct, frozen=True, kw_only=True):
    """What came of sending one message: the receiver's status, or why there is none.

    `retry_after_s` is for how long the receiver asked to be left alone.
    """

    status: int | None
    error: str | None
    duration_ms: float
    answer_sha256: str | None = None
    retry_after_s: float | None = None


MLFLOW_EVENTS: tuple[str, ...] = (
    "registered_model.created",
    "model_version.created",
    "model_version_tag.set",
    "model_version_tag.deleted",
    "model_version_alias.created",
    "model_version_alias.deleted",
    "prompt.created",
    "prompt_version.created",
    "prompt_tag.set",
    "prompt_tag.deleted",
    "prompt_version_tag.set",
    "prompt_version_tag.deleted",
    "prompt_alias.created",
    "prompt_alias.deleted",
    "budget_policy.exceeded",
)
"""What a subscription in MLflow's words may name. There are no budgets here, so the last one never comes."""

MLFLOW_SOURCES = frozenset(
    {
        EventKind.MODEL_CREATED,
        EventKind.MODEL_CHANGED,
        EventKind.VERSION_REGISTERED,
        EventKind.VERSION_CHANGED,
        EventKind.ALIAS_SET,
        EventKind.ALIAS_DELETED,
    }
)
"""The events that MLflow's messages are made of."""

UNHEARD = frozenset(
    {
        EventKind.PRINCIPAL_CREATED,
        EventKind.PRINCIPAL_DISABLED,
        EventKind.TOKEN_CREATED,
        EventKind.TOKEN_REVOKED,
        EventKind.GRANT_ADDED,
        EventKind.GRANT_REMOVED,
        EventKind.ACCESS_REFUSED,
    }
)
"""Events of the installation itself, which belong to no project: no webhook hears them."""


def check_url(text: str, *, http: bool = False) -> Target:
    """Take an address apart. What its name resolves to is judged at each delivery.

    Args:
        http: whether unencrypted deliveries are allowed.

    Raises:
        InvalidWebhook: it is none that can be delivered to.
    """
    if len(text) > URL_MAX or not text.isascii() or any(c <= " " or c in '\\\x7f"<>^`{|}' for c in text):
        raise _bad_url("write it in ASCII without spaces, a foreign name in its xn-- form", text)
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError as problem:
        raise _bad_url("its host or port cannot be read", text) from problem
    if parts.scheme not in ("https", "http"):
        raise _bad_url("begin it with https://", text)
    if parts.scheme == "http" and not http:
        raise _bad_url(
            "deliveries are encrypted; use https://, or have the server's administrator set webhook_http",
            text,
        )
    if not host or "%" in host or parts.netloc.endswith(":"):
        raise _bad_url("it names no host", text)
    if "@" in parts.netloc:
        raise _bad_url("take the user and password out; a receiver knows us by the signature", text)
    if parts.fragment or "#" in text:
        raise _bad_url("take out what follows the #", text)
    if port is None:
        port = 443 if parts.scheme == "https" else 80
    if port == 0:
        raise _bad_url("no receiver listens on port 0", text)
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Target(scheme=parts.scheme, host=host, port=port, path=path)


def _bad_url(why: str, text: str) -> errors.InvalidWebhook:
    return errors.InvalidWebhook(
        f"{values.quoted(text, 100)} cannot be a webhook's address: {why}.", field="url"
    )


def check_events(style: Style, words: Iterable[str]) -> tuple[str, ...]:
    """The words of a subscription, each once.

    Raises:
        InvalidWebhook: none, too many, or one that no event answers to.
    """
    found = tuple(dict.fromkeys(words))
    if not 1 <= len(found) <= EVENTS_MAX:
        raise errors.InvalidWebhook(f"Name 1 to {EVENTS_MAX} events.", field="events")
    for word in found:
        if style is Style.MLFLOW:
            known = word in MLFLOW_EVENTS
        else:
            known = any(_matches(word, kind) for kind in EventKind if kind not in UNHEARD)
        if not known:
            hint = "model_version.created" if style is Style.MLFLOW else "stage.moved, stage.*, or * for all"
            raise errors.InvalidWebhook(
                f"No event is called {values.quoted(word, 60)}; name one like {hint}.", field="events"
            )
    return found


def _matches(word: str, kind: str) -> bool:
    plain = word.replace(".", "").replace("_", "").replace("*", "")
    return (plain == "" or (plain.isascii() and plain.isalnum())) and fnmatchcase(kind, word)


def wants(webhook: Webhook, kind: EventKind) -> bool:
    """Whether an event of this kind may make a message for the webhook."""
    match webhook.style:
        case Style.MLFLOW:
            return kind in MLFLOW_SOURCES
        case Style.MODELKEEP:
            return kind not in UNHEARD and any(_matches(word, kind) for word in webhook.events)


# ------------------------------------------------------------------------------------------------- deliveries


def delivery_id(webhook: str, sequence: int, part: int) -> str:
    """The id of a message: the same on every attempt, and no other message's."""
    digest = hashlib.sha256(f"{webhook}:{sequence}:{part}".encode()).digest()
    return "msg_" + base64.b32encode(digest[:20]).decode().lower()


def retry_at(
    delivery: str, attempt: int, now: datetime, retry_after_s: float | None = None
) -> datetime | None:
    """When a delivery is tried again after its attempt of this number failed; None when that was the last.

    The jitter is a hash of the delivery and the attempt: the same question has the same answer.

    Args:
        attempt: 1 for the first.
        retry_after_s: for how long the receiver asked to be left alone.
    """
    if attempt > len(RETRIES_S):
        return None
    digest = hashlib.sha256(f"{delivery}:{attempt}".encode()).digest()
    share = int.from_bytes(digest[:4], "big") / 2**32  # 0 to 1
    wait_s = RETRIES_S[attempt - 1] * (1 + JITTER * (2 * share - 1))
    if retry_after_s is not None:
        wait_s = max(wait_s, min(retry_after_s, RETRY_AFTER_MAX_S))
    return now + timedelta(seconds=wait_s)


def succeeded(status: int | None) -> bool:
    """Whether a receiver has taken a message: any 2xx."""
    return status is not None and 200 <= status < 300


GONE = 410
"""The status by which a receiver says that it wants no more."""


# ------------------------------------------------------------------------------------------------- signatures


def new_secret(entropy: bytes) -> str:
    """A secret in Standard Webhooks' form.

    Args:
        entropy: `SECRET_BYTES` random bytes.
    """
    return PREFIX + base64.b64encode(entropy).decode()


def check_secret(text: str) -> str:
    """A secret that was brought along.

    Raises:
        InvalidWebhook: empty, too long, with control characters, or `whsec_` before what is no base64 of 24
            to 64 bytes.
    """
    if not 1 <= len(text) <= SECRET_MAX or not text.isprintable():
        raise errors.InvalidWebhook(
            f"A secret has 1 to {SECRET_MAX:,} printable characters; leave it out to have one made.",
            field="secret",
        )
    if text.startswith(PREFIX):
        try:
            key = base64.b64decode(text.removeprefix(PREFIX), validate=True)
        except binascii.Error:
            key = b""
        if not 24 <= len(key) <= 64:
            raise errors.InvalidWebhook(
                f"After {PREFIX} a secret has 24 to 64 bytes in base64; leave it out to have one made.",
                field="secret",
            )
    return text


def sign(key: bytes, delivery: str, timestamp: int, body: bytes) -> str:
    """A signature of Standard Webhooks: `v1,` and the base64 of HMAC-SHA256 over `id.timestamp.body`.

    Args:
        timestamp: seconds since 1970, of this attempt.
    """
    signed = f"{delivery}.{timestamp}.".encode() + body
    return "v1," + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()


def key_of(secret: str) -> bytes:
    """What is signed with: what follows `whsec_` decoded, any other text as it is."""
    if secret.startswith(PREFIX):
        return base64.b64decode(secret.removeprefix(PREFIX))
    return secret.encode()


def headers(
    style: Style, delivery: str, timestamp: int, body: bytes, secrets: Sequence[str]
) -> dict[str, str]:
    """The headers that say what a message is and prove who sent it.

    Args:
        secrets: the one that holds, first, and those that were replaced a short while ago; none for a
            webhook that is not signed.
    """
    found = {"webhook-id": delivery, "webhook-timestamp": str(timestamp)}
    if secrets:
        signatures = [sign(key_of(secret), delivery, timestamp, body) for secret in secrets]
        found["webhook-signature"] = " ".join(signatures)
    if style is Style.MLFLOW:
        found |= {"X-MLflow-Delivery-Id": delivery, "X-MLflow-Timestamp": str(timestamp)}
        if secrets:  # MLflow's key is the text itself, whatever it begins with
            found["X-MLflow-Signature"] = sign(secrets[0].encode(), delivery, timestamp, body)
    return found
