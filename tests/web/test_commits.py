"""The way back from the writer to the event loop: nothing told is lost, and one ring serves many."""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from functools import wraps
from typing import Any

import pytest

from modelkeep.web.commits import Commits, Pending

pytestmark = pytest.mark.req("U4")


def on_a_loop(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Run a test's coroutine on an event loop of its own."""

    @wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        async def whole() -> None:
            await test(*args, **kwargs)

        asyncio.run(whole())

    return run


def in_thread(work: Any) -> Awaitable[None]:
    """Run something as the writer would: on a thread of its own."""
    return asyncio.to_thread(work)


@on_a_loop
async def test_an_answer_is_what_the_job_returned() -> None:
    """A value told on another thread comes out of the wait."""
    pending = Commits().expect()
    assert pending.set_running_or_notify_cancel()
    await in_thread(lambda: pending.set_result("kept"))
    assert await pending.answer() == "kept"


@pytest.mark.parametrize("error", [KeyError("gone"), StopIteration()])
@on_a_loop
async def test_an_error_is_raised_where_somebody_waits(error: Exception) -> None:
    """An error told on another thread is raised by the wait; one that no coroutine may raise does no harm to
    others."""
    commits = Commits()
    failed, fine = commits.expect(), commits.expect()

    def tell() -> None:
        failed.set_exception(error)
        fine.set_result(1)

    await in_thread(tell)
    with pytest.raises((KeyError, RuntimeError)):
        await failed.answer()
    assert await fine.answer() == 1


@on_a_loop
async def test_one_ring_for_all_answers_of_a_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many answers are told before the loop looks, it is woken once; afterwards it is woken anew."""
    loop, commits = asyncio.get_running_loop(), Commits()
    rings: list[object] = []
    ring = loop.call_soon_threadsafe

    def counted(callback: Any, *args: Any, **kw: Any) -> asyncio.Handle:
        rings.append(callback)
        return ring(callback, *args, **kw)

    monkeypatch.setattr(loop, "call_soon_threadsafe", counted)
    for expected in (1, 2):
        group = [commits.expect() for _ in range(100)]
        for number, pending in enumerate(group):
            pending.set_result(number)
        assert len(rings) == expected
        assert [await pending.answer() for pending in group] == list(range(100))


@on_a_loop
async def test_nothing_told_while_the_loop_looks_is_lost() -> None:
    """Threads tell thousands of answers while the loop takes them; each is found."""
    commits, each = Commits(), 500
    groups = [[commits.expect() for _ in range(each)] for _ in range(4)]

    def tell(group: list[Pending]) -> None:
        for number, pending in enumerate(group):
            pending.set_result(number)

    threads = [threading.Thread(target=tell, args=(group,)) for group in groups]
    for thread in threads:
        thread.start()
    async with asyncio.timeout(20):
        for group in groups:
            assert [await pending.answer() for pending in group] == list(range(each))
    for thread in threads:
        thread.join()


@on_a_loop
async def test_who_waits_no_more_is_not_run_and_not_told() -> None:
    """A job whose caller was cancelled is not begun; one that was begun before is told to nobody."""
    commits = Commits()
    pending, later = commits.expect(), commits.expect()
    waiting = asyncio.ensure_future(pending.answer())
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait([waiting])
    assert not pending.set_running_or_notify_cancel()
    pending.set_result("too late")
    later.set_result("in time")
    assert await later.answer() == "in time"


def test_a_closed_loop_is_no_trouble_for_the_writer() -> None:
    """What is told after the end of the loop is dropped."""

    async def expect() -> Pending:
        return Commits().expect()

    pending = asyncio.run(expect())
    pending.set_result("nobody hears it")
    assert pending.set_running_or_notify_cancel()
