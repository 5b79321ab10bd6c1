"""The registry's rows of the MLflow door."""

from typing import Any

from modelkeep.web.mlflow import new_versions, registry
from modelkeep.web.mlflow import registry_shapes as shapes
from modelkeep.web.mlflow.registry_shapes import DownloadUri, ModelsOut, OneModel, OneVersion, VersionsOut
from modelkeep.web.mlflow.route import API, row
from modelkeep.web.mlflow.wire import Nothing
from modelkeep.web.operations import Mode, Operation

READ, WRITE, SLOW = Mode.READ, Mode.WRITE, Mode.SLOW


def _get(path: str, mode: Mode, handler: Any, query: Any, answer: Any, **more: Any) -> Operation:
    return row("GET", API + path, mode, handler, answer, query=query, **more)


def _send(
    method: str, path: str, mode: Mode, handler: Any, body: Any, answer: Any = Nothing, **more: Any
) -> Operation:
    return row(method, API + path, mode, handler, answer, body=body, **more)


# fmt: off
REGISTRY_ROWS: tuple[Operation, ...] = (
    _send("POST", "registered-models/create", WRITE, registry.create_model, shapes.CreateModel, OneModel),
    _get("registered-models/get", READ, registry.get_model, shapes.ModelNamed, OneModel),
    _send("PATCH", "registered-models/update", WRITE, registry.update_model, shapes.UpdateModel, OneModel),
    _send("POST", "registered-models/rename", WRITE, registry.rename_model, shapes.RenameModel, OneModel),
    _send("DELETE", "registered-models/delete", WRITE, registry.delete_model, shapes.ModelNamed),
    _get("registered-models/search", SLOW, registry.search_models, shapes.Search, ModelsOut),
    _get("registered-models/get-latest-versions", READ, registry.latest_versions, shapes.LatestVersions,
         VersionsOut),
    _send("POST", "registered-models/get-latest-versions", READ, registry.latest_versions,
          shapes.LatestVersions, VersionsOut),
    _send("POST", "registered-models/set-tag", WRITE, registry.set_model_tag, shapes.ModelTag),
    _send("DELETE", "registered-models/delete-tag", WRITE, registry.delete_model_tag, shapes.ModelTagKey),
    _send("POST", "registered-models/alias", WRITE, registry.set_alias, shapes.SetAlias),
    _send("DELETE", "registered-models/alias", WRITE, registry.delete_alias, shapes.Alias),
    _get("registered-models/alias", READ, registry.get_by_alias, shapes.Alias, OneVersion),
    _send("POST", "model-versions/create", WRITE, new_versions.create, shapes.CreateVersion, OneVersion,
          before=new_versions.prepare, at_hand=True),
    _get("model-versions/get", READ, registry.get_version, shapes.VersionNamed, OneVersion),
    _send("PATCH", "model-versions/update", WRITE, registry.update_version, shapes.UpdateVersion, OneVersion),
    _send("DELETE", "model-versions/delete", WRITE, registry.delete_version, shapes.VersionNamed),
    _get("model-versions/search", SLOW, registry.search_versions, shapes.Search, VersionsOut,
         short=registry.is_short_search),
    _get("model-versions/get-download-uri", READ, registry.download_uri, shapes.VersionNamed, DownloadUri),
    _send("POST", "model-versions/transition-stage", WRITE, registry.transition, shapes.TransitionStage,
          OneVersion, before=registry.hash_for_transition, at_hand=True),
    _send("POST", "model-versions/set-tag", WRITE, registry.set_version_tag, shapes.VersionTag),
    _send("DELETE", "model-versions/delete-tag", WRITE, registry.delete_version_tag, shapes.VersionTagKey),
)
# fmt: on
