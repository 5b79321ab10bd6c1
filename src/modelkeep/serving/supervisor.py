"""The supervisor: the process of a gateway that keeps all the others running, and adds up what they say.

It takes tables from the control plane, has the mover obey them, has it roll back on a local command, for a
crashing candidate or a lost lease, adds up what was counted, and reports. Everything it needs to serve and to
roll back is on this machine. HTTP is the fronts' business, models are the workers', which table is obeyed is
the mover's, and judging a rollout is the control plane's.
"""

import asyncio
import socket
import time
from collections.abc import Coroutine
from datetime import UTC, datetime
from typing import Any

from modelkeep import telemetry
from modelkeep.core import errors, values
from modelkeep.core.observation import (
    GatewayReply,
    GatewayReport,
    VersionPhase,
)
from modelkeep.core.routing import RoutingTable, VersionKey
from modelkeep.serving import messages, telling
from modelkeep.serving.cache import Cache
from modelkeep.serving.contact import Contact
from modelkeep.serving.control import ControlServer, RunFolder
from modelkeep.serving.drills import drill
from modelkeep.serving.environments import LOCKED, Environments
from modelkeep.serving.fronts import Fronts, swap
from modelkeep.serving.journal import DiskFile, Journal
from modelkeep.serving.ledger import Ledger, first_number
from modelkeep.serving.memory import Memory
from modelkeep.serving.metrics import Metrics
from modelkeep.serving.mover import Mover
from modelkeep.serving.options import GatewayOptions
from modelkeep.serving.pool import Cause
from modelkeep.serving.recorder_unit import RecorderUnit
from modelkeep.serving.router import named
from modelkeep.serving.units import FrontUnit, VersionUnit
from modelkeep.serving.versions import Versions
from modelkeep.serving.workers import WorkerUnit

LEASE_CHECK_S = 0.1

log = telemetry.Log("gateway.supervisor")


def _hold_s(arguments: dict[str, Any]) -> float:
    """How long a drill holds. Raises Invalid."""
    try:
        return float(arguments.get("hold_s", 0.0))
    except (TypeError, ValueError):
        raise errors.Invalid("'hold_s' is a number of seconds.", field="hold_s") from None


def _up(unit: VersionUnit, worker: WorkerUnit) -> messages.WorkerUp:
    return messages.WorkerUp(version=named(unit.spec), path=str(worker.path), device=worker.device)


def _now() -> datetime:
    return datetime.now(UTC)


