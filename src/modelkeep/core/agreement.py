"""Whether what an endpoint follows and what it serves are the same version, and what is to be done where not.

Every act of ours moves both in one transaction, so they differ only where something came from outside: rows
that were restored or mended by hand, a registry that went back to a backup while its gateways did not, a
version that was in the stage before its endpoint. `compare` is pure; looking, telling and mending are the
service's.
"""

from datetime import datetime
from enum import StrEnum

from msgspec import Struct, structs

from modelkeep.core.movement import Endpoint, Rift, Rollout, RolloutState
from modelkeep.core.routing import Epoch


class Mend(StrEnum):
    """What brings the two together again.

    start     move the traffic to the version that is named, at once, as soon as it is loaded
    point     name the version that is served
    let_go    forget a rollout that is not under way any more
    republish say the route again, under a new number of the table
    outrank   say the route under a term above the gateway's, which serves just that, so that it follows again
    take_over have the endpoint serve what its gateways serve, and name that
    take_back the gateways have taken the candidate back: so it is
    call_off  end a rollout against whose candidate nothing is known
    wait      the rollout under way does it, whichever way it ends
    nothing   a person has to say what is meant
    """

    START = "start"
    POINT = "point"
    LET_GO = "let_go"
    REPUBLISH = "republish"
    OUTRANK = "outrank"
    TAKE_OVER = "take_over"
    TAKE_BACK = "take_back"
    CALL_OFF = "call_off"
    WAIT = "wait"
    NOTHING = "nothing"


class Ahead(Struct, frozen=True, kw_only=True):
    """A gateway whose route is newer than what the registry has; the newest of them, where there are several.

    Attributes:
        agrees: it serves as stable what the registry would have it serve; only the age differs.
        served: otherwise the number of what it serves, where that held here before or is being moved here,
            and was not taken back; None for anything else.
        kept: it keeps the version that the registry serves as the way back. A success does so; a rollback
            never does.
        taken_back: nobody is tried there any more, under a later term than that of the rollout under way.
    """

    gateway: str
    epoch: Epoch
    agrees: bool
    served: int | None = None
    kept: bool = False
    taken_back: bool = False


class Standing(Struct, frozen=True, kw_only=True):
    """All that the comparison needs to know.

    Attributes:
        rollout: the one that the endpoint names, in whatever state; None where there is none of that id.
        pointed: the version that the stage or alias names.
        pointed_withdrawn, served_withdrawn: whether that version, or the endpoint's own, was taken back.
        refused: the last rollout to the version that is named ended without success.
        ahead: the gateway that answers and would ignore what the registry tells it, for what it has is newer.
        deaf: the gateways that have the present table, and serve something else all the same.
    """

    endpoint: Endpoint
    rollout: Rollout | None = None
    pointed: int | None = None
    pointed_withdrawn: bool = False
    served_withdrawn: bool = False
    refused: bool = False
    ahead: Ahead | None = None
    deaf: tuple[str, ...] = ()


class Found(Struct, frozen=True, kw_only=True):
    """What does not agree, in words, and what mends it."""

    rift: Rift
    mend: Mend
    why: str


def compare(seen: Standing) -> Found | None:
    """What does not agree; None when all is well, a rollout under way included.

    A rollout under way is never ended for the pointer's sake: its rollback target stays loaded, and its end
    brings both together. Nothing takes weight from stable but a rollout that begins by loading its version.
    """
    endpoint, running = seen.endpoint, seen.rollout
    if seen.ahead is not None and not seen.ahead.agrees:
        return _elsewhere(seen, seen.ahead)
    if endpoint.rollout is not None and (running is None or running.state.finished):
        how = f"it is {running.state}" if running is not None else "there is no such rollout"
        why = f"the endpoint names the rollout {endpoint.rollout}, but {how}"
        return Found(rift=Rift.LOST, mend=Mend.LET_GO, why=why)
    if seen.ahead is not None:
        return _older(seen, seen.ahead)
    if seen.deaf and running is None:
        why = f"the gateway {seen.deaf[0]} has the present table and serves another version"
        return Found(rift=Rift.DEAF, mend=Mend.REPUBLISH, why=why)
    if seen.pointed == endpoint.stable:
        return None
    if endpoint.stable is None:
        return _begun(seen)
    if seen.pointed is None and endpoint.alias is None:
        return None  # its version went on to another stage, as versions do; the endpoint keeps it meanwhile
    if seen.pointed is None:
        why = f"{endpoint.follows} names nothing; the endpoint goes on with number {endpoint.stable}"
        return Found(rift=Rift.VACANT, mend=Mend.WAIT if running is not None else Mend.NOTHING, why=why)
    why = f"{endpoint.follows} names number {seen.pointed}, and number {endpoint.stable} is served"
    if running is not None:
        return Found(rift=Rift.APART, mend=Mend.WAIT, why=f"{why}; the rollout {running.id} is under way")
    if not seen.pointed_withdrawn:
        return Found(rift=Rift.APART, mend=Mend.START, why=why)
    why += f", for number {seen.pointed} was taken back"
    mend = Mend.NOTHING if seen.served_withdrawn else Mend.POINT
    return Found(rift=Rift.WITHDRAWN, mend=mend, why=why)


