"""Logged models (MLflow 3) in MLflow's words: requests in, answers out. The verbs are
`service.logged_models`; their files are `artifacts`' part.
"""

from msgspec import Struct

from modelkeep.core import errors
from modelkeep.core.mlflow_filter import DatasetFilter, OrderField
from modelkeep.core.tracking import LoggedModel, LoggedModelStatus, Tag
from modelkeep.service.act import Act
from modelkeep.web.mlflow.tracking_shapes import MetricOut, TagIn, metric_out, tags_in
from modelkeep.web.mlflow.wire import DONE, Int64, Nothing, Request
from modelkeep.web.operations import Call

SEARCH_DEFAULT = 100
"""Logged models of a page when nobody says; MLflow's number."""


# ----------------------------------------------------------------------------------------------- on the wire


class Registration(Struct, frozen=True, kw_only=True):
    """A version that a logged model became."""

    name: str
    version: str


class LoggedModelInfoOut(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A logged model's head as the client parses it."""

    model_id: str
    experiment_id: str
    name: str
    creation_timestamp_ms: int
    last_updated_timestamp_ms: int
    artifact_uri: str
    status: LoggedModelStatus
    model_type: str
    source_run_id: str
    status_message: str = ""
    tags: tuple[Tag, ...] = ()
    registrations: tuple[Registration, ...] = ()


class LoggedModelDataOut(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What was measured of it, and how it was set."""

    params: tuple[Tag, ...] = ()
    metrics: tuple[MetricOut, ...] = ()


class LoggedModelOut(Struct, frozen=True, kw_only=True):
    """A logged model as the client parses it."""

    info: LoggedModelInfoOut
    data: LoggedModelDataOut


class OneLoggedModel(Struct, frozen=True):
    model: LoggedModelOut


class LoggedModelsOut(Struct, frozen=True, omit_defaults=True):
    models: tuple[LoggedModelOut, ...] = ()
    next_page_token: str | None = None


def model_out(model: LoggedModel) -> LoggedModelOut:
    """A logged model on the wire."""
    return LoggedModelOut(
        info=LoggedModelInfoOut(
            model_id=model.model_id,
            experiment_id=model.experiment_id,
            name=model.name,
            creation_timestamp_ms=model.creation_timestamp_ms,
            last_updated_timestamp_ms=model.last_updated_timestamp_ms,
            artifact_uri=f"mlflow-artifacts:/{model.experiment_id}/models/{model.model_id}/artifacts",
            status=model.status,
            model_type=model.model_type,
            source_run_id=model.source_run_id or "",
            status_message=model.status_message,
            tags=model.tags,
            registrations=tuple(
                Registration(name=name, version=str(number)) for name, number in model.registrations
            ),
        ),
        data=LoggedModelDataOut(params=model.params, metrics=tuple(map(metric_out, model.metrics))),
    )


# --------------------------------------------------------------------------------------------------- requests


class CreateLoggedModel(Request, frozen=True, kw_only=True):
    experiment_id: str
    name: str | None = None
    model_type: str | None = None
    source_run_id: str | None = None
    params: tuple[TagIn, ...] | None = None
    tags: tuple[TagIn, ...] | None = None


class LookAt(Request, frozen=True, kw_only=True):
    allow_deleted: bool = False


class FinalizeLoggedModel(Request, frozen=True, kw_only=True):
    model_id: str | None = None
    status: LoggedModelStatus


class SetLoggedModelTags(Request, frozen=True, kw_only=True):
    model_id: str | None = None
    tags: tuple[TagIn, ...] | None = None


class LogLoggedModelParams(Request, frozen=True, kw_only=True):
    model_id: str | None = None
    params: tuple[TagIn, ...] | None = None


class DatasetIn(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A dataset on which points have to be measured to count."""

    dataset_name: str
    dataset_digest: str | None = None


class OrderIn(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One part of an order."""

    field_name: str
    ascending: bool = True
    dataset_name: str | None = None
    dataset_digest: str | None = None


class SearchLoggedModels(Request, frozen=True, kw_only=True):
    experiment_ids: tuple[str, ...]
    filter: str | None = None
    datasets: tuple[DatasetIn, ...] | None = None
    max_results: Int64 | None = None
    order_by: tuple[OrderIn, ...] | None = None
    page_token: str | None = None


# --------------------------------------------------------------------------------------------------- handlers


def create(act: Act, call: Call) -> OneLoggedModel:
    """`POST logged-models`."""
    asked: CreateLoggedModel = call.body
    made = call.house.logged_models.create(
        act,
        asked.experiment_id,
        name=asked.name,
        model_type=asked.model_type or "",
        source_run_id=asked.source_run_id,
        tags=tags_in(asked.tags),
        params=tags_in(asked.params),
    )
    return OneLoggedModel(model_out(made))


def get(act: Act, call: Call) -> OneLoggedModel:
    """`GET logged-models/ID`."""
    found = call.house.logged_models.get(act, call.path["model_id"], allow_deleted=call.query.allow_deleted)
    return OneLoggedModel(model_out(found))


def finalize(act: Act, call: Call) -> OneLoggedModel:
    """`PATCH logged-models/ID`."""
    return OneLoggedModel(model_out(call.house.logged_models.finalize(act, _id(call), call.body.status)))


def delete(act: Act, call: Call) -> Nothing:
    """`DELETE logged-models/ID`."""
    call.house.logged_models.delete(act, call.path["model_id"])
    return DONE


def set_tags(act: Act, call: Call) -> Nothing:
    """`PATCH logged-models/ID/tags`."""
    call.house.logged_models.set_tags(act, _id(call), tags_in(call.body.tags))
    return DONE


def delete_tag(act: Act, call: Call) -> Nothing:
    """`DELETE logged-models/ID/tags/KEY`."""
    call.house.logged_models.delete_tag(act, call.path["model_id"], call.path["tag_key"])
    return DONE


def log_params(act: Act, call: Call) -> Nothing:
    """`POST logged-models/ID/params`."""
    call.house.logged_models.log_params(act, _id(call), tags_in(call.body.params))
    return DONE


def search(act: Act, call: Call) -> LoggedModelsOut:
    """`POST logged-models/search`."""
    asked: SearchLoggedModels = call.body
    page = call.house.logged_models.search(
        act,
        asked.experiment_ids,
        filter=asked.filter or "",
        datasets=[
            DatasetFilter(dataset_name=given.dataset_name, dataset_digest=given.dataset_digest or None)
            for given in asked.datasets or ()
        ],
        order_by=[
            OrderField(
                field_name=given.field_name,
                ascending=given.ascending,
                dataset_name=given.dataset_name or None,
                dataset_digest=given.dataset_digest or None,
            )
            for given in asked.order_by or ()
        ],
        max_results=asked.max_results or SEARCH_DEFAULT,
        page_token=asked.page_token or None,
    )
    return LoggedModelsOut(tuple(map(model_out, page.items)), page.next_page_token)


def _id(call: Call) -> str:
    """The id in the path; a body may say it again, and no other."""
    named = call.path["model_id"]
    if call.body.model_id not in (None, "", named):
        raise errors.InvalidParameter(
            "The body names another logged model than the address; name one.", field="model_id"
        )
    return named
