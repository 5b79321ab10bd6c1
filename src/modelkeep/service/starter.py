"""What promotion, rollbacks and aliases need of the rollout column. What its verbs do is with whoever has
them: `endpoints` and `rollout`.
"""

from typing import Protocol

from modelkeep.core.catalog import ModelVersion
from modelkeep.core.plan import Plan
from modelkeep.core.rollout import Endpoint, Rollout
from modelkeep.core.values import ModelName
from modelkeep.service.act import Act


class RolloutStarter(Protocol):
    """Who begins and ends movements of traffic."""

    def following(
        self, act: Act, model: ModelName, stage: str | None, alias: str | None = None
    ) -> Endpoint | None:
        """The endpoint that follows a stage of a model, or an alias."""

    def plan_for(self, act: Act, endpoint: Endpoint) -> Plan | None:
        """How the policy has the traffic of an endpoint move; None where the endpoint says it."""

    def running(self, act: Act, endpoint: Endpoint) -> Rollout | None:
        """The rollout of an endpoint that is not finished."""

    def start(
        self,
        act: Act,
        endpoint: Endpoint,
        version: ModelVersion,
        *,
        reason: str,
        request: str | None,
        plan: Plan | None = None,
        plan_from: str = "endpoint",
        supersede: bool = False,
        shielded: bool = False,
    ) -> Rollout:
        """Begin to move an endpoint's traffic to a version. Raises RolloutActive."""

    def take_back(self, act: Act, endpoint: Endpoint, reason: str) -> Rollout | None:
        """End an unfinished rollout of an endpoint; None when there is none."""

    def revert(self, act: Act, endpoint: Endpoint, to: ModelVersion, reason: str) -> None:
        """Have an endpoint serve a former version at once."""
