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
        self._opened: tuple[Record, ...] = ()
        """That the gateway runs, as long as it could not be written down."""

    def begin(self, *records: Record) -> bool:
        """Write down that the gateway runs, before it does anything. Blocking.

        Returns:
            Whether the next start will know it, should this run be killed: by these records, or, on a full
            disk, because the journal does not say any more that the last run has ended.
        """
        try:
            self._journal.append(*records)
        except OSError as problem:
            log.error(
                "NOTHING CAN BE RECORDED: the gateway starts on a disk that takes no write. It serves what "
                "its journal and cache hold and can roll back; forward moves wait. Free the disk.",
                error=str(problem),
            )
            self.ok, self._opened = False, records[:1]
        else:
            return True
        try:
            self._journal.take_back_closed()
        except OSError:
            return False
        return True

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
            self._journal.append(*self._opened, self._snapshot("made up for"))
            self.ok, self._opened = True, ()
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
