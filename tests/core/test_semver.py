"""Versions and ranges: the vectors of the specification, the order, ranges, bumps and the key for databases.

What a change of a model means is tested in test_bump.py.
"""

from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from modelkeep.core import errors, semver
from modelkeep.core.semver import Bump, SemVer

pytestmark = pytest.mark.req("V1")

VALID = """
0.0.4 1.2.3 10.20.30 1.1.2-prerelease+meta 1.1.2+meta 1.1.2+meta-valid 1.0.0-alpha 1.0.0-beta
1.0.0-alpha.beta 1.0.0-alpha.beta.1 1.0.0-alpha.1 1.0.0-alpha0.valid 1.0.0-alpha.0valid
1.0.0-alpha-a.b-c-somethinglong+build.1-aef.1-its-okay 1.0.0-rc.1+build.1 2.0.0-rc.1+build.123 1.2.3-beta
10.2.3-DEV-SNAPSHOT 1.2.3-SNAPSHOT-123 1.0.0 2.0.0 1.1.7 2.0.0+build.1848 2.0.1-alpha.1227 1.0.0-alpha+beta
1.2.3----RC-SNAPSHOT.12.9.1--.12+788 1.2.3----R-S.12.9.1--.12+meta 1.2.3----RC-SNAPSHOT.12.9.1--.12
1.0.0+0.build.1-rc.10000aaa-kk-0.1 99999999999999999999999.999999999999999999.99999999999999999
1.0.0-0A.is.legal
""".split()

INVALID = """
1 1.2 1.2.3-0123 1.2.3-0123.0123 1.1.2+.123 +invalid -invalid -invalid+invalid -invalid.01 alpha alpha.beta
alpha.beta.1 alpha.1 alpha+beta alpha_beta alpha. alpha.. beta 1.0.0-alpha_beta -alpha. 1.0.0-alpha..
1.0.0-alpha..1 1.0.0-alpha...1 1.0.0-alpha....1 1.0.0-alpha.....1 1.0.0-alpha......1 1.0.0-alpha.......1
01.1.1 1.01.1 1.1.01 1.2.3.DEV 1.2-SNAPSHOT 1.2.31.2.3----RC-SNAPSHOT.12.09.1--..12+788 1.2-RC-SNAPSHOT
-1.0.3-gamma+b7718 +justmeta 9.8.7+meta+meta 9.8.7-whatever+meta+meta
""".split()
INVALID.append("9" * 23 + "." + "9" * 18 + "." + "9" * 17 + "----RC-SNAPSHOT.12.09.1" + "-" * 32 + "..12")

PRECEDENCE = """
1.0.0-alpha 1.0.0-alpha.1 1.0.0-alpha.beta 1.0.0-beta 1.0.0-beta.2 1.0.0-beta.11 1.0.0-rc.1 1.0.0
""".split()

numbers = st.one_of(st.integers(0, 20), st.integers(0, 10**20))
words = st.one_of(
    st.integers(0, 10**9).map(str),
    st.from_regex(r"[0-9]{0,3}[A-Za-z-][0-9A-Za-z-]{0,5}", fullmatch=True),
    st.sampled_from(["alpha", "beta", "rc", "-", "a-", "A", "a0", "0a", "alpha1"]),
)
builds = st.lists(st.from_regex(r"[0-9A-Za-z-]{1,4}", fullmatch=True), max_size=2).map(tuple)
versions = st.builds(SemVer, numbers, numbers, numbers, st.lists(words, max_size=3).map(tuple), builds)
small = st.builds(
    SemVer,
    st.integers(0, 3),
    st.integers(0, 3),
    st.integers(0, 3),
    st.sampled_from([(), (), ("rc", "1"), ("alpha",), ("0",)]),
)


def by_the_book(version: SemVer) -> tuple[object, ...]:
    """Precedence as section 11 of the specification words it, without any encoding."""
    words = tuple((0, int(word), "") if word.isdigit() else (1, 0, word) for word in version.pre)
    return (*version.triple, not version.pre, words)


