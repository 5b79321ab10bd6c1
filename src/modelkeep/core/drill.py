"""A rehearsed rollback: what stands in its way, what a gateway measured, and what is kept of it.

The drill itself is the gateway's business (`serving.drills`), who may order one the service's.
"""

import math
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any

from msgspec import Meta, Struct

from modelkeep.core import codec, errors, values
from modelkeep.core.observation import VersionPhase
from modelkeep.core.windows import read_window, within

TOOK_MS_MAX = 600_000.0
"""A rollback that takes ten minutes is no drill."""
DRILL_S = 60.0
"""A drill that has begun and was not told of for so long is over; it lasts ten seconds at most."""
TOLD_S = 900.0
"""So long after its beginning a drill can be told of: a server may have been away meanwhile."""
TRAFFIC_MIN = 1.0
"""Requests, as `observation.Lately` weighs them: about two in the last minute."""
SICK_FROM = 20.0
"""Requests from which on their failures say something."""
SICK_SHARE = 0.05
"""The share of failures from which on an endpoint is not well: five times what most call an incident."""


class Obstacle(StrEnum):
    """What stands in the way of a drill.

    rollout     a rollout is under way; its own rollback is not for practice
    not_loaded  no former version is loaded, so that there is nothing to go back to
    no_gateway  no gateway answers
    drill       another drill of the endpoint has begun and is not over
    window      the policy has windows for drills, and this is not one of them
    unhealthy   what is served is not well, and callers have enough to bear
    no_traffic  nobody asks, so that nothing would be measured
    """

    ROLLOUT = "rollout"
    NOT_LOADED = "not_loaded"
    NO_GATEWAY = "no_gateway"
    DRILL = "drill"
    WINDOW = "window"
    UNHEALTHY = "unhealthy"
    NO_TRAFFIC = "no_traffic"

    @property
    def final(self) -> bool:
        """Whether nobody can drill past it; the others are for whoever administers the model to weigh."""
        return self not in (Obstacle.WINDOW, Obstacle.UNHEALTHY, Obstacle.NO_TRAFFIC)


class Hindrance(Struct, frozen=True, kw_only=True):
    """An obstacle, in a sentence."""

    obstacle: Obstacle
    why: str


class DrillPlan(Struct, frozen=True, kw_only=True):
    """What a drill of an endpoint would do: take `stands` away for a moment, in favour of `former`.

    Attributes:
        stands, former: by their semvers; None where there is none.
        gateways: those that answer and have both loaded.
        against: what speaks against it now, first what nobody can drill past; nothing where it may be.
        next_at: when the policy's next window opens, where there is one and it is closed.
    """

    endpoint: str
    model: str
    stands: str | None
    former: str | None
    gateways: tuple[str, ...]
    against: tuple[Hindrance, ...] = ()
    next_at: datetime | None = None

    @property
    def final(self) -> bool:
        """Whether nobody can drill now, whatever they say."""
        return any(one.obstacle.final for one in self.against)


class Place(Struct, frozen=True, kw_only=True):
    """A gateway that answers: how far it is with the version that stands, and with the former one."""

    gateway: str
    stands: VersionPhase | None
    former: VersionPhase | None

    @property
    def how(self) -> str:
        """How far it is with the version that stands."""
        return f"{self.stands or 'unknown'} on {self.gateway}"


class Standing(Struct, frozen=True, kw_only=True):
    """What a registry knows of an endpoint that is to be drilled.

    Attributes:
        disagreement: how what it serves and what it follows are apart.
        requests, failed: what was answered lately, over all gateways that answer.
        drilling_s: how long ago another drill began that is not over.
    """

    endpoint: str
    stands: str | None
    former: str | None
    rollout: str | None = None
    places: tuple[Place, ...] = ()
    disagreement: str | None = None
    requests: float = 0.0
    failed: float = 0.0
    drilling_s: float | None = None
    windows: tuple[str, ...] = ()

    @property
    def gateways(self) -> tuple[str, ...]:
        """Those at which a drill can be."""
        ready = VersionPhase.READY
        return tuple(place.gateway for place in self.places if place.stands is place.former is ready)


