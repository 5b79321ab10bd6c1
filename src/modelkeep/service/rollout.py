"""Rollouts: what people say about them and are told of them, and one look of the controller.

Each method is one act. What a rollout does next is decided by `core.rollout`; what it has become is saved by
`traffic`, and what gateways fetch and report is in `gateways`. Nothing here talks to a gateway.
"""

from datetime import datetime, timedelta
from functools import reduce

from msgspec import Struct, structs

from modelkeep.core import errors, values
from modelkeep.core import rollout as core
from modelkeep.core.access import Verb
from modelkeep.core.answers import Explanation, GatewayStatus, RolloutForecast, RolloutStatus
from modelkeep.core.catalog import ModelVersion
from modelkeep.core.events import EventKind
from modelkeep.core.movement import Rift
from modelkeep.core.observation import FieldMisses, GatewayReply, GatewayReport
from modelkeep.core.rollout import Advanced, Endpoint, Rollout, RolloutState
from modelkeep.core.routing import Route, RoutingTable, VersionKey
from modelkeep.core.values import ModelName, Ref
from modelkeep.service import references
from modelkeep.service.act import Act
from modelkeep.service.agreement import Agreements
from modelkeep.service.endpoints import EndpointPage, Endpoints
from modelkeep.service.forecasts import Asked, foretell
from modelkeep.service.gateways import SILENT_S, Gateways
from modelkeep.service.traffic import StageKeeper, Traffic
from modelkeep.store import catalog as catalog_store
from modelkeep.store import paging
from modelkeep.store import rollout as store
from modelkeep.store.visibility import visible_to

__all__ = [
    "EndpointPage",
    "Explanation",
    "GatewayStatus",
    "RolloutPage",
    "RolloutStatus",
    "Rollouts",
    "StageKeeper",
]

LEASE_S = 5.0
"""How long a controller that changed a rollout has it for itself: the longest that a killed one delays the
next."""


class RolloutPage(Struct, frozen=True, kw_only=True):
    """A page of rollouts."""

    items: tuple[Rollout, ...]
    next_page_token: str | None = None


