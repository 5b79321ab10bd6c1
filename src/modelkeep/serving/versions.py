"""The versions of one gateway: a unit for each that its tables need, and none for any other.

It starts and ends units as tables come and go, says which versions can serve, and has those that may sleep
loaded and put to sleep as the pool decides. Which table is obeyed, and what callers are told of a version
that comes or goes, is the supervisor's business.
"""

import asyncio
import time
from collections.abc import Collection, Coroutine, Iterator
from pathlib import Path
from typing import Any, Protocol

from modelkeep.core.observation import VersionPhase
from modelkeep.core.routing import RoutingTable, VersionKey, VersionSpec
from modelkeep.serving import devices, messages, moves, pool, units
from modelkeep.serving.cache import Cache, Fetch
from modelkeep.serving.environments import Environments
from modelkeep.serving.units import VersionUnit

LOADS_AT_ONCE = 2
"""Loading is arithmetic: more at once only make each later."""
REMOVAL_GRACE_S = 0.5
"""Between a version's last route and the word to stop, for pinned requests under way."""
FORGET_TICKS = 3
"""A version is loaded for requests that fronts still spoke of within so many ticks."""
SETTLE_TICKS = 1
"""For so long a version that was just loaded gives way to none: it answers those that waited for it, and
until then nobody has told that it is used."""


TOO_LARGE = "It needs more memory than the whole budget; raise --memory-budget."


