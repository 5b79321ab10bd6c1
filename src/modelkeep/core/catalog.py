"""What exists: registered models, their immutable versions, manifests, metrics, aliases and stages.

Shapes and the few pure rules that belong to them. One noun has one shape: these structs are the domain
object, the JSON body on the wire and the document in the store. What may move where is `promotion`'s
business.
"""

import hashlib
import math
import unicodedata
from collections.abc import Iterable, Sequence
from datetime import datetime
from enum import StrEnum
from typing import Any

from msgspec import UNSET, Struct, UnsetType

from modelkeep.core import codec, errors, values
from modelkeep.core.provenance import Identity, Provenance
from modelkeep.core.signature import Signature
from modelkeep.core.values import Digest, ModelName

MANIFEST_DOMAIN = b"modelkeep.manifest.v1\n"
"""Stands before the canonical manifest when it is hashed, so that its digest can never equal that of a plain
file.
"""

OWN_TAGS = "modelkeep."
"""Tags under this belong to Modelkeep: they are shown, and nobody sets them."""
VIRTUAL_ALIASES = frozenset({"latest", "newest"})
"""Aliases that always exist and that nobody can set."""


class FileEntry(Struct, frozen=True, kw_only=True):
    """One file of a version."""

    path: str
    size_bytes: int
    digest: Digest
    media_type: str = "application/octet-stream"


class StoredBlob(Struct, frozen=True, kw_only=True):
    """A blob as a listing shows it. `modified_at` is when it was last committed, by the store's own clock."""

    digest: Digest
    size_bytes: int
    modified_at: datetime


class Manifest(Struct, frozen=True, kw_only=True):
    """The files of a version in the order of their paths; its digest is the version's content identity."""

    files: tuple[FileEntry, ...]

    @property
    def size_bytes(self) -> int:
        return sum(entry.size_bytes for entry in self.files)


def make_manifest(entries: Iterable[FileEntry]) -> Manifest:
    """Sort and check the files of a version.

    Raises:
        InvalidManifest: no file, a bad path, two paths that a file system could take for one, or a negative
        size. LimitExceeded: too many files.
    """
    files = tuple(sorted(entries, key=lambda entry: entry.path.encode()))
    if not files:
        raise errors.InvalidManifest("A version needs at least one file; add the model file.")
    if len(files) > values.FILES_MAX:
        raise errors.LimitExceeded(
            f"A version has at most {values.FILES_MAX:,} files; pack small ones together."
        )
    seen: dict[str, str] = {}
    for entry in files:
        values.check_path(entry.path)
        values.check_digest(entry.digest)
        if entry.size_bytes < 0:
            raise errors.InvalidManifest(f"The size of {entry.path!r} is negative.", field="size_bytes")
        folded = unicodedata.normalize("NFKC", entry.path).casefold()
        if folded in seen:
            raise errors.InvalidManifest(
                f"{entry.path!r} and {seen[folded]!r} are the same file on some systems; rename one of them.",
                field="path",
            )
        seen[folded] = entry.path
    return Manifest(files=files)


def manifest_digest(manifest: Manifest) -> Digest:
    """The content identity: sha256 over the domain line and the canonical list of (path, size, media type,
    sha256).
    """
    return Digest("sha256:" + hashlib.sha256(MANIFEST_DOMAIN + codec.canonical(manifest)).hexdigest())


class Direction(StrEnum):
    """Which way a metric is better."""

    HIGHER = "higher"
    LOWER = "lower"


_LOWER_IS_BETTER = (
    "loss",
    "error",
    "rmse",
    "mse",
    "mae",
    "mape",
    "latency",
    "logloss",
    "brier",
    "size",
    "time",
    "cost",
)


def guess_direction(name: str) -> Direction:
    """The direction people mean when they do not say: smaller is better for losses, errors, latencies and
    sizes.
    """
    lowered = name.lower()
    return Direction.LOWER if any(word in lowered for word in _LOWER_IS_BETTER) else Direction.HIGHER


def metric_label(name: str, split: str | None = None, part: str | None = None) -> str:
    """The one spelling of a metric: `auc`, `auc@test`, `auc@test[age<30]`."""
    return name + (f"@{split}" if split else "") + (f"[{part}]" if part else "")


def parse_metric(label: str) -> tuple[str, str | None, str | None]:
    """A metric's name, split and slice out of its label.

    A name that has an `@` itself cannot be told from a name with a split, so what is looked up is compared by
    its label instead, with `ModelVersion.metric`.
    """
    whole, bracket, part = label.partition("[")
    if not bracket or not part.endswith("]"):
        whole, part = label, ""
    name, _, split = whole.partition("@")
    return name, split or None, part.removesuffix("]") or None


