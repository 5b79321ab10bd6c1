"""A class of somebody's own among the files of a version: `predictor.py` with a class `Predictor`.

    class Predictor:
        def __init__(self, folder):      # pathlib.Path of the version's files
            ...
        def predict(self, columns):      # {name: numpy array, rows first}
            return {"score": ...}        # the same; or one array

With `single = True` in the class its rows are never asked for together with those of other callers. The code
that runs is the code that was registered: it is compiled from bytes that were checked against their digest.
It runs in the version's own process, as everything that a worker loads, and only where the gateway allows
code.
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from modelkeep.core import errors
from modelkeep.core.routing import VersionSpec
from modelkeep.serving.runtimes import PREDICTOR, Runtime, arrange
from modelkeep.serving.validation import Array, Columns

CLASS = "Predictor"
_MODULE = "predictor"


class PredictorRuntime:
    """One object of that class."""

    name = "python"

    def __init__(self, predictor: Any, spec: VersionSpec) -> None:
        self._predictor = predictor
        self.single = bool(getattr(predictor, "single", False))
        self._fields = spec.signature.outputs if spec.signature is not None else ()

    def predict(self, columns: Columns) -> Columns:
        answer = self._predictor.predict(dict(columns))
        found = answer if isinstance(answer, Mapping) else {"prediction": answer}
        return arrange({str(name): _array(values) for name, values in found.items()}, self._fields)


def _array(values: Any) -> Array:
    array = np.asarray(values)
    return array.astype(object) if array.dtype.kind == "U" else array


def load(spec: VersionSpec, files: Mapping[str, bytes], folder: Path) -> Runtime:
    """Run the file and make an object of its class.

    Args:
        folder: where the checked files stand; modules among them can be imported.

    Raises:
        Invalid: it does not run, has no such class, or the class cannot be made or predicts nothing.
    """
    sys.path.append(str(folder))
    module = ModuleType(_MODULE)
    module.__file__ = str(folder / PREDICTOR)
    sys.modules[_MODULE] = module  # what it pickled of itself is found again
    try:
        exec(compile(files[PREDICTOR], module.__file__, "exec"), module.__dict__)
        made = getattr(module, CLASS)(folder) if hasattr(module, CLASS) else None
    except Exception as problem:
        text = f"{type(problem).__name__}: {str(problem)[:200]}"
        raise errors.Invalid(f"{PREDICTOR!r} of {spec.label} cannot be loaded: {text}.") from problem
    if not callable(getattr(made, "predict", None)):
        raise errors.Invalid(
            f"{PREDICTOR!r} of {spec.label} needs a class {CLASS} with a method predict(columns)."
        )
    return PredictorRuntime(made, spec)
