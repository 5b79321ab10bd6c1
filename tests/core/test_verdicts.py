"""Verdicts for others: what a rollout's evidence says in flat words, what foreign counts say, yes or no."""

import random
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from modelkeep.core import codec, errors, judgement, sequential
from modelkeep.core.evidence import evidence_of
from modelkeep.core.judgement import Judgement, Verdict
from modelkeep.core.observation import SideCounts, Tick
from modelkeep.core.plan import CANARY, Plan, Step, Strategy, Variant
from modelkeep.core.rollout import Rollout, RolloutState, advance
from modelkeep.core.routing import WHOLE_PPM, Epoch
from modelkeep.core.sequential import RequestTick, Unit
from modelkeep.core.values import Actor, Digest, ModelName
from modelkeep.core.verdicts import (
    EVENTS_MAX,
    TICKS_MAX,
    ArmTick,
    CountedTick,
    CountsVerdict,
    Gate,
    Question,
    check_gate,
    judge_counts,
    verdict_of,
)
from tests.core import test_contest

pytestmark = pytest.mark.req("S7")

T0 = datetime(2026, 1, 25, tzinfo=UTC)


def rollout(**more: Any) -> Rollout:
    """A rollout in its first step."""
    made: dict[str, Any] = {
        "id": "rol_1",
        "endpoint": "churn",
        "model": ModelName("default", "churn"),
        "stage": "production",
        "stable": 1,
        "stable_digest": None,
        "stable_semver": "1.0.0",
        "candidate": 2,
        "candidate_digest": Digest("sha256:" + "a" * 64),
        "candidate_semver": "1.1.0",
        "plan": CANARY,
        "salt": "s",
        "state": RolloutState.STEPPING,
        "weight_ppm": 100_000,
        "epoch": Epoch(1, 1),
        "started_at": T0,
        "started_by": Actor(name="ada"),
        "reason": "better",
    }
    return Rollout(**(made | more))


@pytest.mark.parametrize(
    ("state", "verdict"),
    [
        (RolloutState.PREPARING, Verdict.HOLD),
        (RolloutState.STEPPING, Verdict.HOLD),
        (RolloutState.ROLLING_BACK, Verdict.ROLLBACK),
        (RolloutState.ROLLED_BACK, Verdict.ROLLBACK),
        (RolloutState.FAILED, Verdict.ROLLBACK),
        (RolloutState.CANCELLED, Verdict.ROLLBACK),
        (RolloutState.SUPERSEDED, Verdict.ROLLBACK),
        (RolloutState.PREVIEWING, Verdict.HOLD),
        (RolloutState.CONCLUDED, Verdict.HOLD),
        (RolloutState.SUCCEEDED, Verdict.ADVANCE),
    ],
)
def test_every_state_has_its_verdict(state: RolloutState, verdict: Verdict) -> None:
    """Nothing looked at is a hold; how it ended is said for ever."""
    found = verdict_of(rollout(state=state))
    assert found.verdict is verdict
    assert found.finished is state.finished
    assert found.why


def test_the_last_judgement_is_the_verdict_while_it_goes_on() -> None:
    """With its numbers and both sides' counts, each under one name."""
    said = Judgement(verdict=Verdict.ROLLBACK, why="more fail", p_value=0.001, blamed="errors")
    counts = SideCounts(requests=240, errors=9, new_callers=120, callers_first_error=7)
    found = verdict_of(rollout(judgement=said, candidate_counts=counts, ticks=4))
    assert (found.verdict, found.p_value, found.blamed, found.alpha) == (
        Verdict.ROLLBACK,
        0.001,
        "errors",
        CANARY.alpha,
    )
    assert (found.candidate.requests, found.candidate.callers, found.candidate.callers_failed) == (
        240,
        120,
        7,
    )
    assert (found.step, found.steps, found.weight_ppm) == (1, 3, 100_000)
    assert codec.builtins(found)["verdict"] == "rollback"


# ----------------------------------------------------------------------------------------- foreign counts


def arms(most: int = 60) -> st.SearchStrategy[ArmTick]:
    """What an arm did: never more failures than requests."""
    return st.integers(0, most).flatmap(
        lambda count: st.builds(
            ArmTick,
            count=st.just(count),
            failed=st.integers(0, count),
            slow=st.integers(0, count),
            failed_at_once=st.none() | st.integers(0, count),
        )
    )


