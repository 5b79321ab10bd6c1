"""What is stated when something is registered, checked and put in order: drafts, stage graphs, facts for the
number.

Metrics and signature may come beside the metadata or inside it; here they become one. The facts that the
version number is inferred from are taken from the same statement, so that what was judged is what was kept.
This file stores nothing, and it does not judge: `bump` does.
"""

import contextlib
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, assert_never

from msgspec import Struct
from msgspec.structs import replace

from modelkeep.core import bump, catalog, codec, errors, metadata, semver, values
from modelkeep.core.catalog import DraftSpec, FileEntry, Metric, ModelVersion, StageGraph
from modelkeep.core.differences import Facts
from modelkeep.core.provenance import Provenance, commit_of, data_digests
from modelkeep.core.semver import Operator, Range, SemVer
from modelkeep.core.signature import Signature, check_signature
from modelkeep.core.stated_provenance import one_provenance
from modelkeep.core.values import Digest, ModelName, Ref

# Limits of what is stated; each with the reason for its size.
FILE_MAX_BYTES = 1024**4
"""Bytes of one file, as the blob stores have it."""
STAGES_MAX = 20
"""Stages of one model: people must remember them."""
MEDIA_TYPE_MAX = 127
"""Characters of a media type, as RFC 4288 has them."""

RECORD_DOMAIN = b"modelkeep.version.v1\n"
"""Begins what a record's digest is taken of, so that it is no digest of anything else."""

WEIGHT_SUFFIXES = (
    ".bin",
    ".cbm",
    ".ckpt",
    ".gguf",
    ".h5",
    ".joblib",
    ".keras",
    ".npz",
    ".onnx",
    ".pb",
    ".pickle",
    ".pkl",
    ".pt",
    ".pth",
    ".safetensors",
    ".skops",
    ".tflite",
    ".ubj",
)
"""Ends of the names of files that hold learned numbers."""


# ---------------------------------------------------------------------------------------------------- a draft


def check_spec(spec: DraftSpec) -> DraftSpec:
    """An announcement in its one normal form: equal statements become equal specs.

    Raises:
        InvalidManifest, InvalidMetric, InvalidMetadata, InvalidSignature, InvalidSemver, Invalid,
        LimitExceeded: what is stated contradicts itself, or is more than fits; names the field.
    """
    for entry in spec.files:
        if entry.size_bytes > FILE_MAX_BYTES:
            raise errors.LimitExceeded(
                f"{values.quoted(entry.path)} has more than {FILE_MAX_BYTES:,} bytes; split it.",
                field="size_bytes",
            )
        values.check_text(entry.media_type, "media type", maximum=MEDIA_TYPE_MAX, required=True)
    document = metadata.check_metadata(spec.metadata) if spec.metadata else None
    signature = check_signature(spec.signature) if spec.signature is not None else None
    checked = replace(
        spec,
        files=catalog.make_manifest(spec.files).files,
        semver=str(semver.parse(spec.semver)) if spec.semver is not None else None,
        override_semver=_reason(spec.override_semver),
        signature=_one_signature(signature, document.view.signature if document else None),
        metrics=_one_set_of_metrics(spec.metrics, metadata.metrics_of(document) if document else ()),
        params=_check_params(spec.params),
        metadata=document.document if document else {},
        provenance=one_provenance(spec.provenance, document.view if document else None),
        description=values.check_text(spec.description, "description"),
        tags=catalog.check_tags(spec.tags),
    )
    codec.canonical(checked)  # refuses text that is no Unicode, wherever it stands
    return checked


def _reason(text: str | None) -> str | None:
    if text is None:
        return None
    return values.check_text(text, "reason for the lower version", required=True).strip()


def _check_params(params: Mapping[str, str]) -> dict[str, str]:
    if len(params) > values.PARAMS_MAX:
        raise errors.LimitExceeded(f"A version has at most {values.PARAMS_MAX:,} parameters.", field="params")
    for key, value in params.items():
        values.check_text(key, "parameter name", maximum=values.TAG_KEY_MAX, required=True)
        values.check_text(value, f"parameter {key!r}", maximum=values.PARAM_VALUE_MAX)
    return dict(sorted(params.items()))


