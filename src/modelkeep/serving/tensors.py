"""A tensor of an Open Inference request as an array: its type, its shape, and its data as JSON or as bytes.

What a tensor means, and whether a signature allows it, is not known here; neither is how answers are written.
"""

import math
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta, Struct

from modelkeep.serving import binary
from modelkeep.serving.validation import Array, refused

TENSOR_TYPES: dict[str, tuple[str, str]] = {  # Open Inference's name to ours, and the kinds that fit
    "BOOL": ("bool", "b"), "BYTES": ("object", "U"),
    "INT8": ("int8", "iu"), "INT16": ("int16", "iu"), "INT32": ("int32", "iu"), "INT64": ("int64", "iu"),
    "UINT8": ("uint8", "iu"), "UINT16": ("uint16", "iu"), "UINT32": ("uint32", "iu"),
    "UINT64": ("uint64", "iu"),
    "FP16": ("float16", "iuf"), "FP32": ("float32", "iuf"), "FP64": ("float64", "iuf"),
}  # fmt: skip


class _Parameters(Struct, frozen=True):
    binary_data_size: Annotated[int, Meta(ge=0)] | None = None


class Tensor(Struct):
    """A tensor that was sent: with its data, or with how many bytes after the JSON are its own."""

    name: str
    shape: list[int]
    datatype: str
    data: list[Any] | msgspec.UnsetType = msgspec.UNSET
    parameters: _Parameters = _Parameters()


def _known_type(tensor: Tensor) -> tuple[str, str]:
    known = TENSOR_TYPES.get(tensor.datatype)
    if known is None:
        raise refused(f"the datatype {tensor.datatype[:20]!r} is not known.", field=tensor.name)
    return known


def _known_shape(tensor: Tensor) -> list[int]:
    if not tensor.shape or any(length < 0 for length in tensor.shape):
        raise refused(
            "the shape needs at least the number of rows, and no negative length.", field=tensor.name
        )
    return tensor.shape


def of_json(tensor: Tensor) -> Array:
    """What a tensor holds in the JSON itself.

    Raises:
        InvalidInput: it is ragged, of another type or size than it says, or has nothing.
    """
    dtype, kinds = _known_type(tensor)
    size = math.prod(_known_shape(tensor))
    if tensor.data is msgspec.UNSET:
        raise refused("the tensor has no data.", field=tensor.name)
    try:
        raw = np.array(tensor.data)
    except ValueError as problem:
        raise refused("the data is ragged.", field=tensor.name) from problem
    if raw.dtype.kind == "O" and "f" in kinds:
        try:
            raw = np.array(tensor.data, dtype="float64")
        except (TypeError, ValueError) as problem:
            raise refused(f"the data is not {tensor.datatype}.", field=tensor.name) from problem
    if raw.size != size:
        raise refused(f"the shape {tensor.shape} asks for {size} values, not {raw.size}.", field=tensor.name)
    if size and raw.dtype.kind not in kinds:
        raise refused(f"the data is not {tensor.datatype}.", field=tensor.name)
    if "f" not in kinds and raw.dtype.kind in "iu" and size:
        limits = np.iinfo(dtype)
        if int(raw.min()) < limits.min or int(raw.max()) > limits.max:
            raise refused(f"a value does not fit {tensor.datatype}.", field=tensor.name)
    with np.errstate(over="ignore"):
        return raw.astype(dtype).reshape(tensor.shape)


def of_bytes(tensor: Tensor, blob: bytes, *, as_text: bool) -> Array:
    """What a tensor holds in bytes of its own.

    Args:
        as_text: bytes of variable length are UTF-8.

    Raises:
        InvalidInput: the bytes are not what its type and shape say.
    """
    dtype, _ = _known_type(tensor)
    shape = _known_shape(tensor)
    if dtype != "object":
        return binary.numbers(blob, dtype, shape, tensor.name)
    return binary.strings(blob, shape, tensor.name, as_text=as_text)