class Metric(Struct, frozen=True, kw_only=True):
    """One measured number of a version; `interval_low` and `interval_high` bound it where computed."""

    name: str
    value: float
    unit: str | None = None
    split: str | None = None
    slice: str | None = None
    dataset: str | None = None
    direction: Direction | None = None
    interval_low: float | None = None
    interval_high: float | None = None

    @property
    def key(self) -> tuple[str, str, str]:
        return (self.name, self.split or "", self.slice or "")

    @property
    def label(self) -> str:
        """How it is written wherever it is shown or asked for; no two of one version have the same."""
        return metric_label(self.name, self.split, self.slice)

    @property
    def better(self) -> Direction:
        return self.direction or guess_direction(self.name)


def check_metrics(metrics: Sequence[Metric]) -> tuple[Metric, ...]:
    """Metrics in the order of their keys.

    Raises:
        InvalidMetric: a bad name, a value that is not a finite number, or one metric twice.
        LimitExceeded: too many.
    """
    if len(metrics) > values.METRICS_MAX:
        raise errors.LimitExceeded(f"A version has at most {values.METRICS_MAX:,} metrics.", field="metrics")
    seen: set[str] = set()
    for metric in metrics:
        values.check_text(metric.name, "metric name", maximum=values.TAG_KEY_MAX, required=True)
        numbers = (metric.value, metric.interval_low, metric.interval_high)
        if any(number is not None and not math.isfinite(number) for number in numbers):
            raise errors.InvalidMetric(
                f"The metric {metric.name!r} is not a finite number; leave out what could not be measured.",
                field=f"metrics.{metric.name}",
            )
        if metric.label in seen:
            raise errors.InvalidMetric(f"The metric {metric.label!r} stands twice; keep one.")
        seen.add(metric.label)
    return tuple(sorted(metrics, key=lambda metric: metric.key))


def check_tags(tags: dict[str, str]) -> dict[str, str]:
    """Tags in the order of their keys.

    Raises:
        Invalid, LimitExceeded: too many, too long, or with control characters.
    """
    if len(tags) > values.TAGS_MAX:
        raise errors.LimitExceeded(f"At most {values.TAGS_MAX} tags fit; remove some.", field="tags")
    for key, value in tags.items():
        values.check_text(key, "tag key", maximum=values.TAG_KEY_MAX, required=True)
        # A prompt's text comes in a tag, and some people write it with the line ends of Windows.
        values.check_text(value.replace("\r\n", "\n"), f"tag {key!r}", maximum=values.TAG_VALUE_MAX)
    if sum(len(key) + len(value) for key, value in tags.items()) > values.TAGS_TEXT_MAX:
        raise errors.LimitExceeded(
            f"The tags have more than {values.TAGS_TEXT_MAX:,} characters together; put long ones in a file.",
            field="tags",
        )
    return dict(sorted(tags.items()))


def refuse_own_tags(keys: Iterable[str]) -> None:
    """Refuse to set or delete tags that belong to Modelkeep.

    Raises:
        InvalidParameter: names the tag.
    """
    for key in keys:
        if key.startswith(OWN_TAGS):
            raise errors.InvalidParameter(
                f"The tag {values.quoted(key)} is Modelkeep's own and says what it is; "
                f"choose a name that does not begin with '{OWN_TAGS}'.",
                field="key",
            )


class StageSpec(Struct, frozen=True, kw_only=True):
    """One stage: `exclusive` ones hold one version at a time; `protected` ones keep their version from
    deletion.
    """

    name: str
    exclusive: bool = False
    protected: bool = False


class StageGraph(Struct, frozen=True, kw_only=True):
    """Which stages a model has and which moves are allowed; the first stage is where a version begins.

    `displaced_to` names where the former occupant of an exclusive stage goes.
    """

    stages: tuple[StageSpec, ...]
    transitions: tuple[tuple[str, str], ...]
    displaced_to: str

    def stage(self, name: str) -> StageSpec:
        """Raises InvalidTransition when the model has no such stage."""
        for spec in self.stages:
            if spec.name == name:
                return spec
        known = ", ".join(spec.name for spec in self.stages)
        raise errors.InvalidTransition(f"There is no stage {values.quoted(name)}; the stages are {known}.")

    @property
    def initial(self) -> str:
        return self.stages[0].name


DEFAULT_STAGES = StageGraph(
    stages=(
        StageSpec(name="none"),
        StageSpec(name="staging", exclusive=True),
        StageSpec(name="production", exclusive=True, protected=True),
        StageSpec(name="archived"),
    ),
    transitions=(
        ("none", "staging"),
        ("none", "production"),
        ("none", "archived"),
        ("staging", "production"),
        ("staging", "none"),
        ("staging", "archived"),
        ("production", "archived"),
        ("production", "staging"),
        ("archived", "staging"),
        ("archived", "production"),
        ("archived", "none"),
    ),
    displaced_to="archived",
)