WEIGHTED = st.lists(
    st.builds(CountedTick, candidate=arms(), stable=arms(), candidate_ppm=st.integers(1, WHOLE_PPM)),
    max_size=12,
)


@given(ticks=WEIGHTED)
def test_callers_are_judged_as_our_own_gateways_are(ticks: list[CountedTick]) -> None:
    """The same counts in a gateway's ticks come to the same evidence, to the bit, and the same verdict."""
    full = [
        structs.replace(
            tick,
            candidate=structs.replace(tick.candidate, failed_at_once=tick.candidate.failed_at_once or 0),
            stable=structs.replace(tick.stable, failed_at_once=tick.stable.failed_at_once or 0),
        )
        for tick in ticks
    ]
    own = [
        Tick(
            endpoint="churn",
            rollout="rol_1",
            epoch=Epoch(1, 1),
            number=number,
            started_at=T0,
            ended_at=T0,
            candidate_ppm=tick.candidate_ppm or 0,
            candidate=side(tick.candidate),
            stable=side(tick.stable),
        )
        for number, tick in enumerate(full)
    ]
    found = judge_counts(Question(ticks=tuple(full), unit=Unit.CALLER))
    evidence = evidence_of(CANARY, own)
    candidate = stable = SideCounts()
    for tick in own:
        candidate, stable = candidate.plus(tick.candidate), stable.plus(tick.stable)
    said = judgement.judge(CANARY, evidence, candidate, stable)
    assert (found.verdict, found.why, found.p_value) == (said.verdict, said.why, said.p_value)
    assert found.p_values["low rate"] == evidence.low_rate.p_value
    assert found.p_values["traffic shares"] == evidence.shares.p_value


def side(arm: ArmTick) -> SideCounts:
    """An arm's counts as a gateway tells them."""
    return SideCounts(
        requests=arm.count,
        errors=arm.failed,
        slow=arm.slow,
        callers_arrived=arm.count,
        new_callers=arm.count,
        new_callers_failed=arm.failed_at_once or 0,
        callers_first_error=arm.failed,
        callers_first_slow=arm.slow,
    )


@given(ticks=WEIGHTED)
def test_requests_are_judged_by_the_requests_that_came(ticks: list[CountedTick]) -> None:
    """The test of errors is the conditional one; without shares nothing is said of shares."""
    bare = tuple(structs.replace(tick, candidate_ppm=None) for tick in ticks)
    found = judge_counts(Question(ticks=bare))
    alone = sequential.replay(
        sequential.fail_spec(margin=CANARY.margin, unit=Unit.REQUEST),
        [
            RequestTick(x=t.candidate.failed, y=t.stable.failed, n1=t.candidate.count, n0=t.stable.count)
            for t in bare
        ],
    )
    assert found.p_values["errors"] == alone.p_value
    assert found.p_values["traffic shares"] == 1.0
    assert found == judge_counts(Question(ticks=bare)), "the same question, the same answer"


def test_a_worse_candidate_is_found_and_a_good_one_passed() -> None:
    """Ten times the failures is a rollback; ten minutes of the same is an advance; nothing is a hold."""
    bad = CountedTick(candidate=ArmTick(count=200, failed=20), stable=ArmTick(count=1_800, failed=18))
    good = CountedTick(candidate=ArmTick(count=200, failed=2), stable=ArmTick(count=1_800, failed=18))
    assert judge_counts(Question(ticks=(bad,) * 5)).verdict is Verdict.ROLLBACK
    assert judge_counts(Question(ticks=(bad,) * 5)).blamed == "errors"
    assert judge_counts(Question(ticks=(good,) * 60)).verdict is Verdict.ADVANCE
    assert judge_counts(Question(ticks=())).verdict is Verdict.HOLD


def test_an_arm_that_does_not_get_its_share_is_found_where_the_share_is_told() -> None:
    """Half of the traffic instead of a tenth; nothing is said when nobody told the share."""
    odd = CountedTick(candidate=ArmTick(count=500), stable=ArmTick(count=500), candidate_ppm=100_000)
    found = judge_counts(Question(ticks=(odd,) * 3))
    assert (found.verdict, found.blamed) == (Verdict.ROLLBACK, "traffic shares")
    untold = structs.replace(odd, candidate_ppm=None)
    assert judge_counts(Question(ticks=(untold,) * 3)).verdict is not Verdict.ROLLBACK


