"""What the metadata schema promises: nothing is lost, nothing of the wrong type gets in, the same document is
always the same text. Examples are golden files; the promises themselves are property tests.
"""

import copy
import os
import re
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from modelkeep.core import catalog, codec, errors, metadata, metadata_schema

pytestmark = pytest.mark.req("V6")

GOLDEN = Path(__file__).parent.parent / "golden"
PAGE = Path(__file__).parents[2] / "docs" / "reference" / "metadata.md"
FULL: dict[str, Any] = codec.parse_yaml((GOLDEN / "metadata_full.yaml").read_text())
SCHEMA = metadata_schema.json_schema()
VALIDATOR = Draft202012Validator(SCHEMA)


def read(text: str) -> metadata.Metadata:
    """A document as a file has it, checked."""
    return metadata.check_metadata(codec.parse_yaml(text))


def accepted(document: object) -> bool:
    """Whether our reader takes the document."""
    try:
        metadata.check_metadata(document)
    except errors.Invalid:
        return False
    return True


def leaves(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The paths of everything in a document that is no mapping and no list."""
    if not isinstance(value, dict | list):
        yield path
        return
    for key, item in value.items() if isinstance(value, dict) else enumerate(value):
        yield from leaves(item, (*path, key))


def put(document: Any, path: tuple[str | int, ...], value: object) -> Any:
    """A copy of the document with another value at the path."""
    copied = copy.deepcopy(document)
    place = copied
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return copied


# ---- reading, writing


def test_a_full_document_is_written_as_it_was_read() -> None:
    """Every field of the schema, in the schema's order, is a fixed point of reading and writing."""
    text = (GOLDEN / "metadata_full.yaml").read_text()

    assert metadata.write_metadata(read(text)) == text


def test_the_full_document_uses_every_field_of_the_schema() -> None:
    """A new field has to be added to the golden document, so that its round trip is tested too."""
    keys = {key for path in leaves(FULL) for key in path}
    known = {name for shape in SCHEMA["$defs"].values() for name in shape.get("properties", {})}

    assert known - keys == {"required", "nullable", "shape", "positional"}


def test_a_document_written_by_hand_gets_its_normal_form(golden: Callable[[str, str], None]) -> None:
    """Short forms are spelled out, dates become text, and unknown fields follow the known ones."""
    by_hand = read((GOLDEN / "metadata_by_hand.yaml").read_text())

    golden("metadata_by_hand_written.yaml", metadata.write_metadata(by_hand))


def test_unknown_fields_are_kept_at_every_level() -> None:
    """What nobody foresaw comes back unchanged: in the document, in a section, in a list entry."""
    extra = {
        "mine": [1, {"deep": None}],
        "training": {"mine": "a"},
        "data": {"datasets": [{"name": "d", "mine": 1.5}]},
    }

    document = read(metadata.write_metadata(extra)).document

    assert document == {"schema": metadata_schema.SCHEMA, **extra}


def test_an_empty_document_is_valid_and_names_its_schema() -> None:
    """No field is required by the schema itself; stages ask for fields."""
    assert read("").document == {"schema": "modelkeep.metadata/v1"}


def test_dates_become_iso_text() -> None:
    """YAML's own dates and times are kept as the text that JSON can carry."""
    read = metadata.check_metadata(
        {
            "training": {"date": date(2026, 1, 25)},
            "at": datetime(2026, 1, 25, 14, 3, tzinfo=UTC),
            "o": date(1, 2, 3),
        }
    )

    assert read.view.training is not None
    assert read.view.training.date == "2026-01-25"
    assert (read.document["at"], read.document["o"]) == ("2026-01-25T14:03:00Z", "0001-02-03")


def test_the_argument_is_not_changed() -> None:
    """Checking makes a copy: the caller's dictionary stays as it was."""
    given_document = {"performance": {"metrics": {"auc": 0.9}}, "when": date(2026, 1, 25)}

    metadata.check_metadata(given_document)

    assert given_document == {"performance": {"metrics": {"auc": 0.9}}, "when": date(2026, 1, 25)}


def test_metrics_may_be_written_short() -> None:
    """A number by name, or names by split, are the same as the list of entries."""
    short = {"performance": {"metrics": {"rmse": 3, "test": {"auc": 0.5}}}}

    assert metadata.metrics_of(short) == (
        catalog.Metric(name="auc", value=0.5, split="test"),
        catalog.Metric(name="rmse", value=3.0),
    )


def test_metrics_come_in_the_shape_of_the_catalog() -> None:
    """Unit, split, slice, direction and interval arrive, in the order of the keys."""
    metrics = metadata.metrics_of(FULL)

    assert [metric.key for metric in metrics] == [
        ("auc", "validation", ""),
        ("auc", "validation", "plan=pro"),
        ("training_time", "", ""),
    ]
    assert (metrics[0].interval_low, metrics[0].interval_high) == (0.86, 0.882)
    assert metrics[0].direction is catalog.Direction.HIGHER
    assert metrics[2].unit == "s"


def test_the_signature_is_ours() -> None:
    """The signature of a document is the signature of the version, and a document may have none."""
    signature = metadata.check_metadata(FULL).view.signature

    assert signature is not None
    assert [field.name for field in signature.inputs] == ["age", "plan"]
    assert metadata.check_metadata({}).view.signature is None


def test_the_order_of_fields_in_a_short_signature_is_kept() -> None:
    """Rows may be sent as lists, so sorting a signature's fields would change what it means."""
    text = metadata.write_metadata({"signature": {"inputs": {"zeta": "int64", "alpha": "string"}}})

    signature = read(text).view.signature

    assert signature is not None
    assert [field.name for field in signature.inputs] == ["zeta", "alpha"]


# ---- what is wrong

WRONG = {
    "performance: {latency: {p95_ms: fast}}": ("performance.latency.p95_ms", "expected a number, got text"),
    "training: {data: {samples: {train: 1, val: few}}}": ("training.data.samples.val", "a whole number"),
    "training: []": ("training", "expected a mapping, got a list"),
    "training: {date: soon}": ("training.date", "write a date like 2026-01-25"),
    "training: {date: '2026-02-30'}": ("training.date", "no such day"),
    "training: {duration_s: -1}": ("training.duration_s", ">= 0"),
    "training: {cost: {currency: euro}}": ("training.cost.currency", "three capital letters"),
    "performance: {metrics: {validation: {f1: high}}}": (
        "performance.metrics.validation.f1",
        "expected a number",
    ),
    "performance: {metrics: [{name: f1}]}": ("performance.metrics[0]", "missing required field value"),
    "performance: {metrics: [{name: f1, value: 1, interval: {low: 2, high: 1}}]}": (
        "performance.metrics[0].interval",
        "low end is above",
    ),
    "performance: {metrics: [{name: f1, value: 1, direction: up}]}": (
        "performance.metrics[0].direction",
        "write higher, lower",
    ),
    "performance: {metrics: [{name: f1, value: .nan}]}": (
        "performance.metrics[0].value",
        "not a finite number",
    ),
    "performance: {throughput_per_s: {many: 1}}": ("performance.throughput_per_s.many", "batch size"),
    "performance: {confusion: [{labels: [0, 1], counts: [[1, 2]]}]}": (
        "performance.confusion[0].counts",
        "2 labels need 2 rows",
    ),
    "environment: {python: 3.11}": ("environment.python", "in quotes"),
    "code: {commit: 1234567}": ("code.commit", "in quotes"),
    "business: {tags: {a.b: x, team: 3}}": ("business.tags.team", "put it in quotes"),
    "deployment: {resources: {limits: {cpu: [1]}}}": ("deployment.resources.limits.cpu", "a number or text"),
    "deployment: {probes: {liveness: {port: 0}}}": ("deployment.probes.liveness.port", ">= 1"),
    "compliance: {approval_status: maybe}": (
        "compliance.approval_status",
        "write pending, approved, rejected",
    ),
    "data: {datasets: [{name: a, digest: abc}]}": ("data.datasets[0].digest", "'sha256:'"),
    "schema: modelkeep.metadata/v9": ("schema", "this release reads"),
    "mine: {deep: [1, .inf]}": ("mine.deep[1]", "not a finite number"),
    "mine: 99999999999999999999": ("mine", "64 bits"),
    "mine: !!binary aGk=": ("mine", "bytes"),
    'mine: "\\e[2J"': ("mine", "control characters"),
    "[1, 2]": ("", "must be a mapping"),
}


@pytest.mark.parametrize("text", WRONG)
def test_what_is_wrong_is_named_by_its_path(text: str) -> None:
    """An error says where, what is expected there, and is one sentence."""
    path, expected = WRONG[text]

    with pytest.raises(errors.InvalidMetadata) as caught:
        read(text)

    assert caught.value.details["field"] == path
    assert caught.value.message.startswith(path or "The document")
    assert expected in caught.value.message
    assert "`" not in caught.value.message
    assert caught.value.message.endswith(".")


def test_a_key_that_is_not_text_is_refused() -> None:
    """JSON has no such keys, and the number 1 and the text "1" would become one."""
    with pytest.raises(errors.InvalidMetadata, match="mine has the key 1, which is not text"):
        metadata.check_metadata({"mine": {1: "a", "1": "b"}})


def test_a_metric_twice_is_refused() -> None:
    """One name, split and slice has one value."""
    with pytest.raises(errors.InvalidMetric, match="stands twice"):
        read("performance: {metrics: [{name: a, value: 1}, {name: a, value: 2}]}")


def test_a_signature_that_contradicts_itself_is_refused() -> None:
    """The signature is closed and checked by its own rules."""
    with pytest.raises(errors.InvalidSignature, match="age"):
        read("signature: {inputs: {age: {type: int64, minimum: 5, maximum: 1}}}")


def test_long_texts_repeated_by_aliases_are_refused() -> None:
    """A small YAML text cannot become gigabytes when it is written again."""
    text = f"long: &a {'x' * 9_000}\nmany: [{', '.join(['*a'] * 1_000)}]"

    with pytest.raises(errors.LimitExceeded, match="characters"):
        read(text)


def test_nesting_is_bounded() -> None:
    """A document from the wire is as flat as one from a file."""
    deep: dict[str, Any] = {}
    for _ in range(codec.JSON_MAX_DEPTH + 2):
        deep = {"a": deep}

    with pytest.raises(errors.LimitExceeded, match="nested"):
        metadata.check_metadata(deep)


def test_the_wrong_value_in_a_large_mapping_is_found_quickly() -> None:
    """The decoder does not name the key; finding it takes a few trials, not one for each key."""
    samples: dict[str, object] = {f"split{n}": n for n in range(20_000)}
    samples["split777"] = "x"

    with pytest.raises(errors.InvalidMetadata) as caught:
        metadata.check_metadata({"training": {"data": {"samples": samples}}})

    assert caught.value.details["field"] == "training.data.samples.split777"


# ---- required by stage


def test_a_stage_names_what_is_missing() -> None:
    """Absent, null and empty all count as missing; a list's entry is found by its name."""
    document = {
        "business": {"owner": "", "backup_owner": None},
        "performance": {"metrics": {"auc": 0.9}},
        "mine": {},
    }
    asked = (
        "business.owner",
        "business.backup_owner",
        "performance.metrics",
        "performance.metrics.auc",
        "performance.metrics.f1",
        "performance.metrics[0].value",
        "mine",
        "schema.deeper",
    )

    assert metadata.missing(document, asked) == (
        "business.owner",
        "business.backup_owner",
        "performance.metrics.f1",
        "mine",
        "schema.deeper",
    )


# ---- properties

texts = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=12).filter(
    lambda text: not metadata.values._CONTROL.search(text)
)
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63) + 1, 2**63 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    texts,
)
plain = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
KNOWN = {name for shape in [SCHEMA, *SCHEMA["$defs"].values()] for name in shape.get("properties", {})}
extras = st.dictionaries(texts.filter(lambda text: text not in KNOWN), plain, max_size=4)


