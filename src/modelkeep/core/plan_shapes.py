"""What a rollout plan is made of: each field with its meaning, its unit, its limits and what it is by itself.

The JSON Schema and the reference page are made of this file, and `plan` holds plans against its limits. What
fields may be together, what a strategy brings along, and how a plan is read, is `plan`'s part.
"""

from datetime import datetime
from enum import StrEnum
from typing import Annotated

from msgspec import Struct, field

from modelkeep.core.fields import said
from modelkeep.core.quality import Quality
from modelkeep.core.routing import OTHERS_MAX, WHOLE_PPM
from modelkeep.core.shift import Shift

SCHEMA = "modelkeep.rollout/v1"
"""The form of the documents that this release reads."""
STEPS_MAX = 50
"""Steps of one plan."""
STEP_S_MAX = 90 * 86_400.0
"""The longest that a step may be asked to last: labels may be late by weeks, not by years."""
PAIRS_MAX = 1_000_000_000
"""Pairs that a plan may wait for: more than anybody compares."""
NAME_MAX = 100
"""Characters of a further version's name: the longest semver, or `#` and a number."""
ODDS_MAX = 100.0
"""Odds ratios that a plan may tolerate or look for."""
COUNT_MAX = 1_000_000
"""Of the faults that a guard may let pass: as good as no guard."""

_PPM = "millionths of the callers"
_SHARE = "share of alpha"
_ODDS = "odds ratio"


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
    """What a test of versions is decided by: callers who fail, callers who are answered slowly, or callers
    whose predictions turn out wrong, by the first label that each of them gets."""

    ERRORS = "errors"
    LATENCY = "latency"
    QUALITY = "quality"


class OnInconclusive(StrEnum):
    """What to do when a step's longest time is over and the evidence does not suffice. `advance` goes on when
    the candidate had requests in this step; without any there is nothing to go on.
    """

    HOLD = "hold"
    ADVANCE = "advance"
    ROLLBACK = "rollback"


