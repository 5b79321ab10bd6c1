"""The three ways to ask for a prediction, decoded into columns and encoded back.

    predict      {"inputs": rows or columns}                       {"outputs": in the same form}
    infer        Open Inference Protocol v2, JSON or binary        tensors, row-major
    invocations  MLflow's scoring protocol, and CSV                {"predictions": rows}

Numbers that are not finite leave as JSON null: JSON has no other way to say them, and where the signature
does not allow null the answer is a violation before it gets here. What the columns mean is the runtime's
business.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from msgspec import Struct

from modelkeep.core import errors
from modelkeep.core.signature import DataType, Field, Signature
from modelkeep.serving import binary, leniency, plain, validation
from modelkeep.serving.messages import Door
from modelkeep.serving.options import ROWS_MAX
from modelkeep.serving.plain import FORMATS, Split
from modelkeep.serving.tensors import TENSOR_TYPES, Tensor, of_bytes, of_json
from modelkeep.serving.validation import Array, Columns, refused

_astuple = msgspec.structs.astuple
TENSORS_MAX = 5_000
"""Tensors of one request: as many as a signature has fields."""


class Asked(Struct, frozen=True, kw_only=True):
    """A decoded request. `as_columns`: the caller sent columns and gets columns. `outputs`: the tensors that
    the caller wants, in this order; empty for all. `binary`: those of them that leave as bytes. `missed`: the
    fields that missed the signature and were made to fit."""

    columns: Columns
    rows: int
    as_columns: bool = False
    identity: str = ""
    outputs: tuple[str, ...] = ()
    binary: frozenset[str] | bool = False
    missed: frozenset[str] = frozenset()


class _OutParameters(Struct, frozen=True):
    binary_data: bool | None = None


class _Wanted(Struct):
    name: str
    parameters: _OutParameters = _OutParameters()


class _InferParameters(Struct, frozen=True):
    binary_data_output: bool = False


class _Infer(Struct):
    inputs: list[Tensor]
    id: str = ""
    parameters: _InferParameters = _InferParameters()
    outputs: list[_Wanted] = []


_TYPE_NAMES = {dtype: name for name, (dtype, _) in TENSOR_TYPES.items()}


def _decoder_of(name: str, kind: Any) -> msgspec.json.Decoder[Any]:
    """Reads a body whose `inputs` or `instances` are of a kind."""
    forms = [(form, kind | msgspec.UnsetType, msgspec.UNSET) for form in ("inputs", "instances")]
    members = [*forms, ("params", dict[str, Any] | None, None)]
    return msgspec.json.Decoder(msgspec.defstruct(name, members, forbid_unknown_fields=True))


def _frame_decoder(number: Any) -> msgspec.json.Decoder[Any]:
    """Reads the commonest body by far: a frame of numbers, with the names of its columns."""
    frame: list[Any] = [("data", list[list[number]]), ("columns", list[str]), ("index", list[Any], [])]
    split = msgspec.defstruct("NumbersSplit", frame, forbid_unknown_fields=True, gc=False)
    members: list[Any] = [("dataframe_split", split), ("params", dict[str, Any] | None, None)]
    return msgspec.json.Decoder(msgspec.defstruct("NumbersScoring", members, forbid_unknown_fields=True))


def _whole_decoder(signature: Signature) -> msgspec.json.Decoder[Any] | None:
    """Reads a body that is the only field of a signature, without a name; None where there are others."""
    fields = signature.inputs
    if len(fields) != 1 or not signature.positional:
        return None
    rows: Any = list[validation.value_type(fields[0])]  # type: ignore[misc]  # made from data
    return _decoder_of("WholeTensor", rows)


class Decoder:
    """Requests for one version, checked against its signature while they are decoded."""

    def __init__(self, signature: Signature | None) -> None:
        fields = signature.inputs if signature is not None else ()
        self._signature = signature if fields else None
        self._fields: Sequence[Field] = fields
        self._blobs = {field.name for field in fields if field.type is DataType.BYTES}
        self._numbers = validation.Numbers.of(fields)
        self._frame = _frame_decoder(
            float | None if self._numbers is not None and self._numbers.nullable else float
        )
        self._order: tuple[list[str], list[int]] = ([], [])
        """The names of the columns that were sent last, and where each field stood among them."""
        self._infer = msgspec.json.Decoder(_Infer)
        rows: Any = list[Any]
        columns: Any = dict[str, Any]
        split: Any = Split
        if fields:
            assert signature is not None
            row: Any = validation.row_type(fields)
            columns = validation.columns_type(fields)
            either_row = row | validation.tuple_type(fields) if signature.positional else row
            rows = list[either_row]  # type: ignore[valid-type]  # made from data
        self._columns = columns
        either = rows | columns
        self._predict = msgspec.json.Decoder(
            msgspec.defstruct("Predict", [("inputs", either)], forbid_unknown_fields=True, gc=False)
        )
        members = [
            ("dataframe_split", split),
            ("dataframe_records", rows),
            ("instances", either),
            ("inputs", either),
        ]
        optional = [(name, kind | msgspec.UnsetType, msgspec.UNSET) for name, kind in members]
        self._invocations = msgspec.json.Decoder(
            msgspec.defstruct(
                "Invocations",
                [*optional, ("params", dict[str, Any] | None, None)],
                forbid_unknown_fields=True,
            )
        )

        self._whole = _whole_decoder(signature) if signature is not None else None
        self._one_row = _decoder_of("OneRow", validation.row_type(fields)) if fields else None

    def decode(self, door: Door, body: bytes, *, lenient: bool = False) -> Asked:
        """The columns of a request.

        Args:
            lenient: what misses the signature is made to fit where that is plain.

        Raises:
            MalformedBody: not JSON (or CSV), or not the protocol's own shape.
            InvalidInput: breaks the signature, or is no table; names row and field.
            LimitExceeded: too many rows.
        """
        try:
            try:
                return self._strictly(door, body)
            except errors.Invalid as refusal:
                asked = self._leniently(door, body) if lenient and self._signature is not None else None
                if asked is None:
                    raise
                place = str(refusal.details.get("field", leniency.WHOLE))
                return asked if asked.missed else msgspec.structs.replace(asked, missed=frozenset({place}))
        except RecursionError as problem:
            raise errors.MalformedBody("The document is nested too deeply; flatten it.") from problem

    def _strictly(self, door: Door, body: bytes) -> Asked:
        match door:
            case Door.PREDICT:
                value = self._typed(self._predict, body, ("inputs",)).inputs
                return self._table(value)
            case Door.INFER:
                return self._tensors(body, b"")
            case Door.INFER_BINARY:
                return self._tensors(*binary.parts(body))
            case Door.INVOCATIONS:
                return self._scoring(body)
            case Door.INVOCATIONS_CSV:
                return self._csv(body)

    def _typed(self, decoder: msgspec.json.Decoder[Any], body: bytes, members: Sequence[str]) -> Any:
        try:
            return decoder.decode(body)
        except msgspec.ValidationError as problem:
            path = str(problem).rpartition(" - at `")[2].rstrip("`")
            for member in members:
                rest = path.removeprefix(f"$.{member}")
                if rest != path and rest and self._signature is not None:
                    raise validation.explained(problem, self._fields, f"$.{member}") from problem
                if rest != path and self._signature is not None and "field" in str(problem):
                    raise validation.explained(problem, self._fields, f"$.{member}") from problem
            raise errors.MalformedBody(
                f"The body does not have the expected shape: {_plain(problem)}."
            ) from problem
        except (msgspec.DecodeError, UnicodeDecodeError) as problem:
            raise errors.MalformedBody(f"The body is not valid JSON: {_plain(problem)}.") from problem

    def _leniently(self, door: Door, body: bytes) -> Asked | None:
        """A request that missed the signature, made to fit. None: it is not even of the protocol's shape."""
        signature = self._signature
        assert signature is not None
        asked = Asked(columns={}, rows=0)
        amiss: set[str] = set()
        given: Mapping[str, Sequence[Any]]
        match door:
            case Door.INFER | Door.INFER_BINARY:
                head, blobs = binary.parts(body) if door is Door.INFER_BINARY else (body, b"")
                asked = self._tensors(head, blobs, checked=False)
                rows = asked.rows
                given, amiss = leniency.of_tensors(signature, asked.columns)
            case Door.INVOCATIONS_CSV:
                given = plain.read_texts(self._fields, plain.csv_columns(body))
                rows = plain.rows_of(given)
            case _:
                table = plain.sent(door, body, signature)
                if table is None:
                    return None
                given, rows = table.columns, table.rows
                asked = msgspec.structs.replace(asked, as_columns=table.by_column)
                amiss = {leniency.UNKNOWN} if table.more else amiss
        columns, missed = leniency.fit(signature, given, rows, typed=door is not Door.INVOCATIONS_CSV)
        return msgspec.structs.replace(asked, columns=columns, rows=rows, missed=missed | amiss)

    # ------------------------------------------------------------------------------------------------- tables

    def _table(self, value: Any) -> Asked:
        """Rows or columns, already checked where there is a signature."""
        if self._signature is None:
            columns = validation.guess_columns(value)
            return Asked(columns=columns, rows=_rows(columns), as_columns=isinstance(value, dict))
        fields = self._fields
        if not isinstance(value, list):
            return self._from_columns(value)
        validation.check_rows(len(value))
        if self._numbers is not None:
            rows = [row if isinstance(row, tuple) else _astuple(row) for row in value]
            return Asked(columns=self._numbers.table(rows), rows=len(value))
        columns = {}
        if isinstance(value[0], tuple) and all(isinstance(row, tuple) for row in value):
            for index, field in enumerate(fields):
                columns[field.name] = validation.to_array(field, [row[index] for row in value])
        else:
            for index, field in enumerate(fields):
                attribute = f"f{index}"
                values = [row[index] if isinstance(row, tuple) else getattr(row, attribute) for row in value]
                columns[field.name] = validation.to_array(field, values)
        return Asked(columns=columns, rows=len(value))

    def _from_columns(self, value: Any) -> Asked:
        present = [
            (f, column) for i, f in enumerate(self._fields) if (column := getattr(value, f"f{i}")) is not None
        ]
        lengths = {len(column) for _, column in present}
        if len(lengths) > 1:
            raise refused("The columns have different lengths.")
        rows = lengths.pop() if lengths else 0
        validation.check_rows(rows)
        given = {field.name: column for field, column in present}
        columns = {f.name: validation.to_array(f, given.get(f.name) or [None] * rows) for f in self._fields}
        return Asked(columns=columns, rows=rows, as_columns=True)

    def _scoring(self, body: bytes) -> Asked:
        if self._numbers is not None and (found := self._scored_numbers(body, self._numbers)) is not None:
            return found
        try:
            asked = self._typed(self._invocations, body, FORMATS)
        except errors.Invalid:
            other = self._whole_tensor(body) or self._single_row(body)
            if other is None:
                raise
            return other
        given = [name for name in FORMATS if getattr(asked, name) is not msgspec.UNSET]
        if len(given) != 1:
            raise errors.MalformedBody(f"Send exactly one of {', '.join(FORMATS)}.")
        value = getattr(asked, given[0])
        if not isinstance(value, Split):
            return msgspec.structs.replace(self._table(value), as_columns=False)
        return self._named(plain.framed(value, self._signature), strict=True)

    def _scored_numbers(self, body: bytes, numbers: validation.Numbers) -> Asked | None:
        """A frame of nothing but numbers, at once. None for anything else, also for what has to be refused:
        who looks at every value can say which one is wrong."""
        try:
            value = self._frame.decode(body).dataframe_split
        except (msgspec.DecodeError, UnicodeDecodeError):
            return None
        names, rows = value.columns, value.data
        if names != self._order[0]:
            if sorted(names) != sorted(numbers.names):
                return None
            places = [names.index(name) for name in numbers.names]
            self._order = (names, places if names != numbers.names else [])
        width = len(names)
        if not 0 < len(rows) <= ROWS_MAX or {*map(len, rows)} != {width}:
            return None
        columns = numbers.checked(rows, self._order[1])
        return Asked(columns=columns, rows=len(rows)) if columns is not None else None

    def _whole_tensor(self, body: bytes) -> Asked | None:
        """The one tensor that the model takes, as MLflow sends it: with neither a name nor a list around each
        row. None when that is not what was sent."""
        if self._whole is None:
            return None
        try:
            asked = self._whole.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return None
        given = [value for value in (asked.inputs, asked.instances) if value is not msgspec.UNSET]
        if len(given) != 1:
            return None
        (rows,), (field,) = given, self._fields
        validation.check_rows(len(rows))
        return Asked(columns={field.name: validation.to_array(field, rows)}, rows=len(rows))

    def _single_row(self, body: bytes) -> Asked | None:
        """One row as an object of plain values, as MLflow takes it. None when that is not what was sent."""
        if self._one_row is None:
            return None
        try:
            asked = self._one_row.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return None
        given = [value for value in (asked.inputs, asked.instances) if value is not msgspec.UNSET]
        return msgspec.structs.replace(self._table(given), as_columns=False) if len(given) == 1 else None

    def _named(self, names: dict[str, list[Any]], *, strict: bool) -> Asked:
        """Plain columns by name: converted by the signature, or guessed."""
        if self._signature is None:
            columns = validation.guess_columns(names)
            return Asked(columns=columns, rows=_rows(columns))
        try:
            value = msgspec.convert(names, self._columns, strict=strict)
        except msgspec.ValidationError as problem:
            raise validation.explained(problem, self._fields, "$") from problem
        return msgspec.structs.replace(self._from_columns(value), as_columns=False)

    def _csv(self, body: bytes) -> Asked:
        names = plain.csv_columns(body)
        if self._signature is None:
            names = {name: _numbers(column) for name, column in names.items()}
        return self._named(plain.read_texts(self._fields, names), strict=False)

    # ------------------------------------------------------------------------------------------------ tensors

    def _tensors(self, body: bytes, blobs: bytes, *, checked: bool = True) -> Asked:
        asked = self._typed(self._infer, body, ())
        if not asked.inputs or len(asked.inputs) > TENSORS_MAX:
            raise errors.MalformedBody(f"Send 1 to {TENSORS_MAX:,} input tensors.")
        columns: dict[str, Array] = {}
        raw = binary.Blobs(blobs)
        for tensor in asked.inputs:
            if tensor.name in columns:
                raise refused("this tensor stands twice.", field=tensor.name)
            size = tensor.parameters.binary_data_size
            if size is None:
                columns[tensor.name] = of_json(tensor)
            elif tensor.data is not msgspec.UNSET:
                raise refused("the data stands twice, as JSON and as bytes.", field=tensor.name)
            else:
                blob = raw.take(size, tensor.name)
                columns[tensor.name] = of_bytes(tensor, blob, as_text=tensor.name not in self._blobs)
        raw.end()
        if checked and self._signature is not None:
            columns = validation.check_columns(self._signature, columns)
        elif len({len(array) for array in columns.values()}) != 1:
            raise refused("The tensors have different numbers of rows.")
        rows = _rows(columns)
        validation.check_rows(rows)
        as_bytes = {
            wanted.name
            for wanted in asked.outputs
            if wanted.parameters.binary_data
            or (wanted.parameters.binary_data is None and asked.parameters.binary_data_output)
        }
        return Asked(
            columns=columns,
            rows=rows,
            identity=asked.id,
            outputs=tuple(wanted.name for wanted in asked.outputs),
            binary=frozenset(as_bytes) if asked.outputs else asked.parameters.binary_data_output,
        )


