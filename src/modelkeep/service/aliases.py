"""Aliases: where they point, and what becomes of traffic where an endpoint follows one.

An alias that no endpoint follows moves at once. One that an endpoint follows names what the endpoint serves:
pointing it elsewhere starts the rollout, and the alias moves when that has succeeded, in the same act. Which
events these are is in `labels`; how traffic moves is the rollout column's part.
"""

from typing import NamedTuple

from msgspec import UNSET, UnsetType, structs

from modelkeep.core import errors, values
from modelkeep.core.access import Verb
from modelkeep.core.answers import AliasMove, PromotionKind
from modelkeep.core.catalog import AliasSpec, ModelVersion
from modelkeep.core.plan import Plan, check_plan
from modelkeep.core.rollout import Endpoint, Rollout, RolloutState
from modelkeep.core.values import ModelName, Ref
from modelkeep.service import labels, references
from modelkeep.service.act import Act
from modelkeep.service.starter import RolloutStarter
from modelkeep.store import models
from modelkeep.store.models import ModelRow

ALIASES_MAX = 200
"""Aliases of one model: they are read by people, and shown with it."""


class Pointed(NamedTuple):
    """What came of setting an alias: the endpoint that follows it, and the rollout that leads there."""

    endpoint: str | None = None
    rollout: Rollout | None = None


