"""From method and path to a row of the route table: one dictionary look-up for each segment of the path.

The path is split before it is decoded, and decoded once: `%2F` inside a segment is part of a name, which is
then refused as a name, and can never make a request reach another row. A row may end in a place for the rest
of the path (`{path...}`), which takes what no longer row fits; its parts are plain names, refused and never
repaired. What a row does is not known here.
"""

import re
from typing import Generic, TypeVar
from urllib.parse import unquote_to_bytes

from modelkeep.core import errors, values

T = TypeVar("T")

SEGMENTS_MAX = 16
"""Segments of a path: twice those of the longest row. The rest of a path has as many as fit into it."""
REST_MAX = 6 * values.PATH_MAX
"""Bytes of the rest of a path as it comes: each may be percent-encoded, and a folder stands before a path."""

_DRIVE = re.compile(r"[A-Za-z]:", re.ASCII)


class _Place(Generic[T]):
    """One position in the tree of paths."""

    __slots__ = ("ends", "fixed", "inner", "name", "rest")

    def __init__(self) -> None:
        self.fixed: dict[str, _Place[T]] = {}
        self.inner: _Place[T] | None = None
        self.name = ""
        self.rest: _Place[T] | None = None
        self.ends: dict[str, T] = {}


class Routes(Generic[T]):
    """The tree of all paths."""

    def __init__(self) -> None:
        self._root: _Place[T] = _Place()
        self._whole: dict[tuple[str, bytes], T] = {}

    def add(self, method: str, path: str, target: T) -> None:
        """Put a row into the tree.

        Args:
            path: `/api/v1/models/{project}`; a place in it has one parameter name for all rows. The last may
                be the rest of the path: `/files/{path...}`.
        """
        place = self._root
        for part in path.split("/")[1:]:
            if part.endswith("...}"):
                assert path.endswith(part), f"{path}: nothing follows the rest of a path"
                if place.rest is None:
                    place.rest = _Place()
                    place.rest.name = part[1:-4]
                place = place.rest
            elif part.startswith("{"):
                if place.inner is None:
                    place.inner, place.name = _Place(), part[1:-1]
                assert place.name == part[1:-1], f"{path}: the parameter is called {place.name} elsewhere"
                place = place.inner
            else:
                place = place.fixed.setdefault(part, _Place())
        assert method not in place.ends, f"{method} {path} stands twice"
        place.ends[method] = target
        if "{" not in path:
            self._whole[method, path.encode()] = target

    def find(self, method: str, raw_path: bytes) -> tuple[T, dict[str, str]]:
        """The row of a request, and the path's parameters, decoded.

        Raises:
            RouteNotFound: there is no such address.
            MethodNotAllowed: there is, with other methods; the details have them.
            Invalid: the path is not UTF-8, or has control characters; or the rest of it is no relative path
                of plain names.
        """
        known = self._whole.get((method, raw_path))
        if known is not None:
            return known, {}
        place, found = self._walk(method, raw_path)
        target = place.ends.get(method)
        if target is None:
            if not place.ends:
                raise _no_route(method, raw_path)
            allow = sorted(place.ends)
            raise errors.MethodNotAllowed(
                f"{method} is not possible here; this address takes {' and '.join(allow)}.", allow=allow
            )
        return target, found

    def _walk(self, method: str, raw_path: bytes) -> tuple[_Place[T], dict[str, str]]:
        parts = raw_path.split(b"/", SEGMENTS_MAX + 1)
        if parts[0]:
            raise _no_route(method, raw_path)
        place = self._root
        found: dict[str, str] = {}
        wide: tuple[_Place[T], int, dict[str, str]] | None = None
        for number, part in enumerate(parts[1:], 1):
            if place.rest is not None and parts[number:] != [b""]:
                wide = place.rest, number, dict(found)
            text = _decoded(part) if number < SEGMENTS_MAX else ""  # the last one may be all that is left
            following = place.fixed.get(text)
            if following is None and text:
                following = place.inner
                found[place.name] = text
            if following is None:
                break
            place = following
        else:
            if place.ends:
                return place, found
        if wide is None:
            raise _no_route(method, raw_path)
        place, number, found = wide
        return place, {**found, place.name: _rest(b"/".join(parts[number:]))}


def _rest(raw: bytes) -> str:
    """The rest of a path, its parts decoded one by one. A slash at the end stays, for the row to judge.

    Raises:
        Invalid: not UTF-8, too long, control characters, or a part that is empty, `.` or `..`, or hides a
            separator.
    """
    if len(raw) > REST_MAX:
        raise errors.Invalid(f"The path has more than {REST_MAX:,} bytes.", field="path")
    parts = [_decoded(part) for part in raw.split(b"/")]
    for number, part in enumerate(parts, 1):
        bad = part in (".", "..") or (not part and number < len(parts))
        if bad or "/" in part or "\\" in part or _DRIVE.match(part):
            raise errors.Invalid(
                f"{values.quoted(part)} cannot be a part of a path: use plain names joined by '/', without "
                "empty ones, '.', '..', backslashes or drive letters, and without '/' inside a name.",
                field="path",
            )
    return "/".join(parts)


def _decoded(part: bytes) -> str:
    try:
        text = (unquote_to_bytes(part) if b"%" in part else part).decode("utf-8")
    except UnicodeDecodeError as error:
        raise errors.Invalid("The path is not valid; percent-encode it as UTF-8.") from error
    if not text.isprintable():
        raise errors.Invalid(f"The path has control characters: {values.quoted(text)}; remove them.")
    return text


def _no_route(method: str, raw_path: bytes) -> errors.RouteNotFound:
    shown = values.printable(raw_path[:200].decode("utf-8", "replace"))
    return errors.RouteNotFound(f"There is no {method} '{shown}'; GET /openapi.json lists all operations.")
