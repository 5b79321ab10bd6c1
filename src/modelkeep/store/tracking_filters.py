"""What MLflow's filters and orders mean as conditions and columns of SQL, for experiments, runs and logged
models.

The definition stands in `core.mlflow_filter.tree`; a test holds the two against each other on both dialects.
Values and keys are bound by name when a statement is run, so that filters which differ in these alone share
one text; only a pattern is part of it, for the dialects write patterns differently. Pages, and which way
through the tables is taken, are `tracking_search`'s business.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, assert_never

from sqlalchemy import (
    String,
    and_,
    bindparam,
    case,
    cast,
    exists,
    func,
    literal_column,
    not_,
    or_,
    select,
    true,
)
from sqlalchemy.sql.elements import ColumnElement
from sqlalchemy.sql.selectable import FromClause

from modelkeep.core.mlflow_filter import (
    LISTS,
    VOCABULARIES,
    Clause,
    DatasetFilter,
    Kind,
    Noun,
    Operator,
    Order,
    ValueType,
)
from modelkeep.core.tracking import LoggedModelStatus
from modelkeep.store.columns import HEAD_CHARACTERS
from modelkeep.store.filters import Like
from modelkeep.store.statements import one_of
from modelkeep.store.tracking_tables import (
    datasets,
    experiment_tags,
    experiments,
    logged_model_metrics,
    logged_model_params,
    logged_model_tags,
    logged_models,
    run_datasets,
    run_metrics,
    run_params,
    run_tags,
    runs,
)

Condition = ColumnElement[bool]
Column = ColumnElement[Any]

INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1


class Keyed(NamedTuple):
    """Where the metrics, params or tags of one thing stand, and the column that says whose they are."""

    table: FromClause
    owner: str


class Field(NamedTuple):
    """One field as a column. `null`: some rows have no value."""

    column: Column
    kind: type[str] | type[int] = str
    null: bool = False


class View(NamedTuple):
    """One kind of thing as tables."""

    table: FromClause
    serial: Column
    text_id: Column
    scope: Column
    deleted: Column
    fields: Mapping[str, Field]
    keyed: Mapping[Kind, Keyed]


def _artifact_uri() -> Column:
    return "mlflow-artifacts:/" + cast(runs.c.experiment_id, String) + "/" + runs.c.run_id + "/artifacts"


def _artifact_location() -> Column:
    number = cast(logged_models.c.experiment_id, String)
    return "mlflow-artifacts:/" + number + "/models/" + logged_models.c.model_id + "/artifacts"


VIEWS: Mapping[Noun, View] = {
    Noun.RUNS: View(
        table=runs,
        serial=runs.c.serial,
        text_id=runs.c.run_id,
        scope=runs.c.experiment_id,
        deleted=runs.c.deleted,
        fields={
            "run_id": Field(runs.c.run_id),
            "run_name": Field(runs.c.name),
            "user_id": Field(runs.c.user_id),
            "status": Field(runs.c.status),
            "artifact_uri": Field(_artifact_uri()),
            "start_time": Field(runs.c.start_time, int),
            "end_time": Field(runs.c.end_time, int, null=True),
        },
        keyed={
            Kind.METRIC: Keyed(run_metrics, "run"),
            Kind.PARAM: Keyed(run_params, "run"),
            Kind.TAG: Keyed(run_tags, "run"),
        },
    ),
    Noun.EXPERIMENTS: View(
        table=experiments,
        serial=experiments.c.id,
        text_id=experiments.c.name,
        scope=experiments.c.project,
        deleted=experiments.c.deleted,
        fields={
            "name": Field(experiments.c.name),
            "experiment_id": Field(experiments.c.id, int),
            "creation_time": Field(experiments.c.creation_time, int),
            "last_update_time": Field(experiments.c.last_update_time, int),
        },
        keyed={Kind.TAG: Keyed(experiment_tags, "experiment_id")},
    ),
    Noun.LOGGED_MODELS: View(
        table=logged_models,
        serial=logged_models.c.serial,
        text_id=logged_models.c.model_id,
        scope=logged_models.c.experiment_id,
        deleted=logged_models.c.deleted,
        fields={
            "name": Field(logged_models.c.name),
            "model_id": Field(logged_models.c.model_id),
            "model_type": Field(logged_models.c.model_type),
            "source_run_id": Field(logged_models.c.source_run_id, null=True),
            "status": Field(logged_models.c.status),
            "status_message": Field(
                func.nullif(logged_models.c.status_message, literal_column("''")), null=True
            ),
            "experiment_id": Field(logged_models.c.experiment_id, int),
            "artifact_location": Field(_artifact_location()),
            "lifecycle_stage": Field(literal_column("'active'", String)),  # deleted ones are never found
            "creation_timestamp_ms": Field(logged_models.c.creation_timestamp_ms, int),
            "last_updated_timestamp_ms": Field(logged_models.c.last_updated_timestamp_ms, int),
        },
        keyed={
            Kind.METRIC: Keyed(logged_model_metrics, "model"),
            Kind.PARAM: Keyed(logged_model_params, "model"),
            Kind.TAG: Keyed(logged_model_tags, "model"),
        },
    ),
}
"""Where everything that a filter can name stands."""

_STATUSES = {
    "PENDING": LoggedModelStatus.PENDING.value,
    "READY": LoggedModelStatus.READY.value,
    "FAILED": LoggedModelStatus.FAILED.value,
}
"""A status as filters have it, as its column has it; UNSPECIFIED is the status of none."""


# ------------------------------------------------------------------------------------------------- the values


def settled(clause: Clause, noun: Noun) -> Clause:
    """The same clause with a value that its column can be compared with, without rounding either.

    A whole number against a fraction, or beyond 64 bits, becomes one against a whole number; what always
    holds, or never, becomes one against the least there is.
    """
    if clause.kind is not Kind.ATTRIBUTE:
        return clause
    value = clause.value
    if noun is Noun.LOGGED_MODELS and clause.key == "status":
        words = value if isinstance(value, tuple) else (str(value),)
        known = tuple(_STATUSES.get(word, word) for word in words)
        return _with(clause, clause.operator, known if isinstance(value, tuple) else known[0])
    if not isinstance(value, int | float) or (isinstance(value, int) and INT64_MIN <= value <= INT64_MAX):
        return clause
    never = _with(clause, Operator.BELOW, INT64_MIN)
    always = _with(clause, Operator.AT_LEAST, INT64_MIN)
    above = value > INT64_MAX
    if above or value < INT64_MIN:
        up = clause.operator in (Operator.ABOVE, Operator.AT_LEAST)
        holds = clause.operator is Operator.NOT_EQUAL or (
            clause.operator is not Operator.EQUAL and up != above
        )
        return always if holds else never
    if value == math.floor(value):
        return _with(clause, clause.operator, int(value))
    match clause.operator:
        case Operator.EQUAL:
            return never
        case Operator.NOT_EQUAL:
            return always
        case Operator.BELOW | Operator.AT_MOST:
            return _with(clause, Operator.AT_MOST, math.floor(value))
        case _:
            return _with(clause, Operator.AT_LEAST, math.ceil(value))


def _with(clause: Clause, operator: Operator, value: Any) -> Clause:
    return Clause(clause.kind, clause.key, operator, value)


class Form(NamedTuple):
    """A clause without what is bound when the statement is run: what the statement's text depends on."""

    kind: Kind
    field: str | None
    operator: Operator
    pattern: str | None
    long: bool


