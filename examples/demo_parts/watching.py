"""A rollout as it happens: one line whenever something changed, or when nothing did for a while.

It asks the server what everybody may ask (`modelkeep rollout status` shows the same), and decides nothing.
"""

import time

from demo_parts.narration import Broken, Story
from modelkeep import Client
from modelkeep.core.rollout import Rollout, RolloutState

LOOK_S = 0.25
"""Between two looks."""
QUIET_S = 3.0
"""After this long without a change a line is shown all the same."""


def watch(story: Story, client: Client, rollout_id: str, *, timeout_s: float = 90.0) -> Rollout:
    """Show a rollout until it is finished.

    Raises:
        Broken: it takes longer than it may.
    """
    began = shown_at = time.monotonic()
    shown: tuple[object, ...] = ()
    story.row(f"{'time':>6}  {'share':>5}  {'callers':>7}  {'failed':>6}  what it makes of it")
    while True:
        rollout = client.get_rollout(rollout_id)
        now = time.monotonic()
        news = (rollout.state, rollout.step, rollout.judgement.verdict if rollout.judgement else None)
        if news != shown or now - shown_at > QUIET_S:
            story.row(line(rollout, now - began))
            shown, shown_at = news, now
        if rollout.state.finished:
            return rollout
        if now - began > timeout_s:
            why = rollout.held or "nothing holds it"
            raise Broken(f"The rollout is still {rollout.state} after {timeout_s:.0f} s: {why}.")
        time.sleep(LOOK_S)


def line(rollout: Rollout, seconds: float) -> str:
    """Time, share, callers of the candidate, those of them who had an error, and what is made of it."""
    counts = rollout.candidate_counts
    return (
        f"{seconds:5.1f}s  {rollout.weight_ppm / 10_000:>4.0f}%  {counts.new_callers:>7,}  "
        f"{counts.callers_first_error:>6,}  {_thought(rollout)}"
    )


def _thought(rollout: Rollout) -> str:
    if rollout.state is RolloutState.PREPARING:
        return f"loading {rollout.candidate_semver}"
    if rollout.state is not RolloutState.STEPPING or rollout.judgement is None:
        return str(rollout.state).replace("_", " ")
    return f"{rollout.judgement.verdict}: {rollout.judgement.why.partition(': ')[0]}"
