"""Who looks after a rollout, as it stands in the table: the product only claims, renews and lets go."""

from datetime import datetime

from msgspec import Struct
from sqlalchemy import bindparam, select

from modelkeep.core import codec
from modelkeep.store.schema import rollouts
from modelkeep.store.transaction import Transaction

_LEASE = select(rollouts.c.lease_owner, rollouts.c.lease_until, rollouts.c.lease_term).where(
    rollouts.c.id == bindparam("id")
)


class Lease(Struct, frozen=True):
    """Which controller has a rollout for itself, until when; `term` rises with each new owner."""

    owner: str | None
    until: datetime | None
    term: int


def lease_of(tx: Transaction, rollout_id: str) -> Lease:
    """Who looks after a rollout."""
    owner, until, term = tx.one(_LEASE, id=rollout_id) or (None, None, 0)
    return Lease(owner, codec.parse_time(until) if until is not None else None, int(term))
