"""The spine: one appended, hash-chained record for everything that happens.

The audit log is the sequence of events; a subscriber is a cursor into it; what people read as history,
production intervals or time travel is a fold over it. Order is by sequence, never by clock: two clocks may
disagree, one sequence cannot. This file knows how events are made, linked and checked; it neither stores nor
delivers them.

Each event's leaf is SHA256(0x00 || canonical event), the leaf hash of RFC 6962, so that Merkle proofs can be
taken over the same leaves; the chain is SHA256(0x02 || previous || leaf), so that one missing, added, moved
or changed event breaks every later link.
"""

import hashlib
import re
from collections.abc import Iterable
from datetime import datetime
from enum import StrEnum
from typing import Any, NamedTuple

from msgspec import Struct

from modelkeep.core import codec, errors
from modelkeep.core.values import Actor

GENESIS = hashlib.sha256(b"modelkeep.chain.v1").digest()
"""What the first event is linked to."""
_HEAD = re.compile(r"([0-9]{1,18}):([0-9a-fA-F]{64})")


class EventKind(StrEnum):
    """Every kind of event, `subject.verb_past`. The body of each is described beside it."""

    MODEL_CREATED = "model.created"  # description, owner, tags, stages
    MODEL_CHANGED = "model.changed"  # what changed, from -> to
    MODEL_RENAMED = "model.renamed"  # the full names, from -> to; filed under the new one
    MODEL_DELETED = "model.deleted"
    VERSION_REGISTERED = "version.registered"  # number, semver, digest, record, parent, bump, reasons
    VERSION_CHANGED = "version.changed"  # tags and description, from -> to
    VERSION_DELETED = "version.deleted"
    VERSION_TOMBSTONED = "version.tombstoned"  # why it was taken back
    VERSION_CLEARED = "version.cleared"  # tombstone lifted
    VERSION_YANKED = "version.yanked"  # why nobody is to choose it any more
    VERSION_UNYANKED = "version.unyanked"  # it may be chosen again; why it had been yanked
    ALIAS_SET = "alias.set"  # alias, from, to, protected
    ALIAS_DELETED = "alias.deleted"
    STAGE_MOVED = (
        "stage.moved"  # stage, from -> to, displaced, cause: promotion | rollback | rollout | transition
    )
    REQUEST_OPENED = "request.opened"
    REQUEST_REVIEWED = "request.reviewed"  # approve | reject | comment, with the digests that were seen
    REQUEST_DISMISSED = "request.approvals_dismissed"  # which approvals no longer count, and why
    REQUEST_CLOSED = "request.closed"  # promoted | rejected | withdrawn | expired
    PROMOTION_GRANTED = "promotion.granted"  # every gate's verdict, where a rollout has to succeed first
    PROMOTION_DENIED = "promotion.denied"  # every gate's verdict
    POLICY_CHANGED = "policy.changed"  # scope, version, digest
    STAGES_CHANGED = "stages.changed"  # the graph of a model
    ENDPOINT_CREATED = "endpoint.created"  # the stage or alias that it follows, and its settings
    ENDPOINT_CHANGED = "endpoint.changed"  # its settings, or the version it serves after a rollback
    ENDPOINT_DELETED = "endpoint.deleted"
    ENDPOINT_DISAGREED = "endpoint.disagreed"  # it does not serve what it follows: how, and what is done
    ENDPOINT_AGREED = "endpoint.agreed"  # it serves again what it follows
    ENDPOINT_DRILL_BEGUN = (
        "endpoint.drill_begun"  # a drill that may be; what spoke against it, and why anyway
    )
    ENDPOINT_DRILL_REFUSED = "endpoint.drill_refused"  # what stood in its way, and when it may be
    ENDPOINT_DRILLED = "endpoint.drilled"  # a rollback was rehearsed: what it took, and at which gateway
    ROLLOUT_STARTED = "rollout.started"
    ROLLOUT_STEPPED = "rollout.stepped"  # step, weight, the evidence it was decided on
    ROLLOUT_TAKEN_OUT = "rollout.taken_out"  # some versions of an A/B test, which goes on with the others
    ROLLOUT_HELD = "rollout.held"
    ROLLOUT_RESUMED = "rollout.resumed"
    ROLLOUT_SUCCEEDED = "rollout.succeeded"
    ROLLOUT_ROLLING_BACK = "rollout.rolling_back"  # why, and the evidence: traffic is on its way back
    ROLLOUT_ROLLED_BACK = "rollout.rolled_back"  # the gateways have confirmed it, or none answered
    ROLLOUT_FAILED = "rollout.failed"
    ROLLOUT_CANCELLED = "rollout.cancelled"
    ROLLOUT_SUPERSEDED = "rollout.superseded"  # another rollout of the endpoint took its place
    ROLLOUT_CONCLUDED = "rollout.concluded"  # a shadow or A/B test has ended, with what it showed
    PRINCIPAL_CREATED = "principal.created"
    PRINCIPAL_DISABLED = "principal.disabled"
    TOKEN_CREATED = "token.created"
    TOKEN_REVOKED = "token.revoked"
    GRANT_ADDED = "grant.added"
    GRANT_REMOVED = "grant.removed"
    ACCESS_REFUSED = "access.refused"
    EXPERIMENT_CREATED = "experiment.created"  # name, project, tags
    EXPERIMENT_CHANGED = "experiment.changed"  # name and tags, from -> to
    EXPERIMENT_DELETED = "experiment.deleted"  # how many runs went with it
    EXPERIMENT_RESTORED = "experiment.restored"  # how many runs came back with it
    RUN_STARTED = "run.started"  # experiment, name, user
    RUN_ENDED = "run.ended"  # status, and a digest of all that it had logged by then
    RUN_DELETED = "run.deleted"
    RUN_RESTORED = "run.restored"
    LOGGED_MODEL_CREATED = "logged_model.created"  # experiment, name, run
    LOGGED_MODEL_FINALIZED = "logged_model.finalized"  # ready or failed
    LOGGED_MODEL_DELETED = "logged_model.deleted"
    WEBHOOK_CREATED = "webhook.created"  # name, project, the receiver's host, the events it wants
    WEBHOOK_CHANGED = "webhook.changed"  # project, and what changed: from -> to; never a secret
    WEBHOOK_DELETED = "webhook.deleted"  # name, project
    INTEGRITY_FAILED = "integrity.failed"  # fsck found bytes that are not what was written


