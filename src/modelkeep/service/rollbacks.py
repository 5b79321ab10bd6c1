"""Taking a model back: the rollout under way, or else the version in the stage, or behind an alias that an
endpoint follows.

One act does everything, so that there is no moment without a version in the stage. No gate and no approval is
asked: whoever may roll back may do so at once.
"""

from typing import Protocol

from modelkeep.core import errors, promotion, values
from modelkeep.core.access import Verb
from modelkeep.core.answers import PromotionKind, Rollback
from modelkeep.core.catalog import ModelVersion
from modelkeep.core.events import EventKind
from modelkeep.core.plan import Plan
from modelkeep.core.promotion import TICKET_MAX, MoveCause
from modelkeep.core.rollout import Endpoint, Rollout
from modelkeep.core.values import ModelName, Ref
from modelkeep.service import labels, references, stages
from modelkeep.service.act import Act
from modelkeep.service.references import present
from modelkeep.service.stages import Because
from modelkeep.store import catalog as catalog_store
from modelkeep.store import models as models_store
from modelkeep.store import promotion as store
from modelkeep.store.models import ModelRow

CHOICES_MAX = 20
"""Former occupants that a rollback chooses from: whoever goes further back names the version."""


class Resolver(Protocol):
    """What promotion needs of the catalog."""

    def resolve(self, act: Act, ref: Ref) -> ModelVersion:
        """The version a reference names, when the caller may read it."""


class RolloutStarter(Protocol):
    """What promotion needs of the rollout column."""

    def following(
        self, act: Act, model: ModelName, stage: str | None, alias: str | None = None
    ) -> Endpoint | None:
        """The endpoint that follows a stage of a model, or an alias."""

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
    ) -> Rollout:
        """Begin to move an endpoint's traffic to a version. Raises RolloutActive."""

    def take_back(self, act: Act, endpoint: Endpoint, reason: str) -> Rollout | None:
        """End an unfinished rollout of an endpoint; None when there is none."""

    def revert(self, act: Act, endpoint: Endpoint, to: ModelVersion, reason: str) -> None:
        """Have an endpoint serve a former version at once."""


