"""Models of any of MLflow's flavors, loaded by MLflow itself. They may bring code of their own, so they are
loaded only where the gateway allows that; MLflow has to be in the environment that the version runs in."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException

from modelkeep.core import errors
from modelkeep.core.routing import VersionSpec
from modelkeep.serving.runtimes import Runtime, arrange
from modelkeep.serving.validation import Array, Columns

_CALLERS_FAULT = frozenset({"BAD_REQUEST", "INVALID_PARAMETER_VALUE"})


class PyfuncRuntime:
    """One loaded folder."""

    name = "pyfunc"

    def __init__(self, model: Any, spec: VersionSpec) -> None:
        self._model = model
        self._fields = spec.signature.outputs if spec.signature is not None else ()
        schema = model.metadata.get_input_schema()
        self._tensors = schema is not None and schema.is_tensor_spec()
        self._names: list[str] = (
            list(schema.input_names()) if schema is not None and schema.has_input_names() else []
        )

    def predict(self, columns: Columns) -> Columns:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                answer = self._model.predict(self._given(columns))
            except MlflowException as problem:
                if problem.error_code in _CALLERS_FAULT:
                    raise errors.InvalidInput(str(problem.message)[:300]) from problem
                raise
        return arrange(_columns(answer), self._fields)

    def _given(self, columns: Columns) -> Any:
        """A table, or tensors where the model says that it takes those."""
        if self._tensors:
            return dict(columns) if self._names else next(iter(columns.values()))
        whole = columns.get("") if len(columns) == 1 else None
        if whole is not None:
            fits = whole.ndim == 2 and whole.shape[1] == len(self._names)
            return pd.DataFrame(whole, columns=self._names if fits else None)
        return pd.DataFrame(
            {name: array if array.ndim == 1 else list(array) for name, array in columns.items()}
        )


def _columns(answer: Any) -> Columns:
    if isinstance(answer, pd.DataFrame):
        return {str(name): _array(answer[name].to_numpy()) for name in answer.columns}
    if isinstance(answer, Mapping):
        return {str(name): _array(values) for name, values in answer.items()}
    return {"prediction": _array(answer)}


def _array(values: Any) -> Array:
    array = np.asarray(values)
    return array.astype(object) if array.dtype.kind == "U" else array


def load(spec: VersionSpec, files: Mapping[str, bytes], folder: Path) -> Runtime:
    """Load a folder.

    Args:
        folder: where the checked files stand.

    Raises:
        Invalid: MLflow cannot load it.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            model = mlflow.pyfunc.load_model(str(folder))
        except Exception as problem:
            text = f"{type(problem).__name__}: {str(problem)[:200]}"
            raise errors.Invalid(f"MLflow cannot load {spec.label}: {text}") from problem
    return PyfuncRuntime(model, spec)
