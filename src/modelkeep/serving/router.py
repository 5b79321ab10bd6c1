"""The table as a front reads it: endpoint to target, in memory, replaced by one assignment.

A request takes its target once and keeps it, so that a swap in between cannot send it half by one table and
half by another. Sockets, workers and bytes are not known here.
"""

from collections.abc import Mapping
from typing import Generic, Protocol, TypeVar

from modelkeep.core.routing import (
    CANDIDATE_PLACE,
    OTHERS_MAX,
    STABLE_PLACE,
    Route,
    Strictness,
    VersionKey,
    VersionSpec,
    place,
    set_aside,
)
from modelkeep.core.signature import DataType, Field, Signature
from modelkeep.serving.counting import Callers, RouteTally, caller_hash
from modelkeep.serving.keys import Finder
from modelkeep.serving.messages import Swap, TensorInfo, VersionName
from modelkeep.serving.options import KEY_MAX_BYTES


class Served(Protocol):
    """What the router asks of a version: its name."""

    key: VersionKey
    semver: str


ASSIGNED_MAX = 8_192
"""Callers whose side is remembered per target, to save two hashes a request; past it, all are hashed anew.
Few enough that letting go of them all holds nobody up."""

_PLACES = OTHERS_MAX + 2
"""Places of a route: stable, the candidate, the others."""

V = TypeVar("V", bound=Served)


class Target(Generic[V]):
    """One endpoint under one epoch, with everything a request needs at hand."""

    __slots__ = (
        "_assigned", "_finder", "callers", "candidate", "key_header", "lenient", "name", "others", "previous",
        "remembered", "rollout_header", "route", "shadow", "stable", "tally", "tried", "trims", "watched",
    )  # fmt: skip

    def __init__(self, route: Route, versions: dict[VersionKey, V], callers: Callers | None) -> None:
        self.name = route.endpoint.encode()
        self.route = route
        self.stable = versions[route.stable]
        self.candidate = versions[route.candidate] if route.candidate is not None else None
        self.others = [versions[other.key] for other in route.others]
        self.previous = versions[route.previous] if route.previous is not None else None
        self.shadow = versions[route.shadow] if route.shadow is not None else None
        self.lenient = route.schema is Strictness.LENIENT
        self.remembered = route.judged and route.rollout is not None and route.tried_ppm > 0
        """Whether what is predicted is evidence, at once or when its label comes."""
        shadowed = self.shadow is not None and route.shadow_ppm > 0
        self.watched = route.log_ppm > 0 or shadowed or self.remembered
        """Whether anything has to be done with an answer but to give it."""
        beyond = route.key_cookie is not None or route.key_field is not None
        self._finder = Finder(route.key_cookie, route.key_field) if beyond else None
        self.trims = self._finder.without if self._finder is not None and self._finder.trims else None
        """Takes out of a body what stands there for the key alone; None where nothing does."""
        self.key_header = route.key_header.lower().encode() if route.key_header else None
        self.tried = route.tried_ppm > 0
        self.callers = callers if self.tried else None
        """None while stable has everybody: nobody is evidence then, and nobody's first time is used up."""
        self.tally = RouteTally(
            route.endpoint,
            route.rollout,
            route.epoch,
            route.candidate_ppm,
            route.others_ppm,
            route.aside_ppm,
        )
        self._assigned: dict[bytes, int] = {}
        """The caller's hash times `_PLACES`, plus the caller's place: plain numbers, which the garbage
        collector need not walk through while callers wait."""
        self.rollout_header = b""
        if route.rollout is not None:
            name = "".join(c for c in route.rollout if c.isascii() and c.isprintable())
            self.rollout_header = b"X-Modelkeep-Rollout: %b\r\n" % name.encode()

    def assign(self, headers: dict[bytes, bytes], peer_key: bytes, body: bytes = b"") -> tuple[int, int]:
        """The place in the route of whoever answers a caller, and the 64 bits that stand for the caller (0
        for one who is not counted)."""
        route = self.route
        if not self.tried:
            return STABLE_PLACE, 0
        key = headers.get(self.key_header) if self.key_header is not None else None
        if not key and self._finder is not None:
            key = self._finder.find(headers, body)
        key = key[:KEY_MAX_BYTES] if key else peer_key
        known = self._assigned.get(key)
        if known is None:
            if len(self._assigned) >= ASSIGNED_MAX:
                self._assigned.clear()
            counted = route.rollout is not None and not set_aside(route, key)
            caller = caller_hash(key) if counted else 0
            known = self._assigned[key] = caller * _PLACES + place(route, key)
        return known % _PLACES, known // _PLACES

    def at(self, number: int) -> V | None:
        """The version at a place of the route, where it is not stable's."""
        if number > CANDIDATE_PLACE:
            return self.others[number - CANDIDATE_PLACE - 1]
        return self.candidate if number == CANDIDATE_PLACE else None

    @property
    def previewed(self) -> V | None:
        """The candidate, where it may be asked under the preview address."""
        return self.candidate if self.route.preview else None

    def pinned(self, semver: str) -> V | None:
        """The loaded version with this semver, whatever its weight."""
        for version in (self.stable, self.candidate, *self.others, self.previous):
            if version is not None and version.semver == semver:
                return version
        return None