@given(extras, extras, extras, extras)
def test_arbitrary_extra_fields_survive_the_round_trip(
    root: dict[str, Any], section: dict[str, Any], entry: dict[str, Any], parameters: dict[str, Any]
) -> None:
    """Reading what was written gives the document back, whatever was added to it and wherever."""
    document = {
        **FULL,
        **root,
        "training": {**FULL["training"], **section},
        "data": {"datasets": [{**FULL["data"]["datasets"][0], **entry}]},
        "model": {"hyperparameters": parameters},
    }

    assert read(metadata.write_metadata(document)).document == document


@given(extras, st.randoms(use_true_random=False))
def test_equal_documents_are_written_as_the_same_text(extra: dict[str, Any], chance: Any) -> None:
    """The order in which a document was put together does not show in its text."""

    def shuffled(value: Any) -> Any:
        if isinstance(value, list):
            return [shuffled(item) for item in value]
        if not isinstance(value, dict):
            return value
        keys = list(value)
        chance.shuffle(keys)
        return {key: shuffled(value[key]) for key in keys}

    document = {**FULL, **extra}

    assert metadata.write_metadata(shuffled(document)) == metadata.write_metadata(document)


# ---- JSON Schema


def test_the_json_schema_is_a_json_schema() -> None:
    """The schema is valid by its own meta-schema, and takes what our reader takes."""
    Draft202012Validator.check_schema(SCHEMA)

    assert SCHEMA["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert VALIDATOR.is_valid(FULL)
    assert VALIDATOR.is_valid({})


def test_the_json_schema_takes_the_short_forms() -> None:
    """An editor that checks while a person types knows metrics and signatures written short."""
    by_hand = {
        "performance": {"metrics": {"accuracy": 0.9, "test": {"auc": 0.8}}},
        "signature": {"inputs": {"age": "int64", "plan": {"type": "string", "categories": ["a"]}}},
    }

    assert VALIDATOR.is_valid(by_hand)
    assert accepted(by_hand)


BEYOND_TYPES = re.compile("twice|such day|labels need|batch size|low end|signature|field")
"""What a JSON Schema cannot say, by the words of our refusals."""


def check_agreement(document: object) -> None:
    """Fail unless JSON Schema and reader judge the document alike, but for what only the reader sees."""
    refusal = ""
    try:
        metadata.check_metadata(document)
    except errors.Invalid as problem:
        refusal = problem.message
    expected = not refusal or bool(BEYOND_TYPES.search(refusal) and VALIDATOR.is_valid(document))

    assert VALIDATOR.is_valid(document) == expected, (refusal, document)


@pytest.mark.parametrize("path", list(leaves(FULL)), ids=lambda path: ".".join(map(str, path)))
def test_schema_and_reader_agree_on_types(path: tuple[str | int, ...]) -> None:
    """For every field, both take and refuse the same kinds of value; a list of lists fits none of them."""
    for value in ([1.5], {"a": []}, 1.5, True, "text", -1, None):
        check_agreement(put(FULL, path, value))

    if "hyperparameters" not in path:
        assert not VALIDATOR.is_valid(put(FULL, path, [[1.5]]))
        assert not accepted(put(FULL, path, [[1.5]]))


@given(st.sampled_from(list(leaves(FULL))), plain)
def test_schema_and_reader_agree_on_any_value(path: tuple[str | int, ...], value: object) -> None:
    """Whatever stands at a known field, the JSON Schema and the reader judge it alike."""
    check_agreement(put(FULL, path, value))


# ---- reference page


NAMES = {
    "array": "list",
    "boolean": "true or false",
    "integer": "whole number",
    "number": "number",
    "object": "mapping",
    "string": "text",
}


def reference_rows() -> list[str]:
    """One row of the reference page for each field, made from the schema."""
    rows: list[str] = []

    def walk(name: str, shape: dict[str, Any], path: str) -> None:
        options = [option for option in shape.get("anyOf", [shape]) if option.get("type") != "null"]
        target = next((option for option in options if "$ref" in option or "items" in option), options[0])
        words = " or ".join(dict.fromkeys(kind(option) for option in options))
        inner = target.get("items", target)
        meaning = next((option["description"] for option in options if "description" in option), "")
        if "$ref" in inner:
            made = SCHEMA["$defs"][inner["$ref"].rpartition("/")[2]]
            meaning = meaning or made.get("description", "")
            rows.append(f"| `{path}` | {words} | {' '.join(meaning.split())} |")
            if made.get("type") == "object" and name != "signature":
                for key, value in made["properties"].items():
                    walk(key, value, f"{path}{'[]' if 'items' in target else ''}.{key}")
            return
        rows.append(f"| `{path}` | {words} | {' '.join(meaning.split())} |")

    def kind(option: dict[str, Any]) -> str:
        if "$ref" in option:
            made = SCHEMA["$defs"][option["$ref"].rpartition("/")[2]]
            return ", ".join(f"`{word}`" for word in made["enum"]) if "enum" in made else "mapping"
        return NAMES[option["type"]]

    for key, value in SCHEMA["properties"].items():
        walk(key, value, key)
    return rows


def test_the_reference_page_has_every_field() -> None:
    """docs/reference/metadata.md lists each field with its type and meaning, and none that does not exist."""
    page = PAGE.read_text(encoding="utf-8")
    table = re.compile(r"(?s)(?<=<!-- fields -->\n).*?(?=<!-- end of fields -->)")
    made = "\n".join(["", "| field | type | meaning |", "|---|---|---|", *reference_rows(), "", ""])
    if os.environ.get("WRITE_GOLDEN"):
        page = table.sub(lambda _: made, page)
        PAGE.write_text(page, encoding="utf-8")
    found = table.search(page)

    assert found is not None
    assert found[0] == made
