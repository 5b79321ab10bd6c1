"""PyTorch models as programs: TorchScript archives and exported programs, on the processor or on a card.

A file that holds a pickled module or a state of weights alone is refused: reading it would run code, and it
does not say what to compute. TorchScript is read by PyTorch's own reader, which makes tensors and calls
nothing. PyTorch's reader of exported programs unpickles what the archive tells it to unpickle, so the archive
is looked through first, and anything but plain tensors is refused.
"""

import contextlib
import io
import warnings
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import torch
from msgspec import Struct

from modelkeep.core import codec, errors
from modelkeep.core.routing import VersionSpec
from modelkeep.serving.devices import Device
from modelkeep.serving.runtimes import Runtime, arrange, matrix, no_card
from modelkeep.serving.validation import Array, Columns

_WHOLE = ("int", "uint", "bool")
_TENSORS = ("weight_", "tensor_")
"""How the files of an exported program begin that hold a tensor's bytes and nothing else."""


class _Input(NamedTuple):
    """A tensor that the program takes. `dtype`: None where the program does not say."""

    name: str
    dtype: str | None = None


class _Payload(Struct):
    """A tensor of an exported program, and how its bytes are to be read."""

    path_name: str
    use_pickle: bool


class _Payloads(Struct):
    """All of one kind, by name."""

    config: dict[str, _Payload]


class TorchRuntime:
    """One program."""

    name = "torch"

    def __init__(
        self,
        call: Callable[..., Any],
        inputs: Sequence[_Input],
        spec: VersionSpec,
        device: Device = Device.CPU,
    ) -> None:
        self._call = call
        self._device = device
        self._inputs = inputs
        fields = spec.signature.inputs if spec.signature is not None else ()
        self._ordered = bool(fields)
        self._outputs = spec.signature.outputs if spec.signature is not None else ()

    def predict(self, columns: Columns) -> Columns:
        with torch.inference_mode(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            given = (torch.from_numpy(array) for array in self._arrays(columns))
            if self._device is Device.CPU:
                answer = self._call(*given)
            else:
                answer = self._call(*(tensor.to(str(self._device)) for tensor in given))
        return arrange(_columns(answer), self._outputs)

    def _arrays(self, columns: Columns) -> list[Array]:
        names = [wanted.name for wanted in self._inputs]
        if len(names) == 1:
            (wanted,) = self._inputs
            if len(columns) > 1 and not self._ordered:
                raise errors.InvalidInput(
                    "Without a signature the order of named fields is not known; send rows as lists."
                )
            only = next(iter(columns.values()))
            whole = len(columns) == 1 and only.ndim > 1
            own = str(only.dtype) if whole and only.dtype.kind in "biu" else "float32"
            return [_contiguous(matrix(columns, wanted.dtype or own))]
        if not set(names) <= set(columns) and len(columns) == len(names) and self._ordered:
            columns = dict(zip(names, columns.values(), strict=True))
        missing = next((name for name in names if name not in columns), None)
        if missing is not None:
            raise errors.InvalidInput(f"The model needs an input {missing!r}.", field=missing)
        return [_fitted(columns[wanted.name], wanted) for wanted in self._inputs]


def _fitted(array: Array, wanted: _Input) -> Array:
    dtype = wanted.dtype or ("float32" if array.dtype.kind in "fO" else str(array.dtype))
    if dtype.startswith(_WHOLE) and array.dtype.kind == "f" and not np.isfinite(array).all():
        raise errors.InvalidInput(
            f"The model cannot take a missing value in {wanted.name!r}.", field=wanted.name
        )
    try:
        return _contiguous(array.astype(dtype, copy=False))
    except (TypeError, ValueError) as problem:
        raise errors.InvalidInput(
            f"The input {wanted.name!r} must be {dtype}.", field=wanted.name
        ) from problem


def _contiguous(array: Array) -> Array:
    """An array that PyTorch may share: in one piece, and its own."""
    return np.require(array, requirements=["C", "W"])


def _columns(answer: Any) -> Columns:
    """Tensors by name: those of a mapping by its keys, others by their place."""
    if isinstance(answer, Mapping):
        return {str(name): _array(tensor) for name, tensor in answer.items()}
    if isinstance(answer, tuple | list):
        return {f"output_{index}": _array(tensor) for index, tensor in enumerate(answer)}
    return {"prediction": _array(answer)}


def _array(tensor: Any) -> Array:
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"the model answers a {type(tensor).__name__}, not a tensor")
    array: Array = tensor.detach().cpu().numpy()
    return array


