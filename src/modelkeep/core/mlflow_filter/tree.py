"""What an MLflow filter and an order are once they are read: clauses that all have to hold, and terms.

MLflow has one grammar with a vocabulary for each kind of thing that is searched; the vocabularies stand here,
as tables. How text becomes clauses is `parser`'s business, and what they mean in SQL the store's.

What they mean, as MLflow's own server has it, for everybody who evaluates them:

- A clause about a metric, param, tag or dataset holds when there is such a value and it passes, `!=` and
  `NOT IN` included; only `IS NULL` holds where there is none. Of several datasets one that passes is enough.
- NaN passes `!=` and nothing else.
- `LIKE` knows letter case and `ILIKE` does not, for A to Z; `%` is any text, `_` any character, nothing is
  escaped.
- In an order a NaN comes after the numbers, and what has no value after that, whichever the direction.
"""

from collections.abc import Mapping
from enum import StrEnum

from msgspec import Struct

FILTER_MAX_BYTES = 4 * 1024
"""A filter, or one term of an order: some screens of text."""
CLAUSES_MAX = 100
"""Clauses of one filter: each may cost the store a look into another table."""
LIST_MAX = 200
"""Values of one list: more than fit into a filter of names."""
PATTERN_MAX = 256
"""Characters of a pattern: its cost is this times the length of the text."""
ORDER_MAX = 8
"""Terms of an order: each may cost the store a join."""


class Noun(StrEnum):
    """What is searched."""

    EXPERIMENTS = "experiments"
    RUNS = "runs"
    LOGGED_MODELS = "logged models"
    VERSIONS = "model versions"
    MODELS = "registered models"


class Kind(StrEnum):
    """Where the value of a clause lives; its value is the word before the dot in messages."""

    ATTRIBUTE = "attributes"
    METRIC = "metrics"
    PARAM = "params"
    TAG = "tags"
    DATASET = "datasets"


class Operator(StrEnum):
    """A comparison, as MLflow writes it."""

    EQUAL = "="
    NOT_EQUAL = "!="
    BELOW = "<"
    AT_MOST = "<="
    ABOVE = ">"
    AT_LEAST = ">="
    LIKE = "LIKE"
    ILIKE = "ILIKE"
    IN = "IN"
    NOT_IN = "NOT IN"
    IS_NULL = "IS NULL"
    IS_NOT_NULL = "IS NOT NULL"


SAME = frozenset({Operator.EQUAL, Operator.NOT_EQUAL})
ORDERED = SAME | {Operator.BELOW, Operator.AT_MOST, Operator.ABOVE, Operator.AT_LEAST}
LIKES = frozenset({Operator.LIKE, Operator.ILIKE})
LISTS = frozenset({Operator.IN, Operator.NOT_IN})
NULLS = frozenset({Operator.IS_NULL, Operator.IS_NOT_NULL})
_TEXT = SAME | LIKES


class ValueType(StrEnum):
    """What a clause is compared with."""

    TEXT = "text"
    NUMBER = "number"
    """A double, which may be infinite."""
    WHOLE = "whole number"
    """An integer column; compared with a whole number of 64 bits, or with a fraction."""


class Attribute(Struct, frozen=True):
    """A field of a thing. `name` is its name in here, whatever it was called in the filter; `whole_only`: no
    fraction is compared with it; `digits`: its text is a number; `quoted`: its number may stand in quotes."""

    name: str
    type: ValueType = ValueType.TEXT
    operators: frozenset[Operator] = _TEXT
    choices: tuple[str, ...] = ()
    whole_only: bool = False
    digits: bool = False
    quoted: bool = False


