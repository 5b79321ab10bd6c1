"""Endpoints: the names that callers use, which stage or alias each follows, and the beginning of a movement
to a version.

Each method is one act. What becomes of a movement once it has begun is in `rollout`; what gateways fetch and
report is in `gateways`.
"""

import secrets
from typing import Any

from msgspec import Struct, structs

from modelkeep.core import errors, values
from modelkeep.core import rollout as core
from modelkeep.core.access import Verb
from modelkeep.core.catalog import ModelVersion
from modelkeep.core.events import EventKind
from modelkeep.core.movement import check_keys, pointer
from modelkeep.core.plan import AT_ONCE, check_standing, dated
from modelkeep.core.recording import KEEP_ALL, Privacy
from modelkeep.core.rollout import Endpoint, Plan, Rollout
from modelkeep.core.routing import Epoch, Loading, Strictness, VersionKey
from modelkeep.core.values import ModelName
from modelkeep.service import labels
from modelkeep.service.act import SYSTEM_CALLER, Act
from modelkeep.service.contenders import contenders
from modelkeep.service.detours import refuse_detour
from modelkeep.service.stages import PRODUCTION
from modelkeep.service.traffic import Traffic
from modelkeep.store import catalog as catalog_store
from modelkeep.store import paging
from modelkeep.store import rollout as store
from modelkeep.store.visibility import visible_to

_FIXED = ("key_header", "key_cookie", "key_field", "slow_ms", "schema")
"""What must be the same for a whole rollout: who a caller is, what slow means, and what is refused."""


class EndpointPage(Struct, frozen=True, kw_only=True):
    """A page of endpoints."""

    items: tuple[Endpoint, ...]
    next_page_token: str | None = None


