"""How traffic moves from the stable version to a candidate: the state machine of a rollout.

    preparing --ready--> step 1 --advance--> ... --advance--> last step (all traffic) --advance--> succeeded
        |   |             ^ |                                     |
        |   +-previewing--+ |                                     |
        |   +-shadowing --+ | rollback verdict, hard guard, abort, the gateway's own rollback
        v cannot load       v                                     v
      failed              rolling_back --confirmed by the gateways--> rolled_back

`advance` is one pure function of the rollout, what was observed and the time. It never raises a weight on
missing data: no data is no evidence, no evidence is no advance. A rollback is possible wherever the candidate
has weight, and an alarm is looked for before anything else, so that neither a pause nor a silent gateway
hides it. The stage follows only when the rollout has succeeded. This file moves nothing; it says what the
weights should be. What a rollout is, as data, is in `movement`; what it was shown in `rollout_evidence`; how
a rollout is to go is `plan`'s part, and what the gateways hear and say is in `rollout_routes`.
"""

from datetime import datetime
from typing import assert_never

from msgspec import structs

from modelkeep.core import errors, values
from modelkeep.core.contest import report
from modelkeep.core.evidence import Evidence
from modelkeep.core.judgement import Judgement, Missing, Verdict
from modelkeep.core.movement import (
    WITHOUT_SUCCESS,
    Advanced,
    Attempt,
    Change,
    Endpoint,
    Observed,
    Rollout,
    RolloutState,
    attempt_of,
    check_endpoint,
)
from modelkeep.core.observation import VersionPhase
from modelkeep.core.plan import (
    CANARY,
    Guards,
    OnInconclusive,
    Plan,
    Step,
    Strategy,
    check_plan,
    read_plan,
)
from modelkeep.core.rollout_evidence import counts_for, fallen, found_of, judge, replay, take_in
from modelkeep.core.rollout_routes import observe, route_of
from modelkeep.core.routing import WHOLE_PPM, Epoch
from modelkeep.core.winner import Winner

__all__ = [
    "CANARY",
    "WITHOUT_SUCCESS",
    "Advanced",
    "Attempt",
    "Change",
    "Endpoint",
    "Evidence",
    "Guards",
    "Judgement",
    "Observed",
    "OnInconclusive",
    "Plan",
    "Rollout",
    "RolloutState",
    "Step",
    "Strategy",
    "Verdict",
    "advance",
    "attempt_of",
    "check_endpoint",
    "check_plan",
    "counts_for",
    "judge",
    "observe",
    "pause",
    "read_plan",
    "replay",
    "report",
    "resume",
    "route_of",
    "step_on",
    "supersede",
    "take_back",
    "take_in",
]

CONFIRM_S = 60.0
"""While no gateway answers at all, a rollback is waited for so long; whoever comes back later is fenced by
its epoch."""

# --------------------------------------------------------------------------------------------- state machine


def advance(rollout: Rollout, observed: Observed, now: datetime) -> Advanced:
    """Take in what was observed and go as far as it allows, at most one step.

    The same rollout, observations and time give the same answer for ever.
    """
    rollout = take_in(rollout, observed.ticks)
    if observed.rolled_back is not None:
        return _gone_back(rollout, observed, now)
    match rollout.state:
        case RolloutState.PREPARING:
            return _prepare(rollout, observed, now)
        case RolloutState.SHADOWING:
            return _shadow(rollout, observed, now)
        case RolloutState.PREVIEWING:
            return _preview(rollout, observed, now)
        case RolloutState.STEPPING:
            return _step(rollout, observed, now)
        case RolloutState.ROLLING_BACK:
            return _confirm(rollout, observed, now)
        case (
            RolloutState.SUCCEEDED
            | RolloutState.ROLLED_BACK
            | RolloutState.FAILED
            | RolloutState.CANCELLED
            | RolloutState.SUPERSEDED
            | RolloutState.CONCLUDED
        ):
            return Advanced(rollout=rollout)
        case _:
            assert_never(rollout.state)


