"""The journal's thread: records are made durable in the order they are given, and nothing on the loop waits
for a disk.

When the disk refuses, forward moves have to wait and rollbacks have not; what could not be written is made up
for by a snapshot as soon as the disk takes one. What is written is the supervisor's to say.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor

from modelkeep import telemetry
from modelkeep.serving.journal import Journal, Record

log = telemetry.Log("gateway.journal")


class Scribe:
    """Writes a journal. `snapshot` gives the state as it is when it is called."""

    def __init__(
        self, journal: Journal, snapshot: Callable[[str], Record], thread: Executor | None = None
    ) -> None:
        self._journal = journal
        self._snapshot = snapshot
        self._thread = thread or ThreadPoolExecutor(1, "journal")
        self.ok = True
        """Whether everything that happened is written down."""

    async def write(self, *records: Record) -> bool:
        """Make records durable. False when the disk refuses."""
        try:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._append, records)
        except OSError as problem:
            if self.ok:
                log.error(
                    "The journal cannot be written; forward moves wait. Free the disk.", error=str(problem)
                )
            self.ok = False
            return False
        return True

    async def make_up(self) -> None:
        """Write down what a refusing disk has missed, if it did."""
        if not self.ok and await self.write():
            log.info("The journal is whole again.")

    def _append(self, records: tuple[Record, ...]) -> None:
        if not self.ok:
            self._journal.append(self._snapshot("made up for"))
            self.ok = True
        if records:
            self._journal.append(*records)

    async def compact(self) -> None:
        """Write the file anew when it has grown large."""
        compact = self._journal.compact
        try:
            await asyncio.get_running_loop().run_in_executor(
                self._thread, compact, lambda: self._snapshot("compacted")
            )
        except OSError as problem:
            log.error("The journal cannot be compacted.", error=str(problem))

    def close(self) -> None:
        """Finish what was given, and let go of the file."""
        self._thread.shutdown(wait=True)
        self._journal.close()
