"""Children and their back-off, and the log line of a process."""

import asyncio
import gc
import io
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from modelkeep import telemetry
from modelkeep.serving import handshake, messages
from modelkeep.serving.options import GatewayOptions
from modelkeep.serving.processes import BackOff, Child, new_loop

OPTIONS = GatewayOptions(data=Path("/unused"))


@pytest.mark.req("S1")
@pytest.mark.parametrize("runner", [new_loop, asyncio.Runner], ids=["fastest", "asyncio"])
def test_a_child_that_ended_closes_nobody_elses_file(
    monkeypatch: pytest.MonkeyPatch, runner: Callable[[], asyncio.Runner]
) -> None:
    """Its pipe is closed once: whoever opens something meanwhile, and gets the same number, keeps it."""
    strangers: list[int] = []

    class Pipe(io.FileIO):
        def close(self) -> None:
            strangers.append(os.open(os.devnull, os.O_RDONLY))  # as another thread would at this moment
            super().close()

    def fdopen(descriptor: int, mode: str, *, buffering: int, closefd: bool) -> io.FileIO:
        assert (mode, buffering) == ("rb", 0)
        return Pipe(descriptor, "rb", closefd=closefd)

    async def one() -> None:
        ended = asyncio.Event()
        child = Child(messages.FromWorker, lambda _: None, lambda _: ended.set(), name="short")
        await child.start(handshake.WORKER, keep_output=True, environment={})
        child.kill()
        await ended.wait()

    monkeypatch.setattr(os, "fdopen", fdopen)
    with runner() as loop:
        loop.run(one())
    gc.collect()
    assert strangers
    for stranger in strangers:
        os.close(stranger)


@pytest.mark.req("S1")
def test_back_off_doubles_with_jitter_up_to_its_bound() -> None:
    """From 0.1 s to 30 s, each within a fifth; a healthy life starts it over."""
    backoff, expected = BackOff(OPTIONS), 0.1
    for number in range(12):
        wait_s = backoff.crashed(number * 1000.0, 1.0)
        assert expected * 0.8 <= wait_s <= expected * 1.2
        expected = min(expected * 2, 30.0)
    assert expected == 30.0
    assert backoff.crashed(99_999.0, 61.0) <= 0.12
    assert backoff.total == 13


def test_five_deaths_in_a_minute_are_a_loop() -> None:
    """Five within sixty seconds, and not five over an hour."""
    quick, slow = BackOff(OPTIONS), BackOff(OPTIONS)
    for number in range(5):
        assert not quick.looping
        quick.crashed(number * 14.9, 1.0)
        slow.crashed(number * 15.1, 1.0)
    assert quick.looping
    assert not slow.looping


def test_a_log_line_is_json_with_its_context() -> None:
    """Facts and context stand in the line; nothing can break out of it; long values are cut."""
    stream = io.StringIO()
    before = logging.getLogger().handlers[:]
    try:
        telemetry.configure(stream=stream)
        log = telemetry.Log("part")
        with telemetry.context(request_id="r1"):
            log.warning("something\nhappened", name="x", size=3, text="y" * 5_000)
        log.debug("not at this level")
        try:
            raise ValueError("boom")
        except ValueError:
            log.failure("it failed")
    finally:
        logging.getLogger().handlers[:] = before
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert len(lines) == 2
    assert (lines[0]["level"], lines[0]["part"], lines[0]["request_id"]) == ("warning", "part", "r1")
    assert (lines[0]["message"], lines[0]["name_"], lines[0]["size"]) == ("something\nhappened", "x", 3)
    assert len(lines[0]["text"]) == telemetry.VALUE_MAX
    assert "ValueError: boom" in lines[1]["stack"]
    assert "request_id" not in lines[1]


def test_a_process_knows_what_it_uses() -> None:
    """Processor time, memory and descriptors of this very process; nothing of one that is gone."""
    use = telemetry.process_use()
    assert use.pid == os.getpid()
    assert use.cpu_s > 0
    assert use.memory_bytes > 1_000_000
    assert use.descriptors > 0
    assert telemetry.memory_bytes(2**22 + 1) == 0
