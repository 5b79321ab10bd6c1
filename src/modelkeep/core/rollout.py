"""How traffic moves from the stable version to a candidate: plans, the state machine, and the verdicts.

    preparing --ready--> step 1 --advance--> ... --advance--> last step (all traffic) --advance--> succeeded
        |                  |                                      |
        | cannot load      | rollback verdict, hard guard, abort, the gateway's own rollback
        v                  v                                      v
      failed             rolling_back --confirmed by the gateway--> rolled_back

`advance` is one pure function of the rollout, what was observed and the time. It never raises a weight on
missing data: no data is no evidence, no evidence is no advance. A rollback is possible wherever the candidate
has weight. The stage follows only when the rollout has succeeded. This file moves nothing; it says what the
routes should be.

Judgement (docs/explanation/rollout-statistics.md): for the WHOLE rollout, over all metrics and steps and
however often one looks, a candidate that is no worse than stable is taken back with probability at most
`alpha`.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from itertools import pairwise
from typing import assert_never

from msgspec import Struct, field, structs

from modelkeep.core import codec, errors, sequential
from modelkeep.core.observation import SideCounts, Tick, VersionPhase
from modelkeep.core.routing import WHOLE_PPM, Epoch, Route
from modelkeep.core.sequential import BinaryEProcess, CallerTick, Combined, MeanEProcess, TrialTick
from modelkeep.core.values import Actor, Digest, ModelName

STEPS_MAX = 50
"""Steps of one plan."""
STEP_S_MAX = 90 * 86_400.0
"""The longest that a step may be asked to last: labels may be late by weeks, not by years."""
NOTES_MAX = 3
"""Error texts of the candidate that a rollout keeps for people to read."""


class Strategy(StrEnum):
    """How a candidate takes over."""

    CANARY = "canary"
    IMMEDIATE = "immediate"


class OnInconclusive(StrEnum):
    """What to do when a step's longest time is over and the evidence does not suffice."""

    HOLD = "hold"
    ROLLBACK = "rollback"


