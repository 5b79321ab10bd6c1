"""The promotion column's verbs, as the faces call them: ask the gates, promote, take back, and look back.

Here is what needs stages, requests, policies and rollouts at once; what needs only one of them is in
`stages`, `requests` and `policies`. Where an endpoint follows a stage, a promotion starts a rollout, and the
rollout column calls `enter_stage` when it has succeeded: the stage follows the traffic, never the other way.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import assert_never

from msgspec import structs

from modelkeep.core import errors, policy, promotion, values
from modelkeep.core.access import Verb
from modelkeep.core.answers import (
    GateReport,
    History,
    PolicyRecord,
    Promotion,
    PromotionKind,
    Rollback,
    Ruling,
    WhatWas,
)
from modelkeep.core.catalog import ModelVersion, RegisteredModel, StageGraph
from modelkeep.core.plan import Plan, check_plan
from modelkeep.core.policy import Policy
from modelkeep.core.promotion import (
    TICKET_MAX,
    AwaitingApproval,
    Granted,
    Interval,
    MoveCause,
    PromotionRequest,
    Refused,
    RequestState,
    Vote,
)
from modelkeep.core.rollout import Endpoint
from modelkeep.core.values import Actor, ModelName, Ref
from modelkeep.service import stages
from modelkeep.service.act import Act, Context, Desk
from modelkeep.service.contenders import admit
from modelkeep.service.gates import report
from modelkeep.service.grants import grant_of, record_grant
from modelkeep.service.policies import Policies, nearest, refuse_weaker
from modelkeep.service.references import present
from modelkeep.service.refusals import awaiting, denied
from modelkeep.service.requests import Case, RequestPage, Requests
from modelkeep.service.rollbacks import Resolver, Rollbacks, RolloutStarter
from modelkeep.service.stages import Because, Place
from modelkeep.store import models as models_store
from modelkeep.store import promotion as store
from modelkeep.store import requests as request_store
from modelkeep.store.models import ModelRow
from modelkeep.store.rollout import endpoint_following

__all__ = [
    "GateReport",
    "History",
    "PolicyRecord",
    "Promotion",
    "PromotionKind",
    "Promotions",
    "RequestPage",
    "Rollback",
    "RolloutStarter",
    "Ruling",
    "WhatWas",
]

NO_CHECKS: Mapping[str, str] = {}


class Promotions:
    """Who may move what where, and why."""

    def __init__(self, *, catalog: Resolver, rollouts: RolloutStarter | None, default_policy: Policy) -> None:
        """
        Args:
            rollouts: None where nothing is served, so that every promotion moves its stage at once.
            default_policy: what holds until somebody sets a policy.
        """
        self._catalog = catalog
        self._rollouts = rollouts
        self._policies = Policies(default_policy)
        self._requests = Requests(self._policies)
        self._rollbacks = Rollbacks(catalog, rollouts)

    # ---------------------------------------------------------------------------------------------- promoting

    def gate(self, act: Act, ref: Ref, to: str, *, files_verified: bool | None = None) -> GateReport:
        """Whether a version may enter a stage, with every gate's answer; changes nothing.

        Args:
            files_verified: whether the stored bytes still match, hashed before the act; None when unknown.

        Raises:
            InvalidTransition: the model has no such stage.
            whatever resolving the reference raises.
        """
        version = self._catalog.resolve(act, present(ref))
        model = models_store.get_row(act.tx, version.model)
        place = self.place_in(act, model, version, to)
        found = request_store.open_request(act.tx, model.id, version.number, to)
        if found is not None and promotion.state_at(found, act.now) is not RequestState.OPEN:
            found = None
        case = self._weigh(act, place, found, files_verified)
        obstacle = None
        try:
            promotion.check_transition(model.stages, version, to)
        except (errors.InvalidTransition, errors.Tombstoned, errors.Yanked) as problem:
            obstacle = problem.message
        told = report(case, obstacle)
        endpoint = self._following(act, version.model, to)
        if endpoint is None or endpoint.stable is None or endpoint.stable == version.number:
            return told
        plan, plan_from = self._plan(case, endpoint, None)
        return structs.replace(told, endpoint=endpoint.name, plan=plan, plan_from=plan_from)

    def promote(
        self,
        act: Act,
        ref: Ref,
        to: str,
        reason: str,
        *,
        request: str | None = None,
        ticket: str | None = None,
        plan: Plan | None = None,
        supersede: bool = False,
        files_verified: bool | None = None,
        others_verified: Sequence[bool | None] = (),
    ) -> Promotion:
        """Move a version to a stage, or start the rollout at whose end it moves.

        Args:
            request: the request that allows it, when several could be meant; the open one is found without.
            plan: how this rollout goes, in the place of the policy's plan or the endpoint's; who says so has
                to be one who may operate the model.
            supersede: end the rollout of the endpoint that is under way, and begin this one.
            files_verified: as in `gate`.
            others_verified: the same for the versions that the plan tests beside it, in its order.

        Raises:
            NotAllowed: the caller may not promote.
            InvalidTransition, Tombstoned: the version cannot go there at all.
            PolicyDenied: a gate does not hold; recorded, with every gate's answer in the details.
            ApprovalRequired: people have to agree first; the request is opened, and named in the details.
            RequestNotFound, RequestClosed, Invalid: the request named is not one for this move.
            InvalidPlan: the plan cannot be carried out, or nothing follows the stage whose traffic it could
                move.
            RolloutActive: the endpoint's traffic is already being moved.
            StageMoved: another process took the stage at the same moment.
        """
        values.check_text(reason, "reason", required=True)
        if ticket is not None:
            values.check_text(ticket, "ticket", maximum=TICKET_MAX)
        version = self._catalog.resolve(act, present(ref))
        act.authorise(Verb.PROMOTE, version.model)
        if plan is not None or supersede:
            act.authorise(Verb.OPERATE, version.model)
        if plan is not None:
            check_plan(plan)
        place = self.place_in(act, models_store.get_row(act.tx, version.model), version, to)
        return self.promote_from(
            act,
            place,
            reason,
            request=request,
            ticket=ticket,
            plan=plan,
            supersede=supersede,
            files_verified=files_verified,
            others_verified=others_verified,
        )

    def place_in(self, act: Act, model: ModelRow, version: ModelVersion, to: str) -> Place:
        """`stages.place_in` for a version that is to be promoted: what else that asks is asked along with
        it. Raises as that."""
        act.tx.expect(request_store.open_request, model.id, version.number, to)
        act.tx.expect(nearest, version.model)
        if self._rollouts is not None:
            act.tx.expect(endpoint_following, version.model, to)
            act.tx.expect(models_store.moving, model.id)
        return stages.place_in(act, model, version, to)

    def promote_from(
        self,
        act: Act,
        place: Place,
        reason: str,
        *,
        request: str | None = None,
        ticket: str | None = None,
        plan: Plan | None = None,
        supersede: bool = False,
        files_verified: bool | None = None,
        others_verified: Sequence[bool | None] = (),
    ) -> Promotion:
        """`promote` for who may promote, and has looked at the version, its model and the stage in this act.
        Raises as that."""
        model, version, to = place.model, place.version, place.to
        promotion.check_transition(model.stages, version, to)
        self._check_leaving(act, model, version, to)
        asked = (
            self._requests.open_one(act, model, version, to)
            if request is None
            else self._requests.live_for(act, request, version, to)
        )
        case = self._weigh(act, place, asked, files_verified)
        match case.decision:
            case Refused():
                raise denied(act, self._requests, case, reason)
            case AwaitingApproval():
                raise awaiting(act, self._requests, case, case.decision, reason, ticket)
            case Granted():
                others = admit(act, self._requests, case, plan, others_verified)
                return self._carry_out(act, case, case.decision, others, reason, plan, supersede)
            case _:
                assert_never(case.decision)

    def _weigh(
        self,
        act: Act,
        place: Place,
        request: PromotionRequest | None,
        files_verified: bool | None,
    ) -> Case:
        return self._requests.weigh(
            act,
            place,
            requested_by=request.requested_by if request is not None else act.caller.actor,
            request=request,
            files_verified=files_verified,
        )

    def _check_leaving(self, act: Act, model: ModelRow, version: ModelVersion, to: str) -> None:
        """Refuse to empty a protected stage under an endpoint that serves what stands in it, and to send
        elsewhere what is on its way into a stage.

        Raises:
            RolloutActive, Protected: names the endpoint and what to do instead.
        """
        if self._rollouts is None:
            return
        rollout = models_store.tried_in(act.tx, model.id, version.number)
        if rollout is not None and rollout.stage not in (None, to):
            raise errors.RolloutActive(
                f"Traffic of {rollout.endpoint} is being moved to {version.reference}, which enters "
                f"{rollout.stage} when that succeeds; take it back first "
                f"('modelkeep rollout abort {rollout.endpoint} -m WHY'), then move it to {to}.",
                endpoint=rollout.endpoint,
                rollout=rollout.id,
            )
        if version.stage == model.stages.initial:
            return
        if not model.stages.stage(version.stage).protected:
            return
        endpoint = self._rollouts.following(act, version.model, version.stage)
        if endpoint is not None:
            raise errors.Protected(
                f"The endpoint {endpoint.name} serves what is in {version.stage}, so {version.reference} "
                f"cannot go to {to} and leave nothing; promote another version instead, or run "
                f"'modelkeep rollback {values.in_shell(version.model)} -m WHY'.",
                endpoint=endpoint.name,
            )

    def _carry_out(
        self,
        act: Act,
        case: Case,
        decision: Granted,
        others: Sequence[tuple[Case, Granted]],
        reason: str,
        plan: Plan | None,
        supersede: bool,
    ) -> Promotion:
        version, to = case.version, case.to
        asked, because = self._decided(act, case, decision, reason)
        endpoint = self._following(act, version.model, to)
        if endpoint is not None and endpoint.stable != version.number:
            return self._begin_rollout(act, case, others, endpoint, because, asked, plan, supersede)
        if plan is not None:
            raise errors.InvalidPlan(
                f"Nothing moves traffic to {version.reference} in {to}, so a plan says nothing; leave it "
                f"out, or make an endpoint that follows {to} ('modelkeep endpoint create')."
            )
        moved = stages.enter(act, case.place, because)
        if asked is not None:
            self._requests.close(act, asked, RequestState.PROMOTED, reason)
        return Promotion(
            kind=PromotionKind.MOVED,
            version=structs.replace(version, stage=to),
            stage=to,
            displaced=moved.displaced.number if moved.displaced is not None else None,
            endpoint=endpoint.name if endpoint is not None else None,
            request=because.request,
            gates=decision.gates,
            interval=moved.interval,
        )

    def _decided(
        self, act: Act, case: Case, decision: Granted, reason: str
    ) -> tuple[PromotionRequest | None, Because]:
        """The request that was granted, as it stands now, and what stands behind the move."""
        asked = self._requests.refresh(act, case, recorded=True)
        return asked, Because(
            cause=MoveCause.PROMOTION,
            reason=reason,
            request=asked.id if asked is not None else None,
            gates=decision.gates,
            approved_by=decision.approved_by,
            policy=case.policy.digest,
        )

    def _begin_rollout(
        self,
        act: Act,
        case: Case,
        others: Sequence[tuple[Case, Granted]],
        endpoint: Endpoint,
        because: Because,
        asked: PromotionRequest | None,
        plan: Plan | None,
        supersede: bool,
    ) -> Promotion:
        """Start the rollout at whose end the stage moves, and keep the decision for then."""
        assert self._rollouts is not None, "an endpoint follows the stage"
        version, to = case.version, case.to
        chosen, plan_from = self._plan(case, endpoint, plan)
        rollout = self._rollouts.start(
            act,
            endpoint,
            version,
            reason=because.reason,
            request=because.request,
            plan=chosen,
            plan_from=plan_from,
            supersede=supersede,
        )
        self._granted(act, case, endpoint, rollout.id, because, asked)
        for other, decision in others:
            requested, why = self._decided(act, other, decision, because.reason)
            self._granted(act, other, endpoint, rollout.id, why, requested)
        return Promotion(
            kind=PromotionKind.ROLLOUT,
            version=version,
            stage=to,
            rollout=rollout.id,
            endpoint=endpoint.name,
            request=because.request,
            gates=because.gates,
            plan=rollout.plan,
            note=rollout.note,
        )

    def _granted(
        self,
        act: Act,
        case: Case,
        endpoint: Endpoint,
        rollout: str,
        because: Because,
        asked: PromotionRequest | None,
    ) -> None:
        record_grant(act, case, endpoint, rollout, because)
        if asked is not None:
            # A request is used up by the decision it led to: what a rollout shows is new evidence.
            self._requests.close(act, asked, RequestState.PROMOTED, f"the rollout {rollout} was started")

    def _plan(self, case: Case, endpoint: Endpoint, said: Plan | None) -> tuple[Plan, str]:
        """How a rollout goes, and who says so: whoever promotes, else the policy, for the stage or for all
        traffic, else the endpoint."""
        if said is not None:
            return said, "promotion"
        by_policy = case.policy.policy.plan(case.to)
        return (by_policy, "policy") if by_policy is not None else (endpoint.plan, "endpoint")

    def plan_for(
        self, act: Act, model: ModelName, stage: str | None, alias: str | None = None
    ) -> Plan | None:
        """How the policy has traffic move behind a stage or an alias; None where the endpoint says it."""
        return self._policies.effective(act.tx, model).policy.plan(stage, alias)

    def holds_for(self, act: Act, model: ModelName) -> Policy:
        """The policy that holds for a model."""
        return self._policies.effective(act.tx, model).policy

    def _following(self, act: Act, model: ModelName, stage: str) -> Endpoint | None:
        return self._rollouts.following(act, model, stage) if self._rollouts is not None else None

    # --------------------------------------------------------------------------- what the rollout column asks

    def enter_stage(
        self,
        act: Act,
        version: ModelVersion,
        stage: str,
        *,
        cause: MoveCause,
        reason: str,
        request: str | None,
        rollout: str | None,
        asked_by: Actor | None = None,
    ) -> Interval:
        """Move a version into a stage because traffic went there; one that stands there already stays.

        Args:
            asked_by: who had asked for what the rollout carries out; None where the caller did.

        Raises:
            StageMoved: another process took the stage at the same moment.
        """
        model = models_store.get_row(act.tx, version.model)
        if version.stage == stage:
            running = store.running_stay(act.tx, model.id, version.number)
            if running is not None:
                return running
        granted = grant_of(act, rollout, version.number)
        because = Because(
            cause=cause,
            reason=reason,
            request=request,
            rollout=rollout,
            asked_by=asked_by,
            gates=granted.gates if granted is not None else (),
            approved_by=granted.approved_by if granted is not None else (),
            policy=granted.policy if granted is not None else None,
        )
        return stages.move(act, model, version, stage, because).interval

    def tombstone(self, act: Act, version: ModelVersion, why: str) -> None:
        """Mark a version as taken back, so that it does not return by itself."""
        stages.tombstone(act, version, why)

    # -------------------------------------------------------------------------------------------- taking back

    def rollback(
        self,
        act: Act,
        model: ModelName,
        reason: str,
        *,
        to: Ref | None = None,
        stage: str | None = None,
        incident: str | None = None,
        alias: str | None = None,
    ) -> Rollback:
        """Take a model back; see `Rollbacks.rollback`."""
        return self._rollbacks.rollback(
            act, model, reason, to=to, stage=stage, incident=incident, alias=alias
        )

    def clear(self, act: Act, ref: Ref, reason: str) -> ModelVersion:
        """Let a version that was taken back return.

        Raises:
            NotAllowed: the caller may not promote.
            Conflict: it was not taken back.
        """
        return stages.clear(act, self._catalog.resolve(act, present(ref)), reason)

    # ------------------------------------------------------------------------------------- stages and history

    def set_stages(self, act: Act, model: ModelName, graph: StageGraph) -> RegisteredModel:
        """Give a model another stage graph.

        Raises:
            NotAllowed: the caller may not configure the model, or the graph gets round its policy and the
                caller does not administer it.
            InvalidTransition: the graph could not be kept, or does not fit where the versions are.
        """
        act.readable(model)
        act.authorise(Verb.CONFIGURE, model)
        row = models_store.get_row(act.tx, model)
        followed = frozenset(
            spec.name for spec in row.stages.stages if self._following(act, model, spec.name) is not None
        )
        holds, outer = self._policies.effective(act.tx, model), self._policies.outer(act.tx, model)
        added = {spec.name for spec in graph.stages} - {spec.name for spec in row.stages.stages}
        reasons = (
            *promotion.weaker_graph(row.stages, graph, holds.policy),
            *policy.weaker(holds.policy, outer.policy, added),
        )
        done = stages.set_stages(act, row, graph, followed)
        refuse_weaker(act, model, "These stages get round the policy that holds", reasons)
        return done

    def history(self, act: Act, model: ModelName, *, stage: str | None, limit: int) -> History:
        """Who stood where, the latest first, and the model's latest events.

        Raises:
            ModelNotFound, InvalidTransition: there is no such model or stage.
        """
        act.readable(model)
        return stages.history(act, models_store.get_row(act.tx, model), stage, limit)

    def whatwas(self, act: Act, ref: Ref, at: datetime) -> WhatWas:
        """What stood in a stage at a moment, and why.

        Raises:
            ModelNotFound, InvalidTransition: there is no such model or stage.
            InvalidReference: the reference names something else than a stage.
            StageEmpty: nothing stood there then.
            Invalid: several versions may stand in that stage.
        """
        act.readable(ref.model)
        return stages.whatwas(act, models_store.get_row(act.tx, ref.model), ref, at)

    # ----------------------------------------------------------------------------------------------- requests

    def open_request(
        self,
        act: Act,
        ref: Ref,
        to: str,
        reason: str,
        *,
        ticket: str | None = None,
        files_verified: bool | None = None,
    ) -> PromotionRequest:
        """Ask for a promotion.

        Raises:
            NotAllowed: the caller may not ask.
            InvalidTransition, Tombstoned: the version cannot go there at all.
            Conflict: somebody has asked for the same; the request is named.
        """
        version = self._catalog.resolve(act, present(ref))
        act.authorise(Verb.REQUEST, version.model)
        row = models_store.get_row(act.tx, version.model)
        return self._requests.ask(act, row, version, to, reason, ticket=ticket, files_verified=files_verified)

    def list_requests(
        self,
        act: Act,
        *,
        model: ModelName | None,
        state: RequestState | None,
        limit: int,
        page_token: str | None,
    ) -> RequestPage:
        """Requests of a model, or of all that the caller may see, the latest first."""
        return self._requests.page(act, model=model, state=state, limit=limit, page_token=page_token)

    def get_request(self, act: Act, request_id: str) -> PromotionRequest:
        """One request. Raises RequestNotFound."""
        return self._requests.get(act, request_id)

    def review(
        self,
        act: Act,
        request_id: str,
        vote: Vote,
        *,
        comment: str = "",
        checks: Mapping[str, str] = NO_CHECKS,
        waive: Sequence[str] = (),
        files_verified: bool | None = None,
    ) -> PromotionRequest:
        """Vote or comment, vouch for items of checklists, take gates upon oneself; see `Requests.review`."""
        return self._requests.review(
            act,
            request_id,
            vote,
            comment=comment,
            checks=checks,
            waive=waive,
            files_verified=files_verified,
        )

    def withdraw(self, act: Act, request_id: str, reason: str) -> PromotionRequest:
        """Take a request back. Raises RequestNotFound, RequestClosed, NotAllowed."""
        return self._requests.withdraw(act, request_id, reason)

    def expire_requests(self, act: Act) -> int:
        """Close requests whose time is over, a bounded number at a time; how many it were."""
        return self._requests.expire(act)

    # ----------------------------------------------------------------------------------------------- policies

    def get_policy(self, act: Act, scope: str | None) -> PolicyRecord:
        """The policy that holds for a model, a project (`project/`), or the installation (None)."""
        return self._policies.get(act, scope)

    def read_policy(self, desk: Desk, context: Context, scope: str | None, document: bytes) -> Policy:
        """Read a document for `set_policy`, outside of any transaction; no act."""
        return self._policies.read(desk, context, scope, document)

    def set_policy(self, act: Act, scope: str | None, document: bytes | Policy) -> PolicyRecord:
        """Set the policy of a model, a project (`project/`), or the installation (None), in YAML or JSON."""
        return self._policies.set(act, scope, document)
