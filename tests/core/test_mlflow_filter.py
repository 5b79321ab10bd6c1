"""MLflow's filters and orders: what is accepted, what it becomes, and how a refusal helps.

The table `golden/mlflow_filters.jsonl` is what MLflow 3.18.0's own server answered to each filter and order,
one by one; where ours answers otherwise, the line says so in `ours`, and the test below says why.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelkeep.core import errors
from modelkeep.core import mlflow_filter as mlflow
from modelkeep.core.mlflow_filter import Clause, Kind, Noun, Operator, Order, OrderField

GOLDEN = Path(__file__).parent.parent / "golden" / "mlflow_filters.jsonl"
ROWS = [json.loads(line) for line in GOLDEN.read_text(encoding="utf-8").splitlines()]


def read(row: dict[str, object]) -> object:
    """Parse what a line of the table has."""
    noun = Noun(str(row["noun"]))
    if isinstance(row.get("filter"), str):
        return mlflow.parse(str(row["filter"]), noun)
    order = row["order"]
    assert isinstance(order, list)
    if noun is Noun.LOGGED_MODELS:
        return [field(**term) for term in order]
    return mlflow.parse_order(order, noun)


def field(**parts: Any) -> Order:
    """A term of logged models, as the client sends it."""
    return mlflow.parse_fields([OrderField(**parts)])[0]


@pytest.mark.req("T1")
def test_answers_as_the_real_server_did() -> None:
    """Every filter and order that MLflow's server was asked is accepted or refused as there, unless the table
    says otherwise."""
    assert len(ROWS) > 700
    for row in ROWS:
        expected = row.get("ours", row["mlflow"])
        try:
            read(row)
            answer = "accepted"
        except errors.Invalid:
            answer = "refused"
        assert answer == expected, row


@pytest.mark.req("T1")
def test_refuses_only_what_is_an_accident_there() -> None:
    """What MLflow takes and we refuse is a list of accidents: Python literals, columns of its code, NaN."""
    ours = [row.get("filter", row.get("order")) for row in ROWS if row.get("ours") == "refused"]
    assert ours == [
        "metrics. a > 1",  # the key would begin with a space
        "run_id IN ('x' 'y')",  # would be one id, xy
        "run_id IN ('it''s')",  # would be its
        "run_id IN (('x'))",
        "run_id IN ('a\\x41')",  # escapes of Python
        "run_id IN (r'a\\n')",
        "run_id IN ('a''')",
        "run_id IN ('''a''')",
        "metadata = 'x'",  # attributes of a class
        "to_mlflow_entity = 'x'",
        "metrics.a > nan",  # holds for nothing
        "params.a = (1)",
        "params. a = 'x'",
        "name = `x`",
        ["metrics."],
        ["tags.name"],  # would be the name
    ]


@pytest.mark.req("T1")
@pytest.mark.parametrize(
    ("text", "clauses"),
    [
        ("metrics.auc>-1e3", [Clause(Kind.METRIC, "auc", Operator.ABOVE, -1000.0)]),
        ("metric.`a b` <= 5.", [Clause(Kind.METRIC, "a b", Operator.AT_MOST, 5.0)]),
        ("metrics.a > 1e999", [Clause(Kind.METRIC, "a", Operator.ABOVE, float("inf"))]),
        ("params.lr = '0.1'", [Clause(Kind.PARAM, "lr", Operator.EQUAL, "0.1")]),
        ('parameter."a b" != "it\'s"', [Clause(Kind.PARAM, "a b", Operator.NOT_EQUAL, "it's")]),
        (
            "tags.mlflow.source.name = 'it''s'",
            [Clause(Kind.TAG, "mlflow.source.name", Operator.EQUAL, "it''s")],
        ),
        ("tags.a = 'it\\'s'", [Clause(Kind.TAG, "a", Operator.EQUAL, "it\\'s")]),
        ("tags.a = 'a\\\\'", [Clause(Kind.TAG, "a", Operator.EQUAL, "a\\\\")]),
        ("tags.a ilike '%\\_x'", [Clause(Kind.TAG, "a", Operator.ILIKE, "%\\_x")]),
        ("tag.a is  not null", [Clause(Kind.TAG, "a", Operator.IS_NOT_NULL)]),
        ("run_id not in ('a', \"b\",)", [Clause(Kind.ATTRIBUTE, "run_id", Operator.NOT_IN, ("a", "b"))]),
        ("run_id IN ('it\\'s')", [Clause(Kind.ATTRIBUTE, "run_id", Operator.IN, ("it's",))]),
        ("attr.`Run name` = 'x'", [Clause(Kind.ATTRIBUTE, "run_name", Operator.EQUAL, "x")]),
        ("Created > 1.5", [Clause(Kind.ATTRIBUTE, "start_time", Operator.ABOVE, 1.5)]),
        ("dataset.context IN ('train')", [Clause(Kind.DATASET, "context", Operator.IN, ("train",))]),
        ("and tags.a='x'\tand and", [Clause(Kind.TAG, "a", Operator.EQUAL, "x")]),
        ("", []),
    ],
)
def test_runs_by_clauses(text: str, clauses: list[Clause]) -> None:
    """A filter of runs becomes clauses with resolved fields and typed values."""
    assert list(mlflow.parse(text, Noun.RUNS)) == clauses


@pytest.mark.req("T1")
def test_two_clauses_need_no_and() -> None:
    """As on MLflow's server, conditions that stand side by side all have to hold."""
    text = "metrics.a > 1 params.b = 'x'"
    assert mlflow.parse(text, Noun.RUNS) == mlflow.parse(text.replace(" params", " AND params"), Noun.RUNS)


