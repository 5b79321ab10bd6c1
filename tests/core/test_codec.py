"""Bytes to values: what is refused before anything is built, the canonical encoding, YAML and times.

The shapes themselves are tested where they live.
"""

import hashlib
import json
import math
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Struct

from modelkeep.core import codec, errors

pytestmark = pytest.mark.req("V3")


class Point(Struct, frozen=True):
    """A shape with fields that are not in alphabetical order."""

    y: int
    x: int = 0


class Sealed(Struct, frozen=True, forbid_unknown_fields=True):
    """A shape that takes nothing else."""

    a: int


json_values: st.SearchStrategy[Any] = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**63), 2**63 - 1),
        st.floats(allow_nan=False, allow_infinity=False),
        st.text(),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=4), inner, max_size=4)
    ),
    max_leaves=12,
)


# ------------------------------------------------------------ JSON from outside


@pytest.mark.parametrize(
    "data",
    [
        b'{"a": 1, "a": 2}',
        b'{"a": 1, "b": {"c": 1, "c": 2}}',
        b'[{"a": 1, "a": 1}]',
        b'{"a": 1, "\\u0061": 2}',
        b'{"\\u00e9": 1, "\xc3\xa9": 2}',
        b'{"a\\/b": 1, "a/b": 2}',
        b'{"\\ud83d\\ude00": 1, "\xf0\x9f\x98\x80": 2}',
        b'{"": 1, "": 2}',
        b'{"a" : 1 ,\n"a"\t: [1, {"a": 3}]}',
        b'{"x": "}", "x": 1}',
    ],
)
def test_a_key_twice_is_refused(data: bytes) -> None:
    """Two readers must not see two documents, however the second key is spelled."""
    with pytest.raises(errors.MalformedBody, match="stands twice"):
        codec.decode_untrusted(data, dict)


@pytest.mark.parametrize(
    "data",
    [
        b'{"a": "a", "b": "a"}',
        b'{"a": {"a": {"a": 1}}}',
        b'[{"a": 1}, {"a": 2}]',
        b'{"a": "b\\"a\\": 1,", "b": ":"}',
        b'{"a": ["a", "a"], "c": "a"}',
        b'{"e\xcc\x81": 1, "\xc3\xa9": 2}',
        b'{"A": 1, "a": 2}',
    ],
)
def test_equal_words_in_other_places_are_fine(data: bytes) -> None:
    """Only keys of one object clash; values, other objects and strings that look like JSON do not."""
    assert codec.decode_untrusted(data, object) == json.loads(data)


@given(json_values)
def test_the_scan_accepts_whatever_json_writes(value: Any) -> None:
    """Documents of any content pass the scan and decode to what was written."""
    for ascii_only in (True, False):
        data = json.dumps(value, ensure_ascii=ascii_only).encode()
        assert codec.decode_untrusted(data, object) == value


@given(st.dictionaries(st.text(max_size=5), st.integers(), min_size=1, max_size=5), st.data())
def test_any_repeated_key_is_found(pairs: dict[str, int], data: st.DataObject) -> None:
    """Whatever the key and wherever its second place, with escapes or without, it is found."""
    items = list(pairs.items())
    items.insert(data.draw(st.integers(0, len(items))), (data.draw(st.sampled_from(sorted(pairs))), 1))
    written = [f"{json.dumps(key, ensure_ascii=data.draw(st.booleans()))}: {value}" for key, value in items]
    with pytest.raises(errors.MalformedBody, match="stands twice"):
        codec.decode_untrusted(("{" + ", ".join(written) + "}").encode(), dict)


def test_depth_is_bounded() -> None:
    """32 levels pass, 33 do not, and neither do four million, in no time."""
    assert codec.decode_untrusted(b"[" * 32 + b"]" * 32, object)
    for data in (b"[" * 33 + b"]" * 33, b'{"a":' * 33 + b"1" + b"}" * 33, b"[" * codec.JSON_MAX_BYTES):
        with pytest.raises(errors.LimitExceeded, match="32 levels"):
            codec.decode_untrusted(data, object)