class Vocabulary(Struct, frozen=True):
    """What the words of a filter mean for one kind of thing.

    Attributes:
        prefixes: words before a dot.
        attributes: words that are fields, in a filter.
        keyed: which operators go with each keyed kind there is.
        ordered: words that are fields in an order.
        order_prefixes: words before a dot in an order.
        order_kinds: keyed kinds that things can be ordered by.
        repeats: whether an order may name the same twice.
        loose: text needs no quotes (`params.lr = 0.1`), as for logged models.
    """

    prefixes: Mapping[str, Kind]
    attributes: Mapping[str, Attribute]
    keyed: Mapping[Kind, frozenset[Operator]]
    ordered: Mapping[str, str]
    order_prefixes: Mapping[str, Kind]
    order_kinds: frozenset[Kind] = frozenset()
    repeats: bool = False
    loose: bool = False


def _words(kind: Kind, *words: str) -> dict[str, Kind]:
    return dict.fromkeys(words, kind)


_LISTED = _TEXT | LISTS
_START = Attribute("start_time", ValueType.WHOLE, ORDERED)
_RUN_NAME = Attribute("run_name")
_RUN_PREFIXES = (
    _words(Kind.ATTRIBUTE, "attributes", "attribute", "attr", "run")
    | _words(Kind.METRIC, "metrics", "metric")
    | _words(Kind.PARAM, "params", "param", "parameters", "parameter")
    | _words(Kind.TAG, "tags", "tag")
    | _words(Kind.DATASET, "datasets", "dataset")
)
_RUNS = Vocabulary(
    prefixes=_RUN_PREFIXES,
    attributes={
        "run_id": Attribute("run_id", operators=_LISTED),
        "run_name": _RUN_NAME,
        "run name": _RUN_NAME,
        "Run name": _RUN_NAME,
        "Run Name": _RUN_NAME,
        "user_id": Attribute("user_id"),
        "status": Attribute("status"),
        "artifact_uri": Attribute("artifact_uri"),
        "start_time": _START,
        "created": _START,
        "Created": _START,
        "end_time": Attribute("end_time", ValueType.WHOLE, ORDERED),
    },
    keyed={
        Kind.METRIC: ORDERED,
        Kind.PARAM: _TEXT | NULLS,
        Kind.TAG: _TEXT | NULLS,
        Kind.DATASET: _LISTED,
    },
    ordered={
        name: name
        for name in ("run_id", "run_name", "user_id", "status", "artifact_uri", "start_time", "end_time")
    }
    | {"created": "start_time", "Created": "start_time"},
    order_prefixes=_RUN_PREFIXES,
    order_kinds=frozenset({Kind.METRIC, Kind.PARAM, Kind.TAG}),
)

_EXPERIMENT_PREFIXES = _words(Kind.ATTRIBUTE, "attributes", "attribute") | _words(Kind.TAG, "tags", "tag")
_EXPERIMENTS = Vocabulary(
    prefixes=_EXPERIMENT_PREFIXES,
    attributes={
        "name": Attribute("name"),
        "experiment_id": Attribute("experiment_id", operators=SAME | LISTS, digits=True),
        "creation_time": Attribute("creation_time", ValueType.WHOLE, ORDERED, whole_only=True),
        "last_update_time": Attribute("last_update_time", ValueType.WHOLE, ORDERED, whole_only=True),
    },
    keyed={Kind.TAG: _TEXT | NULLS},
    ordered={name: name for name in ("name", "experiment_id", "creation_time", "last_update_time")},
    order_prefixes=_EXPERIMENT_PREFIXES,
    repeats=True,
)