def abandoned(rollout: Rollout, why: str, now: datetime, epoch: Epoch | None = None) -> Rollout:
    """A rollout ended with nothing said against its candidate, which has no callers from then on.

    Args:
        epoch: the age of the route without it; left out, the beginning of the rollout's next term.
    """
    return structs.replace(
        rollout,
        state=RolloutState.CANCELLED,
        epoch=epoch or Epoch(rollout.epoch.term + 1, 0),
        weight_ppm=0,
        held=None,
        paused=None,
        outcome=why,
        finished_at=now,
    )


def _elsewhere(seen: Standing, ahead: Ahead) -> Found:
    """What to do about a gateway that is ahead and serves another version than the registry says.

    It may have taken back the very version that is named here. So its traffic stays where it is: what is
    older never undoes what is newer.
    """
    why = f"{_newer(ahead)}, and it serves another version than is said here"
    if ahead.served is not None:
        how = "which it keeps as the way back" if ahead.kept else "which it has gone back from"
        left = f" and not number {seen.endpoint.stable}, {how}" if seen.endpoint.stable is not None else ""
        return Found(rift=Rift.OUTRUN, mend=Mend.TAKE_OVER, why=f"{why}: number {ahead.served}{left}")
    why += "; nothing says that it held here, so a person has to promote it, or to roll back at the gateway"
    return Found(rift=Rift.OUTRUN, mend=Mend.NOTHING, why=why)


def _older(seen: Standing, ahead: Ahead) -> Found:
    """What to do about a gateway that is ahead and serves what the registry says.

    What a rollout under way has counted does not belong to what the gateway does, so that its candidate gets
    no weight by it. It is tombstoned only where the gateway seems to have taken it back.
    """
    why, running = _newer(ahead), seen.rollout
    first = seen.endpoint.stable is None
    if first or running is None or running.state is RolloutState.ROLLING_BACK:
        return Found(rift=Rift.OUTRUN, mend=Mend.OUTRANK, why=why)
    if ahead.taken_back:
        return Found(rift=Rift.OUTRUN, mend=Mend.TAKE_BACK, why=f"{why}; its candidate is gone there")
    why += f"; the rollout {running.id} ends, for its counts are not of what is served"
    return Found(rift=Rift.OUTRUN, mend=Mend.CALL_OFF, why=why)


def _newer(ahead: Ahead) -> str:
    return f"the gateway {ahead.gateway} has a route that is newer than any made here, and keeps to it"


def _begun(seen: Standing) -> Found | None:
    """An endpoint that serves nothing yet, though there is something to serve."""
    endpoint = seen.endpoint
    if seen.rollout is not None and seen.rollout.state is not RolloutState.ROLLING_BACK:
        return None
    why = f"{endpoint.follows} names number {seen.pointed}, and nothing is served"
    if seen.pointed_withdrawn:
        return Found(rift=Rift.WITHDRAWN, mend=Mend.NOTHING, why=f"{why}, for that was taken back")
    if seen.refused:
        return Found(rift=Rift.APART, mend=Mend.NOTHING, why=f"{why}, for its last rollout did not succeed")
    return Found(rift=Rift.APART, mend=Mend.START, why=why)
