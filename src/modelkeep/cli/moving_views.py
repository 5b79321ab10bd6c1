"""How the move of a whole registry reads: what came, what is called otherwise, what stayed out, and whether
both sides count the same.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from modelkeep.cli.catalog_views import View
from modelkeep.cli.show import Screen, Text, size
from modelkeep.core.imports import Kind

if TYPE_CHECKING:
    from modelkeep.adapters.mlflow_export import ExportReport
    from modelkeep.client.move_report import LeftOut, Moved, MoveReport

SHOWN_MAX = 50
"""Lines of one list; --json has all."""

WORDS = {
    Kind.EXPERIMENT: "experiments",
    Kind.RUN: "runs",
    Kind.LOGGED_MODEL: "logged models",
    Kind.MODEL: "registered models",
    Kind.VERSION: "versions",
    Kind.ALIAS: "aliases",
}
"""What is counted, in the order of the table."""


def moved_in(report: "MoveReport") -> View:
    """What came of an import."""

    def draw(screen: Screen) -> None:
        come = "would come" if report.dry_run else "new"
        screen.line(
            "From", Text(report.source, "strong"), "to the project", Text(report.project, "strong") + ":"
        )
        _table(screen, ("", "there", come, "here before", "left out"), report.kinds)
        screen.line(
            f"{report.points:,} points of metrics, {report.files:,} files, {size(report.size_bytes)}."
        )
        if report.mapped:
            screen.blank()
            screen.line("Called otherwise here:")
            _listed(screen, [f"{one.kind} {one.id} is {one.ours}" for one in report.mapped])
        _told(screen, "Carried, but not as it is there:", report.changed)
        _told(screen, "Left out:", report.left_out)
        _told(screen, "Not the same here as there:", report.differing)
        if report.more:
            screen.line(f"and {report.more:,} more.")
        _verdict(screen, report)

    return draw


def moved_out(report: "ExportReport") -> View:
    """What came of an export."""

    def draw(screen: Screen) -> None:
        screen.line("To", Text(report.target, "strong") + ":")
        _table(screen, ("", "here", "new", "there before", "left out"), report.kinds)
        files = f"{report.files:,} files, {size(report.size_bytes)}"
        screen.line(f"{report.points:,} points of metrics, {files} written.")
        if report.mapped:
            screen.blank()
            screen.line("Called otherwise there:")
            _listed(screen, [f"{one.kind} {one.id} is {one.ours}" for one in report.mapped])
        _told(screen, "Carried, but not as it is here:", report.changed)
        _told(screen, "Left out:", report.left_out)
        if report.more:
            screen.line(f"and {report.more:,} more.")

    return draw


def _table(screen: Screen, head: Sequence[str], kinds: "Mapping[Kind, Moved]") -> None:
    screen.table(
        head,
        (
            (word, str(one.found), str(one.found - one.there - one.left_out), str(one.there),
             Text(str(one.left_out), "bad" if one.left_out else ""))
            for kind, word in WORDS.items()
            if (one := kinds.get(kind)) is not None
        ),
        right=(1, 2, 3, 4),
    )  # fmt: skip


def _told(screen: Screen, head: str, told: "Sequence[LeftOut]") -> None:
    if told:
        screen.blank()
        screen.line(head)
        _listed(screen, [f"{one.kind} {one.id}: {one.why}" for one in told])


def _listed(screen: Screen, lines: Sequence[str]) -> None:
    for line in lines[:SHOWN_MAX]:
        screen.line(f"  {line}")
    if len(lines) > SHOWN_MAX:
        screen.line(f"  and {len(lines) - SHOWN_MAX:,} more; --json has them all")


def _verdict(screen: Screen, report: "MoveReport") -> None:
    screen.blank()
    if report.dry_run:
        screen.line("Nothing was written.")
        return
    wrong = [check for check in report.checks if not check.ok]
    for check in wrong:
        screen.line(Text("differs", "bad"), f"{check.what}: {check.there:,} there, {check.here:,} here")
    if not wrong and not report.differing:
        screen.line(Text("verified", "good"), "both sides count the same, and each run's log has one digest.")
