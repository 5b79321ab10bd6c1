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
    outrank   say the route under a term above the gateway's, so that it follows again; take a rollout back
    wait      the rollout under way does it, whichever way it ends
    nothing   a person has to say what is meant
    """

    START = "start"
    POINT = "point"
    LET_GO = "let_go"
    REPUBLISH = "republish"
    OUTRANK = "outrank"
    WAIT = "wait"
    NOTHING = "nothing"


class Standing(Struct, frozen=True, kw_only=True):
    """All that the comparison needs to know.

    Attributes:
        rollout: the one that the endpoint names, in whatever state; None where there is none of that id.
        pointed: the version that the stage or alias names.
        pointed_withdrawn, served_withdrawn: whether that version, or the endpoint's own, was taken back.
        refused: the last rollout to the version that is named ended without success.
        ahead: the gateways that answer and would ignore what the registry tells them, for what they have is
            newer.
        deaf: those that have the present table, and serve something else all the same.
    """

    endpoint: Endpoint
    rollout: Rollout | None = None
    pointed: int | None = None
    pointed_withdrawn: bool = False
    served_withdrawn: bool = False
    refused: bool = False
    ahead: tuple[str, ...] = ()
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
    if endpoint.rollout is not None and (running is None or running.state.finished):
        how = f"it is {running.state}" if running is not None else "there is no such rollout"
        why = f"the endpoint names the rollout {endpoint.rollout}, but {how}"
        return Found(rift=Rift.LOST, mend=Mend.LET_GO, why=why)
    if seen.ahead:
        why = f"the gateway {seen.ahead[0]} has a route that is newer than any made here, and keeps to it"
        return Found(rift=Rift.OUTRUN, mend=Mend.OUTRANK, why=why)
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


def abandoned(rollout: Rollout, why: str, now: datetime) -> Rollout:
    """A rollout that no endpoint names, ended: there is no traffic to be given back."""
    return structs.replace(
        rollout,
        state=RolloutState.CANCELLED,
        epoch=Epoch(rollout.epoch.term + 1, 0),
        weight_ppm=0,
        held=None,
        paused=None,
        outcome=why,
        finished_at=now,
    )


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
