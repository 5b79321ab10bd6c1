"""The verb `rename`: a model keeps everything it has under another name.

Its versions, numbers, stages, aliases, requests, endpoints, policy, grants and history go with it. What was
written down under the old name (events, the records of versions) stays as it was written and is found under
the new one. The old name is free from then on; as long as nobody takes it, whoever asks for it is told the
new one.
"""

from typing import Any

from modelkeep.core import errors, values
from modelkeep.core.access import Verb
from modelkeep.core.catalog import RegisteredModel
from modelkeep.core.events import EventKind
from modelkeep.core.values import ModelName
from modelkeep.service import references
from modelkeep.service.access import Access
from modelkeep.service.act import Act
from modelkeep.store import models, renames, renaming, webhooks


def rename(act: Act, access: Access, name: ModelName, new_name: str) -> RegisteredModel:
    """Give a model another name within its project. The name that it has already changes nothing.

    Raises:
        ModelNotFound, NotAllowed: not there, not to be seen; or the caller may not configure it, or may not
            create one of the new name.
        InvalidName: it is no name for a model. ModelExists: it is taken, was that of a deleted model, or is
            one that readers would take for another's.
        RolloutActive: traffic is being moved. LimitExceeded: it has had too many names.
    """
    wanted = ModelName(name.project, values.check_model_name(new_name))
    act.readable(name)
    act.authorise(Verb.CONFIGURE, name)
    row = references.row_of(act, name)
    if wanted == name:
        return models.get_model(act.tx, name)
    act.authorise(Verb.CREATE_MODEL, wanted)
    _refuse_taken(act, name, wanted)
    for endpoint in models.endpoints_of(act.tx, row.id):
        if endpoint.rollout is not None:
            raise errors.RolloutActive(
                f"A rollout of {endpoint.name} is under way; rename {name} when it has ended.",
                endpoint=endpoint.name,
                rollout=endpoint.rollout,
            )
    if len(renames.spans(act.tx, str(name))) >= renames.NAMES_MAX:
        raise errors.LimitExceeded(
            f"{name} has had {renames.NAMES_MAX} names; it stays what it is called now.",
            limit=renames.NAMES_MAX,
        )
    body: dict[str, Any] = {"from": str(name), "to": str(wanted)}
    event = act.record(EventKind.MODEL_RENAMED, str(wanted), model=wanted, **body)
    renaming.rename(act.tx, row.id, name, wanted, event.sequence, act.now)
    webhooks.rename_model(act.tx, name, wanted)
    access.forget_callers()
    return models.get_model(act.tx, wanted)


def _refuse_taken(act: Act, name: ModelName, wanted: ModelName) -> None:
    twin = models.find_twin(act.tx, wanted)
    if twin == wanted.name:
        raise errors.ModelExists(
            f"There is a model {wanted} already; choose another name.", model=str(wanted)
        )
    if twin is not None and twin != name.name:
        raise errors.ModelExists(
            f"{wanted} looks like the model {twin} of the same project; choose a clearer name.", model=twin
        )
    if models.find_model(act.tx, wanted, deleted=True) is not None:
        raise errors.ModelExists(
            f"{wanted} was the name of a model that is deleted, and its numbers stay with it; choose another "
            "name.",
            model=str(wanted),
        )
