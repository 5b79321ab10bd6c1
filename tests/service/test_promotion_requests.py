"""Requests and reviews: who may say what, what a vote is bound to, and how a request ends."""

from typing import Any

import pytest

from modelkeep.core import errors
from modelkeep.core.access import Effect, Role, Verb
from modelkeep.core.answers import PromotionKind
from modelkeep.core.catalog import Metric
from modelkeep.core.events import EventKind
from modelkeep.core.policy import Outcome
from modelkeep.core.promotion import RequestState, Vote
from modelkeep.core.values import ModelName, parse_ref
from modelkeep.service import requests as requests_module
from modelkeep.service.act import SYSTEM_CONTEXT
from modelkeep.store.database import Database
from tests.service.promotion_world import CHURN, World

TWO_PEOPLE = b"""
name: two
stages:
  production:
    approvals: {count: 2, roles: [approver, maintainer], expires_s: 3600}
    gates:
      - {gate: files_verified}
      - {gate: checklist, items: [bias reviewed]}
      - {gate: metric, name: auc, min: 0.8}
"""
BETTER = b"""
name: better
stages:
  production:
    approvals: {count: 1}
    gates: [{gate: better_than, metric: auc}]
"""


@pytest.fixture
def world(database: Database) -> World:
    """A team's server with two versions of churn, of which one asks for production."""
    world = World(database)
    world.versions("1.0.0", "1.1.0")
    return world


def request_of(world: World, request: Any) -> Any:
    """A request as everybody sees it now."""
    return world.read("eve", world.promotions.get_request, request.id)


def asking(count: int) -> bytes:
    """A policy that asks for so many people and nothing else."""
    return b"name: people\nstages: {production: {approvals: {count: %d}}}" % count


def refused(world: World, semver: str = "1.0.0") -> errors.ModelkeepError:
    """Promoting does not work yet."""
    with pytest.raises((errors.ApprovalRequired, errors.PolicyDenied)) as caught:
        world.promote(semver)
    return caught.value


@pytest.mark.req("G2")
def test_a_request_carries_what_a_reviewer_needs(world: World) -> None:
    """Reason, ticket, what it is compared with, every gate's answer, how many people, and when it ends."""
    world.review(world.ask("1.0.0").id)
    world.promote("1.0.0")
    request = world.ask("1.1.0", by="fay", ticket="RISK-7")
    assert (request.reason, request.ticket, request.requested_by.name) == ("better", "RISK-7", "fay")
    assert (request.incumbent, request.approvals_needed, request.state) == (1, 1, RequestState.OPEN)
    assert [result.gate for result in request.gates] == ["files_verified", "signature", "metadata"]
    assert (request.expires_at - request.created_at).days == 14
    event = world.events(EventKind.REQUEST_OPENED)[-1]
    assert (event.subject, event.number, event.body["ticket"]) == (f"request/{request.id}", 2, "RISK-7")
    assert request_of(world, request) == request


@pytest.mark.req("G2")
def test_nobody_approves_their_own_request(world: World) -> None:
    """Neither by a vote, nor by a token of the same person, nor by taking a gate upon oneself."""
    request = world.ask("1.0.0")
    for vote in (Vote.APPROVE, Vote.REJECT):
        with pytest.raises(errors.SelfApproval, match="ann asked for this promotion and cannot also decide"):
            world.review(request.id, "ann", vote)
    with pytest.raises(errors.SelfApproval, match="cannot also waive"):
        world.review(request.id, "ann", Vote.COMMENT, waive=("signature",), comment="trust me")
    assert world.review(request.id, "ann", Vote.COMMENT, comment="please look").approved_by == ()
    assert isinstance(refused(world), errors.ApprovalRequired)


@pytest.mark.req("G2", "G10")
def test_votes_take_the_permission_to_review(world: World) -> None:
    """A contributor may comment on their own request only; a viewer says nothing."""
    request = world.ask("1.0.0", by="fay")
    world.review(request.id, "fay", Vote.COMMENT, comment="see the report")
    other = world.ask("1.1.0", by="ann")
    for who, asked, vote in (
        ("eve", request, Vote.APPROVE),
        ("eve", request, Vote.COMMENT),
        ("fay", other, Vote.COMMENT),
        ("fay", other, Vote.REJECT),
    ):
        with pytest.raises(errors.NotAllowed, match="'review'"):
            world.review(asked.id, who, vote, comment="x")