def form_of(clause: Clause) -> Form:
    """What is left of a clause in a statement."""
    pattern = clause.value if clause.operator in (Operator.LIKE, Operator.ILIKE) else None
    assert pattern is None or isinstance(pattern, str), "patterns are text"
    is_field = clause.kind in (Kind.ATTRIBUTE, Kind.DATASET)
    long = isinstance(clause.value, str) and len(clause.value) >= HEAD_CHARACTERS
    return Form(clause.kind, clause.key if is_field else None, clause.operator, pattern, long)


def binds_of(index: int, clause: Clause, noun: Noun) -> dict[str, Any]:
    """Every value that statements about the clause may ask for, by the names of its place in the filter."""
    value: Any = clause.value
    if clause.kind is Kind.ATTRIBUTE and VIEWS[noun].fields[clause.key].kind is int and value is not None:
        value = tuple(map(int, value)) if isinstance(value, tuple) else int(value)
    if isinstance(value, tuple):
        value = list(value)
    head = value[:HEAD_CHARACTERS] if isinstance(value, str) else None
    return {f"key_{index}": clause.key, f"value_{index}": value, f"head_{index}": head}


# ------------------------------------------------------------------------------------------------ the clauses


def compare(column: Column, form: Form, index: int) -> Condition:
    """One value against that of the clause, for the operators that ask for a value."""
    wanted: Column = bindparam(f"value_{index}")
    match form.operator:
        case Operator.EQUAL:
            return column == wanted
        case Operator.NOT_EQUAL:
            return column != wanted
        case Operator.BELOW:
            return column < wanted
        case Operator.AT_MOST:
            return column <= wanted
        case Operator.ABOVE:
            return column > wanted
        case Operator.AT_LEAST:
            return column >= wanted
        case Operator.LIKE:
            return Like(column, _escaped(form))
        case Operator.ILIKE:
            return Like(func.lower(column), _lowered(_escaped(form)))
        case Operator.IN:
            return one_of(column, f"value_{index}")
        case Operator.NOT_IN:
            return not_(one_of(column, f"value_{index}"))
        case Operator.IS_NULL | Operator.IS_NOT_NULL:
            raise AssertionError(f"{form.operator} asks for no value")
        case _:
            assert_never(form.operator)


