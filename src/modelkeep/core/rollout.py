"""How traffic moves from the stable version to a candidate: the state machine of a rollout.

    preparing --ready--> step 1 --advance--> ... --advance--> last step (all traffic) --advance--> succeeded
        |                  |                                      |
        | cannot load      | rollback verdict, hard guard, abort, the gateway's own rollback
        v                  v                                      v
      failed             rolling_back --confirmed by the gateways--> rolled_back

`advance` is one pure function of the rollout, what was observed and the time. It never raises a weight on
missing data: no data is no evidence, no evidence is no advance. A rollback is possible wherever the candidate
has weight, and an alarm is looked for before anything else, so that neither a pause nor a silent gateway
hides it. The stage follows only when the rollout has succeeded. This file moves nothing; it says what the
routes should be. What evidence says is `judgement`'s part, how a rollout is to go is `plan`'s.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from itertools import islice
from typing import assert_never

from msgspec import Struct, field, structs

from modelkeep.core import errors, judgement, values
from modelkeep.core.judgement import Evidence, Judgement, Verdict, evidence_of
from modelkeep.core.observation import GatewayReport, SideCounts, Tick, VersionPhase
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
from modelkeep.core.routing import WHOLE_PPM, Epoch, Route, VersionKey
from modelkeep.core.values import Actor, Digest, ModelName

__all__ = [
    "CANARY",
    "Advanced",
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
    "check_endpoint",
    "check_plan",
    "counts_for",
    "judge",
    "observe",
    "pause",
    "read_plan",
    "replay",
    "resume",
    "route_of",
    "step_on",
    "take_back",
    "take_in",
]

NOTES_MAX = 3
"""Error texts of the candidate that a rollout keeps for people to read."""
NOTE_MAX = 300
"""Characters of such a text."""
CONFIRM_S = 60.0
"""While no gateway answers at all, a rollback is waited for so long; whoever comes back later is fenced by
its epoch."""
SLOW_MS_MAX = 3_600_000.0
"""An answer that takes an hour is slow for everybody."""
LEASE_S_MIN, LEASE_S_MAX = 3.0, 86_400.0
"""A lease outlives a few reports that are lost, and ends within a day."""


class Endpoint(Struct, frozen=True, kw_only=True):
    """A stable name that callers use; it follows a stage of one model.

    `stable` and `previous` are version numbers; `epoch` is the age of its route. `key_header` names the
    request header with the caller's key; without it the connection's address is the key.
    """

    id: str
    name: str
    model: ModelName
    stage: str
    key_header: str | None = None
    slow_ms: float = 250.0
    lease_s: float = 0.0
    plan: Plan = CANARY
    stable: int | None = None
    previous: int | None = None
    epoch: Epoch = Epoch(1, 0)
    rollout: str | None = None
    created_at: datetime
    created_by: str


def check_endpoint(slow_ms: float, lease_s: float) -> None:
    """Refuse settings of an endpoint that mean nothing.

    Raises:
        Invalid: names the setting and what it may be.
    """
    if not 0 < slow_ms <= SLOW_MS_MAX:
        raise errors.Invalid("'slow_ms' is a number of milliseconds above 0, up to an hour.", field="slow_ms")
    if lease_s != 0 and not LEASE_S_MIN <= lease_s <= LEASE_S_MAX:
        raise errors.Invalid(
            f"'lease_s' is 0 (never) or from {LEASE_S_MIN:.0f} to {LEASE_S_MAX:.0f} seconds.", field="lease_s"
        )


class RolloutState(StrEnum):
    """Where a rollout stands."""

    PREPARING = "preparing"
    STEPPING = "stepping"
    ROLLING_BACK = "rolling_back"
    SUCCEEDED = "succeeded"
    ROLLED_BACK = "rolled_back"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def finished(self) -> bool:
        return self in _FINISHED


_FINISHED = frozenset(
    {RolloutState.SUCCEEDED, RolloutState.ROLLED_BACK, RolloutState.FAILED, RolloutState.CANCELLED}
)
WITHOUT_SUCCESS = frozenset({RolloutState.ROLLED_BACK, RolloutState.FAILED, RolloutState.CANCELLED})
"""How a rollout ends whose candidate does not enter the stage."""


class Rollout(Struct, frozen=True, kw_only=True):
    """One movement of an endpoint from one version to another, with everything that was counted and
    concluded.

    `table` is the number of the first routing table that carries it. `step_since` is when the clock of the
    present state began to run: for a step, when the gateways had confirmed its weight. `ticks` were taken in,
    the last of which arrived at `ticks_until`.
    """

    id: str
    endpoint: str
    model: ModelName
    stage: str
    stable: int | None
    stable_digest: Digest | None
    stable_semver: str | None
    candidate: int
    candidate_digest: Digest
    candidate_semver: str
    plan: Plan
    salt: str
    state: RolloutState = RolloutState.PREPARING
    step: int = 0
    epoch: Epoch
    table: int = 0
    weight_ppm: int = 0
    started_at: datetime
    started_by: Actor
    reason: str
    request: str | None = None
    step_since: datetime | None = None
    paused: str | None = None
    held: str | None = None
    finished_at: datetime | None = None
    outcome: str | None = None
    evidence: Evidence = field(default_factory=Evidence)
    candidate_counts: SideCounts = field(default_factory=SideCounts)
    stable_counts: SideCounts = field(default_factory=SideCounts)
    ticks: int = 0
    ticks_until: datetime | None = None
    notes: tuple[str, ...] = ()
    judgement: Judgement | None = None

    @property
    def current(self) -> Step:
        return self.plan.steps[self.step]

    @property
    def last(self) -> bool:
        """Whether this step is the plan's last."""
        return self.step == len(self.plan.steps) - 1


