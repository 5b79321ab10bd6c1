"""The one decision, whose votes count, where versions stood, where a rollback goes: all without a store."""

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from modelkeep.core import codec, errors, promotion
from modelkeep.core.catalog import DEFAULT_STAGES, ModelVersion, StageGraph, StageSpec
from modelkeep.core.events import Event, EventKind
from modelkeep.core.policy import Approvals, Facts, FilesVerifiedGate, Policy, StageRules
from modelkeep.core.promotion import (
    Approval,
    AwaitingApproval,
    Displaced,
    Granted,
    Interval,
    MoveCause,
    PromotionRequest,
    Refused,
    RequestState,
    Seen,
    StageMove,
    Vote,
    counting,
    decide,
    fold_stays,
    rollback_target,
    stale,
)
from modelkeep.core.values import Actor, Digest, ModelName

NOW = datetime(2026, 1, 25, 14, 3, tzinfo=UTC)
ANN = Actor(name="ann")
CHURN = ModelName("default", "churn")


def digest(number: int) -> Digest:
    """A digest that stands for some content."""
    return Digest(f"sha256:{number:064x}")


def seen(version: int = 1, policy: int = 1, evidence: int = 1) -> Seen:
    """What lay on the table."""
    return Seen(version=digest(version), policy=digest(policy), evidence=digest(evidence))


def vote(
    by: str,
    what: Vote = Vote.APPROVE,
    *,
    of: Seen | None = None,
    roles: tuple[str, ...] = ("approver",),
    **more: Any,
) -> Approval:
    """What somebody said."""
    return Approval(by=Actor(name=by), vote=what, roles=roles, seen=of or seen(), at=NOW, **more)


def version(**more: Any) -> ModelVersion:
    """The candidate."""
    fields: dict[str, Any] = {
        "id": "ver_1",
        "model": CHURN,
        "number": 1,
        "semver": "1.0.0",
        "digest": digest(1),
        "size_bytes": 1,
        "files": (),
        "created_at": NOW,
        "created_by": "ann",
    }
    return ModelVersion(**(fields | more))


def asking(count: int) -> Policy:
    """A policy that asks for so many approvers, and for files that verify."""
    rules = StageRules(gates=(FilesVerifiedGate(),), approvals=Approvals(count=count, roles=("approver",)))
    return Policy(name="p", stages={"production": rules})


def decided(count: int, *reviews: Approval, verified: bool | None = True) -> promotion.Decision:
    """What is decided about the candidate, for ann."""
    facts = Facts(version=version(), files_verified=verified)
    return decide(facts, asking(count), "production", requested_by=ANN, reviews=reviews)


# ----------------------------------------------------------------------------------------- the decision


@pytest.mark.req("G2", "G3")
def test_gates_come_before_people() -> None:
    """Nobody can approve away a gate that does not hold, and an unmeasured one does not hold."""
    for verified in (None, False):
        refused = decided(1, vote("bob"), verified=verified)
        assert isinstance(refused, Refused)
        assert [result.gate for result in refused.blocking] == ["files_verified"]


@pytest.mark.req("G2")
def test_people_come_after_gates() -> None:
    """Enough people of the right roles, who saw this, or it waits and says how many are missing."""
    waiting = decided(2)
    assert isinstance(waiting, AwaitingApproval)
    assert (waiting.missing, waiting.roles) == (2, ("approver",))
    now = waiting.seen
    half = decided(2, vote("bob", of=now))
    assert isinstance(half, AwaitingApproval)
    assert (half.missing, half.approved_by) == (1, ("bob",))
    whole = decided(2, vote("bob", of=now), vote("cat", of=now))
    assert isinstance(whole, Granted)
    assert whole.approved_by == ("bob", "cat")
    assert isinstance(decided(0), Granted)


