"""Which table a gateway should obey next: pure functions over tables, used by the supervisor for every move.

Traffic is moved here in only three ways: towards what the control plane wants (as far as versions are ready
and epochs allow), back by a rollback, and to the stable versions alone after an unclean stop. Nothing here
reads a clock or a disk.
"""

from collections.abc import Collection, Iterable

import msgspec

from modelkeep.core import errors
from modelkeep.core.routing import Epoch, Route, RoutingTable, VersionKey, VersionSpec, rolled_back


def next_table(live: RoutingTable, desired: RoutingTable, ready: Collection[VersionKey]) -> RoutingTable:
    """The table to obey now: `desired`, except for routes that are fenced or not ready yet, which stay as
    they are.

    A route older than the live one is ignored, so that a late control plane cannot undo a rollback. A route
    of whose stable or tried versions one is not ready keeps its old form; where there is no old form, or the
    term rose, which takes traffic away from somebody, the stable version alone serves as soon as it is ready.
    Endpoints that `desired` no longer names are gone.
    """
    current = {route.endpoint: route for route in live.routes}
    routes: list[Route] = []
    for wanted in desired.routes:
        have = current.get(wanted.endpoint)
        if have is not None and wanted.epoch < have.epoch:
            routes.append(have)
        elif wanted.stable in ready and wanted.tried.issubset(ready):
            routes.append(wanted)
        elif wanted.stable in ready and (have is None or wanted.epoch.term > have.epoch.term):
            routes.append(stable_alone(wanted))
        elif have is not None:
            routes.append(have)
    return _table(desired.number, routes, desired.versions, live.versions)


def needed(live: RoutingTable, desired: RoutingTable) -> dict[VersionKey, VersionSpec]:
    """The versions that have to be loaded: those of the live routes, and those of wanted routes that are not
    fenced."""
    current = {route.endpoint: route for route in live.routes}
    keys: set[VersionKey] = set()
    for route in live.routes:
        keys |= route.keys
    for wanted in desired.routes:
        have = current.get(wanted.endpoint)
        if have is None or wanted.epoch >= have.epoch:
            keys |= wanted.keys
    return {spec.key: spec for spec in (*live.versions, *desired.versions) if spec.key in keys}


def may_sleep(live: RoutingTable, desired: RoutingTable) -> set[VersionKey]:
    """The versions that need not be loaded while nobody asks for them: those of which every route that counts
    says so."""
    current = {route.endpoint: route for route in live.routes}
    counting = [
        wanted
        for wanted in desired.routes
        if (have := current.get(wanted.endpoint)) is None or wanted.epoch >= have.epoch
    ]
    may: set[VersionKey] = set()
    must: set[VersionKey] = set()
    for route in (*live.routes, *counting):
        (may if route.may_sleep else must).update(route.keys)
    return may - must


def workers(live: RoutingTable, desired: RoutingTable) -> dict[VersionKey, int]:
    """How many processes each version has: as many as the most demanding of its wanted routes says."""
    counts: dict[VersionKey, int] = {}
    wanted = {route.endpoint for route in desired.routes}
    for route in (*desired.routes, *(route for route in live.routes if route.endpoint not in wanted)):
        for key in route.keys:
            counts[key] = max(route.workers, counts.get(key, 1))
    return counts


def named_anew(live: RoutingTable, before: RoutingTable, wanted: RoutingTable) -> set[VersionKey]:
    """The versions that somebody asks for anew: those of routes that are newer than what was obeyed or wanted
    until now."""
    known: dict[str, Epoch] = {}
    for route in (*live.routes, *before.routes):
        known[route.endpoint] = max(route.epoch, known.get(route.endpoint, route.epoch))
    keys: set[VersionKey] = set()
    for route in wanted.routes:
        if route.endpoint not in known or route.epoch > known[route.endpoint]:
            keys |= route.keys
    return keys


def taken_back(live: RoutingTable, endpoint: str) -> tuple[RoutingTable, Route, VersionKey]:
    """The table after a rollback of one endpoint, its former route, and the version that was removed.

    Raises:
        RouteNotFound: no such endpoint here.
        NoRollbackTarget: nothing to go back to.
    """
    route = live.route(endpoint)
    if route is None:
        raise errors.RouteNotFound(
            f"This gateway serves no endpoint {endpoint!r}; see: modelkeep gateway status."
        )
    after = rolled_back(route)
    removed = next((arm.key for arm in route.arms[1:]), route.candidate or route.stable)
    routes = [after if other.endpoint == endpoint else other for other in live.routes]
    return _table(live.number, routes, live.versions, ()), route, removed


def stable_only(live: RoutingTable) -> RoutingTable:
    """The table with no candidate's weight: what a gateway trusts after it was killed, until it is told
    again."""
    return msgspec.structs.replace(live, routes=tuple(stable_alone(route) for route in live.routes))


def stable_alone(route: Route) -> Route:
    """A route with nobody's weight but stable's; what it names stays."""
    others = tuple(msgspec.structs.replace(other, weight_ppm=0) for other in route.others)
    return msgspec.structs.replace(route, candidate_ppm=0, others=others)


def _table(
    number: int, routes: Iterable[Route], first: Iterable[VersionSpec], second: Iterable[VersionSpec]
) -> RoutingTable:
    """A table that describes exactly the versions its routes name, routes and versions in a fixed order."""
    kept = tuple(sorted(routes, key=lambda route: route.endpoint))
    named: set[VersionKey] = set()
    for route in kept:
        named |= route.keys
    specs: dict[VersionKey, VersionSpec] = {}
    for spec in (*first, *second):
        if spec.key in named:
            specs.setdefault(spec.key, spec)
    return RoutingTable(number=number, routes=kept, versions=tuple(specs[key] for key in sorted(specs)))
