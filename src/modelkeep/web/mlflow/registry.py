"""The registry in MLflow's words: one handler for each operation, requests in, answers out.

What the words mean is `service.mlflow_registry`; the verbs are those of the catalog and of promotion, so that
a version made or moved here is the same to every other face. Requests and answers are `registry_shapes`.
"""

import re
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import NamedTuple

from msgspec import Raw

from modelkeep.core import errors, values
from modelkeep.core.catalog import ModelChange, refuse_own_tags
from modelkeep.core.values import ModelName, Ref
from modelkeep.service import mlflow_reading as reading
from modelkeep.service import mlflow_registry as words
from modelkeep.service import registry_search, renaming
from modelkeep.service.act import Act
from modelkeep.service.mlflow_registry import Transition
from modelkeep.store.standing import Mark
from modelkeep.web.mlflow import known
from modelkeep.web.mlflow import registry_shapes as shapes
from modelkeep.web.mlflow.registry_shapes import (
    DownloadUri,
    ModelsOut,
    OneModel,
    OneVersion,
    VersionsOut,
    model_out,
    version_out,
)
from modelkeep.web.mlflow.tracking_shapes import TagIn
from modelkeep.web.mlflow.wire import DONE, Nothing, project_of
from modelkeep.web.operations import Call

MODELS_MAX = 1_000
"""Models that a client may ask for at once; MLflow's limit."""
MODELS_DEFAULT = 100
"""Models of a page when nobody says."""
VERSIONS_MAX = 200_000
"""Versions that a client may ask for at once; MLflow's limit. A page holds fewer when they would not fit."""
VERSIONS_SHORT = 200
"""Versions of one model that are listed on the event loop, where the store never waits."""
VERSIONS_DEFAULT = 10_000
"""Versions of a page when nobody says."""

_CLIENT = re.compile(rb"mlflow[a-z-]{0,20}/[0-9a-z.]{1,20}", re.IGNORECASE)


def required(text: str, name: str) -> str:
    """What a request must hold; MLflow takes an empty text for none. Raises InvalidParameter."""
    if not text.strip():
        raise errors.InvalidParameter(f"Missing value for required parameter '{name}'.", field=name)
    return text


def model_of(call: Call, name: str, what: str = "name") -> ModelName:
    """The model of that name in the project of the request. Raises InvalidName, InvalidParameter."""
    return ModelName(project_of(call), values.check_model_name(required(name, what)))


def _version(call: Call, name: str, version: str) -> Ref:
    return words.version_ref(model_of(call, name), required(version, "version"))


def tags_of(given: tuple[TagIn, ...] | None) -> dict[str, str]:
    """Tags by key, the last of a key, and none of Modelkeep's own."""
    tags = {required(tag.key, "key"): tag.value for tag in given or ()}
    refuse_own_tags(tags)
    return tags


def _key(key: str) -> str:
    refuse_own_tags([required(key, "key")])
    return key


_VERSIONS, _MODELS = known.versions(), known.models()


def _versions(act: Act, marks: Sequence[Mark]) -> tuple[Raw, ...]:
    return _VERSIONS.pieces(marks, partial(reading.version_lines, act))


def _models(act: Act, marks: Sequence[Mark]) -> tuple[Raw, ...]:
    return _MODELS.pieces(marks, partial(reading.model_lines, act))


def _most(asked: int | None, default: int, most: int) -> int:
    if asked is None:
        return default
    if not 0 < asked <= most:
        raise errors.InvalidParameter(
            f"Invalid value {asked} for parameter 'max_results': ask for 1 to {most:,}.", field="max_results"
        )
    return asked


# ----------------------------------------------------------------------------------------------------- models


def _changed(act: Act, name: ModelName) -> OneModel:
    """A model after a change in the same act."""
    mark = reading.mark_of_model(act, name)
    return OneModel(model_out(reading.model_lines(act, [mark.id])[mark.id]))


