"""The supervisor's two kinds of unit: a version with its files and its workers, and a front.

A unit keeps its processes alive and says what phase it is in; it calls back when something changed. It moves
no traffic and writes no journal: what a change means is for the supervisor.
"""

import asyncio
import contextlib
import random
import socket
import sys
import time
from pathlib import Path
from typing import Any, Protocol

from modelkeep import telemetry
from modelkeep.core import errors
from modelkeep.core.observation import FieldMisses, VersionPhase, VersionReport
from modelkeep.core.routing import VersionKey, VersionSpec
from modelkeep.serving import messages
from modelkeep.serving.cache import Cache, Fetch
from modelkeep.serving.devices import Cards, Device, Wish
from modelkeep.serving.environments import Environments, lock_of
from modelkeep.serving.growth import Pace
from modelkeep.serving.handshake import FRONT, OTHER_RELEASE
from modelkeep.serving.options import GatewayOptions
from modelkeep.serving.pauses import Pauses
from modelkeep.serving.processes import Child
from modelkeep.serving.workers import ANOTHER_RELEASE, WorkerUnit

FETCH_TRIES = 5
"""After so many failures a version's fetch counts as failed; it is tried on nevertheless."""
FETCH_WAIT_MAX_S = 10.0
LEAVE_GRACE_S = 0.5
"""Between the word that a process gets nothing new and the word to stop: what was sent before has arrived."""
FRONT_FIRST_PAUSE_S, FRONT_LONGEST_PAUSE_S = 0.05, 5.0
"""Before a front that died is replaced: callers wait in its listening socket meanwhile."""
FRONT_HEALTHY_S = 10.0
"""Of life, after which what was before does not count against it."""

log = telemetry.Log("gateway.units")


class Owner(Protocol):
    """What units ask of the supervisor."""

    options: GatewayOptions

    def version_changed(self, unit: "VersionUnit") -> None:
        """The phase of a version is another one."""

    def worker_changed(self, unit: "VersionUnit", worker: WorkerUnit) -> None:
        """One of a version's processes serves now, or does not any more."""

    def worker_leaves(self, unit: "VersionUnit", worker: WorkerUnit) -> None:
        """One of a version's processes is to get nothing new."""

    def version_rests(self, unit: "VersionUnit") -> None:
        """The last process of a version that is put to sleep has ended."""

    def version_crashed(self, unit: "VersionUnit") -> None:
        """A worker that was serving died."""

    def version_worked(self, unit: "VersionUnit", worked: messages.Worked) -> None:
        """A worker says what it did."""

    def front_said(self, unit: "FrontUnit", message: messages.FromFront) -> None: ...

    def front_hello(self, unit: "FrontUnit") -> list[messages.ToFront]:
        """What a front that was just started has to know."""