@pytest.mark.parametrize("text", VALID)
def test_valid_vectors(text: str) -> None:
    """Each valid example is read, and written back unchanged."""
    assert str(semver.parse(text)) == text


@pytest.mark.parametrize("text", INVALID)
def test_invalid_vectors(text: str) -> None:
    """Each invalid example is refused with a sentence."""
    with pytest.raises(errors.InvalidSemver) as caught:
        semver.parse(text)
    assert caught.value.message.endswith(".")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("1.02.0", "has a leading zero in its minor part; write 2"),
        ("00.1.0", "has a leading zero in its major part; write 0"),
        ("1.0.0-rc.01", "leading zero in the number '01' of its pre-release part"),
        ("v1.2.3", "write 1.2.3 without the 'v'"),
        ("1.2", "has only two numbers; write 1.2.0, or 1.2.x"),
        ("7", "has only one number; write 7.0.0, or 7.x"),
        ("1.2.3.4", "has 4 numbers"),
        ("1..3", "has an empty minor part"),
        ("1.0.x", "has 'x' as its patch part"),
        ("1.0.0-", "has an empty identifier in its pre-release part"),
        ("1.0.0+a..b", "has an empty identifier in its build part"),
        ("1.0.0-é", "has 'é' in its pre-release part"),
        ("1.0.0+b_c", "has 'b_c' in its build part"),
        ("\u0661.0.0", "where only the digits 0 to 9 may stand"),
        ("1.0.\uff10", "where only the digits 0 to 9 may stand"),
        ("1.0.0\n", "has white space around it"),
        (" 1.0.0", "has white space around it"),
        ("1.0.0-a\x1b[31m", "in its pre-release part"),
        ("", "is empty"),
        ("1.0.0-" + "a" * 130, "has 136 characters; a version has at most 128"),
        ("1" * 33 + ".0.0", "has a number of 33 digits; at most 32 fit"),
        ("1.0.0-rc." + "1" * 33, "has a number of 33 digits"),
    ],
)
def test_the_sentence_says_what_is_wrong(text: str, why: str) -> None:
    """A refusal names the part that is wrong, shows no raw control character, and stays short."""
    with pytest.raises(errors.InvalidSemver) as caught:
        semver.parse(text)
    assert why in caught.value.message
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 250


def test_the_largest_version_is_read() -> None:
    """The limits are inclusive: 32 digits and 128 characters pass."""
    assert semver.parse("9" * 32 + ".0.0").major == 10**32 - 1
    assert str(semver.parse("1.0.0-" + "a" * 122)).endswith("a")


@given(versions)
def test_round_trip(version: SemVer) -> None:
    """Whatever is written can be read, and is the same."""
    assert semver.parse(str(version)) == version


@given(st.text(max_size=40))
@example("1.0.0\u0000")
def test_any_text_is_read_or_refused(text: str) -> None:
    """No text does anything but parse to itself or raise InvalidSemver."""
    try:
        version = semver.parse(text)
    except errors.InvalidSemver as problem:
        message = problem.message
    else:
        assert str(version) == text
        return
    assert message.isprintable()


def test_precedence_chain() -> None:
    """The chain of the specification is strictly ascending, as versions and as keys."""
    chain = [semver.parse(text) for text in PRECEDENCE]
    assert all(a < b for a, b in pairwise(chain))
    assert all(semver.sort_key(a) < semver.sort_key(b) for a, b in pairwise(chain))
    assert sorted(sorted(chain, key=str)) == chain


@pytest.mark.parametrize(
    ("low", "high"),
    [
        ("1.0.0", "2.0.0"),
        ("2.0.0", "2.1.0"),
        ("2.1.0", "2.1.1"),
        ("2.0.0", "10.0.0"),
        ("1.9.0", "1.10.0"),
        ("1.0.0-9", "1.0.0-10"),
        ("1.0.0-999", "1.0.0-a"),
        ("1.0.0-A", "1.0.0-a"),
        ("1.0.0--", "1.0.0-0a"),
        ("1.0.0-a", "1.0.0-a.0"),
        ("1.0.0-a.z", "1.0.0-aa"),
        ("1.0.0-a-b", "1.0.0-ab"),
    ],
)
def test_order_of_neighbours(low: str, high: str) -> None:
    """Numbers compare as numbers, words by ASCII, numbers below words, shorter lists below longer ones."""
    a, b = semver.parse(low), semver.parse(high)
    assert a < b
    assert b > a
    assert semver.sort_key(a) < semver.sort_key(b)


