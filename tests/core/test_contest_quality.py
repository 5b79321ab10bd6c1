"""Versions compared by labels, in A/B tests and shadows: who wins, which labels are missing, and how seldom
that is wrong."""

import random
from collections import Counter
from typing import Any

import pytest
from msgspec import structs

from modelkeep.core import codec, errors, rollout, rollout_evidence
from modelkeep.core.contest_outlook import contest_outlook
from modelkeep.core.forecast import Flow
from modelkeep.core.label_outlook import labels_outlook, shares_of
from modelkeep.core.observation import LabelCounts, Labelled, PairCounts, SideCounts, Tick, check_report
from modelkeep.core.plan import JUDGED_LATER, Goal, Metrics, Plan, Strategy, check_plan, read_plan
from modelkeep.core.quality import Quality
from modelkeep.core.rollout import Rollout, RolloutState
from modelkeep.core.routing import VersionKey
from tests.core import test_contest
from tests.core.test_contest import OTHER, SHARES
from tests.core.test_rollout import AB_TEST, report, stepping, tick

pytestmark = pytest.mark.req("S3", "S7")

TWO = structs.replace(AB_TEST, goal=Goal.QUALITY, quality=Quality(), metrics=JUDGED_LATER)
SEVERAL = structs.replace(
    test_contest.PLAN, goal=Goal.QUALITY, quality=Quality(), metrics=JUDGED_LATER, promote_winner=False
)


def known(callers: int, wrong: int) -> LabelCounts:
    """Callers with their first label."""
    return LabelCounts(
        labels=callers,
        wrong=wrong,
        callers_labelled=callers,
        callers_wrong_at_once=wrong,
        callers_first_wrong=wrong,
    )


def met(callers: int) -> SideCounts:
    """Callers who were answered."""
    return SideCounts(requests=callers, callers_arrived=callers, new_callers=callers)


def told(sides: tuple[LabelCounts, ...], callers: tuple[int, ...] = (0, 0, 0)) -> Tick:
    """A tick with labels: stable's, the candidate's, and those of a further version."""
    stable, candidate, *others = sides
    shares: dict[str, Any] = {"others_ppm": SHARES[1:], "others": (met(callers[2]),)} if others else {}
    labels = Labelled(stable=stable, candidate=candidate, others=tuple(others))
    return tick(SHARES[0], met(callers[0]), met(callers[1]), labels=labels, **shares)


def of(plan: Plan, *ticks: Tick) -> Rollout:
    """A test after these ticks."""
    begun = test_contest.stepping(plan=plan) if plan.versions else stepping(plan=plan)
    return rollout.take_in(begun, ticks)


def test_a_test_of_two_is_decided_by_first_labels() -> None:
    """The side whose callers' first labels say wrong more seldom wins, at the rates of those who have one;
    without labels nobody does; and the report says how many are missing of each version."""
    none = rollout.report(of(TWO, told((known(0, 0),) * 2, (900, 100, 0))))
    assert (none.winner, none.candidate_rate, none.stable_rate) == ("nobody", None, None)
    assert [(one.version, one.callers, one.labelled, one.missing) for one in none.labels] == [
        ("1.2.0", 100, 0, 100),
        ("1.1.0", 900, 0, 900),
    ]
    assert none.why.endswith("callers without a label: 100 of 100 of 1.2.0, 900 of 900 of 1.1.0")
    good = rollout.report(of(TWO, told((known(900, 500), known(100, 5)), (2_000, 300, 0))))
    assert (good.winner, good.goal) == ("candidate", Goal.QUALITY)
    assert (good.candidate_rate, good.candidate_callers, good.stable_callers) == (0.05, 100, 900)
    assert "5 of 100 callers of the candidate and 500 of 900 of stable's with a label" in good.why
    assert [one.missing for one in good.labels] == [200, 1_100]
    bad = of(TWO, told((known(900, 9), known(100, 50)), (2_000, 300, 0)))
    assert rollout.report(bad).winner == "stable"
    found = rollout.judge(bad)
    assert (found.verdict, found.blamed) == ("rollback", "quality")
    assert rollout.report(stepping(plan=AB_TEST)).labels == ()


def test_later_labels_of_a_caller_do_not_count() -> None:
    """Callers who are wrong wear out, on the worse side first; what their later labels say decides
    nothing."""
    worn = structs.replace(known(50, 0), callers_first_wrong=45)
    first = structs.replace(known(450, 0), callers_first_wrong=10)
    assert rollout.report(of(TWO, told((first, worn)))).winner == "nobody"


