"""Recorded requests as typed rows: columns by the version's signature, and of each field what privacy allows.

One recorded request gives a row for each row that it asked about. What cannot be read (a request that was
refused for its form, an answer in a form of its own) leaves its columns empty: the row itself is never lost
over it. Files are not known here.
"""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec

from modelkeep.core import codec, errors
from modelkeep.core.recording import Privacy, Treatment
from modelkeep.core.routing import WHOLE_PPM, VersionSpec
from modelkeep.core.signature import DataType, Field
from modelkeep.serving import protocols
from modelkeep.serving.labels import Stored
from modelkeep.serving.messages import Door
from modelkeep.serving.pairing import UNREADABLE, outputs
from modelkeep.serving.records import Logged

if TYPE_CHECKING:
    import pyarrow as pa

ROWS_PER_REQUEST_MAX = 1_000
"""Rows of one request that are written down; a batch job through the gateway is no sample of its callers."""
HASH_BYTES = 12
"""Of a hashed value: enough that two values of one field do not meet by chance."""
INPUT, OUTPUT = "input.", "output."
"""Before a field's name in its column's name."""
UNTYPED_INPUTS, UNTYPED_OUTPUTS = "inputs", "outputs"
"""The columns, in JSON, of a version whose signature says nothing of that side."""


class Hasher:
    """The keyed hash of values; the key never leaves the gateway's folder."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def __call__(self, value: Any) -> str | None:
        """A value's hash; None stays None, so that missing values can be counted."""
        if value is None:
            return None
        data = codec.encode(value.isoformat() if isinstance(value, datetime) else value)
        return hashlib.blake2b(data, digest_size=HASH_BYTES, key=self._key).hexdigest()


class _Column:
    """One column that depends on the version."""

    def __init__(self, name: str, kind: "pa.DataType", prepare: Callable[[Any], Any] | None) -> None:
        self.name = name
        self.kind = kind
        self.prepare = prepare
        self.values: list[Any] = []


class Rows:
    """Rows of one endpoint and version that wait to be written. Not thread-safe."""

    def __init__(self, spec: VersionSpec, privacy: Privacy, hasher: Hasher) -> None:
        self.spec = spec
        self.privacy = privacy
        self.count = 0
        signature = spec.signature
        self._decoder = protocols.Decoder(signature)
        self._inputs = signature.inputs if signature is not None else ()
        self._outputs = signature.outputs if signature is not None else ()
        self._hasher = hasher
        self._columns = self._side(self._inputs, INPUT, UNTYPED_INPUTS)
        self._columns |= self._side(self._outputs, OUTPUT, UNTYPED_OUTPUTS)
        self._facts: dict[str, list[Any]] = {name: [] for name in _facts()}

    def _side(self, fields: Sequence[Field], prefix: str, untyped: str) -> dict[str, _Column]:
        import pyarrow as pa

        if not fields:
            return {untyped: _Column(untyped, pa.string(), None)}
        columns: dict[str, _Column] = {}
        for field in fields:
            name = prefix + field.name
            match self.privacy.of(field.name):
                case Treatment.KEEP:
                    columns[name] = _Column(name, _arrow_type(field), None)
                case Treatment.HASH:
                    columns[name] = _Column(name, pa.string(), self._hasher)
                case Treatment.DROP:
                    pass
        return columns

    @property
    def schema(self) -> "pa.Schema":
        """The columns: the same for the same signature and filter."""
        import pyarrow as pa

        facts = [pa.field(name, kind) for name, kind in _facts().items()]
        return pa.schema([*facts, *(pa.field(column.name, column.kind) for column in self._columns.values())])

    def add(self, logged: Logged) -> int:
        """Take in a request. Returns the number of rows it gave."""
        door = Door(logged.door)
        inputs = self._read_inputs(door, logged.body, lenient=logged.reply.status == 200)
        answers = self._read_outputs(door, logged.reply.body) if logged.reply.body else {}
        rows = max((len(column) for column in (*inputs.values(), *answers.values())), default=1)
        rows = min(max(rows, 1), ROWS_PER_REQUEST_MAX)
        at = datetime.fromtimestamp(logged.at, UTC)
        weight = None if logged.weight_ppm is None else logged.weight_ppm / WHOLE_PPM
        facts = (
            at, logged.request_id, logged.endpoint, logged.rollout, self.spec.label, logged.side, weight,
            logged.reply.latency_ms, logged.reply.status,
        )  # fmt: skip
        for name, value in zip((n for n in self._facts if n != "row"), facts, strict=True):
            self._facts[name].extend([value] * rows)
        self._facts["row"].extend(range(rows))
        for name, column in self._columns.items():
            given = inputs.get(name, answers.get(name, ()))[:rows]
            values = given if column.prepare is None else [column.prepare(value) for value in given]
            column.values.extend(values)
            column.values.extend([None] * (rows - len(values)))
        self.count += rows
        return rows

    def take(self) -> "pa.RecordBatch":
        """All rows, and none are left."""
        import pyarrow as pa

        schema = self.schema
        arrays = [pa.array(self._facts[name], type=kind) for name, kind in _facts().items()]
        arrays += [_array(column) for column in self._columns.values()]
        for values in (*self._facts.values(), *(column.values for column in self._columns.values())):
            values.clear()
        self.count = 0
        return pa.RecordBatch.from_arrays(arrays, schema=schema)

    # ------------------------------------------------------------------------------------------------ reading

    def _read_inputs(self, door: Door, body: bytes, *, lenient: bool) -> dict[str, list[Any]]:
        """The columns of a request by the names they have here. `lenient`: it was answered, so that it was
        made to fit where it missed the signature."""
        try:
            columns = self._decoder.decode(door, body, lenient=lenient).columns
        except (errors.ModelkeepError, ValueError, OverflowError):  # it was refused, and the status says so
            return {}
        plain = {name: [_plain(value) for value in array.tolist()] for name, array in columns.items()}
        if self._inputs:
            return {INPUT + name: values for name, values in plain.items()}
        return {UNTYPED_INPUTS: self._untyped(plain)}

    def _read_outputs(self, door: Door, body: bytes) -> dict[str, list[Any]]:
        try:
            found = outputs(door, body)
        except UNREADABLE:
            return {}
        if not self._outputs:
            return {UNTYPED_OUTPUTS: self._untyped(found)}
        if len(self._outputs) == 1 and len(found) == 1:  # answers may leave the only name out
            found = {self._outputs[0].name: next(iter(found.values()))}
        typed: dict[str, list[Any]] = {}
        for field in self._outputs:
            values = found.get(field.name)
            if values is not None:
                typed[OUTPUT + field.name] = _typed(field, values)
        return typed

    def _untyped(self, columns: dict[str, list[Any]]) -> list[Any]:
        """Rows in JSON, each an object of what the filter lets through."""
        kept: dict[str, list[Any]] = {}
        for name, values in columns.items():
            treatment = self.privacy.of(name)
            if treatment is Treatment.KEEP:
                kept[name] = values
            elif treatment is Treatment.HASH:
                kept[name] = [self._hasher(value) for value in values]
        rows = zip(*kept.values(), strict=False)
        return [codec.encode(dict(zip(kept, row, strict=True))).decode() for row in rows]


