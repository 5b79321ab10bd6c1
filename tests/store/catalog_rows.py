"""Registries made by chance, straight into the store, and the same as plain facts for the filter's own
definition.

The pools are small, so that filters meet what they ask for, and odd, so that what is special to a database is
met too.
"""

import hashlib
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

from modelkeep.core import registration, semver
from modelkeep.core.catalog import DEFAULT_STAGES, AliasSpec, FileEntry, Metric, ModelVersion, RegisteredModel
from modelkeep.core.provenance import Code, Provenance, identity
from modelkeep.core.values import Digest, ModelName
from modelkeep.store import catalog, models
from modelkeep.store.schema import occupancy
from modelkeep.store.statements import insert
from modelkeep.store.transaction import Transaction
from modelkeep.store.versions import searched_by

START = datetime(2026, 1, 25, 14, 3, tzinfo=UTC)
TEXTS = [
    "",
    "risk",
    "Risk",
    "RISK 100%",
    "a_b",
    "a*b",
    "a?b",
    "[ab]",
    "back\\slash",
    "é",
    "É",
    "漢字",
    "x\ny",
    "z" * 150,
]
FREE = [*TEXTS, "0", "1", "1.0", "-2.5", "1e3", "0x10", "nan", " 1", "true", "TRUE", "false"]
KEYS = ["a", "b", "cost centre"]
NUMBERS = [-2.5, -1.0, 0.0, 0.5, 1.0, 1e3, 1e300]
SEMVERS = [
    "0.9.0",
    "1.0.0-alpha",
    "1.0.0-rc.1",
    "1.0.0",
    "1.2.0",
    "1.10.0",
    "2.0.0-rc.1",
    "2.0.0+b5",
    "10.0.0",
]
ALIASES = ["champion", "challenger", "old"]
STAGES = ["staging", "production", "archived"]
COMMITS = ["a" * 40, "0" * 40]
RUNS = ["run-1", "Run-1"]
SOURCES = ["runs:/run-1/model", "models:/churn/1"]
IDENTITIES: list[str] = [
    found.digest
    for params in ({}, {"a": "1"})
    if (found := identity(Provenance(code=Code(commit="a" * 40)), params)) is not None
]
OWNERS = ["ann", "Ann", "team-x"]
NAMES = [
    ModelName("default", "churn"),
    ModelName("default", "Fraud"),
    ModelName("lab", "churn"),
    ModelName("x", "y"),
]


def digest_of(text: str) -> Digest:
    """A digest that stands for some content."""
    return Digest("sha256:" + hashlib.sha256(text.encode()).hexdigest())


def key_of(text: str) -> str:
    """The sort key of a version."""
    return semver.sort_key(semver.parse(text))


def _some(random: Random, keys: list[str], values: list[Any]) -> dict[str, Any]:
    return {key: random.choice(values) for key in keys if random.random() < 0.6}


def version_of(model: ModelName, number: int, text: str, **more: Any) -> ModelVersion:
    """A version as registration would write it."""
    content = digest_of(f"{model} {number}")
    fields: dict[str, Any] = {
        "id": f"version_{model.project}_{model.name}_{number:06d}",
        "model": model,
        "number": number,
        "semver": text,
        "digest": content,
        "size_bytes": 3,
        "files": (FileEntry(path="model.onnx", size_bytes=3, digest=content),),
        "created_at": START + timedelta(seconds=number),
        "created_by": "ann",
    }
    return ModelVersion(**(fields | more))


def fill(tx: Transaction, seed: int) -> None:
    """Four models with some versions each."""
    random = Random(seed)
    for name in NAMES:
        row = models.add_model(
            tx,
            f"model_{name.project}_{name.name}",
            name,
            description=random.choice(TEXTS),
            owner=random.choice(OWNERS),
            stages=DEFAULT_STAGES,
            tags=_some(random, KEYS, FREE),
            now=START + timedelta(minutes=random.randrange(3)),
            by=random.choice(OWNERS),
        )
        for number, text in enumerate(random.sample(SEMVERS, random.randrange(len(SEMVERS))), 1):
            _add(tx, random, row.id, name, number, text)


def _add(tx: Transaction, random: Random, model_id: str, name: ModelName, number: int, text: str) -> None:
    metrics = [Metric(name=key, value=value) for key, value in _some(random, ["a", "b"], NUMBERS).items()]
    if random.random() < 0.5:
        metrics.append(Metric(name="a", value=random.choice(NUMBERS), split="test"))
    frameworks = [{}, {"model": {"framework": "onnx"}}, {"model": {"framework": "Sklearn"}}]
    version = version_of(
        name,
        number,
        text,
        size_bytes=random.choice([0, 3, 2**53 + 1]),
        metrics=tuple(metrics),
        params=_some(random, KEYS, FREE),
        metadata=random.choice(frameworks),
        **_origin(random),
        description=random.choice(TEXTS),
        tags=_some(random, KEYS, FREE),
        tombstone=random.choice([None, None, "errors"]),
        parent=random.choice([None, 1, 2]),
        created_at=START + timedelta(minutes=random.randrange(3)),
        created_by=random.choice(OWNERS),
    )
    models.take_number(tx, model_id, START)
    catalog.add_version(tx, model_id, version, sequence=number)
    for alias in ALIASES:
        if random.random() < 0.3:
            spec = AliasSpec(alias=alias, number=number, updated_at=START, updated_by="ann")
            models.put_alias(tx, model_id, spec)
    if random.random() < 0.5:
        row = {"model_id": model_id, "number": number, "since_at": "", "since_sequence": 1, "exclusive": 0}
        tx.run(insert(occupancy), stage=random.choice(STAGES), **row)


def _origin(random: Random) -> dict[str, Any]:
    """Where a version comes from, where that is known."""
    commit, run_id, source = (random.choice([None, *some]) for some in (COMMITS, RUNS, SOURCES))
    code = Code(commit=commit) if commit is not None else None
    stated = Provenance(run_id=run_id, source=source, code=code)
    return {
        "provenance": stated if stated != Provenance() else None,
        "identity": identity(stated, random.choice([{}, {"a": "1"}])),
    }


def facts_of_version(version: ModelVersion, model: RegisteredModel) -> dict[str, Any]:
    """What the filter language may ask of a version."""
    return {
        "id": version.id,
        "model": version.model.name,
        "project": version.model.project,
        "owner": model.owner,
        "description": version.description,
        "created_at": version.created_at,
        "created_by": version.created_by,
        "number": version.number,
        "semver": version.semver,
        "stage": version.stage,
        "alias": list(version.aliases),
        "status": "ready" if version.tombstone is None else "tombstoned",
        "parent": version.parent,
        **searched_by(version),
        "digest": version.digest,
        "size_bytes": version.size_bytes,
        "metrics": registration.searchable(version.metrics),
        "params": version.params,
        "tags": version.tags,
    }


def facts_of_model(model: RegisteredModel) -> dict[str, Any]:
    """What the filter language may ask of a model."""
    return {
        "id": model.id,
        "name": model.name.name,
        "project": model.name.project,
        "owner": model.owner,
        "description": model.description,
        "created_at": model.created_at,
        "created_by": model.created_by,
        "updated_at": model.updated_at,
        "tags": model.tags,
    }
