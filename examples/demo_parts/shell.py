"""Commands as people type them: who types, where, and what came of it.

Each is a real process with the person's own token in its environment. Nothing is parsed here; whoever wants
to know a fact asks the server.
"""

import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from demo_parts.narration import Broken, Story

COMMAND_S = 240.0
"""The longest that any command of the story may take."""
SCRATCH = "tmp"
"""In the demo's folder: where temporary files go."""
PROGRAMS = Path(sys.executable).parent
"""Where `modelkeep` and `python` stand: beside the Python that runs the demo."""


@dataclass(frozen=True)
class Person:
    """Somebody at a keyboard."""

    name: str
    token: str | None


@dataclass(frozen=True)
class Ran:
    """A command that has ended."""

    code: int
    out: str
    err: str


def environment(folder: Path, url: str | None = None, token: str | None = None) -> dict[str, str]:
    """The variables of a shell in which Modelkeep is set up, and no others of its own.

    Args:
        folder: the demo's; libraries that leave files in the temporary folder find one in there.
    """
    own = {name: value for name, value in os.environ.items() if not name.startswith("MODELKEEP_")}
    own["TMPDIR"] = str(folder / SCRATCH)
    own["ORT_DISABLE_TELEMETRY"] = "1"  # ONNX Runtime would keep notes of what it does in the home folder
    own["PATH"] = f"{PROGRAMS}{os.pathsep}{own.get('PATH', os.defpath)}"
    if url is not None:
        own["MODELKEEP_URL"] = url
    if token is not None:
        own["MODELKEEP_TOKEN"] = token
    return own


class Shell:
    """A terminal in the demo's folder."""

    def __init__(self, story: Story, folder: Path) -> None:
        self._story = story
        self._folder = folder
        self.url: str | None = None

    def type(self, who: Person, line: str, *, code: int = 0, lines_max: int = 40, quiet: bool = False) -> Ran:
        """Type a command, show it and what it prints, and insist on its exit code.

        Args:
            quiet: show the command, and not what it prints.

        Raises:
            Broken: it ended otherwise.
        """
        self._story.typed(who.name, line)
        ran = self.run(who, line)
        if not quiet:
            self._story.printed(ran.out + ran.err, lines_max=lines_max)
        return _checked(line, ran, code)

    def type_together(self, terminals: Sequence[Sequence[tuple[Person, str]]]) -> None:
        """Type at several terminals at a time, at each one line after the other; show the lines, not what
        they print.

        Raises:
            Broken: one of them failed; nothing more is typed at its terminal.
        """
        for terminal in terminals:
            for who, line in terminal:
                self._story.typed(who.name, line)

        def at(terminal: Sequence[tuple[Person, str]]) -> None:
            for who, line in terminal:
                _checked(line, self.run(who, line), 0)

        with ThreadPoolExecutor(len(terminals)) as pool:
            for done in [pool.submit(at, terminal) for terminal in terminals]:
                done.result()

    def run(self, who: Person, line: str) -> Ran:
        """Run a command without a word.

        Raises:
            Broken: it takes for ever, or there is no such command.
        """
        name, *words = shlex.split(line)
        try:
            done = subprocess.run(
                [str(PROGRAMS / name), *words],
                cwd=self._folder,
                env=environment(self._folder, self.url, who.token),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=False,
                timeout=COMMAND_S,
            )
        except subprocess.TimeoutExpired as problem:
            raise Broken(f"'{line}' did not end within {COMMAND_S:.0f} s.") from problem
        except OSError as problem:
            raise Broken(
                f"'{name}' cannot be run: {problem.strerror}; did 'make setup' end well?"
            ) from problem
        return Ran(done.returncode, done.stdout, done.stderr)


def _checked(line: str, ran: Ran, code: int) -> Ran:
    if ran.code != code:
        said = (ran.err or ran.out).strip()
        raise Broken(f"'{line}' ended with code {ran.code} and not {code}; it said: {said[-500:]}")
    return ran
