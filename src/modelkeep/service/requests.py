"""Promotion requests: asking, voting, vouching, taking a gate upon oneself, withdrawing, running out of time.

A request carries everything a reviewer needs, and each vote is bound to what lay on the table when it was
given. `weigh` is the one place that loads the facts and asks `core.promotion.decide`; moving anything is
`promotion`'s part.
"""

from collections.abc import Mapping, Sequence

from msgspec import Struct, structs

from modelkeep.core import access, errors, promotion, values
from modelkeep.core.access import Role, Verb
from modelkeep.core.answers import PolicyRecord
from modelkeep.core.catalog import ModelVersion
from modelkeep.core.events import EventKind
from modelkeep.core.policy import BetterThanGate, Check, ChecklistGate, Facts, StageRules, Waiver
from modelkeep.core.promotion import (
    REVIEWS_MAX,
    TICKET_MAX,
    Approval,
    Decision,
    PromotionRequest,
    RequestState,
    Seen,
    Vote,
)
from modelkeep.core.values import Actor, ModelName
from modelkeep.service.act import Act
from modelkeep.service.policies import Policies
from modelkeep.service.stages import Place, place_in
from modelkeep.store import catalog as catalog_store
from modelkeep.store import models as models_store
from modelkeep.store import requests as store
from modelkeep.store.models import ModelRow
from modelkeep.store.visibility import Visible, visible_to

EXPIRED_AT_ONCE = 100
"""Requests that one act closes because their time is over; the next act closes the next ones."""
EVIDENCE_MAX = 2_000
"""Characters of what somebody vouches with: an address and a sentence."""

WAIVING_ROLES = frozenset({Role.MAINTAINER, Role.ADMIN})
"""Who may take a gate upon themselves."""


class RequestPage(Struct, frozen=True, kw_only=True):
    """A page of requests, the latest first."""

    items: tuple[PromotionRequest, ...]
    next_page_token: str | None = None


class Case(Struct, frozen=True, kw_only=True):
    """Everything that was weighed, and what came of it."""

    place: Place
    policy: PolicyRecord
    rules: StageRules
    request: PromotionRequest | None
    decision: Decision

    @property
    def model(self) -> ModelRow:
        """The version's model."""
        return self.place.model

    @property
    def version(self) -> ModelVersion:
        """The version that is to move."""
        return self.place.version

    @property
    def to(self) -> str:
        """The stage that it is to enter."""
        return self.place.to

    @property
    def incumbent(self) -> int | None:
        """The number of the version that it would displace."""
        return self.place.incumbent

    @property
    def seen(self) -> Seen:
        """What an approval given now would be bound to."""
        return self.decision.seen


