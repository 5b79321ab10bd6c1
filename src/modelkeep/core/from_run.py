"""What a run and its logged model say of the files that they left behind: measurements, parameters,
provenance.

A run keeps more than a version can: numbers that are not finite, texts with control characters, thousands of
metrics. Whatever cannot be kept is left out, with one sentence for each kind, and never stands in the way of
a registration. Nothing is loaded here, and what the version's number will be is decided elsewhere.
"""

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from modelkeep.core import catalog, codec, environment_lock, errors, mlmodel, provenance, tracking, values
from modelkeep.core.catalog import FileEntry, ModelVersion
from modelkeep.core.provenance import Code, DatasetSnapshot, EnvironmentLock, Project, Provenance, Script
from modelkeep.core.signature import Signature
from modelkeep.core.tracking import LoggedModel, Run, Tag
from modelkeep.core.values import Digest

NAMES_SHOWN = 5
"""Names that a sentence lists."""

COMMIT_TAG = "mlflow.source.git.commit"
BRANCH_TAG = "mlflow.source.git.branch"
REPOSITORY_TAG = "mlflow.source.git.repoURL"
DIRTY_TAG = "mlflow.source.git.dirty"
SOURCE_NAME_TAG = "mlflow.source.name"
SOURCE_TYPE_TAG = "mlflow.source.type"
ENTRY_POINT_TAG = "mlflow.project.entryPoint"
BACKEND_TAG = "mlflow.project.backend"

_MOST_MS = 253_402_300_799_000
"""The last second of the year 9999, in ms since 1970."""


class Known(NamedTuple):
    """Everything that is known of some files, fit to be kept; `notes` are sentences about what is not."""

    signature: Signature | None
    metrics: tuple[catalog.Metric, ...]
    params: dict[str, str]
    metadata: dict[str, Any]
    provenance: Provenance
    notes: tuple[str, ...]


class Origins(NamedTuple):
    """The run and the logged model that files are of, by their ids."""

    run_id: str | None
    logged_model_id: str | None


def origins(run: Run | None, logged: LoggedModel | None, version: ModelVersion | None) -> Origins:
    """Where files come from; a copy of a version comes from where the version did."""
    if version is not None:
        stated = version.provenance or Provenance()
        return Origins(stated.run_id, stated.logged_model_id)
    if logged is not None:
        return Origins(logged.source_run_id, logged.model_id)
    return Origins(run.info.run_id if run is not None else None, None)


def read_known(run: Run | None, logged: LoggedModel | None, documents: Mapping[str, bytes]) -> Known:
    """What is known of the files of a run or logged model.

    A logged model's own metrics and params stand for it; where it has none, those of its run. What a run has
    measured is also its only model's.

    Args:
        documents: contents of the `MLmodel` file and of the lists of packages, as far as there are some.
    """
    notes: list[str] = []
    file = mlmodel.ModelFile()
    if mlmodel.MLMODEL in documents:
        file = mlmodel.read_mlmodel(documents[mlmodel.MLMODEL])
        notes += file.notes
    points, params = _measured(run, logged)
    lock = _lock(documents, notes)
    metadata = dict(file.metadata)
    if lock is not None:
        metadata["environment"] = {**metadata.get("environment", {}), "lock_digest": lock.digest}
    trained = _training(run)
    if trained:
        metadata["training"] = trained
    return Known(
        signature=file.signature,
        metrics=_metrics(points, notes),
        params=_params(params, notes),
        metadata=metadata,
        provenance=_provenance(run, logged, lock, notes),
        notes=tuple(notes),
    )


def _measured(
    run: Run | None, logged: LoggedModel | None
) -> tuple[tuple[tracking.Metric, ...], tuple[Tag, ...]]:
    """The points and params that stand for the files."""
    if run is None or logged is None:
        source = logged or run
        return (source.metrics, source.params) if source is not None else ((), ())
    if [(made.model_id, made.step) for made in run.model_outputs] == [(logged.model_id, 0)]:
        # MLflow's client gives a model the points of step 0 alone: of a loss per epoch, the first. What the
        # run has measured later, or after the model was logged, is of this model all the same.
        return (*run.metrics, *logged.metrics), (*run.params, *logged.params)
    return logged.metrics or run.metrics, logged.params or run.params


def text_entry(path: str, text: str) -> FileEntry:
    """The entry of a text that is a version's file."""
    data = text.encode()
    digest = Digest(f"sha256:{hashlib.sha256(data).hexdigest()}")
    return FileEntry(path=path, size_bytes=len(data), digest=digest, media_type="text/plain")


# ---------------------------------------------------------------------------------------- metrics and params


def _metrics(points: Sequence[tracking.Metric], notes: list[str]) -> tuple[catalog.Metric, ...]:
    """Of each metric its latest point, the one with the highest (step, timestamp), where it is a number."""
    latest: dict[str, tracking.Metric] = {}
    for point in points:
        known = latest.get(point.key)
        if known is None or (point.step, point.timestamp) >= (known.step, known.timestamp):
            latest[point.key] = point
    finite = [point for point in latest.values() if math.isfinite(point.value)]
    _note(
        notes,
        "not a finite number",
        "metric",
        [k for k, p in latest.items() if not math.isfinite(p.value)],
    )
    finite.sort(key=lambda point: point.key)
    kept = [_metric(point) for point in finite if _is_fit(point.key, values.TAG_KEY_MAX)]
    _note(
        notes,
        "too long, or with control characters",
        "metric",
        [p.key for p in finite if not _is_fit(p.key, values.TAG_KEY_MAX)],
    )
    _note(
        notes,
        "a version has no more of them",
        "metric",
        [metric.name for metric in kept[values.METRICS_MAX :]],
    )
    return catalog.check_metrics(kept[: values.METRICS_MAX])


