"""Who may move what where, and why: requests, approvals, and the one decision.

`decide` takes the facts, the policy and the people's votes and says Granted, AwaitingApproval or Denied, with
every gate's answer. It is pure: what it is given is stored with the decision, so it can be asked again years
later. Moving the stage is the service's part; moving traffic is `rollout`'s.
"""

from collections.abc import Collection, Iterable, Sequence
from datetime import datetime, timedelta
from enum import StrEnum
from typing import NamedTuple

from msgspec import Struct, field, structs

from modelkeep.core import codec, errors, policy, values
from modelkeep.core.catalog import ModelVersion, StageGraph
from modelkeep.core.events import Event, EventKind
from modelkeep.core.policy import Facts, GateResult, Outcome, Policy
from modelkeep.core.values import Actor, Digest, ModelName

REVIEWS_MAX = 500
"""Votes and comments on one request: a discussion, not a mailing list."""
TICKET_MAX = 500
"""Characters of a ticket or incident: an address."""


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
    """A reviewable request to move a version to a stage.

    `gates` are the answers at the last look, and `seen` what they were about; `approved_by` are the people
    whose approval counted then. `incumbent` is the number of the version that stood in the stage when the
    request was made: what to set the version against.
    """

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
    incumbent: int | None = None
    gates: tuple[GateResult, ...] = ()
    seen: Seen | None = None
    approvals_needed: int = 0
    approvals_roles: tuple[str, ...] = ()
    approved_by: tuple[str, ...] = ()
    reviews: tuple[Approval, ...] = ()
    checks: tuple[policy.Check, ...] = ()
    waivers: tuple[policy.Waiver, ...] = ()

    @property
    def reference(self) -> str:
        """The version that is meant."""
        return f"{self.model}:{self.semver}"


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


def stale(reviews: Sequence[Approval], decision: Decision) -> tuple[tuple[Approval, str], ...]:
    """Approvals that must be dismissed because something they saw has changed, each with what.

    While an enforced gate could not be measured, the evidence has not changed, it is missing: nothing can be
    granted then, and the approvals may count again afterwards.
    """
    unmeasured = any(result.blocks and result.outcome is Outcome.INCONCLUSIVE for result in decision.gates)
    now = decision.seen
    found = []
    for approval in reviews:
        if approval.vote is not Vote.APPROVE or approval.dismissed is not None:
            continue
        then = approval.seen
        changed = [
            what
            for what, differs in (
                ("the version", then.version != now.version),
                ("the policy", then.policy != now.policy),
                ("the evidence", then.evidence != now.evidence and not unmeasured),
            )
            if differs
        ]
        if changed:
            found.append((approval, f"{' and '.join(changed)} changed after {approval.by.name} approved"))
    return tuple(found)


def check_reviewer(request: PromotionRequest, reviewer: Actor, vote: Vote, now: datetime) -> None:
    """Refuse a vote that could never count. Whoever asked may comment, and vouch for items of a checklist.

    Raises:
        RequestClosed: the request is no longer open, or has expired.
        SelfApproval: the reviewer made the request.
    """
    check_open(request, now)
    if vote is not Vote.COMMENT and reviewer.name == request.requested_by.name:
        raise errors.SelfApproval(
            f"{reviewer.name} asked for this promotion and cannot also decide on it; ask somebody else to "
            f"run 'modelkeep review {request.id} --{vote}'.",
            request=request.id,
        )


def check_open(request: PromotionRequest, now: datetime) -> None:
    """Raises RequestClosed when the request is closed or past its time."""
    state = state_at(request, now)
    if state is not RequestState.OPEN:
        raise errors.RequestClosed(
            f"The request {request.id} is {state}; open a new one with "
            f"'modelkeep request {values.in_shell(request.reference)} --to {request.to} -m WHY'.",
            request=request.id,
            state=state,
        )


def state_at(request: PromotionRequest, now: datetime) -> RequestState:
    """The state at a time: an open request ends by itself, also when nobody looks."""
    if request.state is RequestState.OPEN and now >= request.expires_at:
        return RequestState.EXPIRED
    return request.state


def expiry(rules_of: Policy, to: str, now: datetime) -> datetime:
    """When a request made now ends by itself."""
    return now + timedelta(seconds=rules_of.rules(to).approvals.expires_s)


