"""Where versions stand: the one place that moves them, and the past as people ask for it.

`move` records the STAGE_MOVED event and brings the projections up to it in the same act; nothing else does.
Whether a move is allowed was decided before, in `promotion`.
"""

from datetime import datetime
from typing import Any

from msgspec import Struct

from modelkeep.core import codec, errors, promotion, registration, values
from modelkeep.core.access import Verb
from modelkeep.core.answers import History, WhatWas
from modelkeep.core.catalog import ModelVersion, RegisteredModel, StageGraph
from modelkeep.core.events import ChainedEvent, EventKind
from modelkeep.core.policy import GateResult
from modelkeep.core.promotion import Displaced, Interval, MoveCause, StageMove
from modelkeep.core.rollout import attempt_of
from modelkeep.core.values import Actor, Digest, Numbered, Ref, Staged
from modelkeep.service import references
from modelkeep.service.act import Act
from modelkeep.store import catalog as catalog_store
from modelkeep.store import models as models_store
from modelkeep.store import promotion as store
from modelkeep.store import requests as request_store
from modelkeep.store import rollout as rollout_store
from modelkeep.store import versions as versions_store
from modelkeep.store.database import ConstraintFailed
from modelkeep.store.events import FAR
from modelkeep.store.models import ModelRow
from modelkeep.store.promotion import Occupant

PRODUCTION = "production"
"""The stage that is meant where a question names none."""
HISTORY_ATTEMPTS = 50
"""Rollouts without success that history looks at; 'modelkeep rollout ls' has all."""
HISTORY_EVENTS = 50
"""Events shown with a model's history; 'modelkeep audit log' has all."""


class Because(Struct, frozen=True, kw_only=True):
    """What stands behind a move: its cause, and the decision that allowed it, where there was one.

    `asked_by` is who asked for a move that a rollout carries out; else it is whoever acts.
    """

    cause: MoveCause
    reason: str
    request: str | None = None
    rollout: str | None = None
    asked_by: Actor | None = None
    incident: str | None = None
    gates: tuple[GateResult, ...] = ()
    approved_by: tuple[str, ...] = ()
    policy: Digest | None = None


class Place(Struct, frozen=True, kw_only=True):
    """Where a version is to go, as it is before: its model's row, the stage, and who stands there, where only
    one can."""

    model: ModelRow
    version: ModelVersion
    to: str
    occupant: Occupant | None

    @property
    def incumbent(self) -> int | None:
        """The number of the other version that stands in an exclusive stage."""
        stands = self.occupant
        return stands.number if stands is not None and stands.number != self.version.number else None


def place_in(act: Act, model: ModelRow, version: ModelVersion, to: str) -> Place:
    """Look at a stage for a version that is to enter it.

    Raises:
        InvalidTransition: the model has no such stage.
    """
    exclusive = model.stages.stage(to).exclusive
    occupant = store.occupant(act.tx, model.id, to) if exclusive else None
    return Place(model=model, version=version, to=to, occupant=occupant)


class Moved(Struct, frozen=True, kw_only=True):
    """A move that was made."""

    interval: Interval
    displaced: Displaced | None


def move(act: Act, model: ModelRow, version: ModelVersion, to: str, because: Because) -> Moved:
    """`enter` for who has not looked at the stage. Raises as that, and InvalidTransition: there is none."""
    return enter(act, place_in(act, model, version, to), because)


def enter(act: Act, place: Place, because: Because) -> Moved:
    """Move a version to a stage, displacing whoever stands in an exclusive one, with the event of it.

    Raises:
        StageMoved: another process took the stage at the same moment.
    """
    model, version, to = place.model, place.version, place.to
    displaced = None
    if place.occupant is not None and place.incumbent is not None:
        aside = model.stages.displaced_to
        displaced = Displaced(
            number=place.occupant.number,
            semver=place.occupant.semver,
            to=aside,
            first=aside == model.stages.initial,
        )
    body = StageMove(
        from_stage=version.stage,
        to=to,
        first=to == model.stages.initial,
        semver=version.semver,
        cause=because.cause,
        displaced=displaced,
        request=because.request,
        rollout=because.rollout,
        asked_by=because.asked_by,
        incident=because.incident,
        gates=because.gates,
        approved_by=because.approved_by,
        policy=because.policy,
    )
    event = act.record(
        EventKind.STAGE_MOVED,
        version.reference,
        model=model.full_name,
        number=version.number,
        reason=because.reason,
        **codec.builtins(body),
    )
    try:
        interval = store.project(act.tx, model.id, model.stages, event)
    except ConstraintFailed as problem:
        raise errors.StageMoved(
            f"Somebody else moved {model.full_name}#{to} at the same moment; look at it with "
            f"'modelkeep history {values.in_shell(model.full_name)}' and try again.",
            stage=to,
        ) from problem
    moved = (version.number, displaced.number) if displaced is not None else (version.number,)
    versions_store.touch(act.tx, model.id, moved, act.now)
    models_store.touch_model(act.tx, model.id, act.now)
    return Moved(interval=interval, displaced=displaced)


