"""What a gateway obeys, and how that changes: forward once it is written down, back at once.

    forward   its versions are there -> INTENT durable -> swap everywhere -> APPLIED
    back      swap everywhere -> ROLLBACK durable; needs nothing but this machine's memory

Here are the table that is obeyed, the one that is wanted, and the rollbacks that nobody has taken over yet;
the next start has them from the journal. Which table comes next is decided in `moves`; the processes that
obey, and what else has to be done about a move, are the supervisor's.
"""

import asyncio
import time
from collections.abc import Callable, Collection
from concurrent.futures import Executor
from datetime import datetime
from functools import partial
from typing import Any, Protocol

from modelkeep import telemetry
from modelkeep.core import errors, values
from modelkeep.core.observation import LocalRollback
from modelkeep.core.routing import Route, RoutingTable, VersionKey, rolled_back
from modelkeep.serving import messages, moves
from modelkeep.serving.fronts import swap
from modelkeep.serving.journal import Journal, Record, RecordKind
from modelkeep.serving.router import changes
from modelkeep.serving.scribe import Scribe

CONNECT_WAIT_S = 2.0
"""For all fronts to reach a worker that is ready, before its version may get weight."""
DISK_WAIT_S = 1.0
"""Between two tries to write down a forward move: a full disk stops those, and only those."""

log = telemetry.Log("gateway.mover")


class Fronts(Protocol):
    """Who splits the traffic."""

    def __len__(self) -> int: ...

    def say(self, message: messages.ToFront) -> None:
        """Say something to all."""

    async def confirmed(self, serial: int) -> None:
        """Wait until all obey the swap with this serial."""

    async def reach(self, wanted: Callable[[], Collection[VersionKey]], *, within_s: float) -> None:
        """Wait until all have a connection to the versions that are wanted, or the time is over."""

    def last_sent(self, key: VersionKey) -> float:
        """When (monotonic seconds) any of them last sent a request to a version; 0.0 when none ever did."""


class Versions(Protocol):
    """Who answers."""

    def ready(self, among: Collection[VersionKey] | None = None) -> set[VersionKey]:
        """The versions with a process that serves."""

    def servable(self) -> set[VersionKey]:
        """The versions that a route can be given to."""

    def require(self, live: RoutingTable, desired: RoutingTable) -> None:
        """Have every version that is needed, and let go of the others."""

    def retry(self, anew: Collection[VersionKey]) -> None:
        """Try again what failed."""

    def land(self, key: VersionKey) -> None:
        """Callers are taken back to a version."""

    def label(self, key: VersionKey) -> str:
        """What a version is called."""


class Place(Protocol):
    """The gateway around it."""

    @property
    def fronts(self) -> Fronts: ...

    @property
    def versions(self) -> Versions: ...

    def begins(self, table: RoutingTable) -> None:
        """A table is about to be obeyed: whoever counts must be ready for its first request."""

    def remember(self, table: RoutingTable) -> None:
        """A table is obeyed; its versions are named in counts that come in late. Quick."""

    def watch(self, table: RoutingTable) -> None:
        """Have what is recorded follow the table."""

    def moved(self) -> None:
        """All obey another table: counts of the former one are complete, and there is something to tell."""

    def took_back(self, endpoint: str) -> None:
        """A rollback was made."""


