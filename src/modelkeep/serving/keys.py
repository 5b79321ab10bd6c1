"""Where a caller's key stands when no header has it: in a cookie, or in the body.

A route that names neither never comes here. What cannot be read has no key, and is for others to refuse.
"""

import msgspec

from modelkeep.core import codec, errors

_OF_THE_PROTOCOLS = frozenset(
    ("inputs", "outputs", "id", "parameters", "instances", "dataframe_split", "dataframe_records", "params")
)
"""Members of a body that mean something to a version. A key may stand below one of them as well."""


class Finder:
    """Finds keys for one route."""

    __slots__ = ("_cookie", "_member", "_parts")

    def __init__(self, cookie: str | None, field: str | None) -> None:
        """
        Args:
            field: a JSON pointer (RFC 6901).
        """
        self._cookie = cookie.encode() if cookie is not None else None
        parts = field.split("/")[1:] if field is not None else []
        self._parts = [part.replace("~1", "/").replace("~0", "~") for part in parts]
        alone = bool(self._parts) and self._parts[0] not in _OF_THE_PROTOCOLS
        self._member = self._parts[0] if alone else None

    @property
    def trims(self) -> bool:
        """Whether the key stands in a member of the body that no version knows."""
        return self._member is not None

    def without(self, body: bytes) -> bytes:
        """The body without the member that is there for the key alone: a version would refuse it. What cannot
        be read stays as it is."""
        try:
            members = codec.decode(body, dict[str, msgspec.Raw])
        except errors.ModelkeepError:
            return body
        return codec.encode(members) if members.pop(self._member or "", None) is not None else body

    def find(self, headers: dict[bytes, bytes], body: bytes) -> bytes | None:
        """The caller's key: the cookie's value, else what stands in the body; None where neither is there."""
        if self._cookie is not None:
            for pair in headers.get(b"cookie", b"").split(b";"):
                name, _, value = pair.strip().partition(b"=")
                if name == self._cookie and value:
                    return value
        return self._in_body(body) if self._parts else None

    def _in_body(self, body: bytes) -> bytes | None:
        try:
            place = codec.decode(body, object)
        except errors.ModelkeepError:
            return None
        for part in self._parts:
            if isinstance(place, dict):
                place = place.get(part)
            elif isinstance(place, list) and part.isascii() and part.isdigit() and int(part) < len(place):
                place = place[int(part)]
            else:
                return None
        match place:
            case str():
                return place.encode()
            case bool() | int() | float():
                return codec.encode(place)
            case _:
                return None
