"""Versions that may sleep: what counts as used, what is told of one that cannot be loaded, and that one whom
callers are taken back to is loaded whatever the budget says."""

import asyncio
import time
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from modelkeep.core import errors
from modelkeep.core.observation import VersionPhase
from modelkeep.core.routing import Epoch, Loading, Route, RoutingTable, rolled_back
from modelkeep.serving.cache import Cache
from modelkeep.serving.moves import taken_back
from modelkeep.serving.options import GatewayOptions
from modelkeep.serving.units import VersionUnit
from modelkeep.serving.versions import TOO_LARGE, Versions
from modelkeep.serving.workers import WorkerUnit
from tests.serving import models

pytestmark = pytest.mark.req("S2")

FILES = {"model.onnx": models.linear_onnx()}
HELD = models.blobs(FILES)
NOW, FORMER = models.spec(FILES, "2.0.0"), models.spec(FILES, "1.0.0")


class Owner:
    """A supervisor that takes note of what it is told."""

    def __init__(self, data: Path, **options: Any) -> None:
        self.options = GatewayOptions(data=data, **options)
        self.phases: list[VersionPhase] = []
        self.settled = asyncio.Event()
        self.hopeless: list[str] = []

    def version_changed(self, unit: VersionUnit) -> None:
        self.phases.append(unit.phase)
        if unit.phase in (VersionPhase.SLEEPING, VersionPhase.FAILED):
            self.settled.set()

    def version_hopeless(self, unit: VersionUnit, why: str) -> None:
        self.hopeless.append(why)

    def version_rests(self, unit: VersionUnit) -> None: ...

    def worker_changed(self, unit: VersionUnit, worker: WorkerUnit) -> None: ...

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        work.close()

    async def told(self) -> None:
        """Wait until a version sleeps, or has failed."""
        await asyncio.wait_for(self.settled.wait(), 60)
        self.settled.clear()


class Store:
    """Where files are fetched from, when it answers."""

    def __init__(self, *, away: bool = False) -> None:
        self.away = away

    def __call__(self, digest: str) -> Iterator[bytes]:
        if self.away:
            raise errors.Unavailable("The server does not answer.")
        return iter([HELD[digest]])


def unit_of(owner: Any, folder: Path) -> VersionUnit:
    """A unit whose files are at hand."""
    return VersionUnit(owner, FORMER, Cache(folder / "cache"), Store(), folder / "w-1", asyncio.Semaphore(1))


def versions_of(owner: Any, folder: Path, store: Store) -> Versions:
    """The versions of a gateway."""
    return Versions(owner, Cache(folder / "cache"), store, folder, None)


def table(*, former: bool = False) -> RoutingTable:
    """An endpoint whose versions are loaded on demand."""
    route = Route(endpoint="churn", epoch=Epoch(1, 1), stable=NOW.key, load=Loading.ON_DEMAND)
    if not former:
        return RoutingTable(number=1, routes=(route,), versions=(NOW,))
    route = Route(
        endpoint="churn", epoch=Epoch(1, 1), stable=NOW.key, previous=FORMER.key, load=Loading.ON_DEMAND
    )
    return RoutingTable(number=1, routes=(route,), versions=(NOW, FORMER))


def test_a_version_that_may_sleep_fetches_its_files_and_starts_nothing(tmp_path: Path) -> None:
    """Its files are there and verified before anybody asks, and it has no process."""

    async def scene() -> None:
        owner = Owner(tmp_path)
        unit = unit_of(owner, tmp_path)
        unit.start(2, asleep=True)
        await owner.told()
        assert owner.phases == [VersionPhase.SLEEPING]
        assert (unit.workers, unit.wanted, unit.report().memory_bytes) == ([], 2, 0)
        await unit.stop(grace_s=0)

    asyncio.run(scene())


