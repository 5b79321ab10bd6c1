"""A verdict for those who keep their own controller: of a rollout that is under way here, or of counts that
somebody else's router made.

The tests and the words are `judgement`'s; here are the flat shapes that a web request can ask for and
compare, the gates that answer yes or no by a status code, and the way from foreign counts to evidence.
Nothing is moved and nothing is remembered.
"""

from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated, assert_never

from msgspec import Meta, Struct, structs

from modelkeep.core import errors, judgement, sequential
from modelkeep.core.contest import report
from modelkeep.core.evidence import Evidence, Specs
from modelkeep.core.judgement import Judgement, Verdict
from modelkeep.core.observation import SideCounts
from modelkeep.core.plan import CANARY, Plan, Strategy, apart, check_plan
from modelkeep.core.rollout import Rollout, RolloutState
from modelkeep.core.routing import OTHERS_MAX, WHOLE_PPM
from modelkeep.core.sequential import CallerTick, RequestTick, TrialTick, Unit
from modelkeep.core.winner import WinnerReport

TICKS_MAX = 2_000
"""Ticks of one question: an hour of two seconds each, or a day of 43; whoever has more merges them."""
COUNT_MAX = 100_000_000
"""Of anything in one tick."""
EVENTS_MAX = 200_000
"""Failures and slow answers over all ticks: what the arithmetic of a question costs grows with them."""


class Gate(StrEnum):
    """A question that is answered by a status code: 200 is yes.

    promotion  may the candidate go on?
    rollback   is it to be taken back?
    """

    PROMOTION = "promotion"
    ROLLBACK = "rollback"


class Seen(Struct, frozen=True, kw_only=True):
    """What was counted on one side, over all ticks."""

    requests: int = 0
    errors: int = 0
    slow: int = 0
    callers: int = 0
    callers_failed: int = 0
    callers_slow: int = 0

    @staticmethod
    def of(counts: SideCounts) -> "Seen":
        """The same of the counts of a side."""
        return Seen(
            requests=counts.requests,
            errors=counts.errors,
            slow=counts.slow,
            callers=counts.new_callers,
            callers_failed=counts.callers_first_error,
            callers_slow=counts.callers_first_slow,
        )


class VersionVerdict(Struct, frozen=True, kw_only=True):
    """What the evidence says of one version of an A/B test of several, beside stable. `p_value` has all
    versions accounted for (Bonferroni), so that it is held against the alpha of the whole; it is valid at any
    time. `out` is why the version was taken out while the others went on."""

    version: str
    verdict: Verdict
    why: str
    p_value: float
    blamed: str | None
    passed: str | None
    seen: Seen
    out: str | None = None
    contributions: dict[str, float] = {}


class RolloutVerdict(Struct, frozen=True, kw_only=True):
    """What the evidence of a rollout says now: flat, so that a path of one name finds each part.

    `verdict` of one that is finished is how it ended: advance for one that succeeded, hold for an A/B test
    that left stable in its place, else rollback. `p_value` is valid at any time, `alpha` the
    risk that the whole rollout takes. `step` counts from 1; it is 0 before the first.

    Of an A/B test of several versions `versions` says of each what it says of a candidate elsewhere, the
    candidate first, and the verdict is the test's: rollback when all that are still in it are worse than
    stable, else hold, for a test ends by its day. `report` is who fares best so far, or at the end.
    """

    verdict: Verdict
    why: str
    p_value: float
    alpha: float
    blamed: str | None
    passed: str | None
    rollout: str
    endpoint: str
    model: str
    candidate_version: str
    stable_version: str | None
    state: RolloutState
    finished: bool
    step: int
    steps: int
    weight_ppm: int
    ticks: int
    candidate: Seen
    stable: Seen
    contributions: dict[str, float] = {}
    versions: tuple[VersionVerdict, ...] = ()
    report: WinnerReport | None = None


