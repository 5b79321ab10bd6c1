"""Simulations: the counts of a former rollout, led through another plan. Nothing is changed.

What would have happened is said by `core.simulation`.
"""

from itertools import islice

from modelkeep.core.plan import Plan
from modelkeep.core.simulation import TICKS_MAX, Simulation, simulate
from modelkeep.service.act import Act
from modelkeep.service.rollout import Rollouts
from modelkeep.store import rollout as store


def simulated(act: Act, rollouts: Rollouts, name: str, plan: Plan | None = None) -> Simulation:
    """What would have come of a rollout under another plan; its own when none is given.

    Args:
        name: the rollout's id, or its endpoint's, which means the current or last one.

    Raises:
        RolloutNotFound: also for one whose model the caller may not read.
        InvalidPlan: the plan cannot be carried out.
        Conflict: nothing was counted in the rollout.
    """
    found = rollouts.get_rollout(act, name)
    ticks = islice(store.ticks_of(act.tx, found.id), TICKS_MAX + 1)
    return simulate(found, plan if plan is not None else found.plan, ticks)
