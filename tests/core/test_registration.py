"""What is stated when something is registered: its one normal form, its facts, and the versions a number
depends on."""

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from modelkeep.core import bump, catalog, errors, registration, semver
from modelkeep.core.catalog import DraftSpec, FileEntry, Metric, ModelVersion
from modelkeep.core.semver import Bump, SemVer
from modelkeep.core.signature import DataType, Field, Signature
from modelkeep.core.values import Digest, ModelName, Numbered, Ref

pytestmark = pytest.mark.req("V2")

CONTENT = Digest("sha256:" + "a" * 64)
FILE = FileEntry(path="model.onnx", size_bytes=3, digest=CONTENT)
SIGNATURE = Signature(inputs=(Field(name="x", type=DataType.FLOAT64),))
CHURN = ModelName("default", "churn")


def spec(**more: Any) -> DraftSpec:
    """A checked announcement."""
    return registration.check_spec(DraftSpec(files=(FILE,), **more))


def facts(checked: DraftSpec) -> registration.Facts:
    """The facts of an announcement."""
    return registration.facts_of(registration.stated_by(checked, CONTENT))


def test_equal_statements_become_equal_specs() -> None:
    """The order of files, metrics and tags, and short forms of metadata, do not matter."""
    other = FileEntry(path="a.json", size_bytes=1, digest=CONTENT)
    one = DraftSpec(
        files=(FILE, other),
        metrics=(Metric(name="b", value=1), Metric(name="a", value=1)),
        metadata={"performance": {"metrics": {"auc": 0.9}}},
        tags={"b": "", "a": ""},
    )
    two = DraftSpec(
        files=(other, FILE),
        metrics=(Metric(name="a", value=1), Metric(name="b", value=1)),
        metadata={"performance": {"metrics": [{"name": "auc", "value": 0.9}]}},
        tags={"a": "", "b": ""},
    )

    checked = registration.check_spec(one)

    assert checked == registration.check_spec(two)
    assert registration.check_spec(checked) == checked
    assert [metric.name for metric in checked.metrics] == ["a", "auc", "b"]


def test_a_metric_said_twice_must_agree_and_the_fuller_word_is_kept() -> None:
    """The unit that only the metadata states is not lost."""
    document = {"performance": {"metrics": [{"name": "p95", "value": 3.0, "unit": "ms"}]}}

    assert spec(metadata=document, metrics=(Metric(name="p95", value=3.0),)).metrics[0].unit == "ms"
    with pytest.raises(errors.InvalidMetric, match="p95"):
        spec(metadata=document, metrics=(Metric(name="p95", value=4.0),))


def test_a_signature_said_twice_must_agree() -> None:
    """Beside the metadata and inside it."""
    inside = {"signature": {"inputs": {"x": "float64"}}}

    assert spec(metadata=inside, signature=SIGNATURE).signature == SIGNATURE
    with pytest.raises(errors.InvalidSignature):
        spec(metadata={"signature": {"inputs": {"y": "float64"}}}, signature=SIGNATURE)


@pytest.mark.parametrize(
    ("document", "fact"),
    [
        ({"preprocessing": {"scale": True}}, "preprocessing"),
        ({"model": {"preprocessing": "standardised"}}, "preprocessing"),
        ({"model": {"architecture": {"family": "transformer"}}}, "architecture_family"),
        ({"model": {"architecture": {"family": "transformer"}}}, "architecture"),
        ({"data": {"features": ["a", "b"]}}, "features"),
        ({"data": {"labels": ["yes", "no"]}}, "labels"),
        ({"data": {"datasets": [{"name": "d", "version": "1"}]}}, "data"),
        ({"training": {"data": {"version": "2026-01"}}}, "data"),
        ({"environment": {"lock_digest": "sha256:" + "b" * 64}}, "environment"),
        ({"environment": {"python": "3.11.7"}}, "environment"),
        ({"performance": {"metrics": {"auc": 0.9}}}, "metrics"),
        ({"business": {"use_case": "who leaves"}}, "metadata"),
    ],
)
def test_each_section_becomes_the_fact_it_states(document: dict[str, Any], fact: str) -> None:
    """It is that fact, and where it is one of its own it is not counted as other metadata again."""
    plain, stated = facts(spec()), facts(spec(metadata=document))

    assert getattr(plain, fact) is None
    assert getattr(stated, fact) is not None
    if fact != "metadata":
        assert stated.metadata is None
    assert plain.weights == (CONTENT,)


def test_files_that_hold_no_weights_are_not_taken_for_weights() -> None:
    """Where no file is known to hold learned numbers, it is unknown which do."""
    readme = FileEntry(path="README.md", size_bytes=3, digest=CONTENT)

    assert facts(registration.check_spec(DraftSpec(files=(readme,)))).weights is None


