"""What may be logged to a run, and how it is: the rules that the verbs of tracking share.

A run's log is measurement and not state: nothing in here makes an event. Small functions that `tracking`
applies inside an act; finding out who asks has happened before, except for what `open_log` says.
"""

from collections.abc import Collection, Iterable, Sequence
from typing import Any

from modelkeep.core import errors, tracking
from modelkeep.core.access import Verb
from modelkeep.core.tracking import RUN_KEYS_MAX, RUN_NAME_TAG, LifecycleStage, Metric, Run, Tag
from modelkeep.core.values import printable, quoted
from modelkeep.service.act import Act
from modelkeep.store import logged_models, run_log, runs
from modelkeep.store.run_log import LogRow, Logs

VALUE_SHOWN = 60
"""Characters of a value that an error repeats."""


def now_ms(act: Act) -> int:
    """The act's moment as MLflow counts."""
    return int(act.now.timestamp() * 1000)


def no_experiment(which: str, stage: LifecycleStage | None = None) -> errors.ExperimentNotFound:
    """The one sentence for an experiment that is not there, not to be seen, or not in this stage."""
    shown = printable(which)[:VALUE_SHOWN]
    kind = f"{stage} experiment" if stage else "experiment"
    return errors.ExperimentNotFound(
        f"There is no {kind} {shown}; search the experiments that you can see.", experiment=shown
    )


def no_tag(key: str, where: str) -> errors.TagNotFound:
    """The one sentence for a tag that is not there."""
    return errors.TagNotFound(
        f"There is no tag {quoted(key, VALUE_SHOWN)} on {where}; look at its tags.", key=key
    )


def no_run(run_id: str) -> errors.RunNotFound:
    """The one sentence for a run that is not there or not to be seen."""
    shown = printable(run_id)[:VALUE_SHOWN]
    return errors.RunNotFound(f"There is no run {shown}; search the experiment's runs.", run_id=shown)


def no_logged_model(model_id: str) -> errors.LoggedModelNotFound:
    """The one sentence for a logged model that is not there or not to be seen."""
    shown = printable(model_id)[:VALUE_SHOWN]
    return errors.LoggedModelNotFound(
        f"There is no logged model {shown}; search the experiment's logged models.", model_id=shown
    )


def deleted(what: str) -> errors.InvalidState:
    """The one sentence for a change of something that lies in the bin."""
    return errors.InvalidState(f"{what[:1].upper()}{what[1:]} is deleted; restore it first.", subject=what)


def open_log(act: Act, run_id: str, *kinds: Logs) -> LogRow:
    """The run that something is to be logged to, and how many keys of these kinds it has.

    Raises:
        RunNotFound: it is not there or not to be seen. NotAllowed: the caller may not track in its project.
        InvalidState: it is deleted.
    """
    row = run_log.open_log(act.tx, run_id, kinds)
    if row is None or not act.may(Verb.READ, row.project):
        raise no_run(run_id)
    act.authorise(Verb.TRACK, row.project)
    if row.deleted:
        raise deleted(f"run {run_id}")
    return row


def log_metrics(act: Act, run: LogRow, points: Sequence[Metric]) -> None:
    """Write checked points, also to the logged models that they were measured of.

    Raises:
        LimitExceeded: the run would have too many metrics.
        LoggedModelNotFound: a point is of a model that is not in the run's project.
    """
    _make_room(act, Logs.METRICS, run, {point.key for point in points})
    run_log.add_metrics(act.tx, run, points)
    named = {point.model_id for point in points if point.model_id is not None}
    if not named:
        return
    models = logged_models.find_many(act.tx, named)
    for model_id in sorted(named):
        if model_id not in models or models[model_id].project != run.project:
            raise no_logged_model(model_id)
    logged_models.add_metrics(act.tx, run, points, models)


def log_params(act: Act, run_id: str, run: LogRow, params: Sequence[Tag]) -> None:
    """Write checked params; one that is there already must have the same value.

    Raises:
        InvalidParameter: a param has another value already. LimitExceeded: the run would have too many.
    """
    known = run_log.get_params(act.tx, run.serial, [param.key for param in params])
    refuse_other_values(f"run {run_id}", known, params)
    new = [param for param in params if param.key not in known]
    _make_room(act, Logs.PARAMS, run, {param.key for param in new})
    run_log.add_params(act.tx, run, new)


def refuse_other_values(what: str, known: dict[str, str], params: Iterable[Tag]) -> None:
    """Go on only where params have the values that they had.

    Raises:
        InvalidParameter: names the first that has not, and both values.
    """
    for param in params:
        old = known.get(param.key, param.value)
        if old != param.value:
            raise errors.InvalidParameter(
                f"The param {param.key!r} of {what} is {_shown(old)} and cannot become {_shown(param.value)} "
                "any more; use another key or another run.",
                field="value",
                key=param.key,
                old=old,
                new=param.value,
            )


def set_tags(act: Act, run_id: str, run: LogRow, tags: Sequence[Tag]) -> None:
    """Write checked tags; the tag of the run's name renames it, unless it is empty, as in MLflow.

    Raises:
        LimitExceeded: the run would have too many.
    """
    tags = [tag for tag in tags if tag.value or tag.key != RUN_NAME_TAG]
    if not tags:
        return
    _make_room(act, Logs.TAGS, run, {tag.key for tag in tags})
    run_log.put_tags(act.tx, run.serial, run.experiment_id, tags)
    name = next((tag.value for tag in reversed(tags) if tag.key == RUN_NAME_TAG), "")
    if name and name != run.name:
        row = runs.find(act.tx, run_id)
        assert row is not None, "it was just opened"
        runs.change(act.tx, row._replace(name=name))


def end_digest(act: Act, serial: int, run: Run) -> dict[str, Any]:
    """What the event of a run's end says of all that it has logged; the history is counted and part of the
    digest where it is not too long."""
    points = run_log.all_points(act.tx, serial, tracking.DIGEST_POINTS_MAX + 1)
    whole = points if len(points) <= tracking.DIGEST_POINTS_MAX else None
    return {
        "digest": tracking.log_digest(run, whole),
        "metrics": len(run.metrics),
        "params": len(run.params),
        "tags": len(run.tags),
        "points": None if whole is None else len(whole),
    }


def _make_room(act: Act, kind: Logs, run: LogRow, keys: Collection[str]) -> None:
    known = run.keys_of(kind)
    if known + len(keys) <= RUN_KEYS_MAX:
        return
    new = set(keys) - run_log.known_keys(act.tx, kind, run.serial, keys)
    if known + len(new) > RUN_KEYS_MAX:
        raise errors.LimitExceeded(
            f"The run has {known:,} {kind} and may have {RUN_KEYS_MAX:,}; log further ones to another run "
            "or as an artifact.",
            field=kind.value,
        )


def _shown(value: str) -> str:
    return repr(value if len(value) <= VALUE_SHOWN else f"{value[:VALUE_SHOWN]}...")
