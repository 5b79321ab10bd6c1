"""The supervisor: the one process of a gateway that decides what is obeyed, and keeps all the others running.

It takes tables from the control plane, obeys them as far as versions are ready (forward moves are journaled
before they count), rolls back at once on a local command, a crashing candidate or a lost lease (memory first,
journal after), and reports. Everything it needs to serve and to roll back is on this machine. HTTP is the
fronts' business, models are the workers', and judging a rollout is the control plane's.
"""

import asyncio
import socket
import time
from collections.abc import Coroutine
from datetime import UTC, datetime
from functools import partial
from typing import Any

from modelkeep import telemetry
from modelkeep.core import errors, values
from modelkeep.core.observation import (
    GatewayReply,
    GatewayReport,
    LocalRollback,
    VersionPhase,
)
from modelkeep.core.routing import Route, RoutingTable, VersionKey, rolled_back
from modelkeep.serving import messages, moves, telling
from modelkeep.serving.cache import Cache
from modelkeep.serving.contact import Contact
from modelkeep.serving.control import ControlServer, RunFolder
from modelkeep.serving.drills import drill
from modelkeep.serving.environments import LOCKED, Environments
from modelkeep.serving.fronts import Fronts, swap
from modelkeep.serving.journal import DiskFile, Journal, Record, RecordKind
from modelkeep.serving.ledger import Ledger
from modelkeep.serving.memory import Memory
from modelkeep.serving.metrics import Metrics
from modelkeep.serving.options import GatewayOptions
from modelkeep.serving.pool import Cause
from modelkeep.serving.recorder_unit import RecorderUnit
from modelkeep.serving.router import changes, named
from modelkeep.serving.scribe import Scribe
from modelkeep.serving.units import FrontUnit, VersionUnit
from modelkeep.serving.versions import Versions
from modelkeep.serving.workers import WorkerUnit

LEASE_CHECK_S = 0.1
CONNECT_WAIT_S = 2.0
"""For all fronts to reach a worker that is ready, before its version may get weight."""

log = telemetry.Log("gateway.supervisor")


