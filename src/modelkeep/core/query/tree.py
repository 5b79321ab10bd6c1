"""What a filter is once it is read: the table of fields, the operators, the nodes of the tree, its normal
text.

A store compiles these nodes, so they carry everything resolved: a subject knows its kind and type, and a
value already is of that type. How text becomes a tree is `parser`'s business, what a tree means is
`meaning`'s.
"""

from collections.abc import Iterable, Mapping
from datetime import datetime
from enum import StrEnum
from typing import assert_never

from msgspec import Struct

from modelkeep.core import semver

FILTER_MAX_BYTES = 4 * 1024
"""A filter or an order: some screens of text, and far below what a store refuses."""
CLAUSES_MAX = 100
"""Comparisons of one filter: each may cost the store a look into another table."""
DEPTH_MAX = 10
"""Parentheses and `not` inside one another: more than a person reads, far below the interpreter's stack."""
LIST_MAX = 200
"""Values of one `in (...)`: each becomes a parameter of the store's statement."""
PATTERN_MAX = 256
"""Characters of a `like` pattern: its cost is this times the length of the text."""
ORDER_MAX = 8
"""Terms of an order."""


class Target(StrEnum):
    """What a filter is over."""

    MODELS = "models"
    VERSIONS = "versions"


class Kind(StrEnum):
    """Where a subject's value lives. The value is also the prefix in a filter and the key in facts."""

    FIELD = "field"
    METRIC = "metrics"
    PARAM = "params"
    TAG = "tags"


class ValueType(StrEnum):
    """How a subject's values are written and compared."""

    TEXT = "text"
    """By code point."""
    SEMVER = "semver"
    """By precedence (semver 2.0.0, section 11), so build metadata does not count."""
    INTEGER = "integer"
    """64 bits, signed."""
    NUMBER = "number"
    """A finite float."""
    TIME = "time"
    """An instant."""
    FREE = "free"
    """Text that people put numbers into (parameters, tags). The literal decides: text compares as text; a
    number with those that are numbers (see `as_number`); true and false with these words in any case."""


class Field(Struct, frozen=True):
    """One field of the language. `many`: it can have several values. `lower`: it is stored in lower case, and
    so its literals are lowered. `choices`: the only values there are."""

    type: ValueType
    targets: frozenset[Target]
    meaning: str
    many: bool = False
    lower: bool = False
    choices: tuple[str, ...] = ()


_MODELS = frozenset({Target.MODELS})
_VERSIONS = frozenset({Target.VERSIONS})
_BOTH = _MODELS | _VERSIONS

FIELDS: Mapping[str, Field] = {
    "name": Field(ValueType.TEXT, _MODELS, "name of the model, without its project"),
    "model": Field(ValueType.TEXT, _VERSIONS, "name of the version's model, without its project"),
    "project": Field(ValueType.TEXT, _BOTH, "project the model lives in"),
    "owner": Field(ValueType.TEXT, _BOTH, "owner of the model"),
    "description": Field(ValueType.TEXT, _BOTH, "description of the model or of the version"),
    "created_at": Field(ValueType.TIME, _BOTH, "when it was registered"),
    "created_by": Field(ValueType.TEXT, _BOTH, "who registered it"),
    "updated_at": Field(ValueType.TIME, _MODELS, "when its labels last changed"),
    "number": Field(ValueType.INTEGER, _VERSIONS, "1, 2, 3 in the order of registration"),
    "semver": Field(ValueType.SEMVER, _VERSIONS, "semantic version"),
    "stage": Field(ValueType.TEXT, _VERSIONS, "stage it is in; `none` where it is in none", lower=True),
    "alias": Field(ValueType.TEXT, _VERSIONS, "each alias that points to it", many=True),
    "status": Field(
        ValueType.TEXT,
        _VERSIONS,
        "`ready`, `tombstoned` after it was taken back, or `yanked`",
        lower=True,
        choices=("ready", "tombstoned", "yanked"),
    ),
    "parent": Field(ValueType.INTEGER, _VERSIONS, "number of the version it descends from"),
    "framework": Field(ValueType.TEXT, _VERSIONS, "framework its metadata names"),
    "run_id": Field(ValueType.TEXT, _VERSIONS, "run that logged it"),
    "source": Field(ValueType.TEXT, _VERSIONS, "address it was registered from"),
    "code_commit": Field(ValueType.TEXT, _VERSIONS, "commit of the code that made it", lower=True),
    "identity": Field(
        ValueType.TEXT,
        _VERSIONS,
        "what it was made of (code, data, parameters, environment), `sha256:` and 64 hexadecimal digits",
        lower=True,
    ),
    "digest": Field(
        ValueType.TEXT, _VERSIONS, "content identity, `sha256:` and 64 hexadecimal digits", lower=True
    ),
    "size_bytes": Field(ValueType.INTEGER, _VERSIONS, "bytes of its files together"),
}
"""Every field by name. A new field is one line here, one in the store's table of columns, one in the docs."""

