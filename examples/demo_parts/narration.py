"""How the demo talks: chapters, typed commands with what they print, claims that are checked, and, on a
terminal, a view at the foot that is drawn over itself.

It is plain text wherever the output is no terminal. It runs nothing and knows no model; a claim that does not
hold ends the story with `Broken`, and the story says which.
"""

import os
import shutil
import sys
import textwrap
import time
from collections.abc import Iterable, Sequence
from typing import TextIO

WIDTH = 100
"""Columns of running text."""
LINE_MAX = 120
"""Columns of what a command printed."""
BOLD, DIM, GREEN, RED, CYAN = "1", "2", "32", "31", "36"
Piece = tuple[str, str | None]
"""A piece of a line, and its colour."""


class Broken(Exception):
    """Something was not what the story says; the text says what was expected and what was found."""


class Story:
    """Tells the demo to one stream, and remembers how many of its claims held."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._out = stream or sys.stdout
        self.live = self._out.isatty() and os.environ.get("TERM", "dumb") != "dumb"
        """Whether a view can be drawn over itself."""
        self._colours = self._out.isatty() and "NO_COLOR" not in os.environ
        self._view: list[str] = []
        self._began = time.monotonic()
        self._chapters = 0
        self.claims = 0
        encoding = (self._out.encoding or "ascii").lower()
        self._tick, self._more = ("✓", "…") if "utf" in encoding else ("ok", "~")

    @property
    def seconds(self) -> float:
        """Since the story began."""
        return time.monotonic() - self._began

    def title(self, text: str, lines: Iterable[str]) -> None:
        """The first words."""
        self._print(self._paint(text, BOLD))
        for line in lines:
            self._print(line)

    def chapter(self, heading: str, sentence: str) -> None:
        """Begin a chapter: what happens next, and one sentence of why."""
        self._chapters += 1
        clock = f"{int(self.seconds) // 60}:{int(self.seconds) % 60:02d}"
        line = f"{self._chapters}. {heading} "
        self._print("")
        self._print(self._paint(f"{line}{'-' * max(3, WIDTH - len(line) - len(clock) - 1)} {clock}", BOLD))
        self.say(sentence)

    def say(self, text: str) -> None:
        """A paragraph."""
        self._print(textwrap.fill(text, WIDTH))

    def lines(self, text: str) -> None:
        """Several lines, as they are."""
        self._print(text)

    def typed(self, who: str, line: str) -> None:
        """A command as a person types it."""
        self._print(f"  {self._paint(who, CYAN)} {self._paint('$ ' + line, BOLD)}")

    def printed(self, text: str, *, lines_max: int = 40) -> None:
        """What a command printed; a long text is cut, and says so."""
        lines = text.rstrip().splitlines()
        for line in lines[:lines_max]:
            for part in self._fitting(line.rstrip()):
                self._print(f"      {part}")
        if len(lines) > lines_max:
            self._print(self._paint(f"      ... and {len(lines) - lines_max} lines more", DIM))

    def _fitting(self, line: str) -> list[str]:
        """A line of a table is cut; a sentence goes on below, a little further in."""
        if len(line) <= LINE_MAX:
            return [line]
        if "  " in line.strip():
            return [line[: LINE_MAX - 1] + self._more]
        indent = line[: len(line) - len(line.lstrip())]
        return textwrap.wrap(line.strip(), LINE_MAX, initial_indent=indent, subsequent_indent=f"{indent}  ")

    def row(self, text: str) -> None:
        """A line of something that goes on."""
        self._print(f"      {text}")

    def claim(self, text: str, holds: bool, found: object = "") -> None:
        """Say something that must be true.

        Raises:
            Broken: it is not.
        """
        if not holds:
            raise Broken(f"{text}: this does not hold" + (f"; found {found}" if str(found) else "."))
        self.claims += 1
        filled = textwrap.fill(text, WIDTH - 4, subsequent_indent="    ")
        self._print(f"  {self._paint(self._tick, GREEN)} {filled}")

    def draw(self, lines: Sequence[Sequence[Piece]]) -> None:
        """Draw the view at the foot of the story, over the one that was there. What is told meanwhile comes
        above it.
        """
        width, height = shutil.get_terminal_size()
        self._out.write(self._erasing())
        self._view = [self._fitted(pieces, width - 1) for pieces in lines[: height - 1]]
        self._out.write("".join(f"{line}\n" for line in self._view))
        self._out.flush()

    def settle(self) -> None:
        """Leave the view as it is, as a part of the story."""
        self._view = []

    def _erasing(self) -> str:
        """Up to where the view begins, and everything below away."""
        return f"\x1b[{len(self._view)}F\x1b[J" if self._view else ""

    def _fitted(self, pieces: Sequence[Piece], width: int) -> str:
        """A line no longer than the terminal is wide: one that wrapped could not be drawn over."""
        line, left = "", width
        for text, colour in pieces:
            shown = text[:left]
            line += self._paint(shown, colour) if colour and shown else shown
            left -= len(shown)
        return line

    def failed(self, text: str) -> None:
        """The last words of a story that went wrong."""
        self.settle()
        self._print("")
        self._print(self._paint(f"The demo stops here: {text}", RED))

    def _paint(self, text: str, code: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self._colours else text

    def _print(self, text: str) -> None:
        view = "".join(f"{line}\n" for line in self._view)
        self._out.write(f"{self._erasing()}{text}\n{view}")
        self._out.flush()
