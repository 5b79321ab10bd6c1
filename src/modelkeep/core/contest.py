"""What an A/B test of several versions comes to: each against stable, all against each other, and the report.

Each version is judged against stable as the candidate of a test of two is, on the callers of those two alone:
given that a caller came to one of the two, the version's share of both is the chance that it was that one,
whatever happens to a third version. That holds after one is taken out as well, because its callers are set
aside: stable answers them, and no tick counts them or their share on any side. Who is taken out, and when, is
decided in `rollout`.

A further version has a name on each floor: a plan asks for it (`Variant`, in `versions`), a rollout counts it
(`Contender`, in `others`), a route gives it callers (`Arm`, in `others`).
"""

from collections.abc import Iterable
from itertools import combinations
from typing import TypeVar

from msgspec import structs

from modelkeep.core import sequential
from modelkeep.core.evidence import BETTER, WORSE, Evidence, Rivals, Specs, troubled
from modelkeep.core.evidence import evidence_of as evidence_of_two
from modelkeep.core.movement import Rollout
from modelkeep.core.observation import LabelCounts, Labelled, SideCounts, Tick
from modelkeep.core.plan import Goal, Plan
from modelkeep.core.routing import WHOLE_PPM
from modelkeep.core.sequential import BinaryEProcess, CallerTick
from modelkeep.core.winner import TROUBLE, Compared, Unlabelled, Winner, WinnerReport, counted
from modelkeep.core.winner import report as report_of_two

T = TypeVar("T")

Side = tuple[SideCounts, LabelCounts]
_NOBODY, _NOTHING = SideCounts(), LabelCounts()


def evidence_of(plan: Plan, ticks: Iterable[Tick], before: Evidence | None = None) -> Evidence:
    """What ticks amount to, on top of what there was before: the same ticks in the same order, the same bits.
    A test of two versions, and any other rollout, has one evidence; one of several has one for each.
    """
    if not plan.versions:
        return evidence_of_two(plan, ticks, before)
    specs, evidence = Specs.of(plan), before or Evidence()
    for tick in ticks:
        evidence = _taken(plan, specs, evidence, tick)
    return evidence


def _taken(plan: Plan, specs: Specs, evidence: Evidence, tick: Tick) -> Evidence:
    """The evidence after one more tick. Versions that it counts and the plan does not know are left out, with
    their share: no report may keep a test from being judged."""
    further = len(plan.versions)
    labels = tick.labels or Labelled()
    counts = (tick.candidate, *_filled(tick.others, further, _NOBODY))
    told = (labels.candidate, *_filled(labels.others, further, _NOTHING))
    sides = tuple(zip(counts, told, strict=True))
    shares = (tick.candidate_ppm, *_filled(tick.others_ppm, further, 0))
    rest_ppm = WHOLE_PPM - tick.candidate_ppm - sum(tick.others_ppm) - tick.aside_ppm
    own = (evidence, *(evidence.others or [Evidence()] * further))
    candidate, *others = (
        specs.update(state, _between(tick, side, share, rest_ppm))
        for state, side, share in zip(own, sides, shares, strict=True)
    )
    pairs = list(combinations(range(len(sides)), 2))
    rivals = evidence.rivals or (Rivals(),) * len(pairs)
    return structs.replace(
        candidate,
        others=tuple(others),
        rivals=tuple(
            _met(plan, state, (sides[one], sides[two]), (shares[one], shares[two]))
            for state, (one, two) in zip(rivals, pairs, strict=True)
        ),
    )


def _filled(found: tuple[T, ...], wanted: int, nothing: T) -> tuple[T, ...]:
    """So many of them, with nothing in the place of those that are missing."""
    return (*found[:wanted], *[nothing] * (wanted - len(found)))


