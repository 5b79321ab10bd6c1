"""Servers and gateways as separate processes, as they run beyond one machine: `modelkeep server` and
`modelkeep gateway`, each with a folder of its own, told everything by its environment.

They are started, killed and started again at the same address; whoever uses them sees to the database and the
bucket behind them.
"""

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from modelkeep import Client
from tests.journeys.houses import MODELKEEP, STOP_S


def until(so: Callable[[], Any], what: str, timeout_s: float = 60.0) -> Any:
    """Wait for something, and give it back."""
    end = time.monotonic() + timeout_s
    while not (found := so()):
        assert time.monotonic() < end, f"not within {timeout_s:g} s: {what}"
        time.sleep(0.05)
    return found


class Apart:
    """One command that runs until it is told to stop.

    Attributes:
        folder: its data; it has no other place.
        url: where it listens, the same in every life.
        said: what it printed when it was ready.
    """

    def __init__(self, folder: Path, words: list[str], told: Mapping[str, str]) -> None:
        self.folder = folder
        self.url = ""
        self.said: list[str] = []
        self._words = words
        self._told = dict(told)
        self._log = folder.with_suffix(".log")
        self._process: subprocess.Popen[str] | None = None

    def start(self, *, lines: int = 1) -> Self:
        """Start it, and wait until it has said so many lines.

        Raises:
            AssertionError: it ended before; the message has the end of its log.
        """
        port = self.url.rpartition(":")[2] or "0"
        own = {name: text for name, text in os.environ.items() if not name.startswith("MODELKEEP_")}
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [MODELKEEP, *self._words, "--data", str(self.folder), "--port", port],
                env=own | self._told,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert self._process.stdout is not None
        self.said = [self._process.stdout.readline().strip() for _ in range(lines)]
        if not self.said[-1]:
            self.kill()
            raise AssertionError(f"{self._words} did not start:\n{self.log()}")
        self.url = next(word.rstrip(",") for word in self.said[0].split() if word.startswith("http://"))
        return self

    def log(self) -> str:
        """What it has logged in all its lives, the end of it."""
        return self._log.read_text(errors="replace")[-4_000:]

    def kill(self) -> None:
        """End it as a crash does."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """End it as a person does, and see that it ends."""
        self._end(signal.SIGTERM)

    def _end(self, sig: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdout is not None
        process.send_signal(sig)
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise
        finally:
            process.stdout.close()


class Site:
    """Everything that runs for one installation, in a folder with a short name; gone when its block ends.

    Attributes:
        folder: the parent of every process's own folder.
        admin_token: the first admin's, told by the first server.
    """

    def __init__(self, told: Mapping[str, str]) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="mk-"))
        self.admin_token = ""
        self._told = dict(told)
        self._apart: list[Apart] = []
        self._clients: list[Client] = []

    def server(self, name: str, **told: str) -> Apart:
        """A control plane; the first one is asked for the admin's token."""
        lines = 1 if self.admin_token else 3
        words = ["server", "--auth", "token"]
        started = self._start(name, words, self._told | told, lines)
        if not self.admin_token:
            self.admin_token = started.said[2]
        return started

    def gateway(self, name: str, server: Apart, token: str) -> Apart:
        """A data plane that knows an address and a token, and nothing of database or bucket."""
        file = self.folder / f"{name}.token"
        file.write_text(token)
        return self._start(name, ["gateway", "--token-file", str(file)], {"MODELKEEP_URL": server.url}, 1)

    def _start(self, name: str, words: list[str], told: Mapping[str, str], lines: int) -> Apart:
        apart = Apart(self.folder / name, words, told)
        self._apart.append(apart)
        return apart.start(lines=lines)

    def client(self, server: Apart, token: str | None = None) -> Client:
        """A client of somebody; the admin's when no token is given."""
        made = Client(server.url, token or self.admin_token)
        self._clients.append(made)
        return made

    def run(self, server: Apart, *words: str, token: str | None = None) -> subprocess.CompletedProcess[str]:
        """The command line, as somebody; the admin when no token is given."""
        own = dict(os.environ) | {"MODELKEEP_URL": server.url, "MODELKEEP_TOKEN": token or self.admin_token}
        return subprocess.run(
            [MODELKEEP, *words], env=own, capture_output=True, text=True, check=False, timeout=120
        )

    def logs(self) -> str:
        """The ends of all logs."""
        return "\n".join(f"--- {apart.folder.name}\n{apart.log()}" for apart in self._apart)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            error.add_note(self.logs())
        for client in self._clients:
            client.close()
        try:
            for apart in reversed(self._apart):
                apart.stop()
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)