def check_transition(graph: StageGraph, version: ModelVersion, to: str) -> None:
    """Refuse a move that the model's stage graph does not have.

    Raises:
        InvalidTransition: no such stage, already there, or no such move; the message lists the moves there
        are. Tombstoned: the version was taken back before and nobody has cleared it. Yanked: its makers
        withdrew it.
    """
    graph.stage(to)
    if version.stage == to:
        raise errors.InvalidTransition(
            f"{version.reference} is already in {to}; there is nothing to do.", stage=to
        )
    if (version.stage, to) not in graph.transitions:
        moves = (
            ", ".join(target for source, target in graph.transitions if source == version.stage) or "nowhere"
        )
        raise errors.InvalidTransition(
            f"{version.reference} cannot move from {version.stage} to {to}; from there it can go to {moves}.",
            stage=version.stage,
        )
    if version.tombstone is not None and graph.stage(to).protected:
        raise errors.Tombstoned(
            f"{version.reference} was taken back ({version.tombstone}) and must not return by itself; when "
            f"the cause is mended, run 'modelkeep clear {values.in_shell(version.reference)} -m WHY'.",
            version=version.reference,
        )
    if version.yanked is not None and graph.stage(to).protected:
        raise errors.Yanked(
            f"{version.reference} was yanked ({version.yanked}), so nobody is to put it to work; run "
            f"'modelkeep unyank {values.in_shell(version.reference)} -m WHY' first if it may be used after "
            "all.",
            version=version.reference,
        )


def check_graph_change(
    before: StageGraph, after: StageGraph, held: dict[str, int], followed: Collection[str]
) -> None:
    """Refuse a new graph that does not fit where the model's versions are.

    Args:
        held: how many versions stand in each stage but the first, by stage.
        followed: the stages that an endpoint follows.

    Raises:
        InvalidTransition: names the stage and what to do about it.
    """
    if after.initial != before.initial:
        raise errors.InvalidTransition(f"The first stage is {before.initial}, and it stays the first.")
    specs = {spec.name: spec for spec in after.stages}
    for name in sorted({*(stage for stage, count in held.items() if count), *followed}):
        if name not in specs:
            what = f"{held[name]} versions are in" if held.get(name) else "an endpoint follows"
            raise errors.InvalidTransition(f"The stage {name} cannot go while {what} it; move those first.")
        if name in followed and not specs[name].exclusive:
            raise errors.InvalidTransition(f"An endpoint follows {name}, so it must stay exclusive.")
    for name, count in sorted(held.items()):
        if count > 1 and specs[name].exclusive:
            raise errors.InvalidTransition(
                f"The stage {name} cannot be exclusive while {count} versions are in it; move all but one."
            )


def weaker_graph(before: StageGraph, after: StageGraph, rules_of: Policy) -> tuple[str, ...]:
    """In what a new graph gets round the policy that holds; nothing when it does not.

    A stage that the policy guards goes, or can be entered from where it could not be entered before.
    """
    names = {spec.name for spec in after.stages}
    known = {spec.name for spec in before.stages}
    guarded = [stage for stage in rules_of.stages if stage in known and _guards(rules_of, stage)]
    gone = [f"{stage}, which the policy guards, goes" for stage in guarded if stage not in names]
    added = sorted(set(after.transitions) - set(before.transitions))
    ways = [f"{target} can be entered from {source} as well" for source, target in added if target in guarded]
    return (*gone, *ways)


def _guards(rules_of: Policy, stage: str) -> bool:
    rules = rules_of.rules(stage)
    return rules.approvals.count > 0 or any(gate.mode is policy.Mode.ENFORCE for gate in rules.gates)


class MoveCause(StrEnum):
    """Why a version came to a stage."""

    PROMOTION = "promotion"
    ROLLOUT = "rollout"
    ROLLBACK = "rollback"
    DISPLACED = "displaced"


class Displaced(Struct, frozen=True, kw_only=True):
    """The former occupant of an exclusive stage, and where it went; `first` as in StageMove."""

    number: int
    semver: str
    to: str
    first: bool = False


