"""scikit-learn models: skops files with an allow-list of types, joblib files only from this registry.

A skops file is read without running anything until every type in it is known to be harmless: those that skops
itself trusts, and classes of scikit-learn and numpy. A joblib or pickle file runs code when it is loaded; it
is accepted because its bytes are, digest for digest, what an authorised person registered, and it runs in a
worker process of its own.
"""

import importlib
import io
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from modelkeep.core import errors
from modelkeep.core.routing import VersionSpec
from modelkeep.serving.runtimes import Runtime, arrange, asks_for_probability, matrix, sklearn_direct
from modelkeep.serving.validation import Array, Columns, Table

_TRUSTED_ROOTS = frozenset({"sklearn", "numpy"})
_WHOLE, _BY_COLUMN = 0, 1
"""In which form the library would get a frame: its columns may lie otherwise in memory."""


class SklearnRuntime:
    """One fitted estimator or pipeline."""

    name = "sklearn"

    def __init__(self, model: Any, spec: VersionSpec) -> None:
        self._model = model
        self._fields = spec.signature.outputs if spec.signature is not None else ()
        names = getattr(model, "feature_names_in_", None)
        self._names: list[str] | None = None if names is None else [str(name) for name in names]
        self._width: int | None = getattr(model, "n_features_in_", None)
        _one_thread(model)
        self._frame: Any = None
        if self._names is not None:
            try:
                import pandas as pd
            except ImportError:
                pass
            else:
                self._frame = partial(pd.DataFrame, columns=pd.Index(self._names))
        self._direct = sklearn_direct.direct(model, self._forms())
        classifies = hasattr(model, "predict_proba")
        self._asked = [(field, classifies and asks_for_probability(field.name)) for field in self._fields]
        """Each output, and whether it is a probability."""

    @property
    def model(self) -> Any:
        """What was fitted, for who converts it."""
        return self._model

    def predict(self, columns: Columns) -> Columns:
        columns = self._in_order(columns)
        matrix = self._numbers(columns)
        if matrix is not None:
            return arrange(self._outputs(self._direct, matrix), self._fields)
        table = self._table(columns)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return arrange(self._outputs(self._model, table), self._fields)

    def _forms(self) -> tuple[sklearn_direct.Form, ...]:
        """How the library is handed rows of numbers, as `_table` does: whole, and column by column."""
        names, frame = self._names, self._frame
        if frame is None or names is None:
            return (np.asarray,)
        return frame, lambda rows: frame(dict(zip(names, rows.T, strict=True)))

    def _numbers(self, columns: Columns) -> Array | None:
        """The rows for the direct way; None where there is none, or these are not its rows."""
        if self._direct is None:
            return None
        form = _WHOLE
        if isinstance(columns, Table):
            found = columns.matrix
            form = _WHOLE if columns.names == self._names else _BY_COLUMN
        elif len(columns) == 1:
            found = next(iter(columns.values()))
        elif all(array.ndim == 1 for array in columns.values()):
            found, form = np.stack(list(columns.values())).T, _BY_COLUMN
        else:
            return None
        if found.ndim != 2 or found.dtype.kind not in "fi" or found.shape[1] != self._width:
            return None
        if self._frame is None:  # what was not fitted on a frame gets doubles
            return self._direct.taken(found.astype("float64", copy=False))
        return self._direct.taken(found, form)

    def _outputs(self, model: Any, table: Any) -> Columns:
        """`predict` for every output, but `predict_proba` for those that are called a probability or a score:
        the positive class of two, or one value per class where the field has a shape."""
        outputs: dict[str, Array] = {}
        for field, probability in self._asked:
            if probability:
                probabilities = np.asarray(model.predict_proba(table))
                binary = not field.dimensions and probabilities.ndim == 2 and probabilities.shape[1] == 2
                outputs[field.name] = probabilities[:, 1] if binary else probabilities
            else:
                outputs[field.name] = _plain(model.predict(table))
        return outputs or {"prediction": _plain(model.predict(table))}

    def _in_order(self, columns: Columns) -> Columns:
        """The columns by the names that the model was fitted on, in its order, where all of them are
        there."""
        names = self._names
        if names is None or _names_of(columns) == names or not set(names) <= set(columns):
            return columns
        return {name: columns[name] for name in names}

    def _table(self, columns: Columns) -> Any:
        names = self._names
        whole = columns.get("") if len(columns) == 1 else None
        if (
            whole is not None
            and self._width is not None
            and (whole.ndim != 2 or whole.shape[1] != self._width)
        ):
            raise errors.InvalidInput(f"The model takes rows of {self._width} values.")
        if names is not None and whole is None and list(columns) == names:
            whole = columns.matrix if isinstance(columns, Table) else None
        elif names is not None and whole is None and len(columns) == 1:
            whole = next(iter(columns.values()))
        elif names is not None and whole is None and len(columns) != len(names):
            missing = next(name for name in names if name not in columns)
            raise errors.InvalidInput(f"The model needs the field {missing!r}.", field=missing)
        if self._frame is not None and names is not None:
            if whole is not None:
                return self._frame(whole)
            return self._frame(dict(zip(names, columns.values(), strict=True)))
        numeric = all(array.dtype.kind in "biuf" for array in columns.values())
        table = matrix(columns, "float64" if numeric else "object")
        if self._width is not None and table.shape[1] != self._width:
            raise errors.InvalidInput(f"The model takes {self._width} fields, not {table.shape[1]}.")
        return table