class Requests:
    """The verbs of promotion requests."""

    def __init__(self, policies: Policies) -> None:
        self._policies = policies

    # ------------------------------------------------------------------------------------------- the decision

    def weigh(
        self,
        act: Act,
        place: Place,
        *,
        requested_by: Actor,
        request: PromotionRequest | None,
        files_verified: bool | None,
    ) -> Case:
        """Load the facts once and decide once. The version that would be displaced is loaded for gates that
        compare with it."""
        name = place.model.full_name
        record = self._policies.effective(act.tx, name)
        rules = record.policy.rules(place.to)
        compared = any(isinstance(gate, BetterThanGate) for gate in rules.gates)
        number = place.incumbent
        facts = Facts(
            version=place.version,
            incumbent=catalog_store.get_version(act.tx, name, number)
            if compared and number is not None
            else None,
            files_verified=files_verified,
            checks=request.checks if request is not None else (),
            waivers=request.waivers if request is not None else (),
        )
        decision = promotion.decide(
            facts,
            record.policy,
            place.to,
            requested_by=requested_by,
            reviews=request.reviews if request is not None else (),
        )
        return Case(place=place, policy=record, rules=rules, request=request, decision=decision)

    # ------------------------------------------------------------------------------------------------- asking

    def ask(
        self,
        act: Act,
        model: ModelRow,
        version: ModelVersion,
        to: str,
        reason: str,
        *,
        ticket: str | None,
        files_verified: bool | None,
    ) -> PromotionRequest:
        """Open a request.

        Raises:
            InvalidTransition, Tombstoned: the version cannot go there at all.
            Conflict: there is an open request for the same; it is named.
        """
        values.check_text(reason, "reason", required=True)
        if ticket is not None:
            values.check_text(ticket, "ticket", maximum=TICKET_MAX)
        promotion.check_transition(model.stages, version, to)
        known = self.open_one(act, model, version, to)
        if known is not None:
            raise errors.Conflict(
                f"{known.requested_by.name} asked for this already: see 'modelkeep request show {known.id}', "
                f"or agree with 'modelkeep review {known.id} --approve'.",
                request=known.id,
            )
        case = self.weigh(
            act,
            place_in(act, model, version, to),
            requested_by=act.caller.actor,
            request=None,
            files_verified=files_verified,
        )
        return self.open(act, case, reason, ticket)

    def open(self, act: Act, case: Case, reason: str, ticket: str | None) -> PromotionRequest:
        """Open a request for what was weighed."""
        version, approvals = case.version, case.rules.approvals
        request = PromotionRequest(
            id=act.new_id("req"),
            model=version.model,
            number=version.number,
            semver=version.semver,
            digest=version.digest,
            to=case.to,
            reason=reason,
            ticket=ticket,
            requested_by=act.caller.actor,
            created_at=act.now,
            expires_at=promotion.expiry(case.policy.policy, case.to, act.now),
            incumbent=case.incumbent,
            gates=case.decision.gates,
            seen=case.seen,
            approvals_needed=approvals.count,
            approvals_roles=approvals.roles,
        )
        store.add_request(act.tx, case.model.id, request)
        act.record(
            EventKind.REQUEST_OPENED,
            _subject(request),
            model=request.model,
            number=request.number,
            reason=reason,
            semver=request.semver,
            to=request.to,
            ticket=ticket,
            incumbent=request.incumbent,
            expires_at=request.expires_at,
            approvals_needed=request.approvals_needed,
            approvals_roles=request.approvals_roles,
            gates=request.gates,
            seen=request.seen,
        )
        return request

    def open_one(self, act: Act, model: ModelRow, version: ModelVersion, to: str) -> PromotionRequest | None:
        """The open request for a move, if there is one; one whose time is over is closed on the way."""
        found = store.open_request(act.tx, model.id, version.number, to)
        if found is not None and promotion.state_at(found, act.now) is RequestState.EXPIRED:
            self.close(act, found, RequestState.EXPIRED, "nobody decided in time")
            return None
        return found

    # ---------------------------------------------------------------------------------------------- reviewing

    def review(
        self,
        act: Act,
        request_id: str,
        vote: Vote,
        *,
        comment: str,
        checks: Mapping[str, str],
        waive: Sequence[str],
        files_verified: bool | None,
    ) -> PromotionRequest:
        """Vote or comment, vouch for items of checklists, take gates upon oneself.

        A person's last vote counts, and it counts only while the version, the evidence and the policy stay
        what they are; a rejection closes the request.

        Raises:
            RequestNotFound: there is none, or it is not to be seen.
            RequestClosed: it was decided, withdrawn, or has expired.
            NotAllowed: the caller may not review, or not waive.
            SelfApproval: the caller made the request.
            Invalid: nothing was said, or an item or gate is none of the policy's.
        """
        request = self._live(act, request_id)
        promotion.check_reviewer(request, act.caller.actor, vote, act.now)
        self._check_reviewer(act, request, vote, waive)
        values.check_text(comment, "comment")
        if vote is Vote.COMMENT and not (comment.strip() or checks or waive):
            raise errors.Invalid("Say something: a comment needs a text, a ticked item or a waived gate.")
        if len(request.reviews) >= REVIEWS_MAX:
            raise errors.LimitExceeded(
                f"A request takes at most {REVIEWS_MAX} votes and comments; decide, or open a new one."
            )
        case = self._case_after(act, request, comment, checks, waive, files_verified)
        vouched = case.request
        assert vouched is not None
        approval = Approval(
            by=act.caller.actor,
            vote=vote,
            roles=tuple(sorted(access.roles_on(act.caller, request.model))),
            comment=comment,
            seen=case.seen,
            at=act.now,
        )
        act.record(
            EventKind.REQUEST_REVIEWED,
            _subject(request),
            model=request.model,
            number=request.number,
            reason=comment or None,
            vote=vote,
            roles=approval.roles,
            checks=dict(checks),
            waived=list(waive),
            gates=case.decision.gates,
            seen=case.seen,
        )
        reviews = self._dismiss(act, vouched, case.decision)
        if vote is not Vote.COMMENT:
            reviews = self._supersede(act, vouched, reviews, act.by)
        store.add_review(act.tx, request.id, len(reviews) + 1, approval)
        updated = _looked_at(vouched, case, (*reviews, approval))
        if vote is Vote.REJECT:
            return self.close(act, updated, RequestState.REJECTED, comment or f"rejected by {act.by}")
        store.save_request(act.tx, updated)
        return updated

    def _case_after(
        self,
        act: Act,
        request: PromotionRequest,
        comment: str,
        checks: Mapping[str, str],
        waive: Sequence[str],
        files_verified: bool | None,
    ) -> Case:
        """The case as it stands with what the reviewer vouches for and takes upon themselves."""
        model = models_store.get_row(act.tx, request.model)
        version = catalog_store.get_version(act.tx, request.model, request.number)
        rules = self._policies.effective(act.tx, request.model).policy.rules(request.to)
        vouched = structs.replace(
            request,
            checks=_ticked(request.checks, rules, checks, act.by),
            waivers=_waived(request.waivers, rules, waive, act.by, comment),
        )
        return self.weigh(
            act,
            place_in(act, model, version, request.to),
            requested_by=request.requested_by,
            request=vouched,
            files_verified=files_verified,
        )

    def _check_reviewer(self, act: Act, request: PromotionRequest, vote: Vote, waive: Sequence[str]) -> None:
        asker = act.by == request.requested_by.name
        if not (vote is Vote.COMMENT and asker and act.may(Verb.REQUEST, request.model)):
            act.authorise(Verb.REVIEW, request.model)
        if not waive:
            return
        if asker:
            raise errors.SelfApproval(
                f"{act.by} asked for this promotion and cannot also waive its gates; ask a maintainer to run "
                f"'modelkeep review {request.id} --waive {waive[0]} -m WHY'.",
                request=request.id,
            )
        if not access.roles_on(act.caller, request.model) & WAIVING_ROLES:
            raise errors.NotAllowed(
                f"Only a maintainer or an admin can waive a gate; ask one to run "
                f"'modelkeep review {request.id} --waive {waive[0]} -m WHY'.",
                verb=Verb.REVIEW,
                scope=str(request.model),
            )

    def refresh(self, act: Act, case: Case, *, recorded: bool) -> PromotionRequest | None:
        """Dismiss the approvals that saw something else, and note what the gates say now.

        Args:
            recorded: whether the act has an event that bears the gates' answers; nothing is changed without.
        """
        request = case.request
        if request is None:
            return None
        reviews = self._dismiss(act, request, case.decision)
        if reviews == request.reviews and not recorded:
            return request
        updated = _looked_at(request, case, reviews)
        if updated != request:
            store.save_request(act.tx, updated)
        return updated

    def _dismiss(self, act: Act, request: PromotionRequest, decision: Decision) -> tuple[Approval, ...]:
        """The reviews, after those that saw something else were dismissed."""
        fallen = promotion.stale(request.reviews, decision)
        if not fallen:
            return request.reviews
        reviews = list(request.reviews)
        for approval, why in fallen:
            place = reviews.index(approval)
            store.dismiss_review(act.tx, request.id, place + 1, why)
            reviews[place] = structs.replace(approval, dismissed=why)
        act.record(
            EventKind.REQUEST_DISMISSED,
            _subject(request),
            model=request.model,
            number=request.number,
            dismissed=[{"by": approval.by.name, "at": approval.at, "why": why} for approval, why in fallen],
            seen=decision.seen,
        )
        return tuple(reviews)

    def _supersede(
        self, act: Act, request: PromotionRequest, reviews: tuple[Approval, ...], by: str
    ) -> tuple[Approval, ...]:
        """The reviews, after the same person's former vote has made room for a new one."""
        changed = list(reviews)
        for place, review in enumerate(reviews):
            if review.by.name == by and review.vote is not Vote.COMMENT and review.dismissed is None:
                why = f"{by} voted again"
                store.dismiss_review(act.tx, request.id, place + 1, why)
                changed[place] = structs.replace(review, dismissed=why)
        return tuple(changed)

    # ------------------------------------------------------------------------------------------------ closing

    def close(
        self,
        act: Act,
        request: PromotionRequest,
        state: RequestState,
        why: str,
    ) -> PromotionRequest:
        """Close a request, with its event."""
        closed = structs.replace(request, state=state, closed_at=act.now, closed_by=act.by, closed_why=why)
        store.save_request(act.tx, closed)
        act.record(
            EventKind.REQUEST_CLOSED,
            _subject(request),
            model=request.model,
            number=request.number,
            reason=why,
            state=state,
            to=request.to,
            approved_by=closed.approved_by,
        )
        return closed

    def withdraw(self, act: Act, request_id: str, reason: str) -> PromotionRequest:
        """Take a request back: whoever made it, or somebody who may promote.

        Raises:
            RequestNotFound, RequestClosed, NotAllowed.
        """
        values.check_text(reason, "reason", required=True)
        request = self._live(act, request_id)
        if act.by != request.requested_by.name:
            act.authorise(Verb.PROMOTE, request.model)
        return self.close(act, request, RequestState.WITHDRAWN, reason)

    def expire(self, act: Act) -> int:
        """Close requests whose time is over, a bounded number at a time; how many it were."""
        act.authorise(Verb.ADMINISTER, None)
        due = store.due_requests(act.tx, act.now, EXPIRED_AT_ONCE)
        for request in due:
            self.close(act, request, RequestState.EXPIRED, "nobody decided in time")
        return len(due)

    # ------------------------------------------------------------------------------------------------ reading

    def get(self, act: Act, request_id: str) -> PromotionRequest:
        """One request, as it stands now.

        Raises:
            RequestNotFound: there is none, or it is not to be seen.
        """
        found = store.get_request(act.tx, request_id)
        if found is None or not act.may(Verb.READ, found.model):
            raise errors.RequestNotFound(
                f"There is no request {values.quoted(request_id, 60)}; see 'modelkeep request list'.",
                request=values.printable(request_id)[:60],
            )
        return _as_of_now(act, found)

    def _live(self, act: Act, request_id: str) -> PromotionRequest:
        """A request that is still open. One whose time is over is closed for good, and then refused."""
        request = self.get(act, request_id)
        try:
            promotion.check_open(request, act.now)
        except errors.RequestClosed as problem:
            if request.closed_at is not None:
                raise
            self.close(act, request, RequestState.EXPIRED, "nobody decided in time")
            raise act.keep(problem) from problem
        return request

    def live_for(self, act: Act, request_id: str, version: ModelVersion, to: str) -> PromotionRequest:
        """An open request that somebody named for this very move.

        Raises:
            RequestNotFound, RequestClosed.
            Invalid: it is about another version or stage.
        """
        request = self._live(act, request_id)
        if (request.model, request.number, request.to) != (version.model, version.number, to):
            raise errors.Invalid(
                f"The request {request.id} is about {request.reference} and {request.to}, not "
                f"{version.reference} and {to}; leave it out, or name the right one.",
                request=request.id,
            )
        return request

    def page(
        self,
        act: Act,
        *,
        model: ModelName | None,
        state: RequestState | None,
        limit: int,
        page_token: str | None,
    ) -> RequestPage:
        """Requests of a model, or of all that the caller may see, the latest first."""
        before = values.check_name(page_token, "page token") if page_token else "~"
        model_id = None
        visible: Visible = visible_to(act.caller, Verb.READ)
        if model is not None:
            act.readable(model)
            model_id = models_store.get_row(act.tx, model).id
        rows = store.list_requests(act.tx, before, limit + 1, visible=visible, model_id=model_id, state=state)
        return RequestPage(
            items=tuple(_as_of_now(act, row) for row in rows[:limit]),
            next_page_token=rows[limit - 1].id if len(rows) > limit else None,
        )


