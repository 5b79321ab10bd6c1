"""Between a rollout and the gateways: the route they are to obey, and what their reports say of it.

Both are pure readings: nothing here changes a rollout, and no gateway is spoken with.
"""

from collections.abc import Mapping, Sequence

from msgspec import structs

from modelkeep.core import values
from modelkeep.core.movement import Endpoint, Observed, Rollout, RolloutState, Sight
from modelkeep.core.observation import GatewayReport, Tick, VersionPhase
from modelkeep.core.plan import Strategy
from modelkeep.core.routing import Arm, Epoch, Loading, Route, VersionKey

NOTE_MAX = 300
"""Characters of an error text that people read."""


def route_of(endpoint: Endpoint, rollout: Rollout | None, keys: Mapping[int, VersionKey]) -> Route | None:
    """What the gateways should do for an endpoint; None while it has nothing to serve.

    Args:
        rollout: the endpoint's unfinished rollout, if there is one.
        keys: what gateways call each version that endpoint and rollout name, by number.
    """
    former = endpoint.previous
    if rollout is not None and not rollout.state.finished and former in rollout.numbers:
        former = None  # who is tried, and may be taken back, is no version to go back to
    previous = keys[former] if former is not None else None

    def route(stable: VersionKey, epoch: Epoch) -> Route:
        return Route(
            endpoint=endpoint.name,
            epoch=epoch,
            stable=stable,
            previous=previous,
            key_header=endpoint.key_header,
            key_cookie=endpoint.key_cookie,
            key_field=endpoint.key_field,
            slow_ms=endpoint.slow_ms,
            lease_s=endpoint.lease_s,
            workers=endpoint.workers,
            schema=endpoint.schema,
            log_ppm=endpoint.log_ppm,
            privacy=endpoint.privacy,
            load=endpoint.load,
        )

    if rollout is None or rollout.state is RolloutState.ROLLING_BACK or rollout.state.finished:
        if endpoint.stable is None:
            return None
        epoch = endpoint.epoch if rollout is None else max(endpoint.epoch, rollout.epoch)
        return route(keys[endpoint.stable], epoch)
    if endpoint.stable is None:
        first = route(keys[rollout.candidate], rollout.epoch)
        return structs.replace(first, load=Loading.ALWAYS)  # it has to be seen to work before it may sleep
    stable = keys[endpoint.stable]
    return structs.replace(
        route(stable, rollout.epoch),
        candidate=keys[rollout.candidate] if rollout.out is None else None,
        others=tuple(
            Arm(
                key=keys[other.number] if other.out is None else stable,
                weight_ppm=weight_ppm,
                from_ppm=other.from_ppm,
            )
            for other, weight_ppm in zip(rollout.others, rollout.others_ppm, strict=True)
        ),
        candidate_ppm=rollout.weight_ppm,
        stable_from_ppm=rollout.stable_from_ppm,
        salt=rollout.salt,
        rollout=rollout.id,
        load=Loading.ALWAYS,
        shadow=keys[rollout.candidate] if rollout.state is RolloutState.SHADOWING else None,
        shadow_ppm=rollout.plan.shadow_ppm if rollout.state is RolloutState.SHADOWING else 0,
        quality=rollout.plan.quality,
        shift=rollout.plan.prediction_shift,
        preview=rollout.plan.strategy is Strategy.BLUE_GREEN and rollout.state is not RolloutState.PREPARING,
    )


_BADNESS = (
    VersionPhase.FAILED,
    VersionPhase.FETCHING,
    VersionPhase.BUILDING,
    VersionPhase.SLEEPING,
    VersionPhase.STARTING,
    VersionPhase.RESTARTING,
    VersionPhase.DRAINING,
    VersionPhase.READY,
)
_UNSEEN = Epoch(0, 0)


def observe(
    rollout: Rollout,
    candidate: VersionKey,
    answering: Sequence[GatewayReport],
    ticks: Sequence[Tick],
    others: Sequence[VersionKey] = (),
) -> Observed:
    """What the gateways that answer now say about a rollout and its candidate, which they call by its key,
    and about a test's `others`.

    A gateway has confirmed an epoch only when it also splits the traffic as the rollout wants: one that was
    killed comes back with stable alone under the same epoch. What a gateway says of the candidate counts from
    the first table on that names it, for the same version may have failed in an earlier rollout.
    """
    applied = min((_confirmed(rollout, report) for report in answering), default=None)
    first, *further = (_sight(rollout, key, answering) for key in (candidate, *others))
    return Observed(
        applied=applied, phase=first.phase, error=first.error, ticks=tuple(ticks), others=tuple(further)
    )


def _sight(rollout: Rollout, key: VersionKey, answering: Sequence[GatewayReport]) -> Sight:
    told = [_entry(rollout, key, report) for report in answering]
    if not told or None in told:
        return Sight()
    phase, error = min((entry for entry in told if entry is not None), key=lambda one: _BADNESS.index(one[0]))
    return Sight(phase=phase, error=error)


def shown(text: str) -> str:
    """A model's own words, fit for a line of a terminal."""
    return values.printable(text)[:NOTE_MAX]


def _confirmed(rollout: Rollout, report: GatewayReport) -> Epoch:
    for route in report.routes:
        shares = (route.candidate_ppm, route.others_ppm)
        if route.endpoint == rollout.endpoint and shares == (rollout.weight_ppm, rollout.others_ppm):
            return route.epoch
    known = any(route.endpoint == rollout.endpoint for route in report.routes)
    gone = rollout.state is RolloutState.ROLLING_BACK and not known  # who has no route sends nobody astray
    return rollout.epoch if gone else _UNSEEN


def _entry(
    rollout: Rollout, candidate: VersionKey, report: GatewayReport
) -> tuple[VersionPhase, str | None] | None:
    if report.table < rollout.table:
        return None
    for version in report.versions:
        if version.key == candidate:
            return version.phase, shown(version.error) if version.error is not None else None
    return None
