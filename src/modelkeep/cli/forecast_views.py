"""How a forecast reads: the traffic, candidates as good as stable, worse ones, and which numbers are which.
What a log of predictions foretells is drawn by `rehearsals`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from modelkeep.cli.catalog_views import View
from modelkeep.cli.plans import summary
from modelkeep.cli.show import Screen, Text, duration, share

if TYPE_CHECKING:
    from modelkeep.core.answers import RolloutForecast
    from modelkeep.core.forecast import ContestOutlook, Healthy, Regression
    from modelkeep.core.label_outlook import LabelsOutlook

_WORSE = (
    "odds", "seen", "10 % by", "50 % by", "90 % by", "formula", "callers", "requests", "failed", "passes",
)  # fmt: skip


def forecast(told: "RolloutForecast") -> View:
    """What a rollout may expect: the traffic, healthy candidates, worse ones, and which numbers are which."""

    def draw(screen: Screen) -> None:
        flow, found = told.flow, told.outlook
        callers = f"{flow.callers_per_s:.3g} new callers a second"
        screen.line(Text(f"{told.version or 'Any version'} over {told.stable} on {told.endpoint}", "strong"))
        screen.facts(
            (
                ("plan", summary(told.plan)),
                ("traffic", f"{callers}, {flow.requests_per_caller:.3g} requests each"),
                ("stable", f"{flow.failing:.3%} of callers fail, {flow.slow:.3%} are answered slowly"),
                ("counted", _counted(told)),
                ("given", ", ".join(told.given)),
                ("assumed", Text(", ".join(told.assumed), "warn") if told.assumed else None),
            )
        )
        _healthy(screen, found.healthy)
        _worse(screen, found.regressions)
        screen.line(
            Text(
                f"Simulated: all but 'promised' and 'formula', by {found.runs} rollouts of each kind over "
                f"{duration(found.horizon_s)}, seed {found.seed}; shares within {found.error:.1%}.",
                "dim",
            )
        )
        if told.contest is not None:
            _contest(screen, told.contest)
        if told.labels is not None:
            _labels_needed(screen, told.labels)

    return draw


def _healthy(screen: Screen, healthy: "Healthy") -> None:
    """What becomes of candidates that are as good as stable."""
    share = f"{healthy.taken_back:.2%}, credibly at most {healthy.taken_back_at_most:.2%}"
    screen.blank()
    screen.line("A candidate as good as stable:")
    screen.facts(
        (
            ("all traffic", _times(healthy.full_half_s, healthy.full_nine_tenths_s)),
            ("done", _times(healthy.done_half_s, None)),
            ("taken back", f"{share}; promised: at most {healthy.alpha:.2%}"),
            ("inconclusive", f"{healthy.inconclusive:.1%}" if healthy.inconclusive else None),
            ("still waiting", f"{healthy.waiting:.1%}" if healthy.waiting else None),
        )
    )


def _worse(screen: Screen, regressions: Sequence["Regression"]) -> None:
    """How soon worse candidates are seen, and whom they reach until then."""
    screen.blank()
    screen.line("A candidate whose callers fail at higher odds:")
    screen.table(
        _WORSE,
        (
            (
                f"x{r.odds:g}",
                f"{r.seen:.1%}",
                _time(r.tenth_s),
                _time(r.half_s),
                _time(r.nine_tenths_s),
                _time(r.formula_s),
                f"{r.callers:,.0f}",
                f"{r.requests:,.0f}",
                f"{r.failed_callers:,.0f}",
                f"{r.passed:.1%}",
            )
            for r in regressions
        ),
        right=range(1, len(_WORSE)),
    )


def _contest(screen: Screen, found: "ContestOutlook") -> None:
    """Of each version: how soon it is taken out when it is worse, how surely it is named when it is
    better."""
    screen.blank()
    screen.line(f"The test of {len(found.arms) + 1} versions, by {found.goal.value}; each beside stable:")
    first = found.arms[0]
    screen.table(
        (
            "version",
            "share",
            "callers a day",
            "out, though equal",
            *(f"out at x{one.odds:g} (50 % by)" for one in first.losses),
            "named, though equal",
            *(f"named at /{1 / one.odds:g}" for one in first.gains),
        ),
        (
            (
                arm.version or "the candidate",
                share(arm.weight_ppm),
                f"{arm.callers_per_s * 86_400:,.0f}",
                f"{arm.taken_out:.1%}",
                *(f"{one.share:.0%} ({_time(one.half_s)})" for one in arm.losses),
                f"{arm.named:.1%}",
                *(f"{one.share:.0%}" for one in arm.gains),
            )
            for arm in found.arms
        ),
        right=range(1, 5 + len(first.losses) + len(first.gains)),
    )
    screen.line(
        Text(
            f"Promised: none that is no worse is taken out, and nobody named between equals, in more than "
            f"{found.alpha:.2%} of tests, over all versions and {found.comparisons} comparisons. Simulated: "
            f"all else, by {found.runs} tests of each kind; shares within {found.error:.1%}.",
            "dim",
        )
    )


def _labels_needed(screen: Screen, labels: "LabelsOutlook") -> None:
    """How many labels a rollout needs, beside what was simulated without them."""
    base = f"{labels.labelled:.0%} of callers get a label, {labels.wrong:.1%} of those of stable are wrong"
    screen.blank()
    screen.line(f"Labels, which the times above do not wait for ({base}):")
    proof, worse = labels.proof, labels.regressions
    rows = [("as good as stable: may advance", proof)]
    rows += [(f"odds of being wrong x{one.odds:g}: seen", one) for one in worse]
    screen.table(
        ("a candidate", "callers with a wrong one", "takes"),
        (
            (what, f"{needed.callers:,.0f}" if needed.callers is not None else "-", _time(needed.takes_s))
            for what, needed in rows
        ),
        right=(1, 2),
    )
    counted = "counted in former rollouts" if labels.counted else "assumed, for none were counted"
    screen.line(Text(f"Computed means; the shares are {counted}. A label's own delay comes on top.", "dim"))


def _counted(told: "RolloutForecast") -> str | None:
    if told.measured is None:
        return None
    m = told.measured
    return (
        f"{m.callers:,} callers in {duration(m.span_s)} of {', '.join(m.rollouts)}, "
        f"{m.stable_failed:,} of {m.stable_callers:,} failed on stable"
    )


def _times(half_s: float | None, nine_tenths_s: float | None) -> str:
    if half_s is None:
        return "not within the time that was simulated, for half of the rollouts"
    later = f", nine tenths within {duration(nine_tenths_s)}" if nine_tenths_s is not None else ""
    return f"half within {duration(half_s)}{later}"


def _time(value: float | None) -> str:
    return duration(value) if value is not None else "-"
