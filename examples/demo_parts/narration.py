"""How the demo talks: chapters, typed commands with what they print, and claims that are checked.

It is plain text wherever the output is no terminal. It runs nothing and knows no model; a claim that does not
hold ends the story with `Broken`, and the story says which.
"""

import os
import sys
import textwrap
import time
from collections.abc import Iterable
from typing import TextIO

WIDTH = 100
"""Columns of running text."""
LINE_MAX = 120
"""Columns of what a command printed."""
BOLD, DIM, GREEN, RED, CYAN = "1", "2", "32", "31", "36"


class Broken(Exception):
    """Something was not what the story says; the text says what was expected and what was found."""


class Story:
    """Tells the demo to one stream, and remembers how many of its claims held."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._out = stream or sys.stdout
        self._colours = self._out.isatty() and "NO_COLOR" not in os.environ
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

    def failed(self, text: str) -> None:
        """The last words of a story that went wrong."""
        self._print("")
        self._print(self._paint(f"The demo stops here: {text}", RED))

    def _paint(self, text: str, code: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self._colours else text

    def _print(self, text: str) -> None:
        print(text, file=self._out, flush=True)