KINDS: Mapping[Target, tuple[Kind, ...]] = {
    Target.MODELS: (Kind.TAG,),
    Target.VERSIONS: (Kind.METRIC, Kind.PARAM, Kind.TAG),
}
"""Which keyed kinds each target has beside its fields."""

KIND_WORDS = {
    "metrics": Kind.METRIC,
    "metric": Kind.METRIC,
    "params": Kind.PARAM,
    "param": Kind.PARAM,
    "tags": Kind.TAG,
    "tag": Kind.TAG,
}
"""What may stand before the dot; one of something is written with either word."""
SYNONYMS = {
    Target.MODELS: {"model": "name"},
    Target.VERSIONS: {"name": "model", "version": "semver", "aliases": "alias"},
}
"""Other words for fields; the tree has the field's own name."""
_KIND_TYPES = {Kind.METRIC: ValueType.NUMBER, Kind.PARAM: ValueType.FREE, Kind.TAG: ValueType.FREE}


class Operator(StrEnum):
    """A comparison, as it is written."""

    EQUAL = "="
    NOT_EQUAL = "!="
    BELOW = "<"
    AT_MOST = "<="
    ABOVE = ">"
    AT_LEAST = ">="
    LIKE = "like"
    NOT_LIKE = "not like"
    ILIKE = "ilike"
    NOT_ILIKE = "not ilike"
    IN = "in"
    NOT_IN = "not in"
    IN_RANGE = "in range"
    NOT_IN_RANGE = "not in range"


NEGATIONS: Mapping[Operator, Operator] = {
    Operator.NOT_EQUAL: Operator.EQUAL,
    Operator.NOT_LIKE: Operator.LIKE,
    Operator.NOT_ILIKE: Operator.ILIKE,
    Operator.NOT_IN: Operator.IN,
    Operator.NOT_IN_RANGE: Operator.IN_RANGE,
}
"""Negative operator to its positive: `s != v` means "s exists and not s = v", and so for the others."""

NEGATED: Mapping[Operator, Operator] = {positive: negative for negative, positive in NEGATIONS.items()}
"""The other way round."""
SIGNS: Mapping[str, Operator] = {
    "=": Operator.EQUAL,
    "==": Operator.EQUAL,
    "!=": Operator.NOT_EQUAL,
    "<>": Operator.NOT_EQUAL,
    "<": Operator.BELOW,
    "<=": Operator.AT_MOST,
    ">": Operator.ABOVE,
    ">=": Operator.AT_LEAST,
}
"""Operators that are signs, in every spelling."""
LIKES = frozenset({Operator.LIKE, Operator.NOT_LIKE, Operator.ILIKE, Operator.NOT_ILIKE})
LISTS = frozenset({Operator.IN, Operator.NOT_IN})
RANGES = frozenset({Operator.IN_RANGE, Operator.NOT_IN_RANGE})
SAME = frozenset({Operator.EQUAL, Operator.NOT_EQUAL}) | LISTS
_ORDERED = frozenset(SIGNS.values()) | LISTS

OPERATORS: Mapping[ValueType, frozenset[Operator]] = {
    ValueType.TEXT: _ORDERED | LIKES,
    ValueType.SEMVER: _ORDERED | RANGES,
    ValueType.INTEGER: _ORDERED,
    ValueType.NUMBER: _ORDERED,
    ValueType.TIME: _ORDERED,
    ValueType.FREE: _ORDERED | LIKES,
}
"""Which operators each type of value has; `exists` and `is null` go with all."""

Literal = str | bool | int | float | datetime | semver.SemVer


