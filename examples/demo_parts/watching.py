"""Rollouts as they happen, several at a time. On a terminal: a view at the foot of the text, drawn anew four
times a second. In a pipe: one line whenever something changed, or when nothing did for a while.

It asks the server what everybody may ask (`modelkeep rollout status` shows the same) and reads what the
callers have seen. It decides nothing.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from demo_parts.narration import BOLD, DIM, GREEN, RED, Broken, Story
from demo_parts.premises import Traffic
from modelkeep import Client
from modelkeep.core.rollout import Rollout, RolloutState, Strategy, report

LOOK_S = 0.25
"""Between two looks."""
QUIET_S = 4.0
"""After this long without a change a line is shown all the same."""
BAR_CELLS = 24
"""Of the bar that shows how the callers are split."""
WATCHED_MAX_S = 300.0
"""The longest that the rollouts of one view may take."""
GOOD = frozenset({RolloutState.SUCCEEDED, RolloutState.CONCLUDED})


@dataclass(frozen=True)
class Lane:
    """One endpoint in the view: how its traffic moves, and who asks it."""

    endpoint: str
    way: str
    rollout_id: str
    traffic: Traffic


@dataclass(frozen=True)
class Act:
    """What a person does about a rollout, and at the sight of what."""

    when: Callable[[Rollout], bool]
    do: Callable[[], None]


class Board:
    """Shows the rollouts of its lanes until all of them have ended."""

    def __init__(self, story: Story, client: Client, lanes: Sequence[Lane]) -> None:
        self._story = story
        self._client = client
        self._lanes = lanes
        self._shown: dict[str, tuple[tuple[object, ...], float]] = {}

    def watch(self, acts: Mapping[str, Act] | None = None) -> dict[str, Rollout]:
        """Show them.

        Args:
            acts: by endpoint, what a person does, once, and when.

        Returns:
            The rollouts as they ended, by endpoint.

        Raises:
            Broken: they take longer than they may.
        """
        ahead = dict(acts or {})
        began = time.monotonic()
        if not self._story.live:
            self._story.row(
                f"{'time':>6}  {'endpoint':<9}  {'way':<10}  {'share':>5}  {'callers':>7}  {'failed':>6}  "
                "what it makes of it"
            )
        while True:
            found = {lane.endpoint: self._client.get_rollout(lane.rollout_id) for lane in self._lanes}
            seconds = time.monotonic() - began
            self._show(found, seconds)
            for endpoint, rollout in found.items():
                if endpoint in ahead and ahead[endpoint].when(rollout):
                    ahead.pop(endpoint).do()
            if all(rollout.state.finished for rollout in found.values()):
                self._story.settle()
                return found
            if seconds > WATCHED_MAX_S:
                late = [f"{e} is {r.state} ({r.held})" for e, r in found.items() if not r.state.finished]
                raise Broken(f"After {seconds:.0f} s {', '.join(late)}.")
            time.sleep(LOOK_S)

    def _show(self, found: Mapping[str, Rollout], seconds: float) -> None:
        if self._story.live:
            self._story.draw([row for lane in self._lanes for row in _drawn(lane, found[lane.endpoint])])
            return
        for lane in self._lanes:
            rollout = found[lane.endpoint]
            verdict = rollout.judgement.verdict if rollout.judgement else None
            news = (rollout.state, rollout.step, verdict)
            before, at = self._shown.get(lane.endpoint, ((), 0.0))
            if news != before or (seconds - at > QUIET_S and not rollout.state.finished):
                self._story.row(_line(lane, rollout, seconds))
                self._shown[lane.endpoint] = news, seconds


def _drawn(lane: Lane, rollout: Rollout) -> list[list[tuple[str, str | None]]]:
    """Two lines of the view as pieces of text with their colours: the traffic, and what is made of it."""
    seen = lane.traffic.seen()
    full = round(BAR_CELLS * rollout.weight_ppm / 1_000_000)
    state = str(rollout.state).replace("_", " ")
    good = rollout.state in GOOD
    colour = None if not rollout.state.finished else GREEN if good else RED
    return [
        [
            (f"{lane.endpoint:<10}", BOLD),
            (f"{lane.way:<11}", None),
            ("#" * full, GREEN),
            ("." * (BAR_CELLS - full), DIM),
            (f" {rollout.weight_ppm / 10_000:>3.0f}%  ", None),
            (f"{seen['answered']:>7,} answers  {seen['answered'] / max(seen['seconds'], 1):>4.0f}/s  ", None),
            (f"{seen['failed']:>4} failed  ", RED if seen["failed"] else None),
            (f"p99 {seen['latency_ms']['p99']:.0f} ms", DIM),
        ],
        [(f"{'':<10}", None), (f"{state:<11}", colour), (_thought(rollout), DIM)],
    ]


def _line(lane: Lane, rollout: Rollout, seconds: float) -> str:
    """Time, endpoint, way, share, callers of the candidate, those who had an error, and what is made of
    it."""
    counts = rollout.candidate_counts
    return (
        f"{seconds:5.1f}s  {lane.endpoint:<9}  {lane.way:<10}  {rollout.weight_ppm / 10_000:>4.0f}%  "
        f"{counts.new_callers:>7,}  {counts.callers_first_error:>6,}  {_thought(rollout)}"
    )


def _thought(rollout: Rollout) -> str:
    """What there is to say of a rollout as it stands."""
    match rollout.state:
        case RolloutState.PREPARING:
            return f"loading {rollout.candidate_semver}"
        case RolloutState.PREVIEWING:
            return f"{rollout.candidate_semver} stands under its preview address"
        case RolloutState.SHADOWING if rollout.pairs is not None:
            pairs = rollout.pairs
            return f"{pairs.pairs:,} copies compared, {pairs.disagreements:,} answers differ"
        case RolloutState.STEPPING if rollout.plan.strategy is Strategy.AB_TEST:
            so_far = report(rollout)
            return f"so far {so_far.winner} is shown to be better (confidence {so_far.confidence:.0%})"
        case RolloutState.STEPPING if rollout.judgement is not None and rollout.plan.strategy.proven:
            return f"{rollout.judgement.verdict}: {rollout.judgement.why.partition(': ')[0]}"
        case RolloutState.STEPPING:
            return "has all of the traffic; the former version stays loaded"
        case _:
            return (rollout.outcome or str(rollout.state).replace("_", " ")).partition(": ")[0]
