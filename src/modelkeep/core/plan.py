"""How a rollout is to go: what each strategy brings along, what can be carried out, and how a plan is read.

A plan is checked once, when it is given, and then travels with the rollout, so that changing an endpoint's
plan never changes a movement under way. What each field is, and its limits, stands in `plan_shapes`; what a
plan leads to is decided in `rollout`, not here.
"""

from collections.abc import Mapping
from datetime import datetime, timedelta
from itertools import pairwise
from types import MappingProxyType
from typing import Any

from msgspec import structs

from modelkeep.core import codec, errors, fields, values
from modelkeep.core.plan_shapes import (
    PAIRS_MAX,
    SCHEMA,
    STEP_S_MAX,
    STEPS_MAX,
    Goal,
    Guards,
    Metrics,
    OnInconclusive,
    Plan,
    Step,
    Strategy,
    Variant,
)
from modelkeep.core.quality import check_quality
from modelkeep.core.routing import OTHERS_MAX, WHOLE_PPM

__all__ = [
    "AT_ONCE",
    "CANARY",
    "COMPARED",
    "JUDGED_AND_COMPARED",
    "JUDGED_LATER",
    "PAIRS_MAX",
    "PRESETS",
    "SCHEMA",
    "STEPS_MAX",
    "STEP_S_MAX",
    "Goal",
    "Guards",
    "Metrics",
    "OnInconclusive",
    "Plan",
    "Step",
    "Strategy",
    "Variant",
    "apart",
    "check_plan",
    "check_schema",
    "check_standing",
    "chosen",
    "completed",
    "dated",
    "read_plan",
    "read_strategy",
]

MASS_SLACK = 1e-9
"""By how much shares of alpha may miss their sum: decimal fractions are not exact."""

JUDGED_LATER = Metrics(errors=0.4, latency=0.25, shares=0.15, quality=0.2)
COMPARED = Metrics(errors=0.4, latency=0.25, shares=0.15, prediction_shift=0.2)
JUDGED_AND_COMPARED = Metrics(errors=0.35, latency=0.2, shares=0.1, quality=0.2, prediction_shift=0.15)
"""How alpha is spent where a plan judges predictions by their labels, compares them with stable's, or both,
and says nothing of it."""

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
    check_schema(plan.schema)
    wrong = fields.outside(plan)
    if wrong is not None:
        raise errors.InvalidPlan(wrong)
    _check_steps(plan)
    _check_strategy(plan)
    if not plan.margin < plan.pass_odds or not plan.pass_rate < plan.fail_rate:
        raise errors.InvalidPlan("'pass_odds' lies above 'margin', and 'fail_rate' above 'pass_rate'.")
    _check_metrics(plan)
    return plan


def check_schema(said: object) -> None:
    """Refuse a document of another form than this release reads, before anything else of it is looked at.

    Raises:
        InvalidPlan: names both.
    """
    if said != SCHEMA:
        raise errors.InvalidPlan(
            f"This release reads plans of the form {SCHEMA!r}, and not {values.quoted(str(said), 60)}: "
            "write the former, or take a release that knows the latter."
        )


_LABELLED = (Strategy.CANARY, Strategy.AB_TEST, Strategy.SHADOW)
"""The strategies that may have predictions judged by labels."""


def _check_metrics(plan: Plan) -> None:
    """Refuse shares of alpha that promise nothing, or are not of what the plan has judged."""
    if not sum(structs.astuple(plan.metrics)) <= 1 + MASS_SLACK:
        raise errors.InvalidPlan("The shares of alpha in 'metrics' sum to at most 1.")
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
    if plan.prediction_shift is not None and plan.strategy is not Strategy.CANARY:
        raise errors.InvalidPlan(
            f"A plan of {plan.strategy} compares no predictions; leave 'prediction_shift' out, or choose "
            "canary."
        )
    if plan.quality is not None and plan.strategy not in _LABELLED:
        raise errors.InvalidPlan(
            f"A plan of {plan.strategy} judges no predictions; leave 'quality' out, or choose "
            f"{', '.join(_LABELLED)}."
        )
    if plan.goal is Goal.QUALITY and plan.quality is None:
        raise errors.InvalidPlan(
            "A test whose goal is quality has a 'quality' that says what makes a prediction wrong; write at "
            "least 'quality: {}'."
        )
    if plan.quality is not None:
        check_quality(plan.quality)


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
    if not plan.steps:
        raise errors.InvalidPlan(f"A plan of {plan.strategy} has 1 to {STEPS_MAX} steps.")
    weights = [step.weight_ppm for step in plan.steps]
    if any(b <= a for a, b in pairwise(weights)):
        raise errors.InvalidPlan("The steps' weights must rise.")
    if plan.strategy is Strategy.AB_TEST:
        if len(weights) != 1 or weights[0] >= WHOLE_PPM:
            raise errors.InvalidPlan(
                f"An ab_test has exactly one step, of less than {WHOLE_PPM} ppm: stable has the rest."
            )
    elif weights[-1] != WHOLE_PPM:
        raise errors.InvalidPlan(f"The last step must give the candidate everything ({WHOLE_PPM} ppm).")
    _check_versions(plan)
    for place, step in enumerate(plan.steps):
        if step.min_s > step.max_s:
            raise errors.InvalidPlan(
                f"'steps[{place}].min_s' lies above its 'max_s'; a step lasts min_s <= max_s."
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
    if len(names) < len(plan.versions):
        raise errors.InvalidPlan(f"An ab_test has up to {OTHERS_MAX} further 'versions', each of them once.")
    shares = [variant.weight_ppm for variant in plan.versions]
    if plan.steps[0].weight_ppm + sum(shares) >= WHOLE_PPM:
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
    if not plan.shadow_ppm or not plan.shadow_s:
        raise errors.InvalidPlan(
            f"A shadow gets 'shadow_ppm' of the requests, above 0 and up to {WHOLE_PPM}, for 'shadow_s' "
            "seconds."
        )


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
        if isinstance(document, dict):
            check_schema(document.get("schema", SCHEMA))
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
