"""The trainings of the demo: real scripts, two at a time, and the rows that live traffic will ask about.

It starts examples/flights/train.py as a person would and waits; what a training does stands there.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from demo_parts.narration import Broken
from demo_parts.shell import PROGRAMS, environment

EXAMPLES = Path(__file__).resolve().parents[1]
TERMINALS = (("baseline", "boosted"), ("hasty", "wide"))
"""The variants that examples/flights/train.py makes, side by side."""
TRAINING_S = 240.0
"""The longest that one training may take."""


def command(*variants: str) -> str:
    """What a person types to train variants, in a folder that has the examples beside it."""
    return f"python examples/flights/train.py --variant {' '.join(variants)} --out models"


def train(folder: Path, rows: Path) -> str:
    """Train all variants below `folder`/models, and write the rows of the traffic.

    Returns:
        What the trainings printed.

    Raises:
        Broken: one of them failed, with its last words.
    """
    (folder / "examples").symlink_to(EXAMPLES)
    with ThreadPoolExecutor(len(TERMINALS)) as pool:
        trainings = [pool.submit(_run, command(*some).split(), folder, folder) for some in TERMINALS]
        replay = pool.submit(_run, ["python", "-m", "demo_parts.training", str(rows)], folder, EXAMPLES)
        replay.result()
        return "".join(training.result() for training in trainings)


def _run(words: Sequence[str], folder: Path, where: Path) -> str:
    # Two processes share the machine, so each may have one thread for its arithmetic.
    own = environment(folder) | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    program = str(PROGRAMS / words[0])
    try:
        done = subprocess.run(
            [program, *words[1:]],
            cwd=where,
            env=own,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=TRAINING_S,
        )
    except subprocess.TimeoutExpired as problem:
        raise Broken(f"'{' '.join(words)}' did not end within {TRAINING_S:.0f} s.") from problem
    if done.returncode != 0:
        raise Broken(f"'{' '.join(words)}' failed: {done.stderr.strip()[-800:]}")
    return done.stdout


def write_rows(path: Path, count: int = 40_000) -> None:
    """Write the flights from April on as JSON lines with `key` and `inputs`."""
    sys.path.insert(0, str(EXAMPLES / "flights"))
    import data

    rows: list[dict[str, Any]] = data.load_replay(count)
    beside = path.with_suffix(f".{os.getpid()}")
    with beside.open("w", encoding="utf-8") as lines:
        for row in rows:
            lines.write(json.dumps({"key": row["key"], "inputs": row["inputs"]}) + "\n")
    beside.replace(path)


if __name__ == "__main__":
    write_rows(Path(sys.argv[1]))
