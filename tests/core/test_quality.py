"""Quality: what makes a prediction wrong, and a rollout that waits for labels, goes on, or goes back."""

import random
from datetime import timedelta
from typing import Any

import pytest
from msgspec import structs

from modelkeep.core import codec, errors, judgement
from modelkeep.core.evidence import evidence_of
from modelkeep.core.judgement import Missing
from modelkeep.core.label_outlook import LABELLED, WRONG, labels_outlook
from modelkeep.core.observation import LabelCounts, Labelled, SideCounts, Tick, check_report
from modelkeep.core.plan import JUDGED_AND_COMPARED, JUDGED_LATER, check_plan, read_plan
from modelkeep.core.quality import Kind, Quality, Value, is_wrong, label_of, value_of
from modelkeep.core.rollout import (
    Endpoint,
    OnInconclusive,
    Plan,
    RolloutState,
    Strategy,
    Verdict,
    advance,
    replay,
    route_of,
)
from modelkeep.core.routing import WHOLE_PPM
from modelkeep.core.shift import Shift
from modelkeep.core.values import ModelName
from tests.core.test_rollout import KEYS, MIN_S, NOW, PLAN, few, good, report, seen, stepping, tick

WAIT_S = 500.0
JUDGED = structs.replace(PLAN, quality=Quality(wait_s=WAIT_S), metrics=JUDGED_LATER)


ENDPOINT = Endpoint(
    id="end_1",
    name="churn",
    model=ModelName("default", "churn"),
    stage="production",
    stable=2,
    rollout="rol_1",
    created_at=NOW,
    created_by="ann",
)


def labelled(weight: int, wrong: tuple[int, int], known: tuple[int, int] = (400, 3_600)) -> Tick:
    """Labels alone: (candidate, stable)."""
    sides = (
        LabelCounts(labels=n, wrong=x, callers_labelled=n, callers_wrong_at_once=x, callers_first_wrong=x)
        for n, x in zip(known, wrong, strict=True)
    )
    candidate, stable = sides
    return structs.replace(
        tick(weight, SideCounts(), SideCounts()), labels=Labelled(candidate=candidate, stable=stable)
    )


@pytest.mark.req("S7")
@pytest.mark.parametrize(
    ("rule", "predicted", "label", "wrong"),
    [
        ({}, "yes", "yes", False),
        ({}, "yes", "no", True),
        ({}, 1, True, False),
        ({}, [0.1, 0.7, 0.2], 1, False),
        ({}, [0.1, 0.7, 0.2], 2, True),
        ({}, [[3]], 3, False),
        ({}, "1", 1, None),
        ({"threshold": 0.5}, 0.5, True, False),
        ({"threshold": 0.5}, 0.49, 1, True),
        ({"threshold": 0.5}, 0.9, "no", None),
        ({"tolerance": 10.0}, 100, 110, False),
        ({"tolerance": 10.0}, 100, 110.5, True),
        ({"tolerance": 10.0}, "near", "here", None),
        ({"label": "paid"}, True, {"paid": False, "day": 3}, True),
        ({}, True, {"paid": False}, True),
    ],
)
def test_a_prediction_is_wrong_as_its_rule_says(
    rule: dict[str, Any], predicted: Any, label: Any, wrong: bool | None
) -> None:
    """Classes are compared, scores cut, numbers measured; what cannot be compared is neither."""
    quality = Quality(**rule)
    mine, other = value_of(predicted), label_of(label, quality.label)
    assert mine is not None
    assert other is not None
    assert is_wrong(quality, mine, other) is wrong


@pytest.mark.req("S7")
def test_what_is_no_single_value_is_none() -> None:
    """Objects without the entry, empty lists, infinities and nothing; a text keeps no more than its hash."""
    nothing: tuple[Any, ...] = (None, [], {}, float("inf"), 10**400, [1, "a"], b"x")
    assert [value_of(value) for value in nothing] == [None] * len(nothing)
    assert label_of({"a": 1, "b": 2}, None) is None
    assert label_of({"a": 1}, "b") is None
    told = value_of("Ann Smith")
    assert told is not None
    assert told.kind is Kind.TEXT
    assert told == value_of("Ann Smith") != value_of("Ann Smyth")
    assert value_of(float(int(told.number))) == Value(Kind.NUMBER, told.number)


@pytest.mark.req("S7")
@pytest.mark.parametrize(
    "changes",
    [
        {"metrics": PLAN.metrics},
        {"quality": None},
        {"strategy": Strategy.ROLLING},
        {"quality": Quality(threshold=0.5, tolerance=1.0)},
        {"quality": Quality(tolerance=-1.0)},
        {"quality": Quality(threshold=float("nan"))},
        {"quality": Quality(margin=2.0)},
        {"quality": Quality(wait_s=0.0)},
        {"quality": Quality(output="")},
    ],
)
def test_a_plan_that_judges_nothing_by_labels_is_refused(changes: dict[str, Any]) -> None:
    """A rule without a share of alpha, a share without a rule, and rules that say nothing."""
    assert check_plan(JUDGED) is JUDGED
    with pytest.raises(errors.InvalidPlan):
        check_plan(structs.replace(JUDGED, **changes))