_LOWER = {code: code + 32 for code in range(ord("A"), ord("Z") + 1)}


def _lowered(text: str) -> str:
    return text.translate(_LOWER)


def _escaped(form: Form) -> str:
    """The pattern as ours are written: a backslash, which is nothing special in MLflow's, as two."""
    assert form.pattern is not None, "a pattern is part of its form"
    return form.pattern.replace("\\", "\\\\")


def passes(table: FromClause, form: Form, index: int) -> Condition:
    """Whether a row of metrics, params or tags passes; its key is looked at elsewhere."""
    if form.operator in (Operator.IS_NULL, Operator.IS_NOT_NULL):
        return true()
    compared = compare(table.c.value, form, index)
    if form.kind is not Kind.METRIC:
        return compared
    if form.operator is Operator.NOT_EQUAL:
        return or_(compared, table.c.is_nan == literal_column("1"))
    return and_(table.c.is_nan == literal_column("0"), compared)


def picked(noun: Noun, form: Form, index: int, on: Sequence[DatasetFilter] = ()) -> Condition:
    """Whether a thing passes a clause, asked for one thing: by the primary keys of what it has."""
    view = VIEWS[noun]
    match form.kind:
        case Kind.ATTRIBUTE:
            assert form.field is not None, "a field is part of its form"
            field = view.fields[form.field]
            as_text = field.kind is int and VOCABULARIES[noun].attributes[form.field].type is ValueType.TEXT
            if as_text and form.operator in (Operator.LIKE, Operator.ILIKE):
                return compare(cast(field.column, String), form, index)
            return compare(field.column, form, index)
        case Kind.DATASET:
            return _of_dataset(form, index)
        case Kind.METRIC if noun is Noun.LOGGED_MODELS:
            return _of_latest(form, index, on)
        case _:
            keyed = view.keyed[form.kind]
            table = keyed.table.alias(f"clause_{index}")
            mine = and_(table.c[keyed.owner] == view.serial, table.c.key == bindparam(f"key_{index}"))
            there = exists().where(mine, passes(table, form, index)).correlate_except(table)
            return not_(there) if form.operator is Operator.IS_NULL else there


def _of_dataset(form: Form, index: int) -> Condition:
    links, data = run_datasets.alias(f"link_{index}"), datasets.alias(f"dataset_{index}")
    mine = links.c.run == runs.c.serial
    if form.field == "context":
        there = and_(links.c.context != literal_column("''"), compare(links.c.context, form, index))
        return exists().where(mine, there).correlate_except(links)
    column = data.c[form.field or ""]
    joined = and_(mine, data.c.serial == links.c.dataset, compare(column, form, index))
    return exists().where(joined).correlate_except(links, data)


