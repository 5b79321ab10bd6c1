"""Random histories of one gateway: tables that come late, twice and out of order, rollbacks by hand and by
itself, a journal whose disk refuses, tears, loses or flips what was written, kills at any byte, starts on a
disk that is full or read-only, and a wall clock that jumps.

The mover, the journal and its file are the real ones; fronts and versions are made of plain Python, and time
passes when nobody has anything to do. Invariants of the design: 9 (a rollback needs no disk, and holds), 11
(replaying the journal gives the live table, or after a kill the one before or after; older terms are no-ops).
No weight rises without a durable intent, and after an unclean stop nobody but stable has any.
"""

import asyncio
import os
import tempfile
from collections.abc import Callable, Collection, Coroutine
from concurrent.futures import Executor, Future
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, event, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from msgspec import structs

from modelkeep.core import codec, errors
from modelkeep.core.observation import LocalRollback, Tick, VersionPhase
from modelkeep.core.routing import (
    EMPTY_TABLE,
    Epoch,
    Route,
    RoutingTable,
    VersionKey,
    VersionSpec,
    check_table,
    rolled_back,
)
from modelkeep.core.values import Digest
from modelkeep.serving import journal as journals
from modelkeep.serving import messages, moves
from modelkeep.serving.drills import drill
from modelkeep.serving.journal import DiskFile, Journal, RecordKind
from modelkeep.serving.ledger import Ledger, first_number
from modelkeep.serving.mover import DISK_WAIT_S, Mover

A, B, C = (VersionKey(f"version:{letter * 64}") for letter in "abc")
CONTENT = Digest(f"sha256:{'e' * 64}")
SPECS = tuple(
    VersionSpec(key=key, model="m", number=n, semver=f"{n}.0.0", digest=CONTENT, files=())
    for n, key in enumerate((A, B, C), start=1)
)
ENDPOINTS = ("churn", "fraud")
LEASE_S = 5.0
WRITE_S = 0.01
"""What a write takes: long enough for something to come in between."""
START = timedelta(milliseconds=1)
"""What a start takes at least: no two have one moment, of which the numbers of ticks are made."""
RECORDS_KEPT = 12
"""So few that a history has its file written anew."""
MORE = 5
"""Histories for each that others make: these take milliseconds."""
LATENESS = st.sampled_from([0, 0, 0, 0, 0, 1, 2, 5])
"""How many tables have come before the one that arrives late."""
JUMPS_S = (-172_800.0, -3_600.0, -2.0, -0.001, 2.0, 3_600.0, 172_800.0)


class Killed(BaseException):
    """The process died in the middle of a write."""


