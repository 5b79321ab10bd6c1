"""How verdicts read: the word, the sentence, the counts of both sides and what the promise depends on."""

from typing import TYPE_CHECKING

from modelkeep.cli.catalog_views import View
from modelkeep.cli.plans import summary
from modelkeep.cli.show import Screen, Text, duration, number, share

if TYPE_CHECKING:
    from modelkeep.core.simulation import Simulation
    from modelkeep.core.verdicts import CountsVerdict, RolloutVerdict, Seen

_STYLES = {"advance": "good", "hold": "warn", "rollback": "bad"}


def of_rollout(found: "RolloutVerdict") -> View:
    """The verdict on a rollout."""

    def draw(screen: Screen) -> None:
        _word(screen, found)
        step = f"step {found.step} of {found.steps}, " if found.step and not found.finished else ""
        over = f"{found.model}:{found.candidate_version} over {found.stable_version or 'nothing'}"
        screen.facts(
            (
                ("rollout", f"{found.rollout} of {found.endpoint}: {over}"),
                ("state", f"{found.state.value.replace('_', ' ')}, {step}{share(found.weight_ppm)}"),
            )
        )
        _sides(screen, found.candidate, found.stable)
        _versions(screen, found)
        if found.report is not None and found.report.arms:
            screen.line(f"so far: {found.report.why}" if not found.finished else found.report.why)

    return draw


def _versions(screen: Screen, found: "RolloutVerdict | CountsVerdict") -> None:
    """What is said of each version of a test of several."""
    if not found.versions:
        return
    screen.blank()
    screen.table(
        ("version", "verdict", "p-value", "callers", "failing callers", "why"),
        (
            (
                one.version,
                Text("taken out" if one.out else one.verdict.value, _STYLES[one.verdict.value]),
                number(one.p_value),
                one.seen.callers,
                one.seen.callers_failed,
                one.why,
            )
            for one in found.versions
        ),
        right=range(2, 5),
    )


def of_counts(found: "CountsVerdict") -> View:
    """The verdict on counts from elsewhere."""

    def draw(screen: Screen) -> None:
        _word(screen, found)
        _sides(screen, found.candidate, found.stable)
        screen.blank()
        screen.table(
            ("test", "p-value"), ((name, number(p)) for name, p in found.p_values.items()), right=(1,)
        )
        _versions(screen, found)
        screen.line(Text(found.caution, "dim"))

    return draw


_ENDS = {"succeeded": "good", "rolled_back": "bad", "failed": "bad"}


def simulation(told: "Simulation") -> View:
    """What would have happened when, beside what did."""

    def draw(screen: Screen) -> None:
        ended = told.ended.value.replace("_", " ") if told.ended is not None else "still under way"
        style = _ENDS.get(told.ended.value, "warn") if told.ended is not None else "warn"
        after = f"after {duration(told.after_s)}" if told.after_s is not None else "when the counts end"
        screen.line("It would be", Text(ended, style), f"{after}: {told.why}")
        was = told.was.value.replace("_", " ")
        off = f"{told.off_plan:,} of {told.ticks:,} ticks were counted under another share than the plan's"
        screen.facts(
            (
                ("rollout", f"{told.rollout} of {told.endpoint}"),
                ("plan", summary(told.plan)),
                ("counts", f"{told.ticks:,} ticks over {duration(told.span_s)}"),
                ("candidate", f"answered {told.callers:,} callers, {told.callers_failed:,} of them failed"),
                ("really", f"{was}: {told.was_outcome}" if told.was_outcome else was),
                ("cut", Text("there are more counts than are gone through", "warn") if told.cut else None),
                ("mind", Text(off, "warn") if told.off_plan else None),
            )
        )
        screen.blank()
        screen.table(
            ("after", "what", "share", "counted at", "callers", "failing", "p", "why"),
            (
                (
                    duration(m.after_s),
                    m.change.value.replace("_", " "),
                    share(m.weight_ppm),
                    share(m.recorded_ppm),
                    f"{m.callers:,}",
                    f"{m.callers_failed:,}",
                    f"{m.p_value:.2g}",
                    m.why,
                )
                for m in told.moments
            ),
            right=(0, 2, 3, 4, 5, 6),
        )

    return draw


def _word(screen: Screen, found: "RolloutVerdict | CountsVerdict") -> None:
    word = found.verdict.value
    screen.line(Text(word, _STYLES[word]), f"(p = {found.p_value:.2g}, risk {found.alpha:g}): {found.why}")


def _sides(screen: Screen, candidate: "Seen", stable: "Seen") -> None:
    if not candidate.requests and not stable.requests:
        return
    screen.table(
        ("", "requests", "errors", "slow", "callers", "failing callers"),
        (
            (name, side.requests, side.errors, side.slow, side.callers, side.callers_failed)
            for name, side in (("candidate", candidate), ("stable", stable))
        ),
        right=range(1, 6),
    )
