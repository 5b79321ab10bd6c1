"""What exists: models and their versions, their labels, and every way to look at them.

Each method is one act. What the caller may not read does not exist for them: they get the same words as for a
name that nobody ever used. A version itself is made in `registration` and never changed; here only what
stands beside it changes, and each change is written together with its event. Stages are moved by `promotion`.
"""

from msgspec import Struct, UnsetType, structs

from modelkeep.core import catalog, errors, query, registration, values
from modelkeep.core import compare as side_by_side
from modelkeep.core.access import Verb
from modelkeep.core.catalog import (
    DEFAULT_STAGES,
    Direction,
    FileEntry,
    Manifest,
    ModelChange,
    ModelVersion,
    RegisteredModel,
    StageGraph,
)
from modelkeep.core.compare import COMPARED_MAX, Best, Comparison, VersionDiff
from modelkeep.core.events import EventKind
from modelkeep.core.query import Kind, Order, Subject, Target
from modelkeep.core.values import ModelName, Ref
from modelkeep.ports import BlobStore
from modelkeep.service import labels, numbering, references
from modelkeep.service.act import Act, Desk
from modelkeep.service.aliases import Aliases
from modelkeep.service.integrity import Integrity
from modelkeep.service.registration import Registrations
from modelkeep.store import models, search, versions
from modelkeep.store.schema import model_tags, version_tags
from modelkeep.store.visibility import Scopes, Visible, visible_to

RANKED_MAX = 10_000
"""Versions among which the best is looked for: they are loaded whole, and that is a second or two of work."""


_EVERYTHING = Visible(allowed=Scopes(everything=True))
"""Within one model that the caller may read, all versions are seen."""
_BY_SEMVER = (Order(Subject(Kind.FIELD, "semver"), descending=True),)


class ModelPage(Struct, frozen=True, kw_only=True):
    """A page of models."""

    items: tuple[RegisteredModel, ...]
    next_page_token: str | None = None


class VersionPage(Struct, frozen=True, kw_only=True):
    """A page of versions."""

    items: tuple[ModelVersion, ...]
    next_page_token: str | None = None