class Observed(Struct, frozen=True, kw_only=True):
    """What was learned since the last look.

    `applied` is the oldest epoch among the gateways that answer now and split the traffic as wanted (None: no
    gateway answers). `phase` is the candidate's worst phase among them, `error` its text. `rolled_back` is
    set when a gateway took the candidate back by itself, with why. `ticks` are in order of arrival, each
    once.
    """

    applied: Epoch | None = None
    phase: VersionPhase | None = None
    error: str | None = None
    rolled_back: str | None = None
    rolled_back_epoch: Epoch | None = None
    ticks: tuple[Tick, ...] = ()


class Change(StrEnum):
    """What an `advance` brought about; the service makes one event of it."""

    STEPPED = "stepped"
    HELD = "held"
    ROLLING_BACK = "rolling_back"
    ROLLED_BACK = "rolled_back"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Advanced(Struct, frozen=True, kw_only=True):
    """The rollout after a look, and what changed in a way that people and routes need to know."""

    rollout: Rollout
    change: Change | None = None
    why: str = ""


# ---------------------------------------------------------------------------------------------- what is seen

_BADNESS = (
    VersionPhase.FAILED,
    VersionPhase.FETCHING,
    VersionPhase.STARTING,
    VersionPhase.RESTARTING,
    VersionPhase.DRAINING,
    VersionPhase.READY,
)
_UNSEEN = Epoch(0, 0)


def observe(
    rollout: Rollout, candidate: VersionKey, answering: Sequence[GatewayReport], ticks: Sequence[Tick]
) -> Observed:
    """What the gateways that answer now say about a rollout and its candidate, which they call by its key.

    A gateway has confirmed an epoch only when it also splits the traffic as the rollout wants: one that was
    killed comes back with stable alone under the same epoch. What a gateway says of the candidate counts from
    the first table on that names it, for the same version may have failed in an earlier rollout.
    """
    applied = min((_confirmed(rollout, report) for report in answering), default=None)
    told = [_entry(rollout, candidate, report) for report in answering]
    if not told or None in told:
        return Observed(applied=applied, ticks=tuple(ticks))
    phase, error = min((entry for entry in told if entry is not None), key=lambda one: _BADNESS.index(one[0]))
    return Observed(applied=applied, phase=phase, error=error, ticks=tuple(ticks))


def _shown(text: str) -> str:
    """A model's own words, fit for a line of a terminal."""
    return values.printable(text)[:NOTE_MAX]


def _confirmed(rollout: Rollout, report: GatewayReport) -> Epoch:
    for route in report.routes:
        if route.endpoint == rollout.endpoint and route.candidate_ppm == rollout.weight_ppm:
            return route.epoch
    known = any(route.endpoint == rollout.endpoint for route in report.routes)
    gone = rollout.state is RolloutState.ROLLING_BACK and not known  # who has no route sends nobody astray
    return rollout.epoch if gone else _UNSEEN


