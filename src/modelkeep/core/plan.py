"""How a rollout is to go, as data: strategy, steps, times, error rates, guards.

A plan is checked once, when it is given, and then travels with the rollout, so that changing an endpoint's
plan never changes a movement under way. What a plan leads to is decided in `rollout`, not here.
"""

from collections.abc import Mapping
from datetime import datetime, timedelta
from enum import StrEnum
from itertools import pairwise
from types import MappingProxyType
from typing import Any

from msgspec import Struct, field, structs

from modelkeep.core import codec, errors, values
from modelkeep.core.quality import Quality, check_quality
from modelkeep.core.routing import OTHERS_MAX, WHOLE_PPM
from modelkeep.core.shift import Shift, check_shift

SCHEMA = "modelkeep.rollout/v1"
"""The form of the documents that this release reads."""
STEPS_MAX = 50
"""Steps of one plan."""
STEP_S_MAX = 90 * 86_400.0
"""The longest that a step may be asked to last: labels may be late by weeks, not by years."""
PAIRS_MAX = 1_000_000_000
"""Pairs that a plan may wait for: more than anybody compares."""
MASS_SLACK = 1e-9
"""By how much shares of alpha may miss their sum: decimal fractions are not exact."""


class Strategy(StrEnum):
    """How a candidate takes over.

    `canary` moves traffic in steps, each of which has to be proven. `rolling` moves it in batches that need a
    candidate that is ready and no guard, and no statistics. `blue_green` loads the candidate beside stable
    under a preview address, then gives it everything at once and keeps the former version loaded for a way
    back. `immediate` gives it everything as soon as it is loaded. `ab_test` gives it a fixed share until a
    day that was said before, and ends with a report of who fared better. `shadow` gives it copies of requests
    and no caller, compares its answers with stable's, and ends with what that showed.
    """

    CANARY = "canary"
    BLUE_GREEN = "blue_green"
    ROLLING = "rolling"
    IMMEDIATE = "immediate"
    AB_TEST = "ab_test"
    SHADOW = "shadow"

    @property
    def proven(self) -> bool:
        """Whether the evidence has to allow an advance; elsewhere time, readiness and the guards do."""
        return self is Strategy.CANARY

    @property
    def at_once(self) -> bool:
        """Whether the candidate gets all of the traffic in its one step."""
        return self in (Strategy.BLUE_GREEN, Strategy.IMMEDIATE)

    @property
    def moves(self) -> bool:
        """Whether it is for putting a candidate in stable's place, and not for learning something of it."""
        return self not in (Strategy.AB_TEST, Strategy.SHADOW)

    @property
    def shadows(self) -> bool:
        """Whether copies of requests may come before anything else, or are all there is."""
        return self in (Strategy.CANARY, Strategy.SHADOW)


class Goal(StrEnum):
    """What a test of two versions is decided by: callers who fail, or callers who are answered slowly."""

    ERRORS = "errors"
    LATENCY = "latency"


class OnInconclusive(StrEnum):
    """What to do when a step's longest time is over and the evidence does not suffice. `advance` goes on when
    the candidate had requests in this step; without any there is nothing to go on.
    """

    HOLD = "hold"
    ADVANCE = "advance"
    ROLLBACK = "rollback"


