"""Searches of experiments, runs and logged models, cut into pages by key.

A search looks at one or more stretches: an experiment, or the bin of one, of which each has its rows in the
order of an index. Each stretch gives the serials of its first rows, these are merged, and only the rows of
the page are read and put together. Where the rows of a stretch are found:

- A clause of the filter that few rows pass leads to them by its own index (see `narrowing`, whose rule this
  is): it is counted, up to FEW and no further, before it is taken.
- Else, when the order begins with a metric, param or tag, its index is walked: first those with a value, then
  the NaNs, then those without.
- Else the stretch is walked, newest first; and where no index has the order, it is sorted.

The statements are built by `tracking_statements`, and what a filter and an order mean in SQL is
`tracking_filters`' business; what the caller may see is decided before: the experiments, or the project, come
as arguments.
"""

from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import Any, NamedTuple

from sqlalchemy import bindparam, func, select, union_all

from modelkeep.core import codec, errors
from modelkeep.core.mlflow_filter import DatasetFilter, Filter, Kind, Noun, Operator, Order
from modelkeep.core.tracking import Experiment, LoggedModel, Run, ViewType
from modelkeep.store import experiments as experiment_rows
from modelkeep.store import logged_models as logged_model_rows
from modelkeep.store import runs as run_rows
from modelkeep.store.narrowing import shortest
from modelkeep.store.paging import Key, read_token, write_token
from modelkeep.store.statements import Row, one_of
from modelkeep.store.tracking_filters import (
    RANKS,
    Term,
    binds_of,
    data_binds,
    form_of,
    settled,
    step_binds,
    step_of,
)
from modelkeep.store.tracking_statements import ABSENT, Asked, Built, gathered, survey, walked
from modelkeep.store.tracking_tables import (
    experiments,
    logged_models,
    run_metrics,
    run_params,
    run_tags,
    runs,
)
from modelkeep.store.transaction import Transaction

# Limits of a search; each with the reason for its size.
STRETCHES_MAX = 16
"""Stretches that are read one by one and merged; of more, all rows are sorted in one statement."""
RUNS_MAX = 50_000
"""Runs of one page, as many as MLflow's server gives."""
RUNS_AT_ONCE = 1_000
"""Runs that are put together at once on the way to a large page."""
LOGGED_MAX = 500_000
"""Metrics, params and tags of one page of runs: with more, the page ends early and its token goes on."""
EXPERIMENTS_MAX = 50_000
"""Experiments of one page, as many as MLflow's server gives."""
LOGGED_MODELS_MAX = 1_000
"""Logged models of one page."""
DATASETS_MAX = 20
"""Datasets that a search of logged models names."""


class Stretch(NamedTuple):
    """What is searched at once: one place, or all of them, there or in the bin or both (None)."""

    scopes: tuple[Key, ...]
    deleted: bool | None


def _stretches(scopes: Sequence[Key], view: ViewType) -> list[Stretch]:
    stages = {ViewType.ACTIVE_ONLY: [False], ViewType.DELETED_ONLY: [True], ViewType.ALL: [False, True]}[view]
    if len(scopes) * len(stages) <= STRETCHES_MAX:
        return [Stretch((scope,), stage) for scope in scopes for stage in stages]
    return [Stretch(tuple(scopes), stages[0] if len(stages) == 1 else None)]


class Question(NamedTuple):
    """A search with its values."""

    noun: Noun
    clauses: Filter
    order: tuple[Order, ...]
    on: tuple[DatasetFilter, ...]
    values: Mapping[str, Any]

    def asked(self, stretch: Stretch) -> Asked:
        steps = tuple(map(step_of, self.order))
        leading = self.order[0] if self.order and self.order[0].kind is not Kind.ATTRIBUTE else None
        first = tuple(
            index
            for index, clause in enumerate(self.clauses)
            if leading is not None and (clause.kind, clause.key) == (leading.kind, leading.key)
        )
        return Asked(
            noun=self.noun,
            forms=tuple(map(form_of, self.clauses)),
            steps=steps,
            many=len(stretch.scopes) > 1,
            staged=stretch.deleted is not None,
            first=first,
            on=tuple(_blank(data) for data in self.on),
        )


