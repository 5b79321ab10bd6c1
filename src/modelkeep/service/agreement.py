"""The reconciler: finds endpoints that do not serve what they follow, says so in an event, and mends it.

What counts as a disagreement and what mends it is decided in `core.agreement`. Here it is looked at, written
down at the endpoint, and mended by the same words that people have: a rollout at once, a move of the pointer,
a new term. Looking is a read; finding and mending are one act, so that nothing is found twice.
"""

import logging
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta

from msgspec import Struct, structs

from modelkeep.core import agreement as core
from modelkeep.core import errors
from modelkeep.core.agreement import Ahead, Found, Mend, Standing
from modelkeep.core.catalog import ModelVersion
from modelkeep.core.events import EventKind
from modelkeep.core.movement import Disagreement, Rift
from modelkeep.core.observation import GatewayReport, RouteState, VersionPhase
from modelkeep.core.plan import Strategy, chosen
from modelkeep.core.promotion import MoveCause
from modelkeep.core.rollout import (
    WITHOUT_SUCCESS,
    Advanced,
    Change,
    Endpoint,
    Observed,
    Rollout,
    RolloutState,
    advance,
)
from modelkeep.core.routing import Epoch, VersionKey
from modelkeep.service.act import SYSTEM_CALLER, Act
from modelkeep.service.gateways import Gateways
from modelkeep.service.served import served_before
from modelkeep.service.traffic import Traffic, settled
from modelkeep.store import catalog as catalog_store
from modelkeep.store import rollout as store
from modelkeep.store.visibility import visible_to

PAGE = 200
"""Endpoints that one round looks at; the next round goes on behind them."""
DEAF_S = 30.0
"""A gateway gets so long to load what a new table names before it counts as deaf."""
DRILL_S = 15.0
"""It has to serve something else for longer than this, too: a drill does so for up to ten seconds."""
KEYS_MAX = 10_000
"""Keys of served versions that are remembered: a version never changes, so its key is made once."""
FOLLOWING = chosen(None, Strategy.IMMEDIATE)
"""How traffic goes to where the pointer is: when the version is loaded, with stable kept as the way back."""
UNCERTAIN = frozenset({Rift.OUTRUN, Rift.DEAF})
"""What a report that is on its way may explain: found twice in a row before anything is done."""

_log = logging.getLogger("modelkeep.agreement")
Starter = Callable[..., Rollout]
Told = Sequence[tuple[GatewayReport, RouteState]]


class _Heard(Struct, frozen=True, kw_only=True):
    """What the gateways that answer say of each endpoint, by its name; the number of the present table, and
    whether they have had time to obey it."""

    routes: dict[str, list[tuple[GatewayReport, RouteState]]]
    table: int
    settled: bool


