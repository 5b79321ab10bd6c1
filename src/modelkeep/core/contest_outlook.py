"""What an A/B test may be expected to come to, before it starts: of each version, how soon it is taken out
when it is worse, and how surely the report names it when it is better.

Each version is led beside stable alone, on the callers of those two, under its part of alpha, as the test
judges it (`contest`); whatever becomes of the others changes nothing of that. What the report needs besides,
that no version is shown to be better than the winner, is left out: it keeps nobody from being named, and
only says who of several that are better it is.
"""

import numpy as np
from msgspec import structs

from modelkeep.core.contest import comparisons_of
from modelkeep.core.forecast import GAINS, LOSSES, ArmOutlook, ContestOutlook, Flow, Share
from modelkeep.core.mixing import log_threshold
from modelkeep.core.outlook import End, Runs, at_most, between, error_of, reached, share_of, simulate
from modelkeep.core.plan import Goal, Plan, Strategy
from modelkeep.core.routing import WHOLE_PPM

ARM_RUNS_MIN = 50
"""Tests of each kind that are simulated for each version, when there are many; fewer say nothing."""


def contest_outlook(
    plan: Plan, flow: Flow, *, candidate: str | None, seed: int, runs: int, wrong: float = 0.0
) -> ContestOutlook | None:
    """What to expect of an A/B test with such traffic; None of a plan of another strategy. The same arguments
    give the same answer.

    Args:
        candidate: its version, where there is one yet.
        runs: tests to simulate of each kind, divided over the versions whose shares differ.
        wrong: the share of stable's callers who get a label, and whose first one says wrong.

    Raises:
        InvalidPlan: a rate, the seed or the number of runs is out of range.
    """
    if plan.strategy is not Strategy.AB_TEST:
        return None
    shares = (plan.steps[0].weight_ppm, *(variant.weight_ppm for variant in plan.versions))
    names = (candidate, *(variant.version for variant in plan.versions))
    comparisons = comparisons_of(plan)
    limit = log_threshold(plan.alpha / comparisons)
    runs = min(runs, max(ARM_RUNS_MIN, runs // len(set(shares))))
    known: dict[int, ArmOutlook] = {}
    goal = plan.goal
    if goal is Goal.QUALITY:
        # A label that says wrong falls on a version as a slow answer does: by its share, at the odds.
        metrics = structs.replace(plan.metrics, latency=0.0, quality=0.0)
        plan = structs.replace(plan, goal=Goal.LATENCY, metrics=metrics, quality=None)
        flow = structs.replace(flow, slow=wrong)
    for place, share_ppm in enumerate(shares):
        if share_ppm not in known:
            known[share_ppm] = _arm(plan, flow, place, share_ppm, limit, seed, runs)
    return ContestOutlook(
        goal=goal,
        alpha=plan.alpha,
        comparisons=comparisons,
        runs=runs,
        error=error_of(runs),
        arms=tuple(
            structs.replace(known[share_ppm], version=name)
            for name, share_ppm in zip(names, shares, strict=True)
        ),
    )


def _arm(
    plan: Plan, flow: Flow, place: int, share_ppm: int, limit: float, seed: int, runs: int
) -> ArmOutlook:
    """What to expect of one version."""
    alone, own = between(plan, flow, place)
    by_errors = plan.goal is Goal.ERRORS

    def led(odds: float, *, trouble: bool) -> Runs:
        """Tests of a version whose callers have errors, or the trouble that the test is about, at these
        odds."""
        if by_errors or not trouble:
            return simulate(alone, own, odds=odds, seed=seed, runs=runs)
        return simulate(alone, own, odds=1.0, slow_odds=odds, seed=seed, runs=runs)

    equal = led(1.0, trouble=False)
    out = share_of(equal, End.TAKEN_BACK)
    return ArmOutlook(
        version=None,
        weight_ppm=share_ppm,
        callers_per_s=own.callers_per_s * alone.steps[0].weight_ppm / WHOLE_PPM,
        taken_out=out,
        taken_out_at_most=at_most(round(out * runs), runs),
        named=_named(equal, limit),
        losses=tuple(_seen(odds, led(odds, trouble=False)) for odds in LOSSES),
        gains=tuple(Share(odds=odds, share=_named(led(odds, trouble=True), limit)) for odds in GAINS),
    )


def _named(found: Runs, limit: float) -> float:
    """The share of tests whose report says at the end that this version's callers fare better."""
    stayed = found.ends != End.TAKEN_BACK
    return float((stayed & (found.better >= limit)).mean())


def _seen(odds: float, found: Runs) -> Share:
    """The share of tests in which a worse version was taken out, and when half of all had come so far."""
    out = found.ends == End.TAKEN_BACK
    half_s = reached(np.where(out, found.ended_s, np.inf), 0.5)
    return Share(odds=odds, share=share_of(found, End.TAKEN_BACK), half_s=half_s)
