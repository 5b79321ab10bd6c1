"""Small values: names, free text, paths inside a version, digests and ids.

References are tested in test_references.py.
"""

import re
import shlex
import unicodedata
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelkeep.core import errors, values

HOSTILE_NAMES = [
    "",
    " ",
    "a b",
    "a\x00",
    "a\n",
    "\x1b[31m",
    "a/b",
    "a\\b",
    "../a",
    ".hidden",
    "-rf",
    "_a",
    "a:b",
    "a@b",
    "a#b",
    "a?b",
    "a%2Fb",
    "\u0441hurn",  # a Cyrillic letter that looks like c
    "chu\u200brn",
    "churn\u202egnp",
    "\uff43hurn",
    "ch\u0131rn",
    "cafe\u0301",
    "\u00e9",
    "\u0661",
    "\U0001f600",
    "a\ud800",
    "n" * 129,
    "\u00df" * 10_000,
]


@pytest.mark.req("G10")
@pytest.mark.parametrize("name", HOSTILE_NAMES, ids=ascii)
def test_hostile_names_are_refused(name: str) -> None:
    """Control characters, separators, look-alikes and over-long text are no names; the sentence is safe."""
    with pytest.raises(errors.InvalidName) as caught:
        values.check_name(name, "model")
    assert caught.value.details == {"field": "model"}
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 400


@pytest.mark.parametrize("name", ["a", "0", "churn", "Churn-2.1_b", "n" * 128, "a..b", "a-"])
def test_names_are_returned_as_they_are(name: str) -> None:
    """A good name passes unchanged: nothing is folded or trimmed behind anybody's back."""
    assert values.check_name(name, "model") == name


HOSTILE_MODEL_NAMES = [
    *(name for name in HOSTILE_NAMES if name not in ("a b", "_a")),
    *(f"a{mark}b" for mark in "/:@#?%\\<>|*\"'`\t\x7f"),
    "a  b",
    " a",
    "a ",
    "a b.",
    "..",
    "~a",
    "=a",
    "^a",
    "models:/a",
    "\u00fcber",
]


@pytest.mark.req("T4", "G10")
@pytest.mark.parametrize("name", HOSTILE_MODEL_NAMES, ids=lambda name: ascii(name)[:30])
def test_hostile_model_names_are_refused(name: str) -> None:
    """What means something in a reference, an address or a file, hides, or looks like another letter, names
    no model; the sentence is safe."""
    with pytest.raises(errors.InvalidName) as caught:
        values.check_model_name(name)
    assert caught.value.details == {"field": "model"}
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 400


@pytest.mark.req("T4")
@pytest.mark.parametrize(
    "name",
    ["churn", "a", "My Model (v2)", "iris, 2026", "[draft] A+B=C", "_private", "a..b", "n" * 128, "x~1"],
)
def test_models_keep_the_names_they_have(name: str) -> None:
    """Names that models have elsewhere pass unchanged, in references and in MLflow's addresses too."""
    assert values.check_model_name(name) == name
    exact = values.Ref(model=values.ModelName("default", name), selector=values.Exact("2.1.0"))
    assert values.parse_ref(f"{name}:2.1.0") == exact
    assert values.parse_ref(str(exact)) == exact
    numbered = values.Ref(model=exact.model, selector=values.Numbered(1))
    assert values.parse_ref(f"models:/{name}/1") == numbered
    assert values.parse_model_name(f"risk/{name}") == values.ModelName("risk", name)


@pytest.mark.req("T4")
@given(st.text(st.characters(max_codepoint=0x2FF), max_size=20))
def test_model_names_mean_nothing_else(text: str) -> None:
    """Whatever passes is printable ASCII without a mark that means something in references or addresses."""
    try:
        name = values.check_model_name(text)
    except errors.InvalidName:
        return
    assert name.isascii()
    assert name.isprintable()
    assert not set(name) & set("/:@#?%\\<>|*\"'`")
    assert name == name.strip() == " ".join(name.split())


@given(st.text(max_size=140))
def test_names_are_plain_or_refused(text: str) -> None:
    """Whatever passes is ASCII, short, and safe in a file name, a label and a URL."""
    try:
        name = values.check_name(text, "alias")
    except errors.InvalidName:
        return
    assert name == text
    assert name.isascii()
    assert 1 <= len(name) <= values.NAME_MAX
    assert all(c.isalnum() or c in "._-" for c in name)
    assert name[0].isalnum()


@pytest.mark.parametrize(
    "text",
    ["", "one\ntwo\tthree", "Größe 北京 \U0001f468\u200d\U0001f469\u200d\U0001f467", "x" * values.TEXT_MAX],
)
def test_free_text_is_free(text: str) -> None:
    """Lines, tabs, every script and joined emoji pass unchanged."""
    assert values.check_text(text, "reason") == text