def _numbers(column: list[Any]) -> list[Any]:
    """A CSV column that no signature describes: numbers where all are, else text."""
    try:
        return [None if value is None else float(value) for value in column]
    except ValueError:
        return ["" if value is None else value for value in column]


def _rows(columns: Mapping[str, Sequence[Any] | Array]) -> int:
    return len(next(iter(columns.values())))


def _plain(problem: Exception) -> str:
    return str(problem).replace("`", "").rstrip(".")[:200]


# ---------------------------------------------------------------------------------------------------- answers


def encode(door: Door, asked: Asked, outputs: Columns, *, endpoint: str, semver: str) -> bytes:
    """The body of an answer.

    Raises:
        InvalidInput: a tensor was asked for that there is not.
    """
    if door in (Door.INFER, Door.INFER_BINARY):
        tensors = [_tensor(name, array) for name, array in _wanted(asked, outputs).items()]
        return _JSON.encode(_inferred(asked, tensors, endpoint, semver))
    plain = {name: _listed(array) for name, array in outputs.items()}
    if door is Door.PREDICT and asked.as_columns:
        return _JSON.encode({"outputs": plain})
    if len(plain) == 1:
        rows: Any = next(iter(plain.values()))
    else:
        names = list(plain)
        rows = [dict(zip(names, values, strict=True)) for values in zip(*plain.values(), strict=True)]
    return _JSON.encode({"outputs" if door is Door.PREDICT else "predictions": rows})


