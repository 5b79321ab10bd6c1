"""Logged models: what a run leaves behind that may become a version (MLflow 3). Every method is one act.

Rights are those of tracking: READ and TRACK on the experiment's project, and what may not be read is answered
like what does not exist. That a logged model was made, got ready and was deleted is in the event log. Files
are `artifacts`' part, registering is the registry's.
"""

import secrets
from collections.abc import Sequence

from modelkeep.core import errors, tracking, values
from modelkeep.core.access import Verb
from modelkeep.core.events import EventKind
from modelkeep.core.run_names import made_up_name
from modelkeep.core.tracking import LOGGED_MODEL_VALUE_MAX, LoggedModel, LoggedModelStatus, Tag
from modelkeep.service import run_logging, tracking_search
from modelkeep.service.act import Act
from modelkeep.service.run_logging import now_ms
from modelkeep.store import experiments, logged_models, runs
from modelkeep.store.logged_models import LoggedModelRow


class LoggedModels:
    """The verbs of logged models."""

    def create(
        self,
        act: Act,
        experiment_id: str,
        *,
        name: str | None = None,
        model_type: str = "",
        source_run_id: str | None = None,
        tags: Sequence[Tag] = (),
        params: Sequence[Tag] = (),
    ) -> LoggedModel:
        """Make a logged model whose files are still to come.

        Raises:
            ExperimentNotFound, RunNotFound, NotAllowed: as in tracking.
            InvalidState: the experiment is deleted.
            InvalidParameter, LimitExceeded: something cannot be kept.
        """
        named = tracking.check_logged_model_name(name) if name else made_up_name(secrets.token_bytes(8))
        if len(model_type) > tracking.MODEL_TYPE_MAX:
            raise errors.InvalidParameter(
                f"The model_type has at most {tracking.MODEL_TYPE_MAX} characters.", field="model_type"
            )
        tracking.check_storable(model_type, "model_type")
        checked_tags, checked_params = _checked(tags), _checked(params)
        row = experiments.find(act.tx, tracking.parse_experiment_id(experiment_id))
        if row is None or not act.may(Verb.READ, row.project):
            raise run_logging.no_experiment(experiment_id)
        act.authorise(Verb.TRACK, row.project)
        if row.deleted:
            raise run_logging.deleted(f"experiment {row.id}")
        if source_run_id:
            source = runs.find(act.tx, source_run_id)
            if source is None or source.project != row.project:
                raise run_logging.no_run(source_run_id)
        moment = now_ms(act)
        model = LoggedModel(
            model_id=f"m-{secrets.token_hex(16)}",
            experiment_id=str(row.id),
            name=named,
            status=LoggedModelStatus.PENDING,
            model_type=model_type,
            source_run_id=source_run_id or None,
            creation_timestamp_ms=moment,
            last_updated_timestamp_ms=moment,
            tags=tuple(checked_tags),
            params=tuple(checked_params),
        )
        serial = logged_models.add(act.tx, row.id, model)
        logged_models.put_tags(act.tx, serial, row.id, checked_tags)
        logged_models.add_params(act.tx, serial, row.id, checked_params)
        act.record(
            EventKind.LOGGED_MODEL_CREATED,
            _subject(model.model_id),
            experiment=model.experiment_id,
            name=named,
            run=model.source_run_id,
        )
        return model

    def get(self, act: Act, model_id: str, *, allow_deleted: bool = False) -> LoggedModel:
        """A logged model.

        Raises:
            LoggedModelNotFound: it is not there, not to be seen, or deleted and not asked for as such.
        """
        row = self._row(act, model_id)
        if row.deleted and not allow_deleted:
            raise run_logging.no_logged_model(model_id)
        return logged_models.load(act.tx, [row])[0]

    def finalize(self, act: Act, model_id: str, status: LoggedModelStatus, message: str = "") -> LoggedModel:
        """Say whether the files are all there.

        Raises:
            LoggedModelNotFound, NotAllowed: as elsewhere. InvalidParameter: pending is no end.
        """
        if status is LoggedModelStatus.PENDING:
            raise errors.InvalidParameter(
                "A logged model is finalized as ready or as failed, not as pending.", field="status"
            )
        message = values.check_text(message, "status_message")
        row = self._row(act, model_id, change=True)
        if (row.status, row.status_message) != (status.value, message):
            logged_models.set_status(act.tx, row.serial, status, message, now_ms(act))
            act.record(EventKind.LOGGED_MODEL_FINALIZED, _subject(model_id), status=status.value)
        return logged_models.load(act.tx, [self._row(act, model_id)])[0]

    def delete(self, act: Act, model_id: str) -> None:
        """Put a logged model into the bin; one that is there stays there. Versions that it became stay.

        Raises:
            LoggedModelNotFound, NotAllowed: as elsewhere.
        """
        row = self._row(act, model_id, change=True)
        if not row.deleted:
            logged_models.delete_model(act.tx, row.serial, now_ms(act))
            act.record(EventKind.LOGGED_MODEL_DELETED, _subject(model_id), name=row.name)

    def set_tags(self, act: Act, model_id: str, tags: Sequence[Tag]) -> LoggedModel:
        """Set tags.

        Raises:
            LoggedModelNotFound, NotAllowed, InvalidParameter, LimitExceeded: as elsewhere.
        """
        checked = _checked(tags)
        row = self._row(act, model_id, change=True)
        known = logged_models.count_texts(act.tx, "tags", row.serial)
        _refuse_too_many(known + len(checked))
        logged_models.put_tags(act.tx, row.serial, row.experiment_id, checked)
        return logged_models.load(act.tx, [row])[0]

    def delete_tag(self, act: Act, model_id: str, key: str) -> None:
        """Remove a tag.

        Raises:
            LoggedModelNotFound, NotAllowed: as elsewhere. TagNotFound: it has no such tag.
        """
        row = self._row(act, model_id, change=True)
        if not logged_models.drop_tag(act.tx, row.serial, key):
            raise run_logging.no_tag(key, f"logged model {model_id}")

    def log_params(self, act: Act, model_id: str, params: Sequence[Tag]) -> None:
        """Log params, each once: the same value again is fine, another is refused.

        Raises:
            LoggedModelNotFound, NotAllowed, InvalidParameter, LimitExceeded: as elsewhere.
        """
        checked = _checked(params)
        row = self._row(act, model_id, change=True)
        known = logged_models.get_params(act.tx, row.serial, [param.key for param in checked])
        run_logging.refuse_other_values(f"logged model {model_id}", known, checked)
        new = [param for param in checked if param.key not in known]
        count = logged_models.count_texts(act.tx, "params", row.serial)
        _refuse_too_many(count + len(new))
        logged_models.add_params(act.tx, row.serial, row.experiment_id, new)

    search = staticmethod(tracking_search.search_logged_models)

    def _row(self, act: Act, model_id: str, *, change: bool = False) -> LoggedModelRow:
        row = logged_models.find(act.tx, model_id)
        if row is None or not act.may(Verb.READ, row.project):
            raise run_logging.no_logged_model(model_id)
        if change:
            act.authorise(Verb.TRACK, row.project)
        return row


def _checked(tags: Sequence[Tag]) -> list[Tag]:
    """The last of each key, checked, in the order of keys."""
    kept = {tag.key: tracking.check_whole_tag(tag, LOGGED_MODEL_VALUE_MAX) for tag in tags}
    _refuse_too_many(len(kept))
    return [kept[key] for key in sorted(kept)]


def _refuse_too_many(count: int) -> None:
    if count > values.PARAMS_MAX:
        raise errors.LimitExceeded(
            f"A logged model has at most {values.PARAMS_MAX:,} tags and as many params.", field="tags"
        )


def _subject(model_id: str) -> str:
    return f"logged_model/{model_id}"
