"""A prediction log led through a rollout plan, at a terminal: `modelkeep rollout simulate --log FILE`.

It reads a file on this machine and asks no server; the command itself is in `verdict_commands`.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from modelkeep.cli.catalog_views import View
from modelkeep.cli.plans import summary
from modelkeep.cli.show import Screen, Text, duration, moment

if TYPE_CHECKING:
    from modelkeep.cli.session import Session
    from modelkeep.core.plan import Plan
    from modelkeep.core.rehearsal import Rehearsal


def rehearse(
    session: "Session",
    endpoint: str,
    log: str,
    plan: "Plan | None",
    *,
    key: str | None,
    slow_ms: float,
    seed: int,
    runs: int | None,
) -> None:
    """Lead the log through the plan, the usual canary when none is given, and tell what would come of it."""
    from modelkeep.core import rehearsal
    from modelkeep.core.plan import CANARY
    from modelkeep.serving.log_traffic import read_traffic

    found = read_traffic(Path(log), endpoint, key=key, slow_ms=slow_ms)
    told = rehearsal.rehearse(
        plan or CANARY,
        found.traffic,
        endpoint=endpoint,
        key=key,
        from_at=found.from_at,
        seed=seed,
        runs=rehearsal.RUNS if runs is None else runs,
    )
    session.answer(told, [f"{told.outlook.healthy.taken_back:g}"], rehearsed(told))


def rehearsed(told: "Rehearsal") -> View:
    """The log, healthy candidates, and worse ones."""

    def draw(screen: Screen) -> None:
        found = told.outlook
        healthy = found.healthy
        callers = f"{told.callers:,} callers by {told.key}" if told.key else "each a caller of its own"
        share = f"{healthy.taken_back:.2%}, credibly at most {healthy.taken_back_at_most:.2%}"
        done = healthy.done_half_s
        screen.line(Text(f"Rollouts on {told.endpoint} under the traffic of its log", "strong"))
        screen.facts(
            (
                ("plan", summary(told.plan)),
                ("log", f"{told.requests:,} requests in {duration(told.span_s)} from {moment(told.from_at)}"),
                ("callers", callers),
                ("trouble", _trouble(told)),
            )
        )
        screen.blank()
        screen.line("A candidate as good as stable:")
        screen.facts(
            (
                ("taken back", f"{share}; promised: at most {healthy.alpha:.2%}"),
                (
                    "done",
                    f"half within {duration(done)}" if done is not None else "not within the log, for half",
                ),
                ("still waiting", f"{healthy.waiting:.1%}" if healthy.waiting else None),
            )
        )
        screen.blank()
        screen.line(
            "A candidate whose requests fail at higher odds, and whom it met until it was taken back:"
        )
        screen.table(
            ("odds", "seen", "10 % by", "50 % by", "90 % by", "callers", "requests", "failed", "passes"),
            (
                (
                    f"x{r.odds:g}",
                    f"{r.seen:.1%}",
                    *(
                        duration(at) if at is not None else "-"
                        for at in (r.tenth_s, r.half_s, r.nine_tenths_s)
                    ),
                    f"{r.callers:,.0f}",
                    f"{r.requests:,.0f}",
                    f"{r.failed_callers:,.0f}",
                    f"{r.passed:.1%}",
                )
                for r in found.regressions
            ),
            right=range(1, 9),
        )
        how = f"by {found.runs} rollouts of each kind over {duration(found.horizon_s)}, seed {found.seed}"
        screen.line(Text(f"Simulated: all but 'promised', {how}; shares within {found.error:.1%}.", "dim"))

    return draw


def _trouble(told: "Rehearsal") -> str:
    return (
        f"{told.failing:.3%} of requests fail, of {told.failing_callers:,} callers; "
        f"{told.slow_callers:,} callers are answered slowly"
    )
