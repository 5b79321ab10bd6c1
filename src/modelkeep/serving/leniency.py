"""Requests that miss the signature on a lenient endpoint: what can be made to fit is, and it is counted.

A value of another type is converted where its meaning is plain ("12" for 12, 3.0 for 3, 1 for true); columns
that the signature does not know are left out; values beyond a range or outside of the known categories reach
the model as they are. What is missing, has another shape, or cannot be converted is refused as anywhere else.
Strict endpoints never come here, nor does a request that fits. Which endpoint is lenient is not known here,
nor how the table of a request is read (`plain`).
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
from msgspec import structs

from modelkeep.core.observation import FIELDS_COUNTED_MAX, FieldMisses
from modelkeep.core.signature import DataType, Field, Signature
from modelkeep.serving import plain, validation
from modelkeep.serving.plain import LEFT_OUT
from modelkeep.serving.validation import FLOATS, INTEGERS, Array, Columns, refused

OTHERS = "(others)"
"""The fields of a signature beyond those that are counted by name."""
UNKNOWN = "(unknown)"
"""Columns, and members of the body, that nobody knows. Their names are the caller's, and no label."""
WHOLE = "(request)"
"""What was wrong with a request as a whole: no rows, ragged rows."""
_FLAGS = {"true": True, "1": True, "false": False, "0": False}


def fit(
    signature: Signature, given: Mapping[str, Sequence[Any]], rows: int, *, typed: bool = True
) -> tuple[Columns, frozenset[str]]:
    """Columns of plain values as the arrays that a version takes, and which fields missed the signature.

    Args:
        given: columns of `rows` values each; `LEFT_OUT` where a row says nothing of a field.
        typed: the values have types of their own; where all are text, text is not amiss.

    Raises:
        InvalidInput: something is missing or cannot be made to fit; names the first row and its field.
    """
    known = {field.name for field in signature.inputs}
    missed = {UNKNOWN} if given.keys() - known else set()
    columns: dict[str, Array] = {}
    for field in signature.inputs:
        values = given.get(field.name)
        if values is None:
            values = [LEFT_OUT] * rows
        loose = structs.replace(field, minimum=None, maximum=None, categories=None)
        stated = [row for row, value in enumerate(values) if value is not LEFT_OUT]
        if field.required and len(stated) < rows:
            raise refused("this field is missing.", field=field.name)
        fitted, misses = _fitted(field, loose, [values[row] for row in stated], stated, typed=typed)
        if misses:
            missed.add(field.name)
        if len(stated) < rows:
            found = dict(zip(stated, fitted, strict=True))
            fitted = [found.get(row) for row in range(rows)]
        columns[field.name] = _finite(field, validation.to_array(loose, fitted))
    return columns, frozenset(missed)


def of_tensors(signature: Signature, tensors: Columns) -> tuple[dict[str, list[Any]], set[str]]:
    """The columns of tensors as plain values, and which of them are not what the signature says: a tensor has
    a type even where each of its values would do."""
    fields = {field.name: field for field in signature.inputs}
    given: dict[str, list[Any]] = {}
    amiss = set()
    for name, array in tensors.items():
        field = fields.get(name)
        given[name] = (array if field is None else validation.scalar_shape(field, array)).tolist()
        if field is not None and validation.amiss(field, array) is not None:
            amiss.add(name)
    return given, amiss


def _fitted(
    field: Field, loose: Field, values: Sequence[Any], rows: Sequence[int], *, typed: bool
) -> tuple[list[Any], bool]:
    """A column's values in its type, and whether any of them missed its field.

    Args:
        rows: where each of them stands.
    """
    exact, kind = validation.value_type(field), validation.value_type(loose)
    try:
        return msgspec.convert(values, list[exact], strict=typed), False  # type: ignore[valid-type]  # made from data
    except msgspec.ValidationError:
        pass
    depth = len(field.dimensions)
    fitted = []
    for row, value in zip(rows, values, strict=True):
        try:
            fitted.append(msgspec.convert(_meant(field.type, value, depth), kind))
        except (msgspec.ValidationError, ValueError, OverflowError) as problem:
            shown = _shown(value)
            raise refused(f"{shown} cannot be made {field.type}.", row=row, field=field.name) from problem
    return fitted, True


def _meant(kind: DataType, value: Any, depth: int) -> Any:
    """A value as it was plainly meant; what has no plain meaning is returned, or raised over, as it is.

    Args:
        depth: how many lists there may be around each value. Callers can nest without end.
    """
    if isinstance(value, list):
        if depth == 0:
            raise ValueError("nested more deeply than its field is")
        return [_meant(kind, each, depth - 1) for each in value]
    if not isinstance(value, str | int | float):
        return value
    if kind in INTEGERS:
        return _whole(value)
    if kind in FLOATS:
        return float(plain.number(value.strip())) if isinstance(value, str) else float(value)
    if kind is DataType.BOOL:
        return _FLAGS.get(str(value).strip().lower(), value)
    if kind is DataType.STRING and not isinstance(value, str):
        return msgspec.json.encode(value).decode()
    return value


def _whole(value: str | float) -> Any:
    """A number without a fraction, where it is one."""
    if isinstance(value, str):
        return plain.whole(value.strip())
    return int(value) if isinstance(value, int) or value.is_integer() else value


def _finite(field: Field, array: Array) -> Array:
    """A column, without infinities; where nothing may be missing also without NaN. Tensors of bytes can have
    both."""
    if array.dtype.kind == "f":
        bad = np.isinf(array) if field.nullable or not field.required else ~np.isfinite(array)
        if bad.any():
            row = int(np.argmax(bad.reshape(len(bad), -1).any(axis=1)))
            raise refused("the value is not a finite number.", row=row, field=field.name)
    return array


def _shown(value: Any) -> str:
    """A value in a sentence, whatever it is."""
    match value:
        case None:
            return "null"
        case list() | dict():
            return "a list" if isinstance(value, list) else "an object"
        case str():
            return repr(value[:60])
    return repr(value)[:60]


class Misses:
    """In how many requests each field missed the signature: of those that were refused for it, and of those
    that were made to fit."""

    def __init__(self, signature: Signature | None) -> None:
        fields = signature.inputs if signature is not None else ()
        self._labels = {
            field.name: field.name if index < FIELDS_COUNTED_MAX else OTHERS
            for index, field in enumerate(fields)
        } | {UNKNOWN: UNKNOWN, WHOLE: WHOLE}
        self.refused: dict[str, int] = {}
        self.fitted: dict[str, int] = {}

    def refuse(self, field: object) -> None:
        """A request was refused for a field; None: for what it is as a whole."""
        label = WHOLE if field is None else self._labels.get(str(field), UNKNOWN)
        self.refused[label] = self.refused.get(label, 0) + 1

    def fit(self, fields: Iterable[str]) -> None:
        """A request missed these fields and was made to fit."""
        for label in {self._labels.get(field, UNKNOWN) for field in fields}:
            self.fitted[label] = self.fitted.get(label, 0) + 1

    def hand_over(self) -> FieldMisses:
        """What was counted since this was last asked."""
        told = FieldMisses(refused=self.refused, fitted=self.fitted)
        self.refused, self.fitted = {}, {}
        return told
