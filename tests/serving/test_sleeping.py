"""A version's unit that may sleep: what it counts as used, and what it tells while it has no process."""

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from modelkeep.core.observation import VersionPhase
from modelkeep.serving.cache import Cache
from modelkeep.serving.options import GatewayOptions
from modelkeep.serving.units import VersionUnit
from tests.serving import models

pytestmark = pytest.mark.req("S2")

FILES = {"model.onnx": models.linear_onnx()}


class Owner:
    """A supervisor that takes note of what it is told."""

    def __init__(self, data: Path) -> None:
        self.options = GatewayOptions(data=data)
        self.phases: list[VersionPhase] = []
        self.settled = asyncio.Event()

    def version_changed(self, unit: VersionUnit) -> None:
        self.phases.append(unit.phase)
        self.settled.set()


def unit_of(owner: Any, folder: Path) -> VersionUnit:
    """A unit whose files are at hand."""
    held = models.blobs(FILES)
    spec, cache = models.spec(FILES, "1.0.0"), Cache(folder / "cache")
    return VersionUnit(
        owner, spec, cache, lambda digest: iter([held[digest]]), folder / "w-1", asyncio.Semaphore(1)
    )


def test_a_version_that_may_sleep_fetches_its_files_and_starts_nothing(tmp_path: Path) -> None:
    """Its files are there and verified before anybody asks, and it has no process."""

    async def scene() -> None:
        owner = Owner(tmp_path)
        unit = unit_of(owner, tmp_path)
        unit.start(2, asleep=True)
        await asyncio.wait_for(owner.settled.wait(), 10)
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
