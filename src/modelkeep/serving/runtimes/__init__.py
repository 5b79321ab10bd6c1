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
from modelkeep.serving.devices import Device
from modelkeep.serving.runtimes.mlflow_folder import read_folder
from modelkeep.serving.validation import Array, Columns, Table

PREDICTOR = "predictor.py"
"""A class of somebody's own, at the top of a version's files."""

_BY_SUFFIX: Mapping[str, str] = {
    ".onnx": "onnx",
    ".skops": "skops",
    ".joblib": "joblib",
    ".pkl": "joblib",
    ".pickle": "joblib",
    ".ubj": "xgboost",
    ".lgb": "lightgbm",
    ".pt2": "torch",
}
_OFTEN_WEIGHTS: Mapping[str, str] = {".pt": "torch", ".pth": "torch", ".ts": "torch"}
"""Endings of programs, and also of mere weights that something else reads: such a file is the model only
where there is no other."""
_BY_BEGINNING: Mapping[str, tuple[bytes, str]] = {
    ".json": (b'{"learner"', "xgboost"),
    ".txt": (b"tree\n", "lightgbm"),
}
"""Endings that say nothing by themselves, and how a model begins that has them."""
_EXTRAS: Mapping[str, str] = {"skops": "sklearn", "joblib": "sklearn"}
"""The extra of this package that brings a runtime's library, where it is not called like the runtime."""
_PROBABILITY = ("proba", "score")
_OWN_CODE = frozenset({"pyfunc", "python"})
"""Runtimes of code that a version may bring with it."""
_WITHOUT_EXTRA = frozenset({"pyfunc", "python", "torch"})
KINDS = ("onnx", "xgboost", "lightgbm", "torch", "skops", "joblib", "pyfunc", "python")
"""All runtimes, in the order in which they are liked where a version has the same model for several."""
_ON_CARDS = frozenset({"onnx", "torch", "xgboost"})
"""Kinds that can compute on a card."""
_CLASSIC = b"ai.onnx.ml"
"""The operators of trees, linear models and encoders, by the name that stands in a model: once where it says
what its operators may be, and once more at each that is one of these."""
SELF_CONTAINED = frozenset({"onnx"})
"""Kinds whose file is the whole model: what it was trained with does not change what it answers."""


class Runtime(Protocol):
    """A loaded version. One thread uses it, one call at a time, in which rows of several requests may stand
    below each other. One that cannot take that (its first axis is fixed, its rows know each other) says so by
    an attribute `single` that is true."""

    name: str

    def predict(self, columns: Columns) -> Columns:
        """Answer for every row.

        Raises:
            InvalidInput: the model cannot take such columns; the caller's fault.
            Exception: whatever the model raises; the version's fault.
        """


def load(
    spec: VersionSpec,
    files: Mapping[str, bytes],
    folder: Path,
    threads: int,
    *,
    allow_code: bool = False,
    device: Device = Device.CPU,
) -> Runtime:
    """Load a version from bytes that were checked against their digests.

    Args:
        folder: where the same files stand.
        threads: that one prediction may use.
        allow_code: whether a version may bring Python code of its own.
        device: what it computes on, if it is not `left_on_cpu`: the processor, or the first card that the
            process sees.

    Raises:
        WorkerUnavailable: it cannot compute on a card in this process.
        Invalid: no model among the files, or more than one to choose from.
        ExtraMissing: the library that it needs is not installed.
        NotAllowed: it contains types that are not trusted, or code where none is allowed.
    """
    path, kind = choose(spec, files)
    if kind in _OWN_CODE and not allow_code:
        raise errors.NotAllowed(
            f"{spec.label} brings Python code of its own, which this gateway does not run; start it with "
            "--allow-code, or register the model in a form that is data, such as ONNX."
        )
    try:
        return _load(kind, spec, files, folder, path, threads, device)
    except ImportError as problem:
        raise errors.ExtraMissing(_what_to_install(kind, problem)) from problem


def _load(
    kind: str,
    spec: VersionSpec,
    files: Mapping[str, bytes],
    folder: Path,
    path: str,
    threads: int,
    device: Device,
) -> Runtime:
    match kind:
        case "onnx":
            from modelkeep.serving.runtimes import onnx

            return onnx.load(spec, files, folder, path, threads, device)
        case "skops" | "joblib":
            from modelkeep.serving.runtimes import sklearn

            return sklearn.load(spec, files, path, trusted=kind == "joblib")
        case "xgboost":
            from modelkeep.serving.runtimes import xgboost

            return xgboost.load(spec, files, path, threads, device)
        case "lightgbm":
            from modelkeep.serving.runtimes import lightgbm

            return lightgbm.load(spec, files, path, threads)
        case "torch":
            from modelkeep.serving.runtimes import torch

            return torch.load(spec, files, path, threads, device)
        case "pyfunc":
            from modelkeep.serving.runtimes import pyfunc

            return pyfunc.load(spec, files, folder)
        case "python":
            from modelkeep.serving.runtimes import predictor

            return predictor.load(spec, files, folder)
        case _:
            raise errors.Invalid(f"No runtime is named {kind!r}; known are {', '.join(KINDS)}.")


