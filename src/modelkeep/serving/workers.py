"""One worker process of a version, from its first start to its end: started, watched, restarted with
back-off.

It says what phase it is in and calls back when something changed. The version's files, how many such
processes it has and what all of them together mean are the version's business (`units`).
"""

import asyncio
import contextlib
import os
import time
from pathlib import Path
from typing import Protocol

from modelkeep import telemetry
from modelkeep.core import errors
from modelkeep.core.observation import VersionPhase
from modelkeep.core.routing import VersionSpec
from modelkeep.serving import messages
from modelkeep.serving.devices import Card, Cards, Device
from modelkeep.serving.growth import Growth
from modelkeep.serving.handshake import OTHER_RELEASE, WORKER
from modelkeep.serving.options import ERROR_TEXT_MAX, GatewayOptions
from modelkeep.serving.processes import BackOff, Child

PING_EVERY_S = 5.0
LOOK_S = 0.5
"""Between two looks at what a process holds that loads on a card, where no limit of the system's holds."""
BUSY_VERSIONS = 2
"""Versions that share the cores when nobody says how: the stable one and the candidate."""
ANOTHER_RELEASE = (
    "The gateway's files are of another release than the gateway that runs. Restart the gateway."
)
STOP_GRACE_S = 1.0
"""Beyond what a worker asks for itself to become quiet."""

log = telemetry.Log("gateway.workers")


class Version(Protocol):
    """What a worker asks of its version."""

    spec: VersionSpec
    options: GatewayOptions
    python: str
    loads: asyncio.Semaphore
    is_stable: bool
    wanted: int
    cards: Cards
    off_card: str | None

    async def folder(self) -> Path:
        """Its verified files, as soon as they are there."""

    async def refetch(self, error: str) -> None:
        """A file on the disk is not what it was."""

    def worker_changed(self, worker: "WorkerUnit") -> None:
        """The phase of a worker is another one."""

    def worker_crashed(self, worker: "WorkerUnit") -> None:
        """A worker died."""

    def worker_worked(self, worked: messages.Worked) -> None:
        """A worker says what it did."""