class Disk(DiskFile):
    """A real file whose disk refuses, or whose writer dies, after some of the bytes."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.refusals = 0
        self.some = 0
        self.cuts = False
        """Whether a file may be cut although nothing more can be written, as on a full disk."""
        self.fatal = False
        self.dead = False

    def append(self, data: bytes) -> None:
        self._meet(data)
        super().append(data)

    def replace(self, data: bytes) -> None:
        self._meet(b"")
        super().replace(data)

    def truncate(self, size: int) -> None:
        if self.dead or not self.cuts:
            self._meet(b"")
        super().truncate(size)

    def _meet(self, data: bytes) -> None:
        if self.dead:
            raise Killed
        if not self.fatal and not self.refusals:
            return
        if data:
            os.write(self._fd, data[: self.some % len(data)])
        if self.fatal:
            self.dead = True
            raise Killed
        self.refusals -= 1
        raise OSError(28, "No space left on device")


class Loop(asyncio.SelectorEventLoop):
    """Time passes when there is nothing else to do, and at once."""

    passed_s = 0.0

    def time(self) -> float:
        return self.passed_s

    def _run_once(self) -> None:
        if not self._ready and self._scheduled:  # type: ignore[attr-defined]  # of the loop itself
            self.passed_s = max(self.passed_s, self._scheduled[0].when())  # type: ignore[attr-defined]
        super()._run_once()  # type: ignore[misc]


class SlowThread(Executor):
    """One job after the other, each a moment after the one before."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._free_s = 0.0

    def submit(self, job: Callable[..., Any], /, *args: Any, **kwargs: Any) -> "Future[Any]":
        future: Future[Any] = Future()
        self._free_s = max(self._free_s, self._loop.passed_s) + WRITE_S

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                result = job(*args, **kwargs)
            except BaseException as problem:  # noqa: BLE001 - whoever waits gets it, as from a thread
                future.set_exception(problem)
            else:
                future.set_result(result)

        self._loop.call_at(self._free_s, run)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Everything was waited for."""


class Fronts:
    """Splits no traffic, and remembers how it would."""

    def __init__(self, gateway: "Gateway") -> None:
        self._gateway = gateway
        self.routes = {route.endpoint: route for route in gateway.live.routes}

    def __len__(self) -> int:
        return 1

    def say(self, message: messages.ToFront) -> None:
        assert isinstance(message, messages.Swap)
        for route in message.changed:
            self._gateway.machine.check_obeyed(route, self.routes.get(route.endpoint), message.serial)
            self.routes[route.endpoint] = route
        for endpoint in message.removed:
            del self.routes[endpoint]
            self._gateway.machine.lift(endpoint)

    async def confirmed(self, serial: int) -> None:
        await asyncio.sleep(0)

    async def reach(self, wanted: Callable[[], Collection[VersionKey]], *, within_s: float) -> None:
        await asyncio.sleep(0)

    def last_sent(self, key: VersionKey) -> float:
        return 0.0


class Versions:
    """Loads nothing. What was loaded for a table and is needed no more is gone at once."""

    def __init__(self) -> None:
        self.loadable: set[VersionKey] = {A, B, C}
        self.wanted: set[VersionKey] = set()

    def ready(self, among: Collection[VersionKey] | None = None) -> set[VersionKey]:
        return self.wanted & self.loadable

    def servable(self) -> set[VersionKey]:
        return self.ready()

    def require(self, live: RoutingTable, desired: RoutingTable) -> None:
        self.wanted = set(moves.needed(live, desired))

    def retry(self, anew: Collection[VersionKey]) -> None:
        pass

    def land(self, key: VersionKey) -> None:
        pass

    def label(self, key: VersionKey) -> str:
        return key


class Gateway:
    """One life of a gateway, from a start to a stop or a kill."""

    def __init__(self, machine: "GatewayMachine", disk: Disk) -> None:
        self.machine = machine
        self.disk = disk
        machine.now += START
        self.versions = Versions()
        self.versions.loadable = set(machine.loadable)
        thread = SlowThread(machine.loop)
        self.mover = Mover(Journal(disk), self, machine.clock, thread)
        self.fronts = Fronts(self)
        now = machine.clock()
        self.ledger = Ledger(now, first_number(now))
        self.mover.require()
        self.tasks: list[asyncio.Task[Any]] = []
        self.begin(self.mover.keep())

    @property
    def live(self) -> RoutingTable:
        return self.mover.live

    def phase(self, key: VersionKey) -> VersionPhase | None:
        """How far a version is."""
        return VersionPhase.READY if key in self.versions.ready() else None

    def begin(self, work: Coroutine[Any, Any, Any]) -> None:
        """Have something done while other things happen."""
        self.tasks.append(self.machine.loop.create_task(work))

    def begins(self, table: RoutingTable) -> None:
        pass

    def remember(self, table: RoutingTable) -> None:
        pass

    def watch(self, table: RoutingTable) -> None:
        pass

    def moved(self) -> None:
        self.ledger.close(self.machine.clock())

    def took_back(self, endpoint: str) -> None:
        pass

    def count(self) -> None:
        """Close a tick of every rollout."""
        for route in self.live.routes:
            if route.rollout is not None:
                self.ledger.touch(route)
        self.ledger.close(self.machine.clock())

    def end(self) -> None:
        """Be gone, at once."""
        self.end_tasks()
        self.check_tasks()
        with suppress(OSError):  # it was closed already
            self.disk.close()

    def end_tasks(self) -> None:
        """Stop whatever is under way."""
        for task in self.tasks:
            task.cancel()
        self.machine.loop.run_until_complete(asyncio.gather(*self.tasks, return_exceptions=True))

    def check_tasks(self) -> None:
        """Nothing that was begun has failed."""
        for task in self.tasks:
            problem = task.exception() if task.done() and not task.cancelled() else None
            if problem is not None and not isinstance(problem, Killed):
                raise problem


class GatewayMachine(RuleBasedStateMachine):
    """Everything that can happen to one gateway."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "journal.jsonl"
        self.kept, journals.RECORDS_MAX = journals.RECORDS_MAX, RECORDS_KEPT
        self.loop = Loop()
        self.now = datetime(2026, 1, 25, 14, 3, tzinfo=UTC)
        self.loadable: set[VersionKey] = {A, B, C}
        self.plane: dict[str, Route] = {}
        """What the control plane wants."""
        self.tables = [EMPTY_TABLE]
        self.allowed: set[bytes] = set()
        """Routes that somebody asked for, as they are written."""
        self.since: list[RoutingTable] = [EMPTY_TABLE]
        """The tables that were obeyed since all was last written down, the oldest of which is."""
        self.fences: dict[str, Epoch] = {}
        """Rollbacks that are on the disk."""
        self.lifted: dict[str, Epoch] = {}
        """Of these, the ones that ended with their endpoint."""
        self.untold: list[LocalRollback] = []
        """Of those, the ones that the control plane has not taken over."""
        self.known_of: list[LocalRollback] = []
        self.told: dict[tuple[str, str | None, int], Tick] = {}
        self.trusting = True
        """Whether a candidate may have weight: a table came since the last kill."""
        self.unseen: RoutingTable | None = None
        """What was obeyed at the last stop, while the disk has taken nothing whatever since."""
        self.gateway = Gateway(self, Disk(self.path))
        for choice in (0, 4, 6):  # churn serves A, and B has a share
            self.decide("churn", choice, 0)
            self.wait(2 * DISK_WAIT_S)

    def clock(self) -> datetime:
        return self.now + timedelta(seconds=self.loop.passed_s)

    def teardown(self) -> None:
        try:
            self.check_quiet()
        finally:
            self.gateway.end()
            self.loop.close()
            journals.RECORDS_MAX = self.kept
            self.folder.cleanup()

    @property
    def mover(self) -> Mover:
        return self.gateway.mover

    # -------------------------------------------------------------------------------------- the control plane

    @rule(endpoint=st.sampled_from(ENDPOINTS), choice=st.integers(0, 11), back=LATENESS)
    def decide(self, endpoint: str, choice: int, back: int) -> None:
        """The control plane has another table, and one arrives."""
        route = self.plane.get(endpoint)
        key = (A, B, C)[choice % 3]
        if route is None:
            self.plane[endpoint] = Route(endpoint=endpoint, epoch=self._newest(endpoint), stable=key)
        elif choice == 0:
            self.plane.pop(endpoint)
        elif route.candidate is None:
            what = "take back" if choice == 1 and route.previous is not None else "try"
            self.plane[endpoint] = self._changed(route, what, key, LEASE_S * (choice % 2))
        else:
            what = ("raise", "raise", "raise", "finish", "lower", "take back")[choice % 6]
            self.plane[endpoint] = self._changed(route, what, key, route.lease_s)
        self._publish()
        self.deliver(back)

    def _newest(self, endpoint: str) -> Epoch:
        """Above all that there was of an endpoint: what is made anew under an old name outranks it."""
        known = [route for table in (*self.tables, self.mover.live) for route in table.routes]
        terms = [route.epoch.term for route in known if route.endpoint == endpoint]
        terms.append(self.fences.get(endpoint, Epoch(0, 0)).term)
        return Epoch(1 + max(terms), 0)

    def _changed(self, route: Route, what: str, key: VersionKey, lease_s: float) -> Route:
        epoch = Epoch(route.epoch.term, route.epoch.seq + 1)
        match what:
            case "try" if route.candidate is None and key != route.stable:
                rollout = f"rol_{len(self.tables)}"
                former = route.previous if route.previous != key else None
                return structs.replace(
                    route, epoch=epoch, candidate=key, rollout=rollout, lease_s=lease_s, previous=former
                )
            case "raise" | "lower" if route.candidate is not None:
                share = min(1_000_000, route.candidate_ppm + 400_000) if what == "raise" else 0
                return structs.replace(route, epoch=epoch, candidate_ppm=share)
            case "finish" if route.candidate is not None and route.candidate_ppm:
                return structs.replace(
                    rolled_back(route), epoch=epoch, stable=route.candidate, previous=route.stable
                )
            case "take back" if route.candidate is not None or route.previous is not None:
                return rolled_back(route)
            case _:
                return structs.replace(route, epoch=epoch)

    def _publish(self) -> None:
        table = RoutingTable(number=len(self.tables), routes=tuple(self.plane.values()), versions=SPECS)
        self.tables.append(check_table(table))
        for route in table.routes:
            self.allow(route)

    def allow(self, route: Route) -> None:
        self.allowed |= {codec.encode(one) for one in (route, moves.stable_alone(route))}

    @rule(back=LATENESS)
    def deliver(self, back: int) -> None:
        """A table arrives: the newest, or one that is late or comes a second time."""
        table = self.tables[max(0, len(self.tables) - 1 - back)]
        if table.number:
            self.mover.accept(table)
            self.trusting = True

    def report(self) -> None:
        """The control plane takes over what the gateway did and counted."""
        self.gateway.count()
        for tick in self.gateway.ledger.to_send():
            key = (tick.endpoint, tick.rollout, tick.number)
            assert self.told.setdefault(key, tick) == tick, "two ticks under one number: the second is lost"
        taken = self.mover.pending
        for done in taken:
            route = self.plane.get(done.endpoint)
            if route is not None and done.epoch > route.epoch:
                self.plane[done.endpoint] = structs.replace(
                    rolled_back(structs.replace(route, candidate=done.removed, candidate_ppm=0)),
                    epoch=done.epoch,
                    stable=done.stable,
                    previous=None,
                )
        if taken:
            self._publish()
            self.gateway.begin(self.mover.taken(len(taken)))
            self.known_of += taken
            self.untold = [done for done in self.untold if done not in self.known_of]

    # -------------------------------------------------------------------------------------------- the gateway

    @rule(
        what=st.sampled_from(
            ["report", "load", "unload", "by hand", "by hand", "crashed", "silent", "drill"]
        ),
        endpoint=st.sampled_from(ENDPOINTS),
        key=st.sampled_from([A, B, C]),
        at_once=st.booleans(),
    )
    def happen(self, what: str, endpoint: str, key: VersionKey, at_once: bool) -> None:
        """Something happens to the gateway."""
        match what:
            case "report":
                self.report()
            case "load" | "unload":
                self.load(key, what == "load")
            case "drill":
                self.rehearse(endpoint, 0.0 if at_once else 2 * WRITE_S)
            case _:
                self.roll_back(endpoint, what, at_once)

    def load(self, key: VersionKey, there: bool) -> None:
        """A version becomes ready, or is so no more."""
        (self.loadable.add if there else self.loadable.discard)(key)
        self.gateway.versions.loadable = set(self.loadable)
        self.mover.look()

    @rule(seconds=st.sampled_from([0.0, WRITE_S / 2, WRITE_S, 3 * WRITE_S, 2 * DISK_WAIT_S]))
    def wait(self, seconds: float) -> None:
        """Time passes."""
        self._run(asyncio.sleep(seconds))

    def roll_back(self, endpoint: str, how: str, at_once: bool) -> None:
        """Traffic is taken back here: on a command, for a candidate that fails, for a lease that is over."""
        route = self.mover.live.route(endpoint)
        match how:
            case "by hand":
                work = self._by_hand(endpoint)
            case "crashed" if route is not None:
                work = self.mover.take_back(route, "candidate crashed")
            case _:
                work = self.mover.keep_lease(2 * LEASE_S)
        if at_once:
            self._run(work)
        else:
            self.gateway.begin(work)

    async def _by_hand(self, endpoint: str) -> None:
        route = self.mover.live.route(endpoint)
        with suppress(errors.RouteNotFound, errors.NoRollbackTarget):
            await self.mover.rollback(endpoint, "by hand", "ann", 0.0)
            assert route is not None
            event("rolled back")

    def rehearse(self, endpoint: str, hold_s: float) -> None:
        """A drill, whatever else is going on."""
        gateway = self.gateway

        async def work() -> None:
            route = self.mover.live.route(endpoint)
            if route is not None and route.previous is not None and route.candidate is None:
                self.allow(structs.replace(rolled_back(route), epoch=route.epoch))
            refused = (errors.RouteNotFound, errors.RolloutActive, errors.NoRollbackTarget, errors.Conflict)
            with suppress(*refused):
                await drill(gateway, gateway.fronts, endpoint, hold_s, 0.0)
                event("drilled")

        self.gateway.begin(work())

    def _run(self, work: Coroutine[Any, Any, Any]) -> None:
        with suppress(Killed):
            self.loop.run_until_complete(work)
        if self.gateway.disk.dead:
            self.start_again()
        self.gateway.check_tasks()

    # ----------------------------------------------------------------------------------------------- faults

    @rule(
        what=st.sampled_from(
            ["jump", "full disk", "full disk", "torn", "torn", "kill", "restart", "start full", "lost", "bit"]
        ),
        number=st.integers(0, 2_000),
        seconds=st.sampled_from(JUMPS_S),
    )
    def fail(self, what: str, number: int, seconds: float) -> None:
        """Something breaks."""
        match what:
            case "jump":
                self.jump(seconds)
            case "full disk":
                self.fill_the_disk(1 + number % 4, number)
            case "torn":
                self.die_writing(number)
            case "kill":
                self.start_again()
            case "restart":
                self.restart()
            case "start full" if number % 2:
                self.restart(1 + number % 4, number, cuts=number % 3 > 0)
            case "start full":
                self.start_again(1 + number % 4, number, cuts=number % 3 > 0)
            case "lost":
                self.lose_the_end(number / 2_000)
            case _:
                self.flip_a_bit(number / 2_001, number % 8)

    def jump(self, seconds: float) -> None:
        """The wall clock is set."""
        self.now += timedelta(seconds=seconds)

    def fill_the_disk(self, times: int, some: int) -> None:
        """The next writes are refused, each after some of its bytes."""
        self.gateway.disk.refusals, self.gateway.disk.some = times, some

    def die_writing(self, some: int) -> None:
        """The process is killed in its next write, after some of the bytes."""
        self.gateway.disk.fatal, self.gateway.disk.some = True, some

    def _disk(self, refusals: int, some: int, cuts: bool) -> Disk:
        disk = Disk(self.path)
        disk.refusals, disk.some, disk.cuts = refusals, some, cuts
        return disk

    def restart(self, refusals: int = 0, some: int = 0, *, cuts: bool = False) -> None:
        """It is stopped and started, as in an upgrade; perhaps on a disk that is full by now."""
        self._quieten()
        disk = self.gateway.disk
        self.gateway.end_tasks()
        before = self.mover.live
        self._run(self.mover.close())
        if self.gateway.disk is not disk:
            return
        self.gateway.end()
        self.gateway = Gateway(self, self._disk(refusals, some, cuts))
        if not self.mover.unclean:
            assert self.mover.live == before, "a clean stop changes nothing"
            return
        assert refusals > 1, "what cannot be written can be taken back"
        assert not cuts
        assert self.mover.live == moves.stable_only(before)
        self.trusting = False
        self.unseen = before
        event("started unseen")

    def lose_the_end(self, cut: float) -> None:
        """The machine dies, and its disk had not kept what it said that it had, from any byte on."""
        self._quieten()
        data = self.path.read_bytes()
        self.path.write_bytes(data[: int(cut * len(data))])
        self._forgets()
        self.start_again()

    def flip_a_bit(self, where: float, bit: int) -> None:
        """The machine dies, and its disk has kept something else."""
        self._quieten()
        data = bytearray(self.path.read_bytes())
        data[int(where * len(data))] ^= 1 << bit
        self.path.write_bytes(data)
        self._forgets()
        self.start_again()

    def _forgets(self) -> None:
        """What was on the disk may be gone."""
        self.fences, self.untold, self.unseen = {}, [], None
        self.since = []

    def start_again(self, refusals: int = 0, some: int = 0, *, cuts: bool = False) -> None:
        """Start on what the disk holds; what is damaged is moved away first, as the message says."""
        self.gateway.end()
        unseen, self.unseen = self.unseen, None
        try:
            self.gateway = Gateway(self, self._disk(refusals, some, cuts))
        except errors.JournalDamaged:
            assert not self.since, "whatever a kill leaves can be read"
            self.path.unlink()
            self.gateway = Gateway(self, Disk(self.path))
            event("moved away")
        # What was lost may be all since a clean stop.
        self.trusting = not self.since and not self.mover.unclean
        found = self.mover.live
        if unseen is not None and not self.mover.unclean:  # nobody can know that the former run was there
            assert found == unseen
            self.trusting = True
        elif self.since:
            assert found in [moves.stable_only(table) for table in self.since]
            assert all(done in self.mover.pending for done in self.untold)
        self.since = [found]

    # ----------------------------------------------------------------------------------------- invariants

    def check_obeyed(self, route: Route, before: Route | None, serial: int) -> None:
        """At the very moment at which fronts are told."""
        if before is not None and route.epoch.term == before.epoch.term + 1:
            with suppress(errors.NoRollbackTarget):
                if route == rolled_back(before):
                    self.allow(route)
        assert codec.encode(route) in self.allowed, "nobody asked for that route"
        assert route.epoch >= self.fences.get(route.endpoint, Epoch(0, 0)), "a rollback was undone"
        had = before.tried_ppm if before is not None else 0
        if route.tried_ppm > had:
            assert self.trusting
            intents = [r for r in self._records() if r.kind is RecordKind.INTENT and r.serial == serial]
            assert intents
            assert intents[-1].table is not None
            assert route in intents[-1].table.routes

    def lift(self, endpoint: str) -> None:
        """An endpoint is gone, and with it what was known of it."""
        if (fence := self.fences.pop(endpoint, None)) is not None:
            self.lifted[endpoint] = fence

    def _records(self) -> list[journals.Record]:
        return Journal(self.gateway.disk)._parse(self.path.read_bytes())[0]

    @invariant()
    def fronts_obey_the_live_table(self) -> None:
        live = self.mover.live
        check_table(live)
        if self.mover.scribe.ok:
            self.unseen = None
        assert self.gateway.fronts.routes == {route.endpoint: route for route in live.routes}
        if not self.since or self.since[-1] != live:
            self.since.append(live)
        if not self.trusting:
            assert all(route.tried_ppm == 0 for route in live.routes)

    @invariant()
    def what_is_written_down_is_kept(self) -> None:
        if self.gateway.disk.dead:
            self.start_again()
        records = self._records()
        for record in records:
            done = record.rollback
            if done is None:
                continue
            if done in self.mover.pending and done not in (*self.untold, *self.known_of):
                self.untold.append(done)
            known = self.fences.get(done.endpoint, Epoch(0, 0))
            if done.epoch > self.lifted.get(done.endpoint, Epoch(0, 0)):
                self.fences[done.endpoint] = max(known, done.epoch)

    def _quieten(self) -> None:
        """Let everything come to its end, and compare."""
        self.gateway.disk.refusals = 0
        self._run(asyncio.sleep(5 * DISK_WAIT_S))
        self._run(self.mover.scribe.make_up())
        if self.gateway.disk.dead:
            return
        assert self.mover.scribe.ok
        replayed = journals.replay(self._records())
        assert replayed.table == self.mover.live
        assert replayed.pending == self.mover.pending
        self.since = [self.mover.live]

    def check_quiet(self) -> None:
        """With nothing broken any more, what is wanted is obeyed."""
        self.gateway.disk.fatal = False
        self.loadable = {A, B, C}
        self.gateway.versions.loadable = {A, B, C}
        for _ in range(3):
            self._quieten()
            self.report()
            self.deliver(0)
            self._quieten()
        obeyed = {route.endpoint: route for route in self.mover.live.routes}
        assert obeyed == self.plane


GatewayMachine.TestCase.settings = settings(stateful_step_count=40, suppress_health_check=list(HealthCheck))
TestGatewayMachine = pytest.mark.req("S7", "S8")(GatewayMachine.TestCase)
