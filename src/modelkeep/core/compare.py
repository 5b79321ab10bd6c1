"""Versions side by side: many in a table, two in a diff, and the best of them with the reasons.

Pure functions over versions that somebody has loaded. Versions always stand in the order of semver, never of
text, and every difference of a metric says whether it is better, because which way is better differs from
metric to metric. What must hold before a version is promoted is a policy's business, not this file's.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from difflib import get_close_matches
from enum import StrEnum
from typing import Any

from msgspec import Struct

from modelkeep.core import bump, errors, semver, signature, values
from modelkeep.core.bump import DEFAULT_RULES, RuleBook
from modelkeep.core.catalog import Direction, FileEntry, Metric, ModelVersion, guess_direction, metric_label
from modelkeep.core.provenance import described, ingredients
from modelkeep.core.registration import facts_of, stated_by
from modelkeep.core.values import Digest

# Limits of what a comparison shows; each with the reason for its size.
COMPARED_MAX = 200
"""Versions of one comparison: wider tables are not read, they are searched."""
RANKED_MAX = 100
"""Versions that a ranking lists, and as many that it says were skipped; the rest are counted."""
CHANGES_MAX = 1_000
"""Differences of one kind that a diff lists; the rest are counted."""
NAMES_SHOWN = 8
"""Metric names that an error lists."""


class Trend(StrEnum):
    """What a difference of a metric means."""

    BETTER = "better"
    WORSE = "worse"
    SAME = "same"


class Compared(Struct, frozen=True, kw_only=True):
    """A version as the head of a column."""

    reference: str
    number: int
    semver: str
    digest: Digest
    size_bytes: int
    stage: str
    aliases: tuple[str, ...] = ()
    tombstone: str | None = None
    yanked: str | None = None
    created_at: datetime
    created_by: str


class MetricCell(Struct, frozen=True, kw_only=True):
    """One metric of one version. `delta` is from the nearest version to the left that has it, `share` the
    same as a share of that version's value, where that is not 0."""

    value: float | None = None
    delta: float | None = None
    share: float | None = None
    trend: Trend | None = None


class MetricRow(Struct, frozen=True, kw_only=True):
    """One metric through all versions; `best` has the numbers of those that no other beats."""

    name: str
    direction: Direction
    unit: str | None = None
    cells: tuple[MetricCell, ...]
    best: tuple[int, ...]


class ParamRow(Struct, frozen=True, kw_only=True):
    """One parameter through all versions; None where it is not stated."""

    name: str
    values: tuple[str | None, ...]


class IngredientRow(Struct, frozen=True, kw_only=True):
    """One ingredient through all versions (the code, some data, the environment) as a text; None where it is
    unknown."""

    name: str
    values: tuple[str | None, ...]


class Comparison(Struct, frozen=True, kw_only=True):
    """Versions of a model from the lowest to the highest; each row has one entry for each of them.

    `params` and `ingredients` have only those that differ. `left_out` is how many lower versions the limit
    left out.
    """

    model: str
    versions: tuple[Compared, ...]
    metrics: tuple[MetricRow, ...]
    params: tuple[ParamRow, ...]
    ingredients: tuple[IngredientRow, ...] = ()
    left_out: int = 0


def compare(
    versions: Iterable[ModelVersion], metrics: Sequence[str] | None = None, *, left_out: int = 0
) -> Comparison:
    """Set versions of one model side by side.

    Args:
        metrics: which, by label (`auc` or `auc@test`) and in this order; None is all of them, by name.

    Raises:
        Invalid: no version.
        MetricNotFound: none of the versions has a metric of that name.
    """
    ordered = in_order(versions)
    if not ordered:
        raise errors.Invalid("There is no version to compare; register one first.", field="refs")
    tables = [{metric.label: metric for metric in version.metrics} for version in ordered]
    every = {label: metric for table in tables for label, metric in table.items()}
    names = sorted(every) if metrics is None else [_named(wanted, every) for wanted in dict.fromkeys(metrics)]
    keys = sorted({key for version in ordered for key in version.params})
    params = [ParamRow(name=k, values=tuple(v.params.get(k) for v in ordered)) for k in keys]
    return Comparison(
        model=str(ordered[0].model),
        versions=tuple(_head(version) for version in ordered),
        metrics=tuple(_row(name, ordered, [table.get(name) for table in tables]) for name in names),
        params=tuple(row for row in params if len(set(row.values)) > 1),
        ingredients=tuple(row for row in _ingredients(ordered) if len(set(row.values)) > 1),
        left_out=left_out,
    )


