"""Bytes to values and back: strict JSON, the one canonical encoding that digests are taken of, and safe YAML.

This is the only file that knows the codec libraries. It does not decide what a value may contain; that is the
shapes' own business.

Why a look before decoding: the decoder accepts duplicate keys (the last one wins, so two readers of the same
bytes can see two different documents) and recurses into nesting; both are refused here, before any shape is
built.
"""

import math
import re
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, TypeVar, cast

import msgspec

from modelkeep.core import errors

T = TypeVar("T")

JSON_MAX_BYTES = 4 * 1024 * 1024
"""One JSON or YAML document; streams of file bytes do not pass through here."""
JSON_MAX_DEPTH = 32
"""Nesting: far above any shape of ours, far below the interpreter's stack."""
YAML_MAX_BYTES = 256 * 1024
"""One YAML document: people write these, and the parser takes a second for 100 KiB of the worst."""
YAML_MAX_SCALAR = 100
"""Characters of a YAML number or time; reading a number in base 60 takes the square of its length."""
YAML_MAX_NODES = 100_000
"""Nodes of a YAML document after aliases are expanded, so that a small text cannot become a large value."""
TIMES_KEPT = 256
"""Times that are kept as text: one moment is written into many rows."""
YAML_FLAT_MARKS = 1_000
"""Marks that nest in a YAML document which libyaml is given: it takes the stack for each level."""


_encoder = msgspec.json.Encoder()
_sorted_encoder = msgspec.json.Encoder(order="sorted")
_decoders: dict[tuple[Any, bool], msgspec.json.Decoder[Any]] = {}


def encode(value: object) -> bytes:
    """JSON bytes in field order: for the wire and for stored documents."""
    return _encoder.encode(value)


def canonical(value: object) -> bytes:
    """The encoding that digests are taken of: UTF-8 JSON, keys sorted by code point, no white space, finite
    numbers.

    Raises:
        Invalid: a float is NaN or infinite (JSON has no such number, so two encoders would disagree), or a
            text is not Unicode.
    """
    plain = msgspec.to_builtins(value)
    _refuse_non_finite((plain,))
    try:
        return _sorted_encoder.encode(plain)
    except UnicodeEncodeError as problem:
        raise errors.Invalid("Half a surrogate pair is not text; remove it.") from problem


_ALWAYS_FINITE = frozenset({str, int, bool, type(None)})


def _refuse_non_finite(items: Iterable[object]) -> None:
    for item in items:
        if type(item) in _ALWAYS_FINITE:
            continue  # most are, and every event that is written passes here
        if isinstance(item, dict):
            _refuse_non_finite(item.values())
        elif isinstance(item, list | tuple):
            _refuse_non_finite(item)
        elif isinstance(item, float) and not math.isfinite(item):
            raise errors.Invalid(
                "NaN and infinite numbers have no canonical form; leave the value out instead."
            )


def decode(data: bytes | str, kind: type[T], *, strict: bool = True) -> T:
    """Decode trusted JSON (our own store, our own wire) into a shape.

    Raises:
        MalformedBody: the bytes are not JSON, or not of the shape; the message names the field.
    """
    decoder = _decoders.get((kind, strict))
    if decoder is None:
        decoder = _decoders[kind, strict] = msgspec.json.Decoder(kind, strict=strict)
    try:
        return cast(T, decoder.decode(data))
    except msgspec.ValidationError as problem:
        raise errors.MalformedBody(f"The document does not have the expected shape: {problem}.") from problem
    except (msgspec.DecodeError, UnicodeError, RecursionError) as problem:
        raise errors.MalformedBody(f"The document is not valid JSON: {problem}.") from problem


def decode_untrusted(data: bytes, kind: type[T], *, max_bytes: int = JSON_MAX_BYTES) -> T:
    """Decode JSON from outside: size, depth and duplicate keys are checked before a shape is built.

    Raises:
        LimitExceeded: more bytes or deeper nesting than allowed.
        MalformedBody: not JSON, a key twice in one object, or not of the shape.
    """
    check_json(data, max_bytes=max_bytes)
    return decode(data, kind)


# A text, with the colon behind it that makes it a key, or a bracket. A text is matched without its end as
# well (hence the optional quote): what did not match would be scanned anew from each place in it.
_TOKEN = re.compile(rb""""[^"\\]*+(?:\\.[^"\\]*+)*+"?+(?:\s*+:)?+|[{}\[\]]""", re.DOTALL)
_COLON, _QUOTE = b':"'
_AT_ONCE_BYTES = 64 * 1024
"""Of a longer document the tokens are taken one by one: a list of them all is several times its size."""


