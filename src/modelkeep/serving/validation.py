"""A signature as a gatekeeper: what comes in is what the version promised to take, what goes out is what it
promised.

Inputs that arrive as JSON rows or columns are checked by the decoder itself: the signature becomes decoder
types, so that decoding and checking are one pass. Tensors are checked as whole arrays. A refusal names the
row and the field. Without a signature nothing is enforced here but that rows are rectangular and hold one
kind of value per column.
"""

import math
import re
from collections.abc import ItemsView, Iterator, Mapping, Sequence, ValuesView
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, Optional

import msgspec
import numpy as np

from modelkeep.core import errors
from modelkeep.core.signature import DataType, Field, Signature
from modelkeep.serving.options import ROWS_MAX

Array = np.ndarray[Any, np.dtype[Any]]
Columns = Mapping[str, Array]
"""Name to array, rows first. The empty name holds a matrix whose columns are in the model's own order."""

DTYPES: Mapping[DataType, str] = {
    DataType.BOOL: "bool",
    DataType.INT32: "int32",
    DataType.INT64: "int64",
    DataType.FLOAT32: "float32",
    DataType.FLOAT64: "float64",
    DataType.STRING: "object",
    DataType.DATETIME: "datetime64[us]",
    DataType.BYTES: "object",
}
_PYTHON: Mapping[DataType, Any] = {
    DataType.BOOL: bool,
    DataType.INT32: int,
    DataType.INT64: int,
    DataType.FLOAT32: float,
    DataType.FLOAT64: float,
    DataType.STRING: str,
    DataType.DATETIME: datetime,
    DataType.BYTES: bytes,
}
_BOUNDS: Mapping[DataType, tuple[float, float]] = {
    DataType.INT32: (-(2**31), 2**31 - 1),
    DataType.INT64: (-(2**63), 2**63 - 1),
    DataType.FLOAT32: (-3.4028234663852886e38, 3.4028234663852886e38),
}
INTEGERS = frozenset({DataType.INT32, DataType.INT64})
FLOATS = frozenset({DataType.FLOAT32, DataType.FLOAT64})
_NUMBERS = INTEGERS | FLOATS
_CATEGORIES_SHOWN = 5
_PLAIN_KINDS = "biufUM"
_WIDTHS: Mapping[DataType, int] = {DataType.INT32: 4, DataType.INT64: 8}
"""Bytes of whole numbers, of which the widest is what their field allows."""


class Table(Mapping[str, Array]):
    """Columns of one type that lie side by side: each is a view of `matrix`, [rows, columns], in this order.

    Whoever wants the matrix has it without putting columns together again, and columns are made for those
    alone who ask for them: thirty of them take as long as reading a row.
    """

    __slots__ = ("_columns", "matrix", "names")

    def __init__(self, names: list[str], matrix: Array) -> None:
        self.names = names
        self.matrix = matrix
        self._columns: dict[str, Array] | None = None

    def _made(self) -> dict[str, Array]:
        if self._columns is None:
            self._columns = dict(zip(self.names, self.matrix.T, strict=True))
        return self._columns

    def __getitem__(self, name: str) -> Array:
        return self._made()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)

    def items(self) -> ItemsView[str, Array]:
        return self._made().items()

    def values(self) -> ValuesView[Array]:
        return self._made().values()


def refused(detail: str, *, row: int | None = None, field: str | None = None) -> errors.InvalidInput:
    """A refusal that names the place."""
    details = {key: value for key, value in (("row", row), ("field", field)) if value is not None}
    place = ", ".join(
        part
        for part in (f"row {row}" if row is not None else "", f"field {field!r}" if field else "")
        if part
    )
    return errors.InvalidInput(f"In {place}: {detail}" if place else detail, **details)


# ---------------------------------------------------------------------------------------------- decoder types


