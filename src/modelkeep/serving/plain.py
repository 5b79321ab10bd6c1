"""Bodies as tables of plain values: CSV, frames as pandas writes them, rows and columns.

Only their form is looked at: that rows are of one length, that no column stands twice, that no row leaves out
what every row needs. Which values a signature allows is the business of `validation`, and what becomes of
those that miss it that of `leniency`.
"""

import csv
import io
import re
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import msgspec
from msgspec import Struct

from modelkeep.core import errors
from modelkeep.core.signature import DataType, Field, Signature
from modelkeep.serving import validation
from modelkeep.serving.messages import Door
from modelkeep.serving.validation import FLOATS, INTEGERS, refused

FORMATS = ("dataframe_split", "dataframe_records", "instances", "inputs")
"""Under which names MLflow's protocol has a table."""
LEFT_OUT = msgspec.UNSET
"""Stands where a row says nothing of a field, which is not the same as null."""
NUMBER_TEXT_MAX = 400
"""Characters of a number that is written as text: the largest double has 309 digits."""
WHOLE_DIGITS_MAX = 19
"""Digits of the largest whole number of 64 bits."""
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,9})?")
_NOT_FINITE = frozenset({"nan", "inf", "infinity"})
_BESIDE: dict[Door, frozenset[str]] = {Door.INVOCATIONS: frozenset({"params"})}
"""What a body may hold beside its table."""


class Split(Struct, forbid_unknown_fields=True):
    """A frame as pandas writes it."""

    data: list[list[Any]]
    columns: list[str | int] | None = None
    index: list[Any] = []


class Sent(Struct, frozen=True, kw_only=True):
    """A table as it was sent. `by_column`: as columns. `more`: something stood there that nobody knows,
    and is left out here."""

    columns: dict[str, list[Any]]
    rows: int
    by_column: bool = False
    more: bool = False


def sent(door: Door, body: bytes, signature: Signature) -> Sent | None:
    """The table in a body of JSON; None when the body is not of its protocol's shape.

    Raises:
        InvalidInput: it forms no table, or a row leaves out a field that it needs.
        LimitExceeded: too many rows.
    """
    try:
        document = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    formats = ("inputs",) if door is Door.PREDICT else FORMATS
    given = [name for name in formats if isinstance(document, dict) and name in document]
    if len(given) != 1:
        return None
    value = document[given[0]]
    if given[0] == "dataframe_split":
        try:
            split = msgspec.convert(value, Split)
        except msgspec.ValidationError:
            return None
        table = Sent(columns=framed(split, signature), rows=len(split.data))
    elif isinstance(value, dict):
        rows = rows_of(value)
        table = Sent(columns=value, rows=rows, by_column=door is Door.PREDICT)
    else:
        table = _from_rows(value, signature)
    more = not document.keys() <= {given[0], *_BESIDE.get(door, ())}
    return msgspec.structs.replace(table, more=True) if more else table


def framed(split: Split, signature: Signature | None) -> dict[str, list[Any]]:
    """The columns of a frame; one whose columns have no names but 0, 1, ... is in the model's own order. The
    empty name holds the rows of such a frame where no signature names them.

    Raises:
        InvalidInput: ragged, a column twice, or not the columns that the model takes.
        LimitExceeded: too many rows.
    """
    validation.check_rows(len(split.data))
    fields = signature.inputs if signature is not None else ()
    width = len(split.data[0])
    columns = list(range(width)) if split.columns is None else split.columns
    for index, row in enumerate(split.data):
        if len(row) != len(columns):
            raise refused(f"this row has {len(row)} values for {len(columns)} columns.", row=index)
    names = [str(name) for name in columns]
    if columns == list(range(width)) and not set(names) & {field.name for field in fields}:
        if signature is None:
            return {"": split.data}
        if width != len(fields) or not signature.positional:
            raise refused(f"Send the names of the {len(fields)} columns.")
        names = [field.name for field in fields]
    _check_names(names)
    return {name: [row[index] for row in split.data] for index, name in enumerate(names)}