@pytest.mark.req("T1")
@pytest.mark.parametrize(
    ("noun", "text", "clause"),
    [
        (Noun.LOGGED_MODELS, "params.lr = 0.10", Clause(Kind.PARAM, "lr", Operator.EQUAL, "0.10")),
        (Noun.LOGGED_MODELS, 'name = "x"', Clause(Kind.ATTRIBUTE, "name", Operator.EQUAL, "x")),
        (
            Noun.LOGGED_MODELS,
            "creation_time > 7",
            Clause(Kind.ATTRIBUTE, "creation_timestamp_ms", Operator.ABOVE, 7),
        ),
        (
            Noun.LOGGED_MODELS,
            "status IN ('READY')",
            Clause(Kind.ATTRIBUTE, "status", Operator.IN, ("READY",)),
        ),
        (
            Noun.VERSIONS,
            "version_number >= '2'",
            Clause(Kind.ATTRIBUTE, "version_number", Operator.AT_LEAST, 2),
        ),
        (Noun.VERSIONS, "source_path = 's'", Clause(Kind.ATTRIBUTE, "source_path", Operator.EQUAL, "s")),
        (Noun.MODELS, "tag.a LIKE 'x'", Clause(Kind.TAG, "a", Operator.LIKE, "x")),
        (
            Noun.EXPERIMENTS,
            "experiment_id = '7'",
            Clause(Kind.ATTRIBUTE, "experiment_id", Operator.EQUAL, "7"),
        ),
    ],
)
def test_each_noun_has_its_own_words(noun: Noun, text: str, clause: Clause) -> None:
    """Experiments, logged models and the registry have vocabularies of their own."""
    assert mlflow.parse(text, noun) == (clause,)