@given(versions, versions)
def test_keys_order_as_the_specification_does(a: SemVer, b: SemVer) -> None:
    """Plain text order of the keys equals precedence, ties included; one oracle without any encoding."""
    assert (semver.sort_key(a) < semver.sort_key(b)) == (by_the_book(a) < by_the_book(b))
    assert (semver.sort_key(a) == semver.sort_key(b)) == (by_the_book(a) == by_the_book(b))


@given(versions)
def test_keys_need_no_collation(version: SemVer) -> None:
    """A key has only characters that every collation sorts alike, and fits a column."""
    key = semver.sort_key(version)
    assert set(key) <= set("0123456789abcdef")
    assert len(key) < 400


@given(versions, versions)
def test_the_order_is_total_and_agrees_with_equality(a: SemVer, b: SemVer) -> None:
    """Exactly one of less, equal and greater holds, also where only build metadata differs."""
    assert [a < b, a == b, a > b].count(True) == 1
    assert (a <= b) == (a < b or a == b)


def test_build_metadata_has_no_precedence_but_a_stable_place() -> None:
    """Two builds of one version share a key and still sort the same way every time."""
    a, b = semver.parse("1.0.0+a"), semver.parse("1.0.0+b")
    assert semver.sort_key(a) == semver.sort_key(b)
    assert sorted([b, a]) == sorted([a, b]) == [a, b]


RANGES = [
    # range, in, out
    ("^2.1", "2.1.0 2.1.9 2.99.0", "2.0.9 3.0.0 2.1.0-rc.1 3.0.0-rc.1"),
    ("^2.1.3", "2.1.3 2.2.0", "2.1.2 3.0.0"),
    ("^0.2.3", "0.2.3 0.2.9", "0.2.2 0.3.0 1.0.0"),
    ("^0.0.3", "0.0.3", "0.0.2 0.0.4"),
    ("^0.0", "0.0.0 0.0.9", "0.1.0"),
    ("^0", "0.0.0 0.9.9", "1.0.0"),
    ("~2.1", "2.1.0 2.1.9", "2.0.9 2.2.0"),
    ("~2.1.3", "2.1.3 2.1.9", "2.1.2 2.2.0"),
    ("~2", "2.0.0 2.9.9", "1.9.9 3.0.0"),
    ("2.1.x", "2.1.0 2.1.9", "2.0.0 2.2.0 2.1.0-rc.1"),
    ("2.x", "2.0.0 2.9.9", "1.0.0 3.0.0"),
    ("2.x.x", "2.0.0 2.9.9", "1.0.0 3.0.0"),
    ("2.*", "2.0.0 2.9.9", "1.0.0 3.0.0"),
    ("*", "0.0.0 9.9.9", "1.0.0-rc.1"),
    ("x", "0.0.0 9.9.9", "1.0.0-rc.1"),
    (">=1.2 <2", "1.2.0 1.9.9", "1.1.9 2.0.0 2.0.0-rc.1"),
    (">=1.2,<2", "1.2.0 1.9.9", "1.1.9 2.0.0"),
    (">= 1.2 < 2", "1.2.0 1.9.9", "1.1.9 2.0.0"),
    (">1.2", "1.3.0 2.0.0", "1.2.0 1.2.9"),
    (">1.2.3", "1.2.4", "1.2.3"),
    ("<=1.2", "1.2.9 0.1.0", "1.3.0"),
    ("<=1.2.3", "1.2.3", "1.2.4"),
    ("<1.2", "1.1.9", "1.2.0"),
    ("=1.2", "1.2.0 1.2.9", "1.1.0 1.3.0"),
    ("=1.2.3", "1.2.3 1.2.3+build", "1.2.2 1.2.3-rc.1"),
    ("1.2.3", "1.2.3", "1.2.4"),
    ("=1.0.0-rc.1", "1.0.0-rc.1", "1.0.0 1.0.0-rc.2"),
    ("^1.2.0-beta.2", "1.2.0-beta.2 1.2.0-rc.1 1.2.0 1.3.0", "1.2.0-beta.1 1.3.0-beta.3 2.0.0"),
    (">=2.0.0-alpha <2.0.0", "2.0.0-alpha 2.0.0-rc.1", "2.0.0 1.9.9 2.0.1-rc.1"),
    ("<2.0.0-beta", "2.0.0-alpha 1.9.9", "2.0.0-beta 2.0.0 1.9.9-alpha"),
]