def test_a_candidate_like_stable_is_seldom_taken_back() -> None:
    """Of 200 simulated rollouts without any difference, looked at after every tick, at most the promised
    share (a fifth here, and three standard errors) is taken back."""
    plan, rng = structs.replace(CANARY, alpha=0.2), random.Random(7)
    taken = 0
    for _ in range(200):
        ticks = []
        for _ in range(30):
            c, s = (sum(rng.random() < 0.05 for _ in range(n)) for n in (10, 40))
            ticks.append(
                CountedTick(candidate=ArmTick(count=10, failed=c), stable=ArmTick(count=40, failed=s))
            )
        taken += judge_counts(Question(ticks=tuple(ticks), plan=plan)).blamed == "errors"
    assert taken / 200 <= 0.2 + 3 * (0.2 * 0.8 / 200) ** 0.5


def test_counts_that_cannot_be_are_refused() -> None:
    """More failures than requests, callers without a share, a plan that promises nothing, too much."""
    one = ArmTick(count=1)
    for tick, unit, match in (
        (CountedTick(candidate=ArmTick(count=1, failed=2), stable=one), Unit.REQUEST, "candidate has more"),
        (CountedTick(candidate=one, stable=ArmTick(count=1, slow=2)), Unit.REQUEST, "stable has more"),
        (CountedTick(candidate=ArmTick(count=1, failed_at_once=2), stable=one), Unit.CALLER, "at once"),
        (CountedTick(candidate=one, stable=one), Unit.CALLER, "candidate_ppm"),
    ):
        with pytest.raises(errors.InvalidInput, match=match):
            judge_counts(Question(ticks=(tick,), unit=unit))
    with pytest.raises(errors.InvalidPlan):
        judge_counts(Question(ticks=(), plan=structs.replace(CANARY, alpha=0.0)))
    many = ArmTick(count=EVENTS_MAX, failed=EVENTS_MAX)
    with pytest.raises(errors.LimitExceeded, match="failures"):
        judge_counts(Question(ticks=(CountedTick(candidate=many, stable=many),)))
    body = codec.encode({"ticks": [{"candidate": {}, "stable": {}}] * (TICKS_MAX + 1)})
    with pytest.raises(errors.MalformedBody):
        codec.decode_untrusted(body, Question)


# ---------------------------------------------------------------------------------------------- yes or no


@pytest.mark.parametrize("gate", [None, *Gate])
@pytest.mark.parametrize("verdict", list(Verdict))
def test_a_gate_says_yes_or_no(gate: Gate | None, verdict: Verdict) -> None:
    """Promotion only on a proof, rollback only on an alarm, and a hold is neither."""
    empty = judge_counts(Question(ticks=()))
    found: CountsVerdict = structs.replace(empty, verdict=verdict)
    refusal = (
        {
            (Gate.PROMOTION, Verdict.HOLD): errors.Pending,
            (Gate.PROMOTION, Verdict.ROLLBACK): errors.GateFailed,
            (Gate.ROLLBACK, Verdict.HOLD): errors.Conflict,
            (Gate.ROLLBACK, Verdict.ADVANCE): errors.Conflict,
        }.get((gate, verdict))
        if gate is not None
        else None
    )
    if refusal is None:
        check_gate(found, gate)
        return
    with pytest.raises(refusal) as caught:
        check_gate(found, gate)
    assert caught.value.details["verdict"] == verdict


# ---------------------------------------------------------------------------------- tests of several versions

TESTED = Plan(
    strategy=Strategy.AB_TEST,
    steps=(Step(weight_ppm=250_000),),
    versions=(Variant(version="2.1.0", weight_ppm=250_000),),
)


def contested(*kinds: str) -> Rollout:
    """A test of three versions after such ticks, as the controller has looked at it."""
    of = test_contest.stepping()
    for kind in kinds:
        of = advance(of, test_contest.seen(of, kind), T0).rollout
    return of