def check_json(data: bytes, *, max_bytes: int = JSON_MAX_BYTES) -> None:
    """Refuse what a decoder would swallow: too large, too deep, or the same key twice in one object."""
    if len(data) > max_bytes:
        raise errors.LimitExceeded(
            f"The document has {len(data):,} bytes; at most {max_bytes:,} are accepted. Send less at a time.",
            limit=max_bytes,
        )
    if len(data) <= _AT_ONCE_BYTES and _is_fine(data):
        return
    keys: set[bytes] | None = None  # of the object that we are in; None in an array
    outer: list[set[bytes] | None] = []
    escapes = b"\\" in data
    for token in _tokens(data):
        last = token[-1]
        if last == _COLON:
            if keys is None:
                continue
            key = token if token[-2] == _QUOTE else token[:-1].rstrip() + b":"
            if escapes and b"\\" in key:
                key = b'"%b":' % _unescaped(key[1:-2])
            if key in keys:
                shown = key[1:-2].decode("utf-8", "replace")
                raise errors.MalformedBody(f"The key {shown!r} stands twice in one object; keep one of them.")
            keys.add(key)
        elif last == _QUOTE:
            continue
        elif token == b"{" or token == b"[":
            outer.append(keys)
            keys = set() if token == b"{" else None
            if len(outer) > JSON_MAX_DEPTH:
                raise errors.LimitExceeded(
                    f"The document is nested more than {JSON_MAX_DEPTH} levels deep; flatten it.",
                    limit=JSON_MAX_DEPTH,
                )
        elif outer and (token == b"}" or token == b"]"):
            keys = outer.pop()


_TEXT = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)


def _is_fine(data: bytes) -> bool:
    """Whether a short document is seen at once to have no key twice, since what it decodes to has as many
    texts as were written, keys among them, and not to be deep. Any other is looked at token by token."""
    try:
        inside: list[Any] = [msgspec.json.decode(data)]
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return False
    written = len(_TEXT.findall(data)) if b"\\" in data else data.count(b'"') // 2
    texts = depth = 0
    while True:
        kinds = list(map(type, inside))
        texts += kinds.count(str)
        found = inside if set(kinds) <= _HOLDS else [item for item in inside if type(item) in _HOLDS]
        if not found:
            return depth <= JSON_MAX_DEPTH and texts == written
        inside = []
        for item in found:
            if type(item) is dict:
                texts += len(item)
                inside += item.values()
            else:
                inside += item
        depth += 1


_HOLDS = frozenset({dict, list})


def _tokens(data: bytes) -> Iterable[bytes]:
    if len(data) <= _AT_ONCE_BYTES:
        return _TOKEN.findall(data)
    return (found[0] for found in _TOKEN.finditer(data))


def _unescaped(key: bytes) -> bytes:
    """A key without its escapes, so that `"a"` and `"\\u0061"` are seen to be the same."""
    try:
        return cast(str, msgspec.json.decode(b'"%b"' % key)).encode("utf-8", "surrogatepass")
    except msgspec.DecodeError:
        return key


def convert(value: object, kind: type[T]) -> T:
    """Build a shape from plain values (YAML, query parameters).

    Raises:
        MalformedBody: a field is missing, unknown where unknown ones are forbidden, or of the wrong type.
    """
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as problem:
        raise errors.MalformedBody(f"The document does not have the expected shape: {problem}.") from problem


def builtins(value: object) -> Any:
    """A shape as plain dicts, lists and scalars (times become text), in field order."""
    return msgspec.to_builtins(value)


def parse_yaml(text: str | bytes) -> Any:
    """Read one YAML document with the safe loader.

    Raises:
        LimitExceeded: too large, or aliases expand to too many nodes.
        MalformedBody: not YAML, more than one document, a key twice in one mapping, or a key that is not text
            (`1`, `true`, `null`; JSON has no such keys, and `true` and `True` would be one).
    """
    import yaml  # costs 25 ms, and only commands that read YAML need it

    if len(text) > YAML_MAX_BYTES:
        raise errors.LimitExceeded(f"The YAML document has more than {YAML_MAX_BYTES:,} bytes; split it.")
    if yaml.__with_libyaml__ and _is_flat(text):
        with suppress(yaml.YAMLError, RecursionError, ValueError):  # Python's own says better what is wrong
            return _read_yaml(text, yaml, yaml.CSafeLoader)
    try:
        return _read_yaml(text, yaml, yaml.SafeLoader)
    except (yaml.YAMLError, RecursionError, ValueError) as problem:
        where = getattr(problem, "problem_mark", None)
        place = f" (line {where.line + 1}, column {where.column + 1})" if where else ""
        raise errors.MalformedBody(
            f"The document is not valid YAML{place}: {getattr(problem, 'problem', None) or problem}."
        ) from problem


