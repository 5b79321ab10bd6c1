"""Endpoints and rollouts: what people say about them, what gateways report, and one step of the controller.

Each method is one act. What a rollout does next is decided by `core.rollout`; here it is loaded, saved,
recorded, and the routing table's number raised, all in one transaction. Gateways fetch the table and obey it;
nothing here talks to them.
"""

import secrets
from datetime import datetime, timedelta
from typing import Protocol

from msgspec import Struct, structs

from modelkeep.core import errors, values
from modelkeep.core import rollout as core
from modelkeep.core.access import Verb
from modelkeep.core.catalog import ModelVersion
from modelkeep.core.events import EventKind
from modelkeep.core.observation import GatewayReply, GatewayReport, LocalRollback, VersionPhase
from modelkeep.core.promotion import MoveCause
from modelkeep.core.rollout import Advanced, Change, Endpoint, Evidence, Observed, Plan, Rollout, RolloutState
from modelkeep.core.routing import Epoch, Route, RoutingTable, VersionSpec
from modelkeep.core.values import ModelName
from modelkeep.service.act import Act
from modelkeep.store import catalog as catalog_store
from modelkeep.store import rollout as store

GATEWAY_SILENT_S = 10.0
"""A gateway that has not reported for so long is not waited for; its lease takes the candidate back."""
LEASE_S = 15.0
"""How long a controller has an unfinished rollout for itself."""
TICK_LATE_S = 900.0
"""Ticks may arrive so late and are still looked for among the new ones; later ones count with the next look.
"""
PREDICTION_COUNTS_KEPT_S = 3_600.0
"""How long counts of times without a rollout are kept."""


class EndpointPage(Struct, frozen=True, kw_only=True):
    """A page of endpoints."""

    items: tuple[Endpoint, ...]
    next_page_token: str | None = None


class RolloutPage(Struct, frozen=True, kw_only=True):
    """A page of rollouts."""

    items: tuple[Rollout, ...]
    next_page_token: str | None = None


class GatewayStatus(Struct, frozen=True, kw_only=True):
    """What one gateway does for an endpoint, as far as it has told."""

    gateway: str
    url: str
    seen_at: datetime
    answering: bool
    epoch: Epoch | None
    candidate_ppm: int
    in_step: bool
    phases: dict[str, VersionPhase]


class RolloutStatus(Struct, frozen=True, kw_only=True):
    """How an endpoint's traffic stands: the rollout under way, or else the last one."""

    endpoint: Endpoint
    stable: str | None
    previous: str | None
    rollout: Rollout | None
    active: bool
    gateways: tuple[GatewayStatus, ...]


class Explanation(Struct, frozen=True, kw_only=True):
    """Evidence recomputed from the stored counts; `equal` says whether it agrees to the last bit."""

    rollout: str
    ticks: int
    recomputed: Evidence
    equal: bool
    judgement: core.Judgement


class StageKeeper(Protocol):
    """What rollouts need of promotion: the stage follows a rollout that succeeded."""

    def enter_stage(
        self,
        act: Act,
        version: ModelVersion,
        stage: str,
        *,
        cause: MoveCause,
        reason: str,
        request: str | None,
        rollout: str | None,
    ) -> object:
        """Move the version into the stage, displacing who is there."""

    def tombstone(self, act: Act, version: ModelVersion, why: str) -> None:
        """Mark the version as taken back."""


