"""What a rollout that begins with a promotion was granted by: every gate's answer and every approval, kept
as an event until the rollout has ended and the stage moves.

Whether anything is granted is decided in `promotion`; what becomes of the traffic is the rollout column's
part.
"""

from modelkeep.core import codec
from modelkeep.core.events import EventKind
from modelkeep.core.promotion import MoveCause, StageMove
from modelkeep.core.rollout import Endpoint
from modelkeep.core.routing import OTHERS_MAX
from modelkeep.service.act import Act
from modelkeep.service.requests import Case
from modelkeep.service.stages import Because


def record_grant(act: Act, case: Case, endpoint: Endpoint, rollout: str, because: Because) -> None:
    """Record by which gates and approvals a version has its share of a rollout."""
    version = case.version
    act.record(
        EventKind.PROMOTION_GRANTED,
        _subject(rollout),
        model=version.model,
        number=version.number,
        reason=because.reason,
        semver=version.semver,
        digest=version.digest,
        to=case.to,
        endpoint=endpoint.name,
        rollout=rollout,
        request=because.request,
        gates=because.gates,
        approved_by=because.approved_by,
        policy=because.policy,
    )


def grant_of(act: Act, rollout: str | None, number: int) -> StageMove | None:
    """The decision by which a version is in a rollout, as far as a stage's move bears it; None when nobody
    decided."""
    if rollout is None:
        return None
    for stored in act.tx.events.after(0, subject=_subject(rollout), limit=1 + OTHERS_MAX):
        if stored.event.number == number:
            body = {"from": "", "cause": MoveCause.ROLLOUT, **stored.event.body}
            return codec.convert(body, StageMove)
    return None


def _subject(rollout: str) -> str:
    return f"rollout/{rollout}"