def _between(tick: Tick, side: Side, share_ppm: int, rest_ppm: int) -> Tick:
    """The tick as a test of this version and stable alone would have had it: the share is that of both, to
    the millionth below. A version with no share was not asked."""
    own_ppm = max(1, share_ppm * WHOLE_PPM // (share_ppm + rest_ppm)) if share_ppm else 0
    counts, told = side
    labels = None if tick.labels is None else Labelled(candidate=told, stable=tick.labels.stable)
    return structs.replace(
        tick, candidate=counts, candidate_ppm=own_ppm, others=(), others_ppm=(), labels=labels
    )


def _met(plan: Plan, state: Rivals, sides: tuple[Side, Side], shares: tuple[int, int]) -> Rivals:
    """Two versions beside stable after one more tick, in which both were asked."""
    if not all(shares):
        return state
    x, y = (troubled(plan.goal, *side) for side in sides)
    weight_ppm = max(1, shares[0] * WHOLE_PPM // sum(shares))
    met = CallerTick(x=x, y=y, weight_ppm=weight_ppm)
    return Rivals(
        better=sequential.update(state.better, BETTER, met), worse=sequential.update(state.worse, WORSE, met)
    )


def comparisons_of(plan: Plan) -> int:
    """Pairs of all versions, stable among them, each in both directions."""
    versions = 2 + len(plan.versions)
    return versions * (versions - 1)


def report(rollout: Rollout) -> WinnerReport:
    """What an A/B test has come to by now, of two versions or of several.

    Of several, a version has won when its callers are shown to fare better than stable's and no version that
    is still in the test is shown to be better than it. Where that holds of more than one, nothing is shown
    between them, and the one with the lowest rate that was seen is named.
    """
    plan, evidence = rollout.plan, rollout.evidence
    labels = rollout.labels or Labelled()
    two = report_of_two(plan, evidence, rollout.candidate_counts, rollout.stable_counts, labels)
    missing = _unlabelled(rollout)
    without = ", ".join(f"{one.missing} of {one.callers} of {one.version}" for one in missing)
    tail = f"; callers without a label: {without}" if missing else ""
    if not rollout.others:
        return structs.replace(two, labels=missing, why=two.why + tail)
    comparisons = comparisons_of(plan)
    level = plan.alpha / comparisons
    own = (evidence, *(evidence.others or [Evidence()] * len(rollout.others)))
    arms = tuple(_compared(plan, rollout, place, state, comparisons) for place, state in enumerate(own))
    better = [place for place in range(len(arms)) if arms[place].out is None and arms[place].better]
    beaten: set[int] = set()
    for (one, two_), state in zip(combinations(range(len(arms)), 2), evidence.rivals, strict=False):
        shown = _shown(state.better, state.worse, level)
        if shown is not None and arms[one].out is None and arms[two_].out is None:
            beaten.add(two_ if shown else one)
    unbeaten = sorted(set(better) - beaten, key=lambda place: (arms[place].rate or 0.0, place))
    staying = [arm for arm in arms if arm.out is None]
    side = (rollout.stable_counts, labels.stable)
    x, m = troubled(plan.goal, *side), counted(plan.goal, *side)
    seen = ", ".join(
        [_seen(arm.semver, arm.rate, arm.callers) for arm in arms]
        + [_seen("stable", x / m if m else None, m)]
    )
    winner, semver, p_value = Winner.NOBODY, None, min((arm.p_value for arm in staying), default=1.0)
    said = "nobody is shown to be better"
    if unbeaten:
        first = unbeaten[0]
        winner = Winner.CANDIDATE if first == 0 else Winner.OTHER
        semver, p_value = arms[first].semver, arms[first].p_value
        said = f"the callers of {semver} fare better than stable's"
        if len(unbeaten) > 1:
            rest = ", ".join(arms[place].semver for place in unbeaten[1:])
            said = f"{said}, and so do those of {rest}, between which nothing is shown"
    elif staying and all(arm.better is False for arm in staying):
        winner, semver = Winner.STABLE, rollout.stable_semver
        said = "stable's callers fare better than those of every other version"
        p_value = max(arm.p_value for arm in staying)
    numbers = f"p = {p_value:.2g} over all {comparisons} comparisons, limit {plan.alpha:g}"
    return structs.replace(
        two,
        winner=winner,
        semver=semver,
        p_value=p_value,
        confidence=1 - p_value,
        comparisons=comparisons,
        arms=arms,
        labels=missing,
        why=f"{said}: {seen} {TROUBLE[plan.goal]}; {numbers}{tail}",
    )


def _compared(plan: Plan, rollout: Rollout, place: int, state: Evidence, comparisons: int) -> Compared:
    """One version beside stable."""
    other = rollout.others[place - 1] if place else None
    side = _side(rollout, place)
    callers = counted(plan.goal, *side)
    return Compared(
        semver=rollout.candidate_semver if other is None else other.semver,
        callers=callers,
        rate=troubled(plan.goal, *side) / callers if callers else None,
        p_value=min(1.0, comparisons * min(state.better.p_value, state.worse.p_value)),
        better=_shown(state.better, state.worse, plan.alpha / comparisons),
        out=rollout.out if other is None else other.out,
    )


def _side(rollout: Rollout, place: int) -> Side:
    """What was counted of one version, and what became known of its predictions."""
    labels = rollout.labels or Labelled()
    if not place:
        return rollout.candidate_counts, labels.candidate
    told = _filled(labels.others, len(rollout.others), _NOTHING)
    return rollout.others[place - 1].counts, told[place - 1]


def _unlabelled(rollout: Rollout) -> tuple[Unlabelled, ...]:
    """Of a test that is about labels: how many are missing, of each version; nothing of any other."""
    if rollout.plan.goal is not Goal.QUALITY:
        return ()
    labels = rollout.labels or Labelled()
    names = (
        rollout.candidate_semver,
        *(other.semver for other in rollout.others),
        rollout.stable_semver or "",
    )
    sides = [_side(rollout, place) for place in range(1 + len(rollout.others))]
    sides.append((rollout.stable_counts, labels.stable))
    return tuple(
        Unlabelled(
            version=name,
            callers=counts.new_callers,
            labelled=told.callers_labelled,
            missing=max(0, counts.new_callers - told.callers_labelled),
        )
        for name, (counts, told) in zip(names, sides, strict=True)
    )


def _shown(better: BinaryEProcess, worse: BinaryEProcess, level: float) -> bool | None:
    """Whether the first one's callers are shown to fare better, or worse; None where neither is."""
    if not (better.ever_reached(level) or worse.ever_reached(level)):
        return None
    return better.max_log_v > worse.max_log_v


def _seen(who: str, rate: float | None, callers: int) -> str:
    return f"{rate:.2%} of {who}'s {callers} callers" if rate is not None else f"no callers of {who}"