def test_of_several_versions_each_has_labels_of_its_own() -> None:
    """One that is shown worse is taken out for it; the best one is named, with what is missing of each; all
    is recomputed from stored ticks, to the last bit."""
    fair, poor, fine = known(3_500, 350), known(500, 250), known(1_000, 10)
    after = of(SEVERAL, told((fair, poor, fine), (7_000, 1_000, 2_000)))
    first, gone = rollout_evidence.fallen(after, test_contest.seen(after))
    assert list(gone) == [0]
    assert "more callers have wrong predictions than on stable: 250 of 500 labelled" in gone[0]
    assert rollout_evidence.judge_other(first, 1).verdict != "rollback"
    said = rollout.report(after)
    assert (said.winner, said.semver, said.comparisons) == ("other", OTHER.semver, 6)
    assert [(arm.semver, arm.callers, arm.better) for arm in said.arms] == [
        ("1.2.0", 500, False),
        ("1.3.0", 1_000, True),
    ]
    assert [(one.version, one.missing) for one in said.labels] == [
        ("1.2.0", 500),
        ("1.3.0", 1_000),
        ("1.1.0", 3_500),
    ]
    stored = codec.decode(codec.encode(after), Rollout)
    ticks = codec.decode(codec.encode([told((fair, poor, fine), (7_000, 1_000, 2_000))]), list[Tick])
    assert rollout.replay(stored, ticks) == after.evidence
    worse = of(SEVERAL, told((fair, known(500, 50), known(1_000, 500))))
    assert "1.3.0" in rollout_evidence.fallen(worse, test_contest.seen(worse))[1][1]


def test_a_plan_says_what_makes_a_prediction_wrong() -> None:
    """A goal of quality has a quality, which shares alpha by itself; other strategies than a canary and a
    test have none; and a tick has labels of as many versions as a test has."""
    plan = read_plan("strategy: ab_test\ngoal: quality\nquality: {threshold: 0.5}")
    assert (plan.goal, plan.metrics) == (Goal.QUALITY, JUDGED_LATER)
    with pytest.raises(errors.InvalidPlan, match=r"write at least 'quality: \{\}'"):
        read_plan("strategy: ab_test\ngoal: quality")
    with pytest.raises(errors.InvalidPlan, match="choose canary, ab_test, shadow"):
        read_plan("strategy: rolling\nquality: {}")
    assert check_plan(SEVERAL) is SEVERAL
    many = told((known(0, 0),) * 3)
    assert many.labels is not None
    crowd = structs.replace(many, labels=structs.replace(many.labels, others=(known(0, 0),) * 8))
    with pytest.raises(errors.Invalid, match="more versions than a test has"):
        check_report(report(ticks=(crowd,)))
    check_report(report(ticks=(many,)))


def test_a_shadow_is_judged_by_labels_too() -> None:
    """Of the pairs in which it alone was wrong, and stable alone; a version that is wrong where stable is not
    ends as failed, one that is as often wrong does not; without a quality labels say nothing."""
    plan = read_plan("strategy: shadow\nshadow_ppm: 1000000\nshadow_s: 60\nquality: {}")
    assert plan.metrics.quality > 0

    def shadowed(alone: int, stable_alone: int, of_plan: Plan = plan) -> Rollout:
        pairs = PairCounts(
            version=VersionKey("version:3"),
            pairs=1_000,
            compared=1_000,
            labelled=400,
            only_shadow_wrong=alone,
            only_stable_wrong=stable_alone,
        )
        begun = stepping(plan=of_plan, state=RolloutState.SHADOWING, weight_ppm=0)
        return rollout.take_in(begun, (tick(0, met(1_000), SideCounts(), pairs=pairs),))

    found = rollout.judge(shadowed(60, 5))
    assert (found.verdict, found.blamed) == ("rollback", "quality")
    assert "is wrong where stable is not" in found.why
    assert "of 400 with a label the candidate alone was wrong in 60, stable alone in 5" in found.why
    assert rollout.judge(shadowed(20, 18)).verdict == "hold"
    assert rollout.judge(shadowed(5, 60)).verdict == "hold"
    unjudged = shadowed(60, 5, structs.replace(plan, quality=None, metrics=Metrics()))
    assert rollout.judge(unjudged).verdict == "hold"
    assert unjudged.evidence.pair_wrong.ticks == 0


