"""The further versions of an A/B test: which they are, and whether they may be tried.

What a plan names is looked up once, when the test begins; from then on numbers are what counts. Nothing is
changed here.
"""

from collections.abc import Sequence
from typing import assert_never

from modelkeep.core import errors, promotion, values
from modelkeep.core.catalog import ModelVersion
from modelkeep.core.movement import Contender
from modelkeep.core.plan import Plan
from modelkeep.core.promotion import AwaitingApproval, Granted, Refused
from modelkeep.core.values import parse_ref
from modelkeep.service import references
from modelkeep.service.act import Act
from modelkeep.service.requests import Case, Requests
from modelkeep.service.stages import place_in


def named(act: Act, plan: Plan, version: ModelVersion) -> tuple[ModelVersion, ...]:
    """The versions that a plan tries beside this one.

    Raises:
        whatever resolving a reference raises.
    """
    return tuple(
        references.resolve(act, references.present(parse_ref(f"{version.model}:{variant.version}")))
        for variant in plan.versions
    )


def contenders(
    act: Act, plan: Plan, stable: ModelVersion | None, version: ModelVersion
) -> tuple[Contender, ...]:
    """The further versions of a test with their places: behind the candidate's callers, in the plan's order.

    Raises:
        InvalidPlan: nothing is served yet, or two versions of the test are one, or have the same bytes.
        Tombstoned: one was taken back, and nobody has cleared it.
        whatever resolving a reference raises.
    """
    if not plan.versions:
        return ()
    if stable is None:
        raise errors.InvalidPlan("The endpoint serves nothing yet that versions could be tested against.")
    found = named(act, plan, version)
    met = [stable, version]
    for other in found:
        same = next((one for one in met if one.number == other.number or one.digest == other.digest), None)
        if same is not None:
            names = {version.number: "the candidate", stable.number: "what is served"}
            role = names.get(same.number, same.reference)
            raise errors.InvalidPlan(
                f"{other.reference} is {role}, or has its bytes: a test compares versions that differ; leave "
                "it out of 'versions'."
            )
        if other.tombstone is not None:
            raise errors.Tombstoned(
                f"{other.reference} was taken back ({other.tombstone}); when the cause is mended, run "
                f"'modelkeep clear {values.in_shell(other.reference)} -m WHY' first.",
                version=other.reference,
            )
        met.append(other)
    begin, placed = plan.steps[0].weight_ppm, list[Contender]()
    for other, variant in zip(found, plan.versions, strict=True):
        placed.append(
            Contender(
                number=other.number,
                semver=other.semver,
                digest=other.digest,
                weight_ppm=variant.weight_ppm,
                from_ppm=begin,
            )
        )
        begin += variant.weight_ppm
    return tuple(placed)


def admit(
    act: Act, requests: Requests, case: Case, plan: Plan | None, verified: Sequence[bool | None]
) -> tuple[tuple[Case, Granted], ...]:
    """Ask the stage's gates for the versions that a plan tests beside the one that is promoted, for callers
    will meet them as well.

    Args:
        verified: whether each one's stored bytes still match, in the plan's order; None when unknown.

    Returns:
        What was weighed for each and how it was granted, in the plan's order, for whoever records it.

    Raises:
        PolicyDenied, ApprovalRequired: one of them may not enter the stage.
        InvalidTransition, Tombstoned, Yanked: it cannot go there at all.
    """
    others = named(act, plan, case.version) if plan is not None else ()
    granted: list[tuple[Case, Granted]] = []
    for place, other in enumerate(others):
        promotion.check_transition(case.model.stages, other, case.to)
        asked = requests.open_one(act, case.model, other, case.to)
        weighed = requests.weigh(
            act,
            place_in(act, case.model, other, case.to),
            requested_by=asked.requested_by if asked is not None else act.caller.actor,
            request=asked,
            files_verified=verified[place] if place < len(verified) else None,
        )
        decision = weighed.decision
        who = f"{other.reference}, which the plan tests too,"
        look = f"'modelkeep gate {values.in_shell(other.reference)} --to {case.to} --explain'"
        match decision:
            case Granted():
                granted.append((weighed, decision))
            case Refused():
                why = next(result.why for result in decision.gates if result.blocks)
                raise errors.PolicyDenied(
                    f"{who} may not enter {case.to}: {why}; see {look}.",
                    version=other.reference,
                    stage=case.to,
                )
            case AwaitingApproval():
                raise errors.ApprovalRequired(
                    f"{who} needs approvals before it enters {case.to}; run 'modelkeep request "
                    f"{values.in_shell(other.reference)} --to {case.to} -m WHY', and see {look}.",
                    version=other.reference,
                    stage=case.to,
                )
            case _:
                assert_never(decision)
    return tuple(granted)
