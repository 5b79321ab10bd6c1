"""What the counts of a rollout say: the tests that are run, and the verdict with its sentence.

For the WHOLE rollout, over all metrics and steps and however often one looks, a candidate that is no worse
than stable is taken back with probability at most `alpha`; docs/explanation/rollout-statistics.md has the
theory and the simulations. What follows from a verdict is decided in `rollout`, not here.
"""

from collections.abc import Iterable
from enum import StrEnum
from itertools import zip_longest
from typing import assert_never

from msgspec import Struct, field, structs

from modelkeep.core import sequential
from modelkeep.core.mixing import EProcess
from modelkeep.core.observation import BandCounts, LabelCounts, Labelled, PairCounts, SideCounts, Tick
from modelkeep.core.plan import Goal, Plan, Strategy
from modelkeep.core.routing import WHOLE_PPM
from modelkeep.core.sequential import BinaryEProcess, CallerTick, Combined, MeanEProcess, TrialTick
from modelkeep.core.shift import BandsTick, ShiftProcess, shift_spec, update_bands

EFFECTS = (1.1, 1.25, 1.5, 2.0, 3.0, 5.0, 10.0)
"""The odds ratios that an A/B test looks for, each way."""
BETTER = sequential.pass_spec(bound=1.0, relative=tuple(1 / odds for odds in EFFECTS))
WORSE = sequential.fail_spec(margin=1.0, relative=EFFECTS, start_mass=1.0)
"""The two directions of an A/B test: the candidate's odds of trouble are below stable's, or above."""


class Verdict(StrEnum):
    """What the evidence says now."""

    ADVANCE = "advance"
    HOLD = "hold"
    ROLLBACK = "rollback"


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


class Missing(StrEnum):
    """What is waited for, where nothing else holds a candidate up."""

    LABELS = "labels"
    PREDICTIONS = "predictions"


class Judgement(Struct, frozen=True, kw_only=True):
    """A verdict with its numbers and its sentence. `p_value` is valid at any time; `passed` says which proof
    allows the advance, `missing` what is still waited for where all else is shown."""

    verdict: Verdict
    why: str
    p_value: float = 1.0
    blamed: str | None = None
    passed: str | None = None
    missing: Missing | None = None
    contributions: dict[str, float] = {}


class Winner(StrEnum):
    """Who fared better in an A/B test. Nobody: what was seen is what equal versions do as well. Other: a
    further version, which the report names."""

    CANDIDATE = "candidate"
    OTHER = "other"
    STABLE = "stable"
    NOBODY = "nobody"


class Compared(Struct, frozen=True, kw_only=True):
    """One version of an A/B test of several, beside stable. `p_value` is for both directions against stable,
    with all comparisons of the test accounted for, and valid at any time. `rate` is what was seen. `better`
    says what was shown of it against stable: that its callers fare better, worse, or neither; `out` why it
    was taken out of the test."""

    semver: str
    callers: int
    rate: float | None
    p_value: float
    better: bool | None
    out: str | None = None


class Unlabelled(Struct, frozen=True, kw_only=True):
    """Of one version of an A/B test that is about labels: its callers, those who have one, and how many
    labels are missing."""

    version: str
    callers: int
    labelled: int
    missing: int


class WinnerReport(Struct, frozen=True, kw_only=True):
    """What an A/B test came to.

    Each direction is shown under half of alpha, so that between equal versions somebody is named a winner
    with probability at most alpha, however often one looks before the end. `p_value` is for both directions
    together and valid at any time; `confidence` is what is left of it. `candidate_rate` and `stable_rate` are
    the shares of callers with trouble, of those who were counted on each side: what was seen, not what is
    shown. Where the test is about labels, they are of the callers who had one, and `labels` says of each
    version how many are missing, stable last. With several versions (`arms`, the candidate first) every pair
    is compared, in both directions: each of the `comparisons` has its equal share of alpha, and `semver`
    names the winner.
    """

    winner: Winner
    goal: Goal
    p_value: float
    confidence: float
    candidate_rate: float | None
    stable_rate: float | None
    candidate_callers: int
    stable_callers: int
    why: str
    semver: str | None = None
    comparisons: int = 2
    arms: tuple[Compared, ...] = ()
    labels: tuple[Unlabelled, ...] = ()


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


def omega(plan: Plan) -> dict[str, float]:
    """How a plan spends alpha over its metrics, by the names that people read."""
    shares = plan.metrics
    told = {
        "errors": shares.errors,
        "latency": shares.latency,
        "traffic shares": shares.shares,
        "quality": shares.quality,
        "prediction shift": shares.prediction_shift,
    }
    return {name: share for name, share in told.items() if share > 0}


def combined(plan: Plan, evidence: Evidence) -> Combined:
    """All that speaks against the candidate, under one alpha."""
    states: dict[str, EProcess] = {
        "errors": evidence.errors,
        "latency": evidence.slow,
        "traffic shares": evidence.shares,
        "quality": evidence.wrong,
        "prediction shift": evidence.shift,
    }
    shares = omega(plan)
    judged = {name: state for name, state in states.items() if name in shares}
    return sequential.combine(judged, shares, alpha=plan.alpha)


