"""The shapes of a version's metadata: sections, fields, what each may hold, and the JSON Schema made of them.

A field is stated once, here: its struct validates it, its place is its place in written documents, and its
description is what the reference page says. Every field may be left out. Nothing is read, checked beyond
types and bounds, or brought into normal form here; `metadata` does that.
"""

import copy
from collections.abc import Mapping
from enum import StrEnum
from functools import cache
from typing import Annotated, Any, cast

from msgspec import Meta, Struct
from msgspec.json import schema as schema_of

from modelkeep.core import catalog, values
from modelkeep.core.signature import Signature

SCHEMA = "modelkeep.metadata/v1"
"""What a document says of itself; a change that an older reader would misread gets a new number."""

# Limits of single fields; those of a whole document stand in `metadata`.
INTEGER_MAX = 2**63 - 1
"""Whole numbers that every store, wire and language of ours holds exactly."""
DATASETS_MAX = 1_000
"""Data sets of one version."""
LABELS_MAX = 200
"""Classes of one confusion table; a larger one is a file of the version, not metadata."""

_END = r"$(?!\n)"  # in Python, unlike in JSON Schema, "$" alone also matches before a last line break
_CLOCK = r"[0-9]{2}:[0-9]{2}(:[0-9]{2}(\.[0-9]{1,6})?)?(Z|[+-][0-9]{2}:[0-9]{2})?"
_ISO = f"^[0-9]{{4}}-[0-9]{{2}}-[0-9]{{2}}([T ]{_CLOCK})?{_END}"

Text = Annotated[str, Meta(max_length=values.TEXT_MAX)]
Moment = Annotated[
    str, Meta(pattern=_ISO, description="A date or a time in ISO 8601 form.", examples=["2026-01-25"])
]
Seconds = Annotated[float, Meta(ge=0, description="Seconds.")]
Milliseconds = Annotated[float, Meta(ge=0, description="Milliseconds.")]
Size = Annotated[int, Meta(ge=0, le=INTEGER_MAX, description="Bytes.")]
Count = Annotated[int, Meta(ge=0, le=INTEGER_MAX)]
Amount = Annotated[float, Meta(ge=0)]
ContentDigest = Annotated[
    str,
    Meta(pattern="^[a-z0-9]+:[0-9a-f]{32,128}" + _END, description="Algorithm, colon, hexadecimal digits."),
]
Quantity = Annotated[str, Meta(min_length=1, max_length=64)] | Amount


class Hardware(Struct, frozen=True, kw_only=True):
    """What the training ran on."""

    name: Text | None = None
    cpus: Amount | None = None
    memory_bytes: Size | None = None
    gpu: Text | None = None
    gpus: Count | None = None


class Cost(Struct, frozen=True, kw_only=True):
    """What the training cost."""

    amount: Amount | None = None
    currency: (
        Annotated[str, Meta(pattern="^[A-Z]{3}" + _END, description="ISO 4217.", examples=["EUR"])] | None
    ) = None


class TrainingData(Struct, frozen=True, kw_only=True):
    """Which data, how much of it, and how it was split."""

    version: Text | None = None
    size_bytes: Size | None = None
    samples: dict[str, Count] | None = None


class Training(Struct, frozen=True, kw_only=True):
    """How the version came to be."""

    date: Moment | None = None
    duration_s: Seconds | None = None
    experiment: Text | None = None
    run: Text | None = None
    data: TrainingData | None = None
    hardware: Hardware | None = None
    cost: Cost | None = None


class Architecture(Struct, frozen=True, kw_only=True):
    """The kind of model: a family (`gradient boosting`, `transformer`) and the name of a member."""

    family: Text | None = None
    name: Text | None = None


class Model(Struct, frozen=True, kw_only=True):
    """What the version is."""

    framework: Annotated[str, Meta(examples=["scikit-learn"])] | None = None
    framework_version: Annotated[str, Meta(examples=["1.9.1"])] | None = None
    architecture: Architecture | None = None
    algorithm: Text | None = None
    parameters: Annotated[Count, Meta(description="Number of learned parameters.")] | None = None
    format: Annotated[str, Meta(examples=["onnx", "skops"])] | None = None
    size_bytes: Size | None = None
    hyperparameters: dict[str, Any] | None = None