def _one_signature(beside: Signature | None, inside: Signature | None) -> Signature | None:
    if beside is not None and inside is not None and beside != inside:
        raise errors.InvalidSignature(
            "The signature in the metadata is another one than the signature beside it; state one of them.",
            field="signature",
        )
    return beside if beside is not None else inside


def _one_set_of_metrics(beside: Sequence[Metric], inside: Sequence[Metric]) -> tuple[Metric, ...]:
    """Both lists as one. What is said twice must agree in its value; the fuller statement is kept."""
    merged = {metric.key: metric for metric in catalog.check_metrics(inside)}
    for metric in catalog.check_metrics(beside):
        known = merged.get(metric.key)
        if known is not None and known.value != metric.value:
            raise errors.InvalidMetric(
                f"The metric {metric.name!r} is {known.value:g} in the metadata and {metric.value:g} beside "
                "it; state one of them.",
                field=f"metrics.{metric.name}",
            )
        if known is None or _said(metric) >= _said(known):
            merged[metric.key] = metric
    return catalog.check_metrics(tuple(merged.values()))


def _said(metric: Metric) -> int:
    return sum(getattr(metric, name) is not None for name in Metric.__struct_fields__)


def parent_ref(model: ModelName, text: str) -> Ref:
    """The parent that a draft names: a whole reference of the same model, or only what follows the colon in
    one.

    Raises:
        InvalidReference, InvalidSemver, InvalidName: it is neither, or names another model.
    """
    short = text[:1].isdigit() or text[:1] in ("#", "^", "~", "<", ">", "=", "*")
    ref = values.parse_ref(f"{model}:{text}" if short else text)
    if ref.model != model or ref.selector is None:
        raise errors.InvalidReference(
            f"{values.quoted(text)} is no version of {model}; name the parent like 1.0.0.",
            field="parent",
        )
    return ref


def adds_nothing(spec: DraftSpec, digest: Digest, version: ModelVersion) -> bool:
    """Whether a draft is that version again: the same bytes, and nothing stated that is not known of it
    already.

    What the draft leaves out is not taken for a contradiction; labels (tags, description) do not count.
    """
    return (
        digest == version.digest
        and spec.semver in (None, version.semver)
        and spec.bump is catalog.Bump.AUTO
        and spec.override_semver is None
        and spec.signature in (None, version.signature)
        and set(spec.metrics) <= set(version.metrics)
        and spec.params.items() <= version.params.items()
        and spec.metadata in ({}, version.metadata)
        and _says_nothing_new(spec.provenance, version.provenance)
    )


def _says_nothing_new(stated: Provenance | None, known: Provenance | None) -> bool:
    """Whether each part of a provenance that is stated is known already. Code that nobody stated counts for
    nothing: a checkout moves on while a file in it stays the same."""
    if stated is None:
        return True
    if stated.code is not None and stated.code.detected:
        stated = replace(stated, code=None)
    known = known or Provenance()
    parts = {name: getattr(stated, name) for name in Provenance.__struct_fields__}
    return all(part in (None, (), getattr(known, name)) for name, part in parts.items())


# ------------------------------------------------------------------------------------------------------ facts


class Statement(Struct, frozen=True, kw_only=True):
    """What facts are taken from; a draft and a version both have it."""

    digest: Digest
    files: tuple[FileEntry, ...]
    signature: Signature | None
    metrics: tuple[Metric, ...]
    params: dict[str, str]
    metadata: dict[str, Any]
    provenance: Provenance | None = None


def stated_by(source: DraftSpec | ModelVersion, digest: Digest) -> Statement:
    """The statement of a draft or version with this manifest digest."""
    return Statement(
        digest=digest,
        files=source.files,
        signature=source.signature,
        metrics=source.metrics,
        params=source.params,
        metadata=source.metadata,
        provenance=source.provenance,
    )