def take_back(rollout: Rollout, why: str, now: datetime) -> Advanced:
    """Give the candidate's traffic back to stable; possible in every state that is not finished.

    Raises:
        RolloutFinished: there is nothing left to take back; roll back the model instead.
    """
    if rollout.state.finished:
        raise errors.RolloutFinished(
            f"The rollout {rollout.id} is {rollout.state}; to return to a former version run "
            f"'modelkeep rollback {values.in_shell(rollout.model)} -m WHY'.",
            rollout=rollout.id,
        )
    if rollout.state is RolloutState.ROLLING_BACK:
        return Advanced(rollout=rollout)
    had_weight = rollout.state is RolloutState.STEPPING
    rollout = structs.replace(
        rollout, epoch=Epoch(rollout.epoch.term + 1, 0), weight_ppm=0, outcome=why, paused=None, held=None
    )
    if not had_weight:
        return _finish(rollout, RolloutState.CANCELLED, why, now)
    rollout = structs.replace(rollout, state=RolloutState.ROLLING_BACK, step_since=now)
    return Advanced(rollout=rollout, change=Change.ROLLING_BACK, why=why)


def supersede(rollout: Rollout, by: str, now: datetime) -> Advanced:
    """End a rollout because another is to take its place. The new one begins from the same stable version;
    the raised term takes the former candidate's traffic away before the new candidate has any.

    Raises:
        RolloutFinished: it is finished.
        RolloutActive: it is on its way back; what was found against it must not be forgotten.
    """
    if rollout.state is RolloutState.ROLLING_BACK:
        raise errors.RolloutActive(
            f"The rollout {rollout.id} is being taken back; wait until the gateways have confirmed it "
            f"('modelkeep rollout status {rollout.endpoint} --watch').",
            rollout=rollout.id,
        )
    done = take_back(rollout, f"superseded by {by}", now).rollout
    return _finish(done, RolloutState.SUPERSEDED, done.outcome or "", now)


def _gone_back(rollout: Rollout, observed: Observed, now: datetime) -> Advanced:
    """A gateway has taken the candidate back by itself: so it is, and the others are to follow. Its epoch may
    be ahead of ours, and ours must not be the older one."""
    if rollout.state.finished:
        return Advanced(rollout=rollout)
    why = f"the gateway took it back: {observed.rolled_back}"
    done = take_back(rollout, why, now)
    epoch = max(done.rollout.epoch, observed.rolled_back_epoch or done.rollout.epoch)
    after = structs.replace(done.rollout, epoch=epoch)
    if done.change is None and after != rollout:
        return Advanced(rollout=after, change=Change.ROLLING_BACK, why=why)
    return structs.replace(done, rollout=after)


def _prepare(rollout: Rollout, observed: Observed, now: datetime) -> Advanced:
    if observed.phase is VersionPhase.FAILED:
        why = f"the version could not be loaded: {observed.error or 'the gateway gives no reason'}"
        return _finish(rollout, RolloutState.FAILED, why, now)
    for place, other in enumerate(rollout.others, start=1):
        if (seen := observed.sight(place)).phase is VersionPhase.FAILED:
            why = f"{other.semver} could not be loaded: {seen.error or 'the gateway gives no reason'}"
            return _finish(rollout, RolloutState.FAILED, why, now)
    if observed.applied is None:
        return _hold(rollout, "no gateway answers; start one with 'modelkeep gateway'")
    since = _since(rollout, now)
    rollout = structs.replace(rollout, step_since=since)
    ready = all(observed.sight(place).phase is VersionPhase.READY for place in range(1 + len(rollout.others)))
    if observed.applied >= rollout.epoch and ready:
        if rollout.paused is not None:
            return _hold(rollout, _paused(rollout.paused))
        if rollout.stable is None:
            why = "the first version of the endpoint is loaded and ready"
            return _finish(rollout, RolloutState.SUCCEEDED, why, now)
        match rollout.plan.strategy:
            case Strategy.BLUE_GREEN:
                why = "the candidate is loaded and ready, and answers under its preview address"
                return _show(rollout, RolloutState.PREVIEWING, why)
            case Strategy.SHADOW | Strategy.CANARY if rollout.plan.shadow_ppm:
                why = "the candidate is loaded and ready, and gets copies of requests"
                return _show(rollout, RolloutState.SHADOWING, why)
            case _:
                pass
        return _enter(rollout, 0, "the candidate is loaded and ready")
    if (now - since).total_seconds() > rollout.plan.prepare_s:
        why = (
            f"the version was not ready within {rollout.plan.prepare_s:.0f} s: it is "
            f"{observed.phase or 'unknown'} on the gateway"
        )
        return _finish(rollout, RolloutState.FAILED, why, now)
    return Advanced(rollout=structs.replace(rollout, held=None))


def _show(rollout: Rollout, state: RolloutState, why: str) -> Advanced:
    """Have the candidate take part without a share: under its preview address, or by copies."""
    shown_now = structs.replace(
        rollout,
        state=state,
        epoch=Epoch(rollout.epoch.term, rollout.epoch.seq + 1),
        step_since=None,
        held=None,
    )
    return Advanced(rollout=shown_now, change=Change.STEPPED, why=f"no traffic: {why}")