@pytest.mark.parametrize(
    "character",
    [
        "\x00",
        "\x07",
        "\x1b",
        "\r",
        "\x7f",
        "\x9b",
        "\u2028",
        "\u202e",
        "\u2066",
        "\ufeff",
        "\ud800",
    ],
)
@pytest.mark.hostile("steering-text")
def test_text_that_steers_the_reader_is_refused(character: str) -> None:
    """Control characters, direction overrides and half surrogates are refused wherever they stand."""
    for text in (character, f"a{character}", f"a{character}b"):
        with pytest.raises(errors.Invalid, match="The reason contains control characters"):
            values.check_text(text, "reason")


def test_text_has_limits() -> None:
    """Too long is a limit, empty where a reason is required is an error, and white space is empty."""
    with pytest.raises(errors.LimitExceeded, match="10,001 characters; at most 10,000"):
        values.check_text("x" * 10_001, "reason")
    with pytest.raises(errors.LimitExceeded):
        values.check_text("xx", "key", maximum=1)
    for text in ("", " \n\t"):
        with pytest.raises(errors.Invalid, match="must not be empty"):
            values.check_text(text, "reason", required=True)


@given(st.text(max_size=30))
def test_text_that_passes_can_be_stored(text: str) -> None:
    """Whatever passes can be written as UTF-8 and read back."""
    try:
        passed = values.check_text(text, "reason")
    except errors.Invalid:
        return
    assert passed.encode("utf-8").decode("utf-8") == text


BAD_PATHS = [
    "",
    ".",
    "..",
    "/",
    "/etc/passwd",
    "../secrets",
    "a/../b",
    "a/..",
    "a/./b",
    "./a",
    "a//b",
    "a/",
    "//server/share",
    "C:/windows",
    "c:evil",
    "a\\b",
    "..\\a",
    "a:stream",
    "a\x00.txt",
    "a\nb",
    "a\tb",
    "a\x1b[2J",
    "a\x7f",
    "a\u202etxt.exe",
    "model\u200b.onnx",
    "mo\u00addel.onnx",
    "a\u2060b",
    "a\u2028b",
    "\ufeffa",
    "a\ud800",
    "a.",
    "a ",
    " a",
    "dir./a",
    "dir /a",
    "dir/ a",
    "...",
    "a/" * 600 + "a",
    "n" * 256,
    "\u00e9" * 128,
    "d/" + "n" * 256,
]


@pytest.mark.req("V3")
@pytest.mark.parametrize("path", BAD_PATHS, ids=lambda path: ascii(path)[:40])
@pytest.mark.hostile("path-tricks")
def test_paths_outside_or_ambiguous_are_refused(path: str) -> None:
    """A path that leaves the folder, can be misread, or is too long is refused, never repaired."""
    with pytest.raises(errors.InvalidManifest) as caught:
        values.check_path(path)
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 400


@pytest.mark.parametrize(
    "path",
    [
        "model.onnx",
        "a/b/c.txt",
        ".hidden",
        "a b.txt",
        "..a",
        "a..b",
        "Größe/北京.bin",
        "n" * 255,
        "d/" * 511 + "dd",
    ],
)
def test_plain_paths_pass(path: str) -> None:
    """Relative paths of plain names pass unchanged, up to their limits."""
    assert values.check_path(path) == path


@given(st.text(alphabet="aZ0_-./", max_size=12))
def test_of_plain_characters_only_dots_and_slashes_are_looked_at(path: str) -> None:
    """A path of letters, digits, `_` and `-` is refused for empty parts and parts that end in a dot alone."""
    fine = all(part and not part.endswith(".") for part in path.split("/"))
    try:
        values.check_path(path)
    except errors.InvalidManifest:
        assert not fine
    else:
        assert fine


@given(st.text(alphabet="ab./\\: \x00\u202e\u00e9", max_size=20))
@pytest.mark.hostile("path-tricks")
def test_a_path_that_passes_stays_in_its_folder(path: str) -> None:
    """Joined to a folder, whatever passes names something below it, on every system's reading."""
    try:
        values.check_path(path)
    except errors.InvalidManifest:
        return
    parts = path.split("/")
    assert not path.startswith("/")
    assert all(part not in ("", ".", "..") for part in parts)
    assert not set(path) & set("\\:\x00\u202e")


@pytest.mark.req("V3")
@pytest.mark.parametrize(
    "text",
    [
        "",
        "sha256:",
        "sha256:" + "a" * 63,
        "sha256:" + "a" * 65,
        "sha256:" + "A" * 64,
        "SHA256:" + "a" * 64,
        "sha512:" + "a" * 64,
        "a" * 64,
        " sha256:" + "a" * 64,
        "sha256:" + "a" * 64 + "\n",
        "sha256:" + "\uff41" * 64,
    ],
)
def test_digests_are_whole(text: str) -> None:
    """Short forms, other algorithms, capitals and anything around it are refused."""
    with pytest.raises(errors.InvalidReference, match="is not a digest"):
        values.check_digest(text)


@given(st.binary(min_size=32, max_size=32))
def test_every_digest_passes(raw: bytes) -> None:
    """Any sha256 in its one spelling is returned as it is."""
    text = f"sha256:{raw.hex()}"
    assert values.check_digest(text) == text