def judge(
    plan: Plan,
    evidence: Evidence,
    candidate: SideCounts,
    stable: SideCounts,
    labels: Labelled | None = None,
    outputs: BandCounts | None = None,
) -> Judgement:
    """What the evidence says now: rollback, advance or hold, with the sentence that people read."""
    against = combined(plan, evidence)
    c, s = candidate, stable
    seen = (
        f"{c.callers_first_error} of the candidate's callers and {s.callers_first_error} of stable's had "
        f"an error ({c.errors} of {c.requests} and {s.errors} of {s.requests} requests)"
    )
    if against.rollback:
        limit = f"p = {against.p_value:.2g} for the whole rollout, limit {plan.alpha:g}"
        if against.blamed == "traffic shares":
            seen = (
                f"{c.callers_arrived} of {c.callers_arrived + s.callers_arrived} new callers were given to "
                "the candidate, which is not what the weights ask for"
            )
        if against.blamed == "quality":
            seen = labels_seen(labels or Labelled())
        if against.blamed == "prediction shift":
            seen = outputs_seen(outputs or BandCounts())
        return Judgement(
            verdict=Verdict.ROLLBACK,
            why=f"{_BLAME[against.blamed]}: {seen}; {limit}",
            p_value=against.p_value,
            blamed=against.blamed,
            contributions=against.contributions,
        )
    if evidence.high_rate.ever_reached(plan.alpha):
        why = f"{plan.fail_rate:.0%} or more of first requests fail, shown at {1 - plan.alpha:.1%}: {seen}"
        p_value = evidence.high_rate.p_value
        return Judgement(verdict=Verdict.ROLLBACK, why=why, p_value=p_value, blamed="fail rate")
    if c.requests == 0:
        return Judgement(
            verdict=Verdict.HOLD, why="the candidate has had no request yet", p_value=against.p_value
        )
    proof = _proof(plan, evidence, seen)
    if proof is None:
        why = f"not enough evidence yet from {c.new_callers} new callers of the candidate: {seen}"
        return Judgement(
            verdict=Verdict.HOLD, why=why, p_value=against.p_value, contributions=against.contributions
        )
    if plan.prediction_shift is not None and (few := _uncompared(outputs, plan.prediction_shift.callers)):
        return Judgement(
            verdict=Verdict.HOLD,
            why=few,
            p_value=against.p_value,
            missing=Missing.PREDICTIONS,
            contributions=against.contributions,
        )
    return _with_labels(plan, evidence, labels, proof, against)


def _proof(plan: Plan, evidence: Evidence, seen: str) -> tuple[str, str] | None:
    """Which proof allows an advance, and its sentence; None while there is none."""
    beta = plan.beta / 2  # either proof may let it advance, so each has half of the error
    if evidence.low_rate.holds(beta):
        why = f"fewer than {plan.pass_rate:.2%} of first requests fail, shown at {1 - beta:.1%}: {seen}"
        return "low_rate", why
    if evidence.no_worse.holds(beta):
        limit = f"less than {plan.pass_odds:g} times as often as stable's"
        why = f"first requests fail {limit}, shown at {1 - beta:.1%}: {seen}"
        return "no_worse", why
    return None


def _with_labels(
    plan: Plan, evidence: Evidence, labels: Labelled | None, proof: tuple[str, str], against: Combined
) -> Judgement:
    """A candidate that all else lets advance: whether it has to wait for labels."""
    passed, why = proof
    if plan.quality is not None:
        told = labels_seen(labels or Labelled())
        if not evidence.right.holds(plan.beta):
            known = labels is not None and labels.candidate.labels > 0
            return Judgement(
                verdict=Verdict.HOLD,
                why=f"not enough labels yet: {told}" if known else "no labels yet: holding",
                p_value=against.p_value,
                missing=Missing.LABELS,
                contributions=against.contributions,
            )
        limit = (
            f"less than {plan.quality.pass_odds:g} times as often as stable's, shown at {1 - plan.beta:.1%}"
        )
        why = f"{why}; callers' first labels say wrong {limit}: {told}"
    return Judgement(verdict=Verdict.ADVANCE, why=why, passed=passed, p_value=against.p_value)


def _uncompared(outputs: BandCounts | None, wanted: int) -> str | None:
    """Why an advance has to wait until predictions were compared; None where enough were."""
    counts = outputs or BandCounts()
    if not sum(counts.candidate):
        return "no predictions compared yet: holding"
    if sum(counts.candidate) >= wanted:
        return None
    return f"not enough predictions compared yet, {wanted} are wanted: {outputs_seen(counts)}"


def outputs_seen(outputs: BandCounts) -> str:
    """What was predicted, in words: the band in which the two sides are furthest apart."""
    n, m = sum(outputs.candidate), sum(outputs.stable)
    apart = [
        (a / max(1, n), b / max(1, m)) for a, b in zip_longest(outputs.candidate, outputs.stable, fillvalue=0)
    ]
    a, b = max(apart, key=lambda shares: abs(shares[0] - shares[1]), default=(0.0, 0.0))
    return (
        f"in the band where they are furthest apart lie {a:.1%} of the candidate's {n} callers and {b:.1%} "
        f"of stable's {m}"
    )