def test_size_is_bounded() -> None:
    """As many bytes as allowed pass; one more is refused before it is looked at."""
    assert codec.decode_untrusted(b"[1]" + b" " * 7, object, max_bytes=10) == [1]
    with pytest.raises(errors.LimitExceeded, match="11 bytes; at most 10"):
        codec.decode_untrusted(b"[1]" + b" " * 8, object, max_bytes=10)
    with pytest.raises(errors.LimitExceeded, match="at most 4,194,304"):
        codec.decode_untrusted(b'"' + b"a" * (10 * 1024 * 1024) + b'"', object)


@pytest.mark.parametrize(
    "data",
    [
        b'"' + b'\\"' * 2_000_000,
        b'"' * 4_000_000,
        b'"' + b"\\" * 4_000_000,
        b'{"a":"' + b"a" * 4_000_000,
        b":" * 4_000_000,
        b'{"' + b'":"' * 1_000_000,
    ],
    ids=["escaped quotes", "quotes", "backslashes", "no end", "colons", "keys"],
)
def test_hostile_documents_cost_little(data: bytes) -> None:
    """A document made to be scanned again and again is refused in linear time."""
    start = time.process_time()
    with pytest.raises(errors.MalformedBody):
        codec.decode_untrusted(data, object)
    assert time.process_time() - start < 10  # a second in fact; the square of the length would take hours


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"}",
        b"]" * 40,
        b"[1,]",
        b"{'a': 1}",
        b"NaN",
        b"[Infinity]",
        b"-Infinity",
        b"1e999",
        b"01",
        b"[1] [2]",
        b'"\xff"',
        b'"\\ud800"',
        b'"\x00"',
        b"\xef\xbb\xbf{}",
        '{"a": 1}'.encode("utf-16"),
        b'{"a": 1,',
        b'"\\',
    ],
)
def test_what_is_not_json_is_refused(data: bytes) -> None:
    """Truncated, extended, badly encoded or not finite: one kind of error."""
    with pytest.raises(errors.MalformedBody):
        codec.decode_untrusted(data, object)


@given(st.binary(max_size=60))
def test_any_bytes_decode_or_are_refused(data: bytes) -> None:
    """No bytes do anything but decode as the standard library decodes them, or raise one of two errors."""
    try:
        value = codec.decode_untrusted(data, object)
    except (errors.MalformedBody, errors.LimitExceeded):
        return
    assert value == json.loads(data)


@pytest.mark.parametrize(
    ("data", "place"),
    [(b'{"a": "1"}', "$.a"), (b"{}", "`a`"), (b'{"a": 1, "b": 2}', "`b`"), (b"[]", "object")],
)
def test_the_wrong_shape_names_the_field(data: bytes, place: str) -> None:
    """A document of another shape says where."""
    with pytest.raises(errors.MalformedBody) as caught:
        codec.decode_untrusted(data, Sealed)
    assert place in caught.value.message


def test_strict_and_lax_decoders_are_kept_apart() -> None:
    """Asking once for strict decoding does not make the next lax one strict."""
    with pytest.raises(errors.MalformedBody):
        codec.decode(b'{"a": "1"}', Sealed)
    assert codec.decode(b'{"a": "1"}', Sealed, strict=False) == Sealed(1)


def test_convert_reads_plain_values() -> None:
    """Plain values become a shape, or an error that names the field."""
    assert codec.convert({"a": 1}, Sealed) == Sealed(1)
    with pytest.raises(errors.MalformedBody, match="unknown field `b`"):
        codec.convert({"a": 1, "b": 2}, Sealed)


# ------------------------------------------------------------ the canonical encoding


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"b": 1, "a": [True, None, "x"]}, b'{"a":[true,null,"x"],"b":1}'),
        ({"": 0, "A": 1, "a": 2, "aa": 3}, b'{"":0,"A":1,"a":2,"aa":3}'),
        ({"\u00e9": 1, "z": 2}, b'{"z":2,"\xc3\xa9":1}'),
        ({"\ufb01": 1, "\U0001f600": 2}, b'{"\xef\xac\x81":1,"\xf0\x9f\x98\x80":2}'),
        ('a/b\n"\\\u007f\u2028', b'"a/b\\n\\"\\\\\x7f\xe2\x80\xa8"'),
        ([1, 1.0, -0.0, 0.1, 1e22, 2**53], b"[1,1.0,-0.0,0.1,1e22,9007199254740992]"),
        (Point(y=1), b'{"x":0,"y":1}'),
        ((1, (2,)), b"[1,[2]]"),
        (datetime(2026, 1, 25, 14, 3, tzinfo=UTC), b'"2026-01-25T14:03:00Z"'),
        ({}, b"{}"),
    ],
)
def test_canonical_vectors(value: object, expected: bytes) -> None:
    """The bytes that digests are taken of never change: keys by code point, no white space, UTF-8."""
    assert codec.canonical(value) == expected