class Rollbacks:
    """The verb `rollback`."""

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

        The version taken back is tombstoned; the one that returns is the last in the stage that never was, or
        the one named, which must have been in the stage before. No gate is asked.

        Raises:
            NotAllowed: the caller may not roll back.
            NoRollbackTarget: there is nothing to go back to, or not what was named; says what there is.
            Tombstoned: the version named was itself taken back.
            RolloutActive: a version was named while a rollout is under way.
            InvalidTransition: the model has no such stage, or one that holds many versions.
            EndpointNotFound: no endpoint follows the alias, which then is simply set.
        """
        if alias is not None and stage is not None:
            raise errors.Invalid("Name a stage or an alias to go back in; leave one out.", field="alias")
        values.check_text(reason, "reason", required=True)
        if incident is not None:
            values.check_text(incident, "incident", maximum=TICKET_MAX)
        act.readable(model)
        act.authorise(Verb.ROLLBACK, model)
        row = models_store.get_row(act.tx, model)
        if alias is not None:
            return self._alias_back(act, row, alias, reason, to, incident)
        stage = stage or stages.PRODUCTION
        if not row.stages.stage(stage).exclusive:
            raise errors.InvalidTransition(f"The stage {stage} holds many versions; nothing returns to it.")
        endpoint = self._rollouts.following(act, model, stage) if self._rollouts is not None else None
        current = store.occupant(act.tx, row.id, stage)
        if endpoint is not None and endpoint.rollout is not None:
            stays = current.number if current is not None else None
            return self._end_rollout(act, endpoint, stays, reason, to, incident)
        number = current.number if current is not None else None
        target = (
            self._choose(act, row, stage, number)
            if to is None
            else self._named(act, row, stage, number, self._catalog.resolve(act, present(to)))
        )
        leaving = catalog_store.get_version(act.tx, model, number) if number is not None else None
        because = Because(cause=MoveCause.ROLLBACK, reason=reason, incident=incident)
        moved = stages.move(act, row, target, stage, because)
        if leaving is not None:
            stages.tombstone(act, leaving, f"rolled back by {act.by}: {reason}", incident)
        if endpoint is not None and endpoint.stable != target.number:
            assert self._rollouts is not None, "an endpoint follows the stage"
            self._rollouts.revert(act, endpoint, target, reason)
        return Rollback(
            kind=PromotionKind.MOVED,
            stage=stage,
            version=catalog_store.get_version(act.tx, model, target.number),
            from_number=number,
            from_semver=leaving.semver if leaving is not None else None,
            tombstoned=leaving is not None,
            endpoint=endpoint.name if endpoint is not None else None,
            incident=incident,
            interval=moved.interval,
        )

    def _alias_back(
        self, act: Act, row: ModelRow, alias: str, reason: str, to: Ref | None, incident: str | None
    ) -> Rollback:
        """The same for an alias: the version before is the one that the endpoint served before, or the last
        that the alias named."""
        model = row.full_name
        endpoint = self._rollouts.following(act, model, None, alias) if self._rollouts is not None else None
        if self._rollouts is None or endpoint is None:
            raise errors.EndpointNotFound(
                f"No endpoint follows {model}@{alias}, so no traffic goes back with it; point it where it "
                f"shall point with 'modelkeep alias set {values.in_shell(f'{model}@{alias}')} VERSION'.",
                alias=alias,
            )
        known = models_store.get_alias(act.tx, row.id, alias)
        number = known.number if known is not None else None
        if endpoint.rollout is not None:
            return self._end_rollout(act, endpoint, number, reason, to, incident)
        target = self._former_of(act, row, endpoint, number, to)
        leaving = catalog_store.get_version(act.tx, model, number) if number is not None else None
        shielded = known is not None and known.protected
        labels.point_alias(
            act, row, alias, target, protected=shielded, reason=reason, cause=MoveCause.ROLLBACK
        )
        if leaving is not None:
            stages.tombstone(act, leaving, f"rolled back by {act.by}: {reason}", incident)
        if endpoint.stable != target.number:
            self._rollouts.revert(act, endpoint, target, reason)
        return Rollback(
            kind=PromotionKind.MOVED,
            stage=None,
            alias=alias,
            version=catalog_store.get_version(act.tx, model, target.number),
            from_number=number,
            from_semver=leaving.semver if leaving is not None else None,
            tombstoned=leaving is not None,
            endpoint=endpoint.name,
            incident=incident,
        )

    def _former_of(
        self, act: Act, row: ModelRow, endpoint: Endpoint, current: int | None, to: Ref | None
    ) -> ModelVersion:
        """The version that an alias named last and that was never taken back, or the one that somebody names
        of those.

        Raises:
            NoRollbackTarget: there is none, or not the one named; says what there is.
        """
        subject = references.alias_subject(row.full_name, endpoint.alias or "")
        past = act.tx.events.before(limit=CHOICES_MAX, subject=subject)
        named = [one.event.number for one in past if one.event.kind is EventKind.ALIAS_SET]
        numbers = dict.fromkeys((endpoint.previous, *named))
        former = [
            version
            for number in numbers
            if number not in (None, current)
            and (version := catalog_store.find(act.tx, catalog_store.BY_NUMBER, row.full_name, number=number))
            and version.tombstone is None
        ]
        wanted = self._catalog.resolve(act, present(to)).number if to is not None else None
        for version in former:
            if wanted is None or version.number == wanted:
                return version
        choices = [version.semver for version in former]
        listed = f"go back to {', '.join(choices)}" if choices else "it named no other version before"
        raise errors.NoRollbackTarget(
            f"{row.full_name}@{endpoint.alias} cannot go back there; {listed}, or set it anew with "
            f"'modelkeep alias set {values.in_shell(f'{row.full_name}@{endpoint.alias}')} VERSION'.",
            choices=choices,
        )

    def _end_rollout(
        self,
        act: Act,
        endpoint: Endpoint,
        current: int | None,
        reason: str,
        to: Ref | None,
        incident: str | None,
    ) -> Rollback:
        """Give the candidate's traffic back to who is in the stage (or behind the alias), which does not
        move."""
        stays = catalog_store.get_version(act.tx, endpoint.model, current) if current is not None else None
        if to is not None:
            wanted = self._catalog.resolve(act, present(to))
            if stays is None or (wanted.model, wanted.number) != (stays.model, stays.number):
                raise errors.RolloutActive(
                    f"A rollout of {endpoint.name} is under way; end it first with "
                    f"'modelkeep rollback {values.in_shell(endpoint.model)} -m WHY', then go back to "
                    f"{wanted.semver}.",
                    endpoint=endpoint.name,
                    rollout=endpoint.rollout,
                )
        assert self._rollouts is not None, "an endpoint follows the stage"
        why = f"rolled back by {act.by}: {reason}" + (f" ({incident})" if incident is not None else "")
        taken = self._rollouts.take_back(act, endpoint, why)
        assert taken is not None, "the endpoint has an unfinished rollout"
        candidate = catalog_store.get_version(act.tx, endpoint.model, taken.candidate)
        return Rollback(
            kind=PromotionKind.ROLLOUT,
            stage=endpoint.stage,
            alias=endpoint.alias,
            version=stays,
            from_number=candidate.number,
            from_semver=candidate.semver,
            tombstoned=candidate.tombstone is not None,
            rollout=taken.id,
            endpoint=endpoint.name,
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
