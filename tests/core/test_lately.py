"""What an endpoint answered lately: each tick counts once."""

from datetime import UTC, datetime, timedelta

import pytest

from modelkeep.core.observation import SideCounts, Tick, lately
from modelkeep.core.routing import Epoch

pytestmark = pytest.mark.req("S8")
AT = datetime(2026, 11, 2, 9, 0, tzinfo=UTC)


def tick(rollout: str | None, requests: int, ended_at: datetime = AT) -> Tick:
    """One second of churn."""
    return Tick(
        endpoint="churn",
        rollout=rollout,
        epoch=Epoch(1, 0),
        number=1,
        started_at=ended_at - timedelta(seconds=1),
        ended_at=ended_at,
        candidate_ppm=0,
        stable=SideCounts(requests=requests, errors=1),
        candidate=SideCounts(),
    )


def test_ticks_that_end_together_count_each() -> None:
    """As where a rollout has begun in that second."""
    [found] = lately((), (tick(None, 10), tick("rol_1", 5)), AT)
    assert (found.requests, found.errors, found.until) == (15, 2, AT)


def test_a_tick_that_comes_again_counts_no_more() -> None:
    """A report may be sent twice; what is later in it counts."""
    before = lately((), (tick(None, 10),), AT)
    later = AT + timedelta(seconds=1)
    [found] = lately(before, (tick(None, 10), tick(None, 7, later)), AT)
    assert (found.requests, found.until) == (17, later)