@pytest.mark.req("T1")
@pytest.mark.parametrize(
    ("noun", "text", "order"),
    [
        (Noun.RUNS, "metrics.`a b` Desc", Order(Kind.METRIC, "a b", True)),
        (Noun.RUNS, '"metrics.auc" desc', Order(Kind.METRIC, "auc", True)),
        (Noun.RUNS, "created", Order(Kind.ATTRIBUTE, "start_time")),
        (Noun.RUNS, "attribute.run_name ASC", Order(Kind.ATTRIBUTE, "run_name")),
        (Noun.RUNS, "params.desc desc", Order(Kind.PARAM, "desc", True)),
        (Noun.EXPERIMENTS, "last_update_time DESC", Order(Kind.ATTRIBUTE, "last_update_time", True)),
        (Noun.MODELS, "timestamp DESC", Order(Kind.ATTRIBUTE, "last_updated_timestamp", True)),
        (Noun.VERSIONS, "attribute.version_number", Order(Kind.ATTRIBUTE, "version_number")),
    ],
)
def test_reads_orders(noun: Noun, text: str, order: Order) -> None:
    """A term of an order is a field or a key, with its direction."""
    assert mlflow.parse_order([text], noun) == (order,)


@pytest.mark.req("T1")
def test_orders_logged_models_by_metrics_on_data() -> None:
    """A metric of logged models can be asked on one dataset; its key is taken as it is."""
    assert field(field_name="metrics.a b", ascending=False, dataset_name="d", dataset_digest="1") == Order(
        Kind.METRIC, "a b", True, "d", "1"
    )
    assert field(field_name="creation_time") == Order(Kind.ATTRIBUTE, "creation_timestamp_ms")


REFUSALS = [
    (
        Noun.RUNS,
        "metrics.acc > 0.9 or metrics.f1 > 0.9",
        18,
        "MLflow's filters have no OR; join conditions by AND.",
    ),
    (Noun.RUNS, "metrics.a == 1", 10, "'==' is no comparison here; write =."),
    (
        Noun.RUNS,
        "metrics.a-b > 1",
        9,
        "'-' cannot stand in a key without quotes; put the whole key in backticks.",
    ),
    (Noun.RUNS, "params.a = 1", 11, "params.a is compared with text in quotes, such as 'x'."),
    (Noun.RUNS, "metrics.a = '1'", 12, "metrics.a is compared with a number, such as 0.5 or -2."),
    (
        Noun.RUNS,
        "param.a > '1'",
        8,
        "params.a cannot be compared with >; use =, !=, LIKE, ILIKE, IS NULL, IS NOT NULL.",
    ),
    (Noun.RUNS, "name = 'x'", 0, "Runs have no field 'name'; did you mean run_name?"),
    (Noun.RUNS, "metirc.a = 1", 0, "'metirc' cannot stand before a dot; did you mean metric?"),
    (Noun.RUNS, "params.a = 'x", 11, "The quote that opens here is never closed; end it with '."),
    (Noun.RUNS, "status = \u201cx\u201d", 9, "'\u201c' means nothing here; use straight quotes, ' or \"."),
    (
        Noun.RUNS,
        "(metrics.a > 1)",
        0,
        "'(' cannot stand here; MLflow's filters have no parentheses; write a field, a sign and a value.",
    ),
    (Noun.RUNS, "run_id IN (x)", 11, "A list is made of text in quotes, such as ('a', 'b')."),
    (Noun.RUNS, "run_id IN ()", 11, "A list is made of text in quotes, such as ('a', 'b')."),
    (
        Noun.RUNS,
        "tags.a = 'x'; drop",
        12,
        "';' means nothing here; a filter is one line of conditions, joined by AND.",
    ),
    (Noun.VERSIONS, "version = 1", 0, "Model versions have no field 'version'; did you mean version_number?"),
    (
        Noun.LOGGED_MODELS,
        "status = 'ready'",
        9,
        "status is never 'ready'; it is UNSPECIFIED or PENDING or READY or FAILED.",
    ),
    (
        Noun.EXPERIMENTS,
        "creation_time > 1.5",
        16,
        "creation_time is compared with a whole number of 64 bits.",
    ),
]