def _blank(data: DatasetFilter) -> DatasetFilter:
    """What a statement's text depends on."""
    return DatasetFilter("", None if data.dataset_digest is None else "")


def _question(
    noun: Noun, clauses: Filter, order: Sequence[Order], on: Sequence[DatasetFilter] = ()
) -> Question:
    clauses = tuple(settled(clause, noun) for clause in clauses)
    values: dict[str, Any] = data_binds(on)
    for index, clause in enumerate(clauses):
        values |= binds_of(index, clause, noun)
    for index, term in enumerate(order):
        values |= step_binds(index, term)
    return Question(noun, clauses, tuple(order), tuple(on), values)


def _rows(
    tx: Transaction, question: Question, stretch: Stretch, key: list[Key] | None, limit: int
) -> list[Row]:
    """The first rows of a stretch behind the key, each a serial and the values of its terms."""
    asked = question.asked(stretch)
    values: dict[str, Any] = {
        **question.values,
        "scope": stretch.scopes[0],
        "scopes": list(stretch.scopes),
        "deleted": int(bool(stretch.deleted)),
        **{f"after_{place}": part for place, part in enumerate(key or ())},
    }
    counted = survey(asked)
    chosen: int | None = None
    if counted is not None:
        ways, counts = counted
        [found] = _run(tx, counts, values)
        place = shortest(found)
        chosen = None if place is None else ways[place]
    if chosen is None and asked.noun is Noun.RUNS and asked.steps and asked.steps[0].field is None:
        return _along(tx, asked, values, key, limit)
    return _run(tx, gathered(asked, chosen, key is not None), {**values, "limit": limit})


def _along(
    tx: Transaction, asked: Asked, values: Mapping[str, Any], key: list[Key] | None, limit: int
) -> list[Row]:
    """The same along the index of what the order begins with, rank by rank."""
    rows: list[Row] = []
    for at_rank in _ranks(asked):
        if key is not None and at_rank < int(key[0]):
            continue
        built = walked(asked, at_rank, key is not None and at_rank == key[0])
        rows += _run(tx, built, {**values, "limit": limit - len(rows)})
        if len(rows) >= limit:
            break
    return rows


def _ranks(asked: Asked) -> list[int]:
    """The ranks that the filter leaves, in their order."""
    forms = [asked.forms[index] for index in asked.first]
    ranks = list(RANKS[asked.steps[0].kind])
    for form in forms:
        kept = {ABSENT} if form.operator is Operator.IS_NULL else {0, 1}
        if form.kind is Kind.METRIC and form.operator is not Operator.NOT_EQUAL:
            kept = {0}
        ranks = [at for at in ranks if at in kept]
    return ranks


def _run(tx: Transaction, built: Built, values: Mapping[str, Any]) -> list[Row]:
    return tx.all(built.statement, **{name: values[name] for name in built.names})


def _merged(lists: Sequence[list[Row]], terms: Sequence[Term]) -> list[Row]:
    """The rows of all stretches in the order of their terms."""
    if len(lists) == 1:
        return lists[0]
    rows = [row for part in lists for row in part]
    for place in range(len(terms), 0, -1):
        rows.sort(key=itemgetter(place), reverse=terms[place - 1].descending)
    return rows


class _Page(NamedTuple):
    """The serials of a page, the key of each, and whether there is more behind it."""

    serials: list[int]
    keys: list[tuple[Any, ...]]
    more: bool
    mark: str

    def token(self, size: int | None = None) -> str | None:
        """What continues after the first `size` rows; None behind the last of all."""
        size = len(self.serials) if size is None else size
        if not size or (size == len(self.serials) and not self.more):
            return None
        return write_token(self.mark, [_token_part(part) for part in self.keys[size - 1]])