@pytest.mark.req("G2")
@pytest.mark.parametrize(
    "reviews",
    [
        [],
        [vote("ann")],
        [vote("bob", of=seen(version=2))],
        [vote("bob", of=seen(policy=2))],
        [vote("bob", of=seen(evidence=2))],
        [vote("bob", roles=("maintainer", "viewer"))],
        [vote("bob", roles=())],
        [vote("bob", Vote.COMMENT)],
        [vote("bob", dismissed="changed")],
        [vote("bob"), vote("bob", Vote.REJECT)],
    ],
)
def test_votes_that_do_not_count(reviews: list[Approval]) -> None:
    """The requester's own, of something else, in the wrong role, dismissed, taken back, or none."""
    assert counting(reviews, seen(), ANN, ("approver", "admin")) == ()


reviews_strategy = st.lists(
    st.builds(
        vote,
        st.sampled_from(["ann", "bob", "cat", "dan"]),
        st.sampled_from(Vote),
        of=st.builds(seen, version=st.integers(1, 2), evidence=st.integers(1, 2)),
        roles=st.sampled_from([(), ("approver",), ("viewer",), ("approver", "admin")]),
        dismissed=st.sampled_from([None, None, "why"]),
    ),
    max_size=12,
)


@pytest.mark.req("G2")
@given(reviews_strategy)
def test_a_quorum_counts_people_once_and_never_the_requester(reviews: list[Approval]) -> None:
    """Whatever is voted: those who count are different people, did not ask, and their last word was yes to
    exactly this."""
    agreeing = counting(reviews, seen(), ANN, ("approver",))
    names = [approval.by.name for approval in agreeing]
    assert len(set(names)) == len(names)
    assert "ann" not in names
    for approval in agreeing:
        words = [r for r in reviews if r.by == approval.by and r.vote is not Vote.COMMENT]
        assert words[-1] == approval
        assert (approval.vote, approval.seen, approval.dismissed) == (Vote.APPROVE, seen(), None)
        assert "approver" in approval.roles


@pytest.mark.req("G2")
@given(reviews_strategy)
def test_what_is_dismissed_is_what_saw_something_else(reviews: list[Approval]) -> None:
    """Afterwards no standing approval is of another version, policy or evidence, and nothing else fell."""
    decision = Granted(gates=(), seen=seen())
    fallen = [approval for approval, _ in stale(reviews, decision)]
    for review in reviews:
        stands = review.vote is Vote.APPROVE and review.dismissed is None
        assert (review in fallen) == (stands and review.seen != seen())


@pytest.mark.req("G2")
def test_a_dismissal_says_what_changed() -> None:
    """All of it, in one sentence; evidence that is only missing has not changed."""
    approval = vote("bob", of=seen(2, 2, 2))
    ((_, why),) = stale([approval], Granted(gates=(), seen=seen()))
    assert why == "the version and the policy and the evidence changed after bob approved"
    unread = decided(1, verified=None)
    approved = vote("bob", of=decided(1).seen)
    assert stale([approved], unread) == ()
    damaged = decided(1, verified=False)
    assert [why for _, why in stale([approved], damaged)] == ["the evidence changed after bob approved"]
    other_policy = structs.replace(unread, seen=structs.replace(unread.seen, policy=digest(9)))
    assert [why for _, why in stale([approved], other_policy)] == ["the policy changed after bob approved"]


def request(**more: Any) -> PromotionRequest:
    """Ann's request."""
    fields: dict[str, Any] = {
        "id": "req_1",
        "model": CHURN,
        "number": 1,
        "semver": "1.0.0",
        "digest": digest(1),
        "to": "production",
        "reason": "better",
        "requested_by": ANN,
        "created_at": NOW,
        "expires_at": NOW + timedelta(days=14),
    }
    return PromotionRequest(**(fields | more))