def hindrances(seen: Standing, now: datetime) -> tuple[Hindrance, ...]:
    """What speaks against a drill now, first what nobody can drill past.

    Raises:
        InvalidPolicy: a window names a zone that is not known on this machine.
    """
    name, ready = seen.endpoint, VersionPhase.READY
    windows = [read_window(text) for text in seen.windows]
    sick = [place for place in seen.places if place.stands is not ready]
    share = seen.failed / seen.requests if seen.requests else 0.0
    found = (
        (
            Obstacle.ROLLOUT,
            seen.rollout is not None,
            f"a rollout of {name} is under way; drill when it has ended",
        ),
        (
            Obstacle.NOT_LOADED,
            seen.stands is None or seen.former is None,
            f"{name} keeps no former version loaded; a second version has to succeed first",
        ),
        (
            Obstacle.NO_GATEWAY,
            not seen.places,
            f"no gateway answers for {name}; start one with 'modelkeep gateway'",
        ),
        (
            Obstacle.NOT_LOADED,
            seen.former is not None and bool(seen.places) and all(p.former is not ready for p in seen.places),
            f"the former version {seen.former} is loaded on no gateway that answers",
        ),
        (
            Obstacle.DRILL,
            seen.drilling_s is not None and abs(seen.drilling_s) < DRILL_S,
            f"another drill of {name} has begun and is not over; wait a minute",
        ),
        (
            Obstacle.WINDOW,
            not within(windows, now),
            f"the policy has drills in {', '.join(seen.windows)} alone",
        ),
        (
            Obstacle.UNHEALTHY,
            seen.disagreement is not None,
            f"{name} does not serve what it follows: {seen.disagreement}",
        ),
        (
            Obstacle.UNHEALTHY,
            bool(sick),
            f"{seen.stands} is {', '.join(one.how for one in sick)}",
        ),
        (
            Obstacle.UNHEALTHY,
            seen.requests >= SICK_FROM and share >= SICK_SHARE,
            f"{share:.0%} of what {seen.stands} answered lately failed",
        ),
        (
            Obstacle.NO_TRAFFIC,
            bool(seen.places) and seen.requests < TRAFFIC_MIN,
            f"nobody has asked {name} lately, so that a drill would measure nothing",
        ),
    )
    return tuple(Hindrance(obstacle=obstacle, why=why) for obstacle, there, why in found if there)


def refusal(plan: DrillPlan) -> errors.ModelkeepError:
    """The error for a drill that may not be: of the first obstacle, with all of them in its details."""
    first = plan.against[0]
    told: dict[str, Any] = {"endpoint": plan.endpoint, "against": codec.builtins(list(plan.against))}
    match first.obstacle:
        case Obstacle.ROLLOUT:
            return errors.RolloutActive(f"No drill now: {first.why}.", **told)
        case Obstacle.NOT_LOADED:
            return errors.NoRollbackTarget(f"No drill now: {first.why}.", **told)
        case Obstacle.NO_GATEWAY:
            return errors.GatewayUnavailable(f"No drill now: {first.why}.", **told)
        case _:
            pass
    when = ""
    if plan.next_at is not None:
        told["next_at"] = codec.format_time(plan.next_at)
        when = f" The next window opens at {plan.next_at:%Y-%m-%d %H:%M} UTC."
    why = "; ".join(one.why for one in plan.against)
    anyway = "" if plan.final else _ANYWAY
    return errors.DrillRefused(f"No drill of {plan.endpoint} now: {why}.{when}{anyway}", **told)


_ANYWAY = " Who administers the model can drill all the same: --anyway WHY."


class Measured(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a gateway measured.

    Attributes:
        took_ms: from the command to the last request sent to the version taken away.
        confirmed_ms: from the command until every front obeyed.
        back_ms: what putting the version back took.
        hold_s: how long the former version answered.
        live: whether there was traffic; without any, the time says little.
    """

    gateway: Annotated[str, Meta(max_length=values.NAME_MAX)]
    took_ms: float
    confirmed_ms: float
    back_ms: float
    hold_s: float
    live: bool
    fronts: Annotated[int, Meta(ge=1, le=10_000)] = 1


class Drill(Struct, frozen=True, kw_only=True):
    """A drill that was done, as its event has it."""

    sequence: int
    endpoint: str
    model: str
    stands: str
    former: str
    at: datetime
    by: str
    reason: str
    measured: Measured
    against: tuple[Hindrance, ...] = ()
    """What spoke against it, and `anyway` why it was done all the same."""
    anyway: str | None = None


def check_measured(found: Measured) -> Measured:
    """Refuse what no clock can have measured.

    Raises:
        InvalidName, Invalid: names what is off.
    """
    values.check_name(found.gateway, "gateway")
    for name, value in (
        ("took_ms", found.took_ms),
        ("confirmed_ms", found.confirmed_ms),
        ("back_ms", found.back_ms),
        ("hold_s", found.hold_s * 1_000),
    ):
        if not (math.isfinite(value) and 0 <= value <= TOOK_MS_MAX):
            raise errors.Invalid(f"'{name}' is a time of 0 to ten minutes.", field=name)
    if found.took_ms > found.confirmed_ms:
        raise errors.Invalid("No request is sent to a version after all fronts left it.", field="took_ms")
    return found
