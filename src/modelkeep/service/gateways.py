"""The gateways' side of rollouts: the table they fetch, the reports they send, the rollbacks they did.

A gateway may take traffic back by itself, at any time and without asking; what it did is taken over here, so
that the registry says what is served. Nothing here talks to a gateway.
"""

import logging
from datetime import timedelta

from msgspec import structs

from modelkeep.core import rollout as core
from modelkeep.core import values
from modelkeep.core.access import Verb
from modelkeep.core.catalog import ModelVersion
from modelkeep.core.events import EventKind
from modelkeep.core.observation import GatewayReply, GatewayReport, LocalRollback, check_report, lately
from modelkeep.core.promotion import MoveCause
from modelkeep.core.rollout import Endpoint, Observed, Rollout, RolloutState
from modelkeep.core.routing import Epoch, Route, RoutingTable, VersionKey, VersionSpec
from modelkeep.service.act import Act
from modelkeep.service.traffic import Traffic
from modelkeep.store import catalog as catalog_store
from modelkeep.store import rollout as store

SILENT_S = 10.0
"""A gateway that has not reported for so long is not waited for; its lease takes the candidate back."""
FORGOTTEN_S = 7 * 86_400.0
"""A gateway that was silent for so long is not shown any more."""

_log = logging.getLogger("modelkeep.gateways")