def value_type(field: Field) -> Any:
    """The decoder's type of one row's value of a field."""
    kind: Any = _PYTHON[field.type]
    if field.categories is not None and field.type not in FLOATS:
        kind = Literal[tuple(field.categories)]
    elif field.type in _NUMBERS:
        low, high = _limits(field)
        bounds = {key: value for key, value in (("ge", low), ("le", high)) if value is not None}
        if bounds:
            kind = Annotated[kind, msgspec.Meta(**bounds)]
    for length in reversed(field.dimensions):
        kind = list[kind]
        if length >= 0:
            kind = Annotated[kind, msgspec.Meta(min_length=length, max_length=length)]
    return Optional[kind] if field.nullable else kind  # noqa: UP045 - a value, not an annotation


def _limits(field: Field) -> tuple[Any, Any]:
    low, high = _BOUNDS.get(field.type, (None, None))
    if field.minimum is not None:
        low = field.minimum if low is None else max(low, field.minimum)
    if field.maximum is not None:
        high = field.maximum if high is None else min(high, field.maximum)
    if field.type in INTEGERS:
        return (math.ceil(low) if low is not None else None, math.floor(high) if high is not None else None)
    return (None if low is None else float(low), None if high is None else float(high))


def row_type(fields: Sequence[Field]) -> type[Any]:
    """A row as an object: one member per field, unknown members refused."""
    return _struct("Row", [(field, value_type(field)) for field in fields])


def columns_type(fields: Sequence[Field]) -> type[Any]:
    """All rows as an object of columns."""
    return _struct("Columns", [(field, list[value_type(field)]) for field in fields])  # type: ignore[misc]


def _struct(name: str, members: list[tuple[Field, Any]]) -> type[Any]:
    spec: list[Any] = []
    for index, (field, kind) in enumerate(members):
        attribute = f"f{index}"
        spec.append((attribute, kind) if field.required else (attribute, kind, None))
    names = {f"f{index}": field.name for index, (field, _) in enumerate(members)}
    return msgspec.defstruct(name, spec, rename=names, forbid_unknown_fields=True, kw_only=True, gc=False)


def tuple_type(fields: Sequence[Field]) -> Any:
    """A row as a list, in the order of the signature."""
    return tuple[tuple(value_type(field) for field in fields)]  # type: ignore[misc]


def moments(field: Field, values: Sequence[Any]) -> list[Any]:
    """A column of texts as times. Numbers are none: nobody knows whether they count seconds, or spell a day.

    Raises:
        InvalidInput: a text is not written as RFC 3339 says.
    """
    read = []
    for row, value in enumerate(values):
        try:
            read.append(msgspec.convert(value, datetime) if isinstance(value, str) else value)
        except msgspec.ValidationError as problem:
            text = f"{value[:60]!r} is no time as RFC 3339 writes it, such as 2026-01-31T12:00:00Z."
            raise refused(text, row=row, field=field.name) from problem
    return read


def to_array(field: Field, values: Sequence[Any]) -> Array:
    """One column of checked values. Missing numbers become NaN; missing values of other kinds stay None."""
    missing = None in values if field.type in _NUMBERS else any(value is None for value in values)
    if field.type is DataType.DATETIME:
        return np.array([_naive(value) for value in values], dtype="datetime64[us]")
    if missing and field.type not in FLOATS:
        if field.type in INTEGERS and not field.dimensions:
            return np.array([math.nan if value is None else value for value in values], dtype="float64")
        return _objects(values)
    if DTYPES[field.type] == "object" and not field.dimensions:
        return _objects(values)
    try:
        return np.array(values, dtype=DTYPES[field.type])
    except ValueError as problem:
        raise refused("rows of different shapes cannot be one batch.", field=field.name) from problem