def csv_columns(body: bytes) -> dict[str, list[Any]]:
    """Text by column; what is empty is null.

    Raises:
        MalformedBody: not CSV.
        InvalidInput: no rows, ragged, or a column twice.
    """
    try:
        lines = list(csv.reader(io.StringIO(body.decode("utf-8-sig"), newline=""), strict=True))
    except (UnicodeDecodeError, csv.Error) as problem:
        raise errors.MalformedBody(f"The body is not valid CSV in UTF-8: {problem}.") from problem
    lines = [line for line in lines if line]
    if len(lines) < 2:
        raise refused("There are no rows; send a header line and at least one row.")
    header, *rows = lines
    _check_names(header)
    for index, row in enumerate(rows):
        if len(row) != len(header):
            raise refused(f"this row has {len(row)} values for {len(header)} columns.", row=index)
    return {name: [row[index] or None for row in rows] for index, name in enumerate(header)}


def number(text: str) -> Decimal:
    """A number digit for digit, as JSON and CSV spell it: Python would take more for one, such as 10_20.

    Raises:
        ValueError: it is none, or too long to be one.
    """
    if len(text) > NUMBER_TEXT_MAX or not _NUMBER.fullmatch(text):
        raise ValueError("no number")
    return Decimal(text)


def whole(text: str) -> int:
    """A whole number that is written as text, maybe with a fraction of nothing.

    Raises:
        ValueError: it is none, or beyond 64 bits.
    """
    spelled = number(text)
    if spelled.adjusted() >= WHOLE_DIGITS_MAX or spelled != int(spelled):
        raise ValueError("no whole number of 64 bits")
    return int(spelled)


def read_texts(fields: Sequence[Field], columns: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """Columns of CSV with what the decoder would take for something else read here: it counts the digits of a
    time as seconds, rounds long numbers to the next double, and knows of NaN.

    Raises:
        InvalidInput: a text means no value of its field; names the row.
    """
    read = dict(columns)
    for field in fields:
        values = columns.get(field.name)
        if values is None:
            continue
        if field.type is DataType.DATETIME:
            read[field.name] = validation.moments(field, values)
        elif field.type in INTEGERS:
            read[field.name] = [_digits(field, row, text) for row, text in enumerate(values)]
        elif field.type in FLOATS:
            for row, text in enumerate(values):
                spelled = (text or "").lstrip("+-").lower()
                if spelled in _NOT_FINITE and not (field.nullable and spelled == "nan"):
                    raise refused("the value is not a finite number.", row=row, field=field.name)
    return read


def _digits(field: Field, row: int, text: str | None) -> Any:
    """A whole number; text that is no number at all is left as it is, for who refuses it or makes it fit."""
    if text is None or (text.isascii() and text.isdigit() and len(text) < WHOLE_DIGITS_MAX):
        return text and int(text)
    if not _NUMBER.fullmatch(text):
        return text
    try:
        return whole(text)
    except ValueError as problem:
        raise refused(f"{text[:60]!r} is no {field.type}.", row=row, field=field.name) from problem


def rows_of(columns: dict[str, Any]) -> int:
    """How many rows an object of columns has.

    Raises:
        InvalidInput: they are no columns of equal length.
        LimitExceeded: too many rows.
    """
    if not columns or not all(isinstance(column, list) for column in columns.values()):
        raise refused("Send a list of rows, or an object of columns of equal length.")
    lengths = {len(column) for column in columns.values()}
    if len(lengths) != 1:
        raise refused("The columns have different lengths.")
    rows = lengths.pop()
    validation.check_rows(rows)
    return rows


def _check_names(names: Sequence[str]) -> None:
    if len(set(names)) != len(names):
        raise refused("A column stands twice.")


def _from_rows(value: Any, signature: Signature) -> Sent:
    """Rows as objects or lists. Columns are made of what the signature knows alone: callers could name others
    without end."""
    if not isinstance(value, list):
        raise refused("Send a list of rows, or an object of columns.")
    validation.check_rows(len(value))
    fields = signature.inputs
    if not isinstance(value[0], dict):
        for index, row in enumerate(value):
            if not isinstance(row, list) or len(row) != len(fields) or not signature.positional:
                raise refused(f"this row is no list of the {len(fields)} fields.", row=index)
        columns = {field.name: [row[i] for row in value] for i, field in enumerate(fields)}
        return Sent(columns=columns, rows=len(value))
    needed = [field.name for field in fields if field.required]
    for index, row in enumerate(value):
        if not isinstance(row, dict):
            raise refused("this row is no object, as the first one is.", row=index)
        missing = next((name for name in needed if name not in row), None)
        if missing is not None:
            raise refused("this field is missing.", row=index, field=missing)
    known = {field.name for field in fields}
    columns = {field.name: [row.get(field.name, LEFT_OUT) for row in value] for field in fields}
    return Sent(columns=columns, rows=len(value), more=any(not row.keys() <= known for row in value))
