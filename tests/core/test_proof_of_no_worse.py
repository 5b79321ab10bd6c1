"""What a proof of being no worse rests on: callers' first requests, for those who failed are gone."""

from datetime import UTC, datetime, timedelta

import pytest

from modelkeep.core.evidence import Evidence, Specs
from modelkeep.core.observation import SideCounts, Tick
from modelkeep.core.plan import CANARY
from modelkeep.core.routing import Epoch

pytestmark = pytest.mark.req("S7")

AT = datetime(2026, 11, 20, 9, tzinfo=UTC)


def seen(candidate: SideCounts, stable: SideCounts) -> Evidence:
    """The evidence of a minute."""
    tick = Tick(
        endpoint="churn",
        rollout="rol_1",
        epoch=Epoch(1, 0),
        number=1,
        started_at=AT,
        ended_at=AT + timedelta(minutes=1),
        candidate_ppm=500_000,
        stable=stable,
        candidate=candidate,
    )
    return Specs.of(CANARY).update(Evidence(), tick)


def test_a_caller_who_has_failed_speaks_for_nobody_later() -> None:
    """Where the candidate's callers failed early and stable's are still there to fail, later first failures
    lie on stable: that is no proof that the candidate is better."""
    late = seen(
        SideCounts(requests=900, errors=90, callers_first_error=1),
        SideCounts(requests=900, errors=40, callers_first_error=40),
    )
    assert late.no_worse.log_v == 0.0
    assert late.errors.max_log_v == 0.0


def test_first_requests_prove_it() -> None:
    """Of callers who come for the first time, failures on either side are a fair account."""
    fair = seen(
        SideCounts(requests=900, new_callers=900, new_callers_failed=4, callers_first_error=4),
        SideCounts(requests=900, new_callers=900, new_callers_failed=40, callers_first_error=40),
    )
    assert fair.no_worse.holds(CANARY.beta / 2)
    alike = seen(
        SideCounts(requests=900, new_callers=900, new_callers_failed=40, callers_first_error=40),
        SideCounts(requests=900, new_callers=900, new_callers_failed=20, callers_first_error=20),
    )
    assert not alike.no_worse.holds(CANARY.beta / 2), "twice as often is the bound itself"
