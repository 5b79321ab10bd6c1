"""Which number a draft gets: the version it is compared with, the rules that hold for its model, and what
comes of both.

Facts and rules are judged in `core.bump`; here they are only brought together. Nothing is changed.
"""

from collections.abc import Callable
from typing import NamedTuple

from msgspec import Struct
from msgspec.structs import replace

from modelkeep.core import bump, catalog, registration, semver
from modelkeep.core.bump import DEFAULT_RULES, RuleBook, VersionRules
from modelkeep.core.catalog import DraftSpec, Manifest, ModelVersion
from modelkeep.core.provenance import Identity
from modelkeep.core.semver import Bump, SemVer
from modelkeep.core.values import Digest, ModelName
from modelkeep.service import policies, references
from modelkeep.service.act import Act
from modelkeep.store import catalog as store
from modelkeep.store import models
from modelkeep.store.models import ModelRow
from modelkeep.store.policies import StoredPolicy

SAME_SHOWN = 5
"""Versions with the same identity that a registration points out."""


class Numbered(Struct, frozen=True, kw_only=True):
    """The number that a new version is to get. `policy` states the rules that judged, where a model has its
    own."""

    given: SemVer
    parent: ModelVersion | None
    inferred: Bump
    reasons: tuple[str, ...]
    policy: Digest | None


class Rules(NamedTuple):
    """The version rules that hold for a model, and the policy that states them; None for the default ones."""

    book: RuleBook
    policy: Digest | None


def rules_for(act: Act, model: ModelName) -> Rules:
    """The rules of the nearest policy that was set: the model's own, its project's, the installation's."""
    return _rules_of(policies.nearest(act.tx, model))


def _rules_of(stored: StoredPolicy | None) -> Rules:
    if stored is None or stored.policy.versioning == VersionRules():
        return Rules(DEFAULT_RULES, None)
    return Rules(bump.book_of(stored.policy.versioning), stored.digest)


def decide(act: Act, model: ModelName, row: ModelRow | None, spec: DraftSpec) -> Numbered | ModelVersion:
    """The number that a checked draft would get now, or the version that it is again.

    Raises: as `decide_anew`.
    """
    digest = catalog.manifest_digest(Manifest(files=spec.files))
    policy = policies.ask_nearest(act.tx, model)
    twins = store.find_same_bytes(act.tx, row.id, digest) if row is not None else []
    known = next((twin for twin in twins if registration.adds_nothing(spec, digest, twin)), None)
    if known is not None:
        return known
    decided = _decided(act, model, row, spec, digest, twins[0] if twins else None, policy)
    parent = decided.parent
    return parent if parent is not None and str(decided.given) == parent.semver else decided


def made_of_the_same(
    act: Act, row: ModelRow | None, identity: Identity | None, *, but: str | None = None
) -> tuple[str, ...]:
    """The versions of a model with this identity, the highest first, save the one with that semver. A partial
    identity is never taken for another one: what is unknown may differ."""
    if row is None or identity is None or not identity.whole:
        return ()
    found = store.find_same_identity(act.tx, row.id, identity.digest, SAME_SHOWN + 1)
    return tuple(f"{row.full_name}:{text}" for text in found if text != but)[:SAME_SHOWN]


def decide_anew(
    act: Act, model: ModelName, row: ModelRow | None, spec: DraftSpec
) -> tuple[Numbered, ModelVersion | None]:
    """The number that a checked draft gets whatever there is: the next patch, where it is a version again.

    Returns:
        the number, and the highest version with the same bytes.

    Raises:
        VersionExists, SemverTooLow: the number that was asked for.
        VersionNotFound, AliasNotFound, StageEmpty: the parent that was named.
    """
    digest = catalog.manifest_digest(Manifest(files=spec.files))
    policy = policies.ask_nearest(act.tx, model)
    twin = store.find_twin(act.tx, row.id, digest) if row is not None else None
    return _decided(act, model, row, spec, digest, twin, policy, anew=True), twin


def _decided(
    act: Act,
    model: ModelName,
    row: ModelRow | None,
    spec: DraftSpec,
    digest: Digest,
    twin: ModelVersion | None,
    policy: Callable[[], StoredPolicy | None],
    *,
    anew: bool = False,
) -> Numbered:
    """The number for a draft; that of its parent where nothing changed and it need not be another one."""
    explicit = semver.parse(spec.semver) if spec.semver is not None else None
    new = registration.facts_of(registration.stated_by(spec, digest))
    parent: ModelVersion | None = None
    if row is not None:
        parent = _parent(act, model, spec, twin)
    elif spec.parent is not None:
        references.resolve(
            act, registration.parent_ref(model, spec.parent)
        )  # says that there is no such model
    before = semver.parse(parent.semver) if parent is not None else None
    facts = registration.facts_of(registration.stated_by(parent, parent.digest)) if parent else None
    rules = _rules_of(policy())
    verdict = bump.infer(facts, new, rules.book)
    if anew and parent is not None and verdict.bump is Bump.NONE:
        again = f"The files and what is stated of them are those of {parent.reference}, registered once more."
        verdict = replace(verdict, bump=Bump.PATCH, reasons=(again,))
    former = row or models.find_model(act.tx, model, deleted=True)  # a deleted one keeps its numbers
    near = registration.neighbourhood(before, explicit)
    taken = store.given_semvers(act.tx, former.id, near) if former is not None else []
    number, reasons = bump.next_version(
        taken,
        before,
        verdict,
        explicit=explicit,
        bump=None if spec.bump is catalog.Bump.AUTO else Bump(spec.bump.value),
        override_reason=spec.override_semver,
    )
    return Numbered(given=number, parent=parent, inferred=verdict.bump, reasons=reasons, policy=rules.policy)


def _parent(act: Act, model: ModelName, spec: DraftSpec, twin: ModelVersion | None) -> ModelVersion | None:
    """The version that a draft is compared with: the one it names, else one with the same bytes, else what
    `@latest` names, else the highest version."""
    if spec.parent is not None:
        return references.resolve(act, references.present(registration.parent_ref(model, spec.parent)))
    if twin is not None:
        return twin
    return store.find_parent(act.tx, model)