class Endpoints:
    """The verbs of endpoints."""

    def __init__(self, traffic: Traffic) -> None:
        self._traffic = traffic

    def put_endpoint(
        self,
        act: Act,
        name: str,
        model: ModelName,
        *,
        stage: str | None = None,
        alias: str | None = None,
        key_header: str | None = None,
        key_cookie: str | None = None,
        key_field: str | None = None,
        slow_ms: float = 250.0,
        lease_s: float = 0.0,
        workers: int = 1,
        log_ppm: int = 0,
        privacy: Privacy = KEEP_ALL,
        load: Loading = Loading.ALWAYS,
        schema: Strictness = Strictness.STRICT,
        plan: Plan = core.CANARY,
    ) -> Endpoint:
        """Create an endpoint, or change the settings of one. One whose stage is occupied, or whose alias
        points somewhere, begins to serve at once; one that could not, tries again.

        While traffic is being moved only the plan (of the next rollout), the lease, the number of workers,
        when versions are loaded and what is logged may change: the rest says who a caller is, what slow means
        and what is refused, and must be the same for the whole rollout.

        Args:
            stage, alias: what it follows, one of the two; without either the stage production.

        Raises:
            ModelNotFound: there is no such model.
            EndpointExists: the name belongs to another model, stage or alias, or what it follows has an
                endpoint already.
            RolloutActive: the setting cannot change now.
            NotAllowed: the caller may not operate the model, or not promote where it begins to serve; or what
                it follows asks for less than the policy and the caller does not administer the model.
            InvalidPlan, InvalidName, InvalidTransition, Invalid: a setting does not fit.
        """
        values.check_name(name, "endpoint")
        if alias is None:
            stage = stage or PRODUCTION
        elif stage is not None:
            raise errors.Invalid("An endpoint follows a stage or an alias; leave one out.", field="alias")
        else:
            labels.check_alias(alias)
        check_standing(plan)
        core.check_endpoint(slow_ms, lease_s, workers, log_ppm, privacy)
        act.readable(model)
        act.authorise(Verb.OPERATE, model)
        check_keys(key_cookie, key_field)
        settings: dict[str, Any] = {
            "key_header": _header(key_header) if key_header is not None else None,
            "key_cookie": key_cookie,
            "key_field": key_field,
            "slow_ms": slow_ms,
            "lease_s": lease_s,
            "workers": workers,
            "log_ppm": log_ppm,
            "privacy": privacy,
            "load": load,
            "schema": schema,
            "plan": plan,
        }
        known = store.get_endpoint(act.tx, name)
        if known is None:
            endpoint = self._create(act, name, model, (stage, alias), settings)
        else:
            endpoint = self._change(act, known, model, (stage, alias), settings)
        self._serve_first(act, endpoint)
        return self._endpoint(act, name)

    def _create(
        self,
        act: Act,
        name: str,
        model: ModelName,
        followed: tuple[str | None, str | None],
        settings: dict[str, Any],
    ) -> Endpoint:
        stage, alias = followed
        registered = catalog_store.get_model(act.tx, model)
        if stage is not None and not registered.stages.stage(stage).exclusive:
            raise errors.InvalidTransition(
                f"The stage {stage} holds many versions; an endpoint follows a stage that holds one."
            )
        self._check_free(act, registered.id, model, stage, alias)
        stages = [spec.name for spec in registered.stages.stages]
        refuse_detour(act, self._traffic.promotions.holds_for, model, stages, name, pointer(stage, alias))
        sequence = act.record(
            EventKind.ENDPOINT_CREATED,
            f"endpoint/{name}",
            model=model,
            stage=stage,
            **_named(alias),
            **settings,
        ).sequence
        endpoint = Endpoint(
            id=act.new_id("end"),
            name=name,
            model=model,
            stage=stage,
            alias=alias,
            **settings,
            # Not older than a former endpoint of this name: gateways would ignore its routes.
            epoch=Epoch(sequence, 0),
            created_at=act.now,
            created_by=act.by,
        )
        store.add_endpoint(act.tx, endpoint, registered.id)
        return endpoint

    def _serve_first(self, act: Act, endpoint: Endpoint) -> None:
        """Begin to serve what an endpoint follows, where it serves nothing yet: that moves traffic, as a
        promotion does."""
        pointed = self._traffic.pointed(act, endpoint)
        if pointed is None or endpoint.stable is not None or endpoint.rollout is not None:
            return
        act.authorise(Verb.PROMOTE, endpoint.model)
        version = catalog_store.get_version(act.tx, endpoint.model, pointed)
        what = "stage" if endpoint.alias is None else "alias"
        self.start(act, endpoint, version, reason=f"the endpoint is to serve its {what}", request=None)

    def _check_free(
        self, act: Act, model_id: str, model: ModelName, stage: str | None, alias: str | None
    ) -> None:
        others = store.endpoints_of(act.tx, model_id, stage, alias)
        if others:
            what = "a stage" if alias is None else "an alias"
            raise errors.EndpointExists(
                f"{others[0].follows} has the endpoint {others[0].name} already; {what} moves one traffic.",
                endpoint=others[0].name,
            )

    def _change(
        self,
        act: Act,
        known: Endpoint,
        model: ModelName,
        followed: tuple[str | None, str | None],
        settings: dict[str, Any],
    ) -> Endpoint:
        own = (known.stage, known.alias)
        if not act.may(Verb.READ, known.model) or known.model != model or own != followed:
            raise errors.EndpointExists(
                f"The endpoint {known.name} belongs to another model, stage or alias; take another name, or "
                "delete it first.",
                endpoint=known.name,
            )
        changed = structs.replace(known, **settings)
        if changed == known:
            return known
        if known.rollout is not None and any(getattr(known, name) != settings[name] for name in _FIXED):
            raise self._busy(known)
        running = self._traffic.active(act, known)
        before = self._traffic.route(act, known, running)
        if self._traffic.route(act, changed, running) != before and running is None:
            changed = structs.replace(changed, epoch=Epoch(known.epoch.term, known.epoch.seq + 1))
        store.save_endpoint(act.tx, changed, act.now)
        sequence = self._traffic.record(
            act,
            EventKind.ENDPOINT_CHANGED,
            changed,
            **settings,
        )
        self._traffic.moved(act, before, self._traffic.route(act, changed, running), sequence)
        return changed

    def get_endpoint(self, act: Act, name: str) -> Endpoint:
        """One endpoint. Raises EndpointNotFound, also for one whose model the caller may not read."""
        return self._endpoint(act, name)

    def list_endpoints(self, act: Act, *, limit: int, page_token: str | None) -> EndpointPage:
        """The endpoints the caller may see, by name. Raises LimitExceeded, Invalid (a foreign page token)."""
        paging.check_limit(limit)
        asked = "endpoints"
        after = str(paging.read_token(page_token, asked, [str])[0]) if page_token else ""
        found = store.list_endpoints(act.tx, visible_to(act.caller), after, limit + 1)
        more = paging.write_token(asked, [found[limit - 1].name]) if len(found) > limit else None
        return EndpointPage(items=tuple(found[:limit]), next_page_token=more)

    def delete_endpoint(self, act: Act, name: str) -> None:
        """Remove an endpoint; its callers get 404 from then on. Its rollouts stay in the history.

        Raises:
            EndpointNotFound, NotAllowed.
            RolloutActive: traffic is being moved; abort that first.
        """
        endpoint = self._endpoint(act, name)
        act.authorise(Verb.OPERATE, endpoint.model)
        if endpoint.rollout is not None:
            raise self._busy(endpoint)
        before = self._traffic.route(act, endpoint, None)
        store.drop_endpoint(act.tx, name)
        sequence = self._traffic.record(
            act,
            EventKind.ENDPOINT_DELETED,
            endpoint,
            stable=endpoint.stable,
            stage=endpoint.stage,
            **_named(endpoint.alias),
        )
        self._traffic.moved(act, before, None, sequence)

    def _endpoint(self, act: Act, name: str) -> Endpoint:
        endpoint = store.get_endpoint(act.tx, name)
        if endpoint is None or not act.may(Verb.READ, endpoint.model):
            raise _no_endpoint(name)
        return endpoint

    # -------------------------------------------------------------------------------- what promotion asks for

    def following(
        self, act: Act, model: ModelName, stage: str | None, alias: str | None = None
    ) -> Endpoint | None:
        """The endpoint that follows a stage of a model, or an alias, if there is one."""
        return store.endpoint_following(act.tx, model, stage, alias)

    def plan_for(self, act: Act, endpoint: Endpoint) -> Plan | None:
        """How the policy has the traffic of an endpoint move; None where the endpoint says it."""
        return self._traffic.promotions.plan_for(act, endpoint.model, endpoint.stage, endpoint.alias)

    def running(self, act: Act, endpoint: Endpoint) -> Rollout | None:
        """The rollout of an endpoint that is not finished, if there is one."""
        return self._traffic.active(act, endpoint)

    def start(
        self,
        act: Act,
        endpoint: Endpoint,
        version: ModelVersion,
        *,
        reason: str,
        request: str | None,
        plan: Plan | None = None,
        plan_from: str = "endpoint",
        supersede: bool = False,
        shielded: bool = False,
    ) -> Rollout:
        """Begin to move an endpoint's traffic to a version.

        Args:
            plan: another one than the endpoint's, and in `plan_from` who says so, for the record.
            supersede: end the rollout under way, if there is one, and begin from the same stable version.
            shielded: have the alias that it follows be protected, where there is none yet.

        Raises:
            RolloutActive: another rollout of the endpoint is not finished.
            Conflict: the version is what the endpoint serves, or has its bytes and was to be tested against
                it.
            Tombstoned: the version was taken back, and nobody has cleared it.
            InvalidPlan: the plan cannot be carried out.
        """
        plan = dated(core.check_plan(plan or endpoint.plan), act.now)
        running = self._traffic.active(act, endpoint)
        self._check_start(endpoint, running, version, supersede)
        if running is not None:
            ended = core.supersede(running, f"the rollout of {version.semver}: {reason}", act.now)
            self._traffic.apply(act, endpoint, running, ended)
            endpoint = self._endpoint(act, endpoint.name)
        stable = (
            catalog_store.get_version(act.tx, endpoint.model, endpoint.stable)
            if endpoint.stable is not None
            else None
        )
        note = self._same(act, stable, version)
        if note is not None:
            if not plan.strategy.moves:
                raise errors.Conflict(f"{note}: they cannot be compared; promote it by another strategy.")
            plan, plan_from = AT_ONCE, "equal bytes"
        return self._begin(
            act,
            endpoint,
            stable,
            version,
            plan=plan,
            plan_from=plan_from,
            note=note,
            reason=reason,
            request=request,
            shielded=shielded,
            superseded=running.id if running is not None else None,
        )

    def _check_start(
        self, endpoint: Endpoint, running: Rollout | None, version: ModelVersion, supersede: bool
    ) -> None:
        """Refuse a movement that cannot begin. Raises as `start` says."""
        if running is not None and not supersede:
            raise self._busy(endpoint)
        if running is not None and running.candidate == version.number:
            raise errors.Conflict(
                f"The rollout of {version.reference} is under way already; to begin it anew, abort it first "
                f"('modelkeep rollout abort {endpoint.name} -m WHY').",
                rollout=running.id,
            )
        if endpoint.stable == version.number:
            raise errors.Conflict(f"The endpoint {endpoint.name} already serves {version.reference}.")
        if version.tombstone is not None:
            raise errors.Tombstoned(
                f"{version.reference} was taken back ({version.tombstone}); when the cause is mended, run "
                f"'modelkeep clear {values.in_shell(version.reference)} -m WHY' first.",
                version=version.reference,
            )

    def _begin(
        self,
        act: Act,
        endpoint: Endpoint,
        stable: ModelVersion | None,
        version: ModelVersion,
        *,
        plan: Plan,
        plan_from: str,
        note: str | None,
        reason: str,
        request: str | None,
        shielded: bool,
        superseded: str | None,
    ) -> Rollout:
        """Save a movement that may begin: its event, itself, the endpoint that carries it, the table."""
        others = contenders(act, plan, stable, version)
        former = store.list_rollouts(act.tx, visible_to(SYSTEM_CALLER), store.FIRST, 1, endpoint.name)
        rollout_id = act.new_id("rol", behind=former[0].id if former else None)
        sequence = self._traffic.record(
            act,
            EventKind.ROLLOUT_STARTED,
            endpoint,
            number=version.number,
            reason=reason,
            rollout=rollout_id,
            request=request,
            **{"from": stable.semver if stable else None, "to": version.semver},
            stage=endpoint.stage,
            **_named(endpoint.alias),
            plan=plan,
            plan_from=plan_from,
            note=note,
            supersedes=superseded,
        )
        started = Rollout(
            note=note,
            others=others,
            id=rollout_id,
            endpoint=endpoint.name,
            model=endpoint.model,
            stage=endpoint.stage,
            alias=endpoint.alias,
            shielded=shielded,
            stable=endpoint.stable,
            stable_digest=stable.digest if stable else None,
            stable_semver=stable.semver if stable else None,
            candidate=version.number,
            candidate_digest=version.digest,
            candidate_semver=version.semver,
            plan=plan,
            salt=secrets.token_hex(16),
            epoch=Epoch(endpoint.epoch.term, endpoint.epoch.seq + 1),
            table=sequence,
            started_at=act.now,
            started_by=act.caller.actor,
            reason=reason,
            request=request,
        )
        model_id = store.model_id(act.tx, endpoint.model)
        assert model_id is not None, "an endpoint's model cannot be deleted"
        store.add_rollout(act.tx, started, model_id)
        carrying = structs.replace(endpoint, rollout=started.id)
        store.save_endpoint(act.tx, carrying, act.now)
        before = self._traffic.route(act, endpoint, None)
        self._traffic.moved(act, before, self._traffic.route(act, carrying, started), sequence)
        return started

    def _same(self, act: Act, stable: ModelVersion | None, version: ModelVersion) -> str | None:
        """What to say of a version that answers just what the stable one does: there is nothing to prove."""
        if stable is None or stable.digest != version.digest:
            return None
        served = (self._traffic.spec(act, each.model, each.number) for each in (stable, version))
        names = {"key": VersionKey(""), "number": 0, "semver": ""}
        one, other = (structs.replace(spec, **names) for spec in served)
        return f"{version.reference} has the very bytes of {stable.reference}" if one == other else None

    def _busy(self, endpoint: Endpoint) -> errors.RolloutActive:
        return errors.RolloutActive(
            f"A rollout of {endpoint.name} is under way; wait for it ('modelkeep rollout status "
            f"{endpoint.name} --watch'), end it ('modelkeep rollout abort {endpoint.name} -m WHY'), or let "
            f"another take its place ('modelkeep {'promote' if endpoint.alias is None else 'alias set'} ... "
            "--supersede').",
            endpoint=endpoint.name,
            rollout=endpoint.rollout,
        )


def _named(alias: str | None) -> dict[str, Any]:
    """What an event says of the alias that is followed; nothing where a stage is."""
    return {"alias": alias} if alias is not None else {}


def _no_endpoint(name: str) -> errors.EndpointNotFound:
    return errors.EndpointNotFound(
        f"There is no endpoint {values.quoted(name, 60)}; 'modelkeep endpoint ls' lists them, "
        "'modelkeep endpoint create' makes one.",
        endpoint=name,
    )


def _header(name: str) -> str:
    """A header name in lower case. Raises Invalid when it cannot be one."""
    lowered = name.strip().lower()
    if not lowered.isascii() or not all(c.isalnum() or c in "-_" for c in lowered) or not lowered:
        raise errors.Invalid(f"{values.quoted(name, 60)} cannot be a header's name.", field="key_header")
    return lowered