def _ingredients(versions: Sequence[ModelVersion]) -> list[IngredientRow]:
    listed = [ingredients(version.provenance) for version in versions]
    names = dict.fromkeys(name for found in listed for name in found)
    return [IngredientRow(name=name, values=tuple(found.get(name) for found in listed)) for name in names]


def in_order(versions: Iterable[ModelVersion]) -> list[ModelVersion]:
    """Each version once, from the lowest semver to the highest."""
    unique = {version.number: version for version in versions}
    return sorted(unique.values(), key=lambda version: semver.sort_key(semver.parse(version.semver)))


def _head(version: ModelVersion) -> Compared:
    return Compared(
        reference=version.reference,
        number=version.number,
        semver=version.semver,
        digest=version.digest,
        size_bytes=version.size_bytes,
        stage=version.stage,
        aliases=version.aliases,
        tombstone=version.tombstone,
        yanked=version.yanked,
        created_at=version.created_at,
        created_by=version.created_by,
    )


def _named(wanted: str, every: Mapping[str, Metric]) -> str:
    """The label of a metric: as it is, or with the only split that it was measured on.

    Raises:
        MetricNotFound: there is none, or there are several splits to choose from.
    """
    if wanted in every:
        return wanted
    splits = sorted(label for label, metric in every.items() if metric.name == wanted and not metric.slice)
    if len(splits) == 1:
        return splits[0]
    raise _unknown(wanted, splits or sorted(every), several=bool(splits))