class Numbers:
    """The way of rows that hold nothing but numbers of one type: all at once, instead of column by column."""

    def __init__(self, fields: Sequence[Field]) -> None:
        limits = [_limits(field) for field in fields]
        self.names = [field.name for field in fields]
        self.nullable = any(field.nullable for field in fields)
        """Whether a value may be missing: else the decoder sees to it that none is."""
        self._limited = any(limit is not None for pair in limits for limit in pair)
        self._dtype = DTYPES[fields[0].type]
        self._low = np.array([-math.inf if low is None else low for low, _ in limits])
        self._high = np.array([math.inf if high is None else high for _, high in limits])
        self._needed = np.array([not field.nullable for field in fields])

    @classmethod
    def of(cls, fields: Sequence[Field]) -> "Numbers | None":
        """For these fields; None where they are something else."""
        alike = len(fields) > 1 and len({field.type for field in fields}) == 1
        plain = all(f.type in FLOATS and not f.dimensions and f.categories is None for f in fields)
        return cls(fields) if alike and plain else None

    def table(self, rows: Sequence[Sequence[float | None]]) -> Table:
        """Rows that were checked, in the order of the fields. What is missing becomes NaN."""
        return Table(self.names, np.array(rows, dtype=self._dtype))

    def checked(self, rows: Sequence[Sequence[float | None]], order: Sequence[int]) -> Table | None:
        """Rows of numbers, maybe in another order; None where a value is out of range, or missing and needed.

        Args:
            order: where each field's value stands in a row; nothing where that is the fields' own order.
        """
        found = np.array(rows, dtype="float64")
        if order:
            found = found.take(order, axis=1)
        if self._limited and ((found < self._low) | (found > self._high)).any():
            return None
        if self.nullable and (np.isnan(found) & self._needed).any():
            return None
        return Table(self.names, found.astype(self._dtype, copy=False))


def _objects(values: Sequence[Any]) -> Array:
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


def _naive(value: datetime | None) -> datetime | None:
    return value.astimezone(UTC).replace(tzinfo=None) if value is not None and value.tzinfo else value


# ------------------------------------------------------------------------------------------------- the errors

_PLACE = re.compile(r"^(?P<text>.*?)(?: - at `(?P<path>\$.*)`)?$", re.DOTALL)
_NAMED = re.compile(r"Object (?:missing required|contains unknown) field `(?P<field>.*)`")


def explained(problem: msgspec.ValidationError, fields: Sequence[Field], prefix: str) -> errors.InvalidInput:
    """A decoder's complaint as a refusal that names row and field.

    Args:
        prefix: the path of the rows or columns in the body, such as `$.inputs`.
    """
    match = _PLACE.match(str(problem))
    assert match is not None
    text, path = match["text"].rstrip("."), (match["path"] or "$").removeprefix(prefix)
    row: int | None = None
    field: str | None = None
    if found := re.match(r"\[(\d+)\]", path):
        row, path = int(found[1]), path[found.end() :]
        if path.startswith("."):
            field = _longest(path[1:], fields)
        elif (position := re.match(r"\[(\d+)\]", path)) and int(position[1]) < len(fields):
            field = fields[int(position[1])].name
    elif path.startswith("."):
        field = _longest(path[1:], fields)
        if field is not None and (found := re.match(r"\[(\d+)\]", path[1 + len(field) :])):
            row = int(found[1])
    if named := _NAMED.match(text):
        field = named["field"]
        text = "the signature does not know this field" if "unknown" in text else "this field is missing"
    categories = next((f.categories for f in fields if f.name == field and f.categories is not None), None)
    if categories is not None and "Invalid" in text:
        shown = ", ".join(repr(category) for category in categories[:_CATEGORIES_SHOWN])
        more = (
            f" and {len(categories) - _CATEGORIES_SHOWN} more" if len(categories) > _CATEGORIES_SHOWN else ""
        )
        text = f"{text}; known are {shown}{more}"
    text = text.replace("`", "")
    return refused(f"{text[:1].lower()}{text[1:]}.", row=row, field=field)


def _longest(path: str, fields: Sequence[Field]) -> str | None:
    """The field that a path names; names are free text and may hold dots and brackets themselves."""
    names = [f.name for f in fields if path == f.name or path.startswith((f.name + "[", f.name + "."))]
    return max(names, key=len, default=None)


