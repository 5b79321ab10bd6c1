"""The recorder's keeper: a process where there is a reason for one, and another one when it dies or hangs."""

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec import structs

from modelkeep.core.routing import WHOLE_PPM, Epoch, Route, RoutingTable
from modelkeep.serving import messages, recorder_unit
from modelkeep.serving.options import GatewayOptions
from modelkeep.serving.prediction_log import FOLDER
from modelkeep.serving.recorder_unit import RecorderUnit
from tests.serving import models
from tests.serving.gateways import gone

SPEC = models.spec({"model.onnx": b"x"}, "1.0.0")
PLAIN = RoutingTable(
    number=1, routes=(Route(endpoint="churn", epoch=Epoch(1, 1), stable=SPEC.key),), versions=(SPEC,)
)
LOGGED = structs.replace(PLAIN, routes=(structs.replace(PLAIN.routes[0], log_ppm=WHOLE_PPM),))


class Supervisor:
    """What the unit tells its owner."""

    def __init__(self, data: Path) -> None:
        self.options = GatewayOptions(data=data)
        self.places: list[str | None] = []
        self.said = 0

    def recorder_at(self, path: str | None) -> None:
        self.places.append(path)

    def recorder_said(self, noted: messages.Noted) -> None:
        self.said += 1


async def until(so: Callable[[], bool]) -> None:
    """Wait for it, for at most 60 s."""
    async with asyncio.timeout(60):
        while not so():  # noqa: ASYNC110 - what is waited for is in another process
            await asyncio.sleep(0.02)


@pytest.mark.req("S11")
def test_a_recorder_that_hangs_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is silent for too long, so it is ended and fronts are sent to another; a stop leaves no process."""
    monkeypatch.setattr(recorder_unit, "SILENT_S", 5.0)

    async def run() -> None:
        owner = Supervisor(tmp_path)
        unit = RecorderUnit(owner, tmp_path)
        unit.watch(LOGGED)
        await until(lambda: len(owner.places) == 1)
        first = unit.pid
        os.kill(first, signal.SIGSTOP)
        await until(lambda: len(owner.places) == 3)
        assert owner.places[1] is None
        assert owner.places[2] not in (None, owner.places[0])
        assert unit.pid != first
        assert gone(first)
        last = unit.pid
        await unit.stop(grace_s=10)
        assert gone(last)
        assert unit.pid == 0

    asyncio.run(run())


@pytest.mark.req("S11")
def test_there_is_a_recorder_where_there_is_a_reason(tmp_path: Path) -> None:
    """None for routes that neither log nor shadow; one for a log that was kept before, for its labels."""

    async def run() -> None:
        idle = RecorderUnit(Supervisor(tmp_path), tmp_path)
        idle.watch(PLAIN)
        assert (idle.pid, idle.status(None)) == (0, None)
        await idle.stop(grace_s=1)
        (tmp_path / FOLDER).mkdir()
        owner = Supervisor(tmp_path)
        late = RecorderUnit(owner, tmp_path)
        late.watch(PLAIN)
        await until(lambda: owner.said > 0)
        status = late.status(messages.Noted(rows=3))
        assert status is not None
        assert (status["pid"], status["starts"], status["rows"]) == (late.pid, 1, 3)
        await late.stop(grace_s=10)

    asyncio.run(run())