class Event(Struct, frozen=True, kw_only=True):
    """One thing that happened.

    `subject` is what it happened to, in the reference grammar where there is one (`churn:2.1.0`,
    `endpoint/churn`). `model` is the full model name where one is concerned, so that a model's history is one
    indexed read. `body` holds from -> to and evidence; secrets and features never enter it.
    """

    sequence: int
    kind: EventKind
    at: datetime
    actor: Actor
    subject: str
    model: str | None = None
    number: int | None = None
    reason: str | None = None
    request_id: str | None = None
    body: dict[str, Any] = {}


class ChainedEvent(Struct, frozen=True, kw_only=True):
    """An event as it is stored: with its leaf and its link, both in hexadecimal."""

    event: Event
    leaf: str
    link: str


def leaf_hash(event: Event) -> bytes:
    """RFC 6962 leaf hash of the canonical encoding."""
    return _leaf(codec.canonical(event))


def _leaf(document: bytes) -> bytes:
    return hashlib.sha256(b"\x00" + document).digest()


class Linked(NamedTuple):
    """An event linked to the one before it: its canonical encoding, and two hashes of 32 bytes."""

    document: bytes
    leaf: bytes
    link: bytes


def link(previous: bytes, event: Event) -> Linked:
    """Link an event to the one before it.

    Args:
        previous: the former event's link (32 bytes), or GENESIS.

    Raises:
        Invalid: the body holds a number or a text that has no canonical form.
    """
    document = codec.canonical(event)
    leaf = _leaf(document)
    return Linked(document, leaf, hashlib.sha256(b"\x02" + previous + leaf).digest())


def chain(previous: bytes, event: Event) -> ChainedEvent:
    """The same in the form that is stored. Arguments and errors as in `link`."""
    linked = link(previous, event)
    return ChainedEvent(event=event, leaf=linked.leaf.hex(), link=linked.link.hex())


class ChainReport(Struct, frozen=True, kw_only=True):
    """The result of walking a chain: how many events hold, and the link of the last one."""

    events: int
    head: str
    first_at: datetime | None = None
    last_at: datetime | None = None


class KnownHead(NamedTuple):
    """A head that somebody kept from an earlier walk, outside of the registry: an event's number and its link
    in hexadecimal. Whoever can rewrite the whole log cannot rewrite this."""

    sequence: int
    link: str

    def __str__(self) -> str:
        return f"{self.sequence}:{self.link}"


def parse_head(text: str) -> KnownHead:
    """Read `SEQ:HASH`, as a verification prints it.

    Raises:
        Invalid: it has another form.
    """
    match = _HEAD.fullmatch(text.strip())
    if match is None:
        raise errors.Invalid(
            "A head is SEQ:HASH, a number and 64 hexadecimal digits, as 'modelkeep audit verify' prints it.",
            field="head",
        )
    return KnownHead(int(match[1]), match[2].lower())


def verify(
    events: Iterable[ChainedEvent],
    *,
    after: int = 0,
    previous: bytes = GENESIS,
    known: KnownHead | None = None,
) -> ChainReport:
    """Walk a chain and recompute every leaf and link.

    Args:
        after: the sequence that `previous` is the link of, when a part is verified.
        known: a head from an earlier walk: the chain must hold that event with that link.

    Raises:
        BrokenChain: names the first event that does not fit, and how; or says that the known head is no part
            of this chain.
    """
    _expect(known, after, previous)
    expected = after + 1
    first_at = last_at = None
    for stored in events:
        event = stored.event
        if event.sequence != expected:
            raise errors.BrokenChain(
                f"The audit log jumps to event {event.sequence} where event {expected} should stand: events "
                "were removed, added or reordered. Compare with a backup.",
                sequence=expected,
            )
        linked = link(previous, event)
        if linked.leaf.hex() != stored.leaf or linked.link.hex() != stored.link:
            what = "content" if linked.leaf.hex() != stored.leaf else "link"
            raise errors.BrokenChain(
                f"Event {event.sequence} ({event.kind} {event.subject}) was changed after it was written: "
                f"its {what} does not match its hash. Compare with a backup.",
                sequence=event.sequence,
            )
        previous = linked.link
        _expect(known, expected, previous)
        first_at = first_at or event.at
        last_at = event.at
        expected += 1
    if known is not None and known.sequence >= expected:
        raise errors.BrokenChain(
            f"The audit log ends at event {expected - 1}, but event {known.sequence} was in it when this "
            "head was printed: events were cut off at its end. Compare with a backup.",
            sequence=expected,
        )
    return ChainReport(events=expected - 1 - after, head=previous.hex(), first_at=first_at, last_at=last_at)


def _expect(known: KnownHead | None, sequence: int, link: bytes) -> None:
    """Refuse a chain that has another link than the known one at its event."""
    if known is not None and known.sequence == sequence and known.link != link.hex():
        raise errors.BrokenChain(
            f"Event {sequence} has another link than this head says: the log was rewritten since the head "
            "was printed, or the head is of another registry. Compare with a backup.",
            sequence=sequence,
        )