class Interval(Struct, frozen=True, kw_only=True):
    """An interval around a metric, and the share of repetitions in which it holds the true value."""

    low: float | None = None
    high: float | None = None
    level: Annotated[float, Meta(gt=0, lt=1, examples=[0.95])] | None = None


class MeasuredMetric(Struct, frozen=True, kw_only=True):
    """One measured number."""

    name: Annotated[str, Meta(min_length=1, max_length=values.TAG_KEY_MAX)]
    value: float
    unit: Text | None = None
    split: Text | None = None
    slice: Text | None = None
    dataset: Text | None = None
    direction: catalog.Direction | None = None
    interval: Interval | None = None


class Confusion(Struct, frozen=True, kw_only=True):
    """Counts by class: `counts[i][j]` rows of class `labels[i]` were predicted to be of class `labels[j]`."""

    split: Text | None = None
    labels: Annotated[tuple[str | int | bool, ...], Meta(max_length=LABELS_MAX)] | None = None
    counts: tuple[tuple[Count, ...], ...] | None = None


class Latency(Struct, frozen=True, kw_only=True):
    """Time of one prediction."""

    p50_ms: Milliseconds | None = None
    p95_ms: Milliseconds | None = None
    p99_ms: Milliseconds | None = None
    batch_size: Annotated[int, Meta(ge=1)] | None = None


class Performance(Struct, frozen=True, kw_only=True):
    """How well and how fast it predicts. `metrics` may be written short: name to value, or split to those."""

    metrics: Annotated[tuple[MeasuredMetric, ...], Meta(max_length=values.METRICS_MAX)] | None = None
    confusion: tuple[Confusion, ...] | None = None
    latency: Latency | None = None
    throughput_per_s: (
        Annotated[dict[str, Amount], Meta(description="Batch size to rows a second.")] | None
    ) = None
    memory_bytes: Size | None = None
    gpu_memory_bytes: Size | None = None
    cpu_cores: Annotated[Amount, Meta(description="Cores in use while predicting.")] | None = None


class Resources(Struct, frozen=True, kw_only=True):
    """What a replica asks for and may use, in the units of Kubernetes (`500m`, `2Gi`) or plain numbers."""

    requests: dict[str, Quantity] | None = None
    limits: dict[str, Quantity] | None = None


class Probe(Struct, frozen=True, kw_only=True):
    """One health check."""

    path: Annotated[str, Meta(pattern="^/", examples=["/ready"])] | None = None
    port: Annotated[int, Meta(ge=1, le=65_535)] | None = None
    initial_delay_s: Seconds | None = None
    period_s: Seconds | None = None
    timeout_s: Seconds | None = None
    failure_threshold: Annotated[int, Meta(ge=1)] | None = None


class Probes(Struct, frozen=True, kw_only=True):
    """When a replica has started, is alive, and may be sent requests."""

    startup: Probe | None = None
    liveness: Probe | None = None
    readiness: Probe | None = None


class Autoscaling(Struct, frozen=True, kw_only=True):
    """Between which bounds the replicas follow the load."""

    min_replicas: Count | None = None
    max_replicas: Count | None = None
    target_cpu_percent: Annotated[float, Meta(gt=0, le=100)] | None = None
    target_requests_per_s: Amount | None = None


class Deployment(Struct, frozen=True, kw_only=True):
    """How the version is meant to run. What runs in fact is the registry's own record."""

    replicas: Count | None = None
    resources: Resources | None = None
    probes: Probes | None = None
    autoscaling: Autoscaling | None = None
    endpoint: Text | None = None
    deployed_by: Text | None = None


class Business(Struct, frozen=True, kw_only=True):
    """What it is for, and whom to ask."""

    use_case: Text | None = None
    owner: Text | None = None
    backup_owner: Text | None = None
    contact: Text | None = None
    tags: Annotated[dict[str, str], Meta(max_length=values.TAGS_MAX)] | None = None
    known_issues: tuple[Text, ...] | None = None
    backward_compatibility: Text | None = None


class ApprovalStatus(StrEnum):
    """What somebody outside the registry has decided."""

    PENDING = "pending"
    APPROVED = "approved"
    REJECTED = "rejected"


class Compliance(Struct, frozen=True, kw_only=True):
    """A decision taken elsewhere, such as by a risk board. Approvals of a promotion are the registry's own
    records."""

    approval_status: ApprovalStatus | None = None
    approver: Text | None = None
    date: Moment | None = None


