"""LightGBM models, from the library's own text: data, and no code.

Columns that were categories when the model was trained are known by their place among the columns of text; a
category that the model has not seen counts as missing, as in LightGBM.
"""

from collections.abc import Mapping
from typing import Any

import lightgbm
import numpy as np

from modelkeep.core import errors
from modelkeep.core.routing import VersionSpec
from modelkeep.serving.runtimes import Runtime, matrix, rows
from modelkeep.serving.validation import Array, Columns

_END = "\nend of trees"
"""Stands behind the last tree. Without it the file was cut off, and reading it ends LightGBM's process."""


class LightgbmRuntime:
    """One booster."""

    name = "lightgbm"

    def __init__(self, booster: Any, objective: str, spec: VersionSpec, threads: int) -> None:
        self._booster = booster
        self._threads = threads
        self._fields = spec.signature.outputs if spec.signature is not None else ()
        self._ordered = bool(spec.signature is not None and spec.signature.inputs)
        self._names = booster.feature_name()
        self._width = booster.num_feature()
        per_row = booster.num_model_per_iteration()
        multiclass = objective in ("multiclass", "multiclassova")
        self._classes = per_row if multiclass else 2 * (objective in ("binary", "cross_entropy"))
        self._categories = [
            {value: float(code) for code, value in enumerate(known)}
            for known in booster.pandas_categorical or ()
        ]

    def predict(self, columns: Columns) -> Columns:
        columns = rows.in_order(columns, self._names, self._width, ordered=self._ordered)
        table = matrix(self._coded(columns), "float64")
        answers = self._booster.predict(table, num_threads=self._threads)
        return rows.outputs(np.asarray(answers), self._fields, classes=self._classes, decides=False)

    def _coded(self, columns: Columns) -> Columns:
        """Text as the numbers that the model knows its categories by."""
        text = [name for name, array in columns.items() if array.dtype.kind == "O"]
        if not self._categories or len(text) != len(self._categories):
            return columns
        coded = dict(columns)
        for name, known in zip(text, self._categories, strict=True):
            coded[name] = _codes(columns[name], known)
        return coded


def _codes(array: Array, known: Mapping[Any, float]) -> Array:
    return np.array([known.get(value, np.nan) for value in array.tolist()], dtype="float64")


def load(spec: VersionSpec, files: Mapping[str, bytes], path: str, threads: int) -> Runtime:
    """Load a booster.

    Raises:
        Invalid: LightGBM cannot read it.
    """
    text = files[path].decode("utf-8", "replace")
    if _END not in text:
        raise errors.Invalid(f"{path!r} of {spec.label} is no whole LightGBM model; save it with save_model.")
    try:
        booster = lightgbm.Booster(model_str=text)
    except lightgbm.basic.LightGBMError as problem:
        raise errors.Invalid(
            f"LightGBM cannot load {path!r} of {spec.label}: {str(problem)[:200]}"
        ) from problem
    stated = next((line for line in text.splitlines() if line.startswith("objective=")), "objective=")
    objective = stated.removeprefix("objective=").partition(" ")[0]
    return LightgbmRuntime(booster, objective, spec, threads)
