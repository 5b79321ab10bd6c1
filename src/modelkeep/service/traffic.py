"""What endpoints and rollouts have become, saved as one: the row, its event, the table's number, and the
stage or alias that the endpoint follows.

Whatever moves traffic ends here, whether a person, the controller or a gateway began it. A gateway obeys only
what stands in the table, so everything is saved before anybody obeys it. What is to become of a rollout was
decided before, in `core.rollout`.
"""

from typing import Any, Protocol

from msgspec import structs

from modelkeep.core import rollout as core
from modelkeep.core.catalog import ModelVersion
from modelkeep.core.events import EventKind
from modelkeep.core.plan import Plan
from modelkeep.core.policy import Policy
from modelkeep.core.promotion import MoveCause
from modelkeep.core.rollout import Advanced, Change, Endpoint, Rollout, RolloutState
from modelkeep.core.routing import Epoch, Route, VersionSpec
from modelkeep.core.values import Actor, ModelName
from modelkeep.service import labels
from modelkeep.service.act import Act
from modelkeep.store import catalog as catalog_store
from modelkeep.store import models as models_store
from modelkeep.store import promotion as promotion_store
from modelkeep.store import rollout as store

_EVENT_OF: dict[Change, EventKind] = {
    Change.STEPPED: EventKind.ROLLOUT_STEPPED,
    Change.HELD: EventKind.ROLLOUT_HELD,
    Change.TAKEN_OUT: EventKind.ROLLOUT_TAKEN_OUT,
    Change.ROLLING_BACK: EventKind.ROLLOUT_ROLLING_BACK,
    Change.ROLLED_BACK: EventKind.ROLLOUT_ROLLED_BACK,
    Change.SUCCEEDED: EventKind.ROLLOUT_SUCCEEDED,
    Change.FAILED: EventKind.ROLLOUT_FAILED,
    Change.CANCELLED: EventKind.ROLLOUT_CANCELLED,
    Change.SUPERSEDED: EventKind.ROLLOUT_SUPERSEDED,
    Change.CONCLUDED: EventKind.ROLLOUT_CONCLUDED,
}


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
        asked_by: Actor | None = None,
    ) -> object:
        """Move the version into the stage, displacing who is there; `asked_by` is who had asked for it."""

    def tombstone(self, act: Act, version: ModelVersion, why: str) -> None:
        """Mark the version as taken back."""

    def plan_for(
        self, act: Act, model: ModelName, stage: str | None, alias: str | None = None
    ) -> Plan | None:
        """How the policy has traffic move behind a stage or an alias; None where it does not say."""

    def holds_for(self, act: Act, model: ModelName) -> Policy:
        """The policy that holds for a model."""