@pytest.mark.req("G2")
def test_a_quorum_is_of_different_people(world: World) -> None:
    """One person voting twice is one person, and the last word of each counts."""
    world.do(
        "dan", world.promotions.set_policy, "churn", b"name: q\nstages: {production: {approvals: {count: 2}}}"
    )
    request = world.ask("1.0.0")
    for _ in range(3):
        assert world.review(request.id, "bob").approved_by == ("bob",)
    error = refused(world)
    assert (error.details["missing"], error.details["approved_by"]) == (1, ["bob"])
    done = world.review(request.id, "cat")
    assert done.approved_by == ("bob", "cat")
    assert [review.dismissed for review in done.reviews] == ["bob voted again", "bob voted again", None, None]
    assert world.promote("1.0.0").kind is PromotionKind.MOVED


@pytest.mark.req("G2", "G10")
def test_only_the_roles_that_are_asked_for_count(world: World) -> None:
    """A vote by somebody else is kept and shown, and does not count; who is denied the role sees nothing."""
    world.do(
        "dan",
        world.promotions.set_policy,
        "churn",
        b"name: q\nstages: {production: {approvals: {count: 1, roles: [approver]}}}",
    )
    world.person("cat", Role.APPROVER)
    world.person("cat", Role.APPROVER, "default", "churn", Effect.DENY)
    request = world.ask("1.0.0")
    world.person("gus", Role.MAINTAINER)
    assert world.review(request.id, "gus").approved_by == ()
    with pytest.raises(errors.RequestNotFound):
        world.review(request.id, "cat")
    assert isinstance(refused(world), errors.ApprovalRequired)
    assert world.review(request.id, "bob").approved_by == ("bob",)


@pytest.mark.req("G2")
def test_a_rejection_closes_the_request(world: World) -> None:
    """One no is enough; what is closed takes no more votes, and the log says who and why."""
    request = world.ask("1.0.0")
    world.review(request.id, "bob")
    closed = world.review(request.id, "cat", Vote.REJECT, comment="AUC on women")
    assert (closed.state, closed.closed_by, closed.closed_why) == (
        RequestState.REJECTED,
        "cat",
        "AUC on women",
    )
    with pytest.raises(errors.RequestClosed, match=f"The request {request.id} is rejected; open a new one"):
        world.review(request.id, "dan")
    (event,) = world.events(EventKind.REQUEST_CLOSED)
    assert (event.body["state"], event.reason) == ("rejected", "AUC on women")
    assert refused(world).details["request"] != request.id


@pytest.mark.req("G2")
def test_a_changed_policy_dismisses_approvals(world: World) -> None:
    """An approval counts for the policy it saw; that it fell is recorded with the reason."""
    request = world.ask("1.0.0")
    world.review(request.id)
    world.do(
        "dan",
        world.promotions.set_policy,
        "churn",
        b"name: new\nstages: {production: {approvals: {count: 1}}}",
    )
    assert isinstance(refused(world), errors.ApprovalRequired)
    (event,) = world.events(EventKind.REQUEST_DISMISSED)
    why = event.body["dismissed"][0]["why"]
    assert why == "the policy and the evidence changed after bob approved"
    assert request_of(world, request).reviews[0].dismissed == why
    world.review(request.id)
    assert world.promote("1.0.0").kind is PromotionKind.MOVED


@pytest.mark.req("G2")
def test_changed_evidence_dismisses_approvals(world: World) -> None:
    """What the candidate was compared with has changed, so the approval was about something else."""
    world.do("dan", world.promotions.set_policy, "churn", BETTER)
    first = world.version("2.0.0", metrics=(Metric(name="auc", value=0.80),))
    second = world.version("2.1.0", metrics=(Metric(name="auc", value=0.81),))
    third = world.version("2.2.0", metrics=(Metric(name="auc", value=0.82),))
    for version in (first, second):
        world.review(world.ask(version.semver).id)
    waiting = world.ask("2.2.0")
    world.review(waiting.id)
    world.promote("2.0.0")
    error = refused(world, "2.1.0")
    assert isinstance(error, errors.ApprovalRequired)
    assert error.details["approved_by"] == []
    seen = refused(world, third.semver)
    assert isinstance(seen, errors.ApprovalRequired)
    assert [e.body["dismissed"][0]["why"] for e in world.events(EventKind.REQUEST_DISMISSED)] == [
        "the evidence changed after bob approved"
    ] * 2


@pytest.mark.req("G2")
def test_a_measurement_that_is_missing_for_a_while_dismisses_nobody(world: World) -> None:
    """While the bytes cannot be read nothing is granted; afterwards the approval still stands."""
    request = world.ask("1.0.0")
    world.review(request.id)
    with pytest.raises(errors.PolicyDenied):
        world.promote("1.0.0", files_verified=None)
    assert world.events(EventKind.REQUEST_DISMISSED) == []
    assert world.promote("1.0.0").kind is PromotionKind.MOVED