def encode_binary(asked: Asked, outputs: Columns, *, endpoint: str, semver: str) -> tuple[bytes, bytes]:
    """The body of an answer with tensors as bytes: its JSON, and what comes after it.

    Raises:
        InvalidInput: a tensor was asked for that there is not.
    """
    tensors, blobs = [], []
    for name, array in _wanted(asked, outputs).items():
        if asked.binary is True or (asked.binary and name in asked.binary):
            blob = binary.packed(array)
            blobs.append(blob)
            size = {"binary_data_size": len(blob)}
            tensors.append({**_head(name, array), "parameters": size})
        else:
            tensors.append(_tensor(name, array))
    return _JSON.encode(_inferred(asked, tensors, endpoint, semver)), b"".join(blobs)


def _wanted(asked: Asked, outputs: Columns) -> Columns:
    missing = [name for name in asked.outputs if name not in outputs]
    if missing:
        raise refused("there is no such output.", field=missing[0])
    return {name: outputs[name] for name in asked.outputs} if asked.outputs else outputs


def _inferred(asked: Asked, tensors: list[dict[str, Any]], endpoint: str, semver: str) -> dict[str, Any]:
    answer = {"model_name": endpoint, "model_version": semver, "outputs": tensors}
    return {**answer, "id": asked.identity} if asked.identity else answer


_JSON = msgspec.json.Encoder()


def _listed(array: Array) -> list[Any]:
    listed: list[Any] = array.tolist()
    return listed


def _head(name: str, array: Array) -> dict[str, Any]:
    datatype = _TYPE_NAMES.get(array.dtype.name, "BYTES")
    return {"name": name, "shape": list(array.shape), "datatype": datatype}


def _tensor(name: str, array: Array) -> dict[str, Any]:
    return {**_head(name, array), "data": array.ravel().tolist()}
