"""What the gates say, as a person asks beforehand: the report behind `modelkeep gate`.

It explains a case that was weighed in `requests`; it decides nothing and changes nothing.
"""

from typing import assert_never

from modelkeep.core.answers import GateReport, Ruling
from modelkeep.core.promotion import AwaitingApproval, Granted, Refused
from modelkeep.service.requests import Case


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