def tombstone(act: Act, version: ModelVersion, why: str, incident: str | None = None) -> None:
    """Mark a version as taken back, so that it does not return by itself. A mark that is there stays."""
    if version.tombstone is not None:
        return
    model_id = models_store.get_row(act.tx, version.model).id
    catalog_store.set_tombstone(act.tx, model_id, version.number, why, act.now)
    act.record(
        EventKind.VERSION_TOMBSTONED,
        version.reference,
        model=version.model,
        number=version.number,
        reason=why,
        stage=version.stage,
        incident=incident,
    )


def clear(act: Act, version: ModelVersion, reason: str) -> ModelVersion:
    """Let a version that was taken back return.

    Raises:
        NotAllowed: the caller may not promote.
        Conflict: it was not taken back.
    """
    values.check_text(reason, "reason", required=True)
    act.authorise(Verb.PROMOTE, version.model)
    if version.tombstone is None:
        raise errors.Conflict(f"{version.reference} was not taken back; there is nothing to clear.")
    model_id = models_store.get_row(act.tx, version.model).id
    catalog_store.set_tombstone(act.tx, model_id, version.number, None, act.now)
    act.record(
        EventKind.VERSION_CLEARED,
        version.reference,
        model=version.model,
        number=version.number,
        reason=reason,
        was=version.tombstone,
    )
    return catalog_store.get_version(act.tx, version.model, version.number)


def set_stages(act: Act, model: ModelRow, graph: StageGraph, followed: frozenset[str]) -> RegisteredModel:
    """Give a model another stage graph.

    Args:
        followed: the stages that an endpoint follows.

    Raises:
        Invalid: the graph could not be kept.
        InvalidTransition: it does not fit where the versions are.
    """
    registration.check_stages(graph)
    if graph == model.stages:
        return catalog_store.get_model(act.tx, model.full_name)
    held = store.held(act.tx, model.id)
    promotion.check_graph_change(model.stages, graph, held, followed)
    models_store.set_stages(act.tx, model.id, graph, act.now)
    store.set_exclusive(act.tx, model.id, graph)
    change: dict[str, Any] = {"from": model.stages, "to": graph}
    act.record(EventKind.STAGES_CHANGED, str(model.full_name), model=model.full_name, **change)
    return catalog_store.get_model(act.tx, model.full_name)


def history(act: Act, model: ModelRow, stage: str | None, limit: int) -> History:
    """The stays of a model's versions in a stage, or in all, the latest first, the rollouts that were to
    bring one there and did not, and the model's latest events.

    Raises:
        InvalidTransition: the model has no such stage, and never had.
    """
    intervals = store.stays(act.tx, model.id, stage, FAR, limit)
    if stage is not None and not intervals:
        model.stages.stage(stage)
    ended = rollout_store.attempts(act.tx, model.id, min(limit, HISTORY_ATTEMPTS))
    told = [attempt_of(rollout) for rollout in ended if stage in (None, rollout.stage)]
    events: list[ChainedEvent] = []
    if act.may(Verb.READ_AUDIT, model.full_name):
        events = act.tx.events.before(limit=min(limit, HISTORY_EVENTS), model=str(model.full_name))
    return History(
        model=model.full_name,
        intervals=tuple(intervals),
        attempts=tuple(attempt for attempt in told if attempt is not None),
        events=tuple(events),
    )


def whatwas(act: Act, model: ModelRow, ref: Ref, at: datetime) -> WhatWas:
    """What stood in a stage when the last event up to a moment had just happened.

    Raises:
        InvalidReference: the reference names something else than a stage.
        StageEmpty: nothing stood there then.
        Invalid: several versions may stand there, for the stage is not exclusive.
    """
    match ref.selector:
        case None:
            stage = PRODUCTION
        case Staged(stage=stage):
            pass
        case _:
            raise errors.InvalidReference(
                "Ask what was in a stage: "
                f"'modelkeep whatwas {values.in_shell(model.full_name)}#{PRODUCTION} --at TIME'."
            )
    if stage == model.stages.initial:
        raise errors.Invalid(f"Every version begins in {stage}; ask what was in another stage.")
    sequence = act.tx.events.as_of(at)
    found = store.in_stage_at(act.tx, model.id, stage, sequence, 2)
    if not found:
        if not store.stays(act.tx, model.id, stage, FAR, 1):
            model.stages.stage(stage)
        raise errors.StageEmpty(
            f"Nothing was in {model.full_name}#{stage} at {codec.format_time(at)}; "
            f"'modelkeep history {values.in_shell(model.full_name)} --stage {stage}' shows when one was.",
            stage=stage,
            sequence=sequence,
        )
    if len(found) > 1:
        raise errors.Invalid(
            f"Several versions were in {model.full_name}#{stage} at {codec.format_time(at)}; "
            f"'modelkeep history {values.in_shell(model.full_name)} --stage {stage}' lists them."
        )
    interval = found[0]
    event = act.tx.events.get(interval.from_sequence).event
    decided = codec.convert(event.body, StageMove)
    own = interval.cause is not MoveCause.DISPLACED
    named = Ref(model=model.full_name, selector=Numbered(interval.number), at=at)
    return WhatWas(
        version=references.resolve(act, named),
        stage=stage,
        at=at,
        sequence=sequence,
        interval=interval,
        event=event,
        gates=decided.gates if own else (),
        approved_by=decided.approved_by if own else (),
        request=request_store.get_request(act.tx, decided.request) if own and decided.request else None,
    )
