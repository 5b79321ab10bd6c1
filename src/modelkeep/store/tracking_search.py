"""Searches of experiments, runs and logged models, cut into pages by key.

A search looks at one or more stretches: an experiment, or the bin of one, of which each has its rows in the
order of an index. Each stretch gives the serials of its first rows, these are merged, and only the rows of
the page are read and put together. Where the rows of a stretch are found:

- A clause of the filter that few rows pass leads to them by its own index (see `narrowing`, whose rule this
  is): it is counted, up to FEW and no further, before it is taken.
- Else, when the order begins with a metric, param or tag, its index is walked: first those with a value, then
  the NaNs, then those without.
- Else the stretch is walked, newest first; and where no index has the order, it is sorted.

What a filter and an order mean in SQL is `tracking_filters`' business; what the caller may see is decided
before: the experiments, or the project, come as arguments.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from operator import itemgetter
from typing import Any, NamedTuple

from sqlalchemy import Integer, and_, bindparam, exists, func, literal_column, not_, select, union_all
from sqlalchemy.dialects.sqlite import dialect as sqlite_dialect
from sqlalchemy.sql.elements import ColumnElement
from sqlalchemy.sql.selectable import FromClause, Join

from modelkeep.core import codec, errors
from modelkeep.core.mlflow_filter import DatasetFilter, Filter, Kind, Noun, Operator, Order
from modelkeep.core.tracking import Experiment, LoggedModel, Run, ViewType
from modelkeep.store import experiments as experiment_rows
from modelkeep.store import logged_models as logged_model_rows
from modelkeep.store import runs as run_rows
from modelkeep.store.narrowing import FEW, Among, Picking, shortest
from modelkeep.store.paging import Key, read_token, write_token
from modelkeep.store.statements import Row, Statement, one_of
from modelkeep.store.tracking_filters import (
    RANKS,
    VIEWS,
    Condition,
    Form,
    Step,
    Term,
    after,
    binds_of,
    data_binds,
    default_of,
    field_terms,
    form_of,
    latest_of,
    measured_on,
    passes,
    picked,
    rank,
    settled,
    step_binds,
    step_of,
    value_terms,
    way,
)
from modelkeep.store.tracking_tables import (
    experiments,
    logged_model_metrics,
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
STATEMENTS_KEPT = 512
"""Statements that are kept compiled: they do not depend on keys and values, so a few serve everybody."""
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


class Asked(NamedTuple):
    """One search, without values: what its statements are built from and kept under.

    Attributes:
        many: the scope is a list instead of one.
        staged: whether rows are looked for by the place they are in (there, or in the bin).
        first: clauses about what the order begins with; each of them is its place in `forms`.
    """

    noun: Noun
    forms: tuple[Form, ...]
    steps: tuple[Step, ...]
    many: bool
    staged: bool
    first: tuple[int, ...]
    on: tuple[DatasetFilter, ...]


class Built(NamedTuple):
    """A statement, the names that it binds, and the terms whose values stand in its rows."""

    statement: Statement
    names: frozenset[str]
    terms: tuple[Term, ...]


# --------------------------------------------------------------------------------------------- the statements


def _scope(asked: Asked, column: ColumnElement[Any]) -> Condition:
    return one_of(column, "scopes") if asked.many else column == bindparam("scope")


def _within(asked: Asked) -> list[Condition]:
    """What is searched, as conditions on the thing itself."""
    view = VIEWS[asked.noun]
    parts = [_scope(asked, view.scope)]
    if asked.staged:
        parts.append(view.deleted == bindparam("deleted"))
    return parts


def _ways(asked: Asked) -> Iterator[tuple[int, Any]]:
    for index, form in enumerate(asked.forms):
        found = way(asked.noun, form, index, lambda column: _scope(asked, column))
        if found is not None:
            yield index, found


@lru_cache(maxsize=STATEMENTS_KEPT)
def survey(asked: Asked) -> tuple[tuple[int, ...], Built] | None:
    """The places of the clauses that may lead to few rows, and the statement that counts them all."""
    ways = dict(_ways(asked))
    if not ways:
        return None
    counts = [
        select(func.count()).select_from(found.limit(FEW + 1).subquery(f"counted_{index}")).scalar_subquery()
        for index, found in ways.items()
    ]
    return tuple(ways), _built(select(*counts), ())


def _built(statement: Any, terms: Sequence[Term]) -> Built:
    # Elements of our own hide what they bind from SQLAlchemy's walkers; the compiler sees it all.
    compiled = statement.compile(dialect=_ANY)
    names = frozenset(name for bind, name in compiled.bind_names.items() if bind.required)
    return Built(statement, names, tuple(terms))


_ANY = sqlite_dialect()
"""Names and places are the same in every dialect."""


def _ties(asked: Asked) -> list[Term]:
    """What decides among equals, as on MLflow's server."""
    view = VIEWS[asked.noun]
    named = {step.field for step in asked.steps}
    match asked.noun:
        case Noun.RUNS:
            newest, last = "start_time", Term(runs.c.run_id, str, False)
        case Noun.LOGGED_MODELS:
            newest, last = "creation_timestamp_ms", Term(logged_models.c.model_id, str, False)
        case _:
            return [] if "experiment_id" in named else [Term(view.serial, int, True)]
    return [*([] if newest in named else [Term(view.fields[newest].column, int, True)]), last]


