"""Staying in touch with the control plane: asking for tables, sending reports, fetching files, whatever the
weather.

Everything is tried for ever with back-off and jitter, in threads of its own, and nothing that serves waits
for it. What a table or a report means is the supervisor's business; how the calls look is the link's.
"""

import asyncio
import contextlib
import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeVar

from modelkeep import telemetry
from modelkeep.core import errors
from modelkeep.core.observation import GatewayReply, GatewayReport
from modelkeep.core.routing import RoutingTable
from modelkeep.core.values import Digest
from modelkeep.serving.link import Link
from modelkeep.serving.options import GatewayOptions

WAIT_MAX_S = 5.0
"""Between two tries to reach a control plane that is away."""
SOON_S = 0.2
"""Between two reports that were asked for at once: "at once" must not become a storm."""
LAST_REPORT_S = 2.0
"""For the last report when stopping."""

T = TypeVar("T")
log = telemetry.Log("gateway.contact")


class Reporter(Protocol):
    """What the contact asks of the supervisor."""

    def accept(self, table: RoutingTable) -> None:
        """Take a table as what is wanted."""

    def make_report(self) -> GatewayReport:
        """What there is to tell."""

    async def taken(self, report: GatewayReport, reply: GatewayReply) -> None:
        """The control plane has this much of a report."""


class Contact:
    """The conversation with one control plane, or the lack of one."""

    def __init__(self, options: GatewayOptions, reporter: Reporter) -> None:
        self._options = options
        self._reporter = reporter
        self._link = Link(options) if options.server is not None else None
        self._threads = ThreadPoolExecutor(2, "link")
        self._now = asyncio.Event()
        self._back = asyncio.Event()
        """Set when one of the two conversations got an answer: the other need not wait out its back-off."""
        self._away = False
        self._last = time.monotonic()
        self._ever = False
        self.after = 0
        """The number of the newest table that was taken; 0 asks for the table whatever its number."""

    @property
    def exists(self) -> bool:
        return self._link is not None

    @property
    def silent_s(self) -> float:
        """Seconds since the control plane last answered, or since the start."""
        return time.monotonic() - self._last

    @property
    def age_s(self) -> float | None:
        """Seconds since the control plane last answered; None when it never did."""
        return self.silent_s if self._ever else None

    def reload(self) -> bool:
        """Ask for the whole table anew, now. Returns whether there is somebody to ask."""
        self.after = 0
        if self._link is not None:
            self._link.interrupt()
        return self._link is not None

    def hurry(self) -> None:
        """Report soon: something happened."""
        self._now.set()

    def fetch(self, digest: Digest) -> Iterator[bytes]:
        """The bytes of a file. Blocking.

        Raises:
            ServerUnavailable: there is no control plane, or it does not answer.
        """
        if self._link is None:
            raise errors.ServerUnavailable(
                "This gateway has no control plane to fetch files from; set --server."
            )
        return self._link.blob(digest)

    async def poll(self) -> None:
        """Ask for the table, for ever."""
        link, wait_s = self._link, self._options.backoff_first_s
        while link is not None:
            asked = self.after
            try:
                table = await self._in_thread(lambda: link.table(self.after))
            except errors.ModelkeepError as problem:
                if self.after != asked:
                    continue  # interrupted on purpose
                log.warning("No table was to be had.", error=problem.message, code=problem.code)
                # `_away` is for the reports to say: were it said here, each report that is taken would end
                # this wait, and a server that fails tables alone would be asked without a pause.
                self._back.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(wait_s * random.uniform(0.5, 1.0)):
                        await self._back.wait()
                wait_s = min(wait_s * 2, WAIT_MAX_S)
                continue
            wait_s = self._options.backoff_first_s
            self._heard()
            if table is not None and self.after == asked:
                self.after = table.number
                self._reporter.accept(table)

    async def report(self) -> None:
        """Report about once a second, and soon when something happened, for ever."""
        link, wait_s = self._link, self._options.report_every_s
        while link is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s * random.uniform(0.9, 1.1)):
                    await self._now.wait()
            self._now.clear()
            try:
                await self._send(link)
                wait_s = self._options.report_every_s
            except errors.ModelkeepError as problem:
                log.debug("A report was not taken.", error=problem.message, code=problem.code)
                self._away = True
                await asyncio.sleep(SOON_S)
                wait_s = min(wait_s * 2, WAIT_MAX_S)

    async def last_report(self) -> None:
        """Tell what is left to tell before the end, if anybody listens."""
        if self._link is not None:
            with contextlib.suppress(errors.ModelkeepError, TimeoutError):
                async with asyncio.timeout(LAST_REPORT_S):
                    await self._send(self._link)

    async def _send(self, link: Link) -> None:
        report = self._reporter.make_report()
        reply = await self._in_thread(lambda: link.report(report))
        self._heard()
        await self._reporter.taken(report, reply)

    async def _in_thread(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, call)

    def _heard(self) -> None:
        self._last = time.monotonic()
        self._ever = True
        if self._away:
            self._away = False
            self._back.set()
            self._now.set()

    def close(self) -> None:
        """End all calls under way."""
        if self._link is not None:
            self._link.close()
        self._threads.shutdown(wait=False, cancel_futures=True)
