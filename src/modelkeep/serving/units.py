"""The supervisor's two kinds of unit: a version that is fetched, started, watched and restarted, and a front
likewise.

A unit keeps its process alive and says what phase it is in; it calls back when something changed. It moves no
traffic and writes no journal: what a change means is for the supervisor.
"""

import asyncio
import contextlib
import os
import random
import socket
import time
from pathlib import Path
from typing import Any, Protocol

from modelkeep import telemetry
from modelkeep.core import errors
from modelkeep.core.observation import VersionPhase, VersionReport
from modelkeep.core.routing import VersionKey, VersionSpec
from modelkeep.serving import messages
from modelkeep.serving.cache import Cache, Fetch
from modelkeep.serving.handshake import FRONT, OTHER_RELEASE, WORKER
from modelkeep.serving.options import ERROR_TEXT_MAX, GatewayOptions
from modelkeep.serving.processes import BackOff, Child

FETCH_TRIES = 5
"""After so many failures a version's fetch counts as failed; it is tried on nevertheless."""
FETCH_WAIT_MAX_S = 10.0
PING_EVERY_S = 5.0
BUSY_VERSIONS = 2
"""Versions that share the cores when nobody says how: the stable one and the candidate."""
ANOTHER_RELEASE = (
    "The gateway's files are of another release than the gateway that runs. Restart the gateway."
)
STOP_GRACE_S = 1.0
"""Beyond what a worker asks for itself to become quiet."""

log = telemetry.Log("gateway.units")


class Owner(Protocol):
    """What units ask of the supervisor."""

    options: GatewayOptions

    def version_changed(self, unit: "VersionUnit") -> None:
        """The phase of a version is another one."""

    def version_crashed(self, unit: "VersionUnit") -> None:
        """A worker that was serving died."""

    def version_worked(self, unit: "VersionUnit", worked: messages.Worked) -> None:
        """A worker says what it did."""

    def front_said(self, unit: "FrontUnit", message: messages.FromFront) -> None: ...

    def front_hello(self, unit: "FrontUnit") -> list[messages.ToFront]:
        """What a front that was just started has to know."""