@pytest.mark.parametrize(("text", "inside", "outside"), RANGES)
def test_ranges(text: str, inside: str, outside: str) -> None:
    """A range has the versions people expect; pre-releases only where it names one of the same triple."""
    found = semver.parse_range(text)
    wrong_out = [v for v in inside.split() if not found.contains(semver.parse(v))]
    wrong_in = [v for v in outside.split() if found.contains(semver.parse(v))]
    assert (wrong_out, wrong_in) == ([], [])
    assert semver.parse_range(str(found)) == found


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        (">= 1.2,  <2", ">=1.2 <2"),
        ("2.X", "2.x"),
        ("2.*.*", "2.x"),
        ("x", "*"),
        ("1.2.3", "=1.2.3"),
        ("^2.x", "^2"),
    ],
)
def test_ranges_have_one_normal_form(text: str, normal: str) -> None:
    """Different spellings of a range are written alike."""
    assert str(semver.parse_range(text)) == normal


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "names no range"),
        (" , ", "names no range"),
        ("2.1", "write 2.1.x"),
        ("^", "has no version after '^'"),
        (">=1.2 <", "has no version after '<'"),
        ("^*", "before a wildcard"),
        ("x.1", "has the term 'x.1'"),
        ("2.x.1", "has the term '2.x.1'"),
        ("2.x-rc", "has the term '2.x-rc'"),
        ("^1.2-rc", "has the term '1.2-rc'"),
        ("^01", "leading zero in its major part"),
        ("^1.2.3.4", "has the term"),
        ("=>1.2", "is not a version"),
        ("!=1.2", "is not a version"),
        (">=1.0.0+build", "names build metadata"),
        (">=1 >=1 >=1 >=1 >=1 >=1 >=1 >=1 >=1", "has 9 terms"),
        ("^" + "1" * 300, "has 301 characters"),
        ("^\u0661.0.0", "only the digits"),
        ("1.0.0 - 2.0.0", "has the term '-', not a version"),
        ("^1 || ^2", "is not a version"),
    ],
)
def test_bad_ranges(text: str, why: str) -> None:
    """A bad range is refused with a sentence that names the term."""
    with pytest.raises(errors.InvalidSemver) as caught:
        semver.parse_range(text)
    assert why in caught.value.message
    assert caught.value.message.isprintable()


@given(st.text(alphabet="0123456789.xX*^~<>=-+ ,arc", max_size=24))
@example("^" + "9" * 32)
def test_any_text_is_a_range_or_refused(text: str) -> None:
    """No text does anything but parse to a range that reads back as itself, or raise InvalidSemver."""
    try:
        found = semver.parse_range(text)
    except errors.InvalidSemver:
        return
    assert semver.parse_range(str(found)) == found


@pytest.mark.parametrize(
    "text", [text for text, _, _ in RANGES if text != "1.2.3"] + [">= 1", "1.0.0, 2.0.0", "^"]
)
def test_what_is_meant_as_a_range_is_known(text: str) -> None:
    """Operators, wildcards and several terms mark a range."""
    assert semver.is_range(text)


