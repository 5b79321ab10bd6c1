"""Tracking: experiments, runs and what runs log, with MLflow's meaning. Every method is one act.

Each method names the right it asks for: reading is READ on the experiment's project, changing is TRACK there,
and what may not be read is answered like what does not exist. The life of an experiment and of a run is in
the event log; what a run logs is not, but its end holds a digest of it. The rules of logging stand in
`run_logging`, searches in `tracking_search`, histories in `metric_history`, logged models in `logged_models`,
files in `artifacts`.
"""

import secrets
from collections.abc import Sequence
from typing import Any

from modelkeep.core import codec, errors, tracking, values
from modelkeep.core.access import Verb
from modelkeep.core.events import EventKind
from modelkeep.core.run_names import made_up_name
from modelkeep.core.tracking import (
    DEFAULT_EXPERIMENT,
    INT64_MAX,
    INT64_MIN,
    RUN_NAME_TAG,
    USER_TAG,
    DatasetInput,
    Experiment,
    LifecycleStage,
    Metric,
    ModelOutput,
    Run,
    RunInfo,
    RunStatus,
    Tag,
)
from modelkeep.core.values import DEFAULT_PROJECT
from modelkeep.service import metric_history as histories
from modelkeep.service import run_logging, tracking_search
from modelkeep.service.act import Act
from modelkeep.service.run_logging import now_ms
from modelkeep.store import experiments, run_log, runs
from modelkeep.store.experiments import ExperimentRow
from modelkeep.store.run_log import Logs
from modelkeep.store.runs import RunRow

HISTORY_TAG = "mlflow.log-model.history"
"""Where clients before MLflow 3 note which models a run logged: a JSON list in a tag."""