def left_on_cpu(spec: VersionSpec, files: Mapping[str, bytes]) -> str | None:
    """Why a version computes on the processor also where there is a card; None where it need not.

    Raises:
        Invalid: as `choose`.
    """
    path, kind = choose(spec, files)
    if kind == "onnx" and files[path].count(_CLASSIC) > 1:
        return "ONNX Runtime computes trees, linear models and encoders on the processor."
    if kind in _ON_CARDS or kind in _OWN_CODE:
        return None
    return f"{'LightGBM' if kind == 'lightgbm' else 'scikit-learn'} computes on the processor here."


def said_of_card(spec: VersionSpec, files: Mapping[str, bytes]) -> str:
    """What there is to say of a version that has a card.

    Raises:
        Invalid: as `choose`.
    """
    own = choose(spec, files)[1] in _OWN_CODE
    return "Whether it computes on the card that it has is its own code's business." if own else ""


def no_card(library: str, why: str) -> errors.WorkerUnavailable:
    """That a library cannot compute on a card in this process."""
    return errors.WorkerUnavailable(f"{library} cannot compute on a card here: {why}")


def _what_to_install(kind: str, problem: ImportError) -> str:
    if kind in _WITHOUT_EXTRA:
        return (
            f"The environment of this {kind} model has not all that it imports ({problem}); list its "
            "packages in its requirements.txt and start the gateway with --environments locked."
        )
    return (
        f"This gateway cannot load {kind} models ({problem}); install modelkeep[{_EXTRAS.get(kind, kind)}]."
    )


def choose(spec: VersionSpec, files: Mapping[str, bytes]) -> tuple[str, str]:
    """The model file of a version and the runtime for it: a class of somebody's own where there is one, else
    the file that an `MLmodel` file names, else the one with the ending of a model. Where the same model is
    there as ONNX too, that.

    Args:
        files: contents by path; of files that are not there the ending alone counts.

    Raises:
        Invalid: none, or more than one and none is called `model`.
    """
    paths = {entry.path for entry in spec.files}
    if PREDICTOR in paths and spec.runtime in (None, "python"):
        return PREDICTOR, "python"
    folder = None
    if spec.runtime is None and MLMODEL in files:
        folder = read_folder(files[MLMODEL], paths)
    if folder is not None and folder.path is not None:
        converted = str(PurePosixPath(folder.path).with_suffix(".onnx"))
        if converted in paths:
            return converted, "onnx"
        if (kind := folder.kind or _kind(folder.path, files)) is not None:
            return folder.path, kind
    found = [(entry.path, kind) for entry in spec.files if (kind := _kind(entry.path, files)) is not None]
    if folder is not None and (folder.own_code or not found):
        if not folder.generic:
            raise folder.refusal(spec.label)
        return MLMODEL, "pyfunc"
    found = found or [
        (entry.path, kind)
        for entry in spec.files
        if (kind := _OFTEN_WEIGHTS.get(PurePosixPath(entry.path).suffix.lower())) is not None
    ]
    if spec.runtime is not None:
        wanted = ("joblib", "skops") if spec.runtime in ("sklearn", "pickle") else (spec.runtime,)
        found = [item for item in found if item[1] in wanted] or found
    return _the_one(spec, found)


def _the_one(spec: VersionSpec, found: list[tuple[str, str]]) -> tuple[str, str]:
    if len(found) > 1:
        named = [item for item in found if PurePosixPath(item[0]).stem == "model"]
        found = named or found
        if named or len({str(PurePosixPath(path).with_suffix("")) for path, _ in found}) == 1:
            return min(found, key=lambda item: KINDS.index(item[1]))
    if not found:
        raise errors.Invalid(
            f"{spec.label} holds no model file; register one of {', '.join(sorted({*_BY_SUFFIX, '.pt'}))}, "
            f"or a class of your own in {PREDICTOR}."
        )
    if len(found) > 1:
        raise errors.Invalid(f"{spec.label} holds several model files; name the one to serve 'model'.")
    return found[0]


def _kind(path: str, files: Mapping[str, bytes]) -> str | None:
    suffix = PurePosixPath(path).suffix.lower()
    beginning, kind = _BY_BEGINNING.get(suffix, (b"", None))
    if kind is not None:
        return kind if files.get(path, b"").startswith(beginning) else None
    return _BY_SUFFIX.get(suffix)


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


def asks_for_probability(name: str) -> bool:
    """Whether an output of this name is a classifier's probability, and not the class that it decides on."""
    return any(word in name.lower() for word in _PROBABILITY)


def _flat(field: Field, array: Array) -> Array:
    return array[:, 0] if not field.dimensions and array.ndim == 2 and array.shape[1] == 1 else array


def matrix(columns: Columns, dtype: str) -> Array:
    """All columns side by side, [rows, columns].

    Raises:
        InvalidInput: a column cannot be of that type.
    """
    if isinstance(columns, Table):
        return columns.matrix.astype(dtype, copy=False)
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