def _hold_s(arguments: dict[str, Any]) -> float:
    """How long a drill holds. Raises Invalid."""
    try:
        return float(arguments.get("hold_s", 0.0))
    except (TypeError, ValueError):
        raise errors.Invalid("'hold_s' is a number of seconds.", field="hold_s") from None


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
        journal = Journal(DiskFile(options.data / "journal.jsonl"), str(options.data / "journal.jsonl"))
        replayed = journal.open()
        self.live = replayed.table
        self.serial = replayed.serial
        self.pending: tuple[LocalRollback, ...] = replayed.pending
        self._known = replayed.known
        self.unclean = not replayed.clean
        if self.unclean:
            self.live = moves.stable_only(self.live)
            if self.live != replayed.table:
                self.serial += 1
        self._desired = self.live
        opened = Record(kind=RecordKind.OPENED, at=_now())
        journal.append(*([opened, self._snapshot("start")] if self._known else [opened]))
        self.scribe = Scribe(journal, self._snapshot)
        self.contact = Contact(options, self)
        self.fronts = Fronts(self, listeners)
        now = _now()
        under_way = [(route.endpoint, route.rollout) for route in self.live.routes if route.rollout]
        memory = Memory(options.data / "callers")
        self.ledger = Ledger(now, int(now.timestamp() * 1000), memory=memory, resumed=under_way)
        self.metrics = Metrics()
        self._sides: dict[tuple[str, int, int], tuple[str, ...]] = {}
        self._dirty = asyncio.Event()
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
        if self.unclean:
            log.warning(
                "The last run did not end cleanly; candidates have no weight until the control plane says so."
            )
        for endpoint in self.ledger.lost:
            log.warning(
                "Whom the rollout has counted was lost: nobody counts as new in it any more. Abort it and "
                "promote again, or step on by hand.",
                endpoint=endpoint,
            )
        self._remember(self.live)
        self.recorder.watch(self.live)
        self.fronts.start()
        self._require()
        await self._control.start()
        self.spawn(self.versions.keep())
        self.spawn(self._advance())
        self.spawn(self._tick())
        self.spawn(self._watch_lease())
        self.spawn(self.contact.poll())
        self.spawn(self.contact.report())
        log.info("The gateway runs.", url=self.url, data=str(self.options.data), table=self.live.number)

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
        await self.scribe.write(Record(kind=RecordKind.CLOSED, at=_now()))
        self.scribe.close()
        self._run_folder.remove()
        log.info("The gateway has stopped.")

    def _drain(self) -> None:
        self.draining = True
        self.fronts.say(messages.Drain(close=False))

    # ------------------------------------------------------------------------------------------------- moves

    def accept(self, table: RoutingTable) -> None:
        """Take a table from the control plane as what is wanted. A version that failed is tried again; where
        it is asked for anew, its failure is not told any more, for it belongs to what was asked before."""
        anew = moves.named_anew(self.live, self._desired, table)
        self._desired = table
        self._known = True
        self._require()
        self.versions.retry(anew)
        self._dirty.set()

    def _require(self) -> None:
        self.versions.require(self.live, self._desired)

    async def _advance(self) -> None:
        """Move towards what is wanted: INTENT durable, then swap everywhere, then APPLIED."""
        while True:
            await self._dirty.wait()
            self._dirty.clear()
            before = self.live
            after = moves.next_table(before, self._desired, self.versions.servable())
            if after == before:
                continue
            used = {key for route in after.routes for key in (route.stable, *route.tried)}
            await self.fronts.reach(partial(self.versions.ready, used), within_s=CONNECT_WAIT_S)
            for route in after.routes:
                if route.rollout is not None:
                    self.ledger.begin(route.endpoint, route.rollout)
            serial = self.serial + 1
            intent = Record(
                kind=RecordKind.INTENT, at=_now(), serial=serial, table=after, cause="control plane"
            )
            if not await self.scribe.write(intent):
                await asyncio.sleep(1.0)  # a full disk stops forward moves, and only those
                self._dirty.set()
                continue
            if self.live is not before:  # a rollback came first
                self._dirty.set()
                continue
            changed, removed = changes(before.routes, after.routes)
            self.live, self.serial = after, serial
            self._remember(after)
            self.recorder.watch(after)
            self.fronts.say(swap(serial, after, changed, removed))
            await self.fronts.confirmed(serial)
            await self.scribe.write(Record(kind=RecordKind.APPLIED, at=_now(), serial=serial))
            await self.scribe.compact()
            self.ledger.close(_now())
            self._require()
            self.contact.hurry()
            log.info(
                "A new routing table is obeyed.", table=after.number, serial=serial, changed=len(changed)
            )

    def phase(self, key: VersionKey) -> VersionPhase | None:
        """How far a version is here; None for one that is not."""
        unit = self.versions.get(key)
        return unit.phase if unit is not None else None

    def obey(self, table: RoutingTable) -> int:
        """Have a table obeyed from now on, with nothing in the journal: for a drill. Returns its serial."""
        self.serial += 1
        self.live = table
        return self.serial

    async def rollback(self, endpoint: str, cause: str, actor: str, received: float) -> dict[str, Any]:
        """Take an endpoint back: fronts first, journal after. Needs nothing but this machine's memory.

        Args:
            received: monotonic seconds when the wish arrived; the time taken is counted from there.

        Returns:
            What was done and how long the swap took. `loading`: the version that callers were taken back to
            is not there yet, and they wait for it.

        Raises:
            RouteNotFound, NoRollbackTarget.
        """
        route = self._route_back(endpoint)
        after = rolled_back(route)
        self.serial += 1
        serial = self.serial
        self.fronts.say(swap(serial, self.live, (after,)))
        self.live, _, removed = moves.taken_back(self.live, endpoint)
        table = self.live
        self._remember(table)
        self.versions.land(after.stable)
        await self.fronts.confirmed(serial)
        record = LocalRollback(
            endpoint=endpoint,
            epoch=after.epoch,
            rollout=route.rollout,
            cause=cause,
            actor=actor,
            at=_now(),
            took_ms=(time.monotonic() - received) * 1000,
            stable=after.stable,
            removed=removed,
        )
        last_sent_ms = max(0.0, (self.fronts.last_sent(removed) - received) * 1000)
        journaled = await self._write_down(record, table, serial)
        self.ledger.close(_now())
        self._require()
        self._dirty.set()
        return {
            "endpoint": endpoint,
            "stable": after.stable,
            "version": self.versions.label(after.stable),
            "loading": after.stable not in self.versions.ready(),
            "removed": removed,
            "removed_version": self.versions.label(removed),
            "took_ms": record.took_ms,
            "last_sent_ms": last_sent_ms,
            "fronts": len(self.fronts),
            "journaled": journaled,
            "epoch": {"term": after.epoch.term, "seq": after.epoch.seq},
        }

    def _route_back(self, endpoint: str) -> Route:
        """The route that can be taken back. Raises RouteNotFound, NoRollbackTarget."""
        route = self.live.route(endpoint)
        if route is None:
            name = values.printable(endpoint)[:80]
            raise errors.RouteNotFound(
                f"This gateway serves no endpoint {name!r}; see: modelkeep gateway status."
            )
        target = rolled_back(route).stable
        if target != route.stable and target not in self.versions.servable():
            raise errors.NoRollbackTarget(
                "The former version is not loaded here any more; roll back in the registry."
            )
        return route

    async def _write_down(self, record: LocalRollback, table: RoutingTable, serial: int) -> bool:
        """Keep a rollback that was made, for the control plane and in the journal. Returns whether it is on
        the disk."""
        self.pending = (*self.pending, record)
        self.recorder.watch(table)
        self.contact.hurry()
        endpoint = record.endpoint
        self.metrics.rollbacks[endpoint] = self.metrics.rollbacks.get(endpoint, 0) + 1
        entry = Record(
            kind=RecordKind.ROLLBACK,
            at=_now(),
            serial=serial,
            table=table,
            cause=record.cause,
            rollback=record,
        )
        journaled = await self.scribe.write(entry)
        if not journaled:
            log.error("A ROLLBACK WAS MADE BUT COULD NOT BE WRITTEN DOWN; free the disk.", endpoint=endpoint)
        log.warning(
            "An endpoint was taken back.",
            endpoint=endpoint,
            cause=record.cause,
            actor=record.actor,
            took_ms=record.took_ms,
        )
        return journaled

    async def _automatic(self, route: Route, cause: str) -> None:
        if self.live.route(route.endpoint) is route and route.tried:
            await self.rollback(route.endpoint, cause, "gateway", time.monotonic())

    # ------------------------------------------------------------------------------------------------ journal

    def _snapshot(self, cause: str) -> Record:
        return Record(
            kind=RecordKind.SNAPSHOT,
            at=_now(),
            serial=self.serial,
            table=self.live,
            cause=cause,
            pending=self.pending,
        )

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
            for route in self.live.routes:
                if [arm.key for arm in route.arms[1:]] == [key]:
                    # One of several in a test is left to the controller, which takes it out alone: until then
                    # stable answers in its place, request by request.
                    self.spawn(self._automatic(route, cause))
        self._dirty.set()
        self.versions.review()
        self.contact.hurry()

    def worker_changed(self, unit: VersionUnit, worker: WorkerUnit) -> None:
        """One of a version's workers became ready (fronts connect to it), or went."""
        if worker.phase is VersionPhase.READY:
            self.fronts.say(messages.WorkerUp(version=named(unit.spec), path=str(worker.path)))
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
        for route in self.live.routes:
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
        table = self.live
        first = swap(max(self.serial, 1), table, table.routes)
        hello = messages.Hello(options=self.options, index=unit.index, swap=first, known=self._known)
        said: list[messages.ToFront] = [hello]
        for version in self.versions:
            if version.phase is VersionPhase.READY:
                name = named(version.spec)
                said += [messages.WorkerUp(version=name, path=str(each.path)) for each in version.ready]
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
            key, sides = (labels.endpoint, labels.rollout), (labels.candidate, labels.stable)
            self.ledger.labelled(key, labels.epoch, labels.candidate_ppm, *(side.told for side in sides))
        for bands in noted.bands:
            key, placed = (bands.endpoint, bands.rollout), (bands.candidate, bands.stable)
            self.ledger.predicted(key, bands.epoch, bands.candidate_ppm, *placed)
        self.metrics.log = noted

    def _remember(self, table: RoutingTable) -> None:
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
            for route in self.live.routes:
                if route.rollout is not None:
                    self.ledger.touch(route)
            self.versions.tick()
            self.ledger.close(_now())
            self.ledger.forget(
                (route.endpoint, route.rollout) for route in (*self.live.routes, *self._desired.routes)
            )
            await self.scribe.make_up()

    async def _watch_lease(self) -> None:
        """Take candidates back whose controller has been silent for longer than their lease."""
        while True:
            await asyncio.sleep(LEASE_CHECK_S)
            silent_s = self.contact.silent_s
            for route in self.live.routes:
                if 0 < route.lease_s < silent_s and route.tried_ppm > 0:
                    await self._automatic(route, "lease lost")

    async def taken(self, report: GatewayReport, reply: GatewayReply) -> None:
        """The control plane has this much of a report: it need not be sent again."""
        self.ledger.taken(reply.taken)
        rollbacks = min(reply.rollbacks_taken, len(report.rollbacks))
        if rollbacks:
            self.pending = self.pending[rollbacks:]
            await self.scribe.write(Record(kind=RecordKind.TAKEN, at=_now(), taken=rollbacks))

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
                return await self.rollback(
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
