"""What the counts of a rollout amount to: the state of every test that its plan asks for, tick by tick.

The same ticks in the same order give the same bits. What the state says, and in which words, is `judgement`'s
part and, of an A/B test, `winner`'s; docs/explanation/rollout-statistics.md has the theory.
"""

from collections.abc import Iterable
from typing import assert_never

from msgspec import Struct, field, structs

from modelkeep.core import sequential
from modelkeep.core.observation import LabelCounts, Labelled, PairCounts, SideCounts, Tick
from modelkeep.core.plan import Goal, Plan, Strategy
from modelkeep.core.routing import WHOLE_PPM
from modelkeep.core.sequential import BinaryEProcess, CallerTick, MeanEProcess, TrialTick
from modelkeep.core.shift import BandsTick, ShiftProcess, shift_spec, update_bands

EFFECTS = (1.1, 1.25, 1.5, 2.0, 3.0, 5.0, 10.0)
"""The odds ratios that an A/B test looks for, each way."""
BETTER = sequential.pass_spec(bound=1.0, relative=tuple(1 / odds for odds in EFFECTS))
WORSE = sequential.fail_spec(margin=1.0, relative=EFFECTS, start_mass=1.0)
"""The two directions of an A/B test: the candidate's odds of trouble are below stable's, or above."""


class Rivals(Struct, frozen=True, kw_only=True):
    """Two versions of an A/B test against each other: whether the first one's odds of trouble are below the
    second one's, or above."""

    better: BinaryEProcess = field(default_factory=BinaryEProcess)
    worse: BinaryEProcess = field(default_factory=BinaryEProcess)


class Evidence(Struct, frozen=True, kw_only=True):
    """The state of every test of a rollout. `errors`, `slow` and `shares` compare with stable and can take
    the candidate back, as can `high_rate` with all of the traffic, where nobody is left to compare with;
    `no_worse` and `low_rate`, which look at callers' first requests alone, can let it advance. `wrong` and
    `right` are the same of predictions and their labels: the one can take it back, and without the other it
    does not advance. `better` and `worse` decide an A/B test, `pair_errors`, `pair_slow` and `pair_wrong` a
    shadow; they see nothing elsewhere. Of an A/B test of several versions `others` are the same for each
    further version against stable, and `rivals` the pairs of those beside stable, the candidate first, each
    with all that come behind it.
    """

    errors: BinaryEProcess = field(default_factory=BinaryEProcess)
    slow: BinaryEProcess = field(default_factory=BinaryEProcess)
    shares: BinaryEProcess = field(default_factory=BinaryEProcess)
    no_worse: BinaryEProcess = field(default_factory=BinaryEProcess)
    low_rate: MeanEProcess = field(default_factory=MeanEProcess)
    high_rate: MeanEProcess = field(default_factory=MeanEProcess)
    wrong: BinaryEProcess = field(default_factory=BinaryEProcess)
    right: BinaryEProcess = field(default_factory=BinaryEProcess)
    shift: ShiftProcess = field(default_factory=ShiftProcess)
    better: BinaryEProcess = field(default_factory=BinaryEProcess)
    worse: BinaryEProcess = field(default_factory=BinaryEProcess)
    pair_errors: BinaryEProcess = field(default_factory=BinaryEProcess)
    pair_slow: BinaryEProcess = field(default_factory=BinaryEProcess)
    pair_wrong: BinaryEProcess = field(default_factory=BinaryEProcess)
    others: tuple["Evidence", ...] = ()
    rivals: tuple[Rivals, ...] = ()


