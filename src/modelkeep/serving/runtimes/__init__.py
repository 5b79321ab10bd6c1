"""What a runtime is, and which one loads which file. Each library of models is imported by its own file here
alone."""

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Protocol

import numpy as np

from modelkeep.core import errors
from modelkeep.core.mlmodel import MLMODEL
from modelkeep.core.routing import VersionSpec
from modelkeep.core.signature import Field
from modelkeep.serving.runtimes.mlflow_folder import read_folder
from modelkeep.serving.validation import Array, Columns

_BY_SUFFIX: Mapping[str, str] = {
    ".onnx": "onnx",
    ".skops": "skops",
    ".joblib": "joblib",
    ".pkl": "joblib",
    ".pickle": "joblib",
}


class Runtime(Protocol):
    """A loaded version. One thread uses it, one request at a time."""

    name: str

    def predict(self, columns: Columns) -> Columns:
        """Answer for every row.

        Raises:
            InvalidInput: the model cannot take such columns; the caller's fault.
            Exception: whatever the model raises; the version's fault.
        """


def load(spec: VersionSpec, files: Mapping[str, bytes], folder: Path, threads: int) -> Runtime:
    """Load a version from bytes that were checked against their digests.

    Raises:
        Invalid: no model among the files, or more than one to choose from.
        ExtraMissing: the library that it needs is not installed.
        NotAllowed: it contains types that are not trusted.
    """
    path, kind = choose(spec, files)
    try:
        match kind:
            case "onnx":
                from modelkeep.serving.runtimes import onnx

                return onnx.load(spec, files, folder, path, threads)
            case "skops" | "joblib":
                from modelkeep.serving.runtimes import sklearn

                return sklearn.load(spec, files, path, trusted=kind == "joblib")
            case _:
                raise errors.Invalid(f"No runtime is named {kind!r}; known are onnx, skops and joblib.")
    except ImportError as problem:
        extra = "onnx" if kind == "onnx" else "sklearn"
        raise errors.ExtraMissing(
            f"This gateway cannot load {kind} models ({problem}); install modelkeep[{extra}]."
        ) from problem


def choose(spec: VersionSpec, files: Mapping[str, bytes]) -> tuple[str, str]:
    """The model file of a version and the runtime for it: the one that an `MLmodel` file names, else the one
    with the ending of a model.

    Raises:
        Invalid: none, or more than one and none is called `model`.
    """
    folder = None
    if spec.runtime is None and MLMODEL in files:
        folder = read_folder(files[MLMODEL], {entry.path for entry in spec.files})
    if folder is not None and folder.path is not None and (kind := _kind(folder.path)) is not None:
        return folder.path, kind
    found = [(entry.path, kind) for entry in spec.files if (kind := _kind(entry.path)) is not None]
    if folder is not None and (folder.own_code or not found):
        raise folder.refusal(spec.label)
    if spec.runtime is not None:
        wanted = "joblib" if spec.runtime in ("sklearn", "pickle") else spec.runtime
        found = [item for item in found if item[1] == wanted] or found
    if len(found) > 1:
        named = [item for item in found if PurePosixPath(item[0]).stem == "model"]
        found = named[:1] or found
    if not found:
        raise errors.Invalid(f"{spec.label} holds no model file; register a .onnx, .skops or .joblib file.")
    if len(found) > 1:
        raise errors.Invalid(f"{spec.label} holds several model files; name the one to serve 'model'.")
    return found[0]


def _kind(path: str) -> str | None:
    return _BY_SUFFIX.get(PurePosixPath(path).suffix.lower())


def arrange(outputs: Columns, fields: Sequence[Field]) -> Columns:
    """Outputs under the names of the signature: by name where all are known, else by position when the counts
    agree.

    What does not fit either way stays as it is, and is found to be a violation by the check that follows.
    """
    if not fields:
        return outputs
    names = [field.name for field in fields]
    if all(name in outputs for name in names):
        return {name: _flat(field, outputs[name]) for name, field in zip(names, fields, strict=True)}
    if len(fields) <= len(outputs) and (len(fields) == len(outputs) or len(fields) == 1):
        return {
            field.name: _flat(field, array) for field, array in zip(fields, outputs.values(), strict=False)
        }
    return outputs


def _flat(field: Field, array: Array) -> Array:
    return array[:, 0] if not field.dimensions and array.ndim == 2 and array.shape[1] == 1 else array


def matrix(columns: Columns, dtype: str) -> Array:
    """All columns side by side, [rows, columns].

    Raises:
        InvalidInput: a column cannot be of that type.
    """
    arrays = list(columns.values())
    try:
        if len(arrays) == 1:
            only = arrays[0].astype(dtype, copy=False)
            return only if only.ndim > 1 else only.reshape(-1, 1)
        return np.column_stack([array.astype(dtype, copy=False) for array in arrays])
    except (TypeError, ValueError) as problem:
        raise errors.InvalidInput(
            f"The model takes numbers ({dtype}); a field holds something else."
        ) from problem
