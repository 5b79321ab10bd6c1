"""Taking a model back: the rollout under way, or else the version in the stage, or behind an alias that an
endpoint follows.

One act does everything, so that there is no moment without a version in the stage. No gate and no approval is
asked: whoever may roll back may do so at once. Where it goes is found in one place, for the rollback and for
whoever only asks.
"""

from typing import Protocol

from msgspec import Struct

from modelkeep.core import errors, promotion, values
from modelkeep.core.access import Verb
from modelkeep.core.answers import PromotionKind, Rollback
from modelkeep.core.catalog import ModelVersion
from modelkeep.core.promotion import TICKET_MAX, MoveCause
from modelkeep.core.rollout import Endpoint, RolloutState
from modelkeep.core.values import ModelName, Ref
from modelkeep.service import labels, stages
from modelkeep.service.act import Act
from modelkeep.service.references import present
from modelkeep.service.served import CHOICES_MAX, served_before
from modelkeep.service.stages import Because
from modelkeep.service.starter import RolloutStarter
from modelkeep.store import catalog as catalog_store
from modelkeep.store import models as models_store
from modelkeep.store import promotion as store
from modelkeep.store.models import ModelRow

__all__ = ["Resolver", "Rollbacks", "RolloutStarter"]


class Resolver(Protocol):
    """What promotion needs of the catalog."""

    def resolve(self, act: Act, ref: Ref) -> ModelVersion:
        """The version a reference names, when the caller may read it."""


class _Way(Struct, frozen=True, kw_only=True):
    """Where a rollback goes: from whom (None: nobody stands there) to whom. `moving`: a rollout is under way,
    which ends, and `leaving` stays."""

    row: ModelRow
    stage: str | None
    alias: str | None
    endpoint: Endpoint | None
    leaving: ModelVersion | None
    target: ModelVersion | None
    moving: bool


