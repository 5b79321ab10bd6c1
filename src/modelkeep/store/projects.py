"""Which projects there are: one comes into being with the first experiment or model in it, and has no row of
its own.
"""

from sqlalchemy import bindparam, func, select

from modelkeep.store.schema import models
from modelkeep.store.tracking_tables import experiments
from modelkeep.store.transaction import Transaction

_NEXT = (
    select(func.min(experiments.c.project)).where(experiments.c.project > bindparam("after")),
    select(func.min(models.c.project)).where(models.c.project > bindparam("after")),
)


def names(tx: Transaction, maximum: int) -> list[str]:
    """The first names in their order. It leaps from name to name along two indexes, so it costs what there
    are of projects, not of what they hold."""
    found: list[str] = []
    after = ""
    while len(found) < maximum:
        following = [row[0] for row in (tx.one(each, after=after) for each in _NEXT) if row and row[0]]
        if not following:
            break
        after = min(following)
        found.append(after)
    return found
