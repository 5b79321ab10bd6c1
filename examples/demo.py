"""One model's whole life in three minutes: trained, registered, compared, approved, moved into production in
four ways under real traffic (canary, blue-green, shadow, A/B test), taken back when it is worse, and proven
afterwards. `make demo` runs it.

The acts stand in demo_parts/ (beginning, four_ways, taking_back, proof), each to be read from top to bottom.
Every command is run as a person would type it, and every claim (a line with a tick) is checked: the first
that does not hold ends the demo with exit code 1. On a terminal the rollouts are drawn live; in a pipe it is
a plain story. Everything lives in a temporary folder, on ports nobody uses, and is gone afterwards; KEEP=1
leaves it running.
"""

import os
import sys

from demo_parts import beginning, four_ways, proof, taking_back
from demo_parts.house import House
from demo_parts.narration import Broken, Story
from demo_parts.premises import Premises, polite_signals
from demo_parts.shell import PROGRAMS

from modelkeep import errors

CHAPTERS = (
    beginning.train,
    beginning.open_house,
    beginning.register,
    beginning.first_version,
    beginning.ask,
    four_ways.airports,
    four_ways.side_by_side,
    taking_back.worse_build,
    taking_back.roll_back,
    taking_back.without_control_plane,
    proof.look_back,
    proof.flip_a_byte,
    proof.close,
)

NEXT = """
What to try next:
  KEEP=1 make demo                 the same, and it stays up for you to look around
  python examples/quickstart.py    the same words from Python, against your own 'modelkeep up'
  docs/tutorial/first-model.md     the same by hand, one command at a time
  modelkeep --help                 everything else"""


def kept(house: House) -> str:
    """How to use and how to stop what was left running."""
    return f"""
It is still up. In a shell, as Ben:
  export MODELKEEP_URL={house.url} MODELKEEP_TOKEN={house.ben.token} PATH={PROGRAMS}:$PATH
  modelkeep history flights
To have callers again:
  cd {house.rows.parent}
  python examples/traffic.py --url {house.address("flights")} --rows {house.rows.name} --summary seen.json
To stop it, and to remove its folder:
  {house.premises.how_to_stop}"""


def main() -> int:
    """Tell the story. Returns the exit code: 0 when everything was as it says."""
    story = Story()
    story.title("Modelkeep: one model's whole life", ["Every line with a tick is checked as it is told."])
    premises = Premises(keep=bool(os.environ.get("KEEP")))
    try:
        with polite_signals(), premises:
            house = House(story, premises)
            for chapter in CHAPTERS:
                chapter(house)
        if premises.keep:
            story.lines(kept(house))
        else:
            gone = not premises.stubborn and not premises.folder.exists()
            story.claim("all it had started has ended, and its folder is gone", gone, premises.stubborn)
        story.lines(f"\n{story.claims} claims checked in {story.seconds:.0f} s.\n{NEXT}")
    except KeyboardInterrupt:
        story.failed("it was interrupted; all it had started has been ended.")
        return 130
    except (Broken, errors.ModelkeepError) as problem:
        story.failed(str(problem))
        story.lines(premises.last_words)
        if premises.keep:
            story.lines(f"\nTo stop what is still up, and to remove its folder:\n  {premises.how_to_stop}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