def _step_terms(asked: Asked, first: int) -> tuple[FromClause, list[Term]]:
    """The tables with those that the order needs, and its terms, from the step `first` on."""
    view = VIEWS[asked.noun]
    joined: FromClause = view.table
    terms: list[Term] = []
    for index, step in enumerate(asked.steps[first:], first):
        if step.field is not None:
            terms += field_terms(view.fields[step.field], descending=step.descending)
            continue
        keyed = view.keyed[step.kind]
        table = keyed.table.alias(f"order_{index}")
        joined = joined.outerjoin(table, _joining(asked, index, step, table))
        terms.append(Term(rank(table, step.kind), int, False))
        terms += value_terms(table, step, joined=True)
    return joined, [*terms, *_ties(asked)]


def _joining(asked: Asked, index: int, step: Step, table: FromClause) -> Condition:
    view = VIEWS[asked.noun]
    if asked.noun is Noun.LOGGED_MODELS:
        own = DatasetFilter("", "" if step.on_digest else None)

        def measured(points: FromClause) -> Condition:
            extra = measured_on(points, (own,) if step.on_name else (), f"by_{index}")
            return and_(measured_on(points, asked.on), extra)

        return latest_of(table, f"by_{index}", measured)
    keyed = view.keyed[step.kind]
    return and_(table.c[keyed.owner] == view.serial, table.c.key == bindparam(f"by_{index}"))


def _others(asked: Asked, done: Sequence[int]) -> list[Condition]:
    """The clauses that are not answered otherwise, as conditions that lead nowhere."""
    picks: list[Condition] = [
        Picking(picked(asked.noun, form, index, asked.on))
        for index, form in enumerate(asked.forms)
        if index not in done
    ]
    if asked.on and all(form.kind is not Kind.METRIC for form in asked.forms):
        points = logged_model_metrics.alias("measured")
        mine = and_(points.c.model == logged_models.c.serial, measured_on(points, asked.on))
        picks.append(Picking(exists().where(mine).correlate_except(points)))
    return picks


@lru_cache(maxsize=STATEMENTS_KEPT)
def gathered(asked: Asked, way_index: int | None, paged: bool) -> Built:
    """The first rows of a stretch: out of those that a way leads to, or out of all."""
    view = VIEWS[asked.noun]
    joined, terms = _step_terms(asked, 0)
    parts = _within(asked)
    if way_index is not None:
        ids = dict(_ways(asked))[way_index]
        parts = [Among(view.serial, ids), *(Picking(part) for part in parts)]
    parts += _others(asked, () if way_index is None else (way_index,))
    if paged:
        parts.append(after(terms))
    statement = select(view.serial, *(term.column for term in terms)).select_from(joined).where(and_(*parts))
    return _built(_cut(statement, terms), terms)