class Rollbacks:
    """The verb `rollback`, and what it would do."""

    def __init__(self, catalog: Resolver, rollouts: RolloutStarter | None) -> None:
        self._catalog = catalog
        self._rollouts = rollouts

    def rollback(
        self,
        act: Act,
        model: ModelName,
        reason: str,
        *,
        to: Ref | None = None,
        stage: str | None = None,
        incident: str | None = None,
        alias: str | None = None,
    ) -> Rollback:
        """Take a model back: the rollout under way, else the version in the stage (production, when neither
        stage nor alias is said), or the one that an alias names and its endpoint serves.

        The version taken back is tombstoned; the one that returns is the last in the stage (or the last that
        the alias's endpoint served) that never was, or the one named, which must have been there before. No
        gate is asked.

        Raises:
            NotAllowed: the caller may not roll back.
            NoRollbackTarget: there is nothing to go back to, or not what was named; says what there is.
            Tombstoned: the version named was itself taken back.
            RolloutActive: a version was named while a rollout is under way.
            InvalidTransition: the model has no such stage, or one that holds many versions.
            EndpointNotFound: no endpoint follows the alias, which then is simply set.
        """
        values.check_text(reason, "reason", required=True)
        if incident is not None:
            values.check_text(incident, "incident", maximum=TICKET_MAX)
        way = self._way(act, model, to, stage, alias)
        if way.moving:
            return self._end_rollout(act, way, reason, incident)
        target, leaving, endpoint = way.target, way.leaving, way.endpoint
        assert target is not None, "there is no rollout to end"
        interval = None
        if way.alias is None:
            assert way.stage is not None, "it is one of the two"
            because = Because(cause=MoveCause.ROLLBACK, reason=reason, incident=incident)
            interval = stages.move(act, way.row, target, way.stage, because).interval
        else:
            known = models_store.get_alias(act.tx, way.row.id, way.alias)
            shielded = known is not None and known.protected
            cause = MoveCause.ROLLBACK
            labels.point_alias(
                act, way.row, way.alias, target, protected=shielded, reason=reason, cause=cause
            )
        if leaving is not None:
            stages.tombstone(act, leaving, f"rolled back by {act.by}: {reason}", incident)
        if endpoint is not None and endpoint.stable != target.number:
            assert self._rollouts is not None, "an endpoint follows it"
            self._rollouts.revert(act, endpoint, target, reason)
        return Rollback(
            kind=PromotionKind.MOVED,
            stage=way.stage,
            alias=way.alias,
            version=catalog_store.get_version(act.tx, model, target.number),
            from_number=leaving.number if leaving is not None else None,
            from_semver=leaving.semver if leaving is not None else None,
            tombstoned=leaving is not None,
            endpoint=endpoint.name if endpoint is not None else None,
            incident=incident,
            interval=interval,
        )

    def preview(
        self,
        act: Act,
        model: ModelName,
        *,
        to: Ref | None = None,
        stage: str | None = None,
        alias: str | None = None,
    ) -> Rollback:
        """What `rollback` would do now; nothing is changed. Raises whatever that would raise."""
        way = self._way(act, model, to, stage, alias)
        leaving, running = way.leaving, None
        if way.moving:
            assert self._rollouts is not None, "one of its rollouts is under way"
            assert way.endpoint is not None, "one of its rollouts is under way"
            running = self._rollouts.running(act, way.endpoint)
            assert running is not None, "the endpoint has an unfinished rollout"
            leaving = catalog_store.get_version(act.tx, model, running.candidate)
        weighty = running is None or running.state in (RolloutState.STEPPING, RolloutState.ROLLING_BACK)
        return Rollback(
            kind=PromotionKind.ROLLOUT if way.moving else PromotionKind.MOVED,
            stage=way.stage,
            alias=way.alias,
            version=way.leaving if way.moving else way.target,
            from_number=leaving.number if leaving is not None else None,
            from_semver=leaving.semver if leaving is not None else None,
            tombstoned=leaving is not None and weighty,
            rollout=running.id if running is not None else None,
            endpoint=way.endpoint.name if way.endpoint is not None else None,
        )

    def _way(self, act: Act, model: ModelName, to: Ref | None, stage: str | None, alias: str | None) -> _Way:
        """Where a rollback goes. Raises as `rollback` says."""
        if alias is not None and stage is not None:
            raise errors.Invalid("Name a stage or an alias to go back in; leave one out.", field="alias")
        act.readable(model)
        act.authorise(Verb.ROLLBACK, model)
        row = models_store.get_row(act.tx, model)
        if alias is None:
            stage = stage or stages.PRODUCTION
            if not row.stages.stage(stage).exclusive:
                raise errors.InvalidTransition(
                    f"The stage {stage} holds many versions; nothing returns to it."
                )
            endpoint = self._rollouts.following(act, model, stage) if self._rollouts is not None else None
            occupant = store.occupant(act.tx, row.id, stage)
            number = occupant.number if occupant is not None else None
        else:
            endpoint = self._follower(act, model, alias)
            known = models_store.get_alias(act.tx, row.id, alias)
            number = known.number if known is not None else None
        leaving = catalog_store.get_version(act.tx, model, number) if number is not None else None
        moving = endpoint is not None and endpoint.rollout is not None
        target: ModelVersion | None = None
        if endpoint is not None and moving:
            self._check_stays(act, endpoint, leaving, to)
        elif alias is not None:
            assert endpoint is not None, "it was found above"
            target = self._former_of(act, endpoint, number, to)
        elif to is None:
            target = self._choose(act, row, stage or "", number)
        else:
            target = self._named(act, row, stage or "", number, self._catalog.resolve(act, present(to)))
        return _Way(
            row=row,
            stage=stage,
            alias=alias,
            endpoint=endpoint,
            leaving=leaving,
            target=target,
            moving=moving,
        )

    def _follower(self, act: Act, model: ModelName, alias: str) -> Endpoint:
        endpoint = self._rollouts.following(act, model, None, alias) if self._rollouts is not None else None
        if endpoint is None:
            raise errors.EndpointNotFound(
                f"No endpoint follows {model}@{alias}, so no traffic goes back with it; point it where it "
                f"shall point with 'modelkeep alias set {values.in_shell(f'{model}@{alias}')} VERSION'.",
                alias=alias,
            )
        return endpoint

    def _former_of(self, act: Act, endpoint: Endpoint, current: int | None, to: Ref | None) -> ModelVersion:
        """The version that an alias's endpoint served last and that was never taken back, or the one that
        somebody names of those.

        Raises:
            NoRollbackTarget: there is none, or not the one named; says what there is.
        """
        former = [version for version in served_before(act, endpoint) if version.number != current]
        wanted = self._catalog.resolve(act, present(to)) if to is not None else None
        for version in former:
            if wanted is None or (version.model, version.number) == (wanted.model, wanted.number):
                return version
        choices = [version.semver for version in former]
        listed = f"go back to {', '.join(choices)}" if choices else "its endpoint served no other version"
        raise errors.NoRollbackTarget(
            f"{endpoint.follows} cannot go back there; {listed}, or set it anew with "
            f"'modelkeep alias set {values.in_shell(endpoint.follows)} VERSION'.",
            choices=choices,
        )

    def _check_stays(self, act: Act, endpoint: Endpoint, stays: ModelVersion | None, to: Ref | None) -> None:
        """A rollout under way ends where it began: whoever names another version has to say so afterwards.
        Raises RolloutActive."""
        if to is None:
            return
        wanted = self._catalog.resolve(act, present(to))
        if stays is None or (wanted.model, wanted.number) != (stays.model, stays.number):
            raise errors.RolloutActive(
                f"A rollout of {endpoint.name} is under way; end it first with "
                f"'modelkeep rollback {values.in_shell(endpoint.model)} -m WHY', then go back to "
                f"{wanted.semver}.",
                endpoint=endpoint.name,
                rollout=endpoint.rollout,
            )

    def _end_rollout(self, act: Act, way: _Way, reason: str, incident: str | None) -> Rollback:
        """Give the candidate's traffic back to who is in the stage (or behind the alias), which does not
        move."""
        assert self._rollouts is not None, "an endpoint follows the stage"
        assert way.endpoint is not None, "an endpoint follows the stage"
        why = f"rolled back by {act.by}: {reason}" + (f" ({incident})" if incident is not None else "")
        taken = self._rollouts.take_back(act, way.endpoint, why)
        assert taken is not None, "the endpoint has an unfinished rollout"
        candidate = catalog_store.get_version(act.tx, way.endpoint.model, taken.candidate)
        return Rollback(
            kind=PromotionKind.ROLLOUT,
            stage=way.endpoint.stage,
            alias=way.endpoint.alias,
            version=way.leaving,
            from_number=candidate.number,
            from_semver=candidate.semver,
            tombstoned=candidate.tombstone is not None,
            rollout=taken.id,
            endpoint=way.endpoint.name,
            incident=incident,
        )

    def _choose(self, act: Act, row: ModelRow, stage: str, current: int | None) -> ModelVersion:
        """The version that was in the stage last and was never taken back."""
        former = store.former(act.tx, row.id, stage, CHOICES_MAX)
        present = {interval.number for interval in former}
        number = promotion.rollback_target(former, current, tombstoned=(), present=present)
        return catalog_store.get_version(act.tx, row.full_name, number)

    def _named(
        self, act: Act, row: ModelRow, stage: str, current: int | None, wanted: ModelVersion
    ) -> ModelVersion:
        """The version that somebody named, when it may return without asking any gate."""
        if wanted.model != row.full_name:
            raise errors.InvalidReference(
                f"{wanted.reference} is no version of {row.full_name}; name one of its own."
            )
        if wanted.number == current:
            raise errors.InvalidTransition(
                f"{wanted.reference} is in {stage} already; there is nothing to do."
            )
        if wanted.tombstone is not None:
            raise errors.Tombstoned(
                f"{wanted.reference} was itself taken back ({wanted.tombstone}); when the cause is mended, "
                f"run 'modelkeep clear {values.in_shell(wanted.reference)} -m WHY' first.",
                version=wanted.reference,
            )
        if not store.was_in(act.tx, row.id, stage, wanted.number):
            former = store.former(act.tx, row.id, stage, CHOICES_MAX)
            choices = [stay.semver for stay in reversed(former) if stay.number != current]
            promote = f"'modelkeep promote {values.in_shell(wanted.reference)} --to {stage} -m WHY'"
            instead = (
                f"go back to {', '.join(choices)}, or run {promote}"
                if choices
                else f"no other version was there either, so run {promote}"
            )
            raise errors.NoRollbackTarget(
                f"{wanted.reference} was never in {stage}, so nothing says that it holds there; {instead}.",
                choices=choices,
            )
        return wanted