def _token_part(part: Key) -> Key:
    """Numbers with a fraction travel as text: JSON has no infinities."""
    return repr(part) if isinstance(part, float) else part


def _page(
    tx: Transaction,
    question: Question,
    scopes: Sequence[Key],
    view: ViewType,
    *,
    asked: object,
    limit: int,
    page_token: str | None,
) -> _Page:
    """The serials of one page.

    Args:
        asked: everything that the search depends on, to bind its tokens to it.
    """
    mark = f"{question.noun} {view} {sorted(map(str, scopes))} {codec.encode(asked).decode()}"
    stretches = _stretches(scopes, view)
    if not stretches:
        return _Page([], [], False, mark)
    terms = gathered(question.asked(stretches[0]), None, False).terms
    key = None if page_token is None else _read_key(page_token, mark, terms)
    rows = _merged([_rows(tx, question, stretch, key, limit + 1) for stretch in stretches], terms)
    page = rows[:limit]
    return _Page([row[0] for row in page], [row[1:] for row in page], len(rows) > limit, mark)


def _read_key(page_token: str, mark: str, terms: Sequence[Term]) -> list[Key]:
    kinds = [int if term.kind is int else str for term in terms]
    parts = read_token(page_token, mark, kinds)
    try:
        return [float(part) if term.kind is float else part for part, term in zip(parts, terms, strict=True)]
    except ValueError as problem:
        raise errors.Invalid(
            "The page token does not belong to this list; leave it out to begin at the first page.",
            field="page_token",
        ) from problem


def _check_limit(limit: int, most: int) -> None:
    if not 1 <= limit <= most:
        raise errors.LimitExceeded(f"A page has 1 to {most:,} rows, not {limit}.", field="max_results")


# ----------------------------------------------------------------------------------------------- the searches


def search_runs(
    tx: Transaction,
    experiment_ids: Sequence[int],
    *,
    clauses: Filter = (),
    order: tuple[Order, ...] = (),
    view: ViewType = ViewType.ACTIVE_ONLY,
    limit: int,
    page_token: str | None = None,
) -> tuple[list[Run], str | None]:
    """A page of the runs of these experiments that pass the filter, among equals the last started first.

    A page ends before its limit, with a token, when its runs have logged more than fits into one answer.

    Raises:
        Invalid: the token is of another search. LimitExceeded: the limit is out of bounds.
    """
    _check_limit(limit, RUNS_MAX)
    scopes = sorted(set(experiment_ids))
    question = _question(Noun.RUNS, clauses, order)
    page = _page(tx, question, scopes, view, asked=[clauses, order], limit=limit, page_token=page_token)
    found: list[Run] = []
    size = 0
    while len(found) < len(page.serials):
        serials = page.serials[len(found) : len(found) + RUNS_AT_ONCE]
        left = max(LOGGED_MAX - size, 0)
        heads = tx.ask(_RUNS, serials=serials)
        logged = run_rows.logged_by(tx, serials, left)
        if logged is None:
            serials = _fitting(tx, serials, left, found=bool(found))
            if not serials:
                break
            logged = run_rows.logged_by(tx, serials)
            assert logged is not None, "no run has logged so much"
        size += logged.size
        rows = {row[0]: run_rows.RunRow(*row) for row in heads.all()}
        found += run_rows.load(tx, [rows[serial] for serial in serials], logged)
    return found, page.token(len(found))


_RUNS = select(*run_rows.RUN).select_from(run_rows.JOINED).where(one_of(runs.c.serial, "serials"))
_LOGGED = select(func.count()).select_from(
    union_all(
        *(
            select(table.c.run).where(one_of(table.c.run, "serials"))
            for table in (run_metrics, run_params, run_tags)
        )
    )
    .limit(bindparam("most"))
    .subquery("logged")
)


