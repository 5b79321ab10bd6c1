"""How a rollout is to go, as data: steps, times, error rates, guards.

A plan is checked once, when it is given, and then travels with the rollout, so that changing an endpoint's
plan never changes a movement under way. What a plan leads to is decided in `rollout`, not here.
"""

from enum import StrEnum
from itertools import pairwise

from msgspec import Struct, field

from modelkeep.core import codec, errors
from modelkeep.core.routing import WHOLE_PPM

STEPS_MAX = 50
"""Steps of one plan."""
STEP_S_MAX = 90 * 86_400.0
"""The longest that a step may be asked to last: labels may be late by weeks, not by years."""


class Strategy(StrEnum):
    """How a candidate takes over."""

    CANARY = "canary"
    IMMEDIATE = "immediate"


class OnInconclusive(StrEnum):
    """What to do when a step's longest time is over and the evidence does not suffice."""

    HOLD = "hold"
    ROLLBACK = "rollback"


class Step(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One step: the candidate's share, the least time it lasts, and the time after which missing evidence is
    acted on.
    """

    weight_ppm: int
    min_s: float = 300.0
    max_s: float = 3_600.0


class Guards(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Certain faults, outside the statistics: reached means rolled back."""

    crashes: int = 3
    schema_violations: int = 1


class Plan(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a rollout goes, as data.

    `alpha` bounds the chance that a candidate no worse than stable is ever taken back; `beta` the chance that
    a step is passed by a candidate whose odds of failing are `pass_odds` times stable's and whose first
    requests fail at `pass_rate` or more. `margin` and `slow_margin` are the odds ratios of failing and of
    being slow that are tolerated. With all of the traffic, where nobody is left to compare with, a candidate
    is taken back when its first requests are shown (again at `alpha`) to fail at `fail_rate` or more.
    `prepare_s` is how long gateways have to load the candidate, counted from
    when one answers.
    """

    strategy: Strategy = Strategy.CANARY
    steps: tuple[Step, ...] = (
        Step(weight_ppm=100_000),
        Step(weight_ppm=500_000),
        Step(weight_ppm=WHOLE_PPM),
    )
    alpha: float = 0.01
    beta: float = 0.05
    margin: float = 1.0
    slow_margin: float = 1.5
    pass_odds: float = 2.0
    pass_rate: float = 0.02
    fail_rate: float = 0.25
    on_inconclusive: OnInconclusive = OnInconclusive.HOLD
    automatic: bool = True
    prepare_s: float = 600.0
    guards: Guards = field(default_factory=Guards)


CANARY = Plan()
"""10 % -> 50 % -> 100 %, five minutes each at least."""


def check_plan(plan: Plan) -> Plan:
    """Refuse a plan that could not be carried out or would promise nothing.

    Raises:
        InvalidPlan: names the number that is off and what it may be.
    """
    if not 1 <= len(plan.steps) <= STEPS_MAX:
        raise errors.InvalidPlan(f"A plan has 1 to {STEPS_MAX} steps.")
    weights = [step.weight_ppm for step in plan.steps]
    if any(b <= a for a, b in pairwise(weights)) or weights[0] <= 0:
        raise errors.InvalidPlan("The steps' weights must rise, beginning above 0 ppm.")
    if weights[-1] != WHOLE_PPM:
        raise errors.InvalidPlan(f"The last step must give the candidate everything ({WHOLE_PPM} ppm).")
    if plan.strategy is Strategy.IMMEDIATE and len(weights) != 1:
        raise errors.InvalidPlan("An immediate rollout has exactly one step.")
    for step in plan.steps:
        if not 0 <= step.min_s <= step.max_s <= STEP_S_MAX:
            raise errors.InvalidPlan(
                f"A step lasts min_s <= max_s, both within 0 and {STEP_S_MAX:.0f} seconds."
            )
    if not 0 < plan.alpha <= 0.2 or not 0 < plan.beta <= 0.5:
        raise errors.InvalidPlan("'alpha' lies above 0 and at most 0.2, 'beta' above 0 and at most 0.5.")
    if not 1 <= plan.margin <= 100 or not 1 <= plan.slow_margin <= 100:
        raise errors.InvalidPlan("'margin' and 'slow_margin' are odds ratios from 1 to 100.")
    if not plan.margin < plan.pass_odds <= 100 or not 0.0001 <= plan.pass_rate <= 0.5:
        raise errors.InvalidPlan(
            "'pass_odds' lies above 'margin' and at most 100, 'pass_rate' within 0.0001 and 0.5."
        )
    if not plan.pass_rate < plan.fail_rate <= 0.99:
        raise errors.InvalidPlan("'fail_rate' lies above 'pass_rate' and at most 0.99.")
    if not 1 <= plan.prepare_s <= 86_400 or plan.guards.crashes < 1 or plan.guards.schema_violations < 1:
        raise errors.InvalidPlan("'prepare_s' lies within a second and a day; guards count from 1.")
    return plan


def read_plan(text: str | bytes) -> Plan:
    """Read a plan in YAML or JSON. Raises InvalidPlan."""
    try:
        return check_plan(codec.convert(codec.parse_yaml(text), Plan))
    except errors.MalformedBody as problem:
        raise errors.InvalidPlan(f"This is not a rollout plan: {problem}") from problem
