"""A runtime in another Python: what a test loads there answers through a pipe. So the suite of runtimes
covers libraries that the tests' own environment does not have."""

import contextlib
import pickle
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from modelkeep.core import errors
from modelkeep.core.signature import Signature
from modelkeep.serving.validation import Columns

HERE = Path(__file__).parents[2]
PROGRAM = """
import pickle, struct, sys
sys.path += sys.argv[1:]
from pathlib import Path
from modelkeep.core import errors
from modelkeep.serving import runtimes
from tests.serving import models
out, sys.stdout = sys.stdout.buffer, sys.stderr
while head := sys.stdin.buffer.read(8):
    word, given = pickle.loads(sys.stdin.buffer.read(struct.unpack("!Q", head)[0]))
    try:
        if word == "load":
            files, signature, folder, threads = given
            spec = models.spec(files, "1.0.0", signature=signature)
            loaded = runtimes.load(spec, files, Path(folder), threads, allow_code=True)
            answer = loaded.name
        elif word == "predict":
            answer = loaded.predict(given)
        else:
            scope = {}
            exec(given, scope)
            answer = scope["answer"]
        said = ("done", answer)
    except errors.ModelkeepError as problem:
        said = ("refused", (type(problem).__name__, problem.message))
    except Exception as problem:
        said = ("raised", repr(problem))
    data = pickle.dumps(said)
    out.write(struct.pack("!Q", len(data)) + data)
    out.flush()
"""


class Elsewhere:
    """One Python; it holds one loaded version at a time."""

    def __init__(self, python: Path) -> None:
        ours = [str(HERE / "src"), str(HERE), *(path for path in sys.path if "site-packages" in path)]
        self._process = subprocess.Popen(
            [python, "-P", "-W", "ignore", "-c", PROGRAM, *ours],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MLFLOW_DISABLE_TELEMETRY": "true"},
        )

    def _ask(self, word: str, given: Any) -> Any:
        data = pickle.dumps((word, given))
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(struct.pack("!Q", len(data)) + data)
        self._process.stdin.flush()
        (size,) = struct.unpack("!Q", self._process.stdout.read(8))
        outcome, answer = pickle.loads(self._process.stdout.read(size))
        if outcome == "refused":
            raise getattr(errors, answer[0])(answer[1])
        if outcome == "raised":
            raise RuntimeError(answer)
        return answer

    def run(self, program: str) -> Any:
        """What a program there gives the name `answer`."""
        return self._ask("run", program)

    def load(
        self, files: dict[str, bytes], signature: Signature | None, folder: Path, threads: int = 1
    ) -> "There":
        """Load a version there, in place of the former."""
        return There(self, self._ask("load", (files, signature, str(folder), threads)))

    def predict(self, columns: Columns) -> Columns:
        answer: Columns = self._ask("predict", columns)
        return answer

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(20)
        self._process.stdout.close()


class There:
    """The version that is loaded there, as a runtime."""

    def __init__(self, elsewhere: Elsewhere, name: str) -> None:
        self.name = name
        self._elsewhere = elsewhere

    def predict(self, columns: Columns) -> Columns:
        return self._elsewhere.predict(columns)


@contextlib.contextmanager
def python_at(python: Path) -> Iterator[Elsewhere]:
    """That Python, gone afterwards."""
    made = Elsewhere(python)
    try:
        yield made
    finally:
        made.close()