def _shadow(rollout: Rollout, observed: Observed, now: datetime) -> Advanced:
    """Compare answers to copies until the time is over. Nobody was answered by the candidate, so one that is
    worse has failed and need not be taken back."""
    found = found_of(rollout, observed)
    rollout = structs.replace(rollout, judgement=found)
    if found.verdict is Verdict.ROLLBACK:
        return _finish(rollout, RolloutState.FAILED, found.why, now)
    if observed.applied is None:
        return _hold(rollout, "no gateway answers; nothing is compared")
    if observed.applied < rollout.epoch or observed.phase is not VersionPhase.READY:
        return Advanced(rollout=structs.replace(rollout, step_since=None, held=None))
    since = _since(rollout, now)
    rollout = structs.replace(rollout, step_since=since)
    if rollout.paused is not None:
        return _hold(rollout, _paused(rollout.paused))
    if (now - since).total_seconds() < rollout.plan.shadow_s:
        return Advanced(rollout=structs.replace(rollout, held=None))
    compared = rollout.pairs.pairs if rollout.pairs is not None else 0
    if compared < rollout.plan.shadow_pairs:
        wanted = f" (the plan waits for {rollout.plan.shadow_pairs} pairs)" if compared else ""
        return _hold(rollout, found.why + wanted)
    if rollout.plan.strategy is Strategy.SHADOW:
        return _conclude(rollout, "the shadow's time is over", now)
    if not rollout.plan.automatic:
        return _hold(rollout, _waits(rollout))
    return _enter(rollout, 0, f"the copies spoke not against it: {found.why}")


def _preview(rollout: Rollout, observed: Observed, now: datetime) -> Advanced:
    """Wait until the preview is over, or a person switches; the time runs while the candidate is ready."""
    if observed.phase is VersionPhase.FAILED:
        why = f"the version failed in its preview: {observed.error or 'it crashed again and again'}"
        return _finish(rollout, RolloutState.FAILED, why, now)
    if observed.applied is None:
        return _hold(rollout, "no gateway answers; the candidate has no traffic")
    if observed.applied < rollout.epoch or observed.phase is not VersionPhase.READY:
        return Advanced(rollout=structs.replace(rollout, step_since=None, held=None))
    since = _since(rollout, now)
    rollout = structs.replace(rollout, step_since=since)
    lasted = (now - since).total_seconds()
    if rollout.paused is not None:
        return _hold(rollout, _paused(rollout.paused))
    if lasted < rollout.plan.preview_s:
        return Advanced(rollout=structs.replace(rollout, held=None))
    if not rollout.plan.automatic:
        return _hold(rollout, _waits(rollout))
    return _enter(rollout, 0, f"the preview lasted {lasted:.0f} s")


def _enter(rollout: Rollout, step: int, why: str) -> Advanced:
    """Begin a step: its time runs only from when the gateways have confirmed the weight."""
    weight = rollout.plan.steps[step].weight_ppm
    entered = structs.replace(
        rollout,
        state=RolloutState.STEPPING,
        step=step,
        weight_ppm=weight,
        epoch=Epoch(rollout.epoch.term, rollout.epoch.seq + 1),
        step_since=None,
        requests_before=rollout.candidate_counts.requests,
        held=None,
    )
    return Advanced(
        rollout=entered, change=Change.STEPPED, why=f"{weight / 10_000:g} % of the traffic: {why}"
    )


def _step(rollout: Rollout, observed: Observed, now: datetime) -> Advanced:
    found = found_of(rollout, observed)
    rollout = structs.replace(rollout, judgement=found)
    if rollout.others:
        rollout, gone = fallen(rollout, observed)
        if gone:
            return _take_out(rollout, gone, now)
    elif found.verdict is Verdict.ROLLBACK:
        return take_back(rollout, found.why, now)
    if observed.applied is None:
        return _hold(rollout, "no gateway answers; the candidate's share stays as it is")
    if observed.applied < rollout.epoch:
        return Advanced(rollout=structs.replace(rollout, step_since=None, held=None))
    since = _since(rollout, now)
    rollout = structs.replace(rollout, step_since=since)
    lasted = (now - since).total_seconds()
    if rollout.paused is not None:
        return _hold(rollout, _paused(rollout.paused))
    if rollout.plan.strategy is Strategy.AB_TEST:
        if rollout.plan.ends_at is None or now < rollout.plan.ends_at or not lasted:
            return Advanced(rollout=structs.replace(rollout, held=None))
        return _conclude(rollout, "the test has ended", now)
    if lasted < rollout.current.min_s:
        return Advanced(rollout=structs.replace(rollout, held=None))
    if found.verdict is Verdict.ADVANCE or rollout.plan.strategy.at_once:
        return _onward(rollout, found.why, now)
    if lasted >= _longest_s(rollout, found):
        match rollout.plan.on_inconclusive:
            case OnInconclusive.ROLLBACK:
                return take_back(rollout, f"inconclusive after {lasted:.0f} s: {found.why}", now)
            case OnInconclusive.ADVANCE if rollout.candidate_counts.requests > rollout.requests_before:
                why = f"inconclusive after {lasted:.0f} s, and the plan goes on then: {found.why}"
                return _onward(rollout, why, now)
            case _:
                pass
    return _hold(rollout, found.why)


