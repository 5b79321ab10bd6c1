"""The filter language: text to a small typed tree, the tree to text, and the one definition of what it means.

    metrics.accuracy > 0.9 and tags.team = "risk" and not (stage = "archived" or semver < "2.0.0")

Four rooms: `tree` (fields, operators, nodes, normal text), `tokens`, `parser` (the grammar and its checks)
and `meaning` (the evaluator). None knows a table, a column or SQL, or decides who may search what; this page
is the list of what others use, and has no code of its own.
"""

from modelkeep.core.query.meaning import Facts, like, matches, sort
from modelkeep.core.query.parser import parse, parse_order
from modelkeep.core.query.tokens import as_number, caret
from modelkeep.core.query.tree import (
    CLAUSES_MAX,
    DEPTH_MAX,
    FIELDS,
    FILTER_MAX_BYTES,
    KINDS,
    LIST_MAX,
    NEGATIONS,
    OPERATORS,
    ORDER_MAX,
    PATTERN_MAX,
    And,
    Comparison,
    Exists,
    Expression,
    Field,
    Kind,
    Literal,
    Not,
    Operator,
    Or,
    Order,
    Subject,
    Target,
    ValueType,
    unparse,
    unparse_order,
)

__all__ = [
    "CLAUSES_MAX",
    "DEPTH_MAX",
    "FIELDS",
    "FILTER_MAX_BYTES",
    "KINDS",
    "LIST_MAX",
    "NEGATIONS",
    "OPERATORS",
    "ORDER_MAX",
    "PATTERN_MAX",
    "And",
    "Comparison",
    "Exists",
    "Expression",
    "Facts",
    "Field",
    "Kind",
    "Literal",
    "Not",
    "Operator",
    "Or",
    "Order",
    "Subject",
    "Target",
    "ValueType",
    "as_number",
    "caret",
    "like",
    "matches",
    "parse",
    "parse_order",
    "sort",
    "unparse",
    "unparse_order",
]
