"""Deployments, folded from the events and from nothing else.

A deployment is one attempt to make a version what callers are served behind a stage, or behind an alias that
an endpoint follows: a rollout, or a promotion that moved the stage at once because no endpoint follows it.
Which events have to be read for that, those before a span among them, is said here too; they are read by the
service, and counted in `delivery`.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime
from enum import StrEnum

from msgspec import Struct, structs

from modelkeep.core.events import Event, EventKind
from modelkeep.core.promotion import MoveCause

BEGINNINGS = (
    EventKind.VERSION_REGISTERED,
    EventKind.STAGE_MOVED,
    EventKind.ALIAS_SET,
    EventKind.ROLLOUT_STARTED,
    EventKind.ROLLOUT_STEPPED,
    EventKind.ROLLOUT_ROLLING_BACK,
)
"""The kinds that may lie before the span and still say how long something took that ended within it."""
KINDS = (
    EventKind.MODEL_RENAMED,
    EventKind.VERSION_REGISTERED,
    EventKind.STAGE_MOVED,
    EventKind.ALIAS_SET,
    EventKind.ROLLOUT_STARTED,
    EventKind.ROLLOUT_STEPPED,
    EventKind.ROLLOUT_ROLLING_BACK,
    EventKind.ROLLOUT_SUCCEEDED,
    EventKind.ROLLOUT_ROLLED_BACK,
    EventKind.ROLLOUT_FAILED,
    EventKind.ROLLOUT_CANCELLED,
    EventKind.ROLLOUT_SUPERSEDED,
    EventKind.ROLLOUT_CONCLUDED,
    EventKind.ENDPOINT_DRILLED,
)
"""The kinds that the figures are made of."""
READ_WHOLE = tuple(kind for kind in KINDS if kind is not EventKind.VERSION_REGISTERED)
"""Those of them that are read for the whole span; of registrations only those of versions that moved are."""


class Outcome(StrEnum):
    """How a deployment ended.

    succeeded    the version serves the stage, or what follows the alias
    rolled_back  it had traffic, and lost it before that was its own
    failed       it could not be loaded; no caller ever met it
    cancelled    a person ended it before it had traffic
    superseded   another took its place
    concluded    it was a shadow or an A/B test that ended with its report, and stable went on

    The last three count for and against nobody.
    """

    SUCCEEDED = "succeeded"
    ROLLED_BACK = "rolled_back"
    FAILED = "failed"
    CANCELLED = "cancelled"
    SUPERSEDED = "superseded"
    CONCLUDED = "concluded"


_OUTCOMES = {
    EventKind.ROLLOUT_SUCCEEDED: Outcome.SUCCEEDED,
    EventKind.ROLLOUT_ROLLED_BACK: Outcome.ROLLED_BACK,
    EventKind.ROLLOUT_FAILED: Outcome.FAILED,
    EventKind.ROLLOUT_CANCELLED: Outcome.CANCELLED,
    EventKind.ROLLOUT_SUPERSEDED: Outcome.SUPERSEDED,
    EventKind.ROLLOUT_CONCLUDED: Outcome.CONCLUDED,
}


class Deployment(Struct, frozen=True, kw_only=True):
    """One attempt to make a version what callers are served.

    Attributes:
        stage: the stage, or the alias that the endpoint follows, such as `@champion`.
        began_at: when its rollout started; None when that lies before everything that was read.
        exposed_at: when the version first had callers.
        decided_at: when it was decided to take it back.
        undone_at: when a version that had succeeded was taken back after all.
        at_once: a promotion that moved the stage itself, with no rollout.
    """

    model: str
    number: int
    stage: str
    rollout: str | None = None
    endpoint: str | None = None
    began_at: datetime | None = None
    exposed_at: datetime | None = None
    decided_at: datetime | None = None
    ended_at: datetime | None = None
    outcome: Outcome | None = None
    undone_at: datetime | None = None
    at_once: bool = False


class LastDrill(Struct, frozen=True, kw_only=True):
    """The last rehearsed rollback of a span: when, where, and how long it took from the command to the last
    request sent to the version taken away. Without live traffic that time says little."""

    sequence: int
    at: datetime
    endpoint: str
    gateway: str
    took_ms: float
    live: bool


# ------------------------------------------------------------------------------------------- names of the day


class _Name:
    """A model, whatever it was called."""

    __slots__ = ("now",)

    def __init__(self, name: str) -> None:
        self.now = name


class Named(Struct, frozen=True):
    """An event, and what its model is called now (after the last of the events)."""

    event: Event
    model: str | None


def named(events: Iterable[Event]) -> list[Named]:
    """Events with the present names of their models: each is filed under the name of its day, and a name
    that was given up may be another model's since.

    Args:
        events: in order, with every renaming of the models that they are about.
    """
    bearers: dict[str, _Name] = {}
    found: list[tuple[Event, _Name | None]] = []
    for event in events:
        if event.kind is EventKind.MODEL_RENAMED and event.model is not None:
            bearer = bearers.pop(str(event.body.get("from")), None) or _Name(event.model)
            bearer.now = event.model
            bearers[event.model] = bearer
        model = bearers.setdefault(event.model, _Name(event.model)) if event.model is not None else None
        found.append((event, model))
    return [Named(event, model.now if model is not None else None) for event, model in found]


# ----------------------------------------------------------------------------------------------- deployments


class Folded(Struct, frozen=True):
    """What events amount to: the deployments, each version's registration and its first entry into the
    stage."""

    deployments: tuple[Deployment, ...]
    registered_at: dict[tuple[str, int], datetime]
    entered_at: dict[tuple[str, int], datetime]
    drills: tuple[LastDrill, ...] = ()


class Asked(Struct, frozen=True, kw_only=True):
    """Whose deployments count: those to a stage (None: to none), and those behind aliases (None: behind every
    one that an endpoint follows)."""

    stage: str | None
    aliases: tuple[str, ...] | None = ()

    def counts(self, pointer: str) -> bool:
        """Whether deployments to `production`, or behind `@champion`, count."""
        if not pointer.startswith("@"):
            return pointer == self.stage
        return self.aliases is None or pointer[1:] in self.aliases


def fold(events: Sequence[Named], asked: Asked) -> Folded:
    """The deployments that are asked for.

    Args:
        events: in order, each once.
    """
    folding = _Folding(asked)
    for one in events:
        if one.model is not None and one.event.number is not None:
            folding.take(one.event, one.model, one.event.number)
    counted = [one for one in folding.found if asked.counts(one.stage)]
    return Folded(tuple(counted), folding.registered_at, folding.entered_at, tuple(folding.drills))


class _Folding:
    """What is known after some of the events."""

    def __init__(self, asked: Asked) -> None:
        self.asked = asked
        self.found: list[Deployment] = []
        self.registered_at: dict[tuple[str, int], datetime] = {}
        self.entered_at: dict[tuple[str, int], datetime] = {}
        self.drills: list[LastDrill] = []
        self._place: dict[str, int] = {}
        self._serving: dict[tuple[str, str, int], int] = {}
        """Where the deployment stands that brought a version of a model to a stage, or behind an alias."""

    def take(self, event: Event, model: str, number: int) -> None:
        match event.kind:
            case EventKind.VERSION_REGISTERED:
                self.registered_at.setdefault((model, number), event.at)
            case EventKind.STAGE_MOVED:
                self._moved(event, model, number)
            case EventKind.ALIAS_SET:
                self._pointed(event, model, number)
            case EventKind.ROLLOUT_STARTED | EventKind.ROLLOUT_STEPPED | EventKind.ROLLOUT_ROLLING_BACK:
                self._moving(event, model, number)
            case EventKind.ENDPOINT_DRILLED:
                self.drills.append(_drill(event))
            case _ if event.kind in _OUTCOMES:
                self._moving(event, model, number)
            case _:
                pass

    def _moved(self, event: Event, model: str, number: int) -> None:
        stage = str(event.body.get("to"))
        if not self.asked.counts(stage):
            return
        self.entered_at.setdefault((model, number), event.at)
        cause = event.body.get("cause")
        if cause == MoveCause.PROMOTION:
            self._serving[model, stage, number] = len(self.found)
            self.found.append(
                Deployment(
                    model=model,
                    number=number,
                    stage=stage,
                    began_at=event.at,
                    exposed_at=event.at,
                    ended_at=event.at,
                    outcome=Outcome.SUCCEEDED,
                    at_once=True,
                )
            )
        elif cause == MoveCause.ROLLOUT:
            self._entered(event, model, stage, number)
        elif cause == MoveCause.ROLLBACK and (left := event.body.get("displaced")):
            self._undone(event, model, stage, int(left["number"]))

    def _pointed(self, event: Event, model: str, number: int) -> None:
        """An alias was set: because a rollout had succeeded, or to go back. Who sets it otherwise moves no
        traffic by that."""
        alias = f"@{event.body.get('alias')}"
        if not self.asked.counts(alias):
            return
        cause = event.body.get("cause")
        if cause == MoveCause.ROLLOUT or (cause is None and event.body.get("rollout") is not None):
            self.entered_at.setdefault((model, number), event.at)
            self._entered(event, model, alias, number)
        elif cause == MoveCause.ROLLBACK and (left := event.body.get("from")) is not None:
            self._undone(event, model, alias, int(left))

    def _undone(self, event: Event, model: str, pointer: str, number: int) -> None:
        """A version that had succeeded was taken back."""
        place = self._serving.pop((model, pointer, number), None)
        if place is not None:
            self.found[place] = structs.replace(self.found[place], undone_at=event.at)

    def _entered(self, event: Event, model: str, pointer: str, number: int) -> None:
        """The stage or alias followed a rollout. One of which nothing was read succeeded before the span."""
        rollout = str(event.body.get("rollout"))
        if rollout not in self._place:
            self._place[rollout] = len(self.found)
            self.found.append(
                Deployment(
                    model=model,
                    number=number,
                    stage=pointer,
                    rollout=rollout,
                    ended_at=event.at,
                    outcome=Outcome.SUCCEEDED,
                )
            )
        self._serving[model, pointer, number] = self._place[rollout]

    def _moving(self, event: Event, model: str, number: int) -> None:
        rollout = str(event.body.get("rollout"))
        place = self._place.setdefault(rollout, len(self.found))
        if place == len(self.found):
            endpoint = event.subject.removeprefix("endpoint/")
            stage = event.body.get("stage", self.asked.stage) or f"@{event.body.get('alias')}"
            self.found.append(
                Deployment(model=model, number=number, stage=stage, rollout=rollout, endpoint=endpoint)
            )
        known = self.found[place]
        match event.kind:
            case EventKind.ROLLOUT_STARTED:
                known = structs.replace(known, began_at=event.at)
            case EventKind.ROLLOUT_STEPPED:
                known = structs.replace(known, exposed_at=known.exposed_at or event.at)
            case EventKind.ROLLOUT_ROLLING_BACK:
                known = structs.replace(known, decided_at=known.decided_at or event.at)
            case _:
                known = structs.replace(known, ended_at=event.at, outcome=_OUTCOMES[event.kind])
        if known.outcome is Outcome.SUCCEEDED and self.asked.counts(known.stage):
            self._serving[model, known.stage, number] = place
            if known.stage.startswith("@"):
                self.entered_at.setdefault((model, number), event.at)
        self.found[place] = known


def _drill(event: Event) -> LastDrill:
    measured = event.body["measured"]
    return LastDrill(
        sequence=event.sequence,
        at=event.at,
        endpoint=event.subject.removeprefix("endpoint/"),
        gateway=str(measured["gateway"]),
        took_ms=float(measured["took_ms"]),
        live=bool(measured["live"]),
    )


# ------------------------------------------------------------------------------------------ what lies before


class Wanted(Struct, frozen=True, kw_only=True):
    """The subjects whose beginnings lie before what was read: endpoints, and versions and aliases as (model,
    reference behind the model's name: `:2.1.0`, `@champion`)."""

    endpoints: tuple[str, ...] = ()
    references: tuple[tuple[str, str], ...] = ()


def wanted(events: Sequence[Named], asked: Asked) -> Wanted:
    """Whose beginnings are to be looked up: rollouts that began before these events, the registration of
    every version that entered the stage or left it by a rollback, or was brought behind an alias, and what an
    alias named from which one went back."""
    begun: set[str] = set()
    endpoints: set[str] = set()
    references: set[tuple[str, str]] = set()
    for one in events:
        event, body, model = one.event, one.event.body, one.model
        if event.kind is EventKind.STAGE_MOVED and model is not None and asked.counts(str(body.get("to"))):
            references.add((model, f":{body.get('semver')}"))
            if displaced := body.get("displaced"):
                references.add((model, f":{displaced['semver']}"))
        elif event.kind is EventKind.ALIAS_SET and model is not None:
            if asked.counts(pointer := f"@{body.get('alias')}") and "cause" in body:
                references |= {(model, pointer), (model, f":{body.get('semver')}")}
        elif event.kind is EventKind.ROLLOUT_STARTED:
            begun.add(str(body.get("rollout")))
            if model is not None and (alias := body.get("alias")) and asked.counts(f"@{alias}"):
                references.add((model, f":{body.get('to')}"))
        elif event.subject.startswith("endpoint/") and str(body.get("rollout", "")) not in {"", *begun}:
            endpoints.add(event.subject)
    return Wanted(endpoints=tuple(sorted(endpoints)), references=tuple(sorted(references)))
