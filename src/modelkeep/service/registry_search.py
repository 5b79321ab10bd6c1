"""Searches of registered models and model versions in MLflow's filter language, as acts.

They are searches of the catalog like any other: the filter becomes an expression of our own language first.
What is found are marks, by which the rest is read (`mlflow_reading`). A large page is put together out of
several, for MLflow's client takes the first for all there is.
"""

from collections.abc import Sequence
from functools import lru_cache

from msgspec import Struct

from modelkeep.core import errors, mlflow_filter, values
from modelkeep.core.mlflow_filter import Noun
from modelkeep.core.query import Target
from modelkeep.service.act import Act
from modelkeep.store import search
from modelkeep.store.search import Wanted
from modelkeep.store.standing import Mark
from modelkeep.store.visibility import visible_to

MODELS_MAX = 1_000
"""Registered models of one page, as many as MLflow's server gives."""
VERSIONS_MAX = 10_000
"""Model versions of one page: what MLflow's client asks for. Who asks for more gets a token for the rest."""


NAMING_MAX = 400
"""Characters of a filter that is looked at on the event loop: a model's name fits."""
FILTERS_KEPT = 256
"""Filters with their orders whose meaning is kept: who polls asks the same each time."""


class MarkPage(Struct, frozen=True, kw_only=True):
    """A page of what a search found."""

    items: tuple[Mark, ...]
    next_page_token: str | None = None


def search_registered_models(
    act: Act,
    project: str,
    *,
    filter: str = "",  # noqa: A002  (MLflow's word)
    order_by: Sequence[str] = (),
    max_results: int,
    page_token: str | None = None,
) -> MarkPage:
    """A page of a project's models that the caller may see; without an order by name. Prompts are left out
    unless the filter asks for them.

    Raises:
        InvalidFilter: the filter or the order cannot be read.
        LimitExceeded, Invalid: the limit is out of bounds; the token is of another search.
    """
    wanted = min(max_results, MODELS_MAX)
    return _search(act, _meant(Noun.MODELS, filter, tuple(order_by)), project, wanted, page_token)


def search_model_versions(
    act: Act,
    project: str,
    *,
    filter: str = "",  # noqa: A002  (MLflow's word)
    order_by: Sequence[str] = (),
    max_results: int,
    page_token: str | None = None,
) -> MarkPage:
    """A page of the versions of a project's models that the caller may see; without an order the newest
    first. Prompts are left out unless the filter asks for them.

    Raises:
        InvalidFilter: the filter or the order cannot be read.
        LimitExceeded, Invalid: the limit is out of bounds; the token is of another search.
    """
    wanted = min(max_results, VERSIONS_MAX)
    return _search(act, _meant(Noun.VERSIONS, filter, tuple(order_by)), project, wanted, page_token)


@lru_cache(maxsize=FILTERS_KEPT)
def names_one_model(text: str) -> bool:
    """Whether a filter of versions says which model they are of, and nothing more: its index leads to them
    in the order of the list. One that cannot be read is none."""
    if len(text) > NAMING_MAX:
        return False
    try:
        clauses = mlflow_filter.parse(text, Noun.VERSIONS)
    except errors.ModelkeepError:
        return False
    return len(clauses) == 1 and _meant(Noun.VERSIONS, text, ()).model is not None


@lru_cache(maxsize=FILTERS_KEPT)
def _meant(noun: Noun, text: str, order_by: tuple[str, ...]) -> Wanted:
    expression = mlflow_filter.expression_of(mlflow_filter.parse(text, noun), noun)
    order = mlflow_filter.order_of(mlflow_filter.parse_order(order_by, noun), noun)
    return search.wanted(_TARGETS[noun], expression, order)


_TARGETS = {Noun.MODELS: Target.MODELS, Noun.VERSIONS: Target.VERSIONS}


def _search(act: Act, meant: Wanted, project: str, wanted: int, token: str | None) -> MarkPage:
    """As many as are wanted out of pages as the catalog has them."""
    if wanted < 1:
        raise errors.LimitExceeded(f"A page has at least one row, not {wanted}.", field="max_results")
    visible = visible_to(act.caller)
    found: list[Mark] = []
    while True:
        marks, token = search.find(
            act.tx,
            meant,
            visible,
            project=project,
            limit=min(values.PAGE_MAX, wanted - len(found)),
            page_token=token,
        )
        found += marks
        if token is None or len(found) >= wanted:
            return MarkPage(items=tuple(found), next_page_token=token)
