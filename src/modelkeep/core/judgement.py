"""What the evidence of a rollout says: the verdict with its sentence.

For the WHOLE rollout, over all metrics and steps and however often one looks, a candidate that is no worse
than stable is taken back with probability at most `alpha`; docs/explanation/rollout-statistics.md has the
theory and the simulations. The tests themselves are `evidence`'s part; what follows from a verdict is decided
in `rollout`, not here.
"""

from enum import StrEnum
from itertools import zip_longest

from msgspec import Struct

from modelkeep.core import sequential
from modelkeep.core.evidence import Evidence
from modelkeep.core.mixing import EProcess
from modelkeep.core.observation import BandCounts, Labelled, PairCounts, SideCounts
from modelkeep.core.plan import Plan
from modelkeep.core.sequential import Combined


class Verdict(StrEnum):
    """What the evidence says now."""

    ADVANCE = "advance"
    HOLD = "hold"
    ROLLBACK = "rollback"


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


_BLAME = {
    "errors": "more callers fail than on stable",
    "latency": "more callers are answered slowly than on stable",
    "quality": "more callers have wrong predictions than on stable",
    "prediction shift": "the candidate predicts other things than stable",
    "traffic shares": "the versions do not get the shares of callers they were given",
}