def facts_of(stated: Statement) -> Facts:
    """The facts that version rules compare. What is not stated is unknown.

    Data and environment are those that the metadata states, else those of the provenance. In the metadata,
    `preprocessing` may stand at the top or under `model`, `features` and `labels` under
    `data`; each section that becomes a fact of its own is left out of the digest of the rest."""
    rest = dict(stated.metadata)
    rest.pop("schema", None)
    rest.pop("signature", None)
    model, data = _taken(rest, "model"), _taken(rest, "data")
    performance, training = _taken(rest, "performance"), _taken(rest, "training")
    performance.pop("metrics", None)
    preprocessing = rest.pop("preprocessing", None) or model.pop("preprocessing", None)
    architecture = model.pop("architecture", None)
    family = architecture.get("family") if isinstance(architecture, dict) else None
    features, labels = data.pop("features", None), data.pop("labels", None)
    snapshots = data_digests(stated.provenance)
    trained_on = {"data": data, "training": training.pop("data", None), "snapshots": snapshots}
    environment = rest.pop("environment", None)
    lock = environment.get("lock_digest") if isinstance(environment, dict) else None
    if environment is None and stated.provenance is not None and stated.provenance.environment is not None:
        lock = stated.provenance.environment.digest
    commit = commit_of(stated.provenance)
    sections = {"model": model, "performance": performance, "training": training}
    rest |= {name: section for name, section in sections.items() if section}
    if stated.params:
        rest["params"] = stated.params
    weights = tuple(entry.digest for entry in stated.files if entry.path.lower().endswith(WEIGHT_SUFFIXES))
    return Facts(
        content=stated.digest,
        signature=stated.signature,
        preprocessing=_fingerprint(preprocessing),
        features=_names(features),
        labels=_names(labels),
        architecture_family=family if isinstance(family, str) else None,
        architecture=_fingerprint(architecture),
        weights=weights or None,
        data=_fingerprint({name: part for name, part in trained_on.items() if part}),
        environment=lock if isinstance(lock, str) else _fingerprint(environment),
        metrics={metric.label: metric.value for metric in stated.metrics} or None,
        metadata=_fingerprint(rest | ({"commit": commit} if commit is not None else {})),
    )


def _taken(document: dict[str, Any], name: str) -> dict[str, Any]:
    """A section as a copy, taken out of the document; empty where there is none."""
    section = document.pop(name, None)
    return dict(section) if isinstance(section, dict) else {}


def _names(value: object) -> tuple[str, ...] | None:
    if not isinstance(value, list) or not value:
        return None
    return tuple(item if isinstance(item, str) else codec.canonical(item).decode() for item in value)


def _fingerprint(value: object) -> str | None:
    if not value:
        return None
    return "sha256:" + hashlib.sha256(codec.canonical(value)).hexdigest()


def searchable(metrics: Sequence[Metric]) -> dict[str, float]:
    """The names that metrics are found and ordered by: `auc` is the unsliced one that stands first, as in
    `ModelVersion.metric`; `auc@test` the one of that split. Slices are read, not searched."""
    found: dict[str, float] = {}
    whole = [metric for metric in metrics if metric.slice is None]
    for metric in whole:
        found.setdefault(metric.name, metric.value)
    for metric in whole:
        found.setdefault(metric.label, metric.value)
    return found


# ------------------------------------------------------------------------------------------------- the record


def record_of(version: ModelVersion) -> ModelVersion:
    """What of a version never changes, as it is stored: without the labels and positions beside it."""
    return replace(version, description="", tags={}, aliases=(), tombstone=None, yanked=None)


def record_digest(version: ModelVersion) -> Digest:
    """What a version's event vouches for: sha256 over a domain line and the canonical record.

    The record has files, signature, metrics, parameters, metadata, provenance, identity, number, bump with
    its reasons, and parent.
    """
    digested = hashlib.sha256(RECORD_DOMAIN + codec.canonical(record_of(version)))
    return Digest("sha256:" + digested.hexdigest())