def _subject(request: PromotionRequest) -> str:
    return f"request/{request.id}"


def _as_of_now(act: Act, request: PromotionRequest) -> PromotionRequest:
    """A request whose time is over is shown so, also before anybody has closed it."""
    return structs.replace(request, state=promotion.state_at(request, act.now))


def _looked_at(request: PromotionRequest, case: Case, reviews: tuple[Approval, ...]) -> PromotionRequest:
    """The request with what the gates say now and whose approval counts."""
    approvals = case.rules.approvals
    agreeing = promotion.counting(reviews, case.seen, request.requested_by, approvals.roles)
    return structs.replace(
        request,
        gates=case.decision.gates,
        seen=case.seen,
        approvals_needed=approvals.count,
        approvals_roles=approvals.roles,
        approved_by=tuple(approval.by.name for approval in agreeing),
        reviews=reviews,
    )


def _ticked(
    former: tuple[Check, ...], rules: StageRules, checks: Mapping[str, str], by: str
) -> tuple[Check, ...]:
    """The ticked items with the new ones; the last to vouch for an item stands for it."""
    known = [item for gate in rules.gates if isinstance(gate, ChecklistGate) for item in gate.items]
    ticked = {check.item: check for check in former}
    for item, evidence in checks.items():
        if item not in known:
            raise errors.Invalid(
                f"{values.quoted(item)} is on no checklist here; the items are {', '.join(known) or 'none'}.",
                field="checks",
            )
        values.check_text(evidence, f"evidence for {item!r}", maximum=EVIDENCE_MAX, required=True)
        ticked[item] = Check(item=item, evidence=evidence, by=by)
    return tuple(ticked.values())


def _waived(
    former: tuple[Waiver, ...], rules: StageRules, waive: Sequence[str], by: str, comment: str
) -> tuple[Waiver, ...]:
    """The waived gates with the new ones; whoever waives says why."""
    waivable = {gate.label for gate in rules.gates if gate.waivable}
    waivers = {waiver.gate: waiver for waiver in former}
    for label in waive:
        if label not in waivable:
            raise errors.Invalid(
                f"{values.quoted(label)} cannot be waived here; what can be: "
                f"{', '.join(sorted(waivable)) or 'nothing'}.",
                field="waive",
            )
        values.check_text(comment, "comment on what you take upon yourself", required=True)
        waivers[label] = Waiver(gate=label, by=by, reason=comment)
    return tuple(waivers.values())