@pytest.mark.req("G2")
def test_a_request_lives_until_its_last_moment() -> None:
    """At the moment it expires it is closed, whatever is stored."""
    asked = request()
    last = asked.expires_at - timedelta(microseconds=1)
    assert promotion.state_at(asked, last) is RequestState.OPEN
    promotion.check_open(asked, last)
    assert promotion.state_at(asked, asked.expires_at) is RequestState.EXPIRED
    with pytest.raises(errors.RequestClosed, match="is expired; open a new one with 'modelkeep request"):
        promotion.check_open(asked, asked.expires_at)
    closed = request(state=RequestState.REJECTED)
    with pytest.raises(errors.RequestClosed, match="is rejected"):
        promotion.check_reviewer(closed, Actor(name="bob"), Vote.APPROVE, NOW)
    assert promotion.expiry(asking(1), "production", NOW) == NOW + timedelta(days=14)


@pytest.mark.req("G2")
def test_the_requester_may_only_comment() -> None:
    """Neither yes nor no from whoever asked."""
    promotion.check_reviewer(request(), ANN, Vote.COMMENT, NOW)
    promotion.check_reviewer(request(), Actor(name="bob"), Vote.APPROVE, NOW)
    for what in (Vote.APPROVE, Vote.REJECT):
        with pytest.raises(errors.SelfApproval, match=f"review req_1 --{what}"):
            promotion.check_reviewer(request(), ANN, what, NOW)


# ---------------------------------------------------------------------------------------------- the graph


@pytest.mark.req("G1")
def test_every_move_of_the_graph_and_no_other() -> None:
    """A tombstone stops the way into a protected stage only."""
    names = [spec.name for spec in DEFAULT_STAGES.stages]
    for source in names:
        for target in names:
            moved = version(stage=source)
            if (source, target) in DEFAULT_STAGES.transitions:
                promotion.check_transition(DEFAULT_STAGES, moved, target)
            else:
                with pytest.raises(errors.InvalidTransition):
                    promotion.check_transition(DEFAULT_STAGES, moved, target)
    marked = version(tombstone="errors")
    promotion.check_transition(DEFAULT_STAGES, marked, "staging")
    with pytest.raises(errors.Tombstoned, match=r"modelkeep clear churn:1\.0\.0 -m WHY"):
        promotion.check_transition(DEFAULT_STAGES, marked, "production")
    withdrawn = version(yanked="trained on leaked labels")
    promotion.check_transition(DEFAULT_STAGES, withdrawn, "staging")
    with pytest.raises(errors.Yanked, match=r"modelkeep unyank churn:1\.0\.0 -m WHY"):
        promotion.check_transition(DEFAULT_STAGES, withdrawn, "production")


@pytest.mark.req("G1")
@pytest.mark.parametrize(
    ("after", "held", "followed", "said"),
    [
        ("none new! archived", {}, (), None),
        ("none archived", {"new": 0}, (), None),
        ("none archived", {"new": 2}, (), "The stage new cannot go while 2 versions are in it"),
        ("none archived", {}, ("new",), "cannot go while an endpoint follows it"),
        ("none new archived", {}, ("new",), "An endpoint follows new, so it must stay exclusive"),
        ("none new archived!", {"archived": 2}, (), "cannot be exclusive while 2 versions are in it"),
        ("none new archived!", {"archived": 1}, (), None),
        ("new none archived", {}, (), "The first stage is none, and it stays the first"),
    ],
)
def test_a_graph_changes_only_where_it_fits(
    after: str, held: dict[str, int], followed: tuple[str, ...], said: str | None
) -> None:
    """What holds versions stays, what is followed stays exclusive, and the first stage stays the first."""

    def graph(text: str) -> StageGraph:
        specs = tuple(StageSpec(name=n.rstrip("!"), exclusive=n.endswith("!")) for n in text.split())
        return StageGraph(stages=specs, transitions=(), displaced_to="none")

    before = graph("none new! archived")
    if said is None:
        promotion.check_graph_change(before, graph(after), held, followed)
    else:
        with pytest.raises(errors.InvalidTransition) as caught:
            promotion.check_graph_change(before, graph(after), held, followed)
        assert said in caught.value.message


# ---------------------------------------------------------------------------------------- stays and targets


