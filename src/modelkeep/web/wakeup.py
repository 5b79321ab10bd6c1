"""A bell between the store's writer thread and coroutines that wait for a commit. It carries no data.

Waiters take a ticket before they look at the state, so that a commit between the look and the wait is not
missed.
"""

import asyncio


class Wakeup:
    """Rung from any thread, heard by every coroutine that holds a ticket from before."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tickets: set[asyncio.Future[None]] = set()

    def start(self) -> None:
        """Bind to the running event loop."""
        self._loop = asyncio.get_running_loop()

    def ticket(self) -> asyncio.Future[None]:
        """A future that is done at the next ring."""
        future = asyncio.get_running_loop().create_future()
        self._tickets.add(future)
        future.add_done_callback(self._tickets.discard)
        return future

    def ring(self) -> None:
        """Wake all who wait; safe from any thread, and a no-op before the start and after the end of the
        loop.
        """
        loop = self._loop
        if loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        for future in list(self._tickets):
            if not future.done():
                future.set_result(None)
