"""Searches of experiments, runs and logged models in MLflow's filter language, as acts.

What the caller may not read is left out before pages are cut, as if it did not exist. What filters mean is
the core's, how they are answered the store's part.
"""

from collections.abc import Sequence

from modelkeep.core import errors, mlflow_filter, tracking
from modelkeep.core.access import Verb
from modelkeep.core.mlflow_filter import DatasetFilter, Noun, OrderField
from modelkeep.core.tracking import ExperimentPage, LoggedModelPage, RunPage, ViewType
from modelkeep.service.act import Act
from modelkeep.store import tracking_search

EXPERIMENT_IDS_MAX = 10_000
"""Experiments that one search of runs or logged models names."""


def search_experiments(
    act: Act,
    project: str,
    *,
    filter: str = "",  # noqa: A002  (MLflow's word)
    order_by: Sequence[str] = (),
    view: ViewType = ViewType.ACTIVE_ONLY,
    max_results: int,
    page_token: str | None = None,
) -> ExperimentPage:
    """A page of a project's experiments; without an order the newest first.

    Raises:
        InvalidFilter: the filter or the order cannot be read.
        LimitExceeded, Invalid: the limit is out of bounds; the token is of another search.
    """
    items, token = tracking_search.search_experiments(
        act.tx,
        [project] if act.may(Verb.READ, project) else [],
        clauses=mlflow_filter.parse(filter, Noun.EXPERIMENTS),
        order=mlflow_filter.parse_order(order_by, Noun.EXPERIMENTS),
        view=view,
        limit=max_results,
        page_token=page_token,
    )
    return ExperimentPage(items=tuple(items), next_page_token=token)


def search_runs(
    act: Act,
    experiment_ids: Sequence[str],
    *,
    filter: str = "",  # noqa: A002  (MLflow's word)
    order_by: Sequence[str] = (),
    view: ViewType = ViewType.ACTIVE_ONLY,
    max_results: int,
    page_token: str | None = None,
) -> RunPage:
    """A page of the runs of these experiments, among equals the last started first. Experiments that are not
    there, or not to be seen, have no runs.

    Raises:
        InvalidFilter: the filter or the order cannot be read. InvalidParameter: an id is none.
        LimitExceeded, Invalid: too many experiments, the limit is out of bounds, the token is of another
            search.
    """
    items, token = tracking_search.search_runs(
        act.tx,
        _readable(act, experiment_ids),
        clauses=mlflow_filter.parse(filter, Noun.RUNS),
        order=mlflow_filter.parse_order(order_by, Noun.RUNS),
        view=view,
        limit=max_results,
        page_token=page_token,
    )
    return RunPage(items=tuple(items), next_page_token=token)


def search_logged_models(
    act: Act,
    experiment_ids: Sequence[str],
    *,
    filter: str = "",  # noqa: A002  (MLflow's word)
    datasets: Sequence[DatasetFilter] = (),
    order_by: Sequence[OrderField] = (),
    max_results: int,
    page_token: str | None = None,
) -> LoggedModelPage:
    """A page of the logged models of these experiments, among equals the newest first.

    Args:
        datasets: only points that were measured on one of them count.

    Raises:
        InvalidFilter: the filter or the order cannot be read. InvalidParameter: an id is none, or a dataset
            has no name.
        LimitExceeded, Invalid: too many experiments or datasets, the limit is out of bounds, the token is of
            another search.
    """
    for data in datasets:
        tracking.check_storable(data.dataset_name, "dataset_name")
        tracking.check_storable(data.dataset_digest or "", "dataset_digest")
        if not data.dataset_name:
            raise errors.InvalidParameter("Each of the datasets has a dataset_name.", field="dataset_name")
    items, token = tracking_search.search_logged_models(
        act.tx,
        _readable(act, experiment_ids),
        clauses=mlflow_filter.parse(filter, Noun.LOGGED_MODELS),
        datasets=tuple(datasets),
        order=mlflow_filter.parse_fields(order_by),
        limit=max_results,
        page_token=page_token,
    )
    return LoggedModelPage(items=tuple(items), next_page_token=token)


def _readable(act: Act, experiment_ids: Sequence[str]) -> list[int]:
    """The numbers of those experiments whose runs the caller may see."""
    if len(experiment_ids) > EXPERIMENT_IDS_MAX:
        raise errors.LimitExceeded(
            f"A search names at most {EXPERIMENT_IDS_MAX:,} experiments.", field="experiment_ids"
        )
    numbers = [tracking.parse_experiment_id(text) for text in dict.fromkeys(experiment_ids)]
    may_read: dict[str, bool] = {}
    found: list[int] = []
    for number, project in tracking_search.projects_of(act.tx, numbers).items():
        if project not in may_read:
            may_read[project] = act.may(Verb.READ, project)
        if may_read[project]:
            found.append(number)
    return found