class Owner(units.Owner, Protocol):
    """What is asked of the supervisor."""

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Have something done; the gateway ends when it fails."""

    def version_gone(self, key: VersionKey) -> None:
        """The last process of a version that no table needed has ended."""

    def version_forgotten(self, label: str) -> None:
        """A version is here no more."""

    def version_slept(self, unit: VersionUnit, cause: pool.Cause) -> None:
        """A version was put to sleep."""

    def version_hopeless(self, unit: VersionUnit, why: str) -> None:
        """Requests wait for a version that cannot be loaded just now."""


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
        options = owner.options
        found = devices.there(options.gpu_environment)
        self.cards = devices.Cards(devices.read_wish(options.device), found, options.gpu_environment)
        """On which its processes may compute."""
        self._units: dict[VersionKey, VersionUnit] = {}
        self._leaving: set[VersionKey] = set()
        self._loads = asyncio.Semaphore(LOADS_AT_ONCE)
        self._started = 0
        self._tables: tuple[RoutingTable, RoutingTable] | None = None
        self._stopping = False
        self._due = asyncio.Event()
        self._busy: dict[int, frozenset[VersionKey]] = {}
        """By front: versions with requests under way or waiting when it last said so."""

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

    def servable(self) -> set[VersionKey]:
        """The versions that a route can be given to: those that serve, and those that sleep and may."""
        asleep = {unit.spec.key for unit in self if unit.may_sleep and unit.phase is VersionPhase.SLEEPING}
        return self.ready() | asleep

    def require(self, live: RoutingTable, desired: RoutingTable) -> None:
        """Have a unit for every version that is needed, and let go of the others."""
        self._tables = live, desired
        wanted = moves.needed(live, desired)
        stable = {route.stable for route in (*live.routes, *desired.routes)}
        workers = moves.workers(live, desired)
        may_sleep = moves.may_sleep(live, desired)
        for key, spec in wanted.items():
            if key in self._units:
                self._units[key].have(workers.get(key, 1))
            elif key not in self._leaving and not self._stopping:
                self._add(spec, workers.get(key, 1), asleep=key in may_sleep)
            if key in self._units:
                self._units[key].let_sleep(key in may_sleep)
        self.review()
        for key, unit in list(self._units.items()):
            unit.is_stable = key in stable
            unit.landing = unit.landing and unit.is_stable
            if key not in wanted:
                del self._units[key]
                self._leaving.add(key)
                self._owner.spawn(self._let_go(unit))

    def _add(self, spec: VersionSpec, workers: int, *, asleep: bool) -> None:
        self._started += 1
        path = self._folder / f"w-{self._started}"
        self.labels[spec.key] = spec.label
        unit = VersionUnit(
            self._owner, spec, self._cache, self._fetch, path, self._loads, self._environments, self.cards
        )
        self._units[spec.key] = unit
        unit.start(workers, asleep=asleep)

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

    # ----------------------------------------------------------------------------------------------- sleeping

    def review(self) -> None:
        """Have the pool look soon: something changed."""
        self._due.set()

    async def keep(self) -> None:
        """Load and put to sleep what the pool says, for ever."""
        while True:
            await self._due.wait()
            self._due.clear()
            self._decide(time.monotonic())

    def _decide(self, now: float) -> None:
        for unit in self:
            if unit.phase is VersionPhase.FAILED and not unit.pinned and not unit.asleep:
                unit.sleep()  # it is tried again when somebody asks for it
        residents = [self._resident(unit, now) for unit in self]
        options = self._owner.options
        decision = pool.decide(
            residents, budget_bytes=options.memory_budget_bytes, idle_s=options.sleep_after_s, now_s=now
        )
        for key, cause in decision.sleep:
            self._units[key].sleep()
            self._owner.version_slept(self._units[key], cause)
        for key in decision.wake:
            self._units[key].wake()
        for key in decision.hopeless:
            self._units[key].rest.asked_s = None
            self._owner.version_hopeless(self._units[key], TOO_LARGE)

    def _resident(self, unit: VersionUnit, now: float) -> pool.Resident:
        """A version as the pool sees it."""
        rest, key, tick_s = unit.rest, unit.spec.key, unit.options.tick_s
        if unit.asleep:
            stay = pool.Stay.LEAVING if unit.leaving else pool.Stay.ASLEEP
        else:
            stay = pool.Stay.AWAKE if unit.phase is VersionPhase.READY else pool.Stay.LOADING
        if rest.asked_s is not None and (not unit.asleep or now - rest.heard_s > FORGET_TICKS * tick_s):
            rest.asked_s = None
        files_bytes = sum(file.size_bytes for file in unit.spec.files)
        return pool.Resident(
            key=key,
            stay=stay,
            memory_bytes=pool.expected_bytes(files_bytes, unit.wanted, rest.memory_bytes),
            pinned=unit.pinned,
            busy=now - rest.ready_s < SETTLE_TICKS * tick_s
            or any(key in busy for busy in self._busy.values()),
            used_s=max(rest.used_s, rest.ready_s),
            asked_s=rest.asked_s,
        )

    def land(self, key: VersionKey) -> None:
        """Callers are taken back to a version: where it does not serve it is loaded at once, beyond the
        budget if need be, and is not put to sleep before it serves."""
        unit = self._units.get(key)
        if unit is None:
            return
        unit.rest.used_s = time.monotonic()
        unit.landing = unit.phase is not VersionPhase.READY
        self.review()

    def wanted(self, key: VersionKey) -> None:
        """Requests wait for a version to be loaded. Where that has failed they are told so: what cannot be
        fetched, or is pinned, is tried again in any case, and all else a while later, when somebody asks."""
        unit = self._units.get(key)
        if unit is None:
            return
        rest, now = unit.rest, time.monotonic()
        if unit.phase is VersionPhase.FAILED:
            just_now = now - rest.failed_s < unit.options.backoff_max_s
            if just_now or not unit.fetched or not unit.asleep:
                self._owner.version_hopeless(unit, unit.error or "")
                return
        if not unit.asleep:
            return
        rest.asked_s = now if rest.asked_s is None else rest.asked_s
        rest.heard_s = now
        self.review()

    def counted(self, front: int, counts: messages.FrontCounts) -> None:
        """Learn from a front which versions are used."""
        self._busy[front] = frozenset(counts.busy)
        for key, used_s in counts.used.items():
            if (unit := self._units.get(key)) is not None:
                unit.rest.used_s = max(unit.rest.used_s, used_s)
        for key in counts.busy:
            if (unit := self._units.get(key)) is not None:
                unit.rest.heard_s = time.monotonic()

    def tick(self) -> None:
        """What is to be done about once a second: measure, and look who is idle."""
        for unit in self:
            unit.measure()
        self.review()

    # -------------------------------------------------------------------------------------------------- all

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