class Rollouts:
    """The rollout column's verbs. `promotions` is set once, when the house is assembled."""

    promotions: StageKeeper

    # ----------------------------------------------------------------------------------------------------
    # endpoints

    def put_endpoint(
        self,
        act: Act,
        name: str,
        model: ModelName,
        *,
        stage: str = "production",
        key_header: str | None = None,
        slow_ms: float = 250.0,
        lease_s: float = 0.0,
        plan: Plan = core.CANARY,
    ) -> Endpoint:
        """Create an endpoint, or change the settings of one; one whose stage is occupied begins to serve at
        once.

        Raises:
            ModelNotFound: there is no such model.
            EndpointExists: the name belongs to another model or stage; delete it first.
            InvalidPlan, InvalidName, InvalidTransition: a setting does not fit.
        """
        values.check_name(name, "endpoint")
        core.check_plan(plan)
        act.readable(model)
        act.authorise(Verb.OPERATE, model)
        if key_header is not None:
            key_header = _header(key_header)
        registered = catalog_store.get_model(act.tx, model)
        registered.stages.stage(stage)
        known = store.get_endpoint(act.tx, name)
        if known is not None:
            return self._change(act, known, model, stage, key_header, slow_ms, lease_s, plan)
        endpoint = Endpoint(
            id=act.new_id("end"),
            name=name,
            model=model,
            stage=stage,
            key_header=key_header,
            slow_ms=slow_ms,
            lease_s=lease_s,
            plan=plan,
            created_at=act.now,
            created_by=act.by,
        )
        store.add_endpoint(act.tx, endpoint, registered.id)
        event = act.record(EventKind.ENDPOINT_CREATED, _subject(name), model=model, stage=stage, plan=plan)
        store.set_table_number(act.tx, event.sequence, act.now)
        occupant = registered.occupants.get(stage)
        if occupant is not None:
            version = catalog_store.get_version(act.tx, model, occupant)
            self.start(act, endpoint, version, reason="the endpoint was created", request=None)
        return self._endpoint(act, name)

    def _change(
        self,
        act: Act,
        known: Endpoint,
        model: ModelName,
        stage: str,
        key_header: str | None,
        slow_ms: float,
        lease_s: float,
        plan: Plan,
    ) -> Endpoint:
        if known.model != model or known.stage != stage:
            raise errors.EndpointExists(
                f"The endpoint {known.name} follows {known.model}#{known.stage}; delete it first, or take "
                "another name.",
                endpoint=known.name,
            )
        epoch = Epoch(known.epoch.term, known.epoch.seq + (0 if known.rollout else 1))
        changed = structs.replace(
            known, key_header=key_header, slow_ms=slow_ms, lease_s=lease_s, plan=plan, epoch=epoch
        )
        store.save_endpoint(act.tx, changed, act.now)
        event = act.record(
            EventKind.ENDPOINT_CHANGED,
            _subject(known.name),
            model=model,
            plan=plan,
            key_header=key_header,
            slow_ms=slow_ms,
            lease_s=lease_s,
        )
        store.set_table_number(act.tx, event.sequence, act.now)
        return changed

    def get_endpoint(self, act: Act, name: str) -> Endpoint:
        """One endpoint. Raises EndpointNotFound, also for one whose model the caller may not read."""
        return self._endpoint(act, name)

    def list_endpoints(self, act: Act, *, limit: int, page_token: str | None) -> EndpointPage:
        """The endpoints the caller may see, by name."""
        after = values.check_name(page_token, "page token") if page_token else ""
        found: list[Endpoint] = []
        while len(found) <= limit:
            batch = store.list_endpoints(act.tx, after, limit + 1)
            found += [endpoint for endpoint in batch if act.may(Verb.READ, endpoint.model)]
            if len(batch) <= limit:
                break
            after = batch[-1].name
        more = found[limit - 1].name if len(found) > limit else None
        return EndpointPage(items=tuple(found[:limit]), next_page_token=more)

    def delete_endpoint(self, act: Act, name: str) -> None:
        """Remove an endpoint; its callers get 404 from then on.

        Raises:
            RolloutActive: traffic is being moved; abort that first.
        """
        endpoint = self._endpoint(act, name)
        act.authorise(Verb.OPERATE, endpoint.model)
        if endpoint.rollout is not None:
            raise self._busy(endpoint)
        store.drop_endpoint(act.tx, name)
        event = act.record(EventKind.ENDPOINT_DELETED, _subject(name), model=endpoint.model)
        store.set_table_number(act.tx, event.sequence, act.now)

    def _endpoint(self, act: Act, name: str) -> Endpoint:
        endpoint = store.get_endpoint(act.tx, name)
        if endpoint is None or not act.may(Verb.READ, endpoint.model):
            raise errors.EndpointNotFound(
                f"There is no endpoint {values.printable(name)[:60]!r}; 'modelkeep endpoint ls' lists them, "
                "'modelkeep endpoint create' makes one.",
                endpoint=name,
            )
        return endpoint

    # ------------------------------------------------------------------------------------ what promotion asks
    # for

    def following(self, act: Act, model: ModelName, stage: str) -> Endpoint | None:
        """The endpoint that follows a stage of a model, if there is one."""
        model_id = store.model_id(act.tx, model)
        found = store.endpoints_of(act.tx, model_id, stage) if model_id is not None else []
        return found[0] if found else None

    def start(
        self, act: Act, endpoint: Endpoint, version: ModelVersion, *, reason: str, request: str | None
    ) -> Rollout:
        """Begin to move an endpoint's traffic to a version.

        Raises:
            RolloutActive: another rollout of the endpoint is not finished.
            Conflict: the version is what the endpoint serves.
        """
        if endpoint.rollout is not None:
            raise self._busy(endpoint)
        if endpoint.stable == version.number:
            raise errors.Conflict(f"The endpoint {endpoint.name} already serves {version.reference}.")
        stable = (
            catalog_store.get_version(act.tx, endpoint.model, endpoint.stable)
            if endpoint.stable is not None
            else None
        )
        started = Rollout(
            id=act.new_id("rol"),
            endpoint=endpoint.name,
            model=endpoint.model,
            stage=endpoint.stage,
            stable=endpoint.stable,
            stable_digest=stable.digest if stable else None,
            stable_semver=stable.semver if stable else None,
            candidate=version.number,
            candidate_digest=version.digest,
            candidate_semver=version.semver,
            plan=endpoint.plan,
            salt=secrets.token_hex(16),
            epoch=Epoch(endpoint.epoch.term, endpoint.epoch.seq + 1),
            started_at=act.now,
            started_by=act.caller.actor,
            reason=reason,
            request=request,
        )
        model_id = store.model_id(act.tx, endpoint.model)
        assert model_id is not None, "an endpoint's model cannot be deleted"
        store.add_rollout(act.tx, started, model_id)
        store.save_endpoint(act.tx, structs.replace(endpoint, rollout=started.id), act.now)
        event = act.record(
            EventKind.ROLLOUT_STARTED,
            _subject(endpoint.name),
            model=endpoint.model,
            number=version.number,
            reason=reason,
            rollout=started.id,
            request=request,
            **{"from": started.stable_semver, "to": started.candidate_semver},
            plan=started.plan,
        )
        store.set_table_number(act.tx, event.sequence, act.now)
        return started

    def take_back(self, act: Act, endpoint: Endpoint, reason: str) -> Rollout | None:
        """Give the candidate's traffic back to stable; None when no rollout is under way."""
        if endpoint.rollout is None:
            return None
        current = self._active(act, endpoint)
        return self._apply(act, endpoint, current, core.take_back(current, reason, act.now))

    def revert(self, act: Act, endpoint: Endpoint, to: ModelVersion, reason: str) -> None:
        """Have an endpoint serve a former version at once. The one that leaves is not kept as a way back."""
        changed = structs.replace(
            endpoint, stable=to.number, previous=None, epoch=Epoch(endpoint.epoch.term + 1, 0)
        )
        store.save_endpoint(act.tx, changed, act.now)
        event = act.record(
            EventKind.ENDPOINT_CHANGED,
            _subject(endpoint.name),
            model=endpoint.model,
            number=to.number,
            reason=reason,
            stable=to.number,
            was=endpoint.stable,
        )
        store.set_table_number(act.tx, event.sequence, act.now)

    # ------------------------------------------------------------------------------------------------ what
    # people say

    def abort(self, act: Act, name: str, reason: str) -> Rollout:
        """Take the candidate back on a person's word.

        Raises:
            RolloutNotFound: nothing is under way; a finished rollout is undone by rolling the model back.
        """
        endpoint, _ = self._operated(act, name, Verb.ROLLBACK)
        values.check_text(reason, "reason", required=True)
        aborted = self.take_back(act, endpoint, f"aborted by {act.by}: {reason}")
        assert aborted is not None
        return aborted

    def pause(self, act: Act, name: str, reason: str) -> Rollout:
        """Stay at the present step. Verdicts and guards can still take the candidate back."""
        endpoint, current = self._operated(act, name, Verb.OPERATE)
        values.check_text(reason, "reason", required=True)
        paused = structs.replace(current, paused=f"{reason} ({act.by})")
        return self._note(act, endpoint, paused, EventKind.ROLLOUT_HELD, reason)

    def resume(self, act: Act, name: str, reason: str) -> Rollout:
        """Go on after a pause."""
        endpoint, current = self._operated(act, name, Verb.OPERATE)
        if current.paused is None:
            raise errors.Conflict(f"The rollout of {name} is not paused.")
        resumed = structs.replace(current, paused=None, held=None)
        return self._note(act, endpoint, resumed, EventKind.ROLLOUT_RESUMED, reason)

    def step(self, act: Act, name: str, reason: str) -> Rollout:
        """Go to the next step now, on a person's word and under that person's name."""
        endpoint, current = self._operated(act, name, Verb.OPERATE)
        values.check_text(reason, "reason", required=True)
        return self._apply(
            act, endpoint, current, core.step_on(current, act.now, f"advanced by {act.by}: {reason}")
        )

    def _operated(self, act: Act, name: str, verb: Verb) -> tuple[Endpoint, Rollout]:
        endpoint = self._endpoint(act, name)
        act.authorise(verb, endpoint.model)
        return endpoint, self._active(act, endpoint)

    def _active(self, act: Act, endpoint: Endpoint) -> Rollout:
        current = store.get_rollout(act.tx, endpoint.rollout) if endpoint.rollout is not None else None
        if current is None:
            raise errors.RolloutNotFound(
                f"No rollout of {endpoint.name} is under way; to return to a former version run "
                f"'modelkeep rollback {endpoint.model} -m WHY'.",
                endpoint=endpoint.name,
            )
        return current

    def _busy(self, endpoint: Endpoint) -> errors.RolloutActive:
        return errors.RolloutActive(
            f"A rollout of {endpoint.name} is under way; wait for it ('modelkeep rollout status {endpoint.name} "
            f"--watch') or end it ('modelkeep rollout abort {endpoint.name} -m WHY').",
            endpoint=endpoint.name,
            rollout=endpoint.rollout,
        )

    def _note(self, act: Act, endpoint: Endpoint, current: Rollout, kind: EventKind, reason: str) -> Rollout:
        store.save_rollout(act.tx, current)
        act.record(
            kind,
            _subject(endpoint.name),
            model=endpoint.model,
            number=current.candidate,
            reason=reason,
            rollout=current.id,
        )
        return current

    # ------------------------------------------------------------------------------------------------- what
    # is read

    def get_rollout(self, act: Act, rollout_id: str) -> Rollout:
        """One rollout with all its evidence."""
        found = store.get_rollout(act.tx, rollout_id)
        if found is None or not act.may(Verb.READ, found.model):
            raise errors.RolloutNotFound(
                f"There is no rollout {values.printable(rollout_id)[:60]!r}; 'modelkeep rollout ls' lists them."
            )
        return found

    def list_rollouts(
        self, act: Act, *, endpoint: str | None, model: ModelName | None, limit: int, page_token: str | None
    ) -> RolloutPage:
        """Rollouts, newest first."""
        model_id = None
        if endpoint is not None:
            self._endpoint(act, endpoint)
        elif model is not None:
            act.readable(model)
            model_id = catalog_store.get_model(act.tx, model).id
        before = values.check_name(page_token, "page token") if page_token else "~"
        found: list[Rollout] = []
        while len(found) <= limit:
            batch = store.list_rollouts(act.tx, before, limit + 1, endpoint, model_id)
            found += [one for one in batch if act.may(Verb.READ, one.model)]
            if len(batch) <= limit:
                break
            before = batch[-1].id
        more = found[limit - 1].id if len(found) > limit else None
        return RolloutPage(items=tuple(found[:limit]), next_page_token=more)

    def status(self, act: Act, name: str) -> RolloutStatus:
        """How an endpoint's traffic stands, as the registry wants it and as the gateways do it."""
        endpoint = self._endpoint(act, name)
        if endpoint.rollout is not None:
            latest = store.get_rollout(act.tx, endpoint.rollout)
        else:
            latest = next(iter(store.list_rollouts(act.tx, "~", 1, endpoint=name)), None)
        wanted = self._route(act, endpoint)
        return RolloutStatus(
            endpoint=endpoint,
            stable=self._semver(act, endpoint.model, endpoint.stable),
            previous=self._semver(act, endpoint.model, endpoint.previous),
            rollout=latest,
            active=endpoint.rollout is not None,
            gateways=tuple(
                _gateway_status(g, endpoint, wanted, act.now) for g in store.list_gateways(act.tx)
            ),
        )

    def _semver(self, act: Act, model: ModelName, number: int | None) -> str | None:
        return catalog_store.get_version(act.tx, model, number).semver if number is not None else None

    def explain(self, act: Act, rollout_id: str) -> Explanation:
        """Recompute a rollout's evidence from the counts that gateways sent, and compare with what was
        decided on.
        """
        found = self.get_rollout(act, rollout_id)
        recomputed = core.replay(found, store.ticks_of(act.tx, rollout_id))
        return Explanation(
            rollout=rollout_id,
            ticks=found.ticks,
            recomputed=recomputed,
            equal=recomputed == found.evidence,
            judgement=core.judge(structs.replace(found, evidence=recomputed)),
        )

    # ----------------------------------------------------------------------------------------------------
    # gateways

    def authorise_gateway(self, act: Act) -> None:
        """Only gateways may fetch tables and bytes by digest."""
        act.authorise(Verb.SERVE, None)

    def table_if_newer(self, act: Act, after: int) -> RoutingTable | None:
        """The routing table, unless it is the one the gateway has."""
        self.authorise_gateway(act)
        number = store.table_number(act.tx)
        return self.table(act, number) if number != after else None

    def table(self, act: Act, number: int) -> RoutingTable:
        """All routes, and the versions they name."""
        routes: list[Route] = []
        specs: dict[str, VersionSpec] = {}
        after = ""
        while batch := store.list_endpoints(act.tx, after, values.PAGE_MAX):
            for endpoint in batch:
                route = self._route(act, endpoint, specs)
                if route is not None:
                    routes.append(route)
            after = batch[-1].name
        return RoutingTable(number=number, routes=tuple(routes), versions=tuple(specs.values()))

    def _route(
        self, act: Act, endpoint: Endpoint, specs: dict[str, VersionSpec] | None = None
    ) -> Route | None:
        current = store.get_rollout(act.tx, endpoint.rollout) if endpoint.rollout is not None else None
        numbers = {endpoint.stable, endpoint.previous, current.candidate if current is not None else None}
        found = {
            number: catalog_store.get_version(act.tx, endpoint.model, number)
            for number in numbers
            if number is not None
        }
        route = core.route_of(endpoint, current, {number: v.digest for number, v in found.items()})
        if specs is not None and route is not None:
            for version in found.values():
                if version.digest in route.digests:
                    specs[version.digest] = _spec(version)
        return route

    def report(self, act: Act, report: GatewayReport) -> GatewayReply:
        """Take in what a gateway saw and did. Sent twice, it changes nothing the second time."""
        self.authorise_gateway(act)
        values.check_name(report.gateway, "gateway")
        store.add_ticks(act.tx, report.gateway, report.ticks, act.now)
        bare = structs.replace(report, ticks=(), rollbacks=())
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
        """Make a rollback that a gateway did by itself the registry's own."""
        endpoint = store.get_endpoint(act.tx, done.endpoint)
        if endpoint is None or done.epoch <= endpoint.epoch:
            return
        why = f"{done.cause} ({done.actor} at gateway {gateway}, {done.took_ms:.2f} ms)"
        if endpoint.rollout is not None and endpoint.rollout == done.rollout:
            current = self._active(act, endpoint)
            observed = Observed(rolled_back=why, rolled_back_epoch=done.epoch)
            advanced = core.advance(current, observed, act.now)
            if advanced.change is not None:
                self._apply(act, endpoint, advanced.rollout, advanced)
            return
        if done.rollout is not None or endpoint.rollout is not None or endpoint.previous is None:
            return
        target = catalog_store.get_version(act.tx, endpoint.model, endpoint.previous)
        if target.digest != done.stable or endpoint.stable is None:
            return
        leaving = catalog_store.get_version(act.tx, endpoint.model, endpoint.stable)
        changed = structs.replace(endpoint, stable=target.number, previous=None, epoch=done.epoch)
        store.save_endpoint(act.tx, changed, act.now)
        self.promotions.tombstone(act, leaving, why)
        self.promotions.enter_stage(
            act, target, endpoint.stage, cause=MoveCause.ROLLBACK, reason=why, request=None, rollout=None
        )
        event = act.record(
            EventKind.ENDPOINT_CHANGED,
            _subject(endpoint.name),
            model=endpoint.model,
            number=target.number,
            reason=why,
            stable=target.number,
            was=leaving.number,
        )
        store.set_table_number(act.tx, event.sequence, act.now)

    # ----------------------------------------------------------------------------------------------------
    # controller

    def active(self, act: Act) -> list[str]:
        """The rollouts that a controller has to look after."""
        return store.active_rollouts(act.tx)

    def reconcile(self, act: Act, rollout_id: str, owner: str) -> Rollout | None:
        """One look at a rollout: take in new counts, decide, save, record. None when another controller has
        it.
        """
        until = act.now + timedelta(seconds=LEASE_S)
        if not store.claim(act.tx, rollout_id, owner, act.now, until):
            return None
        current = store.get_rollout(act.tx, rollout_id)
        endpoint = store.get_endpoint(act.tx, current.endpoint) if current is not None else None
        if current is None or endpoint is None or current.state.finished:
            return None
        observed, taken = self._observe(act, current)
        advanced = core.advance(structs.replace(current, taken=taken), observed, act.now)
        if advanced.rollout == current:
            return current
        return self._apply(act, endpoint, current, advanced)

    def housekeeping(self, act: Act) -> None:
        """Let go of counts that nobody will ask for."""
        store.forget_ticks(act.tx, act.now - timedelta(seconds=PREDICTION_COUNTS_KEPT_S))

    def _observe(self, act: Act, current: Rollout) -> tuple[Observed, dict[str, int]]:
        arrived = store.new_ticks(act.tx, current, act.now - timedelta(seconds=TICK_LATE_S))
        taken = dict(current.taken)
        for one in arrived:
            taken[one.gateway] = max(taken.get(one.gateway, -1), one.number)
        answering = [
            gateway.report
            for gateway in store.list_gateways(act.tx)
            if (act.now - gateway.seen_at).total_seconds() < GATEWAY_SILENT_S
        ]
        phase, error = _worst(answering, current.candidate_digest)
        return (
            Observed(
                applied=min((_epoch(report, current.endpoint) for report in answering), default=None),
                phase=phase,
                error=error,
                ticks=tuple(one.tick for one in arrived),
            ),
            taken,
        )

    def _apply(self, act: Act, endpoint: Endpoint, before: Rollout, advanced: Advanced) -> Rollout:
        """Save a rollout and, when something changed that others must know, its event, the endpoint and the
        stage.
        """
        current = advanced.rollout
        store.save_rollout(act.tx, current)
        if advanced.change is None and current.state is before.state:
            return current
        kind = _EVENT_OF[current.state if advanced.change is None else advanced.change]
        event = act.record(
            kind,
            _subject(endpoint.name),
            model=endpoint.model,
            number=current.candidate,
            reason=advanced.why or current.outcome,
            rollout=current.id,
            step=current.step,
            weight_ppm=current.weight_ppm,
            judgement=current.judgement,
            candidate=current.candidate_counts,
            stable=current.stable_counts,
        )
        self._settle(act, endpoint, current, advanced.change)
        store.set_table_number(act.tx, event.sequence, act.now)
        return current

    def _settle(self, act: Act, endpoint: Endpoint, current: Rollout, change: Change | None) -> None:
        """What an endpoint, its stage and the candidate's fate are after a change of its rollout."""
        active = None if current.state.finished else current.id
        changed = structs.replace(
            endpoint,
            rollout=active,
            epoch=max(endpoint.epoch, current.epoch) if active is None else endpoint.epoch,
        )
        if current.state is RolloutState.SUCCEEDED:
            changed = structs.replace(changed, stable=current.candidate, previous=endpoint.stable)
        store.save_endpoint(act.tx, changed, act.now)
        version = catalog_store.get_version(act.tx, current.model, current.candidate)
        if current.state is RolloutState.SUCCEEDED and version.stage != current.stage:
            self.promotions.enter_stage(
                act,
                version,
                current.stage,
                cause=MoveCause.ROLLOUT,
                reason=current.reason,
                request=current.request,
                rollout=current.id,
            )
        taken_back = change is Change.ROLLING_BACK or current.state is RolloutState.ROLLED_BACK
        if taken_back and version.tombstone is None:
            self.promotions.tombstone(act, version, current.outcome or "rolled back")