def test_a_forecast_of_such_a_test_reckons_with_labels() -> None:
    """With half of the labels it takes twice as long; no advance waits for any, so nothing is said of
    that."""
    flow = Flow(callers_per_s=6, failing=0.001, failing_first=0.001, slow=0.001)
    step = structs.replace(TWO.steps[0], weight_ppm=500_000, min_s=600.0, max_s=600.0)
    plan = structs.replace(TWO, steps=(step,), alpha=0.05)
    shares = []
    for labelled in (2_000, 200):
        share, wrong, counted = shares_of(labelled=labelled, wrong=labelled // 10, callers=2_000)
        assert counted
        seen = contest_outlook(plan, flow, candidate=None, seed=1, runs=60, wrong=share * wrong)
        assert seen is not None
        assert seen.goal is Goal.QUALITY
        shares.append([one.share for one in seen.arms[0].gains])
    plenty, few = shares
    assert plenty[-1] == 1.0
    assert sum(few) < sum(plenty)
    assert labels_outlook(plan, callers_per_s=2, labelled=10, wrong=1, callers=20) is None
    assert shares_of(labelled=0, wrong=0, callers=10) == (1.0, 0.1, False)


# ------------------------------------------------------------------------------------ how seldom it is wrong


def lived(rng: random.Random, plan: Plan, ticks: int, callers_a_tick: int) -> bool:
    """Whether anybody is ever named in a test of equal versions, looked at after each tick.

    Callers stick to their version; a few are wrong whenever they ask, and some ask often. A third of the
    predictions get a label, late, wrong ones sooner than right ones.
    """
    shares = (1_000_000 - sum(SHARES[: 1 + len(plan.versions)]), *SHARES[: 1 + len(plan.versions)])
    due: dict[int, list[tuple[int, int, bool]]] = {}
    labelled: set[int] = set()
    mistaken: set[int] = set()
    after, caller = of(plan), 0
    for now in range(ticks):
        arrived = Counter[int]()
        for _ in range(callers_a_tick):
            caller += 1
            place = rng.choices(range(len(shares)), shares)[0]
            arrived[place] += 1
            bad = rng.random() < 0.04
            for _ in range(min(20, int(rng.lognormvariate(0.5, 1.0)) + 1)):
                wrong = bad or rng.random() < 0.08
                if rng.random() < 0.33:
                    at = now + int(rng.expovariate(1 / (2.0 if wrong else 8.0)))
                    due.setdefault(at, []).append((caller, place, wrong))
        counts = [Counter[str]() for _ in shares]
        for who, place, wrong in due.pop(now, ()):
            counts[place]["labels"] += 1
            counts[place]["wrong"] += wrong
            if who not in labelled:
                labelled.add(who)
                counts[place]["callers_labelled"] += 1
                counts[place]["callers_wrong_at_once"] += wrong
            if wrong and who not in mistaken:
                mistaken.add(who)
                counts[place]["callers_first_wrong"] += 1
        sides = tuple(LabelCounts(**side) for side in counts)
        met_by = (arrived[0], arrived[1], arrived[2])
        after = rollout.take_in(after, (told(sides, met_by),))
        if rollout.report(after).winner != "nobody":
            return True
    return False


@pytest.mark.parametrize(
    ("plan", "runs", "ticks"),
    [
        pytest.param(TWO, 60, 25, id="two"),
        pytest.param(SEVERAL, 30, 25, id="several"),
        pytest.param(TWO, 800, 60, id="two, long", marks=pytest.mark.long),
        pytest.param(SEVERAL, 400, 60, id="several, long", marks=pytest.mark.long),
    ],
)
def test_among_equal_versions_labels_seldom_name_a_winner(plan: Plan, runs: int, ticks: int) -> None:
    """In at most the share alpha of all tests, within the error of the sample, however late labels are and
    whoever is always wrong."""
    rng, alpha = random.Random(20_261_121), 0.1
    plan = structs.replace(plan, alpha=alpha)
    named = sum(lived(rng, plan, ticks, 12) for _ in range(runs))
    assert named <= runs * alpha + 3 * (runs * alpha * (1 - alpha)) ** 0.5


def test_a_test_of_quality_reads_so() -> None:
    """In one line, as any other."""
    from modelkeep.cli.plans import summary

    assert summary(TWO).startswith("A/B test by quality: ")
    assert TWO.strategy is Strategy.AB_TEST
