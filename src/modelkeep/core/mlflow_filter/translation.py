"""MLflow's filters and orders of the registry as expressions of our own language, which is searched by.

Two rules of MLflow's server stand in between. Prompts are registered models with a tag, and are left out
unless the filter asks for them. And a version that no run made has the empty text for its run there, while
here it has none. Nothing is parsed or evaluated here.
"""

from modelkeep.core import query
from modelkeep.core.mlflow_filter.tree import Clause, Filter, Kind, Noun, Operator, Order
from modelkeep.core.query import And, Comparison, Exists, Expression, Not, Or, Subject

PROMPT_TAG = "mlflow.prompt.is_prompt"
"""The tag that makes a registered model, and each of its versions, a prompt."""

_FIELDS = {
    Noun.MODELS: {"name": "name", "last_updated_timestamp": "updated_at"},
    Noun.VERSIONS: {
        "name": "model",
        "version_number": "number",
        "run_id": "run_id",
        "source_path": "source",
        "creation_timestamp": "created_at",
        "last_updated_timestamp": "created_at",  # what changes later is in the history, not on the version
    },
}
"""What the fields of the registry are called in our language."""
_SOMETIMES = frozenset({"run_id", "source"})
"""Fields that not every version has."""
_OPERATORS = {
    operator: query.Operator(operator.value.lower()) for operator in Operator if "NULL" not in operator
}
_IS_PROMPT = Comparison(Subject(query.Kind.TAG, PROMPT_TAG), query.Operator.EQUAL, "true")
_DEFAULT = (
    Order(Kind.ATTRIBUTE, "last_updated_timestamp", True),
    Order(Kind.ATTRIBUTE, "name"),
    Order(Kind.ATTRIBUTE, "version_number", True),
)


def expression_of(clauses: Filter, noun: Noun) -> Expression:
    """A filter of registered models or of model versions, as one expression."""
    prompts = _asks_for_prompts(clauses)
    parts: list[Expression] = [] if prompts else [Not(_IS_PROMPT)]
    parts += [_part(clause, noun) for clause in clauses if prompts or not _is_about_prompts(clause)]
    return And(tuple(parts)) if len(parts) > 1 else parts[0]


def order_of(order: tuple[Order, ...], noun: Noun) -> tuple[query.Order, ...]:
    """An order of registered models or of model versions, with MLflow's ties: by name, and of one model the
    last number first."""
    given = order or (_DEFAULT if noun is Noun.VERSIONS else ())
    named = {term.key for term in given}
    ties = [Order(Kind.ATTRIBUTE, "name")]
    if noun is Noun.VERSIONS:
        ties.append(Order(Kind.ATTRIBUTE, "version_number", True))
    terms = (*given, *(tie for tie in ties if tie.key not in named))
    return tuple(query.Order(_field(term.key, noun), term.descending) for term in terms)


def _field(name: str, noun: Noun) -> Subject:
    return Subject(query.Kind.FIELD, _FIELDS[noun][name])


def _is_about_prompts(clause: Clause) -> bool:
    return clause.kind is Kind.TAG and clause.key == PROMPT_TAG


def _asks_for_prompts(clauses: Filter) -> bool:
    """Whether the first clause about the tag of prompts asks for them."""
    first = next(filter(_is_about_prompts, clauses), None)
    if first is None:
        return False
    asked = (first.operator, str(first.value).lower())
    return asked in ((Operator.EQUAL, "true"), (Operator.NOT_EQUAL, "false"))


def _part(clause: Clause, noun: Noun) -> Expression:
    subject = (
        _field(clause.key, noun) if clause.kind is Kind.ATTRIBUTE else Subject(query.Kind.TAG, clause.key)
    )
    operator, value = _OPERATORS[clause.operator], clause.value
    assert value is not None, "nothing of the registry is compared with null"
    if operator in (query.Operator.LIKE, query.Operator.ILIKE):
        value = str(value).replace("\\", "\\\\")
    comparison = Comparison(subject, operator, value)
    if subject.name in _SOMETIMES and query.matches(comparison, {subject.name: ""}):
        return Or((comparison, Not(Exists(subject))))
    return comparison