class Rollouts(Endpoints):
    """The rollout column's verbs: those of endpoints, and all that is said about a movement under way.
    `promotions` is set once, when the house is assembled.
    """

    def __init__(self) -> None:
        super().__init__(Traffic())
        self._gateways = Gateways(self._traffic)
        self._agreements = Agreements(self._traffic, self._gateways, self.start)

    @property
    def promotions(self) -> StageKeeper:
        """Who moves stages."""
        return self._traffic.promotions

    @promotions.setter
    def promotions(self, keeper: StageKeeper) -> None:
        self._traffic.promotions = keeper

    def take_back(self, act: Act, endpoint: Endpoint, reason: str) -> Rollout | None:
        """Give the candidate's traffic back to stable; None when no rollout is under way."""
        current = self._traffic.active(act, endpoint)
        if current is None:
            return None
        return self._traffic.apply(act, endpoint, current, core.take_back(current, reason, act.now))

    def revert(self, act: Act, endpoint: Endpoint, to: ModelVersion, reason: str) -> None:
        """Have an endpoint serve a former version at once. The one that leaves is not kept as a way back."""
        self._traffic.revert(act, endpoint, to, reason)

    # ---------------------------------------------------------------------------------------- what people say

    def abort(self, act: Act, name: str, reason: str) -> Rollout:
        """Take the candidate back on a person's word.

        Args:
            name: the endpoint's, or the id of its rollout under way; as for every word here.

        Raises:
            EndpointNotFound, NotAllowed, Invalid (no reason).
            RolloutNotFound: nothing is under way; a finished rollout is undone by rolling the model back.
            RolloutFinished: the rollout named is not the one under way.
        """
        endpoint, _ = self._operated(act, name, Verb.ROLLBACK, reason)
        aborted = self.take_back(act, endpoint, f"aborted by {act.by}: {reason}")
        assert aborted is not None, "it was there a line ago"
        return aborted

    def pause(self, act: Act, name: str, reason: str) -> Rollout:
        """Stay at the present step. Verdicts and guards can still take the candidate back.

        Raises:
            EndpointNotFound, NotAllowed, Invalid (no reason), RolloutNotFound.
            RolloutFinished: it is on its way back, or not the one under way.
        """
        endpoint, current = self._operated(act, name, Verb.OPERATE, reason)
        paused = core.pause(current, f"{reason} ({act.by})")
        return self._note(act, endpoint, paused, EventKind.ROLLOUT_HELD, reason)

    def resume(self, act: Act, name: str, reason: str) -> Rollout:
        """Go on after a pause.

        Raises:
            EndpointNotFound, NotAllowed, Invalid (no reason), RolloutNotFound, RolloutFinished.
            Conflict: it is not paused.
        """
        endpoint, current = self._operated(act, name, Verb.OPERATE, reason)
        return self._note(act, endpoint, core.resume(current), EventKind.ROLLOUT_RESUMED, reason)

    def step(self, act: Act, name: str, reason: str) -> Rollout:
        """Go to the next step now, on a person's word and under that person's name.

        What arrived up to now is looked at first: nobody steps on past evidence that says rollback.

        Raises:
            EndpointNotFound, NotAllowed, Invalid (no reason), RolloutNotFound.
            RolloutFinished: it is not in a step or a preview, or not the one under way.
            GateFailed: the evidence, or a guard, says rollback.
            Conflict: the gateways have not applied the present step yet.
        """
        endpoint, current = self._operated(act, name, Verb.OPERATE, reason)
        fresh, seen = self._seen(act, current)
        why = f"stepped on by {act.by}: {reason}"
        stepped = core.step_on(core.take_in(fresh, seen.ticks), seen, why, act.now)
        return self._traffic.apply(act, endpoint, current, stepped)

    def _operated(self, act: Act, name: str, verb: Verb, reason: str) -> tuple[Endpoint, Rollout]:
        endpoint, named = self._meant(act, name)
        act.authorise(verb, endpoint.model)
        values.check_text(reason, "reason", required=True)
        current = self._traffic.active(act, endpoint)
        if named is not None and (current is None or current.id != named.id):
            raise errors.RolloutFinished(
                f"The rollout {named.id} is {named.state}; what is under way now shows "
                f"'modelkeep rollout status {endpoint.name}'.",
                rollout=named.id,
            )
        if current is None:
            raise errors.RolloutNotFound(
                f"No rollout of {endpoint.name} is under way; to return to a former version run "
                f"'modelkeep rollback {values.in_shell(endpoint.model)} -m WHY'.",
                endpoint=endpoint.name,
            )
        return endpoint, current

    def _note(self, act: Act, endpoint: Endpoint, current: Rollout, kind: EventKind, reason: str) -> Rollout:
        store.save_rollout(act.tx, current)
        self._traffic.record(
            act,
            kind,
            endpoint,
            number=current.candidate,
            reason=reason,
            rollout=current.id,
            paused=current.paused,
        )
        return current

    # ------------------------------------------------------------------------------------------ what is read

    def _meant(self, act: Act, name: str) -> tuple[Endpoint, Rollout | None]:
        """The endpoint that a name means, and the rollout where the name is one's id. Where an endpoint bears
        the name, it is meant.

        Raises:
            EndpointNotFound: it is neither; or the endpoint of the rollout was deleted.
        """
        if store.get_endpoint(act.tx, name) is None:
            named = self._readable(act, name)
            if named is not None:
                return self._endpoint(act, named.endpoint), named
        return self._endpoint(act, name), None

    def _readable(self, act: Act, rollout_id: str) -> Rollout | None:
        """A rollout by its id; None for one whose model the caller may not read."""
        found = store.get_rollout(act.tx, rollout_id)
        return found if found is not None and act.may(Verb.READ, found.model) else None

    def _latest(self, act: Act, endpoint: str) -> Rollout | None:
        """The rollout of an endpoint that began last, which is the current one where one is under way."""
        return next(iter(store.list_rollouts(act.tx, visible_to(act.caller), store.FIRST, 1, endpoint)), None)

    def get_rollout(self, act: Act, name: str) -> Rollout:
        """One rollout with all its evidence, by its id or as the current or last one of an endpoint.

        Raises:
            RolloutNotFound: there is none; also for one whose model the caller may not read.
        """
        found = self._readable(act, name) or self._latest(act, name)
        if found is None:
            raise errors.RolloutNotFound(
                f"There is no rollout {values.quoted(name, 60)}, and no endpoint of that name that had "
                "one; 'modelkeep rollout ls' lists them."
            )
        return found

    def list_rollouts(
        self, act: Act, *, endpoint: str | None, model: ModelName | None, limit: int, page_token: str | None
    ) -> RolloutPage:
        """Rollouts, newest first; those of an endpoint that was deleted are still found by its name.

        Raises:
            EndpointNotFound, ModelNotFound, LimitExceeded, Invalid (a foreign page token).
        """
        paging.check_limit(limit)
        model_id = None
        if model is not None:
            act.readable(model)
            model_id = catalog_store.get_model(act.tx, model).id
        asked = f"rollouts {endpoint} {model}"
        before = str(paging.read_token(page_token, asked, [str])[0]) if page_token else store.FIRST
        visible = visible_to(act.caller)
        found = store.list_rollouts(act.tx, visible, before, limit + 1, endpoint, model_id)
        if endpoint is not None and not found and not page_token:
            self._endpoint(act, endpoint)
        more = paging.write_token(asked, [found[limit - 1].id]) if len(found) > limit else None
        return RolloutPage(items=tuple(found[:limit]), next_page_token=more)

    def status(self, act: Act, name: str) -> RolloutStatus:
        """How an endpoint's traffic stands, as the registry wants it and as the gateways do it.

        Args:
            name: the endpoint's, or a rollout's id: then that rollout is shown, under way or not.

        Raises:
            EndpointNotFound.
        """
        endpoint, named = self._meant(act, name)
        running = self._traffic.active(act, endpoint)
        latest = named or running or self._latest(act, endpoint.name)
        served = self._traffic.served(act, endpoint, running)
        names = {spec.key: spec.semver for spec in served.values()}
        wanted = core.route_of(endpoint, running, {n: spec.key for n, spec in served.items()})
        return RolloutStatus(
            endpoint=endpoint,
            stable=self._semver(act, endpoint.model, endpoint.stable),
            previous=self._semver(act, endpoint.model, endpoint.previous),
            rollout=latest,
            active=running is not None and (named is None or named.id == running.id),
            gateways=tuple(
                _gateway_status(gateway, endpoint, wanted, names, act.now)
                for gateway in store.list_gateways(act.tx)
            ),
        )

    def forecast(self, act: Act, ref: Ref, stage: str, asked: Asked) -> RolloutForecast:
        """What moving a stage's endpoint to a version may be expected to look like, before it starts; changes
        nothing.

        Raises:
            EndpointNotFound: no endpoint follows the stage, so that a promotion moves no traffic.
            Conflict: the endpoint serves the version already, or nothing yet.
            InvalidTransition, InvalidPlan, Invalid: there is no such stage, or a figure does not fit.
            whatever resolving the reference raises.
        """
        version = references.resolve(act, references.present(ref))
        catalog_store.get_model(act.tx, version.model).stages.stage(stage)
        endpoint = self.following(act, version.model, stage)
        if endpoint is None:
            raise errors.EndpointNotFound(
                f"No endpoint follows {version.model}#{stage}, so a promotion moves no traffic; "
                f"'modelkeep endpoint create NAME --model {values.in_shell(version.model)} "
                f"--follows {stage}' makes one."
            )
        if asked.plan is None:
            asked = structs.replace(asked, plan=self.plan_for(act, endpoint) or endpoint.plan)
        stable = self._semver(act, version.model, endpoint.stable)
        return foretell(act, endpoint, version, stable, asked)

    def forecast_any(self, act: Act, name: str, asked: Asked) -> RolloutForecast:
        """The same of an endpoint and its plan, or another, before there is a version to move to.

        Raises:
            EndpointNotFound.
            Conflict: the endpoint serves nothing yet.
            InvalidPlan, Invalid: a figure does not fit, or no traffic is known and none was said.
        """
        endpoint = self._endpoint(act, name)
        if asked.plan is None:
            asked = structs.replace(asked, plan=self.plan_for(act, endpoint) or endpoint.plan)
        return foretell(act, endpoint, None, self._semver(act, endpoint.model, endpoint.stable), asked)

    def _semver(self, act: Act, model: ModelName, number: int | None) -> str | None:
        return catalog_store.get_version(act.tx, model, number).semver if number is not None else None

    def explain(self, act: Act, name: str) -> Explanation:
        """Recompute a rollout's evidence from the counts that gateways sent, and compare with what was
        decided on; the rollout's name as in `get_rollout`. Raises RolloutNotFound.
        """
        found = self.get_rollout(act, name)
        recomputed = core.replay(found, store.ticks_of(act.tx, found.id))
        again = structs.replace(found, evidence=recomputed)
        return Explanation(
            rollout=found.id,
            ticks=found.ticks,
            recomputed=recomputed,
            equal=recomputed == found.evidence,
            judgement=core.judge(again),
            report=core.report(again) if found.plan.strategy is core.Strategy.AB_TEST else None,
        )

    # ---------------------------------------------------------------------------------------------- gateways

    def authorise_gateway(self, act: Act) -> None:
        """Only gateways may fetch tables and bytes by digest. Raises NotAllowed."""
        self._gateways.authorise(act)

    def table_if_newer(self, act: Act, after: int) -> RoutingTable | None:
        """The routing table, unless it is the one the gateway has. Raises NotAllowed."""
        return self._gateways.table_if_newer(act, after)

    def report(self, act: Act, report: GatewayReport) -> GatewayReply:
        """Take in what a gateway saw and did; see `Gateways.report`."""
        return self._gateways.report(act, report)

    # -------------------------------------------------------------------------------------------- controller

    def active(self, act: Act) -> list[str]:
        """The rollouts that a controller has to look after."""
        found: list[str] = []
        while batch := store.active_rollouts(act.tx, found[-1] if found else ""):
            found += batch
        return found

    def has_news(self, act: Act, rollout_id: str) -> bool:
        """Whether a look would change anything; a read, so that looking often costs no write."""
        current = store.get_rollout(act.tx, rollout_id)
        if current is None or current.state.finished:
            return False
        if self._orphaned(act, current):
            return True
        return self._looked(act, current).rollout != current

    def reconcile(self, act: Act, rollout_id: str, owner: str) -> Rollout | None:
        """One look at a rollout: take in new counts, decide, save, record. None when it is finished, or
        another controller has it. Without news nothing is written. One that its endpoint does not name is
        ended.
        """
        current = store.get_rollout(act.tx, rollout_id)
        if current is None or current.state.finished:
            return None
        if self._orphaned(act, current):
            return self._agreements.abandon(act, current, store.get_endpoint(act.tx, current.endpoint))
        advanced = self._looked(act, current)
        if advanced.rollout == current:
            return current
        if not store.claim(act.tx, rollout_id, owner, act.now, act.now + timedelta(seconds=LEASE_S)):
            return None
        endpoint = store.get_endpoint(act.tx, current.endpoint)
        assert endpoint is not None, "an endpoint with an unfinished rollout cannot be deleted"
        return self._traffic.apply(act, endpoint, current, advanced)

    def _orphaned(self, act: Act, rollout: Rollout) -> bool:
        """Whether the endpoint of an unfinished rollout does not name it: rows that were restored apart."""
        endpoint = store.get_endpoint(act.tx, rollout.endpoint)
        return endpoint is None or endpoint.rollout != rollout.id

    def disagreeing(self, act: Act, after: str) -> tuple[dict[str, Rift | None], str]:
        """A page of endpoints of which the reconciler has something to say; see `Agreements.look`."""
        return self._agreements.look(act, after)

    def agree(self, act: Act, name: str) -> None:
        """Say and mend where an endpoint does not serve what it follows."""
        self._agreements.agree(act, name)

    def release(self, act: Act, owner: str) -> None:
        """Let go of a controller's leases, so that the next one need not wait."""
        store.release(act.tx, owner)

    def housekeeping(self, act: Act) -> None:
        """Let go of what nobody will ask for."""
        self._gateways.forget(act)

    def _looked(self, act: Act, current: Rollout) -> Advanced:
        fresh, seen = self._seen(act, current)
        return core.advance(fresh, seen, act.now)

    def _seen(self, act: Act, current: Rollout) -> tuple[Rollout, core.Observed]:
        """The rollout with its place in the order of arrival moved on, and what was seen up to there."""
        counted = current.state in (RolloutState.SHADOWING, RolloutState.STEPPING)
        arrived = store.new_ticks(act.tx, current) if counted else []
        if arrived:
            current = structs.replace(current, ticks_until=arrived[-1].at)
        ticks = [one.tick for one in arrived]
        specs = (self._traffic.spec(act, current.model, number) for number in current.numbers)
        candidate, *others = (spec.key for spec in specs)
        return current, core.observe(current, candidate, self._gateways.answering(act), ticks, others)


def _gateway_status(
    gateway: store.Gateway,
    endpoint: Endpoint,
    wanted: Route | None,
    names: dict[VersionKey, str],
    now: datetime,
) -> GatewayStatus:
    report = gateway.report
    state = next((route for route in report.routes if route.endpoint == endpoint.name), None)
    keys = wanted.keys if wanted is not None else frozenset()
    in_step = state is not None and wanted is not None and state.epoch >= wanted.epoch
    return GatewayStatus(
        gateway=report.gateway,
        url=report.url,
        seen_at=gateway.seen_at,
        answering=abs((now - gateway.seen_at).total_seconds()) < SILENT_S,
        epoch=state.epoch if state else None,
        candidate_ppm=state.candidate_ppm if state else 0,
        in_step=in_step
        and state is not None
        and wanted is not None
        and (state.candidate_ppm, state.others_ppm) == (wanted.candidate_ppm, wanted.others_ppm),
        phases={names[one.key]: one.phase for one in report.versions if one.key in keys},
        misses=reduce(
            FieldMisses.plus, (one.misses for one in report.versions if one.key in keys), FieldMisses()
        ),
    )
