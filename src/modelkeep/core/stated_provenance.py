"""One provenance out of two places in which it may be stated: beside the metadata, and inside it (`code`,
`data`, `environment`).

What a shape may hold is `provenance`'s part and `metadata_schema`'s.
"""

import re
from collections.abc import Mapping
from typing import Any

from msgspec.structs import replace

from modelkeep.core import errors
from modelkeep.core.metadata_schema import View
from modelkeep.core.provenance import (
    SOURCE_SHOWN,
    Code,
    DatasetSnapshot,
    EnvironmentLock,
    Provenance,
    check_provenance,
    commit_of,
    lock_of,
)
from modelkeep.core.values import Digest

_WHOLE_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}", re.ASCII)
_DIGEST = re.compile(r"[a-z0-9]+:[0-9a-f]{32,128}", re.ASCII)
"""What the metadata takes for a digest; the client of MLflow makes shorter ones."""
_SHA256 = re.compile(r"sha256:[0-9a-f]{64}", re.ASCII)


def one_provenance(beside: Provenance | None, inside: View | None) -> Provenance | None:
    """The provenance that is stated beside the metadata, checked and completed by what stands inside it. Code
    that was only found gives way to code that is stated.

    Raises:
        InvalidMetadata: the two name another commit or another environment lock.
        Invalid, LimitExceeded, InvalidReference: something cannot be kept.
    """
    checked = check_provenance(beside) if beside is not None else Provenance()
    within = check_provenance(_of_metadata(inside)) if inside is not None else Provenance()
    if checked.code is not None and checked.code.detected and within.code is not None:
        checked = replace(checked, code=None)
    for name, one, other in (
        ("commit", commit_of(checked), commit_of(within)),
        ("environment lock", lock_of(checked), lock_of(within)),
    ):
        if one is not None and other is not None and one != other:
            raise errors.InvalidMetadata(
                f"The {name} in the metadata is another one than the {name} beside it; state one of them.",
                field="provenance",
            )
    whole = replace(
        checked,
        code=checked.code or within.code,
        datasets=checked.datasets or within.datasets,
        environment=checked.environment or within.environment,
    )
    return whole if whole != Provenance() else None


def with_ingredients(document: Mapping[str, Any], stated: Provenance | None) -> dict[str, Any]:
    """A metadata document completed by the ingredients that are known beside it, so that it can be registered
    with again. What the document itself says stays, and what metadata cannot say is left out."""
    whole = dict(document)
    if stated is None:
        return whole
    code, lock = stated.code, lock_of(stated)
    if "code" not in whole and code is not None and code.commit is not None:
        dirty = {"dirty": True} if code.dirty else {}
        repository = {"repository": code.repository} if code.repository is not None else {}
        whole["code"] = {"commit": code.commit, **repository, **dirty}
    datasets = [_written(dataset) for dataset in stated.datasets if _DIGEST.fullmatch(dataset.digest)]
    if "data" not in whole and datasets:
        whole["data"] = {"datasets": datasets}
    if lock is not None:
        environment = whole.get("environment") or {}
        whole["environment"] = {"lock_digest": lock, **environment}
    return whole


def _written(dataset: DatasetSnapshot) -> dict[str, str]:
    said = {
        "name": dataset.name or "data",
        "digest": dataset.digest,
        "uri": dataset.source,
        "role": dataset.role,
    }
    return {key: text for key, text in said.items() if text}


def _of_metadata(view: View) -> Provenance:
    """What the metadata says: whole commits alone, since a short one may be another one's tomorrow, and data
    that has a digest."""
    code, environment = view.code, view.environment
    commit = code.commit if code is not None and _WHOLE_COMMIT.fullmatch(code.commit or "") else None
    lock = environment.lock_digest if environment is not None else None
    datasets = (view.data.datasets if view.data is not None else None) or ()
    return Provenance(
        code=Code(commit=commit, dirty=bool(code.dirty)) if code is not None and commit is not None else None,
        datasets=tuple(
            DatasetSnapshot(
                name=dataset.name,
                digest=dataset.digest,
                source=(dataset.uri or "")[:SOURCE_SHOWN],
                role=dataset.role or "",
            )
            for dataset in datasets
            if dataset.digest is not None
        ),
        environment=EnvironmentLock(kind="stated", digest=Digest(lock))
        if lock is not None and _SHA256.fullmatch(lock)
        else None,
    )