def _longest_s(rollout: Rollout, found: Judgement) -> float:
    """How long a step waits: as long as the plan waits for labels, where they are all that is missing, and
    before it goes on without what they have to show, whatever else is missing."""
    plan, max_s = rollout.plan, rollout.current.max_s
    if plan.quality is None:
        return max_s
    unshown = not rollout.evidence.right.holds(plan.beta)
    if found.missing is Missing.LABELS or (unshown and plan.on_inconclusive is OnInconclusive.ADVANCE):
        return max(max_s, plan.quality.wait_s)
    return max_s


def _take_out(rollout: Rollout, gone: dict[int, str], now: datetime) -> Advanced:
    """Send the callers of some versions of a test to stable, while the test goes on with the others: under a
    new term, so that nothing older gives any back. With the last of them the test is taken back."""
    why = "; ".join(gone.values())
    if len(gone) == len(rollout.in_test):
        return take_back(rollout, why, now)
    rollout = structs.replace(
        rollout,
        others=tuple(
            structs.replace(other, out=gone.get(place, other.out))
            for place, other in enumerate(rollout.others, start=1)
        ),
        out=gone.get(0, rollout.out),
        weight_ppm=0 if 0 in gone else rollout.weight_ppm,
        epoch=Epoch(rollout.epoch.term + 1, 0),
        step_since=None,
        held=None,
    )
    return Advanced(rollout=rollout, change=Change.TAKEN_OUT, why=f"taken out of the test: {why}")


def _conclude(rollout: Rollout, why: str, now: datetime) -> Advanced:
    """End a shadow with what it showed, an A/B test with its report. The candidate takes over where it has
    won and the plan says so; otherwise stable has its callers back, and nothing is held against the
    candidate."""
    if rollout.plan.strategy is Strategy.AB_TEST:
        told = report(rollout)
        rollout = structs.replace(rollout, report=told)
        why = f"{why}: {told.why}"
        if told.winner is Winner.CANDIDATE and rollout.plan.promote_winner:
            return _finish(rollout, RolloutState.SUCCEEDED, why, now)
    else:
        why = f"{why}: {judge(rollout).why}"
    rollout = structs.replace(rollout, epoch=Epoch(rollout.epoch.term + 1, 0))
    return _finish(rollout, RolloutState.CONCLUDED, why, now)


def _onward(rollout: Rollout, why: str, now: datetime) -> Advanced:
    """What a step that is over leads to."""
    if rollout.last:
        return _finish(rollout, RolloutState.SUCCEEDED, why, now)
    if not rollout.plan.automatic:
        return _hold(rollout, _waits(rollout))
    return _enter(rollout, rollout.step + 1, why)


def _waits(rollout: Rollout) -> str:
    return f"waits for 'modelkeep rollout advance {rollout.endpoint} -m WHY'"


def _confirm(rollout: Rollout, observed: Observed, now: datetime) -> Advanced:
    why = rollout.outcome or "rolled back"
    if observed.applied is not None:
        if observed.applied < rollout.epoch:
            return Advanced(rollout=rollout)
        return _finish(rollout, RolloutState.ROLLED_BACK, why, now)
    rollout = structs.replace(rollout, step_since=_since(rollout, now))
    if (now - _since(rollout, now)).total_seconds() < CONFIRM_S:
        return Advanced(rollout=rollout)
    return _finish(rollout, RolloutState.ROLLED_BACK, f"{why} (no gateway answered to confirm it)", now)


def _since(rollout: Rollout, now: datetime) -> datetime:
    """Since when the clock of the present state runs; where it was set back meanwhile, from now on anew."""
    return min(rollout.step_since or now, now)