@given(st.text(max_size=20))
@pytest.mark.hostile("steering-text")
def test_printable_text_cannot_steer_a_terminal(text: str) -> None:
    """Whatever comes in, what is shown has no control characters, and printable text is left alone."""
    shown = values.printable(text)
    assert shown.isprintable()
    assert not text.isprintable() or shown == text
    assert all(unicodedata.category(c) not in ("Cc", "Cf", "Cs") for c in shown)


moments = st.datetimes(datetime(1990, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001
entropy = st.binary(min_size=10, max_size=10)


@given(moments, entropy, entropy, st.integers(1, 10**9))
def test_ids_sort_by_time(moment: datetime, first: bytes, second: bytes, gap_ms: int) -> None:
    """A later millisecond gives a greater text, whatever the entropy."""
    later = moment + timedelta(milliseconds=gap_ms)
    assert values.new_id("mv", moment, first) < values.new_id("mv", later, second)


@given(moments, entropy, entropy)
def test_ids_differ_by_entropy(moment: datetime, first: bytes, second: bytes) -> None:
    """Within a millisecond the random bits tell ids apart: all but the six that say version and variant."""
    mask = ~((0xF << 76) | (0x3 << 62))
    same = int.from_bytes(first, "big") & mask == int.from_bytes(second, "big") & mask
    assert (values.new_id("mv", moment, first) == values.new_id("mv", moment, second)) == same


@given(moments, entropy)
def test_ids_are_uuids_of_version_7(moment: datetime, random: bytes) -> None:
    """The 26 digits hold 128 bits with the millisecond, version 7 and the RFC's variant."""
    text = values.new_id("rq", moment, random)
    prefix, _, digits = text.partition("_")
    assert prefix == "rq"
    assert len(digits) == 26
    number = 0
    for digit in digits:
        number = number * 32 + "0123456789abcdefghjkmnpqrstvwxyz".index(digit)
    assert number < 2**128
    assert number >> 80 == int(moment.timestamp() * 1000)
    assert (number >> 76) & 0xF == 7
    assert (number >> 62) & 0x3 == 2


@pytest.mark.parametrize(
    ("text", "project", "name"),
    [("churn", "default", "churn"), ("risk/churn", "risk", "churn"), ("default/a", "default", "a")],
)
def test_model_names(text: str, project: str, name: str) -> None:
    """A model's name has a project; the default one need not be written, and is not."""
    parsed = values.parse_model_name(text)
    assert (parsed.project, parsed.name) == (project, name)
    assert str(parsed) == text.removeprefix("default/")
    assert values.parse_model_name(str(parsed)) == parsed


@pytest.mark.parametrize("text", ["", "/", "/a", "a/", "a/b/c", "a//b", "a/b\n", "../a"])
def test_bad_model_names(text: str) -> None:
    """Empty parts and too many parts are refused."""
    with pytest.raises(errors.InvalidName):
        values.parse_model_name(text)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "'plain'"),
        ("a\x1b[2J\n", r"'a\x1b[2J\x0a'"),
        ("back\\slash", "'back\\slash'"),
        ("it's", "'it's'"),
        ("x" * 99, f"'{'x' * 80}'"),
    ],
)
def test_text_within_a_sentence_is_escaped_once(text: str, shown: str) -> None:
    """Control characters are shown by their number, with one backslash; what is printable stays as it is."""
    assert values.quoted(text) == shown


def test_no_message_escapes_what_is_escaped_already() -> None:
    """`quoted` is the way to put somebody's text into a sentence; `repr` of `printable` escapes twice."""
    source = Path(values.__file__).parents[1]
    twice = re.compile(r"printable\([^\n]*!r\}|repr\((values\.)?printable\(")
    found = [str(path) for path in source.rglob("*.py") if twice.search(path.read_text(encoding="utf-8"))]
    assert not found


@pytest.mark.hostile("steering-text")
@given(st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), min_size=1, max_size=40))
def test_a_command_that_is_copied_names_what_it_says(text: str) -> None:
    """Whatever a model is called, a shell reads its name in a message's command as one word."""
    assert shlex.split(f"modelkeep show {values.in_shell(text)} -m WHY") == [
        "modelkeep", "show", text, "-m", "WHY",
    ]  # fmt: skip
    assert values.in_shell("risk/churn:1.0.0-rc.1") == "risk/churn:1.0.0-rc.1"


@pytest.mark.req("S1")
@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("0", 0),
        ("1500000", 1_500_000),
        ("2k", 2_000),
        ("512MiB", 512 << 20),
        ("1.5 gib", 3 << 29),
        ("2GB", 2 * 10**9),
    ],
)
def test_sizes_are_read_as_people_write_them(text: str, count: int) -> None:
    """Units of 1000 and, with an i, of 1024; the letter's case does not matter."""
    assert values.parse_size(text) == count


@pytest.mark.req("S1")
@pytest.mark.parametrize("text", ["", "GiB", "-1", "1 2", "1e9", "12 apples", "9" * 400, "1..5k", "٣MiB"])
def test_what_is_no_size_is_refused(text: str) -> None:
    """The message says how to write one."""
    with pytest.raises(errors.Invalid, match="512MiB"):
        values.parse_size(text)
