"""The way back from the store's writer to the event loop: one crossing for all answers of a commit.

A crossing wakes the loop's thread, and the two threads share one interpreter lock; with one for each job the
loop would be woken, and the writer stopped, in the middle of telling the others. This file does not know what
was written.
"""

import asyncio
import contextlib
from collections import deque
from typing import Any


class Pending:
    """One write that a coroutine of the loop waits for; the writer's `Outcome` of it."""

    __slots__ = ("_commits", "_error", "_told", "_value")

    def __init__(self, commits: "Commits", told: asyncio.Future[None]) -> None:
        self._commits = commits
        self._told = told
        self._value: Any = None
        self._error: BaseException | None = None

    async def answer(self) -> Any:
        """What the job returned. Raises what it raised."""
        await self._told
        if self._error is not None:
            raise self._error
        return self._value

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The loop of whoever waits."""
        return self._told.get_loop()

    def wake(self) -> None:
        """Have `answer` go on, on the loop, if it still waits."""
        if not self._told.done():
            self._told.set_result(None)

    # -------------------------------------------------------------------------------- on the writer's thread

    def set_running_or_notify_cancel(self) -> bool:
        """Whether somebody still waits."""
        return not self._told.cancelled()

    def set_result(self, result: Any, /) -> None:
        """The job returned, and is on disk."""
        self._value = result
        self._commits.tell(self)

    def set_exception(self, exception: BaseException | None, /) -> None:
        """The job ended with an error."""
        self._error = exception
        self._commits.tell(self)


class Commits:
    """The writes that coroutines of one event loop wait for."""

    def __init__(self) -> None:
        self._done: deque[Pending] = deque()
        self._rung = False

    def expect(self) -> Pending:
        """A write that the running coroutine is going to wait for."""
        return Pending(self, asyncio.get_running_loop().create_future())

    def tell(self, pending: Pending) -> None:
        """Hand over what came of a write; safe from any thread.

        Only the first one since the loop last looked rings: it looks after it has taken the ring back, so
        that whatever was put there before or while it looks is found.
        """
        self._done.append(pending)
        if not self._rung:
            self._rung = True
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                pending.loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        self._rung = False
        while self._done:
            self._done.popleft().wake()