class Step(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One step: the candidate's share, and for how long."""

    weight_ppm: Annotated[
        int,
        said(
            "The candidate's share; weights rise from step to step, up to all of it.",
            unit=_PPM,
            least=1,
            most=WHOLE_PPM,
        ),
    ]
    min_s: Annotated[
        float, said("The least time that the step lasts.", unit="seconds", least=0, most=STEP_S_MAX)
    ] = 300.0
    max_s: Annotated[
        float,
        said(
            "The time after which missing evidence is acted on; not below `min_s`.",
            unit="seconds",
            least=0,
            most=STEP_S_MAX,
        ),
    ] = 3_600.0


class Variant(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A further version of an A/B test, and its share of the callers."""

    version: Annotated[str, said("By its semver (`2.1.0`), or its number (`#3`).", characters=(1, NAME_MAX))]
    weight_ppm: Annotated[int, said("Its share.", unit=_PPM, least=1, below=WHOLE_PPM)]


class Guards(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Certain faults, outside the statistics: reached means rolled back."""

    crashes: Annotated[
        int, said("Crashes of the candidate's process.", unit="crashes", least=1, most=COUNT_MAX)
    ] = 3
    schema_violations: Annotated[
        int,
        said("Answers that break the candidate's own signature.", unit="answers", least=1, most=COUNT_MAX),
    ] = 1


class Metrics(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How alpha is spent over the metrics that can take a candidate back. 0 leaves a metric out; together
    they are at most 1."""

    errors: Annotated[float, said("Callers who fail.", unit=_SHARE, above=0, most=1)] = 0.5
    latency: Annotated[float, said("Callers who are answered slowly.", unit=_SHARE, least=0, most=1)] = 0.3
    shares: Annotated[
        float, said("Versions that do not get their shares of the callers.", unit=_SHARE, least=0, most=1)
    ] = 0.2
    quality: Annotated[
        float,
        said("Callers whose predictions turn out wrong; with `quality` alone.", unit=_SHARE, least=0, most=1),
    ] = 0.0
    prediction_shift: Annotated[
        float,
        said(
            "Predictions that differ from stable's; with `prediction_shift` alone.",
            unit=_SHARE,
            least=0,
            most=1,
        ),
    ] = 0.0


class Plan(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a rollout goes, as data."""

    schema: Annotated[str, said("The form of this document.", only=SCHEMA)] = SCHEMA
    strategy: Annotated[Strategy, said("How the candidate takes over.")] = Strategy.CANARY
    steps: Annotated[
        tuple[Step, ...],
        said(
            "What the candidate gets when. Left out, it is what the strategy has by itself; a shadow has "
            "none, an A/B test and whatever switches at once have one.",
            items=(0, STEPS_MAX),
        ),
    ] = (
        Step(weight_ppm=100_000),
        Step(weight_ppm=500_000),
        Step(weight_ppm=WHOLE_PPM),
    )
    alpha: Annotated[
        float,
        said(
            "The chance that a candidate no worse than stable is ever taken back by the evidence, over the "
            "whole rollout; of an A/B test also that a winner is named between equal versions.",
            unit="probability",
            above=0,
            most=0.2,
        ),
    ] = 0.01
    beta: Annotated[
        float,
        said(
            "The chance that a step is passed by a candidate that is as bad as `pass_odds` and `pass_rate` "
            "say.",
            unit="probability",
            above=0,
            most=0.5,
        ),
    ] = 0.05
    margin: Annotated[
        float,
        said("The odds of failing, over stable's, that are tolerated.", unit=_ODDS, least=1, most=ODDS_MAX),
    ] = 1.0
    slow_margin: Annotated[
        float,
        said(
            "The odds of being answered slowly, over stable's, that are tolerated.",
            unit=_ODDS,
            least=1,
            most=ODDS_MAX,
        ),
    ] = 1.5
    pass_odds: Annotated[
        float,
        said(
            "An advance shows that first requests fail at lower odds than this, over stable's; it lies above "
            "`margin`.",
            unit=_ODDS,
            above=1,
            most=ODDS_MAX,
        ),
    ] = 2.0
    pass_rate: Annotated[
        float,
        said(
            "Or it shows that a lower share of first requests fails than this.",
            unit="share of first requests",
            least=0.0001,
            most=0.5,
        ),
    ] = 0.02
    fail_rate: Annotated[
        float,
        said(
            "With all of the traffic, where nobody is left to compare with, the candidate is taken back when "
            "this share of first requests is shown to fail; above `pass_rate`.",
            unit="share of first requests",
            above=0.0001,
            most=0.99,
        ),
    ] = 0.25
    metrics: Annotated[
        Metrics,
        said(
            "How alpha is spent. Left out, it is divided over all that the plan has judged, labels and "
            "predictions among it."
        ),
    ] = field(default_factory=Metrics)
    quality: Annotated[
        Quality | None,
        said(
            "Have predictions judged by labels that come later. A canary needs them to advance, an A/B test "
            "may have them as its goal, and of a shadow's copies they say who is wrong alone."
        ),
    ] = None
    prediction_shift: Annotated[
        Shift | None, said("Have predictions compared with stable's as they are made. Canaries alone.")
    ] = None
    on_inconclusive: Annotated[
        OnInconclusive,
        said("What to do when `max_s` is over and the evidence does not suffice. Canaries alone."),
    ] = OnInconclusive.HOLD
    automatic: Annotated[
        bool,
        said("No leaves each next step, and the switch, to a person. Neither a shadow nor an A/B test asks."),
    ] = True
    preview_s: Annotated[
        float,
        said(
            "How long a blue-green candidate stands under its preview address before the switch.",
            unit="seconds",
            least=0,
            most=STEP_S_MAX,
        ),
    ] = 0.0
    ends_at: Annotated[
        datetime | None,
        said(
            "When an A/B test ends, with a zone; without it, after the `min_s` of its step. Within 90 days "
            "from its beginning."
        ),
    ] = None
    shadow_ppm: Annotated[
        int,
        said(
            "Copies that a shadow gets, or a canary before its first step.",
            unit="millionths of the requests",
            least=0,
            most=WHOLE_PPM,
        ),
    ] = 0
    shadow_s: Annotated[
        float, said("For how long it gets copies.", unit="seconds", least=0, most=STEP_S_MAX)
    ] = 0.0
    shadow_pairs: Annotated[
        int, said("And until so many were compared.", unit="pairs", least=1, most=PAIRS_MAX)
    ] = 1
    goal: Annotated[Goal, said("What an A/B test is decided by; `quality` needs one.")] = Goal.ERRORS
    versions: Annotated[
        tuple[Variant, ...],
        said(
            "Further versions of an A/B test, beside the one that is promoted, whose share stands in the "
            "step. In the plan of one promotion alone.",
            items=(0, OTHERS_MAX),
        ),
    ] = ()
    promote_winner: Annotated[
        bool,
        said(
            "Whether the candidate takes over when it has won an A/B test; otherwise stable goes on and the "
            "report is all that follows."
        ),
    ] = False
    prepare_s: Annotated[
        float,
        said(
            "How long gateways have to load the candidate, counted from when one answers.",
            unit="seconds",
            least=1,
            most=86_400,
        ),
    ] = 600.0
    guards: Annotated[Guards, said("Certain faults, outside the statistics.")] = field(default_factory=Guards)
