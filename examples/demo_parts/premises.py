"""Where the demo takes place: a temporary folder, free ports, and the processes that run beside the story.

Whatever is started here is stopped here, by its id, and the folder goes with it, unless it is to be kept. It
tells no story.
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

from demo_parts.narration import Broken
from demo_parts.shell import PROGRAMS, SCRATCH, environment

END_S = 60.0
"""How long a process may take to end when asked; then it is killed."""


class Program:
    """A process of the demo with everything it starts, and its log."""

    def __init__(self, name: str, words: Sequence[str], folder: Path) -> None:
        self.name = name
        self.log = folder / f"{name}.log"
        with self.log.open("wb") as log:
            # A session of its own, so that Ctrl-C reaches the story alone, which then ends all in order.
            self.process = subprocess.Popen(
                [str(PROGRAMS / words[0]), *words[1:]],
                cwd=folder,
                env=environment(folder),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    def last_words(self, lines: int = 12) -> str:
        """The end of its log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def until(self, so: Callable[[], bool], what: str, timeout_s: float = 120.0) -> None:
        """Wait for something while the process lives.

        Raises:
            Broken: it ended, or the time is over.
        """
        end = time.monotonic() + timeout_s
        while not so():
            if not self.running or time.monotonic() > end:
                how = "took too long" if self.running else f"ended with code {self.process.returncode}"
                raise Broken(f"{self.name} {how} before {what}; its last words:\n{self.last_words()}")
            time.sleep(0.05)

    def child(self, word: str) -> int:
        """The id of the process that it has started with this word on its command line.

        Raises:
            Broken: there is none.
        """
        for child in psutil.Process(self.process.pid).children():
            if word in child.cmdline():
                return child.pid
        raise Broken(f"{self.name} has no child called {word}.")

    def end(self) -> bool:
        """Ask it to end, and wait. Returns whether it and all it started ended by themselves."""
        polite = True
        if self.running:
            self.process.terminate()
            try:
                self.process.wait(END_S)
            except subprocess.TimeoutExpired:
                polite = False
        if self._group_lives():
            # The group is ours alone; workers may need a moment after the process that started them.
            end = time.monotonic() + END_S / 4
            while polite and self._group_lives() and time.monotonic() < end:
                time.sleep(0.05)
            polite = polite and not self._group_lives()
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        return polite

    def _group_lives(self) -> bool:
        try:
            os.killpg(self.process.pid, 0)
        except ProcessLookupError:
            return False
        return True


class Premises:
    """The demo's folder and programs. As a context it cleans up, however the story ends.

    Attributes:
        stubborn: afterwards, the names of the programs that had to be killed.
        last_words: afterwards, the ends of their logs, should the story have ended badly.
    """

    def __init__(self, *, keep: bool) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="modelkeep-demo-"))
        (self.folder / SCRATCH).mkdir()
        self.keep = keep
        self.stubborn: list[str] = []
        self.last_words = ""
        self._programs: list[Program] = []

    def start(self, name: str, words: Sequence[str]) -> Program:
        """Start a program that runs until it is ended."""
        program = Program(name, words, self.folder)
        self._programs.append(program)
        return program

    @property
    def how_to_stop(self) -> str:
        """What to type to end what is left running."""
        ids = " ".join(str(program.process.pid) for program in self._programs if program.running)
        return f"kill {ids}; sleep 5; rm -r {self.folder}" if ids else f"rm -r {self.folder}"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self.last_words = "\n".join(f"-- {p.name}.log ends:\n{p.last_words()}" for p in self._programs)
        if self.keep and not isinstance(error, KeyboardInterrupt):
            return
        self.stubborn = [program.name for program in reversed(self._programs) if not program.end()]
        shutil.rmtree(self.folder, ignore_errors=True)


class Traffic:
    """Callers from another process (examples/traffic.py), and what they have seen so far."""

    def __init__(
        self, premises: Premises, name: str, url: str, rows: Path, rate: int, rows_max: int = 40_000
    ) -> None:
        self._summary = premises.folder / f"callers-{name}.json"
        script = Path(__file__).resolve().parents[1] / "traffic.py"
        words = ["python", str(script), "--url", url, "--rows", str(rows), "--rate", str(rate)]
        words += ["--rows-max", str(rows_max), "--summary", str(self._summary)]
        self._program = premises.start(f"callers-{name}", words)
        self._program.until(self._summary.exists, "it asked anything")

    def seen(self) -> dict[str, Any]:
        """The summary as of now, at most half a second old.

        Raises:
            Broken: the callers are gone.
        """
        if not self._program.running:
            raise Broken(f"the traffic ended by itself; its last words:\n{self._program.last_words()}")
        summary: dict[str, Any] = json.loads(self._summary.read_text())
        return summary

    def end(self) -> dict[str, Any]:
        """End it. Returns everything it has seen."""
        self._program.end()
        summary: dict[str, Any] = json.loads(self._summary.read_text())
        return summary


def free_ports(count: int) -> list[int]:
    """Ports on which nobody listens now."""
    with contextlib.ExitStack() as held:
        probes = [held.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]


@contextlib.contextmanager
def frozen(pid: int) -> Iterator[None]:
    """Stop a process where it stands, as a machine that hangs would, for as long as the block lasts."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@contextlib.contextmanager
def polite_signals() -> Iterator[None]:
    """Make SIGTERM an exception, so that an ended demo cleans up as a finished one does."""

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