def moved(sequence: int, number: int, to: str, displaced: int | None = None, **more: Any) -> Event:
    """The event of a move, after a trip through its stored form."""
    other = Displaced(number=displaced, semver=f"1.{displaced}.0", to="archived") if displaced else None
    body = StageMove(
        from_stage="none",
        to=to,
        first=to == "none",
        semver=f"1.{number}.0",
        cause=MoveCause.PROMOTION,
        displaced=other,
    )
    event = Event(
        sequence=sequence,
        kind=EventKind.STAGE_MOVED,
        at=NOW + timedelta(seconds=sequence),
        actor=ANN,
        subject="churn",
        model="churn",
        number=number,
        reason="why",
        body=codec.builtins(body),
        **more,
    )
    return codec.decode(codec.canonical(event), Event)


@pytest.mark.req("G9")
def test_stays_are_a_fold_of_the_events() -> None:
    """Each move ends the version's former stay, displacing ends the other's, deletion ends the last."""
    gone = structs.replace(moved(9, 2, "x"), kind=EventKind.VERSION_DELETED, body={})
    folded = fold_stays([moved(3, 1, "production"), moved(5, 2, "production", displaced=1), gone])
    assert [(s.number, s.stage, s.from_sequence, s.to_sequence, s.cause) for s in folded["churn"]] == [
        (1, "production", 3, 5, MoveCause.PROMOTION),
        (2, "production", 5, 9, MoveCause.PROMOTION),
        (1, "archived", 5, None, MoveCause.DISPLACED),
    ]
    assert folded["churn"][0].actor == "ann"
    assert folded["churn"][0].to_at == NOW + timedelta(seconds=5)
    closed = structs.replace(gone, kind=EventKind.MODEL_DELETED, number=None)
    assert fold_stays([moved(3, 1, "production"), closed])["churn"][0].to_sequence == 9
    assert fold_stays([moved(3, 1, "staging"), moved(4, 1, "none")])["churn"][0].to_sequence == 4
    assert len(fold_stays([moved(3, 1, "staging"), moved(4, 1, "none")])["churn"]) == 1


@pytest.mark.req("G9")
@given(
    st.lists(
        st.tuples(st.integers(1, 4), st.sampled_from(["staging", "production", "archived", "none"])),
        max_size=30,
    )
)
def test_a_version_is_in_one_place_at_a_time(moves: list[tuple[int, str]]) -> None:
    """Whatever is moved where: the stays of one version never overlap, and only its last one is open."""
    folded = fold_stays(moved(at, number, to) for at, (number, to) in enumerate(moves, 1)).get("churn", [])
    for number in range(1, 5):
        own = [stay for stay in folded if stay.number == number]
        for former, later in pairwise(own):
            assert former.to_sequence is not None
            assert former.to_sequence <= later.from_sequence
        last = next((to for n, to in reversed(moves) if n == number), "none")
        assert [stay.stage for stay in own if stay.to_sequence is None] == ([] if last == "none" else [last])


def stay(number: int, sequence: int) -> Interval:
    """A stay in production."""
    return Interval(
        stage="production",
        number=number,
        semver=f"1.{number}.0",
        from_at=NOW,
        from_sequence=sequence,
        cause=MoveCause.PROMOTION,
        actor="ann",
        reason="why",
    )


@pytest.mark.req("G7")
@given(st.lists(st.integers(1, 6), min_size=1, max_size=12), st.sets(st.integers(1, 6)))
def test_rolling_back_again_and_again_ends(history: list[int], tombstoned: set[int]) -> None:
    """Each rollback marks what it leaves, so no version is returned to twice, and there is an end."""
    stays = [stay(number, sequence) for sequence, number in enumerate(history)]
    present = set(range(1, 7)) - {4}
    current, visited = history[-1], []
    while True:
        try:
            target = rollback_target(stays, current, tombstoned=tombstoned, present=present)
        except errors.NoRollbackTarget:
            break
        assert target not in tombstoned | {4, current}
        assert target in history
        visited.append(target)
        tombstoned = tombstoned | {current}
        current = target
        stays.append(stay(target, len(stays)))
    assert len(set(visited)) == len(visited)
