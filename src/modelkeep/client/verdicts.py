"""The client's verbs of verdicts: what evidence says, of a rollout here or of counts from elsewhere."""

from collections.abc import Iterable

from modelkeep.client.transport import V1, Wire, given, segment
from modelkeep.core.plan import Plan
from modelkeep.core.sequential import Unit
from modelkeep.core.simulation import Simulation
from modelkeep.core.verdicts import CountedTick, CountsVerdict, RolloutVerdict


class VerdictVerbs(Wire):
    """What the evidence says."""

    def get_verdict(self, rollout: str) -> RolloutVerdict:
        """What a rollout's evidence says now, named by its id or by its endpoint. Raises RolloutNotFound."""
        return self.get(RolloutVerdict, f"{V1}/rollouts/{segment(rollout)}/verdict")

    def endpoint_verdict(self, endpoint: str) -> RolloutVerdict:
        """The same of an endpoint's rollout under way, or its last one. Raises RolloutNotFound."""
        return self.get(RolloutVerdict, f"{V1}/endpoints/{segment(endpoint)}/rollout/verdict")

    def simulate_rollout(self, rollout: str, plan: Plan | None = None) -> Simulation:
        """What would have come of a rollout under another plan, by the counts that were recorded; named by
        its id or by its endpoint. Changes nothing.

        Raises:
            RolloutNotFound.
            InvalidPlan: the plan cannot be carried out.
            Conflict: nothing was counted in the rollout.
        """
        path = f"{V1}/rollouts/{segment(rollout)}/simulation"
        return self.send(Simulation, "POST", path, given(plan=plan), patient=True)

    def judge_counts(
        self, ticks: Iterable[CountedTick], *, plan: Plan | None = None, unit: Unit = Unit.REQUEST
    ) -> CountsVerdict:
        """A verdict on counts that another router made; the server keeps nothing of it.

        Args:
            ticks: all of the rollout so far, oldest first.
            plan: whose error rates and margins hold; the default canary's when left out.
            unit: what that router draws.

        Raises:
            InvalidPlan, InvalidInput: the plan promises nothing, or a tick cannot be.
            LimitExceeded: too many ticks, or more failures than are judged in one question.
        """
        body = {"ticks": tuple(ticks), "unit": unit, **given(plan=plan)}
        return self.send(CountsVerdict, "POST", f"{V1}/verdicts", body, patient=True)
