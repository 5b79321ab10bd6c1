"""What a rollout that is judged by labels may expect of them, before it starts: how many, and how long.

Means by formula, as in `forecast`, for the alarm and for the proof without which nothing advances; nothing is
simulated. The time runs from when labels begin to come: how late each is, nobody has counted.
"""

from msgspec import Struct

from modelkeep.core.evidence import Specs
from modelkeep.core.forecast import REGRESSIONS, Step, forecast
from modelkeep.core.plan import Plan, apart
from modelkeep.core.sequential import WHOLE_PPM, EProcessSpec

WRONG = 0.1
"""Assumed share of stable's labelled callers with a wrong prediction, where no labels were counted."""
LABELLED = 1.0
"""Assumed share of callers who get a label, where none were counted."""


class LabelsNeeded(Struct, frozen=True, kw_only=True):
    """For a candidate with `odds` times stable's odds of being wrong: `callers` with a wrong prediction, on
    both sides together, and seconds until it is shown; None where it never is."""

    odds: float
    callers: float | None
    takes_s: float | None


class LabelsOutlook(Struct, frozen=True, kw_only=True):
    """What to expect of labels. `labelled` is the share of callers who get one, `wrong` the share of those of
    stable whose first label says wrong; `counted` says whether former rollouts counted both, or they are
    assumed. `proof` is what an advance waits for, of a candidate as good as stable."""

    labelled: float
    wrong: float
    counted: bool
    proof: LabelsNeeded
    regressions: tuple[LabelsNeeded, ...]


def shares_of(*, labelled: int, wrong: int, callers: int) -> tuple[float, float, bool]:
    """The share of callers who get a label, the share of those of stable whose first label says wrong, and
    whether both were counted. Arguments as in `labels_outlook`."""
    if not labelled:
        return LABELLED, WRONG, False
    share = min(1.0, (labelled + 0.5) / (callers + 0.5))
    return share, (min(wrong, labelled) + 0.5) / (labelled + 1), True


def labels_outlook(
    plan: Plan, *, callers_per_s: float, labelled: int, wrong: int, callers: int
) -> LabelsOutlook | None:
    """What to expect of labels; None where no advance waits for any.

    Args:
        labelled, wrong, callers: stable's callers in former rollouts: with a label, with a first label that
            says wrong, and all; half an event is added, so that a share is never nothing and never all.

    Raises:
        InvalidPlan: the plan moves no traffic.
    """
    quality, specs = plan.quality, Specs.of(plan)
    if quality is None or specs.wrong is None or specs.right is None or not plan.strategy.proven:
        return None
    share, base, counted = shares_of(labelled=labelled, wrong=wrong, callers=callers)
    compared = [step for step in plan.steps if step.weight_ppm < WHOLE_PPM]
    steps = [Step(weight_ppm=step.weight_ppm, lasts_s=step.min_s) for step in compared]

    def needed(spec: EProcessSpec, odds: float, error: float, omega: float) -> LabelsNeeded:
        told = forecast(
            spec,
            odds_ratio=odds,
            base_rate=base,
            traffic_per_s=callers_per_s * share,
            steps=steps,
            alpha=error,
            omega=omega,
        )
        return LabelsNeeded(odds=odds, callers=told.events, takes_s=told.detect_s)

    alpha, omega = apart(plan).alpha, plan.metrics.quality
    return LabelsOutlook(
        labelled=share,
        wrong=base,
        counted=counted,
        proof=needed(specs.right, 1.0, plan.beta, 1.0),
        regressions=tuple(needed(specs.wrong, odds, alpha, omega) for odds in REGRESSIONS),
    )