def with_labels(table: "pa.Table", held: Mapping[tuple[str, int], Stored]) -> "pa.Table":
    """Rows with what became known of them: `label` in JSON, and when it was true and when it was told. Empty
    where nothing is known.

    Args:
        held: the last word for each request and row.
    """
    import pyarrow as pa

    keys = zip(table["request_id"].to_pylist(), table["row"].to_pylist(), strict=True)
    found = [held.get(key) for key in keys]
    words = [codec.encode(stored.label).decode() if stored is not None else None for stored in found]
    moment = pa.timestamp("us", tz="UTC")
    table = table.append_column("label", pa.array(words, type=pa.string()))
    at = [stored.at if stored is not None else None for stored in found]
    told = [stored.received_at if stored is not None else None for stored in found]
    table = table.append_column("label_at", pa.array(at, type=moment))
    return table.append_column("label_received_at", pa.array(told, type=moment))


def _facts() -> "dict[str, pa.DataType]":
    """The columns that every row has."""
    import pyarrow as pa

    return {
        "at": pa.timestamp("us", tz="UTC"),
        "request_id": pa.string(),
        "row": pa.int32(),
        "endpoint": pa.string(),
        "rollout": pa.string(),
        "version": pa.string(),
        "side": pa.string(),
        "propensity": pa.float64(),
        "latency_ms": pa.float64(),
        "status": pa.int16(),
    }


def _arrow_type(field: Field) -> "pa.DataType":
    import pyarrow as pa

    kinds = {
        DataType.BOOL: pa.bool_(),
        DataType.INT32: pa.int32(),
        DataType.INT64: pa.int64(),
        DataType.FLOAT32: pa.float32(),
        DataType.FLOAT64: pa.float64(),
        DataType.STRING: pa.string(),
        DataType.DATETIME: pa.timestamp("us", tz="UTC"),
        DataType.BYTES: pa.binary(),
    }
    kind = kinds[field.type]
    for _ in field.dimensions:
        kind = pa.list_(kind)
    return kind


def _array(column: _Column) -> "pa.Array":
    """A column's values; what does not fit its type is empty, for the row is worth more than the value."""
    import pyarrow as pa

    try:
        return pa.array(column.values, type=column.kind)
    except (pa.ArrowException, OverflowError, TypeError, ValueError):
        return pa.array([_fitting(value, column.kind) for value in column.values], type=column.kind)


def _fitting(value: Any, kind: "pa.DataType") -> Any:
    import pyarrow as pa

    try:
        pa.array([value], type=kind)
    except (pa.ArrowException, OverflowError, TypeError, ValueError):
        return None
    return value


def _typed(field: Field, values: list[Any]) -> list[Any]:
    """Outputs as they stand in JSON, as values of their type."""
    match field.type:
        case DataType.DATETIME:
            return [_converted(value, datetime) for value in values]
        case DataType.BYTES:
            return [_converted(value, bytes) for value in values]
        case DataType.INT32 | DataType.INT64:
            return [int(v) if isinstance(v, float) and v.is_integer() else v for v in values]
        case _:
            return values


def _converted(value: Any, kind: type) -> Any:
    try:
        return msgspec.convert(value, kind) if isinstance(value, str) else None
    except msgspec.ValidationError:
        return None


def _plain(value: Any) -> Any:
    """What an array of numpy holds, as the table takes it: not a number is missing, times are in UTC."""
    if isinstance(value, float):
        return None if math.isnan(value) else value
    if isinstance(value, datetime):
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value
    return value