class Rest:
    """What is kept of a version while it sleeps. Moments are monotonic seconds."""

    def __init__(self) -> None:
        self.memory_bytes = 0
        """What its processes held when they were last looked at; 0 before the first time."""
        self.used_s = 0.0
        """When it was last asked for anything."""
        self.asked_s: float | None = None
        """Since when requests wait for it to be loaded."""
        self.heard_s = 0.0
        """When a front last said so."""
        self.ready_s = 0.0
        """When it was last loaded."""
        self.loads = 0
        """Times that it was loaded."""
        self.failure: str | None = None
        """Why it could not be loaded the last time."""
        self.failed_s = 0.0


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
        environments: Environments | None = None,
        cards: Cards | None = None,
    ) -> None:
        self.spec = spec
        self.cards = cards or Cards(Wish(Device.CPU), ())
        self.off_card: str | None = None
        """Why it is not tried on a card again, where it was in vain."""
        self.options = owner.options
        self.loads = loads
        self.phase = VersionPhase.FETCHING
        self.error: str | None = None
        self.python = sys.executable
        """The interpreter of its processes."""
        self.environment: str | None = None
        """The key of the environment that the interpreter is of; None where that is the gateway's own."""
        self.is_stable = False
        """Whether some route's stable version is this: then it is never given up."""
        self.may_sleep = False
        """Whether it need not be loaded while nobody asks for it."""
        self.landing = False
        """Whether callers were just taken back to it: until it serves, it is loaded beyond the budget."""
        self.wanted = 1
        """Processes that it should have while it does not sleep."""
        self.workers: list[WorkerUnit] = []
        self._path = path
        self._started = 0
        self._owner = owner
        self._cache = cache
        self._fetch = fetch
        self._environments = environments
        self._building = False
        self._folder: Path | None = None
        self._fetched = asyncio.Event()
        self._generation = 0
        self._fetch_tries = 0
        self._fetch_error: str | None = None
        self._past_crashes = 0
        self._outgrown: WorkerUnit | None = None
        """One that another is to take the place of, once that is loaded."""
        self._replaced = 0
        self._pace = Pace()
        self._misses = FieldMisses()
        """Of processes that it has no more."""
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.asleep = False
        """Whether it has no process until somebody asks for it."""
        self.rest = Rest()
        self._leaving: set[asyncio.Task[None]] = set()
        self._stopping = False

    def start(self, workers: int, *, asleep: bool = False) -> None:
        """Begin, with so many processes, or with the files alone."""
        self.asleep = asleep
        self._begin_fetch()
        self.have(workers)

    def have(self, workers: int) -> None:
        """Have so many processes from now on, or once it is woken: more are started beside the others, fewer
        finish what they have."""
        self.wanted = max(1, workers)
        if self.asleep:
            self._outgrown = None
        elif self._outgrown is not None:
            self._relieve(self._outgrown)  # there may be enough others now
        number = 0 if self.asleep else self.wanted + (self._outgrown is not None)
        while len(self.workers) < number and not self._stopping:
            self._started += 1
            worker = WorkerUnit(self, self._path.with_name(f"{self._path.name}-{self._started}.sock"))
            self.workers.append(worker)
            worker.start()
        for worker in self.workers[number:]:
            self._dismiss(worker)

    def _dismiss(self, worker: WorkerUnit) -> None:
        """Have a process get nothing new, finish what it has, and end."""
        self.workers.remove(worker)
        self._past_crashes += worker.backoff.total
        if worker is self._outgrown:
            self._outgrown = None
        if not self.asleep:
            self._owner.worker_leaves(self, worker)
        task = asyncio.get_running_loop().create_task(self._let_go(worker))
        self._leaving.add(task)
        task.add_done_callback(self._has_left)

    async def _let_go(self, worker: WorkerUnit) -> None:
        await asyncio.sleep(0.0 if self.asleep else LEAVE_GRACE_S)
        await worker.stop(grace_s=self.options.drain_s)

    def _has_left(self, task: asyncio.Task[None]) -> None:
        self._leaving.discard(task)
        if self.asleep and not self._leaving and not self._stopping:
            self._owner.version_rests(self)

    def wake(self) -> None:
        """Load it: somebody asks for it, or it may not sleep any more."""
        self.asleep = False
        self.rest.failure, self.rest.asked_s = None, None
        self.have(self.wanted)
        self._reckon()

    def sleep(self) -> None:
        """Have its processes finish what they have and end. What it failed with stays known. Who asks for it
        meanwhile is heard: the callers' side is told before the processes are."""
        self.asleep = True
        if self.phase is VersionPhase.FAILED:
            self.rest.failed_s = time.monotonic()
            if self.fetched:  # else what went wrong is the fetch's, which goes on
                self.rest.failure = self.error
        self._reckon()
        self.have(self.wanted)

    def let_sleep(self, may: bool) -> None:
        """Say whether it may sleep. What was needed until now counts as used until now: a version that
        callers were just brought back to is not put to sleep before them."""
        if may and not self.may_sleep:
            self.rest.used_s = max(self.rest.used_s, time.monotonic())
        self.may_sleep = may

    @property
    def pinned(self) -> bool:
        """Whether it has to be loaded, whoever asks for it."""
        return self.landing or not self.may_sleep

    @property
    def fetched(self) -> bool:
        """Whether its files are there, and were verified."""
        return self._fetched.is_set()

    @property
    def leaving(self) -> bool:
        """Whether processes of it are ending."""
        return bool(self._leaving)

    def measure(self) -> None:
        """Learn what its processes hold, and remember it for when it sleeps. One that grows without end has
        another take its place."""
        if self.phase is VersionPhase.READY:
            outgrown = [worker for worker in self.workers if worker.outgrown()]
            if outgrown and self._outgrown is None and self._pace.allows(time.monotonic()):
                self._outgrown = outgrown[0]
                log.warning("A worker grows to its limit of memory and is replaced.", version=self.spec.label)
                self.have(self.wanted)
            held = sum(telemetry.memory_bytes(worker.pid) for worker in self.workers if worker.pid)
            self.rest.memory_bytes = held or self.rest.memory_bytes

    def retry(self, *, afresh: bool) -> None:
        """Try again now what failed: something about the version's routes changed.

        Args:
            afresh: somebody asks for it anew, so what went wrong before counts no more and is told no more.
        """
        if afresh:
            self.rest.failure = None
            self.off_card = None
        if afresh and not self._fetched.is_set():
            self._fetch_tries = 0
            self._fetch_error = None
        self._wake.set()
        for worker in self.workers:
            worker.retry(afresh=afresh)
        self._reckon()

    @property
    def pid(self) -> int:
        """Of the first process."""
        return self.workers[0].pid if self.workers else 0

    @property
    def ready(self) -> list[WorkerUnit]:
        """The processes that serve."""
        return [worker for worker in self.workers if worker.phase is VersionPhase.READY]

    def report(self) -> VersionReport:
        """How it stands, for the control plane."""
        return VersionReport(
            key=self.spec.key,
            phase=self.phase,
            crashes=self._past_crashes + sum(worker.backoff.total for worker in self.workers),
            error=self.error,
            memory_bytes=sum(telemetry.memory_bytes(worker.pid) for worker in self.workers if worker.pid),
            loads=self.rest.loads,
            replaced=self._replaced,
            misses=self._misses,
            devices=tuple(worker.device for worker in self.ready),
            device_word=self.off_card or next((w.device_word for w in self.ready if w.device_word), None),
        )

    def _reckon(self) -> None:
        """The phase of the whole: ready while one process is, failed when all are."""
        phases = {worker.phase for worker in self.workers}
        error = next((worker.error for worker in self.workers if worker.error is not None), None)
        if self._stopping:
            phase = VersionPhase.DRAINING
        elif VersionPhase.READY in phases and not self.asleep:
            phase, error = VersionPhase.READY, None
        elif not self._fetched.is_set():
            given_up = self._fetch_tries >= FETCH_TRIES
            under_way = VersionPhase.BUILDING if self._building else VersionPhase.FETCHING
            phase, error = (VersionPhase.FAILED if given_up else under_way), self._fetch_error
        elif self.asleep:
            error = self.rest.failure
            phase = VersionPhase.SLEEPING if error is None else VersionPhase.FAILED
        elif phases == {VersionPhase.FAILED}:
            phase = VersionPhase.FAILED
        else:
            restarts = VersionPhase.RESTARTING in phases
            phase = VersionPhase.RESTARTING if restarts else VersionPhase.STARTING
        changed = phase is not self.phase
        self.phase, self.error = phase, error
        if changed and phase is VersionPhase.READY:
            self.landing = False
            self.rest.ready_s = time.monotonic()
            self.rest.loads += 1
            self.measure()
        if changed:
            log.info("A version changed its phase.", version=self.spec.label, phase=phase, error=error)
            self._owner.version_changed(self)

    # ------------------------------------------------------------------------------------------------ files

    async def folder(self) -> Path:
        """Its verified files, as soon as they are there."""
        await self._fetched.wait()
        assert self._folder is not None
        return self._folder

    async def refetch(self, error: str) -> None:
        """Fetch the files anew, once for all processes that find them damaged at the same time."""
        if self._fetched.is_set():
            self._fetched.clear()
            self._fetch_tries, self._fetch_error = 0, error
            self._reckon()
            await asyncio.to_thread(self._cache.discard, self.spec)
            self._begin_fetch()

    def _begin_fetch(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._fetching(self._fetch_error))

    async def _fetching(self, error: str | None) -> None:
        self._fetch_tries = 0
        while True:
            try:
                self._folder = await asyncio.to_thread(self._cache.prepare, self.spec, self._fetch)
                await self._furnish(self._folder)
            except errors.ModelkeepError as problem:
                self._building = False
                if isinstance(problem, errors.DigestMismatch):
                    await asyncio.to_thread(self._cache.discard, self.spec)
                self._fetch_tries = (
                    FETCH_TRIES if isinstance(problem, errors.Invalid) else self._fetch_tries + 1
                )
                tries = self._fetch_tries
                self._fetch_error = text = f"{error} {problem.message}" if error else problem.message
                log.warning("A version cannot be fetched.", version=self.spec.label, error=text, tries=tries)
                self._reckon()
            else:
                self._building = False
                self._fetched.set()
                self._fetch_error = error
                self._reckon()
                return
            wait_s = min(self.options.backoff_first_s * 2 ** min(tries - 1, 10), FETCH_WAIT_MAX_S)
            self._wake.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s * random.uniform(0.8, 1.2)):
                    await self._wake.wait()

    async def _furnish(self, folder: Path) -> None:
        """Have the environment that the version asks for, where this gateway builds them.

        Raises:
            Invalid, DigestMismatch, Unavailable, TimedOut, StorageFull: it cannot be had, and why.
        """
        if self._environments is None:
            return
        lock = await asyncio.to_thread(lock_of, self.spec, folder)
        if lock is None:
            return
        self.environment = lock.key
        self._building = not self._environments.is_built(lock)
        self._reckon()
        self.python = str(await asyncio.to_thread(self._environments.python, lock))

    # ------------------------------------------------------------------------- what workers call back for

    def worker_changed(self, worker: WorkerUnit) -> None:
        """A process became ready, or is not any more."""
        if worker in self.workers and not self._stopping:
            self._owner.worker_changed(self, worker)
            self._reckon()
            if self._outgrown is not None and worker.phase is VersionPhase.READY:
                asyncio.get_running_loop().call_later(LEAVE_GRACE_S, self._relieve, self._outgrown)

    def _relieve(self, outgrown: WorkerUnit) -> None:
        """Dismiss a process that has grown too large, where there are enough others: fronts have reached them
        by now."""
        others = [worker for worker in self.ready if worker is not outgrown]
        if outgrown is self._outgrown and len(others) >= self.wanted and not self._stopping:
            self._replaced += 1
            self._pace.replaced(time.monotonic())
            self._dismiss(outgrown)

    def worker_crashed(self, worker: WorkerUnit) -> None:
        """A process died."""
        self._owner.version_crashed(self)

    def worker_worked(self, worked: messages.Worked) -> None:
        """A process says what it did."""
        self._misses = self._misses.plus(worked.misses)
        self._owner.version_worked(self, worked)

    async def stop(self, *, grace_s: float) -> None:
        """Let the workers finish what they have, then end them and forget the version."""
        self._stopping = True
        self._reckon()
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        await asyncio.gather(*(worker.stop(grace_s=grace_s) for worker in self.workers), *self._leaving)


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
        pauses = Pauses(FRONT_FIRST_PAUSE_S, FRONT_LONGEST_PAUSE_S)
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
            if time.monotonic() - started > FRONT_HEALTHY_S:
                pauses.begin_anew()
            if self._exit_code == OTHER_RELEASE:
                log.error("A front cannot be started.", front=self.index, error=ANOTHER_RELEASE)
            else:
                log.error("A front died and is replaced.", front=self.index)
            await asyncio.sleep(pauses.next())

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
