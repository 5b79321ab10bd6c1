"""A version and its environment: what the gateway says of it while it is built, and when it cannot be."""

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from modelkeep.core import errors
from modelkeep.core.observation import VersionPhase
from modelkeep.core.values import Digest
from modelkeep.serving.cache import Cache
from modelkeep.serving.environments import Environments, Lock
from modelkeep.serving.options import GatewayOptions
from modelkeep.serving.units import Owner, VersionUnit
from tests.serving import models

FILES = {"predictor.py": b"x", "requirements.txt": b"tiny==1.0\n"}


class Builder:
    """Environments that take until they are told how it ended."""

    def __init__(self, outcome: errors.ModelkeepError | None) -> None:
        self.go_on = threading.Event()
        self.asked: list[Lock] = []
        self._outcome = outcome

    def is_built(self, lock: Lock) -> bool:
        return False

    def python(self, lock: Lock) -> Path:
        self.asked.append(lock)
        self.go_on.wait(60)
        if self._outcome is not None:
            raise self._outcome
        return Path("/nowhere/bin/python")


class Watcher:
    """Who is told of every phase."""

    def __init__(self, folder: Path) -> None:
        self.options = GatewayOptions(data=folder, backoff_first_s=5.0)
        self.phases: list[VersionPhase] = []
        self.changed = asyncio.Event()

    def version_changed(self, unit: VersionUnit) -> None:
        self.phases.append(unit.phase)
        self.changed.set()

    def __getattr__(self, name: str) -> Any:
        return lambda *_: None


async def phases(tmp_path: Path, outcome: errors.ModelkeepError | None, *, last: VersionPhase) -> VersionUnit:
    """Have a version furnished, up to a phase; the unit as it then was."""
    blobs = models.blobs(FILES)

    def fetch(digest: Digest) -> Iterator[bytes]:
        yield blobs[digest]

    builder, watcher = Builder(outcome), Watcher(tmp_path)
    unit = VersionUnit(
        cast(Owner, watcher),
        models.spec(FILES, "1.0.0"),
        Cache(tmp_path / "cache"),
        fetch,
        tmp_path / "w",
        asyncio.Semaphore(1),
        cast(Environments, builder),
    )
    unit.start(1)
    try:
        async with asyncio.timeout(60):
            for wanted in (VersionPhase.BUILDING, last):
                while wanted not in watcher.phases:
                    await watcher.changed.wait()
                    watcher.changed.clear()
                assert unit.phase is not VersionPhase.READY
                builder.go_on.set()
        assert unit.environment == builder.asked[0].key
        error = unit.error
    finally:
        builder.go_on.set()
        await unit.stop(grace_s=0.1)
    unit.error = error
    return unit


@pytest.mark.req("S2")
def test_a_version_is_building_until_its_environment_is_there(tmp_path: Path) -> None:
    """No process is started before, and then it is one of the environment's Python."""
    unit = asyncio.run(phases(tmp_path, None, last=VersionPhase.STARTING))
    assert unit.python == "/nowhere/bin/python"


@pytest.mark.req("S2")
def test_an_environment_that_can_never_be_built_fails_the_version_at_once(tmp_path: Path) -> None:
    """What is wrong with the list itself does not mend by trying again, and is told as it is."""
    refusal = errors.Invalid("list exact versions")
    unit = asyncio.run(phases(tmp_path, refusal, last=VersionPhase.FAILED))
    assert unit.error == "list exact versions"


@pytest.mark.req("S2")
def test_an_index_that_does_not_answer_is_asked_again(tmp_path: Path) -> None:
    """The version goes back to what comes before, with the reason, and has not failed."""
    refusal = errors.Unavailable("no route to the index")
    unit = asyncio.run(phases(tmp_path, refusal, last=VersionPhase.FETCHING))
    assert unit.error == "no route to the index"