def check_rows(count: int) -> None:
    """Refuse no rows, and too many."""
    if count == 0:
        raise refused("There are no rows; send at least one.")
    if count > ROWS_MAX:
        raise errors.LimitExceeded(
            f"There are {count:,} rows; send at most {ROWS_MAX:,} at a time.", limit=ROWS_MAX
        )


# ---------------------------------------------------------------------------------------------- without types


def guess_array(values: Sequence[Any], name: str) -> Array:
    """A column of values that no signature describes: one kind of value, rectangular.

    Raises:
        InvalidInput: ragged, or a mixture of kinds.
    """
    try:
        array = np.array(values)
    except ValueError as problem:
        raise refused("the rows have different lengths.", field=name or None) from problem
    if array.dtype.kind == "O" and all(value is None or type(value) in (int, float) for value in values):
        array = np.array(values, dtype="float64")
    if array.dtype.kind not in _PLAIN_KINDS:
        raise refused("the values are of different kinds, or no plain values.", field=name or None)
    if array.dtype.kind == "U":
        flat = (
            values
            if array.ndim == 1
            else [cell for row in values for cell in (row if isinstance(row, list) else [row])]
        )
        if not all(isinstance(value, str) for value in flat):
            raise refused("text and numbers are mixed; send columns by name.", field=name or None)
        return array.astype(object)
    return array


def guess_columns(value: Any) -> Columns:
    """Rows (lists or objects) or columns that no signature describes.

    Raises:
        InvalidInput: they do not form a table.
    """
    if isinstance(value, dict):
        if not value or not all(isinstance(column, list) for column in value.values()):
            raise refused("Send a list of rows, or an object of columns of equal length.")
        lengths = {len(column) for column in value.values()}
        if len(lengths) != 1:
            raise refused("The columns have different lengths.")
        check_rows(lengths.pop())
        return {str(name): guess_array(column, str(name)) for name, column in value.items()}
    if not isinstance(value, list):
        raise refused("Send a list of rows, or an object of columns.")
    check_rows(len(value))
    if not isinstance(value[0], dict):
        return {"": guess_array(value, "")}
    names = list(value[0])
    if not names:
        raise refused("the row has no fields.", row=0)
    for index, row in enumerate(value):
        if not isinstance(row, dict) or set(row) != set(names):
            raise refused("this row has other fields than the first one.", row=index)
    return {name: guess_array([row[name] for row in value], name) for name in names}


# ----------------------------------------------------------------------------------------------- whole arrays


def check_columns(signature: Signature, columns: Columns) -> dict[str, Array]:
    """Arrays against the input side: names, types, shapes, ranges, categories. Returns them in the
    signature's order.

    Raises:
        InvalidInput: names the first bad row and its field.
    """
    fields = signature.inputs
    known = {field.name for field in fields}
    if len(columns) == 1 and not known & set(columns) and not any(field.dimensions for field in fields):
        columns = _split(fields, next(iter(columns.values())), next(iter(columns)))
    for name in columns:
        if name not in known:
            raise refused("the signature does not know this field.", field=name)
    rows = {len(array) for array in columns.values()}
    if len(rows) != 1:
        raise refused("The tensors have different numbers of rows.")
    count = rows.pop()
    check_rows(count)
    ordered: dict[str, Array] = {}
    for field in fields:
        array = columns.get(field.name)
        if array is None:
            if field.required:
                raise refused("this field is missing.", field=field.name)
            array = to_array(field, [None] * count)
        else:
            wrong = amiss(field, array)
            if wrong is not None:
                raise refused(wrong[1], row=wrong[0], field=field.name)
            array = _cast(field, array)
        ordered[field.name] = array
    return ordered