class Aliases:
    """The verbs of aliases. `followers` is set once, when the house is assembled; without it every alias
    moves at once."""

    followers: RolloutStarter | None = None

    def set_alias(
        self,
        act: Act,
        model: ModelName,
        alias: str,
        ref: Ref,
        expect: int | UnsetType | None = UNSET,
        protected: bool | None = None,
        *,
        reason: str = "",
        plan: Plan | None = None,
        supersede: bool = False,
    ) -> AliasMove:
        """Point an alias at a version; where an endpoint follows the alias, start the rollout at whose end it
        points there.

        Args:
            expect: the number that it must point to now (None: there must be none yet); left out: whatever.
            protected: whether it keeps its version from deletion and moves only by a maintainer; None: as it
                is.
            reason: why, for the rollout.
            plan: how the rollout goes, in the place of the policy's plan, or the endpoint's.
            supersede: end the rollout of the endpoint that is under way.

        Raises:
            NotFound (its leaves), NotAllowed: the version, or the right to set (or protect) aliases, or to
                move the traffic that follows.
            AliasMoved: it points elsewhere than `expect`; the details say where.
            InvalidName: it cannot be an alias. InvalidReference: the version is of another model.
            InvalidPlan: no endpoint follows the alias, or the plan cannot be carried out.
            RolloutActive: the traffic of the endpoint that follows it is already being moved elsewhere, or by
                another plan than the one that was said.
            Conflict: a plan was said, and the version is served already or its rollout is under way.
            Tombstoned: an endpoint follows it, and the version was taken back.
        """
        done = self.point_alias(
            act, model, alias, ref, expect, protected, reason=reason, plan=plan, supersede=supersede
        )
        after = AliasMove(**structs.asdict(models.get_model(act.tx, model)))
        rollout = done.rollout
        if rollout is None:
            return structs.replace(after, endpoint=done.endpoint)
        return structs.replace(
            after,
            kind=PromotionKind.ROLLOUT,
            rollout=rollout.id,
            endpoint=rollout.endpoint,
            plan=rollout.plan,
        )

    def point_alias(
        self,
        act: Act,
        model: ModelName,
        alias: str,
        ref: Ref,
        expect: int | UnsetType | None = UNSET,
        protected: bool | None = None,
        *,
        reason: str = "",
        plan: Plan | None = None,
        supersede: bool = False,
    ) -> Pointed:
        """`set_alias` for who does not ask what the model looks like afterwards. Raises as that."""
        act.readable(model)
        act.authorise(Verb.SET_ALIAS, model)
        labels.check_alias(alias)
        if ref.model != model:
            raise errors.InvalidReference(f"{ref} is no version of {model}; aliases stay within their model.")
        row, version = references.resolve_in_model(act, references.present(ref))
        known = models.get_alias(act.tx, row.id, alias)
        current = known.number if known is not None else None
        if expect is not UNSET and expect != current:
            now_at = f"points to number {current}" if current is not None else "does not exist"
            raise errors.AliasMoved(
                f"{model}@{alias} {now_at}, not what you expected; look at it again.", current=current
            )
        shielded = protected if protected is not None else known is not None and known.protected
        if shielded or (known is not None and known.protected):
            act.authorise(Verb.PROTECT, model)
        if known is None and len(models.list_aliases(act.tx, row.id)) >= ALIASES_MAX:
            raise errors.LimitExceeded(
                f"A model has at most {ALIASES_MAX} aliases; delete some.", limit=ALIASES_MAX
            )
        endpoint = labels.follower(act, row, alias)
        if endpoint is None or self.followers is None:
            if plan is not None:
                raise errors.InvalidPlan(
                    f"No endpoint follows {model}@{alias}, so it points to {version.semver} at once and a "
                    "plan says nothing; leave it out, or make one ('modelkeep endpoint create')."
                )
            self._point(act, row, alias, known, version, shielded)
            return Pointed()
        return self._move(
            act, self.followers, endpoint, row, known, version, shielded, reason, plan, supersede
        )

    def _point(
        self,
        act: Act,
        row: ModelRow,
        alias: str,
        known: AliasSpec | None,
        version: ModelVersion,
        shielded: bool,
    ) -> None:
        if known is None or (known.number, known.protected) != (version.number, shielded):
            labels.point_alias(act, row, alias, version, protected=shielded, known=known)

    def _move(
        self,
        act: Act,
        followers: RolloutStarter,
        endpoint: Endpoint,
        row: ModelRow,
        known: AliasSpec | None,
        version: ModelVersion,
        shielded: bool,
        reason: str,
        plan: Plan | None,
        supersede: bool,
    ) -> Pointed:
        """Set an alias that an endpoint follows: at once where nothing has to move, else by a rollout."""
        model, alias = row.full_name, endpoint.alias
        assert alias is not None, "the endpoint follows it"
        running = followers.running(act, endpoint)
        if running is None and endpoint.stable == version.number:
            if plan is not None:
                raise errors.Conflict(
                    f"The endpoint {endpoint.name} already serves {version.reference}, so a plan says "
                    "nothing; leave it out."
                )
            self._point(act, row, alias, known, version, shielded)
            return Pointed(endpoint.name)
        act.authorise(Verb.PROMOTE, model)
        if plan is not None or supersede:
            act.authorise(Verb.OPERATE, model)
        if plan is not None:
            check_plan(plan)
        if known is not None and known.protected != shielded:
            standing = references.resolve(act, values.parse_ref(f"{model}:#{known.number}"))
            labels.point_alias(act, row, alias, standing, protected=shielded)
        why = values.check_text(reason, "reason") or f"{model}@{alias} is to be {version.semver}"
        again = running is not None and running.candidate == version.number and plan is None
        if again and running is not None and running.state is not RolloutState.ROLLING_BACK:
            return Pointed(endpoint.name, running)  # asked twice is asked once
        stays = endpoint.stable == version.number and plan is None
        if supersede and running is not None and stays:
            act.authorise(Verb.ROLLBACK, model)
            followers.take_back(act, endpoint, f"the alias stays: {why}")
            return Pointed(endpoint.name)
        by_policy = followers.plan_for(act, endpoint)
        started = followers.start(
            act,
            endpoint,
            version,
            reason=why,
            request=None,
            plan=plan or by_policy,
            plan_from="alias" if plan is not None else "endpoint" if by_policy is None else "policy",
            supersede=supersede,
            shielded=shielded,
        )
        return Pointed(endpoint.name, started)

    def delete_alias(self, act: Act, model: ModelName, alias: str) -> None:
        """Remove an alias.

        Raises:
            ModelNotFound, AliasNotFound, NotAllowed: the model, the alias, or the right to set (or protect)
            it.
            Protected: an endpoint follows it.
        """
        act.readable(model)
        act.authorise(Verb.SET_ALIAS, model)
        row = references.row_of(act, model)
        known = models.get_alias(act.tx, row.id, alias)
        if known is None:
            shown = values.printable(alias)[:60]
            raise errors.AliasNotFound(
                f"{model} has no alias {shown}; there is nothing to delete.", model=str(model)
            )
        if known.protected:
            act.authorise(Verb.PROTECT, model)
        labels.refuse_followed(act, row, alias)
        labels.drop_alias(act, row, known)
        models.touch_model(act.tx, row.id, act.now)