def create_model(act: Act, call: Call) -> OneModel:
    """`registered-models/create`."""
    asked: shapes.CreateModel = call.body
    name = model_of(call, asked.name)
    made = call.house.catalog.create_model(
        act, name, description=asked.description or "", tags=tags_of(asked.tags)
    )
    return OneModel(model_out(words.new_model(made)))


def get_model(act: Act, call: Call) -> OneModel:
    """`registered-models/get`."""
    [found] = _models(act, [reading.mark_of_model(act, model_of(call, call.query.name))])
    return OneModel(found)


def update_model(act: Act, call: Call) -> OneModel:
    """`registered-models/update`; without a description it is cleared."""
    name = model_of(call, call.body.name)
    call.house.catalog.change_model(act, name, ModelChange(description=call.body.description or ""))
    return _changed(act, name)


def rename_model(act: Act, call: Call) -> OneModel:
    """`registered-models/rename`."""
    asked: shapes.RenameModel = call.body
    name = model_of(call, asked.name)
    new_name = required(asked.new_name, "new_name")
    renamed = renaming.rename(act, call.house.access, name, new_name)
    return _changed(act, renamed.name)


def delete_model(act: Act, call: Call) -> Nothing:
    """`registered-models/delete`, with all versions, unless something rests on one."""
    call.house.catalog.delete_model(act, model_of(call, call.body.name))
    return DONE


def set_model_tag(act: Act, call: Call) -> Nothing:
    """`registered-models/set-tag`."""
    asked: shapes.ModelTag = call.body
    change = ModelChange(set_tags={_key(asked.key): asked.value})
    call.house.catalog.change_model(act, model_of(call, asked.name), change)
    return DONE


def delete_model_tag(act: Act, call: Call) -> Nothing:
    """`registered-models/delete-tag`; one that is not there is no error."""
    asked: shapes.ModelTagKey = call.body
    change = ModelChange(delete_tags=(_key(asked.key),))
    call.house.catalog.change_model(act, model_of(call, asked.name), change)
    return DONE


def search_models(act: Act, call: Call) -> ModelsOut:
    """`registered-models/search`."""
    asked: shapes.Search = call.query
    page = registry_search.search_registered_models(
        act,
        project_of(call),
        filter=asked.filter or "",
        order_by=asked.order_by or (),
        max_results=_most(asked.max_results, MODELS_DEFAULT, MODELS_MAX),
        page_token=asked.page_token or None,
    )
    return ModelsOut(_models(act, page.items), page.next_page_token)


def latest_versions(act: Act, call: Call) -> VersionsOut:
    """`registered-models/get-latest-versions`, which is asked by GET and by POST."""
    asked: shapes.LatestVersions = call.body if call.body is not None else call.query
    found = reading.latest_versions(act, model_of(call, asked.name), asked.stages or ())
    return VersionsOut(tuple(map(version_out, found)))


# ---------------------------------------------------------------------------------------------------- aliases


def set_alias(act: Act, call: Call) -> Nothing:
    """`registered-models/alias` by POST."""
    asked: shapes.SetAlias = call.body
    alias = words.check_alias(required(asked.alias, "alias"))
    ref = _version(call, asked.name, asked.version)
    call.house.catalog.point_alias(act, ref.model, alias, ref, reason="set by an MLflow client")
    return DONE


def delete_alias(act: Act, call: Call) -> Nothing:
    """`registered-models/alias` by DELETE; one that is not there is no error."""
    asked: shapes.Alias = call.body
    alias = words.check_alias(required(asked.alias, "alias"))
    with suppress(errors.AliasNotFound):
        call.house.catalog.delete_alias(act, model_of(call, asked.name), alias)
    return DONE


def get_by_alias(act: Act, call: Call) -> OneVersion:
    """`registered-models/alias` by GET."""
    asked: shapes.Alias = call.query
    alias = words.check_alias(required(asked.alias, "alias"))
    [found] = _versions(act, [reading.by_alias(act, model_of(call, asked.name), alias)])
    return OneVersion(found)


# --------------------------------------------------------------------------------------------------- versions


def get_version(act: Act, call: Call) -> OneVersion:
    """`model-versions/get`."""
    asked: shapes.VersionNamed = call.query
    [found] = _versions(act, [reading.mark_of_version(act, _version(call, asked.name, asked.version))])
    return OneVersion(found)


