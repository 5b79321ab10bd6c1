"""What an endpoint may follow: not what gets round the policy, unless whoever administers the model says so.

A stage has gates and approvals, an alias has none. Who could have an endpoint follow an alias, or a stage
that asks for less than the one which the callers of that name were served from before, would do alone what
takes several. How the endpoint comes to be is in `endpoints`.
"""

from collections.abc import Callable, Collection

from msgspec import structs

from modelkeep.core import policy
from modelkeep.core.events import EventKind
from modelkeep.core.policy import Policy, StageRules
from modelkeep.core.values import ModelName, parse_model_name
from modelkeep.service.act import Act
from modelkeep.service.policies import refuse_weaker

EVENTS_MAX = 20
"""Latest events of a name in which its deletion is looked for: little can come behind it."""
_WHAT = "An endpoint that follows {} gets round the policy that holds"


def refuse_detour(
    act: Act,
    holds_for: Callable[[Act, ModelName], Policy],
    model: ModelName,
    stages: Collection[str],
    name: str,
    follows: str,
) -> None:
    """Refuse a new endpoint that asks for less than the policy does.

    Args:
        holds_for: the policy that holds for a model.
        stages: the stages of the model.
        name: the endpoint's.
        follows: what it is to follow, as a reference names it behind the model: `#production`, `@champion`.

    Raises:
        NotAllowed: the caller does not administer the model; says what would be asked for less.
    """
    held = holds_for(act, model)
    rules = held.rules(follows[1:]) if follows.startswith("#") else StageRules()
    what = _WHAT.format(f"{model}{follows}")
    if follows.startswith("@"):
        nothing = structs.replace(held, stages={})
        refuse_weaker(act, model, what, policy.weaker(nothing, held, stages))
    before = _followed_before(act, name)
    if before is not None:
        owner, stage = before
        theirs = holds_for(act, owner)
        mine = structs.replace(theirs, stages={stage: rules})
        reasons = policy.weaker(mine, theirs, [stage])
        refuse_weaker(act, owner, f"{what}: {name} followed {owner}#{stage} before", reasons)


def _followed_before(act: Act, name: str) -> tuple[ModelName, str] | None:
    """The stage that the last endpoint of this name followed, if it did follow one."""
    for one in act.tx.events.before(limit=EVENTS_MAX, subject=f"endpoint/{name}"):
        if one.event.kind is EventKind.ENDPOINT_DELETED:
            stage = one.event.body.get("stage")
            return (parse_model_name(one.event.model), stage) if stage and one.event.model else None
    return None
