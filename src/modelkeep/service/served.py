"""Which versions an endpoint has served: where it may go back to without asking a gate, and what a gateway
may be taken at its word for. What an alias named, though no callers ever had it, is not among them.
"""

from modelkeep.core.catalog import ModelVersion
from modelkeep.core.events import EventKind
from modelkeep.core.rollout import Endpoint, RolloutState
from modelkeep.service import references
from modelkeep.service.act import SYSTEM_CALLER, Act
from modelkeep.store import catalog as catalog_store
from modelkeep.store import models as models_store
from modelkeep.store import promotion as store
from modelkeep.store import rollout as rollouts
from modelkeep.store.visibility import visible_to

CHOICES_MAX = 20
"""Former versions that a rollback chooses from: whoever goes further back names the version."""
ROLLOUTS_MAX = 50
"""Latest rollouts of an endpoint that are looked through for those that succeeded."""
EVENTS_MAX = 100
"""Latest moves of an alias that are looked through for those that brought traffic."""


def served_before(act: Act, endpoint: Endpoint) -> list[ModelVersion]:
    """The versions that an endpoint served, or that stood in the stage it follows, and that were neither
    deleted nor taken back: the one before first, then the latest first. The present one may be among them.
    """
    brought = _in_stage(act, endpoint) if endpoint.alias is None else _behind_alias(act, endpoint)
    found: list[ModelVersion] = []
    for number in dict.fromkeys((endpoint.previous, *brought)):
        if number is None or len(found) == CHOICES_MAX:
            continue
        known = catalog_store.find(act.tx, catalog_store.BY_NUMBER, endpoint.model, number=number)
        if known is not None and known.tombstone is None:
            found.append(known)
    return found


def _in_stage(act: Act, endpoint: Endpoint) -> list[int]:
    row = models_store.get_row(act.tx, endpoint.model)
    stays = store.former(act.tx, row.id, endpoint.stage or "", CHOICES_MAX)
    return [stay.number for stay in reversed(stays)]


def _behind_alias(act: Act, endpoint: Endpoint) -> list[int]:
    """Where the endpoint's rollouts led that succeeded, and where those of others behind the same alias did:
    such a one sets the alias in the act in which it succeeds. Whoever sets it otherwise moves no traffic."""
    recent = rollouts.list_rollouts(
        act.tx, visible_to(SYSTEM_CALLER), rollouts.FIRST, ROLLOUTS_MAX, endpoint.name
    )
    own = [
        one.candidate
        for one in recent
        if one.state is RolloutState.SUCCEEDED and (one.model, one.alias) == (endpoint.model, endpoint.alias)
    ]
    subject = references.alias_subject(endpoint.model, endpoint.alias or "")
    moves = [one.event for one in act.tx.events.before(limit=EVENTS_MAX, subject=subject)]
    others = [
        move.number
        for move in moves
        if move.kind is EventKind.ALIAS_SET and move.body.get("rollout") is not None
    ]
    return own + [number for number in others if number is not None]
