"""MLflow's filters and orders: what its client sends to search experiments, runs, logged models, model
versions and registered models.

    metrics.auc > 0.9 AND params.`learning rate` = '0.1' AND tags.team LIKE 'risk%'

Four rooms: `tree` (vocabularies, operators, clauses), `tokens`, `parser`, and `translation` (the registry's
filters in our own language, `core.query`, which has OR, NOT, parentheses, ranges and more). None knows a
table or SQL. This page is the list of what others use, and has no code of its own.
"""

from modelkeep.core.mlflow_filter.parser import parse, parse_fields, parse_order
from modelkeep.core.mlflow_filter.translation import PROMPT_TAG, expression_of, order_of
from modelkeep.core.mlflow_filter.tree import (
    CLAUSES_MAX,
    DATASET_KEYS,
    FILTER_MAX_BYTES,
    LIKES,
    LIST_MAX,
    LISTS,
    NULLS,
    ORDER_MAX,
    ORDERED,
    PATTERN_MAX,
    SAME,
    VOCABULARIES,
    Clause,
    DatasetFilter,
    Filter,
    Kind,
    Noun,
    Operator,
    Order,
    OrderField,
    Value,
    ValueType,
)

__all__ = [
    "CLAUSES_MAX",
    "DATASET_KEYS",
    "FILTER_MAX_BYTES",
    "LIKES",
    "LISTS",
    "LIST_MAX",
    "NULLS",
    "ORDERED",
    "ORDER_MAX",
    "PATTERN_MAX",
    "PROMPT_TAG",
    "SAME",
    "VOCABULARIES",
    "Clause",
    "DatasetFilter",
    "Filter",
    "Kind",
    "Noun",
    "Operator",
    "Order",
    "OrderField",
    "Value",
    "ValueType",
    "expression_of",
    "order_of",
    "parse",
    "parse_fields",
    "parse_order",
]