def _split(fields: Sequence[Field], matrix: Array, name: str) -> Columns:
    if matrix.ndim != 2 or matrix.shape[1] != len(fields):
        raise refused(
            f"the shape must be [rows, {len(fields)}], not {list(matrix.shape)}.", field=name or None
        )
    return {field.name: matrix[:, index] for index, field in enumerate(fields)}


def _cast(field: Field, array: Array) -> Array:
    array = scalar_shape(field, array)
    if field.type is DataType.DATETIME and array.dtype.kind == "O":
        return to_array(field, moments(field, array.tolist()))
    if field.type in _NUMBERS or field.type is DataType.BOOL:
        return (
            array
            if array.dtype.kind == "f" and field.type in INTEGERS
            else array.astype(DTYPES[field.type], copy=False)
        )
    return array


def scalar_shape(field: Field, array: Array) -> Array:
    """[n, 1] and [n] are both a column of single values."""
    return array[:, 0] if not field.dimensions and array.ndim == 2 and array.shape[1] == 1 else array


_KINDS: Mapping[DataType, str] = {
    DataType.BOOL: "b",
    DataType.INT32: "iu",
    DataType.INT64: "iu",
    DataType.FLOAT32: "fiu",
    DataType.FLOAT64: "fiu",
    DataType.STRING: "OUT",
    DataType.DATETIME: "MO",
    DataType.BYTES: "OS",
}


def amiss(field: Field, array: Array) -> tuple[int | None, str] | None:
    """The first thing in an array that its field does not allow, as (row, sentence); None when there is
    none."""
    array = scalar_shape(field, array)
    shape, wanted = array.shape[1:], field.dimensions
    if len(shape) != len(wanted) or any(w >= 0 and s != w for s, w in zip(shape, wanted, strict=True)):
        return None, f"a row's shape must be {list(wanted)}, not {list(shape)}."
    kind = array.dtype.kind
    free = field.minimum is None and field.maximum is None and field.categories is None
    if free and kind == "i" and array.dtype.itemsize == _WIDTHS.get(field.type):
        return None
    holes = field.nullable and field.type in INTEGERS and kind == "f"  # missing integers are NaN
    if kind not in _KINDS[field.type] and not holes:
        return None, f"the values must be {field.type}, not {array.dtype}."
    if kind == "f":
        bad = np.isinf(array) if field.nullable else ~np.isfinite(array)
        if bad.any():
            return _row(bad), "the value is not a finite number."
    if kind in "iuf" and array.size:
        low, high = _limits(field)
        if low is not None and bool((below := array < low).any()):
            return _row(below), f"the value is below {low}."
        if high is not None and bool((above := array > high).any()):
            return _row(above), f"the value is above {high}."
    if kind == "O":
        text = bytes if field.type is DataType.BYTES else str
        for index, value in enumerate(array.ravel()):
            if not (
                isinstance(value, text) or (value is None and field.nullable) or isinstance(value, datetime)
            ):
                return index // max(
                    1, array[0].size if array.ndim > 1 else 1
                ), f"the value is no {field.type}."
    if field.categories is not None:
        known = set(field.categories)
        for index, value in enumerate(array.tolist()):
            if value not in known and not (value is None and field.nullable):
                return index, f"{str(value)[:60]!r} is none of the known categories."
    return None


def _row(mask: Array) -> int:
    return int(np.argmax(mask.reshape(len(mask), -1).any(axis=1)))


def output_problem(fields: Sequence[Field], outputs: Columns, rows: int) -> str | None:
    """What of a version's answer breaks its own signature, in one sentence; None when nothing does."""
    for field in fields:
        array = outputs.get(field.name)
        if array is None:
            return f"The output {field.name!r} is missing."
        if len(array) != rows:
            return f"The output {field.name!r} has {len(array)} rows for {rows}."
        wrong = amiss(field, array)
        if wrong is not None:
            place = f" in row {wrong[0]}" if wrong[0] is not None else ""
            return f"The output {field.name!r}{place}: {wrong[1]}"
    return None