class Specs(Struct, frozen=True, kw_only=True):
    """The specifications of a plan's tests: what they look for, without what they have seen."""

    errors: sequential.EProcessSpec
    slow: sequential.EProcessSpec
    shares: sequential.EProcessSpec
    no_worse: sequential.EProcessSpec
    low_rate: sequential.RateSpec
    high_rate: sequential.RateSpec
    wrong: sequential.EProcessSpec | None = None
    right: sequential.EProcessSpec | None = None
    shift: sequential.EProcessSpec | None = None
    tested: Goal | None = None
    shadowed: bool = False

    @staticmethod
    def of(plan: Plan) -> "Specs":
        """The tests that a plan asks for."""
        quality, shift = plan.quality, plan.prediction_shift
        return Specs(
            errors=sequential.fail_spec(margin=plan.margin),
            slow=sequential.fail_spec(margin=plan.slow_margin),
            shares=sequential.mismatch_spec(),
            no_worse=sequential.pass_spec(bound=plan.pass_odds),
            low_rate=sequential.rate_pass_spec(bound=plan.pass_rate),
            high_rate=sequential.rate_fail_spec(bound=plan.fail_rate),
            wrong=sequential.fail_spec(margin=quality.margin) if quality is not None else None,
            right=sequential.pass_spec(bound=quality.pass_odds) if quality is not None else None,
            shift=shift_spec(shift.tolerance) if shift is not None else None,
            tested=plan.goal if plan.strategy is Strategy.AB_TEST else None,
            shadowed=plan.shadow_ppm > 0,
        )

    def update(self, evidence: Evidence, tick: Tick) -> Evidence:
        """The evidence after one more tick, judged by the tick's own weight, however late it comes."""
        if self.shadowed and tick.pairs is not None:
            evidence = self._paired(evidence, tick.pairs)
        if not tick.candidate_ppm:
            return evidence
        evidence = self._compared(self._labelled(evidence, tick), tick)
        c, s, weight = tick.candidate, tick.stable, tick.candidate_ppm
        failing = CallerTick(x=c.callers_first_error, y=s.callers_first_error, weight_ppm=weight)
        slow = CallerTick(x=c.callers_first_slow, y=s.callers_first_slow, weight_ppm=weight)
        arrived = CallerTick(x=c.callers_arrived, y=s.callers_arrived, weight_ppm=weight)
        # Callers who fail wear out, on the worse side first, so that later failures make it look better. A
        # proof therefore takes of each caller the first request alone.
        at_once = CallerTick(x=c.new_callers_failed, y=s.new_callers_failed, weight_ppm=weight)
        trials = TrialTick(n=c.new_callers, k=c.new_callers_failed)
        alone = trials if weight == WHOLE_PPM else TrialTick(n=0, k=0)
        better, worse = evidence.better, evidence.worse
        if self.tested is not None:
            x, y = (troubled(self.tested, *side) for side in _sides(tick))
            goal = CallerTick(x=x, y=y, weight_ppm=weight)
            better = sequential.update(better, BETTER, goal)
            worse = sequential.update(worse, WORSE, goal)
        return structs.replace(
            evidence,
            better=better,
            worse=worse,
            errors=sequential.update(evidence.errors, self.errors, failing),
            slow=sequential.update(evidence.slow, self.slow, slow),
            shares=sequential.update(evidence.shares, self.shares, arrived),
            no_worse=sequential.update(evidence.no_worse, self.no_worse, at_once),
            low_rate=sequential.update_rate(evidence.low_rate, self.low_rate, trials),
            high_rate=sequential.update_rate(evidence.high_rate, self.high_rate, alone),
        )

    def _labelled(self, evidence: Evidence, tick: Tick) -> Evidence:
        """Callers count on the side that predicted, at its weight then: against the candidate with their
        first wrong prediction, for it with their first label, because callers who are wrong wear out."""
        if tick.labels is None or self.wrong is None or self.right is None:
            return evidence
        c, s, weight = tick.labels.candidate, tick.labels.stable, tick.candidate_ppm
        mistaken = CallerTick(x=c.callers_first_wrong, y=s.callers_first_wrong, weight_ppm=weight)
        at_once = CallerTick(x=c.callers_wrong_at_once, y=s.callers_wrong_at_once, weight_ppm=weight)
        return structs.replace(
            evidence,
            wrong=sequential.update(evidence.wrong, self.wrong, mistaken),
            right=sequential.update(evidence.right, self.right, at_once),
        )

    def _compared(self, evidence: Evidence, tick: Tick) -> Evidence:
        """Callers by what was predicted for them first."""
        if tick.outputs is None or self.shift is None:
            return evidence
        bands = BandsTick(x=tick.outputs.candidate, y=tick.outputs.stable, weight_ppm=tick.candidate_ppm)
        return structs.replace(evidence, shift=update_bands(evidence.shift, self.shift, bands))

    def _paired(self, evidence: Evidence, pairs: PairCounts) -> Evidence:
        """McNemar's test, sequentially: of the pairs in which only one of the two did badly, each lies on
        either side with the same chance when the versions are alike."""
        failed = CallerTick(x=pairs.only_shadow_failed, y=pairs.only_stable_failed, weight_ppm=WHOLE_PPM // 2)
        slow = CallerTick(x=pairs.only_shadow_slow, y=pairs.only_stable_slow, weight_ppm=WHOLE_PPM // 2)
        return structs.replace(
            evidence,
            pair_errors=sequential.update(evidence.pair_errors, self.errors, failed),
            pair_slow=sequential.update(evidence.pair_slow, self.slow, slow),
            pair_wrong=self._pair_wrong(evidence.pair_wrong, pairs),
        )

    def _pair_wrong(self, state: BinaryEProcess, pairs: PairCounts) -> BinaryEProcess:
        """The same of the pairs with a label in which only one of the two was wrong."""
        if self.wrong is None or not pairs.labelled:
            return state
        x, y = pairs.only_shadow_wrong, pairs.only_stable_wrong
        return sequential.update(state, self.wrong, CallerTick(x=x, y=y, weight_ppm=WHOLE_PPM // 2))


def troubled(goal: Goal, side: SideCounts, labels: LabelCounts) -> int:
    """Callers with the trouble that an A/B test is decided by. Of labels each caller's first counts alone,
    because callers who are wrong wear out, on the worse side first."""
    match goal:
        case Goal.ERRORS:
            return side.callers_first_error
        case Goal.LATENCY:
            return side.callers_first_slow
        case Goal.QUALITY:
            return labels.callers_wrong_at_once
        case _:
            assert_never(goal)


def _sides(tick: Tick) -> tuple[tuple[SideCounts, LabelCounts], tuple[SideCounts, LabelCounts]]:
    """The candidate and stable, each with what became known of its predictions."""
    labels = tick.labels or Labelled()
    return (tick.candidate, labels.candidate), (tick.stable, labels.stable)


def evidence_of(plan: Plan, ticks: Iterable[Tick], before: Evidence | None = None) -> Evidence:
    """What ticks amount to, on top of what there was before: the same ticks in the same order, the same
    bits.
    """
    specs, evidence = Specs.of(plan), before or Evidence()
    for tick in ticks:
        evidence = specs.update(evidence, tick)
    return evidence
