"""Requests that miss the signature on a lenient endpoint: what can be made to fit is, and it is counted.

A value of another type is converted where its meaning is plain ("12" for 12, 3.0 for 3, 1 for true); columns
that the signature does not know are left out; values beyond a range or outside of the known categories reach
the model as they are. What is missing, has another shape, or cannot be converted is refused as anywhere else.
Strict endpoints never come here, nor does a request that fits. Which endpoint is lenient is not known here.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

import msgspec
from msgspec import structs

from modelkeep.core.observation import FIELDS_COUNTED_MAX, FieldMisses
from modelkeep.core.signature import DataType, Field, Signature
from modelkeep.serving import validation
from modelkeep.serving.validation import Columns, refused

OTHERS = "(others)"
"""The fields of a signature beyond those that are counted by name."""
UNKNOWN = "(unknown)"
"""Columns that the signature does not know. Their names are the caller's, and no label."""
WHOLE = "(request)"
"""What was wrong with a request as a whole: no rows, ragged rows."""
_FLAGS = {"true": True, "1": True, "false": False, "0": False}
_INTEGERS = frozenset({DataType.INT32, DataType.INT64})
_FLOATS = frozenset({DataType.FLOAT32, DataType.FLOAT64})


def fit(
    signature: Signature, given: Mapping[str, Sequence[Any]], rows: int, *, typed: bool = True
) -> tuple[Columns, frozenset[str]]:
    """Columns of plain values as the arrays that a version takes, and which fields missed the signature.

    Args:
        typed: the values have types of their own; where all are text, text is not amiss.

    Raises:
        InvalidInput: something is missing or cannot be made to fit; names the first row and its field.
    """
    known = {field.name for field in signature.inputs}
    missed = {UNKNOWN} if given.keys() - known else set()
    columns: Columns = {}
    for field in signature.inputs:
        values = given.get(field.name)
        if values is None:
            if field.required:
                raise refused("this field is missing.", field=field.name)
            values = [None] * rows
        loose = structs.replace(field, minimum=None, maximum=None, categories=None)
        fitted, misses = _fitted(field, loose, values, typed=typed)
        if misses:
            missed.add(field.name)
        columns[field.name] = validation.to_array(loose, fitted)
    bare = structs.replace(
        signature,
        inputs=tuple(
            structs.replace(f, minimum=None, maximum=None, categories=None) for f in signature.inputs
        ),
    )
    return validation.check_columns(bare, columns), frozenset(missed)


def _fitted(field: Field, loose: Field, values: Sequence[Any], *, typed: bool) -> tuple[list[Any], bool]:
    """A column's values in its type, and whether any of them missed its field."""
    exact, kind = validation.value_type(field), validation.value_type(loose)
    try:
        return msgspec.convert(values, list[exact], strict=typed), False  # type: ignore[valid-type]  # made from data
    except msgspec.ValidationError:
        pass
    fitted = []
    for row, value in enumerate(values):
        try:
            fitted.append(msgspec.convert(_meant(field.type, value), kind))
        except (msgspec.ValidationError, ValueError, OverflowError) as problem:
            shown = "null" if value is None else repr(value)[:60]
            raise refused(f"{shown} cannot be made {field.type}.", row=row, field=field.name) from problem
    return fitted, True


def _meant(kind: DataType, value: Any) -> Any:
    """A value as it was plainly meant; what has no plain meaning is returned, or raised over, as it is."""
    if isinstance(value, list):
        return [_meant(kind, each) for each in value]
    if value is None:
        return None
    if kind in _INTEGERS:
        return _whole(value)
    if kind in _FLOATS:
        return _finite(float(value)) if isinstance(value, str | int) else value
    if kind is DataType.BOOL:
        return _FLAGS.get(str(value).strip().lower(), value)
    if kind is DataType.STRING and isinstance(value, bool | int | float):
        return msgspec.json.encode(value).decode()
    if kind is DataType.DATETIME:
        return msgspec.convert(value, datetime, strict=False)
    return value


def _finite(number: float) -> float:
    if not math.isfinite(number):
        raise ValueError("no finite number")
    return number


def _whole(value: Any) -> Any:
    """A number without a fraction, where it is one."""
    if isinstance(value, str):
        text = value.strip()
        return int(text) if text.lstrip("+-").isdecimal() else _whole(float(text))
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return int(value) if isinstance(value, bool) else value


def columns_of(value: Any, signature: Signature) -> tuple[dict[str, list[Any]], int, bool]:
    """Rows (objects or lists) or columns, as columns; how many rows; and whether columns were sent. A field
    that some rows leave out is null there.

    Raises:
        InvalidInput: they form no table.
    """
    names = [field.name for field in signature.inputs]
    if isinstance(value, dict):
        if not value or not all(isinstance(column, list) for column in value.values()):
            raise refused("Send a list of rows, or an object of columns of equal length.")
        lengths = {len(column) for column in value.values()}
        if len(lengths) != 1:
            raise refused("The columns have different lengths.")
        rows = lengths.pop()
        validation.check_rows(rows)
        return value, rows, True
    if not isinstance(value, list):
        raise refused("Send a list of rows, or an object of columns.")
    validation.check_rows(len(value))
    if isinstance(value[0], dict):
        for index, row in enumerate(value):
            if not isinstance(row, dict):
                raise refused("this row is no object, as the first one is.", row=index)
        given = {name: None for row in value for name in row}
        return {name: [row.get(name) for row in value] for name in given}, len(value), False
    for index, row in enumerate(value):
        if not isinstance(row, list) or len(row) != len(names) or not signature.positional:
            raise refused(f"this row is no list of the {len(names)} fields.", row=index)
    return {name: [row[i] for row in value] for i, name in enumerate(names)}, len(value), False


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