class Agreements:
    """Looks at endpoints, a page at a time, and mends them, one act each."""

    def __init__(self, traffic: Traffic, gateways: Gateways, start: Starter) -> None:
        self._traffic = traffic
        self._gateways = gateways
        self._start = start
        self._keys: dict[tuple[str, str, int], VersionKey] = {}
        self._odd: dict[str, dict[str, datetime]] = {}
        """Since when gateways serve something else than their table says, by endpoint and gateway."""

    def look(self, act: Act, after: str) -> tuple[dict[str, Rift | None], str]:
        """The endpoints behind a name of which something is to be said: what was found (None: they agree
        again), and behind which name to go on (empty: from the beginning)."""
        heard = self._heard(act)
        page = store.all_endpoints(act.tx, after, PAGE)
        if not after:
            self._odd = {name: since for name, since in self._odd.items() if name in heard.routes}
        news: dict[str, Rift | None] = {}
        for endpoint in page:
            found = core.compare(self._standing(act, endpoint, heard))
            if not _known(endpoint, found, self._traffic.pointed(act, endpoint) if found else None):
                news[endpoint.name] = found.rift if found is not None else None
        return news, page[-1].name if len(page) == PAGE else ""

    def agree(self, act: Act, name: str) -> None:
        """Say and mend what does not agree at an endpoint; what was said already is not said again."""
        endpoint = store.get_endpoint(act.tx, name)
        if endpoint is None:
            return
        seen = self._standing(act, endpoint, self._heard(act))
        found = core.compare(seen)
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
        self._mend(act, endpoint, found, pointed, seen)

    def abandon(self, act: Act, rollout: Rollout, endpoint: Endpoint | None) -> Rollout:
        """End a rollout that its endpoint does not name; no gateway is to go on with it.

        Where the gateways that answer serve as stable what the registry would have them serve, the candidate
        loses its share at once. Where they serve another version, which may well be the newer one, or
        nobody says what they serve, they keep what they have: they are ahead of the registry then, and what
        that leads to is compared as ever.
        """
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
            running = _unfinished(self._traffic.active(act, endpoint))
            wanted = self._traffic.route(act, endpoint, running)
            told = self._heard(act).routes.get(endpoint.name, ())
            if wanted is not None and {state.stable for _, state in told} == {wanted.stable}:
                age = max(endpoint.epoch, done.epoch, running.epoch if running is not None else done.epoch)
                self._gateways.outrank(act, endpoint, running, why, age)
        return done

    # ---------------------------------------------------------------------------------------------- looking

    def _heard(self, act: Act) -> _Heard:
        routes: dict[str, list[tuple[GatewayReport, RouteState]]] = {}
        for report in self._gateways.answering(act):
            for state in report.routes:
                routes.setdefault(state.endpoint, []).append((report, state))
        since = store.table_since(act.tx)
        return _Heard(
            routes=routes,
            table=store.table_number(act.tx),
            settled=since is not None and abs(act.now - since) >= timedelta(seconds=DEAF_S),
        )

    def _standing(self, act: Act, endpoint: Endpoint, heard: _Heard) -> Standing:
        named = self._traffic.active(act, endpoint)
        running = _unfinished(named)
        pointed = self._traffic.pointed(act, endpoint)
        apart = pointed != endpoint.stable
        told = heard.routes.get(endpoint.name, ())
        return Standing(
            endpoint=endpoint,
            rollout=named,
            pointed=pointed,
            pointed_withdrawn=apart and self._withdrawn(act, endpoint, pointed),
            served_withdrawn=apart and self._withdrawn(act, endpoint, endpoint.stable),
            refused=apart and endpoint.stable is None and self._refused(act, endpoint, pointed),
            ahead=self._ahead(act, endpoint, running, told),
            deaf=self._deaf(act, endpoint, running, told, heard),
        )

    def _withdrawn(self, act: Act, endpoint: Endpoint, number: int | None) -> bool:
        if number is None:
            return False
        return catalog_store.get_version(act.tx, endpoint.model, number).tombstone is not None

    def _refused(self, act: Act, endpoint: Endpoint, pointed: int | None) -> bool:
        """Whether the last rollout was to the version that is named, and did not succeed."""
        latest = store.list_rollouts(act.tx, visible_to(SYSTEM_CALLER), store.FIRST, 1, endpoint.name)
        return bool(latest) and latest[0].candidate == pointed and latest[0].state in WITHOUT_SUCCESS

    def _ahead(self, act: Act, endpoint: Endpoint, running: Rollout | None, told: Told) -> Ahead | None:
        """The gateway whose route is the newest, where that is newer than the registry's own."""
        age = max(endpoint.epoch, running.epoch) if running is not None else endpoint.epoch
        newer = [(report, state) for report, state in told if state.epoch > age]
        if not newer:
            return None
        report, newest = max(newer, key=lambda one: one[1].epoch)
        wanted = self._traffic.route(act, endpoint, running)
        stable = {state.stable for _, state in newer if state.epoch == newest.epoch}
        agrees = wanted is not None and stable == {wanted.stable}
        unclear = agrees or len(stable) > 1
        tried = newest.candidate is not None or bool(newest.others_ppm)
        return Ahead(
            gateway=report.gateway,
            epoch=newest.epoch,
            agrees=agrees,
            served=None if unclear else self._held(act, endpoint, running, newest.stable),
            kept=endpoint.stable is not None and newest.previous == self._key(act, endpoint, endpoint.stable),
            taken_back=running is not None and newest.epoch.term > running.epoch.term and not tried,
        )

    def _held(self, act: Act, endpoint: Endpoint, running: Rollout | None, key: VersionKey) -> int | None:
        """The number of the version that a gateway calls so, where the endpoint served it before or is being
        moved to it, and it was not taken back."""
        numbers = [version.number for version in served_before(act, endpoint)]
        if running is not None and running.state is not RolloutState.ROLLING_BACK:
            numbers += [one for one in running.numbers if not self._withdrawn(act, endpoint, one)]
        return next((number for number in numbers if self._key(act, endpoint, number) == key), None)

    def _key(self, act: Act, endpoint: Endpoint, number: int) -> VersionKey:
        """What gateways call a version of the endpoint's model."""
        place = (endpoint.id, str(endpoint.model), number)
        key = self._keys.get(place)
        if key is None:
            if len(self._keys) >= KEYS_MAX:
                self._keys.clear()
            key = self._keys[place] = self._traffic.spec(act, endpoint.model, number).key
        return key

    def _deaf(
        self, act: Act, endpoint: Endpoint, running: Rollout | None, told: Told, heard: _Heard
    ) -> tuple[str, ...]:
        """The gateways that say that they have the present table, which is not new, and for longer than a
        drill have served another stable version than it says, though that is loaded or they have not begun
        to."""
        before = self._odd.pop(endpoint.name, {})
        told = [(report, state) for report, state in told if report.table == heard.table]
        if running is not None or endpoint.stable is None or not heard.settled or not told:
            return ()
        wanted = self._key(act, endpoint, endpoint.stable)
        odd = {
            report.gateway: min(before.get(report.gateway, act.now), act.now)
            for report, state in told
            if state.stable != wanted and not _loading(report, wanted)
        }
        if odd:
            self._odd[endpoint.name] = odd
        return tuple(name for name, since in odd.items() if act.now - since > timedelta(seconds=DRILL_S))

    # ----------------------------------------------------------------------------------------------- mending

    def _mend(self, act: Act, endpoint: Endpoint, found: Found, pointed: int | None, seen: Standing) -> None:
        match found.mend:
            case Mend.START:
                self._bring(act, endpoint, self._version(act, endpoint, pointed), found.why)
            case Mend.POINT:
                served = self._version(act, endpoint, endpoint.stable)
                self._traffic.point(act, endpoint, served, cause=MoveCause.ROLLBACK, reason=found.why)
            case Mend.LET_GO:
                self._let_go(act, endpoint, pointed, found.why)
            case Mend.OUTRANK | Mend.TAKE_OVER | Mend.TAKE_BACK | Mend.CALL_OFF:
                assert seen.ahead is not None, "the comparison has found it"
                self._catch_up(act, endpoint, found, seen.ahead)
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
                act, endpoint, version, reason=why, request=None, plan=FOLLOWING, plan_from="reconciler"
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
            previous=changed.previous,
            was=endpoint.stable,
        )
        self._traffic.moved(act, None, self._traffic.route(act, changed, None), sequence)

    def _catch_up(self, act: Act, endpoint: Endpoint, found: Found, ahead: Ahead) -> None:
        """Have gateways follow again that are ahead. No mend of these gives weight to anybody, and none takes
        stable's callers away."""
        running = _unfinished(self._traffic.active(act, endpoint))
        newer = Epoch(ahead.epoch.term + 1, 0)
        match found.mend:
            case Mend.TAKE_OVER:
                self._take_over(act, endpoint, running, ahead, found.why)
            case Mend.TAKE_BACK if running is not None:
                seen = Observed(rolled_back=found.why, rolled_back_epoch=newer)
                self._traffic.apply(act, endpoint, running, advance(running, seen, act.now))
            case Mend.CALL_OFF if running is not None:
                self._call_off(act, endpoint, running, newer, found.why)
            case _:
                self._gateways.outrank(act, endpoint, running, found.why, ahead.epoch)

    def _call_off(self, act: Act, endpoint: Endpoint, running: Rollout, newer: Epoch, why: str) -> None:
        done = core.abandoned(running, why, act.now, newer)
        self._traffic.apply(act, endpoint, running, Advanced(rollout=done, change=Change.CANCELLED, why=why))

    def _take_over(
        self, act: Act, endpoint: Endpoint, running: Rollout | None, ahead: Ahead, why: str
    ) -> None:
        """Have the registry say what its gateways serve. The version that it named instead is taken back, as
        when a gateway tells of its own rollback, unless they keep it as the way back: so a success ends."""
        newer = Epoch(ahead.epoch.term + 1, 0)
        if running is not None:
            self._call_off(act, endpoint, running, newer, why)
            endpoint = store.get_endpoint(act.tx, endpoint.name) or endpoint
        served = self._version(act, endpoint, ahead.served)
        left = self._version(act, endpoint, endpoint.stable) if endpoint.stable is not None else None
        stays = ahead.kept and left is not None and left.tombstone is None
        changed = structs.replace(
            endpoint,
            rollout=None,
            stable=served.number,
            previous=endpoint.stable if stays else None,
            epoch=newer,
        )
        self._republish(act, endpoint, changed, why)
        cause = MoveCause.ROLLOUT if ahead.kept else MoveCause.ROLLBACK
        self._traffic.point(act, changed, served, cause=cause, reason=why)
        if left is not None and left.tombstone is None and not ahead.kept:
            self._traffic.promotions.tombstone(act, left, why)


def _unfinished(named: Rollout | None) -> Rollout | None:
    return named if named is not None and not named.state.finished else None


def _loading(report: GatewayReport, wanted: VersionKey) -> bool:
    """Whether a gateway is on its way to serving what is wanted of it."""
    phases = [version.phase for version in report.versions if version.key == wanted]
    return bool(phases) and phases[0] is not VersionPhase.READY


def _known(endpoint: Endpoint, found: Found | None, pointed: int | None) -> bool:
    """Whether the endpoint bears already what was found. What mends a gateway that is ahead depends on what
    it serves, and that may have changed."""
    note = endpoint.disagreement
    if found is None or note is None:
        return found is None and note is None
    if found.rift is Rift.OUTRUN and note.mend != found.mend:
        return False
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
