"""Which versions may hold memory: the pure decision behind loading on demand.

Given what every version of a gateway holds and who waits for which, it says which are to be loaded, which are
to be put to sleep, and which alone are too large. Versions that serve a rollout, that callers were just taken
back to, or that are always loaded are pinned: they are loaded whatever the budget says and never put to
sleep. What they leave is for the others, and always room for one of those. Nothing here reads a clock or
starts a process.
"""

from collections.abc import Iterable
from enum import StrEnum

from msgspec import Struct

from modelkeep.core.routing import VersionKey

WORKER_BYTES = 80 * 1024 * 1024
"""What a process of a small model holds: its interpreter, numpy and the runtime's library."""


class Stay(StrEnum):
    """How a version is here. One that leaves has been put to sleep, and its processes have not ended yet."""

    ASLEEP = "asleep"
    LOADING = "loading"
    AWAKE = "awake"
    LEAVING = "leaving"


class Cause(StrEnum):
    """Why a version is put to sleep: nobody asked for it, or another needs its memory."""

    IDLE = "idle"
    MEMORY = "memory"


class Resident(Struct, frozen=True, kw_only=True):
    """One version of a gateway.

    `memory_bytes` is what its processes hold, or are expected to hold once they are there. `busy`: requests
    are under way. `used_s` is when it was last asked, `asked_s` since when requests wait for it to be loaded
    (None: nobody waits); both on one clock that only moves forward.
    """

    key: VersionKey
    stay: Stay
    memory_bytes: int
    pinned: bool = False
    busy: bool = False
    used_s: float = 0.0
    asked_s: float | None = None

    @property
    def free(self) -> bool:
        """Whether it could be put to sleep at once."""
        return self.stay is Stay.AWAKE and not self.pinned and not self.busy


class Decision(Struct, frozen=True, kw_only=True):
    """What is to be done now. Requests for the `hopeless` can be told so: each is larger than the budget. Who
    was asked for and is in none of these waits for room."""

    wake: tuple[VersionKey, ...] = ()
    sleep: tuple[tuple[VersionKey, Cause], ...] = ()
    hopeless: tuple[VersionKey, ...] = ()


def expected_bytes(files_bytes: int, workers: int, measured_bytes: int | None) -> int:
    """What a version will hold once it is loaded: what it held the last time, or else as much as small models
    do and its files once more, for each of its processes."""
    return measured_bytes if measured_bytes else workers * (WORKER_BYTES + files_bytes)


def room_bytes(residents: Iterable[Resident], budget_bytes: int) -> int:
    """What versions that are not pinned may hold together: what pinned ones leave of the budget, and never
    less than the largest of them that fits into the budget needs. So a rollout takes room from them, and
    each can be loaded in its turn nevertheless."""
    everybody = tuple(residents)
    pinned = sum(one.memory_bytes for one in everybody if one.pinned)
    own = (one.memory_bytes for one in everybody if not one.pinned)
    return max(budget_bytes - pinned, max((held for held in own if held <= budget_bytes), default=0))


def decide(residents: Iterable[Resident], *, budget_bytes: int, idle_s: float, now_s: float) -> Decision:
    """Who is to be loaded and who is to sleep.

    Who was asked first is served first; the one that was not asked for the longest gives way first, and
    nobody does in vain. A version is loaded only once the memory is there that others are giving up, so that
    the budget holds while they leave.

    Args:
        budget_bytes: for all versions together (0: no limit). Pinned ones count, and are loaded beyond it;
            what remains for the others is `room_bytes`.
        idle_s: who was not asked for so long is put to sleep (0: nobody).
        now_s: on the clock of `used_s` and `asked_s`.
    """
    everybody = sorted(residents, key=lambda one: one.key)
    books = _Books(everybody, room_bytes(everybody, budget_bytes) if budget_bytes else None)
    for one in everybody:
        if one.free and idle_s and now_s - one.used_s >= idle_s:
            books.put_to_sleep(one, Cause.IDLE)
        elif one.pinned and one.stay is Stay.ASLEEP:
            books.woken.append(one.key)
    books.make_room(0, in_full=False)
    waiting = [
        one for one in everybody if one.asked_s is not None and one.stay is Stay.ASLEEP and not one.pinned
    ]
    for one in sorted(waiting, key=lambda one: one.asked_s or 0.0):
        if budget_bytes and one.memory_bytes > budget_bytes:
            books.hopeless.append(one.key)
        elif books.fits(one.memory_bytes):
            books.wake(one)
        elif books.make_room(one.memory_bytes, in_full=True):
            books.reserve(one.memory_bytes)
    return Decision(wake=tuple(books.woken), sleep=tuple(books.put.items()), hopeless=tuple(books.hopeless))


class _Books:
    """The memory of those that are not pinned as it will be once everything decided so far is done.
    `room`: bytes that they may hold together (None: no limit)."""

    def __init__(self, residents: list[Resident], room: int | None) -> None:
        self._room = room
        own = [one for one in residents if not one.pinned]
        self._held = sum(one.memory_bytes for one in own if one.stay is not Stay.ASLEEP)
        """Now, with what was promised to those that are loaded next."""
        self._going = sum(one.memory_bytes for one in own if one.stay is Stay.LEAVING)
        """Of that, what is on its way out."""
        free = sorted((one for one in own if one.free), key=lambda one: one.used_s, reverse=True)
        self._free = {one.key: one for one in free}
        """Who may give way; the one that was not asked for the longest comes last."""
        self.woken: list[VersionKey] = []
        self.put: dict[VersionKey, Cause] = {}
        self.hopeless: list[VersionKey] = []

    def fits(self, more_bytes: int) -> bool:
        """Whether there is room now."""
        return self._room is None or self._held + more_bytes <= self._room

    def wake(self, one: Resident) -> None:
        self.woken.append(one.key)
        self._held += one.memory_bytes

    def reserve(self, more_bytes: int) -> None:
        """Keep room that is about to be there for the one it is made for."""
        self._held += more_bytes

    def put_to_sleep(self, one: Resident, cause: Cause) -> None:
        del self._free[one.key]
        self.put[one.key] = cause
        self._going += one.memory_bytes

    def make_room(self, more_bytes: int, *, in_full: bool) -> bool:
        """Put versions to sleep until there will be room. Returns whether there will be.

        Args:
            in_full: put nobody to sleep unless that makes room enough.
        """
        if self._room is None:
            return True
        excess = self._held - self._going + more_bytes - self._room
        if in_full and excess > sum(one.memory_bytes for one in self._free.values()):
            return False
        while excess > 0 and self._free:
            one = next(reversed(self._free.values()))
            self.put_to_sleep(one, Cause.MEMORY)
            excess -= one.memory_bytes
        return excess <= 0