class Subject(Struct, frozen=True):
    """What is compared: a field (`name` is a key of FIELDS), or a metric, parameter or tag of that name."""

    kind: Kind
    name: str

    def __str__(self) -> str:
        if self.kind is Kind.FIELD:
            return self.name
        return f"{self.kind.value}.{self.name if is_plain_key(self.name) else quoted(self.name, '`')}"

    @property
    def type(self) -> ValueType:
        """How its values compare."""
        return FIELDS[self.name].type if self.kind is Kind.FIELD else _KIND_TYPES[self.kind]

    @property
    def many(self) -> bool:
        """Whether it can have several values."""
        return self.kind is Kind.FIELD and FIELDS[self.name].many


class Comparison(Struct, frozen=True):
    """`subject operator value`; the value has its final type.

    By the subject's type: TEXT str, SEMVER SemVer, INTEGER int (float where the literal has a fraction or
    does not fit 64 bits), NUMBER float, TIME aware datetime in UTC, FREE str, float or bool. `in` has a tuple
    of these, never empty, and for FREE of one type; `in range` a semver.Range; the likes a pattern in SQL's
    form with backslash as the escape: `%` any text, `_` any character, `\\%`, `\\_` and `\\\\` themselves.
    """

    subject: Subject
    operator: Operator
    value: Literal | tuple[Literal, ...] | semver.Range


class Exists(Struct, frozen=True):
    """The subject has a value; `is null` is `Not(Exists(subject))`."""

    subject: Subject


class Not(Struct, frozen=True):
    """True where the part is false."""

    part: "Expression"


class And(Struct, frozen=True):
    """All of two or more parts; no part of a parsed `And` is itself an `And`."""

    parts: tuple["Expression", ...]


class Or(Struct, frozen=True):
    """At least one of two or more parts; no part of a parsed `Or` is itself an `Or`."""

    parts: tuple["Expression", ...]


Expression = And | Or | Not | Exists | Comparison


class Order(Struct, frozen=True):
    """One term of an order. What has no value comes last, whichever the direction."""

    subject: Subject
    descending: bool = False


def unparse(expression: Expression) -> str:
    """The filter in its normal form; `parse` gives the same tree back, for every tree that `parse` made.

    The normal form can be longer than what was parsed (`tag.a=1` becomes `tags.a = 1.0`), and so, near the
    limit, too long for `parse`.
    """
    match expression:
        case And(parts):
            return " and ".join(_enclosed(part, And, Or) for part in parts)
        case Or(parts):
            return " or ".join(_enclosed(part, Or) for part in parts)
        case Not(Exists(subject)):
            return f"{subject} is null"
        case Not(part):
            return f"not {_enclosed(part, And, Or)}"
        case Exists(subject):
            return f"{subject} exists"
        case Comparison(subject, operator, value):
            return f"{subject} {operator.value} {_written(operator, value)}"
        case _:
            assert_never(expression)


def unparse_order(order: Iterable[Order]) -> str:
    """The order in its normal form; `parse_order` of it gives the same terms back."""
    return ", ".join(f"{term.subject} desc" if term.descending else str(term.subject) for term in order)


def _enclosed(part: Expression, *kinds: type) -> str:
    return f"({unparse(part)})" if isinstance(part, kinds) else unparse(part)


def _written(operator: Operator, value: Literal | tuple[Literal, ...] | semver.Range) -> str:
    match value:
        case tuple():
            return f"({', '.join(_written(Operator.EQUAL, item) for item in value)})"
        case bool():
            return "true" if value else "false"
        case str():
            return quoted(value, '"', pattern=operator in LIKES)
        case int() | float():
            return repr(value)
        case datetime():
            moment = value.isoformat().replace("+00:00", "Z")
            return f'"{moment.removesuffix("T00:00:00Z")}"'
        case semver.SemVer() | semver.Range():
            return f'"{value}"'
        case _:
            assert_never(value)


def is_key_character(char: str) -> bool:
    """Whether it can be part of a key without quotes."""
    return char.isalnum() or char in "_-./:@"


def is_plain_key(key: str) -> bool:
    """Whether the key can be written without quotes."""
    return bool(key) and all(map(is_key_character, key))


def quoted(text: str, quote: str, *, pattern: bool = False) -> str:
    """The text as a string; a pattern's own backslashes already are as they are written."""
    if not pattern:
        text = text.replace("\\", "\\\\")
    for plain, escaped in ((quote, f"\\{quote}"), ("\n", "\\n"), ("\t", "\\t")):
        text = text.replace(plain, escaped)
    return f"{quote}{text}{quote}"
