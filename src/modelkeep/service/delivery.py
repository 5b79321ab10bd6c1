"""Deployment figures of what a caller may see, from the events.

What counts as what is decided in `core.deployments` and `core.delivery`. Here the events are found, and those
of models that the caller may not read are left out.
"""

from datetime import datetime, timedelta

from modelkeep.core import delivery, deployments, errors, values
from modelkeep.core.access import Verb
from modelkeep.core.delivery import DeliveryReport
from modelkeep.core.deployments import Asked, Named
from modelkeep.core.events import Event, EventKind
from modelkeep.core.values import ModelName
from modelkeep.service import stages
from modelkeep.service.act import Act
from modelkeep.store import catalog as catalog_store
from modelkeep.store import delivery as store
from modelkeep.store import renames

SPAN_DEFAULT = timedelta(days=30)
"""How far a report looks back when nobody says."""


def report(
    act: Act,
    *,
    since: datetime | None = None,
    until: datetime | None = None,
    model: ModelName | None = None,
    project: str | None = None,
    stage: str | None = None,
    alias: str | None = None,
) -> DeliveryReport:
    """The figures of what ended in a span; the last thirty days when nothing is said.

    Args:
        stage, alias: deployments to that stage alone, or behind that alias alone; without either those to
            production and those behind every alias that an endpoint follows.

    Raises:
        ModelNotFound: also for a model that the caller may not read.
        Invalid: the span ends before it begins, or both a model and a project are named, or both a stage and
            an alias.
        LimitExceeded: too much happened in the span.
    """
    asked = _asked(stage, alias)
    until = min(until or act.now, act.now)
    since = since if since is not None else until - SPAN_DEFAULT
    if since >= until:
        raise errors.Invalid("A report's span begins before it ends, and before now.", field="since")
    if model is not None and project is not None:
        raise errors.Invalid("Ask for a model or for a project, not for both.", field="project")
    if model is not None:
        act.readable(model)
        catalog_store.get_model(act.tx, model)
    found = _events(act, since, until, model, asked)
    shown = {name for name in {one.model for one in found} if _is_asked(act, name, model, project)}
    return delivery.report(
        [one for one in found if one.model in shown],
        since=since,
        until=until,
        asked=asked,
        model=str(model) if model is not None else None,
        project=project,
    )


def _asked(stage: str | None, alias: str | None) -> Asked:
    if stage is not None and alias is not None:
        raise errors.Invalid("Ask for a stage or for an alias, not for both.", field="alias")
    if alias is not None:
        return Asked(stage=None, aliases=(values.check_name(alias, "alias"),))
    if stage is not None:
        return Asked(stage=values.check_name(stage, "stage"))
    return Asked(stage=stages.PRODUCTION, aliases=None)


def _is_asked(act: Act, name: str | None, model: ModelName | None, project: str | None) -> bool:
    """Whether the caller asks for this model, and may see it."""
    if name is None:
        return False
    own = values.parse_model_name(name)
    if (model is not None and own != model) or (project is not None and own.project != project):
        return False
    return act.may(Verb.READ, own)


def _events(act: Act, since: datetime, until: datetime, model: ModelName | None, asked: Asked) -> list[Named]:
    """All events that the figures need, in order and each once, under the present names of their models."""
    after, last = act.tx.events.as_of(since), act.tx.events.as_of(until)
    names = [span.name for span in renames.spans(act.tx, str(model))] if model is not None else None
    inside = store.within(act.tx, deployments.READ_WHOLE, after, last, names)
    _check(inside)
    renamed = store.within(act.tx, (EventKind.MODEL_RENAMED,), 0, renames.FAR)
    wanted = deployments.wanted(deployments.named([*renamed, *inside]), asked)
    subjects = list(wanted.endpoints)
    for name, reference in wanted.references:
        own = renames.spans(act.tx, name) if renamed else ()
        subjects += {f"{known}{reference}" for known in (name, *(span.name for span in own))}
    before = store.of_subjects(act.tx, subjects, deployments.BEGINNINGS, last)
    _check(before)
    every: dict[int, Event] = {event.sequence: event for event in (*renamed, *before, *inside)}
    return deployments.named([every[sequence] for sequence in sorted(every)])


def _check(found: list[Event]) -> None:
    if len(found) > store.EVENTS_MAX:
        raise errors.LimitExceeded(
            f"More than {store.EVENTS_MAX:,} events happened in this span; ask for a shorter one, or for one "
            "model.",
            field="since",
        )
