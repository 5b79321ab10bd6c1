"""What a promotion that is not granted leaves behind, and what its caller is told: the gate that stopped it,
or whose approval is missing.

Both are kept although the caller gets an error: a refusal is an event, and a request waits for its reviews.
What was decided is `core.promotion`'s business, and nothing is moved here.
"""

from modelkeep.core import codec, errors, values
from modelkeep.core.events import EventKind
from modelkeep.core.promotion import AwaitingApproval
from modelkeep.service.act import Act
from modelkeep.service.requests import Case, Requests
from modelkeep.store.database import Kept


def denied(act: Act, requests: Requests, case: Case, reason: str) -> Kept:
    """Record a refusal; what is to be raised for it."""
    asked = requests.refresh(act, case, recorded=True)
    version, gates = case.version, case.decision.gates
    act.record(
        EventKind.PROMOTION_DENIED,
        version.reference,
        model=version.model,
        number=version.number,
        reason=reason,
        to=case.to,
        gates=gates,
        policy=case.policy.digest,
        request=asked.id if asked is not None else None,
    )
    blocking = [result for result in gates if result.blocks]
    first, others = blocking[0], len(blocking) - 1
    more = f" (and {others} more gate{'s' if others > 1 else ''})" if others else ""
    how = f" {first.fix[0].upper()}{first.fix[1:]};" if first.fix else ""
    error = errors.PolicyDenied(
        f"{version.reference} may not enter {case.to}: {first.why}{more}.{how} see "
        f"'modelkeep gate {values.in_shell(version.reference)} --to {case.to} --explain'.",
        version=version.reference,
        stage=case.to,
        gates=list(codec.builtins(gates)),
        policy=case.policy.digest,
        request=asked.id if asked is not None else None,
    )
    return act.keep(error)


def awaiting(
    act: Act, requests: Requests, case: Case, decision: AwaitingApproval, reason: str, ticket: str | None
) -> Kept:
    """Open the request, unless it is there; what is to be raised for it."""
    asked = requests.refresh(act, case, recorded=False)
    if asked is None:
        asked = requests.open(act, case, reason, ticket)
    who = _any_of(decision.roles)
    count = f"{decision.missing} approval{'s' if decision.missing > 1 else ''}"
    version = case.version
    command = f"modelkeep review {asked.id} --approve"
    error = errors.ApprovalRequired(
        f"{version.reference} needs {count} by {who} other than {asked.requested_by.name} before it "
        f"enters {case.to}; have somebody run '{command}', then promote again.",
        version=version.reference,
        stage=case.to,
        request=asked.id,
        missing=decision.missing,
        roles=list(decision.roles),
        approved_by=list(decision.approved_by),
        next=command,
    )
    return act.keep(error)


def _any_of(roles: tuple[str, ...]) -> str:
    """Roles as a sentence names them: an approver, a maintainer or an admin."""
    named = [f"{'an' if role[0] in 'aeiou' else 'a'} {role}" for role in roles]
    return " or ".join((", ".join(named[:-1]), named[-1])) if len(named) > 1 else named[0]
