"""Where a version comes from: the run, the code, the data and the environment it was made with, and the
identity that these ingredients give it.

Provenance is stated by whoever registers, or taken from the run that logged the files; it is part of a
version's immutable record. The identity answers another question than the manifest's digest: not "are these
the same bytes" but "was this made of the same things". Its encoding and test vectors stand in
docs/explanation/identity.md. Nothing is read or looked up here, and lock files are read in
`environment_lock`.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping

from msgspec import Struct

from modelkeep.core import errors, values
from modelkeep.core.values import Digest

# Limits of what may be stated; each with the reason for its size.
DATASETS_MAX = 1_000
"""Data snapshots of one version: as many as one call of a run may log."""
SHORT_MAX = 500
"""Characters of a name, a branch, a role, a digest of data: what a line of a table shows."""
ADDRESS_MAX = 2_000
"""Characters of an address or source: as browsers and proxies have it."""
SOURCE_SHOWN = 1_000
"""Characters of a data source that are kept: where data lies may be a whole query, which the run keeps."""

IDENTITY_DOMAIN = b"modelkeep.identity.v1\n"
"""Begins what an identity is taken of, so that it is the digest of nothing else."""

_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}", re.ASCII)
_PLAIN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,255}", re.ASCII)
_USERINFO = re.compile(r"(?<=://)[^/@\s]*@")


class Code(Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """The code that made the version, as its repository names it.

    `dirty`: there were changes that the commit does not have. `detected`: nobody stated it, it was read from
    the checkout in which the registration ran.
    """

    commit: str | None = None
    branch: str | None = None
    repository: str | None = None
    dirty: bool = False
    detected: bool = False


class Project(Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """The packaged project that was run (`mlflow run`), and how."""

    uri: str | None = None
    entry_point: str | None = None
    backend: str | None = None


class Script(Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """What ran: a script's or notebook's name, and of which kind it is."""

    name: str | None = None
    kind: str | None = None


class DatasetSnapshot(Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """Data in one state of it. `role` says what it was for, such as `training`."""

    name: str = ""
    digest: str
    source: str = ""
    role: str = ""


class EnvironmentLock(Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """The packages that it was made with, by the digest of their list in its one normal form.

    `kind` says what the list was read from. `pinned` False: some entry allows several versions, so the list
    does not say what was installed.
    """

    kind: str
    digest: Digest
    pinned: bool = True


class Provenance(Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """Where a version comes from, as far as it is known.

    `source` is the address that it was registered from, and `origin` the version that it is a copy of; both
    are written by the registry alone.
    """

    run_id: str | None = None
    logged_model_id: str | None = None
    source: str | None = None
    origin: str | None = None
    code: Code | None = None
    project: Project | None = None
    script: Script | None = None
    user: str | None = None
    datasets: tuple[DatasetSnapshot, ...] = ()
    environment: EnvironmentLock | None = None


class Identity(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a version was made of, as one digest. `missing` names the ingredients that are unknown: with any,
    the identity is partial and says nothing about another version."""

    digest: Digest
    missing: tuple[str, ...] = ()

    @property
    def whole(self) -> bool:
        """Whether every ingredient is known, so that equal identities mean equal ingredients."""
        return not self.missing


INGREDIENTS = ("code", "data", "params", "environment")
"""What an identity is made of, in the order in which it is encoded."""


# ------------------------------------------------------------------------------------------------------
# checks


def check_provenance(stated: Provenance) -> Provenance:
    """Provenance in its one normal form: commits in lower case, addresses without user and password, data in
    the order of roles, names and digests, each once.

    Raises:
        Invalid, LimitExceeded, InvalidReference: something cannot be kept; names the field.
    """
    if len(stated.datasets) > DATASETS_MAX:
        raise errors.LimitExceeded(
            f"A version has at most {DATASETS_MAX:,} data snapshots.", field="provenance.datasets"
        )
    snapshots = {_check_dataset(dataset) for dataset in stated.datasets}
    lock = stated.environment
    return Provenance(
        run_id=_check_id(stated.run_id, "run_id"),
        logged_model_id=_check_id(stated.logged_model_id, "logged_model_id"),
        source=_text(stated.source, "source", ADDRESS_MAX),
        origin=_text(stated.origin, "origin", values.REFERENCE_MAX),
        code=_check_code(stated.code) if stated.code is not None else None,
        project=_check_project(stated.project) if stated.project is not None else None,
        script=_check_script(stated.script) if stated.script is not None else None,
        user=_text(stated.user, "user", SHORT_MAX),
        datasets=tuple(sorted(snapshots, key=lambda d: (d.role, d.name, d.digest, d.source))),
        environment=_check_lock(lock) if lock is not None else None,
    )


def without_userinfo(address: str) -> str:
    """An address without the user and password that may stand in it: those are secrets, and no place."""
    return _USERINFO.sub("", address)


def _check_code(code: Code) -> Code | None:
    commit = code.commit.strip().lower() if code.commit is not None else None
    if commit is not None and not _COMMIT.fullmatch(commit):
        raise errors.Invalid(
            f"{values.quoted(code.commit or '', 60)} is no commit; write all of its 40 hexadecimal digits.",
            field="provenance.code.commit",
        )
    checked = Code(
        commit=commit,
        branch=_text(code.branch, "code.branch", SHORT_MAX),
        repository=_address(code.repository, "code.repository"),
        dirty=code.dirty,
        detected=code.detected,
    )
    return checked if (commit, checked.branch, checked.repository) != (None, None, None) else None


