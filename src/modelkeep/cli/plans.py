"""How a command line says what a rollout plan is, and how a plan reads in one line.

A plan comes from a file, from a strategy's name, from single steps, or from several of these; what it leads
to is not known here.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import click

from modelkeep.cli.session import read_text
from modelkeep.cli.show import duration, moment, share

if TYPE_CHECKING:
    from modelkeep.core.plan import Plan, Step

F = TypeVar("F", bound=Callable[..., object])


def plan_options(function: F) -> F:
    """`--plan FILE`, `--strategy NAME` and `--step SHARE:SECONDS`, to be read by `stated`."""
    for option in (
        click.option(
            "--step",
            "steps",
            multiple=True,
            metavar="SHARE:SECONDS[:MOST]",
            help="A step, such as 10%:60, or 10%:60:600 with the time that evidence is waited for.",
        ),
        click.option(
            "--strategy", metavar="NAME", help="canary, blue-green, rolling, immediate, ab-test or shadow."
        ),
        click.option(
            "--plan", "plan_file", metavar="FILE", help="The rollout plan in YAML; - is standard input."
        ),
    ):
        function = option(function)
    return function


def stated(path: str | None, strategy: str | None, steps: tuple[str, ...]) -> "Plan | None":
    """The plan of a file or of a strategy, with the steps of the command line in the place of its own; None
    where nothing was said.

    Raises:
        InvalidPlan: it cannot be carried out, or file and strategy do not fit.
    """
    if path is None and strategy is None and not steps:
        return None
    from msgspec.structs import replace

    from modelkeep.core.plan import CANARY, check_plan, chosen, read_plan, read_strategy

    named = read_strategy(strategy) if strategy is not None else None
    plan = chosen(read_plan(read_text(path)) if path is not None else None, named) or CANARY
    if steps:
        plan = replace(plan, steps=tuple(_step(text) for text in steps))
    return check_plan(plan)


def tested(plan: "Plan | None", beside: tuple[str, ...]) -> "Plan | None":
    """A plan with further versions to test beside the one that is promoted, each as VERSION:SHARE; where no
    plan was said, that of an A/B test.

    Raises:
        InvalidPlan: it cannot be carried out.
    """
    if not beside:
        return plan
    from msgspec.structs import replace

    from modelkeep.core.plan import PRESETS, Strategy, Variant, check_plan

    named = [text.rpartition(":") for text in beside]
    versions = tuple(Variant(version=name, weight_ppm=_ppm(part, "--beside")) for name, _, part in named)
    return check_plan(replace(plan or PRESETS[Strategy.AB_TEST], versions=versions))


def _ppm(text: str, option: str) -> int:
    """`25%` or `25` in ppm."""
    try:
        percent = float(text.removesuffix("%"))
        if 0 < percent < 100:
            return round(percent * 10_000)
    except ValueError:
        pass
    raise click.BadParameter(f"write VERSION:SHARE, such as 2.1.0:25%, not {text!r}", param_hint=option)


def _step(text: str) -> "Step":
    """`10%:60`: a tenth of the traffic for at least 60 s; `10%:60:600` waits 600 s for evidence."""
    from modelkeep.core.plan import Step

    percent_text, *times = text.split(":")
    try:
        percent = float(percent_text.removesuffix("%"))
        seconds = [float(part) for part in times]
        least, most = (
            seconds[0],
            seconds[1] if len(seconds) == 2 else max(Step(weight_ppm=1).max_s, seconds[0]),
        )
        if len(seconds) > 2 or not 0 < percent <= 100:
            raise ValueError
    except (ValueError, IndexError):
        raise click.BadParameter(
            f"write SHARE:SECONDS, such as 10%:60, not {text!r}", param_hint="--step"
        ) from None
    return Step(weight_ppm=round(percent * 10_000), min_s=least, max_s=most)


def summary(plan: "Plan") -> str:
    """A plan in one line."""
    steps = " -> ".join(f"{share(step.weight_ppm)} for {duration(step.min_s)}" for step in plan.steps)
    by_hand = "" if plan.automatic else ", each by hand"
    match plan.strategy.value:
        case "canary":
            before = f"{_copies(plan)}, then " if plan.shadow_ppm else ""
            return f"{before}{steps}{by_hand}{_labels(plan)}"
        case "immediate":
            return "immediate"
        case "shadow":
            return f"shadow: {_copies(plan)}"
        case "ab_test":
            step = plan.steps[0]
            until = f"until {moment(plan.ends_at)}" if plan.ends_at else f"for {duration(step.min_s)}"
            beside = "".join(f", {share(one.weight_ppm)} {one.version}" for one in plan.versions)
            return f"A/B test by {plan.goal.value}: {share(step.weight_ppm)}{beside} {until}"
        case "blue_green":
            switch = f"preview for {duration(plan.preview_s)}, " if plan.preview_s else "preview, "
            return f"blue-green: {switch}then {steps}{by_hand}"
        case strategy:
            return f"{strategy.replace('_', ' ')}: {steps}{by_hand}"


def _labels(plan: "Plan") -> str:
    """How long labels are waited for, where predictions are judged by them."""
    return f", labels waited for up to {duration(plan.quality.wait_s)}" if plan.quality is not None else ""


def _copies(plan: "Plan") -> str:
    """What a shadow gets."""
    pairs = f" and {plan.shadow_pairs:,} pairs" if plan.shadow_pairs > 1 else ""
    return f"copies of {share(plan.shadow_ppm)} for {duration(plan.shadow_s)}{pairs}"