def update_version(act: Act, call: Call) -> OneVersion:
    """`model-versions/update`; without a description it is cleared."""
    asked: shapes.UpdateVersion = call.body
    change = ModelChange(description=asked.description or "")
    changed = call.house.catalog.change_version(act, _version(call, asked.name, asked.version), change)
    return OneVersion(version_out(words.seen(act, [changed])[0].line))


def delete_version(act: Act, call: Call) -> Nothing:
    """`model-versions/delete`, unless something rests on it."""
    asked: shapes.VersionNamed = call.body
    call.house.catalog.delete_version(act, _version(call, asked.name, asked.version))
    return DONE


def set_version_tag(act: Act, call: Call) -> Nothing:
    """`model-versions/set-tag`."""
    asked: shapes.VersionTag = call.body
    change = ModelChange(set_tags={_key(asked.key): asked.value})
    call.house.catalog.change_version(act, _version(call, asked.name, asked.version), change)
    return DONE


def delete_version_tag(act: Act, call: Call) -> Nothing:
    """`model-versions/delete-tag`; one that is not there is no error."""
    asked: shapes.VersionTagKey = call.body
    change = ModelChange(delete_tags=(_key(asked.key),))
    call.house.catalog.change_version(act, _version(call, asked.name, asked.version), change)
    return DONE


def search_versions(act: Act, call: Call) -> VersionsOut:
    """`model-versions/search`."""
    asked: shapes.Search = call.query
    page = registry_search.search_model_versions(
        act,
        project_of(call),
        filter=asked.filter or "",
        order_by=asked.order_by or (),
        max_results=_most(asked.max_results, VERSIONS_DEFAULT, VERSIONS_MAX),
        page_token=asked.page_token or None,
    )
    return VersionsOut(_versions(act, page.items), page.next_page_token)


def is_short_search(call: Call) -> bool:
    """Whether a search of versions is for some of one model and for nothing else, as most are."""
    asked: shapes.Search = call.query
    few = asked.max_results is not None and asked.max_results <= VERSIONS_SHORT
    return few and not asked.order_by and registry_search.names_one_model(asked.filter or "")


def download_uri(act: Act, call: Call) -> DownloadUri:
    """`model-versions/get-download-uri`: where the version's own files are read."""
    asked: shapes.VersionNamed = call.query
    mark = reading.mark_of_version(act, _version(call, asked.name, asked.version))
    return DownloadUri(shapes.root_of(reading.version_lines(act, [mark.id])[mark.id]))


def _transition(call: Call) -> Transition:
    asked: shapes.TransitionStage = call.body
    archive = asked.archive_existing_versions
    if not isinstance(archive, bool | None):
        raise errors.InvalidParameter(
            "Invalid value for parameter 'archive_existing_versions': say true or false.",
            field="archive_existing_versions",
        )
    said = _CLIENT.search(call.headers.get(b"user-agent", b""))
    return Transition(
        ref=_version(call, asked.name, asked.version),
        word=required(asked.stage, "stage"),
        archive_others=bool(archive),
        client=said[0].decode("ascii") if said is not None else "",
    )


class Hashed(NamedTuple):
    """Whether the files of a version that is to move were found right; None where nobody can say."""

    verified: bool | None


def hash_for_transition(call: Call) -> Hashed:
    """Hash the files of a version that is to move, before any transaction; the gates ask for it."""
    house, find = call.house, partial(words.to_be_moved, asked=_transition(call))
    return Hashed(house.catalog.still_holds(house.desk, call.context, find))


def transition(act: Act, call: Call) -> OneVersion:
    """`model-versions/transition-stage`: a promotion, by the model's policy."""
    house, asked = call.house, _transition(call)
    if call.prepared is None:
        done = words.transition(act, house.promotions, asked, look=house.catalog.look_at_hand)
    else:
        done = words.transition(act, house.promotions, asked, files_verified=call.prepared.verified)
    return OneVersion(version_out(done.line))
