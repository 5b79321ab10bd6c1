"""All fronts of a gateway as one: what is said to them is said to each, and a table is obeyed when each has
confirmed it.

A front that does not confirm in time is replaced by one that starts with the table; a front that is being
replaced holds nobody up. Which table that is, and what a front's own words mean, is the supervisor's
business.
"""

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable, Collection, Iterator

from modelkeep import telemetry
from modelkeep.core.routing import Route, RoutingTable, VersionKey, VersionSpec
from modelkeep.serving import messages
from modelkeep.serving.router import named
from modelkeep.serving.units import FrontUnit, Owner

_LOOK_S = 0.005
"""Between two looks at who is connected to a worker that has just become ready."""

log = telemetry.Log("gateway.fronts")


class Fronts:
    """One unit for each listening socket."""

    def __init__(self, owner: Owner, listeners: list[socket.socket]) -> None:
        self._owner = owner
        self._units = [FrontUnit(owner, index, listener) for index, listener in enumerate(listeners)]
        self._waiting: dict[int, asyncio.Future[None]] = {}
        """By serial: who waits until all obey."""

    def __iter__(self) -> Iterator[FrontUnit]:
        return iter(self._units)

    def __len__(self) -> int:
        return len(self._units)

    def start(self) -> None:
        """Begin."""
        for unit in self._units:
            unit.start()

    async def stop(self) -> None:
        """Let them answer what they have, then end them."""
        grace_s = self._owner.options.drain_s
        await asyncio.gather(*(unit.stop(grace_s=grace_s) for unit in self._units))

    def say(self, message: messages.ToFront) -> None:
        """Say something to all."""
        for unit in self._units:
            unit.send(message)

    def worker_down(self, key: VersionKey, *, failed: bool) -> None:
        """Have no front reach a version any more."""
        for unit in self._units:
            unit.connected.discard(key)
        self.say(messages.WorkerDown(key=key, failed=failed))

    def asleep(self, spec: VersionSpec, *, failed: bool) -> None:
        """Have requests for a version wait until it is loaded, and be told of the first.

        Args:
            failed: it could not be loaded just now; nobody waits.
        """
        for unit in self._units:
            unit.connected.discard(spec.key)
        self.say(messages.Asleep(version=named(spec), failed=failed))

    async def reach(self, wanted: Callable[[], Collection[VersionKey]], *, within_s: float) -> None:
        """Wait until every front has a connection to all versions that are wanted, which may be fewer at each
        look. A front that cannot connect in time holds up no other: its requests wait, or go to stable."""
        until = time.monotonic() + within_s
        while time.monotonic() < until:
            keys = wanted()
            if all(not unit.alive or unit.connected.issuperset(keys) for unit in self._units):
                return
            await asyncio.sleep(_LOOK_S)

    async def confirmed(self, serial: int) -> None:
        """Wait until all obey the swap with this serial; one that does not say so in time is replaced."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[serial] = future
        self._look()
        try:
            async with asyncio.timeout(self._owner.options.ack_timeout_s):
                await future
        except TimeoutError:
            for unit in self._units:
                if unit.alive and unit.acked < serial:
                    log.error("A front does not confirm its table and is replaced.", front=unit.index)
                    unit.kill()
        finally:
            self._waiting.pop(serial, None)

    def confirms(self, unit: FrontUnit, serial: int, last_sent: dict[VersionKey, float]) -> None:
        """Take one front's confirmation."""
        unit.acked = max(unit.acked, serial)
        unit.last_sent = last_sent
        self._look()

    def _look(self) -> None:
        for serial, future in self._waiting.items():
            done = all(not unit.alive or unit.acked >= serial for unit in self._units)
            if done and not future.done():
                future.set_result(None)

    def last_sent(self, key: VersionKey) -> float:
        """When (monotonic seconds) any of them last sent a request to a version; 0.0 when none ever did."""
        return max((unit.last_sent.get(key, 0.0) for unit in self._units), default=0.0)

    async def collect(self, *, within_s: float) -> None:
        """Have all hand over what they counted; who does not in time does so later."""
        for unit in self._units:
            unit.collected.clear()
        self.say(messages.Collect())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                for unit in self._units:
                    if unit.alive:
                        await unit.collected.wait()


def swap(
    serial: int, table: RoutingTable, changed: tuple[Route, ...], removed: tuple[str, ...] = ()
) -> messages.Swap:
    """The order to obey what changed in a table, with the names of the versions that come into it."""
    keys: set[VersionKey] = set()
    for route in changed:
        keys |= route.keys
    names = tuple(named(spec) for spec in table.versions if spec.key in keys)
    return messages.Swap(serial=serial, number=table.number, changed=changed, removed=removed, versions=names)
