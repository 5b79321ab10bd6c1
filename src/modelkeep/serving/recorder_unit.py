"""The supervisor's recorder: there when some route needs it, started again when it dies.

Nothing waits for it. Once there has been a log, feedback may come for it at any time, so from then on there
always is a recorder. What is recorded is not known here.
"""

import asyncio
import contextlib
import time
from pathlib import Path
from typing import Any, Protocol

from modelkeep import telemetry
from modelkeep.core.routing import RoutingTable
from modelkeep.serving import messages
from modelkeep.serving.handshake import OTHER_RELEASE, RECORDER
from modelkeep.serving.options import GatewayOptions
from modelkeep.serving.prediction_log import FOLDER
from modelkeep.serving.processes import BackOff, Child

SILENT_S = 60.0
"""A recorder says how it stands every second; one silent for so long hangs on its disk, and nothing is
logged.
"""

log = telemetry.Log("gateway.recorder")


class Owner(Protocol):
    """What the unit asks of the supervisor."""

    options: GatewayOptions

    def recorder_at(self, path: str | None) -> None:
        """Fronts reach the recorder here from now on; None: there is none."""

    def recorder_said(self, noted: messages.Noted) -> None:
        """What it compared, and how the log stands."""


class RecorderUnit:
    """The process and its restarts."""

    def __init__(self, owner: Owner, folder: Path) -> None:
        """
        Args:
            folder: of the sockets.
        """
        self.path: str | None = None
        """Where fronts reach it; None while there is none."""
        self.starts = 0
        self._owner = owner
        self._folder = folder
        self._table: RoutingTable | None = None
        self._backoff = BackOff(owner.options)
        self._child: Child | None = None
        self._ended = asyncio.Event()
        self._exit_code = 0
        self._stop = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int:
        return self._child.pid if self._child is not None and not self._ended.is_set() else 0

    def status(self, noted: messages.Noted | None) -> dict[str, Any] | None:
        """How it stands, for a person; None where there is none."""
        if self._task is None:
            return None
        noted = noted or messages.Noted()
        return {
            "pid": self.pid,
            "starts": self.starts,
            "rows": noted.rows,
            "lost": noted.lost,
            "size_bytes": noted.size_bytes,
            "problem": noted.problem,
        }

    def watch(self, table: RoutingTable) -> None:
        """Record what this table asks for; starts the process when there is a reason to have one."""
        self._table = table
        wanted = any(route.log_ppm > 0 or route.shadow is not None or route.judged for route in table.routes)
        if self._task is None:
            if not self._stop.is_set() and (wanted or (self._owner.options.data / FOLDER).is_dir()):
                self._task = asyncio.get_running_loop().create_task(self._run())
        elif self._child is not None and not self._ended.is_set():
            self._child.send(self._message(self._path()))

    def _path(self) -> str:
        return str(self._folder / f"recorder-{self.starts}.sock")

    def _message(self, path: str) -> messages.Watch:
        assert self._table is not None
        options = self._owner.options
        return messages.Watch(
            data=str(options.data),
            path=path,
            max_bytes=options.log_max_bytes,
            log_level=options.log_level,
            routes=self._table.routes,
            versions=self._table.versions,
        )

    async def _run(self) -> None:
        while not self._stop.is_set():
            self._ended = asyncio.Event()
            self.starts += 1
            child = Child(messages.FromRecorder, self._heard, self._gone, name="recorder")
            try:
                await child.start(RECORDER, keep_output=False, environment=self._owner.options.environment)
            except OSError as problem:
                log.error("No recorder could be started.", error=str(problem))
                self._ended.set()
            else:
                self._child = child
                child.send(self._message(self._path()))
            while not self._ended.is_set():
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(1.0):
                        await self._ended.wait()
                if child.exited():
                    child.end()
                elif time.monotonic() - child.heard > SILENT_S:
                    log.error("The recorder hangs and is ended.", silent_s=SILENT_S)
                    child.kill()
            self._lost()
            if self._stop.is_set():
                return
            now = time.monotonic()
            wait_s = self._backoff.crashed(now, now - child.started)
            if self._exit_code == OTHER_RELEASE:
                log.error("The recorder's files are of another release; restart the gateway.")
            else:
                log.error("The recorder died and is started again.", code=self._exit_code, again_in_s=wait_s)
            await asyncio.sleep(wait_s)

    def _lost(self) -> None:
        if self.path is not None:
            with contextlib.suppress(OSError):
                Path(self.path).unlink(missing_ok=True)
            self.path = None
            self._owner.recorder_at(None)

    def _heard(self, message: messages.FromRecorder) -> None:
        if self.path is None:
            self.path = self._path()
            self._owner.recorder_at(self.path)
        self._owner.recorder_said(message)

    def _gone(self, code: int) -> None:
        self._exit_code = code
        self._ended.set()

    async def stop(self, *, grace_s: float) -> None:
        """Have it write what it has, then end it."""
        self._stop.set()
        child = self._child
        if child is not None and not self._ended.is_set():
            child.send(messages.Stop())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(grace_s):
                    await self._ended.wait()
            child.kill()
            child.end()
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
