"""Requests and answers by MLflow's JSON rules, which are those of protocol buffers.

A request is one struct. A GET has it in its query, a repeated field by repeating the name; every other method
in a JSON body, where whole numbers may come as text, `NaN` and the infinities do, and null is absent. What no
field is for is refused, by name, unless the client is newer than this door: then it may know fields that we
cannot, and they are passed over (see the decision record on unknown fields).

What a request means is its handler's business.
"""

import logging
import math
import re
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints
from urllib.parse import parse_qsl

import msgspec
from msgspec import Meta, Struct

from modelkeep.core import codec, errors, tracking, values
from modelkeep.web.operations import Call

T = TypeVar("T")

VERSION = "3.18.0"
"""The release of MLflow whose protocol this door speaks; `GET /version` says so."""
QUERY_MAX = 64_000
"""Bytes of a query: a bulk history names up to 100 runs of 32 characters, a filter has 4,000."""
QUERY_FIELDS_MAX = 300
"""Parameters of a query: as many runs as a bulk history may name, and some."""

Int64 = Annotated[int, Meta(ge=tracking.INT64_MIN, le=tracking.INT64_MAX)]
"""A whole number as every message has them."""

_log = logging.getLogger("modelkeep.web.mlflow")
_CLIENT = re.compile(rb"mlflow-python-client/(\d{1,4})\.(\d{1,4})")
_OURS = tuple(int(part) for part in VERSION.split(".")[:2])


class Request(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What all requests of this door have: nothing that is not named in them."""


class Nothing(Struct, frozen=True):
    """The answer that says nothing but that it is done."""


DONE = Nothing()


class _Shape:
    """What has to be known of a request's struct to read it from a query."""

    def __init__(self, shape: type[Any]) -> None:
        hints = get_type_hints(shape)
        self.names = frozenset(hints)
        self.repeated = frozenset(name for name, hint in hints.items() if _is_list(hint))


def _is_list(hint: Any) -> bool:
    return get_origin(hint) is tuple or any(get_origin(part) is tuple for part in get_args(hint))


_shapes: dict[type[Any], _Shape] = {}


def _shape(kind: type[Any]) -> _Shape:
    found = _shapes.get(kind)
    if found is None:
        found = _shapes[kind] = _Shape(kind)
    return found


def is_newer(headers: Mapping[bytes, bytes]) -> bool:
    """Whether the client says that it is of a later release than the one this door speaks."""
    said = _CLIENT.search(headers.get(b"user-agent", b""))
    return said is not None and (int(said[1]), int(said[2])) > _OURS


def from_query(raw: bytes, kind: type[T], *, newer: bool = False) -> T:
    """Read a request out of a query string.

    Raises:
        LimitExceeded, Invalid: too long, badly encoded, or a parameter is unknown, missing, twice there or
            not of its kind.
    """
    if len(raw) > QUERY_MAX:
        raise errors.LimitExceeded(f"The query string has more than {QUERY_MAX:,} bytes.", limit=QUERY_MAX)
    try:
        pairs = parse_qsl(
            raw.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=QUERY_FIELDS_MAX
        )
    except ValueError as error:
        raise errors.Invalid("The query string is not valid; percent-encode it as UTF-8.") from error
    shape = _shape(kind)
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name not in shape.names:
            _unknown(name, newer)
        elif name in shape.repeated:
            found.setdefault(name, []).append(value)
        elif name in found:
            raise errors.Invalid(f"The query parameter {_shown(name)} stands twice; keep one.")
        else:
            found[name] = value
    try:
        return msgspec.convert(found, kind, strict=False)
    except msgspec.ValidationError as error:
        raise _misfit(error) from error


def from_body(data: bytes, kind: type[T], *, newer: bool = False) -> T:
    """Read a request out of a JSON body; an empty body is a request without fields.

    Raises:
        MalformedBody, LimitExceeded, Invalid: not JSON, a key twice, nested too deep, a field that is
            unknown, missing or not of its kind.
    """
    data = data or b"{}"
    codec.check_json(data)
    if data[:1] == b'"':  # clients of long ago encode the whole document once more, as a text
        data = codec.decode(data, str).encode()
        codec.check_json(data)
    if newer:
        data = _without_unknown(data, kind)
    try:
        return codec.decode(data, kind, strict=False)
    except errors.MalformedBody as error:
        cause = error.__cause__
        if isinstance(cause, msgspec.ValidationError):
            raise _misfit(cause) from error
        raise


def _without_unknown(data: bytes, kind: type[Any]) -> bytes:
    """The document without the fields, of the request itself, that this door does not know."""
    document = codec.decode(data, dict[str, Any])
    names = _shape(kind).names
    for name in [name for name in document if name not in names]:
        _unknown(name, newer=True)
        del document[name]
    return codec.encode(document)


def _unknown(name: str, newer: bool) -> None:
    if not newer:
        raise errors.Invalid(f"There is no parameter {_shown(name)} here; remove it.", field=name[:100])
    _log.debug("mlflow.unknown_field", extra={"field": name[:100]})


_PLACE = re.compile(r"^(?P<what>.*?)(?: - at `\$\.?(?P<where>[^`]*)`)?$", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(?P<name>[^`]*)`")
_UNKNOWN = re.compile(r"Object contains unknown field `(?P<name>[^`]*)`")


def _misfit(error: msgspec.ValidationError) -> errors.Invalid:
    """One sentence for a value that does not fit, which names the parameter as MLflow does."""
    said = _PLACE.match(str(error))
    what, where = (said["what"], said["where"] or "") if said else (str(error), "")
    missing, unknown = _MISSING.match(what), _UNKNOWN.match(what)
    if missing or (where and what.endswith("got `null`")):  # null is absent
        name = f"{where}.{missing['name']}".lstrip(".") if missing else where
        return errors.Invalid(f"Missing value for required parameter '{name}'.", field=name)
    if unknown:
        name = f"{where}.{values.printable(unknown['name'])[:100]}".lstrip(".")
        return errors.Invalid(f"There is no parameter '{name}' here; remove it.", field=name)
    detail = values.printable(what)[:200]
    if not where:
        return errors.Invalid(f"The request is not of the expected shape: {detail}.")
    return errors.Invalid(f"Invalid value for parameter '{where}': {detail}.", field=where)


def _shown(name: str) -> str:
    return f"'{values.printable(name)[:60]}'"


def project_of(call: Call) -> str:
    """The project that a request is about: MLflow's workspace, which is `default` where none is named.

    Raises:
        InvalidName: no project can have that name.
    """
    named = call.headers.get(b"x-mlflow-workspace")
    if not named:
        return values.DEFAULT_PROJECT
    return values.check_name(named.decode("latin-1"), "workspace")


def number(value: float) -> float | str:
    """A number as JSON can carry it: NaN and the infinities are words."""
    if math.isfinite(value):
        return value
    if math.isnan(value):
        return "NaN"
    return "Infinity" if value > 0 else "-Infinity"