def test_a_canonical_digest_is_pinned() -> None:
    """One whole document with its digest, so that no library can change it unnoticed."""
    document = {"files": [{"path": "model.onnx", "size": 3, "digest": "sha256:00"}], "at": None, "n": 0.25}
    digest = hashlib.sha256(codec.canonical(document)).hexdigest()
    assert digest == "387219290dac429109ef8ade809840922d284082ef5ec0f83ce54e50fc8ffc06"


@given(json_values, st.randoms(use_true_random=False))
def test_canonical_ignores_the_order_of_keys(value: Any, chance: Any) -> None:
    """The same value has the same bytes in whatever order its keys were put in, and decodes to itself."""

    def shuffled(part: Any) -> Any:
        if isinstance(part, dict):
            items = [(key, shuffled(item)) for key, item in part.items()]
            chance.shuffle(items)
            return dict(items)
        return [shuffled(item) for item in part] if isinstance(part, list) else part

    data = codec.canonical(value)
    assert codec.canonical(shuffled(value)) == data
    assert codec.decode(data, object) == value


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    "wrap",
    [lambda n: n, lambda n: [n], lambda n: (n,), lambda n: {"a": [{"b": n}]}, lambda n: {"a": (1, (2, n))}],
    ids=["bare", "list", "tuple", "dict", "deep tuple"],
)
def test_what_is_not_finite_has_no_canonical_form(number: float, wrap: Callable[[float], object]) -> None:
    """NaN and infinity are refused wherever they stand, rather than written as null."""
    with pytest.raises(errors.Invalid, match="canonical form"):
        codec.canonical(wrap(number))


def test_half_a_surrogate_pair_has_no_canonical_form() -> None:
    """Text that UTF-8 cannot hold is refused with a sentence, not with the encoder's own error."""
    with pytest.raises(errors.Invalid, match="surrogate"):
        codec.canonical({"a": "\ud800"})


def test_encode_keeps_the_order_of_fields() -> None:
    """On the wire a shape reads as it is written in the code."""
    assert codec.encode(Point(y=1, x=2)) == b'{"y":1,"x":2}'
    assert codec.builtins(Point(y=1)) == {"y": 1, "x": 0}


# ------------------------------------------------------------ YAML


