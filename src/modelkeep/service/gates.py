"""What the gates say, as a person asks beforehand: the report behind `modelkeep gate`.

It explains a case that was weighed in `requests`; it decides nothing and changes nothing.
"""

from enum import StrEnum
from typing import assert_never

from msgspec import Struct

from modelkeep.core.policy import GateResult
from modelkeep.core.promotion import AwaitingApproval, Granted, Refused
from modelkeep.service.requests import Case


class Ruling(StrEnum):
    """What the gates and the people say together."""

    GRANTED = "granted"
    AWAITING_APPROVAL = "awaiting_approval"
    DENIED = "denied"


class GateReport(Struct, frozen=True, kw_only=True):
    """Whether a version may enter a stage now, and why.

    `obstacle` is what stands in the way before any gate is asked: no such move, or a tombstone. `next` is the
    command that gets one further.
    """

    version: str
    number: int
    stage: str
    ruling: Ruling
    gates: tuple[GateResult, ...]
    policy: str
    policy_version: int
    policy_digest: str
    incumbent: int | None
    request: str | None
    approved_by: tuple[str, ...]
    approvals_missing: int
    approvals_roles: tuple[str, ...]
    obstacle: str | None
    next: str


def report(case: Case, obstacle: str | None) -> GateReport:
    """Put a weighed case into words."""
    decision, version = case.decision, case.version
    match decision:
        case Granted():
            ruling, missing, roles = Ruling.GRANTED, 0, case.rules.approvals.roles
            approved_by = decision.approved_by
        case AwaitingApproval():
            ruling, missing, roles = Ruling.AWAITING_APPROVAL, decision.missing, decision.roles
            approved_by = decision.approved_by
        case Refused():
            ruling, missing, roles = Ruling.DENIED, case.rules.approvals.count, case.rules.approvals.roles
            approved_by = ()
        case _:
            assert_never(decision)
    if obstacle is not None:
        ruling = Ruling.DENIED
    return GateReport(
        version=version.reference,
        number=version.number,
        stage=case.to,
        ruling=ruling,
        gates=decision.gates,
        policy=case.policy.source,
        policy_version=case.policy.version,
        policy_digest=case.policy.digest,
        incumbent=case.incumbent,
        request=case.request.id if case.request is not None else None,
        approved_by=approved_by,
        approvals_missing=missing,
        approvals_roles=roles,
        obstacle=obstacle,
        next=_next_step(case, ruling, obstacle),
    )


def _next_step(case: Case, ruling: Ruling, obstacle: str | None) -> str:
    """The command that gets one further."""
    reference, asked = case.version.reference, case.request
    match ruling:
        case Ruling.GRANTED:
            return f"modelkeep promote {reference} --to {case.to} -m WHY"
        case Ruling.AWAITING_APPROVAL if asked is not None:
            return f"modelkeep review {asked.id} --approve"
        case Ruling.AWAITING_APPROVAL:
            return f"modelkeep request {reference} --to {case.to} -m WHY"
        case Ruling.DENIED if obstacle is not None and case.version.tombstone is not None:
            return f"modelkeep clear {reference} -m WHY"
        case Ruling.DENIED if obstacle is not None:
            return f"modelkeep show {reference}"
        case Ruling.DENIED:
            fixes = [result.fix for result in case.decision.gates if result.blocks and result.fix]
            return fixes[0] if fixes else f"modelkeep show {reference}"
        case _:
            assert_never(ruling)
