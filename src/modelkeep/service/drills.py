"""Drills: whether an endpoint is fit for a rehearsed rollback now, and the record of one that was done.

The registry moves nothing for a drill: the gateway does, on its machine, and puts everything back. Whoever
may roll a model back may drill it.
"""

from modelkeep.core import errors, values
from modelkeep.core.access import Verb
from modelkeep.core.drill import Drill, DrillPlan, Measured, check_measured
from modelkeep.core.events import EventKind
from modelkeep.service.act import Act
from modelkeep.service.rollout import Rollouts


def prepare(act: Act, rollouts: Rollouts, name: str) -> DrillPlan:
    """What a drill of an endpoint would do now.

    Raises:
        EndpointNotFound: also for one whose model the caller may not read.
        NotAllowed: the caller may not roll back.
        RolloutActive: a rollout is under way; its rollback is not for practice.
        NoRollbackTarget: the endpoint keeps no former version loaded.
        GatewayUnavailable: no gateway answers.
    """
    status = rollouts.status(act, name)
    endpoint = status.endpoint
    act.authorise(Verb.ROLLBACK, endpoint.model)
    if endpoint.rollout is not None:
        raise errors.RolloutActive(
            f"A rollout of {endpoint.name} is under way; drill when it has ended.",
            endpoint=endpoint.name,
            rollout=endpoint.rollout,
        )
    if status.stable is None or status.previous is None:
        raise errors.NoRollbackTarget(
            f"{endpoint.name} keeps no former version loaded, so there is nothing to roll back to; a second "
            "version has to succeed first.",
            endpoint=endpoint.name,
        )
    answering = tuple(gateway.gateway for gateway in status.gateways if gateway.answering)
    if not answering:
        raise errors.GatewayUnavailable(
            f"No gateway answers for {endpoint.name}; start one with 'modelkeep gateway'."
        )
    return DrillPlan(
        endpoint=endpoint.name,
        model=str(endpoint.model),
        stands=status.stable,
        former=status.previous,
        gateways=answering,
    )


def record(act: Act, rollouts: Rollouts, name: str, measured: Measured, reason: str) -> Drill:
    """Keep what a gateway measured.

    Raises:
        what `prepare` raises, for a drill is of an endpoint that could be drilled.
        Invalid, InvalidName: what was measured cannot be, or no gateway of that name answers here.
    """
    plan = prepare(act, rollouts, name)
    values.check_text(reason, "reason", required=True)
    check_measured(measured)
    if measured.gateway not in plan.gateways:
        raise errors.Invalid(
            f"No gateway {values.quoted(measured.gateway, 60)} answers here; these do: "
            f"{', '.join(plan.gateways)}.",
            field="gateway",
        )
    endpoint = rollouts.get_endpoint(act, name)
    event = act.record(
        EventKind.ENDPOINT_DRILLED,
        f"endpoint/{endpoint.name}",
        model=endpoint.model,
        number=endpoint.stable,
        reason=reason,
        stands=plan.stands,
        former=plan.former,
        took_ms=measured.took_ms,
        measured=measured,
    )
    return Drill(
        sequence=event.sequence,
        endpoint=endpoint.name,
        model=plan.model,
        stands=plan.stands,
        former=plan.former,
        at=act.now,
        by=act.by,
        reason=reason,
        measured=measured,
    )
