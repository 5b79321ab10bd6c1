"""What an A/B test of two versions comes to: who fared better, with the numbers and the sentence.

Of several versions the same is said by `contest`, pair by pair; what follows from it is decided in `rollout`.
"""

from enum import StrEnum

from msgspec import Struct

from modelkeep.core.evidence import Evidence, troubled
from modelkeep.core.observation import LabelCounts, Labelled, SideCounts
from modelkeep.core.plan import Goal, Plan


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