class Supervisor:
    """A running gateway. All methods run on its one event loop; disk and network are waited for in
    threads."""

    def __init__(self, options: GatewayOptions, name: str, listeners: list[socket.socket], url: str) -> None:
        self.options = options
        self.name = name
        self.url = url
        environments: Environments | None = None
        if options.environments == LOCKED:
            folder = options.data / "environments"
            environments = Environments(folder, build_timeout_s=options.build_timeout_s)
        path = options.data / "journal.jsonl"
        self.mover = Mover(Journal(DiskFile(path), str(path)), self, _now)
        self.contact = Contact(options, self)
        self.fronts = Fronts(self, listeners)
        now = _now()
        routes = self.mover.live.routes
        under_way = [(route.endpoint, route.rollout) for route in routes if route.rollout]
        memory = Memory(options.data / "callers")
        self.ledger = Ledger(now, first_number(now), memory=memory, resumed=under_way)
        self.metrics = Metrics()
        self._sides: dict[tuple[str, int, int], tuple[str, ...]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self.started = time.monotonic()
        self.stopped = asyncio.Event()
        self._stopping = False
        self.draining = False
        self._run_folder = RunFolder(options.data)
        self.versions = Versions(
            self, Cache(options.data / "cache"), self.contact.fetch, self._run_folder.path, environments
        )
        self._control = ControlServer(self._run_folder.control, self._command)
        self.recorder = RecorderUnit(self, self._run_folder.path)

    # ----------------------------------------------------------------------------------------- start and stop

    async def start(self) -> None:
        """Start everything; returns before versions are loaded."""
        if self.mover.unclean:
            log.warning(
                "The last run did not end cleanly; candidates have no weight until the control plane says so."
            )
        for endpoint in self.ledger.lost:
            log.warning(
                "Whom the rollout has counted was lost: nobody counts as new in it any more. Abort it and "
                "promote again, or step on by hand.",
                endpoint=endpoint,
            )
        self.remember(self.mover.live)
        self.recorder.watch(self.mover.live)
        self.fronts.start()
        self.mover.require()
        await self._control.start()
        self.spawn(self.versions.keep())
        self.spawn(self.mover.keep())
        self.spawn(self._tick())
        self.spawn(self._watch_lease())
        self.spawn(self.contact.poll())
        self.spawn(self.contact.report())
        log.info("The gateway runs.", url=self.url, data=str(self.options.data), table=self.mover.live.number)

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Have something done; the gateway ends when it fails."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._task_ended)

    def _task_ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("A part of the supervisor failed.", error=repr(task.exception()))
            self.stopped.set()  # half a supervisor is worse than a restart

    async def stop(self) -> None:
        """Drain and end: callers first, then workers, then the journal. Leaves nothing running and nothing
        behind."""
        if self._stopping:
            return
        self._stopping = True
        self.versions.close()
        options = self.options
        self._drain()
        if options.shutdown_delay_s:
            await asyncio.sleep(options.shutdown_delay_s)
        await self.fronts.stop()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.recorder.stop(grace_s=options.drain_s)
        self.ledger.close(_now())
        await self.contact.last_report()
        self.contact.close()
        await self.versions.stop(grace_s=options.drain_s)
        await self._control.stop()
        await self.mover.close()
        self._run_folder.remove()
        log.info("The gateway has stopped.")

    def _drain(self) -> None:
        self.draining = True
        self.fronts.say(messages.Drain(close=False))

    # ------------------------------------------------------------------------------------------------- moves

    def accept(self, table: RoutingTable) -> None:
        """Take a table from the control plane as what is wanted."""
        self.mover.accept(table)

    def phase(self, key: VersionKey) -> VersionPhase | None:
        """How far a version is here; None for one that is not."""
        unit = self.versions.get(key)
        return unit.phase if unit is not None else None

    def begins(self, table: RoutingTable) -> None:
        """Have books for the rollouts of a table that is about to be obeyed."""
        for route in table.routes:
            if route.rollout is not None:
                self.ledger.begin(route.endpoint, route.rollout)

    def watch(self, table: RoutingTable) -> None:
        """Have what is recorded follow the table."""
        self.recorder.watch(table)

    def moved(self) -> None:
        """Another table is obeyed: its counts begin here, and there is something to tell."""
        self.ledger.close(_now())
        self.contact.hurry()

    def took_back(self, endpoint: str) -> None:
        """Count a rollback."""
        self.metrics.rollbacks[endpoint] = self.metrics.rollbacks.get(endpoint, 0) + 1

    # ------------------------------------------------------------------------------- what units call back for

    def version_changed(self, unit: VersionUnit) -> None:
        """A version became ready (its fronts connect), or it did not and never will."""
        key = unit.spec.key
        if unit.phase in (VersionPhase.RESTARTING, VersionPhase.FAILED):
            self.fronts.worker_down(key, failed=unit.phase is VersionPhase.FAILED)
        if unit.phase is VersionPhase.SLEEPING or (unit.phase is VersionPhase.FAILED and unit.may_sleep):
            self.fronts.asleep(unit.spec, failed=unit.phase is VersionPhase.FAILED)
        if unit.phase is VersionPhase.FAILED:
            cause = "candidate crashed" if unit.report().crashes else "candidate could not be loaded"
            for route in self.mover.live.routes:
                if [arm.key for arm in route.arms[1:]] == [key]:
                    # One of several in a test is left to the controller, which takes it out alone: until then
                    # stable answers in its place, request by request.
                    self.spawn(self.mover.take_back(route, cause))
        self.mover.look()
        self.versions.review()
        self.contact.hurry()

    def worker_changed(self, unit: VersionUnit, worker: WorkerUnit) -> None:
        """One of a version's workers became ready (fronts connect to it), or went."""
        if worker.phase is VersionPhase.READY:
            self.fronts.say(_up(unit, worker))
        elif worker.phase in (VersionPhase.RESTARTING, VersionPhase.FAILED):
            down = messages.WorkerDown(key=unit.spec.key, failed=False, path=str(worker.path))
            self.fronts.say(down)

    def worker_leaves(self, unit: VersionUnit, worker: WorkerUnit) -> None:
        """A version needs fewer workers: this one finishes what it has."""
        down = messages.WorkerDown(key=unit.spec.key, failed=False, path=str(worker.path), gently=True)
        self.fronts.say(down)

    def version_crashed(self, unit: VersionUnit) -> None:
        """Count the crash on every side that the version serves."""
        key = unit.spec.key
        for route in self.mover.live.routes:
            others = (other.key if other.key != route.stable else None for other in route.others)
            for place, other in enumerate((route.stable, route.candidate, *others)):
                if other == key:
                    self.ledger.crashed(route, place)

    def version_gone(self, key: VersionKey) -> None:
        """The last process of a version that no table needed has ended."""
        self.fronts.worker_down(key, failed=True)

    def version_forgotten(self, label: str) -> None:
        """A version is here no more: its figures go with it."""
        self.metrics.forget(other for other in self.versions.labels.values() if other != label)

    def version_rests(self, unit: VersionUnit) -> None:
        """The last process of a version that was put to sleep has ended: there is room."""
        self.versions.review()

    def version_slept(self, unit: VersionUnit, cause: Cause) -> None:
        """A version was put to sleep."""
        log.info("A version sleeps.", version=unit.spec.label, cause=cause)
        self.metrics.slept(unit.spec.label, cause)

    def version_hopeless(self, unit: VersionUnit, why: str) -> None:
        """Requests wait for a version that cannot be loaded just now: they are told so."""
        log.warning("A version that is asked for cannot be loaded.", version=unit.spec.label, error=why)
        self.fronts.asleep(unit.spec, failed=True)

    def version_worked(self, unit: VersionUnit, worked: messages.Worked) -> None:
        """Add up what the workers did."""
        self.metrics.worked(unit.spec.label, worked)

    def front_hello(self, unit: FrontUnit) -> list[messages.ToFront]:
        """The whole table and all workers, for a front that was just started."""
        table = self.mover.live
        first = swap(max(self.mover.serial, 1), table, table.routes)
        hello = messages.Hello(options=self.options, index=unit.index, swap=first, known=self.mover.known)
        said: list[messages.ToFront] = [hello]
        for version in self.versions:
            if version.phase is VersionPhase.READY:
                said += [_up(version, each) for each in version.ready]
            elif version.phase is VersionPhase.SLEEPING or version.asleep:
                said.append(messages.Asleep(version=named(version.spec)))
            elif version.phase is VersionPhase.FAILED:
                said.append(messages.WorkerDown(key=version.spec.key, failed=True))
        if self.recorder.path is not None:
            said.append(messages.RecorderAt(path=self.recorder.path))
        if self.draining:
            said.append(messages.Drain(close=False))
        return said

    def front_said(self, unit: FrontUnit, message: messages.FromFront) -> None:
        """Counts, confirmations and wishes of a front."""
        match message:
            case messages.Swapped(serial=serial, last_sent=last_sent):
                self.fronts.confirms(unit, serial, last_sent)
            case messages.FrontCounts():
                self._counted(unit, message)
            case messages.Connected(key=key):
                unit.connected.add(key)
            case messages.Wanted(key=key):
                self.versions.wanted(key)
            case messages.WantPage(number=number, endpoint=endpoint):
                text = telling.described(self, endpoint) if endpoint else telling.metrics_page(self)
                unit.send(messages.Page(number=number, text=text))
            case messages.Drained():
                unit.drained.set()

    def recorder_at(self, path: str | None) -> None:
        """The recorder came or went: fronts connect, or drop what they would have told it."""
        self.fronts.say(messages.RecorderAt(path=path))

    def recorder_said(self, noted: messages.Noted) -> None:
        """Pairs go with the ticks; how the log stands is for the metrics."""
        for pairs in noted.pairs:
            self.ledger.paired(pairs.endpoint, pairs.rollout, pairs.epoch, pairs.candidate_ppm, pairs.counts)
        for labels in noted.labels:
            key, others = (labels.endpoint, labels.rollout), [side.told for side in labels.others]
            sides, shares = (labels.candidate.told, labels.stable.told), (labels.others_ppm, labels.aside_ppm)
            self.ledger.labelled(key, labels.epoch, labels.candidate_ppm, *sides, others, *shares)
        for bands in noted.bands:
            key, placed = (bands.endpoint, bands.rollout), (bands.candidate, bands.stable)
            self.ledger.predicted(key, bands.epoch, bands.candidate_ppm, *placed)
        self.metrics.log = noted

    def remember(self, table: RoutingTable) -> None:
        """Keep the versions' names by endpoint and epoch, for counts that come in late."""
        labels = {spec.key: spec.label for spec in table.versions}
        if len(self._sides) > 10_000 + len(table.routes):
            self._sides.clear()
        for route in table.routes:
            candidate = labels.get(route.candidate, "") if route.candidate is not None else ""
            self._sides[route.endpoint, route.epoch.term, route.epoch.seq] = (
                labels.get(route.stable, ""),
                candidate,
                *(labels.get(other.key, "") for other in route.others),
            )

    def _counted(self, unit: FrontUnit, counts: messages.FrontCounts) -> None:
        unit.collected.set()
        self.versions.counted(unit.index, counts)
        labels: dict[tuple[str, int], str] = {}
        for route in counts.routes:
            self.ledger.add(route)
            names = self._sides.get((route.endpoint, route.epoch.term, route.epoch.seq), ("", ""))
            labels.update(((route.endpoint, place), name) for place, name in enumerate(names))
        self.metrics.add(unit.index, counts, labels)

    # --------------------------------------------------------------------------------------------- the clocks

    async def _tick(self) -> None:
        """Close a tick about once a second, with what all fronts have counted until then."""
        while True:
            await asyncio.sleep(self.options.tick_s)
            await self.fronts.collect(within_s=self.options.tick_s / 4)
            for route in self.mover.live.routes:
                if route.rollout is not None:
                    self.ledger.touch(route)
            self.versions.tick()
            self.ledger.close(_now())
            routes = (*self.mover.live.routes, *self.mover.desired.routes)
            self.ledger.forget((route.endpoint, route.rollout) for route in routes)
            await self.mover.scribe.make_up()

    async def _watch_lease(self) -> None:
        """Take candidates back whose controller has been silent for longer than their lease."""
        while True:
            await asyncio.sleep(LEASE_CHECK_S)
            await self.mover.keep_lease(self.contact.silent_s)

    async def taken(self, report: GatewayReport, reply: GatewayReply) -> None:
        """The control plane has this much of a report: it need not be sent again."""
        self.ledger.taken(reply.taken)
        await self.mover.taken(min(reply.rollbacks_taken, len(report.rollbacks)))

    def make_report(self) -> GatewayReport:
        """What there is to tell the control plane."""
        return telling.report(self)

    # ----------------------------------------------------------------------------------------- the local door

    async def _command(self, command: str, arguments: dict[str, Any]) -> dict[str, Any]:
        received = time.monotonic()
        match command:
            case "status":
                return telling.status(self)
            case "rollback":
                endpoint, actor = str(arguments.get("endpoint", "")), str(arguments.get("actor") or "local")
                reason = values.check_text(str(arguments.get("reason") or "local command"), "reason")
                return await self.mover.rollback(
                    endpoint, reason, values.check_text(actor, "actor", maximum=200), received
                )
            case "drill":
                done = await drill(
                    self, self.fronts, str(arguments.get("endpoint", "")), _hold_s(arguments), received
                )
                return {"gateway": self.name, **done}
            case "drain":
                self._drain()
                return {"draining": True}
            case "reload":
                return {"reloading": self.contact.reload()}
            case _:
                raise errors.Invalid(f"{values.quoted(command, 40)} is no command of a gateway.")