@pytest.mark.req("T1")
@pytest.mark.parametrize(("noun", "text", "position", "message"), REFUSALS)
def test_refusals_name_the_place(noun: Noun, text: str, position: int, message: str) -> None:
    """A refusal says what to write instead, and shows where with a caret."""
    with pytest.raises(errors.InvalidFilter) as caught:
        mlflow.parse(text, noun)
    assert caught.value.message == message
    assert caught.value.details["position"] == position
    assert caught.value.details["caret"].endswith("^")


@pytest.mark.req("T1")
@pytest.mark.parametrize(
    ("refused", "limit"),
    [
        (lambda: mlflow.parse("tags.a = '" + "x" * 4096 + "'", Noun.RUNS), mlflow.FILTER_MAX_BYTES),
        (lambda: mlflow.parse("tags.a='' " * 101, Noun.RUNS), mlflow.CLAUSES_MAX),
        (lambda: mlflow.parse("run_id IN (" + "'x'," * 201 + ")", Noun.RUNS), mlflow.LIST_MAX),
        (lambda: mlflow.parse(f"tags.a LIKE '{'%' * 257}'", Noun.RUNS), mlflow.PATTERN_MAX),
        (lambda: mlflow.parse_order([f"metrics.a{n}" for n in range(9)], Noun.RUNS), mlflow.ORDER_MAX),
    ],
)
def test_limits(refused: Callable[[], object], limit: int) -> None:
    """Each limit is refused with its figure, not met with time or memory."""
    with pytest.raises(errors.LimitExceeded) as caught:
        refused()
    assert caught.value.details["limit"] == limit


@pytest.mark.req("T1")
def test_an_order_names_each_but_once() -> None:
    """Runs cannot be ordered twice by the same, under whichever of its names."""
    with pytest.raises(errors.InvalidFilter, match="start_time twice"):
        mlflow.parse_order(["start_time", "attribute.created DESC"], Noun.RUNS)
    assert len(mlflow.parse_order(["name", "name DESC"], Noun.EXPERIMENTS)) == 2


WORDS = "metrics params. tags.` run_id start_time in ( ) , ' \" ` \\ '' . and or not is null = != < >= like"
PIECES = st.sampled_from([*WORDS.split(), *"-1%_; x#$@\n\0\ud800\u2028\u00e9", "1e", "9" * 30, "--", "/*"])


@pytest.mark.req("T1")
@settings(max_examples=300, deadline=None)
@given(
    noun=st.sampled_from(list(Noun)), text=st.lists(PIECES, max_size=60).map("".join) | st.text(max_size=80)
)
def test_nothing_but_a_refusal(noun: Noun, text: str) -> None:
    """Any text at all is read or refused as invalid, as a filter and as an order, and read again the same."""
    refusals: list[str] = []
    for read_it in (
        lambda: mlflow.parse(text, noun),
        lambda: mlflow.parse_order([text], noun),
        lambda: mlflow.parse_fields([OrderField(field_name=text)]),
    ):
        try:
            found: object = read_it()
        except errors.Invalid as problem:
            refusals.append(problem.message)
            continue
        assert found == read_it()
    assert all(message.endswith((".", "?")) for message in refusals)


EXPLOSIVE = (
    *(
        "'" * 4096,
        "`a" * 2048,
        "tags.a='" + "\\'" * 2000 + "''",
        "metrics." + "a." * 2000,
        "1" * 4096,
        "-" * 4096,
    ),
    *(
        "a " * 2048,
        "run_id in (" + "''," * 1300,
        "x" * 4096,
        "=" * 4096,
        '"' + '""' * 2040,
        "metrics.a " * 400,
    ),
)


@pytest.mark.req("T1")
@pytest.mark.parametrize("text", EXPLOSIVE)
def test_no_text_takes_long(text: str) -> None:
    """Texts that are made to explode are answered in a few milliseconds: the reader never backs up."""
    began = time.process_time()
    with pytest.raises(errors.Invalid):
        mlflow.parse(text, Noun.RUNS)
    assert time.process_time() - began < 0.05