_EVENT_OF: dict[Change | RolloutState, EventKind] = {
    Change.STEPPED: EventKind.ROLLOUT_STEPPED,
    Change.HELD: EventKind.ROLLOUT_HELD,
    Change.RESUMED: EventKind.ROLLOUT_RESUMED,
    Change.ROLLING_BACK: EventKind.ROLLOUT_ROLLED_BACK,
    Change.ROLLED_BACK: EventKind.ROLLOUT_ROLLED_BACK,
    Change.SUCCEEDED: EventKind.ROLLOUT_SUCCEEDED,
    Change.FAILED: EventKind.ROLLOUT_FAILED,
    RolloutState.CANCELLED: EventKind.ROLLOUT_CANCELLED,
}


def _subject(name: str) -> str:
    return f"endpoint/{name}"


def _header(name: str) -> str:
    """A header name in lower case. Raises Invalid when it cannot be one."""
    lowered = name.strip().lower()
    if not lowered.isascii() or not all(c.isalnum() or c in "-_" for c in lowered) or not lowered:
        raise errors.Invalid(
            f"{values.printable(name)[:60]!r} cannot be a header's name.", field="key_header"
        )
    return lowered


def _spec(version: ModelVersion) -> VersionSpec:
    model = version.metadata.get("model")
    runtime = model.get("runtime") if isinstance(model, dict) else None
    return VersionSpec(
        model=str(version.model),
        number=version.number,
        semver=version.semver,
        digest=version.digest,
        files=version.files,
        signature=version.signature,
        runtime=runtime if isinstance(runtime, str) else None,
    )