def bomb(levels: int) -> str:
    """A short text whose aliases expand to ten to the power of `levels` nodes."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, levels)]
    return "\n".join(lines)


def test_yaml_of_every_kind_is_read() -> None:
    """Mappings, lists, numbers, truth, null and text become plain values."""
    text = "name: churn\nn: 3\nx: 0.5\nok: true\nnone: ~\nlist: [a, 'b']\nshared: &s {k: v}\nagain: *s\n"
    assert codec.parse_yaml(text) == {
        "name": "churn",
        "n": 3,
        "x": 0.5,
        "ok": True,
        "none": None,
        "list": ["a", "b"],
        "shared": {"k": "v"},
        "again": {"k": "v"},
    }
    assert codec.parse_yaml(text.encode()) == codec.parse_yaml(text)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("a: 1\na: 2", "The key 'a' stands twice in one mapping (line 2)"),
        ('a: 1\n"\\x61": 2', "stands twice"),
        ("b: {c: 1, 'c': 2}", "stands twice"),
        ("- {a: 1, a: 1}", "stands twice"),
        ("{true: 1, True: 2}", "The key 'true' in line 1 is not text"),
        ("a: 1\n3: b", "The key '3' in line 2 is not text"),
        ("no: 1", "The key 'no' in line 1 is not text"),
        ("~: 1", "is not text"),
        ("? [a]\n: 1", "is not text"),
        ("a: [1", "line 1"),
        ("a: b: c", "line 1"),
        ("a: 1\n---\nb: 2", "another document"),
        ("a: *nowhere", "undefined alias"),
        ("a: \x00", "special characters"),
        ("\tb: 1", "line 1"),
        ("x: 2024-13-45", "month"),
        ("!!python/object/apply:os.system ['true']", "could not determine a constructor"),
        ("!!python/name:os.system ''", "could not determine a constructor"),
        ("a: !custom {b: 1}", "could not determine a constructor"),
        ("a: " + "1" * 101, "The number in line 1 is too long"),
        ("a: " + "1" * 50_000, "The number in line 1 is too long"),
        ("\na: 1" + ":59" * 50_000, "The number in line 2 is too long"),
        ("a: 1" + ":59" * 50_000 + ".5", "too long"),
        ("[" * 5_000, "not valid YAML"),
    ],
)
def test_bad_yaml(text: str, why: str) -> None:
    """What is not YAML, is ambiguous, or reaches for objects is refused with the place."""
    with pytest.raises(errors.MalformedBody) as caught:
        codec.parse_yaml(text)
    assert why in caught.value.message


@pytest.mark.parametrize(
    "text",
    [
        "a: {b: [1, 0.5, ~, yes, '2024-01-01', 2024-01-01, 0x1F, 1_000, .inf]}\nc: |\n  two\n  lines\n",
        "- a\n- &x {k: v}\n- <<: *x\n  more: [*x]\n",
        "",
        "# nothing\n",
        "\ufeffa: \u00e9\U0001f600\n",
    ],
)
def test_both_readers_of_yaml_agree(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fast reader and the one that is there everywhere give the same."""
    quick = codec.parse_yaml(text)
    monkeypatch.setattr(codec, "YAML_FLAT_MARKS", -1)
    assert codec.parse_yaml(text) == quick


@pytest.mark.parametrize("mark", ["[", "- ", "? ", "{a: ", "- - a:\n   "])
def test_no_depth_of_yaml_ends_the_process(mark: str) -> None:
    """What the fast reader is given, it can nest as deep as its marks allow; the rest is refused as ever."""
    for count in (codec.YAML_FLAT_MARKS // 2, codec.YAML_FLAT_MARKS, codec.YAML_FLAT_MARKS + 1):
        with pytest.raises((errors.MalformedBody, errors.LimitExceeded)):
            codec.parse_yaml(mark * count + "a")


@pytest.mark.parametrize(
    "text",
    [
        bomb(9),
        "a: &a [*a]",
        "a: &a {b: *a}",
        "[" * 40 + "]" * 40,
        "x: " + "[a, " * 20 + "]" * 20 + "\n" + "y" * codec.YAML_MAX_BYTES,
        "[" + "a," * 110_000 + "]",
    ],
    ids=["bomb", "circle", "circle in a mapping", "deep", "long", "many"],
)
def test_yaml_stays_small(text: str) -> None:
    """Bombs, circles, depth and sheer size are refused before anything is built."""
    with pytest.raises(errors.LimitExceeded):
        codec.parse_yaml(text)


def test_bytes_that_are_no_text_are_no_yaml() -> None:
    """A file of another kind is refused."""
    with pytest.raises(errors.MalformedBody):
        codec.parse_yaml(b"\x89PNG\r\n\x1a\n\x00\xff")


def test_long_text_is_not_taken_for_a_number() -> None:
    """Only values that would be read as numbers or times are bounded; quoted ones are text."""
    assert codec.parse_yaml("a: '" + "1" * 500 + "'") == {"a": "1" * 500}
    assert codec.parse_yaml("a: " + "word " * 500)["a"].startswith("word word")


yaml_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(10**9), 10**9), st.text(max_size=8)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(yaml_values)
def test_yaml_round_trip(value: Any) -> None:
    """Whatever is written as YAML is read back as itself, also text that looks like a number."""
    assert codec.parse_yaml(codec.render_yaml(value)) == value


def test_rendered_yaml_reads_well() -> None:
    """Block style, keys in their own order, Unicode as it is, no aliases."""
    shared = ["é"]
    assert codec.render_yaml({"b": shared, "a": shared, "n": "no"}) == "b:\n- é\na:\n- é\nn: 'no'\n"