@pytest.mark.req("G3", "G4")
def test_a_checklist_is_ticked_by_people_with_evidence(world: World) -> None:
    """An item needs its evidence and is one of the list; ticking it later dismisses who had not seen it."""
    world.do("dan", world.promotions.set_policy, "churn", TWO_PEOPLE)
    world.version("3.0.0", metrics=(Metric(name="auc", value=0.9),))
    request = world.ask("3.0.0")
    world.review(request.id, "bob")
    with pytest.raises(errors.Invalid, match="is on no checklist here; the items are bias reviewed"):
        world.review(request.id, "cat", checks={"bais reviewed": "x"})
    with pytest.raises(errors.Invalid, match="Say why"):
        world.review(request.id, "cat", checks={"bias reviewed": " "})
    assert isinstance(refused(world, "3.0.0"), errors.PolicyDenied)
    ticked = world.review(request.id, "cat", checks={"bias reviewed": "report 12"})
    assert [(check.item, check.evidence, check.by) for check in ticked.checks] == [
        ("bias reviewed", "report 12", "cat")
    ]
    assert ticked.approved_by == ("cat",)
    assert ticked.reviews[0].dismissed == "the evidence changed after bob approved"
    world.review(request.id, "bob")
    assert world.promote("3.0.0").kind is PromotionKind.MOVED
    (event,) = world.events(EventKind.STAGE_MOVED)
    assert {gate["gate"]: gate["outcome"] for gate in event.body["gates"]}["checklist"] == "passed"


@pytest.mark.req("G3")
def test_a_gate_is_waived_by_a_maintainer_who_says_why(world: World) -> None:
    """The waiver bears a name and a reason, approvers vote after it, and damaged bytes cannot be waived."""
    world.do("dan", world.promotions.set_policy, "churn", TWO_PEOPLE)
    request = world.ask("1.0.0")
    world.review(request.id, "bob", checks={"bias reviewed": "report 12"})
    with pytest.raises(errors.NotAllowed, match="Only a maintainer or an admin can waive"):
        world.review(request.id, "bob", Vote.COMMENT, waive=("metric:auc",), comment="fine")
    with pytest.raises(errors.Invalid, match="Say why"):
        world.review(request.id, "cat", waive=("metric:auc",))
    with pytest.raises(
        errors.Invalid, match="'files_verified' cannot be waived here; what can be: checklist, metric:auc"
    ):
        world.review(request.id, "cat", waive=("files_verified",), comment="fine")
    waived = world.review(request.id, "cat", waive=("metric:auc",), comment="measured by hand")
    answer = {result.gate: result for result in waived.gates}["metric:auc"]
    assert (answer.outcome, answer.waived_by) == (Outcome.WAIVED, "cat")
    assert answer.why == "auc was not measured; waived by cat: measured by hand"
    assert waived.approved_by == ("cat",)
    world.review(request.id, "bob")
    world.promote("1.0.0")
    (event,) = world.events(EventKind.STAGE_MOVED)
    assert [gate["waived_by"] for gate in event.body["gates"]] == [None, None, "cat"]


@pytest.mark.req("G2")
def test_a_request_ends_by_itself(world: World) -> None:
    """After its time it is shown as expired, takes no vote, and is closed by whoever comes by."""
    request = world.ask("1.0.0")
    world.review(request.id)
    world.later(days=14)
    assert request_of(world, request).state is RequestState.EXPIRED
    assert world.events(EventKind.REQUEST_CLOSED) == []
    with pytest.raises(errors.RequestClosed, match="is expired; open a new one with 'modelkeep request"):
        world.review(request.id, "cat")
    (event,) = world.events(EventKind.REQUEST_CLOSED)
    assert event.body["state"] == "expired"
    fresh = refused(world).details["request"]
    assert fresh != request.id


@pytest.mark.req("G2")
def test_the_controller_closes_what_has_expired(world: World) -> None:
    """A bounded number at a time, each with its event under Modelkeep's own name."""
    for semver in ("1.0.0", "1.1.0"):
        world.ask(semver)
    world.later(days=1)
    world.ask("1.0.0", "staging")
    world.later(days=13)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(requests_module, "EXPIRED_AT_ONCE", 1)
        assert world.desk.do(SYSTEM_CONTEXT, world.promotions.expire_requests) == 1
    assert world.desk.do(SYSTEM_CONTEXT, world.promotions.expire_requests) == 1
    assert world.desk.do(SYSTEM_CONTEXT, world.promotions.expire_requests) == 0
    assert [event.actor.name for event in world.events(EventKind.REQUEST_CLOSED)] == ["modelkeep"] * 2
    with pytest.raises(errors.NotAllowed):
        world.do("ann", world.promotions.expire_requests)