class AliasSpec(Struct, frozen=True, kw_only=True):
    """A movable pointer; a protected one keeps its version from deletion and moves only by a maintainer."""

    alias: str
    number: int
    protected: bool = False
    updated_at: datetime
    updated_by: str


class RegisteredModel(Struct, frozen=True, kw_only=True):
    """The named thing people talk about."""

    id: str
    name: ModelName
    description: str = ""
    owner: str
    tags: dict[str, str] = {}
    stages: StageGraph = DEFAULT_STAGES
    aliases: tuple[AliasSpec, ...] = ()
    occupants: dict[str, int] = {}
    versions: int = 0
    latest: str | None = None
    created_at: datetime
    created_by: str
    updated_at: datetime


def withdrawal(tombstone: str | None, yanked: str | None) -> str | None:
    """Why a version is withdrawn, of the reasons that were given for taking it back and for yanking it."""
    if tombstone is not None:
        return f"it was taken back: {tombstone}"
    return f"it was yanked: {yanked}" if yanked is not None else None


class ModelVersion(Struct, frozen=True, kw_only=True):
    """One immutable version. Its bytes, signature, metrics, parameters, metadata and provenance, and the
    identity that comes of them, never change after it is ready; stage, aliases, tags and description are
    positions and labels beside it, each change an event.

    `tombstone` is why it was taken back, `yanked` why its makers withdrew it.
    """

    id: str
    model: ModelName
    number: int
    semver: str
    digest: Digest
    size_bytes: int
    files: tuple[FileEntry, ...]
    signature: Signature | None = None
    metrics: tuple[Metric, ...] = ()
    params: dict[str, str] = {}
    metadata: dict[str, Any] = {}
    provenance: Provenance | None = None
    identity: Identity | None = None
    description: str = ""
    tags: dict[str, str] = {}
    stage: str = "none"
    aliases: tuple[str, ...] = ()
    parent: int | None = None
    bump: str = "none"
    bump_reasons: tuple[str, ...] = ()
    tombstone: str | None = None
    yanked: str | None = None
    created_at: datetime
    created_by: str

    @property
    def reference(self) -> str:
        return f"{self.model}:{self.semver}"

    @property
    def withdrawn(self) -> str | None:
        """Why nobody is to get it without naming it, or None: what says `latest` or gives a range passes over
        it, and so does the choice of the best.
        """
        return withdrawal(self.tombstone, self.yanked)

    def metric(self, name: str, split: str | None = None, part: str | None = None) -> Metric | None:
        """The metric of that name with that split and slice, or of that whole label; a name alone is the
        first unsliced one."""
        label = metric_label(name, split, part)
        exact = [metric for metric in self.metrics if metric.label == label]
        whole = [metric for metric in self.metrics if metric.name == name and metric.slice is None]
        chosen = exact or (whole if split is None and part is None else [])
        return chosen[0] if chosen else None


class DraftStatus(StrEnum):
    """Where a registration stands."""

    OPEN = "open"
    READY = "ready"
    CANCELLED = "cancelled"


class DraftFile(Struct, frozen=True, kw_only=True):
    """One announced file of a draft. `offset` is how many bytes of it have arrived, `present` that all of
    them have.
    """

    path: str
    size_bytes: int
    digest: Digest
    media_type: str = "application/octet-stream"
    offset: int = 0
    present: bool = False


class Bump(StrEnum):
    """How a draft asks for its version number."""

    AUTO = "auto"
    MAJOR = "major"
    MINOR = "minor"
    PATCH = "patch"


class DraftSpec(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a caller announces before sending bytes: the files by digest, and everything that is to be known
    of them.
    """

    files: tuple[FileEntry, ...]
    semver: str | None = None
    bump: Bump = Bump.AUTO
    override_semver: str | None = None
    parent: str | None = None
    signature: Signature | None = None
    metrics: tuple[Metric, ...] = ()
    params: dict[str, str] = {}
    metadata: dict[str, Any] = {}
    provenance: Provenance | None = None
    description: str = ""
    tags: dict[str, str] = {}


class Draft(Struct, frozen=True, kw_only=True):
    """A registration under way; only its author sees it, and it is swept when nothing arrives for the grace
    period.
    """

    id: str
    model: ModelName
    status: DraftStatus
    spec: DraftSpec
    files: tuple[DraftFile, ...]
    created_at: datetime
    created_by: str
    touched_at: datetime
    number: int | None = None


class ModelChange(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A change to a model's or version's labels; what is left out stays."""

    description: str | UnsetType = UNSET
    owner: str | UnsetType = UNSET
    set_tags: dict[str, str] = {}
    delete_tags: tuple[str, ...] = ()