def _metric(point: tracking.Metric) -> catalog.Metric:
    named = point.dataset_name
    dataset = named if named is not None and _is_fit(named, provenance.SHORT_MAX) else None
    return catalog.Metric(name=point.key, value=point.value, dataset=dataset)


def _params(params: Iterable[Tag], notes: list[str]) -> dict[str, str]:
    kept: dict[str, str] = {}
    unfit: list[str] = []
    for param in params:
        if _is_fit(param.key, values.TAG_KEY_MAX) and _is_fit(
            param.value, values.PARAM_VALUE_MAX, empty=True
        ):
            kept[param.key] = param.value
        else:
            unfit.append(param.key)
    _note(notes, "too long, or with control characters", "parameter", unfit)
    names = sorted(kept)
    _note(notes, "a version has no more of them", "parameter", names[values.PARAMS_MAX :])
    return {name: kept[name] for name in names[: values.PARAMS_MAX]}


def _is_fit(text: str, maximum: int, *, empty: bool = False) -> bool:
    try:
        values.check_text(text, "text", maximum=maximum, required=not empty)
        text.encode()
    except (errors.Invalid, UnicodeEncodeError):
        return False
    return True


def _note(notes: list[str], why: str, what: str, names: Sequence[str]) -> None:
    if not names:
        return
    listed = ", ".join(values.printable(name)[:60] for name in names[:NAMES_SHOWN])
    more = f" and {len(names) - NAMES_SHOWN:,} more" if len(names) > NAMES_SHOWN else ""
    are = f"{what} {listed} was" if len(names) == 1 else f"{what}s {listed}{more} were"
    notes.append(f"The {are} left out: {why}.")


def _training(run: Run | None) -> dict[str, Any]:
    """When it was trained, and how long it took, as the run claims."""
    if run is None or run.info.start_time is None or not 0 <= run.info.start_time <= _MOST_MS:
        return {}
    start = run.info.start_time
    trained: dict[str, Any] = {"date": codec.format_time(datetime.fromtimestamp(start / 1000, UTC))}
    if run.info.end_time is not None and run.info.end_time >= start:
        trained["duration_s"] = (run.info.end_time - start) / 1000
    return trained


# ------------------------------------------------------------------------------------------------- provenance


def _provenance(
    run: Run | None, logged: LoggedModel | None, lock: EnvironmentLock | None, notes: list[str]
) -> Provenance:
    # A model may be logged without a run: then the client notes the code in the model's own tags.
    given = (*(logged.tags if logged is not None else ()), *(run.tags if run is not None else ()))
    tags = {tag.key: tag.value for tag in given}
    kind = _short(tags.get(SOURCE_TYPE_TAG))
    name = _short(tags.get(SOURCE_NAME_TAG), provenance.ADDRESS_MAX)
    run_id, logged_model_id = origins(run, logged, None)
    stated = Provenance(
        run_id=run_id,
        logged_model_id=logged_model_id,
        code=_code(tags, notes),
        project=Project(
            uri=name if kind == "PROJECT" else None,
            entry_point=_short(tags.get(ENTRY_POINT_TAG)),
            backend=_short(tags.get(BACKEND_TAG)),
        ),
        script=Script(name=name, kind=kind),
        user=_short(run.info.user_id if run is not None else tags.get(tracking.USER_TAG)),
        datasets=_datasets(run),
        environment=lock,
    )
    return provenance.check_provenance(stated)


def _code(tags: Mapping[str, str], notes: list[str]) -> Code | None:
    code = Code(
        commit=tags.get(COMMIT_TAG) or None,
        branch=_short(tags.get(BRANCH_TAG)),
        repository=_short(tags.get(REPOSITORY_TAG), provenance.ADDRESS_MAX),
        dirty=tags.get(DIRTY_TAG, "").lower() == "true",
    )
    try:
        provenance.check_provenance(Provenance(code=code))
    except errors.Invalid:
        notes.append("The commit that the run names is none, and was left out.")
        return Code(branch=code.branch, repository=code.repository)
    return code


def _datasets(run: Run | None) -> tuple[DatasetSnapshot, ...]:
    if run is None:
        return ()
    found = {
        DatasetSnapshot(
            name=_short(given.dataset.name) or "",
            digest=_short(given.dataset.digest) or "",
            source=_short(given.dataset.source, provenance.SOURCE_SHOWN) or "",
            role=_short(next((t.value for t in given.tags if t.key == tracking.CONTEXT_TAG), None)) or "",
        )
        for given in run.datasets
        if given.dataset.digest.strip()
    }
    return tuple(sorted(found, key=lambda d: (d.role, d.name, d.digest)))[: provenance.DATASETS_MAX]


def _short(text: str | None, maximum: int = provenance.SHORT_MAX) -> str | None:
    """A run's text as far as it is kept: shown characters, and not more than fit."""
    return values.printable(text.encode(errors="replace").decode())[:maximum] or None if text else None


def _lock(documents: Mapping[str, bytes], notes: list[str]) -> EnvironmentLock | None:
    try:
        return environment_lock.read_lock(documents)
    except errors.Invalid as problem:
        notes.append(f"The list of packages was left out: {values.printable(problem.message)[:200]}")
        return None
