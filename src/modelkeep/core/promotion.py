"""Who may move what where, and why: requests, approvals, and the one decision.

`decide` takes the facts, the policy and the people's votes and says Granted, AwaitingApproval or Denied, with
every gate's answer. It is pure: what it is given is stored with the decision, so it can be asked again years
later. Moving the stage is the service's part; moving traffic is `rollout`'s.
"""

from collections.abc import Collection, Sequence
from datetime import datetime, timedelta
from enum import StrEnum

from msgspec import Struct

from modelkeep.core import errors, policy
from modelkeep.core.catalog import ModelVersion, StageGraph
from modelkeep.core.policy import Facts, GateResult, Policy
from modelkeep.core.values import Actor, Digest, ModelName


class RequestState(StrEnum):
    """Where a promotion request stands."""

    OPEN = "open"
    PROMOTED = "promoted"
    REJECTED = "rejected"
    WITHDRAWN = "withdrawn"
    EXPIRED = "expired"


class Vote(StrEnum):
    """What a reviewer says."""

    APPROVE = "approve"
    REJECT = "reject"
    COMMENT = "comment"


class Seen(Struct, frozen=True, kw_only=True):
    """What lay on the table when somebody voted. An approval counts for exactly this and nothing else."""

    version: Digest
    policy: Digest
    evidence: Digest


class Approval(Struct, frozen=True, kw_only=True):
    """One person's decision. `dismissed` says why it no longer counts."""

    by: Actor
    vote: Vote
    roles: tuple[str, ...]
    comment: str = ""
    seen: Seen
    at: datetime
    dismissed: str | None = None


class PromotionRequest(Struct, frozen=True, kw_only=True):
    """A reviewable request to move a version to a stage."""

    id: str
    model: ModelName
    number: int
    semver: str
    digest: Digest
    to: str
    reason: str
    ticket: str | None = None
    state: RequestState = RequestState.OPEN
    requested_by: Actor
    created_at: datetime
    expires_at: datetime
    closed_at: datetime | None = None
    closed_by: str | None = None
    closed_why: str | None = None
    gates: tuple[GateResult, ...] = ()
    approvals_needed: int = 0
    reviews: tuple[Approval, ...] = ()
    checks: tuple[policy.Check, ...] = ()
    waivers: tuple[policy.Waiver, ...] = ()


class Granted(Struct, frozen=True, kw_only=True, tag="granted"):
    """Every enforced gate holds and enough people agreed."""

    gates: tuple[GateResult, ...]
    seen: Seen
    approved_by: tuple[str, ...] = ()


class AwaitingApproval(Struct, frozen=True, kw_only=True, tag="awaiting_approval"):
    """The gates hold; people have to agree."""

    gates: tuple[GateResult, ...]
    seen: Seen
    approved_by: tuple[str, ...]
    missing: int
    roles: tuple[str, ...]


class Refused(Struct, frozen=True, kw_only=True, tag="denied"):
    """At least one enforced gate does not hold."""

    gates: tuple[GateResult, ...]
    seen: Seen

    @property
    def blocking(self) -> tuple[GateResult, ...]:
        return tuple(result for result in self.gates if result.blocks)


Decision = Granted | AwaitingApproval | Refused


def decide(
    facts: Facts, rules_of: Policy, to: str, *, requested_by: Actor, reviews: Sequence[Approval] = ()
) -> Decision:
    """Whether a version may enter a stage.

    Gates first: nobody can approve away a gate that does not hold (that is what a waiver is for, and it is
    recorded as one). Then people: distinct, not the requester, in a role the policy names, and only votes
    that saw exactly the present version, evidence and policy.
    """
    rules = rules_of.rules(to)
    results = policy.evaluate(rules, facts)
    seen = Seen(
        version=facts.version.digest,
        policy=policy.policy_digest(rules_of),
        evidence=policy.evidence_digest(results),
    )
    if any(result.blocks for result in results):
        return Refused(gates=results, seen=seen)
    agreeing = counting(reviews, seen, requested_by, rules.approvals.roles)
    names = tuple(approval.by.name for approval in agreeing)
    missing = rules.approvals.count - len(agreeing)
    if missing > 0:
        return AwaitingApproval(
            gates=results, seen=seen, approved_by=names, missing=missing, roles=rules.approvals.roles
        )
    return Granted(gates=results, seen=seen, approved_by=names)


def counting(
    reviews: Sequence[Approval], seen: Seen, requested_by: Actor, roles: Collection[str]
) -> tuple[Approval, ...]:
    """The approvals that count: each person's last vote, if it approves, saw this, and is not the requester's
    own.
    """
    last: dict[str, Approval] = {}
    for approval in reviews:
        if approval.vote is not Vote.COMMENT:
            last[approval.by.name] = approval
    return tuple(
        approval
        for name, approval in sorted(last.items())
        if approval.vote is Vote.APPROVE
        and approval.dismissed is None
        and approval.seen == seen
        and name != requested_by.name
        and not roles_disjoint(approval.roles, roles)
    )