@lru_cache(maxsize=STATEMENTS_KEPT)
def walked(asked: Asked, at_rank: int, paged: bool) -> Built:
    """The first runs of a stretch that have this rank in what the order begins with: along its index, or,
    where they have no value, newest first."""
    step = asked.steps[0]
    keyed = VIEWS[asked.noun].keyed[step.kind]
    table = keyed.table.alias("order_0")
    joined, rest = _step_terms(asked, 1)
    values = value_terms(table, step, joined=False)
    parts = [table.c.key == bindparam("by_0")]
    done: tuple[int, ...] = ()
    if at_rank == ABSENT:
        there = exists().where(table.c[keyed.owner] == runs.c.serial, *parts).correlate_except(table)
        parts = [*_within(asked), Picking(not_(there))]
    else:
        joined = _led_by(table, table.c[keyed.owner] == runs.c.serial, joined)
        parts.append(_scope(asked, table.c.experiment_id))
        if step.kind is Kind.METRIC:
            parts.append(table.c.is_nan == literal_column(str(at_rank)))
        if asked.staged:
            parts.append(Picking(runs.c.deleted == bindparam("deleted")))
        done = asked.first
        parts += [_directly(table, asked.forms[index], index) for index in done]
    fixed = [Term(literal_column(str(at_rank), Integer), int, False)]
    if at_rank != 0:
        fixed += [Term(default_of(value.kind), value.kind, value.descending) for value in values]
    moving = [*(values if at_rank == 0 else []), *rest]
    parts += _others(asked, done)
    if paged:
        parts.append(after(moving, len(fixed)))
    columns = (runs.c.serial, *(term.column for term in (*fixed, *moving)))
    statement = select(*columns).select_from(joined).where(and_(*parts))
    return _built(_cut(statement, moving), (*fixed, *moving))


def _led_by(table: FromClause, mine: Condition, joined: FromClause) -> FromClause:
    """The runs, and what is joined to them, behind the table whose index is walked."""
    if isinstance(joined, Join):
        return _led_by(table, mine, joined.left).outerjoin(joined.right, joined.onclause)
    return table.join(joined, mine)


def _directly(table: FromClause, form: Form, index: int) -> Condition:
    """A clause about what the order begins with, on the index that is walked."""
    if form.operator is Operator.EQUAL and form.kind is not Kind.METRIC:
        return and_(table.c.value_head == bindparam(f"head_{index}"), passes(table, form, index))
    return passes(table, form, index)


def _cut(statement: Any, terms: Sequence[Term]) -> Any:
    order = [term.column.desc() if term.descending else term.column.asc() for term in terms]
    return statement.order_by(*order).limit(bindparam("limit"))


# --------------------------------------------------------------------------------------------------- the walk


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


ABSENT = 2
"""The rank of what has no value."""


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
    logged = 0
    while len(found) < len(page.serials):
        serials = page.serials[len(found) : len(found) + RUNS_AT_ONCE]
        serials, size = _fitting(tx, serials, LOGGED_MAX - logged, found=bool(found))
        if not serials:
            break
        logged += size
        rows = {row[0]: run_rows.RunRow(*row) for row in tx.all(_RUNS, serials=serials)}
        found += run_rows.load(tx, [rows[serial] for serial in serials])
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


def _fitting(tx: Transaction, serials: list[int], most: int, *, found: bool) -> tuple[list[int], int]:
    """As many of these runs as have logged no more than that, and how much they have; at least one run, where
    none was found before."""
    while True:
        row = tx.one(_LOGGED, serials=serials, most=most + 1)
        size = int(row[0]) if row is not None else 0
        if size <= most or (len(serials) == 1 and not found):
            return serials, size
        if len(serials) == 1:
            return [], 0
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