class Dataset(Struct, frozen=True, kw_only=True):
    """One set of data that went in."""

    name: Annotated[str, Meta(min_length=1, max_length=values.TAG_KEY_MAX)]
    digest: ContentDigest | None = None
    version: Text | None = None
    uri: Text | None = None
    role: Annotated[str, Meta(examples=["training", "validation"])] | None = None
    rows: Count | None = None
    size_bytes: Size | None = None


class Data(Struct, frozen=True, kw_only=True):
    """The data sets, by content."""

    datasets: Annotated[tuple[Dataset, ...], Meta(max_length=DATASETS_MAX)] | None = None


class Code(Struct, frozen=True, kw_only=True):
    """The code that trained it."""

    commit: Annotated[str, Meta(pattern="^[0-9a-f]{7,64}" + _END, examples=["4117c4b"])] | None = None
    repository: Text | None = None
    dirty: Annotated[bool, Meta(description="There were changes that no commit holds.")] | None = None


class Environment(Struct, frozen=True, kw_only=True):
    """Where it was trained, precisely enough to build the place again."""

    lock_digest: ContentDigest | None = None
    python: Annotated[str, Meta(pattern=r"^[0-9]+\.[0-9]+", examples=["3.11.7"])] | None = None
    platform: Text | None = None
    image: Text | None = None


class View(Struct, frozen=True, kw_only=True, rename={"schema_name": "schema"}):
    """Metadata of one model version. Every section and field may be left out, and others may be added."""

    schema_name: Annotated[str, Meta(pattern=f"^{SCHEMA}{_END}", examples=[SCHEMA])] = SCHEMA
    training: Training | None = None
    model: Model | None = None
    performance: Performance | None = None
    deployment: Deployment | None = None
    business: Business | None = None
    compliance: Compliance | None = None
    data: Data | None = None
    code: Code | None = None
    environment: Environment | None = None
    signature: Signature | None = None


@cache
def _made() -> dict[str, Any]:
    return schema_of(View)


def json_schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of a document, short forms included; made from the structs above."""
    made = copy.deepcopy(_made())
    definitions = made.pop("$defs")
    numbers = {"type": "object", "additionalProperties": {"type": "number"}}
    metrics = definitions["Performance"]["properties"]["metrics"]
    metrics["anyOf"].append(
        {"type": "object", "additionalProperties": {"anyOf": [{"type": "number"}, numbers]}}
    )
    rest = copy.deepcopy(definitions["Field"])
    rest["required"] = ["type"]
    rest["title"] = "Field without its name"
    for side in ("inputs", "outputs"):
        listed = definitions["Signature"]["properties"][side]
        short = {"anyOf": [{"$ref": "#/$defs/DataType"}, rest]}
        definitions["Signature"]["properties"][side] = {
            "anyOf": [listed, {"type": "object", "additionalProperties": short}, {"type": "null"}]
        }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:{SCHEMA.replace('/', ':')}",
        **definitions.pop("View"),
        "title": "Modelkeep metadata",
        "$defs": definitions,
    }


def in_order(document: dict[str, Any]) -> dict[str, Any]:
    """The document with known fields in the order of the structs, and the others after them by name."""
    return cast(dict[str, Any], _in_order(document, {"$ref": "#/$defs/View"}))


def _in_order(value: Any, shape: Mapping[str, Any]) -> Any:
    for option in shape.get("anyOf", ()):
        fits = "items" in option if isinstance(value, list) else "$ref" in option or "properties" in option
        if fits or (isinstance(value, dict) and "additionalProperties" in option):
            shape = option
            break
    if "$ref" in shape:
        shape = _made()["$defs"][shape["$ref"].rpartition("/")[2]]
    if isinstance(value, list):
        return [_in_order(item, shape.get("items", {})) for item in value]
    if not isinstance(value, dict):
        return value
    known: dict[str, Any] = shape.get("properties", {})
    first = [key for key in known if key in value]
    rest = sorted((key for key in value if key not in known), key=_natural)
    inner = shape.get("additionalProperties")
    other: Mapping[str, Any] = inner if isinstance(inner, dict) else {}
    return {key: _in_order(value[key], known.get(key, other)) for key in first + rest}


def _natural(key: str) -> tuple[int, str]:
    """Numbers in the order of their size (batch sizes), then everything else by code point."""
    number = key if key.isascii() and key.isdigit() else ""
    return (len(number), number) if number else (INTEGER_MAX, key)
