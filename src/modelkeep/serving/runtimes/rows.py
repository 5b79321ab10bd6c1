"""What libraries of trees need around them: rows in the order of the model's features, and outputs as the
signature names them, made of what the model answers. No library is known here."""

from collections.abc import Sequence

import numpy as np

from modelkeep.core import errors
from modelkeep.core.signature import DataType, Field
from modelkeep.serving.runtimes import matrix
from modelkeep.serving.validation import DTYPES, Array, Columns

_CLASS_TYPES = frozenset({DataType.BOOL, DataType.INT32, DataType.INT64})
"""A field of these is the class that was decided on; one of any other type is what it was decided by."""
_NUMBERS = "biuf"


def in_order(columns: Columns, names: Sequence[str], width: int, *, ordered: bool) -> Columns:
    """The columns of a request as the model counts them: by its features' names where all are there, else in
    the order in which they come.

    Args:
        names: of the model's features; empty where it has none.
        width: how many there are.
        ordered: the order of the columns means something: it is the signature's, or that of a matrix.

    Raises:
        InvalidInput: there are too few or too many, or their order is not known.
    """
    named = len(columns) > 1 or next(iter(columns.values())).ndim == 1
    if named and names and set(names) <= set(columns):
        return {name: columns[name] for name in names}
    given = len(columns) if named else int(next(iter(columns.values())).shape[1])
    if given != width:
        missing = next((name for name in names if named and name not in columns), None)
        text = f"The model needs the field {missing!r}." if missing else f"The model takes {width} values."
        raise errors.InvalidInput(text, **({"field": missing} if missing else {}))
    if named and len(columns) > 1 and not ordered:
        raise errors.InvalidInput(
            "Without a signature the order of named fields is not known; send rows as lists."
        )
    return columns


def table(columns: Columns, names: Sequence[str], width: int, *, ordered: bool) -> Array:
    """One row of numbers per request row, [rows, width]. Missing values are NaN.

    Raises:
        InvalidInput: as `in_order`; or a field holds something else than numbers.
    """
    return matrix(in_order(columns, names, width, ordered=ordered), "float64")


def outputs(answers: Array, fields: Sequence[Field], *, classes: int, decides: bool) -> Columns:
    """Answers of trees under the names of the signature.

    A field of whole numbers or truth values gets the class, any other the probability: of the positive class
    of two where it is a single value, else one value per class.

    Args:
        answers: [rows], or [rows, classes].
        classes: that the model tells apart; 0 where it does not classify, or says the class itself.
        decides: without a signature, what is asked for is the class.
    """
    if not fields:
        return {"prediction": _decided(answers, classes) if decides and classes else answers}
    return {field.name: _output(answers, field, classes) for field in fields}


def _output(answers: Array, field: Field, classes: int) -> Array:
    if field.type in _CLASS_TYPES and classes and not field.dimensions:
        return _decided(answers, classes).astype(DTYPES[field.type])
    if field.dimensions and classes == 2 and answers.ndim == 1:
        answers = np.column_stack([1 - answers, answers])
    if not field.dimensions and answers.ndim == 2 and answers.shape[1] <= 2:
        answers = answers[:, -1]
    number = DTYPES[field.type] != "object" and field.type is not DataType.DATETIME
    return answers.astype(DTYPES[field.type]) if number and answers.dtype.kind in _NUMBERS else answers


def _decided(answers: Array, classes: int) -> Array:
    """The class of each row, counted from 0."""
    decided = answers.argmax(axis=1) if answers.ndim == 2 else answers > 0.5
    return decided.astype("int64")
