"""A log led through a plan: it is counted as a gateway would, and told the same for the same seed."""

import tracemalloc
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest
from msgspec import structs

from modelkeep.core import errors, rehearsal
from modelkeep.core.plan import CANARY, Plan, Step, Strategy
from modelkeep.core.rehearsal import Rehearsal, Traffic, rehearse
from modelkeep.core.sequential_many import Array

pytestmark = pytest.mark.req("S7", "S11")

AT = datetime(2026, 11, 20, 9, tzinfo=UTC)
QUICK = Plan(
    steps=(
        Step(weight_ppm=200_000, min_s=600, max_s=1_200),
        Step(weight_ppm=500_000, min_s=600, max_s=1_200),
        Step(weight_ppm=1_000_000, min_s=60, max_s=600),
    )
)
SHORT = Plan(
    steps=(Step(weight_ppm=500_000, min_s=60, max_s=120), Step(weight_ppm=1_000_000, min_s=30, max_s=60))
)


def traffic(
    *, bad_callers: int = 0, requests: int = 20_000, callers: int = 2_000, rate: float = 0.01
) -> Traffic:
    """An hour of callers of whom few ask often; either all fail alike, or only a few do, and always."""
    rng = np.random.default_rng(7)
    weight = rng.lognormal(0, 1.5, callers)
    caller = rng.choice(callers, requests, p=weight / weight.sum())
    caller = np.unique(caller, return_inverse=True)[1]
    failed = caller < bad_callers if bad_callers else rng.random(requests) < rate
    return Traffic(rng.uniform(0, 3_600, requests), caller, failed, rng.random(requests) < 0.02)


def told(plan: Plan = QUICK, of: Traffic | None = None, **more: Any) -> Rehearsal:
    """What a rehearsal tells."""
    how: dict[str, Any] = {"endpoint": "churn", "key": "who", "from_at": AT, "runs": 40} | more
    return rehearse(plan, of or traffic(), **how)


def test_worse_candidates_are_seen_sooner_and_meet_fewer_callers() -> None:
    """The odds are seen in their order; the candidate meets fewer callers the sooner it is taken back."""
    found = told()
    assert found.callers > 1_500
    assert found.failing == pytest.approx(0.01, rel=0.2)
    assert found.failing_callers > 50
    assert found.outlook.healthy.taken_back <= 0.05
    half, twice, four, ten = found.outlook.regressions
    assert half.seen <= twice.seen <= four.seen <= ten.seen
    assert ten.seen == 1.0
    assert ten.half_s is not None
    assert four.half_s is not None
    assert ten.half_s < four.half_s < found.outlook.horizon_s
    assert 0 < ten.callers <= ten.requests < four.requests
    assert ten.failed_callers <= ten.callers < found.callers


def test_a_few_bad_callers_take_no_healthy_candidate_back() -> None:
    """Callers who cause all errors are in the log as they are, and count once each, wherever they go."""
    found = told(of=traffic(bad_callers=5), runs=100)
    assert found.failing_callers == 5
    assert found.outlook.healthy.taken_back <= 0.02


def test_the_same_seed_tells_the_same() -> None:
    """A rehearsal can be repeated to the last figure, and another seed draws others."""
    small = traffic(requests=2_000)
    first = told(SHORT, small)
    assert first == told(SHORT, small)
    assert first != told(SHORT, small, seed=2)


def test_blocks_of_any_size_tell_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rollouts are drawn some at a time for the memory's sake, and nothing else depends on how many."""
    small = traffic(requests=2_000)
    at_once = told(SHORT, small, runs=8)
    for cells in (1, 777):
        monkeypatch.setattr(rehearsal, "BLOCK_CELLS", cells)
        assert told(SHORT, small, runs=8) == at_once


def test_a_tick_takes_no_more_memory_than_its_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many callers come at once, what they meet is drawn block by block beside six bytes a cell."""
    monkeypatch.setattr(rehearsal, "BLOCK_CELLS", cells := 50_000)
    everybody, runs = 5_000, 200
    none = np.zeros(everybody, dtype=bool)
    log = Traffic(np.linspace(0, 1, everybody), np.arange(everybody), none, none)
    tracemalloc.start()
    try:
        world = rehearsal._Rehearsed(QUICK, log, 1.0, runs, np.random.default_rng(1))
        world.come(1.0, 2.0)
        kept, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        counts = world.come(1.0, 2.0)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert sum(counts.callers[0]) == 0, "they have all come already"
    held = (world._bucket, world._has_failed, world.met)
    assert sum(array.nbytes for array in held) == 6 * everybody * runs
    assert peak - kept < 48 * cells


def test_it_is_counted_as_a_gateway_counts() -> None:
    """Each caller arrives, fails and is slow for the first time once, on the side that its bucket says."""
    log = traffic(requests=3_000, callers=300, rate=0.05)
    world = rehearsal._Rehearsed(QUICK, log, 1.0, 3, np.random.default_rng(1))
    got: dict[str, Array] = {name: np.zeros((2, 3), dtype=int) for name in ("callers", "failing", "slow")}
    for now in np.arange(10.0, 3_700.0, 10.0):
        counts = world.come(now, 10.0)
        for name, sums in got.items():
            sums += np.array(getattr(counts, name))
    for run in range(3):
        side = np.where(world._bucket[run] < 200_000, 0, 1)
        for name, those in (("callers", log.caller >= 0), ("failing", log.failed), ("slow", log.slow)):
            who = np.unique(log.caller[those])
            assert got[name][:, run].tolist() == [int((side[who] == arm).sum()) for arm in (0, 1)], name
        mine = side[log.caller] == 0
        assert world.requests[run] == mine.sum()
        assert world.met[run].sum() == len(np.unique(log.caller[mine]))


@pytest.mark.parametrize(
    ("at", "refusal"), [([], errors.Invalid), ([5.0], errors.Invalid), ([5.0, 5.0], errors.Invalid)]
)
def test_a_log_of_nothing_is_refused(at: list[float], refusal: type[Exception]) -> None:
    """Without a span there is no traffic."""
    none = np.zeros(len(at), dtype=bool)
    with pytest.raises(refusal):
        Traffic(np.array(at), none.astype(int), none, none)


def test_too_much_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests and callers beyond the bound are not taken in, and many callers get fewer rollouts."""
    monkeypatch.setattr(rehearsal, "CELLS_MAX", 20 * 1_000)
    with pytest.raises(errors.LimitExceeded, match="another key"):
        traffic()
    small = traffic(callers=1_000, requests=2_000)
    assert told(SHORT, small).outlook.runs == 20_000 // small.callers
    monkeypatch.setattr(rehearsal, "REQUESTS_MAX", 1_000)
    with pytest.raises(errors.LimitExceeded, match="shorter time"):
        traffic()


def test_plans_that_cannot_be_rehearsed_are_refused() -> None:
    """A shadow moves nobody, and runs and seeds have bounds."""
    shadow = Plan(strategy=Strategy.SHADOW, steps=(), shadow_ppm=1_000_000, shadow_s=60)
    for plan, more in (
        (shadow, {}),
        (CANARY, {"runs": 0}),
        (CANARY, {"runs": 9_999}),
        (CANARY, {"seed": -1}),
    ):
        with pytest.raises(errors.InvalidPlan):
            told(plan, traffic(requests=100), **more)
    with pytest.raises(errors.InvalidPlan):
        told(structs.replace(QUICK, alpha=2.0), traffic(requests=100))