# ------------------------------------------------------------ times


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-01-25T14:03Z", datetime(2026, 1, 25, 14, 3, tzinfo=UTC)),
        ("2026-01-25T14:03:05Z", datetime(2026, 1, 25, 14, 3, 5, tzinfo=UTC)),
        ("2026-01-25t14:03:05.123456z", datetime(2026, 1, 25, 14, 3, 5, 123456, tzinfo=UTC)),
        ("2026-01-25 14:03+01:00", datetime(2026, 1, 25, 13, 3, tzinfo=UTC)),
        ("2026-01-25T00:30-02:00", datetime(2026, 1, 25, 2, 30, tzinfo=UTC)),
        (" 2026-01-25T14:03Z ", datetime(2026, 1, 25, 14, 3, tzinfo=UTC)),
        ("2026-01-25", datetime(2026, 1, 25, tzinfo=UTC)),
        ("2024-02-29T23:59:59Z", datetime(2024, 2, 29, 23, 59, 59, tzinfo=UTC)),
    ],
)
def test_times_are_read(text: str, expected: datetime) -> None:
    """RFC 3339 with a zone, seconds optional; a bare day is its beginning in UTC."""
    moment = codec.parse_time(text)
    assert moment == expected
    assert moment.tzinfo is UTC


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "is not a time"),
        ("yesterday", "is not a time"),
        ("2026-01-25T14:03", "names no time zone"),
        ("2026-13-01T00:00Z", "is not a time"),
        ("2026-02-29T00:00Z", "is not a time"),
        ("2026-01-25T25:00Z", "is not a time"),
        ("2026-01-25T14:03ZZ", "is not a time"),
        ("\u0662\u0660\u0662\u0666-01-25T14:03Z", "is not a time"),
        ("0001-01-01T00:00+14:00", "outside the years"),
        ("9999-12-31T23:59-14:00", "outside the years"),
        ("9" * 10_000, "is not a time"),
    ],
)
def test_bad_times(text: str, why: str) -> None:
    """What is not a time, could mean any hour, or lies outside the calendar is refused."""
    with pytest.raises(errors.InvalidTime) as caught:
        codec.parse_time(text)
    assert why in caught.value.message
    assert len(caught.value.message) < 200


zones = st.integers(-14 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))
# hypothesis adds the zone itself, and wants the ends without one
moments = st.datetimes(datetime(1, 1, 3), datetime(9999, 12, 29), timezones=zones)  # noqa: DTZ001


@given(moments, moments)
def test_times_keep_their_order_as_text(a: datetime, b: datetime) -> None:
    """Written times have one width, read back as themselves, and sort as text like the moments they are."""
    first, second = codec.format_time(a), codec.format_time(b)
    assert len(first) == len(second) == 27
    assert codec.parse_time(first) == a
    assert (first < second) == (a < b)


_PIECES = st.sampled_from(
    [
        "{",
        "}",
        "[",
        "]",
        ":",
        ",",
        '"a"',
        '"b"',
        '"\\u0061"',
        '"a\\\\"',
        '"{:"',
        '"a" :',
        "1",
        " ",
        "null",
        '{"a":1,"a":2}',
    ]
)


@pytest.mark.req("U4")
@given(st.lists(_PIECES, max_size=12).map("".join))
def test_keys_are_counted_as_a_parser_counts_them(text: str) -> None:
    """Of any JSON, those documents are refused in which a parser meets a key twice in one object."""
    doubled = []

    def note(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        doubled.append(len(dict(pairs)) != len(pairs))
        return dict(pairs)

    try:
        json.loads(text, object_pairs_hook=note)
    except ValueError:
        return  # no JSON: the decoder refuses it
    if any(doubled):
        with pytest.raises(errors.MalformedBody, match="stands twice"):
            codec.check_json(text.encode())
    else:
        codec.check_json(text.encode())


@pytest.mark.req("G8")
@pytest.mark.parametrize("value", [math.nan, {"a": [{"b": math.inf}]}, [1, "x", (None, -math.inf)]])
def test_no_infinite_number_hides_in_depth(value: object) -> None:
    """However deep it lies, a number without a canonical form is found."""
    with pytest.raises(errors.Invalid, match="canonical"):
        codec.canonical(value)