class Mover:
    """Moves between tables, one at a time; a rollback overtakes whatever is under way.

    Attributes:
        live: the table that is obeyed; `serial` numbers it here.
        desired: the one that the control plane wants.
        pending: rollbacks that the control plane has not taken over.
        known: whether a table was ever obeyed.
        unclean: whether the last run ended without saying so, or the next could not know how this one ends:
            then nobody but stable has weight until the control plane says so again.
    """

    def __init__(
        self,
        journal: Journal,
        place: Place,
        clock: Callable[[], datetime],
        thread: Executor | None = None,
    ) -> None:
        """
        Args:
            thread: for the journal, which does one thing after the other; left out, one of its own.

        Raises:
            JournalDamaged, SchemaTooNew: the journal is not to be obeyed.
        """
        self._place = place
        self._clock = clock
        replayed = journal.open()
        self.live, self.serial, self.pending = replayed.table, replayed.serial, replayed.pending
        self.known, self.unclean = replayed.known, not replayed.clean
        self._dirty = asyncio.Event()
        if self.unclean:
            self._take_weights()
        self.scribe = Scribe(journal, self._snapshot, thread)
        opened = Record(kind=RecordKind.OPENED, at=clock())
        told = self.scribe.begin(*([opened, self._snapshot("start")] if self.known else [opened]))
        if not told and not self.unclean:
            self.unclean = True
            self._take_weights()
        self.desired = self.live

    def _take_weights(self) -> None:
        """Leave nobody but the stable versions any weight."""
        before, self.live = self.live, moves.stable_only(self.live)
        if self.live != before:
            self.serial += 1

    def _snapshot(self, cause: str) -> Record:
        return Record(
            kind=RecordKind.SNAPSHOT,
            at=self._clock(),
            serial=self.serial,
            table=self.live if self.known else None,
            cause=cause,
            pending=self.pending,
        )

    # ------------------------------------------------------------------------------------------------ forward

    def accept(self, table: RoutingTable) -> None:
        """Take a table from the control plane as what is wanted. A version that failed is tried again; where
        it is asked for anew, its failure is not told any more, for it belongs to what was asked before."""
        anew = moves.named_anew(self.live, self.desired, table)
        self.desired = table
        self.known = True
        self.require()
        self._place.versions.retry(anew)
        self.look()

    def require(self) -> None:
        """Have the versions that the two tables need."""
        self._place.versions.require(self.live, self.desired)

    def look(self) -> None:
        """See soon whether there is a move to make: something changed."""
        self._dirty.set()

    async def keep(self) -> None:
        """Move towards what is wanted, for ever."""
        while True:
            await self._dirty.wait()
            self._dirty.clear()
            before = self.live
            after = moves.next_table(before, self.desired, self._place.versions.servable())
            if after != before:
                await self._forward(before, after)

    async def _forward(self, before: RoutingTable, after: RoutingTable) -> None:
        """INTENT durable, then swap everywhere, then APPLIED."""
        place, fronts = self._place, self._place.fronts
        used = {key for route in after.routes for key in (route.stable, *route.tried)}
        await fronts.reach(partial(place.versions.ready, used), within_s=CONNECT_WAIT_S)
        place.begins(after)
        serial = self.serial + 1
        at, cause = self._clock(), "control plane"
        intent = Record(kind=RecordKind.INTENT, at=at, serial=serial, table=after, cause=cause)
        if not await self.scribe.write(intent):
            await asyncio.sleep(DISK_WAIT_S)
            self.look()
            return
        if self.live is not before:  # a rollback came first
            self.look()
            return
        changed, removed = changes(before.routes, after.routes)
        self.live, self.serial = after, serial
        place.remember(after)
        place.watch(after)
        fronts.say(swap(serial, after, changed, removed))
        await fronts.confirmed(serial)
        await self.scribe.write(Record(kind=RecordKind.APPLIED, at=self._clock(), serial=serial))
        await self.scribe.compact()
        self.require()
        place.moved()
        log.info("A new routing table is obeyed.", table=after.number, serial=serial, changed=len(changed))

    def obey(self, table: RoutingTable) -> int:
        """Have a table obeyed from now on, with nothing in the journal: for a drill. Returns its serial."""
        self.serial += 1
        self.live = table
        return self.serial

    # --------------------------------------------------------------------------------------------------- back

    async def rollback(self, endpoint: str, cause: str, actor: str, received: float) -> dict[str, Any]:
        """Take an endpoint back: fronts first, journal after.

        Args:
            received: monotonic seconds when the wish arrived; the time taken is counted from there.

        Returns:
            What was done and how long the swap took. `loading`: the version that callers were taken back to
            is not there yet, and they wait for it.

        Raises:
            RouteNotFound, NoRollbackTarget.
        """
        place, fronts, versions = self._place, self._place.fronts, self._place.versions
        route = self._route_back(endpoint)
        after = rolled_back(route)
        self.serial += 1
        serial = self.serial
        fronts.say(swap(serial, self.live, (after,)))
        self.live, _, removed = moves.taken_back(self.live, endpoint)
        table = self.live
        place.remember(table)
        versions.land(after.stable)
        await fronts.confirmed(serial)
        record = LocalRollback(
            endpoint=endpoint,
            epoch=after.epoch,
            rollout=route.rollout,
            cause=cause,
            actor=actor,
            at=self._clock(),
            took_ms=(time.monotonic() - received) * 1000,
            stable=after.stable,
            removed=removed,
        )
        last_sent_ms = max(0.0, (fronts.last_sent(removed) - received) * 1000)
        journaled = await self._write_down(record, table, serial)
        self.require()
        self.look()
        return {
            "endpoint": endpoint,
            "stable": after.stable,
            "version": versions.label(after.stable),
            "loading": after.stable not in versions.ready(),
            "removed": removed,
            "removed_version": versions.label(removed),
            "took_ms": record.took_ms,
            "last_sent_ms": last_sent_ms,
            "fronts": len(fronts),
            "journaled": journaled,
            "epoch": {"term": after.epoch.term, "seq": after.epoch.seq},
        }

    async def take_back(self, route: Route, cause: str) -> None:
        """Take whoever is tried on a route back by ourselves, unless the route is another one by now."""
        if self.live.route(route.endpoint) is route and route.tried:
            await self.rollback(route.endpoint, cause, "gateway", time.monotonic())

    async def keep_lease(self, silent_s: float) -> None:
        """Take candidates back whose controller has been silent for longer than their lease."""
        for route in self.live.routes:
            if 0 < route.lease_s < silent_s and route.tried_ppm > 0:
                await self.take_back(route, "lease lost")

    def _route_back(self, endpoint: str) -> Route:
        """The route that can be taken back. Raises RouteNotFound, NoRollbackTarget."""
        route = self.live.route(endpoint)
        if route is None:
            name = values.printable(endpoint)[:80]
            raise errors.RouteNotFound(
                f"This gateway serves no endpoint {name!r}; see: modelkeep gateway status."
            )
        target = rolled_back(route).stable
        if target != route.stable and target not in self._place.versions.servable():
            raise errors.NoRollbackTarget(
                "The former version is not loaded here any more; roll back in the registry."
            )
        return route

    async def _write_down(self, record: LocalRollback, table: RoutingTable, serial: int) -> bool:
        """Keep a rollback that was made, for the control plane and in the journal. Returns whether it is on
        the disk."""
        self.pending = (*self.pending, record)
        endpoint = record.endpoint
        self._place.watch(table)
        self._place.took_back(endpoint)
        self._place.moved()
        entry = Record(
            kind=RecordKind.ROLLBACK,
            at=self._clock(),
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

    # -------------------------------------------------------------------------------------------------- told

    async def taken(self, rollbacks: int) -> None:
        """The control plane has taken over the first rollbacks of those that wait."""
        if rollbacks:
            self.pending = self.pending[rollbacks:]
            left = Record(kind=RecordKind.TAKEN, at=self._clock(), pending=self.pending)
            await self.scribe.write(left)

    async def close(self) -> None:
        """Say that the end was a clean one, and let go of the journal."""
        await self.scribe.write(Record(kind=RecordKind.CLOSED, at=self._clock()))
        self.scribe.close()