def verdict_of(rollout: Rollout) -> RolloutVerdict:
    """The verdict of a rollout as of its last look."""
    versions = _of_each(rollout)
    ended = rollout.state.finished or rollout.state is RolloutState.ROLLING_BACK
    found = _of_all(versions) if versions and not ended else _found(rollout)
    began = rollout.state is not RolloutState.PREPARING and (rollout.weight_ppm > 0 or rollout.ticks > 0)
    return RolloutVerdict(
        verdict=found.verdict,
        why=found.why,
        p_value=found.p_value,
        alpha=rollout.plan.alpha,
        blamed=found.blamed,
        passed=found.passed,
        rollout=rollout.id,
        endpoint=rollout.endpoint,
        model=str(rollout.model),
        candidate_version=rollout.candidate_semver,
        stable_version=rollout.stable_semver,
        state=rollout.state,
        finished=rollout.state.finished,
        step=rollout.step + 1 if began else 0,
        steps=len(rollout.plan.steps),
        weight_ppm=rollout.weight_ppm,
        ticks=rollout.ticks,
        candidate=Seen.of(rollout.candidate_counts),
        stable=Seen.of(rollout.stable_counts),
        contributions=found.contributions,
        versions=versions,
        report=rollout.report or (report(rollout) if rollout.plan.strategy is Strategy.AB_TEST else None),
    )


def _of_each(rollout: Rollout) -> tuple[VersionVerdict, ...]:
    """What was found of each version of a test of several; nothing of any other rollout."""
    if not rollout.others:
        return ()
    told = [(rollout.candidate_semver, rollout.judgement, rollout.candidate_counts, rollout.out)]
    told += [(other.semver, other.judgement, other.counts, other.out) for other in rollout.others]
    nothing = Judgement(verdict=Verdict.HOLD, why="it has had no request yet")
    return tuple(
        _version(name, found or nothing, counts, len(told), out) for name, found, counts, out in told
    )


def _version(
    name: str, found: Judgement, counts: SideCounts, versions: int, out: str | None = None
) -> VersionVerdict:
    """A judgement under its part of alpha, as it is told beside the alpha of the whole."""
    return VersionVerdict(
        version=name,
        verdict=Verdict.ROLLBACK if out is not None else found.verdict,
        why=out or found.why,
        p_value=min(1.0, versions * found.p_value),
        blamed=found.blamed,
        passed=found.passed,
        seen=Seen.of(counts),
        out=out,
        contributions=found.contributions,
    )


def _of_all(versions: Sequence[VersionVerdict]) -> Judgement:
    """What a test of several comes to: that it is over with the last version that is not worse than stable.
    The p-value is of just that, and so the largest of those that are still in the test."""
    staying = [one for one in versions if one.out is None]
    worse = [one for one in staying if one.verdict is Verdict.ROLLBACK]
    p_value = max((one.p_value for one in staying), default=0.0)
    if len(worse) == len(staying):
        why = "; ".join(one.why for one in worse or versions)
        blamed = worse[0].blamed if worse else None
        return Judgement(verdict=Verdict.ROLLBACK, why=why, p_value=p_value, blamed=blamed)
    rest = [f"{one.version} is worse than stable" for one in worse]
    rest += [f"{one.version} was taken out" for one in versions if one.out is not None]
    names = ", ".join(one.version for one in staying if one not in worse)
    why = "; ".join([f"nothing says that {names} is worse than stable", *rest])
    return Judgement(verdict=Verdict.HOLD, why=why, p_value=p_value)


def _found(rollout: Rollout) -> Judgement:
    last = rollout.judgement
    if rollout.state is RolloutState.SUCCEEDED:
        why = rollout.outcome or "the rollout has succeeded"
        p_value = last.p_value if last is not None else 1.0
        passed = last.passed if last is not None else None
        return Judgement(verdict=Verdict.ADVANCE, why=why, p_value=p_value, passed=passed)
    if rollout.state is RolloutState.CONCLUDED:
        return Judgement(verdict=Verdict.HOLD, why=rollout.outcome or "the test has ended; stable goes on")
    if rollout.state.finished or rollout.state is RolloutState.ROLLING_BACK:
        why = rollout.outcome or f"the rollout is {rollout.state}"
        p_value = last.p_value if last is not None else 1.0
        return Judgement(
            verdict=Verdict.ROLLBACK,
            why=why,
            p_value=p_value,
            blamed=last.blamed if last is not None else None,
        )
    if last is None:
        why = rollout.held or "the candidate has had no request yet"
        return Judgement(verdict=Verdict.HOLD, why=why)
    return last


# ------------------------------------------------------------------------------------------- foreign counts

Count = Annotated[int, Meta(ge=0, le=COUNT_MAX)]