class Catalog(Registrations, Integrity, Aliases):
    """The catalog's verbs, those of drafts, of aliases and of stored bytes included."""

    def __init__(self, blobs: BlobStore, desk: Desk) -> None:
        """Args:
        desk: where `store_bytes`, which is no act, notes what has come.
        """
        Registrations.__init__(self, blobs, desk)
        Integrity.__init__(self, blobs)

    # ------------------------------------------------------------------------------------------------ models

    def create_model(
        self,
        act: Act,
        name: ModelName,
        description: str = "",
        owner: str | None = None,
        tags: dict[str, str] | None = None,
        stages: StageGraph | None = None,
    ) -> RegisteredModel:
        """Register a model's name. One that was deleted before goes on with its next number.

        Args:
            owner: the caller, when left out.

        Raises:
            NotAllowed: the caller may not create it, or not with stages other than the default ones, which
            takes who may configure it.
            ModelExists: the name is taken, or is one that readers would take for it.
            Invalid (its leaves), LimitExceeded: a label or the stage graph cannot be kept.
        """
        act.authorise(Verb.CREATE_MODEL, name)
        graph = registration.check_stages(stages) if stages is not None else DEFAULT_STAGES
        if graph != DEFAULT_STAGES:
            self._may_shape(act, name)
        labels.check_new_name(act, name)
        catalog.refuse_own_tags(tags or {})
        kept = catalog.check_tags(tags or {})
        row = labels.create(
            act,
            name,
            description=values.check_text(description, "description"),
            owner=labels.check_owner(owner) if owner is not None else None,
            tags=kept,
            stages=graph,
        )
        return RegisteredModel(
            id=row.id,
            name=name,
            description=row.description,
            owner=row.owner,
            tags=kept,
            stages=graph,
            created_at=act.now,
            created_by=row.created_by,
            updated_at=act.now,
        )

    @staticmethod
    def _may_shape(act: Act, name: ModelName) -> None:
        """Stages say which moves a policy guards: setting them at birth takes the right to set them later."""
        if not act.may(Verb.CONFIGURE, name):
            raise errors.NotAllowed(
                f"Stages of its own for {name} take the permission '{Verb.CONFIGURE}', which {act.by} lacks; "
                "create it with the default stages, or ask a maintainer to.",
                verb=Verb.CONFIGURE,
                scope=str(name),
            )

    def get_model(self, act: Act, name: ModelName) -> RegisteredModel:
        """One model.

        Raises:
            ModelNotFound: it is not there, or not to be seen.
        """
        return models.assemble(act.tx, [references.row_of(act, name)])[0]

    def list_models(
        self,
        act: Act,
        limit: int = values.PAGE_DEFAULT,
        page_token: str | None = None,
        project: str | None = None,
        filter_text: str | None = None,
        order_text: str | None = None,
    ) -> ModelPage:
        """A page of the models that the caller may see, by project and name when no other order is asked for.

        Raises:
            InvalidFilter: the filter or the order cannot be read. LimitExceeded, Invalid: limit or token.
        """
        items, token = search.search_models(
            act.tx,
            visible_to(act.caller),
            expression=query.parse(filter_text, Target.MODELS) if filter_text is not None else None,
            order=query.parse_order(order_text, Target.MODELS) if order_text is not None else (),
            project=project,
            limit=limit,
            page_token=page_token,
        )
        return ModelPage(items=tuple(items), next_page_token=token)

    def change_model(self, act: Act, name: ModelName, change: ModelChange) -> RegisteredModel:
        """Change a model's description, owner or tags. What is the same already is no change.

        Raises:
            ModelNotFound, NotAllowed: not there, not to be seen, or not to be changed by this caller.
            Invalid, LimitExceeded: a label cannot be kept.
        """
        act.readable(name)
        act.authorise(Verb.EDIT, name)
        model = models.get_model(act.tx, name)
        description, tags = labels.changed(change, model.description, model.tags)
        owner = model.owner if isinstance(change.owner, UnsetType) else labels.check_owner(change.owner)
        body = labels.differences(description=(model.description, description), owner=(model.owner, owner))
        body |= labels.tag_differences(model.tags, tags)
        if not body:
            return model
        models.label_model(act.tx, model.id, description, owner, act.now)
        models.put_tags(act.tx, model_tags, model.id, labels.new_entries(model.tags, tags))
        models.drop_tags(act.tx, model_tags, model.id, model.tags.keys() - tags.keys())
        act.record(EventKind.MODEL_CHANGED, str(name), model=name, **body)
        return models.get_model(act.tx, name)

    def delete_model(self, act: Act, name: ModelName) -> None:
        """Delete a model with all its versions. Its numbers and semvers are never given again.

        Raises:
            ModelNotFound, NotAllowed: not there, not to be seen, or not to be deleted by this caller.
            Protected: an endpoint belongs to it, or a version is in a protected stage or behind a protected
            alias.
        """
        act.readable(name)
        act.authorise(Verb.DELETE, name)
        row = references.row_of(act, name)
        pointers = models.list_aliases(act.tx, row.id)
        endpoints = models.endpoints_of(act.tx, row.id)
        if endpoints:
            raise labels.protected(
                name, f"the endpoint {endpoints[0].name} belongs to it", "delete the endpoint first"
            )
        guarded = {spec.name for spec in row.stages.stages if spec.protected}
        for stage, number in sorted(models.standing_in(act.tx, row.id).items()):
            if stage in guarded:
                raise labels.protected(
                    name, f"its version {number} is in {stage}", "move it out of there first"
                )
        for alias in pointers:
            if alias.protected:
                raise labels.protected(
                    name, f"its alias {alias.alias} is protected", "delete the alias first"
                )
        for alias in pointers:
            labels.drop_alias(act, row, alias)
        event = act.record(EventKind.MODEL_DELETED, str(name), model=name, versions=row.version_count)
        versions.remove_all_versions(act.tx, row.id, event.sequence, act.now)
        models.remove_model(act.tx, row.id, act.now)

    # ---------------------------------------------------------------------------------------------- versions

    def resolve(self, act: Act, ref: Ref) -> ModelVersion:
        """The version that a reference names, now or at its time; see `references.resolve`.

        Raises:
            ModelNotFound, VersionNotFound, AliasNotFound, StageEmpty, InvalidReference: it names none.
        """
        return references.resolve(act, ref)

    def get_version(self, act: Act, ref: Ref) -> ModelVersion:
        """The same, as people ask for it.

        Raises:
            ModelNotFound, VersionNotFound, AliasNotFound, StageEmpty, InvalidReference: it names none.
        """
        return references.resolve(act, ref)

    def list_versions(
        self, act: Act, model: ModelName, limit: int = values.PAGE_DEFAULT, page_token: str | None = None
    ) -> VersionPage:
        """A page of a model's versions, the last registered first.

        Raises:
            ModelNotFound: it is not there, or not to be seen. LimitExceeded, Invalid: limit or token.
        """
        act.readable(model)
        row = references.row_of(act, model)
        items, token = search.list_versions(act.tx, row.id, limit=limit, page_token=page_token)
        return VersionPage(items=tuple(items), next_page_token=token)

    def search_versions(
        self,
        act: Act,
        limit: int = values.PAGE_DEFAULT,
        page_token: str | None = None,
        project: str | None = None,
        filter_text: str | None = None,
        order_text: str | None = None,
    ) -> VersionPage:
        """A page of the versions that a filter selects and the caller may see, the last registered first
        among equals.

        Raises:
            InvalidFilter: the filter or the order cannot be read. LimitExceeded, Invalid: limit or token.
        """
        items, token = search.search_versions(
            act.tx,
            visible_to(act.caller),
            expression=query.parse(filter_text, Target.VERSIONS) if filter_text is not None else None,
            order=query.parse_order(order_text, Target.VERSIONS) if order_text is not None else (),
            project=project,
            limit=limit,
            page_token=page_token,
        )
        return VersionPage(items=tuple(items), next_page_token=token)

    def change_version(self, act: Act, ref: Ref, change: ModelChange) -> ModelVersion:
        """Change a version's description or tags. What is the same already is no change.

        Raises:
            NotFound (its leaves), NotAllowed: not there, not to be seen, or not to be changed by this caller.
            Invalid, LimitExceeded: a label cannot be kept, or is the text of a prompt, or an owner is given,
            whom only models have.
        """
        version = references.resolve(act, references.present(ref))
        act.authorise(Verb.EDIT, version.model)
        if not isinstance(change.owner, UnsetType):
            raise errors.Invalid("A version has its model's owner; change the model.", field="owner")
        description, tags = labels.changed(change, version.description, version.tags)
        labels.refuse_prompt_change(version, tags)
        body = labels.differences(description=(version.description, description))
        body |= labels.tag_differences(version.tags, tags)
        if not body:
            return version
        versions.describe(act.tx, version.id, description, act.now)
        models.put_tags(act.tx, version_tags, version.id, labels.new_entries(version.tags, tags))
        models.drop_tags(act.tx, version_tags, version.id, version.tags.keys() - tags.keys())
        act.record(
            EventKind.VERSION_CHANGED, version.reference, model=version.model, number=version.number, **body
        )
        return structs.replace(version, description=description, tags=tags)

    def yank(self, act: Act, ref: Ref, reason: str) -> ModelVersion:
        """Have a version passed over wherever nobody names it; see `labels.yank`.

        Raises:
            NotFound (its leaves), NotAllowed: not there, not to be seen, or not to be yanked by this caller.
            Invalid, LimitExceeded: the reason is missing or cannot be kept.
        """
        return labels.yank(act, references.resolve(act, references.present(ref)), reason)

    def unyank(self, act: Act, ref: Ref, reason: str) -> ModelVersion:
        """Let a yanked version be chosen again.

        Raises:
            NotFound (its leaves), NotAllowed: not there, not to be seen, or not to be let back by this
            caller. Conflict: it is not yanked. Invalid, LimitExceeded: the reason cannot be kept.
        """
        return labels.unyank(act, references.resolve(act, references.present(ref)), reason)

    def delete_version(self, act: Act, ref: Ref) -> None:
        """Delete a version. Its number and semver are never given again; its unprotected aliases go with it.

        Raises:
            NotFound (its leaves), NotAllowed: not there, not to be seen, or not to be deleted by this caller.
            Protected: it is in a protected stage, behind a protected alias, or traffic goes to it.
        """
        version = references.resolve(act, references.present(ref))
        act.authorise(Verb.DELETE, version.model)
        row = references.row_of(act, version.model)
        mine = [a for a in models.list_aliases(act.tx, row.id) if a.number == version.number]
        labels.refuse_protected(act, row, version, mine)
        for alias in mine:
            labels.refuse_followed(act, row, alias.alias)
            labels.drop_alias(act, row, alias)
        event = act.record(
            EventKind.VERSION_DELETED,
            version.reference,
            model=version.model,
            number=version.number,
            semver=version.semver,
            digest=version.digest,
            stage=version.stage,
        )
        versions.remove_version(act.tx, row.id, version, event.sequence, act.now)
        models.one_version_less(act.tx, row.id, act.now)

    # ------------------------------------------------------------------------------------------------- files

    def manifest(self, act: Act, ref: Ref) -> Manifest:
        """The files of a version.

        Raises:
            NotFound (its leaves): no such version, or not for this caller.
        """
        return Manifest(files=references.resolve(act, ref).files)

    def open_file(self, act: Act, ref: Ref, path: str) -> FileEntry:
        """One file of a version, for a caller who is about to be sent its bytes.

        Raises:
            NotFound (its leaves), NotAllowed: the version, the file, or the right to pull it.
        """
        version = references.resolve(act, ref)
        act.authorise(Verb.PULL, version.model)
        for entry in version.files:
            if entry.path == path:
                return entry
        listed = ", ".join(entry.path for entry in version.files[:5])
        raise errors.FileNotInVersion(
            f"{version.reference} has no file {values.quoted(path)}; it has {listed}.", path=path
        )

    # ------------------------------------------------------------------------------------------- comparisons

    def compare(
        self,
        act: Act,
        model: ModelName,
        metrics: tuple[str, ...] | None = None,
        refs: tuple[Ref, ...] | None = None,
    ) -> Comparison:
        """Versions of a model side by side: those named, or the highest ones.

        Raises:
            NotFound (its leaves): the model or a version. MetricNotFound: no version has this metric.
            InvalidReference: a version of another model. LimitExceeded: more than a table shows.
        """
        act.readable(model)
        row = references.row_of(act, model)
        if refs is None:
            chosen, _ = search.search_versions(
                act.tx, _EVERYTHING, order=_BY_SEMVER, model=model, limit=COMPARED_MAX
            )
            return side_by_side.compare(chosen, metrics, left_out=row.version_count - len(chosen))
        if len(refs) > COMPARED_MAX:
            raise errors.LimitExceeded(f"At most {COMPARED_MAX} versions fit side by side.", field="refs")
        for ref in refs:
            if ref.model != model:
                raise errors.InvalidReference(
                    f"{ref} is no version of {model}; use 'modelkeep diff' for two models."
                )
        return side_by_side.compare([references.resolve(act, ref) for ref in refs], metrics)

    def best(
        self,
        act: Act,
        model: ModelName,
        metric: str,
        direction: str | None = None,
        filter_text: str | None = None,
        split: str | None = None,
    ) -> Best:
        """The best version of a model by a metric, among those that a filter selects.

        Raises:
            ModelNotFound: it is not there, or not to be seen. MetricNotFound: no version has this metric.
            VersionNotFound: the filter selects none. InvalidFilter: it cannot be read.
            InvalidMetric: which way is better has to be said. LimitExceeded: too many versions to look at.
        """
        act.readable(model)
        references.row_of(act, model)
        expression = query.parse(filter_text, Target.VERSIONS) if filter_text is not None else None
        chosen: list[ModelVersion] = []
        token: str | None = None
        while not chosen or token is not None:
            page, token = search.search_versions(
                act.tx,
                _EVERYTHING,
                expression=expression,
                order=_BY_SEMVER,
                model=model,
                limit=values.PAGE_MAX,
                page_token=token,
            )
            chosen += page
            if not chosen:
                selected = " that the filter selects" if filter_text is not None else ""
                raise errors.VersionNotFound(f"{model} has no version{selected}.", model=str(model))
            if token is not None and len(chosen) >= RANKED_MAX:
                raise errors.LimitExceeded(
                    f"More than {RANKED_MAX:,} versions are too many to rank; narrow them with a filter.",
                    limit=RANKED_MAX,
                )
        wanted = Direction(direction) if direction is not None else None
        return side_by_side.best(chosen, metric, direction=wanted, split=split)

    def diff(self, act: Act, a: Ref, b: Ref) -> VersionDiff:
        """What changed from one version to another; they may be of different models. The rules are those of
        the second.

        Raises:
            NotFound (its leaves): one of them.
        """
        before, after = references.resolve(act, a), references.resolve(act, b)
        return side_by_side.diff(before, after, numbering.rules_for(act, after.model).book)
