"""A drill: the rollback of an endpoint made in earnest, measured, and put back.

The fronts are swapped to the former version exactly as a rollback swaps them, under whatever traffic there
is, and after a moment back again. What a drill does not do: it takes no version back for good, raises no
epoch, writes nothing to the journal (a gateway that is killed in the middle comes back with the version that
stood) and tells the registry nothing; whoever ordered it does that.
"""

import asyncio
import time
from typing import Any, Protocol

from msgspec import structs

from modelkeep.core import errors
from modelkeep.core.observation import VersionPhase
from modelkeep.core.routing import Route, VersionKey, rolled_back
from modelkeep.serving.fronts import swap
from modelkeep.serving.mover import Fronts, Mover

HOLD_S_MAX = 10.0
"""How long the former version may answer: long enough to be seen, short enough for everybody's patience, and
below the time that a command may take."""
LIVE_S = 1.0
"""Traffic is live when the version that stands had a request within this time before the command."""


class Place(Protocol):
    """What a drill needs of the gateway."""

    def phase(self, key: VersionKey) -> VersionPhase | None:
        """How far a version is here."""

    @property
    def mover(self) -> Mover:
        """What it obeys."""


async def drill(
    place: Place, fronts: Fronts, endpoint: str, hold_s: float, received: float
) -> dict[str, Any]:
    """Roll an endpoint back, measure, and put it back.

    Args:
        hold_s: how long the former version answers.
        received: monotonic seconds when the command arrived; what is measured counts from there.

    Returns:
        `took_ms`: from the command to the last request sent to the version taken away (0 when it had none
        after the command); `confirmed_ms`: until all fronts obeyed; `back_ms`: what putting it back took;
        `live`: whether there was traffic.

    Raises:
        Invalid: `hold_s` is out of range.
        RouteNotFound: the gateway serves no such endpoint.
        RolloutActive: a candidate is on its way; its rollback is not for practice.
        NoRollbackTarget: there is no former version here, or it is not loaded.
        Conflict: the route was changed while the drill was on; nothing was put back, the newer one holds.
    """
    if not 0 <= hold_s <= HOLD_S_MAX:
        raise errors.Invalid(f"A drill holds for 0 to {HOLD_S_MAX:.0f} seconds.", field="hold_s")
    route = _fit(place, endpoint)
    standing, former = route.stable, route.previous
    assert former is not None, "it was looked for"
    aside = structs.replace(rolled_back(route), epoch=route.epoch)
    await _swap(place, fronts, aside)
    confirmed_ms = (time.monotonic() - received) * 1_000
    last_sent = fronts.last_sent(standing)
    await asyncio.sleep(hold_s)
    if place.mover.live.route(endpoint) is not aside:
        raise errors.Conflict(
            f"The route of {endpoint} was changed while the drill was on; the newer one holds. Try again "
            "when nothing moves.",
            endpoint=endpoint,
        )
    begun = time.monotonic()
    await _swap(place, fronts, route)
    return {
        "endpoint": endpoint,
        "stood": standing,
        "former": former,
        "took_ms": max(0.0, (last_sent - received) * 1_000),
        "confirmed_ms": confirmed_ms,
        "back_ms": (time.monotonic() - begun) * 1_000,
        "hold_s": hold_s,
        "live": last_sent > received - LIVE_S,
        "fronts": len(fronts),
    }


def _fit(place: Place, endpoint: str) -> Route:
    """The endpoint's route, when it is fit for a drill."""
    route = place.mover.live.route(endpoint)
    if route is None:
        raise errors.RouteNotFound(
            f"This gateway serves no endpoint {endpoint[:80]!r}; see: modelkeep gateway status."
        )
    if route.candidate is not None or route.rollout is not None:
        raise errors.RolloutActive(
            f"A rollout of {endpoint} is under way; drill when it has ended.", endpoint=endpoint
        )
    if route.previous is None or place.phase(route.previous) is not VersionPhase.READY:
        raise errors.NoRollbackTarget(
            f"No former version of {endpoint} is loaded here, so there is nothing to roll back to; a second "
            "version has to succeed first.",
            endpoint=endpoint,
        )
    return route


async def _swap(place: Place, fronts: Fronts, route: Route) -> None:
    """Have one route obeyed by all fronts."""
    table = place.mover.live
    routes = tuple(route if other.endpoint == route.endpoint else other for other in table.routes)
    serial = place.mover.obey(structs.replace(table, routes=routes))
    fronts.say(swap(serial, table, (route,)))
    await fronts.confirmed(serial)