class Tracking:
    """The verbs of experiments and runs."""

    # ------------------------------------------------------------------------------------------ experiments

    def create_experiment(self, act: Act, project: str, name: str, tags: Sequence[Tag] = ()) -> Experiment:
        """Make an experiment.

        Raises:
            NotAllowed: the caller may not track in the project.
            ExperimentExists: the project has one of that name, in the bin perhaps.
            InvalidParameter, InvalidName: name, tags or project cannot be kept.
        """
        values.check_name(project, "project")
        tracking.check_experiment_name(name)
        checked = _by_key([tracking.check_whole_tag(tag) for tag in tags])
        if len(checked) > values.TAGS_MAX:
            raise _too_many_tags()
        act.authorise(Verb.TRACK, project)
        number = experiments.add(act.tx, project, name, now_ms(act))
        if number is None:
            raise _taken(experiments.find_named(act.tx, project, name), name)
        experiments.put_tags(act.tx, number, checked)
        act.record(
            EventKind.EXPERIMENT_CREATED,
            _subject(number),
            name=name,
            project=project,
            tags={tag.key: tag.value for tag in checked},
        )
        return self._shown(act, self._found(act, str(number)))

    def get_experiment(self, act: Act, experiment_id: str) -> Experiment:
        """An experiment by its id, deleted or not.

        Raises:
            ExperimentNotFound, InvalidParameter: it is not there or not to be seen; it is no id.
        """
        return self._shown(act, self._found(act, experiment_id))

    def get_experiment_by_name(self, act: Act, project: str, name: str) -> Experiment:
        """An experiment by its name, deleted or not.

        Raises:
            ExperimentNotFound: it is not there or not to be seen.
        """
        row = experiments.find_named(act.tx, project, name) if act.may(Verb.READ, project) else None
        if row is None:
            raise run_logging.no_experiment(name)
        return self._shown(act, row)

    def rename_experiment(self, act: Act, experiment_id: str, name: str) -> Experiment:
        """Give an experiment another name.

        Raises:
            ExperimentNotFound, NotAllowed, InvalidParameter: as elsewhere.
            InvalidState: it is deleted. ExperimentExists: another one of the project has that name.
        """
        tracking.check_experiment_name(name)
        row = self._changing(act, experiment_id)
        other = experiments.find_named(act.tx, row.project, name)
        if other is not None and other.id != row.id:
            raise _taken(other, name)
        if name != row.name:
            experiments.rename(act.tx, row.id, name, now_ms(act))
            act.record(EventKind.EXPERIMENT_CHANGED, _subject(row.id), name={"from": row.name, "to": name})
        return self._shown(act, self._found(act, experiment_id))

    def delete_experiment(self, act: Act, experiment_id: str) -> None:
        """Put an experiment into the bin, with all its runs.

        Raises:
            ExperimentNotFound: it is not there, not to be seen, or in the bin already. NotAllowed.
        """
        self._bin(act, experiment_id, EventKind.EXPERIMENT_DELETED, deleted=True)

    def restore_experiment(self, act: Act, experiment_id: str) -> None:
        """Take an experiment out of the bin, with all its runs, as MLflow does: those too that were deleted
        before it.

        Raises:
            ExperimentNotFound: it is not there, not to be seen, or not in the bin. NotAllowed.
        """
        self._bin(act, experiment_id, EventKind.EXPERIMENT_RESTORED, deleted=False)

    def set_experiment_tag(self, act: Act, experiment_id: str, key: str, value: str) -> None:
        """Set a tag of an experiment.

        Raises:
            ExperimentNotFound, NotAllowed, InvalidParameter, InvalidState: as elsewhere.
            LimitExceeded: it would have too many.
        """
        tag = tracking.check_whole_tag(Tag(key, value))
        row = self._changing(act, experiment_id)
        tags = {known.key: known.value for known in self._shown(act, row).tags}
        if tags.get(key) == tag.value:
            return
        if key not in tags and len(tags) >= values.TAGS_MAX:
            raise _too_many_tags()
        experiments.put_tags(act.tx, row.id, [tag])
        moved = {key: {"from": tags.get(key), "to": tag.value}}
        act.record(EventKind.EXPERIMENT_CHANGED, _subject(row.id), tags=moved)

    def delete_experiment_tag(self, act: Act, experiment_id: str, key: str) -> None:
        """Remove a tag of an experiment.

        Raises:
            ExperimentNotFound, NotAllowed, InvalidState: as elsewhere. TagNotFound: it has no such tag.
        """
        row = self._changing(act, experiment_id)
        value = experiments.get_tag(act.tx, row.id, key)
        if value is None:
            raise run_logging.no_tag(key, f"experiment {experiment_id}")
        experiments.drop_tag(act.tx, row.id, key)
        act.record(EventKind.EXPERIMENT_CHANGED, _subject(row.id), tags={key: {"from": value, "to": None}})

    # ------------------------------------------------------------------------------------------------- runs

    def create_run(
        self,
        act: Act,
        experiment_id: str,
        *,
        user_id: str = "",
        start_time: int | None = None,
        tags: Sequence[Tag] = (),
        run_name: str = "",
        project: str = DEFAULT_PROJECT,
    ) -> Run:
        """Start a run. Without an experiment, or with 0, it goes to the project's default one, which is made
        where there is none.

        Raises:
            ExperimentNotFound, NotAllowed: as elsewhere. InvalidState: the experiment is deleted.
            InvalidParameter: something cannot be kept, or name and tag of the name differ.
        """
        kept = _by_key([tracking.check_run_tag(tag) for tag in tags])
        if len(kept) > tracking.RUN_KEYS_MAX:
            raise _too_many_tags()
        named = next((tag.value for tag in kept if tag.key == RUN_NAME_TAG), "")
        if run_name and named and run_name != named:
            raise errors.InvalidParameter(
                f"The run is called {run_name[:60]!r} in its name and {named[:60]!r} in the tag "
                f"{RUN_NAME_TAG}; send one of them.",
                field="run_name",
            )
        name = tracking.check_run_name(run_name or named or made_up_name(secrets.token_bytes(8)))
        if not named:
            kept = _by_key([*kept, Tag(RUN_NAME_TAG, name)])
        user = user_id or next((tag.value for tag in kept if tag.key == USER_TAG), "") or act.by
        started = _whole(now_ms(act) if start_time is None else start_time, "start_time")
        experiment = self._for_runs(act, experiment_id, project)
        info = RunInfo(
            run_id=secrets.token_hex(16),
            experiment_id=str(experiment.id),
            run_name=name,
            user_id=tracking.check_user(user),
            status=RunStatus.RUNNING,
            start_time=started,
        )
        serial = runs.add(act.tx, experiment.id, info)
        run_log.put_tags(act.tx, serial, experiment.id, kept)
        act.record(
            EventKind.RUN_STARTED,
            f"run/{info.run_id}",
            experiment=info.experiment_id,
            name=name,
            user=info.user_id,
        )
        return Run(info=info, tags=tuple(kept))

    def get_run(self, act: Act, run_id: str) -> Run:
        """A run with all that it has logged, deleted or not.

        Raises:
            RunNotFound: it is not there or not to be seen.
        """
        return runs.load(act.tx, [self._run(act, run_id)])[0]

    def update_run(
        self,
        act: Act,
        run_id: str,
        *,
        status: RunStatus | None = None,
        end_time: int | None = None,
        run_name: str | None = None,
    ) -> RunInfo:
        """Say how a run goes, when it ended, what it is called; None, or no name, leaves it as it is.

        Raises:
            RunNotFound, NotAllowed, InvalidState, InvalidParameter: as elsewhere.
        """
        row = self._run(act, run_id, change=True)
        after = row._replace(
            status=row.status if status is None else status.value,
            end_time=row.end_time if end_time is None else _whole(end_time, "end_time"),
            name=tracking.check_run_name(run_name) if run_name else row.name,
        )
        if run_name:
            run_log.put_tags(act.tx, row.serial, row.experiment_id, [Tag(RUN_NAME_TAG, run_name)])
        if after != row:
            runs.change(act.tx, after)
        if after.status != row.status:
            self._record_status(act, row, after)
        return runs.info(after)

    def delete_run(self, act: Act, run_id: str) -> None:
        """Put a run into the bin; one that is there stays there.

        Raises:
            RunNotFound, NotAllowed: as elsewhere.
        """
        row = self._run(act, run_id)
        act.authorise(Verb.TRACK, row.project)
        if not row.deleted:
            runs.set_deleted(act.tx, row.serial, now_ms(act))
            act.record(EventKind.RUN_DELETED, f"run/{run_id}")

    def restore_run(self, act: Act, run_id: str) -> None:
        """Take a run out of the bin; one that is not there stays as it is.

        Raises:
            RunNotFound, NotAllowed: as elsewhere.
        """
        row = self._run(act, run_id)
        act.authorise(Verb.TRACK, row.project)
        if row.deleted:
            runs.set_deleted(act.tx, row.serial, None)
            act.record(EventKind.RUN_RESTORED, f"run/{run_id}")

    # ---------------------------------------------------------------------------------------------- logging

    def log_metric(self, act: Act, run_id: str, metric: Metric) -> None:
        """Log one point.

        Raises:
            RunNotFound, NotAllowed, InvalidState, InvalidParameter, LimitExceeded: as elsewhere.
            LoggedModelNotFound: it is of a logged model that is not there.
        """
        tracking.check_metric(metric)
        run_logging.log_metrics(act, run_logging.open_log(act, run_id, Logs.METRICS), (metric,))

    def log_param(self, act: Act, run_id: str, param: Tag) -> None:
        """Log a param, once: the same value again is fine, another is refused.

        Raises:
            RunNotFound, NotAllowed, InvalidState, InvalidParameter, LimitExceeded: as elsewhere.
        """
        param = tracking.check_param(param)
        run_logging.log_params(act, run_id, run_logging.open_log(act, run_id, Logs.PARAMS), (param,))

    def set_tag(self, act: Act, run_id: str, tag: Tag) -> None:
        """Set a tag; that of the run's name renames the run.

        Raises:
            RunNotFound, NotAllowed, InvalidState, InvalidParameter, LimitExceeded: as elsewhere.
        """
        tag = tracking.check_run_tag(tag)
        run_logging.set_tags(act, run_id, run_logging.open_log(act, run_id, Logs.TAGS), (tag,))

    def delete_tag(self, act: Act, run_id: str, key: str) -> None:
        """Remove a tag; the run's name stays.

        Raises:
            RunNotFound, NotAllowed, InvalidState: as elsewhere. TagNotFound: the run has no such tag.
        """
        if not run_log.drop_tag(act.tx, run_logging.open_log(act, run_id).serial, key):
            raise run_logging.no_tag(key, f"run {run_id}")

    def log_batch(
        self, act: Act, run_id: str, metrics: Sequence[Metric], params: Sequence[Tag], tags: Sequence[Tag]
    ) -> None:
        """Log metrics, params and tags together, all of them or none.

        Raises:
            RunNotFound, NotAllowed, InvalidState, InvalidParameter, LimitExceeded: as elsewhere.
            LoggedModelNotFound: a point is of a logged model that is not there.
        """
        points, checked_params, checked_tags = tracking.check_batch(metrics, params, tags)
        given = zip(Logs, (points, checked_params, checked_tags), strict=True)
        run = run_logging.open_log(act, run_id, *(kind for kind, some in given if some))
        if checked_params:
            run_logging.log_params(act, run_id, run, checked_params)
        if points:
            run_logging.log_metrics(act, run, points)
        run_logging.set_tags(act, run_id, run, checked_tags)

    def log_inputs(
        self, act: Act, run_id: str, datasets: Sequence[DatasetInput] = (), models: Sequence[ModelOutput] = ()
    ) -> None:
        """Note the datasets and logged models that a run has read.

        Raises:
            RunNotFound, NotAllowed, InvalidState, InvalidParameter: as elsewhere.
        """
        if len(datasets) > tracking.DATASETS_MAX:
            raise errors.InvalidParameter(
                f"One call logs at most {tracking.DATASETS_MAX:,} datasets; send several.", field="datasets"
            )
        checked = [tracking.check_dataset(given) for given in datasets]
        _check_models(models)
        run = run_logging.open_log(act, run_id)
        run_log.add_datasets(act.tx, run, checked)
        run_log.add_models(act.tx, run.serial, "input", models)

    def log_outputs(self, act: Act, run_id: str, models: Sequence[ModelOutput]) -> None:
        """Note the logged models that a run has made.

        Raises:
            RunNotFound, NotAllowed, InvalidState, InvalidParameter: as elsewhere.
        """
        _check_models(models)
        run = run_logging.open_log(act, run_id)
        run_log.add_models(act.tx, run.serial, "output", models)

    def log_model(self, act: Act, run_id: str, model_json: str) -> None:
        """Add a model to the list that clients before MLflow 3 keep in a tag of the run.

        Raises:
            RunNotFound, NotAllowed, InvalidState: as elsewhere.
            InvalidParameter: it is no JSON object, or the tag would become too long.
        """
        row = self._run(act, run_id, change=True)
        tags = {tag.key: tag.value for tag in runs.load(act.tx, [row])[0].tags}
        try:
            made = codec.decode_untrusted(model_json.encode(), dict[str, Any])
            listed = codec.decode(tags.get(HISTORY_TAG, "[]"), list[Any])
        except errors.MalformedBody as problem:
            raise errors.InvalidParameter(
                f"The model, or the tag {HISTORY_TAG}, is no JSON ({problem}).", field="model_json"
            ) from problem
        value = codec.encode([*listed, made]).decode()
        if len(value) > tracking.TAG_VALUE_MAX:
            raise errors.InvalidParameter(
                f"The tag {HISTORY_TAG} would have {len(value):,} characters, and has room for "
                f"{tracking.TAG_VALUE_MAX:,}; log this model to another run.",
                field="model_json",
            )
        run_log.put_tags(act.tx, row.serial, row.experiment_id, [Tag(HISTORY_TAG, value)])

    # ---------------------------------------------------------------------------- in files of their own

    metric_history = staticmethod(histories.one_run)
    metric_history_bulk = staticmethod(histories.several_runs)
    metric_history_interval = staticmethod(histories.sampled)
    search_experiments = staticmethod(tracking_search.search_experiments)
    search_runs = staticmethod(tracking_search.search_runs)

    # ---------------------------------------------------------------------------------------------- finding

    def _found(self, act: Act, experiment_id: str) -> ExperimentRow:
        row = experiments.find(act.tx, tracking.parse_experiment_id(experiment_id))
        if row is None or not act.may(Verb.READ, row.project):
            raise run_logging.no_experiment(experiment_id)
        return row

    def _changing(self, act: Act, experiment_id: str) -> ExperimentRow:
        row = self._found(act, experiment_id)
        act.authorise(Verb.TRACK, row.project)
        if row.deleted:
            raise run_logging.deleted(f"experiment {row.id}")
        return row

    def _for_runs(self, act: Act, experiment_id: str, project: str) -> ExperimentRow:
        """The experiment that a new run goes to."""
        if experiment_id not in ("", "0") or project == DEFAULT_PROJECT:
            return self._changing(act, experiment_id or "0")
        row = experiments.find_named(act.tx, project, DEFAULT_EXPERIMENT)
        if row is None:
            made = self.create_experiment(act, project, DEFAULT_EXPERIMENT)
            return self._changing(act, made.experiment_id)
        return self._changing(act, str(row.id))

    def _shown(self, act: Act, row: ExperimentRow) -> Experiment:
        return experiments.load(act.tx, [row])[0]

    def _bin(self, act: Act, experiment_id: str, kind: EventKind, *, deleted: bool) -> None:
        row = self._found(act, experiment_id)
        act.authorise(Verb.TRACK, row.project)
        if bool(row.deleted) == deleted:
            raise run_logging.no_experiment(
                experiment_id, LifecycleStage.ACTIVE if deleted else LifecycleStage.DELETED
            )
        went = experiments.set_deleted(act.tx, row.id, deleted, now_ms(act))
        act.record(kind, _subject(row.id), name=row.name, runs=went)

    def _run(self, act: Act, run_id: str, *, change: bool = False) -> RunRow:
        row = runs.find(act.tx, run_id)
        if row is None or not act.may(Verb.READ, row.project):
            raise run_logging.no_run(run_id)
        if change:
            act.authorise(Verb.TRACK, row.project)
            if row.deleted:
                raise run_logging.deleted(f"run {run_id}")
        return row

    def _record_status(self, act: Act, before: RunRow, after: RunRow) -> None:
        """Record that a run ended, with what it had logged, or that it goes on after an end."""
        subject = f"run/{after.run_id}"
        if RunStatus(after.status).ended:
            run = runs.load(act.tx, [after])[0]
            logged = run_logging.end_digest(act, after.serial, run)
            act.record(EventKind.RUN_ENDED, subject, status=after.status, **logged)
        elif RunStatus(before.status).ended:
            body: dict[str, Any] = {"experiment": str(after.experiment_id), "name": after.name}
            act.record(EventKind.RUN_STARTED, subject, **body, user=after.user_id, again=True)