class ArmTick(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one arm did in one tick, in the unit of the question.

    By requests: `count` requests, of which `failed` failed and `slow` were slow. By callers: `count` callers
    seen for the first time in this rollout, `failed` who failed for the first time, whenever they came, and
    `slow` likewise; `failed_at_once` of the `count` failed with their first request (left out: not known, and
    nothing is concluded that would let the candidate go on).
    """

    count: Count = 0
    failed: Count = 0
    slow: Count = 0
    failed_at_once: Count | None = None


class CountedTick(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One span of somebody else's rollout. `candidate_ppm` is the share that the router was told to give;
    left out, the requests that came are taken as they are, and nothing is concluded from their shares.
    `others` are the further versions of a test, in the order of the plan's `versions`, and `others_ppm` their
    shares, which stand there where `candidate_ppm` does."""

    candidate: ArmTick
    stable: ArmTick
    candidate_ppm: Annotated[int, Meta(ge=0, le=WHOLE_PPM)] | None = None
    others: Annotated[tuple[ArmTick, ...], Meta(max_length=OTHERS_MAX)] = ()
    others_ppm: Annotated[
        tuple[Annotated[int, Meta(ge=0, le=WHOLE_PPM)], ...], Meta(max_length=OTHERS_MAX)
    ] = ()


class Question(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Counts to be judged by a plan: all ticks of the rollout so far, oldest first.

    `unit` is what the router draws: `caller` where a caller stays on an arm, `request` where each request is
    drawn anew. A plan's steps and times are the asker's own business; its error rates and margins count, and
    how many `versions` it tests.
    """

    ticks: Annotated[tuple[CountedTick, ...], Meta(max_length=TICKS_MAX)]
    plan: Plan = CANARY
    unit: Unit = Unit.REQUEST


class CountsVerdict(Struct, frozen=True, kw_only=True):
    """What somebody's counts say, flat as `RolloutVerdict`. `p_values` are of each test alone; what is
    unknown there had nothing to say, and is 1. `caution` is what the promise depends on. Of a test of several
    versions it is as there; `p_values` are then of the candidate beside stable."""

    verdict: Verdict
    why: str
    p_value: float
    alpha: float
    blamed: str | None
    passed: str | None
    unit: Unit
    caution: str
    ticks: int
    candidate: Seen
    stable: Seen
    contributions: dict[str, float] = {}
    p_values: dict[str, float] = {}
    versions: tuple[VersionVerdict, ...] = ()


_CAUTION = {
    Unit.REQUEST: (
        "The promise holds where each request is drawn by itself. If callers stay on a version, count "
        "callers: a few failing ones make requests of both sides incomparable."
    ),
    Unit.CALLER: "The promise holds where a caller stays on one version and is counted once.",
}


def judge_counts(question: Question) -> CountsVerdict:
    """Judge somebody else's counts. The same question has the same answer for ever.

    Raises:
        InvalidPlan: the plan promises nothing.
        InvalidInput: a tick has more failures than requests, or lacks the share that callers are judged by.
        LimitExceeded: more failures than are judged in one question.
    """
    plan, unit = check_plan(question.plan), question.unit
    if plan.quality is not None or plan.prediction_shift is not None:
        raise errors.InvalidPlan(
            "Counts from elsewhere say nothing of predictions, which only a gateway of ours compares and "
            "joins with labels; leave 'quality' and 'prediction_shift' out of the plan."
        )
    _check(question)
    judged = [_judged(question, place) for place in range(1 + len(plan.versions))]
    found, evidence, candidate, stable = judged[0]
    versions: tuple[VersionVerdict, ...] = ()
    if plan.versions:
        names = ("the candidate", *(variant.version for variant in plan.versions))
        versions = tuple(
            _version(name, own, counts, len(judged))
            for name, (own, _, counts, _) in zip(names, judged, strict=True)
        )
        found = _of_all(versions)
    return CountsVerdict(
        verdict=found.verdict,
        why=found.why,
        p_value=found.p_value,
        alpha=plan.alpha,
        blamed=found.blamed,
        passed=found.passed,
        unit=unit,
        caution=_CAUTION[unit],
        ticks=len(question.ticks),
        candidate=Seen.of(candidate),
        stable=Seen.of(stable),
        contributions=found.contributions,
        p_values={
            "errors": evidence.errors.p_value,
            "latency": evidence.slow.p_value,
            "traffic shares": evidence.shares.p_value,
            "no worse": evidence.no_worse.p_value,
            "low rate": evidence.low_rate.p_value,
            "high rate": evidence.high_rate.p_value,
        },
        versions=versions,
    )


def _judged(question: Question, place: int) -> tuple[Judgement, Evidence, SideCounts, SideCounts]:
    """What the counts say of one version (0 is the candidate) beside stable, under its part of alpha."""
    plan, unit = apart(question.plan) if question.plan.versions else question.plan, question.unit
    specs, evidence = _specs(plan, unit), Evidence()
    own = stable = SideCounts()
    for whole in question.ticks:
        tick = _alone(whole, place)
        evidence = _update(specs, evidence, tick, unit)
        own = own.plus(_side(tick.candidate, unit))
        stable = stable.plus(_side(tick.stable, unit))
    found = judgement.judge(plan, evidence, own, stable)
    if place:
        name = plan.versions[place - 1].version
        found = structs.replace(found, why=found.why.replace("the candidate", name))
    return found, evidence, own, stable


def _alone(tick: CountedTick, place: int) -> CountedTick:
    """The tick as a test of this version and stable alone would have had it, as in `contest`."""
    if not tick.others:
        return tick if not place else structs.replace(tick, candidate=ArmTick(), candidate_ppm=0)
    arm = tick.others[place - 1] if place else tick.candidate
    share_ppm = None
    if tick.candidate_ppm is not None:
        shares = (tick.candidate_ppm, *tick.others_ppm)
        rest_ppm = WHOLE_PPM - sum(shares)
        share_ppm = shares[place] and max(1, shares[place] * WHOLE_PPM // (shares[place] + rest_ppm))
    return CountedTick(candidate=arm, stable=tick.stable, candidate_ppm=share_ppm)


def _specs(plan: Plan, unit: Unit) -> Specs:
    """The plan's tests; by requests, those that compare condition on the requests that came."""
    specs = Specs.of(plan)
    match unit:
        case Unit.CALLER:
            return specs
        case Unit.REQUEST:
            return Specs(
                errors=sequential.fail_spec(margin=plan.margin, unit=unit),
                slow=sequential.fail_spec(margin=plan.slow_margin, unit=unit),
                shares=specs.shares,
                no_worse=sequential.pass_spec(bound=plan.pass_odds, unit=unit),
                low_rate=specs.low_rate,
                high_rate=specs.high_rate,
            )
        case _:
            assert_never(unit)


def _update(specs: Specs, evidence: Evidence, tick: CountedTick, unit: Unit) -> Evidence:
    if tick.candidate_ppm == 0:
        return evidence  # nobody was given to the candidate; who came to it was sent on purpose
    c, s = tick.candidate, tick.stable
    failing: CallerTick | RequestTick
    slow: CallerTick | RequestTick
    if unit is Unit.CALLER:
        weight = tick.candidate_ppm or 0
        failing = CallerTick(x=c.failed, y=s.failed, weight_ppm=weight)
        slow = CallerTick(x=c.slow, y=s.slow, weight_ppm=weight)
        at_once = c.failed_at_once
        # As in `judgement`: a proof takes of each caller the first request alone, where it is known.
        known = at_once is not None and s.failed_at_once is not None
        first: CallerTick | RequestTick = CallerTick(
            x=at_once or 0 if known else 0, y=s.failed_at_once or 0 if known else 0, weight_ppm=weight
        )
        alone = weight == WHOLE_PPM
    else:
        failing = RequestTick(x=c.failed, y=s.failed, n1=c.count, n0=s.count)
        slow = RequestTick(x=c.slow, y=s.slow, n1=c.count, n0=s.count)
        at_once, first = c.failed, failing
        alone = s.count == 0 and tick.candidate_ppm in (None, WHOLE_PPM)
    trials = TrialTick(n=c.count, k=at_once) if at_once is not None else TrialTick(n=0, k=0)
    none = TrialTick(n=0, k=0)
    shares = evidence.shares
    if tick.candidate_ppm is not None:
        arrived = CallerTick(x=c.count, y=s.count, weight_ppm=tick.candidate_ppm)
        shares = sequential.update(shares, specs.shares, arrived)
    return Evidence(
        errors=sequential.update(evidence.errors, specs.errors, failing),
        slow=sequential.update(evidence.slow, specs.slow, slow),
        shares=shares,
        no_worse=sequential.update(evidence.no_worse, specs.no_worse, first),
        low_rate=sequential.update_rate(evidence.low_rate, specs.low_rate, trials),
        high_rate=sequential.update_rate(evidence.high_rate, specs.high_rate, trials if alone else none),
    )


def _side(arm: ArmTick, unit: Unit) -> SideCounts:
    """An arm's counts as a side's. By requests, each request is a caller of its own."""
    by_request = unit is Unit.REQUEST
    return SideCounts(
        requests=arm.count,
        errors=arm.failed,
        slow=arm.slow,
        callers_arrived=arm.count,
        new_callers=arm.count,
        new_callers_failed=arm.failed if by_request else arm.failed_at_once or 0,
        callers_first_error=arm.failed,
        callers_first_slow=arm.slow,
    )


def _check(question: Question) -> None:
    events = 0
    for place, tick in enumerate(question.ticks):
        _check_others(question, place, tick)
        others = tuple((f"others[{n}]", arm) for n, arm in enumerate(tick.others))
        for name, arm in (("candidate", tick.candidate), *others, ("stable", tick.stable)):
            events += arm.failed + arm.slow
            if question.unit is Unit.REQUEST and max(arm.failed, arm.slow) > arm.count:
                raise _odd(place, name, "more failures or slow answers than requests")
            if (arm.failed_at_once or 0) > arm.count:
                raise _odd(place, name, "more callers who failed at once than callers")
        if question.unit is Unit.CALLER and tick.candidate_ppm is None:
            raise errors.InvalidInput(
                f"Tick {place} lacks 'candidate_ppm': callers are judged by the share that the router gives.",
                field=f"ticks[{place}].candidate_ppm",
            )
    if events > EVENTS_MAX:
        raise errors.LimitExceeded(
            f"A question has at most {EVENTS_MAX:,} failures and slow answers over all ticks; this one has "
            f"{events:,}, and was decided long ago.",
            field="ticks",
        )


def _check_others(question: Question, place: int, tick: CountedTick) -> None:
    """Refuse further versions that the plan does not know, or whose shares cannot be."""
    if len(tick.others) not in (0, len(question.plan.versions)):
        raise errors.InvalidInput(
            f"Tick {place} has {len(tick.others)} 'others', and the plan tests {len(question.plan.versions)} "
            "further 'versions'; count each of them, in that order.",
            field=f"ticks[{place}].others",
        )
    shares = (tick.candidate_ppm or 0, *tick.others_ppm)
    wanted = len(tick.others) if tick.candidate_ppm is not None else 0
    if len(tick.others_ppm) != wanted or sum(shares) > WHOLE_PPM:
        raise errors.InvalidInput(
            f"Tick {place} has a share for each of 'others' in 'others_ppm' where it has 'candidate_ppm'; "
            f"together they are at most {WHOLE_PPM:,} ppm.",
            field=f"ticks[{place}].others_ppm",
        )


def _odd(place: int, arm: str, what: str) -> errors.InvalidInput:
    return errors.InvalidInput(
        f"Tick {place} of the {arm} has {what}; count both over the same span.", field=f"ticks[{place}].{arm}"
    )


# ------------------------------------------------------------------------------------------------- yes or no


def check_gate(found: RolloutVerdict | CountsVerdict, gate: Gate | None) -> None:
    """Refuse when the answer to a gate's question is no.

    Raises:
        GateFailed: it asks whether to go on, and the evidence says to go back.
        Pending: it asks whether to go on, and there is no proof yet.
        Conflict: it asks whether to go back, and nothing says so.
    """
    said = {"verdict": found.verdict, "p_value": found.p_value}
    match gate, found.verdict:
        case None, _:
            return
        case Gate.PROMOTION, Verdict.ADVANCE:
            return
        case Gate.PROMOTION, Verdict.HOLD:
            raise errors.Pending(f"Hold: {found.why}. Ask again later.", **said)
        case Gate.PROMOTION, Verdict.ROLLBACK:
            raise errors.GateFailed(f"Take the candidate back: {found.why}.", **said)
        case Gate.ROLLBACK, Verdict.ROLLBACK:
            return
        case Gate.ROLLBACK, _:
            raise errors.Conflict(f"Nothing says to take the candidate back: {found.why}.", **said)
        case _:
            raise AssertionError("each gate has an answer to each verdict")
