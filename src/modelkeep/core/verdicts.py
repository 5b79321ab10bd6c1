"""A verdict for those who keep their own controller: of a rollout that is under way here, or of counts that
somebody else's router made.

The tests and the words are `judgement`'s; here are the flat shapes that a web request can ask for and
compare, the gates that answer yes or no by a status code, and the way from foreign counts to evidence.
Nothing is moved and nothing is remembered.
"""

from enum import StrEnum
from typing import Annotated, assert_never

from msgspec import Meta, Struct

from modelkeep.core import errors, judgement, sequential
from modelkeep.core.judgement import Evidence, Judgement, Specs, Verdict
from modelkeep.core.observation import SideCounts
from modelkeep.core.plan import CANARY, Plan, check_plan
from modelkeep.core.rollout import Rollout, RolloutState
from modelkeep.core.routing import WHOLE_PPM
from modelkeep.core.sequential import CallerTick, RequestTick, TrialTick, Unit

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


class RolloutVerdict(Struct, frozen=True, kw_only=True):
    """What the evidence of a rollout says now: flat, so that a path of one name finds each part.

    `verdict` of one that is finished is how it ended: advance for one that succeeded, hold for an A/B test
    that left stable in its place, else rollback. `p_value` is valid at any time, `alpha` the
    risk that the whole rollout takes. `step` counts from 1; it is 0 before the first.
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


def verdict_of(rollout: Rollout) -> RolloutVerdict:
    """The verdict of a rollout as of its last look."""
    found = _found(rollout)
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
    )


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
    left out, the requests that came are taken as they are, and nothing is concluded from their shares."""

    candidate: ArmTick
    stable: ArmTick
    candidate_ppm: Annotated[int, Meta(ge=0, le=WHOLE_PPM)] | None = None


class Question(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Counts to be judged by a plan: all ticks of the rollout so far, oldest first.

    `unit` is what the router draws: `caller` where a caller stays on an arm, `request` where each request is
    drawn anew. A plan's steps and times are the asker's own business; its error rates and margins count.
    """

    ticks: Annotated[tuple[CountedTick, ...], Meta(max_length=TICKS_MAX)]
    plan: Plan = CANARY
    unit: Unit = Unit.REQUEST


class CountsVerdict(Struct, frozen=True, kw_only=True):
    """What somebody's counts say, flat as `RolloutVerdict`. `p_values` are of each test alone; what is
    unknown there had nothing to say, and is 1. `caution` is what the promise depends on."""

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
    specs, evidence = _specs(plan, unit), Evidence()
    candidate = stable = SideCounts()
    for tick in question.ticks:
        evidence = _update(specs, evidence, tick, unit)
        candidate = candidate.plus(_side(tick.candidate, unit))
        stable = stable.plus(_side(tick.stable, unit))
    found = judgement.judge(plan, evidence, candidate, stable)
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
    )


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
        for name, arm in (("candidate", tick.candidate), ("stable", tick.stable)):
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