class Step(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One step: the candidate's share, the least time it lasts, and the time after which missing evidence is
    acted on.
    """

    weight_ppm: int
    min_s: float = 300.0
    max_s: float = 3_600.0


class Guards(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Certain faults, outside the statistics: reached means rolled back."""

    crashes: int = 3
    schema_violations: int = 1


class Plan(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a rollout goes, as data.

    `alpha` bounds the chance that a candidate no worse than stable is ever taken back; `beta` the chance that
    a step is passed by a candidate whose odds of failing are `pass_odds` times stable's and whose first
    requests fail at `pass_rate` or more. `margin` and `slow_margin` are the odds ratios of failing and of
    being slow that are tolerated.
    """

    strategy: Strategy = Strategy.CANARY
    steps: tuple[Step, ...] = (
        Step(weight_ppm=100_000),
        Step(weight_ppm=500_000),
        Step(weight_ppm=WHOLE_PPM),
    )
    alpha: float = 0.01
    beta: float = 0.05
    margin: float = 1.0
    slow_margin: float = 1.5
    pass_odds: float = 2.0
    pass_rate: float = 0.02
    on_inconclusive: OnInconclusive = OnInconclusive.HOLD
    automatic: bool = True
    prepare_s: float = 600.0
    guards: Guards = field(default_factory=Guards)


CANARY = Plan()
"""10 % -> 50 % -> 100 %, five minutes each at least."""


def check_plan(plan: Plan) -> Plan:
    """Refuse a plan that could not be carried out or would promise nothing.

    Raises:
        InvalidPlan: names the number that is off and what it may be.
    """
    if not 1 <= len(plan.steps) <= STEPS_MAX:
        raise errors.InvalidPlan(f"A plan has 1 to {STEPS_MAX} steps.")
    weights = [step.weight_ppm for step in plan.steps]
    if any(b <= a for a, b in pairwise(weights)) or weights[0] <= 0:
        raise errors.InvalidPlan("The steps' weights must rise, beginning above 0 ppm.")
    if weights[-1] != WHOLE_PPM:
        raise errors.InvalidPlan(f"The last step must give the candidate everything ({WHOLE_PPM} ppm).")
    if plan.strategy is Strategy.IMMEDIATE and len(weights) != 1:
        raise errors.InvalidPlan("An immediate rollout has exactly one step.")
    for step in plan.steps:
        if not 0 <= step.min_s <= step.max_s <= STEP_S_MAX:
            raise errors.InvalidPlan(
                f"A step lasts min_s <= max_s, both within 0 and {STEP_S_MAX:.0f} seconds."
            )
    if not 0 < plan.alpha <= 0.2 or not 0 < plan.beta <= 0.5:
        raise errors.InvalidPlan("'alpha' lies above 0 and at most 0.2, 'beta' above 0 and at most 0.5.")
    if not 1 <= plan.margin <= 100 or not 1 <= plan.slow_margin <= 100:
        raise errors.InvalidPlan("'margin' and 'slow_margin' are odds ratios from 1 to 100.")
    if not plan.margin < plan.pass_odds <= 100 or not 0.0001 <= plan.pass_rate <= 0.5:
        raise errors.InvalidPlan(
            "'pass_odds' lies above 'margin' and at most 100, 'pass_rate' within 0.0001 and 0.5."
        )
    if not 1 <= plan.prepare_s <= 86_400 or plan.guards.crashes < 1 or plan.guards.schema_violations < 1:
        raise errors.InvalidPlan("'prepare_s' lies within a second and a day; guards count from 1.")
    return plan


def read_plan(text: str | bytes) -> Plan:
    """Read a plan in YAML or JSON. Raises InvalidPlan."""
    try:
        return check_plan(codec.convert(codec.parse_yaml(text), Plan))
    except errors.MalformedBody as problem:
        raise errors.InvalidPlan(f"This is not a rollout plan: {problem}") from problem


class FollowKind(StrEnum):
    """What an endpoint follows."""

    STAGE = "stage"


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


class Verdict(StrEnum):
    """What the evidence says now."""

    ADVANCE = "advance"
    HOLD = "hold"
    ROLLBACK = "rollback"


class Evidence(Struct, frozen=True, kw_only=True):
    """The state of every test of a rollout. `errors`, `slow` and `shares` can take the candidate back;
    `no_worse` and `low_rate` can let it advance."""

    errors: BinaryEProcess = field(default_factory=BinaryEProcess)
    slow: BinaryEProcess = field(default_factory=BinaryEProcess)
    shares: BinaryEProcess = field(default_factory=BinaryEProcess)
    no_worse: BinaryEProcess = field(default_factory=BinaryEProcess)
    low_rate: MeanEProcess = field(default_factory=MeanEProcess)


OMEGA: Mapping[str, float] = {"errors": 0.5, "latency": 0.3, "traffic shares": 0.2}
"""How alpha is spent over the metrics."""


class Judgement(Struct, frozen=True, kw_only=True):
    """A verdict with its numbers and its sentence. `p_value` is valid at any time; `passed` says which proof
    allows the advance."""

    verdict: Verdict
    why: str
    p_value: float = 1.0
    blamed: str | None = None
    passed: str | None = None
    contributions: dict[str, float] = {}


class Rollout(Struct, frozen=True, kw_only=True):
    """One movement of an endpoint from one version to another, with everything that was counted and
    concluded.
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
    taken: dict[str, int] = {}
    notes: tuple[str, ...] = ()
    judgement: Judgement | None = None

    @property
    def current(self) -> Step:
        return self.plan.steps[self.step]


class Observed(Struct, frozen=True, kw_only=True):
    """What was learned since the last look.

    `applied` is the oldest epoch among the gateways that answer now (None: no gateway answers). `phase` is
    the candidate's worst phase among them, `error` its text. `rolled_back` is set when a gateway took the
    candidate back by itself, with why. `ticks` are in order of arrival, each once.
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
    RESUMED = "resumed"
    ROLLING_BACK = "rolling_back"
    ROLLED_BACK = "rolled_back"
    SUCCEEDED = "succeeded"
    FAILED = "failed"


class Advanced(Struct, frozen=True, kw_only=True):
    """The rollout after a look, and what changed in a way that people and routes need to know."""

    rollout: Rollout
    change: Change | None = None
    why: str = ""


def advance(rollout: Rollout, observed: Observed, now: datetime) -> Advanced:
    """Take in what was observed and go as far as it allows, at most one step.

    The same rollout, observations and time give the same answer for ever.
    """
    rollout = _take_in(rollout, observed.ticks)
    if (
        observed.rolled_back is not None
        and not rollout.state.finished
        and rollout.state is not RolloutState.ROLLING_BACK
    ):
        taken = structs.replace(rollout, epoch=observed.rolled_back_epoch or _raised_term(rollout.epoch))
        return _finish(
            taken, RolloutState.ROLLED_BACK, f"the gateway took it back: {observed.rolled_back}", now
        )
    match rollout.state:
        case RolloutState.PREPARING:
            return _prepare(rollout, observed, now)
        case RolloutState.STEPPING:
            return _step(rollout, observed, now)
        case RolloutState.ROLLING_BACK:
            if observed.applied is not None and observed.applied >= rollout.epoch:
                return _finish(rollout, RolloutState.ROLLED_BACK, rollout.outcome or "rolled back", now)
            return Advanced(rollout=rollout)
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
    rollout = structs.replace(rollout, epoch=_raised_term(rollout.epoch), weight_ppm=0, outcome=why)
    if not had_weight:
        return _finish(rollout, RolloutState.CANCELLED, why, now)
    rollout = structs.replace(rollout, state=RolloutState.ROLLING_BACK, held=None)
    return Advanced(rollout=rollout, change=Change.ROLLING_BACK, why=why)


def _raised_term(epoch: Epoch) -> Epoch:
    return Epoch(epoch.term + 1, 0)


def _prepare(rollout: Rollout, observed: Observed, now: datetime) -> Advanced:
    if observed.phase is VersionPhase.FAILED:
        return _finish(
            rollout, RolloutState.FAILED, f"the version could not be loaded: {observed.error}", now
        )
    ready = (
        observed.applied is not None
        and observed.applied >= rollout.epoch
        and observed.phase is VersionPhase.READY
    )
    if ready and rollout.stable is None:
        return _finish(
            rollout, RolloutState.SUCCEEDED, "the first version of the endpoint is loaded and ready", now
        )
    if ready:
        return _enter(rollout, 0, now, "the candidate is loaded and ready")
    if (now - rollout.started_at).total_seconds() > rollout.plan.prepare_s:
        where = (
            "no gateway answers"
            if observed.applied is None
            else f"it is {observed.phase or 'unknown'} on the gateway"
        )
        why = f"the version was not ready within {rollout.plan.prepare_s:.0f} s: {where}"
        return _finish(rollout, RolloutState.FAILED, why, now)
    if observed.applied is None:
        return _hold(rollout, "no gateway answers; start one with 'modelkeep gateway'")
    return Advanced(rollout=structs.replace(rollout, held=None))


def _enter(rollout: Rollout, step: int, now: datetime, why: str) -> Advanced:
    """Begin a step: its time runs only from when a gateway has confirmed the weight."""
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
    guard = _guard(rollout, observed)
    if guard is not None:
        judgement = Judgement(verdict=Verdict.ROLLBACK, why=guard, blamed="guard")
        return take_back(structs.replace(rollout, judgement=judgement), guard, now)
    judgement = judge(rollout)
    rollout = structs.replace(rollout, judgement=judgement)
    if judgement.verdict is Verdict.ROLLBACK:
        return take_back(rollout, judgement.why, now)
    if observed.applied is None:
        return _hold(rollout, "no gateway answers; the candidate's share stays as it is")
    if observed.applied < rollout.epoch:
        return Advanced(rollout=rollout)
    if rollout.step_since is None:
        rollout = structs.replace(rollout, step_since=now)
    lasted = (now - (rollout.step_since or now)).total_seconds()
    if rollout.paused is not None:
        return _hold(rollout, f"paused: {rollout.paused}")
    if lasted < rollout.current.min_s:
        return Advanced(rollout=structs.replace(rollout, held=None))
    last = rollout.step == len(rollout.plan.steps) - 1
    immediate = rollout.plan.strategy is Strategy.IMMEDIATE
    if judgement.verdict is Verdict.ADVANCE or immediate:
        if not rollout.plan.automatic and not last:
            return _hold(rollout, f"waits for 'modelkeep rollout advance {rollout.endpoint}'")
        if last:
            return _finish(rollout, RolloutState.SUCCEEDED, judgement.why, now)
        return _enter(rollout, rollout.step + 1, now, judgement.why)
    if lasted >= rollout.current.max_s and rollout.plan.on_inconclusive is OnInconclusive.ROLLBACK:
        return take_back(rollout, f"inconclusive after {lasted:.0f} s: {judgement.why}", now)
    return _hold(rollout, judgement.why)


def step_on(rollout: Rollout, now: datetime, why: str) -> Advanced:
    """Go to the next step on a person's word, whatever the evidence for an advance; a rollback verdict still
    stands.

    Raises:
        RolloutFinished: it is not in a step.
    """
    if rollout.state is not RolloutState.STEPPING:
        raise errors.RolloutFinished(f"The rollout {rollout.id} is {rollout.state}; there is no next step.")
    if rollout.step == len(rollout.plan.steps) - 1:
        return _finish(rollout, RolloutState.SUCCEEDED, why, now)
    return _enter(structs.replace(rollout, paused=None), rollout.step + 1, now, why)


def _hold(rollout: Rollout, why: str) -> Advanced:
    """Stay where it is. Only the beginning of a hold, or another reason for it, is news."""
    if rollout.held == why:
        return Advanced(rollout=rollout)
    fresh = rollout.held is None
    return Advanced(
        rollout=structs.replace(rollout, held=why), change=Change.HELD if fresh else None, why=why
    )


_CHANGE_OF = {
    RolloutState.SUCCEEDED: Change.SUCCEEDED,
    RolloutState.ROLLED_BACK: Change.ROLLED_BACK,
    RolloutState.FAILED: Change.FAILED,
}


def _finish(rollout: Rollout, state: RolloutState, why: str, now: datetime) -> Advanced:
    weight = WHOLE_PPM if state is RolloutState.SUCCEEDED else 0
    epoch = rollout.epoch
    if state is not RolloutState.ROLLED_BACK and state is not RolloutState.CANCELLED:
        epoch = Epoch(epoch.term, epoch.seq + 1)
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
    return Advanced(rollout=done, change=_CHANGE_OF.get(state), why=why)


def _guard(rollout: Rollout, observed: Observed) -> str | None:
    counts = rollout.candidate_counts
    if observed.phase is VersionPhase.FAILED:
        return f"the candidate's process failed for good: {observed.error or 'it crashed again and again'}"
    if counts.crashes >= rollout.plan.guards.crashes:
        return f"the candidate crashed {counts.crashes} times"
    if counts.schema_violations >= rollout.plan.guards.schema_violations:
        return f"the candidate broke its own output schema {counts.schema_violations} times"
    return None


def _take_in(rollout: Rollout, ticks: Sequence[Tick]) -> Rollout:
    """Feed the tests with ticks of this rollout, in the order of their arrival."""
    if rollout.state is not RolloutState.STEPPING:
        return rollout
    tests = Tests.of(rollout.plan)
    evidence, candidate, stable = rollout.evidence, rollout.candidate_counts, rollout.stable_counts
    notes, taken = rollout.notes, 0
    for tick in ticks:
        if not counts_for(rollout, tick):
            continue
        evidence = tests.update(evidence, tick)
        candidate = candidate.plus(tick.candidate)
        stable = stable.plus(tick.stable)
        notes += tuple(text for text in tick.errors_seen if text not in notes)
        taken += 1
    return structs.replace(
        rollout,
        evidence=evidence,
        candidate_counts=candidate,
        stable_counts=stable,
        notes=notes[:NOTES_MAX],
        ticks=rollout.ticks + taken,
    )


def counts_for(rollout: Rollout, tick: Tick) -> bool:
    """Whether a tick is evidence of this rollout: of its own, and with a share for the candidate."""
    return tick.rollout == rollout.id and tick.candidate_ppm > 0


def replay(rollout: Rollout, ticks: Sequence[Tick]) -> Evidence:
    """The evidence that the stored ticks amount to, recomputed from nothing.

    Args:
        ticks: all ticks of the rollout, in the order of their arrival; as many as were taken in are used.
    """
    tests, evidence = Tests.of(rollout.plan), Evidence()
    for tick in [tick for tick in ticks if counts_for(rollout, tick)][: rollout.ticks]:
        evidence = tests.update(evidence, tick)
    return evidence


class Tests(Struct, frozen=True, kw_only=True):
    """The specifications of a plan's tests: what they look for, without what they have seen."""

    errors: sequential.EProcessSpec
    slow: sequential.EProcessSpec
    shares: sequential.EProcessSpec
    no_worse: sequential.EProcessSpec
    low_rate: sequential.RateSpec

    @staticmethod
    def of(plan: Plan) -> "Tests":
        return Tests(
            errors=sequential.fail_spec(margin=plan.margin),
            slow=sequential.fail_spec(margin=plan.slow_margin),
            shares=sequential.mismatch_spec(),
            no_worse=sequential.pass_spec(bound=plan.pass_odds),
            low_rate=sequential.rate_pass_spec(bound=plan.pass_rate),
        )

    def update(self, evidence: Evidence, tick: Tick) -> Evidence:
        """The evidence after one more tick."""
        c, s, weight = tick.candidate, tick.stable, tick.candidate_ppm
        failing = CallerTick(x=c.callers_first_error, y=s.callers_first_error, weight_ppm=weight)
        slow = CallerTick(x=c.callers_first_slow, y=s.callers_first_slow, weight_ppm=weight)
        arrived = CallerTick(x=c.new_callers, y=s.new_callers, weight_ppm=weight)
        trials = TrialTick(n=c.new_callers, k=c.new_callers_failed)
        return Evidence(
            errors=sequential.update(evidence.errors, self.errors, failing),
            slow=sequential.update(evidence.slow, self.slow, slow),
            shares=sequential.update(evidence.shares, self.shares, arrived),
            no_worse=sequential.update(evidence.no_worse, self.no_worse, failing),
            low_rate=sequential.update_rate(evidence.low_rate, self.low_rate, trials),
        )


def combined(rollout: Rollout) -> Combined:
    """All that speaks against the candidate, under one alpha."""
    evidence = rollout.evidence
    states = {"errors": evidence.errors, "latency": evidence.slow, "traffic shares": evidence.shares}
    return sequential.combine(states, OMEGA, alpha=rollout.plan.alpha)


def judge(rollout: Rollout) -> Judgement:
    """What the evidence says now: rollback, advance or hold, with the sentence that people read."""
    against = combined(rollout)
    c, s, plan = rollout.candidate_counts, rollout.stable_counts, rollout.plan
    seen = (
        f"{c.callers_first_error} of the candidate's callers and {s.callers_first_error} of stable's had "
        f"an error ({c.errors} of {c.requests} and {s.errors} of {s.requests} requests)"
    )
    if against.rollback:
        limit = f"p = {against.p_value:.2g} for the whole rollout, limit {plan.alpha:g}"
        return Judgement(
            verdict=Verdict.ROLLBACK,
            why=f"{_BLAME[against.blamed]}: {seen}; {limit}",
            p_value=against.p_value,
            blamed=against.blamed,
            contributions=against.contributions,
        )
    if c.requests == 0:
        return Judgement(
            verdict=Verdict.HOLD, why="the candidate has had no request yet", p_value=against.p_value
        )
    evidence = rollout.evidence
    beta = plan.beta / 2  # either proof may let it advance, so each has half of the error
    if evidence.low_rate.holds(beta):
        why = f"fewer than {plan.pass_rate:.2%} of first requests fail, shown at {1 - beta:.1%}: {seen}"
        return Judgement(verdict=Verdict.ADVANCE, why=why, passed="low_rate", p_value=against.p_value)
    if evidence.no_worse.holds(beta):
        why = f"odds of failing below {plan.pass_odds:g} times stable's, shown at {1 - beta:.1%}: {seen}"
        return Judgement(verdict=Verdict.ADVANCE, why=why, passed="no_worse", p_value=against.p_value)
    why = f"not enough evidence yet from {c.new_callers} new callers of the candidate: {seen}"
    return Judgement(
        verdict=Verdict.HOLD, why=why, p_value=against.p_value, contributions=against.contributions
    )


_BLAME = {
    "errors": "more callers fail than on stable",
    "latency": "more callers are answered slowly than on stable",
    "traffic shares": "the versions do not get the shares of callers they were given",
}


def route_of(endpoint: Endpoint, rollout: Rollout | None, digests: Mapping[int, Digest]) -> Route | None:
    """What the gateways should do for an endpoint; None while it has nothing to serve.

    Args:
        rollout: the endpoint's unfinished rollout, if there is one.
        digests: the content of each version that is named, by number.
    """
    previous = digests.get(endpoint.previous) if endpoint.previous is not None else None

    def route(stable: Digest, epoch: Epoch) -> Route:
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
        return route(digests[endpoint.stable], epoch)
    if endpoint.stable is None:
        return route(rollout.candidate_digest, rollout.epoch)
    return structs.replace(
        route(digests[endpoint.stable], rollout.epoch),
        candidate=rollout.candidate_digest,
        candidate_ppm=rollout.weight_ppm,
        salt=rollout.salt,
        rollout=rollout.id,
    )
