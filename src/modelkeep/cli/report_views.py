"""How figures read: each rate beside its counts and with what so few allow one to say."""

from typing import TYPE_CHECKING

from modelkeep.cli.catalog_views import View
from modelkeep.cli.show import Screen, Text, duration, moment

if TYPE_CHECKING:
    from modelkeep.core.delivery import DeliveryReport, Share, Times
    from modelkeep.core.drill import Drill, DrillPlan

FEW = 20
"""Below so many, a rate is mostly chance, and that is said."""


def delivery(found: "DeliveryReport") -> View:
    """Deployment figures of a span."""

    def draw(screen: Screen) -> None:
        whose = found.model or (f"project {found.project}" if found.project else "all models")
        span = f"{moment(found.since)} to {moment(found.until)}"
        screen.line(Text(f"Deployments of {whose} {_where(found)}", "strong"), Text(span, "dim"))
        if not found.deployments:
            waiting = f"; {found.under_way} under way" if found.under_way else ""
            screen.line(f"None ended in this span{waiting}.")
        screen.facts(
            (
                ("deployments", _counts(found) if found.deployments else None),
                ("frequency", f"{_often(found.per_day)} that succeeded" if found.succeeded else None),
                ("success rate", _share(found.success)),
                ("change failure rate", _share(found.change_failure)),
                ("last drill", _drill(found)),
            )
        )
        rows = (
            ("time to deploy", found.deploy),
            ("rollback time", found.rollback),
            ("recovery time", found.recovery),
            ("lead time", found.lead),
        )
        if any(times.count for _, times in rows):
            screen.blank()
            screen.table(
                ("", "of", "mean", "median", "90 % within", "longest"),
                ((name, f"{times.count:,}", *_times(times)) for name, times in rows),
                right=range(1, 6),
            )
        if 0 < found.success.of < FEW:
            words = "So few say little: the true rates lie in the intervals with 95 % confidence."
            screen.line(Text(words, "warn"))

    return draw


def _where(found: "DeliveryReport") -> str:
    """To which stage, and behind which aliases."""
    behind = ", ".join(f"@{alias}" for alias in found.aliases)
    if found.stage is None:
        return f"behind {behind or 'the alias'}"
    return f"to {found.stage}" + (f" and behind {behind}" if behind else "")


def _counts(found: "DeliveryReport") -> str:
    parts = [
        f"{count:,} {word}"
        for count, word in (
            (found.succeeded, "succeeded"),
            (found.rolled_back, "rolled back"),
            (found.failed, "failed to load"),
            (found.cancelled, "cancelled"),
            (found.superseded, "superseded"),
            (found.concluded, "concluded"),
        )
        if count
    ]
    waiting = f"; {found.under_way:,} under way" if found.under_way else ""
    return f"{found.deployments:,}: {', '.join(parts)}{waiting}"


def _drill(found: "DeliveryReport") -> str | None:
    last = found.last_drill
    if last is None:
        return None
    idle = "" if last.live else ", without traffic"
    return (
        f"{moment(last.at)}: {last.took_ms:.2f} ms from the command to the last request{idle} "
        f"({last.endpoint} at {last.gateway}; {found.drills:,} in this span)"
    )


def _often(per_day: float) -> str:
    """A rate in the unit in which it is a number that one can imagine."""
    for unit, days in (("day", 1), ("week", 7), ("month", 30)):
        if per_day * days >= 1:
            return f"{per_day * days:.3g} a {unit}"
    return f"{per_day * 365:.2g} a year"


def _share(found: "Share") -> str | None:
    if found.value is None:
        return None
    return (
        f"{found.value:.1%} ({found.count:,} of {found.of:,}; between {found.low:.1%} and {found.high:.1%})"
    )


def _times(found: "Times") -> tuple[str, str, str, str]:
    values = (found.mean_s, found.median_s, found.p90_s, found.longest_s)
    mean, median, p90, longest = (duration(value) if value is not None else "-" for value in values)
    return mean, median, p90, longest


def plain(found: "DeliveryReport") -> list[tuple[str, str]]:
    """The figures a program asks for first, as name and value; what nothing is known of is empty."""

    def text(value: float | None) -> str:
        return "" if value is None else f"{value:.6g}"

    return [
        ("deployments", str(found.deployments)),
        ("success_rate", text(found.success.value)),
        ("change_failure_rate", text(found.change_failure.value)),
        ("per_day", text(found.per_day)),
        ("deploy_median_s", text(found.deploy.median_s)),
        ("rollback_median_s", text(found.rollback.median_s)),
        ("recovery_median_s", text(found.recovery.median_s)),
        ("lead_median_s", text(found.lead.median_s)),
    ]


def drill_plan(plan: "DrillPlan") -> View:
    """Whether a drill may be now, and when else."""

    def draw(screen: Screen) -> None:
        word = Text("not now", "bad") if plan.against else Text("may be", "good")
        screen.line(f"A drill of {plan.endpoint}:", word)
        screen.facts(
            (
                (
                    "would",
                    f"have {plan.former} answer for {plan.stands}" if plan.former else None,
                ),
                ("gateways", ", ".join(plan.gateways) or None),
                *((one.obstacle.value.replace("_", " "), one.why) for one in plan.against),
                ("next window", moment(plan.next_at) if plan.next_at is not None else None),
                ("anyway", "no: nobody can drill past this" if plan.final else None),
            )
        )

    return draw


def drill(done: "Drill") -> View:
    """What a drill measured, and that everything is as it was."""

    def draw(screen: Screen) -> None:
        m = done.measured
        screen.line(
            Text(f"{m.took_ms:.2f} ms", "strong"),
            f"from the command to the last request sent to {done.stands}; {done.former} answered for",
            f"{duration(m.hold_s)}.",
        )
        screen.facts(
            (
                ("endpoint", f"{done.endpoint} ({done.model}) at {m.gateway}"),
                ("all fronts", f"{m.fronts} in {m.confirmed_ms:.2f} ms"),
                ("put back", f"{done.stands} in {m.back_ms:.2f} ms"),
                ("traffic", "live" if m.live else Text("none: the time says little", "warn")),
                *(("against", Text(one.why, "warn")) for one in done.against),
                ("anyway", done.anyway),
                ("kept", f"event {done.sequence} by {done.by}: {done.reason}"),
            )
        )

    return draw