def _of_latest(form: Form, index: int, on: Sequence[DatasetFilter]) -> Condition:
    """The latest point of a logged model's metric, out of those measured on the data asked for."""
    points = logged_model_metrics.alias(f"clause_{index}")
    latest = latest_of(points, f"key_{index}", lambda table: measured_on(table, on))
    return exists().where(latest, passes(points, form, index)).correlate_except(points)


def latest_of(points: FromClause, key: str, measured: Callable[[FromClause], Condition]) -> Condition:
    """Whether a point is the latest of a logged model's metric among those that were measured so.

    Args:
        key: the name under which the metric's key is bound.
    """
    later = logged_model_metrics.alias(f"{points.description}_later")
    mine = and_(points.c.model == logged_models.c.serial, points.c.key == bindparam(key), measured(points))
    others = and_(later.c.model == logged_models.c.serial, later.c.key == bindparam(key), measured(later))
    overtaken = exists().where(others, _is_later(later, points)).correlate_except(later)
    return and_(mine, not_(overtaken))


def measured_on(table: FromClause, on: Sequence[DatasetFilter], name: str = "data") -> Condition:
    """Whether a point was measured on one of these; on anything where there are none."""
    if not on:
        return true()
    ways: list[Condition] = []
    for place, data in enumerate(on):
        parts: list[Condition] = [table.c.dataset_name == bindparam(f"{name}_name_{place}")]
        if data.dataset_digest is not None:
            parts.append(table.c.dataset_digest == bindparam(f"{name}_digest_{place}"))
        ways.append(and_(*parts))
    return or_(*ways)


def data_binds(on: Sequence[DatasetFilter], name: str = "data") -> dict[str, Any]:
    """The values of `measured_on`."""
    names = {f"{name}_name_{place}": data.dataset_name for place, data in enumerate(on)}
    return names | {f"{name}_digest_{place}": data.dataset_digest for place, data in enumerate(on)}


def _is_later(later: FromClause, point: FromClause) -> Condition:
    """Whether one point counts before another: by step, time and value, in this order."""
    pairs = [(later.c[name], point.c[name]) for name in ("step", "timestamp")]
    # A NaN is no number to win by, and of equal points the run decides, so that always one is the latest.
    pairs += [(point.c.is_nan, later.c.is_nan), (later.c.value, point.c.value), (later.c.run, point.c.run)]
    ways: list[Condition] = []
    for place, (left, right) in enumerate(pairs):
        ways.append(and_(*(a == b for a, b in pairs[:place]), left > right))
    return or_(*ways)


# --------------------------------------------------------------------------------------------------- the ways


def way(noun: Noun, form: Form, index: int, scope: Any) -> Any:
    """The serials of what passes a clause, read from one index; None when no index has them together.

    Args:
        scope: makes the condition that a column lies in what is searched.
    """
    view = VIEWS[noun]
    if form.kind is Kind.ATTRIBUTE:
        by_id = form.field in ("run_id", "model_id") and form.operator in (Operator.EQUAL, Operator.IN)
        if not by_id:
            return None
        table = view.table.alias(f"way_{index}")
        return select(table.c.serial).where(compare(table.c[form.field or ""], form, index))
    # A logged model has many points of a metric, of which only the latest counts: no index knows which.
    ranged = form.operator not in (Operator.NOT_EQUAL, *LISTS)
    ordered = form.kind is Kind.METRIC and noun is Noun.RUNS and ranged
    equal = form.kind in (Kind.PARAM, Kind.TAG) and form.operator is Operator.EQUAL
    if not (ordered or equal):
        return None
    keyed = view.keyed[form.kind]
    table = keyed.table.alias(f"way_{index}")
    parts: list[Condition] = [table.c.key == bindparam(f"key_{index}")]
    if "experiment_id" in table.c and noun is not Noun.EXPERIMENTS:
        parts.insert(0, scope(table.c.experiment_id))
    if ordered:
        parts.append(passes(table, form, index))
    else:
        parts.append(table.c.value_head == bindparam(f"head_{index}"))
        # A head that is shorter than heads may be is the whole value, which the index then answers alone.
        parts += [compare(table.c.value, form, index)] if form.long else []
    return select(table.c[keyed.owner]).where(and_(*parts))