def _is_flat(text: str | bytes) -> bool:
    """Whether no document of these characters is so deep that libyaml, which is ten times as fast but does
    not look after its stack, would run out of it: each level takes one of these marks."""
    marks: Any = b"[{-?:" if isinstance(text, bytes) else "[{-?:"
    return sum(text.count(marks[i : i + 1]) for i in range(len(marks))) <= YAML_FLAT_MARKS


def _read_yaml(text: str | bytes, yaml: Any, kind: Any) -> Any:
    loader = kind(text)
    try:
        node = loader.get_single_node()
        _check_yaml(node, yaml)
        return loader.construct_document(node) if node is not None else None
    finally:
        loader.dispose()


_YAML_TEXT = "tag:yaml.org,2002:str"
_YAML_MERGE = "tag:yaml.org,2002:merge"
_YAML_BREAKS = re.compile("[\x85\u2028\u2029]")


def _check_yaml(root: Any, yaml: Any) -> None:
    count = 0
    work = [(root, 0)]
    while work:
        node, depth = work.pop()
        count += 1
        if count > YAML_MAX_NODES or depth > JSON_MAX_DEPTH:
            raise errors.LimitExceeded(
                "The YAML document is too large or too deep once its aliases are expanded."
            )
        if isinstance(node, yaml.ScalarNode):
            if node.tag != _YAML_TEXT and len(node.value) > YAML_MAX_SCALAR:
                line = node.start_mark.line + 1
                raise errors.MalformedBody(f"The number in line {line} is too long; put it in quotes.")
        elif isinstance(node, yaml.MappingNode):
            seen: set[str] = set()
            for key, value in node.value:
                name = str(key.value)
                line = key.start_mark.line + 1
                if key.tag not in (_YAML_TEXT, _YAML_MERGE):
                    raise errors.MalformedBody(f"The key {name[:60]!r} in line {line} is not text; quote it.")
                if name in seen:
                    raise errors.MalformedBody(f"The key {name!r} stands twice in one mapping (line {line}).")
                seen.add(name)
                work.append((value, depth + 1))
        elif isinstance(node, yaml.SequenceNode):
            work += [(item, depth + 1) for item in node.value]


def render_yaml(value: object) -> str:
    """YAML with the keys in the order they stand in, block style, no aliases."""
    import yaml

    class Plain(yaml.SafeDumper):
        def ignore_aliases(self, data: Any) -> bool:
            return True

        def represent_text(self, data: str) -> Any:
            quoted = '"' if _YAML_BREAKS.search(data) else None  # any other style would read back as a space
            return self.represent_scalar(_YAML_TEXT, data, style=quoted)

    Plain.add_representer(str, Plain.represent_text)
    return yaml.dump(builtins(value), Dumper=Plain, sort_keys=False, allow_unicode=True, width=100)


def format_time(moment: datetime) -> str:
    """Fixed-width UTC text with microseconds and Z: legible, the same everywhere, and sorts as text."""
    return _utc_text(moment if moment.tzinfo is UTC else moment.astimezone(UTC))


@lru_cache(maxsize=TIMES_KEPT)
def _utc_text(moment: datetime) -> str:
    return moment.isoformat(timespec="microseconds").removesuffix("+00:00") + "Z"


def parse_time(text: str) -> datetime:
    """Read RFC 3339, also without seconds; a time without a zone is refused, since it could mean any hour.

    Raises:
        InvalidTime: not a time, no zone, or beyond the years that a time can have in UTC.
    """
    try:
        moment = datetime.fromisoformat(text.strip().replace("Z", "+00:00").replace("z", "+00:00"))
    except ValueError as problem:
        raise errors.InvalidTime(
            f"{text[:60]!r} is not a time; write it like 2026-01-25T14:03Z."
        ) from problem
    if moment.tzinfo is None:
        if len(text.strip()) == 10:
            return moment.replace(tzinfo=UTC)
        raise errors.InvalidTime(
            f"{text[:60]!r} names no time zone; append Z for UTC, or an offset like +01:00."
        )
    try:
        return moment.astimezone(UTC)
    except OverflowError as problem:
        raise errors.InvalidTime(f"{text[:60]!r} lies outside the years 1 to 9999.") from problem
