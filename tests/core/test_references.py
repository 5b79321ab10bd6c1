"""References: one grammar for every door, its round trip, MLflow's words, and what is refused.

The parts (names, versions, digests, times) have their own tests; here it is about how they stand together.
"""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelkeep.core import codec, errors, semver, values
from modelkeep.core.values import (
    Aliased,
    Content,
    Digest,
    Exact,
    ModelName,
    Numbered,
    Ref,
    Selector,
    Staged,
    Within,
    check_model_name,
    parse_ref,
)

pytestmark = pytest.mark.req("V1")

CHURN = ModelName("default", "churn")
DIGEST = Digest("sha256:" + "0123456789abcdef" * 4)

SELECTORS: list[tuple[str, Selector | None]] = [
    ("", None),
    (":2.1.0", Exact("2.1.0")),
    (":2.1.0-rc.1+build.5", Exact("2.1.0-rc.1+build.5")),
    (":^2.1", Within("^2.1")),
    (":~2.1", Within("~2.1")),
    (":2.1.x", Within("2.1.x")),
    (":2.x", Within("2.x")),
    (":*", Within("*")),
    (":>=1.2 <2", Within(">=1.2 <2")),
    (":>=1.2,<2", Within(">=1.2 <2")),
    (":=2.1.0", Within("=2.1.0")),
    (":#7", Numbered(7)),
    (":#999999999999999999", Numbered(10**18 - 1)),
    ("@champion", Aliased("champion")),
    ("@latest", Aliased("latest")),
    ("@2.1.0", Aliased("2.1.0")),
    ("#production", Staged("production")),
    ("#Production", Staged("production")),
    (f"@{DIGEST}", Content(DIGEST)),
]


@pytest.mark.parametrize(("mark", "selector"), SELECTORS)
@pytest.mark.parametrize("name", ["churn", "default/churn", "risk/churn"])
def test_every_form(name: str, mark: str, selector: Selector | None) -> None:
    """Each selector is read behind each form of the name, with and without a time."""
    model = ModelName("risk", "churn") if name.startswith("risk") else CHURN
    assert parse_ref(name + mark) == Ref(model=model, selector=selector)
    moment = datetime(2026, 1, 25, 14, 3, tzinfo=UTC)
    assert parse_ref(f"{name}{mark}?at=2026-01-25T14:03Z") == Ref(model=model, selector=selector, at=moment)
    assert parse_ref(f"{name}{mark}?at=2026-01-25T15:03+01:00").at == moment


@pytest.mark.req("T3")
@pytest.mark.parametrize(
    ("uri", "ours"),
    [
        ("models:/churn/1", "churn:#1"),
        ("models:/churn/2.1.0", "churn:2.1.0"),
        ("models:/churn@champion", "churn@champion"),
        ("models:/churn/Production", "churn#production"),
        ("models:/churn/None", "churn#none"),
        ("models:/churn/latest", "churn@latest"),
        ("models:/churn/Latest", "churn@latest"),
        ("models:/risk/churn/3", "risk/churn:#3"),
        ("models:/risk/churn@champion", "risk/churn@champion"),
        (f"models:/churn@{DIGEST}", f"churn@{DIGEST}"),
    ],
)
def test_mlflow_uris(uri: str, ours: str) -> None:
    """MLflow's words mean the same as ours."""
    assert parse_ref(uri) == parse_ref(ours)


def is_model_name(text: str) -> bool:
    """Whether a model can be called that."""
    try:
        return check_model_name(text) == text
    except errors.InvalidName:
        return False