# ------------------------------------------------------------------------------------------------- the number


class Neighbourhood(NamedTuple):
    """Which of a model's versions the choice of the next number can depend on, by `semver.sort_key`.

    Attributes:
        spans: from the first text to before the second; of each, its highest version is enough.
        keys: single versions.
    """

    spans: tuple[tuple[str, str], ...]
    keys: tuple[str, ...]


def neighbourhood(parent: SemVer | None, explicit: SemVer | None) -> Neighbourhood:
    """The versions that are to be looked for. A model may have very many, and only these are loaded."""
    spans = [("", "~")]
    named = [bump.FIRST_VERSION, explicit, parent]
    if parent is not None:
        major = semver.sort_key(SemVer(parent.major, 0, 0))[: -len("0100103")]
        minor = semver.sort_key(SemVer(parent.major, parent.minor, 0))[: -len("0103")]
        spans += [(major, f"{major}~"), (minor, f"{minor}~")]
        for by in semver.Bump:
            with contextlib.suppress(
                errors.InvalidSemver
            ):  # the one that is chosen is refused when it is chosen
                named.append(semver.bump(parent, by))
    keys = dict.fromkeys(semver.sort_key(version) for version in named if version is not None)
    return Neighbourhood(tuple(spans), tuple(keys))


# ----------------------------------------------------------------------------------------------------- stages


def check_stages(graph: StageGraph) -> StageGraph:
    """A stage graph that can be lived in.

    Raises:
        Invalid, InvalidName, LimitExceeded: no stage or too many, a name twice or not in lower case, a first
        stage that holds one version only, or a move from or to a stage that is not there.
    """
    names = [spec.name for spec in graph.stages]
    if not names:
        raise errors.Invalid(
            "A model needs at least one stage; the first is where a version begins.", field="stages"
        )
    if len(names) > STAGES_MAX:
        raise errors.LimitExceeded(f"A model has at most {STAGES_MAX} stages; merge some.", field="stages")
    for name in names:
        values.check_name(name, "stage")
        if name != name.lower():
            raise errors.InvalidName(f"Write the stage {name!r} in lower case.", field="stages")
    _refuse_twice(names, "stage")
    if graph.stages[0].exclusive:
        raise errors.Invalid(
            f"Every new version begins in {names[0]}, so it cannot be exclusive; put another stage first.",
            field="stages",
        )
    if graph.displaced_to not in names or graph.stage(graph.displaced_to).exclusive:
        raise errors.Invalid(
            "The stage in 'displaced_to' takes whoever has to make room: name one that is there and not "
            "exclusive.",
            field="displaced_to",
        )
    if len(graph.transitions) > STAGES_MAX * STAGES_MAX:
        raise errors.LimitExceeded(
            "There are more moves than pairs of stages; remove some.", field="transitions"
        )
    for source, target in graph.transitions:
        if source not in names or target not in names or source == target:
            shown = values.printable(f"{source} to {target}")[:80]
            raise errors.Invalid(
                f"There can be no move from {shown}; the stages are {', '.join(names)}.", field="transitions"
            )
    return graph


def _refuse_twice(names: Iterable[str], what: str) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise errors.Invalid(f"The {what} {name!r} stands twice; keep one.", field=f"{what}s")
        seen.add(name)


def span_of(within: Range) -> tuple[str, str]:
    """The sort keys between which every version of a range lies: from the first text to before the second."""
    low, high = "", "~"
    for bound in within.bounds:
        key = semver.sort_key(bound.version)
        after = f"{key}!"  # no key stands between a key and this: keys are hexadecimal digits
        match bound.operator:
            case Operator.AT_LEAST:
                low = max(low, key)
            case Operator.ABOVE:
                low = max(low, after)
            case Operator.AT_MOST:
                high = min(high, after)
            case Operator.BELOW:
                high = min(high, key)
            case Operator.EQUAL:
                low, high = max(low, key), min(high, after)
            case _:
                assert_never(bound.operator)
    return low, high