def test_what_was_needed_until_now_counts_as_used_until_now(tmp_path: Path) -> None:
    """A version that callers were brought back to is not put to sleep before the first of them asks."""
    unit, before = unit_of(Owner(tmp_path), tmp_path), time.monotonic()
    assert unit.rest.used_s < before
    unit.let_sleep(False)
    unit.let_sleep(True)
    first = unit.rest.used_s
    assert first >= before
    unit.let_sleep(True)
    assert unit.rest.used_s == first


@pytest.mark.parametrize("woken", [False, True])
def test_who_asks_for_what_cannot_be_fetched_is_told_so(tmp_path: Path, woken: bool) -> None:
    """Nobody waits for files that do not come, whether somebody asked before that was known or not; once they
    have come, whoever asks waits for the version again."""

    async def scene() -> None:
        owner, store = Owner(tmp_path, backoff_first_s=0.001), Store(away=True)
        versions = versions_of(owner, tmp_path, store)
        versions.require(table(), table())
        unit = versions.get(NOW.key)
        assert unit is not None
        if woken:
            versions.wanted(NOW.key)
            versions._decide(time.monotonic())
            assert not unit.asleep
        await owner.told()
        assert unit.phase is VersionPhase.FAILED

        for number in (1, 2):
            versions.wanted(NOW.key)
            versions._decide(time.monotonic())
            assert len(owner.hopeless) == number
            assert "does not answer" in owner.hopeless[-1]
            assert unit.asleep
            assert unit.rest.asked_s is None
        assert (unit.rest.failed_s > 0) is woken

        store.away = False
        versions.retry(set())
        await owner.told()
        assert unit.phase is VersionPhase.SLEEPING
        versions.wanted(NOW.key)
        assert unit.rest.asked_s is not None
        assert len(owner.hopeless) == 2
        await versions.stop(grace_s=0)

    asyncio.run(scene())


def test_a_version_that_callers_are_taken_back_to_is_loaded_whatever_the_budget_says(tmp_path: Path) -> None:
    """One that is larger than the whole budget is refused to who merely asks; taken back to, it is loaded,
    and is not put to sleep before it serves, not even where it failed at first."""

    async def scene() -> None:
        owner = Owner(tmp_path, memory_budget_bytes=1)
        versions = versions_of(owner, tmp_path, Store())
        live = table(former=True)
        versions.require(live, live)
        unit = versions.get(FORMER.key)
        assert unit is not None
        while unit.phase is not VersionPhase.SLEEPING:
            await owner.told()
        versions.wanted(FORMER.key)
        versions._decide(time.monotonic())
        assert owner.hopeless == [TOO_LARGE]
        assert unit.asleep

        after, _, removed = taken_back(live, "churn")
        assert removed == NOW.key
        versions.land(FORMER.key)
        versions.require(after, live)
        versions._decide(time.monotonic())
        assert (unit.asleep, unit.phase, unit.pinned) == (False, VersionPhase.STARTING, True)
        [worker] = unit.workers
        for phase, pinned in ((VersionPhase.FAILED, True), (VersionPhase.READY, False)):
            worker.phase = phase
            unit.worker_changed(worker)
            versions._decide(time.monotonic())
            assert (unit.phase, unit.asleep, unit.pinned) == (phase, False, pinned)
        await versions.stop(grace_s=0)

    asyncio.run(scene())


def test_a_version_that_callers_left_again_has_to_fit_like_others(tmp_path: Path) -> None:
    """Where something newer takes its place before it serves, it is not loaded beyond the budget any more."""

    async def scene() -> None:
        owner = Owner(tmp_path)
        versions = versions_of(owner, tmp_path, Store())
        live = table(former=True)
        [route] = live.routes
        versions.require(live, live)
        unit = versions.get(FORMER.key)
        assert unit is not None
        versions.land(FORMER.key)
        versions.require(live, RoutingTable(number=2, routes=(rolled_back(route),), versions=(FORMER,)))
        assert unit.pinned
        versions.require(live, live)
        assert not unit.pinned
        await versions.stop(grace_s=0)

    asyncio.run(scene())