def _entry(
    rollout: Rollout, candidate: VersionKey, report: GatewayReport
) -> tuple[VersionPhase, str | None] | None:
    if report.table < rollout.table:
        return None
    for version in report.versions:
        if version.key == candidate:
            return version.phase, _shown(version.error) if version.error is not None else None
    return None


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
        case RolloutState.STEPPING:
            return _step(rollout, observed, now)
        case RolloutState.ROLLING_BACK:
            return _confirm(rollout, observed, now)
        case RolloutState.SUCCEEDED | RolloutState.ROLLED_BACK | RolloutState.FAILED | RolloutState.CANCELLED:
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
            f"'modelkeep rollback {rollout.model} -m WHY'.",
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
    if observed.applied is None:
        return _hold(rollout, "no gateway answers; start one with 'modelkeep gateway'")
    since = rollout.step_since or now
    rollout = structs.replace(rollout, step_since=since)
    if observed.applied >= rollout.epoch and observed.phase is VersionPhase.READY:
        if rollout.paused is not None:
            return _hold(rollout, _paused(rollout.paused))
        if rollout.stable is None:
            why = "the first version of the endpoint is loaded and ready"
            return _finish(rollout, RolloutState.SUCCEEDED, why, now)
        return _enter(rollout, 0, "the candidate is loaded and ready")
    if (now - since).total_seconds() > rollout.plan.prepare_s:
        why = (
            f"the version was not ready within {rollout.plan.prepare_s:.0f} s: it is "
            f"{observed.phase or 'unknown'} on the gateway"
        )
        return _finish(rollout, RolloutState.FAILED, why, now)
    return Advanced(rollout=structs.replace(rollout, held=None))


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
        held=None,
    )
    return Advanced(
        rollout=entered, change=Change.STEPPED, why=f"{weight / 10_000:g} % of the traffic: {why}"
    )


def _step(rollout: Rollout, observed: Observed, now: datetime) -> Advanced:
    found = _alarm(rollout, observed) or judge(rollout)
    rollout = structs.replace(rollout, judgement=found)
    if found.verdict is Verdict.ROLLBACK:
        return take_back(rollout, found.why, now)
    if observed.applied is None:
        return _hold(rollout, "no gateway answers; the candidate's share stays as it is")
    if observed.applied < rollout.epoch:
        return Advanced(rollout=structs.replace(rollout, step_since=None, held=None))
    since = rollout.step_since or now
    rollout = structs.replace(rollout, step_since=since)
    lasted = (now - since).total_seconds()
    if rollout.paused is not None:
        return _hold(rollout, _paused(rollout.paused))
    if lasted < rollout.current.min_s:
        return Advanced(rollout=structs.replace(rollout, held=None))
    if found.verdict is Verdict.ADVANCE or rollout.plan.strategy is Strategy.IMMEDIATE:
        if rollout.last:
            return _finish(rollout, RolloutState.SUCCEEDED, found.why, now)
        if not rollout.plan.automatic:
            return _hold(rollout, f"waits for 'modelkeep rollout advance {rollout.endpoint} -m WHY'")
        return _enter(rollout, rollout.step + 1, found.why)
    if lasted >= rollout.current.max_s and rollout.plan.on_inconclusive is OnInconclusive.ROLLBACK:
        return take_back(rollout, f"inconclusive after {lasted:.0f} s: {found.why}", now)
    return _hold(rollout, found.why)


def _confirm(rollout: Rollout, observed: Observed, now: datetime) -> Advanced:
    why = rollout.outcome or "rolled back"
    if observed.applied is not None:
        if observed.applied < rollout.epoch:
            return Advanced(rollout=rollout)
        return _finish(rollout, RolloutState.ROLLED_BACK, why, now)
    if (now - (rollout.step_since or rollout.started_at)).total_seconds() < CONFIRM_S:
        return Advanced(rollout=rollout)
    return _finish(rollout, RolloutState.ROLLED_BACK, f"{why} (no gateway answered to confirm it)", now)


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
    """Go to the next step on a person's word, without waiting for time or proof. A pause stays a pause.

    A person can do without a proof, not against one: what speaks against the candidate stands.

    Args:
        observed: as of now; its ticks have been taken in.

    Raises:
        RolloutFinished: it is not in a step.
        GateFailed: the evidence, or a guard, says rollback.
        Conflict: the gateways have not applied the present step yet.
    """
    if rollout.state is not RolloutState.STEPPING:
        raise errors.RolloutFinished(
            f"The rollout {rollout.id} is {rollout.state}; there is no next step.", rollout=rollout.id
        )
    found = _alarm(rollout, observed) or judge(rollout)
    if found.verdict is Verdict.ROLLBACK:
        raise errors.GateFailed(
            f"The candidate is about to be taken back: {found.why}. Nobody can step on past that; register a "
            "better version.",
            rollout=rollout.id,
        )
    if rollout.step_since is None:
        raise errors.Conflict(
            f"The gateways have not applied the present step of {rollout.endpoint} yet; watch "
            f"'modelkeep rollout status {rollout.endpoint} --watch' and try again.",
            rollout=rollout.id,
        )
    rollout = structs.replace(rollout, judgement=found)
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


