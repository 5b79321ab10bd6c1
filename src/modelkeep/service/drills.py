"""Drills: whether an endpoint is fit for a rehearsed rollback now, its beginning, and the record of one.

The registry moves nothing for a drill: the gateway does, on its machine, and puts everything back. Whoever
may roll a model back may drill it, in the windows of the policy and while it is well; whoever administers it
may do so at other times, and says why. What stands in the way is decided in `core.drill`.
"""

from modelkeep.core import codec, errors, values
from modelkeep.core import drill as core
from modelkeep.core.access import Verb
from modelkeep.core.answers import RolloutStatus
from modelkeep.core.drill import Drill, DrillPlan, Hindrance, Measured, Place, Standing
from modelkeep.core.events import Event, EventKind
from modelkeep.core.windows import next_opening, read_window
from modelkeep.service.act import Act
from modelkeep.service.rollout import Rollouts
from modelkeep.store import rollout as store

EVENTS_MAX = 50
"""Latest events of an endpoint in which the beginning of a drill is looked for: little happens during one."""


def prepare(act: Act, rollouts: Rollouts, name: str) -> DrillPlan:
    """What a drill of an endpoint would do now, and what speaks against it; changes nothing.

    Raises:
        EndpointNotFound: also for one whose model the caller may not read.
        NotAllowed: the caller may not roll back.
    """
    status = rollouts.status(act, name)
    endpoint = status.endpoint
    act.authorise(Verb.ROLLBACK, endpoint.model)
    seen = _standing(act, rollouts, status)
    against = core.hindrances(seen, act.now)
    closed = any(one.obstacle is core.Obstacle.WINDOW for one in against)
    return DrillPlan(
        endpoint=endpoint.name,
        model=str(endpoint.model),
        stands=status.stable,
        former=status.previous,
        gateways=seen.gateways,
        against=against,
        next_at=next_opening(map(read_window, seen.windows), act.now) if closed else None,
    )


def begin(act: Act, rollouts: Rollouts, name: str, reason: str, anyway: str | None = None) -> DrillPlan:
    """Begin a drill, which whoever measured it then tells of by `record`. One that is refused is recorded as
    well.

    Args:
        anyway: why it is to be although something speaks against it.

    Raises:
        EndpointNotFound: also for one whose model the caller may not read.
        NotAllowed: the caller may not roll back; or says `anyway` and does not administer the model.
        RolloutActive: a rollout is under way; its rollback is not for practice.
        NoRollbackTarget: no former version is loaded.
        GatewayUnavailable: no gateway answers.
        DrillRefused: it is outside of the policy's windows, the endpoint is not well, nobody asks it, or
            another drill is on; says when the next window opens.
        Invalid: no reason.
    """
    values.check_text(reason, "reason", required=True)
    plan = prepare(act, rollouts, name)
    endpoint = rollouts.get_endpoint(act, name)
    if anyway is not None:
        values.check_text(anyway, "anyway", required=True)
        act.authorise(Verb.ADMINISTER, endpoint.model)
    if plan.against and (anyway is None or plan.final):
        act.record(
            EventKind.ENDPOINT_DRILL_REFUSED,
            f"endpoint/{endpoint.name}",
            model=endpoint.model,
            number=endpoint.stable,
            reason=reason,
            against=plan.against,
            next_at=plan.next_at,
            anyway=anyway,
        )
        raise act.keep(core.refusal(plan))
    act.record(
        EventKind.ENDPOINT_DRILL_BEGUN,
        f"endpoint/{endpoint.name}",
        model=endpoint.model,
        number=endpoint.stable,
        reason=reason,
        stands=plan.stands,
        former=plan.former,
        gateways=plan.gateways,
        against=plan.against,
        anyway=anyway if plan.against else None,
    )
    return plan


def record(act: Act, rollouts: Rollouts, name: str, measured: Measured, reason: str) -> Drill:
    """Keep what a gateway measured in a drill that has begun.

    Raises:
        EndpointNotFound, NotAllowed: as `prepare`.
        Conflict: no drill of the endpoint has begun that was not told of yet.
        Invalid, InvalidName: what was measured cannot be, or the drill was not of that gateway.
    """
    endpoint = rollouts.get_endpoint(act, name)
    act.authorise(Verb.ROLLBACK, endpoint.model)
    values.check_text(reason, "reason", required=True)
    core.check_measured(measured)
    begun = _begun(act, endpoint.name)
    if begun is None or (act.now - begun.at).total_seconds() > core.TOLD_S:
        raise errors.Conflict(
            f"No drill of {endpoint.name} has begun that was not told of; 'modelkeep drill {endpoint.name}' "
            "does all of it.",
            endpoint=endpoint.name,
        )
    if measured.gateway not in begun.body["gateways"]:
        raise errors.Invalid(
            f"The drill is not one of a gateway {values.quoted(measured.gateway, 60)}; it can be at: "
            f"{', '.join(begun.body['gateways'])}.",
            field="gateway",
        )
    event = act.record(
        EventKind.ENDPOINT_DRILLED,
        f"endpoint/{endpoint.name}",
        model=endpoint.model,
        number=begun.number,
        reason=reason,
        stands=begun.body["stands"],
        former=begun.body["former"],
        took_ms=measured.took_ms,
        measured=measured,
        against=begun.body["against"],
        anyway=begun.body["anyway"],
    )
    return Drill(
        sequence=event.sequence,
        endpoint=endpoint.name,
        model=str(endpoint.model),
        stands=begun.body["stands"],
        former=begun.body["former"],
        at=act.now,
        by=act.by,
        reason=reason,
        measured=measured,
        against=codec.convert(begun.body["against"], tuple[Hindrance, ...]),
        anyway=begun.body["anyway"],
    )


def _standing(act: Act, rollouts: Rollouts, status: RolloutStatus) -> Standing:
    """What is known of an endpoint, for a drill."""
    endpoint = status.endpoint
    answering = {gateway.gateway: gateway for gateway in status.gateways if gateway.answering}
    requests = failed = 0.0
    for row in store.list_gateways(act.tx):
        for one in row.report.lately if row.report.gateway in answering else ():
            if one.endpoint == endpoint.name:
                weighed = one.weighed(act.now)
                requests, failed = requests + weighed[0], failed + weighed[1]
    begun = _begun(act, endpoint.name)
    return Standing(
        endpoint=endpoint.name,
        stands=status.stable,
        former=status.previous,
        rollout=endpoint.rollout,
        places=tuple(
            Place(
                gateway=name,
                stands=gateway.phases.get(status.stable or ""),
                former=gateway.phases.get(status.previous or ""),
            )
            for name, gateway in answering.items()
        ),
        disagreement=endpoint.disagreement.why if endpoint.disagreement is not None else None,
        requests=requests,
        failed=failed,
        drilling_s=(act.now - begun.at).total_seconds() if begun is not None else None,
        windows=rollouts.promotions.holds_for(act, endpoint.model).drills.windows,
    )


def _begun(act: Act, endpoint: str) -> Event | None:
    """The beginning of the endpoint's last drill, unless that was told of."""
    for stored in act.tx.events.before(limit=EVENTS_MAX, subject=f"endpoint/{endpoint}"):
        match stored.event.kind:
            case EventKind.ENDPOINT_DRILL_BEGUN:
                return stored.event
            case EventKind.ENDPOINT_DRILLED | EventKind.ENDPOINT_CREATED:
                return None
            case _:
                pass
    return None