def test_the_verdict_on_a_test_speaks_of_every_version() -> None:
    """Each with its p-value over all of them; while one is no worse than stable the test holds, and says who
    is out; with the last it is taken back; the report is who fares best so far."""
    for of in (contested("stable worse"), contested("other worse"), contested("other worse", "both worse")):
        found = verdict_of(of)
        assert [one.version for one in found.versions] == ["1.2.0", "1.3.0"]
        for one, own in zip(found.versions, (of.judgement, of.others[0].judgement), strict=True):
            assert own is not None
            assert one.p_value == min(1.0, 2 * own.p_value)
            assert (one.p_value <= of.plan.alpha) == (own.verdict is Verdict.ROLLBACK)
    fine, out, over = (
        verdict_of(contested(*kinds))
        for kinds in (("good",), ("other worse",), ("other worse", "both worse"))
    )
    assert (fine.verdict, [one.out for one in fine.versions]) == (Verdict.HOLD, [None, None])
    assert fine.why == "nothing says that 1.2.0, 1.3.0 is worse than stable"
    assert out.verdict is Verdict.HOLD
    assert "1.3.0 was taken out" in out.why
    assert out.versions[1].out is not None
    assert over.verdict is Verdict.ROLLBACK
    assert fine.report is not None
    assert (fine.report.winner, fine.report.comparisons) == ("nobody", 6)
    for gate in Gate:
        with pytest.raises((errors.Pending, errors.Conflict)):
            check_gate(fine, gate)
    assert verdict_of(rollout()).versions == ()
    assert verdict_of(rollout()).report is None


@pytest.mark.parametrize("unit", Unit)
def test_counts_of_several_versions_are_judged_each_beside_stable(unit: Unit) -> None:
    """As if the others were not there, with its share of both and its part of alpha; Bonferroni's bound is
    told, and the test is over when all are worse."""
    good, bad = ({"count": 500, "failed": n, "failed_at_once": n} for n in (2, 40))

    def asked(candidate: dict[str, int], other: dict[str, int], **plan: Any) -> CountsVerdict:
        tick = CountedTick(
            candidate=ArmTick(**candidate),
            stable=ArmTick(count=1_000, failed=4, failed_at_once=4),
            others=(ArmTick(**other),),
            candidate_ppm=250_000,
            others_ppm=(250_000,),
        )
        return judge_counts(Question(ticks=(tick,) * 3, plan=structs.replace(TESTED, **plan), unit=unit))

    both = asked(good, bad)
    first, second = both.versions
    assert (first.version, second.version) == ("the candidate", "2.1.0")
    assert (both.verdict, first.verdict, second.verdict) == (Verdict.HOLD, Verdict.ADVANCE, Verdict.ROLLBACK)
    assert "2.1.0 is worse than stable" in both.why
    assert second.why.startswith("more callers fail than on stable: 120 of 2.1.0's callers")
    alone = judge_counts(
        Question(
            ticks=(
                CountedTick(
                    candidate=ArmTick(**bad),
                    stable=ArmTick(count=1_000, failed=4, failed_at_once=4),
                    candidate_ppm=333_333,
                ),
            )
            * 3,
            plan=structs.replace(CANARY, alpha=TESTED.alpha / 2),
            unit=unit,
        )
    )
    assert second.p_value == min(1.0, 2 * alone.p_value)
    assert asked(bad, bad).verdict is Verdict.ROLLBACK
    assert asked(good, good).p_value == 1.0


def test_further_versions_that_the_plan_does_not_know_are_refused() -> None:
    """Too many, or without their shares, or with more than everything; a tick may leave them all out."""
    arm = ArmTick(count=5)
    for wrong in (
        {"others": (arm, arm), "others_ppm": (1, 1)},
        {"others": (arm,)},
        {"others": (arm,), "others_ppm": (800_000,)},
        {"others_ppm": (1,)},
    ):
        tick = CountedTick(candidate=arm, stable=arm, candidate_ppm=250_000, **wrong)
        with pytest.raises(errors.InvalidInput, match="others"):
            judge_counts(Question(ticks=(tick,), plan=TESTED))
    tick = CountedTick(candidate=arm, stable=arm, candidate_ppm=250_000)
    assert len(judge_counts(Question(ticks=(tick,), plan=TESTED)).versions) == 2
    with pytest.raises(errors.InvalidInput, match="tests 0 further"):
        judge_counts(Question(ticks=(structs.replace(tick, others=(arm,), others_ppm=(1,)),)))