class Router(Generic[V]):
    """All targets, and the tallies of former epochs that still have requests under way."""

    def __init__(self) -> None:
        self.targets: dict[bytes, Target[V]] = {}
        self.serial = 0
        self.number = 0
        self._callers: dict[tuple[str, str], Callers] = {}
        self._retired: list[RouteTally] = []

    def swap(self, swap: Swap, versions: dict[VersionKey, V]) -> None:
        """Obey the new routes from the next request on.

        Args:
            versions: the served version of every key that a changed route names.
        """
        if swap.serial <= self.serial:
            return
        targets = dict(self.targets)
        for endpoint in swap.removed:
            gone = targets.pop(endpoint.encode(), None)
            if gone is not None:
                self._retired.append(gone.tally)
        for route in swap.changed:
            old = targets.get(route.endpoint.encode())
            target = Target(route, versions, self._book(route))
            if old is not None:
                self._retired.append(old.tally)
            targets[target.name] = target
        self.targets = targets
        self.serial = swap.serial
        self.number = swap.number
        rollouts = {
            (t.route.endpoint, t.route.rollout) for t in targets.values() if t.route.rollout is not None
        }
        self._callers = {key: book for key, book in self._callers.items() if key in rollouts}

    def _book(self, route: Route) -> Callers | None:
        if route.rollout is None:
            return None
        return self._callers.setdefault((route.endpoint, route.rollout), Callers())

    def tallies(self) -> list[RouteTally]:
        """All tallies that may hold counts; retired ones go when their last request is answered and handed
        over."""
        live = [target.tally for target in self.targets.values()]
        retired, self._retired = self._retired, []
        for tally in retired:
            if tally.open:
                self._retired.append(tally)
        return [*retired, *live]


def changes(before: tuple[Route, ...], after: tuple[Route, ...]) -> tuple[tuple[Route, ...], tuple[str, ...]]:
    """Routes that are new or different, and endpoints that are gone."""
    old = {route.endpoint: route for route in before}
    changed = tuple(route for route in after if old.get(route.endpoint) != route)
    names = {route.endpoint for route in after}
    return changed, tuple(endpoint for endpoint in old if endpoint not in names)


def named(spec: VersionSpec) -> VersionName:
    """What fronts have to know of a version; the label is made safe for a header, whatever a table says."""
    signature = spec.signature or Signature()
    return VersionName(
        key=spec.key,
        digest=spec.digest,
        label="".join(c if c.isascii() and c.isprintable() else "?" for c in spec.label),
        semver=spec.semver,
        inputs=tuple(_tensor(field) for field in signature.inputs),
        outputs=tuple(_tensor(field) for field in signature.outputs),
    )


_OPEN_INFERENCE: Mapping[DataType, str] = {
    DataType.BOOL: "BOOL",
    DataType.INT32: "INT32",
    DataType.INT64: "INT64",
    DataType.FLOAT32: "FP32",
    DataType.FLOAT64: "FP64",
    DataType.STRING: "BYTES",
    DataType.DATETIME: "BYTES",
    DataType.BYTES: "BYTES",
}


def _tensor(field: Field) -> TensorInfo:
    return TensorInfo(name=field.name, datatype=_OPEN_INFERENCE[field.type], shape=(-1, *field.dimensions))