class Step(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One step: the candidate's share, the least time it lasts, and the time after which missing evidence is
    acted on.
    """

    weight_ppm: int
    min_s: float = 300.0
    max_s: float = 3_600.0


class Variant(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A further version of an A/B test, by its semver or as `#3`, and its share of the callers."""

    version: str
    weight_ppm: int


class Guards(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Certain faults, outside the statistics: reached means rolled back."""

    crashes: int = 3
    schema_violations: int = 1


class Metrics(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How alpha is spent over the metrics that can take a candidate back: callers who fail, callers who are
    answered slowly, arms that do not get their shares, callers whose predictions turn out wrong, and
    predictions that differ from stable's. 0 leaves a metric out.
    """

    errors: float = 0.5
    latency: float = 0.3
    shares: float = 0.2
    quality: float = 0.0
    prediction_shift: float = 0.0


JUDGED_LATER = Metrics(errors=0.4, latency=0.25, shares=0.15, quality=0.2)
COMPARED = Metrics(errors=0.4, latency=0.25, shares=0.15, prediction_shift=0.2)
JUDGED_AND_COMPARED = Metrics(errors=0.35, latency=0.2, shares=0.1, quality=0.2, prediction_shift=0.15)
"""How alpha is spent where a plan judges predictions by their labels, compares them with stable's, or both,
and says nothing of it."""


class Plan(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a rollout goes, as data.

    `alpha` bounds the chance that a candidate no worse than stable is ever taken back; `beta` the chance that
    a step is passed by a candidate whose odds of failing are `pass_odds` times stable's and whose first
    requests fail at `pass_rate` or more. `margin` and `slow_margin` are the odds ratios of failing and of
    being slow that are tolerated. With all of the traffic, where nobody is left to compare with, a candidate
    is taken back when its first requests are shown (again at `alpha`) to fail at `fail_rate` or more.
    `metrics` are the metrics' shares of `alpha`. `preview_s` is how long a blue-green candidate stands under
    its preview address before the switch. `ends_at` is when an A/B test ends (without it, after the `min_s`
    of its step), `goal` what it is decided by, `versions` the further ones that are tested beside the
    candidate, whose share stands in the step, and `promote_winner` whether the candidate takes over when it
    has won; otherwise stable goes on and the report is all that follows. `quality` has predictions judged by
    labels that come later: an advance then needs them too. `prediction_shift` has them compared with
    stable's as they are made. A shadow gets copies of the share `shadow_ppm` of
    the requests for `shadow_s`, and until `shadow_pairs` were compared; a canary with a `shadow_ppm` begins
    with that and goes on with its steps. `automatic` false leaves each next
    step, and the switch, to a person. `prepare_s` is how long gateways have to load the candidate, counted
    from when one answers.
    """

    schema: str = SCHEMA
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
    metrics: Metrics = field(default_factory=Metrics)
    quality: Quality | None = None
    prediction_shift: Shift | None = None
    on_inconclusive: OnInconclusive = OnInconclusive.HOLD
    automatic: bool = True
    preview_s: float = 0.0
    ends_at: datetime | None = None
    shadow_ppm: int = 0
    shadow_s: float = 0.0
    shadow_pairs: int = 1
    goal: Goal = Goal.ERRORS
    versions: tuple[Variant, ...] = ()
    promote_winner: bool = False
    prepare_s: float = 600.0
    guards: Guards = field(default_factory=Guards)


CANARY = Plan()
"""10 % -> 50 % -> 100 %, five minutes each at least."""
AT_ONCE = Plan(strategy=Strategy.IMMEDIATE, steps=(Step(weight_ppm=WHOLE_PPM, min_s=0.0),))
"""Everything as soon as it is loaded: for a candidate that answers what stable answers, bit for bit."""

PRESETS: Mapping[Strategy, Plan] = MappingProxyType(
    {
        Strategy.CANARY: CANARY,
        Strategy.BLUE_GREEN: Plan(
            strategy=Strategy.BLUE_GREEN,
            steps=(Step(weight_ppm=WHOLE_PPM, min_s=600.0),),
            preview_s=300.0,
        ),
        Strategy.ROLLING: Plan(
            strategy=Strategy.ROLLING,
            steps=tuple(
                Step(weight_ppm=share * WHOLE_PPM // 4, min_s=30.0, max_s=600.0) for share in range(1, 5)
            ),
        ),
        Strategy.IMMEDIATE: Plan(
            strategy=Strategy.IMMEDIATE, steps=(Step(weight_ppm=WHOLE_PPM, min_s=60.0),)
        ),
        Strategy.AB_TEST: Plan(
            strategy=Strategy.AB_TEST,
            steps=(Step(weight_ppm=WHOLE_PPM // 2, min_s=7 * 86_400.0, max_s=7 * 86_400.0),),
        ),
        Strategy.SHADOW: Plan(strategy=Strategy.SHADOW, steps=(), shadow_ppm=WHOLE_PPM, shadow_s=3_600.0),
    }
)
"""What a strategy means where nothing else is said: a preview of five minutes and a bake of ten, a quarter
every half minute, everything now, half of the callers for a week, or copies of everything
for an hour."""


def check_plan(plan: Plan) -> Plan:
    """Refuse a plan that could not be carried out or would promise nothing.

    Raises:
        InvalidPlan: names the number that is off and what it may be.
    """
    if plan.schema != SCHEMA:
        raise errors.InvalidPlan(
            f"The plan's schema {values.quoted(plan.schema, 60)} is unknown; write {SCHEMA!r}."
        )
    _check_steps(plan)
    _check_strategy(plan)
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
    check_metrics(plan)
    return plan


def check_metrics(plan: Plan) -> None:
    """Refuse shares of alpha that promise nothing, or are not of what the plan has judged."""
    shares = structs.astuple(plan.metrics)
    none_for_errors = not plan.metrics.errors > 0
    if none_for_errors or not all(share >= 0 for share in shares) or not sum(shares) <= 1 + MASS_SLACK:
        raise errors.InvalidPlan(
            "The shares of alpha in 'metrics' sum to at most 1, and that of 'errors' lies above 0."
        )
    if (plan.quality is None) != (plan.metrics.quality == 0):
        raise errors.InvalidPlan(
            "Predictions are judged by their labels where the plan has a 'quality' and 'metrics' gives it a "
            "share of alpha; write both, or neither."
        )
    if (plan.prediction_shift is None) != (plan.metrics.prediction_shift == 0):
        raise errors.InvalidPlan(
            "Predictions are compared with stable's where the plan has a 'prediction_shift' and 'metrics' "
            "gives it a share of alpha; write both, or neither."
        )
    judged = plan.quality is not None or plan.prediction_shift is not None
    if judged and plan.strategy is not Strategy.CANARY:
        raise errors.InvalidPlan(
            f"A plan of {plan.strategy} judges no predictions; leave 'quality' and 'prediction_shift' out, "
            "or choose canary."
        )
    if plan.quality is not None:
        check_quality(plan.quality)
    if plan.prediction_shift is not None:
        check_shift(plan.prediction_shift)


def check_standing(plan: Plan) -> Plan:
    """Refuse a plan that could not be the one of an endpoint or a stage, for any version to come.

    Raises:
        InvalidPlan: as `check_plan`; or it names versions.
    """
    if plan.versions:
        raise errors.InvalidPlan(
            "'versions' belong to one test and not to all to come; name them in the plan of the promotion "
            "('modelkeep promote ... --plan FILE')."
        )
    return check_plan(plan)


def _check_steps(plan: Plan) -> None:
    if plan.strategy is Strategy.SHADOW:
        if plan.steps:
            raise errors.InvalidPlan("A shadow moves no traffic: its 'steps' are an empty list, or left out.")
        return
    if not 1 <= len(plan.steps) <= STEPS_MAX:
        raise errors.InvalidPlan(f"A plan has 1 to {STEPS_MAX} steps.")
    weights = [step.weight_ppm for step in plan.steps]
    if any(b <= a for a, b in pairwise(weights)) or weights[0] <= 0:
        raise errors.InvalidPlan("The steps' weights must rise, beginning above 0 ppm.")
    if plan.strategy is Strategy.AB_TEST:
        if len(weights) != 1 or weights[0] >= WHOLE_PPM:
            raise errors.InvalidPlan(
                f"An ab_test has exactly one step, of less than {WHOLE_PPM} ppm: stable has the rest."
            )
    elif weights[-1] != WHOLE_PPM:
        raise errors.InvalidPlan(f"The last step must give the candidate everything ({WHOLE_PPM} ppm).")
    _check_versions(plan)
    for step in plan.steps:
        if not 0 <= step.min_s <= step.max_s <= STEP_S_MAX:
            raise errors.InvalidPlan(
                f"A step lasts min_s <= max_s, both within 0 and {STEP_S_MAX:.0f} seconds."
            )


def _check_versions(plan: Plan) -> None:
    """Refuse further versions that leave nothing for stable, or that are one."""
    if not plan.versions:
        return
    if plan.strategy is not Strategy.AB_TEST:
        raise errors.InvalidPlan(
            "'versions' are what an ab_test tries beside the candidate; leave them out of a plan of "
            f"{plan.strategy}."
        )
    names = {variant.version for variant in plan.versions}
    if len(plan.versions) > OTHERS_MAX or len(names) < len(plan.versions):
        raise errors.InvalidPlan(f"An ab_test has up to {OTHERS_MAX} further 'versions', each of them once.")
    shares = [variant.weight_ppm for variant in plan.versions]
    if min(shares) <= 0 or plan.steps[0].weight_ppm + sum(shares) >= WHOLE_PPM:
        raise errors.InvalidPlan(
            f"The shares of an ab_test's 'versions' lie above 0, and with the step's they are less than "
            f"{WHOLE_PPM} ppm: stable has the rest."
        )


def _check_strategy(plan: Plan) -> None:
    """Refuse what the strategy has no use for: whoever wrote it expects something that would not happen."""
    strategy = plan.strategy
    if strategy.at_once and len(plan.steps) != 1:
        raise errors.InvalidPlan(
            f"The strategy {strategy} gives the candidate everything at once: it has exactly one step, of "
            f"{WHOLE_PPM} ppm."
        )
    _check_shadow(plan)
    if not 0 <= plan.preview_s <= STEP_S_MAX:
        raise errors.InvalidPlan(f"'preview_s' lies within 0 and {STEP_S_MAX:.0f} seconds.")
    if plan.preview_s and strategy is not Strategy.BLUE_GREEN:
        raise errors.InvalidPlan(
            f"Only a blue_green plan has a preview; leave 'preview_s' out of a plan of {strategy}, or choose "
            "blue_green."
        )
    if strategy is not Strategy.AB_TEST:
        if plan.ends_at is not None or plan.promote_winner or plan.goal is not Goal.ERRORS:
            raise errors.InvalidPlan(
                f"'ends_at', 'goal' and 'promote_winner' belong to an ab_test; leave them out of a plan of "
                f"{strategy}."
            )
    elif not plan.automatic:
        raise errors.InvalidPlan("An ab_test ends by itself; leave 'automatic' out.")
    if plan.ends_at is not None and plan.ends_at.tzinfo is None:
        raise errors.InvalidPlan("'ends_at' needs a zone: write 2026-12-01T00:00:00Z.")
    if not strategy.proven and plan.on_inconclusive is not OnInconclusive.HOLD:
        raise errors.InvalidPlan(
            f"The strategy {strategy} asks for no proof, so nothing is inconclusive; leave 'on_inconclusive' "
            "out, or choose canary."
        )


def _check_shadow(plan: Plan) -> None:
    """Refuse copies that nobody compares, or that would never be enough."""
    said = plan.shadow_ppm or plan.shadow_s or plan.shadow_pairs != 1
    if not plan.strategy.shadows:
        if said:
            raise errors.InvalidPlan(
                "'shadow_ppm', 'shadow_s' and 'shadow_pairs' belong to a shadow, or to a canary that begins "
                f"with one; leave them out of a plan of {plan.strategy}."
            )
        return
    if plan.strategy is Strategy.SHADOW and not plan.automatic:
        raise errors.InvalidPlan("A shadow ends by itself; leave 'automatic' out.")
    if plan.strategy is Strategy.CANARY and not said:
        return
    if not 0 < plan.shadow_ppm <= WHOLE_PPM or not 0 < plan.shadow_s <= STEP_S_MAX:
        raise errors.InvalidPlan(
            f"A shadow gets 'shadow_ppm' of the requests, above 0 and up to {WHOLE_PPM}, for 'shadow_s' "
            "seconds."
        )
    if not 1 <= plan.shadow_pairs <= PAIRS_MAX:
        raise errors.InvalidPlan(f"'shadow_pairs' lies within 1 and {PAIRS_MAX:,}.")


def apart(plan: Plan) -> Plan:
    """The plan by which each part of a rollout is judged: where there are several, each has its share of
    alpha, so that all of them together keep to it (Boole's inequality). The copies before a canary and its
    steps are two parts; of an A/B test each version beside stable is one.
    """
    parts = 1 + len(plan.versions)
    if plan.strategy is Strategy.CANARY and plan.shadow_ppm:
        parts = 2
    return structs.replace(plan, alpha=plan.alpha / parts) if parts > 1 else plan


def dated(plan: Plan, now: datetime) -> Plan:
    """A plan as it begins now: an A/B test gets its end.

    Raises:
        InvalidPlan: the test would have ended already, or would last too long.
    """
    if plan.strategy is not Strategy.AB_TEST:
        return plan
    ends_at = plan.ends_at or now + timedelta(seconds=plan.steps[0].min_s)
    if not 0 < (ends_at - now).total_seconds() <= STEP_S_MAX:
        raise errors.InvalidPlan(
            f"An ab_test ends within {STEP_S_MAX / 86_400:.0f} days from now, and not before it begins; "
            f"'ends_at' says {codec.format_time(ends_at)}."
        )
    return structs.replace(plan, ends_at=ends_at)


def read_plan(text: str | bytes) -> Plan:
    """Read a plan in YAML or JSON. What it leaves out is as its strategy has it by itself. Raises
    InvalidPlan.
    """
    try:
        document = codec.parse_yaml(text)
        return check_plan(codec.convert(completed(document), Plan))
    except errors.MalformedBody as problem:
        raise errors.InvalidPlan(
            f"This is not a rollout plan: {problem} Strategies: {', '.join(Strategy)}; metrics: "
            f"{', '.join(Metrics.__struct_fields__)}."
        ) from problem


def read_strategy(text: str) -> Strategy:
    """A strategy by its name, `blue-green` as well as `blue_green`. Raises InvalidPlan."""
    try:
        return Strategy(text.strip().lower().replace("-", "_"))
    except ValueError:
        raise errors.InvalidPlan(
            f"There is no strategy {values.quoted(text, 60)}; there are {', '.join(Strategy)}."
        ) from None


def chosen(plan: Plan | None, strategy: Strategy | None) -> Plan | None:
    """What somebody said of how a rollout goes: a plan, or a strategy, which stands for its own; None where
    nothing was said.

    Raises:
        InvalidPlan: both were said, and they are two strategies.
    """
    if strategy is None:
        return plan
    if plan is not None and plan.strategy is not strategy:
        raise errors.InvalidPlan(
            f"The plan is one of {plan.strategy} and not of {strategy}; name a plan or a strategy."
        )
    return plan or PRESETS[strategy]


_SHARES = {(True, False): JUDGED_LATER, (False, True): COMPARED, (True, True): JUDGED_AND_COMPARED}
"""By whether a plan has a quality, and a prediction shift."""


def completed(document: Any) -> Any:
    """A document with its strategy's own steps and preview, and shares of alpha for all that it has judged,
    where it says nothing of them."""
    if isinstance(document, dict) and "metrics" not in document:
        shares = _SHARES.get(
            (document.get("quality") is not None, document.get("prediction_shift") is not None)
        )
        document = document | ({"metrics": codec.builtins(shares)} if shares is not None else {})
    if not isinstance(document, dict) or document.get("strategy") not in list(Strategy):
        return document
    preset = PRESETS[Strategy(document["strategy"])]
    own = {"steps": codec.builtins(preset.steps)}
    for name in ("preview_s", "shadow_ppm", "shadow_s"):
        if getattr(preset, name):
            own[name] = getattr(preset, name)
    return own | document
