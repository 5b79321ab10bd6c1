"""The reconciler: finds endpoints that do not serve what they follow, says so in an event, and mends it.

What counts as a disagreement and what mends it is decided in `core.agreement`. Here it is looked at, written
down at the endpoint, and mended by the same words that people have: a rollout at once, a move of the pointer,
a new term. Looking is a read; finding and mending are one act, so that nothing is found twice.
"""

import logging
from collections.abc import Callable, Sequence
from datetime import timedelta

from msgspec import structs

from modelkeep.core import agreement as core
from modelkeep.core import errors
from modelkeep.core.agreement import Found, Mend, Standing
from modelkeep.core.catalog import ModelVersion
from modelkeep.core.events import EventKind
from modelkeep.core.movement import Disagreement, Rift
from modelkeep.core.observation import GatewayReport, RouteState, VersionPhase
from modelkeep.core.plan import Strategy, chosen
from modelkeep.core.promotion import MoveCause
from modelkeep.core.rollout import WITHOUT_SUCCESS, Endpoint, Observed, Rollout, RolloutState, advance
from modelkeep.core.routing import Epoch, Route
from modelkeep.service.act import SYSTEM_CALLER, Act
from modelkeep.service.gateways import Gateways
from modelkeep.service.traffic import Traffic, settled
from modelkeep.store import catalog as catalog_store
from modelkeep.store import rollout as store
from modelkeep.store.visibility import visible_to

PAGE = 200
"""Endpoints that one round looks at; the next round goes on behind them."""
DEAF_S = 30.0
"""A gateway gets so long to load what a new table names before it counts as deaf."""
AT_ONCE = chosen(None, Strategy.IMMEDIATE)
"""How traffic goes to where the pointer is: when the version is loaded, with stable kept as the way back."""
UNCERTAIN = frozenset({Rift.OUTRUN, Rift.DEAF})
"""What a report that is on its way may explain: found twice in a row before anything is done."""

_log = logging.getLogger("modelkeep.agreement")
Starter = Callable[..., Rollout]