_BADNESS = (
    VersionPhase.FAILED,
    VersionPhase.FETCHING,
    VersionPhase.STARTING,
    VersionPhase.RESTARTING,
    VersionPhase.DRAINING,
    VersionPhase.READY,
)


def _worst(reports: list[GatewayReport], digest: str) -> tuple[VersionPhase | None, str | None]:
    """The worst that any gateway says of a version; None when one does not know it yet."""
    found = []
    for report in reports:
        entry = next((one for one in report.versions if one.digest == digest), None)
        if entry is None:
            return None, None
        found.append(entry)
    if not found:
        return None, None
    worst = min(found, key=lambda entry: _BADNESS.index(entry.phase))
    return worst.phase, worst.error


def _epoch(report: GatewayReport, endpoint: str) -> Epoch:
    return next((route.epoch for route in report.routes if route.endpoint == endpoint), Epoch(0, 0))


def _gateway_status(
    gateway: store.Gateway, endpoint: Endpoint, wanted: Route | None, now: datetime
) -> GatewayStatus:
    report = gateway.report
    state = next((route for route in report.routes if route.endpoint == endpoint.name), None)
    digests = wanted.digests if wanted is not None else frozenset()
    return GatewayStatus(
        gateway=report.gateway,
        url=report.url,
        seen_at=gateway.seen_at,
        answering=(now - gateway.seen_at).total_seconds() < GATEWAY_SILENT_S,
        epoch=state.epoch if state else None,
        candidate_ppm=state.candidate_ppm if state else 0,
        in_step=state is not None and wanted is not None and state.epoch >= wanted.epoch,
        phases={one.digest: one.phase for one in report.versions if one.digest in digests},
    )