def _fitting(tx: Transaction, serials: list[int], most: int, *, found: bool) -> list[int]:
    """As many of these runs as have logged no more than that; at least one run, where none was found
    before."""
    while True:
        row = tx.one(_LOGGED, serials=serials, most=most + 1)
        if (int(row[0]) if row is not None else 0) <= most or (len(serials) == 1 and not found):
            return serials
        if len(serials) == 1:
            return []
        serials = serials[: len(serials) // 2]


def projects_of(tx: Transaction, experiment_ids: Sequence[int]) -> dict[int, str]:
    """The project of each of these experiments, deleted or not; those that are not there are left out."""
    return dict(tx.all(_PROJECTS, ids=list(experiment_ids)))


_PROJECTS = select(experiments.c.id, experiments.c.project).where(one_of(experiments.c.id, "ids"))


def search_experiments(
    tx: Transaction,
    projects: Sequence[str],
    *,
    clauses: Filter = (),
    order: tuple[Order, ...] = (),
    view: ViewType = ViewType.ACTIVE_ONLY,
    limit: int,
    page_token: str | None = None,
) -> tuple[list[Experiment], str | None]:
    """A page of the experiments of these projects that pass the filter; without an order the newest first.

    Raises:
        Invalid: the token is of another search. LimitExceeded: the limit is out of bounds.
    """
    _check_limit(limit, EXPERIMENTS_MAX)
    question = _question(Noun.EXPERIMENTS, clauses, order or _NEWEST_EXPERIMENTS)
    page = _page(
        tx, question, sorted(set(projects)), view, asked=[clauses, order], limit=limit, page_token=page_token
    )
    rows = {row[0]: experiment_rows.ExperimentRow(*row) for row in tx.all(_EXPERIMENTS, serials=page.serials)}
    return experiment_rows.load(tx, [rows[serial] for serial in page.serials]), page.token()


_NEWEST_EXPERIMENTS = (
    Order(Kind.ATTRIBUTE, "creation_time", True),
    Order(Kind.ATTRIBUTE, "experiment_id"),
)
_EXPERIMENTS = select(*experiment_rows.EXPERIMENT).where(one_of(experiments.c.id, "serials"))


def search_logged_models(
    tx: Transaction,
    experiment_ids: Sequence[int],
    *,
    clauses: Filter = (),
    datasets: tuple[DatasetFilter, ...] = (),
    order: tuple[Order, ...] = (),
    limit: int,
    page_token: str | None = None,
) -> tuple[list[LoggedModel], str | None]:
    """A page of the logged models of these experiments that pass the filter, among equals the newest first.

    With datasets, only points measured on one of them count; and without a clause about a metric, a model
    needs some point on one of them.

    Raises:
        Invalid: the token is of another search. LimitExceeded: the limit is out of bounds, or too many
            datasets.
    """
    _check_limit(limit, LOGGED_MODELS_MAX)
    if len(datasets) > DATASETS_MAX:
        raise errors.LimitExceeded(f"A search names at most {DATASETS_MAX} datasets.", limit=DATASETS_MAX)
    question = _question(Noun.LOGGED_MODELS, clauses, order, datasets)
    page = _page(
        tx,
        question,
        sorted(set(experiment_ids)),
        ViewType.ACTIVE_ONLY,
        asked=[clauses, order, datasets],
        limit=limit,
        page_token=page_token,
    )
    rows = {row[0]: logged_model_rows.LoggedModelRow(*row) for row in tx.all(_MODELS, serials=page.serials)}
    return logged_model_rows.load(tx, [rows[serial] for serial in page.serials]), page.token()


_MODELS = (
    select(*logged_model_rows.LOGGED_MODEL)
    .select_from(logged_model_rows.JOINED)
    .where(one_of(logged_models.c.serial, "serials"))
)
