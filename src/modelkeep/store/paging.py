"""Page tokens: where the next page of a list begins, as an opaque text that only fits the list it came from.

A page is continued after the key of its last row, never by counting rows, so a page costs the same at the end
of a list as at its beginning, and what is added or removed meanwhile neither repeats nor hides a row.
"""

import base64
import binascii
import hashlib
from collections.abc import Sequence

from modelkeep.core import codec, errors, values

FORM = 1
"""Rises when tokens change, so that one from before an update is refused instead of misread."""
TOKEN_MAX = 8_000
"""Characters of a token: some sort keys with a description among them."""

Key = str | int | float
Kinds = Sequence[type[str] | type[int] | type[float]]


def check_limit(limit: int) -> int:
    """The number of rows of a page.

    Raises:
        LimitExceeded: fewer than one, or more than a page has.
    """
    if not 1 <= limit <= values.PAGE_MAX:
        raise errors.LimitExceeded(f"A page has 1 to {values.PAGE_MAX:,} rows, not {limit}.", field="limit")
    return limit


def write_token(asked: str, key: Sequence[Key]) -> str:
    """The token of what comes after this key in the list that was asked for."""
    plain = codec.encode([FORM, _mark(asked), *key])
    return base64.urlsafe_b64encode(plain).decode().rstrip("=")


def read_token(token: str, asked: str, kinds: Kinds) -> list[Key]:
    """The key to go on after.

    Raises:
        Invalid: it is no token, or one of another list, filter or order.
    """
    try:
        if len(token) > TOKEN_MAX or not token.isascii():
            raise ValueError("too long, or not ASCII")
        padded = token + "=" * (-len(token) % 4)
        parts = codec.decode(base64.b64decode(padded, altchars=b"-_", validate=True), list[str | int | float])
    except (ValueError, binascii.Error, errors.MalformedBody) as problem:
        raise _foreign() from problem
    key = parts[2:]
    fitting = len(key) == len(kinds) and all(_fits(part, kind) for part, kind in zip(key, kinds, strict=True))
    if parts[:2] != [FORM, _mark(asked)] or not fitting:
        raise _foreign()
    return [float(part) if kind is float else part for part, kind in zip(key, kinds, strict=True)]


def _fits(part: Key, kind: type) -> bool:
    if kind is str:
        return isinstance(part, str) and "\0" not in part
    if kind is float:
        return isinstance(part, int | float) and not isinstance(part, bool)
    return isinstance(part, int) and -(2**63) <= part < 2**63


def _mark(asked: str) -> str:
    return hashlib.sha256(asked.encode()).hexdigest()[:16]


def _foreign() -> errors.Invalid:
    return errors.Invalid(
        "The page token does not belong to this list; leave it out to begin at the first page.",
        field="page_token",
    )