@pytest.mark.parametrize(
    "text", [*VALID, "1.2", "1", "v1.0.0", "1.0.0-x", "1.0.0+x.x", "1.0.0-x.x", "xgboost"]
)
def test_what_is_meant_as_a_version_is_known(text: str) -> None:
    """Versions, right or wrong, are no ranges, also with an x in their pre-release."""
    assert not semver.is_range(text)


@given(small, small)
def test_caret_and_tilde_keep_their_promise(low: SemVer, version: SemVer) -> None:
    """`^` admits releases from the floor on with the same left-most non-zero number, `~` the same minor."""
    if not version.is_release or not low.is_release:
        return
    above = version.triple >= low.triple
    place = next((i for i, n in enumerate(low.triple) if n), 2)
    same_caret = version.triple[: place + 1] == low.triple[: place + 1]
    assert semver.parse_range(f"^{low}").contains(version) == (above and same_caret)
    assert semver.parse_range(f"~{low}").contains(version) == (above and version.triple[:2] == low.triple[:2])


@given(st.lists(small, max_size=12), st.sampled_from(["^1", "~1.2", "2.x", ">=1 <3", "*", "^1.0.0-alpha"]))
def test_highest_is_the_maximum_of_what_fits(found: list[SemVer], text: str) -> None:
    """The highest of a range is in it, and nothing in it is higher."""
    within = semver.parse_range(text)
    best = semver.highest(found, within)
    fitting = [version for version in found if within.contains(version)]
    assert best == (max(fitting) if fitting else None)


def test_highest_without_a_range_is_the_highest_release() -> None:
    """Without a range pre-releases do not count, since nobody asked for one."""
    found = [semver.parse(text) for text in ("1.9.0", "1.10.0", "2.0.0-rc.1")]
    assert semver.highest(found) == SemVer(1, 10, 0)
    assert semver.highest(found[2:]) is None


@pytest.mark.parametrize(
    ("text", "major", "minor", "patch"),
    [
        ("1.2.3", "2.0.0", "1.3.0", "1.2.4"),
        ("0.0.0", "1.0.0", "0.1.0", "0.0.1"),
        ("1.2.3+build", "2.0.0", "1.3.0", "1.2.4"),
        ("2.0.0-rc.1", "2.0.0", "2.0.0", "2.0.0"),
        ("2.1.0-rc.1", "3.0.0", "2.1.0", "2.1.0"),
        ("2.1.1-rc.1", "3.0.0", "2.2.0", "2.1.1"),
    ],
)
def test_bumps(text: str, major: str, minor: str, patch: str) -> None:
    """A bump raises one number and clears those behind it; a pre-release becomes what it announced."""
    version = semver.parse(text)
    bumped = [str(semver.bump(version, by)) for by in (Bump.MAJOR, Bump.MINOR, Bump.PATCH, Bump.NONE)]
    assert bumped == [major, minor, patch, text]


@given(versions)
def test_bumps_ascend(version: SemVer) -> None:
    """A greater bump never gives a lower version, and every real bump gives a higher one."""
    results = [semver.bump(version, by) for by in sorted(Bump, key=lambda by: by.rank)]
    assert results[0] == version
    assert all(semver.sort_key(version) < semver.sort_key(result) for result in results[1:])
    assert results[1:] == sorted(results[1:])


def test_a_number_cannot_outgrow_its_limit() -> None:
    """A bump that `parse` could not read back is refused."""
    with pytest.raises(errors.InvalidSemver, match="cannot be raised"):
        semver.bump(semver.parse("9" * 32 + ".0.0"), Bump.MAJOR)


@given(versions, st.sampled_from([Bump.MAJOR, Bump.MINOR, Bump.PATCH]))
def test_between_names_the_bump(version: SemVer, by: Bump) -> None:
    """From a release to its bump lies that bump; from there back lies none."""
    release = SemVer(*version.triple)
    raised = semver.bump(release, by)
    assert semver.between(release, raised) is by
    assert semver.between(raised, release) is Bump.NONE


def test_bumps_are_ordered_by_rank() -> None:
    """None, patch, minor, major, in this order."""
    assert [by.value for by in sorted(Bump, key=lambda by: by.rank)] == ["none", "patch", "minor", "major"]