# -------------------------------------------------------------------------------------------------- evidence


def counts_for(rollout: Rollout, tick: Tick) -> bool:
    """Whether a tick is evidence of this rollout: of its own, and with a share for the candidate."""
    return tick.rollout == rollout.id and tick.candidate_ppm > 0


def take_in(rollout: Rollout, ticks: Sequence[Tick]) -> Rollout:
    """Feed the tests with ticks of this rollout, in the order of their arrival. What comes after the decision
    to take the candidate back, or before it has traffic, is no evidence."""
    if rollout.state is not RolloutState.STEPPING:
        return rollout
    own = [tick for tick in ticks if counts_for(rollout, tick)]
    if not own:
        return rollout
    candidate, stable, notes = rollout.candidate_counts, rollout.stable_counts, rollout.notes
    for tick in own:
        candidate = candidate.plus(tick.candidate)
        stable = stable.plus(tick.stable)
        for text in map(_shown, tick.errors_seen):
            if len(notes) < NOTES_MAX and text not in notes:
                notes = (*notes, text)
    return structs.replace(
        rollout,
        evidence=evidence_of(rollout.plan, own, rollout.evidence),
        candidate_counts=candidate,
        stable_counts=stable,
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
    """What the evidence of a rollout says now."""
    return judgement.judge(rollout.plan, rollout.evidence, rollout.candidate_counts, rollout.stable_counts)


def _alarm(rollout: Rollout, observed: Observed) -> Judgement | None:
    """The hard guards: facts, outside the statistics."""
    counts, guards, why = rollout.candidate_counts, rollout.plan.guards, None
    if observed.phase is VersionPhase.FAILED:
        why = f"the candidate's process failed for good: {observed.error or 'it crashed again and again'}"
    elif counts.crashes >= guards.crashes:
        why = f"the candidate crashed {counts.crashes} times"
    elif counts.schema_violations >= guards.schema_violations:
        why = f"the candidate broke its own output schema {counts.schema_violations} times"
    return Judgement(verdict=Verdict.ROLLBACK, why=why, blamed="guard") if why is not None else None


# ---------------------------------------------------------------------------------------------------- routes


class Attempt(Struct, frozen=True, kw_only=True):
    """A rollout that ended without its candidate in the stage: taken back, failed or cancelled."""

    id: str
    endpoint: str
    stage: str
    number: int
    semver: str
    state: RolloutState
    started_at: datetime
    started_by: Actor
    finished_at: datetime
    outcome: str


def attempt_of(rollout: Rollout) -> Attempt | None:
    """What history tells of a rollout; None for one that goes on or succeeded."""
    if rollout.state not in WITHOUT_SUCCESS or rollout.finished_at is None:
        return None
    return Attempt(
        id=rollout.id,
        endpoint=rollout.endpoint,
        stage=rollout.stage,
        number=rollout.candidate,
        semver=rollout.candidate_semver,
        state=rollout.state,
        started_at=rollout.started_at,
        started_by=rollout.started_by,
        finished_at=rollout.finished_at,
        outcome=rollout.outcome or "",
    )


def route_of(endpoint: Endpoint, rollout: Rollout | None, keys: Mapping[int, VersionKey]) -> Route | None:
    """What the gateways should do for an endpoint; None while it has nothing to serve.

    Args:
        rollout: the endpoint's unfinished rollout, if there is one.
        keys: what gateways call each version that endpoint and rollout name, by number.
    """
    former = endpoint.previous
    if rollout is not None and not rollout.state.finished and rollout.candidate == former:
        former = None  # a candidate that is taken back is no version to go back to
    previous = keys[former] if former is not None else None

    def route(stable: VersionKey, epoch: Epoch) -> Route:
        return Route(
            endpoint=endpoint.name,
            epoch=epoch,
            stable=stable,
            previous=previous,
            key_header=endpoint.key_header,
            slow_ms=endpoint.slow_ms,
            lease_s=endpoint.lease_s,
        )

    if rollout is None or rollout.state in (RolloutState.ROLLING_BACK, *_FINISHED):
        if endpoint.stable is None:
            return None
        epoch = endpoint.epoch if rollout is None else max(endpoint.epoch, rollout.epoch)
        return route(keys[endpoint.stable], epoch)
    if endpoint.stable is None:
        return route(keys[rollout.candidate], rollout.epoch)
    return structs.replace(
        route(keys[endpoint.stable], rollout.epoch),
        candidate=keys[rollout.candidate],
        candidate_ppm=rollout.weight_ppm,
        salt=rollout.salt,
        rollout=rollout.id,
    )
