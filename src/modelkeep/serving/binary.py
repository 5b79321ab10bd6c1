"""Tensors as bytes: the binary extension of the Open Inference Protocol, both ways.

After the JSON come the tensors' bytes, one after the other in the order of the JSON: numbers little-endian
and row-major, texts each after its own length in four bytes. What a tensor means is not known here.
"""

import math
import struct
from datetime import date
from typing import Any

import numpy as np

from modelkeep.core import errors
from modelkeep.serving.messages import JSON_LENGTH
from modelkeep.serving.validation import Array, refused

_LENGTH = struct.Struct("<I")


def parts(body: bytes) -> tuple[bytes, bytes]:
    """The JSON of a body as a front hands it on, and the bytes after it.

    Raises:
        MalformedBody: the body is shorter than its own account.
    """
    start = JSON_LENGTH.size
    end = start + JSON_LENGTH.unpack_from(body)[0] if len(body) >= start else start
    if end > len(body):
        raise errors.MalformedBody("The body is shorter than Inference-Header-Content-Length says.")
    return body[start:end], body[end:]


class Blobs:
    """The bytes after the JSON, taken tensor by tensor."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, size: int, name: str) -> bytes:
        """The next tensor's bytes. Raises InvalidInput where there are too few."""
        blob = self._data[self._at : self._at + size]
        if len(blob) < size:
            raise refused(f"the body ends {size - len(blob):,} bytes too early.", field=name)
        self._at += size
        return blob

    def end(self) -> None:
        """Raises MalformedBody where bytes are left that belong to no tensor."""
        left = len(self._data) - self._at
        if left:
            raise errors.MalformedBody(
                f"{left:,} bytes after the JSON belong to no tensor; say each one's binary_data_size."
            )


def numbers(blob: bytes, dtype: str, shape: list[int], name: str) -> Array:
    """An array of numbers or truth values.

    Raises:
        InvalidInput: the bytes are more or fewer than the shape asks for.
    """
    kind = np.dtype(dtype).newbyteorder("<")
    if len(blob) != math.prod(shape) * kind.itemsize:
        wanted = math.prod(shape) * kind.itemsize
        raise refused(f"the shape {shape} asks for {wanted:,} bytes, not {len(blob):,}.", field=name)
    return np.frombuffer(blob, kind).astype(dtype).reshape(shape)


def strings(blob: bytes, shape: list[int], name: str, *, as_text: bool) -> Array:
    """An array of texts (or of bytes).

    Raises:
        InvalidInput: the lengths do not add up, or a text is not UTF-8.
    """
    found: list[Any] = []
    at = 0
    while at < len(blob):
        start = at + _LENGTH.size
        length = _LENGTH.unpack_from(blob, at)[0] if start <= len(blob) else len(blob)
        at = start + length
        if at > len(blob):
            raise refused("the lengths of its texts do not add up.", field=name)
        found.append(blob[start:at])
    if len(found) != math.prod(shape):
        raise refused(f"the shape {shape} asks for {math.prod(shape)} texts, not {len(found)}.", field=name)
    if as_text:
        try:
            found = [each.decode() for each in found]
        except UnicodeDecodeError as problem:
            raise refused("a text is not UTF-8.", field=name) from problem
    array = np.empty(len(found), dtype=object)
    array[:] = found
    return array.reshape(shape)


def packed(array: Array) -> bytes:
    """An array's bytes."""
    if array.dtype.kind in "biuf":
        return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
    pieces: list[bytes] = []
    for value in array.ravel().tolist():
        data = value if isinstance(value, bytes) else _text(value).encode()
        pieces += (_LENGTH.pack(len(data)), data)
    return b"".join(pieces)


def _text(value: Any) -> str:
    if value is None:
        return ""
    return value.isoformat() if isinstance(value, date) else str(value)