@pytest.mark.req("G2")
def test_a_request_is_withdrawn_by_who_made_it(world: World) -> None:
    """Or by somebody who may promote; not by a reviewer."""
    request = world.ask("1.0.0", by="fay")
    with pytest.raises(errors.NotAllowed):
        world.do("bob", world.promotions.withdraw, request.id, "no")
    done = world.do("fay", world.promotions.withdraw, request.id, "a better one comes")
    assert (done.state, done.closed_by) == (RequestState.WITHDRAWN, "fay")
    with pytest.raises(errors.RequestClosed):
        world.do("fay", world.promotions.withdraw, request.id, "again")
    assert (
        world.do("ann", world.promotions.withdraw, world.ask("1.0.0", by="fay").id, "no").closed_by == "ann"
    )


@pytest.mark.req("G2")
def test_the_same_is_asked_for_once(world: World) -> None:
    """A second request for the same move is pointed to the first."""
    request = world.ask("1.0.0", by="fay")
    with pytest.raises(errors.Conflict, match=f"fay asked for this already.*review {request.id}") as caught:
        world.ask("1.0.0", by="ann")
    assert caught.value.details["request"] == request.id
    assert world.ask("1.0.0", "staging").id != request.id


@pytest.mark.req("G2", "G10")
def test_requests_are_listed_for_those_who_may_see_them(world: World) -> None:
    """The latest first, page by page; those of models one may not read are neither listed nor found."""
    other = ModelName("risk", "score")
    world.versions("1.0.0", model=other)
    world.person("hal", Role.APPROVER, "risk")
    world.person("ida", Role.VIEWER)
    world.person("ida", Role.VIEWER, "default", "churn", Effect.DENY)
    made = []
    for semver in ("1.0.0", "1.1.0"):
        world.later(seconds=1)
        made.append(world.ask(semver).id)
    world.later(seconds=1)
    ref = parse_ref("risk/score:1.0.0")
    foreign = world.do("ann", world.promotions.open_request, ref, "production", "x", files_verified=True)

    def listed(who: str, **more: Any) -> list[str]:
        found: list[str] = []
        token = None
        while True:
            fields = {"model": None, "state": None, "limit": 1, "page_token": token} | more
            page = world.read(who, world.promotions.list_requests, **fields)
            found += [request.id for request in page.items]
            token = page.next_page_token
            if token is None:
                return found

    assert listed("eve") == [foreign.id, *reversed(made)]
    assert listed("hal") == listed("ida") == [foreign.id]
    assert listed("zoe") == []
    assert listed("eve", model=CHURN) == list(reversed(made))
    world.review(made[0], "bob", Vote.REJECT)
    assert listed("eve", state=RequestState.OPEN, model=CHURN) == [made[1]]
    assert listed("eve", state=RequestState.REJECTED) == [made[0]]
    for who, request in (("hal", made[0]), ("eve", "req_none"), ("ida", made[1])):
        with pytest.raises(errors.RequestNotFound):
            world.read(who, world.promotions.get_request, request)
    with pytest.raises(errors.ModelNotFound):
        world.read("ida", world.promotions.list_requests, model=CHURN, state=None, limit=10, page_token=None)
    with pytest.raises(errors.Invalid):
        listed("eve", page_token="not/a token")


@pytest.mark.req("G2")
def test_a_narrowed_token_votes_only_when_it_may(world: World) -> None:
    """A token of an approver that was made for reading does not approve."""
    request = world.ask("1.0.0")
    context = world.context("bob")
    narrow = type(context.caller)(
        actor=context.caller.actor, grants=context.caller.grants, verbs=frozenset({Verb.READ})
    )
    with pytest.raises(errors.NotAllowed):
        world.desk.do(
            type(context)(caller=narrow),
            world.promotions.review,
            request.id,
            Vote.APPROVE,
            files_verified=True,
        )


@pytest.mark.req("G2")
def test_a_comment_says_something_and_changes_no_count(world: World) -> None:
    """An empty comment is refused; a discussion has an end; approvals stay what they are."""
    request = world.ask("1.0.0")
    with pytest.raises(errors.Invalid, match="Say something"):
        world.review(request.id, "bob", Vote.COMMENT)
    world.review(request.id, "bob")
    assert world.review(request.id, "bob", Vote.COMMENT, comment="nice").approved_by == ("bob",)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(requests_module, "REVIEWS_MAX", 2)
        with pytest.raises(errors.LimitExceeded):
            world.review(request.id, "cat", Vote.COMMENT, comment="me too")