def labels_seen(labels: Labelled) -> str:
    """What labels said, in words."""
    c, s = labels.candidate, labels.stable
    seen = (
        f"{c.callers_first_wrong} of {c.callers_labelled} labelled callers of the candidate and "
        f"{s.callers_first_wrong} of {s.callers_labelled} of stable's had a wrong prediction"
    )
    odd = c.odd + s.odd
    return f"{seen} ({odd} of the labels cannot be compared with what was predicted)" if odd else seen


def judge_pairs(plan: Plan, evidence: Evidence, pairs: PairCounts | None) -> Judgement:
    """What a shadow's answers to copies say now: rollback, or hold until its time is over."""
    if pairs is None or pairs.pairs == 0:
        return Judgement(verdict=Verdict.HOLD, why="no copy has been compared yet")
    states = {
        "errors": evidence.pair_errors,
        "latency": evidence.pair_slow,
        "quality": evidence.pair_wrong,
    }
    shares = {name: share for name, share in omega(plan).items() if name in states}
    judged = {name: state for name, state in states.items() if name in shares}
    against = sequential.combine(judged, shares, alpha=plan.alpha)
    seen = (
        f"of {pairs.pairs} pairs the candidate alone failed in {pairs.only_shadow_failed}, stable alone in "
        f"{pairs.only_stable_failed}; alone slow {pairs.only_shadow_slow} and {pairs.only_stable_slow}; "
        f"{pairs.disagreements} of {pairs.compared} answers differ"
    )
    if plan.quality is not None:
        seen += (
            f"; of {pairs.labelled} with a label the candidate alone was wrong in {pairs.only_shadow_wrong}, "
            f"stable alone in {pairs.only_stable_wrong}"
        )
    if against.rollback:
        limit = f"p = {against.p_value:.2g}, limit {plan.alpha:g}"
        what = {
            "errors": "fails where stable does not",
            "latency": "is slow where stable is not",
            "quality": "is wrong where stable is not",
        }[against.blamed]
        return Judgement(
            verdict=Verdict.ROLLBACK,
            why=f"the candidate {what}: {seen}; {limit}",
            p_value=against.p_value,
            blamed=against.blamed,
            contributions=against.contributions,
        )
    return Judgement(
        verdict=Verdict.HOLD, why=seen, p_value=against.p_value, contributions=against.contributions
    )


def report(
    plan: Plan,
    evidence: Evidence,
    candidate: SideCounts,
    stable: SideCounts,
    labels: Labelled | None = None,
) -> WinnerReport:
    """What an A/B test has come to by now. Rates are of the callers who are counted: of those with a label
    where the test is about labels."""
    half = plan.alpha / 2
    better, worse = evidence.better, evidence.worse
    winner = Winner.NOBODY
    if better.ever_reached(half) or worse.ever_reached(half):
        winner = Winner.CANDIDATE if better.max_log_v > worse.max_log_v else Winner.STABLE
    told = labels or Labelled()
    x, y = troubled(plan.goal, candidate, told.candidate), troubled(plan.goal, stable, told.stable)
    n, m = counted(plan.goal, candidate, told.candidate), counted(plan.goal, stable, told.stable)
    p_value = min(1.0, 2 * min(better.p_value, worse.p_value))
    seen = f"{x} of {n} callers of the candidate and {y} of {m} of stable's {TROUBLE[plan.goal]}"
    return WinnerReport(
        winner=winner,
        goal=plan.goal,
        p_value=p_value,
        confidence=1 - p_value,
        candidate_rate=x / n if n else None,
        stable_rate=y / m if m else None,
        candidate_callers=n,
        stable_callers=m,
        why=f"{_SAID[winner]}: {seen}; p = {p_value:.2g}, limit {plan.alpha:g}",
    )


def counted(goal: Goal, side: SideCounts, labels: LabelCounts) -> int:
    """Callers of whom is known whether they had the trouble that an A/B test is decided by."""
    return labels.callers_labelled if goal is Goal.QUALITY else side.new_callers


TROUBLE = {
    Goal.ERRORS: "failed",
    Goal.LATENCY: "were answered slowly",
    Goal.QUALITY: "with a label had a wrong prediction, by their first one",
}
_SAID = {
    Winner.CANDIDATE: "the candidate's callers fare better",
    Winner.OTHER: "another version's callers fare better",
    Winner.STABLE: "stable's callers fare better",
    Winner.NOBODY: "nobody is shown to be better",
}

_BLAME = {
    "errors": "more callers fail than on stable",
    "latency": "more callers are answered slowly than on stable",
    "quality": "more callers have wrong predictions than on stable",
    "prediction shift": "the candidate predicts other things than stable",
    "traffic shares": "the versions do not get the shares of callers they were given",
}