def _names_of(columns: Columns) -> Sequence[str]:
    return columns.names if isinstance(columns, Table) else list(columns)


def _one_thread(model: Any) -> None:
    """A worker is one of several processes on its machine, and rows come by the handful: a pool of threads
    for each call costs more than it brings."""
    try:
        pools = [name for name in model.get_params() if name.rpartition("__")[2] == "n_jobs"]
        model.set_params(**dict.fromkeys(pools, 1))
    except (AttributeError, TypeError, ValueError):
        return  # no estimator by the library's rules: it has its own ways


def _plain(result: Any) -> Array:
    array = np.asarray(result)
    return array.astype(object) if array.dtype.kind == "U" else array


def load(spec: VersionSpec, files: Mapping[str, bytes], path: str, *, trusted: bool) -> Runtime:
    """Load an estimator.

    Raises:
        NotAllowed: a skops file with types that are not trusted; names them.
        Invalid: the file cannot be read, or holds nothing that predicts.
    """
    data = files[path]
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # another minor version of the library: the digest says it is what was tested
        try:
            model = _unpickled(data) if trusted else _skops(data, spec)
        except errors.ModelkeepError:
            raise
        except Exception as problem:
            text = f"{type(problem).__name__}: {str(problem)[:200]}"
            raise errors.Invalid(f"{path!r} of {spec.label} cannot be loaded: {text}.") from problem
    if not hasattr(model, "predict"):
        raise errors.Invalid(
            f"{path!r} of {spec.label} holds a {type(model).__name__}, which predicts nothing."
        )
    return SklearnRuntime(model, spec)


def _unpickled(data: bytes) -> Any:
    import joblib

    return joblib.load(io.BytesIO(data))


def _skops(data: bytes, spec: VersionSpec) -> Any:
    from skops import io as skops

    unknown = skops.get_untrusted_types(data=data)
    refused = [name for name in unknown if not _harmless(name)]
    if refused:
        raise errors.NotAllowed(
            f"{spec.label} contains types that are not trusted: {', '.join(sorted(refused)[:10])}. "
            "Rebuild the model without them, or convert it to ONNX.",
            types=sorted(refused)[:100],
        )
    return skops.loads(data, trusted=unknown)


def _harmless(name: str) -> bool:
    """Whether a name is a class of scikit-learn or numpy, and not merely something that can be found under
    them."""
    module, _, attribute = name.rpartition(".")
    if module.partition(".")[0] not in _TRUSTED_ROOTS:
        return False
    try:
        found = getattr(importlib.import_module(module), attribute, None)
    except ImportError:
        return False
    return isinstance(found, type) and found.__module__.partition(".")[0] in _TRUSTED_ROOTS