class Agreements:
    """Looks at endpoints, a page at a time, and mends them, one act each."""

    def __init__(self, traffic: Traffic, gateways: Gateways, start: Starter) -> None:
        self._traffic = traffic
        self._gateways = gateways
        self._start = start

    def look(self, act: Act, after: str) -> tuple[dict[str, Rift | None], str]:
        """The endpoints behind a name of which something is to be said: what was found (None: they agree
        again), and behind which name to go on (empty: from the beginning)."""
        reports = self._gateways.answering(act)
        page = store.all_endpoints(act.tx, after, PAGE)
        news: dict[str, Rift | None] = {}
        for endpoint in page:
            found = core.compare(self._standing(act, endpoint, reports))
            if not _known(endpoint, found, self._traffic.pointed(act, endpoint) if found else None):
                news[endpoint.name] = found.rift if found is not None else None
        return news, page[-1].name if len(page) == PAGE else ""

    def agree(self, act: Act, name: str) -> None:
        """Say and mend what does not agree at an endpoint; what was said already is not said again."""
        endpoint = store.get_endpoint(act.tx, name)
        if endpoint is None:
            return
        reports = self._gateways.answering(act)
        found = core.compare(self._standing(act, endpoint, reports))
        pointed = self._traffic.pointed(act, endpoint)
        if _known(endpoint, found, pointed):
            return
        note = _note(endpoint, found, pointed, act) if found is not None else None
        endpoint = structs.replace(endpoint, disagreement=note)
        store.save_endpoint(act.tx, endpoint, act.now)
        if found is None:
            self._traffic.record(act, EventKind.ENDPOINT_AGREED, endpoint, stable=endpoint.stable)
            return
        _log.warning(
            "agreement.disagreed",
            extra={"endpoint": name, "rift": found.rift, "mend": found.mend, "why": found.why},
        )
        self._traffic.record(
            act,
            EventKind.ENDPOINT_DISAGREED,
            endpoint,
            number=pointed,
            reason=found.why,
            rift=found.rift,
            mend=found.mend,
            served=endpoint.stable,
        )
        self._mend(act, endpoint, found, pointed, reports)

    def abandon(self, act: Act, rollout: Rollout, endpoint: Endpoint | None) -> Rollout:
        """End a rollout that its endpoint does not name; no gateway is to go on with it."""
        why = f"the endpoint {rollout.endpoint} does not name it"
        done = core.abandoned(rollout, why, act.now)
        store.save_rollout(act.tx, done)
        act.record(
            EventKind.ROLLOUT_CANCELLED,
            f"endpoint/{rollout.endpoint}",
            model=rollout.model,
            number=rollout.candidate,
            reason=why,
            rollout=rollout.id,
            state=done.state,
        )
        if endpoint is not None:
            running = self._traffic.active(act, endpoint)
            age = max(endpoint.epoch, done.epoch, running.epoch if running is not None else done.epoch)
            self._gateways.outrank(act, endpoint, running, why, age)
        return done

    # ---------------------------------------------------------------------------------------------- looking

    def _standing(self, act: Act, endpoint: Endpoint, reports: Sequence[GatewayReport]) -> Standing:
        named = self._traffic.active(act, endpoint)
        running = named if named is not None and not named.state.finished else None
        pointed = self._traffic.pointed(act, endpoint)
        apart = pointed != endpoint.stable
        age = max(endpoint.epoch, running.epoch) if running is not None else endpoint.epoch
        routes = [(report, state) for report in reports if (state := _of(report, endpoint)) is not None]
        return Standing(
            endpoint=endpoint,
            rollout=named,
            pointed=pointed,
            pointed_withdrawn=apart and self._withdrawn(act, endpoint, pointed),
            served_withdrawn=apart and self._withdrawn(act, endpoint, endpoint.stable),
            refused=apart and endpoint.stable is None and self._refused(act, endpoint, pointed),
            ahead=tuple(report.gateway for report, state in routes if state.epoch > age),
            deaf=self._deaf(act, endpoint, running, routes),
        )

    def _withdrawn(self, act: Act, endpoint: Endpoint, number: int | None) -> bool:
        if number is None:
            return False
        return catalog_store.get_version(act.tx, endpoint.model, number).tombstone is not None

    def _refused(self, act: Act, endpoint: Endpoint, pointed: int | None) -> bool:
        """Whether the last rollout was to the version that is named, and did not succeed."""
        latest = store.list_rollouts(act.tx, visible_to(SYSTEM_CALLER), store.FIRST, 1, endpoint.name)
        return bool(latest) and latest[0].candidate == pointed and latest[0].state in WITHOUT_SUCCESS

    def _deaf(
        self,
        act: Act,
        endpoint: Endpoint,
        running: Rollout | None,
        routes: Sequence[tuple[GatewayReport, RouteState]],
    ) -> tuple[str, ...]:
        """The gateways that say that they have the present table, which is not new, and serve another stable
        version than it says, though that is loaded or they have not begun to."""
        if running is not None or not routes:
            return ()
        wanted = self._traffic.route(act, endpoint, None)
        number, since = store.table_number(act.tx), store.table_since(act.tx)
        if wanted is None or since is None or act.now - since < timedelta(seconds=DEAF_S):
            return ()
        return tuple(
            report.gateway
            for report, state in routes
            if report.table == number and state.stable != wanted.stable and not _loading(report, wanted)
        )

    # ----------------------------------------------------------------------------------------------- mending

    def _mend(
        self,
        act: Act,
        endpoint: Endpoint,
        found: Found,
        pointed: int | None,
        reports: Sequence[GatewayReport],
    ) -> None:
        match found.mend:
            case Mend.START:
                self._bring(act, endpoint, self._version(act, endpoint, pointed), found.why)
            case Mend.POINT:
                served = self._version(act, endpoint, endpoint.stable)
                self._traffic.point(act, endpoint, served, cause=MoveCause.ROLLBACK, reason=found.why)
            case Mend.LET_GO:
                self._let_go(act, endpoint, pointed, found.why)
            case Mend.OUTRANK:
                self._overtake(act, endpoint, reports, found.why)
            case Mend.REPUBLISH:
                self._republish(act, endpoint, endpoint, found.why)
            case Mend.WAIT | Mend.NOTHING:
                pass

    def _version(self, act: Act, endpoint: Endpoint, number: int | None) -> ModelVersion:
        assert number is not None, "the comparison has found one"
        return catalog_store.get_version(act.tx, endpoint.model, number)

    def _bring(self, act: Act, endpoint: Endpoint, version: ModelVersion, why: str) -> None:
        try:
            self._start(
                act, endpoint, version, reason=why, request=None, plan=AT_ONCE, plan_from="reconciler"
            )
        except errors.ModelkeepError as problem:  # said, and left to a person: it would fail again
            assert endpoint.disagreement is not None, "it was noted a line ago"
            note = structs.replace(endpoint.disagreement, mend=Mend.NOTHING, why=f"{why}: {problem.message}")
            store.save_endpoint(act.tx, structs.replace(endpoint, disagreement=note), act.now)

    def _let_go(self, act: Act, endpoint: Endpoint, pointed: int | None, why: str) -> None:
        """Forget a rollout that is not under way. One that had succeeded is what the endpoint serves, where
        the pointer says so too: that was the step that is missing."""
        ended = self._traffic.active(act, endpoint)
        changed = structs.replace(endpoint, rollout=None)
        if ended is not None and (ended.state is not RolloutState.SUCCEEDED or ended.candidate == pointed):
            changed = settled(endpoint, ended)
        newest = max(changed.epoch, ended.epoch) if ended is not None else changed.epoch
        changed = structs.replace(changed, epoch=Epoch(newest.term + 1, 0))
        self._republish(act, endpoint, changed, why)

    def _republish(self, act: Act, endpoint: Endpoint, changed: Endpoint, why: str) -> None:
        store.save_endpoint(act.tx, changed, act.now)
        sequence = self._traffic.record(
            act,
            EventKind.ENDPOINT_CHANGED,
            changed,
            number=changed.stable,
            reason=f"reconciled: {why}",
            stable=changed.stable,
            was=endpoint.stable,
        )
        self._traffic.moved(act, None, self._traffic.route(act, changed, None), sequence)

    def _overtake(self, act: Act, endpoint: Endpoint, reports: Sequence[GatewayReport], why: str) -> None:
        """Have gateways follow again that are ahead. A rollout under way is taken back: what it counted and
        what they serve do not belong together, and no candidate may get weight by that."""
        states = [state for report in reports if (state := _of(report, endpoint)) is not None]
        newest = max(state.epoch for state in states)
        running = self._traffic.active(act, endpoint)
        if running is None:
            self._gateways.outrank(act, endpoint, None, why, newest)
            return
        seen = Observed(rolled_back=why, rolled_back_epoch=Epoch(newest.term + 1, 0))
        self._traffic.apply(act, endpoint, running, advance(running, seen, act.now))


def _of(report: GatewayReport, endpoint: Endpoint) -> RouteState | None:
    return next((state for state in report.routes if state.endpoint == endpoint.name), None)


def _loading(report: GatewayReport, wanted: Route) -> bool:
    """Whether a gateway is on its way to serving what is wanted of it."""
    phases = [version.phase for version in report.versions if version.key == wanted.stable]
    return bool(phases) and phases[0] is not VersionPhase.READY


def _known(endpoint: Endpoint, found: Found | None, pointed: int | None) -> bool:
    """Whether the endpoint bears already what was found."""
    note = endpoint.disagreement
    if found is None or note is None:
        return found is None and note is None
    return (note.rift, note.pointed, note.served) == (found.rift, pointed, endpoint.stable)


def _note(endpoint: Endpoint, found: Found, pointed: int | None, act: Act) -> Disagreement:
    return Disagreement(
        rift=found.rift,
        mend=found.mend,
        why=found.why,
        pointed=pointed,
        served=endpoint.stable,
        since=act.now,
    )