def _check_project(project: Project) -> Project | None:
    checked = Project(
        uri=_address(project.uri, "project.uri"),
        entry_point=_text(project.entry_point, "project.entry_point", SHORT_MAX),
        backend=_text(project.backend, "project.backend", SHORT_MAX),
    )
    return checked if checked != Project() else None


def _check_script(script: Script) -> Script | None:
    checked = Script(
        name=_address(script.name, "script.name"), kind=_text(script.kind, "script.kind", SHORT_MAX)
    )
    return checked if checked != Script() else None


def _check_dataset(dataset: DatasetSnapshot) -> DatasetSnapshot:
    digest = values.check_text(dataset.digest.strip(), "digest of the data", maximum=SHORT_MAX, required=True)
    return DatasetSnapshot(
        name=values.check_text(dataset.name, "name of the data", maximum=SHORT_MAX),
        digest=digest,
        source=without_userinfo(values.check_text(dataset.source, "data source", maximum=ADDRESS_MAX)),
        role=values.check_text(dataset.role, "role of the data", maximum=SHORT_MAX),
    )


def _check_lock(lock: EnvironmentLock) -> EnvironmentLock:
    kind = values.check_text(lock.kind, "kind of the lock", maximum=SHORT_MAX, required=True)
    return EnvironmentLock(kind=kind, digest=values.check_digest(lock.digest), pinned=lock.pinned)


def _check_id(text: str | None, what: str) -> str | None:
    if text is not None and not _PLAIN_ID.fullmatch(text):
        raise errors.Invalid(f"{values.quoted(text, 60)} is no id; leave it out.", field=f"provenance.{what}")
    return text


def _text(text: str | None, what: str, maximum: int) -> str | None:
    return (
        values.check_text(text, f"provenance.{what}", maximum=maximum) or None if text is not None else None
    )


def _address(text: str | None, what: str) -> str | None:
    checked = _text(text, what, ADDRESS_MAX)
    return without_userinfo(checked) if checked is not None else None


# ----------------------------------------------------------------------------------------------------
# identity


def commit_of(provenance: Provenance | None) -> str | None:
    """The commit that says what the code was: None where it is unknown, and where changes lay beside it."""
    code = provenance.code if provenance is not None else None
    return code.commit if code is not None and not code.dirty else None


def lock_of(provenance: Provenance | None) -> Digest | None:
    """The digest of the lock that says what was installed; None where it is unknown, or where the list leaves
    it open."""
    lock = provenance.environment if provenance is not None else None
    return lock.digest if lock is not None and lock.pinned else None


def ingredients(provenance: Provenance | None) -> dict[str, str]:
    """What is known of the code, the data and the environment of a version, as short texts for tables."""
    if provenance is None:
        return {}
    code, lock = provenance.code, provenance.environment
    found: dict[str, str] = {}
    if code is not None and code.commit is not None:
        found["code"] = f"{code.commit}{' with changes' if code.dirty else ''}"
    for place, snapshot in enumerate(provenance.datasets):
        name = " ".join(part for part in (snapshot.role or "data", snapshot.name) if part)
        found[name if name not in found else f"{name} {place}"] = snapshot.digest
    if lock is not None:
        found["environment"] = f"{lock.kind} {lock.digest}{'' if lock.pinned else ' (not pinned)'}"
    return found


def described(provenance: Provenance | None) -> dict[str, str]:
    """The same, with the run, the branch and the version that it is a copy of."""
    if provenance is None:
        return {}
    beside = {
        "run": provenance.run_id,
        "branch": provenance.code.branch if provenance.code is not None else None,
        "copy of": provenance.origin,
    }
    return {name: text for name, text in beside.items() if text is not None} | ingredients(provenance)


def data_digests(provenance: Provenance | None) -> tuple[str, ...]:
    """The digests of the data, each once and in order; none where no data is known."""
    return (
        tuple(sorted({dataset.digest for dataset in provenance.datasets})) if provenance is not None else ()
    )


def identity(provenance: Provenance | None, params: Mapping[str, str]) -> Identity | None:
    """The identity of a version with this checked provenance and these parameters.

    What is not stated is unknown, never taken for "none": two versions that both leave their parameters out
    need not have the same. Names and roles of data do not count, for the same snapshot is the same under any
    name.

    Returns:
        None where nothing at all is known.
    """
    commit, lock, data = commit_of(provenance), lock_of(provenance), data_digests(provenance)
    known: dict[str, bytes | None] = {
        "code": _sized(commit) if commit is not None else None,
        "data": _listed(_sized(digest) for digest in data) if data else None,
        "params": _listed(_sized(key) + _sized(params[key]) for key in sorted(params)) if params else None,
        "environment": _sized(lock) if lock is not None else None,
    }
    missing = tuple(name for name in INGREDIENTS if known[name] is None)
    if len(missing) == len(INGREDIENTS):
        return None
    hashed = hashlib.sha256(IDENTITY_DOMAIN)
    for name in INGREDIENTS:
        content = known[name]
        hashed.update(_sized(name) + (b"\x00" if content is None else b"\x01" + content))
    return Identity(digest=Digest(f"sha256:{hashed.hexdigest()}"), missing=missing)


def _sized(text: str) -> bytes:
    """UTF-8 behind its length in 8 bytes, the highest first: no two lists of texts are encoded alike."""
    encoded = text.encode()
    return len(encoded).to_bytes(8, "big") + encoded


def _listed(items: Iterable[bytes]) -> bytes:
    """Items behind their count in 8 bytes."""
    parts = list(items)
    return len(parts).to_bytes(8, "big") + b"".join(parts)