def roles_disjoint(held: Collection[str], asked: Collection[str]) -> bool:
    """Whether none of the roles somebody holds is one that is asked for."""
    return not set(held) & set(asked)


def stale(reviews: Sequence[Approval], seen: Seen) -> tuple[tuple[Approval, str], ...]:
    """Approvals that must be dismissed because something they saw has changed, each with what."""
    found = []
    for approval in reviews:
        if approval.vote is Vote.APPROVE and approval.dismissed is None and approval.seen != seen:
            changed = [
                what
                for what, before, after in (
                    ("the version", approval.seen.version, seen.version),
                    ("the policy", approval.seen.policy, seen.policy),
                    ("the evidence", approval.seen.evidence, seen.evidence),
                )
                if before != after
            ]
            found.append((approval, f"{' and '.join(changed)} changed after {approval.by.name} approved"))
    return tuple(found)


def check_reviewer(request: PromotionRequest, reviewer: Actor, now: datetime) -> None:
    """Refuse a vote that could never count.

    Raises:
        RequestClosed: the request is no longer open, or has expired.
        SelfApproval: the reviewer made the request.
    """
    check_open(request, now)
    if reviewer.name == request.requested_by.name:
        raise errors.SelfApproval(
            f"{reviewer.name} asked for this promotion and cannot also approve it; ask somebody else to run "
            f"'modelkeep review {request.id} --approve'.",
            request=request.id,
        )


def check_open(request: PromotionRequest, now: datetime) -> None:
    """Raises RequestClosed when the request is closed or past its time."""
    if request.state is not RequestState.OPEN:
        raise errors.RequestClosed(
            f"The request {request.id} is {request.state}; open a new one.", request=request.id
        )
    if now >= request.expires_at:
        raise errors.RequestClosed(
            f"The request {request.id} has expired; open a new one.", request=request.id
        )


def expiry(rules_of: Policy, to: str, now: datetime) -> datetime:
    """When a request made now ends by itself."""
    return now + timedelta(seconds=rules_of.rules(to).approvals.expires_s)


def check_transition(graph: StageGraph, version: ModelVersion, to: str) -> None:
    """Refuse a move that the model's stage graph does not have.

    Raises:
        InvalidTransition: no such stage, already there, or no such move; the message lists the moves there
        are. Tombstoned: the version was taken back before and nobody has cleared it.
    """
    graph.stage(to)
    if version.stage == to:
        raise errors.InvalidTransition(f"{version.reference} is already in {to}; there is nothing to do.")
    if (version.stage, to) not in graph.transitions:
        moves = (
            ", ".join(target for source, target in graph.transitions if source == version.stage) or "nowhere"
        )
        raise errors.InvalidTransition(
            f"{version.reference} cannot move from {version.stage} to {to}; from there it can go to {moves}."
        )
    if version.tombstone is not None and graph.stage(to).protected:
        raise errors.Tombstoned(
            f"{version.reference} was taken back ({version.tombstone}) and must not return by itself; when "
            f"the cause is mended, run 'modelkeep clear {version.reference} -m WHY'.",
            version=version.reference,
        )


class MoveCause(StrEnum):
    """Why a version came to a stage."""

    PROMOTION = "promotion"
    ROLLOUT = "rollout"
    ROLLBACK = "rollback"
    DISPLACED = "displaced"


class Interval(Struct, frozen=True, kw_only=True):
    """One stay of a version in a stage, from one event to another; `to_sequence` None is now."""

    stage: str
    number: int
    semver: str
    from_at: datetime
    from_sequence: int
    to_at: datetime | None = None
    to_sequence: int | None = None
    cause: MoveCause
    actor: str
    reason: str
    request: str | None = None
    rollout: str | None = None


def rollback_target(
    intervals: Sequence[Interval],
    current: int | None,
    *,
    tombstoned: Collection[int],
    present: Collection[int],
) -> int:
    """The version to go back to: the last occupant that finished its bake and was never taken back.

    A stage is entered only after the bake (or directly, where no endpoint follows it), so every former
    occupant has finished baking; those that were taken back bear a tombstone. Hence two rollbacks in a row go
    further back instead of back and forth.

    Args:
        intervals: the stays in the stage, oldest first.

    Raises:
        NoRollbackTarget: there is none.
    """
    for interval in reversed(intervals):
        number = interval.number
        if number != current and number not in tombstoned and number in present:
            return number
    raise errors.NoRollbackTarget(
        "There is no former version to go back to: none was in this stage before, or all were taken back. "
        "Name one with --to VERSION, or clear one with 'modelkeep clear VERSION -m WHY'."
    )