def _unknown(wanted: str, names: Sequence[str], *, several: bool = False) -> errors.MetricNotFound:
    shown = values.printable(wanted)[:80]
    listed = ", ".join(names[:NAMES_SHOWN]) + (" and others" if len(names) > NAMES_SHOWN else "")
    if several:
        return errors.MetricNotFound(f"'{shown}' was measured on several splits; name one of {listed}.")
    if not names:
        return errors.MetricNotFound(
            "None of these versions has a metric; register them with --metric NAME=VALUE."
        )
    near = get_close_matches(wanted[:100], names, n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    return errors.MetricNotFound(
        f"None of these versions has the metric '{shown}'; there are {listed}.{hint}",
        metrics=list(names[:100]),
    )


def _row(name: str, versions: Sequence[ModelVersion], metrics: Sequence[Metric | None]) -> MetricRow:
    present = [metric for metric in metrics if metric is not None]
    direction = _direction(present)
    cells: list[MetricCell] = []
    before: float | None = None
    for metric in metrics:
        cells.append(_cell(before, metric.value if metric else None, direction))
        before = metric.value if metric else before
    top = _top([metric.value for metric in present], direction)
    best = [v.number for v, m in zip(versions, metrics, strict=True) if m is not None and m.value == top]
    return MetricRow(
        name=name,
        direction=direction,
        unit=next((metric.unit for metric in reversed(present) if metric.unit), None),
        cells=tuple(cells),
        best=tuple(best),
    )


def _direction(metrics: Sequence[Metric]) -> Direction:
    """What the highest version that says so says, or what the name suggests."""
    stated = [metric.direction for metric in metrics if metric.direction is not None]
    return stated[-1] if stated else guess_direction(metrics[-1].name)


def _top(numbers: Sequence[float], direction: Direction) -> float | None:
    if not numbers:
        return None
    return max(numbers) if direction is Direction.HIGHER else min(numbers)


def _cell(before: float | None, value: float | None, direction: Direction) -> MetricCell:
    if value is None or before is None:
        return MetricCell(value=value)
    delta = value - before
    if delta == 0:
        trend = Trend.SAME
    else:
        trend = Trend.BETTER if (delta > 0) == (direction is Direction.HIGHER) else Trend.WORSE
    return MetricCell(value=value, delta=delta, share=delta / abs(before) if before else None, trend=trend)


# ------------------------------------------------------------------------------------------------------- best


class Ranked(Struct, frozen=True, kw_only=True):
    """A version with the value it is ranked by; equal values have equal ranks, from 1."""

    rank: int
    reference: str
    number: int
    semver: str
    stage: str
    value: float


class Skipped(Struct, frozen=True, kw_only=True):
    """A version that could not be ranked, and why."""

    reference: str
    number: int
    reason: str


class Best(Struct, frozen=True, kw_only=True):
    """The best version by a metric, and everything that was decided on the way to it.

    `ties` are the numbers of other versions with the same value; `reasons` are sentences; `considered` counts
    all versions that were looked at, `skipped_count` those of them that could not be ranked.
    """

    model: str
    metric: str
    split: str | None
    slice: str | None = None
    direction: Direction
    best: ModelVersion
    value: float
    ties: tuple[int, ...]
    ranking: tuple[Ranked, ...]
    skipped: tuple[Skipped, ...]
    considered: int
    skipped_count: int
    reasons: tuple[str, ...]

    @property
    def label(self) -> str:
        """The metric that the values are of, with its split and slice."""
        return metric_label(self.metric, self.split, self.slice)


def best(
    versions: Iterable[ModelVersion],
    metric: str,
    *,
    direction: Direction | None = None,
    split: str | None = None,
) -> Best:
    """The best of some versions of a model by one metric, by its name or its whole label.

    Versions that were taken back or yanked, and those without the metric, are skipped and named. Without
    `split`, the split that most of the versions have is compared, because numbers of different splits do not
    compare. Of equal ones the highest semver is given.

    Raises:
        MetricNotFound: no version that may be chosen has the metric; the message says which there are.
        InvalidMetric: the versions themselves disagree about which way is better, and nobody said.
    """
    ordered = in_order(versions)
    standing = [version for version in ordered if version.withdrawn is None]
    measured = {v.number: m for v in standing if (m := v.metric(metric, split)) is not None}
    if not measured:
        every = sorted({m.label for version in standing for m in version.metrics if m.slice is None})
        raise _unknown(metric_label(metric, split), every)
    reasons: list[str] = []
    asked = next(iter(measured.values()))
    metric, part = asked.name, asked.slice
    if split is None:
        split = _common_split(measured.values(), reasons)
    rated = {number: m for number, m in measured.items() if m.split == split}
    way = direction or _agreed(metric, list(rated.values()), reasons)
    top = _top([m.value for m in rated.values()], way)
    assert top is not None, "something was measured"
    ranking = _ranking([v for v in ordered if v.number in rated], rated, way)
    winner = next(v for v in ordered if v.number == ranking[0].number)
    ties = tuple(entry.number for entry in ranking[1:] if entry.value == top)
    skipped = [_skip(version, metric, split, part) for version in ordered if version.number not in rated]
    ways = "highest" if way is Direction.HIGHER else "lowest"
    of = f"{len(rated)} {'versions' if len(rated) > 1 else 'version'}"
    label = metric_label(metric, split, part)
    reasons.insert(0, f"{winner.reference} has the {ways} {label} of {of}: {top:g}.")
    if ties:
        reasons.append(
            f"{len(ties)} other {'versions have' if len(ties) > 1 else 'version has'} the same value; "
            f"{winner.semver} is the highest of them."
        )
    if skipped:
        reasons.append(f"{len(skipped)} of {len(ordered)} versions were skipped.")
    return Best(
        model=str(winner.model),
        metric=metric,
        split=split,
        slice=part,
        direction=way,
        best=winner,
        value=top,
        ties=ties,
        ranking=tuple(ranking[:RANKED_MAX]),
        skipped=tuple(skipped[:RANKED_MAX]),
        considered=len(ordered),
        skipped_count=len(skipped),
        reasons=tuple(reasons),
    )


def _common_split(metrics: Iterable[Metric], reasons: list[str]) -> str | None:
    """The split that most have; of equally frequent ones the first by name."""
    counts = Counter(metric.split for metric in metrics)
    if len(counts) == 1:
        return next(iter(counts))
    chosen = min(counts, key=lambda split: (-counts[split], split or ""))
    others = ", ".join(sorted(split or "no split" for split in counts if split != chosen))
    reasons.append(
        f"Values of different splits do not compare: most have {chosen or 'no split'}, so {others} was left "
        "out; name one with --split."
    )
    return chosen


def _agreed(name: str, metrics: Sequence[Metric], reasons: list[str]) -> Direction:
    stated = {metric.direction for metric in metrics if metric.direction is not None}
    if len(stated) > 1:
        raise errors.InvalidMetric(
            f"Some versions say that a higher {name} is better, others a lower one; name the direction.",
            field="direction",
        )
    if stated:
        return stated.pop()
    guessed = guess_direction(metrics[0].name)
    reasons.append(f"Nobody stated which way {name} is better; its name suggests {guessed}.")
    return guessed


def _ranking(versions: Sequence[ModelVersion], rated: Mapping[int, Metric], way: Direction) -> list[Ranked]:
    """From the best value to the worst; equal ones from the highest semver to the lowest."""
    sign = -1.0 if way is Direction.HIGHER else 1.0
    downwards = list(reversed(versions))
    downwards.sort(key=lambda version: sign * rated[version.number].value)  # stable: higher versions first
    ranking: list[Ranked] = []
    for place, version in enumerate(downwards, 1):
        value = rated[version.number].value
        equal = ranking and ranking[-1].value == value
        ranking.append(
            Ranked(
                rank=ranking[-1].rank if equal else place,
                reference=version.reference,
                number=version.number,
                semver=version.semver,
                stage=version.stage,
                value=value,
            )
        )
    return ranking


def _skip(version: ModelVersion, metric: str, split: str | None, part: str | None) -> Skipped:
    name = metric_label(metric, None, part)
    others = sorted({m.split or "no split" for m in version.metrics if (m.name, m.slice) == (metric, part)})
    if version.withdrawn is not None:
        reason = version.withdrawn
    elif others:
        reason = f"its {name} was measured on {', '.join(others)}, not on {split or 'no split'}"
    else:
        reason = f"it has no {name}"
    return Skipped(reference=version.reference, number=version.number, reason=reason)


# ------------------------------------------------------------------------------------------------------- diff


class FileChange(Struct, frozen=True, kw_only=True):
    """A file that only one version has (the other side is None), or that has other bytes."""

    path: str
    before: FileEntry | None = None
    after: FileEntry | None = None


class MetricChange(Struct, frozen=True, kw_only=True):
    """A metric in both versions, with what the difference means; None where it was not measured."""

    name: str
    direction: Direction
    before: float | None = None
    after: float | None = None
    delta: float | None = None
    share: float | None = None
    trend: Trend | None = None


class ValueChange(Struct, frozen=True, kw_only=True):
    """A parameter or a place in the metadata with another value; None where it is not stated."""

    name: str
    before: Any = None
    after: Any = None


class VersionDiff(Struct, frozen=True, kw_only=True):
    """What changed from version `a` to version `b`.

    `bump` is what the default rules say of the change, with their reasons; `unknown` are facts that could not
    be compared. `same_identity`: both were made of the same code, data, parameters and environment, and all
    of these are known. `metrics` has all of them, the other lists what differs; `left_out` counts what the
    limits cut off.
    """

    a: Compared
    b: Compared
    same_content: bool
    files: tuple[FileChange, ...]
    files_unchanged: int
    signature: tuple[signature.Change, ...]
    metrics: tuple[MetricChange, ...]
    params: tuple[ValueChange, ...]
    metadata: tuple[ValueChange, ...]
    provenance: tuple[ValueChange, ...] = ()
    same_identity: bool = False
    bump: semver.Bump
    reasons: tuple[str, ...]
    unknown: tuple[str, ...]
    left_out: int = 0


def diff(a: ModelVersion, b: ModelVersion, rules: RuleBook = DEFAULT_RULES) -> VersionDiff:
    """Set two versions against each other; they may be of different models."""
    verdict = bump.infer(facts_of(stated_by(a, a.digest)), facts_of(stated_by(b, b.digest)), rules)
    files, unchanged = _files(a, b)
    params = _changes(a.params, b.params)
    metadata = _changes(_flat(a.metadata), _flat(b.metadata))
    origin = _changes(described(a.provenance), described(b.provenance))
    metrics = _metrics(a, b)
    lists = (files, params, metadata, origin, metrics)
    return VersionDiff(
        a=_head(a),
        b=_head(b),
        same_content=a.digest == b.digest,
        files=tuple(files[:CHANGES_MAX]),
        files_unchanged=unchanged,
        signature=_signatures(a, b),
        metrics=tuple(metrics[:CHANGES_MAX]),
        params=tuple(params[:CHANGES_MAX]),
        metadata=tuple(metadata[:CHANGES_MAX]),
        provenance=tuple(origin[:CHANGES_MAX]),
        same_identity=a.identity is not None and a.identity.whole and a.identity == b.identity,
        bump=verdict.bump,
        reasons=verdict.reasons,
        unknown=verdict.unknown,
        left_out=sum(max(0, len(entries) - CHANGES_MAX) for entries in lists),
    )


def _files(a: ModelVersion, b: ModelVersion) -> tuple[list[FileChange], int]:
    before, after = ({entry.path: entry for entry in version.files} for version in (a, b))
    changed = [
        FileChange(path=path, before=before.get(path), after=after.get(path))
        for path in sorted(before.keys() | after.keys())
        if before.get(path) != after.get(path)
    ]
    return changed, len(before.keys() | after.keys()) - len(changed)


def _signatures(a: ModelVersion, b: ModelVersion) -> tuple[signature.Change, ...]:
    if a.signature is None or b.signature is None:
        return ()
    return tuple(signature.compare(a.signature, b.signature))


def _metrics(a: ModelVersion, b: ModelVersion) -> list[MetricChange]:
    before, after = ({metric.label: metric for metric in version.metrics} for version in (a, b))
    found: list[MetricChange] = []
    for name in sorted(before.keys() | after.keys()):
        old, new = before.get(name), after.get(name)
        direction = _direction([metric for metric in (old, new) if metric is not None])
        cell = _cell(old.value if old else None, new.value if new else None, direction)
        found.append(
            MetricChange(
                name=name,
                direction=direction,
                before=old.value if old else None,
                after=cell.value,
                delta=cell.delta,
                share=cell.share,
                trend=cell.trend,
            )
        )
    return found


def _changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[ValueChange]:
    names = sorted(before.keys() | after.keys())
    return [
        ValueChange(name=name, before=before.get(name), after=after.get(name))
        for name in names
        if before.get(name) != after.get(name) or (name in before) != (name in after)
    ]


_SHOWN_ELSEWHERE = frozenset({"schema", "signature"})


def _flat(document: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """The leaves of a document by their paths; lists stay whole, since their places mean nothing."""
    found: dict[str, Any] = {}
    for key, value in document.items():
        here = f"{path}.{key}" if path else key
        if here in _SHOWN_ELSEWHERE or here == "performance.metrics":
            continue
        if isinstance(value, dict) and value:
            found |= _flat(value, here)
        else:
            found[here] = value
    return found
