"""The versions of one gateway: a unit for each that its tables need, and none for any other.

It starts and ends units as tables come and go, and says which versions can serve. Which table is obeyed, and
what callers are told of a version that comes or goes, is the supervisor's business.
"""

import asyncio
from collections.abc import Collection, Coroutine, Iterator
from pathlib import Path
from typing import Any, Protocol

from modelkeep.core.observation import VersionPhase
from modelkeep.core.routing import RoutingTable, VersionKey, VersionSpec
from modelkeep.serving import moves, units
from modelkeep.serving.cache import Cache, Fetch
from modelkeep.serving.environments import Environments
from modelkeep.serving.units import VersionUnit

LOADS_AT_ONCE = 2
"""Loading is arithmetic: more at once only make each later."""
REMOVAL_GRACE_S = 0.5
"""Between a version's last route and the word to stop, for pinned requests under way."""


class Owner(units.Owner, Protocol):
    """What is asked of the supervisor."""

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Have something done; the gateway ends when it fails."""

    def version_gone(self, key: VersionKey) -> None:
        """The last process of a version that no table needed has ended."""

    def version_forgotten(self, label: str) -> None:
        """A version is here no more."""


class Versions:
    """The units by their versions' keys. `labels` are the names of those that are there or leaving."""

    def __init__(
        self,
        owner: Owner,
        cache: Cache,
        fetch: Fetch,
        folder: Path,
        environments: Environments | None,
    ) -> None:
        self.labels: dict[VersionKey, str] = {}
        self._owner = owner
        self._cache = cache
        self._fetch = fetch
        self._folder = folder
        self._environments = environments
        self._units: dict[VersionKey, VersionUnit] = {}
        self._leaving: set[VersionKey] = set()
        self._loads = asyncio.Semaphore(LOADS_AT_ONCE)
        self._started = 0
        self._tables: tuple[RoutingTable, RoutingTable] | None = None
        self._stopping = False

    def __iter__(self) -> Iterator[VersionUnit]:
        return iter(self._units.values())

    def get(self, key: VersionKey) -> VersionUnit | None:
        """A version's unit; None for one that is not here."""
        return self._units.get(key)

    def label(self, key: VersionKey) -> str:
        """What a version is called, or its key."""
        return self.labels.get(key, key)

    def ready(self, among: Collection[VersionKey] | None = None) -> set[VersionKey]:
        """The versions with a process that serves."""
        ready = {key for key, unit in self._units.items() if unit.phase is VersionPhase.READY}
        return ready if among is None else ready.intersection(among)

    def require(self, live: RoutingTable, desired: RoutingTable) -> None:
        """Have a unit for every version that is needed, and let go of the others."""
        self._tables = live, desired
        wanted = moves.needed(live, desired)
        stable = {route.stable for route in (*live.routes, *desired.routes)}
        workers = moves.workers(live, desired)
        for key, spec in wanted.items():
            if key in self._units:
                self._units[key].have(workers.get(key, 1))
            elif key not in self._leaving and not self._stopping:
                self._add(spec, workers.get(key, 1))
        for key, unit in list(self._units.items()):
            unit.is_stable = key in stable
            if key not in wanted:
                del self._units[key]
                self._leaving.add(key)
                self._owner.spawn(self._let_go(unit))

    def _add(self, spec: VersionSpec, workers: int) -> None:
        self._started += 1
        path = self._folder / f"w-{self._started}"
        self.labels[spec.key] = spec.label
        unit = VersionUnit(self._owner, spec, self._cache, self._fetch, path, self._loads, self._environments)
        self._units[spec.key] = unit
        unit.start(workers)

    async def _let_go(self, unit: VersionUnit) -> None:
        await asyncio.sleep(REMOVAL_GRACE_S)
        await unit.stop(grace_s=unit.options.drain_s)
        key = unit.spec.key
        self._owner.version_gone(key)
        self._leaving.discard(key)
        if self._tables is not None:
            self.require(*self._tables)  # it may be wanted again
        if key not in self._units:
            self._owner.version_forgotten(self.labels.pop(key, ""))
        await asyncio.to_thread(self._cache.sweep, list(self._units))
        if self._environments is not None:
            used = {unit.environment for unit in self._units.values()}
            await asyncio.to_thread(self._environments.sweep, {key for key in used if key is not None})

    def retry(self, anew: Collection[VersionKey]) -> None:
        """Try again what failed; what went wrong before with those that are asked for anew is told no
        more."""
        for key, unit in self._units.items():
            unit.retry(afresh=key in anew)

    def close(self) -> None:
        """Begin no environment any more, and no unit."""
        self._stopping = True
        if self._environments is not None:
            self._environments.close()

    async def stop(self, *, grace_s: float) -> None:
        """End them all."""
        await asyncio.gather(*(unit.stop(grace_s=grace_s) for unit in self._units.values()))