_CREATED = Attribute("creation_timestamp_ms", ValueType.WHOLE, ORDERED)
_UPDATED = Attribute("last_updated_timestamp_ms", ValueType.WHOLE, ORDERED)
_LOGGED_MODEL_TIMES = {
    "creation_time": _CREATED,
    "creation_timestamp": _CREATED,
    "creation_timestamp_ms": _CREATED,
    "last_updated_timestamp": _UPDATED,
    "last_updated_timestamp_ms": _UPDATED,
}
_LOGGED_MODEL_TEXTS = (
    "name",
    "model_id",
    "model_type",
    "source_run_id",
    "status_message",
    "experiment_id",
    "artifact_location",
    "lifecycle_stage",
)
_LOGGED_MODELS = Vocabulary(
    prefixes=_words(Kind.ATTRIBUTE, "attributes")
    | _words(Kind.METRIC, "metrics")
    | _words(Kind.PARAM, "params")
    | _words(Kind.TAG, "tags"),
    attributes={
        **{name: Attribute(name, operators=_LISTED) for name in _LOGGED_MODEL_TEXTS},
        "status": Attribute(
            "status", operators=SAME | LISTS, choices=("UNSPECIFIED", "PENDING", "READY", "FAILED")
        ),
        **_LOGGED_MODEL_TIMES,
    },
    keyed={Kind.METRIC: ORDERED, Kind.PARAM: _LISTED, Kind.TAG: _LISTED},
    ordered={name: name for name in (*_LOGGED_MODEL_TEXTS, "status")}
    | {word: attribute.name for word, attribute in _LOGGED_MODEL_TIMES.items()},
    order_prefixes=_words(Kind.METRIC, "metrics"),
    order_kinds=frozenset({Kind.METRIC}),
    repeats=True,
    loose=True,
)

_REGISTRY_PREFIXES = _words(Kind.ATTRIBUTE, "attribute") | _words(Kind.TAG, "tags", "tag")
_VERSIONS = Vocabulary(
    prefixes=_REGISTRY_PREFIXES,
    attributes={
        "name": Attribute("name", operators=_LISTED),
        "run_id": Attribute("run_id", operators=_LISTED),
        "source_path": Attribute("source_path"),
        "version_number": Attribute("version_number", ValueType.WHOLE, ORDERED, whole_only=True, quoted=True),
    },
    keyed={Kind.TAG: _TEXT},
    ordered={
        name: name for name in ("name", "version_number", "creation_timestamp", "last_updated_timestamp")
    },
    order_prefixes=_words(Kind.ATTRIBUTE, "attributes", "attribute"),
)
_MODELS = Vocabulary(
    prefixes=_REGISTRY_PREFIXES,
    attributes={"name": Attribute("name", operators=_LISTED)},
    keyed={Kind.TAG: _TEXT},
    ordered={
        "name": "name",
        "timestamp": "last_updated_timestamp",
        "last_updated_timestamp": "last_updated_timestamp",
    },
    order_prefixes={},
)

VOCABULARIES: Mapping[Noun, Vocabulary] = {
    Noun.EXPERIMENTS: _EXPERIMENTS,
    Noun.RUNS: _RUNS,
    Noun.LOGGED_MODELS: _LOGGED_MODELS,
    Noun.VERSIONS: _VERSIONS,
    Noun.MODELS: _MODELS,
}
"""What each kind of thing is searched by."""

KEYED_TYPES: Mapping[Kind, ValueType] = {
    Kind.METRIC: ValueType.NUMBER,
    Kind.PARAM: ValueType.TEXT,
    Kind.TAG: ValueType.TEXT,
    Kind.DATASET: ValueType.TEXT,
}
"""What is compared with a keyed value."""
DATASET_KEYS = ("name", "digest", "context")
"""What is known of a dataset in a search."""

Value = str | int | float | tuple[str, ...] | None


class Clause(Struct, frozen=True):
    """`kind.key operator value`; the value already is of its type: a double for metrics, a whole number or a
    fraction for times and numbers, a tuple for lists, None for `IS NULL`, and else text."""

    kind: Kind
    key: str
    operator: Operator
    value: Value = None


Filter = tuple[Clause, ...]
"""Clauses that all hold; none is no condition."""


class Order(Struct, frozen=True):
    """One term of an order. The dataset is for the metrics of logged models: only points measured on it."""

    kind: Kind
    key: str
    descending: bool = False
    dataset_name: str | None = None
    dataset_digest: str | None = None


class OrderField(Struct, frozen=True, kw_only=True):
    """One term of an order of logged models as the client sends it, in parts."""

    field_name: str = ""
    ascending: bool = True
    dataset_name: str | None = None
    dataset_digest: str | None = None


class DatasetFilter(Struct, frozen=True):
    """Points measured on this data; any digest where there is none."""

    dataset_name: str
    dataset_digest: str | None = None
