"""The client's verbs of promotion: gates, requests, reviews, moves between stages, and what was when.

A promotion is decided by the server alone; nothing here weighs evidence.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime

from modelkeep.client.answers import Listing, Page
from modelkeep.client.transport import V1, Wire, given, model_path, segment, time_text
from modelkeep.core.answers import GateReport, History, PolicyRecord, Promotion, Rollback, WhatWas
from modelkeep.core.catalog import ModelVersion
from modelkeep.core.plan import Plan, Strategy, check_plan, chosen, read_strategy
from modelkeep.core.promotion import PromotionRequest, RequestState, Vote


class PromotionVerbs(Wire):
    """Who may move what where, and why."""

    def gate(self, ref: str, to: str) -> GateReport:
        """Whether a version may enter a stage, gate by gate; changes nothing."""
        return self.send(GateReport, "GET", f"{V1}/gate", query={"ref": ref, "to": to}, patient=True)

    def promote(
        self,
        ref: str,
        to: str,
        reason: str,
        *,
        request: str | None = None,
        ticket: str | None = None,
        plan: Plan | None = None,
        strategy: Strategy | str | None = None,
        supersede: bool = False,
    ) -> Promotion:
        """Move a version to a stage; where an endpoint follows the stage, start the rollout that will.

        Args:
            plan: how this rollout goes, in the place of the policy's plan or the endpoint's.
            strategy: the same, by the plan that the strategy has by itself.
            supersede: end the rollout that is under way, and begin from the same stable version.

        Raises:
            PolicyDenied: a gate does not hold; `details.gates` says which and what would make it pass.
            ApprovalRequired: somebody else has to agree; `details.request` is the request to review.
            Tombstoned, InvalidTransition, RolloutActive: the version was taken back, or cannot move there
            (now).
            InvalidPlan: the plan cannot be carried out, or there is no such strategy.
        """
        plan = chosen(plan, read_strategy(strategy) if strategy is not None else None)
        body = given(
            ref=ref,
            to=to,
            reason=reason,
            request=request,
            ticket=ticket,
            plan=check_plan(plan) if plan is not None else None,
            supersede=supersede or None,
        )
        return self.send(Promotion, "POST", f"{V1}/promotions", body, patient=True)

    def rollback(
        self,
        model: str,
        reason: str,
        *,
        to: str | None = None,
        stage: str | None = None,
        incident: str | None = None,
        alias: str | None = None,
    ) -> Rollback:
        """Take a model back: an unfinished rollout, else to the last healthy version, or to the one named.

        Args:
            stage, alias: where; production, when neither is said.

        Raises:
            NoRollbackTarget: there is none. EndpointNotFound: no endpoint follows the alias.
        """
        body = given(model=model, reason=reason, to=to, stage=stage, incident=incident, alias=alias)
        return self.send(Rollback, "POST", f"{V1}/rollbacks", body)

    def preview_rollback(
        self, model: str, *, to: str | None = None, stage: str | None = None, alias: str | None = None
    ) -> Rollback:
        """Where `rollback` would go now; nothing is changed. Raises what that would raise."""
        return self.get(Rollback, f"{V1}/rollbacks/preview", model=model, to=to, stage=stage, alias=alias)

    def clear_version(self, ref: str, reason: str) -> ModelVersion:
        """Let a version that was taken back return."""
        return self.send(ModelVersion, "POST", f"{V1}/version/clear", {"reason": reason}, query={"ref": ref})

    def open_request(self, ref: str, to: str, reason: str, *, ticket: str | None = None) -> PromotionRequest:
        """Ask others to agree to a promotion."""
        body = given(ref=ref, to=to, reason=reason, ticket=ticket)
        return self.send(PromotionRequest, "POST", f"{V1}/requests", body, patient=True)

    def list_requests(
        self, *, model: str | None = None, state: RequestState | str | None = None, limit: int | None = None
    ) -> Listing[PromotionRequest]:
        """Promotion requests, newest first."""
        return self.listing(Page[PromotionRequest], f"{V1}/requests", limit, model=model, state=state)

    def get_request(self, request: str) -> PromotionRequest:
        """One promotion request with its reviews. Raises RequestNotFound."""
        return self.get(PromotionRequest, f"{V1}/requests/{segment(request)}")

    def review(
        self,
        request: str,
        vote: Vote | str,
        *,
        comment: str = "",
        checks: Mapping[str, str] | None = None,
        waive: Sequence[str] = (),
    ) -> PromotionRequest:
        """Say what one thinks of a request.

        Args:
            vote: `approve`, `reject` or `comment`.
            checks: items of the checklist that the reviewer vouches for, each with its evidence.
            waive: gates that the reviewer takes upon themselves; the comment says why.

        Raises:
            SelfApproval: it is the reviewer's own request.
            RequestClosed: it was decided already, or has expired.
        """
        body = {"vote": Vote(vote), "comment": comment, "checks": dict(checks or {}), "waive": tuple(waive)}
        path = f"{V1}/requests/{segment(request)}/reviews"
        return self.send(PromotionRequest, "POST", path, body, patient=True)

    def withdraw(self, request: str, reason: str) -> PromotionRequest:
        """Take a request back. Raises RequestClosed."""
        path = f"{V1}/requests/{segment(request)}/withdrawal"
        return self.send(PromotionRequest, "POST", path, {"reason": reason})

    def history(self, model: str, *, stage: str | None = None, limit: int | None = None) -> History:
        """Which version was in which stage, and what happened to the model."""
        return self.get(History, f"{model_path(model)}/history", stage=stage, limit=limit)

    def whatwas(self, ref: str, at: datetime | str | None = None) -> WhatWas:
        """What was in a stage at a moment: version, who, why, evidence, approvals. Raises StageEmpty."""
        return self.get(WhatWas, f"{V1}/whatwas", ref=ref, at=time_text(at))

    def get_policy(self, scope: str | None = None) -> PolicyRecord:
        """The policy that holds for a model, a project (`project/`), or the installation."""
        return self.get(PolicyRecord, f"{V1}/policy", scope=scope)

    def set_policy(self, scope: str | None, document: str | bytes) -> PolicyRecord:
        """Set the policy of a model, a project (`project/`), or the installation; YAML or JSON.

        Raises:
            InvalidPolicy: names the place.
        """
        data = document.encode() if isinstance(document, str) else document
        return self.send(PolicyRecord, "PUT", f"{V1}/policy", data, query={"scope": scope})

    request = open_request
    clear = clear_version
