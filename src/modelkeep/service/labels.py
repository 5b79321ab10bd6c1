"""How a model begins, what may be written on models and versions, what a change of it was, how a version is
withdrawn, and what keeps one from being deleted.

Small rules that `catalog` applies; nothing here opens an act or loads a model by name.
"""

from typing import Any

from msgspec import UNSET, UnsetType

from modelkeep.core import catalog, errors, values
from modelkeep.core.access import Verb
from modelkeep.core.catalog import (
    DEFAULT_STAGES,
    VIRTUAL_ALIASES,
    AliasSpec,
    ModelChange,
    ModelVersion,
    StageGraph,
)
from modelkeep.core.events import EventKind
from modelkeep.core.prompts import IS_PROMPT, PROMPT_TEXT, is_prompt
from modelkeep.core.rollout import Endpoint
from modelkeep.core.values import ModelName
from modelkeep.service import references
from modelkeep.service.act import Act
from modelkeep.store import catalog as store
from modelkeep.store import models, versions
from modelkeep.store.models import ModelRow


def check_new_name(act: Act, name: ModelName) -> None:
    """Refuse a name that is taken, or that a reader could take for another one.

    Raises:
        InvalidName: it is no name. ModelExists: it is taken.
    """
    values.check_name(name.project, "project")
    values.check_model_name(name.name)
    twin = models.find_twin(act.tx, name)
    if twin == name.name:
        raise errors.ModelExists(f"There is a model {name} already.", model=str(name))
    if twin is not None:
        raise errors.ModelExists(
            f"{name} looks like the model {twin} of the same project; use that one, or a clearer name.",
            model=twin,
        )


def create(
    act: Act,
    name: ModelName,
    *,
    description: str = "",
    owner: str | None = None,
    tags: dict[str, str] | None = None,
    stages: StageGraph = DEFAULT_STAGES,
) -> ModelRow:
    """Write a new model and its event; what is given was checked, and so was the right."""
    row = models.add_model(
        act.tx,
        act.new_id("model"),
        name,
        description=description,
        owner=owner or act.by,
        stages=stages,
        tags=tags or {},
        now=act.now,
        by=act.by,
    )
    act.record(
        EventKind.MODEL_CREATED,
        str(name),
        model=name,
        description=description,
        owner=row.owner,
        tags=tags or {},
        stages=stages,
    )
    return row


def check_owner(owner: str) -> str:
    """Who answers for a model: a person, a team, an address.

    Raises:
        Invalid, LimitExceeded: empty, too long, or with control characters.
    """
    return values.check_text(owner, "owner", maximum=values.NAME_MAX, required=True)


def check_alias(alias: str) -> str:
    """A name that can be an alias.

    Raises:
        InvalidName: it is no name, or one that always exists.
    """
    values.check_name(alias, "alias")
    if alias.lower() in VIRTUAL_ALIASES:
        raise errors.InvalidName(
            f"{alias} always exists and cannot be set; choose another name.", field="alias"
        )
    return alias


def changed(change: ModelChange, description: str, tags: dict[str, str]) -> tuple[str, dict[str, str]]:
    """Description and tags after a change.

    Raises:
        Invalid, LimitExceeded: they cannot be kept.
    """
    catalog.refuse_own_tags((*change.set_tags, *change.delete_tags))
    if not isinstance(change.description, UnsetType):
        description = values.check_text(change.description, "description")
    kept = {key: value for key, value in tags.items() if key not in change.delete_tags}
    return description, catalog.check_tags({**kept, **change.set_tags})


def refuse_prompt_change(version: ModelVersion, tags: dict[str, str]) -> None:
    """Raises InvalidParameter when a version of a prompt would get another text, or would be a prompt no
    more: its tags say what its file has."""
    if not is_prompt(version.tags):
        return
    for key in (PROMPT_TEXT, IS_PROMPT):
        if tags.get(key) != version.tags.get(key):
            raise errors.InvalidParameter(
                f"The tag {key} of {version.reference} cannot change, for a prompt's version never does; "
                "register a new version.",
                field="key",
            )


def differences(**pairs: tuple[str, str]) -> dict[str, Any]:
    """The body of a change's event: each field that differs, from -> to."""
    return {name: _moved(before, after) for name, (before, after) in pairs.items() if before != after}


def tag_differences(before: dict[str, str], after: dict[str, str]) -> dict[str, Any]:
    """The same of tags; None stands for no such tag."""
    keys = [key for key in sorted(before.keys() | after.keys()) if before.get(key) != after.get(key)]
    return {"tags": {key: _moved(before.get(key), after.get(key)) for key in keys}} if keys else {}


def _moved(before: str | None, after: str | None) -> dict[str, str | None]:
    return {"from": before, "to": after}


def new_entries(before: dict[str, str], after: dict[str, str]) -> dict[str, str]:
    """The tags to write."""
    return {key: value for key, value in after.items() if before.get(key) != value}


