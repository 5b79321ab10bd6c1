"""Registered models and versions as the MLflow client sends and parses them.

What a request may hold, and how a model and a version look on the wire. Nothing here asks the services.
"""

from datetime import datetime
from typing import Any

from msgspec import Raw, Struct

from modelkeep.core.catalog import OWN_TAGS
from modelkeep.core.tracking import Tag
from modelkeep.core.values import ModelName
from modelkeep.service.mlflow_registry import RUN_LINK, stage_word
from modelkeep.store.standing import ModelLine, VersionLine
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


class VersionOut(Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
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


class AliasOut(Struct, frozen=True, kw_only=True, gc=False):
    """An alias of a model."""

    alias: str
    version: str


class ModelOut(Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
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
    registered_model: ModelOut | Raw


class OneVersion(Struct, frozen=True):
    model_version: VersionOut | Raw


class VersionsOut(Struct, frozen=True, omit_defaults=True):
    model_versions: tuple[VersionOut | Raw, ...] = ()
    next_page_token: str | None = None


class ModelsOut(Struct, frozen=True, omit_defaults=True):
    registered_models: tuple[ModelOut | Raw, ...] = ()
    next_page_token: str | None = None


class DownloadUri(Struct, frozen=True):
    artifact_uri: str


def root_of(line: VersionLine) -> str:
    """Where the files of a version are read, and never written."""
    return f"mlflow-artifacts:/registered-models/{line.project}/{line.name}/{line.number}"


def version_out(line: VersionLine) -> VersionOut:
    """A version on the wire."""
    tags = {**line.tags, **_own_tags(line)}
    run_link = tags.pop(RUN_LINK, "")
    return VersionOut(
        name=line.name,
        version=str(line.number),
        creation_timestamp=_ms(line.created_at),
        last_updated_timestamp=_ms(line.updated_at),
        user_id=line.created_by,
        current_stage=stage_word(line.stage),
        description=line.description,
        source=line.source or root_of(line),
        run_id=line.run_id or "",
        status="READY",
        tags=_tags(tags),
        run_link=run_link,
        aliases=line.aliases,
    )


def _own_tags(line: VersionLine) -> dict[str, str]:
    """What MLflow has no field for; nobody can set it."""
    own = {
        _SEMVER: line.semver,
        _DIGEST: line.digest,
        _REFERENCE: f"{ModelName(line.project, line.name)}:{line.semver}",
    }
    if line.rollout is not None:
        own[_ROLLOUT] = line.rollout
    withdrawn = line.withdrawn
    if withdrawn is not None:
        own[_WITHDRAWN] = withdrawn
    return own


_SEMVER, _DIGEST, _REFERENCE = f"{OWN_TAGS}semver", f"{OWN_TAGS}digest", f"{OWN_TAGS}reference"
_ROLLOUT, _WITHDRAWN = f"{OWN_TAGS}rollout", f"{OWN_TAGS}withdrawn"


def model_out(line: ModelLine) -> ModelOut:
    """A registered model on the wire."""
    return ModelOut(
        name=line.name,
        creation_timestamp=_ms(line.created_at),
        last_updated_timestamp=_ms(line.updated_at),
        user_id=line.created_by,
        description=line.description,
        latest_versions=tuple(map(version_out, line.latest)),
        tags=_tags(line.tags),
        aliases=tuple([AliasOut(alias=alias, version=str(number)) for alias, number in line.aliases]),
    )


def _tags(tags: dict[str, str]) -> tuple[Tag, ...]:
    return tuple([Tag(key, value) for key, value in sorted(tags.items())])


def _ms(moment: str) -> int:
    """Milliseconds since 1970 of a time as the store has it: one for each row and field, so read directly."""
    return int(datetime.fromisoformat(moment).timestamp() * 1000)
