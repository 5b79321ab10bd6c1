"""What a rollout has been shown: its ticks taken in, and what guards and evidence say of them.

What follows from it is decided in `rollout`; the tests themselves, and their sentences, are `judgement`'s.
"""

from collections.abc import Iterable, Sequence
from itertools import islice

from msgspec import structs

from modelkeep.core import judgement
from modelkeep.core.contest import evidence_of
from modelkeep.core.evidence import Evidence
from modelkeep.core.judgement import Judgement, Verdict
from modelkeep.core.movement import Observed, Rollout, RolloutState
from modelkeep.core.observation import LabelCounts, Labelled, Tick, VersionPhase
from modelkeep.core.plan import Strategy, apart
from modelkeep.core.rollout_routes import shown

NOTES_MAX = 3
"""Error texts of the candidate that a rollout keeps for people to read."""


def counts_for(rollout: Rollout, tick: Tick) -> bool:
    """Whether a tick is evidence of this rollout: of its own, with a share or copies for the candidate."""
    return tick.rollout == rollout.id and (tick.tried or tick.pairs is not None)


def take_in(rollout: Rollout, ticks: Sequence[Tick]) -> Rollout:
    """Feed the tests with ticks of this rollout, in the order of their arrival. What comes after the decision
    to take the candidate back, or before it has traffic, is no evidence."""
    if rollout.state not in (RolloutState.SHADOWING, RolloutState.STEPPING):
        return rollout
    own = [tick for tick in ticks if counts_for(rollout, tick)]
    if not own:
        return rollout
    candidate, stable, notes = rollout.candidate_counts, rollout.stable_counts, rollout.notes
    pairs, labels, outputs = rollout.pairs, rollout.labels, rollout.outputs
    sides = [other.counts for other in rollout.others]
    for tick in own:
        for place, side in enumerate(tick.others[: len(sides)]):
            sides[place] = sides[place].plus(side)
        if tick.labels is not None:
            labels = labels.plus(tick.labels) if labels is not None else tick.labels
        if tick.outputs is not None:
            outputs = outputs.plus(tick.outputs) if outputs is not None else tick.outputs
        if tick.pairs is not None:
            pairs = pairs.plus(tick.pairs) if pairs is not None else tick.pairs
        candidate = candidate.plus(tick.candidate)
        stable = stable.plus(tick.stable)
        for text in map(shown, tick.errors_seen):
            if len(notes) < NOTES_MAX and text not in notes:
                notes = (*notes, text)
    return structs.replace(
        rollout,
        evidence=evidence_of(rollout.plan, own, rollout.evidence),
        candidate_counts=candidate,
        stable_counts=stable,
        pairs=pairs,
        labels=labels,
        outputs=outputs,
        others=tuple(
            structs.replace(other, counts=counts) for other, counts in zip(rollout.others, sides, strict=True)
        ),
        notes=notes,
        ticks=rollout.ticks + len(own),
    )


def replay(rollout: Rollout, ticks: Iterable[Tick]) -> Evidence:
    """The evidence that the stored ticks amount to, recomputed from nothing.

    Args:
        ticks: all ticks of the rollout, in the order of their arrival; as many as were taken in are used.
    """
    own = (tick for tick in ticks if counts_for(rollout, tick))
    return evidence_of(rollout.plan, islice(own, rollout.ticks))


def judge(rollout: Rollout) -> Judgement:
    """What the evidence of a rollout says now; a rolling update asks it nothing."""
    if rollout.plan.strategy is Strategy.ROLLING:
        why = "a rolling update goes by readiness and guards, and asks for no statistics"
        return Judgement(verdict=Verdict.HOLD, why=why)
    plan = apart(rollout.plan)
    copies_only = rollout.pairs is not None and not rollout.candidate_counts.requests
    if plan.strategy is Strategy.SHADOW or rollout.state is RolloutState.SHADOWING or copies_only:
        return judgement.judge_pairs(plan, rollout.evidence, rollout.pairs)
    seen = (rollout.candidate_counts, rollout.stable_counts, rollout.labels, rollout.outputs)
    return judgement.judge(plan, rollout.evidence, *seen)


def judge_other(rollout: Rollout, place: int) -> Judgement:
    """What the evidence says of one of an A/B test's further versions (1 is the first), beside stable."""
    other = rollout.others[place - 1]
    evidence = rollout.evidence.others[place - 1] if rollout.evidence.others else Evidence()
    labels = rollout.labels
    if labels is not None:
        own = labels.others[place - 1] if place <= len(labels.others) else LabelCounts()
        labels = Labelled(candidate=own, stable=labels.stable)
    found = judgement.judge(apart(rollout.plan), evidence, other.counts, rollout.stable_counts, labels)
    return structs.replace(found, why=found.why.replace("the candidate", other.semver))


def fallen(rollout: Rollout, observed: Observed) -> tuple[Rollout, dict[int, str]]:
    """A test of several versions with what is said of each of the others now, and those who are to be taken
    out, by their places, each with why."""
    others, gone = list(rollout.others), dict[int, str]()
    for place in rollout.in_test:
        found = alarm_of(rollout, observed, place)
        found = found or (judge_other(rollout, place) if place else judge(rollout))
        if place:
            others[place - 1] = structs.replace(others[place - 1], judgement=found)
        if found.verdict is Verdict.ROLLBACK:
            gone[place] = found.why
    return structs.replace(rollout, others=tuple(others)), gone


def found_of(rollout: Rollout, observed: Observed) -> Judgement:
    """What guards, evidence and, for a rolling update, readiness say now."""
    alarm = alarm_of(rollout, observed)
    if alarm is not None:
        return alarm
    if rollout.plan.strategy is Strategy.ROLLING:
        if observed.phase is VersionPhase.READY:
            why = "the candidate is ready on every gateway that answers, and no guard was reached"
            return Judgement(verdict=Verdict.ADVANCE, why=why, passed="ready")
        return Judgement(
            verdict=Verdict.HOLD, why=f"the candidate is {observed.phase or 'unknown'} on the gateways"
        )
    return judge(rollout)


def alarm_of(rollout: Rollout, observed: Observed, place: int = 0) -> Judgement | None:
    """The hard guards: facts, outside the statistics; of the candidate, or (from 1 on) another version."""
    sight, guards, why = observed.sight(place), rollout.plan.guards, None
    counts = rollout.others[place - 1].counts if place else rollout.candidate_counts
    who = rollout.others[place - 1].semver if place else "the candidate"
    if sight.phase is VersionPhase.FAILED:
        why = f"{who}'s process failed for good: {sight.error or 'it crashed again and again'}"
    elif counts.crashes >= guards.crashes:
        why = f"{who} crashed {counts.crashes} times"
    elif counts.schema_violations >= guards.schema_violations:
        why = f"{who} broke its own output schema {counts.schema_violations} times"
    return Judgement(verdict=Verdict.ROLLBACK, why=why, blamed="guard") if why is not None else None
