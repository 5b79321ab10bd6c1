"""A former rollout led through another plan: what would have happened when, by the counts that were recorded.

The very state machine that moves traffic is given the recorded ticks, one after the other, by gateways that
obey at once. What this cannot know: what callers would have done under other weights. Each tick is judged by
the share it was counted under, so the evidence is true whatever the plan's steps; how much of it there would
have been is not, and `off_plan` says in how many ticks the plan would have had another share.
"""

from collections.abc import Iterable
from datetime import datetime

from msgspec import Struct, structs

from modelkeep.core import errors
from modelkeep.core.evidence import Evidence
from modelkeep.core.movement import Sight
from modelkeep.core.observation import SideCounts, Tick, VersionPhase
from modelkeep.core.plan import Plan, check_plan
from modelkeep.core.rollout import Change, Observed, Rollout, RolloutState, advance
from modelkeep.core.routing import Epoch

TICKS_MAX = 50_000
"""Ticks that one simulation goes through; what came later is left out, and that is said."""
MOMENTS_MAX = 500
"""Moments that are told: a plan has 50 steps, and each may hold and go on."""


class Moment(Struct, frozen=True, kw_only=True):
    """Something that would have happened, `after_s` seconds from the first count.

    `weight_ppm` is the plan's share from then on, `recorded_ppm` the share that callers really met. The
    callers are the candidate's up to here.
    """

    after_s: float
    change: Change
    step: int
    weight_ppm: int
    recorded_ppm: int
    why: str
    p_value: float
    callers: int
    callers_failed: int


class Simulation(Struct, frozen=True, kw_only=True):
    """What would have come of a plan.

    Attributes:
        ended: how it would have ended; None when the counts end before.
        after_s: when, from the first count on.
        callers, callers_failed: whom the candidate answered until then, and failed.
        span_s: how long the counts are that were gone through; they are `ticks`, of which `off_plan` were
            counted under another share than the plan's.
        cut: there are more ticks than are gone through.
        was, was_outcome: what really came of the rollout.
    """

    rollout: str
    endpoint: str
    plan: Plan
    from_at: datetime
    span_s: float
    ticks: int
    off_plan: int
    cut: bool
    ended: RolloutState | None
    after_s: float | None
    why: str
    p_value: float
    callers: int
    callers_failed: int
    moments: tuple[Moment, ...]
    was: RolloutState
    was_outcome: str | None


def simulate(recorded: Rollout, plan: Plan, ticks: Iterable[Tick]) -> Simulation:
    """Lead the counts of a rollout through a plan. The same arguments give the same answer.

    Args:
        ticks: of this rollout, in the order of their arrival.

    Raises:
        InvalidPlan: the plan cannot be carried out.
        Conflict: nothing was counted, so that nothing can be said.
    """
    if plan.versions and plan.versions != recorded.plan.versions:
        raise errors.InvalidPlan("No further 'versions' can be simulated but those of the rollout itself.")
    led = _Led(recorded, check_plan(plan))
    for tick in ticks:
        if led.over or led.ticks >= TICKS_MAX:
            led.cut = led.ticks >= TICKS_MAX and not led.over
            break
        led.take(tick)
    return led.told()


class _Led:
    """A rollout on its way through the plan."""

    def __init__(self, recorded: Rollout, plan: Plan) -> None:
        self.recorded = recorded
        self.plan = plan
        self.rollout = structs.replace(
            recorded,
            plan=plan,
            state=RolloutState.PREPARING,
            step=0,
            epoch=Epoch(1, 0),
            weight_ppm=0,
            step_since=None,
            paused=None,
            held=None,
            finished_at=None,
            outcome=None,
            evidence=Evidence(),
            candidate_counts=SideCounts(),
            stable_counts=SideCounts(),
            requests_before=0,
            ticks=0,
            ticks_until=None,
            notes=(),
            judgement=None,
            report=None,
            pairs=None,
            labels=None,
            outputs=None,
            others=tuple(
                structs.replace(other, counts=SideCounts(), judgement=None, out=None)
                for other in (recorded.others if plan.versions else ())
            ),
            out=None,
        )
        self.from_at: datetime | None = None
        self.now: datetime | None = None
        self.ticks = self.off_plan = 0
        self.cut = False
        self.moments: list[Moment] = []

    @property
    def over(self) -> bool:
        """Whether the plan has come to its end; on its way back it has."""
        return self.rollout.state.finished or self.rollout.state is RolloutState.ROLLING_BACK

    def take(self, tick: Tick) -> None:
        """Go on by one tick."""
        if self.from_at is None:
            self.from_at = self.now = tick.started_at
            self.rollout = structs.replace(self.rollout, started_at=tick.started_at)
            self._look((), tick.candidate_ppm)
        assert self.now is not None, "the first tick has set it"
        self.ticks += 1
        self.off_plan += tick.candidate_ppm != self.rollout.weight_ppm
        self._look((), tick.candidate_ppm)  # the clock of a step begins with its first tick
        self.now = max(self.now, tick.ended_at)
        self._look((tick,), tick.candidate_ppm)

    def _look(self, ticks: tuple[Tick, ...], recorded_ppm: int) -> None:
        if self.over:
            return
        assert self.now is not None, "there was a tick"
        assert self.from_at is not None, "and it was the first"
        ready = Sight(phase=VersionPhase.READY)
        seen = Observed(
            applied=self.rollout.epoch,
            phase=ready.phase,
            ticks=ticks,
            others=(ready,) * len(self.rollout.others),
        )
        advanced = advance(self.rollout, seen, self.now)
        self.rollout = now = advanced.rollout
        if advanced.change is None or len(self.moments) >= MOMENTS_MAX:
            return
        self.moments.append(
            Moment(
                after_s=(self.now - self.from_at).total_seconds(),
                change=advanced.change,
                step=now.step + 1,
                weight_ppm=now.weight_ppm,
                recorded_ppm=recorded_ppm,
                why=advanced.why,
                p_value=now.judgement.p_value if now.judgement is not None else 1.0,
                callers=now.candidate_counts.new_callers,
                callers_failed=now.candidate_counts.callers_first_error,
            )
        )

    def told(self) -> Simulation:
        """What came of it. Raises Conflict when there was no tick."""
        if self.from_at is None or self.now is None:
            raise errors.Conflict(
                f"Nothing was counted in the rollout {self.recorded.id}, so there is nothing to lead through "
                "a plan; 'modelkeep rollout ls' lists others.",
                rollout=self.recorded.id,
            )
        now, state = self.rollout, self.rollout.state
        ended = RolloutState.ROLLED_BACK if state is RolloutState.ROLLING_BACK else state
        span_s = (self.now - self.from_at).total_seconds()
        return Simulation(
            rollout=now.id,
            endpoint=now.endpoint,
            plan=self.plan,
            from_at=self.from_at,
            span_s=span_s,
            ticks=self.ticks,
            off_plan=self.off_plan,
            cut=self.cut,
            ended=ended if self.over else None,
            after_s=span_s if self.over else None,
            why=now.outcome or now.held or (now.judgement.why if now.judgement is not None else ""),
            p_value=now.judgement.p_value if now.judgement is not None else 1.0,
            callers=now.candidate_counts.new_callers,
            callers_failed=now.candidate_counts.callers_first_error,
            moments=tuple(self.moments),
            was=self.recorded.state,
            was_outcome=self.recorded.outcome,
        )