names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,12}", fullmatch=True)
model_names = names | st.text("Ab1 .,;!$&()+=^~[]{}_-", min_size=1, max_size=10).filter(is_model_name)
"""What models are called here, and what MLflow calls them."""
numbers = st.integers(0, 10**6)
triples = st.builds(lambda a, b, c: f"{a}.{b}.{c}", numbers, numbers, numbers)
words = st.from_regex(r"[a-z][0-9a-z-]{0,4}", fullmatch=True)
exact = st.one_of(
    triples,
    st.builds(lambda t, w: f"{t}-{w}", triples, words),
    st.builds(lambda t, w: f"{t}+{w}", triples, words),
)
ranges = st.one_of(
    st.builds(lambda o, t: f"{o}{t}", st.sampled_from(["^", "~", ">=", "<", "=", "<=", ">"]), triples),
    st.builds(lambda a, b: f"{a}.{b}.x", numbers, numbers),
    st.builds(lambda a, b: f">={a} <{b}", numbers, numbers),
    st.just("*"),
)
selectors: st.SearchStrategy[Selector | None] = st.one_of(
    st.none(),
    st.builds(Exact, exact),
    st.builds(Within, ranges.map(lambda text: str(semver.parse_range(text)))),
    st.builds(Numbered, st.integers(1, 10**18 - 1)),
    st.builds(Aliased, names),
    st.builds(Staged, names.map(str.lower)),
    st.builds(Content, st.binary(min_size=32, max_size=32).map(lambda raw: Digest(f"sha256:{raw.hex()}"))),
)
moments = st.datetimes(datetime(1970, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001
refs = st.builds(
    Ref,
    model=st.builds(ModelName, st.one_of(st.just("default"), names), model_names),
    selector=selectors,
    at=st.one_of(st.none(), moments),
)


@given(refs)
def test_round_trip(ref: Ref) -> None:
    """Whatever is written is read back as itself, and is written one way only."""
    text = str(ref)
    assert parse_ref(text) == ref
    assert str(parse_ref(text)) == text
    assert len(text) <= values.REFERENCE_MAX


@given(refs)
def test_references_travel_as_json(ref: Ref) -> None:
    """A parsed reference is a stored shape: its selector keeps its kind through JSON."""
    assert codec.decode(codec.encode(ref), Ref) == ref


@given(st.text(max_size=40))
def test_any_text_is_read_or_refused(text: str) -> None:
    """No text does anything but parse to a reference that reads back, or raise a readable sentence."""
    try:
        ref = parse_ref(text)
    except errors.Invalid as problem:
        message = problem.message
    else:
        assert parse_ref(str(ref)) == ref
        return
    assert message.isprintable()
    assert len(message) < 500


@given(st.text(alphabet="abc019.:@#?/^~<>=x*- +", max_size=30))
def test_any_text_of_the_grammars_letters_is_read_or_refused(text: str) -> None:
    """The same for texts that are nearly references, also behind MLflow's prefix."""
    for whole in (text, f"models:/{text}", f"a{text}", f"a?at={text}"):
        try:
            ref = parse_ref(whole)
        except errors.Invalid:
            continue
        assert parse_ref(str(ref)) == ref


BAD = [
    ("", errors.InvalidReference, "names no model"),
    (":2.1.0", errors.InvalidReference, "names no model"),
    ("@champion", errors.InvalidReference, "names no model"),
    ("#production", errors.InvalidReference, "names no model"),
    ("?at=2026-01-25T14:03Z", errors.InvalidReference, "names no model"),
    ("churn:", errors.InvalidReference, "Nothing follows ':'"),
    ("churn@", errors.InvalidReference, "Nothing follows '@'"),
    ("churn#", errors.InvalidReference, "Nothing follows '#'"),
    ("churn:#", errors.InvalidReference, "is not a version number"),
    ("churn:#0", errors.InvalidReference, "is not a version number"),
    ("churn:#01", errors.InvalidReference, "is not a version number"),
    ("churn:#-1", errors.InvalidReference, "is not a version number"),
    ("churn:#1.0", errors.InvalidReference, "is not a version number"),
    ("churn:#\u0661", errors.InvalidReference, "is not a version number"),
    ("churn:#\u00b2", errors.InvalidReference, "is not a version number"),
    ("churn:#" + "9" * 19, errors.InvalidReference, "is not a version number"),
    ("churn:1.02.0", errors.InvalidSemver, "leading zero in its minor part"),
    ("churn:2.1", errors.InvalidSemver, "write 2.1.0, or 2.1.x"),
    ("churn:v2.1.0", errors.InvalidSemver, "without the 'v'"),
    ("churn:latest", errors.InvalidSemver, "major part"),
    ("churn:^", errors.InvalidSemver, "no version after"),
    ("churn:^2.1 || ^3", errors.InvalidSemver, "not a version"),
    ("churn:2.1.0@champion", errors.InvalidSemver, "patch part"),
    ("churn@champion#production", errors.InvalidName, "the alias name"),
    ("churn#production@champion", errors.InvalidName, "the stage name"),
    ("churn@a/b", errors.InvalidName, "the alias name"),
    ("churn@sha256:abc", errors.InvalidReference, "is not a digest"),
    ("churn@sha256:" + "A" * 64, errors.InvalidReference, "is not a digest"),
    ("a/b/churn:1.0.0", errors.InvalidName, "too many parts"),
    ("/churn", errors.InvalidName, "the project name"),
    ("risk/", errors.InvalidName, "the model name"),
    ("../churn", errors.InvalidName, "the project name"),
    ("churn ", errors.InvalidName, "the model name"),
    (" churn", errors.InvalidName, "the model name"),
    ("churn\n", errors.InvalidName, "the model name"),
    ("chu\x00rn", errors.InvalidName, "the model name"),
    ("\x1b[31mchurn", errors.InvalidName, "the model name"),
    ("\u0441hurn", errors.InvalidName, "the model name"),
    ("ch\u200burn:1.0.0", errors.InvalidName, "the model name"),
    ("churn\u202e:1.0.0", errors.InvalidName, "the model name"),
    ("churn\uff1a1.0.0", errors.InvalidName, "the model name"),
    ("n" * 129, errors.InvalidName, "the model name"),
    ("n" * 601, errors.InvalidReference, "at most 600 characters"),
    ("churn:1.0.0-" + "a" * 130, errors.InvalidSemver, "at most 128"),
    ("churn?", errors.InvalidReference, "only 'at=TIME'"),
    ("churn?at=", errors.InvalidReference, "only 'at=TIME'"),
    ("churn?when=2026-01-25T14:03Z", errors.InvalidReference, "only 'at=TIME'"),
    ("churn?at=yesterday", errors.InvalidTime, "is not a time"),
    ("churn?at=2026-01-25T14:03", errors.InvalidTime, "names no time zone"),
    ("churn?at=2026-01-25T14:03Z?at=2026-01-25T14:03Z", errors.InvalidTime, "is not a time"),
    ("models:/", errors.InvalidReference, "lacks a version"),
    ("models:/churn", errors.InvalidReference, "lacks a version"),
    ("models:/churn/", errors.InvalidName, "the stage name"),
    ("models:/churn/0", errors.InvalidReference, "is not a version number"),
    ("models:/churn/1.02.0", errors.InvalidSemver, "leading zero"),
    ("models:/churn@", errors.InvalidName, "the alias name"),
    ("models:/@champion", errors.InvalidName, "the model name"),
    ("models:/a/b/c/1", errors.InvalidName, "too many parts"),
    ("models://churn/1", errors.InvalidName, "the project name"),
]


@pytest.mark.parametrize(("text", "kind", "why"), BAD, ids=lambda part: ascii(part)[:40])
def test_bad_references(text: str, kind: type[errors.Invalid], why: str) -> None:
    """Each wrong part is refused as what it is, by a sentence that a terminal can show."""
    with pytest.raises(kind) as caught:
        parse_ref(text)
    assert type(caught.value) is kind
    assert why in caught.value.message
    assert caught.value.message.isprintable()


def test_the_longest_parts_fit_one_reference() -> None:
    """Two longest names, the longest version and a time fit: no legal reference is too long."""
    name = "n" * values.NAME_MAX
    text = f"{name}/{name}:1.0.0-{'a' * 122}?at=2026-01-25T14:03:00.000000Z"
    assert str(parse_ref(text)) == text
    wide = f"{name}/{name}:{'>=1.2.3 ' * 8}".strip()
    assert parse_ref(wide).selector == Within(" ".join([">=1.2.3"] * 8))
