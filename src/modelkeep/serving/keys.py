"""Where a caller's key stands when no header has it: in a cookie, or in the body.

A route that names neither never comes here. What cannot be read has no key, and is for others to refuse.
"""

from modelkeep.core import codec, errors


class Finder:
    """Finds keys for one route."""

    __slots__ = ("_cookie", "_parts")

    def __init__(self, cookie: str | None, field: str | None) -> None:
        """
        Args:
            field: a JSON pointer (RFC 6901).
        """
        self._cookie = cookie.encode() if cookie is not None else None
        parts = field.split("/")[1:] if field is not None else []
        self._parts = [part.replace("~1", "/").replace("~0", "~") for part in parts]

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
