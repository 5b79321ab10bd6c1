"""The demo's live view: drawn over itself on a terminal, told line by line in a pipe.

The rollouts and the callers are plain values here; the demo itself is run in tests/journeys/test_demo.py.
"""

import io
import re
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from msgspec import structs

from modelkeep.core.plan import PRESETS, Strategy
from modelkeep.core.rollout import Rollout, RolloutState
from modelkeep.core.routing import Epoch
from modelkeep.core.values import Actor, ActorKind, Digest, ModelName

pytestmark = pytest.mark.req("U4")

EXAMPLES = Path(__file__).parents[2] / "examples"
NOW = datetime(2026, 11, 21, tzinfo=UTC)


class Screen(io.StringIO):
    """A stream that may be a terminal."""

    def __init__(self, *, terminal: bool) -> None:
        super().__init__()
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal


class Registry:
    """Answers with one state of the rollout after another; the last one stays."""

    def __init__(self, states: list[Rollout]) -> None:
        self.states = states

    def get_rollout(self, rollout: str) -> Rollout:
        """The next state."""
        return self.states.pop(0) if len(self.states) > 1 else self.states[0]


@pytest.fixture
def demo(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The demo's modules, with a terminal of 80 columns and no waiting between two looks."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("LINES", "24")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    from demo_parts import narration, watching

    monkeypatch.setattr(watching, "LOOK_S", 0.0)
    yield SimpleNamespace(narration=narration, watching=watching)
    for name in [name for name in sys.modules if name.partition(".")[0] == "demo_parts"]:
        del sys.modules[name]


def rollout(**changes: Any) -> Rollout:
    """A blue-green rollout at its beginning, or later."""
    begun = Rollout(
        id="rol_1", endpoint="newark", model=ModelName("default", "newark"), stage="production", stable=1,
        stable_digest=Digest("sha256:" + "1" * 64), stable_semver="1.0.0", candidate=2,
        candidate_digest=Digest("sha256:" + "2" * 64), candidate_semver="2.0.0",
        plan=PRESETS[Strategy.BLUE_GREEN], salt="salt", epoch=Epoch(1, 1), started_at=NOW,
        started_by=Actor(kind=ActorKind.USER, name="ben"), reason="trees",
    )  # fmt: skip
    return structs.replace(begun, **changes)


STATES = [
    rollout(),
    rollout(state=RolloutState.PREVIEWING),
    rollout(state=RolloutState.STEPPING, weight_ppm=1_000_000),
    rollout(state=RolloutState.SUCCEEDED, weight_ppm=1_000_000, outcome="all steps passed", finished_at=NOW),
]


def watched(demo: Any, screen: Screen) -> tuple[Any, list[str]]:
    """A story in which one rollout was watched, and what was done when it waited for somebody."""
    story = demo.narration.Story(screen)
    seen = {"answered": 1234, "seconds": 10.0, "failed": 0, "latency_ms": {"p99": 12.3}}
    traffic = SimpleNamespace(seen=lambda: seen)
    lanes = [demo.watching.Lane("newark", "blue-green", "rol_1", traffic)]
    done: list[str] = []

    def look() -> None:
        done.append("looked")
        story.typed("ben", "modelkeep rollout advance newark")

    board = demo.watching.Board(story, Registry(list(STATES)), lanes)
    act = demo.watching.Act(lambda found: found.state is RolloutState.PREVIEWING, look)
    assert board.watch({"newark": act})["newark"].state is RolloutState.SUCCEEDED
    return story, done


def test_a_pipe_gets_a_plain_line_for_every_change(demo: Any) -> None:
    """One line for each state, in order, nothing of it drawn, and the waiting person is asked once."""
    screen = Screen(terminal=False)
    _, done = watched(demo, screen)
    text = screen.getvalue()

    assert "\x1b" not in text
    assert done == ["looked"]
    told = [line.split("  ")[-1] for line in text.splitlines() if "newark  " in line]
    assert told == [
        "loading 2.0.0",
        "2.0.0 stands under its preview address",
        "has all of the traffic; the former version stays loaded",
        "all steps passed",
    ]


def test_a_terminal_gets_a_view_that_is_drawn_over_itself(demo: Any) -> None:
    """What a terminal shows at the end is every line of the story once, and of the view its last state."""
    screen = Screen(terminal=True)
    story, _ = watched(demo, screen)
    story.claim("it goes on below", holds=True)
    lines = shown(screen.getvalue())

    assert [line for line in lines if "modelkeep rollout advance" in line] == lines[:1]
    assert sum("1,234 answers" in line for line in lines) == 1
    assert "succeeded" in lines[2]
    assert "#" * demo.watching.BAR_CELLS in lines[1]
    assert "it goes on below" in lines[3]
    assert max(map(len, lines)) < 80, "a line that wraps could not be drawn over"


def shown(text: str) -> list[str]:
    """What stands on a terminal after these bytes: colours away, and each "up n lines and clear" obeyed."""
    lines: list[str] = []
    for part in re.split(r"(\x1b\[\d+F\x1b\[J)", re.sub(r"\x1b\[\d+m", "", text)):
        if found := re.fullmatch(r"\x1b\[(\d+)F\x1b\[J", part):
            del lines[-int(found[1]) :]
        else:
            lines += part.splitlines()
    return lines