@pytest.mark.req("S7")
def test_a_plan_with_quality_shares_alpha_by_itself() -> None:
    """In YAML the rule alone is enough; what is written of the shares goes first."""
    plan = read_plan("quality: {threshold: 0.5, wait_s: 86400}")
    assert plan.quality == Quality(threshold=0.5, wait_s=86_400.0)
    assert plan.metrics == JUDGED_LATER
    own = read_plan("quality: {}\nmetrics: {errors: 0.5, latency: 0, shares: 0, quality: 0.5}")
    assert own.metrics.quality == 0.5
    with pytest.raises(errors.InvalidPlan, match="quality"):
        read_plan("quality: {}\nmetrics: {errors: 0.5}")


@pytest.mark.req("S7")
def test_without_labels_a_step_holds_and_says_so() -> None:
    """All else is shown, and yet nothing goes on; when labels were waited for long enough the plan's word for
    what is inconclusive counts, and not before."""
    for word, state in (
        (OnInconclusive.HOLD, RolloutState.STEPPING),
        (OnInconclusive.ROLLBACK, RolloutState.ROLLING_BACK),
    ):
        plan = structs.replace(JUDGED, on_inconclusive=word)
        waits = stepping(plan=plan)
        proven = structs.replace(seen(waits), ticks=(good(100_000),))
        held = advance(waits, proven, NOW + timedelta(seconds=MIN_S)).rollout
        assert (held.held, held.step) == ("no labels yet: holding", 0)
        assert held.judgement is not None
        assert held.judgement.missing is Missing.LABELS
        for late_s, then in ((waits.current.max_s + 1, RolloutState.STEPPING), (WAIT_S, state)):
            late = advance(held, seen(held), NOW + timedelta(seconds=late_s)).rollout
            assert late.state is then
            assert late.step == 0


@pytest.mark.req("S7")
def test_labels_let_a_candidate_go_on_or_take_it_back() -> None:
    """As many wrong as the weights make likely: on. Far more on the candidate: back, with the blame. A few:
    hold. Labels of an earlier weight count at that weight, however late."""
    waits = stepping(plan=JUDGED)
    outcomes = {}
    for name, wrong in (("few", (1, 9)), ("alike", (40, 360)), ("worse", (120, 360))):
        told = structs.replace(seen(waits), ticks=(good(100_000), labelled(100_000, wrong)))
        outcomes[name] = advance(waits, told, NOW + timedelta(seconds=MIN_S)).rollout
    assert outcomes["few"].held is not None
    assert outcomes["few"].held.startswith("not enough labels yet: 1 of 400 labelled callers")
    assert outcomes["alike"].step == 1
    found = outcomes["worse"].judgement
    assert found is not None
    assert (found.verdict, found.blamed) == (Verdict.ROLLBACK, "quality")
    assert outcomes["worse"].state is RolloutState.ROLLING_BACK
    later = structs.replace(seen(outcomes["alike"]), ticks=(labelled(100_000, (120, 360)),))
    back = advance(outcomes["alike"], later, NOW + timedelta(seconds=2 * MIN_S)).rollout
    assert back.state is RolloutState.ROLLING_BACK


@pytest.mark.req("S7")
def test_less_evidence_goes_on_no_sooner() -> None:
    """Where a plan goes on without proof, labels are waited for as long as it says, also while nothing else
    is shown, or fewer predictions were compared than it asks for; once labels have shown what they have to, a
    step has its own time. One that takes back when in doubt waits for labels alone."""
    plan = structs.replace(JUDGED, on_inconclusive=OnInconclusive.ADVANCE)
    both = structs.replace(plan, prediction_shift=Shift(), metrics=JUDGED_AND_COMPARED)
    alike = labelled(100_000, (40, 360))
    unasked = structs.replace(PLAN, on_inconclusive=OnInconclusive.ADVANCE)
    doubtful = structs.replace(JUDGED, on_inconclusive=OnInconclusive.ROLLBACK)
    step_s = plan.steps[0].max_s
    for name, judged, ticks, waits_s in (
        ("nothing is shown", plan, (few(100_000),), WAIT_S),
        ("labels are missing", plan, (good(100_000),), WAIT_S),
        ("labels and predictions are", both, (good(100_000),), WAIT_S),
        ("predictions are", both, (good(100_000), alike), step_s),
        ("all but labels is", plan, (few(100_000), alike), step_s),
        ("no labels are asked for", unasked, (few(100_000),), step_s),
        ("in doubt it goes back", doubtful, (few(100_000),), step_s),
    ):
        of = stepping(plan=judged)
        told = structs.replace(seen(of), ticks=ticks)
        early = advance(of, told, NOW + timedelta(seconds=waits_s - 1)).rollout
        assert (early.state, early.step) == (RolloutState.STEPPING, 0), name
        late = advance(early, seen(early), NOW + timedelta(seconds=waits_s)).rollout
        back = judged is doubtful
        assert late.state is (RolloutState.ROLLING_BACK if back else RolloutState.STEPPING), name
        assert late.step == (0 if back else 1), name


