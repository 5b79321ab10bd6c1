"""ONNX models, by ONNX Runtime. It knows tensors; names and order come from the signature.

On a card the numbers are as precise as on the processor, where the model was tried: single precision is not
shortened (TF32), and kernels are chosen by rule instead of by trial, for every number of rows would begin a
new trial.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from modelkeep.core import errors
from modelkeep.core.routing import VersionSpec
from modelkeep.serving.devices import Device
from modelkeep.serving.runtimes import Runtime, arrange, matrix, no_card
from modelkeep.serving.validation import Array, Columns

_CPU, _CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
_CARD_OPTIONS = {
    "device_id": "0",  # the process sees one
    "arena_extend_strategy": "kSameAsRequested",  # a card is shared; by default each growth doubles
    "cudnn_conv_algo_search": "HEURISTIC",
    "use_tf32": "0",
}
_DTYPES = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(float16)": "float16",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(int16)": "int16",
    "tensor(int8)": "int8",
    "tensor(uint8)": "uint8",
    "tensor(uint64)": "uint64",
    "tensor(bool)": "bool",
    "tensor(string)": "object",
}


class OnnxRuntime:
    """One session."""

    name = "onnx"

    def __init__(self, session: Any, spec: VersionSpec) -> None:
        self._session = session
        self._outputs = [output.name for output in session.get_outputs()]
        self._fields = spec.signature.outputs if spec.signature is not None else ()
        self._named = bool(spec.signature is not None and spec.signature.inputs)
        self._inputs: list[tuple[str, str, list[Any]]] = []
        for wanted in session.get_inputs():
            dtype = _DTYPES.get(wanted.type)
            if dtype is None:
                raise errors.Invalid(
                    f"The input {wanted.name!r} of {spec.label} is of a kind not served: {wanted.type}."
                )
            self._inputs.append((wanted.name, dtype, list(wanted.shape)))
        self.single = any(shape and isinstance(shape[0], int) for _, _, shape in self._inputs)
        _check_ranks(spec, self._inputs)

    def predict(self, columns: Columns) -> Columns:
        feeds = self._feeds(columns)
        results = self._session.run(None, feeds)
        outputs = {name: _array(result) for name, result in zip(self._outputs, results, strict=True)}
        return arrange(outputs, self._fields)

    def _feeds(self, columns: Columns) -> dict[str, Array]:
        names = [name for name, _, _ in self._inputs]
        if len(self._inputs) == 1 and (names[0] not in columns or len(columns) > 1):
            if not self._named and len(columns) > 1:
                raise errors.InvalidInput(
                    "Without a signature the order of named fields is not known; send rows as lists."
                )
            name, dtype, shape = self._inputs[0]
            return {name: _fitted(name, matrix(columns, dtype), dtype, shape)}
        if (
            "" in columns
            and len(columns) == 1
            and columns[""].ndim == 2
            and columns[""].shape[1] == len(names)
        ):
            whole = columns[""]
            columns = {name: whole[:, index] for index, name in enumerate(names)}
        missing = [name for name in names if name not in columns]
        if missing:
            raise errors.InvalidInput(f"The model needs an input {missing[0]!r}.", field=missing[0])
        return {name: _fitted(name, columns[name], dtype, shape) for name, dtype, shape in self._inputs}


def _check_ranks(spec: VersionSpec, inputs: list[tuple[str, str, list[Any]]]) -> None:
    """Refuse a signature that no row can satisfy, now instead of at each request.

    Raises:
        Invalid: a field declares other axes than the model's input of that name has behind the batch axis.
    """
    fields = {field.name: field for field in (spec.signature.inputs if spec.signature is not None else ())}
    if len(fields) == len(inputs) == 1:  # the only field goes into the only input, whatever their names
        fields = {inputs[0][0]: next(iter(fields.values()))}
    for name, _, shape in inputs:
        field = fields.get(name)
        if field is None or not shape:  # several columns become one matrix; no axes are said to be known
            continue
        declared = len(field.dimensions)
        column = (declared, len(shape)) == (0, 2)  # one value a row becomes a column
        if declared + 1 != len(shape) and not column:
            wanted = [length if isinstance(length, int) else -1 for length in shape[1:]]
            raise errors.Invalid(
                f"The signature of {spec.label} gives {field.name!r} the shape {list(field.dimensions)}, but "
                f"the model takes {list(shape)}; declare one row, without the batch axis: {wanted}."
            )


def _fitted(name: str, array: Array, dtype: str, shape: list[Any]) -> Array:
    """An array in the type and rank of its input."""
    if array.dtype.kind == "f" and dtype.startswith(("int", "uint", "bool")) and not np.isfinite(array).all():
        raise errors.InvalidInput(f"The model cannot take a missing value in {name!r}.", field=name)
    if dtype == "object" and array.dtype.kind == "O" and any(value is None for value in array.ravel()):
        raise errors.InvalidInput(f"The model cannot take a missing value in {name!r}.", field=name)
    try:
        array = array.astype(dtype, copy=False)
    except (TypeError, ValueError) as problem:
        raise errors.InvalidInput(f"The input {name!r} must be {dtype}.", field=name) from problem
    if array.ndim == 1 and len(shape) == 2:
        array = array.reshape(-1, 1)
    if len(shape) != array.ndim:
        raise errors.InvalidInput(
            f"The input {name!r} has {array.ndim} axes; the model takes {len(shape)}.", field=name
        )
    for have, want in zip(array.shape[1:], shape[1:], strict=True):
        if isinstance(want, int) and want > 0 and have != want:
            raise errors.InvalidInput(
                f"The input {name!r} has rows of shape {list(array.shape[1:])}; the model takes {shape[1:]}.",
                field=name,
            )
    return array


def _array(result: Any) -> Array:
    """An output as an array. Maps of class to probability become rows in the order of the classes."""
    if isinstance(result, np.ndarray):
        return result
    if isinstance(result, list) and result and isinstance(result[0], dict):
        return np.array([list(row.values()) for row in result], dtype="float32")
    return np.array(result, dtype=object)


def load(
    spec: VersionSpec,
    files: Mapping[str, bytes],
    folder: Path,
    path: str,
    threads: int,
    device: Device = Device.CPU,
) -> Runtime:
    """Load a session. Weights in files beside the model are found in the version's folder alone.

    Raises:
        Invalid: ONNX Runtime cannot read it, or it takes something that is not a tensor.
        WorkerUnavailable: it cannot compute on a card here.
    """
    providers = _providers(device)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.enable_mem_pattern = False  # the number of rows changes with every request
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # idle threads belong to others
    alone = len(spec.files) == 1 or not any(name.endswith((".data", ".bin", ".weight")) for name in files)
    source: bytes | str = files[path] if alone else str(folder / path)
    try:
        session = onnxruntime.InferenceSession(source, options, providers=providers)
    except Exception as problem:
        raise errors.Invalid(
            f"ONNX Runtime cannot load {path!r} of {spec.label}: {str(problem)[:200]}"
        ) from problem
    if device is Device.CUDA and _CUDA not in session.get_providers():
        raise no_card("ONNX Runtime", "its CUDA provider did not start; see that driver, CUDA and cuDNN fit.")
    return OnnxRuntime(session, spec)


def _providers(device: Device) -> list[Any]:
    """What computes, in the order in which it is liked. Operators that a card has not are the processor's.

    Raises:
        WorkerUnavailable: this ONNX Runtime knows no cards.
    """
    if device is not Device.CUDA:
        return [_CPU]
    if _CUDA not in onnxruntime.get_available_providers():
        raise no_card("ONNX Runtime", "it was built without CUDA; install onnxruntime-gpu in its place.")
    preload = getattr(onnxruntime, "preload_dlls", None)
    if preload is not None:  # finds CUDA and cuDNN where pip has put them
        preload()
    return [(_CUDA, _CARD_OPTIONS), _CPU]
