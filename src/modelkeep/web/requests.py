"""Reading a request: its id, its idempotency key, its query and its body, each refused rather than repaired.

Names and values are checked for what HTTP itself can spoil (encoding, repetition, control characters); what
they mean is the services' business.
"""

import itertools
import re
import secrets
from typing import Any
from urllib.parse import unquote_to_bytes

import msgspec

from modelkeep.core import codec, errors, values
from modelkeep.web.operations import NoQuery, Operation

QUERY_MAX = 16_000
"""Bytes of a query string."""
QUERY_FIELDS_MAX = 32
"""Parameters of a query: twice what any operation takes."""
TOKEN_PATTERN = r"^[A-Za-z0-9._:-]{1,128}$"
"""What a caller may choose as a request id or idempotency key: it goes into logs and headers."""

_TOKEN = re.compile(TOKEN_PATTERN[1:-1], re.ASCII)
_SINGLE = frozenset(
    {
        b"authorization",
        b"content-encoding",
        b"content-length",
        b"content-type",
        b"host",
        b"idempotency-key",
        b"origin",
    }
)
"""Headers that decide something: two of them could be read differently by whatever stands in front of us."""


def headers_of(raw: list[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    """The headers by name.

    Raises:
        Invalid: a header that decides something stands twice.
    """
    found = dict(raw)
    if len(found) != len(raw):
        seen: set[bytes] = set()
        for name, _ in raw:
            if name in seen and name in _SINGLE:
                raise errors.Invalid(f"The header {name.decode('latin-1')!r} stands twice; send it once.")
            seen.add(name)
    return found


_PROCESS = secrets.token_hex(5)
_counted = itertools.count(1)


def request_id(headers: dict[bytes, bytes]) -> str:
    """The caller's own request id where it can be one, else a fresh one.

    A fresh one has the process in it, drawn at random, and the request's number: nobody else's, but not hard
    to guess, and nothing rests on that, since callers may choose their own.
    """
    given = headers.get(b"x-request-id")
    if given is not None:
        text = given.decode("latin-1")
        if _TOKEN.fullmatch(text):
            return text
    return f"req-{_PROCESS}{next(_counted):08x}"


def idempotency_key(headers: dict[bytes, bytes]) -> str | None:
    """The key under which the answer to a write is kept; None when there is none.

    Raises:
        Invalid: it cannot be a key.
    """
    given = headers.get(b"idempotency-key")
    if given is None:
        return None
    text = given.decode("latin-1")
    if not _TOKEN.fullmatch(text):
        raise errors.Invalid("An Idempotency-Key has 1 to 128 letters, digits, '.', '_', ':' or '-'.")
    return text


def query(raw: bytes, shape: type[Any]) -> Any:
    """The query parameters in their shape; None for an operation that takes none.

    Raises:
        LimitExceeded, Invalid: too long, badly encoded, or a parameter is unknown, missing, twice there or
            not of its kind.
    """
    if not raw and shape is NoQuery:
        return None
    if len(raw) > QUERY_MAX:
        raise errors.LimitExceeded(f"The query string has more than {QUERY_MAX:,} bytes.", limit=QUERY_MAX)
    try:
        pairs = _pairs(raw)
    except ValueError as error:
        raise errors.Invalid("The query string is not valid; percent-encode it as UTF-8.") from error
    found: dict[str, str] = {}
    for name, value in pairs:
        if name in found:
            raise errors.Invalid(f"The query parameter {_shown(name)} stands twice; keep one.")
        if "\x00" in value:
            raise errors.Invalid(f"The query parameter {_shown(name)} contains a NUL character; remove it.")
        found[name] = value
    try:
        return msgspec.convert(found, shape, strict=False)
    except msgspec.ValidationError as error:
        known = ", ".join(field.encode_name for field in msgspec.structs.fields(shape)) or "none"
        raise errors.Invalid(
            f"The query parameters do not fit: {values.printable(str(error))[:300]}. "
            f"This address takes: {known}."
        ) from error


def _pairs(raw: bytes) -> list[tuple[str, str]]:
    """Names and values, decoded; a library's general parser takes three times as long for them.

    Raises:
        ValueError: too many, one without `=`, or not percent-encoded UTF-8.
    """
    parts = raw.split(b"&") if raw else []
    if len(parts) > QUERY_FIELDS_MAX or not raw.isascii():
        raise ValueError("too many parameters, or bytes that are not percent-encoded")
    found = []
    for part in parts:
        name, equals, value = part.partition(b"=")
        if not equals:
            raise ValueError("a parameter without a value")
        found.append((_decoded(name), _decoded(value)))
    return found


def _decoded(part: bytes) -> str:
    if b"+" in part:
        part = part.replace(b"+", b" ")
    return (unquote_to_bytes(part) if b"%" in part else part).decode("utf-8")


def _shown(name: str) -> str:
    return values.quoted(name, 60)


def check_media(headers: dict[bytes, bytes], operation: Operation) -> None:
    """Refuse a body whose encoding or kind is not what the operation reads.

    Raises:
        UnsupportedMedia: compressed, or not JSON where JSON is read.
    """
    if headers.get(b"content-encoding", b"identity") != b"identity":
        raise errors.UnsupportedMedia("Send the body uncompressed, without Content-Encoding.")
    if operation.body is None or operation.raw:
        return
    kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
    if kind != b"application/json":
        raise errors.UnsupportedMedia(
            "Send the body as JSON with the header 'Content-Type: application/json'."
        )


def body(data: bytes, operation: Operation) -> Any:
    """The body in its shape.

    Raises:
        MalformedBody, LimitExceeded: not JSON, not of the shape, a key twice, nested too deep.
    """
    return data if operation.raw else codec.decode_untrusted(data, operation.body)
