"""Searches of registered models and model versions in MLflow's filter language, as acts.

They are searches of the catalog like any other: the filter becomes an expression of our own language first.
A large page is put together out of several, for MLflow's client takes the first for all there is.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

from modelkeep.core import errors, mlflow_filter, values
from modelkeep.core.catalog import ModelVersion, RegisteredModel
from modelkeep.core.mlflow_filter import Noun
from modelkeep.service.act import Act
from modelkeep.service.catalog import ModelPage, VersionPage
from modelkeep.store import search
from modelkeep.store.visibility import visible_to

T = TypeVar("T")

MODELS_MAX = 1_000
"""Registered models of one page, as many as MLflow's server gives."""
VERSIONS_MAX = 10_000
"""Model versions of one page: what MLflow's client asks for. Who asks for more gets a token for the rest."""


def search_registered_models(
    act: Act,
    project: str,
    *,
    filter: str = "",  # noqa: A002  (MLflow's word)
    order_by: Sequence[str] = (),
    max_results: int,
    page_token: str | None = None,
) -> ModelPage:
    """A page of a project's models that the caller may see; without an order by name. Prompts are left out
    unless the filter asks for them.

    Raises:
        InvalidFilter: the filter or the order cannot be read.
        LimitExceeded, Invalid: the limit is out of bounds; the token is of another search.
    """
    expression = mlflow_filter.expression_of(mlflow_filter.parse(filter, Noun.MODELS), Noun.MODELS)
    order = mlflow_filter.order_of(mlflow_filter.parse_order(order_by, Noun.MODELS), Noun.MODELS)
    visible = visible_to(act.caller)

    def page(limit: int, token: str | None) -> tuple[list[RegisteredModel], str | None]:
        return search.search_models(
            act.tx,
            visible,
            expression=expression,
            order=order,
            project=project,
            limit=limit,
            page_token=token,
        )

    items, token = _joined(page, max_results, MODELS_MAX, page_token)
    return ModelPage(items=tuple(items), next_page_token=token)


def search_model_versions(
    act: Act,
    project: str,
    *,
    filter: str = "",  # noqa: A002  (MLflow's word)
    order_by: Sequence[str] = (),
    max_results: int,
    page_token: str | None = None,
) -> VersionPage:
    """A page of the versions of a project's models that the caller may see; without an order the newest
    first. Prompts are left out unless the filter asks for them.

    Raises:
        InvalidFilter: the filter or the order cannot be read.
        LimitExceeded, Invalid: the limit is out of bounds; the token is of another search.
    """
    expression = mlflow_filter.expression_of(mlflow_filter.parse(filter, Noun.VERSIONS), Noun.VERSIONS)
    order = mlflow_filter.order_of(mlflow_filter.parse_order(order_by, Noun.VERSIONS), Noun.VERSIONS)
    visible = visible_to(act.caller)

    def page(limit: int, token: str | None) -> tuple[list[ModelVersion], str | None]:
        return search.search_versions(
            act.tx,
            visible,
            expression=expression,
            order=order,
            project=project,
            limit=limit,
            page_token=token,
        )

    items, token = _joined(page, max_results, VERSIONS_MAX, page_token)
    return VersionPage(items=tuple(items), next_page_token=token)


def _joined(
    page: Callable[[int, str | None], tuple[list[T], str | None]],
    wanted: int,
    most: int,
    token: str | None,
) -> tuple[list[T], str | None]:
    """As many as are wanted, up to `most`, out of pages as the catalog has them."""
    if wanted < 1:
        raise errors.LimitExceeded(f"A page has at least one row, not {wanted}.", field="max_results")
    found: list[T] = []
    while True:
        items, token = page(min(values.PAGE_MAX, min(wanted, most) - len(found)), token)
        found += items
        if token is None or len(found) >= min(wanted, most):
            return found, token