class Gateways:
    """What gateways ask for and tell."""

    def __init__(self, traffic: Traffic) -> None:
        self._traffic = traffic
        self._table: RoutingTable | None = None
        """The last table that was built: its number says all that it depends on."""

    def authorise(self, act: Act) -> None:
        """Only gateways may fetch tables and bytes by digest. Raises NotAllowed."""
        act.authorise(Verb.SERVE, None)

    def answering(self, act: Act) -> list[GatewayReport]:
        """The last reports of the gateways that answer now. One that reported in what is the future since the
        clock was set back may have been silent ever since; if it lives it reports again in a second."""
        lately = timedelta(seconds=SILENT_S)
        heard = store.list_gateways(act.tx, act.now - lately, act.now + lately)
        return [gateway.report for gateway in heard]

    # --------------------------------------------------------------------------------------------- the table

    def table_if_newer(self, act: Act, after: int) -> RoutingTable | None:
        """The routing table, unless it is the one the gateway has.

        Raises:
            NotAllowed: the caller is no gateway.
        """
        self.authorise(act)
        number = store.table_number(act.tx)
        if number == after:
            return None
        if self._table is None or self._table.number != number:
            self._table = self._build(act, number)
        return self._table

    def _build(self, act: Act, number: int) -> RoutingTable:
        routes: list[Route] = []
        specs: dict[VersionKey, VersionSpec] = {}
        after = ""
        while batch := store.all_endpoints(act.tx, after, values.PAGE_MAX):
            for endpoint in batch:
                running = self._traffic.active(act, endpoint)
                served = self._traffic.served(act, endpoint, running)
                route = core.route_of(endpoint, running, {n: spec.key for n, spec in served.items()})
                if route is not None:
                    routes.append(route)
                    specs.update((spec.key, spec) for spec in served.values() if spec.key in route.keys)
            after = batch[-1].name
        return RoutingTable(number=number, routes=tuple(routes), versions=tuple(specs.values()))

    # ------------------------------------------------------------------------------------------- the reports

    def report(self, act: Act, report: GatewayReport) -> GatewayReply:
        """Take in what a gateway saw and did. Sent twice, it changes nothing the second time.

        Raises:
            NotAllowed: the caller is no gateway.
            InvalidName, Invalid, LimitExceeded: it says what cannot be.
        """
        self.authorise(act)
        check_report(report)
        store.add_ticks(act.tx, report.gateway, report.ticks, act.now)
        known = store.get_gateway(act.tx, report.gateway)
        told = lately(known.report.lately if known is not None else (), report.ticks, act.now)
        bare = structs.replace(report, ticks=(), rollbacks=(), lately=told)
        store.put_gateway(act.tx, bare, act.now)
        for done in report.rollbacks:
            self._take_over(act, report.gateway, done)
        highest: dict[tuple[str, str | None], int] = {}
        for tick in report.ticks:
            key = (tick.endpoint, tick.rollout)
            highest[key] = max(highest.get(key, -1), tick.number)
        return GatewayReply(
            taken=tuple((endpoint, rollout, number) for (endpoint, rollout), number in highest.items()),
            rollbacks_taken=len(report.rollbacks),
        )

    def _take_over(self, act: Act, gateway: str, done: LocalRollback) -> None:
        """Make a rollback that a gateway did by itself the registry's own.

        One that is older than what the registry has decided since is no news. One that took back a version
        nobody serves any more, or went back to one that was itself taken back, is outranked, so that its
        gateway follows again.
        """
        endpoint = store.get_endpoint(act.tx, done.endpoint)
        if endpoint is None:
            return
        running = self._traffic.active(act, endpoint)
        age = max(endpoint.epoch, running.epoch) if running is not None else endpoint.epoch
        if done.epoch <= age:
            return
        words = values.printable(f"{done.cause} ({done.actor} at gateway {gateway}, {done.took_ms:.2f} ms)")
        if running is not None and done.rollout == running.id:
            self._end(act, endpoint, running, words, done.epoch)
            return
        target = self._former(act, endpoint, done)
        if target is None:
            self.outrank(act, endpoint, running, words, done.epoch)
            return
        if running is not None:
            self._end(
                act, endpoint, running, f"the version it starts from was taken back: {words}", done.epoch
            )
            endpoint = store.get_endpoint(act.tx, done.endpoint) or endpoint
        assert endpoint.stable is not None, "there is somebody to take over from"
        leaving = catalog_store.get_version(act.tx, endpoint.model, endpoint.stable)
        self._traffic.revert(act, endpoint, target, words, done.epoch)
        self._traffic.promotions.tombstone(act, leaving, words)
        self._traffic.point(act, endpoint, target, cause=MoveCause.ROLLBACK, reason=words)

    def _end(self, act: Act, endpoint: Endpoint, running: Rollout, words: str, epoch: Epoch) -> None:
        seen = Observed(rolled_back=words, rolled_back_epoch=epoch)
        self._traffic.apply(act, endpoint, running, core.advance(running, seen, act.now))

    def _former(self, act: Act, endpoint: Endpoint, done: LocalRollback) -> ModelVersion | None:
        """The version before, when a gateway took back the one that the endpoint serves and went back to
        that; one that was itself taken back is none."""
        if endpoint.stable is None or endpoint.previous is None:
            return None
        keys = {n: spec.key for n, spec in self._traffic.served(act, endpoint, None).items()}
        if (done.removed, done.stable) != (keys[endpoint.stable], keys[endpoint.previous]):
            return None
        former = catalog_store.get_version(act.tx, endpoint.model, endpoint.previous)
        return former if former.tombstone is None else None

    def outrank(
        self, act: Act, endpoint: Endpoint, running: Rollout | None, words: str, epoch: Epoch
    ) -> None:
        """Have gateways follow again that have a route of this age."""
        newer = Epoch(epoch.term + 1, 0)
        _log.warning("gateways.rollback_outranked", extra={"endpoint": endpoint.name, "why": words})
        before = self._traffic.route(act, endpoint, running)
        changed, after = structs.replace(endpoint, epoch=newer), running
        if running is not None:
            after = structs.replace(running, epoch=newer)
            if running.state is RolloutState.STEPPING:
                after = structs.replace(after, step_since=None)
            store.save_rollout(act.tx, after)
        store.save_endpoint(act.tx, changed, act.now)
        sequence = self._traffic.record(
            act,
            EventKind.ENDPOINT_CHANGED,
            endpoint,
            reason=f"gateways that had a newer route are to follow again: {words}",
            epoch=newer,
        )
        self._traffic.moved(act, before, self._traffic.route(act, changed, after), sequence)

    def forget(self, act: Act) -> None:
        """Let go of gateways that have long been gone."""
        store.forget_gateways(act.tx, act.now - timedelta(seconds=FORGOTTEN_S))
