"""MLflow's model signatures read as ours, so that what the MLflow client logs has a schema here too.

It reads; it does not write MLflow's form, and knows nothing of MLflow's files or its server.
"""

from collections.abc import Mapping
from typing import Any

from modelkeep.core import codec, errors, values
from modelkeep.core.signature import RANK_MAX, DataType, Field, Side, Signature, check_signature

_COLUMNS: Mapping[str, DataType] = {
    "boolean": DataType.BOOL,
    "integer": DataType.INT32,
    "long": DataType.INT64,
    "float": DataType.FLOAT32,
    "double": DataType.FLOAT64,
    "string": DataType.STRING,
    "datetime": DataType.DATETIME,
    "binary": DataType.BYTES,
}
"""Types of MLflow's columns."""

_TENSORS: Mapping[str, tuple[DataType, int | None, int | None]] = {
    "bool": (DataType.BOOL, None, None),
    "int8": (DataType.INT32, -(2**7), 2**7 - 1),
    "int16": (DataType.INT32, -(2**15), 2**15 - 1),
    "int32": (DataType.INT32, None, None),
    "int64": (DataType.INT64, None, None),
    "uint8": (DataType.INT32, 0, 2**8 - 1),
    "uint16": (DataType.INT32, 0, 2**16 - 1),
    "uint32": (DataType.INT64, 0, 2**32 - 1),
    "float16": (DataType.FLOAT32, None, None),
    "float32": (DataType.FLOAT32, None, None),
    "float64": (DataType.FLOAT64, None, None),
    "str": (DataType.STRING, None, None),
    "object": (DataType.STRING, None, None),
    "bytes": (DataType.BYTES, None, None),
    "datetime64": (DataType.DATETIME, None, None),
}
"""Array types to the type that holds them, with the bounds that the smaller type had."""


def from_mlflow(value: object) -> Signature:
    """Read an MLflow ModelSignature as its `to_dict` and its MLmodel file give it.

    Args:
        value: a mapping with `inputs` and `outputs`, each JSON text or the list it stands for. Columns,
        tensors and
            arrays are read; `params` tune a call and are no fields, so they are left out.

    Raises:
        InvalidSignature: not of that form, or with a type that has no counterpart (object, map, any).
    """
    if not isinstance(value, Mapping):
        raise errors.InvalidSignature("An MLflow signature is a mapping with 'inputs' and 'outputs'.")
    return check_signature(
        Signature(
            inputs=_mlflow_side(value.get("inputs"), Side.INPUT),
            outputs=_mlflow_side(value.get("outputs"), Side.OUTPUT),
        )
    )


def _mlflow_side(value: object, side: Side) -> tuple[Field, ...]:
    if value is None:
        return ()
    specs = _decoded(value, side) if isinstance(value, str) else value
    if not isinstance(specs, list) or not all(isinstance(spec, Mapping) for spec in specs):
        raise _unreadable(f"{side}s", "are not a list of columns or tensors")
    names = [side.value] if len(specs) == 1 else [f"{side}_{place}" for place in range(len(specs))]
    return tuple(_mlflow_field(spec, unnamed) for spec, unnamed in zip(specs, names, strict=True))


def _decoded(text: str, side: Side) -> object:
    try:
        return codec.decode_untrusted(text.encode("utf-8", "surrogatepass"), list[dict[str, Any]])
    except (errors.MalformedBody, errors.LimitExceeded) as problem:
        raise errors.InvalidSignature(
            f"The {side}s of the MLflow signature cannot be read: {problem.message}", field=f"{side}s"
        ) from problem


def _mlflow_field(spec: Mapping[str, Any], unnamed: str) -> Field:
    name = str(spec["name"]) if spec.get("name") is not None else unnamed
    required = bool(spec.get("required", not spec.get("optional", False)))
    kind = spec.get("type")
    if kind == "tensor":
        return _mlflow_tensor(spec.get("tensor-spec"), name, required=required)
    axes = 0
    while kind == "array" and axes <= RANK_MAX:
        items = spec.get("items")
        spec = items if isinstance(items, Mapping) else {}
        kind, axes = spec.get("type"), axes + 1
    if not isinstance(kind, str) or kind not in _COLUMNS:
        raise _no_counterpart(name, kind)
    return Field(name=name, type=_COLUMNS[kind], required=required, shape=(-1,) * axes or None)


def _mlflow_tensor(spec: object, name: str, *, required: bool) -> Field:
    shape = spec.get("shape") if isinstance(spec, Mapping) else None
    if not isinstance(spec, Mapping) or not isinstance(shape, list | tuple):
        raise _unreadable(name, "has no dtype and shape")
    if not all(isinstance(length, int) and not isinstance(length, bool) for length in shape):
        raise _unreadable(name, "has a shape that is not a list of whole numbers")
    dtype = str(spec.get("dtype"))
    known = "str" if dtype[:2] in ("<U", ">U") else dtype.removesuffix("_").partition("[")[0]
    if known not in _TENSORS:
        raise _no_counterpart(name, dtype)
    kind, low, high = _TENSORS[known]
    axes = tuple(shape[1:]) or None  # the first axis is the batch
    return Field(name=name, type=kind, required=required, minimum=low, maximum=high, shape=axes)


def _unreadable(name: str, why: str) -> errors.InvalidSignature:
    shown = values.quoted(name, 60)
    return errors.InvalidSignature(
        f"In the MLflow signature, {shown} {why}.", field=values.printable(name)[:60]
    )


def _no_counterpart(name: str, kind: object) -> errors.InvalidSignature:
    return errors.InvalidSignature(
        f"{values.quoted(name, 60)} has the MLflow type {values.quoted(str(kind), 40)}, which has no "
        "counterpart here; state the signature in the metadata instead.",
        field=values.printable(name)[:60],
    )