class Traffic:
    """Saves movements. `promotions` is set once, when the house is assembled."""

    promotions: StageKeeper

    def active(self, act: Act, endpoint: Endpoint) -> Rollout | None:
        """The rollout of an endpoint that is not finished."""
        return store.get_rollout(act.tx, endpoint.rollout) if endpoint.rollout is not None else None

    def pointed(self, act: Act, endpoint: Endpoint) -> int | None:
        """The number of the version that the stage or alias of an endpoint names; None for none."""
        row = models_store.get_row(act.tx, endpoint.model)
        if endpoint.alias is not None:
            known = models_store.get_alias(act.tx, row.id, endpoint.alias)
            return known.number if known is not None else None
        occupant = promotion_store.occupant(act.tx, row.id, endpoint.stage or "")
        return occupant.number if occupant is not None else None

    def point(
        self,
        act: Act,
        endpoint: Endpoint,
        version: ModelVersion,
        *,
        cause: MoveCause,
        reason: str,
        rollout: Rollout | None = None,
    ) -> None:
        """Have the stage or alias of an endpoint name the version that the endpoint serves.

        Args:
            rollout: the one that brought the version there, in the name of whoever started it.

        Raises:
            StageMoved: another process took the stage at the same moment.
        """
        if endpoint.stage is not None:
            self.promotions.enter_stage(
                act,
                version,
                endpoint.stage,
                cause=cause,
                reason=reason,
                request=rollout.request if rollout is not None else None,
                rollout=rollout.id if rollout is not None else None,
                asked_by=rollout.started_by if rollout is not None else None,
            )
            return
        assert endpoint.alias is not None, "an endpoint follows one of the two"
        row = models_store.get_row(act.tx, endpoint.model)
        known = models_store.get_alias(act.tx, row.id, endpoint.alias)
        if known is not None and known.number == version.number:
            return
        first = known is None and rollout is not None and rollout.shielded
        labels.point_alias(
            act,
            row,
            endpoint.alias,
            version,
            protected=known.protected if known is not None else first,
            reason=reason,
            by=rollout.started_by.name if rollout is not None else None,
            cause=cause,
            rollout=rollout.id if rollout is not None else None,
        )

    def route(self, act: Act, endpoint: Endpoint, rollout: Rollout | None) -> Route | None:
        """What gateways are to do for an endpoint; None while it has nothing to serve."""
        served = self.served(act, endpoint, rollout)
        return core.route_of(endpoint, rollout, {number: spec.key for number, spec in served.items()})

    def served(self, act: Act, endpoint: Endpoint, rollout: Rollout | None) -> dict[int, VersionSpec]:
        """What gateways have to know of the versions that an endpoint and its rollout name, by number."""
        numbers = {endpoint.stable, endpoint.previous, *(rollout.numbers if rollout is not None else ())}
        return {n: self.spec(act, endpoint.model, n) for n in numbers if n is not None}

    def spec(self, act: Act, model: ModelName, number: int) -> VersionSpec:
        """What gateways have to know of a version."""
        version = catalog_store.get_version(act.tx, model, number)
        described = version.metadata.get("model")
        runtime = described.get("runtime") if isinstance(described, dict) else None
        return VersionSpec.of(
            model=str(version.model),
            number=version.number,
            semver=version.semver,
            digest=version.digest,
            files=version.files,
            signature=version.signature,
            runtime=runtime if isinstance(runtime, str) else None,
        )

    def moved(self, act: Act, before: Route | None, after: Route | None, sequence: int) -> None:
        """Raise the table's number to that of the event, when the event changed a route."""
        if before != after:
            store.set_table_number(act.tx, sequence, act.now)

    def record(self, act: Act, kind: EventKind, endpoint: Endpoint, **more: Any) -> int:
        """Append an event of an endpoint; its number."""
        subject = f"endpoint/{endpoint.name}"
        return act.record(kind, subject, model=endpoint.model, **more).sequence

    def apply(self, act: Act, endpoint: Endpoint, before: Rollout, advanced: Advanced) -> Rollout:
        """Save a rollout and, when something changed that others must know, its event, the endpoint, the
        stage and the candidate's fate.

        Raises:
            StageMoved: another process took the stage at the same moment.
        """
        current, change = advanced.rollout, advanced.change
        store.save_rollout(act.tx, current)
        if change is None:
            return current
        sequence = self.record(
            act,
            _EVENT_OF[change],
            endpoint,
            number=current.candidate,
            reason=advanced.why,
            rollout=current.id,
            state=current.state,
            step=current.step,
            weight_ppm=current.weight_ppm,
            judgement=current.judgement,
            candidate=current.candidate_counts,
            stable=current.stable_counts,
            report=current.report,
            others=current.others or None,
        )
        after = settled(endpoint, current)
        if after != endpoint:
            store.save_endpoint(act.tx, after, act.now)
        self._fate(act, before, after, current, change)
        left = None if current.state.finished else current
        self.moved(act, self.route(act, endpoint, before), self.route(act, after, left), sequence)
        return current

    def _fate(self, act: Act, before: Rollout, endpoint: Endpoint, current: Rollout, change: Change) -> None:
        match change:
            case Change.SUCCEEDED:
                version = catalog_store.get_version(act.tx, current.model, current.candidate)
                if current.stage is None or version.stage != current.stage:
                    self.point(
                        act,
                        endpoint,
                        version,
                        cause=MoveCause.ROLLOUT,
                        reason=current.reason,
                        rollout=current,
                    )
            case Change.TAKEN_OUT | Change.ROLLING_BACK:
                for number, why in _lost(before, current):
                    version = catalog_store.get_version(act.tx, current.model, number)
                    if version.tombstone is None:
                        self.promotions.tombstone(act, version, why)
                if change is Change.ROLLING_BACK:
                    self._point_back(act, endpoint, current)
            case Change.FAILED | Change.CANCELLED | Change.SUPERSEDED | Change.CONCLUDED | Change.ROLLED_BACK:
                self._point_back(act, endpoint, current)
            case _:
                pass

    def _point_back(self, act: Act, endpoint: Endpoint, current: Rollout) -> None:
        """Should the stage or alias name the candidate already, although it has not succeeded, it names the
        stable version again."""
        if endpoint.stable is None or self.pointed(act, endpoint) != current.candidate:
            return
        stable = catalog_store.get_version(act.tx, endpoint.model, endpoint.stable)
        if stable.number != current.candidate and stable.tombstone is None:
            why = f"{endpoint.follows} named {current.candidate_semver}: {current.outcome or current.state}"
            self.point(act, endpoint, stable, cause=MoveCause.ROLLBACK, reason=why)

    def revert(
        self, act: Act, endpoint: Endpoint, to: ModelVersion, reason: str, epoch: Epoch | None = None
    ) -> Endpoint:
        """Have an endpoint serve a former version at once. The one that leaves is not kept as a way back, so
        that rollbacks never go to and fro.

        Args:
            epoch: the age of the route where a gateway has made it already.
        """
        running = self.active(act, endpoint)
        age = max(endpoint.epoch, running.epoch) if running is not None else endpoint.epoch
        changed = structs.replace(
            endpoint, stable=to.number, previous=None, epoch=epoch or Epoch(age.term + 1, 0)
        )
        store.save_endpoint(act.tx, changed, act.now)
        sequence = self.record(
            act,
            EventKind.ENDPOINT_CHANGED,
            endpoint,
            number=to.number,
            reason=reason,
            stable=to.number,
            was=endpoint.stable,
        )
        self.moved(act, self.route(act, endpoint, running), self.route(act, changed, running), sequence)
        return changed


def _lost(before: Rollout, current: Rollout) -> list[tuple[int, str]]:
    """The versions whose callers this change took from them, each with why: all that were tried still, or
    some of an A/B test."""
    outs = (current.out, *(other.out for other in current.others))
    why = current.outcome or "rolled back"
    return [
        (current.numbers[place], outs[place] or why)
        for place in before.in_test
        if current.state is RolloutState.ROLLING_BACK or outs[place] is not None
    ]


def settled(endpoint: Endpoint, current: Rollout) -> Endpoint:
    """The endpoint after a change of its rollout."""
    if not current.state.finished and endpoint.previous in current.lost:
        return structs.replace(endpoint, previous=None)  # what was taken back is no version to go back to
    if not current.state.finished:
        return endpoint
    done = structs.replace(endpoint, rollout=None, epoch=max(endpoint.epoch, current.epoch))
    if current.state is RolloutState.SUCCEEDED:
        return structs.replace(done, stable=current.candidate, previous=endpoint.stable)
    return done
