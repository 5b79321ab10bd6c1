"""How well versions get into production: deployment figures, of the deployments that events amount to.

A deployment (see `deployments`) is counted when it ends. The definitions stand in docs/reference/delivery.md.
This file reads no log and knows no person; where the events come from and who may see them is the service's
business.

Sources: the four keys of DORA (Forsgren, Humble and Kim, Accelerate, 2018; dora.dev, "software delivery
performance metrics"); the interval of a share is Wilson's score interval (Wilson 1927).
"""

import math
from collections.abc import Collection, Iterable, Sequence
from datetime import datetime

from msgspec import Struct

from modelkeep.core.deployments import Asked, Deployment, LastDrill, Named, Outcome, fold

DAY_S = 86_400.0
NINETY_FIVE = 1.959963984540054
"""The normal quantile that leaves 2.5 % on either side."""
_UNJUDGED = (Outcome.CANCELLED, Outcome.SUPERSEDED, Outcome.CONCLUDED)
"""What counts for and against nobody."""


class Share(Struct, frozen=True, kw_only=True):
    """`count` of `of`. `value` is None of nothing; `low` and `high` enclose the true share at 95 %."""

    count: int
    of: int
    value: float | None = None
    low: float = 0.0
    high: float = 1.0


class Times(Struct, frozen=True, kw_only=True):
    """How long `count` things took; without any, nothing is said. `p90_s` is a time that was measured, the
    smallest that nine tenths did not exceed, and so is `median_s` when the count is odd."""

    count: int = 0
    mean_s: float | None = None
    median_s: float | None = None
    p90_s: float | None = None
    longest_s: float | None = None


class DeliveryReport(Struct, frozen=True, kw_only=True):
    """Deployment figures of a span. Each rate stands beside its counts, each time beside how many it is of.

    Attributes:
        deployments: ended in the span; the six counts below add up to it.
        under_way: begun in the span and not ended by its end.
        success: succeeded, of those that succeeded, were rolled back or failed.
        change_failure: taken back, while moving or later, of those that had callers.
        per_day: deployments that succeeded.
        deploy: from the start of a rollout to its success.
        rollback: from the decision to take a version back to its confirmation by the gateways.
        recovery: from the first caller of a version that was taken back while moving, or from the entry
            into the stage of one that was taken back later, to the end of its traffic.
        lead: from a version's registration to its first entry into the stage, or its first success behind an
            alias.
        aliases: those behind which something of this happened; no other was asked for, or there was none.
    """

    since: datetime
    until: datetime
    stage: str | None
    aliases: tuple[str, ...] = ()
    model: str | None = None
    project: str | None = None
    deployments: int
    succeeded: int
    rolled_back: int
    failed: int
    cancelled: int
    superseded: int = 0
    concluded: int = 0
    under_way: int
    success: Share
    change_failure: Share
    per_day: float
    deploy: Times
    rollback: Times
    recovery: Times
    lead: Times
    drills: int = 0
    last_drill: LastDrill | None = None


def report(
    events: Sequence[Named],
    *,
    since: datetime,
    until: datetime,
    asked: Asked,
    model: str | None = None,
    project: str | None = None,
) -> DeliveryReport:
    """The figures of what ended after `since`, up to and with `until`.

    Args:
        events: in order, each once: all of `READ_WHOLE` in the span, and of what ended in it the beginnings
            that lie before.
        model, project: what the events were chosen by; only told again.
    """
    found = fold(events, asked)

    def within(at: datetime | None) -> bool:
        return at is not None and since < at <= until

    ended = [one for one in found.deployments if within(one.ended_at)]
    tally = {outcome: sum(one.outcome is outcome for one in ended) for outcome in Outcome}
    judged = len(ended) - sum(tally[outcome] for outcome in _UNJUDGED)
    drills = [one for one in found.drills if within(one.at)]
    met = [one for one in ended if one.outcome in (Outcome.SUCCEEDED, Outcome.ROLLED_BACK)]
    days = (until - since).total_seconds() / DAY_S
    return DeliveryReport(
        since=since,
        until=until,
        stage=asked.stage,
        aliases=tuple(
            sorted(
                {
                    one.stage[1:]
                    for one in found.deployments
                    if one.stage.startswith("@")
                    and any(within(at) for at in (one.began_at, one.ended_at, one.undone_at))
                }
            )
        ),
        model=model,
        project=project,
        deployments=len(ended),
        succeeded=tally[Outcome.SUCCEEDED],
        rolled_back=tally[Outcome.ROLLED_BACK],
        failed=tally[Outcome.FAILED],
        cancelled=tally[Outcome.CANCELLED],
        superseded=tally[Outcome.SUPERSEDED],
        concluded=tally[Outcome.CONCLUDED],
        under_way=sum(one.ended_at is None and within(one.began_at) for one in found.deployments),
        success=share(tally[Outcome.SUCCEEDED], judged),
        change_failure=share(sum(_went_wrong(one) for one in met), len(met)),
        per_day=tally[Outcome.SUCCEEDED] / days if days > 0 else 0.0,
        deploy=_between(
            (one.began_at, one.ended_at)
            for one in ended
            if one.outcome is Outcome.SUCCEEDED and not one.at_once
        ),
        rollback=_between(
            (one.decided_at, one.ended_at) for one in ended if one.outcome is Outcome.ROLLED_BACK
        ),
        recovery=_between(
            (one.ended_at, one.undone_at) if one.undone_at is not None else (one.exposed_at, one.ended_at)
            for one in found.deployments
            if _went_wrong(one) and within(one.undone_at or one.ended_at)
        ),
        lead=_between(
            (found.registered_at.get(key), at) for key, at in found.entered_at.items() if within(at)
        ),
        drills=len(drills),
        last_drill=drills[-1] if drills else None,
    )


def _went_wrong(one: Deployment) -> bool:
    return one.outcome is Outcome.ROLLED_BACK or one.undone_at is not None


def _between(spans: Iterable[tuple[datetime | None, datetime | None]]) -> Times:
    """Of those spans of which both ends are known. A clock that was set back makes none negative."""
    return times(
        [
            max(0.0, (end - begin).total_seconds())
            for begin, end in spans
            if begin is not None and end is not None
        ]
    )


def times(took_s: Collection[float]) -> Times:
    """The mean, the median and the ninth decile of durations; nothing of none."""
    if not took_s:
        return Times()
    ordered = sorted(took_s)
    count, half = len(ordered), len(ordered) // 2
    return Times(
        count=count,
        mean_s=math.fsum(ordered) / count,
        median_s=ordered[half] if count % 2 else (ordered[half - 1] + ordered[half]) / 2,
        p90_s=ordered[-(-9 * count // 10) - 1],
        longest_s=ordered[-1],
    )


def share(count: int, of: int) -> Share:
    """A share with Wilson's score interval at 95 %, which says something of few and of none at all."""
    if of == 0:
        return Share(count=0, of=0)
    p, zz = count / of, NINETY_FIVE**2
    middle = (p + zz / (2 * of)) / (1 + zz / of)
    reach = NINETY_FIVE * math.sqrt(p * (1 - p) / of + zz / (4 * of * of)) / (1 + zz / of)
    return Share(
        count=count,
        of=of,
        value=p,
        low=0.0 if count == 0 else max(0.0, middle - reach),
        high=1.0 if count == of else min(1.0, middle + reach),
    )