def _hold(rollout: Rollout, why: str) -> Advanced:
    """Stay where it is. Only the beginning of a hold is news; another reason for it is not."""
    if rollout.held == why:
        return Advanced(rollout=rollout)
    change = Change.HELD if rollout.held is None else None
    return Advanced(rollout=structs.replace(rollout, held=why), change=change, why=why)


_CHANGE_OF = {
    RolloutState.SUCCEEDED: Change.SUCCEEDED,
    RolloutState.ROLLED_BACK: Change.ROLLED_BACK,
    RolloutState.FAILED: Change.FAILED,
    RolloutState.CANCELLED: Change.CANCELLED,
    RolloutState.SUPERSEDED: Change.SUPERSEDED,
    RolloutState.CONCLUDED: Change.CONCLUDED,
}


def _finish(rollout: Rollout, state: RolloutState, why: str, now: datetime) -> Advanced:
    weight = WHOLE_PPM if state is RolloutState.SUCCEEDED else 0
    epoch = rollout.epoch
    if state is RolloutState.SUCCEEDED or state is RolloutState.FAILED:
        epoch = Epoch(epoch.term, epoch.seq + 1)  # the two that were taken back have a new term already
    done = structs.replace(
        rollout,
        state=state,
        finished_at=now,
        outcome=why,
        weight_ppm=weight,
        held=None,
        paused=None,
        epoch=epoch,
    )
    return Advanced(rollout=done, change=_CHANGE_OF[state], why=why)


# -------------------------------------------------------------------------------------------- people's words


def step_on(rollout: Rollout, observed: Observed, why: str, now: datetime) -> Advanced:
    """Go to the next step on a person's word, without waiting for time or proof. A pause stays a pause. An
    A/B test ends then, with its report as of now.

    A person can do without a proof, not against one: what speaks against the candidate stands.

    Args:
        observed: as of now; its ticks have been taken in.

    Raises:
        RolloutFinished: it is not in a step, nor in a preview.
        GateFailed: the evidence, or a guard, says rollback.
        Conflict: the gateways have not applied the present step yet.
    """
    if rollout.state not in (RolloutState.SHADOWING, RolloutState.PREVIEWING, RolloutState.STEPPING):
        raise errors.RolloutFinished(
            f"The rollout {rollout.id} is {rollout.state}; there is no next step.", rollout=rollout.id
        )
    found = found_of(rollout, observed)
    against = found.why if found.verdict is Verdict.ROLLBACK else None
    if rollout.others:
        against = "; ".join(fallen(rollout, observed)[1].values()) or None
    if against is not None:
        raise errors.GateFailed(
            f"The candidate is about to be taken back: {against}. Nobody can step on past that; register a "
            "better version.",
            rollout=rollout.id,
        )
    if rollout.step_since is None:
        raise errors.Conflict(
            f"The gateways have not applied the present step of {rollout.endpoint} yet; watch "
            f"'modelkeep rollout status {rollout.endpoint} --watch' and try again.",
            rollout=rollout.id,
        )
    before_steps = rollout.state in (RolloutState.PREVIEWING, RolloutState.SHADOWING)
    if before_steps and rollout.plan.strategy is not Strategy.SHADOW:
        return _enter(rollout, 0, why)
    rollout = structs.replace(rollout, judgement=found)
    if rollout.plan.strategy in (Strategy.AB_TEST, Strategy.SHADOW):
        return _conclude(rollout, why, now)
    if rollout.last:
        return _finish(rollout, RolloutState.SUCCEEDED, why, now)
    return _enter(rollout, rollout.step + 1, why)


def pause(rollout: Rollout, why: str) -> Rollout:
    """Stay at the present step until somebody resumes. Alarms still take the candidate back.

    Raises:
        RolloutFinished: it is finished, or on its way back.
    """
    if rollout.state.finished or rollout.state is RolloutState.ROLLING_BACK:
        raise errors.RolloutFinished(
            f"The rollout {rollout.id} is {rollout.state}; there is nothing to pause.", rollout=rollout.id
        )
    return structs.replace(rollout, paused=why, held=_paused(why))


def resume(rollout: Rollout) -> Rollout:
    """Go on after a pause.

    Raises:
        Conflict: it is not paused.
    """
    if rollout.paused is None:
        raise errors.Conflict(f"The rollout of {rollout.endpoint} is not paused.", rollout=rollout.id)
    return structs.replace(rollout, paused=None, held=None)


def _paused(why: str) -> str:
    return f"paused: {why}"