def test_metrics_are_found_by_name_and_by_split() -> None:
    """The bare name is the unsliced one that stands first; a slice is no value of the whole."""
    metrics = (
        Metric(name="auc", value=0.7, split="test"),
        Metric(name="auc", value=0.9, split="train"),
        Metric(name="auc", value=0.1, split="test", slice="age<30"),
        Metric(name="f1", value=0.2, slice="x"),
    )

    assert registration.searchable(metrics) == {"auc": 0.7, "auc@test": 0.7, "auc@train": 0.9}
    assert metrics[2].label == "auc@test[age<30]"
    assert [catalog.parse_metric(metric.label) for metric in metrics] == [
        (metric.name, metric.split, metric.slice) for metric in metrics
    ]


@pytest.mark.parametrize(
    ("text", "selector"), [("#3", Numbered(3)), ("churn:#3", Numbered(3)), ("default/churn:#3", Numbered(3))]
)
def test_a_parent_is_named_short_or_whole(text: str, selector: Any) -> None:
    """What follows the colon is enough."""
    assert registration.parent_ref(CHURN, text) == Ref(model=CHURN, selector=selector)


@pytest.mark.parametrize("text", ["churn", "other:1.0.0", "", "1.0"])
def test_a_parent_that_names_no_version_of_the_model_is_refused(text: str) -> None:
    """Another model's, none at all, or half a version."""
    with pytest.raises(errors.Invalid):
        registration.parent_ref(CHURN, text)


def test_a_draft_that_says_more_is_not_the_same_version() -> None:
    """Labels and what is left out do not count; another number, bump or statement does."""
    known = ModelVersion(
        id="v",
        model=CHURN,
        number=1,
        semver="1.0.0",
        digest=CONTENT,
        size_bytes=3,
        files=(FILE,),
        signature=SIGNATURE,
        params={"a": "1"},
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
        created_by="ann",
    )

    for same in (
        {},
        {"tags": {"x": "y"}},
        {"params": {"a": "1"}},
        {"signature": SIGNATURE},
        {"semver": "1.0.0"},
    ):
        assert registration.adds_nothing(spec(**same), CONTENT, known)
    for more in ({"params": {"a": "2"}}, {"metrics": (Metric(name="m", value=1.0),)}, {"semver": "1.0.1"}):
        assert not registration.adds_nothing(spec(**more), CONTENT, known)


# ------------------------------------------------------------------------------------------------- the number

SMALL = st.integers(0, 3)
VERSIONS = st.builds(SemVer, SMALL, SMALL, SMALL, st.sampled_from([(), (), ("rc", "1")]))


@given(
    st.lists(VERSIONS, max_size=25, unique_by=semver.sort_key),
    st.integers(0, 24),
    st.one_of(st.none(), VERSIONS),
    st.sampled_from(Bump),
    st.one_of(st.none(), st.sampled_from(Bump)),
    st.sampled_from([None, "because"]),
)
def test_the_neighbourhood_is_all_that_the_number_depends_on(
    existing: list[SemVer],
    place: int,
    explicit: SemVer | None,
    verdict: Bump,
    asked: Bump | None,
    override: str | None,
) -> None:
    """The next number is the same whether all versions are loaded or only the highest of each span."""
    assume(explicit is None or asked is None)
    parent = existing[place % len(existing)] if existing else None
    spans, keys = registration.neighbourhood(parent, explicit)
    keyed = {semver.sort_key(version): version for version in existing}
    near = [
        keyed[max(inside)] for low, high in spans if (inside := [key for key in keyed if low <= key < high])
    ]
    near += [keyed[key] for key in keys if key in keyed]
    judged = bump.BumpVerdict(bump=verdict, reasons=("major: x.",))

    def outcome(known: list[SemVer]) -> Any:
        try:
            return bump.next_version(
                known, parent, judged, explicit=explicit, bump=asked, override_reason=override
            )
        except errors.ModelkeepError as refusal:
            return type(refusal), refusal.details

    assert outcome(near) == outcome(existing)


RANGES = [
    "*",
    "^1.2",
    "~0.3",
    "1.x",
    ">=1.2 <2",
    "=1.0.0-rc.1",
    ">1 <=3",
    "<2.0.0-rc.1",
    ">1.0.0 >=2",
    "<0.0.0",
]


@pytest.mark.req("V1")
@given(VERSIONS, st.sampled_from(RANGES).map(semver.parse_range))
def test_a_ranges_versions_lie_within_its_span(version: SemVer, within: semver.Range) -> None:
    """What is loaded by the span holds all of the range, and every release of the span is in it."""
    low, high = registration.span_of(within)
    inside = low <= semver.sort_key(version) < high

    assert inside or not within.contains(version)
    if version.is_release:
        assert inside == within.contains(version)