def _by_key(tags: Sequence[Tag]) -> list[Tag]:
    """The last of each key, in the order of keys."""
    kept = {tag.key: tag for tag in tags}
    return [kept[key] for key in sorted(kept)]


def _whole(number: int, what: str) -> int:
    if not INT64_MIN <= number <= INT64_MAX:
        raise errors.InvalidParameter(f"The {what} has to be a whole number of 64 bits.", field=what)
    return number


def _check_models(models: Sequence[ModelOutput]) -> None:
    if len(models) > tracking.MODELS_MAX:
        raise errors.InvalidParameter(
            f"One call logs at most {tracking.MODELS_MAX:,} models; send several.", field="models"
        )
    for model in models:
        if not tracking.LOGGED_MODEL_ID.fullmatch(model.model_id):
            raise errors.InvalidParameter(
                f"{values.quoted(model.model_id, 60)} is no id of a logged model; it is 'm-' and 32 "
                "hexadecimal digits.",
                field="models",
            )
        _whole(model.step, "step")


def _subject(number: int) -> str:
    return f"experiment/{number}"


def _taken(other: ExperimentRow | None, name: str) -> errors.ExperimentExists:
    binned = other is not None and other.deleted
    advice = "it is deleted: restore it or choose another name" if binned else "choose another name"
    return errors.ExperimentExists(
        f"There already is an experiment {values.quoted(name, 60)}; {advice}.", name=name
    )


def _too_many_tags() -> errors.LimitExceeded:
    return errors.LimitExceeded(f"At most {values.TAGS_MAX} tags fit; delete some first.", field="tags")