# -------------------------------------------------------------------------------------------------- the order


class Term(NamedTuple):
    """One column of an order that has no null."""

    column: Column
    kind: type[str] | type[int] | type[float]
    descending: bool


class Step(NamedTuple):
    """A term of an order as its statement has it; the key is bound."""

    kind: Kind
    field: str | None
    descending: bool
    on_name: bool
    on_digest: bool


def step_of(order: Order) -> Step:
    """What is left of a term of an order in a statement."""
    field = order.key if order.kind is Kind.ATTRIBUTE else None
    name, digest = order.dataset_name is not None, order.dataset_digest is not None
    return Step(order.kind, field, order.descending, name, digest)


def step_binds(index: int, order: Order) -> dict[str, Any]:
    """Every value that statements about a term may ask for."""
    return {
        f"by_{index}": order.key,
        f"by_{index}_name_0": order.dataset_name,
        f"by_{index}_digest_0": order.dataset_digest,
    }


def rank(table: FromClause, kind: Kind) -> Column:
    """0 for a value, 1 for a NaN, 2 for none, of a table that is joined to the left."""
    there: Column = table.c.is_nan if kind is Kind.METRIC else literal_column("0")
    return case((table.c.key.is_(None), literal_column("2")), else_=there)


RANKS = {Kind.METRIC: (0, 1, 2), Kind.PARAM: (0, 2), Kind.TAG: (0, 2)}
"""The ranks there are, in the order in which they are read."""
ORDER_CHARACTERS = 250
"""How much of a param or tag counts in an order: it travels in the token of the next page."""


def value_terms(table: FromClause, step: Step, *, joined: bool) -> list[Term]:
    """The value of a metric, param or tag in an order, by which its index is sorted too.

    Args:
        joined: the table is joined to the left, so that there may be no value.
    """
    kind: type[str] | type[float] = float if step.kind is Kind.METRIC else str
    columns: list[Column] = [table.c.value]
    if kind is str:
        # Two values have the order of their heads, and where these are equal, that of the values.
        columns = [table.c.value_head, func.substr(table.c.value, 1, ORDER_CHARACTERS)]
    if joined:
        columns = [func.coalesce(column, default_of(kind)) for column in columns]
    return [Term(column, kind, step.descending) for column in columns]


def default_of(kind: type[str] | type[int] | type[float]) -> Column:
    """What stands in the place of a value that is not there, so that no key of a page is null."""
    return literal_column("''", String) if kind is str else literal_column("0" if kind is int else "0.0")


def field_terms(field: Field, *, descending: bool) -> list[Term]:
    """A field of an order; what has no value comes last."""
    if not field.null:
        return [Term(field.column, field.kind, descending)]
    absent = case((field.column.is_(None), literal_column("1")), else_=literal_column("0"))
    return [
        Term(absent, int, False),
        Term(func.coalesce(field.column, default_of(field.kind)), field.kind, descending),
    ]


def after(terms: Sequence[Term], first: int = 0) -> Condition:
    """Behind the key whose parts are bound as `after_0` and so on, from the part `first` on.

    The condition on the first term alone stands in front, where an index begins at it.
    """
    term = terms[0]
    key: Column = bindparam(f"after_{first}")
    beyond = term.column < key if term.descending else term.column > key
    if len(terms) == 1:
        return beyond
    up_to = term.column <= key if term.descending else term.column >= key
    return and_(up_to, or_(beyond, _behind(terms, first)))


def _behind(terms: Sequence[Term], first: int) -> Condition:
    """Equal in the first term, and behind in the others."""
    equal = terms[0].column == bindparam(f"after_{first}")
    return and_(equal, after(terms[1:], first + 1))
