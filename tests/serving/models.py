"""Small real models for the gateway's tests: ONNX graphs, scikit-learn pipelines by skops and joblib, and a
few that misbehave on purpose."""

import hashlib
import io
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from modelkeep.core.catalog import FileEntry, make_manifest, manifest_digest
from modelkeep.core.routing import VersionSpec
from modelkeep.core.signature import DataType, Field, Signature

AGE_INCOME = (
    Field(name="age", type=DataType.FLOAT32, minimum=0, maximum=150),
    Field(name="income", type=DataType.FLOAT32, nullable=False),
)
SCORE = (Field(name="score", type=DataType.FLOAT32),)
SIGNATURE = Signature(inputs=AGE_INCOME, outputs=SCORE)


def spec(
    files: dict[str, bytes], semver: str, *, model: str = "churn", signature: Signature | None = SIGNATURE
) -> VersionSpec:
    """A version of these files."""
    manifest = make_manifest(
        FileEntry(path=path, size_bytes=len(data), digest=_digest(data)) for path, data in files.items()
    )
    return VersionSpec.of(
        model=model,
        number=int(semver.split(".", maxsplit=1)[0]),
        semver=semver,
        digest=manifest_digest(manifest),
        files=manifest.files,
        signature=signature,
    )


def blobs(files: dict[str, bytes]) -> dict[str, bytes]:
    """The files by digest."""
    return {_digest(data): data for data in files.values()}


def _digest(data: bytes) -> Any:
    return "sha256:" + hashlib.sha256(data).hexdigest()


@cache
def linear_onnx(slope: float = 1.0, rows: int | str = "n") -> bytes:
    """score = slope * age + income, as [n, 2] -> [n, 1]; `rows` fixes n."""
    from onnx import TensorProto, checker, helper, numpy_helper

    weights = numpy_helper.from_array(np.array([[slope], [1.0]], dtype=np.float32), "weights")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "weights"], ["score"])],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [rows, 2])],
        [helper.make_tensor_value_info("score", TensorProto.FLOAT, [rows, 1])],
        [weights],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    checker.check_model(model)
    return bytes(model.SerializeToString())


@cache
def classifier_skops() -> bytes:
    """A scaled logistic regression, fitted on a frame's column names, as skops."""
    import pandas as pd
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from skops import io as skops

    random = np.random.default_rng(7)
    frame = pd.DataFrame({"age": random.uniform(18, 90, 200), "income": random.normal(50, 10, 200)})
    model = make_pipeline(StandardScaler(), LogisticRegression()).fit(frame, frame["age"] > 50)
    return bytes(skops.dumps(model))


@cache
def classifier_onnx() -> bytes:
    """The same model, converted."""
    from skl2onnx import to_onnx
    from skops import io as skops

    data = classifier_skops()
    model = skops.loads(data, trusted=skops.get_untrusted_types(data=data))
    return bytes(to_onnx(model.steps[-1][1], np.zeros((1, 2), np.float32)).SerializeToString())


class _Evaluated:
    """Pickles as the value of an expression, so that a test model needs no importable module."""

    def __init__(self, expression: str) -> None:
        self.expression = expression

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return eval, (self.expression,)


def misbehaving(predict: str, on_load: str = "None") -> bytes:
    """A joblib file whose `predict` is the body of a lambda over `x` (an array of rows)."""
    import joblib

    expression = f"[{on_load}, type('Odd', (), {{'predict': lambda self, x: {predict}}})()][1]"
    buffer = io.BytesIO()
    joblib.dump(_Evaluated(expression), buffer)
    return buffer.getvalue()


class Gate:
    """Before a model that is `held_at` it: closed, it holds whoever the model computes for."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def close(self) -> None:
        """Hold the next call."""
        for name in ("open", "reached"):
            self._path.with_suffix(f".{name}").unlink(missing_ok=True)

    def reached(self) -> bool:
        """Whether a call is held, or was."""
        return self._path.with_suffix(".reached").exists()

    def open(self) -> None:
        """Let all go on."""
        self._path.with_suffix(".open").touch()


def held_at(gate: Path) -> str:
    """The body of a model that echoes a row, but waits at a gate with one that begins with a 1."""
    reached, opened = (str(gate.with_suffix(suffix)) for suffix in (".reached", ".open"))
    there, sleep = f"__import__('os').path.exists({opened!r})", "__import__('time').sleep(0.01)"
    wait = f"[open({reached!r}, 'w').close(), next(1 for _ in iter(int, 1) if {there} or {sleep})]"
    return f"[x[0, 0] == 1 and {wait}, {ECHO}][1]"


ECHO = "__import__('numpy').asarray(x, dtype='float32')[:, 0]"
"""Answers each row's first field."""
RAISES_ABOVE_100 = f"{ECHO} if (x[:, 0] <= 100).all() else [][1]"
DIES_ABOVE_100 = f"{ECHO} if (x[:, 0] <= 100).all() else __import__('os').kill(__import__('os').getpid(), 9)"
SLOW = f"[__import__('time').sleep(0.4), {ECHO}][1]"
HANGS_ABOVE_100 = f"{ECHO} if (x[:, 0] <= 100).all() else [__import__('time').sleep(60), {ECHO}][1]"
BREAKS_SIGNATURE = "__import__('numpy').array(['a'] * len(x))"
ODD_OUTPUT_ABOVE_100 = f"{ECHO} if (x[:, 0] <= 100).all() else {ECHO} * float('nan')"
