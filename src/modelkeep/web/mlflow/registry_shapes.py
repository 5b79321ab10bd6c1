"""Registered models and versions as the MLflow client sends and parses them.

What a request may hold, and how a model and a version look on the wire. Nothing here asks the services.
"""

from datetime import datetime
from typing import Any

from msgspec import Struct

from modelkeep.core.catalog import OWN_TAGS
from modelkeep.core.tracking import Tag
from modelkeep.service.mlflow_registry import RUN_LINK, Seen, SeenModel, stage_word
from modelkeep.web.mlflow.tracking_shapes import TagIn
from modelkeep.web.mlflow.wire import Int64, Request

# --------------------------------------------------------------------------------------------------- requests


class CreateModel(Request, frozen=True, kw_only=True):
    name: str
    tags: tuple[TagIn, ...] | None = None
    description: str | None = None
    deployment_job_id: str | None = None


class UpdateModel(Request, frozen=True, kw_only=True):
    name: str
    description: str | None = None
    deployment_job_id: str | None = None


class RenameModel(Request, frozen=True, kw_only=True):
    name: str
    new_name: str


class ModelNamed(Request, frozen=True, kw_only=True):
    name: str


class Search(Request, frozen=True, kw_only=True):
    filter: str | None = None
    max_results: Int64 | None = None
    order_by: tuple[str, ...] | None = None
    page_token: str | None = None


class LatestVersions(Request, frozen=True, kw_only=True):
    name: str
    stages: tuple[str, ...] | None = None


class ModelTag(Request, frozen=True, kw_only=True):
    name: str
    key: str
    value: str = ""


class ModelTagKey(Request, frozen=True, kw_only=True):
    name: str
    key: str


class SetAlias(Request, frozen=True, kw_only=True):
    name: str
    alias: str
    version: str


class Alias(Request, frozen=True, kw_only=True):
    name: str
    alias: str


class CreateVersion(Request, frozen=True, kw_only=True):
    name: str
    source: str
    run_id: str | None = None
    tags: tuple[TagIn, ...] | None = None
    run_link: str | None = None
    description: str | None = None
    model_id: str | None = None


class VersionNamed(Request, frozen=True, kw_only=True):
    name: str
    version: str


class UpdateVersion(Request, frozen=True, kw_only=True):
    name: str
    version: str
    description: str | None = None


class TransitionStage(Request, frozen=True, kw_only=True):
    name: str
    version: str
    stage: str
    archive_existing_versions: Any = None
    """Checked by its handler: a text would pass as a yes or no here, and MLflow takes none."""


class VersionTag(Request, frozen=True, kw_only=True):
    name: str
    version: str
    key: str
    value: str = ""


class VersionTagKey(Request, frozen=True, kw_only=True):
    name: str
    version: str
    key: str


# ---------------------------------------------------------------------------------------------------- answers


class VersionOut(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A version as the client parses it; its number is a text."""

    name: str
    version: str
    creation_timestamp: int
    last_updated_timestamp: int
    user_id: str
    current_stage: str
    description: str
    source: str
    run_id: str
    status: str
    tags: tuple[Tag, ...] = ()
    run_link: str
    aliases: tuple[str, ...] = ()


class AliasOut(Struct, frozen=True, kw_only=True):
    """An alias of a model."""

    alias: str
    version: str


class ModelOut(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A registered model as the client parses it."""

    name: str
    creation_timestamp: int
    last_updated_timestamp: int
    user_id: str
    description: str = ""
    latest_versions: tuple[VersionOut, ...] = ()
    tags: tuple[Tag, ...] = ()
    aliases: tuple[AliasOut, ...] = ()


class OneModel(Struct, frozen=True):
    registered_model: ModelOut


class OneVersion(Struct, frozen=True):
    model_version: VersionOut


class VersionsOut(Struct, frozen=True, omit_defaults=True):
    model_versions: tuple[VersionOut, ...] = ()
    next_page_token: str | None = None


class ModelsOut(Struct, frozen=True, omit_defaults=True):
    registered_models: tuple[ModelOut, ...] = ()
    next_page_token: str | None = None


class DownloadUri(Struct, frozen=True):
    artifact_uri: str


def root_of(seen: Seen) -> str:
    """Where the files of a version are read, and never written."""
    version = seen.version
    return (
        f"mlflow-artifacts:/registered-models/{version.model.project}/{version.model.name}/{version.number}"
    )


def version_out(seen: Seen) -> VersionOut:
    """A version on the wire."""
    version, told = seen.version, seen.version.provenance
    tags = dict(version.tags)
    run_link = tags.pop(RUN_LINK, "")
    tags |= _own_tags(seen)
    return VersionOut(
        name=version.model.name,
        version=str(version.number),
        creation_timestamp=_ms(version.created_at),
        last_updated_timestamp=_ms(seen.beside.updated_at),
        user_id=version.created_by,
        current_stage=stage_word(version.stage),
        description=version.description,
        source=(told.source if told is not None else None) or root_of(seen),
        run_id=(told.run_id if told is not None else None) or "",
        status="READY",
        tags=_tags(tags),
        run_link=run_link,
        aliases=version.aliases,
    )


def _own_tags(seen: Seen) -> dict[str, str]:
    """What MLflow has no field for; nobody can set it."""
    version = seen.version
    own = {"semver": version.semver, "digest": version.digest, "reference": version.reference}
    if seen.beside.rollout is not None:
        own["rollout"] = seen.beside.rollout
    if version.withdrawn is not None:
        own["withdrawn"] = version.withdrawn
    return {OWN_TAGS + key: value for key, value in own.items()}


def model_out(seen: SeenModel) -> ModelOut:
    """A registered model on the wire."""
    model = seen.model
    return ModelOut(
        name=model.name.name,
        creation_timestamp=_ms(model.created_at),
        last_updated_timestamp=_ms(model.updated_at),
        user_id=model.created_by,
        description=model.description,
        latest_versions=tuple(map(version_out, seen.latest)),
        tags=_tags(model.tags),
        aliases=tuple(AliasOut(alias=each.alias, version=str(each.number)) for each in model.aliases),
    )


def _tags(tags: dict[str, str]) -> tuple[Tag, ...]:
    return tuple(Tag(key, value) for key, value in sorted(tags.items()))


def _ms(moment: datetime) -> int:
    return int(moment.timestamp() * 1000)