class StageMove(Struct, frozen=True, kw_only=True):
    """The body of a STAGE_MOVED event: a version left one stage and entered another.

    Together with the event itself it is all that the projections are made from. `first` says that `to` is the
    stage where versions begin: standing there is not recorded, neither before the first move nor later.
    `gates`, `approved_by` and `policy` are those of the decision behind the move; a rollback has none, for it
    asks no gate. Where a rollout carried the move out, `asked_by` is who had asked for it: the event's own
    actor is whoever took the last step, most often Modelkeep itself.
    """

    from_stage: str = field(name="from")
    to: str
    first: bool = False
    semver: str
    cause: MoveCause
    displaced: Displaced | None = None
    request: str | None = None
    rollout: str | None = None
    asked_by: Actor | None = None
    incident: str | None = None
    gates: tuple[GateResult, ...] = ()
    approved_by: tuple[str, ...] = ()
    policy: Digest | None = None


class Interval(Struct, frozen=True, kw_only=True):
    """One stay of a version in a stage, from one event to another; `to_sequence` None is now.

    `actor` is who asked for the move, also where a rollout carried it out, which `rollout` names then;
    `approved_by` are the people who had agreed to it.
    """

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
    approved_by: tuple[str, ...] = ()


class Stay(NamedTuple):
    """A stay that an event begins; `kept` is false in the first stage, where standing is not recorded."""

    interval: Interval
    kept: bool


def stays_of(event: Event) -> tuple[Stay, ...]:
    """The stays that a STAGE_MOVED event begins, the version's own first; each ends the former stay of the
    same version.
    """
    assert event.number is not None, "a move is of a version"
    move = codec.convert(event.body, StageMove)
    own = Interval(
        stage=move.to,
        number=event.number,
        semver=move.semver,
        from_at=event.at,
        from_sequence=event.sequence,
        cause=move.cause,
        actor=(move.asked_by or event.actor).name,
        reason=event.reason or "",
        request=move.request,
        rollout=move.rollout,
        approved_by=move.approved_by,
    )
    if move.displaced is None:
        return (Stay(own, not move.first),)
    other = structs.replace(
        own,
        stage=move.displaced.to,
        number=move.displaced.number,
        semver=move.displaced.semver,
        cause=MoveCause.DISPLACED,
        approved_by=(),  # people agreed to the newcomer
    )
    return (Stay(own, not move.first), Stay(other, not move.displaced.first))


def fold_stays(events: Iterable[Event]) -> dict[str, list[Interval]]:
    """Every stay of every version, by model, from nothing but the events in their order.

    A version's last stay ends when it is deleted, and those of a model when the model is. A model that was
    renamed has its stays under its last name.
    """
    stays: dict[str, list[Interval]] = {}
    running: dict[str, dict[int, int]] = {}

    def end(model: str, number: int, event: Event) -> None:
        place = running.get(model, {}).pop(number, None)
        if place is not None:
            ended = structs.replace(stays[model][place], to_at=event.at, to_sequence=event.sequence)
            stays[model][place] = ended

    for event in events:
        if event.model is None:
            continue
        if event.kind is EventKind.STAGE_MOVED:
            of_model = stays.setdefault(event.model, [])
            for stay, kept in stays_of(event):
                end(event.model, stay.number, event)
                if kept:
                    running.setdefault(event.model, {})[stay.number] = len(of_model)
                    of_model.append(stay)
        elif event.kind is EventKind.VERSION_DELETED and event.number is not None:
            end(event.model, event.number, event)
        elif event.kind is EventKind.MODEL_RENAMED:
            stays[event.model] = stays.pop(event.body["from"], [])
            running[event.model] = running.pop(event.body["from"], {})
        elif event.kind is EventKind.MODEL_DELETED:
            for number in list(running.get(event.model, {})):
                end(event.model, number, event)
    return stays


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
        current: the number of the version to be taken back.
        present: the numbers of the versions that have not been deleted.

    Raises:
        NoRollbackTarget: there is none.
    """
    for interval in reversed(intervals):
        number = interval.number
        if number != current and number not in tombstoned and number in present:
            return number
    raise errors.NoRollbackTarget(
        "There is no former version to go back to: no other was in this stage before, or all were taken "
        "back. Promote a good one, or clear one with 'modelkeep clear VERSION -m WHY' and name it with --to."
    )