class VersionUnit:
    """One version on this gateway, from fetching its files to the end of its last process."""

    def __init__(
        self,
        owner: Owner,
        spec: VersionSpec,
        cache: Cache,
        fetch: Fetch,
        path: Path,
        loads: asyncio.Semaphore,
    ) -> None:
        self.spec = spec
        self.phase = VersionPhase.FETCHING
        self.error: str | None = None
        self.path = path
        self.is_stable = False
        """Whether some route's stable version is this: then it is never given up."""
        self._owner = owner
        self._cache = cache
        self._fetch = fetch
        self._loads = loads
        self._backoff = BackOff(owner.options)
        self._child: Child | None = None
        self._loaded: asyncio.Future[messages.Loaded | messages.LoadFailed | None] | None = None
        self._ended = asyncio.Event()
        self._exit_code = 0
        self._fetching = True
        self._fetch_tries = 0
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._stop = asyncio.Event()

    def start(self) -> None:
        """Begin."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    def retry(self, *, afresh: bool) -> None:
        """Try a failed version again now: something about its routes changed.

        Args:
            afresh: somebody asks for it anew, so what went wrong before counts no more and is told no more.
        """
        if self.phase is VersionPhase.FAILED:
            if afresh:
                self._backoff.forget()
                self._fetch_tries = 0
                self._set(VersionPhase.FETCHING if self._fetching else VersionPhase.STARTING)
            self._wake.set()

    @property
    def pid(self) -> int:
        return self._child.pid if self._child is not None else 0

    def report(self) -> VersionReport:
        """How it stands, for the control plane."""
        return VersionReport(
            key=self.spec.key,
            phase=self.phase,
            crashes=self._backoff.total,
            error=self.error,
            memory_bytes=telemetry.memory_bytes(self.pid) if self.pid else 0,
        )

    def _set(self, phase: VersionPhase, error: str | None = None) -> None:
        changed = phase is not self.phase
        self.phase, self.error = phase, error
        if changed:
            log.info("A version changed its phase.", version=self.spec.label, phase=phase, error=error)
            self._owner.version_changed(self)

    async def _run(self) -> None:
        folder = await self._fetched()
        refetched = False
        while not self._stop.is_set():
            if self.phase is not VersionPhase.FAILED:
                self._set(
                    VersionPhase.RESTARTING if self._backoff.total else VersionPhase.STARTING, self.error
                )
            async with self._loads:
                outcome = await self._load(folder)
            if isinstance(outcome, messages.Loaded):
                log.info(
                    "A version is loaded.",
                    version=self.spec.label,
                    runtime=outcome.runtime,
                    took_s=outcome.took_s,
                    together=outcome.together,
                )
                self._set(VersionPhase.READY)
                await self._watch()
                if self._stop.is_set():
                    break
                await self._after_crash()
            elif outcome is None:  # killed from outside while it was loading
                await self._after_crash()
            elif outcome.code == errors.DigestMismatch.code and not refetched:
                log.error("A cached file is not what it was; it is fetched anew.", version=self.spec.label)
                refetched = True
                self._set(VersionPhase.FETCHING, outcome.error)
                await asyncio.to_thread(self._cache.discard, self.spec)
                folder = await self._fetched(outcome.error)
            else:
                await self._after_failure(outcome.error)

    async def _fetched(self, error: str | None = None) -> Path:
        self._fetching, self._fetch_tries = True, 0
        while True:
            try:
                folder = await asyncio.to_thread(self._cache.prepare, self.spec, self._fetch)
            except errors.ModelkeepError as problem:
                self._fetch_tries += 1
                tries = self._fetch_tries
                text = f"{error} {problem.message}" if error else problem.message
                log.warning("A version cannot be fetched.", version=self.spec.label, error=text, tries=tries)
                self._set(VersionPhase.FAILED if tries >= FETCH_TRIES else VersionPhase.FETCHING, text)
            else:
                self._fetching = False
                return folder
            wait_s = min(self._owner.options.backoff_first_s * 2 ** min(tries - 1, 10), FETCH_WAIT_MAX_S)
            self._wake.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s * random.uniform(0.8, 1.2)):
                    await self._wake.wait()

    async def _load(self, folder: Path) -> messages.Loaded | messages.LoadFailed | None:
        """Start a process and have it load the version. None: it was killed meanwhile."""
        options = self._owner.options
        loop = asyncio.get_running_loop()
        self._loaded, self._ended = loop.create_future(), asyncio.Event()
        self.path.unlink(missing_ok=True)
        child = self._child = Child(messages.FromWorker, self._heard, self._gone, name=self.spec.label)
        threads = options.worker_threads or max(1, (os.cpu_count() or 1) // BUSY_VERSIONS)
        names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
        try:
            environment = {
                **options.environment,
                **dict.fromkeys(names, str(threads)),
                "HOME": str(folder),
                "PYTHONDONTWRITEBYTECODE": "1",
                "ORT_DISABLE_TELEMETRY": "1",  # ONNX Runtime would note what it does, and send it home
            }
            await child.start(WORKER, keep_output=True, environment=environment)
        except OSError as problem:
            return messages.LoadFailed(code="UNAVAILABLE", error=f"No process could be started: {problem}.")
        child.send(
            messages.Load(
                spec=self.spec,
                folder=str(folder),
                path=str(self.path),
                threads=threads,
                memory_bytes=options.worker_memory_bytes,
                batch_rows_max=options.batch_rows_max,
                batch_max_bytes=options.batch_max_bytes,
            )
        )
        try:
            async with asyncio.timeout(options.load_timeout_s):
                return await asyncio.shield(self._loaded)
        except TimeoutError:
            child.kill()
            text = f"The version did not load within {options.load_timeout_s:g} s."
            return messages.LoadFailed(code=errors.TimedOut.code, error=text)

    def _heard(self, message: messages.FromWorker) -> None:
        match message:
            case messages.Loaded() | messages.LoadFailed():
                if self._loaded is not None and not self._loaded.done():
                    self._loaded.set_result(message)
            case messages.Worked():
                self._owner.version_worked(self, message)
            case messages.Pong():
                pass

    def _gone(self, code: int) -> None:
        self._exit_code = code
        self._ended.set()
        if self._loaded is not None and not self._loaded.done():
            output = self._child.output[-ERROR_TEXT_MAX:] if self._child is not None else ""
            if code < 0:
                self._loaded.set_result(None)
            elif code == OTHER_RELEASE:
                self._loaded.set_result(
                    messages.LoadFailed(code=errors.WorkerUnavailable.code, error=output or ANOTHER_RELEASE)
                )
            else:
                text = f"The process exited with {code} while it was loading. {output}".strip()
                self._loaded.set_result(messages.LoadFailed(code=errors.WorkerUnavailable.code, error=text))

    async def _watch(self) -> None:
        """Until the process ends: ping it, and end it when it is silent for too long."""
        child = self._child
        assert child is not None
        number, pinged = 0, time.monotonic()
        while not self._ended.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    await self._ended.wait()
            now = time.monotonic()
            if child.exited():
                child.end()
            elif now - child.heard > self._owner.options.hang_s:
                log.error("A worker hangs and is ended.", version=self.spec.label)
                child.kill()
            elif now - pinged > PING_EVERY_S:
                number, pinged = number + 1, now
                child.send(messages.Ping(number=number))

    async def _after_crash(self) -> None:
        child = self._child
        now = time.monotonic()
        wait_s = self._backoff.crashed(now, now - child.started if child is not None else 0.0)
        if self.is_stable:
            # Its callers have nowhere else to go: it is back before those who wait for it have to be refused.
            wait_s = min(wait_s, self._owner.options.hold_s / 2)
        output = child.output[-ERROR_TEXT_MAX:] if child is not None else ""
        text = f"The worker died with {self._exit_code}. {output}".strip()
        log.error(
            "A worker died.", version=self.spec.label, code=self._exit_code, output=output, again_in_s=wait_s
        )
        given_up = self._backoff.looping and not self.is_stable
        self._set(VersionPhase.FAILED if given_up else VersionPhase.RESTARTING, text)
        self._owner.version_crashed(self)
        await self._pause(wait_s)

    async def _after_failure(self, error: str) -> None:
        log.error("A version cannot be loaded.", version=self.spec.label, error=error)
        self._set(VersionPhase.FAILED, error)
        await self._pause(self._owner.options.backoff_max_s)

    async def _pause(self, wait_s: float) -> None:
        """Wait before the next start; a failed version that nothing depends on waits until it is asked for
        again."""
        self._wake.clear()
        while not self._stop.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._wake.wait()
                return
            if self.phase is not VersionPhase.FAILED or self.is_stable:
                return

    async def stop(self, *, grace_s: float) -> None:
        """Let the worker finish what it has, then end it and forget the version."""
        self._stop.set()
        serving = self.phase is VersionPhase.READY
        self._set(VersionPhase.DRAINING)
        self._wake.set()
        child = self._child
        if child is not None and serving and not self._ended.is_set():
            child.send(messages.Stop())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(grace_s + STOP_GRACE_S):
                    await self._ended.wait()
            child.kill()
            child.end()
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        if self._child is not None:
            self._child.kill()
            self._child.end()
        self.path.unlink(missing_ok=True)


class FrontUnit:
    """One front: its listening socket, which outlives it, and its process."""

    def __init__(self, owner: Owner, index: int, listener: socket.socket) -> None:
        self.index = index
        self.acked = -1
        self.last_sent: dict[VersionKey, float] = {}
        self.connected: set[VersionKey] = set()
        self.collected = asyncio.Event()
        self.drained = asyncio.Event()
        self._owner = owner
        self._listener = listener
        self._child: Child | None = None
        self._ended = asyncio.Event()
        self._exit_code = 0
        self._task: asyncio.Task[None] | None = None
        self.starts = 0

    def start(self) -> None:
        """Begin."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    @property
    def alive(self) -> bool:
        return self._child is not None and not self._ended.is_set()

    @property
    def pid(self) -> int:
        return self._child.pid if self._child is not None else 0

    def send(self, message: messages.ToFront) -> None:
        """Say something; a front that is being replaced is told everything when it starts."""
        if self._child is not None and not self._ended.is_set():
            self._child.send(message)

    def kill(self) -> None:
        """End the process now; another takes its place."""
        if self._child is not None:
            self._child.kill()

    async def _run(self) -> None:
        wait_s = 0.05
        while not self.drained.is_set():
            self._ended = asyncio.Event()
            self.connected.clear()
            self.acked = -1
            started = time.monotonic()
            child = Child(messages.FromFront, self._heard, self._gone, name=f"front-{self.index}")
            try:
                await child.start(
                    FRONT,
                    extra_fds=(self._listener.fileno(),),
                    keep_output=False,
                    environment=self._owner.options.environment,
                )
            except OSError as problem:
                log.error("No front could be started.", error=str(problem))
                self._ended.set()
            else:
                self.starts += 1
                self._child = child
                for message in self._owner.front_hello(self):
                    child.send(message)
            while not self._ended.is_set():
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(1.0):
                        await self._ended.wait()
                if child.exited():
                    child.end()
            if self.drained.is_set():
                return
            wait_s = 0.05 if time.monotonic() - started > 10 else min(wait_s * 2, 5.0)
            if self._exit_code == OTHER_RELEASE:
                log.error("A front cannot be started.", front=self.index, error=ANOTHER_RELEASE)
            else:
                log.error("A front died and is replaced.", front=self.index)
            await asyncio.sleep(wait_s)

    def _heard(self, message: Any) -> None:
        self._owner.front_said(self, message)

    def _gone(self, code: int) -> None:
        self._exit_code = code
        self._ended.set()
        self.collected.set()

    async def stop(self, *, grace_s: float) -> None:
        """Let the front answer what it has, then end it."""
        self.drained.set()
        self.send(messages.Drain(close=True))
        self._listener.close()
        if self._child is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(grace_s):
                    await self._ended.wait()
            self._child.kill()
            self._child.end()
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