def load(
    spec: VersionSpec, files: Mapping[str, bytes], path: str, threads: int, device: Device = Device.CPU
) -> Runtime:
    """Load a program.

    Raises:
        Invalid: it is none, or was exported for one number of rows.
        NotAllowed: it is a pickle.
        WorkerUnavailable: it cannot compute on a card here.
    """
    if device is Device.CUDA:
        if not torch.cuda.is_available():
            raise no_card("PyTorch", "it finds none; see that driver and build (torch.version.cuda) fit.")
        torch.backends.cudnn.allow_tf32 = False  # as precise as on the processor, where it was tried
    torch.set_num_threads(threads)
    with contextlib.suppress(RuntimeError):  # may be said once in a process
        torch.set_num_interop_threads(1)
    data = files[path]
    _check_archive(data, path, spec)
    exported = PurePosixPath(path).suffix.lower() == ".pt2"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return _exported(data, path, spec, device) if exported else _scripted(data, spec, device)
        except errors.ModelkeepError:
            raise
        except Exception as problem:
            text = f"{type(problem).__name__}: {str(problem)[:200]}"
            raise errors.Invalid(f"PyTorch cannot load {path!r} of {spec.label}: {text}") from problem


def _check_archive(data: bytes, path: str, spec: VersionSpec) -> None:
    """Refuse what is no archive of a program, before PyTorch sees it."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            names = archive.namelist()
    except zipfile.BadZipFile as problem:
        raise errors.Invalid(
            f"{path!r} of {spec.label} is no PyTorch program; save one with torch.export.save or TorchScript."
        ) from problem
    inner = {name.partition("/")[2] for name in names}
    program = any(name.startswith("code/") for name in inner) or PurePosixPath(path).suffix.lower() == ".pt2"
    if not program:
        raise errors.NotAllowed(
            f"{path!r} of {spec.label} is a pickle of weights or of a module, which is not loaded; save the "
            "program with torch.export.save, or as TorchScript."
        )


def _scripted(data: bytes, spec: VersionSpec, device: Device) -> Runtime:
    module = torch.jit.load(io.BytesIO(data), map_location=str(device)).eval()
    arguments = module.forward.schema.arguments[1:]
    inputs = [_Input(argument.name) for argument in arguments if not argument.has_default_value()]
    return TorchRuntime(module, inputs, spec, device)


def _exported(data: bytes, path: str, spec: VersionSpec, device: Device) -> Runtime:
    found = _what_runs(torch._C.PyTorchFileReader(io.BytesIO(data)))
    if found is not None:
        raise errors.NotAllowed(
            f"{path!r} of {spec.label} is not a graph and plain tensors: reading {found[:100]!r} could run "
            "code; export it anew with torch.export.save of PyTorch 2.9 or newer."
        )
    program = torch.export.load(io.BytesIO(data))
    wanted = {name for name in program.graph_signature.user_inputs if isinstance(name, str)}
    inputs = []
    for node in program.graph.nodes:
        if node.op != "placeholder" or node.name not in wanted:
            continue
        example = node.meta["val"]
        if len(example.shape) and isinstance(example.shape[0], int):
            raise errors.Invalid(
                f"{path!r} of {spec.label} was exported for {example.shape[0]} rows at a time; export it "
                "with a dynamic first axis: torch.export.export(..., dynamic_shapes=...)."
            )
        inputs.append(_Input(node.name, str(example.dtype).removeprefix("torch.")))
    if device is not Device.CPU:
        from torch.export.passes import move_to_device_pass

        program = move_to_device_pass(program, str(device))  # what the graph makes anew, too
    return TorchRuntime(program.module(), inputs, spec, device)


def _what_runs(reader: Any) -> str | None:
    """The first part of an exported program's archive that is pickled, compiled, or of another format.

    The archive is read by PyTorch's own reader, so that what is looked at is what will be loaded.
    """
    names: list[str] = [name for name in reader.get_all_records() if not name.startswith((".", "byteorder"))]
    if not any(name.startswith("models/") for name in names):
        return "an older format"
    for name in names:
        folder = name.removeprefix("data/").partition("/")[0]
        if folder == "aotinductor" or (folder in ("weights", "constants") and name.endswith(".pt")):
            return name
        if name.endswith("_config.json") and folder in ("weights", "constants"):
            config = codec.decode(reader.get_record(name), _Payloads).config
            bad = (
                key for key, one in config.items() if one.use_pickle or not one.path_name.startswith(_TENSORS)
            )
            if (key := next(bad, None)) is not None:
                return key
        if folder == "sample_inputs" and (sample := reader.get_record(name)):
            try:  # what loads so is loaded so by PyTorch too, which else would unpickle it
                torch.load(io.BytesIO(sample), weights_only=True)
            except Exception:  # noqa: BLE001 - whatever is wrong with it, it is refused
                return name
    return None