class WorkerUnit:
    """One process."""

    def __init__(self, version: Version, path: Path) -> None:
        self.phase = VersionPhase.STARTING
        self.error: str | None = None
        self.path = path
        self.backoff = BackOff(version.options)
        self.device = str(Device.CPU)
        """What it computes on, as people read it."""
        self.device_word = ""
        """What there is to say of that."""
        self._on_card = False
        """Whether it may compute on a card."""
        self._card: Card | None = None
        self._growth = Growth(0, 0)
        self._version = version
        self._options = version.options
        self._child: Child | None = None
        self._loaded: asyncio.Future[messages.Loaded | messages.LoadFailed | None] | None = None
        self._ended = asyncio.Event()
        self._exit_code = 0
        self._wake = asyncio.Event()
        self._stop = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    def retry(self, *, afresh: bool) -> None:
        """Try again now if it failed.

        Args:
            afresh: what went wrong before counts no more and is told no more.
        """
        if self.phase is VersionPhase.FAILED:
            if afresh:
                self.backoff.forget()
                self._set(VersionPhase.STARTING)
            self._wake.set()

    @property
    def pid(self) -> int:
        return self._child.pid if self._child is not None else 0

    def outgrown(self) -> bool:
        """Whether it has grown so far towards its limit of memory that another is to take its place."""
        return self.phase is VersionPhase.READY and self._growth.outgrown(self._held_bytes())

    def _held_bytes(self) -> int:
        """What counts against its limit: what it maps. CUDA maps far more than it uses, so on a card it is
        what is resident, and no limit of the system's can hold it there."""
        return telemetry.memory_bytes(self.pid) if self._on_card else telemetry.mapped_bytes(self.pid)

    def _too_large(self) -> bool:
        """Whether it is past a limit that the system does not hold."""
        limit_bytes = self._options.worker_memory_bytes
        return self._on_card and 0 < limit_bytes < self._held_bytes()

    def _set(self, phase: VersionPhase, error: str | None = None) -> None:
        changed = phase is not self.phase
        self.phase, self.error = phase, error
        if changed:
            self._version.worker_changed(self)

    async def _run(self) -> None:
        refetched = False
        label = self._version.spec.label
        while not self._stop.is_set():
            folder = await self._version.folder()
            if self.phase is not VersionPhase.FAILED:
                restart = VersionPhase.RESTARTING if self.backoff.total else VersionPhase.STARTING
                self._set(restart, self.error)
            async with self._version.loads:
                outcome = await self._load(folder)
            if isinstance(outcome, messages.Loaded):
                log.info(
                    "A version is loaded.",
                    version=label,
                    runtime=outcome.runtime,
                    took_s=outcome.took_s,
                    together=outcome.together,
                    device=self.device,
                    device_word=outcome.device_word or None,
                )
                self._growth = Growth(self._options.worker_memory_bytes, self._held_bytes())
                self._set(VersionPhase.READY)
                await self._watch()
                if self._stop.is_set():
                    break
                await self._after_crash()
            elif self._leaves_card(outcome):
                continue
            elif outcome is None:  # killed from outside while it was loading
                await self._after_crash()
            elif outcome.code == errors.DigestMismatch.code and not refetched:
                log.error("A cached file is not what it was; it is fetched anew.", version=label)
                refetched = True
                await self._version.refetch(outcome.error)
            else:
                log.error("A version cannot be loaded.", version=label, error=outcome.error)
                self._set(VersionPhase.FAILED, outcome.error)
                await self._pause(self._options.backoff_max_s)

    def _leaves_card(self, outcome: messages.LoadFailed | None) -> bool:
        """Whether a version that could not be loaded on a card is tried on the processor now, in a process
        that has never seen a card."""
        version = self._version
        on_card = self._on_card and (outcome is None or outcome.on_card)
        if not on_card or version.cards.device is not Device.AUTO or self._stop.is_set():
            return False
        error = outcome.error if outcome is not None else "Its process died while it was loading."
        version.off_card = f"It was tried on a card. {error}"[:ERROR_TEXT_MAX]
        log.warning("A version is not loaded on a card.", version=version.spec.label, error=error)
        return True

    def _take_card(self) -> dict[str, str]:
        """Have a card for the process that is started next, where it may compute on one. Returns its
        variables."""
        version = self._version
        self._give_card_back()
        self._on_card = version.cards.device is not Device.CPU and version.off_card is None
        self._card = version.cards.take() if self._on_card else None
        return version.cards.environment(self._card, on_card=self._on_card)

    def _give_card_back(self) -> None:
        self._on_card = False
        if self._card is not None:
            self._version.cards.give_back(self._card)
            self._card = None

    def _placed(self, loaded: messages.Loaded) -> None:
        """The process says what it computes on."""
        self.device_word = loaded.device_word
        if loaded.device is Device.CPU:
            self._give_card_back()
            self.device = str(Device.CPU)
        else:
            self.device = self._card.label if self._card is not None else str(loaded.device)

    async def _load(self, folder: Path) -> messages.Loaded | messages.LoadFailed | None:
        """Start a process and have it load the version. None: it was killed meanwhile."""
        options, spec = self._options, self._version.spec
        loop = asyncio.get_running_loop()
        if self._child is not None:
            self._child.end()  # what a former one still has to say is not taken for this one's
        self._loaded, self._ended = loop.create_future(), asyncio.Event()
        self.path.unlink(missing_ok=True)
        child = self._child = Child(messages.FromWorker, self._heard, self._gone, name=spec.label)
        shared = BUSY_VERSIONS * self._version.wanted
        threads = options.worker_threads or max(1, (os.cpu_count() or 1) // shared)
        names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
        try:
            environment = {
                **options.environment,
                **dict.fromkeys(names, str(threads)),
                **self._take_card(),
                "HOME": str(folder),
                "PYTHONDONTWRITEBYTECODE": "1",
                "ORT_DISABLE_TELEMETRY": "1",  # ONNX Runtime would note what it does, and send it home
                "MLFLOW_DISABLE_TELEMETRY": "true",
            }
            await child.start(WORKER, keep_output=True, environment=environment, python=self._version.python)
        except OSError as problem:
            self._give_card_back()
            return messages.LoadFailed(code="UNAVAILABLE", error=f"No process could be started: {problem}.")
        child.send(
            messages.Load(
                spec=spec,
                folder=str(folder),
                path=str(self.path),
                threads=threads,
                memory_bytes=options.worker_memory_bytes,
                allow_code=options.allow_code,
                batch_rows_max=options.batch_rows_max,
                batch_max_bytes=options.batch_max_bytes,
                device=self._version.cards.device if self._on_card else Device.CPU,
            )
        )
        outcome = await self._outcome(child, self._loaded)
        if isinstance(outcome, messages.Loaded):
            self._placed(outcome)
        return outcome

    async def _outcome(
        self, child: Child, loaded: "asyncio.Future[messages.Loaded | messages.LoadFailed | None]"
    ) -> messages.Loaded | messages.LoadFailed | None:
        """What the process says of its loading, or what is said of it when it takes too long or too much."""
        until = time.monotonic() + self._options.load_timeout_s
        while (left_s := until - time.monotonic()) > 0:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(left_s, LOOK_S) if self._on_card else left_s):
                    return await asyncio.shield(loaded)
            if self._too_large():
                child.kill()
                text = "It needs more memory than a worker may have; raise --worker-memory."
                return messages.LoadFailed(code=errors.LimitExceeded.code, error=text, on_card=True)
        child.kill()
        text = f"The version did not load within {self._options.load_timeout_s:g} s."
        return messages.LoadFailed(code=errors.TimedOut.code, error=text, on_card=True)

    def _heard(self, message: messages.FromWorker) -> None:
        match message:
            case messages.Loaded() | messages.LoadFailed():
                if self._loaded is not None and not self._loaded.done():
                    self._loaded.set_result(message)
            case messages.Worked():
                self._version.worker_worked(message)
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
                self._loaded.set_result(
                    messages.LoadFailed(code=errors.WorkerUnavailable.code, error=text, on_card=True)
                )

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
            elif self._too_large():
                log.error("A worker on a card is past its limit of memory.", version=self._version.spec.label)
                child.kill()
            elif now - child.heard > self._options.hang_s:
                log.error("A worker hangs and is ended.", version=self._version.spec.label)
                child.kill()
            elif now - pinged > PING_EVERY_S:
                number, pinged = number + 1, now
                child.send(messages.Ping(number=number))

    async def _after_crash(self) -> None:
        child = self._child
        now = time.monotonic()
        wait_s = self.backoff.crashed(now, now - child.started if child is not None else 0.0)
        if self._version.is_stable:
            # Its callers have nowhere else to go: it is back before those who wait for it have to be refused.
            wait_s = min(wait_s, self._options.hold_s / 2)
        output = child.output[-ERROR_TEXT_MAX:] if child is not None else ""
        text = f"The worker died with {self._exit_code}. {output}".strip()
        log.error(
            "A worker died.",
            version=self._version.spec.label,
            code=self._exit_code,
            output=output,
            again_in_s=wait_s,
        )
        given_up = self.backoff.looping and not self._version.is_stable
        self._set(VersionPhase.FAILED if given_up else VersionPhase.RESTARTING, text)
        self._version.worker_crashed(self)
        await self._pause(wait_s)

    async def _pause(self, wait_s: float) -> None:
        """Wait before the next start; a failed one that nothing depends on waits until it is asked for
        again."""
        self._give_card_back()
        self._wake.clear()
        while not self._stop.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._wake.wait()
                return
            if self.phase is not VersionPhase.FAILED or self._version.is_stable:
                return

    async def stop(self, *, grace_s: float) -> None:
        """Let the process finish what it has, then end it."""
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
        self._give_card_back()
        self.path.unlink(missing_ok=True)
