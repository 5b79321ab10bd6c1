"""The client's verbs of the catalog: models, versions, labels, aliases, and looking versions up and against
each other.

Bytes go in and out in `registration`.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from msgspec import UNSET, UnsetType

from modelkeep.client.answers import Listing, Page
from modelkeep.client.transport import V1, Wire, given, joined, model_path, segment, time_text
from modelkeep.core import values
from modelkeep.core.answers import AliasMove, Done
from modelkeep.core.catalog import ModelChange, ModelVersion, RegisteredModel, StageGraph
from modelkeep.core.compare import Best, Comparison, VersionDiff
from modelkeep.core.plan import Plan


class CatalogVerbs(Wire):
    """What exists."""

    def get_version(self, ref: str, *, at: datetime | str | None = None) -> ModelVersion:
        """One version by reference, now or as it was at a moment.

        Raises:
            ModelNotFound, VersionNotFound, AliasNotFound, StageEmpty: there is none; the message names what
            there is.
        """
        return self.get(ModelVersion, f"{V1}/version", ref=ref, at=time_text(at))

    def get_model(self, model: str) -> RegisteredModel:
        """One registered model. Raises ModelNotFound."""
        return self.get(RegisteredModel, model_path(model))

    def list_models(
        self,
        *,
        filter: str | None = None,  # noqa: A002  (the word that people know it by)
        order: str | None = None,
        project: str | None = None,
        limit: int | None = None,
    ) -> Listing[RegisteredModel]:
        """Registered models, those that a filter selects. Raises InvalidFilter, with `details.caret`."""
        return self.listing(
            Page[RegisteredModel], f"{V1}/models", limit, filter=filter, order=order, project=project
        )

    def create_model(
        self,
        name: str,
        *,
        description: str = "",
        owner: str | None = None,
        tags: Mapping[str, str] | None = None,
        stages: StageGraph | None = None,
    ) -> RegisteredModel:
        """Register a model's name, which may be `project/name`. Raises ModelExists."""
        full = values.parse_model_name(name)
        body: dict[str, Any] = {"name": full.name, "project": full.project, "description": description}
        body |= given(owner=owner, tags=tags, stages=stages)
        return self.send(RegisteredModel, "POST", f"{V1}/models", body)

    def change_model(
        self,
        model: str,
        *,
        description: str | None = None,
        owner: str | None = None,
        set_tags: Mapping[str, str] | None = None,
        delete_tags: Sequence[str] = (),
    ) -> RegisteredModel:
        """Change a model's labels; what is left out stays."""
        change = _change(description, owner, set_tags, delete_tags)
        return self.send(RegisteredModel, "PATCH", model_path(model), change)

    def rename_model(self, model: str, name: str) -> RegisteredModel:
        """Give a model another name within its project; everything it has goes with it. Raises ModelExists,
        RolloutActive.
        """
        return self.send(RegisteredModel, "POST", f"{model_path(model)}/rename", {"name": name})

    def delete_model(self, model: str) -> Done:
        """Delete a model with its versions. Raises Protected while one of them serves or is protected."""
        return self.send(Done, "DELETE", model_path(model))

    def set_stages(self, model: str, stages: StageGraph) -> RegisteredModel:
        """Give a model another stage graph. Raises InvalidTransition when it does not fit the model's
        versions.
        """
        return self.send(RegisteredModel, "PUT", f"{model_path(model)}/stages", stages)

    def list_versions(self, model: str, *, limit: int | None = None) -> Listing[ModelVersion]:
        """Versions of a model, newest first."""
        return self.listing(Page[ModelVersion], f"{model_path(model)}/versions", limit)

    def search_versions(
        self,
        filter: str | None = None,  # noqa: A002  (the word that people know it by)
        *,
        order: str | None = None,
        project: str | None = None,
        limit: int | None = None,
    ) -> Listing[ModelVersion]:
        """Versions that a filter selects, such as `metrics.accuracy > 0.9`. Raises InvalidFilter."""
        return self.listing(
            Page[ModelVersion], f"{V1}/versions", limit, filter=filter, order=order, project=project
        )

    search = search_versions

    def change_version(
        self,
        ref: str,
        *,
        description: str | None = None,
        set_tags: Mapping[str, str] | None = None,
        delete_tags: Sequence[str] = (),
    ) -> ModelVersion:
        """Change a version's labels; what is left out stays, and its content never changes."""
        change = _change(description, None, set_tags, delete_tags)
        return self.send(ModelVersion, "PATCH", f"{V1}/version", change, query={"ref": ref})

    def delete_version(self, ref: str) -> Done:
        """Delete a version. Raises Protected while it serves, or a stage or an alias protects it."""
        return self.send(Done, "DELETE", f"{V1}/version", query={"ref": ref})

    def yank_version(self, ref: str, reason: str) -> ModelVersion:
        """Have a version passed over by `@latest`, ranges, `best` and the choice of a parent. Whoever names
        it exactly still gets it, and what serves goes on serving.
        """
        return self.send(ModelVersion, "POST", f"{V1}/version/yank", {"reason": reason}, query={"ref": ref})

    def unyank_version(self, ref: str, reason: str) -> ModelVersion:
        """Let a yanked version be chosen again. Raises Conflict when it is not yanked."""
        return self.send(ModelVersion, "POST", f"{V1}/version/unyank", {"reason": reason}, query={"ref": ref})

    yank = yank_version
    unyank = unyank_version

    def set_alias(
        self,
        model: str,
        alias: str,
        ref: str,
        *,
        expect: int | UnsetType | None = UNSET,
        protected: bool | None = None,
        reason: str | None = None,
        plan: Plan | None = None,
        supersede: bool | None = None,
    ) -> AliasMove:
        """Point an alias at a version; where an endpoint follows the alias, start the rollout that will.

        Args:
            expect: the version's number that it must point to now (None: it must not exist); left out, any.
            plan: how that rollout goes; the endpoint's plan when left out.
            supersede: end the rollout that is under way, and begin this one.

        Raises:
            AliasMoved: it points elsewhere than expected.
            RolloutActive: the traffic that follows it is already being moved.
        """
        body: dict[str, Any] = {"ref": ref} | given(protected=protected, reason=reason, plan=plan)
        body |= given(supersede=supersede)
        if expect is not UNSET:
            body["expect"] = expect
        return self.send(AliasMove, "PUT", f"{model_path(model)}/aliases/{segment(alias)}", body)

    def delete_alias(self, model: str, alias: str) -> Done:
        """Delete an alias. Raises AliasNotFound."""
        return self.send(Done, "DELETE", f"{model_path(model)}/aliases/{segment(alias)}")

    def comparison(
        self, model: str, *, metrics: Sequence[str] | None = None, refs: Sequence[str] | None = None
    ) -> Comparison:
        """Versions of a model side by side, all metrics and versions when none are named."""
        query = {"metrics": joined(metrics), "refs": joined(refs)}
        return self.get(Comparison, f"{model_path(model)}/compare", **query)

    def compare(
        self, model: str, *, metrics: Sequence[str] | None = None, refs: Sequence[str] | None = None
    ) -> Any:
        """Versions of a model side by side: a pandas DataFrame where pandas is installed, else a list of
        rows.
        """
        rows = rows_of(self.comparison(model, metrics=metrics, refs=refs))
        try:
            import pandas  # noqa: ICN001  (only whether it is there)
        except ImportError:
            return rows
        return pandas.DataFrame(rows).set_index("version") if rows else pandas.DataFrame()

    def best(
        self,
        model: str,
        metric: str,
        *,
        direction: str | None = None,
        filter: str | None = None,  # noqa: A002  (the word that people know it by)
        split: str | None = None,
    ) -> Best:
        """The best version by a metric, with how many were skipped and which tie. Raises MetricNotFound."""
        query = {"metric": metric, "direction": direction, "filter": filter, "split": split}
        return self.get(Best, f"{model_path(model)}/best", **query)

    def diff(self, a: str, b: str) -> VersionDiff:
        """What changed from one version to another."""
        return self.get(VersionDiff, f"{V1}/diff", a=a, b=b)


def rows_of(comparison: Comparison) -> list[dict[str, Any]]:
    """A comparison as one row per version: its number and stage, then each metric, then the parameters that
    differ.
    """
    rows = []
    for place, version in enumerate(comparison.versions):
        row: dict[str, Any] = {"version": version.semver, "number": version.number, "stage": version.stage}
        row |= {metric.name: metric.cells[place].value for metric in comparison.metrics}
        row |= {f"param.{param.name}": param.values[place] for param in comparison.params}
        rows.append(row)
    return rows


def _change(
    description: str | None,
    owner: str | None,
    set_tags: Mapping[str, str] | None,
    delete_tags: Sequence[str],
) -> ModelChange:
    return ModelChange(
        description=UNSET if description is None else description,
        owner=UNSET if owner is None else owner,
        set_tags=dict(set_tags or {}),
        delete_tags=tuple(delete_tags),
    )