@pytest.mark.req("S7")
def test_the_evidence_of_labels_is_recomputed_to_the_bit() -> None:
    """The stored ticks give the same states again, through JSON too; odd labels judge nothing."""
    waits = stepping(plan=JUDGED)
    odd = Labelled(candidate=LabelCounts(labels=3, odd=3))
    ticks = (good(100_000), labelled(100_000, (3, 20)), structs.replace(good(100_000), labels=odd))
    after = advance(waits, structs.replace(seen(waits), ticks=ticks), NOW).rollout
    stored = codec.decode(codec.encode(ticks), tuple[Tick, ...])
    assert replay(after, stored) == after.evidence
    assert after.evidence.wrong.informative_ticks == 1
    assert after.judgement is not None
    assert "3 of the labels cannot be compared" in after.judgement.why


@pytest.mark.req("S7")
def test_a_route_has_predictions_remembered_only_while_its_rollout_is_judged_by_them() -> None:
    """The rule travels with the route of the rollout and ends with it."""
    moving = stepping(plan=JUDGED)
    route = route_of(ENDPOINT, moving, KEYS)
    assert route is not None
    assert route.quality == JUDGED.quality
    done = structs.replace(moving, state=RolloutState.SUCCEEDED)
    settled = route_of(ENDPOINT, done, KEYS)
    assert settled is not None
    assert settled.quality is None


@pytest.mark.req("S7")
@pytest.mark.parametrize("name", LabelCounts.__struct_fields__)
def test_a_report_with_labels_that_cannot_be_is_refused(name: str) -> None:
    """Negative counts are no evidence."""
    told = structs.replace(good(100_000), labels=Labelled(stable=LabelCounts(**{name: -1})))
    with pytest.raises(errors.Invalid):
        check_report(structs.replace(report(), ticks=(told,)))


@pytest.mark.req("S7")
def test_healthy_candidates_are_seldom_blamed_for_their_labels() -> None:
    """300 rollouts of equal versions, three quarters of the wrong labels late by more than a step: at most as
    many as alpha are taken back, here with an alpha of a tenth so that it would show."""
    plan: Plan = structs.replace(JUDGED, alpha=0.1)
    rng = random.Random(7)
    blamed = 0
    for _ in range(300):
        ticks: list[Tick] = []
        late: list[Tick] = []
        for weight in (100_000,) * 8 + (500_000,) * 8:
            events = rng.randrange(12)
            x = sum(rng.random() < weight / WHOLE_PPM for _ in range(events))
            told = labelled(weight, (x, events - x))
            (late if rng.random() < 0.75 else ticks).append(told)
        rng.shuffle(late)
        blamed += judgement.combined(plan, evidence_of(plan, [*ticks, *late])).rollback
    assert blamed <= 0.1 * 0.2 * 300 + 4


@pytest.mark.req("S7")
def test_a_forecast_says_how_many_labels_it_takes() -> None:
    """Fewer callers for grosser faults, and more time where labels are few; what was counted goes before what
    is assumed; a plan without labels is told nothing."""
    told = labels_outlook(JUDGED, callers_per_s=10.0, labelled=0, wrong=0, callers=0)
    assert told is not None
    assert (told.counted, told.wrong, told.labelled) == (False, WRONG, LABELLED)
    assert told.proof.callers == pytest.approx(100, rel=0.4)
    needed = [each.callers or 0.0 for each in told.regressions]
    assert needed == sorted(needed, reverse=True)
    assert all(needed)
    rare = labels_outlook(JUDGED, callers_per_s=10.0, labelled=100, wrong=10, callers=1_000)
    assert rare is not None
    assert rare.counted
    assert (rare.labelled, rare.wrong) == (pytest.approx(0.1, rel=0.01), pytest.approx(0.1, rel=0.05))
    assert (rare.proof.takes_s or 0) > 5 * (told.proof.takes_s or 0)
    assert labels_outlook(PLAN, callers_per_s=1.0, labelled=0, wrong=0, callers=0) is None


@pytest.mark.req("S7")
def test_callers_who_are_wrong_again_and_again_prove_nothing() -> None:
    """Only first labels speak for a candidate: where later ones lie on stable, because the callers of a worse
    candidate have all been wrong already, it holds."""
    waits = stepping(plan=JUDGED)
    counts = LabelCounts(labels=400, wrong=1, callers_labelled=1, callers_first_wrong=1)
    later = Labelled(candidate=counts, stable=structs.replace(counts, wrong=360, callers_first_wrong=360))
    told = (good(100_000), structs.replace(good(100_000), labels=later))
    after = advance(waits, structs.replace(seen(waits), ticks=told), NOW + timedelta(seconds=MIN_S)).rollout
    assert after.step == 0
    assert after.evidence.right.informative_ticks == 0
    assert after.evidence.wrong.informative_ticks == 1