def point_alias(
    act: Act,
    row: ModelRow,
    alias: str,
    version: ModelVersion,
    *,
    protected: bool,
    known: AliasSpec | UnsetType | None = UNSET,
    reason: str | None = None,
    by: str | None = None,
    **why: Any,
) -> None:
    """Have an alias name a version, with the event of it; whether it may was decided before.

    Args:
        known: the alias as it is, where it was looked at in this act.
        by: who had asked for it, where that is not who acts.
        why: what else the event says: the rollout that led to it.
    """
    if isinstance(known, UnsetType):
        known = models.get_alias(act.tx, row.id, alias)
    body: dict[str, Any] = {
        "alias": alias,
        "from": known.number if known is not None else None,
        "to": version.number,
    }
    act.record(
        EventKind.ALIAS_SET,
        references.alias_subject(row.full_name, alias),
        model=row.full_name,
        number=version.number,
        reason=reason,
        semver=version.semver,
        protected=protected,
        **body,
        **why,
    )
    spec = AliasSpec(
        alias=alias,
        number=version.number,
        protected=protected,
        updated_at=act.now,
        updated_by=by or act.by,
    )
    models.put_alias(act.tx, row.id, spec)
    models.touch_model(act.tx, row.id, act.now)


def follower(act: Act, row: ModelRow, alias: str) -> Endpoint | None:
    """The endpoint that follows an alias, if there is one."""
    return next((found for found in models.endpoints_of(act.tx, row.id) if found.alias == alias), None)


def refuse_followed(act: Act, row: ModelRow, alias: str) -> None:
    """Raises Protected when an endpoint follows the alias: callers would be served what nothing names."""
    endpoint = follower(act, row, alias)
    if endpoint is not None:
        raise protected(
            f"{row.full_name}@{alias}",
            f"the endpoint {endpoint.name} follows it",
            "point it at another version, or delete the endpoint first",
        )


def drop_alias(act: Act, row: ModelRow, alias: AliasSpec) -> None:
    """Remove an alias, with its event."""
    models.drop_alias(act.tx, row.id, alias.alias)
    body: dict[str, Any] = {"alias": alias.alias, "from": alias.number, "protected": alias.protected}
    act.record(
        EventKind.ALIAS_DELETED,
        references.alias_subject(row.full_name, alias.alias),
        model=row.full_name,
        number=alias.number,
        **body,
    )


def yank(act: Act, version: ModelVersion, reason: str) -> ModelVersion:
    """Have a version passed over by `@latest`, ranges, the choice of the best and that of a parent. Whoever
    names it still gets it, and stage, aliases and traffic stay as they are. Doing it again changes nothing
    but the reason.

    Raises:
        NotAllowed: the caller may not take versions back.
        RolloutActive: traffic is being moved to it, at whose end it would enter a stage all the same.
        Invalid, LimitExceeded: the reason is missing or cannot be kept.
    """
    reason = values.check_text(reason, "reason", required=True).strip()
    act.authorise(Verb.ROLLBACK, version.model)
    if version.yanked == reason:
        return version
    rollout = models.tried_in(act.tx, references.row_of(act, version.model).id, version.number)
    if rollout is not None:
        raise errors.RolloutActive(
            f"A rollout of {rollout.endpoint} tries {version.reference}; take it back first "
            f"('modelkeep rollout abort {rollout.endpoint} -m WHY'), then yank it.",
            endpoint=rollout.endpoint,
            rollout=rollout.id,
        )
    _mark(act, version, EventKind.VERSION_YANKED, yanked=reason, reason=reason, was=version.yanked)
    return store.get_version(act.tx, version.model, version.number)


def unyank(act: Act, version: ModelVersion, reason: str) -> ModelVersion:
    """Let a yanked version be chosen again.

    Raises:
        NotAllowed: the caller may not promote. Conflict: it is not yanked.
        Invalid, LimitExceeded: the reason is missing or cannot be kept.
    """
    reason = values.check_text(reason, "reason", required=True).strip()
    act.authorise(Verb.PROMOTE, version.model)
    if version.yanked is None:
        raise errors.Conflict(f"{version.reference} is not yanked; there is nothing to undo.")
    _mark(act, version, EventKind.VERSION_UNYANKED, yanked=None, reason=reason, was=version.yanked)
    return store.get_version(act.tx, version.model, version.number)


def _mark(
    act: Act, version: ModelVersion, kind: EventKind, *, yanked: str | None, reason: str, was: str | None
) -> None:
    versions.set_yanked(act.tx, version.id, yanked, act.now)
    act.record(kind, version.reference, model=version.model, number=version.number, reason=reason, was=was)


def refuse_protected(act: Act, row: ModelRow, version: ModelVersion, aliases: list[AliasSpec]) -> None:
    """Let a version be deleted only when nothing rests on it.

    Raises:
        Protected: it is in a protected stage, behind a protected alias, or traffic goes to it.
    """
    guarded = {spec.name for spec in row.stages.stages if spec.protected}
    if version.stage in guarded:
        raise protected(version.reference, f"it is in {version.stage}", "move it out of there first")
    for alias in aliases:
        if alias.protected:
            why = f"its alias {alias.alias} is protected"
            raise protected(version.reference, why, "point the alias elsewhere first")
    endpoint = models.serving(act.tx, row.id).get(version.number)
    if endpoint is not None:
        why = f"the endpoint {endpoint} serves it, or goes back to it"
        raise protected(version.reference, why, "finish another rollout first")


def protected(what: ModelName | str, why: str, advice: str) -> errors.Protected:
    """The one sentence for what must not be deleted."""
    return errors.Protected(f"{what} cannot be deleted: {why}; {advice}.", subject=str(what))
